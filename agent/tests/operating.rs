//! Agents as operators use them: pauses, replaced roots, restored backups, reloads, clones, the journal, the vault.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use cluster::{Node, PATIENCE, Pair, same, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// What answers at once is given this long.
const AT_ONCE: Duration = Duration::from_secs(15);

/// `pleach wait` without a limit of its own, which must fail at once; gives what it says.
fn wait_fails_at_once(node: &Node) -> String {
    let began = Instant::now();
    let said = node.fails(&["wait", "--timeout", "60"]);
    assert!(began.elapsed() < AT_ONCE, "{}: {said}", node.name);
    said
}

/// Runs a command that must be refused with status 2; gives what it says.
fn refused(node: &Node, args: &[&str]) -> String {
    let output = node.run(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A tree's row among those of a peer.
fn peer_tree(node: &Node, peer: &str, tree: &str) -> Value {
    let rows = node.peer_status(peer)["trees"].clone();
    rows.as_array().unwrap().iter().find(|row| row["name"] == tree).unwrap().clone()
}

fn until_tree(node: &Node, tree: &str, state: &str) {
    until(&format!("{}: tree {tree} is {state}", node.name), || node.tree_status(tree)["state"] == state);
}

fn until_peer(node: &Node, peer: &str, state: &str) {
    until(&format!("{}: peer {peer} is {state}", node.name), || node.peer_status(peer)["state"] == state);
}

/// A copy with all attributes, as a backup program makes it.
fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// What `b3sum` prints.
fn b3(content: &str) -> String {
    blake3::hash(content.as_bytes()).to_hex().to_string()
}

/// Sets a file's time far back.
fn age(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
}

/// Times that a node connected to a peer, as its log has it.
fn sessions(node: &Node, peer: &str) -> usize {
    let log = fs::read_to_string(node.dir.join("log")).unwrap();
    log.lines().filter(|line| line.contains("Connected") && line.contains(&format!("{peer:?}"))).count()
}

#[test]
fn a_paused_tree_stands_still_on_both_nodes_and_over_a_restart() {
    let mut pair = Pair::new().start();
    pair.a.write("x", "1");
    pair.wait();
    pair.a.ok(&["pause", "--tree", "t"]);
    pair.a.write("y", "2");
    pair.b.write("z", "3");
    until_tree(&pair.a, "t", "paused");
    until("b hears of the pause", || peer_tree(&pair.b, "a", "t")["state"] == "paused");
    until("both saw what changed there", || {
        [&pair.a, &pair.b].iter().all(|node| node.tree_status("t")["entries"] == 2)
    });
    assert!(wait_fails_at_once(&pair.a).contains("tree t: the tree is paused"));
    assert!(wait_fails_at_once(&pair.b).contains("tree t: the tree is paused on a"));
    pair.a.stop();
    pair.a.start();
    until_tree(&pair.a, "t", "paused");
    until("b hears of the pause again", || peer_tree(&pair.b, "a", "t")["state"] == "paused");
    assert!(wait_fails_at_once(&pair.a).contains("tree t: the tree is paused"));
    assert_eq!((pair.b.read("y"), pair.a.read("z")), (None, None));
    assert_eq!(pair.a.run(&["status", "--check"]).status.code(), Some(1));
    pair.a.ok(&["resume", "--tree", "t"]);
    pair.wait();
    assert_eq!((pair.b.read("y").as_deref(), pair.a.read("z").as_deref()), (Some("2"), Some("3")));
}

#[test]
fn a_paused_peer_is_not_talked_to_on_both_nodes_and_over_a_restart() {
    let mut pair = Pair::new().start();
    pair.wait();
    pair.a.ok(&["pause", "--peer", "b"]);
    until_peer(&pair.a, "b", "paused");
    until_peer(&pair.b, "a", "paused");
    pair.a.write("y", "2");
    pair.b.write("z", "3");
    assert!(wait_fails_at_once(&pair.a).contains("the peer b is paused"));
    let said = wait_fails_at_once(&pair.b);
    assert!(said.contains("paused on a"), "{said}");
    pair.a.stop();
    pair.a.start();
    until_peer(&pair.a, "b", "paused");
    assert!(wait_fails_at_once(&pair.a).contains("the peer b is paused"));
    assert_eq!((pair.b.read("y"), pair.a.read("z")), (None, None));
    assert!(refused(&pair.a, &["pause", "--peer", "nobody"]).contains("no peer named 'nobody'"));
    pair.a.ok(&["resume", "--peer", "b"]);
    until_peer(&pair.b, "a", "connected");
    pair.wait();
    assert_eq!((pair.b.read("y").as_deref(), pair.a.read("z").as_deref()), (Some("2"), Some("3")));
    // The same from the side that is dialled.
    pair.b.ok(&["pause", "--peer", "a"]);
    until_peer(&pair.b, "a", "paused");
    until_peer(&pair.a, "b", "paused");
    assert!(wait_fails_at_once(&pair.a).contains("paused on b"));
    pair.b.ok(&["resume", "--peer", "a"]);
    until_peer(&pair.a, "b", "connected");
    pair.wait();
}

#[test]
fn a_replaced_root_halts_until_it_is_approved_and_is_filled_again() {
    let pair = Pair::new().start();
    for (path, content) in [("x", "of both"), ("d/y", "deep"), ("same", "equal")] {
        pair.a.write(path, content);
    }
    pair.wait();
    assert!(pair.a.fails(&["approve", "--tree", "t"]).contains("nothing to approve"));
    for (round, marker) in [None, Some("another's")].into_iter().enumerate() {
        // Put together beside it, so that the root is never a directory that is half there.
        let made = pair.a.dir.join("made");
        fs::create_dir(&made).unwrap();
        fs::write(made.join(format!("own{round}")), "own").unwrap();
        fs::write(made.join("x"), "stale").unwrap();
        fs::write(made.join("same"), "equal").unwrap();
        age(&made.join("x"));
        if let Some(marker) = marker {
            fs::create_dir(made.join(".pleach")).unwrap();
            fs::write(made.join(".pleach/root"), marker).unwrap();
        }
        fs::rename(pair.a.root(), pair.a.dir.join(format!("old{round}"))).unwrap();
        fs::rename(&made, pair.a.root()).unwrap();
        until("a's tree knows that it was swapped", || {
            let tree = pair.a.tree_status("t");
            tree["state"] == "error" && tree["error"].as_str().unwrap().contains("not the directory")
        });
        until("b hears of it", || peer_tree(&pair.b, "a", "t")["state"] == "error");
        let said = pair.b.fails(&["wait", "--timeout", "0.2"]);
        assert!(said.contains("tree t: a: the tree is closed there"), "{said}");
        assert_eq!(pair.a.run(&["status", "--check"]).status.code(), Some(1));
        assert_eq!(pair.b.read("x").as_deref(), Some("of both"));
        pair.a.ok(&["approve", "--tree", "t"]);
        until_tree(&pair.a, "t", "watching");
        pair.wait();
        assert_eq!(pair.a.read("x").as_deref(), Some("of both"), "an older file beat a newer one");
        assert_eq!(pair.a.read("d/y").as_deref(), Some("deep"));
        assert_eq!(pair.b.read(&format!("own{round}")).as_deref(), Some("own"));
        assert_eq!(pair.b.read("own0").as_deref(), Some("own"), "the second approval deleted something");
        assert!(pair.a.fails(&["approve"]).contains("nothing to approve"));
    }
    pair.b.write("x", "after");
    pair.wait();
}

#[test]
fn a_root_that_was_away_goes_on_by_itself() {
    let pair = Pair::new().start();
    pair.a.write("x", "1");
    pair.a.write("d/y", "2");
    pair.wait();
    let away = pair.a.dir.join("away");
    fs::rename(pair.a.root(), &away).unwrap();
    until_tree(&pair.a, "t", "error");
    let said = pair.a.fails(&["approve", "--tree", "t"]);
    assert!(said.contains("tree t: the root"), "what cannot be approved was: {said}");
    fs::write(away.join("x"), "changed while away").unwrap();
    fs::remove_file(away.join("d/y")).unwrap();
    pair.b.write("z", "3");
    fs::rename(&away, pair.a.root()).unwrap();
    until_tree(&pair.a, "t", "watching");
    pair.wait();
    assert_eq!(pair.b.read("x").as_deref(), Some("changed while away"));
    assert_eq!((pair.b.read("d/y"), pair.a.read("z").as_deref()), (None, Some("3")));
    assert_eq!(pair.a.tree_status("t")["error"], Value::Null);
}

#[test]
fn a_disk_that_went_back_halts_until_it_is_approved() {
    a_disk_goes_back(Node::stop);
}

#[test]
fn a_disk_that_went_back_after_a_kill_halts_until_it_is_approved() {
    a_disk_goes_back(Node::kill);
}

fn a_disk_goes_back(end: fn(&mut Node)) {
    let mut pair = Pair::new().start();
    pair.a.write("x", "old");
    pair.a.write("gone", "deleted after the backup");
    pair.wait();
    let backup = pair.a.dir.join("backup");
    copy(&pair.a.root(), &backup);
    pair.a.write("x", "new");
    pair.a.write("d/later", "created after the backup");
    fs::remove_file(pair.a.at("gone")).unwrap();
    pair.wait();
    end(&mut pair.a);
    fs::rename(pair.a.root(), pair.a.dir.join("broken")).unwrap();
    fs::rename(&backup, pair.a.root()).unwrap();
    pair.a.start();
    until("a's tree knows that its disk went back", || {
        let tree = pair.a.tree_status("t");
        tree["state"] == "error" && tree["error"].as_str().unwrap().contains("older")
    });
    assert_eq!(pair.b.read("d/later").as_deref(), Some("created after the backup"));
    let said = pair.a.fails(&["rescan"]);
    assert!(said.contains("pleach approve --tree t"), "{said}");
    pair.a.ok(&["approve"]);
    pair.wait();
    assert_eq!(pair.a.read("x").as_deref(), Some("new"));
    assert_eq!(pair.a.read("d/later").as_deref(), Some("created after the backup"));
}

#[test]
fn a_full_disk_under_the_state_stops_its_trees_until_there_is_room() {
    let mut pair = Pair::new().start();
    pair.a.write("x", "before");
    pair.wait();
    pair.a.stop();
    let (trees, backup) = (pair.a.state().join("trees"), pair.a.dir.join("backup"));
    copy(&trees, &backup);
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(&trees).output().unwrap();
    if !mount.status.success() {
        eprintln!("left out: a tmpfs cannot be mounted here: {}", String::from_utf8_lossy(&mount.stderr));
        return;
    }
    let mounted = Mounted(trees.clone());
    for entry in fs::read_dir(&backup).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &trees.join(entry.file_name()));
    }
    pair.a.start();
    pair.wait();
    for round in 0..2 {
        let filler = fs::File::create(trees.join("filler")).unwrap();
        let disk = rustix::fs::statvfs(&trees).unwrap();
        let free = disk.f_bfree * disk.f_frsize - (1 << 20);
        rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), 0, free).unwrap();
        drop(filler);
        for file in 0..6_000 {
            pair.a.write(&format!("{round}/{}/{file}", file / 500), "content");
        }
        pair.b.write(&format!("from b {round}"), "meanwhile");
        until("the tree says why it stands still", || {
            let tree = pair.a.tree_status("t");
            tree["state"] == "error" && tree["error"].as_str().unwrap().contains("once there is room")
        });
        fs::remove_file(trees.join("filler")).unwrap();
        pair.wait();
        same(&pair.a.root(), &pair.b.root());
    }
    let log = pair.a.log();
    assert!(!log.contains("broken"), "{log}");
    pair.a.stop();
    drop(mounted);
}

struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

#[test]
fn a_store_that_went_back_pairs_and_deletes_nothing_newer() {
    let mut pair = Pair::new().start();
    for (path, content) in [("x", "old"), ("kept", "kept"), ("gone", "deleted after the backup")] {
        pair.a.write(path, content);
    }
    pair.wait();
    pair.a.stop();
    let trees = pair.a.state().join("trees");
    let backup = pair.a.dir.join("backup");
    copy(&trees, &backup);
    pair.a.start();
    pair.a.write("x", "new");
    pair.a.write("d/later", "created after the backup");
    fs::remove_file(pair.a.at("gone")).unwrap();
    pair.wait();
    assert_eq!(pair.b.read("gone"), None);
    pair.a.stop();
    pair.b.write("kept", "edited meanwhile");
    fs::rename(&trees, pair.a.dir.join("broken")).unwrap();
    fs::rename(&backup, &trees).unwrap();
    pair.a.start();
    pair.wait();
    for (path, content) in [("x", "new"), ("d/later", "created after the backup"), ("kept", "edited meanwhile")] {
        assert_eq!(pair.a.read(path).as_deref(), Some(content), "{path}");
    }
    assert_eq!(pair.a.read("gone"), None, "b remembers the deletion");
    pair.a.write("after", "1");
    pair.b.write("before", "2");
    pair.wait();
}

