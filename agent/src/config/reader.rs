//! Reading: each table and key, checked, with the line of what is wrong.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use pleach_protocol::wire::First;
use pleach_store::rows::Direction;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{
    Built, Config, ConfigError, FALLBACK_AFTER, KEYS, OpenFiles, PeerConfig, TABLES, TreeConfig, check_name,
    default_state, duration, hostname,
};
use crate::bandwidth::BandwidthLimit;
use crate::compress::Compress;
use crate::keys;
use crate::push::{FallbackConfig, PushConfig, Schedule, Target, check_options};

pub(super) struct Reader<'a> {
    pub(super) file: &'a Path,
    pub(super) text: &'a str,
    pub(super) errors: Vec<ConfigError>,
}

pub(super) type Value<'i> = Spanned<DeValue<'i>>;

impl Reader<'_> {
    pub(super) fn error(&mut self, at: &Range<usize>, what: String) {
        let before = self.text.get(..at.start).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        self.errors.push(ConfigError { file: self.file.to_path_buf(), line, what });
    }

    pub(super) fn config(&mut self, document: &DeTable<'_>) -> Config {
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
    pub(super) fn keys<'t, 'i>(&mut self, table: &str, found: &'t DeTable<'i>) -> BTreeMap<String, &'t Value<'i>> {
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

    pub(super) fn text(&mut self, key: &str, value: &Value<'_>) -> Option<String> {
        match value.get_ref() {
            DeValue::String(text) => Some(text.to_string()),
            _ => {
                self.error(&value.span(), format!("{key} must be a text in quotes"));
                None
            }
        }
    }

    pub(super) fn texts(&mut self, key: &str, value: &Value<'_>) -> Vec<String> {
        match value.get_ref() {
            DeValue::Array(values) => values.iter().filter_map(|v| self.text(key, v)).collect(),
            _ => {
                self.error(&value.span(), format!("{key} must be a list of texts: [\"...\"]"));
                Vec::new()
            }
        }
    }

    pub(super) fn checked<T>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
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
                "ignore" | "atomic" => {
                    let rules = self.texts(&key, value);
                    if let Err(error) = pleach_store::ignore::IgnoreRules::new(&rules) {
                        self.error(&value.span(), format!("{key}: {error}"));
                    }
                    *(if key == "ignore" { &mut tree.ignore } else { &mut tree.atomic }) = rules;
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
            compress: Compress::default(),
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
                "compress" if legacy => {
                    self.error(
                        &value.span(),
                        "compress: say rsync_options = [\"--compress\"] for an rsync daemon".into(),
                    );
                }
                "compress" => peer.compress = self.checked("compress", value, Compress::parse).unwrap_or_default(),
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
                "fallback_after" | "password_file" | "timeout" | "rsync_options" | "full_check" | "mirror"
                    if falls_back => {}
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

    pub(super) fn one_or_more(
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

pub(super) fn address(text: &str) -> Result<String, String> {
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
pub(super) fn nearest(word: &str, known: &[&str]) -> String {
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
