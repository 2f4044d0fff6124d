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

/// What both have to begin with: two differ, `a`'s are younger; each has one that the other lacks.
fn fill(pair: &Pair) {
    for (node, other) in [(&pair.b, "a"), (&pair.a, "b")] {
        node.write("same", "same");
        node.write("differs", &node.name);
        node.write(&format!("not-on-{other}"), &node.name);
        let age = std::time::Duration::from_secs(if node.name == "a" { 1_000 } else { 2_000 });
        let file = fs::File::options().write(true).open(node.at("differs")).unwrap();
        file.set_modified(std::time::SystemTime::now() - age).unwrap();
    }
}

/// CONTRACT.md, `first`: each pair of settings.
#[test]
fn the_first_pairing_goes_as_both_sides_say() {
    let words = ["merge", "send", "receive"];
    for (first_a, first_b) in words.iter().flat_map(|a| words.map(|b| (*a, b))) {
        let mut pair = Pair::new();
        for (node, first) in [(&mut pair.a, first_a), (&mut pair.b, first_b)] {
            node.reword("name = \"t\"\n", &format!("name = \"t\"\nfirst = \"{first}\"\n"));
        }
        fill(&pair);
        let pair = pair.start();
        let what = format!("a {first_a}, b {first_b}");
        until(&format!("{what}: both paired"), || {
            [&pair.a, &pair.b].iter().all(|node| node.tree_status("t")["state"] == "watching")
        });
        pair.wait();
        let (wins, kept_a, kept_b) = match (first_a, first_b) {
            (a, b) if a == b => ("a", true, true),
            ("send", "merge") => ("a", true, true),
            ("merge", "send") => ("b", true, true),
            ("receive", "merge") => ("b", false, true),
            ("merge", "receive") => ("a", true, false),
            // Whoever waits counts as empty for one that sends; the other then receives all.
            ("send", _) => ("a", true, false),
            _ => ("b", false, true),
        };
        assert_eq!(pair.a.read("differs").as_deref(), Some(wins), "{what}");
        assert_eq!(pair.b.read("not-on-b").is_some(), kept_a, "{what}: what only a had");
        assert_eq!(pair.a.read("not-on-a").is_some(), kept_b, "{what}: what only b had");
        let both = || {
            pair.a.rows(&["versions", pair.a.root().to_str().unwrap()]).len()
                + pair.b.rows(&["versions", pair.b.root().to_str().unwrap()]).len()
        };
        assert_eq!(both(), 1 + usize::from(!kept_a) + usize::from(!kept_b), "{what}: what gave way is in a vault");
    }
}

/// A root that waits says so, and a wait does not pass it by.
#[test]
fn a_root_that_waits_for_a_peer_says_so() {
    let mut pair = Pair::new();
    pair.a.reword("name = \"t\"\n", "name = \"t\"\nfirst = \"receive\"\n");
    pair.a.write("mine", "mine");
    pair.a.start();
    until("it waits", || pair.a.tree_status("t")["state"] == "scanning");
    assert!(pair.a.fails(&["wait", "--timeout", "1"]).contains("waits for the first peer"));
    pair.a.kill();
    pair.a.start();
    assert_eq!(pair.a.tree_status("t")["state"], "scanning");
    assert_eq!(pair.a.read("mine").as_deref(), Some("mine"));
    pair.b.write("theirs", "theirs");
    pair.b.start();
    until("it follows", || pair.a.read("theirs").is_some() && pair.a.read("mine").is_none());
    pair.wait();
    assert_eq!(pair.a.rows(&["versions", pair.a.root().to_str().unwrap()]).len(), 1);
}
