//! Tombstones are forgotten once all peers know them, and never before (DESIGN.md §2).

use pleach_protocol::path::TreePath;
use pleach_protocol::version::NodeId;
use pleach_tests::model::{ModelNode, pair, settle};

fn known(node: &ModelNode, path: &str) -> bool {
    node.tree.as_ref().unwrap().entry(&TreePath::parse(path.as_bytes()).unwrap()).unwrap().is_some()
}

fn collect(node: &mut ModelNode, peers: &[NodeId]) {
    let tree = node.tree.as_mut().unwrap();
    let head = tree.head();
    assert_eq!(tree.collect(0, head, peers).unwrap(), None, "a short journal is looked at at once");
    tree.commit().unwrap();
}

/// What an ack of the peer does.
fn acked(node: &mut ModelNode, peer: NodeId) {
    let tree = node.tree.as_mut().unwrap();
    let head = tree.head();
    tree.peer_merged(peer, head).unwrap();
    tree.commit().unwrap();
}

#[test]
fn a_tombstone_that_a_peer_has_not_merged_stays() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.user().remove("x").unwrap();
    a.tree.as_mut().unwrap().scan_later();
    a.tree.as_mut().unwrap().catch_up().unwrap();
    a.tree.as_mut().unwrap().commit().unwrap();
    let peer = b.id;
    collect(&mut a, &[peer]);
    assert!(known(&a, "x"));
    assert!(settle(&mut a, &mut b).unwrap());
    acked(&mut a, peer);
    collect(&mut a, &[peer, NodeId([9; 32])]);
    assert!(known(&a, "x"), "another peer was never heard of");
    collect(&mut a, &[peer]);
    assert!(!known(&a, "x"));
    let taught = a.id;
    collect(&mut b, &[taught]);
    assert!(known(&b, "x"), "whoever taught it has not said that it is this far in our journal");
    acked(&mut b, taught);
    collect(&mut b, &[taught]);
    assert!(!known(&b, "x"));
    assert!(settle(&mut a, &mut b).unwrap());
    assert!(b.seen().is_empty() && a.seen().is_empty(), "nothing returns");
}

#[test]
fn what_is_there_or_disputed_is_never_collected() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("d").unwrap();
    a.disk.user().write("d/f", "1").unwrap();
    a.disk.user().write("e", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    // A directory that was deleted and lives on for what is beneath; a deletion against an edit.
    a.disk.user().write("d/g", "2").unwrap();
    b.disk.user().remove("d/f").unwrap();
    b.disk.user().remove("d").unwrap();
    a.disk.user().write("e", "3").unwrap();
    b.disk.user().remove("e").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let (left, right) = (a.id, b.id);
    acked(&mut a, right);
    acked(&mut b, left);
    collect(&mut a, &[right]);
    collect(&mut b, &[left]);
    for node in [&a, &b] {
        assert!(known(node, "d") && known(node, "d/g") && known(node, "e"));
    }
    assert!(settle(&mut a, &mut b).unwrap());
    assert_eq!(a.seen(), b.seen());
    assert_eq!(a.disk.user().read("e").unwrap(), b"3");
}

#[test]
fn a_place_before_a_collected_tombstone_is_noticed() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "1").unwrap();
    a.disk.user().write("y", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.user().remove("x").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let peer = b.id;
    acked(&mut a, peer);
    collect(&mut a, &[peer]);
    let tree = a.tree.as_ref().unwrap();
    assert!(tree.may_have_missed(1) && !tree.may_have_missed(0) && !tree.may_have_missed(tree.head()));
}

#[test]
fn actors_of_many_starts_leave_a_context_that_all_have_merged() {
    let (mut a, mut b) = pair();
    for start in 0..12 {
        a.disk.advance(1_000_000_000);
        a.disk.user().write("x", format!("{start}")).unwrap();
        assert!(settle(&mut a, &mut b).unwrap());
        a.start().unwrap();
    }
    let (left, right) = (a.id, b.id);
    let actors = |node: &ModelNode| {
        let x = TreePath::parse(b"x").unwrap();
        node.tree.as_ref().unwrap().entry(&x).unwrap().unwrap().context.len()
    };
    assert_eq!((actors(&a), actors(&b)), (12, 12));
    collect(&mut a, &[right, NodeId([9; 32])]);
    assert_eq!(actors(&a), 12, "another peer was never heard of");
    acked(&mut a, right);
    acked(&mut b, left);
    collect(&mut a, &[right]);
    // The creation still names the mode's writer, the last edit the content's.
    assert_eq!((actors(&a), actors(&b)), (2, 12));
    assert!(settle(&mut a, &mut b).unwrap());
    collect(&mut b, &[left]);
    assert_eq!(actors(&b), 2);
    b.disk.user().write("x", "again").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    assert_eq!(a.disk.user().read("x").unwrap(), b"again");
    a.disk.user().remove("x").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    assert!(a.seen().is_empty() && b.seen().is_empty());
}

/// A list of losers outlives the actors of a context (found by simulation, seed 2141).
#[test]
fn a_newcomer_learns_who_wrote_a_loser_whose_actor_left_the_context() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "a").unwrap();
    b.disk.advance(1_000_000_000);
    b.disk.user().write("x", "b").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    for start in 0..12 {
        b.disk.advance(1_000_000_000);
        b.disk.user().write("x", format!("{start}")).unwrap();
        assert!(settle(&mut a, &mut b).unwrap());
        b.start().unwrap();
    }
    b.disk.user().chmod("x", 0o600).unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let (left, x) = (a.id, TreePath::parse(b"x").unwrap());
    acked(&mut b, left);
    collect(&mut b, &[left]);
    let entry = b.tree.as_ref().unwrap().entry(&x).unwrap().unwrap();
    assert!(entry.context.iter().all(|dot| dot.actor.node != left));
    let mut c = ModelNode::new(3);
    c.start().unwrap();
    assert!(settle(&mut b, &mut c).unwrap());
    let conflicts = c.tree.as_ref().unwrap().conflicts(&TreePath::ROOT).unwrap();
    assert_eq!(conflicts.iter().map(|conflict| &conflict.node[..]).collect::<Vec<_>>(), ["n1"]);
}

/// An ack is written with a later batch: a crash may take it, and a peer that has all says nothing more.
#[test]
fn an_ack_that_a_crash_took_is_known_from_where_the_peer_begins() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.user().remove("x").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let peer = b.id;
    let cursor = b.tree.as_ref().unwrap().cursor(a.id).unwrap().unwrap();
    let tree = a.tree.as_mut().unwrap();
    tree.greet(peer, (cursor.seq, cursor.start)).unwrap();
    collect(&mut a, &[peer]);
    assert!(!known(&a, "x"));
}

/// What a peer had merged before it was put back it has to merge again.
#[test]
fn a_tombstone_waits_for_a_peer_that_went_back() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let before = b.tree.as_ref().unwrap().cursor(a.id).unwrap().unwrap();
    a.disk.user().remove("x").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let peer = b.id;
    acked(&mut a, peer);
    a.tree.as_mut().unwrap().greet(peer, (before.seq, before.start)).unwrap();
    collect(&mut a, &[peer]);
    assert!(known(&a, "x"));
}
