//! Events for hooks: noted in the batch that says what happened, the newest of each path.

use std::collections::BTreeSet;

use pleach_protocol::path::TreePath;

use super::{Index, Result};
use crate::kv::Kv;
use crate::rows::{self, EventRow, HookOn};

/// Rows deleted or read in one go.
const ROWS: usize = 500;

/// What is noted, and how far.
#[derive(Debug, Default)]
pub(super) struct Events {
    noted: BTreeSet<HookOn>,
    /// The number of the newest event but of [`HookOn::Sent`], or above it.
    last: u64,
    /// The same of those.
    last_sent: u64,
}

impl<K: Kv> Index<K> {
    /// Says for what there are hooks: only that is noted.
    pub fn note_events_of(&mut self, noted: BTreeSet<HookOn>) {
        let (last, last_sent) = (self.meta.next_id, self.meta.head);
        self.events = Events { noted, last, last_sent };
    }

    /// Whether events of a kind are noted.
    pub fn notes(&self, on: HookOn) -> bool {
        self.events.noted.contains(&on)
    }

    /// The number that an event of now, or of before, does not exceed.
    pub const fn last_event(&self, on: HookOn) -> u64 {
        match on {
            HookOn::Sent => self.events.last_sent,
            _ => self.events.last,
        }
    }

    /// Notes an event with the next batch. The one before it of the same path gives way: so there are never more
    /// than there are paths.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn note_event(&mut self, on: HookOn, path: &TreePath, seq: u64, dir: bool) -> Result<()> {
        if !self.notes(on) {
            return Ok(());
        }
        // What was sent is counted as peers count.
        let number = if on == HookOn::Sent { seq } else { self.next_id() };
        let by_path = rows::event_path_key(on, path);
        if let Some(old) = self.get::<u64>(&by_path)? {
            self.delete(rows::event_key(on, old));
        }
        self.put(rows::event_key(on, number), &EventRow { seq, path: path.clone(), dir });
        self.put(by_path, &number);
        match on {
            HookOn::Sent => self.events.last_sent = number,
            _ => self.events.last = number,
        }
        Ok(())
    }

    /// Events behind a number and up to another, in order, at most so many.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn events(&self, on: HookOn, after: u64, upto: u64, limit: usize) -> Result<Vec<(u64, EventRow)>> {
        let start = rows::event_key(on, after.saturating_add(1));
        let end = rows::event_key(on, upto.saturating_add(1));
        if start >= end {
            return Ok(Vec::new());
        }
        let found: Vec<(Vec<u8>, EventRow)> = self.others(&start, &end, limit)?;
        Ok(found.into_iter().filter_map(|(key, row)| Some((rows::event_number(&key)?, row))).collect())
    }

    /// Forgets events up to a number.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn forget_events(&mut self, on: HookOn, upto: u64) -> Result<()> {
        loop {
            let found = self.events(on, 0, upto, ROWS)?;
            let last = found.len() < ROWS;
            for (number, row) in found {
                self.delete(rows::event_key(on, number));
                self.delete(rows::event_path_key(on, &row.path));
            }
            if last {
                return Ok(());
            }
            self.commit_if_large()?;
        }
    }
}
