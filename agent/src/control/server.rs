//! The agent's side of the control socket: takes clients, reads one request each, hands it to the handler.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use super::{
    ANSWER_BYTES_MAX, CLIENTS_MAX, End, Handler, Hello, Line, NAMES, REPLIES_MAX, REQUEST_BYTES_MAX, Reply, Request,
    VERSION, address, socket_in,
};
use crate::failure::Failure;

/// What a client may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    clients: usize,
    /// From the connection to the whole request.
    request: Duration,
}

/// The control socket, listening; gone from its directory once this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: std::os::unix::net::UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's name.
    id: (u64, u64),
    limits: Limits,
}

impl Server {
    /// Listens on the socket of a state directory, in place of one that an agent left behind. The caller holds the
    /// directory's lock: nobody else listens there.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn bind(state: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(state)?;
        let path = socket_in(state);
        // The socket gets its mode where nobody else can reach it, and its name once it listens.
        let staging = state.join("control.new");
        let staged = staging.join("sock");
        match fs::DirBuilder::new().mode(0o700).create(&staging) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::set_permissions(&staging, fs::Permissions::from_mode(0o700))?;
                match fs::remove_file(&staged) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            made => made?,
        }
        let (to, _handle) = address(&staged)?;
        let listener = std::os::unix::net::UnixListener::bind(to)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o600))?;
        let found = fs::symlink_metadata(&staged)?;
        fs::rename(&staged, &path)?;
        fs::remove_dir(&staging)?;
        let limits = Limits { clients: CLIENTS_MAX, request: Duration::from_secs(10) };
        Ok(Self { listener, path, id: (found.dev(), found.ino()), limits })
    }

    /// Serves clients until dropped, which cancels what they asked for.
    pub async fn serve(self, handler: Arc<dyn Handler>) {
        let listener = match self.listener.try_clone().and_then(UnixListener::from_std) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::error!(%error, "the control socket cannot be served");
                return;
            }
        };
        let places = Arc::new(Semaphore::new(self.limits.clients));
        let mut clients = JoinSet::new();
        loop {
            while clients.try_join_next().is_some() {}
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Most likely no descriptors are left: give others the time to end.
                    tracing::warn!(%error, "a client of the control socket could not be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                turn_away(&stream, &handler.node());
                continue;
            };
            let (handler, limits) = (Arc::clone(&handler), self.limits);
            clients.spawn(async move {
                let _place = place;
                if let Err(error) = converse(stream, handler, limits).await {
                    tracing::debug!(%error, "a client of the control socket went away");
                }
            });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.id);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "the control socket could not be removed");
        }
    }
}

/// Says why to a client that there is no place for; never waits, so that clients cannot hold up the accepting.
fn turn_away(stream: &UnixStream, node: &str) {
    let why = "too many commands are talking to the agent at once";
    let end =
        End::from(Err(Failure::done("control", why).help("end one (each `log --follow` is one), then try again")));
    let mut text = line(&Hello { pleach: VERSION, node: Some(node.to_owned()) });
    text.extend_from_slice(&line(&Line { end: Some(end), ..Line::default() }));
    // A new socket's buffer has room for these few bytes.
    if let Err(error) = stream.try_write(&text) {
        tracing::debug!(%error, "a client of the control socket went away");
    }
}

/// One client, from its first line to the end. An error is a client that went away.
async fn converse(stream: UnixStream, handler: Arc<dyn Handler>, limits: Limits) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let node = handler.node();
    let asked = match tokio::time::timeout(limits.request, request(&mut reader, &mut writer, node)).await {
        Ok(asked) => asked?,
        Err(_) => Err(Failure::usage("control", "no request came in time")),
    };
    let answered = async {
        let result = match asked {
            Ok(request) => answer(request, handler, &mut writer).await?,
            Err(failure) => Err(failure),
        };
        writer.write_all(&line(&Line { end: Some(result.into()), ..Line::default() })).await
    };
    tokio::select! {
        answered = answered => answered,
        error = gone(&mut reader) => Err(error),
    }
}

