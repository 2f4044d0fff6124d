//! The agent's process on a modelled disk: [`Vfs`] call by call.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use pleach_protocol::path::{PRIVATE_NAME, TreePath};

use super::ModelDisk;
use super::crash::scramble;
use super::handle::{ModelDir, ModelFile, ModelSyncHandle};
use super::image::{Body, Id};
use super::script::OpKind;
use super::state::{Edit, State, Target, checked, errno};
use crate::vfs::{Kind, Meta, Name, RenameMode, RootIdentity, SetAttributes, Syncing, Vfs, Writers};

/// The owner of what the agent makes.
const AGENT: (u32, u32) = (0, 0);
/// The longest target of a link. Source: `PATH_MAX` less its NUL.
const TARGET_BYTES_MAX: usize = 4095;

/// One process's view of a disk, from its start to its crash.
#[derive(Debug)]
pub struct ModelVfs {
    disk: ModelDisk,
    epoch: u64,
}

impl ModelVfs {
    /// Starts a process on the disk as it is.
    #[must_use]
    pub fn new(disk: &ModelDisk) -> Self {
        Self { disk: disk.clone(), epoch: disk.lock().script.epoch }
    }

    /// The disk beneath.
    #[must_use]
    pub fn disk(&self) -> &ModelDisk {
        &self.disk
    }

    /// What happens around every call: the users' actions before it, its crash, its fault, its record.
    fn call<T>(
        &self,
        op: OpKind,
        names: &[&[u8]],
        label: impl FnOnce(&State) -> String,
        work: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.disk.lock();
        state.script.check_alive(self.epoch)?;
        let due = state.script.take_due(op);
        if !due.is_empty() {
            drop(state);
            for action in due {
                action(&self.disk.user());
            }
            state = self.disk.lock();
            state.script.check_alive(self.epoch)?;
        }
        state.script.count(op)?;
        let label = (state.script.recording && op.is_counted()).then(|| label(&state));
        let result = match state.script.fault(op, names) {
            Some(fault) => Err(fault),
            None => work(&mut state),
        };
        if let Some(label) = label {
            let number = result.as_ref().err().and_then(io::Error::raw_os_error);
            let failure = number.map_or_else(String::new, |number| format!(" = {number}"));
            state.script.recorded.push(format!("{op:?} {label}{failure}"));
        }
        result
    }

    /// A call that is never recorded.
    fn look<T>(&self, op: OpKind, names: &[&[u8]], work: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        self.call(op, names, |_| String::new(), work)
    }
}

/// A read lease until it goes out of scope, also when work panics.
struct Lease<'a> {
    disk: &'a ModelDisk,
    id: Id,
    epoch: u64,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        // The end of the process took it already.
        if state.script.epoch == self.epoch {
            state.end_lease(self.id);
        }
    }
}

impl Vfs for ModelVfs {
    type Dir = ModelDir;
    type File = ModelFile;
    type SyncHandle = ModelSyncHandle;

    fn identity(&self) -> io::Result<RootIdentity> {
        self.look(OpKind::Identity, &[], |state| {
            let root = state.root();
            let private = state.child(root, PRIVATE_NAME)?;
            let marker = match private {
                Some(private) if state.inode(private)?.kind() == Kind::Dir => state.child(private, b"root")?,
                _ => None,
            };
            let marker = marker.and_then(|id| state.live.get(id)?.data().map(|data| data.to_vec()));
            let inode = state.inode(root)?.number;
            let (fsid, mount, device) =
                if state.mounted { (0xd15c, state.mount + 1, 0x801) } else { (0xba5e, 1, 0x802) };
            Ok(RootIdentity { fsid, mount, device, inode, marker })
        })
    }

    fn root(&self) -> io::Result<ModelDir> {
        self.look(OpKind::Root, &[], |state| {
            let root = state.root();
            Ok(state.dir(root))
        })
    }

    fn open_path(&self, at: &ModelDir, path: &TreePath) -> io::Result<ModelDir> {
        self.look(OpKind::OpenPath, &[path.name()], |state| {
            let mut id = state.id(&at.0)?;
            for name in path.components() {
                id = state.step(id, name)?;
            }
            Ok(state.dir(id))
        })
    }

