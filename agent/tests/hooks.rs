//! Hooks: real agents run real programs, and post to a real server, for what happened in their trees.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
#[path = "push/daemon.rs"]
mod daemon;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use cluster::{Link, Node, Pair, at_once, until};
use daemon::Daemon;
use serde_json::Value;

/// A hook that notes each of its runs beneath a directory, and ends as it is told there.
struct Hook {
    dir: PathBuf,
}

/// What one run was given.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Run {
    /// `PLEACH_TREE PLEACH_ON PLEACH_NODE PLEACH_SEQ` and the working directory.
    about: Vec<String>,
    paths: BTreeSet<Vec<u8>>,
}

impl Run {
    fn has(&self, path: &str) -> bool {
        self.paths.contains(path.as_bytes())
    }

    fn seq(&self) -> (u64, u64) {
        let (first, last) = self.about[3].split_once('-').unwrap();
        (first.parse().unwrap(), last.parse().unwrap())
    }
}

/// Notes input and surroundings under the run's number, before it does what `then` says. A run that is cut off in
/// the middle leaves no `N.done`.
const SCRIPT: &str = r#"#!/bin/sh
cd -P . && here=$PWD
n=$(ls "$DIR" | grep -c '\.in$')
cat > "$DIR/$n.tmp"
printf '%s\n' "$PLEACH_TREE" "$PLEACH_ON" "$PLEACH_NODE" "$PLEACH_SEQ" "$here" > "$DIR/$n.about"
mv "$DIR/$n.tmp" "$DIR/$n.in"
echo "run $n"
if [ -e "$DIR/then" ]; then . "$DIR/then"; fi
touch "$DIR/$n.done"
"#;

impl Hook {
    /// A hook in the config of a node that does not run.
    fn new(node: &mut Node, name: &str, lines: &str) -> Self {
        let hook = Self { dir: node.dir.join(name) };
        fs::create_dir_all(&hook.dir).unwrap();
        let script = node.dir.join(format!("{name}.sh"));
        fs::write(&script, SCRIPT.replace("$DIR", hook.dir.to_str().unwrap())).unwrap();
        node.say(&format!("[[hook]]\ntree = \"t\"\ncommand = [\"sh\", {script:?}]\n{lines}\n"));
        hook
    }

    /// What each run does from now on, behind the noting.
    fn then(&self, lines: &str) {
        let staged = self.dir.join("then.new");
        fs::write(&staged, lines).unwrap();
        fs::rename(staged, self.dir.join("then")).unwrap();
    }

    fn runs(&self) -> Vec<Run> {
        let read = |n: usize| {
            let input = fs::read(self.dir.join(format!("{n}.in"))).ok()?;
            assert!(input.is_empty() || input.ends_with(&[0]), "{input:?}");
            let paths = input.split(|b| *b == 0).filter(|path| !path.is_empty()).map(<[u8]>::to_vec).collect();
            let about = fs::read_to_string(self.dir.join(format!("{n}.about"))).unwrap();
            Some(Run { about: about.lines().map(str::to_owned).collect(), paths })
        };
        (0..).map_while(read).collect()
    }

    fn told(&self, path: &str) -> bool {
        self.runs().iter().any(|run| run.has(path))
    }
}

fn hook_status(node: &Node) -> Value {
    node.status()["hooks"][0].clone()
}

fn is_idle(node: &Node) -> bool {
    let status = hook_status(node);
    status["state"] == "ok" && status["pending"] == 0
}

