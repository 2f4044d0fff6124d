//! What a change brought out of the tree: compared with what was shown there, filed in the vault,
//! and watched while somebody still writes into it (LINUX.md §3, §4).

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use pleach_protocol::entry::Value;
use pleach_protocol::mint::{self, Circumstances, Observation};
use pleach_protocol::path::TreePath;

use super::{Tree, TreeError, content_of};
use crate::kv::Kv;
use crate::look::{self, Care, Found, Look};
use crate::root::Place;
use crate::rows::{self, EntryRow, Pairing, ShownRow, VaultRow};
use crate::vfs::{RenameMode, Vfs, Writers};

/// Vaulted files that a writer still has open; beyond it the oldest are compared at the next start.
const LATE_MAX: usize = 4_096;

/// A version that is so long makes room in memory: few of them are read again.
const LET_GO_BYTES: u64 = 1024 * 1024;

/// Vaulted files whose writers have not closed them yet, by id.
pub(super) type LateWriters = BTreeMap<u64, TreePath>;

/// What the names begin with of files that were found in staging, or beside what was filed.
const FOUND: &str = "found-";
/// In the id of such a file.
pub(super) const FOUND_BIT: u64 = 1 << 63;

/// The name of an id in staging and in the vault.
pub(super) fn id_name(id: u64) -> Vec<u8> {
    match id & FOUND_BIT {
        0 => format!("{id:016x}"),
        _ => format!("{FOUND}{:016x}", id & !FOUND_BIT),
    }
    .into_bytes()
}

