//! The running node: its trees, its peers, its endpoint and its control socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use pleach_protocol::version::NodeId;
use pleach_protocol::wire::Hello;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::config::{self, Config, PeerConfig};
use crate::failure::Failure;
use crate::keys::{self, HostKey};
use crate::machine::{lock, random_number, write_durably};
use crate::owner::{Event, Owner, Takers, TreeSetup, TreeStatus};
use crate::peer::{Greeted, Peer, PeerEvent, PeerSetup, PeerStatus, Us};
use crate::push::Gate;
use crate::ssh::{Listener, PublicKey, SshLink};

mod commands;
mod forget;
mod hooks;
mod pushes;
mod run;
mod status;

pub use run::run;

use hooks::HookHandle;
use pushes::PushHandle;

/// How long a new link may take for its first frame.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// How long peers may take to say goodbye at a stop.
const GOODBYE_MAX: Duration = Duration::from_secs(2);
/// The port of an address that names none.
const PORT: u16 = 8730;

/// One peer's task, as the agent knows it.
#[derive(Debug)]
struct PeerHandle {
    setup: PeerSetup,
    inbox: UnboundedSender<PeerEvent>,
    status: Arc<Mutex<PeerStatus>>,
    paused: bool,
    task: JoinHandle<()>,
}

/// What changes when the config is read again.
#[derive(Debug, Default)]
struct Parts {
    /// In the order of the config.
    trees: Vec<Owner>,
    configs: BTreeMap<String, config::TreeConfig>,
    peers: Vec<PeerHandle>,
    pushes: Vec<PushHandle>,
    hooks: Vec<HookHandle>,
    /// The daemons of peers with an agent.
    fallbacks: Vec<PushHandle>,
    gates: pushes::Gates,
}

/// A node. Cheap to clone by its `Arc`.
#[derive(Debug)]
pub struct Agent {
    us: Arc<Us>,
    state: PathBuf,
    started: Instant,
    copied: bool,
    config: Mutex<Config>,
    config_error: Mutex<Option<String>>,
    parts: Mutex<Parts>,
    /// Who may come in, by id.
    known: Arc<RwLock<Vec<NodeId>>>,
    listening: Mutex<Option<(SocketAddr, JoinHandle<()>)>>,
    /// Held for as long as the state directory is ours.
    _lock: fs::File,
}

impl Agent {
    /// Starts a node. Must run within a tokio runtime.
    ///
    /// # Errors
    /// The state directory cannot be used or is another agent's, or nothing can listen.
    pub async fn start(config: Config) -> Result<Arc<Self>, Failure> {
        let lock = lock_state(&config.state)?;
        let key = HostKey::load_or_create(&config.state, &config.name)
            .map_err(|error| Failure::done("agent: the host key", error.to_string()))?;
        let copied = is_copied(&config.state).map_err(|error| state_failure(&config.state, &error))?;
        let start = random_number().map_err(|error| Failure::done("agent", format!("no random bytes: {error}")))?;
        let us = Us { node: key.node(), name: config.name.clone(), start, key, sessions: AtomicU64::new(1) };
        let agent = Arc::new(Self {
            us: Arc::new(us),
            state: config.state.clone(),
            started: Instant::now(),
            copied,
            config: Mutex::new(config.clone()),
            config_error: Mutex::new(None),
            parts: Mutex::new(Parts::default()),
            known: Arc::default(),
            listening: Mutex::new(None),
            _lock: lock,
        });
        if let Some(listen) = &config.listen {
            agent.listen(listen).await?;
        }
        agent.adapt(&config)?;
        Ok(agent)
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        lock(&self.listening).as_ref().map(|(address, _)| *address)
    }

    /// How a tree is doing.
    #[must_use]
    pub fn tree_status(&self, name: &str) -> Option<TreeStatus> {
        let parts = lock(&self.parts);
        let owner = parts.trees.iter().find(|o| o.name == name)?;
        let status = lock(&owner.status).clone();
        Some(status)
    }

    /// This node's public key, an OpenSSH line.
    #[must_use]
    pub fn public_line(&self) -> String {
        self.us.key.public_line(&self.us.name)
    }

