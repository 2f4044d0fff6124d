//! The bounds of a link, and what the SSH library is told.

use std::borrow::Cow;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::{Algorithm, PrivateKey};
use russh::{Limits, MethodKind, MethodSet, Preferred, SshId, cipher, client, server};
use tokio::net::TcpSocket;

/// What each direction may have in flight: measured as enough for 146 MB/s over 50 ms.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// The SSH library calls larger packets an error.
const PACKET_BYTES: u32 = 65_535;
const IDENTITY: &str = "SSH-2.0-pleach";

/// The bounds of a link. The defaults are right; tests narrow them.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long one address may take to connect.
    pub connect: Duration,
    /// How long a handshake may take, from the connection to the open subsystem.
    pub handshake: Duration,
    /// How many connections may be in their handshake at once; for more, one of the address that has
    /// the most is closed.
    pub handshakes_max: usize,
    /// New session keys after so many bytes, at most 1 GiB.
    pub rekey_bytes: usize,
    /// The socket's buffers; the kernel chooses where there is none.
    pub socket_buffer: Option<u32>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            handshakes_max: 64,
            rekey_bytes: 1 << 30,
            socket_buffer: None,
        }
    }
}

impl Settings {
    fn limits(&self) -> Limits {
        let bytes = self.rekey_bytes.min(1 << 30);
        Limits::new(bytes, bytes, Duration::from_secs(3600))
    }

    fn preferred() -> Preferred {
        Preferred {
            key: Cow::Borrowed(&[Algorithm::Ed25519]),
            // Not in the library's list, and twice as fast as what it puts first.
            cipher: Cow::Borrowed(&[cipher::AES_128_GCM, cipher::AES_256_GCM, cipher::CHACHA20_POLY1305]),
            compression: Cow::Borrowed(&[russh::compression::NONE]),
            ..Preferred::DEFAULT
        }
    }

    pub(super) fn client(&self) -> Arc<client::Config> {
        Arc::new(client::Config {
            client_id: SshId::Standard(Cow::Borrowed(IDENTITY)),
            limits: self.limits(),
            window_size: WINDOW_BYTES,
            maximum_packet_size: PACKET_BYTES,
            channel_buffer_size: 100,
            preferred: Self::preferred(),
            inactivity_timeout: None,
            keepalive_interval: Some(Duration::from_secs(15)),
            keepalive_max: 3,
            nodelay: true,
            ..client::Config::default()
        })
    }

    pub(super) fn server(&self, key: &PrivateKey) -> Arc<server::Config> {
        Arc::new(server::Config {
            server_id: SshId::Standard(Cow::Borrowed(IDENTITY)),
            methods: MethodSet::from([MethodKind::PublicKey].as_slice()),
            auth_rejection_time: Duration::from_secs(1),
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![key.clone()],
            limits: self.limits(),
            window_size: WINDOW_BYTES,
            maximum_packet_size: PACKET_BYTES,
            channel_buffer_size: 100,
            preferred: Self::preferred(),
            max_auth_attempts: 3,
            inactivity_timeout: None,
            keepalive_interval: Some(Duration::from_secs(15)),
            keepalive_max: 3,
            nodelay: true,
            ..server::Config::default()
        })
    }

    /// A socket that can be connected or bound.
    pub(super) fn socket(&self, ipv4: bool) -> io::Result<TcpSocket> {
        let socket = if ipv4 { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_nodelay(true)?;
        if let Some(bytes) = self.socket_buffer {
            socket.set_send_buffer_size(bytes)?;
            socket.set_recv_buffer_size(bytes)?;
        }
        Ok(socket)
    }
}
