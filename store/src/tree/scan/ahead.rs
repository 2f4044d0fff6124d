//! What a scan looks at before its turn: names and stamps of the next directories, in a tree that pairs their new files.

use std::collections::BTreeMap;
use std::sync::Arc;

use pleach_protocol::path::TreePath;

use super::{Listed, Looks, Names, Scan, ScanStats, list_dir};
use crate::ignore::{self, IgnoreRules};
use crate::index::DiskSum;
use crate::kv::Kv;
use crate::look;
use crate::root::Place;
use crate::rows::EntryRow;
use crate::tree::{Tree, TreeError, hands};
use crate::vfs::{Kind, Vfs};

/// Directories that are looked at at once, before any of them is judged, and the most names that one of them may have: they
/// are in memory together.
pub(super) const AHEAD_MAX: usize = 64;
const AHEAD_NAMES_MAX: usize = 4_096;
/// New files of the next directories that are read while one is judged, and bytes of theirs that are kept.
const READ_AHEAD_MAX: usize = 256;
const READ_AHEAD_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A directory that was listed before its turn, with the files in it that are new.
type Next<V> = (TreePath, Listed<V>, Vec<TreePath>);

/// What the names of a directory show.
pub(super) struct Shows {
    sum: DiskSum,
    below: Vec<TreePath>,
    /// Files with several names, their inodes and how many.
    linked: Vec<(TreePath, u64, u64)>,
    entries: u64,
}

