//! What operators do: nodes join, are taken away, come back empty, pause, and wait.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::path::TreePath;
use pleach_store::rows::Direction;
use pleach_store::vfs::Kind;

use super::{Random, World, checks};

/// Which of it a seed has.
#[derive(Clone, Copy, Debug)]
pub(super) struct LifeFaults {
    /// A node loses disk and store, once.
    pub(super) wipes: bool,
    /// Two nodes are no peers for a while.
    enrols: bool,
    pauses: bool,
    /// The last node joins later.
    pub(super) late: bool,
    pub(super) waits: bool,
    /// Hours pass in the middle of everything.
    pub(super) hours: bool,
    /// Users like to change what their node has heard of and does not show yet.
    pub(super) contests: bool,
    /// How much is done at most on lines and nodes after each step.
    pub(super) bustle: u64,
}

impl LifeFaults {
    pub(super) const fn draw(random: &mut Random, seed: u64) -> Self {
        Self {
            hours: seed % 8 == 3,
            contests: seed % 4 == 2,
            bustle: [0, 8, 30, 80][(seed / 4 % 4) as usize],
            wipes: random.once_in(6),
            enrols: random.once_in(4),
            pauses: random.once_in(4),
            late: random.once_in(5),
            waits: random.once_in(2),
        }
    }
}

/// Directories that appear only when complete, on some nodes of one seed in eleven.
pub(super) fn releases(seed: u64, n: usize) -> Vec<String> {
    let rules: &[&str] = match (seed % 11, (seed / 11 + n as u64) % 4) {
        (5, 0) => &["/d"],
        (5, 1) => &["/d/e", "/k"],
        (5, 2) => &["/*"],
        _ => &[],
    };
    rules.iter().map(|rule| (*rule).to_owned()).collect()
}

/// What is at a path; none where nothing is.
type Fact = Option<(Kind, Vec<u8>)>;

/// Contents may be long: they begin each in their own way.
fn written(fact: &Fact) -> String {
    let Some((kind, content)) = fact else { return "nothing".to_owned() };
    format!("{kind:?} '{}'", String::from_utf8_lossy(&content[..content.len().min(40)]))
}

/// What a wait confirmed, or is to.
#[derive(Debug)]
pub(super) struct Promise {
    node: usize,
    /// Its number at its node.
    wait: u64,
    confirmed: bool,
    facts: BTreeMap<Vec<u8>, Fact>,
    /// The nodes whose disks hold it.
    holders: BTreeSet<usize>,
}

impl World {
    /// An operator does something.
    pub(super) fn operate(&mut self, n: usize) -> Result<(), String> {
        if self.nodes[n].model.disk.crashed() {
            return Ok(());
        }
        match self.random.below(8) {
            0 if self.life.wipes && self.nodes[n].is_up() => self.wipe(n),
            1 | 2 if self.life.enrols => {
                let at = self.random.index(self.lines.len());
                let enabled = !self.lines[at].enabled;
                self.enrol(at, enabled)
            }
            3 | 4 if self.life.pauses && self.nodes[n].is_up() => {
                let paused = !self.nodes[n].paused;
                self.pause(n, paused);
                Ok(())
            }
            5 if !self.nodes[n].joined => self.join(n),
            6 | 7 if self.life.waits => self.begin_wait(n),
            _ => Ok(()),
        }
    }

    /// A node comes back with nothing but its key.
    fn wipe(&mut self, n: usize) -> Result<(), String> {
        self.life.wipes = false;
        self.outcome.wiped = true;
        self.rest.emptied(n);
        self.say(format!("n{n} is wiped"));
        let told = self.random.once_in(2);
        self.drop_lines(n, told);
        self.lose_disk(n);
        let outcome = self.nodes[n].wipe();
        self.after_work(n, outcome)
    }

    /// What only a node's disk had may be gone, or stay there alone.
    pub(super) fn lose_disk(&mut self, n: usize) {
        self.rest.forget_unshared(n, self.nodes.len());
        for promise in &mut self.promises {
            promise.holders.remove(&n);
        }
        self.promises.retain(|p| !p.holders.is_empty() && (p.node != n || p.confirmed));
    }

