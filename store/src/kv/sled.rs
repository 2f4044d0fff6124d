//! The store on disk: sled, used as was measured to be safe and small. The only module that names it.
//!
//! A directory holds `db` (sled's), two logs (ours, in front of it), `ready` (our marker that `db` was made whole) and `lock`.
//! A batch is durable once a log has it, and its rows stay in memory. When they are many, a thread puts them into sled in the
//! order of their keys, each with its last value, while the next batches go to the other log.
//! sled does not sync its first files: a cut in the first seconds left a store that does not open.
//! So they are synced here before the marker is written, and a `db` without marker is made anew.
//! A row that cannot be read later leaves the marker `suspect`: the next opening calls the store broken.
//! Written leaves never leave sled's memory, so the store is re-opened when enough was written.
//! A sled that failed to write is left behind as it is (`engine.rs`); the logs have what it lacks.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use self::engine::{Engine, Writer};
use super::layers::{self, Layer};
use super::log::Log;
use super::{Batch, Kv, KvError, Row};

/// Bytes written since opening at which the store is re-opened.
const GROWN_BYTES_MAX: u64 = 96 * 1024 * 1024;
/// What a row costs beside its bytes: a rewritten leaf holds its neighbours too.
const ROW_OVERHEAD_BYTES: u64 = 512;

/// The row with the number of the last batch; all others lie before it.
const NUMBER_KEY: &[u8] = &[0xff];
/// The logs in front of sled, which take turns.
const LOGS: [&str; 2] = ["log", "log2"];
/// Rows in memory at which they are put into sled.
const LAYER_ROWS_MAX: usize = 4_096;
/// Rows between two flushes of sled, at most: more were not measured to be safe.
const FLUSHED_ROWS_MAX: usize = 768;

/// A sled store. One owner.
pub struct SledKv {
    dir: PathBuf,
    engine: Option<Engine>,
    /// The first one takes the next batch.
    logs: [Log; 2],
    /// Rows of the batches in the first log.
    fresh: Layer,
    /// Those of the second one, as long as sled may lack them.
    moving: Option<Moving>,
    /// Of the last batch.
    number: u64,
    written_bytes: u64,
    _lock: File,
}