/// Looks at each name of a directory, and reads nothing.
fn look_over<V: Vfs>(
    (vfs, rules): (&V, &IgnoreRules),
    mut sum: DiskSum,
    (dir, path): (&V::Dir, &TreePath),
    names: &Names,
) -> Option<Shows> {
    let (mut below, mut linked, mut entries) = (Vec::new(), Vec::new(), 0);
    for (name, hint) in names {
        let Ok(child) = path.join(name) else { continue };
        if rules.ignored(&child, *hint == Some(Kind::Dir)) {
            continue;
        }
        let meta = vfs.stat(dir, name).ok()?.filter(|meta| !meta.mount_point)?;
        entries += 1;
        if meta.kind == Kind::Special {
            continue;
        }
        let stamp = look::stamp_of(&meta);
        sum.add(name, &stamp);
        if meta.kind == Kind::Dir {
            below.push(child);
        } else if meta.links > 1 {
            linked.push((child, stamp.inode, meta.links));
        }
    }
    Some(Shows { sum, below, linked, entries })
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Looks at the direct children of a directory; in a tree that pairs, new files of the next ones are read meanwhile.
    pub(super) fn scan_next(
        &mut self,
        place: &Place<V>,
        scan: &mut Scan<V>,
        path: &TreePath,
    ) -> Result<Vec<TreePath>, TreeError> {
        let (listed, in_doubt) = (scan.ahead.remove(path), scan.in_doubt.contains(path));
        if self.index.meta().paired {
            return self.scan_dir(place, (path, listed), in_doubt, &mut scan.stats);
        }
        let next = self.list_ahead(place, scan)?;
        let (vfs, root, care) = (Arc::clone(&self.vfs), &place.root, self.care());
        let read = || {
            let mut new: Vec<(&V::Dir, &TreePath)> = Vec::new();
            for (_, listed, paths) in &next {
                new.extend(paths.iter().map(|path| (&listed.dir, path)));
            }
            hands::each_read((&*vfs, root), &mut new, |(dir, path)| look::look(&*vfs, dir, path.name(), None, care))
        };
        let judge = || self.scan_dir(place, (path, listed), in_doubt, &mut scan.stats);
        let (looks, below) = hands::both(&*vfs, read, judge);
        let mut looks = looks.into_iter();
        for (path, mut listed, new) in next {
            listed.looks = new.into_iter().zip(&mut looks).collect();
            scan.ahead.insert(path, listed);
        }
        let kept = scan.ahead.values_mut().flat_map(|listed| listed.looks.values_mut());
        let mut left = READ_AHEAD_BYTES_MAX;
        for found in kept.filter_map(|look| look.as_mut().ok()) {
            found.keep_within(&mut left);
        }
        below
    }

    /// Lists the next directories, and says which files in them are new; not so many that their looks would fill memory.
    fn list_ahead(&self, place: &Place<V>, scan: &mut Scan<V>) -> Result<Vec<Next<V>>, TreeError> {
        let (mut next, mut there) = (Vec::new(), scan.ahead.values().map(|listed| listed.looks.len()).sum::<usize>());
        for path in scan.stack.iter().rev().take(AHEAD_MAX) {
            if there >= READ_AHEAD_MAX || scan.ahead.len() + next.len() >= AHEAD_MAX {
                break;
            }
            if scan.ahead.contains_key(path) || scan.alone.contains(path) {
                continue;
            }
            let listed = list_dir(&*self.vfs, &place.root, path).map(Listed::new);
            // Its own rules come first.
            let fits = |l: &Listed<V>| l.names.len() <= AHEAD_NAMES_MAX && !l.names.contains_key(ignore::FILE_NAME);
            let Some(listed) = listed.ok().filter(fits) else {
                scan.alone.insert(path.clone());
                continue;
            };
            let known: BTreeMap<TreePath, EntryRow> = self.index.children(path)?.into_iter().collect();
            let paths: Vec<TreePath> = listed.names.keys().filter_map(|name| path.join(name).ok()).collect();
            let mut new: Vec<TreePath> =
                paths.into_iter().filter(|path| self.is_new(path, &listed.names, &known)).collect();
            new.truncate(READ_AHEAD_MAX - there);
            there += new.len();
            next.push((path.clone(), listed, new));
        }
        Ok(next)
    }

    /// Looks at a directory and the next ones of the stack, several at a time.
    pub(super) fn look_ahead(&self, place: &Place<V>, scan: &mut Scan<V>, first: &TreePath) {
        if scan.ahead.len() > AHEAD_MAX / 2 {
            // Those are far down the stack; the next ones were not known then.
            scan.ahead.clear();
        }
        let (vfs, root, rules, sum) = (&*self.vfs, &place.root, &self.options.ignore, self.index.disk_sum());
        let look = |path: &TreePath| -> Option<Listed<V>> {
            let (dir, names) = list_dir(vfs, root, path).ok()?;
            if names.len() > AHEAD_NAMES_MAX {
                return None;
            }
            // Rules of its own may be others by now.
            let ruled = names.contains_key(ignore::FILE_NAME) || rules.has_file(path);
            let shows = (!ruled).then(|| look_over((vfs, rules), sum, (&dir, path), &names)).flatten();
            Some(Listed { dir, names, shows, looks: Looks::new() })
        };
        let is_due = |path: &&TreePath| !scan.ahead.contains_key(*path) && !scan.alone.contains(*path);
        let stack = scan.stack.iter().rev().take(AHEAD_MAX).filter(is_due);
        let mut next: Vec<TreePath> =
            std::iter::once(first).chain(stack).take(AHEAD_MAX - scan.ahead.len()).cloned().collect();
        let looks = hands::each_part((vfs.threads(), 1), (vfs, root), &mut next, |_, path| look(path));
        for (path, listed) in next.into_iter().zip(looks) {
            match listed {
                Some(listed) => drop(scan.ahead.insert(path, listed)),
                // Not to be listed again before its turn, which is now for the first.
                None if path != *first => drop(scan.alone.insert(path)),
                None => {}
            }
        }
    }

    /// Compares a directory with the sum of its rows, so that none of them is read; returns the
    /// directories in it, none where something differs or an equal sum would not tell.
    pub(super) fn dirs_where_nothing_changed(
        &mut self,
        path: &TreePath,
        (dir, names, shows): (&V::Dir, &Names, Option<Shows>),
        stats: &mut ScanStats,
    ) -> Result<Option<Vec<TreePath>>, TreeError> {
        if !self.index.meta().paired {
            return Ok(None);
        }
        let from = (&*self.vfs, &self.options.ignore);
        let now = || look_over(from, self.index.disk_sum(), (dir, path), names);
        let Some(shows) = shows.or_else(now) else { return Ok(None) };
        if !shows.sum.is(&self.index.sum(path)?) {
            return Ok(None);
        }
        for (child, inode, links) in &shows.linked {
            self.links.keep(child, *inode, *links);
        }
        stats.entries += shows.entries;
        Ok(Some(shows.below))
    }
}
