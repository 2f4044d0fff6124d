//! The contents that the applier needs: they come with the announcement, are moved or copied from
//! somewhere else on this disk, or are asked for.

use std::io;
use std::ops::Range;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::session::What;
use pleach_protocol::view::{self, State};

use super::apply::{Progress, Work};
use super::delta::Delta;
use super::perform::OpKind;
use super::plan::Plan;
use super::{Tree, TreeError, Want, WantId};
use crate::kv::Kv;
use crate::root::Place;
use crate::rows::EntryRow;
use crate::vfs::Vfs;

/// Bytes that one call of the applier copies from this disk: the owner has others to serve.
pub(super) const COPY_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// A content up to this length is held in memory until its batch is written, in bytes.
const WHOLE_BYTES_MAX: u64 = 64 * 1024;
/// What is written of a content before its write-back starts.
const WRITE_BACK_BYTES: u64 = 8 * 1024 * 1024;
/// A piece of a local copy.
const PIECE_BYTES: usize = 128 * 1024;

/// A content under construction: nameless, in the destination directory.
pub(super) struct Building<V: Vfs> {
    pub(super) want: WantId,
    pub(super) hash: Hash,
    pub(super) size: u64,
    pub(super) file: V::File,
    pub(super) hasher: blake3::Hasher,
    pub(super) filled: u64,
    pub(super) local: Option<Local<V>>,
    /// An older content is here, whose chunks serve.
    pub(super) delta: Option<Delta<V>>,
    /// Its name in staging, where it survives a restart.
    partial: Option<u64>,
    /// Some of it was here before.
    resumed: bool,
}

impl<V: Vfs> Building<V> {
    /// It is whole up to there.
    pub(super) fn fill_up_to(&mut self, vfs: &V, end: u64) {
        begin_write_back(vfs, &self.file, self.filled..end);
        self.filled = end;
    }
}

/// What was written goes to the disk meanwhile: the sync at the end is short.
pub(super) fn begin_write_back<V: Vfs>(vfs: &V, file: &V::File, written: Range<u64>) {
    let (done, due) = (written.start / WRITE_BACK_BYTES, written.end / WRITE_BACK_BYTES);
    if due > done {
        vfs.begin_write_back(file, done * WRITE_BACK_BYTES, (due - done) * WRITE_BACK_BYTES);
    }
}

/// A content of this disk that is copied.
pub(super) enum Local<V: Vfs> {
    /// From here.
    Copied(V::File),
    /// It is there already, shared with its source: only read and verified.
    Cloned,
    /// So much of it arrived earlier: it is read, then more is asked for.
    Kept(u64),
    /// It is put together.
    Joined,
}

/// Where an inode is.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// At a path that is to lose it.
    Tree(TreePath),
    /// In the vault.
    Vault(TreePath, u64),
    /// In staging, under this id.
    Staging(u64),
}

/// Where the inode of a content that needs no copy is until it is moved.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) origin: Origin,
    /// The row of its path, for one in the tree.
    pub(super) row: EntryRow,
}

/// A small content, verified, that is not on the disk yet.
pub(super) struct Whole {
    pub(super) hash: Hash,
    pub(super) bytes: Vec<u8>,
}

impl Whole {
    /// Takes bytes where they are the content.
    fn verify(hash: Hash, bytes: Vec<u8>) -> Option<Self> {
        (Hash(*blake3::hash(&bytes).as_bytes()) == hash).then_some(Self { hash, bytes })
    }
}

