//! Strategies for values of the protocol, for the tests of laws and of bytes.

use pleach_protocol::entry::{
    AccessSibling, Content, ContentSibling, Entry, Hash, Loser, Rank, TimesSibling, Value, ValueKind,
};
use pleach_protocol::time::Time;
use pleach_protocol::version::{Actor, Dot, NodeId, VersionVector};
use pleach_protocol::view::access_by_number;
use proptest::collection::vec;
use proptest::prelude::*;

/// Actors of the small world in which dots meet.
const ACTORS: u8 = 4;
/// Writes of each.
const COUNTERS: u64 = 4;

pub(crate) fn actor(node: u8) -> Actor {
    Actor { node: NodeId([node; 32]), start: u64::from(node) << 40 }
}

pub(crate) fn dots() -> impl Strategy<Value = Dot> {
    (0..ACTORS, 1..=COUNTERS).prop_map(|(node, counter)| Dot { actor: actor(node), counter })
}

pub(crate) fn vectors() -> impl Strategy<Value = VersionVector> {
    vec(dots(), 0..6).prop_map(|dots| dots.into_iter().collect())
}

/// A few bits of a number that only the dot and `salt` decide.
fn bits(dot: Dot, salt: u64) -> u64 {
    let seed = (u64::from(dot.actor.node.0[0]) << 32 | dot.counter << 8 | salt).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (seed ^ seed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40
}

/// One of few values, so that writers agree now and then.
fn value(bits: u64) -> Value {
    match bits % 6 {
        0 => Value::Dir,
        1 => Value::Symlink { target: b"to".to_vec() },
        n => Value::File { size: 300 * n, hash: Hash([u8::try_from(n).unwrap(); 32]) },
    }
}

fn kind(bits: u64) -> ValueKind {
    value(bits).kind()
}

fn file_of(dot: Dot) -> Dot {
    Dot { counter: 1 + bits(dot, 1) % dot.counter, ..dot }
}

fn rank(dot: Dot) -> Rank {
    Rank(i64::try_from(bits(dot, 2) % 4).unwrap() - 1)
}

fn content(dot: Dot) -> ContentSibling {
    let value = value(bits(dot, 3));
    let content = match bits(dot, 4) % 4 {
        0 => Content::Absent { was: (bits(dot, 5) & 1 == 0).then_some(value) },
        _ => Content::Present(value),
    };
    ContentSibling { rank: rank(dot), paired: bits(dot, 6).is_multiple_of(3), file: file_of(dot), content }
}

fn times(dot: Dot) -> TimesSibling {
    let secs = i64::try_from(bits(dot, 7) % 1000).unwrap() - 500;
    TimesSibling { rank: rank(dot), of: value(bits(dot, 8)), mtime: Time::new(secs, 999_999_999) }
}

fn access(dot: Dot) -> AccessSibling {
    let mode = u32::try_from(bits(dot, 9) % 0o10000).unwrap();
    let mut access = access_by_number(mode, 1000, 100);
    access.owner.name = (bits(dot, 10) & 1 == 0).then(|| b"www".to_vec());
    AccessSibling { rank: rank(dot), of: kind(bits(dot, 11)), file: file_of(dot), access }
}

fn losers(dot: Dot) -> Vec<Loser> {
    let lost = (1..dot.counter).map(|counter| Dot { counter, ..dot });
    lost.map(|dot| Loser { rank: rank(dot), dot, value: value(bits(dot, 12)) }).collect()
}

/// Entries as writers could leave them: what a dot wrote is decided by the dot, so two that hold the
/// same dot agree; the context includes every dot; what it includes may have been superseded.
pub(crate) fn entries() -> impl Strategy<Value = Entry> {
    let kept = || vec(any::<prop::sample::Index>(), 0..5);
    (vectors(), kept(), kept(), kept(), kept()).prop_map(|(context, in_content, in_times, in_access, in_losers)| {
        let seen: Vec<Dot> =
            context.iter().flat_map(|top| (1..=top.counter).map(move |counter| Dot { counter, ..top })).collect();
        let pick = |kept: Vec<prop::sample::Index>| {
            let dots: Vec<Dot> = kept.iter().filter(|_| !seen.is_empty()).map(|at| *at.get(&seen)).collect();
            dots
        };
        Entry {
            content: pick(in_content).into_iter().map(|dot| (dot, content(dot))).collect(),
            times: pick(in_times).into_iter().map(|dot| (dot, times(dot))).collect(),
            access: pick(in_access).into_iter().map(|dot| (dot, access(dot))).collect(),
            losers: pick(in_losers).into_iter().map(|dot| (dot, losers(dot))).collect(),
            context,
        }
    })
}
