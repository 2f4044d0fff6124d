//! What rsync was told on its command line, as keys of a peer and a tree.

use toml::Value;

use super::draft::{Peer, Tree, strings};
use super::pattern;
use crate::push::check_options;

/// What they ask for pleach does anyway, or it changes only what a person sees; beside what the push says by itself.
const GIVEN: [&str; 14] = [
    "dirs",
    "devices",
    "specials",
    "relative",
    "protect-args",
    "secluded-args",
    "one-file-system",
    "human-readable",
    "inplace",
    "no-motd",
    "delay-updates",
    "out-format",
    "log-file",
    "info",
];
/// Short options and their long names, as rsync(1) has them.
const SHORT: [(char, &str); 34] = [
    ('a', "archive"),
    ('r', "recursive"),
    ('d', "dirs"),
    ('l', "links"),
    ('p', "perms"),
    ('t', "times"),
    ('o', "owner"),
    ('g', "group"),
    ('D', "devices"),
    ('R', "relative"),
    ('s', "protect-args"),
    ('x', "one-file-system"),
    ('v', "verbose"),
    ('q', "quiet"),
    ('h', "human-readable"),
    ('P', "partial"),
    ('i', "itemize-changes"),
    ('z', "compress"),
    ('u', "update"),
    ('n', "dry-run"),
    ('c', "checksum"),
    ('H', "hard-links"),
    ('A', "acls"),
    ('X', "xattrs"),
    ('S', "sparse"),
    ('W', "whole-file"),
    ('b', "backup"),
    ('E', "executability"),
    ('O', "omit-dir-times"),
    ('I', "ignore-times"),
    ('y', "fuzzy"),
    ('k', "copy-dirlinks"),
    ('L', "copy-links"),
    ('C', "cvs-exclude"),
];
/// Short options that take a value.
const SHORT_WITH_VALUE: [char; 5] = ['e', 'f', 'B', 'T', 'M'];

/// Splits an option line as a shell does with words and quotes; nothing is expanded.
pub(super) fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Gives every option its long name and its value.
fn long_options(words: &[String]) -> Vec<(String, Option<String>)> {
    let mut options = Vec::new();
    let mut words = words.iter().peekable();
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix("--") {
            let (name, mut value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let wants = [
                "exclude",
                "include",
                "filter",
                "exclude-from",
                "include-from",
                "password-file",
                "bwlimit",
                "port",
                "timeout",
            ];
            if value.is_none() && wants.contains(&name) {
                value = words.next_if(|next| !next.starts_with("--")).cloned();
            }
            options.push((name.to_owned(), value));
        } else if let Some(bundle) = word.strip_prefix('-') {
            for (at, c) in bundle.char_indices() {
                if SHORT_WITH_VALUE.contains(&c) {
                    let rest = bundle[at + c.len_utf8()..].to_owned();
                    let value = if rest.is_empty() { words.next().cloned() } else { Some(rest) };
                    options.push((format!("-{c}"), value));
                    break;
                }
                let long = SHORT.iter().find(|(short, _)| *short == c).map(|(_, long)| (*long).to_owned());
                options.push((long.unwrap_or_else(|| format!("-{c}")), None));
            }
        } else {
            options.push((word.clone(), None));
        }
    }
    options
}

/// What rsync's options mean for a peer.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The keys of an rsync peer.
    pub(super) keys: Vec<(&'static str, Value)>,
    /// The daemon's port.
    pub(super) port: Option<u16>,
    /// Whether everything is deleted there that is not here.
    pub(super) delete: bool,
    /// Whether there is a password file among the keys.
    pub(super) password: bool,
    passed: Vec<String>,
}

impl Told {
    /// Reads an option line; what belongs to the tree goes there.
    pub(super) fn read(words: &[String], tree: &mut Tree) -> Self {
        let mut told = Self::default();
        for (name, value) in long_options(words) {
            told.option(&name, value, tree);
        }
        told
    }

    fn option(&mut self, name: &str, value: Option<String>, tree: &mut Tree) {
        let dashes = if name.starts_with('-') { "" } else { "--" };
        let shown = match &value {
            Some(value) => format!("{dashes}{name}={value}"),
            None => format!("{dashes}{name}"),
        };
        match (name, value) {
            ("exclude", Some(value)) => match pattern::of_rsync(&value) {
                Ok(rule) => tree.ignore.push(rule),
                Err(why) => tree.refused.push(format!("{shown}: {why}")),
            },
            ("exclude-from", Some(file)) => excludes_of(&file, tree),
            ("include" | "filter" | "include-from" | "-f" | "cvs-exclude", _) => {
                tree.refused.push(format!("rsync's {shown}: write it as gitignore rules in 'ignore'"));
            }
            ("password-file", Some(file)) => {
                self.password = true;
                self.keys.push(("password_file", file.into()));
            }
            ("port", Some(port)) => match port.parse() {
                Ok(port) => self.port = Some(port),
                Err(_) => tree.refused.push(format!("{shown}: this is no port")),
            },
            ("timeout", Some(secs)) => match secs.parse::<u32>() {
                Ok(0) | Err(_) => tree.note(format!("{shown}: pleach's own limit (60s) holds")),
                Ok(secs) => self.keys.push(("timeout", format!("{secs}s").into())),
            },
            ("bwlimit", Some(limit)) => match bandwidth(&limit) {
                Some(limit) => self.keys.push(("bwlimit", limit.into())),
                None => tree.note(format!("{shown} has no counterpart: set 'bwlimit' by hand, as \"5MB/s\"")),
            },
            ("delete" | "delete-before" | "delete-during" | "delete-delay" | "delete-after" | "del", _) => {
                self.delete = true;
            }
            ("-e", Some(shell)) => {
                tree.note(format!("rsync's -e {shell} is left out: an agent there makes the connection"));
            }
            (name, _) if GIVEN.contains(&name) => {}
            // What a config may add is what the push lets through.
            _ => match check_options(std::slice::from_ref(&shown)) {
                Ok(mut options) => self.passed.append(&mut options),
                Err(why) => tree.note(format!("rsync's {shown} is left out: {why}")),
            },
        }
    }

    /// Gives a peer its keys.
    pub(super) fn apply(&self, peer: &mut Peer) {
        peer.keys.extend(self.keys.iter().cloned());
        if !self.passed.is_empty() {
            peer.keys.push(("rsync_options", strings(&self.passed)));
        }
    }
}

/// Reads a file of exclude patterns, as rsync's `--exclude-from` and lsyncd's `excludeFrom` have it.
pub(super) fn excludes_of(file: &str, tree: &mut Tree) {
    let text = match super::read(std::path::Path::new(file)) {
        Ok(text) => text,
        Err(error) => return tree.refused.push(format!("the excludes in {file} cannot be read: {error}")),
    };
    for line in text.lines().map(str::trim_end).filter(|l| !l.is_empty() && !l.starts_with(['#', ';'])) {
        match pattern::of_rsync(line) {
            Ok(rule) => tree.ignore.push(rule),
            Err(why) => tree.refused.push(format!("{file}: '{line}': {why}")),
        }
    }
}

/// rsync's limit is in units of 1024 bytes a second unless it says another.
fn bandwidth(text: &str) -> Option<String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok().filter(|n| *n > 0)?;
    let unit = match unit.to_ascii_lowercase().as_str() {
        "" | "k" | "kib" => "KiB",
        "kb" => "kB",
        "m" | "mib" => "MiB",
        "mb" => "MB",
        "g" | "gib" => "GiB",
        _ => return None,
    };
    Some(format!("{number}{unit}/s"))
}
