//! Legacy rsync daemons: a real agent pushes to Debian's own `rsync --daemon`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "push/daemon.rs"]
mod daemon;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use cluster::{Link, Node, same, snapshot, until};
use daemon::{Daemon, secret};

/// A node `a` with one tree, and a daemon with the module `web1` that it pushes to; neither runs.
fn pair(base: &Path, more: &str) -> (Node, Daemon) {
    let mut node = Node::new(base, "a");
    node.tree("t", "tree", "");
    let mut daemon = Daemon::new(base, "rsyncd");
    daemon.module("web1", "");
    daemon.peer(&mut node, "web1", more);
    (node, daemon)
}

fn started(base: &Path, more: &str) -> (Node, Daemon) {
    let (mut node, mut daemon) = pair(base, more);
    daemon.start();
    node.start();
    (node, daemon)
}

fn state(node: &Node, peer: &str) -> String {
    node.peer_status(peer)["state"].as_str().unwrap().to_owned()
}

fn error(node: &Node, peer: &str) -> String {
    node.peer_status(peer)["error"].as_str().unwrap_or_default().to_owned()
}

/// The names that the daemon logged as received.
fn received(daemon: &Daemon) -> Vec<String> {
    let log = daemon.log();
    log.lines().filter_map(|line| line.split("] recv ").nth(1)).map(str::to_owned).collect()
}

#[test]
fn changes_deletions_and_renames_are_pushed() {
    let base = tempfile::tempdir().unwrap();
    let (node, daemon) = started(base.path(), "");
    for i in 0..50 {
        node.write(&format!("d{}/f{i}", i % 5), &format!("{i}"));
    }
    node.wait();
    same(&node.root(), &daemon.at("web1"));
    node.write("d0/f0", "changed");
    fs::remove_file(node.at("d1/f1")).unwrap();
    fs::rename(node.at("d2/f2"), node.at("d3/renamed")).unwrap();
    fs::create_dir(node.at("moved")).unwrap();
    fs::rename(node.at("d4"), node.at("moved/d4")).unwrap();
    fs::create_dir_all(node.at("empty/dir")).unwrap();
    symlink("../d0/f0", node.at("moved/link")).unwrap();
    fs::set_permissions(node.at("d0/f5"), fs::Permissions::from_mode(0o750)).unwrap();
    node.wait();
    same(&node.root(), &daemon.at("web1"));
    // A directory where a file was, and a file where a directory was.
    fs::remove_file(node.at("d0/f0")).unwrap();
    node.write("d0/f0/in", "in");
    fs::remove_dir_all(node.at("moved")).unwrap();
    node.write("moved", "a file now");
    node.wait();
    same(&node.root(), &daemon.at("web1"));
    let status = node.status();
    assert_eq!(status["trees"][0]["in_sync"], true, "{status}");
    assert_eq!((status["peers"][0]["kind"].as_str(), state(&node, "web1").as_str()), (Some("rsync"), "connected"));
    assert!(!daemon.at("web1").join(".pleach").exists());
}

#[test]
fn a_file_rewritten_with_its_length_and_time_is_pushed() {
    let base = tempfile::tempdir().unwrap();
    let (node, daemon) = started(base.path(), "");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let write = |content: &str| {
        node.write("f", content);
        fs::File::options().write(true).open(node.at("f")).unwrap().set_modified(time).unwrap();
    };
    write("aaaa");
    node.wait();
    write("bbbb");
    node.wait();
    assert_eq!(fs::read_to_string(daemon.at("web1").join("f")).unwrap(), "bbbb");
}

#[test]
fn odd_names_are_pushed_renamed_and_deleted() {
    let base = tempfile::tempdir().unwrap();
    let (node, daemon) = started(base.path(), "");
    let long = [b'x'; 255];
    let names: [&[u8]; 16] = [
        "\u{4e0b}\u{8f7d} \u{4e2d}\u{5fc3}.txt".as_bytes(),
        b"caf\xe9",
        b"a\nb",
        b"-rf",
        b"*",
        b"[x]",
        b"#1#",
        b";x",
        b"back\\slash",
        b"'q\"",
        b" lead",
        b"trail ",
        &long,
        b"\xff",
        b"c\\#012d",
        b"--delete",
    ];
    let at = |name: &[u8]| node.root().join(OsStr::from_bytes(name));
    for (i, name) in names.iter().enumerate() {
        fs::write(at(name), format!("{i}")).unwrap();
        if name.len() < 250 {
            let dir = at(&[b"dir/", *name, b".d"].concat());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("inner"), format!("{i}")).unwrap();
        }
    }
    node.wait();
    same(&node.root(), &daemon.at("web1"));
    for (i, name) in names.iter().enumerate() {
        match i % 2 {
            0 => fs::rename(at(name), at(format!("renamed-{i}").as_bytes())).unwrap(),
            _ => fs::remove_file(at(name)).unwrap(),
        }
    }
    node.wait();
    same(&node.root(), &daemon.at("web1"));
    fs::remove_dir_all(node.at("dir")).unwrap();
    node.wait();
    same(&node.root(), &daemon.at("web1"));
}

