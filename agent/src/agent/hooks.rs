//! The agent's hooks: a task each.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pleach_store::ignore::IgnoreRules;
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Agent, Parts};
use crate::config::Config;
use crate::hook::{Hook, HookEvent, HookSetup, HookSource, HookState, HookStatus};
use crate::machine::lock;
use crate::owner::{HookSpec, Owner, TreeStatus};

/// How long a task may take to end what it runs.
const END_MAX: Duration = Duration::from_secs(2);

/// One hook's task, as the agent knows it.
#[derive(Debug)]
pub(super) struct HookHandle {
    setup: HookSetup,
    inbox: UnboundedSender<HookEvent>,
    status: Arc<Mutex<HookStatus>>,
    task: JoinHandle<()>,
}

impl HookHandle {
    /// Ends the task, and with it what it runs.
    pub(super) async fn end(mut self) {
        self.inbox.send(HookEvent::Stop).ok();
        if timeout(END_MAX, &mut self.task).await.is_err() {
            self.task.abort();
        }
    }

    /// Its row of the status, from all trees and how they are doing.
    pub(super) fn row(&self, trees: &[Owner], statuses: &[TreeStatus]) -> Value {
        let config = &self.setup.config;
        let tree = trees.iter().position(|owner| owner.name == config.tree).and_then(|at| statuses.get(at));
        let status = lock(&self.status).clone();
        let on: Vec<&str> = config.on.iter().map(|on| on.word()).collect();
        let state = match status.state {
            HookState::Ok => "ok",
            HookState::Running => "running",
            HookState::Retrying => "retrying",
        };
        let pending = tree.and_then(|tree| tree.hooks.get(&self.setup.id)).copied().unwrap_or(0);
        json!({
            "tree": config.tree, "on": on, "runs": config.run.to_string(), "state": state, "error": status.error,
            "pending": pending,
        })
    }

    /// What is wrong with it, as a problem of its tree.
    fn problem(&self) -> Option<Value> {
        let config = &self.setup.config;
        let error = lock(&self.status).error.clone()?;
        let on: Vec<&str> = config.on.iter().map(|on| on.word()).collect();
        let reason = format!("the hook on {} ({}) failed: {error}", on.join(", "), config.run);
        Some(json!({"tree": config.tree, "path": "", "reason": reason}))
    }
}

/// The hooks of a config.
pub(super) fn hook_setups(config: &Config, state: &Path) -> Vec<HookSetup> {
    let setup = |hook: &crate::hook::HookConfig| {
        let tree = config.trees.iter().find(|tree| tree.name == hook.tree)?;
        let id = hook.id();
        let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
        Some(HookSetup {
            id,
            config: hook.clone(),
            root: tree.path.clone(),
            node: config.name.clone(),
            note: state.join("hooks").join(format!("{}.{hex}", tree.name)),
        })
    };
    config.hooks.iter().filter_map(setup).collect()
}

/// Those of a tree, as its owner knows them.
pub(super) fn hook_specs(setups: &[HookSetup], tree: &str) -> Vec<HookSpec> {
    let spec = |setup: &HookSetup| {
        let HookSetup { id, config, .. } = setup;
        let paths = (!config.paths.is_empty()).then(|| IgnoreRules::new(&config.paths).ok()).flatten();
        HookSpec { id: *id, on: config.on.clone(), paths }
    };
    setups.iter().filter(|setup| setup.config.tree == tree).map(spec).collect()
}

fn source_of(trees: &[Owner], setup: &HookSetup) -> Option<HookSource> {
    let owner = trees.iter().find(|owner| owner.name == setup.config.tree)?;
    Some(HookSource { owner: owner.inbox.clone(), news: owner.hook_news.clone() })
}

impl Agent {
    /// What is wrong with the hooks of a tree, or of all.
    pub(super) fn hook_errors(&self, tree: Option<&str>) -> Vec<Value> {
        let parts = lock(&self.parts);
        let named = parts.hooks.iter().filter(|hook| tree.is_none_or(|tree| hook.setup.config.tree == tree));
        named.filter_map(HookHandle::problem).collect()
    }

    /// Makes the tasks what the config says; `changed`: trees with a new owner.
    pub(super) fn adapt_hooks(&self, parts: &mut Parts, setups: Vec<HookSetup>, changed: &BTreeSet<String>) {
        let all = std::mem::take(&mut parts.hooks).into_iter();
        let (mut old, mut gone): (Vec<_>, Vec<_>) = all.partition(|hook| setups.contains(&hook.setup));
        for hook in &gone {
            // One that ended needs no telling.
            hook.inbox.send(HookEvent::Stop).ok();
        }
        for setup in setups {
            let Some(source) = source_of(&parts.trees, &setup) else { continue };
            if let Some(at) = old.iter().position(|hook| hook.setup == setup) {
                let hook = old.swap_remove(at);
                if changed.contains(&setup.config.tree) {
                    hook.inbox.send(HookEvent::Source(source)).ok();
                }
                parts.hooks.push(hook);
                continue;
            }
            let (inbox, events) = unbounded_channel();
            let status = Arc::new(Mutex::new(HookStatus::default()));
            let hook = Hook::new(setup.clone(), source, events, Arc::clone(&status));
            // The same hook with other times: what runs for it ends first.
            let before = gone.iter().position(|hook| hook.setup.note == setup.note).map(|at| gone.swap_remove(at).task);
            let task = tokio::spawn(async move {
                if let Some(before) = before {
                    before.await.ok();
                }
                hook.run().await;
            });
            parts.hooks.push(HookHandle { setup, inbox, status, task });
        }
    }
}
