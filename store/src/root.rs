//! The root of a tree and pleach's own directory in it: whether this is still the directory that
//! the store knows (LINUX.md §8), and the handles that work beneath it needs.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use pleach_protocol::path::TreePath;

use crate::vfs::{RootIdentity, Vfs};

/// pleach's directory.
pub const PRIVATE: &[u8] = b".pleach";
const STAGING: &[u8] = b"staging";
pub(crate) const VAULT: &[u8] = b"vault";
const MARKER: &[u8] = b"root";
const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
const CACHE_TAG_TEXT: &[u8] =
    b"Signature: 8a477f597d28d172789f06886806bc55\n# Displaced versions and staging of pleach.\n";

/// Says why a tree must stop until somebody looks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// Nothing is there, or it cannot be opened.
    #[error("the root cannot be opened")]
    Missing(#[source] io::Error),
    /// The directory has no marker or another's: an unmounted disk, a swapped root.
    #[error("the root is not the directory that this tree knows (no .pleach/root with its id): is its disk mounted?")]
    Swapped,
    /// The directory is older than the store: its `.pleach/last` is.
    #[error("the directory is older than what this tree knew of it: was its disk restored from a backup?")]
    WentBack,
    /// pleach's own directory cannot be made or used.
    #[error("the directory .pleach cannot be used")]
    Private(#[source] io::Error),
}

/// Handles for a spell of work; dropped when it ends, so that an idle tree can be unmounted.
pub struct Place<V: Vfs> {
    /// The root.
    pub root: V::Dir,
    /// `.pleach/staging`.
    pub staging: V::Dir,
    /// `.pleach/vault`.
    pub vault: V::Dir,
    /// The directory that was opened last to look at or put what is in it.
    holder: RefCell<Option<(TreePath, Arc<V::Dir>)>>,
}

impl<V: Vfs> Place<V> {
    /// The directory that holds a path: one opening serves a run of names. Somebody may have moved it
    /// since, so nothing that is missing in it counts as gone.
    pub(crate) fn holder(&self, vfs: &V, path: &TreePath) -> io::Result<Arc<V::Dir>> {
        let mut last = self.holder.borrow_mut();
        let dir = path.parent().unwrap_or_default();
        if let Some((_, handle)) = last.as_ref().filter(|(known, _)| *known == dir) {
            return Ok(Arc::clone(handle));
        }
        let handle = Arc::new(vfs.open_path(&self.root, &dir)?);
        *last = Some((dir, Arc::clone(&handle)));
        Ok(handle)
    }

    /// Opens the directory afresh at the next [`Place::holder`].
    pub(crate) fn forget_holder(&self) {
        self.holder.take();
    }
}

impl<V: Vfs> std::fmt::Debug for Place<V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Place")
    }
}

/// Takes a root for this tree: makes `.pleach` and its marker where there is none and none is
/// expected. Returns the identity to compare with from now on, and the marker.
///
/// # Errors
/// [`RootError`]; a root that is expected and is not there is never made.
pub fn claim<V: Vfs>(vfs: &V, expected: Option<&[u8]>, fresh_id: &[u8]) -> Result<(RootIdentity, Vec<u8>), RootError> {
    let identity = vfs.identity().map_err(RootError::Missing)?;
    match (&identity.marker, expected) {
        (Some(marker), None) => Ok((identity.clone(), marker.clone())),
        (Some(marker), Some(expected)) if marker == expected => Ok((identity.clone(), marker.clone())),
        (None, None) => {
            make_private(vfs, fresh_id).map_err(RootError::Private)?;
            let identity = vfs.identity().map_err(RootError::Missing)?;
            Ok((identity, fresh_id.to_vec()))
        }
        _ => Err(RootError::Swapped),
    }
}

fn make_private<V: Vfs>(vfs: &V, id: &[u8]) -> io::Result<()> {
    let root = vfs.root()?;
    let private = open_or_make(vfs, &root, PRIVATE)?;
    open_or_make(vfs, &private, STAGING)?;
    open_or_make(vfs, &private, VAULT)?;
    for (name, text) in [(CACHE_TAG, CACHE_TAG_TEXT), (MARKER, id)] {
        let file = vfs.create_temp(&private)?;
        vfs.write_at(&file, 0, text)?;
        let file = vfs.finish_temp(file)?;
        vfs.sync_data(&file)?;
        match vfs.link_temp(&file, &private, name) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            other => other?,
        }
    }
    vfs.sync_dir(&private)?;
    vfs.sync_dir(&root)
}

fn open_or_make<V: Vfs>(vfs: &V, at: &V::Dir, name: &[u8]) -> io::Result<V::Dir> {
    match vfs.open_dir(at, name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            vfs.create_dir(at, name, 0o700)?;
            vfs.open_dir(at, name)
        }
        other => other,
    }
}

/// Opens the root for a spell of work, after making sure by a fresh look-up that it is still ours.
/// The identity returned differs from `known` where the same tree was mounted anew.
///
/// # Errors
/// [`RootError`].
pub fn enter<V: Vfs>(vfs: &V, known: &RootIdentity) -> Result<(Place<V>, RootIdentity), RootError> {
    let identity = vfs.identity().map_err(RootError::Missing)?;
    if identity.marker != known.marker {
        return Err(RootError::Swapped);
    }
    let root = vfs.root().map_err(RootError::Missing)?;
    let opened = vfs.stat_dir(&root).map_err(RootError::Missing)?;
    if opened.inode != identity.inode {
        return Err(RootError::Swapped);
    }
    let private = open_or_make(vfs, &root, PRIVATE).map_err(RootError::Private)?;
    let staging = open_or_make(vfs, &private, STAGING).map_err(RootError::Private)?;
    let vault = open_or_make(vfs, &private, VAULT).map_err(RootError::Private)?;
    Ok((Place { root, staging, vault, holder: RefCell::default() }, identity))
}

/// pleach's own directory, for probing.
///
/// # Errors
/// What opening says.
pub fn private<V: Vfs>(vfs: &V) -> io::Result<V::Dir> {
    vfs.open_dir(&vfs.root()?, PRIVATE)
}
