//! Making the disk show the view: a cursor over the journal, a bounded window of paths under work,
//! and batches that are made durable before they get their names (DESIGN.md §7).
//!
//! Nothing here is stored: after a crash the work is derived again from journal and Shown.

use std::collections::BTreeMap;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::mint::agrees;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::view::{self, State};

use super::perform::{Op, OpKind};
use super::{Observed, Tree, TreeError};
use crate::kv::Kv;
use crate::root::Place;
use crate::rows::{EntryRow, Pairing, ShownRow};
use crate::vfs::{Kind, Vfs};

/// Paths under work at once; each may hold one open file.
const WINDOW_PATHS: usize = 256;
/// Staged contents wait for others on their way, so that one sync serves many, until so many are
/// there or so long has passed.
const STAGED_ENOUGH: usize = WINDOW_PATHS / 2;
const STAGED_WAIT_NANOS: i64 = 30_000_000;
/// Inline contents kept for paths that the window has not reached, in bytes.
const OFFERED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// First and longest pause before a path that failed is tried again.
const RETRY_SECS_MIN: i64 = 1;
const RETRY_SECS_MAX: i64 = 300;

/// Names one request for content.
pub type WantId = u64;

/// A content that this disk needs and does not have.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Want {
    /// The request.
    pub id: WantId,
    /// A path whose entry names it.
    pub path: TreePath,
    /// The content.
    pub hash: Hash,
    /// Its length in bytes.
    pub size: u64,
}

/// A content under construction: nameless, in the destination directory.
pub(super) struct Building<V: Vfs> {
    pub(super) want: WantId,
    pub(super) hash: Hash,
    pub(super) size: u64,
    file: V::File,
    hasher: blake3::Hasher,
    filled: u64,
}

/// A content that is whole and verified, still nameless.
pub(super) struct Staged<V: Vfs> {
    pub(super) file: V::File,
    pub(super) hash: Hash,
    pub(super) size: u64,
}

enum Progress<V: Vfs> {
    /// To be planned (again).
    New,
    /// Content is on its way.
    Building(Box<Building<V>>),
    /// Content is here.
    Staged(Staged<V>),
}

struct Work<V: Vfs> {
    seq: u64,
    progress: Progress<V>,
}

struct Stuck {
    retry_at: Time,
    pause_secs: i64,
}

/// The work that is under way. See the module.
pub(super) struct Applier<V: Vfs> {
    /// The journal is read up to here.
    position: u64,
    window: BTreeMap<TreePath, Work<V>>,
    stuck: BTreeMap<TreePath, Stuck>,
    offered: BTreeMap<TreePath, Vec<u8>>,
    offered_bytes: usize,
    wants: BTreeMap<WantId, TreePath>,
    next_want: WantId,
    /// A path was taken up that the current round has not planned.
    grown: bool,
    /// Since when staged contents wait for others.
    held_since: Option<Time>,
    /// Opened before the batch's first write (LINUX.md §11).
    pub(super) sync: Option<V::SyncHandle>,
}

impl<V: Vfs> Applier<V> {
    pub(super) const fn new(position: u64) -> Self {
        Self {
            position,
            window: BTreeMap::new(),
            stuck: BTreeMap::new(),
            offered: BTreeMap::new(),
            offered_bytes: 0,
            wants: BTreeMap::new(),
            next_want: 0,
            grown: false,
            held_since: None,
            sync: None,
        }
    }

    /// Begins anew at the journal's start.
    pub(super) fn restart(&mut self) {
        *self = Self { next_want: self.next_want, ..Self::new(0) };
    }

    /// Whether a path's newest row was planned, and nothing is left to be done about it.
    pub(super) fn has_passed(&self, path: &TreePath, seq: u64) -> bool {
        (1..=self.position).contains(&seq) && !self.window.contains_key(path) && !self.stuck.contains_key(path)
    }