/// A content that is whole and verified: nameless, or to be moved from its source.
pub(super) struct Staged<V: Vfs> {
    pub(super) file: V::File,
    pub(super) hash: Hash,
    pub(super) size: u64,
    pub(super) source: Option<Source>,
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Content comes with the announcement, is moved or copied on this disk, or is asked for.
    pub(super) fn plan_content(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        row: &EntryRow,
        view: &State,
        wants: &mut Vec<Want>,
    ) -> Result<Plan, TreeError> {
        let Value::File { size, hash } = view.value else { return Ok(Plan::Wait) };
        let Some(work) = self.apply.window.get(path) else { return Ok(Plan::Wait) };
        match &work.progress {
            Progress::Staged(staged) if staged.hash == hash => return Ok(Plan::Do(OpKind::Put)),
            Progress::Whole(content) if content.hash == hash => return Ok(Plan::Do(OpKind::Put)),
            _ => {}
        }
        let no_local = work.no_local;
        let offered = match self.apply.take_offer(path) {
            None if size == 0 => Some(Vec::new()),
            other => other,
        };
        if let Some(content) = offered.and_then(|content| Whole::verify(hash, content)) {
            return self.plan_whole(place, path, content);
        }
        if !no_local && let Some(staged) = self.find_move(place, row, view)? {
            self.begin_batch(place)?;
            self.apply.set_progress(path, Progress::Staged(Box::new(staged)));
            return Ok(Plan::Do(OpKind::Put));
        }
        let resumable = size > self.options.resumable_bytes_min;
        let source = if no_local { None } else { self.open_sized(path, size, hash).ok() };
        if size <= WHOLE_BYTES_MAX && !resumable && source.is_none() && self.find_old(path, row, (size, 0))?.is_none() {
            return self.plan_coming(place, path, (hash, size), wants);
        }
        // What is here as a whole is copied, whatever arrived of it: perhaps no peer has the rest any more.
        let goes_on = resumable && !no_local && source.is_none();
        let started = match self.open_large(place, path, (hash, size), goes_on)? {
            Some(started) => started,
            None => self.start_building(place, path, hash, size),
        };
        let mut building = match started {
            Ok(building) => building,
            Err(error) => return Ok(Plan::Fail(format!("cannot be staged: {error}"))),
        };
        let id = building.want;
        if building.local.is_none() {
            building.local = source.map(|source| match self.vfs.clone_content(&source, &building.file) {
                Ok(true) => Local::Cloned,
                _ => Local::Copied(source),
            });
        }
        let there = match building.local {
            None => Some(0),
            Some(Local::Kept(there)) => Some(there),
            Some(_) => None,
        };
        if let Some(there) = there
            && let Some(old) = self.find_old(path, row, (size, there))?
        {
            if !self.has_delta_room(size) {
                return Ok(Plan::Wait);
            }
            building.delta = Some(Delta::Waiting(old));
        }
        let (local, joined) = (building.local.is_some(), building.delta.is_some());
        if !local && resumable {
            building = match self.begin_large(place, path, building)? {
                Ok(building) => building,
                Err(error) => return Ok(Plan::Fail(format!("cannot be staged: {error}"))),
            };
        }
        self.apply.set_progress(path, Progress::Building(Box::new(building)));
        self.apply.wants.insert(id, path.clone());
        if local {
            self.copy_on(path)?;
        } else if joined {
            self.start_delta(path)?;
        } else {
            wants.push(Want { id, path: path.clone(), hash, size, what: What::From(0) });
        }
        match self.apply.window.get(path) {
            Some(Work { progress: Progress::Staged(_), .. }) => Ok(Plan::Do(OpKind::Put)),
            _ => Ok(Plan::Wait),
        }
    }

    /// A small content is here; it goes to the disk with its batch.
    fn plan_whole(&mut self, place: &Place<V>, path: &TreePath, content: Whole) -> Result<Plan, TreeError> {
        let dropped = self.drop_partial(place, path);
        dropped.map_err(|source| TreeError::Disk { what: "clearing staging", source })?;
        self.apply.set_progress(path, Progress::Whole(content));
        Ok(Plan::Do(OpKind::Put))
    }

    /// Asks for a small content; nothing of it is on the disk before all of it is here.
    fn plan_coming(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        (hash, size): (Hash, u64),
        wants: &mut Vec<Want>,
    ) -> Result<Plan, TreeError> {
        let dropped = self.drop_partial(place, path);
        dropped.map_err(|source| TreeError::Disk { what: "clearing staging", source })?;
        let id = self.next_want();
        self.apply.set_progress(path, Progress::Coming(hash));
        self.apply.wants.insert(id, path.clone());
        wants.push(Want { id, path: path.clone(), hash, size, what: What::From(0) });
        Ok(Plan::Wait)
    }

