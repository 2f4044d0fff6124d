//! The typed index of one tree over a [`Kv`]: entries with what the disk shows, the journal, cursors.
//!
//! Writes gather in one pending batch that reads already see; [`Index::flush`] hands it to the
//! store as a unit and makes it durable. Nothing above announces what is not flushed.

use std::collections::BTreeMap;
use std::{fmt, io};

use pleach_protocol::path::TreePath;
use pleach_protocol::version::{Actor, NodeId};
use pleach_protocol::view::{self, State, Surroundings};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::kv::layers::overlaid;
use crate::kv::{Batch, Kv, KvError};
use crate::rows::{self, CursorRow, EntryRow, HistoryRow, HookOn, MetaRow, RowError, Space};
use crate::vfs::Syncing;

mod entries;
mod events;
mod sums;

pub use entries::known;
pub use sums::DiskSum;

use entries::EntryRows;

/// Rows of one batch; a larger one is handed over between two operations.
const BATCH_ROWS_MAX: usize = 1_000;
/// Rows that one look into a range reads.
const RANGE_ROWS: usize = 512;

/// Says why the index failed. Either way the store must be opened anew.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// The engine failed.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A row is damaged or of another version.
    #[error(transparent)]
    Row(#[from] RowError),
    /// What rows say of the disk did not become durable there.
    #[error("making names durable failed")]
    Names(#[source] io::Error),
}

/// What the pending rows say of the disk, while it is made durable there: no row is handed over before.
struct Names(Syncing);

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names")
    }
}

/// The index of one tree. One owner.
#[derive(Debug)]
pub struct Index<K> {
    kv: K,
    pending: Batch,
    entries: EntryRows,
    sum_key: sums::SumKey,
    meta: MetaRow,
    meta_changed: bool,
    durable_head: u64,
    flush_needed: bool,
    /// Comes before the next batch.
    names: Option<Names>,
    /// Flushes so far.
    flushes: u64,
    /// Something pending is not to be found again after a crash.
    urgent: bool,
    /// Directories that live or died with what is beneath; taken before the disk is worked on.
    turned: BTreeMap<TreePath, u64>,
    events: events::Events,
    /// How far the agents of peers with a fallback applied the journal, by local name.
    there: BTreeMap<String, u64>,
}

type Result<T> = std::result::Result<T, IndexError>;

impl<K: Kv> Index<K> {
    /// Opens the index in a store; a new one keeps `entropy` as the secret of its sums.
    ///
    /// # Errors
    /// The engine's, or a damaged first row.
    pub fn open(kv: K, entropy: &[u8; 32]) -> Result<Self> {
        let meta: Option<MetaRow> = kv.get(&[Space::Meta as u8])?.map(|value| rows::unseal(&value)).transpose()?;
        let meta_changed = meta.is_none();
        let meta = meta.unwrap_or_else(|| MetaRow { sum_secret: *entropy, ..MetaRow::default() });
        let durable_head = meta.head;
        Ok(Self {
            kv,
            pending: Batch::default(),
            entries: EntryRows::default(),
            sum_key: sums::SumKey::new(&meta.sum_secret),
            meta,
            meta_changed,
            durable_head,
            flush_needed: false,
            names: None,
            flushes: 0,
            urgent: false,
            turned: BTreeMap::new(),
            events: events::Events::default(),
            there: BTreeMap::new(),
        })
    }

    /// What holds for the whole store.
    pub const fn meta(&self) -> &MetaRow {
        &self.meta
    }

    /// The same, to change it with the next batch.
    pub const fn meta_mut(&mut self) -> &mut MetaRow {
        self.meta_changed = true;
        self.urgent = true;
        &mut self.meta
    }

    /// The highest seq that is durable: what peers may hear.
    pub const fn durable_head(&self) -> u64 {
        self.durable_head
    }

    /// How many flushes there were: what was pending at one number is durable at the next.
    pub const fn flushes(&self) -> u64 {
        self.flushes
    }

