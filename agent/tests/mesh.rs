//! Agents that exchange trees: two, three, a mesh; cut lines, kills, conflicts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use cluster::{Pair, same};

#[test]
fn two_agents_keep_a_tree_in_step() {
    let pair = Pair::new();
    pair.a.write("x", "from a");
    pair.b.write("d/y", "from b");
    let pair = pair.start();
    pair.wait();
    pair.b.write("x", "again");
    pair.a.write("z", "new");
    pair.wait();
    assert_eq!(pair.a.read("x").as_deref(), Some("again"));
    let (tree, peer) = (pair.a.tree_status("t"), pair.a.peer_status("b"));
    assert_eq!((&tree["state"], &tree["in_sync"], &tree["entries"]), (&"watching".into(), &true.into(), &4.into()));
    assert_eq!(peer["state"], "connected");
    same(&pair.a.root(), &pair.b.root());
}
