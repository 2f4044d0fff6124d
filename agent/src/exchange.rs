//! What a tree and its sessions have to do with each other: who carries it, how far each peer is, and
//! which peer is asked for which content.
//!
//! A machine without I/O of its own: outputs of sessions come in ([`Exchange::carry_out`]), the tree
//! does the work, and what sessions are to be told goes out through [`Tell`]. Time is handed in. The
//! agent drives it with channels, the simulator with queues.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;

use pleach_protocol::moved::Moved;
use pleach_protocol::session::{Input, Moment, Output};
use pleach_protocol::version::NodeId;
use pleach_protocol::wire::Standing;
use pleach_store::kv::Kv;
use pleach_store::tree::{Life, Rows, Tree, TreeError};
use pleach_store::vfs::Vfs;

mod alike;
mod asking;
mod barrier;
mod first;
mod relay;
mod release;

pub use barrier::{Barrier, BarrierError};

/// Batches merged here that wait to be applied, for each peer; further ones join the last.
const TO_APPLY_MAX: usize = 1_024;
/// How often what is left for a peer is counted anew while work goes on, in nanoseconds.
const COUNT_EVERY: u64 = 500_000_000;
/// Changes that are counted one by one; beyond them the distance of the positions is told.
const COUNT_MAX: usize = 500;

/// What a session is told by a tree.
#[derive(Debug)]
pub enum ToSession {
    /// This happened. The session's windows bound how many are under way.
    Input(Input),
    /// The tree is there now, or no longer: begin anew, with a new hello.
    Restart,
}

/// The way to a session.
pub trait Tell: Debug {
    /// Tells it something; false where it is gone.
    fn tell(&self, what: ToSession) -> bool;
}

/// Draws the incarnation of a journal that begins a new life.
pub type Entropy = Box<dyn FnMut() -> io::Result<[u8; 16]> + Send>;

/// Whether a peer exchanges the tree.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StreamState {
    /// No session with it says so or otherwise.
    #[default]
    Unknown,
    /// It does.
    Open,
    /// It does not have the tree, or not for us.
    Absent,
    /// Somebody paused the tree there.
    Paused,
    /// The tree is closed there.
    Failed,
}

/// How far this node and a peer are with a tree.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PeerProgress {
    /// Whether it is exchanged.
    pub state: StreamState,
    /// Changes that the peer has not applied.
    pub to_send: u64,
    /// Bytes of their files.
    pub to_send_bytes: u64,
    /// Changes of the peer that are not applied here.
    pub to_receive: u64,
    /// Bytes of what is being fetched from it.
    pub to_receive_bytes: u64,
    /// Our journal is applied there up to here.
    pub acked_seq: u64,
    /// But for so many paths.
    pub stuck: u32,
}

/// A session that carries this tree.
#[derive(Debug)]
struct Carrier<T> {
    session: u64,
    /// The tree's number in it.
    tree: usize,
    to: T,
    /// It was begun without what this tree offers now.
    stale: bool,
}

#[derive(Debug)]
struct Stream<T> {
    carrier: Option<Carrier<T>>,
    state: StreamState,
    /// The peer's journal, and the start of its that tells us.
    life: Life,
    /// Merged batches that are not told yet: the peer's position, and the flushes before it was merged.
    merged: Option<(u64, u64)>,
    /// Positions of the peer's journal, and our own seq whose application makes them applied.
    to_apply: VecDeque<(u64, u64)>,
    /// The peer's journal reaches at least so far.
    their_head: u64,
    /// It is applied here up to there, with so many paths stuck; as was told.
    applied: (u64, u32),
    peer_applied: u64,
    peer_stuck: u32,
    /// Heads that were asked for and came, by the caller's number.
    heads: BTreeMap<u64, u64>,
    /// Who waits for whose whole index in this session.
    first: first::Standing,
    /// What both said that their directories come to.
    digests: alike::Digested,
    counted: Option<Counted>,
}

