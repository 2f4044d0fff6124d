//! A watcher without a thread: it reads events when it is asked for facts. For kernels that are modelled.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pleach_protocol::path::TreePath;

use super::dirty::DirtySet;
use super::engine::{End, Engine, Ignored, Shared};
use super::kernel::Kernel;
use super::{Fact, WatchError, WatchStats, Watcher};

/// Watches everything beneath the root that is not ignored; what changes from here on comes as facts.
pub(super) fn start_engine<K: Kernel>(
    kernel: K,
    ignored: Ignored,
    shared: Arc<Shared>,
) -> Result<Engine<K>, WatchError> {
    let root = kernel.open_root().map_err(WatchError::Root)?;
    let mut engine = Engine::new(kernel, K::identify(&root), ignored, shared);
    engine.walk_all(&root, false).map_err(|end| match end {
        End::RootGone => WatchError::Root(io::ErrorKind::NotFound.into()),
        End::Read(error) => WatchError::Read(error),
    })?;
    drop(root);
    engine.shared().lock().dirty = DirtySet::default();
    engine.publish();
    Ok(engine)
}

/// The watcher, see the module.
pub struct SteppedWatcher<K: Kernel> {
    engine: Engine<K>,
    polled: BTreeSet<TreePath>,
    ended: bool,
}

impl<K: Kernel> std::fmt::Debug for SteppedWatcher<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SteppedWatcher").field("polled", &self.polled).finish_non_exhaustive()
    }
}

impl<K: Kernel> SteppedWatcher<K> {
    /// As [`super::inotify::InotifyWatcher::start`].
    ///
    /// # Errors
    /// The same.
    pub fn start(kernel: K, ignored: Ignored) -> Result<Self, WatchError> {
        let engine = start_engine(kernel, ignored, Arc::default())?;
        let polled = engine.shared().lock().polled.clone();
        Ok(Self { engine, polled, ended: false })
    }
}

impl<K: Kernel + Send> Watcher for SteppedWatcher<K>
where
    K::Watch: Send,
    K::Identity: Send,
{
    /// Never waits.
    fn poll(&mut self, _timeout: Duration) -> Result<Vec<Fact>, WatchError> {
        if self.ended {
            return Err(WatchError::Ended);
        }
        let outcome = self.engine.turn();
        self.ended = outcome.is_err();
        match outcome {
            Err(End::RootGone) => return Ok(vec![Fact::RootGone]),
            Err(End::Read(error)) => return Err(WatchError::Read(error)),
            Ok(()) => {}
        }
        let mut state = self.engine.shared().lock();
        self.polled.clone_from(&state.polled);
        Ok(state.dirty.take())
    }

    fn refresh(&mut self) {
        self.engine.shared().refresh.store(true, Ordering::Release);
    }

    fn polled(&self) -> &BTreeSet<TreePath> {
        &self.polled
    }

    fn stats(&self) -> WatchStats {
        let state = self.engine.shared().lock();
        WatchStats { folded: state.dirty.folded(), ..state.stats }
    }
}
