//! The stored bytes (FORMAT.md): pinned, whole or refused, and keys that say what they were made of.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pleach_protocol::codec;
use pleach_protocol::entry::{
    AccessSibling, Content, ContentSibling, Entry, Hash, Loser, Principal, Rank, TimesSibling, Value, ValueKind,
};
use pleach_protocol::mint::Shown;
use pleach_protocol::moved::Moved;
use pleach_protocol::path::{TreePath, check_name};
use pleach_protocol::time::Time;
use pleach_protocol::version::{Actor, Dot, NodeId};
use pleach_protocol::view::{State, access_by_number};
use pleach_store::rows::{
    self, CursorRow, EntryRow, EventRow, HistoryRow, HookOn, HookRow, Intent, IntentOp, MetaRow, MovedRow, Pairing,
    ProblemRow, PushRow, PushedRow, RowError, STORE_VERSION, ShownRow, Space, StagedRow, Stamp, SumRow, Told, VaultRow,
    seal, unseal,
};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

fn p(path: &str) -> TreePath {
    TreePath::parse(path.as_bytes()).unwrap()
}

fn dot(node: u8, counter: u64) -> Dot {
    Dot { actor: Actor { node: NodeId([node; 32]), start: 300 }, counter }
}

/// What a row is made of here: numbers that a case chooses, of each width that a varint has.
#[derive(Clone, Debug)]
struct Parts {
    number: u64,
    secs: i64,
    text: String,
    some: bool,
    path: TreePath,
}

const fn time(secs: i64) -> Time {
    Time::new(secs, 999_999_999)
}

impl Parts {
    fn pinned() -> Self {
        Self { number: 70_000, secs: -2, text: "text".into(), some: true, path: p("d/f") }
    }

    fn state(&self) -> State {
        let access = self.some.then(|| access_by_number(0o640, 1000, 4));
        let value = match self.number % 4 {
            0 => Value::File { size: self.number, hash: Hash([0xaa; 32]) },
            1 => Value::Dir,
            2 => Value::Symlink { target: self.path.as_bytes().to_vec() },
            _ => Value::Special { kind: 0o010_000, device: self.number },
        };
        State { value, mtime: self.some.then(|| time(self.secs)), access }
    }

    fn stamp(&self) -> Option<Stamp> {
        let (number, time) = (self.number, time(self.secs));
        let stamp =
            Stamp { inode: number, btime: time, size: 5, mtime: time, ctime: time, mode: 0o640, uid: 1, gid: 2 };
        self.some.then_some(stamp)
    }

    fn shown(&self) -> Shown {
        Shown { context: [dot(1, self.number)].into_iter().collect(), state: Some(self.state()) }
    }

    /// Something in each register.
    fn entry(&self) -> Entry {
        let (a, b) = (dot(1, 1), dot(2, self.number.max(1)));
        let (value, rank) = (self.state().value, Rank(self.secs));
        let content = match self.some {
            true => Content::Present(value.clone()),
            false => Content::Absent { was: Some(value.clone()) },
        };
        let mut access = access_by_number(0o640, 1000, 4);
        access.owner = Principal { id: 7, name: Some(b"www".to_vec()) };
        access.attributes = self.some.then_some(Hash([0xbb; 32]));
        let access = AccessSibling { rank, of: ValueKind::File, file: a, access };
        Entry {
            context: [a, b].into_iter().collect(),
            content: [(b, ContentSibling { rank, paired: true, file: a, content })].into(),
            times: [(b, TimesSibling { rank, of: Value::Dir, mtime: time(self.secs) })].into(),
            access: [(a, access)].into(),
            losers: [(b, vec![Loser { rank, dot: a, value }])].into(),
        }
    }

