//! What people ask of a tree, and its answers.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::version::NodeId;
use pleach_protocol::view::State;
use pleach_store::rows::HistoryRow;
use pleach_store::tree::{Conflict, DecideError, Kept, TreeError, Version};
use tokio::sync::oneshot;

use super::push::OWED_NAMED_MAX;
use super::{Running, WaitHandle};
use crate::machine::{chain, random_number};

/// Where an answer goes; one that nobody awaits any more is thrown away.
pub type Reply<T> = oneshot::Sender<Result<T, CommandError>>;

/// Lines of the journal in one answer.
pub const LOG_LINES_MAX: usize = 1_000;

/// One line of the journal: its seq and what happened.
pub type LogLine = (u64, HistoryRow);

/// A path that a legacy daemon could not be given: the daemon, the path, the reason.
pub type OwedPath = (String, TreePath, String);

/// Says why a tree does not do as it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The tree is closed, for this reason.
    #[error("{0}")]
    Closed(String),
    /// It cannot be done.
    #[error("{0}")]
    Failed(String),
}

/// What is asked.
#[derive(Debug)]
#[allow(missing_docs, reason = "each variant is a command of the contract, its fields the command's options")]
pub enum Command {
    Approve { reply: Reply<()> },
    Pause { paused: bool, reply: Reply<()> },
    Rescan { reply: Reply<()> },
    ForgetPeer { name: String, node: Option<NodeId>, reply: Reply<()> },
    Log { since: u64, reply: Reply<Vec<LogLine>> },
    Problems { reply: Reply<Vec<(TreePath, String)>> },
    Owed { reply: Reply<Vec<OwedPath>> },
    Conflicts { top: TreePath, reply: Reply<Vec<Conflict>> },
    Resolve { top: TreePath, kept: Kept, reply: Reply<usize> },
    Versions { top: TreePath, reply: Reply<Vec<Version>> },
    Restore { top: TreePath, version: Option<String>, to: Option<PathBuf>, reply: Reply<usize> },
    Wait(WaitHandle),
}

impl Command {
    /// Answers that it is not done.
    pub(super) fn refuse(self, error: CommandError) {
        // Whoever went away needs no answer.
        match self {
            Self::Approve { reply }
            | Self::Pause { reply, .. }
            | Self::Rescan { reply }
            | Self::ForgetPeer { reply, .. } => {
                reply.send(Err(error)).ok();
            }
            Self::Log { reply, .. } => drop(reply.send(Err(error))),
            Self::Problems { reply } => drop(reply.send(Err(error))),
            Self::Owed { reply } => drop(reply.send(Err(error))),
            Self::Conflicts { reply, .. } => drop(reply.send(Err(error))),
            Self::Resolve { reply, .. } | Self::Restore { reply, .. } => drop(reply.send(Err(error))),
            Self::Versions { reply, .. } => drop(reply.send(Err(error))),
            Self::Wait(mut handle) => handle.end(Err(error)),
        }
    }
}

/// A decision that waits for a content.
#[derive(Debug)]
pub(super) struct Postponed {
    command: Command,
    path: TreePath,
    hash: Hash,
    holder: String,
}

