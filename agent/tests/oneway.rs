//! Trees that only send or only receive, between running agents.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use std::fs;

use cluster::{Node, Pair, same, until};
use rustix::process::Signal;

/// `a` does both, `b` goes this way.
fn pair(way: &str) -> Pair {
    let mut pair = Pair::new();
    pair.b.reword("name = \"t\"\n", &format!("name = \"t\"\ndirection = \"{way}\"\n"));
    pair.start()
}

fn locals(node: &Node) -> u64 {
    node.tree_status("t")["local_changes"].as_u64().unwrap()
}

fn turn(node: &mut Node, from: &str, to: &str) {
    node.reword(&format!("direction = \"{from}\""), &format!("direction = \"{to}\""));
    node.signal(Signal::HUP);
}

#[test]
fn a_receiver_tells_nobody_of_its_changes_and_counts_them() {
    let mut pair = pair("receive");
    pair.a.write("x", "first");
    pair.a.write("y", "first");
    pair.wait();
    pair.b.write("x", "made here");
    pair.b.write("z", "only here");
    until("the changes are counted", || locals(&pair.b) == 2);
    pair.a.wait();
    pair.b.wait();
    assert_eq!((pair.a.read("x").as_deref(), pair.a.read("z")), (Some("first"), None));
    assert_eq!(pair.b.read("x").as_deref(), Some("made here"));
    assert_eq!(pair.b.tree_status("t")["in_sync"], true, "{}", pair.b.tree_status("t"));
    assert_eq!(pair.a.tree_status("t")["in_sync"], true);
    assert_eq!(pair.a.conflicts().len(), 0);
    pair.b.kill();
    pair.b.start();
    until("they are counted after a kill", || locals(&pair.b) == 2);
    pair.a.write("x", "second");
    pair.a.wait();
    assert_eq!(pair.b.read("x").as_deref(), Some("second"));
    assert_eq!(locals(&pair.b), 1);
    let hash = blake3::hash(b"made here").to_hex().to_string();
    let x = pair.b.at("x");
    let x = x.to_str().unwrap();
    let version = pair.b.rows(&["versions", x]).into_iter().find(|row| row["hash"] == hash.as_str()).unwrap();
    let out = pair.base.path().join("out");
    pair.b.ok(&["restore", x, "--version", version["version"].as_str().unwrap(), "--to", out.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(out.join("x")).or_else(|_| fs::read_to_string(&out)).unwrap(), "made here");
    assert!(pair.b.fails(&["restore", x]).contains("only receives"));
    turn(&mut pair.b, "receive", "both");
    until("what was made there arrives", || pair.a.read("z").as_deref() == Some("only here"));
    pair.wait();
    assert_eq!(locals(&pair.b), 0);
}

#[test]
fn a_sender_applies_nothing_and_a_wait_does_not_wait_for_it() {
    let mut pair = pair("send");
    pair.b.write("x", "first");
    pair.b.wait();
    assert_eq!(pair.a.read("x").as_deref(), Some("first"));
    pair.a.write("x", "changed there");
    pair.a.write("y", "made there");
    pair.a.wait();
    pair.b.wait();
    assert_eq!((pair.b.read("x").as_deref(), pair.b.read("y")), (Some("first"), None));
    assert_eq!(pair.a.read("x").as_deref(), Some("changed there"));
    pair.b.write("x", "second");
    pair.b.wait();
    assert_eq!(pair.a.read("x").as_deref(), Some("second"));
    turn(&mut pair.b, "send", "both");
    until("what it passed over is applied", || pair.b.read("y").as_deref() == Some("made there"));
    pair.wait();
    assert_eq!(pair.b.read("x").as_deref(), Some("second"));
}

/// A node that stores what it never shows, or that only receives, passes on what it heard.
#[test]
fn what_is_heard_is_passed_on_whichever_way_a_node_goes() {
    for way in ["send", "receive"] {
        let base = tempfile::tempdir().unwrap();
        let mut nodes: Vec<Node> = ["a", "b", "c"].iter().map(|name| Node::new(base.path(), name)).collect();
        let keys: Vec<String> = nodes.iter().map(|node| node.key.clone()).collect();
        let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
        nodes[0].tree("t", "tree", "").peer("b", &keys[1], Some(ports[1]), "");
        nodes[1].tree("t", "tree", &format!("direction = \"{way}\""));
        nodes[1].peer("a", &keys[0], None, "").peer("c", &keys[2], None, "");
        nodes[2].tree("t", "tree", "").peer("b", &keys[1], Some(ports[1]), "");
        for node in &mut nodes {
            node.start();
        }
        let large = "0123456789".repeat(10_000);
        nodes[0].write("d/large", &large);
        nodes[2].write("small", "small");
        until("both ends have both", || {
            nodes[2].read("d/large").as_deref() == Some(&*large) && nodes[0].read("small").as_deref() == Some("small")
        });
        nodes.iter().for_each(Node::wait);
        same(&nodes[0].root(), &nodes[2].root());
        assert_eq!(nodes[1].read("small").is_some(), way == "receive");
    }
}
