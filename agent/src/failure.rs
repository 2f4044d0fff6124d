//! How a command fails: one line for what and why, then what to do.

use std::fmt;

/// A failure of a command, as a person sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    what: String,
    why: String,
    help: Vec<String>,
    /// The exit status: 1 it could not be done, 2 wrong usage or config.
    pub code: u8,
}

impl Failure {
    /// It could not be done.
    pub fn done(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { what: what.into(), why: why.into(), help: Vec::new(), code: 1 }
    }

    /// Wrong usage, or an error in the config.
    pub fn usage(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { code: 2, ..Self::done(what, why) }
    }

    /// Why it could not be done.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Adds a line that says what to do.
    #[must_use]
    pub fn help(mut self, line: impl Into<String>) -> Self {
        self.help.push(line.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pleach: {}: {}", self.what, self.why)?;
        self.help.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}
