//! One batch of changes to the disk: written back, intended, named, made durable, shown.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use pleach_protocol::entry::{Content, Hash, Value};
use pleach_protocol::mint::Shown;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::view::{self, State};

use super::content::{Origin, Source, Staged, Whole};
use super::displace::id_name;
use super::hands;
use super::observe::is_no_dir;
use super::{Tree, TreeError};
use crate::kv::Kv;
use crate::look::{RACY_NANOS, access_of, stamp_of};
use crate::root::Place;
use crate::rows::{self, EntryRow, Intent, IntentOp, ShownRow, Space, Stamp};
use crate::vfs::{Kind, Meta, RenameMode, SetAttributes, Vfs, Writers};

/// Up to this many files are made durable one by one; more by one syncfs (LINUX.md §11).
const SYNC_ONE_BY_ONE_MAX: usize = 16;

/// What the owner of a directory needs to change it.
pub(super) const UNLOCKED: u32 = 0o700;

/// Whether the owner of a directory of this mode may not change it.
pub(super) const fn is_locked(mode: u32) -> bool {
    mode & 0o300 != 0o300
}

/// The kind of a change to the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum OpKind {
    /// A file or link gets the name, new or in place of another.
    Put,
    /// A file or link leaves the name for the vault.
    Displace,
    /// Mode, owner or time change in place.
    Attributes,
    /// A directory is made.
    MakeDir,
    /// An empty directory is removed.
    RemoveDir,
}

/// One change to the disk.
pub(super) struct Op<V: Vfs> {
    pub(super) path: TreePath,
    pub(super) kind: OpKind,
    pub(super) row: Arc<EntryRow>,
    pub(super) view: Option<State>,
    pub(super) staged: Option<Staged<V>>,
    /// A small content that is here and not on the disk yet.
    pub(super) content: Option<Whole>,
}

/// A batch. In boxes, for they are large: all of them in one piece were memory that the allocator took from the system
/// anew for each batch.
pub(super) type Ops<V> = Vec<Box<Op<V>>>;

impl<V: Vfs> Op<V> {
    /// Where the inode that gets the name comes from, for one that has a name already.
    fn source(&self) -> Option<&Source> {
        self.staged.as_ref()?.source.as_ref()
    }

    /// The path in the tree that it comes from.
    pub(super) fn moved_from(&self) -> Option<&TreePath> {
        match &self.source()?.origin {
            Origin::Tree(from) => Some(from),
            Origin::Vault(..) | Origin::Staging(_) => None,
        }
    }

    /// What the disk shows once it is carried out.
    fn leaves(&self) -> Option<State> {
        match self.kind {
            OpKind::Displace | OpKind::RemoveDir => None,
            OpKind::Put | OpKind::Attributes | OpKind::MakeDir => self.view.clone(),
        }
    }
}

