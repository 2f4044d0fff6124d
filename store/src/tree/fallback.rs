//! Peers that are pushed to while their agent is away: what their agents had is known, and what such pushes
//! displaced on this disk is taken in when this node is the one that returns (DESIGN.md §8).

use std::collections::BTreeSet;
use std::io;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::mint::{self, Circumstances, Observation};
use pleach_protocol::path::TreePath;

use super::displace::id_name;
use super::{Tree, TreeError, content_of};
use crate::ignore::FALLBACK_DIR;
use crate::index;
use crate::kv::Kv;
use crate::look::{self, Care, Found, Look};
use crate::root::Place;
use crate::rows::{self, EntryRow, PushRow};
use crate::vfs::{Kind, RenameMode, Vfs};

/// The target of a peer's `PushRow` that is pushed to only while its agent is away.
const TARGET: &str = "fallback";
/// What the name of a list of pushed contents ends with; the push's own directory has the rest of it.
pub const LIST_SUFFIX: &[u8] = b".sent";
/// The longest list that is read, in bytes: one push has 10,000 paths at most.
const LIST_BYTES_MAX: u64 = 48 << 20;
/// Pushed contents that are remembered while displaced versions are taken in.
const SENT_MAX: usize = 2_000_000;

/// One pushed content in a list: what is displaced and listed there is the pusher's own, nobody's edit.
#[must_use]
pub fn sent_record(path: &TreePath, hash: &Hash) -> Vec<u8> {
    let mut record: Vec<u8> = hash.0.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
    record.push(b' ');
    record.extend_from_slice(path.as_bytes());
    record.push(0);
    record
}

