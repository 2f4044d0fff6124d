//! What a daemon's task does, one thing after the other: changes, what is owed, full checks, commands.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_store::rows::PushRow;
use pleach_store::tree::PushPlan;
use serde_json::json;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, sleep_until, timeout};

use super::carry::{Carrier, list, probe};
use super::child::PARTIAL_DIR;
use super::{Asked, PushCommand, PushSetup, PushSource, show};
use crate::control::path_field;
use crate::failure::Failure;
use crate::machine::{local, now};
use crate::owner::{Applied, CommandError, Event, PlanOf, PushAsk, PushPlace, Reply};
use crate::peer::{PeerState, PeerStatus};

/// What came is gathered until nothing came for so long, the second where more than so many changes wait: a burst, which
/// one more run of rsync would cost more than that wait …
const QUIET: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
const FEW_MAX: u64 = 8;
/// … at most for so long, the second where so many changes came by then.
const GATHER_MAX: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));
const BURST_MIN: u64 = 500;
/// The pause before another try is this part of the time that it failed …
const PAUSE_PART: u32 = 10;
/// … within these bounds; the second ones where the daemon refused.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
const REFUSED_PAUSE: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));
/// What is owed is tried again after so long, twice that the next time, at most the second.
const OWED_PAUSE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));
/// Paths found there that are looked up in one go.
const FOUND_MAX: usize = 2_000;
/// Paths that one check deletes at most; the next one goes on.
const MIRROR_MAX: usize = 100_000;
/// The longest sleep: what is due by the clock is looked at again.
const LOOK: Duration = Duration::from_secs(60);

/// Says why a push does not go on.
#[derive(Debug)]
pub(super) enum PushError {
    /// What rsync, or the daemon, said. `full`: there is no room there.
    Rsync { state: PeerState, why: String, full: bool },
    /// The tree is closed or gone.
    Tree(String),
    /// The tree does not do it.
    Refused(String),
}

impl PushError {
    pub(super) fn local(error: &io::Error) -> Self {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "rsync is not installed: apt-get install rsync".to_owned(),
            _ => format!("rsync cannot be run: {error}"),
        };
        Self::Rsync { state: PeerState::Refused, why, full: false }
    }

    fn why(&self) -> &str {
        match self {
            Self::Rsync { why, .. } | Self::Tree(why) | Self::Refused(why) => why,
        }
    }
}

impl From<CommandError> for PushError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Closed(why) => Self::Tree(why),
            CommandError::Failed(why) => Self::Refused(why),
        }
    }
}

