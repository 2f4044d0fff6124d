//! Large contents cut by content: chunks, manifests and the parts of manifests.
//!
//! A cut depends only on the bytes before it, so that an insertion changes few chunks. A manifest lists
//! a content's chunks; it is cut by its own hashes in turn, so that a small change of a large content
//! changes few parts. What a peer sends is a hint here: the hash of the whole decides.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use fastcdc::v2020::FastCDC;

/// The longest content that is cut, in bytes.
pub const CUT_BYTES_MAX: u64 = 16 * 1024 * 1024 * 1024;
/// The longest chunk that is believed, in bytes.
const CHUNK_BYTES_MAX: u32 = 256 * 1024;
/// A chunk in a manifest: its hash and its length.
const ROW_BYTES: usize = 36;
/// A part ends behind a chunk whose hash ends in so many zero bits, if it has at least so many chunks, or
/// when it has so many.
const PART_MASK: u8 = 0x3f;
pub(crate) const PART_CHUNKS_MIN: usize = 16;
const PART_CHUNKS_MAX: usize = 256;
/// What is cut in one go, at least the longest chunk.
const BUFFER_BYTES: usize = 1024 * 1024;

/// How long chunks are, in bytes. Nodes that differ in it find few chunks of each other.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ChunkSizes {
    /// No chunk but the last is shorter: at least 64.
    pub min: u32,
    /// About so long are they: at least 256.
    pub average: u32,
    /// None is longer: 1,024 to 262,144.
    pub max: u32,
}

impl Default for ChunkSizes {
    fn default() -> Self {
        Self { min: 16 * 1024, average: 64 * 1024, max: CHUNK_BYTES_MAX }
    }
}

/// One chunk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chunk {
    /// Its BLAKE3.
    pub hash: [u8; 32],
    /// Its length in bytes, never 0.
    pub length: u32,
}

/// The chunks of a content, in order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Manifest {
    /// All of them.
    pub chunks: Vec<Chunk>,
}

