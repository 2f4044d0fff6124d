//! What hooks are told, and how far each is (FORMAT.md).

use pleach_protocol::path::TreePath;
use serde::{Deserialize, Serialize};

use super::{Space, path_key};

/// What a hook runs for. The order of the variants is stored.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub enum HookOn {
    /// This disk was changed: what a peer told was applied.
    Applied,
    /// A local change, once it is applied elsewhere.
    Sent,
    /// A path lists a conflict that it did not list before.
    Conflict,
    /// A path became a problem, or one for another reason.
    Error,
}

impl HookOn {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Applied, Self::Sent, Self::Conflict, Self::Error];

    /// Its word in the config.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Sent => "sent",
            Self::Conflict => "conflict",
            Self::Error => "error",
        }
    }

    /// Its byte in a key.
    const fn letter(self) -> u8 {
        self.word().as_bytes()[0]
    }
}

/// What happened to a path.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// The change's place in the journal; of a problem, the journal's head at the time.
    pub seq: u64,
    /// Where.
    pub path: TreePath,
    /// Whether it is, or was, a directory.
    pub dir: bool,
}

/// How far a hook is.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct HookRow {
    /// What it runs for, each with the number of the last event that it was told.
    pub places: Vec<(HookOn, u64)>,
}

impl HookRow {
    /// How far it is with one of them, where it runs for that.
    #[must_use]
    pub fn place(&self, on: HookOn) -> Option<u64> {
        self.places.iter().find(|(of, _)| *of == on).map(|(_, place)| *place)
    }
}

/// The key of a hook's place.
#[must_use]
pub fn hook_key(id: &[u8; 16]) -> Vec<u8> {
    [&[Space::Hook as u8], &id[..]].concat()
}

/// The key of an event by its number.
#[must_use]
pub fn event_key(on: HookOn, number: u64) -> Vec<u8> {
    [&[Space::Event as u8, on.letter(), 0], &number.to_be_bytes()[..]].concat()
}

/// The key of the number of a path's newest event.
#[must_use]
pub fn event_path_key(on: HookOn, path: &TreePath) -> Vec<u8> {
    [&[Space::Event as u8, on.letter(), 1], &path_key(Space::Event, path)[1..]].concat()
}

/// The number in the key of an event; none where it is no such key.
#[must_use]
pub fn event_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(3..)?.try_into().ok()?))
}
