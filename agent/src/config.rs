//! The node's TOML file: every key of the contract in one table, precise errors.
//!
//! A key that no version knows is an error with the nearest known one; a key, or a value, whose
//! function is not built yet is refused by name.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use pleach_protocol::wire::First;
use pleach_store::rows::Direction;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::bandwidth::BandwidthLimit;
use crate::hook::HookConfig;
use crate::keys;
use crate::push::{FallbackConfig, PushConfig, Schedule, Target, check_options};

mod hook;

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
    ("tree", "atomic", Built::No),
    ("peer", "name", Built::Yes),
    ("peer", "address", Built::Yes),
    ("peer", "key", Built::Yes),
    ("peer", "trees", Built::Yes),
    ("peer", "bwlimit", Built::Yes),
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

struct Reader<'a> {
    file: &'a Path,
    text: &'a str,
    errors: Vec<ConfigError>,
}

type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    fn error(&mut self, at: &Range<usize>, what: String) {
        let before = self.text.get(..at.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        self.errors.push(ConfigError { file: self.file.to_path_buf(), line, what });
    }

    fn config(&mut self, document: &DeTable<'_>) -> Config {
        let (mut node, mut trees, mut peers, mut hooks) = (None, Vec::new(), Vec::new(), Vec::new());
        for (key, value) in document {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("node", DeValue::Table(table)) => node = Some(table),
                ("tree", DeValue::Array(tables)) => trees = self.tables("tree", tables.iter()),
                ("peer", DeValue::Array(tables)) => peers = self.tables("peer", tables.iter()),
                ("hook", DeValue::Array(tables)) => hooks = self.tables("hook", tables.iter()),
                ("node", _) => self.error(&key.span(), "'node' must be a table: write [node]".into()),
                ("tree" | "peer" | "hook", _) => {
                    let name = key.get_ref();
                    self.error(&key.span(), format!("'{name}' must be a list of tables: write [[{name}]]"));
                }
                (other, _) => {
                    let near = nearest(other, &TABLES);
                    self.error(&key.span(), format!("unknown table or key '{other}'{near}"));
                }
            }
        }
        let mut config = Config {
            name: hostname(),
            listen: None,
            state: default_state(),
            log: "info".to_owned(),
            trees: Vec::new(),
            peers: Vec::new(),
            hooks: Vec::new(),
        };
        if let Some(node) = node {
            self.node(node, &mut config);
        }
        for (at, table) in trees {
            self.tree(&at, table, &mut config);
        }
        for (at, table) in peers {
            self.peer(&at, table, &mut config);
        }
        for (at, table) in hooks {
            self.hook(&at, table, &mut config);
        }
        config
    }

    fn tables<'t, 'i: 't>(
        &mut self,
        name: &str,
        values: impl Iterator<Item = &'t Value<'i>>,
    ) -> Vec<(Range<usize>, &'t DeTable<'i>)> {
        let mut tables = Vec::new();
        for value in values {
            match value.get_ref() {
                DeValue::Table(table) => tables.push((value.span(), table)),
                _ => self.error(&value.span(), format!("'{name}' must be a list of tables: write [[{name}]]")),
            }
        }
        tables
    }

    /// The known keys of a table; what is unknown or not built is an error.
    fn keys<'t, 'i>(&mut self, table: &str, found: &'t DeTable<'i>) -> BTreeMap<String, &'t Value<'i>> {
        let shown = if table == "node" { "[node]".to_owned() } else { format!("[[{table}]]") };
        let mut keys = BTreeMap::new();
        for (key, value) in found {
            let name = key.get_ref().as_ref();
            let row = KEYS.iter().find(|(t, k, _)| *t == table && *k == name);
            match row.map(|(_, _, built)| *built) {
                Some(Built::Yes) => {
                    keys.insert(name.to_owned(), value);
                }
                Some(Built::Only(only)) => {
                    if !matches!(value.get_ref(), DeValue::String(text) if text == only) {
                        let what = format!("{name} in {shown}: only \"{only}\" is in this version of pleach");
                        self.error(&key.span(), what);
                    }
                }
                Some(Built::No) => {
                    self.error(&key.span(), format!("{name} in {shown} is not in this version of pleach"));
                }
                None => {
                    let known: Vec<&str> = KEYS.iter().filter(|(t, ..)| *t == table).map(|(_, k, _)| *k).collect();
                    let near = nearest(name, &known);
                    self.error(&key.span(), format!("unknown key '{name}' in {shown}{near}"));
                }
            }
        }
        keys
    }

    fn text(&mut self, key: &str, value: &Value<'_>) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            _ => {
                self.error(&value.span(), format!("{key} must be a text in quotes"));
                None
            }
        }
    }

    fn texts(&mut self, key: &str, value: &Value<'_>) -> Vec<String> {
        match value.get_ref() {
            DeValue::Array(values) => values.iter().filter_map(|v| self.text(key, v)).collect(),
            _ => {
                self.error(&value.span(), format!("{key} must be a list of texts: [\"...\"]"));
                Vec::new()
            }
        }
    }

    fn checked<T>(&mut self, key: &str, value: &Value<'_>, check: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(key, value)?;
        match check(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.error(&value.span(), format!("{key}: {why}"));
                None
            }
        }
    }

    fn node(&mut self, table: &DeTable<'_>, config: &mut Config) {
        for (key, value) in self.keys("node", table) {
            let named = |text: &str| check_name(text).map(|()| text.to_owned());
            match key.as_str() {
                "name" => config.name = self.checked("name", value, named).unwrap_or_default(),
                "listen" => config.listen = self.checked("listen", value, socket),
                "state" => config.state = self.checked("state", value, absolute).unwrap_or_default(),
                _ => {
                    let level = |text: &str| match text {
                        "error" | "warn" | "info" | "debug" | "trace" => Ok(text.to_owned()),
                        _ => Err(format!("'{text}' is none of error, warn, info, debug, trace")),
                    };
                    config.log = self.checked("log", value, level).unwrap_or_default();
                }
            }
        }
    }

    fn tree(&mut self, at: &Range<usize>, table: &DeTable<'_>, config: &mut Config) {
        let keys = self.keys("tree", table);
        let mut tree = TreeConfig::new("", "");
        for needed in ["name", "path"] {
            if !keys.contains_key(needed) {
                self.error(at, format!("{needed} is missing in [[tree]]"));
            }
        }
        for (key, value) in keys {
            match key.as_str() {
                "name" => {
                    let known: Vec<String> = config.trees.iter().map(|t| t.name.clone()).collect();
                    let check = |text: &str| unique("tree", text, &known);
                    tree.name = self.checked("name", value, check).unwrap_or_default();
                }
                "path" => {
                    let others: Vec<TreeConfig> = config.trees.clone();
                    let check = |text: &str| apart(absolute(text)?, &others);
                    tree.path = self.checked("path", value, check).unwrap_or_default();
                }
                "ignore" => {
                    tree.ignore = self.texts("ignore", value);
                    if let Err(error) = pleach_store::ignore::IgnoreRules::new(&tree.ignore) {
                        self.error(&value.span(), format!("ignore: {error}"));
                    }
                }
                "rescan" => tree.rescan = self.checked("rescan", value, duration).unwrap_or_default(),
                "settle" => tree.settle = self.checked("settle", value, duration).unwrap_or_default(),
                "open_files" => {
                    let default = tree.open_files;
                    tree.open_files = self.checked("open_files", value, open_files).unwrap_or(default);
                }
                "first" => {
                    let first = |text: &str| match text {
                        "merge" => Ok(None),
                        "send" => Ok(Some(First::Send)),
                        "receive" => Ok(Some(First::Receive)),
                        _ => Err(format!("'{text}' is none of merge, send, receive")),
                    };
                    tree.first = self.checked("first", value, first).unwrap_or_default();
                }
                "direction" => {
                    let direction = |text: &str| match text {
                        "both" => Ok(Direction::Both),
                        "send" => Ok(Direction::Send),
                        "receive" => Ok(Direction::Receive),
                        _ => Err(format!("'{text}' is none of both, send, receive")),
                    };
                    tree.direction = self.checked("direction", value, direction).unwrap_or_default();
                }
                "conflict" => {
                    let copies = |text: &str| match text {
                        "vault" => Ok(false),
                        "copy" => Ok(true),
                        _ => Err(format!("'{text}' is none of vault, copy")),
                    };
                    tree.conflict_copies = self.checked("conflict", value, copies).unwrap_or_default();
                }
                _ => tree.history = self.checked("history", value, duration).unwrap_or_default(),
            }
        }
        config.trees.push(tree);
    }

    fn peer(&mut self, at: &Range<usize>, table: &DeTable<'_>, config: &mut Config) {
        let keys = self.keys("peer", table);
        let mut peer = PeerConfig {
            name: String::new(),
            addresses: Vec::new(),
            key: String::new(),
            trees: None,
            bandwidth: BandwidthLimit::default(),
            push: None,
            fallback: None,
        };
        if !keys.contains_key("name") {
            self.error(at, "name is missing in [[peer]]".to_owned());
        }
        let legacy = keys.get("address").is_some_and(|value| is_rsync(value));
        let falls_back = !legacy && keys.contains_key("fallback");
        if !legacy && !keys.contains_key("key") {
            self.error(at, "key is missing in [[peer]]".to_owned());
        }
        for (key, value) in &keys {
            match key.as_str() {
                "name" => {
                    let known: Vec<String> = config.peers.iter().map(|p| p.name.clone()).collect();
                    let check = |text: &str| unique("peer", text, &known);
                    peer.name = self.checked("name", value, check).unwrap_or_default();
                }
                "bwlimit" => {
                    peer.bandwidth = self.checked("bwlimit", value, BandwidthLimit::parse).unwrap_or_default();
                }
                "address" if !legacy => peer.addresses = self.one_or_more("address", value, address),
                "key" if legacy => {
                    self.error(
                        &value.span(),
                        "key: an rsync daemon has none; its password goes into password_file".into(),
                    );
                }
                "key" => {
                    let known: Vec<(String, String)> = config
                        .peers
                        .iter()
                        .filter(|p| p.push.is_none())
                        .map(|p| (p.name.clone(), p.key.clone()))
                        .collect();
                    let check = |text: &str| own_key(text, &known);
                    match value.get_ref() {
                        DeValue::Array(_) => {
                            self.error(&value.span(), "key: several keys are not in this version of pleach".into());
                        }
                        _ => peer.key = self.checked("key", value, check).unwrap_or_default(),
                    }
                }
                "trees" => {
                    let names = self.texts("trees", value);
                    for name in &names {
                        if !config.trees.iter().any(|t| t.name == *name) {
                            self.error(&value.span(), format!("trees: there is no [[tree]] named '{name}'"));
                        }
                    }
                    peer.trees = Some(names);
                }
                "fallback" | "fallback_after" if legacy => {
                    self.error(&value.span(), format!("{key} is only for a peer with an agent"));
                }
                "fallback" => {}
                "fallback_after" | "password_file" | "timeout" | "rsync_options" if falls_back => {}
                "full_check" | "mirror" if falls_back => {
                    self.error(&value.span(), format!("{key} of a fallback is not in this version of pleach"));
                }
                "fallback_after" => self.error(&value.span(), "fallback_after is only for a fallback".into()),
                other if !legacy => {
                    let other = other.to_owned();
                    self.error(&value.span(), format!("{other} is only for rsync:// addresses"));
                }
                _ => {}
            }
        }
        if legacy {
            peer.push = self.push("address", &keys);
        } else if falls_back {
            let after = keys.get("fallback_after").and_then(|value| self.checked("fallback_after", value, duration));
            let after = after.unwrap_or(FALLBACK_AFTER);
            peer.fallback = self.push("fallback", &keys).map(|push| FallbackConfig { push, after });
        }
        let taken = peer.trees.as_ref().map_or(config.trees.len(), Vec::len);
        if taken != 1 && (legacy || falls_back) {
            let span = keys.get("trees").map_or_else(|| at.clone(), |value| value.span());
            self.error(&span, format!("trees: an rsync daemon takes exactly one tree, not {taken}"));
        }
        config.peers.push(peer);
    }

    /// What is said of a legacy rsync daemon.
    fn push(&mut self, named: &str, keys: &BTreeMap<String, &Value<'_>>) -> Option<PushConfig> {
        let address = keys.get(named)?;
        if matches!(address.get_ref(), DeValue::Array(_)) {
            self.error(&address.span(), "address: an rsync daemon has one; make a [[peer]] for each".into());
            return None;
        }
        let mut push = PushConfig {
            target: self.checked(named, address, Target::parse)?,
            password_file: None,
            full_check: None,
            mirror: false,
            timeout: Duration::from_secs(60),
            options: Vec::new(),
        };
        for (key, value) in keys {
            match key.as_str() {
                "password_file" => push.password_file = self.checked("password_file", value, absolute),
                "full_check" => push.full_check = self.checked("full_check", value, Schedule::parse),
                "mirror" => match value.get_ref() {
                    DeValue::Boolean(mirror) => push.mirror = *mirror,
                    _ => self.error(&value.span(), "mirror must be true or false".into()),
                },
                "timeout" => {
                    let seconds = |text: &str| match duration(text)? {
                        time if time < Duration::from_secs(1) => Err(format!("'{text}' is less than a second")),
                        time => Ok(time),
                    };
                    push.timeout = self.checked("timeout", value, seconds).unwrap_or(push.timeout);
                }
                "rsync_options" => {
                    let options = self.texts("rsync_options", value);
                    match check_options(&options) {
                        Ok(options) => push.options = options,
                        Err(why) => self.error(&value.span(), format!("rsync_options: {why}")),
                    }
                }
                _ => {}
            }
        }
        Some(push)
    }

    fn one_or_more(
        &mut self,
        key: &str,
        value: &Value<'_>,
        check: impl Fn(&str) -> Result<String, String>,
    ) -> Vec<String> {
        match value.get_ref() {
            DeValue::Array(values) => values.iter().filter_map(|v| self.checked(key, v, &check)).collect(),
            _ => self.checked(key, value, check).into_iter().collect(),
        }
    }
}

