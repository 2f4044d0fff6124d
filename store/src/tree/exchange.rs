//! What peers tell and ask: rows of the journal out, entries in, content by hash.

use std::collections::BTreeMap;
use std::io;

use pleach_protocol::alike::Alike;
use pleach_protocol::entry::{Entry, Hash, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::session::Announcement;
use pleach_protocol::version::{Actor, NodeId};
use pleach_protocol::wire::Cursor;

use super::alike::{Digests, Telling};
use super::{Tree, TreeError};
use crate::index;
use crate::kv::Kv;
use crate::rows::{self, CursorRow};
use crate::vfs::Vfs;

/// Journal rows read at a time, and how often for one batch.
const JOURNAL_ROWS: usize = 32;
const JOURNAL_READS: usize = 8;
/// Content up to this length travels with its announcement.
pub const INLINE_BYTES_MAX: u64 = 16 * 1024;

/// A journal, and the start that tells of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Life {
    /// The journal's id.
    pub incarnation: [u8; 16],
    /// The start's bits.
    pub start: u64,
}

/// A batch for a peer.
#[derive(Debug, Default)]
pub struct Rows {
    /// What it has not heard.
    pub rows: Vec<Announcement>,
    /// Directories that stand for their rows.
    pub alike: Vec<Alike>,
    /// The names of writers.
    pub names: Vec<(Actor, String)>,
    /// The position that it reaches.
    pub upto: u64,
}

/// A batch that is being read.
#[derive(Default)]
struct Batch {
    read: Rows,
    names: BTreeMap<Actor, String>,
    bytes: usize,
}

impl Batch {
    fn end(self) -> Rows {
        Rows { names: self.names.into_iter().collect(), ..self.read }
    }
}

/// The directory that contents were read from last: one opening serves a run of names.
struct Contents<V: Vfs> {
    root: Option<V::Dir>,
    holder: Option<(TreePath, V::Dir)>,
}

impl<V: Vfs> Default for Contents<V> {
    fn default() -> Self {
        Self { root: None, holder: None }
    }
}

impl<V: Vfs> Contents<V> {
    fn holder(&mut self, vfs: &V, path: &TreePath) -> io::Result<&V::Dir> {
        let dir = path.parent().unwrap_or_default();
        let handle = match self.holder.take().filter(|(known, _)| *known == dir) {
            Some((_, handle)) => handle,
            None => {
                let root = match self.root.take() {
                    Some(root) => root,
                    None => vfs.root()?,
                };
                vfs.open_path(self.root.insert(root), &dir)?
            }
        };
        Ok(&self.holder.insert((dir, handle)).1)
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Where this node is in a peer's journal, where it ever was.
    ///
    /// # Errors
    /// The store's.
    pub fn cursor(&self, peer: NodeId) -> Result<Option<Cursor>, TreeError> {
        let place = |c: CursorRow| Cursor { incarnation: c.incarnation, start: c.start, seq: c.merged };
        // A row may hold nothing but what the peer was told.
        Ok(self.index.cursor(peer)?.filter(|c| c.merged > 0).map(place))
    }

    /// Reads what a peer that said what its directories come to has not heard behind `after`, about `bytes_max` of it.
    /// Only what is durable.
    ///
    /// # Errors
    /// The store's.
    pub fn read_rows(
        &mut self,
        after: u64,
        bytes_max: usize,
        peer: (NodeId, Life),
        digests: &mut Digests,
    ) -> Result<Rows, TreeError> {
        let head = self.index.durable_head();
        let read = self.read_rows_until(head, (after, bytes_max), peer, digests)?;
        let told = self.told_since.entry(peer.0).or_default();
        *told = read.upto.max(*told);
        Ok(read)
    }

    /// How a row names the peer that taught it: of another life of the peer's journal, or of this one, it counts no more.
    /// Where this journal began anew the peer may have been put back, and not know any more what it taught; and one that was
    /// put back, found out, and then put back to before that, has its journal of before, but started anew.
    pub(super) fn teacher(&self, (peer, theirs): (NodeId, Life)) -> (NodeId, [u8; 16]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&theirs.incarnation).update(&theirs.start.to_be_bytes()).update(&self.index.meta().incarnation);
        let mut combined = theirs.incarnation;
        hasher.finalize_xof().fill(&mut combined);
        (peer, combined)
    }

    /// The same of what a peer taught by telling a rename alone: no place in its journal says that it did, so that one that was
    /// put back before its rows came would not be found out. It counts in this session.
    pub(super) fn teacher_of_moves(
        &mut self,
        (peer, theirs): (NodeId, Life),
        digests: &mut Digests,
    ) -> (NodeId, [u8; 16]) {
        let mark = *digests.moves.get_or_insert_with(|| self.index.next_id());
        self.marked((peer, theirs), mark)
    }