/// What was left for a peer when it was counted.
#[derive(Clone, Copy, Debug)]
struct Counted {
    at: Moment,
    span: (u64, u64),
    changes: u64,
    bytes: u64,
}

/// Whether an output can be carried out while the tree is scanned for the first time: what is told and asked needs
/// only what is durable; what is merged, applied or waited for needs to know what is on the disk.
#[must_use]
pub const fn may_go_before_scan(output: &Output) -> bool {
    use Output::{HeadAsked, Merge, MergeAlike, Moved, ReadDigests, Received};
    !matches!(
        output,
        Merge { .. } | MergeAlike { .. } | Moved { .. } | Received { .. } | HeadAsked { .. } | ReadDigests { .. }
    )
}

/// All of a tree's peers. See the module.
pub struct Exchange<T> {
    peers: BTreeMap<NodeId, Stream<T>>,
    names: BTreeMap<NodeId, String>,
    asking: asking::Asking,
    held: relay::Held,
    releases: release::Releases,
    entropy: Entropy,
    received: u64,
    received_bytes: u64,
}

impl<T> Debug for Exchange<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("names", &self.names).finish_non_exhaustive()
    }
}

impl<T> Default for Stream<T> {
    fn default() -> Self {
        Self {
            carrier: None,
            state: StreamState::Unknown,
            life: Life::default(),
            merged: None,
            to_apply: VecDeque::new(),
            their_head: 0,
            applied: (0, 0),
            peer_applied: 0,
            peer_stuck: 0,
            heads: BTreeMap::new(),
            first: first::Standing::default(),
            digests: alike::Digested::default(),
            counted: None,
        }
    }
}

impl<T: Tell> Exchange<T> {
    /// An exchange with nobody yet.
    #[must_use]
    pub fn new(entropy: Entropy) -> Self {
        Self {
            peers: BTreeMap::new(),
            names: BTreeMap::new(),
            asking: asking::Asking::default(),
            held: relay::Held::default(),
            releases: release::Releases::default(),
            entropy,
            received: 0,
            received_bytes: 0,
        }
    }

    /// Changes and content bytes received so far.
    #[must_use]
    pub const fn received(&self) -> (u64, u64) {
        (self.received, self.received_bytes)
    }

    /// Takes up a tree that was opened: who takes it, by name, and how far they were.
    ///
    /// # Errors
    /// The store's.
    pub fn load<V: Vfs, K: Kv>(
        &mut self,
        tree: &Tree<V, K>,
        peers: &BTreeMap<NodeId, String>,
    ) -> Result<(), TreeError> {
        self.names.clone_from(peers);
        self.peers.retain(|peer, _| peers.contains_key(peer));
        for peer in peers.keys() {
            let stream = self.peers.entry(*peer).or_default();
            if let Some(cursor) = tree.index().cursor(*peer)? {
                stream.peer_applied = stream.peer_applied.max(cursor.peer_merged);
            }
        }
        Ok(())
    }

    /// A session with a peer begins; the newest one counts. `stale`: it is begun without this tree.
    pub fn expect(&mut self, peer: NodeId, session: u64, tree: usize, to: T, stale: bool) {
        let stream = self.peers.entry(peer).or_default();
        stream.carrier = Some(Carrier { session, tree, to, stale });
        stream.forget_session();
    }

    /// A session ended; says whether it was the one that counts.
    pub fn detach(&mut self, peer: NodeId, session: u64) -> bool {
        let Some(stream) = self.peers.get_mut(&peer) else { return false };
        let ours = stream.carrier.as_ref().is_some_and(|c| c.session == session);
        if ours {
            stream.carrier = None;
            stream.forget_session();
        }
        ours
    }

    /// The tree is closed: its sessions begin anew, and hear so.
    pub fn close(&mut self) {
        self.asking = asking::Asking::default();
        self.held = relay::Held::default();
        for stream in self.peers.values_mut() {
            stream.forget_session();
            if let Some(carrier) = &mut stream.carrier
                && !carrier.stale
            {
                carrier.restart();
            }
        }
    }

