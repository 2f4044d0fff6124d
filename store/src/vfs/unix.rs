//! The real [`Vfs`]: openat2, statx and renameat2 below a root directory.
//!
//! Every method is one system call or a short fixed sequence on descriptors; nothing here retries
//! on a busy file, falls back from an unsupported rename or knows what a file is for.
//! Needs Linux 5.8 (mount ids in statx); openat2 may be missing (containers that forbid it).

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use pleach_protocol::path::{PRIVATE_NAME, PathError, TreePath, check_name};
use pleach_protocol::time::Time;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags,
    StatxTimestamp,
};
use rustix::io::Errno;

use self::attributes::CheckedAttributes;
use super::{Kind, Meta, Name, RenameMode, RootIdentity, SetAttributes, Syncing, Vfs, Writers, sys};

mod attributes;

/// `STATX_MNT_ID_UNIQUE` (Linux 6.8): a mount id that is never used again, unlike the plain one,
/// which umount and mount usually give back. Older kernels ignore the bit.
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
/// What every statx here asks for; the content and change times together arm fine-grained stamps.
const WANTED: StatxFlags =
    StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID).union(MNT_ID_UNIQUE);
/// Directory handles can be listed and synced.
const DIR_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Directories on the way need no permission to read.
const STEP_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Files are opened without waiting for FIFOs, leases and terminals.
const FILE_FLAGS: OFlags =
    OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);
/// The longest path that one call takes. Source: `PATH_MAX` (limits.h) less its NUL.
const CALL_PATH_BYTES_MAX: usize = 4095;
/// A directory listing is read in pieces of this size.
const LIST_BYTES: usize = 32 * 1024;
/// How much of `.pleach/root` is read; a longer one is cut and so equals no real one.
const MARKER_BYTES_MAX: usize = 4096;
/// Creating files gains from so many threads. Source: LINUX.md §12; more were not measured.
const THREADS_MAX: usize = 4;
/// So many threads read new files. 60,000 of 12 kB that no cache had, on a virtual disk: one reads them in 5.0 s, two in 3.4 s, four in 2.2 s.
const READERS: usize = 4;
/// Files held open for one batch, and the share of those that this process may open.
const STAGED_MAX: u64 = 512;
const STAGED_SHARE: u64 = 8;
/// How often the stamp probe writes.
const STAMP_PROBES: usize = 100;

/// The real file system below one root.
#[derive(Debug)]
pub struct UnixVfs {
    root: PathBuf,
    /// Set once openat2 turned out to be missing or forbidden.
    stepwise: AtomicBool,
    /// To ask the system reads a dozen files of cgroups.
    threads: usize,
}

/// A directory, open for reading.
#[derive(Debug)]
pub struct UnixDir {
    fd: OwnedFd,
    /// Mount id; one handle opened beneath another has the same.
    mount: u64,
}

/// An open regular file.
#[derive(Debug)]
pub struct UnixFile(File);

/// An open file description of its own, whose error state begins where it was opened.
#[derive(Debug)]
pub struct UnixSyncHandle(OwnedFd);

impl UnixVfs {
    /// Stands on the root's real path, which the caller resolved once. Touches nothing of it yet.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(THREADS_MAX));
        // A trailing slash would have the kernel follow a link at the last component.
        Self { root: root.components().collect(), stepwise: AtomicBool::new(false), threads }
    }

    fn open_root(&self, flags: OFlags) -> io::Result<UnixDir> {
        let fd = openat(CWD, self.root.as_path(), flags)?;
        let mount = mount_of(&statx_fd(fd.as_fd())?)?;
        Ok(UnixDir { fd, mount })
    }

    /// Opens a directory beneath another, `path` being non-empty names joined by slashes, or `.`.
    fn open_beneath(&self, at: &UnixDir, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        if !self.stepwise.load(Ordering::Relaxed) {
            match open_in_pieces(at.fd.as_fd(), path, flags) {
                // A seccomp filter says EPERM; so may a file system, but not for the handle itself.
                Err(Errno::NOSYS | Errno::PERM) if openat2(at.fd.as_fd(), b".", STEP_FLAGS).is_err() => {
                    self.stepwise.store(true, Ordering::Relaxed);
                }
                other => return Ok(other?),
            }
        }
        open_by_steps(at, path, flags)
    }
}

