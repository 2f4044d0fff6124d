//! One peer: dialling it, being dialled by it, and one session at a time with it.
//!
//! A task for each peer. Between sessions it waits until it is dialled, or dials by itself after a
//! pause that grows with the time the peer was away. What the session says goes to the owners of
//! the trees, what they say comes back (`peer/conversation.rs`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pleach_protocol::version::NodeId;
use pleach_protocol::wire::Hello;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{sleep, timeout};

use crate::bandwidth::BandwidthLimit;
use crate::compress::Compress;
use crate::keys::HostKey;
use crate::machine::{lock, random_number};
use crate::owner::Event;
use crate::push::Gate;
use crate::ssh::{LinkError, PublicKey, SshLink, dial};

mod conversation;

use conversation::End;

/// The pause before a peer is dialled again is this part of the time that it was away …
const PAUSE_PART: u32 = 60;
/// … at least and at most so long, before it is drawn between half and all of it.
const PAUSE_MIN: Duration = Duration::from_millis(300);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A peer that could not be dialled is called unreachable after so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same where the peer paused this node: a wait goes by what was said last.
const PAUSED_MAX: Duration = Duration::from_secs(2);
/// How long a node with the lower key lets its own dial go on when it is dialled meanwhile.
const OWN_DIAL_GRACE: Duration = Duration::from_secs(1);
/// What one node is told of another that has its key. Source: CONTRACT.md, words.
pub(crate) const TWO_NODES: &str = "two nodes use this key: `pleach key --new` on the clone";

/// What a node is told that was paused by its peer.
pub(crate) const PAUSED_THERE: &str = "it is paused there";

/// This node, as its peers' tasks know it.
#[derive(Debug)]
pub struct Us {
    /// Its id.
    pub node: NodeId,
    /// Its display name.
    pub name: String,
    /// The bits of this start.
    pub start: u64,
    /// Its key.
    pub key: HostKey,
    /// Numbers sessions.
    pub sessions: AtomicU64,
}

/// A peer, as the config has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerSetup {
    /// Its local name.
    pub name: String,
    /// Its id.
    pub node: NodeId,
    /// Its key.
    pub key: PublicKey,
    /// Where it listens, `host:port`, tried in order; none where it dials in.
    pub addresses: Vec<String>,
    /// The trees that it takes, in the order of a session's numbers.
    pub trees: Vec<String>,
    /// How fast it is sent to.
    pub bandwidth: BandwidthLimit,
    /// Whether what it is sent is compressed.
    pub compress: Compress,
}

/// A link whose first frame was read.
#[derive(Debug)]
pub struct Greeted {
    /// The link.
    pub link: SshLink,
    /// The first frame's body.
    pub body: Vec<u8>,
    /// What it says.
    pub hello: Hello,
}

/// What a peer's task is told.
#[derive(Debug)]
pub enum PeerEvent {
    /// The peer dialled.
    Link(Box<Greeted>),
    /// Somebody paused it, or ended the pause.
    Pause(bool),
    /// Trees have new owners.
    Owners(Vec<Sender<Event>>),
    /// The node stops, or the peer is not in the config any more.
    Stop,
}

/// Whether and why not there is a session.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PeerState {
    /// There is one.
    Connected,
    /// Not yet, or it is being made anew.
    #[default]
    Connecting,
    /// It cannot be reached.
    Unreachable,
    /// One of the two nodes does not want the other.
    Refused,
    /// Somebody paused it here; or this node there, as the error says.
    Paused,
}

/// How a peer is, for whoever shows it.
#[derive(Clone, Debug, Default)]
pub struct PeerStatus {
    /// Whether there is a session.
    pub state: PeerState,
    /// Why there is none, or what is wrong.
    pub error: Option<String>,
    /// How long the newest question took.
    pub round_trip: Option<Duration>,
    /// When it was heard last.
    pub seen: Option<Instant>,
}

/// The task's state. See the module.
#[derive(Debug)]
pub struct Peer {
    us: Arc<Us>,
    setup: PeerSetup,
    owners: Vec<Sender<Event>>,
    inbox: UnboundedReceiver<PeerEvent>,
    status: Arc<Mutex<PeerStatus>>,
    /// What its fallback goes by.
    gate: Arc<Gate>,
    paused: bool,
    stop: bool,
    /// Since when it is away; none before the first try.
    away: Option<Instant>,
}

/// How a session begins.
struct Begun {
    link: SshLink,
    /// What the peer said first, where it dialled.
    body: Option<Vec<u8>>,
    /// Where we dialled.
    dialled: Option<String>,
}

impl From<Box<Greeted>> for Begun {
    fn from(greeted: Box<Greeted>) -> Self {
        Self { link: greeted.link, body: Some(greeted.body), dialled: None }
    }
}

impl Peer {
    /// A peer whose trees have these owners, in the order of `setup.trees`.
    #[must_use]
    pub fn new(
        us: Arc<Us>,
        setup: PeerSetup,
        owners: Vec<Sender<Event>>,
        inbox: UnboundedReceiver<PeerEvent>,
        status: Arc<Mutex<PeerStatus>>,
        gate: Arc<Gate>,
        paused: bool,
    ) -> Self {
        Self { us, setup, owners, inbox, status, gate, paused, stop: false, away: None }
    }

    /// Runs until it is told to stop.
    pub async fn run(mut self) {
        let mut taken = None;
        loop {
            let begun = match taken.take() {
                Some(greeted) => Some(Begun::from(greeted)),
                None => self.connect().await,
            };
            let Some(begun) = begun else { return };
            // Nothing may write behind the agent that returned.
            self.gate.close().await;
            let end = self.converse(begun).await;
            self.away.get_or_insert_with(Instant::now);
            taken = self.note(end);
            if self.stop {
                return;
            }
        }
    }

