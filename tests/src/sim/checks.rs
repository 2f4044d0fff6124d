//! What must be so when all is at rest.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::moved::Moved;
use pleach_protocol::path::TreePath;
use pleach_store::rows::Direction;
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::{ModelUser, Seen};

use super::node::SimNode;
use super::{World, minted, rules};

/// What all showed at the last rest, and what users did.
#[derive(Debug, Default)]
pub(super) struct Rest {
    shown: BTreeMap<Vec<u8>, Seen>,
    /// Paths that users touched since, on which node.
    touched: BTreeSet<(Vec<u8>, usize)>,
    /// By the user at work.
    newest: Vec<Vec<u8>>,
    user: usize,
    /// All contents that a user completed.
    complete: BTreeSet<Vec<u8>>,
    /// Paths that users will change between two calls of the engine, if it comes to that.
    planned: BTreeSet<Vec<u8>>,
    /// Paths that somebody put and nobody took away.
    put: BTreeSet<Vec<u8>>,
    /// Contents that were shown at a rest, and those of them that everybody knows to be gone.
    known: BTreeSet<Vec<u8>>,
    gone: BTreeSet<Vec<u8>>,
    /// Contents that a node showed at a path, and that nobody had any more while it was running.
    gone_at: BTreeSet<(usize, Vec<u8>, Vec<u8>)>,
    /// Nodes that came back empty since.
    emptied: BTreeSet<usize>,
    /// Nodes whose disks were lost or put back since.
    lost: BTreeSet<usize>,
    /// What users of a node had removed when its machine crashed.
    undone: BTreeSet<(Vec<u8>, usize)>,
    /// Where users of whom did something meanwhile.
    put_over: BTreeSet<(Vec<u8>, usize)>,
    /// Where a store that was lost since will find directories.
    found_dirs: BTreeSet<Vec<u8>>,
    /// The files that it will find, and what they hold.
    found_files: BTreeSet<(Vec<u8>, Vec<u8>)>,
    /// What users wrote into open files.
    stored: BTreeSet<Vec<u8>>,
}

/// Whether one of two paths is the other or lies beneath it.
pub(super) fn related(one: &[u8], other: &[u8]) -> bool {
    let beneath = |low: &[u8], high: &[u8]| low.strip_prefix(high).is_some_and(|rest| rest.starts_with(b"/"));
    one == other || beneath(one, other) || beneath(other, one)
}

impl Rest {
    /// A user of this node begins.
    pub(super) fn begin(&mut self, n: usize) {
        self.user = n;
        self.newest.clear();
    }

    /// A user did something to a path.
    pub(super) fn touch(&mut self, path: &str) {
        if let Some(undone) = self.undone.take(&(path.as_bytes().to_vec(), self.user)) {
            self.put_over.insert(undone);
        }
        self.touched.insert((path.as_bytes().to_vec(), self.user));
        self.newest.push(path.as_bytes().to_vec());
    }

    /// No user's deed: what a disk that was put back holds is known to be old, or pairs with what others have.
    pub(super) fn touch_unclaimed(&mut self, path: &[u8]) {
        self.touched.insert((path.to_vec(), usize::MAX));
    }

    /// What the user who was last at work touched.
    pub(super) fn newest(&self) -> Vec<Vec<u8>> {
        self.newest.clone()
    }

    /// A user wrote a file, and it is whole.
    pub(super) fn wrote(&mut self, content: &[u8]) {
        self.complete.insert(content.to_vec());
    }

    /// Whatever users see now is as they left it.
    pub(super) fn wrote_all(&mut self, user: &ModelUser) {
        let files = user.snapshot(false).into_values().filter(|seen| seen.kind == Kind::File);
        self.complete.extend(files.map(|seen| seen.content));
    }

    /// An open file that users wrote into may be displaced by now; `content` is what was written last.
    pub(super) fn wrote_displaced(&mut self, user: &ModelUser, content: &str) {
        let files = user.snapshot(true).into_iter().filter(|(path, _)| path.starts_with(b".pleach/"));
        let new = |c: &Vec<u8>| c.starts_with(content.as_bytes()) || c.ends_with(b" late");
        let written = files.map(|(_, seen)| seen.content).filter(new);
        self.complete.extend(written);
    }

    /// A crash of the machine may have torn what a user wrote between two calls and the engine had just displaced.
    pub(super) fn torn(&mut self, before: &BTreeMap<Vec<u8>, Seen>, user: &ModelUser) {
        for (path, seen) in user.snapshot(true).into_iter().filter(|(path, _)| path.starts_with(b".pleach/")) {
            if before.get(&path).is_some_and(|live| live.content != seen.content && is_planned(&live.content)) {
                self.complete.insert(seen.content);
            }
        }
    }

