//! One node's owner loop: a tree, its watcher and a session with one peer, on one thread.
//!
//! Everything that changes the tree's state happens here, one thing at a time. Frames and facts
//! come in through one channel; what the session wants sent goes out through the peer's.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;
use pleach_protocol::session::{Input, Link, Moment, Output, Session, SessionError};
use pleach_protocol::version::NodeId;
use pleach_protocol::wire::{FrameError, FrameReader};
use pleach_store::kv::sled::SledKv;
use pleach_store::tree::{Tree, TreeError};
use pleach_store::vfs::unix::UnixVfs;

use crate::watch::Fact;

/// A file that stays open for writing is taken after this much quiet. Source: CONTRACT.md, `open_files`.
const OPEN_FILES_QUIET: Duration = Duration::from_secs(10);
/// One that only grows is taken this often.
const OPEN_FILES_MAX: Duration = Duration::from_secs(60);
/// How long an idle loop sleeps before it looks at what is due by time.
const IDLE: Duration = Duration::from_millis(500);
/// The same while writers keep files or paths are to be tried again.
const BUSY: Duration = Duration::from_millis(100);
/// Things taken from the channel before the tree's work goes on.
const EVENTS_MAX: usize = 1_000;

/// What comes in.
#[derive(Debug)]
pub enum Event {
    /// Bytes of the peer's stream. The session's credits bound how many are under way.
    Bytes(Link, Vec<u8>),
    /// What the watcher saw; the forwarder waits until they are taken.
    Facts(Vec<Fact>),
    /// The node is to stop.
    Stop,
}

/// How a node is doing, for whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The highest durable seq.
    pub head: u64,
    /// The peer has merged this much of it.
    pub peer_merged: u64,
    /// The peer's disk shows this much of it.
    pub peer_applied: u64,
    /// Entries seen by the last whole scan.
    pub entries: u64,
    /// Changes received.
    pub received: u64,
    /// Content bytes received.
    pub received_bytes: u64,
    /// Paths that cannot be synced, with the reason.
    pub problems: Vec<(TreePath, String)>,
    /// Whether nothing waits here.
    pub quiet: bool,
    /// Why the node stopped, where it did.
    pub failed: Option<String>,
}

/// Says why a node stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The tree cannot go on.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The session ended.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The stream cannot be read.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// A file that a writer keeps.
#[derive(Clone, Copy, Debug)]
struct Kept {
    since: Instant,
    touched: Instant,
}

/// The tree that an agent keeps.
pub type AgentTree = Tree<UnixVfs, SledKv>;

/// What a node is made of.
#[derive(Debug)]
pub struct Node {
    /// The tree.
    pub tree: AgentTree,
    /// The session with the peer.
    pub session: Session,
    /// The peer.
    pub peer: NodeId,
    /// What comes in.
    pub inbox: Receiver<Event>,
    /// Where frames go.
    pub outbox: Sender<Event>,
    /// Tells the forwarder that facts were taken.
    pub facts_taken: Sender<()>,
    /// Tells whoever holds the watcher that the ignore rules changed.
    pub rules: Arc<Mutex<pleach_store::ignore::IgnoreRules>>,
    /// What is shown.
    pub status: Arc<Mutex<Status>>,
}

/// The state of the loop.
struct Running {
    node: Node,
    readers: [FrameReader; 2],
    incarnation: [u8; 16],
    /// Merged batches that are not committed: the peer's position.
    merged: Option<u64>,
    /// Positions of the peer's journal and the own seq whose application makes them applied.
    to_apply: VecDeque<(u64, u64)>,
    kept: BTreeMap<TreePath, Kept>,
    opened: bool,
    stop: bool,
    /// When the session's time began.
    began: Instant,
}

