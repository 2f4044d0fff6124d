//! The words of a session (WIRE.md). Wire types are not domain types: [`packed`] converts entries
//! and checks everything a peer can get wrong, so that nothing bad gets past this edge.
#![deny(clippy::indexing_slicing, clippy::panic, clippy::expect_used, clippy::arithmetic_side_effects)]

use serde::{Deserialize, Serialize};

use crate::alike::DirDigest;
use crate::moved::Moved;
use crate::path::TreePath;

mod bytes;
pub mod frame;
pub mod hello;
pub mod packed;

pub use bytes::Bytes;
pub use frame::{FrameCompressor, FrameError, FrameReader, frame};
pub use hello::{Cursor, Hello, HelloError, LinkRole, Standing, TreeHello};
pub use packed::{ActorRow, PackedEntry};

/// The newest version that is spoken (WIRE.md).
pub const WIRE_VERSION: u16 = 6;
/// The oldest that is spoken, too: it has no compressed frames, and renames of directories are rows alone.
pub const WIRE_VERSION_MIN: u16 = 3;
/// The longest frame body on a link, in bytes.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// About how much an index batch carries, in bytes.
pub const BATCH_BYTES: usize = 48 * 1024;
/// How much content one frame carries, in bytes.
pub const CONTENT_BYTES_MAX: usize = 60 * 1024;
/// The longest content that travels with its announcement, in bytes.
pub const INLINE_BYTES_MAX: usize = 16 * 1024;
/// The longest text that says why a content cannot be had, in bytes.
pub const REASON_BYTES_MAX: usize = 512;
/// The most ranges that one request names.
pub const RANGES_MAX: usize = 1024;
/// The most parts of a manifest that a request says are there already.
pub const PARTS_KNOWN_MAX: usize = 4096;
/// The longest manifest, in bytes.
pub const MANIFEST_BYTES_MAX: u64 = 48 * 1024 * 1024;

/// The random id of one life of a journal.
pub type Incarnation = [u8; 16];

/// One row of an index batch.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct IndexRow {
    /// Where.
    pub path: TreePath,
    /// What is known of it.
    pub entry: PackedEntry,
    /// Its content, where it is small.
    pub content: Option<Bytes>,
}

/// A directory whose rows the receiver has but for their dots.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct AlikeDir {
    /// Which; none: the tree's root.
    pub dir: Option<TreePath>,
    /// What its rows come to on both sides.
    pub digest: [u8; 16],
    /// The dots of each path in it of which anything is known, by name: the actor's number, and how far the counter is above
    /// the one before of that actor in this message, modulo 2^64. What was found in the order of a walk looks alike so, and is
    /// compressed to little.
    pub dots: Vec<Vec<(u32, i64)>>,
}

