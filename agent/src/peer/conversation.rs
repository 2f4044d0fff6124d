//! One session with a peer: its two links, its state machine, and the owners of its trees.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::{Duration, Instant};

use pleach_protocol::session::{Link, Moment, Output, Session, SessionConfig, SessionError, TreeOffer};
use pleach_protocol::wire::{LinkRole, Standing};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::{sleep_until, timeout_at};

use super::{Begun, Greeted, PAUSED_THERE, Peer, PeerEvent, PeerState, TWO_NODES, next_session};
use crate::bandwidth::Pacer;
use crate::compress::{Compress, Pace, Squeezer};
use crate::exchange::ToSession;
use crate::machine::{lock, minute_of_day, random};
use crate::owner::Event;
use crate::ssh::{LinkError, LinkReader, SshLink, dial};

/// How long owners may take to say what they offer.
const OFFER_MAX: Duration = Duration::from_secs(3);
/// A session that does not answer so long gives way to a new one. Source: DESIGN.md §3.
const CHALLENGE_MAX: Duration = Duration::from_secs(2);
/// How long the peer may take for its hello, and for its bulk link.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// How long a goodbye may come behind the end of the bulk link.
const LAST_WORDS_MAX: Duration = Duration::from_secs(1);
/// Inputs of owners that are taken before the links are looked at again.
const INPUTS_MAX: usize = 256;
/// What is said where a session ends only to begin anew.
const RENEWED: &str = "it begins anew";

/// How a session ended.
pub(super) enum End {
    /// What is offered changed.
    Renewed,
    /// Somebody paused the peer here.
    Paused,
    /// Somebody paused this node there.
    PausedThere,
    /// This node stops.
    Stopped,
    /// The peer dialled anew.
    Replaced(Box<Greeted>),
    /// One of the two nodes does not want the other.
    Refused(String),
    /// Anything else.
    Lost(String),
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<SessionError> for End {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::Bye(reason) if reason == RENEWED => Self::Renewed,
            SessionError::Bye(reason) if reason == PAUSED_THERE => Self::PausedThere,
            SessionError::Bye(reason) if reason.starts_with("two nodes") => Self::Refused(reason),
            SessionError::Version { .. } => Self::Refused(error.to_string()),
            _ => Self::Lost(error.to_string()),
        }
    }
}

/// Somebody who dialled while there was a session.
struct Challenger {
    greeted: Box<Greeted>,
    since: Moment,
    /// It does not come from the same start of the peer.
    other_start: bool,
}

type Dialling = Pin<Box<dyn Future<Output = Result<SshLink, LinkError>> + Send>>;

/// The session and its links.
struct Conversation<'p> {
    peer: &'p mut Peer,
    session: Session,
    number: u64,
    began: Instant,
    control: SshLink,
    bulk: Option<SshLink>,
    /// Frames that wait for the bulk link, or for their time; the peer's window bounds them.
    waiting: VecDeque<Vec<u8>>,
    pacer: Pacer,
    pace: Pace,
    /// Of the control link and the bulk link: none where the config or the peer wants none, or there is no memory for it.
    squeezers: (Option<Squeezer>, Option<Squeezer>),
    dialled: Option<String>,
    dialling: Option<Dialling>,
    from_owners: UnboundedReceiver<ToSession>,
    challenger: Option<Challenger>,
    /// The peer went on after its hello.
    welcome: bool,
}

impl Peer {
    /// Holds a session over a control link, to its end.
    pub(super) async fn converse(&mut self, begun: Begun) -> End {
        let number = next_session(&self.us);
        let (to, from_owners) = unbounded_channel();
        let trees = self.offers(number, &to).await;
        let token = match random() {
            Ok(token) => token,
            Err(error) => return End::Lost(format!("no random bytes: {error}")),
        };
        let config = SessionConfig {
            node: self.us.node,
            peer: self.setup.node,
            name: self.us.name.clone(),
            start: self.us.start,
            token,
            trees,
        };
        let mut conversation = Conversation {
            session: Session::new(Moment(0), config),
            number,
            began: Instant::now(),
            control: begun.link,
            bulk: None,
            waiting: VecDeque::new(),
            pacer: Pacer::default(),
            pace: Pace::default(),
            squeezers: (None, None),
            dialled: begun.dialled,
            dialling: None,
            from_owners,
            challenger: None,
            welcome: false,
            peer: self,
        };
        let end = match conversation.run(begun.body).await {
            Err(end) => end,
            Ok(never) => match never {},
        };
        conversation.close(&end);
        self.detach(number);
        end
    }

