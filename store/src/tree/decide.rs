//! What people ask about a path and decide: conflicts, displaced versions, `resolve`, `restore`.

use std::io;

use pleach_protocol::entry::{Hash, Loser, Rank, Value};
use pleach_protocol::mint::{self, Shown};
use pleach_protocol::path::TreePath;
use pleach_protocol::resolve::{self, Decision};
use pleach_protocol::time::Time;
use pleach_protocol::version::Dot;
use pleach_protocol::view::{self, State, Surroundings};

use super::displace::FOUND_BIT;
use super::fetch::REASON_FETCHED;
use super::{Tree, TreeError, content_of};
use crate::index::IndexError;
use crate::kv::Kv;
use crate::rows::{self, Direction, EntryRow, Space, VaultRow};
use crate::vfs::Vfs;

/// Rows read in one go while a list is made.
const LIST_ROWS: usize = 1_000;

/// A version that lost, as every node lists it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conflict {
    /// Where.
    pub path: TreePath,
    /// Its dot as text: the same on every node.
    pub version: String,
    /// The display name of its writer's node.
    pub node: String,
    /// When it was written, by its writer's clock.
    pub time: Time,
    /// Length in bytes, for files.
    pub size: Option<u64>,
    /// The content's hash, for files.
    pub hash: Option<Hash>,
    /// The loser itself.
    pub loser: Loser,
}

/// A displaced version that this node's vault holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Version {
    /// Where it was.
    pub path: TreePath,
    /// Its id here, as text.
    pub version: String,
    /// Why it was displaced.
    pub reason: String,
    /// When.
    pub time: Time,
    /// Length in bytes.
    pub size: u64,
    /// The content's hash; none for symbolic links.
    pub hash: Option<Hash>,
    /// The state it had.
    pub state: State,
}

/// What a conflict is resolved to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kept {
    /// What the tree shows.
    Current,
    /// A listed version; the only one where none is named.
    Vaulted(Option<String>),
}

/// Says why a decision cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecideError {
    /// The tree cannot go on.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Nothing is listed there.
    #[error("nothing is listed for it")]
    Nothing,
    /// The version is not listed.
    #[error("there is no version {0}")]
    NoVersion(String),
    /// More than one version is listed.
    #[error("{0} versions of it are listed: name one with --version")]
    Several(usize),
    /// The tree goes one way: decisions are made where changes come from.
    #[error("this tree {}: decide it on a node that does both", if *.0 == Direction::Send { "only sends here" } else { "only receives here" })]
    OneWay(Direction),
    /// The version was found in the vault of a store that was lost.
    #[error("the path of this version is not known any more: name the path that is to have it")]
    Unnamed,
    /// A directory with something in it stands there.
    #[error("a directory that is not empty stands there")]
    Directory,
    /// A version cannot be written where it was asked for.
    #[error("{}: {source}", target.display())]
    Export {
        /// Where.
        target: std::path::PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The content is not on this node: it must be fetched first.
    #[error("its content is on {holder}, not here")]
    Content {
        /// A path whose entry names it.
        path: TreePath,
        /// The content.
        hash: Hash,
        /// Its length in bytes.
        size: u64,
        /// The display name of its writer's node.
        holder: String,
    },
}

impl From<IndexError> for DecideError {
    fn from(error: IndexError) -> Self {
        Self::Tree(error.into())
    }
}

/// A dot as people see it.
fn dot_text(dot: Dot) -> String {
    let node: String = dot.actor.node.0[..4].iter().map(|b| format!("{b:02x}")).collect();
    format!("{node}-{:016x}-{}", dot.actor.start, dot.counter)
}

