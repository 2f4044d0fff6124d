//! What the control socket asks of the node, carried out.

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::{DateTime, SecondsFormat};
use pleach_protocol::entry::{Hash, Value as Content};
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_store::tree::{Conflict, Kept, Version};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::{Agent, Parts};
use crate::control::{Handler, Handling, Keep, RawPath, Replies, Reply, Request, path_field};
use crate::failure::Failure;
use crate::machine::{lock, set_flag};
use crate::owner::{self, Command, CommandError, Event, LOG_LINES_MAX, LogLine, Outstanding, WaitHandle};
use crate::peer::{PeerEvent, PeerState, PeerStatus};

/// How often a journal that is followed is looked at.
const FOLLOW: Duration = Duration::from_millis(100);
/// How often a wait without a limit says for what. Source: CONTRACT.md, `wait`.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// How long a closed tree rests before it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Things that a wait names at its end.
const NAMED_MAX: usize = 10;

/// A tree as commands address it.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) name: String,
    path: PathBuf,
    inbox: Sender<Event>,
}

impl Handler for Agent {
    fn handle(self: Arc<Self>, request: Request, replies: Replies) -> Handling {
        Box::pin(async move {
            let what = request.name();
            match request {
                Request::Status => {
                    send(&replies, self.status()).await;
                    Ok(())
                }
                Request::Wait { tree, timeout_ms } => self.wait(tree.as_deref(), timeout_ms, &replies).await,
                Request::Log { tree, follow, since } => self.log(tree.as_deref(), follow, since, &replies).await,
                Request::Problems { tree } => self.problems(tree.as_deref(), &replies).await,
                Request::Conflicts { tree } => {
                    for target in self.targets(what, tree.as_deref())? {
                        let top = TreePath::ROOT;
                        let found = target.ask(what, |reply| Command::Conflicts { top, reply }).await?;
                        for conflict in &found {
                            send(&replies, conflict_row(&target.name, conflict)).await;
                        }
                    }
                    Ok(())
                }
                Request::Resolve { path, keep, version } => {
                    let (target, top) = self.locate(what, &path)?;
                    let kept = match keep {
                        Keep::Current => Kept::Current,
                        Keep::Vaulted => Kept::Vaulted(version),
                    };
                    target.ask(what, |reply| Command::Resolve { top, kept, reply }).await.map(drop)
                }
                Request::Versions { path } => {
                    let (target, top) = self.locate(what, &path)?;
                    for version in target.ask(what, |reply| Command::Versions { top, reply }).await? {
                        send(&replies, version_row(&target.name, &version)).await;
                    }
                    Ok(())
                }
                Request::Restore { path, version, to } => {
                    let (target, top) = self.locate(what, &path)?;
                    let to = to.map(|path| path.as_path().to_path_buf());
                    target.ask(what, |reply| Command::Restore { top, version, to, reply }).await.map(drop)
                }
                Request::Rescan { tree } => {
                    for target in self.targets(what, tree.as_deref())? {
                        target.ask(what, |reply| Command::Rescan { reply }).await?;
                    }
                    Ok(())
                }
                Request::Pause { tree, peer } => self.pause(what, true, tree.as_deref(), peer.as_deref()).await,
                Request::Resume { tree, peer } => self.pause(what, false, tree.as_deref(), peer.as_deref()).await,
                Request::Push { peer, dry_run } => self.push(&peer, dry_run, &replies).await,
                Request::Approve { tree, peer } => self.approve(tree.as_deref(), peer.as_deref()).await,
                Request::Forget { tree, peer } => self.forget(tree.as_deref(), peer.as_deref(), &replies).await,
            }
        })
    }

    fn node(&self) -> String {
        self.us.name.clone()
    }
}

impl Target {
    /// Asks the tree's owner.
    pub(super) async fn ask<T>(
        &self,
        what: &str,
        command: impl FnOnce(owner::Reply<T>) -> Command,
    ) -> Result<T, Failure> {
        self.ask_owner(command).await.map_err(|error| self.failure(what, &error))
    }

    async fn ask_owner<T>(&self, command: impl FnOnce(owner::Reply<T>) -> Command) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        let gone = || CommandError::Closed("it is not in the config any more".to_owned());
        self.inbox.send(Event::Command(command(reply))).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    fn failure(&self, what: &str, error: &CommandError) -> Failure {
        let failure = Failure::done(what, format!("tree {}: {error}", self.name));
        match error {
            CommandError::Closed(reason) if reason.contains("not the directory") || reason.contains("older") => {
                failure.help(format!("where it was replaced on purpose: pleach approve --tree {}", self.name))
            }
            _ => failure,
        }
    }
}

