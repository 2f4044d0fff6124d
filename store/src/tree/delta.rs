//! Large contents of which an older version is here: the chunks of that are copied, the others asked for.
//!
//! The content is put together from its beginning, so that what is there is always a prefix of it: it
//! goes on where it broke off like any other (partial.rs). Every copied chunk is verified before it counts
//! and the whole at the end; whatever does not fit makes the node ask for the content as a whole.

use std::io;

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;
use pleach_protocol::session::What;
use pleach_protocol::wire::{PARTS_KNOWN_MAX, RANGES_MAX};

use super::apply::{Progress, Work};
use super::content::{Building, Local, begin_write_back};
use super::manifests::Cutting;
use super::{Tree, TreeError, Want, WantId, content_of, hands};
use crate::chunks::{CUT_BYTES_MAX, ChunkSizes, Cutter, Manifest, Piece, answer_bytes_max, join, ranges};
use crate::kv::Kv;
use crate::look::read_piece;
use crate::rows::{self, EntryRow, VaultRow};
use crate::vfs::Vfs;

/// Contents put together at once, and their bytes: their manifests are in memory.
const DELTAS_MAX: usize = 16;
/// Bytes that are written while those behind them are read.
const RUN_BYTES: usize = 1024 * 1024;
/// Bytes that are written in one go: for longer ones the kernel looks for memory in one piece.
const WRITE_BYTES: usize = 128 * 1024;
/// Bytes that are copied between two ranges of one request.
const GAP_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Which contents are cut, and how.
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    /// Shorter ones are sent whole, in bytes.
    pub bytes_min: u64,
    /// How long chunks are.
    pub sizes: ChunkSizes,
}

impl Default for Cuts {
    fn default() -> Self {
        Self { bytes_min: 1024 * 1024, sizes: ChunkSizes::default() }
    }
}

/// An older content.
pub(super) struct Old<V: Vfs> {
    file: V::File,
    hash: Hash,
}

/// How far a content is that is put together.
pub(super) enum Delta<V: Vfs> {
    /// What arrived earlier is read first.
    Waiting(Old<V>),
    /// The old content is cut.
    Cutting { old: V::File, cutting: Box<Cutting> },
    /// The manifest is on its way.
    Asking { old: V::File, own: Manifest, known: Vec<[u8; 8]>, answer: Vec<u8> },
    /// The pieces before `next` are there.
    Joining { old: V::File, pieces: Vec<Piece>, next: usize },
}

/// Pieces of the old content that are copied together; each is what it should be.
struct Run {
    bytes: Vec<u8>,
    pieces: usize,
    /// Of all up to their end.
    hasher: blake3::Hasher,
}

impl Run {
    /// Reads [`RUN_BYTES`] at most of those pieces that begin before `until`, which follow what was hashed; and says whether the
    /// next one is not what it should be.
    fn read<V: Vfs>((vfs, old): (&V, &V::File), ahead: &[Piece], until: u64, hasher: &blake3::Hasher) -> (Self, bool) {
        let mut run = Self { bytes: Vec::with_capacity(RUN_BYTES), pieces: 0, hasher: hasher.clone() };
        for piece in ahead.iter().take_while(|piece| piece.start() < until) {
            let (start, length) = (run.bytes.len(), piece.chunk.length as usize);
            let Some(from) = piece.from.filter(|_| start + length <= RUN_BYTES) else { break };
            run.bytes.resize(start + length, 0);
            let bytes = &mut run.bytes[start..];
            let read = read_piece(vfs, old, from, bytes);
            if !read.is_ok_and(|read| read == length) || *blake3::hash(bytes).as_bytes() != piece.chunk.hash {
                run.bytes.truncate(start);
                return (run, true);
            }
            run.hasher.update(bytes);
            run.pieces += 1;
        }
        (run, false)
    }

