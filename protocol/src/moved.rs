//! The rename of a whole directory as one unit (DESIGN.md §6): what is told of it ahead of its rows, and the rows that
//! follow from it.
//!
//! The rows are the truth, and are told as well. Whoever holds the same directory can carry the rename out before they
//! come, and derives them: they are the same on every node.

use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Hash, Rank};
use crate::mint::{self, Shown};
use crate::path::TreePath;
use crate::version::{Actor, Dot};
use crate::view::State;

/// The most paths of one unit: their rows are in memory at once.
pub const MOVED_PATHS_MAX: u64 = 16_384;

/// A directory that a user renamed.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Where it was.
    pub from: TreePath,
    /// Where it is.
    pub to: TreePath,
    /// Who writes the change.
    pub actor: Actor,
    /// The counter of the first dot: one for each path that appears, in the order of a walk, then one for each that goes.
    pub first: u64,
    /// How many paths there are, the directory's own among them.
    pub paths: u64,
    /// The rank of the change; raised above what it supersedes.
    pub rank: Rank,
    /// Sums up what was known of both places before: whoever comes to the same sum has the same directory.
    pub digest: Hash,
}

impl Moved {
    /// Whether there can be such a rename.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        let Self { from, to, first, paths, rank, .. } = self;
        let apart = from != to && !from.is_beneath(to) && !to.is_beneath(from);
        let counted = *first > 0 && (1..=MOVED_PATHS_MAX).contains(paths) && first.checked_add(paths * 2).is_some();
        !from.is_root() && !to.is_root() && apart && counted && rank.0 <= Rank::MAX.0
    }

    /// The dot of the nth path's appearance.
    #[must_use]
    pub const fn appears(&self, nth: u64) -> Dot {
        Dot { actor: self.actor, counter: self.first.saturating_add(nth) }
    }

    /// The dot of the nth path's departure.
    #[must_use]
    pub const fn goes(&self, nth: u64) -> Dot {
        Dot { actor: self.actor, counter: self.first.saturating_add(self.paths).saturating_add(nth) }
    }

    /// Where a path in the directory is now; none for one that is not in it, or gets too long.
    #[must_use]
    pub fn target(&self, path: &TreePath) -> Option<TreePath> {
        if path == &self.from {
            return Some(self.to.clone());
        }
        let rest = beneath(&self.from, path)?;
        TreePath::parse(&[self.to.as_bytes(), b"/", rest].concat()).ok()
    }
}

/// What follows the directory's own path in one beneath it.
fn beneath<'p>(dir: &TreePath, path: &'p TreePath) -> Option<&'p [u8]> {
    path.as_bytes().strip_prefix(dir.as_bytes())?.strip_prefix(b"/")
}

/// What is known of a path once `state` came there, and what its disk then shows; `there` is what was known of it.
#[must_use]
pub fn appear(there: Option<&Entry>, state: &State, dot: Dot, rank: Rank) -> (Entry, Shown) {
    let context = there.map(|entry| entry.context.clone()).unwrap_or_default();
    mint::mint(there, &Shown { context, state: None }, Some(state), dot, rank, false)
}

/// What is known of a path once `state` left it, and what its disk then shows.
#[must_use]
pub fn go(entry: &Entry, state: &State, dot: Dot, rank: Rank) -> (Entry, Shown) {
    let shown = Shown { context: entry.context.clone(), state: Some(state.clone()) };
    mint::mint(Some(entry), &shown, None, dot, rank, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::NodeId;

    fn moved(from: &str, to: &str) -> Moved {
        let path = |text: &str| TreePath::parse(text.as_bytes()).unwrap();
        let actor = Actor { node: NodeId([1; 32]), start: 1 };
        let (from, to) = (path(from), path(to));
        Moved { from, to, actor, first: 1, paths: 3, rank: Rank(5), digest: Hash::default() }
    }

    #[test]
    fn targets_lie_where_the_directory_went() {
        let path = |text: &str| TreePath::parse(text.as_bytes()).unwrap();
        let moved = moved("a/b", "c");
        assert_eq!(moved.target(&path("a/b")), Some(path("c")));
        assert_eq!(moved.target(&path("a/b/x/y")), Some(path("c/x/y")));
        assert_eq!(moved.target(&path("a/bb")), None);
        assert_eq!((moved.appears(2).counter, moved.goes(0).counter), (3, 4));
    }

    #[test]
    fn what_no_rename_can_be_is_refused() {
        assert!(moved("a", "b").is_possible());
        for (from, to) in [("a", "a"), ("a", "a/b"), ("a/b", "a")] {
            assert!(!moved(from, to).is_possible(), "{from} {to}");
        }
        let fits = moved("a", "b");
        assert!(!Moved { from: TreePath::ROOT, ..fits.clone() }.is_possible());
        assert!(!Moved { to: TreePath::ROOT, ..fits.clone() }.is_possible());
        assert!(!Moved { first: 0, ..fits.clone() }.is_possible());
        assert!(!Moved { first: u64::MAX - 3, ..fits.clone() }.is_possible());
        assert!(!Moved { paths: 0, ..fits.clone() }.is_possible());
        assert!(!Moved { paths: MOVED_PATHS_MAX + 1, ..fits.clone() }.is_possible());
        assert!(!Moved { rank: Rank(i64::MAX), ..fits }.is_possible());
    }
}
