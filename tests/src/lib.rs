//! What the integration tests share: two trees that talk to each other by plain calls, and the fuzz targets.

pub mod fuzz;
pub mod model;
pub mod sim;

use std::collections::BTreeMap;

use pleach_protocol::session::What;
use pleach_protocol::version::NodeId;
use pleach_store::kv::Kv;
use pleach_store::tree::{Digests, Rows, Tree, TreeError, Want};
use pleach_store::vfs::Vfs;

/// How far one side has read the other's journal in this conversation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heard {
    position: u64,
}

/// One direction after the other: everything that `from` has is merged by `to`, and `to` fetches
/// what it needs. Returns whether anything moved.
///
/// # Errors
/// Either tree's.
pub fn pull<V: Vfs, K: Kv>(
    from: &mut Tree<V, K>,
    from_id: NodeId,
    to: &mut Tree<V, K>,
    to_id: NodeId,
    heard: &mut Heard,
) -> Result<bool, TreeError> {
    let known = to.cursor(from_id)?.filter(|c| c.incarnation == from.life().incarnation).unwrap_or_default();
    if heard.position == 0 {
        // A session begins; what it acks is known when it is told.
        from.greet(to_id, (known.seq, known.start))?;
        heard.position = known.seq;
    }
    let mut moved = false;
    while heard.position < from.head() {
        let read = from.read_rows(heard.position, 48 * 1024, (to_id, to.life()), &mut Digests::default())?;
        let Rows { rows, names, upto, .. } = read;
        moved |= !rows.is_empty();
        to.merge((from_id, from.life()), rows, names, upto)?;
        to.commit()?;
        heard.position = upto;
    }
    moved |= fetch(from, to)?;
    Ok(moved)
}

/// Applies what is merged, fetching content from `from`.
///
/// # Errors
/// Either tree's.
pub fn fetch<V: Vfs, K: Kv>(from: &mut Tree<V, K>, to: &mut Tree<V, K>) -> Result<bool, TreeError> {
    let mut moved = false;
    loop {
        let wants: Vec<Want> = to.apply()?;
        to.commit()?;
        if wants.is_empty() && !to.goes_on() {
            return Ok(moved);
        }
        moved = true;
        for want in wants {
            answer(from, to, want)?;
        }
    }
}

/// Answers one want.
fn answer<V: Vfs, K: Kv>(from: &mut Tree<V, K>, to: &mut Tree<V, K>, want: Want) -> Result<(), TreeError> {
    let ranges = match want.what.behind(to.received_of(want.id)) {
        What::From(offset) => vec![(offset, want.size.saturating_sub(offset))],
        What::Ranges(ranges) => ranges,
        What::Manifest(known) => {
            let (known, mut offset) = (known.into(), 0);
            loop {
                match from.read_manifest(&want.path, want.hash, &known, offset, 50_000) {
                    Ok(Some((bytes, last))) => {
                        to.receive(want.id, offset, &bytes, last)?;
                        offset += bytes.len() as u64;
                        if last {
                            return Ok(());
                        }
                    }
                    Ok(None) => drop(from.apply()?),
                    Err(error) => return to.missing(want.id, &error.to_string()),
                }
            }
        }
    };
    let all = ranges.len();
    for ((mut offset, length), number) in ranges.into_iter().zip(1..) {
        let end = offset + length;
        loop {
            let bytes_max = usize::try_from(end - offset).unwrap_or(usize::MAX).min(64 * 1024);
            match from.read_content(&want.path, want.hash, offset, bytes_max) {
                Ok(bytes) => {
                    let ended = offset + bytes.len() as u64 >= end || bytes.is_empty();
                    to.receive(want.id, offset, &bytes, ended && number == all)?;
                    offset += bytes.len() as u64;
                    if ended {
                        break;
                    }
                }
                Err(error) => return to.missing(want.id, &error.to_string()),
            }
        }
    }
    Ok(())
}

/// Two trees until neither has anything to tell, look at or apply; at most `rounds` rounds.
/// Returns whether they came to rest.
///
/// # Errors
/// Either tree's.
pub fn settle<V: Vfs, K: Kv>(
    a: (&mut Tree<V, K>, NodeId),
    b: (&mut Tree<V, K>, NodeId),
    heard: &mut BTreeMap<NodeId, Heard>,
    rounds: usize,
) -> Result<bool, TreeError> {
    for _ in 0..rounds {
        for tree in [&mut *a.0, &mut *b.0] {
            for path in tree.catch_up()? {
                tree.look_again(&path, false, false);
            }
            tree.check_late_writers()?;
            tree.commit()?;
        }
        let mut moved = pull(a.0, a.1, b.0, b.1, heard.entry(a.1).or_default())?;
        moved |= pull(b.0, b.1, a.0, a.1, heard.entry(b.1).or_default())?;
        if !moved && a.0.is_quiet() && b.0.is_quiet() {
            return Ok(true);
        }
    }
    Ok(false)
}
