//! The owner of one tree: one thread that does everything that changes the tree's state, one thing
//! at a time.
//!
//! Facts of the watcher, outputs of the sessions and commands come in through one channel; what
//! sessions are to be told goes out through theirs. A tree that fails is closed, says why, and is
//! opened again until it works: no other tree and no session waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use pleach_protocol::path::TreePath;
use pleach_protocol::session::{Moment, Output, TreeOffer};
use pleach_protocol::version::NodeId;
use pleach_protocol::wire::{CONTENT_BYTES_MAX, Standing};
use pleach_store::kv::sled::SledKv;
use pleach_store::root::RootError;
use pleach_store::tree::{HookId, LongReads, ScanStats, Tree, TreeError};
use pleach_store::vfs::unix::UnixVfs;
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};

use crate::config::TreeConfig;
use crate::exchange::{Exchange, PeerProgress, Tell, ToSession};
use crate::machine::{chain, lock, random, set_flag};
use crate::watch::Fact;

mod command;
pub mod facts;
mod hook;
mod inbox;
mod look;
mod open;
mod push;
mod waiters;

pub use command::{Command, CommandError, LOG_LINES_MAX, LogLine, OwedPath, Reply};
pub use hook::{HookAsk, HookBatch, HookNews, HookSpec};
pub use open::OpenError;
pub use push::{Applied, PlanOf, PushAsk, PushPlace, PushProgress};
pub use waiters::{Outstanding, WaitHandle};

use inbox::Inbox;
use waiters::Waiters;

/// The tree that an agent keeps.
pub type AgentTree = Tree<UnixVfs, SledKv>;

/// How long an idle loop sleeps before it looks at what is due by time.
const IDLE: Duration = Duration::from_millis(500);
/// The same while writers keep files or paths are to be tried again.
const BUSY: Duration = Duration::from_millis(100);
/// How long a tree that failed rests before it is opened again.
const REOPEN: Duration = Duration::from_secs(1);
/// How often the root is looked up afresh while nothing happens. Source: DESIGN.md §5.
const ROOT_CHECK: Duration = Duration::from_secs(10);
/// How long the next question for rows is awaited, also between two steps of a scan, and for how long in one go.
const READ_ON: Duration = Duration::from_micros(300);
const READ_ON_SCANNING: Duration = Duration::from_millis(3);
const READ_ON_MAX: Duration = Duration::from_millis(20);
/// How often the disk and the store say how far they are, where that changed: what is put back after
/// a kill is older than this.
const MARK_EVERY: Duration = Duration::from_secs(10);
/// How often the vault lets go of what is old, and tombstones are looked at.
const HOURLY: Duration = Duration::from_secs(3_600);
/// Things taken from the channel before the tree's work goes on.
const EVENTS_MAX: usize = 1_000;
/// Bytes of large contents taken in before the tree's work goes on: as long as one comes there is always more, and a small change
/// would wait for a thousand pieces of it.
const RECEIVED_ENOUGH: usize = 4 * 1024 * 1024;
/// Rows of peers taken in before they are applied: their flush is that of the batch which names their files.
const MERGED_ENOUGH: usize = 512;

/// What an owner is made of.
#[derive(Clone, Debug)]
pub struct TreeSetup {
    /// The tree's config.
    pub config: TreeConfig,
    /// The state directory is a copy of another machine's: the journal begins a new life.
    pub copied: bool,
    /// This node.
    pub node: NodeId,
    /// Its display name.
    pub name: String,
    /// The node's state directory.
    pub state: PathBuf,
    /// Who takes this tree.
    pub takers: Takers,
}

/// Who takes a tree.
#[derive(Clone, Debug, Default)]
pub struct Takers {
    /// The nodes, with their local names.
    pub peers: BTreeMap<NodeId, String>,
    /// The legacy daemons, by local name.
    pub pushes: BTreeSet<String>,
    /// The hooks.
    pub hooks: Vec<HookSpec>,
    /// The nodes with a fallback, by local name.
    pub fallbacks: BTreeMap<String, NodeId>,
}

impl Tell for async_mpsc::UnboundedSender<ToSession> {
    fn tell(&self, what: ToSession) -> bool {
        self.send(what).is_ok()
    }
}

