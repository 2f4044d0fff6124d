//! On real directories. Nothing sleeps: a marker in the barrier directory tells that everything
//! done before it was seen.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::sync::RwLock;
use std::sync::mpsc;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, mkdirat, open, openat, renameat_with};
use tempfile::TempDir;

use super::*;

struct Watched {
    dir: TempDir,
    outside: TempDir,
    watcher: InotifyWatcher,
    markers: usize,
}

/// Facts of several polls: one path may come in each.
#[derive(Default)]
struct Seen {
    facts: BTreeSet<Fact>,
    paths: BTreeMap<TreePath, (bool, bool)>,
}

impl Seen {
    fn add(&mut self, fact: Fact) {
        match fact {
            Fact::Barrier { .. } => {}
            Fact::Path { path, content, closed } => {
                let known = self.paths.entry(path).or_insert((false, false));
                *known = (known.0 | content, if content { closed } else { known.1 });
            }
            fact => drop(self.facts.insert(fact)),
        }
    }

    fn sorted(&self) -> Vec<Fact> {
        let paths = self.paths.iter().map(|(path, (content, closed))| Fact::Path {
            path: path.clone(),
            content: *content,
            closed: *closed,
        });
        self.facts.iter().cloned().chain(paths).collect()
    }
}

fn p(path: impl AsRef<[u8]>) -> TreePath {
    TreePath::parse(path.as_ref()).unwrap()
}

fn path(path: impl AsRef<[u8]>, content: bool, closed: bool) -> Fact {
    Fact::Path { path: p(path), content, closed }
}

/// A name that appeared or went.
fn name(at: impl AsRef<[u8]>) -> Fact {
    path(at, false, false)
}

fn written(at: impl AsRef<[u8]>) -> Fact {
    path(at, true, true)
}

fn subtree(dir: &str) -> Fact {
    Fact::Subtree { dir: p(dir) }
}

/// Polls until `found` says so.
fn poll_until(watcher: &mut InotifyWatcher, mut found: impl FnMut(Fact) -> bool) {
    for _ in 0..600 {
        // All facts are taken, also those behind the one that is waited for.
        if watcher.poll(Duration::from_millis(100)).unwrap().into_iter().filter(|f| found(f.clone())).count() > 0 {
            return;
        }
    }
    panic!("not seen within a minute");
}

impl Watched {
    fn new(before: impl FnOnce(&Path)) -> Self {
        Self::ignoring(before, Arc::new(|_, _| false))
    }

    fn ignoring(before: impl FnOnce(&Path), ignored: Ignored) -> Self {
        let (dir, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(dir.path().join(".pleach/barrier")).unwrap();
        before(dir.path());
        let watcher = InotifyWatcher::start(dir.path(), ignored).unwrap();
        Self { dir, outside, watcher, markers: 0 }
    }

    fn at(&self, path: impl AsRef<[u8]>) -> PathBuf {
        self.dir.path().join(OsStr::from_bytes(path.as_ref()))
    }

    fn write(&self, path: impl AsRef<[u8]>) {
        fs::write(self.at(path), "content").unwrap();
    }

    fn mkdirs(&self, path: impl AsRef<[u8]>) {
        fs::create_dir_all(self.at(path)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.at(from), self.at(to)).unwrap();
    }

    /// Everything that was reported of what happened before the call, sorted.
    fn facts(&mut self) -> Vec<Fact> {
        let mut seen = Seen::default();
        self.gather(&mut seen);
        seen.sorted()
    }

    /// Exactly these are reported. A close may come late: a process that another test starts holds all
    /// our open files until it runs.
    #[track_caller]
    fn expect(&mut self, expected: impl AsRef<[Fact]>) {
        let mut seen = Seen::default();
        for _ in 0..200 {
            self.gather(&mut seen);
            if seen.sorted() == expected.as_ref() {
                return;
            }
            self.watcher.poll(Duration::from_millis(10)).unwrap().into_iter().for_each(|fact| seen.add(fact));
        }
        assert_eq!(seen.sorted(), expected.as_ref());
    }

    fn gather(&mut self, seen: &mut Seen) {
        self.markers += 1;
        let marker = format!("{}", self.markers);
        let file = self.at(format!(".pleach/barrier/{marker}"));
        File::create(&file).unwrap();
        let ours = Fact::Barrier { name: marker.into() };
        poll_until(&mut self.watcher, |fact| {
            let passed = fact == ours;
            seen.add(fact);
            passed
        });
        fs::remove_file(file).unwrap();
    }

    /// The watches in the tree: one for each directory.
    fn watches(&self) -> usize {
        self.watcher.watches() - 1
    }

    /// Every directory of the tree is watched, no other is, and each knows its own path.
    fn check_complete(&mut self) {
        let mut dirs = Vec::new();
        let mut todo = vec![String::new()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(self.at(&dir)).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() && entry.file_name() != ".pleach" {
                    let child = format!("{dir}{}/", entry.file_name().to_str().unwrap());
                    todo.push(child);
                }
            }
            dirs.push(dir);
        }
        self.facts();
        assert_eq!(self.watches(), dirs.len());
        for dir in &dirs {
            self.write(format!("{dir}check"));
        }
        let expected: BTreeSet<_> = dirs.iter().map(|dir| written(format!("{dir}check"))).collect();
        self.expect(expected.into_iter().collect::<Vec<_>>());
    }
}