    /// Reads the journal from its start again; what is under way goes on.
    pub(super) const fn rewind(&mut self) {
        self.position = 0;
    }

    /// Every path up to here shows its view or is listed as stuck.
    pub(super) fn applied(&self) -> u64 {
        let waiting = self.window.values().map(|w| w.seq.saturating_sub(1)).min();
        waiting.map_or(self.position, |w| w.min(self.position))
    }

    pub(super) fn is_idle(&self, head: u64) -> bool {
        self.window.is_empty() && self.position >= head
    }

    /// Whether a path is under work, or could not be worked on.
    pub(super) fn holds(&self, path: &TreePath) -> bool {
        self.window.contains_key(path) || self.stuck.contains_key(path)
    }

    /// Whether a content is under construction, or whole and without its name yet.
    pub(super) fn brings(&self, hash: Hash) -> bool {
        self.window.values().any(|w| match &w.progress {
            Progress::New => false,
            Progress::Building(building) => building.hash == hash,
            Progress::Staged(staged) => staged.hash == hash,
        })
    }

    /// Takes a path up again.
    pub(super) fn revisit(&mut self, path: &TreePath, seq: u64) {
        self.window.entry(path.clone()).or_insert_with(|| {
            self.grown = true;
            Work { seq: seq.max(1), progress: Progress::New }
        });
    }

    /// Keeps a content that came with its announcement, as long as there is room.
    pub(super) fn offer(&mut self, path: &TreePath, content: Vec<u8>) {
        if self.offered_bytes + content.len() <= OFFERED_BYTES_MAX {
            self.offered_bytes += content.len();
            if let Some(old) = self.offered.insert(path.clone(), content) {
                self.offered_bytes -= old.len();
            }
        }
    }

    fn take_offer(&mut self, path: &TreePath) -> Option<Vec<u8>> {
        let content = self.offered.remove(path)?;
        self.offered_bytes -= content.len();
        Some(content)
    }
}

/// What has to be done at a path.
enum Plan {
    /// Nothing (any more).
    Done,
    /// Another path first, or content is on its way.
    Wait,
    /// This, now.
    Do(OpKind),
    /// It cannot be done for this reason.
    Fail(String),
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Carries the work on as far as it goes without new content, and says which content is needed.
    /// Call it again after [`Tree::receive`], a merge, or a pause.
    ///
    /// # Errors
    /// [`TreeError`]; what fails on one path is a problem of that path.
    pub fn apply(&mut self) -> Result<Vec<Want>, TreeError> {
        if !self.index.meta().paired {
            return Ok(Vec::new());
        }
        let mut wants = Vec::new();
        loop {
            for (path, seq) in self.index.take_turned() {
                self.take_up(&path, seq);
            }
            self.retry_stuck()?;
            self.fill_window()?;
            if self.apply.window.is_empty() {
                return Ok(wants);
            }
            let place = self.enter()?;
            self.apply.grown = false;
            let ops = self.plan_window(&place, &mut wants)?;
            if ops.is_empty() && !self.apply.grown {
                return Ok(wants);
            }
            if !self.perform(&place, ops)? {
                // Somebody else is at work on the disk: their changes are looked at first.
                return Ok(wants);
            }
        }
    }

    fn fill_window(&mut self) -> Result<(), TreeError> {
        while self.apply.window.len() < WINDOW_PATHS {
            let rows = self.index.journal(self.apply.position, WINDOW_PATHS)?;
            let Some((last, _)) = rows.last() else {
                self.apply.position = self.index.meta().head;
                return Ok(());
            };
            self.apply.position = *last;
            for (seq, path) in rows {
                if !self.apply.stuck.contains_key(&path) {
                    self.apply.revisit(&path, seq);
                }
            }
        }
        Ok(())
    }