/// Rows that a thread puts into sled.
struct Moving {
    rows: Arc<Layer>,
    thread: JoinHandle<io::Result<()>>,
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
            for log in LOGS {
                remove(&dir.join(log)).map_err(io("remove the log of another store"))?;
            }
            drop(Engine::open(&db_dir)?);
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
        let engine = Engine::open(&db_dir)?;
        let open_log = |name| Log::open(&dir.join(name)).map_err(io("open its log"));
        let [(first, mut batches), (second, more)] = [open_log(LOGS[0])?, open_log(LOGS[1])?];
        batches.extend(more);
        let mut kv = Self {
            dir: dir.to_path_buf(),
            engine: Some(engine),
            logs: [first, second],
            fresh: Layer::new(),
            moving: None,
            number: 0,
            written_bytes: 0,
            _lock: lock,
        };
        kv.number = kv.stored_number()?;
        kv.take_in(batches)?;
        Ok(kv)
    }

    fn stored_number(&self) -> Result<u64, KvError> {
        let Some(row) = self.get(NUMBER_KEY)? else { return Ok(0) };
        row.try_into().map(u64::from_be_bytes).map_err(|_| self.broken("the number of its last batch is none"))
    }

    fn broken(&self, reason: &str) -> KvError {
        KvError::Broken { path: self.dir.display().to_string(), reason: reason.into() }
    }

    /// Puts the batches of the logs into sled that it lacks.
    fn take_in(&mut self, mut batches: Vec<(u64, Batch)>) -> Result<(), KvError> {
        let known = self.number;
        batches.sort_by_key(|(number, _)| *number);
        for (number, batch) in batches.into_iter().filter(|(number, _)| *number > known) {
            if number != self.number + 1 {
                // Rows that were told and acknowledged are not here any more.
                return Err(self.broken("it lost batches that it had made durable"));
            }
            self.take(batch);
        }
        self.move_fresh()?;
        self.settle()
    }

    /// Makes a batch visible.
    fn take(&mut self, batch: Batch) {
        self.number += 1;
        self.fresh.extend(batch.rows);
    }

    /// Begins to put the rows in memory into sled; the first log, which has them, is the second one from now on.
    fn move_fresh(&mut self) -> Result<(), KvError> {
        self.settle()?;
        if self.fresh.is_empty() {
            return Ok(());
        }
        let writer = self.engine()?.writer();
        // Of a batch that no log has, a crash would leave the part that sled has by then.
        self.write_log()?;
        let rows = Arc::new(std::mem::take(&mut self.fresh));
        let lengths = rows.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len));
        self.written_bytes += lengths.sum::<usize>() as u64 + rows.len() as u64 * ROW_OVERHEAD_BYTES;
        self.logs.swap(0, 1);
        self.logs[0].clear();
        let (moved, number) = (Arc::clone(&rows), self.number);
        match thread::Builder::new().name("store".into()).spawn(move || put_in(&writer, &moved, number)) {
            Ok(thread) => self.moving = Some(Moving { rows, thread }),
            Err(error) => return Err(self.poison("start a thread", error)),
        }
        Ok(())
    }

    fn write_log(&mut self) -> Result<(), KvError> {
        self.logs[0].write().map_err(|source| self.poison("make batches durable", source))
    }

    /// Whether a thread is putting rows into sled.
    fn is_moving(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| !moving.thread.is_finished())
    }

    /// Waits until the rows that are being put into sled are in it.
    fn settle(&mut self) -> Result<(), KvError> {
        let Some(moving) = self.moving.take() else { return Ok(()) };
        let done = moving.thread.join().unwrap_or_else(|_| Err(io::Error::other("its engine panicked")));
        done.map_err(|source| self.poison("make batches durable", source))
    }

    fn close(&mut self) {
        if let Some(moving) = self.moving.take() {
            // What it says is of no use any more: the log has the rows.
            drop(moving.thread.join());
        }
        self.engine = None;
    }

    fn engine(&self) -> Result<&Engine, KvError> {
        self.engine.as_ref().ok_or(KvError::Poisoned)
    }

    /// A read failed: what the store holds cannot be trusted any more, unless it is for a write that failed.
    fn suspect(&self, what: &'static str, source: io::Error) -> KvError {
        if !self.engine.as_ref().is_some_and(|engine| engine.failed_to_write(&source))
            && let Err(error) = fs::write(self.dir.join("suspect"), source.to_string())
        {
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
    // Never are they seen beside another store.
    for log in LOGS {
        match fs::rename(dir.join(log), aside.with_extension(log)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => sync_path(dir)?,
        }
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
    take_lock(&file)?;
    Ok(file)
}

fn take_lock(file: &File) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            // A child of this process that has not come to its exec yet still holds what we let go.
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_WAIT => {
                thread::sleep(Duration::from_millis(5));
            }
            taken => return Ok(taken?),
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

/// Puts rows into sled.
fn put_in(writer: &Writer, rows: &Layer, number: u64) -> io::Result<()> {
    let mut left = rows.iter().peekable();
    while left.peek().is_some() {
        writer.write(next_batch(&mut left, number))?;
    }
    Ok(())
}

/// The next rows for sled, with the last ones the number that says that it has all.
fn next_batch<'r>(
    left: &mut Peekable<impl Iterator<Item = (&'r Vec<u8>, &'r Option<Vec<u8>>)>>,
    number: u64,
) -> sled::Batch {
    let mut batch = sled::Batch::default();
    for (key, value) in left.by_ref().take(FLUSHED_ROWS_MAX) {
        match value {
            Some(value) => batch.insert(&key[..], &value[..]),
            None => batch.remove(&key[..]),
        }
    }
    if left.peek().is_none() {
        batch.insert(NUMBER_KEY, number.to_be_bytes());
    }
    batch
}

impl Drop for SledKv {
    /// Has sled take what only the logs have, or the next opening would wait for that.
    fn drop(&mut self) {
        if self.engine.is_some()
            && let Err(error) = self.move_fresh().and_then(|()| self.settle())
        {
            tracing::warn!(%error, "the store is closed before it has its last rows; the next opening takes them from its log");
        }
        self.close();
    }
}

impl Kv for SledKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        let moving = self.moving.as_ref().and_then(|moving| moving.rows.get(key));
        if let Some(row) = self.fresh.get(key).or(moving) {
            self.engine()?;
            return Ok(row.clone());
        }
        let found = self.engine()?.db().get(key).map_err(|source| self.suspect("read a row", source))?;
        Ok(found.map(|value| value.to_vec()))
    }

    fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, KvError> {
        // sled's iterator does not stop at an upper bound: behind the last row within it, it reads
        // every leaf to the end of the store (alpha.124, `Iter::next`). So the bound is ours.
        let (end, none) = (end.unwrap_or(NUMBER_KEY), Layer::new());
        let stored = self.engine()?.db().range(start.to_vec()..);
        let stored = stored.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec())));
        let within = stored.take_while(|row| row.as_ref().map_or(true, |(key, _)| &key[..] < end));
        let layers = [&self.fresh, self.moving.as_ref().map_or(&none, |moving| &moving.rows)];
        layers::overlaid(layers::newest(layers, (start, end)), within, limit, Ok)
            .map_err(|source| self.suspect("read rows", source))
    }

    fn commit(&mut self, batch: Batch) -> Result<(), KvError> {
        self.engine()?;
        self.logs[0].push(self.number + 1, &batch);
        self.take(batch);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), KvError> {
        self.engine()?;
        self.write_log()?;
        if !self.is_moving() {
            self.settle()?;
        }
        if self.fresh.len() >= LAYER_ROWS_MAX || self.logs[0].is_full() { self.move_fresh() } else { Ok(()) }
    }

    fn reopen_if_grown(&mut self) -> Result<bool, KvError> {
        if self.written_bytes < GROWN_BYTES_MAX {
            return Ok(false);
        }
        self.settle()?;
        self.close();
        self.engine = Some(Engine::open(&self.dir.join("db"))?);
        self.written_bytes = 0;
        Ok(true)
    }
}

mod engine;
#[cfg(test)]
mod tests;
