//! inotify(7) of the modelled kernel: what users' calls and the agent's own leave in the queue of the one
//! process that watches. It knows nothing of what reads them.
//!
//! As LINUX.md 6 has it: a store through a mapping gives nothing until the file is closed, truncating by
//! path gives MODIFY alone, a link CREATE alone, an exchange two pairs; what has no name gives nothing.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use super::ModelDisk;
use super::image::Id;
use super::state::{State, errno};
use crate::vfs::Kind;

/// What the kernel holds for one process. Source: `fs.inotify.max_queued_events`.
const QUEUE_MAX: usize = 16_384;
const OVERFLOWN: ModelEvent = ModelEvent { wd: -1, mask: libc::IN_Q_OVERFLOW, name: Vec::new() };

/// An event as inotify(7) lays it out. An empty name: about the watched directory itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ModelEvent {
    /// The watch.
    pub wd: i32,
    /// What happened.
    pub mask: u32,
    /// To which name.
    pub name: Vec<u8>,
}

/// The watches of a process and what it did not read yet.
#[derive(Debug)]
pub(super) struct Watches {
    instance: u64,
    of_dirs: BTreeMap<Id, (i32, u32)>,
    last: i32,
    watches_max: usize,
    queue: VecDeque<ModelEvent>,
    queue_max: usize,
}

impl Watches {
    fn push(&mut self, dir: Id, mask: u32, name: &[u8]) {
        let Some((wd, wanted)) = self.of_dirs.get(&dir) else { return };
        let always = libc::IN_IGNORED | libc::IN_UNMOUNT;
        if mask & !libc::IN_ISDIR & (wanted | always) == 0 {
            return;
        }
        let event = ModelEvent { wd: *wd, mask, name: name.to_vec() };
        if self.queue.back() == Some(&event) {
            return;
        }
        if self.queue.len() < self.queue_max {
            self.queue.push_back(event);
        } else if self.queue.back() != Some(&OVERFLOWN) {
            self.queue.push_back(OVERFLOWN);
        }
    }

    fn drop_watch(&mut self, dir: Id) {
        self.push(dir, libc::IN_IGNORED, b"");
        self.of_dirs.remove(&dir);
    }
}

impl State {
    /// Something happened to a name in a directory.
    pub(super) fn notify(&mut self, dir: Id, mask: u32, name: &[u8], of: Id) {
        let is_dir = self.live.get(of).is_some_and(|inode| inode.kind() == Kind::Dir);
        if let Some(watches) = &mut self.watches {
            watches.push(dir, mask | if is_dir { libc::IN_ISDIR } else { 0 }, name);
        }
    }

    /// A directory itself moved or went.
    pub(super) fn notify_self(&mut self, dir: Id, mask: u32) {
        let Some(watches) = &mut self.watches else { return };
        watches.push(dir, mask, b"");
        if mask == libc::IN_DELETE_SELF {
            watches.drop_watch(dir);
        }
    }

    /// Something happened to an inode: told under the name that it was opened by last.
    pub(super) fn notify_inode(&mut self, id: Id, mask: u32) {
        if self.watches.is_none() {
            return;
        }
        let (opened, live) = (self.opened_as.get(&id), &self.live);
        let names = |dir: Id, name: &[u8]| live.get(dir)?.names()?.get(name).copied();
        let place = match opened {
            Some((dir, name)) => (names(*dir, name) == Some(id)).then(|| (*dir, name.clone())),
            None => live.inodes.iter().find_map(|(dir, inode)| {
                let (name, _) = inode.names()?.iter().find(|(_, named)| **named == id)?;
                Some((*dir, name.clone()))
            }),
        };
        if let Some((dir, name)) = place {
            self.notify(dir, mask, &name, id);
        }
        if mask == libc::IN_ATTRIB {
            self.notify_self(id, mask);
        }
    }

    /// Notes by which name an inode was opened: its events go there, wherever the name moves.
    pub(super) fn note_opened(&mut self, id: Id, dir: Id, name: &[u8]) {
        self.opened_as.insert(id, (dir, name.to_vec()));
    }