/// What became of a change.
pub(super) enum Outcome {
    /// Carried out; this is the stamp of what is there now.
    Done { stamp: Option<Stamp>, provisional: bool },
    /// Its mode, owner and time are set in part, and this is what the disk shows: unless that is noted, the next look
    /// takes it for a user's change.
    Partly { meta: Box<Meta>, why: io::Error },
    /// The disk is not as it was shown: look and plan again.
    Raced,
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Carries out a batch. Content is durable before its name, intents before any name. Says whether
    /// anything came of it but races.
    pub(super) fn perform(&mut self, place: &Place<V>, ops: Ops<V>) -> Result<bool, TreeError> {
        let mut ops = self.stage(place, ops)?;
        if ops.is_empty() {
            // All of them became problems.
            return Ok(true);
        }
        order(&mut ops);
        let failed_sync = |source| TreeError::Disk { what: "making content durable", source };
        let ids: Vec<u64> = ops.iter().map(|_| self.index.next_id()).collect();
        let batch_key = rows::number_key(Space::Intent, self.index.next_id());
        let intents: Vec<Intent> = ops
            .iter()
            .zip(&ids)
            .map(|(op, id)| self.intent(op, *id))
            .collect::<io::Result<_>>()
            .map_err(failed_sync)?;
        let staged: Vec<&V::File> = ops.iter().filter_map(|op| Some(&op.staged.as_ref()?.file)).collect();
        let (vfs, handle) = (&*self.vfs, self.apply.sync.as_ref());
        let sync = || match handle {
            Some(handle) if staged.len() > SYNC_ONE_BY_ONE_MAX => vfs.sync_all(handle),
            _ => staged.iter().try_for_each(|file| vfs.sync_data(file)),
        };
        let index = &mut self.index;
        let intend = || {
            index.put_other(batch_key.clone(), &intents);
            index.flush()
        };
        let (synced, intended) = hands::both(vfs, sync, intend);
        synced.map_err(failed_sync)?;
        intended?;
        let parents = self.parents_before(place, &ops)?;
        let handle = self.vfs.sync_handle(&place.root).map_err(failed_sync)?;
        let unlocked = self.unlock(place, &parents);
        let outcomes = self.carry_all_out(place, &ops, &ids);
        let owed = self.restore_times(place, &parents)?;
        self.lock_again(place, &unlocked);
        let raced = outcomes.iter().filter(|o| matches!(o, Ok(Outcome::Raced))).count();
        let progress = raced < outcomes.len();
        let done = outcomes.iter().filter(|o| matches!(o, Ok(Outcome::Done { .. } | Outcome::Partly { .. }))).count();
        if done > 0 && ops.len() <= SYNC_ONE_BY_ONE_MAX {
            self.sync_dirs(place, &parents).map_err(failed_sync)?;
        } else if done > 0 {
            // The next batch is staged meanwhile.
            self.index.put_behind(self.vfs.sync_later(handle))?;
        }
        // What is being written for a later batch was begun under this handle: another one would not hear that its write-back
        // failed by now, if somebody heard it (LINUX.md §11).
        if !self.apply.writes() {
            self.apply.sync = None;
        }
        for ((op, id), outcome) in ops.into_iter().zip(ids).zip(outcomes) {
            self.conclude(place, &op, id, outcome)?;
        }
        self.owe_times(owed)?;
        // Durable with the next flush, before anybody is told: until then the intents say it.
        self.index.delete(batch_key);
        Ok(progress)
    }

    /// Makes all contents of a batch whole, before they are written back. What cannot be is a problem of
    /// its path.
    fn stage(&mut self, place: &Place<V>, mut ops: Ops<V>) -> Result<Ops<V>, TreeError> {
        if ops.iter().any(|op| op.content.is_some()) {
            self.begin_batch(place)?;
        }
        let (owners, staging) = (self.owners, &place.staging);
        let staged = hands::each(&*self.vfs, &place.root, &mut ops, |hands, op| hands.stage(op, staging, owners));
        let mut whole = Vec::with_capacity(ops.len());
        for (op, staged) in ops.into_iter().zip(staged) {
            match staged {
                Ok(()) => whole.push(op),
                Err(error) => self.fail(&op.path, format!("cannot be staged with its mode, owner and time: {error}")),
            }
        }
        Ok(whole)
    }

    /// What to set so that a file shows `view`.
    pub(super) fn attributes(&self, view: &State) -> SetAttributes {
        hands::attributes(view, self.owners)
    }

    fn intent(&self, op: &Op<V>, id: u64) -> io::Result<Intent> {
        let shown = op.row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
        let inode = match &op.staged {
            Some(staged) => Some(self.vfs.stat_file(&staged.file).map(|m| (m.inode, m.btime))?),
            None => None,
        };
        let state = op.leaves();
        Ok(Intent {
            path: op.path.clone(),
            op: match op.kind {
                OpKind::Put if shown => IntentOp::Replace,
                OpKind::Put => IntentOp::Create,
                OpKind::Displace => IntentOp::Delete,
                OpKind::Attributes => IntentOp::Attributes,
                OpKind::MakeDir => IntentOp::MakeDir,
                OpKind::RemoveDir => IntentOp::RemoveDir,
            },
            id,
            context: op.row.entry.context.clone(),
            state,
            inode,
            from: op.source().and_then(|source| match &source.origin {
                Origin::Tree(path) => Some((path.clone(), 0)),
                Origin::Vault(path, id) => Some((path.clone(), *id)),
                Origin::Staging(_) => None,
            }),
        })
    }

