//! Lines between nodes, as the agent's peer tasks drive them (agent/src/peer/conversation.rs).
//!
//! A line carries connections; each has two ordered streams a way, with no order between them. Frames
//! need time. An end that hangs up is noticed at the other end behind what was under way, or never: then
//! the session's own pings find out, or a new connection takes its place.

use std::collections::{BTreeSet, VecDeque};

use pleach_protocol::session::Link as Role;

use super::{Random, World};

/// Names of the roles, in the order of a connection's streams.
const ROLES: [Role; 2] = [Role::Control, Role::Bulk];
/// A session that does not answer so long gives way to a new one. Source: agent/src/peer/conversation.rs.
const CHALLENGE_MAX: u64 = 2_000_000_000;
/// How long a peer may take for its hello; the same.
const HELLO_MAX: u64 = 10_000_000_000;
/// Time passes in steps of at most this, so that every session is asked in time.
const TICK: u64 = 1_000_000_000;
/// Rounds of work in one go, at most.
const WORK_ROUNDS_MAX: usize = 20;
/// What is said where a newer session takes an older one's place.
const REPLACED: &str = "a newer session takes its place";

/// Which faults the lines of a seed have.
#[derive(Clone, Copy, Debug)]
pub(super) struct NetFaults {
    /// Connections end, at any frame.
    pub(super) cuts: bool,
    /// One end does not notice.
    half_open: bool,
    /// A direction carries nothing for a while.
    asymmetric: bool,
    /// Frames need time, on each line and stream another.
    slow: bool,
    /// Connections hardly live.
    flapping: bool,
    /// Nothing but time passes for a while.
    idle: bool,
    /// One of a line's streams stands still for a while, and the others go on.
    stalls: bool,
}

impl NetFaults {
    pub(super) const fn draw(random: &mut Random, seed: u64) -> Self {
        Self {
            stalls: seed % 8 == 3,
            cuts: random.once_in(2),
            half_open: random.once_in(3),
            asymmetric: random.once_in(4),
            slow: random.once_in(3),
            flapping: random.once_in(8),
            idle: random.once_in(3),
        }
    }
}

/// How a stream carries frames in one direction.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    latency: u64,
    /// For each byte, in nanoseconds.
    byte: u64,
}

/// What arrives at the end of a stream.
#[derive(Debug)]
enum Packet {
    Frame(Vec<u8>),
    /// The other end hung up.
    End,
}

/// One stream in one direction: what is under way, and when it arrives.
#[derive(Debug, Default)]
struct Stream(VecDeque<(u64, Packet)>);

#[derive(Debug)]
struct Connection {
    number: u64,
    since: u64,
    /// Which ends still have it.
    held: [bool; 2],
    /// It carries nothing new.
    broken: bool,
    /// The end that was dialled has another session; it is to answer since then.
    challenge: Option<(usize, u64)>,
    /// From the first end to the second and back; each role for itself.
    streams: [[Stream; 2]; 2],
}

/// A line between two nodes.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) ends: [usize; 2],
    /// Somebody wants these two to talk.
    pub(super) enabled: bool,
    up: bool,
    swallows: [bool; 2],
    /// Hold what is under way, by direction and role.
    stalled: [[bool; 2]; 2],
    pace: [[Pace; 2]; 2],
    connections: Vec<Connection>,
}

impl Line {
    pub(super) fn new(ends: [usize; 2], faults: NetFaults, random: &mut Random) -> Self {
        let mut pace = [[Pace::default(); 2]; 2];
        if faults.slow {
            for stream in pace.iter_mut().flatten() {
                // From a wire to a satellite, 25 kB/s at the slowest.
                stream.latency = random.below(4) * random.below(200_000_000);
                stream.byte = random.below(3) * random.below(20_000);
            }
        }
        Self {
            ends,
            enabled: true,
            up: true,
            swallows: [false; 2],
            stalled: [[false; 2]; 2],
            pace,
            connections: Vec::new(),
        }
    }

    /// Whether a frame is under way that somebody still takes.
    pub(super) fn is_busy(&self) -> bool {
        self.connections.iter().any(|c| c.streams.iter().flatten().any(|s| !s.0.is_empty()))
    }

    /// The connection that an end talks over.
    fn current(&self, end: usize) -> Option<&Connection> {
        self.connections.iter().find(|c| c.held[end] && c.challenge.is_none_or(|(asked, _)| asked != end))
    }

    /// The sessions that a node has over it.
    pub(super) fn sessions_of(&self, n: usize) -> Vec<u64> {
        let end = usize::from(self.ends[1] == n);
        self.connections.iter().filter(|c| c.held[end]).map(|c| c.number).collect()
    }

