//! One honest look at one name on the disk: lstat, and a hash where a stamp proves nothing.
//!
//! The rules are LINUX.md §2: stat before reading, equal stat after; where a writer is there, or
//! cannot be excluded, the hash is provisional and is taken again.

use std::convert::Infallible;
use std::io;
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
/// What is read at once where one thread reads and hashes, and another one cuts.
const PIECE_BYTES: usize = 1024 * 1024;
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
    /// It is long, and not read to its end yet.
    Unread,
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

/// How much of a file that has to be read one look reads.
pub(crate) enum Reads<'a, V: Vfs> {
    /// All of it.
    All,
    /// Nothing where there is more than so many bytes.
    Short(u64),
    /// So many bytes, and all that is kept here of the looks before.
    Step(u64, &'a mut Option<Reading<V>>),
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
    look_and_cut(vfs, dir, name, (known, || None), (care, Reads::All))
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
    (care, reads): (Care, Reads<'_, V>),
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
        Kind::File => match reads {
            Reads::Short(most) if meta.size > most => Ok(Look::Unread),
            Reads::Step(bytes, reading) if reading.is_some() || meta.size > bytes => {
                read_on(vfs, (dir, name, &meta), (known, cutter), care, (bytes, reading))
            }
            _ => look_into(vfs, dir, name, (known, cutter), care),
        },
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
    let (file, before) = match open_to_read(vfs, dir, name, known, care)? {
        Ok(opened) => opened,
        Err(look) => return Ok(look),
    };
    let read = read_file(vfs, &file, before.size, cutter)?;
    judge_read(vfs, (&file, &before), read, known, care)
}

/// A file that is read a step at a time.
pub(crate) struct Reading<V: Vfs> {
    file: V::File,
    before: Meta,
    /// When that was so.
    began: Time,
    content: Content,
}

impl<V: Vfs> Reading<V> {
    /// How long the file was when it was opened.
    pub(crate) const fn bytes(&self) -> u64 {
        self.before.size
    }

    /// How much of it was read.
    pub(crate) const fn read_bytes(&self) -> u64 {
        self.content.offset
    }
}

/// Reads so many bytes more of a file, of which `meta` is what its name says now.
fn read_on<V: Vfs>(
    vfs: &V,
    (dir, name, meta): (&V::Dir, &[u8], &Meta),
    (known, cutter): (Option<&ShownRow>, impl FnOnce() -> Option<Cutter>),
    care: Care,
    (bytes, kept): (u64, &mut Option<Reading<V>>),
) -> io::Result<Look> {
    let mut reading = match kept.take() {
        Some(reading) if reading.before.inode != meta.inode => return Ok(Look::Busy),
        Some(reading) if Stamp::of(&reading.before) != Stamp::of(meta) && !care.take_open => return Ok(Look::Busy),
        Some(reading) => reading,
        None => match open_to_read(vfs, dir, name, known, care)? {
            Ok((file, before)) => {
                let content = Content::new(cutter_for(before.size, cutter));
                Reading { file, before, began: care.now, content }
            }
            Err(look) => return Ok(look),
        },
    };
    if !reading.content.read_on(vfs, &reading.file, bytes)? {
        *kept = Some(reading);
        return Ok(Look::Unread);
    }
    let Reading { file, before, began, content } = reading;
    let (hash, size, cut) = content.finish();
    judge_read(vfs, (&file, &before), (hash, size, None, cut), known, Care { now: began, ..care })
}

/// Opens a file that has to be read; what there is to say instead where it cannot be read now.
fn open_to_read<V: Vfs>(
    vfs: &V,
    dir: &V::Dir,
    name: &[u8],
    known: Option<&ShownRow>,
    care: Care,
) -> io::Result<Result<(V::File, Meta), Look>> {
    let file = match vfs.open_file(dir, name) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Err(Look::Gone)),
        // A write lease is held (Samba), or the kind changed under us: look again.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ELOOP)) => return Ok(Err(Look::Busy)),
        Err(error) => return Err(error),
    };
    let writing = vfs.writers(&file) == Writers::Some;
    if writing && !care.take_open {
        return Ok(Err(Look::Busy));
    }
    if writing || known.is_some_and(|k| k.provisional) {
        // So that a later store through a mapping changes the stamp again.
        vfs.write_back(&file)?;
    }
    let before = vfs.stat_file(&file)?;
    Ok(Ok((file, before)))
}

