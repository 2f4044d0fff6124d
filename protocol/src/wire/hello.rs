//! The first frame of each link, of both sides. Its layout is frozen for ever: what it holds may
//! only be told apart by its versions.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{CONTENT_BYTES_MAX, Incarnation, is_name};
use crate::codec::{self, DecodeError};

/// The first bytes of a hello.
pub const MAGIC: [u8; 8] = *b"PLEACH\r\n";
/// The most trees of one hello.
pub const TREES_MAX: usize = 256;
/// Credit for content is returned in portions of at least this, in bytes; so a window must be
/// larger than it and one piece together.
pub const CREDIT_BYTES: u64 = 128 * 1024;

/// Which of a session's links a frame came on.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum LinkRole {
    /// Index, acks, requests, pings.
    Control,
    /// Content.
    Bulk,
}

/// The first message of both sides on each link.
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
    /// The link that this hello opens.
    pub role: LinkRole,
    /// The sender's token: the same in the hellos of both its links.
    pub token: [u8; 16],
    /// So many index batches of each tree may be under way to the sender, unmerged.
    pub batches: u16,
    /// So many bytes of content may be under way to the sender, untaken.
    pub content_window: u64,
    /// The trees that the config names for this peer; none on the bulk link.
    pub trees: Vec<TreeHello>,
}

/// What a hello says of one tree.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TreeHello {
    /// The tree's name.
    pub name: String,
    /// The sender's journal.
    pub incarnation: Incarnation,
    /// The bits of the start that tells of it now; a tree is begun more often than its agent.
    pub start: u64,
    /// How far the sender is in the receiver's journal.
    pub cursor: Option<Cursor>,
    /// How far the sender's journal reaches.
    pub head: u64,
    /// Whether the tree is exchanged now; the others of the session are, whatever this says.
    pub standing: Standing,
}

/// A place in somebody's journal, as it was told. The start under which it was told is part of it: one that the
/// journal does not know for its own, or that never came so far there, is of a life that was undone since.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Cursor {
    /// The journal.
    pub incarnation: Incarnation,
    /// The teller's start bits.
    pub start: u64,
    /// The position.
    pub seq: u64,
}

/// Whether a node exchanges a tree.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Standing {
    /// It does.
    #[default]
    Open,
    /// Not until somebody resumes it.
    Paused,
    /// Not until it works again: it is being opened, or it failed.
    Failed,
}

/// Says why a frame is no hello.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The other side is no pleach.
    #[error("the other side does not speak pleach")]
    Magic,
    /// The bytes hold no hello.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A rule is broken.
    #[error("a hello breaks the rules: {0}")]
    Rule(&'static str),
}

impl Hello {
    /// Decodes and checks a hello; whether there is a common version is the session's question.
    ///
    /// # Errors
    /// [`HelloError`].
    pub fn decode(body: &[u8]) -> Result<Self, HelloError> {
        if !body.starts_with(&MAGIC) {
            return Err(HelloError::Magic);
        }
        let hello: Self = codec::decode(body)?;
        hello.check().map_err(HelloError::Rule)?;
        Ok(hello)
    }

    fn check(&self) -> Result<(), &'static str> {
        if self.version_min > self.version_max {
            return Err("versions that end before they begin");
        }
        if self.software.len() > 128 || !self.software.bytes().all(|b| matches!(b, 0x20..=0x7e)) {
            return Err("a name of a software that cannot be shown");
        }
        if !is_name(&self.name) || !self.trees.iter().all(|t| is_name(&t.name)) {
            return Err("a name that cannot be shown");
        }
        if self.role == LinkRole::Bulk {
            return if self.trees.is_empty() { Ok(()) } else { Err("trees on the bulk link") };
        }
        let piece = CREDIT_BYTES.saturating_add(CONTENT_BYTES_MAX as u64);
        if self.batches == 0 || self.content_window < piece {
            return Err("a window that lets nothing through");
        }
        let names: BTreeSet<&str> = self.trees.iter().map(|t| t.name.as_str()).collect();
        if self.trees.len() > TREES_MAX || names.len() < self.trees.len() {
            return Err("too many trees, or one twice");
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::panic, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            magic: MAGIC,
            version_min: 1,
            version_max: 1,
            software: "p".into(),
            name: "n".into(),
            start: 7,
            role: LinkRole::Control,
            token: [6; 16],
            batches: 4,
            content_window: 1024 * 1024,
            trees: vec![TreeHello {
                name: "t".into(),
                incarnation: [9; 16],
                start: 10,
                cursor: Some(Cursor { incarnation: [8; 16], start: 11, seq: 5 }),
                head: 3,
                standing: Standing::Open,
            }],
        }
    }

    #[test]
    fn the_hello_is_frozen() {
        let want = [
            &b"PLEACH\r\n\x01\x01\x01p\x01n\x07\x00"[..],
            &[6; 16],
            b"\x04\xfc\x00\x00\x10\x00\x01\x01t",
            &[9; 16],
            &[10, 1],
            &[8; 16],
            &[11, 5, 3, 0],
        ]
        .concat();
        assert_eq!(codec::encode(&hello()), want);
        assert_eq!(Hello::decode(&want).unwrap(), hello());
        for cut in 0..want.len() {
            assert!(Hello::decode(&want[..cut]).is_err(), "{cut}");
        }
        assert!(Hello::decode(&[&want[..], &[0]].concat()).is_err());
    }

    #[test]
    fn hellos_that_break_a_rule_are_refused() {
        let refused = |change: &dyn Fn(&mut Hello)| {
            let mut bad = hello();
            change(&mut bad);
            assert!(Hello::decode(&codec::encode(&bad)).is_err(), "{bad:?}");
        };
        refused(&|h| h.magic[7] = b'\r');
        refused(&|h| h.version_min = 2);
        refused(&|h| h.software = "\x1b[31m".into());
        refused(&|h| h.software = "x".repeat(129));
        refused(&|h| h.name = String::new());
        refused(&|h| h.name = "x".repeat(65));
        refused(&|h| h.name = "a b".into());
        refused(&|h| h.trees[0].name = "../t".into());
        refused(&|h| h.trees.push(h.trees[0].clone()));
        refused(&|h| h.role = LinkRole::Bulk);
        refused(&|h| h.batches = 0);
        refused(&|h| h.content_window = 128 * 1024);
    }
}
