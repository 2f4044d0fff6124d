//! Directories that appear only when complete (`atomic`): a release is gathered, built in staging, and shown by one rename.
//!
//! Nothing of one is shown before, so nothing of it is stored but its contents, which are fetched into the vault: a crash
//! puts what was built back there (`recover`, `unlisted`), and the work begins anew. The intents of all its paths are
//! durable before the rename, as for any other change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::mint::Shown;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::view::State;

use super::apply::{Want, WantId};
use super::displace::id_name;
use super::fetch::REASON_FETCHED;
use super::perform::fill_in;
use super::{PAUSE_SECS_MAX, Tree, TreeError, content_of, is_due};
use crate::index::IndexError;
use crate::kv::Kv;
use crate::look::{self, stamp_of};
use crate::root::Place;
use crate::rows::{self, EntryRow, Intent, IntentOp, ShownRow, Space, Stamp, VaultRow};
use crate::vfs::{Kind, RenameMode, Vfs};

/// Paths of one; more appear as they come, and the log says so.
pub(super) const RELEASE_PATHS_MAX: usize = 100_000;
/// Rows that one call looks at, and paths that it builds: the owner has others to serve.
const STEP_PATHS: usize = 256;
/// Contents of all of them that are on their way at once.
const FETCHING_MAX: usize = 32;
/// Intents in one row.
const INTENTS: usize = 512;
/// A moved content up to this length is read once more, in bytes: it came with its announcement, and nothing synced it.
const READ_AGAIN_MAX: u64 = 64 * 1024;
/// What the name of one begins with while it is built in staging: nothing of it is a user's.
pub(super) const RELEASE: &[u8] = b"release-";

fn release_name(id: u64) -> Vec<u8> {
    [RELEASE, &id_name(id)[..]].concat()
}

/// A directory that is not shown yet.
#[derive(Debug)]
pub(super) struct Release {
    stage: Stage,
    /// Contents on their way.
    fetching: BTreeSet<WantId>,
    /// Something beneath it changed since it was looked through.
    changed: bool,
    /// The journal's end when it was looked through.
    seen: u64,
    /// Paths whose content was here and was not what it was noted to be: it is fetched.
    torn: BTreeSet<TreePath>,
    /// All that peers know of it is known here.
    told: bool,
    /// A path whose content did not come, though it was asked for.
    lacks: Option<TreePath>,
    /// After contents that nobody had: not before this.
    retry_at: Option<Time>,
    pause_secs: i64,
}

#[derive(Debug)]
enum Stage {
    /// It is looked through, from behind this path on, to its end.
    Gather { after: Option<TreePath>, paths: usize, missing: Option<TreePath>, ended: bool },
    /// All of it is here.
    Whole,
    /// It is being built.
    Build(Box<Build>),
}

#[derive(Debug)]
struct Build {
    /// Its name in staging.
    id: u64,
    after: Option<TreePath>,
    made: Vec<Made>,
}

/// What was built of one path.
#[derive(Debug)]
struct Made {
    path: TreePath,
    row: EntryRow,
    view: State,
    stamp: Option<Stamp>,
    vaulted: Option<(u64, u64, Hash)>,
}

/// Why one cannot be carried on.
#[derive(Debug)]
enum Fault {
    /// The disk does not let it be built: a problem of its path, and nothing of it is shown.
    Disk(io::Error),
    /// The tree closes; what is shown by then is noted at its next start, from the intents.
    Tree(TreeError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Disk(error)
    }
}

impl From<TreeError> for Fault {
    fn from(error: TreeError) -> Self {
        Self::Tree(error)
    }
}

impl From<IndexError> for Fault {
    fn from(error: IndexError) -> Self {
        Self::Tree(error.into())
    }
}

impl Release {
    fn new() -> Self {
        Self {
            stage: Stage::gather(),
            fetching: BTreeSet::new(),
            changed: false,
            seen: 0,
            torn: BTreeSet::new(),
            told: false,
            lacks: None,
            retry_at: None,
            pause_secs: 1,
        }
    }