    /// The tree is there: sessions that were begun without it begin anew.
    pub fn restart_expected(&mut self) {
        for carrier in self.peers.values_mut().filter_map(|s| s.carrier.as_mut()).filter(|c| c.stale) {
            carrier.restart();
        }
    }

    /// Begins all sessions anew: what the tree offers changed.
    pub fn restart_all(&mut self) {
        for carrier in self.peers.values_mut().filter_map(|s| s.carrier.as_mut()) {
            carrier.restart();
        }
    }

    /// Tells the sessions what became durable, of what was merged or applied: not what still waits for a flush.
    pub fn tell<V: Vfs, K: Kv>(&mut self, tree: &Tree<V, K>) {
        let (head, applied) = (tree.head(), tree.applied());
        let stuck = u32::try_from(tree.stuck()).unwrap_or(u32::MAX);
        for stream in self.peers.values_mut().filter(|s| s.state == StreamState::Open) {
            if let Some((upto, _)) = stream.merged.take_if(|(_, flushes)| *flushes < tree.index().flushes()) {
                stream.say(|tree| Input::Merged { tree, upto });
            }
            stream.say(|tree| Input::Head { tree, seq: head });
            stream.tell_first(tree.waits(), tree.is_whole().then_some(head));
            let mut reached = stream.applied.0;
            while let Some((theirs, _)) = stream.to_apply.front().copied().filter(|(_, ours)| *ours <= applied) {
                reached = theirs;
                stream.to_apply.pop_front();
            }
            if (reached, stuck) != stream.applied {
                stream.applied = (reached, stuck);
                stream.say(|tree| Input::Applied { tree, upto: reached, stuck });
            }
        }
    }

    /// Tells the peers, but for the one that told it, of a directory that was renamed as one unit.
    pub fn tell_moved(&self, moved: &Moved, but: Option<NodeId>) {
        let open = self.peers.iter().filter(|(peer, s)| s.state == StreamState::Open && Some(**peer) != but);
        for (_, stream) in open {
            stream.say(|tree| Input::Moved { tree, moved: Box::new(moved.clone()) });
        }
    }

    /// Whether everything that peers told is applied here.
    pub fn all_applied(&self) -> bool {
        self.peers.values().all(|s| s.to_apply.is_empty())
    }

    /// Whether a content is asked for, or a peer's question for one waits.
    pub fn is_asking(&self) -> bool {
        !self.asking.is_empty() || !self.held.is_empty()
    }

    /// Asks a peer where its journal ends now; says whether it can be asked.
    fn ask_head(&mut self, peer: NodeId, id: u64) -> bool {
        let Some(stream) = self.peers.get_mut(&peer) else { return false };
        stream.state == StreamState::Open && stream.say(|tree| Input::AskHead { tree, id })
    }

    /// The answer, once it came.
    fn head_told(&self, peer: NodeId, id: u64) -> Option<u64> {
        self.peers.get(&peer)?.heads.get(&id).copied()
    }

    /// Whether a peer exchanges the tree.
    pub fn state(&self, peer: NodeId) -> StreamState {
        self.peers.get(&peer).map(|s| s.state).unwrap_or_default()
    }

    /// The session that carries the tree to a peer.
    pub fn session(&self, peer: NodeId) -> Option<u64> {
        Some(self.peers.get(&peer)?.carrier.as_ref()?.session)
    }

    /// How far our journal is applied there, and with how many paths stuck.
    fn applied_there(&self, peer: NodeId) -> (u64, u32) {
        self.peers.get(&peer).map(|s| (s.peer_applied, s.peer_stuck)).unwrap_or_default()
    }

    /// How far our journal is applied by all that exchange the tree now; none where nobody does.
    pub fn applied_by_connected(&self) -> Option<u64> {
        self.peers.values().filter(|s| s.state == StreamState::Open).map(|s| s.peer_applied).min()
    }

