//! Runs seeds of the simulation: `sim [--seed N] [--seeds FROM..TO] [--loud]`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use pleach_tests::sim;

fn main() -> ExitCode {
    let (mut from, mut to, mut loud) = (1, 1_001, false);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let value = match arg.as_str() {
            "--loud" => {
                loud = true;
                continue;
            }
            _ => args.next().unwrap_or_default(),
        };
        let parsed = match arg.as_str() {
            "--seed" => value.parse().ok().map(|seed: u64| (seed, seed + 1)),
            "--seeds" => value.split_once("..").and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))),
            _ => None,
        };
        let Some(range) = parsed else {
            eprintln!("usage: sim [--seed N] [--seeds FROM..TO] [--loud]");
            return ExitCode::from(2);
        };
        (from, to) = range;
    }
    let began = Instant::now();
    let (next, steps, lost) = (AtomicU64::new(from), AtomicU64::new(0), AtomicU64::new(0));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= to {
                    return failures;
                }
                match sim::run(seed, loud) {
                    Ok(outcome) => {
                        lost.fetch_add(outcome.lost_with_power, Ordering::Relaxed);
                        steps.fetch_add(outcome.steps, Ordering::Relaxed)
                    }
                    Err(what) => {
                        failures.push(what);
                        0
                    }
                };
            }
        };
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap_or_else(|_| vec!["a seed panicked".to_owned()])).collect()
    });
    // One in full, the others by their first lines.
    for failure in failures.iter().take(1) {
        println!("{failure}");
    }
    for failure in failures.iter().skip(1).take(20) {
        println!("{}", failure.lines().next().unwrap_or_default());
    }
    println!(
        "{} seeds, {} steps, {} contents lost with the power, {} failures, {:.1} s",
        to - from,
        steps.into_inner(),
        lost.into_inner(),
        failures.len(),
        began.elapsed().as_secs_f64()
    );
    if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