#[test]
fn only_what_was_pushed_is_deleted() {
    let base = tempfile::tempdir().unwrap();
    let (node, daemon) = started(base.path(), "");
    let there = daemon.at("web1");
    node.write("d/e/ours", "1");
    node.write("gone/ours", "1");
    node.wait();
    fs::write(there.join("foreign"), "theirs").unwrap();
    fs::write(there.join("d/e/foreign"), "theirs").unwrap();
    // The same name as one that was here before the daemon knew of it.
    fs::create_dir(there.join("other")).unwrap();
    fs::write(there.join("other/f"), "theirs").unwrap();
    fs::remove_dir_all(node.at("d")).unwrap();
    fs::remove_dir_all(node.at("gone")).unwrap();
    node.wait();
    let left: BTreeSet<_> = snapshot(&there).into_keys().map(|path| path.display().to_string()).collect();
    let want = ["d", "d/e", "d/e/foreign", "foreign", "other", "other/f"];
    assert_eq!(left, want.map(str::to_owned).into());
    // The directory goes with a full check once nothing foreign is in it.
    fs::remove_file(there.join("d/e/foreign")).unwrap();
    node.ok(&["push", "web1"]);
    assert!(!there.join("d").exists());
    assert!(there.join("foreign").exists() && there.join("other/f").exists());
}

#[test]
fn a_mirror_deletes_what_is_foreign_after_the_approval() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, mut daemon) = pair(base.path(), "mirror = true");
    node.reword("[[tree]]", "[[tree]]\nignore = [\"*.log\"]");
    let there = daemon.at("web1");
    fs::create_dir_all(there.join("old/deep")).unwrap();
    fs::write(there.join("old/deep/f"), "theirs").unwrap();
    fs::write(there.join("keep.log"), "ignored here").unwrap();
    daemon.start();
    node.start();
    node.write("f", "1");
    node.wait();
    assert!(there.join("old/deep/f").exists());
    let rows = node.rows(&["push", "web1", "--dry-run"]);
    let told: BTreeSet<_> = rows.iter().map(|row| format!("{} {}", row["does"], row["path"])).collect();
    let want = ["\"mirror\" \"old\"", "\"mirror\" \"old/deep\"", "\"mirror\" \"old/deep/f\""];
    assert_eq!(told, want.map(str::to_owned).into());
    assert!(node.fails(&["push", "web1"]).contains("3 paths there are not in the tree"));
    assert!(there.join("old/deep/f").exists(), "deleted before the approval");
    assert!(error(&node, "web1").contains("pleach approve --peer web1"), "{}", error(&node, "web1"));
    node.ok(&["approve", "--peer", "web1"]);
    until("the foreign directory is gone", || !there.join("old").exists());
    until("nothing is held", || error(&node, "web1").is_empty());
    assert!(there.join("keep.log").exists() && there.join("f").exists());
    // From now on every check deletes.
    fs::write(there.join("new"), "theirs").unwrap();
    node.ok(&["push", "web1"]);
    assert!(!there.join("new").exists());
    // An empty tree deletes nothing that it did not push.
    fs::write(there.join("new"), "theirs").unwrap();
    fs::remove_file(node.at("f")).unwrap();
    node.wait();
    assert!(node.fails(&["push", "web1"]).contains("the tree is empty"));
    assert!(there.join("new").exists() && !there.join("f").exists());
}

