//! Whole nodes in one thread, driven by one seed: the real session machine, exchange, tree, scan and
//! apply over modelled disks, stores and lines.
//!
//! A run is a few rounds of two phases. In the first, users write, lines are cut, nodes are killed and
//! their power fails, and whatever is under way goes on in any order. In the second everything heals,
//! and after a bounded time all must have come to rest, equal, with nothing lost (`sim/checks.rs`).
//!
//! Every step, and every healing, has a number and draws from a generator of its own, made from the seed
//! and that number. So a step can be left out and the others still draw the same (`sim/shrink.rs`).

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use pleach_protocol::moved::Moved;
use pleach_protocol::session::Output;
use pleach_store::rows::Direction;
use pleach_store::vfs::model::{CrashKind, Data, Keep, Seen};

mod checks;
mod copied;
mod disk;
mod events;
mod heal;
mod life;
mod minted;
mod net;
mod node;
mod quiet;
mod rules;
pub mod shrink;
mod users;
mod ways;

use checks::Rest;
use disk::Disks;
use events::Watch;
use life::{LifeFaults, Promise};
use minted::{Deeds, Minted};
use net::{Line, NetFaults};
use node::{Event, SimNode};
use ways::Ways;

/// A small generator, the same on every machine. Source: xorshift64*.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Seeded; no seed gives the state 0, which would stay there.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d | 1)
    }

    /// The generator of one step of a seed. Source of the mixing: splitmix64.
    #[must_use]
    pub const fn of_step(seed: u64, step: u32) -> Self {
        let mut mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add((step as u64) << 32);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((mixed ^ (mixed >> 31)) | 1)
    }

    /// A number below `n`.
    pub const fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % n
    }

    /// An index below `n`.
    pub fn index(&mut self, n: usize) -> usize {
        usize::try_from(self.below(n as u64)).unwrap_or(0)
    }

    /// True once in `n` times.
    pub const fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// Which faults a seed has; others are off, so that each gets room.
#[derive(Clone, Copy, Debug)]
struct Faults {
    kills: bool,
    power: bool,
    /// Crashes within an operation on the disk, not between two.
    inside: bool,
    lost_stores: bool,
    skew: bool,
    watch: Watch,
    disks: Disks,
}

/// Says what is wrong with what was done, if anything is.
pub type Check = fn(&[String]) -> Option<String>;

/// What to run.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What decides everything.
    pub seed: u64,
    /// The steps to do, all where none is said. A healing is a step, too.
    pub only: Option<BTreeSet<u32>>,
    /// Prints what is done, as it is done.
    pub loud: bool,
    /// One more checker, asked after every step with what was done until then; it says what is wrong.
    pub check: Option<Check>,
}

/// What went wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// In one sentence.
    pub what: String,
    /// The steps that were done, the last of them is the one that failed.
    pub steps: BTreeSet<u32>,
    /// What was done last.
    pub log: Vec<String>,
}

/// What a run ends with.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What was done in all phases, in lines.
    pub steps: u64,
    /// Contents that a power failure took before anybody else had them.
    pub lost_with_power: u64,
    /// Waits that were told that all is well.
    pub waits: u64,
    /// Batches of a peer's changes that were merged while things went wrong.
    pub merges: u64,
    /// A node lost its disk and its store.
    pub wiped: bool,
    /// A hash of everything that was done, in order.
    pub trace: u64,
}

