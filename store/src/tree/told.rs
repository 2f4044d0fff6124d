//! Which places in the journal peers can have: those that were told in the life that this store remembers.
//!
//! A machine that is put back as a whole, disk and store of one moment, gives seqs anew that its peers have
//! heard of with another meaning, and nothing on it says so. Its peers do: a cursor names the start bits under
//! which it was told. For each peer the store knows the starts under which it was greeted, durably before it is told
//! anything under them, and where the journal ended with each. A store that went back lacks the starts since,
//! and ends the one that ran at that moment where it was then, whatever it wrote and however often it was started
//! before it met the peer. So a cursor whose start is unknown, or that lies behind that start's end, is of a
//! life that was undone; any other names a row that this store still has.

use pleach_protocol::version::NodeId;

use super::exchange::Life;
use super::{Tree, TreeError};
use crate::index::{Index, IndexError};
use crate::kv::Kv;
use crate::rows::{CursorRow, Told};
use crate::vfs::Vfs;

/// Starts remembered for a peer: the one that its cursor names, this one, and those of sessions that another
/// replaced before the peer could say what it had merged. One too few costs a full exchange.
const STARTS_MAX: usize = 4;

/// Ends what earlier starts could tell at the journal's head.
pub(super) fn close<K: Kv>(index: &mut Index<K>) -> Result<(), IndexError> {
    let head = index.meta().head;
    for (peer, mut cursor) in index.cursors()? {
        let mut open = cursor.told.iter_mut().filter(|told| told.end.is_none()).peekable();
        if open.peek().is_some() {
            open.for_each(|told| told.end = Some(head));
            index.put_cursor(peer, &cursor);
        }
    }
    Ok(())
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// The journal's id and this start.
    pub fn life(&self) -> Life {
        Life { incarnation: self.index.meta().incarnation, start: self.actor.start }
    }

    /// Whether a peer's place in the journal, and the start of ours under which it was told, are of a life that is
    /// not this store's past.
    ///
    /// # Errors
    /// The store's.
    pub fn is_of_another_life(&self, peer: NodeId, (seq, start): (u64, u64)) -> Result<bool, TreeError> {
        if seq == 0 {
            return Ok(false);
        }
        let told = self.index.cursor(peer)?.unwrap_or_default().told;
        let Some(told) = told.iter().find(|told| told.start == start) else { return Ok(true) };
        // A machine may be put back without a new start, its memory with it.
        let since = self.told_since.get(&peer).copied().unwrap_or(0).max(self.head_at_start);
        Ok(seq > told.end.unwrap_or(since))
    }

    /// A session with a peer begins, at this place of the journal: it has merged that and no more, and will be told the
    /// rest under this start. Durable on return.
    ///
    /// # Errors
    /// The store's.
    pub fn greet(&mut self, peer: NodeId, (seq, start): (u64, u64)) -> Result<(), TreeError> {
        let cursor = self.index.cursor(peer)?.unwrap_or_default();
        self.heard = self.heard.max(seq);
        let mut told = cursor.told.clone();
        if told.iter().all(|told| told.start != self.actor.start) {
            told.push(Told { start: self.actor.start, end: None });
        }
        while told.len() > STARTS_MAX {
            let spare = told.iter().position(|told| told.start != start).unwrap_or(0);
            told.remove(spare);
        }
        // Where it is says more than its last ack: one that went back has to hear again of what it had merged, and
        // before that no tombstone is collected; an ack that a crash took from this store is not said again.
        let greeted = CursorRow { told, peer_merged: seq, ..cursor.clone() };
        if greeted == cursor {
            return Ok(());
        }
        let lower = seq < cursor.peer_merged;
        if greeted.told == cursor.told && !lower {
            self.index.put_cursor_later(peer, &greeted);
            return Ok(());
        }
        self.index.put_cursor(peer, &greeted);
        Ok(self.index.flush()?)
    }
}
