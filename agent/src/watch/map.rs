//! Which watch stands for which directory: parent and name, so that a rename moves a whole subtree.
//!
//! Every place in the map was true on disk at some moment (a watch was just added there). What
//! left its place since then and was not found elsewhere is *detached*: it has no path.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pleach_protocol::path::TreePath;

use super::kernel::Wd;

#[derive(Debug)]
struct Node<W> {
    watch: W,
    place: Option<(Wd, Arc<[u8]>)>,
    children: BTreeMap<Arc<[u8]>, Wd>,
}

/// Where a watch came to stand, see [`WatchMap::put`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Put {
    /// Its directory was not known.
    Fresh,
    /// It was known elsewhere, or detached.
    Moved,
    /// It was known here.
    Same,
    /// It cannot stand here: the map says that `parent` lies beneath it, or does not know
    /// `parent`. Only a race of several renames leads to this.
    Contradiction,
}

/// All watches of a tree.
#[derive(Debug)]
pub(super) struct WatchMap<W> {
    nodes: HashMap<Wd, Node<W>>,
    root: Option<Wd>,
    detached: BTreeSet<Wd>,
}

impl<W> Default for WatchMap<W> {
    fn default() -> Self {
        Self { nodes: HashMap::new(), root: None, detached: BTreeSet::new() }
    }
}

impl<W> WatchMap<W> {
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn is_root(&self, wd: Wd) -> bool {
        self.root == Some(wd)
    }

    pub(super) fn contains(&self, wd: Wd) -> bool {
        self.nodes.contains_key(&wd)
    }

    pub(super) fn is_detached(&self, wd: Wd) -> bool {
        self.detached.contains(&wd)
    }

    pub(super) fn child(&self, parent: Wd, name: &[u8]) -> Option<Wd> {
        self.nodes.get(&parent)?.children.get(name).copied()
    }

    /// The names of the watched directories in `wd`.
    pub(super) fn child_names(&self, wd: Wd) -> Vec<Arc<[u8]>> {
        self.nodes.get(&wd).map(|node| node.children.keys().cloned().collect()).unwrap_or_default()
    }

    /// Parent and name.
    pub(super) fn place(&self, wd: Wd) -> Option<(Wd, Arc<[u8]>)> {
        self.nodes.get(&wd)?.place.clone()
    }

    /// The path, unless it is detached or beneath something detached, not known, or too long.
    pub(super) fn path(&self, wd: Wd) -> Option<TreePath> {
        let mut names = Vec::new();
        let mut at = wd;
        while let Some((parent, name)) = &self.nodes.get(&at)?.place {
            names.push(name);
            at = *parent;
        }
        if !self.is_root(at) {
            return None;
        }
        if names.is_empty() {
            return Some(TreePath::ROOT);
        }
        names.reverse();
        TreePath::parse(&names.iter().map(AsRef::as_ref).collect::<Vec<&[u8]>>().join(&b'/')).ok()
    }

    /// Every directory that has a path.
    pub(super) fn paths(&self) -> Vec<(Wd, TreePath)> {
        self.nodes.keys().filter_map(|wd| Some((*wd, self.path(*wd)?))).collect()
    }

    /// Makes `watch` the root's.
    pub(super) fn put_root(&mut self, wd: Wd, watch: W) -> Wd {
        self.nodes.insert(wd, Node { watch, place: None, children: BTreeMap::new() });
        self.root = Some(wd);
        wd
    }

    /// Places a watch that was just added at `name` in `parent`; what stood there is detached.
    pub(super) fn put(&mut self, parent: Wd, name: &[u8], (wd, watch): (Wd, W)) -> Put {
        if self.child(parent, name) == Some(wd) {
            return Put::Same;
        }
        if !self.nodes.contains_key(&parent) || self.is_at_or_above(wd, parent) {
            return Put::Contradiction;
        }
        if let Some(occupant) = self.child(parent, name) {
            self.detach(occupant);
        }
        let name: Arc<[u8]> = name.into();
        let put = if self.contains(wd) { Put::Moved } else { Put::Fresh };
        self.detach(wd);
        self.detached.remove(&wd);
        let node = self.nodes.entry(wd).or_insert(Node { watch, place: None, children: BTreeMap::new() });
        node.place = Some((parent, name.clone()));
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.insert(name, wd);
        }
        put
    }

    /// Takes a directory from its place; its subtree stays beneath it.
    pub(super) fn detach(&mut self, wd: Wd) {
        let Some((parent, name)) = self.nodes.get_mut(&wd).and_then(|node| node.place.take()) else { return };
        if let Some(parent) = self.nodes.get_mut(&parent) {
            parent.children.remove(&name);
        }
        self.detached.insert(wd);
    }

    /// Forgets a directory and everything beneath it, and returns their watches.
    pub(super) fn remove(&mut self, wd: Wd) -> Vec<W> {
        self.detach(wd);
        self.detached.remove(&wd);
        let mut watches = Vec::new();
        let mut todo = vec![wd];
        while let Some(wd) = todo.pop() {
            if let Some(node) = self.nodes.remove(&wd) {
                todo.extend(node.children.values());
                watches.push(node.watch);
            }
        }
        watches
    }

    /// The watches that `other` does not have.
    pub(super) fn not_in(self, other: &Self) -> impl Iterator<Item = W> {
        self.nodes.into_iter().filter(|(wd, _)| !other.contains(*wd)).map(|(_, node)| node.watch)
    }

    fn is_at_or_above(&self, wd: Wd, of: Wd) -> bool {
        let mut at = Some(of);
        while let Some(here) = at {
            if here == wd {
                return true;
            }
            at = self.nodes.get(&here).and_then(|node| node.place.as_ref()).map(|(parent, _)| *parent);
        }
        false
    }
}