#[test]
fn a_mirror_of_a_module_that_cannot_be_listed_says_so_and_pushes() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, mut daemon) = pair(base.path(), "mirror = true");
    daemon.reword("read only = no", "read only = no\nwrite only = yes");
    daemon.start();
    node.start();
    node.write("f", "1");
    node.wait();
    fs::write(daemon.at("web1").join("foreign"), "theirs").unwrap();
    assert!(node.fails(&["push", "web1"]).contains("cannot be listed: ERROR: module is write only"));
    assert_eq!(state(&node, "web1"), "connected");
    node.write("f", "2");
    node.wait();
    assert_eq!(fs::read_to_string(daemon.at("web1").join("f")).unwrap(), "2");
    assert!(daemon.at("web1").join("foreign").exists());
}

#[test]
fn an_emptied_root_deletes_nothing_there() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, daemon) = started(base.path(), "mirror = true");
    node.write("d/f", "1");
    node.wait();
    node.ok(&["approve", "--peer", "web1"]);
    let aside = node.dir.join("aside");
    fs::rename(node.root(), &aside).unwrap();
    fs::create_dir(node.root()).unwrap();
    until("the tree stops", || node.tree_status("t")["state"] == "error");
    node.fails(&["push", "web1"]);
    assert!(daemon.at("web1").join("d/f").exists());
    node.kill();
    node.start();
    until("the tree is stopped", || node.tree_status("t")["state"] == "error");
    node.fails(&["push", "web1"]);
    assert!(daemon.at("web1").join("d/f").exists());
    fs::remove_dir(node.root()).unwrap();
    fs::rename(&aside, node.root()).unwrap();
    node.wait();
    same(&node.root(), &daemon.at("web1"));
}

#[test]
fn a_daemon_that_is_down_gets_all_when_it_is_back() {
    let base = tempfile::tempdir().unwrap();
    let (node, mut daemon) = started(base.path(), "");
    for i in 0..20 {
        node.write(&format!("f{i}"), &format!("{i}"));
    }
    node.wait();
    daemon.stop();
    node.write("f0", "changed");
    fs::remove_file(node.at("f1")).unwrap();
    fs::rename(node.at("f2"), node.at("r2")).unwrap();
    until("status says unreachable", || state(&node, "web1") == "unreachable");
    let said = node.fails(&["wait", "--timeout", "1"]);
    assert!(said.contains("web1") && said.contains("Connection refused"), "{said}");
    node.write("f0", "changed twice");
    daemon.start();
    node.wait();
    same(&node.root(), &daemon.at("web1"));
    assert_eq!(state(&node, "web1"), "connected");
}

#[test]
fn a_wrong_password_and_an_open_password_file_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, mut daemon) = pair(base.path(), "");
    let pass = node.dir.join("web1.pass");
    secret(&pass, "wrong\n");
    daemon.start();
    node.start();
    node.write("f", "1");
    until("status says refused", || state(&node, "web1") == "refused");
    assert!(error(&node, "web1").contains("auth failed on module web1"), "{}", error(&node, "web1"));
    secret(&pass, "web1pw\n");
    node.wait();
    fs::set_permissions(&pass, fs::Permissions::from_mode(0o644)).unwrap();
    node.write("f", "2");
    until("status says refused", || state(&node, "web1") == "refused");
    assert!(error(&node, "web1").contains("chmod 600"), "{}", error(&node, "web1"));
    fs::set_permissions(&pass, fs::Permissions::from_mode(0o600)).unwrap();
    node.wait();
    assert_eq!(fs::read_to_string(daemon.at("web1").join("f")).unwrap(), "2");
}

#[test]
fn a_module_that_is_read_only_or_unknown_is_named() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, mut daemon) = pair(base.path(), "");
    daemon.reword("read only = no", "read only = yes");
    daemon.module("web2", "");
    daemon.peer(&mut node, "web2", "");
    node.reword("/web2\"", "/webx\"");
    daemon.start();
    node.start();
    node.write("f", "1");
    until("both are refused", || state(&node, "web1") == "refused" && state(&node, "web2") == "refused");
    assert!(error(&node, "web1").contains("module is read only"), "{}", error(&node, "web1"));
    assert!(error(&node, "web2").contains("Unknown module 'webx'"), "{}", error(&node, "web2"));
    assert!(node.ok(&["problems"]).contains("Unknown module"));
    daemon.stop();
    daemon.reword("read only = yes", "read only = no");
    daemon.start();
    until("the file is there", || daemon.at("web1").join("f").exists());
}

