//! Random histories of two nodes on modelled disks, with races and kills: in the end both show the
//! same, come to rest, and hold every content that nobody replaced. PLEACH_SEEDS sets how many.

use std::collections::{BTreeMap, BTreeSet};

use pleach_store::vfs::Kind;
use pleach_store::vfs::model::{CrashKind, ModelUser, Seen};
use pleach_tests::model::{ModelNode, pair, settle};

const PATHS: [&str; 7] = ["x", "y", "d", "d/f", "d/e", "d/e/g", "z"];

/// A small generator, the same on every machine. Source: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    fn path(&mut self) -> &'static str {
        PATHS[usize::try_from(self.below(PATHS.len() as u64)).unwrap()]
    }
}

/// Does something a user does; what the disk refuses is not done.
fn act(user: &ModelUser, random: &mut Random, count: &mut u64, log: &mut Vec<String>) {
    let path = random.path();
    *count += 1;
    let content = format!("content {count}");
    let (what, done) = match random.below(10) {
        0..=3 => ("write", user.write(path, &content).is_ok()),
        4 => ("replace", user.replace(path, &content).is_ok()),
        5 => ("remove", user.remove_all(path).is_ok()),
        6 => ("mkdir", user.mkdir_all(path).is_ok()),
        7 => ("chmod", user.chmod(path, if random.below(2) == 0 { 0o700 } else { 0o750 }).is_ok()),
        8 => {
            let to = random.path();
            let beneath = to.starts_with(&format!("{path}/"));
            ("rename", !beneath && user.rename(path, to).is_ok())
        }
        _ => ("symlink", user.symlink(&content, path).is_ok()),
    };
    if done {
        log.push(format!("{what} {path} {content}"));
    }
}

/// The contents of regular files that users see now.
fn visible(node: &ModelNode) -> BTreeSet<Vec<u8>> {
    node.seen().into_values().filter(|s| s.content.starts_with(b"content ")).map(|s| s.content).collect()
}

fn run(seed: u64) -> Result<(), String> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
    b.disk.advance(i64::try_from(random.below(3)).unwrap() * 86_400_000_000_000);
    let (mut count, mut log) = (0, Vec::new());
    for node in [&mut a, &mut b] {
        node.start().map_err(|e| e.to_string())?;
    }
    for _ in 0..random.below(6) + 1 {
        let mut kept = BTreeSet::new();
        let kind = |(path, seen): (Vec<u8>, Seen)| (seen.kind == Kind::Dir).then_some(path);
        let directories: BTreeSet<Vec<u8>> = a.seen().into_iter().filter_map(kind).collect();
        for node in [&a, &b] {
            for _ in 0..random.below(5) {
                act(&node.disk.user(), &mut random, &mut count, &mut log);
            }
            node.disk.sync();
            kept.extend(visible(node));
        }
        if random.below(3) == 0 {
            let node = if random.below(2) == 0 { &a } else { &b };
            node.disk.crash_at(random.below(30) + 1);
            log.push("kill".into());
        }
        together(&mut a, &mut b).map_err(|what| format!("{what}; {log:?}"))?;
        if a.seen() != b.seen() {
            return Err(format!("trees differ: {:?} {:?}; {log:?}", a.seen(), b.seen()));
        }
        let held: BTreeMap<Vec<u8>, ()> = [&a, &b]
            .into_iter()
            .flat_map(|n| n.disk.user().snapshot(true).into_values())
            .map(|seen| (seen.content, ()))
            .collect();
        // Whatever users saw when the sync began is in a tree or in a vault when it ends.
        if let Some(lost) = kept.iter().find(|content| !held.contains_key(*content)) {
            return Err(format!("lost {}; {log:?}", String::from_utf8_lossy(lost)));
        }
        // A file that lost its name to a directory returns when the directory is gone; nothing else does.
        let returned = |(path, seen): &(Vec<u8>, Seen)| {
            seen.content.starts_with(b"content ") && !kept.contains(&seen.content) && !directories.contains(path)
        };
        if let Some((path, _)) = a.seen().into_iter().find(returned) {
            return Err(format!("{} came from nowhere; {log:?}", String::from_utf8_lossy(&path)));
        }
    }
    let heads = |n: &ModelNode| n.tree.as_ref().map(|t| t.index().meta().head);
    let before = (heads(&a), heads(&b));
    together(&mut a, &mut b)?;
    if (heads(&a), heads(&b)) != before {
        return Err(format!("a further look minted something; {log:?}"));
    }
    Ok(())
}

fn together(a: &mut ModelNode, b: &mut ModelNode) -> Result<(), String> {
    for _ in 0..6 {
        let outcome = settle(a, b);
        let mut crashed = false;
        for node in [&mut *a, &mut *b] {
            if node.disk.crashed() {
                node.tree = None;
                node.disk.restart(CrashKind::Process);
                node.kv.crash(0);
                node.start().map_err(|e| format!("start: {e}"))?;
                crashed = true;
            }
        }
        match outcome {
            Ok(true) if !crashed => return Ok(()),
            Err(error) if !crashed => return Err(error.to_string()),
            _ => {}
        }
    }
    let problems: Vec<_> =
        [a, b].iter().filter_map(|n| n.tree.as_ref().map(|t| format!("{:?}", t.problems()))).collect();
    Err(format!("no rest: {problems:?}"))
}

#[test]
fn random_histories_converge_and_lose_nothing() {
    let seeds: u64 = std::env::var("PLEACH_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
    // Seed 14432: a file that outlived a concurrent link; 16009: one that returns when a directory goes;
    // 9801, 45825: a directory that stayed when the last thing in it was gone, after a kill and without;
    // 18466: a directory that lives for what is beneath, where a file was put, had each disk's own time.
    let failures: Vec<(u64, String)> = (1..=seeds)
        .chain([9_801, 14_432, 16_009, 18_466, 45_825])
        .filter_map(|seed| Some((seed, run(seed).err()?)))
        .collect();
    let shortest = failures.iter().min_by_key(|(_, what)| what.len());
    assert!(failures.is_empty(), "{} of {seeds} seeds fail; seed {:?}", failures.len(), shortest);
}

#[test]
fn a_file_hidden_behind_a_directory_returns_when_that_empties() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("d").unwrap();
    a.disk.user().write("d/f", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    // One makes a file of it while the other works beneath.
    a.disk.user().remove_all("d").unwrap();
    a.disk.user().write("d", "2").unwrap();
    b.disk.user().write("d/f", "3").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    for node in [&a, &b] {
        assert_eq!(node.disk.user().read("d/f").unwrap(), b"3");
    }
    b.disk.user().remove("d/f").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    for node in [&a, &b] {
        assert_eq!(node.disk.user().read("d").unwrap(), b"2");
    }
}
