//! Everything works again: all that is to be done is done, and the world comes to rest.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::path::TreePath;

use super::World;
use super::events::Look;
use super::net::Line;
use super::node::SimNode;
use super::rules;
use crate::model::{ModelNode, ModelTree};

/// Turns of a healing world before it counts as restless.
const TURNS_MAX: usize = 600;
/// Turns without any news before it counts as at rest.
const TURNS_QUIET: usize = 3;

impl World {
    /// Everything works again; goes on until all is at rest. False where a power failure took the only
    /// copy of a content that was announced: its path is a problem until somebody writes it again.
    pub(super) fn heal(&mut self) -> Result<bool, String> {
        self.say("healing".to_owned());
        self.healing = true;
        self.heal_lines();
        for n in 0..self.nodes.len() {
            self.nodes[n].model.disk.crash_at(u64::MAX);
            self.end_trials(n);
            if self.nodes[n].model.disk.crashed() {
                self.restart(n, false)?;
            }
        }
        self.rest.forget_plans();
        self.settle_operators()?;
        let (mut quiet, mut heads) = (0, Vec::new());
        for turn in 0..TURNS_MAX {
            let look = self.faults.watch.look_healing(turn);
            let news = self.turn(look, turn % 20 == 19)?;
            let now: Vec<_> = self.nodes.iter().map(SimNode::head).collect();
            let busy = news || now != heads || !self.nodes.iter().all(SimNode::is_quiet);
            heads = now;
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet >= TURNS_QUIET && turn > 25 {
                self.say(format!("at rest after {turn} turns"));
                self.healing = false;
                return Ok(true);
            }
        }
        // A lost store takes what its node still shows for a find: who deletes that afterwards has not seen what was
        // announced before, which wins and is nowhere. Who only receives may take away what nobody has fetched yet.
        let forgets = self.faults.lost_stores
            || self.faults.disks.can_lose()
            || self.ways.turns()
            || rules::change(self.plan.seed);
        let may_lose = self.faults.power || self.outcome.wiped || forgets;
        if may_lose && self.only_lost_contents() {
            self.outcome.lost_with_power += 1;
            return Ok(false);
        }
        let problems: Vec<_> = self.nodes.iter().map(SimNode::problems).collect();
        Err(format!("no rest: {problems:?}; {:?}", self.who_holds()))
    }

    /// Everybody does what is to be done in a second; says whether there was more than pings.
    pub(super) fn turn(&mut self, look: Look, late: bool) -> Result<bool, String> {
        self.connect();
        self.pass(1_000_000_000)?;
        let mut news = false;
        for n in 0..self.nodes.len() {
            // Paths that failed are tried again after at most 300 s.
            self.nodes[n].model.disk.advance(if late { 400_000_000_000 } else { 0 });
            if self.nodes[n].is_closed() {
                self.reopen(n)?;
            }
            let outcome = self.nodes[n].round(self.now, look);
            self.after_work(n, outcome)?;
            while self.take_event(n)? {
                news = true;
            }
            while self.take_mail(n) {}
        }
        while let Some(more) = self.carry()? {
            news |= more;
        }
        Ok(news || self.lines.iter().any(Line::is_busy))
    }

    /// Paths that are kept back, and the nodes that hold what is to be there.
    fn who_holds(&self) -> Vec<(usize, TreePath, Vec<usize>)> {
        let held: Vec<_> = self.nodes.iter().map(|node| held(&node.model)).collect();
        let holders = |hash: Hash| (0..held.len()).filter(|n| held[*n].contains(&hash.0)).collect();
        let open = self.nodes.iter().enumerate().filter_map(|(n, node)| Some((n, node.model.tree.as_ref()?)));
        open.flat_map(|(n, tree)| kept_back(tree).map(move |path| (n, tree, path)))
            .map(|(n, tree, path)| (n, wanted(tree, path), path))
            .map(|(n, wanted, path)| (n, path.clone(), wanted.map_or_else(Vec::new, holders)))
            .collect()
    }

    /// Whether all that keeps nodes from rest are contents that no node holds.
    fn only_lost_contents(&self) -> bool {
        let held: BTreeSet<[u8; 32]> = self.nodes.iter().flat_map(|node| held(&node.model)).collect();
        let lost = |tree: &ModelTree, path: &TreePath| wanted(tree, path).is_some_and(|hash| !held.contains(&hash.0));
        let stuck = || {
            let open = self.nodes.iter().filter_map(|node| Some((node, node.model.tree.as_ref()?)));
            open.flat_map(|(node, tree)| kept_back(tree).map(move |path| (node, tree, path)))
        };
        let stands = |node: &SimNode, tree: &ModelTree, path: &TreePath| {
            tree.problems().get(path).is_some_and(|why| node.stands(why))
        };
        stuck().all(|(node, tree, path)| lost(tree, path) || stands(node, tree, path))
            && stuck().any(|(_, tree, path)| lost(tree, path))
    }
}

/// What keeps a tree from rest: paths that cannot be applied; and of each directory that is to appear only when it is complete
/// the path whose content did not come, or itself where it waits for something else.
fn kept_back(tree: &ModelTree) -> impl Iterator<Item = &TreePath> {
    let held: BTreeMap<&TreePath, &TreePath> =
        tree.held_releases().map(|(top, lacks)| (top, lacks.unwrap_or(top))).collect();
    // A directory may be on both lists.
    let stuck: Vec<&TreePath> = tree.stuck_paths().into_iter().filter(|path| !held.contains_key(path)).collect();
    stuck.into_iter().chain(held.into_values())
}

/// The contents that a node holds: what is in its vault, and what its journal knows to be shown. What users made where the
/// tree only receives, and what is ignored, is nobody's to serve.
fn held(node: &ModelNode) -> BTreeSet<[u8; 32]> {
    let is_held = |path: &[u8]| {
        let Some(path) = TreePath::parse(path).ok() else { return path.starts_with(b".pleach/vault/") };
        let known =
            |tree: &ModelTree| Some(!tree.is_local(&path).ok()? && tree.index().row(&path).ok()?.shown.is_some());
        node.tree.as_ref().and_then(known).unwrap_or(false)
    };
    let files = node.disk.user().snapshot(true).into_iter().filter(|(path, _)| is_held(path));
    files.map(|(_, seen)| *blake3::hash(&seen.content).as_bytes()).collect()
}

/// The content that a tree is to show at a path.
fn wanted(tree: &ModelTree, path: &TreePath) -> Option<Hash> {
    let index = tree.index();
    match index.view(path, &index.row(path).ok()?).ok()??.value {
        Value::File { hash, .. } => Some(hash),
        _ => None,
    }
}