    fn retry_stuck(&mut self) -> Result<(), TreeError> {
        let now = self.now();
        let due: Vec<TreePath> =
            self.apply.stuck.iter().filter(|(_, s)| s.retry_at <= now).map(|(p, _)| p.clone()).collect();
        for path in due {
            let seq = self.index.row(&path)?.seq;
            self.take_up(&path, seq);
        }
        Ok(())
    }

    /// Plans every path of the window; returns what can be done at once.
    fn plan_window(&mut self, place: &Place<V>, wants: &mut Vec<Want>) -> Result<Vec<Op<V>>, TreeError> {
        let mut ops = Vec::new();
        let hold = self.holds_staged();
        let paths: Vec<TreePath> = self.apply.window.keys().cloned().collect();
        for path in paths {
            match self.apply.window.get(&path).map(|w| &w.progress) {
                Some(Progress::Building(_)) => continue,
                Some(Progress::Staged(_)) if hold => continue,
                _ => {}
            }
            let row = self.index.row(&path)?;
            let (plan, row) = self.plan(place, &path, row, wants)?;
            match plan {
                Plan::Wait => {}
                Plan::Done => {
                    self.apply.window.remove(&path);
                    self.apply.take_offer(&path);
                    self.apply_done(&path);
                    if self.problems.contains_key(&path) && row.shown.is_none_or(|s| s.shown.state.is_none()) {
                        // Listed by an earlier life, and no scan comes by where nothing is.
                        self.observe_in(place, &path, false, false)?;
                    }
                }
                Plan::Fail(reason) => self.fail(&path, reason),
                Plan::Do(kind) => {
                    let staged = match self.apply.window.remove(&path).map(|w| (w.seq, w.progress)) {
                        Some((_, Progress::Staged(staged))) => Some(staged),
                        _ => None,
                    };
                    let view = self.index.view(&path, &row)?;
                    ops.push(Op { path, kind, row, view, staged });
                }
            }
        }
        Ok(ops)
    }

    /// Whether staged contents should wait for those on their way.
    fn holds_staged(&mut self) -> bool {
        let count = |of: fn(&Progress<V>) -> bool| self.apply.window.values().filter(|w| of(&w.progress)).count();
        let building = count(|p| matches!(p, Progress::Building(_)));
        let staged = count(|p| matches!(p, Progress::Staged(_)));
        let now = self.now();
        if building == 0 || staged == 0 || staged >= STAGED_ENOUGH {
            self.apply.held_since = None;
            return false;
        }
        let since = *self.apply.held_since.get_or_insert(now);
        let waited = now.nanos_since_epoch().saturating_sub(since.nanos_since_epoch());
        if waited > STAGED_WAIT_NANOS {
            self.apply.held_since = None;
        }
        waited <= STAGED_WAIT_NANOS
    }

    /// Says what a path needs. Looks at the disk first: a local change is minted before anything else.
    fn plan(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        mut row: EntryRow,
        wants: &mut Vec<Want>,
    ) -> Result<(Plan, EntryRow), TreeError> {
        let mut view = self.index.view(path, &row)?;
        let is_dir = view.as_ref().is_some_and(|v| v.value == Value::Dir);
        if self.options.ignore.ignored(path, is_dir) {
            return Ok((Plan::Done, row));
        }
        let settled = |row: &EntryRow, view: Option<&State>| {
            agrees(row.shown.as_ref().and_then(|s| s.shown.state.as_ref()), view)
        };
        if settled(&row, view.as_ref()) {
            self.take_context(path, &mut row);
            return Ok((Plan::Done, row));
        }
        match self.observe_in(place, path, false, false)? {
            Observed::Busy => {
                self.mark(path, false, false);
                return Ok((Plan::Fail("a program is writing it".into()), row));
            }
            Observed::Problem => return Ok((Plan::Fail(self.problems.get(path).cloned().unwrap_or_default()), row)),
            Observed::Skipped => return Ok((Plan::Fail("a mount point or a special file is in the way".into()), row)),
            Observed::Minted | Observed::Same => {
                row = self.index.row(path)?;
                view = self.index.view(path, &row)?;
            }
        }
        if settled(&row, view.as_ref()) {
            self.take_context(path, &mut row);
            return Ok((Plan::Done, row));
        }
        let plan = self.plan_change(place, path, &row, view.as_ref(), wants)?;
        Ok((plan, row))
    }