fn openat<P: rustix::path::Arg + Copy>(at: BorrowedFd<'_>, path: P, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::io::retry_on_intr(|| rustix::fs::openat(at, path, flags, Mode::empty()))
}

fn openat2(at: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::io::retry_on_intr(|| rustix::fs::openat2(at, path, flags, Mode::empty(), BENEATH))
}

/// openat2 over as many components at a time as one call takes.
fn open_in_pieces(at: BorrowedFd<'_>, mut path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let mut step: Option<OwnedFd> = None;
    loop {
        let from = step.as_ref().map_or(at, |fd| fd.as_fd());
        if path.len() <= CALL_PATH_BYTES_MAX {
            return openat2(from, path, flags);
        }
        let cut = path[..CALL_PATH_BYTES_MAX].iter().rposition(|b| *b == b'/').ok_or(Errno::NAMETOOLONG)?;
        step = Some(openat2(from, &path[..cut], STEP_FLAGS)?);
        path = &path[cut + 1..];
    }
}

/// The way without openat2: one component at a time, none a link, all on one mount.
fn open_by_steps(at: &UnixDir, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let mut names = path.split(|b| *b == b'/').peekable();
    let mut step: Option<OwnedFd> = None;
    while let Some(name) = names.next() {
        let from = step.as_ref().map_or(at.fd.as_fd(), |fd| fd.as_fd());
        let fd = openat(from, name, if names.peek().is_some() { STEP_FLAGS } else { flags })?;
        if mount_of(&statx_fd(fd.as_fd())?)? != at.mount {
            return Err(Errno::XDEV.into());
        }
        step = Some(fd);
    }
    step.ok_or_else(|| Errno::NOENT.into())
}

fn statx_fd(fd: BorrowedFd<'_>) -> rustix::io::Result<Statx> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)
}

fn statx_name(dir: &UnixDir, name: &[u8]) -> rustix::io::Result<Statx> {
    rustix::fs::statx(&dir.fd, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, WANTED)
}

fn mount_of(stat: &Statx) -> io::Result<u64> {
    if stat.stx_mask & (StatxFlags::MNT_ID | MNT_ID_UNIQUE).bits() == 0 {
        return Err(Errno::NOSYS.into());
    }
    Ok(stat.stx_mnt_id)
}

fn time_of(stamp: &StatxTimestamp) -> Time {
    Time::new(stamp.tv_sec, stamp.tv_nsec)
}

fn kind_of(file_type: FileType) -> Option<Kind> {
    match file_type {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Dir),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::Unknown => None,
        _ => Some(Kind::Special),
    }
}

/// The kind in a mode; one that this program does not know is special.
fn kind_of_mode(stat: &Statx) -> Kind {
    kind_of(FileType::from_raw_mode(stat.stx_mode.into())).unwrap_or(Kind::Special)
}

fn meta_of(stat: &Statx, mount_point: bool) -> Meta {
    let has_btime = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    Meta {
        kind: kind_of_mode(stat),
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        mtime: time_of(&stat.stx_mtime),
        ctime: time_of(&stat.stx_ctime),
        btime: if has_btime { time_of(&stat.stx_btime) } else { Time::default() },
        inode: stat.stx_ino,
        links: stat.stx_nlink.into(),
        mount_point,
    }
}

/// Refuses what is not one name: a slash would lead elsewhere, also through links.
fn checked(name: &[u8]) -> io::Result<&[u8]> {
    match check_name(name) {
        Ok(()) => Ok(name),
        Err(PathError::TooLong) => Err(Errno::NAMETOOLONG.into()),
        Err(_) => Err(Errno::INVAL.into()),
    }
}

/// The name by which the kernel finds an open file again.
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// A new open of the same inode, which a duplicate is not: it can be without permission to write.
fn reopen_for_reading(file: &File) -> rustix::io::Result<OwnedFd> {
    let path = proc_path(file.as_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match openat(CWD, path.as_str(), flags | OFlags::NOATIME) {
        Err(Errno::PERM) => openat(CWD, path.as_str(), flags),
        other => other,
    }
}

fn link_through_proc(file: &File, dir: &UnixDir, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::linkat(CWD, proc_path(file.as_fd()), &dir.fd, name, AtFlags::SYMLINK_FOLLOW)
}

/// Holds a read lease until it goes out of scope, also when work panics.
struct Lease<'a>(&'a File);

