//! The store on disk: sled, used as was measured to be safe and small. The only module that names it.
//!
//! A directory holds `db` (sled's), `log` (ours, in front of it), `ready` (our marker that `db` was made whole) and `lock`.
//! sled does not sync its first files: a cut in the first seconds left a store that does not open.
//! So they are synced here before the marker is written, and a `db` without marker is made anew.
//! A row that cannot be read later leaves the marker `suspect`: the next opening calls the store broken.
//! Written leaves never leave sled's memory, so the store is re-opened when enough was written.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::log::Log;
use super::{Batch, Kv, KvError, Row};

/// Part of the stored format: changing it needs a new store version.
const LEAF_FANOUT: usize = 64;
const CACHE_BYTES: usize = 32 * 1024 * 1024;
/// A file of the store that is emptier is made compact, a little with each flush: what is written anew for
/// that is synced, too.
const FILL_RATIO: f32 = 0.5;
/// Bytes written since opening at which the store is re-opened.
const GROWN_BYTES_MAX: u64 = 96 * 1024 * 1024;
/// What a row costs beside its bytes: a rewritten leaf holds its neighbours too.
const ROW_OVERHEAD_BYTES: u64 = 512;

/// The row with the number of the last batch; all others lie before it.
const NUMBER_KEY: &[u8] = &[0xff];
/// Rows in the log, at most: more between two flushes of sled were not measured to be safe. Only a batch may be larger.
const LOGGED_ROWS_MAX: usize = 768;
/// So many rows at once go to sled without the log, where that is empty.
const UNLOGGED_ROWS: usize = 384;

/// Iterators that are kept until sled is flushed, for each that is dropped flushes it.
const KEPT_MAX: usize = 64;

type Db = sled::Db<LEAF_FANOUT>;

/// A sled store. One owner.
pub struct SledKv {
    dir: PathBuf,
    /// At most [`KEPT_MAX`], and none where sled holds nothing that is to be flushed.
    kept: RefCell<Vec<sled::Iter<LEAF_FANOUT>>>,
    db: Option<Db>,
    log: Log,
    /// Of the last batch.
    number: u64,
    written_bytes: u64,
    _lock: File,
}

impl std::fmt::Debug for SledKv {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledKv").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl SledKv {
    /// Opens the store in `dir`, making it where there is none.
    ///
    /// # Errors
    /// [`KvError::Broken`] where it does not open (see [`move_aside`]), [`KvError::Io`] where the
    /// directory cannot be used or another process holds it.
    pub fn open(dir: &Path) -> Result<Self, KvError> {
        let io = |what| move |source| KvError::Io { what, source };
        fs::create_dir_all(dir).map_err(io("make its directory"))?;
        let lock = lock(dir).map_err(io("take its lock"))?;
        let (db_dir, ready) = (dir.join("db"), dir.join("ready"));
        // What cannot be looked at is not missing: a store is made anew only where there is none.
        if !ready.try_exists().map_err(io("look for its marker"))? {
            if db_dir.exists() {
                fs::remove_dir_all(&db_dir).map_err(io("remove a half-made store"))?;
            }
            remove(&dir.join("log")).map_err(io("remove the log of another store"))?;
            drop(open_db(&db_dir)?);
            sync_tree(&db_dir).map_err(io("make a new store durable"))?;
            sync_path(dir).map_err(io("make a new store durable"))?;
            fs::write(&ready, b"pleach store\n").map_err(io("mark a new store as ready"))?;
            sync_path(&ready).and_then(|()| sync_path(dir)).map_err(io("mark a new store as ready"))?;
        }
        if dir.join("suspect").exists() {
            let reason = "rows could not be read when it was last open".into();
            return Err(KvError::Broken { path: db_dir.display().to_string(), reason });
        }
        put_log_behind_snapshot(&db_dir.join("metadata")).map_err(io("look at its snapshot"))?;
        let db = open_db(&db_dir)?;
        let (log, batches) = Log::open(&dir.join("log")).map_err(io("open its log"))?;
        let (dir, kept) = (dir.to_path_buf(), RefCell::default());
        let mut kv = Self { dir, kept, db: Some(db), log, number: 0, written_bytes: 0, _lock: lock };
        kv.number = kv.stored_number()?;
        kv.put_in(batches)?;
        Ok(kv)
    }

