//! A directory that is renamed as one unit.

use std::collections::BTreeSet;

use pleach_protocol::moved::Moved;
use pleach_protocol::path::TreePath;
use pleach_store::tree::{Digests, TreeError};
use pleach_store::vfs::model::{CrashKind, Data, Keep};
use pleach_tests::model::{ModelNode, check_sums, pair, rest};

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

/// Two nodes that show a directory `d` alike.
fn held() -> (ModelNode, ModelNode) {
    let (mut a, mut b) = pair();
    let user = a.disk.user();
    user.mkdir_all("d/sub/empty").unwrap();
    user.mkdir_all("x").unwrap();
    for n in 0..12 {
        user.write(format!("d/sub/f{n}"), format!("small {n}")).unwrap();
    }
    user.write("d/large", vec![b'l'; 50_000]).unwrap();
    user.symlink("sub/f1", "d/link").unwrap();
    user.chmod("d/sub", 0o750).unwrap();
    user.write("d/sub/gone", "a tombstone").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().remove("d/sub/gone").unwrap();
    rest(&mut a, &mut b);
    (a, b)
}

/// A user renames a directory, and the node notes it.
fn begin(node: &mut ModelNode, from: &str, to: &str) -> Result<Option<Moved>, TreeError> {
    node.disk.user().rename(from, to).unwrap();
    let tree = node.tree.as_mut().unwrap();
    tree.look_again(&path(from), false, false);
    tree.begin_move(&path(to))
}

fn carry(to: &mut ModelNode, moved: &Moved, from: &ModelNode) -> Result<bool, TreeError> {
    carry_in(&mut Digests::default(), to, moved, from)
}

/// The same in a session of which these are the digests.
fn carry_in(session: &mut Digests, to: &mut ModelNode, moved: &Moved, from: &ModelNode) -> Result<bool, TreeError> {
    let life = from.tree.as_ref().unwrap().life();
    let tree = to.tree.as_mut().unwrap();
    let carried = tree.carry_move(moved, (from.id, life), session)?;
    tree.commit()?;
    Ok(carried)
}

fn finish(node: &mut ModelNode) -> Result<(), TreeError> {
    let tree = node.tree.as_mut().unwrap();
    tree.finish_move()?;
    tree.commit()
}

#[test]
fn a_directory_moves_before_any_row_of_it_is_told() {
    for (from, to) in [("d", "e"), ("d", "x/y"), ("d/sub", "sub")] {
        let (mut a, mut b) = held();
        let inode = |node: &ModelNode, path: String| node.disk.user().stat(path).unwrap().inode;
        let before = inode(&b, from.to_owned());
        let moved = begin(&mut a, from, to).unwrap().expect("it is one unit");
        assert!(carry(&mut b, &moved, &a).unwrap(), "{from} to {to}");
        let places =
            |node: &ModelNode| node.seen().into_iter().map(|(path, seen)| (path, seen.mode)).collect::<Vec<_>>();
        assert_eq!(places(&a), places(&b), "{from} to {to}");
        assert_eq!(inode(&b, to.to_owned()), before);
        finish(&mut a).unwrap();
        let rows = |node: &ModelNode| {
            let found = node.tree.as_ref().unwrap().index().beneath(&TreePath::ROOT, None, usize::MAX).unwrap();
            found.into_iter().map(|(path, row)| (path, row.entry)).collect::<Vec<_>>()
        };
        let heads = |node: &ModelNode| node.tree.as_ref().unwrap().head();
        let told = heads(&b);
        rest(&mut a, &mut b);
        assert_eq!(rows(&a), rows(&b), "{from} to {to}: both wrote the same");
        assert!(heads(&b) <= told + 1, "nothing was to be learned from the rows but the times of directories above");
        for node in [&a, &b] {
            check_sums(node.tree.as_ref().unwrap()).unwrap();
            assert_eq!(node.tree.as_ref().unwrap().problems().len(), 0);
        }
    }
}

