//! Who a tree is exchanged with: the sessions that carry it, how far each peer is, and which peer
//! is asked for which content.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use pleach_protocol::session::{Input, Output};
use pleach_protocol::version::NodeId;
use pleach_protocol::wire::Standing;
use pleach_store::tree::{TreeError, Want, WantId};
use tokio::sync::mpsc::UnboundedSender;

use super::{AgentTree, Running, ToSession};
use crate::machine::{lock, random};

/// Batches merged here that wait to be applied, for each peer; further ones join the last.
const TO_APPLY_MAX: usize = 1_024;
/// How often what is left for a peer is counted anew while work goes on.
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// Changes that are counted one by one; beyond them the distance of the positions is told.
const COUNT_MAX: usize = 2_000;

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
struct Carrier {
    session: u64,
    /// The tree's number in it.
    tree: usize,
    to: UnboundedSender<ToSession>,
    /// It was begun without what this tree offers now.
    stale: bool,
}

#[derive(Debug, Default)]
struct Stream {
    carrier: Option<Carrier>,
    state: StreamState,
    incarnation: [u8; 16],
    /// Merged batches that are not durable yet: the peer's position.
    merged: Option<u64>,
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
    counted: Option<Counted>,
}

/// What was left for a peer when it was counted.
#[derive(Clone, Copy, Debug)]
struct Counted {
    at: Instant,
    span: (u64, u64),
    changes: u64,
    bytes: u64,
}

/// A content that was asked for.
#[derive(Debug)]
struct Asked {
    want: Want,
    peer: NodeId,
    /// Peers that do not have it.
    tried: Vec<NodeId>,
}

/// All of a tree's peers. See the module.
#[derive(Debug, Default)]
pub(super) struct Streams {
    peers: BTreeMap<NodeId, Stream>,
    wants: BTreeMap<WantId, Asked>,
}

