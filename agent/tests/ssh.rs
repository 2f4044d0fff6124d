//! The SSH transport over real sockets: what it carries, whom it lets in, how it ends.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use pleach_agent::keys::{self, HostKey};
use pleach_agent::ssh::{LinkError, LinkReader, LinkWriter, Listener, PublicKey, Settings, SshLink, dial, dial_with};
use russh::keys::PrivateKeyWithHashAlg;
use russh::{Channel, ChannelMsg, client, server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

const MIB: usize = 1024 * 1024;
/// What a sender lets wait.
const QUEUED_MAX: usize = 4 * MIB;

/// A node's key and the directory that holds it.
struct Node {
    dir: tempfile::TempDir,
    key: HostKey,
    public: PublicKey,
}

impl Node {
    fn new(name: &str) -> Self {
        // A panic of a background task would go unseen.
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                before(panic);
                if std::thread::current().name() == Some("tokio-rt-worker") {
                    std::process::exit(101);
                }
            }));
        });
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::load_or_create(dir.path(), name).unwrap();
        let public = PublicKey::from_openssh(&key.public_line(name)).unwrap();
        Self { dir, key, public }
    }

    /// Lets the given nodes in, on a port of 127.0.0.1.
    async fn listens_to(&self, known: &[&Self], settings: Settings) -> Listener {
        let known: Vec<_> = known.iter().map(|node| node.public.key_data().clone()).collect();
        let accepts = Arc::new(move |key: &PublicKey| known.contains(key.key_data()));
        Listener::bind_with("127.0.0.1:0", &self.key, accepts, settings).await.unwrap()
    }
}

/// Two nodes, one listening.
struct Pair {
    a: Node,
    b: Node,
    listener: Listener,
    settings: Settings,
}

impl Pair {
    async fn new(settings: Settings) -> Self {
        let (a, b) = (Node::new("a"), Node::new("b"));
        let listener = b.listens_to(&[&a], settings.clone()).await;
        Self { a, b, listener, settings }
    }

    fn address(&self) -> String {
        self.listener.local_addr().to_string()
    }

    /// A link through `address`: the dialler's end, then the listener's.
    async fn link_through(&mut self, address: &str) -> (SshLink, SshLink) {
        let pinned = [self.b.public.clone()];
        let (dialled, accepted) = within(30, async {
            tokio::join!(dial_with(address, &self.a.key, &pinned, &self.settings), self.listener.accept())
        })
        .await;
        (dialled.unwrap(), accepted)
    }

    async fn link(&mut self) -> (SshLink, SshLink) {
        let address = self.address();
        self.link_through(&address).await
    }
}

/// Fails where something hangs.
async fn within<T>(seconds: u64, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), future).await.expect("it hangs")
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_le_bytes(), body].concat()
}

/// A body that is wrong anywhere but in its place.
fn numbered(number: u64, length: usize) -> Vec<u8> {
    let mut body = number.to_le_bytes().repeat(length.div_ceil(8));
    body.truncate(length);
    body
}

/// Sends numbered frames, never more than a little ahead.
async fn send_all(writer: LinkWriter, frames: u64, length: usize) {
    for number in 0..frames {
        while writer.queued_bytes() > QUEUED_MAX {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        writer.send(framed(&numbered(number, length))).unwrap();
    }
}

async fn take_all(mut reader: LinkReader, frames: u64, length: usize) -> LinkReader {
    for number in 0..frames {
        let body = reader.next().await.unwrap().expect("more frames were sent");
        assert!(body == numbered(number, length), "frame {number} is another, of {} bytes", body.len());
    }
    reader
}

/// So many bytes each way at once; how long it took.
async fn both_ways(limit: u64, (a, b): (SshLink, SshLink), bytes: usize) -> Duration {
    const LENGTH: usize = 60 * 1024;
    let frames = u64::try_from(bytes / LENGTH).unwrap() + 1;
    let start = Instant::now();
    let writers = (a.writer.clone(), b.writer.clone());
    let mut work = JoinSet::new();
    work.spawn(send_all(a.writer, frames, LENGTH));
    work.spawn(send_all(b.writer, frames, LENGTH));
    work.spawn(async move { drop(take_all(a.reader, frames, LENGTH).await) });
    work.spawn(async move { drop(take_all(b.reader, frames, LENGTH).await) });
    within(limit, async {
        while let Some(done) = work.join_next().await {
            done.unwrap();
        }
    })
    .await;
    drop(writers);
    start.elapsed()
}

/// A TCP proxy in front of an address. Dropped, it drops its sockets.
struct Proxy {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// `rate`: bytes a second each way.
    fn new(to: SocketAddr, rate: Option<f64>) -> Self {
        let small = |socket: &TcpSocket| {
            socket.set_recv_buffer_size(32 * 1024).unwrap();
            socket.set_send_buffer_size(32 * 1024).unwrap();
        };
        let socket = TcpSocket::new_v4().unwrap();
        small(&socket);
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            // Dropped with this task, and the sockets with it.
            let mut pumps = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let socket = TcpSocket::new_v4().unwrap();
                small(&socket);
                let far = socket.connect(to).await.unwrap();
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                pumps.spawn(pump(near_read, far_write, rate));
                pumps.spawn(pump(far_read, near_write, rate));
            }
        });
        Self { address, task }
    }
}

