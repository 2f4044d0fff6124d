//! What hooks are told: nothing that happened is lost to a crash, each hook has its own place, and what nobody waits
//! for goes.

use std::collections::BTreeSet;

use pleach_store::rows::{EventRow, HookOn, HookRow, Space, event_key};
use pleach_store::tree::{HookId, HookPlace};
use pleach_store::vfs::model::{CrashKind, Data, Keep};
use pleach_tests::model::{ModelNode, ModelTree, settle};

const ONE: HookId = [1; 16];
const TWO: HookId = [2; 16];

fn set(tree: &mut ModelTree, hooks: &[(HookId, &[HookOn])]) {
    let hooks: Vec<_> = hooks.iter().map(|(id, on)| (*id, on.iter().copied().collect())).collect();
    tree.set_hooks(&hooks).unwrap();
}

/// The paths that a hook is to be told, in order.
fn waiting(tree: &ModelTree, id: HookId, on: HookOn) -> Vec<String> {
    let place = tree.hook(&id).unwrap().place(on).unwrap();
    let events = tree.events(on, place, tree.index().last_event(on), usize::MAX).unwrap();
    events.into_iter().map(|(_, event)| event.path.to_string()).collect()
}

/// The hook was told all that there is.
fn told(tree: &mut ModelTree, id: HookId, on: HookOn) {
    let told = tree.hook(&id).unwrap().place(on).unwrap();
    let upto = tree.index().last_event(on);
    tree.hook_told(HookPlace { id, on, told }, upto).unwrap();
}

/// How many events of what was sent there are, and how many hooks.
fn rows(tree: &ModelTree) -> (usize, usize) {
    let (index, sent) = (tree.index(), HookOn::Sent);
    let (first, end) = (event_key(sent, 0), event_key(sent, u64::MAX));
    let events: Vec<(Vec<u8>, EventRow)> = index.others(&first, &end, usize::MAX).unwrap();
    let (first, end) = ([Space::Event as u8, b's', 1], [Space::Event as u8, b's', 2]);
    let by_path: Vec<(Vec<u8>, u64)> = index.others(&first, &end, usize::MAX).unwrap();
    assert_eq!(events.len(), by_path.len());
    let (first, end) = ([Space::Hook as u8], [Space::Hook as u8 + 1]);
    let hooks: Vec<(Vec<u8>, HookRow)> = index.others(&first, &end, usize::MAX).unwrap();
    (events.len(), hooks.len())
}

/// Makes a node look at its disk and commit.
fn look(node: &mut ModelNode) -> &mut ModelTree {
    let tree = node.tree.as_mut().unwrap();
    tree.scan().unwrap();
    tree.commit().unwrap();
    tree
}

#[test]
fn each_hook_has_its_place_and_what_nobody_waits_for_goes() {
    use HookOn::{Error, Sent};
    let mut node = ModelNode::new(1);
    let user = node.disk.user();
    user.write("old", "0").unwrap();
    node.start().unwrap();
    set(node.tree.as_mut().unwrap(), &[(ONE, &[Sent])]);
    look(&mut node);
    assert!(waiting(node.tree.as_ref().unwrap(), ONE, Sent).is_empty(), "what the first scan finds is no change");
    user.write("a", "1").unwrap();
    user.write("b", "1").unwrap();
    look(&mut node);
    user.write("a", "22").unwrap();
    let tree = look(&mut node);
    // The newest of each path, in order.
    assert_eq!(waiting(tree, ONE, Sent), ["b", "a"]);
    set(tree, &[(ONE, &[Sent]), (TWO, &[Sent, Error])]);
    assert!(waiting(tree, TWO, Sent).is_empty(), "a new one begins at the end");
    user.write("c", "1").unwrap();
    let tree = look(&mut node);
    assert_eq!((waiting(tree, ONE, Sent).len(), waiting(tree, TWO, Sent)), (3, vec!["c".to_owned()]));
    told(tree, ONE, Sent);
    assert_eq!((waiting(tree, ONE, Sent).len(), waiting(tree, TWO, Sent).len(), rows(tree)), (0, 1, (1, 2)));
    // A place that the hook is not at any more moves nothing.
    tree.hook_told(HookPlace { id: TWO, on: Sent, told: 0 }, u64::MAX - 1).unwrap();
    assert_eq!(waiting(tree, TWO, Sent), ["c"]);
    // One went and one came that runs for the same: it is that one, edited. Another is new.
    let edited = [9; 16];
    set(tree, &[(ONE, &[Sent]), (edited, &[Sent, Error])]);
    assert_eq!(waiting(tree, edited, Sent), ["c"]);
    set(tree, &[(ONE, &[Sent]), (TWO, &[Sent])]);
    assert_eq!((waiting(tree, TWO, Sent).len(), rows(tree)), (0, (0, 2)));
    user.write("d", "1").unwrap();
    // Known again after a restart, before anybody names the hooks.
    node.start().unwrap();
    let tree = look(&mut node);
    assert_eq!(waiting(tree, ONE, Sent), ["d"]);
    set(tree, &[]);
    assert_eq!(rows(tree), (0, 0));
    user.write("e", "1").unwrap();
    assert_eq!(rows(look(&mut node)), (0, 0), "nothing is noted for nobody");
}