    /// A user wrote this into an open file.
    pub(super) fn stored(&mut self, content: &str) {
        self.stored.insert(content.as_bytes().to_vec());
    }

    /// Whether it was written into a file that its writer has open. Through a mapping that changes no stamp at once, so that it
    /// may be displaced unseen, and is a version in the vault like others (LINUX.md section 2a); else it is named once
    /// its writer is done (section 4).
    pub(super) fn is_stored(&self, content: &[u8]) -> bool {
        self.stored.iter().any(|stored| content.starts_with(stored))
    }

    /// A disk that was put back holds these again.
    pub(super) fn returned(&mut self, contents: &BTreeSet<Vec<u8>>) {
        self.gone.retain(|content| !contents.contains(content));
        self.gone_at.retain(|(_, _, content)| !contents.contains(content));
    }

    /// A store that was put back knows these again.
    pub(super) fn returned_by_store(&mut self, known: &[(TreePath, BTreeSet<Hash>)]) {
        let hashes: BTreeSet<Hash> = known.iter().flat_map(|(_, hashes)| hashes).copied().collect();
        let is_known = |content: &Vec<u8>| hashes.contains(&Hash(*blake3::hash(content).as_bytes()));
        self.gone.retain(|content| !is_known(content));
        self.gone_at.retain(|(_, _, content)| !is_known(content));
        for (path, hashes) in known.iter().filter(|(_, hashes)| !hashes.is_empty()) {
            let shown = self.shown.get(path.as_bytes());
            let same = |seen: &Seen| {
                seen.kind != Kind::File || hashes.contains(&Hash(*blake3::hash(&seen.content).as_bytes()))
            };
            if !shown.is_some_and(same) {
                self.touch_unclaimed(path.as_bytes());
            }
        }
    }

    /// A user made something at a path: not a directory, for one that is made anew is the same.
    pub(super) fn put(&mut self, path: &str) {
        if !self.is_planned(path.as_bytes()) {
            self.put.insert(path.as_bytes().to_vec());
        }
    }

    /// The paths that users put until now, to be put back by [`Rest::put_only`].
    pub(super) fn put_until_now(&self) -> BTreeSet<Vec<u8>> {
        self.put.clone()
    }

    /// What a user did since counts on their disk alone.
    pub(super) fn put_only(&mut self, put: BTreeSet<Vec<u8>>) {
        self.put = put;
    }

    /// What users of a node put, and nobody may have seen, is theirs alone.
    pub(super) fn forget_put_by(&mut self, n: usize) {
        let Self { put, touched, .. } = self;
        put.retain(|path| !touched.iter().any(|(t, by)| *by == n && related(t, path)));
    }

    /// The paths that users of a node touched since the last rest.
    pub(super) fn touched_by(&self, n: usize) -> impl Iterator<Item = &Vec<u8>> {
        self.touched.iter().filter(move |(_, by)| *by == n).map(|(path, _)| path)
    }

    /// A user will do something to a path.
    pub(super) fn plan(&mut self, path: &str) {
        self.planned.insert(path.as_bytes().to_vec());
    }

    /// Whether users are about to do something to a path.
    pub(super) fn is_planned(&self, path: &[u8]) -> bool {
        self.planned.iter().any(|planned| related(planned, path))
    }

    /// What was planned and not done will not be done.
    pub(super) fn forget_plans(&mut self) {
        self.planned.clear();
    }

    /// A user took away what is at a path.
    pub(super) fn take_away(&mut self, path: &str) {
        self.put.retain(|put| !related(put, path.as_bytes()));
    }

    /// A node renamed a directory as one unit: what its users had just put there is theirs under the new name.
    pub(super) fn went_along(&mut self, n: usize, moved: &Moved, there: impl Fn(&[u8]) -> bool) {
        let target = |path: &Vec<u8>| {
            let target = moved.target(&TreePath::parse(path).ok()?)?.as_bytes().to_vec();
            there(&target).then_some(target)
        };
        let theirs = |path: &&Vec<u8>| self.touched.contains(&((*path).clone(), n));
        let along: Vec<_> =
            self.put.iter().filter(theirs).filter_map(|path| Some((path.clone(), target(path)?))).collect();
        for (from, to) in along {
            self.put.remove(&from);
            self.put.insert(to.clone());
            self.touched.insert((to, n));
        }
    }

