//! The journals of both sides: batches out and in, and the two acks.

use std::collections::{BTreeMap, VecDeque};

use super::alike::Digests;
use super::{Announcement, BATCHES_MAX, Output, Session, SessionError, TreeOffer};
use crate::alike::Alike;
use crate::entry::{Content, Entry, Value};
use crate::version::Actor;
use crate::wire::packed;
use crate::wire::{
    ActorRow, BATCH_BYTES, Bytes, Cursor, FRAME_BYTES_MAX, INLINE_BYTES_MAX, IndexRow, Message, TreeHello, is_name,
};

/// One tree of the session.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) offer: TreeOffer,
    /// The tree's number in the peer's hello; none while unknown or absent there.
    pub(super) theirs: Option<u16>,
    /// How far our journal reaches now; the offer's head is what our hello said.
    head: u64,
    /// Our journal was sent up to here.
    sent: u64,
    /// A read of our journal is under way.
    reading: bool,
    /// How much a read asks for: less than a batch after one that did not fit a frame.
    read_bytes: usize,
    /// The ends of batches that the peer has not merged; as many as it grants.
    unmerged_there: VecDeque<u64>,
    peer_merged: u64,
    peer_applied: u64,
    /// The peer's journal was received up to here.
    received: u64,
    /// The ends of batches that our index has not merged; at most [`BATCHES_MAX`].
    unmerged_here: VecDeque<u64>,
    /// What our acks say, and what they are to say.
    merged: (u64, u64),
    applied: ((u64, u32), (u64, u32)),
    pub(super) digests: Digests,
}

impl Stream {
    pub(super) fn new(offer: TreeOffer) -> Self {
        Self {
            head: offer.head,
            offer,
            theirs: None,
            sent: 0,
            reading: false,
            read_bytes: BATCH_BYTES,
            unmerged_there: VecDeque::new(),
            peer_merged: 0,
            peer_applied: 0,
            received: 0,
            unmerged_here: VecDeque::new(),
            merged: (0, 0),
            applied: ((0, 0), (0, 0)),
            digests: Digests::default(),
        }
    }

    /// Batches that our index has not merged.
    pub(super) fn unmerged_here(&self) -> usize {
        self.unmerged_here.len()
    }

    /// Whether the peer's cursor names our journal and a position that it has not reached.
    pub(super) fn is_beyond(&self, theirs: &TreeHello) -> bool {
        theirs.cursor.is_some_and(|c| c.incarnation == self.offer.incarnation && c.seq > self.offer.head)
    }

    /// Takes what both hellos say of the tree; both sides come to the same two positions.
    pub(super) fn open(&mut self, theirs: &TreeHello, number: u16, version: u16) -> u64 {
        self.theirs = Some(number);
        let valid = |cursor: Option<Cursor>, incarnation, head| match cursor {
            Some(cursor) if cursor.incarnation == incarnation && cursor.seq <= head => cursor.seq,
            _ => 0,
        };
        // The head of our hello, not a later one: the peer judges by that.
        self.sent = valid(theirs.cursor, self.offer.incarnation, self.offer.head);
        self.peer_merged = self.sent;
        self.received = valid(self.offer.cursor, theirs.incarnation, theirs.head);
        self.merged = (self.received, self.received);
        // Whoever is to hear all from the beginning says first what it has.
        self.digests = Digests::new(version >= 6 && self.received == 0, version >= 6 && self.sent == 0);
        self.sent
    }
}

impl Session {
    pub(super) fn raise_head(&mut self, tree: usize, seq: u64) {
        if let Some(stream) = self.streams.get_mut(tree) {
            stream.head = stream.head.max(seq);
        }
        self.read_on(tree);
    }

    /// Reads the next rows for the peer, as long as it keeps up.
    pub(super) fn read_on(&mut self, tree: usize) {
        let Some(stream) = self.streams.get_mut(tree) else { return };
        let granted = stream.unmerged_there.len() < usize::from(self.batches_max);
        let behind = stream.head > stream.sent;
        if stream.theirs.is_some() && behind && granted && !stream.reading && !stream.digests.are_awaited() {
            stream.reading = true;
            self.outputs.push_back(Output::ReadRows { tree, after: stream.sent, bytes_max: stream.read_bytes });
        }
    }

