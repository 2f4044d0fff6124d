//! What the nodes know of one path: three registers, each a set of siblings (DESIGN.md §2).
//!
//! An [`Entry`] travels, merges and is stored whole. [`Entry::merge`] decides nothing and mints no
//! dot; what a tree shows is [`crate::view`]'s answer, and [`crate::mint`] writes changes into it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::sorted::SortedMap;
use crate::time::Time;
use crate::version::{Actor, Dot, VersionVector};

/// The newest losers that a path lists. Source: CONTRACT.md, promise 1.
pub const LOSERS_MAX: usize = 64;
/// A context of more actors lets go of those that no register carries a dot of. Source: DESIGN.md §2.
pub const CONTEXT_ACTORS_MAX: usize = 8;
/// The longest symbolic link target. Source: `PATH_MAX`.
pub const SYMLINK_BYTES_MAX: usize = 4096;

/// A BLAKE3 hash of a file's content.
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// Hexadecimal, as `b3sum` prints it.
    #[must_use]
    pub fn to_hex(self) -> String {
        use std::fmt::Write as _;
        self.0.iter().fold(String::with_capacity(64), |mut hex, byte| {
            write!(hex, "{byte:02x}").expect("writing to a string does not fail");
            hex
        })
    }
}

impl std::fmt::Debug for Hash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.to_hex()[..12])
    }
}

/// What orders siblings, fixed when minted: nanoseconds since the epoch on the writer's clock,
/// raised above everything it supersedes.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Rank(pub i64);

impl Rank {
    /// The highest rank that is taken from a peer; leaves room to rise above it.
    pub const MAX: Self = Self(i64::MAX / 2);

    /// The next rank.
    #[must_use]
    pub const fn above(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// What is at a path. The order of variants and fields is part of the formats: it breaks ties
/// between equal ranks.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum Value {
    /// A regular file.
    File {
        /// Length in bytes.
        size: u64,
        /// Content.
        hash: Hash,
    },
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink {
        /// Where it points, any bytes.
        target: Vec<u8>,
    },
    /// A FIFO, socket or device: the place is kept, no version mints one yet.
    Special {
        /// `S_IFMT` bits of its mode.
        kind: u32,
        /// Device number.
        device: u64,
    },
}

/// The kind of a value: what a mode belongs to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum ValueKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO, socket or device.
    Special,
}

impl Value {
    /// Its kind.
    #[must_use]
    pub const fn kind(&self) -> ValueKind {
        match self {
            Self::File { .. } => ValueKind::File,
            Self::Dir => ValueKind::Dir,
            Self::Symlink { .. } => ValueKind::Symlink,
            Self::Special { .. } => ValueKind::Special,
        }
    }
}

/// A content register's value: something, or the fact that it was deleted.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum Content {
    /// Deleted.
    Absent {
        /// What the deletion took away.
        was: Option<Value>,
    },
    /// There.
    Present(Value),
}

impl Content {
    /// The value, none where absent.
    #[must_use]
    pub const fn value(&self) -> Option<&Value> {
        match self {
            Self::Absent { .. } => None,
            Self::Present(value) => Some(value),
        }
    }
}

/// One value of the content register.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct ContentSibling {
    /// Orders it among siblings.
    pub rank: Rank,
    /// Minted at a pairing, so without knowing any history.
    pub paired: bool,
    /// The dot of the file's creation, kept by edits: which file a mode belongs to.
    pub file: Dot,
    /// The value.
    pub content: Content,
}

/// One value of the times register.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct TimesSibling {
    /// Orders it among siblings.
    pub rank: Rank,
    /// The content that it dates; any directory's is [`Value::Dir`].
    pub of: Value,
    /// The content time.
    pub mtime: Time,
}

/// An owner or a group.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Principal {
    /// By number.
    pub id: u32,
    /// By name; the place is kept, no version fills it yet.
    pub name: Option<Vec<u8>>,
}

/// Mode and owner.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Access {
    /// Permission bits, 07777; 0777 for symbolic links.
    pub mode: u32,
    /// Owner and group.
    pub owner: Principal,
    /// Group.
    pub group: Principal,
    /// Extended attributes and ACLs by digest; the place is kept, no version fills it yet.
    pub attributes: Option<Hash>,
}

/// One value of the access register.
#[derive(Clone, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct AccessSibling {
    /// Orders it among siblings.
    pub rank: Rank,
    /// What kind of thing it was set on.
    pub of: ValueKind,
    /// The creation dot of the file that it was set on.
    pub file: Dot,
    /// The value.
    pub access: Access,
}

/// A version that lost a conflict, listed until somebody resolves it.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Loser {
    /// What it was ordered by; also its time for people.
    pub rank: Rank,
    /// Its dot: the conflict's `version`.
    pub dot: Dot,
    /// What it was.
    pub value: Value,
}

/// All that is known of one path.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// All writes that it has seen.
    pub context: VersionVector,
    /// What is there.
    pub content: SortedMap<Dot, ContentSibling>,
    /// When it was changed.
    pub times: SortedMap<Dot, TimesSibling>,
    /// Who may use it.
    pub access: SortedMap<Dot, AccessSibling>,
    /// Versions that changes dropped unseen, under the dot that dropped them.
    pub losers: SortedMap<Dot, Vec<Loser>>,
}

