//! One tree on one node: the single owner of its index, its journal and its disk.
//!
//! What a watcher or a scan found is observed ([`Tree::observe`]), what peers announced is merged
//! ([`Tree::merge`]), and [`Tree::apply`] makes the disk show the view. [`Tree::commit`] makes all
//! of it durable; only then may anything be announced. Blocking calls, one thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use pleach_protocol::entry::{Entry, Hash, Rank, Value};
use pleach_protocol::mint::Shown;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::version::{Actor, Dot, NodeId};
use pleach_protocol::view::State;
use pleach_protocol::wire::First;

use crate::ignore::IgnoreRules;
use crate::index::{Index, IndexError};
use crate::kv::Kv;
use crate::root::{self, Place, RootError};
use crate::rows::{self, Direction, EntryRow, HistoryRow, Pairing, ProblemRow, Space};
use crate::vfs::{RootIdentity, Vfs};

mod alike;
mod apply;
mod collect;
mod content;
mod copies;
mod decide;
mod delta;
mod direction;
mod displace;
mod exchange;
mod expire;
mod fallback;
mod fetch;
mod first;
mod fresh;
pub(crate) mod hands;
mod hooks;
mod links;
mod local;
mod manifests;
mod moved;
mod observe;
mod pairing;
mod partial;
mod perform;
mod plan;
mod push;
mod reading;
mod recover;
mod release;
mod scan;
mod sought;
mod told;
mod unlisted;
mod unseen;

pub use alike::Digests;
pub use apply::{Want, WantId};
pub use decide::{Conflict, DecideError, Kept, Version};
pub use delta::Cuts;
pub use exchange::{INLINE_BYTES_MAX, Life, Rows};
pub use fallback::{LIST_SUFFIX, sent_record};
pub use hooks::{HookId, HookPlace};
pub use observe::Observed;
pub use push::{PushGone, PushItem, PushPlan, PushResult};
pub use reading::{LongReads, READ_AT_ONCE};
pub use scan::{Scan, ScanStats};