    /// A rename happened; the events, and names that are open follow it.
    pub(super) fn notify_rename(&mut self, from: (Id, &[u8]), to: (Id, &[u8]), source: Id, exchanged: Option<Id>) {
        let place = |(dir, name): (Id, &[u8])| (dir, name.to_vec());
        for (id, opened) in &mut self.opened_as {
            if *id == source && *opened == place(from) {
                *opened = place(to);
            } else if Some(*id) == exchanged && *opened == place(to) {
                *opened = place(from);
            }
        }
        self.notify(from.0, libc::IN_MOVED_FROM, from.1, source);
        self.notify(to.0, libc::IN_MOVED_TO, to.1, source);
        self.notify_self(source, libc::IN_MOVE_SELF);
        if let Some(other) = exchanged {
            self.notify(to.0, libc::IN_MOVED_FROM, to.1, other);
            self.notify(from.0, libc::IN_MOVED_TO, from.1, other);
            self.notify_self(other, libc::IN_MOVE_SELF);
        }
    }

    /// The file system is gone: so are all watches.
    pub(super) fn notify_unmounted(&mut self) {
        let Some(watches) = &mut self.watches else { return };
        let dirs: Vec<Id> = watches.of_dirs.keys().copied().collect();
        for dir in dirs {
            watches.push(dir, libc::IN_UNMOUNT, b"");
            watches.drop_watch(dir);
        }
    }
}

/// A directory as a watcher holds it.
#[derive(Debug)]
pub struct WatchedDir {
    disk: ModelDisk,
    id: Id,
}

/// The inotify instance of the agent's process; a newer one, and the end of the process, end it.
#[derive(Debug)]
pub struct ModelInotify {
    disk: ModelDisk,
    instance: u64,
}

#[allow(clippy::missing_errors_doc, reason = "each fails as its system call does, and EIO once it has ended")]
impl ModelInotify {
    /// An instance that watches nothing yet.
    #[must_use]
    pub fn new(disk: &ModelDisk) -> Self {
        let mut state = disk.lock();
        state.instances += 1;
        let instance = state.instances;
        state.watches = Some(Watches {
            instance,
            of_dirs: BTreeMap::new(),
            last: 0,
            watches_max: usize::MAX,
            queue: VecDeque::new(),
            queue_max: QUEUE_MAX,
        });
        Self { disk: disk.clone(), instance }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Watches) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.disk.lock();
        match &mut state.watches {
            Some(watches) if watches.instance == self.instance => work(watches),
            _ => Err(errno(libc::EIO)),
        }
    }

    /// Sets how many events wait at most, and how many watches there may be.
    pub fn limit(&self, events: usize, watches_max: usize) -> io::Result<()> {
        self.with(|watches| {
            (watches.queue_max, watches.watches_max) = (events, watches_max);
            Ok(())
        })
    }

    /// What the root's path leads to, and under which mount id.
    pub fn open_root(&self) -> io::Result<(WatchedDir, u64)> {
        let state = self.disk.lock();
        let id = state.root();
        Ok((WatchedDir { disk: self.disk.clone(), id }, if state.mounted { state.mount + 1 } else { 1 }))
    }

    /// Watches a directory for these events; where it is watched already, the watch that it has.
    pub fn watch(&self, dir: &WatchedDir, mask: u32) -> io::Result<i32> {
        self.with(|watches| {
            if let Some((wd, wanted)) = watches.of_dirs.get_mut(&dir.id) {
                *wanted = mask;
                return Ok(*wd);
            }
            if watches.of_dirs.len() >= watches.watches_max {
                return Err(errno(libc::ENOSPC));
            }
            watches.last += 1;
            watches.of_dirs.insert(dir.id, (watches.last, mask));
            Ok(watches.last)
        })
    }

    /// Ends a watch.
    pub fn unwatch(&self, wd: i32) -> io::Result<()> {
        self.with(|watches| {
            let dir = watches.of_dirs.iter().find(|(_, (known, _))| *known == wd).map(|(dir, _)| *dir);
            watches.drop_watch(dir.ok_or_else(|| errno(libc::EINVAL))?);
            Ok(())
        })
    }

    /// Takes the oldest events, so many at most.
    pub fn read(&self, max: usize) -> io::Result<Vec<ModelEvent>> {
        self.with(|watches| {
            let count = max.min(watches.queue.len());
            Ok(watches.queue.drain(..count).collect())
        })
    }

    /// How many events wait.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.with(|watches| Ok(watches.queue.len())).unwrap_or(0)
    }
}

