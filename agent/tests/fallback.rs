//! A peer whose agent is away is served by rsync: real agents, and Debian's `rsync --daemon` over the peer's own tree.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "push/daemon.rs"]
mod daemon;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use cluster::{Link, Node, same, until};
use daemon::{Daemon, secret};
use serde_json::Value;

/// `a` dials `b`, and falls back to the daemon's module `b` over `b`'s tree.
struct Served {
    _base: tempfile::TempDir,
    a: Node,
    b: Node,
    link: Link,
    daemon: Daemon,
}

impl Served {
    fn start(module: &str) -> Self {
        Self::start_with(module, None, "")
    }

    /// `rsync`: what `a` finds under that name; `more`: lines of its `[[peer]]`.
    fn start_with(module: &str, rsync: Option<&Path>, more: &str) -> Self {
        let base = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (Node::new(base.path(), "a"), Node::new(base.path(), "b"));
        let link = Link::to(b.port);
        let mut daemon = Daemon::new(base.path(), "rsyncd");
        daemon.module_at("b", &b.root(), module);
        let pass = base.path().join("pass");
        secret(&pass, "bpw\n");
        let fallback = format!(
            "fallback = \"rsync://buser@127.0.0.1:{}/b\"\nfallback_after = \"1s\"\npassword_file = {pass:?}\n{more}",
            daemon.port
        );
        a.tree("t", "tree", "").peer("b", &b.key.clone(), Some(link.port), &fallback);
        b.tree("t", "tree", "").peer("a", &a.key.clone(), None, "");
        daemon.start();
        a.programs = rsync.map(Path::to_path_buf);
        a.start();
        b.start();
        Self { _base: base, a, b, link, daemon }
    }

    /// Both have all, and nothing that was displaced is left lying about.
    fn settle(&self) {
        self.a.wait();
        self.b.wait();
        same(&self.a.root(), &self.b.root());
        assert!(!self.b.at(".pleach-fallback").exists());
        assert_eq!(self.a.conflicts(), self.b.conflicts());
    }

    fn fallback(&self) -> Value {
        self.a.peer_status("b")["fallback"].clone()
    }
}

/// Whether a node's vault has this content of a path.
fn kept(node: &Node, path: &str, content: &[u8]) -> bool {
    let hash = blake3::hash(content).to_hex().to_string();
    node.rows(&["versions", node.at(path).to_str().unwrap()]).iter().any(|row| row["hash"] == hash.as_str())
}

/// Content that no compression makes small.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

#[test]
fn what_was_pushed_is_not_sent_again() {
    let mut s = Served::start("");
    let (old, new) = (noise(1, 1 << 20), noise(2, 1 << 20));
    fs::write(s.a.at("big"), &old).unwrap();
    s.a.write("gone/deep/f", "1");
    s.a.write("small", "1");
    s.settle();
    assert_eq!(s.fallback()["serves"], false);
    s.b.kill();
    fs::write(s.a.at("big"), &new).unwrap();
    fs::write(s.a.at("new"), noise(3, 1 << 20)).unwrap();
    s.a.write("dir/h", "3");
    s.a.write("small", "2");
    fs::remove_dir_all(s.a.at("gone")).unwrap();
    until("the fallback pushes", || {
        fs::read(s.b.at("big")).unwrap() == new
            && s.b.read("small").as_deref() == Some("2")
            && s.b.read("dir/h").as_deref() == Some("3")
            && s.b.at("new").exists()
            && !s.b.at("gone").exists()
    });
    let row = s.a.peer_status("b");
    assert_eq!(
        (row["state"].as_str(), row["fallback"]["serves"].as_bool()),
        (Some("unreachable"), Some(true)),
        "{row}"
    );
    assert!(s.a.ok(&["status"]).contains("served by its fallback rsync://buser@127.0.0.1"));
    // The same path once more, and no agent there that saw the version in between.
    s.a.write("small", "3");
    until("the fallback pushes again", || s.b.read("small").as_deref() == Some("3"));
    assert!(s.b.at(".pleach-fallback").exists());
    let before = s.link.bytes.load(Ordering::SeqCst);
    s.b.start();
    s.settle();
    let sent = s.link.bytes.load(Ordering::SeqCst) - before;
    assert!(sent < 200_000, "{sent} bytes went through although all was there");
    assert_eq!(s.a.conflicts(), Vec::<[Value; 5]>::new());
    assert!(kept(&s.b, "big", &old), "what was displaced is a version");
    assert!(kept(&s.b, "small", b"1") && kept(&s.b, "small", b"2"));
    assert_eq!(s.fallback()["serves"], false);
    s.a.write("small", "4");
    s.b.write("back", "5");
    s.settle();
    assert_eq!(s.a.conflicts(), Vec::<[Value; 5]>::new());
}

