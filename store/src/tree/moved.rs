//! The rename of a whole directory as one unit (DESIGN.md §6).
//!
//! Whoever sees it notes it durably, tells it, and writes the rows afterwards; a peer that holds the same directory
//! renames its own, and writes the same rows. What is noted is found by the next start where either broke off. Rows are
//! told as well, so that whoever passes the rename over learns all of it from them.

use std::collections::BTreeSet;

use pleach_protocol::codec;
use pleach_protocol::entry::{Entry, Hash, Rank, Value};
use pleach_protocol::mint::agrees;
use pleach_protocol::moved::{self, MOVED_PATHS_MAX, Moved};
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::version::NodeId;
use pleach_protocol::view::{self, State};

use super::alike::Digests;
use super::exchange::Life;
use super::{Tree, TreeError};
use crate::ignore;
use crate::index::{is_live, known};
use crate::kv::Kv;
use crate::look::stamp_of;
use crate::root::Place;
use crate::rows::{Direction, EntryRow, MovedRow, Pairing, ShownRow, Space, Stamp};
use crate::vfs::{Kind, RenameMode, Vfs};

/// Changed paths among which the one is looked for that a directory left.
const LEFT_MAX: usize = 1_024;

/// Inode and birth time.
type Inode = (u64, Time);

/// A path of a directory that moves.
struct Part {
    path: TreePath,
    row: EntryRow,
    view: State,
}

/// Sums up what is known of paths, in the order in which they are added.
#[derive(Default)]
struct Digest(blake3::Hasher);

impl Digest {
    fn add(&mut self, path: &TreePath, entry: &Entry) {
        for part in [path.as_bytes(), &codec::encode(entry)] {
            self.0.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    }

    fn finish(&self) -> Hash {
        Hash(*self.0.finalize().as_bytes())
    }
}

/// Where the one rename is noted that is under way.
fn key() -> Vec<u8> {
    vec![Space::Moved as u8]
}

/// Whether the disk shows exactly what is known of a path, which nobody disputes.
fn is_settled(row: &EntryRow, view: &State) -> bool {
    let Some(shown) = row.shown.as_ref().filter(|shown| !shown.provisional && shown.stamp.is_some()) else {
        return false;
    };
    let alone = row.entry.content.len() == 1 && row.entry.losers.is_empty();
    let in_the_way = row.live_children > 0 && view.value != Value::Dir;
    // What nobody manages is as each disk has it, and would be told anew under a new name.
    let managed = view.mtime.is_some() && view.access.is_some();
    let same = shown.shown.context == row.entry.context && agrees(shown.shown.state.as_ref(), Some(view));
    alone && same && managed && !in_the_way && row.pairing == Pairing::No
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// A directory appeared: where it is one that just left another path, and nothing else is to be said of it, the
    /// rename is noted durably and returned. It is to be told, and then [`Tree::finish_move`] to be called before
    /// anything else.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn begin_move(&mut self, to: &TreePath) -> Result<Option<Moved>, TreeError> {
        let both = self.options.direction == Direction::Both;
        if !both || self.waits || self.is_scan_due() || to.is_root() || is_there(&self.index.row(to)?) {
            return Ok(None);
        }
        let place = self.enter()?;
        let Some((from, inode)) = self.left_by(&place, to)? else { return Ok(None) };
        let Some(parts) = self.parts(&from)?.filter(|_| self.may_move(&from, to)) else { return Ok(None) };
        let rank = Rank(self.now().nanos_since_epoch());
        let paths = parts.len() as u64;
        let (actor, first, digest) = (self.actor, self.counter + 1, Hash::default());
        let mut moved = Moved { from, to: to.clone(), actor, first, paths, rank, digest };
        let Some(digest) = self.digest(&moved, &parts)? else { return Ok(None) };
        moved.digest = digest;
        if !moved.is_possible() {
            return Ok(None);
        }
        self.counter += paths * 2;
        self.index.put_other(key(), &MovedRow { moved: moved.clone(), inode, taught_by: None });
        self.index.flush()?;
        Ok(Some(moved))
    }

    /// Writes the rows of a rename that was begun.
    ///
    /// # Errors
    /// The store's.
    pub fn finish_move(&mut self) -> Result<(), TreeError> {
        match self.index.other(&key())? {
            Some(row) => self.write_move(&row),
            None => Ok(()),
        }
    }

