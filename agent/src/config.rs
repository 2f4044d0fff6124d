//! The node's TOML file: every key of the contract in one table, precise errors.
//!
//! A key that no version knows is an error with the nearest known one; a key, or a value, whose
//! function is not built yet is refused by name.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pleach_protocol::wire::First;
use pleach_store::rows::Direction;
use toml::de::DeTable;

use crate::bandwidth::BandwidthLimit;
use crate::compress::Compress;
use crate::hook::HookConfig;
use crate::push::{FallbackConfig, PushConfig};

mod hook;
mod reader;

use reader::Reader;

/// Whether a key's function is built.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Built {
    /// Any value.
    Yes,
    /// Only this one, its default.
    Only(&'static str),
    /// None.
    No,
}

/// Table, key, whether it is built. A later version deletes rows' exceptions here and nowhere else.
const KEYS: &[(&str, &str, Built)] = &[
    ("node", "name", Built::Yes),
    ("node", "listen", Built::Yes),
    ("node", "state", Built::Yes),
    ("node", "http", Built::No),
    ("node", "log", Built::Yes),
    ("tree", "name", Built::Yes),
    ("tree", "path", Built::Yes),
    ("tree", "direction", Built::Yes),
    ("tree", "first", Built::Yes),
    ("tree", "ignore", Built::Yes),
    ("tree", "settle", Built::Yes),
    ("tree", "open_files", Built::Yes),
    ("tree", "rescan", Built::Yes),
    ("tree", "history", Built::Yes),
    ("tree", "history_bytes", Built::No),
    ("tree", "keep_free", Built::No),
    ("tree", "deletions", Built::No),
    ("tree", "hold", Built::No),
    ("tree", "conflict", Built::Yes),
    ("tree", "special", Built::Only("skip")),
    ("tree", "numeric_ids", Built::No),
    ("tree", "links", Built::No),
    ("tree", "atomic", Built::Yes),
    ("peer", "name", Built::Yes),
    ("peer", "address", Built::Yes),
    ("peer", "key", Built::Yes),
    ("peer", "trees", Built::Yes),
    ("peer", "bwlimit", Built::Yes),
    ("peer", "compress", Built::Yes),
    ("peer", "fallback", Built::Yes),
    ("peer", "fallback_after", Built::Yes),
    ("peer", "password_file", Built::Yes),
    ("peer", "full_check", Built::Yes),
    ("peer", "mirror", Built::Yes),
    ("peer", "timeout", Built::Yes),
    ("peer", "rsync_options", Built::Yes),
    ("hook", "tree", Built::Yes),
    ("hook", "on", Built::Yes),
    ("hook", "paths", Built::Yes),
    ("hook", "command", Built::Yes),
    ("hook", "url", Built::Yes),
    ("hook", "debounce", Built::Yes),
    ("hook", "timeout", Built::Yes),
];
const TABLES: [&str; 4] = ["node", "tree", "peer", "hook"];
const NAME_BYTES_MAX: usize = 64;
/// What `fallback_after` is unless it is said.
const FALLBACK_AFTER: Duration = Duration::from_secs(15);

/// One error in a config, with its place.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong with which key.
    pub what: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.what),
            line => write!(f, "{}, line {line}: {}", self.file.display(), self.what),
        }
    }
}

/// A node's configuration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// The display name.
    pub name: String,
    /// Where the SSH endpoint listens.
    pub listen: Option<String>,
    /// The state directory.
    pub state: PathBuf,
    /// The log level.
    pub log: String,
    /// The trees.
    pub trees: Vec<TreeConfig>,
    /// The peers.
    pub peers: Vec<PeerConfig>,
    /// The hooks.
    pub hooks: Vec<HookConfig>,
}

/// When a file that stays open for writing is taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OpenFiles {
    /// Once it is closed.
    Never,
    /// After so much quiet.
    After(Duration),
}

impl TreeConfig {
    /// A tree of which nothing but name and path is said. Source of the values: CONTRACT.md.
    #[must_use]
    pub fn new(name: impl Into<String>, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            path: path.into(),
            ignore: Vec::new(),
            atomic: Vec::new(),
            rescan: Duration::from_secs(86_400),
            history: Duration::from_secs(7 * 86_400),
            settle: Duration::ZERO,
            open_files: OpenFiles::After(Duration::from_secs(10)),
            direction: Direction::Both,
            first: None,
            conflict_copies: false,
        }
    }
}

