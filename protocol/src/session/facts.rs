//! What a session is begun with, what comes in and what comes out.

use std::sync::Arc;

use crate::alike::{Alike, DirDigest};
use crate::codec::DecodeError;
use crate::entry::{Entry, Hash};
use crate::moved::Moved;
use crate::path::TreePath;
use crate::version::{Actor, NodeId};
use crate::wire::packed::EntryError;
#[cfg(doc)]
use crate::wire::{self, hello};
use crate::wire::{Cursor, First, HelloError, Incarnation, LinkRole as Link, Standing};

/// A point on a clock that only goes forward, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Moment(pub u64);

impl Moment {
    pub(super) const fn after(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }
}

/// What a session is begun with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionConfig {
    /// This node.
    pub node: NodeId,
    /// The node at the other end, as its key says.
    pub peer: NodeId,
    /// This node's display name, as [`wire::is_name`] has it.
    pub name: String,
    /// The bits of this start.
    pub start: u64,
    /// Random: joins this side's two links.
    pub token: [u8; 16],
    /// The trees that the config names for this peer, at most [`hello::TREES_MAX`]; their places
    /// are their numbers in inputs and outputs.
    pub trees: Vec<TreeOffer>,
}

/// A tree that this node offers to the peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TreeOffer {
    /// Its name.
    pub name: String,
    /// The incarnation of our journal.
    pub incarnation: Incarnation,
    /// The bits of the start that tells of it.
    pub start: u64,
    /// How far we are in the peer's journal.
    pub cursor: Option<Cursor>,
    /// Our durable head.
    pub head: u64,
    /// Whether it is exchanged now.
    pub standing: Standing,
}

/// A row of somebody's journal.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announcement {
    /// Where.
    pub path: TreePath,
    /// What is known of it.
    pub entry: Entry,
    /// Its content, where it is small: at most [`wire::INLINE_BYTES_MAX`], of the length of a file
    /// among the siblings. Whoever receives it verifies the hash.
    pub content: Option<Vec<u8>>,
}

/// What is wanted of a content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// All behind this offset.
    From(u64),
    /// These offsets and lengths: in order, apart, none empty, at most [`wire::RANGES_MAX`].
    Ranges(Vec<(u64, u64)>),
    /// Its manifest, but for parts whose hashes begin so; at most [`wire::PARTS_KNOWN_MAX`]. It comes as
    /// pieces that have their offsets in the answer.
    Manifest(Vec<[u8; 8]>),
}

impl What {
    /// The same, without what lies before an offset.
    #[must_use]
    pub fn behind(self, offset: u64) -> Self {
        match self {
            Self::From(_) => Self::From(offset),
            Self::Ranges(mut ranges) => {
                ranges.retain(|(start, length)| start.saturating_add(*length) > offset);
                if let Some((start, length)) = ranges.first_mut()
                    && let Some(there) = offset.checked_sub(*start)
                {
                    (*start, *length) = (offset, length.saturating_sub(there));
                }
                Self::Ranges(ranges)
            }
            Self::Manifest(known) => Self::Manifest(known),
        }
    }
}

