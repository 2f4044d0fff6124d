//! Which peer is asked for which content, and what comes of it.

use std::collections::BTreeMap;

use pleach_protocol::entry::Hash;
use pleach_protocol::session::{Input, What};
use pleach_protocol::version::NodeId;
use pleach_store::kv::Kv;
use pleach_store::tree::{Tree, TreeError, Want, WantId};
use pleach_store::vfs::Vfs;

use super::{Exchange, StreamState, Tell};

/// A content that was asked for.
#[derive(Debug)]
struct Asked {
    want: Want,
    peer: NodeId,
    /// Peers that do not have it.
    tried: Vec<NodeId>,
    /// Whoever applied our journal up to here has it, too.
    seq: u64,
    /// Another peer took it over: it stays there, for pieces of before may still come from the first.
    shared: bool,
}

/// All that is asked for.
#[derive(Debug, Default)]
pub(super) struct Asking {
    wants: BTreeMap<WantId, Asked>,
    /// Bytes that each peer is asked for.
    bytes: BTreeMap<NodeId, u64>,
    /// At so few bytes a peer takes over more of what others are asked for.
    share_at: BTreeMap<NodeId, u64>,
}

impl Asking {
    pub(super) fn is_empty(&self) -> bool {
        self.wants.is_empty()
    }

    /// Bytes that a peer is asked for.
    pub(super) fn bytes_of(&self, peer: NodeId) -> u64 {
        self.bytes.get(&peer).copied().unwrap_or(0)
    }

    fn insert(&mut self, asked: Asked) {
        let id = asked.want.id;
        self.remove(id);
        *self.bytes.entry(asked.peer).or_default() += asked.want.size;
        self.wants.insert(id, asked);
    }

    fn remove(&mut self, id: WantId) -> Option<Asked> {
        let asked = self.wants.remove(&id)?;
        let left = self.bytes_of(asked.peer).saturating_sub(asked.want.size);
        match left {
            0 => drop(self.bytes.remove(&asked.peer)),
            _ => drop(self.bytes.insert(asked.peer, left)),
        }
        Some(asked)
    }

    fn is_asked(&self, peer: NodeId, id: WantId) -> bool {
        self.wants.get(&id).is_some_and(|asked| asked.peer == peer)
    }
}