impl Agent {
    /// The trees that are meant: one by its name, or all.
    pub(super) fn targets(&self, what: &str, name: Option<&str>) -> Result<Vec<Target>, Failure> {
        let parts = lock(&self.parts);
        let meant = parts.trees.iter().filter(|o| name.is_none_or(|name| o.name == name));
        let found: Vec<Target> =
            meant.map(|o| Target { name: o.name.clone(), path: o.path.clone(), inbox: o.inbox.clone() }).collect();
        match name {
            Some(name) if found.is_empty() => {
                let known: Vec<&str> = parts.trees.iter().map(|o| o.name.as_str()).collect();
                Err(Failure::usage(what, format!("there is no tree named '{}'", name.escape_debug()))
                    .help(format!("the trees are: {}", known.join(", "))))
            }
            _ => Ok(found),
        }
    }

    /// The tree that a path lies in, and the path there.
    fn locate(&self, what: &str, path: &RawPath) -> Result<(Target, TreePath), Failure> {
        use std::os::unix::ffi::OsStrExt;
        let given = path.as_path();
        // The way there may lead through links that the config does not name.
        let real = given.parent().and_then(|p| std::fs::canonicalize(p).ok()).zip(given.file_name());
        let real = real.map(|(parent, name)| parent.join(name));
        for target in self.targets(what, None)? {
            let root = std::fs::canonicalize(&target.path).unwrap_or_else(|_| target.path.clone());
            let beneath = given.strip_prefix(&target.path).ok();
            let beneath = beneath.or_else(|| real.as_deref().and_then(|real: &Path| real.strip_prefix(&root).ok()));
            let Some(beneath) = beneath else { continue };
            let top = match beneath.as_os_str().as_bytes() {
                b"" => TreePath::ROOT,
                name => TreePath::parse(name)
                    .map_err(|error| Failure::usage(what, format!("{}: {error}", given.display())))?,
            };
            return Ok((target, top));
        }
        Err(Failure::usage(what, format!("{} lies in no tree", given.display())).help("see the trees: pleach status"))
    }

