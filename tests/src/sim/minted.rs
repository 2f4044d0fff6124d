//! What the journals say of who wrote: a node where nobody writes mints nothing, what nobody named is
//! never taken out of a tree, what lost against somebody who had not seen it is listed, and what one node
//! alone writes is in conflict with nothing.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::entry::{Entry, Hash, Value};
use pleach_protocol::version::NodeId;
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::Seen;

use super::checks::related;
use super::ways::Ways;
use super::{Faults, Random, World};
use super::{copied, rules};
use pleach_store::rows::Direction;

/// What was minted so far.
#[derive(Debug)]
pub(super) struct Minted {
    /// The node whose users only read.
    reader: Option<usize>,
    /// The only node whose users write.
    writer: Option<usize>,
    /// What a node finds of its own without knowing it may be named anew.
    pairs: bool,
    /// What users wrote may go with the power.
    loses: bool,
    /// Users write into files that have lost their names.
    late: bool,
    /// All contents that some journal named.
    named: BTreeSet<Hash>,
    /// The heads up to which that is so, by node.
    heads: Vec<Option<u64>>,
    deeds: Deeds,
}

/// What a tree holds, before or after somebody changes it.
pub(super) type Tree = BTreeMap<Vec<u8>, Seen>;

const VAULT: &[u8] = b".pleach/vault/";

/// What users did to contents.
#[derive(Clone, Debug, Default)]
pub(super) struct Deeds {
    /// Contents that they made.
    made: BTreeSet<Vec<u8>>,
    /// Contents that somebody who saw them changed or took away.
    superseded: BTreeSet<Vec<u8>>,
    /// What was put where, and whether it is a directory, since the last rest. A directory whose
    /// mode or owner was changed counts as put: that makes a derived one real.
    put: BTreeSet<(Vec<u8>, bool, Vec<u8>)>,
}

impl Deeds {
    /// Takes note of one.
    pub(super) fn note(&mut self, before: &Tree, after: &Tree) {
        let there = |tree: &Tree, path: &Vec<u8>, seen: &Seen| {
            tree.get(path).is_some_and(|other| other.kind == seen.kind && other.content == seen.content)
        };
        let gone = before.iter().filter(|(path, seen)| !there(after, path, seen));
        self.superseded.extend(gone.map(|(_, seen)| seen.content.clone()));
        for (path, seen) in after.iter().filter(|(path, seen)| !there(before, path, seen)) {
            self.put.insert((path.clone(), seen.kind == Kind::Dir, seen.content.clone()));
            if seen.kind == Kind::File && is_of_one_write(&seen.content) {
                self.made.insert(seen.content.clone());
            }
        }
        let access = |seen: &Seen| (seen.mode, seen.uid, seen.gid);
        let changed = |path: &Vec<u8>, seen: &Seen| before.get(path).is_some_and(|old| access(old) != access(seen));
        for (path, _) in after.iter().filter(|(path, seen)| seen.kind == Kind::Dir && changed(path, seen)) {
            self.put.insert((path.clone(), true, Vec::new()));
        }
    }

    /// Takes note of what one took away from a disk.
    pub(super) fn note_gone(&mut self, before: BTreeSet<Vec<u8>>, after: &BTreeSet<Vec<u8>>) {
        self.superseded.extend(before.into_iter().filter(|content| !after.contains(content)));
    }

    /// Contents that nobody changed who saw them, put where nobody else put anything since the last rest.
    fn unrivalled(&self) -> impl Iterator<Item = (&Vec<u8>, &Vec<u8>)> {
        let open = self
            .put
            .iter()
            .filter(|(_, is_dir, content)| !is_dir && is_of_one_write(content) && !self.superseded.contains(content));
        let rivals = |path: &Vec<u8>, content: &Vec<u8>| {
            // A directory above is no rival.
            let mut others = self.put.iter().filter(|(_, _, other)| other != content);
            others.any(|(at, is_dir, _)| related(at, path) && (!is_dir || at.len() >= path.len()))
        };
        open.filter(move |(path, _, content)| !rivals(path, content)).map(|(path, _, content)| (path, content))
    }
}

