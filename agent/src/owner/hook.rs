//! What the hooks' tasks ask of a tree's owner: batches of events, and notes that they were told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pleach_protocol::path::TreePath;
use pleach_store::ignore::IgnoreRules;
use pleach_store::rows::{EventRow, HookOn};
use pleach_store::tree::{HookId, HookPlace, TreeError};

use super::{CommandError, Reply, Running};

/// Paths of one batch, and the bytes of their names.
const PATHS_MAX: usize = 5_000;
const BYTES_MAX: usize = 4 * 1024 * 1024;
/// Events read in one go, and for one batch: the hook may want few of them.
const ROWS: usize = 1_000;
const ROWS_MAX: usize = 20_000;
/// How often what waits is counted, and up to where.
const COUNT_EVERY: Duration = Duration::from_millis(500);
const COUNTED_MAX: usize = 2_000;

/// A hook, as the owner of its tree knows it.
#[derive(Clone, Debug)]
pub struct HookSpec {
    /// What tells it from others.
    pub id: HookId,
    /// What it runs for.
    pub on: BTreeSet<HookOn>,
    /// Of which paths; none: of all.
    pub paths: Option<IgnoreRules>,
}

impl HookSpec {
    fn wants(&self, event: &EventRow) -> bool {
        self.paths.as_ref().is_none_or(|rules| rules.ignored(&event.path, event.dir))
    }
}

/// How far there are events that may be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HookNews {
    /// What was sent.
    sent: u64,
    /// All else.
    other: u64,
}

impl HookNews {
    /// The number up to which there may be events of a kind.
    #[must_use]
    pub const fn upto(&self, on: HookOn) -> u64 {
        match on {
            HookOn::Sent => self.sent,
            _ => self.other,
        }
    }
}

/// What one run of a hook is told.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct HookBatch {
    /// The number of the event that it begins behind.
    pub place: u64,
    /// The one that is reached once it was told.
    pub upto: u64,
    /// Whether there were events at all, for this hook or not.
    pub read: bool,
    /// The lowest and the highest place in the journal of its changes.
    pub first: u64,
    /// See `first`.
    pub last: u64,
    /// The paths, each once.
    pub paths: Vec<TreePath>,
}

/// What a hook's task asks.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are what the calls of the tree take")]
pub enum HookAsk {
    /// What is it to be told next?
    Plan { on: HookOn, reply: Reply<HookBatch> },
    /// It was told everything from `place` up to here.
    Done { on: HookOn, place: u64, upto: u64, reply: Reply<()> },
}

impl HookAsk {
    pub(super) fn refuse(self, error: CommandError) {
        // Whoever went away needs no answer.
        match self {
            Self::Plan { reply, .. } => drop(reply.send(Err(error))),
            Self::Done { reply, .. } => drop(reply.send(Err(error))),
        }
    }
}

/// What waits for the hooks of a tree.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    counts: BTreeMap<HookId, u64>,
    /// For what news that was counted, and when; none: a place moved.
    counted: Option<(HookNews, Instant)>,
}

impl Running<'_> {
    pub(super) fn take_hook(&mut self, id: HookId, ask: HookAsk) -> Result<(), TreeError> {
        let Some(spec) = self.keeper.setup.takers.hooks.iter().find(|hook| hook.id == id).cloned() else {
            ask.refuse(CommandError::Closed("the hook is not in the config any more".to_owned()));
            return Ok(());
        };
        match ask {
            HookAsk::Plan { on, reply } => {
                // Nothing is told that a kill could undo.
                self.advance()?;
                let batch = self.batch(&spec, on)?;
                reply.send(Ok(batch)).ok();
            }
            HookAsk::Done { on, place, upto, reply } => {
                self.tree.hook_told(HookPlace { id, on, told: place }, upto)?;
                self.advance()?;
                self.waiting.counted = None;
                reply.send(Ok(())).ok();
            }
        }
        Ok(())
    }

    fn batch(&self, spec: &HookSpec, on: HookOn) -> Result<HookBatch, TreeError> {
        let place = self.tree.hook(&spec.id)?.place(on).unwrap_or(u64::MAX);
        let limit = self.hook_news().upto(on);
        let mut batch = HookBatch { place, upto: limit, first: u64::MAX, ..HookBatch::default() };
        let (mut after, mut bytes, mut rows) = (place, 0, 0);
        loop {
            let events = self.tree.events(on, after, limit, ROWS)?;
            let whole = events.len() < ROWS;
            rows += events.len();
            for (number, event) in events {
                (after, batch.read) = (number, true);
                if !spec.wants(&event) {
                    continue;
                }
                (batch.first, batch.last) = (batch.first.min(event.seq), batch.last.max(event.seq));
                bytes += event.path.as_bytes().len();
                batch.paths.push(event.path);
                if batch.paths.len() >= PATHS_MAX || bytes >= BYTES_MAX {
                    return Ok(HookBatch { upto: after, ..batch });
                }
            }
            if whole {
                return Ok(batch);
            }
            if rows >= ROWS_MAX {
                return Ok(HookBatch { upto: after, ..batch });
            }
        }
    }

    /// Takes up the hooks of the config.
    pub(super) fn set_hooks(&mut self) -> Result<(), TreeError> {
        let hooks: Vec<_> = self.keeper.setup.takers.hooks.iter().map(|h| (h.id, h.on.clone())).collect();
        self.waiting = Waiting::default();
        self.tree.set_hooks(&hooks)
    }

    /// How far there are events that may be told: what was sent once all have it that can.
    fn hook_news(&self) -> HookNews {
        let daemons =
            self.keeper.pushes.values().filter(|progress| progress.agent.is_none() && progress.error.is_none());
        let there = daemons.map(|progress| progress.seq).chain(self.keeper.exchange.applied_by_connected()).min();
        let sent = there.unwrap_or(0).min(self.tree.index().last_event(HookOn::Sent));
        HookNews { sent, other: self.tree.index().last_event(HookOn::Applied) }
    }

    /// Tells the hooks' tasks how far there are events, and counts what waits for each.
    pub(super) fn show_hooks(&mut self) -> Result<BTreeMap<HookId, u64>, TreeError> {
        if self.keeper.setup.takers.hooks.is_empty() {
            return Ok(BTreeMap::new());
        }
        let news = self.hook_news();
        self.keeper.hook_news.send_if_modified(|told| told.replace(news) != Some(news));
        let fresh = |(of, when): (HookNews, Instant)| of == news || when.elapsed() < COUNT_EVERY;
        if !self.waiting.counted.is_some_and(fresh) {
            for spec in &self.keeper.setup.takers.hooks {
                let mut count = 0;
                for on in &spec.on {
                    let place = self.tree.hook(&spec.id)?.place(*on).unwrap_or(u64::MAX);
                    let upto = self.tree.index().last_event(*on);
                    let events = self.tree.events(*on, place, upto, COUNTED_MAX)?;
                    count += events.iter().filter(|(_, event)| spec.wants(event)).count() as u64;
                }
                self.waiting.counts.insert(spec.id, count);
            }
            self.waiting.counted = Some((news, Instant::now()));
        }
        Ok(self.waiting.counts.clone())
    }
}
