//! Legacy rsync daemons: the changes of one tree, pushed by Debian's `rsync` (DESIGN.md §8).
//!
//! A task for each daemon. The tree's owner plans from its journal what is to be there and keeps the
//! place that was reached; the task has `rsync` do it and tells the owner how it ended. Pushes name
//! each path; nothing is ever deleted there that no plan names.

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::bandwidth::BandwidthLimit;
use crate::failure::Failure;
use crate::machine::lock;
use crate::orphan;
use crate::owner::{Applied, Event, PushAsk};
use crate::peer::{PeerState, PeerStatus};

mod carry;
mod child;
pub mod exit;
mod gate;
mod item;
mod options;
mod rules;
mod schedule;
mod target;
mod work;

pub use gate::Gate;
pub use options::check_options;
pub(crate) use orphan::end_noted;
pub use schedule::Schedule;
pub use target::Target;

use work::Worker;

/// What the config says of a daemon, beside its name and its tree.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PushConfig {
    /// Where.
    pub target: Target,
    /// The file with the password, as rsync takes it.
    pub password_file: Option<PathBuf>,
    /// When everything is checked.
    pub full_check: Option<Schedule>,
    /// Whether a full check deletes there what the tree does not have.
    pub mirror: bool,
    /// How long nothing may come or go.
    pub timeout: Duration,
    /// More options for rsync, checked.
    pub options: Vec<String>,
}

/// A peer's daemon that is pushed to while its agent is away, as the config has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FallbackConfig {
    /// The daemon.
    pub push: PushConfig,
    /// How long the agent must be away.
    pub after: Duration,
}

/// The same as its task knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fallback {
    /// How long the agent must be away.
    pub after: Duration,
    /// Opens then.
    pub gate: Arc<Gate>,
    /// This node's name: in the names of what is displaced there.
    pub node: String,
    /// Where lists of what is pushed are written first.
    pub lists: PathBuf,
}

/// A daemon, as its task knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PushSetup {
    /// Its local name.
    pub name: String,
    /// The tree that it takes.
    pub tree: String,
    /// The tree's root.
    pub root: PathBuf,
    /// The ignore rules of the tree's config, summed up.
    pub rules: [u8; 16],
    /// What the config says of it.
    pub config: PushConfig,
    /// How fast it is sent to.
    pub bandwidth: BandwidthLimit,
    /// Where a running rsync is noted.
    pub note: PathBuf,
    /// An empty directory.
    pub empty: PathBuf,
    /// Pushed to only while the agent there is away; none for a daemon that is a peer of its own.
    pub fallback: Option<Fallback>,
}

/// The owner of the tree: where to ask, and how far its disk shows the journal; none while nothing is to be pushed.
#[derive(Clone, Debug)]
pub struct PushSource {
    /// The owner's inbox.
    pub owner: Sender<Event>,
    /// The journal's place up to which the disk shows it.
    pub applied: watch::Receiver<Option<Applied>>,
}

/// What a person asks of a daemon's task.
#[derive(Debug)]
pub enum PushCommand {
    /// A full check now; `dry_run`: only say what it would do.
    Check {
        /// Whether nothing is done.
        dry_run: bool,
        /// Where the lines and the end go.
        reply: Asked,
    },
    /// The first check that deletes what was not pushed may go on.
    Approve(oneshot::Sender<Result<(), Failure>>),
}

/// Where the answer to a check goes.
#[derive(Debug)]
pub struct Asked {
    /// A row for each path.
    pub rows: tokio::sync::mpsc::Sender<serde_json::Value>,
    /// The end.
    pub done: oneshot::Sender<Result<(), Failure>>,
}

/// What a daemon's task is told.
#[derive(Debug)]
pub enum PushEvent {
    /// Somebody paused it, or ended the pause.
    Pause(bool),
    /// The tree has a new owner.
    Source(PushSource),
    /// A person asks for something.
    Command(PushCommand),
    /// The node stops, or the daemon is not in the config any more.
    Stop,
}

