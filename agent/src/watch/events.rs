//! Every inotify event beneath a directory, by name: what `pleach watch` shows.
//!
//! Unlike a [`super::Watcher`] it decides nothing and folds nothing. A directory that appears is watched before it is
//! listed, and what lay in it by then is told too, also where it was moved here from elsewhere: as created and,
//! for a file, as closed after writing, for its own events may have come before the watch.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use pleach_protocol::path::TreePath;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::kernel::Wd;
use super::map::{Put, WatchMap};
use super::walk::{Identity, Root, fd_path, list};

/// One read. An event has at most 272 bytes.
const BUFFER_BYTES: usize = 64 * 1024;
/// What must be heard of to keep the watches where the directories are.
const STRUCTURE: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(WatchMask::ONLYDIR)
    .union(WatchMask::DONT_FOLLOW);
/// What the kernel tells whether it is asked or not.
const ALWAYS: EventMask = EventMask::Q_OVERFLOW.union(EventMask::UNMOUNT);

/// One event.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Seen {
    /// The bits of inotify(7), `IN_ISDIR` among them.
    pub mask: EventMask,
    /// The watched directory, from the top.
    pub dir: TreePath,
    /// The name in it; empty where the event is about the directory itself.
    pub name: Box<[u8]>,
    /// What `MOVED_FROM` and `MOVED_TO` of one rename have in common.
    pub cookie: u32,
}

/// Says that a path is left out, with all that lies beneath it.
pub type Excluded = Box<dyn Fn(&TreePath, &[u8]) -> bool>;

/// Watches a directory and everything beneath it, within its mount.
pub struct Events {
    top: PathBuf,
    identity: Identity,
    inotify: Inotify,
    buffer: Box<[u8]>,
    wanted: EventMask,
    excluded: Excluded,
    map: WatchMap<WatchDescriptor>,
    /// Names that a listing found: their event is yet to be read, and has been told.
    found: HashSet<(Wd, Box<[u8]>)>,
    ready: VecDeque<Seen>,
    /// At the start: what our own look would cause is not asked for yet.
    looking: bool,
    ended: bool,
}

struct Raw {
    wd: Wd,
    mask: EventMask,
    name: Box<[u8]>,
    cookie: u32,
}

impl Events {
    /// Watches `top` and every directory beneath it, then returns.
    ///
    /// # Errors
    /// `top` is no directory that can be read, or not all can be watched: `ENOSPC` at the limit of watches.
    pub fn start(top: &Path, wanted: EventMask, excluded: Excluded) -> io::Result<Self> {
        let mut events = Self {
            top: top.to_owned(),
            identity: Root::open(top)?.identity(),
            inotify: Inotify::init()?,
            buffer: vec![0; BUFFER_BYTES].into(),
            wanted,
            excluded,
            map: WatchMap::default(),
            found: HashSet::new(),
            ready: VecDeque::new(),
            looking: true,
            ended: false,
        };
        events.watch_all()?;
        events.ask_for_all()?;
        Ok(events)
    }

    /// How many directories are watched.
    #[must_use]
    pub fn watches(&self) -> usize {
        self.map.len()
    }