    /// Takes a small content in one piece; one that comes in several is built like any other.
    fn receive_small(
        &mut self,
        id: WantId,
        path: &TreePath,
        hash: Hash,
        bytes: &[u8],
        last: bool,
    ) -> Result<bool, TreeError> {
        if last && bytes.len() as u64 <= WHOLE_BYTES_MAX {
            match Whole::verify(hash, bytes.to_vec()) {
                Some(content) => {
                    self.apply.wants.remove(&id);
                    self.apply.set_progress(path, Progress::Whole(content));
                }
                None => self.missing(id, "the content changed while it was sent")?,
            }
            return Ok(true);
        }
        let place = self.enter()?;
        match self.start_building(&place, path, hash, WHOLE_BYTES_MAX) {
            Ok(building) => {
                self.apply.set_progress(path, Progress::Building(Box::new(Building { want: id, ..building })));
                Ok(false)
            }
            Err(error) => {
                self.missing(id, &format!("cannot be staged: {error}"))?;
                Ok(true)
            }
        }
    }

    /// Opens the handle by which a batch is made durable, before its first write.
    pub(super) fn begin_batch(&mut self, place: &Place<V>) -> Result<(), TreeError> {
        if self.apply.sync.is_none() {
            let opened = self.vfs.sync_handle(&place.root);
            self.apply.sync = Some(opened.map_err(|source| TreeError::Disk { what: "opening the root", source })?);
        }
        Ok(())
    }

    fn start_building(&mut self, place: &Place<V>, path: &TreePath, hash: Hash, size: u64) -> io::Result<Building<V>> {
        if self.apply.sync.is_none() {
            self.apply.sync = Some(self.vfs.sync_handle(&place.root)?);
        }
        let dir = place.holder(&*self.vfs, path)?;
        let file = match self.vfs.create_temp(&dir) {
            // It gets its name while the directory is open for us.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => self.vfs.create_temp(&place.staging)?,
            other => other?,
        };
        let hasher = blake3::Hasher::new();
        Ok(Building {
            want: self.next_want(),
            hash,
            size,
            file,
            hasher,
            filled: 0,
            local: None,
            delta: None,
            partial: None,
            resumed: false,
        })
    }

