//! What befalls a node's disk: it is full, broken or read-only for a while, its store fails, it is put back
//! to what it was, unmounted and mounted again; and users who act in the middle of the engine's work.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use pleach_protocol::entry::{Entry, Hash, Value};
use pleach_protocol::path::TreePath;
use pleach_store::index::Index;
use pleach_store::kv::memory::{KvImage, MemoryKvDisk};
use pleach_store::rows::Direction;
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::{DiskImage, ModelUser, OpKind, Trouble, UserFile};

use super::checks::{PLANS_FROM, Rest};
use super::minted::Deeds;
use super::node::SimNode;
use super::{Random, World, users};

/// Which trials of the disk a seed has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disks {
    /// Calls and the store fail for a while.
    pub(super) trouble: bool,
    /// Disks and stores are put back.
    restores: bool,
    /// The root is unmounted and mounted again.
    unmounts: bool,
    /// Users act between two calls of the engine.
    pub(super) hooks: bool,
    /// Users keep files open, and map them.
    pub(super) open_files: bool,
    /// Users make hard links.
    pub(super) links: bool,
    /// Contents are so long that they do not travel with their announcements, and much of each is in the others.
    pub(super) long: bool,
}

impl Disks {
    pub(super) fn draw(random: &mut Random, seed: u64) -> Self {
        let mut flag = |n| random.once_in(n);
        Self {
            trouble: flag(3),
            restores: flag(4),
            unmounts: flag(5),
            hooks: flag(3),
            open_files: flag(3),
            links: flag(5),
            long: seed % 8 == 5,
        }
    }

    /// Whether a content can be lost without a fault of the engine.
    pub(super) const fn can_lose(self) -> bool {
        self.restores
    }
}

/// The contents that a store knows to be at a path. What its agent had merged and not made durable is not among it.
fn known_to_be_there(kv: &MemoryKvDisk) -> Result<Vec<(TreePath, BTreeSet<Hash>)>, String> {
    let rows = Index::open(kv.open(), &[0; 32]).and_then(|index| index.beneath(&TreePath::ROOT, None, usize::MAX));
    let hash = |value: &Value| match value {
        Value::File { hash, .. } => *hash,
        _ => Hash([0; 32]),
    };
    let live = |entry: &Entry| entry.content.values().filter_map(|s| s.content.value()).map(hash).collect();
    Ok(rows.map_err(|error| error.to_string())?.iter().map(|(path, row)| (path.clone(), live(&row.entry))).collect())
}

/// Disk and store as they were at one moment.
#[derive(Debug)]
struct Snapshot {
    disk: DiskImage,
    kv: KvImage,
    /// The mark that both had then.
    mark: (u64, u64),
}

/// A node's trials so far.
#[derive(Debug, Default)]
pub(super) struct Trials {
    /// The tree said that its disk went back.
    pub(super) went_back: bool,
    /// Files that users have open.
    pub(super) open: Vec<UserFile>,
    snapshot: Option<Snapshot>,
    /// The disk was put back, its store was not: somebody will approve that.
    to_approve: bool,
    /// Faults of the disk and of the store that were taken note of.
    struck: (u64, u64),
    /// Of the store: those for which it was closed.
    store_failed: u64,
    /// The root was away since the tree was opened last.
    was_away: bool,
    /// The store was lost since the tree was opened last.
    pub(super) store_lost: bool,
    between: Arc<Mutex<Between>>,
}

/// What users did to contents while the engine worked.
#[derive(Debug, Default)]
pub(super) struct Between {
    pub(super) destroyed: Vec<Vec<u8>>,
    pub(super) made: Vec<Vec<u8>>,
    pub(super) deeds: Deeds,
    /// Names of what they changed by another of its names.
    pub(super) linked: Vec<&'static str>,
}

impl Trials {
    pub(super) fn forget_snapshot(&mut self) {
        self.snapshot = None;
    }

    /// Whether users have files open.
    pub(super) fn has_open_files(&self) -> bool {
        !self.open.is_empty()
    }

