//! Makes a failing run small: leaves steps out as long as it fails in the same way.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::{Failure, Plan, World};

/// How long to try, in runs and in time.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Runs at most.
    pub runs: u32,
    /// Time at most.
    pub time: Duration,
}

impl Default for Effort {
    fn default() -> Self {
        Self { runs: 3_000, time: Duration::from_secs(20) }
    }
}

/// The smallest plan found that fails as the given one did, and how it fails.
#[must_use]
pub fn shrink(plan: &Plan, failure: Failure, effort: Effort) -> (Plan, Failure) {
    let kind = kind_of(&failure.what);
    let began = Instant::now();
    let mut runs = 0;
    let mut best = failure;
    let mut fails = |steps: &BTreeSet<u32>| {
        runs += 1;
        if runs > effort.runs || began.elapsed() > effort.time {
            return None;
        }
        let plan = Plan { only: Some(steps.clone()), loud: false, ..plan.clone() };
        Some(World::run(plan).err().filter(|failure| kind_of(&failure.what) == kind))
    };
    // Delta debugging: pieces of half the steps, then of a quarter, down to single ones. What a piece
    // needed may be gone once a later one is left out, so that single steps are tried until none goes.
    let mut piece = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut shrank = false;
        let mut at = 0;
        while at < best.steps.len() {
            let left: BTreeSet<u32> =
                best.steps.iter().enumerate().filter(|(n, _)| *n < at || *n >= at + piece).map(|(_, s)| *s).collect();
            let Some(outcome) = fails(&left) else { return (planned(plan, &best), best) };
            if let Some(smaller) = outcome {
                best = *smaller;
                shrank = true;
            } else {
                at += piece;
            }
        }
        if piece > 1 {
            piece = piece.div_ceil(2);
        } else if !shrank {
            return (planned(plan, &best), best);
        }
    }
}

fn planned(plan: &Plan, failure: &Failure) -> Plan {
    Plan { only: Some(failure.steps.clone()), ..plan.clone() }
}

/// What kind of failure a message tells of: its words up to the first particulars, without numbers.
#[must_use]
pub fn kind_of(what: &str) -> String {
    let head = what.split([':', '\'', '"', '{', '[', '(']).next().unwrap_or_default();
    head.chars().filter(|c| !c.is_ascii_digit()).collect::<String>().trim().to_owned()
}

/// The command that runs a plan again, and prints what it does.
#[must_use]
pub fn command(plan: &Plan) -> String {
    let steps = plan.only.as_ref().map_or(String::new(), |steps| format!(" --steps {}", written(steps)));
    format!("cargo run --release -p pleach-tests --bin sim -- --seed {}{steps}", plan.seed)
}

/// Steps as a command line takes them: `3,7-9,40`.
#[must_use]
pub fn written(steps: &BTreeSet<u32>) -> String {
    let mut text = String::new();
    let mut left = steps.iter().copied().peekable();
    while let Some(first) = left.next() {
        let mut last = first;
        while left.peek().is_some_and(|next| *next == last + 1) {
            last = left.next().unwrap_or(last);
        }
        let comma = if text.is_empty() { "" } else { "," };
        // Writing to a string cannot fail.
        let _ = if first == last { write!(text, "{comma}{first}") } else { write!(text, "{comma}{first}-{last}") };
    }
    text
}

/// Reads what [`written`] wrote; none where it cannot be read.
#[must_use]
pub fn read(text: &str) -> Option<BTreeSet<u32>> {
    let mut steps = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // No seed has more steps than this.
        if last > 1_000_000 {
            return None;
        }
        steps.extend(first..=last);
    }
    Some(steps)
}

/// Runs a seed; where it fails, makes the run small, and says all that is to be said of it.
///
/// # Errors
/// What went wrong, how to run it again, and what is done then.
pub fn run_and_shrink(plan: &Plan, effort: Effort) -> Result<super::Outcome, String> {
    World::run(plan.clone()).map_err(|failure| {
        let (small, failure) = shrink(plan, *failure, effort);
        let mut text = format!("seed {}: {}\n  replay: {}\n", plan.seed, failure.what, command(&small));
        for line in &failure.log {
            let _ = writeln!(text, "  {line}");
        }
        text
    })
}
