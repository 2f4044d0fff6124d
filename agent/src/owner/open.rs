//! Opening a tree: its store, its root, its watcher.

use std::fs;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use pleach_store::ignore::IgnoreRules;
use pleach_store::kv::KvError;
use pleach_store::kv::sled::{SledKv, move_aside};
use pleach_store::tree::{Tree, TreeError, TreeOptions};
use pleach_store::vfs::unix::UnixVfs;

use super::look::Looks;
use super::{AgentTree, Event, TreeSetup, WatchNews};
use crate::machine::{boot_id, booted, lock, now, random, random_number, write_durably};
use crate::watch::inotify::InotifyWatcher;
use crate::watch::{WatchError, Watcher};

/// How long the forwarder waits for facts before it looks whether anybody listens.
const POLL: Duration = Duration::from_secs(1);

/// After so many facts at once the next ones are gathered for so long: each batch costs a sync of the store, which
/// users' own writes wait for, too.
const STORM_FACTS: usize = 8;
const STORM_PAUSE: Duration = Duration::from_millis(10);

/// Says why a tree cannot be opened or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The tree cannot go on.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The store cannot be opened.
    #[error("the tree's store")]
    Store(#[from] KvError),
    /// The tree cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// A file of the state directory, or of `.pleach`.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A rule for directories that appear at once is none.
    #[error("atomic: {0}")]
    Atomic(String),
    /// An ignore rule of the config is none.
    #[error("ignore: {0}")]
    Ignore(String),
    /// Another agent keeps the same directory.
    #[error("another agent keeps this directory: {0}; stop one of the two")]
    Held(String),
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { path, source }
}

/// Opens a tree and begins to watch it. `approved`: the root that is there is taken as new.
pub(super) fn open(setup: &TreeSetup, approved: bool, inbox: &Sender<Event>) -> Result<(AgentTree, Looks), OpenError> {
    let trees = setup.state.join("trees");
    fs::create_dir_all(&trees).map_err(io_error(&trees))?;
    let root = &setup.config.path;
    if let Ok(held) = fs::read_to_string(lock_file(root)) {
        refuse_if_held(setup, &held)?;
    }
    let ignore = IgnoreRules::new(&setup.config.ignore).map_err(|error| OpenError::Ignore(error.to_string()))?;
    let rules = Arc::new(Mutex::new(ignore.clone()));
    let kv = open_store(&trees.join(&setup.config.name))?;
    let marker = trees.join(format!("{}.root", setup.config.name));
    let urandom = Path::new("/dev/urandom");
    let options = TreeOptions {
        node: setup.node,
        name: setup.name.clone(),
        start: random_number().map_err(io_error(urandom))?,
        entropy: random().map_err(io_error(urandom))?,
        expected_root: fs::read(&marker).ok(),
        approved,
        boot: boot_id(),
        booted: booted(),
        atomic: IgnoreRules::new(&setup.config.atomic).map_err(|error| OpenError::Atomic(error.to_string()))?,
        ignore,
        settle: setup.config.settle,
        resumable_bytes_min: pleach_store::tree::RESUMABLE_BYTES_MIN,
        cuts: pleach_store::tree::Cuts::default(),
        read_at_once: pleach_store::tree::READ_AT_ONCE,
        direction: setup.config.direction,
        // Without an agent as its peer there is nobody to wait for.
        first: setup.config.first.filter(|_| !setup.takers.peers.is_empty()),
        copies: setup.config.conflict_copies,
    };
    let mut tree = Tree::open(UnixVfs::new(root.clone()), kv, Box::new(now), options)?;
    if setup.copied {
        tree.renew_incarnation(random().map_err(io_error(urandom))?)?;
    }
    write_durably(&marker, tree.root_id()).map_err(io_error(&marker))?;
    hold(setup)?;
    let barrier = barrier_dir(root);
    match fs::create_dir(&barrier) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(io_error(&barrier)(error)),
        _ => {}
    }
    // Watch first, then list: what changes during the first scan is seen again.
    let shared = Arc::clone(&rules);
    let ignored = move |path: &pleach_protocol::path::TreePath, is_dir: bool| lock(&shared).ignored(path, is_dir);
    let watcher = InotifyWatcher::start(root, Arc::new(ignored))?;
    let (taken, gone) = mpsc::channel();
    let (refresh, refreshes) = mpsc::channel();
    let forwarder = Forwarder { watcher, inbox: inbox.clone(), taken: gone, refreshes };
    thread::Builder::new()
        .name(format!("watch {}", setup.config.name))
        .spawn(move || forwarder.run())
        .map_err(io_error(root))?;
    Ok((tree, Looks::new(&setup.config, rules, taken, refresh)))
}

