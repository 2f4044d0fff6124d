//! Agents as users run them: the real binary, a config file each, real directories, real links that
//! can be cut.

#![allow(
    clippy::unwrap_used,
    dead_code,
    unreachable_pub,
    reason = "a test that cannot go on fails; no test uses all of it"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

/// What a slow machine may need for anything here.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One node: its directory holds config, state and the tree's root.
pub struct Node {
    pub name: String,
    pub dir: PathBuf,
    pub port: u16,
    pub key: String,
    /// Comes before everything else on the agent's `PATH`.
    pub programs: Option<PathBuf>,
    config: String,
    agent: Option<Child>,
}

impl Node {
    /// A node with one tree `t`, listening on a free port, not running.
    pub fn new(base: &Path, name: &str) -> Self {
        let dir = base.join(name);
        fs::create_dir_all(dir.join("tree")).unwrap();
        let port = free_port();
        let mut node = Self {
            name: name.into(),
            dir,
            port,
            key: String::new(),
            programs: None,
            config: String::new(),
            agent: None,
        };
        node.say(&format!(
            "[node]\nname = \"{name}\"\nlisten = \"127.0.0.1:{port}\"\nstate = {:?}\nlog = \"debug\"\n",
            node.state()
        ));
        node.key = node.ok(&["key"]).split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        node
    }

    /// Adds a tree beneath the node's directory.
    pub fn tree(&mut self, name: &str, dir: &str, more: &str) -> &mut Self {
        fs::create_dir_all(self.dir.join(dir)).unwrap();
        let path = self.dir.join(dir);
        self.say(&format!("[[tree]]\nname = \"{name}\"\npath = {path:?}\n{more}\n"))
    }

    /// Adds a peer that is dialled at a port, or that dials in.
    pub fn peer(&mut self, other: &str, key: &str, port: Option<u16>, more: &str) -> &mut Self {
        let address = port.map(|p| format!("address = \"pleach://127.0.0.1:{p}\"\n")).unwrap_or_default();
        self.say(&format!("[[peer]]\nname = \"{other}\"\nkey = \"{key}\"\n{address}{more}\n"))
    }

    /// Adds text to the config.
    pub fn say(&mut self, text: &str) -> &mut Self {
        self.config.push_str(text);
        fs::write(self.config_file(), &self.config).unwrap();
        self
    }

    /// Replaces text in the config.
    pub fn reword(&mut self, old: &str, new: &str) -> &mut Self {
        assert!(self.config.contains(old), "{old}");
        self.config = self.config.replace(old, new);
        self.say("")
    }

    pub fn config_file(&self) -> PathBuf {
        self.dir.join("pleach.toml")
    }

    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn root(&self) -> PathBuf {
        self.dir.join("tree")
    }

    /// A path in the tree `t`.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub fn write(&self, path: &str, content: &str) {
        let at = self.at(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, content).unwrap();
    }

    pub fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.at(path)).ok()
    }

    /// Starts the agent and waits until it answers.
    pub fn start(&mut self) -> &mut Self {
        self.spawn();
        until(&format!("{} answers", self.name), || self.run(&["status", "--json"]).status.success());
        self
    }

    /// Starts the agent.
    pub fn spawn(&mut self) {
        assert!(self.agent.is_none(), "{} runs", self.name);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.args(["agent", "--config"]).arg(self.config_file()).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(log);
        if let Some(programs) = &self.programs {
            let rest = std::env::var_os("PATH").unwrap_or_default();
            let mut all = programs.clone().into_os_string();
            all.push(":");
            all.push(rest);
            command.env("PATH", all);
        }
        // So that no agent outlives a test that was killed.
        #[allow(unsafe_code, reason = "prctl is safe to call between fork and exec")]
        unsafe {
            command.pre_exec(|| {
                rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
                Ok(())
            });
        }
        self.agent = Some(command.spawn().unwrap());
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills the agent as -9 does.
    pub fn kill(&mut self) {
        let mut agent = self.agent.take().unwrap();
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// Stops the agent as systemd does; it must end well.
    pub fn stop(&mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.agent.take().unwrap().wait().unwrap();
        assert!(status.success(), "{}: {status}\n{}", self.name, self.log());
    }

    /// Waits until the agent ends by itself.
    pub fn ended(&mut self) -> std::process::ExitStatus {
        self.agent.take().unwrap().wait().unwrap()
    }

    /// Runs a command against this node.
    pub fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.arg(args[0]).arg("--config").arg(self.config_file()).args(&args[1..]).stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Runs a command that must succeed; gives its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{} {args:?}: {said}\n{}", self.name, self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail; gives what it says.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{} {args:?}: {output:?}", self.name);
        String::from_utf8(output.stderr).unwrap()
    }

    /// The rows that a list prints.
    pub fn rows(&self, args: &[&str]) -> Vec<Value> {
        let text = self.ok(&[args, &["--json"]].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok(&["status", "--json"])).unwrap()
    }

    /// A tree's row of the status.
    pub fn tree_status(&self, name: &str) -> Value {
        named(&self.status()["trees"], name)
    }

    /// A peer's row of the status.
    pub fn peer_status(&self, name: &str) -> Value {
        named(&self.status()["peers"], name)
    }

    /// A tree's row within a peer's row of the status.
    pub fn exchange(&self, peer: &str, tree: &str) -> Value {
        named(&self.peer_status(peer)["trees"], tree)
    }

    /// What tells one conflict from another, for each conflict.
    pub fn conflicts(&self) -> Vec<[Value; 5]> {
        let told = |row: &Value| ["path", "version", "node", "size", "hash"].map(|field| row[field].clone());
        let mut rows: Vec<[Value; 5]> = self.rows(&["conflicts"]).iter().map(told).collect();
        rows.sort_by_key(|row| row.each_ref().map(Value::to_string));
        rows
    }

    /// `pleach wait`, which must succeed in time.
    pub fn wait(&self) {
        self.ok(&["wait", "--timeout", "60"]);
    }

    /// The last lines of the agent's log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().ok();
            agent.wait().ok();
        }
    }
}

