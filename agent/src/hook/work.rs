//! What a hook's task does: asks for a batch, waits for the end of a burst, runs, tells the owner.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pleach_store::rows::HookOn;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{HookRun, HookSetup, HookSource, HookState, HookStatus, command, post};
use crate::machine::lock;
use crate::owner::{CommandError, Event, HookAsk, HookBatch, HookNews, Reply};

/// A burst is gathered for at least so long, whatever `debounce` says.
const QUIET: Duration = Duration::from_millis(10);
/// A burst that does not end is cut after so many times `debounce`.
const GATHER_TIMES: u32 = 10;
/// The pause before another try, twice as long each time, at most the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// How long a tree that is closed rests before it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct Worker {
    setup: Arc<HookSetup>,
    source: HookSource,
    status: Arc<Mutex<HookStatus>>,
    /// Up to where there is nothing for the hook.
    looked: BTreeMap<HookOn, u64>,
}

impl Worker {
    pub(super) fn new(setup: Arc<HookSetup>, source: HookSource, status: Arc<Mutex<HookStatus>>) -> Self {
        Self { setup, source, status, looked: BTreeMap::new() }
    }

    /// Works for ever; whoever drops this ends what runs.
    pub(super) async fn go(mut self) -> Infallible {
        loop {
            match self.round().await {
                Ok(()) if self.source.news.changed().await.is_ok() => {}
                Ok(()) => sleep(ASK_AGAIN).await,
                Err(error) => {
                    tracing::debug!(tree = self.setup.config.tree, %error, "a hook waits for its tree");
                    self.looked.clear();
                    sleep(ASK_AGAIN).await;
                }
            }
        }
    }

    async fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> HookAsk) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        let gone = || CommandError::Closed("the tree is not in the config any more".to_owned());
        self.source.owner.send(Event::Hook { id: self.setup.id, ask: ask(reply) }).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    fn news(&mut self) -> Option<HookNews> {
        *self.source.news.borrow_and_update()
    }

    /// What there is for the hook now.
    fn due(&mut self, on: HookOn) -> Option<u64> {
        let upto = self.news()?.upto(on);
        let looked = self.looked.get(&on).copied();
        // A store that was lost counts anew.
        looked.is_none_or(|looked| looked != upto).then_some(upto)
    }

    /// Does all that is due, one kind after the other so that none waits for all of another.
    async fn round(&mut self) -> Result<(), CommandError> {
        if self.news().is_none() {
            self.looked.clear();
            return Ok(());
        }
        let kinds: Vec<HookOn> = self.setup.config.on.iter().copied().collect();
        loop {
            let mut any = false;
            for on in &kinds {
                if self.due(*on).is_some() {
                    any = true;
                    self.work_on(*on).await?;
                }
            }
            if !any {
                return Ok(());
            }
        }
    }

    async fn work_on(&mut self, on: HookOn) -> Result<(), CommandError> {
        let mut batch = self.ask(|reply| HookAsk::Plan { on, reply }).await?;
        if !batch.paths.is_empty() {
            self.gather(on).await;
            batch = self.ask(|reply| HookAsk::Plan { on, reply }).await?;
        }
        if !batch.paths.is_empty() {
            self.run(on, &batch).await;
        }
        let (place, upto) = (batch.place, batch.upto);
        if batch.read {
            self.ask(|reply| HookAsk::Done { on, place, upto, reply }).await?;
        }
        self.looked.insert(on, upto);
        Ok(())
    }

    /// Waits until nothing more comes.
    async fn gather(&mut self, on: HookOn) {
        let quiet = self.setup.config.debounce.max(QUIET);
        let last = Instant::now() + quiet * GATHER_TIMES;
        let mut until = Instant::now() + quiet;
        let mut seen = self.news().map(|news| news.upto(on));
        while let Ok(Ok(())) = timeout_at(until.min(last), self.source.news.changed()).await {
            let now = self.news().map(|news| news.upto(on));
            if now != seen {
                (seen, until) = (now, Instant::now() + quiet);
            }
        }
    }

    /// Runs a batch until it goes well.
    async fn run(&mut self, on: HookOn, batch: &HookBatch) {
        let mut pause = PAUSE.0;
        loop {
            // In the place of a root that is not there nothing is run.
            while self.news().is_none() {
                if self.source.news.changed().await.is_err() {
                    sleep(ASK_AGAIN).await;
                }
            }
            self.show(HookState::Running, None);
            let began = Instant::now();
            let limit = self.setup.config.timeout;
            let ended = timeout(limit, self.once(on, batch)).await;
            let ended = ended.unwrap_or_else(|_| Err(format!("it took longer than {limit:?} and was ended")));
            let (tree, on, paths) = (&self.setup.config.tree, on.word(), batch.paths.len());
            let elapsed_ms = began.elapsed().as_millis();
            match ended {
                Ok(()) => {
                    tracing::info!(tree, on, paths, elapsed_ms, "a hook ran");
                    lock(&self.status).error = None;
                    return self.show(HookState::Ok, None);
                }
                Err(why) => {
                    tracing::warn!(tree, on, paths, elapsed_ms, why, "a hook failed and is run again");
                    self.show(HookState::Retrying, Some(why));
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    async fn once(&self, on: HookOn, batch: &HookBatch) -> Result<(), String> {
        match &self.setup.config.run {
            HookRun::Command(line) => command::run(&self.setup, line, on, batch).await,
            HookRun::Url(url) => post::post(url, &post::body(&self.setup, on, batch)).await,
        }
    }

    /// Shows a state; the last failure stays until it goes well.
    fn show(&self, state: HookState, error: Option<String>) {
        let mut status = lock(&self.status);
        status.state = state;
        if error.is_some() {
            status.error = error;
        }
    }
}
