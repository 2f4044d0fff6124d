//! Users of the modelled disk: whoever writes into the tree beside the agent.
//!
//! Calls go by path from what the root's path leads to, `/` between names, `.pleach` not barred.
//! They follow no links, never crash, never count and meet no planned fault.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use pleach_protocol::path::PRIVATE_NAME;
use pleach_protocol::time::Time;

use super::ModelDisk;
use super::image::{Body, Id};
use super::state::{Edit, State, Target, checked, errno};
use crate::vfs::{Kind, Meta, SetAttributes};

/// A user with rights to everything.
#[derive(Clone, Debug)]
pub struct ModelUser {
    disk: ModelDisk,
    owner: (u32, u32),
}

/// A file that a user has open for writing, closed by dropping it. It goes with the inode, wherever that is renamed to.
#[derive(Debug)]
pub struct UserFile {
    disk: ModelDisk,
    id: Id,
    boot: u64,
    _writing: Arc<()>,
}

/// What a user sees at one path.
#[derive(Clone, Eq, PartialEq)]
pub struct Seen {
    /// What it is.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Content time.
    pub mtime: Time,
    /// A file's bytes or a link's target, else empty.
    pub content: Vec<u8>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, mode, uid, gid, mtime, content } = self;
        let (secs, nanos) = (mtime.secs, mtime.nanos);
        write!(f, "{kind:?} {mode:o} {uid}:{gid} {secs}.{nanos:09} \"{}\"", content.escape_ascii())
    }
}

#[allow(clippy::missing_errors_doc, reason = "each fails as its system call does")]
impl ModelUser {
    pub(super) fn new(disk: ModelDisk, owner: (u32, u32)) -> Self {
        Self { disk, owner }
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.disk.now()
    }

    /// Writes a file in place, from nothing; makes it where it is not there.
    pub fn write(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (dir, name) = locate(&state, path.as_ref())?;
        let id = match state.child(dir, name)? {
            Some(id) => id,
            None => state.create(dir, Some(name), 0o644, self.owner, Body::File(Arc::default()))?,
        };
        state.note_opened(id, dir, name);
        state.user_edit(id, Edit::Replace(content.as_ref().to_vec()))
    }

    /// Writes a file beside the old one and renames it over.
    pub fn replace(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (dir, name) = locate(&state, path.as_ref())?;
        let beside = b".replacement~";
        let id = state.create(dir, Some(beside), 0o644, self.owner, Body::File(Arc::default()))?;
        state.user_edit(id, Edit::Append(content.as_ref().to_vec()))?;
        state.rename((dir, beside), (dir, name), Target::Replace)
    }

    /// Makes a new file; EEXIST where the name is taken.
    pub fn create(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (dir, name) = locate(&state, path.as_ref())?;
        let id = state.create(dir, Some(name), 0o644, self.owner, Body::File(Arc::default()))?;
        state.user_edit(id, Edit::Append(content.as_ref().to_vec()))
    }