    /// What users did while the engine worked, since the last call.
    pub(super) fn take_between(&mut self) -> Between {
        std::mem::take(&mut self.between.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SimNode {
    /// Whether a failure of the tree is the disk's: something struck since the last question.
    pub(super) fn was_struck(&mut self) -> bool {
        let struck = (self.model.disk.struck(), self.model.kv.failed());
        let news = struck != self.trials.struck || !self.model.disk.is_mounted() || self.trials.was_away;
        self.trials.struck = struck;
        news
    }
}

/// A full disk refuses what takes room.
fn takes_room(op: OpKind) -> bool {
    use OpKind::{CreateDir, CreateSymlink, CreateTemp, LinkTemp, WriteAt};
    matches!(op, CreateDir | CreateSymlink | CreateTemp | LinkTemp | WriteAt)
}

/// Calls that need another file descriptor.
fn opens(op: OpKind) -> bool {
    use OpKind::{CreateTemp, Identity, OpenDir, OpenFile, OpenPath, Root, SyncHandle};
    matches!(op, CreateTemp | Identity | OpenDir | OpenFile | OpenPath | Root | SyncHandle)
}

/// Calls that need rights on a directory or a file.
fn needs_rights(op: OpKind) -> bool {
    use OpKind::{OpenDir, OpenFile, OpenPath, SetAttributes};
    op.is_mutating() && op != SetAttributes || matches!(op, OpenDir | OpenFile | OpenPath)
}

fn anything(op: OpKind) -> bool {
    !matches!(op, OpKind::Writers | OpKind::WithLease)
}

impl World {
    /// Something befalls a node's disk.
    pub(super) fn disk_step(&mut self, n: usize) -> Result<(), String> {
        let disks = self.faults.disks;
        match self.random.below(10) {
            0..=2 if disks.trouble => self.begin_trouble(n),
            3 if disks.trouble => {
                self.nodes[n].model.disk.clear_faults();
                self.say(format!("n{n}: the disk is well again"));
            }
            4 if disks.restores => self.take_snapshot(n),
            5 if disks.restores => return self.put_back(n),
            6 | 7 if disks.unmounts => self.unmount(n),
            8 | 9 if disks.hooks && !self.minted.only_reads(n) => self.plan_user(n),
            _ => {}
        }
        Ok(())
    }

    fn begin_trouble(&mut self, n: usize) {
        let (errno, hits): (i32, fn(OpKind) -> bool) = match self.random.below(7) {
            0 => (libc::ENOSPC, takes_room),
            1 => (libc::EROFS, OpKind::is_mutating),
            2 => (libc::EMFILE, opens),
            3 => (libc::EACCES, needs_rights),
            4 => (libc::EIO, anything),
            5 => (libc::EIO, OpKind::is_syncing),
            _ => {
                let calls = 1 + self.random.below(30);
                self.nodes[n].model.kv.fail_after(calls);
                self.say(format!("n{n}: the store will fail at call {calls}"));
                return;
            }
        };
        let one_in = [1, 1, 3, 10, 30][self.random.index(5)];
        let calls = 1 + self.random.below(200);
        let seed = self.random.below(1 << 40);
        self.nodes[n].model.disk.trouble(Trouble { errno, hits, one_in, calls, seed });
        self.say(format!("n{n}: error {errno}, one call in {one_in}, for {calls} calls"));
    }

    fn take_snapshot(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        let (false, Some(tree)) = (node.model.disk.crashed(), &node.model.tree) else { return };
        let mark = tree.index().meta().last;
        let (disk, kv) = (node.model.disk.image(), node.model.kv.image());
        node.trials.snapshot = Some(Snapshot { disk, kv, mark });
        self.say(format!("n{n}: snapshot"));
    }

    /// The machine starts with its disk, its store or both as they were.
    fn put_back(&mut self, n: usize) -> Result<(), String> {
        let node = &mut self.nodes[n];
        if node.model.disk.crashed() || !node.model.disk.is_mounted() {
            return Ok(());
        }
        let Some(last) = node.model.tree.as_ref().map(|tree| tree.index().meta().last) else { return Ok(()) };
        let Some(snapshot) = node.trials.snapshot.take() else { return Ok(()) };
        // One without the other is told by the marks alone, which are written every ten seconds: before the
        // next mark nobody can tell.
        let what = if last == snapshot.mark { 2 } else { self.random.below(3) };
        self.say(format!("n{n}: put back: {}", ["disk", "store", "both"][usize::try_from(what).unwrap_or(2)]));
        self.drop_lines(n, false);
        self.forget_waits(n);
        if what != 1 {
            self.lose_disk(n);
        }
        let node = &mut self.nodes[n];
        node.close();
        node.trials.open.clear();
        let unflushed = node.model.kv.unflushed();
        if what != 0 {
            node.model.kv.put_back(&snapshot.kv);
        } else {
            node.model.kv.crash(unflushed);
            node.trials.to_approve = true;
        }
        if what != 1 {
            node.model.disk.put_back(&snapshot.disk);
            // What the old disk holds is as if a user had put it there; what it lacks is not deleted by that.
            let there = node.model.seen();
            let contents = contents(&node.model.disk.user());
            if self.faults.disks.hooks {
                // As after a power cut: what a user wrote between two calls nobody had synced.
                self.rest.wrote_all(&node.model.disk.user());
            }
            self.rest.begin(n);
            self.rest.touch_differing(&there);
            self.rest.disk_went_back(n, &there);
            self.rest.returned(&contents);
            self.release_touched(n);
        } else {
            node.model.disk.sync();
            node.model.disk.put_back(&node.model.disk.image());
        }
        let there = self.nodes[n].model.seen();
        self.rest.absent_is_undone(n, &there);
        if what != 0 {
            // What was deleted since, and forgotten by all, may return (DESIGN.md §3).
            let known = known_to_be_there(&self.nodes[n].model.kv)?;
            self.rest.returned_by_store(&known);
            // What its users do from here on does not cover what peers know and it does not.
            self.rest.emptied(n);
        }
        self.find_all(n, there.into_keys());
        self.nodes[n].owe_what_is_there();
        self.reopen(n)
    }

    /// A node without the store that knew what its disk has: where it only receives, nobody hears of that.
    fn find_all(&mut self, n: usize, there: impl Iterator<Item = Vec<u8>>) {
        if self.ways.of(n) == Direction::Receive {
            self.lose_disk(n);
        }
        self.ways.found(n, there);
    }

    fn unmount(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        if node.model.disk.is_mounted() {
            // An approval is for the root that is there, and takes effect at once (CONTRACT.md, `pleach approve`).
            // Where no tree has begun yet, one would on the directory beneath.
            if node.model.approved || node.model.disk.user().stat(".pleach/root").is_err() {
                return;
            }
            let lazily = self.random.once_in(2);
            node.trials.was_away = true;
            if lazily {
                node.model.disk.unmount_lazily();
            } else if node.model.disk.unmount().is_err() {
                return;
            }
            self.say(format!("n{n}: unmounted, lazily {lazily}"));
        } else {
            node.model.disk.remount();
            self.say(format!("n{n}: mounted again"));
        }
    }

    /// A user will act just before some call of the engine.
    fn plan_user(&mut self, n: usize) {
        use OpKind::{CreateTemp, LinkTemp, List, OpenFile, ReadAt, Rename, SetAttributes, Stat, StatFile, SyncDir};
        let ops = [CreateTemp, LinkTemp, List, OpenFile, ReadAt, Rename, SetAttributes, Stat, StatFile, SyncDir];
        let op = ops[self.random.index(ops.len())];
        let nth = 1 + self.random.index(6);
        match self.contested() {
            Some((at, path)) => self.contest(at, &path),
            None => self.plan_at(n, (op, nth), None),
        }
    }

    /// A user will change what is about to arrive, between the last look and its name.
    pub(super) fn plan_contest(&mut self) {
        if let Some((n, path)) = self.contested() {
            self.contest(n, &path);
        }
    }

    fn contest(&mut self, n: usize, path: &TreePath) {
        use OpKind::{CreateTemp, LinkTemp, Rename, StatFile};
        if !self.minted.only_reads(n) {
            let op = [CreateTemp, LinkTemp, Rename, Rename, Rename, StatFile][self.random.index(6)];
            self.plan_at(n, (op, 1), Some(path.as_bytes()));
        }
    }

    fn plan_at(&mut self, n: usize, (op, nth): (OpKind, usize), path: Option<&[u8]>) {
        self.rest.begin(n);
        // A step plans several: no two may write the same.
        self.plans += 1;
        let of = (self.step + PLANS_FROM * self.plans, self.faults.disks.long);
        let planned = users::plan(&mut self.random, &mut self.rest, of, path);
        planned.announce(&mut self.rest);
        self.release_touched(n);
        self.say(format!("n{n}: before {op:?} {nth} a user will {planned:?}"));
        let between = Arc::clone(&self.nodes[n].trials.between);
        let disk = self.nodes[n].model.disk.clone();
        self.nodes[n].model.disk.before(op, nth, move |user| {
            // What is put beneath a mount point is gone with the next mount.
            if !disk.is_mounted() {
                return;
            }
            let (before, tree) = (settled(user), user.foreseen(false));
            let linked = users::all_names(user, planned.path());
            // A user's call may fail like anybody's.
            planned.act(user);
            let after = settled(user);
            let mut between = between.lock().unwrap_or_else(PoisonError::into_inner);
            between.linked.extend(linked);
            between.deeds.note(&tree, &user.foreseen(false));
            between.destroyed.extend(before.difference(&after).cloned());
            between.made.extend(after.difference(&before).cloned());
        });
    }

    /// Ends what a node's disk suffers from.
    pub(super) fn end_trials(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        node.model.disk.clear_faults();
        node.model.disk.forget_hooks();
        node.model.kv.fail_no_more();
        if !node.model.disk.is_mounted() {
            node.model.disk.remount();
        }
        node.trials.open.clear();
    }

    /// The tree failed: for the disk's faults it is closed and opened anew, for its own the seed fails.
    pub(super) fn tree_failed(&mut self, n: usize, error: String) -> Result<(), String> {
        if !self.nodes[n].was_struck() {
            return Err(error);
        }
        self.say(format!("n{n} is closed: {error}"));
        self.drop_lines(n, true);
        self.forget_waits(n);
        let node = &mut self.nodes[n];
        let failed = node.model.kv.failed();
        node.close();
        if failed != std::mem::replace(&mut node.trials.store_failed, failed) {
            let keep = self.random.index(node.model.kv.unflushed() + 1);
            node.model.kv.crash(keep);
        }
        Ok(())
    }

    /// Opens a tree that is closed, as its owner does every second.
    pub(super) fn reopen(&mut self, n: usize) -> Result<(), String> {
        let node = &mut self.nodes[n];
        let away = !node.model.disk.is_mounted();
        let started = node.start();
        self.minted.reopened(n);
        self.hear_of_users(n);
        let node = &mut self.nodes[n];
        match started {
            Ok(()) => {
                if !node.note_paired() {
                    // What users put meanwhile is found by the root that pairs once more.
                    self.rest.forget_put_by(n);
                }
                let node = &mut self.nodes[n];
                node.trials.was_away = false;
                node.trials.to_approve = false;
                if std::mem::take(&mut node.trials.store_lost) {
                    let there = self.nodes[n].model.seen();
                    if self.ways.of(n) == Direction::Send {
                        // What others deleted is still there, and is told anew.
                        self.rest.touch_differing(&there);
                    }
                    self.find_all(n, there.into_keys());
                }
                self.say(format!("n{n} is open again"));
                self.nodes[n].check_contents_kept(false)
            }
            Err(_) if node.model.disk.crashed() => {
                node.close();
                Ok(())
            }
            Err(error) if std::mem::take(&mut node.trials.went_back) => {
                if !std::mem::take(&mut node.trials.to_approve) {
                    return Err(error);
                }
                node.close();
                node.model.approved = true;
                self.say(format!("n{n}: somebody approves the old disk"));
                Ok(())
            }
            Err(error) => {
                let struck = node.was_struck() || away;
                node.close();
                self.say(format!("n{n} stays closed: {error}"));
                if struck { Ok(()) } else { Err(error) }
            }
        }
    }
}

/// Contents of all files on the disk.
pub(super) fn contents(user: &ModelUser) -> BTreeSet<Vec<u8>> {
    let files = user.snapshot(true).into_values().filter(|seen| seen.kind == Kind::File);
    files.map(|seen| seen.content).collect()
}

/// The same without what the engine is building: it may throw that away.
fn settled(user: &ModelUser) -> BTreeSet<Vec<u8>> {
    // A write may wait for the end of a lease.
    let files = user.foreseen(true).into_iter().filter(|(path, _)| !path.starts_with(b".pleach/staging/"));
    files.filter(|(_, seen)| seen.kind == Kind::File).map(|(_, seen)| seen.content).collect()
}

impl Rest {
    /// What a disk holds that is not what all showed at the last rest came from outside.
    pub(super) fn touch_differing(
        &mut self,
        there: &std::collections::BTreeMap<Vec<u8>, pleach_store::vfs::model::Seen>,
    ) {
        let differing: Vec<_> = there.iter().filter(|(path, seen)| self.was_shown(path) != Some(*seen)).collect();
        for (path, _) in differing {
            self.touch(&String::from_utf8_lossy(path));
            // Nobody's either: a wait does not promise what others superseded long since.
            self.touch_unclaimed(path);
        }
    }
}
