//! What the agent's process has open.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::image::Id;
use super::state::{State, errno};
use crate::vfs::SetAttributes;

/// What every handle holds: whose it is, and that it is open.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) id: Id,
    epoch: u64,
    _open: Arc<()>,
    _of_process: Arc<()>,
}

/// A directory.
#[derive(Debug)]
pub struct ModelDir(pub(super) Handle);

/// An open regular file.
#[derive(Debug)]
pub struct ModelFile {
    pub(super) handle: Handle,
    pub(super) name: Vec<u8>,
    pub(super) writing: Option<Arc<()>>,
    pub(super) failures_seen: AtomicU64,
}

/// A handle for syncing everything.
#[derive(Debug)]
pub struct ModelSyncHandle {
    pub(super) handle: Handle,
    pub(super) failures_seen: AtomicU64,
}

impl State {
    pub(super) fn handle(&mut self, id: Id) -> Handle {
        let open = Arc::clone(&self.opens(id).agent);
        Handle { id, epoch: self.script.epoch, _open: open, _of_process: Arc::clone(&self.script.handles) }
    }

    pub(super) fn dir(&mut self, id: Id) -> ModelDir {
        ModelDir(self.handle(id))
    }

    pub(super) fn file(&mut self, id: Id, name: &[u8]) -> ModelFile {
        let failures_seen = AtomicU64::new(self.failures);
        ModelFile { handle: self.handle(id), name: name.to_vec(), writing: None, failures_seen }
    }

    /// The inode of a handle of the living process.
    pub(super) fn id(&self, handle: &Handle) -> io::Result<Id> {
        self.script.check_alive(handle.epoch)?;
        Ok(handle.id)
    }

    /// A name of a directory as the record shows it.
    pub(super) fn label_name(&self, dir: &ModelDir, name: &[u8]) -> String {
        let name = name.escape_ascii();
        match self.live.label(dir.0.id).as_str() {
            "." => name.to_string(),
            dir => format!("{dir}/{name}"),
        }
    }

    pub(super) fn label(&self, handle: &Handle) -> String {
        self.live.label(handle.id)
    }

    pub(super) fn check_chown(&self, id: Id, set: &SetAttributes) -> io::Result<()> {
        let Some(owner) = set.owner else { return Ok(()) };
        let attributes = self.inode(id)?.attributes;
        let keeps = owner == (attributes.uid, attributes.gid);
        if keeps || self.options.may_chown { Ok(()) } else { Err(errno(libc::EPERM)) }
    }

    /// EIO once for each handle that was open when a write-back failed.
    pub(super) fn report_failure(seen: &AtomicU64, failures: u64) -> io::Result<()> {
        if seen.swap(failures, Ordering::Relaxed) < failures { Err(errno(libc::EIO)) } else { Ok(()) }
    }
}
