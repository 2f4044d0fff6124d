//! Content that this disk has already does not come over the wire: what was renamed is renamed, what
//! was copied is copied.

use pleach_protocol::path::TreePath;
use pleach_store::tree::{Digests, Rows, Want};
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::OpKind;
use pleach_tests::model::{ModelNode, pair, settle};

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).unwrap()
}

fn rest(a: &mut ModelNode, b: &mut ModelNode) {
    assert!(settle(a, b).unwrap(), "they come to rest");
    assert_eq!(a.seen(), b.seen());
    let head = a.tree.as_ref().unwrap().head();
    a.tree.as_mut().unwrap().peer_merged(b.id, head).unwrap();
}

fn paths_in_vault(node: &ModelNode) -> usize {
    node.disk.user().snapshot(true).keys().filter(|path| path.starts_with(b".pleach/vault/")).count()
}

/// A scans, and B hears of it; how much content came inline.
fn hear(a: &mut ModelNode, b: &mut ModelNode) -> usize {
    let (from, to) = (a.tree.as_mut().unwrap(), b.tree.as_mut().unwrap());
    from.scan().unwrap();
    from.commit().unwrap();
    let mut inline = 0;
    let mut position = to.cursor(a.id).unwrap().map_or(0, |cursor| cursor.seq);
    while position < from.head() {
        let Rows { rows, names, upto, .. } =
            from.read_rows(position, 48 * 1024, (b.id, to.life()), &mut Digests::default()).unwrap();
        inline += rows.iter().filter_map(|row| row.content.as_ref()).map(Vec::len).sum::<usize>();
        to.merge((a.id, from.life()), rows, names, upto).unwrap();
        to.commit().unwrap();
        position = upto;
    }
    inline
}

/// The same, and B applies what it can; what came inline, and what B asks for.
fn tell(a: &mut ModelNode, b: &mut ModelNode) -> (usize, Vec<Want>) {
    let inline = hear(a, b);
    let to = b.tree.as_mut().unwrap();
    let mut wants = to.apply().unwrap();
    // Many removals wait until nothing new was announced.
    wants.extend(to.apply().unwrap());
    to.commit().unwrap();
    // Nobody answers.
    wants.iter().for_each(|want| to.forget_want(want.id));
    (inline, wants)
}

#[test]
fn a_renamed_directory_is_renamed_by_its_inodes() {
    for (old, new) in [("d", "e"), ("e", "d"), ("x/y", "a"), ("a", "x/y")] {
        let (mut a, mut b) = pair();
        a.disk.user().mkdir_all(old).unwrap();
        a.disk.user().mkdir_all("x").unwrap();
        for n in 0..200 {
            a.disk.user().write(format!("{old}/f{n}"), format!("small {n}")).unwrap();
        }
        a.disk.user().write(format!("{old}/large"), vec![b'l'; 50_000]).unwrap();
        rest(&mut a, &mut b);
        let inode = |node: &ModelNode, path: String| node.disk.user().stat(path).unwrap().inode;
        let before: Vec<u64> = (0..200).map(|n| inode(&b, format!("{old}/f{n}"))).collect();
        let large = inode(&b, format!("{old}/large"));
        a.disk.user().rename(old, new).unwrap();
        let (inline, wants) = tell(&mut a, &mut b);
        assert_eq!((inline, wants.len()), (0, 0), "{old} to {new}: nothing travels");
        assert_eq!(a.seen(), b.seen(), "{old} to {new}");
        assert_eq!(paths_in_vault(&b), 0, "nothing was displaced");
        let after: Vec<u64> = (0..200).map(|n| inode(&b, format!("{new}/f{n}"))).collect();
        assert_eq!((before, large), (after, inode(&b, format!("{new}/large"))), "the same inodes");
        rest(&mut a, &mut b);
    }
}

#[test]
fn a_file_that_went_into_the_vault_a_moment_ago_comes_out_again() {
    let (mut a, mut b) = pair();
    for n in 0..3 {
        a.disk.user().write(format!("f{n}"), format!("small {n}")).unwrap();
    }
    rest(&mut a, &mut b);
    let before = b.disk.user().stat("f0").unwrap().inode;
    // Moved by way of a place that is not in the tree.
    for n in 0..3 {
        a.disk.user().remove(format!("f{n}")).unwrap();
    }
    tell(&mut a, &mut b);
    assert_eq!(paths_in_vault(&b), 3);
    for n in 0..3 {
        a.disk.user().write(format!("g{n}"), format!("small {n}")).unwrap();
    }
    assert_eq!(tell(&mut a, &mut b), (0, vec![]));
    assert_eq!((a.seen(), paths_in_vault(&b)), (b.seen(), 0));
    assert_eq!(b.disk.user().stat("g0").unwrap().inode, before);
    assert!(b.tree.as_ref().unwrap().versions(&path("f0")).unwrap().is_empty(), "no row without its file");
    rest(&mut a, &mut b);
}

