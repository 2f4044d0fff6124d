//! One run of Debian's `rsync` as a child process: its command line, its names, its lines.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use pleach_protocol::path::TreePath;
use pleach_store::ignore::FALLBACK_DIR;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::process::{ChildStdin, Command};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::gate::GONE_MAX;
use super::item::{self, Item};
use super::rules::deletion_rules;
use super::{Fallback, PushSetup};
use crate::machine::{minute_of_day, now};

/// Where rsync keeps what it has of a file that broke off, in the file's directory there.
pub(super) const PARTIAL_DIR: &str = ".pleach-partial";
/// A path of 4,096 bytes, each escaped, and the words around it.
const LINE_BYTES_MAX: u64 = 20_000;
/// Lines of standard error that are kept: the last ones.
const ERRORS_MAX: usize = 200;
/// How long a daemon may take to answer a connection, at most.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// What a run does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Job {
    /// Sends what is listed. `again`: also what has the same length and time there; `keep`: what breaks off stays there
    /// until it goes on.
    Send { again: bool, keep: bool },
    /// Says what of the list differs there. `read`: by content.
    Verify { read: bool },
    /// Deletes what is listed and not here.
    Delete,
    /// Deletes what is listed and not in the source, no more than `max`, by rules that let nothing else go.
    DeleteByRules { max: usize },
    /// Says all that is there.
    List,
}

/// How a run ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// The exit code; a signal's number behind 128.
    pub(super) code: i32,
    /// The last lines that it said of what went wrong.
    pub(super) said: Vec<String>,
}

impl Ended {
    /// The line that says best why.
    pub(super) fn why(&self) -> String {
        let told =
            |line: &&String| line.contains("ERROR") || line.contains("failed") || line.contains("unknown option");
        let line = self.said.iter().find(told).or_else(|| self.said.iter().find(|line| !line.is_empty()));
        let line = line.map_or("", |line| line.trim_start_matches("@ERROR: ").trim_start_matches("rsync: "));
        match line {
            "" => format!("rsync: {} (code {})", super::exit::words(self.code), self.code),
            line => format!("{line} (rsync code {}: {})", self.code, super::exit::words(self.code)),
        }
    }

    /// What was said of one path.
    pub(super) fn why_of(&self, path: &TreePath) -> String {
        let name = String::from_utf8_lossy(path.name()).into_owned();
        let line = self.said.iter().find(|line| line.contains(&name) && !line.starts_with("rsync error"));
        line.map_or_else(|| self.why(), |line| line.trim_start_matches("rsync: ").to_owned())
    }
}

/// The command line, but for the names.
fn arguments(setup: &PushSetup, job: Job, source: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = setup.config.options.iter().map(Into::into).collect();
    let mut say = |text: &str| args.push(text.into());
    for option in ["--links", "--times", "--out-format=%i %n", "--no-motd"] {
        say(option);
    }
    match job {
        Job::DeleteByRules { max } => {
            // The two that follow `--delete` keep it from anything but deleting, the last ones from directories' attributes.
            for option in ["--recursive", "--delete", "--existing", "--ignore-existing", "--from0", "--include-from=-"]
            {
                say(option);
            }
            say(&format!("--max-delete={max}"));
            for option in ["--no-times", "--no-perms", "--no-owner", "--no-group"] {
                say(option);
            }
        }
        Job::List => {
            for option in ["--recursive", "--dry-run"] {
                say(option);
            }
        }
        Job::Send { .. } | Job::Verify { .. } | Job::Delete => {
            // Said after the config's options, so that none of theirs wins.
            for option in ["--files-from=-", "--from0", "--relative", "--no-recursive", "-ii", "--modify-window=-1"] {
                say(option);
            }
            for (option, not) in [("--perms", "--no-perms"), ("--owner", "--no-owner"), ("--group", "--no-group")] {
                let short = not.replace("perms", "p").replace("owner", "o").replace("group", "g");
                if !setup.config.options.iter().any(|o| o == not || *o == short) {
                    say(option);
                }
            }
        }
    }
    match job {
        Job::Send { again, keep } => {
            say("--ignore-missing-args");
            if keep {
                say(&format!("--partial-dir={PARTIAL_DIR}"));
            }
            if again {
                say("--ignore-times");
            }
            keep_displaced(setup, &mut say);
        }
        Job::Verify { read } => {
            say("--ignore-missing-args");
            say("--dry-run");
            if read {
                say("--checksum");
            }
        }
        Job::Delete => {
            say("--delete-missing-args");
            say("--no-implied-dirs");
            keep_displaced(setup, &mut say);
        }
        Job::DeleteByRules { .. } => keep_displaced(setup, &mut say),
        Job::List => {}
    }
    if let Some(rate) = setup.bandwidth.at(minute_of_day()) {
        say(&format!("--bwlimit={}", rate.div_ceil(1024)));
    }
    let timeout = setup.config.timeout.as_secs().max(1);
    say(&format!("--timeout={timeout}"));
    say(&format!("--contimeout={}", timeout.min(CONNECT_MAX.as_secs())));
    if let Some(file) = &setup.config.password_file {
        let mut option = OsString::from("--password-file=");
        option.push(file);
        args.push(option);
    }
    args.push("--".into());
    // A slash at the end: what is in it, not itself.
    let mut source = source.as_os_str().to_owned();
    source.push("/");
    let target = OsString::from(setup.config.target.to_string());
    args.extend(if job == Job::List { [target, source] } else { [source, target] });
    args
}