    /// Writes it, and starts its write-back. The old content stays in memory: it is judged once more when it is displaced, and the
    /// disk may never have had it (LINUX.md §11).
    fn write<V: Vfs>(&self, vfs: &V, file: &V::File, offset: u64) -> io::Result<()> {
        let mut end = offset;
        for bytes in self.bytes.chunks(WRITE_BYTES) {
            vfs.write_at(file, end, bytes)?;
            end += bytes.len() as u64;
        }
        begin_write_back(vfs, file, offset..end);
        Ok(())
    }
}

impl<V: Vfs> Building<V> {
    /// The piece that comes next, and where it is to be copied from.
    fn next_piece(&self) -> Option<&Piece> {
        match &self.delta {
            Some(Delta::Joining { pieces, next, .. }) => pieces.get(*next),
            _ => None,
        }
    }

    /// Copies the next pieces, those of them that begin before `until`, as far as `left` goes: this thread reads and another one
    /// writes. False where one is not what it should be or cannot be written: it is asked for.
    fn copy_pieces(&mut self, vfs: &V, until: u64, left: &mut u64) -> bool {
        let Some(Delta::Joining { old, pieces, next }) = &mut self.delta else { return false };
        let (disk, file) = ((vfs, &*old), &self.file);
        let (mut at, mut end, mut hasher) = (*next, self.filled, self.hasher.clone());
        let mut broken = pieces.get(at).is_none_or(|first| first.start() != end);
        let read = || {
            let ahead = pieces.get(at..).filter(|_| !broken && *left > 0)?;
            let (run, ends) = Run::read(disk, ahead, until, &hasher);
            let (offset, length) = (end, run.bytes.len() as u64);
            (at, end, broken) = (at + run.pieces, end + length, ends);
            *left = left.saturating_sub(length);
            hasher.clone_from(&run.hasher);
            (run.pieces > 0).then_some((offset, run))
        };
        let write = |(offset, run): (u64, Run)| {
            run.write(vfs, file, offset)?;
            *next += run.pieces;
            (self.filled, self.hasher) = (offset + run.bytes.len() as u64, run.hasher);
            Ok::<_, io::Error>(())
        };
        broken |= hands::one_by_one(vfs, read, write).is_err();
        if let Some(piece) = pieces.get_mut(*next).filter(|_| broken) {
            piece.from = None;
        }
        !broken
    }

    /// Whether bytes at an offset are what was asked for, once what lies before them is copied.
    pub(super) fn close_gap(&mut self, vfs: &V, offset: u64, length: u64) -> bool {
        while self.filled < offset {
            let (before, mut left) = (self.filled, u64::MAX);
            if !self.copy_pieces(vfs, offset, &mut left) || self.filled == before {
                return false;
            }
        }
        let Some(Delta::Joining { pieces, next, .. }) = &self.delta else { return false };
        let asked = pieces.get(*next..).unwrap_or_default().iter().take_while(|piece| piece.from.is_none());
        let end = asked.map(|piece| piece.end).find(|end| *end >= offset + length);
        self.filled == offset && end.is_some()
    }

    /// Goes on to the piece that is not all there.
    pub(super) fn pass_pieces(&mut self) {
        if let Some(Delta::Joining { pieces, next, .. }) = &mut self.delta {
            while pieces.get(*next).is_some_and(|piece| piece.end <= self.filled) {
                *next += 1;
            }
        }
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// An older content of a path, where one is here and the new one is worth it.
    pub(super) fn find_old(
        &self,
        path: &TreePath,
        row: &EntryRow,
        (size, there): (u64, u64),
    ) -> Result<Option<Old<V>>, TreeError> {
        let worth = |size: u64| self.is_worth_cutting(size);
        let asked = self.apply.window.get(path).is_some_and(|work| work.no_delta || work.no_local);
        if asked || !worth(size) || !worth(size.saturating_sub(there)) {
            return Ok(None);
        }
        let Ok(root) = self.vfs.root() else { return Ok(None) };
        let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref()).map(|state| content_of(&state.value));
        if let Some((Some(size), Some(hash))) = shown
            && worth(size)
            && let Ok(Some(file)) = self.open_shown(&root, path, hash)
        {
            return Ok(Some(Old { file, hash }));
        }
        let (start, end) = rows::vault_range(path);
        let versions: Vec<(Vec<u8>, VaultRow)> = self.index.others(&start, &end, usize::MAX)?;
        let newest = versions.into_iter().rev().find(|(_, row)| worth(row.size) && row.hash.is_some() && !row.open);
        let Some((key, row)) = newest else { return Ok(None) };
        let (Some(hash), Some((_, id))) = (row.hash, rows::key_vault(&key)) else { return Ok(None) };
        let file = self.open_version(&root, id, &row);
        Ok(file.map(|file| Old { file, hash }))
    }

