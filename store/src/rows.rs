//! The rows of a tree's store: keys, values, version and checksum (FORMAT.md).
//!
//! Stored types are not wire types. A value is one version byte, the encoded row, and four bytes
//! of BLAKE3 over both. Keys sort in the order of a walk: a directory's children lie together,
//! before what lies beneath them.

use pleach_protocol::codec;
use pleach_protocol::entry::{Entry, Hash, Value};
use pleach_protocol::mint::Shown;
use pleach_protocol::moved::Moved;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::version::{NodeId, VersionVector};
use pleach_protocol::view::State;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::vfs::Meta;

mod pushed;
mod told;

pub use pushed::{PushRow, PushedRow, agent_key, push_key, pushed_key, pushed_path, pushed_prefix};
pub use told::{EventRow, HookOn, HookRow, event_key, event_number, event_path_key, hook_key};

/// The version of the stored rows. 1: first.
pub const STORE_VERSION: u8 = 1;

/// The keyspaces, by first byte.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Space {
    /// Content and where it is → nothing: a hint (see [`content_key`]).
    Content = b'B',
    /// Peer → [`CursorRow`].
    Cursor = b'C',
    /// The one [`DirectionRow`].
    Direction = b'D',
    /// Path → [`EntryRow`].
    Entry = b'E',
    /// Content → [`ManifestRow`], content and number → a part of its manifest.
    Manifest = b'F',
    /// Seq → [`HistoryRow`].
    History = b'H',
    /// Batch number → `Vec<`[`Intent`]`>`.
    Intent = b'I',
    /// Seq → path, the newest change of each path.
    Journal = b'J',
    /// The one [`MetaRow`].
    Meta = b'M',
    /// The one [`MovedRow`], while it is carried out.
    Moved = b'G',
    /// Actor → display name of its node.
    Name = b'N',
    /// Peer without an agent, path → [`ProblemRow`]: what it is owed, and why.
    Owed = b'O',
    /// Path → [`ProblemRow`].
    Problem = b'P',
    /// Peer without an agent → [`PushRow`].
    Push = b'Q',
    /// Peer without an agent, path → [`PushedRow`].
    Pushed = b'R',
    /// Hook → [`HookRow`].
    Hook = b'K',
    /// Id in staging → [`StagedRow`].
    Staged = b'L',
    /// Directory → [`SumRow`].
    Sum = b'S',
    /// What hooks run for, number → [`EventRow`]; and path → the number of its newest.
    Event = b'T',
    /// Path and id → [`VaultRow`].
    Vault = b'V',
    /// Path → how many conflicts it lists, where it lists any.
    Conflict = b'X',
    /// Path → [`ShownRow`]: what users made of it where the tree only receives.
    Local = b'Y',
}

/// Says why a stored value cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// The checksum does not match or bytes are missing.
    #[error("a stored row is damaged")]
    Damaged,
    /// The row was written by another version.
    #[error("a stored row has version {0}, this pleach reads version {STORE_VERSION}")]
    Version(u8),
}

/// What distinguishes an inode's states without reading it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Stamp {
    /// Inode number.
    pub inode: u64,
    /// Birth time.
    pub btime: Time,
    /// Length in bytes.
    pub size: u64,
    /// Content time.
    pub mtime: Time,
    /// Change time.
    pub ctime: Time,
    /// Mode bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl Stamp {
    /// The stamp of a file.
    #[must_use]
    pub const fn of(meta: &Meta) -> Self {
        Self {
            inode: meta.inode,
            btime: meta.btime,
            size: meta.size,
            mtime: meta.mtime,
            ctime: meta.ctime,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
        }
    }

    /// Equality without the change time, which a rename moves (LINUX.md §3).
    #[must_use]
    pub fn same_but_ctime(&self, other: &Self) -> bool {
        Self { ctime: other.ctime, ..*self } == *other
    }
}

/// What the disk showed last, with the stamp by which it is known again.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct ShownRow {
    /// Context and state.
    pub shown: Shown,
    /// None where nothing is there.
    pub stamp: Option<Stamp>,
    /// The hash was taken while a writer was there or within a clock tick: an equal stamp proves nothing.
    pub provisional: bool,
}

impl ShownRow {
    /// Whether a directory was shown.
    pub fn is_dir(&self) -> bool {
        self.shown.state.as_ref().is_some_and(|state| state.value == Value::Dir)
    }
}

