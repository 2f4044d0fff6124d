//! What both property tests need: a generator, small states, and the laws of merging.

use pleach_protocol::entry::{Access, Content, ContentSibling, Entry, Hash, Value};
use pleach_protocol::time::Time;
use pleach_protocol::version::{Actor, Dot, NodeId};
use pleach_protocol::view::{State, access_by_number, default_mode};

/// One write by a node's writer.
pub(crate) fn dot(node: u8, start: u64, counter: u64) -> Dot {
    Dot { actor: Actor { node: NodeId([node; 32]), start }, counter }
}

/// A file's value: contents are numbered, each number is one content.
pub(crate) fn file_value(content: u32) -> Value {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&content.to_be_bytes());
    Value::File { size: u64::from(content), hash: Hash(hash) }
}

/// Mode alone; nobody changes owners here.
pub(crate) fn mode(mode: u32) -> Access {
    access_by_number(mode, 0, 0)
}

/// What a disk holds after a plain creation.
pub(crate) fn created(value: Value, secs: i64) -> State {
    let access = mode(default_mode(value.kind()));
    State { value, mtime: Some(Time::new(secs, 0)), access: Some(access) }
}

/// What every entry is: its siblings' dots are in its context, and a deletion names no directory
/// in a list of losers.
///
/// # Errors
/// What does not hold.
pub(crate) fn check_entry(entry: &Entry) -> Result<(), String> {
    let dots = entry.content.keys().chain(entry.times.keys()).chain(entry.access.keys()).chain(entry.losers.keys());
    if let Some(dot) = dots.into_iter().find(|dot| !entry.context.contains(**dot)) {
        return Err(format!("the context lacks {dot:?}: {entry:?}"));
    }
    let dangling = |s: &ContentSibling| !entry.context.contains(s.file);
    if let Some(sibling) = entry.content.values().find(|s| dangling(s)) {
        return Err(format!("a file was created by an unseen write: {sibling:?}"));
    }
    if entry.losers.values().flatten().any(|l| l.value == Value::Dir) {
        return Err(format!("a directory is listed as a loser: {entry:?}"));
    }
    if !entry.context.is_empty() && entry.content.is_empty() {
        return Err(format!("nothing says what is there: {entry:?}"));
    }
    let born = |s: &ContentSibling| matches!(s.content, Content::Absent { .. }) && s.paired;
    if entry.content.values().any(born) {
        return Err(format!("a pairing deleted: {entry:?}"));
    }
    Ok(())
}

/// The laws of merging for two entries of one path.
///
/// # Errors
/// Which law is broken.
pub(crate) fn check_pair(a: &Entry, b: &Entry) -> Result<Entry, String> {
    let joined = a.merge(b);
    let laws = [
        ("commutative", b.merge(a) == joined),
        ("idempotent", a.merge(a) == *a),
        ("absorbing on the left", a.merge(&joined) == joined),
        ("absorbing on the right", joined.merge(b) == joined),
    ];
    if let Some((law, _)) = laws.iter().find(|(_, holds)| !holds) {
        return Err(format!("merge is not {law}: {a:?} and {b:?}"));
    }
    if !joined.context.includes(&a.context) || !joined.context.includes(&b.context) {
        return Err(format!("merge forgets writes: {a:?} and {b:?}"));
    }
    check_entry(&joined)?;
    Ok(joined)
}

/// The law that needs three.
///
/// # Errors
/// Where it is broken.
pub(crate) fn check_triple(a: &Entry, b: &Entry, c: &Entry) -> Result<(), String> {
    if a.merge(b).merge(c) == a.merge(&b.merge(c)) {
        return Ok(());
    }
    Err(format!("merge is not associative: {a:?} and {b:?} and {c:?}"))
}
