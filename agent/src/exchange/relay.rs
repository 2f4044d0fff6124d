//! Content for peers: from here, or as soon as it is here.
//!
//! A node announces what it merged before its own disk has it, so its peers ask for contents that
//! are still on their way. Such a question is held until the content arrives; one for a content
//! that this disk does not want (a loser that was only forwarded, an ignored path) makes the node
//! fetch it into the vault for the asker.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::session::{Input, Moment};
use pleach_protocol::version::NodeId;
use pleach_store::kv::Kv;
use pleach_store::tree::{Tree, TreeError};
use pleach_store::vfs::Vfs;

use super::{Exchange, Tell};

/// A question is held no longer than this: rings of nodes that wait for each other come undone.
const HOLD_MAX: u64 = 60_000_000_000;
/// A content that nobody had is not fetched for others again for so long. Longer than all questions that wait
/// for each other are held: else each that comes to nothing begins another, and in a ring they never end.
const MISSED_FOR: u64 = 2 * HOLD_MAX;
/// Contents that nobody had and that are kept in mind.
const MISSED_MAX: usize = 1_024;
/// How often held questions are looked at without news.
const LOOK_EVERY: u64 = 500_000_000;

/// A peer's question for a piece of content.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) peer: NodeId,
    pub(super) session: u64,
    pub(super) request: u64,
    pub(super) path: TreePath,
    pub(super) hash: Hash,
    /// The parts that the peer knows, where it asks for the manifest.
    pub(super) known: Option<Arc<[[u8; 8]]>>,
    pub(super) offset: u64,
    pub(super) bytes_max: usize,
}

/// Why a question has no answer now.
enum Unanswered {
    /// The content is here, its manifest is not yet.
    Cutting,
    /// The content is not here.
    Absent(String),
    /// There is no such answer here.
    Never(String),
}

/// Questions that wait for their content; the sessions bound how many there are.
#[derive(Debug, Default)]
pub(super) struct Held {
    reads: Vec<(Read, Moment)>,
    /// The tree's count of contents that arrived, when they were last looked at.
    arrivals: u64,
    looked: Moment,
    /// The time, as it was told last.
    now: Moment,
    /// Contents that no peer had, and when.
    missed: BTreeMap<Hash, Moment>,
}

impl Held {
    pub(super) const fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    pub(super) const fn told_time(&mut self, now: Moment) {
        self.now = now;
    }

    /// All peers were asked for a content, and none has it.
    pub(super) fn missed(&mut self, hash: Hash) {
        if self.missed.len() >= MISSED_MAX {
            let now = self.now;
            self.missed.retain(|_, since| now.0.saturating_sub(since.0) < MISSED_FOR);
        }
        if self.missed.len() < MISSED_MAX {
            self.missed.insert(hash, self.now);
        }
    }

    /// Another peer is there: it may have what was missed.
    pub(super) fn forget_missed(&mut self) {
        self.missed.clear();
    }

    fn was_missed(&self, hash: Hash) -> bool {
        self.missed.get(&hash).is_some_and(|since| self.now.0.saturating_sub(since.0) < MISSED_FOR)
    }
}

