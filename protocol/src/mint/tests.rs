use super::*;
use crate::entry::Hash;
use crate::time::Time;
use crate::version::{Actor, NodeId};
use crate::view::access_by_number;

fn dot(node: u8, counter: u64) -> Dot {
    Dot { actor: Actor { node: NodeId([node; 32]), start: 1 }, counter }
}

fn file(content: u8) -> State {
    State {
        value: Value::File { size: 1, hash: Hash([content; 32]) },
        mtime: Some(Time::new(i64::from(content), 0)),
        access: Some(access_by_number(0o644, 0, 0)),
    }
}

fn shows(entry: &Entry) -> Option<Value> {
    view::view(Some(entry), &Surroundings::default()).map(|s| s.value)
}

/// A and B write one path, C saw only B's and deletes it: A's text lives, whatever the order.
#[test]
fn a_deletion_takes_only_what_it_saw() {
    let nothing = Shown::default();
    let (by_a, _) = mint(None, &nothing, Some(&file(1)), dot(1, 1), Rank(10), false);
    let (by_b, b_shown) = mint(None, &nothing, Some(&file(2)), dot(2, 1), Rank(20), false);
    let at_c = Shown { context: by_b.context.clone(), state: b_shown.state };
    let (deleted, _) = mint(Some(&by_b), &at_c, None, dot(3, 1), Rank(30), false);
    let one = by_a.merge(&by_b).merge(&deleted);
    let other = deleted.merge(&by_a).merge(&by_b);
    assert_eq!(one, other);
    assert_eq!(shows(&one), Some(file(1).value));
}

#[test]
fn an_edit_is_above_what_it_saw_whatever_its_clock() {
    let (first, shown) = mint(None, &Shown::default(), Some(&file(1)), dot(1, 1), Rank(4_000), false);
    let (second, _) = mint(Some(&first), &shown, Some(&file(2)), dot(2, 1), Rank(10), false);
    assert_eq!(shows(&first.merge(&second)), Some(file(2).value));
    assert_eq!(second.content.get(&dot(2, 1)).unwrap().rank, Rank(4_001));
}

#[test]
fn a_change_never_supersedes_what_was_merged_but_not_shown() {
    let (base, shown) = mint(None, &Shown::default(), Some(&file(1)), dot(1, 1), Rank(10), false);
    let (remote, _) = mint(Some(&base), &shown, Some(&file(2)), dot(2, 1), Rank(30), false);
    let merged = base.merge(&remote);
    let (local, after) = mint(Some(&merged), &shown, Some(&file(3)), dot(1, 2), Rank(20), false);
    assert!(!after.context.contains(dot(2, 1)));
    assert_eq!(local.content.len(), 2, "both edits are siblings");
    assert_eq!(view::conflicts(&local, &Surroundings::default()).len(), 1);
}

#[test]
fn a_lost_store_brings_no_deletion_back() {
    let (created, shown) = mint(None, &Shown::default(), Some(&file(1)), dot(1, 1), Rank(10), false);
    let (deleted, _) = mint(Some(&created), &shown, None, dot(1, 2), Rank(20), false);
    let (paired, _) = mint(None, &Shown::default(), Some(&file(1)), dot(2, 1), Rank(15), true);
    assert_eq!(shows(&deleted.merge(&paired)), None);
    let (other, _) = mint(None, &Shown::default(), Some(&file(2)), dot(2, 2), Rank(15), true);
    assert_eq!(shows(&deleted.merge(&other)), Some(file(2).value));
}