/// How a path without Shown pairs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Pairing {
    /// It does not: a file found there is a creation.
    #[default]
    No,
    /// With its content time as rank.
    ByTime,
    /// With rank 0: left by a crash of the machine.
    Lowest,
}

/// Which way a tree's changes go.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Direction {
    /// Changes made here are announced, those of peers are applied.
    #[default]
    Both,
    /// Changes made here are announced, none is applied.
    Send,
    /// Those of peers are applied, none that is made here is announced.
    Receive,
}

/// The direction of the last start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct DirectionRow {
    /// It.
    pub direction: Direction,
    /// The tree received only until then, and not all of what was changed meanwhile is paired.
    pub pairs_locals: bool,
    /// The root waits for a peer's whole index, to pair with it.
    pub waits: bool,
}

/// All that is known of one path here.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct EntryRow {
    /// The entry; one without context stands only for the count of children.
    pub entry: Entry,
    /// The newest journal position, 0 where it was never announced.
    pub seq: u64,
    /// The peer that taught exactly this, and a hash of both journals' incarnations and its start: as long as these are the same it need
    /// not hear it again. What follows from a rename that it told has a mark of that session in the hash.
    pub taught_by: Option<(NodeId, [u8; 16])>,
    /// What the disk showed last, none where it never did.
    pub shown: Option<ShownRow>,
    /// How it pairs while nothing is shown.
    pub pairing: Pairing,
    /// How many direct children are live.
    pub live_children: u64,
}

/// A change to the disk that is about to be made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// Where.
    pub path: TreePath,
    /// What.
    pub op: IntentOp,
    /// The name in staging, which becomes the name in the vault.
    pub id: u64,
    /// The context that the disk will include.
    pub context: VersionVector,
    /// The state that it will show.
    pub state: Option<State>,
    /// The new inode and its birth time, where it exists beforehand.
    pub inode: Option<(u64, Time)>,
    /// The path that the inode is taken from, and the id of its version in the vault; 0: from the tree.
    pub from: Option<(TreePath, u64)>,
}

/// A directory that is renamed as one unit: its rows are being written, or it is about to be renamed here.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct MovedRow {
    /// The rename.
    pub moved: Moved,
    /// Inode and birth time of the directory on this disk.
    pub inode: (u64, Time),
    /// As [`EntryRow::taught_by`]; none where a user of this node renamed it.
    pub taught_by: Option<(NodeId, [u8; 16])>,
}

/// The kind of an intended change.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum IntentOp {
    /// A file or link gets a free name.
    Create,
    /// A file or link takes the place of another.
    Replace,
    /// A file or link goes into the vault.
    Delete,
    /// Attributes change in place.
    Attributes,
    /// A directory is made.
    MakeDir,
    /// An empty directory is removed.
    RemoveDir,
}

/// A content that is partly here, under its id in staging.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct StagedRow {
    /// The path that is to show it.
    pub path: TreePath,
    /// The content.
    pub hash: Hash,
    /// Its whole length in bytes.
    pub size: u64,
}

/// A content whose manifest is kept.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ManifestRow {
    /// Rises with every manifest.
    pub id: u64,
    /// The content.
    pub hash: Hash,
    /// Its length in bytes.
    pub size: u64,
    /// How many chunks it has.
    pub chunks: u32,
}

/// A displaced version; one whose path is not known any more has the root's.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct VaultRow {
    /// The content's hash; none for symbolic links.
    pub hash: Option<Hash>,
    /// Length in bytes.
    pub size: u64,
    /// The state it had.
    pub state: State,
    /// When it was displaced.
    pub time: Time,
    /// Why: `replaced`, `deleted`, `conflict`, `torn`, `fetched`, `found`.
    pub reason: String,
    /// A writer had it open when it was displaced: it may change yet.
    pub open: bool,
    /// Its stamp when it was filed.
    pub stamp: Option<Stamp>,
    /// The Shown that it was judged against: a late write is minted against this.
    pub shown: Shown,
}

