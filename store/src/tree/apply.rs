//! Making the disk show the view: a cursor over the journal, a bounded window of paths under work,
//! and batches that are made durable before they get their names (DESIGN.md §7).
//!
//! Nothing here is stored: after a crash the work is derived again from journal and Shown.

use std::collections::BTreeMap;

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;
use pleach_protocol::session::What;
use pleach_protocol::time::Time;

use super::content::{self, Building, Staged, Whole};
use super::perform::{Op, OpKind, Ops};
use super::plan::Plan;
use super::{PAUSE_SECS_MAX, Tree, TreeError, content_of, is_due};
use crate::index;
use crate::kv::Kv;
use crate::root::Place;
use crate::rows::{EntryRow, Pairing, ShownRow};
use crate::vfs::Vfs;

/// Paths whose removal waits until the journal is read on: their content may be wanted under another name.
const DEFERRED_MAX: usize = 16_384;
/// So few of them do not wait for what peers have still to tell.
const DEFERRED_FEW: usize = 64;
/// Others are carried out when nothing was announced for so long, or over so many calls.
const STILL_NANOS: i64 = 50_000_000;
const STILL_CALLS: u32 = 16;
/// Staged contents wait for others on their way, so that one sync serves many, until so many are
/// there or so long has passed.
const STAGED_ENOUGH: usize = 128;
const STAGED_WAIT_NANOS: i64 = 30_000_000;
/// Small contents that are on their way keep so many others not waiting: those come with their rows.
const COMING_MAX: usize = 2_048;
/// Inline contents kept for paths that the window has not reached, in bytes.
const OFFERED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Rounds of one call: whatever turns in a circle keeps nobody else waiting.
const ROUNDS_MAX: usize = 1_024;
/// First and longest pause before a path that failed is tried again.
const RETRY_SECS_MIN: i64 = 1;

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
    /// What of it; what is here by the time that it is asked for is left out.
    pub what: What,
}

pub(super) enum Progress<V: Vfs> {
    /// To be planned (again).
    New,
    /// A small content is on its way.
    Coming(Hash),
    /// Content is on its way.
    Building(Box<Building<V>>),
    /// A small content is here, in memory.
    Whole(Whole),
    /// Content is here.
    Staged(Box<Staged<V>>),
}

pub(super) struct Work<V: Vfs> {
    pub(super) seq: u64,
    pub(super) progress: Progress<V>,
    /// This disk turned out not to have the content.
    pub(super) no_local: bool,
    /// It cannot be put together from an older one.
    pub(super) no_delta: bool,
    pub(super) removal: Removal,
    /// The path has a newer row than this was planned by.
    pub(super) outdated: bool,
}

/// Whether a path's removal may wait, so that its content is there for another name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Removal {
    /// It was not asked.
    Unasked,
    /// It waits.
    Deferred,
    /// It waited long enough.
    Due,
}

struct Stuck {
    retry_at: Time,
    pause_secs: i64,
}

/// The work that is under way. See the module.
pub(super) struct Applier<V: Vfs> {
    /// The journal is read up to here.
    position: u64,
    /// Where the journal had been read to at the end of the last call.
    position_before: u64,
    pub(super) window: BTreeMap<TreePath, Work<V>>,
    /// Paths under work at once; each may hold one open file.
    window_paths: usize,
    stuck: BTreeMap<TreePath, Stuck>,
    offered: BTreeMap<TreePath, Vec<u8>>,
    offered_bytes: usize,
    pub(super) wants: BTreeMap<WantId, TreePath>,
    pub(super) next_want: WantId,
    /// A path was taken up that the current round has not planned.
    pub(super) grown: bool,
    /// What is to be asked for of contents that go on where they broke off.
    pub(super) asked: Vec<Want>,
    /// When the journal grew last, and calls since then.
    journal_grew: Option<Time>,
    still_calls: u32,
    /// Bytes that this call may still copy on this disk.
    pub(super) copy_left: u64,
    /// The journal goes on behind what the last call read, and there is room for it.
    pub(super) reads_on: bool,
    /// Since when staged contents wait for others.
    held_since: Option<Time>,
    /// Opened before the batch's first write (LINUX.md §11).
    pub(super) sync: Option<V::SyncHandle>,
}

