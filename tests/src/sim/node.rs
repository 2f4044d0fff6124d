//! One node of the simulation: tree, exchange and sessions, as the agent's owner and peer tasks drive them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use pleach_agent::exchange::{Exchange, Tell, ToSession};
use pleach_protocol::path::TreePath;
use pleach_protocol::session::{Link as Role, Moment, Output, Session, SessionConfig, TreeOffer};
use pleach_protocol::version::NodeId;
use pleach_protocol::wire::Standing;
use pleach_store::kv::memory::MemoryKvDisk;
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::CrashKind;

use crate::model::ModelNode;

type Mail = Arc<Mutex<VecDeque<(NodeId, u64, ToSession)>>>;

/// The way to one session.
#[derive(Debug)]
pub(super) struct Mailbox {
    mail: Mail,
    peer: NodeId,
    session: u64,
}

impl Tell for Mailbox {
    fn tell(&self, what: ToSession) -> bool {
        let mut mail = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        mail.push_back((self.peer, self.session, what));
        true
    }
}

#[derive(Debug)]
pub(super) struct SimNode {
    pub(super) model: ModelNode,
    pub(super) peers: BTreeMap<NodeId, String>,
    /// What sessions want done, in order.
    pub(super) events: VecDeque<(NodeId, u64, Output)>,
    exchange: Exchange<Mailbox>,
    mail: Mail,
    sessions: BTreeMap<u64, Session>,
    starts: u64,
    /// What a loud run said last of the path that it watches.
    pub(super) watched: String,
    /// Contents that must be on this disk: they were in its tree or vault, and no user of this node
    /// destroyed them.
    owed: BTreeSet<Vec<u8>>,
    /// The same as of the last sync of the whole disk.
    owed_synced: BTreeSet<Vec<u8>>,
}

impl SimNode {
    pub(super) fn new(number: u8) -> Self {
        let mut drawn = 0u64;
        let entropy = move || {
            drawn += 1;
            let mut bytes = [number; 16];
            bytes[..8].copy_from_slice(&drawn.to_be_bytes());
            Ok(bytes)
        };
        Self {
            model: ModelNode::new(number),
            peers: BTreeMap::new(),
            events: VecDeque::new(),
            exchange: Exchange::new(Box::new(entropy)),
            mail: Mail::default(),
            sessions: BTreeMap::new(),
            starts: 0,
            watched: String::new(),
            owed: BTreeSet::new(),
            owed_synced: BTreeSet::new(),
        }
    }

    pub(super) fn start(&mut self) -> Result<(), String> {
        self.starts += 1;
        self.model.start().map_err(|error| format!("start: {}", chain(&error)))?;
        let tree = self.model.tree.as_ref().ok_or("it did not start")?;
        self.exchange.load(tree, &self.peers).map_err(|error| chain(&error))
    }

    pub(super) const fn is_up(&self) -> bool {
        self.model.tree.is_some()
    }

    pub(super) fn head(&self) -> Option<u64> {
        self.model.tree.as_ref().map(|t| t.index().meta().head)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.model.tree.as_ref().is_some_and(|t| t.is_quiet() && t.problems().is_empty()) && self.exchange.all_applied()
    }

    pub(super) fn problems(&self) -> String {
        self.model.tree.as_ref().map_or("down".to_owned(), |t| {
            format!(
                "{:?} {:?}, quiet {}, all applied {}",
                t.problems(),
                t.stuck_paths(),
                t.is_quiet(),
                self.exchange.all_applied()
            )
        })
    }

    /// One round of the owner's loop.
    pub(super) fn round(&mut self, now: u64, scan: bool) -> Result<(), String> {
        let Some(tree) = &mut self.model.tree else { return Ok(()) };
        let now = Moment(now);
        let mut work = || {
            if scan {
                tree.scan_later();
            }
            for path in tree.catch_up()? {
                tree.look_again(&path, true, false);
            }
            tree.check_late_writers()?;
            tree.sync_minted(false)?;
            tree.commit()?;
            self.exchange.tell(tree);
            self.exchange.apply(tree)?;
            tree.commit()?;
            self.exchange.tell(tree);
            self.exchange.serve_held(tree, now)
        };
        work().map_err(|error| chain(&error))
    }

    pub(super) fn carry_out(&mut self, now: u64, of: (NodeId, u64), output: Output) -> Result<(), String> {
        let Some(tree) = &mut self.model.tree else { return Ok(()) };
        self.exchange.carry_out(tree, Moment(now), of, output).map_err(|error| chain(&error))
    }

