//! `pleach sync DIR_A DIR_B`: two nodes in one process, an in-memory pipe between them.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pleach_protocol::session::{Moment, Session, SessionConfig, TreeOffer};
use pleach_protocol::time::Time;
use pleach_protocol::version::NodeId;
use pleach_store::ignore::IgnoreRules;
use pleach_store::kv::KvError;
use pleach_store::kv::sled::{SledKv, move_aside};
use pleach_store::tree::{Tree, TreeOptions};
use pleach_store::vfs::unix::UnixVfs;

use crate::failure::Failure;
use crate::node::{AgentTree, Event, Node, Status};
use crate::watch::Watcher;
use crate::watch::inotify::InotifyWatcher;

/// How often the view is drawn and convergence is looked at.
const VIEW: Duration = Duration::from_millis(50);
/// How long both sides must be at rest before `--once` believes it.
const REST: Duration = Duration::from_millis(300);

struct Side {
    name: &'static str,
    root: PathBuf,
    node: NodeId,
    tree: AgentTree,
    rules: Arc<Mutex<IgnoreRules>>,
    watcher: InotifyWatcher,
}

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
    let left = open_side("left", &roots[0], &state)?;
    let right = open_side("right", &roots[1], &state)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))
            .map_err(|error| Failure::done("sync", format!("cannot catch signals: {error}")))?;
    }
    let (left_in, left_out) = mpsc::channel();
    let (right_in, right_out) = mpsc::channel();
    let ids = [left.node, right.node];
    let names = [left.root.display().to_string(), right.root.display().to_string()];
    let left = start(left, ids[1], left_out, left_in.clone(), right_in.clone())?;
    let right = start(right, ids[0], right_out, right_in.clone(), left_in.clone())?;
    let outcome = watch_over([&left.status, &right.status], &names, once, &stop);
    for inbox in [left_in, right_in] {
        // A node that failed has closed its inbox already.
        inbox.send(Event::Stop).ok();
    }
    for side in [left, right] {
        side.thread.join().map_err(|_| Failure::done("sync", "a node ended abruptly: this is a fault in pleach"))?;
    }
    outcome
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
    let dir = default_state()?.join("sync").join(&hasher.finalize().to_hex()[..32]);
    fs::create_dir_all(&dir)
        .map_err(|error| Failure::done(format!("sync: making {}", dir.display()), error.to_string()))?;
    Ok(dir)
}

/// Where state lies unless a config says otherwise. Source: CONTRACT.md, configuration.
fn default_state() -> Result<PathBuf, Failure> {
    if let Some(dir) = std::env::var_os("XDG_STATE_HOME").filter(|d| !d.is_empty()) {
        return Ok(PathBuf::from(dir).join("pleach"));
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/pleach"));
    }
    match std::env::var_os("HOME").filter(|d| !d.is_empty()) {
        Some(home) => Ok(PathBuf::from(home).join(".local/state/pleach")),
        None => Err(Failure::done("sync", "there is no place for its state").help("set XDG_STATE_HOME or HOME")),
    }
}

