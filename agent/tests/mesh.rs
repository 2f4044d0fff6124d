//! Agents that exchange trees: two, three, a mesh; cut lines, kills, conflicts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cluster::{Link, Mesh, Node, Pair, at_once, same, snapshot, until};
use pleach_agent::keys::{self, HostKey};
use pleach_agent::ssh::{PublicKey, dial};
use pleach_protocol::session::{Moment, Output, Session, SessionConfig};
use pleach_protocol::wire::Hello;
use rustix::process::Signal;
use serde_json::{Value, json};

/// Content of which no part equals another, too large to travel inline.
fn large(seed: u64) -> String {
    (0..20_000).map(|line| format!("{seed} {line:015}\n")).collect()
}

fn names(dir: &Path) -> BTreeSet<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(dir).unwrap().map(name).collect()
}

/// Brings a version back into an empty directory; gives its content.
fn restored(node: &Node, row: &Value) -> String {
    let to = tempfile::tempdir_in(&node.dir).unwrap();
    let (path, version) = (row["path"].as_str().unwrap(), row["version"].as_str().unwrap());
    node.ok(&["restore", node.at(path).to_str().unwrap(), "--version", version, "--to", to.path().to_str().unwrap()]);
    fs::read_to_string(to.path().join(path)).unwrap()
}

fn resolve(node: &Node, path: &str, keep: &str) {
    node.ok(&["resolve", node.at(path).to_str().unwrap(), "--keep", keep]);
}

/// Restored from a tape, or copied by rsync -a, before pleach came.
#[test]
fn trees_that_were_copied_exchange_little() {
    const PATHS: usize = 40 * 51;
    let pair = Pair::new();
    for dir in 0..40 {
        for file in 0..50 {
            pair.a.write(&format!("d{dir}/file number {file}"), &format!("content {file} of {dir}"));
        }
    }
    let copied = Command::new("cp").arg("-a").arg(pair.a.at(".")).arg(pair.b.root()).status().unwrap();
    assert!(copied.success());
    let pair = pair.start();
    pair.wait();
    let sent = pair.link.bytes.load(Ordering::SeqCst);
    println!("{sent} bytes for {PATHS} paths");
    assert!(sent < 15 * PATHS, "{sent} bytes for {PATHS} paths");
    let found = fs::metadata(pair.b.at("d7/file number 9")).unwrap().ino();
    // And what happens afterwards is exchanged as ever.
    pair.a.write("d7/file number 9", "changed");
    fs::remove_file(pair.b.at("d8/file number 9")).unwrap();
    pair.wait();
    assert_eq!(pair.b.read("d7/file number 9").as_deref(), Some("changed"));
    assert_ne!(fs::metadata(pair.b.at("d7/file number 9")).unwrap().ino(), found);
    assert_eq!(pair.a.read("d8/file number 9"), None);
    assert!(pair.a.conflicts().is_empty() && pair.b.conflicts().is_empty());
}

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

/// inotify tells nothing of what is written through a name outside of the tree.
#[test]
fn what_is_written_through_a_link_from_elsewhere_travels() {
    let pair = Pair::new().start();
    let outside = pair.a.root().with_file_name("outside");
    fs::write(&outside, "one").unwrap();
    fs::hard_link(&outside, pair.a.at("inside")).unwrap();
    pair.wait();
    fs::write(&outside, "three").unwrap();
    until("a change through a link from elsewhere travels", || pair.b.read("inside").as_deref() == Some("three"));
    fs::write(&outside, "and at once").unwrap();
    pair.a.wait();
    assert_eq!(pair.b.read("inside").as_deref(), Some("and at once"));
    pair.wait();
}