    /// A number that was never given before.
    pub const fn next_id(&mut self) -> u64 {
        let meta = self.meta_mut();
        meta.next_id += 1;
        meta.next_id
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        let value = match self.pending.rows.get(key) {
            Some(row) => row.clone(),
            None => self.kv.get(key)?,
        };
        Ok(value.map(|v| rows::unseal(&v)).transpose()?)
    }

    fn put<T: Serialize>(&mut self, key: Vec<u8>, row: &T) {
        self.urgent = true;
        self.pending.put(key, rows::seal(row));
    }

    /// Notes how far the disk shows the journal; goes with the next batch, for it is found again.
    pub const fn set_applied(&mut self, applied: u64) {
        self.meta_changed |= self.meta.applied != applied;
        self.meta.applied = applied;
    }

    /// Reads rows of a range in order, with what is pending.
    fn range(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        use std::ops::Bound::{Excluded, Included};
        let pending = self.pending.rows.range::<[u8], _>((Included(start), Excluded(end)));
        merged(&self.kv, pending.map(|(key, row)| (key, row.as_ref())), (start, end), limit, Ok)
    }

    /// Notes that the disk does not show all of the journal up to here any more, in the batch that says why.
    pub fn lower_applied(&mut self, applied: u64) {
        self.set_applied(applied.min(self.meta.applied));
    }

