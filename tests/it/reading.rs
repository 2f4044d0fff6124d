//! A long file is read between other work, and what happens to it meanwhile is seen.

use pleach_protocol::entry::Value;
use pleach_protocol::path::TreePath;
use pleach_store::vfs::model::ModelUser;
use pleach_tests::model::{ModelNode, ModelTree, pair, rest};

/// Many steps of a modelled node.
const LONG_BYTES: usize = 60_000;

fn tree(node: &mut ModelNode) -> &mut ModelTree {
    node.tree.as_mut().unwrap()
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

/// One round: what an event would have said of these, then a look.
fn look(node: &mut ModelNode, told: &[&str]) {
    node.disk.advance(1_000_000);
    for name in told {
        tree(node).look_again(&path(name), true, false);
    }
    for busy in tree(node).catch_up_by(100).unwrap() {
        tree(node).look_again(&busy, true, false);
    }
    tree(node).commit().unwrap();
}

/// Until nothing is left to look at; in how many rounds.
fn finish(node: &mut ModelNode) -> usize {
    let rounds = (0..200).find(|_| {
        tree(node).has_looked() || {
            look(node, &[]);
            false
        }
    });
    rounds.unwrap()
}

fn value(node: &mut ModelNode, name: &str) -> Option<Value> {
    let entry = tree(node).entry(&path(name)).unwrap()?;
    pleach_protocol::view::own(&entry).cloned()
}

/// Whether peers hear of what is there.
fn tells(node: &mut ModelNode, name: &str) -> bool {
    let there = node.disk.user().read(name).ok();
    let told = value(node, name).and_then(|value| match value {
        Value::File { size, hash } => Some((size, hash.0)),
        _ => None,
    });
    told == there.map(|content| (content.len() as u64, *blake3::hash(&content).as_bytes()))
}

#[test]
fn other_changes_do_not_wait_for_a_long_file() {
    let (mut a, mut b) = pair();
    rest(&mut a, &mut b);
    let user = a.disk.user();
    user.write("long", vec![1; LONG_BYTES]).unwrap();
    look(&mut a, &["long"]);
    assert!(value(&mut a, "long").is_none() && !tree(&mut a).has_looked() && tree(&mut a).reads_on());
    user.write("short", "short").unwrap();
    look(&mut a, &["short"]);
    assert!(tells(&mut a, "short") && value(&mut a, "long").is_none());
    // Nor does one that is a little long.
    user.write("longer", vec![2; LONG_BYTES / 8]).unwrap();
    look(&mut a, &["longer"]);
    let rounds = (1..100).find(|_| {
        look(&mut a, &[]);
        value(&mut a, "longer").is_some()
    });
    assert!(rounds.is_some_and(|rounds| rounds <= 4) && value(&mut a, "long").is_none(), "{rounds:?}");
    assert!(finish(&mut a) > 5);
    assert!(tells(&mut a, "long") && tells(&mut a, "longer") && !tree(&mut a).reads_on());
    // Nor do they for one that a scan finds.
    user.mkdir_all("new").unwrap();
    user.write("new/long", vec![4; LONG_BYTES]).unwrap();
    user.write("new/short", "short").unwrap();
    tree(&mut a).scan_below(&path("new")).unwrap();
    assert!(tells(&mut a, "new/short") && value(&mut a, "new/long").is_none());
    finish(&mut a);
    assert!(tells(&mut a, "new/long"));
    // Whoever waits for all gets all at once.
    user.write("long", vec![3; LONG_BYTES]).unwrap();
    look(&mut a, &["long"]);
    assert!(tree(&mut a).catch_up().unwrap().is_empty() && tells(&mut a, "long"));
    rest(&mut a, &mut b);
}

#[test]
fn more_long_files_than_are_read_at_a_time_are_all_read() {
    let (mut a, mut b) = pair();
    rest(&mut a, &mut b);
    let names: Vec<String> = (0..20).map(|n| format!("long{n}")).collect();
    for name in &names {
        a.disk.user().write(name, vec![1; LONG_BYTES / 4]).unwrap();
        look(&mut a, &[name]);
    }
    finish(&mut a);
    assert!(names.iter().all(|name| tells(&mut a, name)));
    rest(&mut a, &mut b);
}

#[test]
fn nothing_goes_on_while_writers_keep_long_files() {
    let (mut a, mut b) = pair();
    rest(&mut a, &mut b);
    let names = ["log0", "log1", "log2"];
    let mut open = Vec::new();
    for name in names {
        a.disk.user().write(name, vec![1; LONG_BYTES]).unwrap();
        open.push(a.disk.user().open_writing(name).unwrap());
        tree(&mut a).look_again(&path(name), true, false);
    }
    // Whoever asks again and again finds nothing to do.
    for _ in 0..3 {
        assert_eq!(tree(&mut a).catch_up_by(100).unwrap(), names.map(path));
        assert!(!tree(&mut a).reads_on());
        names.iter().for_each(|name| tree(&mut a).look_again(&path(name), true, false));
    }
    open.truncate(1);
    look(&mut a, &[]);
    assert!(tree(&mut a).is_reading(&path("log1")) && tree(&mut a).is_reading(&path("log2")));
    open.clear();
    finish(&mut a);
    assert!(names.iter().all(|name| tells(&mut a, name)));
    rest(&mut a, &mut b);
}

/// Peers hear that a directory's files are gone before the file in its place is read, however long that takes.
#[test]
fn what_was_beneath_a_long_file_is_gone_before_it_is_read() {
    let (mut a, mut b) = pair();
    a.disk.user().mkdir_all("d/e").unwrap();
    a.disk.user().write("d/e/f", "beneath").unwrap();
    rest(&mut a, &mut b);
    for kept in [false, true] {
        a.disk.user().remove_all("d").unwrap();
        a.disk.user().write("d", vec![1; LONG_BYTES]).unwrap();
        let writer = kept.then(|| a.disk.user().open_writing("d").unwrap());
        look(&mut a, &["d"]);
        assert_eq!(tree(&mut a).is_reading(&path("d")), !kept);
        assert_eq!((value(&mut a, "d/e"), value(&mut a, "d/e/f")), (None, None), "kept: {kept}");
        drop(writer);
        rest(&mut a, &mut b);
        a.disk.user().remove("d").unwrap();
        a.disk.user().mkdir_all("d/e").unwrap();
        a.disk.user().write("d/e/f", "again").unwrap();
        rest(&mut a, &mut b);
    }
}

#[test]
fn what_happens_to_a_long_file_while_it_is_read_is_seen() {
    let other = || vec![7; LONG_BYTES];
    type Change<'a> = (&'a [&'a str], Box<dyn Fn(&ModelUser) + 'a>);
    let changes: [Change<'_>; 10] = [
        (&["d/long"], Box::new(|user| user.patch("d/long", 10, "changed").unwrap())),
        (&["d/long"], Box::new(|user| user.append("d/long", "more").unwrap())),
        (&["d/long"], Box::new(|user| user.truncate("d/long", 5_000).unwrap())),
        (&["d/long"], Box::new(|user| user.replace("d/long", other()).unwrap())),
        (&["d/long"], Box::new(|user| user.replace("d/long", "short").unwrap())),
        (&["d/long"], Box::new(|user| user.remove("d/long").unwrap())),
        (&["d/long"], Box::new(|user| user.chmod("d/long", 0o600).unwrap())),
        (&["d/long", "moved"], Box::new(|user| user.rename("d/long", "moved").unwrap())),
        (
            &["d", "moved"],
            Box::new(|user| {
                user.rename("d", "e").unwrap();
                user.rename("e/long", "moved").unwrap();
            }),
        ),
        (
            &["d", "e/long", "d/long"],
            // The file that was opened keeps its stamp.
            Box::new(|user| {
                user.rename("d", "e").unwrap();
                user.mkdir_all("d").unwrap();
                user.write("d/long", other()).unwrap();
            }),
        ),
    ];
    for (nth, (told, change)) in changes.iter().enumerate() {
        for known in [false, true] {
            let (mut a, mut b) = pair();
            a.disk.user().mkdir_all("d").unwrap();
            if known {
                a.disk.user().write("d/long", vec![0; LONG_BYTES]).unwrap();
            }
            rest(&mut a, &mut b);
            a.disk.user().write("d/long", vec![1; LONG_BYTES]).unwrap();
            look(&mut a, &["d/long"]);
            look(&mut a, &[]);
            assert!(tree(&mut a).is_reading(&path("d/long")));
            a.disk.advance(1_000_000);
            change(&a.disk.user());
            look(&mut a, told);
            finish(&mut a);
            for name in ["d/long", "e/long", "moved"] {
                assert!(tells(&mut a, name), "change {nth}, known before: {known}: {name}");
            }
            rest(&mut a, &mut b);
        }
    }
}

#[test]
fn a_long_file_that_never_rests_is_taken_as_it_is() {
    let (mut a, mut b) = pair();
    rest(&mut a, &mut b);
    a.disk.user().write("log", vec![1; LONG_BYTES]).unwrap();
    for round in 0..40 {
        a.disk.user().append("log", "more").unwrap();
        look(&mut a, &["log"]);
        assert!(value(&mut a, "log").is_none(), "{round}");
    }
    for _ in 0..40 {
        a.disk.user().append("log", "more").unwrap();
        tree(&mut a).look_again(&path("log"), true, true);
        look(&mut a, &["log"]);
    }
    assert!(matches!(value(&mut a, "log"), Some(Value::File { size, .. }) if size > LONG_BYTES as u64));
    finish(&mut a);
    rest(&mut a, &mut b);
    assert!(tells(&mut a, "log"));
}