#[allow(clippy::missing_errors_doc, reason = "each fails as its system call does")]
impl WatchedDir {
    /// Opens a directory beneath, following no link and entering no mount.
    pub fn open(&self, path: &[u8]) -> io::Result<Self> {
        let state = self.disk.lock();
        let mut id = self.id;
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            id = state.step(id, name)?;
        }
        Ok(Self { disk: self.disk.clone(), id })
    }

    /// The names, and which are directories.
    pub fn list(&self) -> io::Result<Vec<(Vec<u8>, bool)>> {
        let state = self.disk.lock();
        let names = state.inode(self.id)?.names().ok_or_else(|| errno(libc::ENOTDIR))?;
        let is_dir = |id: &Id| state.live.get(*id).is_some_and(|inode| inode.kind() == Kind::Dir);
        Ok(names.iter().map(|(name, id)| (name.clone(), is_dir(id))).collect())
    }

    /// Its inode.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(self.disk.lock().inode(self.id)?.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u32 = libc::IN_ALL_EVENTS;

    /// What waits, as watch, mask and name.
    fn read(inotify: &ModelInotify) -> Vec<(i32, u32, String)> {
        let events = inotify.read(usize::MAX).unwrap().into_iter();
        events.map(|e| (e.wd, e.mask, String::from_utf8(e.name).unwrap())).collect()
    }

    fn event(wd: i32, mask: u32, name: &str) -> (i32, u32, String) {
        (wd, mask, name.to_owned())
    }

    fn watched(dirs: &[&str]) -> (ModelDisk, ModelInotify) {
        let disk = ModelDisk::new();
        let inotify = ModelInotify::new(&disk);
        dirs.iter().filter(|dir| !dir.is_empty()).for_each(|dir| disk.user().mkdir_all(dir).unwrap());
        let (root, _) = inotify.open_root().unwrap();
        for dir in dirs {
            inotify.watch(&root.open(dir.as_bytes()).unwrap(), ALL).unwrap();
        }
        (disk, inotify)
    }

    #[test]
    fn calls_leave_the_events_that_linux_leaves() {
        let (disk, inotify) = watched(&["", "d"]);
        let user = disk.user();
        user.write("d/f", "1").unwrap();
        let (create, modify, close) = (libc::IN_CREATE, libc::IN_MODIFY, libc::IN_CLOSE_WRITE);
        assert_eq!(read(&inotify), [event(2, create, "f"), event(2, modify, "f"), event(2, close, "f")]);
        user.truncate("d/f", 0).unwrap();
        user.chmod("d", 0o700).unwrap();
        let attrib = libc::IN_ATTRIB;
        assert_eq!(
            read(&inotify),
            [event(2, modify, "f"), event(1, attrib | libc::IN_ISDIR, "d"), event(2, attrib, "")]
        );
        user.rename("d", "e").unwrap();
        let (from, to) = (libc::IN_MOVED_FROM | libc::IN_ISDIR, libc::IN_MOVED_TO | libc::IN_ISDIR);
        assert_eq!(read(&inotify), [event(1, from, "d"), event(1, to, "e"), event(2, libc::IN_MOVE_SELF, "")]);
        user.remove_all("e").unwrap();
        let gone =
            [(1, libc::IN_DELETE | libc::IN_ISDIR, "e"), (2, libc::IN_DELETE_SELF, ""), (2, libc::IN_IGNORED, "")];
        assert_eq!(read(&inotify)[1..], gone.map(|(wd, mask, name)| event(wd, mask, name)));
    }

    #[test]
    fn an_open_file_tells_under_the_name_it_has_by_then() {
        let (disk, inotify) = watched(&["", "d"]);
        let user = disk.user();
        user.write("f", "1234").unwrap();
        user.hard_link("f", "g").unwrap();
        let file = user.open_writing("f").unwrap();
        user.rename("f", "d/h").unwrap();
        read(&inotify);
        file.store(0, "x").unwrap();
        assert_eq!(read(&inotify), [], "a store through a mapping is silent");
        drop(file);
        assert_eq!(read(&inotify), [event(2, libc::IN_CLOSE_WRITE, "h")]);
        let file = user.open_writing("g").unwrap();
        user.remove("g").unwrap();
        read(&inotify);
        file.write_at(0, "y").unwrap();
        assert_eq!(read(&inotify), [], "the name that it was opened by is gone");
    }

    #[test]
    fn a_full_queue_says_so_once_and_a_limit_refuses() {
        let (disk, inotify) = watched(&[""]);
        inotify.limit(2, 1).unwrap();
        (0..9).for_each(|n| disk.user().mkdir_all(format!("{n}")).unwrap());
        let (root, _) = inotify.open_root().unwrap();
        let refused = inotify.watch(&root.open(b"1").unwrap(), ALL).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(inotify.unread(), 3);
        assert_eq!(read(&inotify)[2], event(-1, libc::IN_Q_OVERFLOW, ""));
    }
}