/// Whether a consumer of these facts would look at `path`.
fn cover(facts: &[Fact], path: &TreePath) -> bool {
    facts.iter().any(|fact| match fact {
        Fact::Lost => true,
        Fact::Subtree { dir } => dir == path || path.is_beneath(dir),
        Fact::Dir { dir } => path.parent().as_ref() == Some(dir),
        Fact::Path { path: at, .. } => at == path,
        _ => false,
    })
}

#[test]
fn tells_of_files() {
    let mut w = Watched::new(|root| fs::create_dir(root.join("d")).unwrap());
    assert_eq!(w.watches(), 2);
    let mut file = File::create(w.at("d/f")).unwrap();
    w.expect([name("d/f")]);
    file.write_all(b"more").unwrap();
    w.expect([path("d/f", true, false)]);
    file.set_len(1).unwrap();
    w.expect([path("d/f", true, false)]);
    drop(file);
    w.expect([written("d/f")]);
    fs::hard_link(w.at("d/f"), w.at("twin")).unwrap();
    // That the inode's link count changed is not told of the old name.
    w.expect([name("twin")]);
    std::os::unix::fs::symlink("d", w.at("link")).unwrap();
    w.expect([name("link")]);
    w.write("new");
    w.rename("new", "d/f");
    w.expect([name("d/f"), written("new")]);
    fs::remove_file(w.at("d/f")).unwrap();
    w.expect([name("d/f")]);
    fs::set_permissions(w.at("d"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    w.expect([name("d")]);
    fs::set_permissions(w.at(""), std::os::unix::fs::PermissionsExt::from_mode(0o750)).unwrap();
    w.expect([Fact::Path { path: TreePath::ROOT, content: false, closed: false }]);
    assert_eq!(w.watches(), 2);
}

/// By path, no one has the file open: nothing but MODIFY tells of it.
#[test]
fn tells_of_truncate_by_path() {
    let mut w = Watched::new(|root| fs::write(root.join("f"), "content").unwrap());
    let done = Command::new("perl").args(["-e", "truncate($ARGV[0], 3) or die"]).arg(w.at("f")).status();
    match done {
        Ok(status) if status.success() => {}
        other => panic!("this test needs perl: {other:?}"),
    }
    assert_eq!(fs::read(w.at("f")).unwrap(), b"con");
    w.expect([path("f", true, false)]);
}

#[test]
fn any_name_will_do() {
    let mut w = Watched::new(|_| {});
    let long = [b'n'; 255];
    for dir in [&b"new\nline"[..], b"\xff\xfe not utf-8", &long, b" ", b"#1"] {
        w.mkdirs(dir);
        let facts = w.facts();
        assert!(facts.contains(&Fact::Subtree { dir: p(dir) }), "{facts:?}");
        let file = [dir, b"/", dir].concat();
        w.write(&file);
        w.expect([written(&file)]);
    }
    assert_eq!(w.watches(), 6);
}

#[test]
fn a_deep_path_made_at_once_is_seen_to_its_end() {
    let mut w = Watched::new(|_| {});
    for round in 0..100 {
        let deep = format!("{round}/b/c/d/e/f");
        w.mkdirs(&deep);
        w.write(format!("{deep}/file"));
        let facts = w.facts();
        assert!(cover(&facts, &p(format!("{deep}/file"))), "{facts:?}");
        w.write(format!("{deep}/file"));
        w.expect([written(format!("{deep}/file"))]);
    }
    assert_eq!(w.watches(), 601);
}

#[test]
fn a_renamed_directory_is_known_by_its_new_name() {
    let mut w = Watched::new(|root| fs::create_dir_all(root.join("a/x/y")).unwrap());
    w.rename("a", "b");
    w.expect([subtree("b"), name("a"), name("b")]);
    w.write("b/x/y/f");
    w.expect([written("b/x/y/f")]);
    w.mkdirs("c");
    w.rename("b/x", "c/z");
    w.facts();
    w.write("c/z/y/f");
    w.expect([written("c/z/y/f")]);
    // There and back at once, and over an empty directory.
    w.rename("c/z", "c/t");
    w.rename("c/t", "c/z");
    w.mkdirs("empty");
    w.rename("c/z", "empty");
    w.check_complete();
    assert_eq!(w.watches(), 5);
}

#[test]
fn a_directory_that_left_is_silent() {
    let mut w = Watched::new(|root| fs::create_dir_all(root.join("a/x/y")).unwrap());
    let out = w.outside.path().join("a");
    fs::rename(w.at("a"), &out).unwrap();
    // Written before the event was read, perhaps: not believed.
    fs::write(out.join("x/y/early"), "").unwrap();
    let facts = w.facts();
    assert!(facts.iter().all(|fact| !cover(std::slice::from_ref(fact), &p("a/x/y/early"))), "{facts:?}");
    assert_eq!((facts, w.watches()), (vec![name("a")], 1));
    fs::write(out.join("x/y/late"), "").unwrap();
    fs::create_dir(out.join("late")).unwrap();
    w.expect([]);
    // And comes back with all that is new in it.
    fs::rename(out, w.at("back")).unwrap();
    w.expect([subtree("back"), name("back")]);
    w.check_complete();
    assert_eq!(w.watches(), 5);
}

#[test]
fn a_directory_that_moves_into_pleach_is_silent() {
    let mut w = Watched::new(|root| fs::create_dir_all(root.join("a/x")).unwrap());
    w.rename("a", ".pleach/vaulted");
    w.write(".pleach/vaulted/x/f");
    w.expect([name("a")]);
    assert_eq!(w.watches(), 1);
}

#[test]
fn removed_trees_leave_no_watches() {
    let mut w = Watched::new(|_| {});
    for round in 0..20 {
        for dir in 0..10 {
            w.mkdirs(format!("t/{dir}/{round}/z"));
            w.write(format!("t/{dir}/{round}/z/f"));
        }
        fs::remove_dir_all(w.at("t")).unwrap();
    }
    assert!(cover(&w.facts(), &p("t")));
    w.check_complete();
    assert_eq!(w.watches(), 1);
}

#[test]
fn exchange_of_directories_and_with_a_file() {
    let mut w = Watched::new(|root| {
        fs::create_dir_all(root.join("a/in-a")).unwrap();
        fs::create_dir_all(root.join("b/in-b")).unwrap();
        fs::write(root.join("f"), "").unwrap();
    });
    let exchange =
        |w: &Watched, one, two| renameat_with(CWD, w.at(one), CWD, w.at(two), RenameFlags::EXCHANGE).unwrap();
    exchange(&w, "a", "b");
    w.expect([subtree("a"), subtree("b"), name("a"), name("b")]);
    w.check_complete();
    assert_eq!(w.watches(), 5);
    exchange(&w, "a", "f");
    w.expect([subtree("f"), name("a"), name("f")]);
    w.check_complete();
    assert_eq!(w.watches(), 5);
}

#[test]
fn ignored_directories_are_not_watched() {
    let rules = Arc::new(RwLock::new("cache"));
    let asked = rules.clone();
    let ignored = move |path: &TreePath, is_dir: bool| {
        let rule = *asked.read().unwrap();
        is_dir && path.components().any(|name| name == rule.as_bytes())
    };
    let mut w = Watched::ignoring(|root| fs::create_dir_all(root.join("a/cache/deep")).unwrap(), Arc::new(ignored));
    assert_eq!(w.watches(), 2);
    w.write("a/cache/deep/f");
    w.mkdirs("cache/more");
    w.expect([name("cache")]);
    w.rename("cache", "kept");
    w.expect([subtree("kept"), name("cache"), name("kept")]);
    assert_eq!(w.watches(), 4);
    w.write("kept/more/f");
    w.expect([written("kept/more/f")]);
    w.rename("kept", "cache");
    w.write("cache/more/f");
    w.expect([name("cache"), name("kept")]);
    assert_eq!(w.watches(), 2);

    *rules.write().unwrap() = "a";
    w.watcher.refresh();
    poll_until(&mut w.watcher, |fact| fact == subtree("cache"));
    w.expect([]);
    assert_eq!(w.watches(), 3);
}

/// What is ignored can depend on the path, so it can change beneath a directory that moves.
#[test]
fn rules_with_a_slash_are_asked_again_after_a_rename() {
    let ignored = |path: &TreePath, _: bool| path.as_bytes() == b"a/cache" || path.is_beneath(&p("a/cache"));
    let mut w = Watched::ignoring(|root| fs::create_dir_all(root.join("a/cache/x")).unwrap(), Arc::new(ignored));
    assert_eq!(w.watches(), 2);
    w.rename("a", "b");
    w.facts();
    assert_eq!(w.watches(), 4);
    w.write("b/cache/x/f");
    w.expect([written("b/cache/x/f")]);
    w.rename("b", "a");
    w.write("a/cache/x/f");
    w.expect([subtree("a"), name("a"), name("b")]);
    assert_eq!(w.watches(), 2);
}

#[test]
fn a_directory_full_of_changes_is_one_fact() {
    let mut w = Watched::new(|root| fs::create_dir(root.join("d")).unwrap());
    for n in 0..6_000 {
        File::create(w.at(format!("d/{n}"))).unwrap();
    }
    // Nothing was taken until now, but a few names may come behind that.
    let facts = w.facts();
    assert!(facts.contains(&Fact::Dir { dir: p("d") }) && facts.len() < 2_000, "{}", facts.len());
}

/// The reader is held up while it asks whether a directory is ignored.
#[test]
fn after_an_overflow_everything_works_again() {
    let (entered, enter) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let gate = Mutex::new((entered, left));
    let ignored = move |path: &TreePath, _: bool| {
        if path.as_bytes() == b"gate" {
            let gate = gate.lock().unwrap();
            // Both fail once the test is over.
            let _ = (gate.0.send(()), gate.1.recv());
        }
        false
    };
    let mut w = Watched::ignoring(|root| fs::create_dir_all(root.join("old/x")).unwrap(), Arc::new(ignored));
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    w.mkdirs("gate");
    enter.recv().unwrap();
    for _ in 0..limit {
        w.write("burst");
        fs::remove_file(w.at("burst")).unwrap();
    }
    // All of this is lost.
    w.rename("old", "moved");
    w.mkdirs("new/deep");
    fs::rename(w.at("moved/x"), w.outside.path().join("x")).unwrap();
    File::create(w.at(".pleach/barrier/lost")).unwrap();
    leave.send(()).unwrap();
    // The walk after the overflow asks for the gate again.
    enter.recv().unwrap();
    leave.send(()).unwrap();
    let (mut lost, mut barrier) = (false, false);
    poll_until(&mut w.watcher, |fact| {
        lost |= fact == Fact::Lost;
        barrier |= fact == Fact::Barrier { name: b"lost".to_vec() };
        lost && barrier
    });
    assert_eq!(w.watcher.stats().overflows, 1);
    drop((leave, enter));
    w.check_complete();
    assert_eq!(w.watches(), 5);
}

#[test]
fn deeper_than_one_path_can_say() {
    let name = [b'd'; 200];
    let depth = 60;
    let deep = |root: &Path, from: usize, to: usize| {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let mut at = open(root, flags, Mode::empty()).unwrap();
        for level in 0..to {
            if level >= from {
                mkdirat(&at, &name[..], Mode::RWXU).unwrap();
            }
            at = openat(&at, &name[..], flags, Mode::empty()).unwrap();
        }
        at
    };
    let mut w = Watched::new(|root| drop(deep(root, 0, depth / 2)));
    assert_eq!(w.watches(), depth / 2 + 1);
    let dir = deep(w.dir.path(), depth / 2, depth);
    let facts = w.facts();
    let at = p(vec![&name[..]; depth].join(&b'/'));
    assert!(cover(&facts, &at), "{facts:?}");
    assert_eq!(w.watches(), depth + 1);
    drop(openat(dir, c"f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap());
    let file = at.join(b"f").unwrap();
    w.expect([Fact::Path { path: file, content: true, closed: true }]);
}

#[test]
fn a_root_that_moved_or_went_ends_it() {
    let gone = |mut w: Watched| {
        poll_until(&mut w.watcher, |fact| fact == Fact::RootGone);
        assert!(matches!(w.watcher.poll(Duration::ZERO), Err(WatchError::Ended)));
    };
    let w = Watched::new(|_| {});
    fs::rename(w.dir.path(), w.outside.path().join("moved")).unwrap();
    gone(w);
    let w = Watched::new(|_| {});
    fs::remove_dir_all(w.dir.path()).unwrap();
    gone(w);
    // Another directory under the same path, seen when something is looked at.
    let w = Watched::new(|root| fs::create_dir(root.join("sub")).unwrap());
    fs::rename(w.dir.path().join("sub"), w.outside.path().join("sub")).unwrap();
    fs::rename(w.dir.path(), w.outside.path().join("moved")).unwrap();
    fs::create_dir(w.dir.path()).unwrap();
    gone(w);
    assert!(matches!(
        InotifyWatcher::start(Path::new("/nowhere/at/all"), Arc::new(|_, _| false)),
        Err(WatchError::Root(_))
    ));
}

/// A mount that is gone with its value.
struct Mounted(PathBuf);

impl Mounted {
    /// None without the right to mount.
    fn tmpfs(at: PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at).output().unwrap();
        mounted.status.success().then_some(Self(at))
    }

    fn unmount(&self) {
        let done = Command::new("umount").arg(&self.0).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).output());
    }
}

#[test]
fn mounts_in_the_tree_are_not_entered() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut mount = None;
    let mut w = Watched::new(|root| {
        mount = Mounted::tmpfs(root.join("a/mnt"));
        fs::create_dir(root.join("a/mnt/below")).unwrap();
    });
    let Some(mount) = mount else { return };
    assert_eq!(w.watches(), 2);
    w.mkdirs("a/mnt/more");
    w.write("a/mnt/below/f");
    w.expect([]);
    w.rename("a", "b");
    w.expect([subtree("b"), name("a"), name("b")]);
    assert_eq!(w.watches(), 2);
    // A watch does not hold the mount, and no event tells that it went: the caller sees to that.
    Mounted(w.at("b/mnt")).unmount();
    w.watcher.refresh();
    poll_until(&mut w.watcher, |fact| fact == subtree("b/mnt"));
    assert_eq!(w.watches(), 3);
    drop(mount);
}