/// Says why bytes are no manifest.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a manifest that does not fit: {0}")]
pub struct ManifestError(&'static str);

impl Manifest {
    /// The length of the content; none where it is none.
    #[must_use]
    pub fn size(&self) -> Option<u64> {
        self.chunks.iter().try_fold(0u64, |sum, chunk| sum.checked_add(u64::from(chunk.length)))
    }

    /// Where the parts are cut.
    fn parts(&self) -> Vec<Range<usize>> {
        let (mut parts, mut start) = (Vec::new(), 0);
        for (at, chunk) in self.chunks.iter().enumerate() {
            let (end, length) = (at + 1, at + 1 - start);
            let ends = chunk.hash[31] & PART_MASK == 0 && length >= PART_CHUNKS_MIN;
            if ends || length == PART_CHUNKS_MAX || end == self.chunks.len() {
                parts.push(start..end);
                start = end;
            }
        }
        parts
    }

    /// The parts, each as bytes.
    #[must_use]
    pub fn encoded_parts(&self) -> Vec<Vec<u8>> {
        let parts = self.parts().into_iter();
        parts.map(|part| self.chunks[part].iter().flat_map(row).collect()).collect()
    }

    /// A manifest of such parts, of a content of this length.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn of_parts<'a>(parts: impl Iterator<Item = &'a [u8]>, size: u64) -> Result<Self, ManifestError> {
        let mut manifest = Self::default();
        for part in parts {
            let (rows, rest) = part.as_chunks::<ROW_BYTES>();
            if !rest.is_empty() || rows.len() > PART_CHUNKS_MAX {
                return Err(ManifestError("a part is no list of chunks"));
            }
            for row in rows {
                let (mut hash, mut length) = ([0; 32], [0; 4]);
                hash.copy_from_slice(&row[..32]);
                length.copy_from_slice(&row[32..]);
                let chunk = Chunk { hash, length: u32::from_le_bytes(length) };
                if chunk.length == 0 || chunk.length > CHUNK_BYTES_MAX {
                    return Err(ManifestError("a chunk is empty or too long"));
                }
                manifest.chunks.push(chunk);
            }
        }
        if manifest.size() != Some(size) {
            return Err(ManifestError("the lengths do not add up"));
        }
        Ok(manifest)
    }

    /// The first bytes of the hashes of its parts, at most `count` of them.
    #[must_use]
    pub fn known(&self, count: usize) -> Vec<[u8; 8]> {
        self.encoded_parts().iter().take(count).map(|part| prefix(blake3::hash(part).as_bytes())).collect()
    }

    /// The answer to whoever knows some parts: number of parts, hash and number of chunks of each, then those
    /// that it does not know.
    #[must_use]
    pub fn answer(&self, known: &[[u8; 8]]) -> Vec<u8> {
        let parts = self.encoded_parts();
        let known: BTreeSet<&[u8; 8]> = known.iter().collect();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        let mut answer = count(parts.len()).to_vec();
        let mut bodies = Vec::new();
        for part in &parts {
            let hash = blake3::hash(part);
            answer.extend_from_slice(hash.as_bytes());
            answer.extend_from_slice(&count(part.len() / ROW_BYTES));
            if !known.contains(&prefix(hash.as_bytes())) {
                bodies.extend_from_slice(part);
            }
        }
        answer.extend_from_slice(&bodies);
        answer
    }

    /// Reads such an answer for a content of `size` bytes; `known` was said to be known, of `own`.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn of_answer(answer: &[u8], known: &[[u8; 8]], own: &Self, size: u64) -> Result<Self, ManifestError> {
        let short = ManifestError("it is too short");
        let own: BTreeMap<[u8; 32], Vec<u8>> =
            own.encoded_parts().into_iter().map(|part| (*blake3::hash(&part).as_bytes(), part)).collect();
        let known: BTreeSet<&[u8]> = known.iter().map(|prefix| &prefix[..]).collect();
        let (count, rest) = answer.split_first_chunk::<4>().ok_or(short)?;
        let count = usize::try_from(u32::from_le_bytes(*count)).unwrap_or(usize::MAX);
        let heads = count.checked_mul(ROW_BYTES).ok_or(short)?;
        let (heads, mut bodies) = rest.split_at_checked(heads).ok_or(short)?;
        let mut parts = Vec::new();
        for head in heads.as_chunks::<ROW_BYTES>().0 {
            let (hash, chunks) = head.split_at(32);
            if known.contains(&hash[..8]) {
                parts.push(own.get(hash).ok_or(ManifestError("a part was left out"))?.as_slice());
                continue;
            }
            let chunks = chunks.try_into().map(u32::from_le_bytes).map_err(|_| short)?;
            let length = usize::try_from(chunks).ok().and_then(|n| n.checked_mul(ROW_BYTES)).ok_or(short)?;
            let (part, more) = bodies.split_at_checked(length).ok_or(short)?;
            if blake3::hash(part).as_bytes() != hash {
                return Err(ManifestError("a part is another"));
            }
            parts.push(part);
            bodies = more;
        }
        if !bodies.is_empty() {
            return Err(ManifestError("it is too long"));
        }
        Self::of_parts(parts.into_iter(), size)
    }
}

/// The longest answer for a content of a length: every chunk but the last is of the shortest length, every
/// part too.
#[must_use]
pub fn answer_bytes_max(size: u64, sizes: ChunkSizes) -> u64 {
    let chunks = size / u64::from(sizes.min.max(1)) + 1;
    let parts = chunks / PART_CHUNKS_MIN as u64 + 1;
    4 + (chunks + parts) * ROW_BYTES as u64
}

fn row(chunk: &Chunk) -> impl Iterator<Item = u8> {
    chunk.hash.into_iter().chain(chunk.length.to_le_bytes())
}

fn prefix(hash: &[u8; 32]) -> [u8; 8] {
    let mut prefix = [0; 8];
    prefix.copy_from_slice(&hash[..8]);
    prefix
}

/// Cuts a content that comes piece by piece.
#[derive(Debug)]
pub struct Cutter {
    sizes: ChunkSizes,
    buffer: Vec<u8>,
    manifest: Manifest,
    /// What followed a chunk in an older content, and the chunk of it that is likely to come next.
    followers: BTreeMap<[u8; 32], Chunk>,
    likely: Option<Chunk>,
}

impl Cutter {
    /// With nothing yet.
    #[must_use]
    pub const fn new(sizes: ChunkSizes) -> Self {
        let manifest = Manifest { chunks: Vec::new() };
        Self { sizes, buffer: Vec::new(), manifest, followers: BTreeMap::new(), likely: None }
    }