    async fn listen(self: &Arc<Self>, address: &str) -> Result<(), Failure> {
        let known = Arc::clone(&self.known);
        let accepts = move |key: &PublicKey| {
            let known = known.read().unwrap_or_else(PoisonError::into_inner);
            keys::node_of(key).is_some_and(|node| known.contains(&node))
        };
        let mut listener = Listener::bind(address, &self.us.key, Arc::new(accepts)).await.map_err(|error| {
            Failure::done("agent", error.to_string()).help("is another agent running? see: systemctl status pleach")
        })?;
        let bound = listener.local_addr();
        tracing::info!(address = %bound, "listening");
        let agent = Arc::downgrade(self);
        let task = tokio::spawn(async move {
            loop {
                let link = listener.accept().await;
                let Some(agent) = agent.upgrade() else { return };
                tokio::spawn(async move { agent.greet(link).await });
            }
        });
        *lock(&self.listening) = Some((bound, task));
        Ok(())
    }

    /// Reads a new link's first frame and brings it to its peer.
    async fn greet(&self, mut link: SshLink) {
        let Some(node) = keys::node_of(&link.key) else { return };
        let remote = link.remote.clone();
        let Ok(Ok(Some(body))) = timeout(GREETING_MAX, link.reader.next()).await else {
            tracing::info!(remote, "a link said nothing and was closed");
            return;
        };
        let hello = match Hello::decode(&body) {
            Ok(hello) => hello,
            Err(error) => {
                tracing::warn!(remote, %error, "a link was closed");
                return;
            }
        };
        let parts = lock(&self.parts);
        if let Some(peer) = parts.peers.iter().find(|p| p.setup.node == node) {
            // A task that is stopping takes no links.
            peer.inbox.send(PeerEvent::Link(Box::new(Greeted { link, body, hello }))).ok();
        }
    }

    /// Makes trees and peers what the config says. What did not change goes on undisturbed.
    ///
    /// # Errors
    /// A thread cannot be started; the rest goes on.
    fn adapt(self: &Arc<Self>, config: &Config) -> Result<(), Failure> {
        let (whole, config) = (config, &self.without_forgotten(config));
        let setups = peer_setups(config);
        let hooks = hooks::hook_setups(config, &self.state);
        let mut parts = lock(&self.parts);
        let daemons = pushes::push_setups(config, &self.state, &mut parts.gates);
        let mut peers: Vec<PeerHandle> = Vec::new();
        let mut old_peers: Vec<PeerHandle> = std::mem::take(&mut parts.peers);
        // Peers that are gone first, so that no owner hears of them again.
        old_peers.retain(|peer| {
            let stays = setups.contains(&peer.setup);
            if !stays {
                peer.inbox.send(PeerEvent::Stop).ok();
            }
            stays
        });
        // Trees whose owner is another one now.
        let mut changed: BTreeSet<String> = BTreeSet::new();
        let mut old_trees: Vec<Owner> = std::mem::take(&mut parts.trees);
        for mut owner in
            old_trees.extract_if(.., |o| !config.trees.iter().any(|t| parts.configs.get(&o.name) == Some(t)))
        {
            owner.stop();
            changed.insert(owner.name);
        }
        for tree in &config.trees {
            let here = daemons.iter().filter(|d| d.tree == tree.name);
            let (fallbacks, pushes): (Vec<_>, Vec<_>) = here.partition(|d| d.fallback.is_some());
            let peers = takers(&setups, &tree.name);
            let falls_back = |name: &String| fallbacks.iter().any(|d| d.name == *name);
            let fallbacks = peers.iter().filter(|(_, name)| falls_back(name));
            let fallbacks = fallbacks.map(|(node, name)| (name.clone(), *node)).collect();
            let pushes = pushes.into_iter().map(|d| d.name.clone()).collect();
            let specs = hooks::hook_specs(&hooks, &tree.name);
            let takers = Takers { peers, pushes, fallbacks, hooks: specs };
            if let Some(at) = old_trees.iter().position(|o| o.name == tree.name) {
                let owner = old_trees.swap_remove(at);
                owner.inbox.send(Event::Takers(takers)).ok();
                parts.trees.push(owner);
                continue;
            }
            changed.insert(tree.name.clone());
            let setup = TreeSetup {
                config: tree.clone(),
                copied: self.copied,
                node: self.us.node,
                name: self.us.name.clone(),
                state: self.state.clone(),
                takers,
            };
            let owner = Owner::start(setup)
                .map_err(|error| Failure::done(format!("agent: tree {}", tree.name), error.to_string()))?;
            parts.trees.push(owner);
        }
        parts.configs = config.trees.iter().map(|t| (t.name.clone(), t.clone())).collect();
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = setups.iter().map(|s| s.node).collect();
        for setup in setups {
            let owners = owners_of(&parts.trees, &setup);
            if let Some(at) = old_peers.iter().position(|p| p.setup == setup) {
                let peer = old_peers.swap_remove(at);
                if setup.trees.iter().any(|tree| changed.contains(tree)) {
                    peer.inbox.send(PeerEvent::Owners(owners)).ok();
                }
                peers.push(peer);
                continue;
            }
            let gate = pushes::gate_of(&mut parts.gates, &setup.name, &self.state);
            peers.push(self.start_peer(setup, owners, gate));
        }
        parts.peers = peers;
        self.adapt_pushes(&mut parts, daemons, &changed);
        self.adapt_hooks(&mut parts, hooks, &changed);
        drop(parts);
        self.settle_forgotten(whole);
        Ok(())
    }

