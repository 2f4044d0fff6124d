//! What a watcher does with events: keeps the map of watches true and marks what changed.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use ::inotify::EventMask;
use pleach_protocol::path::{PRIVATE_NAME, TreePath};
use rustix::io::Errno;

use super::WatchStats;
use super::dirty::{DirtySet, Touch};
use super::kernel::{BARRIER_MASK, Event, Kernel, MASK, Wd};
use super::map::{Put, WatchMap};

/// How much work is done between two reads.
const EVENTS_BETWEEN_READS: usize = 1_024;
const DIRS_BETWEEN_READS: usize = 16;
const ENTRIES_BETWEEN_READS: usize = 4_096;

/// The directory of barrier markers, beneath the root.
const BARRIER_DIR: &[u8] = b".pleach/barrier";

/// How far a walk goes.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Depth {
    /// Nowhere if the top was known at its place: its own watches told everything beneath it.
    IfNew,
    All,
}

/// Says whether a path is ignored, or lies in an ignored directory.
pub type Ignored = Arc<dyn Fn(&TreePath, bool) -> bool + Send + Sync>;

/// What the engine and whoever asks it share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    state: Mutex<State>,
    pub(super) news: Condvar,
    pub(super) stop: AtomicBool,
    pub(super) refresh: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) dirty: DirtySet,
    pub(super) polled: BTreeSet<TreePath>,
    pub(super) polled_changed: bool,
    pub(super) stats: WatchStats,
    pub(super) end: Option<End>,
    pub(super) ended: bool,
}

impl State {
    fn show_polled(&mut self, polled: &BTreeSet<TreePath>) {
        if self.polled != *polled {
            self.polled.clone_from(polled);
            self.polled_changed = true;
        }
    }
}

/// Why watching ends.
#[derive(Debug)]
pub(super) enum End {
    RootGone,
    Read(io::Error),
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is complete before the next call that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// A directory that a walk has yet to visit.
#[derive(Debug)]
struct Visit {
    parent: Wd,
    path: TreePath,
    /// Something above it is already reported as a whole.
    covered: bool,
}

/// The watcher's own state.
pub(super) struct Engine<K: Kernel> {
    identity: K::Identity,
    ignored: Ignored,
    pub(super) kernel: K,
    pending: VecDeque<Event>,
    map: WatchMap<K::Watch>,
    barrier: Option<Wd>,
    /// The directory of the last event and its path: events come in runs.
    last_dir: Option<(Wd, TreePath)>,
    polled: BTreeSet<TreePath>,
    /// The map said something impossible: it must be made anew.
    contradicted: bool,
    stats: WatchStats,
    shared: Arc<Shared>,
}

impl<K: Kernel> Engine<K> {
    pub(super) fn new(kernel: K, identity: K::Identity, ignored: Ignored, shared: Arc<Shared>) -> Self {
        Self {
            identity,
            ignored,
            kernel,
            pending: VecDeque::new(),
            map: WatchMap::default(),
            barrier: None,
            last_dir: None,
            polled: BTreeSet::new(),
            contradicted: false,
            stats: WatchStats::default(),
            shared,
        }
    }

    /// Follows what the kernel has to tell by now.
    pub(super) fn turn(&mut self) -> Result<(), End> {
        if self.shared.refresh.swap(false, Ordering::AcqRel) {
            self.rewalk(false)?;
        }
        self.read()?;
        let mut handled = 0;
        while let Some(event) = self.pending.pop_front() {
            self.handle(&event)?;
            handled += 1;
            if handled % EVENTS_BETWEEN_READS == 0 {
                self.publish();
                if self.shared.stopping() {
                    return Ok(());
                }
                self.read()?;
            }
        }
        if std::mem::take(&mut self.contradicted) {
            self.rewalk(true)?;
        }
        self.publish();
        Ok(())
    }

