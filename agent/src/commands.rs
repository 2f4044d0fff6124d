//! The commands that ask a running agent: they find it, pass the request on, and print what comes back.

mod find;
mod rows;
mod show;
mod status;
mod watch;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

pub use find::log_level;
pub use watch::{Watch, watch};

use crate::config;
use crate::control::{Answer, Client, ClientError, RawPath, Request};
use crate::failure::Failure;
use show::Style;

/// How long an agent may be late with the end of a wait.
const LATE: Duration = Duration::from_secs(2);
/// How often `status --watch` looks.
const WATCH: Duration = Duration::from_secs(1);

/// What `pleach status` is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Status {
    /// One JSON object in place of text.
    pub json: bool,
    /// Again and again.
    pub watch: bool,
    /// Fail unless all is in sync.
    pub check: bool,
}

/// Prints each tree and each peer at a glance.
///
/// # Errors
/// No agent answers; with `check`, what is not in sync.
pub fn status(file: Option<&Path>, args: Status) -> Result<(), Failure> {
    let state = find::state(file)?;
    let terminal = io::stdout().is_terminal();
    let style = Style::of(terminal);
    loop {
        let mut seen = Value::Null;
        ask(file, &state, &Request::Status, &mut |event| {
            if let Event::Row(row) = event {
                seen = row;
            }
            Ok(())
        })?;
        let mut text = if args.json { format!("{seen}\n") } else { status::text(&seen, style) };
        match (args.watch, args.json, terminal) {
            // Home and clear to the end: the view is drawn over the last one.
            (true, false, true) => text.insert_str(0, "\x1b[H\x1b[2J"),
            (true, false, false) => text.push('\n'),
            _ => {}
        }
        if !print(&mut io::stdout(), text.as_bytes())? {
            return Ok(());
        }
        if !args.watch {
            let wrong = if args.check { status::wrong(&seen) } else { Vec::new() };
            let mut lines = wrong.into_iter();
            return lines.next().map_or(Ok(()), |first| Err(lines.fold(Failure::done("status", first), Failure::help)));
        }
        std::thread::sleep(WATCH);
    }
}

/// The status of the agent of a state directory.
///
/// # Errors
/// No agent answers.
pub(crate) fn agent_status(state: &Path) -> Result<Value, Failure> {
    let mut seen = Value::Null;
    ask(None, state, &Request::Status, &mut |event| {
        if let Event::Row(row) = event {
            seen = row;
        }
        Ok(())
    })?;
    Ok(seen)
}

/// Text of any origin as one line.
pub(crate) fn one_line(text: &str) -> String {
    show::escaped(text.as_bytes())
}

/// Passes a request to the agent and prints its rows: as JSON, or as text for people.
///
/// # Errors
/// No agent answers, or what it says.
pub fn run(file: Option<&Path>, request: &Request, json: bool) -> Result<(), Failure> {
    let state = find::state(file)?;
    let stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let mut out = BufWriter::new(stdout.lock());
    let mut text = rows::Printer::new(request);
    let mut open = true;
    let result = ask(file, &state, request, &mut |event| {
        let written = match event {
            Event::Row(row) if json => format!("{row}\n"),
            Event::Row(row) => text.row(&row),
            Event::Idle => {
                open = flush(&mut out)?;
                return if open { Ok(()) } else { Err(Stop::Reader) };
            }
        };
        open = print_on(&mut out, written.as_bytes())?;
        if open { Ok(()) } else { Err(Stop::Reader) }
    });
    if open && !json {
        let rest = text.finish(terminal && result.is_ok());
        open = print_on(&mut out, rest.as_bytes()).map_err(Stop::into_failure)?;
    }
    if open {
        flush(&mut out).map_err(Stop::into_failure)?;
    }
    result
}

/// What a request brings, beside words for standard error.
enum Event {
    Row(Value),
    /// Nothing more has come yet.
    Idle,
}

/// Why reading an answer ends early.
enum Stop {
    /// Nobody reads standard output any more.
    Reader,
    Failed(Failure),
}

impl Stop {
    fn into_failure(self) -> Failure {
        match self {
            Self::Reader => Failure::done("writing to standard output", "nobody reads it"),
            Self::Failed(failure) => failure,
        }
    }
}

