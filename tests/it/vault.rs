//! What was displaced stays for `history`, and a conflict's loser until it is resolved.

use std::time::Duration;

use pleach_protocol::path::TreePath;
use pleach_store::kv::memory::MemoryKvDisk;
use pleach_store::tree::{Digests, Kept, Rows};
use pleach_store::vfs::model::CrashKind;
use pleach_tests::model::{ModelNode, pair, settle};

const MINUTE: i64 = 60_000_000_000;

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn expire(node: &mut ModelNode, history: Duration) -> u64 {
    let tree = node.tree.as_mut().unwrap();
    let gone = tree.expire(history).unwrap();
    tree.commit().unwrap();
    gone
}

#[test]
fn displaced_versions_expire_but_never_within_ten_minutes() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.user().write("x", "22").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let held = |node: &ModelNode| node.tree.as_ref().unwrap().versions(&path("x")).unwrap();
    assert_eq!(held(&b).iter().map(|v| v.reason.as_str()).collect::<Vec<_>>(), ["replaced"]);
    let displaced = held(&b)[0].time.nanos_since_epoch();
    let age = |node: &ModelNode| node.disk.now().nanos_since_epoch() - displaced;
    assert!(age(&b) < 9 * MINUTE, "the test's clock");
    assert_eq!(expire(&mut b, Duration::ZERO), 0, "an NFS client may have it open");
    b.disk.advance(11 * MINUTE);
    assert_eq!(expire(&mut b, Duration::from_secs(3_600)), 0);
    assert_eq!(expire(&mut b, Duration::ZERO), 1);
    assert!(held(&b).is_empty());
    assert!(b.disk.user().snapshot(true).keys().all(|p| !p.starts_with(b".pleach/vault/")));
    assert!(settle(&mut a, &mut b).unwrap());
    assert_eq!(b.disk.user().read("x").unwrap(), b"22");
}

/// Found by seed 876203: an agent died between an exchange and the vault, and a user removed the link that had come before the next
/// start, which then took what lay in staging for a link that was never put.
#[test]
fn what_was_displaced_before_a_kill_is_filed_although_its_successor_is_gone() {
    let (mut displaced, mut calls) = (0, 0);
    for (link, call) in [false, true].into_iter().flat_map(|link| (1..20).map(move |call| (link, call))) {
        let (mut a, mut b) = pair();
        a.disk.user().write("x", "old").unwrap();
        assert!(settle(&mut a, &mut b).unwrap());
        let user = a.disk.user();
        user.remove("x").unwrap();
        match link {
            true => user.symlink("new", "x").unwrap(),
            false => user.write("x", "new").unwrap(),
        }
        b.disk.crash_at(call);
        settle(&mut a, &mut b).ok();
        calls += u64::from(b.disk.crashed());
        b.tree = None;
        b.disk.crash_at(u64::MAX);
        b.disk.restart(CrashKind::Process);
        b.kv.crash(1_000);
        let user = b.disk.user();
        let came = user.read("x").map_or(true, |content| content == b"new");
        user.remove("x").ok();
        b.start().unwrap();
        assert!(settle(&mut a, &mut b).unwrap());
        let kept = b
            .disk
            .user()
            .snapshot(true)
            .into_iter()
            .any(|(path, seen)| path.starts_with(b".pleach/vault/") && seen.content == b"old");
        assert!(kept || !came, "link {link}, call {call}");
        displaced += u64::from(came);
    }
    assert!(calls > 8 && displaced > 8, "{calls} {displaced}");
}

