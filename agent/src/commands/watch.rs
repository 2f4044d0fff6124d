//! `pleach watch`: every inotify event beneath directories, as inotifywait shows them, or counted as inotifywatch does.

mod format;
mod stats;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ::inotify::EventMask;
use regex::bytes::Regex;

use self::format::{Line, Shape};
use self::stats::Stats;
use crate::failure::Failure;
use crate::watch::events::{Events, Seen};

/// Batches of events between the readers and the output: behind it the kernel's queues fill.
const BATCHES_MAX: usize = 64;
/// How often a reader looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(200);

/// What `pleach watch` is told.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Watch {
    /// The directories, each with everything beneath it.
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Only these events, by name and comma: close_write,delete,move; default: all.
    #[arg(short, long = "events", visible_alias = "event", value_name = "EVENTS", value_delimiter = ',')]
    events: Vec<String>,
    /// How a line looks: %w directory, %f name, %e events (%Xe: with X between them), %T time, %c cookie,
    /// %n new line, %0 NUL.
    #[arg(long, value_name = "FORMAT", conflicts_with_all = ["json", "csv"])]
    format: Option<String>,
    /// What %T gives, as strftime(3) has it.
    #[arg(long, value_name = "FORMAT")]
    timefmt: Option<String>,
    /// Leaves out what matches: a regular expression, anywhere in the path.
    #[arg(long, value_name = "PATTERN")]
    exclude: Option<String>,
    /// Shows only what matches.
    #[arg(long, value_name = "PATTERN")]
    include: Option<String>,
    /// A JSON object a line.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Directory, events and name with commas between them.
    #[arg(short, long)]
    csv: bool,
    /// Ends after the first event.
    #[arg(long)]
    once: bool,
    /// Ends when no event came for so long; exit status 1 where none came at all.
    #[arg(short, long, value_name = "SECS", value_parser = super::seconds)]
    timeout: Option<Duration>,
    /// Appends to this file in place of standard output.
    #[arg(short, long, value_name = "FILE")]
    outfile: Option<PathBuf>,
    /// Counts the events of so many seconds (0: until Ctrl-C) and shows a table of them.
    #[arg(long, value_name = "SECS", value_parser = super::seconds, conflicts_with_all = ["once", "format"])]
    stats: Option<Duration>,
    /// With --stats: sorts by this event, or by path; default: by the sum.
    #[arg(long, value_name = "EVENT", requires = "stats")]
    sort: Option<String>,
    /// Says nothing on standard error but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Goes on after the first event: the default here.
    #[arg(short, long, hide = true)]
    monitor: bool,
    /// With all beneath: the default here.
    #[arg(short, long, hide = true)]
    recursive: bool,
}

/// What the readers send.
enum News {
    Events(usize, Vec<Seen>),
    Gone(usize),
    Failed(usize, io::Error),
}

