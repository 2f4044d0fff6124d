//! A restart looks at each entry once and reads a row a directory (DESIGN.md §4, §10).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pleach_protocol::path::TreePath;
use pleach_protocol::version::NodeId;
use pleach_store::ignore::IgnoreRules;
use pleach_store::kv::memory::{MemoryKv, MemoryKvDisk};
use pleach_store::kv::{Batch, Kv, KvError, Row};
use pleach_store::rows::Space;
use pleach_store::tree::{Tree, TreeOptions};
use pleach_store::vfs::model::{CrashKind, ModelDisk, ModelVfs};
use pleach_tests::model::{ModelNode, settle};
use pleach_tests::{Heard, pull};

/// A store that counts the rows of entries that were read.
struct Counting {
    kv: MemoryKv,
    entries: Arc<AtomicUsize>,
}

impl Counting {
    fn count<'k>(&self, keys: impl Iterator<Item = &'k [u8]>) {
        let entries = keys.filter(|key| key.first() == Some(&(Space::Entry as u8))).count();
        self.entries.fetch_add(entries, Ordering::Relaxed);
    }
}

impl Kv for Counting {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.count([key].into_iter());
        self.kv.get(key)
    }

    fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Result<Vec<Row>, KvError> {
        let rows = self.kv.range(start, end, limit)?;
        self.count(rows.iter().map(|(key, _)| &key[..]));
        Ok(rows)
    }

    fn commit(&mut self, batch: Batch) -> Result<(), KvError> {
        self.kv.commit(batch)
    }

    fn flush(&mut self) -> Result<(), KvError> {
        self.kv.flush()
    }
}

struct Node {
    disk: ModelDisk,
    kv: MemoryKvDisk,
    entries: Arc<AtomicUsize>,
    starts: u64,
}

impl Node {
    fn new() -> Self {
        Self { disk: ModelDisk::new(), kv: MemoryKvDisk::default(), entries: Arc::default(), starts: 0 }
    }

    /// Starts anew with these ignore rules, scans, and says how many changes were minted and how many rows
    /// of entries were read.
    fn restart(&mut self, ignore: &[&str]) -> (u64, usize) {
        self.starts += 1;
        let disk = self.disk.clone();
        let ignore: Vec<String> = ignore.iter().map(|rule| (*rule).to_owned()).collect();
        let options = TreeOptions {
            node: NodeId([1; 32]),
            name: "n1".to_owned(),
            start: self.starts,
            entropy: [7; 32],
            approved: false,
            settle: std::time::Duration::ZERO,
            copies: false,
            first: None,
            direction: pleach_store::rows::Direction::Both,
            expected_root: None,
            boot: self.disk.boot().to_be_bytes().to_vec(),
            booted: self.disk.booted(),
            resumable_bytes_min: pleach_store::tree::RESUMABLE_BYTES_MIN,
            cuts: pleach_store::tree::Cuts::default(),
            read_at_once: pleach_store::tree::READ_AT_ONCE,
            atomic: IgnoreRules::new(&[]).unwrap(),
            ignore: IgnoreRules::new(&ignore).unwrap(),
        };
        let kv = Counting { kv: self.kv.open(), entries: Arc::clone(&self.entries) };
        let mut tree = Tree::open(ModelVfs::new(&self.disk), kv, Box::new(move || disk.now()), options).unwrap();
        self.entries.store(0, Ordering::Relaxed);
        let minted = tree.scan().unwrap().minted;
        let read = self.entries.load(Ordering::Relaxed);
        tree.commit_all().unwrap();
        (minted, read)
    }
}

fn with_files() -> Node {
    let mut node = Node::new();
    let user = node.disk.user();
    for dir in ["a", "a/b", "c", "c/d"] {
        user.mkdir_all(dir).unwrap();
        for n in 0..5 {
            user.write(format!("{dir}/f{n}"), "content").unwrap();
        }
    }
    user.symlink("nowhere", "c/link").unwrap();
    user.hard_link("a/f0", "c/linked").unwrap();
    node.disk.advance(1_000_000_000);
    assert_eq!(node.restart(&[]).0, 26);
    node
}

#[test]
fn a_restart_reads_no_rows_of_unchanged_directories() {
    let mut node = with_files();
    assert_eq!(node.restart(&[]), (0, 0));
    node.disk.user().write("c/d/f3", "another").unwrap();
    node.disk.advance(1_000_000_000);
    let (minted, read) = node.restart(&[]);
    assert!(minted >= 1 && (1..20).contains(&read), "{minted} {read}");
    assert_eq!(node.restart(&[]), (0, 0));
}

