//! The commands that ask a running agent, as users run them: the real binary against a control server that says
//! what a test tells it to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use pleach_agent::control::{Handler, Handling, Keep, RawPath, Replies, Reply, Request, Server, path_field, socket_in};
use pleach_agent::failure::Failure;
use serde_json::{Value, json};

/// How long a test waits for what must come: far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a scripted agent does about any request, one after the other.
enum Step {
    Row(Value),
    Say(&'static str),
    End(Result<(), Failure>),
    /// The next step comes when the test lets it.
    Pause,
}

/// Keeps what it was asked; answers with its steps, then with success.
struct Script {
    steps: Vec<Step>,
    asked: Mutex<Vec<Request>>,
    go: tokio::sync::Semaphore,
}

impl Handler for Script {
    fn handle(self: Arc<Self>, request: Request, replies: Replies) -> Handling {
        Box::pin(async move {
            self.asked.lock().unwrap().push(request);
            for step in &self.steps {
                match step {
                    Step::Row(row) => replies.send(Reply::Row(row.clone())).await.unwrap(),
                    Step::Say(text) => replies.send(Reply::Say((*text).to_owned())).await.unwrap(),
                    Step::End(result) => return result.clone(),
                    Step::Pause => self.go.acquire().await.unwrap().forget(),
                }
            }
            Ok(())
        })
    }

    fn node(&self) -> String {
        "web1".to_owned()
    }
}

/// A directory with a config, and an agent for it while there is a runtime.
struct Node {
    dir: tempfile::TempDir,
    script: Arc<Script>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Node {
    /// Nobody answers.
    fn silent() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = format!("[node]\nname = \"web1\"\nstate = \"{}\"\n", dir.path().join("state").display());
        fs::write(dir.path().join("pleach.toml"), text).unwrap();
        let script = Script { steps: Vec::new(), asked: Mutex::default(), go: tokio::sync::Semaphore::new(0) };
        Self { dir, script: Arc::new(script), runtime: None }
    }

    fn running(steps: Vec<Step>) -> Self {
        let mut node = Self::silent();
        Arc::get_mut(&mut node.script).unwrap().steps = steps;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = Server::bind(&node.state()).unwrap();
        runtime.spawn(server.serve(Arc::clone(&node.script) as Arc<dyn Handler>));
        node.runtime = Some(runtime);
        node
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("pleach.toml")
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.args(args).arg("--config").arg(self.config()).current_dir(self.dir.path());
        command.env_remove("PLEACH_LOG").stdin(Stdio::null());
        command
    }

    fn pleach<S: AsRef<OsStr>>(&self, args: &[S]) -> Output {
        self.command(args).output().unwrap()
    }

    fn asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.script.asked.lock().unwrap())
    }
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The lines of a child's standard output as they come.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let stdout = child.stdout.take().unwrap();
    let (lines, come) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            if lines.send(line.unwrap()).is_err() {
                return;
            }
        }
    });
    come
}

fn status(in_sync: bool, state: &str) -> Value {
    json!({"node": "web1", "id": "SHA256:x", "version": "0.1.0", "uptime_s": 1.0, "config_error": null,
        "trees": [{"name": "www", "path": "/srv/www", "state": "watching", "in_sync": in_sync, "entries": 1, "bytes": 2,
            "seq": 3, "conflicts": 0, "problems": 0, "watches": 1, "watch_limit": 9, "polled_dirs": 0, "overflows": 0,
            "local_changes": 0, "mounts": [], "error": null}],
        "peers": [{"name": "web2", "kind": "pleach", "state": state, "error": null, "rtt_ms": null, "last_seen_s": null,
            "trees": [{"name": "www", "state": "ok", "to_send": 4, "to_send_bytes": 0, "to_receive": 0,
                "to_receive_bytes": 0, "acked_seq": 1}]}]})
}