#[test]
fn a_reload_adds_a_tree_and_a_peer_and_disturbs_nobody() {
    let mut pair = Pair::with("", "trees = [\"t\"]").start();
    pair.wait();
    let (pid, before) = (pair.a.pid(), sessions(&pair.a, "b"));
    assert_eq!(before, 1, "{}", pair.a.log());
    let mut c = Node::new(pair.base.path(), "c");
    c.tree("u", "tree", "").peer("a", &pair.a.key.clone(), Some(pair.a.port), "");
    c.start();
    pair.a.tree("u", "second", "").peer("c", &c.key.clone(), None, "trees = [\"u\"]");
    let good = fs::read_to_string(pair.a.config_file()).unwrap();
    fs::write(pair.a.config_file(), good.replace("[[tree]]", "[[treee]]")).unwrap();
    pair.a.signal(Signal::HUP);
    until("status says what is wrong with the config", || {
        pair.a.status()["config_error"].as_str().is_some_and(|error| error.contains("treee"))
    });
    assert_eq!(pair.a.status()["trees"].as_array().unwrap().len(), 1);
    fs::write(pair.a.config_file(), &good).unwrap();
    pair.a.signal(Signal::HUP);
    until("the config is good again", || pair.a.status()["config_error"].is_null());
    fs::write(c.at("from c"), "1").unwrap();
    fs::write(pair.a.dir.join("second/from a"), "2").unwrap();
    c.wait();
    pair.wait();
    same(&c.root(), &pair.a.dir.join("second"));
    assert_eq!((pair.a.pid(), sessions(&pair.a, "b")), (pid, before), "the session with b began anew");
    // What asks for a restart is refused, and changes nothing.
    pair.a.reword("name = \"a\"", "name = \"renamed\"");
    pair.a.signal(Signal::HUP);
    until("a new name is refused", || {
        pair.a.status()["config_error"].as_str().is_some_and(|error| error.contains("restart"))
    });
    assert_eq!(pair.a.status()["node"], "a");
    pair.a.wait();
}

