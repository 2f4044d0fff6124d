//! What keeps data alive: a test for each rule about file systems that the modelled disk can show.
//! The table of rules and tests is in ARCHITECTURE.md.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_store::root::RootError;
use pleach_store::tree::TreeError;
use pleach_store::vfs::model::{CrashKind, Data, Keep, OpKind};
use pleach_tests::model::{ModelNode, pair, settle};

fn rest(a: &mut ModelNode, b: &mut ModelNode) {
    assert!(settle(a, b).unwrap(), "they come to rest");
    assert_eq!(a.seen(), b.seen());
}

fn holds(node: &ModelNode, content: &[u8]) -> bool {
    node.disk.user().snapshot(true).values().any(|seen| seen.content == content)
}

fn paths_in_vault(node: &ModelNode) -> usize {
    node.disk.user().snapshot(true).keys().filter(|path| path.starts_with(b".pleach/vault/")).count()
}

/// Section 1: a file with our inode and time whose content is not ours, after a crash of the machine.
#[test]
fn a_torn_file_is_fetched_again_and_never_announced() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", "whole content").unwrap();
    a.disk.sync();
    // The disk says that it synced the staged bytes and loses them; the power goes before Shown is stored.
    let disk = b.disk.clone();
    b.disk.before(OpKind::LinkTemp, 3, move |_| disk.fail_write_back());
    let machine = b.disk.clone();
    b.disk.before(OpKind::SyncDir, 1, move |_| machine.crash());
    for _ in 0..20 {
        if settle(&mut a, &mut b).is_err() || b.disk.crashed() {
            break;
        }
    }
    b.tree = None;
    b.disk.restart(CrashKind::Machine { log: Keep::All, data: Data::Lost });
    b.kv.crash(0);
    b.start().unwrap();
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("f").unwrap(), b"whole content");
}

/// Section 2a: a store through a shared mapping after the hash leaves the stamp as it is.
#[test]
fn a_store_through_a_mapping_is_found_when_its_writer_is_done() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", "0123456789").unwrap();
    rest(&mut a, &mut b);
    let path = TreePath::parse(b"f").unwrap();
    let mapping = a.disk.user().open_writing("f").unwrap();
    mapping.store(0, "A").unwrap();
    a.tree.as_mut().unwrap().observe(&path, true, true).unwrap();
    let before = a.disk.user().stat("f").unwrap();
    mapping.store(1, "B").unwrap();
    let stamp = a.disk.user().stat("f").unwrap();
    drop(mapping);
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("f").unwrap(), b"AB23456789", "stamps {before:?} {stamp:?}");
}

/// Section 2b: two writes within one tick of the clock have one stamp.
#[test]
fn a_write_within_the_same_tick_is_found() {
    let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
    a.disk.set_coarse_clock(true);
    a.start().unwrap();
    b.start().unwrap();
    a.disk.user().write("f", "one").unwrap();
    let path = TreePath::parse(b"f").unwrap();
    a.tree.as_mut().unwrap().scan().unwrap();
    a.tree.as_mut().unwrap().observe(&path, false, false).unwrap();
    a.disk.user().write("f", "two").unwrap();
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("f").unwrap(), b"two");
}

/// Section 3: what a user wrote between our look and our exchange is theirs.
#[test]
fn a_write_just_before_our_exchange_is_a_change() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", "base").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().write("f", "from a").unwrap();
    b.disk.before(OpKind::Rename, 1, |user| user.write("f", "in between").unwrap());
    rest(&mut a, &mut b);
    assert!(holds(&a, b"in between") && holds(&b, b"in between") || b.disk.user().read("f").unwrap() == b"from a");
    assert!(holds(&b, b"in between"), "nothing is lost");
    let entry = a.tree.as_ref().unwrap().entry(&TreePath::parse(b"f").unwrap()).unwrap().unwrap();
    let values = entry.content.len() + entry.losers.values().map(Vec::len).sum::<usize>();
    assert_eq!(values, 2, "both are known everywhere");
}