#[test]
fn after_a_cut_both_have_all_and_list_the_same_losers() {
    let pair = Pair::new();
    let shared = ["one", "d/two", "d/large", "deleted by b"];
    shared.iter().for_each(|path| pair.a.write(path, "both"));
    let pair = pair.start();
    pair.wait();
    pair.link.cut();
    for node in [&pair.a, &pair.b] {
        for path in &shared[..2] {
            node.write(path, &format!("{path} of {}", node.name));
        }
        node.write("d/large", &format!("{}{}", node.name, large(1)));
        node.write(&format!("only {}", node.name), "new");
        node.write("new on both", &node.name);
    }
    pair.a.write("deleted by b", "edited by a");
    fs::remove_file(pair.b.at("deleted by b")).unwrap();
    pair.link.join();
    pair.wait();
    assert_eq!(pair.a.read("deleted by b").as_deref(), Some("edited by a"));
    assert_eq!(pair.a.read("only b").as_deref(), Some("new"));
    let listed = pair.a.conflicts();
    let paths: Vec<&str> = listed.iter().map(|row| row[0].as_str().unwrap()).collect();
    assert_eq!(paths, ["d/large", "d/two", "new on both", "one"]);
    assert_eq!(listed, pair.b.conflicts());
    for row in pair.a.rows(&["conflicts"]) {
        let (path, writer) = (row["path"].as_str().unwrap(), row["node"].as_str().unwrap());
        let lost = match path {
            "d/large" => format!("{writer}{}", large(1)),
            "new on both" => writer.to_owned(),
            _ => format!("{path} of {writer}"),
        };
        assert_ne!(pair.a.read(path).as_deref(), Some(lost.as_str()), "the loser is vaulted");
        assert_eq!(row["size"], lost.len());
        for node in [&pair.a, &pair.b] {
            assert_eq!(restored(node, &row), lost, "{path} on {}", node.name);
        }
    }
    // The root is a directory like another.
    pair.a.ok(&["resolve", pair.a.root().to_str().unwrap(), "--keep", "current"]);
    pair.wait();
    assert_eq!(pair.b.conflicts(), Vec::<[Value; 5]>::new());
    assert!(!pair.a.rows(&["versions", pair.a.root().to_str().unwrap()]).is_empty());
}

#[test]
fn a_late_receiver_fetches_from_all_that_have_it() {
    // It dials both as soon as it starts.
    let mut mesh = Mesh::start(&["a", "b", "c"], &[(0, 1), (2, 0), (2, 1)]);
    mesh.nodes[0].write("first", "there");
    mesh.wait();
    mesh.nodes[2].kill();
    let [a, b, _] = &mesh.nodes[..] else { panic!() };
    for n in 0..60 {
        fs::write(a.at(&format!("f{n}")), noise(n, 500_000)).unwrap();
    }
    until("b shows the same", || snapshot(&a.root()) == snapshot(&b.root()));
    let bytes = |mesh: &Mesh| [1, 2].map(|link: usize| mesh.links[link].bytes.load(Ordering::SeqCst));
    let before = bytes(&mesh);
    // One of them is there first, by how much is the machine's affair: what is to be sent takes far longer.
    mesh.links[1..].iter().for_each(|link| link.rate.store(10_000_000, Ordering::SeqCst));
    mesh.nodes[2].start();
    mesh.wait();
    let now = bytes(&mesh);
    let [of_a, of_b] = [now[0] - before[0], now[1] - before[1]];
    println!("{of_a} bytes from a, {of_b} from b");
    assert!(of_a + of_b < 60 * 500_000 * 6 / 5, "hardly anything was sent twice");
    assert!(of_a > (of_a + of_b) / 5 && of_b > (of_a + of_b) / 5, "{of_a} bytes from a, {of_b} from b");
}