/// The id in such a name; none in what somebody else put there.
pub(super) fn name_id(name: &[u8]) -> Option<u64> {
    let name = std::str::from_utf8(name).ok()?;
    let (digits, bit) = name.strip_prefix(FOUND).map_or((name, 0), |rest| (rest, FOUND_BIT));
    let id = u64::from_str_radix(digits, 16).ok().filter(|id| *id < u64::MAX / 2)?;
    (id_name(id | bit) == name.as_bytes()).then_some(id | bit)
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Judges what lies in staging under `id` after it was displaced from `path`, where `row` was
    /// shown: anything but that is a user's change, minted against what was shown then. Files it.
    pub(super) fn judge_displaced(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        id: u64,
        row: &EntryRow,
        reason: &str,
    ) -> Result<(), TreeError> {
        let disk = |source| TreeError::Disk { what: "filing a displaced version", source };
        let known = row.shown.clone().unwrap_or_default();
        let care = Care { rehash: true, take_open: true, ..self.care() };
        let seen = look::look(&*self.vfs, &place.staging, &id_name(id), Some(&known), care).map_err(disk)?;
        let found = match (seen, known.shown.state.clone(), known.stamp) {
            (Look::Found(found), ..) => found,
            // A lease keeps us out (Samba): it is filed as what was shown, and looked at when it is free.
            (Look::Busy, Some(state), Some(stamp)) => {
                Box::new(Found { state, stamp, provisional: true, links: 1, read: None, cut: None })
            }
            _ => return Ok(()),
        };
        let unchanged = known.stamp.is_none_or(|s| s.same_but_ctime(&found.stamp));
        let observed = mint::observe(
            Some(&row.entry),
            &self.index.surroundings(path, row)?,
            &known.shown,
            Some(&found.state),
            Circumstances { pairing: false, late: true, receives: false },
        );
        let differs = observed == Observation::Changed;
        if differs || !unchanged {
            tracing::debug!(path = %path, differs, "displaced version is not what was shown");
        }
        let edited = differs && self.mint_late(path, &known, &found)?;
        let reason = if edited { "conflict" } else { reason };
        self.file(place, path, id, &found, &known, reason).map_err(disk)?;
        if reason == "conflict" && self.options.copies {
            self.show_copy(place, path, id, &found.state)?;
        }
        Ok(())
    }

    /// Mints a change that came to light after the name was taken away, but where the tree only receives; Shown is the
    /// caller's. Says whether it was minted.
    pub(super) fn mint_late(&mut self, path: &TreePath, known: &ShownRow, found: &Found) -> Result<bool, TreeError> {
        if self.receives_only() {
            return Ok(false);
        }
        let row = self.index.row(path)?;
        let disk = Some((&found.state, found.stamp.ctime));
        let (minted, _) = self.mint(path, &row, &known.shown, disk, Pairing::No)?;
        let writer = self.options.name.clone();
        self.record(path, minted.seq, known.shown.state.as_ref(), Some(&found.state), writer);
        self.revisit(path)?;
        Ok(true)
    }

    /// Moves a displaced file from staging into the vault under the same id. An inode with other
    /// names is copied: a write through them would change the vault (LINUX.md §4).
    pub(super) fn file(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        id: u64,
        found: &Found,
        known: &ShownRow,
        reason: &str,
    ) -> io::Result<()> {
        let name = id_name(id);
        let (size, hash) = content_of(&found.state.value);
        let mut open = false;
        if matches!(found.state.value, Value::File { .. }) {
            match self.vfs.open_file(&place.staging, &name) {
                Ok(file) if found.links > 1 => {
                    self.copy_to_vault(place, &file, &name)?;
                    self.vfs.remove_file(&place.staging, &name)?;
                }
                Ok(file) => {
                    open = self.vfs.writers(&file) == Writers::Some;
                    if !open && size.is_some_and(|size| size >= LET_GO_BYTES) {
                        self.vfs.let_go(&file, 0..u64::MAX);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => open = true,
                Err(error) => return Err(error),
            }
        }
        if found.links == 1 || !matches!(found.state.value, Value::File { .. }) {
            self.vfs.rename(&place.staging, &name, &place.vault, &name, RenameMode::NoReplace)?;
        }
        let row = VaultRow {
            hash,
            size: size.unwrap_or(0),
            state: found.state.clone(),
            time: self.now(),
            reason: reason.to_owned(),
            open,
            stamp: Some(found.stamp),
            shown: known.shown.clone(),
        };
        self.put_version(path, id, &row);
        if open && self.late.len() < LATE_MAX {
            self.late.insert(id, path.clone());
        }
        Ok(())
    }

    fn copy_to_vault(&self, place: &Place<V>, source: &V::File, name: &[u8]) -> io::Result<()> {
        let copy = self.vfs.create_temp(&place.vault)?;
        self.copy_content(source, &copy)?;
        let copy = self.vfs.finish_temp(copy)?;
        self.vfs.sync_data(&copy)?;
        self.vfs.link_temp(&copy, &place.vault, name)?;
        self.vfs.sync_dir(&place.vault)
    }

    /// Looks after vaulted files that somebody had open: what they wrote late is their change.
    /// Returns how many are still open.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn check_late_writers(&mut self) -> Result<usize, TreeError> {
        if self.late.is_empty() {
            return Ok(0);
        }
        let place = self.enter()?;
        let disk = |source| TreeError::Disk { what: "reading a vaulted version", source };
        let late: Vec<(u64, TreePath)> = self.late.iter().map(|(id, path)| (*id, path.clone())).collect();
        for (id, path) in late {
            let key = rows::vault_key(&path, id);
            let filed: Option<(Vec<u8>, VaultRow)> =
                self.index.others(&key, &rows::after_prefix(&key), 1)?.into_iter().next();
            let Some((_, mut row)) = filed else {
                self.late.remove(&id);
                continue;
            };
            let known = ShownRow { shown: row.shown.clone(), stamp: row.stamp, provisional: true };
            let care = Care { settle: Duration::ZERO, ..self.care() };
            match look::look(&*self.vfs, &place.vault, &id_name(id), Some(&known), care).map_err(disk)? {
                Look::Found(found) => {
                    if found.state.value != row.state.value {
                        let minted = self.mint_late(&path, &ShownRow { shown: row.shown.clone(), ..known }, &found)?;
                        let (size, hash) = content_of(&found.state.value);
                        let reason = if minted { "conflict".into() } else { row.reason };
                        row = VaultRow { size: size.unwrap_or(0), hash, reason, ..row };
                    }
                    row = VaultRow { open: false, state: found.state, stamp: Some(found.stamp), ..row };
                    self.put_version(&path, id, &row);
                    self.late.remove(&id);
                }
                Look::Busy => {}
                _ => {
                    self.late.remove(&id);
                }
            }
        }
        Ok(self.late.len())
    }

    /// Takes up, at a start, the vaulted files that were open when the agent stopped, and passes over those that have rows.
    pub(super) fn find_late_writers(&mut self) -> Result<(), TreeError> {
        let mut start = vec![rows::Space::Vault as u8];
        let end = rows::after_prefix(&start);
        loop {
            let rows: Vec<(Vec<u8>, VaultRow)> = self.index.others(&start, &end, 512)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            self.motion.note_versions();
            start.clone_from(last);
            start.push(0);
            for (key, row) in rows {
                let Some((path, id)) = rows::key_vault(&key) else { continue };
                self.unlisted.is_listed(id);
                if row.open {
                    self.late.insert(id, path);
                }
            }
        }
    }
}