#[test]
fn an_edit_there_meets_ours_under_the_normal_rules() {
    let mut s = Served::start("");
    for name in ["before", "after", "revived"] {
        s.a.write(name, "0");
    }
    s.settle();
    s.b.kill();
    // Made before the push, and displaced by it; made where the push deletes; made after the push.
    let earlier = SystemTime::now() - Duration::from_secs(10);
    for name in ["before", "revived", "both"] {
        fs::write(s.b.at(name), "theirs").unwrap();
        fs::File::options().write(true).open(s.b.at(name)).unwrap().set_modified(earlier).unwrap();
    }
    s.a.write("before", "ours");
    s.a.write("both", "ours");
    s.a.write("after", "ours");
    fs::remove_file(s.a.at("revived")).unwrap();
    until("the fallback pushes", || {
        ["before", "after", "both"].iter().all(|name| s.b.read(name).as_deref() == Some("ours"))
            && !s.b.at("revived").exists()
    });
    fs::write(s.b.at("after"), "theirs, later").unwrap();
    s.b.start();
    s.settle();
    let paths: Vec<Value> = s.a.conflicts().into_iter().map(|[path, ..]| path).collect();
    assert_eq!(paths, ["after", "before", "both"], "{paths:?}");
    assert_eq!(s.a.read("before").as_deref(), Some("ours"), "the newer one is shown");
    for (name, theirs) in [("before", "theirs"), ("both", "theirs"), ("after", "theirs, later")] {
        for content in [theirs, "ours"] {
            let shown = s.b.read(name).as_deref() == Some(content);
            let bytes = content.as_bytes();
            assert!(shown || kept(&s.a, name, bytes) || kept(&s.b, name, bytes), "{name}: {content} is nowhere");
        }
    }
    assert_eq!(s.a.read("revived").as_deref(), Some("theirs"), "an edit is kept over a deletion");
}

#[test]
fn what_changed_again_before_the_agent_came_back_is_not_undone() {
    let mut s = Served::start("");
    s.a.write("f", "0");
    s.a.write("g", "0");
    s.settle();
    s.b.kill();
    for name in ["f", "g", "new"] {
        s.a.write(name, "pushed");
    }
    until("the fallback pushes", || ["f", "g", "new"].iter().all(|name| s.b.read(name).as_deref() == Some("pushed")));
    s.daemon.stop();
    s.a.write("f", "later");
    fs::remove_file(s.a.at("g")).unwrap();
    fs::remove_file(s.a.at("new")).unwrap();
    until("it is taken", || s.a.tree_status("t")["entries"] == 1);
    s.b.start();
    s.settle();
    assert_eq!(s.b.read("f").as_deref(), Some("later"));
    assert!(!s.a.at("g").exists() && !s.a.at("new").exists(), "a deletion is not undone by what was pushed before it");
}

#[test]
fn nothing_is_written_behind_the_agent_that_returned() {
    let bin = tempfile::tempdir().unwrap();
    let (hold, runs) = (bin.path().join("hold"), bin.path().join("runs"));
    // Holds whatever brings more than the list of what is brought.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *b.lists*) ;; *) touch {runs:?}; while [ -e {hold:?} ]; do sleep 0.02; done ;; esac\n\
         exec /usr/bin/rsync \"$@\"\n"
    );
    fs::write(bin.path().join("rsync"), script).unwrap();
    fs::set_permissions(bin.path().join("rsync"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut s = Served::start_with("", Some(bin.path()), "");
    s.a.write("f", "0");
    s.settle();
    fs::write(&hold, "").unwrap();
    s.b.kill();
    s.a.write("f", "pushed");
    until("an rsync runs", || runs.exists());
    let opened = s.link.opened.load(Ordering::SeqCst);
    s.b.start();
    until("the nodes speak", || s.link.opened.load(Ordering::SeqCst) > opened);
    s.a.write("f", "later");
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        assert_ne!(s.a.peer_status("b")["state"], "connected", "an rsync runs");
    }
    assert_eq!(s.b.read("f").as_deref(), Some("0"));
    fs::remove_file(&hold).unwrap();
    s.a.wait();
    s.b.wait();
    assert_eq!(s.a.read("f").as_deref(), Some("later"));
    assert_eq!(s.b.read("f").as_deref(), Some("later"));
}