#[test]
fn what_peers_told_is_told_once_it_is_applied() {
    let mut pair = Pair::new();
    let hook = Hook::new(&mut pair.b, "hook", "");
    let pair = pair.start();
    let names: [&[u8]; 4] = [b"a\nb", b"caf\xe9", b"plain", b"-n $HOME 'x"];
    for name in names {
        fs::write(pair.a.root().join(OsStr::from_bytes(name)), "1").unwrap();
    }
    fs::create_dir(pair.a.at("d")).unwrap();
    pair.b.write("own", "of b");
    pair.wait();
    until("all names are told", || {
        let told: BTreeSet<Vec<u8>> = hook.runs().into_iter().flat_map(|run| run.paths).collect();
        names.iter().all(|name| told.contains(*name)) && told.contains(&b"d"[..])
    });
    assert!(!hook.told("own"), "its own change was not applied here");
    let run = hook.runs().remove(0);
    let root = fs::canonicalize(pair.b.root()).unwrap();
    let about: Vec<&str> = run.about.iter().map(String::as_str).collect();
    assert_eq!((&about[..3], about[4]), (&["t", "applied", "b"][..], root.to_str().unwrap()));
    let (first, last) = run.seq();
    assert!(0 < first && first <= last && last <= pair.b.tree_status("t")["seq"].as_u64().unwrap());
    // A file is there when it is told, a deleted one is not.
    hook.then(&format!("[ -e plain ] || touch {:?}", hook.dir.join("right")));
    fs::remove_file(pair.a.at("plain")).unwrap();
    pair.wait();
    until("the deletion is told", || hook.runs().iter().skip(1).any(|run| run.has("plain")));
    until("and was done", || hook.dir.join("right").exists());
    until("nothing waits", || is_idle(&pair.b));
    assert!(pair.b.ok(&["status"]).contains("applied"));
    // What is there when a hook comes is not told.
    let seen = hook.runs().len();
    let mut pair = pair;
    pair.b.stop();
    let second = Hook::new(&mut pair.b, "second", "");
    pair.b.start();
    pair.a.write("later", "1");
    pair.wait();
    until("both are told", || second.told("later") && hook.told("later"));
    assert!(!second.told("plain") && second.runs().iter().all(|run| run.paths.len() <= 2), "{:?}", second.runs());
    assert!(hook.runs().len() > seen);
    assert!(hook.runs()[seen..].iter().all(|run| !run.has("plain")), "it is not told again");
}

#[test]
fn what_was_sent_is_told_once_it_is_there() {
    let base = tempfile::tempdir().unwrap();
    let (mut a, mut b) = (Node::new(base.path(), "a"), Node::new(base.path(), "b"));
    let link = Link::to(b.port);
    let mut daemon = Daemon::new(base.path(), "rsyncd");
    daemon.module("web1", "");
    a.tree("t", "tree", "").peer("b", &b.key.clone(), Some(link.port), "");
    b.tree("t", "tree", "").peer("a", &a.key.clone(), None, "");
    daemon.peer(&mut a, "web1", "");
    let hook = Hook::new(&mut a, "hook", "on = [\"sent\"]");
    a.write("old", "there before");
    daemon.start();
    // Only a change that both have is told.
    let there = [b.root(), daemon.at("web1")].map(|dir| format!("[ -e {:?} ]", dir.join("new")));
    hook.then(&format!("{} || touch {:?}", there.join(" && "), hook.dir.join("early")));
    a.start();
    b.start();
    a.wait();
    a.write("new", "1");
    until("the change is told", || hook.told("new"));
    assert!(!hook.dir.join("early").exists(), "told before it was there");
    assert!(!hook.told("old"), "what is there at the first scan was not sent as a change");
    b.write("theirs", "of b");
    a.wait();
    // Whoever is not connected is not waited for; with nobody there nothing counts as sent.
    link.cut();
    daemon.stop();
    until("b is away", || a.peer_status("b")["state"] != "connected");
    a.write("alone", "1");
    until("the daemon is away", || a.peer_status("web1")["state"] == "unreachable");
    until("it waits", || hook_status(&a)["pending"] == 1);
    assert!(!hook.told("alone"));
    daemon.start();
    until("one of the two is enough", || hook.told("alone"));
    assert!(!b.at("alone").exists() && daemon.at("web1").join("alone").exists());
    link.join();
    a.wait();
    assert!(!hook.told("theirs"), "a change of a peer's was told as sent");
}

/// A directory that nothing can be put into, not even by root; undone when it goes.
struct Trouble<'p>(&'p Path);