    /// A peer renamed a directory: where this disk shows the same one, it is renamed here. Says whether it was. `digests` are
    /// of the session in which it told so: only there it is not told the rows.
    ///
    /// # Errors
    /// [`TreeError`]; whatever stands in the way of the rename is met by its rows.
    pub fn carry_move(
        &mut self,
        moved: &Moved,
        (peer, life): (NodeId, Life),
        digests: &mut Digests,
    ) -> Result<bool, TreeError> {
        if self.waits || self.is_scan_due() || self.sends_only() || !moved.is_possible() {
            return Ok(false);
        }
        let Some(parts) = self.parts(&moved.from)?.filter(|_| self.may_move(&moved.from, &moved.to)) else {
            return Ok(false);
        };
        if parts.len() as u64 != moved.paths || self.digest(moved, &parts)? != Some(moved.digest) {
            return Ok(false);
        }
        let place = self.enter()?;
        let Some(stamp) = parts[0].row.shown.as_ref().and_then(|shown| shown.stamp) else { return Ok(false) };
        if self.waits || self.is_scan_due() || !self.holds_only(&place, &parts) {
            return Ok(false);
        }
        let taught_by = Some(self.teacher_of_moves((peer, life), digests));
        let row = MovedRow { moved: moved.clone(), inode: (stamp.inode, stamp.btime), taught_by };
        self.index.put_other(key(), &row);
        self.index.flush()?;
        if !self.rename_dir(&place, &row)? {
            self.index.delete(key());
            return Ok(false);
        }
        self.write_move(&row)?;
        // What users changed just before is theirs under the new name.
        self.scan_below(&moved.to)?;
        Ok(true)
    }

    /// Ends a rename that an earlier life began.
    pub(super) fn recover_move(&mut self, place: &Place<V>) -> Result<(), TreeError> {
        let Some(row) = self.index.other::<MovedRow>(&key())? else { return Ok(()) };
        let written = self.index.row(&row.moved.to)?.entry.context.contains(row.moved.appears(0));
        // One of this node's own may have been told.
        if row.taught_by.is_none() || written || self.is_dir_at(place, &row.moved.to, row.inode) {
            return self.write_move(&row);
        }
        self.index.delete(key());
        Ok(())
    }

    /// The directory among the changed paths that stands at `to` now, with inode and birth time.
    fn left_by(&self, place: &Place<V>, to: &TreePath) -> Result<Option<(TreePath, Inode)>, TreeError> {
        let Ok(Some(holder)) = self.open_parent(place, to) else { return Ok(None) };
        let Ok(Some(meta)) = self.vfs.stat(&holder, to.name()) else { return Ok(None) };
        if meta.kind != Kind::Dir || meta.mount_point {
            return Ok(None);
        }
        for path in self.dirty.keys().filter(|path| !path.is_root() && !path.is_within(to)).take(LEFT_MAX) {
            let shown = self.index.row(path)?.shown.filter(ShownRow::is_dir);
            let same = shown.and_then(|s| s.stamp).is_some_and(|s| (s.inode, s.btime) == (meta.inode, meta.btime));
            let left = || match self.open_parent(place, path) {
                Ok(Some(dir)) => matches!(self.vfs.stat(&dir, path.name()), Ok(None)),
                Ok(None) => true,
                Err(_) => false,
            };
            if same && left() {
                return Ok(Some((path.clone(), (meta.inode, meta.btime))));
            }
        }
        Ok(None)
    }

    /// A directory and all that is known to be in it, in the order of a walk; none where anything of it is not settled,
    /// or it is too much.
    fn parts(&self, dir: &TreePath) -> Result<Option<Vec<Part>>, TreeError> {
        let rows = self.rows_within(dir)?;
        if rows.len() as u64 > MOVED_PATHS_MAX {
            return Ok(None);
        }
        let mut parts = Vec::with_capacity(rows.len());
        for (path, row) in rows {
            if view::own(&row.entry).is_none() {
                if is_live(&row) || is_there(&row) || row.pairing != Pairing::No || path == *dir {
                    return Ok(None);
                }
                continue;
            }
            match self.index.view(&path, &row)? {
                Some(view) if is_settled(&row, &view) => parts.push(Part { path, row, view }),
                _ => return Ok(None),
            }
        }
        Ok(Some(parts))
    }

    /// The rows of a path and of all beneath it, in the order of a walk; one more than a unit may have tells that there
    /// are too many.
    fn rows_within(&self, dir: &TreePath) -> Result<Vec<(TreePath, EntryRow)>, TreeError> {
        let mut rows = vec![(dir.clone(), self.index.row(dir)?)];
        rows.extend(self.index.beneath(dir, None, usize::try_from(MOVED_PATHS_MAX).unwrap_or(usize::MAX))?);
        Ok(rows)
    }

