//! Manifests of large contents: cut once when somebody needs them, and kept in the index.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::view::State;

use super::{Tree, TreeError, content_of};
use crate::chunks::{CUT_BYTES_MAX, Cutter, Manifest};
use crate::kv::Kv;
use crate::rows::{self, ManifestRow, ShownRow};
use crate::vfs::Vfs;

/// Chunks of stored manifests together; the oldest manifests give way.
const STORED_CHUNKS_MAX: u64 = 1 << 20;
/// Contents that are cut at once; further questions wait.
const CUTTINGS_MAX: usize = 4;
/// Bytes that one call of the applier cuts: the owner has others to serve.
pub(super) const CUT_STEP_BYTES: u64 = 32 * 1024 * 1024;
/// A piece that is read in one go.
pub(super) const READ_BYTES: usize = 1024 * 1024;

/// A content that is being cut.
pub(super) struct Cutting<V: Vfs> {
    pub(super) file: V::File,
    pub(super) hash: Hash,
    size: u64,
    read: u64,
    /// The file's when the first byte was read.
    mtime: Option<Time>,
    buffer: Vec<u8>,
    cutter: Cutter,
}

/// What was answered to whoever asked for a content's manifest and knew these parts.
struct Answer {
    hash: Hash,
    known: Arc<[[u8; 8]]>,
    bytes: Vec<u8>,
}

/// What is known of manifests.
pub(super) struct Manifests<V: Vfs> {
    /// Those in the index by their ids, the oldest first, with how many chunks they have.
    stored: BTreeMap<u64, (Hash, u64)>,
    ids: BTreeMap<Hash, u64>,
    cuttings: Vec<Cutting<V>>,
    /// The answer that was read last: a peer reads it in pieces.
    answer: Option<Answer>,
}

impl<V: Vfs> Default for Manifests<V> {
    fn default() -> Self {
        Self { stored: BTreeMap::new(), ids: BTreeMap::new(), cuttings: Vec::new(), answer: None }
    }
}

impl<V: Vfs> Manifests<V> {
    pub(super) const fn is_cutting(&self) -> bool {
        !self.cuttings.is_empty()
    }
}

impl<V: Vfs> Cutting<V> {
    pub(super) const fn new(file: V::File, (hash, size): (Hash, u64), cutter: Cutter) -> Self {
        Self { file, hash, size, read: 0, mtime: None, buffer: Vec::new(), cutter }
    }

