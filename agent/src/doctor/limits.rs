//! What the kernel grants: watches, instances, queued events, open files.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde_json::Value;

use super::{Check, number};
use crate::config::Config;

const INOTIFY: &str = "/proc/sys/fs/inotify/";
/// Where the kernel's defaults are below this, a burst is lost and looked for: 16,384 are full in 32 ms (LINUX.md).
const QUEUED_EVENTS: u64 = 16_384;
/// Open files that an agent may need: connections, directories and files in work.
const OPEN_FILES: u64 = 1_024;
/// Watches that are asked for at least, where there are too few.
const WATCHES: u64 = 1_048_576;

pub(super) fn look(config: &Config, status: Option<&Value>) -> Vec<Check> {
    let mut checks = vec![watches(config, status)];
    let trees = config.trees.len() as u64;
    if let Some(instances) = number(&format!("{INOTIFY}max_user_instances")).filter(|n| *n < trees + 8) {
        let said = format!("{instances} instances a user, for {trees} trees and all other programs of this user");
        checks.push(Check::finding("inotify", said, sysctl("max_user_instances", 1_024)));
    }
    let overflows: u64 = trees_of(status).map(|tree| tree["overflows"].as_u64().unwrap_or(0)).sum();
    match number(&format!("{INOTIFY}max_queued_events")) {
        Some(queued) if queued < QUEUED_EVENTS || overflows > 0 => {
            let said = format!(
                "the queue holds {queued} events and was full {overflows} times: then whole trees are looked at"
            );
            checks.push(Check::finding(
                "inotify",
                said,
                sysctl("max_queued_events", (queued * 4).max(QUEUED_EVENTS * 4)),
            ));
        }
        _ => {}
    }
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|n| *n < OPEN_FILES) {
        let said = format!("this shell may open {files} files");
        checks.push(Check::finding(
            "open files",
            said,
            format!("ulimit -n {OPEN_FILES}   (for the service: LimitNOFILE=)"),
        ));
    }
    checks
}

fn trees_of(status: Option<&Value>) -> impl Iterator<Item = &Value> {
    status.and_then(|status| status["trees"].as_array()).into_iter().flatten()
}

fn sysctl(name: &str, value: u64) -> String {
    format!("echo fs.inotify.{name}={value} > /etc/sysctl.d/90-pleach-{name}.conf && sysctl --system")
}

fn watches(config: &Config, status: Option<&Value>) -> Check {
    let limit = number(&format!("{INOTIFY}max_user_watches")).unwrap_or(0);
    let polled: u64 = trees_of(status).map(|tree| tree["polled_dirs"].as_u64().unwrap_or(0)).sum();
    let watched: u64 = trees_of(status).map(|tree| tree["watches"].as_u64().unwrap_or(0)).sum();
    let more =
        |needed: u64| format!("{} && pleach rescan", sysctl("max_user_watches", needed.saturating_mul(2).max(WATCHES)));
    if polled > 0 {
        let said = format!("{polled} directories are polled: only {watched} could be watched (limit {limit})");
        return Check::finding("inotify", said, more(watched + polled));
    }
    if status.is_some() {
        return Check::good("inotify", format!("{watched} directories are watched, the limit is {limit}"));
    }
    let mut dirs = 0;
    for tree in &config.trees {
        dirs += count(&tree.path, limit.saturating_sub(dirs).saturating_add(1));
    }
    if dirs > limit {
        return Check::finding(
            "inotify",
            format!("there are more than {limit} directories to watch, and that is the limit"),
            more(dirs),
        );
    }
    Check::good("inotify", format!("{dirs} directories to watch, the limit is {limit}"))
}

/// Counts directories within a mount, up to `most`.
fn count(top: &Path, most: u64) -> u64 {
    let Ok(device) = std::fs::metadata(top).map(|found| found.dev()) else { return 0 };
    let mut todo = VecDeque::from([top.to_owned()]);
    let mut dirs = 0;
    while let Some(dir) = todo.pop_front().filter(|_| dirs < most) {
        dirs += 1;
        let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        let beneath = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        todo.extend(
            beneath.filter(|entry| entry.metadata().is_ok_and(|found| found.dev() == device)).map(|entry| entry.path()),
        );
    }
    dirs
}
