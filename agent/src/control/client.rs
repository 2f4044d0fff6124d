//! A command's side of the control socket, blocking.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{ANSWER_BYTES_MAX, End, Hello, Line, REQUEST_BYTES_MAX, Request, VERSION, address, socket_in};
use crate::failure::Failure;

/// How long an agent may take for its first line. It needs nothing but a turn for it.
const HELLO: Duration = Duration::from_secs(10);

/// Says why there is no answer from an agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no agent is running ({path})")]
    NoAgent {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be used.
    #[error("{path}: {source}")]
    Socket {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The agent is there and says nothing.
    #[error("the agent does not answer ({path})")]
    Hangs {
        /// The socket.
        path: PathBuf,
    },
    /// The connection ended before the answer did.
    #[error("the agent ended before it was done")]
    Cut,
    /// What answers is no agent, or one of another time.
    #[error("the agent's answer cannot be read: {what}")]
    Answer {
        /// What is wrong with it.
        what: String,
    },
    /// The request is too long for the socket.
    #[error("the request is longer than 64 KiB")]
    Request,
}

/// One line of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// A row.
    Row(Value),
    /// A line for standard error.
    Say(String),
    /// The end, with the agent's word on it.
    End(Result<(), Failure>),
}

/// A request under way.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    path: PathBuf,
    node: String,
    deadline: Option<Instant>,
}

impl Client {
    /// Asks the agent with this state directory, which must end within `limit`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask(state: &Path, request: &Request, limit: Option<Duration>) -> Result<Self, ClientError> {
        let path = socket_in(state);
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => {
                ClientError::NoAgent { path: path.clone() }
            }
            _ => ClientError::Socket { path: path.clone(), source },
        };
        let mut text = format!("{{\"pleach\":{VERSION}}}\n").into_bytes();
        let start = text.len();
        serde_json::to_writer(&mut text, request).map_err(|error| ClientError::Answer { what: error.to_string() })?;
        text.push(b'\n');
        if text.len() - start > REQUEST_BYTES_MAX {
            return Err(ClientError::Request);
        }
        let (to, _handle) = address(&path).map_err(failed)?;
        let mut stream = UnixStream::connect(to).map_err(failed)?;
        // An agent that turns us away may have closed already; its reason is still there to be read.
        match stream.write_all(&text) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(failed(error)),
            _ => {}
        }
        let now = Instant::now();
        let mut client =
            Self { reader: BufReader::new(stream), path, node: String::new(), deadline: Some(now + HELLO) };
        let hello: Hello = client.line()?;
        if hello.pleach != VERSION {
            let what = format!("it speaks version {} of the control protocol, this is {VERSION}", hello.pleach);
            return Err(ClientError::Answer { what });
        }
        client.node = hello.node.unwrap_or_default();
        client.deadline = limit.and_then(|limit| now.checked_add(limit));
        Ok(client)
    }

    /// The agent's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Whether [`Self::read`] may have to wait.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.reader.buffer().is_empty()
    }

    /// The answer's next line.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn read(&mut self) -> Result<Answer, ClientError> {
        loop {
            let line: Line = self.line()?;
            match line {
                Line { end: Some(end), .. } => return Ok(Answer::End(End::into(end))),
                Line { row: Some(row), .. } => return Ok(Answer::Row(row)),
                Line { say: Some(say), .. } => return Ok(Answer::Say(say)),
                // A later release says something that this one does not know.
                _ => {}
            }
        }
    }

    fn line<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, ClientError> {
        let mut text = Vec::new();
        loop {
            self.wait()?;
            let found = match self.reader.fill_buf() {
                Ok([]) => return Err(ClientError::Cut),
                Ok(found) => found,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => continue,
                    io::ErrorKind::ConnectionReset => return Err(ClientError::Cut),
                    _ => return Err(ClientError::Socket { path: self.path.clone(), source: error }),
                },
            };
            let part = found.iter().position(|b| *b == b'\n').map_or(found.len(), |at| at + 1);
            text.extend_from_slice(&found[..part]);
            self.reader.consume(part);
            if text.len() > ANSWER_BYTES_MAX {
                return Err(ClientError::Answer { what: "a line is too long".to_owned() });
            }
            if text.ends_with(b"\n") {
                return serde_json::from_slice(&text).map_err(|error| ClientError::Answer { what: error.to_string() });
            }
        }
    }

    /// Gives the next read what is left of the time.
    fn wait(&self) -> Result<(), ClientError> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(ClientError::Hangs { path: self.path.clone() });
        }
        let set = self.reader.get_ref().set_read_timeout(left);
        set.map_err(|source| ClientError::Socket { path: self.path.clone(), source })
    }
}
