//! A crash at every call in turn, for a scripted history on both sides: nothing lost, nothing torn
//! announced, nothing returned. Every n-th call is tried; PLEACH_SWEEP=all tries each.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_store::vfs::model::{CrashKind, Data, Keep, ModelUser, Seen};
use pleach_tests::model::{ModelNode, settle};

/// One step: whether on the second node, and what a user does there.
type Step = (bool, fn(&ModelUser));

/// Thirty changes in five phases; what both sides change in one phase is concurrent.
const PHASES: &[&[Step]] = &[
    &[
        (false, |u| u.mkdir_all("d/e").unwrap()),
        (false, |u| u.write("d/e/f", "first f").unwrap()),
        (false, |u| u.write("d/g", vec![b'g'; 40_000]).unwrap()),
        (false, |u| u.symlink("d/g", "link").unwrap()),
        (true, |u| u.write("from-b", "first of b").unwrap()),
        (true, |u| u.mkdir_all("hollow").unwrap()),
        (true, |u| u.write("swap", "a file").unwrap()),
    ],
    &[
        (false, |u| u.write("d/e/f", "second f").unwrap()),
        (false, |u| u.replace("from-b", "a's edit of b").unwrap()),
        (false, |u| u.chmod("d/g", 0o600).unwrap()),
        (true, |u| u.touch("hollow", Time::new(77, 7)).unwrap()),
        (true, |u| u.remove("link").unwrap()),
        (true, |u| u.symlink("elsewhere", "link").unwrap()),
        (true, |u| u.write("both", "b's both").unwrap()),
    ],
    &[
        (false, |u| u.write("both", "left").unwrap()),
        (true, |u| u.write("both", "right, later").unwrap()),
        (false, |u| u.rename("d/e", "moved").unwrap()),
        (true, |u| u.write("d/new", "added by b").unwrap()),
        (false, |u| u.remove("swap").unwrap()),
        (false, |u| u.mkdir_all("swap/in").unwrap()),
        (false, |u| u.write("swap/in/x", "beneath").unwrap()),
    ],
    &[
        (true, |u| u.remove_all("moved").unwrap()),
        (false, |u| u.write("d/g", "g is short now").unwrap()),
        (true, |u| u.remove("from-b").unwrap()),
        (true, |u| u.remove_all("swap").unwrap()),
        (true, |u| u.write("swap", "a file again").unwrap()),
    ],
    &[
        (false, |u| u.append("d/g", " and longer").unwrap()),
        (true, |u| u.rename("d/new", "new").unwrap()),
        (false, |u| u.remove("hollow").unwrap()),
        (true, |u| u.chmod("d", 0o700).unwrap()),
    ],
];

/// Contents that lost: they must be somewhere.
const KEPT: &[&str] = &["left", "right, later", "first f", "second f", "a file", "a's edit of b", "beneath"];

type Brief = BTreeMap<Vec<u8>, (String, u32, Vec<u8>, Vec<u8>)>;

/// What a user sees, and whose writes the entry holds: what was only applied is nobody's new write.
fn brief(node: &ModelNode) -> Brief {
    let writers = |path: &[u8]| {
        let path = TreePath::parse(path).unwrap();
        let entry = node.tree.as_ref().and_then(|tree| tree.entry(&path).unwrap()).unwrap_or_default();
        entry.content.keys().map(|dot| dot.actor.node.0[0]).collect()
    };
    let row = |(path, seen): (Vec<u8>, Seen)| {
        let writers = writers(&path);
        (path, (format!("{:?}", seen.kind), seen.mode, seen.content, writers))
    };
    node.seen().into_iter().map(row).collect()
}

/// A crash that is planned for one node.
#[derive(Clone, Copy, Debug)]
struct Plan {
    on_b: bool,
    call: u64,
    kind: CrashKind,
    /// How many unflushed batches of the store survive.
    kept_batches: usize,
}

/// Runs the history with one crash; returns what went wrong, or the nodes.
fn run(plan: Option<Plan>) -> Result<(ModelNode, ModelNode), String> {
    let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
    // B's clock is ahead, so that who wins does not depend on how often anybody crashed.
    b.disk.advance(50_000_000_000_000);
    if let Some(plan) = plan {
        let node = if plan.on_b { &b } else { &a };
        node.disk.crash_at(plan.call);
    }
    for node in [&mut a, &mut b] {
        start(node, plan)?;
    }
    for (number, phase) in PHASES.iter().enumerate() {
        for (on_b, step) in *phase {
            let node = if *on_b { &b } else { &a };
            step(&node.disk.user());
        }
        for node in [&a, &b] {
            node.disk.sync();
        }
        let mut tries = 0;
        while !together(&mut a, &mut b, plan)? {
            tries += 1;
            if tries > 4 {
                return Err(format!("phase {number}: no rest: {:?}", problems(&a, &b)));
            }
        }
        if a.seen() != b.seen() {
            return Err(format!("phase {number}: trees differ: {:?} {:?}", brief(&a), brief(&b)));
        }
    }
    let heads = |n: &ModelNode| n.tree.as_ref().map(|t| t.index().meta().head);
    let before = (heads(&a), heads(&b));
    together(&mut a, &mut b, None)?;
    if (heads(&a), heads(&b)) != before {
        return Err("a further look minted something".into());
    }
    Ok((a, b))
}

