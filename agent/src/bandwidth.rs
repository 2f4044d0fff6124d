//! How fast a peer may be sent to: a rate, or rates by the time of day.

use std::time::{Duration, Instant};

/// What may be sent at once after a pause, in time at the rate: less would keep a fast line waiting for
/// timers.
const BURST: Duration = Duration::from_millis(50);

/// A peer's `bwlimit`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct BandwidthLimit {
    /// Minutes of the day, ascending, each with the bytes a second from then on; none: no limit.
    steps: Vec<(u32, Option<u64>)>,
}

impl BandwidthLimit {
    /// Reads `20MB/s`, `off`, or `08:00 5MB/s, 20:00 off`.
    ///
    /// # Errors
    /// What is wrong, and what to say instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("'{what}' is no limit: say 20MB/s, or with times: 08:00 5MB/s, 20:00 off");
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let mut steps = Vec::new();
        for part in &parts {
            let (at, limit) = match part.split_once(' ') {
                Some((at, limit)) => (minute(at).ok_or_else(|| wrong(part))?, limit.trim()),
                None if parts.len() == 1 => (0, *part),
                None => return Err(wrong(part)),
            };
            let limit = if limit == "off" { None } else { Some(rate(limit).ok_or_else(|| wrong(part))?) };
            steps.push((at, limit));
        }
        steps.sort_unstable();
        match steps.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(_) => Err(format!("'{text}' says one time twice")),
            None => Ok(Self { steps }),
        }
    }

    /// Whether there is no limit at any time.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.steps.is_empty()
    }

    /// Bytes a second at a minute of the day; none without a limit.
    #[must_use]
    pub fn at(&self, minute: u32) -> Option<u64> {
        // Before the first time of a day, what began the evening before holds.
        let begun = self.steps.iter().rev().find(|(at, _)| *at <= minute);
        begun.or_else(|| self.steps.last()).and_then(|(_, limit)| *limit)
    }
}

/// `08:00` as minutes.
fn minute(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':').filter(|(h, m)| (1..=2).contains(&h.len()) && m.len() == 2)?;
    let digits = |part: &str| part.parse::<u32>().ok().filter(|_| part.bytes().all(|b| b.is_ascii_digit()));
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

/// `20MB/s` as bytes a second.
fn rate(text: &str) -> Option<u64> {
    let size = text.strip_suffix("/s")?;
    let digits = size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len());
    let (number, unit) = size.split_at(digits);
    let factor = match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|rate| *rate > 0)
}

/// Says when the next frame may be sent.
#[derive(Debug, Default)]
pub struct Pacer {
    /// All that was sent has passed at the rate by then.
    free: Option<Instant>,
}

impl Pacer {
    /// Notes that so many bytes are sent at this rate.
    pub fn sent(&mut self, now: Instant, bytes: usize, rate: u64) {
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(rate.max(1));
        let took = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free = self.free.filter(|free| *free > now).unwrap_or(now).checked_add(took);
    }

    /// When the next frame may be sent; none: now.
    #[must_use]
    pub fn wait_until(&self, now: Instant) -> Option<Instant> {
        self.free.and_then(|free| free.checked_sub(BURST)).filter(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_from_their_time_on() {
        let limit = BandwidthLimit::parse("08:00 5MB/s, 20:00 off").unwrap();
        let at = |hours: u32, minutes: u32| limit.at(hours * 60 + minutes);
        assert_eq!([at(7, 59), at(8, 0), at(19, 59), at(20, 0)], [None, Some(5_000_000), Some(5_000_000), None]);
        let limit = BandwidthLimit::parse("20:00 1MiB/s, 8:30 300kB/s").unwrap();
        assert_eq!([limit.at(0), limit.at(8 * 60 + 30), limit.at(1439)], [Some(1 << 20), Some(300_000), Some(1 << 20)]);
        assert_eq!(BandwidthLimit::parse("20MB/s").unwrap().at(0), Some(20_000_000));
        assert_eq!(BandwidthLimit::parse("off").unwrap().at(700), None);
        assert_eq!(BandwidthLimit::default().at(0), None);
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for text in [
            "",
            "20MB",
            "0MB/s",
            "fast",
            "20 MB/s",
            "24:00 1MB/s",
            "8:5 off",
            "08:00 1MB/s, off",
            "1:00 off,01:00 1B/s",
        ] {
            assert!(BandwidthLimit::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_pace_is_the_rate() {
        let (mut pacer, began) = (Pacer::default(), Instant::now());
        let mut now = began;
        for _ in 0..100 {
            pacer.sent(now, 10_000, 1_000_000);
            now = pacer.wait_until(now).unwrap_or(now);
        }
        // A megabyte at a megabyte a second, but for the burst.
        assert_eq!(now.duration_since(began), Duration::from_millis(950));
    }
}
