//! Frames: four bytes of length, little-endian, then so many bytes. With the highest bit of the length the body is
//! compressed by zstd.

use serde::Serialize;
use zstd::bulk::{Compressor, Decompressor};

use super::FRAME_BYTES_MAX;
use crate::codec;

/// Says why a frame cannot be made or read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A body is longer than [`FRAME_BYTES_MAX`], or says so.
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
    /// A compressed body is none, or longer than [`FRAME_BYTES_MAX`] once it is expanded.
    #[error("a compressed frame cannot be expanded")]
    Compressed,
}

/// In a frame's length: its body is compressed.
const COMPRESSED: u32 = 1 << 31;
/// Fast enough for a gigabit on one core, and most of what higher ones save. Source: CRATES.md.
const LEVEL: i32 = 1;
/// Compresses frames.
pub struct FrameCompressor {
    zstd: Compressor<'static>,
}

impl std::fmt::Debug for FrameCompressor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FrameCompressor").finish_non_exhaustive()
    }
}

impl FrameCompressor {
    /// A shorter body is not worth it, in bytes.
    pub const BYTES_MIN: usize = 512;

    /// One for a link; none where there is no memory for it.
    #[must_use]
    pub fn new() -> Option<Self> {
        Some(Self { zstd: Compressor::new(LEVEL).ok()? })
    }

    /// The same frame, compressed; none where that saves less than an eighth.
    pub fn compress(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let body = frame.get(4..).filter(|body| body.len() >= Self::BYTES_MIN)?;
        let compressed = self.zstd.compress(body).ok()?;
        let enough = body.len().saturating_sub(body.len() / 8);
        let length = u32::try_from(compressed.len()).ok().filter(|_| compressed.len() < enough)?;
        Some([&(length | COMPRESSED).to_le_bytes()[..], &compressed].concat())
    }
}

/// Encodes a message as a frame.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = codec::encode_behind(&[0; 4], message);
    let Some((head, body)) = bytes.split_first_chunk_mut::<4>() else { return Err(FrameError::TooLong(0)) };
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= FRAME_BYTES_MAX);
    *head = length.ok_or(FrameError::TooLong(body.len()))?.to_le_bytes();
    Ok(bytes)
}

/// Cuts a byte stream into frames; looks at each length before it keeps anything for it. Holds at
/// most one frame and what was pushed since the last call that returned none.
#[derive(Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    zstd: Option<Decompressor<'static>>,
}

impl std::fmt::Debug for FrameReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("FrameReader").field("held", &self.held()).finish_non_exhaustive()
    }
}

impl FrameReader {
    /// What of frames is here that were not taken out, in bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.buffer.len().saturating_sub(self.start)
    }

    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's body, expanded.
    ///
    /// # Errors
    /// A length beyond the limit, a compressed body that is none; every later call fails too.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((length, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let said = u32::from_le_bytes(*length);
        let compressed = said & COMPRESSED != 0;
        let length = usize::try_from(said & !COMPRESSED).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = body.get(..length) else { return Ok(None) };
        let body = match compressed {
            true => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(Decompressor::new().map_err(|_| FrameError::Compressed)?),
                };
                let mut body = zstd.decompress(body, FRAME_BYTES_MAX).map_err(|_| FrameError::Compressed)?;
                // Whoever queues it counts its length, not the room that was kept for it.
                body.shrink_to_fit();
                body
            }
            false => body.to_vec(),
        };
        self.start = self.start.saturating_add(length).saturating_add(4);
        Ok(Some(body))
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::panic, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::wire::{Bytes, Message};

    #[test]
    fn frames_come_out_whole_whatever_the_cuts() {
        let frames: Vec<Vec<u8>> = (0..50u64).map(|n| frame(&Message::Credit { bytes: n * n }).unwrap()).collect();
        let stream = frames.concat();
        for step in [1, 3, 7, 1000] {
            let (mut reader, mut got) = (FrameReader::default(), Vec::new());
            for piece in stream.chunks(step) {
                reader.push(piece);
                while let Some(body) = reader.next_frame().unwrap() {
                    got.push(codec::decode::<Message>(&body).unwrap());
                }
            }
            let want: Vec<Message> = (0..50u64).map(|n| Message::Credit { bytes: n * n }).collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn compressed_frames_come_out_as_they_were() {
        let mut compressor = FrameCompressor::new().unwrap();
        let content = |bytes| Message::Content { request: 1, offset: 0, bytes: Bytes(bytes), last: true };
        let text = content(b"a page of text, ".repeat(3_000));
        let whole = frame(&text).unwrap();
        let compressed = compressor.compress(&whole).unwrap();
        assert!(compressed.len() < whole.len() / 10);
        let mut noise = vec![0; 50_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(compressor.compress(&frame(&content(noise)).unwrap()), None, "it saves nothing");
        assert_eq!(compressor.compress(&frame(&Message::Ping).unwrap()), None, "too short");
        let mut reader = FrameReader::default();
        reader.push(&[&compressed[..], &frame(&Message::Ping).unwrap(), &compressed].concat());
        for want in [&text, &Message::Ping, &text] {
            assert_eq!(&codec::decode::<Message>(&reader.next_frame().unwrap().unwrap()).unwrap(), want);
        }
        assert_eq!((reader.next_frame(), reader.held()), (Ok(None), 0));
        reader.push(&compressor.compress(&frame(&content(vec![0; 1_000])).unwrap()).unwrap());
        assert!(reader.next_frame().unwrap().unwrap().capacity() < 2_000);
    }

    #[test]
    fn a_compressed_body_that_is_none_or_too_long_is_refused() {
        let too_long = zstd::bulk::compress(&vec![0; FRAME_BYTES_MAX + 1], LEVEL).unwrap();
        let mut cut = zstd::bulk::compress(&[7; 4_000], LEVEL).unwrap();
        cut.pop();
        for body in [&too_long[..], &cut, b"no zstd"] {
            let length = u32::try_from(body.len()).unwrap() | COMPRESSED;
            let mut reader = FrameReader::default();
            reader.push(&[&length.to_le_bytes()[..], body].concat());
            for _ in 0..2 {
                assert_eq!(reader.next_frame(), Err(FrameError::Compressed), "{} bytes", body.len());
            }
        }
    }

    #[test]
    fn a_length_that_lies_is_refused_before_it_is_believed() {
        for length in [u32::MAX, u32::MAX >> 1, 256 * 1024 + 1] {
            let mut reader = FrameReader::default();
            reader.push(&length.to_le_bytes());
            assert!(matches!(reader.next_frame(), Err(FrameError::TooLong(_))));
            reader.push(&[0; 100]);
            assert!(matches!(reader.next_frame(), Err(FrameError::TooLong(_))));
        }
        let mut reader = FrameReader::default();
        reader.push(&(256u32 * 1024).to_le_bytes());
        assert_eq!(reader.next_frame(), Ok(None));
    }

    #[test]
    fn a_frame_beyond_the_limit_is_not_made() {
        let content = |length| Message::Content { request: 1, offset: 0, bytes: Bytes(vec![0; length]), last: true };
        assert!(frame(&content(FRAME_BYTES_MAX - 100)).is_ok());
        assert!(matches!(frame(&content(FRAME_BYTES_MAX)), Err(FrameError::TooLong(_))));
    }
}
