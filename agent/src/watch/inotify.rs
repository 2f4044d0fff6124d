//! The watcher on inotify: a thread that reads events into the dirty set, and nothing else.
//!
//! The only module that calls inotify. How the map of watches is kept true, though events are late:
//!
//! - An event about a directory only says which name to look at. What stands there is found by adding
//!   a watch: for a directory that is watched already the kernel returns the watch it has. So a
//!   directory that was renamed is recognised by its watch and moves in the map with its subtree.
//! - A directory that is not where the map has it loses its place there (at `MOVED_FROM`, for one).
//!   Its events are not believed until `MOVED_TO` gave it a new place, which also reports the whole
//!   subtree. `MOVE_SELF` follows both in the queue, since the kernel emits the three under the locks
//!   of one rename: what has no place by then has left the tree, and its watches are dropped. Neither
//!   cookies nor waiting are needed for that.
//! - A directory is watched before it is listed, and reported only after all beneath it is watched.
//!
//! RACE: between an event and the look at its path, that path may lead to another directory than it
//! did. Then a watch stands at a wrong place until the event of the rename that caused it is read:
//! each arrival of a directory walks its whole subtree and puts it right. Until then facts name
//! paths that do not exist or did not change, which lstat finds out.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use pleach_protocol::path::TreePath;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::io::Errno;

use self::queue::Queue;
use super::engine::{End, Engine, Ignored, Shared, State};
use super::stepped::start_engine;
use super::{Fact, WatchError, WatchStats, Watcher};

mod queue;

/// Watches one tree with inotify, see [`Watcher`].
#[derive(Debug)]
pub struct InotifyWatcher {
    shared: Arc<Shared>,
    wake: Arc<OwnedFd>,
    polled: BTreeSet<TreePath>,
    thread: Option<JoinHandle<()>>,
}

impl InotifyWatcher {
    /// Watches every directory beneath `root` that is not ignored, then returns; the caller has yet
    /// to scan. What changes from here on comes as facts. `ignored` is asked on the watcher's thread.
    /// `.pleach/barrier` must be there by now, else barriers work only after [`Watcher::refresh`].
    /// Where something is mounted or unmounted in the tree no event tells of it: refresh then, too.
    ///
    /// # Errors
    /// [`WatchError::Setup`] and [`WatchError::Root`]. A watch limit is not one of them.
    pub fn start(root: &Path, ignored: Ignored) -> Result<Self, WatchError> {
        let queue = Queue::new(root.to_owned()).map_err(WatchError::Setup)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| WatchError::Setup(errno.into()))?;
        let (wake, shared) = (Arc::new(wake), Arc::new(Shared::default()));
        let engine = start_engine(queue, ignored, Arc::clone(&shared))?;
        let awaited = Arc::clone(&wake);
        let thread = std::thread::Builder::new().name("watch".into()).spawn(move || run(engine, &awaited));
        let thread = Some(thread.map_err(WatchError::Setup)?);
        let polled = shared.lock().polled.clone();
        Ok(Self { shared, wake, polled, thread })
    }

    fn wake(&self) {
        // Fails only when the counter is full, and then the thread is awake.
        let _ = rustix::io::write(&*self.wake, &[1; 8]);
    }
}

/// Makes [`InotifyWatcher::poll`] return when the thread ends, even by a panic.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.news.notify_all();
    }
}

fn run(mut engine: Engine<Queue>, wake: &OwnedFd) {
    let ending = Ending(Arc::clone(engine.shared()));
    while !ending.0.stopping() {
        if let Err(end) = wait(&engine.kernel, wake).and_then(|()| engine.turn()) {
            ending.0.lock().end = Some(end);
            return;
        }
    }
}

fn wait(queue: &Queue, wake: &OwnedFd) -> Result<(), End> {
    let mut fds = [PollFd::from_borrowed_fd(queue.fd(), PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
    match rustix::event::poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(End::Read(errno.into())),
    }
    if !fds[1].revents().is_empty() {
        // Only resets the counter.
        let _ = rustix::io::read(wake, &mut [0; 8]);
    }
    Ok(())
}

impl Watcher for InotifyWatcher {
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Fact>, WatchError> {
        let idle = |state: &mut State| state.dirty.is_empty() && !state.ended;
        let waited = self.shared.news.wait_timeout_while(self.shared.lock(), timeout, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.polled_changed {
            state.polled_changed = false;
            self.polled.clone_from(&state.polled);
        }
        match state.end.take() {
            Some(End::RootGone) => return Ok(vec![Fact::RootGone]),
            Some(End::Read(error)) => return Err(WatchError::Read(error)),
            None if state.ended => return Err(WatchError::Ended),
            None => {}
        }
        Ok(state.dirty.take())
    }

    fn refresh(&mut self) {
        self.shared.refresh.store(true, Ordering::Release);
        self.wake();
    }

    fn polled(&self) -> &BTreeSet<TreePath> {
        &self.polled
    }

    fn stats(&self) -> WatchStats {
        let state = self.shared.lock();
        WatchStats { folded: state.dirty.folded(), ..state.stats }
    }
}

impl Drop for InotifyWatcher {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there was seen by poll as an end; there is nothing to add to it here.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests;