    fn stored_number(&self) -> Result<u64, KvError> {
        let Some(row) = self.get(NUMBER_KEY)? else { return Ok(0) };
        row.try_into().map(u64::from_be_bytes).map_err(|_| self.broken("the number of its last batch is none"))
    }

    fn broken(&self, reason: &str) -> KvError {
        KvError::Broken { path: self.dir.display().to_string(), reason: reason.into() }
    }

    /// Puts in the batches of the log that sled lacks.
    fn put_in(&mut self, batches: Vec<(u64, Batch)>) -> Result<(), KvError> {
        let known = self.number;
        let mut rows = 0;
        for (number, batch) in batches.into_iter().filter(|(number, _)| *number > known) {
            if number != self.number + 1 {
                // Rows that were told and acknowledged are not here any more.
                return Err(self.broken("it lost batches that it had made durable"));
            }
            rows += batch.rows.len();
            if rows > LOGGED_ROWS_MAX {
                self.flush_db()?;
                rows = batch.rows.len();
            }
            self.apply(batch)?;
        }
        self.flush_db()
    }

    /// Makes a batch visible, with its number.
    fn apply(&mut self, batch: Batch) -> Result<(), KvError> {
        self.number += 1;
        let mut rows = sled::Batch::default();
        rows.insert(NUMBER_KEY, self.number.to_be_bytes());
        for (key, value) in batch.rows {
            self.written_bytes += (key.len() + value.as_ref().map_or(0, Vec::len)) as u64 + ROW_OVERHEAD_BYTES;
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(key),
            }
        }
        self.db()?.apply_batch(rows).map_err(|source| self.poison("write a batch", source))
    }

    /// Makes sled itself durable.
    fn flush_db(&mut self) -> Result<(), KvError> {
        self.db()?.flush().map_err(|source| self.poison("make batches durable", source))?;
        self.log.clear();
        self.kept.borrow_mut().clear();
        Ok(())
    }

    fn close(&mut self) {
        self.kept.borrow_mut().clear();
        self.db = None;
    }

    /// Takes an iterator that is not needed any more.
    fn keep(&self, iterator: sled::Iter<LEAF_FANOUT>) {
        let is_dirty = self.log.rows() + self.log.unwritten_rows() > 0;
        let mut kept = self.kept.borrow_mut();
        if !is_dirty || kept.len() >= KEPT_MAX {
            kept.clear();
        }
        if is_dirty {
            kept.push(iterator);
        }
    }

    fn db(&self) -> Result<&Db, KvError> {
        self.db.as_ref().ok_or(KvError::Poisoned)
    }

    /// A read failed: what the store holds cannot be trusted any more.
    fn suspect(&self, what: &'static str, source: io::Error) -> KvError {
        if let Err(error) = fs::write(self.dir.join("suspect"), source.to_string()) {
            tracing::error!(%error, "the store is suspect, and that cannot be noted");
        }
        KvError::Io { what, source }
    }

    fn poison(&mut self, what: &'static str, source: io::Error) -> KvError {
        self.close();
        KvError::Io { what, source }
    }
}

