//! Whether what goes to a peer is compressed (`compress`), and when that pays.

use pleach_protocol::wire::FrameCompressor;

/// A link that takes less than this is slower than zstd, in bytes a second. Source: CRATES.md, 490 MB/s on one core, of which
/// the core has other uses.
pub(crate) const SLOW: u64 = 100_000_000;
/// So many frames go as they are after one that did not shrink.
const SKIPPED: u32 = 8;

/// What the config says of it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Compress {
    /// Rows always; contents where the link is slow, or limited by `bwlimit`.
    #[default]
    Auto,
    /// All that shrinks.
    On,
    /// Nothing.
    Off,
}

impl Compress {
    /// Reads the config's word.
    ///
    /// # Errors
    /// Which words there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => Err(format!("compress: {text:?} is none of auto, on, off")),
        }
    }
}

/// Compresses what goes over one link.
#[derive(Debug)]
pub(crate) struct Squeezer {
    zstd: FrameCompressor,
    skip: u32,
}

impl Squeezer {
    /// None where there is no memory for it.
    pub(crate) fn new() -> Option<Self> {
        Some(Self { zstd: FrameCompressor::new()?, skip: 0 })
    }

    /// The frame as it is to be sent.
    pub(crate) fn squeeze(&mut self, frame: Vec<u8>) -> Vec<u8> {
        if self.skip > 0 {
            self.skip -= 1;
            return frame;
        }
        match self.zstd.compress(&frame) {
            Some(compressed) => compressed,
            None => {
                if frame.len() >= FrameCompressor::BYTES_MIN {
                    self.skip = SKIPPED;
                }
                frame
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_shrink_is_not_tried_again_at_once() {
        let mut squeezer = Squeezer::new().unwrap();
        let text = b"a page of text, ".repeat(1_000);
        let mut noise = vec![0; 16_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert!(squeezer.squeeze(text.clone()).len() < 1_000);
        assert_eq!(squeezer.squeeze(noise.clone()), noise);
        for _ in 0..SKIPPED {
            assert_eq!(squeezer.squeeze(text.clone()), text);
        }
        assert!(squeezer.squeeze(text).len() < 1_000);
    }
}
