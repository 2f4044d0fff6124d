//! Every state that three writers can reach in a few steps: merging obeys its laws on each, and once
//! all have told all, in whatever order, all know and show the same.

mod common;

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use common::{check_entry, check_pair, check_triple, created, dot, file_value, mode};
use pleach_protocol::entry::{Entry, Rank, Value};
use pleach_protocol::mint::{Shown, mint};
use pleach_protocol::version::Dot;
use pleach_protocol::view::{self, State, Surroundings};

/// A path and one child beneath it, as one writer knows them.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
struct Known {
    path: Entry,
    child: Entry,
}

/// What three writers know.
type Three = [Known; 3];

const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

impl Known {
    fn merge(&self, other: &Self) -> Self {
        Self { path: self.path.merge(&other.path), child: self.child.merge(&other.child) }
    }

    fn around(&self) -> Surroundings {
        Surroundings { live_beneath: view::own(&self.child).is_some(), ancestor: None }
    }

    fn child_around(&self) -> Surroundings {
        let own = view::own(&self.path) == Some(&Value::Dir);
        let access = || view::view(Some(&self.path), &Surroundings::default()).and_then(|s| s.access);
        Surroundings { live_beneath: false, ancestor: if own { access() } else { None } }
    }

    fn view(&self) -> (Option<State>, Option<State>) {
        let known = |e: &Entry| !e.context.is_empty();
        let path = Some(&self.path).filter(|e| known(e));
        let child = Some(&self.child).filter(|e| known(e));
        (view::view(path, &self.around()), view::view(child, &self.child_around()))
    }

    /// Whether a merge with the other would teach it nothing.
    fn includes(&self, other: &Self) -> bool {
        self.path.context.includes(&other.path.context) && self.child.context.includes(&other.child.context)
    }

    /// The next write by a writer here.
    fn next(&self, writer: u8) -> Dot {
        let of =
            |entry: &Entry| entry.context.iter().find(|d| d.actor == dot(writer, 1, 1).actor).map_or(0, |d| d.counter);
        dot(writer, 1, of(&self.path).max(of(&self.child)) + 1)
    }
}

/// A change that a writer makes to what it sees.
#[derive(Clone, Debug)]
enum Change {
    /// The path becomes this, or nothing; what was beneath goes with a directory.
    Path(Option<State>),
    /// The child becomes this, or nothing.
    Child(Option<State>),
    /// The path is found by a store that knows nothing.
    Pair(State),
}

fn write(entry: &Entry, sees: Option<&State>, becomes: Option<&State>, dot: Dot, rank: Rank, paired: bool) -> Entry {
    let before = Some(entry).filter(|e| !e.context.is_empty());
    let shown = if paired { Shown::default() } else { Shown { context: entry.context.clone(), state: sees.cloned() } };
    mint(before, &shown, becomes, dot, rank, paired).0
}

/// What a writer knows after a change; none where it sees nothing to change.
fn change(known: &Known, writer: u8, what: &Change, rank: Rank) -> Option<Known> {
    let (path, child) = known.view();
    let mut after = known.clone();
    let next = known.next(writer);
    match what {
        Change::Path(becomes) => {
            if *becomes == path {
                return None;
            }
            let dir = |s: &Option<State>| s.as_ref().is_some_and(|s| s.value == Value::Dir);
            let mut next = next;
            if dir(&path) && !dir(becomes) && child.is_some() {
                after.child = write(&known.child, child.as_ref(), None, next, rank, false);
                next.counter += 1;
            }
            // A derived directory that is removed is no deletion of its own.
            if becomes.is_some() || view::own(&known.path).is_some() {
                after.path = write(&known.path, path.as_ref(), becomes.as_ref(), next, rank, false);
            }
        }
        Change::Child(becomes) => {
            if path.as_ref().is_none_or(|s| s.value != Value::Dir) || *becomes == child {
                return None;
            }
            after.child = write(&known.child, child.as_ref(), becomes.as_ref(), next, rank, false);
        }
        Change::Pair(found) => {
            let same = path.as_ref().is_some_and(|s| s.value == found.value);
            if same || known.path.context.contains(dot(writer, 1, 1)) {
                return None;
            }
            after.path = write(&known.path, None, Some(found), next, rank, true);
        }
    }
    Some(after)
}

struct Space<'a> {
    changes: &'a [Change],
    depth: u32,
    /// Whether the clock stands still, so that ranks are equal and the encoding decides.
    frozen: bool,
}

#[derive(Debug, Default)]
struct Reached {
    /// Steps taken.
    steps: u64,
    /// Different states among them; on each the laws were tried.
    states: u64,
}

