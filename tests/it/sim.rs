//! Seeds of the simulation, and those that once found something. PLEACH_SIM_SEEDS sets how many.

use std::sync::atomic::{AtomicU64, Ordering};

use pleach_tests::sim::run;

/// Seeds that found a fault, each of another kind.
const FOUND: [u64; 3] = [
    // A store that was lost gave names anew that the vault of its earlier life held.
    47, // A user's change after the last look counted as undone by the power failure.
    50, // The journal of a store that was lost.
    138,
];

#[test]
fn seeds_of_the_simulation_end_well() {
    let seeds = std::env::var("PLEACH_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let next = AtomicU64::new(1);
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let seeds = std::iter::from_fn(|| Some(next.fetch_add(1, Ordering::Relaxed))).take_while(|s| *s <= seeds);
            seeds.filter_map(|seed| run(seed, false).err()).collect::<Vec<_>>()
        };
        let threads: Vec<_> =
            (0..std::thread::available_parallelism().map_or(1, usize::from)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    let first = failures.first().map_or("", String::as_str);
    assert!(
        failures.is_empty(),
        "{} of {seeds} seeds fail; replay: cargo run --release -p pleach-tests --bin sim -- --seed N --loud\n{first}",
        failures.len()
    );
}

#[test]
fn a_seed_does_the_same_each_time() {
    for seed in FOUND.into_iter().chain(1..20) {
        let (one, two) = (run(seed, false).unwrap(), run(seed, false).unwrap());
        assert_eq!((one.steps, one.trace), (two.steps, two.trace), "seed {seed}");
    }
}
