//! One node on plain maps: rows, a disk, a vault. It observes, merges and applies as DESIGN.md §2
//! and §7 say, and can be killed between an intent and what follows it.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::entry::{ContentSibling, Entry, Rank, Value};
use pleach_protocol::mint::{self, Circumstances, Observation, Shown, agrees};
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::version::Dot;
use pleach_protocol::view::{self, State, Surroundings, default_mode};

use crate::common::{check_entry, dot, mode};

/// What a name on a disk leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Thing {
    pub(crate) state: State,
    pub(crate) ctime: Time,
}

/// The names of a tree.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(pub(crate) BTreeMap<TreePath, Thing>);

impl Disk {
    pub(crate) fn value(&self, path: &TreePath) -> Option<&Value> {
        self.0.get(path).map(|t| &t.state.value)
    }

    pub(crate) fn is_dir(&self, path: &TreePath) -> bool {
        path.is_root() || self.value(path) == Some(&Value::Dir)
    }

    pub(crate) fn holds_parent(&self, path: &TreePath) -> bool {
        path.parent().is_none_or(|dir| self.is_dir(&dir))
    }

    pub(crate) fn beneath(&self, dir: &TreePath) -> Vec<TreePath> {
        self.0.keys().filter(|p| p.is_beneath(dir)).cloned().collect()
    }
}

/// What the store holds of a path.
#[derive(Clone, Debug, Default)]
struct Row {
    entry: Option<Entry>,
    shown: Option<Shown>,
}

/// A change to the disk that is about to get its name, and what the disk showed before.
#[derive(Clone, Debug)]
struct Intent {
    shown: Shown,
}

/// Where a kill hits an apply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kill {
    /// The intent is durable, the disk is as before.
    BeforeTheName,
    /// The name is changed; neither what came out nor Shown is stored.
    AfterTheName,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    Put,
    Displace,
    Attributes,
    MakeDir,
    RemoveDir,
}

/// What an apply runs among.
pub(crate) struct Scene<'a> {
    pub(crate) now: Time,
    /// Contents that some node can give.
    pub(crate) held: &'a BTreeSet<Value>,
    pub(crate) kill: Option<Kill>,
    /// What a user does just before the name changes.
    pub(crate) race: &'a mut dyn FnMut(&mut Disk),
}

/// See the module.
pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) disk: Disk,
    pub(crate) vault: BTreeSet<Value>,
    /// Seconds that its clock is wrong by.
    pub(crate) skew: i64,
    pub(crate) mints: u64,
    pub(crate) faults: Vec<String>,
    start: u64,
    counter: u64,
    paired: bool,
    rows: BTreeMap<TreePath, Row>,
    /// Rows as they are stored, where that differs from `rows`.
    unsaved: BTreeMap<TreePath, Row>,
    intents: BTreeMap<TreePath, Intent>,
    /// Intents that were carried out, with what lies in staging for them: a fact of the disk.
    carried: BTreeMap<TreePath, Option<Thing>>,
}

impl Node {
    pub(crate) fn new(number: u8, skew: i64) -> Self {
        Self {
            number,
            disk: Disk::default(),
            vault: BTreeSet::new(),
            skew,
            mints: 0,
            faults: Vec::new(),
            start: 1,
            counter: 0,
            paired: false,
            rows: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            intents: BTreeMap::new(),
            carried: BTreeMap::new(),
        }
    }

    /// Its own clock.
    pub(crate) fn clock(&self, now: Time) -> Time {
        Time::new(now.secs + self.skew, now.nanos)
    }

    pub(crate) fn is_paired(&self) -> bool {
        self.paired
    }

