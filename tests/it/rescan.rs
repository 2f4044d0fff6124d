//! A scan of a tree that is in use goes on between other work.

use pleach_protocol::path::TreePath;
use pleach_store::vfs::model::OpKind;
use pleach_tests::model::{ModelNode, ModelTree, ask, check_sums, pair, rest};

const DIRS: usize = 30;
const FILES: usize = 10;

fn tree(node: &mut ModelNode) -> &mut ModelTree {
    node.tree.as_mut().unwrap()
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

/// Two nodes in step.
fn in_step() -> (ModelNode, ModelNode) {
    let (mut a, mut b) = pair();
    for dir in 0..DIRS {
        a.disk.user().mkdir_all(format!("d{dir:02}")).unwrap();
        for file in 0..FILES {
            a.disk.user().write(format!("d{dir:02}/f{file}"), format!("content {file} of {dir}")).unwrap();
        }
    }
    rest(&mut a, &mut b);
    a.disk.advance(60_000_000_000);
    b.disk.advance(60_000_000_000);
    (a, b)
}

/// Goes on with what is under way, a few entries at a time; in how many steps.
fn finish(node: &mut ModelNode) -> usize {
    let steps = (1..1_000).find(|_| {
        assert!(tree(node).catch_up_by(20).unwrap().is_empty());
        tree(node).commit().unwrap();
        tree(node).rescan().is_none()
    });
    steps.unwrap()
}

#[test]
fn what_others_and_users_change_during_a_rescan_stays() {
    let (mut a, mut b) = in_step();
    // Nobody was told of these, before and behind where the scan is by then.
    for changed in ["d00/f1", "d29/f1"] {
        b.disk.user().write(changed, "unseen").unwrap();
    }
    tree(&mut b).scan_later();
    tree(&mut b).catch_up_by(20).unwrap();
    let done = tree(&mut b).rescan().unwrap().entries;
    assert!((20..100).contains(&done) && !tree(&mut b).has_looked());
    // Peers' changes arrive on both sides of where it is.
    for changed in ["d00/f2", "d01/new", "d28/f2"] {
        a.disk.user().write(changed, "by a").unwrap();
    }
    a.disk.user().remove_all("d27").unwrap();
    ask(&mut a, &mut b);
    assert!(tree(&mut b).rescan().is_some(), "it waits for nobody");
    assert_eq!(b.disk.user().read("d28/f2").unwrap(), b"by a");
    assert!(!b.disk.user().exists("d27"));
    // A user's, of which an event tells.
    b.disk.user().write("d28/f3", "by b").unwrap();
    tree(&mut b).look_again(&path("d28/f3"), true, false);
    b.disk.user().remove_all("d26").unwrap();
    assert!(finish(&mut b) > 5);
    assert!(tree(&mut b).has_looked());
    rest(&mut a, &mut b);
    for (path, content) in [
        ("d00/f1", "unseen"),
        ("d29/f1", "unseen"),
        ("d00/f2", "by a"),
        ("d01/new", "by a"),
        ("d28/f2", "by a"),
        ("d28/f3", "by b"),
    ] {
        assert_eq!(a.disk.user().read(path).unwrap(), content.as_bytes(), "{path}");
    }
    assert!(!a.disk.user().exists("d26") && !a.disk.user().exists("d27"));
    check_sums(tree(&mut a)).unwrap();
    check_sums(tree(&mut b)).unwrap();
    assert_eq!(tree(&mut a).index().meta().conflicts, 0);
}

#[test]
fn what_is_lost_during_a_rescan_makes_another_due() {
    let (mut a, _) = in_step();
    tree(&mut a).scan_later();
    tree(&mut a).catch_up_by(100).unwrap();
    // Behind where it is.
    a.disk.user().write("d00/f1", "unseen").unwrap();
    tree(&mut a).scan_later();
    finish(&mut a);
    assert!(!tree(&mut a).has_looked());
    finish(&mut a);
    assert!(tree(&mut a).has_looked());
    let entry = tree(&mut a).entry(&path("d00/f1")).unwrap().unwrap();
    let seen = blake3::hash(b"unseen");
    let now = pleach_protocol::view::own(&entry).unwrap();
    assert!(matches!(now, pleach_protocol::entry::Value::File { hash, .. } if hash.0 == *seen.as_bytes()));
    // Whoever waits for all gets all at once.
    tree(&mut a).scan_later();
    tree(&mut a).catch_up_by(100).unwrap();
    a.disk.user().write("d00/f1", "again").unwrap();
    tree(&mut a).scan_later();
    tree(&mut a).catch_up().unwrap();
    assert!(tree(&mut a).has_looked());
    let entry = tree(&mut a).entry(&path("d00/f1")).unwrap().unwrap();
    assert!(matches!(pleach_protocol::view::own(&entry), Some(pleach_protocol::entry::Value::File { size: 5, .. })));
}

#[test]
fn what_a_scan_found_is_passed_over_without_waiting_for_an_event() {
    let (mut a, _) = pair();
    for file in 0..2_000 {
        a.disk.user().write(format!("f{file}"), "content").unwrap();
    }
    let tree = a.tree.as_mut().unwrap();
    tree.scan().unwrap();
    let calls = (1..100).find(|_| {
        assert!(tree.apply().unwrap().is_empty());
        !tree.goes_on()
    });
    tree.commit().unwrap();
    // Not all in one call: whoever asks for something does not wait that long.
    assert!(calls.is_some_and(|calls| calls > 2), "{calls:?}");
    assert_eq!(tree.applied(), tree.head());
}

/// Found by seed 903391: a file was read in a new directory and the directory renamed meanwhile, of which nothing was known yet:
/// when it was seen to be gone nobody looked for what was in it, and the file came back under its old name.
#[test]
fn what_was_read_in_a_new_directory_that_is_renamed_meanwhile_does_not_return() {
    for whole in [true, false] {
        let (mut a, mut b) = pair();
        rest(&mut a, &mut b);
        a.disk.user().mkdir_all("d/e").unwrap();
        a.disk.user().write("d/e/f", "content").unwrap();
        a.disk.before(OpKind::ReadAt, 1, |user| user.rename("d", "x").unwrap());
        if whole { tree(&mut a).scan_below(&path("d")) } else { tree(&mut a).scan_children(&path("d/e")) }.unwrap();
        for dir in ["d", "d/e"] {
            tree(&mut a).look_again(&path(dir), false, false);
        }
        tree(&mut a).scan_below(&path("x")).unwrap();
        rest(&mut a, &mut b);
        let names: Vec<_> = b.seen().into_keys().map(|name| String::from_utf8(name).unwrap()).collect();
        assert_eq!(names, ["x", "x/e", "x/e/f"]);
        assert_eq!(a.seen(), b.seen());
    }
}

/// Found by seed 1189854: the same where the directory took a file's place, of which that was known.
#[test]
fn what_was_read_in_a_directory_in_a_files_place_that_is_renamed_meanwhile_does_not_return() {
    for whole in [true, false] {
        let (mut a, mut b) = pair();
        a.disk.user().write("d", "before").unwrap();
        rest(&mut a, &mut b);
        a.disk.user().remove_all("d").unwrap();
        a.disk.user().mkdir_all("d").unwrap();
        a.disk.user().write("d/f", "content").unwrap();
        a.disk.before(OpKind::ReadAt, 1, |user| user.rename("d", "x").unwrap());
        if whole { tree(&mut a).scan_below(&path("d")) } else { tree(&mut a).scan_children(&path("d")) }.unwrap();
        tree(&mut a).look_again(&path("d"), false, false);
        tree(&mut a).scan_below(&path("x")).unwrap();
        rest(&mut a, &mut b);
        let names: Vec<_> = b.seen().into_keys().map(|name| String::from_utf8(name).unwrap()).collect();
        assert_eq!(names, ["x", "x/f"], "whole {whole}");
        assert_eq!(a.seen(), b.seen());
    }
}

#[test]
fn stamps_that_moved_do_not_gather_in_memory() {
    let (mut a, mut b) = pair();
    let names: Vec<String> = (0..2_500).map(|n| format!("f{n}")).collect();
    for name in &names {
        a.disk.user().write(name, "content").unwrap();
    }
    rest(&mut a, &mut b);
    a.disk.advance(60_000_000_000);
    for name in &names {
        a.disk.user().chmod(name, 0o644).unwrap();
    }
    let before = a.kv.stats().rows;
    tree(&mut a).scan().unwrap();
    let written = a.kv.stats().rows - before;
    assert!(written >= 2_000, "{written}");
}
