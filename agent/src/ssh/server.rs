//! The endpoint: it takes known keys to the one subsystem, and nobody anywhere else.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::{Algorithm, PublicKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, PublicKeyOffer, RunningSession, VerifiedPublicKey};
use russh::{Channel, ChannelId, Pty};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::SUBSYSTEM;
use super::client::fingerprint;
use super::failure::LinkError;
use super::link::{self, Session, SshLink};
use super::places::Places;
use super::settings::Settings;
use super::stream::{KillOnDrop, queued};
use crate::keys::HostKey;

/// Links that nobody has taken yet; more are closed.
const LINKS_WAITING_MAX: usize = 64;
/// How long to wait after the kernel could give no connection, for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

pub(super) type ServerSession = RunningSession<Door>;

/// Says whose keys are let in.
type Accepts = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// A listening SSH endpoint. Dropping it ends the listening, not the links.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    links: mpsc::Receiver<SshLink>,
    task: JoinHandle<()>,
}

/// What every connection needs to know.
struct House {
    settings: Settings,
    config: Arc<server::Config>,
    accepts: Accepts,
    links: mpsc::Sender<SshLink>,
}

/// One connection's way in.
pub(super) struct Door {
    remote: SocketAddr,
    accepts: Accepts,
    key: Option<PublicKey>,
    channel: Option<ChannelId>,
    is_open: bool,
    steps: mpsc::Sender<Step>,
}

enum Step {
    Channel(Channel<Msg>),
    Open(PublicKey),
}

impl Listener {
    /// Listens on `addr`, `0.0.0.0:8730` or `[::]:8730`; `accepts` is asked about each key that is
    /// offered, and again about each that has proved itself.
    ///
    /// # Errors
    /// [`LinkError::Listen`].
    pub async fn bind(addr: &str, identity: &HostKey, accepts: Accepts) -> Result<Self, LinkError> {
        Self::bind_with(addr, identity, accepts, Settings::default()).await
    }