impl Node {
    /// Runs until stopped or failed; a failure is in the status too.
    ///
    /// # Errors
    /// [`NodeError`].
    pub fn run(self) -> Result<(), NodeError> {
        let status = Arc::clone(&self.status);
        let mut running = Running {
            node: self,
            readers: [FrameReader::default(), FrameReader::default()],
            incarnation: [0; 16],
            merged: None,
            to_apply: VecDeque::new(),
            kept: BTreeMap::new(),
            opened: false,
            stop: false,
            began: Instant::now(),
        };
        let outcome = running.run();
        if let Err(error) = &outcome {
            let mut chain = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                chain = format!("{chain}: {cause}");
                source = cause.source();
            }
            lock(&status).failed = Some(chain);
        }
        outcome
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Running {
    fn run(&mut self) -> Result<(), NodeError> {
        let stats = self.node.tree.scan()?;
        lock(&self.node.status).entries = stats.entries;
        self.take_rules();
        while !self.stop {
            self.look()?;
            self.node.tree.commit()?;
            self.tell();
            self.drain()?;
            self.apply()?;
            self.node.tree.commit()?;
            self.tell();
            self.drain()?;
            self.show();
            self.wait()?;
            // A pipe within one process is never dead: `handle_timeout` is for links that can be.
        }
        self.node.tree.sync_minted(true)?;
        Ok(self.node.tree.commit()?)
    }

    /// Waits for something to do, then takes what is there.
    fn wait(&mut self) -> Result<(), NodeError> {
        let due_soon = !self.kept.is_empty() || self.node.tree.next_retry().is_some() || !self.node.tree.is_quiet();
        let mut next = match self.node.inbox.recv_timeout(if due_soon { BUSY } else { IDLE }) {
            Ok(event) => Some(event),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                self.stop = true;
                None
            }
        };
        let mut taken = 0;
        while let Some(event) = next {
            match event {
                Event::Stop => self.stop = true,
                Event::Facts(facts) => {
                    self.take_facts(facts)?;
                    // The forwarder ends with the process; it need not hear us then.
                    self.node.facts_taken.send(()).ok();
                }
                Event::Bytes(link, bytes) => self.take_bytes(link, &bytes)?,
            }
            taken += 1;
            next = if taken < EVENTS_MAX { self.node.inbox.try_recv().ok() } else { None };
        }
        Ok(())
    }

    fn take_bytes(&mut self, link: Link, bytes: &[u8]) -> Result<(), NodeError> {
        let at = usize::from(link == Link::Bulk);
        self.readers[at].push(bytes);
        while let Some(body) = self.readers[at].next_frame()? {
            let now = self.now();
            self.node.session.handle_frame(now, link, &body)?;
            self.drain()?;
        }
        Ok(())
    }

    /// Turns facts into looks. A directory's own time changes with its children, without a fact.
    fn take_facts(&mut self, facts: Vec<Fact>) -> Result<(), NodeError> {
        let tree = &mut self.node.tree;
        for fact in facts {
            match fact {
                Fact::Lost => tree.scan_later(),
                Fact::RootGone => tree.scan_later(),
                Fact::Barrier { .. } => {}
                Fact::Subtree { dir } => {
                    if !dir.is_root() {
                        tree.look_again(&dir, false, false);
                    }
                    tree.scan_below(&dir)?;
                }
                Fact::Dir { dir } => {
                    if !dir.is_root() {
                        tree.look_again(&dir, false, false);
                    }
                    tree.scan_children(&dir)?;
                }
                Fact::Path { path, content, .. } => {
                    let now = Instant::now();
                    if let Some(kept) = self.kept.get_mut(&path) {
                        kept.touched = now;
                    }
                    if path.name() == pleach_store::ignore::FILE_NAME {
                        let dir = path.parent().unwrap_or_default();
                        tree.scan_children(&dir)?;
                        if tree.take_rules_changed() {
                            *lock(&self.node.rules) = tree.ignore().clone();
                            tree.scan_below(&dir)?;
                        }
                    }
                    if let Some(dir) = path.parent().filter(|d| !d.is_root()) {
                        tree.look_again(&dir, false, false);
                    }
                    tree.look_again(&path, content, false);
                }
            }
        }
        Ok(())
    }

    fn take_rules(&mut self) {
        if self.node.tree.take_rules_changed() {
            *lock(&self.node.rules) = self.node.tree.ignore().clone();
        }
    }