    /// Takes up what is here of a large content.
    fn open_large(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        (hash, size): (Hash, u64),
        resumable: bool,
    ) -> Result<Option<io::Result<Building<V>>>, TreeError> {
        if !resumable {
            let dropped = self.drop_partial(place, path);
            return Ok(dropped.err().map(Err));
        }
        let (file, id, there) = match self.open_partial(place, path, (hash, size)) {
            Ok(Some(opened)) => opened,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(Err(error))),
        };
        self.begin_batch(place)?;
        tracing::debug!(path = %path, bytes = there, "a content goes on where it broke off");
        let (want, hasher, local) = (self.next_want(), blake3::Hasher::new(), Some(Local::Kept(there)));
        let (partial, resumed) = (Some(id), there > 0);
        Ok(Some(Ok(Building { want, hash, size, file, hasher, filled: 0, local, delta: None, partial, resumed })))
    }

    /// Gives a large content that is to be fetched a name in staging, at its first byte.
    fn begin_large(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        building: Building<V>,
    ) -> Result<io::Result<Building<V>>, TreeError> {
        let begun = self.begin_partial(place, path, (building.hash, building.size))?;
        Ok(begun.map(|(file, id)| Building { file, partial: Some(id), ..building }))
    }

    /// Carries the local copies on, within what one call may copy.
    pub(super) fn copy_all_on(&mut self) -> Result<(), TreeError> {
        let copying = |work: &Work<V>| matches!(&work.progress, Progress::Building(b) if b.local.is_some());
        let paths: Vec<TreePath> =
            self.apply.window.iter().filter(|(_, work)| copying(work)).map(|(path, _)| path.clone()).collect();
        paths.iter().try_for_each(|path| self.copy_on(path))
    }

    /// Whether the next call of the applier has something to do although nothing came: a copy within this disk goes on, or
    /// the journal does.
    pub fn goes_on(&self) -> bool {
        let copies = |w: &Work<V>| matches!(&w.progress, Progress::Building(b) if b.local.is_some());
        self.apply.reads_on
            || self.manifests.is_cutting()
            || self.is_listing()
            || self.is_seeking()
            || self.is_releasing()
            || self.apply.window.values().any(copies)
    }

    /// Copies on from this disk. What turns out to be something else than the content is asked for.
    fn copy_on(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let mut buffer = vec![0; PIECE_BYTES];
        while self.apply.copy_left > 0 {
            let Some(Work { progress: Progress::Building(building), .. }) = self.apply.window.get_mut(path) else {
                return Ok(());
            };
            let (from, copied) = match &building.local {
                Some(Local::Copied(source)) => (source, true),
                Some(Local::Kept(upto)) if building.filled >= *upto && building.filled < building.size => {
                    building.local = None;
                    if building.delta.is_some() {
                        return self.start_delta(path);
                    }
                    let (id, hash, size) = (building.want, building.hash, building.size);
                    let what = What::From(building.filled);
                    self.apply.asked.push(Want { id, path: path.clone(), hash, size, what });
                    return Ok(());
                }
                Some(Local::Cloned | Local::Kept(_)) => (&building.file, false),
                Some(Local::Joined) => return self.join_on(path),
                None => return Ok(()),
            };
            let read = match self.vfs.read_at(from, building.filled, &mut buffer) {
                Ok(read) => building.filled.checked_add(read as u64).filter(|end| *end <= building.size).map(|_| read),
                Err(_) => None,
            };
            let written = read.filter(|n| {
                !copied || *n == 0 || self.vfs.write_at(&building.file, building.filled, &buffer[..*n]).is_ok()
            });
            match written {
                Some(0) if building.filled == building.size => {
                    let id = building.want;
                    let whole = Hash(*building.hasher.finalize().as_bytes()) == building.hash;
                    return if whole { self.finish_building(id) } else { self.ask_instead(path) };
                }
                None | Some(0) => return self.ask_instead(path),
                Some(n) => {
                    building.hasher.update(&buffer[..n]);
                    building.fill_up_to(&*self.vfs, building.filled + n as u64);
                    self.apply.copy_left = self.apply.copy_left.saturating_sub(n as u64);
                }
            }
        }
        Ok(())
    }

    /// The source of a local copy changed under it: the content is asked for.
    pub(super) fn ask_instead(&mut self, path: &TreePath) -> Result<(), TreeError> {
        if let Some(work) = self.apply.window.get_mut(path) {
            if let Progress::Building(building) = &work.progress {
                self.apply.wants.remove(&building.want);
            }
            (work.progress, work.no_local) = (Progress::New, true);
            self.apply.grown = true;
        }
        Ok(())
    }

    /// Takes a piece of content that was asked for; the last one verifies the whole.
    ///
    /// # Errors
    /// [`TreeError`]; content that is not what was asked for is a problem of its path.
    pub fn receive(&mut self, id: WantId, offset: u64, bytes: &[u8], last: bool) -> Result<(), TreeError> {
        if self.fetches.contains_key(&id) {
            return self.receive_fetch(id, offset, bytes, last);
        }
        if let Some(path) = self.wants_manifest(id) {
            return self.receive_manifest(&path, offset, bytes, last);
        }
        let Some(path) = self.apply.wants.get(&id).cloned() else { return Ok(()) };
        if let Some(Work { progress: Progress::Coming(hash), .. }) = self.apply.window.get(&path)
            && self.receive_small(id, &path, *hash, bytes, last && offset == 0)?
        {
            return Ok(());
        }
        let Some(Work { progress: Progress::Building(building), .. }) = self.apply.window.get_mut(&path) else {
            return Ok(());
        };
        let joined = building.delta.is_some();
        if joined && !building.close_gap(&*self.vfs, offset, bytes.len() as u64) {
            return self.fetch_whole(&path);
        }
        if offset != building.filled || building.filled + bytes.len() as u64 > building.size {
            return self.missing(id, "the content came in the wrong order or too long");
        }
        if let Err(error) = self.vfs.write_at(&building.file, offset, bytes) {
            return self.missing(id, &format!("cannot be staged: {error}"));
        }
        building.hasher.update(bytes);
        building.fill_up_to(&*self.vfs, offset + bytes.len() as u64);
        building.pass_pieces();
        if !last {
            return Ok(());
        }
        if joined {
            building.local = Some(Local::Joined);
            return Ok(());
        }
        if Hash(*building.hasher.finalize().as_bytes()) == building.hash {
            return self.finish_building(id);
        }
        if building.resumed {
            // What was here before may be torn: all of it is asked for, at once.
            return self.ask_instead(&path);
        }
        let place = self.enter()?;
        let cleared = self.drop_partial(&place, &path);
        cleared.map_err(|source| TreeError::Disk { what: "clearing staging", source })?;
        self.missing(id, "the content changed while it was sent")
    }

    /// A content is whole and verified.
    pub(super) fn finish_building(&mut self, id: WantId) -> Result<(), TreeError> {
        let Some(path) = self.apply.wants.remove(&id) else { return Ok(()) };
        let Some(work) = self.apply.window.remove(&path) else { return Ok(()) };
        if let Progress::Building(done) = work.progress {
            let source = done.partial.map(|id| Source { origin: Origin::Staging(id), row: EntryRow::default() });
            let staged = Staged { file: done.file, hash: done.hash, size: done.size, source };
            self.apply.window.insert(path, Work { progress: Progress::Staged(Box::new(staged)), ..work });
        }
        Ok(())
    }

    /// A content cannot be had now: its path is a problem, tried again later.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn missing(&mut self, id: WantId, reason: &str) -> Result<(), TreeError> {
        self.fetches.remove(&id);
        if let Some(path) = self.wants_manifest(id) {
            return self.fetch_whole(&path);
        }
        if let Some(path) = self.apply.wants.remove(&id) {
            self.fail(&path, reason.to_owned());
        }
        Ok(())
    }

    /// The peer that was asked is gone: the content is asked for again under another number, but
    /// for a fetch, which ends.
    pub fn forget_want(&mut self, id: WantId) {
        self.fetches.remove(&id);
        if let Some(path) = self.apply.wants.remove(&id) {
            self.apply.set_progress(&path, Progress::New);
        }
    }

    /// Whether more of this content is awaited.
    pub fn is_wanted(&self, id: WantId) -> bool {
        self.apply.wants.contains_key(&id) || self.fetches.contains_key(&id)
    }

    /// How much of a content that is asked for is here, in bytes.
    pub fn received_of(&self, id: WantId) -> u64 {
        let fetched = self.fetches.get(&id).map(super::fetch::Fetch::filled);
        let built = self.apply.wants.get(&id).and_then(|path| match &self.apply.window.get(path)?.progress {
            Progress::Building(building) => Some(building.filled),
            _ => None,
        });
        fetched.or(built).unwrap_or(0)
    }

    /// A number for another want.
    pub(super) const fn next_want(&mut self) -> WantId {
        self.apply.next_want += 1;
        self.apply.next_want
    }

    /// Whether a content will be here by itself: it is on its way, or the path is to show it.
    ///
    /// # Errors
    /// The store's.
    pub fn awaits(&self, path: &TreePath, hash: Hash) -> Result<bool, TreeError> {
        if self.is_on_its_way(hash) {
            return Ok(true);
        }
        let row = self.index.row(path)?;
        let shows = |value: &Value| matches!(value, Value::File { hash: of, .. } if *of == hash);
        let wanted = view::own(&row.entry).is_some_and(shows) && row.live_children == 0;
        let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref()).is_some_and(|s| shows(&s.value));
        let kept_off = self.sends_only() || self.apply.is_stuck(path) || self.options.ignore.ignored(path, false);
        Ok(wanted && !shown && !kept_off)
    }
}
