//! The `pleach` binary: reads its arguments, calls the library, says what failed.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pleach_agent::cli::{self, Init};
use pleach_agent::failure::Failure;
use pleach_agent::sync;

/// Keeps directory trees in step, both ways, as they change.
#[derive(Debug, Parser)]
#[command(name = "pleach", version, disable_help_subcommand = true)]
struct Args {
    /// The node's config file.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
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
    /// Writes a commented config and the host key.
    Init {
        /// The node's name; default: the hostname.
        #[arg(long)]
        name: Option<String>,
        /// A tree, as NAME=DIR; may be given more than once.
        #[arg(long = "tree", value_name = "NAME=DIR")]
        trees: Vec<String>,
        /// Where the SSH endpoint listens.
        #[arg(long, value_name = "ADDR")]
        listen: Option<String>,
    },
    /// Prints this node's public key; makes it where there is none.
    Key {
        /// Replaces it; the old one is kept beside it.
        #[arg(long)]
        new: bool,
    },
    /// Any other word.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// The contract's commands that are not built yet: refused by name.
const LATER: [&str; 23] = [
    "agent",
    "status",
    "wait",
    "log",
    "watch",
    "conflicts",
    "resolve",
    "versions",
    "restore",
    "rescan",
    "pause",
    "resume",
    "approve",
    "reject",
    "push",
    "forget",
    "import",
    "doctor",
    "bridge",
    "completions",
    "man",
    "problems",
    "join",
];

fn main() -> ExitCode {
    let args = Args::parse();
    let level = std::env::var("PLEACH_LOG").unwrap_or_else(|_| "error".to_owned());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(tracing_subscriber::EnvFilter::new(level))
        .init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Where standard error is closed there is nobody to tell.
            writeln!(std::io::stderr(), "{failure}").ok();
            ExitCode::from(failure.code)
        }
    }
}

fn run(args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Sync { dir_a, dir_b, once } => sync::run(&dir_a, &dir_b, once),
        Command::Init { name, trees, listen } => cli::init(&Init { file: args.config, name, trees, listen }),
        Command::Key { new } => cli::key(args.config.as_deref(), new),
        Command::Other(words) => {
            let word = words.first().map(|w| w.to_string_lossy().into_owned()).unwrap_or_default();
            if LATER.contains(&word.as_str()) {
                return Err(Failure::usage(word, "not in this version"));
            }
            Err(Failure::usage(word.escape_debug().to_string(), "there is no such command").help("see: pleach --help"))
        }
    }
}