    /// A node is started for the first time.
    pub(super) fn join(&mut self, n: usize) -> Result<(), String> {
        self.say(format!("n{n} joins"));
        // On the directory beneath a disk that was never mounted a tree would begin.
        self.nodes[n].model.disk.remount();
        let outcome = self.nodes[n].start();
        self.after_work(n, outcome)?;
        for at in 0..self.lines.len() {
            let [a, b] = self.lines[at].ends;
            if (a == n || b == n) && self.nodes[a].joined && self.nodes[b].joined {
                self.enrol(at, true)?;
            }
        }
        Ok(())
    }

    /// A path that a node has heard of and does not show yet, where users look for such.
    pub(super) fn contested(&mut self) -> Option<(usize, TreePath)> {
        if !self.life.contests || !self.random.once_in(2) {
            return None;
        }
        let from = self.random.index(self.nodes.len());
        let all = (0..self.nodes.len()).map(|n| (from + n) % self.nodes.len());
        let mut pending = all.flat_map(|n| self.nodes[n].pending().into_iter().map(move |path| (n, path)));
        pending.next()
    }

    /// Hours pass at a node: what all its peers know to be gone is forgotten. One that is no peer for a while
    /// is not waited for, and may bring back what was forgotten (DESIGN.md §2): not where that happens.
    pub(super) fn let_hours_pass(&mut self, n: usize) -> Result<(), String> {
        if self.life.enrols || !self.nodes[n].is_up() {
            return Ok(());
        }
        let hours = 1 + self.random.index(2);
        self.say(format!("{hours} hours pass at n{n}"));
        self.forgetful = true;
        let outcome = (0..hours).try_for_each(|_| self.nodes[n].hour());
        self.after_work(n, outcome)
    }

    /// Two nodes become each other's peers, or are no longer.
    fn enrol(&mut self, at: usize, enabled: bool) -> Result<(), String> {
        self.lines[at].enabled = enabled;
        let ends = self.lines[at].ends;
        self.say(format!("n{} and n{} are peers: {enabled}", ends[0], ends[1]));
        let peers = self.peers();
        for n in ends {
            let sessions: Vec<u64> = if enabled { Vec::new() } else { self.lines[at].sessions_of(n) };
            for session in sessions {
                self.leave(n, session, true);
            }
            self.nodes[n].set_peers(peers[n].clone())?;
        }
        Ok(())
    }

    fn pause(&mut self, n: usize, paused: bool) {
        self.say(format!("n{n} paused {paused}"));
        self.nodes[n].pause(paused);
    }

    /// What operators undo before all is to come to rest.
    pub(super) fn settle_operators(&mut self) -> Result<(), String> {
        for n in 0..self.nodes.len() {
            if self.nodes[n].paused {
                self.pause(n, false);
            }
            if !self.nodes[n].joined {
                self.join(n)?;
            }
        }
        for at in 0..self.lines.len() {
            if !self.lines[at].enabled {
                self.enrol(at, true)?;
            }
        }
        Ok(())
    }