/// One line of `pleach log`.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct HistoryRow {
    /// When it was recorded.
    pub time: Time,
    /// Where.
    pub path: TreePath,
    /// The path it came from, for a rename.
    pub from: Option<TreePath>,
    /// `create`, `modify`, `delete`, `rename`, `meta`.
    pub op: String,
    /// The display name of the node that wrote it.
    pub node: String,
    /// Length in bytes, for files.
    pub size: Option<u64>,
    /// The content's hash, for files.
    pub hash: Option<Hash>,
    /// The hash of what was there before.
    pub was: Option<Hash>,
}

/// A path that cannot be read or applied.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ProblemRow {
    /// Since when.
    pub time: Time,
    /// What failed and why.
    pub reason: String,
}

/// How far this node is in a peer's journal, and the peer in ours.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct CursorRow {
    /// The incarnation of the peer's journal.
    pub incarnation: [u8; 16],
    /// The start of the peer under which `merged` was told.
    pub start: u64,
    /// The highest position of it that is merged here.
    pub merged: u64,
    /// The highest position of ours that the peer has merged.
    pub peer_merged: u64,
    /// Our starts under which the peer may have been told what its cursor says, the newest last.
    pub told: Vec<Told>,
}

/// A start of this node, and how far the journal reached at its end as far as this store knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Told {
    /// Its bits.
    pub start: u64,
    /// The journal's head when the next start began; none while it is the newest.
    pub end: Option<u64>,
}

/// What the direct children of a directory sum up to: a sum of 128-bit hashes, modulo 2^128.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct SumRow {
    /// Over name and stamp of what the disk shows.
    pub shown: u128,
    /// A sum over entries, which nobody reads any more: 0.
    pub unused: u128,
    /// Children that are to be looked at whatever the sum says.
    pub unsure: u64,
}

/// What holds for the whole store.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct MetaRow {
    /// The journal's random id.
    pub incarnation: [u8; 16],
    /// The highest seq given.
    pub head: u64,
    /// Every path up to here shows its view, or is listed as a problem.
    pub applied: u64,
    /// What was minted up to here survives a crash of the machine.
    pub synced: u64,
    /// The next staging id or intent batch.
    pub next_id: u64,
    /// Whether the first scan of this root is complete.
    pub paired: bool,
    /// The machine's boot id at the last start.
    pub boot: Vec<u8>,
    /// The id in `.pleach/root`.
    pub root: Vec<u8>,
    /// Live paths.
    pub entries: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Conflicts listed.
    pub conflicts: u64,
    /// The highest seq of a tombstone that was forgotten.
    pub collected: u64,
    /// Seq and start bits that `.pleach/last` says, as far as is known.
    pub last: (u64, u64),
    /// The same, about to be written there.
    pub next_last: (u64, u64),
    /// What the key of the sums over stamps is made of; drawn with the store.
    pub sum_secret: [u8; 32],
}

/// Seals a row into a value.
#[must_use]
pub fn seal<T: Serialize>(row: &T) -> Vec<u8> {
    let mut value = vec![STORE_VERSION];
    value.extend_from_slice(&codec::encode(row));
    let sum = blake3::hash(&value);
    value.extend_from_slice(&sum.as_bytes()[..4]);
    value
}

/// Opens a sealed value.
///
/// # Errors
/// Damage, or another version.
pub fn unseal<T: DeserializeOwned>(value: &[u8]) -> Result<T, RowError> {
    let cut = value.len().checked_sub(4).filter(|cut| *cut > 0).ok_or(RowError::Damaged)?;
    let (body, sum) = value.split_at(cut);
    if blake3::hash(body).as_bytes()[..4] != *sum {
        return Err(RowError::Damaged);
    }
    if body[0] != STORE_VERSION {
        return Err(RowError::Version(body[0]));
    }
    codec::decode(&body[1..]).map_err(|_| RowError::Damaged)
}

/// A key that counts.
#[must_use]
pub fn number_key(space: Space, number: u64) -> Vec<u8> {
    let mut key = vec![space as u8];
    key.extend_from_slice(&number.to_be_bytes());
    key
}

/// The number in such a key; none where it is no such key.
#[must_use]
pub fn key_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..)?.try_into().ok()?))
}

fn push_dir(key: &mut Vec<u8>, dir: &TreePath) {
    for component in dir.components() {
        key.extend_from_slice(component);
        key.push(0);
    }
}

