//! Trees that were equal when they met: what travels instead of their rows.

use std::sync::{Arc, Mutex};

use pleach_agent::exchange::{Exchange, Tell, ToSession};
use pleach_protocol::alike::Alike;
use pleach_protocol::entry::Entry;
use pleach_protocol::path::TreePath;
use pleach_protocol::session::{Input, Moment, Output};
use pleach_store::tree::{Digests, Rows};
use pleach_tests::model::{ModelNode, ModelTree, pair, rest};

const DIRS: usize = 5;
const FILES: usize = 40;

/// Two nodes with the same in their trees, each of which found it for itself.
fn equal() -> (ModelNode, ModelNode) {
    let (mut a, mut b) = pair();
    // As copied by rsync -a, or restored from a tape: the times are the files', not the copies'.
    let time = a.disk.now();
    for node in [&mut a, &mut b] {
        for dir in 0..DIRS {
            node.disk.user().mkdir_all(format!("d{dir}")).unwrap();
            for file in 0..FILES {
                let path = format!("d{dir}/f{file}");
                node.disk.user().write(&path, format!("content {file} of {dir}")).unwrap();
                node.disk.user().touch(&path, time).unwrap();
            }
            node.disk.user().touch(format!("d{dir}"), time).unwrap();
        }
        node.disk.advance(60_000_000_000);
        let tree = node.tree.as_mut().unwrap();
        tree.scan().unwrap();
        tree.commit().unwrap();
    }
    (a, b)
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn tree(node: &mut ModelNode) -> &mut ModelTree {
    node.tree.as_mut().unwrap()
}

/// What a node's directories come to, as it tells it.
fn digests(node: &mut ModelNode) -> Digests {
    let (mut told, mut at) = (Digests::default(), None);
    loop {
        let (digests, next) = tree(node).digests(at).unwrap();
        told.hear(digests);
        if next.is_none() {
            return told;
        }
        at = next;
    }
}

/// All that A tells B, which said what its directories come to.
fn told(a: &mut ModelNode, b: &mut ModelNode, after: u64, digests: &mut Digests) -> Rows {
    let place = (b.id, tree(b).life());
    tree(a).read_rows(after, usize::MAX, place, digests).unwrap()
}

/// B takes it in; what A said of its own directories is of another session.
fn take(a: &mut ModelNode, b: &mut ModelNode, told: Rows) -> bool {
    take_from(a, &mut Digests::default(), b, told)
}

/// B, to which A said what its directories come to, takes it in.
fn take_from(a: &mut ModelNode, of_a: &mut Digests, b: &mut ModelNode, told: Rows) -> bool {
    let from = (a.id, tree(a).life());
    let alike = |alike: &Alike| tree(b).merge_alike(from, alike, Vec::new(), of_a).unwrap();
    let taken = told.alike.iter().all(alike);
    if taken {
        tree(b).merge(from, told.rows, told.names, told.upto).unwrap();
        tree(b).commit().unwrap();
    }
    taken
}

fn entries(node: &mut ModelNode) -> Vec<(TreePath, Entry)> {
    let rows = tree(node).index().beneath(&TreePath::ROOT, None, usize::MAX).unwrap();
    rows.into_iter().map(|(path, row)| (path, row.entry)).collect()
}

#[test]
fn of_equal_trees_only_the_dots_travel() {
    let (mut a, mut b) = equal();
    let (mut of_a, mut of_b) = (digests(&mut a), digests(&mut b));
    let to_b = told(&mut a, &mut b, 0, &mut of_b);
    assert_eq!((to_b.rows.len(), to_b.alike.len()), (0, DIRS + 1));
    assert_eq!(to_b.alike.iter().map(|alike| alike.dots.len()).sum::<usize>(), DIRS * FILES + DIRS);
    let upto = to_b.upto;
    assert_eq!(upto, tree(&mut a).head());
    assert!(take(&mut a, &mut b, to_b));
    // B knows both by now, and A learns the same of it.
    let to_a = told(&mut b, &mut a, 0, &mut of_a);
    assert_eq!((to_a.rows.len(), to_a.alike.len()), (0, DIRS + 1));
    assert!(take(&mut b, &mut a, to_a));
    assert_eq!(entries(&mut a), entries(&mut b));
    let again = told(&mut a, &mut b, upto, &mut of_b);
    assert_eq!((again.rows.len(), again.alike.len()), (0, 0), "it was taught by B");
    rest(&mut a, &mut b);
    let one = a.tree.as_ref().unwrap().entry(&path("d0/f0")).unwrap().unwrap();
    assert_eq!(one.content.len(), 2);
}

#[test]
fn both_at_once_come_to_the_same_without_rows() {
    let (mut a, mut b) = equal();
    let (mut of_a, mut of_b) = (digests(&mut a), digests(&mut b));
    let (to_b, to_a) = (told(&mut a, &mut b, 0, &mut of_b), told(&mut b, &mut a, 0, &mut of_a));
    let (of_a_heard, of_b_heard) = (to_b.upto, to_a.upto);
    assert!(take(&mut a, &mut b, to_b) && take(&mut b, &mut a, to_a));
    assert_eq!(entries(&mut a), entries(&mut b));
    // In another session each tells the other what it learned meanwhile, for it cannot know that the other has it.
    let (to_b, to_a) = (told(&mut a, &mut b, of_a_heard, &mut of_b), told(&mut b, &mut a, of_b_heard, &mut of_a));
    assert_eq!((to_b.rows.len(), to_a.rows.len()), (0, 0));
    let heads = (tree(&mut a).head(), tree(&mut b).head());
    assert!(take(&mut a, &mut b, to_b) && take(&mut b, &mut a, to_a));
    assert_eq!((tree(&mut a).head(), tree(&mut b).head()), heads, "there is nothing new in it");
}

#[test]
fn what_both_told_is_not_told_again() {
    let (mut a, mut b) = equal();
    let (mut of_a, mut of_b) = (digests(&mut a), digests(&mut b));
    let (to_b, to_a) = (told(&mut a, &mut b, 0, &mut of_b), told(&mut b, &mut a, 0, &mut of_a));
    let (of_a_heard, of_b_heard) = (to_b.upto, to_a.upto);
    assert!(take_from(&mut a, &mut of_a, &mut b, to_b) && take_from(&mut b, &mut of_b, &mut a, to_a));
    let heads = (tree(&mut a).head(), tree(&mut b).head());
    for (rows, head) in
        [(told(&mut a, &mut b, of_a_heard, &mut of_b), heads.0), (told(&mut b, &mut a, of_b_heard, &mut of_a), heads.1)]
    {
        assert_eq!((rows.rows.len(), rows.alike.len(), rows.upto), (0, 0, head));
    }
    assert_eq!(entries(&mut a), entries(&mut b));
    // The applier has nothing to write.
    rest(&mut a, &mut b);
    assert_eq!((tree(&mut a).head(), tree(&mut b).head()), heads);
    // What changes from now on is told.
    a.disk.user().write("d1/f3", "edited").unwrap();
    tree(&mut a).scan().unwrap();
    tree(&mut a).commit().unwrap();
    let to_b = told(&mut a, &mut b, heads.0, &mut of_b);
    assert_eq!((to_b.rows.len(), to_b.alike.len()), (1, 0));
}

#[test]
fn where_one_was_told_less_all_is_told_again() {
    let (mut a, mut b) = equal();
    let (mut of_a, mut of_b) = (digests(&mut a), digests(&mut b));
    let to_a = told(&mut b, &mut a, 0, &mut of_a);
    // A has told nothing yet.
    assert!(take_from(&mut b, &mut of_b, &mut a, to_a));
    let to_b = told(&mut a, &mut b, 0, &mut of_b);
    assert_eq!((to_b.rows.len(), to_b.alike.len()), (0, DIRS + 1));
}

#[test]
fn what_differs_travels_as_rows() {
    let (mut a, mut b) = equal();
    b.disk.user().write("d2/f7", "another content").unwrap();
    b.disk.user().write("d4/more", "one more").unwrap();
    tree(&mut b).scan().unwrap();
    tree(&mut b).commit().unwrap();
    let mut of_b = digests(&mut b);
    let to_b = told(&mut a, &mut b, 0, &mut of_b);
    // The root's, for those two have other times, and theirs.
    assert_eq!((to_b.rows.len(), to_b.alike.len()), (DIRS + 2 * FILES, DIRS - 2));
    assert!(take(&mut a, &mut b, to_b));
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("d4/more").unwrap(), b"one more");
}