#[test]
fn it_moves_there_and_back_as_often_as_anybody_likes() {
    let (mut a, mut b) = held();
    for _ in 0..3 {
        for (from, to) in [("d", "e"), ("e", "d")] {
            let moved = begin(&mut a, from, to).unwrap().expect("it is one unit");
            assert!(carry(&mut b, &moved, &a).unwrap());
            finish(&mut a).unwrap();
            rest(&mut a, &mut b);
        }
    }
    // And from the other side.
    let moved = begin(&mut b, "d", "e").unwrap().expect("it is one unit");
    assert!(carry(&mut a, &moved, &b).unwrap());
    finish(&mut b).unwrap();
    rest(&mut a, &mut b);
}

#[test]
fn what_users_wrote_just_before_is_theirs_under_the_new_name() {
    let (mut a, mut b) = held();
    let moved = begin(&mut a, "d", "e").unwrap().expect("it is one unit");
    // Nobody looked at it yet, on either side.
    b.disk.user().write("d/sub/f3", "an edit at B").unwrap();
    a.disk.user().write("e/sub/f4", "an edit at A").unwrap();
    // Found by seed 1139: the directory's own time.
    a.disk.user().write("e/new", "made by A").unwrap();
    assert!(carry(&mut b, &moved, &a).unwrap());
    finish(&mut a).unwrap();
    rest(&mut a, &mut b);
    for (path, content) in [("e/sub/f3", "an edit at B"), ("e/sub/f4", "an edit at A")] {
        assert_eq!(a.disk.user().read(path).unwrap(), content.as_bytes());
    }
    assert!(!a.disk.user().exists("d"));
}

#[test]
fn what_is_not_the_same_directory_is_met_by_its_rows() {
    type Deed = fn(&mut ModelNode, &mut ModelNode);
    let deeds: [(&str, Deed); 5] = [
        ("a file that nobody knows", |_, b| b.disk.user().write("d/new", "unknown").unwrap()),
        ("something at the new name", |_, b| b.disk.user().write("e", "taken").unwrap()),
        ("a change that B minted", |_, b| {
            b.disk.user().write("d/sub/f3", "an edit at B").unwrap();
            b.tree.as_mut().unwrap().scan().unwrap();
        }),
        ("a deletion that B minted", |_, b| {
            b.disk.user().remove("d/sub/f3").unwrap();
            b.tree.as_mut().unwrap().scan().unwrap();
        }),
        ("a directory that is gone", |_, b| b.disk.user().remove_all("d").unwrap()),
    ];
    for (what, deed) in deeds {
        let (mut a, mut b) = held();
        let moved = begin(&mut a, "d", "e").unwrap().expect("it is one unit");
        deed(&mut a, &mut b);
        let before = b.seen();
        assert!(!carry(&mut b, &moved, &a).unwrap(), "{what}");
        assert_eq!(b.seen(), before, "{what}: nothing was touched");
        finish(&mut a).unwrap();
        rest(&mut a, &mut b);
    }
}

fn contents(node: &ModelNode) -> BTreeSet<Vec<u8>> {
    node.seen().into_values().map(|seen| seen.content).collect()
}

/// Whatever broke off, all of it is under one of the names, and nobody took it for a user's deletion.
fn check_whole(a: &ModelNode, b: &ModelNode, before: &BTreeSet<Vec<u8>>) -> bool {
    assert!(contents(b) == *before);
    let (old, new) = (a.disk.user().exists("d/sub/f3"), a.disk.user().exists("e/sub/f3"));
    assert!(new != old, "{old} {new}");
    for node in [a, b] {
        check_sums(node.tree.as_ref().unwrap()).unwrap();
    }
    new
}