#[test]
fn only_what_the_agent_had_is_deleted() {
    let mut s = Served::start("");
    s.a.write("known", "1");
    s.a.write("old/x", "1");
    s.settle();
    s.b.kill();
    fs::write(s.b.at("mine"), "theirs").unwrap();
    fs::write(s.b.at("old/mine"), "theirs").unwrap();
    // `b` never had this one.
    s.a.write("mine", "ours");
    until("it is taken", || s.a.tree_status("t")["entries"] == 4);
    fs::remove_file(s.a.at("mine")).unwrap();
    fs::remove_file(s.a.at("known")).unwrap();
    fs::remove_dir_all(s.a.at("old")).unwrap();
    s.a.write("last", "1");
    until("the fallback pushes", || s.b.at("last").exists() && !s.b.at("known").exists() && !s.b.at("old/x").exists());
    assert!(s.b.at("old/mine").exists());
    let mine = s.b.read("mine").or_else(|| displaced(&s.b, "mine"));
    assert_eq!(mine.as_deref(), Some("theirs"), "what was there is not lost");
    s.b.start();
    s.settle();
    assert_eq!(s.a.read("mine").as_deref(), Some("theirs"));
    assert_eq!(s.a.read("old/mine").as_deref(), Some("theirs"));
    assert!(!s.a.at("known").exists());
}

/// What a push displaced of a path.
fn displaced(node: &Node, path: &str) -> Option<String> {
    let runs = fs::read_dir(node.at(".pleach-fallback")).ok()?;
    runs.filter_map(|run| fs::read_to_string(run.unwrap().path().join(path)).ok()).next()
}

#[test]
fn a_daemon_that_refuses_to_keep_what_is_displaced_gets_nothing() {
    let mut s = Served::start("refuse options = backup-dir");
    s.a.write("f", "1");
    s.settle();
    s.b.kill();
    s.a.write("f", "2");
    until("it is refused", || s.fallback()["state"] == "refused");
    let error = s.fallback()["error"].as_str().unwrap().to_owned();
    assert!(error.contains("refuse --backup-dir"), "{error}");
    assert!(s.a.ok(&["problems"]).contains("refuse --backup-dir"));
    assert_eq!(s.b.read("f").as_deref(), Some("1"));
    s.b.start();
    s.settle();
    assert_eq!(s.b.read("f").as_deref(), Some("2"));
}

#[test]
fn a_daemon_that_is_down_too_gets_it_later() {
    let mut s = Served::start("");
    s.a.write("f", "1");
    s.settle();
    s.daemon.stop();
    s.b.kill();
    s.a.write("f", "2");
    until("nobody answers", || s.fallback()["state"] == "unreachable");
    s.daemon.start();
    until("it is pushed", || s.b.read("f").as_deref() == Some("2"));
    // Neither does a restart here forget what was there.
    s.a.kill();
    s.a.start();
    fs::remove_file(s.a.at("f")).unwrap();
    until("it is deleted", || !s.b.at("f").exists());
    s.daemon.stop();
    s.a.write("f", "3");
    until("nobody answers again", || s.fallback()["state"] == "unreachable");
    s.b.start();
    s.settle();
    assert_eq!(s.b.read("f").as_deref(), Some("3"));
    assert_eq!(s.a.conflicts(), Vec::<[Value; 5]>::new());
}

/// A full check sees what no journal tells; what it displaces and deletes there is taken in when the agent is back.
#[test]
fn a_full_check_of_a_fallback_loses_nothing_that_was_made_there() {
    let mut s = Served::start_with("", None, "mirror = true\n");
    s.a.write("f", "1");
    s.a.write("left", "1");
    s.settle();
    let refused = s.a.fails(&["push", "b"]);
    assert!(refused.contains("its agent is there"), "{refused}");
    s.b.kill();
    s.b.write("f", "edited there");
    s.b.write("made", "there");
    fs::remove_file(s.b.at("left")).unwrap();
    s.a.write("last", "1");
    until("the fallback serves", || s.b.at("last").exists());
    assert_eq!((s.b.read("f").as_deref(), s.b.at("left").exists()), (Some("edited there"), false), "of no journal");
    // What was not pushed is deleted once somebody said so.
    let held = s.a.fails(&["push", "b"]);
    assert!(held.contains("pleach approve --peer b"), "{held}");
    assert_eq!((s.b.read("f").as_deref(), s.b.read("left").as_deref()), (Some("1"), Some("1")));
    assert_eq!(s.b.read("made").as_deref(), Some("there"));
    s.a.ok(&["approve", "--peer", "b"]);
    assert!(!s.b.at("made").exists() && s.b.at(".pleach").exists());
    s.b.start();
    s.settle();
    assert_eq!(s.a.read("f").as_deref(), Some("edited there"), "who edited it saw what was there");
    assert_eq!(s.a.read("made").as_deref(), Some("there"));
    assert_eq!(s.a.read("left").as_deref(), Some("1"), "b's agent did not see that deletion");
}
