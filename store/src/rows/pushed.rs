//! What is kept of a peer without an agent: how far it was pushed to, what lies there, what it is owed (FORMAT.md).

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use serde::{Deserialize, Serialize};

use super::{Space, key_path, path_key};

/// How far a peer without an agent was pushed to.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct PushRow {
    /// Where it is: of another place nothing is known.
    pub target: String,
    /// Everything up to this seq is there, or owed.
    pub seq: u64,
    /// The ignore rules of the config under which that was so.
    pub rules: [u8; 16],
    /// Somebody let the first check that deletes what was not pushed go on.
    pub approved: bool,
    /// When the last full check ended.
    pub checked: Time,
}

/// A path that was pushed, at least in part.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PushedRow {
    /// Whether it is a directory there.
    pub dir: bool,
    /// The file's content; none where it is none, or what is there is not certain.
    pub hash: Option<Hash>,
}

/// The key of how far a peer was pushed to.
#[must_use]
pub fn push_key(peer: &str) -> Vec<u8> {
    let mut key = vec![Space::Push as u8];
    key.extend_from_slice(peer.as_bytes());
    key
}

/// The key of how far the agent of a peer with a fallback applied our journal. No name holds a NUL.
#[must_use]
pub fn agent_key(peer: &str) -> Vec<u8> {
    let mut key = push_key(peer);
    key.push(0);
    key
}

/// What all keys of a peer in one of the spaces `O` and `R` begin with.
#[must_use]
pub fn pushed_prefix(space: Space, peer: &str) -> Vec<u8> {
    let mut key = vec![space as u8];
    key.extend_from_slice(peer.as_bytes());
    key.push(0);
    key
}

/// The key of a path there.
#[must_use]
pub fn pushed_key(space: Space, peer: &str, path: &TreePath) -> Vec<u8> {
    let mut key = pushed_prefix(space, peer);
    key.extend_from_slice(&path_key(space, path)[1..]);
    key
}

/// The path in such a key; none where it is no such key.
#[must_use]
pub fn pushed_path(key: &[u8]) -> Option<TreePath> {
    let cut = key.iter().position(|b| *b == 0)?;
    key_path(&key[cut..])
}