    /// Shows how a session ended; gives the link that takes its place.
    fn note(&mut self, end: End) -> Option<Box<Greeted>> {
        let (state, error) = match end {
            End::Replaced(greeted) => {
                self.show(PeerState::Connecting, None);
                return Some(greeted);
            }
            End::Renewed => (PeerState::Connecting, None),
            End::Paused => (PeerState::Paused, None),
            End::PausedThere => (PeerState::Paused, Some(PAUSED_THERE.to_owned())),
            End::Stopped => (PeerState::Unreachable, None),
            End::Refused(reason) => (PeerState::Refused, Some(reason)),
            End::Lost(reason) => (PeerState::Unreachable, Some(reason)),
        };
        self.show(state, error);
        None
    }

    fn show(&self, state: PeerState, error: Option<String>) {
        match state {
            PeerState::Unreachable => self.gate.note_away(),
            PeerState::Connected | PeerState::Refused | PeerState::Paused => self.gate.shut(),
            PeerState::Connecting => {}
        }
        let mut status = lock(&self.status);
        if (status.state, &status.error) != (state, &error) {
            match &error {
                Some(reason) => tracing::warn!(peer = self.setup.name, ?state, reason, "peer"),
                None => tracing::info!(peer = self.setup.name, ?state, "peer"),
            }
        }
        (status.state, status.error) = (state, error);
    }

    /// Waits for a link, ours or theirs; none at a stop.
    async fn connect(&mut self) -> Option<Begun> {
        loop {
            if self.paused {
                self.show(PeerState::Paused, None);
            }
            let us = Arc::clone(&self.us);
            let setup = self.setup.clone();
            let pause = self.pause();
            let may_dial = !self.paused && !setup.addresses.is_empty();
            if setup.addresses.is_empty() && lock(&self.status).state == PeerState::Connecting {
                self.show(PeerState::Unreachable, Some("it has no address here, and has not dialled in".to_owned()));
            }
            let in_flight = AtomicBool::new(false);
            let mut dialling = std::pin::pin!(async {
                if !may_dial {
                    std::future::pending::<()>().await;
                }
                sleep(pause).await;
                in_flight.store(true, Ordering::Relaxed);
                dial_any(&us, &setup).await
            });
            tokio::select! {
                biased;
                event = self.inbox.recv() => match self.take(event) {
                    Some(greeted) if self.us.node < self.setup.node && in_flight.load(Ordering::Relaxed) => {
                        // The session that the lower key dials stays: ours, if it comes about.
                        return Some(match timeout(OWN_DIAL_GRACE, &mut dialling).await {
                            Ok(Ok(own)) => own,
                            _ => Begun::from(greeted),
                        });
                    }
                    Some(greeted) => return Some(Begun::from(greeted)),
                    None if self.stop => return None,
                    None => {}
                },
                dialled = &mut dialling => {
                    let away = *self.away.get_or_insert_with(Instant::now);
                    match dialled {
                        Ok(own) => return Some(own),
                        // A peer that starts together with us is not there at once.
                        Err(error) if state_of(&error) == PeerState::Unreachable && away.elapsed() < PATIENCE => {}
                        Err(error) => self.show(state_of(&error), Some(error.to_string())),
                    }
                }
            }
        }
    }

    /// Takes an event in between sessions; gives a control link.
    fn take(&mut self, event: Option<PeerEvent>) -> Option<Box<Greeted>> {
        match event {
            None | Some(PeerEvent::Stop) => self.stop = true,
            Some(PeerEvent::Pause(paused)) => {
                self.paused = paused;
                // The pause was no absence: it is dialled at once.
                self.away = None;
                self.show(if paused { PeerState::Paused } else { PeerState::Connecting }, None);
            }
            Some(PeerEvent::Owners(owners)) => self.owners = owners,
            Some(PeerEvent::Link(greeted)) => {
                if greeted.hello.role == pleach_protocol::wire::LinkRole::Control && !self.paused {
                    return Some(greeted);
                }
                if self.paused {
                    self.refuse(&greeted, PAUSED_THERE);
                }
            }
        }
        None
    }

    /// How long to wait before the next dial.
    fn pause(&self) -> Duration {
        let Some(away) = self.away else { return Duration::ZERO };
        let paused_there = lock(&self.status).state == PeerState::Paused;
        let longest = if paused_there { PAUSED_MAX } else { PAUSE_MAX };
        let whole = (away.elapsed() / PAUSE_PART).clamp(PAUSE_MIN, longest);
        // Without randomness all wait alike, no more.
        let part = random_number().map_or(0, |n| u32::try_from(n % 512).unwrap_or(0));
        whole / 1_024 * (512 + part)
    }
}

async fn dial_any(us: &Us, setup: &PeerSetup) -> Result<Begun, LinkError> {
    let mut failed = None;
    for address in &setup.addresses {
        match dial(address, &us.key, std::slice::from_ref(&setup.key)).await {
            Ok(link) => return Ok(Begun { link, body: None, dialled: Some(address.clone()) }),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| LinkError::Closed { address: setup.name.clone() }))
}

const fn state_of(error: &LinkError) -> PeerState {
    match error {
        LinkError::WrongKey { .. } | LinkError::Rejected { .. } | LinkError::NoSubsystem { .. } => PeerState::Refused,
        _ => PeerState::Unreachable,
    }
}

fn next_session(us: &Us) -> u64 {
    us.sessions.fetch_add(1, Ordering::Relaxed)
}