    /// How far a peer that is there applied all of our journal, as it said in this session.
    pub fn acked_now(&self, peer: NodeId) -> Option<u64> {
        let stream = self.peers.get(&peer)?;
        let said = stream.state == StreamState::Open && stream.peer_applied > 0 && stream.peer_stuck == 0;
        said.then_some(stream.peer_applied)
    }

    /// How far a peer's journal is applied here.
    fn applied_here(&self, peer: NodeId) -> u64 {
        self.peers.get(&peer).map_or(0, |s| s.applied.0)
    }

    /// How many changes a peer has not applied.
    ///
    /// # Errors
    /// The store's.
    fn left_for<V: Vfs, K: Kv>(&mut self, tree: &Tree<V, K>, now: Moment, peer: NodeId) -> Result<u64, TreeError> {
        let Some(stream) = self.peers.get_mut(&peer) else { return Ok(0) };
        Ok(stream.count(tree, now, false)?.changes)
    }

    /// What is shown of each peer.
    ///
    /// # Errors
    /// The store's.
    pub fn show<V: Vfs, K: Kv>(
        &mut self,
        tree: &Tree<V, K>,
        now: Moment,
        quiet: bool,
    ) -> Result<BTreeMap<NodeId, PeerProgress>, TreeError> {
        let mut shown = BTreeMap::new();
        for (peer, stream) in &mut self.peers {
            let left = stream.count(tree, now, quiet)?;
            let progress = PeerProgress {
                state: stream.state,
                to_send: left.changes,
                to_send_bytes: left.bytes,
                to_receive: if stream.to_apply.is_empty() {
                    0
                } else {
                    stream.their_head.saturating_sub(stream.applied.0)
                },
                to_receive_bytes: self.asking.bytes_of(*peer),
                acked_seq: stream.peer_applied,
                stuck: stream.peer_stuck,
            };
            shown.insert(*peer, progress);
        }
        Ok(shown)
    }
}

impl<T: Tell> Carrier<T> {
    /// Asks the session to begin anew; it is stale until the next one.
    fn restart(&mut self) {
        self.stale = true;
        // A session that is gone begins anew by itself.
        self.to.tell(ToSession::Restart);
    }
}

impl<T: Tell> Stream<T> {
    fn forget_session(&mut self) {
        self.state = StreamState::Unknown;
        self.merged = None;
        self.to_apply.clear();
        self.applied = (0, 0);
        self.heads.clear();
        self.first = first::Standing::default();
        self.digests = self.digests.anew();
    }

    /// Tells the session something; false where there is none.
    fn say(&self, input: impl FnOnce(usize) -> Input) -> bool {
        self.carrier.as_ref().is_some_and(|c| !c.stale && c.to.tell(ToSession::Input(input(c.tree))))
    }

    fn count<V: Vfs, K: Kv>(&mut self, tree: &Tree<V, K>, now: Moment, quiet: bool) -> Result<Counted, TreeError> {
        let head = tree.head();
        let span = (self.peer_applied, head);
        if let Some(counted) = self.counted
            && (counted.span == span || (!quiet && now.0.saturating_sub(counted.at.0) < COUNT_EVERY))
        {
            return Ok(counted);
        }
        let (changes, bytes) = tree.left_behind(self.peer_applied, COUNT_MAX)?;
        let counted = Counted { at: now, span, changes, bytes };
        self.counted = Some(counted);
        Ok(counted)
    }
}

