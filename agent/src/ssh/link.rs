//! A link: whole frames both ways over one channel, and the one task that carries them.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use pleach_protocol::wire::FrameReader;
use russh::keys::ssh_key::PublicKey;
use russh::{ChannelId, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Disconnect};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::client::ClientSession;
use super::failure::LinkError;
use super::queue::{End, Queue};
use super::server::ServerSession;
use super::stream::{KillOnDrop, LINGER, StreamGrip};

/// Callers' credits keep them far below; one that forgets them loses the link, not the machine's memory.
const SEND_BYTES_MAX: usize = 64 * 1024 * 1024;
/// A peer whose frames nobody takes is not read any further. Callers' credits keep it far below; what
/// is sent to it goes on for one window, and keepalives end the link where it lasts.
const RECEIVE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// It is read again once so much is left.
const RECEIVE_BYTES_LOW: usize = 16 * 1024 * 1024;
/// Small frames go together up to here.
const WRITE_BYTES: usize = 64 * 1024;

/// One authenticated SSH connection with its one open channel, carrying whole frames both ways.
/// It is closed once the reader and all writers are dropped.
#[derive(Debug)]
pub struct SshLink {
    /// The other side's key.
    pub key: PublicKey,
    /// The other side's address, for people.
    pub remote: String,
    /// Takes what comes.
    pub reader: LinkReader,
    /// Sends.
    pub writer: LinkWriter,
}

/// Takes what comes over a link. Dropped alone, it throws away what comes.
#[derive(Debug)]
pub struct LinkReader {
    user: Arc<User>,
}

/// Sends over a link.
#[derive(Clone, Debug)]
pub struct LinkWriter {
    user: Arc<User>,
}

/// What a link's users share; the last one gone closes it.
struct User {
    shared: Arc<Shared>,
    grip: StreamGrip,
}

struct Shared {
    remote: String,
    inbound: Queue,
    outbound: Queue,
    closing: Notify,
}

/// The SSH session under a link.
pub(super) enum Session {
    Client(ClientSession),
    Server(ServerSession),
}

impl LinkReader {
    /// The next whole frame's body, without its length; none at a clean end. A call that is dropped
    /// loses nothing.
    ///
    /// # Errors
    /// [`LinkError::Lost`] and [`LinkError::Frame`]; every later call gives the same.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        let shared = &self.user.shared;
        let popped = shared.inbound.pop().await;
        self.user.resume_when_low();
        match popped {
            Ok(body) => Ok(Some(body)),
            Err(End::Clean) => Ok(None),
            Err(End::Frame(source)) => Err(LinkError::Frame { address: shared.remote.clone(), source }),
            Err(End::Lost(reason)) => Err(LinkError::Lost { address: shared.remote.clone(), reason }),
        }
    }
}

impl LinkWriter {
    /// Queues one frame, its length in front of it; never waits.
    ///
    /// # Errors
    /// [`LinkError::Closed`] once the link has ended, [`LinkError::Full`] once 64 MiB wait.
    pub fn send(&self, frame: Vec<u8>) -> Result<(), LinkError> {
        let shared = &self.user.shared;
        shared.outbound.push(frame, SEND_BYTES_MAX).map_err(|full| {
            let address = shared.remote.clone();
            match full {
                Some(bytes) => LinkError::Full { address, bytes },
                None => LinkError::Closed { address },
            }
        })
    }

    /// What waits on this side: frames, and what the socket has not taken.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.user.shared.outbound.bytes().saturating_add(self.user.grip.backlog())
    }

    /// Sends what is queued, for at most a second, then closes the connection. Returns at once;
    /// the reader comes to its end.
    pub fn close(&self) {
        self.user.close();
    }
}

impl Drop for LinkReader {
    fn drop(&mut self) {
        self.user.shared.inbound.clear();
        self.user.grip.resume();
    }
}

impl User {
    fn resume_when_low(&self) {
        if self.shared.inbound.bytes() < RECEIVE_BYTES_LOW {
            self.grip.resume();
        }
    }