#[test]
fn a_large_copy_is_copied_here() {
    let (mut a, mut b) = pair();
    let large: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
    a.disk.user().write("large", &large).unwrap();
    rest(&mut a, &mut b);
    a.disk.user().write("copy", &large).unwrap();
    assert_eq!(tell(&mut a, &mut b), (0, vec![]));
    assert_eq!(b.disk.user().read("copy").unwrap(), large);
    // Also from a version in the vault, after a restart.
    a.disk.user().remove("large").unwrap();
    a.disk.user().remove("copy").unwrap();
    tell(&mut a, &mut b);
    b.start().unwrap();
    a.disk.user().write("back", &large).unwrap();
    assert_eq!(tell(&mut a, &mut b), (0, vec![]));
    assert_eq!(b.disk.user().read("back").unwrap(), large);
    rest(&mut a, &mut b);
}

#[test]
fn a_source_that_is_not_what_its_row_says_is_not_used() {
    let (mut a, mut b) = pair();
    let large = vec![b'l'; 50_000];
    a.disk.user().write("large", &large).unwrap();
    rest(&mut a, &mut b);
    // Same length, same time, other bytes; nobody saw it.
    let mtime = b.disk.user().stat("large").unwrap().mtime;
    b.disk.user().patch("large", 7, "X").unwrap();
    b.disk.user().touch("large", mtime).unwrap();
    a.disk.user().write("copy", &large).unwrap();
    let (_, wants) = tell(&mut a, &mut b);
    assert_eq!(wants.iter().map(|w| w.path.clone()).collect::<Vec<_>>(), [path("copy")], "it is asked for");
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("copy").unwrap(), large);
}

/// A user writes, or puts another file there, between our last look and our rename.
#[test]
fn an_edit_just_before_a_move_is_kept() {
    for replaces in [false, true] {
        let (mut a, mut b) = pair();
        a.disk.user().write("f", "content").unwrap();
        rest(&mut a, &mut b);
        a.disk.user().rename("f", "g").unwrap();
        b.disk.before(OpKind::Rename, 1, move |user| {
            if replaces {
                user.replace("f", "another").unwrap();
            } else {
                user.write("f", "edited!").unwrap();
            }
        });
        tell(&mut a, &mut b);
        rest(&mut a, &mut b);
        let edit: &[u8] = if replaces { b"another" } else { b"edited!" };
        assert!(b.seen().values().any(|seen| seen.content == edit), "{:?}", b.seen());
        rest(&mut a, &mut b);
    }
}

#[test]
fn files_that_change_places_do_so() {
    let (mut a, mut b) = pair();
    a.disk.user().write("one", "1").unwrap();
    a.disk.user().write("two", "22").unwrap();
    rest(&mut a, &mut b);
    for (old, new) in [("one", "tmp"), ("two", "one"), ("tmp", "two")] {
        a.disk.user().rename(old, new).unwrap();
    }
    rest(&mut a, &mut b);
    assert_eq!(b.disk.user().read("one").unwrap(), b"22");
    assert_eq!(b.disk.user().read("two").unwrap(), b"1");
}

#[test]
fn one_of_two_equal_files_moves_and_the_other_stays() {
    let (mut a, mut b) = pair();
    for name in ["one", "two", "three"] {
        a.disk.user().write(name, "the same").unwrap();
    }
    rest(&mut a, &mut b);
    a.disk.user().rename("one", "four").unwrap();
    a.disk.user().rename("three", "five").unwrap();
    a.disk.user().remove("two").unwrap();
    assert_eq!(tell(&mut a, &mut b), (0, vec![]));
    rest(&mut a, &mut b);
    assert_eq!(paths_in_vault(&b), 1);
}

/// Found by seeds 8341, 9077, 10373 and 14125: the file was put in place with the link's time, and taken for a user's
/// change that undid the link everywhere.
#[test]
fn a_content_that_came_for_an_older_view_is_not_put_in_place_of_a_link() {
    let (mut a, mut b) = pair();
    rest(&mut a, &mut b);
    let large = vec![b'l'; 50_000];
    a.disk.user().write("x", &large).unwrap();
    hear(&mut a, &mut b);
    let tree = b.tree.as_mut().unwrap();
    let wants = [tree.apply().unwrap(), tree.apply().unwrap()].concat();
    assert_eq!(wants.len(), 1);
    a.disk.user().remove("x").unwrap();
    a.disk.user().symlink("elsewhere", "x").unwrap();
    hear(&mut a, &mut b);
    let tree = b.tree.as_mut().unwrap();
    tree.receive(wants[0].id, 0, &large, true).unwrap();
    tree.apply().unwrap();
    assert_eq!(a.seen(), b.seen());
    rest(&mut a, &mut b);
    assert!(b.disk.user().stat("x").unwrap().kind == Kind::Symlink);
}
