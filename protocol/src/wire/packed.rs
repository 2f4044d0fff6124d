//! Entries as they travel: actors by number, and every bound checked on the way in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::entry::{
    Access, AccessSibling, Content, ContentSibling, Entry, LOSERS_MAX, Loser, Rank, SYMLINK_BYTES_MAX, TimesSibling,
    Value, ValueKind,
};
use crate::time::Time;
use crate::version::{Actor, Dot, VersionVector};

/// Values of one register that are taken from a peer.
const SIBLINGS_MAX: usize = 1024;

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

/// A loser with its dot by number.
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

/// Unpacks and checks an entry.
///
/// # Errors
/// The first rule that it breaks.
pub fn unpack(packed: PackedEntry, actors: &[ActorRow]) -> Result<Entry, EntryError> {
    let dot = |(number, counter): Packed| {
        let row = usize::try_from(number).ok().and_then(|n| actors.get(n)).ok_or(EntryError("an unknown actor"))?;
        if counter == 0 { Err(EntryError("a counter of 0")) } else { Ok(Dot { actor: row.actor, counter }) }
    };
    let context: VersionVector = packed.context.into_iter().map(dot).collect::<Result<_, _>>()?;
    let own = |packed: Packed| {
        let dot = dot(packed)?;
        if context.contains(dot) { Ok(dot) } else { Err(EntryError("a value that its context has not seen")) }
    };
    let sizes = [packed.content.len(), packed.times.len(), packed.access.len(), packed.losers.len()];
    if context.is_empty() || sizes.iter().any(|size| *size > SIBLINGS_MAX) {
        return Err(EntryError("no context, or too many values"));
    }
    let mut content = BTreeMap::new();
    for (d, rank, paired, file, value) in packed.content {
        match &value {
            Content::Absent { was: Some(value) } | Content::Present(value) => check_value(value)?,
            Content::Absent { was: None } => {}
        }
        content.insert(own(d)?, ContentSibling { rank: check_rank(rank)?, paired, file: dot(file)?, content: value });
    }
    let mut times = BTreeMap::new();
    for (d, rank, of, mtime) in packed.times {
        check_value(&of)?;
        if mtime.nanos >= 1_000_000_000 {
            return Err(EntryError("nanoseconds beyond a second"));
        }
        times.insert(own(d)?, TimesSibling { rank: check_rank(rank)?, of, mtime });
    }
    let mut access = BTreeMap::new();
    for (d, rank, of, file, value) in packed.access {
        if value.mode > 0o7777 || value.owner.id == u32::MAX || value.group.id == u32::MAX {
            return Err(EntryError("a mode or an owner that does not exist"));
        }
        access.insert(own(d)?, AccessSibling { rank: check_rank(rank)?, of, file: dot(file)?, access: value });
    }
    let mut losers = BTreeMap::new();
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
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Hash;
    use crate::mint::{Shown, mint};
    use crate::version::NodeId;
    use crate::view::{State, access_by_number};

    fn entry() -> Entry {
        let dot = |n: u8| Dot { actor: Actor { node: NodeId([n; 32]), start: 1 }, counter: 1 };
        let state = |n: u8| State {
            value: Value::File { size: 3, hash: Hash([n; 32]) },
            mtime: Some(Time::new(5, 6)),
            access: Some(access_by_number(0o644, 1, 2)),
        };
        let (a, _) = mint(None, &Shown::default(), Some(&state(1)), dot(1), Rank(10), false);
        let (b, _) = mint(None, &Shown::default(), Some(&state(2)), dot(2), Rank(11), false);
        let both = a.merge(&b);
        let shown = Shown { context: both.context.clone(), state: Some(state(2)) };
        mint(Some(&both), &shown, Some(&state(3)), dot(3), Rank(12), false).0
    }

    fn packed(entry: &Entry) -> (PackedEntry, Vec<ActorRow>) {
        let mut actors: Vec<ActorRow> = Vec::new();
        let packed = pack(entry, &mut |actor| {
            let at = actors.iter().position(|r| r.actor == actor).unwrap_or_else(|| {
                actors.push(ActorRow { actor, name: String::new() });
                actors.len() - 1
            });
            u32::try_from(at).unwrap()
        });
        (packed, actors)
    }

    #[test]
    fn an_entry_comes_back_as_it_was() {
        let entry = entry();
        let (packed, actors) = packed(&entry);
        assert_eq!(unpack(packed, &actors), Ok(entry));
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        let (good, actors) = packed(&entry());
        let broken = |change: &dyn Fn(&mut PackedEntry)| {
            let mut bad = good.clone();
            change(&mut bad);
            unpack(bad, &actors).is_err()
        };
        assert!(broken(&|e| e.context.clear()));
        assert!(broken(&|e| e.context[0].1 = 0));
        assert!(broken(&|e| e.content[0].0.0 = 99));
        assert!(broken(&|e| e.content[0].0.1 = 99));
        assert!(broken(&|e| e.content[0].1 = Rank(i64::MAX)));
        assert!(broken(&|e| e.times[0].3.nanos = 1_000_000_000));
        assert!(broken(&|e| e.access[0].4.mode = 0o10000));
        assert!(broken(&|e| e.losers[0].1 = vec![e.losers[0].1[0].clone(); LOSERS_MAX + 1]));
        assert!(broken(&|e| {
            e.times[0].2 = Value::Symlink { target: b"a\0b".to_vec() };
        }));
    }
}