impl<'p> Trouble<'p> {
    fn make(dir: &'p Path) -> Option<Self> {
        let status = Command::new("chattr").arg("+i").arg(dir).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for Trouble<'_> {
    fn drop(&mut self) {
        Command::new("chattr").arg("-i").arg(self.0).status().ok();
    }
}

#[test]
fn conflicts_and_errors_are_told() {
    let mut pair = Pair::new();
    let conflicts = Hook::new(&mut pair.b, "conflicts", "on = [\"conflict\"]");
    let errors = Hook::new(&mut pair.b, "errors", "on = [\"error\"]");
    let pair = pair.start();
    pair.a.write("f", "0");
    pair.a.write("quiet", "0");
    pair.a.write("d/old", "0");
    pair.wait();
    at_once(&[&pair.a, &pair.b], || {
        pair.a.write("f", "of a");
        pair.b.write("f", "of b, longer");
    });
    until("the conflict is told", || conflicts.told("f"));
    pair.a.wait();
    assert_eq!(pair.b.rows(&["conflicts"]).len(), 1);
    assert_eq!(conflicts.runs()[0].about[1], "conflict");
    let dir = pair.b.at("d");
    let Some(_trouble) = Trouble::make(&dir) else {
        eprintln!("skipped: no directory can be made immutable here");
        return;
    };
    pair.a.write("d/new", "1");
    until("b names the problem", || pair.b.rows(&["problems"]).iter().any(|row| row["path"] == "d/new"));
    until("the problem is told", || errors.told("d/new"));
    assert_eq!(errors.runs()[0].about[1], "error");
    let told = |run: &Run| usize::from(run.has("d/new"));
    // It is tried again, and the same problem is not told at each.
    let tries = || {
        let log = fs::read_to_string(pair.b.dir.join("log")).unwrap();
        log.lines().filter(|line| line.contains("cannot be synced") && line.contains("d/new")).count()
    };
    until("it was tried again", || tries() >= 3);
    assert_eq!(errors.runs().iter().map(told).sum::<usize>(), 1, "{:?}", errors.runs());
    assert!(!errors.told("quiet") && !conflicts.told("quiet"));
}

#[test]
fn a_hook_that_fails_is_given_the_same_again_and_holds_up_nobody() {
    let mut pair = Pair::new();
    let hook = Hook::new(&mut pair.b, "hook", "");
    let other = Hook::new(&mut pair.b, "other", "");
    let pair = pair.start();
    hook.then("echo no room >&2; exit 3");
    pair.a.write("first", "1");
    pair.wait();
    until("it fails", || hook.runs().len() == 1);
    until("that is shown", || !hook_status(&pair.b)["error"].is_null());
    pair.a.write("second", "1");
    pair.wait();
    until("the other hook goes on", || other.told("second"));
    until("it fails again", || hook.runs().len() >= 2);
    let status = hook_status(&pair.b);
    assert_eq!(status["error"], "exit status: 3: no room", "{status}");
    assert_eq!(status["pending"], 2, "{status}");
    assert!(pair.b.ok(&["status"]).contains("failed and is run again: exit status: 3: no room"));
    let problems = pair.b.rows(&["problems"]);
    assert!(problems.iter().any(|row| row["reason"].as_str().unwrap().contains("no room")), "{problems:?}");
    hook.then("");
    until("it goes well", || hook.told("second"));
    let runs = hook.runs();
    let (last, failed) = runs.split_last().unwrap();
    assert!(failed.len() >= 3 && failed.iter().all(|run| *run == failed[0]), "{runs:#?}");
    assert!(failed[0].has("first") && !failed[0].has("second") && !last.has("first"), "{runs:#?}");
    assert!(failed[0].seq().1 < last.seq().0, "{runs:#?}");
    until("nothing waits", || is_idle(&pair.b));
    assert_eq!(hook_status(&pair.b)["error"], Value::Null);
}

fn alive(pid_file: &Path) -> bool {
    let pid = fs::read_to_string(pid_file).unwrap();
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    // One that waits to be reaped by whoever adopted it is dead.
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().is_empty() && !rest.trim_start().starts_with('Z'))
}

/// Lines that leave a process of its own in the hook's group, and wait for ever.
fn hangs(hook: &Hook) -> String {
    let pid = hook.dir.join("pid");
    format!("sleep 1000 & echo $! > {pid:?}.new; mv {pid:?}.new {pid:?}; wait")
}

