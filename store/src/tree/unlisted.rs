//! Files in the vault that no row speaks of: a store that was lost, or put back, does not know what it filed, and what
//! lay in staging when it went is nobody's. Each may be the last copy of a content that a peer waits for, so they are
//! read, in the background, and listed as versions of no path ([`TreePath::ROOT`]).

use std::collections::BTreeSet;
use std::io;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::mint::Shown;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::view::State;

use super::displace::id_name;
use super::{Tree, TreeError, content_of, is_due};
use crate::kv::Kv;
use crate::look::{access_of, stamp_of};
use crate::root::Place;
use crate::rows::VaultRow;
use crate::vfs::{Kind, Meta, Vfs};

/// Why such a row is in the vault.
pub(super) const REASON_FOUND: &str = "found";
/// Bytes that one call of the applier reads: the owner has others to serve.
const STEP_BYTES: u64 = 32 * 1024 * 1024;
/// Files that one call begins.
const STEP_FILES: usize = 64;
/// A piece that is read in one go.
const READ_BYTES: usize = 128 * 1024;
/// When what could not be read is tried again.
const PAUSE_SECS: i64 = 60;

/// What is to be listed yet.
pub(super) struct Unlisted<V: Vfs> {
    ids: BTreeSet<u64>,
    reading: Option<Reading<V>>,
    /// What could not be read.
    failed: BTreeSet<u64>,
    /// When it is tried again.
    retry_at: Time,
}

impl<V: Vfs> Default for Unlisted<V> {
    fn default() -> Self {
        Self { ids: BTreeSet::new(), reading: None, failed: BTreeSet::new(), retry_at: Time::default() }
    }
}

struct Reading<V: Vfs> {
    id: u64,
    file: V::File,
    meta: Meta,
    hasher: blake3::Hasher,
    read: u64,
}

impl<V: Vfs> Unlisted<V> {
    pub(super) fn add(&mut self, id: u64) {
        self.ids.insert(id);
    }

    /// A row speaks of it.
    pub(super) fn is_listed(&mut self, id: u64) {
        self.ids.remove(&id);
    }
}

impl<V: Vfs> Reading<V> {
    /// Goes on within a budget. The value at the end; an error where it is being written.
    fn step(&mut self, vfs: &V, left: &mut u64) -> io::Result<Option<Value>> {
        let mut buffer = vec![0; READ_BYTES];
        while *left > 0 {
            let n = vfs.read_at(&self.file, self.read, &mut buffer)?;
            if n == 0 {
                let still = stamp_of(&vfs.stat_file(&self.file)?) == stamp_of(&self.meta);
                let hash = Hash(*self.hasher.finalize().as_bytes());
                return if still { Ok(Some(Value::File { size: self.read, hash })) } else { Err(changing()) };
            }
            self.hasher.update(&buffer[..n]);
            self.read += n as u64;
            *left = left.saturating_sub(n as u64);
        }
        Ok(None)
    }
}

fn changing() -> io::Error {
    io::Error::other("somebody writes into it")
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Whether files of the vault are to be read at the next call of the applier.
    pub(super) fn is_listing(&self) -> bool {
        let Unlisted { ids, reading, failed, retry_at } = &self.unlisted;
        let due = || !failed.is_empty() && is_due(*retry_at, self.now());
        self.index.meta().paired && (reading.is_some() || !ids.is_empty() || due())
    }

    /// Reads on, and lists what was read.
    pub(super) fn list_on(&mut self) -> Result<(), TreeError> {
        if !self.is_listing() {
            return Ok(());
        }
        if self.unlisted.ids.is_empty() {
            self.unlisted.ids = std::mem::take(&mut self.unlisted.failed);
        }
        let place = self.enter()?;
        let mut left = STEP_BYTES;
        for _ in 0..STEP_FILES {
            let reading = match self.unlisted.reading.take() {
                Some(reading) => reading,
                None => {
                    let Some(id) = self.unlisted.ids.pop_first() else { break };
                    match self.begin_listing(&place, id) {
                        Ok(Some(reading)) => reading,
                        Ok(None) => continue,
                        Err(error) => {
                            self.list_later(id, &error);
                            continue;
                        }
                    }
                }
            };
            self.read_listed(reading, &mut left);
            if left == 0 {
                break;
            }
        }
        Ok(self.index.commit_if_large()?)
    }

    /// Opens a file; what is none has its row at once. None where there is nothing to read.
    fn begin_listing(&mut self, place: &Place<V>, id: u64) -> io::Result<Option<Reading<V>>> {
        let name = id_name(id);
        let Some(meta) = self.vfs.stat(&place.vault, &name)? else { return Ok(None) };
        match meta.kind {
            Kind::File => {
                let file = self.vfs.open_file(&place.vault, &name)?;
                let meta = self.vfs.stat_file(&file)?;
                Ok(Some(Reading { id, file, meta, hasher: blake3::Hasher::new(), read: 0 }))
            }
            Kind::Symlink => {
                let target = self.vfs.read_link(&place.vault, &name)?;
                self.list_version(id, &meta, Value::Symlink { target });
                Ok(None)
            }
            Kind::Dir | Kind::Special => Ok(None),
        }
    }

    fn read_listed(&mut self, mut reading: Reading<V>, left: &mut u64) {
        match reading.step(&*self.vfs, left) {
            Ok(None) => self.unlisted.reading = Some(reading),
            Ok(Some(value)) => self.list_version(reading.id, &reading.meta, value),
            Err(error) => self.list_later(reading.id, &error),
        }
    }

    fn list_version(&mut self, id: u64, meta: &Meta, value: Value) {
        let (size, hash) = content_of(&value);
        let access = access_of(meta, None, self.owners);
        let row = VaultRow {
            hash,
            size: size.unwrap_or(0),
            state: State { value, mtime: Some(meta.mtime), access: Some(access) },
            // When it was displaced is not known: it stays for as long as if it had been now.
            time: self.now(),
            reason: REASON_FOUND.to_owned(),
            open: false,
            stamp: Some(stamp_of(meta)),
            shown: Shown::default(),
        };
        self.put_version(&TreePath::ROOT, id, &row);
        self.arrivals += 1;
    }

    fn list_later(&mut self, id: u64, error: &io::Error) {
        let name = String::from_utf8_lossy(&id_name(id)).into_owned();
        tracing::warn!(name, %error, "a file in the vault cannot be listed yet");
        let now = self.now();
        self.unlisted.failed.insert(id);
        self.unlisted.retry_at = Time::new(now.secs.saturating_add(PAUSE_SECS), now.nanos);
    }
}
