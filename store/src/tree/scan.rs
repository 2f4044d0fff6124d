//! The sorted walk that merges what is on the disk with what was shown.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use pleach_protocol::entry::Value;
use pleach_protocol::path::TreePath;

use self::ahead::Shows;
use super::observe::is_no_dir;
use super::{Dirty, Observed, Tree, TreeError, hands};
use crate::ignore;
use crate::kv::Kv;
use crate::look::{self, Look, Reads};
use crate::root::{PRIVATE, Place};
use crate::rows::{EntryRow, Pairing};
use crate::vfs::{Kind, RootIdentity, Vfs};

mod ahead;

/// Names of a directory that are looked at before any of them is judged.
const LOOKS_AT_ONCE: usize = 256;

/// What a scan saw.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ScanStats {
    /// Entries looked at.
    pub entries: u64,
    /// Changes minted.
    pub minted: u64,
    /// Files that were being written, to be looked at again.
    pub busy: u64,
    /// Files that were read and hashed.
    pub read: u64,
    /// Their bytes.
    pub read_bytes: u64,
}

/// Directories that wait to be walked; they are found again from their parents, so the bound is
/// the number of directories side by side along one path.
type Stack = Vec<TreePath>;

/// A walk of the tree that is under way.
pub struct Scan<V: Vfs> {
    stack: Stack,
    in_doubt: BTreeSet<TreePath>,
    stats: ScanStats,
    /// The root as it was when the walk began.
    root: Option<RootIdentity>,
    /// Directories of the stack that were looked at before their turn; at most [`ahead::AHEAD_MAX`].
    ahead: BTreeMap<TreePath, Listed<V>>,
    /// Those of the stack that wait for their turn: it was seen that they cannot be looked at before.
    alone: BTreeSet<TreePath>,
}

impl<V: Vfs> std::fmt::Debug for Scan<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ahead: usize = self.ahead.values().map(|listed| listed.looks.len()).sum();
        let mut f = f.debug_struct("Scan");
        f.field("stack", &self.stack).field("stats", &self.stats).field("read ahead", &ahead).finish_non_exhaustive()
    }
}

impl<V: Vfs> Scan<V> {
    /// What it saw so far.
    pub const fn stats(&self) -> &ScanStats {
        &self.stats
    }
}

/// What a directory lists, with kinds where the file system tells them.
type Names = BTreeMap<Vec<u8>, Option<Kind>>;

/// A directory that was listed.
struct Listed<V: Vfs> {
    dir: V::Dir,
    names: Names,
    /// What its names show, where that was looked at; none where it would not tell whether anything changed.
    shows: Option<Shows>,
    /// What was seen of new files in it.
    looks: Looks,
}

type Looks = BTreeMap<TreePath, io::Result<Look>>;

impl<V: Vfs> Listed<V> {
    fn new((dir, names): (V::Dir, Names)) -> Self {
        Self { dir, names, shows: None, looks: Looks::new() }
    }
}