#[test]
fn what_changed_since_it_was_told_is_not_taken_for_what_it_was() {
    let (mut a, mut b) = equal();
    let mut of_b = digests(&mut b);
    let to_b = told(&mut a, &mut b, 0, &mut of_b);
    b.disk.user().write("d2/f7", "another content").unwrap();
    tree(&mut b).scan().unwrap();
    let before = entries(&mut b);
    let changed = to_b.alike.iter().find(|alike| alike.dir == path("d2")).unwrap().clone();
    let from = (a.id, tree(&mut a).life());
    assert!(!tree(&mut b).merge_alike(from, &changed, Vec::new(), &mut Digests::default()).unwrap());
    let fewer = Alike { dir: path("d1"), dots: vec![changed.dots[0].clone()], ..to_b.alike[2].clone() };
    let unknown = Alike { dir: path("nowhere"), ..changed };
    for wrong in [fewer, unknown] {
        assert!(!tree(&mut b).merge_alike(from, &wrong, Vec::new(), &mut Digests::default()).unwrap(), "{wrong:?}");
    }
    assert_eq!(entries(&mut b), before);
    // All of it as rows, as the next session tells it.
    let all = told(&mut a, &mut b, 0, &mut Digests::default());
    assert_eq!((all.rows.len(), all.alike.len()), (DIRS * FILES + DIRS, 0));
    assert!(take(&mut a, &mut b, all));
    rest(&mut a, &mut b);
    assert_eq!(a.disk.user().read("d2/f7").unwrap(), b"another content");
}