    /// Appends to a file.
    pub fn append(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> io::Result<()> {
        self.edit(path.as_ref(), Edit::Append(content.as_ref().to_vec()))
    }

    /// Writes over part of a file.
    pub fn patch(&self, path: impl AsRef<[u8]>, offset: usize, content: impl AsRef<[u8]>) -> io::Result<()> {
        self.edit(path.as_ref(), Edit::Patch(offset, content.as_ref().to_vec()))
    }

    /// Cuts a file, or lengthens it with zeros.
    pub fn truncate(&self, path: impl AsRef<[u8]>, size: usize) -> io::Result<()> {
        self.edit(path.as_ref(), Edit::Truncate(size))
    }

    fn edit(&self, path: &[u8], edit: Edit) -> io::Result<()> {
        let mut state = self.disk.lock();
        let id = open(&mut state, path)?;
        state.user_edit(id, edit)
    }

    /// Opens a file for writing, and to map it; EAGAIN while somebody has a lease.
    pub fn open_writing(&self, path: impl AsRef<[u8]>) -> io::Result<UserFile> {
        let mut state = self.disk.lock();
        let id = open(&mut state, path.as_ref())?;
        if state.inode(id)?.kind() != Kind::File {
            return Err(errno(libc::EINVAL));
        }
        if state.leases.contains_key(&id) {
            return Err(errno(libc::EAGAIN));
        }
        let writing = Arc::clone(&state.opens(id).user_writing);
        Ok(UserFile { disk: self.disk.clone(), id, boot: state.boot, _writing: writing })
    }

    /// Makes a directory and its parents, those that are missing.
    pub fn mkdir_all(&self, path: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let mut dir = state.root();
        for name in path.as_ref().split(|b| *b == b'/') {
            if state.child(dir, checked(name)?)?.is_none() {
                state.create(dir, Some(name), 0o755, self.owner, Body::Dir(BTreeMap::new()))?;
            }
            dir = state.step(dir, name)?;
        }
        Ok(())
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, target: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (dir, name) = locate(&state, path.as_ref())?;
        state.create(dir, Some(name), 0o777, self.owner, Body::Symlink(target.as_ref().to_vec())).map(drop)
    }

    /// Makes a FIFO.
    pub fn mkfifo(&self, path: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (dir, name) = locate(&state, path.as_ref())?;
        state.create(dir, Some(name), 0o644, self.owner, Body::Special).map(drop)
    }

    /// Gives a file another name.
    pub fn hard_link(&self, old: impl AsRef<[u8]>, new: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let id = find(&state, old.as_ref())?;
        if state.inode(id)?.kind() == Kind::Dir {
            return Err(errno(libc::EPERM));
        }
        let (dir, name) = locate(&state, new.as_ref())?;
        state.link(id, dir, name)
    }

    /// Renames, over what is there.
    pub fn rename(&self, old: impl AsRef<[u8]>, new: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (old, new) = (locate(&state, old.as_ref())?, locate(&state, new.as_ref())?);
        state.rename(old, new, Target::Replace)
    }

    /// Removes a name or an empty directory.
    pub fn remove(&self, path: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (dir, name) = locate(&state, path.as_ref())?;
        remove(&mut state, dir, name)
    }

    /// Removes a name with everything beneath; nothing where it is not there.
    pub fn remove_all(&self, path: impl AsRef<[u8]>) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (dir, name) = locate(&state, path.as_ref())?;
        if state.child(dir, name)?.is_none() { Ok(()) } else { remove_all(&mut state, dir, name) }
    }

    /// Changes the mode.
    pub fn chmod(&self, path: impl AsRef<[u8]>, mode: u32) -> io::Result<()> {
        self.set(path.as_ref(), &SetAttributes { mode: Some(mode), ..SetAttributes::default() })
    }

    /// Changes owner and group.
    pub fn chown(&self, path: impl AsRef<[u8]>, uid: u32, gid: u32) -> io::Result<()> {
        self.set(path.as_ref(), &SetAttributes { owner: Some((uid, gid)), ..SetAttributes::default() })
    }

    /// Sets the content time.
    pub fn touch(&self, path: impl AsRef<[u8]>, mtime: Time) -> io::Result<()> {
        self.set(path.as_ref(), &SetAttributes { mtime: Some(mtime), ..SetAttributes::default() })
    }

    fn set(&self, path: &[u8], set: &SetAttributes) -> io::Result<()> {
        let mut state = self.disk.lock();
        let id = open(&mut state, path)?;
        state.set_attributes(id, set)
    }

    /// Mounts something on a directory, or takes it away. What lies beneath stays as it is.
    pub fn set_mount_point(&self, path: impl AsRef<[u8]>, mounted: bool) -> io::Result<()> {
        let mut state = self.disk.lock();
        let (dir, name) = locate(&state, path.as_ref())?;
        let id = state.existing(dir, name)?;
        if state.inode(id)?.kind() != Kind::Dir {
            return Err(errno(libc::ENOTDIR));
        }
        if mounted {
            state.mounts.insert(id);
        } else {
            state.mounts.remove(&id);
        }
        Ok(())
    }

    /// A file's bytes.
    pub fn read(&self, path: impl AsRef<[u8]>) -> io::Result<Vec<u8>> {
        let state = self.disk.lock();
        let inode = state.inode(find(&state, path.as_ref())?)?;
        inode.data().map(|data| data.to_vec()).ok_or_else(|| errno(libc::EINVAL))
    }

    /// lstat.
    pub fn stat(&self, path: impl AsRef<[u8]>) -> io::Result<Meta> {
        let state = self.disk.lock();
        state.meta(find(&state, path.as_ref())?)
    }

    /// Whether there is something at the path.
    #[must_use]
    pub fn exists(&self, path: impl AsRef<[u8]>) -> bool {
        find(&self.disk.lock(), path.as_ref()).is_ok()
    }

    /// Everything below the root by path; without `.pleach` unless asked for.
    #[must_use]
    pub fn snapshot(&self, with_private: bool) -> BTreeMap<Vec<u8>, Seen> {
        self.walk(with_private, false)
    }