impl<'a> Lease<'a> {
    fn take(file: &'a File) -> Result<Self, Writers> {
        match sys::take_read_lease(file) {
            Ok(()) => Ok(Self(file)),
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => Err(Writers::Some),
            Err(_) => Err(Writers::Unknown),
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // It can only fail where there is no lease any more, the kernel having taken it back.
        sys::drop_lease(self.0).ok();
    }
}

impl Vfs for UnixVfs {
    type Dir = UnixDir;
    type File = UnixFile;
    type SyncHandle = UnixSyncHandle;

    fn identity(&self) -> io::Result<RootIdentity> {
        let root = self.open_root(STEP_FLAGS)?;
        let stat = statx_fd(root.fd.as_fd())?;
        let marker = match self.open_dir(&root, PRIVATE_NAME).and_then(|private| self.open_file(&private, b"root")) {
            Ok(file) => Some(read_start(&file.0, MARKER_BYTES_MAX)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(RootIdentity {
            fsid: rustix::fs::fstatvfs(&root.fd)?.f_fsid,
            mount: root.mount,
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            marker,
        })
    }

    fn root(&self) -> io::Result<UnixDir> {
        self.open_root(DIR_FLAGS)
    }

    fn open_path(&self, at: &UnixDir, path: &TreePath) -> io::Result<UnixDir> {
        let path = if path.is_root() { b"." } else { path.as_bytes() };
        Ok(UnixDir { fd: self.open_beneath(at, path, DIR_FLAGS)?, mount: at.mount })
    }

    fn open_dir(&self, at: &UnixDir, name: &[u8]) -> io::Result<UnixDir> {
        Ok(UnixDir { fd: self.open_beneath(at, checked(name)?, DIR_FLAGS)?, mount: at.mount })
    }

    fn list(&self, dir: &UnixDir) -> io::Result<Vec<Name>> {
        // A descriptor of its own: the handle's position is shared between threads, and Btrfs
        // fixes at the opening which names a listing shows.
        let fd = openat(dir.fd.as_fd(), c".", DIR_FLAGS)?;
        let mut buffer = vec![MaybeUninit::uninit(); LIST_BYTES];
        let mut entries = RawDir::new(fd, &mut buffer);
        let mut names = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(Name { name: name.to_vec(), kind: kind_of(entry.file_type()) });
            }
        }
        Ok(names)
    }

    fn stat(&self, dir: &UnixDir, name: &[u8]) -> io::Result<Option<Meta>> {
        let stat = match statx_name(dir, checked(name)?) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mount_root = (stat.stx_attributes & stat.stx_attributes_mask).contains(StatxAttributes::MOUNT_ROOT);
        Ok(Some(meta_of(&stat, mount_root || mount_of(&stat)? != dir.mount)))
    }

    fn stat_dir(&self, dir: &UnixDir) -> io::Result<Meta> {
        // Whoever has the handle stands on the right mount, even where the root itself is a mount point.
        Ok(meta_of(&statx_fd(dir.fd.as_fd())?, false))
    }

    fn read_link(&self, dir: &UnixDir, name: &[u8]) -> io::Result<Vec<u8>> {
        match rustix::fs::readlinkat(&dir.fd, checked(name)?, Vec::new()) {
            Ok(target) => Ok(target.into_bytes()),
            Err(error) => Err(error.into()),
        }
    }

    fn open_file(&self, dir: &UnixDir, name: &[u8]) -> io::Result<UnixFile> {
        let name = checked(name)?;
        let fd = match openat(dir.fd.as_fd(), name, FILE_FLAGS | OFlags::NOATIME) {
            // Only the owner may leave the access time alone.
            Err(Errno::PERM) => openat(dir.fd.as_fd(), name, FILE_FLAGS),
            other => other,
        };
        // ENXIO: a socket, or a device without a driver.
        let fd = fd.map_err(|error| if error == Errno::NXIO { Errno::INVAL } else { error })?;
        let stat = statx_fd(fd.as_fd())?;
        if kind_of_mode(&stat) != Kind::File {
            return Err(Errno::INVAL.into());
        }
        if mount_of(&stat)? != dir.mount {
            return Err(Errno::XDEV.into());
        }
        Ok(UnixFile(fd.into()))
    }

    fn stat_file(&self, file: &UnixFile) -> io::Result<Meta> {
        Ok(meta_of(&statx_fd(file.0.as_fd())?, false))
    }

