//! `pleach wait`: a barrier through the watcher, then both acks of every peer (DESIGN.md §6).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use pleach_protocol::path::TreePath;
use pleach_protocol::version::NodeId;
use pleach_store::tree::TreeError;
use tokio::sync::oneshot;

use super::command::CommandError;
use super::open::barrier_dir;
use super::{AgentTree, Running};
use crate::exchange::StreamState;
use crate::machine::{chain, lock, random_number};

/// Paths that are named one by one while a wait lasts.
const NAMED_MAX: usize = 5;

/// What a wait still waits for, in words; whoever asked reads it whenever it likes.
pub type Outstanding = Arc<Mutex<Vec<String>>>;

/// One tree's part of a wait.
#[derive(Debug)]
pub struct WaitHandle {
    outstanding: Outstanding,
    done: Option<oneshot::Sender<Result<(), CommandError>>>,
}

impl WaitHandle {
    /// A handle, and where the end is told.
    #[must_use]
    pub fn new(outstanding: Outstanding) -> (Self, oneshot::Receiver<Result<(), CommandError>>) {
        let (done, ended) = oneshot::channel();
        (Self { outstanding, done: Some(done) }, ended)
    }

    /// Tells how it ended.
    pub(super) fn end(&mut self, result: Result<(), CommandError>) {
        if let Some(done) = self.done.take() {
            // Whoever went away needs no answer.
            done.send(result).ok();
        }
    }

    fn is_given_up(&self) -> bool {
        self.done.as_ref().is_none_or(oneshot::Sender::is_closed)
    }
}

#[derive(Debug)]
enum Stage {
    /// The watcher has not passed the marker of this name.
    Marker(Vec<u8>),
    /// All that had changed is in the journal up to `head`.
    Taken { head: u64, id: u64, asked: BTreeMap<NodeId, u64> },
}

#[derive(Debug)]
struct Waiter {
    handle: WaitHandle,
    stage: Stage,
}

/// Everybody who waits for this tree.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiting: Vec<Waiter>,
    next_id: u64,
}

impl Waiters {
    pub(super) fn fail(&mut self, reason: &str) {
        for waiter in &mut self.waiting {
            waiter.handle.end(Err(CommandError::Closed(reason.to_owned())));
        }
        self.waiting.clear();
    }
}

