//! What a test has planned for the calls to come: crashes, faults, races; and the record of calls.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::crash::scramble;
use super::state::errno;
use super::user::ModelUser;

/// The calls of [`crate::vfs::Vfs`], as faults and hooks name them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[allow(missing_docs, reason = "each is the method of that name")]
pub enum OpKind {
    CoarseStamps,
    CreateDir,
    CreateSymlink,
    CreateTemp,
    FinishTemp,
    Identity,
    LinkTemp,
    List,
    OpenDir,
    OpenFile,
    OpenPath,
    ReadAt,
    ReadLink,
    RemoveDir,
    RemoveFile,
    Rename,
    Root,
    SetAttributes,
    SetFileAttributes,
    Stat,
    StatDir,
    StatFile,
    SyncAll,
    SyncData,
    SyncDir,
    SyncHandle,
    WithLease,
    WriteAt,
    WriteBack,
    Writers,
}

impl OpKind {
    /// Whether it changes what users see.
    #[must_use]
    pub fn is_mutating(self) -> bool {
        matches!(
            self,
            Self::CreateDir
                | Self::CreateSymlink
                | Self::CreateTemp
                | Self::LinkTemp
                | Self::RemoveDir
                | Self::RemoveFile
                | Self::Rename
                | Self::SetAttributes
                | Self::SetFileAttributes
                | Self::WriteAt
        )
    }

    /// Whether it only makes durable.
    #[must_use]
    pub fn is_syncing(self) -> bool {
        matches!(self, Self::SyncAll | Self::SyncData | Self::SyncDir | Self::WriteBack)
    }

    /// Whether a crash can come before it: reading calls are as good as the next counted one.
    #[must_use]
    pub fn is_counted(self) -> bool {
        self.is_mutating() || self.is_syncing()
    }
}

/// Makes calls fail.
#[derive(Clone, Debug)]
pub struct FaultRule {
    /// Which call; none for every mutating one.
    pub op: Option<OpKind>,
    /// Only calls that were given this name; calls on an open file go by the name it was opened by.
    pub name: Option<Vec<u8>>,
    /// The error's number.
    pub errno: i32,
    /// How often it strikes.
    pub times: u64,
}

/// A disk in trouble for a while, until it is over or is ended.
#[derive(Clone, Copy, Debug)]
pub struct Trouble {
    /// The error's number.
    pub errno: i32,
    /// Which calls it can strike.
    pub hits: fn(OpKind) -> bool,
    /// It strikes one of so many of them, drawn from the seed.
    pub one_in: u64,
    /// For how many of them it lasts.
    pub calls: u64,
    /// Decides which it strikes.
    pub seed: u64,
}

/// What a user does just before a call.
pub(super) type Action = Box<dyn FnOnce(&ModelUser) + Send>;

struct Hook {
    op: OpKind,
    /// Calls of this kind still to come, with the one that it waits for.
    calls: usize,
    action: Action,
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hook({:?} in {})", self.op, self.calls)
    }
}

/// The plan, and the one process that it happens to.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) calls: u64,
    pub(super) crash_in: Option<u64>,
    pub(super) crashed: bool,
    /// Counts processes: calls and handles of an earlier one fail.
    pub(super) epoch: u64,
    /// Cloned by each handle of the process.
    pub(super) handles: Arc<()>,
    pub(super) faults: Vec<FaultRule>,
    pub(super) trouble: Option<Trouble>,
    /// Calls that a fault or trouble struck.
    pub(super) struck: u64,
    pub(super) recording: bool,
    pub(super) recorded: Vec<String>,
    hooks: Vec<Hook>,
}

impl Script {
    pub(super) fn before(&mut self, op: OpKind, calls: usize, action: Action) {
        self.hooks.push(Hook { op, calls, action });
    }

    /// Counts a call of this kind, and takes the actions that waited for it.
    pub(super) fn take_due(&mut self, op: OpKind) -> Vec<Action> {
        for hook in self.hooks.iter_mut().filter(|hook| hook.op == op) {
            hook.calls -= 1;
        }
        let (due, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.hooks).into_iter().partition(|hook| hook.calls == 0);
        self.hooks = rest;
        due.into_iter().map(|hook| hook.action).collect()
    }

    /// Fails everything that a process does once it is dead.
    pub(super) fn check_alive(&self, epoch: u64) -> io::Result<()> {
        if self.crashed || self.epoch != epoch { Err(errno(libc::EIO)) } else { Ok(()) }
    }

    /// Counts a call; the one at which the crash comes does not happen.
    pub(super) fn count(&mut self, op: OpKind) -> io::Result<()> {
        if !op.is_counted() {
            return Ok(());
        }
        self.calls += 1;
        if let Some(left) = &mut self.crash_in {
            *left -= 1;
            if *left == 0 {
                self.crash_in = None;
                self.crashed = true;
                return Err(errno(libc::EIO));
            }
        }
        Ok(())
    }

    pub(super) fn forget_hooks(&mut self) {
        self.hooks.clear();
    }

    /// The fault that strikes this call, if any.
    pub(super) fn fault(&mut self, op: OpKind, names: &[&[u8]]) -> Option<io::Error> {
        let number = self.rule(op, names).or_else(|| self.troubled(op))?;
        self.struck += 1;
        Some(errno(number))
    }

    fn troubled(&mut self, op: OpKind) -> Option<i32> {
        let trouble = self.trouble.as_mut().filter(|t| (t.hits)(op))?;
        trouble.calls = trouble.calls.saturating_sub(1);
        let (number, drawn) = (trouble.errno, scramble(trouble.seed ^ trouble.calls));
        let strikes = drawn % trouble.one_in.max(1) == 0;
        if trouble.calls == 0 {
            self.trouble = None;
        }
        strikes.then_some(number)
    }

    fn rule(&mut self, op: OpKind, names: &[&[u8]]) -> Option<i32> {
        let rule = self.faults.iter_mut().find(|rule| {
            rule.times > 0
                && rule.op.map_or(op.is_mutating(), |wanted| wanted == op)
                && rule.name.as_ref().is_none_or(|wanted| names.contains(&wanted.as_slice()))
        })?;
        rule.times -= 1;
        Some(rule.errno)
    }
}