/// The task's state. See the module.
#[derive(Debug)]
pub struct Push {
    setup: Arc<PushSetup>,
    source: PushSource,
    inbox: UnboundedReceiver<PushEvent>,
    status: Arc<Mutex<PeerStatus>>,
    paused: bool,
}

impl Push {
    /// A daemon's task; it does nothing before [`Push::run`].
    #[must_use]
    pub fn new(
        setup: PushSetup,
        source: PushSource,
        inbox: UnboundedReceiver<PushEvent>,
        status: Arc<Mutex<PeerStatus>>,
        paused: bool,
    ) -> Self {
        Self { setup: Arc::new(setup), source, inbox, status, paused }
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self) {
        end_noted(&self.setup.note);
        let fallback = self.setup.fallback.clone();
        let (orders, mut commands) = unbounded_channel();
        loop {
            if self.paused {
                show(&self.setup.name, &self.status, PeerState::Paused, None);
                let ask = PushAsk::Failing(Some("the peer is paused".to_owned()));
                // An owner that is gone waits for nobody.
                self.source.owner.send(Event::Push { peer: self.setup.name.clone(), ask }).ok();
                match self.inbox.recv().await.map(|event| self.take(event)) {
                    Some(true) => continue,
                    _ => return,
                }
            }
            if let Some(Fallback { after, gate, .. }) = &fallback {
                show(&self.setup.name, &self.status, PeerState::Connecting, None);
                tokio::select! {
                    biased;
                    event = self.inbox.recv() => match event.map(|event| self.take(event)) {
                        Some(true) => continue,
                        _ => return,
                    },
                    () = gate.opened(*after) => tracing::info!(peer = self.setup.name, "its fallback takes over"),
                }
            }
            let back = async {
                match &fallback {
                    Some(fallback) => fallback.gate.closed().await,
                    None => std::future::pending().await,
                }
            };
            let mut back = std::pin::pin!(back);
            let worker =
                Worker::new(Arc::clone(&self.setup), self.source.clone(), Arc::clone(&self.status), &mut commands);
            let mut work = std::pin::pin!(worker.go());
            // Dropping the work ends its rsync; what was not noted is done again.
            let event = loop {
                tokio::select! {
                    biased;
                    () = &mut back => break None,
                    event = self.inbox.recv() => match event {
                        // Never closed: this function holds the other end.
                        Some(PushEvent::Command(command)) => drop(orders.send(command)),
                        event => break Some(event),
                    },
                    never = &mut work => match never {},
                }
            };
            let Some(event) = event else {
                tracing::info!(peer = self.setup.name, "its agent is back");
                continue;
            };
            if event.is_none_or(|event| !self.take(event)) {
                return;
            }
        }
    }

    /// Takes an event; false at a stop.
    fn take(&mut self, event: PushEvent) -> bool {
        match event {
            PushEvent::Stop => return false,
            PushEvent::Pause(paused) => {
                self.paused = paused;
                if !paused {
                    show(&self.setup.name, &self.status, PeerState::Connecting, None);
                }
            }
            PushEvent::Source(source) => self.source = source,
            PushEvent::Command(command) => {
                let why = match self.setup.fallback {
                    Some(_) => "its agent is there, or not away for long: nothing goes to its fallback",
                    None => "the peer is paused",
                };
                command.refuse(why);
            }
        }
        true
    }
}

impl PushCommand {
    fn refuse(self, why: &str) {
        // Whoever went away needs no answer.
        match self {
            Self::Check { reply, .. } => drop(reply.done.send(Err(Failure::done("push", why)))),
            Self::Approve(reply) => drop(reply.send(Err(Failure::done("approve", why)))),
        }
    }
}

fn show(peer: &str, status: &Mutex<PeerStatus>, state: PeerState, error: Option<String>) {
    let mut status = lock(status);
    if (status.state, &status.error) != (state, &error) {
        match &error {
            Some(reason) => tracing::warn!(peer, ?state, reason, "push"),
            None => tracing::info!(peer, ?state, "push"),
        }
    }
    if state == PeerState::Connected {
        status.seen = Some(Instant::now());
    }
    (status.state, status.error) = (state, error);
}