#[test]
fn a_daemon_without_a_free_place_is_tried_again() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, mut daemon) = pair(base.path(), "");
    daemon.reword("read only = no", "read only = no\nmax connections = 1");
    fs::write(daemon.at("web1").join("big"), vec![7; 4 << 20]).unwrap();
    daemon.start();
    // A slow reader holds the one place.
    let pass = base.path().join("pass");
    secret(&pass, "web1pw\n");
    let mut holder = Command::new("rsync")
        .arg("--bwlimit=100")
        .arg(format!("--password-file={}", pass.display()))
        .arg(format!("rsync://web1user@127.0.0.1:{}/web1/big", daemon.port))
        .arg(base.path().join("copy"))
        .spawn()
        .unwrap();
    until("the place is taken", || daemon.log().contains("on web1"));
    node.start();
    node.write("f", "1");
    until("it is told", || error(&node, "web1").contains("max connections"));
    assert_eq!(state(&node, "web1"), "unreachable");
    holder.kill().unwrap();
    holder.wait().unwrap();
    node.wait();
    assert!(daemon.at("web1").join("f").exists());
}

#[test]
fn a_push_that_is_cut_never_shows_half_a_file_and_goes_on() {
    let base = tempfile::tempdir().unwrap();
    let mut node = Node::new(base.path(), "a");
    node.tree("t", "tree", "");
    let mut daemon = Daemon::new(base.path(), "rsyncd");
    daemon.module("web1", "");
    let link = Link::to(daemon.port);
    daemon.peer_through(&mut node, "web1", link.port, "bwlimit = \"8MB/s\"");
    daemon.start();
    node.start();
    node.write("big", "old version");
    node.wait();
    let body: Vec<u8> = (0u32..6 << 20).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).collect();
    fs::write(node.dir.join("new"), &body).unwrap();
    fs::rename(node.dir.join("new"), node.at("big")).unwrap();
    let before = link.bytes.load(std::sync::atomic::Ordering::SeqCst);
    until("it is under way", || link.bytes.load(std::sync::atomic::Ordering::SeqCst) > before + (4 << 20));
    link.cut();
    let there = daemon.at("web1").join("big");
    until("it is unreachable", || state(&node, "web1") == "unreachable");
    assert_eq!(fs::read(&there).unwrap(), b"old version");
    link.join();
    node.wait();
    assert!(fs::read(&there).unwrap() == body, "another content");
    let names: Vec<_> = snapshot(&daemon.at("web1")).into_keys().collect();
    assert_eq!(names, [Path::new("big")], "what was partly there stayed");
}

#[test]
fn a_restart_goes_on_at_its_place() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, daemon) = started(base.path(), "");
    for i in 0..200 {
        node.write(&format!("d{}/f{i}", i % 7), &format!("{i}"));
    }
    node.wait();
    let before = received(&daemon).len();
    node.stop();
    node.write("d1/f1", "changed while it was away");
    fs::remove_file(node.at("d2/f2")).unwrap();
    node.start();
    node.wait();
    same(&node.root(), &daemon.at("web1"));
    let names = received(&daemon).split_off(before);
    assert!(names.iter().all(|name| name.starts_with("d1/f1 ")), "{names:?}");
    assert_eq!(names.len(), 1, "{names:?}");
    // Killed at once after a burst.
    for i in 0..200 {
        node.write(&format!("e/g{i}"), &format!("{i}"));
    }
    node.kill();
    node.start();
    node.wait();
    fs::remove_dir_all(node.at("e")).unwrap();
    node.wait();
    same(&node.root(), &daemon.at("web1"));
}

#[test]
fn a_path_that_the_daemon_cannot_take_is_a_problem_of_its_own() {
    let base = tempfile::tempdir().unwrap();
    let (node, daemon) = started(base.path(), "");
    let there = daemon.at("web1");
    node.write("a/f", "1");
    node.wait();
    // A directory in the way that pleach did not push.
    fs::create_dir(there.join("blocked")).unwrap();
    fs::write(there.join("blocked/foreign"), "theirs").unwrap();
    node.write("blocked", "a file");
    node.write("free", "another");
    until("the other file is there", || there.join("free").exists());
    until("the problem is named", || node.ok(&["problems"]).contains("blocked"));
    let rows = node.rows(&["problems"]);
    let row = rows.iter().find(|row| row["path"] == "blocked").unwrap();
    assert_eq!(row["peer"], "web1", "{row}");
    assert!(row["reason"].as_str().unwrap().contains("make way"), "{row}");
    assert!(node.fails(&["wait", "--timeout", "1"]).contains("cannot be pushed"));
    assert!(there.join("blocked/foreign").exists());
    assert_eq!(node.tree_status("t")["in_sync"], false);
    fs::remove_dir_all(there.join("blocked")).unwrap();
    node.wait();
    assert_eq!(node.rows(&["problems"]).len(), 0);
    same(&node.root(), &there);
}