    pub(super) fn send_rows(
        &mut self,
        tree: usize,
        (mut rows, alike): (Vec<Announcement>, Vec<Alike>),
        names: Vec<(Actor, String)>,
        upto: u64,
    ) {
        let Some(stream) = self.streams.get_mut(tree) else { return };
        let Some(number) = stream.theirs.filter(|_| stream.reading) else { return };
        stream.reading = false;
        // Rows that reach no further would be asked for again at once: the next head asks.
        let progress = upto > stream.sent;
        if progress {
            let names: BTreeMap<Actor, String> = names.into_iter().filter(|(_, name)| is_name(name)).collect();
            // Not with the rows: where those do not fit they are read again, and these are not given again.
            self.send_alike(number, &alike, &names);
            let Some(stream) = self.streams.get_mut(tree) else { return };
            let mut message = index_message(number, &rows, &names, upto);
            if !fits(&message) && rows.len() > 1 && stream.read_bytes > 1 {
                // Entries of many siblings: read again, less at a time. No position within a batch is known.
                stream.read_bytes = stream.read_bytes.checked_div(8).unwrap_or(1).max(1);
                self.say(tree);
                return self.read_on(tree);
            }
            while !fits(&message) {
                let Some(row) = rows.last_mut() else { break };
                if row.content.take().is_none()
                    && let Some(row) = rows.pop()
                {
                    self.outputs.push_back(Output::TooLarge { tree, path: row.path });
                }
                message = index_message(number, &rows, &names, upto);
            }
            stream.read_bytes = BATCH_BYTES;
            stream.sent = upto;
            stream.unmerged_there.push_back(upto);
            self.transmit(&message);
        }
        self.say(tree);
        if progress {
            self.read_on(tree);
        }
    }

    /// Notes that our index holds the peer's journal up to here.
    pub(super) fn say_merged(&mut self, tree: usize, upto: u64) {
        let Some(stream) = self.streams.get_mut(tree) else { return };
        let upto = upto.min(stream.received);
        while stream.unmerged_here.front().is_some_and(|end| *end <= upto) {
            stream.unmerged_here.pop_front();
        }
        stream.merged.1 = stream.merged.1.max(upto);
        self.say(tree);
    }

    /// Notes that our disk shows the peer's journal up to here.
    pub(super) fn say_applied(&mut self, tree: usize, upto: u64, stuck: u32) {
        let Some(stream) = self.streams.get_mut(tree) else { return };
        let upto = upto.min(stream.received);
        if upto >= stream.applied.1.0 {
            stream.applied.1 = (upto, stuck);
        }
        self.say(tree);
    }

    /// Says what acks are due. While rows are being read they wait: those may have been read
    /// before the merge, and an ack stands behind them. Source: DESIGN.md §2, tombstones.
    fn say(&mut self, tree: usize) {
        let Some(stream) = self.streams.get_mut(tree).filter(|stream| !stream.reading) else { return };
        let Some(number) = stream.theirs else { return };
        let (merged, applied) = (stream.merged, stream.applied);
        stream.merged.0 = merged.1;
        stream.applied.0 = applied.1;
        if merged.0 != merged.1 {
            self.transmit(&Message::Merged { tree: number, upto: merged.1 });
        }
        if applied.0 != applied.1 {
            self.transmit(&Message::Applied { tree: number, upto: applied.1.0, stuck: applied.1.1 });
        }
    }

    pub(super) fn handle_index(
        &mut self,
        tree: u16,
        actors: &[ActorRow],
        rows: Vec<IndexRow>,
        upto: u64,
    ) -> Result<(), SessionError> {
        let (tree, stream) = self.stream(tree)?;
        if upto <= stream.received {
            return Err(SessionError::Protocol("a journal that goes backwards"));
        }
        if stream.unmerged_here.len() >= usize::from(BATCHES_MAX) {
            return Err(SessionError::Protocol("more index batches than were granted"));
        }
        let actor = |number| usize::try_from(number).ok().and_then(|n| actors.get(n)).map(|row| row.actor);
        let rows = rows
            .into_iter()
            .map(|row| {
                let entry = packed::unpack(row.entry, &actor)?;
                let content = row.content.map(|bytes| bytes.0);
                if content.as_ref().is_some_and(|bytes| !is_inline(&entry, bytes)) {
                    return Err(SessionError::Protocol("a content that its entry does not name"));
                }
                Ok(Announcement { path: row.path, entry, content })
            })
            .collect::<Result<Vec<_>, SessionError>>()?;
        let names = names_of(actors)?;
        stream.received = upto;
        stream.digests.begin_batch();
        stream.unmerged_here.push_back(upto);
        self.outputs.push_back(Output::Merge { tree, rows, names, upto });
        Ok(())
    }

