//! Directories that appear only when complete, between running agents.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cluster::{Link, Node, same, until};

const FILES: usize = 200;

/// A release: many small files, a large one, and a list of what is in it.
fn publish(top: &Path, name: &str) {
    fs::create_dir_all(top.join("assets/deep/er")).unwrap();
    for n in 0..FILES {
        fs::write(top.join(format!("assets/f{n}")), format!("{name} {n}")).unwrap();
    }
    fs::write(top.join("assets/large"), name.repeat(8 << 20)).unwrap();
    fs::write(top.join("assets/deep/er/last"), name).unwrap();
}

/// What is missing of a release that is there.
fn lacks(top: &Path, name: &str) -> Option<String> {
    let has = |path: String, content: String| match fs::read_to_string(top.join(&path)) {
        Ok(found) if found == content => None,
        other => Some(format!("{path}: {:?}", other.map(|found| found.len()))),
    };
    let small = (0..FILES).find_map(|n| has(format!("assets/f{n}"), format!("{name} {n}")));
    let large = || has("assets/large".to_owned(), name.repeat(8 << 20));
    small.or_else(large).or_else(|| has("assets/deep/er/last".to_owned(), name.to_owned()))
}

/// Looks at a node's tree all the time: what is seen of a release must be all of it, and `current` must lead there.
fn visitor(root: &Path, names: &'static [&'static str]) -> (Arc<AtomicBool>, thread::JoinHandle<Vec<String>>) {
    let (over, root) = (Arc::new(AtomicBool::new(false)), root.to_owned());
    let ended = Arc::clone(&over);
    let looking = thread::spawn(move || {
        let mut bad = Vec::new();
        let mut known = std::collections::BTreeSet::new();
        while !ended.load(Ordering::SeqCst) {
            for name in names.iter().filter(|name| !known.contains(**name)).collect::<Vec<_>>() {
                let top = root.join("releases").join(name);
                if top.exists() {
                    bad.extend(lacks(&top, name).map(|what| format!("{name} lacks {what}")));
                    known.insert(*name);
                }
            }
            if fs::symlink_metadata(root.join("current")).is_ok() && fs::metadata(root.join("current")).is_err() {
                bad.push("current leads nowhere".to_owned());
            }
            thread::sleep(Duration::from_millis(1));
        }
        bad
    });
    (over, looking)
}

#[test]
fn a_release_appears_whole_and_before_the_switch_to_it() {
    let base = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Node::new(base.path(), "a"), Node::new(base.path(), "b"));
    let link = Link::to(b.port);
    a.tree("t", "tree", "").peer("b", &b.key.clone(), Some(link.port), "");
    b.tree("t", "tree", "atomic = [\"/releases/*\"]\n").peer("a", &a.key.clone(), None, "");
    a.start();
    b.start();
    fs::create_dir_all(a.at("releases")).unwrap();
    a.wait();
    let (over, looking) = visitor(&b.root(), &["1", "2", "3"]);
    // Written in place, then moved in from beside it, then with the link cut and the receiver killed in the middle.
    publish(&a.at("releases/1"), "1");
    symlink("releases/1", a.at("current")).unwrap();
    until("the first appears", || b.at("current").exists());
    publish(&base.path().join("2"), "2");
    fs::rename(base.path().join("2"), a.at("releases/2")).unwrap();
    symlink("releases/2", a.at("next")).unwrap();
    fs::rename(a.at("next"), a.at("current")).unwrap();
    a.wait();
    b.wait();
    same(&a.root(), &b.root());
    publish(&base.path().join("3"), "3");
    fs::rename(base.path().join("3"), a.at("releases/3")).unwrap();
    for round in 0..6 {
        thread::sleep(Duration::from_millis(150));
        link.cut();
        if round % 3 == 1 {
            b.kill();
            b.start();
        }
        thread::sleep(Duration::from_millis(50));
        link.join();
    }
    a.wait();
    b.wait();
    same(&a.root(), &b.root());
    over.store(true, Ordering::SeqCst);
    assert_eq!(looking.join().unwrap(), Vec::<String>::new());
    assert!(a.conflicts().is_empty() && b.conflicts().is_empty());
    let left: Vec<_> = fs::read_dir(b.at(".pleach/staging")).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    // What is there changes in place.
    a.write("releases/1/assets/f1", "changed");
    a.wait();
    assert_eq!(b.read("releases/1/assets/f1").as_deref(), Some("changed"));
}