#[test]
fn each_command_asks_for_what_its_words_say() {
    let node = Node::running(Vec::new());
    let here = fs::canonicalize(node.dir.path()).unwrap();
    let path = |path: &str| RawPath::new(here.join(path)).unwrap();
    let (www, web2) = (|| Some("www".to_owned()), || Some("web2".to_owned()));
    let cases = [
        ("wait", Request::Wait { tree: None, timeout_ms: None }),
        ("wait --tree www --timeout 1.5", Request::Wait { tree: www(), timeout_ms: Some(1_500) }),
        ("log", Request::Log { tree: None, follow: false, since: None }),
        ("log --tree www --follow --since 7 --json", Request::Log { tree: www(), follow: true, since: Some(7) }),
        ("problems --tree www --json", Request::Problems { tree: www() }),
        ("conflicts --tree www --json", Request::Conflicts { tree: www() }),
        ("resolve a/../b --keep current", Request::Resolve { path: path("b"), keep: Keep::Current, version: None }),
        (
            "resolve b --keep vaulted --version v1",
            Request::Resolve { path: path("b"), keep: Keep::Vaulted, version: Some("v1".to_owned()) },
        ),
        ("versions . --json", Request::Versions { path: RawPath::new(&here).unwrap() }),
        ("restore b", Request::Restore { path: path("b"), version: None, to: None }),
        (
            "restore /b --version v1 --to c/",
            Request::Restore { path: RawPath::new("/b").unwrap(), version: Some("v1".to_owned()), to: Some(path("c")) },
        ),
        ("rescan --tree www", Request::Rescan { tree: www() }),
        ("pause --peer web2", Request::Pause { tree: None, peer: web2() }),
        ("resume --tree www --peer web2", Request::Resume { tree: www(), peer: web2() }),
        ("push web2 --dry-run", Request::Push { peer: "web2".into(), dry_run: true }),
        ("approve --tree www", Request::Approve { tree: www(), peer: None }),
    ];
    for (words, want) in cases {
        let output = node.pleach(&words.split(' ').collect::<Vec<_>>());
        assert_eq!(
            (output.status.code(), out(&output), said(&output)),
            (Some(0), String::new(), String::new()),
            "{words}"
        );
        assert_eq!(node.asked(), [want], "{words}");
    }
    let odd = OsStr::from_bytes(b"a\xff\n");
    assert!(node.pleach(&[OsStr::new("versions"), odd]).status.success());
    assert_eq!(node.asked(), [Request::Versions { path: RawPath::new(here.join(odd)).unwrap() }]);
}

#[test]
fn wrong_words_are_usage_errors_and_never_reach_the_agent() {
    let node = Node::running(Vec::new());
    for words in [
        "resolve a",
        "resolve a --keep both",
        "resolve --keep current",
        "versions",
        "versions a b",
        "wait --timeout soon",
        "wait --timeout -1",
        "log --since x",
        "pause www",
        "status --check --watch",
        "restore a --at 12:00",
        "push",
        "reject",
        "nonsense",
        "",
    ] {
        let output = node.pleach(&words.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(2), "{words}: {}", said(&output));
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{words}");
    }
    assert_eq!(node.asked(), []);
    let output = node.pleach(&["restore", "a", "--at", "-2h"]);
    assert_eq!(said(&output), "pleach: restore --at: not in this version\n");
}

#[test]
fn rows_words_and_a_failure_come_through() {
    let failure = Failure::done("rescan", "www: it is paused").help("resume it: pleach resume --tree www");
    let node = Node::running(vec![
        Step::Row(json!({"tree": "www", "entries": 7})),
        Step::Say("still reading\x1b[31m"),
        Step::Row(json!({"tree": "b", "entries": 8})),
        Step::End(Err(failure)),
    ]);
    let output = node.pleach(&["rescan"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(out(&output), "www  entries=7\nb  entries=8\n");
    let want = "\
pleach: rescan: still reading\\x1b[31m
pleach: rescan: www: it is paused
  resume it: pleach resume --tree www
";
    assert_eq!(said(&output), want);
}

#[test]
fn a_usage_failure_of_the_agent_keeps_its_status() {
    let node = Node::running(vec![Step::End(Err(Failure::usage("log", "there is no tree 'x'")))]);
    let output = node.pleach(&["log", "--tree", "x"]);
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(2), "pleach: log: there is no tree 'x'\n"));
}

#[test]
fn json_prints_exactly_the_rows() {
    let (key, value) = path_field("path", b"a\xff");
    let rows = [
        json!({"tree": "www", "path": "a\n\u{e4}\"", "size": u64::MAX, "was": null, "later": [1.5, {"x": true}]}),
        json!({"tree": "www", key: value}),
    ];
    let node = Node::running(rows.iter().cloned().map(Step::Row).collect());
    for words in [&["log"][..], &["problems"], &["conflicts"], &["versions", "/a"]] {
        let output = node.pleach(&[words, &["--json"]].concat());
        assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
        assert_eq!(out(&output), rows.iter().map(|row| format!("{row}\n")).collect::<String>(), "{words:?}");
    }
}

