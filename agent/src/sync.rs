//! `pleach sync DIR_A DIR_B`: two nodes in one process, an SSH connection on loopback between them.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::agent::Agent;
use crate::bandwidth::BandwidthLimit;
use crate::compress::Compress;
use crate::config::{self, Config, PeerConfig, TreeConfig};
use crate::control::{Handler, Reply, Request};
use crate::exchange::{PeerProgress, StreamState};
use crate::failure::Failure;
use crate::keys::HostKey;
use crate::owner::{Phase, TreeStatus};

/// How often the view is drawn and convergence is looked at.
const VIEW: Duration = Duration::from_millis(50);
/// How long both sides must be at rest before `--once` believes it.
const REST: Duration = Duration::from_millis(300);
/// The tree's name on both sides.
const TREE: &str = "sync";
/// Problems that are named at the end.
const PROBLEMS_MAX: usize = 20;

/// Keeps two directories in step until Ctrl-C, or with `once` until they are.
///
/// # Errors
/// What keeps it from starting or going on.
pub fn run(a: &Path, b: &Path, once: bool) -> Result<(), Failure> {
    let roots = [real_dir(a)?, real_dir(b)?];
    if roots[0] == roots[1] || roots[0].starts_with(&roots[1]) || roots[1].starts_with(&roots[0]) {
        let why = "one directory lies within the other, or both are the same";
        return Err(Failure::done("sync", why).help("name two directories that have nothing in common"));
    }
    let state = state_dir(&roots)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::done("sync", format!("cannot catch signals: {error}")))?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::done("sync", format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let sides = start(&state, &roots).await?;
        let names = roots.map(|root| root.display().to_string());
        let outcome = watch_over(&sides, &names, once, &stop).await;
        for side in sides {
            side.stop().await;
        }
        outcome
    })
}

fn real_dir(path: &Path) -> Result<PathBuf, Failure> {
    let what = format!("sync {}", path.display());
    let real = fs::canonicalize(path).map_err(|error| Failure::done(&what, error.to_string()))?;
    if real.is_dir() { Ok(real) } else { Err(Failure::done(&what, "it is not a directory")) }
}

/// The state of this pair of real paths: a second run goes on where the first ended.
fn state_dir(roots: &[PathBuf; 2]) -> Result<PathBuf, Failure> {
    let mut hasher = blake3::Hasher::new();
    for root in roots {
        hasher.update(root.as_os_str().as_encoded_bytes());
        hasher.update(&[0]);
    }
    let dir = config::default_state().join("sync").join(&hasher.finalize().to_hex()[..32]);
    if dir.is_relative() {
        return Err(Failure::done("sync", "there is no place for its state").help("set XDG_STATE_HOME or HOME"));
    }
    fs::create_dir_all(&dir)
        .map_err(|error| Failure::done(format!("sync: making {}", dir.display()), error.to_string()))?;
    Ok(dir)
}

/// Starts both nodes: the left one listens on loopback, the right one dials.
async fn start(state: &Path, roots: &[PathBuf; 2]) -> Result<[Arc<Agent>; 2], Failure> {
    let failed = |error: crate::keys::KeyError| Failure::done("sync: a key", error.to_string());
    let key = |name: &str| Ok(HostKey::load_or_create(&state.join(name), name).map_err(failed)?.public_line(name));
    let keys = [key("left")?, key("right")?];
    let side = |name: &str, root: &Path, listen: Option<&str>, peer: PeerConfig| Config {
        name: name.to_owned(),
        listen: listen.map(str::to_owned),
        state: state.join(name),
        log: "error".to_owned(),
        trees: vec![TreeConfig::new(TREE, root)],
        peers: vec![peer],
        hooks: Vec::new(),
    };
    let peer = |name: &str, key: &str, addresses| PeerConfig {
        name: name.to_owned(),
        addresses,
        key: key.to_owned(),
        trees: None,
        bandwidth: BandwidthLimit::default(),
        compress: Compress::default(),
        push: None,
        fallback: None,
    };
    let left = side("left", &roots[0], Some("127.0.0.1:0"), peer("right", &keys[1], Vec::new()));
    let left = Agent::start(left).await.map_err(taken)?;
    let port = left.local_addr().map_or(0, |address| address.port());
    let address = format!("pleach://127.0.0.1:{port}");
    let right = side("right", &roots[1], None, peer("left", &keys[0], vec![address]));
    match Agent::start(right).await {
        Ok(right) => Ok([left, right]),
        Err(failure) => {
            left.stop().await;
            Err(taken(failure))
        }
    }
}

