//! `first`: a root that never paired follows the first peer whose whole index arrived (DESIGN.md §2, Pairing).
//!
//! Until then nothing of it is looked at, so that nothing is announced. Then it pairs, in one scan: with `send` what is
//! here supersedes what the peer has at the same path; with `receive` what is here and not there is as if it had been shown,
//! so that the view takes its place, and it goes to the vault.

use pleach_protocol::entry::Value;
use pleach_protocol::mint::Shown;
use pleach_protocol::path::TreePath;
use pleach_protocol::view;
use pleach_protocol::wire::First;

use super::{Observed, Tree, TreeError};
use crate::kv::Kv;
use crate::look::Found;
use crate::rows::{DirectionRow, EntryRow, Pairing, ShownRow, Space};
use crate::vfs::Vfs;

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Whose version is to count here, while the root waits for a peer's whole index.
    pub fn waits(&self) -> Option<First> {
        self.options.first.filter(|_| self.waits)
    }

    /// Whether all that the disk holds is in the journal, as far as a whole scan since the start tells.
    pub const fn is_whole(&self) -> bool {
        !self.waits && !self.is_scan_due() && self.index.meta().paired
    }

    /// The wait for an index is over: the root pairs with what is known by now. `none`: as any other.
    pub fn follow(&mut self, first: Option<First>) {
        tracing::info!(?first, "the root pairs with what peers have");
        (self.waits, self.follows) = (false, first);
        self.scan_due = true;
    }

    /// A root waits that never paired, or was approved, until it has paired.
    pub(super) fn wait_for_first(&mut self, replaced: bool) -> Result<(), TreeError> {
        let last: DirectionRow = self.index.other(&[Space::Direction as u8])?.unwrap_or_default();
        let never = !self.index.meta().paired && self.is_unmarked()?;
        self.waits = self.options.first.is_some() && (last.waits || never || self.options.approved || replaced);
        Ok(())
    }

    /// Whether a directory that no peer has was found by a root that follows, and somebody put something into it since: then it
    /// is theirs, with its mode and time, and not one that others derive from what is in it.
    pub(super) fn is_found_and_needed(&self, row: &EntryRow) -> bool {
        row.live_children > 0 && self.is_found_dir(row)
    }

    /// Whether a directory that no peer has was found by a root that follows: its time says so, for one that is derived has none.
    pub(super) fn is_found_dir(&self, row: &EntryRow) -> bool {
        if self.options.first != Some(First::Receive) || self.receives_only() {
            return false;
        }
        let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref());
        let found = shown.is_some_and(|state| state.value == Value::Dir && state.mtime.is_some());
        found && row.entry.context.is_empty()
    }

    /// Pairs a path where one side's version counts; none where it pairs as any other.
    pub(super) fn pair_first(
        &mut self,
        path: &TreePath,
        row: &EntryRow,
        found: &Found,
    ) -> Result<Option<Observed>, TreeError> {
        match self.follows {
            // A tree that only sends puts nothing of theirs in place of what is here.
            Some(First::Receive) if self.sends_only() => Ok(None),
            None => Ok(None),
            Some(First::Receive) => {
                let shown = Shown { context: row.entry.context.clone(), state: Some(found.state.clone()) };
                self.note_content(path, None, shown.state.as_ref());
                // Looked at again, also after a crash: where no peer knows it no journal leads here.
                let shown = ShownRow { shown, stamp: Some(found.stamp), provisional: true };
                self.index.put_row(path, &EntryRow { shown: Some(shown), pairing: Pairing::No, ..row.clone() });
                self.take_up(path, row.seq);
                self.index.commit_if_large()?;
                Ok(Some(Observed::Same))
            }
            Some(First::Send) => {
                if self.receives_only() || view::own(&row.entry).is_none() || row.live_children > 0 {
                    return Ok(None);
                }
                // As by one who has seen all that the peer has.
                let seen = Shown { context: row.entry.context.clone(), state: None };
                let disk = Some((&found.state, found.stamp.ctime));
                let (mut row, shown) = self.mint(path, row, &seen, disk, Pairing::No)?;
                self.note_content(path, None, shown.state.as_ref());
                row.pairing = Pairing::No;
                row.shown = Some(ShownRow { shown, stamp: Some(found.stamp), provisional: found.provisional });
                self.index.put_row(path, &row);
                self.index.commit_if_large()?;
                Ok(Some(Observed::Minted))
            }
        }
    }
}