/// What comes in.
#[derive(Debug)]
pub enum Event {
    /// What the watcher saw; the forwarder waits until they are taken.
    Facts(Vec<Fact>, WatchNews),
    /// The watcher ended.
    WatchEnded(String),
    /// A session with a peer begins: what does the tree offer?
    Offer {
        /// The peer.
        peer: NodeId,
        /// Where the answer goes.
        reply: oneshot::Sender<TreeOffer>,
        /// Where a restart is asked for.
        to: async_mpsc::UnboundedSender<ToSession>,
        /// The session's number.
        session: u64,
        /// The tree's number in the session.
        tree: usize,
    },
    /// A session wants this done. The session's windows bound how many are under way.
    Output {
        /// The peer.
        peer: NodeId,
        /// The session's number.
        session: u64,
        /// What.
        output: Output,
    },
    /// A session ended.
    Detach {
        /// The peer.
        peer: NodeId,
        /// The session's number.
        session: u64,
    },
    /// A person or program asks for something.
    Command(Command),
    /// A pushing task asks for something.
    Push {
        /// The peer's local name.
        peer: String,
        /// What.
        ask: PushAsk,
    },
    /// A hook's task asks for something.
    Hook {
        /// The hook.
        id: HookId,
        /// What.
        ask: HookAsk,
    },
    /// Who takes the tree changed.
    Takers(Takers),
    /// The node is to stop.
    Stop,
}

/// What the watcher says of itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct WatchNews {
    /// Watches held.
    pub watches: usize,
    /// Queue overflows so far.
    pub overflows: u64,
    /// Directories that are polled, for lack of watches.
    pub polled: Vec<TreePath>,
}

/// Where a tree is in its life.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Phase {
    /// The first scan after the start.
    #[default]
    Scanning,
    /// Watching.
    Watching,
    /// Nothing is exchanged until somebody resumes it.
    Paused,
    /// Closed, for a reason; tried again.
    Error,
}

/// How a tree is doing, for whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct TreeStatus {
    /// Where it is in its life.
    pub phase: Phase,
    /// How far the first scan is, or another one, while there is one.
    pub scan: Option<ScanStats>,
    /// How far long files are that are being read.
    pub long_reads: Option<LongReads>,
    /// Why it is closed.
    pub error: Option<String>,
    /// Live paths.
    pub entries: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// The highest durable seq.
    pub seq: u64,
    /// Conflicts listed.
    pub conflicts: u64,
    /// Paths that cannot be synced.
    pub problems: u64,
    /// Paths that were changed here and are told to nobody, for the tree only receives.
    pub local_changes: u64,
    /// The watcher.
    pub watch: WatchNews,
    /// Mount points beneath the root.
    pub mounts: Vec<String>,
    /// Whether nothing waits to be looked at, fetched or applied.
    pub quiet: bool,
    /// Changes received.
    pub received: u64,
    /// Content bytes received.
    pub received_bytes: u64,
    /// Each peer that takes the tree.
    pub peers: BTreeMap<NodeId, PeerProgress>,
    /// Each legacy daemon that takes it.
    pub pushes: BTreeMap<String, PushProgress>,
    /// How many events wait for each hook.
    pub hooks: BTreeMap<HookId, u64>,
}

/// One tree's owner, as the rest of the agent sees it.
#[derive(Debug)]
pub struct Owner {
    /// The tree's name.
    pub name: String,
    /// Its root.
    pub path: PathBuf,
    /// What comes in.
    pub inbox: Sender<Event>,
    /// How it is doing.
    pub status: Arc<Mutex<TreeStatus>>,
    /// How far the disk shows the journal; none while the tree is closed, scanned for the first time or paused.
    pub applied: watch::Receiver<Option<Applied>>,
    /// How far there are events for hooks; none while the tree is closed.
    pub hook_news: watch::Receiver<Option<HookNews>>,
    thread: Option<JoinHandle<()>>,
}

