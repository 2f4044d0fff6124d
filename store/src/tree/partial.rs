//! Large contents under construction: they have a name in staging and a row, so that what arrived
//! is not sent again, whatever happens to the link or to either agent.
//!
//! What is there is read and hashed again before more is asked for, and the whole is verified like
//! any content: what a crash of the machine tore is thrown away then.

use std::io;

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;

use super::displace::id_name;
use super::{Tree, TreeError};
use crate::kv::Kv;
use crate::root::Place;
use crate::rows::{self, Space, StagedRow};
use crate::vfs::{Kind, Vfs};

/// A content that is partly here.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    pub(super) id: u64,
    hash: Hash,
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Opens what is here of a path's content, with its id and length; what is here of another one goes.
    pub(super) fn open_partial(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        (hash, size): (Hash, u64),
    ) -> io::Result<Option<(V::File, u64, u64)>> {
        let Some(partial) = self.partials.get(path).cloned() else { return Ok(None) };
        if partial.hash == hash
            && let Ok(file) = self.vfs.open_staged(&place.staging, &id_name(partial.id))
            && let meta = self.vfs.stat_file(&file)?
            && meta.links == 1
            && meta.size <= size
        {
            // A write-back may have failed, and the kernel takes what it did not write for clean: the disk is to say what it has
            // (LINUX.md §11).
            self.vfs.let_go(&file, 0..u64::MAX);
            return Ok(Some((file, partial.id, meta.size)));
        }
        self.drop_partial(place, path)?;
        Ok(None)
    }

    /// Begins a content that survives a restart: its row is durable before its name.
    pub(super) fn begin_partial(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        (hash, size): (Hash, u64),
    ) -> Result<io::Result<(V::File, u64)>, TreeError> {
        let id = self.index.next_id();
        let row = StagedRow { path: path.clone(), hash, size };
        self.index.put_other(rows::number_key(Space::Staged, id), &row);
        self.index.flush()?;
        self.partials.insert(path.clone(), Partial { id, hash });
        let begun = self.vfs.create_temp(&place.staging).and_then(|file| {
            self.vfs.link_temp(&file, &place.staging, &id_name(id))?;
            Ok((file, id))
        });
        if begun.is_err() {
            self.forget_partial(path);
        }
        Ok(begun)
    }

    /// Throws away what is here of a path's content.
    pub(super) fn drop_partial(&mut self, place: &Place<V>, path: &TreePath) -> io::Result<()> {
        let Some(partial) = self.partials.get(path) else { return Ok(()) };
        match self.vfs.remove_file(&place.staging, &id_name(partial.id)) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
        self.forget_partial(path);
        Ok(())
    }

    /// The content has its name, or none: its row goes.
    pub(super) fn forget_partial(&mut self, path: &TreePath) {
        if let Some(partial) = self.partials.remove(path) {
            self.index.delete(rows::number_key(Space::Staged, partial.id));
        }
    }

    /// Finds, at a start, what an earlier life left.
    pub(super) fn find_partials(&mut self, place: &Place<V>) -> Result<(), TreeError> {
        let disk = |source| TreeError::Disk { what: "reading staging", source };
        let found: Vec<(Vec<u8>, StagedRow)> =
            self.index.others(&[Space::Staged as u8], &[Space::Staged as u8 + 1], usize::MAX)?;
        for (key, row) in found {
            let Some(id) = rows::key_number(&key) else { continue };
            let there = self.vfs.stat(&place.staging, &id_name(id)).map_err(disk)?;
            let whole = there.is_some_and(|meta| meta.kind == Kind::File && meta.links == 1);
            if whole && !self.partials.contains_key(&row.path) {
                self.partials.insert(row.path, Partial { id, hash: row.hash });
            } else {
                self.index.delete(key);
            }
        }
        Ok(())
    }

    /// Whether a name in staging is one of these.
    pub(super) fn is_partial(&self, name: &[u8]) -> bool {
        self.partials.values().any(|partial| id_name(partial.id) == name)
    }
}