    /// The directories whose children change, with their times from before.
    fn parents_before(
        &self,
        place: &Place<V>,
        ops: &[Box<Op<V>>],
    ) -> Result<BTreeMap<TreePath, Option<Meta>>, TreeError> {
        let paths = ops.iter().flat_map(|op| std::iter::once(&op.path).chain(op.moved_from()));
        let dirs: BTreeSet<TreePath> = paths.filter_map(TreePath::parent).collect();
        let stat = |dir: &TreePath| {
            let handle = self.vfs.open_path(&place.root, dir).ok()?;
            self.vfs.stat_dir(&handle).ok()
        };
        Ok(dirs.into_iter().map(|dir| (dir.clone(), stat(&dir))).collect())
    }

    /// Directories that not even their owner may write to are opened for our work, where this process
    /// is that owner and not root. Returns them with their modes.
    pub(super) fn unlock(&self, place: &Place<V>, parents: &BTreeMap<TreePath, Option<Meta>>) -> Vec<(TreePath, u32)> {
        let mut unlocked = Vec::new();
        for (dir, meta) in parents {
            let Some(meta) = meta.as_ref().filter(|m| !self.owners && !dir.is_root() && is_locked(m.mode)) else {
                continue;
            };
            if self.set_mode(place, dir, meta.mode | UNLOCKED) {
                unlocked.push((dir.clone(), meta.mode));
            }
        }
        unlocked
    }

    pub(super) fn lock_again(&self, place: &Place<V>, unlocked: &[(TreePath, u32)]) {
        for (dir, mode) in unlocked {
            let now = self.vfs.open_path(&place.root, dir).and_then(|handle| self.vfs.stat_dir(&handle));
            // Whoever gave it another mode meanwhile meant it.
            if now.is_ok_and(|meta| meta.mode == mode | UNLOCKED) && !self.set_mode(place, dir, *mode) {
                tracing::warn!(dir = %dir, "the directory stays writable for its owner");
            }
        }
    }

    fn set_mode(&self, place: &Place<V>, dir: &TreePath, mode: u32) -> bool {
        let set = SetAttributes { mode: Some(mode), ..SetAttributes::default() };
        matches!(self.open_parent(place, dir), Ok(Some(holder)) if self.vfs.set_attributes(&holder, dir.name(), &set).is_ok())
    }

    /// Puts back the time of each directory that only we changed; one that somebody else changed
    /// as well keeps its new time, which is minted with their change (LINUX.md §3). Returns those whose time could not be
    /// put back: they are for [`Tree::owe_times`], once the batch's own changes are shown.
    pub(super) fn restore_times(
        &mut self,
        place: &Place<V>,
        parents: &BTreeMap<TreePath, Option<Meta>>,
    ) -> Result<Vec<TreePath>, TreeError> {
        let mut owed = Vec::new();
        for (dir, before) in parents.iter().rev().filter(|(dir, _)| !dir.is_root()) {
            let mut row = self.index.row(dir)?;
            let view = self.index.view(dir, &row)?.filter(|v| v.value == Value::Dir);
            let wanted = view.and_then(|v| v.mtime);
            let Some(shown) = row.shown.clone() else { continue };
            let Some(mut stamp) = shown.stamp else { continue };
            let ours = match before {
                Some(before) => before.inode == stamp.inode && before.mtime == stamp.mtime,
                None => true,
            };
            // One whose time nobody knew has it from now on: the same batch may have set it before it put something there.
            let managed = |s: &State| s.value == Value::Dir && (s.mtime.is_some() || wanted.is_some());
            if !ours || !shown.shown.state.as_ref().is_some_and(managed) {
                continue;
            }
            match self.set_time(place, dir, wanted) {
                Ok(Some(meta)) => {
                    let mtime = wanted.unwrap_or(meta.mtime);
                    stamp.mtime = mtime;
                    let state = shown.shown.state.map(|s| State { mtime: Some(mtime), ..s });
                    row.shown = Some(ShownRow { shown: Shown { state, ..shown.shown }, stamp: Some(stamp), ..shown });
                    self.index.put_row(dir, &row);
                }
                Ok(None) => {}
                // Somebody took it away just now.
                Err(error) if is_no_dir(&error) => {}
                Err(_) => owed.push(dir.clone()),
            }
        }
        Ok(owed)
    }

    /// Sets a directory's time, if one is given; what is there then, none where nothing is.
    fn set_time(&self, place: &Place<V>, dir: &TreePath, mtime: Option<Time>) -> io::Result<Option<Meta>> {
        let Some(holder) = self.open_parent(place, dir)? else { return Ok(None) };
        if mtime.is_some() {
            self.vfs.set_attributes(&holder, dir.name(), &SetAttributes { mtime, ..SetAttributes::default() })?;
        }
        self.vfs.stat(&holder, dir.name())
    }