fn named(rows: &Value, name: &str) -> Value {
    rows.as_array().unwrap().iter().find(|r| r["name"] == name).unwrap_or_else(|| panic!("no {name} in {rows}")).clone()
}

/// A port below those that the kernel gives to outgoing connections, so that none of them takes it
/// while its agent is down.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 200).unwrap() * 100;
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::SeqCst)) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Two nodes `a` and `b` with one tree `t`; `a` dials `b` through a link that can be cut.
pub struct Pair {
    pub base: tempfile::TempDir,
    pub a: Node,
    pub b: Node,
    pub link: Link,
}

impl Pair {
    /// Not running yet.
    pub fn new() -> Self {
        Self::with("", "")
    }

    /// The same, with more lines for each node's `[[tree]]` and `[[peer]]`.
    pub fn with(tree: &str, peer: &str) -> Self {
        let base = tempfile::tempdir().unwrap();
        let (mut a, mut b) = (Node::new(base.path(), "a"), Node::new(base.path(), "b"));
        let link = Link::to(b.port);
        a.tree("t", "tree", tree).peer("b", &b.key.clone(), Some(link.port), peer);
        b.tree("t", "tree", tree).peer("a", &a.key.clone(), None, peer);
        Self { base, a, b, link }
    }

    pub fn start(mut self) -> Self {
        self.a.start();
        self.b.start();
        self
    }

    /// Both have all.
    pub fn wait(&self) {
        self.a.wait();
        self.b.wait();
        same(&self.a.root(), &self.b.root());
    }
}

/// Nodes `a`, `b`, ... with one tree `t`, and links between some of them.
pub struct Mesh {
    pub base: tempfile::TempDir,
    pub nodes: Vec<Node>,
    pub links: Vec<Link>,
}

impl Mesh {
    /// Running nodes; of each pair the first dials the second.
    pub fn start(names: &[&str], pairs: &[(usize, usize)]) -> Self {
        let base = tempfile::tempdir().unwrap();
        let mut nodes: Vec<Node> = names.iter().map(|name| Node::new(base.path(), name)).collect();
        let mut links = Vec::new();
        for node in &mut nodes {
            node.tree("t", "tree", "");
        }
        for (from, to) in pairs {
            let link = Link::to(nodes[*to].port);
            let (from_key, to_key) = (nodes[*from].key.clone(), nodes[*to].key.clone());
            nodes[*from].peer(names[*to], &to_key, Some(link.port), "");
            nodes[*to].peer(names[*from], &from_key, None, "");
            links.push(link);
        }
        for node in &mut nodes {
            node.start();
        }
        Self { base, nodes, links }
    }

    /// All have all: each round brings what there is one hop further.
    pub fn wait(&self) {
        for _ in 1..self.nodes.len() {
            self.nodes.iter().for_each(Node::wait);
        }
        for node in &self.nodes[1..] {
            same(&self.nodes[0].root(), &node.root());
            assert_eq!(self.nodes[0].conflicts(), node.conflicts(), "conflicts on a and {}", node.name);
        }
    }

    /// Changes on several nodes that no agent sees before all of them are made.
    pub fn at_once(&self, change: impl FnOnce(&[Node])) {
        at_once(&self.nodes.iter().collect::<Vec<_>>(), || change(&self.nodes));
    }
}

