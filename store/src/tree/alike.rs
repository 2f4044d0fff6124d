//! Directories that a peer holds alike: their rows do not travel ([`pleach_protocol::alike`]).

use std::collections::HashMap;

use pleach_protocol::alike::{ALIKE_DOTS_MAX, ALIKE_PATHS_MAX, Alike, DIGESTS_MAX, DirDigest, found, under};
use pleach_protocol::codec;
use pleach_protocol::path::TreePath;
use pleach_protocol::version::{Actor, Dot, NodeId};

use super::exchange::Life;
use super::{Tree, TreeError};
use crate::kv::Kv;
use crate::rows::{self, EntryRow, Space};
use crate::vfs::Vfs;

/// Rows read, or directories told, in one step.
const ROWS_AT_ONCE: usize = 2_048;
const DIRS_AT_ONCE: usize = 1_024;
/// Actors that one directory may name: each has a name of 64 bytes at most.
const ACTORS_MAX: usize = 64;

/// What a peer said in this session that its directories come to, or that it renamed one, until it has been told all
/// that there was.
#[derive(Debug, Default)]
pub struct Digests {
    /// What it said of a directory, and up to which seq it was told of ours.
    dirs: HashMap<[u8; 16], ([u8; 16], u64)>,
    /// Marks the rows that follow from directories which it told were renamed.
    pub(super) moves: Option<u64>,
}

impl Digests {
    /// Takes in what the peer says; no more than [`DIGESTS_MAX`] of it is kept.
    pub fn hear(&mut self, digests: Vec<DirDigest>) {
        let room = DIGESTS_MAX.saturating_sub(self.dirs.len());
        self.dirs.extend(digests.into_iter().take(room).map(|told| (told.dir, (told.digest, 0))));
    }

    /// Whether it was told of a path's directory, and so of the path at this place of our journal.
    pub(super) fn have_told(&self, path: &TreePath, seq: u64) -> bool {
        let dir = || dir_id(&path.parent().unwrap_or_default());
        !self.is_empty() && self.dirs.get(&dir()).is_some_and(|(_, told)| seq <= *told)
    }

    /// It told of a directory of which it had been told all up to `seq`: it knows both, and so all of it up to `head`.
    fn learned(&mut self, dir: &TreePath, seq: u64, head: u64) {
        if let Some((_, told)) = self.dirs.get_mut(&dir_id(dir))
            && seq <= *told
        {
            *told = head;
        }
    }

    /// Whether it said nothing, or nothing that still counts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.dirs.is_empty()
    }
}

/// What is to be done with a row of the journal that a peer has not heard.
pub(super) enum Telling {
    /// It is told.
    Row,
    /// The peer has it, and all in its directory up to the durable head.
    Nothing,
    /// Its directory stands for it, and for all in it up to the durable head.
    Alike(Alike),
    /// Part of its directory is not durable yet.
    Later,
}

/// What a directory's rows come to.
struct Summary {
    digest: [u8; 16],
    /// The dots of each, where nothing but pairings wrote them.
    dots: Option<Vec<Vec<Dot>>>,
    /// The newest of them.
    seq: u64,
}

fn half(hash: blake3::Hash) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.as_bytes()[..16]);
    half
}

fn dir_id(dir: &TreePath) -> [u8; 16] {
    half(blake3::hash(dir.as_bytes()))
}