#[test]
fn a_line_of_three_relays_content_deletions_and_resolutions() {
    let mesh = Mesh::start(&["a", "b", "c"], &[(0, 1), (1, 2)]);
    let [a, b, c] = &mesh.nodes[..] else { panic!() };
    a.write("small", "from a");
    a.write("d/large", &large(1));
    c.write("small of c", "from c");
    c.write("e/large", &large(2));
    mesh.wait();
    assert_eq!((b.read("e/large"), a.read("e/large")), (Some(large(2)), Some(large(2))));
    fs::remove_file(a.at("small")).unwrap();
    fs::remove_dir_all(c.at("e")).unwrap();
    c.write("d/large", &large(3));
    mesh.wait();
    assert_eq!(names(&a.root()), [".pleach", "d", "small of c"].map(String::from).into());
    assert_eq!(a.read("d/large"), Some(large(3)));

    mesh.at_once(|nodes| {
        for node in [&nodes[0], &nodes[2]] {
            node.write("kept", &format!("kept by {}", node.name));
            node.write("d/large", &format!("{}{}", node.name, large(4)));
        }
    });
    mesh.wait();
    let kept = c.read("kept").unwrap();
    let listed = c.conflicts();
    let [[path, _, writer, ..], _] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(path, "d/large");
    let loser = format!("{}{}", writer.as_str().unwrap(), large(4));
    resolve(c, "kept", "current");
    mesh.wait();
    assert_eq!((a.read("kept"), a.conflicts().len()), (Some(kept), 1));
    resolve(c, "d/large", "vaulted");
    mesh.wait();
    assert_eq!((a.read("d/large"), a.conflicts()), (Some(loser), vec![]));
}

