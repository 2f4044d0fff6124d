//! Ignore rules that change. Each of these was found by the simulation.

use pleach_protocol::path::TreePath;
use pleach_store::vfs::model::{FaultRule, OpKind};
use pleach_tests::fetch;
use pleach_tests::model::{ModelNode, hear_of, pair, rest, settle};

/// Found by seeds 293, 1333, 4613, 6213 and 7093: what is beneath a directory was passed while that was ignored, and is looked for in a file that
/// stands there.
#[test]
fn what_is_beneath_a_directory_appears_where_an_ignored_file_stood() {
    let (mut a, mut b) = pair();
    a.disk.user().write("k", "file").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().write(".pleachignore", "k\n").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().remove(".pleachignore").unwrap();
    a.disk.user().remove("k").unwrap();
    a.disk.user().mkdir_all("k").unwrap();
    a.disk.user().write("k/f", "beneath").unwrap();
    settle(&mut a, &mut b).unwrap();
    // Rules that changed make a scan due.
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("k/f").unwrap(), b"beneath");
}

/// Found by seeds 4843 and 9853.
#[test]
fn what_is_listed_against_a_path_is_over_when_it_is_ignored() {
    let mut a = ModelNode::new(1);
    a.start().unwrap();
    a.disk.user().write("f", "1").unwrap();
    let name = Some(b"f".to_vec());
    a.disk.fail(FaultRule { op: Some(OpKind::ReadAt), name, errno: libc::EIO, times: u64::MAX });
    a.tree.as_mut().unwrap().catch_up().unwrap();
    assert_eq!(a.tree.as_ref().unwrap().problems().len(), 1);
    a.disk.user().write(".pleachignore", "f\n").unwrap();
    for _ in 0..2 {
        let tree = a.tree.as_mut().unwrap();
        tree.scan_later();
        tree.catch_up().unwrap();
        a.disk.advance(400_000_000_000);
    }
    assert_eq!(a.tree.as_ref().unwrap().problems().len(), 0);
}

/// Found by seed 1109803: what a writer kept could not be paired when it was no longer ignored, and then it was gone: nothing came in
/// its place until the next rescan.
#[test]
fn what_goes_before_it_can_be_paired_comes_from_the_others() {
    let (mut a, mut b) = pair();
    a.disk.user().write("k", "1").unwrap();
    rest(&mut a, &mut b);
    b.disk.user().write(".pleachignore", "k\n").unwrap();
    b.tree.as_mut().unwrap().scan().unwrap();
    let writer = b.disk.user().open_writing("k").unwrap();
    b.disk.user().remove(".pleachignore").unwrap();
    let tree = b.tree.as_mut().unwrap();
    tree.scan().unwrap();
    assert_eq!(tree.catch_up().unwrap(), [TreePath::parse(b"k").unwrap()]);
    b.disk.user().remove("k").unwrap();
    drop(writer);
    tree.look_again(&TreePath::parse(b"k").unwrap(), false, false);
    tree.catch_up().unwrap();
    tree.commit().unwrap();
    fetch(a.tree.as_mut().unwrap(), tree).unwrap();
    assert_eq!(b.disk.user().read("k").ok().as_deref(), Some(&b"1"[..]));
    rest(&mut a, &mut b);
}

/// Found by seed 761793: rules held between two scans alone, and the applier passed what a peer had made meanwhile.
#[test]
fn what_was_passed_while_it_was_ignored_is_applied_once_it_is_not() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("d").unwrap();
    a.disk.user().write("d/k", "1").unwrap();
    rest(&mut a, &mut b);
    // As an event does; the scan that is due comes later.
    let read_rules = |b: &mut ModelNode| b.tree.as_mut().unwrap().scan_children(&TreePath::ROOT).unwrap();
    b.disk.user().write(".pleachignore", "k\n").unwrap();
    read_rules(&mut b);
    a.disk.advance(1_000_000_000);
    a.disk.user().write("d/k", "2").unwrap();
    a.tree.as_mut().unwrap().scan().unwrap();
    hear_of(&a, &mut b, &["d/k"]);
    assert_eq!(b.disk.user().read("d/k").unwrap(), b"1");
    b.disk.user().remove(".pleachignore").unwrap();
    read_rules(&mut b);
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("d/k").unwrap(), b"2");
}