/// Sums up the rows of one directory, by name.
fn summarize(rows: &[(TreePath, EntryRow)]) -> Summary {
    let mut paired = blake3::Hasher::new_derive_key("pleach: what a directory's pairings found, 1");
    let mut any = blake3::Hasher::new_derive_key("pleach: what is known of a directory's paths, 1");
    let (mut dots, mut seq) = (Some(Vec::new()), 0);
    for (path, row) in rows {
        let name = path.name();
        seq = seq.max(row.seq);
        let found = found(&row.entry).filter(|_| row.seq > 0);
        dots = dots.zip(found.as_ref()).map(|(mut dots, _)| {
            dots.push(row.entry.content.keys().copied().collect());
            dots
        });
        let add = |hasher: &mut blake3::Hasher, what: &[u8]| {
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
            hasher.update(&(what.len() as u64).to_le_bytes()).update(what);
        };
        add(&mut any, &codec::encode(&row.entry));
        if let Some(found) = found {
            add(&mut paired, &found);
        }
    }
    let digest = if dots.is_some() { half(paired.finalize()) } else { half(any.finalize()) };
    Summary { digest, dots, seq }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// What the next directories' rows come to, `after` where the last step ended; none behind the last one. One of more
    /// than [`ALIKE_PATHS_MAX`] paths is passed over.
    ///
    /// # Errors
    /// The store's.
    pub fn digests(&self, after: Option<Vec<u8>>) -> Result<(Vec<DirDigest>, Option<Vec<u8>>), TreeError> {
        let mut from = after.unwrap_or_else(|| vec![Space::Entry as u8]);
        let (mut digests, mut read) = (Vec::new(), 0);
        while read < ROWS_AT_ONCE && digests.len() < DIRS_AT_ONCE {
            let Some(path) = self.index.first_path(&from)? else { return Ok((digests, None)) };
            // The root's own row stands alone, before all others.
            let dir = path.parent().unwrap_or_default();
            let rows = self.known_in(&dir)?;
            read += rows.as_ref().map_or(ALIKE_PATHS_MAX, Vec::len) + 1;
            if let Some(rows) = rows.filter(|rows| !rows.is_empty()) {
                let Summary { digest, .. } = summarize(&rows);
                digests.push(DirDigest { dir: dir_id(&dir), digest });
            }
            from = rows::children_range(Space::Entry, &dir).1;
        }
        Ok((digests, Some(from)))
    }

    /// What is known in a directory, by name; none where that is too much.
    fn known_in(&self, dir: &TreePath) -> Result<Option<Vec<(TreePath, EntryRow)>>, TreeError> {
        let mut rows = self.index.first_children(dir, ALIKE_PATHS_MAX + 1)?;
        if rows.len() > ALIKE_PATHS_MAX {
            return Ok(None);
        }
        rows.retain(|(path, row)| !path.is_root() && !row.entry.context.is_empty());
        Ok(Some(rows))
    }

    /// How a path of our journal that a peer has not heard of is told to one that said what its directories come to.
    pub(super) fn telling(&self, path: &TreePath, head: u64, digests: &mut Digests) -> Result<Telling, TreeError> {
        if digests.is_empty() || path.is_root() {
            return Ok(Telling::Row);
        }
        let dir = path.parent().unwrap_or_default();
        let id = dir_id(&dir);
        let Some((digest, _)) = digests.dirs.get(&id).copied() else { return Ok(Telling::Row) };
        let ours = self.known_in(&dir)?.map(|rows| summarize(&rows)).filter(|ours| ours.digest == digest);
        let Some(ours) = ours else {
            digests.dirs.remove(&id);
            return Ok(Telling::Row);
        };
        if ours.seq > head {
            return Ok(Telling::Later);
        }
        let telling = match ours.dots {
            None => Telling::Nothing,
            Some(dots) if may_be_told(&dots) => Telling::Alike(Alike { dir, digest, dots }),
            Some(_) => {
                digests.dirs.remove(&id);
                return Ok(Telling::Row);
            }
        };
        digests.dirs.insert(id, (digest, head));
        Ok(telling)
    }

    /// Takes in a directory of a peer's journal whose rows are here, but for their dots; false where they are not, and must
    /// be told. Durable with the batch that follows. `digests` are what the peer said: in this session it is not told again
    /// of what comes of its dots and of ours. (No row notes that for later: a peer that was put back may have lost ours.)
    ///
    /// # Errors
    /// The store's.
    pub fn merge_alike(
        &mut self,
        (peer, life): (NodeId, Life),
        alike: &Alike,
        names: Vec<(Actor, String)>,
        digests: &mut Digests,
    ) -> Result<bool, TreeError> {
        let Some(rows) = self.known_in(&alike.dir)? else { return Ok(false) };
        let ours = summarize(&rows);
        if ours.digest != alike.digest || ours.dots.is_none() || rows.len() != alike.dots.len() {
            return Ok(false);
        }
        let merged = rows.into_iter().zip(&alike.dots).map(|((path, row), dots)| {
            let theirs = under(&row.entry, dots)?;
            let merged = row.entry.merge(&theirs);
            let changed = (merged != row.entry).then(|| (merged == theirs, EntryRow { entry: merged, ..row }));
            Some((path, changed))
        });
        let Some(merged) = merged.collect::<Option<Vec<_>>>() else { return Ok(false) };
        self.take_names(names)?;
        let teacher = self.teacher((peer, life));
        for (path, changed) in merged {
            let Some((theirs, mut row)) = changed else { continue };
            self.count_as_shown(&path, &mut row);
            self.settle(&path, &mut row)?;
            self.index.announce(&path, row, theirs.then_some(teacher))?;
            self.index.commit_if_large()?;
        }
        digests.learned(&alike.dir, ours.seq, self.index.meta().head);
        Ok(true)
    }
}

fn may_be_told(dots: &[Vec<Dot>]) -> bool {
    let actors: std::collections::BTreeSet<Actor> = dots.iter().flatten().map(|dot| dot.actor).collect();
    dots.iter().map(Vec::len).sum::<usize>() <= ALIKE_DOTS_MAX && actors.len() <= ACTORS_MAX
}