/// Section 3: the same with the time put back: only the hash tells.
#[test]
fn an_edit_that_put_its_time_back_is_a_change() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", "base").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().write("f", "from a").unwrap();
    b.disk.before(OpKind::Rename, 1, |user| {
        let mtime = user.stat("f").unwrap().mtime;
        user.write("f", "edit").unwrap();
        user.touch("f", mtime).unwrap();
    });
    rest(&mut a, &mut b);
    assert!(holds(&b, b"edit"));
    let entry = a.tree.as_ref().unwrap().entry(&TreePath::parse(b"f").unwrap()).unwrap().unwrap();
    assert_eq!(entry.content.len() + entry.losers.values().map(Vec::len).sum::<usize>(), 2);
}

/// Section 3: what a user wrote at any moment of a replacement is not taken for ours, and not lost. The tree looks
/// again afterwards, as the event of that write makes it.
#[test]
fn a_write_just_after_our_rename_is_not_swallowed() {
    let mut written = 0;
    for coarse in [false, true] {
        for op in [OpKind::Stat, OpKind::StatFile, OpKind::SyncData, OpKind::SyncDir, OpKind::Rename] {
            for nth in 1..=12 {
                let (mut a, mut b) = pair();
                b.disk.set_coarse_clock(coarse);
                a.disk.user().write("f", "base").unwrap();
                rest(&mut a, &mut b);
                a.disk.user().write("f", "from a").unwrap();
                let fired = Arc::new(AtomicBool::new(false));
                let fires = Arc::clone(&fired);
                b.disk.before(op, nth, move |user| {
                    user.write("f", "mine b").unwrap();
                    fires.store(true, Ordering::Relaxed);
                });
                // It may fire at the end of one of them.
                (0..3).for_each(|_| assert!(settle(&mut a, &mut b).unwrap()));
                if !fired.load(Ordering::Relaxed) {
                    break;
                }
                written += 1;
                rest(&mut a, &mut b);
                for content in ["from a", "mine b"] {
                    assert!([&a, &b].iter().any(|node| holds(node, content.as_bytes())), "{op:?} {nth}: no {content}");
                }
            }
        }
    }
    assert!(written > 20, "only {written} writes fell into a replacement");
}

/// Section 4: whoever has the displaced file open goes on writing into the vault.
#[test]
fn a_late_writer_makes_a_change() {
    let (mut a, mut b) = pair();
    a.disk.user().write("log", "base").unwrap();
    rest(&mut a, &mut b);
    let writer = b.disk.user().open_writing("log").unwrap();
    a.disk.user().write("log", "replaced").unwrap();
    settle(&mut a, &mut b).unwrap();
    assert_eq!(b.disk.user().read("log").unwrap(), b"replaced");
    writer.append(" and late").unwrap();
    drop(writer);
    rest(&mut a, &mut b);
    assert!(holds(&b, b"base and late"));
    let entry = a.tree.as_ref().unwrap().entry(&TreePath::parse(b"log").unwrap()).unwrap().unwrap();
    assert_eq!(entry.content.len(), 2, "the late write is a sibling that every node knows");
}

/// Section 4: a vaulted inode with another name would change with it.
#[test]
fn the_vault_never_shares_an_inode() {
    let (mut a, mut b) = pair();
    // Longer than one read of the copy, and not a multiple of it.
    let first = "first".repeat(60_000);
    b.disk.user().write("f", &first).unwrap();
    b.disk.user().hard_link("f", "twin").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().write("f", "second").unwrap();
    rest(&mut a, &mut b);
    b.disk.user().write("twin", "third").unwrap();
    rest(&mut a, &mut b);
    assert!(holds(&b, first.as_bytes()), "the vault's copy is whole and did not change");
    assert_eq!(a.disk.user().read("f").unwrap(), b"second");
    assert_eq!(a.disk.user().read("twin").unwrap(), b"third");
}

/// Section 5: never unlink or rename over: what an applied change takes away is in the vault.
#[test]
fn displaced_files_go_into_the_vault_by_rename() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", "old").unwrap();
    a.disk.user().write("g", "gone").unwrap();
    rest(&mut a, &mut b);
    let inodes = ["f", "g"].map(|name| b.disk.user().stat(name).unwrap().inode);
    a.disk.user().write("f", "new").unwrap();
    a.disk.user().remove("g").unwrap();
    rest(&mut a, &mut b);
    let user = b.disk.user();
    let vaulted: Vec<u64> = user
        .snapshot(true)
        .keys()
        .filter(|path| path.starts_with(b".pleach/vault/"))
        .map(|path| user.stat(path).unwrap().inode)
        .collect();
    assert!(inodes.iter().all(|inode| vaulted.contains(inode)), "{inodes:?} {vaulted:?}");
}