    /// Directories have a time that nobody gave them: it is no change of a user's, and theirs is set like any attribute.
    pub(super) fn owe_times(&mut self, dirs: Vec<TreePath>) -> Result<(), TreeError> {
        for dir in dirs {
            let mut row = self.index.row(&dir)?;
            // No peer has a time for what a root that follows found: the next look takes that of the disk.
            if !self.is_found_dir(&row)
                && let Some(state) = row.shown.as_mut().and_then(|shown| shown.shown.state.as_mut())
                && state.value == Value::Dir
            {
                state.mtime = None;
                self.index.put_row(&dir, &row);
                self.take_up(&dir, row.seq);
            }
        }
        Ok(())
    }

    fn sync_dirs(&self, place: &Place<V>, parents: &BTreeMap<TreePath, Option<Meta>>) -> io::Result<()> {
        for dir in parents.keys() {
            match self.vfs.open_path(&place.root, dir) {
                Ok(handle) => self.vfs.sync_dir(&handle)?,
                // A user took it away meanwhile, or put something else there.
                Err(error) if is_no_dir(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.vfs.sync_dir(&place.staging)
    }

    /// Carries changes out in their order; new files get their names last, for nothing waits for those.
    fn carry_all_out(&self, place: &Place<V>, ops: &[Box<Op<V>>], ids: &[u64]) -> Vec<io::Result<Outcome>> {
        place.forget_holder();
        let (mut new, mut outcomes) = (Vec::new(), Vec::with_capacity(ops.len()));
        for (op, id) in ops.iter().zip(ids) {
            if hands::is_new_file(op) {
                new.push(op);
                outcomes.push(None);
            } else {
                outcomes.push(Some(self.carry_out(place, op, *id)));
            }
        }
        let owners = self.owners;
        let mut named = hands::each(&*self.vfs, &place.root, &mut new, |hands, op| hands.name(op, owners)).into_iter();
        let outcome = |outcome: Option<_>| outcome.or_else(|| named.next()).unwrap_or(Ok(Outcome::Raced));
        outcomes.into_iter().map(outcome).collect()
    }

    fn carry_out(&self, place: &Place<V>, op: &Op<V>, id: u64) -> io::Result<Outcome> {
        let dir = match place.holder(&*self.vfs, &op.path) {
            Ok(dir) => dir,
            Err(error) if is_no_dir(&error) => return Ok(Outcome::Raced),
            Err(error) => return Err(error),
        };
        let name = op.path.name();
        match op.kind {
            OpKind::Put => self.put(place, &dir, op, id),
            OpKind::Displace => self.displace(place, &dir, name, id),
            OpKind::Attributes => self.set_in_place(&dir, op),
            OpKind::MakeDir => self.make_dir(&dir, op),
            OpKind::RemoveDir => match self.vfs.remove_dir(&dir, name) {
                Ok(()) => Ok(Outcome::Done { stamp: None, provisional: false }),
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(Outcome::Raced),
                Err(e) => Err(e),
            },
        }
    }

    fn put(&self, place: &Place<V>, dir: &V::Dir, op: &Op<V>, id: u64) -> io::Result<Outcome> {
        let (name, staged_name) = (op.path.name(), id_name(id));
        let replaces = op.row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
        let partial = match op.source().map(|source| &source.origin) {
            Some(Origin::Staging(id)) if replaces => Some(id_name(*id)),
            _ => None,
        };
        if let Some(source) = op.source()
            && partial.is_none()
        {
            return self.move_in(place, dir, op, source);
        }
        match (&op.staged, op.view.as_ref().map(|v| &v.value)) {
            _ if let Some(partial) = &partial => {
                self.vfs.rename(&place.staging, partial, &place.staging, &staged_name, RenameMode::NoReplace)?;
            }
            (Some(staged), _) => self.vfs.link_temp(&staged.file, &place.staging, &staged_name)?,
            (None, Some(Value::Symlink { target })) => {
                self.vfs.create_symlink(&place.staging, &staged_name, target)?;
                if let Some(view) = &op.view {
                    let set = self.vfs.set_attributes(&place.staging, &staged_name, &self.attributes(view));
                    // Left there it would pass for what an exchange brought out.
                    if let Err(error) = set {
                        self.unstage(place, &staged_name, None)?;
                        return Err(error);
                    }
                }
            }
            _ => return Ok(Outcome::Raced),
        }
        let mode = if replaces { RenameMode::Exchange } else { RenameMode::NoReplace };
        match self.vfs.rename(&place.staging, &staged_name, dir, name, mode) {
            Ok(()) => {}
            Err(error) => {
                self.unstage(place, &staged_name, partial.as_deref())?;
                let raced = matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT));
                return if raced { Ok(Outcome::Raced) } else { Err(error) };
            }
        }
        // Somebody may have put a directory there: it goes back, whole, as does what cannot be looked at. Where it
        // cannot go back either the exchange stands.
        let came_out = if replaces { self.is_dir(&place.staging, &staged_name) } else { Ok(false) };
        if !matches!(came_out, Ok(false)) {
            let back = self.vfs.rename(&place.staging, &staged_name, dir, name, RenameMode::Exchange);
            match (back, came_out) {
                (Ok(()), came_out) => {
                    self.unstage(place, &staged_name, partial.as_deref())?;
                    return came_out.map(|_| Outcome::Raced);
                }
                (Err(error), Ok(_)) => return Err(error),
                (Err(_), Err(_)) => {}
            }
        }
        Ok(hands::stamp_of_put(&*self.vfs, dir, op, self.owners))
    }

    /// A content did not get its name: a large one is kept, under its own id.
    fn unstage(&self, place: &Place<V>, name: &[u8], partial: Option<&[u8]>) -> io::Result<()> {
        match partial {
            Some(partial) => self.vfs.rename(&place.staging, name, &place.staging, partial, RenameMode::NoReplace),
            None => self.vfs.remove_file(&place.staging, name),
        }
    }

    /// Gives an inode that has a name this one instead.
    fn move_in(&self, place: &Place<V>, dir: &V::Dir, op: &Op<V>, source: &Source) -> io::Result<Outcome> {
        let name = op.path.name();
        let (from_dir, from) = match &source.origin {
            Origin::Vault(_, id) | Origin::Staging(id) => (None, id_name(*id)),
            Origin::Tree(path) => {
                let Some(holder) = self.open_parent(place, path)? else { return Ok(Outcome::Raced) };
                let there = self.vfs.stat(&holder, path.name())?.map(|meta| stamp_of(&meta));
                if there.is_none() || there != source.row.shown.as_ref().and_then(|shown| shown.stamp) {
                    return Ok(Outcome::Raced);
                }
                (Some(holder), path.name().to_vec())
            }
        };
        let own = if matches!(source.origin, Origin::Staging(_)) { &place.staging } else { &place.vault };
        let from_dir = from_dir.as_ref().unwrap_or(own);
        let expected = match &op.staged {
            Some(staged) => Some(self.vfs.stat_file(&staged.file)?.inode),
            None => None,
        };
        match self.vfs.rename(from_dir, &from, dir, name, RenameMode::NoReplace) {
            Ok(()) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => {
                return Ok(Outcome::Raced);
            }
            Err(error) => return Err(error),
        }
        // Where it cannot be looked at, the next look reads what it holds.
        if self.vfs.stat(dir, name).is_ok_and(|meta| meta.map(|meta| meta.inode) != expected) {
            // Somebody put something else there just before: it goes back, where its name is still free.
            return match self.vfs.rename(dir, name, from_dir, &from, RenameMode::NoReplace) {
                Ok(()) => Ok(Outcome::Raced),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => Ok(Outcome::Raced),
                Err(error) => Err(error),
            };
        }
        Ok(hands::stamp_of_put(&*self.vfs, dir, op, self.owners))
    }

    fn is_dir(&self, dir: &V::Dir, name: &[u8]) -> io::Result<bool> {
        Ok(self.vfs.stat(dir, name)?.is_some_and(|m| m.kind == Kind::Dir))
    }

    /// Moves a name into staging, where it is judged before it is filed.
    fn displace(&self, place: &Place<V>, dir: &V::Dir, name: &[u8], id: u64) -> io::Result<Outcome> {
        let staged_name = id_name(id);
        match self.vfs.rename(dir, name, &place.staging, &staged_name, RenameMode::NoReplace) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Outcome::Raced),
            Err(error) => return Err(error),
        }
        let came_out = self.is_dir(&place.staging, &staged_name);
        if !matches!(came_out, Ok(false)) {
            let back = self.vfs.rename(&place.staging, &staged_name, dir, name, RenameMode::NoReplace);
            match (back, came_out) {
                (Ok(()), came_out) => return came_out.map(|_| Outcome::Raced),
                (Err(error), Ok(_)) => return Err(error),
                // It is gone from its name, and is judged where it is.
                (Err(_), Err(_)) => {}
            }
        }
        Ok(Outcome::Done { stamp: None, provisional: false })
    }

    fn make_dir(&self, dir: &V::Dir, op: &Op<V>) -> io::Result<Outcome> {
        let Some(view) = &op.view else { return Ok(Outcome::Raced) };
        let set = self.attributes(view);
        match self.vfs.create_dir(dir, op.path.name(), set.mode.unwrap_or(0o755)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => return Ok(Outcome::Raced),
            Err(error) => return Err(error),
        }
        let name = op.path.name();
        match self.vfs.set_attributes(dir, name, &set).and_then(|()| self.vfs.stat(dir, name)) {
            Ok(Some(meta)) if meta.kind == Kind::Dir => Ok(timed(&set, Some(meta))),
            // Somebody put something else there just now: its stamp is not to pass for the directory's.
            Ok(_) => Ok(Outcome::Raced),
            // Nobody has seen it, most often.
            Err(why) if self.vfs.remove_dir(dir, name).is_ok() => Err(why),
            Err(why) => self.partly(dir, name, why),
        }
    }

    /// What is there after setting attributes failed.
    fn partly(&self, dir: &V::Dir, name: &[u8], why: io::Error) -> io::Result<Outcome> {
        match self.vfs.stat(dir, name) {
            Ok(Some(meta)) => Ok(Outcome::Partly { meta: Box::new(meta), why }),
            _ => Err(why),
        }
    }

    /// Sets attributes in place. A lease keeps writers out meanwhile, so that no write between our
    /// check and our stamp is taken for ours; without one the stamp proves nothing afterwards.
    fn set_in_place(&self, dir: &V::Dir, op: &Op<V>) -> io::Result<Outcome> {
        let Some(view) = &op.view else { return Ok(Outcome::Raced) };
        let (name, set) = (op.path.name(), self.attributes(view));
        let expected = op.row.shown.as_ref().and_then(|s| s.stamp);
        if !matches!(view.value, Value::File { .. }) {
            let Some(before) = self.vfs.stat(dir, name)?.filter(|meta| Some(stamp_of(meta)) == expected) else {
                return Ok(Outcome::Raced);
            };
            // What took its place may have its inode number.
            let same = |now: &Meta| (now.kind, now.inode, now.btime) == (before.kind, before.inode, before.btime);
            return match self.vfs.set_attributes(dir, name, &set).and_then(|()| self.vfs.stat(dir, name)) {
                Ok(meta) if !meta.as_ref().is_some_and(same) => Ok(Outcome::Raced),
                Ok(meta) => Ok(timed(&set, meta)),
                Err(why) => self.partly(dir, name, why),
            };
        }
        let file = self.vfs.open_file(dir, name)?;
        self.vfs.with_lease(&file, |writers| {
            if Some(stamp_of(&self.vfs.stat_file(&file)?)) != expected {
                return Ok(Outcome::Raced);
            }
            match self.vfs.set_file_attributes(&file, &set).and_then(|()| self.vfs.stat_file(&file)) {
                Ok(meta) => Ok(Outcome::Done { stamp: Some(stamp_of(&meta)), provisional: writers != Writers::None }),
                Err(why) => self.partly(dir, name, why),
            }
        })
    }

    /// A change that failed half-way may have left something in staging: what is not our own goes
    /// into the vault like anything displaced, and the next look finds the name as it is.
    fn rescue(&mut self, place: &Place<V>, op: &Op<V>, id: u64) -> Result<(), TreeError> {
        let disk = |source| TreeError::Disk { what: "reading staging", source };
        let Some(meta) = self.vfs.stat(&place.staging, &id_name(id)).map_err(disk)? else { return Ok(()) };
        let own = match (&op.staged, op.view.as_ref().map(|view| &view.value)) {
            (Some(staged), _) => self.vfs.stat_file(&staged.file).map_err(disk)?.inode == meta.inode,
            // One that a user made alike is the same version.
            (None, Some(Value::Symlink { target })) if meta.kind == Kind::Symlink => {
                self.vfs.read_link(&place.staging, &id_name(id)).map_err(disk)? == *target
            }
            (None, _) => false,
        };
        if own {
            return self.vfs.remove_file(&place.staging, &id_name(id)).map_err(disk);
        }
        self.judge_displaced(place, &op.path, id, &op.row, "replaced")
    }

    /// Directories above a path that somebody took away are seen as gone: nothing can be done beneath
    /// them as long as they count as shown.
    fn observe_lost_parents(&mut self, place: &Place<V>, path: &TreePath) -> Result<(), TreeError> {
        if !matches!(self.open_parent(place, path), Ok(None)) {
            return Ok(());
        }
        for dir in path.parents() {
            self.observe_in(place, &dir, false, false)?;
        }
        Ok(())
    }

    /// Stores what became of a change: what came out is judged, Shown is what the disk shows now.
    fn conclude(
        &mut self,
        place: &Place<V>,
        op: &Op<V>,
        id: u64,
        outcome: io::Result<Outcome>,
    ) -> Result<(), TreeError> {
        let (stamp, provisional) = match outcome {
            Ok(Outcome::Done { stamp, provisional }) => (stamp, provisional || self.is_racy(op, stamp)),
            Ok(Outcome::Raced) => {
                self.rescue(place, op, id)?;
                self.observe_lost_parents(place, &op.path)?;
                self.mark(&op.path, true, false);
                if let Some(from) = op.moved_from() {
                    self.mark(from, true, false);
                }
                return self.revisit(&op.path);
            }
            Ok(Outcome::Partly { meta, why }) => return self.conclude_partly(op, &meta, &why),
            Err(error) => {
                self.rescue(place, op, id)?;
                self.fail(&op.path, format!("{}: {error}", describe(op.kind)));
                return Ok(());
            }
        };
        let before = Self::shown(&op.row);
        let state = op.leaves();
        let displaced = op.kind == OpKind::Displace || (op.kind == OpKind::Put && before.state.is_some());
        if displaced {
            let lost = view::conflicts(&op.row.entry, &self.index.surroundings(&op.path, &op.row)?);
            let old = before.state.as_ref().map(|s| &s.value);
            let named = op.row.entry.content.values().any(|s| matches!(&s.content, Content::Absent { .. }));
            let reason = if lost.iter().any(|l| Some(&l.value) == old) {
                "conflict"
            } else if state.is_none() && named {
                "deleted"
            } else {
                "replaced"
            };
            self.judge_displaced(place, &op.path, id, &op.row, reason)?;
        }
        if let Some(staged) = &op.staged {
            self.conclude_source(op, (staged.size, staged.hash))?;
        }
        self.arrivals += u64::from(op.kind == OpKind::Put);
        let value = |state: Option<&State>| state.map(|s| s.value.clone());
        let same_content = value(before.state.as_ref()) == value(state.as_ref());
        let writer = self.writer_of(&op.row.entry, same_content)?;
        self.record(&op.path, op.row.seq, before.state.as_ref(), state.as_ref(), writer);
        self.note_applied(&op.path, op.row.seq, before.state.as_ref(), state.as_ref())?;
        let context = op.row.entry.context.clone();
        let state = fill_in(state, stamp);
        let mut row = self.index.row(&op.path)?;
        self.store_shown(&op.path, &mut row, ShownRow { shown: Shown { context, state }, stamp, provisional });
        self.apply_done(&op.path);
        if provisional {
            self.mark(&op.path, true, false);
        }
        if op.kind == OpKind::Put && self.is_shown_as_due(&op.path, &row)? {
            self.apply.take_offer(&op.path);
        } else {
            // A conflict that came out, another round.
            self.revisit(&op.path)?;
        }
        if op.view.is_none() { self.revisit_parent(&op.path) } else { Ok(()) }
    }

    /// Whether a write in the tick in which a file got its name could leave the stamp that we read: where its time is
    /// that of the tick. Source: LINUX.md section 2b.
    fn is_racy(&self, op: &Op<V>, stamp: Option<Stamp>) -> bool {
        let near = |stamp: Stamp| {
            let apart = stamp.ctime.nanos_since_epoch().saturating_sub(stamp.mtime.nanos_since_epoch());
            apart.saturating_abs() < RACY_NANOS
        };
        self.coarse && op.staged.is_some() && stamp.is_some_and(near)
    }

    /// Shows what there is of a change of attributes: the rest is tried again.
    fn conclude_partly(&mut self, op: &Op<V>, meta: &Meta, why: &io::Error) -> Result<(), TreeError> {
        let mut row = self.index.row(&op.path)?;
        let access = Some(access_of(meta, row.shown.as_ref(), self.owners));
        let state = op.leaves().map(|state| State { access, mtime: Some(meta.mtime), ..state });
        let (stamp, provisional) = (Some(stamp_of(meta)), meta.kind != Kind::Dir);
        let shown = Shown { context: op.row.entry.context.clone(), state };
        self.store_shown(&op.path, &mut row, ShownRow { shown, stamp, provisional });
        self.fail(&op.path, format!("{}: {why}", describe(op.kind)));
        Ok(())
    }

    /// A directory may have waited for the removal of what was in it.
    fn revisit_parent(&mut self, path: &TreePath) -> Result<(), TreeError> {
        match path.parent().filter(|d| !d.is_root()) {
            Some(dir) if self.index.view(&dir, &self.index.row(&dir)?)?.is_none() => self.revisit(&dir),
            _ => Ok(()),
        }
    }

    /// An inode got another name: it is not any more where it was.
    fn conclude_source(&mut self, op: &Op<V>, (size, hash): (u64, Hash)) -> Result<(), TreeError> {
        match op.source().map(|source| &source.origin) {
            None => Ok(()),
            Some(Origin::Staging(_)) => {
                self.forget_partial(&op.path);
                Ok(())
            }
            Some(Origin::Vault(path, id)) => {
                self.forget_version(path, *id, (size, Some(hash)));
                Ok(())
            }
            Some(Origin::Tree(from)) => {
                let mut row = self.index.row(from)?;
                let before = Self::shown(&row).state;
                let writer = self.writer_of(&row.entry, false)?;
                self.record(from, row.seq, before.as_ref(), None, writer);
                self.note_applied(from, row.seq, before.as_ref(), None)?;
                let shown = Shown { context: row.entry.context.clone(), state: None };
                self.store_shown(from, &mut row, ShownRow { shown, stamp: None, provisional: false });
                self.apply.release_path(from);
                self.revisit(from)?;
                self.revisit_parent(from)
            }
        }
    }
}