impl<T: Tell> Exchange<T> {
    /// Asks a peer for a content, one that was not tried; without any, it is missing.
    ///
    /// # Errors
    /// The tree's.
    pub fn ask<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        want: Want,
        tried: Vec<NodeId>,
    ) -> Result<(), TreeError> {
        let row = tree.index().shared_row(&want.path)?;
        let (taught_by, seq) = (row.taught_by.map(|(peer, _)| peer), row.seq);
        let Some(peer) = self.holder(taught_by, &tried) else {
            let holder = tree.holder_of(&want.path, want.hash)?;
            let reason = format!("its content is on {holder}; no connected peer has it");
            if !matches!(want.what, What::Manifest(_)) {
                self.held.missed(want.hash);
                tree.seek(want.hash);
            }
            return tree.missing(want.id, &reason);
        };
        self.ask_peer(tree, Asked { want, peer, tried, seq, shared: false });
        Ok(())
    }

    /// The peer to ask for a content: whoever taught the path, else anybody who exchanges the tree.
    fn holder(&self, taught_by: Option<NodeId>, tried: &[NodeId]) -> Option<NodeId> {
        let asks = |peer: &NodeId| !tried.contains(peer) && self.state(*peer) == StreamState::Open;
        taught_by.filter(asks).or_else(|| self.peers.keys().copied().find(asks))
    }

    fn ask_peer<V: Vfs, K: Kv>(&mut self, tree: &Tree<V, K>, asked: Asked) {
        let Asked { want, peer, .. } = &asked;
        let (id, peer, path, hash, size) = (want.id, *peer, want.path.clone(), want.hash, want.size);
        // What an earlier session or another peer brought is not sent again.
        let what = want.what.clone().behind(tree.received_of(id));
        self.asking.insert(asked);
        self.say(peer, |tree| Input::Want { tree, want: id, path, hash, size, what });
    }

    /// Asks a peer that has more by now for what others were asked for and have not begun to send, where it has that for
    /// certain and less is asked of it: whoever writes a content sends it once and not to all, where these can have it
    /// from each other.
    pub(super) fn share_out<V: Vfs, K: Kv>(&mut self, tree: &Tree<V, K>, peer: NodeId) {
        let Some(stream) = self.peers.get(&peer).filter(|s| s.state == StreamState::Open && s.peer_stuck == 0) else {
            return;
        };
        let applied = stream.peer_applied;
        let mut asked_of = self.asking.bytes.clone();
        let mut own = asked_of.remove(&peer).unwrap_or_default();
        let mut moved = Vec::new();
        if asked_of.values().any(|bytes| *bytes > own) {
            // What was asked last comes last.
            for (id, asked) in self.asking.wants.iter().rev() {
                let Asked { want, peer: other, tried, seq, shared } = asked;
                let Some(others) = asked_of.get_mut(other).filter(|others| own + want.size < **others) else {
                    continue;
                };
                let has = (1..=applied).contains(seq) && !tried.contains(&peer);
                let movable = !shared && matches!(want.what, What::From(0));
                if has && movable && tree.received_of(*id) == 0 {
                    (own, *others) = (own + want.size, *others - want.size);
                    moved.push(*id);
                }
            }
        }
        self.asking.share_at.insert(peer, own / 2);
        for id in moved {
            let Some(asked) = self.asking.remove(id) else { continue };
            self.say(asked.peer, |tree| Input::Drop { tree, want: id });
            self.ask_peer(tree, Asked { peer, shared: true, ..asked });
        }
    }

    /// Takes a piece of a content in; a peer that has brought half of what it was asked for takes over more.
    pub(super) fn take_content<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        peer: NodeId,
        (id, offset): (WantId, u64),
        bytes: &[u8],
        last: bool,
    ) -> Result<(), TreeError> {
        let length = bytes.len() as u64;
        self.received_bytes += length;
        // An answer to what is asked of somebody else by now is not wanted, and says nothing of that one's.
        let asked = self.asking.is_asked(peer, id);
        if asked {
            tree.receive(id, offset, bytes, last)?;
        }
        self.say(peer, |_| Input::Consumed { bytes: length });
        let wanted = asked && tree.is_wanted(id);
        if !last && !wanted {
            self.say(peer, |tree| Input::Drop { tree, want: id });
        }
        if asked && (last || !wanted) {
            self.asking.remove(id);
            if self.asking.bytes_of(peer) <= self.asking.share_at.get(&peer).copied().unwrap_or(0) {
                self.share_out(tree, peer);
            }
        }
        Ok(())
    }

    /// A peer does not have what it was asked for: another one is asked.
    pub(super) fn missing<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        (peer, id): (NodeId, WantId),
        reason: &str,
    ) -> Result<(), TreeError> {
        if !self.asking.is_asked(peer, id) {
            return Ok(());
        }
        let Some(Asked { want, mut tried, .. }) = self.asking.remove(id) else { return Ok(()) };
        if !tree.is_wanted(id) {
            return Ok(());
        }
        tracing::debug!(path = %want.path, peer = self.peer_name(peer), reason, "a content does not come");
        tried.push(peer);
        self.ask(tree, want, tried)
    }

    /// A peer is gone: what it was asked for is asked of another.
    pub fn reassign_wants<V: Vfs, K: Kv>(&mut self, tree: &mut Tree<V, K>, peer: NodeId) {
        let of_it = |(id, asked): (&WantId, &Asked)| (asked.peer == peer).then_some(*id);
        let gone: Vec<WantId> = self.asking.wants.iter().filter_map(of_it).collect();
        for id in gone {
            self.asking.remove(id);
            tree.forget_want(id);
        }
    }

    /// Whether anybody but `peer` exchanges the tree.
    pub fn may_ask_others(&self, peer: NodeId) -> bool {
        self.holder(None, &[peer]).is_some()
    }

    /// Whether a peer is asked for a content.
    pub fn is_asked_for(&self, peer: NodeId, hash: Hash) -> bool {
        self.asking.wants.values().any(|asked| asked.peer == peer && asked.want.hash == hash)
    }
}
