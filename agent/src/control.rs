//! The running agent's control socket: what commands ask of it, and how both sides talk.
//!
//! A JSON object a line each way, over the unix socket `STATE/control.sock`. The client sends
//! `{"pleach":1}` and one request; the server answers `{"pleach":1,"node":NAME}`, then rows, words
//! for standard error, and one end. Fields that a side does not know are ignored, so that releases
//! one apart understand each other. Who may ask is decided by the socket's mode alone. What a
//! request does is the [`Handler`]'s; nothing here knows trees or peers.

mod base64;
mod client;
mod path;
mod server;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::failure::Failure;

pub use client::{Answer, Client, ClientError};
pub(crate) use path::field_path;
pub use path::{RawPath, path_field};
pub use server::Server;

/// The protocol's version: the first line's number. History: 1, the first.
pub const VERSION: u64 = 1;
/// The longest line that a server sends, in bytes with its newline.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;
/// The longest line that a client sends, in bytes with its newline.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// How many clients are served at once.
pub const CLIENTS_MAX: usize = 64;
/// How many replies may wait for a client that reads slowly.
pub const REPLIES_MAX: usize = 64;

/// Where an agent with this state directory listens.
#[must_use]
pub fn socket_in(state: &Path) -> PathBuf {
    state.join("control.sock")
}

/// What stays of a conflict.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// What is in the tree.
    Current,
    /// What is in the vault.
    Vaulted,
}

/// What a client asks. An absent tree or peer means all of them.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "do", rename_all = "snake_case")]
#[allow(missing_docs, reason = "the fields are the options of the command that each variant names")]
pub enum Request {
    /// One row: the shape of `pleach status --json`.
    Status,
    /// Ends when what had changed before is everywhere.
    Wait { tree: Option<String>, timeout_ms: Option<u64> },
    /// The journal's rows, from `since` on; `follow` goes on with new ones.
    Log {
        tree: Option<String>,
        #[serde(default)]
        follow: bool,
        since: Option<u64>,
    },
    /// The paths that could not be read, sent or applied.
    Problems { tree: Option<String> },
    /// The conflicts that are not resolved.
    Conflicts { tree: Option<String> },
    /// Settles the conflicts of a path, or of all beneath it.
    Resolve { path: RawPath, keep: Keep, version: Option<String> },
    /// What the vault holds of a path, or of all beneath it.
    Versions { path: RawPath },
    /// Brings a version back, in place or beneath another directory.
    Restore { path: RawPath, version: Option<String>, to: Option<RawPath> },
    /// A full check now.
    Rescan { tree: Option<String> },
    /// Stops exchanging changes.
    Pause { tree: Option<String>, peer: Option<String> },
    /// Ends a pause.
    Resume { tree: Option<String>, peer: Option<String> },
    /// A full check against a legacy rsync daemon now.
    Push {
        peer: String,
        #[serde(default)]
        dry_run: bool,
    },
    /// Ends a tree or a peer for good; the rows are the tree's conflicts.
    Forget { tree: Option<String>, peer: Option<String> },
    /// Takes a replaced root as new; lets a daemon's first check that deletes go on.
    Approve { tree: Option<String>, peer: Option<String> },
}

/// The words that [`Request`]s go by: the values of `do`, which are also the commands' names.
const NAMES: [&str; 14] = [
    "status",
    "wait",
    "log",
    "problems",
    "conflicts",
    "resolve",
    "versions",
    "restore",
    "rescan",
    "pause",
    "resume",
    "push",
    "forget",
    "approve",
];

impl Request {
    /// The command's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Wait { .. } => "wait",
            Self::Log { .. } => "log",
            Self::Problems { .. } => "problems",
            Self::Conflicts { .. } => "conflicts",
            Self::Resolve { .. } => "resolve",
            Self::Versions { .. } => "versions",
            Self::Restore { .. } => "restore",
            Self::Rescan { .. } => "rescan",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Push { .. } => "push",
            Self::Forget { .. } => "forget",
            Self::Approve { .. } => "approve",
        }
    }
}

/// What a handler sends while it works on a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A row, exactly as `--json` prints it.
    Row(Value),
    /// A line for the client's standard error.
    Say(String),
}

/// Takes a request's replies; bounded by [`REPLIES_MAX`], closed once the client is gone.
pub type Replies = tokio::sync::mpsc::Sender<Reply>;

/// A request at work; dropping it cancels it.
pub type Handling = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>;

/// Answers requests: the agent.
pub trait Handler: Send + Sync + 'static {
    /// Works on one request. The future is dropped where the client goes away, at any of its awaits: what has to
    /// be done whole must run in a task of its own.
    fn handle(self: Arc<Self>, request: Request, replies: Replies) -> Handling;

    /// The node's display name.
    fn node(&self) -> String;
}