    fn moved_row(&self) -> MovedRow {
        let path = |text: &str| TreePath::parse(text.as_bytes()).unwrap();
        let (from, to, actor) = (path("a/b"), path("c"), dot(1, 1).actor);
        let (first, rank, digest) = (self.number, Rank(self.secs), Hash([0xcc; 32]));
        let taught_by = self.some.then_some((NodeId([2; 32]), [3; 16]));
        let inode = (self.number, time(self.secs));
        MovedRow { moved: Moved { from, to, actor, first, paths: 3, rank, digest }, inode, taught_by }
    }

    fn entry_row(&self) -> EntryRow {
        EntryRow {
            entry: self.entry(),
            seq: self.number,
            taught_by: self.some.then_some((NodeId([2; 32]), [3; 16])),
            shown: Some(ShownRow { shown: self.shown(), stamp: self.stamp(), provisional: true }),
            pairing: if self.some { Pairing::Lowest } else { Pairing::ByTime },
            live_children: self.number,
        }
    }

    fn intents(&self) -> Vec<Intent> {
        use IntentOp::{Attributes, Create, Delete, MakeDir, RemoveDir, Replace};
        let intent = |op| Intent {
            path: self.path.clone(),
            op,
            id: self.number,
            context: self.shown().context,
            state: self.some.then(|| self.state()),
            inode: self.some.then_some((self.number, time(self.secs))),
            from: self.some.then(|| (p("d/e"), self.number)),
        };
        let ops = [Create, Replace, Delete, Attributes, MakeDir, RemoveDir];
        ops.map(intent).into_iter().take(if self.some { 6 } else { 1 }).collect()
    }

    fn vault_row(&self) -> VaultRow {
        VaultRow {
            hash: self.some.then_some(Hash([9; 32])),
            size: self.number,
            state: self.state(),
            time: time(self.secs),
            reason: self.text.clone(),
            open: self.some,
            stamp: self.stamp(),
            shown: self.shown(),
        }
    }

    fn history_row(&self) -> HistoryRow {
        HistoryRow {
            time: time(self.secs),
            path: self.path.clone(),
            from: self.some.then(|| p("e")),
            op: "rename".into(),
            node: self.text.clone(),
            size: Some(self.number),
            hash: self.some.then_some(Hash([9; 32])),
            was: None,
        }
    }

    fn meta_row(&self) -> MetaRow {
        let number = self.number;
        MetaRow {
            incarnation: [3; 16],
            head: number,
            applied: 2,
            synced: 3,
            next_id: 4,
            paired: self.some,
            boot: self.text.clone().into_bytes(),
            root: b"root".to_vec(),
            entries: 5,
            bytes: 6,
            conflicts: 7,
            collected: 8,
            last: (number, 9),
            next_last: (10, number),
            sum_secret: [11; 32],
        }
    }

    fn cursor_row(&self) -> CursorRow {
        let told = |end| Told { start: self.number, end };
        let told = vec![told(Some(8)), told(None)];
        CursorRow { incarnation: [3; 16], start: 4, merged: self.number, peer_merged: 7, told }
    }

    fn sum_row(&self) -> SumRow {
        SumRow { shown: 1 << 100, unused: u128::from(self.number), unsure: self.number }
    }

    fn staged_row(&self) -> StagedRow {
        StagedRow { path: self.path.clone(), hash: Hash([9; 32]), size: self.number }
    }

    fn push_row(&self) -> PushRow {
        let target = format!("rsync://{}", self.text);
        PushRow { target, seq: self.number, rules: [5; 16], approved: self.some, checked: time(self.secs) }
    }

    fn pushed_row(&self) -> PushedRow {
        PushedRow { dir: !self.some, hash: self.some.then_some(Hash([9; 32])) }
    }

    fn event_row(&self) -> EventRow {
        EventRow { seq: self.number, path: self.path.clone(), dir: self.some }
    }

    fn hook_row(&self) -> HookRow {
        HookRow { places: HookOn::ALL.map(|on| (on, self.number)).to_vec() }
    }

    fn problem_row(&self) -> ProblemRow {
        ProblemRow { time: time(self.secs), reason: self.text.clone() }
    }
}