/// What earlier pushes brought, as digests of their records.
pub(super) type Sent = BTreeSet<[u8; 32]>;

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Takes up peers with a fallback, by local name: from now on what their agents had of a path is noted before it
    /// changes.
    ///
    /// # Errors
    /// The store's.
    pub fn set_fallbacks(&mut self, peers: &BTreeSet<String>) -> Result<(), TreeError> {
        self.index.there_mut().retain(|peer, _| peers.contains(peer));
        for peer in peers {
            if self.index.there_mut().contains_key(peer) {
                continue;
            }
            let applied: u64 = self.index.other(&rows::agent_key(peer))?.unwrap_or(0);
            let row = self.push_row(peer)?;
            if row.as_ref().is_none_or(|row| row.target != TARGET) {
                // What was pushed to a daemon of that name says nothing of this peer.
                self.forget_pushed(peer)?;
                let row = PushRow { target: TARGET.to_owned(), seq: applied, ..PushRow::default() };
                self.put_push_row(peer, &row);
            }
            self.index.there_mut().insert(peer.clone(), applied);
        }
        Ok(())
    }

    /// Notes that a peer's agent is there and applied our journal up to a place: a push begins behind it.
    ///
    /// # Errors
    /// The store's.
    pub fn note_agent(&mut self, peer: &str, applied: u64) -> Result<(), TreeError> {
        let Some(known) = self.index.there_mut().get_mut(peer) else { return Ok(()) };
        *known = applied;
        // What a crash forgets of these is pushed once more, and deleted nowhere.
        self.index.put_other_later(rows::agent_key(peer), &applied);
        let row = self.push_row(peer)?.unwrap_or_default();
        self.index.put_other_later(rows::push_key(peer), &PushRow { seq: applied, ..row });
        if applied >= self.index.meta().head {
            self.forget_pushed(peer)?;
        }
        Ok(())
    }

    /// Takes into the vault what pushes displaced here while this agent was away, and says how much. `before_scan`: the
    /// tree was not looked at since; what was displaced and is neither what was shown then nor what a push had brought is
    /// a user's change, concurrent to the push. What cannot be taken in stays where it is.
    ///
    /// # Errors
    /// [`TreeError`]; what the disk says of single names is logged.
    pub fn take_in_displaced(&mut self, before_scan: bool) -> Result<u64, TreeError> {
        self.brought.clear();
        let place = self.enter()?;
        let top = match self.vfs.open_dir(&place.root, FALLBACK_DIR) {
            Ok(top) => top,
            Err(error) => {
                if error.raw_os_error() != Some(libc::ENOENT) {
                    tracing::warn!(%error, "what pushes displaced cannot be read");
                }
                return Ok(0);
            }
        };
        let mut names: Vec<Vec<u8>> = match self.vfs.list(&top) {
            Ok(names) => names.into_iter().map(|name| name.name).collect(),
            Err(error) => {
                tracing::warn!(%error, "what pushes displaced cannot be listed");
                return Ok(0);
            }
        };
        names.sort();
        let (lists, runs): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.ends_with(LIST_SUFFIX));
        let mut sent = Sent::new();
        for list in &lists {
            self.read_sent(&top, list, &mut sent);
        }
        let mints = before_scan && self.index.meta().paired;
        let (mut taken, mut left) = (0, false);
        for run in runs {
            let done = self.take_in_run(&place, &run, mints.then_some(&sent))?;
            taken += done.0;
            left |= done.1;
        }
        if mints {
            self.brought = sent;
        }
        if !left {
            for list in &lists {
                self.drop_quietly(self.vfs.remove_file(&top, list));
            }
            drop(top);
            self.drop_quietly(self.vfs.remove_dir(&place.root, FALLBACK_DIR));
        }
        if taken > 0 {
            tracing::info!(taken, "versions that pushes displaced went into the vault");
        }
        Ok(taken)
    }

    /// Whether a push brought this while the agent was away: it is older than whatever the pusher made of it since.
    pub(super) fn was_brought(&self, path: &TreePath, value: &Value) -> bool {
        let (_, Some(hash)) = content_of(value) else { return false };
        !self.brought.is_empty() && self.brought.contains(blake3::hash(&sent_record(path, &hash)).as_bytes())
    }

    fn drop_quietly(&self, removed: io::Result<()>) {
        if let Err(error) = removed {
            tracing::debug!(%error, "a name in the directory of displaced versions stays");
        }
    }

    fn read_sent(&self, top: &V::Dir, name: &[u8], sent: &mut Sent) {
        let read = || -> io::Result<Vec<u8>> {
            let file = self.vfs.open_file(top, name)?;
            let size = self.vfs.stat_file(&file)?.size.min(LIST_BYTES_MAX);
            let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
            let mut filled = 0;
            while filled < bytes.len() {
                match self.vfs.read_at(&file, filled as u64, &mut bytes[filled..])? {
                    0 => break,
                    n => filled += n,
                }
            }
            bytes.truncate(filled);
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => {
                let left = SENT_MAX.saturating_sub(sent.len());
                sent.extend(
                    bytes.split_inclusive(|b| *b == 0).take(left).map(|record| *blake3::hash(record).as_bytes()),
                );
            }
            Err(error) => tracing::warn!(%error, "a list of pushed contents cannot be read"),
        }
    }

    /// Takes in what one push displaced; says how much, and whether anything stays there. `sent`: none where nothing is
    /// minted.
    fn take_in_run(&mut self, place: &Place<V>, run: &[u8], sent: Option<&Sent>) -> Result<(u64, bool), TreeError> {
        let (mut taken, mut left) = (0, false);
        let Ok(top) = TreePath::ROOT.join(FALLBACK_DIR).and_then(|dir| dir.join(run)) else { return Ok((0, true)) };
        let mut stack = vec![top.clone()];
        let mut dirs = Vec::new();
        while let Some(path) = stack.pop() {
            let listed = self.vfs.open_path(&place.root, &path).and_then(|dir| Ok((self.vfs.list(&dir)?, dir)));
            let (names, dir) = match listed {
                Ok(listed) => listed,
                Err(error) => {
                    tracing::warn!(%path, %error, "what a push displaced cannot be listed");
                    left = true;
                    continue;
                }
            };
            for name in names {
                let Ok(child) = path.join(&name.name) else {
                    left = true;
                    continue;
                };
                match self.vfs.stat(&dir, &name.name) {
                    Ok(Some(meta)) if meta.kind == Kind::Dir && !meta.mount_point => stack.push(child),
                    Ok(Some(_)) => match self.take_in_one(place, &dir, (&top, &child), sent)? {
                        true => taken += 1,
                        false => left = true,
                    },
                    Ok(None) => {}
                    Err(_) => left = true,
                }
            }
            self.index.commit_if_large()?;
            dirs.push(path);
        }
        for path in dirs.into_iter().rev() {
            if let Ok(dir) = self.vfs.open_path(&place.root, &path.parent().unwrap_or_default()) {
                left |= self.vfs.remove_dir(&dir, path.name()).is_err();
            }
        }
        Ok((taken, left))
    }

    /// Takes in one displaced version; false where it stays.
    fn take_in_one(
        &mut self,
        place: &Place<V>,
        dir: &V::Dir,
        (top, at): (&TreePath, &TreePath),
        sent: Option<&Sent>,
    ) -> Result<bool, TreeError> {
        let Some(path) = at.as_bytes().get(top.as_bytes().len() + 1..).and_then(|rest| TreePath::parse(rest).ok())
        else {
            return Ok(false);
        };
        let care = Care { rehash: true, take_open: true, settle: std::time::Duration::ZERO, ..self.care() };
        let found = match look::look(&*self.vfs, dir, at.name(), None, care) {
            Ok(Look::Found(found)) => found,
            other => {
                tracing::warn!(path = %at, ?other, "what a push displaced stays where it is");
                return Ok(false);
            }
        };
        let row = self.index.row(&path)?;
        let known = row.shown.clone().unwrap_or_default();
        let edited = match sent {
            Some(sent) => !self.receives_only() && self.is_unseen_edit(&path, &row, &found, sent)?,
            None => false,
        };
        if edited {
            tracing::info!(%path, "a change that a push displaced is taken in");
            // The push moved its change time: it was written when its content was.
            let mut written = found.clone();
            written.stamp.ctime = found.stamp.ctime.min(found.stamp.mtime);
            self.mint_late(&path, &known, &written)?;
            // Durable before it moves: what is in the vault without a row is only kept, not named.
            self.commit()?;
        }
        let id = self.index.next_id();
        let moved = self.vfs.rename(dir, at.name(), &place.staging, &id_name(id), RenameMode::NoReplace);
        let reason = if edited { "conflict" } else { "replaced" };
        match moved.and_then(|()| self.file(place, &path, id, &found, &known, reason)) {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::warn!(path = %at, %error, "what a push displaced cannot be taken in");
                Ok(false)
            }
        }
    }

    /// Whether what a push displaced is a user's change that this agent never saw.
    fn is_unseen_edit(&self, path: &TreePath, row: &EntryRow, found: &Found, sent: &Sent) -> Result<bool, TreeError> {
        let (_, Some(hash)) = content_of(&found.state.value) else { return Ok(false) };
        if sent.contains(blake3::hash(&sent_record(path, &hash)).as_bytes()) {
            return Ok(false);
        }
        let known = row.shown.clone().unwrap_or_default();
        // Displaced before this agent saw what is there now: then it saw what was displaced, too.
        let unseen = match known.stamp {
            Some(stamp) => found.stamp.ctime > stamp.ctime,
            None => row.entry.context.is_empty(),
        };
        let same = known.shown.state.as_ref().is_some_and(|state| state.value == found.state.value);
        if !unseen || same {
            return Ok(false);
        }
        let around = self.index.surroundings(path, row)?;
        let late = Circumstances { pairing: false, late: true, receives: false };
        let entry = index::known(row.entry.clone());
        let observed = mint::observe(entry.as_ref(), &around, &known.shown, Some(&found.state), late);
        Ok(observed == Observation::Changed)
    }
}
