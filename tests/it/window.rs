//! What the applier has under work at once.

use pleach_store::tree::Rows;
use pleach_tests::model::{pair, rest};

/// More than may be under work at once.
const FILES: usize = 700;

/// A first sync dropped contents that had come with their rows, for too many of them waited, and asked for them again: 80 MB more
/// than the 722 MB that there were.
#[test]
fn what_came_with_its_row_waits_for_no_contents_that_are_on_their_way() {
    let (mut a, mut b) = pair();
    rest(&mut a, &mut b);
    for file in 0..FILES {
        a.disk.user().write(format!("f{file:03}"), file.to_string()).unwrap();
    }
    a.disk.user().write("z", "short").unwrap();
    let (from, to) = (a.tree.as_mut().unwrap(), b.tree.as_mut().unwrap());
    from.scan().unwrap();
    from.commit().unwrap();
    let (mut upto, mut asked) = (0, 0);
    while upto < from.head() {
        let read = from.read_rows(upto, usize::MAX, (b.id, to.life()), &mut Default::default()).unwrap();
        let Rows { mut rows, names, .. } = read;
        // As of files that are longer than what travels with a row.
        rows.iter_mut().filter(|row| row.path.name().starts_with(b"f")).for_each(|row| row.content = None);
        upto = read.upto;
        to.merge((a.id, from.life()), rows, names, upto).unwrap();
        to.commit().unwrap();
        asked += to.apply().unwrap().len();
    }
    assert_eq!(asked, FILES);
    assert_eq!(b.disk.user().read("z").unwrap(), b"short");
}