/// Section 7: what is mounted below is never entered and never counts as deleted.
#[test]
fn a_mount_point_hides_and_deletes_nothing() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("d/m").unwrap();
    a.disk.user().write("d/m/f", "beneath").unwrap();
    rest(&mut a, &mut b);
    a.disk.user().set_mount_point("d/m", true).unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    assert_eq!(b.disk.user().read("d/m/f").unwrap(), b"beneath");
    a.disk.user().set_mount_point("d/m", false).unwrap();
    rest(&mut a, &mut b);
}

/// Section 8: an unmounted root is an error, not a deletion of everything.
#[test]
fn an_unmounted_root_stops_the_tree() {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", "precious").unwrap();
    rest(&mut a, &mut b);
    a.disk.unmount_lazily();
    assert!(matches!(settle(&mut a, &mut b), Err(TreeError::Root(RootError::Swapped))));
    assert!(matches!(a.start(), Err(TreeError::Root(RootError::Swapped))), "a restart believes it no more");
    assert_eq!(b.disk.user().read("f").unwrap(), b"precious");
    a.disk.remount();
    a.start().unwrap();
    b.disk.user().write("g", "goes on").unwrap();
    rest(&mut a, &mut b);
}

/// Section 11: a sync that failed acknowledges nothing.
#[test]
fn a_failed_sync_acknowledges_nothing() {
    let (mut a, mut b) = pair();
    for n in 0..40 {
        a.disk.user().write(format!("f{n}"), format!("content {n}")).unwrap();
    }
    let disk = b.disk.clone();
    b.disk.before(OpKind::SyncAll, 1, move |_| disk.fail_write_back());
    let applied = |node: &ModelNode| node.tree.as_ref().unwrap().applied();
    let before = applied(&b);
    assert!(matches!(settle(&mut a, &mut b), Err(TreeError::Disk { .. })));
    assert_eq!(applied(&b), before);
    b.tree = None;
    b.disk.restart(CrashKind::Machine { log: Keep::All, data: Data::Lost });
    b.kv.crash(0);
    b.start().unwrap();
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("f7").unwrap(), b"content 7");
}

/// Section 3: a directory's time that moved by our own work is no edit, one that a user set is.
#[test]
fn directory_times_do_not_echo() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("d").unwrap();
    a.disk.user().write("d/f", "x").unwrap();
    a.disk.user().touch("d", Time::new(9, 9)).unwrap();
    rest(&mut a, &mut b);
    let heads = |n: &ModelNode| n.tree.as_ref().unwrap().index().meta().head;
    let before = (heads(&a), heads(&b));
    rest(&mut a, &mut b);
    assert_eq!((heads(&a), heads(&b)), before);
    assert_eq!(b.disk.user().stat("d").unwrap().mtime, Time::new(9, 9));
    assert_eq!(paths_in_vault(&a) + paths_in_vault(&b), 0);
}

/// Found by killing a copy: the directory that holds a new one kept the time of our own mkdir.
#[test]
fn a_kill_right_after_mkdir_changes_no_time() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("p").unwrap();
    a.disk.user().touch("p", Time::new(9, 9)).unwrap();
    rest(&mut a, &mut b);
    a.disk.user().mkdir_all("p/q").unwrap();
    a.disk.user().touch("p", Time::new(9, 9)).unwrap();
    let machine = b.disk.clone();
    b.disk.before(OpKind::SetAttributes, 1, move |_| machine.crash());
    // The crash comes out as some error, or as a store that is closed.
    let _outcome = settle(&mut a, &mut b);
    assert!(b.disk.crashed());
    b.tree = None;
    b.disk.restart(CrashKind::Process);
    b.kv.crash(0);
    b.start().unwrap();
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().stat("p").unwrap().mtime, Time::new(9, 9));
}
