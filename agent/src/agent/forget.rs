//! `pleach forget`: a peer or a tree that is not coming back (CONTRACT.md, Commands).
//!
//! A mark beneath the state directory says what is forgotten, before anything is dropped: what a crash leaves is dropped
//! by the next start, and what the config still names stays out of the agent. Once the config names it no more the mark
//! goes, so that a name may be used again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Agent;
use super::commands::{Target, conflict_row, send};
use crate::config::{self, Config, PeerConfig, TreeConfig};
use crate::control::Replies;
use crate::failure::Failure;
use crate::keys;
use crate::machine::{lock, write_durably};
use crate::owner::Command;
use crate::ssh::PublicKey;

/// Where a mark lies: `kind` is `peers` or `trees`.
fn mark(state: &Path, kind: &str, name: &str) -> PathBuf {
    state.join(kind).join(format!("{name}.forgotten"))
}

/// What a peer's mark says: one that is entered anew with another key is another.
fn peer_text(peer: &PeerConfig) -> String {
    format!("{}\n{}\n", peer.key, peer.addresses.join(" "))
}

fn tree_text(tree: &TreeConfig) -> String {
    format!("{}\n", tree.path.display())
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes what the state directory holds of a tree, and the tree's `.pleach` if it is the one that is known. The id by
/// which that is told goes last.
fn drop_tree(state: &Path, name: &str, root: Option<&Path>) -> io::Result<()> {
    let trees = state.join("trees");
    let marker = trees.join(format!("{name}.root"));
    if let Some(root) = root
        && let (Ok(known), Ok(found)) = (fs::read(&marker), fs::read(root.join(".pleach/root")))
        && !known.trim_ascii().is_empty()
        && known.trim_ascii() == found.trim_ascii()
    {
        remove(&root.join(".pleach"))?;
    }
    remove(&trees.join(name))?;
    remove(&trees.join(format!("{name}.paused")))?;
    remove(&marker)
}

impl Agent {
    /// The config without what is forgotten. What a crash left of a forgotten tree is dropped; a mark of what the config does
    /// not name goes.
    pub(super) fn without_forgotten(&self, config: &Config) -> Config {
        let mut config = config.clone();
        let state = &self.state;
        let stays = |kind: &str, name: &str, text: &str| {
            let file = mark(state, kind, name);
            match fs::read_to_string(&file) {
                Ok(found) if found == text => {
                    tracing::warn!(name, "it is forgotten: take it out of the config");
                    false
                }
                Ok(_) => {
                    remove(&file).ok();
                    true
                }
                Err(_) => true,
            }
        };
        config.trees.retain(|tree| stays("trees", &tree.name, &tree_text(tree)));
        config.peers.retain(|peer| stays("peers", &peer.name, &peer_text(peer)));
        let trees: Vec<String> = config.trees.iter().map(|tree| tree.name.clone()).collect();
        config.hooks.retain(|hook| trees.contains(&hook.tree));
        let exists = |peer: &PeerConfig| {
            peer.push.is_none() || peer.trees.as_ref().is_none_or(|own| own.iter().any(|tree| trees.contains(tree)))
        };
        config.peers.retain(exists);
        config
    }

    /// Drops marks of what the config does not name, and what a crash left of forgotten trees.
    pub(super) fn settle_forgotten(&self, config: &Config) {
        for (kind, named) in [
            ("trees", config.trees.iter().map(|tree| tree.name.as_str()).collect::<Vec<_>>()),
            ("peers", config.peers.iter().map(|peer| peer.name.as_str()).collect()),
        ] {
            let Ok(found) = fs::read_dir(self.state.join(kind)) else { continue };
            for entry in found.flatten() {
                let file = entry.file_name();
                let Some(name) = file.to_str().and_then(|name| name.strip_suffix(".forgotten")) else { continue };
                if kind == "trees" {
                    let root = fs::read_to_string(entry.path()).unwrap_or_default();
                    let root = Some(Path::new(root.trim_end_matches('\n'))).filter(|root| root.is_absolute());
                    let kept = config.trees.iter().find(|tree| tree.name == name);
                    let same = kept.is_none_or(|tree| Some(tree.path.as_path()) == root);
                    if let Err(error) = if same { drop_tree(&self.state, name, root) } else { Ok(()) } {
                        tracing::error!(name, %error, "what is left of a forgotten tree cannot be removed");
                        continue;
                    }
                }
                if !named.contains(&name) {
                    remove(&entry.path()).ok();
                }
            }
        }
    }

    pub(super) async fn forget(
        self: &Arc<Self>,
        tree: Option<&str>,
        peer: Option<&str>,
        replies: &Replies,
    ) -> Result<(), Failure> {
        match (tree, peer) {
            (Some(tree), None) => self.forget_tree(tree, replies).await,
            (None, Some(peer)) => self.forget_peer(peer).await,
            _ => Err(Failure::usage("forget", "name one: --tree TREE or --peer PEER")),
        }
    }

    async fn forget_tree(self: &Arc<Self>, name: &str, replies: &Replies) -> Result<(), Failure> {
        config::check_name(name).map_err(|why| Failure::usage("forget", why))?;
        let failed = |error: io::Error| Failure::done("forget", format!("tree {name}: {error}"));
        let config = lock(&self.config).clone();
        let entered = config.trees.iter().find(|tree| tree.name == name).cloned();
        let known = self.state.join("trees").join(name).exists();
        if entered.is_none() && !known {
            return Err(Failure::usage("forget", format!("there is no tree named '{name}'")));
        }
        if let Ok(targets) = self.targets("forget", Some(name)) {
            for target in targets {
                Self::list_conflicts(&target, replies).await;
            }
        }
        let Some(entered) = entered else { return drop_tree(&self.state, name, None).map_err(failed) };
        write_durably(&mark(&self.state, "trees", name), tree_text(&entered).as_bytes()).map_err(failed)?;
        self.adapt_apart(config).await?;
        drop_tree(&self.state, name, Some(&entered.path)).map_err(failed)
    }

    /// The conflicts go with the tree's vault: whoever forgets it sees which. A closed tree cannot tell.
    async fn list_conflicts(target: &Target, replies: &Replies) {
        let top = pleach_protocol::path::TreePath::ROOT;
        let found = target.ask("forget", |reply| Command::Conflicts { top, reply }).await;
        for conflict in found.iter().flatten() {
            send(replies, conflict_row(&target.name, conflict)).await;
        }
    }

    async fn forget_peer(self: &Arc<Self>, name: &str) -> Result<(), Failure> {
        let failed = |error: io::Error| Failure::done("forget", format!("peer {name}: {error}"));
        let config = lock(&self.config).clone();
        let Some(peer) = config.peers.iter().find(|peer| peer.name == name).cloned() else {
            return Err(Failure::usage("forget", format!("there is no peer named '{}'", name.escape_debug())));
        };
        write_durably(&mark(&self.state, "peers", name), peer_text(&peer).as_bytes()).map_err(failed)?;
        self.adapt_apart(config).await?;
        let node = PublicKey::from_openssh(&peer.key).ok().and_then(|key| keys::node_of(&key));
        for target in self.targets("forget", None)? {
            let name = name.to_owned();
            target.ask("forget", |reply| Command::ForgetPeer { name, node, reply }).await?;
        }
        Ok(())
    }

    /// Makes trees and peers what the config says; owners that stop take their time.
    async fn adapt_apart(self: &Arc<Self>, config: Config) -> Result<(), Failure> {
        let agent = Arc::clone(self);
        let runtime = tokio::runtime::Handle::current();
        let adapted = tokio::task::spawn_blocking(move || {
            let _within = runtime.enter();
            agent.adapt(&config)
        });
        adapted.await.unwrap_or_else(|error| Err(Failure::done("forget", error.to_string())))
    }
}