fn vault_text(id: u64) -> String {
    match id & FOUND_BIT {
        0 => format!("v{id}"),
        _ => format!("f{}", id & !FOUND_BIT),
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// The conflicts at a path and beneath it.
    ///
    /// # Errors
    /// The store's.
    pub fn conflicts(&self, top: &TreePath) -> Result<Vec<Conflict>, TreeError> {
        let mut found = Vec::new();
        for path in self.conflicted(top)? {
            for (loser, _) in self.losers_of(&path)? {
                let (size, hash) = content_of(&loser.value);
                found.push(Conflict {
                    path: path.clone(),
                    version: dot_text(loser.dot),
                    node: self.writer_name(loser.dot)?,
                    time: Time::from_nanos(loser.rank.0),
                    size,
                    hash,
                    loser,
                });
            }
        }
        Ok(found)
    }

    fn conflicted(&self, top: &TreePath) -> Result<Vec<TreePath>, TreeError> {
        let mut start = vec![Space::Conflict as u8];
        let end = [Space::Conflict as u8 + 1];
        let mut paths = Vec::new();
        loop {
            let rows: Vec<(Vec<u8>, u64)> = self.index.others(&start, &end, LIST_ROWS)?;
            let Some((last, _)) = rows.last() else { return Ok(paths) };
            start.clone_from(last);
            start.push(0);
            let here = rows.iter().filter_map(|(key, _)| rows::key_path(key)).filter(|path| path.is_within(top));
            paths.extend(here);
        }
    }

    fn losers_of(&self, path: &TreePath) -> Result<Vec<(Loser, EntryRow)>, TreeError> {
        let row = self.index.row(path)?;
        let around = Surroundings { live_beneath: row.live_children > 0, ancestor: None };
        Ok(view::conflicts(&row.entry, &around).into_iter().map(|loser| (loser, row.clone())).collect())
    }

    pub(super) fn writer_name(&self, dot: Dot) -> Result<String, TreeError> {
        Ok(self.index.name(dot.actor)?.unwrap_or_else(|| format!("{:?}", dot.actor.node)))
    }

    /// The displaced versions of a path and of all beneath it; of the root also those whose paths are not known any more.
    ///
    /// # Errors
    /// The store's.
    pub fn versions(&self, top: &TreePath) -> Result<Vec<Version>, TreeError> {
        let (mut start, mut end) = rows::subtree_range(Space::Vault, top);
        let mut found = Vec::new();
        if !top.is_root() {
            let (own_start, own_end) = rows::vault_range(top);
            found.extend(self.vault_rows(own_start, &own_end)?);
        } else {
            end = vec![Space::Vault as u8 + 1];
            start.truncate(1);
        }
        found.extend(self.vault_rows(start, &end)?);
        found.retain(|(_, _, row)| row.reason != REASON_FETCHED);
        Ok(found
            .into_iter()
            .map(|(path, id, row)| Version {
                path,
                version: vault_text(id),
                reason: row.reason,
                time: row.time,
                size: row.size,
                hash: row.hash,
                state: row.state,
            })
            .collect())
    }

    fn vault_rows(&self, mut start: Vec<u8>, end: &[u8]) -> Result<Vec<(TreePath, u64, VaultRow)>, TreeError> {
        let mut found = Vec::new();
        loop {
            let rows: Vec<(Vec<u8>, VaultRow)> = self.index.others(&start, end, LIST_ROWS)?;
            let Some((last, _)) = rows.last() else { return Ok(found) };
            start.clone_from(last);
            start.push(0);
            for (key, row) in rows {
                let Some((path, id)) = rows::key_vault(&key) else { continue };
                found.push((path, id, row));
            }
        }
    }

    /// Resolves what is listed at a path and beneath it; returns how many paths were resolved.
    /// Durable, and heard by peers, after the next commit.
    ///
    /// # Errors
    /// [`DecideError`]; [`DecideError::Content`] asks for a fetch, then for another call.
    pub fn resolve(&mut self, top: &TreePath, kept: &Kept) -> Result<usize, DecideError> {
        self.goes_both_ways()?;
        let paths = self.conflicted(top)?;
        if paths.is_empty() {
            return Err(DecideError::Nothing);
        }
        if matches!(kept, Kept::Vaulted(_)) {
            for path in &paths {
                // All or nothing: a content that is missing is fetched before anything is decided.
                self.version_kept(path, kept)?;
            }
        }
        for path in &paths {
            self.observe(path, false, true)?;
            let instead = self.version_kept(path, kept)?;
            let row = self.index.row(path)?;
            let listed: Vec<Loser> = self.losers_of(path)?.into_iter().map(|(loser, _)| loser).collect();
            let current = self.index.view(path, &row)?.map(|s| s.value);
            let current = current.filter(|_| view::own(&row.entry).is_some());
            let seen = row.entry.context.clone();
            let decision =
                Decision { seen: &seen, listed: &listed, current: current.as_ref(), instead: instead.as_ref() };
            let dot = self.next_dot();
            let entry = resolve::resolve(&row.entry, &decision, dot);
            self.index.announce(path, EntryRow { entry, ..row }, None)?;
            self.note_own(path, None, None)?;
            self.index.commit_if_large()?;
            self.revisit(path)?;
        }
        Ok(paths.len())
    }

    fn goes_both_ways(&self) -> Result<(), DecideError> {
        match self.options.direction {
            Direction::Both => Ok(()),
            one_way => Err(DecideError::OneWay(one_way)),
        }
    }

    /// The state that takes the place of the current one; none where that stays.
    fn version_kept(&self, path: &TreePath, kept: &Kept) -> Result<Option<State>, DecideError> {
        let Kept::Vaulted(version) = kept else { return Ok(None) };
        let losers = self.losers_of(path)?;
        let chosen = match version {
            Some(version) => losers.iter().find(|(l, _)| dot_text(l.dot) == *version),
            None if losers.len() > 1 => return Err(DecideError::Several(losers.len())),
            None => losers.first(),
        };
        let Some((loser, row)) = chosen else {
            return Err(version.clone().map_or(DecideError::Nothing, DecideError::NoVersion));
        };
        if row.live_children > 0 {
            return Err(DecideError::Directory);
        }
        self.state_of(path, loser).map(Some)
    }

    /// The whole state of a loser, as far as the vault or the entry still has it.
    fn state_of(&self, path: &TreePath, loser: &Loser) -> Result<State, DecideError> {
        let (start, end) = rows::vault_range(path);
        let vaulted = self.vault_rows(start, &end)?;
        if let Some((_, _, row)) =
            vaulted.iter().rev().find(|(_, _, row)| row.state.value == loser.value && row.reason != REASON_FETCHED)
        {
            return Ok(row.state.clone());
        }
        if let (Some(size), Some(hash)) = content_of(&loser.value)
            && self.open_content(path, hash).is_err()
        {
            let holder = self.writer_name(loser.dot)?;
            return Err(DecideError::Content { path: path.clone(), hash, size, holder });
        }
        let row = self.index.row(path)?;
        let mtime = row.entry.times.values().filter(|t| t.of == loser.value).max_by_key(|t| t.rank).map(|t| t.mtime);
        let mtime = mtime.unwrap_or_else(|| Time::from_nanos(loser.rank.0));
        let access = row.entry.access.values().filter(|a| a.of == loser.value.kind()).max_by_key(|a| a.rank);
        Ok(State { value: loser.value.clone(), mtime: Some(mtime), access: access.map(|a| a.access.clone()) })
    }

    /// The versions that a `restore` means: the named one, else the newest of the path, or the
    /// newest of each path beneath it that is not there any more. One whose path is not known any more is brought to `top`.
    ///
    /// # Errors
    /// [`DecideError`]; [`DecideError::Content`] asks for a fetch, then for another call.
    pub fn restorable(&self, top: &TreePath, version: Option<&str>) -> Result<Vec<(TreePath, State)>, DecideError> {
        let found = self.versions(top)?;
        if let Some(named) = version {
            if let Some(version) = found.iter().find(|v| v.version == named && !v.path.is_root()) {
                return Ok(vec![(version.path.clone(), version.state.clone())]);
            }
            if let Some(state) = self.found_version(named)? {
                let path = Some(top.clone()).filter(|top| !top.is_root()).ok_or(DecideError::Unnamed)?;
                return Ok(vec![(path, state)]);
            }
            let conflict = self.conflicts(top)?.into_iter().find(|c| c.version == named);
            let conflict = conflict.ok_or_else(|| DecideError::NoVersion(named.to_owned()))?;
            let state = self.state_of(&conflict.path, &conflict.loser)?;
            return Ok(vec![(conflict.path, state)]);
        }
        let own = found.iter().filter(|v| v.path == *top && !top.is_root()).max_by_key(|v| v.time);
        if let Some(version) = own {
            return Ok(vec![(version.path.clone(), version.state.clone())]);
        }
        let mut newest: std::collections::BTreeMap<TreePath, Version> = std::collections::BTreeMap::new();
        for version in found.into_iter().filter(|v| !v.path.is_root()) {
            let gone = self.index.view(&version.path, &self.index.row(&version.path)?)?.is_none();
            if gone && newest.get(&version.path).is_none_or(|v| v.time <= version.time) {
                newest.insert(version.path.clone(), version);
            }
        }
        if newest.is_empty() {
            return Err(DecideError::Nothing);
        }
        Ok(newest.into_values().map(|v| (v.path, v.state)).collect())
    }

    /// A version whose path is not known any more.
    fn found_version(&self, named: &str) -> Result<Option<State>, TreeError> {
        let (start, end) = rows::vault_range(&TreePath::ROOT);
        let found = self.vault_rows(start, &end)?.into_iter().find(|(_, id, _)| vault_text(*id) == named);
        Ok(found.map(|(_, _, row)| row.state))
    }

    /// Brings a version back, as a user would who has seen all that is known: what it replaces goes
    /// to the vault. Its content must be on this node.
    ///
    /// # Errors
    /// [`DecideError`].
    pub fn restore(&mut self, path: &TreePath, state: &State) -> Result<(), DecideError> {
        self.goes_both_ways()?;
        self.observe(path, false, true)?;
        let row = self.index.row(path)?;
        if row.live_children > 0 {
            return Err(DecideError::Directory);
        }
        let current = self.index.view(path, &row)?;
        let shown = Shown { context: row.entry.context.clone(), state: current };
        let now = self.now();
        let restored = State { mtime: state.mtime, ..state.clone() };
        let dot = self.next_dot();
        let known = Some(&row.entry).filter(|e| !e.context.is_empty());
        let (entry, _) = mint::mint(known, &shown, Some(&restored), dot, Rank(now.nanos_since_epoch()), false);
        self.index.announce(path, EntryRow { entry, ..row }, None)?;
        self.note_own(path, None, None)?;
        self.index.commit_if_large()?;
        self.revisit(path)?;
        Ok(())
    }

    /// Hands out a content of this node, piece by piece.
    ///
    /// # Errors
    /// ENOENT where this node does not have it, or what `take` says.
    pub fn export(
        &self,
        path: &TreePath,
        value: &Value,
        take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let (Some(size), Some(hash)) = content_of(value) else { return Ok(()) };
        let file = self.open_content(path, hash)?;
        let (mut buffer, mut offset, mut hasher) = (vec![0; 128 * 1024], 0, blake3::Hasher::new());
        loop {
            match self.vfs.read_at(&file, offset, &mut buffer)? {
                0 => break,
                n => {
                    hasher.update(&buffer[..n]);
                    take(&buffer[..n])?;
                    offset += n as u64;
                }
            }
        }
        if offset == size && Hash(*hasher.finalize().as_bytes()) == hash {
            return Ok(());
        }
        Err(io::Error::other("the vault's copy is not what was filed"))
    }
}
