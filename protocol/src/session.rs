//! One conversation with one peer: a state machine over two ordered streams of frames.
//!
//! Facts come in (`handle_*`), outputs are drained ([`Session::poll_output`]) until there is none,
//! then the next fact comes in. No order is assumed between the links. Nothing here reads a clock,
//! a disk or a socket. Every queue is bounded; the bound stands where the queue is declared. What is
//! said, and what a peer may not say, is in WIRE.md.
#![deny(clippy::indexing_slicing, clippy::panic, clippy::expect_used, clippy::arithmetic_side_effects)]

use std::collections::VecDeque;

use crate::codec;
use crate::entry::Hash;
use crate::version::NodeId;
use crate::wire::{self, Hello, Message, Standing, TreeHello, WIRE_VERSION, WIRE_VERSION_MIN, hello};

mod alike;
mod asking;
mod facts;
mod index;
mod left;
mod serving;
#[cfg(test)]
mod tests;

pub use crate::wire::LinkRole as Link;
pub use facts::{Announcement, Input, Moment, Output, SessionConfig, SessionError, TreeOffer, What};

use asking::Asking;
use index::Stream;
use serving::Serving;

/// Index batches of one tree under way to us that our index has not merged.
pub const BATCHES_MAX: u16 = 128;
/// Content bytes under way to us that our consumer has not taken.
pub const CONTENT_WINDOW: u64 = 4 * 1024 * 1024;
/// The most windows that are believed of a peer: what it grants bounds what we have under way.
const GRANT_BATCHES_MAX: u16 = 1024;
const GRANT_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// A peer that is not heard for this long is asked.
const PING_AFTER: u64 = 5_000_000_000;
/// One that is not heard for this long is gone.
const DEAD_AFTER: u64 = 20_000_000_000;

/// One session. See the module.
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    now: Moment,
    heard: Moment,
    asked: Moment,
    /// The oldest ping that is not answered.
    unanswered: Option<Moment>,
    round_trip: Option<u64>,
    /// The peer's start bits and name.
    introduced: Option<(u64, String)>,
    /// The highest version that both sides speak.
    version: u16,
    /// The peer's token in its hello on each link.
    greeted: [Option<[u8; 16]>; 2],
    /// As many as the config has trees.
    streams: Vec<Stream>,

    /// What the peer lets be under way to it, of each tree.
    batches_max: u16,
    asking: Asking,
    serving: Serving,
    /// What one input gives rise to; drained before the next.
    outputs: VecDeque<Output>,
}

impl Session {
    /// Begins a session: the hellos of both links are the first outputs.
    ///
    /// # Panics
    /// With more than [`hello::TREES_MAX`] trees, or a node as its own peer.
    #[must_use]
    pub fn new(now: Moment, config: SessionConfig) -> Self {
        assert!(config.trees.len() <= hello::TREES_MAX, "too many trees for one peer");
        assert_ne!(config.node, config.peer, "a node is not its own peer");
        let mut session = Self {
            now,
            heard: now,
            asked: now,
            unanswered: None,
            round_trip: None,
            introduced: None,
            version: WIRE_VERSION_MIN,
            greeted: [None, None],
            streams: config.trees.iter().cloned().map(Stream::new).collect(),
            batches_max: 0,
            asking: Asking::default(),
            serving: Serving::default(),
            outputs: VecDeque::new(),
            config,
        };
        for role in [Link::Control, Link::Bulk] {
            let hello = session.hello(role);
            session.push_frame(role, &hello);
        }
        session
    }

    fn hello(&self, role: Link) -> Hello {
        let trees = self.config.trees.iter().filter(|_| role == Link::Control);
        Hello {
            magic: hello::MAGIC,
            version_min: WIRE_VERSION_MIN,
            version_max: WIRE_VERSION,
            software: concat!("pleach ", env!("CARGO_PKG_VERSION")).to_owned(),
            name: self.config.name.clone(),
            start: self.config.start,
            role,
            token: self.config.token,
            batches: BATCHES_MAX,
            content_window: CONTENT_WINDOW,
            trees: trees
                .map(|t| TreeHello {
                    name: t.name.clone(),
                    incarnation: t.incarnation,
                    start: t.start,
                    cursor: t.cursor,
                    head: t.head,
                    standing: t.standing,
                })
                .collect(),
        }
    }