impl Space<'_> {
    /// Walks all states; each new one is checked.
    fn walk(&self) -> Result<Reached, String> {
        let mut reached = Reached::default();
        let mut seen = BTreeSet::new();
        let mut front: Vec<(Three, Vec<String>)> = vec![Default::default()];
        for depth in 0..self.depth {
            let mut next = Vec::new();
            for (three, way) in &front {
                for (after, what) in self.steps(three, depth) {
                    reached.steps += 1;
                    if !seen.insert(fingerprint(&after)) {
                        continue;
                    }
                    reached.states += 1;
                    let way = || way.iter().cloned().chain([what.clone()]).collect::<Vec<_>>();
                    check(&after).map_err(|broken| format!("after {:?}: {broken}", way()))?;
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
        let mut found = Vec::new();
        for (at, writer) in [0, 1, 2].into_iter().zip(1..) {
            let name = char::from(b'@' + writer);
            for what in self.changes {
                if let Some(after) = change(&three[at], writer, what, rank) {
                    let mut all = three.clone();
                    all[at] = after;
                    found.push((all, format!("{name}: {}", say(what))));
                }
            }
            for other in (0..3).filter(|other| *other != at && !three[at].includes(&three[*other])) {
                let mut all = three.clone();
                all[at] = three[at].merge(&three[other]);
                found.push((all, format!("{name} hears {}", ["A", "B", "C"][other])));
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
    }
}

fn fingerprint(three: &Three) -> (u64, u64) {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, three).hash(&mut hasher);
        hasher.finish()
    };
    (half(0), half(1))
}

/// The laws on what the three know, and one view in the end.
fn check(three: &Three) -> Result<(), String> {
    let [a, b, c] = three;
    for [a, b, c] in [[&a.path, &b.path, &c.path], [&a.child, &b.child, &c.child]] {
        if [a, b, c].iter().all(|e| e.context.is_empty()) {
            continue;
        }
        for (x, y) in [(a, b), (b, c), (c, a)] {
            check_pair(x, y)?;
        }
        for [x, y, z] in ORDERS.map(|order| order.map(|i| [a, b, c][i])) {
            check_triple(x, y, z)?;
        }
        for entry in [a, b, c].into_iter().filter(|e| !e.context.is_empty()) {
            check_entry(entry)?;
        }
    }
    let ends = ORDERS.map(|order| {
        // Each hears the two others, each time in another order, and then everybody again.
        let mut all = three.clone();
        for to in order {
            for from in order {
                all[to] = all[to].merge(&all[from]);
            }
        }
        for to in order {
            all[to] = all[to].merge(&all[order[2]]);
        }
        all
    });
    let first = &ends[0][0];
    let view = first.view();
    for known in ends.iter().flatten() {
        if known != first {
            return Err(format!("they end with {first:?} and {known:?}"));
        }
        if known.view() != view {
            return Err(format!("they show {view:?} and {:?}", known.view()));
        }
    }
    check_end(three, first)
}

/// What the view may be, given what each knew: a value that all saw alike is not changed by talking,
/// and what is shown was written and carries its own time and the mode of its kind.
fn check_end(three: &Three, end: &Known) -> Result<(), String> {
    let views = three.each_ref().map(Known::view);
    let (shown, _) = end.view();
    let same = views.iter().all(|v| *v == views[0]) && three.iter().all(|k| *k == three[0]);
    if same && end.view() != views[0] {
        return Err(format!("talking changed {:?} to {:?}", views[0], end.view()));
    }
    if let Some(State { value: Value::File { size, .. }, mtime, access }) = &shown {
        let times = &end.path.times;
        let own = times
            .values()
            .any(|t| Some(t.mtime) == *mtime && matches!(t.of, Value::File { size: s, .. } if s == *size));
        if !own {
            return Err(format!("{shown:?} has the time of another content: {times:?}"));
        }
        if access.as_ref().is_none_or(|a| a.mode & 0o111 != 0) {
            return Err(format!("{shown:?} has the mode of another kind"));
        }
    }
    // A directory that a writer sees as its own has a mode and a time.
    if let (Some(state), false) = (&shown, view::is_derived(Some(&end.path), &end.around()))
        && (state.access.is_none() || state.mtime.is_none())
    {
        return Err(format!("{shown:?} has no mode or no time"));
    }
    Ok(())
}

fn file(content: u32, secs: i64, bits: u32) -> State {
    State { access: Some(mode(bits)), ..created(file_value(content), secs) }
}

fn values() -> Vec<Change> {
    vec![Change::Path(Some(file(1, 900, 0o644))), Change::Path(Some(file(2, 901, 0o600))), Change::Path(None)]
}

fn walk(changes: &[Change], depth: u32, frozen: bool) -> Reached {
    let reached = Space { changes, depth, frozen }.walk();
    let reached = reached.unwrap_or_else(|broken| panic!("{broken}"));
    println!("{reached:?}");
    reached
}

#[test]
fn one_path_in_five_steps() {
    let reached = walk(&values(), 5, false);
    assert!(reached.states > 10_000, "the walk is what it was: {reached:?}");
}

#[test]
fn one_path_under_one_clock_tick() {
    walk(&values(), 4, true);
}

#[test]
fn one_path_that_may_be_paired() {
    let mut changes = values();
    changes.push(Change::Pair(file(1, 900, 0o644)));
    walk(&changes, 4, false);
}

#[test]
fn a_directory_and_what_lies_beneath() {
    let dir = State { access: Some(mode(0o755)), ..created(Value::Dir, 902) };
    let changes = [
        Change::Path(Some(file(1, 900, 0o644))),
        Change::Path(Some(dir)),
        Change::Path(None),
        Change::Child(Some(file(3, 903, 0o640))),
        Change::Child(None),
    ];
    walk(&changes, 5, false);
}