    fn read(&mut self) -> Result<(), End> {
        self.kernel.read(&mut self.pending).map_err(End::Read)
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Shows the outside what was found.
    pub(super) fn publish(&mut self) {
        self.stats.watches = self.map.len() + usize::from(self.barrier.is_some());
        let mut state = self.shared.lock();
        state.stats = self.stats;
        state.show_polled(&self.polled);
        if !state.dirty.is_empty() {
            self.shared.news.notify_one();
        }
    }

    fn handle(&mut self, event: &Event) -> Result<(), End> {
        self.stats.events += 1;
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            self.stats.overflows += 1;
            return self.rewalk(true);
        }
        if event.mask.contains(EventMask::UNMOUNT) {
            // The tree lies within one mount.
            return Err(End::RootGone);
        }
        if self.barrier == Some(event.wd) {
            if event.mask.contains(EventMask::IGNORED) {
                self.barrier = None;
            } else if !event.name.is_empty() {
                // Whoever hears of it relies on all that came before, also on which directories are polled, and on a map
                // without a contradiction.
                if std::mem::take(&mut self.contradicted) {
                    self.rewalk(true)?;
                }
                self.publish();
                self.shared.lock().dirty.barrier(&event.name);
            }
            return Ok(());
        }
        if !self.map.contains(event.wd) {
            return Ok(());
        }
        if event.name.is_empty() {
            self.last_dir = None;
            return self.handle_self(event);
        }
        self.mark(event);
        if event.mask.contains(EventMask::ISDIR) {
            self.last_dir = None;
            return self.handle_dir(event);
        }
        Ok(())
    }

    /// Marks the name that an event carries.
    fn mark(&mut self, event: &Event) {
        if self.last_dir.as_ref().is_none_or(|(wd, _)| *wd != event.wd) {
            self.last_dir = self.map.path(event.wd).map(|path| (event.wd, path));
        }
        // Without a path it is detached: when it gets one, all of it is reported.
        let Some((_, dir)) = &self.last_dir else { return };
        if dir.is_root() && *event.name == *PRIVATE_NAME {
            return;
        }
        self.shared.lock().dirty.name(dir, &event.name, touch(event.mask));
    }

    /// An event about a watched directory itself.
    fn handle_self(&mut self, event: &Event) -> Result<(), End> {
        let moved = event.mask.contains(EventMask::MOVE_SELF);
        let removed = event.mask.intersects(EventMask::DELETE_SELF | EventMask::IGNORED);
        if self.map.is_root(event.wd) {
            if moved || removed {
                return Err(End::RootGone);
            }
            self.shared.lock().dirty.root(touch(event.mask));
        } else if event.mask.contains(EventMask::IGNORED) {
            let watches = self.map.remove(event.wd);
            self.kernel.unwatch(watches);
        } else if moved {
            return self.verify(event.wd);
        }
        // ATTRIB comes once more, with a name, from the directory above.
        Ok(())
    }

    /// An event about a directory in a watched directory.
    fn handle_dir(&mut self, event: &Event) -> Result<(), End> {
        let known = self.map.child(event.wd, &event.name);
        if let (Some(wd), true) = (known, event.mask.contains(EventMask::DELETE)) {
            // If it is a newer one by now, the event of its arrival is yet to come.
            let watches = self.map.remove(wd);
            self.kernel.unwatch(watches);
        }
        // Without a path it is detached: all of it is walked when it gets a place.
        let Some(dir) = self.map.path(event.wd) else { return Ok(()) };
        let Ok(path) = dir.join(&event.name) else {
            if dir.is_root() && *event.name == *PRIVATE_NAME {
                return self.with_root(|engine, root| engine.watch_barrier(root, false));
            }
            return Ok(());
        };
        if event.mask.intersects(EventMask::MOVED_FROM | EventMask::DELETE) {
            self.polled.retain(|top| *top != path && !top.is_beneath(&path));
        }
        let arrived = event.mask.contains(EventMask::MOVED_TO);
        let created = event.mask.contains(EventMask::CREATE);
        // The name alone does not say who left: after an exchange another one stands there.
        let left = event.mask.contains(EventMask::MOVED_FROM) && known.is_some();
        // A change of its mode may have made readable what could not be watched.
        let mended = event.mask.contains(EventMask::ATTRIB) && known.is_none() && !self.polled.contains(&path);
        if !(arrived || created || left || mended) || (self.ignored)(&path, true) {
            return Ok(());
        }
        let depth = if arrived { Depth::All } else { Depth::IfNew };
        let visit = Visit { parent: event.wd, path: path.clone(), covered: arrived };
        self.with_root(|engine, root| engine.walk(root, vec![visit], depth, None))?;
        if arrived {
            self.shared.lock().dirty.subtree(&path);
        }
        Ok(())
    }