/// Moves a broken store out of the way, so that a new one can be made; returns where it lies now.
///
/// # Errors
/// What renaming says.
pub fn move_aside(dir: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let free = (0..u32::MAX).map(|n| dir.join(format!("broken-{now}-{n}"))).find(|p| !p.exists());
    let aside = free.ok_or_else(|| io::Error::other("no free name"))?;
    // Never is it seen beside another store.
    match fs::rename(dir.join("log"), aside.with_extension("log")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => sync_path(dir)?,
    }
    fs::rename(dir.join("db"), &aside)?;
    for marker in ["ready", "suspect"] {
        remove(&dir.join(marker))?;
    }
    sync_path(dir)?;
    Ok(aside)
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How long a lock may be in passing hands.
const LOCK_WAIT: Duration = Duration::from_millis(200);

fn lock(dir: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    let began = Instant::now();
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            // A child of this process that has not come to its exec yet still holds what we let go.
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_WAIT => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn sync_path(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { sync_tree(&entry.path())? } else { sync_path(&entry.path())? }
    }
    sync_path(dir)
}

/// An opening of sled 1.0.0-alpha.124 that finds a snapshot of its index and no log behind it loses
/// everything: it writes the snapshot anew under the same number, then removes "the old one". A kill
/// during an opening leaves just that. An empty log behind the snapshot keeps the two apart.
fn put_log_behind_snapshot(metadata: &Path) -> io::Result<()> {
    let names = match fs::read_dir(metadata) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let (mut snapshot, mut log) = (None, None);
    for name in names {
        let name = name?.file_name();
        let Some((kind, number)) = name.to_str().and_then(|name| name.split_once('_')) else { continue };
        let Ok(number) = u64::from_str_radix(number, 16) else { continue };
        match kind {
            "snapshot" => snapshot = snapshot.max(Some(number)),
            "log" => log = log.max(Some(number)),
            _ => {}
        }
    }
    if let Some(snapshot) = snapshot.filter(|snapshot| log.is_none_or(|log| log <= *snapshot)) {
        let next = metadata.join(format!("log_{:016x}", snapshot + 1));
        tracing::info!(log = %next.display(), "an opening of the store was cut short");
        File::create(&next)?.sync_all()?;
        sync_path(metadata)?;
    }
    Ok(())
}

fn open_db(dir: &Path) -> Result<Db, KvError> {
    let broken = |reason: String| KvError::Broken { path: dir.display().to_string(), reason };
    let mut config =
        sled::Config::new().path(dir).cache_capacity_bytes(CACHE_BYTES).flush_every_ms(None).zstd_compression_level(1);
    config.target_heap_file_fill_ratio = FILL_RATIO;
    // An alpha may panic over a damaged file; that is a broken store, not a broken agent.
    match catch_unwind(AssertUnwindSafe(|| config.open::<LEAF_FANOUT>())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) => Err(broken(error.to_string())),
        Err(_) => Err(broken("its engine panicked".into())),
    }
}