    fn open_dir(&self, at: &ModelDir, name: &[u8]) -> io::Result<ModelDir> {
        self.look(OpKind::OpenDir, &[name], |state| {
            let id = state.step(state.id(&at.0)?, checked(name)?)?;
            Ok(state.dir(id))
        })
    }

    fn list(&self, dir: &ModelDir) -> io::Result<Vec<Name>> {
        self.look(OpKind::List, &[], |state| {
            let inode = state.inode(state.id(&dir.0)?)?;
            let mut names = Vec::new();
            for (name, id) in inode.names().into_iter().flatten() {
                let kind = state.inode(*id)?.kind();
                names.push(Name { name: name.clone(), kind: state.options.listing_kinds.then_some(kind) });
            }
            // In no order that anybody could come to rely on, yet always the same.
            names.sort_by_key(|n| n.name.iter().fold(0, |sum, byte| scramble(sum ^ u64::from(*byte))));
            Ok(names)
        })
    }

    fn stat(&self, dir: &ModelDir, name: &[u8]) -> io::Result<Option<Meta>> {
        self.look(OpKind::Stat, &[name], |state| {
            let found = state.child(state.id(&dir.0)?, checked(name)?)?;
            found.map(|id| state.meta(id)).transpose()
        })
    }

    fn stat_dir(&self, dir: &ModelDir) -> io::Result<Meta> {
        self.look(OpKind::StatDir, &[], |state| Ok(Meta { mount_point: false, ..state.meta(state.id(&dir.0)?)? }))
    }

    fn read_link(&self, dir: &ModelDir, name: &[u8]) -> io::Result<Vec<u8>> {
        self.look(OpKind::ReadLink, &[name], |state| {
            let id = state.existing(state.id(&dir.0)?, checked(name)?)?;
            match &state.inode(id)?.body {
                Body::Symlink(target) => Ok(target.clone()),
                _ => Err(errno(libc::EINVAL)),
            }
        })
    }

    fn open_file(&self, dir: &ModelDir, name: &[u8]) -> io::Result<ModelFile> {
        self.look(OpKind::OpenFile, &[name], |state| {
            let id = state.existing(state.id(&dir.0)?, checked(name)?)?;
            match state.inode(id)?.kind() {
                Kind::File => Ok(state.file(id, name)),
                Kind::Symlink => Err(errno(libc::ELOOP)),
                Kind::Dir | Kind::Special => Err(errno(libc::EINVAL)),
            }
        })
    }

    fn stat_file(&self, file: &ModelFile) -> io::Result<Meta> {
        self.look(OpKind::StatFile, &[&file.name], |state| state.meta(state.id(&file.handle)?))
    }

    fn read_at(&self, file: &ModelFile, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.look(OpKind::ReadAt, &[&file.name], |state| {
            let inode = state.inode(state.id(&file.handle)?)?;
            let data = inode.data().map_or(&[][..], |data| data.as_slice());
            let rest = usize::try_from(offset).ok().and_then(|offset| data.get(offset..)).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            buffer[..count].copy_from_slice(&rest[..count]);
            Ok(count)
        })
    }

    fn writers(&self, file: &ModelFile) -> Writers {
        let asked = self.look(OpKind::Writers, &[&file.name], |state| Ok(state.is_written(state.id(&file.handle)?)));
        match asked {
            Ok(false) => Writers::None,
            Ok(true) => Writers::Some,
            Err(_) => Writers::Unknown,
        }
    }

    fn with_lease<R>(&self, file: &ModelFile, work: impl FnOnce(Writers) -> R) -> R {
        let taken = self.look(OpKind::WithLease, &[&file.name], |state| {
            let id = state.id(&file.handle)?;
            if state.is_written(id) {
                return Ok(None);
            }
            *state.leases.entry(id).or_default() += 1;
            Ok(Some(Lease { disk: &self.disk, id, epoch: self.epoch }))
        });
        match taken {
            Ok(Some(_lease)) => work(Writers::None),
            Ok(None) => work(Writers::Some),
            Err(_) => work(Writers::Unknown),
        }
    }

    fn write_back(&self, file: &ModelFile) -> io::Result<()> {
        let label = |state: &State| state.label(&file.handle);
        self.call(OpKind::WriteBack, &[&file.name], label, |state| {
            let id = state.id(&file.handle)?;
            state.write_back(id);
            Ok(())
        })
    }