/// How much of a content has arrived in staging.
fn staged(node: &Node) -> u64 {
    let Ok(found) = fs::read_dir(node.at(".pleach/staging")) else { return 0 };
    found.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

#[test]
fn a_large_transfer_goes_on_where_it_broke_off_after_both_were_killed() {
    let mut pair = Pair::new().start();
    pair.wait();
    let content: String = (0..800).map(large).collect();
    let size = content.len() as u64;
    pair.a.write("whole", &content);
    until("a good part has arrived", || staged(&pair.b) > size / 8);
    pair.a.kill();
    pair.b.kill();
    let there = staged(&pair.b);
    assert!(there < size, "the kill came too late to show anything");
    let before = pair.link.bytes.load(Ordering::SeqCst) as u64;
    pair.a.start();
    pair.b.start();
    pair.wait();
    let sent = pair.link.bytes.load(Ordering::SeqCst) as u64 - before;
    println!("{there} of {size} bytes were there, {sent} were sent afterwards");
    assert!(sent < (size - there) + size / 20, "{there} of {size} bytes were there, {sent} were sent afterwards");
    assert_eq!(names(&pair.b.at(".pleach/staging")), BTreeSet::new());
}

#[test]
fn a_limited_peer_is_sent_to_at_its_rate_and_small_changes_overtake() {
    let pair = Pair::with("", "bwlimit = \"5MB/s\"\ncompress = \"off\"").start();
    pair.wait();
    let content: String = (0..30).map(large).collect();
    let began = Instant::now();
    pair.a.write("whole", &content);
    until("the large file is on its way", || staged(&pair.b) > 0);
    pair.a.write("small", "1");
    until("the small one is there", || pair.b.read("small").is_some());
    assert!(pair.b.read("whole").is_none(), "the small change did not overtake the large one");
    pair.wait();
    let least = Duration::from_secs_f64(content.len() as f64 / 5e6 - 0.3);
    assert!(began.elapsed() > least, "{} bytes took {:?}", content.len(), began.elapsed());
}

#[test]
fn what_is_limited_goes_compressed_and_counts_as_such() {
    let pair = Pair::with("", "bwlimit = \"50MB/s\"").start();
    pair.wait();
    let sent = |bytes: &[u8]| {
        let before = pair.link.bytes.load(Ordering::SeqCst);
        fs::write(pair.a.at("f"), bytes).unwrap();
        pair.wait();
        assert!(fs::read(pair.b.at("f")).unwrap() == bytes);
        pair.link.bytes.load(Ordering::SeqCst) - before
    };
    let text: String = (0..30).map(large).collect();
    let there = sent(text.as_bytes());
    assert!(there < text.len() / 2, "{there} of {}", text.len());
    let there = sent(&noise(3, 4 << 20));
    assert!(there > 4 << 20, "{there}");
}

#[test]
fn what_takes_long_over_a_slow_link_goes_compressed() {
    let pair = Pair::new().start();
    pair.wait();
    pair.link.rate.store(10_000_000, Ordering::SeqCst);
    let before = pair.link.bytes.load(Ordering::SeqCst);
    let text: String = (0..150).map(large).collect();
    pair.a.write("f", &text);
    pair.wait();
    let there = pair.link.bytes.load(Ordering::SeqCst) - before;
    assert!(there < text.len() / 2, "{there} of {}", text.len());
    assert!(pair.b.read("f").is_some_and(|read| read == text));
}

#[test]
fn a_renamed_directory_does_not_travel() {
    let pair = Pair::new().start();
    for n in 0..400 {
        pair.a.write(&format!("old/d{:02}/f{n}", n % 20), &format!("{n} ").repeat(2_000));
    }
    pair.a.write("old/large", &large(1));
    pair.wait();
    let before = pair.link.bytes.load(Ordering::SeqCst);
    fs::rename(pair.a.at("old"), pair.a.at("new")).unwrap();
    pair.wait();
    let sent = pair.link.bytes.load(Ordering::SeqCst) - before;
    println!("{sent} bytes for 401 files");
    assert!(sent < 401 * 600, "{sent} bytes for 401 files");
    assert_eq!(names(&pair.b.at(".pleach/vault")), BTreeSet::new(), "nothing was displaced");
}

#[test]
fn a_renamed_directory_is_renamed_as_one_along_a_line() {
    use std::os::unix::fs::MetadataExt;
    let mesh = Mesh::start(&["a", "b", "c"], &[(0, 1), (1, 2)]);
    let [a, b, c] = &mesh.nodes[..] else { panic!() };
    for n in 0..300 {
        a.write(&format!("old/d{:02}/f{n}", n % 20), &format!("{n}"));
    }
    a.write("keeps/it", "there");
    mesh.wait();
    // What was written within a tick is looked at again.
    mesh.wait();
    let inode = |node: &Node, path: &str| fs::metadata(node.at(path)).unwrap().ino();
    for (from, to) in [("old", "new"), ("new", "keeps/old"), ("keeps/old", "old")] {
        let before = [b, c].map(|node| inode(node, from));
        fs::rename(a.at(from), a.at(to)).unwrap();
        mesh.wait();
        assert_eq!([b, c].map(|node| inode(node, to)), before, "{from} to {to}: it is the directory itself that moved");
        for node in [b, c] {
            same(&a.root(), &node.root());
            assert_eq!(names(&node.at(".pleach/vault")), BTreeSet::new(), "nothing was displaced");
        }
    }
}

#[test]
fn kills_at_any_moment_of_a_copy_lose_nothing() {
    let given = |name: &str| std::env::var(name).ok().map(|n| n.parse().unwrap());
    let files = given("PLEACH_KILL_FILES").unwrap_or(1_500);
    let seed = given("PLEACH_KILL_SEED").unwrap_or(1);
    let pair = Pair::new();
    for n in 0..files {
        let content = if n % 300 == 0 { large(n as u64) } else { format!("file {n}") };
        pair.a.write(&format!("d{:02}/f{n}", n % 40), &content);
    }
    let before = snapshot(&pair.a.root());
    let mut pair = pair.start();
    let arrived = |pair: &Pair| {
        let dirs = names(&pair.b.root()).into_iter().filter(|name| name.starts_with('d'));
        dirs.map(|dir| names(&pair.b.at(&dir)).len()).sum::<usize>()
    };
    let mut random = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed as u64);
    for kill in 0..10 {
        // Spread over the copy; within a part at a moment that is drawn.
        until("the copy goes on", || arrived(&pair) >= files * kill / 12);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(random % 60));
        println!("kill {kill}: {} of {files} files are there", arrived(&pair));
        let node = if random & 0x1_0000 == 0 { &mut pair.a } else { &mut pair.b };
        node.kill();
        node.spawn();
    }
    for node in [&pair.a, &pair.b] {
        until("it answers", || node.run(&["status"]).status.success());
    }
    pair.wait();
    assert_eq!(snapshot(&pair.a.root()), before);
    for node in [&pair.a, &pair.b] {
        assert_eq!(names(&node.at(".pleach/staging")), BTreeSet::new());
        assert_eq!(node.conflicts(), Vec::<[Value; 5]>::new());
    }
}