#[test]
fn a_run_that_takes_too_long_ends_with_all_that_it_started() {
    let mut pair = Pair::new();
    let hook = Hook::new(&mut pair.b, "hook", "timeout = \"1s\"");
    let pair = pair.start();
    hook.then(&hangs(&hook));
    pair.a.write("f", "1");
    let pid = hook.dir.join("pid");
    until("it runs", || pid.exists());
    until("the time is over", || hook_status(&pair.b)["error"].as_str().is_some_and(|e| e.contains("longer than 1s")));
    hook.then("");
    until("it goes well", || hook.dir.join("1.done").exists() || hook.dir.join("2.done").exists());
    until("all of the group is gone", || !alive(&pid));
    assert!(hook.runs().iter().all(|run| run.has("f")));
}

#[test]
fn a_restart_and_a_kill_in_the_middle_run_the_batch_again() {
    let mut pair = Pair::new();
    let hook = Hook::new(&mut pair.b, "hook", "");
    let mut pair = pair.start();
    let pid = hook.dir.join("pid");
    for (round, name) in ["stopped", "killed"].into_iter().enumerate() {
        hook.then(&hangs(&hook));
        pair.a.write(name, "1");
        until("it runs", || pid.exists());
        let before = hook.runs().len();
        assert!(hook.runs()[before - 1].has(name), "{:?}", hook.runs());
        if round == 0 {
            pair.b.stop();
            until("what ran is ended", || !alive(&pid));
        } else {
            pair.b.kill();
            assert!(alive(&pid), "a kill of the agent alone leaves it");
        }
        hook.then("");
        pair.b.start();
        until("the batch is run again", || hook.runs().len() > before && hook.runs()[before].has(name));
        until("it is told", || is_idle(&pair.b));
        assert!(!alive(&pid), "the run of the earlier life goes on");
        fs::remove_file(&pid).unwrap();
        let after = hook.runs().len();
        pair.b.stop();
        pair.b.start();
        pair.a.write(&format!("{name}-after"), "1");
        until("the next is told", || hook.told(&format!("{name}-after")));
        // Else it would do what the next round says.
        until("that run is over", || is_idle(&pair.b));
        assert!(hook.runs()[after..].iter().all(|run| !run.has(name)), "what was told is told again");
    }
}

#[test]
fn only_the_paths_that_it_names_are_told() {
    let mut pair = Pair::new();
    let hook = Hook::new(&mut pair.b, "hook", "paths = [\"*.html\", \"!draft*\", \"/static/\"]");
    let pair = pair.start();
    for path in ["a.html", "d/b.html", "draft.html", "c.css", "static/e/f.css", "d/static/g.css"] {
        pair.a.write(path, "1");
    }
    pair.wait();
    pair.a.write("last.html", "1");
    until("the last is told", || hook.told("last.html"));
    let told: BTreeSet<Vec<u8>> = hook.runs().into_iter().flat_map(|run| run.paths).collect();
    let told: Vec<String> = told.into_iter().map(|path| String::from_utf8(path).unwrap()).collect();
    assert_eq!(told, ["a.html", "d/b.html", "last.html", "static", "static/e", "static/e/f.css"]);
    until("nothing waits", || is_idle(&pair.b));
}

#[test]
fn a_burst_is_gathered_into_few_runs() {
    let mut pair = Pair::new();
    let hook = Hook::new(&mut pair.b, "hook", "debounce = \"2s\"");
    let slow = Hook::new(&mut pair.b, "slow", "");
    let pair = pair.start();
    // A hook without a debounce takes what came during a run with the next one.
    slow.then("until [ -e go ]; do sleep 0.05; done");
    pair.a.write("zero", "1");
    until("it runs", || slow.told("zero"));
    for i in 0..300 {
        pair.a.write(&format!("d{}/f{i}", i % 7), "1");
    }
    pair.wait();
    pair.a.write("go", "1");
    until("all is told", || hook.told("go") && hook.told("d5/f299") && slow.told("go"));
    for hook in [&hook, &slow] {
        let runs = hook.runs();
        let told: usize = runs.iter().map(|run| run.paths.len()).sum();
        assert!(runs.len() <= 3 && told == 309, "{} runs, {told} paths", runs.len());
    }
}

