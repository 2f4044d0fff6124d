//! What the watcher's engine asks of a kernel: the real one, or one that is modelled.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::ControlFlow;

use ::inotify::{EventMask, WatchMask};

/// The kernel's number of a watch. It is not used again before the counter wraps.
pub type Wd = i32;

/// What a directory of the tree is watched for.
const TREE: WatchMask = WatchMask::CREATE
    .union(WatchMask::DELETE)
    .union(WatchMask::MOVE)
    .union(WatchMask::MODIFY)
    .union(WatchMask::CLOSE_WRITE)
    .union(WatchMask::ATTRIB)
    .union(WatchMask::DELETE_SELF)
    .union(WatchMask::MOVE_SELF)
    .union(HOW);
/// What the directory of markers is watched for: a marker counts when it appears.
pub(super) const BARRIER_MASK: u32 = WatchMask::CREATE.union(WatchMask::MOVED_TO).union(HOW).bits();
pub(super) const MASK: u32 = TREE.bits();
const HOW: WatchMask = WatchMask::ONLYDIR.union(WatchMask::DONT_FOLLOW).union(WatchMask::EXCL_UNLINK);

/// inotify, and the directories that it watches.
pub trait Kernel {
    /// An open root. It keeps the file system from being unmounted: held only while working.
    type Root;
    /// Which directory a root is, to see that the path still leads to it.
    type Identity: Eq;
    /// An open directory.
    type Dir;
    /// A watch.
    type Watch: Clone + fmt::Debug;

    /// Opens the root.
    ///
    /// # Errors
    /// What the kernel says.
    fn open_root(&self) -> io::Result<Self::Root>;

    /// Which directory a root is.
    fn identify(root: &Self::Root) -> Self::Identity;

    /// Opens a directory beneath the root (or the root again), following no link and entering no mount.
    ///
    /// # Errors
    /// `EXDEV` at a mount point; `ENOENT`, `ENOTDIR` or `ELOOP` where there is no directory.
    fn open_dir(root: &Self::Root, path: &[u8]) -> io::Result<Self::Dir>;

    /// What a directory holds, in no order: `each` gets the name and whether it is a directory.
    ///
    /// # Errors
    /// What the kernel says.
    fn list(dir: &Self::Dir, each: impl FnMut(&[u8], bool) -> ControlFlow<()>) -> io::Result<()>;

    /// Whether a directory may hold directories: false only where the file system says that there are none.
    fn may_hold_dirs(_dir: &Self::Dir) -> bool {
        true
    }

    /// Watches an open directory; where it is watched already, the watch that it has.
    ///
    /// # Errors
    /// What the kernel says, a limit above all.
    fn watch(&self, dir: &Self::Dir, mask: u32) -> io::Result<Self::Watch>;

    /// A watch's number.
    fn wd(watch: &Self::Watch) -> Wd;

    /// Ends watches, those that the kernel ended by itself among them.
    fn unwatch(&self, watches: impl IntoIterator<Item = Self::Watch>);

    /// Puts behind `pending` what was not read yet.
    ///
    /// # Errors
    /// What the kernel says.
    fn read(&mut self, pending: &mut VecDeque<Event>) -> io::Result<()>;
}

/// One event. An empty name: about the watched directory itself.
#[derive(Clone, Debug)]
pub struct Event {
    pub(super) wd: Wd,
    pub(super) mask: EventMask,
    pub(super) name: Box<[u8]>,
}

impl Event {
    /// An event as inotify(7) lays it out.
    #[must_use]
    pub fn new(wd: Wd, mask: u32, name: &[u8]) -> Self {
        Self { wd, mask: EventMask::from_bits_retain(mask), name: name.into() }
    }
}
