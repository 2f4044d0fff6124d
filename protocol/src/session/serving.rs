//! The contents that the peer wants from us.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::asking::REQUESTS_MAX;
use super::left::Left;
use super::{Output, Session, SessionError, What};
use crate::entry::Hash;
use crate::path::TreePath;
use crate::wire::{Bytes, CONTENT_BYTES_MAX, Message, REASON_BYTES_MAX};

/// Requests that are read in turn; the others wait.
const ACTIVE_MAX: usize = 64;

#[derive(Debug)]
struct Served {
    tree: usize,
    path: TreePath,
    hash: Hash,
    /// The parts of the manifest that the peer has, where it wants that.
    known: Option<Arc<[[u8; 8]]>>,
    left: Left,
    /// A read is under way, for so many bytes that are reserved of the credit.
    reading: Option<u64>,
    /// Dropped by the peer; kept until the read is answered.
    dropped: bool,
}

/// What the peer asked for.
#[derive(Debug, Default)]
pub(super) struct Serving {
    /// At most [`REQUESTS_MAX`] that the peer still wants, and [`ACTIVE_MAX`] dropped ones.
    requests: BTreeMap<u64, Served>,
    /// The peer's next request has this number, or a higher one.
    next: u64,
    /// Numbers of requests whose turn has not come; each in `requests`.
    waiting: VecDeque<u64>,
    /// Numbers of requests in turn; each in `requests`, at most [`ACTIVE_MAX`].
    turn: VecDeque<u64>,
    /// Bytes that may be read and sent.
    credit: u64,
    /// Bytes that were sent and not credited again.
    owed: u64,
}

impl Serving {
    pub(super) const fn grant(&mut self, bytes: u64) {
        self.credit = bytes;
    }

    /// Bytes that are under way to the peer, as far as this side knows.
    pub(super) const fn owed(&self) -> u64 {
        self.owed
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty() && self.waiting.is_empty() && self.turn.is_empty()
    }

    fn remove(&mut self, number: u64) {
        self.requests.remove(&number);
        self.waiting.retain(|n| *n != number);
        self.turn.retain(|n| *n != number);
    }
}

impl Session {
    pub(super) fn handle_request(
        &mut self,
        tree: u16,
        request: u64,
        path: TreePath,
        (hash, size, what): (Hash, u64, What),
    ) -> Result<(), SessionError> {
        let (tree, _) = self.stream(tree)?;
        let serving = &mut self.serving;
        let wanted = serving.requests.values().filter(|served| !served.dropped).count();
        if request < serving.next || wanted >= REQUESTS_MAX {
            return Err(SessionError::Protocol("a request twice, or too many at once"));
        }
        let left = Left::new(&what, size).ok_or(SessionError::Protocol("a request for what there cannot be"))?;
        let known = match what {
            What::Manifest(known) => Some(known.into()),
            What::From(_) | What::Ranges(_) => None,
        };
        serving.next = request.saturating_add(1);
        let served = Served { tree, path, hash, known, left, reading: None, dropped: false };
        serving.requests.insert(request, served);
        serving.waiting.push_back(request);
        self.serve();
        Ok(())
    }

    pub(super) fn handle_drop(&mut self, request: u64) -> Result<(), SessionError> {
        if request >= self.serving.next {
            return Err(SessionError::Protocol("a request is dropped that was never made"));
        }
        match self.serving.requests.get_mut(&request) {
            Some(served) if served.reading.is_some() => served.dropped = true,
            _ => self.serving.remove(request),
        }
        self.serve();
        Ok(())
    }

    pub(super) fn handle_credit(&mut self, bytes: u64) -> Result<(), SessionError> {
        let serving = &mut self.serving;
        serving.owed =
            serving.owed.checked_sub(bytes).ok_or(SessionError::Protocol("a credit for what was never sent"))?;
        serving.credit = serving.credit.saturating_add(bytes);
        self.serve();
        Ok(())
    }

    /// Reads the next pieces for the peer, in turn, within its credit.
    fn serve(&mut self) {
        let serving = &mut self.serving;
        while serving.turn.len() < ACTIVE_MAX {
            let Some(number) = serving.waiting.pop_front() else { break };
            serving.turn.push_back(number);
        }
        for _ in 0..serving.turn.len() {
            let Some(request) = serving.turn.pop_front() else { return };
            let Some(served) = serving.requests.get_mut(&request) else { continue };
            if served.reading.is_some() {
                serving.turn.push_back(request);
                continue;
            }
            let (offset, left) = served.left.next();
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(CONTENT_BYTES_MAX);
            let Some(rest) = serving.credit.checked_sub(piece as u64) else {
                serving.turn.push_front(request);
                return;
            };
            serving.credit = rest;
            served.reading = Some(piece as u64);
            serving.turn.push_back(request);
            let (tree, path, hash, bytes_max) = (served.tree, served.path.clone(), served.hash, piece);
            self.outputs.push_back(match served.known.clone() {
                None => Output::ReadContent { tree, request, path, hash, offset, bytes_max },
                Some(known) => Output::ReadManifest { tree, request, path, hash, known, offset, bytes_max },
            });
        }
    }

    /// Ends the read of a request and gives its reserve back; none where the peer no longer wants it.
    fn finish_read(&mut self, request: u64) -> Option<u64> {
        let serving = &mut self.serving;
        let served = serving.requests.get_mut(&request)?;
        let reserved = served.reading.take()?;
        serving.credit = serving.credit.saturating_add(reserved);
        if served.dropped {
            serving.remove(request);
            self.serve();
            return None;
        }
        Some(reserved)
    }

    pub(super) fn send_content(&mut self, request: u64, offset: u64, bytes: Vec<u8>, last: bool) {
        let Some(reserved) = self.finish_read(request) else { return };
        let Some(served) = self.serving.requests.get_mut(&request) else { return };
        let length = bytes.len() as u64;
        let whole = served.left.ends(length, last);
        if length > reserved || (last && !whole) || !served.left.take(offset, length, whole) {
            return self.refuse(request, "the content is not as long as its entry says");
        }
        self.serving.credit = self.serving.credit.saturating_sub(length);
        self.serving.owed = self.serving.owed.saturating_add(length);
        if whole {
            self.serving.remove(request);
        }
        self.transmit(&Message::Content { request, offset, bytes: Bytes(bytes), last: whole });
        self.serve();
    }

    pub(super) fn send_gone(&mut self, request: u64, reason: &str) {
        if self.finish_read(request).is_some() {
            self.refuse(request, reason);
        }
    }

    fn refuse(&mut self, request: u64, reason: &str) {
        self.serving.remove(request);
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        let reason = reason.get(..end).unwrap_or_default().to_owned();
        self.transmit(&Message::Missing { request, reason });
        self.serve();
    }
}
