//! How a change that this disk shows becomes part of an entry (DESIGN.md §2, "a local change").
//!
//! [`observe`] compares what is on the disk with what it last showed and says what follows;
//! [`mint`] writes the change under one new dot. Both are plain functions.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::entry::{AccessSibling, Content, ContentSibling, Entry, Loser, Rank, TimesSibling, Value};
use crate::sorted::SortedMap;
use crate::version::{Dot, VersionVector};
use crate::view::{self, State, Surroundings};

/// What a disk last showed at a path, and which writes that took into account. Local, never sent.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// The writes that the disk's state includes.
    pub context: VersionVector,
    /// The state; none where nothing was there.
    pub state: Option<State>,
}

/// What an observation is made under.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Circumstances {
    /// Nothing was ever shown here and the root is being paired: adopt what is equal, delete nothing.
    pub pairing: bool,
    /// The state was found in what an exchange brought out: it is judged against Shown alone.
    pub late: bool,
    /// This node only receives: what users change here is told to nobody.
    pub receives: bool,
}

/// What an observation means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Observation {
    /// The disk is as it was shown; there is nothing to write.
    Unchanged,
    /// No change of a user's; Shown takes this value, the entry stays.
    Shows(Shown),
    /// A local change: it must be minted.
    Changed,
    /// A local change on a node that only receives: it stays on the disk, beside what is shown, and is told to nobody.
    Local,
}

impl State {
    /// Whether a disk in this state shows `view`, which may leave time or access unmanaged.
    #[must_use]
    pub fn shows(&self, view: &Self) -> bool {
        self.value == view.value
            && (view.mtime.is_none() || self.mtime == view.mtime)
            && (view.access.is_none() || self.access == view.access)
    }

    /// Whether two observations of one disk are the same: times that nobody manages do not count.
    fn same_as_shown(&self, shown: &Self) -> bool {
        let unmanaged = shown.mtime.is_none() && shown.value == Value::Dir;
        self.value == shown.value
            && (unmanaged || self.mtime == shown.mtime)
            && (shown.access.is_none() || self.access == shown.access)
    }
}

/// Whether a disk that shows `shown` needs no work to show `view`.
#[must_use]
pub fn agrees(shown: Option<&State>, view: Option<&State>) -> bool {
    match (shown, view) {
        (None, None) => true,
        (Some(shown), Some(view)) => shown.shows(view),
        _ => false,
    }
}

/// Says what it means that the disk holds `disk` where it last showed `shown`.
#[must_use]
pub fn observe(
    entry: Option<&Entry>,
    around: &Surroundings,
    shown: &Shown,
    disk: Option<&State>,
    how: Circumstances,
) -> Observation {
    let same = match (disk, &shown.state) {
        (None, None) => true,
        (Some(disk), Some(shown)) => disk.same_as_shown(shown),
        _ => false,
    };
    let seen = view::view(entry, around);
    let with_context_of = |entry: &Entry, state: Option<State>| Shown { context: entry.context.clone(), state };
    if same {
        return match entry {
            Some(e) if !how.late && shown.context != e.context && agrees(shown.state.as_ref(), seen.as_ref()) => {
                Observation::Shows(with_context_of(e, shown.state.clone()))
            }
            _ => Observation::Unchanged,
        };
    }
    if how.pairing {
        match (disk, entry, &seen) {
            (None, _, _) => return Observation::Unchanged,
            (Some(disk), Some(e), Some(seen)) if disk.value == seen.value && tells_of(e, &disk.value) => {
                return Observation::Shows(with_context_of(e, Some(disk.clone())));
            }
            _ => {}
        }
    }
    if how.receives {
        return observe_local((entry, seen.as_ref()), shown, disk);
    }
    if disk.is_none() && entry.and_then(view::own).is_none() {
        // A derived directory was removed: what lies beneath says so itself.
        return Observation::Shows(Shown { context: shown.context.clone(), state: None });
    }
    Observation::Changed
}

/// Whether an entry says how what is found looks: a directory that it shows for what lies beneath alone may be one
/// of which nobody has told, whose mode would be lost.
fn tells_of(entry: &Entry, found: &Value) -> bool {
    view::own(entry) == Some(found) || view::access_of_dir(entry).is_some()
}

/// What a difference means on a node that only receives: nothing is minted, and what is due anyway is taken as it is.
fn observe_local((entry, seen): (Option<&Entry>, Option<&State>), shown: &Shown, disk: Option<&State>) -> Observation {
    let context = || entry.map_or_else(|| shown.context.clone(), |entry| entry.context.clone());
    match (disk, seen) {
        (Some(disk), Some(seen)) if disk.value == seen.value && !agrees(shown.state.as_ref(), Some(seen)) => {
            Observation::Shows(Shown { context: context(), state: Some(disk.clone()) })
        }
        (None, None) => Observation::Shows(Shown { context: context(), state: None }),
        // A directory's time moves with what is in it.
        (Some(disk), _)
            if disk.value == Value::Dir && shown.state.as_ref().is_some_and(|s| only_time_differs(disk, s)) =>
        {
            Observation::Unchanged
        }
        _ => Observation::Local,
    }
}

fn only_time_differs(disk: &State, shown: &State) -> bool {
    disk.same_as_shown(&State { mtime: disk.mtime, ..shown.clone() })
}

