//! What the pushing tasks ask of a tree's owner: plans, and notes of how they ended.

use std::time::{Duration, Instant};

use pleach_protocol::path::TreePath;
use pleach_protocol::version::NodeId;
use pleach_store::rows::PushRow;
use pleach_store::tree::{PushPlan, PushResult, TreeError};

use super::{CommandError, Reply, Running};

/// Paths of one push.
const PUSH_PATHS_MAX: usize = 10_000;
/// How often a queue is counted.
const COUNT_EVERY: Duration = Duration::from_millis(500);
/// Changes that are counted one by one for a status.
const COUNTED_MAX: usize = 1_000;
/// Paths that are owed are named up to here.
pub(super) const OWED_NAMED_MAX: usize = 1_000;

/// What a plan is of.
#[derive(Clone, Debug)]
pub enum PlanOf {
    /// What the journal says behind the peer's place.
    Journal,
    /// What the peer is owed, behind a path.
    Owed(Option<TreePath>),
    /// All that the tree shows, behind a path.
    Tree(Option<TreePath>),
    /// All that was pushed once and is not in the tree, behind a path.
    LeftThere(Option<TreePath>),
    /// Which of these, found there, the tree does not have.
    Found(Vec<(TreePath, bool)>),
}

/// How far the disk shows the journal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Applied {
    /// The place.
    pub seq: u64,
    /// Whether nothing more is being taken in or applied.
    pub quiet: bool,
}

/// How far a peer without an agent was pushed to.
#[derive(Clone, Debug, Default)]
pub struct PushPlace {
    /// The stored row.
    pub row: PushRow,
    /// How many paths it is owed.
    pub owed: usize,
}

/// What a pushing task asks.
#[derive(Debug)]
#[allow(missing_docs, reason = "the fields are what the calls of the tree take")]
pub enum PushAsk {
    /// How far was it pushed to?
    Open { target: String, rules: [u8; 16], reply: Reply<PushPlace> },
    /// What is to be done? `begin`: it will be done now.
    Plan { of: PlanOf, begin: bool, reply: Reply<PushPlan> },
    /// This was done.
    Done { result: Box<PushResult>, reply: Reply<PushPlace> },
    /// What is approved, and when a full check ended.
    Note { row: Box<PushRow>, reply: Reply<PushPlace> },
    /// Why it does not go on, for those who wait; none: it does.
    Failing(Option<String>),
}

impl PushAsk {
    pub(super) fn refuse(self, error: CommandError) {
        // Whoever went away needs no answer.
        match self {
            Self::Open { reply, .. } | Self::Done { reply, .. } | Self::Note { reply, .. } => {
                reply.send(Err(error)).ok();
            }
            Self::Plan { reply, .. } => drop(reply.send(Err(error))),
            Self::Failing(_) => {}
        }
    }
}

/// How a peer without an agent is doing with this tree.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PushProgress {
    /// The journal's place that it has.
    pub seq: u64,
    /// Paths that it is owed.
    pub owed: usize,
    /// Changes that it lacks.
    pub to_send: u64,
    /// Bytes of their files.
    pub to_send_bytes: u64,
    /// Why it does not go on.
    pub error: Option<String>,
    /// The node whose agent is to be away for this; none for a daemon that is a peer of its own.
    pub agent: Option<NodeId>,
    /// Head and place for which the two numbers were counted, and when.
    counted: Option<(u64, u64, Instant)>,
}

impl PushProgress {
    /// Nothing is known yet.
    pub(super) fn of(agent: Option<NodeId>) -> Self {
        Self { agent, ..Self::default() }
    }
}

