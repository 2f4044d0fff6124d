//! Every state that three writers can reach in a few steps: merging obeys its laws on each, and once
//! all have told all, in whatever order, all know and show the same, and no content is gone that
//! nobody knowingly replaced. What must be left is told by a ledger that knows no version vectors.

mod common;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher as _};

use common::{check_entry, check_pair, check_triple, created, dot, file_value, mode};
use pleach_protocol::entry::{Entry, Rank, Value};
use pleach_protocol::mint::{Shown, mint};
use pleach_protocol::resolve::{Decision, resolve};
use pleach_protocol::time::Time;
use pleach_protocol::version::Dot;
use pleach_protocol::view::{self, State, Surroundings};

/// A path and one child beneath it, as one writer knows them.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
struct Known {
    path: Entry,
    child: Entry,
}

/// The path or its child.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Name {
    Path,
    Child,
}

/// One bit for each write of the ledger.
type Writes = u32;

/// A writer: what it knows, what its disk shows of it, and of which writes it was told.
#[derive(Clone, Debug, Default)]
struct Writer {
    known: Known,
    path_shown: Shown,
    child_shown: Shown,
    heard: Writes,
    /// Those that its disk took into account.
    saw: Writes,
    counter: u64,
}

/// A change of content, as an onlooker sees it who follows all three.
#[derive(Clone, Debug, Hash)]
struct Write {
    name: Name,
    to: Option<Value>,
    /// What the writer's disk held.
    over: Option<Value>,
    paired: bool,
    /// What the writer had been told.
    heard: Writes,
    /// What its disk had taken into account.
    saw: Writes,
}

/// Three writers, and everything that they wrote.
#[derive(Clone, Debug, Default)]
struct Three {
    writers: [Writer; 3],
    ledger: Vec<Write>,
    /// Whether ranks follow the order of the ledger.
    is_timed: bool,
}

/// The time of a file is this and the number of its content, until it is touched.
const WRITTEN_SECS: i64 = 900;
const TOUCHED_SECS: i64 = 950;

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl Known {
    fn merge(&self, other: &Self) -> Self {
        Self { path: self.path.merge(&other.path), child: self.child.merge(&other.child) }
    }

    fn around(&self, name: Name) -> Surroundings {
        match name {
            Name::Path => Surroundings { live_beneath: view::own(&self.child).is_some(), ancestor: None },
            Name::Child => {
                let own = view::own(&self.path) == Some(&Value::Dir);
                let access = || view::view(Some(&self.path), &Surroundings::default()).and_then(|s| s.access);
                Surroundings { live_beneath: false, ancestor: if own { access() } else { None } }
            }
        }
    }

    fn entry(&self, name: Name) -> Option<&Entry> {
        let entry = match name {
            Name::Path => &self.path,
            Name::Child => &self.child,
        };
        Some(entry).filter(|e| !e.context.is_empty())
    }

    fn view(&self, name: Name) -> Option<State> {
        view::view(self.entry(name), &self.around(name))
    }

    fn views(&self) -> (Option<State>, Option<State>) {
        (self.view(Name::Path), self.view(Name::Child))
    }

    /// Whether a merge with the other would teach it nothing.
    fn includes(&self, other: &Self) -> bool {
        self.path.context.includes(&other.path.context) && self.child.context.includes(&other.child.context)
    }
}

impl Writer {
    fn is_idle(&self) -> bool {
        self.known == Known::default()
    }

    fn is_behind(&self) -> bool {
        self.path_shown.context != self.known.path.context || self.child_shown.context != self.known.child.context
    }

    /// Brings the disk to the view.
    fn show(&mut self) {
        let (path, child) = self.known.views();
        self.path_shown = Shown { context: self.known.path.context.clone(), state: path };
        self.child_shown = Shown { context: self.known.child.context.clone(), state: child };
        self.saw = self.heard;
    }
}

/// A change that a writer makes to what its disk shows.
#[derive(Clone, Debug)]
enum Change {
    /// The path becomes this, or nothing; what was beneath goes with a directory.
    Path(Option<State>),
    /// The child becomes this, or nothing.
    Child(Option<State>),
    /// The path is found by a store that knows nothing.
    Pair(State),
    /// The file there gets these permissions.
    Chmod(u32),
    /// The file there gets another time.
    Touch,
    /// The conflicts listed are settled: what is shown stays.
    Keep,
    /// The oldest conflict listed takes the place of what is shown.
    Instead,
}

