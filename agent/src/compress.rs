//! Whether what goes to a peer is compressed (`compress`), and when that pays.

use std::time::{Duration, Instant};

use pleach_protocol::wire::FrameCompressor;

/// A link that takes less than this is slower than zstd, in bytes a second. Source: CRATES.md, 490 MB/s on one core, of which
/// the core has other uses.
const SLOW: u64 = 100_000_000;
/// How long is measured at once.
const PERIOD: Duration = Duration::from_millis(250);
/// Fewer bytes tell nothing: a peer credits in portions of 128 KiB.
const BYTES_MIN: u64 = 256 * 1024;
/// A portion that does not fill keeps some bytes on their way for ever: after such a time without any it is measured anew.
const IDLE: Duration = Duration::from_secs(10);
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

/// How fast contents reach the peer, by what it takes while some are on their way: the socket's buffers tell nothing of it.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    sent: u64,
    /// Since when is measured, and what the peer had taken by then.
    since: Option<(Instant, u64)>,
    /// What it had taken when that was looked at last and was another number, and when.
    taken: Option<(Instant, u64)>,
    /// What was sent since then, as it was and as it travelled.
    period: (u64, u64),
    rate: Option<u64>,
}

impl Pace {
    /// A frame was sent, of so many bytes, compressed to so many.
    pub(crate) fn sent(&mut self, bytes: usize, compressed: usize) {
        self.sent += bytes as u64;
        self.period = (self.period.0 + bytes as u64, self.period.1 + compressed as u64);
    }

    /// So many bytes are on their way now.
    pub(crate) fn look(&mut self, now: Instant, under_way: u64) {
        let arrived = self.sent.saturating_sub(under_way);
        let last = self.taken.map_or(now, |(at, _)| at);
        if self.taken.is_none_or(|(_, before)| before != arrived) {
            self.taken = Some((now, arrived));
        }
        let begun = self.since.filter(|_| now.saturating_duration_since(last) < IDLE);
        let Some((since, before)) = begun else { return self.begin(now, under_way) };
        let (elapsed, came) = (now.saturating_duration_since(since), arrived.saturating_sub(before));
        if under_way > 0 && (elapsed < PERIOD || came < BYTES_MIN) {
            return;
        }
        if came >= BYTES_MIN {
            let (sent, travelled) = self.period;
            let travelled = u128::from(came) * u128::from(travelled) / u128::from(sent.max(1));
            self.rate = u64::try_from(travelled * 1_000_000_000 / elapsed.as_nanos().max(1)).ok();
        }
        self.begin(now, under_way);
    }

    fn begin(&mut self, now: Instant, under_way: u64) {
        self.since = (under_way > 0).then_some((now, self.sent.saturating_sub(under_way)));
        self.period = (0, 0);
    }

    /// Whether the link was slow when something went over it lately.
    pub(crate) fn is_slow(&self) -> bool {
        self.rate.is_some_and(|rate| rate < SLOW)
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
    fn a_link_is_as_fast_as_it_was_lately() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        // So many bytes arrive in each of some periods, with a megabyte on its way all the time.
        let go = |pace: &mut Pace, now: &mut Instant, bytes: usize, compressed: usize| {
            for _ in 0..3 {
                pace.look(*now, 1 << 20);
                pace.sent(bytes, compressed);
                *now += PERIOD;
            }
            pace.look(*now, 1 << 20);
        };
        pace.sent(1 << 20, 1 << 20);
        go(&mut pace, &mut now, 100 << 20, 100 << 20);
        assert!(!pace.is_slow(), "400 MB/s");
        go(&mut pace, &mut now, 10 << 20, 10 << 20);
        assert!(pace.is_slow(), "40 MB/s");
        go(&mut pace, &mut now, 100 << 20, 10 << 20);
        assert!(pace.is_slow(), "400 MB/s of contents, but still 40 MB/s of what travels");
        now += Duration::from_secs(9);
        pace.look(now, 0);
        pace.sent(1_000, 1_000);
        pace.look(now, 1_000);
        pace.look(now + Duration::from_millis(40), 0);
        assert!(pace.is_slow(), "a thousand bytes tell nothing");
        go(&mut pace, &mut now, 100 << 20, 100 << 20);
        now += Duration::from_secs(60);
        pace.look(now, 100_000);
        assert!(!pace.is_slow(), "the last bytes are not credited before others come");
    }

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
