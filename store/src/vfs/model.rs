//! The modelled [`Vfs`](super::Vfs): a disk in memory whose durable state lags behind the live one.
//!
//! A [`ModelDisk`] is the disk, with its clock and with what a test has planned for it: a crash at
//! the n-th call, faults, a user who acts just before a call. [`ModelVfs`] is the agent's process on it,
//! [`ModelUser`] everybody else. Everything is deterministic: no clock but the disk's own, no chance
//! but seeds handed in.
//!
//! What is durable follows LINUX.md 1 and 11, as ext4 and XFS behave: operations on names and attributes
//! are logged and become durable whole and in order; the bytes of a file become durable by a sync,
//! or by a write-back once the log commits. So a rename can be durable while its data is not.

mod calls;
mod crash;
mod handle;
mod image;
mod inotify;
mod script;
mod state;
mod sync;
mod user;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pleach_protocol::time::Time;

pub use calls::ModelVfs;
pub use crash::{CrashKind, Data, DiskImage, Keep};
pub use handle::{ModelDir, ModelFile, ModelSyncHandle};
pub use inotify::{ModelEvent, ModelInotify, WatchedDir};
pub use script::{FaultRule, OpKind, Trouble};
pub use user::{ModelUser, Seen, UserFile};

use state::{State, errno};

/// The owner of what [`ModelDisk::user`] makes.
const USER: (u32, u32) = (1000, 1000);

/// A disk. Clones are the same disk.
#[derive(Clone, Debug)]
pub struct ModelDisk(Arc<Mutex<State>>);

impl Default for ModelDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl ModelDisk {
    /// An empty, mounted disk, the root 0755 and root's; its clock stands at 2026-01-01.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State::new())))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that failed under the lock is reported; others' state is still whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A user with id 1000.
    #[must_use]
    pub fn user(&self) -> ModelUser {
        ModelUser::new(self.clone(), USER)
    }

    /// A user with these ids.
    #[must_use]
    pub fn user_as(&self, uid: u32, gid: u32) -> ModelUser {
        ModelUser::new(self.clone(), (uid, gid))
    }

    /// The disk's time. Each change moves it by a microsecond.
    #[must_use]
    pub fn now(&self) -> Time {
        Time::from_nanos(self.lock().now_nanos)
    }

    /// Lets time pass; backwards where negative.
    pub fn advance(&self, nanos: i64) {
        self.lock().now_nanos += nanos;
    }

    /// Has stamps tick every 4 ms only, as before Linux 6.13.
    pub fn set_coarse_clock(&self, coarse: bool) {
        self.lock().options.coarse_clock = coarse;
    }

    /// Whether syncing a file commits the log, as on ext4 and XFS (yes at first); else it makes only that
    /// inode durable, not its name. Syncing a directory always commits the log.
    pub fn set_log_commit_on_fsync(&self, commits: bool) {
        self.lock().options.log_commit_on_fsync = commits;
    }

    /// Whether an exchange leaves the change times alone, as on XFS (no at first).
    pub fn set_exchange_keeps_ctime(&self, keeps: bool) {
        self.lock().options.exchange_keeps_ctime = keeps;
    }

    /// Whether a new inode takes the number of one just removed, as on ext4 (yes at first).
    pub fn set_reuse_inodes(&self, reuse: bool) {
        self.lock().options.reuse_inodes = reuse;
    }

    /// Whether listings say what names are (yes at first).
    pub fn set_listing_kinds(&self, said: bool) {
        self.lock().options.listing_kinds = said;
    }

    /// Whether the agent may give files away (yes at first).
    pub fn set_may_chown(&self, may: bool) {
        self.lock().options.may_chown = may;
    }

    /// Commits the log, as somebody else's fsync or the kernel's five seconds do; un-synced bytes stay so.
    pub fn commit_log(&self) {
        self.lock().commit_log();
    }

    /// Makes everything durable.
    pub fn sync(&self) {
        self.lock().sync_all();
    }

    /// How many records the log holds: what [`Keep::First`] counts.
    #[must_use]
    pub fn log_len(&self) -> usize {
        self.lock().log.len()
    }