    /// The node at the other end.
    #[must_use]
    pub const fn peer(&self) -> NodeId {
        self.config.peer
    }

    /// What is to be done next.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Session::handle_timeout`] is to be called, whatever else happens.
    #[must_use]
    pub fn next_timeout(&self) -> Moment {
        self.heard.max(self.asked).after(PING_AFTER).min(self.heard.after(DEAD_AFTER))
    }

    /// Takes a frame's body in.
    ///
    /// # Errors
    /// [`SessionError`]: the session must end.
    ///
    /// # Panics
    /// When time goes back.
    pub fn handle_frame(&mut self, now: Moment, link: Link, body: &[u8]) -> Result<(), SessionError> {
        self.advance(now);
        self.heard = now;
        let [control, bulk] = self.greeted;
        let greeted = if link == Link::Control { control } else { bulk };
        if greeted.is_none() {
            return self.handle_hello(link, Hello::decode(body)?);
        }
        if control.is_none() {
            return Err(SessionError::Protocol("content before the hello"));
        }
        if body.starts_with(&hello::MAGIC) {
            return Err(SessionError::Protocol("a second hello"));
        }
        if body.len() > wire::FRAME_BYTES_MAX {
            return Err(SessionError::Protocol("a frame that is too long"));
        }
        let message: Message = codec::decode(body)?;
        if message.is_bulk() != (link == Link::Bulk) {
            return Err(SessionError::Protocol("a message on the wrong link"));
        }
        self.handle_message(message)
    }

    /// Looks at what is due by time.
    ///
    /// # Errors
    /// [`SessionError::Dead`].
    ///
    /// # Panics
    /// When time goes back.
    pub fn handle_timeout(&mut self, now: Moment) -> Result<(), SessionError> {
        self.advance(now);
        if now >= self.heard.after(DEAD_AFTER) {
            return Err(SessionError::Dead);
        }
        if now >= self.heard.max(self.asked).after(PING_AFTER) {
            self.ping(now);
        }
        Ok(())
    }

    /// Asks whether the peer is there; its answer sets [`Session::round_trip`] and [`Session::heard`].
    ///
    /// # Panics
    /// When time goes back.
    pub fn ping(&mut self, now: Moment) {
        self.advance(now);
        self.asked = now;
        self.unanswered.get_or_insert(now);
        self.transmit(&Message::Ping);
    }

    /// Ends the session: tells the peer why. Nothing else is to be said after it.
    pub fn say_bye(&mut self, reason: &str) {
        self.transmit(&Message::Bye { reason: cut(reason) });
    }

    /// Tells people on the peer's side something.
    pub fn notify(&mut self, text: &str) {
        self.transmit(&Message::Notice { text: cut(text) });
    }

    /// What joins the peer's two links, once its control link said so.
    #[must_use]
    pub const fn peer_token(&self) -> Option<[u8; 16]> {
        self.greeted[0]
    }

    /// When the peer was heard last.
    #[must_use]
    pub const fn heard(&self) -> Moment {
        self.heard
    }

    /// How long the newest answered ping took, in nanoseconds.
    #[must_use]
    pub const fn round_trip(&self) -> Option<u64> {
        self.round_trip
    }

    /// The bits of the peer's start and its display name, once its hello came.
    #[must_use]
    pub fn peer_hello(&self) -> Option<(u64, &str)> {
        self.introduced.as_ref().map(|(start, name)| (*start, name.as_str()))
    }

    /// Bytes of contents that were sent and that the peer has not taken yet, as far as is known.
    #[must_use]
    pub const fn under_way(&self) -> u64 {
        self.serving.owed()
    }

    /// Whether the peer takes compressed frames.
    #[must_use]
    pub const fn compresses(&self) -> bool {
        self.version >= 4
    }