impl Owner {
    /// Starts the owner of a tree.
    ///
    /// # Errors
    /// No thread.
    pub fn start(setup: TreeSetup) -> std::io::Result<Self> {
        let (inbox, events) = mpsc::channel();
        let status = Arc::new(Mutex::new(TreeStatus::default()));
        let (name, path) = (setup.config.name.clone(), setup.config.path.clone());
        let (applied, applied_here) = watch::channel(None);
        let (hook_news, hook_news_here) = watch::channel(None);
        let takers = setup.takers.clone();
        let mut keeper = Keeper {
            applied,
            hook_news,
            pushes: BTreeMap::new(),
            paused: pause_file(&setup).exists(),
            setup,
            inbox: inbox.clone(),
            events: Inbox::new(events),
            status: Arc::clone(&status),
            later: Vec::new(),
            exchange: Exchange::new(Box::new(random)),
            began: Instant::now(),
            waiters: Waiters::default(),
            stop: false,
            approved: false,
            approvable: false,
        };
        keeper.set_takers(takers);
        let thread = thread::Builder::new().name(format!("tree {name}")).spawn(move || keeper.run())?;
        Ok(Self { name, path, inbox, status, applied: applied_here, hook_news: hook_news_here, thread: Some(thread) })
    }

    /// Tells the owner to stop, and waits until all is durable.
    pub fn stop(&mut self) {
        // An owner that has ended needs no telling.
        self.inbox.send(Event::Stop).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Where a tree's pause survives a restart.
fn pause_file(setup: &TreeSetup) -> PathBuf {
    setup.state.join("trees").join(format!("{}.paused", setup.config.name))
}

/// The owner between two openings of its tree.
struct Keeper {
    setup: TreeSetup,
    inbox: Sender<Event>,
    events: Inbox,
    status: Arc<Mutex<TreeStatus>>,
    /// What came in during the first scan and waits for its end: sessions' windows bound what they send.
    later: Vec<Event>,
    exchange: Exchange<async_mpsc::UnboundedSender<ToSession>>,
    pushes: BTreeMap<String, PushProgress>,
    applied: watch::Sender<Option<Applied>>,
    hook_news: watch::Sender<Option<HookNews>>,
    /// When the exchange's time began.
    began: Instant,
    waiters: Waiters,
    paused: bool,
    stop: bool,
    /// Somebody approved the root that is there.
    approved: bool,
    /// The tree is closed for a reason that an approval ends.
    approvable: bool,
}

/// The owner while its tree is open.
struct Running<'k> {
    keeper: &'k mut Keeper,
    tree: AgentTree,
    looks: look::Looks,
    postponed: Vec<command::Postponed>,
    /// Markers that the watcher passed.
    passed: Vec<Vec<u8>>,
    waiting: hook::Waiting,
    root_checked: Instant,
    hourly: Instant,
    marked: Instant,
    /// The head at the last hour.
    hour_ago: Option<u64>,
    /// Rows of peers came by the hundred: more of them are probably there.
    bulk: bool,
    /// Flushes of the index when the last round ended.
    flushes: u64,
    /// What became of the last batch is not durable yet: the next one's flush serves both.
    behind: bool,
    /// Tombstones are looked for behind the first position, up to the second.
    collecting: Option<(u64, u64)>,
}

impl Keeper {
    fn run(mut self) {
        while !self.stop {
            if let Err(error) = self.keep() {
                let reason = chain(&error);
                self.approvable =
                    matches!(error, OpenError::Tree(TreeError::Root(RootError::Swapped | RootError::WentBack)));
                if lock(&self.status).error.as_ref() != Some(&reason) {
                    tracing::error!(tree = self.setup.config.name, reason, "the tree is closed");
                }
                self.close(&reason);
                self.rest();
            }
        }
    }

    /// Opens the tree and keeps it until it fails or the node stops.
    fn keep(&mut self) -> Result<(), OpenError> {
        let approved = std::mem::take(&mut self.approved);
        let (tree, looks) = open::open(&self.setup, approved, &self.inbox)?;
        self.set_phase(Phase::Scanning);
        let now = Instant::now();
        let mut running = Running {
            keeper: self,
            tree,
            looks,
            postponed: Vec::new(),
            passed: Vec::new(),
            waiting: hook::Waiting::default(),
            root_checked: now,
            hourly: now,
            marked: now,
            hour_ago: None,
            bulk: false,
            flushes: 0,
            behind: false,
            collecting: None,
        };
        Ok(running.run()?)
    }

    fn set_phase(&self, phase: Phase) {
        lock(&self.status).phase = if self.paused { Phase::Paused } else { phase };
    }

