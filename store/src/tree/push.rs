//! What a peer without an agent is sent: plans from the journal, what lies there, what it is owed (DESIGN.md §8).
//!
//! Nothing here talks to anybody: a plan is read from the index, its results are noted in it. A path is
//! noted as pushed before anything of it can be there, so that what a kill interrupts is known.

use std::collections::BTreeSet;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::path::TreePath;

use super::{Tree, TreeError, content_of};
use crate::index;
use crate::kv::Kv;
use crate::rows::{self, ProblemRow, PushRow, PushedRow, Space};
use crate::vfs::Vfs;

/// Rows of the list of what lies there that one call reads.
const ROWS: usize = 1_000;

/// A path that is to be there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PushItem {
    /// Where.
    pub path: TreePath,
    /// Whether it is a directory.
    pub dir: bool,
    /// A file's content.
    pub hash: Option<Hash>,
    /// A file's length in bytes.
    pub size: u64,
    /// Other content was pushed before, perhaps of the same length and time: these prove nothing.
    pub rewritten: bool,
    /// Nothing was ever pushed to this path before.
    pub first: bool,
    /// Part of it may be there, from a push that broke off.
    pub unsure: bool,
}

/// A path that is not to be there any more.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PushGone {
    /// Where.
    pub path: TreePath,
    /// Whether it is a directory there.
    pub dir: bool,
    /// Part of it may be there, from a push that broke off.
    pub unsure: bool,
}

/// What one push is to do.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PushPlan {
    /// What is in the way of what is sent: beneath a path that is a directory no more.
    pub clear: BTreeSet<PushGone>,
    /// What is sent.
    pub send: Vec<PushItem>,
    /// What is deleted.
    pub gone: BTreeSet<PushGone>,
    /// Directories whose times the deletions move.
    pub touched: BTreeSet<TreePath>,
    /// What cannot be sent yet, and why.
    pub owed: Vec<(TreePath, String)>,
    /// Paths that are owed no more: nothing of them is to be done.
    pub settled: Vec<TreePath>,
    /// The journal's place that the plan begins at, and the one that is reached when it is done, where it is of the journal.
    pub upto: Option<(u64, u64)>,
    /// Where the next plan of the same kind goes on; none at the end.
    pub next: Option<TreePath>,
}

impl PushPlan {
    /// Whether nothing is to be done there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.send.is_empty() && self.gone.is_empty() && self.clear.is_empty()
    }
}

