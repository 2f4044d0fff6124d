//! A write-ahead log in front of the engine: one file, one sync a batch.
//!
//! A flush of the engine syncs a file for each size of leaf that changed, then its own log, then a directory. Here a batch is
//! durable after one sync, and the engine is flushed once for many of them. Batches are numbered, and the engine stores the
//! number of the last one with its rows, as one unit: an opening puts in what it lacks and nothing else, so that it does not matter
//! which of the two a crash left behind the other.
//!
//! Once the engine was flushed, the file is written from its beginning again. It is full of zeros when new, because a sync of what
//! is overwritten costs the file system no commit of its own.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Batch;

/// A log that holds so much is to be cleared.
pub(super) const LOG_BYTES: usize = 2 * 1024 * 1024;
/// Length of the rows (u32), number of the batch (u64), BLAKE3 of number and rows; all little-endian.
const HEAD_BYTES: usize = 4 + 8 + blake3::OUT_LEN;
/// Stands for the length of the value of a row that is deleted.
const DELETED: u32 = u32::MAX;

/// The log of one store.
pub(super) struct Log {
    file: File,
    /// Bytes that are durable here and may not be in the engine.
    used: u64,
    /// What was pushed since.
    unwritten: Vec<u8>,
}

impl Log {
    /// Opens the log, making it where there is none; returns the batches that it holds, by ascending numbers.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<(u64, Batch)>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = std::fs::read(path)?;
        if bytes.len() < LOG_BYTES {
            // What a crash left of a new one is zeros, or nothing.
            file.write_all_at(&vec![0; LOG_BYTES - bytes.len()], bytes.len() as u64)?;
            file.sync_all()?;
            path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())?;
            bytes.resize(LOG_BYTES, 0);
        }
        let batches = read(&bytes);
        Ok((Self { file, used: 0, unwritten: Vec::new() }, batches))
    }

    /// Takes up a batch, to be written next.
    pub(super) fn push(&mut self, number: u64, batch: &Batch) {
        let begin = self.unwritten.len();
        self.unwritten.resize(begin + HEAD_BYTES, 0);
        for (key, value) in &batch.rows {
            self.unwritten.extend(length(key).to_le_bytes());
            self.unwritten.extend(value.as_ref().map_or(DELETED, |value| length(value)).to_le_bytes());
            self.unwritten.extend(key);
            self.unwritten.extend(value.iter().flatten());
        }
        if let Some((head, rows)) = self.unwritten.get_mut(begin..).and_then(|r| r.split_at_mut_checked(HEAD_BYTES)) {
            let fields = [&length(rows).to_le_bytes()[..], &number.to_le_bytes(), &hash(number, rows)].concat();
            head.copy_from_slice(&fields);
        }
    }

    /// Whether it holds as much as it should.
    pub(super) const fn is_full(&self) -> bool {
        self.used >= LOG_BYTES as u64
    }

    /// Makes durable what was taken up.
    pub(super) fn write(&mut self) -> io::Result<()> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        self.file.write_all_at(&self.unwritten, self.used)?;
        self.file.sync_data()?;
        self.used += self.unwritten.len() as u64;
        self.unwritten.clear();
        self.unwritten.shrink_to(LOG_BYTES);
        Ok(())
    }

    /// The engine has made durable all that was written: begins anew.
    pub(super) const fn clear(&mut self) {
        self.used = 0;
    }
}

/// Rows of an index are far smaller than 4 GiB, and so are its batches.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

fn hash(number: u64, rows: &[u8]) -> [u8; blake3::OUT_LEN] {
    *blake3::Hasher::new().update(&number.to_le_bytes()).update(rows).finalize().as_bytes()
}

/// The batches at the beginning of a log, as far as they are whole and follow one another: behind them lie those of earlier times.
fn read(mut bytes: &[u8]) -> Vec<(u64, Batch)> {
    let mut batches: Vec<(u64, Batch)> = Vec::new();
    while let Some((number, batch)) = read_batch(&mut bytes) {
        if batches.last().is_some_and(|(last, _)| last.checked_add(1) != Some(number)) {
            break;
        }
        batches.push((number, batch));
    }
    batches
}

