//! What arrived of a large content is not sent again, whatever ended the agents or the machine.

use pleach_store::tree::Want;
use pleach_store::vfs::model::{CrashKind, Data, Keep};
use pleach_tests::model::{ModelNode, ask, pair, rest, staged};

const SIZE: usize = 300_000;

fn rested() -> (ModelNode, ModelNode) {
    let (mut a, mut b) = pair();
    rest(&mut a, &mut b);
    (a, b)
}

fn large(first: u32) -> Vec<u8> {
    (first..).flat_map(u32::to_le_bytes).take(SIZE).collect()
}

fn in_vault(node: &ModelNode) -> usize {
    node.disk.user().snapshot(true).keys().filter(|path| path.starts_with(b".pleach/vault/")).count()
}

/// Sends pieces of what B asked for until it has `upto` bytes; how many were sent.
fn send(a: &ModelNode, b: &mut ModelNode, want: &Want, upto: u64) -> u64 {
    let (from, to) = (a.tree.as_ref().unwrap(), b.tree.as_mut().unwrap());
    let begun = to.received_of(want.id);
    let mut offset = begun;
    while offset < upto {
        let bytes = from.read_content(&want.path, want.hash, offset, 10_000).unwrap();
        let end = offset + bytes.len() as u64;
        to.receive(want.id, offset, &bytes, end == want.size).unwrap();
        offset = end;
    }
    to.apply().unwrap();
    to.commit().unwrap();
    offset - begun
}

fn one(wants: &[Want]) -> Want {
    assert_eq!(wants.len(), 1);
    wants[0].clone()
}

#[test]
fn what_arrived_is_not_sent_again_after_a_lost_link_or_a_kill() {
    for replaces in [false, true] {
        for killed in [false, true] {
            let (mut a, mut b) = rested();
            if replaces {
                a.disk.user().write("f", "what was there before").unwrap();
                rest(&mut a, &mut b);
            }
            a.disk.user().write("f", large(0)).unwrap();
            let want = one(&ask(&mut a, &mut b));
            assert_eq!(send(&a, &mut b, &want, 200_000), 200_000);
            if killed {
                for node in [&mut a, &mut b] {
                    node.tree = None;
                    node.disk.restart(CrashKind::Process);
                    node.kv.crash(0);
                    node.start().unwrap();
                }
            } else {
                b.tree.as_mut().unwrap().forget_want(want.id);
            }
            let want = one(&ask(&mut a, &mut b));
            assert_eq!(send(&a, &mut b, &want, want.size), SIZE as u64 - 200_000, "killed: {killed}");
            rest(&mut a, &mut b);
            assert_eq!(b.disk.user().read("f").unwrap(), large(0));
            assert_eq!((staged(&b), in_vault(&b)), (0, usize::from(replaces)));
        }
    }
}

#[test]
fn what_a_crash_of_the_machine_tore_is_asked_for_again() {
    for data in [Data::Lost, Data::Kept, Data::Torn(7), Data::Torn(8)] {
        let (mut a, mut b) = rested();
        a.disk.user().write("f", large(0)).unwrap();
        a.disk.sync();
        let want = one(&ask(&mut a, &mut b));
        send(&a, &mut b, &want, 200_000);
        b.tree = None;
        b.disk.restart(CrashKind::Machine { log: Keep::All, data });
        b.kv.crash(0);
        b.start().unwrap();
        rest(&mut a, &mut b);
        assert_eq!(b.disk.user().read("f").unwrap(), large(0));
        assert_eq!((staged(&b), in_vault(&b)), (0, 0));
    }
}

/// LINUX measurements, section 11: after a failed write-back the bytes are in memory, and pass for clean.
#[test]
fn a_part_that_is_on_no_disk_is_asked_for_again() {
    let (mut a, mut b) = rested();
    a.disk.user().write("f", large(0)).unwrap();
    let want = one(&ask(&mut a, &mut b));
    send(&a, &mut b, &want, 200_000);
    // All of it is here, and was not synced when the agent was killed.
    let rest_of_it = a.tree.as_ref().unwrap().read_content(&want.path, want.hash, 200_000, SIZE).unwrap();
    b.tree.as_mut().unwrap().receive(want.id, 200_000, &rest_of_it, true).unwrap();
    b.disk.fail_write_back();
    b.tree = None;
    b.disk.restart(CrashKind::Process);
    b.kv.crash(0);
    b.start().unwrap();
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("f").unwrap(), large(0));
    b.disk.restart(CrashKind::Machine { log: Keep::All, data: Data::Kept });
    assert!(b.disk.user().read("f").unwrap() == large(0), "it was acknowledged, and is not on the disk");
}