    fn read_at(&self, file: &UnixFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match file.0.read_at(buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn writers(&self, file: &UnixFile) -> Writers {
        // A read lease of an idle file is had and dropped within one statement.
        Lease::take(&file.0).map_or_else(|writers| writers, |_lease| Writers::None)
    }

    fn with_lease<R>(&self, file: &UnixFile, work: impl FnOnce(Writers) -> R) -> R {
        match Lease::take(&file.0) {
            Ok(_lease) => work(Writers::None),
            Err(writers) => work(writers),
        }
    }

    fn write_back(&self, file: &UnixFile) -> io::Result<()> {
        match sys::write_back(&file.0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => file.0.sync_data(),
            other => other,
        }
    }

    fn create_temp(&self, dir: &UnixDir) -> io::Result<UnixFile> {
        // Not O_EXCL: with O_TMPFILE it forbids a later name.
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir.fd, c".", flags, Mode::RUSR | Mode::WUSR)?;
        Ok(UnixFile(fd.into()))
    }

    fn open_staged(&self, dir: &UnixDir, name: &[u8]) -> io::Result<UnixFile> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = openat(dir.fd.as_fd(), checked(name)?, flags)?;
        match kind_of_mode(&statx_fd(fd.as_fd())?) {
            Kind::File => Ok(UnixFile(fd.into())),
            _ => Err(Errno::INVAL.into()),
        }
    }

    fn write_at(&self, file: &UnixFile, offset: u64, data: &[u8]) -> io::Result<()> {
        file.0.write_all_at(data, offset)
    }

    fn clone_content(&self, from: &UnixFile, to: &UnixFile) -> io::Result<bool> {
        match rustix::fs::ioctl_ficlone(&to.0, &from.0) {
            Ok(()) => Ok(true),
            // Each file system has its own number for what it cannot share.
            Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::XDEV | Errno::NOTTY | Errno::NOSYS | Errno::PERM) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn finish_temp(&self, file: UnixFile) -> io::Result<UnixFile> {
        let reader = match reopen_for_reading(&file.0) {
            // The final mode may forbid its owner to read; nobody else can open a nameless file meanwhile.
            Err(Errno::ACCESS) => {
                let mode = Mode::from_raw_mode(self.stat_file(&file)?.mode);
                rustix::fs::fchmod(&file.0, mode | Mode::RUSR)?;
                let reader = reopen_for_reading(&file.0);
                rustix::fs::fchmod(&file.0, mode)?;
                reader?
            }
            other => other?,
        };
        Ok(UnixFile(reader.into()))
    }

    fn link_temp(&self, file: &UnixFile, dir: &UnixDir, name: &[u8]) -> io::Result<()> {
        let name = checked(name)?;
        match rustix::fs::linkat(&file.0, c"", &dir.fd, name, AtFlags::EMPTY_PATH) {
            // Needs CAP_DAC_READ_SEARCH, or since Linux 6.10 the credentials that opened the file.
            Err(Errno::NOENT) => Ok(link_through_proc(&file.0, dir, name)?),
            other => Ok(other?),
        }
    }

    fn sync_data(&self, file: &UnixFile) -> io::Result<()> {
        file.0.sync_data()
    }

    fn begin_write_back(&self, file: &UnixFile, offset: u64, length: u64) {
        if let Err(error) = sys::begin_write_back(&file.0, offset, length) {
            tracing::debug!(%error, "write-back does not start early");
        }
    }

    fn let_go(&self, file: &UnixFile, bytes: Range<u64>) {
        let Some(length) = NonZeroU64::new(bytes.end.saturating_sub(bytes.start)) else { return };
        // None: to the end.
        let length = Some(length).filter(|_| bytes.end <= i64::MAX as u64);
        if let Err(error) = rustix::fs::fadvise(&file.0, bytes.start, length, rustix::fs::Advice::DontNeed) {
            tracing::debug!(%error, "a content stays in memory");
        }
    }

    fn set_file_attributes(&self, file: &UnixFile, set: &SetAttributes) -> io::Result<()> {
        Ok(CheckedAttributes::new(set)?.set_open(file.0.as_fd())?)
    }

    fn set_attributes(&self, dir: &UnixDir, name: &[u8], set: &SetAttributes) -> io::Result<()> {
        let (name, set) = (checked(name)?, CheckedAttributes::new(set)?);
        // RACE: another directory may come to this name before the call; whoever may rename here can have its
        // attributes changed. The caller compares what the name shows before and after.
        let (fd, readable) = match openat(dir.fd.as_fd(), name, DIR_FLAGS) {
            Ok(fd) => (fd, true),
            Err(Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => {
                (openat(dir.fd.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC)?, false)
            }
            Err(error) => return Err(error.into()),
        };
        let stat = statx_fd(fd.as_fd())?;
        if mount_of(&stat)? != dir.mount {
            return Err(Errno::XDEV.into());
        }
        match kind_of_mode(&stat) {
            Kind::Dir if readable => Ok(set.set_open(fd.as_fd())?),
            kind @ (Kind::Dir | Kind::Symlink) => Ok(set.set_named(fd.as_fd(), kind)?),
            Kind::File | Kind::Special => Err(Errno::INVAL.into()),
        }
    }

    fn create_dir(&self, dir: &UnixDir, name: &[u8], mode: u32) -> io::Result<()> {
        // Never wider than asked, also for a moment; then the rest, which the umask, setgid and default ACLs change.
        let narrow = Mode::from_raw_mode(mode & 0o700);
        rustix::fs::mkdirat(&dir.fd, checked(name)?, narrow)?;
        self.set_attributes(dir, name, &SetAttributes { mode: Some(mode), ..SetAttributes::default() })
    }

    fn create_symlink(&self, dir: &UnixDir, name: &[u8], target: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &dir.fd, checked(name)?)?)
    }

