//! Dialling: every address of a name, the other side's pinned key, our key, the subsystem.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use russh::client::{self, AuthResult, DisconnectReason, Handle};
use russh::keys::ssh_key::{HashAlg, PrivateKey, PublicKey};
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, ChannelMsg};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::SUBSYSTEM;
use super::failure::LinkError;
use super::link::{self, Session, SshLink};
use super::settings::Settings;
use super::stream::{KillOnDrop, queued};
use crate::keys::HostKey;

/// A client session, kept for as long as its link.
pub(super) struct ClientSession {
    pub(super) handle: Handle<Pin>,
    reason: Arc<OnceLock<String>>,
}

/// Checks that the other side is who it should be.
pub(super) struct Pin {
    pinned: Vec<PublicKey>,
    found: Arc<OnceLock<PublicKey>>,
    reason: Arc<OnceLock<String>>,
}

/// Opens a link to `host_port`, `host:8730` or `[::1]:8730`. The name is resolved anew and all its
/// addresses are tried; the other side's key must be one of `pinned`.
///
/// # Errors
/// [`LinkError`]: of several addresses, that of the one that came furthest.
pub async fn dial(host_port: &str, identity: &HostKey, pinned: &[PublicKey]) -> Result<SshLink, LinkError> {
    dial_with(host_port, identity, pinned, &Settings::default()).await
}

/// As [`dial`], within other bounds.
///
/// # Errors
/// As [`dial`].
pub async fn dial_with(
    host_port: &str,
    identity: &HostKey,
    pinned: &[PublicKey],
    settings: &Settings,
) -> Result<SshLink, LinkError> {
    let resolve = |source| LinkError::Resolve { address: host_port.to_owned(), source };
    let found = timeout(settings.handshake, lookup_host(host_port)).await;
    let addresses = found.unwrap_or_else(|elapsed| Err(elapsed.into())).map_err(resolve)?;
    let (mut tried, mut furthest) = (Vec::new(), None);
    for address in addresses {
        let socket = match connect(address, settings).await {
            Ok(socket) => socket,
            Err(reason) => {
                tried.push(format!("{address}: {reason}"));
                continue;
            }
        };
        let remote =
            if address.to_string() == host_port { host_port.to_owned() } else { format!("{host_port} ({address})") };
        let made = timeout(settings.handshake, shake(socket, &remote, identity, pinned, settings)).await;
        match made {
            Ok(Ok(link)) => return Ok(link),
            Ok(Err(error)) => furthest = Some(further(furthest, error)),
            Err(_) => {
                let slow = LinkError::Slow { address: remote, seconds: settings.handshake.as_secs() };
                furthest = Some(further(furthest, slow));
            }
        }
    }
    let unreachable = || {
        let tried = if tried.is_empty() { "it has no address".to_owned() } else { tried.join("; ") };
        LinkError::Unreachable { address: host_port.to_owned(), tried }
    };
    Err(furthest.unwrap_or_else(unreachable))
}

/// The error that says more to a person.
fn further(before: Option<LinkError>, error: LinkError) -> LinkError {
    let rank = |error: &LinkError| match error {
        LinkError::NoSubsystem { .. } => 3,
        LinkError::Rejected { .. } => 2,
        LinkError::WrongKey { .. } => 1,
        _ => 0,
    };
    match before {
        Some(before) if rank(&before) >= rank(&error) => before,
        _ => error,
    }
}

async fn connect(address: SocketAddr, settings: &Settings) -> Result<TcpStream, String> {
    let socket = settings.socket(address.is_ipv4()).map_err(|error| error.to_string())?;
    match timeout(settings.connect, socket.connect(address)).await {
        Ok(connected) => connected.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", settings.connect.as_secs())),
    }
}