impl Running<'_> {
    pub(super) fn take_push(&mut self, peer: &str, ask: PushAsk) -> Result<(), TreeError> {
        let Some(progress) = self.keeper.pushes.get(peer) else {
            ask.refuse(CommandError::Closed("the peer is not in the config any more".to_owned()));
            return Ok(());
        };
        match ask {
            PushAsk::Open { reply, .. } if progress.agent.is_some() => {
                let row = self.tree.push_row(peer)?.unwrap_or_default();
                self.answer_place(peer, row, reply)?;
            }
            PushAsk::Open { target, rules, reply } => {
                let row = self.tree.open_push(peer, &target, rules)?;
                self.answer_place(peer, row, reply)?;
            }
            PushAsk::Plan { reply, .. } if self.keeper.paused => {
                reply.send(Err(CommandError::Failed("the tree is paused".to_owned()))).ok();
            }
            PushAsk::Plan { of: PlanOf::Found(_), reply, .. } if self.tree.index().meta().entries == 0 => {
                let why = "the tree is empty: nothing is deleted there for it";
                reply.send(Err(CommandError::Failed(why.to_owned()))).ok();
            }
            PushAsk::Plan { of, begin, reply } => {
                // What a root that is not ours lacks was deleted by nobody.
                self.tree.check_root()?;
                let plan = self.plan(peer, of)?;
                if begin {
                    self.tree.begin_push(peer, &plan)?;
                    self.advance()?;
                }
                reply.send(Ok(plan)).ok();
            }
            PushAsk::Done { result, reply } => {
                self.tree.note_pushed(peer, &result)?;
                self.advance()?;
                let row = self.tree.push_row(peer)?.unwrap_or_default();
                self.answer_place(peer, row, reply)?;
            }
            PushAsk::Note { row, reply } => {
                self.tree.put_push_row(peer, &row);
                self.advance()?;
                self.answer_place(peer, *row, reply)?;
            }
            PushAsk::Failing(error) => {
                if let Some(progress) = self.keeper.pushes.get_mut(peer) {
                    progress.error = error;
                }
            }
        }
        Ok(())
    }

    fn plan(&self, peer: &str, of: PlanOf) -> Result<PushPlan, TreeError> {
        match of {
            PlanOf::Journal => self.tree.plan_push(peer, PUSH_PATHS_MAX),
            PlanOf::Owed(after) => self.tree.plan_owed(peer, after.as_ref(), PUSH_PATHS_MAX),
            PlanOf::Tree(after) => self.tree.plan_check(peer, after.as_ref(), PUSH_PATHS_MAX),
            PlanOf::LeftThere(after) => self.tree.plan_left_there(peer, after.as_ref(), PUSH_PATHS_MAX),
            PlanOf::Found(found) => self.tree.plan_mirror(peer, &found),
        }
    }

    fn answer_place(&mut self, peer: &str, row: PushRow, reply: Reply<PushPlace>) -> Result<(), TreeError> {
        let place = PushPlace { row, owed: self.tree.owed(peer, None, OWED_NAMED_MAX)?.len() };
        if let Some(progress) = self.keeper.pushes.get_mut(peer) {
            (progress.seq, progress.owed) = (place.row.seq, place.owed);
        }
        reply.send(Ok(place)).ok();
        Ok(())
    }

    /// Tells the pushing tasks how far the disk shows the journal.
    pub(super) fn tell_pushes(&self) {
        let quiet = !self.looks.has_kept() && self.tree.is_quiet();
        let applied = Applied { seq: self.tree.applied(), quiet };
        // Nothing is known of a root that waits to pair: all that lies there would count as not here.
        let applied = if self.keeper.paused || self.tree.waits().is_some() { None } else { Some(applied) };
        self.keeper.applied.send_if_modified(|told| std::mem::replace(told, applied) != applied);
    }

    /// Tells the tree which peers have a fallback.
    pub(super) fn take_up_fallbacks(&mut self) -> Result<(), TreeError> {
        self.tree.set_fallbacks(&self.keeper.setup.takers.fallbacks.keys().cloned().collect())
    }

    /// Notes how far the agents of peers with a fallback are: a push begins behind it.
    pub(super) fn note_agents(&mut self) -> Result<(), TreeError> {
        for (peer, progress) in &mut self.keeper.pushes {
            let said = progress.agent.and_then(|node| self.keeper.exchange.acked_now(node));
            if let Some(applied) = said.filter(|applied| *applied != progress.seq) {
                self.tree.note_agent(peer, applied)?;
                progress.seq = applied;
            }
        }
        Ok(())
    }

    /// How far the peers without an agent are.
    pub(super) fn show_pushes(&mut self) -> Result<(), TreeError> {
        let head = self.tree.head();
        for progress in self.keeper.pushes.values_mut().filter(|progress| progress.agent.is_none()) {
            let same = progress.counted.is_some_and(|(at, seq, _)| (at, seq) == (head, progress.seq));
            let fresh = progress.counted.is_some_and(|(_, _, when)| when.elapsed() < COUNT_EVERY);
            // A long queue is not counted again at each change.
            let waits = fresh && progress.to_send > 0 && progress.seq < head;
            if !same && !waits {
                (progress.to_send, progress.to_send_bytes) = self.tree.left_behind(progress.seq, COUNTED_MAX)?;
                progress.counted = Some((head, progress.seq, Instant::now()));
            }
        }
        Ok(())
    }

    /// What peers without an agent lack of a place in the journal, in words.
    pub(super) fn left_to_push(&self, head: u64) -> Vec<String> {
        let mut left = Vec::new();
        for (peer, progress) in self.keeper.pushes.iter().filter(|(_, progress)| progress.agent.is_none()) {
            let why = progress.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
            if progress.seq < head {
                left.push(format!("{peer}: {} changes to send{why}", head - progress.seq));
            } else if progress.owed > 0 {
                left.push(format!("{peer}: {} paths cannot be pushed (pleach problems){why}", progress.owed));
            }
        }
        left
    }

    /// What appears when ignore rules change has no place of its own in the journal.
    pub(super) fn push_all_again(&mut self) -> Result<(), TreeError> {
        for (peer, progress) in self.keeper.pushes.iter_mut().filter(|(_, progress)| progress.agent.is_none()) {
            self.tree.push_all_again(peer)?;
            progress.seq = 0;
        }
        Ok(())
    }

    /// Every peer without an agent has the journal at least up to here.
    pub(super) fn pushed_by_all(&self) -> Result<u64, TreeError> {
        let mut least = u64::MAX;
        // A node says itself what it knows.
        for (peer, _) in self.keeper.pushes.iter().filter(|(_, progress)| progress.agent.is_none()) {
            least = least.min(self.tree.push_row(peer)?.map_or(0, |row| row.seq));
        }
        Ok(least)
    }
}
