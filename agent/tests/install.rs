//! `scripts/install` in a throw-away root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use pleach_agent::config;

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts")
}

fn install(root: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(scripts().join("install"));
    command.arg("--root").arg(root).args(args).env("PLEACH", env!("CARGO_BIN_EXE_pleach"));
    command.output().unwrap()
}

fn files(root: &Path) -> BTreeSet<String> {
    let (mut todo, mut found) = (vec![root.to_owned()], BTreeSet::new());
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn everything_is_put_there_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("etc/pleach")).unwrap();
    fs::write(dir.path().join("etc/pleach/pleach.toml"), "[node]\n").unwrap();
    fs::create_dir_all(dir.path().join("usr/share/man/man1")).unwrap();
    fs::write(dir.path().join("usr/share/man/man1/other.1"), "").unwrap();
    let before = files(dir.path());
    let output = install(dir.path(), &["--prefix", "/usr"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let there = files(dir.path());
    for file in [
        "usr/bin/pleach",
        "usr/lib/systemd/system/pleach.service",
        "usr/share/doc/pleach/examples/pleach.toml",
        "usr/share/man/man1/pleach.1",
        "usr/share/man/man1/pleach-wait.1",
        "usr/share/bash-completion/completions/pleach",
        "usr/share/zsh/vendor-completions/_pleach",
        "usr/share/fish/vendor_completions.d/pleach.fish",
    ] {
        assert!(there.contains(file), "no {file} in {there:#?}");
    }
    let unit = fs::read_to_string(dir.path().join("usr/lib/systemd/system/pleach.service")).unwrap();
    for line in
        ["Type=notify", "WatchdogSec=60", "ExecStart=/usr/bin/pleach agent", "ExecReload=/bin/kill -HUP $MAINPID"]
    {
        assert!(unit.lines().any(|l| l == line), "no {line} in\n{unit}");
    }
    let version = Command::new(dir.path().join("usr/bin/pleach")).arg("--version").output().unwrap();
    assert!(version.status.success());
    // A second time changes nothing.
    assert!(install(dir.path(), &["--prefix", "/usr"]).status.success());
    assert_eq!(files(dir.path()), there);
    let output = install(dir.path(), &["--prefix", "/usr", "--uninstall"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(dir.path()), before);
    assert_eq!(install(dir.path(), &["--prefix", "usr"]).status.code(), Some(2));
    assert_eq!(install(dir.path(), &["--nonsense"]).status.code(), Some(2));
}

/// The example names only what this version has, commented out or not.
#[test]
fn the_example_config_is_right() {
    let text = fs::read_to_string(scripts().join("pleach.toml")).unwrap();
    let says_more = |line: &str| {
        let key = line.split(' ').next().unwrap_or_default();
        line.starts_with("[[") || line.contains(" = ") && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
    };
    let whole: Vec<&str> =
        text.lines().map(|line| line.strip_prefix("# ").filter(|l| says_more(l)).unwrap_or(line)).collect();
    let config = config::parse(Path::new("pleach.toml"), &whole.join("\n")).unwrap();
    assert_eq!((config.trees.len(), config.peers.len()), (1, 2), "{whole:#?}");
    config::parse(Path::new("pleach.toml"), &text).unwrap();
}
