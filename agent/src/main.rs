//! The `pleach` binary: reads its arguments, calls the library, says what failed.

use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use pleach_agent::cli::{self, Init};
use pleach_agent::commands::{self, Status, Watch};
use pleach_agent::control::{Keep, Request};
use pleach_agent::failure::Failure;
use pleach_agent::import::{self, Kind};
use pleach_agent::{agent, doctor, sync};

/// Less processor time than the system's, above all the one of musl (ARCHITECTURE.md, "Found by measuring").
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Prints the pleach config that does the job of another program's.
    Import {
        /// Whose config it is.
        #[arg(value_name = "PROGRAM", value_parser = PossibleValuesParser::new(Kind::NAMES))]
        kind: String,
        /// confxml.xml, lsyncd.conf.lua or rsyncd.conf.
        file: PathBuf,
    },
    /// Shows every inotify event beneath directories, by name, or counts them.
    Watch(Watch),
    /// Checks limits, permissions, keys, peers and the clock, and says how to mend what is wrong.
    Doctor {
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Prints a shell's completions.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Writes the man pages, one a command.
    Man {
        /// The directory that they go into; it is made where there is none.
        dir: PathBuf,
    },
    /// Runs the node in the foreground.
    Agent,
    /// Shows each tree and each peer at a glance.
    Status {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
        /// Again each second, until Ctrl-C.
        #[arg(long)]
        watch: bool,
        /// Exit status 1 unless all is in sync.
        #[arg(long, conflicts_with = "watch")]
        check: bool,
    },
    #[command(flatten)]
    Ask(Ask),
    /// Any other word.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// The commands that are one request to the running agent.
#[derive(Debug, Subcommand)]
enum Ask {
    /// Returns once all that had changed is everywhere.
    Wait {
        /// Only this tree.
        #[arg(long, value_name = "TREE")]
        tree: Option<String>,
        /// Give up after this time, with exit status 1; default: wait for ever.
        #[arg(long, value_name = "SECS", value_parser = commands::seconds)]
        timeout: Option<Duration>,
    },
    /// Prints the journal, one change a line: seq time tree path from op node size hash was.
    Log {
        /// Only this tree.
        #[arg(long, value_name = "TREE")]
        tree: Option<String>,
        /// Goes on with new changes as they come.
        #[arg(long)]
        follow: bool,
        /// Begins at this sequence number.
        #[arg(long, value_name = "SEQ")]
        since: Option<u64>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Lists the paths that could not be read, sent or applied.
    Problems {
        /// Only this tree.
        #[arg(long, value_name = "TREE")]
        tree: Option<String>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Lists the conflicts; the list is the same on every node.
    Conflicts {
        /// Only this tree.
        #[arg(long, value_name = "TREE")]
        tree: Option<String>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Settles the conflicts of a path, or of all beneath a directory, on every node.
    Resolve {
        /// The file or directory.
        path: PathBuf,
        /// What stays: what is in the tree, or what is in the vault.
        #[arg(long, value_name = "WHICH", value_parser = PossibleValuesParser::new(["current", "vaulted"]).map(keep))]
        keep: Keep,
        /// Only this version, as `pleach conflicts` names it.
        #[arg(long, value_name = "ID")]
        version: Option<String>,
    },
    /// Lists what the vault holds of a path, or of all beneath a directory.
    Versions {
        /// The file or directory.
        path: PathBuf,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Brings a file or a whole directory back; what it replaces goes to the vault.
    Restore {
        /// The file or directory.
        path: PathBuf,
        /// This version, as `pleach versions` names it; default: the newest.
        #[arg(long, value_name = "ID")]
        version: Option<String>,
        /// Into this directory, in place of where it was.
        #[arg(long, value_name = "DIR")]
        to: Option<PathBuf>,
        #[arg(long, value_name = "TIME", hide = true, allow_hyphen_values = true)]
        at: Option<String>,
    },
    /// Checks a tree against the disk in full, now.
    Rescan {
        /// Only this tree.
        #[arg(long, value_name = "TREE")]
        tree: Option<String>,
    },
    /// Stops exchanging changes, also over a restart.
    Pause(Target),
    /// Ends a pause.
    Resume(Target),
    /// Checks a legacy rsync daemon in full, now.
    Push {
        /// The daemon's name in the config.
        #[arg(value_name = "PEER")]
        name: String,
        /// Only says what it would do.
        #[arg(long)]
        dry_run: bool,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Ends a tree or a peer for good: of a tree its .pleach goes, too, with all versions in its vault; its conflicts are listed.
    Forget {
        /// This tree.
        #[arg(long, value_name = "TREE", required_unless_present = "peer", conflicts_with = "peer")]
        tree: Option<String>,
        /// This peer.
        #[arg(long, value_name = "PEER")]
        peer: Option<String>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Takes a root that was replaced as new: it is filled again, nothing is deleted. With --peer: a mirror's first
    /// check may delete.
    Approve(Target),
}

/// What a command is for; default: all.
#[derive(Debug, clap::Args)]
struct Target {
    /// Only this tree.
    #[arg(long, value_name = "TREE")]
    tree: Option<String>,
    /// Only this peer.
    #[arg(long, value_name = "PEER")]
    peer: Option<String>,
}

/// The contract's commands that are not built yet: refused by name.
const LATER: [&str; 3] = ["reject", "bridge", "join"];

fn main() -> ExitCode {
    let args = Args::parse();
    let level = std::env::var("PLEACH_LOG").unwrap_or_else(|_| match args.command {
        Command::Agent => commands::log_level(args.config.as_deref()).to_owned(),
        _ => "error".to_owned(),
    });
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
    let file = args.config.as_deref();
    match args.command {
        Command::Sync { dir_a, dir_b, once } => sync::run(&dir_a, &dir_b, once),
        Command::Init { name, trees, listen } => cli::init(&Init { file: args.config, name, trees, listen }),
        Command::Key { new } => cli::key(file, new),
        Command::Import { kind, file } => {
            let kind =
                Kind::named(&kind).ok_or_else(|| Failure::usage("import", format!("unknown program '{kind}'")))?;
            import::run(kind, &file)
        }
        Command::Watch(args) => commands::watch(&args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "pleach", &mut text);
            cli::print(&String::from_utf8_lossy(&text))
        }
        Command::Doctor { json } => doctor::run(file, json),
        Command::Man { dir } => man(&dir),
        Command::Agent => agent::run(file),
        Command::Status { json, watch, check } => commands::status(file, Status { json, watch, check }),
        Command::Other(words) => {
            let word = words.first().map(|w| w.to_string_lossy().into_owned()).unwrap_or_default();
            if LATER.contains(&word.as_str()) {
                return Err(Failure::usage(word, "not in this version"));
            }
            Err(Failure::usage(word.escape_debug().to_string(), "there is no such command").help("see: pleach --help"))
        }
        Command::Ask(ask) => {
            let json = ask.json();
            commands::run(file, &ask.request()?, json)
        }
    }
}

impl Ask {
    /// Whether the rows come as they are.
    fn json(&self) -> bool {
        match self {
            Self::Log { json, .. }
            | Self::Problems { json, .. }
            | Self::Conflicts { json, .. }
            | Self::Versions { json, .. }
            | Self::Forget { json, .. }
            | Self::Push { json, .. } => *json,
            _ => false,
        }
    }

    fn request(self) -> Result<Request, Failure> {
        Ok(match self {
            Self::Wait { tree, timeout } => {
                let timeout_ms = timeout.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
                Request::Wait { tree, timeout_ms }
            }
            Self::Log { tree, follow, since, .. } => Request::Log { tree, follow, since },
            Self::Problems { tree, .. } => Request::Problems { tree },
            Self::Conflicts { tree, .. } => Request::Conflicts { tree },
            Self::Resolve { path, keep, version } => {
                Request::Resolve { path: commands::absolute(&path)?, keep, version }
            }
            Self::Versions { path, .. } => Request::Versions { path: commands::absolute(&path)? },
            Self::Restore { at: Some(_), .. } => return Err(Failure::usage("restore --at", "not in this version")),
            Self::Restore { path, version, to, at: None } => {
                let to = to.as_deref().map(commands::absolute).transpose()?;
                Request::Restore { path: commands::absolute(&path)?, version, to }
            }
            Self::Rescan { tree } => Request::Rescan { tree },
            Self::Pause(Target { tree, peer }) => Request::Pause { tree, peer },
            Self::Resume(Target { tree, peer }) => Request::Resume { tree, peer },
            Self::Push { name, dry_run, .. } => Request::Push { peer: name, dry_run },
            Self::Forget { tree, peer, .. } => Request::Forget { tree, peer },
            Self::Approve(Target { tree, peer }) => Request::Approve { tree, peer },
        })
    }
}

/// Writes the man pages.
fn man(dir: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::done(format!("man: {}", dir.display()), error.to_string());
    std::fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(Args::command(), dir).map_err(failed)
}

/// One of the two words that the parser lets through.
fn keep(word: String) -> Keep {
    if word == "vaulted" { Keep::Vaulted } else { Keep::Current }
}