    async fn wait(&self, tree: Option<&str>, timeout_ms: Option<u64>, replies: &Replies) -> Result<(), Failure> {
        let targets = self.targets("wait", tree)?;
        let limit = timeout_ms.map(|ms| Instant::now() + Duration::from_millis(ms));
        let outstanding: Vec<(String, Outstanding)> =
            targets.iter().map(|t| (t.name.clone(), Arc::new(Mutex::new(vec!["its turn".to_owned()])))).collect();
        let all = async {
            for (target, (_, outstanding)) in targets.iter().zip(&outstanding) {
                self.wait_for(target, outstanding).await?;
            }
            Ok(())
        };
        let mut all = std::pin::pin!(all);
        let mut says = interval_at(Instant::now() + SAY_EVERY, SAY_EVERY);
        says.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ended = &mut all => return ended,
                () = async { match limit { Some(at) => tokio::time::sleep_until(at).await, None => std::future::pending().await } } => {
                    let failure = Failure::done("wait", "not everything is everywhere in time");
                    return Err(words(&outstanding).into_iter().fold(failure, Failure::help));
                }
                _ = says.tick() => {
                    let text = format!("waiting for {}", words(&outstanding).join("; "));
                    // A client that is gone cancels this.
                    replies.send(Reply::Say(text)).await.ok();
                }
            }
        }
    }

    /// One tree's part of a wait; a tree that is closed is asked again until it is open.
    async fn wait_for(&self, target: &Target, outstanding: &Outstanding) -> Result<(), Failure> {
        loop {
            let paused = self.paused_peer(&target.name);
            if let Some(peer) = paused {
                return Err(Failure::done("wait", format!("tree {}: the peer {peer} is paused", target.name))
                    .help(format!("go on with: pleach resume --peer {peer}")));
            }
            let paused_there = lock(&self.parts).peers.iter().find_map(|peer| {
                let paused = lock(&peer.status).state == PeerState::Paused;
                (paused && peer.setup.trees.contains(&target.name)).then(|| peer.setup.name.clone())
            });
            if let Some(peer) = paused_there {
                return Err(Failure::done("wait", format!("tree {}: this node is paused on {peer}", target.name))
                    .help(format!("go on, there, with: pleach resume --peer {}", self.us.name)));
            }
            let (handle, ended) = WaitHandle::new(Arc::clone(outstanding));
            let asked = target.inbox.send(Event::Command(Command::Wait(handle)));
            let result = match asked {
                Ok(()) => ended.await.unwrap_or_else(|_| Err(CommandError::Closed("it was closed".to_owned()))),
                Err(_) => Err(CommandError::Failed("it is not in the config any more".to_owned())),
            };
            match result {
                Ok(()) => {
                    lock(outstanding).clear();
                    return Ok(());
                }
                Err(CommandError::Closed(reason)) => *lock(outstanding) = vec![reason],
                Err(error) => {
                    return Err(target.failure("wait", &error).help("go on with: pleach resume"));
                }
            }
            sleep(ASK_AGAIN).await;
        }
    }

    /// A peer of a tree that somebody paused here.
    fn paused_peer(&self, tree: &str) -> Option<String> {
        let parts = lock(&self.parts);
        let node = parts.peers.iter().find(|p| p.paused && p.setup.trees.iter().any(|t| t == tree));
        let daemon = || parts.pushes.iter().find(|p| p.paused && p.setup.tree == tree);
        node.map(|p| p.setup.name.clone()).or_else(|| daemon().map(|p| p.setup.name.clone()))
    }

    async fn log(
        &self,
        tree: Option<&str>,
        follow: bool,
        since: Option<u64>,
        replies: &Replies,
    ) -> Result<(), Failure> {
        let targets = self.targets("log", tree)?;
        let mut next: Vec<u64> = targets.iter().map(|_| since.unwrap_or(0).max(1)).collect();
        loop {
            let mut idle = true;
            for (target, next) in targets.iter().zip(&mut next) {
                let since = *next;
                let lines = match target.ask_owner(|reply| Command::Log { since, reply }).await {
                    Ok(lines) => lines,
                    Err(CommandError::Closed(_)) if follow => continue,
                    Err(error) => return Err(target.failure("log", &error)),
                };
                idle &= lines.len() < LOG_LINES_MAX;
                for line in &lines {
                    *next = line.0 + 1;
                    send(replies, log_row(&target.name, line)).await;
                }
            }
            match (idle, follow) {
                (true, false) => return Ok(()),
                (true, true) => sleep(FOLLOW).await,
                (false, _) => {}
            }
        }
    }

    async fn problems(&self, tree: Option<&str>, replies: &Replies) -> Result<(), Failure> {
        for target in self.targets("problems", tree)? {
            match target.ask_owner(|reply| Command::Problems { reply }).await {
                Ok(found) => {
                    for (path, reason) in found {
                        let mut row = Map::from_iter([("tree".to_owned(), json!(target.name))]);
                        row.extend([path_field("path", path.as_bytes()), ("reason".to_owned(), json!(reason))]);
                        send(replies, Value::Object(row)).await;
                    }
                    self.owed(&target, replies).await;
                }
                // The tree itself is the problem.
                Err(error) => {
                    send(replies, json!({"tree": target.name, "path": "", "reason": error.to_string()})).await;
                }
            }
        }
        for row in self.hook_errors(tree) {
            send(replies, row).await;
        }
        for (peer, reason) in self.peer_errors() {
            send(replies, json!({"peer": peer, "reason": reason})).await;
        }
        Ok(())
    }

    /// What is wrong with peers, by name.
    fn peer_errors(&self) -> Vec<(String, String)> {
        let parts = lock(&self.parts);
        let nodes = parts.peers.iter().map(|p| (&p.setup.name, &p.status));
        let daemons = parts.pushes.iter().chain(&parts.fallbacks).map(|p| (&p.setup.name, &p.status));
        let error = |(name, status): (&String, &Mutex<PeerStatus>)| Some((name.clone(), lock(status).error.clone()?));
        nodes.chain(daemons).map(|(name, status)| (name, &**status)).filter_map(error).collect()
    }

    /// The paths of a tree that daemons could not be given.
    async fn owed(&self, target: &Target, replies: &Replies) {
        let Ok(owed) = target.ask_owner(|reply| Command::Owed { reply }).await else { return };
        for (peer, path, reason) in owed {
            let mut row = path_row(&target.name, &path);
            row.extend([("peer".to_owned(), json!(peer)), ("reason".to_owned(), json!(reason))]);
            send(replies, Value::Object(row)).await;
        }
    }

    async fn pause(&self, what: &str, paused: bool, tree: Option<&str>, peer: Option<&str>) -> Result<(), Failure> {
        if let Some(name) = peer {
            self.pause_peer(what, paused, name)?;
        }
        if tree.is_some() || peer.is_none() {
            for target in self.targets(what, tree)? {
                target.ask(what, |reply| Command::Pause { paused, reply }).await?;
            }
        }
        Ok(())
    }

    fn pause_peer(&self, what: &str, paused: bool, name: &str) -> Result<(), Failure> {
        let mut parts = lock(&self.parts);
        let Parts { peers, pushes, .. } = &mut *parts;
        let node = peers.iter_mut().find(|p| p.setup.name == name);
        let daemon = pushes.iter_mut().find(|p| p.setup.name == name);
        if node.is_none() && daemon.is_none() {
            return Err(Failure::usage(what, format!("there is no peer named '{}'", name.escape_debug())));
        }
        let file = self.peer_pause(name);
        set_flag(&file, paused).map_err(|error| Failure::done(what, format!("{}: {error}", file.display())))?;
        if let Some(peer) = node {
            peer.paused = paused;
            // A task that is stopping is as good as paused.
            peer.inbox.send(PeerEvent::Pause(paused)).ok();
        }
        if let Some(daemon) = daemon {
            daemon.pause(paused);
        }
        Ok(())
    }

    async fn approve(&self, tree: Option<&str>, peer: Option<&str>) -> Result<(), Failure> {
        if let Some(peer) = peer {
            return self.approve_push(peer).await;
        }
        let mut done = 0;
        let mut refused = None;
        for target in self.targets("approve", tree)? {
            match target.ask_owner(|reply| Command::Approve { reply }).await {
                Ok(()) => done += 1,
                Err(error) => refused = Some(target.failure("approve", &error)),
            }
        }
        match refused {
            Some(failure) if done == 0 => Err(failure),
            _ => Ok(()),
        }
    }
}