#[test]
fn a_state_and_a_root_have_one_agent() {
    let mut pair = Pair::new().start();
    pair.a.write("x", "1");
    pair.wait();
    let second = pair.a.run(&["agent"]);
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains(&format!("pid {}", pair.a.pid())), "{said}");
    assert!(said.contains(pair.a.state().to_str().unwrap()), "{said}");
    pair.a.wait();

    let mut other = Node::new(pair.base.path(), "other");
    other.say(&format!("[[tree]]\nname = \"t\"\npath = {:?}\n", pair.a.root()));
    other.start();
    until("the second agent's tree names the first", || {
        let tree = other.tree_status("t");
        let error = tree["error"].as_str().unwrap_or_default().to_owned();
        tree["state"] == "error" && error.contains(&pair.a.pid().to_string()) && error.contains("state")
    });
    pair.a.write("y", "2");
    pair.wait();
    // It has it once the first lets go.
    pair.a.stop();
    until_tree(&other, "t", "watching");
    assert_eq!(other.tree_status("t")["entries"], 2);
}

#[test]
fn a_clone_is_refused_and_the_original_goes_on() {
    let pair = Pair::new().start();
    pair.wait();
    let mut clone = Node::new(pair.base.path(), "clone");
    copy(&pair.a.state().join("host_key"), &clone.state().join("host_key"));
    clone.tree("t", "tree", "").peer("b", &pair.b.key.clone(), Some(pair.b.port), "");
    clone.write("of the clone", "1");
    clone.start();
    let says = |node: &Node, peer: &str| {
        let error = node.peer_status(peer)["error"].as_str().unwrap_or_default().to_owned();
        error.contains("two nodes use this key") && error.contains("pleach key --new")
    };
    until("the clone is told", || says(&clone, "b") && clone.peer_status("b")["state"] == "refused");
    until("the node in the middle says so", || says(&pair.b, "a"));
    until("the original is told", || says(&pair.a, "b"));
    assert_eq!(pair.b.peer_status("a")["state"], "connected");
    pair.a.write("x", "1");
    pair.wait();
    assert_eq!(pair.b.read("of the clone"), None);
}

#[test]
fn a_wrong_key_is_refused_with_both_fingerprints() {
    let base = tempfile::tempdir().unwrap();
    let mut nodes = ["a", "b", "c"].map(|name| Node::new(base.path(), name));
    let [a, b, c] = &mut nodes;
    b.tree("t", "tree", "").peer("a", &a.key.clone(), None, "").peer("c", &c.key.clone(), None, "");
    a.tree("t", "tree", "").peer("b", &c.key.clone(), Some(b.port), "");
    c.tree("t", "tree", "").peer("b", &b.key.clone(), Some(b.port), "");
    for node in [&mut *a, &mut *b, &mut *c] {
        node.start();
    }
    let ids = [&*b, &*c].map(|node| node.status()["id"].as_str().unwrap().to_owned());
    until("a names what it found and what it expected", || {
        let peer = a.peer_status("b");
        let error = peer["error"].as_str().unwrap_or_default().to_owned();
        peer["state"] == "refused" && ids.iter().all(|id| error.contains(id))
    });
    until_tree(b, "t", "watching");
    assert_eq!(b.status()["config_error"], Value::Null);
    assert_ne!(b.peer_status("a")["state"], "connected");
    c.write("x", "1");
    until("c and b go on", || b.read("x").as_deref() == Some("1"));
    assert_eq!(a.read("x"), None);
}

#[test]
fn a_settling_file_is_taken_after_quiet_or_by_a_wait() {
    let mut pair = Pair::with("settle = \"1s\"", "").start();
    pair.wait();
    let mut written = Vec::new();
    let mut seen = None;
    until("the rewriting is over", || {
        if written.len() < 20 {
            written.push(Instant::now());
            pair.a.write("x", &written.len().to_string());
        }
        // The writer's pace, not a wait for anything.
        std::thread::sleep(Duration::from_millis(80));
        let now = pair.b.read("x").and_then(|text| text.parse::<usize>().ok());
        if now != seen
            && let Some(n) = now
        {
            let until = written.get(n).copied().unwrap_or_else(Instant::now);
            let quiet = until.duration_since(written[n - 1]);
            assert!(quiet >= Duration::from_millis(900), "version {n} was taken after {quiet:?}");
            seen = now;
        }
        seen == Some(20)
    });
    pair.a.reword("settle = \"1s\"", "settle = \"10m\"").signal(Signal::HUP);
    until("the reload is done", || pair.a.log().contains("the config was read again"));
    pair.a.write("y", "1");
    pair.wait();
    assert_eq!(pair.b.read("y").as_deref(), Some("1"));
}