/// The world. See the module.
pub struct World {
    random: Random,
    faults: Faults,
    net: NetFaults,
    life: LifeFaults,
    nodes: Vec<SimNode>,
    lines: Vec<Line>,
    now: u64,
    sessions: u64,
    /// Faults rest.
    healing: bool,
    /// Somebody forgot tombstones or trimmed contexts.
    forgetful: bool,
    promises: Vec<Promise>,
    rest: Rest,
    minted: Minted,
    ways: Ways,
    log: Vec<String>,
    outcome: Outcome,
    plan: Plan,
    /// The number of the step under way.
    step: u32,
    /// How many deeds of users it planned.
    plans: u32,
    /// How many more deeds it had.
    acts: u32,
    done: BTreeSet<u32>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

/// What a panic says.
fn said_by(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default()
}

/// The lines of a shape of so many nodes.
fn lines_of(nodes: usize, shape: u64) -> Vec<[usize; 2]> {
    let mut lines: Vec<[usize; 2]> = (1..nodes).map(|n| [n - 1, n]).collect();
    match shape {
        // A ring, a star with a rim, a line.
        0 if nodes > 2 => lines.push([nodes - 1, 0]),
        1 => lines = (1..nodes).map(|n| [0, n]).collect(),
        _ => {}
    }
    lines
}

/// Runs one seed.
///
/// # Errors
/// What went wrong, with what was done until then.
pub fn run(seed: u64, loud: bool) -> Result<Outcome, String> {
    World::run(Plan { seed, loud, ..Plan::default() }).map_err(|failure| {
        let mut text = format!("seed {seed}: {}\n", failure.what);
        for line in &failure.log {
            text.push_str("  ");
            text.push_str(line);
            text.push('\n');
        }
        text
    })
}

impl World {
    /// Runs a plan.
    ///
    /// # Errors
    /// The first thing that went wrong.
    pub fn run(plan: Plan) -> Result<Outcome, Box<Failure>> {
        let mut world = Self::new(plan);
        // A panic is a failure like others, so that it is made small and replayed like them.
        let played = catch_unwind(AssertUnwindSafe(|| world.play()));
        match played.unwrap_or_else(|panic| Err(format!("panicked: {}", said_by(&*panic)))) {
            Ok(()) => Ok(world.outcome),
            Err(what) => {
                let log = world.log.split_off(world.log.len().saturating_sub(120));
                Err(Box::new(Failure { what, steps: world.done, log }))
            }
        }
    }

    fn new(plan: Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let count = 2 + random.index(4);
        let shape = random.below(3);
        let mut flag = |n| random.once_in(n);
        let faults = Faults {
            kills: flag(2),
            power: flag(3),
            inside: flag(2),
            lost_stores: flag(6),
            skew: flag(2),
            watch: Watch::draw(&mut random),
            disks: Disks::draw(&mut random, plan.seed),
        };
        let net = NetFaults::draw(&mut random, plan.seed);
        let lines = lines_of(count, shape).into_iter().map(|ends| Line::new(ends, net, &mut random)).collect();
        let mut life = LifeFaults::draw(&mut random, plan.seed);
        // What is ignored by the time that it is looked at was nothing that a wait can promise.
        life.waits &= !rules::change(plan.seed);
        let mut nodes: Vec<SimNode> =
            (0..count).map(|n| SimNode::new(u8::try_from(n + 1).unwrap_or(u8::MAX), faults.watch)).collect();
        if faults.skew {
            for node in &mut nodes {
                node.model.disk.advance(i64::try_from(random.below(3)).unwrap_or(0) * 86_400_000_000_000);
            }
        }
        let once = !(faults.lost_stores || faults.disks.can_lose() || life.wipes);
        let ways = Ways::draw(plan.seed, count, once);
        for (n, node) in nodes.iter_mut().enumerate() {
            node.model.first = ways.first(n);
            node.model.direction = ways.of(n);
            node.ruled = rules::change(plan.seed);
            node.model.atomic = life::releases(plan.seed, n);
        }
        let minted = Minted::draw(plan.seed, &faults, life.wipes, &ways, count);
        Self {
            random,
            faults,
            net,
            life,
            nodes,
            lines,
            now: 0,
            sessions: 0,
            healing: false,
            forgetful: false,
            promises: Vec::new(),
            rest: Rest::default(),
            minted,
            ways,
            log: Vec::new(),
            outcome: Outcome::default(),
            plan,
            step: 0,
            plans: 0,
            acts: 0,
            done: BTreeSet::new(),
        }
    }