#[test]
fn a_listed_loser_stays_until_it_is_resolved() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "1").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.user().write("x", "from a").unwrap();
    b.disk.advance(1_000_000_000);
    b.disk.user().write("x", "from b").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    for node in [&mut a, &mut b] {
        for _ in 0..20 {
            node.disk.advance(60 * MINUTE);
        }
    }
    let losers = |node: &ModelNode| node.tree.as_ref().unwrap().conflicts(&TreePath::ROOT).unwrap();
    let listed = losers(&a);
    assert_eq!((listed.len(), listed == losers(&b)), (1, true));
    let hash = listed[0].hash.unwrap();
    expire(&mut a, Duration::ZERO);
    expire(&mut b, Duration::ZERO);
    let has = |node: &ModelNode| node.tree.as_ref().unwrap().has_content(&path("x"), hash);
    assert!(has(&a) || has(&b), "the loser's content is somewhere");
    let loser_at = if has(&a) { &mut a } else { &mut b };
    loser_at.tree.as_mut().unwrap().resolve(&path("x"), &Kept::Current).unwrap();
    loser_at.tree.as_mut().unwrap().commit().unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    assert!(losers(&a).is_empty() && losers(&b).is_empty());
    expire(&mut a, Duration::ZERO);
    expire(&mut b, Duration::ZERO);
    assert!(!has(&a) && !has(&b));
}

/// Found by seed 61561: who holds a version that the power cut short answered for it, and a node behind never got it.
#[test]
fn a_version_that_is_shorter_than_noted_is_no_content() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "from a").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    b.disk.user().write("x", "of b").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let held = a.tree.as_ref().unwrap().versions(&path("x")).unwrap();
    let hash = held[0].hash.unwrap();
    assert!(a.tree.as_ref().unwrap().has_content(&path("x"), hash));
    let vault = a.disk.user().snapshot(true).into_keys().find(|p| p.starts_with(b".pleach/vault/")).unwrap();
    a.disk.user().truncate(vault, 2).unwrap();
    assert!(!a.tree.as_ref().unwrap().has_content(&path("x"), hash));
}

#[test]
fn a_lost_store_files_beside_what_the_vault_holds() {
    let (mut a, mut b) = pair();
    for content in ["1", "22", "333"] {
        a.disk.user().write("x", content).unwrap();
        assert!(settle(&mut a, &mut b).unwrap());
    }
    let vault = |node: &ModelNode| -> Vec<Vec<u8>> {
        let seen = node.disk.user().snapshot(true);
        seen.into_keys().filter(|path| path.starts_with(b".pleach/vault/")).collect()
    };
    let before = vault(&b);
    assert_eq!(before.len(), 2);
    b.tree = None;
    b.kv = MemoryKvDisk::default();
    b.start().unwrap();
    for content in ["4444", "55555", "666666"] {
        a.disk.user().write("x", content).unwrap();
        assert!(settle(&mut a, &mut b).unwrap());
    }
    let after = vault(&b);
    assert!(before.iter().all(|path| after.contains(path)), "{before:?} {after:?}");
    assert_eq!(after.len(), 5);
    assert_eq!(b.tree.as_ref().unwrap().versions(&path("x")).unwrap().len(), 3);
    b.start().unwrap();
    assert_eq!(b.disk.user().read("x").unwrap(), b"666666");
}