/// Says why a tree cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The root is not there or not ours: the tree changes nothing until it is back.
    #[error(transparent)]
    Root(#[from] RootError),
    /// The store failed: it must be opened anew.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The file system failed as a whole (a sync, pleach's own directory).
    #[error("{what} failed")]
    Disk {
        /// The operation.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// What a tree is opened with.
#[derive(Debug)]
pub struct TreeOptions {
    /// This node.
    pub node: NodeId,
    /// Its display name.
    pub name: String,
    /// Start bits, drawn afresh at each start.
    pub start: u64,
    /// Random bytes for a new root's id and a new journal's incarnation.
    pub entropy: [u8; 32],
    /// The id of the root that this tree had, where it had one.
    pub expected_root: Option<Vec<u8>>,
    /// Somebody approved the root that is there: it is taken as new, whatever was known of it.
    pub approved: bool,
    /// Extra quiet time before a changed file is taken.
    pub settle: Duration,
    /// Which way changes go.
    pub direction: Direction,
    /// Whose version counts where a root pairs for the first time; none: the younger one, and the other is a conflict.
    pub first: Option<First>,
    /// Whether a conflict's loser also gets a visible copy, made where it was written.
    pub copies: bool,
    /// This machine's boot id.
    pub boot: Vec<u8>,
    /// When this machine booted.
    pub booted: Time,
    /// A content that is longer survives a restart while it is on its way, in bytes.
    pub resumable_bytes_min: u64,
    /// Which contents are cut, and how.
    pub cuts: Cuts,
    /// A changed file that is longer is read in steps of so many bytes, between all else.
    pub read_at_once: u64,
    /// The ignore rules of the config.
    pub ignore: IgnoreRules,
    /// Directories that appear only when complete, in the same syntax.
    pub atomic: IgnoreRules,
}

impl TreeOptions {
    /// The incarnation that this start would give a journal.
    fn fresh_incarnation(&self) -> [u8; 16] {
        let mut incarnation = [0; 16];
        incarnation.copy_from_slice(&self.entropy[16..]);
        incarnation
    }
}

/// A clock: the time now.
pub type Clock = Box<dyn Fn() -> Time + Send>;

/// One tree. See the module.
pub struct Tree<V: Vfs, K: Kv> {
    vfs: Arc<V>,
    index: Index<K>,
    clock: Clock,
    options: TreeOptions,
    actor: Actor,
    counter: u64,
    identity: RootIdentity,
    coarse: bool,
    owners: bool,
    /// Whether a whole scan is due: at the start, after lost events, after another mount.
    scan_due: bool,
    /// One that is under way, and goes on between other work.
    rescan: Option<Scan<V>>,
    /// Paths to look at again, bounded by [`DIRTY_MAX`]; more make a scan due.
    dirty: BTreeMap<TreePath, Dirty>,
    /// Those of them that are long files, and are read a step at a time; bounded alike.
    long: reading::LongFiles<V>,
    apply: apply::Applier<V>,
    late: displace::LateWriters,
    unlisted: unlisted::Unlisted<V>,
    sought: sought::Sought,
    releases: release::Releases,
    fetches: BTreeMap<WantId, fetch::Fetch<V>>,
    fresh: fresh::Fresh,
    motion: local::Motion,
    /// Contents that are partly here, each by the path that is to show it; their rows say the same.
    partials: BTreeMap<TreePath, partial::Partial>,
    manifests: manifests::Manifests,
    /// The highest seq that any peer is known to have merged.
    heard: u64,
    /// Contents that arrived since the start.
    arrivals: u64,
    links: links::Links,
    /// The journal's head before this start added to it.
    head_at_start: u64,
    /// How far each peer was told the journal since.
    told_since: BTreeMap<NodeId, u64>,
    problems: BTreeMap<TreePath, String>,
    /// What could not be read.
    unseen: BTreeMap<TreePath, unseen::Unseen>,
    /// Mount points beneath the root, bounded by [`MOUNTS_MAX`].
    mounts: BTreeSet<TreePath>,
    minted_at: Option<Time>,
    /// The head at the last mint.
    minted_head: u64,
    rules_changed: bool,
    /// What pushes brought here while this agent was away; one that was under way when it came back may end behind its scan.
    brought: fallback::Sent,
    /// Paths that users changed here while the tree only receives.
    locals: u64,
    /// The tree received only, and what was changed meanwhile is to pair.
    pairs_locals: bool,
    /// The root waits for a peer's whole index.
    waits: bool,
    /// It pairs with one that came.
    follows: Option<First>,
}

/// What [`TreeOptions::resumable_bytes_min`] is on a real node: less is sent again in a moment.
pub const RESUMABLE_BYTES_MIN: u64 = 8 * 1024 * 1024;

/// Paths that wait for another look; beyond it a scan does their work.
const DIRTY_MAX: usize = 100_000;

/// Mount points that are named.
const MOUNTS_MAX: usize = 1_000;

/// How long a minted change may wait for the sync that makes it survive a power cut.
const SYNC_MINTED_SECS: i64 = 30;

/// The longest time that anything is put off for.
const PAUSE_SECS_MAX: i64 = 300;

/// Whether it is time. A moment that lies further ahead than anything is put off for was set before
/// the clock was put back.
const fn is_due(at: Time, now: Time) -> bool {
    let left = at.secs.saturating_sub(now.secs);
    left < 0 || left == 0 && at.nanos <= now.nanos || left > PAUSE_SECS_MAX
}

/// Why and how a path is looked at again.
#[derive(Clone, Copy, Debug, Default)]
struct Dirty {
    rehash: bool,
    take_open: bool,
}

impl Dirty {
    const fn add(&mut self, other: Self) {
        self.rehash |= other.rehash;
        self.take_open |= other.take_open;
    }
}

impl<V: Vfs, K: Kv> std::fmt::Debug for Tree<V, K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tree")
            .field("actor", &self.actor)
            .field("head", &self.index.meta().head)
            .finish_non_exhaustive()
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Opens a tree: claims its root, settles what an earlier life intended, and makes a scan due.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn open(vfs: V, kv: K, clock: Clock, options: TreeOptions) -> Result<Self, TreeError> {
        let mut index = Index::open(kv, &options.entropy)?;
        let head_at_start = index.meta().head;
        // Before anything else of this start: it goes with the first batch.
        told::close(&mut index)?;
        hooks::resume(&mut index)?;
        let expected = match &options.expected_root {
            Some(id) => Some(id.clone()),
            None => Some(index.meta().root.clone()).filter(|id| !id.is_empty()),
        };
        let expected = expected.filter(|_| !options.approved);
        let fresh_id: String = options.entropy[..16].iter().map(|b| format!("{b:02x}")).collect();
        let (identity, marker) = root::claim(&vfs, expected.as_deref(), fresh_id.as_bytes())?;
        let crashed = !index.meta().boot.is_empty() && index.meta().boot != options.boot;
        let meta = index.meta_mut();
        if meta.incarnation == [0; 16] {
            meta.incarnation = options.fresh_incarnation();
        }
        let replaced = !meta.root.is_empty() && meta.root != marker;
        meta.root = marker;
        let disk = |what| move |source| TreeError::Disk { what, source };
        let private = root::private(&vfs).map_err(disk("opening .pleach"))?;
        let coarse = vfs.coarse_stamps(&private).map_err(disk("probing .pleach"))?;
        drop(private);
        let owners = vfs.may_chown();
        let actor = Actor { node: options.node, start: options.start };
        let name = options.name.clone();
        let (applied, staged_max) = (index.meta().applied, vfs.staged_max());
        let mut tree = Self {
            vfs: Arc::new(vfs),
            index,
            clock,
            options,
            actor,
            counter: 0,
            identity,
            coarse,
            owners,
            scan_due: true,
            rescan: None,
            dirty: BTreeMap::new(),
            long: reading::LongFiles::default(),
            apply: apply::Applier::new(applied, staged_max),
            late: displace::LateWriters::default(),
            unlisted: unlisted::Unlisted::default(),
            sought: sought::Sought::default(),
            releases: release::Releases::default(),
            fetches: BTreeMap::new(),
            fresh: fresh::Fresh::default(),
            motion: local::Motion::default(),
            partials: BTreeMap::new(),
            manifests: manifests::Manifests::default(),
            heard: 0,
            arrivals: 0,
            links: links::Links::default(),
            head_at_start,
            told_since: BTreeMap::new(),
            problems: BTreeMap::new(),
            unseen: BTreeMap::new(),
            mounts: BTreeSet::new(),
            minted_at: None,
            minted_head: 0,
            rules_changed: false,
            brought: fallback::Sent::new(),
            locals: 0,
            pairs_locals: false,
            waits: false,
            follows: None,
        };
        tree.index.put_name(actor, &name);
        tree.wait_for_first(replaced)?;
        tree.agree_with_root(replaced)?;
        tree.recover(crashed)?;
        tree.settle_direction()?;
        tree.find_manifests()?;
        let boot = tree.options.boot.clone();
        tree.index.meta_mut().boot = boot;
        tree.index.flush()?;
        tree.mark_last()?;
        Ok(tree)
    }

    /// The index, to read.
    pub const fn index(&self) -> &Index<K> {
        &self.index
    }

    /// The ignore rules in force.
    pub const fn ignore(&self) -> &IgnoreRules {
        &self.options.ignore
    }

    /// The highest seq that peers may hear.
    pub const fn head(&self) -> u64 {
        self.index.durable_head()
    }

    /// The id that the root's marker holds.
    pub fn root_id(&self) -> &[u8] {
        &self.index.meta().root
    }

    /// Paths that cannot be read or applied, with the reason.
    pub const fn problems(&self) -> &BTreeMap<TreePath, String> {
        &self.problems
    }

    /// Mount points beneath the root: the tree ends there.
    pub const fn mounts(&self) -> &BTreeSet<TreePath> {
        &self.mounts
    }

    /// Looks whether the root is still the one that this tree knows.
    ///
    /// # Errors
    /// [`TreeError::Root`].
    pub fn check_root(&mut self) -> Result<(), TreeError> {
        self.enter().map(drop)
    }

    /// Makes everything so far durable.
    ///
    /// # Errors
    /// The store's.
    pub fn commit(&mut self) -> Result<(), TreeError> {
        self.index.set_applied(self.apply.applied());
        Ok(self.index.flush()?)
    }

    /// Whether users' changes wait to be made durable and told. What peers told can go with the flush of the
    /// batch that applies it.
    pub const fn has_news(&self) -> bool {
        self.minted_head > self.index.durable_head()
    }

    /// Makes durable what [`Tree::commit`] left for later, for it would be found again.
    ///
    /// # Errors
    /// The store's.
    pub fn commit_all(&mut self) -> Result<(), TreeError> {
        // Nobody is in a hurry.
        self.fresh.clear();
        self.index.set_applied(self.apply.applied());
        self.index.flush_all()?;
        self.index.forget_read();
        Ok(())
    }

    /// The highest seq up to which the disk shows every view (or the path is a listed problem), durably.
    pub fn applied(&self) -> u64 {
        self.index.meta().applied.min(self.index.durable_head())
    }

    /// Makes what users changed and this node minted survive a crash of the machine, when the
    /// oldest such change is half a minute old, or now: one syncfs for all of them.
    ///
    /// # Errors
    /// The file system's; nothing counts as durable then.
    pub fn sync_minted(&mut self, now: bool) -> Result<(), TreeError> {
        let Some(since) = self.minted_at else { return Ok(()) };
        let age = self.now().secs.saturating_sub(since.secs);
        // A clock that was put back says nothing of how long it has been.
        if !now && (0..SYNC_MINTED_SECS).contains(&age) {
            return Ok(());
        }
        let head = self.index.meta().head;
        let place = self.enter()?;
        self.vfs
            .sync_handle(&place.root)
            .and_then(|handle| self.vfs.sync_all(&handle))
            .map_err(|source| TreeError::Disk { what: "making local changes durable", source })?;
        self.minted_at = None;
        self.index.meta_mut().synced = head;
        Ok(())
    }

    /// Whether a walk of the whole tree is due, or under way.
    const fn is_scan_due(&self) -> bool {
        self.scan_due || self.rescan.is_some()
    }

    /// Whether nothing is known to have changed on the disk that is not in the journal.
    pub fn has_looked(&self) -> bool {
        !self.is_scan_due() && self.dirty.is_empty() && !self.reads_on()
    }

    /// Whether nothing waits to be looked at, fetched or applied.
    pub fn is_quiet(&self) -> bool {
        self.has_looked() && self.apply.is_idle(self.index.meta().head)
    }

    /// Enters the root for a spell of work; another mount of the same tree makes a scan due.
    fn enter(&mut self) -> Result<Place<V>, TreeError> {
        let (place, identity) = root::enter(&*self.vfs, &self.identity)?;
        if identity != self.identity {
            self.identity = identity;
            self.scan_due = true;
        }
        Ok(place)
    }

    fn now(&self) -> Time {
        (self.clock)()
    }

    fn next_dot(&mut self) -> Dot {
        self.counter += 1;
        Dot { actor: self.actor, counter: self.counter }
    }

    /// Makes another look at a path due.
    pub fn look_again(&mut self, path: &TreePath, rehash: bool, take_open: bool) {
        self.mark(path, rehash, take_open);
    }

    /// Whether ignore rules changed since the last call.
    pub const fn take_rules_changed(&mut self) -> bool {
        std::mem::replace(&mut self.rules_changed, false)
    }

    /// This node's id.
    pub const fn node(&self) -> NodeId {
        self.options.node
    }

    /// Notes a path for another look.
    fn mark(&mut self, path: &TreePath, rehash: bool, take_open: bool) {
        if self.dirty.len() >= DIRTY_MAX {
            self.scan_due = true;
            return;
        }
        self.dirty.entry(path.clone()).or_default().add(Dirty { rehash, take_open });
    }

    /// Lists a path as a problem: something about it cannot be said or done.
    pub fn note_problem(&mut self, path: &TreePath, reason: &str) {
        self.set_problem(path, reason.to_owned());
    }

    fn set_problem(&mut self, path: &TreePath, reason: String) {
        tracing::warn!(path = %path, reason, "a path cannot be synced");
        if self.problems.get(path) != Some(&reason) {
            self.note_trouble(path);
        }
        let row = ProblemRow { time: self.now(), reason: reason.clone() };
        self.index.put_other(rows::path_key(Space::Problem, path), &row);
        self.problems.insert(path.clone(), reason);
    }

    fn clear_problem(&mut self, path: &TreePath) {
        if self.problems.remove(path).is_some() {
            self.index.delete(rows::path_key(Space::Problem, path));
        }
    }

    /// Mints the change from `shown` to `disk` and announces it. The row comes back with the new
    /// entry, seq and Shown; the caller sets the stamp.
    fn mint(
        &mut self,
        path: &TreePath,
        row: &EntryRow,
        shown: &Shown,
        disk: Option<(&State, Time)>,
        pairing: Pairing,
    ) -> Result<(EntryRow, Shown), TreeError> {
        let now = self.now();
        let hint = match (disk, pairing) {
            (_, Pairing::Lowest) => 0,
            (Some((_, ctime)), Pairing::No) => ctime.min(now).nanos_since_epoch(),
            (Some((state, _)), Pairing::ByTime) => state.mtime.unwrap_or_default().min(now).nanos_since_epoch().max(0),
            (None, _) => now.nanos_since_epoch(),
        };
        let dot = self.next_dot();
        let paired = pairing != Pairing::No;
        let before = Some(&row.entry).filter(|e| !e.context.is_empty());
        let before_state = shown.state.as_ref();
        let (entry, shown) = pleach_protocol::mint::mint(before, shown, disk.map(|(s, _)| s), dot, Rank(hint), paired);
        let announced = EntryRow { entry, ..row.clone() };
        self.index.announce(path, announced, None)?;
        if pairing == Pairing::No {
            self.note_own(path, before_state, disk.map(|(state, _)| state))?;
        }
        self.minted_at.get_or_insert(now);
        self.minted_head = self.index.meta().head;
        Ok((self.index.row(path)?, shown))
    }

    fn record(&mut self, path: &TreePath, seq: u64, before: Option<&State>, after: Option<&State>, writer: String) {
        let op = match (before, after) {
            (None, None) => return,
            (None, Some(_)) => "create",
            (Some(_), None) => "delete",
            (Some(b), Some(a)) if b.value == a.value => "meta",
            _ => "modify",
        };
        let (size, hash) = after.map_or((None, None), |s| content_of(&s.value));
        let was = before.and_then(|s| content_of(&s.value).1);
        let row = HistoryRow {
            time: self.now(),
            path: path.clone(),
            from: None,
            op: op.to_owned(),
            node: writer,
            size,
            hash,
            was,
        };
        self.index.put_history(seq, &row);
    }

    /// The display name of whoever wrote what the entry shows: its content, or, where that stayed,
    /// the rest.
    fn writer_of(&self, entry: &Entry, same_content: bool) -> Result<String, TreeError> {
        let newest = if same_content {
            let times = entry.times.iter().map(|(dot, t)| (t.rank, *dot));
            times.chain(entry.access.iter().map(|(dot, a)| (a.rank, *dot))).max()
        } else {
            entry.content.iter().map(|(dot, s)| (s.rank, *dot)).max()
        };
        let newest = newest.map(|(_, dot)| dot.actor);
        Ok(match newest {
            Some(actor) => self.index.name(actor)?.unwrap_or_else(|| format!("{actor:?}")),
            None => String::new(),
        })
    }
}

/// Length and hash of a file.
pub(crate) const fn content_of(value: &Value) -> (Option<u64>, Option<Hash>) {
    match value {
        Value::File { size, hash } => (Some(*size), Some(*hash)),
        _ => (None, None),
    }
}