#[test]
fn what_is_not_wanted_any_more_leaves_staging() {
    let (mut a, mut b) = rested();
    a.disk.user().write("f", large(0)).unwrap();
    let want = one(&ask(&mut a, &mut b));
    send(&a, &mut b, &want, 200_000);
    assert_eq!(staged(&b), 1);
    b.tree.as_mut().unwrap().forget_want(want.id);
    a.disk.user().write("f", large(7)).unwrap();
    let want = one(&ask(&mut a, &mut b));
    assert_eq!(send(&a, &mut b, &want, 100_000), 100_000, "another content");
    assert_eq!(staged(&b), 1);
    b.tree.as_mut().unwrap().forget_want(want.id);
    a.disk.user().remove("f").unwrap();
    rest(&mut a, &mut b);
    assert_eq!((staged(&b), in_vault(&b)), (0, 0));
}

/// Found by seed 216309: a moment without file handles hid the file that had the content from the applier, which began to
/// fetch it and passed over whatever the disk had of it from then on, while no peer had it any more.
#[test]
fn what_is_here_as_a_whole_is_copied_although_a_part_of_it_arrived() {
    for arrived in [0, 200_000] {
        let (mut a, mut b) = rested();
        a.disk.user().write("f", large(0)).unwrap();
        let want = one(&ask(&mut a, &mut b));
        send(&a, &mut b, &want, arrived);
        assert_eq!(staged(&b), 1);
        b.disk.user().write("g", large(0)).unwrap();
        let to = b.tree.as_mut().unwrap();
        to.forget_want(want.id);
        to.scan().unwrap();
        assert!(to.has_content(&want.path, want.hash));
        assert_eq!(ask(&mut a, &mut b), []);
        assert_eq!(b.disk.user().read("f").unwrap(), large(0));
        rest(&mut a, &mut b);
        assert_eq!((staged(&b), in_vault(&b)), (0, 0));
    }
}

#[test]
fn what_does_not_add_up_is_thrown_away_and_asked_for_anew() {
    let (mut a, mut b) = rested();
    a.disk.user().write("f", large(0)).unwrap();
    let want = one(&ask(&mut a, &mut b));
    let other = large(9);
    let to = b.tree.as_mut().unwrap();
    to.receive(want.id, 0, &other[..100_000], false).unwrap();
    to.forget_want(want.id);
    let want = one(&ask(&mut a, &mut b));
    let to = b.tree.as_mut().unwrap();
    assert_eq!(to.received_of(want.id), 100_000);
    to.receive(want.id, 100_000, &large(0)[100_000..], true).unwrap();
    let again = one(&to.apply().unwrap());
    assert!(b.disk.user().read("f").is_err(), "its hash is another");
    assert_eq!(send(&a, &mut b, &again, want.size), SIZE as u64);
    rest(&mut a, &mut b);
    assert_eq!(staged(&b), 0);
}

/// Found by seeds 157, 381 and 667: the file got the link's name and counted as what the path was to show.
#[test]
fn what_is_staged_for_a_file_is_not_put_where_a_link_is_to_be_by_now() {
    for size in [20_000, 100_000, SIZE] {
        let (mut a, mut b) = rested();
        a.disk.user().write("f", &large(0)[..size]).unwrap();
        let want = one(&ask(&mut a, &mut b));
        let to = b.tree.as_mut().unwrap();
        to.receive(want.id, 0, &large(0)[..size], true).unwrap();
        a.disk.user().remove("f").unwrap();
        a.disk.user().symlink("elsewhere", "f").unwrap();
        assert_eq!(ask(&mut a, &mut b), []);
        rest(&mut a, &mut b);
        assert_eq!((staged(&b), in_vault(&b)), (0, 0));
    }
}

/// Nobody may have the older content any more: what is due by now does not wait for the answer (found by three real
/// agents, seed 5079).
#[test]
fn a_content_on_its_way_is_given_up_where_another_is_due_by_now() {
    // Small ones are kept in memory until all is there, large ones are built.
    for size in [20_000, SIZE] {
        let (mut a, mut b) = rested();
        a.disk.user().write("f", &large(1)[..size]).unwrap();
        let old = one(&ask(&mut a, &mut b));
        a.disk.user().chmod("f", 0o600).unwrap();
        assert_eq!(ask(&mut a, &mut b), [], "the same content is due: it is not asked for again");
        a.disk.user().write("f", &large(2)[..size]).unwrap();
        let new = one(&ask(&mut a, &mut b));
        assert!(new.hash != old.hash && new.id != old.id);
        let tree = b.tree.as_mut().unwrap();
        tree.missing(old.id, "it is gone").unwrap();
        assert_eq!(tree.apply().unwrap(), [], "the answer to a question that was given up changes nothing");
        // A link needs no content at all.
        a.disk.user().remove("f").unwrap();
        a.disk.user().symlink("there", "f").unwrap();
        assert_eq!(ask(&mut a, &mut b), []);
        assert_eq!(b.seen()[&b"f"[..]].content, b"there");
        rest(&mut a, &mut b);
        assert_eq!(staged(&b), 0);
    }
}