    fn rename(&self, from_dir: &UnixDir, from: &[u8], to_dir: &UnixDir, to: &[u8], mode: RenameMode) -> io::Result<()> {
        let flags = match mode {
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        Ok(rustix::fs::renameat_with(&from_dir.fd, checked(from)?, &to_dir.fd, checked(to)?, flags)?)
    }

    fn remove_file(&self, dir: &UnixDir, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&dir.fd, checked(name)?, AtFlags::empty())?)
    }

    fn remove_dir(&self, dir: &UnixDir, name: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&dir.fd, checked(name)?, AtFlags::REMOVEDIR)?)
    }

    fn sync_dir(&self, dir: &UnixDir) -> io::Result<()> {
        Ok(rustix::fs::fsync(&dir.fd)?)
    }

    fn sync_handle(&self, dir: &UnixDir) -> io::Result<UnixSyncHandle> {
        // Opened anew, not duplicated: each open file description reports a write-back error once.
        Ok(UnixSyncHandle(openat(dir.fd.as_fd(), c".", DIR_FLAGS)?))
    }

    fn sync_all(&self, handle: &UnixSyncHandle) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&handle.0)?)
    }

    fn sync_later(&self, handle: UnixSyncHandle) -> Syncing {
        let handle = Arc::new(handle);
        let there = Arc::clone(&handle);
        let started = std::thread::Builder::new().name("sync".into()).spawn(move || rustix::fs::syncfs(&there.0));
        Box::new(move || match started.map(JoinHandle::join) {
            Ok(Ok(synced)) => Ok(synced?),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(_) => Ok(rustix::fs::syncfs(&handle.0)?),
        })
    }

    fn coarse_stamps(&self, private: &UnixDir) -> io::Result<bool> {
        let file = self.create_temp(private)?;
        let mut last = self.stat_file(&file)?.ctime;
        for _ in 0..STAMP_PROBES {
            self.write_at(&file, 0, b"x")?;
            let ctime = self.stat_file(&file)?.ctime;
            if ctime == last {
                return Ok(true);
            }
            last = ctime;
        }
        Ok(false)
    }

    fn threads(&self) -> usize {
        self.threads
    }

    fn readers(&self) -> usize {
        READERS
    }

    fn staged_max(&self) -> usize {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX);
        usize::try_from((limit / STAGED_SHARE).clamp(16, STAGED_MAX)).unwrap_or(16)
    }

    fn may_chown(&self) -> bool {
        // Root in a container may lack it.
        rustix::thread::capabilities(None).map_or_else(
            |_| rustix::process::geteuid().is_root(),
            |sets| sets.effective.contains(rustix::thread::CapabilitySet::CHOWN),
        )
    }
}

/// Reads at most this much from the beginning.
fn read_start(file: &File, bytes_max: usize) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