/// What became of a directory or a link whose attributes were set. A time that is not the one set is that of somebody who put
/// something there just now: a stamp with it would pass for ours, and is looked at instead.
fn timed(set: &SetAttributes, meta: Option<Meta>) -> Outcome {
    let ours = meta.as_ref().is_none_or(|meta| set.mtime.is_none_or(|time| time == meta.mtime));
    Outcome::Done { stamp: meta.filter(|_| ours).map(|meta| stamp_of(&meta)), provisional: !ours }
}

/// What a view leaves unmanaged is shown as the disk has it.
pub(super) fn fill_in(state: Option<State>, stamp: Option<Stamp>) -> Option<State> {
    let state = state?;
    let access = state.access.or_else(|| stamp.map(|s| view::access_by_number(s.mode, s.uid, s.gid)));
    Some(State { access, ..state })
}

const fn describe(kind: OpKind) -> &'static str {
    match kind {
        OpKind::Put => "cannot be put in place",
        OpKind::Displace => "cannot be moved into the vault",
        OpKind::Attributes => "its mode, owner or time cannot be set",
        OpKind::MakeDir => "the directory cannot be made",
        OpKind::RemoveDir => "the directory cannot be removed",
    }
}

/// Removals first, children before their directories; then the rest, directories before children.
fn order<V: Vfs>(ops: &mut [Box<Op<V>>]) {
    let removes = |kind| matches!(kind, OpKind::Displace | OpKind::RemoveDir);
    ops.sort_by(|a, b| match (removes(a.kind), removes(b.kind)) {
        (true, true) => b.path.cmp(&a.path),
        (false, false) => a.path.cmp(&b.path),
        (a_removes, _) => {
            if a_removes {
                std::cmp::Ordering::Less
            } else {
                std::cmp::Ordering::Greater
            }
        }
    });
}