    fn close(&mut self, reason: &str) {
        self.exchange.close();
        self.applied.send_replace(None);
        self.hook_news.send_replace(None);
        self.waiters.fail(reason);
        let mut status = lock(&self.status);
        status.phase = Phase::Error;
        status.scan = None;
        status.long_reads = None;
        status.error = Some(reason.to_owned());
        status.quiet = false;
    }

    /// Answers what comes in while the tree is closed, until it is time to try again.
    fn rest(&mut self) {
        for event in std::mem::take(&mut self.later) {
            self.take_while_closed(event);
        }
        let until = Instant::now() + REOPEN;
        while !self.stop && !self.approved {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            match self.events.next_within(left) {
                Ok(event) => self.take_while_closed(event),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.stop = true,
            }
        }
    }

    fn take_while_closed(&mut self, event: Event) {
        match event {
            Event::Stop => self.stop = true,
            Event::Offer { peer, reply, to, session, tree } => {
                self.exchange.expect(peer, session, tree, to, true);
                // A session that is gone needs no answer.
                reply.send(self.closed_offer(Standing::Failed)).ok();
            }
            Event::Detach { peer, session } => {
                self.exchange.detach(peer, session);
            }
            Event::Command(Command::Approve { reply }) if self.approvable => {
                self.approved = true;
                reply.send(Ok(())).ok();
            }
            Event::Command(Command::Pause { paused, reply }) => {
                reply.send(self.set_paused(paused)).ok();
            }
            Event::Command(command) => {
                let reason = lock(&self.status).error.clone().unwrap_or_else(|| "it is being opened".to_owned());
                command.refuse(CommandError::Closed(reason));
            }
            Event::Push { ask, .. } => ask.refuse(CommandError::Closed("the tree is closed".to_owned())),
            Event::Hook { ask, .. } => ask.refuse(CommandError::Closed("the tree is closed".to_owned())),
            Event::Takers(takers) => self.set_takers(takers),
            Event::Facts(..) | Event::WatchEnded(_) | Event::Output { .. } => {}
        }
    }

    fn set_takers(&mut self, takers: Takers) {
        let nodes = takers.fallbacks.iter().map(|(peer, node)| (peer, Some(*node)));
        let all: BTreeMap<&String, _> = takers.pushes.iter().map(|peer| (peer, None)).chain(nodes).collect();
        self.pushes.retain(|peer, progress| all.get(peer).is_some_and(|agent| *agent == progress.agent));
        for (peer, agent) in all {
            self.pushes.entry(peer.clone()).or_insert_with(|| PushProgress::of(agent));
        }
        self.setup.takers = takers;
    }

    /// What a session is offered of a tree that is not exchanged.
    fn closed_offer(&self, standing: Standing) -> TreeOffer {
        let name = self.setup.config.name.clone();
        TreeOffer { name, incarnation: [0; 16], start: 0, cursor: None, head: 0, standing }
    }

    /// Notes a pause so that it survives a restart.
    fn set_paused(&mut self, paused: bool) -> Result<(), CommandError> {
        let file = pause_file(&self.setup);
        set_flag(&file, paused).map_err(|error| CommandError::Failed(format!("{}: {error}", file.display())))?;
        self.paused = paused;
        Ok(())
    }
}

impl Running<'_> {
    fn run(&mut self) -> Result<(), TreeError> {
        self.keeper.exchange.load(&self.tree, &self.keeper.setup.takers.peers)?;
        self.set_hooks()?;
        self.take_up_fallbacks()?;
        self.tree.take_in_displaced(true)?;
        self.first_scan()?;
        if self.keeper.stop {
            // As after a kill: the next start walks the tree anew.
            return self.tree.commit_all();
        }
        self.keeper.set_phase(Phase::Watching);
        lock(&self.keeper.status).error = None;
        for event in std::mem::take(&mut self.keeper.later) {
            self.take(event)?;
        }
        self.tree.expire(self.keeper.setup.config.history)?;
        self.keeper.exchange.restart_expected();
        while !self.keeper.stop {
            self.look()?;
            if self.keeper.paused || self.tree.has_news() {
                self.advance()?;
            }
            if !self.keeper.paused {
                self.keeper.exchange.apply(&mut self.tree)?;
                self.advance_unless_more()?;
                let now = self.now();
                self.keeper.exchange.serve_held(&mut self.tree, now)?;
                let calm = !self.looks.has_kept();
                self.keeper.exchange.settle_releases(&mut self.tree, now, calm)?;
                self.decide_postponed()?;
            }
            self.settle_waiters()?;
            self.show()?;
            self.wait()?;
        }
        self.tree.sync_minted(true)?;
        self.tree.commit_all()?;
        // A disk or store that is put back while the agent is away is older than this.
        self.tree.mark_last()
    }