    pub(super) fn open_session(&mut self, now: u64, peer: NodeId, number: u64) {
        let Some(tree) = &self.model.tree else { return };
        let offer = TreeOffer {
            name: "t".to_owned(),
            incarnation: tree.index().meta().incarnation,
            cursor: tree.cursor(peer).ok().flatten(),
            head: tree.head(),
            standing: Standing::Open,
        };
        let mailbox = Mailbox { mail: Arc::clone(&self.mail), peer, session: number };
        self.exchange.expect(peer, number, 0, mailbox, false);
        let mut token = [0; 16];
        token[..8].copy_from_slice(&number.to_be_bytes());
        let config = SessionConfig {
            node: self.model.id,
            peer,
            name: format!("n{}", self.model.id.0[0]),
            start: self.starts,
            token,
            trees: vec![offer],
        };
        self.sessions.insert(number, Session::new(Moment(now), config));
    }

    pub(super) fn close_session(&mut self, number: u64) {
        let Some(session) = self.sessions.remove(&number) else { return };
        let peer = session.peer();
        self.events.retain(|(_, of, _)| *of != number);
        if self.exchange.detach(peer, number)
            && let Some(tree) = &mut self.model.tree
        {
            self.exchange.reassign_wants(tree, peer);
        }
    }

    pub(super) fn hear(&mut self, now: u64, session: u64, role: Role, frame: &[u8]) -> Result<(), String> {
        let Some(session) = self.sessions.get_mut(&session) else { return Ok(()) };
        let body = frame.get(4..).unwrap_or_default();
        session.handle_frame(Moment(now), role, body).map_err(|error| chain(&error))
    }

    pub(super) fn next_mail(&mut self) -> Option<(NodeId, u64, ToSession)> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Tells a session what its tree says; true where it is to begin anew.
    pub(super) fn tell_session(&mut self, now: u64, _peer: NodeId, session: u64, told: ToSession) -> bool {
        let Some(session) = self.sessions.get_mut(&session) else { return false };
        match told {
            ToSession::Input(input) => session.handle_local(Moment(now), input),
            ToSession::Restart => return true,
        }
        false
    }

    /// What sessions want sent; what they want done goes to the owner's queue.
    pub(super) fn take_frames(&mut self) -> Vec<(u64, Role, Vec<u8>)> {
        let mut frames = Vec::new();
        for (number, session) in &mut self.sessions {
            while let Some(output) = session.poll_output() {
                match output {
                    Output::Transmit { link, frame } => frames.push((*number, link, frame)),
                    other => self.events.push_back((session.peer(), *number, other)),
                }
            }
        }
        frames
    }

    /// The node was down and is started again.
    pub(super) fn come_back(&mut self, kind: CrashKind, keep: usize, lost_store: bool) -> Result<(), String> {
        self.model.tree = None;
        self.events.clear();
        self.exchange.close();
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.model.disk.restart(kind);
        self.model.kv.crash(keep);
        if lost_store {
            self.model.kv = MemoryKvDisk::default();
            let machine = self.model.disk.clone();
            self.model.kv.die_with(move || machine.crashed());
        }
        if kind != CrashKind::Process {
            // What was received and not durable is fetched again.
            let there = self.contents(true);
            let synced = std::mem::take(&mut self.owed_synced);
            self.owed.retain(|content| synced.contains(content) || there.contains(content));
            self.owed_synced = synced;
        }
        self.start()
    }

    /// Contents of regular files on the disk; without `everywhere` only in the tree and the vault.
    fn contents(&self, everywhere: bool) -> BTreeSet<Vec<u8>> {
        let all = self.model.disk.user().snapshot(true).into_iter();
        let files = all.filter(|(path, seen)| {
            let counts = everywhere || !path.starts_with(b".pleach/") || path.starts_with(b".pleach/vault/");
            seen.kind == Kind::File && counts && seen.content.starts_with(b"content ")
        });
        files.map(|(_, seen)| seen.content).collect()
    }

    /// What the disk and the index say of a path.
    pub(super) fn describe(&self, path: &[u8]) -> String {
        let seen = self.model.seen().remove(path);
        let row = TreePath::parse(path).ok().and_then(|p| self.model.tree.as_ref()?.index().row(&p).ok());
        let row =
            row.map(|r| (r.seq, r.live_children, r.entry.content, r.shown.map(|s| (s.shown.context, s.shown.state))));
        format!("{seen:?} {row:?}")
    }

    /// No step of the engine takes a content from the disk; users may.
    pub(super) fn check_contents_kept(&mut self, user: bool) -> Result<(), String> {
        if self.model.disk.crashed() {
            return Ok(());
        }
        let there = self.contents(true);
        if user {
            self.owed.retain(|content| there.contains(content));
        } else if let Some(lost) = self.owed.iter().find(|content| !there.contains(*content)) {
            let (id, lost) = (self.model.id.0[0] - 1, String::from_utf8_lossy(lost));
            return Err(format!("n{id} lost '{lost}': it is neither in its tree nor in its vault"));
        }
        self.owed.append(&mut self.contents(false));
        if user {
            // Users' programs sync.
            self.model.disk.sync();
            self.owed_synced = self.owed.clone();
        }
        Ok(())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