    /// Whether nothing that concerns either place has to be decided path by path.
    fn may_move(&self, from: &TreePath, to: &TreePath) -> bool {
        let concerns = |path: &TreePath| path.is_within(from) || path.is_within(to);
        let listed = self.problems.keys().chain(&self.mounts).chain(self.unseen.keys()).any(concerns);
        let linked = self.links.names().any(concerns);
        let plain = self.index.meta().paired && self.locals == 0 && !self.pairs_locals && self.follows.is_none();
        plain && self.options.atomic.has_none() && !listed && !linked && !self.apply.works_on(concerns)
    }

    /// What is known of both places; none where something is to be at the new one, or the rules tell the names apart.
    fn digest(&self, moved: &Moved, parts: &[Part]) -> Result<Option<Hash>, TreeError> {
        let mut digest = Digest::default();
        for Part { path, row, view } in parts {
            let Some(target) = moved.target(path) else { return Ok(None) };
            let dir = view.value == Value::Dir;
            let rules = &self.options.ignore;
            if path.name() == ignore::FILE_NAME || rules.ignored(path, dir) || rules.ignored(&target, dir) {
                return Ok(None);
            }
            digest.add(path, &row.entry);
        }
        let parent = moved.to.parent().unwrap_or_default();
        let holder = self.index.row(&parent)?;
        let held = parent.is_root() || (is_live(&holder) && holder.shown.as_ref().is_some_and(ShownRow::is_dir));
        let there = self.rows_within(&moved.to)?;
        let free = |row: &EntryRow| !is_live(row) && !is_there(row) && row.pairing == Pairing::No;
        if !held || there.len() as u64 > MOVED_PATHS_MAX || !there.iter().all(|(_, row)| free(row)) {
            return Ok(None);
        }
        for (path, row) in there.iter().filter(|(_, row)| !row.entry.context.is_empty()) {
            digest.add(path, &row.entry);
        }
        Ok(Some(digest.finish()))
    }

    /// Whether a listing of the directory shows nothing but what is known.
    fn holds_only(&self, place: &Place<V>, parts: &[Part]) -> bool {
        let known: BTreeSet<&TreePath> = parts.iter().map(|part| &part.path).collect();
        parts.iter().filter(|part| part.view.value == Value::Dir).all(|part| {
            let names = self.vfs.open_path(&place.root, &part.path).and_then(|dir| self.vfs.list(&dir));
            let is_known = |name: &[u8]| part.path.join(name).is_ok_and(|path| known.contains(&path));
            names.is_ok_and(|names| names.iter().all(|name| is_known(&name.name)))
        })
    }

    fn is_dir_at(&self, place: &Place<V>, path: &TreePath, inode: Inode) -> bool {
        let Ok(Some(holder)) = self.open_parent(place, path) else { return false };
        let there = self.vfs.stat(&holder, path.name());
        there.is_ok_and(|meta| meta.is_some_and(|m| m.kind == Kind::Dir && (m.inode, m.btime) == inode))
    }

    /// Renames a directory on this disk, durably; says whether it is where it is to be.
    fn rename_dir(&mut self, place: &Place<V>, MovedRow { moved, inode, .. }: &MovedRow) -> Result<bool, TreeError> {
        let Moved { from, to, .. } = moved;
        let (Ok(Some(from_dir)), Ok(Some(to_dir))) = (self.open_parent(place, from), self.open_parent(place, to))
        else {
            return Ok(false);
        };
        if !self.is_dir_at(place, from, *inode) {
            return Ok(false);
        }
        let parents = [from, to].into_iter().filter_map(TreePath::parent);
        let before = |dir: TreePath| {
            let meta = self.vfs.open_path(&place.root, &dir).and_then(|handle| self.vfs.stat_dir(&handle)).ok();
            (dir, meta)
        };
        let parents = parents.map(before).collect();
        if self.vfs.rename(&from_dir, from.name(), &to_dir, to.name(), RenameMode::NoReplace).is_err() {
            return Ok(false);
        }
        if !self.is_dir_at(place, to, *inode) {
            // Somebody put another there just before: it goes back, where its name is still free.
            let back = self.vfs.rename(&to_dir, to.name(), &from_dir, from.name(), RenameMode::NoReplace);
            self.mark(if back.is_ok() { from } else { to }, true, false);
            return Ok(false);
        }
        let owed = self.restore_times(place, &parents)?;
        self.owe_times(owed)?;
        let sync = |source| TreeError::Disk { what: "making a renamed directory durable", source };
        self.vfs.sync_dir(&from_dir).map_err(sync)?;
        self.vfs.sync_dir(&to_dir).map_err(sync)?;
        Ok(true)
    }