impl<T: Tell> Exchange<T> {
    /// Carries out what a session wants done.
    ///
    /// # Errors
    /// The tree's.
    pub fn carry_out<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        now: Moment,
        (peer, session): (NodeId, u64),
        output: Output,
    ) -> Result<(), TreeError> {
        self.held.told_time(now);
        // A session that is to begin anew was begun with what does not hold any more: its peer leaves out what it
        // takes for ours.
        let carrier = self.peers.get(&peer).and_then(|stream| stream.carrier.as_ref());
        if carrier.is_none_or(|carrier| carrier.session != session || carrier.stale) {
            return Ok(());
        }
        match output {
            Output::Opened { incarnation, start, head, peer_cursor, told_under, went_back, .. } => {
                let place = (peer_cursor, told_under);
                let undone = went_back || tree.is_of_another_life(peer, place)?;
                if undone || tree.may_have_missed(peer_cursor) {
                    return self.renew(tree, peer);
                }
                self.opened(tree, peer, (Life { incarnation, start }, head), place)?;
            }
            Output::Absent { .. } => self.set_state(peer, StreamState::Absent),
            Output::Halted { standing, .. } => self.set_state(
                peer,
                match standing {
                    Standing::Open => StreamState::Unknown,
                    Standing::Paused => StreamState::Paused,
                    Standing::Failed => StreamState::Failed,
                },
            ),
            Output::ReadRows { after, bytes_max, .. } => {
                let Some(stream) = self.peers.get_mut(&peer) else { return Ok(()) };
                let place = (peer, stream.life);
                let Rows { rows, alike, names, upto } =
                    tree.read_rows(after, bytes_max, place, stream.digests.theirs_mut())?;
                stream.say(|tree| Input::Rows { tree, rows, alike, names, upto });
            }
            Output::ReadDigests { .. } => self.tell_digests(tree, peer)?,
            Output::Digests { digests, last, .. } => {
                if let Some(stream) = self.peers.get_mut(&peer) {
                    stream.digests.hear(digests, last);
                }
            }
            Output::MergeAlike { alike, names, .. } => self.merge_alike(tree, peer, &alike, names)?,
            Output::Moved { moved, .. } => {
                let Some(stream) = self.peers.get_mut(&peer) else { return Ok(()) };
                if tree.carry_move(&moved, (peer, stream.life), stream.digests.theirs_mut())? {
                    self.tell_moved(&moved, Some(peer));
                }
            }
            Output::Merge { rows, names, upto, .. } => {
                let Some(stream) = self.peers.get_mut(&peer) else { return Ok(()) };
                self.received += rows.len() as u64;
                tree.merge((peer, stream.life), rows, names, upto)?;
                stream.merged = Some((upto, tree.index().flushes()));
                stream.their_head = stream.their_head.max(upto);
                stream.await_applied(upto, tree.index().meta().head);
            }
            Output::ReadContent { request, path, hash, offset, bytes_max, .. } => {
                let read = relay::Read { peer, session, request, path, hash, known: None, offset, bytes_max };
                self.serve(tree, now, read)?;
            }
            Output::ReadManifest { request, path, hash, known, offset, bytes_max, .. } => {
                let read = relay::Read { peer, session, request, path, hash, known: Some(known), offset, bytes_max };
                self.serve(tree, now, read)?;
            }
            Output::Received { want, offset, bytes, last, .. } => {
                self.take_content(tree, peer, (want, offset), &bytes, last)?;
            }
            Output::Missing { want, reason, .. } => self.missing(tree, (peer, want), &reason)?,
            Output::PeerMerged { seq, .. } => {
                // What it has still to tell may make rows of ours others, of which it need not hear.
                let done = |stream: &&mut Stream<T>| seq >= tree.head() && stream.to_apply.is_empty();
                if let Some(stream) = self.peers.get_mut(&peer).filter(done) {
                    stream.digests.forget();
                }
                tree.peer_merged(peer, seq)?;
            }
            Output::PeerApplied { seq, stuck, .. } => {
                let Some(stream) = self.peers.get_mut(&peer) else { return Ok(()) };
                (stream.peer_applied, stream.peer_stuck) = (seq, stuck);
                self.share_out(tree, peer);
            }
            Output::HeadAsked { id, .. } if self.hold_head(peer, id) => {}
            Output::HeadAsked { id, .. } => {
                tree.commit()?;
                let seq = tree.head();
                self.say(peer, |tree| Input::HeadIs { tree, id, seq });
            }
            Output::PeerHead { id, seq, .. } => {
                if let Some(stream) = self.peers.get_mut(&peer) {
                    stream.their_head = stream.their_head.max(seq);
                    stream.heads.insert(id, seq);
                }
            }
            Output::PeerWaits { first, .. } => self.peer_waits(peer, first),
            Output::PeerWhole { upto, .. } => self.peer_is_whole(peer, upto),
            Output::TooLarge { path, .. } => {
                tree.note_problem(&path, "it has too many versions for one message: resolve its conflicts");
            }
            // Carried out by whoever holds the links.
            Output::Transmit { .. } | Output::Notice { .. } => {}
        }
        Ok(())
    }

    fn opened<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        peer: NodeId,
        (life, head): (Life, u64),
        place: (u64, u64),
    ) -> Result<(), TreeError> {
        // A session that this one replaced answers nothing any more.
        self.reassign_wants(tree, peer);
        self.held.forget_missed();
        tree.greet(peer, place)?;
        let cursor = tree.cursor(peer)?.filter(|c| c.incarnation == life.incarnation).map(|c| c.seq);
        let ours = tree.index().meta().head;
        let Some(stream) = self.peers.get_mut(&peer) else { return Ok(()) };
        stream.state = StreamState::Open;
        stream.life = life;
        stream.their_head = head;
        // Not before the session says so: it may have lost its disk.
        (stream.peer_applied, stream.peer_stuck) = (0, 0);
        // What an earlier session merged may be applied long since: the peer hears it anew.
        if let Some(merged) = cursor {
            stream.await_applied(merged, ours);
        }
        if head > cursor.unwrap_or(0) {
            stream.await_applied(head, u64::MAX);
        }
        tree.retry_stuck_now();
        Ok(())
    }

    /// A peer knows more of our journal than there is, or less than it must: all is told anew, both ways.
    fn renew<V: Vfs, K: Kv>(&mut self, tree: &mut Tree<V, K>, peer: NodeId) -> Result<(), TreeError> {
        let peer_name = self.peer_name(peer);
        tracing::warn!(peer = peer_name, "the peer's place in the journal is gone: a full exchange begins");
        tree.forget_cursor(peer);
        let fresh = (self.entropy)().map_err(|source| TreeError::Disk { what: "drawing random bytes", source })?;
        tree.renew_incarnation(fresh)?;
        self.restart_all();
        Ok(())
    }

    fn set_state(&mut self, peer: NodeId, state: StreamState) {
        if let Some(stream) = self.peers.get_mut(&peer) {
            stream.state = state;
        }
    }

    fn say(&self, peer: NodeId, input: impl FnOnce(usize) -> Input) -> bool {
        self.peers.get(&peer).is_some_and(|stream| stream.say(input))
    }

    fn peer_name(&self, peer: NodeId) -> &str {
        self.names.get(&peer).map_or("a peer", String::as_str)
    }

    /// Applies what can be, and asks for what is missing.
    ///
    /// # Errors
    /// The tree's.
    pub fn apply<V: Vfs, K: Kv>(&mut self, tree: &mut Tree<V, K>) -> Result<(), TreeError> {
        self.settle_first(tree)?;
        for want in tree.apply()? {
            self.ask(tree, want, Vec::new())?;
        }
        Ok(())
    }
}

impl<T> Stream<T> {
    /// The peer's journal up to `theirs` is applied once ours is up to `ours`.
    fn await_applied(&mut self, theirs: u64, ours: u64) {
        // A head that was only heard of gives way to the batches that bring it.
        self.to_apply.retain(|(position, seq)| *seq != u64::MAX || *position > theirs);
        if self.to_apply.len() >= TO_APPLY_MAX {
            self.to_apply.retain(|(_, seq)| *seq == u64::MAX);
        }
        self.to_apply.push_back((theirs, ours));
        self.to_apply.make_contiguous().sort_unstable();
    }
}
