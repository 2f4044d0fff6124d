//! What the journals say of who wrote: a node where nobody writes mints nothing, and what nobody named is
//! never taken out of a tree.

use std::collections::BTreeSet;

use pleach_protocol::entry::{Entry, Hash, Value};
use pleach_protocol::version::NodeId;
use pleach_store::vfs::Kind;

use super::{Faults, Random, World};

/// What was minted so far.
#[derive(Debug)]
pub(super) struct Minted {
    /// The node whose users only read.
    reader: Option<usize>,
    /// What a node finds of its own without knowing it may be named anew.
    pairs: bool,
    /// All contents that some journal named.
    named: BTreeSet<Hash>,
    /// The heads up to which that is so, by node.
    heads: Vec<Option<u64>>,
}

impl Minted {
    pub(super) fn draw(seed: u64, faults: &Faults, wipes: bool, count: usize) -> Self {
        // A generator of its own: all else is drawn as without it.
        let mut random = Random::new(seed.rotate_left(32) ^ 0x006d_696e_7465_6400);
        let reader = random.once_in(2).then(|| random.index(count));
        let pairs = faults.power || faults.lost_stores || faults.disks.can_lose() || wipes;
        Self { reader, pairs, named: BTreeSet::new(), heads: vec![None; count] }
    }

    /// Whether users of a node only read.
    pub(super) fn only_reads(&self, n: usize) -> bool {
        self.reader == Some(n)
    }
}

/// All contents that an entry names.
fn contents_of(entry: &Entry) -> impl Iterator<Item = Hash> + '_ {
    let siblings = entry.content.values().filter_map(|s| s.content.value());
    let losers = entry.losers.values().flatten().map(|loser| &loser.value);
    siblings.chain(losers).filter_map(|value| match value {
        Value::File { hash, .. } => Some(*hash),
        _ => None,
    })
}

/// Whether a node wrote what an entry says; but for times of directories, which move with their children.
fn is_written_by(entry: &Entry, node: NodeId) -> bool {
    let registers = entry.content.keys().chain(entry.losers.keys()).chain(entry.access.keys());
    let times = entry.times.iter().filter(|(_, time)| time.of != Value::Dir).map(|(dot, _)| dot);
    registers.chain(times).any(|dot| dot.actor.node == node)
}

impl World {
    /// Takes note of what a node's journal names, and checks what it minted and filed.
    pub(super) fn check_minted(&mut self, n: usize) -> Result<(), String> {
        let node = &self.nodes[n];
        if !node.model.disk.is_mounted() || node.model.disk.crashed() {
            return Ok(());
        }
        let Some(head) = node.head() else { return Ok(()) };
        if self.minted.heads[n].replace(head) != Some(head) {
            let entries = node.entries()?;
            self.minted.named.extend(entries.values().flat_map(contents_of));
            if !self.minted.pairs
                && self.minted.only_reads(n)
                && let Some((path, entry)) = entries.iter().find(|(_, entry)| is_written_by(entry, node.model.id))
            {
                return Err(format!("n{n} minted '{path}', and nobody writes there: {entry:?}"));
            }
        }
        if self.minted.pairs {
            return Ok(());
        }
        let filed = node.model.disk.user().snapshot(true).into_iter().filter(|(path, seen)| {
            // What was found in staging is nobody's version.
            let version = path.strip_prefix(b".pleach/vault/").is_some_and(|name| !name.starts_with(b"found-"));
            version && seen.kind == Kind::File && seen.content.ends_with(b".")
        });
        for (_, seen) in filed {
            if !self.minted.named.contains(&Hash(*blake3::hash(&seen.content).as_bytes())) {
                let content = String::from_utf8_lossy(&seen.content);
                return Err(format!("n{n} took '{content}' away, which no journal ever named"));
            }
        }
        Ok(())
    }
}
