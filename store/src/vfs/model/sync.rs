//! From live to durable: the log's commits, syncs, and write-backs that fail.

use std::ops::Range;
use std::sync::Arc;

use super::image::{Change, Id, Inode};
use super::state::State;

impl State {
    /// Writes a file's blocks; they count once the log commits.
    pub(super) fn write_back(&mut self, id: Id) {
        self.mapped.remove(&id);
        if self.lost.contains(&id) || !self.dirty.contains(&id) {
            return;
        }
        if let Some(data) = self.live.get(id).and_then(Inode::data) {
            self.log.push(vec![Change::Data { id, data: Arc::clone(data) }]);
        }
    }

    /// Makes every logged operation durable.
    pub(super) fn commit_log(&mut self) {
        for change in std::mem::take(&mut self.log).iter().flatten() {
            self.durable.apply(change);
        }
        self.sweep();
    }

    /// Makes a file's bytes durable, and with them the log or else only what it says of this inode.
    pub(super) fn sync_data(&mut self, id: Id) {
        if self.options.log_commit_on_fsync {
            self.commit_log();
        } else if let Some(live) = self.live.get(id) {
            let durable = self.durable.inodes.entry(id).or_insert_with(|| live.nameless());
            durable.attributes = live.attributes;
            for record in &mut self.log {
                record.retain(|change| !change.is_about(id));
            }
            self.log.retain(|record| !record.is_empty());
        }
        self.settle_data(id);
    }

    /// Makes everything durable that no failed write-back lost.
    pub(super) fn sync_all(&mut self) {
        self.commit_log();
        for id in std::mem::take(&mut self.dirty) {
            self.settle_data(id);
        }
        self.mapped.clear();
    }

    /// Loses the bytes that are on no disk, as a failed write-back does: the kernel takes them for clean.
    pub(super) fn fail_write_back(&mut self) {
        self.failures += 1;
        for id in std::mem::take(&mut self.dirty) {
            let Some(live) = self.live.get(id).and_then(Inode::data) else { continue };
            let logged = self.log.iter().flatten().rev().find_map(|change| match change {
                Change::Data { id: written, data } if *written == id => Some(data),
                _ => None,
            });
            let durable = self.durable.get(id).and_then(Inode::data);
            if logged.or(durable) == Some(live) {
                // Written back before, and not written since.
                self.dirty.insert(id);
            } else {
                self.lost.insert(id);
                self.failed.insert(id, self.failures);
            }
        }
    }

    /// What is in memory alone and passes for clean goes: the file is read from the disk again.
    pub(super) fn let_go(&mut self, id: Id, bytes: Range<u64>) {
        if !self.lost.contains(&id) || self.dirty.contains(&id) {
            return;
        }
        let there = self.durable.get(id).and_then(Inode::data).map(|data| data.to_vec()).unwrap_or_default();
        if let Some(live) = self.live.inodes.get_mut(&id).and_then(Inode::data_mut) {
            let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(live.len());
            let (start, end) = (at(bytes.start), at(bytes.end));
            let mut data = live.to_vec();
            for (offset, byte) in data.iter_mut().enumerate().take(end).skip(start) {
                *byte = there.get(offset).copied().unwrap_or_default();
            }
            *live = Arc::new(data);
        }
    }

    /// Whether a user has a file open.
    pub(super) fn users_busy(&self) -> bool {
        self.opens.values().any(|opens| Arc::strong_count(&opens.user_writing) > 1)
    }

    fn settle_data(&mut self, id: Id) {
        self.mapped.remove(&id);
        self.dirty.remove(&id);
        if self.lost.contains(&id) {
            return;
        }
        let live = self.live.get(id).and_then(Inode::data);
        let durable = self.durable.inodes.get_mut(&id).and_then(Inode::data_mut);
        if let (Some(live), Some(durable)) = (live, durable) {
            *durable = Arc::clone(live);
        }
    }

    /// Forgets inodes without name and handle. Only with an empty log, which may name them.
    fn sweep(&mut self) {
        self.opens.retain(|_, opens| opens.all() > 0);
        for id in std::mem::take(&mut self.orphans) {
            if self.opens.contains_key(&id) {
                self.orphans.insert(id);
            } else if self.live.get(id).is_some_and(|inode| inode.links() == 0) {
                self.live.inodes.remove(&id);
                self.durable.inodes.remove(&id);
                self.failed.remove(&id);
                self.opened_as.remove(&id);
                self.mounts.remove(&id);
                for set in [&mut self.dirty, &mut self.lost, &mut self.mapped] {
                    set.remove(&id);
                }
            }
        }
    }

    /// Forgets what only a running kernel knows; the images are the caller's.
    pub(super) fn forget_kernel(&mut self) {
        for set in [&mut self.dirty, &mut self.lost, &mut self.mapped, &mut self.orphans] {
            set.clear();
        }
        self.log.clear();
        self.opens.clear();
        self.leases.clear();
        self.deferred.clear();
        self.failed.clear();
        self.opened_as.clear();
        let live = &self.live;
        self.mounts.retain(|id| live.get(*id).is_some());
    }
}