impl Three {
    fn mint(&mut self, at: usize, name: Name, becomes: Option<&State>, rank: Rank, paired: bool) {
        let writer = &mut self.writers[at];
        let (entry, shown) = match name {
            Name::Path => (&mut writer.known.path, &mut writer.path_shown),
            Name::Child => (&mut writer.known.child, &mut writer.child_shown),
        };
        if paired {
            self.is_timed = false;
            *shown = Shown::default();
            writer.saw = 0;
        }
        writer.counter += 1;
        let dot = self_dot(at, writer.counter);
        let before = Some(&*entry).filter(|e| !e.context.is_empty());
        let over = shown.state.as_ref().map(|s| s.value.clone());
        let minted = mint(before, shown, becomes, dot, rank, paired);
        (*entry, *shown) = minted;
        let to = becomes.map(|s| s.value.clone());
        if over != to {
            let (heard, saw) = (writer.heard, writer.saw);
            writer.heard |= 1 << self.ledger.len();
            writer.saw |= 1 << self.ledger.len();
            self.ledger.push(Write { name, to, over, paired, heard, saw });
        }
    }

    /// Carries a change out; says whether the writer saw anything to change.
    fn change(&mut self, at: usize, what: &Change, rank: Rank) -> bool {
        let (path, child) = (self.writers[at].path_shown.state.clone(), self.writers[at].child_shown.state.clone());
        let file = path.clone().filter(|s| matches!(s.value, Value::File { .. }));
        let becomes = match what {
            Change::Path(becomes) => becomes.clone(),
            Change::Child(becomes) => {
                if path.as_ref().is_none_or(|s| s.value != Value::Dir) || *becomes == child {
                    return false;
                }
                self.mint(at, Name::Child, becomes.as_ref(), rank, false);
                return true;
            }
            Change::Pair(found) => {
                let view = self.writers[at].known.view(Name::Path);
                if view.is_some_and(|s| s.value == found.value) || self.writers[at].counter > 0 {
                    return false;
                }
                self.mint(at, Name::Path, Some(found), rank, true);
                return true;
            }
            Change::Keep | Change::Instead => return self.resolve(at, matches!(what, Change::Instead)),
            Change::Chmod(bits) => file.map(|s| State { access: Some(mode(*bits)), ..s }),
            Change::Touch => file.map(|s| State { mtime: Some(Time::new(TOUCHED_SECS, 0)), ..s }),
        };
        let is_change = becomes != path && (becomes.is_some() || matches!(what, Change::Path(_)));
        if is_change {
            self.change_path(at, becomes.as_ref(), rank);
        }
        is_change
    }

    fn change_path(&mut self, at: usize, becomes: Option<&State>, rank: Rank) {
        let writer = &self.writers[at];
        let was_dir = writer.path_shown.state.as_ref().is_some_and(|s| s.value == Value::Dir);
        let is_dir = becomes.is_some_and(|s| s.value == Value::Dir);
        if was_dir && !is_dir && writer.child_shown.state.is_some() {
            self.mint(at, Name::Child, None, rank, false);
        }
        // A derived directory that is removed is no deletion of its own.
        if becomes.is_some() || view::own(&self.writers[at].known.path).is_some() {
            self.mint(at, Name::Path, becomes, rank, false);
        } else {
            self.writers[at].path_shown.state = None;
        }
    }

    /// Settles the conflicts of the path; says whether there were any.
    fn resolve(&mut self, at: usize, instead: bool) -> bool {
        let writer = &mut self.writers[at];
        let listed = view::conflicts(&writer.known.path, &writer.known.around(Name::Path));
        let Some(oldest) = listed.first().filter(|_| !writer.is_behind()) else { return false };
        let current = writer.path_shown.state.as_ref().map(|s| s.value.clone());
        let chosen =
            State { value: oldest.value.clone(), mtime: Some(Time::new(TOUCHED_SECS, 0)), access: Some(mode(0o644)) };
        let instead = instead.then_some(&chosen);
        let seen = writer.known.path.context.clone();
        let decision = Decision { seen: &seen, listed: &listed, current: current.as_ref(), instead };
        self.is_timed = false;
        writer.counter += 1;
        writer.known.path = resolve(&writer.known.path, &decision, self_dot(at, writer.counter));
        writer.show();
        let kept = instead.map(|s| &s.value).or(current.as_ref());
        let heard = writer.heard;
        // A decision writes what it keeps, and so outlives a deletion that did not know of it.
        let over = listed.iter().map(|l| &l.value).chain(&current).filter(|v| Some(*v) != kept);
        for over in over.map(Some).chain([None]) {
            let to = kept.filter(|_| over.is_none()).cloned();
            writer.heard |= 1 << self.ledger.len();
            self.ledger.push(Write { name: Name::Path, to, over: over.cloned(), paired: false, heard, saw: heard });
        }
        true
    }