    fn connection(&mut self, number: u64) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|c| c.number == number)
    }
}

/// Whether a frame only asks whether the other end is there, or says so: Ping and Pong.
fn is_ping(frame: &[u8]) -> bool {
    matches!(frame.get(4..), Some([8 | 9]))
}

impl World {
    /// Something happens to the lines.
    pub(super) fn disturb(&mut self) -> Result<(), String> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let at = self.random.index(self.lines.len());
        match self.random.below(4) {
            0 | 1 if self.net.cuts => {
                self.lines[at].up = self.random.once_in(2);
                self.cut(at);
            }
            2 if self.net.asymmetric => {
                let way = self.random.index(2);
                self.lines[at].swallows[way] ^= true;
                let swallows = self.lines[at].swallows;
                self.say(format!("line {at} swallows {swallows:?}"));
            }
            3 if self.net.idle => {
                let spell = 1 + self.random.below(30);
                self.say(format!("{spell} s pass"));
                for _ in 0..spell {
                    self.pass(TICK)?;
                    while self.carry()?.is_some() {}
                }
            }
            _ if self.net.stalls && self.random.once_in(2) => self.stand_still(at)?,
            _ if self.net.stalls => {
                let (way, role) = (self.random.index(2), self.random.index(2));
                self.lines[at].stalled[way][role] ^= true;
                let stalled = self.lines[at].stalled;
                self.say(format!("line {at} stands still {stalled:?}"));
            }
            _ => {}
        }
        Ok(())
    }

    /// One stream carries nothing while everybody else does all there is to do, until hours have passed: whatever says
    /// that its receiver knows more than it does is believed then.
    fn stand_still(&mut self, at: usize) -> Result<(), String> {
        let (way, role) = (self.random.index(2), usize::from(self.random.once_in(4)));
        let end = self.lines[at].ends[1 - way];
        let before = std::mem::replace(&mut self.lines[at].stalled[way][role], true);
        let stalled = self.lines[at].stalled;
        self.say(format!("line {at} stands still {stalled:?}, and all others are quick"));
        let mut shown = BTreeSet::new();
        for _ in 0..1 + self.random.below(5) {
            let n = self.random.index(self.nodes.len());
            let mut changed = Vec::new();
            for _ in 0..1 + self.random.below(4) {
                self.user_acts_too(n, None)?;
                changed.extend(self.rest.newest().into_iter().next());
            }
            self.all_work()?;
            shown.extend(self.nodes[end].model.seen().into_iter().map(|(path, seen)| (path, seen.content)));
            // Users at its end take away what others just changed.
            for path in changed.into_iter().filter(|_| n != end) {
                let gone = self.random.once_in(2);
                self.user_acts_too(end, Some((path, gone)))?;
            }
            self.all_work()?;
        }
        self.note_gone_at(end, shown)?;
        self.let_hours_pass(end)?;
        self.let_hours_pass(end)?;
        self.lines[at].stalled[way][role] = before;
        Ok(())
    }

    /// Everybody does what there is to do, with all events seen and on quick lines.
    fn all_work(&mut self) -> Result<(), String> {
        let before = std::mem::replace(&mut self.healing, true);
        for _ in 0..WORK_ROUNDS_MAX {
            self.connect();
            let mut busy = false;
            for n in 0..self.nodes.len() {
                self.work(n)?;
                while self.take_mail(n) || self.take_event(n)? {
                    busy = true;
                }
            }
            while let Some(news) = self.carry()? {
                busy |= news;
            }
            if !busy {
                break;
            }
        }
        self.healing = before;
        Ok(())
    }

    /// Time passes; what is due by it is done.
    pub(super) fn pass(&mut self, nanos: u64) -> Result<(), String> {
        for node in &self.nodes {
            node.model.disk.advance(i64::try_from(nanos).unwrap_or(0));
        }
        let mut left = nanos;
        while left > 0 {
            let tick = left.min(TICK);
            left -= tick;
            self.now += tick;
            self.look_at_time();
        }
        Ok(())
    }

    /// Sessions and connections look at the time, as their tasks do.
    fn look_at_time(&mut self) {
        for n in 0..self.nodes.len() {
            for session in self.nodes[n].time_out(self.now) {
                self.say(format!("n{n} hears nothing of its peer in session {session}"));
                self.leave(n, session, true);
            }
            self.pump(n);
        }
        for at in 0..self.lines.len() {
            let mut silent = Vec::new();
            for connection in &self.lines[at].connections {
                let old = self.now.saturating_sub(connection.since) >= HELLO_MAX;
                for end in (0..2).filter(|end| old && connection.held[*end]) {
                    let n = self.lines[at].ends[end];
                    if self.nodes[n].awaits_hello(connection.number) {
                        silent.push((n, connection.number));
                    }
                }
            }
            for (n, number) in silent {
                self.say(format!("n{n} waits in vain for a hello in session {number}"));
                self.leave(n, number, true);
            }
            self.judge_challenges(at);
        }
    }

    /// A connection that came while there was a session takes its place, or goes.
    fn judge_challenges(&mut self, at: usize) {
        let challenges: Vec<(u64, usize, u64)> = self.lines[at]
            .connections
            .iter()
            .filter_map(|c| c.challenge.map(|(end, since)| (c.number, end, since)))
            .collect();
        for (number, end, since) in challenges {
            let n = self.lines[at].ends[end];
            let Some(old) = self.lines[at].current(end).map(|c| c.number) else {
                // It ended by itself: whoever came is let go with it, and dials anew.
                self.leave(n, number, true);
                continue;
            };
            if self.nodes[n].heard(old).is_none_or(|heard| heard > since) {
                self.say(format!("n{n} refuses session {number}: {old} is alive"));
                self.leave(n, number, true);
            } else if self.now >= since + CHALLENGE_MAX {
                self.say(format!("n{n} takes session {number} for {old}"));
                self.nodes[n].say_bye(old, REPLACED);
                self.pump(n);
                self.leave(n, old, true);
                if let Some(connection) = self.lines[at].connection(number) {
                    connection.challenge = None;
                }
                let peer = self.nodes[self.lines[at].ends[1 - end]].model.id;
                self.nodes[n].open_session(self.now, peer, number);
            }
        }
    }

    /// Nodes that have no session over a line dial.
    pub(super) fn connect(&mut self) {
        for at in 0..self.lines.len() {
            let first = self.random.index(2);
            for end in [first, 1 - first] {
                self.dial(at, end);
            }
        }
    }

    fn dial(&mut self, at: usize, end: usize) {
        let line = &self.lines[at];
        let (n, other) = (line.ends[end], line.ends[1 - end]);
        let reachable = line.enabled && line.up && line.swallows == [false; 2];
        let up = self.nodes[n].is_up() && self.nodes[other].is_up();
        if !reachable || !up || line.connections.iter().any(|c| c.held[end]) {
            return;
        }
        if line.connections.iter().any(|c| c.challenge.is_some()) {
            return;
        }
        self.sessions += 1;
        let number = self.sessions;
        let old = line.current(1 - end).map(|c| c.number);
        let challenge = old.map(|_| (1 - end, self.now));
        let ids = line.ends.map(|n| self.nodes[n].model.id);
        self.say(format!("n{n} dials n{other}: session {number}"));
        self.lines[at].connections.push(Connection {
            number,
            since: self.now,
            held: [true; 2],
            broken: false,
            challenge,
            streams: Default::default(),
        });
        self.nodes[n].open_session(self.now, ids[1 - end], number);
        if let Some(old) = old {
            self.nodes[other].ping(self.now, old);
            self.pump(other);
        } else {
            self.nodes[other].open_session(self.now, ids[end], number);
        }
    }

    /// Brings what a node's sessions want said onto their lines.
    pub(super) fn pump(&mut self, n: usize) {
        let healing = self.healing;
        for (session, role, frame) in self.nodes[n].take_frames() {
            let Some(line) = self.lines.iter_mut().find(|l| l.connections.iter().any(|c| c.number == session)) else {
                continue;
            };
            let (way, role) = (usize::from(line.ends[1] == n), usize::from(role == Role::Bulk));
            let pace = if healing { Pace::default() } else { line.pace[way][role] };
            let Some(connection) = line.connection(session) else { continue };
            if connection.broken || !connection.held[1 - way] {
                continue;
            }
            let stream = &mut connection.streams[way][role].0;
            let free = stream.back().map_or(0, |(due, _)| *due);
            let due = free.max(self.now + pace.latency) + pace.byte * frame.len() as u64;
            stream.push_back((due, Packet::Frame(frame)));
        }
    }

    /// One frame arrives somewhere; none where nothing is due. Says whether it was more than a ping.
    pub(super) fn carry(&mut self) -> Result<Option<bool>, String> {
        let mut full = Vec::new();
        for (at, line) in self.lines.iter().enumerate() {
            for connection in &line.connections {
                for (way, role) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let due = connection.streams[way][role].0.front().is_some_and(|(due, _)| *due <= self.now);
                    let end = matches!(connection.streams[way][role].0.front(), Some((_, Packet::End)));
                    let heard = end || self.nodes[line.ends[1 - way]].talks(connection.number);
                    if due && heard && !line.swallows[way] && !line.stalled[way][role] {
                        full.push((at, connection.number, way, role));
                    }
                }
            }
        }
        if full.is_empty() {
            return Ok(None);
        }
        let (at, session, way, role) = full[self.random.index(full.len())];
        let line = &mut self.lines[at];
        let (from, to) = (line.ends[way], line.ends[1 - way]);
        let packet = line.connection(session).and_then(|c| c.streams[way][role].0.pop_front());
        let news = match packet {
            Some((_, Packet::Frame(frame))) => {
                if !is_ping(&frame) {
                    let (role, bytes) = (ROLES[role], frame.len());
                    self.say(format!("n{from} to n{to}, session {session} {role:?}: {bytes} bytes"));
                }
                self.hear(to, session, ROLES[role], &frame)?;
                !is_ping(&frame)
            }
            Some((_, Packet::End)) => {
                self.say(format!("n{to} sees the end of session {session}"));
                self.leave(to, session, true);
                true
            }
            None => false,
        };
        self.judge_challenges(at);
        if self.net.flapping && !self.healing && self.random.once_in(12) {
            self.cut(at);
        }
        Ok(Some(news))
    }

    fn hear(&mut self, n: usize, session: u64, role: Role, frame: &[u8]) -> Result<(), String> {
        let heard = self.nodes[n].hear(self.now, session, role, frame);
        self.pump(n);
        let over = heard.map_err(|error| format!("n{n} does not understand its peer: {error}"))?;
        if over {
            self.leave(n, session, true);
        }
        Ok(())
    }

    /// An end lets go of a connection; the other hears of it behind what is under way, or never.
    pub(super) fn leave(&mut self, n: usize, session: u64, told: bool) {
        self.nodes[n].close_session(session);
        let Some(line) = self.lines.iter_mut().find(|l| l.connections.iter().any(|c| c.number == session)) else {
            return;
        };
        let way = usize::from(line.ends[1] == n);
        let now = self.now;
        if let Some(connection) = line.connection(session) {
            connection.held[way] = false;
            for stream in &mut connection.streams[1 - way] {
                stream.0.clear();
            }
            if told && !connection.broken && connection.held[1 - way] {
                for stream in &mut connection.streams[way] {
                    let due = stream.0.back().map_or(now, |(due, _)| *due);
                    stream.0.push_back((due, Packet::End));
                }
            }
            connection.broken = true;
        }
        line.connections.retain(|c| c.held != [false; 2]);
    }

    /// The connections of a line break: some of what was under way still arrives, and an end may not notice.
    fn cut(&mut self, at: usize) {
        let noticed = match self.random.below(3) {
            0 if self.net.half_open => [true, false],
            1 if self.net.half_open => [false, true],
            _ => [true; 2],
        };
        let up = self.lines[at].up;
        self.say(format!("line {at} breaks, up {up}, noticed {noticed:?}"));
        let Self { random, lines, .. } = self;
        for connection in lines[at].connections.iter_mut().filter(|c| !c.broken) {
            connection.broken = true;
            for (way, streams) in connection.streams.iter_mut().enumerate() {
                for Stream(stream) in streams {
                    stream.truncate(random.index(stream.len() + 1));
                    let due = stream.back().map_or(0, |(due, _)| *due);
                    if noticed[1 - way] {
                        stream.push_back((due, Packet::End));
                    }
                }
            }
        }
    }

    /// A node's process or machine is gone, and with it its ends.
    pub(super) fn drop_lines(&mut self, n: usize, told: bool) {
        let mut of_node = Vec::new();
        for line in self.lines.iter_mut().filter(|l| l.ends.contains(&n)) {
            let way = usize::from(line.ends[1] == n);
            for connection in line.connections.iter_mut().filter(|c| c.held[way]) {
                of_node.push(connection.number);
                if !connection.broken {
                    for Stream(stream) in &mut connection.streams[way] {
                        stream.truncate(self.random.index(stream.len() + 1));
                    }
                }
            }
        }
        for session in of_node {
            self.leave(n, session, told);
        }
    }

    /// All lines work, and at once.
    pub(super) fn heal_lines(&mut self) {
        for line in &mut self.lines {
            (line.up, line.swallows, line.stalled) = (true, [false; 2], [[false; 2]; 2]);
            for (due, _) in
                line.connections.iter_mut().flat_map(|c| c.streams.iter_mut().flatten()).flat_map(|s| &mut s.0)
            {
                *due = (*due).min(self.now);
            }
        }
    }
}
