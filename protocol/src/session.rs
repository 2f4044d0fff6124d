//! One conversation with one peer: a state machine over two ordered streams of frames.
//!
//! Facts come in ([`Session::handle_frame`], [`Session::handle_local`]), outputs are drained
//! ([`Session::poll_output`]) until there is none. No order is assumed between the links. Nothing
//! here reads a clock, a disk or a socket.

use std::collections::{BTreeMap, VecDeque};

use crate::codec::{self, DecodeError};
use crate::entry::{Entry, Hash};
use crate::path::TreePath;
use crate::version::Actor;
use crate::wire::packed::{self, EntryError};
use crate::wire::{
    self, ActorRow, CONTENT_BYTES_MAX, Hello, Incarnation, IndexRow, MAGIC, Message, TreeHello, WIRE_VERSION,
};

/// Index batches under way towards a peer that has not acknowledged them.
const BATCHES_MAX: usize = 32;
/// Content bytes under way towards a consumer that has not taken them.
pub const CONTENT_WINDOW: u64 = 4 * 1024 * 1024;
/// Credit is returned in portions of at least this.
const CREDIT_BYTES: u64 = 256 * 1024;
/// Requests of a peer that wait or are served; one that asks for more ends the session.
const SERVED_MAX: usize = 4_096;

/// The two streams of a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Link {
    /// Index, acks, requests, pings.
    Control,
    /// Content.
    Bulk,
}

/// A tree that this node offers to the peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TreeOffer {
    /// Its name.
    pub name: String,
    /// The incarnation of our journal.
    pub incarnation: Incarnation,
    /// How far we are in the peer's journal.
    pub cursor: Option<(Incarnation, u64)>,
    /// Our durable head.
    pub head: u64,
}

/// A row of somebody's journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announcement {
    /// Where.
    pub path: TreePath,
    /// What is known of it.
    pub entry: Entry,
    /// Its content, where it is small.
    pub content: Option<Vec<u8>>,
}

/// What happened on this node.
#[derive(Debug)]
pub enum Input {
    /// A tree's durable head moved.
    Head(usize, u64),
    /// Rows that were asked for, with the names of their writers, and the position they reach.
    Rows(usize, Vec<Announcement>, Vec<(Actor, String)>, u64),
    /// A batch is durable in our index.
    Merged(usize, u64),
    /// Our disk shows everything of the peer's journal up to here, durably.
    Applied(usize, u64),
    /// We need a content.
    Want(usize, u64, TreePath, Hash),
    /// A piece of content was taken by whoever asked for it.
    Consumed(u64),
    /// A piece of content that was asked for, and whether it is the last.
    Content(usize, u64, u64, Vec<u8>, bool),
    /// A content that was asked for is not here, and why.
    Gone(usize, u64, String),
}

/// What is to be done.
#[derive(Debug, Eq, PartialEq)]
pub enum Output {
    /// Send a frame.
    Transmit(Link, Vec<u8>),
    /// The peer is there and has this tree: its name and its journal's incarnation.
    Opened(usize, String, Incarnation),
    /// The peer does not have this tree, or not for us.
    Absent(usize),
    /// Read our journal behind a position: answered by [`Input::Rows`].
    ReadRows(usize, u64),
    /// Take rows into the index: answered by [`Input::Merged`] with the position.
    Merge(usize, Vec<Announcement>, Vec<(Actor, String)>, u64),
    /// Read content for the peer: tree, its request, path, hash, offset.
    ReadContent(usize, u64, TreePath, Hash, u64),
    /// A piece of content that we wanted: offset, bytes, whether it is the last.
    Received(usize, u64, u64, Vec<u8>, bool),
    /// The peer does not have a content that we wanted, and why.
    Missing(usize, u64, String),
    /// The peer has our journal durably in its index up to here.
    PeerMerged(usize, u64),
    /// The peer's disk shows our journal up to here.
    PeerApplied(usize, u64),
}

/// Says why a session ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The other side is no pleach.
    #[error("the other side does not speak pleach")]
    Magic,
    /// No common version.
    #[error("no common version: the peer speaks {theirs:?}, this node {WIRE_VERSION}")]
    Version {
        /// The peer's lowest and highest.
        theirs: (u16, u16),
    },
    /// The peer broke the rules of the conversation.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// A body is no message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// An entry breaks the rules.
    #[error(transparent)]
    Entry(#[from] EntryError),
}