#[test]
fn lists_are_text_for_people() {
    let row = json!({"tree": "www", "path": "a b\n", "version": "v1", "node": "web2", "time": "2026-01-02T03:04:05Z",
        "size": 5678, "hash": "af1349b9f5f9a1a6a0404dea36dcc949", "reason": "conflict"});
    let node = Node::running(vec![Step::Row(row)]);
    for (words, want) in [
        ("conflicts", "www  a b\\n  v1  web2  2026-01-02T03:04:05Z  5.6 kB  af1349b9f5f9a1a6\n"),
        ("versions /x", "www  a b\\n  v1  conflict  2026-01-02T03:04:05Z  5.6 kB  af1349b9f5f9a1a6\n"),
        ("problems", "www  a b\\n  2026-01-02T03:04:05Z  conflict\n"),
        ("log", "-\t2026-01-02T03:04:05Z\twww\ta b\\n\t-\t-\tweb2\t5678\taf1349b9f5f9a1a6a0404dea36dcc949\t-\n"),
    ] {
        let output = node.pleach(&words.split(' ').collect::<Vec<_>>());
        assert_eq!((out(&output).as_str(), output.status.code()), (want, Some(0)), "{words}: {}", said(&output));
    }
}

#[test]
fn the_log_is_printed_as_it_comes() {
    let row = |seq: u64| Step::Row(json!({"seq": seq, "tree": "www", "path": "a", "op": "modify"}));
    let node = Node::running(vec![row(1), Step::Pause, row(2), Step::Pause]);
    for (json, first) in [
        (false, "1\t-\twww\ta\t-\tmodify\t-\t-\t-\t-"),
        (true, "{\"op\":\"modify\",\"path\":\"a\",\"seq\":1,\"tree\":\"www\"}"),
    ] {
        let more = if json { &["log", "--follow", "--json"][..] } else { &["log", "--follow"] };
        let mut child = node.command(more).stdout(Stdio::piped()).spawn().unwrap();
        let come = lines(&mut child);
        assert_eq!(come.recv_timeout(PATIENCE).unwrap(), first);
        node.script.go.add_permits(1);
        assert!(come.recv_timeout(PATIENCE).unwrap().contains('2'));
        node.script.go.add_permits(1);
        assert_eq!(come.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let rows = || (0..3_000).map(|seq| Step::Row(json!({"seq": seq, "path": "x".repeat(100)})));
    let ends = Node::running(rows().collect());
    // Without an end the command must leave by itself.
    let goes_on = Node::running(rows().chain([Step::Pause]).collect());
    for (node, words) in [
        (&goes_on, &["log", "--follow"][..]),
        (&goes_on, &["log", "--json"]),
        (&goes_on, &["conflicts"]),
        (&ends, &["status", "--watch", "--json"]),
        (&ends, &["status"]),
        (&ends, &["versions", "/a"]),
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = node.command(words);
        let output = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!((output.status.code(), said(&output).as_str()), (Some(0), ""), "{words:?}");
    }
}

#[test]
fn without_an_agent_it_says_how_to_start_one() {
    let node = Node::silent();
    for words in
        ["status", "status --json --check", "wait", "log --follow", "problems", "conflicts --json", "versions /a"]
    {
        let output = node.pleach(&words.split(' ').collect::<Vec<_>>());
        let want = format!(
            "pleach: {}: no agent is running ({})\n  start it: pleach agent --config {}\n",
            words.split(' ').next().unwrap(),
            socket_in(&node.state()).display(),
            node.config().display(),
        );
        assert_eq!((output.status.code(), out(&output), said(&output)), (Some(1), String::new(), want), "{words}");
    }
    // A socket that an agent left behind is none either.
    fs::create_dir(node.state()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(socket_in(&node.state())).unwrap());
    let output = node.pleach(&["rescan"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).starts_with("pleach: rescan: no agent is running ("), "{}", said(&output));
}

#[test]
fn errors_elsewhere_in_the_config_do_not_keep_commands_from_the_agent() {
    let node = Node::running(vec![Step::Row(status(true, "connected"))]);
    let state = node.state();
    for more in [
        "name = \"not a name\"\nnonsense = 1\n[[tree]]\npath = 7\n",
        "http = \"x\"\n[[tree]\nname = \"x\"\n",
        "listen = \n[[hook]]\n",
    ] {
        fs::write(node.config(), format!("[node]\nstate = \"{}\"\n{more}", state.display())).unwrap();
        let output = node.pleach(&["status", "--check"]);
        assert_eq!(output.status.code(), Some(0), "{more}: {}", said(&output));
    }
    fs::write(node.config(), "[node]\nstate = \"relative\"\n").unwrap();
    assert_eq!(node.pleach(&["status"]).status.code(), Some(2));
    fs::remove_file(node.config()).unwrap();
    assert_eq!(node.pleach(&["status"]).status.code(), Some(2));
}

#[test]
fn status_is_text_or_the_row_and_checks() {
    let good = Node::running(vec![Step::Row(status(true, "connected"))]);
    let output = good.pleach(&["status", "--json", "--check"]);
    assert_eq!((output.status.code(), out(&output)), (Some(0), format!("{}\n", status(true, "connected"))));
    let output = good.pleach(&["status"]);
    let text = out(&output);
    assert!(output.status.success() && text.starts_with("web1  SHA256:x  pleach 0.1.0, up 1.0 s\n"), "{text}");
    assert!(text.contains("\nwww   watching  yes  ") && text.contains("\nweb2  pleach  connected  "), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
    assert_eq!(good.asked(), [Request::Status, Request::Status]);

    let bad = Node::running(vec![Step::Row(status(false, "unreachable"))]);
    assert!(bad.pleach(&["status"]).status.success());
    let output = bad.pleach(&["status", "--check"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(said(&output), "pleach: status: peer web2 is unreachable\n  tree www: 4 to send to web2\n");
    assert!(out(&output).contains("unreachable"), "{}", out(&output));

    // An agent that says nothing is not in sync.
    let empty = Node::running(Vec::new());
    assert_eq!(empty.pleach(&["status", "--check"]).status.code(), Some(1));
}

#[test]
fn status_watch_looks_again_until_the_agent_ends() {
    let mut node = Node::running(vec![Step::Row(status(true, "connected"))]);
    let mut child =
        node.command(&["status", "--watch", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let come = lines(&mut child);
    for _ in 0..2 {
        assert_eq!(come.recv_timeout(PATIENCE).unwrap(), status(true, "connected").to_string());
    }
    node.runtime.take().unwrap().shutdown_timeout(PATIENCE);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("pleach: status: no agent is running ("), "{said}");
}

#[test]
fn an_agent_that_ends_in_the_middle_is_a_failure() {
    let mut node = Node::running(vec![Step::Row(json!({"seq": 1})), Step::Pause]);
    let mut child = node.command(&["log", "--follow"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let come = lines(&mut child);
    assert!(come.recv_timeout(PATIENCE).unwrap().starts_with("1\t"));
    node.runtime.take().unwrap().shutdown_timeout(PATIENCE);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let want = "pleach: log: the agent ended before it was done\n  ask again once it runs: pleach status\n";
    assert_eq!(said(&output), want);
}

#[test]
fn a_wait_ends_even_where_the_agent_does_not() {
    let node = Node::running(vec![Step::Say("waits for web2: 4 changes"), Step::Pause]);
    let output = node.pleach(&["wait", "--timeout", "0"]);
    assert_eq!(output.status.code(), Some(1));
    let want = format!(
        "pleach: wait: waits for web2: 4 changes\npleach: wait: the agent does not answer ({})\n",
        socket_in(&node.state()).display()
    );
    assert!(said(&output).starts_with(&want), "{}", said(&output));
}

#[test]
fn help_names_every_command_and_every_command_has_help() {
    let node = Node::silent();
    let help = out(&node.pleach(&["--help"]));
    for command in [
        "sync",
        "init",
        "key",
        "agent",
        "status",
        "wait",
        "log",
        "problems",
        "conflicts",
        "resolve",
        "versions",
        "restore",
        "rescan",
        "pause",
        "resume",
        "approve",
    ] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}: {help}");
        let words: Vec<OsString> = vec![command.into(), "--help".into()];
        let output = node.pleach(&words);
        assert!(output.status.success() && out(&output).contains("--config <FILE>"), "{command}");
    }
}
