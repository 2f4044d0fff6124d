//! What this disk has of a content: where it is, and whether its inode may be moved instead of copied.
//!
//! Rows of [`Space::Content`](crate::rows::Space) lead from a content to its holders. They are hints:
//! whoever follows one looks whether the holder still says so, and whoever copies verifies the hash.
//! Small contents have no rows; those that just left their path are kept in mind.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::view::State;

use super::content::{Origin, Source, Staged};
use super::displace::id_name;
use super::exchange::INLINE_BYTES_MAX;
use super::{Tree, TreeError, content_of};
use crate::kv::Kv;
use crate::look::stamp_of;
use crate::root::{self, PRIVATE, Place};
use crate::rows::{self, EntryRow, Holder, VaultRow};
use crate::vfs::{Kind, Vfs, Writers};

/// Holders of one content that are tried.
const HOLDERS_MAX: usize = 8;
/// Contents that just went into the vault, or that users just took away, which are kept in mind.
const RECENT_MAX: usize = 16_384;

/// Contents in motion on this disk. Only hints; all of it may be forgotten at any time.
#[derive(Debug, Default)]
pub(super) struct Motion {
    /// Files whose removal waits, by content.
    leaving: BTreeSet<(Hash, TreePath)>,
    /// What went into the vault since the start, and may leave it for another name.
    vaulted: BTreeMap<Hash, (TreePath, u64)>,
    /// What users took from a path that peers had heard of: perhaps it comes back under another, and
    /// then a peer has it.
    departed: BTreeSet<Hash>,
    /// Whether the vault may hold anything: looking for a content there costs a read of the store.
    has_versions: bool,
}

impl Motion {
    pub(super) fn leave(&mut self, hash: Hash, path: &TreePath) {
        self.leaving.insert((hash, path.clone()));
    }

    pub(super) const fn note_versions(&mut self) {
        self.has_versions = true;
    }

    pub(super) fn nothing_leaves(&mut self) {
        self.leaving.clear();
    }

    /// Paths that are to lose a content.
    fn losers(&self, hash: Hash) -> Vec<TreePath> {
        let of = self.leaving.range((hash, TreePath::ROOT)..).take_while(|(of, _)| *of == hash);
        of.take(HOLDERS_MAX).map(|(_, path)| path.clone()).collect()
    }

    fn vault(&mut self, hash: Hash, path: &TreePath, id: u64) {
        if self.vaulted.len() >= RECENT_MAX {
            self.vaulted.clear();
        }
        self.vaulted.insert(hash, (path.clone(), id));
    }

    fn depart(&mut self, hash: Hash) {
        if self.departed.len() >= RECENT_MAX {
            self.departed.clear();
        }
        self.departed.insert(hash);
    }
}