#[test]
fn a_file_held_open_is_taken_as_the_config_says_and_by_a_wait() {
    let mut pair = Pair::with("open_files = \"never\"", "").start();
    pair.wait();
    let mut held = fs::File::create(pair.a.at("held")).unwrap();
    held.write_all(b"one").unwrap();
    pair.a.write("fence", "1");
    until("b has what came later", || pair.b.read("fence").is_some());
    assert_eq!(pair.b.read("held"), None);
    pair.wait();
    assert_eq!(pair.b.read("held").as_deref(), Some("one"), "a wait did not take an open file");
    held.write_all(b" two").unwrap();
    pair.a.write("fence", "2");
    until("b has what came later", || pair.b.read("fence").as_deref() == Some("2"));
    assert_eq!(pair.b.read("held").as_deref(), Some("one"));
    drop(held);
    until("b has the closed file", || pair.b.read("held").as_deref() == Some("one two"));

    pair.a.reword("open_files = \"never\"", "open_files = \"1s\"").signal(Signal::HUP);
    until("the reload is done", || pair.a.log().contains("the config was read again"));
    pair.a.wait();
    let mut held = fs::File::create(pair.a.at("quiet")).unwrap();
    let began = Instant::now();
    held.write_all(b"still open").unwrap();
    until("b has the file that is quiet", || pair.b.read("quiet").as_deref() == Some("still open"));
    assert!(began.elapsed() >= Duration::from_secs(1), "taken after {:?}", began.elapsed());
    drop(held);
    pair.wait();
}

/// Found by the random test (seed 29): making a link tells of the new name alone.
#[test]
fn a_wait_takes_a_change_through_a_link_that_was_just_made() {
    let pair = Pair::new().start();
    pair.a.write("first", "1");
    pair.wait();
    fs::hard_link(pair.a.at("first"), pair.a.at("second")).unwrap();
    until("b has the link", || pair.b.read("second").is_some());
    fs::set_permissions(pair.a.at("second"), fs::Permissions::from_mode(0o751)).unwrap();
    pair.a.wait();
    let mode = |name: &str| fs::metadata(pair.b.at(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("first"), mode("second")), (0o751, 0o751));
}

#[test]
fn the_journal_tells_what_happened() {
    let pair = Pair::new().start();
    pair.wait();
    pair.a.write("x", "one");
    pair.wait();
    pair.b.write("x", "three");
    pair.wait();
    fs::set_permissions(pair.a.at("x"), fs::Permissions::from_mode(0o600)).unwrap();
    pair.wait();
    fs::remove_file(pair.a.at("x")).unwrap();
    pair.wait();
    for node in [&pair.a, &pair.b] {
        let rows: Vec<Value> = node.rows(&["log"]).into_iter().filter(|row| row["path"] == "x").collect();
        let told = |row: &Value| json!([row["op"], row["node"], row["size"], row["hash"], row["was"]]);
        let told: Vec<Value> = rows.iter().map(told).collect();
        assert_eq!(
            told,
            [
                json!(["create", "a", 3, b3("one"), null]),
                json!(["modify", "b", 5, b3("three"), b3("one")]),
                json!(["meta", "a", 5, b3("three"), b3("three")]),
                json!(["delete", "a", null, null, b3("three")]),
            ],
            "{}",
            node.name
        );
        let seqs: Vec<u64> = rows.iter().map(|row| row["seq"].as_u64().unwrap()).collect();
        assert!(seqs.is_sorted_by(|left, right| left < right), "{seqs:?}");
        for row in &rows {
            assert_eq!((&row["tree"], &row["from"]), (&"t".into(), &Value::Null));
            assert!(row["time"].as_str().unwrap().ends_with('Z'), "{row}");
        }
        let since = node.rows(&["log", "--tree", "t", "--since", &seqs[2].to_string()]);
        assert_eq!(since, rows[2..], "{}", node.name);
        let text = node.ok(&["log", "--since", &seqs[3].to_string()]);
        let fields: Vec<&str> = text.trim_end().split('\t').collect();
        assert_eq!((fields[0], fields[2], fields[3], fields[5]), (seqs[3].to_string().as_str(), "t", "x", "delete"));
    }
    assert!(refused(&pair.a, &["log", "--tree", "nope"]).contains("no tree named 'nope'"));
}

