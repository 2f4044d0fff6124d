//! What an earlier life of the agent left: intents to settle, torn files, staged names.
//!
//! After a kill -9 what differs is somebody's edit. After a crash of the machine a file may carry
//! our time and not our content: it is torn, vaulted and fetched again, never announced (LINUX.md §1).

use pleach_protocol::entry::{Entry, Value};
use pleach_protocol::mint::Shown;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::version::NodeId;
use pleach_protocol::view;

use super::displace::{FOUND_BIT, id_name, name_id};
use super::observe::is_no_dir;
use super::perform::{UNLOCKED, is_locked};
use super::release::RELEASE;
use super::{Tree, TreeError, content_of};
use crate::kv::Kv;
use crate::look::{self, Care, Look, stamp_of};
use crate::root::Place;
use crate::rows::{self, EntryRow, Intent, IntentOp, Pairing, ProblemRow, ShownRow, Space, Stamp, VaultRow};
use crate::vfs::{Kind, Meta, RenameMode, SetAttributes, Vfs};

const JOURNAL_ROWS: usize = 512;

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Settles what was intended, before the first scan. `crashed`: the machine went down since.
    pub(super) fn recover(&mut self, crashed: bool) -> Result<(), TreeError> {
        let place = self.enter()?;
        self.pass_ids_in_use(&place)?;
        let (start, end) = (vec![Space::Intent as u8], vec![Space::Intent as u8 + 1]);
        let batches: Vec<(Vec<u8>, Vec<Intent>)> = self.index.others(&start, &end, usize::MAX)?;
        let count: usize = batches.iter().map(|(_, intents)| intents.len()).sum();
        if count > 0 {
            tracing::info!(count, crashed, "changes that were under way are settled");
        }
        for (key, intents) in batches {
            for intent in intents {
                self.settle_intent(&place, intent, crashed)?;
            }
            self.index.delete(key);
        }
        self.recover_move(&place)?;
        self.vfs
            .sync_handle(&place.root)
            .and_then(|handle| self.vfs.sync_all(&handle))
            .map_err(|source| TreeError::Disk { what: "making recovered changes durable", source })?;
        let head = self.index.meta().head;
        self.index.flush()?;
        self.find_partials(&place)?;
        self.clear_staging(&place)?;
        if crashed {
            self.pair_what_was_not_durable(&place)?;
        }
        // It was synced above with all the rest: a later crash undoes none of it.
        self.index.meta_mut().synced = head;
        self.find_late_writers()?;
        let problems: Vec<(Vec<u8>, ProblemRow)> =
            self.index.others(&[Space::Problem as u8], &[Space::Problem as u8 + 1], usize::MAX)?;
        for (key, row) in problems {
            if let Some(path) = rows::key_path(&key) {
                self.problems.insert(path.clone(), row.reason);
                self.revisit(&path)?;
            }
        }
        Ok(())
    }

    /// Notes what is in the vault, and gives no id that a file here has: a store that is younger than the vault, lost or put back or
    /// killed before its last batch, would give it again, and nothing could be filed under it.
    fn pass_ids_in_use(&mut self, place: &Place<V>) -> Result<(), TreeError> {
        let disk = |source| TreeError::Disk { what: "reading the vault", source };
        let mut greatest = 0;
        for (dir, vault) in [(&place.staging, false), (&place.vault, true)] {
            for id in self.vfs.list(dir).map_err(disk)?.iter().filter_map(|found| name_id(&found.name)) {
                greatest = greatest.max(id & !FOUND_BIT);
                if vault {
                    self.unlisted.add(id);
                }
            }
        }
        if greatest > self.index.meta().next_id {
            self.index.meta_mut().next_id = greatest;
        }
        Ok(())
    }

    fn settle_intent(&mut self, place: &Place<V>, intent: Intent, crashed: bool) -> Result<(), TreeError> {
        let disk = |source| TreeError::Disk { what: "settling an intended change", source };
        let name = id_name(intent.id);
        let row = self.index.row(&intent.path)?;
        let parent = self.open_parent(place, &intent.path).map_err(disk)?;
        let there = match &parent {
            Some(dir) => self.vfs.stat(dir, intent.path.name()).map_err(disk)?,
            None => None,
        };
        let staged = self.vfs.stat(&place.staging, &name).map_err(disk)?;
        let vaulted = self.vfs.stat(&place.vault, &name).map_err(disk)?;
        let ours = |meta: &Meta| intent.inode == Some((meta.inode, meta.btime));
        if matches!(intent.op, IntentOp::Attributes | IntentOp::MakeDir) && there.is_some() {
            self.note_applied(&intent.path, row.seq, None, intent.state.as_ref())?;
        }
        let carried = match intent.op {
            IntentOp::Create if intent.inode.is_none() => there.is_some() && staged.is_none(),
            IntentOp::Create => there.as_ref().is_some_and(ours),
            IntentOp::Replace if intent.inode.is_some() => {
                there.as_ref().is_some_and(ours) || vaulted.is_some() || staged.as_ref().is_some_and(|m| !ours(m))
            }
            IntentOp::Replace => {
                vaulted.is_some() || self.holds_displaced(place, &intent, staged.as_ref()).map_err(disk)?
            }
            IntentOp::Delete => vaulted.is_some() || staged.is_some(),
            IntentOp::Attributes => return self.finish_attributes(parent.as_ref(), &intent, there, row).map_err(disk),
            IntentOp::MakeDir => {
                self.finish_attributes(parent.as_ref(), &intent, there, row).map_err(disk)?;
                return self.restore_parent(place, &intent.path);
            }
            IntentOp::RemoveDir => there.is_none() && parent.is_some(),
        };
        if !carried {
            if staged.as_ref().is_some_and(|m| ours(m) || intent.inode.is_none()) && intent.op != IntentOp::Delete {
                self.vfs.remove_file(&place.staging, &name).map_err(disk)?;
            }
            return Ok(());
        }
        tracing::debug!(path = %intent.path, op = ?intent.op, "an intended change was found carried out");
        if let Some(from) = &intent.from {
            self.settle_source(place, from, &intent)?;
        }
        let out = matches!(intent.op, IntentOp::Replace | IntentOp::Delete);
        if out && vaulted.is_some() {
            self.record_vaulted(place, &intent, &row)?;
        } else if out && staged.is_some() {
            let reason = if intent.op == IntentOp::Delete { "deleted" } else { "replaced" };
            self.judge_displaced(place, &intent.path, intent.id, &row, reason)?;
        }
        if crashed && self.is_torn(parent.as_ref(), &intent, there.as_ref()).map_err(disk)? {
            return self.put_torn_aside(place, parent.as_ref(), &intent, &row);
        }
        let stamp = there.as_ref().filter(|m| intent.inode.is_none() || ours(m)).map(stamp_of);
        let mut row = self.index.row(&intent.path)?;
        // The stamp proves nothing until the content was read again: somebody may have written since.
        let shown = Shown { context: intent.context, state: intent.state };
        self.note_applied(&intent.path, row.seq, Self::shown(&row).state.as_ref(), shown.state.as_ref())?;
        self.store_shown(&intent.path, &mut row, ShownRow { shown, stamp, provisional: true });
        self.restore_parent(place, &intent.path)?;
        self.revisit(&intent.path)
    }

    /// What a name was given to is not any more where it was.
    fn settle_source(
        &mut self,
        place: &Place<V>,
        (from, id): &(TreePath, u64),
        intent: &Intent,
    ) -> Result<(), TreeError> {
        let disk = |source| TreeError::Disk { what: "settling an intended change", source };
        if *id > 0 {
            let content = intent.state.as_ref().map(|state| content_of(&state.value));
            let (size, hash) = content.unwrap_or_default();
            self.forget_version(from, *id, (size.unwrap_or(0), hash));
            return Ok(());
        }
        let there = match self.open_parent(place, from).map_err(disk)? {
            Some(dir) => self.vfs.stat(&dir, from.name()).map_err(disk)?,
            None => None,
        };
        // Whatever took its place is a change of what was shown there.
        if there.is_none() {
            let mut row = self.index.row(from)?;
            let shown = Shown { context: row.entry.context.clone(), state: None };
            self.note_applied(from, row.seq, Self::shown(&row).state.as_ref(), None)?;
            self.store_shown(from, &mut row, ShownRow { shown, stamp: None, provisional: false });
        }
        self.revisit(from)
    }

    /// Whether a symbolic link's exchange took place: staging holds anything but the link. What became of the name since does
    /// not count, for a user may have taken the link away.
    fn holds_displaced(&self, place: &Place<V>, intent: &Intent, staged: Option<&Meta>) -> std::io::Result<bool> {
        let Some(Value::Symlink { target }) = intent.state.as_ref().map(|s| &s.value) else { return Ok(false) };
        let Some(staged) = staged else { return Ok(false) };
        Ok(staged.kind != Kind::Symlink || self.vfs.read_link(&place.staging, &id_name(intent.id))? != *target)
    }

    /// Attributes of files and directories are set again, as far as the file is still the one.
    fn finish_attributes(
        &mut self,
        parent: Option<&V::Dir>,
        intent: &Intent,
        there: Option<Meta>,
        mut row: EntryRow,
    ) -> std::io::Result<()> {
        let (Some(dir), Some(meta), Some(state)) = (parent, there, intent.state.as_ref()) else { return Ok(()) };
        let is_dir = meta.kind == Kind::Dir;
        if is_dir != (state.value == Value::Dir) {
            return Ok(());
        }
        let known = row.shown.as_ref().and_then(|s| s.stamp);
        let made = intent.op == IntentOp::MakeDir;
        let same_file =
            known.is_some_and(|k| k.inode == meta.inode && k.btime == meta.btime && k.size == stamp_of(&meta).size);
        let times_known = known.is_some_and(|k| k.mtime == meta.mtime) || state.mtime == Some(meta.mtime) || is_dir;
        let still_the_one = made || (same_file && times_known);
        if !still_the_one {
            return Ok(());
        }
        let set = SetAttributes {
            owner: state.access.as_ref().filter(|_| self.owners).map(|a| (a.owner.id, a.group.id)),
            mode: state.access.as_ref().map(|a| a.mode),
            mtime: state.mtime,
        };
        let name = intent.path.name();
        let is_set = match &state.value {
            Value::File { .. } => {
                self.vfs.open_file(dir, name).and_then(|file| self.vfs.set_file_attributes(&file, &set))
            }
            _ => self.vfs.set_attributes(dir, name, &set),
        };
        match is_set {
            // Somebody took it away just now.
            Err(error) if is_no_dir(&error) => return Ok(()),
            is_set => is_set?,
        }
        // Somebody put something else there just now: its stamp is not to pass for this one's.
        let Some(now) = self.vfs.stat(dir, name)?.filter(|now| now.inode == meta.inode) else { return Ok(()) };
        let stamp = Some(stamp_of(&now));
        let shown = Shown { context: intent.context.clone(), state: Some(state.clone()) };
        self.store_shown(&intent.path, &mut row, ShownRow { shown, stamp, provisional: !is_dir });
        Ok(())
    }

    /// The vault has it already; only its row was lost.
    fn record_vaulted(&mut self, place: &Place<V>, intent: &Intent, row: &EntryRow) -> Result<(), TreeError> {
        let key = rows::vault_key(&intent.path, intent.id);
        let known: Vec<(Vec<u8>, VaultRow)> = self.index.others(&key, &rows::after_prefix(&key), 1)?;
        if !known.is_empty() {
            return Ok(());
        }
        let disk = |source| TreeError::Disk { what: "filing a displaced version", source };
        let name = id_name(intent.id);
        if self.vfs.stat(&place.staging, &name).map_err(disk)?.is_some() {
            // It has other names: it was copied into the vault, and filing it ended before it was taken out of staging.
            // Somebody may have written through those since, so the copy stays.
            self.keep_found(place, &place.vault, &name).map_err(disk)?;
        } else {
            self.vfs.rename(&place.vault, &name, &place.staging, &name, RenameMode::NoReplace).map_err(disk)?;
        }
        self.judge_displaced(place, &intent.path, intent.id, row, "replaced")
    }

    /// Whether a file carries our inode and time but not our content.
    fn is_torn(&self, parent: Option<&V::Dir>, intent: &Intent, there: Option<&Meta>) -> std::io::Result<bool> {
        let (Some(dir), Some(meta), Some(state)) = (parent, there, intent.state.as_ref()) else { return Ok(false) };
        let Value::File { .. } = state.value else { return Ok(false) };
        if intent.inode != Some((meta.inode, meta.btime)) || Some(meta.mtime) != state.mtime {
            return Ok(false);
        }
        let care = Care { rehash: true, take_open: true, ..Care::default() };
        match look::look(&*self.vfs, dir, intent.path.name(), None, care)? {
            Look::Found(found) => Ok(found.state.value != state.value),
            _ => Ok(false),
        }
    }

    /// A torn file goes into the vault; the disk shows nothing, and the content is fetched again.
    fn put_torn_aside(
        &mut self,
        place: &Place<V>,
        parent: Option<&V::Dir>,
        intent: &Intent,
        row: &EntryRow,
    ) -> Result<(), TreeError> {
        tracing::warn!(path = %intent.path, "a file was torn by a crash of the machine: it is fetched again");
        let disk = |source| TreeError::Disk { what: "putting a torn file aside", source };
        let id = self.index.next_id();
        if let Some(dir) = parent {
            let to = id_name(id);
            self.vfs.rename(dir, intent.path.name(), &place.vault, &to, RenameMode::NoReplace).map_err(disk)?;
            self.list_torn(place, &intent.path, id, row).map_err(disk)?;
        }
        let mut now = self.index.row(&intent.path)?;
        let context = Self::shown(row).context;
        self.store_shown(
            &intent.path,
            &mut now,
            ShownRow { shown: Shown { context, state: None }, stamp: None, provisional: false },
        );
        self.revisit(&intent.path)
    }

    /// What is left of a torn file is listed among the versions, and expires like one.
    fn list_torn(&mut self, place: &Place<V>, path: &TreePath, id: u64, row: &EntryRow) -> std::io::Result<()> {
        let care = Care { rehash: true, take_open: true, owners: self.owners, ..Care::default() };
        let Look::Found(found) = look::look(&*self.vfs, &place.vault, &id_name(id), None, care)? else { return Ok(()) };
        let (size, hash) = content_of(&found.state.value);
        let filed = VaultRow {
            hash,
            size: size.unwrap_or(0),
            state: found.state,
            time: self.now(),
            reason: "torn".to_owned(),
            open: false,
            stamp: Some(found.stamp),
            shown: Self::shown(row),
        };
        self.put_version(path, id, &filed);
        Ok(())
    }

    /// Sets the time of a directory in which an intended change was found carried out.
    fn restore_parent(&mut self, place: &Place<V>, path: &TreePath) -> Result<(), TreeError> {
        let Some(dir) = path.parent().filter(|d| !d.is_root()) else { return Ok(()) };
        let mut row = self.index.row(&dir)?;
        let Some(shown) = row.shown.clone() else { return Ok(()) };
        let (Some(mut stamp), Some(mtime)) = (shown.stamp, shown.shown.state.as_ref().and_then(|s| s.mtime)) else {
            return Ok(());
        };
        let holder = match self.open_parent(place, &dir) {
            Ok(Some(holder)) => holder,
            Ok(None) => return Ok(()),
            Err(_) => return self.owe_times(vec![dir]),
        };
        let there = self.vfs.stat(&holder, dir.name()).ok().flatten().map(|meta| meta.mode);
        // It was open for our work when that ended.
        let left_open = !self.owners && is_locked(stamp.mode) && there == Some(stamp.mode | UNLOCKED);
        let mode = left_open.then_some(stamp.mode);
        let set = SetAttributes { mtime: Some(mtime), mode, ..SetAttributes::default() };
        if self.vfs.set_attributes(&holder, dir.name(), &set).is_ok() {
            stamp.mtime = mtime;
            self.store_shown(&dir, &mut row, ShownRow { stamp: Some(stamp), ..shown });
            return Ok(());
        }
        self.owe_times(vec![dir])
    }

    /// What no intent speaks of is not known to be ours: it goes into the vault, never away.
    fn clear_staging(&mut self, place: &Place<V>) -> Result<(), TreeError> {
        let disk = |source| TreeError::Disk { what: "clearing staging", source };
        let mut names = self.vfs.list(&place.staging).map_err(disk)?;
        names.retain(|name| !self.is_partial(&name.name));
        for name in names {
            let kept = match name.name.starts_with(RELEASE) {
                true => self.take_apart(place, &name.name),
                false => self.keep_found(place, &place.staging, &name.name),
            };
            kept.map_err(disk)?;
        }
        Ok(())
    }

    /// Keeps a file that no row speaks of in the vault, under a name that says so, until it is listed.
    pub(super) fn keep_found(&mut self, place: &Place<V>, dir: &V::Dir, name: &[u8]) -> std::io::Result<()> {
        let id = self.index.next_id() | FOUND_BIT;
        let kept = id_name(id);
        tracing::warn!(kept = %String::from_utf8_lossy(&kept), "an unknown file is kept in the vault");
        self.vfs.rename(dir, name, &place.vault, &kept, RenameMode::NoReplace)?;
        self.unlisted.add(id);
        Ok(())
    }

    /// What was minted here behind the last sync and is not on disk as minted, absent or older
    /// than this boot, is no change of a user's: it pairs, with rank 0 (DESIGN.md §7, 2).
    fn pair_what_was_not_durable(&mut self, place: &Place<V>) -> Result<(), TreeError> {
        let mut after = self.index.meta().synced;
        loop {
            let rows = self.index.journal(after, JOURNAL_ROWS)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            after = *last;
            for (_, path) in rows {
                let mut row = self.index.row(&path)?;
                // What is shown of others' changes was durable before it was shown.
                if row.shown.is_none() || !is_written_by(&row.entry, self.options.node) {
                    continue;
                }
                let care = Care { rehash: true, take_open: true, owners: self.owners, ..Care::default() };
                let seen = match self.open_parent(place, &path) {
                    Ok(Some(dir)) => look::look(&*self.vfs, &dir, path.name(), None, care),
                    Ok(None) => Ok(Look::Gone),
                    Err(error) => Err(error),
                };
                let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref());
                let stamp = row.shown.as_ref().and_then(|s| s.stamp);
                let undone = match &seen {
                    Ok(Look::Gone) => shown.is_some(),
                    Ok(Look::Found(found)) => {
                        // What changed after our last look is a user's change, whatever became of ours.
                        let later = stamp.is_some_and(|s| changed_at(&found.stamp) > changed_at(&s));
                        found.stamp.ctime < self.options.booted && !later && !view_equal(shown, &found.state)
                    }
                    _ => false,
                };
                if undone {
                    tracing::warn!(path = %path, "a change was lost with the machine's crash: it pairs");
                    row.shown = None;
                    row.pairing = Pairing::Lowest;
                    self.index.put_row(&path, &row);
                    self.revisit(&path)?;
                }
            }
            self.index.commit_if_large()?;
        }
    }
}

/// Whether something that counts of an entry was minted by a node.
fn is_written_by(entry: &Entry, node: NodeId) -> bool {
    let dots = entry.content.keys().chain(entry.times.keys()).chain(entry.access.keys());
    dots.into_iter().any(|dot| dot.actor.node == node)
}

/// When an inode changed; directories keep no change time.
fn changed_at(stamp: &Stamp) -> Time {
    stamp.ctime.max(stamp.mtime)
}

fn view_equal(shown: Option<&view::State>, found: &view::State) -> bool {
    shown.is_some_and(|s| found.shows(s))
}
