//! What a `wait` waits for: both acks of every peer (DESIGN.md §6).

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::path::TreePath;
use pleach_protocol::session::Moment;
use pleach_protocol::version::NodeId;
use pleach_store::kv::Kv;
use pleach_store::tree::{Tree, TreeError};
use pleach_store::vfs::Vfs;

use super::{Exchange, StreamState, Tell};

/// Paths that are named one by one while a wait lasts.
const NAMED_MAX: usize = 5;

/// A place in this tree's journal that all peers are to reach, and how far they were asked for theirs.
#[derive(Clone, Debug)]
pub struct Barrier {
    head: u64,
    id: u64,
    /// The session in which each peer was asked.
    asked: BTreeMap<NodeId, u64>,
}

impl Barrier {
    /// A barrier at `head`; no other one under way has this number.
    #[must_use]
    pub const fn new(head: u64, id: u64) -> Self {
        Self { head, id, asked: BTreeMap::new() }
    }

    /// The place.
    #[must_use]
    pub const fn head(&self) -> u64 {
        self.head
    }
}

/// Says why a barrier is waited for in vain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// Somebody paused the tree.
    #[error("the tree is paused on {0}")]
    Paused(String),
    /// The store failed.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl<T: Tell> Exchange<T> {
    /// What is outstanding of a barrier, in words; nothing where it is reached.
    ///
    /// # Errors
    /// [`BarrierError`].
    pub fn outstanding<V: Vfs, K: Kv>(
        &mut self,
        tree: &Tree<V, K>,
        now: Moment,
        barrier: &mut Barrier,
    ) -> Result<Vec<String>, BarrierError> {
        let mut left = stuck_here(tree);
        if tree.waits().is_some() {
            left.push("the tree waits for the first peer whose whole index arrives (first in its config)".to_owned());
        }
        for (peer, name) in self.names.clone() {
            match self.state(peer) {
                StreamState::Absent => continue,
                StreamState::Paused => return Err(BarrierError::Paused(name)),
                state @ (StreamState::Failed | StreamState::Unknown) => {
                    let why = if state == StreamState::Failed { "the tree is closed there" } else { "not connected" };
                    let changes = self.left_for(tree, now, peer)?;
                    left.push(format!("{name}: {why}, {changes} changes to send"));
                    continue;
                }
                StreamState::Open => {}
            }
            // A new session forgets what the one before was asked.
            let session = self.session(peer);
            if barrier.asked.get(&peer) != session.as_ref()
                && self.ask_head(peer, barrier.id)
                && let Some(session) = session
            {
                barrier.asked.insert(peer, session);
            }
            self.add_outstanding(barrier, (peer, &name), &mut left);
        }
        Ok(left)
    }

    fn add_outstanding(&self, barrier: &Barrier, (peer, name): (NodeId, &str), left: &mut Vec<String>) {
        let (applied, stuck) = self.applied_there(peer);
        if applied < barrier.head {
            left.push(format!("{name}: {} changes to send", barrier.head - applied));
        } else if stuck > 0 {
            left.push(format!("{name}: {stuck} paths cannot be applied there (there: pleach problems)"));
        }
        match self.head_told(peer, barrier.id) {
            None => left.push(format!("{name}: its answer")),
            Some(theirs) => {
                let here = self.applied_here(peer);
                if here < theirs {
                    left.push(format!("{name}: {} changes to receive", theirs - here));
                }
            }
        }
    }

    /// A barrier is waited for no longer.
    pub fn forget_barrier(&mut self, barrier: &Barrier) {
        for stream in self.peers.values_mut() {
            stream.heads.remove(&barrier.id);
        }
    }
}

/// The paths that cannot be applied, or not be read, here, and directories that lack something to appear.
fn stuck_here<V: Vfs, K: Kv>(tree: &Tree<V, K>) -> Vec<String> {
    let stuck = tree.stuck_paths();
    let held = tree.held_releases().map(|(top, _)| top).filter(|top| tree.problems().contains_key(*top));
    let stuck: BTreeSet<&TreePath> = stuck.into_iter().chain(tree.unseen_paths()).chain(held).collect();
    let word = |path: &TreePath| {
        let reason = tree.problems().get(path).map_or("", String::as_str);
        format!("{path}: {reason}")
    };
    let mut left: Vec<String> = stuck.iter().take(NAMED_MAX).map(|path| word(path)).collect();
    if stuck.len() > NAMED_MAX {
        left.push(format!("{} more paths are problems here (pleach problems)", stuck.len() - NAMED_MAX));
    }
    left
}
