//! Hooks: a program, or a POST, for what happened in a tree.
//!
//! A task for each hook. The tree's owner keeps the events and the place that was reached; the task runs the
//! hook for a batch of them and tells the owner once it went well. Until then the same batch is run again: each
//! event is told at least once, in order, whatever ends the agent.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pleach_store::rows::HookOn;
use pleach_store::tree::HookId;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use crate::machine::lock;
use crate::orphan;
use crate::owner::{Event, HookNews};

mod command;
mod post;
mod work;

pub use post::Url;

use work::Worker;

/// What a hook runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HookRun {
    /// A program and its arguments.
    Command(Vec<String>),
    /// A POST.
    Url(Url),
}

impl std::fmt::Display for HookRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command(line) => f.write_str(&line.join(" ")),
            Self::Url(url) => url.fmt(f),
        }
    }
}

/// One `[[hook]]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HookConfig {
    /// The tree.
    pub tree: String,
    /// What it runs for.
    pub on: BTreeSet<HookOn>,
    /// Of which paths; none: of all.
    pub paths: Vec<String>,
    /// What it runs.
    pub run: HookRun,
    /// How long nothing more may come before it runs.
    pub debounce: Duration,
    /// How long a run may take.
    pub timeout: Duration,
}

impl HookConfig {
    /// What tells it from the other hooks of its tree, also after a restart: all but its times.
    #[must_use]
    pub fn id(&self) -> HookId {
        let mut hasher = blake3::Hasher::new();
        let mut part = |text: &str| {
            hasher.update(text.as_bytes());
            hasher.update(&[0]);
        };
        self.on.iter().for_each(|on| part(on.word()));
        part("");
        self.paths.iter().for_each(|path| part(path));
        part("");
        match &self.run {
            HookRun::Command(line) => line.iter().for_each(|word| part(word)),
            HookRun::Url(url) => part(&format!("\0{url}")),
        }
        let mut id = HookId::default();
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        id
    }
}

/// A hook, as its task knows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HookSetup {
    /// What tells it from others.
    pub id: HookId,
    /// What the config says.
    pub config: HookConfig,
    /// The tree's root.
    pub root: PathBuf,
    /// This node's name.
    pub node: String,
    /// Where a running program is noted.
    pub note: PathBuf,
}

/// The owner of the tree: where to ask, and how far its events go; none while the tree is closed.
#[derive(Clone, Debug)]
pub struct HookSource {
    /// The owner's inbox.
    pub owner: Sender<Event>,
    /// How far there are events.
    pub news: watch::Receiver<Option<HookNews>>,
}

/// How a hook is doing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HookState {
    /// It was told all, or waits for more.
    #[default]
    Ok,
    /// It runs.
    Running,
    /// It failed and will be run again.
    Retrying,
}

/// The same, for whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct HookStatus {
    /// What it does now.
    pub state: HookState,
    /// Why it failed last, until it goes well.
    pub error: Option<String>,
}

/// What a hook's task is told.
#[derive(Debug)]
pub enum HookEvent {
    /// The tree has a new owner.
    Source(HookSource),
    /// The node stops, or the hook is not in the config any more.
    Stop,
}

/// The task's state. See the module.
#[derive(Debug)]
pub struct Hook {
    setup: Arc<HookSetup>,
    source: HookSource,
    inbox: UnboundedReceiver<HookEvent>,
    status: Arc<Mutex<HookStatus>>,
}

impl Hook {
    /// A hook's task; it does nothing before [`Hook::run`].
    #[must_use]
    pub fn new(
        setup: HookSetup,
        source: HookSource,
        inbox: UnboundedReceiver<HookEvent>,
        status: Arc<Mutex<HookStatus>>,
    ) -> Self {
        Self { setup: Arc::new(setup), source, inbox, status }
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self) {
        orphan::end_noted(&self.setup.note);
        loop {
            lock(&self.status).state = HookState::Ok;
            let worker = Worker::new(Arc::clone(&self.setup), self.source.clone(), Arc::clone(&self.status));
            // Dropping the work ends what runs; its batch was not told and is run again.
            tokio::select! {
                biased;
                event = self.inbox.recv() => match event {
                    Some(HookEvent::Source(source)) => self.source = source,
                    Some(HookEvent::Stop) | None => return,
                },
                never = worker.go() => match never {},
            }
        }
    }
}
