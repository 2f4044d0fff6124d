//! `conflict = "copy"`: the loser also gets a name beside the winner, made once, by its writer.

use std::io;

use pleach_protocol::entry::Value;
use pleach_protocol::path::TreePath;
use pleach_protocol::view::State;

use super::displace::id_name;
use super::{Tree, TreeError, content_of};
use crate::kv::Kv;
use crate::root::Place;
use crate::vfs::{SetAttributes, Vfs};

/// The longest name. Source: limits.h, `NAME_MAX`.
const NAME_BYTES_MAX: usize = 255;

/// `NAME.conflict-NODE-8HEX.EXT`.
fn copy_name(name: &[u8], node: &str, hash: &[u8; 32]) -> Vec<u8> {
    let dot = name.iter().rposition(|b| *b == b'.').filter(|at| *at > 0);
    let (stem, extension) = name.split_at(dot.unwrap_or(name.len()));
    let hex: String = hash[..4].iter().map(|b| format!("{b:02x}")).collect();
    let tag = format!(".conflict-{node}-{hex}");
    let room = NAME_BYTES_MAX.saturating_sub(tag.len() + extension.len());
    let stem = &stem[..stem.len().min(room)];
    [stem, tag.as_bytes(), extension].concat()
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Puts a copy of a vaulted file beside the winner, if this node wrote it and it is listed as a
    /// loser. To the tree it is a file that a user made.
    pub(super) fn show_copy(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        id: u64,
        state: &State,
    ) -> Result<(), TreeError> {
        let (Value::File { .. }, (_, Some(hash))) = (&state.value, content_of(&state.value)) else { return Ok(()) };
        let ours = |c: &super::Conflict| c.loser.value == state.value && c.loser.dot.actor.node == self.options.node;
        if !self.conflicts(path)?.iter().any(|c| c.path == *path && ours(c)) {
            return Ok(());
        }
        let dir = path.parent().unwrap_or_default();
        let Ok(copy) = dir.join(&copy_name(path.name(), &self.options.name, &hash.0)) else { return Ok(()) };
        match self.make_copy(place, &dir, &copy, id, state) {
            Ok(()) => self.mark(&copy, true, true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => self.set_problem(&copy, format!("a conflict's copy cannot be made: {error}")),
        }
        Ok(())
    }

    fn make_copy(&self, place: &Place<V>, dir: &TreePath, copy: &TreePath, id: u64, state: &State) -> io::Result<()> {
        let dir = self.vfs.open_path(&place.root, dir)?;
        let source = self.vfs.open_file(&place.vault, &id_name(id))?;
        let file = self.vfs.create_temp(&dir)?;
        self.copy_content(&source, &file)?;
        let access = state.access.as_ref();
        let owner = access.filter(|_| self.owners).map(|a| (a.owner.id, a.group.id));
        let set = SetAttributes { owner, mode: access.map(|a| a.mode), mtime: state.mtime };
        self.vfs.set_file_attributes(&file, &set)?;
        let file = self.vfs.finish_temp(file)?;
        self.vfs.sync_data(&file)?;
        self.vfs.link_temp(&file, &dir, copy.name())?;
        self.vfs.sync_dir(&dir)
    }

    /// Copies all of a file; a read may be short, what follows begins where it ended.
    pub(super) fn copy_content(&self, source: &V::File, to: &V::File) -> io::Result<()> {
        let mut buffer = vec![0; 128 * 1024];
        let mut offset = 0;
        loop {
            let n = self.vfs.read_at(source, offset, &mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            self.vfs.write_at(to, offset, &buffer[..n])?;
            offset += n as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_named_beside_the_winner() {
        let hash = [0xab; 32];
        for (name, want) in [
            (&b"a.txt"[..], &b"a.conflict-web1-abababab.txt"[..]),
            (b"a", b"a.conflict-web1-abababab"),
            (b".profile", b".profile.conflict-web1-abababab"),
            (b"a.tar.gz", b"a.tar.conflict-web1-abababab.gz"),
        ] {
            assert_eq!(copy_name(name, "web1", &hash), want);
        }
        assert_eq!(copy_name(&[b'x'; 255], "web1", &hash).len(), 255);
    }
}