    /// A disk is lost: what its users put there may be gone with it, and what all showed is where no disk was
    /// lost since.
    pub(super) fn forget_unshared(&mut self, n: usize, nodes: usize) {
        self.lost.insert(n);
        let Self { put, shown, touched, lost, .. } = self;
        let kept = lost.len() < nodes;
        put.retain(|path| (kept || !shown.contains_key(path)) && !touched.contains(&(path.clone(), n)));
    }

    /// A machine crashed: what was minted there behind the last sync and is absent now is no deletion of a user's
    /// (DESIGN.md §7, 2), and nobody can tell it from what a user took away and nobody had looked at. The same
    /// where a disk or a store went back or a store was lost: "it pairs", "nothing is deleted by it" (§3, §2).
    pub(super) fn absent_is_undone(&mut self, n: usize, there: &BTreeMap<Vec<u8>, Seen>) {
        let Self { touched, shown, undone, .. } = self;
        let touched = touched.iter().filter(|(_, by)| *by == n).map(|(path, _)| path);
        let absent = touched.chain(shown.keys()).filter(|path| !there.contains_key(*path));
        undone.extend(absent.map(|path| (path.clone(), n)));
    }

    /// Whether what a disk lacks may be what a crash of its machine took.
    pub(super) fn is_undone(&self, path: &[u8], n: usize) -> bool {
        self.undone.iter().any(|(undone, by)| *by == n && related(undone, path))
    }

    /// What crashes of machines took until now.
    pub(super) fn undone_until_now(&self) -> BTreeSet<(Vec<u8>, usize)> {
        self.undone.clone()
    }

    /// A deed that found nothing at a path and left nothing there took nothing away: what was undone there still is.
    pub(super) fn stays_undone(&mut self, undone: BTreeSet<(Vec<u8>, usize)>, untouched: impl Fn(&[u8]) -> bool) {
        self.undone.extend(undone.into_iter().filter(|(path, by)| *by == self.user && untouched(path)));
    }

    /// A disk went back: what it holds of what its users changed since is known to be old, and a directory pairs as one that a
    /// lost store finds.
    pub(super) fn disk_went_back(&mut self, n: usize, there: &BTreeMap<Vec<u8>, Seen>) {
        let theirs: Vec<Vec<u8>> = self.touched_by(n).cloned().collect();
        theirs.iter().for_each(|path| self.touch_unclaimed(path));
        self.found_dirs.extend(directories(there));
    }

    /// A store is lost: a directory that it finds on its disk pairs, and a directory hides what took its place
    /// meanwhile (DESIGN.md §2: "a directory, if any sibling is one").
    pub(super) fn store_lost(&mut self, there: &BTreeMap<Vec<u8>, Seen>) {
        self.found_dirs.extend(directories(there));
        let files = there.iter().filter(|(_, seen)| seen.kind != Kind::Dir);
        self.found_files.extend(files.map(|(path, seen)| (path.clone(), seen.content.clone())));
    }

    /// The files at and beneath a path that lost stores found.
    pub(super) fn found_files<'a>(&'a self, path: &'a [u8]) -> impl Iterator<Item = &'a (Vec<u8>, Vec<u8>)> {
        self.found_files.iter().filter(move |(found, _)| found.starts_with(path) && related(found, path))
    }

    /// Whether a lost store may bring a directory where something else was put meanwhile.
    pub(super) fn is_found_dir(&self, path: &[u8]) -> bool {
        self.found_dirs.contains(path)
    }