/// The content of a state that has a row; small ones travel as fast as they are found.
fn indexed(state: Option<&State>) -> Option<Hash> {
    match content_of(&state?.value) {
        (Some(size), Some(hash)) if size > INLINE_BYTES_MAX => Some(hash),
        _ => None,
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Notes that a path shows another content than before.
    pub(super) fn note_content(&mut self, path: &TreePath, before: Option<&State>, after: Option<&State>) {
        let (old, new) = (indexed(before), indexed(after));
        if old == new {
            return;
        }
        let holder = Holder::Tree(path.clone());
        if let Some(hash) = old {
            self.index.delete(rows::content_key(hash, &holder));
        }
        if let Some(hash) = new {
            self.index.put_other(rows::content_key(hash, &holder), &());
        }
    }

    /// Notes that a user took a file away whose path peers know.
    pub(super) fn note_departure(&mut self, row: &EntryRow, before: Option<&State>) {
        if let Some((_, Some(hash))) = before.map(|state| content_of(&state.value))
            && row.seq <= self.heard
        {
            self.motion.depart(hash);
        }
    }

    /// Whether peers probably have a content under another name.
    pub(super) fn has_departed(&self, hash: Hash) -> bool {
        self.motion.departed.contains(&hash)
    }

    /// Stores the row of a version in the vault.
    pub(super) fn put_version(&mut self, path: &TreePath, id: u64, row: &VaultRow) {
        // What is nobody's version is found by its content alone, however small.
        let hash = if path.is_root() { row.hash } else { indexed(Some(&row.state)) };
        if let Some(hash) = hash {
            self.index.put_other(rows::content_key(hash, &Holder::Vault(path.clone(), id)), &());
        }
        // A loser that is listed is looked for where it lost.
        if let (Some(hash), false, "deleted" | "replaced") = (row.hash, row.open, row.reason.as_str()) {
            self.motion.vault(hash, path, id);
        }
        self.motion.note_versions();
        self.index.put_other(rows::vault_key(path, id), row);
    }

    /// Deletes the row of a version that is not in the vault any more.
    pub(super) fn forget_version(&mut self, path: &TreePath, id: u64, (size, hash): (u64, Option<Hash>)) {
        if let Some(hash) = hash.filter(|_| size > INLINE_BYTES_MAX || path.is_root()) {
            self.index.delete(rows::content_key(hash, &Holder::Vault(path.clone(), id)));
        }
        self.index.delete(rows::vault_key(path, id));
    }

    /// Opens a content: from the path, from the versions of it, from anywhere else on this disk.
    ///
    /// # Errors
    /// ENOENT where this node does not have it.
    pub(super) fn open_content(&self, path: &TreePath, hash: Hash) -> io::Result<V::File> {
        self.open_held(path, hash, true)
    }

    /// The same for a content of known size: a small one has rows only from the vault, and where it was sought.
    pub(super) fn open_sized(&self, path: &TreePath, size: u64, hash: Hash) -> io::Result<V::File> {
        self.open_held(path, hash, size > INLINE_BYTES_MAX || self.motion.has_versions || self.sought.has_swept())
    }

    fn open_held(&self, path: &TreePath, hash: Hash, has_rows: bool) -> io::Result<V::File> {
        let root = self.vfs.root()?;
        if let Some(file) = self.open_shown(&root, path, hash)? {
            return Ok(file);
        }
        let (start, end) = rows::vault_range(path);
        let versions: Vec<(Vec<u8>, VaultRow)> = match self.motion.has_versions {
            true => self.index.others(&start, &end, usize::MAX).map_err(io::Error::other)?,
            false => Vec::new(),
        };
        for (key, row) in versions.iter().rev().filter(|(_, row)| row.hash == Some(hash)) {
            if let Some(file) = rows::key_vault(key).and_then(|(_, id)| self.open_version(&root, id, row)) {
                return Ok(file);
            }
        }
        let (start, end) = rows::content_range(hash);
        let holders: Vec<(Vec<u8>, ())> = match has_rows {
            true => self.index.others(&start, &end, HOLDERS_MAX).map_err(io::Error::other)?,
            false => Vec::new(),
        };
        let recent = self.motion.vaulted.get(&hash).map(|(path, id)| Holder::Vault(path.clone(), *id));
        let leaving = self.motion.losers(hash).into_iter().map(Holder::Tree);
        for holder in holders.iter().filter_map(|(key, ())| rows::key_content(key)).chain(leaving).chain(recent) {
            let found = match holder {
                Holder::Tree(path) => self.open_shown(&root, &path, hash)?,
                Holder::Vault(path, id) => {
                    let row = self.version(&path, id)?.filter(|row| row.hash == Some(hash));
                    row.and_then(|row| self.open_version(&root, id, &row))
                }
            };
            if let Some(file) = found {
                return Ok(file);
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// Opens a path that shows a content, as far as its stamp says.
    pub(super) fn open_shown(&self, root: &V::Dir, path: &TreePath, hash: Hash) -> io::Result<Option<V::File>> {
        let row = self.index.shared_row(path).map_err(io::Error::other)?;
        // What users made of it where the tree only receives may have the time and the length of what was shown.
        let Some(shown) = self.known_there(path, &row).map_err(io::Error::other)? else { return Ok(None) };
        let shows = matches!(&shown.shown.state, Some(s) if content_of(&s.value).1 == Some(hash));
        let Some(known) = shown.stamp.filter(|_| shows) else { return Ok(None) };
        let Ok(dir) = self.vfs.open_path(root, &path.parent().unwrap_or_default()) else { return Ok(None) };
        let Ok(file) = self.vfs.open_file(&dir, path.name()) else { return Ok(None) };
        let meta = self.vfs.stat_file(&file)?;
        Ok((known.size == meta.size && known.mtime == meta.mtime).then_some(file))
    }

    /// Opens a version that is as long as its row says: the power may have taken what a user wrote before it was filed.
    pub(super) fn open_version(&self, root: &V::Dir, id: u64, row: &VaultRow) -> Option<V::File> {
        let vault = self.vfs.open_dir(&self.vfs.open_dir(root, PRIVATE).ok()?, root::VAULT).ok()?;
        let file = self.vfs.open_file(&vault, &id_name(id)).ok()?;
        let whole = self.vfs.stat_file(&file).is_ok_and(|meta| meta.size == row.size);
        whole.then_some(file)
    }

    fn version(&self, path: &TreePath, id: u64) -> io::Result<Option<VaultRow>> {
        let key = rows::vault_key(path, id);
        let found: Vec<(Vec<u8>, VaultRow)> =
            self.index.others(&key, &rows::after_prefix(&key), 1).map_err(io::Error::other)?;
        Ok(found.into_iter().next().map(|(_, row)| row))
    }

    /// A content for a free name whose inode may be moved there: from a path that is to lose it, or out
    /// of the vault, where it went a moment ago.
    pub(super) fn find_move(
        &mut self,
        place: &Place<V>,
        row: &EntryRow,
        view: &State,
    ) -> Result<Option<Staged<V>>, TreeError> {
        let (Value::File { hash, .. }, None) = (&view.value, row.shown.as_ref().and_then(|s| s.shown.state.as_ref()))
        else {
            return Ok(None);
        };
        for from in self.motion.losers(*hash) {
            let row = self.index.row(&from)?;
            let staged = match self.apply.is_deferred(&from) {
                true => self.open_to_move(place, &from, row, view),
                false => None,
            };
            if staged.is_some() || !self.apply.is_deferred(&from) {
                self.motion.leaving.remove(&(*hash, from));
            }
            if staged.is_some() {
                return Ok(staged);
            }
        }
        let Some((path, id)) = self.motion.vaulted.remove(hash) else { return Ok(None) };
        Ok(self.open_to_adopt(place, (path, id), *hash))
    }

    /// A path may give its inode away where it is as it was shown, to whatever attribute, has one name,
    /// and nobody writes.
    fn open_to_move(&self, place: &Place<V>, from: &TreePath, row: EntryRow, view: &State) -> Option<Staged<V>> {
        let shown = row.shown.as_ref().filter(|shown| !shown.provisional)?;
        let (Some(size), Some(hash)) = content_of(&shown.shown.state.as_ref()?.value) else { return None };
        let dir = self.open_parent(place, from).ok()??;
        let file = self.vfs.open_file(&dir, from.name()).ok()?;
        let meta = self.vfs.stat_file(&file).ok()?;
        let set = self.attributes(view);
        let kept = set.mode.is_none_or(|mode| mode == meta.mode)
            && set.mtime.is_none_or(|mtime| mtime == meta.mtime)
            && set.owner.is_none_or(|owner| owner == (meta.uid, meta.gid));
        let alone = meta.kind == Kind::File && meta.links == 1 && self.vfs.writers(&file) == Writers::None;
        let same = shown.stamp == Some(stamp_of(&meta)) && content_of(&view.value) == (Some(size), Some(hash));
        let source = Some(Source { origin: Origin::Tree(from.clone()), row });
        (kept && alone && same).then_some(Staged { file, hash, size, source })
    }

    /// A version may leave the vault where nothing touched it since it was filed.
    fn open_to_adopt(&self, place: &Place<V>, (path, id): (TreePath, u64), hash: Hash) -> Option<Staged<V>> {
        let row = self.version(&path, id).ok()?.filter(|row| row.hash == Some(hash) && !row.open)?;
        let file = self.vfs.open_file(&place.vault, &id_name(id)).ok()?;
        let meta = self.vfs.stat_file(&file).ok()?;
        let same = row.stamp.is_some_and(|stamp| stamp.same_but_ctime(&stamp_of(&meta)));
        let alone = meta.links == 1 && self.vfs.writers(&file) == Writers::None;
        let source = Some(Source { origin: Origin::Vault(path, id), row: EntryRow::default() });
        (same && alone).then_some(Staged { file, hash, size: row.size, source })
    }
}