    pub(crate) fn entry(&self, path: &TreePath) -> Option<&Entry> {
        self.rows.get(path)?.entry.as_ref()
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = (&TreePath, &Entry)> {
        self.rows.iter().filter_map(|(path, row)| Some((path, row.entry.as_ref()?)))
    }

    pub(crate) fn shown(&self, path: &TreePath) -> Shown {
        self.rows.get(path).and_then(|row| row.shown.clone()).unwrap_or_default()
    }

    /// All paths that it knows of or shows.
    pub(crate) fn paths(&self) -> Vec<TreePath> {
        let mut paths: BTreeSet<TreePath> = self.rows.keys().chain(self.disk.0.keys()).cloned().collect();
        paths.extend(paths.iter().flat_map(TreePath::parents).collect::<Vec<_>>());
        paths.into_iter().collect()
    }

    pub(crate) fn around(&self, path: &TreePath) -> Surroundings {
        let own = |p: &TreePath| self.entry(p).and_then(view::own);
        let live_beneath = self.rows.keys().any(|p| p.is_beneath(path) && own(p).is_some());
        let dir = path.parents().find(|p| own(p) == Some(&Value::Dir));
        let around = Surroundings::default();
        let ancestor = dir.and_then(|p| view::view(self.entry(&p), &around)).and_then(|s| s.access);
        Surroundings { live_beneath, ancestor }
    }

    pub(crate) fn view(&self, path: &TreePath) -> Option<State> {
        view::view(self.entry(path), &self.around(path))
    }

    pub(crate) fn conflicts(&self, path: &TreePath) -> Vec<pleach_protocol::entry::Loser> {
        self.entry(path).map(|e| view::conflicts(e, &self.around(path))).unwrap_or_default()
    }

    /// The row, about to change; what is stored of it is kept until the next flush.
    fn change(&mut self, path: &TreePath) -> &mut Row {
        let row = self.rows.entry(path.clone()).or_default();
        if !self.unsaved.contains_key(path) {
            self.unsaved.insert(path.clone(), row.clone());
        }
        row
    }

    pub(crate) fn flush(&mut self) {
        self.unsaved.clear();
    }

    /// Stores a merged entry; returns whether anything was new.
    pub(crate) fn merge(&mut self, path: &TreePath, merged: Entry) -> bool {
        if self.entry(path) == Some(&merged) {
            return false;
        }
        self.change(path).entry = Some(merged);
        true
    }

    /// Looks at a path; returns whether anything was written.
    pub(crate) fn observe(&mut self, path: &TreePath, now: Time) -> bool {
        let shown = self.shown(path);
        let first = self.rows.get(path).is_none_or(|row| row.shown.is_none());
        let thing = self.disk.0.get(path).cloned();
        let how = Circumstances { pairing: !self.paired && first, late: false, receives: false };
        let disk = thing.as_ref().map(|t| &t.state);
        match mint::observe(self.entry(path), &self.around(path), &shown, disk, how) {
            Observation::Unchanged => false,
            Observation::Shows(shown) => {
                self.change(path).shown = Some(shown);
                true
            }
            Observation::Changed | Observation::Local => {
                let after = self.mint(path, &shown, thing.as_ref(), how.pairing, now);
                self.change(path).shown = Some(after);
                true
            }
        }
    }

    /// Mints a change; the new Shown is the caller's.
    fn mint(&mut self, path: &TreePath, shown: &Shown, thing: Option<&Thing>, pairing: bool, now: Time) -> Shown {
        let now = self.clock(now);
        let rank = match thing {
            Some(t) if pairing => t.state.mtime.unwrap_or_default().min(now).nanos_since_epoch().max(0),
            Some(t) => t.ctime.min(now).nanos_since_epoch(),
            None => now.nanos_since_epoch(),
        };
        self.counter += 1;
        self.mints += 1;
        let dot = dot(self.number, self.start, self.counter);
        let state = thing.map(|t| &t.state);
        let (entry, after) = mint::mint(self.entry(path), shown, state, dot, Rank(rank), pairing);
        let mut context = shown.context.clone();
        context.insert(dot);
        if after.context != context {
            self.faults.push(format!("a mint at {path} counts as having seen more than was shown"));
        }
        let rank = entry.content.get(&dot).map(|s| s.rank);
        let is_not_below =
            |(seen, s): &(&Dot, &ContentSibling)| shown.context.contains(**seen) && rank.is_some_and(|r| r <= s.rank);
        let below = self.entry(path).and_then(|old| old.content.iter().find(is_not_below)).map(|(seen, _)| *seen);
        if let Some(below) = below {
            self.faults.push(format!("a mint at {path} ranks below what it supersedes: {below:?}"));
        }
        if let Err(what) = check_entry(&entry) {
            self.faults.push(format!("a mint at {path}: {what}"));
        }
        if let Some(dropped) = self.entry(path).and_then(|old| dropped_unseen(old, &entry, shown)) {
            self.faults.push(format!("a mint at {path} drops what was not shown: {dropped:?}"));
        }
        self.change(path).entry = Some(entry);
        after
    }

    pub(crate) fn scan(&mut self, now: Time) -> bool {
        let mut any = false;
        for path in self.paths() {
            any |= self.observe(&path, now);
        }
        if !self.paired {
            self.paired = true;
            self.flush();
        }
        any
    }

    /// Dies and starts again: what was not stored is gone, intents are settled.
    pub(crate) fn restart(&mut self, now: Time) {
        let stored = std::mem::take(&mut self.unsaved);
        self.rows.extend(stored);
        self.start += 1;
        self.counter = 0;
        for path in self.intents.keys().cloned().collect::<Vec<_>>() {
            self.settle_intent(&path, now);
        }
        self.flush();
    }

    /// Loses its store but not its disk; the next scan pairs.
    pub(crate) fn lose_store(&mut self) {
        self.rows.clear();
        self.unsaved.clear();
        self.start += 1;
        self.counter = 0;
        self.paired = false;
    }

    /// What was carried out becomes Shown, and what came out is compared with what was shown.
    fn settle_intent(&mut self, path: &TreePath, now: Time) {
        let Some(intent) = self.intents.remove(path) else { return };
        let Some(displaced) = self.carried.remove(path) else { return };
        if let Some(thing) = displaced {
            self.vault.insert(thing.state.value.clone());
            let how = Circumstances { pairing: false, late: true, receives: false };
            let before = self.shown(path);
            let around = self.around(path);
            if mint::observe(self.entry(path), &around, &before, Some(&thing.state), how) == Observation::Changed {
                self.mint(path, &before, Some(&thing), false, now);
            }
        }
        self.change(path).shown = Some(intent.shown);
        self.flush();
    }

    /// Brings the disk one step nearer to the view; returns whether anything was done.
    pub(crate) fn apply(&mut self, path: &TreePath, scene: &mut Scene<'_>) -> bool {
        if !self.paired {
            return false;
        }
        if agrees(self.shown(path).state.as_ref(), self.view(path).as_ref()) {
            return self.take_context(path);
        }
        let noticed = self.observe(path, scene.now);
        let (view, before) = (self.view(path), self.shown(path));
        if agrees(before.state.as_ref(), view.as_ref()) {
            return self.take_context(path) || noticed;
        }
        let shown = before.state.as_ref().map(|s| &s.value);
        let step = match (view.as_ref().map(|v| &v.value), shown) {
            (None, Some(Value::Dir)) => Step::RemoveDir,
            (None, _) => Step::Displace,
            (Some(value), shown) if shown == Some(value) => Step::Attributes,
            (Some(value), shown) => {
                if let Some(dir) = path.parent().filter(|d| !d.is_root())
                    && self.shown(&dir).state.is_none_or(|s| s.value != Value::Dir)
                {
                    return self.apply(&dir, scene) || noticed;
                }
                match (value, shown) {
                    (Value::Dir, None) => Step::MakeDir,
                    (Value::Dir, Some(_)) => Step::Displace,
                    (_, Some(Value::Dir)) => Step::RemoveDir,
                    (Value::File { .. }, _) if !scene.held.contains(value) => return noticed,
                    _ => Step::Put,
                }
            }
        };
        if step == Step::RemoveDir && self.look_beneath(path, scene.now) {
            return true;
        }
        if step == Step::RemoveDir && !self.disk.beneath(path).is_empty() {
            return noticed;
        }
        self.carry_out(path, step, view.as_ref(), scene);
        true
    }

    fn take_context(&mut self, path: &TreePath) -> bool {
        let Some(context) = self.entry(path).map(|e| e.context.clone()) else { return false };
        let mut shown = self.shown(path);
        if shown.context == context {
            return false;
        }
        shown.context = context;
        self.change(path).shown = Some(shown);
        true
    }

    /// Before a directory goes, what nobody knows in it is a creation.
    fn look_beneath(&mut self, dir: &TreePath, now: Time) -> bool {
        let mut any = false;
        for path in self.disk.beneath(dir) {
            if self.shown(&path).state.is_none() {
                any |= self.observe(&path, now);
            }
        }
        any
    }

    fn carry_out(&mut self, path: &TreePath, step: Step, view: Option<&State>, scene: &mut Scene<'_>) {
        let expected = self.disk.0.get(path).cloned();
        let kept = expected.as_ref().filter(|_| step == Step::Attributes);
        let leaves = view.filter(|_| !matches!(step, Step::Displace | Step::RemoveDir)).map(|view| {
            let access = view.access.clone().or_else(|| kept.and_then(|t| t.state.access.clone()));
            let access = access.unwrap_or_else(|| mode(default_mode(view.value.kind())));
            State { access: Some(access), ..view.clone() }
        });
        let context = self.entry(path).map(|e| e.context.clone()).unwrap_or_default();
        let shown_before = self.shown(path).state.is_some();
        self.flush();
        self.intents.insert(path.clone(), Intent { shown: Shown { context, state: leaves.clone() } });
        if scene.kill == Some(Kill::BeforeTheName) {
            self.restart(scene.now);
            return;
        }
        (scene.race)(&mut self.disk);
        let there = self.disk.0.get(path);
        let is_dir = self.disk.is_dir(path);
        let raced = match step {
            Step::Put if shown_before => there.is_none() || is_dir,
            Step::Put | Step::MakeDir => there.is_some() || !self.disk.holds_parent(path),
            Step::Displace => there.is_none() || is_dir,
            Step::Attributes => there != expected.as_ref(),
            Step::RemoveDir => !is_dir || !self.disk.beneath(path).is_empty(),
        };
        if raced {
            self.intents.remove(path);
            return;
        }
        let clock = self.clock(scene.now);
        let displaced = there.cloned().filter(|_| matches!(step, Step::Put | Step::Displace));
        let mtime = kept.and_then(|t| t.state.mtime).unwrap_or(clock);
        match leaves {
            Some(state) => {
                let state = State { mtime: state.mtime.or(Some(mtime)), ..state };
                self.disk.0.insert(path.clone(), Thing { state, ctime: clock });
            }
            None => {
                self.disk.0.remove(path);
            }
        }
        self.carried.insert(path.clone(), displaced);
        if scene.kill == Some(Kill::AfterTheName) {
            self.restart(scene.now);
        } else {
            self.settle_intent(path, scene.now);
        }
    }
}

/// What a change took out of an entry though its disk never showed it; equal contents are one.
fn dropped_unseen(old: &Entry, new: &Entry, shown: &Shown) -> Option<Dot> {
    let before = shown.state.as_ref().map(|s| &s.value);
    let equal = |value: Option<&Value>| before.is_some() && value == before;
    let content = old.content.iter().filter(|(dot, s)| !new.content.contains_key(*dot) && !equal(s.content.value()));
    let times = old.times.keys().filter(|dot| !new.times.contains_key(*dot));
    let access = old.access.keys().filter(|dot| !new.access.contains_key(*dot));
    let losers = old.losers.keys().filter(|dot| !new.losers.contains_key(*dot));
    let mut gone = content.map(|(dot, _)| dot).chain(times).chain(access).chain(losers);
    gone.find(|dot| !shown.context.contains(**dot)).copied()
}
