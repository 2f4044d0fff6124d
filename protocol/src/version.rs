//! Who wrote what: actors, dots and version vectors.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::sorted::SortedMap;

/// A node: the SHA-256 of its public host key.
#[derive(Clone, Copy, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct NodeId(pub [u8; 32]);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// One life of a node's writer: the node and 64 random bits drawn at each start, so that no
/// counter is ever used twice, whatever store or disk was put back.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Actor {
    /// The node.
    pub node: NodeId,
    /// The start bits.
    pub start: u64,
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}.{:x}", self.node, self.start)
    }
}

/// One write by one actor; counters begin at 1.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Dot {
    /// Who wrote.
    pub actor: Actor,
    /// That actor's how-manieth write.
    pub counter: u64,
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.actor, self.counter)
    }
}

/// All writes that somebody has seen: for each actor the highest counter.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub struct VersionVector(SortedMap<Actor, u64>);

impl VersionVector {
    /// Whether the write was seen.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        self.0.get(&dot.actor).is_some_and(|seen| *seen >= dot.counter)
    }

    /// Notes a write and all earlier ones of its actor.
    pub fn insert(&mut self, dot: Dot) {
        if !self.contains(dot) {
            self.0.insert(dot.actor, dot.counter);
        }
    }

    /// Takes in everything that `other` has seen.
    pub fn join(&mut self, other: &Self) {
        for (actor, counter) in &other.0 {
            self.insert(Dot { actor: *actor, counter: *counter });
        }
    }

    /// Whether everything that `other` has seen was seen here too.
    #[must_use]
    pub fn includes(&self, other: &Self) -> bool {
        other.iter().all(|dot| self.contains(dot))
    }

    /// The highest dot of each actor, in the order of actors.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.0.iter().map(|(actor, counter)| Dot { actor: *actor, counter: *counter })
    }

    /// Whether anything of an actor was seen.
    #[must_use]
    pub fn knows(&self, actor: Actor) -> bool {
        self.0.contains_key(&actor)
    }

    /// Leaves out all other actors.
    pub fn retain(&mut self, kept: impl Fn(Actor) -> bool) {
        self.0.retain(|actor, _| kept(*actor));
    }

    /// The number of actors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was seen.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Dot> for VersionVector {
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut vector = Self::default();
        for dot in dots {
            vector.insert(dot);
        }
        vector
    }
}
