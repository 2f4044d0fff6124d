//! Two trees on modelled disks: what a user does on one appears on the other, and nothing else does.

use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_tests::model::{ModelNode, hear_of, pair, settle};
use pleach_tests::{Heard, pull};

fn same(a: &ModelNode, b: &ModelNode) {
    let (left, right) = (a.seen(), b.seen());
    assert_eq!(left, right);
}

fn rest(a: &mut ModelNode, b: &mut ModelNode) {
    assert!(
        settle(a, b).unwrap(),
        "they come to rest: {:?} {:?}",
        a.tree.as_ref().unwrap().problems(),
        b.tree.as_ref().unwrap().problems()
    );
    same(a, b);
    let heads = |n: &ModelNode| n.tree.as_ref().unwrap().index().meta().head;
    let before = (heads(a), heads(b));
    assert!(settle(a, b).unwrap());
    assert_eq!((heads(a), heads(b)), before, "a further look mints nothing");
}

fn vault(node: &ModelNode) -> Vec<Vec<u8>> {
    let all = node.disk.user().snapshot(true);
    let vaulted = all.iter().filter(|(path, _)| path.starts_with(b".pleach/vault/"));
    vaulted.filter_map(|(path, _)| node.disk.user().read(path).ok()).collect()
}

#[test]
fn files_directories_and_links_travel_both_ways() {
    let (mut a, mut b) = pair();
    let (u, v) = (a.disk.user(), b.disk.user());
    u.mkdir_all("d/e").unwrap();
    u.write("d/e/f", "hello").unwrap();
    u.chmod("d/e/f", 0o4755).unwrap();
    u.symlink("../nowhere", "d/link").unwrap();
    u.write("empty", "").unwrap();
    u.mkdir_all("hollow").unwrap();
    u.chmod("hollow", 0o2750).unwrap();
    u.touch("d/e", Time::new(1_000, 7)).unwrap();
    v.write("big", vec![7; 300_000]).unwrap();
    v.write(b"new\nline\xff", "bytes").unwrap();
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("big").unwrap().len(), 300_000);
    assert_eq!(b.disk.user().stat("d/e").unwrap().mtime, Time::new(1_000, 7));
}

#[test]
fn edits_renames_and_deletions_travel() {
    let (mut a, mut b) = pair();
    let (u, v) = (a.disk.user(), b.disk.user());
    for n in 0..20 {
        u.mkdir_all(format!("d{}", n % 3)).unwrap();
        u.write(format!("d{}/f{n}", n % 3), format!("content {n}")).unwrap();
    }
    rest(&mut a, &mut b);
    v.write("d0/f0", "edited on b").unwrap();
    v.rename("d1", "moved").unwrap();
    u.remove_all("d2").unwrap();
    u.replace("d0/f3", "replaced on a").unwrap();
    rest(&mut a, &mut b);
    assert!(!b.disk.user().exists("d2"));
    assert!(a.disk.user().exists("moved/f1"));
    assert_eq!(a.disk.user().read("d0/f0").unwrap(), b"edited on b");
    u.remove("d0/f0").unwrap();
    u.mkdir_all("d0/f0/inside").unwrap();
    v.remove_all("moved").unwrap();
    v.write("moved", "now a file").unwrap();
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("moved").unwrap(), b"now a file");
    assert!(b.disk.user().exists("d0/f0/inside"));
}

#[test]
fn attributes_travel_without_content() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", vec![1; 100_000]).unwrap();
    rest(&mut a, &mut b);
    let inode = b.disk.user().stat("f").unwrap().inode;
    a.disk.user().chmod("f", 0o600).unwrap();
    b.disk.user().touch("f", Time::new(5, 5)).unwrap();
    rest(&mut a, &mut b);
    let at_b = b.disk.user().stat("f").unwrap();
    assert_eq!((at_b.mode, at_b.mtime, at_b.inode), (0o600, Time::new(5, 5), inode));
}

#[test]
fn concurrent_edits_keep_the_loser_in_the_vault() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", "base").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().write("f", "left").unwrap();
    b.disk.advance(1_000_000_000_000);
    b.disk.user().write("f", "right, later").unwrap();
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("f").unwrap(), b"right, later");
    assert!(vault(&a).contains(&b"left".to_vec()));
    let path = TreePath::parse(b"f").unwrap();
    let entry = a.tree.as_ref().unwrap().entry(&path).unwrap().unwrap();
    let around = pleach_protocol::view::Surroundings::default();
    assert_eq!(pleach_protocol::view::conflicts(&entry, &around).len(), 1);
}

#[test]
fn an_edit_outlives_a_concurrent_deletion() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("d").unwrap();
    a.disk.user().write("d/f", "base").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().remove_all("d").unwrap();
    b.disk.user().write("d/f", "edited").unwrap();
    b.disk.user().write("d/new", "added").unwrap();
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("d/f").unwrap(), b"edited");
    assert_eq!(a.disk.user().read("d/new").unwrap(), b"added");
}

