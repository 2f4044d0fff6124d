//! Content for peers: from here, or as soon as it is here.
//!
//! A node announces what it merged before its own disk has it, so its peers ask for contents that
//! are still on their way. Such a question is held until the content arrives; one for a content
//! that this disk does not want (a loser that was only forwarded, an ignored path) makes the node
//! fetch it into the vault for the asker.

use std::time::{Duration, Instant};

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::session::Input;
use pleach_protocol::version::NodeId;
use pleach_store::tree::TreeError;

use super::Running;

/// A question is held no longer than this: rings of nodes that wait for each other come undone.
const HOLD_MAX: Duration = Duration::from_secs(60);
/// How often held questions are looked at without news.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A peer's question for a piece of content.
#[derive(Clone, Debug)]
pub(super) struct Read {
    pub(super) peer: NodeId,
    pub(super) session: u64,
    pub(super) request: u64,
    pub(super) path: TreePath,
    pub(super) hash: Hash,
    pub(super) offset: u64,
    pub(super) bytes_max: usize,
}

/// Questions that wait for their content; the sessions bound how many there are.
#[derive(Debug)]
pub(super) struct Held {
    reads: Vec<(Read, Instant)>,
    /// The tree's count of contents that arrived, when they were last looked at.
    arrivals: u64,
    looked: Instant,
}

impl Default for Held {
    fn default() -> Self {
        Self { reads: Vec::new(), arrivals: 0, looked: Instant::now() }
    }
}

impl Running<'_> {
    /// Answers a question, or holds it.
    pub(super) fn serve(&mut self, read: Read) -> Result<(), TreeError> {
        let Some((read, reason)) = self.answer(read) else { return Ok(()) };
        if self.may_come(&read)? {
            self.held.reads.push((read, Instant::now()));
        } else {
            self.refuse(&read, reason);
        }
        Ok(())
    }

    /// Answers the held questions whose content came, and those that wait in vain.
    pub(super) fn serve_held(&mut self) -> Result<(), TreeError> {
        let arrivals = self.tree.arrivals();
        let due = self.held.arrivals != arrivals || self.held.looked.elapsed() >= LOOK_EVERY;
        if self.held.reads.is_empty() || !due {
            return Ok(());
        }
        (self.held.arrivals, self.held.looked) = (arrivals, Instant::now());
        for (read, since) in std::mem::take(&mut self.held.reads) {
            if self.keeper.streams.session(read.peer) != Some(read.session) {
                continue;
            }
            let Some((read, reason)) = self.answer(read) else { continue };
            if since.elapsed() < HOLD_MAX && self.may_come(&read)? {
                self.held.reads.push((read, since));
            } else {
                self.refuse(&read, reason);
            }
        }
        Ok(())
    }

    /// Reads and answers; gives the question back where the content is not here.
    fn answer(&self, read: Read) -> Option<(Read, String)> {
        match self.tree.read_content(&read.path, read.hash, read.offset, read.bytes_max) {
            Ok(bytes) => {
                let (request, offset) = (read.request, read.offset);
                self.say(read.peer, |tree| Input::Content { tree, request, offset, bytes, last: false });
                None
            }
            Err(error) => Some((read, format!("the peer does not have this content now: {error}"))),
        }
    }

    fn refuse(&self, read: &Read, reason: String) {
        let request = read.request;
        self.say(read.peer, |tree| Input::Gone { tree, request, reason });
    }

    /// Whether a content is on its way here, or can be had from somebody else.
    fn may_come(&mut self, read: &Read) -> Result<bool, TreeError> {
        if self.is_asked_for(read.peer, read.hash) {
            // Whoever asks is who this node waits for.
            return Ok(false);
        }
        if self.tree.awaits(&read.path, read.hash)? {
            return Ok(true);
        }
        let Some(size) = self.size_of(&read.path, read.hash)? else { return Ok(false) };
        if !self.may_ask_others(read.peer) {
            return Ok(false);
        }
        if let Some(want) = self.tree.fetch(&read.path, read.hash, size)? {
            self.ask(want, vec![read.peer])?;
        }
        self.tree.awaits(&read.path, read.hash)
    }

    /// The length of a content, if the entry names it.
    fn size_of(&self, path: &TreePath, hash: Hash) -> Result<Option<u64>, TreeError> {
        let Some(entry) = self.tree.entry(path)? else { return Ok(None) };
        let siblings = entry.content.values().filter_map(|s| s.content.value());
        let losers = entry.losers.values().flatten().map(|l| &l.value);
        Ok(siblings.chain(losers).find_map(|value| match value {
            Value::File { size, hash: of } if *of == hash => Some(*size),
            _ => None,
        }))
    }
}
