//! Entries as they travel: actors by number, and every bound checked on the way in.

use serde::{Deserialize, Serialize};

use crate::entry::{
    Access, AccessSibling, Content, ContentSibling, Entry, LOSERS_MAX, Loser, Principal, Rank, SYMLINK_BYTES_MAX,
    TimesSibling, Value, ValueKind,
};
use crate::sorted::SortedMap;
use crate::time::Time;
use crate::version::{Actor, Dot, VersionVector};

/// Values of one register that are taken from a peer.
pub const SIBLINGS_MAX: usize = 1024;
/// Actors of one context that are taken from a peer.
pub const CONTEXT_MAX: usize = 4096;
/// The longest name of a user or a group that is taken from a peer, in bytes. Source: `LOGIN_NAME_MAX`.
pub const PRINCIPAL_BYTES_MAX: usize = 256;
/// The file type bits of a mode. Source: inode(7), `S_IFMT`.
const KIND_BITS: u32 = 0o170_000;

/// An actor and the display name of its node.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ActorRow {
    /// The actor.
    pub actor: Actor,
    /// Its node's name, empty where it was never heard.
    pub name: String,
}

/// A dot with its actor by number.
type Packed = (u32, u64);

/// A loser.
type PackedLoser = (Packed, Rank, Value);

/// An [`Entry`] with actors by number.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct PackedEntry {
    context: Vec<Packed>,
    content: Vec<(Packed, Rank, bool, Packed, Content)>,
    times: Vec<(Packed, Rank, Value, Time)>,
    access: Vec<(Packed, Rank, ValueKind, Packed, Access)>,
    losers: Vec<(Packed, Vec<PackedLoser>)>,
}

/// Says what of an entry from a peer breaks the rules.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("an entry breaks the rules: {0}")]
pub struct EntryError(&'static str);

/// Packs an entry; `number` gives each actor its number.
pub fn pack(entry: &Entry, number: &mut impl FnMut(Actor) -> u32) -> PackedEntry {
    let mut dot = |d: Dot| (number(d.actor), d.counter);
    PackedEntry {
        context: entry.context.iter().map(&mut dot).collect(),
        content: entry
            .content
            .iter()
            .map(|(d, s)| (dot(*d), s.rank, s.paired, dot(s.file), s.content.clone()))
            .collect(),
        times: entry.times.iter().map(|(d, s)| (dot(*d), s.rank, s.of.clone(), s.mtime)).collect(),
        access: entry.access.iter().map(|(d, s)| (dot(*d), s.rank, s.of, dot(s.file), s.access.clone())).collect(),
        losers: entry
            .losers
            .iter()
            .map(|(d, l)| (dot(*d), l.iter().map(|l| (dot(l.dot), l.rank, l.value.clone())).collect()))
            .collect(),
    }
}

/// Unpacks and checks an entry; `actor` knows the actors by their numbers.
///
/// # Errors
/// The first rule that it breaks.
pub fn unpack(packed: PackedEntry, actor: &impl Fn(u32) -> Option<Actor>) -> Result<Entry, EntryError> {
    let dot = |(number, counter): Packed| {
        let actor = actor(number).ok_or(EntryError("an unknown actor"))?;
        if counter == 0 { Err(EntryError("a counter of 0")) } else { Ok(Dot { actor, counter }) }
    };
    if packed.context.len() > CONTEXT_MAX {
        return Err(EntryError("too many actors"));
    }
    let context: VersionVector = packed.context.into_iter().map(dot).collect::<Result<_, _>>()?;
    let own = |packed: Packed| {
        let dot = dot(packed)?;
        if context.contains(dot) { Ok(dot) } else { Err(EntryError("a value that its context has not seen")) }
    };
    let sizes = [packed.content.len(), packed.times.len(), packed.access.len(), packed.losers.len()];
    if context.is_empty() || sizes.iter().any(|size| *size > SIBLINGS_MAX) {
        return Err(EntryError("no context, or too many values"));
    }
    let mut content = SortedMap::new();
    for (d, rank, paired, file, value) in packed.content {
        match &value {
            Content::Absent { was: Some(value) } | Content::Present(value) => check_value(value)?,
            Content::Absent { was: None } => {}
        }
        content.insert(own(d)?, ContentSibling { rank: check_rank(rank)?, paired, file: dot(file)?, content: value });
    }
    let mut times = SortedMap::new();
    for (d, rank, of, mtime) in packed.times {
        check_value(&of)?;
        if mtime.nanos >= 1_000_000_000 {
            return Err(EntryError("nanoseconds beyond a second"));
        }
        times.insert(own(d)?, TimesSibling { rank: check_rank(rank)?, of, mtime });
    }
    let mut access = SortedMap::new();
    for (d, rank, of, file, value) in packed.access {
        check_access(&value)?;
        access.insert(own(d)?, AccessSibling { rank: check_rank(rank)?, of, file: dot(file)?, access: value });
    }
    let mut losers = SortedMap::new();
    for (d, list) in packed.losers {
        if list.len() > LOSERS_MAX {
            return Err(EntryError("too many losers"));
        }
        let list = list.into_iter().map(|(d, rank, value)| {
            check_value(&value)?;
            Ok(Loser { rank: check_rank(rank)?, dot: dot(d)?, value })
        });
        losers.insert(own(d)?, list.collect::<Result<Vec<_>, EntryError>>()?);
    }
    Ok(Entry { context, content, times, access, losers })
}

const fn check_rank(rank: Rank) -> Result<Rank, EntryError> {
    if rank.0 > Rank::MAX.0 { Err(EntryError("a rank beyond all times")) } else { Ok(rank) }
}

fn check_value(value: &Value) -> Result<(), EntryError> {
    match value {
        Value::Symlink { target } if target.is_empty() || target.len() > SYMLINK_BYTES_MAX || target.contains(&0) => {
            Err(EntryError("a link that no file system holds"))
        }
        Value::Special { kind, .. } if kind & !KIND_BITS != 0 => Err(EntryError("a kind that does not exist")),
        _ => Ok(()),
    }
}

fn check_access(access: &Access) -> Result<(), EntryError> {
    let bad_name = |name: &[u8]| name.is_empty() || name.len() > PRINCIPAL_BYTES_MAX || name.contains(&0);
    let bad = |p: &Principal| p.id == u32::MAX || p.name.as_deref().is_some_and(bad_name);
    if access.mode > 0o7777 || bad(&access.owner) || bad(&access.group) {
        return Err(EntryError("a mode or an owner that does not exist"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