/// A command whose lines are read as they come.
struct Lines {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Lines {
    fn of(node: &Node, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.arg(args[0]).arg("--config").arg(node.config_file()).args(&args[1..]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = mpsc::channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        Self { child, lines }
    }

    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).unwrap()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_followed_journal_goes_on() {
    let pair = Pair::new().start();
    pair.a.write("x", "1");
    pair.wait();
    let follow = Lines::of(&pair.b, &["log", "--follow", "--json"]);
    let path = |line: String| serde_json::from_str::<Value>(&line).unwrap()["path"].clone();
    assert_eq!(path(follow.next()), "x");
    for name in ["y", "z"] {
        pair.a.write(name, "2");
        assert_eq!(path(follow.next()), name);
    }
}

#[test]
fn versions_come_back_from_the_vault() {
    let pair = Pair::new().start();
    pair.a.write("f", "one");
    pair.a.write("d/1", "first");
    pair.a.write("d/e/2", "second");
    pair.wait();
    pair.b.write("f", "two");
    fs::remove_dir_all(pair.b.at("d")).unwrap();
    pair.wait();
    let path = |name: &str| pair.a.at(name).to_str().unwrap().to_owned();
    let found = pair.a.rows(&["versions", &path("f")]);
    assert_eq!(found.len(), 1, "{found:?}");
    let row = &found[0];
    assert_eq!(json!([row["tree"], row["path"], row["size"], row["hash"]]), json!(["t", "f", 3, b3("one")]), "{row}");
    assert!(row["reason"].is_string() && row["time"].is_string(), "{row}");
    let first = row["version"].as_str().unwrap().to_owned();

    let out = pair.base.path().join("out");
    let to = out.to_str().unwrap();
    pair.a.ok(&["restore", &path("f"), "--version", &first, "--to", to]);
    assert_eq!(fs::read_to_string(out.join("f")).unwrap(), "one");
    fs::write(out.join("f"), "precious").unwrap();
    let said = pair.a.fails(&["restore", &path("f"), "--to", to]);
    assert!(said.contains("exist"), "{said}");
    assert_eq!(fs::read_to_string(out.join("f")).unwrap(), "precious");
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "something was left behind");

    // In place: also what nobody has heard of yet goes to the vault.
    pair.a.write("f", "three");
    pair.a.ok(&["restore", &path("f"), "--version", &first]);
    pair.wait();
    assert_eq!(pair.b.read("f").as_deref(), Some("one"));
    let kept: Vec<Value> = pair.a.rows(&["versions", &path("f")]).iter().map(|row| row["hash"].clone()).collect();
    assert!(kept.contains(&b3("three").into()), "{kept:?}");

    let mut gone: Vec<Value> = pair
        .a
        .rows(&["versions", &path("d")])
        .iter()
        .filter(|r| !r["hash"].is_null())
        .map(|r| r["path"].clone())
        .collect();
    gone.sort_by_key(ToString::to_string);
    assert_eq!(gone, ["d/1", "d/e/2"]);
    pair.a.ok(&["restore", &path("d"), "--to", to]);
    assert_eq!(fs::read_to_string(out.join("d/e/2")).unwrap(), "second");
    pair.a.ok(&["restore", &path("d")]);
    pair.wait();
    assert_eq!(pair.b.read("d/1").as_deref(), Some("first"));
    assert_eq!(pair.b.read("d/e/2").as_deref(), Some("second"));
}

/// Makes a directory unwritable even for root, where the file system can; undone when it goes.
struct Immutable<'p>(&'p Path);

impl<'p> Immutable<'p> {
    fn make(dir: &'p Path) -> Option<Self> {
        let status = Command::new("chattr").arg("+i").arg(dir).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        Command::new("chattr").arg("-i").arg(self.0).status().ok();
    }
}

#[test]
fn a_path_that_cannot_be_applied_is_a_problem_until_it_is_mended() {
    let pair = Pair::new().start();
    pair.a.write("d/x", "1");
    pair.wait();
    until("all is in sync", || pair.a.run(&["status", "--check"]).status.success());
    let dir = pair.b.at("d");
    let Some(immutable) = Immutable::make(&dir) else {
        eprintln!("skipped: no directory can be made immutable here");
        return;
    };
    pair.a.write("d/y", "2");
    pair.a.write("z", "3");
    // With the file, the time of its directory cannot be set either.
    let names = |path: &str| pair.b.rows(&["problems", "--tree", "t"]).iter().any(|row| row["path"] == path);
    until("b names the problem", || names("d/y"));
    for row in pair.b.rows(&["problems"]) {
        assert_eq!(row["tree"], "t");
        assert!(row["reason"].as_str().unwrap().contains("not permitted"), "{row}");
    }
    until("status counts it", || {
        let listed = pair.b.rows(&["problems"]).len();
        listed > 0 && pair.b.tree_status("t")["problems"] == listed
    });
    until("one path holds up no other", || pair.b.read("z").is_some());
    let said = pair.b.fails(&["wait", "--timeout", "0.5"]);
    assert!(said.contains("d/y"), "{said}");
    let said = pair.a.fails(&["wait", "--timeout", "0.5"]);
    assert!(said.contains("paths cannot be applied there") && said.contains("tree t: b: "), "{said}");
    for node in [&pair.a, &pair.b] {
        let check = node.run(&["status", "--check"]);
        assert_eq!(check.status.code(), Some(1), "{}: {check:?}", node.name);
    }
    drop(immutable);
    pair.wait();
    assert_eq!(pair.b.rows(&["problems"]), Vec::<Value>::new());
    assert_eq!(pair.b.tree_status("t")["problems"], 0);
    until("all is in sync", || [&pair.a, &pair.b].iter().all(|node| node.run(&["status", "--check"]).status.success()));
}