/// Whether a content is what one write made, and no other can have made.
fn is_of_one_write(content: &[u8]) -> bool {
    content.starts_with(b"content ") && content.iter().position(|byte| *byte == b'.') == Some(content.len() - 1)
}

impl Minted {
    pub(super) fn draw(seed: u64, faults: &Faults, wipes: bool, ways: &Ways, count: usize) -> Self {
        // A generator of its own: all else is drawn as without it.
        let mut random = Random::new(seed.rotate_left(32) ^ 0x006d_696e_7465_6400);
        let copied = copied::begins(seed, ways);
        let reader = (random.once_in(2) && !copied).then(|| random.index(count));
        let writer = (reader.is_none() && random.once_in(4) && !copied).then(|| random.index(count));
        // Who only sends puts what they see in place of what they never saw.
        let (loses, late) = (faults.power, faults.disks.open_files || ways.any(Direction::Send) || ways.any_first());
        let pairs =
            faults.lost_stores || faults.disks.can_lose() || wipes || ways.turns() || rules::change(seed) || copied;
        let heads = vec![None; count];
        let (named, deeds) = (BTreeSet::new(), Deeds::default());
        Self { reader, writer, pairs, loses, late, named, heads, deeds }
    }

    /// Takes note of what users did.
    pub(super) fn hear_of(&mut self, mut deeds: Deeds) {
        self.deeds.made.append(&mut deeds.made);
        self.deeds.superseded.append(&mut deeds.superseded);
        self.deeds.put.append(&mut deeds.put);
    }

    /// How many nodes' users write, where that is known to be few.
    fn writers(&self) -> Option<usize> {
        let but_one = self.reader.is_some().then(|| self.heads.len() - 1);
        self.writer.map(|_| 1).or(but_one)
    }

    /// A node's store is opened anew: its head may be an older one, which other changes bring to the same number.
    pub(super) fn reopened(&mut self, n: usize) {
        self.heads[n] = None;
    }

    /// Whether users put another file at a path since the last rest.
    pub(super) fn put_another(&self, path: &[u8], content: &[u8]) -> bool {
        self.deeds.put.iter().any(|(at, is_dir, put)| at == path && !is_dir && put != content)
    }

    /// Whether users of a node only read.
    pub(super) fn only_reads(&self, n: usize) -> bool {
        self.reader == Some(n) || self.writer.is_some_and(|writer| writer != n)
    }
}

/// All contents that an entry names.
pub(super) fn contents_of(entry: &Entry) -> impl Iterator<Item = Hash> + '_ {
    let siblings = entry.content.values().filter_map(|s| s.content.value());
    let losers = entry.losers.values().flatten().map(|loser| &loser.value);
    siblings.chain(losers).filter_map(|value| match value {
        Value::File { hash, .. } => Some(*hash),
        _ => None,
    })
}

/// Whether a node wrote what an entry says; but for times of directories, which move with their children.
fn is_written_by(entry: &Entry, node: NodeId) -> bool {
    let registers = entry.content.keys().chain(entry.losers.keys()).chain(entry.access.keys());
    let times = entry.times.iter().filter(|(_, time)| time.of != Value::Dir).map(|(dot, _)| dot);
    registers.chain(times).any(|dot| dot.actor.node == node)
}