impl Streams {
    /// Takes up a tree that was opened: who takes it, and how far they were.
    pub(super) fn load(&mut self, tree: &AgentTree, peers: &BTreeMap<NodeId, String>) -> Result<(), TreeError> {
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
    pub(super) fn expect(
        &mut self,
        peer: NodeId,
        session: u64,
        tree: usize,
        to: UnboundedSender<ToSession>,
        stale: bool,
    ) {
        let stream = self.peers.entry(peer).or_default();
        stream.carrier = Some(Carrier { session, tree, to, stale });
        stream.forget_session();
    }

    /// A session ended; says whether it was the one that counts.
    pub(super) fn detach(&mut self, peer: NodeId, session: u64) -> bool {
        let Some(stream) = self.peers.get_mut(&peer) else { return false };
        let ours = stream.carrier.as_ref().is_some_and(|c| c.session == session);
        if ours {
            stream.carrier = None;
            stream.forget_session();
        }
        ours
    }

    /// The tree is closed: its sessions begin anew, and hear so.
    pub(super) fn close(&mut self) {
        self.wants.clear();
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
    pub(super) fn restart_expected(&mut self) {
        for carrier in self.peers.values_mut().filter_map(|s| s.carrier.as_mut()).filter(|c| c.stale) {
            carrier.restart();
        }
    }

    /// Begins all sessions anew: what the tree offers changed.
    pub(super) fn restart_all(&mut self) {
        for carrier in self.peers.values_mut().filter_map(|s| s.carrier.as_mut()) {
            carrier.restart();
        }
    }

    /// Tells the sessions what became durable.
    pub(super) fn tell(&mut self, tree: &AgentTree) {
        let (head, applied) = (tree.head(), tree.applied());
        let stuck = u32::try_from(tree.stuck()).unwrap_or(u32::MAX);
        for stream in self.peers.values_mut().filter(|s| s.state == StreamState::Open) {
            if let Some(upto) = stream.merged.take() {
                stream.say(|tree| Input::Merged { tree, upto });
            }
            stream.say(|tree| Input::Head { tree, seq: head });
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

    /// Whether everything that peers told is applied here.
    pub(super) fn all_applied(&self) -> bool {
        self.peers.values().all(|s| s.to_apply.is_empty())
    }

    /// Asks a peer where its journal ends now; says whether it can be asked.
    pub(super) fn ask_head(&mut self, peer: NodeId, id: u64) -> bool {
        let Some(stream) = self.peers.get_mut(&peer) else { return false };
        stream.state == StreamState::Open && stream.say(|tree| Input::AskHead { tree, id })
    }

    /// The answer, once it came.
    pub(super) fn head_told(&self, peer: NodeId, id: u64) -> Option<u64> {
        self.peers.get(&peer)?.heads.get(&id).copied()
    }

    pub(super) fn forget_heads(&mut self, id: u64) {
        for stream in self.peers.values_mut() {
            stream.heads.remove(&id);
        }
    }

    /// Whether a peer exchanges the tree.
    pub(super) fn state(&self, peer: NodeId) -> StreamState {
        self.peers.get(&peer).map(|s| s.state).unwrap_or_default()
    }

    /// The session that carries the tree to a peer.
    pub(super) fn session(&self, peer: NodeId) -> Option<u64> {
        Some(self.peers.get(&peer)?.carrier.as_ref()?.session)
    }

    /// How far our journal is applied there, and with how many paths stuck.
    pub(super) fn applied_there(&self, peer: NodeId) -> (u64, u32) {
        self.peers.get(&peer).map(|s| (s.peer_applied, s.peer_stuck)).unwrap_or_default()
    }

    /// How far a peer's journal is applied here.
    pub(super) fn applied_here(&self, peer: NodeId) -> u64 {
        self.peers.get(&peer).map_or(0, |s| s.applied.0)
    }

    /// How many changes a peer has not applied.
    pub(super) fn left_for(&mut self, tree: &AgentTree, peer: NodeId) -> Result<u64, TreeError> {
        let Some(stream) = self.peers.get_mut(&peer) else { return Ok(0) };
        Ok(stream.count(tree, tree.head(), false)?.changes)
    }

    /// What is shown of each peer.
    pub(super) fn show(&mut self, tree: &AgentTree, quiet: bool) -> Result<BTreeMap<NodeId, PeerProgress>, TreeError> {
        let head = tree.head();
        let mut shown = BTreeMap::new();
        for (peer, stream) in &mut self.peers {
            let left = stream.count(tree, head, quiet)?;
            let fetching = self.wants.values().filter(|a| a.peer == *peer);
            let progress = PeerProgress {
                state: stream.state,
                to_send: left.changes,
                to_send_bytes: left.bytes,
                to_receive: if stream.to_apply.is_empty() {
                    0
                } else {
                    stream.their_head.saturating_sub(stream.applied.0)
                },
                to_receive_bytes: fetching.map(|a| a.want.size).sum(),
                acked_seq: stream.peer_applied,
                stuck: stream.peer_stuck,
            };
            shown.insert(*peer, progress);
        }
        Ok(shown)
    }

    /// The peer to ask for a content: whoever taught the path, else anybody who exchanges the tree.
    fn holder(&self, taught_by: Option<NodeId>, tried: &[NodeId]) -> Option<NodeId> {
        let asks = |peer: &NodeId| !tried.contains(peer) && self.state(*peer) == StreamState::Open;
        taught_by.filter(asks).or_else(|| self.peers.keys().copied().find(asks))
    }
}

impl Carrier {
    /// Asks the session to begin anew; it is stale until the next one.
    fn restart(&mut self) {
        self.stale = true;
        // A session that is gone begins anew by itself.
        self.to.send(ToSession::Restart).ok();
    }
}

impl Stream {
    fn forget_session(&mut self) {
        self.state = StreamState::Unknown;
        self.merged = None;
        self.to_apply.clear();
        self.applied = (0, 0);
        self.heads.clear();
    }

    /// Tells the session something; false where there is none.
    fn say(&self, input: impl FnOnce(usize) -> Input) -> bool {
        self.carrier.as_ref().is_some_and(|c| !c.stale && c.to.send(ToSession::Input(input(c.tree))).is_ok())
    }

    fn count(&mut self, tree: &AgentTree, head: u64, quiet: bool) -> Result<Counted, TreeError> {
        let span = (self.peer_applied, head);
        if let Some(counted) = self.counted
            && (counted.span == span || (!quiet && counted.at.elapsed() < COUNT_EVERY))
        {
            return Ok(counted);
        }
        let (changes, bytes) = tree.left_behind(self.peer_applied, COUNT_MAX)?;
        let counted = Counted { at: Instant::now(), span, changes, bytes };
        self.counted = Some(counted);
        Ok(counted)
    }
}

impl Running<'_> {
    /// Carries out what a session wants done.
    pub(super) fn carry_out(&mut self, peer: NodeId, session: u64, output: Output) -> Result<(), TreeError> {
        if self.keeper.streams.session(peer) != Some(session) {
            return Ok(());
        }
        match output {
            Output::Opened { incarnation, head, peer_cursor, went_back, .. } => {
                let renew = went_back || self.tree.may_have_missed(peer_cursor);
                self.opened(peer, incarnation, head, renew)?;
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
                let Some(stream) = self.keeper.streams.peers.get(&peer) else { return Ok(()) };
                let (rows, names, upto) = self.tree.read_rows(after, bytes_max, (peer, stream.incarnation))?;
                stream.say(|tree| Input::Rows { tree, rows, names, upto });
            }
            Output::Merge { rows, names, upto, .. } => {
                let Some(stream) = self.keeper.streams.peers.get_mut(&peer) else { return Ok(()) };
                lock(&self.keeper.status).received += rows.len() as u64;
                self.tree.merge((peer, stream.incarnation), rows, names, upto)?;
                stream.merged = Some(upto);
                stream.their_head = stream.their_head.max(upto);
                stream.await_applied(upto, self.tree.index().meta().head);
            }
            Output::ReadContent { request, path, hash, offset, bytes_max, .. } => {
                let read = super::relay::Read { peer, session, request, path, hash, offset, bytes_max };
                self.serve(read)?;
            }
            Output::Received { want, offset, bytes, last, .. } => {
                self.take_content(peer, want, offset, &bytes, last)?;
            }
            Output::Missing { want, reason, .. } => self.missing(want, &reason)?,
            Output::PeerMerged { seq, .. } => self.tree.peer_merged(peer, seq)?,
            Output::PeerApplied { seq, stuck, .. } => {
                let Some(stream) = self.keeper.streams.peers.get_mut(&peer) else { return Ok(()) };
                (stream.peer_applied, stream.peer_stuck) = (seq, stuck);
            }
            Output::HeadAsked { id, .. } => {
                self.tree.commit()?;
                let seq = self.tree.head();
                self.say(peer, |tree| Input::HeadIs { tree, id, seq });
            }
            Output::PeerHead { id, seq, .. } => {
                if let Some(stream) = self.keeper.streams.peers.get_mut(&peer) {
                    stream.their_head = stream.their_head.max(seq);
                    stream.heads.insert(id, seq);
                }
            }
            Output::TooLarge { path, .. } => {
                self.tree.note_problem(&path, "it has too many versions for one message: resolve its conflicts");
            }
            // Carried out by whoever holds the links.
            Output::Transmit { .. } | Output::Notice { .. } => {}
        }
        Ok(())
    }

    fn opened(&mut self, peer: NodeId, incarnation: [u8; 16], head: u64, renew: bool) -> Result<(), TreeError> {
        if renew {
            // It knows more of our journal than there is, or less than it must: all is told anew, both ways.
            let peer_name = self.peer_name(peer);
            tracing::warn!(peer = peer_name, "the peer's place in the journal is gone: a full exchange begins");
            self.tree.forget_cursor(peer);
            let fresh = random().map_err(|source| TreeError::Disk { what: "drawing random bytes", source })?;
            self.tree.renew_incarnation(fresh)?;
            self.keeper.streams.restart_all();
            return Ok(());
        }
        let cursor = self.tree.cursor(peer)?.filter(|c| c.0 == incarnation).map(|(_, merged)| merged);
        let ours = self.tree.index().meta().head;
        let Some(stream) = self.keeper.streams.peers.get_mut(&peer) else { return Ok(()) };
        stream.state = StreamState::Open;
        stream.incarnation = incarnation;
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
        self.tree.retry_stuck_now();
        Ok(())
    }

    fn set_state(&mut self, peer: NodeId, state: StreamState) {
        if let Some(stream) = self.keeper.streams.peers.get_mut(&peer) {
            stream.state = state;
        }
    }

    pub(super) fn say(&self, peer: NodeId, input: impl FnOnce(usize) -> Input) -> bool {
        self.keeper.streams.peers.get(&peer).is_some_and(|stream| stream.say(input))
    }

    pub(super) fn peer_name(&self, peer: NodeId) -> &str {
        self.keeper.setup.peers.get(&peer).map_or("a peer", String::as_str)
    }

    /// Applies what can be, and asks for what is missing.
    pub(super) fn apply(&mut self) -> Result<(), TreeError> {
        for want in self.tree.apply()? {
            self.ask(want, Vec::new())?;
        }
        Ok(())
    }

    /// Asks a peer for a content, one that was not tried; without any, it is missing.
    pub(super) fn ask(&mut self, want: Want, tried: Vec<NodeId>) -> Result<(), TreeError> {
        let taught_by = self.tree.index().row(&want.path)?.taught_by.map(|(peer, _)| peer);
        let Some(peer) = self.keeper.streams.holder(taught_by, &tried) else {
            let holder = self.tree.holder_of(&want.path, want.hash)?;
            let reason = format!("its content is on {holder}; no connected peer has it");
            return self.tree.missing(want.id, &reason);
        };
        let (id, path, hash, size) = (want.id, want.path.clone(), want.hash, want.size);
        self.keeper.streams.wants.insert(id, Asked { want, peer, tried });
        self.say(peer, |tree| Input::Want { tree, want: id, path, hash, size });
        Ok(())
    }

    fn take_content(
        &mut self,
        peer: NodeId,
        id: WantId,
        offset: u64,
        bytes: &[u8],
        last: bool,
    ) -> Result<(), TreeError> {
        let length = bytes.len() as u64;
        lock(&self.keeper.status).received_bytes += length;
        // An answer to what is asked of somebody else by now is not wanted.
        let asked = self.keeper.streams.wants.get(&id).is_some_and(|a| a.peer == peer);
        if asked {
            self.tree.receive(id, offset, bytes, last)?;
        }
        self.say(peer, |_| Input::Consumed { bytes: length });
        if !self.tree.is_wanted(id) || last {
            self.keeper.streams.wants.remove(&id);
            if !last {
                self.say(peer, |tree| Input::Drop { tree, want: id });
            }
        }
        Ok(())
    }

    fn missing(&mut self, id: WantId, reason: &str) -> Result<(), TreeError> {
        let Some(Asked { want, peer, mut tried }) = self.keeper.streams.wants.remove(&id) else { return Ok(()) };
        tracing::debug!(path = %want.path, peer = self.peer_name(peer), reason, "a content does not come");
        tried.push(peer);
        self.ask(want, tried)
    }

    /// A peer is gone: what it was asked for is asked of another.
    pub(super) fn reassign_wants(&mut self, peer: NodeId) {
        let gone: Vec<WantId> =
            self.keeper.streams.wants.iter().filter(|(_, a)| a.peer == peer).map(|(id, _)| *id).collect();
        for id in gone {
            self.keeper.streams.wants.remove(&id);
            self.tree.forget_want(id);
        }
    }

    /// Whether anybody but `peer` exchanges the tree.
    pub(super) fn may_ask_others(&self, peer: NodeId) -> bool {
        self.keeper.streams.holder(None, &[peer]).is_some()
    }

    /// Whether a peer is asked for a content.
    pub(super) fn is_asked_for(&self, peer: NodeId, hash: pleach_protocol::entry::Hash) -> bool {
        self.keeper.streams.wants.values().any(|a| a.peer == peer && a.want.hash == hash)
    }
}

impl Stream {
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
