//! Events on their way from the kernel, and the calls of inotify.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ::inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};

use crate::watch::map::Wd;
use crate::watch::walk::fd_path;

/// Events held in memory while a walk is under way: the kernel's queue alone is full in 32 ms of a
/// burst. At most about 40 MB, and only then.
const PENDING_MAX: usize = 131_072;
/// One read. An event has at most 272 bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// What a directory of the tree is watched for.
pub(super) const MASK: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::MODIFY)
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::ATTRIB)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(HOW);
/// What the directory of markers is watched for: a marker counts when it appears.
pub(super) const BARRIER_MASK: WatchMask = WatchMask::CREATE.union(WatchMask::MOVED_TO).union(HOW);
const HOW: WatchMask = WatchMask::ONLYDIR.union(WatchMask::DONT_FOLLOW).union(WatchMask::EXCL_UNLINK);

/// The kernel's queue and what was read from it already.
pub(super) struct Queue {
    inotify: Inotify,
    buffer: Box<[u8]>,
    pub(super) pending: VecDeque<Event>,
}

/// One event. An empty name: about the watched directory itself.
pub(super) struct Event {
    pub(super) wd: Wd,
    pub(super) mask: EventMask,
    pub(super) name: Box<[u8]>,
}

impl Queue {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { inotify: Inotify::init()?, buffer: vec![0; BUFFER_BYTES].into(), pending: VecDeque::new() })
    }

    /// Readable when there are events.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }

    /// Reads until the kernel has nothing more. When the memory is full the rest stays there, and
    /// the kernel says if it had to throw something away.
    pub(super) fn read(&mut self) -> io::Result<()> {
        while self.pending.len() < PENDING_MAX {
            let events = match self.inotify.read_events(&mut self.buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.pending.extend(events.map(|event| Event {
                wd: event.wd.get_watch_descriptor_id(),
                mask: event.mask,
                name: event.name.map(|name| name.as_encoded_bytes().into()).unwrap_or_default(),
            }));
        }
        Ok(())
    }

    /// Watches an open directory; where it is watched already, the watch that it has.
    pub(super) fn add(&self, dir: &OwnedFd, mask: WatchMask) -> io::Result<WatchDescriptor> {
        self.inotify.watches().add(fd_path(dir.as_fd()), mask)
    }

    pub(super) fn remove(&self, watches: impl IntoIterator<Item = WatchDescriptor>) {
        for watch in watches {
            // Fails where the directory is gone and the kernel dropped the watch by itself.
            drop(self.inotify.watches().remove(watch));
        }
    }
}
