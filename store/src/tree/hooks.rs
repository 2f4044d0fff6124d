//! What hooks are told: the events of a tree, each hook at its own place among them.
//!
//! An event is noted in the batch that holds what happened, so that a kill parts neither from the other; only
//! what a hook runs for is noted, and only the newest event of each path is kept. Nothing here runs anything.

use std::collections::BTreeSet;

use pleach_protocol::entry::Value;
use pleach_protocol::path::TreePath;
use pleach_protocol::view::State;

use super::{Tree, TreeError};
use crate::index::Index;
use crate::kv::Kv;
use crate::rows::{self, EventRow, HookOn, HookRow, Space};
use crate::vfs::Vfs;

/// What tells one hook of a tree from another.
pub type HookId = [u8; 16];

/// A hook's place among the events of one kind.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HookPlace {
    /// The hook.
    pub id: HookId,
    /// The kind.
    pub on: HookOn,
    /// The number of the last event that it was told.
    pub told: u64,
}

/// The hooks that a store knows.
fn known<K: Kv>(index: &Index<K>) -> Result<Vec<(HookId, HookRow)>, TreeError> {
    let (start, end) = ([Space::Hook as u8], [Space::Hook as u8 + 1]);
    let found: Vec<(Vec<u8>, HookRow)> = index.others(&start, &end, usize::MAX)?;
    Ok(found.into_iter().filter_map(|(key, row)| Some((key.get(1..)?.try_into().ok()?, row))).collect())
}

/// Begins to note what the hooks of an earlier start run for.
pub(super) fn resume<K: Kv>(index: &mut Index<K>) -> Result<(), TreeError> {
    let noted = known(index)?.iter().flat_map(|(_, row)| row.places.iter().map(|(on, _)| *on)).collect();
    index.note_events_of(noted);
    Ok(())
}

const fn is_dir(state: Option<&State>) -> bool {
    matches!(state, Some(State { value: Value::Dir, .. }))
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Says which hooks there are. One that is new begins at the present end; where one went and one came that
    /// runs for the same, that one goes on where the other was.
    ///
    /// # Errors
    /// The store's.
    pub fn set_hooks(&mut self, hooks: &[(HookId, BTreeSet<HookOn>)]) -> Result<(), TreeError> {
        let rows = known(&self.index)?;
        let gone: Vec<_> = rows.iter().filter(|(id, _)| hooks.iter().all(|(of, _)| of != id)).collect();
        let new: Vec<_> = hooks.iter().filter(|(id, _)| rows.iter().all(|(of, _)| of != id)).collect();
        let heir = match (&gone[..], &new[..]) {
            ([(_, row)], [(_, on)]) if row.places.iter().map(|(on, _)| *on).eq(on.iter().copied()) => Some(row),
            _ => None,
        };
        for (id, on) in &new {
            let end = |on: &HookOn| match on {
                HookOn::Sent => (*on, self.index.meta().head),
                _ => (*on, self.index.meta().next_id),
            };
            let row = heir.cloned().unwrap_or_else(|| HookRow { places: on.iter().map(end).collect() });
            self.index.put_other(rows::hook_key(id), &row);
        }
        for (id, _) in &gone {
            self.index.delete(rows::hook_key(id));
        }
        let noted: BTreeSet<HookOn> = hooks.iter().flat_map(|(_, on)| on.iter().copied()).collect();
        for on in HookOn::ALL {
            // Of what no hook runs for all goes.
            let upto = if noted.contains(&on) { self.told_to_all(on)? } else { u64::MAX - 1 };
            self.index.forget_events(on, upto)?;
        }
        self.index.note_events_of(noted);
        self.commit()
    }

    fn told_to_all(&self, on: HookOn) -> Result<u64, TreeError> {
        Ok(known(&self.index)?.iter().filter_map(|(_, row)| row.place(on)).min().unwrap_or(0))
    }

    /// How far a hook is.
    ///
    /// # Errors
    /// The store's.
    pub fn hook(&self, id: &HookId) -> Result<HookRow, TreeError> {
        Ok(self.index.other(&rows::hook_key(id))?.unwrap_or_default())
    }

    /// The hook was told everything up to this number, from `place` on; says where it is now.
    ///
    /// # Errors
    /// The store's.
    pub fn hook_told(&mut self, place: HookPlace, upto: u64) -> Result<HookRow, TreeError> {
        let HookPlace { id, on, told } = place;
        let mut row = self.hook(&id)?;
        // A store that was lost meanwhile begins anew: then this says nothing.
        if let Some((_, at)) = row.places.iter_mut().find(|(of, at)| *of == on && *at == told) {
            *at = upto;
            self.index.put_other(rows::hook_key(&id), &row);
            self.index.forget_events(on, self.told_to_all(on)?)?;
        }
        Ok(row)
    }

    /// Events behind a number and up to another, at most so many.
    ///
    /// # Errors
    /// The store's.
    pub fn events(&self, on: HookOn, after: u64, upto: u64, limit: usize) -> Result<Vec<(u64, EventRow)>, TreeError> {
        Ok(self.index.events(on, after, upto, limit)?)
    }

    /// What was told was applied at a path.
    pub(super) fn note_applied(
        &mut self,
        path: &TreePath,
        seq: u64,
        before: Option<&State>,
        after: Option<&State>,
    ) -> Result<(), TreeError> {
        Ok(self.index.note_event(HookOn::Applied, path, seq, is_dir(before) || is_dir(after))?)
    }

    /// A change of this node's own is in the journal.
    pub(super) fn note_own(
        &mut self,
        path: &TreePath,
        before: Option<&State>,
        after: Option<&State>,
    ) -> Result<(), TreeError> {
        if !self.index.notes(HookOn::Sent) {
            return Ok(());
        }
        let seq = self.index.row(path)?.seq;
        Ok(self.index.note_event(HookOn::Sent, path, seq, is_dir(before) || is_dir(after))?)
    }

    /// A path became a problem.
    pub(super) fn note_trouble(&mut self, path: &TreePath) {
        if !self.index.notes(HookOn::Error) {
            return;
        }
        let noted = self.index.row(path).and_then(|row| {
            let dir = is_dir(row.shown.as_ref().and_then(|s| s.shown.state.as_ref()));
            let seq = self.index.meta().head;
            self.index.note_event(HookOn::Error, path, seq, dir)
        });
        // A store that cannot be read is moved aside, with all that hooks were to be told.
        if let Err(error) = noted {
            tracing::error!(%error, "a problem cannot be noted for hooks");
        }
    }
}
