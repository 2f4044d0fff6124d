//! Directories that two nodes hold alike, though each gave its rows dots of its own: two trees that were equal when they
//! met (DESIGN.md §6).
//!
//! A peer tells a digest of each directory. Where ours is the same, its rows need not travel: the dots under which they
//! stand here are all that the peer lacks.

use crate::codec;
use crate::entry::{AccessSibling, ContentSibling, Entry};
use crate::path::TreePath;
use crate::sorted::SortedMap;
use crate::version::{Dot, VersionVector};

/// The most paths of a directory that is told so.
pub const ALIKE_PATHS_MAX: usize = 4_096;
/// The most dots of one.
pub const ALIKE_DOTS_MAX: usize = 4_096;
/// The most digests that a peer tells of one tree.
pub const DIGESTS_MAX: usize = 1 << 17;

/// What a directory's rows come to. Each is the beginning of a BLAKE3: of the path, and of what is known of the paths in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DirDigest {
    /// Of the directory's path.
    pub dir: [u8; 16],
    /// Of its rows.
    pub digest: [u8; 16],
}

/// A directory whose rows the receiver has, but for their dots.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Alike {
    /// The directory.
    pub dir: TreePath,
    /// What its rows come to on both sides.
    pub digest: [u8; 16],
    /// The dots of each path in it of which anything is known, by name.
    pub dots: Vec<Vec<Dot>>,
}

/// What an entry says that none but pairings wrote, all of them the same: the bytes are equal on two nodes that found the
/// same there, whatever their dots. None for any other entry.
#[must_use]
pub fn found(entry: &Entry) -> Option<Vec<u8>> {
    let (dot, content) = entry.content.iter().next()?;
    let dots = || entry.content.keys();
    let no_history = entry.losers.is_empty() && entry.context.iter().eq(dots().copied());
    let content_is_one = entry.content.iter().all(|(dot, sibling)| {
        sibling.paired && sibling.file == *dot && (sibling.rank, &sibling.content) == (content.rank, &content.content)
    });
    let time = entry.times.get(dot);
    let time_is_one = entry.times.values().all(|sibling| Some(sibling) == time);
    let access = entry.access.get(dot);
    let access_is_one = entry.access.iter().all(|(dot, sibling)| {
        let first = access.map(|first| (first.rank, first.of, &first.access));
        sibling.file == *dot && Some((sibling.rank, sibling.of, &sibling.access)) == first
    });
    let complete =
        (time.is_none() || entry.times.keys().eq(dots())) && (access.is_none() || entry.access.keys().eq(dots()));
    if !(no_history && content_is_one && time_is_one && access_is_one && complete) {
        return None;
    }
    let content = (content.rank, &content.content);
    let time = time.map(|sibling| (sibling.rank, &sibling.of, sibling.mtime));
    let access = access.map(|sibling| (sibling.rank, sibling.of, &sibling.access));
    Some(codec::encode(&(content, time, access)))
}

/// The same entry under other dots; none where it is not one that [`found`] knows, or the dots are none of an entry's.
#[must_use]
pub fn under(entry: &Entry, dots: &[Dot]) -> Option<Entry> {
    found(entry)?;
    let (dot, content) = entry.content.iter().next()?;
    let (time, access) = (entry.times.get(dot), entry.access.get(dot));
    let context: VersionVector = dots.iter().copied().collect();
    if dots.is_empty() || context.len() < dots.len() {
        // None at all, or an actor named twice.
        return None;
    }
    let named = |dot: &Dot| ContentSibling { file: *dot, ..content.clone() };
    Some(Entry {
        context,
        content: dots.iter().map(|dot| (*dot, named(dot))).collect(),
        times: with_each(dots, time, |_, time| time.clone()),
        access: with_each(dots, access, |dot, access| AccessSibling { file: dot, ..access.clone() }),
        losers: SortedMap::new(),
    })
}

fn with_each<T>(dots: &[Dot], sibling: Option<&T>, named: impl Fn(Dot, &T) -> T) -> SortedMap<Dot, T> {
    sibling.map(|sibling| dots.iter().map(|dot| (*dot, named(*dot, sibling))).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Hash, Rank, Value};
    use crate::mint::{Shown, mint};
    use crate::time::Time;
    use crate::version::{Actor, NodeId};
    use crate::view::{State, access_by_number};

    fn dot(node: u8, counter: u64) -> Dot {
        Dot { actor: Actor { node: NodeId([node; 32]), start: 1 }, counter }
    }

    fn state(content: u8) -> State {
        State {
            value: Value::File { size: 1, hash: Hash([content; 32]) },
            mtime: Some(Time::new(i64::from(content), 0)),
            access: Some(access_by_number(0o644, 0, 0)),
        }
    }

    fn paired(node: u8, counter: u64, state: &State) -> Entry {
        mint(None, &Shown::default(), Some(state), dot(node, counter), Rank(7), true).0
    }

    #[test]
    fn what_two_nodes_found_alike_is_the_same_and_merges_to_the_same() {
        let state = state(1);
        let (a, b) = (paired(1, 5, &state), paired(2, 9, &state));
        assert_eq!((found(&a), found(&a).is_some()), (found(&b), true));
        let both = a.merge(&b);
        assert_eq!(found(&both), found(&a));
        // What each makes of the other's dots is what the other has.
        assert_eq!(under(&a, &[dot(2, 9)]), Some(b.clone()));
        assert_eq!(under(&b, &[dot(1, 5)]), Some(a.clone()));
        assert_eq!(under(&a, &[dot(1, 5), dot(2, 9)]), Some(both.clone()));
        assert_eq!(under(&both, &[dot(3, 1)]), Some(paired(3, 1, &state)));
    }

    #[test]
    fn anything_else_is_not_taken_for_it() {
        let first = paired(1, 5, &state(1));
        for other in [
            State { mtime: Some(Time::new(2, 0)), ..state(1) },
            State { access: Some(access_by_number(0o600, 0, 0)), ..state(1) },
            state(2),
        ] {
            let other = paired(2, 9, &other);
            assert!(found(&other).is_some_and(|bytes| Some(bytes) != found(&first)));
            assert_eq!(found(&first.merge(&other)), None);
        }
        let shown = Shown { context: first.context.clone(), state: Some(state(1)) };
        for change in [Some(state(2)), Some(State { mtime: Some(Time::new(9, 0)), ..state(1) }), None] {
            let (changed, _) = mint(Some(&first), &shown, change.as_ref(), dot(1, 6), Rank(9), false);
            assert_eq!(found(&changed), None, "{change:?}");
            assert_eq!(found(&first.merge(&changed)), None, "{change:?}");
        }
        let created = mint(None, &Shown::default(), Some(&state(1)), dot(1, 5), Rank(7), false).0;
        assert_eq!((found(&created), found(&Entry::default())), (None, None));
        // Seen and gone: a context that knows more than is there.
        let mut knows_more = first.clone();
        knows_more.context.insert(dot(3, 1));
        assert_eq!(found(&knows_more), None);
        for dots in [&[][..], &[dot(2, 1), dot(2, 2)]] {
            assert_eq!(under(&first, dots), None);
        }
    }
}