    /// Drops the watches of a directory that was moved unless it stands where the map has it.
    fn verify(&mut self, wd: Wd) -> Result<(), End> {
        let place = self.map.place(wd).map(|(parent, _)| parent);
        if let (Some(parent), Some(path)) = (place, self.map.path(wd)) {
            let visit = Visit { parent, path, covered: false };
            self.with_root(|engine, root| engine.walk(root, vec![visit], Depth::IfNew, None))?;
        }
        if self.map.is_detached(wd) {
            let watches = self.map.remove(wd);
            self.kernel.unwatch(watches);
        }
        Ok(())
    }

    /// Opens the root for as long as `work` takes: an open root keeps its file system from being
    /// unmounted. When it cannot be opened just now (too many open files) everything is polled.
    fn with_root(&mut self, work: impl FnOnce(&mut Self, &K::Root) -> Result<(), End>) -> Result<(), End> {
        match self.kernel.open_root() {
            Ok(root) if K::identify(&root) == self.identity => work(self, &root),
            Ok(_) => Err(End::RootGone),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(End::RootGone)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot open the tree to watch it");
                self.polled.insert(TreePath::ROOT);
                Ok(())
            }
        }
    }

    /// Walks the whole tree again, to be sure that every directory is watched. `lost`: events were.
    fn rewalk(&mut self, lost: bool) -> Result<(), End> {
        self.last_dir = None;
        if lost {
            // Older than the walk, and everything will be looked at after it.
            self.pending.clear();
        }
        self.with_root(|engine, root| engine.walk_all(root, lost))?;
        if lost && self.polled.contains(&TreePath::ROOT) {
            // It could not be walked.
            self.shared.lock().dirty.lose();
        }
        Ok(())
    }

    pub(super) fn walk_all(&mut self, root: &K::Root, lost: bool) -> Result<(), End> {
        // The map is made anew: adding a watch that exists returns it, and what is not found any
        // more is dropped at the end.
        let old = std::mem::take(&mut self.map);
        self.polled.clear();
        // First, so that whoever waits gets an answer also where the watches do not suffice.
        self.watch_barrier(root, false)?;
        let opened = K::open_dir(root, b"").and_then(|dir| Ok((self.kernel.watch(&dir, MASK)?, dir)));
        match opened {
            Ok((watch, dir)) => {
                let wd = self.map.put_root(K::wd(&watch), watch);
                let mut todo = Vec::new();
                self.list_into(&dir, wd, &TreePath::ROOT, false, &mut todo)?;
                self.walk(root, todo, Depth::All, Some(&old))?;
            }
            Err(error) => self.unwatched(&TreePath::ROOT, &error),
        }
        self.kernel.unwatch(old.not_in(&self.map));
        if lost {
            // Before the markers count: whoever hears of one must have heard of this.
            self.publish();
            self.shared.lock().dirty.lose();
        }
        self.watch_barrier(root, lost)
    }

    /// Watches what is found at and beneath `todo`, and reports what was not watched until now.
    /// `old` is the map that this walk replaces.
    fn walk(
        &mut self,
        root: &K::Root,
        mut todo: Vec<Visit>,
        depth: Depth,
        old: Option<&WatchMap<K::Watch>>,
    ) -> Result<(), End> {
        let mut fresh = Vec::new();
        let mut visited = 0;
        while let Some(visit) = todo.pop() {
            visited += 1;
            if visited % DIRS_BETWEEN_READS == 0 {
                self.read()?;
                if self.shared.stopping() {
                    break;
                }
            }
            let (covered, wd) = match self.place(root, &visit) {
                Ok((dir, wd, put)) => {
                    let new = put == Put::Moved || put == Put::Fresh && !old.is_some_and(|old| old.contains(wd));
                    if depth == Depth::IfNew && visited == 1 && !new {
                        break;
                    }
                    if put != Put::Fresh {
                        self.drop_ignored(wd, &visit.path);
                    }
                    self.list_into(&dir, wd, &visit.path, visit.covered || new, &mut todo)?;
                    (visit.covered || !new, Some(wd))
                }
                Err(report) => (visit.covered || !report, None),
            };
            tracing::trace!(path = %visit.path, ?wd, "directory watched");
            if !covered {
                fresh.push(visit.path);
            }
        }
        let mut state = self.shared.lock();
        // Whoever hears of them is told with it which of them are to be read from time to time.
        state.show_polled(&self.polled);
        fresh.iter().for_each(|dir| state.dirty.subtree(dir));
        Ok(())
    }

