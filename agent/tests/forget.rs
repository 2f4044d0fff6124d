//! `pleach forget`: what is dropped, what stays, and what a name means afterwards.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use std::fs;

use cluster::{Node, Pair, until};
use rustix::process::Signal;

/// Takes a table out of a node's config and has it read again.
fn without(node: &mut Node, from: &str, to: &str) {
    node.reword(from, to);
    node.signal(Signal::HUP);
}

#[test]
fn a_forgotten_tree_leaves_its_files_and_nothing_else() {
    let pair = Pair::new();
    pair.a.write("f", "of a");
    pair.b.write("f", "of b");
    let mut pair = pair.start();
    pair.wait();
    pair.a.write("kept", "kept");
    pair.wait();
    let listed = pair.b.ok(&["forget", "--tree", "t", "--json"]);
    let rows: Vec<serde_json::Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 1, "its conflicts are listed: {listed}");
    assert_eq!(rows[0]["path"], "f");
    assert!(!pair.b.at(".pleach").exists());
    let left: Vec<_> = fs::read_dir(pair.b.state().join("trees")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["t.forgotten"]);
    assert_eq!(pair.b.read("kept").as_deref(), Some("kept"), "what is in the tree stays");
    assert_eq!(pair.b.status()["trees"].as_array().unwrap().len(), 0);
    until("a hears of it", || pair.a.exchange("b", "t")["state"] == "absent");
    // Not by a restart with the same config either.
    pair.b.kill();
    pair.b.start();
    assert_eq!(pair.b.status()["trees"].as_array().unwrap().len(), 0);
    assert!(!pair.b.at(".pleach").exists());
    // Out of the config and in again: a tree like any other, which pairs.
    let tree = format!("[[tree]]\nname = \"t\"\npath = {:?}\n", pair.b.root());
    without(&mut pair.b, &tree, "#TREE\n");
    until("the mark is gone", || !pair.b.state().join("trees/t.forgotten").exists());
    pair.b.write("new", "new");
    without(&mut pair.b, "#TREE\n", &tree);
    until("it is exchanged again", || pair.a.read("new").as_deref() == Some("new"));
    pair.wait();
}

#[test]
fn a_root_that_is_another_ones_is_not_touched() {
    let mut pair = Pair::new().start();
    pair.wait();
    pair.a.stop();
    fs::write(pair.a.at(".pleach/root"), "somebody else's").unwrap();
    pair.a.start();
    until("it is closed", || pair.a.tree_status("t")["state"] == "error");
    pair.a.ok(&["forget", "--tree", "t"]);
    assert!(pair.a.at(".pleach/root").exists());
    assert!(!pair.a.state().join("trees/t").exists());
}

#[test]
fn a_forgotten_peer_is_talked_to_no_more_and_may_come_back_anew() {
    let mut pair = Pair::new().start();
    pair.a.write("f", "1");
    pair.wait();
    pair.a.ok(&["forget", "--peer", "b"]);
    assert_eq!(pair.a.status()["peers"].as_array().unwrap().len(), 0);
    fs::remove_file(pair.a.at("f")).unwrap();
    pair.a.write("g", "2");
    pair.a.wait();
    assert!(pair.a.tree_status("t")["in_sync"] == true, "nothing waits for it");
    pair.a.stop();
    pair.a.start();
    assert_eq!(pair.a.status()["peers"].as_array().unwrap().len(), 0, "not after a restart either");
    assert_eq!(pair.b.read("g"), None);
    assert_eq!(pair.a.run(&["forget", "--peer", "nobody"]).status.code(), Some(2));
    let whole = fs::read_to_string(pair.a.config_file()).unwrap();
    let peer = whole[whole.find("[[peer]]").unwrap()..].to_owned();
    without(&mut pair.a, &peer, "#PEER\n");
    until("the mark is gone", || !pair.a.state().join("peers/b.forgotten").exists());
    without(&mut pair.a, "#PEER\n", &peer);
    until("all is exchanged anew", || pair.b.read("g").as_deref() == Some("2"));
    pair.wait();
}

#[test]
fn what_a_kill_leaves_of_a_forgotten_tree_goes_with_the_next_start() {
    let mut pair = Pair::new().start();
    pair.wait();
    pair.a.kill();
    // As the command leaves it that was killed right behind its first step.
    fs::write(pair.a.state().join("trees/t.forgotten"), format!("{}\n", pair.a.root().display())).unwrap();
    pair.a.start();
    assert!(!pair.a.at(".pleach").exists());
    assert!(!pair.a.state().join("trees/t").exists());
    assert_eq!(pair.a.status()["trees"].as_array().unwrap().len(), 0);
}

#[test]
fn one_of_the_two_must_be_named() {
    let mut pair = Pair::new();
    pair.a.start();
    for args in [&["forget"][..], &["forget", "--tree", "t", "--peer", "b"], &["forget", "--tree", "../t"]] {
        assert_eq!(pair.a.run(args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(pair.a.tree_status("t")["error"], serde_json::Value::Null);
}