/// All that is said after the hello. Append only: variants are numbered by position.
///
/// A tree is named by its place in the receiver's hello; a request by the asker's number, which
/// rises with every request of the session.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Control: rows of the sender's journal, up to a position.
    Index {
        /// The tree.
        tree: u16,
        /// The actors that the rows name by number.
        actors: Vec<ActorRow>,
        /// The rows.
        rows: Vec<IndexRow>,
        /// The position that the batch reaches, above that of the batch before.
        upto: u64,
    },
    /// Control: everything up to here is durable in the sender's index.
    Merged {
        /// The tree.
        tree: u16,
        /// A position of the receiver's journal.
        upto: u64,
    },
    /// Control: the sender's disk shows everything up to here, durably.
    Applied {
        /// The tree.
        tree: u16,
        /// A position of the receiver's journal.
        upto: u64,
        /// So many paths below it are stuck.
        stuck: u32,
    },
    /// Control: the sender wants a content.
    Request {
        /// The tree.
        tree: u16,
        /// The sender's number for it.
        request: u64,
        /// A path whose entry names it.
        path: TreePath,
        /// The content's BLAKE3.
        hash: [u8; 32],
        /// Its length in bytes.
        size: u64,
    },
    /// Control: the sender wants it no longer.
    Drop {
        /// The number.
        request: u64,
    },
    /// Control: more content may be sent.
    Credit {
        /// So many bytes.
        bytes: u64,
    },
    /// Bulk: a piece of a content.
    Content {
        /// The asker's number.
        request: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece.
        bytes: Bytes,
        /// Whether it ends the content.
        last: bool,
    },
    /// Bulk: a content cannot be had here.
    Missing {
        /// The asker's number.
        request: u64,
        /// Why.
        reason: String,
    },
    /// Control: is anybody there?
    Ping,
    /// Control: yes.
    Pong,
    /// Control: where does the receiver's journal of this tree end now?
    AskHead {
        /// The tree.
        tree: u16,
        /// The sender's number for the question. With the highest bit it is answered once the journal holds all of the
        /// disk, or in a minute.
        id: u64,
    },
    /// Control: it ends here.
    Head {
        /// The tree.
        tree: u16,
        /// The receiver's number.
        id: u64,
        /// The sender's durable head.
        seq: u64,
    },
    /// Control: the sender ends the session, for this reason.
    Bye {
        /// For people.
        reason: String,
    },
    /// Control: something that people on the receiver's side should know.
    Notice {
        /// For people.
        text: String,
    },
    /// Control: the sender wants the rest of a content.
    RequestFrom {
        /// The tree.
        tree: u16,
        /// The sender's number for it, among those of the requests.
        request: u64,
        /// A path whose entry names it.
        path: TreePath,
        /// The content's BLAKE3.
        hash: [u8; 32],
        /// Its length in bytes.
        size: u64,
        /// The sender has so much of it from its beginning.
        offset: u64,
    },
    /// Control: the sender wants parts of a content.
    RequestRanges {
        /// The tree.
        tree: u16,
        /// The sender's number for it, among those of the requests.
        request: u64,
        /// A path whose entry names it.
        path: TreePath,
        /// The content's BLAKE3.
        hash: [u8; 32],
        /// Its length in bytes.
        size: u64,
        /// Offsets and lengths, in order and apart.
        ranges: Vec<(u64, u64)>,
    },
    /// Control: the sender wants to know the chunks of a content.
    RequestManifest {
        /// The tree.
        tree: u16,
        /// The sender's number for it, among those of the requests.
        request: u64,
        /// A path whose entry names it.
        path: TreePath,
        /// The content's BLAKE3.
        hash: [u8; 32],
        /// Its length in bytes.
        size: u64,
        /// The first bytes of the hashes of parts that the sender has.
        known: Vec<[u8; 8]>,
    },
    /// Control: the sender's tree waits for the first whole index, to pair with it.
    Waits {
        /// The tree.
        tree: u16,
        /// Whose version counts there.
        first: First,
    },
    /// Control: all that the sender's disk holds is in its journal up to here; it waits for nobody.
    Whole {
        /// The tree.
        tree: u16,
        /// A position of the sender's journal.
        upto: u64,
    },
    /// Control: a directory was renamed; its rows follow.
    Moved {
        /// The tree.
        tree: u16,
        /// The rename.
        moved: Box<Moved>,
    },
    /// Control: what the rows of the sender's directories come to, before anything is told to it.
    Digests {
        /// The tree.
        tree: u16,
        /// Directories, each once in a session.
        digests: Vec<DirDigest>,
        /// Whether these are the last.
        last: bool,
    },
    /// Control: directories whose rows the receiver has but for their dots, ahead of the batch that they belong to.
    Alike {
        /// The tree.
        tree: u16,
        /// The actors that the dots name by number.
        actors: Vec<ActorRow>,
        /// The directories.
        dirs: Vec<AlikeDir>,
    },
}

/// Whose version counts where a tree pairs for the first time, and both sides have something.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum First {
    /// The one of the node that waits.
    Send,
    /// The other's.
    Receive,
}

impl Message {
    /// Whether it travels on the bulk link.
    #[must_use]
    pub const fn is_bulk(&self) -> bool {
        matches!(self, Self::Content { .. } | Self::Missing { .. })
    }
}

/// Whether a name of a node or a tree may be shown and compared. Source: CONTRACT.md, configuration.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed)
}
