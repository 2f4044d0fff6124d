//! Trees that only send, or only receive (DESIGN.md §2, "Ignored paths and directions").
//!
//! A tree that only receives mints nothing. What users change there is a *local row*: what the disk holds, beside
//! Shown, which stays what peers said last. The next version that arrives takes its place, and it goes to the vault.
//! When the tree stops to receive only, all that differs from Shown pairs. On a tree that only sends, what was merged
//! counts as shown, so that a change made there supersedes it.

use pleach_protocol::mint::Shown;
use pleach_protocol::path::TreePath;

use super::{Tree, TreeError};
use crate::index;
use crate::kv::Kv;
use crate::rows::{self, Direction, DirectionRow, EntryRow, Pairing, ShownRow, Space};
use crate::vfs::Vfs;

/// Rows read in one go.
const ROWS: usize = 512;

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// How many paths differ here from what peers said, on a tree that only receives.
    pub const fn local_changes(&self) -> u64 {
        self.locals
    }

    /// Whether users changed a path here, on a tree that only receives.
    ///
    /// # Errors
    /// The store's.
    pub fn is_local(&self, path: &TreePath) -> Result<bool, TreeError> {
        Ok(self.local(path)?.is_some())
    }

    /// Which way changes go.
    pub const fn direction(&self) -> Direction {
        self.options.direction
    }

    pub(super) fn receives_only(&self) -> bool {
        self.options.direction == Direction::Receive
    }

    pub(super) fn sends_only(&self) -> bool {
        self.options.direction == Direction::Send
    }

    /// Whether a path is to be on this disk.
    pub(super) fn is_to_be_here(&self, row: &EntryRow) -> bool {
        match self.options.direction {
            Direction::Send => row.shown.as_ref().is_some_and(|shown| shown.shown.state.is_some()),
            Direction::Both | Direction::Receive => index::is_live(row),
        }
    }

    /// Takes up what another direction at the last start means for this one.
    pub(super) fn settle_direction(&mut self) -> Result<(), TreeError> {
        let key = vec![Space::Direction as u8];
        let last: DirectionRow = self.index.other(&key)?.unwrap_or_default();
        let now = self.options.direction;
        self.pairs_locals = now != Direction::Receive && (last.pairs_locals || last.direction == Direction::Receive);
        if self.pairs_locals {
            self.pair_locals()?;
            self.scan_due = true;
        }
        if last.direction != now {
            tracing::info!(from = ?last.direction, to = ?now, "the tree's direction is another");
            // What a tree that only sends passed over is applied, what one that does not has not applied is not.
            self.plan_anew();
        }
        let row = DirectionRow { direction: now, pairs_locals: self.pairs_locals, waits: self.waits };
        if row != last {
            self.index.put_other(key, &row);
        }
        self.count_locals()
    }

    /// All of the tree was looked at: what was changed while it only received is paired, and the peer that was waited
    /// for is followed.
    pub(super) fn end_pairing(&mut self) -> Result<(), TreeError> {
        (self.pairs_locals, self.follows) = (false, None);
        let key = vec![Space::Direction as u8];
        let row = DirectionRow { direction: self.options.direction, ..DirectionRow::default() };
        if self.index.other::<DirectionRow>(&key)?.unwrap_or_default() != row {
            self.index.put_other(key, &row);
        }
        Ok(())
    }

    /// Lets all that is noted as local pair: what is there meets what peers have by its time, what was removed is
    /// fetched again.
    fn pair_locals(&mut self) -> Result<(), TreeError> {
        loop {
            let found = self.locals_between(&[Space::Local as u8], &[Space::Local as u8 + 1], ROWS)?;
            if found.is_empty() {
                return Ok(());
            }
            for (path, _) in found {
                let row = self.index.row(&path)?;
                self.unpair(&path, row);
                self.index.delete(rows::path_key(Space::Local, &path));
            }
            self.index.commit_if_large()?;
        }
    }

    /// Forgets what a path showed, so that it pairs.
    pub(super) fn unpair(&mut self, path: &TreePath, row: EntryRow) {
        if row.shown.is_some() || !row.entry.context.is_empty() {
            self.note_content(path, row.shown.as_ref().and_then(|s| s.shown.state.as_ref()), None);
            let seq = row.seq;
            self.index.put_row(path, &EntryRow { shown: None, pairing: Pairing::ByTime, ..row });
            self.take_up(path, seq);
        }
    }

    /// Forgets what users made of paths: all of it is looked at anew.
    pub(super) fn forget_locals(&mut self) -> Result<(), TreeError> {
        self.locals = 0;
        loop {
            let found = self.locals_between(&[Space::Local as u8], &[Space::Local as u8 + 1], ROWS)?;
            if found.is_empty() {
                return Ok(());
            }
            found.iter().for_each(|(path, _)| self.index.delete(rows::path_key(Space::Local, path)));
            self.index.commit_if_large()?;
        }
    }

    fn count_locals(&mut self) -> Result<(), TreeError> {
        let mut start = vec![Space::Local as u8];
        self.locals = 0;
        loop {
            let found = self.locals_between(&start, &[Space::Local as u8 + 1], ROWS)?;
            let Some((last, _)) = found.last() else { return Ok(()) };
            start = rows::path_key(Space::Local, last);
            start.push(0);
            self.locals += found.len() as u64;
        }
    }

    fn locals_between(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(TreePath, ShownRow)>, TreeError> {
        let found: Vec<(Vec<u8>, ShownRow)> = self.index.others(start, end, limit)?;
        Ok(found.into_iter().filter_map(|(key, row)| Some((rows::key_path(&key)?, row))).collect())
    }

    /// What users made of a path here, where that is told to nobody.
    pub(super) fn local(&self, path: &TreePath) -> Result<Option<ShownRow>, TreeError> {
        match self.locals {
            0 => Ok(None),
            _ => Ok(self.index.other(&rows::path_key(Space::Local, path))?),
        }
    }

    /// What a look at a path compares with: what is known to be there.
    pub(super) fn known_there(&self, path: &TreePath, row: &EntryRow) -> Result<Option<ShownRow>, TreeError> {
        Ok(self.local(path)?.or_else(|| row.shown.clone()))
    }

    /// The paths right in a directory that users changed.
    pub(super) fn locals_in(&self, dir: &TreePath) -> Result<Vec<TreePath>, TreeError> {
        if self.locals == 0 {
            return Ok(Vec::new());
        }
        let (start, end) = rows::children_range(Space::Local, dir);
        Ok(self.locals_between(&start, &end, usize::MAX)?.into_iter().map(|(path, _)| path).collect())
    }

    /// The paths beneath a directory where users put something, a number of them behind `after`.
    pub(super) fn locals_beneath(
        &self,
        dir: &TreePath,
        after: Option<&TreePath>,
    ) -> Result<Vec<(TreePath, ShownRow)>, TreeError> {
        if self.locals == 0 {
            return Ok(Vec::new());
        }
        let (start, end) = rows::subtree_range(Space::Local, dir);
        let start = after.map_or(start, |path| {
            let mut key = rows::path_key(Space::Local, path);
            key.push(0);
            key
        });
        self.locals_between(&start, &end, ROWS)
    }

    /// Whether something of users' making lies beneath a path.
    pub(super) fn holds_locals(&self, dir: &TreePath) -> Result<bool, TreeError> {
        let mut after: Option<TreePath> = None;
        loop {
            let found = self.locals_beneath(dir, after.as_ref())?;
            if found.iter().any(|(_, local)| local.shown.state.is_some()) {
                return Ok(true);
            }
            let Some((last, _)) = found.last() else { return Ok(false) };
            after = Some(last.clone());
        }
    }

    /// A peer deleted what users have replaced by a directory of theirs with something in it: it is theirs alone. One
    /// that was shown is removed when nothing is left in it.
    pub(super) fn leave_to_users(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let row = self.index.row(path)?;
        let was_shown = row.shown.as_ref().is_some_and(ShownRow::is_dir);
        if !was_shown {
            let shown = Shown { context: row.entry.context.clone(), state: None };
            let shown = Some(ShownRow { shown, ..ShownRow::default() });
            self.note_content(path, row.shown.as_ref().and_then(|s| s.shown.state.as_ref()), None);
            self.index.put_row(path, &EntryRow { shown, pairing: Pairing::No, ..row });
        }
        Ok(())
    }

    /// Notes what users made of a path.
    pub(super) fn put_local(&mut self, path: &TreePath, row: &ShownRow) -> Result<(), TreeError> {
        let before = self.local(path)?;
        if before.as_ref() != Some(row) {
            self.locals += u64::from(before.is_none());
            self.index.put_other(rows::path_key(Space::Local, path), row);
            self.index.commit_if_large()?;
        }
        Ok(())
    }

    /// A path is not of users' making any more: what is there is what is shown.
    pub(super) fn clear_local(&mut self, path: &TreePath) {
        // Where the store cannot be read nothing is lost by deleting.
        if !matches!(self.local(path), Ok(None)) {
            self.locals = self.locals.saturating_sub(1);
            self.index.delete(rows::path_key(Space::Local, path));
        }
    }

    /// Nothing of users' making is at a path any more. A directory that a peer deleted may have waited for that.
    pub(super) fn end_local(&mut self, path: &TreePath) -> Result<(), TreeError> {
        if self.local(path)?.is_none() {
            return Ok(());
        }
        self.clear_local(path);
        let Some(dir) = path.parent().filter(|dir| !dir.is_root()) else { return Ok(()) };
        let row = self.index.row(&dir)?;
        let left = row.shown.as_ref().is_some_and(|s| s.shown.state.is_some()) && !index::is_live(&row);
        if left {
            self.take_up(&dir, row.seq);
        }
        Ok(())
    }

    /// What is to come beneath a directory needs it: says whether it is there. Where users took it away or put something
    /// else in its place, that is what gives way.
    pub(super) fn has_directory(&mut self, dir: &TreePath) -> Result<bool, TreeError> {
        let is_dir = |shown: &Option<ShownRow>| shown.as_ref().is_some_and(ShownRow::is_dir);
        let mut row = self.index.row(dir)?;
        match self.local(dir)? {
            Some(local) if !is_dir(&Some(local.clone())) => {
                let context = Self::shown(&row).context;
                let mut shown = local;
                shown.shown.context = context;
                self.store_shown(dir, &mut row, shown);
                Ok(false)
            }
            _ => Ok(is_dir(&row.shown)),
        }
    }

    /// On a tree that only sends, what is merged counts as shown.
    pub(super) fn count_as_shown(&self, path: &TreePath, row: &mut EntryRow) {
        let pairs = !self.index.meta().paired || row.pairing != Pairing::No || self.is_yet_to_pair(path);
        if self.sends_only() && !pairs && !self.options.ignore.ignored(path, false) {
            let context = row.entry.context.clone();
            row.shown.get_or_insert_default().shown.context = context;
        }
    }
}