    /// The paths that all showed at the last rest.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Vec<u8>> {
        self.shown.keys()
    }

    /// What all showed of a path.
    pub(super) fn was_shown(&self, path: &[u8]) -> Option<&Seen> {
        self.shown.get(path)
    }

    /// Whether a change of a path can come from what users did.
    fn is_touched(&self, path: &[u8]) -> bool {
        // What a replacement that failed half-way leaves is touched by whoever tried.
        path.ends_with(b".replacement~") || self.touched.iter().any(|(t, _)| related(t, path))
    }

    /// Whether users of a node did something to a path since the last rest.
    pub(super) fn is_touched_by(&self, path: &[u8], n: usize) -> bool {
        self.touched.iter().any(|(t, by)| *by == n && related(t, path))
    }

    /// A node came back empty, or with an older store.
    pub(super) fn emptied(&mut self, n: usize) {
        self.emptied.insert(n);
    }

    /// Whether users of a node put something where others had something that the node did not know of: one of
    /// the two loses, and what lost a conflict counts as applied.
    pub(super) fn is_put_unknowing(&self, path: &[u8], n: usize) -> bool {
        let emptied = self.emptied.contains(&n) && self.shown.keys().any(|shown| related(shown, path));
        let put_over = || self.put_over.iter().any(|(put, by)| *by == n && related(put, path));
        self.is_touched_by(path, n) && (emptied || put_over())
    }

    /// Whether users of other nodes did something to a path since the last rest.
    pub(super) fn is_touched_by_others(&self, path: &[u8], n: usize) -> bool {
        path.ends_with(b".replacement~") || self.touched.iter().any(|(t, by)| *by != n && related(t, path))
    }

    /// No file is half-written, and none came back that everybody knew to be gone.
    /// Where changes go one way only, what is gone everywhere else may stay.
    pub(super) fn check_contents(&self, n: usize, node: &SimNode, both: bool) -> Result<(), String> {
        if node.model.disk.crashed() || !node.model.disk.is_mounted() {
            return Ok(());
        }
        for (path, seen) in node.model.seen().into_iter().filter(|(_, seen)| seen.kind == Kind::File) {
            let what = match &seen.content {
                content if !self.complete.contains(content) => "is not whole",
                content if both && self.gone.contains(content) => "was gone everywhere and came back",
                content if both && self.gone_at.contains(&(n, path.clone(), content.clone())) => {
                    "was gone here and came back"
                }
                _ => continue,
            };
            return Err(format!("n{n} shows '{}', which {what}: {seen:?}", String::from_utf8_lossy(&path)));
        }
        Ok(())
    }
}

fn directories(there: &BTreeMap<Vec<u8>, Seen>) -> impl Iterator<Item = Vec<u8>> {
    there.iter().filter(|(_, seen)| seen.kind == Kind::Dir).map(|(path, _)| path.clone())
}

/// The numbers of what users do between two calls. A step has its own number, and there are fewer than so many.
pub(super) const PLANS_FROM: u32 = 1_000;
/// The numbers of what they do when they act more than once in a step.
pub(super) const ACTS_FROM: u32 = 100_000;

/// Whether a content is of what users do between two calls.
fn is_planned(content: &[u8]) -> bool {
    number(content) % ACTS_FROM >= PLANS_FROM
}

/// The number of a content; 0 where it has none.
fn number(content: &[u8]) -> u32 {
    let digits = content.strip_prefix(b"content ").unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u32, digit| number.wrapping_mul(10).wrapping_add(u32::from(digit - b'0')))
}

impl World {
    pub(super) fn check_rest(&mut self) -> Result<(), String> {
        let shown: Vec<_> = self.nodes.iter().map(|n| n.model.seen()).collect();
        let first = self.ways.reference();
        for (n, other) in shown.iter().enumerate().filter(|(n, _)| *n != first) {
            let open: Vec<Vec<u8>> = shown[first].keys().chain(other.keys()).cloned().collect();
            let is_open =
                |path: &&Vec<u8>| self.nodes[first].leaves_owner_open(path) && self.nodes[n].leaves_owner_open(path);
            let open: BTreeSet<Vec<u8>> = open.iter().filter(is_open).cloned().collect();
            let open = |path: &[u8]| open.contains(path);
            match self.ways.of(n) {
                Direction::Both => {
                    let differs = if rules::change(self.plan.seed) {
                        let [left, right] = rules::managed(&shown[first], other);
                        difference(&left, &right, open)
                    } else {
                        difference(&shown[first], other, open)
                    };
                    if !differs.is_empty() {
                        return Err(format!("n{first} and n{n} differ: {differs}"));
                    }
                }
                Direction::Receive => self.check_receiver(n, &shown[first], other, open)?,
                // It applies nothing.
                Direction::Send => {}
            }
        }
        let shown = &shown[first];
        self.check_entries()?;
        self.check_superseded()?;
        self.check_promises()?;
        // Rules that change leave what they ignored where it was, and what they no longer ignore pairs.
        let ruled = rules::change(self.plan.seed);
        // What one that only sends has not looked at yet covers all that it passed over until it does, and lists it.
        let entries = self.nodes[first].entries()?;
        let sent = |path: &[u8]| {
            let lists =
                TreePath::parse(path).is_ok_and(|path| entries.get(&path).is_some_and(|e| !e.losers.is_empty()));
            let mut senders = (0..self.nodes.len()).filter(|n| self.ways.of(*n) == Direction::Send);
            lists && senders.any(|n| self.rest.is_touched_by(path, n))
        };
        // What a directory displaced that a lost store found is in the vault, also where the directory went with another store.
        let displaced = |path: &[u8]| self.rest.is_found_dir(path);
        let excused = |path: &[u8]| ruled || sent(path) || displaced(path);
        if let Some(path) = self.rest.put.iter().find(|path| !shown.contains_key(*path) && !excused(path)) {
            return Err(format!("'{}' is gone, and no user took it away", String::from_utf8_lossy(path)));
        }
        // Once is enough: it stays away.
        let gone: Vec<Vec<u8>> =
            self.rest.put.iter().filter(|p| !shown.contains_key(*p) && excused(p)).cloned().collect();
        self.rest.put.retain(|path| !gone.contains(path));
        self.note_gone(shown)?;
        for path in self.rest.shown.keys().chain(shown.keys()) {
            let (before, after) = (self.rest.shown.get(path), shown.get(path));
            // What all showed is where a disk is left that showed it.
            let lost = after.is_none() && self.rest.lost.len() == self.nodes.len();
            if before != after && !lost && !ruled && !self.rest.is_touched(path) {
                let path = String::from_utf8_lossy(path);
                return Err(format!("'{path}' changed, and no user touched it: {before:?} -> {after:?}"));
            }
        }
        self.rest.shown.clone_from(shown);
        self.rest.touched.clear();
        self.rest.emptied.clear();
        self.rest.lost.clear();
        self.rest.undone.clear();
        self.rest.put_over.clear();
        self.rest.found_dirs.clear();
        self.rest.found_files.clear();
        self.forget_locals();
        Ok(())
    }

