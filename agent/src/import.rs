//! `pleach import`: reads the config of sersync, lsyncd or an rsync daemon and prints the pleach config
//! that does the same job. What has no counterpart is said, in the config as a comment and on standard error.
//!
//! What could harm is never left out in silence: a tree with a filter that cannot be translated, or with
//! code of its own, is printed as a comment with the reason in front, and does not count as converted.

mod draft;
mod lsyncd;
mod pattern;
mod rsync;
mod rsyncd;
mod sersync;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::failure::Failure;
use draft::Draft;

/// The largest config that is read, in bytes: real ones have a few thousand.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Whose config it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// sersync's confxml.xml.
    Sersync,
    /// lsyncd.conf.lua.
    Lsyncd,
    /// rsyncd.conf.
    Rsyncd,
}

impl Kind {
    /// What the command line calls them.
    pub const NAMES: [&str; 3] = ["sersync", "lsyncd", "rsyncd"];

    /// Finds one by its name on the command line.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let kinds = [Self::Sersync, Self::Lsyncd, Self::Rsyncd];
        Self::NAMES.iter().zip(kinds).find(|(known, _)| **known == name).map(|(_, kind)| kind)
    }
}

/// Prints the pleach config that does the job of `file`, and on standard error what has no counterpart.
///
/// # Errors
/// The file cannot be read or understood, or nothing of it could be converted.
pub fn run(kind: Kind, file: &Path) -> Result<(), Failure> {
    let what = format!("import: {}", file.display());
    let text = read(file).map_err(|error| Failure::done(&what, error.to_string()))?;
    let draft = convert(kind, &text).map_err(|why| Failure::done(&what, why))?;
    print(&draft).map_err(|error| Failure::done("writing to standard output", error.to_string()))?;
    for note in draft.notes() {
        // Where standard error is closed there is nobody to tell.
        writeln!(io::stderr(), "pleach: import: {note}").ok();
    }
    if draft.is_empty() {
        return Err(Failure::done(&what, "nothing of it could be converted").help("the lines above say why"));
    }
    Ok(())
}

fn convert(kind: Kind, text: &str) -> Result<Draft, String> {
    match kind {
        Kind::Sersync => sersync::convert(text),
        Kind::Lsyncd => lsyncd::convert(text),
        Kind::Rsyncd => rsyncd::convert(text),
    }
}

/// Reads a config; one that is not UTF-8 is taken as ISO-8859-1, as sersync's declares itself.
fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(file)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("more than {FILE_BYTES_MAX} bytes: this is no config")));
    }
    Ok(String::from_utf8(bytes).unwrap_or_else(|error| error.as_bytes().iter().map(|b| char::from(*b)).collect()))
}

fn print(draft: &Draft) -> io::Result<()> {
    let mut out = io::stdout();
    match out.write_all(draft.text().as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