/// Says of a pair what is said of a state directory.
fn taken(failure: Failure) -> Failure {
    if failure.to_string().contains("another agent runs") {
        return Failure::done("sync", "another pleach keeps this pair in step")
            .help("stop it first; this pair needs only one");
    }
    failure
}

/// How a side is, and how far its peer is.
struct Seen {
    tree: TreeStatus,
    peer: PeerProgress,
}

impl Seen {
    fn of(agent: &Agent) -> Self {
        let tree = agent.tree_status(TREE).unwrap_or_default();
        let peer = tree.peers.values().next().cloned().unwrap_or_default();
        Self { tree, peer }
    }

    fn in_step(&self) -> bool {
        self.tree.phase == Phase::Watching
            && self.tree.quiet
            && self.peer.state == StreamState::Open
            && self.peer.to_send == 0
            && self.peer.to_receive == 0
    }
}

/// Draws the view and waits for the end: Ctrl-C, a failure, or with `once` both sides at rest.
async fn watch_over(
    sides: &[Arc<Agent>; 2],
    names: &[String; 2],
    once: bool,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let terminal = io::stderr().is_terminal();
    let mut drawn = String::new();
    let mut resting = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let [left, right] = [Seen::of(&sides[0]), Seen::of(&sides[1])];
        for (side, name) in [(&left, &names[0]), (&right, &names[1])] {
            if let Some(reason) = &side.tree.error {
                return Err(Failure::done(format!("sync {name}"), reason.clone())
                    .help("nothing was lost; run it again once this is mended"));
            }
        }
        let rest = left.in_step() && right.in_step();
        resting = if rest { resting + VIEW } else { Duration::ZERO };
        let line = view(&left, &right, rest);
        if line != drawn {
            let end = if terminal { "\x1b[K\r" } else { "\n" };
            if terminal || rest {
                // A closed standard error is no reason to stop syncing.
                write!(io::stderr(), "{line}{end}").ok();
            }
            drawn = line;
        }
        if once && resting >= REST {
            if terminal {
                writeln!(io::stderr()).ok();
            }
            return report(sides, names).await;
        }
        sleep(VIEW).await;
    }
    if terminal {
        writeln!(io::stderr()).ok();
    }
    Ok(())
}

fn view(left: &Seen, right: &Seen, rest: bool) -> String {
    let state = if rest { "in step" } else { "syncing" };
    format!(
        "{state}; to the right: {} changes to go, {} arrived; to the left: {} changes to go, {} arrived; {} problems",
        left.peer.to_send,
        size(right.tree.received_bytes),
        right.peer.to_send,
        size(left.tree.received_bytes),
        left.tree.problems + right.tree.problems,
    )
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

/// Fails where paths could not be synced, naming them.
async fn report(sides: &[Arc<Agent>; 2], names: &[String; 2]) -> Result<(), Failure> {
    let mut failure = Failure::done("sync", "some paths could not be synced");
    let mut any = false;
    for (side, name) in sides.iter().zip(names) {
        let (replies, mut rows) = mpsc::channel(PROBLEMS_MAX);
        let asked = tokio::spawn(Arc::clone(side).handle(Request::Problems { tree: Some(TREE.to_owned()) }, replies));
        let mut named = 0;
        while let Some(reply) = rows.recv().await {
            let Reply::Row(row) = reply else { continue };
            let text = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or("?").to_owned();
            if row.get("reason").is_some() && row.get("peer").is_none() && named < PROBLEMS_MAX {
                (named, any) = (named + 1, true);
                failure = failure.help(format!("{name}/{}: {}", text("path"), text("reason")));
            }
        }
        asked.await.map_err(|error| Failure::done("sync", error.to_string()))??;
    }
    if any { Err(failure) } else { Ok(()) }
}
