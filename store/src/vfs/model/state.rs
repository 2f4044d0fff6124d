//! The disk behind the mutex, and what its users and the agent do to the live state.
//!
//! Everything here is one step under the lock; which call may fail or crash is decided outside.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use pleach_protocol::path::{PathError, check_name};
use pleach_protocol::time::Time;

use super::image::{Attributes, Body, Change, Id, Image, Inode, MOUNT_POINT, ROOT};
use super::inotify::Watches;
use super::script::Script;
use crate::vfs::{Kind, Meta, SetAttributes};

/// When a new disk's clock starts: 2026-01-01.
const EPOCH_NANOS: i64 = 1_767_225_600_000_000_000;
/// How far a change moves the clock.
const STEP_NANOS: i64 = 1_000;
/// Files stay below this, so that a wild offset is an error and not all of memory.
const FILE_BYTES_MAX: usize = 1 << 32;
/// The tick of a coarse clock.
const TICK_NANOS: i64 = 4_000_000;

/// The error with this number.
pub(super) fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// Refuses what is not one name.
pub(super) fn checked(name: &[u8]) -> io::Result<&[u8]> {
    match check_name(name) {
        Ok(()) => Ok(name),
        Err(PathError::TooLong) => Err(errno(libc::ENAMETOOLONG)),
        Err(_) => Err(errno(libc::EINVAL)),
    }
}

/// A change of a file's content.
#[derive(Clone, Debug)]
pub(super) enum Edit {
    /// Cut to nothing, then written.
    Replace(Vec<u8>),
    Append(Vec<u8>),
    Truncate(usize),
    Patch(usize, Vec<u8>),
}

/// What a rename does with a target that exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Target {
    Refuse,
    Exchange,
    /// The plain rename, which pleach never uses and users do.
    Replace,
}

/// Who has an inode open. Each handle holds clones; the counts tell how many.
#[derive(Clone, Debug, Default)]
pub(super) struct Opens {
    pub(super) agent: Arc<()>,
    pub(super) agent_writing: Arc<()>,
    pub(super) user_writing: Arc<()>,
}

impl Opens {
    fn writers(&self) -> usize {
        Arc::strong_count(&self.agent_writing) + Arc::strong_count(&self.user_writing) - 2
    }

    pub(super) fn all(&self) -> usize {
        self.writers() + Arc::strong_count(&self.agent) - 1
    }
}

/// How this disk differs from others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) coarse_clock: bool,
    pub(super) exchange_keeps_ctime: bool,
    pub(super) listing_kinds: bool,
    pub(super) log_commit_on_fsync: bool,
    pub(super) may_chown: bool,
    pub(super) reuse_inodes: bool,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) script: Script,
    pub(super) live: Image,
    pub(super) durable: Image,
    /// Operations on names and attributes since the last commit; each becomes durable whole and in order.
    pub(super) log: Vec<Vec<Change>>,
    /// Files whose live bytes are newer than the durable ones.
    pub(super) dirty: BTreeSet<Id>,
    /// Files whose write-back failed: nothing makes them durable before they are written again.
    pub(super) lost: BTreeSet<Id>,
    /// Files stored to through a mapping since their last write-back.
    pub(super) mapped: BTreeSet<Id>,
    pub(super) opens: BTreeMap<Id, Opens>,
    pub(super) leases: BTreeMap<Id, u64>,
    /// Writes of users that wait for a lease.
    pub(super) deferred: Vec<(Id, Edit)>,
    /// Directories that something else is mounted on.
    pub(super) mounts: BTreeSet<Id>,
    /// Inodes that may have neither a name nor a handle.
    pub(super) orphans: BTreeSet<Id>,
    /// Write-back failures so far, and the last one of each file.
    pub(super) failures: u64,
    pub(super) failed: BTreeMap<Id, u64>,
    /// By which name each inode was opened last.
    pub(super) opened_as: BTreeMap<Id, (Id, Vec<u8>)>,
    pub(super) watches: Option<Watches>,
    pub(super) instances: u64,
    pub(super) now_nanos: i64,
    pub(super) boot: u64,
    pub(super) booted: Time,
    pub(super) mount: u64,
    pub(super) mounted: bool,
    ids: u64,
    numbers: u64,
}