/// Talks to the agent to the end of its answer; its words go to standard error at once.
fn ask(
    file: Option<&Path>,
    state: &Path,
    request: &Request,
    each: &mut dyn FnMut(Event) -> Result<(), Stop>,
) -> Result<(), Failure> {
    let limit = match request {
        Request::Wait { timeout_ms: Some(ms), .. } => Some(Duration::from_millis(*ms).saturating_add(LATE)),
        _ => None,
    };
    let failed = |error: ClientError| failure(file, request.name(), &error);
    let mut client = Client::ask(state, request, limit).map_err(failed)?;
    loop {
        let mut went = Ok(());
        if client.is_idle() {
            went = each(Event::Idle);
        }
        if went.is_ok() {
            went = match client.read().map_err(failed)? {
                Answer::Row(row) => each(Event::Row(row)),
                Answer::Say(text) => {
                    // Where standard error is closed there is nobody to tell.
                    writeln!(io::stderr(), "pleach: {}: {}", request.name(), show::escaped(text.as_bytes())).ok();
                    Ok(())
                }
                Answer::End(result) => return result,
            };
        }
        match went {
            Ok(()) => {}
            Err(Stop::Reader) => return Ok(()),
            Err(Stop::Failed(failure)) => return Err(failure),
        }
    }
}

fn failure(file: Option<&Path>, name: &str, error: &ClientError) -> Failure {
    let failure = Failure::done(name, error.to_string());
    match error {
        ClientError::NoAgent { .. } => match file {
            Some(file) => failure.help(format!("start it: pleach agent --config {}", file.display())),
            None => failure.help("start it: systemctl start pleach (or, in the foreground: pleach agent)"),
        },
        ClientError::Socket { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            failure.help("ask as the user that the agent runs as, or as root")
        }
        ClientError::Hangs { .. } => failure.help("see what it does: systemctl status pleach; journalctl -u pleach"),
        ClientError::Cut => failure.help("ask again once it runs: pleach status"),
        _ => failure,
    }
}

/// Writes to standard output; false where its reader is gone, which is no failure.
fn print(out: &mut dyn Write, text: &[u8]) -> Result<bool, Failure> {
    let written = out.write_all(text).and_then(|()| out.flush());
    reader_there(written).map_err(Stop::into_failure)
}

fn print_on(out: &mut dyn Write, text: &[u8]) -> Result<bool, Stop> {
    reader_there(out.write_all(text))
}

fn flush(out: &mut dyn Write) -> Result<bool, Stop> {
    reader_there(out.flush())
}

fn reader_there(written: io::Result<()>) -> Result<bool, Stop> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Stop::Failed(Failure::done("writing to standard output", error.to_string()))),
    }
}

/// Makes a path absolute by its text alone: `.` and `..` are cleaned away, no symlink is followed.
///
/// # Errors
/// The working directory is gone, or the path cannot be one.
pub fn absolute(path: &Path) -> Result<RawPath, Failure> {
    let shown = || show::escaped(path.as_os_str().as_encoded_bytes());
    let whole = std::path::absolute(path).map_err(|error| Failure::usage(shown(), error.to_string()))?;
    let mut clean = PathBuf::new();
    for part in whole.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            part => clean.push(part),
        }
    }
    RawPath::new(clean).ok_or_else(|| Failure::usage(shown(), "this is no path"))
}

/// Reads a time limit: seconds, `1.5`, or a duration as in the config, `10s`.
///
/// # Errors
/// What is wrong with it.
pub fn seconds(text: &str) -> Result<Duration, String> {
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && let Ok(number) = text.parse::<f64>()
    {
        return Duration::try_from_secs_f64(number).map_err(|error| error.to_string());
    }
    config::duration(text).map_err(|why| format!("{why}, or seconds"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute_by_their_text() {
        for (path, want) in
            [("/a/./b/../c/", "/a/c"), ("/../..", "/"), ("/a//b", "/a/b"), ("/", "/"), ("/a/...", "/a/...")]
        {
            assert_eq!(absolute(Path::new(path)).unwrap().as_path(), Path::new(want));
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(absolute(Path::new("x/../y")).unwrap().as_path(), here.join("y"));
        assert_eq!(absolute(Path::new("..")).unwrap().as_path(), here.parent().unwrap());
        assert_eq!(absolute(Path::new("")).unwrap_err().code, 2);
    }

    #[test]
    fn time_limits_are_seconds_or_durations() {
        for (text, ms) in [("3", 3_000), ("1.5", 1_500), ("10s", 10_000), ("500ms", 500), ("5m", 300_000), ("0", 0)] {
            assert_eq!(seconds(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for wrong in ["", "-1", "inf", "nan", "1e30", "s", "1.5s", "soon"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
