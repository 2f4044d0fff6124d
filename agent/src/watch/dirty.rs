//! The bounded set of what changed and was not handed out yet.
//!
//! Folds upwards instead of growing: names into their directory, directories into "everything".

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;

use pleach_protocol::path::TreePath;

use super::Fact;

/// Dirty names, directories and subtrees that are kept.
const ITEMS_MAX: usize = 65_536;
/// Bytes of their paths: deep trees have long ones.
const BYTES_MAX: usize = 32 * 1024 * 1024;
/// Dirty names of one directory before it is looked at as a whole.
const NAMES_MAX: usize = 4_096;
/// The same, once all is full.
const NAMES_WHEN_FULL_MAX: usize = 16;
/// Barrier names that are kept; whoever waits for one beyond these must write another.
const BARRIERS_MAX: usize = 4_096;

const _: () = assert!(NAMES_MAX < ITEMS_MAX && NAMES_WHEN_FULL_MAX < NAMES_MAX);

/// What an event says of a path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Touch {
    pub(super) content: bool,
    pub(super) closed: bool,
}

/// The dirty names of one directory.
#[derive(Debug)]
enum Names {
    Some(BTreeMap<Box<[u8]>, Touch>),
    All,
}

impl Names {
    fn items(&self) -> usize {
        match self {
            Self::Some(names) => names.len(),
            Self::All => 1,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Some(names) => names.keys().map(|name| name.len()).sum(),
            Self::All => 0,
        }
    }
}

/// What changed since the last [`DirtySet::take`].
#[derive(Debug, Default)]
pub(super) struct DirtySet {
    root: Option<Touch>,
    dirs: HashMap<TreePath, Names>,
    subtrees: BTreeSet<TreePath>,
    barriers: BTreeSet<Vec<u8>>,
    items: usize,
    bytes: usize,
    lost: bool,
    folded: u64,
}

impl DirtySet {
    pub(super) fn is_empty(&self) -> bool {
        !self.lost && self.root.is_none() && self.items == 0 && self.barriers.is_empty()
    }

    /// How often the set was too full to keep.
    pub(super) fn folded(&self) -> u64 {
        self.folded
    }

    /// Marks the root itself.
    pub(super) fn root(&mut self, touch: Touch) {
        self.root = Some(touch);
    }

    /// Marks `name` in `dir`.
    pub(super) fn name(&mut self, dir: &TreePath, name: &[u8], touch: Touch) {
        if self.lost {
            return;
        }
        if !self.dirs.contains_key(dir) {
            self.bytes += dir.as_bytes().len();
            self.dirs.insert(dir.clone(), Names::Some(BTreeMap::new()));
        }
        let Some(Names::Some(names)) = self.dirs.get_mut(dir) else { return };
        if let Some(known) = names.get_mut(name) {
            known.content |= touch.content;
            // A write after a close: somebody has it open again, or still.
            known.closed = touch.closed || (known.closed && !touch.content);
            return;
        }
        names.insert(name.into(), touch);
        self.items += 1;
        self.bytes += name.len();
        if names.len() > NAMES_MAX {
            self.fold(dir);
        }
        self.check_full();
    }

    /// Marks `dir` and everything beneath.
    pub(super) fn subtree(&mut self, dir: &TreePath) {
        let covered = self.subtrees.contains(&TreePath::ROOT) || dir.parents().any(|p| self.subtrees.contains(&p));
        if self.lost || covered || !self.subtrees.insert(dir.clone()) {
            return;
        }
        self.items += 1;
        self.bytes += dir.as_bytes().len();
        self.check_full();
    }

    /// Marks everything.
    pub(super) fn lose(&mut self) {
        *self = Self { lost: true, barriers: mem::take(&mut self.barriers), folded: self.folded, ..Self::default() };
    }

    /// Adds a marker's name.
    pub(super) fn barrier(&mut self, name: &[u8]) {
        if self.barriers.len() < BARRIERS_MAX {
            self.barriers.insert(name.to_vec());
        }
    }

    /// Hands everything out and is empty again.
    pub(super) fn take(&mut self) -> Vec<Fact> {
        let taken = mem::take(self);
        self.folded = taken.folded;
        let mut facts = Vec::with_capacity(taken.items + taken.barriers.len() + 2);
        facts.extend(taken.lost.then_some(Fact::Lost));
        facts.extend(taken.subtrees.into_iter().map(|dir| Fact::Subtree { dir }));
        let root = taken.root.filter(|_| !taken.lost);
        facts.extend(root.map(|touch| Fact::Path {
            path: TreePath::ROOT,
            content: touch.content,
            closed: touch.closed,
        }));
        for (dir, names) in taken.dirs {
            match names {
                Names::All => facts.push(Fact::Dir { dir }),
                Names::Some(names) => facts.extend(names.into_iter().filter_map(|(name, touch)| {
                    let path = dir.join(&name).ok()?;
                    Some(Fact::Path { path, content: touch.content, closed: touch.closed })
                })),
            }
        }
        facts.extend(taken.barriers.into_iter().map(|name| Fact::Barrier { name }));
        facts
    }