/// See the module.
pub(super) struct Worker<'a> {
    setup: Arc<PushSetup>,
    source: PushSource,
    status: Arc<Mutex<PeerStatus>>,
    commands: &'a mut UnboundedReceiver<PushCommand>,
    place: Option<PushPlace>,
    began: Time,
    /// Whether the daemon answered since the last failure.
    answers: bool,
    failing: Option<Instant>,
    deletes_first: bool,
    /// Whether the daemon takes no names of what is missing: found out anew after each start.
    by_rules: bool,
    owed_due: Option<(Instant, Duration)>,
    /// Why the last check deleted nothing of what was not pushed, where it should have.
    held: Option<String>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        setup: Arc<PushSetup>,
        source: PushSource,
        status: Arc<Mutex<PeerStatus>>,
        commands: &'a mut UnboundedReceiver<PushCommand>,
    ) -> Self {
        Self {
            setup,
            source,
            status,
            commands,
            place: None,
            began: now(),
            answers: false,
            failing: None,
            deletes_first: false,
            by_rules: false,
            owed_due: None,
            held: None,
        }
    }

    /// Works for ever; whoever drops this ends what is under way.
    pub(super) async fn go(mut self) -> Infallible {
        loop {
            match self.round().await {
                Ok(()) => self.wait().await,
                Err(error) => self.fail(error).await,
            }
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> PushAsk) -> Result<T, PushError> {
        let (reply, answer) = oneshot::channel();
        let gone = || PushError::Tree("the tree is not in the config any more".to_owned());
        let event = Event::Push { peer: self.setup.name.clone(), ask: ask(reply) };
        self.source.owner.send(event).map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }

    fn applied(&mut self) -> Option<Applied> {
        *self.source.applied.borrow_and_update()
    }

    fn row(&self) -> PushRow {
        self.place.as_ref().map(|place| place.row.clone()).unwrap_or_default()
    }

    /// Does all that is due.
    async fn round(&mut self) -> Result<(), PushError> {
        if self.applied().is_none() {
            return Ok(());
        }
        if self.place.is_none() {
            let (target, rules) = (self.setup.config.target.to_string(), self.setup.rules);
            let place = self.ask(|reply| PushAsk::Open { target, rules, reply }).await?;
            self.owed_due = (place.owed > 0).then(|| (Instant::now(), OWED_PAUSE.0));
            self.place = Some(place);
        }
        self.push_changes().await?;
        if !self.answers {
            probe(&self.setup).await?;
        }
        if self.owed_due.is_some_and(|(at, _)| at <= Instant::now()) {
            self.push_owed().await?;
        }
        self.well();
        if self.next_check().is_some_and(|left| left.is_zero()) {
            self.check().await?;
        }
        self.well();
        Ok(())
    }

    /// Pushes what the journal says, to its end.
    async fn push_changes(&mut self) -> Result<(), PushError> {
        while let Some(applied) = self.applied()
            && applied.seq > self.row().seq
        {
            self.gather().await;
            self.push(PlanOf::Journal).await?;
        }
        Ok(())
    }

    /// The daemon has what it is to have.
    fn well(&mut self) {
        self.answers = true;
        self.failing = None;
        self.deletes_first = false;
        show(&self.setup.name, &self.status, PeerState::Connected, self.held.clone());
        self.tell_failing(None);
    }

    fn tell_failing(&self, why: Option<String>) {
        let event = Event::Push { peer: self.setup.name.clone(), ask: PushAsk::Failing(why) };
        // An owner that is gone waits for nobody.
        self.source.owner.send(event).ok();
    }

    /// Waits until something is to be done.
    async fn wait(&mut self) {
        let now = Instant::now();
        let mut left = self.next_check().unwrap_or(LOOK).min(LOOK);
        if let Some((at, _)) = self.owed_due {
            left = left.min(at.saturating_duration_since(now));
        }
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => self.obey(command).await,
            changed = self.source.applied.changed() => if changed.is_err() {
                // The tree's owner is gone: a new one is named soon.
                sleep(PAUSE.0).await;
            },
            () = sleep(left) => {}
        }
    }

    /// Shows what failed, and rests.
    async fn fail(&mut self, error: PushError) {
        let since = *self.failing.get_or_insert_with(Instant::now);
        self.answers = false;
        let mut bounds = PAUSE;
        match &error {
            PushError::Rsync { state, why, full } => {
                self.deletes_first = *full;
                if *state == PeerState::Refused {
                    bounds = REFUSED_PAUSE;
                }
                show(&self.setup.name, &self.status, *state, Some(why.clone()));
                self.tell_failing(Some(why.clone()));
            }
            PushError::Tree(why) | PushError::Refused(why) => {
                tracing::debug!(peer = self.setup.name, why, "nothing is pushed");
                self.place = None;
            }
        }
        let until = tokio::time::Instant::now() + (since.elapsed() / PAUSE_PART).clamp(bounds.0, bounds.1);
        tokio::select! {
            biased;
            Some(command) = self.commands.recv() => self.obey(command).await,
            () = sleep_until(until) => {}
        }
    }

    /// Waits for the end of a burst.
    async fn gather(&mut self) {
        let began = Instant::now();
        loop {
            let waiting = self.applied().map_or(0, |applied| applied.seq.saturating_sub(self.row().seq));
            let longest = if waiting >= BURST_MIN { GATHER_MAX.1 } else { GATHER_MAX.0 };
            if began.elapsed() >= longest {
                return;
            }
            let quiet = if waiting > FEW_MAX { QUIET.1 } else { QUIET.0 };
            match timeout(quiet, self.source.applied.changed()).await {
                Ok(Ok(())) => {}
                Err(_) if self.source.applied.borrow().is_some_and(|applied| !applied.quiet) => {}
                _ => return,
            }
        }
    }

    /// Plans and pushes once; gives where the next plan of the kind goes on.
    async fn push(&mut self, of: PlanOf) -> Result<Option<TreePath>, PushError> {
        let plan = self.ask(|reply| PushAsk::Plan { of, begin: true, reply }).await?;
        self.carry(plan).await
    }

    async fn carry(&mut self, plan: PushPlan) -> Result<Option<TreePath>, PushError> {
        let next = plan.next.clone();
        let (sent, deleted) = (plan.send.len(), plan.gone.len());
        let began = Instant::now();
        let done = Carrier::new(&self.setup, self.by_rules).carry(plan, self.deletes_first).await;
        self.by_rules = done.by_rules;
        if !done.result.owed.is_empty() && self.owed_due.is_none() {
            self.owed_due = Some((Instant::now() + OWED_PAUSE.0, OWED_PAUSE.0));
        }
        let result = Box::new(done.result);
        let place = self.ask(|reply| PushAsk::Done { result, reply }).await?;
        if place.owed == 0 {
            self.owed_due = None;
        }
        self.place = Some(place);
        if let Some(error) = done.error {
            return Err(error);
        }
        if sent + deleted > 0 {
            self.answers = true;
            let elapsed_ms = began.elapsed().as_millis();
            tracing::info!(peer = self.setup.name, sent, deleted, elapsed_ms, "pushed");
        }
        Ok(next)
    }

    async fn push_owed(&mut self) -> Result<(), PushError> {
        let mut after = None;
        loop {
            after = self.push(PlanOf::Owed(after)).await?;
            if after.is_none() {
                break;
            }
        }
        if let Some((at, pause)) = &mut self.owed_due {
            *pause = (*pause * 2).min(OWED_PAUSE.1);
            *at = Instant::now() + *pause;
        }
        Ok(())
    }

    /// How long until the next full check is due; none where there is none.
    fn next_check(&self) -> Option<Duration> {
        let schedule = self.setup.config.full_check.as_ref()?;
        let checked = self.place.as_ref()?.row.checked;
        let now = local(now());
        // The first one is the next since the start; one that was missed is made up for, but for those of a fallback:
        // while the agent is there, it sees to everything.
        let fresh = checked == Time::default() || self.setup.fallback.is_some() && checked < self.began;
        let after = local(if fresh { self.began } else { checked }).min(now);
        let at = schedule.next(after)?;
        Some((at - now).to_std().unwrap_or(Duration::ZERO))
    }

    /// A full check: all that the tree shows is there, nothing else that was pushed, and with `mirror` nothing else.
    async fn check(&mut self) -> Result<(), PushError> {
        tracing::info!(peer = self.setup.name, "a full check begins");
        for of in [PlanOf::Tree as fn(Option<TreePath>) -> PlanOf, PlanOf::LeftThere] {
            let mut after = None;
            loop {
                after = self.push(of(after)).await?;
                if after.is_none() {
                    break;
                }
                // Changes do not wait for a long check.
                self.push_changes().await?;
            }
        }
        self.held = if self.setup.config.mirror { self.mirror().await? } else { None };
        let row = Box::new(PushRow { checked: now(), ..self.row() });
        self.place = Some(self.ask(|reply| PushAsk::Note { row, reply }).await?);
        tracing::info!(peer = self.setup.name, "a full check ended");
        Ok(())
    }

    /// Deletes what is there and not in the tree, or says why not.
    async fn mirror(&mut self) -> Result<Option<String>, PushError> {
        let plan = match self.found_there().await {
            Ok(plan) => plan,
            // Another try would find the same: the next check says whether it does.
            Err(PushError::Refused(why)) => return Ok(Some(format!("mirror: {why}"))),
            Err(PushError::Rsync { state, why, .. }) if state != PeerState::Unreachable => {
                return Ok(Some(format!("mirror: what is there cannot be listed: {why}")));
            }
            Err(error) => return Err(error),
        };
        if self.row().approved || plan.gone.is_empty() {
            self.carry(plan).await?;
            return Ok(None);
        }
        let (name, count) = (&self.setup.name, plan.gone.len());
        Ok(Some(format!(
            "mirror: {count} paths there are not in the tree; let the first check delete them with: pleach approve --peer \
             {name}; see them with: pleach push --dry-run {name}"
        )))
    }

    /// What is there and not in the tree.
    async fn found_there(&self) -> Result<PushPlan, PushError> {
        let mut all = PushPlan::default();
        let keep_out = self.setup.config.options.iter().filter_map(|o| o.strip_prefix("--backup-dir="));
        let keep_out: Vec<&[u8]> = keep_out.map(|dir| dir.trim_matches('/').as_bytes()).collect();
        let (found, listed) = mpsc::channel(FOUND_MAX);
        let look_up = async {
            // Ends with this: nobody sends for ever what is looked up no more.
            let mut listed = listed;
            let mut some = Vec::new();
            while listed.recv_many(&mut some, FOUND_MAX).await > 0 {
                some.retain(|(path, _)| is_ours_to_judge(path, &keep_out));
                let of = PlanOf::Found(std::mem::take(&mut some));
                let plan = self.ask(|reply| PushAsk::Plan { of, begin: false, reply }).await?;
                if all.gone.len() < MIRROR_MAX {
                    all.gone.extend(plan.gone);
                    all.touched.extend(plan.touched);
                }
            }
            Ok::<(), PushError>(())
        };
        let (listed, looked) = tokio::join!(list(&self.setup, found), look_up);
        listed?;
        looked?;
        Ok(all)
    }

    async fn obey(&mut self, command: PushCommand) {
        match command {
            PushCommand::Check { dry_run, reply } => {
                let done = if dry_run { self.dry_run(&reply).await } else { self.check_now().await };
                let name = &self.setup.name;
                let ended = done.map_err(|error| Failure::done("push", format!("{name}: {}", error.why())));
                let ended = ended.and_then(|()| if dry_run { Ok(()) } else { self.all_well() });
                // Whoever went away needs no answer.
                reply.done.send(ended).ok();
            }
            PushCommand::Approve(reply) => {
                let done = self.approve().await;
                // Whoever went away needs no answer.
                reply.send(done.map_err(|error| Failure::done("approve", error.why()))).ok();
            }
        }
    }

    /// What a check left undone.
    fn all_well(&self) -> Result<(), Failure> {
        let name = &self.setup.name;
        let owed = self.place.as_ref().map_or(0, |place| place.owed);
        match &self.held {
            Some(why) => Err(Failure::done("push", format!("{name}: {why}"))),
            None if owed > 0 => Err(Failure::done("push", format!("{name}: {owed} paths could not be pushed"))
                .help("see which: pleach problems")),
            None => Ok(()),
        }
    }

    async fn check_now(&mut self) -> Result<(), PushError> {
        if self.applied().is_none() {
            return Err(PushError::Tree("the tree is closed, paused or being scanned".to_owned()));
        }
        self.answers = false;
        self.round().await?;
        self.check().await?;
        self.well();
        Ok(())
    }

    async fn approve(&mut self) -> Result<(), PushError> {
        if !self.setup.config.mirror {
            let why = format!("the peer {} has no mirror = true: there is nothing to approve", self.setup.name);
            return Err(PushError::Tree(why));
        }
        if self.place.is_none() {
            self.round().await?;
        }
        let row = Box::new(PushRow { approved: true, ..self.row() });
        self.place = Some(self.ask(|reply| PushAsk::Note { row, reply }).await?);
        if self.held.is_some() {
            self.check_now().await?;
        }
        Ok(())
    }

    /// Names what a full check would do, and does none of it.
    async fn dry_run(&mut self, asked: &Asked) -> Result<(), PushError> {
        if self.applied().is_none() {
            return Err(PushError::Tree("the tree is closed, paused or being scanned".to_owned()));
        }
        for of in [PlanOf::Tree as fn(Option<TreePath>) -> PlanOf, PlanOf::LeftThere] {
            let mut after = None;
            loop {
                let of = of(after);
                let plan = self.ask(|reply| PushAsk::Plan { of, begin: false, reply }).await?;
                for path in Carrier::new(&self.setup, self.by_rules).compare(&plan.send).await? {
                    self.tell(asked, "send", &path).await;
                }
                for gone in plan.clear.iter().chain(&plan.gone) {
                    self.tell(asked, "delete", &gone.path).await;
                }
                after = plan.next;
                if after.is_none() {
                    break;
                }
            }
        }
        if self.setup.config.mirror {
            for gone in self.found_there().await?.gone {
                self.tell(asked, "mirror", &gone.path).await;
            }
        }
        Ok(())
    }

    async fn tell(&self, asked: &Asked, what: &str, path: &TreePath) {
        let mut row = serde_json::Map::from_iter([
            ("peer".to_owned(), json!(self.setup.name)),
            ("tree".to_owned(), json!(self.setup.tree)),
            ("does".to_owned(), json!(what)),
        ]);
        row.extend([path_field("path", path.as_bytes())]);
        // Whoever went away reads nothing.
        asked.rows.send(serde_json::Value::Object(row)).await.ok();
    }
}

/// Whether a path that is there may be deleted for not being in the tree: not what pleach or rsync keep there.
fn is_ours_to_judge(path: &TreePath, keep_out: &[&[u8]]) -> bool {
    let kept = |name: &[u8]| name == PARTIAL_DIR.as_bytes() || name == b".pleach" || name == b".pleach-fallback";
    let beneath = |dir: &&[u8]| {
        let rest = path.as_bytes().strip_prefix(*dir);
        !dir.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    !path.components().any(kept) && !keep_out.iter().any(beneath)
}