fn read_batch(bytes: &mut &[u8]) -> Option<(u64, Batch)> {
    let size = u32::from_le_bytes(take(bytes)?);
    let number = u64::from_le_bytes(take(bytes)?);
    let hashed: [u8; blake3::OUT_LEN] = take(bytes)?;
    let (mut rows, rest) = bytes.split_at_checked(size as usize)?;
    *bytes = rest;
    if hash(number, rows) != hashed {
        return None;
    }
    let mut batch = Batch::default();
    while !rows.is_empty() {
        let (key, value) = (u32::from_le_bytes(take(&mut rows)?), u32::from_le_bytes(take(&mut rows)?));
        let key = split(&mut rows, key)?;
        match value {
            DELETED => batch.delete(key),
            value => batch.put(key, split(&mut rows, value)?),
        }
    }
    Some((number, batch))
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*taken)
}

fn split(bytes: &mut &[u8], at: u32) -> Option<Vec<u8>> {
    let (taken, rest) = bytes.split_at_checked(at as usize)?;
    *bytes = rest;
    Some(taken.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(number: u64, rows: usize) -> Batch {
        let mut batch = Batch::default();
        for row in 0..rows {
            batch.put(format!("{row}").into_bytes(), vec![number.to_le_bytes()[0]; 20 + row]);
        }
        batch.delete(b"gone".to_vec());
        batch
    }

    fn rows_of(batches: &[(u64, Batch)]) -> Vec<(u64, usize)> {
        batches.iter().map(|(number, batch)| (*number, batch.rows.len())).collect()
    }

    fn write(log: &mut Log, number: u64, rows: usize) {
        log.push(number, &batch(number, rows));
        log.write().unwrap();
    }

    #[test]
    fn what_was_written_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut log, batches) = Log::open(&path).unwrap();
        assert!(batches.is_empty());
        write(&mut log, 7, 3);
        log.push(8, &batch(8, 0));
        log.push(9, &batch(9, 1));
        log.write().unwrap();
        log.push(10, &batch(10, 1));
        let (_, batches) = Log::open(&path).unwrap();
        assert_eq!(rows_of(&batches), [(7, 4), (8, 1), (9, 2)]);
        assert_eq!(batches[0].1.rows, batch(7, 3).rows);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), LOG_BYTES as u64);
    }

    #[test]
    fn what_lies_behind_the_last_batch_is_of_earlier_times() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut log, _) = Log::open(&path).unwrap();
        for number in 1..=5 {
            write(&mut log, number, 2);
        }
        log.clear();
        write(&mut log, 6, 2);
        // The next one of the old ones is whole and begins just there.
        let (_, batches) = Log::open(&path).unwrap();
        assert_eq!(rows_of(&batches), [(6, 3)]);
    }

    #[test]
    fn no_change_to_a_batch_passes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut log, _) = Log::open(&path).unwrap();
        write(&mut log, 1, 2);
        let end = usize::try_from(log.used).unwrap();
        write(&mut log, 2, 2);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..end {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(read(&bytes).is_empty(), "{at}");
        }
        for at in end..2 * end {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x80;
            assert_eq!(rows_of(&read(&bytes)), [(1, 3)], "{at}");
            assert_eq!(rows_of(&read(&whole[..at])), [(1, 3)], "{at}");
        }
    }

    #[test]
    fn a_large_batch_makes_it_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut log, _) = Log::open(&path).unwrap();
        let mut large = Batch::default();
        large.put(b"large".to_vec(), vec![1; 2 * LOG_BYTES]);
        log.push(1, &large);
        log.write().unwrap();
        assert!(log.is_full());
        assert_eq!(rows_of(&Log::open(&path).unwrap().1), [(1, 1)]);
    }
}