/// A line for each kind of row: its name and its sealed bytes.
fn pinned() -> Vec<(&'static str, Vec<u8>)> {
    let parts = Parts::pinned();
    let actor = dot(1, 1).actor;
    vec![
        ("cursor", seal(&parts.cursor_row())),
        ("entry", seal(&parts.entry_row())),
        ("history", seal(&parts.history_row())),
        ("intents", seal(&parts.intents())),
        ("journal", seal(&parts.path)),
        ("meta", seal(&parts.meta_row())),
        ("name", seal(&parts.text)),
        ("problem", seal(&parts.problem_row())),
        ("sum", seal(&parts.sum_row())),
        ("staged", seal(&parts.staged_row())),
        ("vault", seal(&parts.vault_row())),
        ("conflicts", seal(&parts.number)),
        ("push", seal(&parts.push_row())),
        ("pushed", seal(&parts.pushed_row())),
        // The values whose variants the rows above do not have.
        ("content", seal(&())),
        ("actor", codec::encode(&actor)),
        ("symlink", codec::encode(&Value::Symlink { target: b"to".to_vec() })),
        ("special", codec::encode(&Value::Special { kind: 0o010_000, device: 300 })),
        ("absent", codec::encode(&Content::Absent { was: Some(Value::Dir) })),
        ("pairing by time", codec::encode(&Pairing::ByTime)),
        ("key of a path", rows::path_key(Space::Entry, &p("a/b/c"))),
        ("key of a path at the top", rows::path_key(Space::Entry, &p("a"))),
        ("key of a directory", rows::dir_key(Space::Sum, &p("a/b"))),
        ("key of a version", rows::vault_key(&p("a/b"), 258)),
        ("key of a content in the tree", rows::content_key(Hash([0xcc; 32]), &rows::Holder::Tree(p("a/b")))),
        ("key of a content in the vault", rows::content_key(Hash([0xcc; 32]), &rows::Holder::Vault(p("a/b"), 258))),
        ("key of a push", rows::push_key("web1")),
        ("key of what was pushed", rows::pushed_key(Space::Pushed, "web1", &p("a/b"))),
        ("key of what is owed", rows::pushed_key(Space::Owed, "web1", &p("a"))),
        ("key of a number", rows::number_key(Space::Journal, 258)),
        ("rename", seal(&parts.moved_row())),
        ("event", seal(&parts.event_row())),
        ("hook", seal(&parts.hook_row())),
        ("key of a hook", rows::hook_key(&[0xbb; 16])),
        ("key of an event", rows::event_key(HookOn::Sent, 258)),
        ("key of a path's event", rows::event_path_key(HookOn::Error, &p("a/b"))),
    ]
}

#[test]
fn the_stored_bytes_are_those_of_version_1() {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let found: Vec<String> = pinned().iter().map(|(name, bytes)| format!("{name}: {}", hex(bytes))).collect();
    // A test that fails here has changed what stores of version 1 hold: that needs a new version (FORMAT.md).
    let want: Vec<&str> = include_str!("rows-v1.hex").lines().collect();
    for (found, want) in found.iter().zip(&want) {
        assert_eq!(found, want);
    }
    assert_eq!(found.len(), want.len(), "{found:#?}");
    assert_eq!(STORE_VERSION, 1);
}

#[test]
fn the_spaces_are_those_of_version_1() {
    use Space::{Conflict, Content, Cursor, Entry, History, Intent, Journal, Meta, Name, Problem, Staged, Sum, Vault};
    use Space::{Event, Hook, Moved, Owed, Push, Pushed};
    let spaces = [Content, Cursor, Entry, History, Intent, Journal, Staged, Meta, Name, Problem, Sum, Vault, Conflict];
    assert_eq!(spaces.map(|space| space as u8), *b"BCEHIJLMNPSVX");
    assert_eq!([Owed, Push, Pushed].map(|space| space as u8), *b"OQR");
    assert_eq!([Event, Hook, Moved].map(|space| space as u8), *b"TKG");
}