#[derive(Debug)]
struct Stream {
    offer: TreeOffer,
    /// The tree's number in the peer's hello; none while unknown or absent there.
    theirs: Option<u16>,
    sent: u64,
    reading: bool,
    /// The positions of batches that the peer has not merged.
    unacked: VecDeque<u64>,
    received: u64,
    merged_said: u64,
    applied_said: u64,
}

#[derive(Debug)]
struct Served {
    path: TreePath,
    hash: Hash,
    offset: u64,
    reading: bool,
}

/// One session. See the module.
#[derive(Debug)]
pub struct Session {
    streams: Vec<Stream>,
    greeted: bool,
    outputs: VecDeque<Output>,
    served: BTreeMap<(usize, u64), Served>,
    /// Requests whose next piece may be read, in turn.
    turn: VecDeque<(usize, u64)>,
    bulk_credit: u64,
    reading_bytes: u64,
    consumed: u64,
}

impl Session {
    /// Begins a session: the hello is the first output.
    #[must_use]
    pub fn new(name: &str, start: u64, trees: Vec<TreeOffer>) -> Self {
        let hello = Hello {
            magic: MAGIC,
            version_min: WIRE_VERSION,
            version_max: WIRE_VERSION,
            software: concat!("pleach ", env!("CARGO_PKG_VERSION")).to_owned(),
            name: name.to_owned(),
            start,
            trees: trees
                .iter()
                .map(|t| TreeHello { name: t.name.clone(), incarnation: t.incarnation, cursor: t.cursor })
                .collect(),
        };
        let stream = |offer| Stream {
            offer,
            theirs: None,
            sent: 0,
            reading: false,
            unacked: VecDeque::new(),
            received: 0,
            merged_said: 0,
            applied_said: 0,
        };
        Self {
            streams: trees.into_iter().map(stream).collect(),
            greeted: false,
            outputs: VecDeque::from([Output::Transmit(Link::Control, wire::frame(&hello))]),
            served: BTreeMap::new(),
            turn: VecDeque::new(),
            bulk_credit: CONTENT_WINDOW,
            reading_bytes: 0,
            consumed: 0,
        }
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Takes a frame's body in.
    ///
    /// # Errors
    /// [`SessionError`]: the session must end.
    pub fn handle_frame(&mut self, link: Link, body: &[u8]) -> Result<(), SessionError> {
        if !self.greeted {
            if link == Link::Bulk {
                return Err(SessionError::Protocol("content before the hello"));
            }
            return self.handle_hello(codec::decode(body)?);
        }
        let message: Message = codec::decode(body)?;
        let on_bulk = matches!(message, Message::Content { .. } | Message::Missing { .. });
        if on_bulk != (link == Link::Bulk) {
            return Err(SessionError::Protocol("a message on the wrong link"));
        }
        self.handle_message(message)
    }

    fn handle_hello(&mut self, hello: Hello) -> Result<(), SessionError> {
        if hello.magic != MAGIC {
            return Err(SessionError::Magic);
        }
        if hello.version_min > WIRE_VERSION || hello.version_max < WIRE_VERSION {
            return Err(SessionError::Version { theirs: (hello.version_min, hello.version_max) });
        }
        self.greeted = true;
        for (ours, stream) in self.streams.iter_mut().enumerate() {
            let found = hello.trees.iter().enumerate().find(|(_, t)| t.name == stream.offer.name);
            let Some((theirs, tree)) = found else {
                self.outputs.push_back(Output::Absent(ours));
                continue;
            };
            stream.theirs = u16::try_from(theirs).ok();
            if let Some((incarnation, position)) = tree.cursor
                && incarnation == stream.offer.incarnation
                && position <= stream.offer.head
            {
                stream.sent = position;
            }
            if let Some((incarnation, position)) = stream.offer.cursor
                && incarnation == tree.incarnation
            {
                stream.received = position;
                stream.merged_said = position;
            }
            self.outputs.push_back(Output::Opened(ours, hello.name.clone(), tree.incarnation));
        }
        for tree in 0..self.streams.len() {
            self.read_on(tree);
        }
        Ok(())
    }

    fn stream(&mut self, tree: u16) -> Result<(usize, &mut Stream), SessionError> {
        let at = usize::from(tree);
        match self.streams.get_mut(at) {
            Some(stream) if stream.theirs.is_some() => Ok((at, stream)),
            _ => Err(SessionError::Protocol("an unknown tree")),
        }
    }

    fn handle_message(&mut self, message: Message) -> Result<(), SessionError> {
        match message {
            Message::Index { tree, actors, rows, upto } => self.handle_index(tree, &actors, rows, upto)?,
            Message::Merged { tree, upto } => {
                let (tree, stream) = self.stream(tree)?;
                if upto > stream.sent {
                    return Err(SessionError::Protocol("an ack of what was never sent"));
                }
                while stream.unacked.front().is_some_and(|at| *at <= upto) {
                    stream.unacked.pop_front();
                }
                self.outputs.push_back(Output::PeerMerged(tree, upto));
                self.read_on(tree);
            }
            Message::Applied { tree, upto } => {
                let (tree, stream) = self.stream(tree)?;
                if upto > stream.sent {
                    return Err(SessionError::Protocol("an ack of what was never sent"));
                }
                self.outputs.push_back(Output::PeerApplied(tree, upto));
            }
            Message::Want { tree, want, path, hash } => {
                let (tree, _) = self.stream(tree)?;
                if self.served.len() >= SERVED_MAX {
                    return Err(SessionError::Protocol("too many requests at once"));
                }
                let served = Served { path, hash: Hash(hash), offset: 0, reading: false };
                if self.served.insert((tree, want), served).is_none() {
                    self.turn.push_back((tree, want));
                }
                self.serve();
            }
            Message::Drop { tree, want } => {
                let (tree, _) = self.stream(tree)?;
                self.served.remove(&(tree, want));
            }
            Message::Credit { bytes } => {
                self.bulk_credit = self.bulk_credit.saturating_add(bytes).min(CONTENT_WINDOW);
                self.serve();
            }
            Message::Content { tree, want, offset, bytes, last } => {
                let (tree, _) = self.stream(tree)?;
                if bytes.len() > CONTENT_BYTES_MAX {
                    return Err(SessionError::Protocol("a piece of content that is too long"));
                }
                self.outputs.push_back(Output::Received(tree, want, offset, bytes, last));
            }
            Message::Missing { tree, want, reason } => {
                let (tree, _) = self.stream(tree)?;
                self.outputs.push_back(Output::Missing(tree, want, reason));
            }
            Message::Ping => self.transmit(&Message::Pong),
            Message::Pong => {}
        }
        Ok(())
    }

    fn handle_index(
        &mut self,
        tree: u16,
        actors: &[ActorRow],
        rows: Vec<IndexRow>,
        upto: u64,
    ) -> Result<(), SessionError> {
        let (tree, stream) = self.stream(tree)?;
        if upto < stream.received {
            return Err(SessionError::Protocol("a journal that goes backwards"));
        }
        stream.received = upto;
        let rows = rows
            .into_iter()
            .map(|row| {
                let entry = packed::unpack(row.entry, actors)?;
                Ok(Announcement { path: row.path, entry, content: row.content })
            })
            .collect::<Result<Vec<_>, EntryError>>()?;
        let named = actors.iter().filter(|row| is_name(&row.name));
        let names = named.map(|row| (row.actor, row.name.clone())).collect();
        self.outputs.push_back(Output::Merge(tree, rows, names, upto));
        Ok(())
    }

    /// Takes in what happened on this node.
    pub fn handle_local(&mut self, input: Input) {
        match input {
            Input::Head(tree, seq) => {
                if let Some(stream) = self.streams.get_mut(tree) {
                    stream.offer.head = stream.offer.head.max(seq);
                }
                self.read_on(tree);
            }
            Input::Rows(tree, rows, names, upto) => self.send_rows(tree, &rows, names, upto),
            Input::Merged(tree, upto) => {
                self.say(tree, upto, |stream| &mut stream.merged_said, |tree, upto| Message::Merged { tree, upto });
            }
            Input::Applied(tree, upto) => {
                self.say(tree, upto, |stream| &mut stream.applied_said, |tree, upto| Message::Applied { tree, upto });
            }
            Input::Want(tree, want, path, hash) => {
                if let Some(tree) = self.theirs(tree) {
                    self.transmit(&Message::Want { tree, want, path, hash: hash.0 });
                }
            }
            Input::Consumed(bytes) => {
                self.consumed = self.consumed.saturating_add(bytes);
                if self.consumed >= CREDIT_BYTES {
                    let bytes = std::mem::take(&mut self.consumed);
                    self.transmit(&Message::Credit { bytes });
                }
            }
            Input::Content(tree, request, offset, bytes, last) => {
                self.send_content((tree, request), offset, bytes, last);
            }
            Input::Gone(tree, want, reason) => {
                self.reading_bytes = self.reading_bytes.saturating_sub(CONTENT_BYTES_MAX as u64);
                self.served.remove(&(tree, want));
                if let Some(tree) = self.theirs(tree) {
                    self.outputs
                        .push_back(Output::Transmit(Link::Bulk, wire::frame(&Message::Missing { tree, want, reason })));
                }
                self.serve();
            }
        }
    }

    fn theirs(&self, tree: usize) -> Option<u16> {
        self.streams.get(tree).and_then(|stream| stream.theirs)
    }

    fn transmit(&mut self, message: &Message) {
        self.outputs.push_back(Output::Transmit(Link::Control, wire::frame(message)));
    }

    /// Says how far we are in the peer's journal, where that moved.
    fn say(
        &mut self,
        tree: usize,
        upto: u64,
        said: impl Fn(&mut Stream) -> &mut u64,
        message: impl Fn(u16, u64) -> Message,
    ) {
        let Some(stream) = self.streams.get_mut(tree) else { return };
        let Some(theirs) = stream.theirs else { return };
        let said = said(stream);
        if upto > *said {
            *said = upto;
            self.transmit(&message(theirs, upto));
        }
    }

    /// Reads the next rows for the peer, as long as it keeps up.
    fn read_on(&mut self, tree: usize) {
        let Some(stream) = self.streams.get_mut(tree) else { return };
        let behind = stream.offer.head > stream.sent && stream.unacked.len() < BATCHES_MAX;
        if stream.theirs.is_some() && behind && !stream.reading {
            stream.reading = true;
            self.outputs.push_back(Output::ReadRows(tree, stream.sent));
        }
    }

    fn send_rows(&mut self, tree: usize, rows: &[Announcement], names: Vec<(Actor, String)>, upto: u64) {
        let Some(stream) = self.streams.get_mut(tree) else { return };
        stream.reading = false;
        let Some(theirs) = stream.theirs else { return };
        if upto <= stream.sent {
            return;
        }
        stream.sent = upto;
        stream.unacked.push_back(upto);
        let names: BTreeMap<Actor, String> = names.into_iter().collect();
        let mut actors: Vec<ActorRow> = Vec::new();
        let mut numbers: BTreeMap<Actor, u32> = BTreeMap::new();
        let rows = rows
            .iter()
            .map(|row| {
                let entry = packed::pack(&row.entry, &mut |actor| {
                    *numbers.entry(actor).or_insert_with(|| {
                        actors.push(ActorRow { actor, name: names.get(&actor).cloned().unwrap_or_default() });
                        u32::try_from(actors.len().saturating_sub(1)).unwrap_or(u32::MAX)
                    })
                });
                IndexRow { path: row.path.clone(), entry, content: row.content.clone() }
            })
            .collect();
        self.transmit(&Message::Index { tree: theirs, actors, rows, upto });
        self.read_on(tree);
    }

    /// Reads the next pieces for the peer, in turn, within its credit.
    fn serve(&mut self) {
        let piece = CONTENT_BYTES_MAX as u64;
        let mut left = self.turn.len();
        while left > 0 && self.bulk_credit >= self.reading_bytes.saturating_add(piece) {
            left = left.saturating_sub(1);
            let Some(key) = self.turn.pop_front() else { return };
            let Some(served) = self.served.get_mut(&key) else { continue };
            self.turn.push_back(key);
            if served.reading {
                continue;
            }
            served.reading = true;
            self.reading_bytes = self.reading_bytes.saturating_add(piece);
            let (path, hash, offset) = (served.path.clone(), served.hash, served.offset);
            self.outputs.push_back(Output::ReadContent(key.0, key.1, path, hash, offset));
        }
    }

    fn send_content(&mut self, key: (usize, u64), offset: u64, bytes: Vec<u8>, last: bool) {
        self.reading_bytes = self.reading_bytes.saturating_sub(CONTENT_BYTES_MAX as u64);
        let length = bytes.len() as u64;
        if let Some(served) = self.served.get_mut(&key) {
            served.reading = false;
            served.offset = offset.saturating_add(length);
            if last {
                self.served.remove(&key);
            }
            if let Some(tree) = self.theirs(key.0) {
                self.bulk_credit = self.bulk_credit.saturating_sub(length);
                let message = Message::Content { tree, want: key.1, offset, bytes, last };
                self.outputs.push_back(Output::Transmit(Link::Bulk, wire::frame(&message)));
            }
        }
        self.serve();
    }
}

/// Whether a peer's name for a node may be shown. Source: CONTRACT.md, configuration.
fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}
