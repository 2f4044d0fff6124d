//! A child that outlives an agent that was killed would go on with what is done again: the next start ends it.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::machine::boot_id;

/// A running child, noted in a file for as long as this lives.
#[derive(Debug)]
pub(crate) struct Noted(PathBuf);

impl Noted {
    pub(crate) fn new(file: &Path, pid: Option<u32>) -> Self {
        if let Some(pid) = pid
            && let Some(started) = started(pid)
            && let Err(error) = fs::write(file, format!("{pid} {started} {}\n", boot()))
        {
            tracing::warn!(%error, file = %file.display(), "a running child cannot be noted");
        }
        Self(file.to_path_buf())
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        // One that is not there is noted nowhere.
        fs::remove_file(&self.0).ok();
    }
}

/// Ends the child that a file notes, with its process group, where it still runs.
pub(crate) fn end_noted(file: &Path) {
    let Ok(text) = fs::read_to_string(file) else { return };
    let words: Vec<&str> = text.split_whitespace().collect();
    if let [pid, then, in_boot] = words[..]
        && in_boot == boot()
        && let Ok(pid) = pid.parse::<u32>()
        && started(pid).as_deref() == Some(then)
        && let Some(group) = i32::try_from(pid).ok().and_then(Pid::from_raw)
    {
        tracing::info!(pid, "ending a child of an earlier life");
        // One that ended meanwhile needs no signal.
        kill_process_group(group, Signal::KILL).ok();
    }
    fs::remove_file(file).ok();
}

fn boot() -> String {
    String::from_utf8_lossy(&boot_id()).trim().to_owned()
}

/// When a process started, in ticks since boot. Source: proc(5), field 22 of `stat`.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19).map(str::to_owned)
}
