//! An rsync that outlives an agent that was killed would go on pushing what was: the next start ends it.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// A running child, noted in a file for as long as this lives.
#[derive(Debug)]
pub(super) struct Noted(PathBuf);

impl Noted {
    pub(super) fn new(file: &Path, pid: Option<u32>) -> Self {
        if let Some(pid) = pid
            && let Some(started) = started(pid)
            && let Err(error) = fs::write(file, format!("{pid} {started}\n"))
        {
            tracing::warn!(%error, file = %file.display(), "a running rsync cannot be noted");
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

/// Ends the child that a file notes, where it still runs.
pub(super) fn end_noted(file: &Path) {
    let Ok(text) = fs::read_to_string(file) else { return };
    let mut words = text.split_whitespace();
    let pid = words.next().and_then(|word| word.parse::<u32>().ok());
    if let (Some(pid), Some(then)) = (pid, words.next())
        && started(pid).as_deref() == Some(then)
        && is_rsync(pid)
        && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
    {
        tracing::info!(pid = pid.as_raw_nonzero().get(), "ending the rsync of an earlier life");
        // One that ended meanwhile needs no signal.
        kill_process(pid, Signal::KILL).ok();
    }
    fs::remove_file(file).ok();
}

/// When a process started, in ticks since boot. Source: proc(5), field 22 of `stat`.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.split_whitespace().nth(19).map(str::to_owned)
}

fn is_rsync(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "rsync")
}