#[test]
fn a_file_with_another_stamp_or_name_is_found_beside_equal_ones() {
    let mut node = with_files();
    let user = node.disk.user();
    user.rename("a/f1", "a/g1").unwrap();
    user.chmod("c/f2", 0o600).unwrap();
    user.remove("a/b/f4").unwrap();
    node.disk.advance(1_000_000_000);
    // A name that went, one that came, a mode, a deletion, and the times of the two directories.
    assert_eq!(node.restart(&[]).0, 6);
}

#[test]
fn what_leaves_and_enters_the_ignore_list_is_looked_at() {
    let mut node = with_files();
    assert_eq!(node.restart(&["/a/f*"]).0, 0, "what is ignored is no deletion");
    let in_a = 6;
    assert_eq!(node.restart(&["/a/f*"]), (0, in_a), "known and not shown: looked at, and nowhere else");
    let (minted, read) = node.restart(&[]);
    assert_eq!(minted, 0, "they pair as what they were");
    assert!(read > 0);
    assert_eq!(node.restart(&[]), (0, 0));
}

#[test]
fn what_the_first_scan_found_is_told_while_it_goes_on_and_a_crash_in_it_changes_nothing() {
    for crashes in [false, true] {
        let (mut a, mut b) = (ModelNode::new(1), ModelNode::new(2));
        for dir in ["a", "b", "c"] {
            a.disk.user().mkdir_all(dir).unwrap();
            a.disk.user().write(format!("{dir}/f"), format!("content of {dir}")).unwrap();
        }
        a.disk.advance(1_000_000_000);
        for node in [&mut a, &mut b] {
            node.start().unwrap();
        }
        b.tree.as_mut().unwrap().scan().unwrap();
        b.tree.as_mut().unwrap().commit().unwrap();
        let (from, to) = (a.tree.as_mut().unwrap(), b.tree.as_mut().unwrap());
        let (mut scan, mut told, mut heard) = (from.begin_scan(), Vec::new(), Heard::default());
        while !from.scan_on(&mut scan, 1).unwrap() {
            from.commit().unwrap();
            pull(from, a.id, to, b.id, &mut heard).unwrap();
            told.push(["a/f", "b/f", "c/f"].map(|path| b.disk.user().exists(path)));
            if crashes && told.len() == 3 {
                break;
            }
        }
        assert!(told.contains(&[true, false, false]), "{told:?}");
        if crashes {
            assert!(!b.disk.user().exists("c/f"));
            a.disk.restart(CrashKind::Process);
            a.start().unwrap();
        }
        assert!(settle(&mut a, &mut b).unwrap());
        for dir in ["a", "b", "c"] {
            for node in [&a, &b] {
                assert_eq!(
                    node.disk.user().read(format!("{dir}/f")).unwrap(),
                    format!("content of {dir}").into_bytes()
                );
                let path = TreePath::parse(format!("{dir}/f").as_bytes()).unwrap();
                let entry = node.tree.as_ref().unwrap().entry(&path).unwrap().unwrap();
                assert_eq!((entry.content.len(), entry.losers.len()), (1, 0), "minted once");
            }
        }
    }
}

/// In a tree that pairs, new files of the next directories are read while one is judged.
#[test]
fn what_changes_after_it_was_read_ahead_is_seen() {
    let mut a = ModelNode::new(1);
    for path in ["a/f", "b/edited", "b/gone", "b/kept", "c/f"] {
        a.disk.user().mkdir_all(path.split('/').next().unwrap()).unwrap();
        a.disk.user().write(path, format!("old {path}")).unwrap();
    }
    a.disk.advance(1_000_000_000);
    a.start().unwrap();
    let tree = a.tree.as_mut().unwrap();
    let mut scan = tree.begin_scan();
    while tree.entry(&TreePath::parse(b"a/f").unwrap()).unwrap().is_none() {
        assert!(!tree.scan_on(&mut scan, 1).unwrap());
    }
    assert!(format!("{scan:?}").contains("read ahead: 4"), "{scan:?}");
    a.disk.user().write("b/edited", "new").unwrap();
    a.disk.user().remove("b/gone").unwrap();
    a.disk.user().write("b/made", "made").unwrap();
    while !tree.scan_on(&mut scan, 1).unwrap() {}
    // As the watcher does, which saw all of it.
    for name in ["edited", "gone", "made"] {
        tree.look_again(&TreePath::parse(format!("b/{name}").as_bytes()).unwrap(), false, false);
    }
    tree.catch_up().unwrap();
    tree.commit().unwrap();
    let mut b = ModelNode::new(2);
    b.start().unwrap();
    assert!(settle(&mut a, &mut b).unwrap());
    let read = |path: &str| b.disk.user().read(path).ok().map(|bytes| String::from_utf8(bytes).unwrap());
    assert_eq!(read("b/edited").as_deref(), Some("new"));
    assert_eq!(read("b/gone"), None);
    assert_eq!(read("b/kept").as_deref(), Some("old b/kept"));
    assert_eq!(read("b/made").as_deref(), Some("made"));
}
