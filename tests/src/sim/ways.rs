//! Nodes that only send, or only receive, some of them for a while: what they show, and what they tell.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::entry::{Entry, Value};
use pleach_protocol::mint::agrees;
use pleach_protocol::path::TreePath;
use pleach_protocol::version::Actor;
use pleach_protocol::view::State;
use pleach_protocol::wire::First;
use pleach_store::rows::{self, Direction, ShownRow, Space};
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::Seen;

use super::checks::related;
use super::node::SimNode;
use super::{Random, World};

/// One seed in so many has them.
const SEEDS: u64 = 5;
/// What a receiver says of a directory that is in the way of a file and holds what users made.
pub(super) const IN_THE_WAY: &str = "a directory stands there with files that were made here";

/// Which way each node's changes go.
#[derive(Debug)]
pub(super) struct Ways {
    of: Vec<Direction>,
    /// Whose version counts where nodes pair for the first time.
    first: Vec<Option<First>>,
    /// Nodes turn now and then.
    turns: bool,
    /// Starts of nodes while they only received: nothing of theirs is told to anybody.
    silent: BTreeSet<Actor>,
    /// Nodes that turned since the last rest: what they still show may be what others changed long since.
    turned: BTreeSet<usize>,
    /// What users of a node may have done to paths while it only received, or before that was looked at.
    locals: Vec<BTreeSet<Vec<u8>>>,
}

impl Ways {
    /// `once`: a root pairs once, at its first start.
    pub(super) fn draw(seed: u64, count: usize, once: bool) -> Self {
        let mut random = Self::random(seed, 0);
        let mut of = vec![Direction::Both; count];
        let mut first = vec![None; count];
        let some = seed % SEEDS == SEEDS - 1;
        if some {
            // One node does both, always: what it shows is what all are to show.
            for way in &mut of[1..] {
                *way = draw_way(&mut random);
            }
            let anchor = random.index(count);
            of.swap(0, anchor);
        }
        let turns = some && random.once_in(2);
        if some && once {
            let anchor = of.iter().position(|way| *way == Direction::Both);
            for (_, first) in first.iter_mut().enumerate().filter(|(n, _)| Some(*n) != anchor) {
                *first = [None, None, Some(First::Send), Some(First::Receive)][random.index(4)];
            }
        }
        Self {
            of,
            first,
            turns,
            silent: BTreeSet::new(),
            turned: BTreeSet::new(),
            locals: vec![BTreeSet::new(); count],
        }
    }

    /// A generator of its own: all else is drawn as without it.
    const fn random(seed: u64, step: u32) -> Random {
        Random::of_step(seed ^ 0x7761_7973, step)
    }

    pub(super) fn of(&self, n: usize) -> Direction {
        self.of[n]
    }

    /// Whether some node goes, or may go, this way.
    pub(super) fn any(&self, way: Direction) -> bool {
        self.of.contains(&way) || self.turns && way != Direction::Both
    }

    pub(super) fn first(&self, n: usize) -> Option<First> {
        self.first[n]
    }

    /// Whether some node's version counts in place of what it never saw.
    pub(super) fn any_first(&self) -> bool {
        self.first.iter().any(Option::is_some)
    }

    /// A node finds what its disk has as if it were new: on one that only receives it stays, whatever peers delete.
    pub(super) fn found(&mut self, n: usize, paths: impl Iterator<Item = Vec<u8>>) {
        self.locals[n].extend(paths);
    }

    /// Whether what a node shows may stand for nothing that its users did.
    pub(super) fn has_turned(&self, n: usize) -> bool {
        self.turned.contains(&n)
    }

    pub(super) const fn turns(&self) -> bool {
        self.turns
    }

    /// A node that does both.
    pub(super) fn reference(&self) -> usize {
        self.of.iter().position(|way| *way == Direction::Both).unwrap_or(0)
    }
}

fn draw_way(random: &mut Random) -> Direction {
    [Direction::Both, Direction::Both, Direction::Send, Direction::Receive][random.index(4)]
}

