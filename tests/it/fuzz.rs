//! Some thousand mutated inputs a target; PLEACH_FUZZ_SECONDS runs each target for so long instead,
//! PLEACH_FUZZ_SEED begins elsewhere. A failure names the input.

use std::any::Any;
use std::panic::catch_unwind;
use std::time::{Duration, Instant};

use pleach_tests::fuzz::mutate::{Random, mutated};
use pleach_tests::fuzz::seeds::seeds;
use pleach_tests::fuzz::{TARGETS, Target};

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
}

fn run((name, target): Target, count: u64) {
    let corpus = seeds(name);
    let (seconds, seed) = (number("PLEACH_FUZZ_SECONDS"), number("PLEACH_FUZZ_SEED").unwrap_or(1));
    let (begun, mut random) = (Instant::now(), Random::new(seed));
    let (mut done, mut slowest) = (0u64, Duration::ZERO);
    let goes_on = |done: u64| match seconds {
        Some(seconds) => begun.elapsed() < Duration::from_secs(seconds),
        None => done < count,
    };
    while goes_on(done) {
        // The corpus as it is comes first.
        let input = match usize::try_from(done).ok().and_then(|at| corpus.get(at)) {
            Some(input) => input.clone(),
            None => mutated(&corpus, &mut random),
        };
        let started = Instant::now();
        if let Err(panic) = catch_unwind(|| target(&input)) {
            let hex: String = input.iter().map(|b| format!("{b:02x}")).collect();
            panic!("{name}, input {done} of seed {seed}: {}\n{hex}", said(&*panic));
        }
        slowest = slowest.max(started.elapsed());
        done += 1;
    }
    let rate = u128::from(done) * 1000 / begun.elapsed().as_millis().max(1);
    println!("{name}: {done} inputs, {rate} a second, the slowest took {slowest:?}");
}

fn of(name: &str) -> Target {
    *TARGETS.iter().find(|(target, _)| *target == name).unwrap()
}

#[test]
fn the_wire_decoders_take_anything() {
    run(of("wire"), 20_000);
}

#[test]
fn a_session_takes_anything() {
    run(of("session"), 20_000);
}

#[test]
fn the_store_decoders_take_anything() {
    run(of("store"), 20_000);
}

#[test]
fn the_config_parser_takes_anything() {
    run(of("config"), 4_000);
}

#[test]
fn the_ignore_rules_take_anything() {
    run(of("ignore"), 1_000);
}

#[test]
fn the_control_socket_takes_anything() {
    run(of("control"), 20_000);
}
