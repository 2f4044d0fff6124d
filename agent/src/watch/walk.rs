//! Opening and listing directories beneath a root, at any depth, within one mount.

use std::io;
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use pleach_protocol::path::NAME_BYTES_MAX;
use rustix::fs::{
    AtFlags, FileType, FsWord, Mode, OFlags, RawDir, ResolveFlags, StatxAttributes, StatxFlags, fstat, fstatfs, openat,
    openat2, statat, statx,
};
use rustix::io::Errno;

/// Path bytes handed to one system call: below `PATH_MAX`, at a component's boundary.
const CHUNK_BYTES_MAX: usize = 3_840;
const _: () = assert!(CHUNK_BYTES_MAX < 4_096 && CHUNK_BYTES_MAX > NAME_BYTES_MAX);

const DIR: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const STEP: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The types of ext2, ext3 and ext4, and of XFS. Source: statfs(2).
const COUNT_DIRS: [FsWord; 2] = [0xEF53, 0x5846_5342];

/// Which directory a root is, to see that the path still leads to it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Identity {
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

/// An open root. It keeps the file system from being unmounted: hold it only while working.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    identity: Identity,
}

impl Root {
    /// Opens the directory at `path`, through symbolic links: the caller has resolved it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let identity = identify(fd.as_fd())?.0;
        Ok(Self { fd, identity })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Opens a directory beneath (or the root again), following no link and entering no mount.
    ///
    /// # Errors
    /// `EXDEV` at a mount point; `ENOENT`, `ENOTDIR` or `ELOOP` where there is no directory.
    pub(super) fn open_dir(&self, dir: &[u8]) -> Result<OwnedFd, Errno> {
        if dir.is_empty() {
            return openat(&self.fd, c".", DIR, Mode::empty());
        }
        match self.open_resolved(dir) {
            // A kernel before 5.6, or a sandbox that does not know the call.
            Err(Errno::NOSYS | Errno::PERM) => self.open_stepwise(dir),
            other => other,
        }
    }

    fn open_resolved(&self, dir: &[u8]) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let (mut rest, mut held) = (dir, None::<OwnedFd>);
        loop {
            let at = held.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            let Some(cut) = chunk_end(rest) else {
                return openat2(at, rest, DIR, Mode::empty(), resolve);
            };
            let next = openat2(at, &rest[..cut], STEP, Mode::empty(), resolve)?;
            (rest, held) = (&rest[cut + 1..], Some(next));
        }
    }

    fn open_stepwise(&self, dir: &[u8]) -> Result<OwnedFd, Errno> {
        let mut names = dir.split(|b| *b == b'/').peekable();
        let mut held = None::<OwnedFd>;
        while let Some(name) = names.next() {
            let at = held.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            let flags = if names.peek().is_some() { STEP } else { DIR };
            let next = openat(at, name, flags, Mode::empty())?;
            let (identity, mount_root) = identify(next.as_fd())?;
            if mount_root || identity.mount != self.identity.mount {
                return Err(Errno::XDEV);
            }
            held = Some(next);
        }
        held.ok_or(Errno::NOENT)
    }
}

/// Where to cut a path that is too long for one call, at a slash; none if it is not.
fn chunk_end(path: &[u8]) -> Option<usize> {
    if path.len() <= CHUNK_BYTES_MAX {
        return None;
    }
    path[..=CHUNK_BYTES_MAX].iter().rposition(|b| *b == b'/')
}

/// Who a directory is, and whether a mount begins there. Kernels before 5.8 do not tell the mount:
/// there the device stands for it.
fn identify(dir: BorrowedFd<'_>) -> Result<(Identity, bool), Errno> {
    let stat = statx(dir, c"", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::MNT_ID)?;
    let device = (stat.stx_dev_major, stat.stx_dev_minor);
    let told = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::MNT_ID);
    let mount = if told { stat.stx_mnt_id } else { u64::from(device.0) << 32 | u64::from(device.1) };
    let mount_root = stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    Ok((Identity { mount, device, inode: stat.stx_ino }, mount_root))
}