#[test]
fn ignored_paths_stay_here_until_they_are_ignored_no_more() {
    let base = tempfile::tempdir().unwrap();
    let (node, daemon) = started(base.path(), "");
    let there = daemon.at("web1");
    node.write("kept.tmp", "pushed before it was ignored");
    node.wait();
    node.write(".pleachignore", "*.tmp\n");
    node.wait();
    node.write("new.tmp", "1");
    node.write("kept.tmp", "changed while it was");
    node.write("f", "1");
    node.wait();
    assert_eq!(fs::read_to_string(there.join("kept.tmp")).unwrap(), "pushed before it was ignored");
    assert!(there.join("f").exists() && !there.join("new.tmp").exists());
    node.write(".pleachignore", "*.other\n");
    node.wait();
    until("both are there", || {
        let changed = fs::read_to_string(there.join("kept.tmp")).unwrap() == "changed while it was";
        changed && there.join("new.tmp").exists()
    });
}

/// A file system that ends with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_there_is_named_and_deletions_make_room() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, mut daemon) = pair(base.path(), "");
    let there = daemon.at("web1");
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&there).output().unwrap();
    if !mount.status.success() {
        eprintln!("left out: a tmpfs cannot be mounted here: {}", String::from_utf8_lossy(&mount.stderr));
        return;
    }
    let _mounted = Mounted(there.clone());
    daemon.start();
    node.start();
    node.write("old", &"o".repeat(700_000));
    node.wait();
    node.write("big", &"b".repeat(3_000_000));
    until("it is named", || error(&node, "web1").contains("No space left"));
    assert_eq!(state(&node, "web1"), "refused");
    assert!(!there.join("big").exists());
    fs::remove_file(node.at("big")).unwrap();
    node.wait();
    // There is room for one of the two.
    node.write("new", &"n".repeat(700_000));
    fs::remove_file(node.at("old")).unwrap();
    node.wait();
    same(&node.root(), &there);
}

/// The rsync that pushes to a peer, while it runs.
fn running(node: &Node) -> Option<String> {
    let note = fs::read_to_string(node.state().join("peers/web1.rsync")).ok()?;
    note.split_whitespace().next().map(str::to_owned)
}

#[test]
fn an_rsync_ends_with_its_agent_or_at_the_next_start() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, daemon) = started(base.path(), "bwlimit = \"100kB/s\"");
    node.write("f", "1");
    node.wait();
    let is_rsync = |pid: &str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "rsync\n");
    node.write("big", &"0123456789abcdef".repeat(400_000));
    until("it is sent", || fs::read_dir(daemon.at("web1")).unwrap().count() > 1);
    let pid = running(&node).unwrap();
    assert!(is_rsync(&pid));
    node.stop();
    until("it ended", || !is_rsync(&pid));
    assert_eq!(running(&node), None);
    node.start();
    until("it is sent again", || running(&node).is_some_and(|pid| is_rsync(&pid)));
    let pid = running(&node).unwrap();
    node.kill();
    node.start();
    until("it ended", || !is_rsync(&pid));
    node.reword("bwlimit = \"100kB/s\"", "");
    node.signal(rustix::process::Signal::HUP);
    node.wait();
    same(&node.root(), &daemon.at("web1"));
}

#[test]
fn a_paused_daemon_gets_nothing_until_it_is_resumed() {
    let base = tempfile::tempdir().unwrap();
    let (node, daemon) = started(base.path(), "");
    node.write("f", "1");
    node.wait();
    node.ok(&["pause", "--peer", "web1"]);
    node.write("f", "2");
    until("it is taken in", || node.exchange("web1", "t")["to_send"] != 0);
    assert!(node.fails(&["wait", "--timeout", "5"]).contains("the peer web1 is paused"));
    assert_eq!(state(&node, "web1"), "paused");
    assert_eq!(fs::read_to_string(daemon.at("web1").join("f")).unwrap(), "1");
    node.ok(&["resume", "--peer", "web1"]);
    node.wait();
    assert_eq!(fs::read_to_string(daemon.at("web1").join("f")).unwrap(), "2");
}