    /// Takes in what happened on this node. What names no tree of the config, or answers nothing
    /// that was asked, has no effect.
    ///
    /// # Panics
    /// When time goes back.
    pub fn handle_local(&mut self, now: Moment, input: Input) {
        self.advance(now);
        match input {
            Input::Head { tree, seq } => self.raise_head(tree, seq),
            Input::AskHead { tree, id } => {
                if let Some(tree) = self.theirs(tree) {
                    self.transmit(&Message::AskHead { tree, id });
                }
            }
            Input::HeadIs { tree, id, seq } => {
                if let Some(tree) = self.theirs(tree) {
                    self.transmit(&Message::Head { tree, id, seq });
                }
            }
            Input::Waits { tree, first } => {
                if let Some(tree) = self.theirs(tree) {
                    self.transmit(&Message::Waits { tree, first });
                }
            }
            Input::Whole { tree, upto } => {
                if let Some(tree) = self.theirs(tree) {
                    self.transmit(&Message::Whole { tree, upto });
                }
            }
            Input::Moved { tree, moved } => {
                if let Some(tree) = self.theirs(tree).filter(|_| self.version >= 5) {
                    self.transmit(&Message::Moved { tree, moved });
                }
            }
            Input::Rows { tree, rows, alike, names, upto } => self.send_rows(tree, (rows, alike), names, upto),
            Input::Digests { tree, digests, last } => self.send_digests(tree, digests, last),
            Input::Merged { tree, upto } => self.say_merged(tree, upto),
            Input::Applied { tree, upto, stuck } => self.say_applied(tree, upto, stuck),
            Input::Want { tree, want, path, hash, size, what } => self.want(tree, want, path, (hash, size, what)),
            Input::Drop { tree, want } => self.drop_want(tree, want),
            Input::Consumed { bytes } => self.take_consumed(bytes),
            Input::Content { tree: _, request, offset, bytes, last } => {
                self.send_content(request, offset, bytes, last);
            }
            Input::Gone { tree: _, request, reason } => self.send_gone(request, &reason),
        }
    }

    fn advance(&mut self, now: Moment) {
        assert!(now >= self.now, "time went back");
        self.now = now;
    }

    fn handle_hello(&mut self, link: Link, hello: Hello) -> Result<(), SessionError> {
        if hello.version_min > WIRE_VERSION || hello.version_max < WIRE_VERSION_MIN {
            return Err(SessionError::Version {
                ours_min: WIRE_VERSION_MIN,
                ours_max: WIRE_VERSION,
                theirs_min: hello.version_min,
                theirs_max: hello.version_max,
            });
        }
        if hello.role != link {
            return Err(SessionError::Protocol("a hello on the wrong link"));
        }
        let [control, bulk] = &mut self.greeted;
        let (own, other) = if link == Link::Control { (control, bulk) } else { (bulk, control) };
        if other.is_some_and(|token| token != hello.token) {
            return Err(SessionError::Protocol("links of two sessions"));
        }
        *own = Some(hello.token);
        if link == Link::Control {
            self.open(&hello);
        }
        Ok(())
    }

    /// Matches the trees by name and begins to send.
    fn open(&mut self, hello: &Hello) {
        self.introduced = Some((hello.start, hello.name.clone()));
        self.version = hello.version_max.min(WIRE_VERSION);
        self.batches_max = hello.batches.min(GRANT_BATCHES_MAX);
        self.serving.grant(hello.content_window.min(GRANT_BYTES_MAX));
        for (tree, stream) in self.streams.iter_mut().enumerate() {
            let found = hello.trees.iter().zip(0u16..).find(|(t, _)| t.name == stream.offer.name);
            let Some((theirs, number)) = found else {
                self.outputs.push_back(Output::Absent { tree });
                continue;
            };
            if theirs.standing != Standing::Open || stream.offer.standing != Standing::Open {
                self.outputs.push_back(Output::Halted { tree, standing: theirs.standing });
                continue;
            }
            let went_back = stream.is_beyond(theirs);
            let peer_cursor = stream.open(theirs, number, self.version);
            self.outputs.push_back(Output::Opened {
                tree,
                name: hello.name.clone(),
                incarnation: theirs.incarnation,
                start: theirs.start,
                head: theirs.head,
                peer_cursor,
                told_under: theirs.cursor.map_or(0, |cursor| cursor.start),
                went_back,
            });
        }
        for tree in 0..self.streams.len() {
            self.read_digests(tree);
            self.read_on(tree);
        }
    }

