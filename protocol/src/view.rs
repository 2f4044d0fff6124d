//! What a tree shows of an entry: a pure function, the same on every node (DESIGN.md §2).

use std::collections::BTreeSet;

use crate::entry::{
    Access, AccessSibling, Content, ContentSibling, Entry, LOSERS_MAX, Loser, Principal, Rank, Value, ValueKind,
};
use crate::time::Time;
use crate::version::Dot;

/// What is, was or shall be at a path on a disk.
#[derive(Clone, Debug, Eq, Hash, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct State {
    /// The value.
    pub value: Value,
    /// Content time; none for a directory of which nothing is known but what lies beneath.
    pub mtime: Option<Time>,
    /// Mode and owner; none where no register says (the disk keeps what it has).
    pub access: Option<Access>,
}

/// What the view of one path needs to know of the paths around it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Surroundings {
    /// Whether a live path lies beneath.
    pub live_beneath: bool,
    /// The access of the nearest ancestor of which an entry tells one.
    pub ancestor: Option<Access>,
}

/// The siblings that count: present, and not a paired copy of what some deletion names.
pub(crate) fn candidates(entry: &Entry) -> impl Iterator<Item = (Dot, &ContentSibling, &Value)> {
    let deleted: BTreeSet<&Value> = entry
        .content
        .values()
        .filter_map(|s| match &s.content {
            Content::Absent { was } => was.as_ref(),
            Content::Present(_) => None,
        })
        .collect();
    entry.content.iter().filter_map(move |(dot, s)| {
        let value = s.content.value()?;
        (!(s.paired && deleted.contains(value))).then_some((*dot, s, value))
    })
}

/// The entry's own winner, whatever lies beneath; none where it shows nothing of its own.
#[must_use]
pub fn own(entry: &Entry) -> Option<&Value> {
    candidates(entry)
        .max_by(|(d1, s1, v1), (d2, s2, v2)| {
            let key = |v: &Value, rank: Rank, dot: Dot| (*v == Value::Dir, rank, v.clone(), dot);
            key(v1, s1.rank, *d1).cmp(&key(v2, s2.rank, *d2))
        })
        .map(|(_, _, value)| value)
}

/// Whether the path shows a directory only for what lies beneath it.
#[must_use]
pub fn is_derived(entry: Option<&Entry>, around: &Surroundings) -> bool {
    around.live_beneath && entry.and_then(own) != Some(&Value::Dir)
}

/// What a tree shows; none where nothing.
#[must_use]
pub fn view(entry: Option<&Entry>, around: &Surroundings) -> Option<State> {
    if is_derived(entry, around) {
        let own_access = entry.and_then(access_of_dir);
        let mtime = entry.and_then(|e| dated(e, &Value::Dir).or_else(|| ranked(e)));
        return Some(State { value: Value::Dir, mtime, access: own_access.or_else(|| around.ancestor.clone()) });
    }
    let entry = entry?;
    let value = own(entry)?.clone();
    let mtime = shown_mtime(entry, &value);
    let access = shown_access(entry, &value);
    Some(State { value, mtime: Some(mtime), access })
}

/// The time of the shown content. Where no register dates it, its rank does: the same everywhere.
fn shown_mtime(entry: &Entry, value: &Value) -> Time {
    dated(entry, value).unwrap_or_else(|| {
        let ranks = entry.content.values().filter(|s| s.content.value() == Some(value)).map(|s| s.rank);
        Time::from_nanos(ranks.max().unwrap_or_default().0)
    })
}

/// A directory that stands where a file was concurrently put has no time of its own: the newest
/// rank is the same everywhere.
fn ranked(entry: &Entry) -> Option<Time> {
    entry.content.values().map(|s| s.rank).max().map(|rank| Time::from_nanos(rank.0))
}

/// The greatest time that a register gives this content.
fn dated(entry: &Entry, value: &Value) -> Option<Time> {
    let of_it = entry.times.iter().filter(|(_, t)| t.of == *value);
    of_it.max_by_key(|(dot, t)| (t.rank, t.mtime, **dot)).map(|(_, t)| t.mtime)
}

/// The access of the shown file (of any sibling equal to it), else the greatest of its kind.
fn shown_access(entry: &Entry, value: &Value) -> Option<Access> {
    let files: BTreeSet<Dot> =
        entry.content.values().filter(|s| s.content.value() == Some(value)).map(|s| s.file).collect();
    let greatest = |of_shown_file: bool| {
        entry
            .access
            .iter()
            .filter(|(_, a)| a.of == value.kind() && (!of_shown_file || files.contains(&a.file)))
            .max_by(|(d1, a1), (d2, a2)| {
                let key = |a: &AccessSibling, dot: Dot| (a.rank, a.access.clone(), dot);
                key(a1, **d1).cmp(&key(a2, **d2))
            })
            .map(|(_, a)| a.access.clone())
    };
    greatest(true).or_else(|| greatest(false))
}

/// The access that an entry gives a directory at its path, be it of its own or there for what lies beneath.
#[must_use]
pub fn access_of_dir(entry: &Entry) -> Option<Access> {
    shown_access(entry, &Value::Dir)
}

/// The conflicts of a path, the newest [`LOSERS_MAX`], oldest first: siblings and listed losers
/// whose content is not what is shown.
#[must_use]
pub fn conflicts(entry: &Entry, around: &Surroundings) -> Vec<Loser> {
    let shown = view(Some(entry), around).map(|s| s.value);
    let siblings = candidates(entry).map(|(dot, s, v)| Loser { rank: s.rank, dot, value: v.clone() });
    let listed = entry.losers.values().flatten().cloned();
    let open = siblings.chain(listed).filter(|l| Some(&l.value) != shown.as_ref() && l.value != Value::Dir);
    newest(open)
}

/// The newest [`LOSERS_MAX`], each once, oldest first.
pub(crate) fn newest(losers: impl Iterator<Item = Loser>) -> Vec<Loser> {
    let mut all: Vec<Loser> = losers.collect::<BTreeSet<_>>().into_iter().collect();
    let cut = all.len().saturating_sub(LOSERS_MAX);
    all.split_off(cut)
}

/// The mode that a value gets where no register says.
#[must_use]
pub const fn default_mode(kind: ValueKind) -> u32 {
    match kind {
        ValueKind::Dir => 0o755,
        ValueKind::Symlink => 0o777,
        ValueKind::File | ValueKind::Special => 0o644,
    }
}

/// An access by numbers alone.
#[must_use]
pub const fn access_by_number(mode: u32, uid: u32, gid: u32) -> Access {
    Access {
        mode,
        owner: Principal { id: uid, name: None },
        group: Principal { id: gid, name: None },
        attributes: None,
    }
}