impl<V: Vfs> Applier<V> {
    pub(super) const fn new(position: u64, window_paths: usize) -> Self {
        Self {
            position,
            position_before: position,
            window: BTreeMap::new(),
            window_paths,
            stuck: BTreeMap::new(),
            offered: BTreeMap::new(),
            offered_bytes: 0,
            wants: BTreeMap::new(),
            next_want: 0,
            grown: false,
            asked: Vec::new(),
            journal_grew: None,
            still_calls: 0,
            copy_left: 0,
            reads_on: false,
            held_since: None,
            sync: None,
        }
    }

    /// Begins anew at the journal's start.
    pub(super) fn restart(&mut self) {
        *self = Self { next_want: self.next_want, ..Self::new(0, self.window_paths) };
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

    /// A path under work stands for others, of this place in the journal, too.
    pub(super) fn hold_back(&mut self, path: &TreePath, seq: u64) {
        if let Some(work) = self.window.get_mut(path) {
            work.seq = work.seq.min(seq.max(1));
        }
    }

    /// Whether a path failed and waits to be tried again.
    pub(super) fn is_stuck(&self, path: &TreePath) -> bool {
        self.stuck.contains_key(path)
    }

    /// Whether any of these paths is under work, or waits to be tried again.
    pub(super) fn works_on(&self, is_one: impl Fn(&TreePath) -> bool) -> bool {
        self.window.keys().chain(self.stuck.keys()).any(is_one)
    }

    /// Whether a content is under construction, or whole and without its name yet.
    pub(super) fn brings(&self, hash: Hash) -> bool {
        self.window.values().any(|w| match &w.progress {
            Progress::New => false,
            Progress::Coming(of) | Progress::Whole(Whole { hash: of, .. }) => *of == hash,
            Progress::Building(building) => building.hash == hash,
            Progress::Staged(staged) => staged.hash == hash,
        })
    }

    /// Whether a content without a name is on this disk.
    pub(super) fn writes(&self) -> bool {
        self.window.values().any(|w| matches!(w.progress, Progress::Building(_) | Progress::Staged(_)))
    }

    /// Takes a path up again.
    pub(super) fn revisit(&mut self, path: &TreePath, seq: u64) {
        if let Some(work) = self.window.get_mut(path) {
            work.outdated |= seq > work.seq;
            return;
        }
        self.grown = true;
        let (no_local, no_delta, removal, outdated) = (false, false, Removal::Unasked, false);
        let work = Work { seq: seq.max(1), progress: Progress::New, no_local, no_delta, removal, outdated };
        self.window.insert(path.clone(), work);
    }

    pub(super) fn set_progress(&mut self, path: &TreePath, progress: Progress<V>) {
        if let Some(work) = self.window.get_mut(path) {
            work.progress = progress;
        }
    }

    /// Whether a path's removal waits.
    pub(super) fn is_deferred(&self, path: &TreePath) -> bool {
        self.window.get(path).is_some_and(|work| work.removal == Removal::Deferred)
    }

    /// Lets a removal wait; says whether it does.
    pub(super) fn defer(&mut self, path: &TreePath) -> bool {
        match self.window.get_mut(path) {
            Some(work) if work.removal == Removal::Unasked => {
                work.removal = Removal::Deferred;
                true
            }
            _ => false,
        }
    }

    /// A removal that waited is done: it is looked at with the next round.
    pub(super) fn release_path(&mut self, path: &TreePath) {
        if let Some(work) = self.window.get_mut(path) {
            work.removal = Removal::Due;
        }
    }

    /// Whether more of the journal may be taken up.
    fn has_room(&self) -> bool {
        let (deferred, coming) = (self.deferred(), self.coming());
        deferred < DEFERRED_MAX && self.window.len() < self.window_paths + deferred + coming.min(COMING_MAX)
    }

    fn coming(&self) -> usize {
        self.window.values().filter(|work| matches!(work.progress, Progress::Coming(_))).count()
    }

    fn deferred(&self) -> usize {
        self.window.values().filter(|work| work.removal == Removal::Deferred).count()
    }

    /// Ends the wait of removals, a window of them; says whether any waited.
    fn release(&mut self) -> bool {
        let window_paths = self.window_paths;
        let mut due = self.window.values_mut().filter(|work| work.removal == Removal::Deferred).take(window_paths);
        let mut any = false;
        for work in &mut due {
            (work.removal, any) = (Removal::Due, true);
        }
        any
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

    pub(super) fn take_offer(&mut self, path: &TreePath) -> Option<Vec<u8>> {
        let content = self.offered.remove(path)?;
        self.offered_bytes -= content.len();
        Some(content)
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Carries the work on as far as it goes without new content, and says which content is needed.
    /// Call it again after [`Tree::receive`], a merge, or a pause.
    ///
    /// # Errors
    /// [`TreeError`]; what fails on one path is a problem of that path.
    pub fn apply(&mut self) -> Result<Vec<Want>, TreeError> {
        // Where nothing is applied, nothing goes on.
        if std::mem::take(&mut self.apply.reads_on) {
            self.apply.still_calls = 0;
        }
        if !self.index.meta().paired {
            return Ok(Vec::new());
        }
        let mut wants = Vec::new();
        self.cut_on();
        self.list_on()?;
        self.seek_on()?;
        self.apply.copy_left = content::COPY_BYTES_MAX;
        let still = self.is_journal_still();
        self.apply_rounds(still, &mut wants)?;
        self.release_on(&mut wants)?;
        wants.append(&mut self.apply.asked);
        Ok(wants)
    }

    /// Whether nothing new was announced for a while.
    fn is_journal_still(&mut self) -> bool {
        let (now, head) = (self.now(), self.index.meta().head);
        if head != self.apply.position_before {
            (self.apply.position_before, self.apply.journal_grew, self.apply.still_calls) = (head, Some(now), 0);
            return false;
        }
        self.apply.still_calls = self.apply.still_calls.saturating_add(1);
        let grew = self.apply.journal_grew.unwrap_or_default();
        let waited = now.nanos_since_epoch().saturating_sub(grew.nanos_since_epoch());
        waited >= STILL_NANOS || self.apply.still_calls >= STILL_CALLS
    }

    fn apply_rounds(&mut self, still: bool, wants: &mut Vec<Want>) -> Result<(), TreeError> {
        for _ in 0..ROUNDS_MAX {
            for (path, seq) in self.index.take_turned() {
                self.take_up(&path, seq);
            }
            self.retry_stuck()?;
            self.fill_window()?;
            if self.apply.window.is_empty() {
                return Ok(());
            }
            let place = self.enter()?;
            self.apply.grown = false;
            self.copy_all_on()?;
            let ops = self.plan_window(&place, wants)?;
            if ops.is_empty() && !self.apply.grown {
                // All of it is as it is to be: others get their turn, then the journal is read on.
                self.apply.reads_on = self.apply.has_room() && self.apply.position < self.index.meta().head;
                if self.apply.reads_on {
                    return Ok(());
                }
                if self.release_removals(still) {
                    continue;
                }
                return Ok(());
            }
            if !self.perform(&place, ops)? {
                // Somebody else is at work on the disk: their changes are looked at first.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Nothing else can be done: removals that waited are carried out, many of them once nothing new
    /// is announced. Says whether there are any.
    fn release_removals(&mut self, still: bool) -> bool {
        let deferred = self.apply.deferred();
        if deferred > DEFERRED_FEW && deferred < DEFERRED_MAX && !still {
            return false;
        }
        let any = self.apply.release();
        if deferred <= self.apply.window_paths {
            self.motion.nothing_leaves();
        }
        any
    }

    /// Reads the journal on as long as there is room.
    fn fill_window(&mut self) -> Result<(), TreeError> {
        // A look that finds nothing costs a flush of the store, too (ARCHITECTURE.md, sled).
        while self.apply.has_room() && self.apply.position < self.index.meta().head {
            let rows = self.index.journal(self.apply.position, self.apply.window_paths)?;
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
            self.apply.stuck.iter().filter(|(_, s)| is_due(s.retry_at, now)).map(|(p, _)| p.clone()).collect();
        for path in due {
            let seq = self.index.shared_row(&path)?.seq;
            self.take_up(&path, seq);
        }
        Ok(())
    }

    /// Plans every path of the window; returns what can be done at once.
    fn plan_window(&mut self, place: &Place<V>, wants: &mut Vec<Want>) -> Result<Ops<V>, TreeError> {
        let mut ops = Vec::new();
        self.give_up_outdated()?;
        let hold = self.holds_staged();
        // What is to go comes first, for its content may be wanted under another name; then in the
        // order of the journal.
        let moves = |work: &Work<V>| match &work.progress {
            Progress::Building(_) | Progress::Coming(_) => false,
            Progress::Staged(_) | Progress::Whole(_) => !hold,
            Progress::New => true,
        };
        let due = self.apply.window.iter().filter(|(_, work)| work.removal != Removal::Deferred && moves(work));
        let mut paths: Vec<(bool, u64, TreePath)> = Vec::new();
        for (path, work) in due {
            let asked = work.removal != Removal::Unasked || !matches!(work.progress, Progress::New);
            let goes = !asked && goes(&*self.index.shared_row(path)?);
            paths.push((!goes, work.seq, path.clone()));
        }
        paths.sort_unstable();
        for (_, _, path) in paths {
            let row = self.index.shared_row(&path)?;
            let (plan, row) = self.plan(place, &path, row, wants)?;
            match plan {
                Plan::Wait => {}
                Plan::Done => {
                    self.apply.window.remove(&path);
                    self.apply.take_offer(&path);
                    self.apply_done(&path);
                    self.drop_partial(place, &path)
                        .map_err(|source| TreeError::Disk { what: "clearing staging", source })?;
                    if self.problems.contains_key(&path) && row.shown.as_ref().is_none_or(|s| s.shown.state.is_none()) {
                        // Listed by an earlier life, and no scan comes by where nothing is.
                        self.observe_in(place, &path, false, false)?;
                    }
                }
                Plan::Fail(reason) => self.fail(&path, reason),
                Plan::Do(kind) => {
                    let view = self.index.view(&path, &row)?;
                    let put = view.as_ref().filter(|_| kind == OpKind::Put).and_then(|v| content_of(&v.value).1);
                    // What was staged may be for what the path was to show before.
                    let (staged, content) = match self.apply.window.remove(&path).map(|w| w.progress) {
                        Some(Progress::Staged(staged)) if put == Some(staged.hash) => (Some(*staged), None),
                        Some(Progress::Whole(content)) if put == Some(content.hash) => (None, Some(content)),
                        _ => (None, None),
                    };
                    ops.push(Box::new(Op { path, kind, row, view, staged, content }));
                }
            }
        }
        Ok(ops)
    }

    /// Gives up the contents that are on their way to paths which are to show others by now: nobody may have them any
    /// more, and what is due would wait for the answer.
    fn give_up_outdated(&mut self) -> Result<(), TreeError> {
        let mut outdated = Vec::new();
        for (path, work) in self.apply.window.iter_mut().filter(|(_, work)| work.outdated) {
            work.outdated = false;
            match &work.progress {
                Progress::Coming(hash) => outdated.push((path.clone(), *hash)),
                Progress::Building(building) => outdated.push((path.clone(), building.hash)),
                Progress::New | Progress::Whole(_) | Progress::Staged(_) => {}
            }
        }
        for (path, coming) in outdated {
            let row = self.index.shared_row(&path)?;
            let due = self.index.view(&path, &row)?.and_then(|view| content_of(&view.value).1);
            if due != Some(coming) {
                self.apply.set_progress(&path, Progress::New);
                self.apply.wants.retain(|_, of| *of != path);
            }
        }
        Ok(())
    }

    /// Whether staged contents should wait for those on their way.
    fn holds_staged(&mut self) -> bool {
        let count = |of: fn(&Progress<V>) -> bool| self.apply.window.values().filter(|w| of(&w.progress)).count();
        let building = count(|p| matches!(p, Progress::Building(_) | Progress::Coming(_)));
        let staged = count(|p| matches!(p, Progress::Staged(_) | Progress::Whole(_)));
        let now = self.now();
        if building == 0 || staged == 0 || staged >= STAGED_ENOUGH {
            self.apply.held_since = None;
            return false;
        }
        let since = *self.apply.held_since.get_or_insert(now);
        let waited = now.nanos_since_epoch().saturating_sub(since.nanos_since_epoch());
        if !(0..=STAGED_WAIT_NANOS).contains(&waited) {
            self.apply.held_since = None;
        }
        waited <= STAGED_WAIT_NANOS
    }

    /// Lists a path as a problem and takes it out of the window until it is time to try again.
    pub(super) fn fail(&mut self, path: &TreePath, reason: String) {
        let now = self.now();
        let pause_secs = self.apply.stuck.get(path).map_or(RETRY_SECS_MIN, |s| (s.pause_secs * 2).min(PAUSE_SECS_MAX));
        let retry_at = Time::new(now.secs.saturating_add(pause_secs), now.nanos);
        self.apply.stuck.insert(path.clone(), Stuck { retry_at, pause_secs });
        self.apply.window.remove(path);
        self.set_problem(path, reason);
    }

    /// Paths that could not be applied.
    pub fn stuck_paths(&self) -> Vec<&TreePath> {
        self.apply.stuck.keys().collect()
    }

    /// Tries the stuck paths again at once, and directories that lack a content: something changed that may help them.
    pub fn retry_stuck_now(&mut self) {
        let now = self.now();
        for stuck in self.apply.stuck.values_mut() {
            *stuck = Stuck { retry_at: now, pause_secs: RETRY_SECS_MIN };
        }
        self.retry_releases_now();
    }

    /// When the next stuck path is to be tried again, or the next unreadable one.
    pub fn next_retry(&self) -> Option<Time> {
        self.apply.stuck.values().map(|s| s.retry_at).chain(self.next_unseen()).min()
    }

    /// Paths that could not be applied.
    pub fn stuck(&self) -> usize {
        self.apply.stuck.len()
    }

    /// Stores what a path shows now.
    pub(super) fn store_shown(&mut self, path: &TreePath, row: &mut EntryRow, shown: ShownRow) {
        let before = row.shown.as_ref();
        if let Some(was) =
            before.and_then(|s| s.stamp).filter(|was| shown.stamp.is_none_or(|now| now.inode != was.inode))
        {
            self.leave_link(path, was.inode);
        }
        self.note_content(path, before.and_then(|s| s.shown.state.as_ref()), shown.shown.state.as_ref());
        row.shown = Some(shown);
        row.pairing = Pairing::No;
        self.index.put_row(path, row);
        self.clear_local(path);
    }

    /// Looks at a path again in the next round.
    pub(super) fn revisit(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let seq = self.index.shared_row(path)?.seq;
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

/// Whether something is shown where nothing is to be any more.
fn goes(row: &EntryRow) -> bool {
    row.shown.as_ref().is_some_and(|s| s.shown.state.is_some()) && !index::is_live(row)
}
