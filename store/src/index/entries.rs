//! Rows of entries: not encoded before a batch is handed over, for most are changed several times
//! until then, and the few that were read last.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use pleach_protocol::entry::Entry;
use pleach_protocol::path::TreePath;

use super::{Index, Result, merged};
use crate::kv::Kv;
use crate::rows::{self, EntryRow, RowError, Space};

/// Rows that are kept as read. Those of the directories above what a batch is about are read most.
const READ_MAX: usize = 2_048;

/// Rows of entries that need no look into the store.
#[derive(Debug, Default)]
pub(super) struct EntryRows {
    /// What the next batch puts and deletes.
    pending: BTreeMap<Vec<u8>, Pending>,
    /// As the store has them; never one that is pending.
    read: RefCell<HashMap<Vec<u8>, Option<EntryRow>>>,
}

#[derive(Debug)]
pub(super) struct Pending {
    /// None where it is deleted.
    pub(super) row: Option<EntryRow>,
    /// What the store has, where that was read.
    pub(super) stored: Option<Option<EntryRow>>,
}

impl EntryRows {
    pub(super) fn len(&self) -> usize {
        self.pending.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Takes what the next batch writes.
    pub(super) fn take(&mut self) -> BTreeMap<Vec<u8>, Pending> {
        std::mem::take(&mut self.pending)
    }

    pub(super) fn between<'r>(&'r self, start: &[u8], end: &[u8]) -> impl Iterator<Item = (&'r Vec<u8>, &'r Pending)> {
        use std::ops::Bound::{Excluded, Included};
        self.pending.range::<[u8], _>((Included(start), Excluded(end)))
    }

    fn set(&mut self, key: Vec<u8>, row: Option<EntryRow>) {
        let stored = self.read.get_mut().remove(&key);
        match self.pending.get_mut(&key) {
            Some(pending) => pending.row = row,
            None => drop(self.pending.insert(key, Pending { row, stored })),
        }
    }

    pub(super) fn keep(&self, key: Vec<u8>, row: Option<EntryRow>) {
        let mut read = self.read.borrow_mut();
        if read.len() >= READ_MAX {
            read.clear();
        }
        read.insert(key, row);
    }
}

impl<K: Kv> Index<K> {
    /// The row of a path, an empty one where there is none.
    ///
    /// # Errors
    /// The engine's or a damaged row.
    pub fn row(&self, path: &TreePath) -> Result<EntryRow> {
        let key = rows::path_key(Space::Entry, path);
        if let Some(pending) = self.entries.pending.get(&key) {
            return Ok(pending.row.clone().unwrap_or_default());
        }
        if let Some(row) = self.entries.read.borrow().get(&key) {
            return Ok(row.clone().unwrap_or_default());
        }
        let row: Option<EntryRow> = self.get(&key)?;
        self.entries.keep(key, row.clone());
        Ok(row.unwrap_or_default())
    }

    /// Whether anything is known of the path.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn entry(&self, path: &TreePath) -> Result<Option<Entry>> {
        Ok(known(self.row(path)?.entry))
    }

    /// The direct children of a directory, by name.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn children(&self, dir: &TreePath) -> Result<Vec<(TreePath, EntryRow)>> {
        let (start, end) = rows::children_range(Space::Entry, dir);
        self.entries_between(&start, &end, usize::MAX)
    }

    /// Up to `limit` paths beneath a directory, behind `after`, in the order of a walk.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn beneath(&self, dir: &TreePath, after: Option<&TreePath>, limit: usize) -> Result<Vec<(TreePath, EntryRow)>> {
        let (start, end) = rows::subtree_range(Space::Entry, dir);
        let start = after.map_or(start, |path| {
            let mut key = rows::path_key(Space::Entry, path);
            key.push(0);
            key
        });
        self.entries_between(&start, &end, limit)
    }

    fn entries_between(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(TreePath, EntryRow)>> {
        let pending = self.entries.between(start, end).map(|(key, pending)| (key, pending.row.as_ref()));
        let found = merged(&self.kv, pending, (start, end), limit, |value| Ok(rows::unseal(&value)?))?;
        found.into_iter().map(|(key, row)| Ok((rows::key_path(&key).ok_or(RowError::Damaged)?, row))).collect()
    }

    /// Stores a row without announcing it (Shown, pairing).
    pub fn put_row(&mut self, path: &TreePath, row: &EntryRow) {
        self.urgent = true;
        self.put_row_later(path, row);
    }

    /// The same for what another look finds again: it goes with the next batch.
    pub fn put_row_later(&mut self, path: &TreePath, row: &EntryRow) {
        self.entries.set(rows::path_key(Space::Entry, path), Some(row.clone()));
    }

    /// Forgets all that is known of a path.
    pub fn delete_row(&mut self, path: &TreePath) {
        self.urgent = true;
        self.entries.set(rows::path_key(Space::Entry, path), None);
    }
}

/// An entry, none where it has seen nothing.
#[must_use]
pub fn known(entry: Entry) -> Option<Entry> {
    (!entry.context.is_empty()).then_some(entry)
}
