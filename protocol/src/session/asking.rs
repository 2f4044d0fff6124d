//! The contents that we want from the peer.

use std::collections::BTreeMap;

use super::left::Left;
use super::{CONTENT_WINDOW, Output, Session, SessionError, What};
use crate::entry::Hash;
use crate::path::TreePath;
use crate::wire::hello::CREDIT_BYTES;
use crate::wire::{CONTENT_BYTES_MAX, Message, REASON_BYTES_MAX};

/// Requests of one side under way at once.
pub(super) const REQUESTS_MAX: usize = 256;
/// Wants that wait behind them; one more is answered as missing.
const WAITING_MAX: usize = 4096;

#[derive(Debug)]
struct Want {
    tree: usize,
    want: u64,
    path: TreePath,
    hash: Hash,
    size: u64,
    what: What,
    left: Left,
}

/// What we asked for and will ask for.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// By the number of the request, which rises: those below `unsent` are under way. At most
    /// [`REQUESTS_MAX`] and [`WAITING_MAX`] together.
    wants: BTreeMap<u64, Want>,
    /// The numbers of the same, by the caller's.
    numbers: BTreeMap<(usize, u64), u64>,
    /// The number that the next want gets.
    next: u64,
    /// Requests below this were sent.
    unsent: u64,
    under_way: usize,
    /// Bytes that our consumer holds.
    held: u64,
    /// Bytes to be credited to the peer.
    returning: u64,
}

impl Session {
    pub(super) fn want(&mut self, tree: usize, want: u64, path: TreePath, (hash, size, what): (Hash, u64, What)) {
        if self.asking.numbers.contains_key(&(tree, want)) {
            return;
        }
        let waiting = self.asking.wants.len().saturating_sub(self.asking.under_way);
        let refused = if self.theirs(tree).is_none() {
            Some("the peer does not have this tree")
        } else if self.asking.under_way >= REQUESTS_MAX && waiting >= WAITING_MAX {
            Some("too many requests")
        } else {
            None
        };
        let left = Left::new(&what, size).ok_or("a request that no node answers");
        let left = match refused.map_or(left, Err) {
            Ok(left) => left,
            Err(reason) => {
                return self.outputs.push_back(Output::Missing { tree, want, reason: reason.to_owned() });
            }
        };
        let number = self.asking.next;
        self.asking.next = number.saturating_add(1);
        self.asking.numbers.insert((tree, want), number);
        self.asking.wants.insert(number, Want { tree, want, path, hash, size, what, left });
        self.ask();
    }

    /// Sends requests as long as there is room for them.
    fn ask(&mut self) {
        while self.asking.under_way < REQUESTS_MAX {
            let Some((&request, want)) = self.asking.wants.range(self.asking.unsent..).next() else { return };
            self.asking.unsent = request.saturating_add(1);
            let Some(tree) = self.streams.get(want.tree).and_then(|s| s.theirs) else { continue };
            self.asking.under_way = self.asking.under_way.saturating_add(1);
            let (path, hash, size) = (want.path.clone(), want.hash.0, want.size);
            let message = match want.what.clone() {
                What::From(0) => Message::Request { tree, request, path, hash, size },
                What::From(offset) => Message::RequestFrom { tree, request, path, hash, size, offset },
                What::Ranges(ranges) => Message::RequestRanges { tree, request, path, hash, size, ranges },
                What::Manifest(known) => Message::RequestManifest { tree, request, path, hash, size, known },
            };
            self.transmit(&message);
        }
    }

    pub(super) fn drop_want(&mut self, tree: usize, want: u64) {
        let Some(number) = self.asking.numbers.get(&(tree, want)).copied() else { return };
        if self.forget(number) {
            self.transmit(&Message::Drop { request: number });
        }
        self.ask();
    }

    /// Ends a want; says whether it was under way.
    fn forget(&mut self, number: u64) -> bool {
        let Some(want) = self.asking.wants.remove(&number) else { return false };
        self.asking.numbers.remove(&(want.tree, want.want));
        let sent = number < self.asking.unsent;
        if sent {
            self.asking.under_way = self.asking.under_way.saturating_sub(1);
        }
        sent
    }

    pub(super) fn handle_content(
        &mut self,
        request: u64,
        offset: u64,
        bytes: Vec<u8>,
        last: bool,
    ) -> Result<(), SessionError> {
        let length = bytes.len() as u64;
        let open = self.asking.held.saturating_add(self.asking.returning).saturating_add(length);
        if request >= self.asking.unsent {
            return Err(SessionError::Protocol("a content that nobody asked for"));
        }
        if bytes.len() > CONTENT_BYTES_MAX || open > CONTENT_WINDOW {
            return Err(SessionError::Protocol("more content than was granted"));
        }
        let Some(want) = self.asking.wants.get_mut(&request) else {
            // Dropped while it was under way.
            self.return_credit(length);
            return Ok(());
        };
        if last != want.left.ends(length, last) {
            return Err(SessionError::Protocol("a content that ends elsewhere than was said"));
        }
        if !want.left.take(offset, length, last) {
            return Err(SessionError::Protocol("a piece of content that does not fit"));
        }
        let (tree, number) = (want.tree, want.want);
        self.asking.held = self.asking.held.saturating_add(length);
        self.outputs.push_back(Output::Received { tree, want: number, offset, bytes, last });
        if last {
            self.forget(request);
            self.ask();
        }
        Ok(())
    }

    pub(super) fn handle_missing(&mut self, request: u64, reason: String) -> Result<(), SessionError> {
        if request >= self.asking.unsent || reason.len() > REASON_BYTES_MAX {
            return Err(SessionError::Protocol("an answer that nobody asked for, or a long one"));
        }
        if let Some(want) = self.asking.wants.get(&request) {
            let (tree, want) = (want.tree, want.want);
            self.outputs.push_back(Output::Missing { tree, want, reason });
            self.forget(request);
            self.ask();
        }
        Ok(())
    }

    pub(super) fn take_consumed(&mut self, bytes: u64) {
        let bytes = bytes.min(self.asking.held);
        self.asking.held = self.asking.held.saturating_sub(bytes);
        self.return_credit(bytes);
    }

    fn return_credit(&mut self, bytes: u64) {
        self.asking.returning = self.asking.returning.saturating_add(bytes);
        if self.asking.returning >= CREDIT_BYTES {
            let bytes = std::mem::take(&mut self.asking.returning);
            self.transmit(&Message::Credit { bytes });
        }
    }
}