    /// As [`Self::bind`], within other bounds.
    ///
    /// # Errors
    /// As [`Self::bind`].
    pub async fn bind_with(
        addr: &str,
        identity: &HostKey,
        accepts: Accepts,
        settings: Settings,
    ) -> Result<Self, LinkError> {
        let failed = |source| LinkError::Listen { address: addr.to_owned(), source };
        let listener = listen(addr, &settings).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (sender, links) = mpsc::channel(LINKS_WAITING_MAX);
        let config = settings.server(identity.private());
        let house = House { settings, config, accepts, links: sender };
        let task = tokio::spawn(admit(listener, Arc::new(house)));
        Ok(Self { address, links, task })
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The next authenticated link whose client opened our subsystem. A call that is dropped loses
    /// nothing.
    pub async fn accept(&mut self) -> SshLink {
        match self.links.recv().await {
            Some(link) => link,
            // Not as long as the task lives, which nothing but our own drop ends.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(addr: &str, settings: &Settings) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "it has no address");
    for address in lookup_host(addr).await? {
        let bound = settings.socket(address.is_ipv4()).and_then(|socket| {
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            socket.listen(1024)
        });
        match bound {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Takes connections for ever. One that cannot be had costs a pause, never the endpoint.
async fn admit(listener: TcpListener, house: Arc<House>) {
    let grace = house.settings.handshake.div_f64(8.0);
    let mut places = Places::new(house.settings.handshakes_max, grace);
    let mut failing = false;
    loop {
        let (socket, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if !failing {
                    warn!(%error, "no SSH connections can be taken for the moment");
                }
                failing = true;
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failing = false;
        if !places.make_room(remote.ip()) {
            debug!(%remote, "too many connections in their handshake; this one is closed");
            continue;
        }
        let task = tokio::spawn(receive(socket, remote, Arc::clone(&house)));
        places.take(remote.ip(), task.abort_handle());
    }
}

/// One connection, from its first byte to a link or its end.
async fn receive(socket: TcpStream, remote: SocketAddr, house: Arc<House>) {
    match timeout(house.settings.handshake, shake(socket, remote, &house)).await {
        Ok(Ok(Some(link))) => {
            if house.links.try_send(link).is_err() {
                warn!(%remote, "a link was closed because nobody took it");
            }
        }
        Ok(Ok(None)) => debug!(%remote, "an SSH connection ended without a link"),
        Ok(Err(error)) => debug!(%remote, %error, "an SSH handshake failed"),
        Err(_) => debug!(%remote, "an SSH handshake took too long"),
    }
}

/// From a connection to a link. Dropped half-way, it ends the socket and so the library's tasks.
async fn shake(socket: TcpStream, remote: SocketAddr, house: &House) -> Result<Option<SshLink>, russh::Error> {
    // Without it every small frame may wait 40 ms for its predecessor's acknowledgement.
    socket.set_nodelay(true)?;
    let (stream, grip) = queued(socket);
    let grip = KillOnDrop(grip);
    let (sender, mut steps) = mpsc::channel(2);
    let accepts = Arc::clone(&house.accepts);
    let door = Door { remote, accepts, key: None, channel: None, is_open: false, steps: sender };
    let session = server::run_stream(Arc::clone(&house.config), stream, door).await?;
    // The channel is kept here and not in the session's task: that one may wait for room in it, and
    // goes on only once it is dropped.
    let mut channel = None;
    while let Some(step) = steps.recv().await {
        match (step, channel.take()) {
            (Step::Channel(opened), _) => channel = Some(opened),
            (Step::Open(key), Some(opened)) => {
                let session = Session::Server(session);
                return Ok(Some(link::start(opened.split(), session, grip, key, remote.to_string())));
            }
            (Step::Open(_), None) => return Ok(None),
        }
    }
    Ok(None)
}

impl Door {
    fn lets_in(&self, key: &PublicKey, algorithm: &Algorithm) -> Auth {
        if *algorithm == Algorithm::Ed25519 && key.algorithm() == Algorithm::Ed25519 && (self.accepts)(key) {
            return Auth::Accept;
        }
        info!(remote = %self.remote, key = %fingerprint(key), "a key was refused: no peer has it");
        Auth::reject()
    }

    fn refuse(&self, channel: ChannelId, what: &str, session: &mut server::Session) -> Result<(), russh::Error> {
        debug!(remote = %self.remote, what, "refused");
        session.channel_failure(channel)
    }
}

impl server::Handler for Door {
    type Error = russh::Error;

    async fn auth_publickey_offered(&mut self, _: &str, offer: PublicKeyOffer<'_>) -> Result<Auth, russh::Error> {
        Ok(self.lets_in(offer.public_key, offer.algorithm))
    }

    async fn auth_publickey(&mut self, _: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, russh::Error> {
        let auth = self.lets_in(key.public_key, key.algorithm);
        if auth == Auth::Accept {
            self.key = Some(key.public_key.clone());
        }
        Ok(auth)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        // A second one is refused by dropping its reply, and so is every other kind of channel.
        if self.channel.is_none() {
            self.channel = Some(channel.id());
            if self.steps.try_send(Step::Channel(channel)).is_ok() {
                reply.accept().await;
            }
        }
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        let key = self.key.clone().filter(|_| name == SUBSYSTEM && self.channel == Some(channel) && !self.is_open);
        let Some(key) = key else { return self.refuse(channel, "subsystem", session) };
        self.is_open = true;
        session.channel_success(channel)?;
        // Nobody waits any more: the handshake's time is over, and with it the socket.
        self.steps.try_send(Step::Open(key)).map_err(|_| russh::Error::Disconnect)
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        _: &[(Pty, u32)],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.refuse(channel, "pty", session)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &str,
        _: &str,
        _: u32,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.refuse(channel, "x11", session)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        _: &str,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.refuse(channel, "env", session)
    }

    async fn shell_request(&mut self, channel: ChannelId, session: &mut server::Session) -> Result<(), russh::Error> {
        self.refuse(channel, "shell", session)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.refuse(channel, "exec", session)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        _: u32,
        _: u32,
        _: u32,
        _: u32,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        self.refuse(channel, "window-change", session)
    }
}