/// Shows events until Ctrl-C, or as long as it is told.
///
/// # Errors
/// A directory cannot be watched, something in the arguments is no pattern or event, or no event came in time.
pub fn watch(args: &Watch) -> Result<(), Failure> {
    let wanted = format::mask(&args.events).map_err(|why| Failure::usage("watch --events", why))?;
    let shape = shape(args)?;
    let pattern = |what: &str, text: &Option<String>| match text {
        Some(text) => {
            Regex::new(text).map(Some).map_err(|error| Failure::usage(format!("watch --{what}"), error.to_string()))
        }
        None => Ok(None),
    };
    let (exclude, include) = (pattern("exclude", &args.exclude)?, pattern("include", &args.include)?);
    let mut stats = args.stats.map(|_| Stats::new(wanted, args.sort.as_deref())).transpose()?;
    let mut out: Box<dyn Write> = match &args.outfile {
        Some(file) => {
            let opened = OpenOptions::new().create(true).append(true).open(file);
            Box::new(
                opened
                    .map_err(|error| Failure::done(format!("watch --outfile {}", file.display()), error.to_string()))?,
            )
        }
        None => Box::new(io::stdout()),
    };
    let news = readers(args, wanted, exclude)?;
    let started = Instant::now();
    let (mut quiet_since, mut any, mut open) = (started, false, args.dirs.len());
    let counting_ends = args.stats.filter(|secs| !secs.is_zero()).map(|secs| started + secs);
    loop {
        let ends = [counting_ends, args.timeout.map(|limit| quiet_since + limit)].into_iter().flatten().min();
        let heard = match ends {
            Some(end) => news.recv_timeout(end.saturating_duration_since(Instant::now())),
            None => news.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let (at, seen) = match heard {
            Ok(News::Events(at, seen)) => (at, seen),
            Ok(News::Failed(at, error)) => return Err(failed(&args.dirs[at], &error)),
            Ok(News::Gone(at)) => {
                say(args, &format!("{} is gone: it was removed, moved or unmounted", args.dirs[at].display()));
                open -= 1;
                if open > 0 { continue } else { break }
            }
            Err(_) => break,
        };
        let top = args.dirs[at].as_os_str().as_bytes();
        let mut text = Vec::new();
        for seen in &seen {
            if seen.mask.contains(EventMask::Q_OVERFLOW) {
                say(args, "events were lost: the kernel's queue was full (fs.inotify.max_queued_events)");
            }
            let line = Line::new(top, seen);
            if include.as_ref().is_some_and(|pattern| !pattern.is_match(&line.path())) {
                continue;
            }
            (any, quiet_since) = (true, Instant::now());
            match &mut stats {
                Some(stats) => stats.count(&line),
                None => line.write(&shape, &mut text),
            }
            if args.once {
                break;
            }
        }
        if !super::print(&mut out, &text)? || args.once && any {
            return Ok(());
        }
    }
    if let Some(stats) = stats {
        super::print(&mut out, &stats.table(if args.json { Shape::Json } else { Shape::Plain }))?;
    } else if !any && args.timeout.is_some() {
        return Err(Failure::done("watch", "no event came in time"));
    }
    Ok(())
}

fn shape(args: &Watch) -> Result<Shape, Failure> {
    let time = args.timefmt.clone().unwrap_or_else(|| "%Y-%m-%dT%H:%M:%S%.3f%:z".to_owned());
    format::check_time(&time).map_err(|why| Failure::usage("watch --timefmt", why))?;
    Ok(match &args.format {
        _ if args.json => Shape::Json,
        _ if args.csv => Shape::Csv,
        Some(format) => Shape::Format { format: format.clone(), time },
        None => Shape::Plain,
    })
}

fn say(args: &Watch, text: &str) {
    if !args.quiet {
        // Where standard error is closed there is nobody to tell.
        writeln!(io::stderr(), "pleach: watch: {}", super::show::escaped(text.as_bytes())).ok();
    }
}

fn failed(dir: &std::path::Path, error: &io::Error) -> Failure {
    let failure =
        Failure::done(format!("watch: {}", super::show::escaped(dir.as_os_str().as_bytes())), error.to_string());
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOSPC) => {
            failure.help("there are too few watches: sysctl fs.inotify.max_user_watches=1048576")
        }
        Some(rustix::io::Errno::MFILE) => {
            failure.help("there are too few instances: sysctl fs.inotify.max_user_instances=1024")
        }
        _ => failure,
    }
}

/// One thread a directory reads its events.
fn readers(args: &Watch, wanted: EventMask, exclude: Option<Regex>) -> Result<Receiver<News>, Failure> {
    let (sender, news) = sync_channel(BATCHES_MAX);
    let mut watches = 0;
    for (at, dir) in args.dirs.iter().enumerate() {
        let (top, exclude) = (dir.as_os_str().as_bytes().to_vec(), exclude.clone());
        let excluded = move |dir: &pleach_protocol::path::TreePath, name: &[u8]| {
            exclude.as_ref().is_some_and(|pattern| pattern.is_match(&format::joined(&top, dir, name)))
        };
        let (ready, result) = sync_channel(1);
        let (dir, sender) = (dir.clone(), sender.clone());
        let thread = std::thread::Builder::new().name("events".into()).spawn(move || {
            match Events::start(&dir, wanted, Box::new(excluded)) {
                Ok(events) => {
                    // Nobody waits any more only where another directory failed.
                    ready.send(Ok(events.watches())).ok();
                    read(at, events, &sender);
                }
                Err(error) => ready.send(Err(error)).unwrap_or_default(),
            }
        });
        thread.map_err(|error| Failure::done("watch: starting a thread", error.to_string()))?;
        let started = result.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended")));
        watches += started.map_err(|error| failed(&args.dirs[at], &error))?;
    }
    say(args, &format!("{watches} directories are watched"));
    Ok(news)
}

fn read(at: usize, mut events: Events, sender: &SyncSender<News>) {
    loop {
        let news = match events.next(Some(LOOK)) {
            Ok(seen) if seen.is_empty() && events.ended() => News::Gone(at),
            Ok(seen) if seen.is_empty() => continue,
            Ok(seen) => News::Events(at, seen),
            Err(error) => News::Failed(at, error),
        };
        let last = !matches!(news, News::Events(..));
        if sender.send(news).is_err() || last {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
