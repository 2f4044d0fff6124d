//! Setting owner, mode and time, checked and in the one order that keeps all three.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use super::proc_path;
use crate::vfs::{Kind, SetAttributes};

/// [`SetAttributes`] as the kernel takes them.
pub(super) struct CheckedAttributes {
    owner: Option<(Uid, Gid)>,
    mode: Option<Mode>,
    times: Option<Timestamps>,
}

impl CheckedAttributes {
    /// EINVAL for values that mean something else to the kernel: the owner -1 ("leave") and nanoseconds beyond a
    /// second (`UTIME_NOW`, `UTIME_OMIT`). They may come from a peer.
    pub(super) fn new(set: &SetAttributes) -> io::Result<Self> {
        let invalid = || io::Error::from(Errno::INVAL);
        let owner = match set.owner {
            Some((uid, gid)) if uid == u32::MAX || gid == u32::MAX => return Err(invalid()),
            Some((uid, gid)) => Some((Uid::from_raw(uid), Gid::from_raw(gid))),
            None => None,
        };
        let mode = match set.mode {
            Some(mode) if mode > 0o7777 => return Err(invalid()),
            other => other.map(Mode::from_raw_mode),
        };
        let times = match set.mtime {
            Some(time) if time.nanos >= 1_000_000_000 => return Err(invalid()),
            other => other.map(|time| Timestamps {
                last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                last_modification: Timespec { tv_sec: time.secs, tv_nsec: time.nanos.into() },
            }),
        };
        Ok(Self { owner, mode, times })
    }

    /// By a descriptor that is open for reading. The owner first: chown takes setuid away.
    pub(super) fn set_open(&self, fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(fd, Some(uid), Some(gid))?;
        }
        if let Some(mode) = self.mode {
            rustix::fs::fchmod(fd, mode)?;
        }
        self.times.as_ref().map_or(Ok(()), |times| rustix::fs::futimens(fd, times))
    }

    /// By a descriptor that only names the file (`O_PATH`), for links and for directories that we may not read.
    pub(super) fn set_named(&self, fd: BorrowedFd<'_>, kind: Kind) -> rustix::io::Result<()> {
        if let Some((uid, gid)) = self.owner {
            rustix::fs::chownat(fd, c"", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = self.mode.filter(|_| kind != Kind::Symlink) {
            rustix::fs::chmodat(CWD, proc_path(fd), mode, AtFlags::empty())?;
        }
        self.times.as_ref().map_or(Ok(()), |times| rustix::fs::utimensat(fd, c"", times, AtFlags::EMPTY_PATH))
    }
}