    fn hear(&mut self, at: usize, from: usize) {
        let (known, heard) = (self.writers[from].known.clone(), self.writers[from].heard);
        let writer = &mut self.writers[at];
        writer.known = writer.known.merge(&known);
        writer.heard |= heard;
    }

    fn fingerprint(&self) -> u128 {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            for writer in &self.writers {
                (&writer.known, writer.heard, writer.saw, writer.counter).hash(&mut hasher);
                for shown in [&writer.path_shown, &writer.child_shown] {
                    (&shown.context, &shown.state).hash(&mut hasher);
                }
            }
            self.ledger.hash(&mut hasher);
            u128::from(hasher.finish())
        };
        half(0) << 64 | half(1)
    }
}

fn self_dot(at: usize, counter: u64) -> Dot {
    dot(u8::try_from(at + 1).expect("three writers"), 1, counter)
}

struct Space<'a> {
    changes: &'a [Change],
    depth: u32,
    /// Whether the clock stands still, so that ranks are equal and the encoding decides.
    frozen: bool,
    /// Whether a disk may be behind what its writer knows.
    lagging: bool,
}

#[derive(Debug, Default)]
struct Reached {
    /// Steps taken.
    steps: u64,
    /// Different states among them; on each the laws were tried.
    states: u64,
    /// States with a conflict in the end.
    disputed: u64,
}

impl Space<'_> {
    /// Walks all states; each new one is checked.
    fn walk(&self) -> Result<Reached, String> {
        let mut reached = Reached::default();
        let mut seen = BTreeSet::new();
        let mut front: Vec<(Three, Vec<String>)> =
            vec![(Three { is_timed: !self.frozen, ..Three::default() }, Vec::new())];
        for depth in 0..self.depth {
            let mut next = Vec::new();
            for (three, way) in &front {
                for (after, what) in self.steps(three, depth) {
                    reached.steps += 1;
                    if !seen.insert(after.fingerprint()) {
                        continue;
                    }
                    reached.states += 1;
                    let way = || way.iter().cloned().chain([what.clone()]).collect::<Vec<_>>();
                    let end = check(&after).map_err(|broken| format!("after {:?}: {broken}", way()))?;
                    reached.disputed += u64::from(end.is_disputed);
                    if depth + 1 < self.depth {
                        next.push((after, way()));
                    }
                }
            }
            front = next;
        }
        Ok(reached)
    }

    fn steps(&self, three: &Three, depth: u32) -> Vec<(Three, String)> {
        let rank = Rank(1_000_000_000 * i64::from(if self.frozen { 1 } else { depth + 1 }));
        let names = ["A", "B", "C"];
        // Who has done nothing yet is like any other who has not, where no dot breaks a tie.
        let first_idle = three.writers.iter().position(Writer::is_idle).unwrap_or(2);
        let mut found = Vec::new();
        for at in (0..3).filter(|at| self.frozen || *at <= first_idle || !three.writers[*at].is_idle()) {
            for what in self.changes {
                let mut after = three.clone();
                if after.change(at, what, rank) {
                    found.push((after, format!("{}: {}", names[at], say(what))));
                }
            }
            let news = |other: &usize| !three.writers[at].known.includes(&three.writers[*other].known);
            for other in (0..3).filter(|other| *other != at).filter(news) {
                let mut after = three.clone();
                after.hear(at, other);
                if self.lagging {
                    found.push((after.clone(), format!("{} hears {}", names[at], names[other])));
                }
                after.writers[at].show();
                found.push((after, format!("{} hears and shows {}", names[at], names[other])));
            }
            if self.lagging && three.writers[at].is_behind() {
                let mut after = three.clone();
                after.writers[at].show();
                found.push((after, format!("{} shows", names[at])));
            }
        }
        found
    }
}

fn say(change: &Change) -> String {
    let state = |s: &Option<State>| match s {
        None => "nothing".to_owned(),
        Some(s) => format!("{:?} {:o}", s.value, s.access.as_ref().map_or(0, |a| a.mode)),
    };
    match change {
        Change::Path(to) => format!("path becomes {}", state(to)),
        Change::Child(to) => format!("child becomes {}", state(to)),
        Change::Pair(found) => format!("finds {:?}", found.value),
        Change::Chmod(bits) => format!("chmod {bits:o}"),
        Change::Touch => "touch".to_owned(),
        Change::Keep => "keeps what is shown".to_owned(),
        Change::Instead => "takes the oldest conflict instead".to_owned(),
    }
}