/// What lost to a file by the clocks did not lose to its deletion, also where nobody had looked at that yet.
#[test]
fn an_edit_that_lost_outlives_a_deletion_that_came_before_it() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", "base").unwrap();
    rest(&mut a, &mut b);
    b.disk.advance(1_000_000_000_000);
    b.disk.user().write("f", "of the fast clock").unwrap();
    b.tree.as_mut().unwrap().scan().unwrap();
    b.disk.user().remove("f").unwrap();
    a.disk.user().write("f", "edited").unwrap();
    a.tree.as_mut().unwrap().scan().unwrap();
    hear_of(&a, &mut b, &["f"]);
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("f").unwrap(), b"edited");
}

#[test]
fn first_meeting_is_a_union_and_the_younger_wins() {
    let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
    for (node, text, time) in [(&a, "old", 100), (&b, "young", 200)] {
        let user = node.disk.user();
        user.write("both", text).unwrap();
        user.touch("both", Time::new(time, 0)).unwrap();
        user.write("same", "equal").unwrap();
        user.touch("same", Time::new(time, 0)).unwrap();
        user.write(format!("only-{text}"), text).unwrap();
    }
    a.start().unwrap();
    b.start().unwrap();
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("both").unwrap(), b"young");
    assert!(vault(&a).contains(&b"old".to_vec()));
    assert!(a.disk.user().exists("only-young") && b.disk.user().exists("only-old"));
    assert_eq!(vault(&b).len(), 0, "equal files move nothing");
}

#[test]
fn ignored_names_stay_where_they_are() {
    let (mut a, mut b) = (ModelNode::new(1).ignoring(&["*.o"]), ModelNode::new(2).ignoring(&["*.o"]));
    a.start().unwrap();
    b.start().unwrap();
    a.disk.user().mkdir_all("d").unwrap();
    a.disk.user().write("d/x.o", "object").unwrap();
    a.disk.user().write("d/x.c", "source").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    assert!(b.disk.user().exists("d/x.c") && !b.disk.user().exists("d/x.o"));
    b.disk.user().remove_all("d").unwrap();
    settle(&mut a, &mut b).unwrap();
    assert!(a.disk.user().exists("d/x.o") && !a.disk.user().exists("d/x.c"));
}

#[test]
fn a_problem_of_an_earlier_life_ends_when_its_path_is_gone() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "never seen by b").unwrap();
    let tree = a.tree.as_mut().unwrap();
    tree.catch_up().unwrap();
    // Nor is it kept in mind any more.
    tree.commit_all().unwrap();
    a.disk.user().remove("x").unwrap();
    b.tree.as_mut().unwrap().catch_up().unwrap();
    let (from, to) = (a.tree.as_mut().unwrap(), b.tree.as_mut().unwrap());
    pull(from, a.id, to, b.id, &mut Heard::default()).unwrap();
    let problems = |node: &ModelNode| node.tree.as_ref().unwrap().problems().len();
    assert_eq!(problems(&b), 1, "nobody has the content");
    b.start().unwrap();
    assert_eq!(problems(&b), 1);
    rest(&mut a, &mut b);
    assert_eq!(problems(&b), 0);
}

#[test]
fn a_directory_taken_away_under_a_change_does_not_hold_the_tree_up() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("d/e").unwrap();
    rest(&mut a, &mut b);
    b.disk.user().mkdir_all("d/e/new").unwrap();
    b.disk.user().symlink("target", "d/e/link").unwrap();
    let (from, to) = (b.tree.as_mut().unwrap(), a.tree.as_mut().unwrap());
    from.scan().unwrap();
    from.commit().unwrap();
    // Nobody has told the tree yet when it begins to apply.
    a.disk.user().remove_all("d").unwrap();
    pull(from, b.id, to, a.id, &mut Heard::default()).unwrap();
    rest(&mut a, &mut b);
    assert!(a.disk.user().exists("d/e/new") && a.disk.user().exists("d/e/link"));
}

/// Found by seed 202779: a directory that lives for what is beneath took its mode from the one above it as long as that was a directory
/// of its own; made anew when it no longer was, it took none.
#[test]
fn a_directory_without_a_row_looks_alike_whenever_it_is_made() {
    let (mut a, mut b) = pair();
    let user = a.disk.user();
    user.mkdir_all("d").unwrap();
    user.write("d/e", "a file").unwrap();
    user.chmod("d", 0o750).unwrap();
    rest(&mut a, &mut b);
    // Of c's directories nothing was told.
    let mut c = ModelNode::new(3);
    c.disk.user().mkdir_all("d/e").unwrap();
    c.disk.user().write("d/e/h", "h").unwrap();
    c.start().unwrap();
    c.tree.as_mut().unwrap().scan().unwrap();
    hear_of(&c, &mut a, &["d/e/h"]);
    assert_eq!(a.disk.user().stat("d/e").unwrap().mode, 0o750);
    b.disk.user().remove_all("d").unwrap();
    b.disk.user().write("d", "another file").unwrap();
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().stat("d/e").unwrap().mode, 0o750);
}
