//! `pleach doctor`: looks at what a node needs of its machine and its peers, and says for each finding the
//! command that mends it. It changes nothing, and works with a running agent or without one.

mod daemons;
mod limits;
mod peers;
mod trees;

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::commands;
use crate::config::Config;
use crate::failure::Failure;
use crate::keys;

/// One thing that was looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Check {
    /// What it is about: `tree www`, `peer web2`, `inotify`.
    subject: String,
    /// What was seen.
    said: String,
    /// How it is mended; none where nothing is wrong.
    mend: Option<String>,
}

impl Check {
    fn good(subject: impl Into<String>, said: impl Into<String>) -> Self {
        Self { subject: subject.into(), said: said.into(), mend: None }
    }

    fn finding(subject: impl Into<String>, said: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { subject: subject.into(), said: said.into(), mend: Some(mend.into()) }
    }

    fn row(&self) -> Value {
        json!({"subject": self.subject, "ok": self.mend.is_none(), "said": self.said, "mend": self.mend})
    }
}

/// Prints what was found.
///
/// # Errors
/// Errors in the config, or that there were findings (status 1).
pub fn run(file: Option<&Path>, json: bool) -> Result<(), Failure> {
    let config = crate::cli::load(file)?;
    let agent = commands::agent_status(&config.state);
    let checks = look(file, &config, &agent);
    let mut text = String::new();
    for check in &checks {
        if json {
            text.push_str(&format!("{}\n", check.row()));
            continue;
        }
        let mark = if check.mend.is_none() { "ok  " } else { "BAD " };
        text.push_str(&format!("{mark} {}: {}\n", check.subject, commands::one_line(&check.said)));
        if let Some(mend) = &check.mend {
            text.push_str(&format!("       mend: {mend}\n"));
        }
    }
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            return Err(Failure::done("writing to standard output", error.to_string()));
        }
        _ => {}
    }
    match checks.iter().filter(|check| check.mend.is_some()).count() {
        0 => Ok(()),
        1 => Err(Failure::done("doctor", "there is one finding")),
        n => Err(Failure::done("doctor", format!("there are {n} findings"))),
    }
}

fn look(file: Option<&Path>, config: &Config, agent: &Result<Value, Failure>) -> Vec<Check> {
    let mut checks = vec![running(file, agent)];
    let status = agent.as_ref().ok();
    checks.extend(state(config));
    checks.extend(limits::look(config, status));
    checks.extend(config.trees.iter().flat_map(|tree| trees::look(tree, status)));
    checks.extend(peers::look(config, status));
    checks.extend(daemons::look(config));
    checks.extend(clock());
    checks
}

fn running(file: Option<&Path>, agent: &Result<Value, Failure>) -> Check {
    match agent {
        Ok(status) => match status["config_error"].as_str() {
            None => Check::good("agent", format!("it runs, version {}", status["version"].as_str().unwrap_or("?"))),
            Some(error) => Check::finding(
                "agent",
                format!("it runs with an older config, for the new one is wrong: {error}"),
                "mend the config, then: systemctl reload pleach",
            ),
        },
        Err(failure) => {
            let start = match file {
                Some(file) => format!("pleach agent --config {}", file.display()),
                None => "systemctl enable --now pleach".to_owned(),
            };
            Check::finding("agent", failure.why().to_owned(), start)
        }
    }
}

/// The state directory and the host key.
fn state(config: &Config) -> Vec<Check> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = config.state.display();
    let Ok(found) = std::fs::metadata(&config.state) else {
        return vec![Check::finding(
            "state",
            format!("there is no directory {dir}"),
            "pleach key   (makes it, with the key)",
        )];
    };
    let mut checks = Vec::new();
    let (mode, owner, us) = (found.permissions().mode() & 0o777, found.uid(), rustix::process::geteuid().as_raw());
    if owner != us {
        let said = format!("{dir} belongs to user {owner}, and this is user {us}");
        checks.push(Check::finding("state", said, format!("chown -R {us} {dir}   (or run as its owner)")));
    } else if mode & 0o077 != 0 {
        let said = format!("{dir} can be read by others (mode {mode:o})");
        checks.push(Check::finding("state", said, format!("chmod 700 {dir}")));
    }
    let key = keys::path_in(&config.state);
    match keys::HostKey::load(&config.state) {
        Ok(key) => checks.push(Check::good("key", key.fingerprint())),
        Err(error) => {
            let mend = match std::fs::metadata(&key) {
                Ok(found) if found.permissions().mode() & 0o077 != 0 => format!("chmod 600 {}", key.display()),
                Ok(_) => "pleach key --new   (and give the new key to the peers)".to_owned(),
                Err(_) => "pleach key   (makes one)".to_owned(),
            };
            checks.push(Check::finding("key", error.to_string(), mend));
        }
    }
    checks
}

/// Whether this machine's clock is set by somebody. Younger files win where trees meet for the first time.
fn clock() -> Option<Check> {
    let asked = std::process::Command::new("timedatectl").args(["show", "-p", "NTPSynchronized", "--value"]).output();
    let said = String::from_utf8(asked.ok().filter(|output| output.status.success())?.stdout).ok()?;
    Some(match said.trim() {
        "yes" => Check::good("clock", "it is synchronized"),
        _ => Check::finding("clock", "it is not synchronized with a time server", "timedatectl set-ntp true"),
    })
}

/// Reads a number from `/proc`.
fn number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The status of one of the agent's trees or peers.
fn named<'a>(status: Option<&'a Value>, list: &str, name: &str) -> Option<&'a Value> {
    status?[list].as_array()?.iter().find(|row| row["name"] == name)
}

#[cfg(test)]
mod tests;