    /// Looks at what is dirty; files that a writer keeps are looked at when it is done.
    fn look(&mut self) -> Result<(), NodeError> {
        let now = Instant::now();
        for (path, kept) in &self.kept {
            let quiet = now.duration_since(kept.touched) >= OPEN_FILES_QUIET;
            let long = now.duration_since(kept.since) >= OPEN_FILES_MAX;
            self.node.tree.look_again(path, true, quiet || long);
        }
        let busy = self.node.tree.catch_up()?;
        let kept = std::mem::take(&mut self.kept);
        for path in busy {
            let at = kept.get(&path).copied().unwrap_or(Kept { since: now, touched: now });
            self.kept.insert(path, at);
        }
        self.node.tree.check_late_writers()?;
        self.node.tree.sync_minted(false)?;
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Tells the session what became durable.
    fn tell(&mut self) {
        let now = self.now();
        let session = &mut self.node.session;
        if let Some(upto) = self.merged.take() {
            session.handle_local(now, Input::Merged { tree: 0, upto });
        }
        session.handle_local(now, Input::Head { tree: 0, seq: self.node.tree.head() });
        let applied = self.node.tree.applied();
        let mut reached = None;
        while let Some((theirs, _)) = self.to_apply.front().copied().filter(|(_, ours)| *ours <= applied) {
            reached = Some(theirs);
            self.to_apply.pop_front();
        }
        if let Some(upto) = reached {
            session.handle_local(now, Input::Applied { tree: 0, upto, stuck: 0 });
        }
    }

    fn apply(&mut self) -> Result<(), NodeError> {
        if !self.opened {
            return Ok(());
        }
        for want in self.node.tree.apply()? {
            let now = self.now();
            let (path, hash, size) = (want.path, want.hash, want.size);
            self.node.session.handle_local(now, Input::Want { tree: 0, want: want.id, path, hash, size });
        }
        Ok(())
    }

    /// Carries out what the session wants done.
    fn drain(&mut self) -> Result<(), NodeError> {
        while let Some(output) = self.node.session.poll_output() {
            let now = self.now();
            match output {
                Output::Transmit { link, frame } => {
                    // A peer that is gone has closed its inbox; the loop ends by its own channel.
                    self.node.outbox.send(Event::Bytes(link, frame)).ok();
                }
                Output::Opened { incarnation, .. } => {
                    self.incarnation = incarnation;
                    self.opened = true;
                    // What an earlier session merged may be applied long since: the peer hears it anew.
                    if let Some((_, merged)) = self.node.tree.cursor(self.node.peer)?.filter(|c| c.0 == incarnation) {
                        self.to_apply.push_back((merged, self.node.tree.index().meta().head));
                    }
                }
                Output::Absent { .. } => {}
                Output::TooLarge { .. } => {}
                Output::ReadRows { tree, after, bytes_max } => {
                    let peer = (self.node.peer, self.incarnation);
                    let (rows, names, upto) = self.node.tree.read_rows(after, bytes_max, peer)?;
                    self.node.session.handle_local(now, Input::Rows { tree, rows, names, upto });
                }
                Output::Merge { rows, names, upto, .. } => {
                    lock(&self.node.status).received += rows.len() as u64;
                    self.node.tree.merge((self.node.peer, self.incarnation), rows, names, upto)?;
                    self.merged = Some(upto);
                    self.to_apply.push_back((upto, self.node.tree.index().meta().head));
                }
                Output::ReadContent { tree, request, path, hash, offset, bytes_max } => {
                    self.read_content((tree, request), &path, hash, offset, bytes_max);
                }
                Output::Received { want, offset, bytes, last, .. } => {
                    lock(&self.node.status).received_bytes += bytes.len() as u64;
                    self.node.tree.receive(want, offset, &bytes, last)?;
                    self.node.session.handle_local(now, Input::Consumed { bytes: bytes.len() as u64 });
                }
                Output::Missing { want, reason, .. } => self.node.tree.missing(want, &reason)?,
                Output::PeerMerged { seq, .. } => {
                    self.node.tree.peer_merged(self.node.peer, seq)?;
                    lock(&self.node.status).peer_merged = seq;
                }
                Output::PeerApplied { seq, .. } => lock(&self.node.status).peer_applied = seq,
                // Asked by agents only.
                Output::HeadAsked { .. } | Output::PeerHead { .. } | Output::Halted { .. } => {}
            }
        }
        Ok(())
    }

    fn read_content(&mut self, of: (usize, u64), path: &TreePath, hash: Hash, offset: u64, bytes_max: usize) {
        let (tree, request) = of;
        let input = match self.node.tree.read_content(path, hash, offset, bytes_max) {
            Ok(bytes) => Input::Content { tree, request, offset, bytes, last: false },
            Err(error) => {
                let reason = format!("the peer does not have this content now: {error}");
                Input::Gone { tree, request, reason }
            }
        };
        let now = self.now();
        self.node.session.handle_local(now, input);
    }

    fn show(&mut self) {
        let tree = &self.node.tree;
        let mut status = lock(&self.node.status);
        status.head = tree.head();
        status.quiet = self.opened && self.kept.is_empty() && self.to_apply.is_empty() && tree.is_quiet();
        if status.problems.len() != tree.problems().len() {
            status.problems = tree.problems().iter().map(|(p, r)| (p.clone(), r.clone())).collect();
        }
    }
}