/// The path by which a system call that takes only paths reaches an open directory.
pub(super) fn fd_path(dir: BorrowedFd<'_>) -> String {
    use std::os::fd::AsRawFd;
    // With the dot the link in /proc is not the last component, which must not be a link.
    format!("/proc/self/fd/{}/.", dir.as_raw_fd())
}

/// What a directory holds, in no order: `each` gets the name and whether it is a directory.
pub(super) fn list(dir: &OwnedFd, mut each: impl FnMut(&[u8], bool) -> ControlFlow<()>) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(_) => continue,
            },
            kind => kind,
        };
        if each(name.to_bytes(), kind == FileType::Directory).is_break() {
            break;
        }
    }
    Ok(())
}

/// Whether there may be directories in a directory. ext4 and XFS count them: each has the directory above among its names, and a
/// directory that overflows the count says 1 from then on.
pub(super) fn may_hold_dirs(dir: &OwnedFd) -> bool {
    let counts = || fstatfs(dir).is_ok_and(|found| COUNT_DIRS.contains(&found.f_type));
    !(fstat(dir).is_ok_and(|found| found.st_nlink == 2) && counts())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Open = fn(&Root, &[u8]) -> Result<OwnedFd, Errno>;
    const WAYS: [Open; 2] = [Root::open_resolved, Root::open_stepwise];

    #[test]
    fn a_directory_without_directories_says_so_where_that_is_counted() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let opened = root.open_dir(b"").unwrap();
        let counts = COUNT_DIRS.contains(&fstatfs(&opened).unwrap().f_type);
        std::fs::write(dir.path().join("f"), "").unwrap();
        assert_eq!(may_hold_dirs(&opened), !counts);
        std::fs::create_dir(dir.path().join("d")).unwrap();
        assert!(may_hold_dirs(&opened));
        std::fs::remove_dir(dir.path().join("d")).unwrap();
        assert_eq!(may_hold_dirs(&opened), !counts);
    }

    #[test]
    fn opens_what_lies_beneath_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let inode = identify(root.open_dir(b"a/b").unwrap().as_fd()).unwrap().0;
        for open in WAYS {
            assert_eq!(identify(open(&root, b"a/b").unwrap().as_fd()).unwrap().0, inode);
            assert_eq!(open(&root, b"a/none").unwrap_err(), Errno::NOENT);
            assert_eq!(open(&root, b"f").unwrap_err(), Errno::NOTDIR);
            for link in [&b"link"[..], b"link/b"] {
                let refused = open(&root, link).unwrap_err();
                assert!(matches!(refused, Errno::LOOP | Errno::NOTDIR), "{refused}");
            }
        }
    }

    #[test]
    fn refuses_mount_points() {
        let root = Root::open(Path::new("/")).unwrap();
        for open in WAYS {
            assert_eq!(open(&root, b"proc").unwrap_err(), Errno::XDEV);
            assert_eq!(open(&root, b"proc/self").unwrap_err(), Errno::XDEV);
        }
    }

    #[test]
    fn cuts_long_paths_at_a_slash() {
        assert_eq!(chunk_end(&[b'n'; CHUNK_BYTES_MAX]), None);
        let path = vec![&[b'n'; 250][..]; 40].join(&b'/');
        let cut = chunk_end(&path).unwrap();
        assert!(cut <= CHUNK_BYTES_MAX && path[cut] == b'/' && cut + 251 > CHUNK_BYTES_MAX);
    }

    #[test]
    fn lists_names_and_which_are_directories() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..3_000 {
            std::fs::write(dir.path().join(format!("{n:0>200}")), "").unwrap();
        }
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::os::unix::fs::symlink("sub", dir.path().join("link")).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let (mut all, mut dirs) = (0, Vec::new());
        list(&root.open_dir(b"").unwrap(), |name, is_dir| {
            all += 1;
            dirs.extend(is_dir.then(|| name.to_vec()));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!((all, dirs), (3_002, vec![b"sub".to_vec()]));
    }
}