pub(super) async fn send(replies: &Replies, row: Value) {
    // A client that is gone cancels the request.
    replies.send(Reply::Row(row)).await.ok();
}

/// What trees still wait for, a line each.
fn words(outstanding: &[(String, Outstanding)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (tree, left) in outstanding {
        lines.extend(lock(left).iter().map(|what| format!("tree {tree}: {what}")));
    }
    lines.truncate(NAMED_MAX);
    lines
}

fn hex(hash: Option<Hash>) -> Value {
    hash.map_or(Value::Null, |hash| blake3::Hash::from_bytes(hash.0).to_hex().as_str().into())
}

/// RFC 3339, in UTC.
fn time_text(time: Time) -> String {
    let shown = DateTime::from_timestamp(time.secs, time.nanos).unwrap_or_default();
    shown.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

fn path_row(tree: &str, path: &TreePath) -> Map<String, Value> {
    let mut row = Map::from_iter([("tree".to_owned(), json!(tree))]);
    row.extend([path_field("path", path.as_bytes())]);
    row
}

pub(super) fn conflict_row(tree: &str, conflict: &Conflict) -> Value {
    let mut row = path_row(tree, &conflict.path);
    row.extend([
        ("version".to_owned(), json!(conflict.version)),
        ("node".to_owned(), json!(conflict.node)),
        ("time".to_owned(), json!(time_text(conflict.time))),
        ("size".to_owned(), json!(conflict.size)),
        ("hash".to_owned(), hex(conflict.hash)),
    ]);
    Value::Object(row)
}

fn version_row(tree: &str, version: &Version) -> Value {
    let mut row = path_row(tree, &version.path);
    row.extend([
        ("version".to_owned(), json!(version.version)),
        ("reason".to_owned(), json!(version.reason)),
        ("time".to_owned(), json!(time_text(version.time))),
        ("size".to_owned(), json!(version.size)),
        ("hash".to_owned(), hex(version.hash)),
    ]);
    if let Content::Symlink { target } = &version.state.value {
        row.extend([path_field("target", target)]);
    }
    Value::Object(row)
}

fn log_row(tree: &str, (seq, line): &LogLine) -> Value {
    let mut row = path_row(tree, &line.path);
    match &line.from {
        Some(from) => row.extend([path_field("from", from.as_bytes())]),
        None => row.extend([("from".to_owned(), Value::Null)]),
    }
    row.extend([
        ("seq".to_owned(), json!(seq)),
        ("time".to_owned(), json!(time_text(line.time))),
        ("op".to_owned(), json!(line.op)),
        ("node".to_owned(), json!(line.node)),
        ("size".to_owned(), json!(line.size)),
        ("hash".to_owned(), hex(line.hash)),
        ("was".to_owned(), hex(line.was)),
    ]);
    Value::Object(row)
}