fn problems(a: &ModelNode, b: &ModelNode) -> Vec<String> {
    let of = |n: &ModelNode| n.tree.as_ref().map(|t| format!("{:?}", t.problems())).unwrap_or_default();
    vec![of(a), of(b)]
}

fn start(node: &mut ModelNode, plan: Option<Plan>) -> Result<(), String> {
    match node.start() {
        Err(_) if node.disk.crashed() => restart(node, plan),
        Err(error) => Err(format!("start: {error}")),
        Ok(()) if node.disk.crashed() => restart(node, plan),
        Ok(()) => Ok(()),
    }
}

fn restart(node: &mut ModelNode, plan: Option<Plan>) -> Result<(), String> {
    let plan = plan.ok_or("a crash that nobody planned")?;
    node.tree = None;
    node.disk.restart(plan.kind);
    node.kv.crash(plan.kept_batches);
    node.start().map_err(|error| format!("start after the crash: {error}"))
}

fn together(a: &mut ModelNode, b: &mut ModelNode, plan: Option<Plan>) -> Result<bool, String> {
    let outcome = settle(a, b);
    let mut crashed = false;
    for node in [&mut *a, &mut *b] {
        if node.disk.crashed() {
            restart(node, plan)?;
            crashed = true;
        }
    }
    match outcome {
        Ok(rest) => Ok(rest && !crashed),
        Err(_) if crashed => Ok(false),
        Err(error) => Err(format!("settle: {error}")),
    }
}

fn check(a: &ModelNode, b: &ModelNode, expected: &Brief) -> Result<(), String> {
    let got = brief(a);
    if got != *expected {
        let names: BTreeSet<_> = got.keys().chain(expected.keys()).collect();
        let differing: Vec<String> = names
            .into_iter()
            .filter(|n| got.get(*n) != expected.get(*n))
            .map(|n| format!("{}: {:?} want {:?}", String::from_utf8_lossy(n), got.get(n), expected.get(n)))
            .collect();
        return Err(differing.join("; ").chars().take(600).collect());
    }
    let everything: BTreeSet<Vec<u8>> =
        [a, b].iter().flat_map(|n| n.disk.user().snapshot(true)).map(|(_, seen)| seen.content).collect();
    match KEPT.iter().find(|text| !everything.contains(text.as_bytes())) {
        Some(text) => Err(format!("lost: {text:?}")),
        None => Ok(()),
    }
}

fn sweep(kinds: &[(CrashKind, usize)]) {
    let (a, b) = run(None).unwrap();
    let expected = brief(&a);
    check(&a, &b, &expected).unwrap();
    let step: u32 = if std::env::var("PLEACH_SWEEP").is_ok_and(|v| v == "all") { 1 } else { 5 };
    let mut failures = Vec::new();
    let mut runs = 0;
    for on_b in [false, true] {
        let calls = if on_b { b.disk.calls() } else { a.disk.calls() };
        for (at, (kind, kept_batches)) in kinds.iter().enumerate() {
            for call in (1 + at as u64 % u64::from(step)..=calls).step_by(usize::try_from(step).unwrap()) {
                let plan = Plan { on_b, call, kind: *kind, kept_batches: *kept_batches };
                runs += 1;
                if let Err(what) = run(Some(plan)).and_then(|(a, b)| check(&a, &b, &expected)) {
                    failures.push(format!("{plan:?}: {what}"));
                }
            }
        }
    }
    println!("{runs} crashes, {} failures", failures.len());
    assert!(failures.is_empty(), "{} of {runs}:\n{}", failures.len(), failures[..failures.len().min(6)].join("\n"));
}

#[test]
fn kill_at_every_call_loses_nothing() {
    sweep(&[(CrashKind::Process, 0), (CrashKind::Process, 1_000)]);
}

#[test]
fn a_power_cut_that_loses_everything_unsynced_loses_nothing() {
    sweep(&[(CrashKind::Machine { log: Keep::None, data: Data::Lost }, 0)]);
}

/// The trap of LINUX.md section 1: the name is durable, the data is not.
#[test]
fn a_power_cut_that_keeps_names_without_data_announces_nothing_torn() {
    sweep(&[
        (CrashKind::Machine { log: Keep::All, data: Data::Lost }, 0),
        (CrashKind::Machine { log: Keep::All, data: Data::Torn(3) }, 0),
        (CrashKind::Machine { log: Keep::Prefix(7), data: Data::Torn(5) }, 0),
    ]);
}
