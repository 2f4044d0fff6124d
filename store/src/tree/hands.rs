//! Work on the disk that needs nothing of the tree, done by several threads at once.

use std::io;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use pleach_protocol::path::TreePath;
use pleach_protocol::view::{State, default_mode};

use super::content::Staged;
use super::observe::is_no_dir;
use super::perform::{Op, OpKind, Outcome};
use crate::look::stamp_of;
use crate::vfs::{SetAttributes, Vfs, Writers};

/// What a thread takes at a time: a run of names in one directory, most often.
const PART: usize = 16;

/// One thread's view of a tree: the directory that it used last stays open for the next name.
pub(super) struct Hands<'a, V: Vfs> {
    vfs: &'a V,
    root: &'a V::Dir,
    holder: Option<(TreePath, V::Dir)>,
}

impl<V: Vfs> Hands<'_, V> {
    fn holder(&mut self, path: &TreePath) -> io::Result<&V::Dir> {
        let dir = path.parent().unwrap_or_default();
        let handle = match self.holder.take().filter(|(known, _)| *known == dir) {
            Some((_, handle)) => handle,
            None => self.vfs.open_path(self.root, &dir)?,
        };
        Ok(&self.holder.insert((dir, handle)).1)
    }

    /// Makes an op's content whole: written, with owner, mode and time, and closed for writing. As long as
    /// we hold it open like a writer, nobody can tell whether another one does (LINUX.md §3).
    pub(super) fn stage(&mut self, op: &mut Op<V>, staging: &V::Dir, owners: bool) -> io::Result<()> {
        if let Some(content) = op.content.take() {
            let vfs = self.vfs;
            let file = match vfs.create_temp(self.holder(&op.path)?) {
                // It gets its name while the directory is open for us.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => vfs.create_temp(staging)?,
                other => other?,
            };
            vfs.write_at(&file, 0, &content.bytes)?;
            op.staged = Some(Staged { file, hash: content.hash, size: content.bytes.len() as u64, source: None });
        }
        // One that moves has them, and its name is still a user's.
        if op.moved_from().is_none()
            && let (Some(staged), Some(view)) = (op.staged.take(), &op.view)
        {
            self.vfs.set_file_attributes(&staged.file, &attributes(view, owners))?;
            op.staged = Some(Staged { file: self.vfs.finish_temp(staged.file)?, ..staged });
        }
        Ok(())
    }

    /// Gives a new file its name.
    pub(super) fn name(&mut self, op: &Op<V>, owners: bool) -> io::Result<Outcome> {
        let vfs = self.vfs;
        let Some(staged) = &op.staged else { return Ok(Outcome::Raced) };
        let dir = match self.holder(&op.path) {
            Ok(dir) => dir,
            Err(error) if is_no_dir(&error) => return Ok(Outcome::Raced),
            Err(error) => return Err(error),
        };
        match vfs.link_temp(&staged.file, dir, op.path.name()) {
            Ok(()) => Ok(stamp_of_put(vfs, dir, op, owners)),
            // The directory may be gone since it was opened.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOENT)) => Ok(Outcome::Raced),
            Err(error) => Err(error),
        }
    }
}

/// Whether a change only gives a new file a name where nothing is shown: no other change waits for it.
pub(super) fn is_new_file<V: Vfs>(op: &Op<V>) -> bool {
    let shown = op.row.shown.as_ref().is_some_and(|s| s.shown.state.is_some());
    op.kind == OpKind::Put && !shown && op.staged.as_ref().is_some_and(|staged| staged.source.is_none())
}

/// What to set so that a file shows `view`.
pub(super) fn attributes(view: &State, owners: bool) -> SetAttributes {
    let access = view.access.as_ref();
    SetAttributes {
        owner: access.filter(|_| owners).map(|a| (a.owner.id, a.group.id)),
        mode: Some(access.map_or(default_mode(view.value.kind()), |a| a.mode)),
        mtime: view.mtime,
    }
}

/// Reads the stamp of what we put there. Only where inode, size, mode, owner and time are as
/// we set them is it ours; anything else is somebody's write, and will be looked at. What cannot be read has
/// been put all the same: as a failure it would leave Shown behind the disk, and our content would pass for a user's.
pub(super) fn stamp_of_put<V: Vfs>(vfs: &V, dir: &V::Dir, op: &Op<V>, owners: bool) -> Outcome {
    let (meta, provisional) = match &op.staged {
        Some(staged) => (vfs.stat_file(&staged.file).map(Some), vfs.writers(&staged.file) == Writers::Some),
        None => (vfs.stat(dir, op.path.name()), false),
    };
    let (Ok(Some(meta)), Some(view)) = (meta, &op.view) else {
        return Outcome::Done { stamp: None, provisional: true };
    };
    let set = attributes(view, owners);
    let size_kept = op.staged.as_ref().is_none_or(|s| s.size == meta.size);
    let ours = size_kept
        && set.mtime.is_none_or(|t| t == meta.mtime)
        && set.owner.is_none_or(|o| o == (meta.uid, meta.gid))
        && (op.staged.is_none() || set.mode == Some(meta.mode));
    Outcome::Done { stamp: ours.then(|| stamp_of(&meta)), provisional: provisional || !ours }
}