    fn say(&mut self, what: String) {
        self.outcome.steps += 1;
        for byte in what.bytes() {
            // FNV-1a.
            self.outcome.trace = (self.outcome.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.plan.loud {
            println!("{:>4} {what}", self.step);
            self.watch();
        }
        self.log.push(what);
    }

    /// In a loud run: how a path that is watched changes, node by node.
    fn watch(&mut self) {
        let Some(path) = std::env::var_os("PLEACH_WATCH") else { return };
        let path = path.into_encoded_bytes();
        for (n, node) in self.nodes.iter_mut().enumerate() {
            let now = node.describe(&path);
            if node.watched != now {
                println!("    n{n}: {now}");
                node.watched = now;
            }
        }
    }

    fn play(&mut self) -> Result<(), String> {
        self.say(format!("{} nodes, {:?} {:?}", self.nodes.len(), self.faults, self.net));
        let late = if self.life.late { self.nodes.len() - 1 } else { self.nodes.len() };
        for line in self.lines.iter_mut().filter(|l| l.ends.contains(&late)) {
            line.enabled = false;
        }
        self.fill_first()?;
        self.copy_first(late)?;
        let peers = self.peers();
        for (node, peers) in self.nodes.iter_mut().zip(peers).take(late) {
            node.peers = peers;
            node.start()?;
        }
        let rounds: Vec<u64> = (0..1 + self.random.below(4)).map(|_| 20 + self.random.below(120)).collect();
        for steps in rounds {
            for _ in 0..steps {
                if self.next_step() {
                    self.step()?;
                    self.bustle()?;
                    self.turn_ways()?;
                    self.change_rules()?;
                    self.ask_planted()?;
                }
            }
            if !self.next_step() {
                continue;
            }
            if !self.heal()? {
                return Ok(());
            }
            self.check_rest()?;
            self.ask_planted()?;
            self.check_quiet()?;
            if self.faults.power && self.random.once_in(3) {
                self.say("the power fails everywhere".to_owned());
                for n in 0..self.nodes.len() {
                    self.nodes[n].model.disk.crash();
                    self.restart(n, true)?;
                }
                if !self.heal()? {
                    return Ok(());
                }
                self.check_rest()?;
            }
        }
        Ok(())
    }

    /// Begins the next step with a generator of its own; false where the plan leaves it out.
    fn next_step(&mut self) -> bool {
        self.step += 1;
        (self.plans, self.acts) = (0, 0);
        self.random = Random::of_step(self.plan.seed, self.step);
        let wanted = self.plan.only.as_ref().is_none_or(|only| only.contains(&self.step));
        if wanted {
            self.done.insert(self.step);
        }
        wanted
    }

    fn ask_planted(&self) -> Result<(), String> {
        self.plan.check.and_then(|check| check(&self.log)).map_or(Ok(()), Err)
    }

    /// Who is whose peer.
    fn peers(&self) -> Vec<BTreeMap<pleach_protocol::version::NodeId, String>> {
        let mut peers = vec![BTreeMap::new(); self.nodes.len()];
        for line in self.lines.iter().filter(|l| l.enabled) {
            let [a, b] = line.ends;
            peers[a].insert(self.nodes[b].model.id, format!("n{b}"));
            peers[b].insert(self.nodes[a].model.id, format!("n{a}"));
        }
        peers
    }

    /// Something happens.
    fn step(&mut self) -> Result<(), String> {
        let n = self.random.index(self.nodes.len());
        match self.random.below(106) {
            0..=17 => self.user_acts(n),
            18..=20 if self.life.hours => self.let_hours_pass(n),
            18..=22 => self.pass_time(),
            23..=24 => self.operate(n),
            25..=44 => self.work(n),
            45..=74 => self.carry().map(drop),
            75..=89 => self.answer(n),
            90..=93 => {
                self.connect();
                Ok(())
            }
            94..=95 => self.disturb(),
            96..=97 if self.faults.kills || self.faults.power => self.crash(n),
            98 if self.faults.inside => {
                let calls = 1 + self.random.below(25);
                self.say(format!("n{n} will crash at call {calls}"));
                self.nodes[n].model.disk.crash_at(calls);
                Ok(())
            }
            99 => self.let_hours_pass(n),
            100.. => self.disk_step(n),
            _ => Ok(()),
        }
    }

    /// Lines and nodes get something done, in no order and not to the end. Without it a frame hardly gets
    /// anywhere before all heals, and faults strike nodes that exchange nothing.
    fn bustle(&mut self) -> Result<(), String> {
        for _ in 0..self.random.below(self.life.bustle + 1) {
            let n = self.random.index(self.nodes.len());
            match self.random.below(20) {
                0 => self.connect(),
                1 | 2 => {
                    let nanos = 1 + self.random.below(300_000_000);
                    self.pass(nanos)?;
                }
                3 if self.faults.kills && self.random.once_in(20) => self.tell_and_die(n)?,
                3..=5 => self.work(n)?,
                6 if self.faults.disks.hooks && self.life.contests => self.plan_contest(),
                6..=9 => while !self.random.once_in(4) && self.take_event(n)? {},
                10..=12 => while !self.random.once_in(4) && self.take_mail(n) {},
                _ => drop(self.carry()?),
            }
        }
        Ok(())
    }

    /// A node answers whoever asks, others hear it, and it is gone before it has made anything more durable.
    fn tell_and_die(&mut self, n: usize) -> Result<(), String> {
        if !self.nodes[n].is_up() {
            return Ok(());
        }
        for _ in 0..6 {
            self.take_event(n)?;
            self.take_mail(n);
            for _ in 0..4 {
                self.carry()?;
            }
        }
        for other in (0..self.nodes.len()).filter(|other| *other != n) {
            while self.take_mail(other) || self.take_event(other)? {}
            self.work(other)?;
        }
        self.crash(n)
    }

    fn pass_time(&mut self) -> Result<(), String> {
        // What a lost or older store finds on its disk is ranked by its time, which a clock that was put back
        // in between makes newer than what was written since: that loses as a conflict, and no wait knows.
        let stores_stay = !self.faults.lost_stores && !self.faults.disks.can_lose();
        if self.faults.skew && stores_stay && self.random.once_in(6) {
            let n = self.random.index(self.nodes.len());
            let ahead = self.random.below(172_800_000_000_000);
            let nanos = i64::try_from(ahead).unwrap_or(0) - 86_400_000_000_000;
            self.nodes[n].model.disk.advance(nanos);
            self.say(format!("n{n}: the clock jumps by {} s", nanos / 1_000_000_000));
        }
        let nanos = 1 + self.random.below(2_000_000_000);
        self.pass(nanos)
    }

    fn user_acts(&mut self, n: usize) -> Result<(), String> {
        let contested = self.contested();
        let n = contested.as_ref().map_or(n, |(at, _)| *at);
        let path = contested.map(|(_, path)| (path.as_bytes().to_vec(), false));
        self.act_of_user(n, self.step, path)
    }

    /// A user acts once more in this step: no two deeds may write the same. At a path, and whether that is to be removed.
    fn user_acts_too(&mut self, n: usize, path: Option<(Vec<u8>, bool)>) -> Result<(), String> {
        self.acts += 1;
        self.act_of_user(n, self.step + checks::ACTS_FROM * self.acts, path)
    }

    fn act_of_user(&mut self, n: usize, step: u32, path: Option<(Vec<u8>, bool)>) -> Result<(), String> {
        if self.nodes[n].model.disk.crashed() || !self.nodes[n].model.disk.is_mounted() || self.minted.only_reads(n) {
            return Ok(());
        }
        self.rest.begin(n);
        let at = users::At {
            disks: self.faults.disks,
            step,
            path: path.as_ref().map(|(path, gone)| (path.as_slice(), *gone)),
        };
        let (before, everything) = (self.nodes[n].model.seen(), disk::contents(&self.nodes[n].model.disk.user()));
        let (put, undone) = (self.rest.put_until_now(), self.rest.undone_until_now());
        let what = users::act(&mut self.nodes[n], &mut self.random, &mut self.rest, at);
        let mut deeds = Deeds::default();
        let after = self.nodes[n].model.seen();
        deeds.note(&before, &after);
        self.rest.stays_undone(undone, |path| !before.contains_key(path) && !after.contains_key(path));
        // Also what is in the vault by now, and open.
        deeds.note_gone(everything, &disk::contents(&self.nodes[n].model.disk.user()));
        if self.is_theirs_alone(n) {
            self.rest.put_only(put);
        } else {
            self.minted.hear_of(deeds);
        }
        for path in self.rest.newest() {
            for (other, node) in self.nodes.iter().enumerate().filter(|(other, _)| *other != n) {
                for name in users::all_names(&node.model.disk.user(), &String::from_utf8_lossy(&path)) {
                    self.rest.touch(name);
                    self.ways.found(other, std::iter::once(name.as_bytes().to_vec()));
                }
            }
        }
        self.release_touched(n);
        if let Some(what) = what {
            self.say(format!("n{n} user: {what}"));
        }
        self.nodes[n].check_contents_kept(true)
    }

    /// One round of a node's owner.
    fn work(&mut self, n: usize) -> Result<(), String> {
        if self.nodes[n].is_closed() {
            return self.reopen(n);
        }
        let look = self.faults.watch.look(&mut self.random);
        let before = self.nodes[n].head();
        let outcome = self.nodes[n].round(self.now, look);
        let after = self.nodes[n].head();
        self.say(format!("n{n} works, {look:?}: {before:?} -> {after:?} {outcome:?}"));
        self.after_work(n, outcome)
    }

    /// A node whose disk crashed is down; one that failed otherwise is at fault.
    fn after_work(&mut self, n: usize, outcome: Result<(), String>) -> Result<(), String> {
        self.pump(n);
        self.hear_of_users(n);
        self.nodes[n].note_paired();
        if self.nodes[n].model.disk.crashed() {
            let power = self.faults.power && self.random.once_in(2);
            return self.restart(n, power);
        }
        if let Err(error) = outcome {
            return self.tree_failed(n, error);
        }
        // What struck until now failed a path, not the tree.
        self.nodes[n].was_struck();
        if let Err(error) = self.settle_waits(n) {
            return self.after_work(n, Err(error));
        }
        // What they did while a wait's commit was under way, too.
        self.hear_of_users(n);
        self.rest.check_contents(
            n,
            &self.nodes[n],
            self.ways.of(n) == Direction::Both && !rules::change(self.plan.seed),
        )?;
        self.check_minted(n)?;
        self.nodes[n].check_contents_kept(false)
    }

    /// Takes note of what users did while the engine worked.
    fn hear_of_users(&mut self, n: usize) {
        let (made, deeds, linked) = self.nodes[n].hear_of_users();
        made.iter().for_each(|content| self.rest.wrote(content));
        if !linked.is_empty() {
            self.rest.begin(n);
            linked.into_iter().for_each(|name| self.rest.touch(name));
        }
        if !self.is_theirs_alone(n) {
            self.minted.hear_of(deeds);
        }
    }

    /// Hands one thing that a session wants to the owner, or one answer to a session.
    fn answer(&mut self, n: usize) -> Result<(), String> {
        if self.random.once_in(2) && !self.nodes[n].events.is_empty() {
            return self.take_event(n).map(drop);
        }
        self.take_mail(n);
        Ok(())
    }

    /// The owner takes one thing; says whether there was one.
    fn take_event(&mut self, n: usize) -> Result<bool, String> {
        let Some(event) = self.nodes[n].events.pop_front() else { return Ok(false) };
        let merges = matches!(event, Event::Output(_, _, Output::Merge { .. }));
        let moved = match &event {
            Event::Output(_, _, Output::Moved { moved, .. }) => Some(moved.clone()),
            _ => None,
        };
        let stood = |world: &Self, moved: &Moved| world.nodes[n].model.disk.user().stat(moved.from.as_bytes()).is_ok();
        let moved = moved.filter(|moved| stood(self, moved));
        self.outcome.merges += u64::from(merges && !self.healing);
        self.say(format!("n{n} carries out {}", format!("{event:?}").chars().take(60).collect::<String>()));
        let outcome = self.nodes[n].carry_out(self.now, event);
        if let Some(moved) = moved.filter(|moved| !stood(self, moved)) {
            let user = self.nodes[n].model.disk.user();
            self.rest.went_along(n, &moved, |path| user.stat(path).is_ok());
        }
        self.after_work(n, outcome)?;
        Ok(true)
    }

    /// A session hears one thing; says whether there was one.
    fn take_mail(&mut self, n: usize) -> bool {
        let Some((session, told)) = self.nodes[n].next_mail() else { return false };
        let ended = self.nodes[n].tell_session(self.now, session, told);
        self.pump(n);
        if ended {
            self.say(format!("n{n} begins anew"));
            self.leave(n, session, true);
        }
        true
    }

    /// A process is killed, or the power fails.
    fn crash(&mut self, n: usize) -> Result<(), String> {
        if !self.nodes[n].is_up() {
            return Ok(());
        }
        let power = self.faults.power && (!self.faults.kills || self.random.once_in(2));
        self.nodes[n].model.disk.crash();
        self.restart(n, power)
    }

    fn restart(&mut self, n: usize, power: bool) -> Result<(), String> {
        // A machine without power says nothing any more.
        self.drop_lines(n, !power);
        self.forget_waits(n);
        let kind = if power {
            let data = match self.random.below(3) {
                0 => Data::Kept,
                1 => Data::Lost,
                _ => Data::Torn(self.random.below(1 << 30)),
            };
            CrashKind::Machine { log: Keep::Prefix(self.random.below(1 << 30)), data }
        } else {
            CrashKind::Process
        };
        let keep = self.random.index(self.nodes[n].model.kv.unflushed() + 1);
        let lost_store = self.faults.lost_stores && self.random.once_in(4);
        self.say(format!("n{n} is down ({kind:?}), {keep} batches kept, store lost {lost_store}"));
        let before = self.nodes[n].model.disk.user().snapshot(true);
        self.nodes[n].come_back(kind, keep, lost_store);
        let there = self.nodes[n].model.seen();
        if power || lost_store {
            self.rest.absent_is_undone(n, &there);
        }
        if lost_store {
            self.rest.store_lost(&there);
            if self.ways.of(n) == Direction::Send || self.ways.has_turned(n) {
                // Its disk may show what it passed over while it only sent.
                self.rest.begin(n);
                self.rest.touch_differing(&there);
            }
            // It finds what its disk has as if it were new.
            self.rest.emptied(n);
        }
        if power && self.faults.disks.hooks {
            // What a user wrote between two calls nobody has synced yet: it may be torn.
            self.rest.wrote_all(&self.nodes[n].model.disk.user());
            self.rest.torn(&before, &self.nodes[n].model.disk.user());
        }
        self.reopen(n)?;
        if power && self.faults.disks.hooks {
            self.look_through(n, &before);
        }
        Ok(())
    }

    /// Users who had just written see after a power failure what became of it. Where that shows in no stamp they say so by
    /// touching it: nobody else can tell.
    fn look_through(&mut self, n: usize, before: &BTreeMap<Vec<u8>, Seen>) {
        for path in self.nodes[n].changed_behind_stamps(before) {
            let path = String::from_utf8_lossy(&path).into_owned();
            let user = self.nodes[n].model.disk.user();
            self.rest.begin(n);
            self.rest.touch(&path);
            let touched = user.touch(&path, user.now());
            self.release_touched(n);
            self.say(format!("n{n} user: touches {path} after the power failure, {}", touched.is_ok()));
        }
    }
}