/// Changes on several nodes that no agent sees before all of them are made.
pub fn at_once(nodes: &[&Node], change: impl FnOnce()) {
    nodes.iter().for_each(|node| node.signal(rustix::process::Signal::STOP));
    change();
    nodes.iter().for_each(|node| node.signal(rustix::process::Signal::CONT));
}

/// What a user sees of one path: kind and mode, owner, time, content or target.
pub type Seen = (u32, u32, u32, i64, i64, Vec<u8>);

/// All of a tree, but for pleach's own directory.
pub fn snapshot(root: &Path) -> std::collections::BTreeMap<PathBuf, Seen> {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::MetadataExt;
    let (mut seen, mut todo) = (std::collections::BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path == root.join(".pleach") {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_dir() {
                todo.push(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
            } else {
                fs::read(&path).unwrap()
            };
            let key = path.strip_prefix(root).unwrap().to_path_buf();
            seen.insert(key, (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec(), content));
        }
    }
    seen
}

/// Fails unless two trees are equal in content, kind, mode, owner and time.
pub fn same(left: &Path, right: &Path) {
    let (l, r) = (snapshot(left), snapshot(right));
    let differing: Vec<String> = l
        .keys()
        .chain(r.keys())
        .filter(|path| l.get(*path) != r.get(*path))
        .map(|path| format!("{path:?}: {:?} {:?}", l.get(path).map(brief), r.get(path).map(brief)))
        .take(10)
        .collect();
    assert!(differing.is_empty(), "{left:?} and {right:?} differ: {differing:#?}");
}

fn brief(seen: &Seen) -> String {
    let text = String::from_utf8_lossy(&seen.5[..seen.5.len().min(40)]).into_owned();
    format!("{:o} {}.{:09} {} bytes {text:?}", seen.0, seen.3, seen.4, seen.5.len())
}

/// A TCP link through which one node dials another; it can be cut and joined again.
pub struct Link {
    pub port: u16,
    /// Connections so far, and how many of them have not ended.
    pub opened: Arc<AtomicUsize>,
    pub live: Arc<AtomicUsize>,
    /// Bytes that went through, both ways.
    pub bytes: Arc<AtomicUsize>,
    /// How many go through in a second, each way; 0: as many as can.
    pub rate: Arc<AtomicUsize>,
    /// The sockets of all connections; none while it is cut.
    streams: Arc<Mutex<Option<Vec<TcpStream>>>>,
}

impl Link {
    /// A link to a port of this machine.
    pub fn to(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let streams = Arc::new(Mutex::new(Some(Vec::new())));
        let [opened, live, bytes, rate] = std::array::from_fn(|_| Arc::new(AtomicUsize::new(0)));
        let link = Self { port, opened, live, bytes, rate, streams };
        let (bytes, rate) = (Arc::clone(&link.bytes), Arc::clone(&link.rate));
        let (opened, live, all) = (Arc::clone(&link.opened), Arc::clone(&link.live), Arc::clone(&link.streams));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // Held until the sockets are listed, so that a cut misses none.
                let mut all = all.lock().unwrap();
                let Some(all) = all.as_mut() else { continue };
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                all.extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                let (near2, far2) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                opened.fetch_add(1, Ordering::SeqCst);
                live.fetch_add(1, Ordering::SeqCst);
                let live = Arc::clone(&live);
                let (there, back) = ((Arc::clone(&bytes), Arc::clone(&rate)), (Arc::clone(&bytes), Arc::clone(&rate)));
                std::thread::spawn(move || {
                    let other = std::thread::spawn(move || pump(far2, near2, &back.0, &back.1));
                    pump(near, far, &there.0, &there.1);
                    other.join().unwrap();
                    live.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        link
    }

    /// Cuts what goes through, and lets nothing new through.
    pub fn cut(&self) {
        for stream in self.streams.lock().unwrap().take().into_iter().flatten() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Lets connections through again.
    pub fn join(&self) {
        self.streams.lock().unwrap().get_or_insert_default();
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, bytes: &AtomicUsize, rate: &AtomicUsize) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(n) if n > 0 && to.write_all(&buffer[..n]).is_ok() => {
                bytes.fetch_add(n, Ordering::SeqCst);
                let rate = rate.load(Ordering::SeqCst);
                if rate > 0 {
                    std::thread::sleep(Duration::from_secs_f64(n as f64 / rate as f64));
                }
            }
            _ => break,
        }
    }
    from.shutdown(Shutdown::Both).ok();
    to.shutdown(Shutdown::Both).ok();
}