    /// Stores a row whose entry changed: gives it the next seq, and its derived directories too
    /// (their rows are announced behind what lies beneath), and keeps the counts of live children.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn announce(
        &mut self,
        path: &TreePath,
        mut row: EntryRow,
        taught_by: Option<(NodeId, [u8; 16])>,
    ) -> Result<u64> {
        let before = self.shared_row(path)?;
        let was_live = is_live(&before);
        let live = is_live(&row);
        self.note_there(path, &before)?;
        let derived = row.live_children > 0 && view::own(&row.entry).is_none();
        row.taught_by = if derived { None } else { taught_by };
        self.give_seq(path, &mut row);
        let seq = row.seq;
        self.put_row(path, &row);
        self.tally(path, &before, &row)?;
        if live != was_live {
            self.count_child(path, live)?;
        }
        if live {
            for dir in path.parents() {
                let mut parent = self.row(&dir)?;
                if !parent.entry.context.is_empty() && view::own(&parent.entry).is_none() {
                    parent.taught_by = None;
                    self.give_seq(&dir, &mut parent);
                    self.put_row(&dir, &parent);
                }
            }
        }
        Ok(seq)
    }

    /// What the agents of peers with a fallback have applied so far: see [`Index::announce`], which notes what they had
    /// of a path before it changes.
    pub const fn there_mut(&mut self) -> &mut BTreeMap<String, u64> {
        &mut self.there
    }

    /// Notes what a peer's agent had of a path that changes now: the journal does not tell it any more.
    fn note_there(&mut self, path: &TreePath, before: &EntryRow) -> Result<()> {
        let knows = |upto: &u64| (1..=*upto).contains(&before.seq);
        let peers: Vec<String> =
            self.there.iter().filter(|(_, upto)| knows(upto)).map(|(peer, _)| peer.clone()).collect();
        for peer in peers {
            let key = rows::pushed_key(Space::Pushed, &peer, path);
            if is_live(before) {
                let value = view::own(&before.entry);
                let dir = value.is_none_or(|value| *value == pleach_protocol::entry::Value::Dir);
                let hash = value.and_then(|value| crate::tree::content_of(value).1);
                self.put(key, &rows::PushedRow { dir, hash });
            } else if self.get::<rows::PushedRow>(&key)?.is_some() {
                self.delete(key);
            }
        }
        Ok(())
    }

    fn give_seq(&mut self, path: &TreePath, row: &mut EntryRow) {
        if row.seq > 0 {
            self.delete(rows::number_key(Space::Journal, row.seq));
        }
        let meta = self.meta_mut();
        meta.head += 1;
        row.seq = meta.head;
        self.put(rows::number_key(Space::Journal, row.seq), path);
    }

    /// Keeps the counts of live paths, their bytes and the conflicts listed.
    fn tally(&mut self, path: &TreePath, before: &EntryRow, after: &EntryRow) -> Result<()> {
        let counts = |row: &EntryRow| (u64::from(is_live(row)), size_of(row), conflicts_of(row));
        let (old, new) = (counts(before), counts(after));
        if old == new {
            return Ok(());
        }
        let meta = self.meta_mut();
        meta.entries = (meta.entries + new.0).saturating_sub(old.0);
        meta.bytes = (meta.bytes + new.1).saturating_sub(old.1);
        meta.conflicts = (meta.conflicts + new.2).saturating_sub(old.2);
        let key = rows::path_key(Space::Conflict, path);
        match (old.2, new.2) {
            (old, new) if old == new => {}
            (_, 0) => self.delete(key),
            (_, count) => self.put(key, &count),
        }
        if new.2 > old.2 {
            let dir = view::own(&after.entry) == Some(&pleach_protocol::entry::Value::Dir);
            self.note_event(HookOn::Conflict, path, after.seq, dir)?;
        }
        Ok(())
    }

    /// Tells a path's parents that it lives now, or no longer.
    fn count_child(&mut self, path: &TreePath, mut live: bool) -> Result<()> {
        for dir in path.parents() {
            let before = self.shared_row(&dir)?;
            let mut parent = EntryRow::clone(&before);
            let was_live = is_live(&parent);
            parent.live_children = if live { parent.live_children + 1 } else { parent.live_children.saturating_sub(1) };
            let now_live = is_live(&parent);
            self.put_row(&dir, &parent);
            self.tally(&dir, &before, &parent)?;
            let turned = (before.live_children > 0) != (parent.live_children > 0);
            if turned && view::own(&parent.entry) != Some(&pleach_protocol::entry::Value::Dir) {
                // What is shown there changes although nothing is announced: a directory comes, or goes,
                // or gives way to the file that was hidden behind it.
                self.lower_applied(parent.seq.saturating_sub(1));
                self.turned.insert(dir, parent.seq);
            }
            if was_live == now_live {
                return Ok(());
            }
            live = now_live;
        }
        Ok(())
    }

    /// The directories that live or died with what is beneath since the last call, with their seqs.
    pub fn take_turned(&mut self) -> BTreeMap<TreePath, u64> {
        std::mem::take(&mut self.turned)
    }

    /// What the view of a path needs to know of the paths around it.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn surroundings(&self, path: &TreePath, row: &EntryRow) -> Result<Surroundings> {
        let live_beneath = row.live_children > 0;
        let around = Surroundings { live_beneath, ancestor: None };
        if !view::is_derived(Some(&row.entry), &around) {
            return Ok(around);
        }
        // Whether that is a directory of its own does not count: it may cease to be one, and what is made beneath it then
        // is to look like what was made before.
        for dir in path.parents() {
            let ancestor = view::access_of_dir(&self.shared_row(&dir)?.entry);
            if ancestor.is_some() {
                return Ok(Surroundings { live_beneath, ancestor });
            }
        }
        Ok(around)
    }

    /// What the tree shows at a path.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn view(&self, path: &TreePath, row: &EntryRow) -> Result<Option<State>> {
        Ok(view::view(Some(&row.entry), &self.surroundings(path, row)?))
    }

    /// Journal positions behind `after` with their paths, in order.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn journal(&self, after: u64, limit: usize) -> Result<Vec<(u64, TreePath)>> {
        let start = rows::number_key(Space::Journal, after.saturating_add(1));
        let found = self.range(&start, &[Space::Journal as u8 + 1], limit)?;
        found
            .into_iter()
            .map(|(key, value)| Ok((rows::key_number(&key).ok_or(RowError::Damaged)?, rows::unseal(&value)?)))
            .collect()
    }

    /// Records a line of history under a seq.
    pub fn put_history(&mut self, seq: u64, row: &HistoryRow) {
        self.put(rows::number_key(Space::History, seq), row);
    }

    /// History behind `after`, in order.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn history(&self, after: u64, limit: usize) -> Result<Vec<(u64, HistoryRow)>> {
        let start = rows::number_key(Space::History, after.saturating_add(1));
        let found = self.range(&start, &[Space::History as u8 + 1], limit)?;
        found
            .into_iter()
            .map(|(key, value)| Ok((rows::key_number(&key).ok_or(RowError::Damaged)?, rows::unseal(&value)?)))
            .collect()
    }

    /// How far this node and a peer are in each other's journals.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn cursor(&self, peer: NodeId) -> Result<Option<CursorRow>> {
        self.get(&peer_key(peer))
    }

    /// All of them.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn cursors(&self) -> Result<Vec<(NodeId, CursorRow)>> {
        let (start, end) = ([Space::Cursor as u8], [Space::Cursor as u8 + 1]);
        let rows = self.range(&start, &end, usize::MAX)?.into_iter();
        let known = rows.filter_map(|(key, value)| Some((key_peer(&key)?, value)));
        known.map(|(peer, value)| Ok((peer, rows::unseal(&value)?))).collect()
    }

    /// Stores it with the next batch: the peer says again what is lost.
    pub fn put_cursor_later(&mut self, peer: NodeId, cursor: &CursorRow) {
        self.pending.put(peer_key(peer), rows::seal(cursor));
    }

    /// Stores it.
    pub fn put_cursor(&mut self, peer: NodeId, cursor: &CursorRow) {
        self.put(peer_key(peer), cursor);
    }

    /// The display name of an actor's node, as far as it was heard.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn name(&self, actor: Actor) -> Result<Option<String>> {
        self.get(&name_key(actor))
    }

    /// Stores it.
    pub fn put_name(&mut self, actor: Actor, name: &str) {
        self.put(name_key(actor), &name.to_owned());
    }

    /// Stores any other row.
    pub fn put_other<T: Serialize>(&mut self, key: Vec<u8>, row: &T) {
        self.put(key, row);
    }

    /// The same for what is told again: it goes with the next batch.
    pub fn put_other_later<T: Serialize>(&mut self, key: Vec<u8>, row: &T) {
        self.pending.put(key, rows::seal(row));
    }

    /// Deletes any row.
    pub fn delete(&mut self, key: Vec<u8>) {
        self.urgent = true;
        self.pending.delete(key);
    }

    /// Reads one row of any other keyspace.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn other<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>> {
        self.get(key)
    }

    /// Reads rows of any other keyspace.
    ///
    /// # Errors
    /// As [`Index::row`].
    pub fn others<T: DeserializeOwned>(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, T)>> {
        self.range(start, end, limit)?.into_iter().map(|(key, value)| Ok((key, rows::unseal(&value)?))).collect()
    }

    /// Makes the pending batch durable when it is large, also one that could wait; only between two operations. More rows
    /// than that between two flushes were not measured to be safe or small (CRATES.md, section 4).
    ///
    /// # Errors
    /// The engine's.
    pub fn commit_if_large(&mut self) -> Result<()> {
        if self.pending.rows.len() + self.entries.len() >= BATCH_ROWS_MAX { self.flush_all() } else { Ok(()) }
    }

    /// What is put from now on holds once this sync is done: the next batch waits for it.
    ///
    /// # Errors
    /// That of the sync before it.
    pub fn put_behind(&mut self, names: Syncing) -> Result<()> {
        self.await_names()?;
        self.names = Some(Names(names));
        Ok(())
    }

    fn await_names(&mut self) -> Result<()> {
        let Some(Names(synced)) = self.names.take() else { return Ok(()) };
        synced().map_err(|error| {
            // Nothing of what is pending may ever be handed over.
            let kind = error.kind();
            self.names = Some(Names(Box::new(move || Err(kind.into()))));
            IndexError::Names(error)
        })
    }

    /// Hands the pending batch over as one unit.
    fn commit(&mut self) -> Result<()> {
        self.await_names()?;
        self.encode_entries()?;
        if self.meta_changed {
            self.pending.put(vec![Space::Meta as u8], rows::seal(&self.meta));
            self.meta_changed = false;
        }
        if !self.pending.is_empty() {
            self.kv.commit(std::mem::take(&mut self.pending))?;
            self.flush_needed = true;
        }
        Ok(())
    }

    /// Whether something waits for the next batch.
    pub fn has_later(&self) -> bool {
        self.meta_changed || !self.pending.is_empty() || !self.entries.is_empty()
    }

    /// Makes everything durable, also what could wait.
    ///
    /// # Errors
    /// The engine's.
    pub fn flush_all(&mut self) -> Result<()> {
        self.urgent |= self.has_later();
        self.flush()
    }

    /// Makes everything durable; does nothing where nothing changed that could not wait.
    ///
    /// # Errors
    /// The engine's.
    pub fn flush(&mut self) -> Result<()> {
        if !self.urgent && !self.flush_needed {
            return Ok(());
        }
        self.commit()?;
        self.urgent = false;
        if self.flush_needed {
            self.kv.flush()?;
            self.flush_needed = false;
            self.durable_head = self.meta.head;
            self.kv.reopen_if_grown()?;
        }
        self.flushes += 1;
        Ok(())
    }
}