    /// What was shown at a rest, is not now, and cannot come back by anything that is known.
    fn note_gone(&mut self, shown: &BTreeMap<Vec<u8>, Seen>) -> Result<(), String> {
        let files = shown.values().filter(|seen| seen.kind == Kind::File);
        let now: BTreeSet<Vec<u8>> = files.map(|seen| seen.content.clone()).collect();
        let mut kept = BTreeSet::new();
        for entry in self.nodes.first().map(SimNode::entries).transpose()?.unwrap_or_default().values() {
            kept.extend(entry.content.values().filter_map(|s| match s.content.value() {
                Some(Value::File { hash, .. }) => Some(*hash),
                _ => None,
            }));
        }
        let elsewhere = self.one_way_contents();
        let Rest { known, gone, .. } = &mut self.rest;
        known.extend(now.iter().cloned());
        // Only what ends with a full stop was written once: others are parts of it, or more.
        let once = known.iter().filter(|c| c.ends_with(b"."));
        let over = once.filter(|c| !now.contains(*c) && !kept.contains(&Hash(*blake3::hash(c).as_bytes())));
        gone.extend(over.filter(|c| !elsewhere.contains(*c)).cloned());
        Ok(())
    }

    /// What a node showed in the middle of everything, and what no node shows nor any journal lists by now, does not come
    /// back there.
    pub(super) fn note_gone_at(&mut self, n: usize, shown: BTreeSet<(Vec<u8>, Vec<u8>)>) -> Result<(), String> {
        // A crash of the machine brings back what users removed, and nobody has heard of that yet. Who deletes what a lost
        // store found on its disk has not seen what was announced before.
        let comes_back = self.faults.power || self.faults.lost_stores || !self.one_way_contents().is_empty();
        if comes_back || !self.nodes.iter().all(SimNode::is_up) {
            return Ok(());
        }
        let mut there: BTreeSet<Hash> = BTreeSet::new();
        for node in &self.nodes {
            there.extend(node.model.seen().into_values().map(|seen| Hash(*blake3::hash(&seen.content).as_bytes())));
            there.extend(node.entries()?.values().flat_map(minted::contents_of));
        }
        let is_gone =
            |content: &[u8]| content.ends_with(b".") && !there.contains(&Hash(*blake3::hash(content).as_bytes()));
        let gone = shown.into_iter().filter(|(_, content)| is_gone(content));
        self.rest.gone_at.extend(gone.map(|(path, content)| (n, path, content)));
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

/// Where two trees differ; of a directory where that is left `open` the owner does not count.
fn difference(left: &BTreeMap<Vec<u8>, Seen>, right: &BTreeMap<Vec<u8>, Seen>, open: impl Fn(&[u8]) -> bool) -> String {
    let paths: BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let same = |path: &Vec<u8>| match (left.get(path), right.get(path)) {
        (Some(a), Some(b)) if a != b && a.kind == Kind::Dir && open(path) => {
            *a == Seen { uid: a.uid, gid: a.gid, ..b.clone() }
        }
        (a, b) => a == b,
    };
    let differing = paths.into_iter().filter(|p| !same(p));
    let shown: Vec<String> =
        differing.map(|p| format!("{}: {:?} | {:?}", String::from_utf8_lossy(p), left.get(p), right.get(p))).collect();
    shown.join("; ")
}
