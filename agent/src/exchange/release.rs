//! Directories that appear only when complete (`atomic`). Once all that is known of one is here, and nothing more was heard
//! of it for a while, the peers are asked where their journals end. They answer when these hold all of their disks; when
//! that is merged, too, and brought nothing more, the directory is whole.

use std::collections::BTreeMap;

use pleach_protocol::path::TreePath;
use pleach_protocol::session::{Input, Moment};
use pleach_protocol::version::NodeId;
use pleach_store::kv::Kv;
use pleach_store::tree::{Tree, TreeError};
use pleach_store::vfs::Vfs;

use super::{Exchange, StreamState, Tell};

/// In the number of a question that is to be answered only once the journal holds all of the disk.
const ONCE_CALM: u64 = 1 << 63;
/// How long nothing more is heard of a directory before peers are asked, in nanoseconds.
const STILL: u64 = 1_000_000_000;
/// A tree that is never calm answers all the same, after so long.
const HOLD_MAX: u64 = 60_000_000_000;
/// Questions that wait; beyond it they are answered at once.
const HELD_MAX: usize = 256;

/// What was asked, and what is to be answered.
#[derive(Debug, Default)]
pub(super) struct Releases {
    asked: BTreeMap<TreePath, Question>,
    questions: u64,
    held: Vec<Held>,
}

/// A directory that is whole as far as is known here.
#[derive(Debug)]
struct Question {
    since: Moment,
    /// None before its peers are asked.
    id: Option<u64>,
    /// The session in which each peer was asked.
    asked: BTreeMap<NodeId, u64>,
}

/// A peer's question.
#[derive(Debug)]
struct Held {
    peer: NodeId,
    session: u64,
    id: u64,
    since: Option<Moment>,
}

impl<T: Tell> Exchange<T> {
    /// Whether a peer's question for our head waits until the tree is calm.
    pub(super) fn hold_head(&mut self, peer: NodeId, id: u64) -> bool {
        let Some(session) = self.session(peer) else { return false };
        let holds = id & ONCE_CALM != 0 && self.releases.held.len() < HELD_MAX;
        if holds {
            self.releases.held.push(Held { peer, session, id, since: None });
        }
        holds
    }

    /// Asks and answers what is due. `calm`: nothing is known to have changed on this disk that is not in the journal.
    ///
    /// # Errors
    /// The tree's.
    pub fn settle_releases<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        now: Moment,
        calm: bool,
    ) -> Result<(), TreeError> {
        self.answer_held(tree, now, calm)?;
        let whole = tree.whole_releases();
        for (path, mut question) in std::mem::take(&mut self.releases.asked) {
            if whole.contains(&path) {
                self.releases.asked.insert(path, question);
            } else {
                self.forget(&mut question);
            }
        }
        for path in whole {
            let question = Question { since: now, id: None, asked: BTreeMap::new() };
            let mut question = self.releases.asked.remove(&path).unwrap_or(question);
            if now.0.saturating_sub(question.since.0) >= STILL && self.is_told(tree, &path, &mut question)? {
                tree.release_told(&path);
                self.forget(&mut question);
            } else {
                self.releases.asked.insert(path, question);
            }
        }
        Ok(())
    }

    /// Whether all that the peers had of it when they were asked is merged.
    fn is_told<V: Vfs, K: Kv>(
        &mut self,
        tree: &Tree<V, K>,
        path: &TreePath,
        question: &mut Question,
    ) -> Result<bool, TreeError> {
        let id = *question.id.get_or_insert_with(|| {
            self.releases.questions += 1;
            ONCE_CALM | self.releases.questions
        });
        let peers: Vec<NodeId> = self.names.keys().copied().collect();
        let teacher = tree.index().shared_row(path)?.taught_by.map(|(peer, _)| peer);
        let (mut asked, mut told) = (0, true);
        for peer in peers {
            if self.state(peer) != StreamState::Open {
                // Who told of it may have more to tell.
                told &= teacher != Some(peer);
                continue;
            }
            // A new session forgets what the one before was asked.
            let session = self.session(peer);
            if question.asked.get(&peer) != session.as_ref()
                && self.ask_head(peer, id)
                && let Some(session) = session
            {
                question.asked.insert(peer, session);
            }
            asked += 1;
            let life = self.peers.get(&peer).map(|stream| stream.life.incarnation);
            let merged = tree.cursor(peer)?.filter(|cursor| Some(cursor.incarnation) == life).map_or(0, |c| c.seq);
            told &= self.head_told(peer, id).is_some_and(|head| merged >= head);
        }
        Ok(told && asked > 0)
    }

    fn forget(&mut self, question: &mut Question) {
        if let Some(id) = question.id.take() {
            for stream in self.peers.values_mut() {
                stream.heads.remove(&id);
            }
        }
    }

    fn answer_held<V: Vfs, K: Kv>(&mut self, tree: &mut Tree<V, K>, now: Moment, calm: bool) -> Result<(), TreeError> {
        if self.releases.held.is_empty() {
            return Ok(());
        }
        let calm = calm && tree.has_looked();
        for mut held in std::mem::take(&mut self.releases.held) {
            if self.session(held.peer) != Some(held.session) {
                continue;
            }
            let since = *held.since.get_or_insert(now);
            if !calm && now.0.saturating_sub(since.0) < HOLD_MAX {
                self.releases.held.push(held);
                continue;
            }
            tree.commit()?;
            let (id, seq) = (held.id, tree.head());
            self.say(held.peer, |tree| Input::HeadIs { tree, id, seq });
        }
        Ok(())
    }
}