    /// Somebody waits: what they see is to survive, once they are told so.
    pub(super) fn begin_wait(&mut self, n: usize) -> Result<(), String> {
        // A store through a mapping shows in no stamp before it is written back: nobody could wait for it.
        if !self.nodes[n].is_up()
            || self.nodes[n].waits()
            || self.nodes[n].paused
            || self.nodes[n].trials.has_open_files()
        {
            return Ok(());
        }
        let seen = self.nodes[n].model.seen();
        let derived: BTreeSet<_> = seen.keys().filter(|path| self.nodes[n].is_derived(path)).cloned().collect();
        let begun = self.nodes[n].begin_wait();
        self.say(format!("n{n} waits: {begun:?}"));
        let outcome = begun.map(|wait| {
            let paths: BTreeSet<Vec<u8>> = self.rest.paths().chain(seen.keys()).cloned().collect();
            // What a disk lacks that was lost or is new is no deletion of a user's.
            let removed = |path: &Vec<u8>| {
                !self.outcome.wiped && self.rest.is_touched_by(path, n) && !self.rest.is_undone(path, n)
            };
            let own = paths
                .into_iter()
                .filter(|path| !self.rest.is_touched_by_others(path, n) && !self.rest.is_planned(path));
            let own = own.filter(|path| !self.rest.is_put_unknowing(path, n));
            let own = own.filter(|path| seen.contains_key(path) || removed(path));
            // Others may know of the deletion that a store which went back does not know any more.
            let own = own.filter(|path| !seen.contains_key(path) || !self.rest.is_undone(path, n));
            let own = own.filter(|path| !self.nodes[n].found(path));
            // A directory that was there only for what is beneath goes with that.
            let own = own.filter(|path| !derived.contains(path) || !self.rest.is_touched_by(path, n));
            // What is shown by one that goes one way is not what all show.
            let own = own.filter(|_| self.ways.of(n) == Direction::Both && !self.ways.has_turned(n));
            let facts = own.map(|path| (path.clone(), seen.get(&path).map(|s| (s.kind, s.content.clone())))).collect();
            let near = self.lines.iter().filter(|l| l.enabled && l.ends.contains(&n)).flat_map(|l| l.ends);
            let holders = near.chain([n]).collect();
            self.promises.push(Promise { node: n, wait, confirmed: false, facts, holders });
        });
        self.after_work(n, outcome)
    }

    /// Hears which waits of a node are over.
    pub(super) fn settle_waits(&mut self, n: usize) -> Result<(), String> {
        let ended = self.nodes[n].settle_waits(self.now)?;
        for (wait, confirmed) in ended {
            self.say(format!("n{n} wait {wait} ends, confirmed {confirmed}"));
            self.outcome.waits += u64::from(confirmed);
            if let Some(promise) = self.promises.iter_mut().find(|p| p.node == n && p.wait == wait) {
                promise.confirmed = confirmed;
                // A deletion says what it saw: an older version that a lost store finds is not that (DESIGN.md §2).
                let outlives =
                    |path: &[u8]| self.rest.found_files(path).any(|(path, found)| self.minted.put_another(path, found));
                promise.facts.retain(|path, fact| fact.is_some() || !outlives(path));
            }
            self.promises.retain(|p| p.confirmed || p.node != n || p.wait != wait);
        }
        Ok(())
    }

    /// Users changed these paths: what was promised of them is theirs again.
    pub(super) fn release_promises(&mut self, related: impl Fn(&[u8]) -> bool) {
        for promise in &mut self.promises {
            promise.facts.retain(|path, _| !related(path));
        }
    }

    /// The same for what the user who was last at work touched, or for all where files are open: they have
    /// any name by now.
    pub(super) fn release_touched(&mut self, n: usize) {
        let newest = self.rest.newest();
        let open = self.nodes[n].trials.has_open_files();
        self.release_promises(|path| open || newest.iter().any(|touched| checks::related(path, touched)));
    }

    /// A process that ends waits no longer.
    pub(super) fn forget_waits(&mut self, n: usize) {
        self.promises.retain(|p| p.confirmed || p.node != n);
    }

    /// What waits confirmed is on every disk.
    pub(super) fn check_promises(&mut self) -> Result<(), String> {
        let shown: Vec<_> = self.nodes.iter().map(|n| n.model.seen()).collect();
        for promise in self.promises.iter().filter(|p| p.confirmed) {
            for (path, fact) in &promise.facts {
                for (n, seen) in shown.iter().enumerate().filter(|(n, _)| self.ways.of(*n) == Direction::Both) {
                    let there = seen.get(path).map(|s| (s.kind, s.content.clone()));
                    let is_dir = |fact: &Fact| fact.as_ref().is_some_and(|(kind, _)| *kind == Kind::Dir);
                    let hidden = fact.is_some() && !is_dir(fact) && is_dir(&there) && self.rest.is_found_dir(path);
                    if there != *fact && !hidden {
                        let (path, node, wait) = (String::from_utf8_lossy(path), promise.node, promise.wait);
                        let (fact, there) = (written(fact), written(&there));
                        return Err(format!("n{node} was told in wait {wait} that '{path}' is {fact}; n{n}: {there}"));
                    }
                }
            }
        }
        self.promises.clear();
        Ok(())
    }
}