/// Does the same for each item, on as many threads as the file system gains from; the results are in the
/// items' order. Without threads to be had, this one does it all.
pub(super) fn each<V: Vfs, T: Send, R: Send>(
    vfs: &V,
    root: &V::Dir,
    items: &mut [T],
    work: impl Fn(&mut Hands<'_, V>, &mut T) -> R + Sync,
) -> Vec<R> {
    each_part((vfs.threads(), PART), (vfs, root), items, work)
}

/// The same for what reads files.
pub(super) fn each_read<V: Vfs, T: Send, R: Send>(
    (vfs, root): (&V, &V::Dir),
    items: &mut [T],
    read: impl Fn(&mut T) -> R + Sync,
) -> Vec<R> {
    each_part((vfs.readers(), PART), (vfs, root), items, |_, item| read(item))
}

/// The same, on so many threads at most, each of which takes so many at a time: of what is much work by itself, one.
pub(super) fn each_part<V: Vfs, T: Send, R: Send>(
    (threads, part): (usize, usize),
    (vfs, root): (&V, &V::Dir),
    items: &mut [T],
    work: impl Fn(&mut Hands<'_, V>, &mut T) -> R + Sync,
) -> Vec<R> {
    let helpers = threads.min(items.len().div_ceil(part)).saturating_sub(1);
    let parts = Mutex::new(items.chunks_mut(part).enumerate());
    let run = || {
        let mut hands = Hands { vfs, root, holder: None };
        let mut done: Vec<(usize, Vec<R>)> = Vec::new();
        loop {
            let part = parts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, part)) = part else { return done };
            done.push((number, part.iter_mut().map(|item| work(&mut hands, item)).collect()));
        }
    };
    let mut done = thread::scope(|scope| {
        let start = |_| thread::Builder::new().name("disk".into()).spawn_scoped(scope, run).ok();
        let started: Vec<_> = (0..helpers).filter_map(start).collect();
        let mut done = run();
        for helper in started {
            match helper.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

/// Does two things at once where the file system gains from that, else one after the other.
pub(crate) fn both<V: Vfs, R: Send, S>(vfs: &V, there: impl Fn() -> R + Sync, here: impl FnOnce() -> S) -> (R, S) {
    thread::scope(|scope| {
        let helper = match vfs.threads() {
            0 | 1 => None,
            _ => thread::Builder::new().name("disk".into()).spawn_scoped(scope, &there).ok(),
        };
        let Some(helper) = helper else {
            let first = there();
            return (first, here());
        };
        let second = here();
        match helper.join() {
            Ok(first) => (first, second),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What one thread made and the other has not taken yet, at most.
const WAITING_MAX: usize = 2;

/// Makes one thing after the other and has another thread take them in this order, where the file system gains from that; until
/// there is none, or one cannot be taken.
///
/// # Errors
/// What taking says.
pub(crate) fn one_by_one<V: Vfs, T: Send, E: Send>(
    vfs: &V,
    mut make: impl FnMut() -> Option<T>,
    take: impl FnMut(T) -> Result<(), E> + Send,
) -> Result<(), E> {
    let take = Mutex::new(take);
    let take_all = |mut things: &mut dyn Iterator<Item = T>| {
        let mut take = take.lock().unwrap_or_else(PoisonError::into_inner);
        Iterator::try_for_each(&mut things, &mut *take)
    };
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::sync_channel(WAITING_MAX);
        let helper = match vfs.threads() {
            0 | 1 => None,
            _ => {
                let work = || take_all(&mut receiver.into_iter());
                thread::Builder::new().name("disk".into()).spawn_scoped(scope, work).ok()
            }
        };
        let Some(helper) = helper else { return take_all(&mut std::iter::from_fn(make)) };
        while let Some(thing) = make() {
            if sender.send(thing).is_err() {
                break;
            }
        }
        drop(sender);
        helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::model::{ModelDisk, ModelVfs};
    use crate::vfs::unix::UnixVfs;

    fn made_and_taken<V: Vfs>(vfs: &V, last: u32) -> (Vec<u32>, Result<(), u32>) {
        let (mut made, mut taken) = (0..10, Vec::new());
        let outcome = one_by_one(
            vfs,
            || made.next(),
            |thing| {
                taken.push(thing);
                if thing == last { Err(thing) } else { Ok(()) }
            },
        );
        (taken, outcome)
    }

    #[test]
    fn things_are_taken_in_order_until_one_cannot_be() {
        let (model, unix) = (ModelVfs::new(&ModelDisk::new()), UnixVfs::new(std::env::temp_dir()));
        for last in [0, 3, 9] {
            let expected = ((0..=last).collect(), Err(last));
            assert_eq!((made_and_taken(&model, last), made_and_taken(&unix, last)), (expected.clone(), expected));
        }
        let all = ((0..10).collect(), Ok(()));
        assert_eq!((made_and_taken(&model, 10), made_and_taken(&unix, 10)), (all.clone(), all));
    }
}
