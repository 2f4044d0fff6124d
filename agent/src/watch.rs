//! What tells that something changed on disk: facts, never decisions.
//!
//! A [`Watcher`] says where to look; only lstat and a hash say what is there. It knows nothing of
//! entries, peers or settling, and never reads a file.
//!
//! What a watcher leaves to whoever consumes its facts:
//! - A path of a fact may not exist any more, or never under this name (`#123` of an `O_TMPFILE`).
//! - A change in a directory changes the directory's own times; that gives no fact of its own.
//! - Facts about ignored paths are given too; only watches are never set in ignored directories.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use pleach_protocol::path::TreePath;

mod dirty;
mod engine;
pub mod events;
pub mod inotify;
pub mod kernel;
mod map;
pub mod stepped;
mod walk;

pub use engine::Ignored;

/// What a watcher saw, each already watched at the moment it is handed out.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Fact {
    /// Events were lost, or there were too many to keep: everything must be looked at.
    Lost,
    /// The root itself was moved, deleted, unmounted or replaced; the watcher has ended.
    RootGone,
    /// The directory and everything beneath it must be looked at.
    Subtree {
        /// It appeared, moved here, or could not be watched until now.
        dir: TreePath,
    },
    /// The directory's direct children must be looked at: too many of them changed to be named.
    Dir {
        /// The directory.
        dir: TreePath,
    },
    /// Something changed at this path.
    Path {
        /// Where.
        path: TreePath,
        /// Content was written (MODIFY or `CLOSE_WRITE`).
        content: bool,
        /// The last that was seen of the content is that a writer closed it (`CLOSE_WRITE`). Another
        /// writer may still be there.
        closed: bool,
    },
    /// A marker appeared in `.pleach/barrier`: every event queued before it is in this batch of
    /// facts or in an earlier one.
    Barrier {
        /// The marker's file name.
        name: Vec<u8>,
    },
}

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct WatchStats {
    /// Events read.
    pub events: u64,
    /// Times that the kernel's queue, or the one behind it, was full and events were lost.
    pub overflows: u64,
    /// Times that facts were too many to keep and became [`Fact::Lost`].
    pub folded: u64,
    /// Watches held now.
    pub watches: usize,
}

/// Says why watching could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// No inotify instance; at `EMFILE` the limit is `fs.inotify.max_user_instances`.
    #[error("cannot set up inotify")]
    Setup(#[source] io::Error),
    /// The root cannot be opened as a directory.
    #[error("cannot open the tree's root")]
    Root(#[source] io::Error),
    /// Events cannot be read any more.
    #[error("cannot read events")]
    Read(#[source] io::Error),
    /// [`Fact::RootGone`] was given, or the error before this one: start a new watcher.
    #[error("the watcher has ended")]
    Ended,
}

/// Yields facts about one tree.
pub trait Watcher: Send {
    /// Waits until there are facts or `timeout` passed, and returns them: none at a timeout.
    ///
    /// Each fact is given once. Barriers come last, behind everything that was queued before them.
    ///
    /// # Errors
    /// [`WatchError::Read`], then [`WatchError::Ended`].
    fn poll(&mut self, timeout: Duration) -> Result<Vec<Fact>, WatchError>;

    /// Walks the tree again: for after a change of the ignore rules, and to try the directories of
    /// [`Watcher::polled`] again. What was not watched until now comes as [`Fact::Subtree`].
    fn refresh(&mut self);

    /// How many watches there are.
    fn watches(&self) -> usize {
        self.stats().watches
    }

    /// The tops of what is not watched because of a limit, as of the last [`Watcher::poll`]: they
    /// and everything beneath them must be looked at from time to time.
    fn polled(&self) -> &BTreeSet<TreePath>;

    /// Counts since the start.
    fn stats(&self) -> WatchStats;
}