    fn let_go(&self, file: &ModelFile, bytes: Range<u64>) {
        let mut state = self.disk.lock();
        if let Ok(id) = state.id(&file.handle) {
            state.let_go(id, bytes);
        }
    }

    fn create_temp(&self, dir: &ModelDir) -> io::Result<ModelFile> {
        self.call(
            OpKind::CreateTemp,
            &[],
            |state| state.label(&dir.0),
            |state| {
                let dir = state.id(&dir.0)?;
                let id = state.create(dir, None, 0o600, AGENT, Body::File(Arc::default()))?;
                let writing = Arc::clone(&state.opens(id).agent_writing);
                Ok(ModelFile { writing: Some(writing), ..state.file(id, b"") })
            },
        )
    }

    fn open_staged(&self, dir: &ModelDir, name: &[u8]) -> io::Result<ModelFile> {
        self.look(OpKind::OpenFile, &[name], |state| {
            let id = state.existing(state.id(&dir.0)?, checked(name)?)?;
            if state.inode(id)?.kind() != Kind::File {
                return Err(errno(libc::EINVAL));
            }
            let writing = Arc::clone(&state.opens(id).agent_writing);
            Ok(ModelFile { writing: Some(writing), ..state.file(id, name) })
        })
    }

    fn write_at(&self, file: &ModelFile, offset: u64, data: &[u8]) -> io::Result<()> {
        let label = |state: &State| format!("{} {offset}+{}", state.label(&file.handle), data.len());
        self.call(OpKind::WriteAt, &[&file.name], label, |state| {
            let id = state.id(&file.handle)?;
            if file.writing.is_none() {
                return Err(errno(libc::EBADF));
            }
            let offset = usize::try_from(offset).map_err(|_| errno(libc::EFBIG))?;
            state.edit(id, &Edit::Patch(offset, data.to_vec()))
        })
    }

    fn finish_temp(&self, file: ModelFile) -> io::Result<ModelFile> {
        self.look(OpKind::FinishTemp, &[&file.name], |state| {
            state.id(&file.handle)?;
            Ok(())
        })?;
        Ok(ModelFile { writing: None, ..file })
    }

    fn link_temp(&self, file: &ModelFile, dir: &ModelDir, name: &[u8]) -> io::Result<()> {
        let label = |state: &State| format!("{} -> {}", state.label(&file.handle), state.label_name(dir, name));
        self.call(OpKind::LinkTemp, &[&file.name, name], label, |state| {
            let (id, dir) = (state.id(&file.handle)?, state.id(&dir.0)?);
            state.link(id, dir, checked(name)?)
        })
    }

    fn sync_data(&self, file: &ModelFile) -> io::Result<()> {
        self.call(
            OpKind::SyncData,
            &[&file.name],
            |state| state.label(&file.handle),
            |state| {
                let id = state.id(&file.handle)?;
                state.sync_data(id);
                let failures = state.failed.get(&id).copied().unwrap_or(0);
                State::report_failure(&file.failures_seen, failures)
            },
        )
    }

    fn set_file_attributes(&self, file: &ModelFile, set: &SetAttributes) -> io::Result<()> {
        self.call(
            OpKind::SetFileAttributes,
            &[&file.name],
            |state| state.label(&file.handle),
            |state| {
                let id = state.id(&file.handle)?;
                state.check_chown(id, set)?;
                state.set_attributes(id, set)
            },
        )
    }

    fn set_attributes(&self, dir: &ModelDir, name: &[u8], set: &SetAttributes) -> io::Result<()> {
        self.call(
            OpKind::SetAttributes,
            &[name],
            |state| state.label_name(dir, name),
            |state| {
                let id = state.existing(state.id(&dir.0)?, checked(name)?)?;
                if state.mounts.contains(&id) {
                    return Err(errno(libc::EXDEV));
                }
                if matches!(state.inode(id)?.kind(), Kind::File | Kind::Special) {
                    return Err(errno(libc::EINVAL));
                }
                state.check_chown(id, set)?;
                state.set_attributes(id, set)
            },
        )
    }

