//! Trees that were equal when they met: each side says what its directories come to, and what is alike does not travel
//! ([`pleach_protocol::alike`]).

use pleach_protocol::alike::{Alike, DIGESTS_MAX, DirDigest};
use pleach_protocol::session::Input;
use pleach_protocol::version::{Actor, NodeId};
use pleach_store::kv::Kv;
use pleach_store::tree::{Digests, Tree, TreeError};
use pleach_store::vfs::Vfs;

use super::{Exchange, Tell};

/// What is said of directories in one session.
#[derive(Debug, Default)]
pub(super) struct Digested {
    theirs: Digests,
    /// The peer said that it knows of no directory.
    nothing_there: bool,
    /// Where the next step of telling ours begins.
    at: Option<Vec<u8>>,
    told: usize,
    /// A directory that we had told was another one when the peer spoke of it: from then on all is told by rows.
    changed: bool,
}

impl Digested {
    /// As the next session begins with it.
    pub(super) fn anew(&self) -> Self {
        Self { changed: self.changed, ..Self::default() }
    }

    pub(super) const fn theirs_mut(&mut self) -> &mut Digests {
        &mut self.theirs
    }

    pub(super) fn hear(&mut self, digests: Vec<DirDigest>, last: bool) {
        self.theirs.hear(digests);
        self.nothing_there = last && self.theirs.is_empty();
    }

    /// The peer was told all that there is, and told all that it has: what it said is of no more use.
    pub(super) fn forget(&mut self) {
        self.theirs = Digests::default();
    }
}

impl<T: Tell> Exchange<T> {
    pub(super) fn tell_digests<V: Vfs, K: Kv>(&mut self, tree: &Tree<V, K>, peer: NodeId) -> Result<(), TreeError> {
        let Some(stream) = self.peers.get_mut(&peer) else { return Ok(()) };
        let ours = &mut stream.digests;
        let (mut digests, mut last) = (Vec::new(), true);
        if !ours.nothing_there && !ours.changed {
            (digests, ours.at) = tree.digests(ours.at.take())?;
            digests.truncate(DIGESTS_MAX - ours.told);
            ours.told += digests.len();
            last = ours.at.is_none() || ours.told == DIGESTS_MAX;
        }
        stream.say(|tree| Input::Digests { tree, digests, last });
        Ok(())
    }

    pub(super) fn merge_alike<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        peer: NodeId,
        alike: &Alike,
        names: Vec<(Actor, String)>,
    ) -> Result<(), TreeError> {
        let Some(stream) = self.peers.get_mut(&peer) else { return Ok(()) };
        if tree.merge_alike((peer, stream.life), alike, names, &mut stream.digests.theirs)? {
            self.received += alike.dots.len() as u64;
            return Ok(());
        }
        // Its rows are here no more; the batch that says so must not be taken in.
        stream.digests.changed = true;
        if let Some(carrier) = &mut stream.carrier {
            carrier.restart();
        }
        Ok(())
    }
}