/// Found by three real agents: a version of C was displaced, C's store was lost, and what displaced it was deleted by one
/// who had seen only that. C's old version is what is left, and it lay in C's vault, where nothing spoke of it.
#[test]
fn what_the_vault_of_a_lost_store_holds_is_found_by_its_content() {
    for small in [true, false] {
        let (mut b, mut c) = pair();
        let old = if small { b"from c".to_vec() } else { b"from c, and long. ".repeat(10_000) };
        c.disk.user().write("x", &old).unwrap();
        c.disk.user().symlink("to", "link").unwrap();
        settle(&mut b, &mut c).unwrap();
        b.disk.advance(1_000_000_000);
        b.disk.user().write("x", "from b").unwrap();
        b.disk.user().remove("link").unwrap();
        assert!(settle(&mut b, &mut c).unwrap());
        let hash = pleach_protocol::entry::Hash(*blake3::hash(&old).as_bytes());
        c.tree = None;
        c.kv = MemoryKvDisk::default();
        c.start().unwrap();
        assert!(settle(&mut b, &mut c).unwrap());
        let tree = c.tree.as_mut().unwrap();
        assert!(tree.has_content(&path("x"), hash));
        let found = tree.versions(&TreePath::ROOT).unwrap();
        let reasons: Vec<_> = found.iter().map(|v| (v.path.is_root(), v.reason.as_str())).collect();
        assert_eq!(reasons, [(true, "found"); 2]);
        let version = found.iter().find(|v| v.hash == Some(hash)).unwrap().version.clone();
        // A person knows what it was.
        assert!(tree.restorable(&TreePath::ROOT, Some(&version)).is_err(), "it has no name");
        for (at, state) in tree.restorable(&path("again"), Some(&version)).unwrap() {
            tree.restore(&at, &state).unwrap();
        }
        tree.commit().unwrap();
        assert!(settle(&mut b, &mut c).unwrap());
        assert_eq!(b.disk.user().read("again").unwrap(), old);
        // The rows stay, and what expires goes with its row.
        c.start().unwrap();
        assert_eq!(c.tree.as_ref().unwrap().versions(&TreePath::ROOT).unwrap().len(), 2);
        c.disk.advance(11 * MINUTE);
        assert_eq!(expire(&mut c, Duration::ZERO), 2);
        assert!(c.disk.user().snapshot(true).keys().all(|p| !p.starts_with(b".pleach/vault/")));
    }
}

/// Found by seeds 963 and 6734: a content whose path went with a store that was lost was shown at another path, or lay in
/// the vault as another's version, and was nowhere to be found, for small ones have no rows that lead to them.
#[test]
fn a_small_content_is_found_wherever_it_is() {
    let (mut a, mut b) = pair();
    for (name, content) in [("x", "replaced"), ("y", "shown")] {
        a.disk.user().write(name, content).unwrap();
    }
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.user().write("x", "another").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    // What went into the vault since a start is kept in mind.
    b.start().unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let tree = b.tree.as_mut().unwrap();
    for content in ["replaced", "shown"] {
        let hash = pleach_protocol::entry::Hash(*blake3::hash(content.as_bytes()).as_bytes());
        assert!(!tree.has_content(&path("z"), hash), "no row leads there: else this tests nothing");
        tree.seek(hash);
    }
    let before = tree.arrivals();
    while tree.goes_on() {
        assert!(tree.apply().unwrap().is_empty());
    }
    assert_eq!(tree.arrivals(), before + 2, "whoever waits for them is to ask again");
    for content in ["replaced", "shown"] {
        let hash = pleach_protocol::entry::Hash(*blake3::hash(content.as_bytes()).as_bytes());
        assert!(tree.has_content(&path("z"), hash), "{content}");
    }
}

#[test]
fn what_waited_for_a_content_that_was_found_tries_again_at_once() {
    let (mut a, mut b) = pair();
    a.disk.user().write("x", "replaced").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.user().write("x", "another").unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    // What went into the vault since a start is kept in mind.
    b.start().unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    a.disk.user().write("z", "replaced").unwrap();
    let (from, to) = (a.tree.as_mut().unwrap(), b.tree.as_mut().unwrap());
    from.scan().unwrap();
    from.commit().unwrap();
    let position = to.cursor(a.id).unwrap().unwrap().seq;
    let Rows { mut rows, names, upto, .. } =
        from.read_rows(position, 48 * 1024, (b.id, to.life()), &mut Digests::default()).unwrap();
    rows.iter_mut().for_each(|row| row.content = None);
    to.merge((a.id, from.life()), rows, names, upto).unwrap();
    to.commit().unwrap();
    let wants = to.apply().unwrap();
    let [want] = &wants[..] else { panic!("{wants:?}") };
    to.missing(want.id, "nobody has it").unwrap();
    to.seek(want.hash);
    for _ in 0..10 {
        assert!(to.apply().unwrap().is_empty());
    }
    assert_eq!(b.disk.user().read("z").unwrap(), b"replaced");
}