    /// Makes everything so far durable and tells the sessions.
    fn advance(&mut self) -> Result<(), TreeError> {
        self.tree.commit()?;
        self.keeper.exchange.tell(&self.tree);
        self.behind = false;
        Ok(())
    }

    /// The same, but where rows come by the hundred this waits for the flush of the next batch. Two rounds
    /// without any do not follow each other.
    fn advance_unless_more(&mut self) -> Result<(), TreeError> {
        let flushed = self.tree.index().flushes() != self.flushes;
        self.behind = self.bulk && flushed;
        if self.behind {
            self.keeper.exchange.tell(&self.tree);
        } else {
            self.advance()?;
        }
        self.flushes = self.tree.index().flushes();
        Ok(())
    }

    /// The next event that is there; before the owner rests, everything is durable.
    fn next_event(&mut self, pause: Duration) -> Result<Result<Event, RecvTimeoutError>, TreeError> {
        if self.behind {
            if let Some(event) = self.keeper.events.try_next() {
                return Ok(Ok(event));
            }
            self.advance()?;
        }
        Ok(self.keeper.events.next_within(pause))
    }

    /// Waits for something to do, then takes what is there.
    fn wait(&mut self) -> Result<(), TreeError> {
        let due_soon = self.tree.next_retry().is_some() || !self.is_quiet();
        // A scan, a long file, a copy within this disk and a journal go on at once, and give way to whatever came meanwhile; in a paused
        // tree nothing goes on.
        let goes_on =
            self.tree.rescan().is_some() || self.tree.reads_on() || self.tree.goes_on() && !self.keeper.paused;
        let pause = match (goes_on, self.looks.again_after(Instant::now())) {
            (true, _) => Duration::ZERO,
            (false, Some(pause)) => pause,
            (false, None) if due_soon => BUSY,
            (false, None) => IDLE,
        };
        let mut next = match self.next_event(pause)? {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => {
                // Whoever goes on does not rest.
                if !goes_on {
                    self.tree.commit_all()?;
                }
                None
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.keeper.stop = true;
                None
            }
        };
        let began = Instant::now();
        let (mut taken, mut merged, mut received) = (0, 0, 0);
        while let Some(event) = next {
            // Whoever reads our journal asks for the next rows at once: a long one goes out in one go.
            let reads = matches!(event, Event::Output { output: Output::ReadRows { .. }, .. });
            merged += match &event {
                Event::Output { output: Output::Merge { rows, .. }, .. } => rows.len(),
                Event::Output { output: Output::MergeAlike { alike, .. }, .. } => alike.dots.len(),
                _ => 0,
            };
            received += match &event {
                Event::Output { output: Output::Received { bytes, .. }, .. } if bytes.len() == CONTENT_BYTES_MAX => {
                    bytes.len()
                }
                _ => 0,
            };
            self.take(event)?;
            taken += 1;
            let enough = taken >= EVENTS_MAX || merged >= MERGED_ENOUGH || received >= RECEIVED_ENOUGH;
            let awaited = (reads && began.elapsed() < READ_ON_MAX).then_some(READ_ON);
            next = self.keeper.events.next(enough, awaited);
        }
        self.bulk = merged >= MERGED_ENOUGH;
        if self.root_checked.elapsed() >= ROOT_CHECK {
            self.root_checked = Instant::now();
            self.tree.check_root()?;
        }
        if self.marked.elapsed() >= MARK_EVERY {
            self.marked = Instant::now();
            self.tree.mark_last()?;
        }
        if self.hourly.elapsed() >= HOURLY {
            self.hourly = Instant::now();
            self.tree.take_in_displaced(false)?;
            self.tree.expire(self.keeper.setup.config.history)?;
            let head = self.tree.head();
            self.collecting = self.hour_ago.map(|upto| (0, upto));
            self.hour_ago = Some(head);
        }
        self.collect()
    }

