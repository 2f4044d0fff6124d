//! What could not be read: paths, and directories that could not be listed. Each is a problem, and is
//! looked at again, ever more seldom, until it can be.

use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;

use super::{PAUSE_SECS_MAX, Tree, TreeError, is_due};
use crate::kv::Kv;
use crate::vfs::{Kind, Vfs};

const RETRY_SECS_MIN: i64 = 1;
/// Beyond so many all is looked at again in one go.
const UNSEEN_MAX: usize = 10_000;

/// Something that could not be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unseen {
    retry_at: Time,
    pause_secs: i64,
    /// A directory's names are what could not be read.
    listing: bool,
    /// It was not read while the tree paired: what is found there pairs.
    pairing: bool,
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// A path could not be read, or (`listing`) its names could not.
    pub(super) fn not_seen(&mut self, path: &TreePath, listing: bool, reason: String) {
        self.set_problem(path, reason);
        let now = self.now();
        let pairing = !self.index.meta().paired;
        let full = self.unseen.len() >= UNSEEN_MAX && !self.unseen.contains_key(path);
        let (at, listing) = if full { (TreePath::ROOT, true) } else { (path.clone(), listing) };
        if full {
            let pairing = pairing || self.unseen.values().any(|unseen| unseen.pairing);
            self.unseen.clear();
            self.unseen.insert(at.clone(), Unseen { retry_at: now, pause_secs: RETRY_SECS_MIN, listing, pairing });
        }
        let known = self.unseen.get(&at).copied();
        let pause_secs = known.map_or(RETRY_SECS_MIN, |k| (k.pause_secs * 2).min(PAUSE_SECS_MAX));
        let unseen = Unseen {
            retry_at: Time::new(now.secs.saturating_add(pause_secs), now.nanos),
            pause_secs,
            listing: listing || known.is_some_and(|k| k.listing),
            pairing: pairing || known.is_some_and(|k| k.pairing),
        };
        self.unseen.insert(at, unseen);
    }

    /// A path was read, or (`listing`) its names were: what was listed against it is over.
    pub(super) fn seen_again(&mut self, path: &TreePath, listing: bool) {
        if !listing && self.unseen.get(path).is_some_and(|unseen| unseen.listing) {
            return;
        }
        let was = self.unseen.remove(path);
        // What could not be applied is over when it is.
        if (!listing || was.is_some()) && !self.apply.is_stuck(path) && !self.is_release_stuck(path) {
            self.clear_problem(path);
        }
    }

    /// Paths that could not be read: what changed there, or beneath, is not known.
    pub fn unseen_paths(&self) -> impl Iterator<Item = &TreePath> {
        self.unseen.keys()
    }

    /// Whether a path, or a directory above it, was left out when the tree paired.
    pub(super) fn is_yet_to_pair(&self, path: &TreePath) -> bool {
        let left_out = |path: &TreePath| self.unseen.get(path).is_some_and(|unseen| unseen.pairing);
        !self.unseen.is_empty() && (left_out(path) || path.parents().any(|parent| left_out(&parent)))
    }

    /// Looks again at what it is time for.
    pub(super) fn retry_unseen(&mut self) -> Result<(), TreeError> {
        if self.unseen.is_empty() {
            return Ok(());
        }
        let now = self.now();
        let due = self.unseen.iter().filter(|(_, unseen)| is_due(unseen.retry_at, now));
        let due: Vec<(TreePath, bool)> = due.map(|(path, unseen)| (path.clone(), unseen.listing)).collect();
        for (path, listing) in due {
            // A directory that could not be looked at was not walked either.
            if listing || self.is_directory(&path)? {
                self.scan_below(&path)?;
            }
            if !path.is_root() {
                self.mark(&path, true, false);
            }
        }
        Ok(())
    }

    /// Whether a directory is there, as far as that can be told.
    fn is_directory(&mut self, path: &TreePath) -> Result<bool, TreeError> {
        let place = self.enter()?;
        let found = self.open_parent(&place, path).and_then(|dir| match dir {
            Some(dir) => self.vfs.stat(&dir, path.name()),
            None => Ok(None),
        });
        Ok(matches!(found, Ok(Some(meta)) if meta.kind == Kind::Dir && !meta.mount_point))
    }

    /// When the next is looked at again.
    pub(super) fn next_unseen(&self) -> Option<Time> {
        self.unseen.values().map(|unseen| unseen.retry_at).min()
    }
}