    fn fold(&mut self, dir: &TreePath) {
        if let Some(names) = self.dirs.get_mut(dir) {
            self.items -= names.items();
            self.bytes -= names.bytes();
            *names = Names::All;
            self.items += 1;
        }
    }

    fn check_full(&mut self) {
        if self.items <= ITEMS_MAX && self.bytes <= BYTES_MAX {
            return;
        }
        let large = |names: &Names| names.items() > NAMES_WHEN_FULL_MAX;
        let dirs: Vec<_> = self.dirs.iter().filter(|(_, names)| large(names)).map(|(dir, _)| dir.clone()).collect();
        for dir in &dirs {
            self.fold(dir);
        }
        if self.items > ITEMS_MAX / 2 || self.bytes > BYTES_MAX / 2 {
            self.lose();
            self.folded += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(path: &str) -> TreePath {
        TreePath::parse(path.as_bytes()).unwrap()
    }

    fn fill(set: &mut DirtySet, dir: &str, count: usize) {
        for n in 0..count {
            set.name(&p(dir), format!("{n}").as_bytes(), Touch::default());
        }
    }

    #[test]
    fn a_write_after_a_close_is_not_closed() {
        let mut set = DirtySet::default();
        let (write, close) = (Touch { content: true, closed: false }, Touch { content: true, closed: true });
        for (touches, closed) in [
            (&[write, close][..], true),
            (&[write, close, write], false),
            (&[close, Touch::default()], true),
            (&[write, Touch::default()], false),
        ] {
            touches.iter().for_each(|touch| set.name(&TreePath::ROOT, b"f", *touch));
            assert_eq!(set.take(), [Fact::Path { path: p("f"), content: true, closed }]);
            assert!(set.is_empty());
        }
    }

    #[test]
    fn a_full_directory_folds() {
        let mut set = DirtySet::default();
        fill(&mut set, "d", NAMES_MAX);
        assert_eq!(set.items, NAMES_MAX);
        fill(&mut set, "d", NAMES_MAX + 1);
        assert_eq!((set.items, set.bytes), (1, 1));
        fill(&mut set, "d", 9);
        assert_eq!(set.take(), [Fact::Dir { dir: p("d") }]);
    }

    #[test]
    fn a_full_set_folds_directories_before_it_gives_up() {
        let mut set = DirtySet::default();
        for dir in 0..2_000 {
            fill(&mut set, &format!("d{dir}"), 100);
        }
        let facts = set.take();
        assert!(facts.iter().any(|fact| matches!(fact, Fact::Dir { .. })) && !facts.contains(&Fact::Lost));
        let seen: BTreeSet<_> = facts
            .iter()
            .map(|fact| match fact {
                Fact::Dir { dir } => dir.clone(),
                Fact::Path { path, .. } => path.parent().unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(seen.len(), 2_000);
    }

    #[test]
    fn gives_up_when_nothing_folds_and_keeps_barriers() {
        let mut set = DirtySet::default();
        set.barrier(b"b");
        for dir in 0..=ITEMS_MAX {
            fill(&mut set, &format!("d{dir}"), 1);
        }
        assert_eq!((set.folded(), set.items, set.bytes), (1, 0, 0));
        assert_eq!(set.take(), [Fact::Lost, Fact::Barrier { name: b"b".to_vec() }]);
        assert!(set.is_empty());
    }

    #[test]
    fn long_paths_are_bounded_by_bytes() {
        let mut set = DirtySet::default();
        let long = vec!["n".repeat(255); 60].join("/");
        for dir in 0..BYTES_MAX / (255 * 60) + 1 {
            set.subtree(&p(&format!("{dir}/{long}")));
        }
        assert_eq!(set.take(), [Fact::Lost]);
    }

    #[test]
    fn a_subtree_covers_those_beneath() {
        let mut set = DirtySet::default();
        ["a", "a/b", "ab", "a/b/c"].iter().for_each(|dir| set.subtree(&p(dir)));
        assert_eq!(set.take(), [Fact::Subtree { dir: p("a") }, Fact::Subtree { dir: p("ab") }]);
    }
}