/// What changes in the second phase, of all kinds.
const CHANGED: [&str; 9] = ["d/kept", "edited", "gone", "link", "mode", "new", "new/deep", "new/deep/f", "renamed"];

/// Two nodes with hooks, one change of each kind made on A, and a crash on one of them; says whether it came.
fn crashed_at(on_b: bool, store: bool, n: u64, kind: CrashKind, kept_batches: usize) -> bool {
    let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
    let user = a.disk.user();
    user.mkdir_all("d").unwrap();
    for name in ["d/kept", "edited", "gone", "mode", "moved", "untouched"] {
        user.write(name, format!("first {name}")).unwrap();
    }
    user.symlink("here", "link").unwrap();
    a.start().unwrap();
    b.start().unwrap();
    set(a.tree.as_mut().unwrap(), &[(ONE, &[HookOn::Sent])]);
    set(b.tree.as_mut().unwrap(), &[(ONE, &[HookOn::Applied])]);
    assert!(settle(&mut a, &mut b).unwrap());
    assert!(waiting(b.tree.as_ref().unwrap(), ONE, HookOn::Applied).contains(&"d/kept".to_owned()));
    told(a.tree.as_mut().unwrap(), ONE, HookOn::Sent);
    told(b.tree.as_mut().unwrap(), ONE, HookOn::Applied);
    for node in [&mut a, &mut b] {
        // What a power cut may undo is no change.
        let tree = node.tree.as_mut().unwrap();
        tree.sync_minted(true).unwrap();
        tree.commit_all().unwrap();
    }
    user.write("d/kept", "second, in place").unwrap();
    user.replace("edited", "another file").unwrap();
    user.remove("gone").unwrap();
    user.remove("link").unwrap();
    user.symlink("there", "link").unwrap();
    user.chmod("mode", 0o600).unwrap();
    user.mkdir_all("new/deep").unwrap();
    user.write("new/deep/f", "f").unwrap();
    user.rename("moved", "renamed").unwrap();
    a.disk.sync();
    let node = if on_b { &b } else { &a };
    if store {
        node.kv.fail_after(n);
    } else {
        node.disk.crash_at(n);
    }
    let mut came = false;
    let mut rest = false;
    while !rest {
        let settled = settle(&mut a, &mut b);
        let node = if on_b { &mut b } else { &mut a };
        if settled.is_err() || node.disk.crashed() {
            assert!(!came, "{settled:?}");
            came = true;
            node.tree = None;
            node.disk.crash();
            node.disk.restart(kind);
            node.kv.crash(kept_batches);
            node.start().unwrap();
            continue;
        }
        rest = settled.unwrap();
    }
    assert_eq!(a.seen(), b.seen());
    for (node, on) in [(&a, HookOn::Sent), (&b, HookOn::Applied)] {
        let told: BTreeSet<String> = waiting(node.tree.as_ref().unwrap(), ONE, on).into_iter().collect();
        let missing: Vec<_> = CHANGED.iter().chain([&"moved"]).filter(|path| !told.contains(**path)).collect();
        assert!(missing.is_empty(), "{on:?}: {missing:?} are told to nobody, {kind:?} {n}");
        assert!(!told.contains("untouched"), "{on:?}: {told:?}");
    }
    came
}

#[test]
fn an_event_is_not_parted_from_what_happened_by_a_crash() {
    let power = CrashKind::Machine { log: Keep::None, data: Data::Lost };
    let mut runs = 0;
    for (kind, kept) in [(CrashKind::Process, 0), (CrashKind::Process, 1_000), (power, 0)] {
        // A makes no change on its own disk.
        for (on_b, store) in [(false, true), (true, false), (true, true)] {
            let came = (1..).find(|n| !crashed_at(on_b, store, *n, kind, kept)).unwrap() - 1;
            assert!(came > 0, "no crash came");
            runs += came;
        }
    }
    println!("{runs} crashes");
}