/// Says what was found, once all of it was read.
fn judge_read<V: Vfs>(
    vfs: &V,
    (file, before): (&V::File, &Meta),
    (hash, size, read, cut): Read,
    known: Option<&ShownRow>,
    care: Care,
) -> io::Result<Look> {
    let writers = vfs.writers(file);
    let after = vfs.stat_file(file)?;
    if Stamp::of(before) != Stamp::of(&after) && !care.take_open {
        return Ok(Look::Busy);
    }
    let age = care.now.nanos_since_epoch().saturating_sub(before.ctime.nanos_since_epoch());
    let racy = care.coarse && age < RACY_NANOS;
    let value = Value::File { size, hash };
    let state = State { value, mtime: Some(before.mtime), access: Some(access_of(before, known, care.owners)) };
    let provisional = racy || writers != Writers::None && writers != Writers::Unknown || *before != after;
    let (stamp, links) = (Stamp::of(before), before.links);
    Ok(Look::Found(Box::new(Found { state, stamp, provisional, links, read, cut })))
}

/// A content that was read: hash, length that was hashed, bytes where these are few, chunks where it was cut.
type Read = (Hash, u64, Option<Vec<u8>>, Option<Manifest>);

/// What cuts a file of about this length, if it is to be cut.
fn cutter_for(about: u64, cutter: impl FnOnce() -> Option<Cutter>) -> Option<Cutter> {
    let is_cut = about > KEPT_BYTES_MAX as u64 && about <= CUT_BYTES_MAX;
    is_cut.then(cutter).flatten()
}

/// Reads and hashes a file of about this length.
fn read_file<V: Vfs>(vfs: &V, file: &V::File, about: u64, cutter: impl FnOnce() -> Option<Cutter>) -> io::Result<Read> {
    if let Some(small) = usize::try_from(about).ok().filter(|bytes| *bytes <= KEPT_BYTES_MAX) {
        let mut bytes = vec![0; small + 1];
        let filled = read_piece(vfs, file, 0, &mut bytes)?;
        if filled < bytes.len() {
            bytes.truncate(filled);
            return Ok((Hash(*blake3::hash(&bytes).as_bytes()), filled as u64, Some(bytes), None));
        }
        // It grew meanwhile.
    }
    let mut content = Content::new(cutter_for(about, cutter));
    content.read_on(vfs, file, u64::MAX)?;
    let (hash, size, cut) = content.finish();
    Ok((hash, size, None, cut))
}

/// Fills a buffer from an offset on; returns how much there was, less than it holds only at the end.
pub(crate) fn read_piece<V: Vfs>(vfs: &V, file: &V::File, offset: u64, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match vfs.read_at(file, offset + filled as u64, &mut bytes[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

/// A content that is hashed, and cut at the same time where there is something to cut it.
struct Content {
    hasher: blake3::Hasher,
    cutter: Option<Cutter>,
    offset: u64,
}

impl Content {
    fn new(cutter: Option<Cutter>) -> Self {
        Self { hasher: blake3::Hasher::new(), cutter, offset: 0 }
    }

    /// Reads so many bytes more; returns whether that was the end.
    fn read_on<V: Vfs>(&mut self, vfs: &V, file: &V::File, bytes: u64) -> io::Result<bool> {
        let Self { hasher, cutter, offset } = self;
        let piece = if cutter.is_some() { PIECE_BYTES } else { READ_BYTES };
        let piece = usize::try_from(bytes).map_or(piece, |bytes| piece.min(bytes));
        let end = offset.saturating_add(bytes);
        let mut ends = Ok(false);
        let mut read = |buffer: &mut Vec<u8>| {
            if !matches!(ends, Ok(false)) || *offset >= end {
                return false;
            }
            buffer.resize(piece, 0);
            let read = read_piece(vfs, file, *offset, buffer);
            buffer.truncate(*read.as_ref().unwrap_or(&0));
            hasher.update(buffer);
            *offset += buffer.len() as u64;
            ends = read.map(|n| n < piece);
            !buffer.is_empty()
        };
        match cutter {
            None => {
                let mut buffer = Vec::new();
                while read(&mut buffer) {}
            }
            Some(cutter) => {
                let cut = |bytes: Vec<u8>| {
                    cutter.feed(&bytes);
                    Ok::<_, Infallible>(())
                };
                let make = || {
                    let mut buffer = Vec::new();
                    read(&mut buffer).then_some(buffer)
                };
                let Ok(()) = hands::one_by_one(vfs, make, cut);
            }
        }
        ends
    }

    fn finish(self) -> (Hash, u64, Option<Manifest>) {
        (Hash(*self.hasher.finalize().as_bytes()), self.offset, self.cutter.map(Cutter::finish))
    }
}

/// Hashes an open file; returns the hash and the length that was hashed.
///
/// # Errors
/// What reading says.
pub fn hash_file<V: Vfs>(vfs: &V, file: &V::File) -> io::Result<(Hash, u64)> {
    let mut content = Content::new(None);
    content.read_on(vfs, file, u64::MAX)?;
    let (hash, size, _) = content.finish();
    Ok((hash, size))
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