/// The key of a path: each directory's name with a NUL behind it, one more NUL, the name.
#[must_use]
pub fn path_key(space: Space, path: &TreePath) -> Vec<u8> {
    let mut key = dir_key(space, &path.parent().unwrap_or_default());
    key.push(0);
    key.extend_from_slice(path.name());
    key
}

/// The key of a directory: its name and those of the directories above it, each with a NUL behind it.
#[must_use]
pub fn dir_key(space: Space, dir: &TreePath) -> Vec<u8> {
    let mut key = vec![space as u8];
    push_dir(&mut key, dir);
    key
}

/// The parts of a path's key behind its space: the directory as in [`dir_key`], and the last name.
#[must_use]
pub fn dir_and_name(key: &[u8]) -> (&[u8], &[u8]) {
    let cut = key.iter().rposition(|b| *b == 0).unwrap_or(0).max(1);
    (key.get(1..cut).unwrap_or_default(), key.get(cut + 1..).unwrap_or_default())
}

/// The path in such a key; none where it is no such key.
#[must_use]
pub fn key_path(key: &[u8]) -> Option<TreePath> {
    // A name with a slash would be read as another path than the one whose key this is.
    let bytes = key.get(1..).filter(|bytes| !bytes.contains(&b'/'))?;
    let mut path = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|b| *b == 0) {
        if end == 0 {
            path.extend_from_slice(&rest[1..]);
            return TreePath::parse(&path).ok();
        }
        path.extend_from_slice(&rest[..end]);
        path.push(b'/');
        rest = &rest[end + 1..];
    }
    None
}

/// The range of a directory's direct children.
#[must_use]
pub fn children_range(space: Space, dir: &TreePath) -> (Vec<u8>, Vec<u8>) {
    let mut start = dir_key(space, dir);
    start.push(0);
    let end = after_prefix(&start);
    (start, end)
}

/// The range of everything beneath a directory.
#[must_use]
pub fn subtree_range(space: Space, dir: &TreePath) -> (Vec<u8>, Vec<u8>) {
    let start = dir_key(space, dir);
    let end = after_prefix(&start);
    (start, end)
}

/// The first key behind all that begin with `prefix`.
#[must_use]
pub fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.last_mut() {
        if *last < 0xff {
            *last += 1;
            return end;
        }
        end.pop();
    }
    end
}

/// The key of a vault row.
#[must_use]
pub fn vault_key(path: &TreePath, id: u64) -> Vec<u8> {
    let mut key = path_key(Space::Vault, path);
    key.push(0);
    key.extend_from_slice(&id.to_be_bytes());
    key
}

/// The range of a path's vault rows.
#[must_use]
pub fn vault_range(path: &TreePath) -> (Vec<u8>, Vec<u8>) {
    let mut start = path_key(Space::Vault, path);
    start.push(0);
    let end = after_prefix(&start);
    (start, end)
}

/// Where a content is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Holder {
    /// A path shows it.
    Tree(TreePath),
    /// The vault holds it, as a version of this path under this id.
    Vault(TreePath, u64),
}

/// How much of a hash stands in a key.
const CONTENT_KEY_BYTES: usize = 16;

fn content_prefix(hash: Hash) -> Vec<u8> {
    [&[Space::Content as u8], &hash.0[..CONTENT_KEY_BYTES]].concat()
}

/// The key that says where a content is: half of its hash, then the rest of the key of its row.
#[must_use]
pub fn content_key(hash: Hash, holder: &Holder) -> Vec<u8> {
    let row = match holder {
        Holder::Tree(path) => path_key(Space::Entry, path),
        Holder::Vault(path, id) => vault_key(path, *id),
    };
    [content_prefix(hash), row].concat()
}

/// The range of a content's holders.
#[must_use]
pub fn content_range(hash: Hash) -> (Vec<u8>, Vec<u8>) {
    let start = content_prefix(hash);
    let end = after_prefix(&start);
    (start, end)
}

/// The key of a content's [`ManifestRow`].
#[must_use]
pub fn manifest_key(hash: Hash) -> Vec<u8> {
    [&[Space::Manifest as u8, 0], &hash.0[..]].concat()
}

/// The range of all of them.
#[must_use]
pub fn manifests_range() -> (Vec<u8>, Vec<u8>) {
    (vec![Space::Manifest as u8, 0], vec![Space::Manifest as u8, 1])
}