    fn close(&self) {
        self.shared.outbound.finish(End::Clean);
        // A reader that is behind must not hold up what is still to be sent.
        self.shared.inbound.discard();
        self.grip.resume();
        self.shared.closing.notify_one();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for User {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("User").field("remote", &self.shared.remote).finish_non_exhaustive()
    }
}

/// Makes a link of an open channel and starts the task that carries it.
pub(super) fn start<M>(
    (read, write): (ChannelReadHalf, ChannelWriteHalf<M>),
    session: Session,
    stream: KillOnDrop,
    key: PublicKey,
    remote: String,
) -> SshLink
where
    M: From<(ChannelId, ChannelMsg)> + Send + Sync + 'static,
{
    let shared = Arc::new(Shared {
        remote: remote.clone(),
        inbound: Queue::default(),
        outbound: Queue::default(),
        closing: Notify::new(),
    });
    let user = Arc::new(User { shared: Arc::clone(&shared), grip: stream.0.clone() });
    let writer = write.make_writer();
    tokio::spawn(carry(shared, read, Box::pin(writer), session, stream));
    SshLink { key, remote, reader: LinkReader { user: Arc::clone(&user) }, writer: LinkWriter { user } }
}

/// Carries frames until either side ends the link. Whichever way it ends, the socket ends with it.
async fn carry(
    shared: Arc<Shared>,
    mut channel: ChannelReadHalf,
    writer: impl AsyncWrite + Unpin,
    session: Session,
    stream: KillOnDrop,
) {
    let end = tokio::select! {
        end = receive(&mut channel, &shared.inbound, &stream.0) => end,
        () = send(writer, &shared.outbound, &stream.0) => Some(End::Clean),
        () = async {
            shared.closing.notified().await;
            sleep(LINGER).await;
        } => Some(End::Clean),
    };
    shared.outbound.finish(End::Clean);
    let Some(end) = end else {
        return shared.inbound.finish(End::Lost(reason(session, &stream.0).await));
    };
    // Users see the end now; what follows is politeness.
    shared.inbound.finish(end);
    let farewell = async {
        session.disconnect().await;
        // The library's loop must not wait for room in a channel that nobody reads.
        while channel.wait().await.is_some() {}
        session.ended().await
    };
    let mut is_late = timeout(LINGER, farewell).await.is_err();
    if !is_late {
        // Killed now, unread bytes of the other side would reset the connection and undo what it has
        // not read yet.
        is_late = timeout(LINGER.saturating_mul(2), stream.0.ended()).await.is_err();
    }
    debug!(remote = %shared.remote, is_late, "a link has ended");
}

/// Cuts what comes into frames. Gives the end; none where the connection was lost.
async fn receive(channel: &mut ChannelReadHalf, inbound: &Queue, stream: &StreamGrip) -> Option<End> {
    let mut frames = FrameReader::default();
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Data { data }) => {
                frames.push(&data);
                loop {
                    match frames.next_frame() {
                        Ok(Some(body)) => {
                            // Never waits here: the library's loop would wait for this one, and
                            // write nothing meanwhile.
                            if inbound.push_beyond(body, RECEIVE_BYTES_MAX) {
                                pause(inbound, stream);
                            }
                        }
                        Ok(None) => break,
                        Err(error) => return Some(End::Frame(error)),
                    }
                }
            }
            Some(ChannelMsg::Eof | ChannelMsg::Close) if frames.held() > 0 => {
                return Some(End::Lost("it ended in the middle of a frame".to_owned()));
            }
            Some(ChannelMsg::Eof | ChannelMsg::Close) => return Some(End::Clean),
            // Requests on an open channel were answered by the session, if at all.
            Some(_) => {}
            None => return None,
        }
    }
}

/// Stops reading from the socket until the consumer is far enough.
fn pause(inbound: &Queue, stream: &StreamGrip) {
    stream.pause();
    // It may have taken all of it, or given up, just before.
    if inbound.bytes() < RECEIVE_BYTES_LOW || inbound.discards() {
        stream.resume();
    }
}

/// Writes frames until the link is closed on this side and all are written.
async fn send(mut writer: impl AsyncWrite + Unpin, outbound: &Queue, stream: &StreamGrip) {
    let mut bytes = Vec::with_capacity(WRITE_BYTES);
    while let Ok(frame) = outbound.pop().await {
        bytes.clear();
        let mut next = Some(Ok(frame));
        while let Some(Ok(frame)) = next {
            bytes.extend_from_slice(&frame);
            next = if bytes.len() < WRITE_BYTES { outbound.try_pop() } else { None };
        }
        stream.room().await;
        if !bytes.is_empty() && writer.write_all(&bytes).await.is_err() {
            // The receiving side finds out why.
            return pending().await;
        }
        bytes.shrink_to(WRITE_BYTES);
    }
    if writer.shutdown().await.is_err() {
        pending::<()>().await;
    }
}

/// Why a connection was lost. Takes the session: the library panics where its end is asked for twice.
async fn reason(session: Session, stream: &StreamGrip) -> String {
    let ended = timeout(Duration::from_millis(200), session.ended()).await.ok().flatten();
    stream.failure().or(ended).unwrap_or_else(|| "the other side closed the connection".to_owned())
}

impl Session {
    async fn disconnect(&self) {
        // One that is gone needs no farewell.
        let _gone = match self {
            Self::Client(session) => session.handle.disconnect(Disconnect::ByApplication, "", "").await.is_err(),
            Self::Server(session) => {
                session.handle().disconnect(Disconnect::ByApplication, String::new(), String::new()).await.is_err()
            }
        };
    }

    /// Waits for the session's end; gives what the library says of it.
    async fn ended(self) -> Option<String> {
        match self {
            Self::Client(session) => session.ended().await,
            Self::Server(session) => session.await.err().map(|error| error.to_string()),
        }
    }
}