/// Whether users of a disk may have changed what was shown of a path; a directory's time moves with what is in it.
fn differs(shown: Option<&State>, seen: Option<&Seen>) -> bool {
    let (shown, seen) = match (shown, seen) {
        (None, None) => return false,
        (Some(shown), Some(seen)) => (shown, seen),
        _ => return true,
    };
    let value = match (&shown.value, seen.kind) {
        (Value::File { hash, .. }, Kind::File) => hash.0 == *blake3::hash(&seen.content).as_bytes(),
        (Value::Symlink { target }, Kind::Symlink) => *target == seen.content,
        (Value::Dir, Kind::Dir) => true,
        _ => false,
    };
    let mode = seen.kind == Kind::Symlink || shown.access.as_ref().is_none_or(|access| access.mode == seen.mode);
    let time = seen.kind == Kind::Dir || shown.mtime.is_none_or(|mtime| mtime == seen.mtime);
    !(value && mode && time)
}

impl SimNode {
    /// The node's config says another direction: its tree is opened anew.
    fn turn(&mut self, way: Direction) -> Result<(), String> {
        self.model.direction = way;
        self.end_process();
        self.start()
    }

    /// What is local here is what differs from what is shown, and stands before nothing newer.
    fn check_locals(&self, seen: &BTreeMap<Vec<u8>, Seen>) -> Result<(), String> {
        let Some(tree) = &self.model.tree else { return Ok(()) };
        let index = tree.index();
        let rows = index.beneath(&TreePath::ROOT, None, usize::MAX).map_err(|e| e.to_string())?;
        let known = rows.into_iter().map(|(path, _)| path);
        let there = seen.keys().filter_map(|path| TreePath::parse(path).ok());
        let paths: BTreeSet<TreePath> = known.chain(there).collect();
        let mut locals = 0;
        for path in paths {
            let row = index.row(&path).map_err(|e| e.to_string())?;
            let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref());
            let local = tree.is_local(&path).map_err(|e| e.to_string())?;
            locals += u64::from(local);
            if local != differs(shown, seen.get(path.as_bytes())) {
                let there = seen.get(path.as_bytes());
                return Err(format!("'{path}' counts as local: {local}; shown {shown:?}, there {there:?}"));
            }
            let view = index.view(&path, &row).map_err(|e| e.to_string())?;
            let stuck = tree.stuck_paths().contains(&&path);
            let left = view.is_none() && matches!(shown, Some(state) if state.value == Value::Dir);
            if !stuck && !left && !agrees(shown, view.as_ref()) {
                return Err(format!("'{path}' is behind: {view:?}, shown {shown:?}, local {local}"));
            }
        }
        if locals != tree.local_changes() {
            let (start, end) = ([Space::Local as u8], [Space::Local as u8 + 1]);
            let rows: Vec<(Vec<u8>, ShownRow)> = index.others(&start, &end, usize::MAX).map_err(|e| e.to_string())?;
            let listed: Vec<_> = rows.iter().filter_map(|(key, _)| rows::key_path(key)).collect();
            let counted = tree.local_changes();
            return Err(format!("{counted} local changes are counted, there are {locals}; listed: {listed:?}"));
        }
        Ok(())
    }
}

impl World {
    /// Whether what users of a node do there may stay theirs alone, or be gone without their doing.
    pub(super) fn is_theirs_alone(&self, n: usize) -> bool {
        let finds = self.ways.first[n] == Some(First::Receive) && self.nodes[n].is_yet_to_pair();
        self.ways.of[n] == Direction::Receive || finds
    }

    /// Users of nodes that wait for a peer's index, or give theirs, have something there before.
    pub(super) fn fill_first(&mut self) -> Result<(), String> {
        for n in (0..self.nodes.len()).filter(|n| self.ways.first[*n].is_some()).collect::<Vec<_>>() {
            for _ in 0..self.random.below(5) {
                self.user_acts(n)?;
            }
        }
        Ok(())
    }

    /// A node turns now and then, in seeds where they do.
    pub(super) fn turn_ways(&mut self) -> Result<(), String> {
        let mut random = Ways::random(self.plan.seed, self.step);
        if !self.ways.turns || !random.once_in(15) {
            return Ok(());
        }
        let n = random.index(self.nodes.len());
        let way = draw_way(&mut random);
        let node = &self.nodes[n];
        let able = node.is_up()
            && !node.waits()
            && node.model.disk.is_mounted()
            && !node.model.disk.crashed()
            && !node.model.approved;
        if n == self.ways.reference() || way == self.ways.of[n] || !able {
            return Ok(());
        }
        self.say(format!("n{n} turns: {:?} -> {way:?}", self.ways.of[n]));
        self.note_locals();
        self.drop_lines(n, true);
        self.forget_waits(n);
        if self.ways.of[n] == Direction::Receive {
            // What users made there pairs, unless the node turns again before.
            for path in self.ways.locals[n].clone() {
                self.rest.touch_unclaimed(&path);
                self.release_promises(|promised| related(promised, &path));
            }
        }
        let contents: BTreeSet<Vec<u8>> = node_contents(&self.nodes[n]);
        self.rest.returned(&contents);
        if way == Direction::Receive {
            // What was not looked at until now is local.
            self.rest.forget_put_by(n);
        }
        self.ways.of[n] = way;
        self.ways.turned.insert(n);
        // What users are about to do was planned before.
        self.note_locals();
        let outcome = self.nodes[n].turn(way);
        self.after_work(n, outcome)
    }

