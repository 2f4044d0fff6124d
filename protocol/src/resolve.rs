//! How a person's decision about a conflict becomes part of an entry (DESIGN.md §2, `resolve`).

use crate::entry::{AccessSibling, Content, ContentSibling, Entry, Loser, Rank, TimesSibling, Value};
use crate::version::{Dot, VersionVector};
use crate::view::State;

/// What a person decided on, as it was shown to them.
#[derive(Clone, Copy, Debug)]
pub struct Decision<'a> {
    /// What the list took into account.
    pub seen: &'a VersionVector,
    /// The conflicts listed.
    pub listed: &'a [Loser],
    /// What the tree shows.
    pub current: Option<&'a Value>,
    /// The listed version that takes its place; none where the current one stays.
    pub instead: Option<&'a State>,
}

/// Writes the decision under `dot`: the kept value one above all that it supersedes; what was
/// listed, and lists that were seen, are dropped. What nobody saw stays.
#[must_use]
pub fn resolve(entry: &Entry, decision: &Decision<'_>, dot: Dot) -> Entry {
    let Decision { seen, listed, current, instead } = *decision;
    let mut entry = entry.clone();
    let above_listed = listed.iter().map(|l| l.rank).max().unwrap_or_default();
    let rank = entry.greatest_rank_in(seen).max(above_listed).above();
    let value = instead.map(|state| &state.value).or(current);
    let file = entry.content.values().filter(|s| s.content.value() == value).map(|s| (s.rank, s.file)).max();
    let file = file.map_or(dot, |(_, file)| file);
    entry.content.retain(|d, s| {
        let dropped = instead.is_some()
            || listed.iter().any(|l| l.dot == *d)
            || s.content.value() == value
            || s.content.value().is_none();
        !(seen.contains(*d) && dropped)
    });
    let content = value.map_or(Content::Absent { was: None }, |value| Content::Present(value.clone()));
    entry.content.insert(dot, ContentSibling { rank, paired: false, file, content });
    entry.losers.retain(|d, _| !seen.contains(*d));
    if let Some(state) = instead {
        mint_attributes(&mut entry, state, seen, (dot, rank, file));
    }
    entry.context.insert(dot);
    entry
}

fn mint_attributes(entry: &mut Entry, state: &State, seen: &VersionVector, (dot, rank, file): (Dot, Rank, Dot)) {
    if let Some(mtime) = state.mtime {
        entry.times.retain(|d, _| !seen.contains(*d));
        entry.times.insert(dot, TimesSibling { rank, of: state.value.clone(), mtime });
    }
    if let Some(access) = &state.access {
        let of = state.value.kind();
        entry.access.retain(|d, a| !seen.contains(*d) || a.of != of);
        entry.access.insert(dot, AccessSibling { rank, of, file, access: access.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Hash;
    use crate::mint::{Shown, mint};
    use crate::time::Time;
    use crate::version::{Actor, NodeId};
    use crate::view::{Surroundings, access_by_number, conflicts, view};

    fn dot(node: u8, counter: u64) -> Dot {
        Dot { actor: Actor { node: NodeId([node; 32]), start: 1 }, counter }
    }

    fn file(content: u8) -> State {
        State {
            value: Value::File { size: 1, hash: Hash([content; 32]) },
            mtime: Some(Time::new(i64::from(content), 0)),
            access: Some(access_by_number(0o600 + u32::from(content), 0, 0)),
        }
    }

    /// Two nodes wrote, each without the other's.
    fn conflict() -> Entry {
        let (a, _) = mint(None, &Shown::default(), Some(&file(1)), dot(1, 1), Rank(10), false);
        let (b, _) = mint(None, &Shown::default(), Some(&file(2)), dot(2, 1), Rank(20), false);
        a.merge(&b)
    }

    fn decided(entry: &Entry, instead: Option<&State>, by: Dot) -> Entry {
        let around = Surroundings::default();
        let listed = conflicts(entry, &around);
        let current = view(Some(entry), &around).map(|s| s.value);
        let seen = entry.context.clone();
        resolve(entry, &Decision { seen: &seen, listed: &listed, current: current.as_ref(), instead }, by)
    }

    #[test]
    fn keeping_the_current_empties_the_list_everywhere() {
        let entry = conflict();
        let kept = decided(&entry, None, dot(3, 1));
        assert_eq!(view(Some(&kept), &Surroundings::default()).map(|s| s.value), Some(file(2).value));
        assert_eq!(conflicts(&entry.merge(&kept), &Surroundings::default()), []);
        assert_eq!(view(Some(&kept), &Surroundings::default()), Some(file(2)));
    }

    #[test]
    fn keeping_a_vaulted_version_brings_it_back_with_its_attributes() {
        let entry = conflict();
        let kept = decided(&entry, Some(&file(1)), dot(3, 1));
        assert_eq!(view(Some(&entry.merge(&kept)), &Surroundings::default()), Some(file(1)));
        assert_eq!(conflicts(&kept, &Surroundings::default()), []);
    }

    #[test]
    fn a_version_that_came_later_stays_listed() {
        let entry = conflict();
        let (c, _) = mint(None, &Shown::default(), Some(&file(3)), dot(4, 1), Rank(5), false);
        let kept = decided(&entry, None, dot(3, 1)).merge(&c);
        let open = conflicts(&kept, &Surroundings::default());
        assert_eq!(open.iter().map(|l| l.value.clone()).collect::<Vec<_>>(), [file(3).value]);
    }
}