/// Nothing that a fallback displaces is lost: the agent there takes it in when it is back.
fn keep_displaced(setup: &PushSetup, say: &mut impl FnMut(&str)) {
    let Some(fallback) = &setup.fallback else { return };
    say("--backup");
    say("--suffix=");
    say(&format!("--backup-dir={}/{}", String::from_utf8_lossy(FALLBACK_DIR), run_name(&fallback.node)));
}

/// No other run has it, not another node's either; later ones sort behind.
pub(super) fn run_name(node: &str) -> String {
    format!("{:020}-{node}", now().nanos_since_epoch())
}

/// Runs it; a fallback's alone, and not beside the agent. Each path that it names goes to `items`; whoever drops the
/// future ends the process.
pub(super) async fn run(
    setup: &PushSetup,
    job: Job,
    source: &Path,
    names: &[TreePath],
    items: mpsc::Sender<Item>,
) -> io::Result<Ended> {
    let run_freely = start(setup, arguments(setup, job, source), input(job, names), items);
    let Some(Fallback { gate, .. }) = &setup.fallback else { return run_freely.await };
    let back = || io::Error::other("the peer's agent is back");
    let _alone = gate.enter().await.ok_or_else(back)?;
    tokio::select! {
        ended = run_freely => return ended,
        () = gate.overdue() => {}
    }
    // Its end was dropped with it; the daemon's own process sees that a moment later.
    sleep(GONE_MAX).await;
    Err(back())
}

/// Starts rsync and reads it to its end.
async fn start(
    setup: &PushSetup,
    arguments: Vec<OsString>,
    input: Vec<Vec<u8>>,
    items: mpsc::Sender<Item>,
) -> io::Result<Ended> {
    let mut command = Command::new("rsync");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // No question at a terminal, no words in another language, no options from the environment.
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/local/bin:/usr/bin:/bin"));
    command.env_clear().env("PATH", path).env("LC_ALL", "C");
    if setup.config.password_file.is_none() {
        command.env("RSYNC_PASSWORD", "none");
    }
    command.current_dir("/").kill_on_drop(true).process_group(0);
    let mut child = command.spawn()?;
    let _noted = crate::orphan::Noted::new(&setup.note, child.id());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let lacks = || io::Error::other("a pipe to rsync is missing");
    let (stdin, stdout, stderr) = (stdin.ok_or_else(lacks)?, stdout.ok_or_else(lacks)?, stderr.ok_or_else(lacks)?);
    let mut said = VecDeque::new();
    let mut infos = VecDeque::new();
    let ((), out, err, status) = tokio::join!(
        feed(stdin, &input),
        each_line(
            BufReader::new(stdout),
            |line| {
                let found = item::parse(&line);
                if found.is_none() {
                    keep(&mut infos, &line);
                }
                found
            },
            Some(&items)
        ),
        each_line(
            BufReader::new(stderr),
            |line| {
                keep(&mut said, &line);
                None
            },
            None
        ),
        child.wait(),
    );
    out?;
    err?;
    said.extend(infos);
    let status = status?;
    let code =
        status.code().unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&status).unwrap_or(0));
    Ok(Ended { code, said: said.into() })
}

/// What rsync reads: the names, or rules made of them.
fn input(job: Job, names: &[TreePath]) -> Vec<Vec<u8>> {
    match job {
        Job::DeleteByRules { .. } => deletion_rules(names),
        // Without it a name that begins with '#' or ';' would be a comment.
        _ => names.iter().map(|name| [b"./", name.as_bytes()].concat()).collect(),
    }
}

/// A path in the tree, relative to it.
pub(super) fn path_of(path: &TreePath) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()))
}

/// Gives rsync what it reads. What it does not read any more, its exit code says.
async fn feed(stdin: ChildStdin, input: &[Vec<u8>]) {
    let mut stdin = BufWriter::with_capacity(64 << 10, stdin);
    let write = async {
        for name in input {
            stdin.write_all(name).await?;
            stdin.write_all(&[0]).await?;
        }
        stdin.flush().await
    };
    if let Err(error) = write.await {
        tracing::debug!(%error, "rsync did not read all names");
    }
}

/// Reads lines to the end; longer ones are cut.
async fn each_line(
    mut reader: impl AsyncBufRead + Unpin,
    mut line_is: impl FnMut(Vec<u8>) -> Option<Item>,
    items: Option<&mpsc::Sender<Item>>,
) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if let (Some(item), Some(items)) = (line_is(line), items) {
            // Whoever does not listen wants none.
            items.send(item).await.ok();
        }
    }
}

fn keep(lines: &mut VecDeque<String>, line: &[u8]) {
    if lines.len() >= ERRORS_MAX {
        lines.pop_front();
    }
    let text = String::from_utf8_lossy(line);
    lines.push_back(text.chars().filter(|c| !c.is_control()).take(500).collect());
}

/// An empty directory of ours, and whether it is.
pub(super) fn empty_dir(dir: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    match std::fs::read_dir(dir)?.next() {
        None => Ok(dir.to_path_buf()),
        Some(_) => Err(io::Error::other(format!("{} must be empty", dir.display()))),
    }
}
