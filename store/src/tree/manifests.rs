//! Manifests of large contents: cut once when somebody needs them, and kept in the index.

use std::collections::{BTreeMap, VecDeque};
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
/// Contents that are to be cut; further questions wait.
const WANTED_MAX: usize = 16;
/// Bytes that one call of the applier cuts for peers that wait: the owner has others to serve.
pub(super) const CUT_STEP_BYTES: u64 = 32 * 1024 * 1024;
/// The same where nobody has asked yet.
const CUT_AHEAD_BYTES: u64 = 8 * 1024 * 1024;
/// Paths that changed again before they were cut, the last of which are remembered.
const RESTLESS_MAX: usize = 64;
/// A piece that is read in one go.
pub(super) const READ_BYTES: usize = 1024 * 1024;

/// A content that is being cut. Its file is the caller's.
pub(super) struct Cutting {
    pub(super) hash: Hash,
    size: u64,
    read: u64,
    /// The file's before the first byte was read.
    mtime: Time,
    buffer: Vec<u8>,
    cutter: Cutter,
}

/// A content that is to be cut. No file is open between two steps: a root can be unmounted while its tree is paused.
struct Wanted {
    path: TreePath,
    hash: Hash,
    /// Whether a peer waits for it.
    asked: bool,
    cutting: Option<Cutting>,
}

/// What was answered to whoever asked for a content's manifest and knew these parts.
struct Answer {
    hash: Hash,
    known: Arc<[[u8; 8]]>,
    bytes: Vec<u8>,
}

/// What is known of manifests.
#[derive(Default)]
pub(super) struct Manifests {
    /// Those in the index by their ids, the oldest first, with how many chunks they have.
    stored: BTreeMap<u64, (Hash, u64)>,
    ids: BTreeMap<Hash, u64>,
    wanted: Vec<Wanted>,
    /// They change too often for a cut that nobody asked for.
    restless: VecDeque<TreePath>,
    /// The answer that was read last: a peer reads it in pieces.
    answer: Option<Answer>,
}

impl Manifests {
    pub(super) const fn is_cutting(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// A peer asks for a content that is not cut.
    fn ask(&mut self, path: &TreePath, hash: Hash) {
        if let Some(wanted) = self.wanted.iter_mut().find(|wanted| wanted.hash == hash) {
            wanted.asked = true;
            return;
        }
        if self.wanted.len() >= WANTED_MAX
            && let Some(ahead) = self.wanted.iter().position(|wanted| !wanted.asked)
        {
            self.wanted.remove(ahead);
        }
        self.push(path, hash, true);
    }

    /// Nobody asks for it yet.
    fn foresee(&mut self, path: &TreePath, hash: Hash) {
        if let Some(last) = self.wanted.iter().position(|wanted| wanted.path == *path && !wanted.asked) {
            self.wanted.remove(last);
            self.settle(path, false);
        }
        if !self.restless.contains(path) && !self.wanted.iter().any(|wanted| wanted.hash == hash) {
            self.push(path, hash, false);
        }
    }

    fn push(&mut self, path: &TreePath, hash: Hash, asked: bool) {
        if self.wanted.len() < WANTED_MAX {
            self.wanted.push(Wanted { path: path.clone(), hash, asked, cutting: None });
        }
    }

    /// Remembers whether a path stayed as it was until it was cut.
    fn settle(&mut self, path: &TreePath, stayed: bool) {
        self.restless.retain(|restless| restless != path);
        if !stayed {
            self.restless.push_back(path.clone());
        }
        if self.restless.len() > RESTLESS_MAX {
            self.restless.pop_front();
        }
    }

    /// What is cut next: first what a peer waits for.
    fn next(&self) -> Option<usize> {
        self.wanted.iter().position(|wanted| wanted.asked).or((!self.wanted.is_empty()).then_some(0))
    }
}

impl Cutting {
    /// Begins at a file that was found to have the content.
    pub(super) fn new<V: Vfs>(vfs: &V, file: &V::File, hash: Hash, cutter: Cutter) -> io::Result<Self> {
        let meta = vfs.stat_file(file)?;
        Ok(Self { hash, size: meta.size, read: 0, mtime: meta.mtime, buffer: Vec::new(), cutter })
    }

    /// Goes on within a budget; whether it is done. An error where the content is another by now.
    pub(super) fn step<V: Vfs>(&mut self, vfs: &V, file: &V::File, left: &mut u64) -> io::Result<bool> {
        self.buffer.resize(READ_BYTES, 0);
        while *left > 0 && self.read < self.size {
            let n = vfs.read_at(file, self.read, &mut self.buffer)?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.cutter.feed(&self.buffer[..n]);
            self.read += n as u64;
            *left = left.saturating_sub(n as u64);
        }
        let meta = vfs.stat_file(file)?;
        if (meta.size, meta.mtime) != (self.size, self.mtime) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it changed while it was cut"));
        }
        Ok(self.read == self.size)
    }

    pub(super) fn finish(self) -> Manifest {
        self.cutter.finish()
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
        self.manifests.ask(path, hash);
        Ok(None)
    }

    /// Begins to cut what took the place of a content that peers heard of (`seq`): they cut theirs first, and ask for this one's
    /// chunks then.
    pub(super) fn cut_for_peers(&mut self, path: &TreePath, seq: u64, before: Option<&State>, after: Option<&State>) {
        let large = |state: Option<&State>| match content_of(&state?.value) {
            (Some(size), hash) if self.is_worth_cutting(size) => hash,
            _ => None,
        };
        if let (Some(_), Some(hash)) = (large(before), large(after))
            && (1..=self.heard).contains(&seq)
            && !self.manifests.ids.contains_key(&hash)
        {
            self.manifests.foresee(path, hash);
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
            && let Some(next) = self.manifests.next()
        {
            let mut wanted = self.manifests.wanted.remove(next);
            if !wanted.asked {
                left = left.min(CUT_AHEAD_BYTES);
            }
            let stepped = self.cut_some(&mut wanted, &mut left);
            if matches!(stepped, Ok(false)) {
                self.manifests.wanted.insert(next, wanted);
                return;
            }
            self.manifests.settle(&wanted.path, stepped.is_ok());
            if stepped.is_ok()
                && let Some(cutting) = wanted.cutting
            {
                self.keep_manifest(wanted.hash, &cutting.finish());
            }
            // Whoever waits for it asks again.
            self.arrivals += 1;
        }
    }

    fn cut_some(&self, wanted: &mut Wanted, left: &mut u64) -> io::Result<bool> {
        let file = self.open_content(&wanted.path, wanted.hash)?;
        let cutting = match &mut wanted.cutting {
            Some(cutting) => cutting,
            none => {
                let cutter = Cutter::new(self.options.cuts.sizes);
                none.insert(Cutting::new(&*self.vfs, &file, wanted.hash, cutter)?)
            }
        };
        cutting.step(&*self.vfs, &file, left)
    }
}