/// Whether an address, or one of several, is a legacy rsync daemon's.
fn is_rsync(value: &Value<'_>) -> bool {
    let legacy = |value: &Value<'_>| matches!(value.get_ref(), DeValue::String(text) if text.starts_with("rsync://"));
    match value.get_ref() {
        DeValue::Array(values) => values.iter().any(legacy),
        _ => legacy(value),
    }
}

/// Checks a peer's key: one node has one row.
fn own_key(text: &str, known: &[(String, String)]) -> Result<String, String> {
    keys::check_public(text)?;
    let same = |other: &str| keys::public_node(other).is_some() && keys::public_node(other) == keys::public_node(text);
    match known.iter().find(|(_, key)| same(key)) {
        Some((name, _)) => Err(format!("it is the key of the peer '{name}' already")),
        None => Ok(text.to_owned()),
    }
}

fn unique(what: &str, name: &str, known: &[String]) -> Result<String, String> {
    check_name(name)?;
    if known.iter().any(|k| k == name) {
        return Err(format!("there are two {what}s named '{name}'"));
    }
    Ok(name.to_owned())
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(format!("'{text}' is not an absolute path"));
    }
    if path.components().any(|c| c == Component::ParentDir) {
        return Err(format!("'{text}' must not contain '..'"));
    }
    Ok(path.components().collect())
}