    /// How many calls that change or sync something were made, the one a crash prevented included.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().script.calls
    }

    /// Crashes at the `n`-th such call from now (1 is the next): it does not happen, and nothing does after it.
    ///
    /// # Panics
    /// Where `n` is 0.
    pub fn crash_at(&self, n: u64) {
        assert!(n > 0, "calls are counted from 1");
        self.lock().script.crash_in = Some(n);
    }

    /// Crashes now.
    pub fn crash(&self) {
        self.lock().script.crashed = true;
    }

    /// Whether it has crashed and was not restarted.
    #[must_use]
    pub fn crashed(&self) -> bool {
        self.lock().script.crashed
    }

    /// Ends the agent's process, or the machine, whether it crashed before or not, and starts again. Handles and
    /// [`ModelVfs`] values from before fail with EIO for ever. Faults and hooks stay; a planned crash does not.
    /// What users did since the crash counts as done before it.
    pub fn restart(&self, kind: CrashKind) {
        self.lock().restart(kind);
    }

    /// Counts the machine's starts, from 1.
    #[must_use]
    pub fn boot(&self) -> u64 {
        self.lock().boot
    }

    /// When the machine started last.
    #[must_use]
    pub fn booted(&self) -> Time {
        self.lock().booted
    }

    /// Adds a fault; the first rule that fits a call strikes.
    pub fn fail(&self, rule: FaultRule) {
        self.lock().script.faults.push(rule);
    }

    /// Ends all faults and trouble.
    pub fn clear_faults(&self) {
        let script = &mut self.lock().script;
        script.faults.clear();
        script.trouble = None;
    }

    /// Begins trouble; what was under way of another ends.
    pub fn trouble(&self, trouble: Trouble) {
        self.lock().script.trouble = Some(trouble);
    }

    /// How many calls were struck by a fault or by trouble so far.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.lock().script.struck
    }

    /// What is durable now, as a snapshot of the disk keeps it.
    #[must_use]
    pub fn image(&self) -> DiskImage {
        self.lock().image()
    }

    /// The machine starts again with the disk put back to what it was.
    pub fn put_back(&self, image: &DiskImage) {
        self.lock().put_back(image);
    }

    /// Whether the root's path leads to the tree.
    #[must_use]
    pub fn is_mounted(&self) -> bool {
        self.lock().mounted
    }

    /// Forgets users' actions that were planned and did not happen.
    pub fn forget_hooks(&self) {
        self.lock().script.forget_hooks();
    }

    /// Fails the write-back of all bytes that are not on disk now: no sync makes them durable until they are
    /// written again, and each handle opened before reports EIO once (LINUX.md 11).
    pub fn fail_write_back(&self) {
        self.lock().fail_write_back();
    }

    /// Runs a user's action just before the `nth` call of this kind from now (1 is the next). The disk is not
    /// locked meanwhile.
    ///
    /// # Panics
    /// Where `nth` is 0.
    pub fn before(&self, op: OpKind, nth: usize, action: impl FnOnce(&ModelUser) + Send + 'static) {
        assert!(nth > 0, "calls are counted from 1");
        self.lock().script.before(op, nth, Box::new(action));
    }

    /// Starts or stops recording the calls that change or sync something.
    pub fn record(&self, on: bool) {
        self.lock().script.recording = on;
    }

    /// Takes the record, a call a line: `Rename .pleach/staging/1 -> d/f exchange`, with ` = 28` after one that
    /// failed with that number.
    #[must_use]
    pub fn recorded(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().script.recorded)
    }

    /// Unmounts as `umount` does.
    ///
    /// # Errors
    /// EBUSY while the agent has any handle open, or a user a file.
    pub fn unmount(&self) -> io::Result<()> {
        let mut state = self.lock();
        if Arc::strong_count(&state.script.handles) > 1 || state.users_busy() {
            return Err(errno(libc::EBUSY));
        }
        state.mounted = false;
        state.notify_unmounted();
        Ok(())
    }

    /// Unmounts as `umount --lazy` does: handles go on in a detached tree, the path shows an empty directory.
    pub fn unmount_lazily(&self) {
        let mut state = self.lock();
        state.mounted = false;
        if Arc::strong_count(&state.script.handles) == 1 {
            state.notify_unmounted();
        }
    }

    /// Mounts the same tree again, under another mount id.
    pub fn remount(&self) {
        let mut state = self.lock();
        state.mounted = true;
        state.mount += 1;
    }
}