    /// The same as it will be when the writes that wait for the end of a lease are done.
    #[must_use]
    pub fn foreseen(&self, with_private: bool) -> BTreeMap<Vec<u8>, Seen> {
        self.walk(with_private, true)
    }

    fn walk(&self, with_private: bool, with_deferred: bool) -> BTreeMap<Vec<u8>, Seen> {
        let state = self.disk.lock();
        let mut seen = BTreeMap::new();
        let mut todo = vec![(state.root(), Vec::new())];
        while let Some((dir, prefix)) = todo.pop() {
            for (name, id) in state.inode(dir).ok().and_then(|inode| inode.names()).into_iter().flatten() {
                if prefix.is_empty() && name == PRIVATE_NAME && !with_private {
                    continue;
                }
                let Ok(inode) = state.inode(*id) else { continue };
                let path = [prefix.as_slice(), name].concat();
                let content = match &inode.body {
                    Body::File(data) if with_deferred => state.foresee(*id, data.to_vec()),
                    Body::File(data) => data.to_vec(),
                    Body::Symlink(target) => target.clone(),
                    Body::Dir(_) | Body::Special => Vec::new(),
                };
                let a = inode.attributes;
                let (kind, mtime) = (inode.kind(), a.mtime);
                seen.insert(path.clone(), Seen { kind, mode: a.mode, uid: a.uid, gid: a.gid, mtime, content });
                if kind == Kind::Dir {
                    todo.push((*id, [path.as_slice(), b"/"].concat()));
                }
            }
        }
        seen
    }
}

#[allow(
    clippy::missing_errors_doc,
    reason = "each fails as its system call does, and EIO after a crash of the machine"
)]
impl UserFile {
    /// Writes at an offset.
    pub fn write_at(&self, offset: usize, content: impl AsRef<[u8]>) -> io::Result<()> {
        self.state()?.edit(self.id, &Edit::Patch(offset, content.as_ref().to_vec()))
    }

    /// Writes at the end.
    pub fn append(&self, content: impl AsRef<[u8]>) -> io::Result<()> {
        self.state()?.edit(self.id, &Edit::Append(content.as_ref().to_vec()))
    }

    /// Stores through a shared mapping, within the file's size: only the first store after a write-back
    /// changes the stamp (LINUX.md 2a).
    pub fn store(&self, offset: usize, content: impl AsRef<[u8]>) -> io::Result<()> {
        self.state()?.store(self.id, offset, content.as_ref())
    }

    fn state(&self) -> io::Result<std::sync::MutexGuard<'_, State>> {
        let state = self.disk.lock();
        if state.boot == self.boot { Ok(state) } else { Err(errno(libc::EIO)) }
    }
}

impl Drop for UserFile {
    fn drop(&mut self) {
        // Nobody closes what a crash took.
        if let Ok(mut state) = self.state() {
            state.notify_inode(self.id, libc::IN_CLOSE_WRITE);
        }
    }
}

/// The directory and the last name of a path.
fn locate<'a>(state: &State, path: &'a [u8]) -> io::Result<(Id, &'a [u8])> {
    let mut names: Vec<_> = path.split(|b| *b == b'/').collect();
    let last = names.pop().unwrap_or_default();
    let mut dir = state.root();
    for name in names {
        dir = match state.step(dir, checked(name)?) {
            // Users walk into mounts.
            Err(error) if error.raw_os_error() == Some(libc::EXDEV) => state.existing(dir, name)?,
            other => other?,
        };
    }
    Ok((dir, checked(last)?))
}

/// Finds what events will then be told of under this name.
fn open(state: &mut State, path: &[u8]) -> io::Result<Id> {
    let (dir, name) = locate(state, path)?;
    let id = state.existing(dir, name)?;
    state.note_opened(id, dir, name);
    Ok(id)
}

fn find(state: &State, path: &[u8]) -> io::Result<Id> {
    let (dir, name) = locate(state, path)?;
    state.existing(dir, name)
}

fn remove(state: &mut State, dir: Id, name: &[u8]) -> io::Result<()> {
    let id = state.existing(dir, name)?;
    if state.inode(id)?.kind() == Kind::Dir { state.remove_dir(dir, name) } else { state.unlink(dir, name) }
}

fn remove_all(state: &mut State, dir: Id, name: &[u8]) -> io::Result<()> {
    let id = state.existing(dir, name)?;
    let names: Vec<_> = state.inode(id)?.names().into_iter().flatten().map(|(name, _)| name.clone()).collect();
    for inner in names {
        remove_all(state, id, &inner)?;
    }
    remove(state, dir, name)
}
