//! Three agents, users and faults drawn from a seed, and what must hold afterwards.
//!
//! `PLEACH_RANDOM_SEED=n` runs one seed, `PLEACH_RANDOM_MINUTES=m` rising seeds for that long (from
//! the given one, else from 1). The seed decides the operations, the faults and their order; their
//! timing is real.

#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "random/ledger.rs"]
mod ledger;
#[path = "random/users.rs"]
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cluster::{Mesh, Node, Seen, same, snapshot, until};
use ledger::Ledger;
use rustix::process::Signal;
use serde_json::Value;
use users::{User, digest, dribble};

const NAMES: [&str; 3] = ["a", "b", "c"];
const PHASES: usize = 2;

/// Numbers that a seed decides (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A directory, or what stands in its place.
    fn dir(&mut self) -> PathBuf {
        let depth = [1, 1, 1, 1, 2, 2, 2, 3][self.below(8)];
        (0..depth).map(|_| format!("d{}", self.below(2))).collect()
    }

    fn file(&mut self) -> PathBuf {
        let dir = if self.one_in(3) { PathBuf::new() } else { self.dir() };
        dir.join(format!("f{}", self.below(3)))
    }

    fn path(&mut self) -> PathBuf {
        if self.one_in(3) { self.dir() } else { self.file() }
    }

    /// A moment within some years.
    fn time(&mut self) -> SystemTime {
        let (seconds, nanos) = (1_500_000_000 + self.below(300_000_000), self.below(1_000_000_000));
        SystemTime::UNIX_EPOCH + Duration::new(seconds as u64, u32::try_from(nanos).unwrap())
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Agent {
    Up,
    Stopped,
    Down,
}

/// A file that a user holds open.
struct Held {
    node: usize,
    path: PathBuf,
    file: File,
}

struct World {
    random: Random,
    mesh: Mesh,
    agents: [Agent; 3],
    held: Vec<Held>,
    ledger: Ledger,
    /// All trees at the last check, and the paths that were in conflict then.
    before: BTreeMap<PathBuf, Seen>,
    disputed: BTreeSet<PathBuf>,
    log: Vec<String>,
    start: Instant,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let pairs: &[(usize, usize)] = match random.below(3) {
            0 => &[(0, 1), (1, 2)],
            1 => &[(1, 0), (2, 0)],
            _ => &[(0, 1), (1, 2), (2, 0)],
        };
        let mesh = Mesh::start(&NAMES, pairs);
        for node in &mesh.nodes {
            fs::create_dir(node.dir.join("beside")).unwrap();
        }
        let log = vec![format!("links {pairs:?}")];
        Self {
            random,
            mesh,
            agents: [Agent::Up; 3],
            held: Vec::new(),
            ledger: Ledger::default(),
            before: BTreeMap::new(),
            disputed: BTreeSet::new(),
            log,
            start: Instant::now(),
        }
    }

    fn note(&mut self, what: &str) {
        let (at, now) = (self.start.elapsed().as_secs_f64(), self.ledger.now);
        self.log.push(format!("{at:8.3} #{now} {what}"));
    }

    fn as_user<T>(&mut self, node: usize, act: impl FnOnce(&mut User<'_>) -> T) -> T {
        let (root, beside) = (self.mesh.nodes[node].root(), self.mesh.nodes[node].dir.join("beside"));
        act(&mut User { node, root: &root, beside: &beside, ledger: &mut self.ledger })
    }

    /// A content that nobody wrote before, mostly small.
    fn content(&self, random: &mut Random) -> Vec<u8> {
        let lines = match random.below(20) {
            0 => 20_000,
            1..5 => 1_000,
            n => n % 4 + 1,
        };
        let (now, salt) = (self.ledger.now, random.next());
        let mut text = String::new();
        for line in 0..lines {
            writeln!(text, "{now} {salt:016x} {line}").unwrap();
        }
        text.into_bytes()
    }

    /// One thing that a user does on some node, where that can be done.
    fn user(&mut self) {
        // Each operation has numbers of its own: what earlier ones met does not change what is drawn.
        let mut random = Random(self.random.next());
        let (node, kind) = (random.below(3), random.below(30));
        for _ in 0..4 {
            if self.attempt(&mut random, node, kind) {
                break;
            }
        }
    }

    fn attempt(&mut self, random: &mut Random, node: usize, kind: usize) -> bool {
        let (path, other, content) = (random.path(), random.path(), self.content(random));
        let (file, file2) = (random.file(), random.file());
        let (mode, time) = ([0o600, 0o640, 0o644, 0o755][random.below(4)], random.time());
        let (flag, place) = (random.one_in(2), random.next());
        let name = NAMES[node];
        let (p, o, f, g) = (path.display(), other.display(), file.display(), file2.display());
        let told = match kind {
            0..5 => format!("create {f}"),
            5 => format!("edit {f} in place, the same size, time put back"),
            6 => format!("edit {f} in the middle"),
            7 => format!("append to {f}"),
            8 => format!("truncate {f}"),
            9..12 => format!("replace {f} from {}", if flag { "beside it" } else { "outside" }),
            12..14 => format!("rename {f} to {g}"),
            14..16 => format!("rename {p} to {o}"),
            16 => format!("swap {p} and {o}"),
            17 => format!("mkdir -p {p}"),
            18 => format!("rm -rf {p}"),
            19 => format!("move {p} out"),
            20 | 21 => format!("unlink {f}"),
            22 => format!("chmod {mode:o} {p}"),
            23 => format!("touch {p}"),
            24 => format!("put a directory in the place of {p}"),
            25 => format!("put a file in the place of {p}"),
            26 => format!("put a symlink in the place of {p}"),
            27 => format!("link {f} to {g}"),
            28 => format!("write {f} bit by bit"),
            _ => format!("hold {f} open"),
        };
        let mut held = None;
        let done = self.as_user(node, |user| match kind {
            0..5 => user.edit(&file, true, |file, _| overwrite(file, &content)),
            5 => user.edit(&file, false, |file, length| {
                let was = file.metadata()?.modified()?;
                file.seek(SeekFrom::Start(0))?;
                let length = usize::try_from(length).unwrap();
                file.write_all(&content.iter().cycle().take(length).copied().collect::<Vec<u8>>())?;
                file.set_modified(was)
            }),
            6 => user.edit(&file, false, |file, length| {
                file.seek(SeekFrom::Start(place % (length + 1)))?;
                file.write_all(&content)
            }),
            7 => user.edit(&file, false, |file, length| {
                file.seek(SeekFrom::Start(length))?;
                file.write_all(&content)
            }),
            8 => user.edit(&file, false, |file, length| file.set_len(place % (length + 1))),
            9..12 => user.replace(&file, &content, flag),
            12..14 => user.rename(&file, &file2),
            14..16 => user.rename(&path, &other),
            16 => user.swap(&path, &other),
            17 => user.mkdir(&path),
            18 => user.remove(&path),
            19 => user.move_out(&path),
            20 | 21 => user.unlink(&file),
            22 => user.chmod(&path, mode),
            23 => user.touch(&path, time),
            24 => user.unlink(&path).and_then(|()| user.edit(&path.join("f0"), true, |f, _| overwrite(f, &content))),
            25 => user.remove(&path).and_then(|()| user.edit(&path, true, |f, _| overwrite(f, &content))),
            26 => user.remove(&path).and_then(|()| user.symlink(&format!("to {place}"), &path)),
            27 => user.link(&file, &file2),
            28 => user.edit(&file, true, |file, _| dribble(file, &content)),
            _ => user.open(&file, true).and_then(|mut open| {
                open.seek(SeekFrom::End(0))?;
                open.write_all(&content)?;
                held = Some(open);
                Ok(())
            }),
        });
        self.held.extend(held.map(|open| Held { node, path: file.clone(), file: open }));
        match &done {
            Ok(()) => self.note(&format!("{name}: {told}")),
            Err(error) => self.note(&format!("{name}: {told} ({error})")),
        }
        done.is_ok()
    }

    /// A file that was held open is written to once more and closed.
    fn let_go(&mut self) {
        let mut random = Random(self.random.next());
        let Some(n) = (!self.held.is_empty()).then(|| random.below(self.held.len())) else { return };
        let (mut held, content) = (self.held.swap_remove(n), self.content(&mut random));
        let done = self.as_user(held.node, |user| {
            user.supersede(&mut held.file)?;
            user.ledger.tried.insert(held.path.clone());
            held.file.seek(SeekFrom::End(0))?;
            held.file.write_all(&content)?;
            user.written(&held.path, &mut held.file)
        });
        self.note(&format!("{}: close {} {done:?}", NAMES[held.node], held.path.display()));
    }

    fn answers(&self, node: usize) {
        let node = &self.mesh.nodes[node];
        until(&format!("{} answers", node.name), || node.run(&["status", "--json"]).status.success());
    }

    /// An agent that is not at work is so again.
    fn revive(&mut self, node: usize) {
        match self.agents[node] {
            Agent::Up => return,
            Agent::Stopped => self.mesh.nodes[node].signal(Signal::CONT),
            Agent::Down => self.mesh.nodes[node].spawn(),
        }
        self.agents[node] = Agent::Up;
        self.note(&format!("{}: goes on", NAMES[node]));
    }

    /// Something happens to an agent or a link.
    fn fault(&mut self) {
        let (node, kind) = (self.random.below(3), self.random.below(40));
        let (link, n) = (self.random.below(self.mesh.links.len()), self.random.below(1_000));
        let up = self.agents[node] == Agent::Up;
        match kind {
            0..6 => self.mesh.links[link].cut(),
            6..9 => self.mesh.links.iter().for_each(cluster::Link::cut),
            9..15 => self.mesh.links[link].join(),
            15..18 => self.mesh.links.iter().for_each(cluster::Link::join),
            18..24 if self.agents[node] != Agent::Down => {
                self.mesh.nodes[node].kill();
                self.agents[node] = Agent::Down;
                if n % 2 == 0 {
                    self.revive(node);
                }
            }
            24..27 if up => {
                self.mesh.nodes[node].signal(Signal::STOP);
                self.agents[node] = Agent::Stopped;
            }
            27..30 if up => {
                self.answers(node);
                self.mesh.nodes[node].stop();
                self.agents[node] = Agent::Down;
            }
            30..33 if up => drop(self.mesh.nodes[node].run(&["rescan"])),
            33..36 if up => self.resolve(node, n),
            _ => self.revive(node),
        }
        let what = match kind {
            0..6 => format!("cut {link}"),
            6..9 => "cut all".into(),
            9..15 => format!("join {link}"),
            15..18 => "join all".into(),
            18..24 => "kill".into(),
            24..27 => "SIGSTOP".into(),
            27..30 => "stop".into(),
            30..33 => "rescan".into(),
            33..36 => "resolve".into(),
            _ => "go on".into(),
        };
        self.note(&format!("{}: {what}; {:?}", NAMES[node], self.agents[node]));
    }

    /// A conflict is resolved, if there is one.
    fn resolve(&mut self, node: usize, n: usize) {
        let output = self.mesh.nodes[node].run(&["conflicts", "--json"]);
        let text = String::from_utf8(output.stdout).unwrap();
        let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let Some(row) = (!rows.is_empty()).then(|| &rows[n / 2 % rows.len()]) else { return };
        let (path, version) = (row["path"].as_str().unwrap(), row["version"].as_str().unwrap());
        self.ledger.tried.insert(path.into());
        let at = self.mesh.nodes[node].at(path);
        let keep = ["current", "vaulted"][n % 2];
        let args = ["resolve", at.to_str().unwrap(), "--keep", keep, "--version", version];
        let output = self.mesh.nodes[node].run(&args);
        self.note(&format!("{}: {args:?} {}", NAMES[node], String::from_utf8_lossy(&output.stderr)));
    }

    /// A store is lost while its agent is down. All have all when that happens: what was announced and
    /// then deleted shortly before a loss can be had from nobody, and stays a problem.
    fn lose_store(&mut self) {
        let node = self.random.below(3);
        self.mesh.nodes[node].kill();
        self.agents[node] = Agent::Down;
        fs::remove_dir_all(self.mesh.nodes[node].state().join("trees")).unwrap();
        // What this node's vault held is listed no longer: only its store knew the names.
        let shown = contents(&snapshot(&self.mesh.nodes[node].root()));
        self.ledger.lost_store(node, &shown);
        self.note(&format!("{}: loses its store; Down", NAMES[node]));
    }

    fn phase(&mut self) {
        if self.random.one_in(6) {
            self.lose_store();
        }
        for _ in 0..20 + self.random.below(21) {
            self.ledger.now += 1;
            match self.random.below(20) {
                0..4 => self.fault(),
                4 => self.let_go(),
                _ => self.user(),
            }
            // The pace of users: bursts, and time for agents to be in the midst of something.
            let pause = [0, 0, 1, 5, 20, 60][self.random.below(6)];
            std::thread::sleep(Duration::from_millis(pause));
        }
    }

    /// All links are joined, all agents at work, all files closed; all have all.
    fn heal(&mut self) {
        self.ledger.now += 1;
        while !self.held.is_empty() {
            self.let_go();
        }
        self.mesh.links.iter().for_each(cluster::Link::join);
        for node in 0..3 {
            self.revive(node);
        }
        (0..3).for_each(|node| self.answers(node));
        self.note("healed");
        if self.ledger.through_links {
            // Under the other names nobody says that the file changed.
            self.mesh.nodes.iter().for_each(|node| drop(node.ok(&["rescan"])));
        }
        self.rounds();
        self.note("waited");
    }

    fn rounds(&self) {
        for _ in 0..2 {
            self.mesh.nodes.iter().for_each(Node::wait);
        }
    }

    fn sequences(&self) -> Vec<Value> {
        self.mesh.nodes.iter().map(|node| node.tree_status("t")["seq"].clone()).collect()
    }

    /// All that must hold once all have all.
    fn check(&mut self) {
        let nodes = &self.mesh.nodes;
        for node in nodes {
            let log = fs::read_to_string(node.dir.join("log")).unwrap();
            let panicked: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
            assert!(panicked.is_empty(), "{}: {panicked:?}", node.name);
            let stat = fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
            assert!(!stat.contains(") Z "), "{} ended by itself", node.name);
        }
        for node in &nodes[1..] {
            same(&nodes[0].root(), &node.root());
            assert_eq!(nodes[0].conflicts(), node.conflicts(), "conflicts on a and {}", node.name);
        }
        for node in nodes {
            let left: Vec<_> = fs::read_dir(node.at(".pleach/staging")).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{}: {left:?}", node.name);
            assert_eq!(node.tree_status("t")["problems"], 0, "{}: {}", node.name, node.ok(&["problems"]));
        }
        let now = snapshot(&nodes[0].root());
        self.check_paths(&now);
        self.check_contents(&now);
        let before = self.sequences();
        self.rounds();
        assert_eq!(before, self.sequences(), "something goes on while nobody does anything");
        self.note("checked");

        let shown = contents(&now);
        let paths = self.mesh.nodes[0].conflicts().into_iter().map(|row| row[0].as_str().unwrap().into());
        self.disputed = paths.collect();
        self.before = now;
        self.ledger.settled(3, &shown);
    }

    /// Nothing is gone that no user took away; nothing that was taken away is back.
    fn check_paths(&self, now: &BTreeMap<PathBuf, Seen>) {
        let ledger = &self.ledger;
        for path in self.before.keys().chain(&ledger.made).filter(|path| !now.contains_key(*path)) {
            let removed = ledger.removed.get(path).map(Vec::as_slice).unwrap_or_default();
            let may_end = |path: &PathBuf| {
                // A directory that lived for what was beneath, and what a lost store cannot tell from what was deleted.
                let dir = self.before.get(path).is_none_or(|seen| seen.0 & 0o170_000 == 0o040_000);
                ledger.ever_removed.contains(path) && (dir || !ledger.lost.is_empty())
            };
            if let Some(at) = ledger.fresh.get(path) {
                assert!(
                    removed.iter().any(|(when, _)| when > at),
                    "{} is gone; it was written at {at}, and taken away only at {removed:?}",
                    path.display()
                );
            } else {
                assert!(!removed.is_empty() || may_end(path), "{} is gone; nobody took it away", path.display());
            }
        }
        for (path, removed) in &ledger.removed {
            let known = self.before.contains_key(path) && removed.iter().any(|(_, node)| !ledger.lost.contains(node));
            let may_be_back = ledger.tried.iter().any(|tried| tried.starts_with(path))
                || self.disputed.iter().any(|held| held.starts_with(path) || path.starts_with(held));
            assert!(
                !known || may_be_back || !now.contains_key(path),
                "{} is back; it was taken away in {removed:?}",
                path.display()
            );
        }
    }

    /// What is owed is in the trees, or listed and can be brought back.
    fn check_contents(&mut self, now: &BTreeMap<PathBuf, Seen>) {
        let shown = contents(now);
        let mut listed: BTreeMap<String, Vec<(usize, Value)>> = BTreeMap::new();
        let versions = |node: &Node| node.rows(&["versions", node.root().to_str().unwrap()]);
        let conflicts = |node: &Node| node.rows(&["conflicts"]);
        // A conflict that this node's vault does not hold is asked for elsewhere: that takes longer.
        for list in [&versions as &dyn Fn(&Node) -> Vec<Value>, &conflicts] {
            for (n, node) in self.mesh.nodes.iter().enumerate() {
                for row in list(node) {
                    if let Some(hash) = row["hash"].as_str() {
                        listed.entry(hash.to_owned()).or_default().push((n, row));
                    }
                }
            }
        }
        for (hash, content) in &mut self.ledger.contents {
            if shown.contains_key(hash) || content.holders.is_empty() {
                continue;
            }
            let rows = listed.get(hash).map(Vec::as_slice).unwrap_or_default();
            let owed = format!("{hash} of {} is owed, last held by {:?}", content.origin, content.holders);
            assert!(!rows.is_empty(), "{owed}: it is in no tree and in no list");
            if !content.restored {
                let mut said = Vec::new();
                let back = rows.iter().any(|(n, row)| {
                    let got = restored(&self.mesh.nodes[*n], row);
                    let is_it = got.as_ref() == Ok(hash);
                    said.push((row.to_string(), got));
                    is_it
                });
                assert!(back, "{owed}: {said:#?}");
                content.restored = true;
            }
        }
    }

    /// After a restart of all nothing has changed.
    fn restart(&mut self) {
        let (before, conflicts, seqs) = (self.before.clone(), self.mesh.nodes[0].conflicts(), self.sequences());
        self.mesh.nodes.iter_mut().for_each(Node::stop);
        for node in &mut self.mesh.nodes {
            node.start();
        }
        self.rounds();
        self.note("restarted");
        self.check();
        assert!(before == self.before, "a restart changed the trees: {:?}", differing(&before, &self.before));
        assert_eq!(
            (conflicts, seqs),
            (self.mesh.nodes[0].conflicts(), self.sequences()),
            "a restart changed something"
        );
    }

    fn run(&mut self) {
        for n in 0..18 {
            let (path, content) = (self.random.file(), format!("at the beginning {n}"));
            let write = |user: &mut User<'_>| user.edit(&path, true, |file, _| overwrite(file, content.as_bytes()));
            self.as_user(n % 3, write).unwrap();
        }
        self.heal();
        self.check();
        for _ in 0..PHASES {
            self.phase();
            self.heal();
            self.check();
        }
        self.restart();
    }
}

fn overwrite(file: &mut File, content: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(content)
}

/// The contents of the files of a tree, each with a path.
fn contents(tree: &BTreeMap<PathBuf, Seen>) -> BTreeMap<String, PathBuf> {
    let files = tree.iter().filter(|(_, seen)| seen.0 & 0o170_000 == 0o100_000);
    files.map(|(path, seen)| (digest(&seen.5), path.clone())).collect()
}

fn differing<'a>(left: &'a BTreeMap<PathBuf, Seen>, right: &'a BTreeMap<PathBuf, Seen>) -> BTreeSet<&'a Path> {
    let paths = left.keys().chain(right.keys());
    paths.filter(|path| left.get(*path) != right.get(*path)).map(PathBuf::as_path).collect()
}

/// The hash of what comes back when a listed version is restored, or what was said.
fn restored(node: &Node, row: &Value) -> Result<String, String> {
    let to = tempfile::tempdir_in(&node.dir).unwrap();
    let (path, version) = (row["path"].as_str().unwrap(), row["version"].as_str().unwrap());
    let at = node.at(path);
    let args = ["restore", at.to_str().unwrap(), "--version", version, "--to", to.path().to_str().unwrap()];
    let output = node.run(&args);
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    fs::read(to.path().join(path)).map(|content| digest(&content)).map_err(|error| error.to_string())
}

/// Runs one seed; a failure names it, what was done, and how to do it again.
fn seed(seed: u64) {
    let mut world = World::new(seed);
    let started = Instant::now();
    if let Err(why) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        println!("seed {seed} failed; what was done:\n{}", world.log.join("\n"));
        println!("ledger: {:#?}", world.ledger);
        let why = why.downcast_ref::<String>().cloned().unwrap_or_else(|| format!("{:?}", why.downcast_ref::<&str>()));
        world.mesh.base.disable_cleanup(true);
        println!("seed {seed}: {why}");
        println!("the nodes are kept in {}", world.mesh.base.path().display());
        panic!("again: PLEACH_RANDOM_SEED={seed} cargo test -p pleach-agent --test random -- --nocapture");
    }
    println!("seed {seed}: {} operations in {:.1} s", world.ledger.now, started.elapsed().as_secs_f32());
}

#[test]
fn what_users_and_faults_do_at_random_loses_nothing() {
    let given = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().unwrap());
    let first = given("PLEACH_RANDOM_SEED");
    let Some(minutes) = given("PLEACH_RANDOM_MINUTES") else {
        return first.map_or(1..=3, |n| n..=n).for_each(seed);
    };
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    (first.unwrap_or(1)..).take_while(|_| Instant::now() < end).for_each(seed);
}
