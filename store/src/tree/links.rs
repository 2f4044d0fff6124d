//! Files with several names: a change through one shows under all, and inotify tells of that one alone (LINUX.md §4).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;

use super::{Tree, TreeError, is_due};
use crate::kv::Kv;
use crate::look::{Found, stamp_of};
use crate::rows::Stamp;
use crate::vfs::Vfs;

/// Inodes with several names that are kept in mind; the regular rescan finds what lies beyond.
const LINKED_MAX: usize = 100_000;
/// How long after a link was made its other names are looked for, by a scan: many are made at a time.
const LINKS_SECS: i64 = 60;

/// Names of inodes that have several, so that a change of one is a change of all.
#[derive(Debug, Default)]
pub(super) struct Links {
    by_inode: BTreeMap<u64, Linked>,
    /// When to scan for names of a file that got another one: making a link tells of the new name alone.
    due: Option<Time>,
    /// The inode that was polled last.
    polled: u64,
}

#[derive(Debug, Default)]
struct Linked {
    names: BTreeSet<TreePath>,
    /// How many there are, also those that are ignored or in no tree.
    links: u64,
}

impl Linked {
    fn has_others(&self) -> bool {
        (self.names.len() as u64) < self.links
    }
}

impl Links {
    pub(super) fn names(&self) -> impl Iterator<Item = &TreePath> {
        self.by_inode.values().flat_map(|linked| &linked.names)
    }

    /// Keeps a name of a file that has several.
    pub(super) fn keep(&mut self, path: &TreePath, inode: u64, links: u64) {
        if self.by_inode.len() < LINKED_MAX || self.by_inode.contains_key(&inode) {
            let linked = self.by_inode.entry(inode).or_default();
            linked.names.insert(path.clone());
            linked.links = links;
        }
    }

    pub(super) fn is_scan_due(&self, now: Time) -> bool {
        self.due.is_some_and(|due| is_due(due, now))
    }

    /// A scan begins that finds them.
    pub(super) const fn scanned(&mut self) {
        self.due = None;
    }

    /// The next inodes of which not all names are known, by one of their names.
    fn next_to_poll(&mut self, at_most: usize) -> Vec<TreePath> {
        let after = self.by_inode.range((Bound::Excluded(self.polled), Bound::Unbounded));
        let outside = after.chain(self.by_inode.range(..=self.polled)).filter(|(_, linked)| linked.has_others());
        let next: Vec<(u64, TreePath)> =
            outside.take(at_most).filter_map(|(inode, linked)| Some((*inode, linked.names.first()?.clone()))).collect();
        self.polled = next.last().map_or(self.polled, |(inode, _)| *inode);
        next.into_iter().map(|(_, path)| path).collect()
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Notes how many names a file has that was looked at; `known` is what its path showed before. Where others still say what it
    /// was, they become dirty.
    pub(super) fn note_links(&mut self, path: &TreePath, found: &Found, known: Option<Stamp>) {
        let stamp = &found.stamp;
        if found.links <= 1 {
            self.links.by_inode.remove(&stamp.inode);
            return;
        }
        self.links.keep(path, stamp.inode, found.links);
        let Some(linked) = self.links.by_inode.get(&stamp.inode) else { return };
        // Also where another file had the name: a link took its place.
        let is_new = known.is_none_or(|was| was.inode != stamp.inode);
        let due = is_new && linked.has_others() && self.links.due.is_none();
        let others: Vec<TreePath> = linked.names.iter().filter(|p| *p != path).cloned().collect();
        if due {
            let now = self.now();
            self.links.due = Some(Time::new(now.secs.saturating_add(LINKS_SECS), now.nanos));
        }
        for other in others {
            let known = self.known_stamp(&other);
            if known.is_some_and(|s| s.inode == stamp.inode && s != *stamp) {
                self.mark(&other, false, false);
            }
        }
    }

    /// A name does not lead to its file any more: what was written through it until then shows under the
    /// others, of which nothing told.
    pub(super) fn leave_link(&mut self, path: &TreePath, inode: u64) {
        let Some(mut linked) = self.links.by_inode.remove(&inode) else { return };
        linked.names.remove(path);
        for other in &linked.names {
            self.mark(other, false, false);
        }
        if !linked.names.is_empty() {
            self.links.by_inode.insert(inode, linked);
        }
    }

    /// Looks for the names of files that got another one now, not in a while.
    pub const fn look_for_links(&mut self) {
        self.scan_due |= self.links.due.is_some();
    }

    /// Looks whether files changed that have names elsewhere, outside of the tree or ignored: nothing tells of what is written through
    /// those. Of more than `at_most` it looks at others the next time.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn poll_links(&mut self, at_most: usize) -> Result<(), TreeError> {
        let due = self.links.next_to_poll(at_most);
        if due.is_empty() || self.waits {
            return Ok(());
        }
        let place = self.enter()?;
        for path in due {
            let meta = place.holder(&*self.vfs, &path).and_then(|dir| self.vfs.stat(&dir, path.name()));
            let stamp = meta.ok().flatten().map(|meta| stamp_of(&meta));
            if stamp.is_none() || stamp != self.known_stamp(&path) {
                self.mark(&path, false, false);
            }
        }
        Ok(())
    }

    fn known_stamp(&self, path: &TreePath) -> Option<Stamp> {
        let row = self.index.shared_row(path).ok()?;
        self.known_there(path, &row).ok().flatten()?.stamp
    }
}
