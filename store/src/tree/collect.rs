//! Tombstones that everybody knows are forgotten, and actors that nothing is left of (DESIGN.md §2).

use pleach_protocol::entry::Content;
use pleach_protocol::version::NodeId;

use super::{Tree, TreeError};
use crate::index;
use crate::kv::Kv;
use crate::rows::{self, CursorRow, EntryRow, Space};
use crate::vfs::Vfs;

/// Journal rows that one call looks at.
const ROWS: usize = 1_000;

/// Whether a row says nothing but that there is nothing, here and beneath.
fn is_tombstone(row: &EntryRow) -> bool {
    let absent = row.entry.content.values().all(|s| matches!(s.content, Content::Absent { .. }));
    let holds = row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
    absent && !holds && row.entry.losers.is_empty() && row.live_children == 0 && !row.entry.context.is_empty()
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Forgets tombstones behind `after`, up to `upto`, that all of these peers have merged, and trims
    /// contexts under the same rule; whoever calls sees to it that an hour has passed since. Returns how far it looked, none at the end.
    ///
    /// # Errors
    /// The store's.
    pub fn collect(&mut self, after: u64, upto: u64, peers: &[NodeId]) -> Result<Option<u64>, TreeError> {
        let mut known: Vec<CursorRow> = Vec::new();
        for peer in peers {
            // One that was never heard of has merged nothing.
            known.push(self.index.cursor(*peer)?.unwrap_or_default());
        }
        let journal = self.index.journal(after, ROWS)?;
        let whole = journal.len() < ROWS;
        let mut reached = after;
        for (seq, path) in journal {
            if seq > upto {
                return Ok(None);
            }
            reached = seq;
            let mut row = self.index.row(&path)?;
            // Also of one that taught it: else its place in our journal would lie before what is gone.
            let merged = known.iter().all(|cursor| cursor.peer_merged >= seq);
            if row.seq != seq || !merged || self.apply.window.contains_key(&path) {
                continue;
            }
            if is_tombstone(&row) && !self.apply.is_stuck(&path) && self.local(&path)?.is_none() {
                self.index.delete(rows::number_key(Space::Journal, seq));
                self.index.delete_row(&path);
                let meta = self.index.meta_mut();
                meta.collected = meta.collected.max(seq);
            } else if row.entry.trim() {
                if let Some(shown) = &mut row.shown {
                    shown.shown.context.retain(|actor| row.entry.context.knows(actor));
                }
                // All who could tell of it know it: no news, so no new seq.
                self.index.put_row(&path, &row);
            }
        }
        self.index.commit_if_large()?;
        Ok(if whole { None } else { Some(reached) })
    }

    /// Whether a peer that is at this position of the journal may have missed a tombstone.
    pub fn may_have_missed(&self, peer_cursor: u64) -> bool {
        (1..self.index.meta().collected).contains(&peer_cursor)
    }

    /// A peer does not come back, by its local name and, where it has an agent, its id: what is known of how far it is goes.
    ///
    /// # Errors
    /// The store's.
    pub fn forget_peer(&mut self, name: &str, node: Option<NodeId>) -> Result<(), TreeError> {
        if let Some(node) = node {
            self.forget_cursor(node);
            self.told_since.remove(&node);
        }
        self.forget_pushed(name)?;
        self.index.delete(rows::push_key(name));
        self.index.delete(rows::agent_key(name));
        self.commit_all()
    }

    /// Forgets how far this node is in a peer's journal: it will be told all of it again.
    pub fn forget_cursor(&mut self, peer: NodeId) {
        self.index.delete(index::peer_key(peer));
    }
}