/// A token bucket of 10 ms between two sockets.
async fn pump(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, rate: Option<f64>) {
    let mut buffer = vec![0; 16 * 1024];
    let mut due = tokio::time::Instant::now();
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if let Some(rate) = rate {
            let now = tokio::time::Instant::now();
            due = due.max(now - Duration::from_millis(10)) + Duration::from_secs_f64(count as f64 / rate);
            tokio::time::sleep_until(due).await;
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

// ---- What it carries ----

#[tokio::test(flavor = "multi_thread")]
async fn frames_arrive_whole_and_in_order_both_ways() {
    let mut pair = Pair::new(Settings::default()).await;
    let (a, b) = pair.link().await;
    assert_eq!(a.key.key_data(), pair.b.public.key_data());
    assert_eq!(b.key.key_data(), pair.a.public.key_data());
    assert_eq!(a.remote, pair.address());
    assert!(b.remote.starts_with("127.0.0.1:"), "{}", b.remote);
    let length = |number: u64| usize::try_from(number % 97).unwrap();
    for number in 0..20_000 {
        a.writer.send(framed(&numbered(number, length(number)))).unwrap();
        b.writer.send(framed(&numbered(number + 7, length(number + 7)))).unwrap();
    }
    let (mut from_a, mut from_b) = (b.reader, a.reader);
    within(60, async {
        for number in 0..20_000 {
            assert_eq!(from_a.next().await.unwrap(), Some(numbered(number, length(number))));
            assert_eq!(from_b.next().await.unwrap(), Some(numbered(number + 7, length(number + 7))));
        }
    })
    .await;
    // The longest frame there is, and one in pieces.
    a.writer.send(framed(&numbered(1, 256 * 1024))).unwrap();
    let whole = framed(b"in pieces");
    for piece in whole.chunks(2) {
        a.writer.send(piece.to_vec()).unwrap();
    }
    assert_eq!(within(10, from_a.next()).await.unwrap(), Some(numbered(1, 256 * 1024)));
    assert_eq!(within(10, from_a.next()).await.unwrap(), Some(b"in pieces".to_vec()));
    assert_eq!(a.writer.queued_bytes(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_for_the_next_frame_loses_none() {
    let mut pair = Pair::new(Settings::default()).await;
    let (a, mut b) = pair.link().await;
    let sending = tokio::spawn(send_all(a.writer.clone(), 2000, 500));
    within(60, async {
        let mut number = 0;
        while number < 2000 {
            tokio::select! {
                biased;
                () = tokio::task::yield_now() => {}
                body = b.reader.next() => {
                    assert_eq!(body.unwrap(), Some(numbered(number, 500)));
                    number += 1;
                }
            }
        }
    })
    .await;
    sending.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_both_ways_passes_small_socket_buffers() {
    let mut pair = Pair::new(Settings { socket_buffer: Some(64 * 1024), ..Settings::default() }).await;
    let link = pair.link().await;
    let took = both_ways(120, link, 64 * MIB).await;
    println!("64 MiB each way, 64 KiB socket buffers: {took:?}");
}

/// Bulk both ways at once over a slow line.
async fn slow_line(limit: u64, bytes: usize) -> Duration {
    let mut pair = Pair::new(Settings { socket_buffer: Some(64 * 1024), ..Settings::default() }).await;
    let proxy = Proxy::new(pair.listener.local_addr(), Some(20e6 / 8.0));
    let link = pair.link_through(&proxy.address.to_string()).await;
    both_ways(limit, link, bytes).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_both_ways_passes_a_slow_line() {
    let took = slow_line(60, 8 * MIB).await;
    println!("8 MiB each way at 20 Mbit/s: {took:?}");
    assert!(took > Duration::from_secs(3), "the proxy did not slow it down: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_bulk_both_ways_passes_a_slow_line() {
    let took = slow_line(180, 64 * MIB).await;
    println!("64 MiB each way at 20 Mbit/s: {took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_session_keys_disturb_no_bulk() {
    let mut pair = Pair::new(Settings { rekey_bytes: MIB, ..Settings::default() }).await;
    let link = pair.link().await;
    let took = both_ways(120, link, 32 * MIB).await;
    println!("32 MiB each way, new keys every MiB: {took:?}");
}

// ---- Whom it reaches and lets in ----

/// The error of a dial to `address`, which must not come to a link.
async fn refused(address: &str, from: &Node, pinned: &[&Node], settings: &Settings) -> LinkError {
    let pinned: Vec<_> = pinned.iter().map(|node| node.public.clone()).collect();
    within(30, dial_with(address, &from.key, &pinned, settings)).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_than_the_pinned_one_is_named() {
    let pair = Pair::new(Settings::default()).await;
    let (other, third) = (Node::new("other"), Node::new("third"));
    let error = refused(&pair.address(), &pair.a, &[&other, &third], &pair.settings).await;
    let LinkError::WrongKey { address, expected, found } = &error else { panic!("{error}") };
    assert_eq!(*address, pair.address());
    assert_eq!(*expected, [other.key.fingerprint(), third.key.fingerprint()]);
    assert_eq!(*found, pair.b.key.fingerprint());
    let text = error.to_string();
    assert!(text.contains(&other.key.fingerprint()) && text.contains(&pair.b.key.fingerprint()), "{text}");
    // Nobody pinned is nobody trusted; one of several is enough.
    let error = refused(&pair.address(), &pair.a, &[], &pair.settings).await;
    assert!(matches!(error, LinkError::WrongKey { .. }), "{error}");
    let pinned = [other.public.clone(), pair.b.public.clone()];
    within(30, dial(&pair.address(), &pair.a.key, &pinned)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_key_is_rejected_and_named() {
    let mut pair = Pair::new(Settings::default()).await;
    let stranger = Node::new("stranger");
    for _ in 0..3 {
        let error = refused(&pair.address(), &stranger, &[&pair.b], &pair.settings).await;
        let LinkError::Rejected { address, ours } = &error else { panic!("{error}") };
        assert_eq!((address, ours), (&pair.address(), &stranger.key.fingerprint()));
    }
    // The endpoint goes on, and only the known one comes out of it.
    let (_a, b) = pair.link().await;
    assert_eq!(b.key.key_data(), pair.a.public.key_data());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_there_is_named() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let settings = Settings::default();
    // A bound socket that does not listen keeps the port free of everybody else.
    let bound = TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = bound.local_addr().unwrap();
    let error = refused(&address.to_string(), &a, &[&b], &settings).await;
    assert!(matches!(&error, LinkError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
    // Every address of the name is tried and told.
    let name = format!("localhost:{}", address.port());
    let error = refused(&name, &a, &[&b], &settings).await;
    let LinkError::Unreachable { address, tried } = &error else { panic!("{error}") };
    assert_eq!(*address, name);
    for address in name.to_socket_addrs().unwrap() {
        assert!(tried.contains(&address.to_string()), "{address} is not in {tried}");
    }
    for unknown in ["no-such-host.invalid:1", "no port", ""] {
        let error = refused(unknown, &a, &[&b], &settings).await;
        assert!(matches!(&error, LinkError::Resolve { address, .. } if address == unknown), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_leads_to_the_address_that_listens() {
    let mut pair = Pair::new(Settings::default()).await;
    let name = format!("localhost:{}", pair.listener.local_addr().port());
    let (a, _b) = pair.link_through(&name).await;
    assert_eq!(a.remote, format!("{name} ({})", pair.listener.local_addr()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_cannot_be_is_named() {
    let pair = Pair::new(Settings::default()).await;
    let again = Listener::bind(&pair.address(), &pair.a.key, Arc::new(|_| true)).await;
    let error = again.unwrap_err();
    assert!(matches!(&error, LinkError::Listen { address, .. } if *address == pair.address()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_server_is_given_up() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let settings = Settings { handshake: Duration::from_secs(1), ..Settings::default() };
    let start = Instant::now();
    let pinned = [&b];
    let (error, socket) = tokio::join!(refused(&address, &a, &pinned, &settings), silent.accept());
    assert!(matches!(&error, LinkError::Slow { address: of, seconds: 1 } if *of == address), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    // Nothing of it stays open.
    let mut rest = Vec::new();
    let _reset = within(5, socket.unwrap().0.read_to_end(&mut rest)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_speaks_no_ssh_is_named() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    for answer in ["", "HTTP/1.1 400 Bad Request\r\n\r\n", "SSH-2.0-x\r\n\0\0\0\x0c\x0agarbage!!!!", "SSH-1.5-old\r\n"]
    {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = server.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let (mut socket, _) = server.accept().await.unwrap();
            socket.write_all(answer.as_bytes()).await.unwrap();
            socket.shutdown().await.unwrap();
            let mut rest = Vec::new();
            let _reset = socket.read_to_end(&mut rest).await;
        });
        let error = refused(&address, &a, &[&b], &Settings::default()).await;
        assert!(matches!(&error, LinkError::Handshake { address: of, .. } if *of == address), "{answer:?}: {error}");
        within(5, serving).await.unwrap();
    }
}

/// An SSH server that takes every key and offers nothing.
struct Bare;

impl server::Handler for Bare {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: server::VerifiedPublicKey<'_>,
    ) -> Result<server::Auth, russh::Error> {
        Ok(server::Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<server::Msg>,
        reply: server::ChannelOpenHandle,
        _: &mut server::Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: russh::ChannelId,
        _: &str,
        session: &mut server::Session,
    ) -> Result<(), russh::Error> {
        session.channel_failure(channel)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_the_subsystem_is_named() {
    let (a, b) = (Node::new("a"), Node::new("b"));
    let config = server::Config { keys: vec![b.private()], ..server::Config::default() };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let session = server::run_stream(Arc::new(config), socket, Bare).await.unwrap();
        let _gone = session.await;
    });
    let error = refused(&address, &a, &[&b], &Settings::default()).await;
    assert!(matches!(&error, LinkError::NoSubsystem { address: of } if *of == address), "{error}");
    // The dialler took its socket with it.
    within(5, serving).await.unwrap();
}

/// Kills what it holds at the end of its test.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _gone = self.0.wait();
    }
}

/// Runs only where OpenSSH's server is installed.
#[tokio::test(flavor = "multi_thread")]
async fn sshd_is_told_from_an_agent() {
    let sshd = Path::new("/usr/sbin/sshd");
    if !sshd.exists() {
        return println!("skipped: no sshd here");
    }
    let (a, b) = (Node::new("a"), Node::new("b"));
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let _server = Child(
        Command::new(sshd)
            .args(["-D", "-e", "-f", "/dev/null", "-o", "PidFile=none", "-o", "UsePAM=no"])
            .args(["-o", &format!("ListenAddress={address}")])
            .arg("-h")
            .arg(keys::path_in(b.dir.path()))
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    within(20, async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let error = refused(&address.to_string(), &a, &[&b], &Settings::default()).await;
    assert!(matches!(error, LinkError::Rejected { .. } | LinkError::NoSubsystem { .. }), "{error}");
}

/// Runs only where OpenSSH's client is installed.
#[tokio::test(flavor = "multi_thread")]
async fn an_openssh_client_gets_the_subsystem_and_no_shell() {
    if Command::new("ssh").arg("-V").stderr(Stdio::null()).status().is_err() {
        return println!("skipped: no ssh here");
    }
    let mut pair = Pair::new(Settings::default()).await;
    let port = pair.listener.local_addr().port().to_string();
    let ssh = |what: &[&str]| {
        let mut command = Command::new("ssh");
        command.args(["-F", "none", "-T", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-p", &port]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.arg("-i").arg(keys::path_in(pair.a.dir.path())).args(what);
        Child(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    };
    for refused in [&["x@127.0.0.1"][..], &["x@127.0.0.1", "true"], &["-s", "x@127.0.0.1", "sftp"]] {
        let mut client = ssh(refused);
        let said = within(20, rest_of(client.0.stdout.take().unwrap())).await;
        assert!(said.is_empty() && !client.0.wait().unwrap().success(), "{refused:?}: {said:?}");
    }
    let mut client = ssh(&["-s", "x@127.0.0.1", "pleach"]);
    let mut link = within(20, pair.listener.accept()).await;
    client.0.stdin.as_mut().unwrap().write_all(&framed(b"from ssh")).unwrap();
    assert_eq!(within(10, link.reader.next()).await.unwrap(), Some(b"from ssh".to_vec()));
    link.writer.send(framed(b"to ssh")).unwrap();
    let mut output = client.0.stdout.take().unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut seen = vec![0; framed(b"to ssh").len()];
        output.read_exact(&mut seen).unwrap();
        (seen, output)
    });
    // It writes nothing more out once it is told of the end: so first this, then the end.
    let (seen, output) = within(10, reading).await.unwrap();
    assert_eq!(seen, framed(b"to ssh"));
    link.writer.close();
    assert!(within(10, rest_of(output)).await.is_empty());
}

/// All that a child says until it ends.
async fn rest_of(mut output: impl Read + Send + 'static) -> Vec<u8> {
    let reading = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).unwrap();
        rest
    });
    reading.await.unwrap()
}

/// A client of the library itself, that takes every server.
struct Bold;

impl client::Handler for Bold {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &russh::keys::PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

impl Node {
    fn private(&self) -> russh::keys::PrivateKey {
        russh::keys::load_secret_key(keys::path_in(self.dir.path()), None).unwrap()
    }

    async fn bold(address: SocketAddr) -> client::Handle<Bold> {
        within(20, client::connect(Arc::new(client::Config::default()), address, Bold)).await.unwrap()
    }

    async fn proves_itself(&self, session: &mut client::Handle<Bold>) -> bool {
        let key = PrivateKeyWithHashAlg::new(Arc::new(self.private()), None);
        within(20, session.authenticate_publickey("root", key)).await.unwrap().success()
    }
}

/// What is said to the request that was just made.
async fn answer(channel: &mut Channel<client::Msg>) -> bool {
    loop {
        match within(10, channel.wait()).await {
            Some(ChannelMsg::Success) => return true,
            Some(ChannelMsg::Failure) => return false,
            Some(ChannelMsg::WindowAdjusted { .. }) => {}
            other => panic!("no answer but {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_offers_nothing_else() {
    let mut pair = Pair::new(Settings::default()).await;
    let address = pair.listener.local_addr();
    let mut session = Node::bold(address).await;
    for authentication in [
        within(10, session.authenticate_none("root")).await.unwrap(),
        within(10, session.authenticate_password("root", "root")).await.unwrap(),
    ] {
        let client::AuthResult::Failure { remaining_methods, .. } = authentication else { panic!("let in") };
        let methods: BTreeSet<String> = remaining_methods.iter().map(String::from).collect();
        assert_eq!(methods, BTreeSet::from(["publickey".to_owned()]));
    }
    assert!(pair.a.proves_itself(&mut session).await);
    assert!(within(10, session.tcpip_forward("127.0.0.1", 0)).await.is_err());
    assert!(within(10, session.streamlocal_forward("/tmp/x")).await.is_err());
    assert!(within(10, session.channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1)).await.is_err());
    assert!(within(10, session.channel_open_direct_streamlocal("/run/x")).await.is_err());
    let mut channel = within(10, session.channel_open_session()).await.unwrap();
    assert!(within(10, session.channel_open_session()).await.is_err(), "a second channel");
    for opened in [false, true] {
        channel.request_shell(true).await.unwrap();
        assert!(!answer(&mut channel).await, "shell");
        channel.exec(true, "true").await.unwrap();
        assert!(!answer(&mut channel).await, "exec");
        channel.request_subsystem(true, "sftp").await.unwrap();
        assert!(!answer(&mut channel).await, "sftp");
        channel.request_pty(true, "xterm", 80, 24, 0, 0, &[]).await.unwrap();
        assert!(!answer(&mut channel).await, "pty");
        channel.set_env(true, "LD_PRELOAD", "x").await.unwrap();
        assert!(!answer(&mut channel).await, "env");
        channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", "00", 0).await.unwrap();
        assert!(!answer(&mut channel).await, "x11");
        channel.request_subsystem(true, "pleach").await.unwrap();
        assert_eq!(answer(&mut channel).await, !opened, "pleach");
    }
    assert!(within(10, session.channel_open_session()).await.is_err(), "a second channel");
    let mut link = within(10, pair.listener.accept()).await;
    assert_eq!(link.key.key_data(), pair.a.public.key_data());
    channel.data_bytes(framed(b"still there")).await.unwrap();
    assert_eq!(within(10, link.reader.next()).await.unwrap(), Some(b"still there".to_vec()));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_opens_a_channel_without_a_key() {
    let pair = Pair::new(Settings::default()).await;
    let stranger = Node::new("stranger");
    let mut session = Node::bold(pair.listener.local_addr()).await;
    assert!(!stranger.proves_itself(&mut session).await);
    assert!(within(10, session.channel_open_session()).await.is_err());
}

/// Connects from another address of this host and says nothing until it is thrown out, for ever.
async fn loiter(address: SocketAddr, first: oneshot::Sender<()>) {
    let mut first = Some(first);
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let Ok(mut socket) = socket.connect(address).await else { continue };
        first.take().map(|first| first.send(()));
        let mut rest = Vec::new();
        let _reset = socket.read_to_end(&mut rest).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loiterers_do_not_keep_a_known_key_out() {
    let settings = Settings { handshakes_max: 4, ..Settings::default() };
    let mut pair = Pair::new(settings).await;
    let mut loiterers = JoinSet::new();
    for _ in 0..16 {
        let (sender, first) = oneshot::channel();
        loiterers.spawn(loiter(pair.listener.local_addr(), sender));
        within(10, first).await.unwrap();
    }
    // The dialler comes from another address than they do, and needs one try.
    for _ in 0..5 {
        let (a, mut b) = pair.link().await;
        a.writer.send(framed(b"in")).unwrap();
        assert_eq!(within(10, b.reader.next()).await.unwrap(), Some(b"in".to_vec()));
    }
    loiterers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_say_nothing_are_thrown_out() {
    let settings = Settings { handshake: Duration::from_secs(1), handshakes_max: 4, ..Settings::default() };
    let mut pair = Pair::new(settings).await;
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(pair.listener.local_addr()).await.unwrap());
    }
    let mut rest = Vec::new();
    for mut socket in silent {
        let _reset = within(10, socket.read_to_end(&mut rest)).await;
    }
    assert!(rest.starts_with(b"SSH-2.0-pleach\r\n"), "{rest:?}");
    pair.link().await;
}

// ---- How it ends ----

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_connection_is_lost_on_both_sides() {
    let mut pair = Pair::new(Settings::default()).await;
    let proxy = Proxy::new(pair.listener.local_addr(), None);
    let (mut a, mut b) = pair.link_through(&proxy.address.to_string()).await;
    a.writer.send(framed(b"one")).unwrap();
    assert_eq!(within(10, b.reader.next()).await.unwrap(), Some(b"one".to_vec()));
    drop(proxy);
    for end in [&mut a, &mut b] {
        for _ in 0..2 {
            let error = within(10, end.reader.next()).await.unwrap_err();
            let LinkError::Lost { address, reason } = &error else { panic!("{error}") };
            assert_eq!(*address, end.remote);
            assert!(!reason.is_empty());
        }
        let error = end.writer.send(framed(b"two")).unwrap_err();
        assert!(matches!(error, LinkError::Closed { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_under_load_is_lost_on_both_sides() {
    let mut pair = Pair::new(Settings::default()).await;
    let proxy = Proxy::new(pair.listener.local_addr(), Some(4e6));
    let (a, b) = pair.link_through(&proxy.address.to_string()).await;
    let mut work = JoinSet::new();
    for mut link in [a, b] {
        work.spawn(async move {
            while link.writer.queued_bytes() < QUEUED_MAX {
                link.writer.send(framed(&[7; 60_000])).unwrap();
            }
            // Something came, so that the cut falls into the middle.
            assert!(link.reader.next().await.unwrap().is_some());
            link
        });
    }
    let links = within(20, async { [work.join_next().await, work.join_next().await] }).await;
    drop(proxy);
    for link in links {
        let mut link = link.unwrap().unwrap();
        let error = within(10, async {
            loop {
                if let Err(error) = link.reader.next().await {
                    return error;
                }
            }
        })
        .await;
        assert!(matches!(error, LinkError::Lost { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_delivers_what_is_queued() {
    for from_dialler in [true, false] {
        let mut pair = Pair::new(Settings::default()).await;
        let (a, b) = pair.link().await;
        let (mut closing, other) = if from_dialler { (a, b) } else { (b, a) };
        for number in 0..2500 {
            closing.writer.send(framed(&numbered(number, 4000))).unwrap();
        }
        closing.writer.close();
        assert!(matches!(closing.writer.send(framed(b"late")), Err(LinkError::Closed { .. })));
        let mut rest = within(20, take_all(other.reader, 2500, 4000)).await;
        assert_eq!(within(10, rest.next()).await.unwrap(), None);
        assert_eq!(within(10, rest.next()).await.unwrap(), None);
        assert_eq!(within(10, closing.reader.next()).await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_link_delivers_what_is_queued() {
    let mut pair = Pair::new(Settings::default()).await;
    let (a, b) = pair.link().await;
    for number in 0..100 {
        a.writer.send(framed(&numbered(number, 4000))).unwrap();
    }
    drop(a);
    let mut rest = within(20, take_all(b.reader, 100, 4000)).await;
    assert_eq!(within(10, rest.next()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_link_that_nobody_reads_ends_it() {
    let mut pair = Pair::new(Settings::default()).await;
    let (mut a, b) = pair.link().await;
    while b.writer.send(framed(&[1; 60_000])).is_ok() {}
    while a.writer.send(framed(&[2; 60_000])).is_ok() {}
    a.writer.close();
    within(10, async { while let Ok(Some(_)) = a.reader.next().await {} }).await;
    let mut b = b;
    within(20, async { while let Ok(Some(_)) = b.reader.next().await {} }).await;
    assert!(matches!(b.writer.send(framed(b"late")), Err(LinkError::Closed { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_costs_bounded_memory() {
    let mut pair = Pair::new(Settings::default()).await;
    let (mut a, b) = pair.link().await;
    let (mut sent, mut waiting) = (0, 0);
    // As much as it takes, until nothing moves any more.
    within(60, async {
        let mut moved = Instant::now();
        while moved.elapsed() < Duration::from_secs(1) {
            match a.writer.send(framed(&numbered(sent, 60_000))) {
                Ok(()) => sent += 1,
                Err(LinkError::Full { bytes, .. }) => assert!((64 * MIB..65 * MIB).contains(&bytes), "{bytes}"),
                Err(error) => panic!("{error}"),
            }
            if a.writer.queued_bytes() != waiting {
                (waiting, moved) = (a.writer.queued_bytes(), Instant::now());
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let gone = usize::try_from(sent).unwrap() * 60_000 - waiting.min(64 * MIB);
    println!("a peer that does not read: {} MiB wait here, {} MiB went there", waiting / MIB, gone / MIB);
    assert!(waiting < 110 * MIB && gone < 110 * MIB, "{waiting} here, {gone} there");
    // Its own words still come.
    let words = tokio::spawn(send_all(b.writer.clone(), 200, 60_000));
    a.reader = within(20, take_all(a.reader, 200, 60_000)).await;
    words.await.unwrap();
    // Once it reads, all comes.
    drop(within(60, take_all(b.reader, sent, 60_000)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_beyond_the_limit_ends_the_link() {
    for lie in [framed(&[0; 256 * 1024 + 1]), vec![255; 4]] {
        let mut pair = Pair::new(Settings::default()).await;
        let (mut a, mut b) = pair.link().await;
        a.writer.send(framed(b"good")).unwrap();
        a.writer.send(lie).unwrap();
        assert_eq!(within(10, b.reader.next()).await.unwrap(), Some(b"good".to_vec()));
        for _ in 0..2 {
            let error = within(10, b.reader.next()).await.unwrap_err();
            assert!(matches!(error, LinkError::Frame { .. }), "{error}");
        }
        assert!(matches!(within(10, a.reader.next()).await, Ok(None) | Err(LinkError::Lost { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_within_a_frame_is_no_clean_end() {
    let mut pair = Pair::new(Settings::default()).await;
    let (a, mut b) = pair.link().await;
    let mut half = framed(b"whole");
    half.truncate(6);
    a.writer.send(half).unwrap();
    a.writer.close();
    let error = within(10, b.reader.next()).await.unwrap_err();
    assert!(matches!(error, LinkError::Lost { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn links_outlive_their_endpoint() {
    let mut pair = Pair::new(Settings::default()).await;
    let (a, mut b) = pair.link().await;
    let address = pair.address();
    drop(pair.listener);
    a.writer.send(framed(b"on")).unwrap();
    assert_eq!(within(10, b.reader.next()).await.unwrap(), Some(b"on".to_vec()));
    let error = refused(&address, &pair.a, &[&pair.b], &pair.settings).await;
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
}