    /// Whether there is room for the manifests of one more such content.
    pub(super) fn has_delta_room(&self, size: u64) -> bool {
        let sizes = self.apply.window.values().filter_map(|work| match &work.progress {
            Progress::Building(building) => building.delta.as_ref().map(|_| building.size),
            _ => None,
        });
        let (count, bytes) = sizes.fold((0, 0u64), |(count, bytes), size| (count + 1, bytes.saturating_add(size)));
        count == 0 || (count < DELTAS_MAX && bytes.saturating_add(size) <= CUT_BYTES_MAX)
    }

    fn building(&mut self, path: &TreePath) -> Option<&mut Building<V>> {
        match self.apply.window.get_mut(path) {
            Some(Work { progress: Progress::Building(building), .. }) => Some(building),
            _ => None,
        }
    }

    /// What arrived earlier is read: the rest is put together.
    pub(super) fn start_delta(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let sizes = self.options.cuts.sizes;
        let Some(building) = self.building(path) else { return Ok(()) };
        let Some(Delta::Waiting(old)) = building.delta.take() else { return Ok(()) };
        if let Some(own) = self.manifest(old.hash)? {
            self.ask_manifest(path, old.file, own);
            return Ok(());
        }
        let Ok(cutting) = Cutting::new(&*self.vfs, &old.file, old.hash, Cutter::new(sizes)) else {
            return self.fetch_whole(path);
        };
        if let Some(building) = self.building(path) {
            let delta = Delta::Cutting { old: old.file, cutting: Box::new(cutting) };
            (building.delta, building.local) = (Some(delta), Some(Local::Joined));
        }
        self.join_on(path)
    }

    fn ask_manifest(&mut self, path: &TreePath, old: V::File, own: Manifest) {
        let known = own.known(PARTS_KNOWN_MAX);
        let what = What::Manifest(known.clone());
        if let Some(building) = self.building(path) {
            building.local = None;
            building.delta = Some(Delta::Asking { old, own, known, answer: Vec::new() });
            let want = Want { id: building.want, path: path.clone(), hash: building.hash, size: building.size, what };
            self.apply.asked.push(want);
        }
    }

    /// Goes on within what one call may copy: cuts the old content, copies chunks, asks for others.
    pub(super) fn join_on(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let mut left = self.apply.copy_left;
        let Some(Work { progress: Progress::Building(building), .. }) = self.apply.window.get_mut(path) else {
            return Ok(());
        };
        if let Some(Delta::Cutting { old, cutting }) = &mut building.delta {
            let stepped = cutting.step(&*self.vfs, old, &mut left);
            self.apply.copy_left = left;
            return match (stepped, building.delta.take()) {
                (Ok(true), Some(Delta::Cutting { old, cutting })) => {
                    let hash = cutting.hash;
                    let own = cutting.finish();
                    self.keep_manifest(hash, &own);
                    self.ask_manifest(path, old, own);
                    Ok(())
                }
                (Ok(_), delta) => {
                    building.delta = delta;
                    Ok(())
                }
                (Err(_), _) => self.fetch_whole(path),
            };
        }
        while self.apply.copy_left > 0 {
            let Some(piece) = building.next_piece() else { return self.end_delta(path) };
            if piece.from.is_none() {
                return self.ask_ranges(path);
            }
            building.copy_pieces(&*self.vfs, u64::MAX, &mut self.apply.copy_left);
        }
        Ok(())
    }

