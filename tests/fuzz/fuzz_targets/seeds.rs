//! Writes the seeds of every target into `corpus/TARGET/` beneath the working directory.

// Holds what the instrumentation of the other crates calls.
use libfuzzer_sys as _;

use std::fs;
use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    for (target, _) in pleach_tests::fuzz::TARGETS {
        let dir = Path::new("corpus").join(target);
        fs::create_dir_all(&dir)?;
        for (number, seed) in pleach_tests::fuzz::seeds::seeds(target).iter().enumerate() {
            fs::write(dir.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
