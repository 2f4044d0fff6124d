//! Points in time, as file systems store them. Nothing here reads a clock.

use serde::{Deserialize, Serialize};

/// Seconds and nanoseconds since the epoch. Source: struct timespec, `nanos` below 1e9.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

impl Time {
    /// Builds one.
    #[must_use]
    pub const fn new(secs: i64, nanos: u32) -> Self {
        Self { secs, nanos }
    }

    /// Nanoseconds since the epoch, cut to what fits: what ranks are made of.
    #[must_use]
    pub const fn nanos_since_epoch(self) -> i64 {
        self.secs.saturating_mul(1_000_000_000).saturating_add(self.nanos as i64)
    }

    /// The reverse of [`Time::nanos_since_epoch`].
    #[must_use]
    pub const fn from_nanos(nanos: i64) -> Self {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the remainder is below 1e9")]
        let rest = nanos.rem_euclid(1_000_000_000) as u32;
        Self { secs: nanos.div_euclid(1_000_000_000), nanos: rest }
    }
}