/// A server that answers each request as it is told, and gives out the bodies.
fn server(answers: &'static [&'static str]) -> (u16, mpsc::Receiver<(String, Value)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, bodies) = mpsc::channel();
    std::thread::spawn(move || {
        let mut answers = answers.iter();
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.strip_prefix("Content-Length: ") {
                    length = value.trim().parse().unwrap();
                }
                if line == "\r\n" {
                    break;
                }
                head += &line;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let answer = answers.next().unwrap_or(&"HTTP/1.1 204 No Content\r\n\r\n");
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
            told.send((head, serde_json::from_slice(&body).unwrap())).unwrap();
        }
    });
    (port, bodies)
}

#[test]
fn a_url_is_posted_to() {
    let mut pair = Pair::new();
    let (port, bodies) = server(&["HTTP/1.1 503 Not Now\r\nContent-Length: 0\r\n\r\n"]);
    pair.b.say(&format!("[[hook]]\ntree = \"t\"\nurl = \"http://127.0.0.1:{port}/purge?x=1\"\n"));
    let pair = pair.start();
    pair.a.write("plain", "1");
    let next = || bodies.recv_timeout(cluster::PATIENCE).unwrap();
    let (head, body) = next();
    assert!(head.starts_with(&format!("POST /purge?x=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n")), "{head}");
    assert_eq!((&body["node"], &body["tree"], &body["on"]), (&"b".into(), &"t".into(), &"applied".into()));
    assert_eq!(body["paths"], serde_json::json!(["plain"]));
    assert!(body["seq"][0].as_u64().unwrap() <= body["seq"][1].as_u64().unwrap());
    until("the refusal is shown", || hook_status(&pair.b)["error"] == "it answered 503 Not Now");
    assert_eq!(next().1, body, "the same again");
    until("it is told", || is_idle(&pair.b));
    fs::write(pair.a.root().join(OsStr::from_bytes(b"caf\xe9")), "1").unwrap();
    assert_eq!(next().1["paths"], serde_json::json!([{"path_b64": "Y2Fm6Q=="}]));
}

#[test]
fn a_reload_starts_and_stops_hooks() {
    let mut pair = Pair::new();
    let first = Hook::new(&mut pair.b, "first", "paths = [\"*\"]");
    let mut pair = pair.start();
    let pid = first.dir.join("pid");
    first.then(&hangs(&first));
    pair.a.write("one", "1");
    until("it runs", || pid.exists());
    // A hook that takes the place of one of the same kind goes on where that was.
    pair.b.reword("paths = [\"*\"]", "paths = [\"*\", \"!x\"]");
    let before = first.runs().len();
    first.then("");
    pair.b.signal(rustix::process::Signal::HUP);
    until("what ran is ended", || !alive(&pid));
    until("the hook is run again", || first.runs().len() > before);
    assert!(first.runs()[before].has("one"), "{:?}", first.runs());
    until("it is told", || is_idle(&pair.b));
    let second = Hook::new(&mut pair.b, "second", "on = [\"applied\", \"error\"]");
    pair.b.signal(rustix::process::Signal::HUP);
    until("both are there", || pair.b.status()["hooks"].as_array().unwrap().len() == 2);
    pair.a.write("two", "1");
    until("both are told", || first.told("two") && second.told("two"));
    assert!(!second.told("one"));
    // What changes only its times stays what it is; a run whose end is not noted yet would come twice.
    until("that is noted", || is_idle(&pair.b));
    pair.b.reword("on = [\"applied\", \"error\"]", "on = [\"error\", \"applied\"]\ndebounce = \"1ms\"");
    pair.b.signal(rustix::process::Signal::HUP);
    let since = Instant::now();
    pair.a.write("three", "1");
    until("both are told", || first.told("three") && second.told("three"));
    assert!(since.elapsed() < Duration::from_secs(60));
    assert_eq!(second.runs().iter().filter(|run| run.has("two")).count(), 1);
}
