//! The agent's legacy rsync daemons: a task each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, channel, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Agent, Parts};
use crate::config::Config;
use crate::control::{Replies, Reply};
use crate::failure::Failure;
use crate::machine::lock;
use crate::owner::Owner;
use crate::peer::PeerStatus;
use crate::push::{Asked, Fallback, Gate, Push, PushCommand, PushEvent, PushSetup, PushSource, end_noted};

/// How long a task may take to end its rsync.
const END_MAX: Duration = Duration::from_secs(2);
/// Rows of a check under way.
const ROWS_MAX: usize = 64;

/// One daemon's task, as the agent knows it.
#[derive(Debug)]
pub(super) struct PushHandle {
    pub(super) setup: PushSetup,
    inbox: UnboundedSender<PushEvent>,
    pub(super) status: Arc<Mutex<PeerStatus>>,
    pub(super) paused: bool,
    task: JoinHandle<()>,
}

impl PushHandle {
    /// A task that is stopping is as good as paused.
    pub(super) fn pause(&mut self, paused: bool) {
        self.paused = paused;
        self.inbox.send(PushEvent::Pause(paused)).ok();
    }

    /// Ends the task, and with it its rsync.
    pub(super) async fn end(mut self) {
        self.inbox.send(PushEvent::Stop).ok();
        if timeout(END_MAX, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }
}

/// What the fallbacks of peers go by, by the peer's name.
pub(super) type Gates = BTreeMap<String, Arc<Gate>>;

/// A peer's gate. What an earlier life pushed there ends before the first session with it.
pub(super) fn gate_of(gates: &mut Gates, peer: &str, state: &Path) -> Arc<Gate> {
    let gate = gates.entry(peer.to_owned()).or_insert_with(|| {
        end_noted(&note_of(state, peer));
        Arc::default()
    });
    Arc::clone(gate)
}

/// Where a running rsync is noted.
fn note_of(state: &Path, peer: &str) -> PathBuf {
    state.join("peers").join(format!("{peer}.rsync"))
}

/// The daemons of a config: peers of their own, and fallbacks.
pub(super) fn push_setups(config: &Config, state: &Path, gates: &mut Gates) -> Vec<PushSetup> {
    let setup = |peer: &crate::config::PeerConfig| {
        let fallback = peer.fallback.as_ref().map(|fallback| Fallback {
            after: fallback.after,
            gate: gate_of(gates, &peer.name, state),
            node: config.name.clone(),
            lists: state.join("peers").join(format!("{}.lists", peer.name)),
        });
        let push = peer.push.clone().or_else(|| peer.fallback.as_ref().map(|fallback| fallback.push.clone()))?;
        let tree = match &peer.trees {
            Some(trees) => config.trees.iter().find(|tree| trees.contains(&tree.name)),
            None => config.trees.first(),
        }?;
        let mut rules = [0; 16];
        rules.copy_from_slice(&blake3::hash(tree.ignore.join("\n").as_bytes()).as_bytes()[..16]);
        Some(PushSetup {
            name: peer.name.clone(),
            tree: tree.name.clone(),
            root: tree.path.clone(),
            rules,
            config: push,
            bandwidth: peer.bandwidth.clone(),
            note: note_of(state, &peer.name),
            empty: state.join("peers").join("empty"),
            fallback,
        })
    };
    config.peers.iter().filter_map(setup).collect()
}

fn source_of(trees: &[Owner], setup: &PushSetup) -> Option<PushSource> {
    let owner = trees.iter().find(|owner| owner.name == setup.tree)?;
    Some(PushSource { owner: owner.inbox.clone(), applied: owner.applied.clone() })
}

impl Parts {
    fn add_push(&mut self, push: PushHandle) {
        match push.setup.fallback {
            Some(_) => self.fallbacks.push(push),
            None => self.pushes.push(push),
        }
    }
}

impl Agent {
    /// Makes the tasks what the config says; `changed`: trees with a new owner.
    pub(super) fn adapt_pushes(&self, parts: &mut Parts, setups: Vec<PushSetup>, changed: &BTreeSet<String>) {
        let mut old = std::mem::take(&mut parts.pushes);
        old.append(&mut parts.fallbacks);
        old.retain(|push| {
            let stays = setups.contains(&push.setup);
            if !stays {
                // One that ended needs no telling.
                push.inbox.send(PushEvent::Stop).ok();
            }
            stays
        });
        for setup in setups {
            let Some(source) = source_of(&parts.trees, &setup) else { continue };
            if let Some(at) = old.iter().position(|push| push.setup == setup) {
                let push = old.swap_remove(at);
                if changed.contains(&setup.tree) {
                    push.inbox.send(PushEvent::Source(source)).ok();
                }
                parts.add_push(push);
                continue;
            }
            let (inbox, events) = unbounded_channel();
            let status = Arc::new(Mutex::new(PeerStatus::default()));
            // A fallback goes by its peer.
            let paused = setup.fallback.is_none() && self.peer_pause(&setup.name).exists();
            let push = Push::new(setup.clone(), source, events, Arc::clone(&status), paused);
            parts.add_push(PushHandle { setup, inbox, status, paused, task: tokio::spawn(push.run()) });
        }
    }

    /// Sends a command to the task of a daemon, or of a peer's fallback.
    fn tell_push(&self, what: &str, peer: &str, command: PushCommand) -> Result<(), Failure> {
        let parts = lock(&self.parts);
        let Some(push) = parts.pushes.iter().chain(&parts.fallbacks).find(|push| push.setup.name == peer) else {
            let name = peer.escape_debug();
            if parts.peers.iter().any(|p| p.setup.name == peer) {
                return Err(Failure::usage(what, format!("the peer '{name}' is a node without an rsync daemon")));
            }
            return Err(Failure::usage(what, format!("there is no peer named '{name}'")).help("see: pleach status"));
        };
        push.inbox.send(PushEvent::Command(command)).map_err(|_| Failure::done(what, "its task is ending"))
    }

    /// `pleach push`.
    pub(super) async fn push(&self, peer: &str, dry_run: bool, replies: &Replies) -> Result<(), Failure> {
        let (rows, mut told) = channel(ROWS_MAX);
        let (done, ended) = oneshot::channel();
        self.tell_push("push", peer, PushCommand::Check { dry_run, reply: Asked { rows, done } })?;
        while let Some(row) = told.recv().await {
            // A client that is gone cancels this.
            replies.send(Reply::Row(row)).await.ok();
        }
        ended.await.unwrap_or_else(|_| Err(Failure::done("push", "it was stopped or paused meanwhile")))
    }

    /// `pleach approve --peer`.
    pub(super) async fn approve_push(&self, peer: &str) -> Result<(), Failure> {
        let (done, ended) = oneshot::channel();
        self.tell_push("approve", peer, PushCommand::Approve(done))?;
        ended.await.unwrap_or_else(|_| Err(Failure::done("approve", "it was stopped or paused meanwhile")))
    }
}
