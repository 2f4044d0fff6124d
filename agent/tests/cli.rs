//! `pleach init`, `key` and `import` as users run them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn pleach(dir: &Path, args: &[&str]) -> Output {
    let config = dir.join("pleach.toml");
    Command::new(env!("CARGO_BIN_EXE_pleach"))
        .args(args)
        .arg("--config")
        .arg(config)
        .env("XDG_STATE_HOME", dir.join("xdg"))
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn config(dir: &Path, more: &str) {
    let text = format!("[node]\nname = \"n1\"\nstate = \"{}\"\n{more}", dir.join("state").display());
    std::fs::write(dir.join("pleach.toml"), text).unwrap();
}

#[test]
fn key_makes_one_key_and_prints_it() {
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "");
    let first = pleach(dir.path(), &["key"]);
    assert!(first.status.success(), "{}", said(&first));
    assert!(first.stdout.starts_with(b"ssh-ed25519 AAAA") && first.stdout.ends_with(b" n1\n"));
    assert_eq!(pleach(dir.path(), &["key"]).stdout, first.stdout);
    let mode = std::fs::metadata(dir.path().join("state/host_key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let replaced = pleach(dir.path(), &["key", "--new"]);
    assert!(replaced.status.success() && replaced.stdout != first.stdout);
}

#[test]
fn a_config_with_errors_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "[[tree]]\nname = \"t\"\npath = \"/t\"\nnonsense = 1\nhold = \"off\"\n");
    let output = pleach(dir.path(), &["key"]);
    assert_eq!(output.status.code(), Some(2));
    let said = said(&output);
    assert!(said.starts_with("pleach: config: ") && said.contains("line 7: unknown key 'nonsense'"), "{said}");
    assert!(said.contains("line 8: hold in [[tree]] is not in this version"), "{said}");
}

/// What init writes is tested in its module: here it would make the system's own host key as root.
#[test]
fn init_never_overwrites_a_config() {
    let dir = tempfile::tempdir().unwrap();
    config(dir.path(), "");
    let before = std::fs::read(dir.path().join("pleach.toml")).unwrap();
    let output = pleach(dir.path(), &["init", "--name", "web1", "--tree", "www=/srv/www"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("it is there already"), "{}", said(&output));
    assert_eq!(std::fs::read(dir.path().join("pleach.toml")).unwrap(), before);
    let output = pleach(dir.path(), &["init", "--name", "no name"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_pleach")).arg("bridge").output().unwrap();
    assert_eq!((output.status.code(), said(&output).as_str()), (Some(2), "pleach: bridge: not in this version\n"));
    let output = pleach(dir.path(), &["key"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("make one with: pleach init"), "{}", said(&output));
}

#[test]
fn import_prints_a_config_and_says_what_has_no_counterpart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rsyncd.conf");
    std::fs::write(&file, "uid = root\n[web1]\npath = /web1/wwwroot/\nread only = no\n").unwrap();
    let import = |file: &Path| pleach(dir.path(), &["import", "rsyncd", file.to_str().unwrap()]);
    let output = import(&file);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("path = \"/web1/wwwroot\""));
    assert!(said(&output).contains("pleach: import: /web1/wwwroot: uid = root: "), "{}", said(&output));
    std::fs::write(&file, "[web1]\npath = /web1\nfilter = merge /x\n").unwrap();
    let output = import(&file);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("nothing of it could be converted"), "{}", said(&output));
    assert_eq!(import(&dir.path().join("none")).status.code(), Some(1));
    assert_eq!(pleach(dir.path(), &["import", "cvsup", "x"]).status.code(), Some(2));
}

#[test]
fn completions_and_man_pages_name_the_commands() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let output = pleach(dir.path(), &["completions", shell]);
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("conflicts"), "{shell}");
    }
    let pages = dir.path().join("man/man1");
    let output = pleach(dir.path(), &["man", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let page = std::fs::read_to_string(pages.join("pleach-restore.1")).unwrap();
    assert!(page.contains("what it replaces goes to the vault"), "{page}");
    assert!(pages.join("pleach.1").exists());
}