fn open_side(name: &'static str, root: &Path, state: &Path) -> Result<Side, Failure> {
    let what = format!("sync {}", root.display());
    let failed = |error: &dyn std::error::Error| Failure::done(&what, chain(error));
    let dir = state.join(name);
    let store = dir.join("store");
    fs::create_dir_all(&dir).map_err(|e| failed(&e))?;
    let node = NodeId(kept_random(&dir.join("id")).map_err(|e| failed(&e))?);
    let kv = match SledKv::open(&store) {
        Err(KvError::Broken { path, reason }) => {
            let aside = move_aside(&store).map_err(|e| failed(&e))?;
            tracing::error!(path, reason, aside = %aside.display(), "the store is broken; the tree pairs again");
            SledKv::open(&store)
        }
        Err(KvError::Io { what: "take its lock", .. }) => {
            let failure = Failure::done(&what, "another pleach keeps this pair in step");
            return Err(failure.help("stop it first; this pair needs only one"));
        }
        other => other,
    }
    .map_err(|e| failed(&e))?;
    let random = random().map_err(|e| failed(&e))?;
    let mut start = [0; 8];
    start.copy_from_slice(&random[32..40]);
    let mut entropy = [0; 32];
    entropy.copy_from_slice(&random[..32]);
    let ignore = IgnoreRules::new(&[]).map_err(|e| failed(&e))?;
    let rules = Arc::new(Mutex::new(ignore.clone()));
    let marker = dir.join("root");
    let options = TreeOptions {
        node,
        name: name.to_owned(),
        start: u64::from_le_bytes(start),
        entropy,
        approved: false,
            settle: Duration::ZERO,
            copies: false,
            expected_root: fs::read(&marker).ok(),
        boot: fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default(),
        booted: booted(),
        ignore,
    };
    let tree = Tree::open(UnixVfs::new(root.to_path_buf()), kv, Box::new(now), options).map_err(|e| {
        failed(&e)
            .help("where the directory was replaced on purpose, remove this pair's state")
            .help(dir.display().to_string())
    })?;
    write_durably(&marker, tree.root_id()).map_err(|e| failed(&e))?;
    // Watch first, then list: what changes during the first scan is seen again.
    let shared = Arc::clone(&rules);
    let ignored = move |path: &pleach_protocol::path::TreePath, is_dir: bool| lock(&shared).ignored(path, is_dir);
    let watcher = InotifyWatcher::start(root, Arc::new(ignored)).map_err(|e| failed(&e))?;
    Ok(Side { name, root: root.to_path_buf(), node, tree, rules, watcher })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn random() -> io::Result<[u8; 40]> {
    let mut bytes = [0; 40];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// 32 random bytes that stay the same from run to run.
fn kept_random(path: &Path) -> io::Result<[u8; 32]> {
    if let Ok(bytes) = fs::read(path)
        && let Ok(bytes) = bytes.try_into()
    {
        return Ok(bytes);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(&random()?[..32]);
    write_durably(path, &bytes)?;
    Ok(bytes)
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("new");
    let mut file = fs::File::create(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::new(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

/// When the machine booted. Source: proc(5), `btime` in /proc/stat.
fn booted() -> Time {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    Time::new(line.and_then(|text| text.trim().parse().ok()).unwrap_or(0), 0)
}

struct Started {
    thread: thread::JoinHandle<()>,
    status: Arc<Mutex<Status>>,
}

fn start(
    side: Side,
    peer: NodeId,
    inbox: Receiver<Event>,
    own: Sender<Event>,
    outbox: Sender<Event>,
) -> Result<Started, Failure> {
    let failed = |error: io::Error| Failure::done("sync", format!("cannot start a thread: {error}"));
    let status = Arc::new(Mutex::new(Status::default()));
    let (facts_taken, taken) = mpsc::channel();
    let offer = TreeOffer {
        name: "sync".to_owned(),
        incarnation: side.tree.index().meta().incarnation,
        cursor: side.tree.cursor(peer).map_err(|e| Failure::done("sync", chain(&e)))?,
        head: side.tree.head(),
        standing: pleach_protocol::wire::Standing::Open,
    };
    let config = SessionConfig {
        node: side.node,
        peer,
        name: side.name.to_owned(),
        start: side.tree.index().meta().next_id,
        token: [0; 16],
        trees: vec![offer],
    };
    let session = Session::new(Moment(0), config);
    let node = Node {
        tree: side.tree,
        session,
        peer,
        inbox,
        outbox,
        facts_taken,
        rules: side.rules,
        status: Arc::clone(&status),
    };
    let watcher = side.watcher;
    thread::Builder::new()
        .name(format!("{}-watch", side.name))
        .spawn(move || forward(watcher, &own, &taken))
        .map_err(failed)?;
    let thread = thread::Builder::new()
        .name(side.name.to_owned())
        .spawn(move || {
            // The failure is in the status, for whoever shows it.
            node.run().ok();
        })
        .map_err(failed)?;
    Ok(Started { thread, status })
}

/// Hands the watcher's facts to the node, one batch at a time: the watcher folds what comes meanwhile.
fn forward(mut watcher: InotifyWatcher, inbox: &Sender<Event>, taken: &Receiver<()>) {
    while let Ok(facts) = watcher.poll(Duration::from_secs(1)) {
        if facts.is_empty() {
            continue;
        }
        if inbox.send(Event::Facts(facts)).is_err() || taken.recv().is_err() {
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Draws the view and waits for the end: Ctrl-C, a failure, or with `once` both sides at rest.
fn watch_over(
    sides: [&Arc<Mutex<Status>>; 2],
    names: &[String; 2],
    once: bool,
    stop: &AtomicBool,
) -> Result<(), Failure> {
    let terminal = io::stderr().is_terminal();
    let mut drawn = String::new();
    let mut resting = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let [left, right] = sides.map(|side| lock(side).clone());
        for (side, name) in [(&left, &names[0]), (&right, &names[1])] {
            if let Some(reason) = &side.failed {
                return Err(Failure::done(format!("sync {name}"), reason.clone())
                    .help("nothing was lost; run it again once this is mended"));
            }
        }
        let in_step = |side: &Status| side.quiet && side.peer_applied >= side.head;
        let rest = in_step(&left) && in_step(&right);
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
            return report(&[&left, &right], names);
        }
        thread::sleep(VIEW);
    }
    if terminal {
        writeln!(io::stderr()).ok();
    }
    Ok(())
}

fn view(left: &Status, right: &Status, rest: bool) -> String {
    let state = if rest { "in step" } else { "syncing" };
    let waiting = |side: &Status| side.head.saturating_sub(side.peer_applied);
    format!(
        "{state}: {} > {} changes to go, {} < {}, {} problems",
        waiting(left),
        size(right.received_bytes),
        waiting(right),
        size(left.received_bytes),
        left.problems.len() + right.problems.len(),
    )
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

fn report(sides: &[&Status; 2], names: &[String; 2]) -> Result<(), Failure> {
    let mut failure = Failure::done("sync", "some paths could not be synced");
    let mut any = false;
    for (side, name) in sides.iter().zip(names) {
        for (path, reason) in side.problems.iter().take(20) {
            any = true;
            failure = failure.help(format!("{name}/{path}: {reason}"));
        }
    }
    if any { Err(failure) } else { Ok(()) }
}