#[test]
fn an_idle_root_can_be_unmounted() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(mount) = Mounted::tmpfs(dir.path().join("m")) else { return };
    fs::create_dir_all(mount.0.join("a/b")).unwrap();
    let mut watcher = InotifyWatcher::start(&mount.0, Arc::new(|_, _| false)).unwrap();
    mount.unmount();
    poll_until(&mut watcher, |fact| fact == Fact::RootGone);
}

/// Says that this process has the limit of watches that the test is about.
const LIMITED: &str = "PLEACH_TEST_LIMITED_WATCHES";

/// Runs itself in a user namespace with a limit of its own.
#[test]
fn a_watch_limit_is_worked_around() {
    if std::env::var_os(LIMITED).is_some() {
        return limited_watches();
    }
    let run = Command::new("unshare")
        .args(["-Ur", "sh", "-c"])
        .arg("echo 8 > /proc/sys/user/max_inotify_watches && exec \"$0\" --exact --nocapture \"$1\"")
        .arg(std::env::current_exe().unwrap())
        .arg("watch::inotify::tests::a_watch_limit_is_worked_around")
        .env(LIMITED, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    if !run.status.success() && !said.contains("running 1 test") {
        eprintln!("no user namespaces here: {run:?}");
        return;
    }
    assert!(run.status.success() && said.contains("1 passed"), "{run:?}");
}

fn limited_watches() {
    let mut w = Watched::new(|root| {
        for dir in ["a", "b", "c", "d", "e"] {
            fs::create_dir_all(root.join(dir).join("deep")).unwrap();
        }
    });
    // The markers' directory found no watch either.
    assert_eq!(w.watcher.watches(), 8);
    let polled = w.watcher.polled().clone();
    assert!(!polled.is_empty() && polled.len() < 5, "{polled:?}");
    let top = polled.first().unwrap().clone();
    w.mkdirs("new/deep");
    poll_until(&mut w.watcher, |fact| fact == subtree("new"));
    assert!(w.watcher.polled().contains(&p("new")) && w.watcher.polled().is_superset(&polled));
    w.rename("new", "newer");
    poll_until(&mut w.watcher, |fact| fact == subtree("newer"));
    assert!(w.watcher.polled().contains(&p("newer")) && !w.watcher.polled().contains(&p("new")));
    fs::remove_dir_all(w.at("newer")).unwrap();
    // What is watched makes room for the rest.
    for dir in ["a", "b", "c", "d", "e"].map(p).iter().filter(|dir| **dir != top && dir.parents().next().is_none()) {
        fs::remove_dir_all(w.at(dir.as_bytes())).unwrap();
    }
    poll_until(&mut w.watcher, |fact| matches!(fact, Fact::Path { .. }));
    for _ in 0..600 {
        w.watcher.refresh();
        w.watcher.poll(Duration::from_millis(20)).unwrap();
        if w.watcher.polled().is_empty() {
            break;
        }
    }
    assert!(w.watcher.polled().is_empty(), "{:?}", w.watcher.polled());
    w.check_complete();
}

/// Threads rename, make and remove directories at random; then every directory that is left must
/// be watched, and under its own path.
#[test]
fn the_map_is_true_after_any_storm() {
    let seeds = std::env::var("STORMS").map_or(6, |n| n.parse().unwrap());
    for seed in 0..seeds {
        let mut w = Watched::new(|_| {});
        std::thread::scope(|scope| {
            for thread in 0..3_u64 {
                let root = w.dir.path();
                scope.spawn(move || storm(root, seed * 3 + thread + 1));
            }
            // The watcher is read meanwhile, or not, by turns.
            if seed % 2 == 0 {
                w.watcher.poll(Duration::from_millis(1)).unwrap();
            }
        });
        println!("seed {seed}, {:?}", w.watcher.stats());
        w.check_complete();
    }
}

fn storm(root: &Path, seed: u64) {
    let mut random = seed;
    let mut next = |below: u64| {
        // Knuth's MMIX constants.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    for _ in 0..1_500 {
        let mut path = |deep: u64| {
            let depth = 1 + next(deep);
            (0..depth).fold(root.to_owned(), |dir, _| dir.join(["a", "b", "c"][usize::try_from(next(3)).unwrap()]))
        };
        let (one, two) = (path(4), path(4));
        // Most of these fail, for the one is not there or the other is.
        match next(8) {
            0..=2 => drop(fs::create_dir_all(one)),
            3..=5 => drop(fs::rename(one, two)),
            6 => drop(renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE).is_ok()),
            _ => drop(fs::remove_dir_all(two)),
        }
    }
}
