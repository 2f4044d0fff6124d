//! `pleach sync` as users run it: the real binary on real directories.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What a user sees of one file: mode, owner, time, content or target.
type Seen = (u32, u32, u32, i64, i64, Vec<u8>);

struct Pair {
    dir: tempfile::TempDir,
}

impl Pair {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a", "b", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn a(&self) -> PathBuf {
        self.dir.path().join("a")
    }

    fn b(&self) -> PathBuf {
        self.dir.path().join("b")
    }

    fn command(&self, once: bool) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pleach"));
        command.arg("sync").arg(self.a()).arg(self.b()).env("XDG_STATE_HOME", self.dir.path().join("state"));
        if once {
            command.arg("--once");
        }
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn once(&self) {
        let output = self.command(true).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let differing = differences(&self.a(), &self.b());
        assert!(differing.is_empty(), "{} differ: {:?}", differing.len(), &differing[..differing.len().min(5)]);
    }

    fn live(&self) -> Live {
        Live(self.command(false).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Waits until both trees are equal and hold what `ready` asks for.
    fn until_same(&self, limit: Duration, ready: impl Fn() -> bool) {
        let end = Instant::now() + limit;
        loop {
            let differing = differences(&self.a(), &self.b());
            if differing.is_empty() && ready() {
                return;
            }
            assert!(Instant::now() < end, "not in step: {:?}", &differing[..differing.len().min(8)]);
            std::thread::yield_now();
        }
    }

    fn shell(&self, at: &Path, script: &str) {
        let status = Command::new("bash").args(["-ec", script]).current_dir(at).stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{script}");
    }
}

struct Live(Child);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn snapshot(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let (mut seen, mut todo) = (BTreeMap::new(), vec![root.to_path_buf()]);
    while let Some(dir) = todo.pop() {
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path == root.join(".pleach") {
                continue;
            }
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let content = if meta.is_dir() {
                todo.push(path.clone());
                Vec::new()
            } else if meta.is_symlink() {
                fs::read_link(&path).map(|t| t.as_os_str().as_bytes().to_vec()).unwrap_or_default()
            } else {
                fs::read(&path).unwrap_or_default()
            };
            let key = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            seen.insert(key, (meta.mode(), meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec(), content));
        }
    }
    seen
}

fn differences(a: &Path, b: &Path) -> Vec<String> {
    let (left, right) = (snapshot(a), snapshot(b));
    let mut out: Vec<String> = left
        .keys()
        .chain(right.keys())
        .filter(|n| left.get(*n) != right.get(*n))
        .map(|n| {
            let brief = |s: Option<&Seen>| s.map(|s| (format!("{:o}", s.0), s.1, s.3, s.4, s.5.len()));
            format!("{} {:?} {:?}", String::from_utf8_lossy(n), brief(left.get(n)), brief(right.get(n)))
        })
        .collect();
    out.dedup();
    out
}