    /// The disk shows the view already: Shown takes the entry's context.
    fn take_context(&mut self, path: &TreePath, row: &mut EntryRow) {
        let context = &row.entry.context;
        let shown = row.shown.get_or_insert_default();
        if shown.shown.context != *context {
            shown.shown.context = context.clone();
            row.pairing = Pairing::No;
            self.index.put_row_later(path, row);
        }
    }

    fn plan_change(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        row: &EntryRow,
        view: Option<&State>,
        wants: &mut Vec<Want>,
    ) -> Result<Plan, TreeError> {
        let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref()).map(|s| &s.value);
        let Some(view) = view else {
            return match shown {
                None => Ok(Plan::Done),
                Some(Value::Dir) => self.plan_removal(place, path),
                Some(_) => Ok(Plan::Do(OpKind::Displace)),
            };
        };
        if shown == Some(&view.value) {
            return Ok(Plan::Do(OpKind::Attributes));
        }
        if let Some(dir) = path.parent().filter(|p| !p.is_root()) {
            let parent = self.index.row(&dir)?;
            if !matches!(parent.shown.as_ref().and_then(|s| s.shown.state.as_ref()), Some(s) if s.value == Value::Dir) {
                if self.apply.stuck.contains_key(&dir) {
                    return Ok(Plan::Fail("its directory could not be made".into()));
                }
                self.take_up(&dir, self.apply.window.get(path).map_or(1, |w| w.seq));
                return Ok(Plan::Wait);
            }
        }
        match (&view.value, shown) {
            (Value::Dir, None) => Ok(Plan::Do(OpKind::MakeDir)),
            (Value::Dir, Some(_)) => Ok(Plan::Do(OpKind::Displace)),
            (Value::Special { .. }, _) => Ok(Plan::Fail("special files are not in this version".into())),
            (_, Some(Value::Dir)) => self.plan_removal(place, path),
            (Value::Symlink { .. }, _) => Ok(Plan::Do(OpKind::Put)),
            (Value::File { size, hash }, _) => self.plan_content(place, path, (*hash, *size), wants),
        }
    }

    /// A directory goes when nothing is left in it: what is unknown there is a creation, what is
    /// known goes first, what is ignored keeps it.
    fn plan_removal(&mut self, place: &Place<V>, path: &TreePath) -> Result<Plan, TreeError> {
        let names = match self.vfs.open_path(&place.root, path).and_then(|dir| self.vfs.list(&dir)) {
            Ok(names) => names,
            Err(error) => return Ok(Plan::Fail(format!("cannot be listed: {error}"))),
        };
        let mut waits = false;
        for name in names {
            let Ok(child) = path.join(&name.name) else { continue };
            if self.options.ignore.ignored(&child, name.kind == Some(Kind::Dir)) {
                continue;
            }
            let row = self.index.row(&child)?;
            if row.shown.as_ref().is_some_and(|s| s.shown.state.is_some()) {
                self.take_up(&child, row.seq);
                waits |= !self.apply.stuck.contains_key(&child);
            } else {
                self.scan_below(path)?;
                return Ok(Plan::Wait);
            }
        }
        if waits {
            return Ok(Plan::Wait);
        }
        Ok(Plan::Do(OpKind::RemoveDir))
    }

    /// Content comes with the announcement, from this node's own tree or vault, or is asked for.
    fn plan_content(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        (hash, size): (Hash, u64),
        wants: &mut Vec<Want>,
    ) -> Result<Plan, TreeError> {
        if let Some(Work { progress: Progress::Staged(staged), .. }) = self.apply.window.get(path)
            && staged.hash == hash
        {
            return Ok(Plan::Do(OpKind::Put));
        }
        let building = match self.start_building(place, path, hash, size) {
            Ok(building) => building,
            Err(error) => return Ok(Plan::Fail(format!("cannot be staged: {error}"))),
        };
        let id = building.want;
        if let Some(work) = self.apply.window.get_mut(path) {
            work.progress = Progress::Building(Box::new(building));
        }
        self.apply.wants.insert(id, path.clone());
        if let Some(content) = self.apply.take_offer(path)
            && Hash(*blake3::hash(&content).as_bytes()) == hash
        {
            self.receive(id, 0, &content, true)?;
        } else if let Ok(source) = self.open_content(path, hash) {
            self.copy_local(id, &source)?;
        } else if size == 0 {
            self.receive(id, 0, &[], true)?;
        } else {
            wants.push(Want { id, path: path.clone(), hash, size });
            return Ok(Plan::Wait);
        }
        match self.apply.window.get(path) {
            Some(Work { progress: Progress::Staged(_), .. }) => Ok(Plan::Do(OpKind::Put)),
            _ => Ok(Plan::Wait),
        }
    }

    fn start_building(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        hash: Hash,
        size: u64,
    ) -> std::io::Result<Building<V>> {
        if self.apply.sync.is_none() {
            self.apply.sync = Some(self.vfs.sync_handle(&place.root)?);
        }
        let dir = self.vfs.open_path(&place.root, &path.parent().unwrap_or_default())?;
        let file = match self.vfs.create_temp(&dir) {
            // It gets its name while the directory is open for us.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                self.vfs.create_temp(&place.staging)?
            }
            other => other?,
        };
        Ok(Building { want: self.next_want(), hash, size, file, hasher: blake3::Hasher::new(), filled: 0 })
    }

    fn copy_local(&mut self, id: WantId, source: &V::File) -> Result<(), TreeError> {
        let mut buffer = vec![0; 128 * 1024];
        let mut offset = 0;
        loop {
            match self.vfs.read_at(source, offset, &mut buffer) {
                Ok(0) => return self.receive(id, offset, &[], true),
                Ok(n) => self.receive(id, offset, &buffer[..n], false)?,
                Err(error) => return self.missing(id, &format!("the local copy cannot be read: {error}")),
            }
            offset = self.filled(id);
        }
    }

    fn filled(&self, id: WantId) -> u64 {
        match self.apply.wants.get(&id).and_then(|p| self.apply.window.get(p)) {
            Some(Work { progress: Progress::Building(b), .. }) => b.filled,
            _ => u64::MAX,
        }
    }

    /// Takes a piece of content that was asked for; the last one verifies the whole.
    ///
    /// # Errors
    /// [`TreeError`]; content that is not what was asked for is a problem of its path.
    pub fn receive(&mut self, id: WantId, offset: u64, bytes: &[u8], last: bool) -> Result<(), TreeError> {
        if self.fetches.contains_key(&id) {
            return self.receive_fetch(id, offset, bytes, last);
        }
        let Some(path) = self.apply.wants.get(&id).cloned() else { return Ok(()) };
        let Some(Work { progress: Progress::Building(building), .. }) = self.apply.window.get_mut(&path) else {
            return Ok(());
        };
        if offset != building.filled || building.filled + bytes.len() as u64 > building.size {
            return self.missing(id, "the content came in the wrong order or too long");
        }
        if let Err(error) = self.vfs.write_at(&building.file, offset, bytes) {
            return self.missing(id, &format!("cannot be staged: {error}"));
        }
        building.hasher.update(bytes);
        building.filled += bytes.len() as u64;
        if !last {
            return Ok(());
        }
        if Hash(*building.hasher.finalize().as_bytes()) != building.hash {
            return self.missing(id, "the content changed while it was sent");
        }
        self.apply.wants.remove(&id);
        let Some(work) = self.apply.window.remove(&path) else { return Ok(()) };
        if let Progress::Building(done) = work.progress {
            let staged = Staged { file: done.file, hash: done.hash, size: done.size };
            self.apply.window.insert(path, Work { seq: work.seq, progress: Progress::Staged(staged) });
        }
        Ok(())
    }

    /// A content cannot be had now: its path is a problem, tried again later.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn missing(&mut self, id: WantId, reason: &str) -> Result<(), TreeError> {
        self.fetches.remove(&id);
        if let Some(path) = self.apply.wants.remove(&id) {
            self.fail(&path, reason.to_owned());
        }
        Ok(())
    }

    /// The peer that was asked is gone: the content is asked for again under another number, but
    /// for a fetch, which ends.
    pub fn forget_want(&mut self, id: WantId) {
        self.fetches.remove(&id);
        if let Some(path) = self.apply.wants.remove(&id)
            && let Some(work) = self.apply.window.get_mut(&path)
        {
            work.progress = Progress::New;
        }
    }

    /// Whether more of this content is awaited.
    pub fn is_wanted(&self, id: WantId) -> bool {
        self.apply.wants.contains_key(&id) || self.fetches.contains_key(&id)
    }

    /// A number for another want.
    pub(super) const fn next_want(&mut self) -> WantId {
        self.apply.next_want += 1;
        self.apply.next_want
    }

    /// Lists a path as a problem and takes it out of the window until it is time to try again.
    pub(super) fn fail(&mut self, path: &TreePath, reason: String) {
        let now = self.now();
        let pause_secs = self.apply.stuck.get(path).map_or(RETRY_SECS_MIN, |s| (s.pause_secs * 2).min(RETRY_SECS_MAX));
        let retry_at = Time::new(now.secs.saturating_add(pause_secs), now.nanos);
        self.apply.stuck.insert(path.clone(), Stuck { retry_at, pause_secs });
        self.apply.window.remove(path);
        self.set_problem(path, reason);
    }

    /// Paths that could not be applied.
    pub fn stuck_paths(&self) -> Vec<&TreePath> {
        self.apply.stuck.keys().collect()
    }

    /// Tries the stuck paths again at once: something changed that may help them.
    pub fn retry_stuck_now(&mut self) {
        let now = self.now();
        for stuck in self.apply.stuck.values_mut() {
            *stuck = Stuck { retry_at: now, pause_secs: RETRY_SECS_MIN };
        }
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
        let kept_off = self.apply.stuck.contains_key(path) || self.options.ignore.ignored(path, false);
        Ok(wanted && !shown && !kept_off)
    }

    /// When the next stuck path is to be tried again.
    pub fn next_retry(&self) -> Option<Time> {
        self.apply.stuck.values().map(|s| s.retry_at).min()
    }

    /// Paths that could not be applied.
    pub fn stuck(&self) -> usize {
        self.apply.stuck.len()
    }

    /// Stores what a path shows now.
    pub(super) fn store_shown(&mut self, path: &TreePath, row: &mut EntryRow, shown: ShownRow) {
        row.shown = Some(shown);
        row.pairing = Pairing::No;
        self.index.put_row(path, row);
    }

    /// Looks at a path again in the next round.
    pub(super) fn revisit(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let seq = self.index.row(path)?.seq;
        self.take_up(path, seq);
        Ok(())
    }

    /// Takes a path up that the journal's cursor may have passed. The batch that holds the reason says
    /// so too: after a crash in between the work is found again.
    pub(super) fn take_up(&mut self, path: &TreePath, seq: u64) {
        self.apply.revisit(path, seq);
        self.index.lower_applied(seq.saturating_sub(1));
    }

    /// A path's change is done: what was listed against it is over.
    pub(super) fn apply_done(&mut self, path: &TreePath) {
        if self.apply.stuck.remove(path).is_some() {
            self.clear_problem(path);
        }
    }
}