impl State {
    pub(super) fn new() -> Self {
        let now = Time::from_nanos(EPOCH_NANOS);
        let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, mtime: now, ctime: now, btime: now };
        let live = Image::new(
            Inode::new(2, attributes, Body::Dir(BTreeMap::new())),
            Inode::new(77, attributes, Body::Dir(BTreeMap::new())),
        );
        Self {
            options: Options {
                coarse_clock: false,
                exchange_keeps_ctime: false,
                listing_kinds: true,
                log_commit_on_fsync: true,
                may_chown: true,
                reuse_inodes: true,
            },
            script: Script::default(),
            durable: live.clone(),
            live,
            log: Vec::new(),
            dirty: BTreeSet::new(),
            lost: BTreeSet::new(),
            mapped: BTreeSet::new(),
            opens: BTreeMap::new(),
            leases: BTreeMap::new(),
            deferred: Vec::new(),
            mounts: BTreeSet::new(),
            orphans: BTreeSet::new(),
            failures: 0,
            failed: BTreeMap::new(),
            opened_as: BTreeMap::new(),
            watches: None,
            instances: 0,
            now_nanos: EPOCH_NANOS,
            boot: 1,
            booted: now,
            mount: 1,
            mounted: true,
            ids: MOUNT_POINT.0,
            numbers: 100,
        }
    }

    /// What the root's path leads to now.
    pub(super) fn root(&self) -> Id {
        if self.mounted { ROOT } else { MOUNT_POINT }
    }

    /// Moves the clock as a change does, and says which time the change is stamped with.
    fn tick(&mut self) -> Time {
        self.now_nanos += STEP_NANOS;
        let coarse = self.now_nanos - self.now_nanos.rem_euclid(TICK_NANOS);
        Time::from_nanos(if self.options.coarse_clock { coarse } else { self.now_nanos })
    }

    /// Makes one operation happen, and logs it as one record.
    fn record(&mut self, changes: Vec<Change>) {
        for change in &changes {
            self.live.apply(change);
        }
        self.log.push(changes);
    }

    pub(super) fn inode(&self, id: Id) -> io::Result<&Inode> {
        self.live.get(id).ok_or_else(|| errno(libc::ENOENT))
    }

    fn names(&self, dir: Id) -> io::Result<&BTreeMap<Vec<u8>, Id>> {
        self.inode(dir)?.names().ok_or_else(|| errno(libc::ENOTDIR))
    }

    pub(super) fn child(&self, dir: Id, name: &[u8]) -> io::Result<Option<Id>> {
        Ok(self.names(dir)?.get(name).copied())
    }

    /// The inode called `name`; ENOENT where there is none.
    pub(super) fn existing(&self, dir: Id, name: &[u8]) -> io::Result<Id> {
        self.child(dir, name)?.ok_or_else(|| errno(libc::ENOENT))
    }

    /// One step of a walk: into a directory, through no link and no mount.
    pub(super) fn step(&self, dir: Id, name: &[u8]) -> io::Result<Id> {
        let id = self.existing(dir, name)?;
        match self.inode(id)?.kind() {
            Kind::Symlink => Err(errno(libc::ELOOP)),
            Kind::Dir if self.mounts.contains(&id) => Err(errno(libc::EXDEV)),
            Kind::Dir => Ok(id),
            Kind::File | Kind::Special => Err(errno(libc::ENOTDIR)),
        }
    }

    pub(super) fn meta(&self, id: Id) -> io::Result<Meta> {
        let inode = self.inode(id)?;
        let Attributes { mode, uid, gid, mtime, ctime, btime } = inode.attributes;
        let size = match &inode.body {
            Body::File(data) => data.len() as u64,
            Body::Dir(_) => 4096,
            Body::Symlink(target) => target.len() as u64,
            Body::Special => 0,
        };
        let (inode, kind, links) = (inode.number, inode.kind(), inode.links());
        let mount_point = self.mounts.contains(&id);
        Ok(Meta { kind, mode, uid, gid, size, mtime, ctime, btime, inode, links, mount_point })
    }

    fn with_attributes(&self, id: Id, edit: impl FnOnce(&mut Attributes)) -> io::Result<Change> {
        let mut attributes = self.inode(id)?.attributes;
        edit(&mut attributes);
        Ok(Change::Attributes { id, attributes })
    }

    /// The change of a stamp when a file's bytes change, or a name in a directory comes or goes.
    fn stamp_content(&self, dir: Id, now: Time) -> io::Result<Change> {
        self.with_attributes(dir, |a| (a.mtime, a.ctime) = (now, now))
    }

    fn stamp_changed(&self, id: Id, now: Time) -> io::Result<Change> {
        self.with_attributes(id, |a| a.ctime = now)
    }

    /// EEXIST where the name is taken, ENOENT where the directory was removed.
    fn check_free(&self, dir: Id, name: &[u8]) -> io::Result<()> {
        if self.child(dir, name)?.is_some() {
            return Err(errno(libc::EEXIST));
        }
        match self.inode(dir)?.parent {
            Some(_) => Ok(()),
            None => Err(errno(libc::ENOENT)),
        }
    }

    /// Makes an inode, with a name in `dir` or, as `O_TMPFILE` does, without one.
    pub(super) fn create(
        &mut self,
        dir: Id,
        name: Option<&[u8]>,
        mode: u32,
        owner: (u32, u32),
        body: Body,
    ) -> io::Result<Id> {
        self.check_free(dir, name.unwrap_or_default())?;
        let now = self.tick();
        let holder = self.inode(dir)?.attributes;
        let gid = if holder.mode & 0o2000 == 0 { owner.1 } else { holder.gid };
        let attributes = Attributes { mode, uid: owner.0, gid, mtime: now, ctime: now, btime: now };
        let number = self.new_number();
        self.ids += 1;
        let id = Id(self.ids);
        let mut changes = vec![Change::Create { id, inode: Inode::new(number, attributes, body) }];
        match name {
            Some(name) => {
                changes.push(Change::Name { dir, name: name.to_vec(), id: Some(id) });
                changes.push(self.stamp_content(dir, now)?);
            }
            None => _ = self.orphans.insert(id),
        }
        self.record(changes);
        if let Some(name) = name {
            self.notify(dir, libc::IN_CREATE, name, id);
        }
        Ok(id)
    }

    /// An inode number: on ext4 that of a file just removed, if there is one.
    fn new_number(&mut self) -> u64 {
        let free = self.orphans.iter().copied().find(|id| {
            let unused = self.opens.get(id).is_none_or(|opens| opens.all() == 0);
            unused && self.live.get(*id).is_some_and(|inode| inode.links() == 0 && inode.number != 0)
        });
        match free.and_then(|id| self.live.inodes.get_mut(&id)) {
            Some(inode) if self.options.reuse_inodes => std::mem::take(&mut inode.number),
            _ => {
                self.numbers += 1;
                self.numbers
            }
        }
    }

    pub(super) fn link(&mut self, id: Id, dir: Id, name: &[u8]) -> io::Result<()> {
        self.check_free(dir, name)?;
        let now = self.tick();
        let named = Change::Name { dir, name: name.to_vec(), id: Some(id) };
        let changes = vec![named, self.stamp_content(dir, now)?, self.stamp_changed(id, now)?];
        self.record(changes);
        self.notify(dir, libc::IN_CREATE, name, id);
        Ok(())
    }

    /// Takes a name from anything but a directory.
    pub(super) fn unlink(&mut self, dir: Id, name: &[u8]) -> io::Result<()> {
        let id = self.existing(dir, name)?;
        if self.inode(id)?.kind() == Kind::Dir {
            return Err(errno(libc::EISDIR));
        }
        self.take_name(dir, name, id)
    }

    pub(super) fn remove_dir(&mut self, dir: Id, name: &[u8]) -> io::Result<()> {
        let id = self.existing(dir, name)?;
        if !self.names(id)?.is_empty() {
            return Err(errno(libc::ENOTEMPTY));
        }
        if self.mounts.contains(&id) {
            return Err(errno(libc::EBUSY));
        }
        self.take_name(dir, name, id)
    }

    fn take_name(&mut self, dir: Id, name: &[u8], id: Id) -> io::Result<()> {
        let now = self.tick();
        let gone = Change::Name { dir, name: name.to_vec(), id: None };
        let changes = vec![gone, self.stamp_content(dir, now)?, self.stamp_changed(id, now)?];
        self.record(changes);
        self.orphans.insert(id);
        self.notify(dir, libc::IN_DELETE, name, id);
        self.notify_self(id, libc::IN_DELETE_SELF);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: (Id, &[u8]), to: (Id, &[u8]), how: Target) -> io::Result<()> {
        let source = self.existing(from.0, from.1)?;
        let target = self.child(to.0, to.1)?;
        match (how, target) {
            (Target::Refuse, Some(_)) => return Err(errno(libc::EEXIST)),
            (Target::Exchange, None) => return Err(errno(libc::ENOENT)),
            (_, None) => self.check_free(to.0, to.1)?,
            _ => {}
        }
        if self.live.is_within(source, to.0) {
            return Err(errno(libc::EINVAL));
        }
        if target.is_some_and(|target| self.live.is_within(target, from.0)) {
            return Err(errno(if how == Target::Exchange { libc::EINVAL } else { libc::ENOTEMPTY }));
        }
        if self.mounts.contains(&source) || target.is_some_and(|target| self.mounts.contains(&target)) {
            return Err(errno(libc::EBUSY));
        }
        if target == Some(source) {
            return Ok(());
        }
        if let (Target::Replace, Some(target)) = (how, target) {
            self.check_replaceable(source, target)?;
        }
        let now = self.tick();
        let mut changes = vec![Change::Name { dir: from.0, name: from.1.to_vec(), id: None }];
        if target.is_some() {
            changes.push(Change::Name { dir: to.0, name: to.1.to_vec(), id: None });
        }
        changes.push(Change::Name { dir: to.0, name: to.1.to_vec(), id: Some(source) });
        if how == Target::Exchange {
            changes.push(Change::Name { dir: from.0, name: from.1.to_vec(), id: target });
        }
        changes.push(self.stamp_content(from.0, now)?);
        changes.push(self.stamp_content(to.0, now)?);
        if !(how == Target::Exchange && self.options.exchange_keeps_ctime) {
            for id in [Some(source), target].into_iter().flatten() {
                changes.push(self.stamp_changed(id, now)?);
            }
        }
        self.record(changes);
        self.notify_rename(from, to, source, target.filter(|_| how == Target::Exchange));
        if let Some(replaced) = target.filter(|_| how == Target::Replace) {
            self.orphans.insert(replaced);
            self.notify_self(replaced, libc::IN_DELETE_SELF);
        }
        Ok(())
    }

    /// Whether a plain rename may put the one over the other.
    fn check_replaceable(&self, source: Id, target: Id) -> io::Result<()> {
        let (source, target) = (self.inode(source)?, self.inode(target)?);
        match (source.names(), target.names()) {
            (Some(_), None) => Err(errno(libc::ENOTDIR)),
            (None, Some(_)) => Err(errno(libc::EISDIR)),
            (Some(_), Some(names)) if !names.is_empty() => Err(errno(libc::ENOTEMPTY)),
            _ => Ok(()),
        }
    }

    /// Sets attributes in the order owner, mode, mtime; chown takes setuid and setgid from files.
    pub(super) fn set_attributes(&mut self, id: Id, set: &SetAttributes) -> io::Result<()> {
        let bad_owner = set.owner.is_some_and(|(uid, gid)| uid == u32::MAX || gid == u32::MAX);
        let bad_mode = set.mode.is_some_and(|mode| mode > 0o7777);
        if bad_owner || bad_mode || set.mtime.is_some_and(|time| time.nanos >= 1_000_000_000) {
            return Err(errno(libc::EINVAL));
        }
        if *set == SetAttributes::default() {
            return Ok(());
        }
        let now = self.tick();
        let kind = self.inode(id)?.kind();
        let change = self.with_attributes(id, |a| {
            if let Some((uid, gid)) = set.owner {
                (a.uid, a.gid) = (uid, gid);
                if kind == Kind::File {
                    a.mode &= !0o6000;
                }
            }
            if let Some(mode) = set.mode.filter(|_| kind != Kind::Symlink) {
                a.mode = mode;
            }
            a.mtime = set.mtime.unwrap_or(a.mtime);
            a.ctime = now;
        })?;
        self.record(vec![change]);
        self.notify_inode(id, libc::IN_ATTRIB);
        Ok(())
    }

    /// Changes a file's bytes and stamps it.
    pub(super) fn edit(&mut self, id: Id, edit: &Edit) -> io::Result<()> {
        let Some(data) = self.inode(id)?.data() else { return Err(errno(libc::EINVAL)) };
        let size = match edit {
            Edit::Replace(_) => Some(0),
            Edit::Truncate(size) => Some(*size),
            Edit::Append(_) | Edit::Patch(..) => None,
        };
        let (offset, bytes): (_, &[u8]) = match edit {
            Edit::Replace(bytes) => (0, bytes),
            Edit::Append(bytes) => (data.len(), bytes),
            Edit::Truncate(size) => (*size, &[]),
            Edit::Patch(offset, bytes) => (*offset, bytes),
        };
        if size.is_none() && bytes.is_empty() {
            return Ok(());
        }
        if offset.checked_add(bytes.len()).is_none_or(|end| end > FILE_BYTES_MAX) {
            return Err(errno(libc::EFBIG));
        }
        let now = self.tick();
        let mut changes: Vec<_> = size.map(|size| Change::Size { id, size }).into_iter().collect();
        changes.push(self.stamp_content(id, now)?);
        self.record(changes);
        self.put_bytes(id, offset, bytes);
        self.notify_inode(id, libc::IN_MODIFY);
        Ok(())
    }

    /// Changes a file's bytes through a mapping: the stamp moves only at the first store to clean memory.
    pub(super) fn store(&mut self, id: Id, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let size = self.inode(id)?.data().map_or(0, |data| data.len());
        if offset.checked_add(bytes.len()).is_none_or(|end| end > size) {
            return Err(errno(libc::EFAULT));
        }
        if self.mapped.insert(id) {
            let now = self.tick();
            let change = self.stamp_content(id, now)?;
            self.record(vec![change]);
        }
        self.put_bytes(id, offset, bytes);
        Ok(())
    }

    fn put_bytes(&mut self, id: Id, offset: usize, bytes: &[u8]) {
        if let Some(data) = self.live.inodes.get_mut(&id).and_then(Inode::data_mut) {
            if !bytes.is_empty() {
                let data = Arc::make_mut(data);
                let end = offset + bytes.len();
                data.resize(data.len().max(end), 0);
                data[offset..end].copy_from_slice(bytes);
            }
            self.dirty.insert(id);
            self.lost.remove(&id);
        }
    }

    /// A user's write by path: it waits at the open where somebody holds a lease.
    pub(super) fn user_edit(&mut self, id: Id, edit: Edit) -> io::Result<()> {
        if self.leases.contains_key(&id) {
            self.deferred.push((id, edit));
            return Ok(());
        }
        self.edit_and_close(id, &edit)
    }

    /// A file's content as it will be when no lease keeps users from writing any more.
    pub(super) fn foresee(&self, id: Id, mut content: Vec<u8>) -> Vec<u8> {
        for (_, edit) in self.deferred.iter().filter(|(edited, _)| *edited == id) {
            match edit {
                Edit::Replace(bytes) => content.clone_from(bytes),
                Edit::Append(bytes) => content.extend(bytes),
                Edit::Truncate(size) => content.resize(*size, 0),
                Edit::Patch(offset, bytes) => {
                    content.resize(content.len().max(offset + bytes.len()), 0);
                    content[*offset..offset + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        content
    }

    /// A write by path: the file is closed behind it, but for a truncation, which opens none.
    fn edit_and_close(&mut self, id: Id, edit: &Edit) -> io::Result<()> {
        self.edit(id, edit)?;
        if !matches!(edit, Edit::Truncate(_)) {
            self.notify_inode(id, libc::IN_CLOSE_WRITE);
        }
        Ok(())
    }

    pub(super) fn is_written(&self, id: Id) -> bool {
        self.opens.get(&id).is_some_and(|opens| opens.writers() > 0)
    }

    pub(super) fn opens(&mut self, id: Id) -> &Opens {
        self.opens.entry(id).or_default()
    }

    pub(super) fn end_lease(&mut self, id: Id) {
        let Some(count) = self.leases.get_mut(&id) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.leases.remove(&id);
        let (due, rest) = std::mem::take(&mut self.deferred).into_iter().partition(|(edited, _)| *edited == id);
        self.deferred = rest;
        for (id, edit) in due {
            // The user's open may meet a file that is gone by now; that is the user's error to see.
            drop(self.edit_and_close(id, &edit));
        }
    }
}