#[test]
fn a_root_that_goes_away_during_a_push_loses_and_deletes_nothing() {
    let base = tempfile::tempdir().unwrap();
    let (mut node, mut daemon) = pair(base.path(), "");
    // An rsync during whose run the root is another, empty directory, once.
    let programs = base.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let (root, aside, once) = (node.root(), node.dir.join("aside"), base.path().join("once"));
    let script = format!(
        "#!/bin/sh\n[ -e {once:?} ] || exec /usr/bin/rsync \"$@\"\nrm {once:?}\nmv {root:?} {aside:?}\nmkdir {root:?}\n\
         /usr/bin/rsync \"$@\"\nended=$?\nrmdir {root:?}\nmv {aside:?} {root:?}\nexit $ended\n"
    );
    fs::write(programs.join("rsync"), script).unwrap();
    fs::set_permissions(programs.join("rsync"), fs::Permissions::from_mode(0o755)).unwrap();
    node.programs = Some(programs);
    daemon.start();
    node.start();
    node.write("d/f", "1");
    node.write("d/g", "1");
    node.wait();
    fs::write(&once, "").unwrap();
    node.write("d/f", "2");
    node.write("h", "new");
    until("the root was away", || !once.exists() && root.join("d/f").exists());
    node.wait();
    same(&node.root(), &daemon.at("web1"));
    fs::write(&once, "").unwrap();
    fs::remove_file(node.at("d/g")).unwrap();
    until("the root was away", || !once.exists() && root.join("d/f").exists());
    node.wait();
    same(&node.root(), &daemon.at("web1"));
}

#[test]
fn a_scheduled_check_mends_what_changed_there() {
    let base = tempfile::tempdir().unwrap();
    let (node, daemon) = started(base.path(), "full_check = \"* * * * *\"");
    let there = daemon.at("web1");
    node.write("d/f", "1");
    node.write("d/g", "1");
    node.wait();
    fs::remove_file(there.join("d/f")).unwrap();
    fs::write(there.join("d/g"), "changed there").unwrap();
    // The next minute begins within one.
    let end = Instant::now() + Duration::from_secs(60) + cluster::PATIENCE;
    while !there.join("d/f").exists() {
        assert!(Instant::now() < end, "no check came: {}", node.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    until("the other one is mended", || fs::read_to_string(there.join("d/g")).unwrap() == "1");
}

/// `PLEACH_BURST=10000` for the size of the issue.
#[test]
fn a_burst_reaches_three_daemons_with_modules_and_users_of_their_own() {
    let count: usize = std::env::var("PLEACH_BURST").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000);
    let base = tempfile::tempdir().unwrap();
    let mut node = Node::new(base.path(), "a");
    node.tree("t", "tree", "");
    let mut daemons: Vec<Daemon> = (1..=3).map(|i| Daemon::new(base.path(), &format!("rsyncd{i}"))).collect();
    for (i, daemon) in daemons.iter_mut().enumerate() {
        let module = format!("web{}", i + 1);
        daemon.module(&module, "").start();
        daemon.peer(&mut node, &module, "");
    }
    node.start();
    node.write("first", "1");
    node.wait();
    daemons[1].stop();
    let began = Instant::now();
    for i in 0..count {
        node.write(&format!("news/{}/page{i}.html", i % 10), &format!("<html>{i}</html>"));
    }
    // One that is down holds up no other.
    for i in [0, 2] {
        let there = daemons[i].at(&format!("web{}", i + 1));
        let last = there.join(format!("news/{}/page{}.html", (count - 1) % 10, count - 1));
        until("the last of the burst is there", || last.exists());
        until("all of it is", || node.exchange(&format!("web{}", i + 1), "t")["to_send"] == 0);
        same(&node.root(), &there);
    }
    println!("{count} files at two daemons after {:?}", began.elapsed());
    let log = fs::read_to_string(node.dir.join("log")).unwrap();
    for module in ["web1", "web3"] {
        let pushes = log.lines().filter(|l| l.contains("pushed") && l.contains(module)).count();
        println!("{module}: {pushes} pushes in all");
    }
    daemons[1].start();
    node.wait();
    same(&node.root(), &daemons[1].at("web2"));
    fs::remove_dir_all(node.at("news")).unwrap();
    node.wait();
    for (i, daemon) in daemons.iter().enumerate() {
        same(&node.root(), &daemon.at(&format!("web{}", i + 1)));
    }
}