/// What happened on this node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Input {
    /// A tree's durable head moved.
    Head {
        /// The tree.
        tree: usize,
        /// The head.
        seq: u64,
    },
    /// Where does the peer's journal end now? Answered by [`Output::PeerHead`].
    AskHead {
        /// The tree.
        tree: usize,
        /// The caller's number for it.
        id: u64,
    },
    /// The answer to [`Output::HeadAsked`].
    HeadIs {
        /// The tree.
        tree: usize,
        /// The peer's number.
        id: u64,
        /// Our durable head.
        seq: u64,
    },
    /// Our tree waits for the first whole index.
    Waits {
        /// The tree.
        tree: usize,
        /// Whose version counts here.
        first: First,
    },
    /// The answer to [`Output::PeerWaits`], once all that our disk holds is in our journal.
    Whole {
        /// The tree.
        tree: usize,
        /// Up to here.
        upto: u64,
    },
    /// A directory of the tree was renamed as one unit; its rows follow. A hint: a peer that does not hold the same
    /// directory passes it over.
    Moved {
        /// The tree.
        tree: usize,
        /// The rename.
        moved: Box<Moved>,
    },
    /// The answer to [`Output::ReadRows`].
    Rows {
        /// The tree.
        tree: usize,
        /// The rows; none where all were withheld.
        rows: Vec<Announcement>,
        /// Directories that stand for their rows, for a peer that told their digests.
        alike: Vec<Alike>,
        /// The display names of writers.
        names: Vec<(Actor, String)>,
        /// The position that they reach.
        upto: u64,
    },
    /// The answer to [`Output::ReadDigests`].
    Digests {
        /// The tree.
        tree: usize,
        /// Directories that were not told before.
        digests: Vec<DirDigest>,
        /// Whether there are no more.
        last: bool,
    },
    /// All batches up to here are durable in our index.
    Merged {
        /// The tree.
        tree: usize,
        /// A position of the peer's journal.
        upto: u64,
    },
    /// Our disk shows everything of the peer's journal up to here, durably.
    Applied {
        /// The tree.
        tree: usize,
        /// A position of the peer's journal.
        upto: u64,
        /// But for so many paths that are stuck.
        stuck: u32,
    },
    /// We need a content. Answered by [`Output::Received`] to the last piece, or by
    /// [`Output::Missing`]. A number that is still open is not asked for again.
    Want {
        /// The tree.
        tree: usize,
        /// The caller's number for it.
        want: u64,
        /// A path whose entry names it.
        path: TreePath,
        /// The content.
        hash: Hash,
        /// Its length in bytes.
        size: u64,
        /// What of it.
        what: What,
    },
    /// We need it no longer; nothing more of it comes out.
    Drop {
        /// The tree.
        tree: usize,
        /// The caller's number.
        want: u64,
    },
    /// So many bytes of [`Output::Received`] were taken.
    Consumed {
        /// Bytes.
        bytes: u64,
    },
    /// The answer to [`Output::ReadContent`]: as many bytes as were asked for, or fewer.
    Content {
        /// The tree.
        tree: usize,
        /// The peer's request.
        request: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece; empty only for an empty content.
        bytes: Vec<u8>,
        /// Whether the answer ends behind it. It need not be said but of a manifest: the peer knows where
        /// a content ends.
        last: bool,
    },
    /// The other answer to [`Output::ReadContent`].
    Gone {
        /// The tree.
        tree: usize,
        /// The peer's request.
        request: u64,
        /// Why.
        reason: String,
    },
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Output {
    /// Send a frame, behind all earlier ones of its link.
    Transmit {
        /// The link.
        link: Link,
        /// The frame, with its length in front.
        frame: Vec<u8>,
    },
    /// The peer is there and has this tree.
    Opened {
        /// The tree.
        tree: usize,
        /// The peer's display name.
        name: String,
        /// The peer's journal.
        incarnation: Incarnation,
        /// The bits of the start that tells of it.
        start: u64,
        /// How far that journal reaches.
        head: u64,
        /// Where we begin to send: 0 if the peer's cursor names another journal than ours, or a
        /// position that ours has not.
        peer_cursor: u64,
        /// The start of ours under which the peer was told up to there.
        told_under: u64,
        /// The peer knows more of our journal than there is: our store went back.
        went_back: bool,
    },
    /// The peer does not have this tree, or not for us.
    Absent {
        /// The tree.
        tree: usize,
    },
    /// The peer has this tree, but one of the two nodes does not exchange it now.
    Halted {
        /// The tree.
        tree: usize,
        /// What the peer says.
        standing: Standing,
    },
    /// The peer's tree waits for the first whole index.
    PeerWaits {
        /// The tree.
        tree: usize,
        /// Whose version counts there.
        first: First,
    },
    /// The peer's journal is whole.
    PeerWhole {
        /// The tree.
        tree: usize,
        /// Up to here.
        upto: u64,
    },
    /// The peer renamed a directory; its rows follow.
    Moved {
        /// The tree.
        tree: usize,
        /// The rename: one that there can be ([`Moved::is_possible`]).
        moved: Box<Moved>,
    },
    /// Read our journal: answered by [`Input::Rows`]. The rows must be read no earlier than this
    /// output was polled. One at a time for each tree.
    ReadRows {
        /// The tree.
        tree: usize,
        /// Behind this position.
        after: u64,
        /// About so many bytes, but one row at least; 1 asks for exactly one.
        bytes_max: usize,
    },
    /// Say what the rows of our directories come to, some thousand at a time: answered by [`Input::Digests`]. The peer
    /// tells nothing before it knows.
    ReadDigests {
        /// The tree.
        tree: usize,
    },
    /// What the rows of the peer's directories come to.
    Digests {
        /// The tree.
        tree: usize,
        /// Directories.
        digests: Vec<DirDigest>,
        /// Whether these are the last.
        last: bool,
    },
    /// Take a directory's rows into the index, under these dots too; the next [`Output::Merge`] says how far they reach.
    MergeAlike {
        /// The tree.
        tree: usize,
        /// The directory.
        alike: Alike,
        /// The display names of writers that were not said with the one before.
        names: Vec<(Actor, String)>,
    },
    /// Take rows into the index: answered by [`Input::Merged`].
    Merge {
        /// The tree.
        tree: usize,
        /// The rows; there may be none.
        rows: Vec<Announcement>,
        /// The display names of writers.
        names: Vec<(Actor, String)>,
        /// The position of the peer's journal that they reach.
        upto: u64,
    },
    /// Read content for the peer: answered by [`Input::Content`] or [`Input::Gone`].
    ReadContent {
        /// The tree.
        tree: usize,
        /// The peer's request.
        request: u64,
        /// A path whose entry names it.
        path: TreePath,
        /// The content.
        hash: Hash,
        /// Where to begin.
        offset: u64,
        /// So many bytes; 0 for an empty content.
        bytes_max: usize,
    },
    /// Read the manifest of a content for the peer: answered by [`Input::Content`] or [`Input::Gone`].
    ReadManifest {
        /// The tree.
        tree: usize,
        /// The peer's request.
        request: u64,
        /// A path whose entry names it.
        path: TreePath,
        /// The content.
        hash: Hash,
        /// The first bytes of the hashes of parts that are left out.
        known: Arc<[[u8; 8]]>,
        /// Where in the answer to begin.
        offset: u64,
        /// So many bytes, or fewer where the answer ends.
        bytes_max: usize,
    },
    /// A piece of a content that we wanted; pieces come in order. Answered by [`Input::Consumed`].
    Received {
        /// The tree.
        tree: usize,
        /// The caller's number.
        want: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
        /// Whether it ends the content.
        last: bool,
    },
    /// A content that we wanted does not come from this peer.
    Missing {
        /// The tree.
        tree: usize,
        /// The caller's number.
        want: u64,
        /// Why.
        reason: String,
    },
    /// The peer has our journal durably in its index up to here.
    PeerMerged {
        /// The tree.
        tree: usize,
        /// A position of our journal.
        seq: u64,
    },
    /// The peer's disk shows our journal up to here.
    PeerApplied {
        /// The tree.
        tree: usize,
        /// A position of our journal.
        seq: u64,
        /// But for so many paths.
        stuck: u32,
    },
    /// The peer asks where our journal ends: answered by [`Input::HeadIs`].
    HeadAsked {
        /// The tree.
        tree: usize,
        /// The peer's number.
        id: u64,
    },
    /// The peer's journal ends here.
    PeerHead {
        /// The tree.
        tree: usize,
        /// The caller's number.
        id: u64,
        /// A position of the peer's journal.
        seq: u64,
    },
    /// Something that the peer wants people here to know.
    Notice {
        /// What.
        text: String,
    },
    /// An entry is too large for a frame and was left out: the peer does not hear of it.
    TooLarge {
        /// The tree.
        tree: usize,
        /// Its path.
        path: TreePath,
    },
}

/// Says why a session ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The first frame is no hello.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// No common version.
    #[error("no common version: this node speaks {ours_min} to {ours_max}, the peer {theirs_min} to {theirs_max}")]
    Version {
        /// Our lowest.
        ours_min: u16,
        /// Our highest.
        ours_max: u16,
        /// The peer's lowest.
        theirs_min: u16,
        /// The peer's highest.
        theirs_max: u16,
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
    /// The peer ended the session.
    #[error("the peer ended the session: {0}")]
    Bye(String),
    /// Nothing was heard for 20 seconds.
    #[error("the peer does not answer")]
    Dead,
}
