//! Files, through directory handles beneath a tree's root.
//!
//! [`Vfs`] has a real twin ([`unix`]) and a modelled one ([`model`]), whose durable state lags
//! behind the live one and which can crash at any call. Every operation is one file-system call
//! or a short fixed sequence of them; nothing here knows about entries or peers.
//! No call follows a symbolic link or leaves the root's mount.

use std::io;
use std::ops::Range;

use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;

#[doc(hidden)]
pub mod contract;
pub mod model;
#[allow(unsafe_code, reason = "F_SETLEASE and what rustix lacks")]
pub(crate) mod sys;
pub mod unix;

/// The kind of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

/// What lstat says of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky (07777).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Content time.
    pub mtime: Time,
    /// Change time of the inode.
    pub ctime: Time,
    /// Birth time of the inode, zero where the file system has none.
    pub btime: Time,
    /// Inode number.
    pub inode: u64,
    /// Number of names.
    pub links: u64,
    /// Whether a mount (or another mount's root) begins here: never entered, never a deletion.
    pub mount_point: bool,
}

/// Who the directory at the root's path is, by a fresh look-up of that path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RootIdentity {
    /// File system id (statfs `f_fsid`).
    pub fsid: u64,
    /// Mount id (statx `stx_mnt_id`); differs after umount and mount.
    pub mount: u64,
    /// Device and inode.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// The content of `.pleach/root`, none where there is no such file.
    pub marker: Option<Vec<u8>>,
}

/// Whether somebody has a file open for writing or mapped writable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Writers {
    /// Nobody.
    None,
    /// Somebody.
    Some,
    /// The kernel does not let us ask: count it as somebody.
    Unknown,
}

/// Attributes to set, in the order owner, mode, mtime (LINUX.md §3).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct SetAttributes {
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Permission bits (07777); not applied to symbolic links, which have none.
    pub mode: Option<u32>,
    /// Content time; the access time is left alone.
    pub mtime: Option<Time>,
}

/// How [`Vfs::rename`] treats the target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RenameMode {
    /// The target must be free (`RENAME_NOREPLACE`, EEXIST else).
    NoReplace,
    /// Both names change places in one step (`RENAME_EXCHANGE`).
    Exchange,
}

/// One name of a directory listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name {
    /// The name.
    pub name: Vec<u8>,
    /// What the directory says it is; none where it does not say.
    pub kind: Option<Kind>,
}

