//! Disks in trouble: what could not be read is a problem only until it can be, and nothing is told wrong
//! meanwhile. Each of these was found by the simulation.

use pleach_protocol::path::TreePath;
use pleach_store::vfs::model::{FaultRule, ModelDisk, OpKind};
use pleach_tests::model::{ModelNode, settle};

fn path(path: &str) -> TreePath {
    TreePath::parse(path.as_bytes()).unwrap()
}

fn fail(disk: &ModelDisk, op: OpKind, name: Option<&str>, errno: i32) {
    let name = name.map(|name| name.as_bytes().to_vec());
    disk.fail(FaultRule { op: Some(op), name, errno, times: 1 });
}

/// Lets time pass until what failed is tried again, and tries it.
fn look_again(node: &mut ModelNode) {
    node.disk.advance(2_000_000_000);
    let tree = node.tree.as_mut().unwrap();
    assert!(tree.next_retry().is_some_and(|at| at <= node.disk.now()), "it is due");
    assert!(tree.catch_up().unwrap().is_empty());
    tree.commit().unwrap();
}

#[test]
fn a_file_that_could_not_be_read_is_looked_at_again() {
    let mut a = ModelNode::new(1);
    a.start().unwrap();
    a.disk.user().write("f", "1").unwrap();
    fail(&a.disk, OpKind::ReadAt, Some("f"), libc::EIO);
    let tree = a.tree.as_mut().unwrap();
    tree.catch_up().unwrap();
    assert_eq!((tree.problems().len(), tree.index().meta().head), (1, 0));
    look_again(&mut a);
    let tree = a.tree.as_ref().unwrap();
    assert_eq!((tree.problems().len(), tree.index().meta().head), (0, 1));
}

/// A clock that was put back by a day must not put everything off for a day.
#[test]
fn what_failed_is_tried_again_although_the_clock_was_put_back() {
    let mut a = ModelNode::new(1);
    a.start().unwrap();
    a.disk.user().write("f", "1").unwrap();
    fail(&a.disk, OpKind::ReadAt, Some("f"), libc::EIO);
    a.tree.as_mut().unwrap().catch_up().unwrap();
    a.disk.advance(-86_400_000_000_000);
    let tree = a.tree.as_mut().unwrap();
    tree.catch_up().unwrap();
    assert!(tree.problems().is_empty());
}

#[test]
fn a_directory_that_could_not_be_listed_is_listed_again() {
    let mut a = ModelNode::new(1);
    a.start().unwrap();
    a.disk.user().mkdir_all("d/e").unwrap();
    a.disk.user().write("d/e/f", "1").unwrap();
    fail(&a.disk, OpKind::OpenPath, Some("d"), libc::EMFILE);
    let tree = a.tree.as_mut().unwrap();
    tree.catch_up().unwrap();
    assert_eq!((tree.problems().len(), tree.index().meta().head), (1, 1));
    // A look at the directory itself says nothing of what it holds.
    tree.look_again(&path("d"), true, false);
    tree.catch_up().unwrap();
    assert_eq!(tree.problems().len(), 1);
    look_again(&mut a);
    let tree = a.tree.as_ref().unwrap();
    assert_eq!((tree.problems().len(), tree.index().meta().head), (0, 3));
}

#[test]
fn a_root_that_could_not_be_listed_is_no_problem_for_ever() {
    let mut a = ModelNode::new(1);
    a.start().unwrap();
    a.disk.user().write("f", "1").unwrap();
    fail(&a.disk, OpKind::List, None, libc::EMFILE);
    a.tree.as_mut().unwrap().catch_up().unwrap();
    assert_eq!(a.tree.as_ref().unwrap().problems().len(), 1);
    look_again(&mut a);
    let tree = a.tree.as_ref().unwrap();
    assert_eq!((tree.problems().len(), tree.index().meta().head), (0, 1));
}

/// A lost store's finds pair by the time of their content: a stale copy that was not readable at first must
/// not beat what others wrote since.
#[test]
fn what_could_not_be_read_while_the_tree_paired_pairs_later() {
    let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
    a.start().unwrap();
    b.start().unwrap();
    a.disk.user().mkdir_all("d").unwrap();
    a.disk.user().write("d/f", "old").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    b.tree = None;
    b.kv = pleach_store::kv::memory::MemoryKvDisk::default();
    a.disk.advance(1_000_000_000);
    a.disk.user().write("d/f", "new").unwrap();
    assert!(a.tree.as_mut().unwrap().scan().is_ok());
    // The stale copy's change time is the newest of all.
    b.disk.advance(1_000_000_000_000);
    b.disk.user().chmod("d/f", 0o600).unwrap();
    b.disk.user().chmod("d/f", 0o644).unwrap();
    fail(&b.disk, OpKind::OpenPath, Some("d"), libc::EMFILE);
    b.start().unwrap();
    b.tree.as_mut().unwrap().catch_up().unwrap();
    assert_eq!(b.tree.as_ref().unwrap().problems().len(), 1);
    look_again(&mut b);
    assert!(settle(&mut a, &mut b).unwrap());
    for node in [&a, &b] {
        assert_eq!(node.disk.user().read("d/f").unwrap(), b"new");
    }
}

/// Making a link tells of the new name alone: a change through it is a change of the old one, too.
#[test]
fn a_change_through_a_link_made_later_is_found_under_the_first_name() {
    let mut a = ModelNode::new(1);
    a.start().unwrap();
    let user = a.disk.user();
    user.write("y", "1").unwrap();
    let tree = a.tree.as_mut().unwrap();
    tree.scan().unwrap();
    user.hard_link("y", "k").unwrap();
    user.chmod("k", 0o750).unwrap();
    tree.look_again(&path("k"), false, false);
    tree.catch_up().unwrap();
    a.disk.advance(61_000_000_000);
    tree.catch_up().unwrap();
    let mode = |name: &str| {
        let row = tree.index().row(&path(name)).unwrap();
        row.shown.and_then(|s| s.shown.state).and_then(|s| s.access).map(|access| access.mode)
    };
    assert_eq!((mode("y"), mode("k")), (Some(0o750), Some(0o750)));
}

/// A machine that is put back as a whole, disk and store of one moment, gives seqs anew that a peer has
/// heard of: the peer's place in the journal is not the place that it thinks.
#[test]
fn a_machine_put_back_as_a_whole_is_told_by_what_its_peers_heard() {
    let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
    a.start().unwrap();
    b.start().unwrap();
    a.disk.user().write("x", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.sync();
    let (disk, kv) = (a.disk.image(), a.kv.image());
    a.disk.user().write("x", "2").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let (_, heard) = b.tree.as_ref().unwrap().cursor(a.id).unwrap().unwrap();
    assert!(!a.tree.as_ref().unwrap().is_beyond_what_was_told(b.id, heard), "it was told in this life");
    a.tree = None;
    a.disk.put_back(&disk);
    a.kv.put_back(&kv);
    a.start().unwrap();
    for name in ["y", "z", "w"] {
        a.disk.user().write(name, "3").unwrap();
    }
    let tree = a.tree.as_mut().unwrap();
    tree.scan().unwrap();
    tree.commit().unwrap();
    assert!(tree.head() > heard, "the journal has grown beyond what was heard");
    assert!(tree.is_beyond_what_was_told(b.id, heard));
}