fn entries_in(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn once_converges_and_resumes() {
    let pair = Pair::new();
    pair.shell(
        &pair.a(),
        "mkdir -p d/e; echo one > d/e/f; ln -s ../x d/link; touch -d 1999-01-02T03:04:05.123456789 d; : > empty",
    );
    pair.shell(&pair.b(), "printf b > $'new\\nline'; mkdir -m 2750 deep; chmod 600 $'new\\nline'");
    pair.once();
    pair.shell(&pair.a(), "rm -r d; echo two > $'new\\nline'");
    pair.shell(&pair.b(), "echo three > other; mv empty full; echo x >> full");
    pair.once();
    assert!(!pair.b().join("d").exists());
    assert_eq!(fs::read(pair.b().join("new\nline")).unwrap(), b"two\n");
    pair.once();
}

#[test]
fn live_changes_travel_both_ways() {
    let pair = Pair::new();
    let _live = pair.live();
    let script = "for i in $(seq 200); do mkdir -p N$((i%7))/e; echo $i > N$((i%7))/e/f$i; done; echo end > N-done";
    pair.shell(&pair.a(), &script.replace('N', "d"));
    pair.shell(&pair.b(), &script.replace('N', "g"));
    let both = |name: &str| pair.a().join(name).exists() && pair.b().join(name).exists();
    pair.until_same(Duration::from_secs(60), || both("d-done") && both("g-done"));
    pair.shell(&pair.a(), "mv d1 moved; rm -rf d2; chmod 700 d3; touch -d 2001-01-01 d4/e/f4; echo again > a-done");
    pair.shell(&pair.b(), "rm -rf g1; mv g2/e/f2 g3/f2-moved; ln -s nowhere link; echo again > b-done");
    pair.until_same(Duration::from_secs(60), || both("a-done") && both("b-done"));
    assert!(!pair.b().join("d2").exists() && !pair.a().join("g1").exists());
    assert!(pair.b().join("moved/e/f1").exists());
}

/// Kill -9 ten times at uneven moments during a copy; PLEACH_KILL_FILES sets how many files.
#[test]
fn kill_during_a_copy_loses_nothing() {
    let files: usize = std::env::var("PLEACH_KILL_FILES").ok().and_then(|n| n.parse().ok()).unwrap_or(2_000);
    let pair = Pair::new();
    for n in 0..files {
        let dir = pair.a().join(format!("d{}/e{}", n % 41, n % 3));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("f{n}")), format!("{n} ").repeat(n % 900)).unwrap();
    }
    let before = snapshot(&pair.a());
    for round in 0..10 {
        let live = pair.live();
        let there = snapshot(&pair.b()).len();
        let goal = (there + 1 + files / 14 * (round % 3) + round * 7).min(before.len());
        let end = Instant::now() + Duration::from_secs(20);
        while snapshot(&pair.b()).len() < goal && Instant::now() < end {
            std::thread::yield_now();
        }
        drop(live);
    }
    pair.once();
    let after = snapshot(&pair.a());
    let changed: Vec<_> = before.iter().filter(|(path, seen)| after.get(*path) != Some(*seen)).take(3).collect();
    assert!(after.len() == before.len() && changed.is_empty(), "the source is as it was: {changed:?}");
    for root in [pair.a(), pair.b()] {
        assert_eq!(entries_in(&root.join(".pleach/staging")), 0, "no temporary left");
        assert_eq!(entries_in(&root.join(".pleach/vault")), 0, "nothing was displaced");
    }
}

#[test]
fn first_meeting_is_a_union() {
    let pair = Pair::new();
    pair.shell(&pair.a(), "echo old > both; touch -d 2020-01-01 both; echo same > same; echo a > only-a");
    pair.shell(&pair.b(), "echo young > both; touch -d 2021-01-01 both; echo same > same; echo b > only-b");
    let inode = |root: PathBuf| fs::metadata(root.join("same")).unwrap().ino();
    let inodes = (inode(pair.a()), inode(pair.b()));
    pair.once();
    assert_eq!(fs::read(pair.a().join("both")).unwrap(), b"young\n");
    assert_eq!((inode(pair.a()), inode(pair.b())), inodes, "equal files move nothing");
    let vault: Vec<_> = fs::read_dir(pair.a().join(".pleach/vault")).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(vault.len(), 1);
    assert_eq!(fs::read(&vault[0]).unwrap(), b"old\n");
}

#[test]
fn refuses_what_makes_no_sense() {
    let pair = Pair::new();
    let run = |a: &Path, b: &Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_pleach"))
            .arg("sync")
            .args([a, b])
            .env("XDG_STATE_HOME", pair.dir.path().join("state"))
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = run(&pair.a(), &pair.a().join("missing"));
    assert_eq!(code, Some(1));
    assert!(said.starts_with("pleach: sync ") && said.contains("No such file"), "{said}");
    assert_eq!(run(&pair.a(), &pair.a()).0, Some(1));
    assert_eq!(run(pair.dir.path(), &pair.a()).0, Some(1));
}

#[test]
fn a_replaced_root_stops_and_deletes_nothing() {
    let pair = Pair::new();
    pair.shell(&pair.a(), "echo precious > f");
    pair.once();
    fs::rename(pair.a(), pair.dir.path().join("elsewhere")).unwrap();
    fs::create_dir(pair.a()).unwrap();
    let output = pair.command(true).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains(".pleach/root"));
    assert_eq!(fs::read(pair.b().join("f")).unwrap(), b"precious\n");
}