    /// Watches one directory and gives it its place in the map.
    ///
    /// # Errors
    /// Whether its subtree is to be reported though it is not watched.
    fn place(&mut self, root: &K::Root, visit: &Visit) -> Result<(K::Dir, Wd, Put), bool> {
        let name = visit.path.name();
        let dir = match K::open_dir(root, visit.path.as_bytes()) {
            Ok(dir) => dir,
            Err(error) => return Err(self.not_opened(visit, &error)),
        };
        let watch = match self.kernel.watch(&dir, MASK) {
            Ok(watch) => watch,
            Err(error) => {
                self.unwatched(&visit.path, &error);
                return Err(true);
            }
        };
        let (wd, known) = (K::wd(&watch), watch.clone());
        match self.map.put(visit.parent, name, (wd, watch)) {
            Put::Contradiction => {
                if !self.map.contains(wd) {
                    self.kernel.unwatch([known]);
                }
                self.contradicted = true;
                Err(true)
            }
            put => Ok((dir, wd, put)),
        }
    }

    /// Whether the subtree of a directory that cannot be opened is to be reported all the same.
    fn not_opened(&mut self, visit: &Visit, error: &io::Error) -> bool {
        match Errno::from_io_error(error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                if let Some(left) = self.map.child(visit.parent, visit.path.name()) {
                    self.map.detach(left);
                }
                false
            }
            // A mount point is where the tree ends; what cannot be read is the scan's to report.
            Some(Errno::XDEV) => false,
            Some(Errno::ACCESS) => true,
            _ => {
                self.unwatched(&visit.path, error);
                true
            }
        }
    }

    fn unwatched(&mut self, top: &TreePath, error: &io::Error) {
        tracing::debug!(path = %top, %error, "directory cannot be watched and is polled");
        self.polled.insert(top.clone());
    }

    /// Adds the directories in `dir` that are not ignored to `todo`.
    fn list_into(
        &mut self,
        dir: &K::Dir,
        wd: Wd,
        path: &TreePath,
        covered: bool,
        todo: &mut Vec<Visit>,
    ) -> Result<(), End> {
        // It is watched by now: those that are made from here on are told.
        if !K::may_hold_dirs(dir) {
            return Ok(());
        }
        let (kernel, pending, ignored) = (&mut self.kernel, &mut self.pending, &self.ignored);
        let (mut listed, mut failed) = (0, None);
        let result = K::list(dir, |name, is_dir| {
            listed += 1;
            if listed % ENTRIES_BETWEEN_READS == 0
                && let Err(error) = kernel.read(pending)
            {
                failed = Some(error);
                return ControlFlow::Break(());
            }
            if is_dir
                && let Ok(path) = path.join(name)
                && !ignored(&path, true)
            {
                todo.push(Visit { parent: wd, path, covered });
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = result {
            self.unwatched(path, &error);
        }
        failed.map_or(Ok(()), |error| Err(End::Read(error)))
    }

    /// Drops the watches in `wd` that the rules exclude at its path: they may have been set under
    /// another path or other rules.
    fn drop_ignored(&mut self, wd: Wd, path: &TreePath) {
        for name in self.map.child_names(wd) {
            if path.join(&name).is_ok_and(|child| (self.ignored)(&child, true))
                && let Some(child) = self.map.child(wd, &name)
            {
                let watches = self.map.remove(child);
                self.kernel.unwatch(watches);
            }
        }
    }

    /// Watches the barrier directory if there is one. After lost events its markers count again.
    fn watch_barrier(&mut self, root: &K::Root, lost: bool) -> Result<(), End> {
        let Ok(dir) = K::open_dir(root, BARRIER_DIR) else { return Ok(()) };
        match self.kernel.watch(&dir, BARRIER_MASK) {
            Ok(watch) => self.barrier = Some(K::wd(&watch)),
            Err(error) => tracing::warn!(%error, "the barrier directory cannot be watched"),
        }
        if lost {
            let mut state = self.shared.lock();
            let listed = K::list(&dir, |name, _| {
                state.dirty.barrier(name);
                ControlFlow::Continue(())
            });
            if let Err(error) = listed {
                tracing::warn!(%error, "the barrier directory cannot be read");
            }
        }
        Ok(())
    }
}

fn touch(mask: EventMask) -> Touch {
    let closed = mask.contains(EventMask::CLOSE_WRITE);
    Touch { content: closed || mask.contains(EventMask::MODIFY), closed }
}