/// One `[[tree]]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TreeConfig {
    /// Its name on every node.
    pub name: String,
    /// Its root here.
    pub path: PathBuf,
    /// Ignore rules.
    pub ignore: Vec<String>,
    /// Directories that appear only when all of them is there, in the same syntax.
    pub atomic: Vec<String>,
    /// Time between full checks; zero: never.
    pub rescan: Duration,
    /// How long the vault keeps displaced versions.
    pub history: Duration,
    /// Extra quiet time before a changed file is taken.
    pub settle: Duration,
    /// When a file that stays open for writing is taken.
    pub open_files: OpenFiles,
    /// Which way changes go.
    pub direction: Direction,
    /// Whose version counts where the tree pairs for the first time; none: the younger one.
    pub first: Option<First>,
    /// Whether a conflict's loser also gets a visible copy.
    pub conflict_copies: bool,
}

/// One `[[peer]]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerConfig {
    /// Its local name.
    pub name: String,
    /// Addresses, tried in order.
    pub addresses: Vec<String>,
    /// Its public key, an OpenSSH line; empty for an rsync daemon.
    pub key: String,
    /// The trees it takes; none: all.
    pub trees: Option<Vec<String>>,
    /// How fast it is sent to.
    pub bandwidth: BandwidthLimit,
    /// Whether what it is sent is compressed.
    pub compress: Compress,
    /// What is said of a legacy rsync daemon; none where the peer is a node.
    pub push: Option<PushConfig>,
    /// Where it is pushed to while its agent is away.
    pub fallback: Option<FallbackConfig>,
}

/// Where the config lies unless the command line says otherwise. Source: CONTRACT.md.
#[must_use]
pub fn default_file() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/etc/pleach/pleach.toml");
    }
    user_dir("XDG_CONFIG_HOME", ".config").join("pleach/pleach.toml")
}

/// Where state lies unless the config says otherwise. Source: CONTRACT.md.
#[must_use]
pub fn default_state() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/pleach");
    }
    user_dir("XDG_STATE_HOME", ".local/state").join("pleach")
}

fn user_dir(variable: &str, beneath_home: &str) -> PathBuf {
    match std::env::var_os(variable).filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(beneath_home),
    }
}

/// The machine's name, as far as it can be a node's.
#[must_use]
pub fn hostname() -> String {
    let uname = rustix::system::uname();
    let raw = uname.nodename().to_string_lossy().into_owned();
    let name: String =
        raw.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(NAME_BYTES_MAX).collect();
    if name.is_empty() { "node".to_owned() } else { name }
}

/// Checks a name of a node, peer or tree.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(format!("'{name}' is no name: 1 to {NAME_BYTES_MAX} of the characters A-Z a-z 0-9 . _ -"))
}

/// Parses `500ms 10s 5m 24h 7d`.
///
/// # Errors
/// What is wrong with it.
pub fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor);
    let millis = number.parse::<u64>().ok().zip(factor).and_then(|(n, factor)| n.checked_mul(factor));
    millis.map(Duration::from_millis).ok_or_else(|| format!("'{text}' is no duration: say 500ms, 10s, 5m, 24h or 7d"))
}

/// Reads a config file.
///
/// # Errors
/// Every error that was found, in the order of the file.
pub fn load(file: &Path) -> Result<Config, Vec<ConfigError>> {
    let text = fs::read_to_string(file)
        .map_err(|error| vec![ConfigError { file: file.to_path_buf(), line: 0, what: error.to_string() }])?;
    parse(file, &text)
}

/// Parses a config.
///
/// # Errors
/// As [`load`].
pub fn parse(file: &Path, text: &str) -> Result<Config, Vec<ConfigError>> {
    let mut reader = Reader { file, text, errors: Vec::new() };
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let at = error.span().unwrap_or_default();
            reader.error(&at, error.message().to_owned());
            return Err(reader.errors);
        }
    };
    let config = reader.config(document.get_ref());
    reader.errors.sort_by_key(|e| e.line);
    if reader.errors.is_empty() { Ok(config) } else { Err(reader.errors) }
}

#[cfg(test)]
mod tests;