impl<T: Tell> Exchange<T> {
    /// Answers a question, or holds it.
    pub(super) fn serve<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        now: Moment,
        read: Read,
    ) -> Result<(), TreeError> {
        self.answer_or_hold(tree, now, (read, now))
    }

    /// Answers the held questions whose content came, and those that wait in vain.
    ///
    /// # Errors
    /// The tree's.
    pub fn serve_held<V: Vfs, K: Kv>(&mut self, tree: &mut Tree<V, K>, now: Moment) -> Result<(), TreeError> {
        self.held.told_time(now);
        let arrivals = tree.arrivals();
        let due = self.held.arrivals != arrivals || now.0.saturating_sub(self.held.looked.0) >= LOOK_EVERY;
        if self.held.reads.is_empty() || !due {
            return Ok(());
        }
        (self.held.arrivals, self.held.looked) = (arrivals, now);
        for (read, since) in std::mem::take(&mut self.held.reads) {
            if self.session(read.peer) != Some(read.session) {
                continue;
            }
            self.answer_or_hold(tree, now, (read, since))?;
        }
        Ok(())
    }

    fn answer_or_hold<V: Vfs, K: Kv>(
        &mut self,
        tree: &mut Tree<V, K>,
        now: Moment,
        (read, since): (Read, Moment),
    ) -> Result<(), TreeError> {
        let Some((read, unanswered)) = self.answer(tree, read) else { return Ok(()) };
        let young = now.0.saturating_sub(since.0) < HOLD_MAX;
        let is_absent = matches!(unanswered, Unanswered::Absent(_));
        let (comes, reason) = match unanswered {
            Unanswered::Cutting => (young, "it is being cut".to_owned()),
            Unanswered::Absent(reason) => (young && self.may_come(tree, &read)?, reason),
            Unanswered::Never(reason) => (false, reason),
        };
        if comes {
            self.held.reads.push((read, since));
        } else {
            if is_absent {
                tree.seek(read.hash);
            }
            self.refuse(&read, reason);
        }
        Ok(())
    }

    /// Reads and answers; gives the question back where the content is not here, or being cut.
    fn answer<V: Vfs, K: Kv>(&self, tree: &mut Tree<V, K>, read: Read) -> Option<(Read, Unanswered)> {
        let (path, hash) = (&read.path, read.hash);
        let found = match &read.known {
            None => tree.read_content(path, hash, read.offset, read.bytes_max).map(|bytes| Some((bytes, false))),
            Some(known) => tree.read_manifest(path, hash, known, read.offset, read.bytes_max),
        };
        match found {
            Ok(Some((bytes, last))) => {
                let (request, offset) = (read.request, read.offset);
                self.say(read.peer, |tree| Input::Content { tree, request, offset, bytes, last });
                None
            }
            Ok(None) => Some((read, Unanswered::Cutting)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                Some((read, Unanswered::Never(error.to_string())))
            }
            Err(error) => Some((read, Unanswered::Absent(format!("the peer does not have this content now: {error}")))),
        }
    }

    fn refuse(&self, read: &Read, reason: String) {
        let request = read.request;
        self.say(read.peer, |tree| Input::Gone { tree, request, reason });
    }

    /// Whether a content is on its way here, or can be had from somebody else.
    fn may_come<V: Vfs, K: Kv>(&mut self, tree: &mut Tree<V, K>, read: &Read) -> Result<bool, TreeError> {
        if self.is_asked_for(read.peer, read.hash) {
            // Whoever asks is who this node waits for.
            return Ok(false);
        }
        if tree.awaits(&read.path, read.hash)? {
            return Ok(true);
        }
        let Some(size) = size_of(tree, &read.path, read.hash)? else { return Ok(false) };
        if !self.may_ask_others(read.peer) || self.held.was_missed(read.hash) {
            return Ok(false);
        }
        if let Some(want) = tree.fetch(&read.path, read.hash, size)? {
            self.ask(tree, want, vec![read.peer])?;
        }
        tree.awaits(&read.path, read.hash)
    }
}

/// The length of a content, if the entry names it.
fn size_of<V: Vfs, K: Kv>(tree: &Tree<V, K>, path: &TreePath, hash: Hash) -> Result<Option<u64>, TreeError> {
    let Some(entry) = tree.entry(path)? else { return Ok(None) };
    let siblings = entry.content.values().filter_map(|s| s.content.value());
    let losers = entry.losers.values().flatten().map(|l| &l.value);
    Ok(siblings.chain(losers).find_map(|value| match value {
        Value::File { size, hash: of } if *of == hash => Some(*size),
        _ => None,
    }))
}