    fn marked(&self, peer: (NodeId, Life), mark: u64) -> (NodeId, [u8; 16]) {
        let (peer, mut combined) = self.teacher(peer);
        let marked = blake3::hash(&[&combined[..], &mark.to_be_bytes()].concat());
        let length = combined.len();
        combined.copy_from_slice(&marked.as_bytes()[..length]);
        (peer, combined)
    }

    fn read_rows_until(
        &self,
        head: u64,
        (after, bytes_max): (u64, usize),
        peer: (NodeId, Life),
        digests: &mut Digests,
    ) -> Result<Rows, TreeError> {
        let mut batch = Batch { read: Rows { upto: after, ..Rows::default() }, ..Batch::default() };
        let mut contents = Contents::default();
        let teachers = [Some(self.teacher(peer)), digests.moves.map(|mark| self.marked(peer, mark))];
        let taught = |row: &rows::EntryRow| row.taught_by.is_some() && teachers.contains(&row.taught_by);
        for _ in 0..JOURNAL_READS {
            let journal = self.index.journal(batch.read.upto, JOURNAL_ROWS)?;
            let whole = journal.len() < JOURNAL_ROWS;
            for (seq, path) in journal {
                if seq > head || batch.bytes >= bytes_max {
                    return Ok(batch.end());
                }
                let row = match digests.have_told(&path, seq) {
                    true => None,
                    false => Some(self.index.shared_row(&path)?).filter(|row| !taught(row)),
                };
                if let Some(row) = row {
                    match self.telling(&path, head, digests)? {
                        Telling::Later => return Ok(batch.end()),
                        Telling::Nothing => {}
                        Telling::Alike(alike) => self.add_alike(&mut batch, alike)?,
                        Telling::Row => {
                            let content = self.inline_content(&mut contents, &path, &row);
                            self.add_row(&mut batch, Announcement { path, entry: row.entry.clone(), content })?;
                        }
                    }
                }
                batch.read.upto = seq;
            }
            if whole {
                batch.read.upto = head.max(batch.read.upto);
                break;
            }
        }
        Ok(batch.end())
    }

    fn add_row(&self, batch: &mut Batch, row: Announcement) -> Result<(), TreeError> {
        // Who wrote what is listed as a loser may have left the context (Entry::trim).
        let losers = row.entry.losers.values().flatten().map(|loser| loser.dot.actor);
        for actor in row.entry.context.iter().map(|dot| dot.actor).chain(losers) {
            self.add_name(batch, actor)?;
        }
        batch.bytes += 160 + row.path.as_bytes().len() + row.content.as_ref().map_or(0, Vec::len);
        batch.read.rows.push(row);
        Ok(())
    }

    fn add_alike(&self, batch: &mut Batch, alike: Alike) -> Result<(), TreeError> {
        let mut dots = 0;
        for dot in alike.dots.iter().flatten() {
            self.add_name(batch, dot.actor)?;
            dots += 1;
        }
        batch.bytes += 160 + alike.dir.as_bytes().len() + 8 * dots;
        batch.read.alike.push(alike);
        Ok(())
    }

    fn add_name(&self, batch: &mut Batch, actor: Actor) -> Result<(), TreeError> {
        if !batch.names.contains_key(&actor)
            && let Some(name) = self.index.name(actor)?
        {
            batch.names.insert(actor, name);
        }
        Ok(())
    }

    /// A content that travels with its announcement: a small one that the path shows.
    fn inline_content(&self, contents: &mut Contents<V>, path: &TreePath, row: &rows::EntryRow) -> Option<Vec<u8>> {
        let shown = row.shown.as_ref()?;
        let state = shown.shown.state.as_ref()?;
        let Value::File { size, hash } = &state.value else { return None };
        let own = pleach_protocol::view::own(&row.entry) == Some(&state.value);
        if *size > INLINE_BYTES_MAX || !own || self.has_departed(*hash) {
            return None;
        }
        if let Some(content) = self.fresh.get(path, *hash) {
            return Some(content.to_vec());
        }
        let file = self.vfs.open_file(contents.holder(&*self.vfs, path).ok()?, path.name()).ok()?;
        // The hash says whether it is still what is shown; the one byte more, whether it grew.
        let mut bytes = vec![0; usize::try_from(*size).ok()? + 1];
        let mut filled = 0;
        while filled < bytes.len() {
            match self.vfs.read_at(&file, filled as u64, &mut bytes[filled..]).ok()? {
                0 => break,
                n => filled += n,
            }
        }
        bytes.truncate(filled);
        (blake3::hash(&bytes).as_bytes() == &hash.0).then_some(bytes)
    }