#[test]
fn losers_are_listed_until_somebody_resolves_them() {
    let (a, _) = mint(None, &Shown::default(), Some(&file(1)), dot(1, 1), Rank(10), false);
    let (b, _) = mint(None, &Shown::default(), Some(&file(2)), dot(2, 1), Rank(20), false);
    let both = a.merge(&b);
    let shown = Shown { context: both.context.clone(), state: Some(file(2)) };
    let (edited, shown) = mint(Some(&both), &shown, Some(&file(3)), dot(2, 2), Rank(30), false);
    assert_eq!(edited.content.len(), 1);
    let listed = view::conflicts(&edited, &Surroundings::default());
    assert_eq!(listed.iter().map(|l| l.dot).collect::<Vec<_>>(), [dot(1, 1)]);
    let (again, _) = mint(Some(&edited), &shown, Some(&file(4)), dot(2, 3), Rank(40), false);
    assert_eq!(view::conflicts(&again, &Surroundings::default()).len(), 1, "carried by the next edit");
}

#[test]
fn a_touch_revives_nothing_and_a_chmod_keeps_the_content() {
    let (base, shown) = mint(None, &Shown::default(), Some(&file(1)), dot(1, 1), Rank(10), false);
    let (deleted, _) = mint(Some(&base), &shown, None, dot(1, 2), Rank(20), false);
    let touched = State { mtime: Some(Time::new(99, 0)), ..file(1) };
    let (touch, _) = mint(Some(&base), &shown, Some(&touched), dot(2, 1), Rank(30), false);
    assert!(touch.content.contains_key(&dot(1, 1)));
    assert_eq!(shows(&touch.merge(&deleted)), None);
    let executable = State { access: Some(access_by_number(0o755, 0, 0)), ..file(1) };
    let (chmod, _) = mint(Some(&base), &shown, Some(&executable), dot(2, 2), Rank(30), false);
    let (edit, _) = mint(Some(&base), &shown, Some(&file(2)), dot(1, 3), Rank(40), false);
    let both = view::view(Some(&chmod.merge(&edit)), &Surroundings::default()).unwrap();
    assert_eq!(both.value, file(2).value);
    assert_eq!(both.access.unwrap().mode, 0o755);
}

#[test]
fn pairing_adopts_what_is_equal() {
    let (theirs, _) = mint(None, &Shown::default(), Some(&file(1)), dot(1, 1), Rank(10), true);
    let ours = State { mtime: Some(Time::new(7, 7)), ..file(1) };
    let how = Circumstances { pairing: true, late: false, receives: false };
    let around = Surroundings::default();
    let got = observe(Some(&theirs), &around, &Shown::default(), Some(&ours), how);
    assert_eq!(got, Observation::Shows(Shown { context: theirs.context.clone(), state: Some(ours) }));
    assert_eq!(observe(Some(&theirs), &around, &Shown::default(), None, how), Observation::Unchanged);
    assert_eq!(observe(Some(&theirs), &around, &Shown::default(), Some(&file(2)), how), Observation::Changed);
}

#[test]
fn a_removed_derived_directory_is_no_deletion() {
    let derived = State { value: Value::Dir, mtime: None, access: Some(access_by_number(0o755, 0, 0)) };
    let shown = Shown { context: VersionVector::default(), state: Some(derived) };
    let around = Surroundings { live_beneath: true, ancestor: None };
    let got = observe(None, &around, &shown, None, Circumstances::default());
    assert_eq!(got, Observation::Shows(Shown::default()));
}

/// Found by random histories: the file that outlived a concurrent link had no owner and no mode.
#[test]
fn a_file_that_outlives_a_concurrent_link_keeps_its_mode() {
    let (base, shown) = mint(None, &Shown::default(), Some(&file(1)), dot(1, 1), Rank(10), false);
    let link = State { value: Value::Symlink { target: b"t".to_vec() }, ..file(9) };
    let (linked, _) = mint(Some(&base), &shown, Some(&link), dot(1, 2), Rank(20), false);
    let (edited, _) = mint(Some(&base), &shown, Some(&file(2)), dot(2, 1), Rank(30), false);
    let both = view::view(Some(&linked.merge(&edited)), &Surroundings::default()).unwrap();
    assert_eq!((both.value, both.access), (file(2).value, file(2).access));
}