#[test]
fn a_crash_of_the_peer_at_any_call_leaves_all_of_it_under_one_name() {
    for machine in [false, true] {
        let mut calls = 0;
        for call in 1..100 {
            let (mut a, mut b) = held();
            let before = contents(&b);
            let moved = begin(&mut a, "d", "e").unwrap().expect("it is one unit");
            b.disk.crash_at(call);
            let done = carry(&mut b, &moved, &a).is_ok() && !b.disk.crashed();
            b.tree = None;
            if b.disk.crashed() {
                b.disk.restart(match machine {
                    true => CrashKind::Machine { log: Keep::None, data: Data::Lost },
                    false => CrashKind::Process,
                });
            }
            b.disk.crash_at(1 << 40);
            b.start().unwrap();
            finish(&mut a).unwrap();
            rest(&mut a, &mut b);
            rest(&mut a, &mut b);
            assert!(check_whole(&a, &b, &before), "call {call}, machine {machine}");
            calls = call;
            if done {
                break;
            }
        }
        assert!((3..99).contains(&calls), "{calls} calls");
    }
}

#[test]
fn what_was_noted_and_told_is_written_by_the_next_start() {
    for (told, machine) in [(false, false), (false, true), (true, false), (true, true)] {
        let (mut a, mut b) = held();
        let before = contents(&b);
        let moved = begin(&mut a, "d", "e").unwrap().expect("it is one unit");
        if told {
            assert!(carry(&mut b, &moved, &a).unwrap());
        }
        a.disk.crash();
        a.tree = None;
        a.disk.restart(match machine {
            true => CrashKind::Machine { log: Keep::None, data: Data::Lost },
            false => CrashKind::Process,
        });
        a.start().unwrap();
        let row = a.tree.as_ref().unwrap().index().row(&path("e/sub/f3")).unwrap();
        assert!(row.entry.context.iter().any(|dot| dot.actor == moved.actor), "told {told}, machine {machine}");
        rest(&mut a, &mut b);
        rest(&mut a, &mut b);
        assert!(check_whole(&a, &b, &before), "told {told}, machine {machine}");
    }
}

#[test]
fn a_store_that_fails_while_rows_are_written_finishes_at_the_next_start() {
    for at_a in [true, false] {
        let mut failures = 0;
        for nth in 1..12 {
            let (mut a, mut b) = held();
            if at_a {
                a.kv.fail_after(nth);
            } else {
                b.kv.fail_after(nth);
            }
            let mut both = || -> Result<(), TreeError> {
                let Some(moved) = begin(&mut a, "d", "e")? else { return Ok(()) };
                carry(&mut b, &moved, &a)?;
                finish(&mut a)
            };
            let failed = both().is_err();
            failures += usize::from(failed);
            let node = if at_a { &mut a } else { &mut b };
            node.kv.fail_no_more();
            if failed {
                node.tree = None;
                node.kv.crash(0);
                node.start().unwrap();
            }
            rest(&mut a, &mut b);
            assert!(a.disk.user().exists("e/sub/f3") && !a.disk.user().exists("d"), "call {nth}");
        }
        assert!(failures > 1, "{failures}");
    }
}

/// Found by seed 1054551: the machine was put back before it told any row of the rename, and its peer took it for the teacher of
/// them: it showed the old name for ever.
#[test]
fn a_machine_put_back_hears_of_a_rename_that_it_told() {
    let (mut a, mut b) = held();
    a.disk.sync();
    let image = (a.disk.image(), a.kv.image());
    let before = b.tree.as_ref().unwrap().head();
    let moved = begin(&mut a, "d", "e").unwrap().expect("it is one unit");
    let mut session = Digests::default();
    assert!(carry_in(&mut session, &mut b, &moved, &a).unwrap());
    let place = (a.id, a.tree.as_ref().unwrap().life());
    let mut told = |session: &mut Digests| {
        let rows = b.tree.as_mut().unwrap().read_rows(before, usize::MAX, place, session).unwrap();
        rows.rows.len() as u64
    };
    assert_eq!(told(&mut session), 0, "nothing of it goes back while the rows are on their way");
    assert_eq!(told(&mut Digests::default()), moved.paths * 2, "another session asks for all");
    a.tree = None;
    a.disk.put_back(&image.0);
    a.kv.put_back(&image.1);
    a.start().unwrap();
    rest(&mut a, &mut b);
    assert!(a.disk.user().exists("e/sub/f3") && !a.disk.user().exists("d"));
}
