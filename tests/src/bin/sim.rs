//! Runs seeds of the simulation: `sim [--seeds FROM..TO] [--loud] [--as-is]`, or one seed loudly:
//! `sim --seed N [--steps 3,7-9,40]`.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pleach_tests::sim::shrink::{self, Effort};
use pleach_tests::sim::{Failure, Outcome, Plan, World};

const USAGE: &str =
    "usage: sim [--seeds FROM..TO] [--first-only] [--as-is] | sim --seed N [--steps 3,7-9,40] [--quiet]";

/// One seed in so many is run twice.
const TWICE_EVERY: u64 = 50;

/// What the command line asks for.
struct Asked {
    from: u64,
    to: u64,
    plan: Plan,
    first_only: bool,
    /// Failures are shown as they are, not made small.
    as_is: bool,
}

fn read(mut args: impl Iterator<Item = String>) -> Option<Asked> {
    let mut asked = Asked { from: 1, to: 1_001, plan: Plan::default(), first_only: false, as_is: false };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--quiet" => asked.plan.loud = false,
            "--loud" => asked.plan.loud = true,
            "--first-only" => asked.first_only = true,
            "--as-is" => asked.as_is = true,
            "--seed" => {
                asked.from = args.next()?.parse().ok()?;
                asked.to = asked.from.checked_add(1)?;
                asked.plan.loud = true;
            }
            "--steps" => asked.plan.only = Some(shrink::read(&args.next()?)?),
            "--seeds" => {
                let value = args.next()?;
                let (from, to) = value.split_once("..")?;
                (asked.from, asked.to) = (from.parse().ok()?, to.parse().ok()?);
            }
            _ => return None,
        }
    }
    Some(asked)
}

/// Runs a plan; one in so many twice, for the same seed must do the same.
fn run(plan: &Plan) -> Result<Outcome, Box<Failure>> {
    let outcome = World::run(plan.clone())?;
    if plan.seed.is_multiple_of(TWICE_EVERY) && !plan.loud && World::run(plan.clone())?.trace != outcome.trace {
        let what = "the same seed did something else when it was run again".to_owned();
        return Err(Box::new(Failure { what, steps: BTreeSet::new(), log: Vec::new() }));
    }
    Ok(outcome)
}

fn main() -> ExitCode {
    let Some(asked) = read(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let began = Instant::now();
    let (next, steps, lost) = (AtomicU64::new(asked.from), AtomicU64::new(0), AtomicU64::new(0));
    let (waits, merges) = (AtomicU64::new(0), AtomicU64::new(0));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<_> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= asked.to {
                    return failures;
                }
                match run(&Plan { seed, ..asked.plan.clone() }) {
                    Ok(outcome) => {
                        waits.fetch_add(outcome.waits, Ordering::Relaxed);
                        merges.fetch_add(outcome.merges, Ordering::Relaxed);
                        lost.fetch_add(outcome.lost_with_power, Ordering::Relaxed);
                        steps.fetch_add(outcome.steps, Ordering::Relaxed);
                    }
                    Err(failure) => {
                        failures.push((seed, failure));
                        if asked.first_only {
                            next.store(asked.to, Ordering::Relaxed);
                        }
                    }
                }
            }
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().expect("panics of seeds are caught")).collect()
    });
    let took = began.elapsed().as_secs_f64();
    // The first is made small, unless it is the replay of one that was; the others by their first lines.
    for (seed, failure) in failures.iter().take(1) {
        let plan = Plan { seed: *seed, ..asked.plan.clone() };
        let effort = if plan.loud || asked.as_is { Effort { runs: 0, ..Effort::default() } } else { Effort::default() };
        let (small, failure) = shrink::shrink(&plan, failure.as_ref().clone(), effort);
        println!("seed {seed}: {}", failure.what);
        if !plan.loud && !asked.as_is {
            failure.log.iter().for_each(|line| println!("  {line}"));
        }
        println!("replay: {}", shrink::command(&small));
    }
    for (seed, failure) in failures.iter().skip(1).take(20) {
        println!("seed {seed}: {}", failure.what);
    }
    println!(
        "{} seeds, {} steps, {} merges amid faults, {} waits confirmed, {} contents lost with the power, {} failures, {took:.1} s",
        next.into_inner().min(asked.to) - asked.from,
        steps.into_inner(),
        merges.into_inner(),
        waits.into_inner(),
        lost.into_inner(),
        failures.len(),
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