fn open_files(text: &str) -> Result<OpenFiles, String> {
    match text {
        "never" => Ok(OpenFiles::Never),
        _ => duration(text).map(OpenFiles::After).map_err(|why| format!("{why}, or never")),
    }
}

/// Trees do not lie within one another.
fn apart(path: PathBuf, others: &[TreeConfig]) -> Result<PathBuf, String> {
    let meets =
        |t: &&TreeConfig| !t.path.as_os_str().is_empty() && (path.starts_with(&t.path) || t.path.starts_with(&path));
    match others.iter().find(meets) {
        Some(other) => Err(format!("it lies within, or holds, the tree '{}' at {}", other.name, other.path.display())),
        None => Ok(path),
    }
}

fn socket(text: &str) -> Result<String, String> {
    let wrong = || format!("'{text}' is no address to listen on: say 0.0.0.0:8730 or [::]:8730");
    text.parse::<std::net::SocketAddr>().map(|_| text.to_owned()).map_err(|_| wrong())
}

fn address(text: &str) -> Result<String, String> {
    let Some(rest) = text.strip_prefix("pleach://") else {
        return Err(match text.split("://").next() {
            Some("ssh") => "ssh:// addresses are not in this version of pleach".to_owned(),
            _ => format!("'{text}' is no address: say pleach://HOST[:8730], IPv6 in brackets"),
        });
    };
    let wrong = || Err(format!("'{text}' is no address: say pleach://HOST[:8730], IPv6 in brackets"));
    let port = match rest.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => port,
            _ => return wrong(),
        },
        None => {
            let host = rest.split(':').next().unwrap_or_default();
            if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                return wrong();
            }
            &rest[host.len()..]
        }
    };
    match port.strip_prefix(':').map(str::parse::<u16>) {
        None if port.is_empty() => Ok(text.to_owned()),
        Some(Ok(1..)) => Ok(text.to_owned()),
        _ => wrong(),
    }
}

