//! Contents that nobody seems to have. Small ones have no rows that lead to them: what is wanted at one path may be shown
//! at another, or lie in the vault as another's version. All rows are read for them, now and then, some at a time.

use std::collections::BTreeSet;

use pleach_protocol::entry::Hash;
use pleach_protocol::time::Time;
use serde::de::DeserializeOwned;

use super::{Tree, TreeError, content_of, is_due};
use crate::kv::Kv;
use crate::rows::{self, EntryRow, Holder, Space, VaultRow};
use crate::vfs::Vfs;

/// Contents that are looked for at once.
const SOUGHT_MAX: usize = 1_024;
/// Between the beginnings of two sweeps.
const EVERY_SECS: i64 = 300;
/// Rows that one call of the applier reads: the owner has others to serve.
const STEP_ROWS: usize = 2_048;

/// What is looked for.
#[derive(Debug, Default)]
pub(super) struct Sought {
    /// By the next sweep.
    hashes: BTreeSet<Hash>,
    sweep: Option<Sweep>,
    next_at: Time,
}

impl Sought {
    /// Whether a sweep began since the start: small contents may have rows then.
    pub(super) fn has_swept(&self) -> bool {
        self.next_at != Time::default()
    }
}

#[derive(Debug)]
struct Sweep {
    hashes: BTreeSet<Hash>,
    /// Where it goes on: first among the entries, then in the vault.
    start: Vec<u8>,
    found: u64,
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Looks for a content that is not where rows lead. Whoever waits for it asks again: [`Tree::arrivals`] rises when
    /// something was found.
    pub fn seek(&mut self, hash: Hash) {
        if self.sought.hashes.len() < SOUGHT_MAX {
            self.sought.hashes.insert(hash);
        }
    }

    /// Whether rows are to be read at the next call of the applier.
    pub(super) fn is_seeking(&self) -> bool {
        let Sought { hashes, sweep, next_at } = &self.sought;
        let due = || !hashes.is_empty() && is_due(*next_at, self.now());
        self.index.meta().paired && (sweep.is_some() || due())
    }

    /// Reads on.
    pub(super) fn seek_on(&mut self) -> Result<(), TreeError> {
        if !self.is_seeking() {
            return Ok(());
        }
        let mut sweep = match self.sought.sweep.take() {
            Some(sweep) => sweep,
            None => self.begin_sweep()?,
        };
        let more = if sweep.start.first() == Some(&(Space::Entry as u8)) {
            self.sweep_on(&mut sweep, Space::Entry, |key, row: &EntryRow| {
                let shown = row.shown.as_ref()?.shown.state.as_ref()?;
                Some((content_of(&shown.value).1?, Holder::Tree(rows::key_path(key)?)))
            })? || {
                sweep.start = vec![Space::Vault as u8];
                true
            }
        } else {
            self.sweep_on(&mut sweep, Space::Vault, |key, row: &VaultRow| {
                let (path, id) = rows::key_vault(key)?;
                Some((row.hash?, Holder::Vault(path, id)))
            })?
        };
        if more {
            self.sought.sweep = Some(sweep);
        } else if sweep.found > 0 {
            self.arrivals += sweep.found;
            // Their own pause may be as long as that between two sweeps: each would come too early for the other.
            self.retry_stuck_now();
        }
        Ok(self.index.commit_if_large()?)
    }

    /// What led to the contents goes: it leads nowhere.
    fn begin_sweep(&mut self) -> Result<Sweep, TreeError> {
        let now = self.now();
        self.sought.next_at = Time::new(now.secs.saturating_add(EVERY_SECS), now.nanos);
        let hashes = std::mem::take(&mut self.sought.hashes);
        for hash in &hashes {
            let (start, end) = rows::content_range(*hash);
            let old: Vec<(Vec<u8>, ())> = self.index.others(&start, &end, STEP_ROWS)?;
            old.into_iter().for_each(|(key, ())| self.index.delete(key));
        }
        Ok(Sweep { hashes, start: vec![Space::Entry as u8], found: 0 })
    }

    /// Looks at some rows of a space; false at its end.
    fn sweep_on<R: DeserializeOwned>(
        &mut self,
        sweep: &mut Sweep,
        space: Space,
        holder: impl Fn(&[u8], &R) -> Option<(Hash, Holder)>,
    ) -> Result<bool, TreeError> {
        let found: Vec<(Vec<u8>, R)> = self.index.others(&sweep.start, &[space as u8 + 1], STEP_ROWS)?;
        for (key, row) in &found {
            if let Some((hash, holder)) = holder(key, row).filter(|(hash, _)| sweep.hashes.contains(hash)) {
                self.index.put_other(rows::content_key(hash, &holder), &());
                sweep.found += 1;
            }
        }
        let Some((last, _)) = found.last() else { return Ok(false) };
        sweep.start = [last, &[0][..]].concat();
        Ok(found.len() == STEP_ROWS)
    }
}
