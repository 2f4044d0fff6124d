//! A node on the modelled disk: it can be crashed and started again.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::path::TreePath;
use pleach_protocol::session::Announcement;
use pleach_protocol::version::NodeId;
use pleach_protocol::wire::First;
use pleach_store::chunks::ChunkSizes;
use pleach_store::ignore::IgnoreRules;
use pleach_store::kv::memory::{MemoryKv, MemoryKvDisk};
use pleach_store::rows::Direction;
use pleach_store::tree::{Cuts, Digests, Rows, Tree, TreeError, TreeOptions, Want};
use pleach_store::vfs::model::{ModelDisk, ModelVfs, Seen};

use crate::Heard;

/// Contents that are longer survive a restart while they are on their way, in bytes: all but the shortest.
const RESUMABLE_BYTES_MIN: u64 = 12;
/// Contents are cut into the shortest chunks.
pub const CUTS: Cuts = Cuts { bytes_min: 1_500, sizes: ChunkSizes { min: 64, average: 256, max: 1024 } };

/// A longer file is read in such steps.
const READ_AT_ONCE: u64 = 4_096;

/// A tree on the modelled disk.
pub type ModelTree = Tree<ModelVfs, MemoryKv>;

/// One node: its disk, its store's disk, and the tree while its agent runs.
#[derive(Debug)]
pub struct ModelNode {
    /// Its id.
    pub id: NodeId,
    /// The disk that holds the tree.
    pub disk: ModelDisk,
    /// The disk that holds the store.
    pub kv: MemoryKvDisk,
    /// The tree, none while the agent is down.
    pub tree: Option<ModelTree>,
    /// Somebody approved the root that is there, for the next start.
    pub approved: bool,
    /// The id of its root, where its state directory keeps it outside the store.
    pub root_id: Option<Vec<u8>>,
    /// Which way its changes go, from its next start on.
    pub direction: Direction,
    /// Whose version counts at its first pairing.
    pub first: Option<First>,
    /// Directories that appear only when complete.
    pub atomic: Vec<String>,
    ignore: Vec<String>,
    starts: u64,
}

impl ModelNode {
    /// A node with an empty disk, not started.
    #[must_use]
    pub fn new(number: u8) -> Self {
        let (disk, kv) = (ModelDisk::new(), MemoryKvDisk::default());
        let machine = disk.clone();
        kv.die_with(move || machine.crashed());
        Self {
            id: NodeId([number; 32]),
            disk,
            kv,
            tree: None,
            approved: false,
            root_id: None,
            direction: Direction::Both,
            first: None,
            atomic: Vec::new(),
            ignore: Vec::new(),
            starts: 0,
        }
    }

    /// The same with ignore rules.
    #[must_use]
    pub fn ignoring(mut self, rules: &[&str]) -> Self {
        self.ignore = rules.iter().map(|r| (*r).to_owned()).collect();
        self
    }

    /// Its disk and its store are lost; an empty disk takes their place, and the clock goes on.
    pub fn wipe(&mut self) {
        self.tree = None;
        let now = self.disk.now().nanos_since_epoch();
        (self.disk, self.kv) = (ModelDisk::new(), MemoryKvDisk::default());
        self.root_id = None;
        self.disk.advance(now.saturating_sub(self.disk.now().nanos_since_epoch()));
        let machine = self.disk.clone();
        self.kv.die_with(move || machine.crashed());
    }

    /// Starts its agent.
    ///
    /// # Errors
    /// The tree's.
    ///
    /// # Panics
    /// For ignore rules that cannot be read.
    pub fn start(&mut self) -> Result<(), TreeError> {
        self.tree = None;
        self.starts += 1;
        let mut entropy = [self.id.0[0]; 32];
        entropy[0] = u8::try_from(self.starts % 251).unwrap_or(0);
        // A store that is made anew has a journal of its own.
        entropy[16] = entropy[0];
        let disk = self.disk.clone();
        let options = TreeOptions {
            node: self.id,
            name: format!("n{}", self.id.0[0]),
            start: self.starts,
            entropy,
            approved: self.approved,
            settle: std::time::Duration::ZERO,
            copies: false,
            direction: self.direction,
            first: self.first,
            expected_root: self.root_id.clone(),
            boot: self.disk.boot().to_be_bytes().to_vec(),
            booted: self.disk.booted(),
            resumable_bytes_min: RESUMABLE_BYTES_MIN,
            cuts: CUTS,
            read_at_once: READ_AT_ONCE,
            atomic: IgnoreRules::new(&self.atomic).expect("the test's rules are good"),
            ignore: IgnoreRules::new(&self.ignore).expect("the test's rules are good"),
        };
        let tree = Tree::open(ModelVfs::new(&self.disk), self.kv.open(), Box::new(move || disk.now()), options)?;
        self.approved = false;
        self.tree = Some(tree);
        Ok(())
    }

