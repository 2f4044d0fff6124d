//! Rows of entries: not encoded before a batch is handed over, for most are changed several times
//! until then, and the few that were read last.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use pleach_protocol::entry::Entry;
use pleach_protocol::path::TreePath;

use super::{Index, Result, merged};
use crate::kv::Kv;
use crate::rows::{self, EntryRow, RowError, Space};

/// Rows of each generation that are kept as read: what is merged is planned, put, shown and read for other peers, and all
/// that a window of the applier is about should be here until then.
const READ_MAX: usize = 6_144;

/// Rows of entries that need no look into the store.
#[derive(Debug, Default)]
pub(super) struct EntryRows {
    /// What the next batch puts and deletes.
    pending: BTreeMap<Vec<u8>, Pending>,
    /// As the store has them; never one that is pending.
    read: RefCell<ReadRows>,
}

/// Rows as read, in two generations: what nobody asked for while one filled goes with it.
#[derive(Debug, Default)]
struct ReadRows {
    young: HashMap<Vec<u8>, Option<Arc<EntryRow>>>,
    old: HashMap<Vec<u8>, Option<Arc<EntryRow>>>,
}

impl ReadRows {
    fn get(&mut self, key: &[u8]) -> Option<&Option<Arc<EntryRow>>> {
        if !self.young.contains_key(key)
            && let Some((key, row)) = self.old.remove_entry(key)
        {
            self.keep(key, row);
        }
        self.young.get(key)
    }

    fn keep(&mut self, key: Vec<u8>, row: Option<Arc<EntryRow>>) {
        self.old.remove(&key);
        if self.young.len() >= READ_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, row);
    }

    fn remove(&mut self, key: &[u8]) -> Option<Option<Arc<EntryRow>>> {
        let young = self.young.remove(key);
        let old = self.old.remove(key);
        young.or(old)
    }
}

#[derive(Debug)]
pub(super) struct Pending {
    /// None where it is deleted.
    pub(super) row: Option<Arc<EntryRow>>,
    /// What the store has, where that was read.
    pub(super) stored: Option<Option<Arc<EntryRow>>>,
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

    fn set(&mut self, key: Vec<u8>, row: Option<Arc<EntryRow>>) {
        let stored = self.read.get_mut().remove(&key);
        match self.pending.get_mut(&key) {
            Some(pending) => pending.row = row,
            None => drop(self.pending.insert(key, Pending { row, stored })),
        }
    }

    pub(super) fn keep(&self, key: Vec<u8>, row: Option<Arc<EntryRow>>) {
        self.read.borrow_mut().keep(key, row);
    }
}

impl<K: Kv> Index<K> {
    /// Gives back the memory of what was read: nothing is under work.
    pub fn forget_read(&mut self) {
        self.entries.read = RefCell::default();
    }

    /// The row of a path, an empty one where there is none.
    ///
    /// # Errors
    /// The engine's or a damaged row.
    pub fn row(&self, path: &TreePath) -> Result<EntryRow> {
        Ok(Arc::unwrap_or_clone(self.shared_row(path)?))
    }

    /// The same for who only reads it: nothing is copied.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn shared_row(&self, path: &TreePath) -> Result<Arc<EntryRow>> {
        let key = rows::path_key(Space::Entry, path);
        if let Some(pending) = self.entries.pending.get(&key) {
            return Ok(pending.row.clone().unwrap_or_default());
        }
        if let Some(row) = self.entries.read.borrow_mut().get(&key) {
            return Ok(row.clone().unwrap_or_default());
        }
        let row: Option<Arc<EntryRow>> = self.get(&key)?.map(Arc::new);
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
        self.first_children(dir, usize::MAX)
    }

    /// The first `limit` of them.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn first_children(&self, dir: &TreePath, limit: usize) -> Result<Vec<(TreePath, EntryRow)>> {
        let (start, end) = rows::children_range(Space::Entry, dir);
        self.entries_between(&start, &end, limit)
    }

    /// The first path at a key or behind it.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn first_path(&self, key: &[u8]) -> Result<Option<TreePath>> {
        let end = rows::subtree_range(Space::Entry, &TreePath::ROOT).1;
        Ok(self.entries_between(key, &end, 1)?.into_iter().next().map(|(path, _)| path))
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
        let pending = self.entries.between(start, end).map(|(key, pending)| (key, pending.row.as_deref()));
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
        self.entries.set(rows::path_key(Space::Entry, path), Some(Arc::new(row.clone())));
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