struct End {
    is_disputed: bool,
}

/// The laws on what the three know, and one view in the end.
fn check(three: &Three) -> Result<End, String> {
    let [a, b, c] = three.writers.each_ref().map(|w| &w.known);
    for [a, b, c] in [[&a.path, &b.path, &c.path], [&a.child, &b.child, &c.child]] {
        if [a, b, c].iter().all(|e| e.context.is_empty()) {
            continue;
        }
        for (x, y, z) in [(a, b, c), (b, c, a), (c, a, b)] {
            check_pair(x, y)?;
            check_triple(x, y, z)?;
        }
        for entry in [a, b, c].into_iter().filter(|e| !e.context.is_empty()) {
            check_entry(entry)?;
        }
    }
    let ends = ORDERS.map(|order| {
        let [x, y, z] = order.map(|i| [a, b, c][i]);
        x.merge(y).merge(z)
    });
    let end = &ends[0];
    for known in &ends {
        if known != end {
            return Err(format!("they end with {end:?} and {known:?}"));
        }
        if known.views() != end.views() {
            return Err(format!("they show {:?} and {:?}", end.views(), known.views()));
        }
    }
    check_attributes(end)?;
    if three.is_timed {
        check_winner(three, end)?;
    }
    let mut is_disputed = false;
    for name in [Name::Path, Name::Child] {
        is_disputed |= check_contents(&three.ledger, end, name)?;
    }
    Ok(End { is_disputed })
}

/// What is shown carries its own time and the mode of its kind.
fn check_attributes(end: &Known) -> Result<(), String> {
    let shown = end.view(Name::Path);
    if let Some(State { value: value @ Value::File { size, .. }, mtime, access }) = &shown {
        // A touch drops the times of what was a conflict then; should that win after all, its rank dates it.
        let is_dated = end.path.times.values().any(|t| t.of == *value);
        if is_dated
            && mtime
                .is_none_or(|t| t.secs != WRITTEN_SECS + i64::try_from(*size).expect("small") && t.secs != TOUCHED_SECS)
        {
            return Err(format!("{shown:?} has the time of another content: {:?}", end.path.times));
        }
        if access.as_ref().is_none_or(|a| a.mode & 0o111 != 0) {
            return Err(format!("{shown:?} has the mode of another kind"));
        }
    }
    // A directory that a writer sees as its own has a mode and a time.
    if let (Some(state), false) = (&shown, view::is_derived(Some(&end.path), &end.around(Name::Path)))
        && (state.access.is_none() || state.mtime.is_none())
    {
        return Err(format!("{shown:?} has no mode or no time"));
    }
    Ok(())
}

/// A directory, else the latest, of what no disk had taken into account that changed since. Only where
/// each write has its time: no pairing, no decision, no clock that stands still.
fn check_winner(three: &Three, end: &Known) -> Result<(), String> {
    let path = |w: &&Write| w.name == Name::Path;
    let seen = three.ledger.iter().filter(path).fold(0, |all, w| all | w.saw);
    let ended = |at: usize, value: &Value| {
        three.ledger.iter().filter(path).any(|w| w.heard & (1 << at) != 0 && w.over.as_ref() == Some(value))
    };
    let all = three.ledger.iter().enumerate().filter(|(at, w)| path(w) && seen & (1 << at) == 0);
    let standing = all.filter_map(|(at, w)| w.to.as_ref().filter(|v| !ended(at, v)));
    let expected = standing.enumerate().max_by_key(|(order, v)| (**v == Value::Dir, *order)).map(|(_, v)| v);
    let shown = view::own(&end.path);
    if shown == expected { Ok(()) } else { Err(format!("{shown:?} is shown and {expected:?} is the latest: {end:?}")) }
}

