//! The `pleach` binary: reads its arguments, calls the library, says what failed.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pleach_agent::failure::Failure;
use pleach_agent::sync;

/// Keeps directory trees in step, both ways, as they change.
#[derive(Debug, Parser)]
#[command(name = "pleach", version, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keeps two directories in step, until Ctrl-C.
    Sync {
        /// One directory.
        dir_a: PathBuf,
        /// The other.
        dir_b: PathBuf,
        /// Converge, then exit.
        #[arg(long)]
        once: bool,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let level = std::env::var("PLEACH_LOG").unwrap_or_else(|_| "error".to_owned());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .init();
    match run(args.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where standard error is closed there is nobody to tell.
            writeln!(std::io::stderr(), "{failure}").ok();
            ExitCode::from(failure.code)
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Sync { dir_a, dir_b, once } => sync::run(&dir_a, &dir_b, once),
    }
}