    pub(super) fn handle_merged(&mut self, tree: u16, upto: u64) -> Result<(), SessionError> {
        let (tree, stream) = self.stream(tree)?;
        if upto > stream.sent || upto <= stream.peer_merged {
            return Err(SessionError::Protocol("an ack of what was never sent, or that goes backwards"));
        }
        stream.peer_merged = upto;
        while stream.unmerged_there.front().is_some_and(|end| *end <= upto) {
            stream.unmerged_there.pop_front();
        }
        self.outputs.push_back(Output::PeerMerged { tree, seq: upto });
        self.read_on(tree);
        Ok(())
    }

    pub(super) fn handle_applied(&mut self, tree: u16, upto: u64, stuck: u32) -> Result<(), SessionError> {
        let (tree, stream) = self.stream(tree)?;
        if upto > stream.sent || upto < stream.peer_applied {
            return Err(SessionError::Protocol("an ack of what was never sent, or that goes backwards"));
        }
        stream.peer_applied = upto;
        self.outputs.push_back(Output::PeerApplied { tree, seq: upto, stuck });
        Ok(())
    }
}

fn index_message(tree: u16, rows: &[Announcement], names: &BTreeMap<Actor, String>, upto: u64) -> Message {
    let mut actors = Actors::new(names);
    let rows = rows
        .iter()
        .map(|row| {
            let entry = packed::pack(&row.entry, &mut |actor| actors.number(actor));
            let content = row.content.as_ref().filter(|bytes| is_inline(&row.entry, bytes));
            IndexRow { path: row.path.clone(), entry, content: content.cloned().map(Bytes) }
        })
        .collect();
    let actors = actors.rows;
    Message::Index { tree, actors, rows, upto }
}

/// The actors that a message names, and their numbers in it.
pub(super) struct Actors<'n> {
    pub(super) rows: Vec<ActorRow>,
    numbers: BTreeMap<Actor, u32>,
    names: &'n BTreeMap<Actor, String>,
}

impl<'n> Actors<'n> {
    pub(super) const fn new(names: &'n BTreeMap<Actor, String>) -> Self {
        Self { rows: Vec::new(), numbers: BTreeMap::new(), names }
    }

    pub(super) fn number(&mut self, actor: Actor) -> u32 {
        let Self { rows, numbers, names } = self;
        *numbers.entry(actor).or_insert_with(|| {
            let number = u32::try_from(rows.len()).unwrap_or(u32::MAX);
            rows.push(ActorRow { actor, name: names.get(&actor).cloned().unwrap_or_default() });
            number
        })
    }
}

/// The names that a message gives its actors; none of them may be one that cannot be shown.
pub(super) fn names_of(actors: &[ActorRow]) -> Result<Vec<(Actor, String)>, SessionError> {
    let named = actors.iter().filter(|row| !row.name.is_empty());
    let shown = |row: &ActorRow| is_name(&row.name).then(|| (row.actor, row.name.clone()));
    named.map(shown).collect::<Option<_>>().ok_or(SessionError::Protocol("a name that cannot be shown"))
}

pub(super) fn fits(message: &Message) -> bool {
    crate::codec::encode(message).len() <= FRAME_BYTES_MAX
}

/// Whether bytes may travel with an entry: small, and as long as a file among its siblings.
fn is_inline(entry: &Entry, bytes: &[u8]) -> bool {
    let length = bytes.len() as u64;
    let named = |content: &Content| matches!(content, Content::Present(Value::File { size, .. }) if *size == length);
    bytes.len() <= INLINE_BYTES_MAX && entry.content.values().any(|sibling| named(&sibling.content))
}
