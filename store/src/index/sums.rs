//! One row a directory that sums up its direct children, so that a restart reads a row a directory and
//! not one an entry (DESIGN.md §4).
//!
//! A sum is a sum of keyed hashes: a row that changes takes its old share out and puts its new one in,
//! whatever else the directory holds. Equal sums mean equal children; a child of which an equal
//! stamp proves nothing is counted apart, and a directory with such a child has no sum that counts.

use pleach_protocol::codec;
use pleach_protocol::path::TreePath;

use super::entries::Pending;
use super::{Index, Result, is_live};
use crate::kv::Kv;
use crate::rows::{self, EntryRow, Pairing, Space, Stamp, SumRow};

/// The key of the sums over what a disk shows: nobody else knows it, so nobody can aim at a sum.
#[derive(Clone, Copy, Debug)]
pub(super) struct SumKey([u8; 32]);

impl SumKey {
    pub(super) fn new(secret: &[u8]) -> Self {
        Self(blake3::derive_key("pleach: a directory's stamps, 1", secret))
    }

    /// The share of a name that shows this stamp.
    pub(super) fn shown(&self, name: &[u8], stamp: &Stamp) -> u128 {
        share(&self.0, name, &codec::encode(stamp))
    }
}

/// What one row adds to the sums of its directory.
pub(super) fn share_of(key: &SumKey, name: &[u8], row: &EntryRow) -> SumRow {
    let mut sum = SumRow::default();
    if name.is_empty() {
        // The root's own row.
        return sum;
    }
    let shown = row.shown.as_ref().filter(|s| s.shown.state.is_some());
    match shown.map(|s| (s.stamp, s.provisional)) {
        Some((Some(stamp), false)) => sum.shown = key.shown(name, &stamp),
        Some(_) => sum.unsure = 1,
        // It may be there and have been ignored, or it waits to be paired.
        None => sum.unsure = u64::from(is_live(row) || row.pairing != Pairing::No),
    }
    sum
}

fn share(key: &[u8; 32], name: &[u8], what: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new_keyed(key);
    // No name holds a NUL.
    hasher.update(name).update(&[0]).update(what);
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_be_bytes(half)
}

impl SumRow {
    pub(super) const fn replace(&mut self, old: &Self, new: &Self) {
        self.shown = self.shown.wrapping_sub(old.shown).wrapping_add(new.shown);
        self.unused = 0;
        self.unsure = self.unsure.saturating_add(new.unsure).saturating_sub(old.unsure);
    }
}

/// What a directory shows on disk, summed up name by name, to be compared with what its rows say.
#[derive(Clone, Copy, Debug)]
pub struct DiskSum {
    key: SumKey,
    sum: u128,
}

impl DiskSum {
    pub(super) const fn new(key: SumKey) -> Self {
        Self { key, sum: 0 }
    }

    /// Adds a name with the stamp that it shows.
    pub fn add(&mut self, name: &[u8], stamp: &Stamp) {
        self.sum = self.sum.wrapping_add(self.key.shown(name, stamp));
    }

    /// Whether the rows say that exactly this is there, and nothing else needs a look.
    #[must_use]
    pub const fn is(&self, row: &SumRow) -> bool {
        row.unsure == 0 && row.shown == self.sum
    }
}

impl<K: Kv> Index<K> {
    /// What the direct children of a directory sum up to.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn sum(&self, dir: &TreePath) -> Result<SumRow> {
        let mut sum = self.get(&rows::dir_key(Space::Sum, dir))?.unwrap_or_default();
        let (start, end) = rows::children_range(Space::Entry, dir);
        for (key, pending) in self.entries.between(&start, &end) {
            self.sum_up(&mut sum, key, pending)?;
        }
        Ok(sum)
    }

    /// Puts the share of a pending row into a sum in the place of the stored one's.
    fn sum_up(&self, sum: &mut SumRow, key: &[u8], pending: &Pending) -> Result<()> {
        let (_, name) = rows::dir_and_name(key);
        let share = |row: &EntryRow| share_of(&self.sum_key, name, row);
        let old = match &pending.stored {
            Some(stored) => stored.as_deref().map(share),
            None => self.get::<EntryRow>(key)?.as_ref().map(share),
        };
        let new = pending.row.as_deref().map(share);
        sum.replace(&old.unwrap_or_default(), &new.unwrap_or_default());
        Ok(())
    }

    /// Puts pending rows of entries into the pending batch, with the sums of their directories; the rows of
    /// a directory lie together.
    pub(super) fn encode_entries(&mut self) -> Result<()> {
        let mut sums: Vec<(Vec<u8>, SumRow)> = Vec::new();
        for (key, pending) in self.entries.take() {
            let (dir, _) = rows::dir_and_name(&key);
            let sum_key = [&[Space::Sum as u8], dir].concat();
            if sums.last().is_none_or(|(last, _)| *last != sum_key) {
                let sum = self.get(&sum_key)?.unwrap_or_default();
                sums.push((sum_key, sum));
            }
            if let Some((_, sum)) = sums.last_mut() {
                self.sum_up(sum, &key, &pending)?;
            }
            match &pending.row {
                Some(row) => self.pending.put(key.clone(), rows::seal(&**row)),
                None => self.pending.delete(key.clone()),
            }
            // Most are read again before long: what was merged is applied.
            self.entries.keep(key, pending.row);
        }
        for (key, sum) in sums {
            match sum == SumRow::default() {
                true => self.pending.delete(key),
                false => self.pending.put(key, rows::seal(&sum)),
            }
        }
        Ok(())
    }

    /// An empty sum to compare a directory on the disk with.
    pub const fn disk_sum(&self) -> DiskSum {
        DiskSum::new(self.sum_key)
    }

    /// Adds the rows of a directory up anew: what [`Index::sum`] must say.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn sum_anew(&self, dir: &TreePath) -> Result<SumRow> {
        let mut sum = SumRow::default();
        for (path, row) in self.children(dir)? {
            sum.replace(&SumRow::default(), &share_of(&self.sum_key, path.name(), &row));
        }
        Ok(sum)
    }
}
