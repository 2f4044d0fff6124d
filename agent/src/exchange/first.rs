//! `first`: which peer's index a root that never paired waits for, and when it is whole (DESIGN.md §2, Pairing).
//!
//! A node that waits says so when a session opens. A peer that does not wait answers with the place in its journal that
//! holds all of its disk, once that was scanned; one that waits has said so itself.

use pleach_protocol::session::Input;
use pleach_protocol::version::NodeId;
use pleach_protocol::wire::First;
use pleach_store::kv::Kv;
use pleach_store::tree::{Tree, TreeError};
use pleach_store::vfs::Vfs;

use super::{Exchange, Stream, StreamState, Tell};

/// What the two sides of a session said of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Standing {
    /// The peer waits for this, as it said last.
    theirs: Option<First>,
    /// The peer's journal holds all of its disk up to here.
    whole: Option<u64>,
    /// We said that we wait.
    said: bool,
    /// We said that our journal is whole.
    answered: bool,
}

impl<T: Tell> Stream<T> {
    /// Says that we wait, or, to a peer that waits, that our journal is whole.
    pub(super) fn tell_first(&mut self, waits: Option<First>, whole: Option<u64>) {
        match (waits, whole) {
            (Some(first), _) if !self.first.said => self.first.said = self.say(|tree| Input::Waits { tree, first }),
            (None, Some(upto)) if self.first.theirs.is_some() && !self.first.answered => {
                self.first.answered = self.say(|tree| Input::Whole { tree, upto });
            }
            _ => {}
        }
    }
}

impl<T: Tell> Exchange<T> {
    pub(super) fn peer_waits(&mut self, peer: NodeId, first: First) {
        if let Some(stream) = self.peers.get_mut(&peer) {
            stream.first.theirs = Some(first);
        }
    }

    pub(super) fn peer_is_whole(&mut self, peer: NodeId, upto: u64) {
        if let Some(stream) = self.peers.get_mut(&peer) {
            stream.first.whole = Some(upto);
        }
    }

    /// Ends the wait where a peer's whole index is here, or where it would not end.
    pub(super) fn settle_first<V: Vfs, K: Kv>(&mut self, tree: &mut Tree<V, K>) -> Result<(), TreeError> {
        let Some(first) = tree.waits() else { return Ok(()) };
        // Not before the peer heard that we wait: it is to come to the same end.
        let told = |stream: &Stream<T>| stream.state == StreamState::Open && stream.first.said;
        for (peer, stream) in self.peers.iter().filter(|(_, stream)| told(stream)) {
            let merged = tree.cursor(*peer)?.filter(|c| c.incarnation == stream.life.incarnation).map_or(0, |c| c.seq);
            match (stream.first.whole, stream.first.theirs) {
                // Two that wait for the same both merge, also where the other has done so already.
                (_, Some(theirs)) if theirs == first => tree.follow(None),
                (Some(upto), _) if merged >= upto => tree.follow(Some(first)),
                // Whoever waits for us counts as empty.
                (None, Some(_)) if first == First::Send => tree.follow(Some(first)),
                _ => continue,
            }
            return Ok(());
        }
        Ok(())
    }
}
