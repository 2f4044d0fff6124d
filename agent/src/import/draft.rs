//! A config in the making: trees with their peers and hooks, and what is to be said about them.

use std::collections::BTreeSet;

use toml::Value;

use crate::config;

/// What an import found.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// Whether the node is dialled by others.
    pub(super) listen: bool,
    /// What is said of the file as a whole.
    pub(super) notes: Vec<String>,
    pub(super) trees: Vec<Tree>,
}

/// One `[[tree]]`, the peers that take it, and its hooks.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) name: String,
    pub(super) path: String,
    pub(super) keys: Vec<(&'static str, Value)>,
    pub(super) ignore: Vec<String>,
    /// Where it differs from what it replaces.
    pub(super) notes: Vec<String>,
    /// Why it cannot be converted.
    pub(super) refused: Vec<String>,
    pub(super) peers: Vec<Peer>,
    pub(super) hooks: Vec<Vec<(&'static str, Value)>>,
}

/// One `[[peer]]`.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    pub(super) address: Address,
    pub(super) keys: Vec<(&'static str, Value)>,
}

/// Where a peer is.
#[derive(Debug)]
pub(super) enum Address {
    /// An rsync daemon's URL.
    Daemon(String),
    /// A host that was reached through ssh: an agent there takes the place of rsync.
    Agent {
        /// Its name or number, in brackets where it has colons.
        host: String,
        /// The directory there.
        dir: String,
    },
}

impl Tree {
    /// A tree of a directory, named after it, unlike those of `draft`.
    pub(super) fn new(draft: &Draft, path: &str) -> Self {
        let path = match path.trim_end_matches('/') {
            "" => "/",
            path => path,
        };
        let last = path.rsplit('/').next().unwrap_or_default();
        let name = unlike(&name_of(last, "data"), draft.trees.iter().map(|tree| tree.name.as_str()));
        let mut tree = Self { name, path: path.to_owned(), ..Self::default() };
        if !path.starts_with('/') {
            tree.refused.push(format!("the directory '{path}' is not absolute"));
        }
        let within = |a: &str, b: &str| a == b || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'));
        if let Some(other) = draft.trees.iter().find(|t| within(path, &t.path) || within(&t.path, path)) {
            tree.refused.push(format!("{path} and {} lie within one another: a tree cannot", other.path));
        }
        tree
    }

    /// Says where it differs.
    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl Draft {
    /// Takes a tree in, or adds its peers to the one that is there of the same directory with the same keys.
    pub(super) fn add(&mut self, mut tree: Tree) {
        let same = |t: &&mut Tree| t.path == tree.path && t.keys == tree.keys && t.ignore == tree.ignore;
        let named = |draft: &Self| {
            draft.trees.iter().flat_map(|t| &t.peers).map(|peer| peer.name.clone()).collect::<BTreeSet<_>>()
        };
        let mut names = named(self);
        for peer in &mut tree.peers {
            peer.name = unlike(&peer.name, names.iter().map(String::as_str));
            names.insert(peer.name.clone());
        }
        let taken = self.trees.iter().any(|there| there.path == tree.path);
        match self.trees.iter_mut().find(same) {
            Some(there) => {
                there.peers.append(&mut tree.peers);
                let new = tree.notes.into_iter().filter(|note| !there.notes.contains(note)).collect::<Vec<_>>();
                there.notes.extend(new);
                there.refused.append(&mut tree.refused);
            }
            None if tree.refused.is_empty() && taken => {
                tree.refused
                    .push("the directory is a tree already, with other rules: a tree has one set of them".into());
                self.trees.push(tree);
            }
            None => self.trees.push(tree),
        }
    }

    /// Whether nothing was converted.
    pub(super) fn is_empty(&self) -> bool {
        self.trees.iter().all(|tree| !tree.refused.is_empty())
    }

    /// What has no counterpart, a line each.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        for tree in &self.trees {
            notes.extend(tree.refused.iter().map(|why| format!("error: {}: not converted: {why}", tree.path)));
            notes.extend(tree.notes.iter().map(|note| format!("{}: {note}", tree.path)));
        }
        notes.iter().map(|note| note.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")).collect()
    }

    /// The config.
    pub(super) fn text(&self) -> String {
        let mut out = String::from("# Made by pleach import. Read the comments before you use it.\n");
        comments(&mut out, &self.notes);
        out.push_str("\n[node]\n");
        out.push_str(if self.listen { "listen = \"0.0.0.0:8730\"\n" } else { "# listen = \"0.0.0.0:8730\"\n" });
        for tree in &self.trees {
            let mut block = String::new();
            tree.write(&mut block);
            out.push('\n');
            if tree.refused.is_empty() {
                out.push_str(&block);
                continue;
            }
            for why in &tree.refused {
                comments(&mut out, &[format!("NOT CONVERTED: {why}")]);
            }
            for line in block.lines() {
                out.push_str(if line.is_empty() { "#" } else { "# " });
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }
}

impl Tree {
    fn write(&self, out: &mut String) {
        comments(out, &self.notes);
        out.push_str("[[tree]]\n");
        key(out, "name", &self.name.as_str().into());
        key(out, "path", &self.path.as_str().into());
        if !self.ignore.is_empty() {
            key(out, "ignore", &strings(&self.ignore));
        }
        self.keys.iter().for_each(|(name, value)| key(out, name, value));
        for peer in &self.peers {
            out.push('\n');
            peer.write(out, &self.name);
        }
        for hook in &self.hooks {
            out.push_str("\n[[hook]]\n");
            key(out, "tree", &self.name.as_str().into());
            hook.iter().for_each(|(name, value)| key(out, name, value));
        }
    }
}

impl Peer {
    /// A peer on an rsync daemon.
    pub(super) fn daemon(user: Option<&str>, host: &str, port: Option<u16>, path: &str) -> Self {
        let user = user.filter(|user| !user.is_empty()).map(|user| format!("{user}@")).unwrap_or_default();
        let port = port.filter(|port| *port != 873).map(|port| format!(":{port}")).unwrap_or_default();
        let path = path.trim_matches('/');
        let module = path.split('/').next().unwrap_or_default();
        let name = name_of(&format!("{module}.{}", host.trim_matches(['[', ']'])), "backup");
        let address = Address::Daemon(format!("rsync://{user}{}{port}/{path}", bracketed(host)));
        Self { name, address, keys: Vec::new() }
    }

    /// A peer on a host that was reached through ssh.
    pub(super) fn agent(host: &str, dir: &str) -> Self {
        let name = name_of(host.trim_matches(['[', ']']), "backup");
        Self { name, address: Address::Agent { host: bracketed(host), dir: dir.to_owned() }, keys: Vec::new() }
    }

    fn write(&self, out: &mut String, tree: &str) {
        let mut block = String::from("[[peer]]\n");
        key(&mut block, "name", &self.name.as_str().into());
        match &self.address {
            Address::Daemon(url) => key(&mut block, "address", &url.as_str().into()),
            Address::Agent { host, dir } => {
                comments(
                    out,
                    &[
                        format!("An agent on {host} takes the place of ssh and rsync: run there"),
                        format!("  pleach init --listen 0.0.0.0:8730 --tree {tree}={dir}"),
                        "and put here the key that it prints:".to_owned(),
                    ],
                );
                key(&mut block, "address", &format!("pleach://{host}:8730").into());
                key(&mut block, "key", &"ssh-ed25519 ...".into());
            }
        }
        key(&mut block, "trees", &strings(&[tree.to_owned()]));
        self.keys.iter().for_each(|(name, value)| key(&mut block, name, value));
        match self.address {
            Address::Daemon(_) => out.push_str(&block),
            Address::Agent { .. } => comments(out, &block.lines().map(str::to_owned).collect::<Vec<_>>()),
        }
    }
}

/// A list of strings as TOML.
pub(super) fn strings(texts: &[String]) -> Value {
    Value::Array(texts.iter().map(|text| Value::from(text.as_str())).collect())
}

fn key(out: &mut String, name: &str, value: &Value) {
    out.push_str(&format!("{name} = {value}\n"));
}

/// Comments may hold no control character: TOML forbids them there.
fn comments(out: &mut String, texts: &[String]) {
    for line in texts.iter().flat_map(|text| text.split('\n')) {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        out.push_str(format!("# {line}").trim_end());
        out.push('\n');
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() }
}

/// Makes a name that the config takes.
fn name_of(text: &str, otherwise: &str) -> String {
    let known = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = text.chars().map(known).take(56).collect();
    if config::check_name(&name).is_ok() { name } else { otherwise.to_owned() }
}

/// Makes a name unlike those there are.
fn unlike<'a>(name: &str, there: impl Iterator<Item = &'a str>) -> String {
    let there: BTreeSet<&str> = there.collect();
    let numbered = (2_u32..).map(|n| format!("{name}-{n}"));
    std::iter::once(name.to_owned()).chain(numbered).find(|n| !there.contains(n.as_str())).unwrap_or_default()
}
