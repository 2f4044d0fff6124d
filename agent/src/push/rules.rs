//! Deletions by rules, for daemons that take no names of what is missing: rsync 3.4.3, and Debian's 3.2.7-1+deb12u5 and
//! deb12u6, end with "invalid file mode 00" (RsyncProject/rsync#910); 3.5.0 takes them.
//!
//! The source is a skeleton, the directories above the paths and nothing else, and `--delete` looks into these alone. What
//! no rule includes is excluded, and what is excluded is not deleted.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use pleach_protocol::path::TreePath;

use super::child::path_of;

/// Rules for each of the paths and the directories above it, and one against all else: what is excluded is not deleted.
pub(super) fn deletion_rules(paths: &[TreePath]) -> Vec<Vec<u8>> {
    let mut rules: BTreeSet<Vec<u8>> = paths.iter().map(|path| rule_of(path, b"")).collect();
    for dir in paths.iter().flat_map(TreePath::parents).filter(|dir| !dir.is_root()) {
        rules.insert(rule_of(&dir, b"/"));
    }
    rules.into_iter().chain([b"- *".to_vec()]).collect()
}

/// A rule for one name: a backslash stands for itself unless something in the name is a wildcard. Source: rsync(1), FILTER
/// RULES.
fn rule_of(path: &TreePath, end: &[u8]) -> Vec<u8> {
    let wild = path.as_bytes().iter().any(|b| b"*?[".contains(b));
    let mut rule = b"+ /".to_vec();
    for byte in path.as_bytes() {
        if wild && b"*?[\\".contains(byte) {
            rule.push(b'\\');
        }
        rule.push(*byte);
    }
    rule.extend_from_slice(end);
    rule
}

/// Makes the directories above the paths in `dir`, and nothing else: a source that lacks the paths, and no directory that
/// they are in.
pub(super) fn dirs_above(dir: &Path, paths: &[TreePath]) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => std::fs::create_dir_all(dir)?,
    }
    let above: BTreeSet<TreePath> = paths.iter().filter_map(TreePath::parent).collect();
    for path in above {
        std::fs::create_dir_all(dir.join(path_of(&path)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

    use std::fs;
    use std::net::{TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::time::Duration;

    use tokio::sync::mpsc;

    use super::*;
    use crate::bandwidth::BandwidthLimit;
    use crate::push::child::{Job, run};
    use crate::push::target::Target;
    use crate::push::{PushConfig, PushSetup};

    struct Daemon(Child);

    impl Drop for Daemon {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    /// A daemon with a module `m` over a directory.
    fn daemon(base: &Path, module: &Path) -> (Daemon, PushSetup) {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let config = base.join("rsyncd.conf");
        let path = module.display();
        let text = format!("use chroot = no\n[m]\npath = {path}\nread only = no\nuid = {uid}\ngid = {gid}\n");
        fs::write(&config, text).unwrap();
        let mut command = Command::new("rsync");
        command.args(["--daemon", "--no-detach", "--address=127.0.0.1", &format!("--port={port}")]);
        command.arg(format!("--config={}", config.display())).stdin(Stdio::null());
        let daemon = Daemon(command.spawn().unwrap());
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        let config = PushConfig {
            target: Target::parse(&format!("rsync://127.0.0.1:{port}/m")).unwrap(),
            password_file: None,
            full_check: None,
            mirror: false,
            timeout: Duration::from_secs(30),
            options: Vec::new(),
        };
        let setup = PushSetup {
            name: "backup".to_owned(),
            tree: "t".to_owned(),
            root: base.join("root"),
            rules: [0; 16],
            config,
            bandwidth: BandwidthLimit::default(),
            note: base.join("backup.rsync"),
            empty: base.join("empty"),
            fallback: None,
        };
        (daemon, setup)
    }

    /// Also where nothing on this machine needs it: a receiver that takes names takes rules.
    #[tokio::test]
    async fn only_what_is_named_goes() {
        let base = tempfile::tempdir().unwrap();
        let module = base.path().join("m");
        let write = |path: &str| {
            let file = module.join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, path).unwrap();
        };
        let named = ["d/e/f", "a*b", "back\\slash", "back\\*", "line\nfeed", "+ plus", "#hash", "[x]/y", "gone/dir/x"];
        let stay = ["d/e/other", "d/f", "f", "aXb", "back*", "x/y", "gone/dir/foreign", "d/e/f.d/in", "plus"];
        named.iter().chain(&stay).for_each(|path| write(path));
        fs::create_dir_all(module.join("empty")).unwrap();
        let (_daemon, setup) = daemon(base.path(), &module);
        let mut paths: Vec<TreePath> = named.iter().map(|path| TreePath::parse(path.as_bytes()).unwrap()).collect();
        // A directory with something in it stays.
        for more in ["gone/dir", "empty", "never"] {
            paths.push(TreePath::parse(more.as_bytes()).unwrap());
        }
        let above = base.path().join("dirs");
        dirs_above(&above, &paths).unwrap();
        let (items, mut told) = mpsc::channel(64);
        let drain = async { while told.recv().await.is_some() {} };
        let job = Job::DeleteByRules { max: paths.len() };
        let (ended, ()) = tokio::join!(run(&setup, job, &above, &paths, items), drain);
        assert_eq!(ended.unwrap().code, 0);
        for path in named {
            assert!(!module.join(path).exists(), "{path:?}");
        }
        for path in stay {
            assert!(module.join(path).exists(), "{path:?}");
        }
        assert!(!module.join("empty").exists());
    }
}