    /// Asks the owners what they offer; one that does not answer is told to begin anew later.
    async fn offers(&self, session: u64, to: &UnboundedSender<ToSession>) -> Vec<TreeOffer> {
        let limit = tokio::time::Instant::now() + OFFER_MAX;
        let mut answers = Vec::new();
        for (tree, owner) in self.owners.iter().enumerate() {
            let (reply, answer) = oneshot::channel();
            // An owner that is gone offers nothing.
            owner.send(Event::Offer { peer: self.setup.node, reply, to: to.clone(), session, tree }).ok();
            answers.push(answer);
        }
        let mut offers = Vec::new();
        for (answer, name) in answers.into_iter().zip(&self.setup.trees) {
            offers.push(match timeout_at(limit, answer).await {
                Ok(Ok(offer)) => offer,
                _ => {
                    let standing = Standing::Failed;
                    TreeOffer { name: name.clone(), incarnation: [0; 16], start: 0, cursor: None, head: 0, standing }
                }
            });
        }
        offers
    }

    fn detach(&self, session: u64) {
        for owner in &self.owners {
            // An owner that is gone has nothing to forget.
            owner.send(Event::Detach { peer: self.setup.node, session }).ok();
        }
    }

    /// Turns a newcomer away, with a reason that it can show.
    pub(super) fn refuse(&self, greeted: &Greeted, reason: &str) {
        let config = SessionConfig {
            node: self.us.node,
            peer: self.setup.node,
            name: self.us.name.clone(),
            start: self.us.start,
            token: [0; 16],
            trees: Vec::new(),
        };
        let mut session = Session::new(Moment(0), config);
        session.say_bye(reason);
        while let Some(output) = session.poll_output() {
            if let Output::Transmit { link: Link::Control, frame } = output {
                // One that is gone need not hear it.
                greeted.link.writer.send(frame).ok();
            }
        }
        greeted.link.writer.close();
    }
}

/// Reads from a link that may not be there yet.
async fn next(reader: Option<&mut LinkReader>) -> Result<Option<Vec<u8>>, LinkError> {
    match reader {
        Some(reader) => reader.next().await,
        None => std::future::pending().await,
    }
}

fn squeeze(squeezer: Option<&mut Squeezer>, frame: Vec<u8>) -> Vec<u8> {
    match squeezer {
        Some(squeezer) => squeezer.squeeze(frame),
        None => frame,
    }
}

async fn dialled(dialling: &mut Option<Dialling>) -> Result<SshLink, LinkError> {
    match dialling {
        Some(dial) => dial.await,
        None => std::future::pending().await,
    }
}

