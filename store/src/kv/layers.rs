//! Rows that are durable in the log and not in the engine yet, read as one with those that are.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};

use super::Row;

/// Rows as they were last put (`Some`) or deleted (`None`).
pub(super) type Layer = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// The first `limit` rows from `start` to before `end`, in order. What the first layer says of a row counts before what
/// the second one does, and that before the engine, whose rows are within these bounds and come in order.
pub(super) fn merged<E>(
    layers: [&Layer; 2],
    (start, end): (&[u8], &[u8]),
    limit: usize,
    engine: impl Iterator<Item = Result<Row, E>>,
) -> Result<Vec<Row>, E> {
    if start >= end {
        return Ok(Vec::new());
    }
    let within = (Included(start), Excluded(end));
    let [mut newer, mut older] = layers.map(|layer| layer.range::<[u8], _>(within).peekable());
    let mut changed = std::iter::from_fn(|| {
        let next = [newer.peek(), older.peek()].into_iter().flatten().map(|(key, _)| *key).min()?;
        let late = newer.next_if(|(key, _)| *key == next);
        let early = older.next_if(|(key, _)| *key == next);
        late.or(early)
    })
    .peekable();
    let owned = |(key, value): (&Vec<u8>, &Option<Vec<u8>>)| Some((key.clone(), value.clone()?));
    let mut rows = Vec::new();
    for row in engine {
        let (key, value) = row?;
        while rows.len() < limit
            && let Some(row) = changed.next_if(|(changed, _)| **changed < key)
        {
            rows.extend(owned(row));
        }
        if rows.len() < limit {
            match changed.next_if(|(changed, _)| **changed == key) {
                Some(row) => rows.extend(owned(row)),
                None => rows.push((key, value)),
            }
        }
        if rows.len() >= limit {
            return Ok(rows);
        }
    }
    rows.extend(changed.filter_map(owned).take(limit - rows.len()));
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
            let found = merged([&newer, &older], (&start, &end), limit, rows(&stored).into_iter().map(Ok::<_, ()>));
            prop_assert_eq!(found, Ok(expected));
        }
    }
}
