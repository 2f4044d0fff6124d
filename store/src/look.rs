//! One honest look at one name on the disk: lstat, and a hash where a stamp proves nothing.
//!
//! The rules are LINUX.md §2: stat before reading, equal stat after; where a writer is there, or
//! cannot be excluded, the hash is provisional and is taken again.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pleach_protocol::entry::{Access, Hash, Value, ValueKind};
use pleach_protocol::time::Time;
use pleach_protocol::view::{State, access_by_number, default_mode};

use crate::chunks::{CUT_BYTES_MAX, Cutter, Manifest};
use crate::rows::{ShownRow, Stamp};
use crate::tree::hands;
use crate::vfs::{Kind, Meta, Vfs, Writers};

/// A hash taken sooner than this after the file's change time may miss a write of the same tick, where stamps are coarse.
pub(crate) const RACY_NANOS: i64 = 20_000_000;
const READ_BYTES: usize = 128 * 1024;
/// What is read at once where it is hashed and cut, by a thread each.
const PIECE_BYTES: usize = 4 * 1024 * 1024;
/// A content up to this length is kept for whoever asks for it next.
const KEPT_BYTES_MAX: usize = 128 * 1024;

/// How to look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Care {
    /// Hash whatever the stamp says: there was an event that only a writer causes.
    pub rehash: bool,
    /// Take the file although somebody has it open for writing.
    pub take_open: bool,
    /// Stamps tick coarsely here.
    pub coarse: bool,
    /// The time now, for coarse stamps.
    pub now: Time,
    /// Whether this process may give files away; else owners are not ours to judge.
    pub owners: bool,
    /// A file that changed sooner than this before now is busy.
    pub settle: Duration,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub enum Look {
    /// No such name.
    Gone,
    /// A FIFO, socket or device: skipped.
    Special,
    /// Another mount begins here: not entered, never a deletion.
    Mount,
    /// Somebody is writing; look again when they are done.
    Busy,
    /// It is there.
    Found(Box<Found>),
}

/// What is at a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its state.
    pub state: State,
    /// Its stamp.
    pub stamp: Stamp,
    /// Whether an equal stamp later proves nothing.
    pub provisional: bool,
    /// Number of names of the inode.
    pub links: u64,
    /// Its content, where it is small and was read.
    pub read: Option<Vec<u8>>,
    /// Its chunks, where it was cut.
    pub cut: Option<Manifest>,
}

impl Look {
    /// Lets go of a content that was read, unless `left` bytes hold it.
    pub(crate) fn keep_within(&mut self, left: &mut usize) {
        let Self::Found(found) = self else { return };
        let length = found.read.as_ref().map_or(0, Vec::len);
        match left.checked_sub(length) {
            Some(rest) => *left = rest,
            None => found.read = None,
        }
    }
}

/// The stamp of a name; a directory's size and change time move with its children and do not count.
#[must_use]
pub fn stamp_of(meta: &Meta) -> Stamp {
    match meta.kind {
        Kind::Dir => Stamp { size: 0, ctime: Time::default(), ..Stamp::of(meta) },
        _ => Stamp::of(meta),
    }
}

/// Looks at `name`, of which `known` was shown last.
///
/// # Errors
/// What the file system says, but for a name that is gone.
pub fn look<V: Vfs>(vfs: &V, dir: &V::Dir, name: &[u8], known: Option<&ShownRow>, care: Care) -> io::Result<Look> {
    look_and_cut(vfs, dir, name, (known, || None), care)
}

/// The same; a file that is read is also cut where there is something to cut it.
///
/// # Errors
/// As [`look`].
pub(crate) fn look_and_cut<V: Vfs>(
    vfs: &V,
    dir: &V::Dir,
    name: &[u8],
    (known, cutter): (Option<&ShownRow>, impl FnOnce() -> Option<Cutter>),
    care: Care,
) -> io::Result<Look> {
    let Some(meta) = vfs.stat(dir, name)? else { return Ok(Look::Gone) };
    if meta.mount_point {
        return Ok(Look::Mount);
    }
    let stamp = stamp_of(&meta);
    let trusted = known.filter(|k| k.stamp == Some(stamp) && !k.provisional && !care.rehash);
    if let Some(state) = trusted.and_then(|k| k.shown.state.clone()) {
        return Ok(found(state, stamp, false, meta.links));
    }
    let access = access_of(&meta, known, care.owners);
    match meta.kind {
        Kind::Special => Ok(Look::Special),
        Kind::Dir => {
            let state = State { value: Value::Dir, mtime: Some(meta.mtime), access: Some(access) };
            Ok(found(state, stamp, false, meta.links))
        }
        Kind::Symlink => {
            let target = vfs.read_link(dir, name)?;
            let state = State { value: Value::Symlink { target }, mtime: Some(meta.mtime), access: Some(access) };
            Ok(found(state, stamp, false, meta.links))
        }
        Kind::File if !care.take_open && age(&meta, care.now) < care.settle => Ok(Look::Busy),
        Kind::File => look_into(vfs, dir, name, (known, cutter), care),
    }
}

/// How long ago a file changed; a change in the future is as good as long ago.
fn age(meta: &Meta, now: Time) -> Duration {
    let nanos = now.nanos_since_epoch().saturating_sub(meta.ctime.nanos_since_epoch());
    u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
}

fn found(state: State, stamp: Stamp, provisional: bool, links: u64) -> Look {
    Look::Found(Box::new(Found { state, stamp, provisional, links, read: None, cut: None }))
}