/// How a push ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PushResult {
    /// What is there now as it was planned.
    pub there: Vec<PushItem>,
    /// What was not here when it was to be sent.
    pub missing: Vec<TreePath>,
    /// Files of which part may be there.
    pub unsure: Vec<TreePath>,
    /// What is not there.
    pub gone: Vec<TreePath>,
    /// What is to be tried again, and why.
    pub owed: Vec<(TreePath, String)>,
    /// What is owed no more.
    pub settled: Vec<TreePath>,
    /// The journal's place that the plan began at, and the one that is reached.
    pub upto: Option<(u64, u64)>,
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// How far a peer was pushed to; what is known of another target, or under other ignore rules, is left behind.
    ///
    /// # Errors
    /// The store's.
    pub fn open_push(&mut self, peer: &str, target: &str, rules: [u8; 16]) -> Result<PushRow, TreeError> {
        let found = self.push_row(peer)?;
        if let Some(row) = &found
            && row.target == target
            && row.rules == rules
        {
            return Ok(row.clone());
        }
        let fresh = PushRow { target: target.to_owned(), rules, ..PushRow::default() };
        let row = match found {
            // What the rules hid before was not told when it appeared: all is looked at again.
            Some(row) if row.target == target => PushRow { approved: row.approved, checked: row.checked, ..fresh },
            found => {
                if found.is_some() {
                    self.forget_pushed(peer)?;
                }
                fresh
            }
        };
        self.index.put_other(rows::push_key(peer), &row);
        Ok(row)
    }

    /// How far a peer was pushed to, where it ever was.
    ///
    /// # Errors
    /// The store's.
    pub fn push_row(&self, peer: &str) -> Result<Option<PushRow>, TreeError> {
        Ok(self.index.other(&rows::push_key(peer))?)
    }

    /// Stores it.
    pub fn put_push_row(&mut self, peer: &str, row: &PushRow) {
        self.index.put_other(rows::push_key(peer), row);
    }

    /// Has all of the journal looked at again for a peer: other ignore rules hold.
    ///
    /// # Errors
    /// The store's.
    pub fn push_all_again(&mut self, peer: &str) -> Result<(), TreeError> {
        if let Some(row) = self.push_row(peer)? {
            self.put_push_row(peer, &PushRow { seq: 0, ..row });
        }
        Ok(())
    }

    pub(super) fn forget_pushed(&mut self, peer: &str) -> Result<(), TreeError> {
        for space in [Space::Pushed, Space::Owed] {
            let (start, end) = whole(space, peer);
            loop {
                let keys = self.keys(space, &start, &end)?;
                let last = keys.len() < ROWS;
                for key in keys {
                    self.index.delete(key);
                }
                self.index.commit_if_large()?;
                if last {
                    break;
                }
            }
        }
        Ok(())
    }

    fn keys(&self, space: Space, start: &[u8], end: &[u8]) -> Result<Vec<Vec<u8>>, TreeError> {
        Ok(match space {
            Space::Pushed => keys_of(self.index.others::<PushedRow>(start, end, ROWS)?),
            _ => keys_of(self.index.others::<ProblemRow>(start, end, ROWS)?),
        })
    }

    /// Plans what the journal says behind the peer's place, of about so many paths.
    ///
    /// # Errors
    /// The store's.
    pub fn plan_push(&self, peer: &str, paths_max: usize) -> Result<PushPlan, TreeError> {
        let after = self.push_row(peer)?.unwrap_or_default().seq;
        let applied = self.applied();
        let mut plan = PushPlan::default();
        let journal = self.index.journal(after, paths_max)?;
        let whole = journal.len() < paths_max;
        let mut upto = after;
        for (seq, path) in journal {
            if seq > applied {
                break;
            }
            upto = seq;
            self.plan_path(peer, &path, &mut plan)?;
        }
        plan.upto = Some((after, if whole { applied.max(upto) } else { upto }));
        self.finish_plan(peer, plan)
    }

    /// Plans what the peer is owed behind a path, at most so many paths.
    ///
    /// # Errors
    /// The store's.
    pub fn plan_owed(&self, peer: &str, after: Option<&TreePath>, paths_max: usize) -> Result<PushPlan, TreeError> {
        let owed = self.owed(peer, after, paths_max)?;
        let next = owed.last().filter(|_| owed.len() == paths_max).map(|(path, _)| path.clone());
        let mut plan = PushPlan { next, ..PushPlan::default() };
        for (path, _) in owed {
            self.plan_path(peer, &path, &mut plan)?;
        }
        self.finish_plan(peer, plan)
    }

    /// Plans all that the tree shows behind a path, at most so many paths, for a full check.
    ///
    /// # Errors
    /// The store's.
    pub fn plan_check(&self, peer: &str, after: Option<&TreePath>, paths_max: usize) -> Result<PushPlan, TreeError> {
        let found = self.index.beneath(&TreePath::ROOT, after, paths_max)?;
        let next = found.last().filter(|_| found.len() == paths_max).map(|(path, _)| path.clone());
        let mut plan = PushPlan { next, ..PushPlan::default() };
        for (path, _) in found {
            self.plan_path(peer, &path, &mut plan)?;
        }
        self.finish_plan(peer, plan)
    }

    /// Plans the deletion of what was pushed once and is in no entry any more, or could not be deleted.
    ///
    /// # Errors
    /// The store's.
    pub fn plan_left_there(
        &self,
        peer: &str,
        after: Option<&TreePath>,
        paths_max: usize,
    ) -> Result<PushPlan, TreeError> {
        let (start, end) = whole(Space::Pushed, peer);
        let start = after.map_or(start, |path| behind(rows::pushed_key(Space::Pushed, peer, path)));
        let found: Vec<(Vec<u8>, PushedRow)> = self.index.others(&start, &end, paths_max)?;
        let full = found.len() == paths_max;
        let paths: Vec<TreePath> = found.iter().filter_map(|(key, _)| rows::pushed_path(key)).collect();
        let mut plan = PushPlan { next: paths.last().filter(|_| full).cloned(), ..PushPlan::default() };
        for path in paths {
            if !self.is_to_be_here(&self.index.row(&path)?) {
                self.plan_path(peer, &path, &mut plan)?;
            }
        }
        self.finish_plan(peer, plan)
    }

    /// Plans the deletion of those of these paths, found there, that the tree does not have and does not ignore.
    ///
    /// # Errors
    /// The store's.
    pub fn plan_mirror(&self, peer: &str, found: &[(TreePath, bool)]) -> Result<PushPlan, TreeError> {
        let mut plan = PushPlan::default();
        for (path, dir) in found {
            let row = self.index.row(path)?;
            let shown = row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
            if !index::is_live(&row) && !shown && !self.options.ignore.ignored(path, *dir) {
                plan.gone.insert(PushGone { path: path.clone(), dir: *dir, unsure: false });
            }
        }
        self.finish_plan(peer, plan)
    }

    /// What the peer is owed behind a path, with the reasons.
    ///
    /// # Errors
    /// The store's.
    pub fn owed(
        &self,
        peer: &str,
        after: Option<&TreePath>,
        paths_max: usize,
    ) -> Result<Vec<(TreePath, String)>, TreeError> {
        let (start, end) = whole(Space::Owed, peer);
        let start = after.map_or(start, |path| behind(rows::pushed_key(Space::Owed, peer, path)));
        let found: Vec<(Vec<u8>, ProblemRow)> = self.index.others(&start, &end, paths_max)?;
        Ok(found.into_iter().filter_map(|(key, row)| Some((rows::pushed_path(&key)?, row.reason))).collect())
    }

    fn pushed(&self, peer: &str, path: &TreePath) -> Result<Option<PushedRow>, TreeError> {
        Ok(self.index.other(&rows::pushed_key(Space::Pushed, peer, path))?)
    }

    fn plan_path(&self, peer: &str, path: &TreePath, plan: &mut PushPlan) -> Result<(), TreeError> {
        let row = self.index.row(path)?;
        let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref()).map(|state| &state.value);
        let pushed = self.pushed(peer, path)?;
        let is_dir = matches!(shown, Some(Value::Dir)) || pushed.as_ref().is_some_and(|p| p.dir);
        if self.options.ignore.ignored(path, is_dir) {
            // It is not read here any more, and deleted nowhere.
            plan.settled.push(path.clone());
            return Ok(());
        }
        if self.local(path)?.is_some() {
            // What users made of it is told to nobody; the next version that arrives is.
            plan.settled.push(path.clone());
            return Ok(());
        }
        match (self.is_to_be_here(&row), shown, pushed) {
            (true, Some(Value::Special { .. }), _) | (false, None, None) => plan.settled.push(path.clone()),
            (true, Some(value), pushed) => {
                let dir = *value == Value::Dir;
                let (size, hash) = content_of(value);
                if !dir && pushed.as_ref().is_some_and(|p| p.dir) {
                    self.clear_beneath(peer, path, plan)?;
                }
                let rewritten = hash.is_some() && pushed.as_ref().is_some_and(|p| p.hash != hash);
                let item = PushItem {
                    path: path.clone(),
                    dir,
                    hash,
                    size: size.unwrap_or(0),
                    rewritten,
                    first: pushed.is_none(),
                    unsure: !dir && pushed.is_some_and(|p| p.hash.is_none()),
                };
                plan.send.push(item);
            }
            (false, None, Some(pushed)) => {
                plan.gone.insert(PushGone {
                    path: path.clone(),
                    dir: pushed.dir,
                    unsure: !pushed.dir && pushed.hash.is_none(),
                });
            }
            (true, None, _) | (false, Some(_), _) => {
                let reason = self.problems.get(path).cloned();
                plan.owed.push((path.clone(), reason.unwrap_or_else(|| "this disk does not show it yet".to_owned())));
            }
        }
        Ok(())
    }

    /// Everything pushed beneath a directory that is something else now.
    fn clear_beneath(&self, peer: &str, dir: &TreePath, plan: &mut PushPlan) -> Result<(), TreeError> {
        let mut start = rows::pushed_prefix(Space::Pushed, peer);
        start.extend_from_slice(&rows::dir_key(Space::Pushed, dir)[1..]);
        let mut end = start.clone();
        if let Some(last) = end.last_mut() {
            *last += 1;
        }
        loop {
            let found: Vec<(Vec<u8>, PushedRow)> = self.index.others(&start, &end, ROWS)?;
            let last = found.len() < ROWS;
            start = found.last().map(|(key, _)| behind(key.clone())).unwrap_or_default();
            for (key, row) in found {
                if let Some(path) = rows::pushed_path(&key) {
                    plan.clear.insert(PushGone { path, dir: row.dir, unsure: !row.dir && row.hash.is_none() });
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    /// Notes what may be there from now on: before any of it is sent.
    ///
    /// # Errors
    /// The store's.
    pub fn begin_push(&mut self, peer: &str, plan: &PushPlan) -> Result<(), TreeError> {
        for item in plan.send.iter().filter(|item| item.first) {
            let row = PushedRow { dir: item.dir, hash: None };
            self.index.put_other(rows::pushed_key(Space::Pushed, peer, &item.path), &row);
            self.index.commit_if_large()?;
        }
        Ok(())
    }

    /// Adds the directories that the deletions touch, and those that a push before this one left, for not all
    /// beneath them was gone.
    fn finish_plan(&self, peer: &str, mut plan: PushPlan) -> Result<PushPlan, TreeError> {
        let mut emptied = BTreeSet::new();
        for gone in &plan.gone {
            for dir in gone.path.parents().filter(|dir| !dir.is_root()) {
                if self.options.ignore.ignored(&dir, true) {
                    break;
                }
                let row = self.index.row(&dir)?;
                let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref());
                if shown.is_some_and(|state| state.value == Value::Dir) {
                    plan.touched.insert(dir);
                    break;
                }
                if !index::is_live(&row) && shown.is_none() && self.pushed(peer, &dir)?.is_some_and(|p| p.dir) {
                    emptied.insert(PushGone { path: dir, dir: true, unsure: false });
                }
            }
        }
        plan.gone.extend(emptied);
        Ok(plan)
    }

    /// Notes how a push ended.
    ///
    /// # Errors
    /// The store's.
    pub fn note_pushed(&mut self, peer: &str, result: &PushResult) -> Result<(), TreeError> {
        for item in &result.there {
            let row = PushedRow { dir: item.dir, hash: item.hash };
            self.index.put_other(rows::pushed_key(Space::Pushed, peer, &item.path), &row);
            self.index.commit_if_large()?;
        }
        for path in &result.missing {
            // Gone meanwhile: that is in the journal, or will be. Else the whole root was another one.
            let row = self.index.row(path)?;
            let shown = row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
            if index::is_live(&row) && shown {
                let row = ProblemRow { time: self.now(), reason: "it was not here when it was to be sent".to_owned() };
                self.index.put_other(rows::pushed_key(Space::Owed, peer, path), &row);
                self.index.commit_if_large()?;
            }
        }
        for path in &result.unsure {
            let row = PushedRow { dir: false, hash: None };
            self.index.put_other(rows::pushed_key(Space::Pushed, peer, path), &row);
            self.index.commit_if_large()?;
        }
        for path in &result.gone {
            self.index.delete(rows::pushed_key(Space::Pushed, peer, path));
            self.index.commit_if_large()?;
        }
        let done = result.there.iter().map(|item| &item.path).chain(&result.gone).chain(&result.settled);
        let owed: BTreeSet<TreePath> = self.owed(peer, None, usize::MAX)?.into_iter().map(|(path, _)| path).collect();
        for path in done.filter(|path| owed.contains(*path)) {
            self.index.delete(rows::pushed_key(Space::Owed, peer, path));
            self.index.commit_if_large()?;
        }
        for (path, reason) in &result.owed {
            if !owed.contains(path) {
                self.note_trouble(path);
            }
            let row = ProblemRow { time: self.now(), reason: reason.clone() };
            self.index.put_other(rows::pushed_key(Space::Owed, peer, path), &row);
            self.index.commit_if_large()?;
        }
        if let Some((from, upto)) = result.upto
            && let Some(row) = self.push_row(peer)?
            && row.seq == from
        {
            // With the last batch: what is not noted yet is pushed again.
            self.index.put_other(rows::push_key(peer), &PushRow { seq: upto, ..row });
        }
        Ok(())
    }
}

fn keys_of<T>(rows: Vec<(Vec<u8>, T)>) -> Vec<Vec<u8>> {
    rows.into_iter().map(|(key, _)| key).collect()
}

/// The first key behind this one.
fn behind(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}

/// All keys of a peer.
fn whole(space: Space, peer: &str) -> (Vec<u8>, Vec<u8>) {
    let start = rows::pushed_prefix(space, peer);
    let mut end = start.clone();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (start, end)
}