impl Conversation<'_> {
    fn now(&self) -> Moment {
        Moment(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    async fn run(&mut self, first: Option<Vec<u8>>) -> Result<std::convert::Infallible, End> {
        self.drain()?;
        if let Some(body) = first {
            self.handle(Link::Control, body)?;
        }
        loop {
            let wake = tokio::time::Instant::from_std(self.wake_at());
            tokio::select! {
                frame = self.control.reader.next() => match frame? {
                    Some(body) => self.handle(Link::Control, body)?,
                    None => return Err(End::Lost("the peer closed the connection".to_owned())),
                },
                frame = next(self.bulk.as_mut().map(|b| &mut b.reader)) => match frame? {
                    Some(body) => self.handle(Link::Bulk, body)?,
                    None => return Err(self.last_words().await),
                },
                told = self.from_owners.recv() => self.take_told(told)?,
                link = dialled(&mut self.dialling) => {
                    self.dialling = None;
                    self.attach(link?)?;
                }
                event = self.peer.inbox.recv() => self.take_event(event)?,
                () = sleep_until(wake) => self.look_at_time()?,
            }
        }
    }

    /// The bulk link was closed: its goodbye comes on the other one, whichever is read first.
    async fn last_words(&mut self) -> End {
        let limit = tokio::time::Instant::now() + LAST_WORDS_MAX;
        while let Ok(Ok(Some(body))) = timeout_at(limit, self.control.reader.next()).await {
            if let Err(end) = self.handle(Link::Control, body) {
                return end;
            }
        }
        End::Lost("the peer closed the bulk connection".to_owned())
    }

    /// When something is due by time.
    fn wake_at(&self) -> Instant {
        let mut nanos = self.session.next_timeout().0;
        if let Some(challenger) = &self.challenger {
            nanos = nanos.min(challenger.since.0.saturating_add(nanos_of(CHALLENGE_MAX)));
        }
        if self.bulk.is_none() || self.session.peer_hello().is_none() {
            nanos = nanos.min(nanos_of(HELLO_MAX));
        }
        let due = self.began + Duration::from_nanos(nanos);
        match self.pacer.wait_until(Instant::now()) {
            Some(at) if self.bulk.is_some() && !self.waiting.is_empty() => due.min(at),
            _ => due,
        }
    }

    fn look_at_time(&mut self) -> Result<(), End> {
        let now = self.now();
        if let Some(challenger) =
            self.challenger.take_if(|c| now.0 >= c.since.0.saturating_add(nanos_of(CHALLENGE_MAX)))
        {
            return Err(End::Replaced(challenger.greeted));
        }
        if now.0 >= nanos_of(HELLO_MAX) && (self.bulk.is_none() || self.session.peer_hello().is_none()) {
            return Err(End::Lost("the peer did not open both of its links in time".to_owned()));
        }
        self.session.handle_timeout(now)?;
        self.drain()
    }

    /// How fast the peer may be sent to now.
    fn rate(&self) -> Option<u64> {
        let limit = &self.peer.setup.bandwidth;
        if limit.is_none() { None } else { limit.at(minute_of_day()) }
    }

    /// Sends what waits for the bulk link, as far as its time has come.
    fn send_bulk(&mut self) -> Result<(), End> {
        let Some(bulk) = &self.bulk else { return Ok(()) };
        let always = self.peer.setup.compress == Compress::On;
        self.pace.look(Instant::now(), self.session.under_way());
        while let Some(frame) = self.waiting.pop_front() {
            let (now, limit) = (Instant::now(), self.rate());
            if limit.is_some() && self.pacer.wait_until(now).is_some() {
                self.waiting.push_front(frame);
                return Ok(());
            }
            let pays = always || limit.is_some() || self.pace.is_slow();
            let bytes = frame.len();
            let frame = squeeze(self.squeezers.1.as_mut().filter(|_| pays), frame);
            self.pace.sent(bytes, frame.len());
            if let Some(rate) = limit {
                self.pacer.sent(now, frame.len(), rate);
            }
            bulk.writer.send(frame)?;
        }
        Ok(())
    }

    fn handle(&mut self, link: Link, body: Vec<u8>) -> Result<(), End> {
        let introduced = self.session.peer_hello().is_some();
        let now = self.now();
        self.session.handle_frame(now, link, &body)?;
        self.drain()?;
        if !introduced && self.session.peer_hello().is_some() {
            self.begin()?;
        } else if introduced && !self.welcome {
            // Whoever does not want us says hello and goodbye, nothing between.
            self.welcome = true;
            self.peer.away = None;
            self.peer.show(PeerState::Connected, None);
        }
        self.refuse_challenger();
        let mut status = lock(&self.peer.status);
        status.seen = Some(Instant::now());
        status.round_trip = self.session.round_trip().map(Duration::from_nanos).or(status.round_trip);
        Ok(())
    }

    /// Both sides said hello.
    fn begin(&mut self) -> Result<(), End> {
        if let Some(address) = self.dialled.clone() {
            // Only now does the peer know the session that the bulk link belongs to.
            let us = std::sync::Arc::clone(&self.peer.us);
            let key = self.peer.setup.key.clone();
            self.dialling = Some(Box::pin(async move { dial(&address, &us.key, std::slice::from_ref(&key)).await }));
        }
        if self.session.compresses() && self.peer.setup.compress != Compress::Off {
            self.squeezers = (Squeezer::new(), Squeezer::new());
        }
        let now = self.now();
        self.session.ping(now);
        self.drain()
    }

    /// Takes the bulk link.
    fn attach(&mut self, link: SshLink) -> Result<(), End> {
        self.bulk = Some(link);
        self.send_bulk()
    }

    fn take_told(&mut self, told: Option<ToSession>) -> Result<(), End> {
        let mut next = told;
        let mut taken = 0;
        while let Some(told) = next {
            match told {
                ToSession::Input(input) => {
                    let now = self.now();
                    self.session.handle_local(now, input);
                    self.drain()?;
                }
                ToSession::Restart => return Err(End::Renewed),
            }
            taken += 1;
            next = if taken < INPUTS_MAX { self.from_owners.try_recv().ok() } else { None };
        }
        // Owners hold the other ends: all of them are gone where there is none.
        if taken == 0 { Err(End::Stopped) } else { Ok(()) }
    }

    fn drain(&mut self) -> Result<(), End> {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::Transmit { link: Link::Control, frame } => {
                    // Rows shrink to a fifth, whatever the link.
                    let frame = squeeze(self.squeezers.0.as_mut(), frame);
                    // Never held up, so that a small change overtakes large ones; but what it takes counts.
                    if let Some(rate) = self.rate() {
                        self.pacer.sent(Instant::now(), frame.len(), rate);
                    }
                    self.control.writer.send(frame)?;
                }
                Output::Transmit { link: Link::Bulk, frame } => self.waiting.push_back(frame),
                Output::Notice { text } => self.peer.show(PeerState::Connected, Some(text)),
                other => {
                    let Some(owner) = tree_of(&other).and_then(|tree| self.peer.owners.get(tree)) else { continue };
                    let (peer, session) = (self.peer.setup.node, self.number);
                    if owner.send(Event::Output { peer, session, output: other }).is_err() {
                        return Err(End::Renewed);
                    }
                }
            }
        }
        self.send_bulk()
    }

    fn take_event(&mut self, event: Option<PeerEvent>) -> Result<(), End> {
        match event {
            None | Some(PeerEvent::Stop) => {
                self.peer.stop = true;
                Err(End::Stopped)
            }
            Some(PeerEvent::Pause(paused)) => {
                self.peer.paused = paused;
                if paused { Err(End::Paused) } else { Ok(()) }
            }
            Some(PeerEvent::Owners(owners)) => {
                // The sessions of before know other owners.
                self.peer.detach(self.number);
                self.peer.owners = owners;
                Err(End::Renewed)
            }
            Some(PeerEvent::Link(greeted)) => match greeted.hello.role {
                LinkRole::Bulk => self.take_bulk(*greeted),
                LinkRole::Control => self.take_challenger(greeted),
            },
        }
    }

    fn take_bulk(&mut self, greeted: Greeted) -> Result<(), End> {
        if self.session.peer_token() != Some(greeted.hello.token) || self.bulk.is_some() || self.dialled.is_some() {
            // A link of an earlier session.
            return Ok(());
        }
        self.attach(greeted.link)?;
        self.handle(Link::Bulk, greeted.body)
    }

    /// The peer, or somebody with its key, dialled although there is a session.
    fn take_challenger(&mut self, greeted: Box<Greeted>) -> Result<(), End> {
        let theirs = self.session.peer_hello().map(|(start, _)| start);
        let other_start = theirs.is_some_and(|start| start != greeted.hello.start);
        let lower = self.peer.us.node < self.peer.setup.node;
        if self.dialled.is_some() && !lower && !other_start {
            // Both dialled: the session that the lower key dialled stays.
            return Err(End::Replaced(greeted));
        }
        let now = self.now();
        self.challenger = Some(Challenger { greeted, since: now, other_start });
        self.session.ping(now);
        self.drain()
    }

    /// The session is alive: whoever came later goes.
    fn refuse_challenger(&mut self) {
        let heard = self.session.heard();
        let Some(challenger) = self.challenger.take_if(|c| heard > c.since) else { return };
        if !challenger.other_start {
            return challenger.greeted.link.writer.close();
        }
        tracing::error!(peer = self.peer.setup.name, remote = challenger.greeted.link.remote, TWO_NODES);
        self.peer.refuse(&challenger.greeted, TWO_NODES);
        self.peer.show(PeerState::Connected, Some(TWO_NODES.to_owned()));
        self.session.notify(TWO_NODES);
        if let Err(End::Lost(reason)) = self.drain() {
            tracing::debug!(reason, "the link ended meanwhile");
        }
    }

    /// Says why it ends, and closes both links.
    fn close(&mut self, end: &End) {
        let bye = match end {
            End::Renewed => Some(RENEWED),
            End::Paused => Some(PAUSED_THERE),
            End::PausedThere => None,
            End::Stopped => Some("it stops"),
            End::Replaced(_) => Some("a newer session takes its place"),
            End::Refused(reason) | End::Lost(reason) => Some(reason.as_str()),
        };
        if let Some(reason) = bye {
            self.session.say_bye(reason);
            while let Some(output) = self.session.poll_output() {
                if let Output::Transmit { link: Link::Control, frame } = output {
                    // A link that is gone takes nothing.
                    self.control.writer.send(frame).ok();
                }
            }
        }
        self.control.writer.close();
        if let Some(bulk) = &self.bulk {
            bulk.writer.close();
        }
        if let Some(challenger) = self.challenger.take() {
            challenger.greeted.link.writer.close();
        }
    }
}

fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The tree that an output is about.
const fn tree_of(output: &Output) -> Option<usize> {
    match output {
        Output::Transmit { .. } | Output::Notice { .. } => None,
        Output::Opened { tree, .. }
        | Output::Absent { tree }
        | Output::Halted { tree, .. }
        | Output::ReadRows { tree, .. }
        | Output::ReadDigests { tree }
        | Output::Digests { tree, .. }
        | Output::MergeAlike { tree, .. }
        | Output::Moved { tree, .. }
        | Output::Merge { tree, .. }
        | Output::ReadContent { tree, .. }
        | Output::ReadManifest { tree, .. }
        | Output::Received { tree, .. }
        | Output::Missing { tree, .. }
        | Output::PeerMerged { tree, .. }
        | Output::PeerApplied { tree, .. }
        | Output::HeadAsked { tree, .. }
        | Output::PeerHead { tree, .. }
        | Output::PeerWaits { tree, .. }
        | Output::PeerWhole { tree, .. }
        | Output::TooLarge { tree, .. } => Some(*tree),
    }
}