impl Entry {
    /// Joins two states of one path. Commutative, associative and idempotent: a sibling stays when
    /// both have it, or when one has it and the other's context lacks it.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        let (a, b) = (&self.context, &other.context);
        let mut context = a.clone();
        context.join(b);
        Self {
            content: merge_register(&self.content, a, &other.content, b),
            times: merge_register(&self.times, a, &other.times, b),
            access: merge_register(&self.access, a, &other.access, b),
            losers: merge_register(&self.losers, a, &other.losers, b),
            context,
        }
    }

    /// Lets actors leave a context of more than [`CONTEXT_ACTORS_MAX`] that no register carries a dot
    /// of; says whether any left. Only for a state that every peer has merged: one that has not
    /// could bring back what the context remembers as superseded.
    pub fn trim(&mut self) -> bool {
        let before = self.context.len();
        if before <= CONTEXT_ACTORS_MAX {
            return false;
        }
        let content = self.content.keys().chain(self.losers.keys());
        let carried: BTreeSet<Actor> =
            content.chain(self.times.keys()).chain(self.access.keys()).map(|dot| dot.actor).collect();
        self.context.retain(|actor| carried.contains(&actor));
        self.context.len() < before
    }

    /// Whether the registers are equal, whatever the contexts.
    #[must_use]
    pub fn same_registers(&self, other: &Self) -> bool {
        self.content == other.content
            && self.times == other.times
            && self.access == other.access
            && self.losers == other.losers
    }

    /// The greatest rank of the siblings in any register that `context` includes.
    #[must_use]
    pub fn greatest_rank_in(&self, context: &VersionVector) -> Rank {
        let content = self.content.iter().map(|(dot, s)| (dot, s.rank));
        let times = self.times.iter().map(|(dot, s)| (dot, s.rank));
        let access = self.access.iter().map(|(dot, s)| (dot, s.rank));
        content
            .chain(times)
            .chain(access)
            .filter(|(dot, _)| context.contains(**dot))
            .map(|(_, rank)| rank)
            .max()
            .unwrap_or_default()
    }
}

fn merge_register<T: Clone>(
    a: &SortedMap<Dot, T>,
    a_context: &VersionVector,
    b: &SortedMap<Dot, T>,
    b_context: &VersionVector,
) -> SortedMap<Dot, T> {
    let from_a = a.iter().filter(|(dot, _)| b.contains_key(dot) || !b_context.contains(**dot));
    let from_b = b.iter().filter(|(dot, _)| a.contains_key(dot) || !a_context.contains(**dot));
    from_a.chain(from_b).map(|(dot, sibling)| (*dot, sibling.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mint::{Shown, mint};
    use crate::version::NodeId;
    use crate::view::{State, access_by_number};

    fn dot(node: u8, start: u64) -> Dot {
        Dot { actor: Actor { node: NodeId([node; 32]), start }, counter: 1 }
    }

    fn file(content: u8) -> State {
        State {
            value: Value::File { size: 1, hash: Hash([content; 32]) },
            mtime: Some(Time::new(i64::from(content), 0)),
            access: Some(access_by_number(0o644, 0, 0)),
        }
    }

    /// One file, edited in so many lives of a node.
    fn edited(lives: u8) -> (Entry, Shown) {
        let mut state = mint(None, &Shown::default(), Some(&file(0)), dot(1, 0), Rank(1), false);
        for life in 1..lives {
            state = mint(Some(&state.0), &state.1, Some(&file(life)), dot(1, u64::from(life)), Rank(1), false);
        }
        state
    }

    #[test]
    fn a_context_of_many_actors_keeps_those_with_dots() {
        let (mut entry, _) = edited(8);
        assert!(!entry.trim() && entry.context.len() == 8);
        let (mut entry, _) = edited(9);
        let before = entry.clone();
        assert!(entry.trim());
        assert!(entry.same_registers(&before));
        // The creation still dates the mode, the last edit the content.
        assert_eq!(entry.context.iter().collect::<Vec<_>>(), [dot(1, 0), dot(1, 8)]);
        assert!(!entry.trim());
    }

    #[test]
    fn nodes_that_trimmed_and_nodes_that_did_not_agree() {
        let (whole, shown) = edited(12);
        let mut trimmed = whole.clone();
        assert!(trimmed.trim());
        assert!(whole.merge(&trimmed).same_registers(&whole) && trimmed.merge(&whole).same_registers(&whole));
        // A change on either side, and changes on both.
        let mut short = shown.clone();
        short.context.retain(|actor| trimmed.context.knows(actor));
        let (one, _) = mint(Some(&whole), &shown, Some(&file(50)), dot(2, 1), Rank(1), false);
        let (two, _) = mint(Some(&trimmed), &short, None, dot(3, 1), Rank(1), false);
        assert!(one.merge(&trimmed).same_registers(&one) && two.merge(&whole).same_registers(&two));
        let both = one.merge(&two);
        assert!(both.same_registers(&two.merge(&one)) && both.content.len() == 2);
    }
}