    fn ask_ranges(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let Some(building) = self.building(path) else { return Ok(()) };
        let Some(Delta::Joining { pieces, next, .. }) = &building.delta else { return Ok(()) };
        let rest = pieces.get(*next..).unwrap_or_default();
        let what = What::Ranges(ranges(rest, building.filled, RANGES_MAX, GAP_BYTES_MAX));
        building.local = None;
        let want = Want { id: building.want, path: path.clone(), hash: building.hash, size: building.size, what };
        self.apply.asked.push(want);
        Ok(())
    }

    /// All pieces are there.
    fn end_delta(&mut self, path: &TreePath) -> Result<(), TreeError> {
        let Some(building) = self.building(path) else { return Ok(()) };
        let (id, hash) = (building.want, building.hash);
        if building.filled != building.size || Hash(*building.hasher.finalize().as_bytes()) != hash {
            return self.ask_instead(path);
        }
        if let Some(Delta::Joining { pieces, .. }) = building.delta.take() {
            self.keep_manifest(hash, &Manifest { chunks: pieces.iter().map(|piece| piece.chunk).collect() });
        }
        self.finish_building(id)
    }

    /// Takes a piece of the manifest.
    pub(super) fn receive_manifest(
        &mut self,
        path: &TreePath,
        offset: u64,
        bytes: &[u8],
        last: bool,
    ) -> Result<(), TreeError> {
        let most = self.options.cuts.sizes;
        let Some(building) = self.building(path) else { return Ok(()) };
        let Some(Delta::Asking { own, known, answer, .. }) = &mut building.delta else { return Ok(()) };
        let end = offset.saturating_add(bytes.len() as u64);
        if answer.len() as u64 != offset || end > answer_bytes_max(building.size, most) {
            return self.fetch_whole(path);
        }
        answer.extend_from_slice(bytes);
        if !last {
            return Ok(());
        }
        let Ok(new) = Manifest::of_answer(answer, known, own, building.size) else { return self.fetch_whole(path) };
        let mut pieces = join(&new, own);
        if let Some(piece) = pieces.iter_mut().find(|piece| piece.end > building.filled)
            && piece.start() < building.filled
        {
            piece.from = None;
        }
        let copied = pieces.iter().filter(|piece| piece.from.is_some()).map(|piece| u64::from(piece.chunk.length));
        tracing::debug!(path = %path, size = building.size, copied = copied.sum::<u64>(), "a content is put together");
        if let Some(Delta::Asking { old, .. }) = building.delta.take() {
            (building.delta, building.local) = (Some(Delta::Joining { old, pieces, next: 0 }), Some(Local::Joined));
        }
        building.pass_pieces();
        Ok(())
    }

    /// A content cannot be put together: what is not here is asked for.
    pub(super) fn fetch_whole(&mut self, path: &TreePath) -> Result<(), TreeError> {
        if let Some(work) = self.apply.window.get_mut(path) {
            if let Progress::Building(building) = &work.progress {
                self.apply.wants.remove(&building.want);
            }
            (work.progress, work.no_delta) = (Progress::New, true);
            self.apply.grown = true;
        }
        Ok(())
    }

    /// Whether a want is one for a manifest.
    pub(super) fn wants_manifest(&self, id: WantId) -> Option<TreePath> {
        let path = self.apply.wants.get(&id)?;
        let asking = matches!(self.apply.window.get(path).map(|work| &work.progress),
            Some(Progress::Building(building)) if matches!(building.delta, Some(Delta::Asking { .. })));
        asking.then(|| path.clone())
    }
}
