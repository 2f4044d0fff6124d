//! What must be so when nothing is left to do: silence, and no more state than needed.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::entry::{CONTEXT_ACTORS_MAX, Content, Entry};
use pleach_protocol::path::TreePath;
use pleach_protocol::version::Actor;

use super::World;
use super::events::Look;
use super::node::SimNode;

/// Turns of a quiet period.
const TURNS: usize = 7;
/// Turns in which a wait at rest must end.
const WAIT_TURNS: usize = 4;
const HOUR: i64 = 3_600_000_000_000;

/// Whether an entry only says that there is nothing.
fn is_tombstone(entry: &Entry) -> bool {
    entry.losers.is_empty() && entry.content.values().all(|s| matches!(s.content, Content::Absent { .. }))
}

/// The actors of whom a register carries something.
fn carriers(entry: &Entry) -> BTreeSet<Actor> {
    let content = entry.content.keys().chain(entry.losers.keys());
    content.chain(entry.times.keys()).chain(entry.access.keys()).map(|dot| dot.actor).collect()
}

impl World {
    /// Nothing is said but pings, nothing minted; waits end at once; after an hour what all know is forgotten.
    pub(super) fn check_quiet(&mut self) -> Result<(), String> {
        self.healing = true;
        if self.life.waits && self.random.once_in(2) {
            self.check_wait_ends()?;
        }
        self.check_silence()?;
        self.check_indexes(false)?;
        if self.random.once_in(2) {
            self.say("an hour passes".to_owned());
            for _ in 0..2 {
                for node in &mut self.nodes {
                    node.model.disk.advance(HOUR);
                    node.hour()?;
                }
            }
            self.check_bounds()?;
            self.check_silence()?;
            self.check_indexes(true)?;
        }
        self.healing = false;
        Ok(())
    }

    fn check_wait_ends(&mut self) -> Result<(), String> {
        let n = self.random.index(self.nodes.len());
        if !self.nodes.iter().all(SimNode::has_no_problems) {
            // A wait names them, and goes on.
            return Ok(());
        }
        self.begin_wait(n)?;
        let waits = self.outcome.waits;
        for _ in 0..WAIT_TURNS {
            self.turn(Look::EVENTS, false)?;
        }
        if self.outcome.waits == waits {
            return Err(format!(
                "all is at rest, and a wait on n{n} does not end: {:?}",
                self.nodes[n].outstanding(self.now)
            ));
        }
        Ok(())
    }

    fn check_silence(&mut self) -> Result<(), String> {
        let state = |nodes: &[SimNode]| nodes.iter().map(SimNode::journal_state).collect::<Vec<_>>();
        let before = state(&self.nodes);
        for turn in 0..TURNS {
            if self.turn(Look { scan: turn % 3 == 1, ..Look::EVENTS }, turn == 4)? {
                return Err("something is said while nothing happens".to_owned());
            }
        }
        let after = state(&self.nodes);
        if before != after || !self.nodes.iter().all(SimNode::is_quiet) {
            return Err(format!("something is minted while nothing happens: {before:?} {after:?}"));
        }
        Ok(())
    }

    /// Indexes are equal but for what some forgot.
    fn check_indexes(&self, trimmed: bool) -> Result<(), String> {
        let all: Vec<BTreeMap<TreePath, Entry>> =
            self.nodes.iter().map(SimNode::entries).collect::<Result<_, String>>()?;
        let paths: BTreeSet<&TreePath> = all.iter().flat_map(BTreeMap::keys).collect();
        for path in paths {
            let first = all[0].get(path);
            for (n, entries) in all.iter().enumerate().skip(1) {
                let other = entries.get(path);
                let same = match (first, other) {
                    (Some(a), Some(b)) => a.same_registers(b) && (trimmed || self.forgetful || a.context == b.context),
                    (Some(one), None) | (None, Some(one)) => self.forgetful && is_tombstone(one),
                    (None, None) => true,
                };
                if !same {
                    return Err(format!("n0 and n{n} know other things of '{path}': {first:?} | {other:?}"));
                }
            }
        }
        Ok(())
    }

    /// What everybody knows to be gone is forgotten, and nothing grows with the number of starts.
    fn check_bounds(&mut self) -> Result<(), String> {
        self.forgetful = true;
        for (n, node) in self.nodes.iter().enumerate() {
            let Some(tree) = &node.model.tree else { continue };
            let index = tree.index();
            let rows = index.beneath(&TreePath::ROOT, None, usize::MAX).map_err(|e| e.to_string())?;
            let known: Vec<_> = rows.iter().filter(|(_, row)| !row.entry.context.is_empty()).collect();
            for (path, row) in &known {
                // This disk still holds something there.
                let held = row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
                let held = held || tree.is_local(path).map_err(|e| e.to_string())?;
                if is_tombstone(&row.entry) && row.live_children == 0 && !held {
                    return Err(format!("n{n} still keeps a tombstone of '{path}': {row:?}"));
                }
                if row.entry.context.len() > CONTEXT_ACTORS_MAX.max(carriers(&row.entry).len()) {
                    return Err(format!("n{n} keeps a long context of '{path}': {row:?}"));
                }
            }
            let journal = index.journal(0, usize::MAX).map_err(|e| e.to_string())?;
            if journal.len() != known.len() {
                return Err(format!("n{n} has {} journal rows for {} paths", journal.len(), known.len()));
            }
            for (other, peer) in self.nodes.iter().enumerate().filter(|(other, _)| *other != n) {
                let Some(cursor) = index.cursor(peer.model.id).map_err(|e| e.to_string())? else { continue };
                let Some(theirs) = &peer.model.tree else { continue };
                let meta = theirs.index().meta();
                let beyond = cursor.incarnation == meta.incarnation && cursor.merged > meta.head;
                if beyond || cursor.peer_merged > index.meta().head {
                    return Err(format!("n{n} has a cursor beyond n{other}'s journal: {cursor:?} {meta:?}"));
                }
            }
        }
        Ok(())
    }
}