    /// All is at rest: what nodes that tell what they have had for themselves is paired.
    pub(super) fn forget_locals(&mut self) {
        let Ways { of, locals, turned, .. } = &mut self.ways;
        turned.clear();
        let told = locals.iter_mut().zip(of).filter(|(_, way)| **way != Direction::Receive);
        told.for_each(|(locals, _)| locals.clear());
    }

    /// What users of nodes that only receive touched may be theirs alone.
    fn note_locals(&mut self) {
        for (n, locals) in self.ways.locals.iter_mut().enumerate() {
            if self.ways.of[n] == Direction::Receive {
                locals.extend(self.rest.touched_by(n).cloned());
            }
        }
    }

    /// Nothing that a node minted while it only received is known to anybody.
    pub(super) fn check_silent(&mut self, n: usize, entries: &BTreeMap<TreePath, Entry>) -> Result<(), String> {
        let node = &self.nodes[n];
        if self.ways.of[n] == Direction::Receive
            && let Some(tree) = &node.model.tree
        {
            self.ways.silent.insert(Actor { node: node.model.id, start: tree.life().start });
        }
        if self.ways.silent.is_empty() {
            return Ok(());
        }
        let told = entries.iter().find(|(_, e)| e.context.iter().any(|dot| self.ways.silent.contains(&dot.actor)));
        match told {
            Some((path, entry)) => Err(format!("n{n} was told of '{path}' by one that only receives: {entry:?}")),
            None => Ok(()),
        }
    }

    /// Contents that one-way nodes alone still show.
    pub(super) fn one_way_contents(&self) -> BTreeSet<Vec<u8>> {
        let one_way = self.nodes.iter().enumerate().filter(|(n, _)| self.ways.of[*n] != Direction::Both);
        one_way.flat_map(|(_, node)| node_contents(node)).collect()
    }

    /// A node that only receives shows what all show, but for what its users made there.
    pub(super) fn check_receiver(
        &mut self,
        n: usize,
        all: &BTreeMap<Vec<u8>, Seen>,
        seen: &BTreeMap<Vec<u8>, Seen>,
        open: impl Fn(&[u8]) -> bool,
    ) -> Result<(), String> {
        self.note_locals();
        self.nodes[n].check_locals(seen).map_err(|error| format!("n{n}: {error}"))?;
        let Some(tree) = &self.nodes[n].model.tree else { return Ok(()) };
        let is_local = |path: &Vec<u8>| TreePath::parse(path).is_ok_and(|path| tree.is_local(&path).unwrap_or(false));
        let paths: BTreeSet<&Vec<u8>> = all.keys().chain(seen.keys()).collect();
        let locals: Vec<&Vec<u8>> = paths.iter().copied().filter(|path| is_local(path)).collect();
        for path in paths {
            let (theirs, here) = (all.get(path), seen.get(path));
            // What a replacement that failed half-way leaves is touched by whoever tried.
            let touched =
                path.ends_with(b".replacement~") || self.ways.locals[n].iter().any(|touched| related(touched, path));
            let same = match (theirs, here) {
                (Some(a), Some(b)) if a != b && a.kind == Kind::Dir => {
                    let b = if touched { Seen { mtime: a.mtime, ..b.clone() } } else { b.clone() };
                    *a == if open(path) { Seen { uid: a.uid, gid: a.gid, ..b } } else { b }
                }
                (a, b) => a == b,
            };
            let made_here = touched && locals.iter().any(|local| related(local, path));
            if !same && !made_here {
                let path = String::from_utf8_lossy(path);
                return Err(format!("n{n} only receives, and '{path}' is {here:?} in place of {theirs:?}"));
            }
        }
        Ok(())
    }
}

fn node_contents(node: &SimNode) -> BTreeSet<Vec<u8>> {
    node.model.seen().into_values().filter(|seen| seen.kind == Kind::File).map(|seen| seen.content).collect()
}
