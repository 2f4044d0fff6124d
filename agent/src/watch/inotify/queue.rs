//! Events on their way from the kernel, and the calls of inotify.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use ::inotify::{Inotify, WatchDescriptor, WatchMask};

use crate::watch::kernel::{Event, Kernel, Wd};
use crate::watch::walk::{Identity, Root, fd_path, list, may_hold_dirs};

/// Events held in memory while a walk is under way: the kernel's queue alone is full in 32 ms of a
/// burst. At most about 40 MB, and only then.
const PENDING_MAX: usize = 131_072;
/// One read. An event has at most 272 bytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// The kernel's queue, and the root that is watched.
pub(super) struct Queue {
    root: PathBuf,
    inotify: Inotify,
    buffer: Box<[u8]>,
}

impl Queue {
    pub(super) fn new(root: PathBuf) -> io::Result<Self> {
        Ok(Self { root, inotify: Inotify::init()?, buffer: vec![0; BUFFER_BYTES].into() })
    }

    /// Readable when there are events.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

impl Kernel for Queue {
    type Root = Root;
    type Identity = Identity;
    type Dir = OwnedFd;
    type Watch = WatchDescriptor;

    fn open_root(&self) -> io::Result<Root> {
        Root::open(&self.root)
    }

    fn identify(root: &Root) -> Identity {
        root.identity()
    }

    fn open_dir(root: &Root, path: &[u8]) -> io::Result<OwnedFd> {
        Ok(root.open_dir(path)?)
    }

    fn list(dir: &OwnedFd, each: impl FnMut(&[u8], bool) -> ControlFlow<()>) -> io::Result<()> {
        Ok(list(dir, each)?)
    }

    fn may_hold_dirs(dir: &OwnedFd) -> bool {
        may_hold_dirs(dir)
    }

    fn watch(&self, dir: &OwnedFd, mask: u32) -> io::Result<WatchDescriptor> {
        self.inotify.watches().add(fd_path(dir.as_fd()), WatchMask::from_bits_retain(mask))
    }

    fn wd(watch: &WatchDescriptor) -> Wd {
        watch.get_watch_descriptor_id()
    }

    fn unwatch(&self, watches: impl IntoIterator<Item = WatchDescriptor>) {
        for watch in watches {
            // Fails where the directory is gone and the kernel dropped the watch by itself.
            drop(self.inotify.watches().remove(watch));
        }
    }

    /// Reads until the kernel has nothing more. When the memory is full the rest stays there, and
    /// the kernel says if it had to throw something away.
    fn read(&mut self, pending: &mut VecDeque<Event>) -> io::Result<()> {
        while pending.len() < PENDING_MAX {
            let events = match self.inotify.read_events(&mut self.buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            pending.extend(events.map(|event| Event {
                wd: event.wd.get_watch_descriptor_id(),
                mask: event.mask,
                name: event.name.map(|name| name.as_encoded_bytes().into()).unwrap_or_default(),
            }));
        }
        Ok(())
    }
}
