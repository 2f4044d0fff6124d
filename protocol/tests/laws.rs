//! The laws that everything rests on, over random states: version vectors are a lattice, merging
//! does not depend on who tells whom when, and the view follows.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod values;

use pleach_protocol::entry::{Content, Entry, LOSERS_MAX, Value};
use pleach_protocol::version::VersionVector;
use pleach_protocol::view::{Surroundings, access_by_number, conflicts, own, view};
use proptest::collection::vec;
use proptest::prelude::*;
use values::{dots, entries, vectors};

fn joined(a: &VersionVector, b: &VersionVector) -> VersionVector {
    let mut both = a.clone();
    both.join(b);
    both
}

/// Everything that a tree can be told about the surroundings of a path.
fn surroundings() -> [Surroundings; 4] {
    let ancestor = Some(access_by_number(0o750, 1, 2));
    [false, true]
        .map(|live_beneath| [None, ancestor.clone()].map(|ancestor| Surroundings { live_beneath, ancestor }))
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
}

/// All orders of `0..n`.
fn orders(n: usize) -> Vec<Vec<usize>> {
    let Some(last) = n.checked_sub(1) else { return vec![Vec::new()] };
    let mut all = Vec::new();
    for order in orders(last) {
        for at in 0..=order.len() {
            let mut longer = order.clone();
            longer.insert(at, last);
            all.push(longer);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn joining_is_a_least_upper_bound(a in vectors(), b in vectors(), c in vectors()) {
        let ab = joined(&a, &b);
        prop_assert_eq!(&ab, &joined(&b, &a), "commutative");
        prop_assert_eq!(joined(&ab, &c), joined(&a, &joined(&b, &c)), "associative");
        prop_assert_eq!(&joined(&a, &a), &a, "idempotent");
        prop_assert!(ab.includes(&a) && ab.includes(&b), "an upper bound");
        if c.includes(&a) && c.includes(&b) {
            prop_assert!(c.includes(&ab), "the least");
        }
        prop_assert_eq!(a.includes(&b), ab == a);
        prop_assert_eq!(joined(&a, &VersionVector::default()), a);
    }

    #[test]
    fn including_is_a_partial_order(a in vectors(), b in vectors(), c in vectors()) {
        prop_assert!(a.includes(&a), "reflexive");
        prop_assert_eq!(a.includes(&b) && b.includes(&a), a == b, "antisymmetric");
        // Three that are ordered are rare by chance, so they are made, too.
        let (ab, abc) = (joined(&a, &b), joined(&joined(&a, &b), &c));
        for (x, y, z) in [(&a, &b, &c), (&a, &ab, &abc), (&abc, &ab, &b)] {
            if x.includes(y) && y.includes(z) {
                prop_assert!(x.includes(z), "transitive");
            }
        }
    }

    #[test]
    fn a_vector_contains_what_was_put_in_and_all_before(a in vectors(), b in vectors(), dot in dots(), probe in dots()) {
        let mut more = a.clone();
        more.insert(dot);
        prop_assert!(more.contains(dot) && more.includes(&a));
        let earlier = probe.actor == dot.actor && probe.counter <= dot.counter;
        prop_assert_eq!(more.contains(probe), a.contains(probe) || earlier);
        prop_assert_eq!(more == a, a.contains(dot));
        prop_assert_eq!(joined(&a, &b).contains(probe), a.contains(probe) || b.contains(probe));
        prop_assert_eq!(a.iter().collect::<VersionVector>(), a.clone());
        prop_assert_eq!((a.iter().count(), a.is_empty()), (a.len(), a == VersionVector::default()));
    }

    #[test]
    fn merging_is_a_least_upper_bound(a in entries(), b in entries(), c in entries()) {
        let ab = a.merge(&b);
        prop_assert_eq!(&ab, &b.merge(&a), "commutative");
        prop_assert_eq!(ab.merge(&c), a.merge(&b.merge(&c)), "associative");
        prop_assert_eq!(&a.merge(&a), &a, "idempotent");
        prop_assert_eq!(&ab.merge(&a), &ab, "what is known changes nothing");
        prop_assert_eq!(&a.merge(&Entry::default()), &a);
        prop_assert_eq!(&ab.context, &joined(&a.context, &b.context));
    }

    #[test]
    fn every_order_of_merging_shows_the_same(known in vec(entries(), 3..=4)) {
        let merge = |order: &[usize]| order.iter().fold(Entry::default(), |all, at| all.merge(&known[*at]));
        let orders = orders(known.len());
        let first = merge(&orders[0]);
        let shown = surroundings().map(|around| (view(Some(&first), &around), conflicts(&first, &around)));
        for order in &orders[1..] {
            let other = merge(order);
            prop_assert_eq!(&first, &other, "{:?}", order);
            for (around, shown) in surroundings().iter().zip(&shown) {
                prop_assert_eq!(&(view(Some(&other), around), conflicts(&other, around)), shown);
            }
        }
        // Two that met before they met the third, and a word that comes twice.
        if let [a, b, c, ..] = known.as_slice() {
            let pairs = a.merge(b).merge(&b.merge(c)).merge(&c.merge(a));
            prop_assert_eq!(a.merge(b).merge(c), pairs);
        }
    }

    #[test]
    fn a_view_is_there_for_everything(entry in entries()) {
        let siblings: Vec<&Value> = entry.content.values().filter_map(|s| s.content.value()).collect();
        for around in surroundings() {
            match view(Some(&entry), &around) {
                Some(state) if around.live_beneath => prop_assert_eq!(state.value, Value::Dir),
                Some(state) => {
                    prop_assert!(siblings.contains(&&state.value) && state.mtime.is_some());
                    prop_assert_eq!(Some(&state.value), own(&entry));
                }
                None => {
                    prop_assert!(!around.live_beneath);
                    // Only a deletion hides what was there when trees were paired.
                    let deletes = entry.content.values().any(|s| matches!(s.content, Content::Absent { was: Some(_) }));
                    prop_assert!(siblings.is_empty() || deletes);
                }
            }
            let listed = conflicts(&entry, &around);
            prop_assert!(listed.len() <= LOSERS_MAX && listed.is_sorted());
            let shown = view(Some(&entry), &around).map(|s| s.value);
            prop_assert!(listed.iter().all(|l| Some(&l.value) != shown.as_ref() && l.value != Value::Dir));
        }
    }
}