    /// With nothing yet, for a content that is much like an older one. The cuts are the same; where they are known from that one,
    /// they are not looked for.
    #[must_use]
    pub fn like(old: &Manifest, sizes: ChunkSizes) -> Self {
        // The last chunk was cut by the end. A peer's list may have others that nobody cuts: of single bytes, say.
        let cut = old.chunks.split_last().map_or(&[][..], |(_, cut)| cut);
        let fits = |chunk: &Chunk| (sizes.min..=sizes.max).contains(&chunk.length);
        let followers = cut.iter().zip(cut.iter().skip(1)).filter(|(_, next)| fits(next));
        let followers = followers.map(|(chunk, next)| (chunk.hash, *next)).collect();
        Self { followers, likely: cut.first().copied().filter(fits), ..Self::new(sizes) }
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = BUFFER_BYTES.saturating_sub(self.buffer.len()).min(bytes.len());
            let (now, later) = bytes.split_at(room);
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() >= BUFFER_BYTES {
                self.cut(self.sizes.max as usize);
            }
        }
    }

    /// The manifest of what came.
    #[must_use]
    pub fn finish(mut self) -> Manifest {
        self.cut(1);
        self.manifest
    }

    /// Cuts the buffer while so many bytes are in it: what follows a longest chunk changes no cut.
    fn cut(&mut self, least: usize) {
        let ChunkSizes { min, average, max } = self.sizes;
        let chunker = FastCDC::new(&self.buffer, min, average, max);
        let mut start = 0;
        while self.buffer.len() - start >= least {
            let rest = &self.buffer[start..];
            let hash_of = |length: u32| rest.get(..length as usize).map(|bytes| *blake3::hash(bytes).as_bytes());
            let likely = self.likely.filter(|likely| hash_of(likely.length) == Some(likely.hash));
            let chunk = likely.unwrap_or_else(|| {
                let (_, end) = chunker.cut(start, rest.len());
                let length = u32::try_from(end - start).expect("no longer than the longest chunk");
                Chunk { hash: hash_of(length).expect("it is within the rest"), length }
            });
            self.likely = self.followers.get(&chunk.hash).copied();
            self.manifest.chunks.push(chunk);
            start += chunk.length as usize;
        }
        self.buffer.drain(..start);
    }
}

/// A piece of a content that is put together.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Where it ends.
    pub end: u64,
    /// Its chunk.
    pub chunk: Chunk,
    /// Where it is in the old content, if it is.
    pub from: Option<u64>,
}

impl Piece {
    /// Where it begins.
    #[must_use]
    pub fn start(&self) -> u64 {
        self.end.saturating_sub(u64::from(self.chunk.length))
    }
}

/// How a content is put together from another and what is asked for.
#[must_use]
pub fn join(new: &Manifest, old: &Manifest) -> Vec<Piece> {
    let mut places = BTreeMap::new();
    let mut offset = 0u64;
    for chunk in &old.chunks {
        places.entry((chunk.hash, chunk.length)).or_insert(offset);
        offset = offset.saturating_add(u64::from(chunk.length));
    }
    let mut end = 0u64;
    let piece = |chunk: &Chunk| {
        end = end.saturating_add(u64::from(chunk.length));
        Piece { end, chunk: *chunk, from: places.get(&(chunk.hash, chunk.length)).copied() }
    };
    new.chunks.iter().map(piece).collect()
}

/// What to ask for in one go, from the first piece that is not here behind `filled`: at most `count` ranges,
/// with at most `gap` bytes between them.
#[must_use]
pub fn ranges(pieces: &[Piece], filled: u64, count: usize, gap: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let (mut skipped, mut upto) = (0, filled);
    for piece in pieces.iter().filter(|piece| piece.end > filled) {
        let start = piece.start().max(filled);
        if piece.from.is_some() {
            skipped += if ranges.is_empty() { 0 } else { piece.end - start };
            if skipped > gap {
                break;
            }
            continue;
        }
        let full = ranges.len() >= count;
        match ranges.last_mut() {
            Some((_, length)) if upto == start => *length += piece.end - start,
            _ if full => break,
            _ => ranges.push((start, piece.end - start)),
        }
        upto = piece.end;
    }
    ranges
}

#[cfg(test)]
mod tests;
