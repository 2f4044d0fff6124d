//! `pleach wait`: a barrier through the watcher, then both acks of every peer (DESIGN.md §6).

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Mutex};

use pleach_store::tree::TreeError;
use tokio::sync::oneshot;

use super::Running;
use super::command::CommandError;
use super::open::barrier_dir;
use crate::exchange::{Barrier, BarrierError};
use crate::machine::{lock, random_number};

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
    /// All that had changed is in the journal.
    Taken(Barrier),
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
                    waiter.stage = Stage::Taken(Barrier::new(head, waiters.next_id));
                }
            }
        }
        let mut waiting = std::mem::take(&mut self.keeper.waiters.waiting);
        let mut failed = None;
        waiting.retain_mut(|waiter| {
            if failed.is_none() {
                match self.settle(waiter) {
                    Ok(over) => return !over,
                    Err(error) => failed = Some(error),
                }
            }
            true
        });
        // All who still wait are told why the tree is closed.
        self.keeper.waiters.waiting.append(&mut waiting);
        failed.map_or(Ok(()), Err)
    }

    /// Whether a wait is over.
    fn settle(&mut self, waiter: &mut Waiter) -> Result<bool, TreeError> {
        if waiter.handle.is_given_up() {
            return Ok(true);
        }
        if self.keeper.paused {
            waiter.handle.end(Err(CommandError::Failed("the tree is paused".to_owned())));
            return Ok(true);
        }
        let now = self.now();
        let to_push = match &waiter.stage {
            Stage::Marker(_) => Vec::new(),
            Stage::Taken(barrier) => self.left_to_push(barrier.head()),
        };
        let exchange = &mut self.keeper.exchange;
        let mut left = match &mut waiter.stage {
            Stage::Marker(_) => vec!["changes on this disk are being taken in".to_owned()],
            Stage::Taken(barrier) => match exchange.outstanding(&self.tree, now, barrier) {
                Ok(left) => left,
                Err(BarrierError::Tree(error)) => return Err(error),
                Err(error) => {
                    waiter.handle.end(Err(CommandError::Failed(error.to_string())));
                    return Ok(true);
                }
            },
        };
        left.extend(to_push);
        if left.is_empty() {
            if let Stage::Taken(barrier) = &waiter.stage {
                exchange.forget_barrier(barrier);
            }
            // A disk that is put back after this is known to be older, whatever ended the agent.
            self.tree.mark_last()?;
            waiter.handle.end(Ok(()));
            return Ok(true);
        }
        *lock(&waiter.handle.outstanding) = left;
        Ok(false)
    }
}