/// `; did you mean 'x'?` for the nearest known word, where one is near.
fn nearest(word: &str, known: &[&str]) -> String {
    let best = known.iter().map(|k| (distance(word, k), k)).min();
    match best {
        Some((steps, name)) if steps <= 2.max(word.len() / 3) => format!("; did you mean '{name}'?"),
        _ => String::new(),
    }
}

/// How many single-character edits lie between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above + 1).min(row[j] + 1).min(diagonal + usize::from(x != *y));
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        match parse(Path::new("p.toml"), text) {
            Ok(_) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn errors_name_key_line_and_the_nearest_key() {
        for (text, want) in [
            (
                "[node]\nname = \"a b\"\n",
                "p.toml, line 2: name: 'a b' is no name: 1 to 64 of the characters A-Z a-z 0-9 . _ -",
            ),
            ("[nodes]\n", "p.toml, line 1: unknown table or key 'nodes'; did you mean 'node'?"),
            (
                "[[tree]]\nname = \"t\"\npath = \"/t\"\ningore = []\n",
                "p.toml, line 4: unknown key 'ingore' in [[tree]]; did you mean 'ignore'?",
            ),
            (
                "[[tree]]\nname = \"t\"\npath = \"/t\"\nhold = \"off\"\n",
                "p.toml, line 4: hold in [[tree]] is not in this version of pleach",
            ),
            (
                "[[tree]]\nname = \"t\"\npath = \"/t\"\nconflict = \"copies\"\n",
                "p.toml, line 4: conflict: 'copies' is none of vault, copy",
            ),
            (
                "[[tree]]\nname = \"t\"\npath = \"/t\"\ndirection = \"sent\"\n",
                "p.toml, line 4: direction: 'sent' is none of both, send, receive",
            ),
            ("[[tree]]\nname = \"t\"\n", "p.toml, line 1: path is missing in [[tree]]"),
            ("[[tree]]\nname = \"t\"\npath = \"t\"\n", "p.toml, line 3: path: 't' is not an absolute path"),
            (
                "[[tree]]\nname=\"t\"\npath=\"/a\"\n[[tree]]\nname=\"u\"\npath=\"/a/b\"\n",
                "p.toml, line 6: path: it lies within, or holds, the tree 't' at /a",
            ),
            (
                "[[tree]]\nname=\"t\"\npath=\"/a\"\nrescan=\"24\"\n",
                "p.toml, line 4: rescan: '24' is no duration: say 500ms, 10s, 5m, 24h or 7d",
            ),
            ("[hook]\ntree=\"t\"\n", "p.toml, line 1: 'hook' must be a list of tables: write [[hook]]"),
            ("[node]\nlog = 3\n", "p.toml, line 2: log must be a text in quotes"),
        ] {
            assert_eq!(errors(text).first().map(String::as_str), Some(want), "{text}");
        }
    }

    #[test]
    fn a_whole_config_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let key = keys::HostKey::load_or_create(dir.path(), "x").unwrap().public_line("x");
        let text = format!(
            "[node]\nname=\"web1\"\nlisten=\"[::]:8730\"\nstate=\"/var/lib/pleach\"\nlog=\"debug\"\n\
             [[tree]]\nname=\"www\"\npath=\"/srv/www/\"\nignore=[\"*.swp\"]\nhistory=\"3d\"\ndirection=\"receive\"\n\
             [[peer]]\nname=\"web2\"\naddress=[\"pleach://h\",\"pleach://[2001:db8::7]:8730\"]\nkey=\"{key}\"\ntrees=[\"www\"]\n"
        );
        let config = parse(Path::new("p.toml"), &text).unwrap();
        assert_eq!(config.trees[0].path, Path::new("/srv/www"));
        assert_eq!(config.trees[0].history, Duration::from_secs(3 * 86_400));
        assert_eq!(config.trees[0].direction, Direction::Receive);
        assert_eq!(config.peers[0].addresses.len(), 2);
        assert_eq!(config.peers[0].trees.as_deref(), Some(&["www".to_owned()][..]));
    }

    #[test]
    fn a_legacy_daemon_is_a_peer_without_a_key() {
        let tree = "[[tree]]\nname=\"t\"\npath=\"/t\"\n";
        let text = format!(
            "{tree}[[peer]]\nname=\"web1\"\naddress=\"rsync://u@h/m/p\"\npassword_file=\"/etc/server.pass\"\n\
             full_check=\"03:30\"\nmirror=true\ntimeout=\"10s\"\nrsync_options=[\"-vzrtopg\"]\n"
        );
        let push = parse(Path::new("p.toml"), &text).unwrap().peers.remove(0).push.unwrap();
        assert_eq!((push.target.to_string().as_str(), push.mirror), ("rsync://u@h:873/m/p/", true));
        assert_eq!((push.timeout, push.options), (Duration::from_secs(10), vec!["-z".to_owned()]));
        let peer = |more: &str| format!("{tree}[[peer]]\nname=\"w\"\naddress=\"rsync://u@h/m\"\n{more}\n");
        for (text, want) in [
            (peer("key=\"x\""), "p.toml, line 7: key: an rsync daemon has none; its password goes into password_file"),
            (peer("fallback=\"rsync://h/m\""), "p.toml, line 7: fallback is only for a peer with an agent"),
            (peer("rsync_options=[\"--delete\"]"), "p.toml, line 7: rsync_options: '--delete' is refused"),
            (peer("full_check=\"25:00\""), "p.toml, line 7: full_check: '25:00' is no time"),
            (peer("mirror=\"yes\""), "p.toml, line 7: mirror must be true or false"),
            (peer("trees=[]"), "p.toml, line 7: trees: an rsync daemon takes exactly one tree, not 0"),
            (
                format!("{tree}[[peer]]\nname=\"w\"\naddress=[\"rsync://u@h/m\",\"rsync://u@i/m\"]\n"),
                "p.toml, line 6: address: an rsync daemon has one",
            ),
            (format!("{tree}[[peer]]\nname=\"w\"\nkey=\"x\"\nmirror=true\n"), "p.toml, line 6: key: "),
        ] {
            let found = errors(&text);
            assert!(found.first().is_some_and(|error| error.starts_with(want)), "{text}: {found:?}");
        }
        let found = errors(&format!("{tree}[[peer]]\nname=\"w\"\nmirror=true\n"));
        assert!(found.contains(&"p.toml, line 6: mirror is only for rsync:// addresses".to_owned()), "{found:?}");
    }

    #[test]
    fn a_fallback_has_the_options_of_a_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let key = keys::HostKey::load_or_create(dir.path(), "x").unwrap().public_line("x");
        let tree = "[[tree]]\nname=\"t\"\npath=\"/t\"\n";
        let peer = |more: &str| format!("{tree}[[peer]]\nname=\"w\"\nkey=\"{key}\"\n{more}\n");
        let text = peer("fallback=\"rsync://u@h/m\"\npassword_file=\"/p\"\nrsync_options=[\"-z\"]\ntimeout=\"9s\"");
        let fallback = parse(Path::new("p.toml"), &text).unwrap().peers.remove(0).fallback.unwrap();
        assert_eq!((fallback.after, fallback.push.timeout), (Duration::from_secs(15), Duration::from_secs(9)));
        assert_eq!(fallback.push.target.to_string(), "rsync://u@h:873/m/");
        let fallback = "fallback=\"rsync://h/m\"\n";
        let two = "[[tree]]\nname=\"u\"\npath=\"/u\"\n";
        for (text, want) in [
            (
                peer("fallback=\"pleach://h\""),
                "p.toml, line 7: fallback: 'pleach://h' is no address of an rsync daemon",
            ),
            (peer(&format!("{fallback}mirror=true")), "p.toml, line 8: mirror of a fallback is not in this version"),
            (
                peer(&format!("{fallback}full_check=\"03:30\"")),
                "p.toml, line 8: full_check of a fallback is not in this",
            ),
            (peer(&format!("{fallback}fallback_after=\"x\"")), "p.toml, line 8: fallback_after: 'x' is no duration"),
            (peer("fallback_after=\"1s\""), "p.toml, line 7: fallback_after is only for a fallback"),
            (peer("timeout=\"1s\""), "p.toml, line 7: timeout is only for rsync:// addresses"),
            (
                format!("{two}{}", peer(fallback)),
                "p.toml, line 7: trees: an rsync daemon takes exactly one tree, not 2",
            ),
        ] {
            let found = errors(&text);
            assert!(found.first().is_some_and(|error| error.starts_with(want)), "{text}: {found:?}");
        }
    }

    #[test]
    fn addresses_that_are_none_are_refused() {
        for good in ["pleach://host", "pleach://10.0.0.1:1", "pleach://[::1]", "pleach://[::1]:8730"] {
            assert!(address(good).is_ok(), "{good}");
        }
        for bad in ["host", "pleach://", "pleach://::1", "pleach://h:0", "pleach://h:x", "ssh://h", "rsync://h/m"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