/// Edits of one file at once and a deletion, in a mesh of this shape.
fn converges_and_stays_deleted(names: &[&str], pairs: &[(usize, usize)]) {
    let mut mesh = Mesh::start(names, pairs);
    mesh.nodes[0].write("deleted", &large(1));
    mesh.nodes[1].write("d/deleted too", "small");
    mesh.nodes[1].write("edited", "first");
    mesh.wait();
    mesh.at_once(|nodes| nodes[..2].iter().for_each(|node| node.write("edited", &node.name)));
    mesh.wait();
    let listed = mesh.nodes[0].conflicts();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_ne!(listed[0][2], json!(mesh.nodes[0].read("edited")));

    fs::remove_file(mesh.nodes[0].at("deleted")).unwrap();
    fs::remove_dir_all(mesh.nodes[1].at("d")).unwrap();
    mesh.wait();
    for n in 0..mesh.nodes.len() {
        mesh.nodes[n].stop();
        mesh.nodes[n].start();
    }
    mesh.wait();
    for node in &mesh.nodes {
        assert_eq!(self::names(&node.root()), [".pleach", "edited"].map(String::from).into(), "{}", node.name);
        assert_eq!(node.conflicts(), listed);
    }
}

#[test]
fn a_triangle_converges_and_what_is_deleted_stays_so() {
    converges_and_stays_deleted(&["a", "b", "c"], &[(0, 1), (1, 2), (2, 0)]);
}

#[test]
fn a_ring_converges_and_what_is_deleted_stays_so() {
    converges_and_stays_deleted(&["a", "b", "c", "d"], &[(0, 1), (1, 2), (2, 3), (3, 0)]);
}

#[test]
fn a_lost_store_revives_nothing_and_loses_nothing() {
    let pair = Pair::new();
    for path in ["kept", "edited", "deleted", "d/deleted too"] {
        pair.a.write(path, path);
    }
    pair.a.write("large", &large(1));
    let mut pair = pair.start();
    pair.wait();
    pair.b.stop();
    fs::remove_dir_all(pair.b.state().join("trees")).unwrap();
    fs::remove_file(pair.a.at("deleted")).unwrap();
    fs::remove_file(pair.a.at("large")).unwrap();
    fs::remove_dir_all(pair.a.at("d")).unwrap();
    pair.a.write("edited", "edited by a");
    pair.b.write("own", "of b");
    pair.b.start();
    pair.wait();
    assert_eq!(names(&pair.b.root()), [".pleach", "edited", "kept", "own"].map(String::from).into());
    assert_eq!(pair.b.read("edited").as_deref(), Some("edited by a"));
    for (path, content) in
        [("deleted", "deleted".to_owned()), ("d/deleted too", "d/deleted too".into()), ("large", large(1))]
    {
        let rows = pair.b.rows(&["versions", pair.b.at(path).to_str().unwrap()]);
        assert_eq!(rows.len(), 1, "{rows:?}");
        assert_eq!(restored(&pair.b, &rows[0]), content);
    }
}