/// Reads up to `limit` rows from `start` to before `end` in order; what is pending counts, not what is stored.
fn merged<'p, T: Clone + 'p>(
    kv: &impl Kv,
    pending: impl Iterator<Item = (&'p Vec<u8>, Option<&'p T>)>,
    (start, end): (&[u8], &[u8]),
    limit: usize,
    read: impl Fn(Vec<u8>) -> Result<T>,
) -> Result<Vec<(Vec<u8>, T)>> {
    let at_once = limit.min(RANGE_ROWS);
    let (mut found, mut from) = (Vec::new().into_iter(), Some(start.to_vec()));
    let stored = std::iter::from_fn(|| {
        if found.as_slice().is_empty() {
            let rows = match kv.range(&from.take()?, Some(end), at_once) {
                Ok(rows) => rows,
                Err(error) => return Some(Err(error.into())),
            };
            from = rows.last().filter(|_| rows.len() == at_once).map(|(key, _)| [&key[..], &[0]].concat());
            found = rows.into_iter();
        }
        found.next().map(Ok)
    });
    overlaid(pending, stored, limit, read)
}

/// Whether the path shows anything.
#[must_use]
pub fn is_live(row: &EntryRow) -> bool {
    row.live_children > 0 || view::own(&row.entry).is_some()
}

fn size_of(row: &EntryRow) -> u64 {
    match view::own(&row.entry) {
        Some(pleach_protocol::entry::Value::File { size, .. }) if row.live_children == 0 => *size,
        _ => 0,
    }
}

fn conflicts_of(row: &EntryRow) -> u64 {
    if row.entry.losers.is_empty() && row.entry.content.len() < 2 && row.live_children == 0 {
        return 0;
    }
    let around = Surroundings { live_beneath: row.live_children > 0, ancestor: None };
    view::conflicts(&row.entry, &around).len() as u64
}

fn key_peer(key: &[u8]) -> Option<NodeId> {
    Some(NodeId(key.get(1..)?.try_into().ok()?))
}

pub(crate) fn peer_key(peer: NodeId) -> Vec<u8> {
    let mut key = vec![Space::Cursor as u8];
    key.extend_from_slice(&peer.0);
    key
}

fn name_key(actor: Actor) -> Vec<u8> {
    let mut key = vec![Space::Name as u8];
    key.extend_from_slice(&actor.node.0);
    key.extend_from_slice(&actor.start.to_be_bytes());
    key
}
