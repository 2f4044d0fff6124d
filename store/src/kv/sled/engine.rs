//! sled itself, and what becomes of one that failed to write.
//!
//! After a flush that failed the next one waits for ever for its end (1.0.0-alpha.124, `ObjectCache::flush`), and whatever is
//! dropped of it flushes. So such an engine is left behind as it is, never used nor dropped, and the store's files, which are as
//! after a kill, get another directory, for the engine still holds the locks of theirs. One that only lacks room to end is kept
//! until there is some.

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{KvError, sync_path, sync_tree, take_lock};

/// Part of the stored format: changing it needs a new store version.
const LEAF_FANOUT: usize = 64;
const CACHE_BYTES: usize = 32 * 1024 * 1024;
/// A file of the store that is emptier is made compact, a little with each flush: what is written anew for
/// that is synced, too.
const FILL_RATIO: f32 = 0.5;
/// Milliseconds between two flushes that sled begins itself: 35 years. Without a number each dropped iterator flushes.
const OWN_FLUSHES_MS: usize = 1 << 40;
/// Bytes that are free where the store is, or nothing is written: the rest of a flush must not find a full disk.
const ROOM_BYTES_MIN: u64 = 16 * 1024 * 1024;
/// Engines that a process leaves behind: each keeps its memory and a hundred files.
const LEFT_MAX: usize = 4;

pub(super) type Db = sled::Db<LEAF_FANOUT>;

/// Engines that are to end once there is room.
static KEPT: Mutex<Vec<Engine>> = Mutex::new(Vec::new());
/// Directories whose engines were left behind.
static LEFT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// An open sled.
pub(super) struct Engine {
    /// None once it is dropped.
    db: Option<Db>,
    state: Arc<State>,
}

/// A handle that writes, for another thread, which ends before the engine does.
pub(super) struct Writer {
    db: Db,
    state: Arc<State>,
}

struct State {
    dir: PathBuf,
    /// Whether a write failed, or panicked; held while one is under way.
    failed: Mutex<bool>,
}

impl Engine {
    /// Opens or makes what is in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self, KvError> {
        let io = |source| KvError::Io { what: "open its engine", source };
        let parent = dir.parent().unwrap_or(dir);
        find_room(parent).map_err(io)?;
        let kept: Vec<Self> = lock(&KEPT).extract_if(.., |engine| engine.state.dir == dir).collect();
        drop(kept);
        free(dir).map_err(io)?;
        let broken = |reason: String| KvError::Broken { path: dir.display().to_string(), reason };
        let mut config = sled::Config::new()
            .path(dir)
            .cache_capacity_bytes(CACHE_BYTES)
            .flush_every_ms(Some(OWN_FLUSHES_MS))
            .zstd_compression_level(1);
        config.target_heap_file_fill_ratio = FILL_RATIO;
        // An alpha may panic over a damaged file; that is a broken store, not a broken agent.
        match catch_unwind(AssertUnwindSafe(|| config.open::<LEAF_FANOUT>())) {
            Ok(Ok(db)) => {
                let state = State { dir: dir.to_path_buf(), failed: Mutex::new(false) };
                Ok(Self { db: Some(db), state: Arc::new(state) })
            }
            Ok(Err(error)) if says_damage(&error) => Err(broken(error.to_string())),
            Ok(Err(error)) => Err(io(error)),
            Err(_) => Err(broken("its engine panicked".into())),
        }
    }

    /// What is read from.
    #[expect(clippy::expect_used, reason = "only drop takes it")]
    pub(super) fn db(&self) -> &Db {
        self.db.as_ref().expect("it is open")
    }

    /// What is written with.
    pub(super) fn writer(&self) -> Writer {
        Writer { db: self.db().clone(), state: Arc::clone(&self.state) }
    }

    /// Whether a read failed for a write that did: sled says so to everybody.
    pub(super) fn failed_to_write(&self, error: &io::Error) -> bool {
        let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        full || *lock(&self.state.failed)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(db) = self.db.take() else { return };
        let dir = &self.state.dir;
        let sound = !*lock(&self.state.failed) && db.check_error().is_ok();
        // Its end flushes once more, to make files compact.
        if sound && find_room(dir).is_err() {
            lock(&KEPT).push(Self { db: Some(db), state: Arc::clone(&self.state) });
        } else if sound && db.flush().is_ok() {
            drop(db);
        } else {
            tracing::warn!(dir = %dir.display(), "the store's engine failed to write, and is left behind");
            lock(&LEFT).push(dir.clone());
            std::mem::forget(db);
        }
    }
}

impl Writer {
    /// Makes a batch durable.
    pub(super) fn write(&self, batch: sled::Batch) -> io::Result<()> {
        let mut failed = lock(&self.state.failed);
        if *failed {
            return Err(io::Error::other("its engine failed before"));
        }
        find_room(&self.state.dir)?;
        *failed = true;
        self.db.apply_batch(batch)?;
        self.db.flush()?;
        *failed = false;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether sled names what it found in its files, and not what the system refused.
fn says_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof, Unsupported};
    matches!(error.kind(), InvalidData | UnexpectedEof | Unsupported | NotFound)
}

/// Says whether there is room to write.
fn find_room(dir: &Path) -> io::Result<()> {
    let disk = rustix::fs::statvfs(dir)?;
    let free = if rustix::process::geteuid().is_root() { disk.f_bfree } else { disk.f_bavail };
    if free.saturating_mul(disk.f_frsize) < ROOM_BYTES_MIN {
        let wanted = ROOM_BYTES_MIN >> 20;
        let text = format!("less than {wanted} MiB are free in {}; it goes on once there is room", dir.display());
        return Err(io::Error::new(io::ErrorKind::StorageFull, text));
    }
    Ok(())
}

/// Waits until nobody holds the locks of a directory, or leaves them to an engine that is left behind.
fn free(dir: &Path) -> io::Result<()> {
    let held = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => take_lock(&opened?),
    };
    match held {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            let left = lock(&LEFT);
            if !left.iter().any(|path| path == dir) {
                return Err(error);
            }
            if left.len() > LEFT_MAX {
                return Err(io::Error::other("its engine failed too often: start the agent anew"));
            }
            move_files(dir)
        }
        taken => taken,
    }
}

/// Gives the files in `dir` a new directory of that name.
fn move_files(dir: &Path) -> io::Result<()> {
    let next = dir.with_extension("next");
    match fs::remove_dir_all(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => link_tree(dir, &next)?,
    }
    sync_tree(&next)?;
    let here = rustix::fs::CWD;
    rustix::fs::renameat_with(here, &next, here, dir, rustix::fs::RenameFlags::EXCHANGE)?;
    dir.parent().map_or(Ok(()), sync_path)?;
    fs::remove_dir_all(&next)
}

fn link_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() { link_tree(&entry.path(), &to)? } else { fs::hard_link(entry.path(), &to)? }
    }
    Ok(())
}