/// Writes the change from `shown` to `disk` into the entry under `dot`, and returns the entry and
/// the new Shown: the old context plus the dot, never what was merged but not yet on disk.
///
/// `rank` is the inode's change time for a change, its content time at a pairing, now for a
/// deletion, capped at now; it is raised above everything that the change supersedes.
#[must_use]
pub fn mint(
    entry: Option<&Entry>,
    shown: &Shown,
    disk: Option<&State>,
    dot: Dot,
    rank: Rank,
    paired: bool,
) -> (Entry, Shown) {
    let mut entry = entry.cloned().unwrap_or_default();
    let rank = rank.max(entry.greatest_rank_in(&shown.context).above());
    let before = shown.state.as_ref();
    let value = disk.map(|d| &d.value);
    // A chmod makes a derived directory real; a time that moved with its children does not.
    let chmod = disk.is_some_and(|d| before.is_none_or(|b| b.access != d.access));
    let becomes_real = chmod && value == Some(&Value::Dir) && view::own(&entry) != Some(&Value::Dir);
    let content_changed = value != before.map(|b| &b.value) || becomes_real;
    if content_changed {
        mint_content(&mut entry, shown, value, ContentStamp { dot, rank, paired });
    }
    if let Some(disk) = disk {
        let unmanaged = before.is_some_and(|b| b.mtime.is_none() && b.value == Value::Dir) && !content_changed;
        if let Some(mtime) = disk.mtime
            && (content_changed || before.is_none_or(|b| b.mtime != disk.mtime))
            && !unmanaged
        {
            entry.times.retain(|d, _| !shown.context.contains(*d));
            entry.times.insert(dot, TimesSibling { rank, of: disk.value.clone(), mtime });
        }
        let kind_changed = before.is_none_or(|b| b.value.kind() != disk.value.kind());
        if let Some(access) = &disk.access
            && (kind_changed || before.is_none_or(|b| b.access != disk.access))
        {
            let file = file_of(&entry.content, &disk.value).unwrap_or(dot);
            let sibling = AccessSibling { rank, of: disk.value.kind(), file, access: access.clone() };
            mint_access(&mut entry, &shown.context, sibling, dot);
        }
    }
    entry.context.insert(dot);
    let mut context = shown.context.clone();
    context.insert(dot);
    (entry, Shown { context, state: disk.cloned() })
}

struct ContentStamp {
    dot: Dot,
    rank: Rank,
    paired: bool,
}

/// Drops what the change supersedes, lists what was dropped unseen, and adds the new sibling.
fn mint_content(entry: &mut Entry, shown: &Shown, value: Option<&Value>, stamp: ContentStamp) {
    let before = shown.state.as_ref().map(|b| &b.value);
    let superseded = |dot: &Dot, sibling: &ContentSibling| {
        shown.context.contains(*dot) || (before.is_some() && sibling.content.value() == before)
    };
    let visible: BTreeSet<Dot> = view::candidates(entry).map(|(dot, _, _)| dot).collect();
    let (gone, kept): (SortedMap<_, _>, SortedMap<_, _>) =
        std::mem::take(&mut entry.content).into_iter().partition(|(dot, sibling)| superseded(dot, sibling));
    let mut losers: Vec<Loser> = gone
        .iter()
        .filter(|(dot, _)| visible.contains(dot))
        .filter_map(|(dot, s)| Some(Loser { rank: s.rank, dot: *dot, value: s.content.value()?.clone() }))
        .filter(|l| Some(&l.value) != before && l.value != Value::Dir)
        .collect();
    entry.losers.retain(|dot, list| {
        let carried = shown.context.contains(*dot);
        if carried {
            losers.append(list);
        }
        !carried
    });
    let losers = view::newest(losers.into_iter());
    if !losers.is_empty() {
        entry.losers.insert(stamp.dot, losers);
    }
    let same_kind = matches!((value, before), (Some(v), Some(b)) if v.kind() == b.kind());
    let file = if same_kind { before.and_then(|b| file_of(&gone, b)) } else { None };
    entry.content = kept;
    let content = match value {
        Some(value) => Content::Present(value.clone()),
        None => Content::Absent { was: before.cloned() },
    };
    entry.content.insert(
        stamp.dot,
        ContentSibling { rank: stamp.rank, paired: stamp.paired, file: file.unwrap_or(stamp.dot), content },
    );
}

/// Sets the access of one file; that of other files that are still siblings stays, and that of other
/// kinds: a concurrent edit may bring the old kind back, which must still have its mode.
fn mint_access(entry: &mut Entry, seen: &VersionVector, sibling: AccessSibling, dot: Dot) {
    let others: BTreeSet<Dot> = entry.content.values().map(|s| s.file).filter(|file| *file != sibling.file).collect();
    entry.access.retain(|d, a| !seen.contains(*d) || a.of != sibling.of || others.contains(&a.file));
    entry.access.insert(dot, sibling);
}

/// The creation dot of the greatest sibling with this value.
fn file_of(siblings: &SortedMap<Dot, ContentSibling>, value: &Value) -> Option<Dot> {
    siblings.values().filter(|s| s.content.value() == Some(value)).map(|s| (s.rank, s.file)).max().map(|(_, f)| f)
}

#[cfg(test)]
mod tests;