/// A value with a checksum that holds.
fn summed(body: &[u8]) -> Vec<u8> {
    [body, &blake3::hash(body).as_bytes()[..4]].concat()
}

#[test]
fn another_version_is_named_and_bytes_behind_a_row_are_damage() {
    let row = Parts::pinned().cursor_row();
    let sealed = seal(&row);
    let body = &sealed[..sealed.len() - 4];
    assert_eq!(unseal::<CursorRow>(&summed(body)).unwrap(), row);
    assert!(matches!(unseal::<CursorRow>(&summed(&[&[2], &body[1..]].concat())), Err(RowError::Version(2))));
    assert!(matches!(unseal::<CursorRow>(&summed(&[body, &[0]].concat())), Err(RowError::Damaged)));
    assert!(matches!(unseal::<CursorRow>(&summed(&body[..body.len() - 1])), Err(RowError::Damaged)));
    assert!(matches!(unseal::<CursorRow>(&summed(b"")), Err(RowError::Damaged)));
    assert!(matches!(unseal::<u64>(&summed(&[1])), Err(RowError::Damaged)));
}

/// Whole or refused: each cut, each byte that is another, each byte more; and where the checksum holds
/// over a cut row or over a lie about a length, the decoder refuses what is not there.
fn check_row<T: Serialize + DeserializeOwned + PartialEq + Debug>(row: &T) -> Result<(), TestCaseError> {
    let sealed = seal(row);
    let again = unseal::<T>(&sealed);
    prop_assert_eq!(again.as_ref().ok(), Some(row));
    let body = &sealed[..sealed.len() - 4];
    for at in 0..sealed.len() {
        prop_assert!(unseal::<T>(&sealed[..at]).is_err(), "cut at {}", at);
        let mut changed = sealed.clone();
        changed[at] = changed[at].wrapping_add(1);
        prop_assert!(unseal::<T>(&changed).is_err(), "another byte at {}", at);
    }
    prop_assert!(unseal::<T>(&[&sealed[..], &[0]].concat()).is_err(), "a byte more");
    // A hundred places or so of a long row: the cases are many.
    for at in (1..body.len()).step_by(1 + body.len() / 100) {
        prop_assert!(unseal::<T>(&summed(&body[..at])).is_err(), "cut at {} under a checksum", at);
        for lie in [&[250][..], &[252, 0xff, 0xff, 0xff, 0xff], &[253, 0, 0, 0, 0, 0, 0, 0, 0x80]] {
            // Most places hold a number, which may be any; a length that lies is refused. None panics.
            if let Ok(read) = unseal::<T>(&summed(&[&body[..at], lie, &body[at + 1..]].concat())) {
                let again = unseal::<T>(&seal(&read));
                prop_assert_eq!(again.ok(), Some(read), "{:?} at {}", lie, at);
            }
        }
    }
    Ok(())
}

/// The place of a length that one byte holds: no other length is read as the same row, and none that
/// claims more than there is is read at all.
fn check_length<T: Serialize + DeserializeOwned + PartialEq + Debug>(row: &T, at: usize) -> Result<(), TestCaseError> {
    let sealed = seal(row);
    let (body, at) = (&sealed[..sealed.len() - 4], at + 1);
    let (length, rest) = (body[at], body.len() - at - 1);
    for lie in (0..=250).filter(|lie| *lie != length) {
        let read = unseal::<T>(&summed(&[&body[..at], &[lie], &body[at + 1..]].concat()));
        prop_assert!(usize::from(lie) <= rest || read.is_err(), "{} for {}", lie, length);
        prop_assert_ne!(read.as_ref().ok(), Some(row), "{} for {}", lie, length);
    }
    for lie in [&[251, 0xff, 0xff][..], &[252, 0xff, 0xff, 0xff, 0xff], &[253, 0, 0, 0, 0, 0, 0, 0, 0x80]] {
        prop_assert!(unseal::<T>(&summed(&[&body[..at], lie, &body[at + 1..]].concat())).is_err());
    }
    Ok(())
}

