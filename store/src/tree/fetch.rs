//! Contents that this node brings into its vault for somebody else: a peer that asks for what was
//! only forwarded here, or a person who decides for a version that another node holds.

use std::io;

use pleach_protocol::entry::{Hash, Value};
use pleach_protocol::mint::Shown;
use pleach_protocol::path::TreePath;
use pleach_protocol::session::What;
use pleach_protocol::view::State;

use super::displace::id_name;
use super::{Tree, TreeError, Want, WantId};
use crate::kv::Kv;
use crate::rows::VaultRow;
use crate::vfs::Vfs;

/// Why such a row is in the vault.
pub(super) const REASON_FETCHED: &str = "fetched";
/// Fetches under way at once; each holds one open file.
const FETCHES_MAX: usize = 64;

/// One content on its way into the vault.
pub(super) struct Fetch<V: Vfs> {
    path: TreePath,
    hash: Hash,
    size: u64,
    file: V::File,
    hasher: blake3::Hasher,
    filled: u64,
}

impl<V: Vfs> Fetch<V> {
    pub(super) const fn filled(&self) -> u64 {
        self.filled
    }
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Begins to fetch a content into the vault: pieces come by [`Tree::receive`], the end is told
    /// by [`Tree::is_wanted`] and [`Tree::has_content`]. None where too many are under way.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn fetch(&mut self, path: &TreePath, hash: Hash, size: u64) -> Result<Option<Want>, TreeError> {
        if self.fetches.len() >= FETCHES_MAX {
            return Ok(None);
        }
        let place = self.enter()?;
        let staging = |source| TreeError::Disk { what: "staging a content for the vault", source };
        let file = self.vfs.create_temp(&place.vault).map_err(staging)?;
        let id = self.next_want();
        let fetch = Fetch { path: path.clone(), hash, size, file, hasher: blake3::Hasher::new(), filled: 0 };
        self.fetches.insert(id, fetch);
        Ok(Some(Want { id, path: path.clone(), hash, size, what: What::From(0) }))
    }

    /// Whether this node can serve a content.
    pub fn has_content(&self, path: &TreePath, hash: Hash) -> bool {
        self.open_content(path, hash).is_ok()
    }

    /// Whether a content is on its way here already, so that it cannot be had from here.
    pub fn is_on_its_way(&self, hash: Hash) -> bool {
        self.fetches.values().any(|f| f.hash == hash) || self.apply.brings(hash)
    }

    /// How many contents arrived since the start.
    pub const fn arrivals(&self) -> u64 {
        self.arrivals
    }

    pub(super) fn receive_fetch(&mut self, id: WantId, offset: u64, bytes: &[u8], last: bool) -> Result<(), TreeError> {
        let Some(fetch) = self.fetches.get_mut(&id) else { return Ok(()) };
        let end = offset + bytes.len() as u64;
        let fits = offset == fetch.filled && end <= fetch.size;
        if !fits || self.vfs.write_at(&fetch.file, offset, bytes).is_err() {
            self.fetches.remove(&id);
            return Ok(());
        }
        fetch.hasher.update(bytes);
        fetch.filled = end;
        if !last {
            return Ok(());
        }
        let Some(fetch) = self.fetches.remove(&id) else { return Ok(()) };
        if Hash(*fetch.hasher.finalize().as_bytes()) != fetch.hash {
            return Ok(());
        }
        let place = self.enter()?;
        let number = self.index.next_id();
        let filed = || -> io::Result<()> {
            let file = self.vfs.finish_temp(fetch.file)?;
            self.vfs.sync_data(&file)?;
            self.vfs.link_temp(&file, &place.vault, &id_name(number))?;
            self.vfs.sync_dir(&place.vault)
        };
        filed().map_err(|source| TreeError::Disk { what: "filing a fetched content", source })?;
        self.put_fetched(&fetch.path, number, (fetch.size, fetch.hash));
        Ok(())
    }

    /// Lists a file of the vault that was brought there for a path.
    pub(super) fn put_fetched(&mut self, path: &TreePath, id: u64, (size, hash): (u64, Hash)) {
        let row = VaultRow {
            hash: Some(hash),
            size,
            state: State { value: Value::File { size, hash }, mtime: None, access: None },
            time: self.now(),
            reason: REASON_FETCHED.to_owned(),
            open: false,
            stamp: None,
            shown: Shown::default(),
        };
        self.put_version(path, id, &row);
        self.arrivals += 1;
    }
}