    /// Forgets tombstones that all know, some at a time.
    fn collect(&mut self) -> Result<(), TreeError> {
        let Some((after, upto)) = self.collecting.take() else { return Ok(()) };
        // A daemon is to hear of every deletion.
        let upto = upto.min(self.pushed_by_all()?);
        let peers: Vec<NodeId> = self.keeper.setup.takers.peers.keys().copied().collect();
        self.collecting = self.tree.collect(after, upto, &peers)?.map(|reached| (reached, upto));
        Ok(())
    }

    fn take(&mut self, event: Event) -> Result<(), TreeError> {
        match event {
            Event::Stop => self.keeper.stop = true,
            Event::Facts(facts, news) => {
                self.take_facts(&facts, news)?;
                self.looks.facts_taken();
            }
            Event::WatchEnded(reason) => self.looks.watch_ended(&reason),
            Event::Offer { peer, reply, to, session, tree } => {
                let offer = self.offer(peer)?;
                // Whoever waited in vain has begun without this tree.
                let stale = reply.send(offer).is_err();
                self.keeper.exchange.expect(peer, session, tree, to, stale);
                if stale {
                    self.keeper.exchange.restart_expected();
                }
            }
            Event::Output { peer, session, output } => {
                let now = self.now();
                self.keeper.exchange.carry_out(&mut self.tree, now, (peer, session), output)?;
            }
            Event::Detach { peer, session } => {
                if self.keeper.exchange.detach(peer, session) {
                    self.keeper.exchange.reassign_wants(&mut self.tree, peer);
                }
            }
            Event::Command(command) => self.obey(command)?,
            Event::Push { peer, ask } => self.take_push(&peer, ask)?,
            Event::Hook { id, ask } => self.take_hook(id, ask)?,
            Event::Takers(takers) => {
                self.keeper.set_takers(takers);
                self.keeper.exchange.load(&self.tree, &self.keeper.setup.takers.peers)?;
                self.set_hooks()?;
                self.take_up_fallbacks()?;
            }
        }
        Ok(())
    }

    fn offer(&self, peer: NodeId) -> Result<TreeOffer, TreeError> {
        Ok(TreeOffer {
            name: self.keeper.setup.config.name.clone(),
            incarnation: self.tree.life().incarnation,
            start: self.tree.life().start,
            cursor: self.tree.cursor(peer)?,
            head: self.tree.head(),
            standing: if self.keeper.paused { Standing::Paused } else { Standing::Open },
        })
    }

    fn now(&self) -> Moment {
        Moment(u64::try_from(self.keeper.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn is_quiet(&self) -> bool {
        self.keeper.paused || self.tree.is_quiet()
    }

    fn show(&mut self) -> Result<(), TreeError> {
        let quiet = !self.looks.has_kept() && self.keeper.exchange.all_applied() && self.is_quiet();
        let peers = self.keeper.exchange.show(&self.tree, self.now(), quiet)?;
        self.note_agents()?;
        self.show_pushes()?;
        self.tell_pushes();
        let hooks = self.show_hooks()?;
        let (received, received_bytes) = self.keeper.exchange.received();
        let meta = self.tree.index().meta();
        let mut status = lock(&self.keeper.status);
        status.entries = meta.entries;
        status.bytes = meta.bytes;
        status.conflicts = meta.conflicts;
        status.seq = self.tree.head();
        status.local_changes = self.tree.local_changes();
        status.problems = self.tree.problems().len() as u64;
        status.mounts = self.tree.mounts().iter().map(ToString::to_string).collect();
        status.quiet = quiet;
        status.scan = self.tree.rescan().copied();
        status.long_reads = self.tree.long_reads();
        status.watch = self.looks.news().clone();
        status.peers = peers;
        status.pushes.clone_from(&self.keeper.pushes);
        status.hooks = hooks;
        (status.received, status.received_bytes) = (received, received_bytes);
        status.phase = match (self.keeper.paused, self.tree.waits()) {
            (true, _) => Phase::Paused,
            (false, Some(_)) => Phase::Scanning,
            (false, None) => Phase::Watching,
        };
        Ok(())
    }
}