#[test]
fn nodes_that_both_dial_hold_one_session() {
    let base = tempfile::tempdir().unwrap();
    let mut nodes = ["a", "b"].map(|name| Node::new(base.path(), name));
    let links = [Link::to(nodes[1].port), Link::to(nodes[0].port)];
    for n in 0..2 {
        let (key, other) = (nodes[1 - n].key.clone(), nodes[1 - n].name.clone());
        nodes[n].tree("t", "tree", "").peer(&other, &key, Some(links[n].port), "");
        nodes[n].spawn();
    }
    let [a, b] = &nodes;
    let sum = |count: fn(&Link) -> usize| links.iter().map(count).sum::<usize>();
    let (opened, live) = (|| sum(|l| l.opened.load(Ordering::SeqCst)), || sum(|l| l.live.load(Ordering::SeqCst)));
    let connected = |node: &Node, peer: &str| {
        let output = node.run(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let row = &status["peers"][0];
        assert!(row.is_null() || row["name"] == peer);
        row["state"] == "connected" && row["error"].is_null() && row["rtt_ms"].is_number()
    };
    let mut count = 0;
    for _ in 0..3 {
        let mut round = || {
            let before = opened();
            count += 1;
            a.write("of a", &count.to_string());
            b.write("of b", &count.to_string());
            a.wait();
            b.wait();
            // One session is two links.
            live() == 2 && opened() == before && connected(a, "b") && connected(b, "a")
        };
        until("both are connected", || connected(a, "b") && connected(b, "a"));
        until("one session is left", &mut round);
        for _ in 0..3 {
            assert!(round(), "the session stays: {} links\n{}\n{}", live(), a.log(), b.log());
        }
        links.iter().for_each(Link::cut);
        until("both are cut off", || live() == 0 && !connected(a, "b") && !connected(b, "a"));
        links.iter().for_each(Link::join);
    }
    same(&a.root(), &b.root());
}

#[test]
fn a_tree_that_cannot_go_on_stops_no_other() {
    let mut pair = Pair::new();
    pair.a.tree("two", "two", "").tree("lone", "lone", "");
    pair.b.tree("two", "two", "");
    let mut pair = pair.start();
    let state = |node: &Node| node.tree_status("two")["state"].clone();
    fs::write(pair.a.dir.join("two/x"), "x").unwrap();
    pair.wait();
    assert_eq!(pair.a.exchange("b", "lone")["state"], "absent");
    assert_eq!(pair.a.exchange("b", "t")["state"], "ok");

    // The directory is missing at the start.
    pair.a.stop();
    fs::rename(pair.a.dir.join("two"), pair.a.dir.join("away")).unwrap();
    pair.a.start();
    until("it is an error", || state(&pair.a) == "error");
    pair.b.write("meanwhile", "goes on");
    pair.b.ok(&["wait", "--tree", "t", "--timeout", "60"]);
    same(&pair.a.root(), &pair.b.root());
    pair.a.ok(&["wait", "--tree", "lone", "--timeout", "60"]);
    assert!(pair.a.tree_status("two")["error"].is_string());
    until("the peer says so", || pair.b.exchange("a", "two")["state"] == "error");
    assert!(pair.a.fails(&["wait", "--timeout", "1"]).contains("two"));
    assert!(pair.b.dir.join("two/x").exists(), "nothing is deleted");
    fs::rename(pair.a.dir.join("away"), pair.a.dir.join("two")).unwrap();
    until("it is back", || state(&pair.a) == "watching");
    pair.wait();

    // Its marker is another's while it runs.
    let marker = pair.a.dir.join("two/.pleach/root");
    let was = fs::read(&marker).unwrap();
    fs::remove_file(&marker).unwrap();
    fs::write(&marker, "another").unwrap();
    fs::write(pair.b.dir.join("two/y"), "y").unwrap();
    until("it is an error", || state(&pair.a) == "error");
    pair.b.write("meanwhile", "goes on again");
    pair.b.ok(&["wait", "--tree", "t", "--timeout", "60"]);
    assert!(!pair.a.dir.join("two/y").exists());
    fs::write(&marker, was).unwrap();
    until("it is back", || state(&pair.a) == "watching");
    pair.wait();
    same(&pair.a.dir.join("two"), &pair.b.dir.join("two"));
}

/// The trees that a node names to one that dials with this other node's key.
fn named_in_hello(node: &Node, other: &Node) -> Vec<String> {
    let key = HostKey::load(&other.state()).unwrap();
    let pinned = PublicKey::from_openssh(&node.key).unwrap();
    let config = SessionConfig {
        node: key.node(),
        peer: keys::node_of(&pinned).unwrap(),
        name: other.name.clone(),
        start: 1,
        token: [1; 16],
        trees: Vec::new(),
    };
    let Some(Output::Transmit { frame, .. }) = Session::new(Moment(0), config).poll_output() else { panic!() };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut link = dial(&format!("127.0.0.1:{}", node.port), &key, &[pinned]).await.unwrap();
        link.writer.send(frame).unwrap();
        let hello = Hello::decode(&link.reader.next().await.unwrap().unwrap()).unwrap();
        hello.trees.into_iter().map(|tree| tree.name).collect()
    })
}