/// The first line of either side.
#[derive(Debug, Deserialize, Serialize)]
struct Hello {
    pleach: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

/// Every later line of a server: one of the fields is there.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    row: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    say: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<End>,
}

/// How a request ended: a [`Failure`] where `code` is not 0.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
struct End {
    code: u8,
    #[serde(skip_serializing_if = "String::is_empty")]
    what: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    help: Vec<String>,
}

impl From<Result<(), Failure>> for End {
    /// Taken from the text, whose form is fixed: `pleach: WHAT: WHY`, then help lines set in by two spaces. A WHAT
    /// with a colon is cut short in favour of WHY, and the text made of the two is again the same.
    fn from(result: Result<(), Failure>) -> Self {
        let Err(failure) = result else { return Self::default() };
        let text = failure.to_string();
        let mut parts = text.strip_prefix("pleach: ").unwrap_or(&text).split("\n  ");
        let (what, why) = parts.next().and_then(|first| first.split_once(": ")).unwrap_or(("control", "it failed"));
        let help = parts.map(str::to_owned).collect();
        Self { code: failure.code.max(1), what: what.to_owned(), why: why.to_owned(), help }
    }
}

impl From<End> for Result<(), Failure> {
    fn from(end: End) -> Self {
        if end.code == 0 {
            return Ok(());
        }
        let mut failure = end.help.into_iter().fold(Failure::done(end.what, end.why), Failure::help);
        failure.code = end.code;
        Err(failure)
    }
}

/// A socket's address has room for 107 bytes; longer paths are reached through their directory's handle, which
/// must be held until the address was used. Source: unix(7).
fn address(path: &Path) -> std::io::Result<(PathBuf, Option<std::os::fd::OwnedFd>)> {
    use rustix::fs::{Mode, OFlags};
    use std::os::fd::AsRawFd;
    const ADDRESS_BYTES_MAX: usize = 107;
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    if path.as_os_str().len() <= ADDRESS_BYTES_MAX {
        return Ok((path.to_path_buf(), None));
    }
    let handle = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok((Path::new("/proc/self/fd").join(handle.as_raw_fd().to_string()).join(name), Some(handle)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_goes_by_its_name_and_survives_the_line() {
        let path = || RawPath::new("/srv/www/a").unwrap();
        let requests = [
            Request::Status,
            Request::Wait { tree: Some("t".into()), timeout_ms: Some(5) },
            Request::Log { tree: None, follow: true, since: Some(7) },
            Request::Problems { tree: None },
            Request::Conflicts { tree: None },
            Request::Resolve { path: path(), keep: Keep::Vaulted, version: Some("v".into()) },
            Request::Versions { path: path() },
            Request::Restore { path: path(), version: None, to: Some(path()) },
            Request::Rescan { tree: None },
            Request::Pause { tree: None, peer: Some("p".into()) },
            Request::Resume { tree: None, peer: None },
            Request::Push { peer: "p".into(), dry_run: true },
            Request::Forget { tree: None, peer: Some("b".into()) },
            Request::Approve { tree: None, peer: None },
        ];
        assert_eq!(requests.each_ref().map(Request::name), NAMES);
        for request in requests {
            let value = serde_json::to_value(&request).unwrap();
            assert_eq!(value["do"], request.name());
            assert_eq!(serde_json::from_value::<Request>(value).unwrap(), request);
        }
    }

    #[test]
    fn what_another_release_adds_or_leaves_out_does_no_harm() {
        let request: Request = serde_json::from_str(r#"{"do":"log","colour":"red","tree":"t"}"#).unwrap();
        assert_eq!(request, Request::Log { tree: Some("t".into()), follow: false, since: None });
        let line: Line = serde_json::from_str(r#"{"say":"x","row":{"a":1},"later":[1]}"#).unwrap();
        assert_eq!((line.say.as_deref(), line.row), (Some("x"), Some(serde_json::json!({"a": 1}))));
        let end: End = serde_json::from_str(r#"{"code":0,"later":1}"#).unwrap();
        assert_eq!(Result::<(), Failure>::from(end), Ok(()));
    }

    #[test]
    fn a_failure_reads_the_same_on_the_other_side() {
        for failure in [
            Failure::done("wait", "web2 is away"),
            Failure::done("restore: writing /a: b", "no space left: really").help("free some").help("say it again"),
            Failure::usage("resolve", ""),
        ] {
            let text = serde_json::to_string(&End::from(Err(failure.clone()))).unwrap();
            let back = Result::<(), Failure>::from(serde_json::from_str::<End>(&text).unwrap()).unwrap_err();
            assert_eq!((back.to_string(), back.code), (failure.to_string(), failure.code));
        }
    }
}