    /// Goes on within a budget. The manifest at the end; an error where the content is another by now.
    pub(super) fn step(&mut self, vfs: &V, left: &mut u64) -> io::Result<bool> {
        self.buffer.resize(READ_BYTES, 0);
        let began = *self.mtime.get_or_insert(vfs.stat_file(&self.file)?.mtime);
        while *left > 0 {
            match vfs.read_at(&self.file, self.read, &mut self.buffer)? {
                0 if self.read == self.size && vfs.stat_file(&self.file)?.mtime == began => return Ok(true),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => {
                    self.cutter.feed(&self.buffer[..n]);
                    self.read += n as u64;
                    *left = left.saturating_sub(n as u64);
                }
            }
            if self.read > self.size {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(false)
    }

    pub(super) fn finish(self) -> (V::File, Manifest) {
        (self.file, self.cutter.finish())
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Takes up, at a start, what is in the index.
    pub(super) fn find_manifests(&mut self) -> Result<(), TreeError> {
        let (start, end) = rows::manifests_range();
        let found: Vec<(Vec<u8>, ManifestRow)> = self.index.others(&start, &end, usize::MAX)?;
        for (_, row) in found {
            self.manifests.stored.insert(row.id, (row.hash, u64::from(row.chunks)));
            self.manifests.ids.insert(row.hash, row.id);
        }
        Ok(())
    }

    /// A content's manifest, if it was cut before.
    pub(super) fn manifest(&self, hash: Hash) -> Result<Option<Manifest>, TreeError> {
        if !self.manifests.ids.contains_key(&hash) {
            return Ok(None);
        }
        let key = rows::manifest_key(hash);
        let found: Vec<(Vec<u8>, ManifestRow)> = self.index.others(&key, &rows::after_prefix(&key), 1)?;
        let Some((_, row)) = found.into_iter().next() else { return Ok(None) };
        let (start, end) = rows::manifest_parts_range(hash);
        let parts: Vec<(Vec<u8>, Vec<u8>)> = self.index.others(&start, &end, usize::MAX)?;
        Ok(Manifest::of_parts(parts.iter().map(|(_, part)| part.as_slice()), row.size).ok())
    }

    /// What cuts a content in place of which this was shown: peers asked for the chunks of the last one, and will for those of the
    /// next.
    pub(super) fn cutter_like(&self, known: Option<&ShownRow>) -> Option<Cutter> {
        let (_, hash) = content_of(&known?.shown.state.as_ref()?.value);
        let manifest =
            self.manifest(hash?).inspect_err(|error| tracing::debug!(%error, "a manifest is not used")).ok()??;
        Some(Cutter::like(&manifest, self.options.cuts.sizes))
    }

    /// Keeps a manifest; the oldest ones give way.
    pub(super) fn keep_manifest(&mut self, hash: Hash, manifest: &Manifest) {
        let (Some(size), Ok(chunks)) = (manifest.size(), u32::try_from(manifest.chunks.len())) else { return };
        self.forget_manifest(hash);
        let id = self.index.next_id();
        for (part, number) in manifest.encoded_parts().iter().zip(0..) {
            self.index.put_other(rows::manifest_part_key(hash, number), part);
        }
        self.index.put_other(rows::manifest_key(hash), &ManifestRow { id, hash, size, chunks });
        self.manifests.stored.insert(id, (hash, u64::from(chunks)));
        self.manifests.ids.insert(hash, id);
        let mut all: u64 = self.manifests.stored.values().map(|(_, chunks)| chunks).sum();
        while all > STORED_CHUNKS_MAX
            && let Some((_, (oldest, chunks))) = self.manifests.stored.first_key_value().map(|(k, v)| (*k, *v))
            && oldest != hash
        {
            all = all.saturating_sub(chunks);
            self.forget_manifest(oldest);
        }
    }

    fn forget_manifest(&mut self, hash: Hash) {
        let Some(id) = self.manifests.ids.remove(&hash) else { return };
        let chunks = self.manifests.stored.remove(&id).map_or(0, |(_, chunks)| chunks);
        self.index.delete(rows::manifest_key(hash));
        // No part but the last has fewer chunks than a part's least.
        for number in 0..=u32::try_from(chunks / crate::chunks::PART_CHUNKS_MIN as u64).unwrap_or(u32::MAX) {
            self.index.delete(rows::manifest_part_key(hash, number));
        }
    }

    /// Reads part of the answer to whoever asks for a content's manifest and knows some parts: bytes, and
    /// whether they end it. None where the content is being cut: ask again after [`Tree::apply`].
    ///
    /// # Errors
    /// ENOENT where this node does not have the content, `Unsupported` where it is not cut.
    pub fn read_manifest(
        &mut self,
        path: &TreePath,
        hash: Hash,
        known: &Arc<[[u8; 8]]>,
        offset: u64,
        bytes_max: usize,
    ) -> io::Result<Option<(Vec<u8>, bool)>> {
        let read = |answer: &[u8]| {
            let rest = usize::try_from(offset).ok().and_then(|offset| answer.get(offset..)).unwrap_or_default();
            let piece = rest.get(..bytes_max).unwrap_or(rest);
            Some((piece.to_vec(), piece.len() == rest.len()))
        };
        if let Some(answer) = &self.manifests.answer
            && answer.hash == hash
            && Arc::ptr_eq(&answer.known, known)
        {
            return Ok(read(&answer.bytes));
        }
        let file = self.open_content(path, hash)?;
        if let Some(manifest) = self.manifest(hash).map_err(io::Error::other)? {
            let bytes = manifest.answer(known);
            let piece = read(&bytes);
            self.manifests.answer = Some(Answer { hash, known: Arc::clone(known), bytes });
            return Ok(piece);
        }
        let size = self.vfs.stat_file(&file)?.size;
        if size > CUT_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "it is too large to be cut"));
        }
        self.begin_cut(file, (hash, size));
        Ok(None)
    }

    fn begin_cut(&mut self, file: V::File, (hash, size): (Hash, u64)) {
        let cuttings = &mut self.manifests.cuttings;
        if cuttings.len() < CUTTINGS_MAX && !cuttings.iter().any(|cutting| cutting.hash == hash) {
            cuttings.push(Cutting::new(file, (hash, size), Cutter::new(self.options.cuts.sizes)));
        }
    }

    /// Begins to cut what took the place of a content that peers heard of (`seq`): they cut theirs first, and ask for this one's
    /// chunks then.
    pub(super) fn cut_for_peers(&mut self, path: &TreePath, seq: u64, before: Option<&State>, after: Option<&State>) {
        let large = |state: Option<&State>| match content_of(&state?.value) {
            (Some(size), Some(hash)) if self.is_worth_cutting(size) => Some((hash, size)),
            _ => None,
        };
        if let (Some(_), Some((hash, size))) = (large(before), large(after))
            && (1..=self.heard).contains(&seq)
            && !self.manifests.ids.contains_key(&hash)
            && let Ok(file) = self.open_content(path, hash)
        {
            self.begin_cut(file, (hash, size));
        }
    }

    /// Whether a content is so large that chunks of an older one are looked for, and not too large.
    pub(super) const fn is_worth_cutting(&self, size: u64) -> bool {
        self.options.cuts.bytes_min <= size && size <= CUT_BYTES_MAX
    }

    /// Carries on what is cut for peers.
    pub(super) fn cut_on(&mut self) {
        let mut left = CUT_STEP_BYTES;
        while left > 0
            && let Some(cutting) = self.manifests.cuttings.first_mut()
        {
            let stepped = cutting.step(&*self.vfs, &mut left);
            if matches!(stepped, Ok(false)) {
                return;
            }
            let cutting = self.manifests.cuttings.remove(0);
            if stepped.is_ok() {
                let hash = cutting.hash;
                let (_, manifest) = cutting.finish();
                self.keep_manifest(hash, &manifest);
            }
            // Whoever waits for it asks again.
            self.arrivals += 1;
        }
    }
}