fn paths() -> impl Strategy<Value = TreePath> {
    let name = vec(prop_oneof![Just(b'a'), Just(1), Just(0xff), any::<u8>()], 1..5)
        .prop_filter("a name", |name| check_name(name).is_ok());
    vec(name, 1..5).prop_map(|names| TreePath::parse(&names.join(&b'/')).unwrap())
}

fn numbers() -> impl Strategy<Value = u64> {
    (0u32..64, any::<u64>()).prop_map(|(shift, number)| number >> shift)
}

prop_compose! {
    fn parts()(number in numbers(), secs: i64, text in ".{0,20}", some: bool, path in paths()) -> Parts {
        Parts { number, secs, text, some, path }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn rows_come_back_and_nothing_else_is_read(parts in parts()) {
        check_row(&parts.cursor_row())?;
        check_row(&parts.entry_row())?;
        check_row(&parts.history_row())?;
        check_row(&parts.intents())?;
        check_row(&parts.path)?;
        check_row(&parts.meta_row())?;
        check_row(&parts.text)?;
        check_row(&parts.problem_row())?;
        check_row(&parts.push_row())?;
        check_row(&parts.pushed_row())?;
        check_row(&parts.event_row())?;
        check_row(&parts.hook_row())?;
        check_row(&parts.sum_row())?;
        check_row(&parts.vault_row())?;
        check_row(&parts.number)?;
    }

    #[test]
    fn lengths_in_rows_cannot_lie(parts in parts()) {
        check_length(&parts.path, 0)?;
        check_length(&parts.text, 0)?;
        check_length(&parts.intents(), 0)?;
        check_length(&parts.entry_row(), 0)?;
        check_length(&parts.problem_row(), codec::encode(&time(parts.secs)).len())?;
        check_length(&parts.history_row(), codec::encode(&time(parts.secs)).len())?;
    }
}

proptest! {
    #[test]
    fn keys_say_what_they_were_made_of(a in paths(), b in paths(), id: u64) {
        let key = rows::path_key(Space::Entry, &a);
        prop_assert_eq!(rows::key_path(&key), Some(a.clone()));
        let vault = rows::vault_key(&a, id);
        prop_assert_eq!(rows::key_vault(&vault), Some((a.clone(), id)));
        let number = rows::number_key(Space::History, id);
        prop_assert_eq!(rows::key_number(&number), Some(id));
        for cut in 0..number.len() {
            prop_assert_eq!(rows::key_number(&number[..cut]), None);
        }
        // A cut key of a path may be the key of a shorter one, never of the same.
        for cut in 0..key.len() {
            prop_assert_ne!(rows::key_path(&key[..cut]), Some(a.clone()));
        }
        prop_assert_eq!(a == b, key == rows::path_key(Space::Entry, &b));
    }

    #[test]
    fn ranges_hold_what_lies_there_and_nothing_else(a in paths(), b in paths(), id: u64) {
        let within = |key: &[u8], (start, end): (Vec<u8>, Vec<u8>)| *key >= *start && *key < *end;
        let key = rows::path_key(Space::Vault, &a);
        for dir in [TreePath::ROOT, b.clone()].into_iter().chain(a.parents()) {
            let child = a.parent().as_ref() == Some(&dir);
            prop_assert_eq!(within(&key, rows::children_range(Space::Vault, &dir)), child, "{:?} in {:?}", a, dir);
            prop_assert_eq!(within(&key, rows::subtree_range(Space::Vault, &dir)), a.is_beneath(&dir));
            let vault = rows::vault_key(&a, id);
            prop_assert_eq!(within(&vault, rows::vault_range(&dir)), a == dir, "{:?} of {:?}", vault, dir);
        }
        prop_assert!(within(&rows::vault_key(&a, id), rows::vault_range(&a)));
        prop_assert!(rows::number_key(Space::Journal, id.saturating_sub(1)) <= rows::number_key(Space::Journal, id));
    }
}
