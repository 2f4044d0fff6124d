//! Frames: four bytes of length, little-endian, then so many bytes.

use serde::Serialize;

use super::FRAME_BYTES_MAX;
use crate::codec;

/// Says why a frame cannot be made or read.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A body is longer than [`FRAME_BYTES_MAX`], or says so.
    #[error("a frame of {0} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong(usize),
}

/// Encodes a message as a frame.
///
/// # Errors
/// [`FrameError::TooLong`].
pub fn frame<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let body = codec::encode(message);
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= FRAME_BYTES_MAX);
    let length = length.ok_or(FrameError::TooLong(body.len()))?;
    let mut bytes = Vec::with_capacity(body.len().saturating_add(4));
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Cuts a byte stream into frames; looks at each length before it keeps anything for it. Holds at
/// most one frame and what was pushed since the last call that returned none.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
}

impl FrameReader {
    /// Takes bytes in.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame's body.
    ///
    /// # Errors
    /// A length beyond the limit; every later call fails too.
    pub fn next_frame(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((length, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = body.get(..length) else { return Ok(None) };
        let body = body.to_vec();
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
    fn a_length_that_lies_is_refused_before_it_is_believed() {
        for length in [u32::MAX, 256 * 1024 + 1] {
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
