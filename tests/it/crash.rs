//! Crashes at every call that changes or syncs a disk, and at every write and flush of a store, in a set of
//! histories on both sides, and again within the recovery: nothing is lost, nothing torn is announced, nothing
//! returns, nobody is taken for a writer who is none. A sample is tried; PLEACH_SWEEP=all tries all.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::path::TreePath;
use pleach_store::vfs::model::{CrashKind, Data, Keep, Seen};
use pleach_tests::model::{ModelNode, settle};

mod histories;

use histories::History;

/// Runs of one test where not all are asked for.
const SAMPLE: usize = 400;

type Brief = BTreeMap<Vec<u8>, (String, u32, Vec<u8>, Vec<u8>)>;

/// What a user sees, and whose writes the entry holds: what was only applied is nobody's new write.
fn brief(node: &ModelNode, history: &History) -> Brief {
    let writers = |path: &[u8]| {
        let path = TreePath::parse(path).unwrap();
        let entry = node.tree.as_ref().and_then(|tree| tree.entry(&path).unwrap()).unwrap_or_default();
        entry.content.keys().filter(|_| history.same_writers).map(|dot| dot.actor.node.0[0]).collect()
    };
    let row = |(path, seen): (Vec<u8>, Seen)| {
        let writers = writers(&path);
        (path, (format!("{:?}", seen.kind), seen.mode, seen.content, writers))
    };
    node.seen().into_iter().map(row).collect()
}

/// Where a node crashes: before the n-th such call, counted from 1.
#[derive(Clone, Copy, Debug)]
enum Point {
    /// A call that changes or syncs the disk.
    Disk(u64),
    /// A write or flush of the store.
    Store(u64),
}

impl Point {
    fn arm(self, node: &ModelNode) {
        match self {
            Self::Disk(call) => node.disk.crash_at(call),
            Self::Store(call) => node.kv.fail_after(call),
        }
    }
}

/// Crashes that are planned for one node.
#[derive(Clone, Copy, Debug)]
struct Plan {
    on_b: bool,
    point: Point,
    /// Once more in the recovery from the first.
    again: Option<Point>,
    kind: CrashKind,
    /// How many unflushed batches of the store survive.
    kept_batches: usize,
}

/// The two nodes of a history and what is still to crash.
struct Run {
    nodes: [ModelNode; 2],
    plan: Option<Plan>,
    /// The second crash was within the recovery from the first.
    struck_again: bool,
}

impl Run {
    /// Runs a history; returns the nodes, or what went wrong.
    fn history(history: &History, plan: Option<Plan>) -> Result<Self, String> {
        let nodes = [ModelNode::new(1), ModelNode::new(2)];
        // B's clock is ahead, so that who wins does not depend on how often anybody crashed.
        nodes[1].disk.advance(50_000_000_000_000);
        let mut run = Self { nodes, plan, struck_again: false };
        run.act(history.before);
        if let Some(plan) = plan {
            plan.point.arm(&run.nodes[usize::from(plan.on_b)]);
        }
        for n in 0..2 {
            if let Err(error) = run.nodes[n].start() {
                run.crashed(n, &error.to_string())?;
            }
        }
        for (number, phase) in history.phases.iter().enumerate() {
            run.act(phase);
            let mut tries = 0;
            while !run.together()? {
                tries += 1;
                if tries > 4 {
                    return Err(format!("phase {number}: no rest: {:?}", run.problems()));
                }
            }
            let [a, b] = &run.nodes;
            if a.seen() != b.seen() {
                return Err(format!("phase {number}: trees differ: {:?} {:?}", brief(a, history), brief(b, history)));
            }
        }
        let heads = |run: &Self| run.nodes.each_ref().map(|n| n.tree.as_ref().map(|t| t.index().meta().head));
        let before = heads(&run);
        // A crash that is planned for a call behind the last one does not come.
        run.nodes.iter().for_each(|node| node.disk.crash_at(u64::MAX));
        run.nodes.iter().for_each(|node| node.kv.fail_after(u64::MAX));
        run.together()?;
        if heads(&run) != before {
            return Err("a further look minted something".into());
        }
        Ok(run)
    }