impl Kv for SledKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let found = self.db()?.get(key).map_err(|source| self.suspect("read a row", source))?;
        Ok(found.map(|value| value.to_vec()))
    }

    fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, KvError> {
        // sled's iterator does not stop at an upper bound: behind the last row within it, it reads
        // every leaf to the end of the store (alpha.124, `Iter::next`). So the bound is ours.
        let (mut rows, end) = (Vec::new(), end.unwrap_or(NUMBER_KEY));
        let mut iterator = self.db()?.range(start.to_vec()..);
        for row in iterator.by_ref().take(limit) {
            let (key, value) = row.map_err(|source| self.suspect("read rows", source))?;
            if &key[..] >= end {
                break;
            }
            rows.push((key.to_vec(), value.to_vec()));
        }
        self.keep(iterator);
        Ok(rows)
    }

    fn commit(&mut self, batch: Batch) -> Result<(), KvError> {
        self.db()?;
        let rows = self.log.rows() + self.log.unwritten_rows();
        if rows > 0 && rows + batch.rows.len() > LOGGED_ROWS_MAX {
            self.flush_db()?;
        }
        self.log.push(self.number + 1, &batch);
        self.apply(batch)
    }

    fn flush(&mut self) -> Result<(), KvError> {
        self.db()?;
        match (self.log.rows(), self.log.unwritten_rows()) {
            (_, 0) => return Ok(()),
            (0, UNLOGGED_ROWS..) => return self.flush_db(),
            _ => self.log.write().map_err(|source| self.poison("make batches durable", source))?,
        }
        if self.log.is_full() { self.flush_db() } else { Ok(()) }
    }

    fn reopen_if_grown(&mut self) -> Result<bool, KvError> {
        if self.written_bytes < GROWN_BYTES_MAX {
            return Ok(false);
        }
        self.flush_db()?;
        self.close();
        self.db = Some(open_db(&self.dir.join("db"))?);
        self.written_bytes = 0;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kv: &mut SledKv, key: &str, value: &[u8]) {
        let mut batch = Batch::default();
        batch.put(key.as_bytes().to_vec(), value.to_vec());
        kv.commit(batch).unwrap();
        kv.flush().unwrap();
    }

    #[test]
    fn a_store_without_marker_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        put(&mut SledKv::open(dir.path()).unwrap(), "a", b"1");
        assert!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().is_some());
        fs::remove_file(dir.path().join("ready")).unwrap();
        assert!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().is_none());
    }

    #[test]
    fn a_broken_store_is_moved_aside_whole() {
        let dir = tempfile::tempdir().unwrap();
        put(&mut SledKv::open(dir.path()).unwrap(), "a", b"1");
        for entry in fs::read_dir(dir.path().join("db")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::write(&path, b"garbage that is no store").unwrap();
            }
        }
        assert!(matches!(SledKv::open(dir.path()), Err(KvError::Broken { .. })));
        let aside = move_aside(dir.path()).unwrap();
        assert!(aside.is_dir());
        assert!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().is_none());
    }

    #[test]
    fn an_opening_that_was_cut_short_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        put(&mut SledKv::open(dir.path()).unwrap(), "a", b"1");
        let metadata = dir.path().join("db/metadata");
        // One opening takes the log into the snapshot; it is killed before it begins the next log.
        drop(SledKv::open(dir.path()).unwrap());
        for entry in fs::read_dir(&metadata).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap().to_string_lossy().starts_with("log_") {
                assert_eq!(fs::metadata(&path).unwrap().len(), 0);
                fs::remove_file(path).unwrap();
            }
        }
        for _ in 0..3 {
            assert!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().is_some());
        }
    }

    #[test]
    fn a_suspect_store_is_broken_until_it_is_moved_aside() {
        let dir = tempfile::tempdir().unwrap();
        let mut kv = SledKv::open(dir.path()).unwrap();
        put(&mut kv, "a", b"1");
        kv.suspect("read a row", io::Error::other("a fault"));
        drop(kv);
        assert!(matches!(SledKv::open(dir.path()), Err(KvError::Broken { .. })));
        move_aside(dir.path()).unwrap();
        assert!(SledKv::open(dir.path()).is_ok());
    }

    #[test]
    fn two_owners_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _first = SledKv::open(dir.path()).unwrap();
        assert!(matches!(SledKv::open(dir.path()), Err(KvError::Io { what: "take its lock", .. })));
    }

    #[test]
    fn reopening_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut kv = SledKv::open(dir.path()).unwrap();
        for n in 0..100 {
            put(&mut kv, &format!("{n:03}"), &[7; 100]);
        }
        kv.written_bytes = GROWN_BYTES_MAX;
        assert!(kv.reopen_if_grown().unwrap());
        assert_eq!(kv.range(b"", None, 1000).unwrap().len(), 100);
        assert_eq!(kv.range(b"010", Some(b"020"), 5).unwrap().len(), 5);
    }

    /// What a power cut leaves of sled: what it was when it was last flushed.
    fn copy_dir(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let to = to.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                copy_dir(&entry.path(), &to);
            } else {
                fs::copy(entry.path(), to).unwrap();
            }
        }
    }

    fn put_back(from: &Path, to: &Path) {
        if to.is_dir() {
            fs::remove_dir_all(to).unwrap();
            copy_dir(from, to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }

    fn values(kv: &SledKv) -> Vec<(String, Vec<u8>)> {
        let rows = kv.range(b"", None, usize::MAX).unwrap();
        rows.into_iter().map(|(key, value)| (String::from_utf8(key).unwrap(), value)).collect()
    }

    #[test]
    fn what_sled_lacks_comes_from_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let (db, old) = (dir.path().join("db"), dir.path().join("old"));
        let mut kv = SledKv::open(dir.path()).unwrap();
        put(&mut kv, "a", b"1");
        kv.flush_db().unwrap();
        copy_dir(&db, &old);
        put(&mut kv, "a", b"2");
        put(&mut kv, "b", b"1");
        let mut batch = Batch::default();
        batch.delete(b"a".to_vec());
        batch.put(b"c".to_vec(), b"1".to_vec());
        kv.commit(batch).unwrap();
        kv.flush().unwrap();
        let expected = values(&kv);
        drop(kv);
        put_back(&old, &db);
        // The second time the log holds what is there by now.
        for _ in 0..2 {
            let kv = SledKv::open(dir.path()).unwrap();
            assert_eq!(values(&kv), expected);
            assert_eq!(kv.number, 4);
        }
    }

    #[test]
    fn an_older_log_takes_nothing_back() {
        let dir = tempfile::tempdir().unwrap();
        let (log, old) = (dir.path().join("log"), dir.path().join("old"));
        let mut kv = SledKv::open(dir.path()).unwrap();
        put(&mut kv, "a", b"1");
        put(&mut kv, "a", b"2");
        fs::copy(&log, &old).unwrap();
        put(&mut kv, "a", b"3");
        kv.flush_db().unwrap();
        put(&mut kv, "b", b"1");
        let expected = values(&kv);
        drop(kv);
        // The write of the last batch never came to the disk, and neither did the one before.
        put_back(&old, &log);
        let mut kv = SledKv::open(dir.path()).unwrap();
        assert_eq!(values(&kv), expected);
        put(&mut kv, "a", b"4");
        drop(kv);
        assert_eq!(SledKv::open(dir.path()).unwrap().get(b"a").unwrap().unwrap(), b"4");
    }

    #[test]
    fn a_store_that_lost_what_was_durable_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let (db, old) = (dir.path().join("db"), dir.path().join("old"));
        let mut kv = SledKv::open(dir.path()).unwrap();
        put(&mut kv, "a", b"1");
        kv.flush_db().unwrap();
        copy_dir(&db, &old);
        put(&mut kv, "a", b"2");
        kv.flush_db().unwrap();
        put(&mut kv, "b", b"1");
        drop(kv);
        put_back(&old, &db);
        assert!(matches!(SledKv::open(dir.path()), Err(KvError::Broken { .. })));
        let aside = move_aside(dir.path()).unwrap();
        assert!(aside.with_extension("log").exists());
        assert!(values(&SledKv::open(dir.path()).unwrap()).is_empty());
    }

    #[test]
    fn a_store_that_is_made_anew_takes_nothing_from_a_log() {
        let dir = tempfile::tempdir().unwrap();
        put(&mut SledKv::open(dir.path()).unwrap(), "a", b"1");
        fs::remove_file(dir.path().join("ready")).unwrap();
        assert!(values(&SledKv::open(dir.path()).unwrap()).is_empty());
    }

    #[test]
    fn few_rows_are_flushed_to_the_log_and_many_to_sled() {
        let dir = tempfile::tempdir().unwrap();
        let mut kv = SledKv::open(dir.path()).unwrap();
        let mut write = |from: usize, rows: usize| {
            let mut batch = Batch::default();
            for row in from..from + rows {
                batch.put(format!("{row:06}").into_bytes(), vec![7; 100]);
            }
            kv.commit(batch).unwrap();
            kv.flush().unwrap();
            (kv.log.rows(), kv.log.unwritten_rows())
        };
        assert_eq!(write(0, UNLOGGED_ROWS), (0, 0));
        assert_eq!(write(0, 1), (1, 0));
        // Behind what is in the log only there.
        assert_eq!(write(0, LOGGED_ROWS_MAX - 1), (LOGGED_ROWS_MAX, 0));
        // Never are there more between two flushes of sled.
        assert_eq!(write(0, 2), (2, 0));
        assert_eq!(write(0, LOGGED_ROWS_MAX), (0, 0));
    }
}