    /// Waits for the next events; none at a timeout, or once the top is gone (see [`Events::ended`]).
    ///
    /// # Errors
    /// Events cannot be read, or a new directory cannot be watched.
    pub fn next(&mut self, timeout: Option<Duration>) -> io::Result<Vec<Seen>> {
        let end = timeout.map(|timeout| Instant::now() + timeout);
        while self.ready.is_empty() && !self.ended {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let left =
                left.map(|left| Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() });
            let mut fds = [PollFd::from_borrowed_fd(self.inotify.as_fd(), PollFlags::IN)];
            match poll(&mut fds, left.as_ref()) {
                Ok(0) => break,
                Ok(_) => self.read()?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(self.ready.drain(..).collect())
    }

    /// Whether the top was removed, moved or unmounted: nothing more will come.
    #[must_use]
    pub const fn ended(&self) -> bool {
        self.ended
    }

    fn read(&mut self) -> io::Result<()> {
        let events = match self.inotify.read_events(&mut self.buffer) {
            Ok(events) => events,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let raws: Vec<Raw> = events
            .map(|event| Raw {
                wd: event.wd.get_watch_descriptor_id(),
                mask: event.mask,
                name: event.name.map(|name| name.as_encoded_bytes().into()).unwrap_or_default(),
                cookie: event.cookie,
            })
            .collect();
        for raw in raws {
            self.take(&raw)?;
        }
        if self.found.is_empty() {
            return Ok(());
        }
        // What a listing found was created before it: once the queue was empty, its event has been read.
        let mut fds = [PollFd::from_borrowed_fd(self.inotify.as_fd(), PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0 {
            self.found.clear();
        }
        Ok(())
    }

    fn take(&mut self, raw: &Raw) -> io::Result<()> {
        if raw.mask.contains(EventMask::Q_OVERFLOW) {
            self.tell(EventMask::Q_OVERFLOW, TreePath::ROOT, &[], 0);
            return self.watch_all();
        }
        let Some(dir) = self.map.path(raw.wd) else { return self.structure(raw, None, false) };
        let again = raw.mask.contains(EventMask::CREATE) && self.found.remove(&(raw.wd, raw.name.clone()));
        if raw.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
            self.found.remove(&(raw.wd, raw.name.clone()));
        }
        if !again {
            self.tell(raw.mask, dir.clone(), &raw.name, raw.cookie);
        }
        self.structure(raw, Some(dir), again)
    }

    /// Keeps the watches where the directories are.
    fn structure(&mut self, raw: &Raw, dir: Option<TreePath>, again: bool) -> io::Result<()> {
        if raw.name.is_empty() {
            let gone = raw.mask.intersects(EventMask::DELETE_SELF | EventMask::IGNORED | EventMask::UNMOUNT);
            if self.map.is_root(raw.wd) {
                self.ended |= gone || raw.mask.contains(EventMask::MOVE_SELF);
            } else if raw.mask.contains(EventMask::IGNORED) {
                drop(self.map.remove(raw.wd));
            } else if raw.mask.contains(EventMask::MOVE_SELF) && self.map.is_detached(raw.wd) {
                // It left what is watched: its arrival would have been read before.
                self.unwatch(raw.wd);
            }
            return Ok(());
        }
        if !raw.mask.contains(EventMask::ISDIR) {
            return Ok(());
        }
        if raw.mask.contains(EventMask::MOVED_FROM)
            && let Some(child) = self.map.child(raw.wd, &raw.name)
        {
            self.map.detach(child);
        }
        let Some(path) = dir.and_then(|dir| dir.join(&raw.name).ok()) else { return Ok(()) };
        // A listing that found it went on into it.
        if raw.mask.contains(EventMask::CREATE) && !again || raw.mask.contains(EventMask::MOVED_TO) {
            let Some(root) = self.open()? else { return Ok(()) };
            self.watch_beneath(&root, raw.wd, path, true)?;
        }
        Ok(())
    }

    fn unwatch(&mut self, wd: Wd) {
        for watch in self.map.remove(wd) {
            // Fails where the directory is gone and the kernel dropped the watch by itself.
            drop(self.inotify.watches().remove(watch));
        }
    }

    /// Opens the top while there is work: an open one would keep its file system from being unmounted.
    fn open(&mut self) -> io::Result<Option<Root>> {
        match Root::open(&self.top) {
            Ok(root) if root.identity() == self.identity => return Ok(Some(root)),
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(error);
            }
            _ => self.ended = true,
        }
        Ok(None)
    }

    /// Watches everything anew: at the start, and after events were lost.
    fn watch_all(&mut self) -> io::Result<()> {
        self.found.clear();
        let Some(root) = self.open()? else { return Ok(()) };
        let old = std::mem::take(&mut self.map);
        let dir = root.open_dir(b"")?;
        let watch = self.watch(&dir)?;
        let wd = self.map.put_root(watch.get_watch_descriptor_id(), watch);
        let mut dirs = Vec::new();
        list(&dir, |name, is_dir| {
            dirs.extend(is_dir.then(|| TreePath::ROOT.join(name).ok()).flatten());
            ControlFlow::Continue(())
        })?;
        for path in dirs {
            self.watch_beneath(&root, wd, path, false)?;
        }
        for watch in old.not_in(&self.map).collect::<Vec<_>>() {
            drop(self.inotify.watches().remove(watch));
        }
        Ok(())
    }

    fn watch(&self, dir: &OwnedFd) -> io::Result<WatchDescriptor> {
        let mask = if self.looking { STRUCTURE } else { self.mask() };
        self.inotify.watches().add(fd_path(dir.as_fd()), mask)
    }

    fn mask(&self) -> WatchMask {
        WatchMask::from_bits_retain(self.wanted.bits()) | STRUCTURE
    }

    /// Asks for all that is wanted, now that our own opening and listing is over.
    fn ask_for_all(&mut self) -> io::Result<()> {
        self.looking = false;
        for (wd, path) in self.map.paths() {
            let dir = self.top.join(std::ffi::OsStr::from_bytes(path.as_bytes()));
            match self.inotify.watches().add(dir, self.mask()) {
                Ok(watch) if watch.get_watch_descriptor_id() == wd => {}
                // Another directory stands there by now: the events of that are yet to be read.
                Ok(watch) if !self.map.contains(watch.get_watch_descriptor_id()) => {
                    drop(self.inotify.watches().remove(watch));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(Errno::NAMETOOLONG.raw_os_error()) => {
                    let Some(root) = self.open()? else { return Ok(()) };
                    drop(self.watch(&root.open_dir(path.as_bytes())?)?);
                }
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Watches a directory and all beneath it; `told`: what lies in those that were not watched is told as created.
    fn watch_beneath(&mut self, root: &Root, parent: Wd, top: TreePath, told: bool) -> io::Result<()> {
        let mut todo = vec![(parent, top)];
        while let Some((parent, path)) = todo.pop() {
            if (self.excluded)(&path.parent().unwrap_or(TreePath::ROOT), path.name()) {
                continue;
            }
            let dir = match root.open_dir(path.as_bytes()) {
                Ok(dir) => dir,
                // Gone or replaced by now, a mount point, or not ours to read.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::ACCESS) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let watch = self.watch(&dir)?;
            let wd = watch.get_watch_descriptor_id();
            let put = self.map.put(parent, path.name(), (wd, watch));
            if put == Put::Contradiction {
                // A race of several renames: an event that is yet to come puts it right.
                continue;
            }
            let mut names: Vec<(Arc<[u8]>, bool)> = Vec::new();
            list(&dir, |name, is_dir| {
                names.push((name.into(), is_dir));
                ControlFlow::Continue(())
            })?;
            for (name, is_dir) in names {
                if told && put == Put::Fresh {
                    self.find(wd, &path, &name, is_dir);
                }
                if is_dir && let Ok(path) = path.join(&name) {
                    todo.push((wd, path));
                }
            }
        }
        Ok(())
    }

    fn find(&mut self, wd: Wd, dir: &TreePath, name: &[u8], is_dir: bool) {
        self.found.insert((wd, name.into()));
        if is_dir {
            return self.tell(EventMask::CREATE | EventMask::ISDIR, dir.clone(), name, 0);
        }
        self.tell(EventMask::CREATE, dir.clone(), name, 0);
        self.tell(EventMask::CLOSE_WRITE, dir.clone(), name, 0);
    }

    fn tell(&mut self, mask: EventMask, dir: TreePath, name: &[u8], cookie: u32) {
        if mask.intersects(self.wanted | ALWAYS) && (name.is_empty() || !(self.excluded)(&dir, name)) {
            self.ready.push_back(Seen { mask, dir, name: name.into(), cookie });
        }
    }
}

#[cfg(test)]
mod tests;
