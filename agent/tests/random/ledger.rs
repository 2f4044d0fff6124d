//! What the users of all nodes did, as far as a checker must know it.
//!
//! A content is owed as long as there is a node whose tree held it and whose own users did not put
//! something else in its place: there it can only have gone by a sync, which must have vaulted it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// One content that a user wrote whole, or that a tree held when all were alike.
#[derive(Clone, Debug)]
pub struct Content {
    /// How it came to be.
    pub origin: String,
    /// The nodes whose trees held it and whose users did not replace it.
    pub holders: BTreeSet<usize>,
    /// It was brought back from a vault once.
    pub restored: bool,
}

/// What happened since the last check, and the contents of all time.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The number of the operation under way.
    pub now: usize,
    /// Counts what is entered.
    clock: usize,
    /// By BLAKE3.
    pub contents: BTreeMap<String, Content>,
    /// Paths that users took away: when, by the clock, and on which node.
    pub removed: BTreeMap<PathBuf, Vec<(usize, usize)>>,
    /// Paths at which the last thing that happened was that a new content was put there, and when.
    pub fresh: BTreeMap<PathBuf, usize>,
    /// Paths that users made in any way.
    pub made: BTreeSet<PathBuf>,
    /// Paths at which users may have brought something into being.
    pub tried: BTreeSet<PathBuf>,
    /// Nodes whose store was lost.
    pub lost: BTreeSet<usize>,
    /// A file that has several names was written to.
    pub through_links: bool,
    /// Paths that users ever took away.
    pub ever_removed: BTreeSet<PathBuf>,
}

impl Ledger {
    /// A user of a node put a new content at a path.
    pub fn wrote(&mut self, node: usize, path: &Path, hash: &str) {
        let origin = format!("operation {} on node {node} at {}", self.now, path.display());
        let content = Content { origin, holders: BTreeSet::new(), restored: false };
        self.contents.entry(hash.to_owned()).or_insert(content).holders.insert(node);
        self.clock += 1;
        self.fresh.insert(path.to_owned(), self.clock);
        self.made.insert(path.to_owned());
    }

    /// A user of a node put something else in the place of a content.
    pub fn superseded(&mut self, node: usize, hash: &str) {
        if let Some(content) = self.contents.get_mut(hash) {
            content.holders.remove(&node);
        }
    }

    /// A user of a node may have put something else in the place of anything.
    pub fn unsure(&mut self, node: usize) {
        self.contents.values_mut().for_each(|content| {
            content.holders.remove(&node);
        });
    }

    /// A user of a node took a path away.
    pub fn removed(&mut self, node: usize, path: &Path) {
        self.clock += 1;
        self.removed.entry(path.to_owned()).or_default().push((self.clock, node));
        self.ever_removed.insert(path.to_owned());
    }

    /// A path came to be by other means than writing a new content there.
    pub fn made(&mut self, path: &Path) {
        self.fresh.remove(path);
        self.made.insert(path.to_owned());
        self.tried.insert(path.to_owned());
    }

    /// A node's store was lost while its tree held these contents.
    pub fn lost_store(&mut self, node: usize, shown: &BTreeMap<String, PathBuf>) {
        self.lost.insert(node);
        for (_, content) in self.contents.iter_mut().filter(|(hash, _)| !shown.contains_key(*hash)) {
            content.holders.remove(&node);
        }
    }

    /// All trees are alike and hold these contents: a new phase begins.
    pub fn settled(&mut self, nodes: usize, shown: &BTreeMap<String, PathBuf>) {
        for (hash, path) in shown {
            let origin = || format!("found at {} before operation {}", path.display(), self.now);
            let new = || Content { origin: origin(), holders: BTreeSet::new(), restored: false };
            self.contents.entry(hash.clone()).or_insert_with(new).holders = (0..nodes).collect();
        }
        self.contents.retain(|_, content| !content.holders.is_empty());
        self.removed.clear();
        self.fresh.clear();
        self.made.clear();
        self.tried.clear();
        self.lost.clear();
        self.through_links = false;
    }
}