impl Running<'_> {
    pub(super) fn begin_wait(&mut self, mut handle: WaitHandle) {
        if self.keeper.paused {
            return handle.end(Err(CommandError::Failed("the tree is paused".to_owned())));
        }
        let dir = barrier_dir(&self.keeper.setup.config.path);
        let marked = random_number().and_then(|number| {
            let name = format!("{number:016x}");
            fs::write(dir.join(&name), b"")?;
            Ok(name.into_bytes())
        });
        match marked {
            Ok(name) => self.keeper.waiters.waiting.push(Waiter { handle, stage: Stage::Marker(name) }),
            Err(error) => handle.end(Err(CommandError::Closed(format!("{}: {error}", dir.display())))),
        }
    }

    /// The watcher has handed out everything from before a marker.
    pub(super) fn barrier_passed(&mut self, name: &[u8]) {
        let marker = barrier_dir(&self.keeper.setup.config.path).join(std::ffi::OsStr::from_bytes(name));
        if let Err(error) = fs::remove_file(&marker) {
            tracing::debug!(%error, marker = %marker.display(), "a marker is gone");
        }
        let passed = |w: &Waiter| matches!(&w.stage, Stage::Marker(marker) if marker == name);
        if self.keeper.waiters.waiting.iter().any(passed) {
            self.passed.push(name.to_vec());
        }
    }

    /// Sees how far those who wait are.
    pub(super) fn settle_waiters(&mut self) -> Result<(), TreeError> {
        if self.keeper.waiters.waiting.is_empty() {
            self.passed.clear();
            return Ok(());
        }
        if !self.passed.is_empty() {
            self.take_all()?;
            let head = self.tree.head();
            let passed = std::mem::take(&mut self.passed);
            let waiters = &mut self.keeper.waiters;
            for waiter in &mut waiters.waiting {
                if matches!(&waiter.stage, Stage::Marker(name) if passed.contains(name)) {
                    waiters.next_id += 1;
                    waiter.stage = Stage::Taken { head, id: waiters.next_id, asked: BTreeMap::new() };
                }
            }
        }
        let mut waiting = std::mem::take(&mut self.keeper.waiters.waiting);
        waiting.retain_mut(|waiter| !self.settle(waiter));
        self.keeper.waiters.waiting.append(&mut waiting);
        Ok(())
    }

    /// Whether a wait is over.
    fn settle(&mut self, waiter: &mut Waiter) -> bool {
        if waiter.handle.is_given_up() {
            return true;
        }
        if self.keeper.paused {
            waiter.handle.end(Err(CommandError::Failed("the tree is paused".to_owned())));
            return true;
        }
        let left = match &mut waiter.stage {
            Stage::Marker(_) => vec!["changes on this disk are being taken in".to_owned()],
            Stage::Taken { head, id, asked } => match self.outstanding(*head, *id, asked) {
                Ok(left) => left,
                Err(error) => {
                    waiter.handle.end(Err(error));
                    return true;
                }
            },
        };
        if left.is_empty() {
            if let Stage::Taken { id, .. } = waiter.stage {
                self.keeper.exchange.forget_heads(id);
            }
            // A disk that is put back after this is known to be older, whatever ended the agent.
            let marked = self.tree.mark_last();
            waiter.handle.end(marked.map_err(|error| CommandError::Closed(chain(&error))));
            return true;
        }
        *lock(&waiter.handle.outstanding) = left;
        false
    }

    /// What is outstanding for the journal up to `head`, in words.
    fn outstanding(
        &mut self,
        head: u64,
        id: u64,
        asked: &mut BTreeMap<NodeId, u64>,
    ) -> Result<Vec<String>, CommandError> {
        let mut left = stuck_here(&self.tree);
        for (peer, name) in self.keeper.setup.peers.clone() {
            let session = self.keeper.exchange.session(peer);
            match self.keeper.exchange.state(peer) {
                StreamState::Absent => continue,
                StreamState::Paused => return Err(CommandError::Failed(format!("the tree is paused on {name}"))),
                StreamState::Failed | StreamState::Unknown => {
                    let state = self.keeper.exchange.state(peer);
                    let why = if state == StreamState::Failed { "the tree is closed there" } else { "not connected" };
                    let behind = self.keeper.exchange.left_for(&self.tree, self.now(), peer);
                    let changes = behind.map_err(|error| CommandError::Closed(chain(&error)))?;
                    left.push(format!("{name}: {why}, {changes} changes to send"));
                    continue;
                }
                StreamState::Open => {}
            }
            // A new session forgets what the one before was asked.
            if asked.get(&peer) != session.as_ref()
                && self.keeper.exchange.ask_head(peer, id)
                && let Some(session) = session
            {
                asked.insert(peer, session);
            }
            let (applied, stuck) = self.keeper.exchange.applied_there(peer);
            if applied < head {
                left.push(format!("{name}: {} changes to send", head - applied));
            } else if stuck > 0 {
                left.push(format!("{name}: {stuck} paths cannot be applied there (there: pleach problems)"));
            }
            match self.keeper.exchange.head_told(peer, id) {
                None => left.push(format!("{name}: its answer")),
                Some(theirs) => {
                    let here = self.keeper.exchange.applied_here(peer);
                    if here < theirs {
                        left.push(format!("{name}: {} changes to receive", theirs - here));
                    }
                }
            }
        }
        Ok(left)
    }
}

/// The paths that cannot be applied here.
fn stuck_here(tree: &AgentTree) -> Vec<String> {
    let stuck = tree.stuck_paths();
    let word = |path: &TreePath| {
        let reason = tree.problems().get(path).map_or("", String::as_str);
        format!("{path}: {reason}")
    };
    let mut left: Vec<String> = stuck.iter().take(NAMED_MAX).map(|path| word(path)).collect();
    if stuck.len() > NAMED_MAX {
        left.push(format!("{} more paths cannot be applied here (pleach problems)", stuck.len() - NAMED_MAX));
    }
    left
}
