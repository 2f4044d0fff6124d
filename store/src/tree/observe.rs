//! Looking at paths and minting what differs from what was shown.

use std::io;

use pleach_protocol::entry::Value;
use pleach_protocol::mint::{self, Circumstances, Observation, Shown};
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::view::{self, State};
use pleach_protocol::wire::First;

use super::{Dirty, MOUNTS_MAX, Tree, TreeError};
use crate::kv::Kv;
use crate::look::{self, Care, Found, Look, Reads};
use crate::root::Place;
use crate::rows::{EntryRow, Pairing, ShownRow};
use crate::vfs::{Kind, Vfs};

/// Rows of a vanished directory that are looked at in one go.
const SUBTREE_ROWS: usize = 1_000;
/// What a look led to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Observed {
    /// Nothing, or nothing that peers must hear.
    Same,
    /// A change was minted.
    Minted,
    /// A change that is told to nobody, for the tree only receives.
    Local,
    /// A writer is at work: look again when they are done.
    Busy,
    /// It is long, and not read to its end yet.
    Unread,
    /// The path is ignored, skipped, or not there to be judged.
    Skipped,
    /// The path could not be read; it is listed as a problem.
    Problem,
}

/// Whether there is no directory (any more) where one was to be opened.
pub(super) fn is_no_dir(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Looks at one path and mints what a user changed. `rehash` distrusts the stamp, `take_open`
    /// takes a file that is still open for writing.
    ///
    /// # Errors
    /// [`TreeError`]; what concerns only this path is a problem, not an error.
    pub fn observe(&mut self, path: &TreePath, rehash: bool, take_open: bool) -> Result<Observed, TreeError> {
        let place = self.enter()?;
        self.observe_in(&place, path, rehash, take_open)
    }

    pub(super) fn observe_in(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        rehash: bool,
        take_open: bool,
    ) -> Result<Observed, TreeError> {
        self.observe_reading(place, path, Dirty { rehash, take_open }, Reads::All)
    }

    pub(super) fn observe_reading(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        Dirty { rehash, take_open }: Dirty,
        reads: Reads<'_, V>,
    ) -> Result<Observed, TreeError> {
        if self.waits {
            return Ok(Observed::Skipped);
        }
        if self.options.ignore.ignored(path, false) {
            // What was listed against it while it was not is over.
            self.seen_again(path, true);
            self.seen_again(path, false);
            return Ok(Observed::Skipped);
        }
        let row = self.index.row(path)?;
        let care = Care { rehash, take_open, ..self.care() };
        let known = self.known_there(path, &row)?;
        let seen = match self.open_parent(place, path) {
            Ok(Some(dir)) => self.look_at(&dir, path, known.as_ref(), (care, reads)),
            Ok(None) => Ok(Look::Gone),
            Err(error) => Err(error),
        };
        self.judge(path, row, seen)
    }

    /// Looks at a name, of which `known` was shown last.
    pub(super) fn look_at(
        &self,
        dir: &V::Dir,
        path: &TreePath,
        known: Option<&ShownRow>,
        (care, reads): (Care, Reads<'_, V>),
    ) -> io::Result<Look> {
        look::look_and_cut(&*self.vfs, dir, path.name(), (known, || self.cutter_like(known)), (care, reads))
    }

    /// Whether a look at a path can only find what is recorded, by its stamp or because nothing is there and
    /// nothing was: most often it is our own change that an event tells of. `row` is the path's.
    pub(super) fn is_as_shown(&self, place: &Place<V>, path: &TreePath, row: &EntryRow, rehash: bool) -> bool {
        let listed = self.problems.contains_key(path) || self.mounts.contains(path) || !self.unseen.is_empty();
        if listed || !self.index.meta().paired || !matches!(self.local(path), Ok(None)) {
            return false;
        }
        let Ok(found) = place.holder(&*self.vfs, path).and_then(|dir| self.vfs.stat(&dir, path.name())) else {
            return false;
        };
        let shown = row.shown.as_ref().filter(|shown| shown.shown.state.is_some());
        match (found, shown) {
            (None, None) => row.pairing == Pairing::No,
            (Some(meta), Some(shown)) => {
                let alone = meta.kind == Kind::Dir || meta.links == 1;
                let trusted = !rehash && !shown.provisional && shown.stamp == Some(look::stamp_of(&meta));
                trusted && alone && !meta.mount_point && shown.shown.context == row.entry.context
            }
            _ => false,
        }
    }

    /// How this tree looks at what users change.
    pub(super) fn care(&self) -> Care {
        let settle = self.options.settle;
        Care { coarse: self.coarse, now: self.now(), owners: self.owners, settle, ..Care::default() }
    }

    /// Opens the directory that holds a path; none where it is not there (any more).
    pub(super) fn open_parent(&self, place: &Place<V>, path: &TreePath) -> io::Result<Option<V::Dir>> {
        match self.vfs.open_path(&place.root, &path.parent().unwrap_or_default()) {
            Ok(dir) => Ok(Some(dir)),
            Err(error) if is_no_dir(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Decides what a look at a path means, and stores it.
    pub(super) fn judge(
        &mut self,
        path: &TreePath,
        mut row: EntryRow,
        seen: io::Result<Look>,
    ) -> Result<Observed, TreeError> {
        let found = match seen {
            Ok(look @ (Look::Busy | Look::Unread)) => {
                let was_dir = self.known_there(path, &row)?.is_some_and(|s| s.is_dir());
                let holds = row.live_children > 0;
                self.pair_unread_local(path, row);
                if was_dir && holds {
                    // Or what peers make of it meanwhile would be gone with it.
                    self.observe_vanished(path)?;
                }
                return Ok(if look == Look::Busy { Observed::Busy } else { Observed::Unread });
            }
            Ok(Look::Mount) => {
                if self.mounts.len() < MOUNTS_MAX {
                    self.mounts.insert(path.clone());
                }
                return Ok(Observed::Skipped);
            }
            Ok(Look::Gone | Look::Special) => None,
            Ok(Look::Found(mut found)) => {
                if let (_, Some(hash)) = super::content_of(&found.state.value) {
                    if let Some(content) = found.read.take() {
                        self.fresh.put(path, hash, content);
                    }
                    if let Some(manifest) = found.cut.take() {
                        self.keep_manifest(hash, &manifest);
                    }
                }
                Some(found)
            }
            // A mount lies between: hidden, not deleted.
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                self.seen_again(path, false);
                return Ok(Observed::Skipped);
            }
            Err(error) => {
                self.pair_unread_local(path, row);
                self.not_seen(path, false, format!("cannot be read: {error}"));
                return Ok(Observed::Problem);
            }
        };
        let is_dir = found.as_ref().is_some_and(|f| f.state.value == Value::Dir);
        if self.options.ignore.ignored(path, is_dir) {
            return Ok(Observed::Skipped);
        }
        let yet_to_pair = self.is_yet_to_pair(path);
        self.seen_again(path, false);
        self.mounts.remove(path);
        let known = self.known_there(path, &row)?;
        if let Some(found) = found.as_ref().filter(|_| !is_dir) {
            self.note_links(path, found, known.as_ref().and_then(|s| s.stamp));
        }
        let was_dir = known.is_some_and(|s| s.is_dir());
        if yet_to_pair && row.shown.is_none() && row.pairing == Pairing::No {
            row.pairing = Pairing::ByTime;
        }
        let outcome = self.judge_found(path, row, found.as_deref())?;
        if was_dir && !is_dir {
            self.observe_vanished(path)?;
        }
        Ok(outcome)
    }

    fn judge_found(
        &mut self,
        path: &TreePath,
        mut row: EntryRow,
        found: Option<&Found>,
    ) -> Result<Observed, TreeError> {
        let pairing = match (&row.shown, row.pairing) {
            (Some(_), _) => Pairing::No,
            (None, Pairing::No) if !self.index.meta().paired => Pairing::ByTime,
            // What users made since the machine is up again is not what its crash left.
            (None, Pairing::Lowest) if found.is_some_and(|f| f.stamp.ctime >= self.options.booted) => Pairing::ByTime,
            (None, pairing) => pairing,
        };
        let mut old = row.shown.clone().unwrap_or_default();
        let around = self.index.surroundings(path, &row)?;
        let entry = Some(&row.entry).filter(|e| !e.context.is_empty());
        let how = Circumstances { pairing: pairing != Pairing::No, late: false, receives: self.receives_only() };
        let seq = row.seq;
        let disk = found.map(|f| &f.state);
        let stamp = found.map(|f| f.stamp);
        let mut provisional = found.is_some_and(|f| f.provisional);
        if let Some(was) = old.stamp.filter(|was| stamp.is_none_or(|now| now.inode != was.inode)) {
            self.leave_link(path, was.inode);
        }
        if let (Some(shown), Some(disk)) = (&mut old.shown.state, disk)
            && self.is_found_dir(&row)
        {
            // It moves with what is in it; a time alone would not make it anybody's.
            shown.mtime = disk.mtime;
        }
        if self.is_found_and_needed(&row) {
            // It is as if it were made now.
            old.shown.state = None;
        }
        let mut outcome = mint::observe(entry, &around, &old.shown, disk, how);
        if let (Observation::Unchanged | Observation::Shows(_), Some(state)) = (&outcome, &mut old.shown.state)
            && disk.is_some()
            && row.entry.access.values().all(|access| access.of != state.value.kind())
            && self.is_to_tell_access(&row, view::view(entry, &around).as_ref())
        {
            // It is minted as if a chmod had made it.
            state.access = None;
            outcome = Observation::Changed;
        }
        let in_the_way = row.live_children > 0 && disk.is_some_and(|disk| disk.value != Value::Dir);
        if in_the_way && self.known_there(path, &row)?.is_none() {
            // Nothing was known to be there, and what is to be beneath was passed, perhaps: both were ignored until now.
            self.plan_anew();
        }
        let differs = matches!(outcome, Observation::Changed | Observation::Local);
        if let Some(found) = found.filter(|_| differs && pairing != Pairing::No)
            && let Some(paired) = self.pair_first(path, &row, found)?
        {
            return Ok(paired);
        }
        let shown = match outcome {
            Observation::Unchanged => {
                self.end_local(path)?;
                if disk.is_none() && row.pairing != Pairing::No {
                    // It went before it could be paired: what is to be there comes.
                    self.take_up_unshown(path, &row)?;
                }
                if entry.is_none() && disk.is_some() && row.shown.is_some() {
                    // It was found by a root that follows a peer who does not have it (`first`), and is found
                    // again until it is gone: no journal leads here.
                    provisional = true;
                    self.take_up(path, row.seq);
                }
                // Only a directory's time may differ, where the tree only receives: it is looked at again.
                let moved = |disk: &State| disk.value == Value::Dir && Some(disk) != old.shown.state.as_ref();
                provisional |= self.receives_only() && disk.is_some_and(moved);
                if row.shown.is_some() && (old.stamp != stamp || old.provisional != provisional) {
                    row.shown = Some(ShownRow { shown: old.shown, stamp, provisional });
                    self.index.put_row_later(path, &row);
                    self.index.commit_if_large()?;
                }
                return Ok(Observed::Same);
            }
            Observation::Shows(shown) => {
                self.end_local(path)?;
                row.pairing = Pairing::No;
                self.note_content(path, old.shown.state.as_ref(), shown.state.as_ref());
                row.shown = Some(ShownRow { shown, stamp, provisional });
                self.index.put_row(path, &row);
                // An adopted file may still differ in time or mode.
                self.take_up(path, row.seq);
                return Ok(Observed::Same);
            }
            Observation::Local => {
                // No peer said so: it was found by a root that follows (`first`), and somebody was faster than whoever takes it
                // away. From now on it is theirs.
                let found_before = entry.is_none() && old.shown.state.is_some();
                if found_before || pairing != Pairing::No && (row.pairing != Pairing::No || entry.is_some()) {
                    self.note_content(path, old.shown.state.as_ref(), None);
                    row.pairing = Pairing::No;
                    row.shown = Some(ShownRow::default());
                    self.index.put_row(path, &row);
                    self.take_up(path, row.seq);
                }
                if found_before && found.is_none() {
                    self.end_local(path)?;
                    return Ok(Observed::Same);
                }
                let state = found.map(|found| found.state.clone());
                let shown = Shown { state, ..Shown::default() };
                self.put_local(path, &ShownRow { shown, stamp, provisional })?;
                return Ok(Observed::Local);
            }
            Observation::Changed if self.pairs_locals && pairing == Pairing::No => {
                // It was made while the tree only received.
                row.pairing = Pairing::ByTime;
                self.unpair(path, row);
                let row = self.index.row(path)?;
                return self.judge_found(path, EntryRow { shown: None, pairing: Pairing::ByTime, ..row }, found);
            }
            Observation::Changed => {
                let disk = found.map(|f| (&f.state, f.stamp.ctime));
                let ctime_of_dir = found.and_then(|f| f.state.mtime);
                let disk = disk.map(|(s, c)| (s, if c == Time::default() { ctime_of_dir.unwrap_or(c) } else { c }));
                if found.is_none() {
                    self.note_departure(&row, old.shown.state.as_ref());
                }
                // As with what a crash left: it never wins over, nor outlives, what its writer made of it since.
                let brought = found.is_some_and(|f| self.was_brought(path, &f.state.value));
                let how = if brought { Pairing::Lowest } else { pairing };
                let (minted, shown) = self.mint(path, &row, &old.shown, disk, how)?;
                row = minted;
                shown
            }
        };
        if pairing == Pairing::No {
            let writer = self.options.name.clone();
            self.record(path, row.seq, old.shown.state.as_ref(), disk, writer);
        }
        row.pairing = Pairing::No;
        self.note_content(path, old.shown.state.as_ref(), shown.state.as_ref());
        row.shown = Some(ShownRow { shown, stamp, provisional });
        self.index.put_row(path, &row);
        self.cut_for_peers(path, seq, old.shown.state.as_ref(), disk);
        self.index.commit_if_large()?;
        if self.options.first == Some(First::Receive) {
            for dir in path.parents() {
                let found = self.is_found_and_needed(&self.index.row(&dir)?);
                if found {
                    self.mark(&dir, true, false);
                }
            }
        }
        Ok(Observed::Minted)
    }

    /// A directory is gone: so is what was shown beneath it.
    pub(super) fn observe_vanished(&mut self, dir: &TreePath) -> Result<(), TreeError> {
        let mut after: Option<TreePath> = None;
        loop {
            let rows = self.index.beneath(dir, after.as_ref(), SUBTREE_ROWS)?;
            let Some((last, _)) = rows.last() else { break };
            after = Some(last.clone());
            for (path, row) in rows {
                let there = row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
                if there && !self.options.ignore.ignored(&path, false) {
                    self.judge_found(&path, row, None)?;
                }
            }
        }
        self.observe_vanished_locals(dir)
    }

    /// The same of what users had put there where the tree only receives.
    pub(super) fn observe_vanished_locals(&mut self, dir: &TreePath) -> Result<(), TreeError> {
        let mut after: Option<TreePath> = None;
        loop {
            let found = self.locals_beneath(dir, after.as_ref())?;
            let Some((last, _)) = found.last() else { return Ok(()) };
            after = Some(last.clone());
            for (path, _) in found.into_iter().filter(|(_, local)| local.shown.state.is_some()) {
                let row = self.index.row(&path)?;
                self.judge_found(&path, row, None)?;
            }
        }
    }

    /// What cannot be read when a tree that only received no longer does so may have been changed meanwhile: it pairs
    /// when it can be.
    fn pair_unread_local(&mut self, path: &TreePath, row: EntryRow) {
        if self.pairs_locals && row.shown.is_some() {
            self.unpair(path, row);
        }
    }

    /// The shown state of a path, as last stored.
    pub(super) fn shown(row: &EntryRow) -> Shown {
        row.shown.as_ref().map(|s| s.shown.clone()).unwrap_or_default()
    }
}
