//! When root and store are not of one history any more, the tree pairs anew (DESIGN.md §3).
//!
//! `.pleach/last` and the store both say (seq, start bits) of the last start or hour. A file newer
//! than the store knows: the store went back, it pairs by itself. A file older than the store wrote:
//! the disk went back, and what is missing on it must not count as deleted: somebody has to approve.

use std::io;

use pleach_protocol::path::TreePath;

use super::{Tree, TreeError};
use crate::kv::Kv;
use crate::root::{self, RootError};
use crate::rows::{self, EntryRow, Pairing, Space};
use crate::vfs::{RenameMode, Vfs};

const LAST: &[u8] = b"last";
const LAST_STAGED: &[u8] = b"last.new";
const LAST_BYTES_MAX: usize = 64;
/// Rows forgotten in one go.
const FORGET_ROWS: usize = 512;

/// A seq and the start bits under which it was the head.
pub(super) type Mark = (u64, u64);

/// Which of the two went back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Agreement {
    Same,
    StoreWentBack,
    DiskWentBack,
}

fn compare(file: Option<Mark>, last: Mark, next: Mark) -> Agreement {
    let never = (0, 0);
    match file {
        // The store never saw its mark through.
        _ if last == never && next == never => Agreement::Same,
        None if last == never => Agreement::Same,
        None => Agreement::DiskWentBack,
        Some(mark) if mark == last || mark == next => Agreement::Same,
        Some((seq, _)) if seq >= last.0.max(next.0) => Agreement::StoreWentBack,
        Some(_) => Agreement::DiskWentBack,
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Pairs anew where that was approved, or where the store went back.
    pub(super) fn agree_with_root(&mut self, replaced: bool) -> Result<(), TreeError> {
        let meta = self.index.meta();
        let (last, next) = (meta.last, meta.next_last);
        let file = self.read_last().map_err(|source| TreeError::Disk { what: "reading .pleach/last", source })?;
        if self.options.approved || replaced {
            tracing::warn!("the root was approved: the tree pairs with what is there");
            return self.pair_anew();
        }
        match compare(file, last, next) {
            Agreement::Same => self.settle_mark(file),
            Agreement::StoreWentBack => {
                tracing::warn!(
                    "the store is older than the root says: it pairs; what was deleted meanwhile may return"
                );
                self.renew_incarnation(self.options.fresh_incarnation())?;
                self.pair_anew()
            }
            Agreement::DiskWentBack => Err(RootError::WentBack.into()),
        }
    }

    /// A mark may have reached the disk although writing it failed: then it is the one that both know. Another
    /// attempt would overwrite the store's memory of it, and the disk would seem to be of a life that it never saw.
    fn settle_mark(&mut self, file: Option<Mark>) -> Result<(), TreeError> {
        let meta = self.index.meta();
        if meta.next_last == meta.last || file != Some(meta.next_last) {
            return Ok(());
        }
        let durable = root::private(&*self.vfs).and_then(|private| self.vfs.sync_dir(&private));
        durable.map_err(|source| TreeError::Disk { what: "making .pleach/last durable", source })?;
        let meta = self.index.meta_mut();
        meta.last = meta.next_last;
        Ok(())
    }

    /// Forgets what the disk showed: entries stay, the next scan pairs.
    fn pair_anew(&mut self) -> Result<(), TreeError> {
        let mut after = None;
        loop {
            let found = self.index.beneath(&TreePath::ROOT, after.as_ref(), FORGET_ROWS)?;
            let Some((last, _)) = found.last() else { break };
            after = Some(last.clone());
            for (path, row) in found.into_iter().filter(|(_, row)| row.shown.is_some()) {
                self.note_content(&path, row.shown.as_ref().and_then(|s| s.shown.state.as_ref()), None);
                self.index.put_row(&path, &EntryRow { shown: None, pairing: Pairing::ByTime, ..row });
            }
            self.index.commit_if_large()?;
        }
        self.forget_locals()?;
        let intents: Vec<(Vec<u8>, Vec<rows::Intent>)> =
            self.index.others(&[Space::Intent as u8], &[Space::Intent as u8 + 1], usize::MAX)?;
        for (key, _) in intents {
            self.index.delete(key);
        }
        let meta = self.index.meta_mut();
        meta.paired = false;
        meta.applied = 0;
        self.apply.restart();
        self.scan_due = true;
        Ok(self.index.flush()?)
    }

    /// Begins a new life of the journal: peers read it from its start, and tell all that they know.
    ///
    /// # Errors
    /// The store's.
    pub fn renew_incarnation(&mut self, incarnation: [u8; 16]) -> Result<(), TreeError> {
        self.index.meta_mut().incarnation = incarnation;
        Ok(self.index.flush()?)
    }

    /// Writes down, on the disk and in the store, how far both are, where that changed.
    ///
    /// # Errors
    /// The store's, or the disk's.
    pub fn mark_last(&mut self) -> Result<(), TreeError> {
        let mark = (self.index.meta().head, self.options.start);
        // A root that waits to pair has not paired.
        if self.waits || self.index.meta().last == mark {
            return Ok(());
        }
        // Never into a directory that took the root's place.
        self.check_root()?;
        if self.index.meta().next_last != self.index.meta().last {
            let file = self.read_last().map_err(|source| TreeError::Disk { what: "reading .pleach/last", source })?;
            self.settle_mark(file)?;
        }
        // Whichever of the two writes a crash lets through, one of the store's two marks is the file's.
        self.index.meta_mut().next_last = mark;
        self.index.flush()?;
        self.write_last(mark).map_err(|source| TreeError::Disk { what: "writing .pleach/last", source })?;
        self.index.meta_mut().last = mark;
        Ok(self.index.flush()?)
    }

    /// Whether no life of a store left its mark on this root.
    pub(super) fn is_unmarked(&self) -> Result<bool, TreeError> {
        let file = self.read_last().map_err(|source| TreeError::Disk { what: "reading .pleach/last", source })?;
        Ok(file.is_none() && self.index.meta().last == (0, 0))
    }

    fn read_last(&self) -> io::Result<Option<Mark>> {
        let file = match self.vfs.open_file(&root::private(&*self.vfs)?, LAST) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            other => other?,
        };
        let mut text = vec![0; LAST_BYTES_MAX];
        let n = self.vfs.read_at(&file, 0, &mut text)?;
        let text = String::from_utf8_lossy(&text[..n]).into_owned();
        let mut fields = text.split_whitespace();
        let seq = fields.next().and_then(|f| f.parse().ok());
        let start = fields.next().and_then(|f| u64::from_str_radix(f, 16).ok());
        // One that cannot be read says nothing of when: as if it were the oldest.
        Ok(seq.zip(start))
    }

    fn write_last(&self, (seq, start): Mark) -> io::Result<()> {
        let private = root::private(&*self.vfs)?;
        let file = self.vfs.create_temp(&private)?;
        self.vfs.write_at(&file, 0, format!("{seq} {start:016x}\n").as_bytes())?;
        let file = self.vfs.finish_temp(file)?;
        self.vfs.sync_data(&file)?;
        if self.vfs.stat(&private, LAST)?.is_none() {
            self.vfs.link_temp(&file, &private, LAST)?;
            return self.vfs.sync_dir(&private);
        }
        if self.vfs.stat(&private, LAST_STAGED)?.is_some() {
            self.vfs.remove_file(&private, LAST_STAGED)?;
        }
        self.vfs.link_temp(&file, &private, LAST_STAGED)?;
        self.vfs.rename(&private, LAST_STAGED, &private, LAST, RenameMode::Exchange)?;
        self.vfs.remove_file(&private, LAST_STAGED)?;
        self.vfs.sync_dir(&private)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_went_back_is_told_from_the_marks() {
        use Agreement::{DiskWentBack, Same, StoreWentBack};
        for (file, last, next, want) in [
            (None, (0, 0), (0, 0), Same),
            (Some((7, 1)), (0, 0), (0, 0), Same),
            (None, (0, 0), (5, 1), Same),
            (Some((5, 1)), (5, 1), (5, 1), Same),
            (Some((5, 1)), (5, 1), (9, 2), Same),
            (Some((9, 2)), (5, 1), (9, 2), Same),
            (Some((9, 3)), (5, 1), (5, 1), StoreWentBack),
            (Some((5, 2)), (5, 1), (5, 1), StoreWentBack),
            (Some((4, 7)), (5, 1), (5, 1), DiskWentBack),
            (None, (5, 1), (9, 2), DiskWentBack),
        ] {
            assert_eq!(compare(file, last, next), want, "{file:?} {last:?} {next:?}");
        }
    }
}
