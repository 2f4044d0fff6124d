//! One node of the simulation: tree, exchange and sessions, as the agent's owner and peer tasks drive them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use pleach_agent::exchange::{Barrier, BarrierError, Exchange, Tell, ToSession, may_go_before_scan};
use pleach_agent::machine::chain;
use pleach_protocol::entry::{Entry, Hash, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::session::{Link as Role, Moment, Output, Session, SessionConfig, SessionError, TreeOffer};
use pleach_protocol::version::NodeId;
use pleach_protocol::view::State;
use pleach_protocol::wire::Standing;
use pleach_store::kv::memory::MemoryKvDisk;
use pleach_store::root::RootError;
use pleach_store::tree::{Scan, TreeError};
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::{CrashKind, ModelVfs, Seen};

use super::disk::Trials;
use super::events::{Look, Watch, Watching};
use super::minted::Deeds;
use super::rules;
use super::ways::IN_THE_WAY;
use crate::model::{ModelNode, ModelTree};

type Mail = Arc<Mutex<VecDeque<(u64, ToSession)>>>;

/// How long an owner may take to say what it offers. Source: agent/src/peer/conversation.rs.
const OFFER_MAX: u64 = 3_000_000_000;
/// Entries that the first scan looks at in one round.
const ENTRIES_AT_ONCE: u64 = 2;
/// The one tree.
const TREE: &str = "t";

/// What comes in at an owner.
#[derive(Debug)]
pub(super) enum Event {
    /// A session wants this done.
    Output(NodeId, u64, Output),
    /// A session with this peer begins: what is offered?
    Offer(NodeId, u64),
    /// A session ended.
    Detach(NodeId, u64),
}

/// The way to one session.
#[derive(Debug)]
pub(super) struct Mailbox {
    mail: Mail,
    session: u64,
}

impl Tell for Mailbox {
    fn tell(&self, what: ToSession) -> bool {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        mail.push_back((self.session, what));
        true
    }
}

#[derive(Debug)]
pub(super) struct SimNode {
    pub(super) model: ModelNode,
    pub(super) peers: BTreeMap<NodeId, String>,
    /// What comes in, in order.
    pub(super) events: VecDeque<Event>,
    exchange: Exchange<Mailbox>,
    /// Incarnations drawn so far.
    drawn: Arc<AtomicU64>,
    mail: Mail,
    sessions: BTreeMap<u64, Session>,
    /// Sessions whose owner has not said what it offers, since when.
    awaited: BTreeMap<u64, (NodeId, u64)>,
    starts: u64,
    /// Nothing is exchanged until somebody resumes it.
    pub(super) paused: bool,
    /// The first scan, and what came in during it and waits for its end.
    scanning: Option<Scan<ModelVfs>>,
    later: VecDeque<Event>,
    waits: BTreeMap<u64, Barrier>,
    next_wait: u64,
    /// The head at the last hour.
    hour_ago: Option<u64>,
    /// It was started once.
    pub(super) joined: bool,
    /// Its users change what is ignored.
    pub(super) ruled: bool,
    /// All that it holds was looked at once, and paired.
    paired: bool,
    pub(super) trials: Trials,
    how: Watch,
    watching: Option<Watching>,
    /// What a loud run said last of the path that it watches.
    pub(super) watched: String,
    /// Contents that must be on this disk: they were in its tree or vault, and no user of this node
    /// destroyed them.
    owed: BTreeSet<Vec<u8>>,
    /// The same as of the last sync of the whole disk.
    owed_synced: BTreeSet<Vec<u8>>,
}

fn fresh_exchange(number: u8, drawn: &Arc<AtomicU64>) -> Exchange<Mailbox> {
    let drawn = Arc::clone(drawn);
    Exchange::new(Box::new(move || {
        let mut bytes = [number; 16];
        bytes[..8].copy_from_slice(&(drawn.fetch_add(1, Ordering::Relaxed) + 1).to_be_bytes());
        Ok(bytes)
    }))
}

impl SimNode {
    pub(super) fn new(number: u8, how: Watch) -> Self {
        let drawn = Arc::default();
        Self {
            model: ModelNode::new(number),
            peers: BTreeMap::new(),
            events: VecDeque::new(),
            exchange: fresh_exchange(number, &drawn),
            drawn,
            mail: Mail::default(),
            sessions: BTreeMap::new(),
            awaited: BTreeMap::new(),
            starts: 0,
            paused: false,
            scanning: None,
            later: VecDeque::new(),
            waits: BTreeMap::new(),
            next_wait: 0,
            hour_ago: None,
            joined: false,
            ruled: false,
            paired: false,
            trials: Trials::default(),
            how,
            watching: None,
            watched: String::new(),
            owed: BTreeSet::new(),
            owed_synced: BTreeSet::new(),
        }
    }

    pub(super) fn start(&mut self) -> Result<(), String> {
        self.joined = true;
        self.starts += 1;
        if let Err(error) = self.model.start() {
            self.trials.went_back = matches!(error, TreeError::Root(RootError::WentBack));
            return Err(format!("start: {}", chain(&error)));
        }
        // Watch first, then list: what changes during the first scan is seen again.
        self.watching = Watching::start(&self.model.disk, self.how).map_err(|error| chain(&error))?;
        let tree = self.model.tree.as_ref().ok_or("it did not start")?;
        self.model.root_id = Some(tree.root_id().to_vec());
        self.scanning = Some(tree.begin_scan());
        self.exchange.load(tree, &self.peers).map_err(|error| chain(&error))
    }

    pub(super) const fn is_up(&self) -> bool {
        self.model.tree.is_some()
    }

    /// Its tree failed; its owner opens it anew.
    pub(super) fn is_closed(&self) -> bool {
        self.joined && !self.is_up() && !self.model.disk.crashed()
    }

    pub(super) fn head(&self) -> Option<u64> {
        self.model.tree.as_ref().map(|t| t.index().meta().head)
    }

    pub(super) fn is_quiet(&self) -> bool {
        let calm = |tree: &ModelTree| tree.problems().values().all(|why| self.stands(why));
        self.model.tree.as_ref().is_some_and(|t| t.is_quiet() && !t.goes_on() && calm(t))
            && self.exchange.all_applied()
            && !self.exchange.is_asking()
    }

    /// Whether a problem stands for as long as users leave things as they are: what users of one that only receives put
    /// in the way, and what is ignored in a directory that others removed.
    pub(super) fn stands(&self, problem: &str) -> bool {
        problem == IN_THE_WAY || self.ruled && rules::stands(problem)
    }

    /// Whether what it holds is yet to pair for the first time.
    pub(super) const fn is_yet_to_pair(&self) -> bool {
        !self.paired
    }

    /// False where that was undone: a crash may, and what fails before the journal has it.
    pub(super) fn note_paired(&mut self) -> bool {
        let Some(tree) = &self.model.tree else { return true };
        let before = self.paired;
        self.paired = tree.is_whole() || before && tree.waits().is_none();
        self.paired >= before
    }

    /// Whether it waits for a peer's whole index.
    pub(super) fn waits(&self) -> bool {
        self.model.tree.as_ref().is_some_and(|tree| tree.waits().is_some())
    }

    /// Whether a path was there when the root began to follow a peer that does not have it (`first`): it goes to the vault.
    pub(super) fn found(&self, path: &[u8]) -> bool {
        let row = || self.model.tree.as_ref()?.index().row(&TreePath::parse(path).ok()?).ok();
        row().is_some_and(|row| row.entry.context.is_empty() && row.shown.is_some_and(|s| s.shown.state.is_some()))
    }

    pub(super) fn has_no_problems(&self) -> bool {
        self.model.tree.as_ref().is_some_and(|tree| tree.problems().is_empty())
    }

    pub(super) fn problems(&self) -> String {
        self.model.tree.as_ref().map_or("down".to_owned(), |t| {
            format!(
                "{:?} {:?}, quiet {}, all applied {}",
                t.problems(),
                t.stuck_paths(),
                t.is_quiet(),
                self.exchange.all_applied()
            )
        })
    }

    /// One round of the owner's loop.
    pub(super) fn round(&mut self, now: u64, look: Look) -> Result<(), String> {
        let Some(tree) = &mut self.model.tree else { return Ok(()) };
        let now = Moment(now);
        if let Some(scan) = &mut self.scanning {
            let over = tree.scan_on(scan, ENTRIES_AT_ONCE).map_err(|error| chain(&error))?;
            tree.commit().map_err(|error| chain(&error))?;
            self.exchange.tell(tree);
            if over {
                self.scanning = None;
                self.later.append(&mut self.events);
                std::mem::swap(&mut self.later, &mut self.events);
            }
            return Ok(());
        }
        let mut work = || {
            if let Some(watching) = &mut self.watching {
                watching.follow(tree, look.events, |moved| self.exchange.tell_moved(moved, None))?;
            }
            let busy = if look.scan {
                tree.scan_later();
                tree.catch_up()?
            } else {
                tree.catch_up_by(ENTRIES_AT_ONCE)?
            };
            for path in busy {
                tree.look_again(&path, true, false);
            }
            tree.check_late_writers()?;
            tree.sync_minted(false)?;
            if tree.has_news() || self.paused {
                tree.commit()?;
                self.exchange.tell(tree);
            }
            if self.paused {
                return Ok(());
            }
            self.exchange.apply(tree)?;
            tree.commit()?;
            self.exchange.tell(tree);
            if look.mark {
                tree.mark_last()?;
            }
            self.exchange.serve_held(tree, now)?;
            self.exchange.settle_releases(tree, now, true)
        };
        work().map_err(|error| chain(&error))
    }

    /// Who its peers are changed.
    pub(super) fn set_peers(&mut self, peers: BTreeMap<NodeId, String>) -> Result<(), String> {
        self.peers = peers;
        let Some(tree) = &self.model.tree else { return Ok(()) };
        self.exchange.load(tree, &self.peers).map_err(|error| chain(&error))
    }

    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.exchange.restart_all();
    }

    /// Disk and store are lost; the node starts anew under its key.
    pub(super) fn wipe(&mut self) -> Result<(), String> {
        self.end_process();
        self.model.wipe();
        self.trials = Trials::default();
        (self.owed, self.owed_synced) = Default::default();
        self.start()
    }

    pub(super) fn end_process(&mut self) {
        self.close();
        self.exchange = fresh_exchange(self.model.id.0[0], &self.drawn);
    }

    /// Somebody waits: all that changed on the disk is taken in. The wait's number.
    pub(super) fn begin_wait(&mut self) -> Result<u64, String> {
        let Some(tree) = &mut self.model.tree else { return Err("it is down".to_owned()) };
        let mut take_all = || {
            if let Some(mut scan) = self.scanning.take() {
                while !tree.scan_on(&mut scan, ENTRIES_AT_ONCE)? {}
                self.later.append(&mut self.events);
                std::mem::swap(&mut self.later, &mut self.events);
            }
            tree.scan_later();
            for path in tree.catch_up()? {
                tree.look_again(&path, true, true);
            }
            tree.catch_up()?;
            tree.sync_minted(true)?;
            tree.commit()
        };
        take_all().map_err(|error| chain(&error))?;
        self.exchange.tell(tree);
        self.next_wait += 1;
        self.waits.insert(self.next_wait, Barrier::new(tree.head(), self.next_wait));
        Ok(self.next_wait)
    }

    /// The waits that are over, and whether they were told that all is well. What fails the tree fails all of them.
    pub(super) fn settle_waits(&mut self, now: u64) -> Result<Vec<(u64, bool)>, String> {
        let Some(tree) = &mut self.model.tree else { return Ok(Vec::new()) };
        let mut ended = Vec::new();
        for (number, barrier) in &mut self.waits {
            match self.exchange.outstanding(tree, Moment(now), barrier) {
                _ if self.paused => ended.push((*number, false)),
                // As the owner does before it answers.
                Ok(left) if left.is_empty() => {
                    tree.mark_last().map_err(|error| chain(&error))?;
                    ended.push((*number, true));
                }
                Ok(_) => {}
                Err(BarrierError::Tree(error)) => return Err(chain(&error)),
                Err(BarrierError::Paused(_) | _) => ended.push((*number, false)),
            }
        }
        for (number, _) in &ended {
            if let Some(barrier) = self.waits.remove(number) {
                self.exchange.forget_barrier(&barrier);
            }
        }
        Ok(ended)
    }

    /// What waits wait for, in words.
    pub(super) fn outstanding(&mut self, now: u64) -> Vec<String> {
        let Some(tree) = &self.model.tree else { return Vec::new() };
        let left = self.waits.values_mut().map(|b| self.exchange.outstanding(tree, Moment(now), b));
        left.flat_map(Result::unwrap_or_default).collect()
    }

    /// Another hour is over: tombstones of before the last one may go.
    pub(super) fn hour(&mut self) -> Result<(), String> {
        let Some(tree) = &mut self.model.tree else { return Ok(()) };
        let peers: Vec<NodeId> = self.peers.keys().copied().collect();
        let head = tree.head();
        let mut collecting = self.hour_ago.replace(head).map(|upto| (0, upto));
        while let Some((after, upto)) = collecting {
            let reached = tree.collect(after, upto, &peers).map_err(|error| chain(&error))?;
            collecting = reached.map(|reached| (reached, upto));
        }
        tree.commit().map_err(|error| chain(&error))
    }

    /// What says whether anything was minted or told.
    pub(super) fn journal_state(&self) -> Option<(u64, [u8; 16])> {
        let meta = self.model.tree.as_ref()?.index().meta();
        Some((meta.head, meta.incarnation))
    }

    /// Some paths of which it knows more than its disk shows.
    pub(super) fn pending(&self) -> Vec<TreePath> {
        let Some(index) = self.model.tree.as_ref().map(ModelTree::index) else { return Vec::new() };
        let journal = index.journal(index.meta().applied, 8).unwrap_or_default();
        let news = |path: &TreePath| {
            index.row(path).is_ok_and(|row| row.shown.is_none_or(|s| s.shown.context != row.entry.context))
        };
        journal.into_iter().map(|(_, path)| path).filter(news).collect()
    }

    /// All that is known.
    pub(super) fn entries(&self) -> Result<BTreeMap<TreePath, Entry>, String> {
        let Some(tree) = &self.model.tree else { return Ok(BTreeMap::new()) };
        let rows = tree.index().beneath(&TreePath::ROOT, None, usize::MAX).map_err(|error| chain(&error))?;
        let known = rows.into_iter().filter(|(_, row)| !row.entry.context.is_empty());
        Ok(known.map(|(path, row)| (path, row.entry)).collect())
    }

    /// The owner takes what came in.
    pub(super) fn carry_out(&mut self, now: u64, event: Event) -> Result<(), String> {
        let Some(tree) = &mut self.model.tree else { return Ok(()) };
        match event {
            Event::Output(_, _, ref output) if self.scanning.is_some() && !may_go_before_scan(output) => {
                self.later.push_back(event);
            }
            Event::Output(peer, session, output) => {
                let of = (peer, session);
                self.exchange.carry_out(tree, Moment(now), of, output).map_err(|error| chain(&error))?;
            }
            Event::Offer(peer, session) => {
                let offer = TreeOffer {
                    name: TREE.to_owned(),
                    incarnation: tree.life().incarnation,
                    start: tree.life().start,
                    cursor: tree.cursor(peer).map_err(|error| chain(&error))?,
                    head: tree.head(),
                    standing: if self.paused { Standing::Paused } else { Standing::Open },
                };
                let stale = self.awaited.remove(&session).is_none();
                let mailbox = Mailbox { mail: Arc::clone(&self.mail), session };
                self.exchange.expect(peer, session, 0, mailbox, stale);
                if stale {
                    // Whoever waited in vain has begun without this tree.
                    self.exchange.restart_expected();
                } else {
                    self.begin_session(now, peer, session, offer);
                }
            }
            Event::Detach(peer, session) => {
                if self.exchange.detach(peer, session) {
                    self.exchange.reassign_wants(tree, peer);
                }
            }
        }
        Ok(())
    }

    fn begin_session(&mut self, now: u64, peer: NodeId, number: u64, offer: TreeOffer) {
        let mut token = [0; 16];
        token[..8].copy_from_slice(&number.to_be_bytes());
        let config = SessionConfig {
            node: self.model.id,
            peer,
            name: format!("n{}", self.model.id.0[0]),
            start: self.starts,
            token,
            trees: vec![offer],
        };
        self.sessions.insert(number, Session::new(Moment(now), config));
    }

    /// A connection with a peer begins: the owner is asked what it offers.
    pub(super) fn open_session(&mut self, now: u64, peer: NodeId, number: u64) {
        self.awaited.insert(number, (peer, now));
        self.events.push_back(Event::Offer(peer, number));
    }

    pub(super) fn close_session(&mut self, number: u64) {
        let awaited = self.awaited.remove(&number).map(|(peer, _)| peer);
        let peer = self.sessions.remove(&number).map(|session| session.peer());
        if let Some(peer) = peer.or(awaited) {
            self.events.push_back(Event::Detach(peer, number));
        }
    }

    /// Whether the session of a connection runs.
    pub(super) fn talks(&self, session: u64) -> bool {
        self.sessions.contains_key(&session)
    }

    /// Whether a session has not heard the peer's hello.
    pub(super) fn awaits_hello(&self, session: u64) -> bool {
        self.sessions.get(&session).is_some_and(|s| s.peer_hello().is_none())
    }

    /// When a session heard its peer last.
    pub(super) fn heard(&self, session: u64) -> Option<u64> {
        Some(self.sessions.get(&session)?.heard().0)
    }

    pub(super) fn ping(&mut self, now: u64, session: u64) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.ping(Moment(now));
        }
    }

    pub(super) fn say_bye(&mut self, session: u64, reason: &str) {
        if let Some(session) = self.sessions.get_mut(&session) {
            session.say_bye(reason);
        }
    }

    /// Does what is due by time; the sessions that are dead by it.
    pub(super) fn time_out(&mut self, now: u64) -> Vec<u64> {
        let late = self.awaited.iter().filter(|(_, (_, since))| now >= since + OFFER_MAX);
        let late: Vec<(u64, NodeId)> = late.map(|(number, (peer, _))| (*number, *peer)).collect();
        for (number, peer) in late {
            self.awaited.remove(&number);
            let standing = Standing::Failed;
            let offer =
                TreeOffer { name: TREE.to_owned(), incarnation: [0; 16], start: 0, cursor: None, head: 0, standing };
            self.begin_session(now, peer, number, offer);
        }
        let due = self.sessions.iter_mut().filter(|(_, session)| session.next_timeout().0 <= now);
        due.filter_map(|(number, session)| session.handle_timeout(Moment(now)).err().map(|_| *number)).collect()
    }

    /// A frame arrives; says whether the peer ended the session with it.
    pub(super) fn hear(&mut self, now: u64, session: u64, role: Role, frame: &[u8]) -> Result<bool, String> {
        let Some(session) = self.sessions.get_mut(&session) else { return Ok(false) };
        let body = frame.get(4..).unwrap_or_default();
        match session.handle_frame(Moment(now), role, body) {
            Ok(()) => Ok(false),
            Err(SessionError::Bye(_)) => Ok(true),
            Err(error) => Err(chain(&error)),
        }
    }

    pub(super) fn next_mail(&mut self) -> Option<(u64, ToSession)> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Tells a session what its tree says; true where it is to begin anew.
    pub(super) fn tell_session(&mut self, now: u64, session: u64, told: ToSession) -> bool {
        let Some(session) = self.sessions.get_mut(&session) else { return false };
        match told {
            ToSession::Input(input) => session.handle_local(Moment(now), input),
            ToSession::Restart => {
                session.say_bye("it begins anew");
                return true;
            }
        }
        false
    }

    /// What sessions want sent; what they want done goes to the owner's queue.
    pub(super) fn take_frames(&mut self) -> Vec<(u64, Role, Vec<u8>)> {
        let mut frames = Vec::new();
        for (number, session) in &mut self.sessions {
            while let Some(output) = session.poll_output() {
                match output {
                    Output::Transmit { link, frame } => frames.push((*number, link, frame)),
                    other => self.events.push_back(Event::Output(session.peer(), *number, other)),
                }
            }
        }
        frames
    }

    /// The node went down; it is yet to be started again.
    pub(super) fn come_back(&mut self, kind: CrashKind, keep: usize, lost_store: bool) {
        self.end_process();
        self.model.disk.restart(kind);
        self.model.kv.crash(keep);
        if lost_store {
            self.trials.store_lost = true;
            // An older store under this disk would take it for one that went back, and halt: rightly, for it
            // cannot know that another store was in between.
            self.trials.forget_snapshot();
            self.model.kv = MemoryKvDisk::default();
            let machine = self.model.disk.clone();
            self.model.kv.die_with(move || machine.crashed());
        }
        if kind != CrashKind::Process {
            // What was received and not durable is fetched again.
            let there = self.contents(true);
            let synced = std::mem::take(&mut self.owed_synced);
            self.owed.retain(|content| synced.contains(content) || there.contains(content));
            self.owed_synced = synced;
        }
    }

    /// The tree is closed: its process lives on, or ends.
    pub(super) fn close(&mut self) {
        self.model.tree = None;
        (self.watching, self.scanning) = (None, None);
        self.events.clear();
        self.later.clear();
        (self.sessions, self.awaited, self.waits) = Default::default();
        self.hour_ago = None;
        self.exchange.close();
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The disk was put back to what it was: it owes what is there now.
    pub(super) fn owe_what_is_there(&mut self) {
        self.owed = self.contents(false);
        self.owed_synced = self.owed.clone();
    }

    /// Contents of regular files on the disk; without `everywhere` only in the tree and the vault.
    fn contents(&self, everywhere: bool) -> BTreeSet<Vec<u8>> {
        let all = self.model.disk.user().snapshot(true).into_iter();
        let files = all.filter(|(path, seen)| {
            let counts = everywhere || !path.starts_with(b".pleach/") || path.starts_with(b".pleach/vault/");
            seen.kind == Kind::File && counts && seen.content.starts_with(b"content ")
        });
        files.map(|(_, seen)| seen.content).collect()
    }

    /// Whether a directory here lives only for what is beneath and nothing says whose it is: it has no access of
    /// its own, and no real ancestor (DESIGN.md §2, "derived"). It keeps what made it.
    pub(super) fn leaves_owner_open(&self, path: &[u8]) -> bool {
        let view = || {
            let index = self.model.tree.as_ref()?.index();
            let path = TreePath::parse(path).ok()?;
            index.view(&path, &index.row(&path).ok()?).ok()?
        };
        view().is_some_and(|view| view.value == Value::Dir && view.access.is_none())
    }

    /// Whether a directory here lives only for what is beneath (DESIGN.md §2, "derived"): it goes with the last of that.
    pub(super) fn is_derived(&self, path: &[u8]) -> bool {
        let row = || self.model.tree.as_ref()?.index().row(&TreePath::parse(path).ok()?).ok();
        let is_dir = |entry: &Entry| entry.content.values().any(|s| s.content.value() == Some(&Value::Dir));
        row().is_some_and(|row| row.live_children > 0 && !is_dir(&row.entry))
    }

    /// Files that users had changed before a crash of the machine which let the bytes through and not the time: no stamp tells
    /// of that, and neither does the log.
    pub(super) fn changed_behind_stamps(&self, before: &BTreeMap<Vec<u8>, Seen>) -> Vec<Vec<u8>> {
        let Some(index) = self.model.tree.as_ref().map(ModelTree::index) else { return Vec::new() };
        let hash_of = |seen: &Seen| Hash(*blake3::hash(&seen.content).as_bytes());
        let hidden = |path: &[u8], seen: &Seen| {
            let shown = TreePath::parse(path).ok().and_then(|path| index.row(&path).ok()?.shown?.shown.state);
            let Some(State { value: Value::File { size, hash }, mtime: Some(mtime), .. }) = shown else { return false };
            let theirs = before.get(path).is_some_and(|live| hash_of(live) != hash);
            theirs && seen.content.len() as u64 == size && seen.mtime == mtime && hash_of(seen) != hash
        };
        let files = self.model.seen().into_iter().filter(|(_, seen)| seen.kind == Kind::File);
        files.filter(|(path, seen)| hidden(path, seen)).map(|(path, _)| path).collect()
    }

    /// What the disk and the index say of a path.
    pub(super) fn describe(&self, path: &[u8]) -> String {
        let seen = self.model.seen().remove(path);
        let row = TreePath::parse(path).ok().and_then(|p| self.model.tree.as_ref()?.index().row(&p).ok());
        let row =
            row.map(|r| (r.seq, r.live_children, r.entry.content, r.shown.map(|s| (s.shown.context, s.shown.state))));
        format!("{seen:?} {row:?}")
    }

    /// Takes note of what users did while the engine worked; returns the contents that they made.
    pub(super) fn hear_of_users(&mut self) -> (Vec<Vec<u8>>, Deeds, Vec<&'static str>) {
        let between = self.trials.take_between();
        self.owed.retain(|content| !between.destroyed.contains(content));
        (between.made, between.deeds, between.linked)
    }

    /// No step of the engine takes a content from the disk; users may.
    pub(super) fn check_contents_kept(&mut self, user: bool) -> Result<(), String> {
        if self.model.disk.crashed() || !self.model.disk.is_mounted() {
            return Ok(());
        }
        let there = self.contents(true);
        if user {
            // What is on its way when they act is no version: whoever takes a file away may do so while a peer sends it.
            let kept = self.contents(!self.is_up());
            self.owed.retain(|content| kept.contains(content));
        } else if let Some(lost) = self.owed.iter().find(|content| !there.contains(*content)) {
            let (id, lost) = (self.model.id.0[0] - 1, String::from_utf8_lossy(lost));
            return Err(format!("n{id} lost '{lost}': it is neither in its tree nor in its vault"));
        }
        self.owed.append(&mut self.contents(false));
        if user {
            // Users' programs sync.
            self.model.disk.sync();
            self.owed_synced = self.owed.clone();
        }
        Ok(())
    }
}