    /// Writes what follows from a rename: first what appears, in the order of a walk, then what goes, the other way
    /// round, so that whatever is written by the time of a crash says which number each path has.
    fn write_move(&mut self, MovedRow { moved, taught_by, .. }: &MovedRow) -> Result<(), TreeError> {
        let place = self.enter()?;
        let parts = self.live_parts(&moved.from)?;
        let writer = self.index.name(moved.actor)?.unwrap_or_else(|| format!("{:?}", moved.actor.node));
        for (part, nth) in parts.iter().zip(0..) {
            let Some(path) = moved.target(&part.path) else { continue };
            let there = self.index.row(&path)?;
            if there.entry.context.contains(moved.appears(nth)) {
                continue;
            }
            let old = known(there.entry.clone());
            let (entry, shown) = moved::appear(old.as_ref(), &part.view, moved.appears(nth), moved.rank);
            let Some(mut on_disk) = part.row.shown.clone() else { continue };
            if nth == 0 {
                // Its change time moved with it; whatever else did is found by the next look.
                let same = |now: &Stamp| on_disk.stamp.is_some_and(|was| was.same_but_ctime(now));
                on_disk.stamp = self.stamp_at(&place, &path).filter(same).or(on_disk.stamp);
            }
            if taught_by.is_none() {
                self.note_departure(&part.row, on_disk.shown.state.as_ref());
            }
            on_disk.shown.context = shown.context;
            self.write_part((&path, EntryRow { entry, ..there }), None, on_disk, *taught_by, &writer)?;
        }
        for (nth, part) in parts.into_iter().enumerate().rev() {
            let (entry, shown) = moved::go(&part.row.entry, &part.view, moved.goes(nth as u64), moved.rank);
            let before = part.row.shown.as_ref().and_then(|s| s.shown.state.clone());
            let gone = ShownRow { shown, stamp: None, provisional: false };
            // Its counts changed with what was beneath.
            let row = EntryRow { entry, ..self.index.row(&part.path)? };
            self.write_part((&part.path, row), before.as_ref(), gone, *taught_by, &writer)?;
        }
        let dirty = std::mem::take(&mut self.dirty);
        for (path, how) in dirty.into_iter().chain(self.long.take()) {
            let path = moved.target(&path).unwrap_or(path);
            self.mark(&path, how.rehash, how.take_open);
        }
        if taught_by.is_none() {
            let now = self.now();
            self.minted_at.get_or_insert(now);
            self.minted_head = self.index.meta().head;
        }
        self.index.delete(key());
        Ok(())
    }

    /// What is there still of a directory whose rows are being written: the first of its paths, in their order.
    fn live_parts(&self, dir: &TreePath) -> Result<Vec<Part>, TreeError> {
        let rows = self.rows_within(dir)?;
        let mut parts = Vec::with_capacity(rows.len());
        for (path, row) in rows.into_iter().filter(|(_, row)| view::own(&row.entry).is_some()) {
            let Some(view) = self.index.view(&path, &row)? else { continue };
            parts.push(Part { path, row, view });
        }
        Ok(parts)
    }

    fn write_part(
        &mut self,
        (path, row): (&TreePath, EntryRow),
        before: Option<&State>,
        on_disk: ShownRow,
        taught_by: Option<(NodeId, [u8; 16])>,
        writer: &str,
    ) -> Result<(), TreeError> {
        let after = on_disk.shown.state.clone();
        let seq = self.index.announce(path, row, taught_by)?;
        match taught_by {
            None => self.note_own(path, before, after.as_ref())?,
            Some(_) => self.note_applied(path, seq, before, after.as_ref())?,
        }
        self.record(path, seq, before, after.as_ref(), writer.to_owned());
        let mut row = self.index.row(path)?;
        self.store_shown(path, &mut row, on_disk);
        Ok(self.index.commit_if_large()?)
    }

    fn stamp_at(&self, place: &Place<V>, path: &TreePath) -> Option<Stamp> {
        let holder = self.open_parent(place, path).ok()??;
        self.vfs.stat(&holder, path.name()).ok()?.map(|meta| stamp_of(&meta))
    }
}

fn is_there(row: &EntryRow) -> bool {
    row.shown.as_ref().is_some_and(|shown| shown.shown.state.is_some())
}
