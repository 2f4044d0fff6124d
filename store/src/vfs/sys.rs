//! The system calls that rustix lacks, each a safe function over one `fcntl`, `signal` or
//! `sync_file_range`. The only module with unsafe code; nothing here decides anything.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Once;

/// Waits for write-back under way, starts it for what is dirty, and waits for that.
const WRITE_AND_WAIT: libc::c_uint =
    libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;

fn check(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn set_lease(fd: impl AsFd, kind: c_int) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call; F_SETLEASE takes a plain int and touches no memory of ours.
    check(unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), libc::F_SETLEASE, kind) })
}

/// Takes a read lease; EAGAIN while anybody has the file open for writing or mapped writable,
/// EACCES for one who is neither its owner nor has `CAP_LEASE`. Source: fcntl(2).
pub(crate) fn take_read_lease(fd: impl AsFd) -> io::Result<()> {
    ignore_lease_signals();
    set_lease(fd, libc::F_RDLCK)
}

/// Drops the lease of this open file, if it has one.
pub(crate) fn drop_lease(fd: impl AsFd) -> io::Result<()> {
    set_lease(fd, libc::F_UNLCK)
}

/// Makes SIGIO harmless, once a process: it would end the process when somebody breaks a lease.
pub(crate) fn ignore_lease_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: SIG_IGN installs no code of ours, so there is no handler that could be unsafe at a signal.
        let before = unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
        debug_assert_ne!(before, libc::SIG_ERR, "SIGIO may be ignored");
    });
}

/// Writes the file's dirty pages back and waits; no metadata, no disk cache flush.
pub(crate) fn write_back(fd: impl AsFd) -> io::Result<()> {
    // SAFETY: the descriptor is borrowed for the call, which takes plain numbers; length 0 means to the end.
    check(unsafe { libc::sync_file_range(fd.as_fd().as_raw_fd(), 0, 0, WRITE_AND_WAIT) })
}

/// Starts the write-back of a file's dirty pages in a range; takes no error from whoever syncs.
pub(crate) fn begin_write_back(fd: impl AsFd, offset: u64, length: u64) -> io::Result<()> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let (fd, offset, length) = (fd.as_fd().as_raw_fd(), signed(offset), signed(length));
    // SAFETY: the descriptor is borrowed for the call, which takes plain numbers.
    check(unsafe { libc::sync_file_range(fd, offset, length, libc::SYNC_FILE_RANGE_WRITE) })
}

/// What tests need to play the other process.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Takes a write lease, as Samba does for an oplock.
    pub(crate) fn take_write_lease(fd: impl AsFd) -> io::Result<()> {
        ignore_lease_signals();
        set_lease(fd, libc::F_WRLCK)
    }

    /// Forbids this thread one system call for good, as a container does: it fails with this number.
    /// Source: seccomp(2); the filter looks at the call's number alone.
    pub(crate) fn forbid_call(call: libc::c_long, number: c_int) -> io::Result<()> {
        let step = |code: u32, jump_false, k: u32| libc::sock_filter {
            code: u16::try_from(code).expect("BPF codes are small"),
            jt: 0,
            jf: jump_false,
            k,
        };
        let mut steps = [
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, u32::try_from(call).expect("call numbers are small")),
            step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ERRNO | number.unsigned_abs()),
            step(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
        // SAFETY: takes plain numbers only.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        // SAFETY: the program and its four steps live until the call returns; the kernel copies them.
        check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) })
    }

    /// One page of a file, mapped shared and writable.
    pub(crate) struct SharedPage(*mut libc::c_void);

    const PAGE_BYTES: usize = 4096;

    impl SharedPage {
        /// Maps the first page; the descriptor may be closed afterwards.
        pub(crate) fn map(fd: impl AsFd) -> io::Result<Self> {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: a new mapping at an address of the kernel's choice replaces none of ours.
            let page = unsafe {
                libc::mmap(std::ptr::null_mut(), PAGE_BYTES, protection, libc::MAP_SHARED, fd.as_fd().as_raw_fd(), 0)
            };
            if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(page)) }
        }

        /// Stores one byte; the file must have at least one.
        pub(crate) fn store(&self, byte: u8) {
            // SAFETY: the first byte lies in the mapping, which lives as long as self, and in the file.
            unsafe { self.0.cast::<u8>().write_volatile(byte) };
        }
    }

    impl Drop for SharedPage {
        fn drop(&mut self) {
            // SAFETY: exactly the mapping made in `map`, and nobody has it any more.
            let result = unsafe { libc::munmap(self.0, PAGE_BYTES) };
            assert_eq!(result, 0);
        }
    }
}