    fn act(&self, steps: &[histories::Step]) {
        for (on_b, step) in steps {
            step(&self.nodes[usize::from(*on_b)].disk.user());
        }
        self.nodes.iter().for_each(|node| node.disk.sync());
    }

    fn problems(&self) -> [String; 2] {
        self.nodes.each_ref().map(|n| n.tree.as_ref().map_or("down".into(), |t| format!("{:?}", t.problems())))
    }

    /// A node failed: where that was planned it starts again, and perhaps crashes once more.
    fn crashed(&mut self, n: usize, error: &str) -> Result<(), String> {
        let node = &mut self.nodes[n];
        let plan = self.plan.take_if(|plan| usize::from(plan.on_b) == n);
        let plan = plan.ok_or_else(|| format!("n{n} failed, and nobody planned it: {error}"))?;
        let mut restart = |again: Option<Point>| {
            node.tree = None;
            node.disk.crash();
            node.disk.restart(plan.kind);
            node.kv.crash(plan.kept_batches);
            if let Some(again) = again {
                again.arm(node);
            }
            let started = node.start();
            node.disk.crash_at(u64::MAX);
            node.kv.fail_after(u64::MAX);
            started
        };
        let Err(error) = restart(plan.again) else { return Ok(()) };
        if plan.again.is_none() {
            return Err(format!("start after the crash: {error}"));
        }
        self.struck_again = true;
        restart(None).map_err(|error| format!("start after the second crash: {error}"))
    }

    fn together(&mut self) -> Result<bool, String> {
        let [a, b] = &mut self.nodes;
        // Half a minute later users' changes are synced: what a power cut undoes after that, users undid.
        let synced = settle(a, b).and_then(|rest| {
            for node in [a, b] {
                let tree = node.tree.as_mut().unwrap();
                tree.sync_minted(true)?;
                tree.commit_all()?;
            }
            Ok(rest)
        });
        let error = match synced {
            Ok(rest) => {
                // A crash at the very last call shows only now.
                let Some(n) = self.nodes.iter().position(|node| node.disk.crashed()) else { return Ok(rest) };
                self.crashed(n, "crashed")?;
                return Ok(false);
            }
            Err(error) => error,
        };
        let n = self.plan.map_or(0, |plan| usize::from(plan.on_b));
        self.crashed(n, &error.to_string())?;
        Ok(false)
    }
}

fn check(run: &Run, history: &History, expected: &Brief) -> Result<(), String> {
    let got = brief(&run.nodes[0], history);
    if got != *expected {
        let names: BTreeSet<_> = got.keys().chain(expected.keys()).collect();
        let differing: Vec<String> = names
            .into_iter()
            .filter(|n| got.get(*n) != expected.get(*n))
            .map(|n| format!("{}: {:?} want {:?}", String::from_utf8_lossy(n), got.get(n), expected.get(n)))
            .collect();
        return Err(differing.join("; ").chars().take(600).collect());
    }
    let everything = run.nodes.iter().flat_map(|n| n.disk.user().snapshot(true));
    let everything: BTreeSet<Vec<u8>> = everything.map(|(_, seen)| seen.content).collect();
    match history.kept.iter().find(|text| !everything.contains(text.as_bytes())) {
        Some(text) => Err(format!("lost: {text:?}")),
        None => Ok(()),
    }
}

/// All points of a history at which a node can crash.
fn points(run: &Run, on_b: bool) -> Vec<Point> {
    let node = &run.nodes[usize::from(on_b)];
    let stats = node.kv.stats();
    let disk = (1..=node.disk.calls()).map(Point::Disk);
    disk.chain((1..=stats.commits + stats.flushes).map(Point::Store)).collect()
}