impl World {
    /// Takes note of what a node's journal names, and checks what it minted and filed.
    pub(super) fn check_minted(&mut self, n: usize) -> Result<(), String> {
        let node = &self.nodes[n];
        if !node.model.disk.is_mounted() || node.model.disk.crashed() {
            return Ok(());
        }
        let Some(head) = node.head() else { return Ok(()) };
        if self.minted.heads[n].replace(head) != Some(head) {
            let entries = node.entries()?;
            self.minted.named.extend(entries.values().flat_map(contents_of));
            self.check_silent(n, &entries)?;
            let node = &self.nodes[n];
            if !self.minted.pairs
                && self.minted.only_reads(n)
                && let Some((path, entry)) = entries.iter().find(|(_, entry)| is_written_by(entry, node.model.id))
            {
                return Err(format!("n{n} minted '{path}', and nobody writes there: {entry:?}"));
            }
        }
        // What only receives files what was told to nobody.
        if self.minted.pairs
            || self.minted.loses
            || self.ways.of(n) == Direction::Receive
            || self.ways.first(n).is_some()
        {
            return Ok(());
        }
        let filed = self.nodes[n].model.disk.user().snapshot(true).into_iter().filter(|(path, seen)| {
            // What was found in staging is nobody's version.
            let version = path.strip_prefix(VAULT).is_some_and(|name| !name.starts_with(b"found-"));
            version && seen.kind == Kind::File && seen.content.ends_with(b".")
        });
        for (path, seen) in filed {
            let named = self.minted.named.contains(&Hash(*blake3::hash(&seen.content).as_bytes()));
            // Of a file with other names a copy is filed: what users write through those meanwhile is there, too.
            let shown = || {
                let same = |other: &Seen| other.content == seen.content;
                self.faults.disks.links && self.nodes[n].model.seen().values().any(same)
            };
            if !named && !self.rest.is_stored(&seen.content) && !shown() && !self.stands(&path) {
                let content = String::from_utf8_lossy(&seen.content);
                return Err(format!("n{n} took '{content}' away, which no journal ever named"));
            }
        }
        Ok(())
    }

    /// Whether a version is in a directory that came out where a file was replaced, and that the disk let neither be looked
    /// at nor put back: no journal names what it holds.
    fn stands(&self, path: &[u8]) -> bool {
        self.faults.disks.trouble && path.strip_prefix(VAULT).is_some_and(|version| version.contains(&b'/'))
    }

    /// What users made is shown or listed, but for what somebody saw before changing it. At a rest.
    pub(super) fn check_superseded(&mut self) -> Result<(), String> {
        let put = std::mem::take(&mut self.minted.deeds.put);
        let Minted { pairs, loses, late, .. } = self.minted;
        if pairs || loses {
            return Ok(());
        }
        let node = &self.nodes[self.ways.reference()];
        let entries = node.entries()?;
        if self.minted.writers() == Some(1)
            && let Some((path, entry)) = entries.iter().find(|(_, entry)| is_in_conflict(entry))
        {
            return Err(format!("'{path}' is in conflict, and only one node's users write: {entry:?}"));
        }
        let listed: BTreeSet<Hash> = entries.values().flat_map(contents_of).collect();
        let mut shown: BTreeSet<Vec<u8>> = node.model.seen().into_values().map(|seen| seen.content).collect();
        let disks = self.nodes.iter().flat_map(|node| node.model.disk.user().snapshot(true));
        shown.extend(disks.filter(|(path, _)| self.stands(path)).map(|(_, seen)| seen.content));
        for content in self.minted.deeds.made.difference(&self.minted.deeds.superseded) {
            if !shown.contains(content) && !listed.contains(&Hash(*blake3::hash(content).as_bytes())) {
                let content = String::from_utf8_lossy(content);
                return Err(format!("nobody who saw '{content}' changed it, and it is neither shown nor listed"));
            }
        }
        let deeds = Deeds { put, ..self.minted.deeds.clone() };
        if let Some((path, content)) = deeds.unrivalled().find(|(_, content)| !late && !shown.contains(*content)) {
            let (path, content) = (String::from_utf8_lossy(path), String::from_utf8_lossy(content));
            return Err(format!("'{content}' at '{path}' lost, and nobody who saw it put anything there"));
        }
        Ok(())
    }
}

/// Whether writes of an entry did not see each other.
fn is_in_conflict(entry: &Entry) -> bool {
    entry.content.values().filter(|sibling| sibling.content.value().is_some()).count() > 1 || !entry.losers.is_empty()
}
