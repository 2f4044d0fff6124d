//! Random histories of two to four nodes on plain maps, with late, doubled and reordered messages,
//! races and kills: in the end all agree, come to rest, and hold what nobody knowingly replaced.
//! PLEACH_SEEDS sets how many.

mod common;
#[path = "common/node.rs"]
mod node;
#[path = "common/random.rs"]
mod random;
#[path = "common/users.rs"]
mod users;

use std::collections::{BTreeMap, BTreeSet};

use common::{check_pair, check_triple};
use node::{Kill, Node, Scene};
use pleach_protocol::entry::{Content, Entry, LOSERS_MAX, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::view::{self, State};
use random::{Random, seeds};
use users::{Ledger, has_content};

/// What fits into about 10 seconds of a debug build on one core.
const SEEDS: u64 = 4_000;
/// Entries of a path that are kept to be joined by threes.
const MET_MAX: usize = 6;
const SHAPES: [(u8, &[(u8, u8)]); 5] = [
    (2, &[(1, 2)]),
    (3, &[(1, 2), (2, 3)]),
    (3, &[(1, 2), (2, 3), (1, 3)]),
    (4, &[(1, 2), (2, 3), (3, 4), (1, 4)]),
    (4, &[(1, 2), (2, 3), (3, 4)]),
];
const NAMES: [&[&str]; 4] = [&["x"], &["x", "y"], &["d", "d/f", "d/g"], &["d", "d/e", "d/e/f", "x"]];

struct Message {
    to: usize,
    path: TreePath,
    entry: Entry,
}

struct World {
    nodes: Vec<Node>,
    links: &'static [(u8, u8)],
    paths: Vec<TreePath>,
    now: Time,
    wire: Vec<Message>,
    ledger: Ledger,
    met: BTreeMap<TreePath, Vec<Entry>>,
    log: Vec<String>,
    /// A store was lost since the last rest.
    lost: bool,
}

/// What all showed at the last rest, and where nothing was in dispute.
type Rest = BTreeMap<TreePath, (Option<State>, bool)>;

fn letter(number: u8) -> char {
    char::from(b'@' + number)
}

impl World {
    fn new(random: &mut Random) -> Self {
        let (count, links) = *random.pick(&SHAPES);
        let names = *random.pick(&NAMES);
        let skew = |random: &mut Random| if random.percent(20) { *random.pick(&[86_400, -50]) } else { 0 };
        Self {
            nodes: (1..=count).map(|number| Node::new(number, skew(random))).collect(),
            links,
            paths: names.iter().map(|n| TreePath::parse(n.as_bytes()).expect("a path")).collect(),
            now: Time::new(100_000, 0),
            wire: Vec::new(),
            ledger: Ledger::default(),
            met: BTreeMap::new(),
            log: Vec::new(),
            lost: false,
        }
    }

    fn act(&mut self, at: usize, random: &mut Random) {
        let node = &mut self.nodes[at];
        let clock = node.clock(self.now);
        if let Some(what) = self.ledger.act((node.number, &mut node.disk), clock, &self.paths, random) {
            self.log.push(what);
        }
    }

    fn note(&mut self, at: usize, what: &str) {
        let letter = letter(self.nodes[at].number);
        self.log.push(format!("{letter} {what}"));
    }

    /// Contents that can be had from some disk or vault.
    fn held(&self) -> BTreeSet<Value> {
        let on_disk = |n: &Node| n.disk.0.values().map(|t| t.state.value.clone()).collect::<Vec<_>>();
        self.nodes.iter().flat_map(|n| n.vault.iter().cloned().chain(on_disk(n))).collect()
    }

    /// Merges what another node said, after trying the laws on it and on what was met before.
    fn merge(&mut self, at: usize, path: &TreePath, entry: &Entry, random: &mut Random) -> Result<bool, String> {
        let known = self.nodes[at].entry(path).cloned().unwrap_or_default();
        if known == *entry {
            return Ok(false);
        }
        let joined = check_pair(&known, entry)?;
        let met = self.met.entry(path.clone()).or_default();
        if !met.is_empty() {
            let third = random.pick(met);
            check_triple(&known, entry, third)?;
            check_triple(third, &known, entry)?;
        }
        if met.len() < MET_MAX {
            met.push(entry.clone());
        } else {
            met[random.below(MET_MAX)] = entry.clone();
        }
        Ok(self.nodes[at].merge(path, joined))
    }

    /// Puts an entry of one node on the wire to a neighbour. What is announced is stored first.
    fn send(&mut self, random: &mut Random) {
        let (a, b) = *random.pick(self.links);
        let (from, to) = if random.percent(50) { (a, b) } else { (b, a) };
        let (from, to) = (usize::from(from) - 1, usize::from(to) - 1);
        let node = &mut self.nodes[from];
        if !node.is_paired() {
            return;
        }
        let entries: Vec<_> = node.entries().map(|(path, entry)| (path.clone(), entry.clone())).collect();
        if entries.is_empty() {
            return;
        }
        node.flush();
        for _ in 0..*random.pick(&[1, 1, 3]) {
            let (path, entry) = random.pick(&entries).clone();
            let what = format!("sends {path} to {}", letter(self.nodes[to].number));
            self.note(from, &what);
            self.wire.push(Message { to, path, entry });
        }
    }

    /// Delivers any message; some stay on the wire and come again.
    fn deliver(&mut self, random: &mut Random) -> Result<(), String> {
        if self.wire.is_empty() {
            return Ok(());
        }
        let next = random.below(self.wire.len());
        let Message { to, path, entry } = self.wire.swap_remove(next);
        if self.merge(to, &path, &entry, random)? {
            self.note(to, &format!("merges {path}"));
        }
        if random.percent(20) {
            self.wire.push(Message { to, path, entry });
        }
        Ok(())
    }

    fn apply(&mut self, at: usize, random: &mut Random) {
        let paths = self.nodes[at].paths();
        if paths.is_empty() {
            return;
        }
        let path = random.pick(&paths).clone();
        let races = random.percent(25);
        let kill = random.percent(10).then(|| *random.pick(&[Kill::BeforeTheName, Kill::AfterTheName]));
        let held = self.held();
        let (ledger, mut said) = (&mut self.ledger, Vec::new());
        let node = &mut self.nodes[at];
        let (number, clock) = (node.number, node.clock(self.now));
        let near = [path.clone()];
        let mut race = |disk: &mut node::Disk| {
            if races && let Some(what) = ledger.act((number, disk), clock, &near, random) {
                said.push(format!("(just before) {what}"));
            }
        };
        let done = node.apply(&path, &mut Scene { now: self.now, held: &held, kill, race: &mut race });
        self.log.append(&mut said);
        if done {
            let killed = kill.map(|k| format!(", may be killed {k:?}")).unwrap_or_default();
            self.note(at, &format!("applies {path}{killed}"));
        }
    }

    fn lose_store(&mut self, at: usize) {
        self.note(at, "loses its store");
        let node = &mut self.nodes[at];
        node.lose_store();
        self.lost = true;
        let paths = self.ledger.put.iter().map(|(path, _)| path).chain(node.disk.0.keys());
        self.ledger.exempt = paths.cloned().collect();
    }

    fn step(&mut self, random: &mut Random) -> Result<(), String> {
        self.now.secs += 1;
        let at = random.below(self.nodes.len());
        match random.below(100) {
            0..26 => self.act(at, random),
            26..36 => {
                let now = self.now;
                if self.nodes[at].scan(now) {
                    self.note(at, "scans");
                }
            }
            36..42 => {
                let (now, path) = (self.now, random.pick(&self.paths).clone());
                if self.nodes[at].is_paired() && self.nodes[at].observe(&path, now) {
                    self.note(at, &format!("looks at {path}"));
                }
            }
            42..58 => self.send(random),
            58..78 => self.deliver(random)?,
            78..94 => self.apply(at, random),
            94..97 => self.nodes[at].flush(),
            97..99 => {
                self.note(at, "is killed");
                let now = self.now;
                self.nodes[at].restart(now);
            }
            _ if random.percent(10) => self.lose_store(at),
            _ => {}
        }
        Ok(())
    }

    /// Lets everybody say, merge and apply everything, until nothing happens any more.
    fn settle(&mut self, random: &mut Random) -> Result<(), String> {
        for _ in 0..60 {
            self.now.secs += 1;
            let now = self.now;
            let before: u64 = self.nodes.iter().map(|n| n.mints).sum();
            let mut moved = false;
            for node in &mut self.nodes {
                moved |= node.scan(now);
            }
            while !self.wire.is_empty() {
                let Message { to, path, entry } = self.wire.swap_remove(0);
                moved |= self.merge(to, &path, &entry, random)?;
            }
            moved |= self.exchange(random)?;
            let held = self.held();
            for node in &mut self.nodes {
                let down = node.paths();
                for path in down.iter().chain(down.iter().rev()) {
                    moved |= node.apply(path, &mut Scene { now, held: &held, kill: None, race: &mut |_| {} });
                }
            }
            if !moved {
                let after: u64 = self.nodes.iter().map(|n| n.mints).sum();
                return if before == after { Ok(()) } else { Err("a rest that minted".into()) };
            }
        }
        Err("no rest".into())
    }

    /// Everybody tells everything to the neighbours until nobody learns anything.
    fn exchange(&mut self, random: &mut Random) -> Result<bool, String> {
        let mut any = false;
        loop {
            let mut learned = false;
            for (a, b) in self.links {
                for (from, to) in [(a, b), (b, a)] {
                    let (from, to) = (usize::from(*from) - 1, usize::from(*to) - 1);
                    self.nodes[from].flush();
                    let said: Vec<_> = self.nodes[from].entries().map(|(p, e)| (p.clone(), e.clone())).collect();
                    for (path, entry) in said {
                        learned |= self.merge(to, &path, &entry, random)?;
                    }
                }
            }
            if !learned {
                return Ok(any);
            }
            any = true;
        }
    }

    /// What all show now.
    fn rest(&self) -> Rest {
        let node = &self.nodes[0];
        let quiet = |path: &TreePath| {
            let derived = view::is_derived(node.entry(path), &node.around(path));
            !derived && node.entry(path).is_none_or(|e| e.content.len() == 1)
        };
        node.paths().into_iter().map(|path| (path.clone(), (node.view(&path), quiet(&path)))).collect()
    }

    /// A lost store did not see that its users ended a content which nobody else had got: the path
    /// stays a problem, and the disks keep what they show.
    fn is_out_of_reach(&self) -> bool {
        let held = self.held();
        let ended = |path: &TreePath, value: &Value| self.ledger.ended.contains(&(path.clone(), value.clone()));
        let shown = |path: &TreePath| self.nodes[0].view(path).map(|s| s.value).filter(has_content);
        self.ledger.exempt.iter().any(|p| shown(p).is_some_and(|v| !held.contains(&v) && ended(p, &v)))
    }

    fn check(&self, before: &Rest) -> Result<(), String> {
        if let Some(fault) = self.nodes.iter().flat_map(|n| &n.faults).next() {
            return Err(fault.clone());
        }
        self.check_agreement()?;
        for node in &self.nodes {
            check_disk(node)?;
        }
        self.check_contents()?;
        for path in &self.paths {
            self.check_path(path)?;
            if !self.lost {
                self.check_since(path, before)?;
            }
        }
        Ok(())
    }

    /// Equal entries, equal views, equal lists of conflicts.
    fn check_agreement(&self) -> Result<(), String> {
        let (a, others) = self.nodes.split_first().expect("there are nodes");
        for b in others {
            let who = format!("{} and {}", letter(a.number), letter(b.number));
            for path in self.paths.iter().chain(&a.paths()).chain(&b.paths()) {
                let (x, y) = (a.entry(path), b.entry(path));
                if x != y {
                    return Err(format!("{who} know different things of {path}: {x:?} and {y:?}"));
                }
                let (x, y) = (a.view(path), b.view(path));
                if x != y {
                    return Err(format!("{who} show different things at {path}: {x:?} and {y:?}"));
                }
                if a.conflicts(path) != b.conflicts(path) {
                    return Err(format!("{who} list different conflicts at {path}"));
                }
            }
        }
        Ok(())
    }

    /// No content is lost, and what is listed can be had.
    fn check_contents(&self) -> Result<(), String> {
        let (held, node) = (self.held(), &self.nodes[0]);
        for key @ (path, value) in &self.ledger.put {
            if !held.contains(value) && !self.ledger.ended.contains(key) {
                return Err(format!("lost: {value:?} of {path}"));
            }
        }
        for (path, _) in node.entries() {
            for loser in node.conflicts(path) {
                let ended = self.ledger.ended.contains(&(path.clone(), loser.value.clone()));
                if !held.contains(&loser.value) && !ended {
                    return Err(format!("listed but gone: {:?} of {path}", loser.value));
                }
            }
        }
        Ok(())
    }

    /// What users wrote under a name is shown or listed there unless somebody ended it, and nothing
    /// else is shown.
    fn check_path(&self, path: &TreePath) -> Result<(), String> {
        let (node, ledger) = (&self.nodes[0], &self.ledger);
        let (view, entry) = (node.view(path), node.entry(path));
        if let Some(shown) = &view {
            self.check_attributes(path, shown)?;
        }
        let shown = view.as_ref().map(|s| &s.value);
        if shown.is_none() && !ledger.removed.contains(path) && ledger.touched.contains_key(path) {
            return Err(format!("{path} is gone and nobody removed it"));
        }
        if ledger.exempt.contains(path) {
            return self.check_deletions(path, entry);
        }
        let own: BTreeSet<Value> = node.conflicts(path).into_iter().map(|l| l.value).collect();
        let live = |value: &Value| {
            let key = (path.clone(), value.clone());
            ledger.put.contains(&key) && !ledger.ended.contains(&key)
        };
        for (_, value) in ledger.put.iter().filter(|(p, v)| p == path && live(v)) {
            let told = shown == Some(value) || own.contains(value) || own.len() >= LOSERS_MAX;
            if !told && !ledger.twice.contains(&(path.clone(), value.clone())) {
                return Err(format!("{value:?} of {path} is neither shown nor listed"));
            }
        }
        match shown.filter(|v| has_content(v)) {
            Some(value) if !live(value) && !ledger.twice.contains(&(path.clone(), value.clone())) => {
                Err(format!("{value:?} returned at {path}"))
            }
            _ => Ok(()),
        }
    }

    /// Where a store was lost, what it found brings no deletion back.
    fn check_deletions(&self, path: &TreePath, entry: Option<&Entry>) -> Result<(), String> {
        let Some(entry) = entry else { return Ok(()) };
        let shown = view::own(entry);
        let deleted = |s: &&pleach_protocol::entry::ContentSibling| match &s.content {
            Content::Absent { was } => was.is_some() && was.as_ref() == shown,
            Content::Present(_) => false,
        };
        let knowing = entry.content.values().any(|s| !s.paired && s.content.value() == shown && shown.is_some());
        if entry.content.values().find(deleted).is_some() && !knowing {
            return Err(format!("a lost store brought {shown:?} back at {path}"));
        }
        Ok(())
    }

    fn check_attributes(&self, path: &TreePath, shown: &State) -> Result<(), String> {
        let node = &self.nodes[0];
        let derived = view::is_derived(node.entry(path), &node.around(path));
        if let Some(access) = &shown.access {
            let is_dir = shown.value == Value::Dir;
            let fits = matches!(shown.value, Value::Symlink { .. }) || (access.mode & 0o100 != 0) == is_dir;
            if !fits {
                return Err(format!("{path} has the mode of another kind: {shown:?}"));
            }
        } else if !derived {
            return Err(format!("{path} has no mode: {shown:?}"));
        }
        let dated = node.entry(path).is_some_and(|e| e.times.values().any(|t| t.of == shown.value));
        if let Some(mtime) = shown.mtime
            && dated
            && has_content(&shown.value)
            && !self.ledger.dated.contains(&(shown.value.clone(), mtime))
        {
            return Err(format!("{path} shows a time that nobody gave this content: {shown:?}"));
        }
        Ok(())
    }

    /// Against the last rest: what nobody touched is as it was, what one node's users touched is as
    /// they left it.
    fn check_since(&self, path: &TreePath, before: &Rest) -> Result<(), String> {
        let (then, quiet) = before.get(path).cloned().unwrap_or((None, true));
        let node = &self.nodes[0];
        let derived = view::is_derived(node.entry(path), &node.around(path));
        let touched = self.ledger.touched.get(path);
        let expected = match touched.map(|t| t.values().collect::<Vec<_>>()).as_deref() {
            None => then,
            Some([one]) => (*one).clone(),
            Some(_) => return Ok(()),
        };
        if !quiet || derived {
            return Ok(());
        }
        let comparable = |state: Option<State>| {
            state.map(|s| {
                let mtime = s.mtime.filter(|_| has_content(&s.value));
                State { mtime, ..s }
            })
        };
        let (expected, shown) = (comparable(expected), comparable(node.view(path)));
        if expected != shown {
            return Err(format!("{path} should be {expected:?} and is {shown:?}"));
        }
        Ok(())
    }
}

/// The disk shows the view and nothing else, and looking at it finds no change.
fn check_disk(node: &Node) -> Result<(), String> {
    let who = letter(node.number);
    for path in node.paths() {
        let (view, disk) = (node.view(&path), node.disk.0.get(&path).map(|t| &t.state));
        let same = match (&view, disk) {
            (None, None) => true,
            (Some(view), Some(disk)) => disk.shows(view),
            _ => false,
        };
        if !same {
            return Err(format!("{who} shows {disk:?} at {path} instead of {view:?}"));
        }
        if view != node.view(&path) {
            return Err(format!("{who} views {path} differently the second time"));
        }
    }
    Ok(())
}

/// What the histories came to, so that a run which tests nothing is seen.
#[derive(Debug, Default)]
struct Tally {
    rests: u64,
    mints: u64,
    /// Rests with a conflict somewhere.
    in_dispute: u64,
    /// Histories that ended where a content was out of reach.
    out_of_reach: u64,
}

impl Tally {
    fn note(&mut self, world: &World) {
        let node = &world.nodes[0];
        self.rests += 1;
        self.in_dispute += u64::from(node.paths().iter().any(|path| !node.conflicts(path).is_empty()));
    }
}

fn run(seed: u64, tally: &mut Tally) -> Result<(), String> {
    let mut random = Random::new(seed);
    let mut world = World::new(&mut random);
    // Some trees hold something before they meet.
    for at in 0..world.nodes.len() {
        for _ in 0..random.below(4) {
            world.now.secs += 1;
            world.act(at, &mut random);
        }
    }
    let mut rest = Rest::new();
    world.lost = true;
    for _ in 0..=random.below(3) {
        let outcome = (0..*random.pick(&[5, 12, 30, 60]))
            .try_for_each(|_| world.step(&mut random))
            .and_then(|()| world.settle(&mut random))
            .and_then(|()| if world.is_out_of_reach() { Ok(()) } else { world.check(&rest) });
        outcome.map_err(|what| format!("{what}; {}", world.log.join("; ")))?;
        if world.is_out_of_reach() {
            tally.out_of_reach += 1;
            break;
        }
        tally.note(&world);
        rest = world.rest();
        world.ledger.touched.clear();
        world.lost = false;
        world.log.push("(rest)".into());
    }
    tally.mints += world.nodes.iter().map(|n| n.mints).sum::<u64>();
    Ok(())
}

#[test]
fn random_histories_converge_and_lose_nothing() {
    let (seeds, mut tally) = (seeds(SEEDS), Tally::default());
    let failures: Vec<(u64, String)> =
        (1..=seeds).filter_map(|seed| Some((seed, run(seed, &mut tally).err()?))).collect();
    let mut kinds: BTreeMap<String, (u64, String)> = BTreeMap::new();
    for (seed, what) in &failures {
        let kind: String = what.split([':', ';']).next().unwrap_or_default().to_owned();
        let best = kinds.entry(kind).or_insert_with(|| (*seed, what.clone()));
        if what.len() < best.1.len() {
            *best = (*seed, what.clone());
        }
    }
    let shortest: Vec<String> = kinds.values().map(|(seed, what)| format!("seed {seed}: {what}")).collect();
    assert!(failures.is_empty(), "{} of {seeds} seeds fail:\n{}", failures.len(), shortest.join("\n"));
    println!("{seeds} histories: {tally:?}");
    assert!(tally.out_of_reach * 20 <= seeds, "too many histories end unchecked: {tally:?}");
    assert!(tally.in_dispute * 20 >= tally.rests, "the histories are too peaceful: {tally:?}");
}