    /// What its users see.
    #[must_use]
    pub fn seen(&self) -> BTreeMap<Vec<u8>, Seen> {
        self.disk.user().snapshot(false)
    }
}

/// Whether the sums of all directories say what their rows add up to.
///
/// # Errors
/// The directory whose sum does not, or the store's.
pub fn check_sums(tree: &ModelTree) -> Result<(), String> {
    let index = tree.index();
    let rows = index.beneath(&TreePath::ROOT, None, usize::MAX).map_err(|e| e.to_string())?;
    let dirs: BTreeSet<TreePath> =
        rows.iter().flat_map(|(path, _)| [path.parent(), Some(path.clone())]).flatten().collect();
    for dir in dirs {
        let (kept, anew) =
            (index.sum(&dir).map_err(|e| e.to_string())?, index.sum_anew(&dir).map_err(|e| e.to_string())?);
        if kept != anew {
            return Err(format!("the sum of '{dir}' is {kept:?}, its rows add up to {anew:?}"));
        }
    }
    Ok(())
}

/// Scans both and lets them talk until they come to rest; returns whether they did.
///
/// # Errors
/// Either tree's; a crash on demand is one of them.
///
/// # Panics
/// Where an agent is not started.
pub fn settle(a: &mut ModelNode, b: &mut ModelNode) -> Result<bool, TreeError> {
    for node in [&mut *a, &mut *b] {
        node.tree.as_mut().expect("the agent runs").scan_later();
        // Paths that failed are tried again.
        node.disk.advance(400_000_000_000);
    }
    let mut heard: BTreeMap<NodeId, Heard> = BTreeMap::new();
    let a_side = (a.tree.as_mut().expect("the agent runs"), a.id);
    let b_side = (b.tree.as_mut().expect("the agent runs"), b.id);
    crate::settle(a_side, b_side, &mut heard, 50)
}

/// Two nodes that run, with nothing on their disks.
///
/// # Panics
/// Where a tree cannot be opened.
#[must_use]
pub fn pair() -> (ModelNode, ModelNode) {
    let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
    for node in [&mut a, &mut b] {
        node.start().expect("it starts");
    }
    (a, b)
}

/// Lets both talk until they rest, alike.
///
/// # Panics
/// Where they do not, or differ.
pub fn rest(a: &mut ModelNode, b: &mut ModelNode) {
    assert!(settle(a, b).expect("no tree fails"), "they come to rest");
    assert_eq!(a.seen(), b.seen());
}

/// How many files lie in a node's staging.
#[must_use]
pub fn staged(node: &ModelNode) -> usize {
    node.disk.user().snapshot(true).keys().filter(|path| path.starts_with(b".pleach/staging/")).count()
}

/// B hears of what A has; what it asks for.
///
/// # Panics
/// Where a tree fails, or is not started.
pub fn ask(a: &mut ModelNode, b: &mut ModelNode) -> Vec<Want> {
    let (from, to) = (a.tree.as_mut().expect("the agent runs"), b.tree.as_mut().expect("the agent runs"));
    let mut heard = || {
        from.scan()?;
        from.commit()?;
        let position = to.cursor(a.id)?.map_or(0, |cursor| cursor.seq);
        let Rows { rows, names, upto, .. } =
            from.read_rows(position, usize::MAX, (b.id, to.life()), &mut Digests::default())?;
        to.merge((a.id, from.life()), rows, names, upto)?;
        to.commit()?;
        let wants = to.apply()?;
        to.commit()?;
        Ok::<_, TreeError>(wants)
    };
    heard().expect("no tree fails")
}

/// Another hears of some paths of a node, in one batch, and applies it.
///
/// # Panics
/// Where a tree fails, is not started or does not know the paths.
pub fn hear_of(from: &ModelNode, to: &mut ModelNode, paths: &[&str]) {
    let tree = from.tree.as_ref().expect("the agent runs");
    let announce = |name: &&str| {
        let path = TreePath::parse(name.as_bytes()).expect("it is a path");
        let entry = tree.entry(&path).expect("no tree fails").expect("the path is known");
        Announcement { path, entry, content: from.disk.user().read(name).ok() }
    };
    let (rows, life) = (paths.iter().map(announce).collect(), tree.life());
    let tree = to.tree.as_mut().expect("the agent runs");
    let heard = || {
        // It is read again when they talk.
        tree.merge((from.id, life), rows, Vec::new(), 0)?;
        tree.commit()?;
        tree.apply()?;
        tree.commit()
    };
    heard().expect("no tree fails");
}
