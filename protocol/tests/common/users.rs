//! What users do, and the ledger of it that the checks are made against.

use std::collections::{BTreeMap, BTreeSet};

use pleach_protocol::entry::Value;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::view::State;

use crate::common::{created, file_value, mode};
use crate::node::{Disk, Thing};
use crate::random::Random;

/// Contents below this may be written more than once.
const SHARED: u32 = 3;

/// Everything that users did.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    contents: u32,
    /// Values that were written whole under a name.
    pub(crate) put: BTreeSet<(TreePath, Value)>,
    /// Those written there more than once: which one was deleted cannot be told.
    pub(crate) twice: BTreeSet<(TreePath, Value)>,
    /// Those that somebody who had them on a disk removed or overwrote.
    pub(crate) ended: BTreeSet<(TreePath, Value)>,
    /// Names where somebody removed or replaced something.
    pub(crate) removed: BTreeSet<TreePath>,
    /// Times that a content was given.
    pub(crate) dated: BTreeSet<(Value, Time)>,
    /// Since the last rest: what each node's users last left under a name.
    pub(crate) touched: BTreeMap<TreePath, BTreeMap<u8, Option<State>>>,
    /// Names that a lost store found: what was deleted there may have been seen by nobody.
    pub(crate) exempt: BTreeSet<TreePath>,
}

/// Whether a register keeps the content: directories have none.
pub(crate) const fn has_content(value: &Value) -> bool {
    !matches!(value, Value::Dir)
}

impl Ledger {
    fn note(&mut self, node: u8, before: &Disk, after: &Disk) {
        let paths: BTreeSet<&TreePath> = before.0.keys().chain(after.0.keys()).collect();
        for path in paths {
            let state = |disk: &Disk| disk.0.get(path).map(|t| t.state.clone());
            let (old, new) = (state(before), state(after));
            if old == new {
                continue;
            }
            let value = |state: &Option<State>| state.as_ref().map(|s| s.value.clone());
            if value(&old) != value(&new) {
                self.changed(path, value(&old), value(&new));
            }
            if let Some(new) = new.as_ref().filter(|n| has_content(&n.value)) {
                self.dated.insert((new.value.clone(), new.mtime.expect("a disk has times")));
            }
            let dir = |s: &Option<State>| s.as_ref().is_some_and(|s| s.value == Value::Dir);
            let access = |s: &Option<State>| s.as_ref().and_then(|s| s.access.clone());
            if !(dir(&old) && dir(&new) && access(&old) == access(&new)) {
                self.touched.entry(path.clone()).or_default().insert(node, new);
            }
        }
    }

    fn changed(&mut self, path: &TreePath, old: Option<Value>, new: Option<Value>) {
        if let Some(old) = old {
            self.removed.insert(path.clone());
            if has_content(&old) {
                self.ended.insert((path.clone(), old));
            }
        }
        if let Some(new) = new.filter(has_content) {
            let key = (path.clone(), new);
            self.ended.remove(&key);
            if !self.put.insert(key.clone()) {
                self.twice.insert(key);
            }
        }
    }

    fn next_content(&mut self, random: &mut Random) -> u32 {
        if random.percent(8) {
            return u32::try_from(random.below(SHARED as usize)).expect("a small number");
        }
        self.contents += 1;
        SHARED + self.contents
    }

    /// Does something at a name of a node's disk; says what, or nothing where it cannot be done.
    pub(crate) fn act(
        &mut self,
        (node, disk): (u8, &mut Disk),
        now: Time,
        paths: &[TreePath],
        random: &mut Random,
    ) -> Option<String> {
        let path = random.pick(paths).clone();
        let before = disk.clone();
        let what = self.perform(disk, &path, now, paths, random)?;
        settle_parents(&before, disk, now);
        self.note(node, &before, disk);
        Some(format!("{} {what}", char::from(b'@' + node)))
    }