    fn start_peer(&self, setup: PeerSetup, owners: Vec<Sender<Event>>, gate: Arc<Gate>) -> PeerHandle {
        let (inbox, events) = unbounded_channel();
        let status = Arc::new(Mutex::new(PeerStatus::default()));
        let paused = self.peer_pause(&setup.name).exists();
        let us = Arc::clone(&self.us);
        let peer = Peer::new(us, setup.clone(), owners, events, Arc::clone(&status), gate, paused);
        PeerHandle { setup, inbox, status, paused, task: tokio::spawn(peer.run()) }
    }

    /// Where a peer's pause survives a restart.
    fn peer_pause(&self, name: &str) -> PathBuf {
        self.state.join("peers").join(format!("{name}.paused"))
    }

    /// Reads the config anew; a bad one changes nothing, and status says so.
    pub fn reload(self: &Arc<Self>, config: Result<Config, Failure>) {
        let now = lock(&self.config).clone();
        let adapted = config.and_then(|config| {
            if (&config.name, &config.listen, &config.state) != (&now.name, &now.listen, &now.state) {
                let why = "name, listen and state of [node] change only at a restart";
                return Err(Failure::usage("config", why).help("restart the agent: systemctl restart pleach"));
            }
            self.adapt(&config)?;
            *lock(&self.config) = config;
            Ok(())
        });
        match &adapted {
            Ok(()) => tracing::info!("the config was read again"),
            Err(failure) => tracing::error!(%failure, "the config was not taken"),
        }
        *lock(&self.config_error) = adapted.err().map(|failure| failure.to_string());
    }

    /// Stops cleanly: says goodbye, makes everything durable.
    pub async fn stop(&self) {
        let Parts { trees, peers, pushes, fallbacks, hooks, .. } = std::mem::take(&mut *lock(&self.parts));
        if let Some((_, task)) = lock(&self.listening).take() {
            task.abort();
        }
        for peer in &peers {
            peer.inbox.send(PeerEvent::Stop).ok();
        }
        for hook in hooks {
            hook.end().await;
        }
        for push in pushes.into_iter().chain(fallbacks) {
            push.end().await;
        }
        for mut peer in peers {
            if timeout(GOODBYE_MAX, &mut peer.task).await.is_err() {
                peer.task.abort();
            }
        }
        let stopped = tokio::task::spawn_blocking(move || {
            for owner in &trees {
                owner.inbox.send(Event::Stop).ok();
            }
            for mut owner in trees {
                owner.stop();
            }
        });
        if let Err(error) = stopped.await {
            tracing::error!(%error, "a tree ended abruptly");
        }
    }
}