/// From a connection to a link. Dropped half-way, it ends the socket and so the library's tasks.
async fn shake(
    socket: TcpStream,
    remote: &str,
    identity: &HostKey,
    pinned: &[PublicKey],
    settings: &Settings,
) -> Result<SshLink, LinkError> {
    let (stream, grip) = queued(socket);
    let grip = KillOnDrop(grip);
    let (found, reason) = (Arc::new(OnceLock::new()), Arc::new(OnceLock::new()));
    let pin = Pin { pinned: pinned.to_vec(), found: Arc::clone(&found), reason: Arc::clone(&reason) };
    let failed = |source| LinkError::Handshake { address: remote.to_owned(), source };
    let mut handle = client::connect_stream(settings.client(), stream, pin).await.map_err(|source| {
        // The library reports a refused key in more than one way.
        match found.get().filter(|found| !is_pinned(pinned, found)) {
            Some(found) => wrong_key(remote, pinned, found),
            None => failed(source),
        }
    })?;
    let own = identity.private();
    let rejected = || LinkError::Rejected { address: remote.to_owned(), ours: fingerprint(own.public_key()) };
    match authenticate(&mut handle, own).await {
        Ok(true) => {}
        Ok(false) => return Err(rejected()),
        Err(source) => return Err(failed(source)),
    }
    let mut channel = handle.channel_open_session().await.map_err(failed)?;
    if !open_subsystem(&mut channel).await.map_err(failed)? {
        return Err(LinkError::NoSubsystem { address: remote.to_owned() });
    }
    let key = found.get().cloned().ok_or(russh::Error::UnknownKey).map_err(failed)?;
    let session = Session::Client(ClientSession { handle, reason });
    Ok(link::start(channel.split(), session, grip, key, remote.to_owned()))
}

/// Comments are no part of a key.
fn is_pinned(pinned: &[PublicKey], key: &PublicKey) -> bool {
    pinned.iter().any(|pinned| pinned.key_data() == key.key_data())
}

async fn authenticate(handle: &mut Handle<Pin>, own: &PrivateKey) -> Result<bool, russh::Error> {
    let key = PrivateKeyWithHashAlg::new(Arc::new(own.clone()), None);
    match handle.authenticate_publickey("pleach", key).await? {
        AuthResult::Success => Ok(true),
        AuthResult::Failure { .. } => Ok(false),
    }
}

async fn open_subsystem(channel: &mut Channel<client::Msg>) -> Result<bool, russh::Error> {
    channel.request_subsystem(true, SUBSYSTEM).await?;
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => return Ok(true),
            Some(ChannelMsg::Failure | ChannelMsg::Close | ChannelMsg::Eof) => return Ok(false),
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            Some(_) => return Err(russh::Error::Inconsistent),
            None => return Err(russh::Error::Disconnect),
        }
    }
}

pub(super) fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn wrong_key(remote: &str, pinned: &[PublicKey], found: &PublicKey) -> LinkError {
    LinkError::WrongKey {
        address: remote.to_owned(),
        expected: pinned.iter().map(fingerprint).collect(),
        found: fingerprint(found),
    }
}

impl ClientSession {
    /// Waits for the session's end; gives what the library says of it.
    pub(super) async fn ended(self) -> Option<String> {
        let error = self.handle.await.err().map(|error| error.to_string());
        self.reason.get().cloned().or(error)
    }
}

impl client::Handler for Pin {
    type Error = russh::Error;

    async fn check_server_key(&mut self, server: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = server else { return Ok(false) };
        let _again = self.found.set(key.clone()).is_err();
        Ok(is_pinned(&self.pinned, key))
    }

    async fn disconnected(&mut self, reason: DisconnectReason<russh::Error>) -> Result<(), russh::Error> {
        let (text, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                (format!("it disconnected: {:?} {}", info.reason_code, info.message.escape_debug()), Ok(()))
            }
            DisconnectReason::Error(error) => (error.to_string(), Err(error)),
        };
        let _again = self.reason.set(text).is_err();
        result
    }
}
