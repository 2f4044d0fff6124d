//! The words of a session (WIRE.md). Wire types are not domain types: [`packed`] converts entries
//! and checks everything a peer can get wrong, so that nothing bad gets past this edge.

use serde::{Deserialize, Serialize};

use crate::codec::{self, DecodeError};
use crate::path::TreePath;

pub mod packed;

pub use packed::{ActorRow, PackedEntry};

/// The version of the messages. 1: first.
pub const WIRE_VERSION: u16 = 1;
/// The longest frame on a link, in bytes.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// About how much an index batch carries, in bytes.
pub const BATCH_BYTES: usize = 48 * 1024;
/// How much content one frame carries, in bytes.
pub const CONTENT_BYTES_MAX: usize = 60 * 1024;
/// The first bytes of a session.
pub const MAGIC: [u8; 8] = *b"PLEACH\r\n";

/// The random id of one life of a journal.
pub type Incarnation = [u8; 16];

/// The first message of both sides; its layout is frozen for ever.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// The lowest version understood.
    pub version_min: u16,
    /// The highest.
    pub version_max: u16,
    /// The software and its version, for people.
    pub software: String,
    /// The node's display name.
    pub name: String,
    /// The bits of this start.
    pub start: u64,
    /// The trees that the config names for this peer.
    pub trees: Vec<TreeHello>,
}

/// What a hello says of one tree.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TreeHello {
    /// The tree's name.
    pub name: String,
    /// The sender's journal.
    pub incarnation: Incarnation,
    /// How far the sender is in the receiver's journal.
    pub cursor: Option<(Incarnation, u64)>,
}

/// One row of an index batch.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct IndexRow {
    /// Where.
    pub path: TreePath,
    /// What is known of it.
    pub entry: PackedEntry,
    /// Its content, where it is small.
    pub content: Option<Vec<u8>>,
}

/// All that is said after the hello. Append only: variants are numbered by position.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// Control: rows of the sender's journal, up to a position.
    Index {
        /// The tree, by its place in the receiver's hello.
        tree: u16,
        /// The actors that the rows name by number.
        actors: Vec<ActorRow>,
        /// The rows.
        rows: Vec<IndexRow>,
        /// The position that the batch reaches.
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
    },
    /// Control: the sender wants a content.
    Want {
        /// The tree.
        tree: u16,
        /// The sender's number for it.
        want: u64,
        /// A path whose entry names it.
        path: TreePath,
        /// The content's BLAKE3.
        hash: [u8; 32],
    },
    /// Control: the sender wants it no longer.
    Drop {
        /// The tree.
        tree: u16,
        /// The number.
        want: u64,
    },
    /// Control: more content may be sent.
    Credit {
        /// So many bytes.
        bytes: u64,
    },
    /// Bulk: a piece of a content.
    Content {
        /// The tree.
        tree: u16,
        /// The asker's number.
        want: u64,
        /// Where the piece begins.
        offset: u64,
        /// The piece.
        bytes: Vec<u8>,
        /// Whether it is the last.
        last: bool,
    },
    /// Bulk: a content cannot be had here.
    Missing {
        /// The tree.
        tree: u16,
        /// The asker's number.
        want: u64,
        /// Why.
        reason: String,
    },
    /// Control: is anybody there?
    Ping,
    /// Control: yes.
    Pong,
}

/// Encodes a message as a frame: four bytes of length, then the body.
#[must_use]
pub fn frame<T: Serialize>(message: &T) -> Vec<u8> {
    let body = codec::encode(message);
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(body.len() + 4);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// Says why a stream of frames cannot be read on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A frame says that it is longer than [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// A body is no message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

/// Cuts a byte stream into frames; looks at each length before it keeps anything for it.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameReader {
    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's body.
    ///
    /// # Errors
    /// A length beyond the limit.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((length, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = body.get(..length) else { return Ok(None) };
        let body = body.to_vec();
        self.start = self.start.saturating_add(length).saturating_add(4);
        Ok(Some(body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_whatever_the_cuts() {
        let frames: Vec<Vec<u8>> = (0..50u64).map(|n| frame(&Message::Credit { bytes: n * n })).collect();
        let stream = frames.concat();
        for step in [1, 3, 7, 1000] {
            let (mut reader, mut got) = (FrameReader::default(), Vec::new());
            for piece in stream.chunks(step) {
                reader.push(piece);
                while let Some(body) = reader.next_frame().unwrap() {
                    got.push(codec::decode::<Message>(&body).unwrap());
                }
            }
            assert_eq!(got.len(), 50);
            assert_eq!(got[7], Message::Credit { bytes: 49 });
        }
    }

    #[test]
    fn a_length_that_lies_is_refused_before_it_is_believed() {
        let mut reader = FrameReader::default();
        reader.push(&u32::MAX.to_le_bytes());
        assert!(matches!(reader.next_frame(), Err(FrameError::TooLong(_))));
    }

    #[test]
    fn the_hello_is_frozen() {
        let hello = Hello {
            magic: MAGIC,
            version_min: 1,
            version_max: 1,
            software: "p".into(),
            name: "n".into(),
            start: 7,
            trees: vec![TreeHello { name: "t".into(), incarnation: [9; 16], cursor: Some(([8; 16], 5)) }],
        };
        let mut want = b"PLEACH\r\n\x01\x01\x01p\x01n\x07\x01\x01t".to_vec();
        want.extend_from_slice(&[9; 16]);
        want.push(1);
        want.extend_from_slice(&[8; 16]);
        want.push(5);
        assert_eq!(codec::encode(&hello), want);
        for cut in 0..want.len() {
            assert!(codec::decode::<Hello>(&want[..cut]).is_err());
        }
    }
}