/// The key of a part of a content's manifest.
#[must_use]
pub fn manifest_part_key(hash: Hash, number: u32) -> Vec<u8> {
    [&[Space::Manifest as u8, 1], &hash.0[..], &number.to_be_bytes()].concat()
}

/// The range of all parts of it.
#[must_use]
pub fn manifest_parts_range(hash: Hash) -> (Vec<u8>, Vec<u8>) {
    let start = [&[Space::Manifest as u8, 1], &hash.0[..]].concat();
    let end = after_prefix(&start);
    (start, end)
}

/// The holder in such a key; none where it is no such key.
#[must_use]
pub fn key_content(key: &[u8]) -> Option<Holder> {
    let row = key.get(1 + CONTENT_KEY_BYTES..)?;
    match row.first() {
        Some(b) if *b == Space::Entry as u8 => Some(Holder::Tree(key_path(row)?)),
        Some(b) if *b == Space::Vault as u8 => key_vault(row).map(|(path, id)| Holder::Vault(path, id)),
        _ => None,
    }
}

/// Path and id of a vault key; none where it is no such key.
#[must_use]
pub fn key_vault(key: &[u8]) -> Option<(TreePath, u64)> {
    let cut = key.len().checked_sub(9).filter(|cut| key[*cut] == 0)?;
    let id = u64::from_be_bytes(key.get(cut + 1..)?.try_into().ok()?);
    // What is nobody's version has no name.
    let path = if key.get(1..cut)? == [0] { TreePath::ROOT } else { key_path(&key[..cut])? };
    Some((path, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &[u8]) -> TreePath {
        TreePath::parse(s).unwrap()
    }

    #[test]
    fn keys_sort_in_the_order_of_a_walk() {
        let paths = [&b"a"[..], b"a-b", b"b", b"a/b", b"a/c", b"a/b/x", b"a-b/y"];
        let keys: Vec<_> = paths.iter().map(|s| path_key(Space::Entry, &p(s))).collect();
        assert!(keys.is_sorted(), "{keys:?}");
        for (path, key) in paths.iter().zip(&keys) {
            assert_eq!(key_path(key), Some(p(path)));
        }
        let (start, end) = children_range(Space::Entry, &p(b"a"));
        let inside: Vec<_> = keys.iter().filter(|k| **k >= start && **k < end).filter_map(|k| key_path(k)).collect();
        assert_eq!(inside, [p(b"a/b"), p(b"a/c")]);
        let (start, end) = subtree_range(Space::Entry, &p(b"a"));
        assert_eq!(keys.iter().filter(|k| **k >= start && **k < end).count(), 3);
        assert_eq!(key_vault(&vault_key(&p(b"a/b"), 77)), Some((p(b"a/b"), 77)));
        assert_eq!(key_vault(&vault_key(&TreePath::ROOT, 77)), Some((TreePath::ROOT, 77)));
    }

    #[test]
    fn keys_that_no_row_has_are_not_read() {
        let number = number_key(Space::Journal, 300);
        assert_eq!(key_number(&number), Some(300));
        assert_eq!(key_number(&[&number[..], &[1]].concat()), None);
        assert_eq!(key_path(b"E\0d/f"), None, "the key of d/f is another");
        assert_eq!(key_path(b"Ed/e\0\0f"), None);
        let mut vault = vault_key(&p(b"d/f"), 77);
        let end = vault.len() - 9;
        vault[end] = b'f';
        assert_eq!(key_vault(&vault), None, "no NUL between name and id");
        for holder in [Holder::Tree(p(b"d/f")), Holder::Vault(p(b"d/f"), 77)] {
            let key = content_key(Hash([7; 32]), &holder);
            assert_eq!(key_content(&key), Some(holder));
            let (start, end) = content_range(Hash([7; 32]));
            assert!(start < key && key < end);
        }
        assert_eq!(key_content(b"B short"), None);
    }

    #[test]
    fn damage_is_noticed() {
        let sealed = seal(&CursorRow { merged: 7, ..CursorRow::default() });
        assert_eq!(unseal::<CursorRow>(&sealed).unwrap().merged, 7);
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(unseal::<CursorRow>(&damaged).is_err(), "byte {at}");
            assert!(unseal::<CursorRow>(&sealed[..at]).is_err(), "cut at {at}");
        }
    }
}
