//! The in-memory twin of a store: durable and live state apart, crashes and faults on demand.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Batch, Kv, KvError, Row};

type Dead = Box<dyn Fn() -> bool + Send>;

#[derive(Default)]
struct State {
    durable: BTreeMap<Vec<u8>, Vec<u8>>,
    live: BTreeMap<Vec<u8>, Vec<u8>>,
    unflushed: Vec<Batch>,
    epoch: u64,
    fail_after: Option<u64>,
    failed: u64,
    stats: MemoryKvStats,
    /// Says that the machine or process is dead: nothing is taken any more.
    dead: Option<Dead>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("rows", &self.live.len()).field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// What was asked of the store, so that tests can assert costs without a stopwatch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct MemoryKvStats {
    /// Batches committed.
    pub commits: u64,
    /// Flushes.
    pub flushes: u64,
    /// Rows written or deleted.
    pub rows: u64,
}

/// What was durable at a moment.
#[derive(Clone, Debug)]
pub struct KvImage(BTreeMap<Vec<u8>, Vec<u8>>);

/// The disk under [`MemoryKv`]; clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct MemoryKvDisk {
    state: Arc<Mutex<State>>,
}

impl MemoryKvDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the store; handles from before a crash stay closed.
    #[must_use]
    pub fn open(&self) -> MemoryKv {
        MemoryKv { disk: self.clone(), epoch: self.state().epoch, poisoned: false }
    }

    /// Ties the store to a disk's fate: once `dead` says so, every call fails.
    pub fn die_with(&self, dead: impl Fn() -> bool + Send + 'static) {
        self.state().dead = Some(Box::new(dead));
    }

    /// Crashes: of the batches not flushed the first `keep` survive, for they become durable in order.
    pub fn crash(&self, keep: usize) {
        let mut state = self.state();
        let unflushed = std::mem::take(&mut state.unflushed);
        for batch in unflushed.into_iter().take(keep) {
            write(&mut state.durable, batch);
        }
        state.live = state.durable.clone();
        state.epoch += 1;
        state.fail_after = None;
    }

    /// How many batches are not flushed.
    #[must_use]
    pub fn unflushed(&self) -> usize {
        self.state().unflushed.len()
    }

    /// Makes the n-th following commit or flush fail (1: the next).
    pub fn fail_after(&self, n: u64) {
        self.state().fail_after = Some(n);
    }

    /// Takes such a fault back.
    pub fn fail_no_more(&self) {
        self.state().fail_after = None;
    }

    /// How many commits and flushes failed on demand.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.state().failed
    }

    /// What is durable now, as a snapshot of the disk keeps it.
    #[must_use]
    pub fn image(&self) -> KvImage {
        KvImage(self.state().durable.clone())
    }

    /// Puts the disk back to what it was; handles from before stay closed.
    pub fn put_back(&self, image: &KvImage) {
        self.state().durable.clone_from(&image.0);
        self.state().unflushed.clear();
        self.crash(0);
    }

    /// What was asked so far.
    #[must_use]
    pub fn stats(&self) -> MemoryKvStats {
        self.state().stats
    }
}

fn write(rows: &mut BTreeMap<Vec<u8>, Vec<u8>>, batch: Batch) {
    for (key, value) in batch.rows {
        match value {
            Some(value) => rows.insert(key, value),
            None => rows.remove(&key),
        };
    }
}

/// A store in memory.
#[derive(Debug)]
pub struct MemoryKv {
    disk: MemoryKvDisk,
    epoch: u64,
    poisoned: bool,
}

impl MemoryKv {
    fn enter(&self) -> Result<MutexGuard<'_, State>, KvError> {
        let state = self.disk.state();
        let dead = state.dead.as_ref().is_some_and(|dead| dead());
        if self.poisoned || dead || state.epoch != self.epoch { Err(KvError::Poisoned) } else { Ok(state) }
    }

    fn step(&mut self, what: &'static str) -> Result<(), KvError> {
        let mut state = self.enter()?;
        let Some(left) = state.fail_after else { return Ok(()) };
        if left > 1 {
            state.fail_after = Some(left - 1);
            return Ok(());
        }
        state.fail_after = None;
        state.failed += 1;
        drop(state);
        self.poisoned = true;
        Err(KvError::Io { what, source: std::io::Error::other("fault on demand") })
    }
}

impl Kv for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.enter()?.live.get(key).cloned())
    }

    fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, KvError> {
        if end.is_some_and(|end| end <= start) {
            return Ok(Vec::new());
        }
        let end = end.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.enter()?;
        let rows = state.live.range::<[u8], _>((Bound::Included(start), end));
        Ok(rows.take(limit).map(|(k, v)| (k.clone(), v.clone())).collect())
    }

    fn commit(&mut self, batch: Batch) -> Result<(), KvError> {
        self.step("write a batch")?;
        let mut state = self.enter()?;
        state.stats.commits += 1;
        state.stats.rows += batch.rows.len() as u64;
        write(&mut state.live, batch.clone());
        state.unflushed.push(batch);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), KvError> {
        self.step("make batches durable")?;
        let mut state = self.enter()?;
        state.stats.flushes += 1;
        for batch in std::mem::take(&mut state.unflushed) {
            write(&mut state.durable, batch);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: &[(&str, Option<&str>)]) -> Batch {
        let mut batch = Batch::default();
        for (key, value) in rows {
            match value {
                Some(value) => batch.put(key.as_bytes().to_vec(), value.as_bytes().to_vec()),
                None => batch.delete(key.as_bytes().to_vec()),
            }
        }
        batch
    }

    #[test]
    fn a_crash_keeps_what_was_flushed_and_a_prefix_of_the_rest() {
        for keep in 0..=2 {
            let disk = MemoryKvDisk::default();
            let mut kv = disk.open();
            kv.commit(batch(&[("a", Some("1")), ("b", Some("1"))])).unwrap();
            kv.flush().unwrap();
            kv.commit(batch(&[("a", Some("2"))])).unwrap();
            kv.commit(batch(&[("b", None)])).unwrap();
            disk.crash(keep);
            assert!(matches!(kv.get(b"a"), Err(KvError::Poisoned)), "an old handle is closed");
            let kv = disk.open();
            let a = if keep > 0 { &b"2"[..] } else { b"1" };
            assert_eq!(kv.get(b"a").unwrap().as_deref(), Some(a));
            assert_eq!(kv.get(b"b").unwrap().is_some(), keep < 2);
        }
    }

    #[test]
    fn a_fault_poisons_the_handle() {
        let disk = MemoryKvDisk::default();
        let mut kv = disk.open();
        disk.fail_after(2);
        kv.commit(batch(&[("a", Some("1"))])).unwrap();
        assert!(matches!(kv.flush(), Err(KvError::Io { .. })));
        assert!(matches!(kv.commit(Batch::default()), Err(KvError::Poisoned)));
    }
}
