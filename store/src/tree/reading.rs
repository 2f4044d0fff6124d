//! Long files that changed: they are read a step at a time, so that no other change waits until a whole one is hashed.

use std::collections::BTreeMap;
use std::ops::Bound;

use pleach_protocol::path::TreePath;

use super::{DIRTY_MAX, Dirty, Observed, Tree, TreeError};
use crate::kv::Kv;
use crate::look::{Reading, Reads};
use crate::root::Place;
use crate::vfs::Vfs;

/// What a real node reads at once: some milliseconds where it is in memory.
pub const READ_AT_ONCE: u64 = 8 * 1024 * 1024;
/// Files that are open and partly read; a short one does not wait for the end of a long one.
const READINGS_MAX: usize = 8;

/// How far long files are that are being read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LongReads {
    /// How many there are, also those that wait for their turn.
    pub files: u64,
    /// Bytes of those that are open.
    pub bytes: u64,
    /// How many of these were read.
    pub read_bytes: u64,
}

/// Files that are to be read, by path, and what of them is open.
pub(super) struct LongFiles<V: Vfs> {
    due: BTreeMap<TreePath, Dirty>,
    readings: BTreeMap<TreePath, Reading<V>>,
    last: TreePath,
}

impl<V: Vfs> Default for LongFiles<V> {
    fn default() -> Self {
        Self { due: BTreeMap::new(), readings: BTreeMap::new(), last: TreePath::ROOT }
    }
}

impl<V: Vfs> LongFiles<V> {
    pub(super) fn is_empty(&self) -> bool {
        self.due.is_empty()
    }

    pub(super) fn contains(&self, path: &TreePath) -> bool {
        self.due.contains_key(path)
    }

    /// The one whose turn it is.
    fn next(&self) -> Option<(TreePath, Dirty)> {
        let may =
            |(path, _): &(&TreePath, &Dirty)| self.readings.contains_key(*path) || self.readings.len() < READINGS_MAX;
        let after = (Bound::Excluded(&self.last), Bound::Unbounded);
        let next = self.due.range::<TreePath, _>(after).find(may).or_else(|| self.due.iter().find(may));
        next.map(|(path, how)| (path.clone(), *how))
    }

    /// Nothing of a path is to be read any more.
    fn forget(&mut self, path: &TreePath) {
        self.due.remove(path);
        self.readings.remove(path);
    }

    /// All of them, to be looked at anew.
    pub(super) fn take(&mut self) -> BTreeMap<TreePath, Dirty> {
        std::mem::take(self).due
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Whether a long file is being read: the next look goes on with it.
    pub fn reads_on(&self) -> bool {
        !self.long.is_empty()
    }

    /// How far those files are; none where there are none.
    pub fn long_reads(&self) -> Option<LongReads> {
        let sum = |of: fn(&Reading<V>) -> u64| self.long.readings.values().map(of).fold(0, u64::saturating_add);
        self.reads_on().then(|| LongReads {
            files: self.long.due.len() as u64,
            bytes: sum(Reading::bytes),
            read_bytes: sum(Reading::read_bytes),
        })
    }

    /// Whether this is such a file.
    pub fn is_reading(&self, path: &TreePath) -> bool {
        self.long.contains(path)
    }

    /// Looks at a path that is dirty; what is long is left for [`Tree::read_long`].
    pub(super) fn look_at_short(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        how: Dirty,
    ) -> Result<Observed, TreeError> {
        let observed = self.observe_reading(place, path, how, Reads::Short(self.options.read_at_once))?;
        match observed {
            Observed::Unread => self.read_later(path, how),
            _ => self.long.forget(path),
        }
        Ok(observed)
    }

    /// Notes a long file that is to be read.
    pub(super) fn read_later(&mut self, path: &TreePath, how: Dirty) {
        if self.long.due.len() < DIRTY_MAX {
            self.long.due.entry(path.clone()).or_default().add(how);
        } else {
            self.scan_due = true;
        }
    }

    /// Reads a step of one long file. Returns those that turned out to be kept by a writer.
    pub(super) fn read_long(&mut self, place: &Place<V>) -> Result<Vec<TreePath>, TreeError> {
        let mut busy = Vec::new();
        while let Some((path, how)) = self.long.next() {
            let mut reading = self.long.readings.remove(&path);
            let reads = Reads::Step(self.options.read_at_once, &mut reading);
            let observed = self.observe_reading(place, &path, how, reads)?;
            self.long.last = path.clone();
            match (observed, reading) {
                (Observed::Unread, Some(reading)) => drop(self.long.readings.insert(path, reading)),
                (Observed::Busy, _) => {
                    self.long.forget(&path);
                    busy.push(path);
                    // The next one, or it would be due again before that had its turn.
                    continue;
                }
                _ => self.long.forget(&path),
            }
            break;
        }
        Ok(busy)
    }
}