#[test]
fn a_rescan_mints_nothing() {
    let pair = Pair::new().start();
    for name in ["x", "d/y", "d/e/z"] {
        pair.a.write(name, name);
    }
    pair.wait();
    let seqs = || [&pair.a, &pair.b].map(|node| node.tree_status("t")["seq"].clone());
    let before = seqs();
    pair.a.ok(&["rescan"]);
    pair.b.ok(&["rescan", "--tree", "t"]);
    pair.wait();
    assert_eq!(seqs(), before, "{:?}", pair.a.rows(&["log"]));
}

#[test]
fn ignored_paths_do_not_travel_and_go_nowhere() {
    let pair = Pair::with("ignore = [\"*.swp\"]", "").start();
    pair.a.write("x.swp", "1");
    pair.a.write("x.log", "1");
    pair.a.write("cache/deep", "1");
    pair.a.write("fence", "1");
    pair.wait_apart();
    assert_eq!(pair.b.read("x.swp"), None);
    assert_eq!(pair.b.read("x.log").as_deref(), Some("1"));
    // Becoming ignored deletes nowhere.
    pair.a.write(".pleachignore", "*.log\n/cache/\n");
    pair.wait_apart();
    assert_eq!(pair.b.read(".pleachignore").as_deref(), Some("*.log\n/cache/\n"));
    pair.a.write("x.log", "2");
    pair.a.write("new.log", "2");
    fs::remove_dir_all(pair.a.at("cache")).unwrap();
    pair.a.write("fence", "2");
    pair.wait_apart();
    assert_eq!(pair.b.read("fence").as_deref(), Some("2"));
    assert_eq!((pair.b.read("x.log").as_deref(), pair.b.read("new.log")), (Some("1"), None));
    assert_eq!(pair.b.read("cache/deep").as_deref(), Some("1"));
    assert_eq!((pair.a.read("x.log").as_deref(), pair.a.at("cache").exists()), (Some("2"), false));
    // No longer ignored: both sides pair, the younger wins, nothing is deleted, what is missing comes.
    fs::remove_file(pair.a.at(".pleachignore")).unwrap();
    pair.wait_apart();
    // Each node reads its new rules when the file is gone there, which may be behind the wait.
    for (path, content) in [("x.log", "2"), ("new.log", "2"), ("cache/deep", "1")] {
        for node in [&pair.a, &pair.b] {
            until(&format!("{path} on {}", node.name), || node.read(path).as_deref() == Some(content));
        }
    }
    pair.wait_apart();
}

trait WaitApart {
    fn wait_apart(&self);
}

impl WaitApart for Pair {
    /// Both have all that travels; their trees may differ.
    fn wait_apart(&self) {
        self.a.wait();
        self.b.wait();
    }
}

/// A word for each kind of value.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_u64() => "count",
        Value::Number(_) => "number",
        Value::String(_) => "text",
        Value::Array(_) => "list",
        Value::Object(_) => "object",
    }
}

fn assert_fields(row: &Value, fields: &[(&str, &[&str])]) {
    for (name, kinds) in fields {
        let value = row.get(name).unwrap_or_else(|| panic!("no {name} in {row}"));
        assert!(kinds.contains(&kind(value)), "{name} is {value}, want {kinds:?}");
    }
}

#[test]
fn the_status_has_every_field_of_the_contract() {
    let pair = Pair::new().start();
    pair.a.write("x", "123");
    pair.wait();
    let status = pair.a.status();
    let (count, text): (&[&str], &[&str]) = (&["count"], &["text"]);
    let number: &[&str] = &["number", "count"];
    assert_fields(
        &status,
        &[
            ("node", text),
            ("id", text),
            ("version", text),
            ("uptime_s", number),
            ("config_error", &["null"]),
            ("trees", &["list"]),
            ("peers", &["list"]),
        ],
    );
    assert!(status["id"].as_str().unwrap().starts_with("SHA256:"));
    let tree = pair.a.tree_status("t");
    assert_fields(&tree, &[("path", text), ("state", text), ("in_sync", &["bool"]), ("mounts", &["list"])]);
    for name in ["entries", "bytes", "seq", "conflicts", "problems", "watches", "watch_limit"] {
        assert_fields(&tree, &[(name, count)]);
    }
    assert_fields(
        &tree,
        &[("polled_dirs", count), ("overflows", count), ("local_changes", count), ("error", &["null"])],
    );
    assert_eq!((&tree["entries"], &tree["bytes"]), (&1.into(), &3.into()));
    assert!(tree["watches"].as_u64().unwrap() > 0);
    let peer = pair.a.peer_status("b");
    assert_fields(&peer, &[("state", text), ("error", &["null"]), ("rtt_ms", number), ("last_seen_s", number)]);
    assert_eq!((&peer["kind"], &peer["state"]), (&"pleach".into(), &"connected".into()));
    let row = peer_tree(&pair.a, "b", "t");
    assert_eq!(row["state"], "ok");
    for name in ["to_send", "to_send_bytes", "to_receive", "to_receive_bytes", "acked_seq"] {
        assert_fields(&row, &[(name, count)]);
    }
    assert_eq!(row["acked_seq"], tree["seq"]);
}