#[test]
fn what_changed_here_since_a_directory_was_told_is_told() {
    let (mut a, mut b) = equal();
    let mut of_b = digests(&mut b);
    let to_b = told(&mut a, &mut b, 0, &mut of_b);
    let upto = to_b.upto;
    assert!(take(&mut a, &mut b, to_b));
    a.disk.user().write("d2/f7", "another content").unwrap();
    tree(&mut a).scan().unwrap();
    tree(&mut a).commit().unwrap();
    let to_b = told(&mut a, &mut b, upto, &mut of_b);
    assert_eq!((to_b.rows.len(), to_b.alike.len()), (1, 0));
    assert!(take(&mut a, &mut b, to_b));
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("d2/f7").unwrap(), b"another content");
}

#[test]
fn what_both_know_under_the_same_dots_is_not_told_at_all() {
    let (mut a, mut b) = pair();
    for file in 0..FILES {
        a.disk.user().write(format!("f{file}"), format!("content {file}")).unwrap();
    }
    rest(&mut a, &mut b);
    b.disk.user().write("f0", "edited").unwrap();
    b.disk.user().remove("f1").unwrap();
    rest(&mut a, &mut b);
    // As where an exchange begins anew after a while.
    let mut of_b = digests(&mut b);
    let to_b = told(&mut a, &mut b, 0, &mut of_b);
    assert_eq!((to_b.rows.len(), to_b.alike.len(), to_b.upto), (0, 0, tree(&mut a).head()));
    a.disk.user().write("f3", "edited").unwrap();
    tree(&mut a).scan().unwrap();
    tree(&mut a).commit().unwrap();
    let mut of_b = digests(&mut b);
    // But for what B did itself.
    assert_eq!(told(&mut a, &mut b, 0, &mut of_b).rows.len(), FILES - 2);
}

#[test]
fn a_directory_of_which_part_is_not_durable_waits() {
    let (mut a, mut b) = equal();
    let mut of_b = digests(&mut b);
    let from = (b.id, tree(&mut b).life());
    let mut of_a = digests(&mut a);
    let to_a = told(&mut b, &mut a, 0, &mut of_a);
    for alike in &to_a.alike {
        assert!(tree(&mut a).merge_alike(from, alike, Vec::new(), &mut Digests::default()).unwrap());
    }
    let to_b = told(&mut a, &mut b, 0, &mut of_b);
    assert_eq!((to_b.rows.len(), to_b.alike.len(), to_b.upto), (0, 0, 0));
    tree(&mut a).commit().unwrap();
    let to_b = told(&mut a, &mut b, 0, &mut of_b);
    assert_eq!((to_b.rows.len(), to_b.alike.len()), (0, DIRS + 1));
}

/// What a session is told.
#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<ToSession>>>);

impl Tell for Told {
    fn tell(&self, what: ToSession) -> bool {
        self.0.lock().unwrap().push(what);
        true
    }
}

#[test]
fn where_a_directory_changed_meanwhile_the_session_begins_anew_and_tells_of_none() {
    let (mut a, mut b) = equal();
    let (of_a, head) = (a.id, tree(&mut a).head());
    let mut of_b = digests(&mut b);
    let alike = told(&mut a, &mut b, 0, &mut of_b).alike.remove(0);
    let mut exchange = Exchange::new(Box::new(|| Ok([7; 16])));
    exchange.load(tree(&mut b), &[(of_a, "a".to_owned())].into()).unwrap();
    let session = Told::default();
    let mut digests_told = Vec::new();
    for number in [1, 2] {
        exchange.expect(of_a, number, 0, session.clone(), false);
        let (name, incarnation) = ("a".to_owned(), tree(&mut a).life().incarnation);
        let (start, peer_cursor, told_under, went_back) = (1, 0, 0, false);
        let opened = Output::Opened { tree: 0, name, incarnation, start, head, peer_cursor, told_under, went_back };
        let outputs = [
            opened,
            Output::ReadDigests { tree: 0 },
            Output::MergeAlike { tree: 0, alike: alike.clone(), names: Vec::new() },
            Output::Merge { tree: 0, rows: Vec::new(), names: Vec::new(), upto: head },
        ];
        for output in outputs {
            let is_telling = matches!(output, Output::ReadDigests { .. });
            exchange.carry_out(tree(&mut b), Moment(1), (of_a, number), output).unwrap();
            let heard = std::mem::take(&mut *session.0.lock().unwrap());
            if is_telling {
                digests_told.extend(heard.into_iter().filter_map(|told| match told {
                    ToSession::Input(Input::Digests { digests, last, .. }) => Some((digests.len(), last)),
                    _ => None,
                }));
                // Now it is another one.
                b.disk.user().write("other", "new").unwrap();
                tree(&mut b).scan().unwrap();
            }
        }
        tree(&mut b).commit().unwrap();
        let place = tree(&mut b).cursor(of_a).unwrap();
        assert_eq!(place.map(|cursor| cursor.seq), None, "the batch says that the directory was taken in");
    }
    assert_eq!(digests_told, [(DIRS + 1, true), (0, true)]);
}