    fn create_dir(&self, dir: &ModelDir, name: &[u8], mode: u32) -> io::Result<()> {
        self.call(
            OpKind::CreateDir,
            &[name],
            |state| state.label_name(dir, name),
            |state| {
                let dir = state.id(&dir.0)?;
                state.create(dir, Some(checked(name)?), mode, AGENT, Body::Dir(BTreeMap::new())).map(drop)
            },
        )
    }

    fn create_symlink(&self, dir: &ModelDir, name: &[u8], target: &[u8]) -> io::Result<()> {
        self.call(
            OpKind::CreateSymlink,
            &[name],
            |state| state.label_name(dir, name),
            |state| {
                let (dir, name) = (state.id(&dir.0)?, checked(name)?);
                let wrong = match target {
                    [] => Some(libc::ENOENT),
                    _ if target.len() > TARGET_BYTES_MAX => Some(libc::ENAMETOOLONG),
                    _ if target.contains(&0) => Some(libc::EINVAL),
                    _ => None,
                };
                if let Some(number) = wrong {
                    return Err(errno(number));
                }
                state.create(dir, Some(name), 0o777, AGENT, Body::Symlink(target.to_vec())).map(drop)
            },
        )
    }

    fn rename(
        &self,
        from_dir: &ModelDir,
        from: &[u8],
        to_dir: &ModelDir,
        to: &[u8],
        mode: RenameMode,
    ) -> io::Result<()> {
        let (how, flag) = match mode {
            RenameMode::NoReplace => (Target::Refuse, ""),
            RenameMode::Exchange => (Target::Exchange, " exchange"),
        };
        let label =
            |state: &State| format!("{} -> {}{flag}", state.label_name(from_dir, from), state.label_name(to_dir, to));
        self.call(OpKind::Rename, &[from, to], label, |state| {
            let source = (state.id(&from_dir.0)?, checked(from)?);
            let target = (state.id(&to_dir.0)?, checked(to)?);
            state.rename(source, target, how)
        })
    }

    fn remove_file(&self, dir: &ModelDir, name: &[u8]) -> io::Result<()> {
        self.call(
            OpKind::RemoveFile,
            &[name],
            |state| state.label_name(dir, name),
            |state| {
                let dir = state.id(&dir.0)?;
                state.unlink(dir, checked(name)?)
            },
        )
    }

    fn remove_dir(&self, dir: &ModelDir, name: &[u8]) -> io::Result<()> {
        self.call(
            OpKind::RemoveDir,
            &[name],
            |state| state.label_name(dir, name),
            |state| {
                let dir = state.id(&dir.0)?;
                state.remove_dir(dir, checked(name)?)
            },
        )
    }

    fn sync_dir(&self, dir: &ModelDir) -> io::Result<()> {
        self.call(
            OpKind::SyncDir,
            &[],
            |state| state.label(&dir.0),
            |state| {
                state.id(&dir.0)?;
                state.commit_log();
                Ok(())
            },
        )
    }

    fn sync_handle(&self, dir: &ModelDir) -> io::Result<ModelSyncHandle> {
        self.look(OpKind::SyncHandle, &[], |state| {
            let id = state.id(&dir.0)?;
            Ok(ModelSyncHandle { handle: state.handle(id), failures_seen: AtomicU64::new(state.failures) })
        })
    }

    fn sync_all(&self, handle: &ModelSyncHandle) -> io::Result<()> {
        self.call(
            OpKind::SyncAll,
            &[],
            |_| ".".to_owned(),
            |state| {
                state.id(&handle.handle)?;
                state.sync_all();
                State::report_failure(&handle.failures_seen, state.failures)
            },
        )
    }

    /// All of it is done by whoever waits for it: a crash before that finds nothing synced.
    fn sync_later(&self, handle: ModelSyncHandle) -> Syncing {
        let vfs = Self::new(&self.disk);
        Box::new(move || vfs.sync_all(&handle))
    }

    fn coarse_stamps(&self, private: &ModelDir) -> io::Result<bool> {
        self.look(OpKind::CoarseStamps, &[], |state| {
            state.id(&private.0)?;
            Ok(state.options.coarse_clock)
        })
    }

    fn may_chown(&self) -> bool {
        self.disk.lock().options.may_chown
    }
}