    fn rests(&self, now: Time) -> bool {
        let waits = match self.stage {
            Stage::Gather { ended: true, .. } => !self.fetching.is_empty(),
            Stage::Gather { .. } => self.fetching.len() >= FETCHING_MAX,
            Stage::Whole => !self.told && !self.changed,
            Stage::Build(_) => false,
        };
        waits || self.retry_at.is_some_and(|at| !is_due(at, now))
    }
}

impl Stage {
    const fn gather() -> Self {
        Self::Gather { after: None, paths: 0, missing: None, ended: false }
    }
}

/// Releases by path; those that are too large to be any.
#[derive(Debug, Default)]
pub(super) struct Releases {
    held: BTreeMap<TreePath, Release>,
    plain: BTreeSet<TreePath>,
}

impl Releases {
    /// The one that a path lies beneath.
    pub(super) fn above(&self, path: &TreePath) -> Option<TreePath> {
        if self.held.is_empty() {
            return None;
        }
        path.parents().find(|dir| self.held.contains_key(dir))
    }
}

/// The paths in the tree that a link may lead to: by the names alone; an absolute target by each of its ends, for where
/// the tree lies is not known here, and may be another place on another node.
fn led_to(link: &TreePath, target: &[u8]) -> Vec<TreePath> {
    let names: Vec<&[u8]> = target.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
    let path = |names: &[&[u8]]| TreePath::parse(&names.join(&b'/')).ok();
    if target.starts_with(b"/") {
        return (0..names.len()).filter_map(|from| path(&names[from..])).collect();
    }
    let above = link.parent().unwrap_or_default();
    let mut at: Vec<&[u8]> = above.components().collect();
    for name in names {
        if name != b".." {
            at.push(name);
        } else if at.pop().is_none() {
            return Vec::new();
        }
    }
    path(&at).into_iter().collect()
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Whether a directory is to appear only when it is complete: the topmost that the config's rules name. What is ignored is not
    /// to appear at all.
    pub(super) fn is_release(&self, path: &TreePath) -> bool {
        let rules = &self.options.atomic;
        !rules.has_none()
            && rules.ignored_itself(path, true)
            && !path.parents().any(|dir| !dir.is_root() && rules.ignored_itself(&dir, true))
            && !self.releases.plain.contains(path)
            && !self.options.ignore.ignored(path, true)
    }

    /// Whether one could not be carried on, and is tried again.
    pub(super) fn is_release_stuck(&self, path: &TreePath) -> bool {
        self.releases.held.get(path).is_some_and(|release| release.retry_at.is_some())
    }

    /// Tries those again at once that could not be carried on.
    pub(super) fn retry_releases_now(&mut self) {
        let now = self.now();
        for release in self.releases.held.values_mut().filter(|release| release.retry_at.is_some()) {
            (release.retry_at, release.pause_secs) = (Some(now), 1);
        }
    }

    /// Whether a symbolic link leads into one that is to appear and does not yet.
    pub(super) fn leads_into_release(&self, link: &TreePath, target: &[u8]) -> Result<bool, TreeError> {
        if self.options.atomic.has_none() {
            return Ok(false);
        }
        for to in led_to(link, target) {
            for dir in to.parents().chain([to.clone()]).filter(|dir| self.is_release(dir)) {
                if !link.is_beneath(&dir) && !self.is_release_over(&dir)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// A directory is not made: it is held until it is complete.
    pub(super) fn hold_release(&mut self, path: &TreePath) {
        self.releases.held.entry(path.clone()).or_insert_with(Release::new);
    }

    /// A path beneath one that is held is to show something else: a content that came with that is kept.
    pub(super) fn hold_beneath(
        &mut self,
        place: &Place<V>,
        top: &TreePath,
        path: &TreePath,
        row: &EntryRow,
    ) -> Result<(), TreeError> {
        if let Some(release) = self.releases.held.get_mut(top).filter(|release| row.seq > release.seen) {
            (release.changed, release.told) = (true, false);
        }
        // It counts as applied with the directory, not before.
        self.apply.hold_back(top, row.seq);
        let Some(content) = self.apply.take_offer(path) else { return Ok(()) };
        let view = self.index.view(path, row)?;
        let Some(Value::File { size, hash }) = view.map(|view| view.value) else { return Ok(()) };
        if Hash(*blake3::hash(&content).as_bytes()) != hash || self.has_content(path, hash) {
            return Ok(());
        }
        let id = self.index.next_id();
        let keep = || {
            let file = self.vfs.create_temp(&place.vault)?;
            self.vfs.write_at(&file, 0, &content)?;
            self.vfs.link_temp(&self.vfs.finish_temp(file)?, &place.vault, &id_name(id))
        };
        // One that is not kept is asked for.
        if keep().is_ok() {
            self.put_fetched(path, id, (size, hash));
        }
        Ok(())
    }

    /// Directories all of which is here, as far as is known: they appear once [`Tree::release_told`] says that peers know
    /// nothing more of them.
    pub fn whole_releases(&self) -> Vec<TreePath> {
        let whole = |release: &Release| matches!(release.stage, Stage::Whole) && !release.changed && !release.told;
        self.releases.held.iter().filter(|(_, release)| whole(release)).map(|(path, _)| path.clone()).collect()
    }

    /// Directories that do not appear yet, each with a path beneath it whose content did not come, where there is one.
    pub fn held_releases(&self) -> impl Iterator<Item = (&TreePath, Option<&TreePath>)> {
        self.releases.held.iter().map(|(path, release)| (path, release.lacks.as_ref()))
    }

    /// Peers know nothing more of such a directory than was known here when it was whole.
    pub fn release_told(&mut self, path: &TreePath) {
        if let Some(release) = self.releases.held.get_mut(path).filter(|release| !release.changed) {
            release.told = true;
        }
    }

    /// Whether such directories are to be worked on at the next call of the applier.
    pub(super) fn is_releasing(&self) -> bool {
        let now = self.now();
        self.index.meta().paired && self.releases.held.values().any(|release| !release.rests(now))
    }

    /// Carries them on.
    pub(super) fn release_on(&mut self, wants: &mut Vec<Want>) -> Result<(), TreeError> {
        let tops: Vec<TreePath> = self.releases.held.keys().cloned().collect();
        for top in tops {
            let Some(mut release) = self.releases.held.remove(&top) else { continue };
            release.fetching.retain(|id| self.fetches.contains_key(id));
            if self.is_release_over(&top)? {
                self.give_up(&top, release)?;
                continue;
            }
            let now = self.now();
            if release.changed && !matches!(release.stage, Stage::Gather { after: None, .. }) {
                self.scrap(&mut release)?;
                release.stage = Stage::gather();
            }
            if release.rests(now) {
                self.releases.held.insert(top, release);
                continue;
            }
            let shown = match &release.stage {
                Stage::Gather { .. } => {
                    self.gather_on(&top, &mut release, wants)?;
                    false
                }
                _ => match self.build_on(&top, &mut release) {
                    Ok(shown) => shown,
                    Err(Fault::Tree(error)) => return Err(error),
                    Err(Fault::Disk(error)) => {
                        self.set_problem(&top, format!("it cannot be put together: {error}"));
                        self.rest(&mut release);
                        release.changed = true;
                        false
                    }
                },
            };
            if !shown && !self.releases.plain.contains(&top) {
                self.releases.held.insert(top, release);
            }
        }
        Ok(())
    }

    /// Whether a directory is there by now, or is not to be any more.
    fn is_release_over(&self, top: &TreePath) -> Result<bool, TreeError> {
        let row = self.index.row(top)?;
        let shown = self.known_there(top, &row)?.is_some_and(|s| s.shown.state.is_some());
        let is_dir = self.index.view(top, &row)?.is_some_and(|view| view.value == Value::Dir);
        Ok(shown || !is_dir || !self.is_release(top))
    }

    /// It is not held any more: what is beneath it is planned as anything else.
    fn give_up(&mut self, top: &TreePath, mut release: Release) -> Result<(), TreeError> {
        self.scrap(&mut release)?;
        self.clear_problem(top);
        self.plan_anew();
        self.revisit(top)
    }

    /// Looks through what is beneath, and asks for contents that are not here.
    fn gather_on(&mut self, top: &TreePath, release: &mut Release, wants: &mut Vec<Want>) -> Result<(), TreeError> {
        if matches!(release.stage, Stage::Gather { ended: true, .. }) {
            release.stage = Stage::gather();
        }
        let Stage::Gather { after, paths, missing, ended } = &mut release.stage else { return Ok(()) };
        if after.is_none() {
            (release.changed, release.seen) = (false, self.index.meta().head);
        }
        let found = self.index.beneath(top, after.as_ref(), STEP_PATHS)?;
        let whole = found.len() < STEP_PATHS;
        for (path, row) in found {
            let view = self.index.view(&path, &row)?.map(|view| view.value);
            if let Some(Value::File { size, hash }) = view
                && !self.options.ignore.ignored(&path, false)
                && !self.has_for(&release.torn, &path, hash)?
            {
                let want = if release.fetching.len() < FETCHING_MAX { self.fetch(&path, hash, size)? } else { None };
                // Others are on their way: it is asked for when some of them came.
                let Some(want) = want else { return Ok(()) };
                release.fetching.insert(want.id);
                wants.push(want);
                missing.get_or_insert_with(|| path.clone());
            }
            *paths += 1;
            *after = Some(path);
        }
        if *paths > RELEASE_PATHS_MAX {
            tracing::warn!(path = %top, "it has more than {RELEASE_PATHS_MAX} paths: it appears as they come");
            self.releases.plain.insert(top.clone());
            self.plan_anew();
            return self.revisit(top);
        }
        if !whole {
            return Ok(());
        }
        let Some(path) = missing.take() else {
            (release.pause_secs, release.lacks, release.retry_at) = (1, None, None);
            release.stage = Stage::Whole;
            self.clear_problem(top);
            return Ok(());
        };
        *ended = true;
        if release.lacks.replace(path.clone()).is_some_and(|before| before == path) {
            self.set_problem(top, format!("it appears once all of it is here; the content of '{path}' is not"));
            self.rest(release);
        }
        Ok(())
    }

    /// It is tried again after a while.
    fn rest(&self, release: &mut Release) {
        let now = self.now();
        release.retry_at = Some(Time::new(now.secs.saturating_add(release.pause_secs), now.nanos));
        release.pause_secs = (release.pause_secs * 2).min(PAUSE_SECS_MAX);
    }

    /// Whether a content is here; one that was not what it was noted to be counts only once it was fetched.
    fn has_for(&self, torn: &BTreeSet<TreePath>, path: &TreePath, hash: Hash) -> Result<bool, TreeError> {
        match torn.contains(path) {
            true => Ok(!self.fetched(path, hash)?.is_empty()),
            false => Ok(self.has_content(path, hash)),
        }
    }

    /// What was brought into the vault for a path.
    fn fetched(&self, path: &TreePath, hash: Hash) -> Result<Vec<u64>, TreeError> {
        let (start, end) = rows::vault_range(path);
        let found: Vec<(Vec<u8>, VaultRow)> = self.index.others(&start, &end, usize::MAX)?;
        let fetched = found.iter().filter(|(_, row)| row.hash == Some(hash) && row.reason == REASON_FETCHED);
        Ok(fetched.filter_map(|(key, _)| Some(rows::key_vault(key)?.1)).collect())
    }

    /// Builds some of it; true where it is shown by now.
    fn build_on(&mut self, top: &TreePath, release: &mut Release) -> Result<bool, Fault> {
        let place = self.enter()?;
        if matches!(release.stage, Stage::Whole) {
            let id = self.index.next_id();
            self.vfs.create_dir(&place.staging, &release_name(id), 0o700)?;
            release.stage = Stage::Build(Box::new(Build { id, after: None, made: Vec::new() }));
        }
        let Stage::Build(build) = &mut release.stage else { return Ok(false) };
        if build.after.is_none() {
            let row = self.index.row(top)?;
            let Some(view) = self.index.view(top, &row)? else { return Ok(false) };
            build.made.push(Made { path: top.clone(), row, view, stamp: None, vaulted: None });
            build.after = Some(top.clone());
        }
        let after = build.after.clone().filter(|after| after != top);
        let found = self.index.beneath(top, after.as_ref(), STEP_PATHS)?;
        let whole = found.len() < STEP_PATHS;
        let staged = self.vfs.open_dir(&place.staging, &release_name(build.id))?;
        for (path, row) in found {
            build.after = Some(path.clone());
            let view = self.index.view(&path, &row)?;
            let Some(view) = view.filter(|view| !self.options.ignore.ignored(&path, view.value == Value::Dir)) else {
                continue;
            };
            let mut made = Made { path, row, view, stamp: None, vaulted: None };
            if !self.build_one(&place, &staged, top, &mut made, &mut release.torn)? {
                // It went, or is not what it was: it is gathered again.
                release.changed = true;
                return Ok(false);
            }
            build.made.push(made);
        }
        if !whole {
            return Ok(false);
        }
        match self.finish_build(&place, top, build)? {
            Some(parent) => self.show_release(&place, &parent, top, build),
            // Where it belongs is no directory (any more).
            None => Ok(false),
        }
    }

    /// Builds one path; false where its content is not here (any more).
    fn build_one(
        &mut self,
        place: &Place<V>,
        staged: &V::Dir,
        top: &TreePath,
        made: &mut Made,
        torn: &mut BTreeSet<TreePath>,
    ) -> Result<bool, Fault> {
        let Some(dir) = beneath(top, &made.path).and_then(|rest| rest.parent()) else { return Ok(false) };
        let dir = self.vfs.open_path(staged, &dir)?;
        let name = made.path.name().to_vec();
        match &made.view.value {
            Value::Dir => self.vfs.create_dir(&dir, &name, 0o700)?,
            Value::Symlink { target } => {
                self.vfs.create_symlink(&dir, &name, target)?;
                self.vfs.set_attributes(&dir, &name, &self.attributes(&made.view))?;
                made.stamp = self.vfs.stat(&dir, &name)?.map(|meta| stamp_of(&meta));
            }
            Value::File { size, hash } => {
                let (size, hash) = (*size, *hash);
                match self.take_fetched(place, &dir, &made.path, (size, hash))? {
                    Some(id) => made.vaulted = Some((id, size, hash)),
                    None => {
                        let Ok(source) = self.open_content(&made.path, hash) else { return Ok(false) };
                        let copy = self.vfs.create_temp(&dir)?;
                        if !self.vfs.clone_content(&source, &copy)? {
                            self.copy_content(&source, &copy)?;
                        }
                        self.vfs.link_temp(&self.vfs.finish_temp(copy)?, &dir, &name)?;
                    }
                }
                let file = self.vfs.open_file(&dir, &name)?;
                let known = made.vaulted.is_some() && size > READ_AGAIN_MAX;
                if !known && look::hash_file(&*self.vfs, &file)? != (hash, size) {
                    torn.insert(made.path.clone());
                    return Ok(false);
                }
                self.vfs.set_file_attributes(&file, &self.attributes(&made.view))?;
                made.stamp = Some(stamp_of(&self.vfs.stat_file(&file)?));
            }
            // Not in this version: it is a problem once it can be planned.
            Value::Special { .. } => {}
        }
        Ok(true)
    }

    /// Moves what was brought into the vault for this path; its id there.
    fn take_fetched(
        &mut self,
        place: &Place<V>,
        dir: &V::Dir,
        path: &TreePath,
        (size, hash): (u64, Hash),
    ) -> Result<Option<u64>, Fault> {
        for id in self.fetched(path, hash)? {
            match self.vfs.rename(&place.vault, &id_name(id), dir, path.name(), RenameMode::NoReplace) {
                Ok(()) => return Ok(Some(id)),
                // An earlier life moved it, and broke off.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    self.forget_version(path, id, (size, Some(hash)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// All of it is built: it gets its attributes, and is durable; returns the directory that it is to appear in.
    fn finish_build(&mut self, place: &Place<V>, top: &TreePath, build: &mut Build) -> io::Result<Option<V::Dir>> {
        let staged = self.vfs.open_dir(&place.staging, &release_name(build.id))?;
        // What is in a directory is there: its time stays as it is set.
        for made in build.made.iter_mut().rev().filter(|made| made.view.value == Value::Dir) {
            let set = self.attributes(&made.view);
            let (holder, name) = match beneath(top, &made.path) {
                None => (None, release_name(build.id)),
                Some(rest) => {
                    let dir = self.vfs.open_path(&staged, &rest.parent().unwrap_or_default())?;
                    (Some(dir), made.path.name().to_vec())
                }
            };
            let holder = holder.as_ref().unwrap_or(&place.staging);
            self.vfs.set_attributes(holder, &name, &set)?;
            made.stamp = self.vfs.stat(holder, &name)?.map(|meta| stamp_of(&meta));
        }
        let parent = self.open_parent(place, top)?;
        self.vfs.sync_all(&self.vfs.sync_handle(&place.root)?)?;
        Ok(parent)
    }

    /// It gets its name. False where that is taken.
    fn show_release(
        &mut self,
        place: &Place<V>,
        parent: &V::Dir,
        top: &TreePath,
        build: &mut Build,
    ) -> Result<bool, Fault> {
        let batches = self.intend(build);
        for made in &build.made {
            if let Some((id, size, hash)) = made.vaulted {
                self.forget_version(&made.path, id, (size, Some(hash)));
            }
        }
        self.index.flush()?;
        let dir = top.parent().unwrap_or_default();
        let before = BTreeMap::from([(dir, self.vfs.stat_dir(parent).ok())]);
        let unlocked = self.unlock(place, &before);
        let named = self.vfs.rename(&place.staging, &release_name(build.id), parent, top.name(), RenameMode::NoReplace);
        let owed = self.restore_times(place, &before)?;
        self.owe_times(owed)?;
        self.lock_again(place, &unlocked);
        if let Err(error) = named {
            batches.into_iter().for_each(|key| self.index.delete(key));
            if error.raw_os_error() == Some(libc::EEXIST) {
                // Somebody made it just now.
                self.mark(top, true, false);
                return Ok(false);
            }
            return Err(error.into());
        }
        // It is shown: what fails from here on is no problem of its path.
        self.vfs.sync_dir(parent).and_then(|()| self.vfs.sync_dir(&place.staging)).map_err(building)?;
        tracing::info!(path = %top, paths = build.made.len(), "a directory is complete and shown");
        for made in std::mem::take(&mut build.made) {
            self.note_shown(made)?;
        }
        // Not before all of it is noted: until then the intents say it.
        batches.into_iter().for_each(|key| self.index.delete(key));
        self.clear_problem(top);
        self.revisit(top)?;
        Ok(true)
    }

    /// Notes what is about to be, in rows of the store; returns their keys.
    fn intend(&mut self, build: &Build) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        for part in build.made.chunks(INTENTS) {
            let intents: Vec<Intent> = part
                .iter()
                .map(|made| Intent {
                    path: made.path.clone(),
                    op: if made.view.value == Value::Dir { IntentOp::MakeDir } else { IntentOp::Create },
                    id: self.index.next_id(),
                    context: made.row.entry.context.clone(),
                    state: Some(made.view.clone()),
                    inode: made.stamp.filter(|_| made.view.value != Value::Dir).map(|stamp| (stamp.inode, stamp.btime)),
                    from: None,
                })
                .collect();
            let key = rows::number_key(Space::Intent, self.index.next_id());
            self.index.put_other(key.clone(), &intents);
            keys.push(key);
        }
        keys
    }

    fn note_shown(&mut self, made: Made) -> Result<(), TreeError> {
        let Made { path, row: built, view, stamp, .. } = made;
        let writer = self.writer_of(&built.entry, false)?;
        let mut row = self.index.row(&path)?;
        self.record(&path, built.seq, None, Some(&view), writer);
        self.note_applied(&path, built.seq, None, Some(&view))?;
        self.arrivals += u64::from(content_of(&view.value).1.is_some());
        let shown = Shown { context: built.entry.context, state: fill_in(Some(view), stamp) };
        self.store_shown(&path, &mut row, ShownRow { shown, stamp, provisional: self.coarse });
        // A newer row, a conflict that came out: another round.
        self.revisit(&path)?;
        Ok(self.index.commit_if_large()?)
    }

    /// What was built goes back into the vault, to be found there by its content.
    fn scrap(&mut self, release: &mut Release) -> Result<(), TreeError> {
        let Stage::Build(build) = &release.stage else { return Ok(()) };
        let id = build.id;
        release.stage = Stage::gather();
        let place = self.enter()?;
        match self.take_apart(&place, &release_name(id)) {
            // It went with a disk that was put back.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            taken => taken.map_err(building),
        }
    }

    /// Files of a directory in staging go into the vault, and it goes.
    pub(super) fn take_apart(&mut self, place: &Place<V>, name: &[u8]) -> io::Result<()> {
        let Ok(top) = TreePath::ROOT.join(name) else { return Ok(()) };
        let (mut stack, mut dirs) = (vec![top], Vec::new());
        while let Some(path) = stack.pop() {
            let dir = self.vfs.open_path(&place.staging, &path)?;
            for found in self.vfs.list(&dir)? {
                match self.vfs.stat(&dir, &found.name)?.map(|meta| meta.kind) {
                    Some(Kind::Dir) => stack.extend(path.join(&found.name)),
                    Some(Kind::Symlink) => self.vfs.remove_file(&dir, &found.name)?,
                    Some(_) => self.keep_found(place, &dir, &found.name)?,
                    None => {}
                }
            }
            dirs.push(path);
        }
        for path in dirs.into_iter().rev() {
            let holder = self.vfs.open_path(&place.staging, &path.parent().unwrap_or_default())?;
            self.vfs.remove_dir(&holder, path.name())?;
        }
        Ok(())
    }
}

const fn building(source: io::Error) -> TreeError {
    TreeError::Disk { what: "putting a directory together", source }
}

/// The path of something within a directory; none for the directory.
fn beneath(top: &TreePath, path: &TreePath) -> Option<TreePath> {
    TreePath::parse(path.as_bytes().get(top.as_bytes().len() + 1..)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(path: &str) -> TreePath {
        TreePath::parse(path.as_bytes()).unwrap()
    }

    #[test]
    fn a_link_leads_where_its_names_say() {
        for (link, target) in [
            ("current", "releases/42"),
            ("current", "./releases//42/"),
            ("a/b/current", "../../releases/42"),
            ("releases/current", "42"),
            ("current", "/srv/www/releases/42"),
        ] {
            assert!(led_to(&p(link), target.as_bytes()).contains(&p("releases/42")), "{link} -> {target}");
        }
        for (link, target) in [("current", "../releases/42"), ("a/current", "releases/42"), ("current", "")] {
            assert!(!led_to(&p(link), target.as_bytes()).contains(&p("releases/42")), "{link} -> {target}");
        }
    }
}
