//! What was displaced stays for `history`, and a conflict's loser until it is resolved.

use std::time::Duration;

use pleach_protocol::path::TreePath;
use pleach_store::kv::memory::MemoryKvDisk;
use pleach_store::tree::Kept;
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
