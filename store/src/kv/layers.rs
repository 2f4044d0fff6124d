//! Rows that wait in front of those that are stored, read as one with them.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};

use super::Row;

/// Rows as they were last put (`Some`) or deleted (`None`).
pub(super) type Layer = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// What two layers say of the rows from `start` to before `end`, in order; of a row of both, what the first one says.
pub(super) fn newest<'l>(
    layers: [&'l Layer; 2],
    (start, end): (&[u8], &[u8]),
) -> impl Iterator<Item = (&'l Vec<u8>, Option<&'l Vec<u8>>)> {
    // A range that ends before it begins would panic.
    let within = (Included(start), Excluded(end.max(start)));
    let [mut newer, mut older] = layers.map(|layer| layer.range::<[u8], _>(within).peekable());
    std::iter::from_fn(move || {
        let next = [newer.peek(), older.peek()].into_iter().flatten().map(|(key, _)| *key).min()?;
        let late = newer.next_if(|(key, _)| *key == next);
        let early = older.next_if(|(key, _)| *key == next);
        late.or(early).map(|(key, value)| (key, value.as_ref()))
    })
}

/// The first `limit` of the rows that are stored as they were changed since: put (`Some`) or deleted. Both come in the
/// order of their keys; `read` makes of a stored value what a changed one is.
pub(crate) fn overlaid<'c, T: Clone + 'c, E>(
    changed: impl Iterator<Item = (&'c Vec<u8>, Option<&'c T>)>,
    mut stored: impl Iterator<Item = Result<Row, E>>,
    limit: usize,
    read: impl Fn(Vec<u8>) -> Result<T, E>,
) -> Result<Vec<(Vec<u8>, T)>, E> {
    let (mut rows, mut changed) = (Vec::new(), changed.peekable());
    let put = |(key, value): (&Vec<u8>, Option<&T>)| Some((key.clone(), value?.clone()));
    while rows.len() < limit
        && let Some(row) = stored.next()
    {
        let (key, value) = row?;
        while rows.len() < limit
            && let Some(row) = changed.next_if(|(changed, _)| **changed < key)
        {
            rows.extend(put(row));
        }
        if rows.len() == limit {
            break;
        }
        match changed.next_if(|(changed, _)| **changed == key) {
            Some(row) => rows.extend(put(row)),
            None => rows.push((key, read(value)?)),
        }
    }
    rows.extend(changed.filter_map(put).take(limit - rows.len()));
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn layer() -> impl Strategy<Value = Layer> {
        proptest::collection::btree_map(
            proptest::collection::vec(0..4_u8, 0..3),
            proptest::option::of(proptest::collection::vec(0..9_u8, 0..2)),
            0..8,
        )
    }

    proptest! {
        #[test]
        fn layers_read_like_one_map(
            newer in layer(), older in layer(), engine in layer(),
            start in proptest::collection::vec(0..4_u8, 0..3), end in proptest::collection::vec(0..4_u8, 0..3), limit in 0..9_usize,
        ) {
            let mut one: Layer = engine.clone();
            one.retain(|_, value| value.is_some());
            let stored = one.clone();
            one.extend(older.clone());
            one.extend(newer.clone());
            let within = |key: &[u8]| *key >= *start && *key < *end;
            let rows = |map: &Layer| -> Vec<Row> {
                map.iter().filter(|(key, _)| within(key)).filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect()
            };
            let expected: Vec<Row> = rows(&one).into_iter().take(limit).collect();
            let changed = newest([&newer, &older], (&start, &end));
            let found = overlaid(changed, rows(&stored).into_iter().map(Ok::<_, ()>), limit, Ok);
            prop_assert_eq!(found, Ok(expected));
        }
    }
}