    fn handle_message(&mut self, message: Message) -> Result<(), SessionError> {
        match message {
            Message::Index { tree, actors, rows, upto } => self.handle_index(tree, &actors, rows, upto),
            Message::Merged { tree, upto } => self.handle_merged(tree, upto),
            Message::Applied { tree, upto, stuck } => self.handle_applied(tree, upto, stuck),
            Message::Request { tree, request, path, hash, size } => {
                self.handle_request(tree, request, path, (Hash(hash), size, What::From(0)))
            }
            Message::RequestFrom { tree, request, path, hash, size, offset } => {
                self.handle_request(tree, request, path, (Hash(hash), size, What::From(offset)))
            }
            Message::RequestRanges { tree, request, path, hash, size, ranges } => {
                self.handle_request(tree, request, path, (Hash(hash), size, What::Ranges(ranges)))
            }
            Message::RequestManifest { tree, request, path, hash, size, known } => {
                self.handle_request(tree, request, path, (Hash(hash), size, What::Manifest(known)))
            }
            Message::Drop { request } => self.handle_drop(request),
            Message::Credit { bytes } => self.handle_credit(bytes),
            Message::Content { request, offset, bytes, last } => self.handle_content(request, offset, bytes.0, last),
            Message::Missing { request, reason } => self.handle_missing(request, reason),
            Message::Ping => {
                self.transmit(&Message::Pong);
                Ok(())
            }
            Message::Pong => {
                if let Some(asked) = self.unanswered.take() {
                    self.round_trip = Some(self.now.0.saturating_sub(asked.0));
                }
                Ok(())
            }
            Message::AskHead { tree, id } => {
                let (tree, _) = self.stream(tree)?;
                self.outputs.push_back(Output::HeadAsked { tree, id });
                Ok(())
            }
            Message::Head { tree, id, seq } => {
                let (tree, _) = self.stream(tree)?;
                self.outputs.push_back(Output::PeerHead { tree, id, seq });
                Ok(())
            }
            Message::Waits { tree, first } => {
                let (tree, _) = self.stream(tree)?;
                self.outputs.push_back(Output::PeerWaits { tree, first });
                Ok(())
            }
            Message::Whole { tree, upto } => {
                let (tree, _) = self.stream(tree)?;
                self.outputs.push_back(Output::PeerWhole { tree, upto });
                Ok(())
            }
            Message::Moved { tree, moved } => {
                let (tree, _) = self.stream(tree)?;
                if !moved.is_possible() {
                    return Err(SessionError::Protocol("a rename that there cannot be"));
                }
                self.outputs.push_back(Output::Moved { tree, moved });
                Ok(())
            }
            Message::Digests { tree, digests, last } => self.handle_digests(tree, digests, last),
            Message::Alike { tree, actors, dirs } => self.handle_alike(tree, &actors, dirs),
            Message::Bye { reason } => Err(SessionError::Bye(shown(&reason))),
            Message::Notice { text } => {
                self.outputs.push_back(Output::Notice { text: shown(&text) });
                Ok(())
            }
        }
    }

    /// The tree that a peer names by its place in our hello.
    fn stream(&mut self, tree: u16) -> Result<(usize, &mut Stream), SessionError> {
        let at = usize::from(tree);
        match self.streams.get_mut(at) {
            Some(stream) if stream.theirs.is_some() => Ok((at, stream)),
            _ => Err(SessionError::Protocol("an unknown tree")),
        }
    }

    /// The number of a tree in the peer's hello.
    fn theirs(&self, tree: usize) -> Option<u16> {
        self.streams.get(tree).and_then(|stream| stream.theirs)
    }

    fn transmit(&mut self, message: &Message) {
        self.push_frame(if message.is_bulk() { Link::Bulk } else { Link::Control }, message);
    }

    fn push_frame(&mut self, link: Link, message: &impl serde::Serialize) {
        let frame = wire::frame(message);
        // Index batches are measured before; everything else is far below the limit by its own bounds.
        debug_assert!(frame.is_ok(), "a message beyond the limit");
        self.outputs.extend(frame.ok().map(|frame| Output::Transmit { link, frame }));
    }
}

/// As much of a text as a message takes.
fn cut(text: &str) -> String {
    let end = text.floor_char_boundary(wire::REASON_BYTES_MAX);
    text.get(..end).unwrap_or_default().to_owned()
}

/// A peer's text as it can be shown.
fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(wire::REASON_BYTES_MAX).collect()
}