    /// Takes in a batch of a peer's journal that ends at `upto`. Durable at the next commit.
    ///
    /// # Errors
    /// The store's.
    pub fn merge(
        &mut self,
        (peer, life): (NodeId, Life),
        rows: Vec<Announcement>,
        names: Vec<(Actor, String)>,
        upto: u64,
    ) -> Result<(), TreeError> {
        self.take_names(names)?;
        self.merge_rows((peer, life), rows)?;
        let cursor = self.index.cursor(peer)?.unwrap_or_default();
        let Life { incarnation, start } = life;
        self.index.put_cursor(peer, &CursorRow { incarnation, start, merged: upto, ..cursor });
        Ok(())
    }

    pub(super) fn take_names(&mut self, names: Vec<(Actor, String)>) -> Result<(), TreeError> {
        for (actor, name) in names {
            if self.index.name(actor)?.as_deref() != Some(&name) {
                self.index.put_name(actor, &name);
            }
        }
        Ok(())
    }

    fn merge_rows(&mut self, (peer, life): (NodeId, Life), rows: Vec<Announcement>) -> Result<(), TreeError> {
        let told = self.index.cursor(peer)?.unwrap_or_default().peer_merged;
        let teacher = self.teacher((peer, life));
        for Announcement { path, entry, content } in rows {
            let row = self.index.row(&path)?;
            let merged = row.entry.merge(&entry);
            if merged != row.entry {
                let taught_by = (merged == entry).then_some(teacher);
                let mut row = rows::EntryRow { entry: merged, ..row };
                self.count_as_shown(&path, &mut row);
                self.index.announce(&path, row, taught_by)?;
                self.index.commit_if_large()?;
            } else if (1..=told).contains(&row.seq) && !merged.same_registers(&entry) {
                // The peer had merged this, for its ack stands behind what it had read before, and has forgotten it:
                // somebody brought back what was gone. It hears of it again.
                self.index.announce(&path, row, None)?;
                self.index.commit_if_large()?;
            }
            if let Some(content) = content {
                self.apply.offer(&path, content);
            }
        }
        Ok(())
    }

    /// Notes that a peer has merged our journal up to `seq`.
    ///
    /// # Errors
    /// The store's.
    pub fn peer_merged(&mut self, peer: NodeId, seq: u64) -> Result<(), TreeError> {
        let cursor = self.index.cursor(peer)?.unwrap_or_default();
        self.heard = self.heard.max(seq);
        if cursor.peer_merged < seq {
            self.index.put_cursor_later(peer, &CursorRow { peer_merged: seq, ..cursor });
        }
        Ok(())
    }

    /// Reads part of a content that this node has: from the tree where the path shows it, else
    /// from the vault. The asker verifies the whole.
    ///
    /// # Errors
    /// ENOENT where this node does not have it.
    pub fn read_content(&self, path: &TreePath, hash: Hash, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        if let Some(content) = self.fresh.get(path, hash) {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
            let upto = from.saturating_add(bytes_max).min(content.len());
            return Ok(content[from..upto].to_vec());
        }
        let file = self.open_content(path, hash)?;
        let mut buffer = vec![0; bytes_max];
        let mut filled = 0;
        while filled < buffer.len() {
            match self.vfs.read_at(&file, offset + filled as u64, &mut buffer[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }

    /// How many changes lie behind a position of the journal, and the bytes of their files: counted up
    /// to `changes_max`, beyond it taken from the positions, without bytes.
    ///
    /// # Errors
    /// The store's.
    pub fn left_behind(&self, after: u64, changes_max: usize) -> Result<(u64, u64), TreeError> {
        let head = self.index.durable_head();
        if after >= head {
            return Ok((0, 0));
        }
        let journal = self.index.journal(after, changes_max)?;
        if journal.len() >= changes_max {
            return Ok((head - after, 0));
        }
        let mut bytes = 0;
        for (_, path) in &journal {
            if let Some(Value::File { size, .. }) = pleach_protocol::view::own(&self.index.shared_row(path)?.entry) {
                bytes += size;
            }
        }
        Ok((journal.len() as u64, bytes))
    }

    /// The display name of the node that wrote a content, as far as the entry says.
    ///
    /// # Errors
    /// The store's.
    pub fn holder_of(&self, path: &TreePath, hash: Hash) -> Result<String, TreeError> {
        let entry = self.index.row(path)?.entry;
        let has = |value: &Value| matches!(value, Value::File { hash: of, .. } if *of == hash);
        let sibling = entry.content.iter().find(|(_, s)| s.content.value().is_some_and(has)).map(|(dot, _)| *dot);
        let loser = entry.losers.values().flatten().find(|l| has(&l.value)).map(|l| l.dot);
        match sibling.or(loser) {
            Some(dot) => self.writer_name(dot),
            None => Ok("another node".to_owned()),
        }
    }

    /// Whether the entry of a path is known, for tests and commands.
    ///
    /// # Errors
    /// The store's.
    pub fn entry(&self, path: &TreePath) -> Result<Option<Entry>, TreeError> {
        Ok(index::known(self.index.row(path)?.entry))
    }
}