/// Reads a client's first line, answers it, reads its request. The inner error goes to the client.
async fn request(
    reader: &mut (impl AsyncBufReadExt + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    node: String,
) -> io::Result<Result<Request, Failure>> {
    let hello = match read_line(reader).await? {
        Some(text) => serde_json::from_slice::<Hello>(&text).ok().filter(|hello| hello.pleach >= VERSION),
        None => None,
    };
    if hello.is_none() {
        return Ok(Err(Failure::usage("control", "the first line must be {\"pleach\":1}")));
    }
    writer.write_all(&line(&Hello { pleach: VERSION, node: Some(node) })).await?;
    let Some(text) = read_line(reader).await? else {
        return Ok(Err(Failure::usage("control", "the request is longer than 64 KiB")));
    };
    let value = match serde_json::from_slice::<Value>(&text) {
        Ok(value) => value,
        Err(error) => return Ok(Err(Failure::usage("control", format!("the request is not JSON: {error}")))),
    };
    let name = value.get("do").and_then(Value::as_str).unwrap_or_default().to_owned();
    if !NAMES.contains(&name.as_str()) {
        let failure = Failure::usage(name.escape_debug().to_string(), "not in this version of the running agent");
        return Ok(Err(failure.help("restart the agent if pleach was updated: systemctl restart pleach")));
    }
    Ok(serde_json::from_value(value).map_err(|error| Failure::usage(name, format!("the request is wrong: {error}"))))
}

/// Runs a request and writes its replies as they come. The handler goes on while a client is slow to read, until
/// [`REPLIES_MAX`] of them wait.
async fn answer(
    request: Request,
    handler: Arc<dyn Handler>,
    writer: &mut (impl AsyncWrite + Unpin),
) -> io::Result<Result<(), Failure>> {
    let (replies, mut waiting) = mpsc::channel(REPLIES_MAX);
    let (done, mut finished) = oneshot::channel::<()>();
    let work = async move {
        let result = handler.handle(request, replies).await;
        // The other half outlives this one: it waits for exactly this.
        drop(done);
        result
    };
    let mut open = true;
    let copy = async {
        loop {
            let reply = tokio::select! {
                biased;
                reply = waiting.recv() => reply,
                _ = &mut finished, if open => {
                    // Senders that the handler left behind cannot hold up the end.
                    open = false;
                    waiting.close();
                    continue;
                }
            };
            let Some(reply) = reply else { return io::Result::Ok(()) };
            let mut text = line(&Line::from(reply));
            // Those that wait already go in the same write.
            while text.len() < REQUEST_BYTES_MAX
                && let Ok(more) = waiting.try_recv()
            {
                text.extend_from_slice(&line(&Line::from(more)));
            }
            writer.write_all(&text).await?;
        }
    };
    let (mut work, mut copy) = (pin!(work), pin!(copy));
    let (mut result, mut copied) = (None, false);
    loop {
        tokio::select! {
            ended = &mut work, if result.is_none() => result = Some(ended),
            wrote = &mut copy, if !copied => { wrote?; copied = true; }
        }
        if copied && let Some(result) = result.take() {
            return Ok(result);
        }
    }
}

/// Ends when the client is gone. What it sends after its request is thrown away.
async fn gone(reader: &mut (impl AsyncRead + Unpin)) -> io::Error {
    let mut bytes = [0; 1024];
    loop {
        match reader.read(&mut bytes).await {
            Ok(0) => return io::ErrorKind::UnexpectedEof.into(),
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// A line without its newline; `None` where it is too long.
async fn read_line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut text = Vec::new();
    reader.take(REQUEST_BYTES_MAX as u64).read_until(b'\n', &mut text).await?;
    match text.pop() {
        Some(b'\n') => Ok(Some(text)),
        Some(_) if text.len() + 1 == REQUEST_BYTES_MAX => Ok(None),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A line with its newline. One that is too long gives way to a word about it.
fn line(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(value).expect("texts, numbers and JSON values can be written as JSON");
    if text.len() >= ANSWER_BYTES_MAX {
        tracing::warn!(bytes = text.len(), "a row is too long for the control socket");
        let say = format!("a row of {} bytes is left out: too long for the control socket", text.len());
        text = serde_json::json!({ "say": say }).to_string().into_bytes();
    }
    text.push(b'\n');
    text
}

impl From<Reply> for Line {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Row(row) => Self { row: Some(row), ..Self::default() },
            Reply::Say(say) => Self { say: Some(say), ..Self::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Handling, Replies};
    use std::io::{BufRead, Read, Write};

    /// Sends each request's rows, then waits for ever on `log --follow`.
    struct Echo;

    impl Handler for Echo {
        fn handle(self: Arc<Self>, request: Request, replies: Replies) -> Handling {
            Box::pin(async move {
                // The end must not wait for this one.
                std::mem::forget(replies.clone());
                replies.send(Reply::Row(Value::String(request.name().into()))).await.ok();
                if request == (Request::Log { tree: None, follow: true, since: None }) {
                    std::future::pending::<()>().await;
                }
                Ok(())
            })
        }

        fn node(&self) -> String {
            "n".into()
        }
    }

    fn client(state: &Path) -> io::BufReader<std::os::unix::net::UnixStream> {
        io::BufReader::new(std::os::unix::net::UnixStream::connect(socket_in(state)).unwrap())
    }

    fn send(client: &io::BufReader<std::os::unix::net::UnixStream>, text: &str) {
        client.get_ref().write_all(text.as_bytes()).unwrap();
    }

    fn rest(mut client: io::BufReader<std::os::unix::net::UnixStream>) -> String {
        let mut text = String::new();
        match client.read_to_string(&mut text) {
            // The kernel's word for an end with bytes that the server did not read.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => panic!("{error}"),
            _ => text,
        }
    }

    fn serving(limits: Limits, test: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut server = Server::bind(dir.path()).unwrap();
        server.limits = limits;
        let task = runtime.spawn(server.serve(Arc::new(Echo)));
        test(dir.path());
        task.abort();
    }

    #[test]
    fn a_client_that_says_nothing_is_sent_away() {
        serving(Limits { clients: 1, request: Duration::from_millis(50) }, |state| {
            let hangs = client(state);
            send(&hangs, "{\"pleach\":1}\n{\"do\":");
            let said = rest(hangs);
            assert!(
                said.ends_with("{\"end\":{\"code\":2,\"what\":\"control\",\"why\":\"no request came in time\"}}\n"),
                "{said}"
            );
        });
    }

    #[test]
    fn one_client_too_many_is_told_and_a_place_comes_free() {
        serving(Limits { clients: 2, request: Duration::from_secs(60) }, |state| {
            let mut held: Vec<_> = (0..2).map(|_| client(state)).collect();
            for one in &mut held {
                send(one, "{\"pleach\":1}\n{\"do\":\"log\",\"follow\":true}\n");
                let mut hello = String::new();
                one.read_line(&mut hello).unwrap();
                assert_eq!(hello, "{\"pleach\":1,\"node\":\"n\"}\n");
            }
            let said = rest(client(state));
            assert!(said.contains("\"code\":1") && said.contains("too many commands"), "{said}");
            drop(held);
            // A place comes free when the server has seen that a client is gone; until then it says no.
            loop {
                let next = client(state);
                next.get_ref().write_all(b"{\"pleach\":1}\n{\"do\":\"status\"}\n").ok();
                let said = rest(next);
                if !said.contains("too many commands") {
                    assert_eq!(said, "{\"pleach\":1,\"node\":\"n\"}\n{\"row\":\"status\"}\n{\"end\":{\"code\":0}}\n");
                    break;
                }
            }
        });
    }
}