/// What was written and not knowingly replaced is shown or listed; what is shown, no disk had taken
/// into account that changed since, and if there is such a content, one is shown. Returns whether any is listed.
fn check_contents(ledger: &[Write], end: &Known, name: Name) -> Result<bool, String> {
    let shown = end.view(name).map(|s| s.value);
    let listed = end.entry(name).map(|e| view::conflicts(e, &end.around(name))).unwrap_or_default();
    let writes = || ledger.iter().enumerate().filter(|(_, w)| w.name == name);
    let is_in = |at: usize, writes: Writes| writes & (1 << at) != 0;
    let stands = |at: usize| !writes().any(|(_, by)| is_in(at, by.saw));
    let mut standing = Vec::new();
    for (at, write) in writes() {
        let Some(value) = write.to.as_ref().filter(|v| **v != Value::Dir) else { continue };
        let is_over = |by: &Write| by.over.as_ref() == Some(value);
        let ended = writes().any(|(_, by)| is_in(at, by.heard) && is_over(by));
        // What a lost store finds brings no deletion back; the copy goes to the vault.
        let vaulted = write.paired && writes().any(|(_, by)| by.to.is_none() && is_over(by));
        let told = shown.as_ref() == Some(value) || listed.iter().any(|l| l.value == *value);
        if !told && !ended && !vaulted {
            return Err(format!("{value:?} is neither shown nor listed: {end:?}"));
        }
        if !ended && stands(at) {
            standing.push(value);
            if shown.is_none() && !vaulted {
                return Err(format!("{value:?} went with a change that did not see it: {end:?}"));
            }
        }
    }
    let deleted = writes()
        .filter(|(at, w)| w.to.is_none() && stands(*at))
        .filter_map(|(_, w)| w.over.as_ref())
        .filter(|v| **v != Value::Dir);
    let known = |value: &Value| writes().any(|(at, w)| w.to.as_ref() == Some(value) && !w.paired && stands(at));
    if let Some(value) = deleted.into_iter().find(|v| shown.as_ref() == Some(*v) && !known(v)) {
        return Err(format!("a lost store brought {value:?} back: {end:?}"));
    }
    match shown.as_ref().filter(|v| **v != Value::Dir) {
        Some(value) if !standing.contains(&value) => Err(format!("{value:?} returned: {end:?}")),
        _ => Ok(!listed.is_empty()),
    }
}

fn file(content: u32, bits: u32) -> State {
    State { access: Some(mode(bits)), ..created(file_value(content), WRITTEN_SECS + i64::from(content)) }
}

fn values() -> Vec<Change> {
    vec![Change::Path(Some(file(1, 0o644))), Change::Path(Some(file(2, 0o600))), Change::Path(None)]
}

fn walk(space: &Space<'_>) -> Reached {
    let reached = space.walk().unwrap_or_else(|broken| panic!("{broken}"));
    println!("{reached:?}");
    assert!(reached.disputed * 20 > reached.states, "the walk is too peaceful: {reached:?}");
    reached
}

#[test]
fn one_path_in_five_steps() {
    let mut changes = values();
    changes.extend([Change::Path(Some(file(3, 0o640))), Change::Chmod(0o400), Change::Touch]);
    let reached = walk(&Space { changes: &changes, depth: 5, frozen: false, lagging: false });
    assert!(reached.states > 10_000, "the walk is what it was: {reached:?}");
}

/// A decision drops what was listed, everywhere, and nothing that nobody saw.
#[test]
fn one_path_whose_conflicts_are_resolved() {
    let mut changes = values();
    changes.extend([Change::Path(Some(file(3, 0o640))), Change::Keep, Change::Instead]);
    walk(&Space { changes: &changes, depth: 5, frozen: false, lagging: false });
}

/// What was merged but is not yet on the disk counts as unseen.
#[test]
fn one_path_with_disks_that_lag_behind() {
    let mut changes = values();
    changes.push(Change::Touch);
    let reached = walk(&Space { changes: &changes, depth: 5, frozen: false, lagging: true });
    assert!(reached.states > 10_000, "the walk is what it was: {reached:?}");
}

#[test]
fn one_path_under_one_clock_tick() {
    walk(&Space { changes: &values(), depth: 4, frozen: true, lagging: false });
}

#[test]
fn one_path_that_may_be_paired() {
    let mut changes = values();
    changes.push(Change::Pair(file(1, 0o644)));
    walk(&Space { changes: &changes, depth: 4, frozen: false, lagging: false });
}

#[test]
fn a_directory_and_what_lies_beneath() {
    let dir = State { access: Some(mode(0o755)), ..created(Value::Dir, 902) };
    let changes = [
        Change::Path(Some(file(1, 0o644))),
        Change::Path(Some(dir)),
        Change::Path(None),
        Change::Child(Some(file(3, 0o640))),
        Change::Child(None),
    ];
    walk(&Space { changes: &changes, depth: 5, frozen: false, lagging: false });
}