fn look_into<V: Vfs>(
    vfs: &V,
    dir: &V::Dir,
    name: &[u8],
    (known, cutter): (Option<&ShownRow>, impl FnOnce() -> Option<Cutter>),
    care: Care,
) -> io::Result<Look> {
    let file = match vfs.open_file(dir, name) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Look::Gone),
        // A write lease is held (Samba), or the kind changed under us: look again.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ELOOP)) => return Ok(Look::Busy),
        Err(error) => return Err(error),
    };
    let writing = vfs.writers(&file) == Writers::Some;
    if writing && !care.take_open {
        return Ok(Look::Busy);
    }
    if writing || known.is_some_and(|k| k.provisional) {
        // So that a later store through a mapping changes the stamp again.
        vfs.write_back(&file)?;
    }
    let before = vfs.stat_file(&file)?;
    let (hash, size, read, cut) = read_file(vfs, &file, before.size, cutter)?;
    let writers = vfs.writers(&file);
    let after = vfs.stat_file(&file)?;
    if Stamp::of(&before) != Stamp::of(&after) && !care.take_open {
        return Ok(Look::Busy);
    }
    let age = care.now.nanos_since_epoch().saturating_sub(before.ctime.nanos_since_epoch());
    let racy = care.coarse && age < RACY_NANOS;
    let value = Value::File { size, hash };
    let state = State { value, mtime: Some(before.mtime), access: Some(access_of(&before, known, care.owners)) };
    let provisional = racy || writers != Writers::None && writers != Writers::Unknown || before != after;
    let (stamp, links) = (Stamp::of(&before), before.links);
    Ok(Look::Found(Box::new(Found { state, stamp, provisional, links, read, cut })))
}

/// A content that was read: hash, length that was hashed, bytes where these are few, chunks where it was cut.
type Read = (Hash, u64, Option<Vec<u8>>, Option<Manifest>);

/// Reads and hashes a file of about this length.
fn read_file<V: Vfs>(vfs: &V, file: &V::File, about: u64, cutter: impl FnOnce() -> Option<Cutter>) -> io::Result<Read> {
    let is_cut = about > KEPT_BYTES_MAX as u64 && about <= CUT_BYTES_MAX;
    if let Some(cutter) = is_cut.then(cutter).flatten() {
        let (hash, size, cut) = hash_and_cut(vfs, file, cutter)?;
        return Ok((hash, size, None, Some(cut)));
    }
    let Some(small) = usize::try_from(about).ok().filter(|bytes| *bytes <= KEPT_BYTES_MAX) else {
        let (hash, size) = hash_file(vfs, file)?;
        return Ok((hash, size, None, None));
    };
    let mut bytes = vec![0; small + 1];
    let filled = read_piece(vfs, file, 0, &mut bytes)?;
    if filled < bytes.len() {
        bytes.truncate(filled);
        return Ok((Hash(*blake3::hash(&bytes).as_bytes()), filled as u64, Some(bytes), None));
    }
    // It grew meanwhile.
    let (hash, size) = hash_file(vfs, file)?;
    Ok((hash, size, None, None))
}

/// Fills a buffer from an offset on; returns how much there was, less than it holds only at the end.
fn read_piece<V: Vfs>(vfs: &V, file: &V::File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match vfs.read_at(file, offset + filled as u64, &mut bytes[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// Hashes and cuts an open file at the same time.
fn hash_and_cut<V: Vfs>(vfs: &V, file: &V::File, cutter: Cutter) -> io::Result<(Hash, u64, Manifest)> {
    let (mut hasher, cutter) = (blake3::Hasher::new(), Mutex::new(cutter));
    let (mut buffer, mut offset) = (vec![0; PIECE_BYTES], 0);
    loop {
        let n = read_piece(vfs, file, offset, &mut buffer)?;
        let bytes = &buffer[..n];
        let cut = || cutter.lock().unwrap_or_else(PoisonError::into_inner).feed(bytes);
        let hash = || {
            hasher.update(bytes);
        };
        hands::both(vfs, cut, hash);
        offset += n as u64;
        if n < buffer.len() {
            let cutter = cutter.into_inner().unwrap_or_else(PoisonError::into_inner);
            return Ok((Hash(*hasher.finalize().as_bytes()), offset, cutter.finish()));
        }
    }
}

/// Hashes an open file; returns the hash and the length that was hashed.
///
/// # Errors
/// What reading says.
pub fn hash_file<V: Vfs>(vfs: &V, file: &V::File) -> io::Result<(Hash, u64)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; READ_BYTES];
    let mut offset = 0;
    loop {
        let n = vfs.read_at(file, offset, &mut buffer)?;
        if n == 0 {
            return Ok((Hash(*hasher.finalize().as_bytes()), offset));
        }
        hasher.update(&buffer[..n]);
        offset += n as u64;
    }
}

/// Mode and owner as an entry has them. Where owners are not ours to set, one that did not change
/// on disk keeps what the entry says.
pub(crate) fn access_of(meta: &Meta, known: Option<&ShownRow>, owners: bool) -> Access {
    let mode = if meta.kind == Kind::Symlink { default_mode(ValueKind::Symlink) } else { meta.mode };
    let on_disk = access_by_number(mode, meta.uid, meta.gid);
    let kept = known.filter(|k| !owners && k.stamp.is_some_and(|s| (s.uid, s.gid) == (meta.uid, meta.gid)));
    match kept.and_then(|k| k.shown.state.as_ref()).and_then(|s| s.access.clone()) {
        Some(access) => Access { mode, ..access },
        None => on_disk,
    }
}
