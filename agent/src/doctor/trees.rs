//! The trees: there, ours to write, on a file system that tells of changes, with nothing mounted within.

use std::path::{Path, PathBuf};

use rustix::fs::{Access, access, statfs};
use serde_json::Value;

use super::{Check, named};
use crate::config::TreeConfig;

/// File systems that other machines change without an event here, by their numbers in statfs(2).
const REMOTE: [(u64, &str); 7] = [
    (0x6969, "NFS"),
    (0xFE53_4D42, "SMB"),
    (0xFF53_4D42, "CIFS"),
    (0x6573_5546, "FUSE"),
    (0x0102_1997, "9P"),
    (0x00C3_6400, "Ceph"),
    (0x0BD0_0BD0, "Lustre"),
];

pub(super) fn look(tree: &TreeConfig, status: Option<&Value>) -> Vec<Check> {
    let subject = format!("tree {}", tree.name);
    let shown = tree.path.display();
    let mut checks = Vec::new();
    match std::fs::metadata(&tree.path) {
        Err(error) => {
            let mend = format!("mount what belongs there, or: mkdir -p {shown}");
            return vec![Check::finding(subject, format!("{shown}: {error}"), mend)];
        }
        Ok(found) if !found.is_dir() => {
            return vec![Check::finding(
                subject,
                format!("{shown} is no directory"),
                "name another 'path' in the config",
            )];
        }
        Ok(_) => {}
    }
    if access(&tree.path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let user = rustix::process::geteuid().as_raw();
        checks.push(Check::finding(
            &subject,
            format!("user {user} may not write in {shown}"),
            format!("setfacl -R -m u:{user}:rwX {shown}   (or run the agent as its owner)"),
        ));
    }
    let kind = statfs(&tree.path).ok().map(|found| u64::try_from(found.f_type).unwrap_or_default() & 0xFFFF_FFFF);
    if let Some((_, name)) = REMOTE.iter().find(|(number, _)| Some(*number) == kind) {
        checks.push(Check::finding(
            &subject,
            format!("{shown} is on {name}: what other machines change there gives no event here"),
            "run the agent on the machine that has the disk, or set a short 'rescan' (as \"10m\")",
        ));
    }
    for mount in mounts(&tree.path) {
        checks.push(Check::good(
            &subject,
            format!("it ends at the mount point {}: what is mounted is not synced", mount.display()),
        ));
    }
    let row = named(status, "trees", &tree.name);
    if let Some(error) = row.and_then(|row| row["error"].as_str()) {
        checks.push(Check::finding(
            &subject,
            error,
            format!("see: pleach status; a root that was replaced: pleach approve --tree {}", tree.name),
        ));
    }
    for (count, what, command) in
        [("problems", "paths have problems", "problems"), ("conflicts", "conflicts wait", "conflicts")]
    {
        if let Some(n) = row.and_then(|row| row[count].as_u64()).filter(|n| *n > 0) {
            checks.push(Check::finding(
                &subject,
                format!("{n} {what}"),
                format!("pleach {command} --tree {}", tree.name),
            ));
        }
    }
    if checks.is_empty() {
        checks.push(Check::good(subject, format!("{shown} is there and can be written")));
    }
    checks
}

/// What is mounted beneath a directory.
fn mounts(top: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let top = std::fs::canonicalize(top).unwrap_or_else(|_| top.to_owned());
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| PathBuf::from(unescaped(field)));
    points.filter(|point| point.starts_with(&top) && *point != top).collect()
}

/// The kernel writes space, tab, line feed and backslash as octal. Source: proc_pid_mountinfo(5).
fn unescaped(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (from, to)| text.replace(from, to))
}
