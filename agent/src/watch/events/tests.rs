use std::fs;

use super::*;

const WANTED: EventMask = EventMask::CREATE
    .union(EventMask::CLOSE_WRITE)
    .union(EventMask::DELETE)
    .union(EventMask::MOVED_FROM)
    .union(EventMask::MOVED_TO);

fn start(top: &Path) -> Events {
    Events::start(top, WANTED, Box::new(|_, name| name == b"left-out")).unwrap()
}

/// Reads until `count` events came that `which` takes.
fn until(events: &mut Events, count: usize, which: impl Fn(&Seen) -> bool) -> Vec<Seen> {
    let mut seen = Vec::new();
    while seen.iter().filter(|event| which(event)).count() < count {
        let more = events.next(Some(Duration::from_secs(20))).unwrap();
        assert!(!more.is_empty(), "no more events after {seen:#?}");
        seen.extend(more);
    }
    seen
}

fn path(seen: &Seen) -> String {
    String::from_utf8(seen.dir.join(&seen.name).unwrap().as_bytes().to_vec()).unwrap()
}

#[test]
fn nothing_in_new_directories_is_missed_and_nothing_is_created_twice() {
    let dir = tempfile::tempdir().unwrap();
    let mut events = start(dir.path());
    let top = dir.path().to_owned();
    let writer = std::thread::spawn(move || {
        for n in 0..200 {
            let deep = top.join(format!("d{n}/e/f"));
            fs::create_dir_all(&deep).unwrap();
            fs::write(deep.join("file"), "x").unwrap();
        }
        fs::write(top.join("last"), "x").unwrap();
    });
    let seen = until(&mut events, 1, |event| path(event) == "last" && event.mask == EventMask::CLOSE_WRITE);
    writer.join().unwrap();
    let all = |mask| seen.iter().filter(|event| event.mask == mask).map(path).collect::<Vec<_>>();
    let mut created = all(EventMask::CREATE);
    let closed: HashSet<String> = all(EventMask::CLOSE_WRITE).into_iter().collect();
    created.sort();
    assert_eq!(created.len(), 201);
    created.dedup();
    assert_eq!(created.len(), 201, "a file was created twice");
    assert!(created.iter().all(|path| closed.contains(path)));
    assert_eq!(all(EventMask::CREATE | EventMask::ISDIR).len(), 600);
    assert_eq!(events.watches(), 601);
}

#[test]
fn a_directory_that_moves_is_told_under_its_new_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    let mut events = start(dir.path());
    fs::rename(dir.path().join("a"), dir.path().join("c")).unwrap();
    fs::write(dir.path().join("c/b/x"), "").unwrap();
    let seen = until(&mut events, 1, |event| event.mask == EventMask::CLOSE_WRITE);
    let said: Vec<(EventMask, String)> = seen.iter().map(|event| (event.mask, path(event))).collect();
    let isdir = EventMask::ISDIR;
    assert_eq!(
        said,
        [
            (EventMask::MOVED_FROM | isdir, "a".into()),
            (EventMask::MOVED_TO | isdir, "c".into()),
            (EventMask::CREATE, "c/b/x".into()),
            (EventMask::CLOSE_WRITE, "c/b/x".into()),
        ]
    );
    assert_eq!(seen[0].cookie, seen[1].cookie);
    let outside = tempfile::tempdir().unwrap();
    fs::rename(dir.path().join("c"), outside.path().join("c")).unwrap();
    fs::write(outside.path().join("c/b/y"), "").unwrap();
    fs::write(dir.path().join("z"), "").unwrap();
    let seen = until(&mut events, 1, |event| event.mask == EventMask::CLOSE_WRITE);
    assert!(seen.iter().all(|event| path(event) == "c" || path(event) == "z"), "{seen:#?}");
    assert_eq!(events.watches(), 1);
}

#[test]
fn what_is_left_out_and_the_end_of_the_top() {
    let outer = tempfile::tempdir().unwrap();
    let top = outer.path().join("top");
    fs::create_dir_all(top.join("left-out")).unwrap();
    let mut events = start(&top);
    assert_eq!(events.watches(), 1);
    fs::write(top.join("left-out/x"), "").unwrap();
    fs::rename(top.join("left-out"), top.join("in")).unwrap();
    fs::write(top.join("in/y"), "").unwrap();
    let seen = until(&mut events, 1, |event| path(event) == "in/y" && event.mask == EventMask::CLOSE_WRITE);
    let mut paths = seen.iter().map(path).collect::<Vec<_>>();
    paths.sort();
    paths.dedup();
    assert_eq!(paths, ["in", "in/x", "in/y"]);
    fs::remove_dir_all(&top).unwrap();
    while !events.ended() {
        events.next(Some(Duration::from_secs(20))).unwrap();
    }
}

#[test]
fn the_first_look_is_not_told() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("a/b")).unwrap();
    let mut events = Events::start(dir.path(), EventMask::all() - EventMask::ISDIR, Box::new(|_, _| false)).unwrap();
    fs::write(dir.path().join("a/b/x"), "").unwrap();
    let seen = until(&mut events, 1, |event| event.mask == EventMask::CLOSE_WRITE);
    assert!(seen.iter().all(|event| path(event) == "a/b/x"), "{seen:#?}");
}