/// A sync that is under way. Whoever drops it unasked does not know what came of it.
pub type Syncing = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A file system below one root. Errors carry the kernel's number (`raw_os_error`).
#[allow(clippy::missing_errors_doc, reason = "each method fails as its system call does; exceptions are said")]
pub trait Vfs: Send + Sync + 'static {
    /// A handle on a directory.
    type Dir: Send + Sync;
    /// An open regular file.
    type File: Send + Sync;
    /// A handle for [`Vfs::sync_all`]; opened before the batch's first write (LINUX.md §11).
    type SyncHandle: Send + Sync;

    /// Looks the root's path up afresh. ENOENT where there is nothing, ENOTDIR where it is no directory.
    fn identity(&self) -> io::Result<RootIdentity>;
    /// Opens the root by a fresh look-up of its path. The caller drops it when work ends, so that an idle tree can be unmounted.
    fn root(&self) -> io::Result<Self::Dir>;
    /// Opens a directory beneath `at`, any number of components (the root path reopens `at`). ELOOP or ENOTDIR where
    /// a component is a symbolic link, EXDEV where a mount lies between.
    fn open_path(&self, at: &Self::Dir, path: &TreePath) -> io::Result<Self::Dir>;
    /// Opens the directory `name` in `at`; the only way into `.pleach`.
    fn open_dir(&self, at: &Self::Dir, name: &[u8]) -> io::Result<Self::Dir>;

    /// Lists a directory, unsorted, without `.` and `..`.
    fn list(&self, dir: &Self::Dir) -> io::Result<Vec<Name>>;
    /// lstat of `name`; none where there is no such name.
    fn stat(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Option<Meta>>;
    /// fstat of the directory itself.
    fn stat_dir(&self, dir: &Self::Dir) -> io::Result<Meta>;
    /// The target of a symbolic link.
    fn read_link(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Vec<u8>>;

    /// Opens a regular file for reading: no link followed, not blocking on FIFOs and leases (EAGAIN: busy), without atime where allowed.
    fn open_file(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Self::File>;
    /// fstat.
    fn stat_file(&self, file: &Self::File) -> io::Result<Meta>;
    /// Reads at `offset`; 0 at the end.
    fn read_at(&self, file: &Self::File, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Asks by a read lease, set and dropped at once, whether anybody may be writing (LINUX.md §2a).
    fn writers(&self, file: &Self::File) -> Writers;
    /// Runs `work` while a read lease keeps writers from opening the file; `work` is told whether the lease was had
    /// ([`Writers::None`]) or not. The lease is dropped afterwards; `work` must be short.
    fn with_lease<R>(&self, file: &Self::File, work: impl FnOnce(Writers) -> R) -> R;
    /// Starts and waits for the write-back of dirty pages (`sync_file_range`), so that a later store through a mapping changes the stamp.
    fn write_back(&self, file: &Self::File) -> io::Result<()>;

    /// Creates a nameless file in `dir` (`O_TMPFILE`), readable and writable, mode 0600.
    fn create_temp(&self, dir: &Self::Dir) -> io::Result<Self::File>;
    /// Opens a file of our own again, readable and writable: one that [`Vfs::create_temp`] made and that got a name in `dir`.
    fn open_staged(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<Self::File>;
    /// Writes all of `data` at `offset`.
    fn write_at(&self, file: &Self::File, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes `to` share all of `from`'s content, where the file system can (`FICLONE`); false where it cannot.
    fn clone_content(&self, _from: &Self::File, _to: &Self::File) -> io::Result<bool> {
        Ok(false)
    }
    /// Turns a finished writable file into a read-only one: closes the writing descriptor (LINUX.md §3) and keeps one for
    /// syncing, stat and [`Vfs::link_temp`].
    fn finish_temp(&self, file: Self::File) -> io::Result<Self::File>;
    /// Gives a nameless file its first name; EEXIST where the name is taken.
    fn link_temp(&self, file: &Self::File, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;
    /// fdatasync; also on a read-only handle.
    fn sync_data(&self, file: &Self::File) -> io::Result<()>;
    /// Starts the write-back of a range and waits for none of it, so that the sync that comes is short. A hint.
    fn begin_write_back(&self, _file: &Self::File, _offset: u64, _length: u64) {}
    /// These bytes of its content are not needed soon: what memory holds of them makes room. A hint.
    fn let_go(&self, _file: &Self::File, _bytes: Range<u64>) {}
    /// Sets attributes of an open file (fchown, fchmod, futimens).
    fn set_file_attributes(&self, file: &Self::File, set: &SetAttributes) -> io::Result<()>;
    /// Sets attributes of a name that is a directory or a symbolic link, never following one.
    fn set_attributes(&self, dir: &Self::Dir, name: &[u8], set: &SetAttributes) -> io::Result<()>;

    /// Creates a directory with exactly this mode, whatever the umask.
    fn create_dir(&self, dir: &Self::Dir, name: &[u8], mode: u32) -> io::Result<()>;
    /// Creates a symbolic link.
    fn create_symlink(&self, dir: &Self::Dir, name: &[u8], target: &[u8]) -> io::Result<()>;
    /// Renames within the file system.
    fn rename(
        &self,
        from_dir: &Self::Dir,
        from: &[u8],
        to_dir: &Self::Dir,
        to: &[u8],
        mode: RenameMode,
    ) -> io::Result<()>;
    /// Unlinks a name that is not a directory. Only for pleach's own names below `.pleach`.
    fn remove_file(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;
    /// Removes an empty directory (ENOTEMPTY else).
    fn remove_dir(&self, dir: &Self::Dir, name: &[u8]) -> io::Result<()>;

    /// fsync of a directory.
    fn sync_dir(&self, dir: &Self::Dir) -> io::Result<()>;
    /// Opens a handle for [`Vfs::sync_all`].
    fn sync_handle(&self, dir: &Self::Dir) -> io::Result<Self::SyncHandle>;
    /// syncfs: everything written to the file system since the handle was opened is durable, or an error.
    fn sync_all(&self, handle: &Self::SyncHandle) -> io::Result<()>;
    /// Begins the same; what is returned waits until it is done, and then says what came of it.
    fn sync_later(&self, handle: Self::SyncHandle) -> Syncing;

    /// Whether two changes within one clock tick can leave equal stamps here (LINUX.md §2b). Probed once, in `private`
    /// (the tree's `.pleach`), leaving nothing there.
    fn coarse_stamps(&self, private: &Self::Dir) -> io::Result<bool>;
    /// Whether this process may give files away (chown).
    fn may_chown(&self) -> bool;
    /// How many threads gain from working here at once.
    fn threads(&self) -> usize {
        1
    }
    /// How many threads gain from reading files here at once, which may have to come from a disk.
    fn readers(&self) -> usize {
        1
    }
    /// How many files may be held open for one batch of changes.
    fn staged_max(&self) -> usize {
        256
    }
}