/// The peers of a config.
fn peer_setups(config: &Config) -> Vec<PeerSetup> {
    let all: Vec<String> = config.trees.iter().map(|t| t.name.clone()).collect();
    let setup = |peer: &PeerConfig| {
        let key = PublicKey::from_openssh(&peer.key).ok()?;
        let node = keys::node_of(&key)?;
        let trees = peer.trees.clone().unwrap_or_else(|| all.clone());
        let addresses = peer.addresses.iter().map(|a| host_port(a)).collect();
        let (bandwidth, compress) = (peer.bandwidth.clone(), peer.compress);
        Some(PeerSetup { name: peer.name.clone(), node, key, addresses, trees, bandwidth, compress })
    };
    config.peers.iter().filter_map(setup).collect()
}

/// `pleach://host[:port]` as `host:port`.
pub(crate) fn host_port(address: &str) -> String {
    let rest = address.strip_prefix("pleach://").unwrap_or(address);
    let has_port = match rest.strip_prefix('[') {
        Some(v6) => v6.split_once(']').is_some_and(|(_, port)| !port.is_empty()),
        None => rest.contains(':'),
    };
    if has_port { rest.to_owned() } else { format!("{rest}:{PORT}") }
}

fn takers(setups: &[PeerSetup], tree: &str) -> BTreeMap<NodeId, String> {
    setups.iter().filter(|s| s.trees.iter().any(|t| t == tree)).map(|s| (s.node, s.name.clone())).collect()
}

fn owners_of(trees: &[Owner], setup: &PeerSetup) -> Vec<Sender<Event>> {
    let inbox = |name: &String| trees.iter().find(|o| o.name == *name).map(|o| o.inbox.clone());
    setup.trees.iter().filter_map(inbox).collect()
}

fn state_failure(state: &Path, error: &io::Error) -> Failure {
    Failure::done(format!("agent: the state directory {}", state.display()), error.to_string())
}

/// Makes the state directory ours, for as long as the file is open.
fn lock_state(state: &Path) -> Result<fs::File, Failure> {
    let failed = |error: io::Error| state_failure(state, &error);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(failed)?;
    fs::create_dir_all(state.join("trees")).map_err(failed)?;
    fs::create_dir_all(state.join("peers")).map_err(failed)?;
    fs::create_dir_all(state.join("hooks")).map_err(failed)?;
    let path = state.join("lock");
    let file =
        fs::OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path).map_err(failed)?;
    match rustix::fs::flock(file.as_fd(), rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = fs::read_to_string(&path).unwrap_or_default();
            let why = format!("another agent runs with the state directory {} ({})", state.display(), holder.trim());
            return Err(Failure::done("agent", why).help("stop that one, or give this one a `state` of its own"));
        }
        Err(error) => return Err(failed(error.into())),
    }
    file.set_len(0).map_err(failed)?;
    io::Write::write_all(&mut &file, format!("pid {}\n", std::process::id()).as_bytes()).map_err(failed)?;
    Ok(file)
}

/// Whether the state directory came from another machine or another place: its journals are then
/// not continued under their old names, for the original may continue them too.
fn is_copied(state: &Path) -> io::Result<bool> {
    let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let bound = format!("{} {}\n", machine.trim(), fs::metadata(state)?.ino());
    let path = state.join("machine");
    let copied = match fs::read_to_string(&path) {
        Ok(found) if found == bound => return Ok(false),
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(error),
    };
    if copied {
        tracing::warn!("the state directory was copied: journals begin anew");
    }
    write_durably(&path, bound.as_bytes())?;
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_gets_ours() {
        for (address, want) in [
            ("pleach://h", "h:8730"),
            ("pleach://h:1", "h:1"),
            ("pleach://[::1]", "[::1]:8730"),
            ("pleach://[::1]:9", "[::1]:9"),
        ] {
            assert_eq!(host_port(address), want);
        }
    }

    #[test]
    fn a_state_directory_that_moved_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&a).unwrap();
        fs::create_dir(&b).unwrap();
        assert!(!is_copied(&a).unwrap());
        assert!(!is_copied(&a).unwrap());
        fs::copy(a.join("machine"), b.join("machine")).unwrap();
        assert!(is_copied(&b).unwrap());
        assert!(!is_copied(&b).unwrap());
    }
}