#[test]
fn before_the_first_contact_times_are_null() {
    let pair = Pair::new();
    let mut a = pair.a;
    pair.link.cut();
    a.start();
    until("the peer cannot be reached", || a.peer_status("b")["state"] == "unreachable");
    let peer = a.peer_status("b");
    assert_fields(&peer, &[("rtt_ms", &["null"]), ("last_seen_s", &["null"]), ("error", &["text"])]);
    assert_eq!(a.tree_status("t")["in_sync"], false);
    assert!(a.fails(&["wait", "--timeout", "0.2"]).contains("b: not connected"));
}

#[test]
fn systemd_hears_how_the_agent_is() {
    let base = tempfile::tempdir().unwrap();
    let mut node = Node::new(base.path(), "a");
    node.tree("t", "tree", "");
    let path = base.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
    command.args(["agent", "--config"]).arg(node.config_file()).stderr(Stdio::null());
    let mut agent = command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "200000").spawn().unwrap();
    let hear = |word: &str| {
        let mut buffer = [0; 256];
        loop {
            let heard = socket.recv(&mut buffer).unwrap();
            let text = std::str::from_utf8(&buffer[..heard]).unwrap();
            if text.lines().any(|line| line == word) {
                return;
            }
            assert!(text.starts_with("WATCHDOG=1"), "{text}, while {word} is awaited");
        }
    };
    let pid = Pid::from_raw(i32::try_from(agent.id()).unwrap()).unwrap();
    hear("READY=1");
    assert!(node.run(&["status"]).status.success(), "ready, but nobody answers");
    hear("WATCHDOG=1");
    kill_process(pid, Signal::HUP).unwrap();
    hear("RELOADING=1");
    hear("READY=1");
    kill_process(pid, Signal::TERM).unwrap();
    hear("STOPPING=1");
    assert!(agent.wait().unwrap().success());
}

#[test]
fn what_cannot_be_meant_is_refused_clearly() {
    let mut pair = Pair::new().start();
    pair.a.write("x", "1");
    pair.wait();
    let a = &mut pair.a;
    let (inside, outside) = (a.at("x").to_str().unwrap().to_owned(), a.dir.join("log").to_str().unwrap().to_owned());
    for command in ["versions", "restore"] {
        let said = refused(a, &[command, &outside]);
        assert!(said.starts_with(&format!("pleach: {command}: ")) && said.contains("lies in no tree"), "{said}");
    }
    assert!(refused(a, &["resolve", &outside, "--keep", "current"]).contains("lies in no tree"));
    for command in ["wait", "log", "problems", "conflicts", "rescan", "pause", "resume", "approve"] {
        let said = refused(a, &[command, "--tree", "nope"]);
        assert!(said.contains("there is no tree named 'nope'") && said.contains("the trees are: t"), "{said}");
    }
    assert!(refused(a, &["resume", "--peer", "nope"]).contains("no peer named 'nope'"));
    let said = a.fails(&["restore", &inside, "--version", "0000"]);
    assert!(said.starts_with("pleach: restore: ") && said.contains("0000"), "{said}");
    let said = a.fails(&["restore", &inside]);
    assert!(said.starts_with("pleach: restore: "), "{said}");
    let said = a.fails(&["resolve", &inside, "--keep", "current"]);
    assert!(said.starts_with("pleach: resolve: "), "{said}");
    assert_eq!(a.rows(&["versions", &inside]), Vec::<Value>::new());
    a.stop();
    for command in ["status", "wait", "rescan", "problems"] {
        assert!(a.fails(&[command]).contains("start it: pleach agent"), "{command}");
    }
}

#[test]
fn a_touch_of_the_root_is_nobodys_change() {
    let pair = Pair::new().start();
    pair.a.write("f", "1");
    pair.wait();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    fs::File::open(pair.a.root()).unwrap().set_modified(time).unwrap();
    pair.a.write("f", "2");
    pair.wait();
    assert_eq!(pair.a.tree_status("t")["problems"], 0);
}