#[test]
fn a_tree_that_a_peer_is_not_named_for_is_neither_named_nor_sent() {
    let mut pair = Pair::with("", "trees = [\"t\"]");
    pair.b.reword("trees = [\"t\"]\n", "");
    for node in [&mut pair.a, &mut pair.b] {
        node.tree("other", "other", "");
    }
    let mut pair = pair.start();
    fs::write(pair.a.dir.join("other/x"), "not for b").unwrap();
    fs::write(pair.b.dir.join("other/y"), "not for a").unwrap();
    pair.a.write("x", "for b");
    pair.wait();
    let rows = pair.a.peer_status("b")["trees"].clone();
    assert_eq!((rows.as_array().unwrap().len(), &rows[0]["name"]), (1, &json!("t")));
    assert_eq!(pair.b.exchange("a", "other")["state"], "absent");
    assert_eq!(names(&pair.a.dir.join("other")), [".pleach", "x"].map(String::from).into());
    assert_eq!(names(&pair.b.dir.join("other")), [".pleach", "y"].map(String::from).into());
    pair.b.stop();
    assert_eq!(named_in_hello(&pair.a, &pair.b), ["t"]);
}

#[test]
fn a_restart_goes_on_where_it_was_and_sends_nothing_again() {
    let pair = Pair::new();
    for n in 0..30 {
        pair.a.write(&format!("d{}/f{n}", n % 3), &n.to_string());
        pair.b.write(&format!("e{}/f{n}", n % 3), &n.to_string());
    }
    pair.a.write("large", &large(1));
    let mut pair = pair.start();
    pair.wait();
    pair.b.signal(Signal::STOP);
    pair.a.write("meanwhile", "b hears nothing");
    assert!(pair.a.fails(&["wait", "--timeout", "1"]).contains('b'));
    pair.b.signal(Signal::CONT);
    pair.wait();
    let reached = |pair: &Pair| {
        [(&pair.a, "b"), (&pair.b, "a")].map(|(node, peer)| {
            until("all is in sync", || node.tree_status("t")["in_sync"] == true);
            (node.tree_status("t")["seq"].clone(), node.exchange(peer, "t")["acked_seq"].clone())
        })
    };
    let (before, vaulted) = (reached(&pair), pair.b.rows(&["versions", pair.b.root().to_str().unwrap()]));
    for (seq, acked) in &before {
        assert_eq!(seq, acked);
    }
    pair.a.stop();
    pair.b.stop();
    pair.a.start();
    pair.b.start();
    pair.wait();
    assert_eq!(reached(&pair), before);
    assert_eq!(pair.b.rows(&["versions", pair.b.root().to_str().unwrap()]), vaulted);
}