/// Where markers for the watcher are made.
pub(super) fn barrier_dir(root: &Path) -> PathBuf {
    root.join(".pleach/barrier")
}

fn open_store(path: &Path) -> Result<SledKv, OpenError> {
    match SledKv::open(path) {
        Err(KvError::Broken { path: shown, reason }) => {
            let aside = move_aside(path).map_err(io_error(path))?;
            tracing::error!(path = shown, reason, aside = %aside.display(), "the store is broken: the tree pairs again");
            Ok(SledKv::open(path)?)
        }
        other => Ok(other?),
    }
}

/// Where a tree names who keeps it.
fn lock_file(root: &Path) -> PathBuf {
    root.join(".pleach/lock")
}

/// When a process started, in clock ticks since boot. Source: proc(5), field 22 of `stat`.
fn process_start(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19).map(str::to_owned)
}

/// Refuses a root that a living process of this boot keeps for another state directory.
fn refuse_if_held(setup: &TreeSetup, text: &str) -> Result<(), OpenError> {
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let (Some(state), Some(pid)) = (field("state"), field("pid").and_then(|p| p.parse::<u32>().ok())) else {
        return Ok(());
    };
    let same_boot = field("boot").is_some_and(|boot| boot.as_bytes() == boot_id().trim_ascii());
    let alive = same_boot && process_start(pid).as_deref() == field("started");
    let ours = Path::new(state) == setup.state;
    if alive && !ours {
        return Err(OpenError::Held(format!("process {pid}, state in {state}")));
    }
    Ok(())
}

/// Names this process as the keeper of the root, unless another one is: of two that come at the
/// same time one is refused.
fn hold(setup: &TreeSetup) -> Result<(), OpenError> {
    let path = lock_file(&setup.config.path);
    let pid = std::process::id();
    let boot = boot_id();
    let text = format!(
        "state {}\npid {pid}\nstarted {}\nboot {}\n",
        setup.state.display(),
        process_start(pid).unwrap_or_default(),
        String::from_utf8_lossy(boot.trim_ascii()),
    );
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(io_error(&path))?;
    // Held for the two lines below only: an idle tree can be unmounted.
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).map_err(|e| io_error(&path)(e.into()))?;
    let mut held = String::new();
    file.read_to_string(&mut held).map_err(io_error(&path))?;
    refuse_if_held(setup, &held)?;
    file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes())).map_err(io_error(&path))
}

/// Hands the watcher's facts to the owner, one batch at a time: the watcher folds what comes meanwhile.
struct Forwarder {
    watcher: InotifyWatcher,
    inbox: Sender<Event>,
    taken: Receiver<()>,
    refreshes: Receiver<()>,
}

impl Forwarder {
    fn run(mut self) {
        let mut told = WatchNews::default();
        loop {
            if self.refreshes.try_recv().is_ok() {
                while self.refreshes.try_recv().is_ok() {}
                self.watcher.refresh();
            }
            let facts = match self.watcher.poll(POLL) {
                Ok(facts) => facts,
                Err(error) => {
                    // An owner that is gone needs no telling.
                    self.inbox.send(Event::WatchEnded(crate::machine::chain(&error))).ok();
                    return;
                }
            };
            let stats = self.watcher.stats();
            let news = WatchNews {
                watches: stats.watches,
                overflows: stats.overflows + stats.folded,
                polled: self.watcher.polled().iter().cloned().collect(),
            };
            if facts.is_empty() && told == news {
                // Whoever closed the tree dropped the other end.
                if matches!(self.taken.try_recv(), Err(mpsc::TryRecvError::Disconnected)) {
                    return;
                }
                continue;
            }
            told.clone_from(&news);
            let (sent, storm) = (Instant::now(), facts.len() >= STORM_FACTS);
            if self.inbox.send(Event::Facts(facts, news)).is_err() || self.taken.recv().is_err() {
                return;
            }
            if storm {
                thread::sleep(STORM_PAUSE.saturating_sub(sent.elapsed()));
            }
        }
    }
}