impl Running<'_> {
    /// Does what was asked, or sees to it.
    pub(super) fn obey(&mut self, command: Command) -> Result<(), TreeError> {
        // Whoever went away needs no answer.
        match command {
            Command::Approve { reply } => {
                let reason = "its directory is the one that it knows: there is nothing to approve";
                reply.send(Err(CommandError::Failed(reason.to_owned()))).ok();
            }
            Command::Pause { paused, reply } => {
                let done = self.keeper.set_paused(paused);
                if done.is_ok() {
                    self.keeper.exchange.restart_all();
                }
                reply.send(done).ok();
            }
            Command::Rescan { reply } => {
                self.tree.scan_later();
                reply.send(Ok(())).ok();
            }
            Command::ForgetPeer { name, node, reply } => {
                self.tree.forget_peer(&name, node)?;
                reply.send(Ok(())).ok();
            }
            Command::Log { since, reply } => {
                let lines = self.tree.index().history(since.saturating_sub(1), LOG_LINES_MAX);
                reply.send(Ok(lines.map_err(TreeError::from)?)).ok();
            }
            Command::Problems { reply } => {
                let found = self.tree.problems().iter().map(|(path, why)| (path.clone(), why.clone())).collect();
                reply.send(Ok(found)).ok();
            }
            Command::Owed { reply } => {
                let mut owed = Vec::new();
                for peer in self.keeper.pushes.keys() {
                    let found = self.tree.owed(peer, None, OWED_NAMED_MAX)?;
                    owed.extend(found.into_iter().map(|(path, why)| (peer.clone(), path, why)));
                }
                reply.send(Ok(owed)).ok();
            }
            Command::Conflicts { top, reply } => {
                reply.send(Ok(self.tree.conflicts(&top)?)).ok();
            }
            Command::Versions { top, reply } => {
                reply.send(Ok(self.tree.versions(&top)?)).ok();
            }
            Command::Resolve { top, kept, reply } => {
                let done = self.tree.resolve(&top, &kept);
                let again = |reply| Command::Resolve { top, kept, reply };
                self.decided(done, reply, again)?;
            }
            Command::Restore { top, version, to, reply } => {
                let done = self.restore(&top, version.as_deref(), to.as_deref());
                let again = |reply| Command::Restore { top, version, to, reply };
                self.decided(done, reply, again)?;
            }
            Command::Wait(handle) => self.begin_wait(handle),
        }
        Ok(())
    }

    /// Answers a decision, or fetches the content that it lacks and decides again.
    fn decided(
        &mut self,
        done: Result<usize, DecideError>,
        reply: Reply<usize>,
        again: impl FnOnce(Reply<usize>) -> Command,
    ) -> Result<(), TreeError> {
        match done {
            Ok(count) => {
                self.advance()?;
                reply.send(Ok(count)).ok();
            }
            Err(DecideError::Tree(error)) => {
                reply.send(Err(CommandError::Closed(chain(&error)))).ok();
                return Err(error);
            }
            Err(DecideError::Content { path, hash, size, holder }) => {
                if let Some(want) = self.tree.fetch(&path, hash, size)? {
                    self.keeper.exchange.ask(&mut self.tree, want, Vec::new())?;
                }
                self.postponed.push(Postponed { command: again(reply), path, hash, holder });
            }
            Err(error) => {
                reply.send(Err(CommandError::Failed(error.to_string()))).ok();
            }
        }
        Ok(())
    }

    /// Carries out the decisions whose content came, and refuses those whose content cannot be had.
    pub(super) fn decide_postponed(&mut self) -> Result<(), TreeError> {
        for postponed in std::mem::take(&mut self.postponed) {
            let Postponed { command, path, hash, holder } = postponed;
            if self.tree.has_content(&path, hash) {
                self.obey(command)?;
            } else if self.tree.is_on_its_way(hash) {
                self.postponed.push(Postponed { command, path, hash, holder });
            } else {
                let reason = format!("its content is on {holder}, and no connected peer has it");
                command.refuse(CommandError::Failed(reason));
            }
        }
        Ok(())
    }

    fn restore(&mut self, top: &TreePath, version: Option<&str>, to: Option<&Path>) -> Result<usize, DecideError> {
        let found = self.tree.restorable(top, version)?;
        for (path, state) in &found {
            match to {
                None => self.tree.restore(path, state)?,
                Some(dir) => self.export(dir, path, state)?,
            }
        }
        Ok(found.len())
    }

    /// Writes a version beneath a directory outside the tree, under its path in the tree.
    fn export(&self, dir: &Path, path: &TreePath, state: &State) -> Result<(), DecideError> {
        let target = dir.join(std::ffi::OsStr::from_bytes(path.as_bytes()));
        let failed = |source: io::Error| DecideError::Export { target: target.clone(), source };
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        if let Value::Symlink { target: to } = &state.value {
            return std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(to), &target).map_err(failed);
        }
        let number = random_number().map_err(failed)?;
        let staged = target.with_file_name(format!(".pleach-restore-{number:016x}"));
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged)?;
            self.tree.export(path, &state.value, &mut |bytes| file.write_all(bytes))?;
            let mode = state.access.as_ref().map_or(0o600, |a| a.mode & 0o777);
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            if let Some(mtime) = state.mtime {
                let nanos = u64::try_from(mtime.nanos_since_epoch()).unwrap_or(0);
                file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(nanos))?;
            }
            file.sync_all()?;
            // Never over something that is there.
            fs::hard_link(&staged, &target)
        };
        let written = write();
        fs::remove_file(&staged).map_err(failed)?;
        written.map_err(failed)
    }
}