#[test]
fn a_peer_that_is_away_is_named_and_found_again() {
    let mut pair = Pair::new().start();
    pair.wait();
    pair.b.stop();
    pair.a.write("x", "while b is away");
    until("it is unreachable", || {
        let row = pair.a.peer_status("b");
        row["state"] == "unreachable" && row["error"].as_str().is_some_and(|why| !why.is_empty())
    });
    let said = pair.a.fails(&["wait", "--timeout", "1"]);
    assert!(said.starts_with("pleach: wait: ") && said.contains("tree t: b: "), "{said}");
    assert_eq!(pair.a.tree_status("t")["in_sync"], false);
    pair.b.start();
    let back = Instant::now();
    until("it is connected", || pair.a.peer_status("b")["state"] == "connected");
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    pair.wait();
}

#[test]
fn a_loser_appears_beside_the_winner_where_the_tree_asks_for_it() {
    let pair = Pair::with("conflict = \"copy\"", "");
    pair.a.write("doc.txt", "first");
    let mut pair = pair.start();
    pair.wait();
    at_once(&[&pair.a, &pair.b], || {
        pair.a.write("doc.txt", "of a");
        pair.b.write("doc.txt", "of b");
    });
    let found =
        |node: &Node| names(&node.root()).into_iter().filter(|name| name.contains("conflict")).collect::<Vec<_>>();
    until("the copy is everywhere", || {
        pair.a.wait();
        pair.b.wait();
        !found(&pair.a).is_empty() && !found(&pair.b).is_empty()
    });
    // Nor is there another after a restart of both.
    pair.a.stop();
    pair.b.stop();
    pair.a.start();
    pair.b.start();
    pair.wait();
    let row = &pair.a.rows(&["conflicts"])[0];
    let (writer, hash) = (row["node"].as_str().unwrap(), row["hash"].as_str().unwrap());
    assert_eq!(found(&pair.a), [format!("doc.conflict-{writer}-{}.txt", &hash[..8])]);
    assert_eq!(pair.a.read(&found(&pair.a)[0]), Some(format!("of {writer}")));
    assert_eq!(found(&pair.a), found(&pair.b));
    assert_ne!(pair.a.read("doc.txt"), Some(format!("of {writer}")));
}

/// Bytes of which no part equals another.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random.to_le_bytes()
    });
    words.take(length.div_ceil(8)).flatten().take(length).collect()
}

/// Changes a file of `length` bytes on one node in three ways: how many bytes each brings onto the wire.
fn change_a_large_file(length: usize) -> [u64; 3] {
    const MIB: usize = 1 << 20;
    let pair = Pair::new();
    let content = noise(1, length);
    fs::write(pair.a.at("f"), &content).unwrap();
    let pair = pair.start();
    pair.wait();
    let mut flipped = content.clone();
    flipped[length / 2] ^= 1;
    let in_front = [noise(2, MIB), flipped.clone()].concat();
    let at_the_end = [in_front.clone(), noise(3, MIB)].concat();
    [flipped, in_front, at_the_end].map(|changed| {
        let before = pair.link.bytes.load(Ordering::SeqCst);
        fs::write(pair.a.at("f"), &changed).unwrap();
        pair.a.wait();
        let sent = pair.link.bytes.load(Ordering::SeqCst) - before;
        assert!(fs::read(pair.b.at("f")).unwrap() == changed);
        pair.wait();
        sent as u64
    })
}

#[test]
fn of_a_large_file_that_changed_only_what_is_new_is_sent() {
    let [flipped, in_front, at_the_end] = change_a_large_file(64 << 20);
    assert!(flipped < 400_000, "{flipped:?}");
    assert!(in_front < 1_500_000, "{in_front:?}");
    assert!(at_the_end < 1_500_000, "{at_the_end:?}");
}