fn list_dir<V: Vfs>(vfs: &V, root: &V::Dir, path: &TreePath) -> io::Result<(V::Dir, Names)> {
    let dir = vfs.open_path(root, path)?;
    let names = vfs.list(&dir)?;
    let own = path.is_root().then_some(PRIVATE);
    let names = names.into_iter().filter(|n| Some(&n.name[..]) != own).map(|n| (n.name, n.kind)).collect();
    Ok((dir, names))
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Walks the whole tree, mints what differs, and ends the pairing of a new store.
    ///
    /// # Errors
    /// [`TreeError`]; a path that cannot be read is a problem, not an error.
    pub fn scan(&mut self) -> Result<ScanStats, TreeError> {
        let mut scan = self.begin_scan();
        while !self.scan_on(&mut scan, u64::MAX)? {}
        while self.reads_on() {
            let place = self.enter()?;
            for busy in self.read_long(&place)? {
                self.mark(&busy, false, false);
            }
        }
        Ok(scan.stats)
    }

    /// Begins to walk the whole tree.
    pub fn begin_scan(&self) -> Scan<V> {
        self.begin_scan_below(&TreePath::ROOT)
    }

    fn begin_scan_below(&self, top: &TreePath) -> Scan<V> {
        Scan {
            stack: vec![top.clone()],
            in_doubt: BTreeSet::new(),
            stats: ScanStats::default(),
            root: None,
            ahead: BTreeMap::new(),
            alone: BTreeSet::new(),
        }
    }

    /// Goes on with a walk of the whole tree, by about so many entries; says whether it is over. Until then nothing
    /// may be merged or applied, but what is minted may be told.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn scan_on(&mut self, scan: &mut Scan<V>, entries: u64) -> Result<bool, TreeError> {
        if self.waits {
            return Ok(true);
        }
        self.walk_on(scan, entries)?;
        if !scan.stack.is_empty() {
            return Ok(false);
        }
        self.scan_due = false;
        self.links.scanned();
        self.end_scan(scan)?;
        Ok(true)
    }

    fn end_scan(&mut self, scan: &Scan<V>) -> Result<(), TreeError> {
        // What was mounted anew meanwhile was walked in part.
        self.scan_due |= scan.root.as_ref() != Some(&self.identity);
        if !self.index.meta().paired {
            self.index.meta_mut().paired = true;
        }
        self.end_pairing()
    }

    /// Goes on with a scan that is due, by about so many entries; says whether none is any more. Between two steps anything
    /// may happen: nothing that was seen ahead is kept over it.
    fn rescan_on(&mut self, entries: u64) -> Result<bool, TreeError> {
        let links_are_due = self.links.is_scan_due(self.now());
        let mut scan = match self.rescan.take() {
            Some(scan) => scan,
            None if self.scan_due || links_are_due => self.begin_scan(),
            None => return Ok(true),
        };
        if scan.root.is_none() {
            // What is due from now on is due once more.
            self.scan_due = false;
            self.links.scanned();
        }
        // What pairs for the first time is read ahead, and may not change until it is judged.
        let entries = if self.index.meta().paired { entries } else { u64::MAX };
        if let Err(error) = self.walk_on(&mut scan, entries) {
            self.scan_due = true;
            return Err(error);
        }
        if scan.stack.is_empty() {
            self.end_scan(&scan)?;
            return Ok(!self.scan_due);
        }
        scan.ahead.clear();
        self.rescan = Some(scan);
        Ok(false)
    }

    /// How far a scan is that is due again; none where none is under way.
    pub fn rescan(&self) -> Option<&ScanStats> {
        self.rescan.as_ref().map(Scan::stats)
    }

    /// Walks a directory and everything beneath it.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn scan_below(&mut self, top: &TreePath) -> Result<ScanStats, TreeError> {
        self.look_before_children(top)?;
        let mut scan = self.begin_scan_below(top);
        self.walk_on(&mut scan, u64::MAX)?;
        Ok(scan.stats)
    }

    fn walk_on(&mut self, scan: &mut Scan<V>, entries: u64) -> Result<(), TreeError> {
        let place = self.enter()?;
        if self.waits {
            return Ok(());
        }
        if *scan.root.get_or_insert_with(|| self.identity.clone()) != self.identity {
            scan.ahead.clear();
        }
        scan.in_doubt = self.directories_in_doubt();
        let enough = scan.stats.entries.saturating_add(entries);
        while scan.stats.entries < enough
            && let Some(dir) = scan.stack.pop()
        {
            let due = !scan.alone.remove(&dir) && !scan.ahead.contains_key(&dir) && !scan.stack.is_empty();
            if due && self.index.meta().paired {
                self.look_ahead(&place, scan, &dir);
            }
            let below = self.scan_next(&place, scan, &dir)?;
            scan.stack.extend(below.into_iter().rev());
            self.index.commit_if_large()?;
        }
        Ok(())
    }

    /// Looks at the direct children of one directory; returns those that are directories.
    fn scan_dir(
        &mut self,
        place: &Place<V>,
        (path, listed): (&TreePath, Option<Listed<V>>),
        in_doubt: bool,
        stats: &mut ScanStats,
    ) -> Result<Vec<TreePath>, TreeError> {
        let list = || list_dir(&*self.vfs, &place.root, path).map(Listed::new);
        let listed = match listed.map_or_else(list, Ok) {
            Ok(listed) => listed,
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
                // It went while we walked: its own look tells.
                self.seen_again(path, true);
                if !path.is_root() {
                    self.observe_in(place, path, false, false)?;
                }
                return Ok(Vec::new());
            }
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => {
                self.seen_again(path, true);
                return Ok(Vec::new());
            }
            Err(error) => {
                // What could not be listed is unknown, not deleted.
                if self.pairs_locals {
                    self.forget_shown_beneath(path)?;
                }
                self.not_seen(path, true, format!("cannot be listed: {error}"));
                return Ok(Vec::new());
            }
        };
        let Listed { dir, names, shows, mut looks } = listed;
        let (dir, names) = (&dir, &names);
        if names.contains_key(ignore::FILE_NAME) || self.options.ignore.has_file(path) {
            // Without its rules what it ignores would be told to everybody.
            if let Err(error) = self.read_ignore_file(dir, path) {
                self.not_seen(path, true, format!("its .pleachignore cannot be read: {error}"));
                return Ok(Vec::new());
            }
        }
        let locals = self.locals_in(path)?;
        if !in_doubt
            && locals.is_empty()
            && let Some(below) = self.dirs_where_nothing_changed(path, (dir, names, shows), stats)?
        {
            self.seen_again(path, true);
            return Ok(below);
        }
        let known: BTreeMap<TreePath, EntryRow> = self.index.children(path)?.into_iter().collect();
        let mut paths: Vec<TreePath> = Vec::with_capacity(names.len());
        for name in names.keys() {
            match path.join(name) {
                Ok(child) => paths.push(child),
                Err(error) => tracing::warn!(dir = %path, %error, "a name cannot be synced"),
            }
        }
        paths.extend(known.keys().filter(|p| !names.contains_key(p.name())).cloned());
        let unknown = |p: &TreePath| !names.contains_key(p.name()) && !known.contains_key(p);
        paths.extend(locals.into_iter().filter(unknown));
        // What is gone comes first: what appeared may be the same under another name.
        paths.sort_by_cached_key(|path| (names.contains_key(path.name()), path.clone()));
        let mut below = Vec::new();
        for part in paths.chunks(LOOKS_AT_ONCE) {
            self.look_at_new(place, dir, part, names, &known, &mut looks);
            for child in part {
                let row = known.get(child).cloned().unwrap_or_default();
                let hint = names.get(child.name()).copied().flatten();
                if let Some(dir) = self.scan_child(dir, child.clone(), row, (hint, looks.remove(child)), stats)? {
                    below.push(dir);
                }
            }
        }
        self.seen_again(path, true);
        Ok(below)
    }

    /// Whether a name is a file of which nothing is known: it is to be read and hashed.
    fn is_new(&self, path: &TreePath, names: &Names, known: &BTreeMap<TreePath, EntryRow>) -> bool {
        names.get(path.name()) == Some(&Some(Kind::File))
            && known.get(path).is_none_or(|row| row.shown.is_none())
            && matches!(self.local(path), Ok(None))
            && !self.options.ignore.ignored(path, false)
    }

    /// Looks at new files that were not looked at yet, several at a time.
    fn look_at_new(
        &self,
        place: &Place<V>,
        dir: &V::Dir,
        paths: &[TreePath],
        names: &Names,
        known: &BTreeMap<TreePath, EntryRow>,
        looks: &mut Looks,
    ) {
        let is_new = |path: &&TreePath| !looks.contains_key(*path) && self.is_new(path, names, known);
        let mut new: Vec<&TreePath> = paths.iter().filter(is_new).collect();
        let (vfs, care, most) = (&*self.vfs, self.care(), self.scan_reads_max());
        let seen = hands::each_read((vfs, &place.root), &mut new, |path| {
            look::look_and_cut(vfs, dir, path.name(), (None, || None), (care, Reads::Short(most)))
        });
        looks.extend(new.into_iter().cloned().zip(seen));
    }

    /// The longest file that a scan reads. Longer ones wait until other changes had their turn, but not where what is found
    /// pairs.
    const fn scan_reads_max(&self) -> u64 {
        if self.index.meta().paired && !self.pairs_locals { self.options.read_at_once } else { u64::MAX }
    }

    /// Directories in which something is to be looked at although it shows what it showed.
    fn directories_in_doubt(&self) -> BTreeSet<TreePath> {
        self.problems.keys().chain(&self.mounts).filter_map(TreePath::parent).collect()
    }

    /// Looks at one name; returns it where it is a directory to go into.
    fn scan_child(
        &mut self,
        dir: &V::Dir,
        child: TreePath,
        row: EntryRow,
        (hint, seen): (Option<Kind>, Option<io::Result<Look>>),
        stats: &mut ScanStats,
    ) -> Result<Option<TreePath>, TreeError> {
        let there = self.known_there(&child, &row)?;
        let shown = there.as_ref().is_some_and(|s| s.shown.state.is_some());
        if hint.is_none() && !shown && self.vfs_lacks(dir, &child) {
            self.take_up_unshown(&child, &row)?;
            return Ok(None);
        }
        let was_dir = hint == Some(Kind::Dir);
        if self.options.ignore.ignored(&child, was_dir) {
            if row.shown.is_some() || there.is_some() {
                self.forget_shown(&child, row)?;
            }
            return Ok(None);
        }
        stats.entries += 1;
        let reads = Reads::Short(self.scan_reads_max());
        let seen = seen.unwrap_or_else(|| self.look_at(dir, &child, there.as_ref(), (self.care(), reads)));
        let mut is_dir = false;
        if let Ok(Look::Found(found)) = &seen {
            is_dir = found.state.value == Value::Dir;
            // What shows the stamp that it showed is not read.
            let read = there.is_none_or(|there| there.provisional || there.stamp != Some(found.stamp));
            if let (true, Value::File { size, .. }) = (read, &found.state.value) {
                (stats.read, stats.read_bytes) = (stats.read + 1, stats.read_bytes + size);
            }
        }
        match self.judge(&child, row, seen)? {
            Observed::Minted => stats.minted += 1,
            Observed::Busy => {
                stats.busy += 1;
                self.mark(&child, false, false);
            }
            Observed::Unread => self.read_later(&child, Dirty::default()),
            _ => {}
        }
        Ok(is_dir.then_some(child))
    }

    /// A path became ignored: what was shown there, and beneath it, is forgotten, so that it pairs
    /// if it ever leaves the list, and nothing is deleted anywhere (DESIGN.md §2).
    pub(super) fn forget_shown(&mut self, path: &TreePath, mut row: EntryRow) -> Result<EntryRow, TreeError> {
        self.forget_shown_row(path, &mut row);
        self.clear_local(path);
        self.forget_shown_beneath(path)?;
        Ok(row)
    }

    fn forget_shown_row(&mut self, path: &TreePath, row: &mut EntryRow) {
        if let Some(stamp) = row.shown.as_ref().and_then(|s| s.stamp) {
            self.leave_link(path, stamp.inode);
        }
        self.note_content(path, row.shown.as_ref().and_then(|s| s.shown.state.as_ref()), None);
        row.shown = None;
        row.pairing = Pairing::ByTime;
        self.index.put_row(path, row);
    }

    fn forget_shown_beneath(&mut self, path: &TreePath) -> Result<(), TreeError> {
        loop {
            let found = self.locals_beneath(path, None)?;
            if found.is_empty() {
                break;
            }
            for (path, _) in found {
                self.clear_local(&path);
            }
        }
        let mut after = None;
        loop {
            let rows = self.index.beneath(path, after.as_ref(), 512)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            after = Some(last.clone());
            for (path, mut row) in rows.into_iter().filter(|(_, row)| row.shown.is_some()) {
                self.forget_shown_row(&path, &mut row);
            }
            self.index.commit_if_large()?;
        }
    }

    /// What the applier passed and the disk never showed was ignored. Where it is not any more, all is
    /// planned again: rows beneath a directory come before its own.
    pub(super) fn take_up_unshown(&mut self, path: &TreePath, row: &EntryRow) -> Result<(), TreeError> {
        let was_shown = row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
        // What was shown was removed by users of a tree that only receives.
        if self.sends_only() || was_shown || !self.apply.has_passed(path, row.seq) {
            return Ok(());
        }
        let Some(view) = self.index.view(path, row)? else { return Ok(()) };
        if !self.options.ignore.ignored(path, view.value == Value::Dir) {
            self.plan_anew();
        }
        Ok(())
    }

    /// Plans every path again: what was passed is not ignored any more.
    pub(super) fn plan_anew(&mut self) {
        self.apply.rewind();
        self.index.lower_applied(0);
    }

    fn vfs_lacks(&self, dir: &V::Dir, child: &TreePath) -> bool {
        matches!(self.vfs.stat(dir, child.name()), Ok(None))
    }

    /// Takes the `.pleachignore` of a directory into the rules; where it cannot be read they stay.
    fn read_ignore_file(&mut self, dir: &V::Dir, path: &TreePath) -> io::Result<()> {
        let read = || -> io::Result<Vec<u8>> {
            let file = self.vfs.open_file(dir, ignore::FILE_NAME)?;
            let mut text = vec![0; ignore::FILE_BYTES_MAX];
            let n = self.vfs.read_at(&file, 0, &mut text)?;
            text.truncate(n);
            Ok(text)
        };
        let text = match read() {
            Ok(text) => Some(text),
            // It is gone, or no regular file.
            Err(error) if is_no_dir(&error) || error.raw_os_error() == Some(libc::EISDIR) => None,
            Err(error) => return Err(error),
        };
        if self.options.ignore.set_file(path, text.as_deref()) {
            tracing::info!(dir = %path, "ignore rules read");
            self.rules_changed = true;
        }
        Ok(())
    }

    /// Does what is due: a whole scan, or another look at dirty paths. Returns the paths that a
    /// writer still keeps; whoever settles them says when to look again.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn catch_up(&mut self) -> Result<Vec<TreePath>, TreeError> {
        // The one that is under way began before what made another due.
        if !self.catch_up_scan(u64::MAX)? {
            self.catch_up_scan(u64::MAX)?;
        }
        let mut busy = self.look_at_dirty()?;
        while self.reads_on() {
            busy.append(&mut self.look_at_dirty()?);
        }
        Ok(busy)
    }

    /// The same, but of a scan that is due only about so many entries, and of what is long only one step; the next call goes
    /// on with it.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn catch_up_by(&mut self, entries: u64) -> Result<Vec<TreePath>, TreeError> {
        self.catch_up_scan(entries)?;
        self.look_at_dirty()
    }

    fn catch_up_scan(&mut self, entries: u64) -> Result<bool, TreeError> {
        if self.waits {
            // All is looked at when it pairs.
            self.dirty.clear();
            self.long.take();
            self.rescan = None;
            return Ok(true);
        }
        self.rescan_on(entries)
    }

    fn look_at_dirty(&mut self) -> Result<Vec<TreePath>, TreeError> {
        if self.waits {
            return Ok(Vec::new());
        }
        self.catch_up_with_gone()?;
        self.retry_unseen()?;
        let due = std::mem::take(&mut self.dirty);
        if due.is_empty() && !self.reads_on() {
            return Ok(Vec::new());
        }
        let place = self.enter()?;
        let mut busy = Vec::new();
        for (path, how) in due {
            if self.look_at_short(&place, &path, how)? == Observed::Busy {
                busy.push(path);
            }
        }
        busy.append(&mut self.read_long(&place)?);
        Ok(busy)
    }

    /// Looks at those dirty paths first where nothing is any more: what appeared elsewhere may be the
    /// same under another name, and then peers should hear of both in this order.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn catch_up_with_gone(&mut self) -> Result<(), TreeError> {
        if self.dirty.is_empty() {
            return Ok(());
        }
        let place = self.enter()?;
        let shown = self.pass_over_known(&place)?;
        if self.dirty.len() < 2 {
            return Ok(());
        }
        let gone = |path: &TreePath| match self.open_parent(&place, path) {
            Ok(Some(dir)) => self.vfs_lacks(&dir, path),
            Ok(None) => true,
            Err(_) => false,
        };
        let gone: Vec<TreePath> = shown.into_iter().filter(gone).collect();
        for path in gone {
            self.dirty.remove(&path);
            self.observe_in(&place, &path, false, false)?;
        }
        Ok(())
    }

    /// Leaves out those dirty paths that show what is recorded: our own changes cost one call each. Returns those of the
    /// others where something was shown.
    fn pass_over_known(&mut self, place: &Place<V>) -> Result<Vec<TreePath>, TreeError> {
        let (due, mut shown) = (std::mem::take(&mut self.dirty), Vec::new());
        for (path, how) in due {
            let row = self.index.shared_row(&path)?;
            if self.is_as_shown(place, &path, &row, how.rehash) {
                continue;
            }
            if self.known_there(&path, &row)?.is_some_and(|there| there.shown.state.is_some()) {
                shown.push(path.clone());
            }
            self.dirty.insert(path, how);
        }
        Ok(shown)
    }

    /// Looks at a directory that is not known to be one, and at those that hold it, before what is in it: what is recorded
    /// beneath a directory is only looked for again where the directory was known, too.
    fn look_before_children(&mut self, dir: &TreePath) -> Result<(), TreeError> {
        let mut dirs: Vec<TreePath> = dir.parents().collect();
        dirs.insert(0, dir.clone());
        for dir in dirs.iter().rev().filter(|dir| !dir.is_root()) {
            let row = self.index.shared_row(dir)?;
            if self.known_there(dir, &row)?.is_none_or(|there| !there.is_dir()) {
                self.observe(dir, false, false)?;
            }
        }
        Ok(())
    }

    /// Looks at the direct children of one directory.
    ///
    /// # Errors
    /// As [`Tree::scan`].
    pub fn scan_children(&mut self, dir: &TreePath) -> Result<ScanStats, TreeError> {
        let place = self.enter()?;
        let mut stats = ScanStats::default();
        if self.waits {
            return Ok(stats);
        }
        self.look_before_children(dir)?;
        let in_doubt = self.directories_in_doubt().contains(dir);
        self.scan_dir(&place, (dir, None), in_doubt, &mut stats)?;
        Ok(stats)
    }

    /// Makes a whole scan due: events were lost.
    pub const fn scan_later(&mut self) {
        self.scan_due = true;
    }
}
