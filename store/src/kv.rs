//! The small key-value trait behind which the store's engine stands.
//!
//! Keys and values are bytes; what they mean is the index's business. Only `kv::sled` names sled.

pub(crate) mod layers;
mod log;
pub mod memory;
pub mod sled;

/// Says what a key-value store could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The store could not be opened or does not verify; it must be moved aside.
    #[error("the store at {path} is broken: {reason}")]
    Broken {
        /// Where it lies.
        path: String,
        /// What the engine said.
        reason: String,
    },
    /// An operation failed; nothing more is taken from or given to the store until it is re-opened.
    #[error("the store could not {what}")]
    Io {
        /// The operation, as a verb phrase ("write a batch").
        what: &'static str,
        /// What the engine said.
        #[source]
        source: std::io::Error,
    },
    /// An earlier operation failed.
    #[error("the store is closed after an earlier failure")]
    Poisoned,
}

/// Rows to put (`Some`) and to delete (`None`), sorted by key, each key once.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The rows.
    pub rows: std::collections::BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Batch {
    /// Puts a row.
    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.rows.insert(key, Some(value));
    }

    /// Deletes a row, which need not exist.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.rows.insert(key, None);
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// A row as read: key, value.
pub type Row = (Vec<u8>, Vec<u8>);

/// An ordered map of bytes with atomic batches. One owner; blocking calls.
pub trait Kv: Send {
    /// Reads one row.
    ///
    /// # Errors
    /// The engine's.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;

    /// Reads the first `limit` rows with `start <= key` (`< end` where given), in order.
    ///
    /// # Errors
    /// The engine's.
    fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, KvError>;

    /// Makes a batch visible to reads, all of it or nothing, also after a crash.
    /// It is durable only after the next [`Kv::flush`]; batches become durable in order.
    ///
    /// # Errors
    /// The engine's; the store is poisoned then.
    fn commit(&mut self, batch: Batch) -> Result<(), KvError>;

    /// Makes every batch committed so far durable.
    ///
    /// # Errors
    /// The engine's; the store is poisoned then.
    fn flush(&mut self) -> Result<(), KvError>;

    /// Re-opens a store that has grown in memory; nothing above it notices.
    ///
    /// # Errors
    /// The engine's; the store is poisoned then.
    fn reopen_if_grown(&mut self) -> Result<bool, KvError> {
        Ok(false)
    }
}