    fn perform(
        &mut self,
        disk: &mut Disk,
        path: &TreePath,
        now: Time,
        paths: &[TreePath],
        random: &mut Random,
    ) -> Option<String> {
        if !disk.holds_parent(path) {
            return None;
        }
        let old = disk.0.get(path).cloned();
        let dir = disk.is_dir(path);
        let mut put = |value: Value, keep: Option<&Thing>| {
            let mut state = created(value, now.secs);
            if let Some(access) = keep.and_then(|t| t.state.access.clone()) {
                state.access = Some(access);
            } else if private(now) {
                state.access = state.access.map(|a| mode(a.mode & 0o7700));
            }
            disk.0.insert(path.clone(), Thing { state, ctime: now });
        };
        match (random.below(14), &old) {
            (0..=3, None) => {
                let content = self.next_content(random);
                put(file_value(content), None);
                Some(format!("creates {path} with {content}"))
            }
            (0..=3, Some(thing)) if matches!(thing.state.value, Value::File { .. }) => {
                let content = self.next_content(random);
                put(file_value(content), Some(thing));
                Some(format!("writes {content} to {path}"))
            }
            (4, _) if !dir => {
                self.contents += 1;
                let target = self.contents.to_string();
                let mut state = created(Value::Symlink { target: target.clone().into() }, now.secs);
                state.access = Some(mode(0o777));
                disk.0.insert(path.clone(), Thing { state, ctime: now });
                Some(format!("links {path} to {target}"))
            }
            (5..=7, Some(_)) => {
                remove(disk, path);
                Some(format!("removes {path}"))
            }
            (8, None) => {
                put(Value::Dir, None);
                Some(format!("makes {path}/"))
            }
            (9, Some(_)) => {
                let content = self.next_content(random);
                remove(disk, path);
                let value = if dir { file_value(content) } else { Value::Dir };
                disk.0.insert(path.clone(), Thing { state: created(value, now.secs), ctime: now });
                Some(if dir {
                    format!("replaces {path}/ by {content}")
                } else {
                    format!("replaces {path} by a directory")
                })
            }
            (10 | 11, Some(thing)) if !matches!(thing.state.value, Value::Symlink { .. }) => {
                let to = *random.pick(if dir { &[0o755, 0o700, 0o750] } else { &[0o644, 0o600, 0o640] });
                let state = State { access: Some(mode(to)), ..thing.state.clone() };
                disk.0.insert(path.clone(), Thing { state, ctime: now });
                Some(format!("sets {path} to {to:o}"))
            }
            (12, Some(thing)) => {
                let mtime = if random.percent(50) { now } else { Time::new(now.secs / 2, 5) };
                let state = State { mtime: Some(mtime), ..thing.state.clone() };
                disk.0.insert(path.clone(), Thing { state, ctime: now });
                Some(format!("touches {path} to {}", mtime.secs))
            }
            (13, Some(_)) => rename(disk, path, random.pick(paths), now),
            _ => None,
        }
    }
}

/// Half of all creations are private; which ones follows from the clock.
const fn private(now: Time) -> bool {
    now.secs % 2 == 0
}

fn remove(disk: &mut Disk, path: &TreePath) {
    for beneath in disk.beneath(path) {
        disk.0.remove(&beneath);
    }
    disk.0.remove(path);
}

fn rename(disk: &mut Disk, from: &TreePath, to: &TreePath, now: Time) -> Option<String> {
    let apart = from != to && !to.is_beneath(from) && !from.is_beneath(to);
    let over = disk.0.contains_key(to);
    if !apart || !disk.holds_parent(to) || disk.is_dir(to) || (disk.is_dir(from) && over) {
        return None;
    }
    for path in disk.beneath(from).into_iter().chain([from.clone()]) {
        let mut thing = disk.0.remove(&path).expect("it was listed");
        let rest = &path.as_bytes()[from.as_bytes().len()..];
        let target = TreePath::parse(&[to.as_bytes(), rest].concat()).expect("a path of two paths");
        if path == *from {
            thing.ctime = now;
        }
        disk.0.insert(target, thing);
    }
    Some(format!("renames {from} to {to}"))
}

/// A directory's time moves with the names in it.
fn settle_parents(before: &Disk, disk: &mut Disk, now: Time) {
    let names = |disk: &Disk| disk.0.keys().cloned().collect::<BTreeSet<_>>();
    let kind = |disk: &Disk, path: &TreePath| disk.value(path).map(Value::kind);
    let all: BTreeSet<TreePath> = names(before).union(&names(disk)).cloned().collect();
    for path in all {
        if kind(before, &path) == kind(disk, &path) {
            continue;
        }
        if let Some(thing) = path.parent().and_then(|dir| disk.0.get_mut(&dir))
            && thing.state.value == Value::Dir
        {
            thing.state.mtime = Some(now);
            thing.ctime = now;
        }
    }
}
