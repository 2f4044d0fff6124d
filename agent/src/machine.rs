//! What the machine says: time, boot, randomness. The one module that reads the wall clock.

use std::fs;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use chrono::Timelike;
use pleach_protocol::time::Time;

/// The time now.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::new(i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos())
}

/// The minute of the day, in local time.
#[must_use]
pub fn minute_of_day() -> u32 {
    let local = local(now());
    local.hour() * 60 + local.minute()
}

/// A time as clocks on the wall here show it.
#[must_use]
pub fn local(time: Time) -> chrono::NaiveDateTime {
    let utc = chrono::DateTime::from_timestamp(time.secs, 0).unwrap_or_default();
    utc.with_timezone(&chrono::Local).naive_local()
}

/// Lets this process open as many files as its hard limit says: a batch of received files is held open until
/// it is durable. Where it may not, trees take smaller batches.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

/// When the machine booted. Source: proc(5), `btime` in /proc/stat.
#[must_use]
pub fn booted() -> Time {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "));
    Time::new(line.and_then(|text| text.trim().parse().ok()).unwrap_or(0), 0)
}

/// This boot's id. Source: random(4).
#[must_use]
pub fn boot_id() -> Vec<u8> {
    fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Random bytes from the kernel.
///
/// # Errors
/// What opening or reading its device says.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A random number.
///
/// # Errors
/// As [`random`].
pub fn random_number() -> io::Result<u64> {
    Ok(u64::from_le_bytes(random()?))
}

/// Replaces a file so that it holds the old or the new bytes whatever happens.
///
/// # Errors
/// What the file system says.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = path.with_extension("new");
    let mut file = fs::File::create(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Makes an empty file that says by being there, or removes it.
///
/// # Errors
/// The disk's.
pub fn set_flag(file: &Path, on: bool) -> io::Result<()> {
    if on {
        return fs::write(file, b"");
    }
    match fs::remove_file(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// An error with its causes, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Locks; a holder that panicked left nothing half-done that matters here.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
