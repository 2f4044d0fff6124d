//! Large contents of which an older version is here: the chunks of that are copied, the others asked for.
//!
//! The content is put together from its beginning, so that what is there is always a prefix of it: it
//! goes on where it broke off like any other (partial.rs). Every copied chunk is verified before it counts
//! and the whole at the end; whatever does not fit makes the node ask for the content as a whole.

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;
use pleach_protocol::session::What;
use pleach_protocol::wire::{PARTS_KNOWN_MAX, RANGES_MAX};

use super::apply::{Progress, Work};
use super::content::{Building, Local};
use super::manifests::Cutting;
use super::{Tree, TreeError, Want, WantId, content_of, hands};
use crate::chunks::{CUT_BYTES_MAX, ChunkSizes, Cutter, Manifest, Piece, answer_bytes_max, join, ranges};
use crate::kv::Kv;
use crate::rows::{self, EntryRow, VaultRow};
use crate::vfs::Vfs;

/// Contents put together at once, and their bytes: their manifests are in memory.
const DELTAS_MAX: usize = 16;
/// Bytes that are written while they are verified.
const RUN_BYTES: usize = 4 * 1024 * 1024;
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
    size: u64,
}

/// How far a content is that is put together.
pub(super) enum Delta<V: Vfs> {
    /// What arrived earlier is read first.
    Waiting(Old<V>),
    /// The old content is cut.
    Cutting(Box<Cutting<V>>),
    /// The manifest is on its way.
    Asking { old: V::File, own: Manifest, known: Vec<[u8; 8]>, answer: Vec<u8> },
    /// The pieces before `next` are there.
    Joining { old: V::File, pieces: Vec<Piece>, next: usize },
}

/// Bytes that are copied together, in a buffer that serves for all of them.
#[derive(Default)]
struct Run {
    buffer: Vec<u8>,
    filled: usize,
}

impl Run {
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }

    /// Reads so many bytes behind those that are there; where it cannot, these stay alone.
    fn read_more<V: Vfs>(&mut self, vfs: &V, file: &V::File, from: u64, length: usize) -> bool {
        let end = self.filled + length;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        let mut filled = self.filled;
        while filled < end {
            match vfs.read_at(file, from + (filled - self.filled) as u64, &mut self.buffer[filled..end]) {
                Ok(n) if n > 0 => filled += n,
                _ => return false,
            }
        }
        self.filled = end;
        true
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

    /// Copies the next pieces, those of them that begin before `until` and about [`RUN_BYTES`] at most, through a buffer;
    /// says whether the first was what it should be. What was not is asked for. What is written of it is written again
    /// then: only what was verified counts as filled.
    fn copy_run(&mut self, vfs: &V, until: u64, run: &mut Run) -> bool {
        let Some(Delta::Joining { old, pieces, next }) = &mut self.delta else { return false };
        let Some(ahead) = pieces.get_mut(*next..).filter(|ahead| !ahead.is_empty()) else { return false };
        run.filled = 0;
        let mut lengths = Vec::new();
        let begins = ahead.first().is_some_and(|piece| piece.start() == self.filled);
        for piece in ahead.iter().take_while(|piece| begins && piece.start() < until) {
            let (Some(from), length) = (piece.from, piece.chunk.length as usize) else { break };
            if run.filled >= RUN_BYTES || !run.read_more(vfs, old, from, length) {
                break;
            }
            lengths.push(length);
        }
        if lengths.is_empty() {
            ahead[0].from = None;
            return false;
        }
        let mut hasher = self.hasher.clone();
        let verify = || {
            let (mut rest, mut good) = (run.bytes(), 0usize);
            for (piece, length) in ahead.iter().zip(&lengths) {
                let (bytes, behind) = rest.split_at(*length);
                if *blake3::hash(bytes).as_bytes() != piece.chunk.hash {
                    break;
                }
                hasher.update(bytes);
                (rest, good) = (behind, good + 1);
            }
            good
        };
        let (written, good) = hands::both(vfs, || vfs.write_at(&self.file, self.filled, run.bytes()), verify);
        let last = good.checked_sub(1).filter(|_| written.is_ok()).and_then(|last| ahead.get(last));
        let Some(end) = last.map(|piece| piece.end) else {
            if let Some(piece) = ahead.first_mut() {
                piece.from = None;
            }
            return false;
        };
        (self.hasher, *next) = (hasher, *next + good);
        self.fill_up_to(vfs, end);
        true
    }

    /// Whether bytes at an offset are what was asked for, once what lies before them is copied.
    pub(super) fn close_gap(&mut self, vfs: &V, offset: u64, length: u64) -> bool {
        let mut run = Run::default();
        while self.filled < offset {
            if !self.copy_run(vfs, offset, &mut run) {
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
        let least = self.options.cuts.bytes_min;
        let worth = |size: u64| (least..=CUT_BYTES_MAX).contains(&size);
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
            return Ok(Some(Old { file, hash, size }));
        }
        let (start, end) = rows::vault_range(path);
        let versions: Vec<(Vec<u8>, VaultRow)> = self.index.others(&start, &end, usize::MAX)?;
        let newest = versions.into_iter().rev().find(|(_, row)| worth(row.size) && row.hash.is_some() && !row.open);
        let Some((key, row)) = newest else { return Ok(None) };
        let (VaultRow { hash: Some(hash), size, .. }, Some((_, id))) = (&row, rows::key_vault(&key)) else {
            return Ok(None);
        };
        let (hash, size) = (*hash, *size);
        let file = self.open_version(&root, id, &row);
        Ok(file.map(|file| Old { file, hash, size }))
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
        if let Some(building) = self.building(path) {
            let cutting = Cutting::new(old.file, (old.hash, old.size), Cutter::new(sizes));
            (building.delta, building.local) = (Some(Delta::Cutting(Box::new(cutting))), Some(Local::Joined));
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
        if let Some(Delta::Cutting(cutting)) = &mut building.delta {
            let stepped = cutting.step(&*self.vfs, &mut left);
            self.apply.copy_left = left;
            return match (stepped, building.delta.take()) {
                (Ok(true), Some(Delta::Cutting(cutting))) => {
                    let hash = cutting.hash;
                    let (old, own) = cutting.finish();
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
        let mut run = Run::default();
        while self.apply.copy_left > 0 {
            let Some(piece) = building.next_piece() else { return self.end_delta(path) };
            if piece.from.is_none() {
                return self.ask_ranges(path);
            }
            building.copy_run(&*self.vfs, u64::MAX, &mut run);
            self.apply.copy_left = self.apply.copy_left.saturating_sub(run.filled as u64);
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