/// Every n-th, so that about as many as the sample are left; another offset for each history.
fn sample<T: Copy>(all: &[T], offset: usize, of: usize) -> Vec<T> {
    if std::env::var("PLEACH_SWEEP").is_ok_and(|v| v == "all") {
        return all.to_vec();
    }
    let step = all.len().div_ceil(SAMPLE / of).max(1);
    all.iter().copied().skip(offset % step).step_by(step).collect()
}

/// Tries the crashes that `plans` makes of each point; it may make none of some.
fn sweep(plans: impl Fn(&Run, bool, Point) -> Vec<Plan>) {
    let (mut runs, mut failures, mut struck_again) = (0, Vec::new(), 0);
    for (number, history) in histories::ALL.iter().enumerate() {
        let clean = Run::history(history, None).unwrap();
        let expected = brief(&clean.nodes[0], history);
        check(&clean, history, &expected).unwrap();
        let of_side = |on_b| points(&clean, on_b).into_iter().map(move |point| (on_b, point)).collect::<Vec<_>>();
        let sides = [of_side(false), of_side(true)].concat();
        let all: Vec<Plan> = sides.into_iter().flat_map(|(on_b, point)| plans(&clean, on_b, point)).collect();
        for plan in sample(&all, number, histories::ALL.len()) {
            runs += 1;
            let done = Run::history(history, Some(plan));
            struck_again += usize::from(done.as_ref().is_ok_and(|run| run.struck_again));
            if let Err(what) = done.and_then(|run| check(&run, history, &expected)) {
                failures.push(format!("{}, {plan:?}: {what}", history.name));
            }
        }
    }
    println!("{runs} crashes, {struck_again} of them with a second one, {} failures", failures.len());
    assert!(failures.is_empty(), "{} of {runs}:\n{}", failures.len(), failures[..failures.len().min(12)].join("\n"));
}

fn once(kinds: &[(CrashKind, usize)]) {
    sweep(|_, on_b, point| {
        let plan = |(kind, kept_batches): &(CrashKind, usize)| Plan {
            on_b,
            point,
            again: None,
            kind: *kind,
            kept_batches: *kept_batches,
        };
        kinds.iter().map(plan).collect()
    });
}

#[test]
fn kill_at_every_call_loses_nothing() {
    once(&[(CrashKind::Process, 0), (CrashKind::Process, 1_000)]);
}

#[test]
fn a_power_cut_that_loses_everything_unsynced_loses_nothing() {
    once(&[(CrashKind::Machine { log: Keep::None, data: Data::Lost }, 0)]);
}

/// The trap of LINUX.md section 1: the name is durable, the data is not.
#[test]
fn a_power_cut_that_keeps_names_without_data_announces_nothing_torn() {
    once(&[
        (CrashKind::Machine { log: Keep::All, data: Data::Lost }, 0),
        (CrashKind::Machine { log: Keep::All, data: Data::Torn(3) }, 0),
        (CrashKind::Machine { log: Keep::Prefix(7), data: Data::Torn(5) }, 0),
    ]);
}

/// Calls of a recovery at most, beyond what a start needs anyway.
const RECOVERY_CALLS: u64 = 40;

#[test]
fn a_crash_within_the_recovery_from_a_crash_loses_nothing() {
    let kinds = [
        (CrashKind::Process, 1_000),
        (CrashKind::Machine { log: Keep::None, data: Data::Lost }, 0),
        (CrashKind::Machine { log: Keep::All, data: Data::Torn(3) }, 0),
    ];
    sweep(|_, on_b, point| {
        let disk = (1..=RECOVERY_CALLS).map(Point::Disk);
        let again = disk.chain((1..=RECOVERY_CALLS / 4).map(Point::Store));
        let plans = again.flat_map(|again| {
            kinds.map(|(kind, kept_batches)| Plan { on_b, point, again: Some(again), kind, kept_batches })
        });
        plans.collect()
    });
}
