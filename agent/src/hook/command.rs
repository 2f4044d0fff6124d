//! One run of a hook's program: its surroundings, its input, its lines.

use std::ffi::OsString;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use pleach_protocol::path::TreePath;
use pleach_store::rows::HookOn;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::process::{ChildStdin, Command};
use tokio::time::timeout;

use super::HookSetup;
use crate::machine::lock;
use crate::orphan::Noted;
use crate::owner::HookBatch;

/// Of each output so many lines go to the log, each of so many bytes.
const LINES_MAX: usize = 100;
const LINE_BYTES_MAX: u64 = 500;
/// How long the output is read on that the program left behind when it ended.
const READ_ON: Duration = Duration::from_millis(200);
/// What systemd tells the agent and nobody else.
const NOT_FOR_OTHERS: [&str; 5] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID"];

/// A process group that ends with this.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // One that ended meanwhile needs no signal.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

/// Runs it; whoever drops the future ends it, with all that it started.
///
/// # Errors
/// Why it did not go well.
pub(super) async fn run(setup: &HookSetup, line: &[String], on: HookOn, batch: &HookBatch) -> Result<(), String> {
    let Some((program, arguments)) = line.split_first() else { return Err("the command is empty".to_owned()) };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in NOT_FOR_OTHERS {
        command.env_remove(name);
    }
    command.env("PLEACH_TREE", &setup.config.tree).env("PLEACH_ON", on.word()).env("PLEACH_NODE", &setup.node);
    command.env("PLEACH_SEQ", OsString::from(format!("{}-{}", batch.first, batch.last)));
    command.current_dir(&setup.root).kill_on_drop(true).process_group(0);
    let mut child = command.spawn().map_err(|error| format!("{program} cannot be run: {error}"))?;
    // Dropped before the child: as long as that is not reaped, the group's number is nobody else's.
    let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw));
    let _noted = Noted::new(&setup.note, child.id());
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let last = Mutex::new(String::new());
    let tree = setup.config.tree.as_str();
    let talk = async {
        tokio::join!(
            feed(stdin, &batch.paths),
            each_line(stdout, |line| tracing::info!(tree, on = on.word(), line, "a hook says")),
            each_line(stderr, |line| {
                tracing::warn!(tree, on = on.word(), line, "a hook says");
                line.clone_into(&mut lock(&last));
            }),
        );
    };
    let mut talk = std::pin::pin!(talk);
    let mut talks = true;
    let status = loop {
        tokio::select! {
            biased;
            () = &mut talk, if talks => talks = false,
            status = child.wait() => break status,
        }
    };
    group.0 = None;
    if talks {
        // What it left running may keep its outputs open for ever.
        timeout(READ_ON, talk).await.ok();
    }
    let status = status.map_err(|error| format!("{program} cannot be waited for: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let said = lock(&last).clone();
    Err(if said.is_empty() { status.to_string() } else { format!("{status}: {said}") })
}

/// Gives it the paths. What it does not read, its status says.
async fn feed(stdin: Option<ChildStdin>, paths: &[TreePath]) {
    let Some(stdin) = stdin else { return };
    let mut stdin = BufWriter::with_capacity(64 << 10, stdin);
    let write = async {
        for path in paths {
            stdin.write_all(path.as_bytes()).await?;
            stdin.write_all(&[0]).await?;
        }
        stdin.flush().await
    };
    if let Err(error) = write.await {
        tracing::debug!(%error, "a hook did not read all paths");
    }
}

/// Takes the first lines; reads on to the end, so that the program is not held up.
async fn each_line(output: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&str)) {
    let Some(output) = output else { return };
    let mut reader = BufReader::new(output);
    let mut lines = 0;
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        lines += 1;
        match lines {
            ..=LINES_MAX => {
                let text = String::from_utf8_lossy(&line);
                let text: String = text.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
                take(&text);
            }
            _ if lines == LINES_MAX + 1 => take("(the rest is left out)"),
            _ => {}
        }
    }
}
