//! Fuzz targets: everything that reads bytes of others. A target takes any bytes, says nothing and
//! panics where a promise is broken. libFuzzer drives them from `tests/fuzz`; [`mutate`] drives
//! them in the gate, from [`seeds`] and a seed of its own, so that a failure can be had again.
#![allow(clippy::missing_panics_doc, reason = "targets panic where a promise is broken: that is what they are for")]

pub mod mutate;
pub mod seeds;
mod session;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use pleach_agent::{config, control};
use pleach_protocol::codec;
use pleach_protocol::path::TreePath;
use pleach_protocol::version::Actor;
use pleach_protocol::wire::{FRAME_BYTES_MAX, FrameReader, Hello, Message, packed};
use pleach_store::ignore::IgnoreRules;
use pleach_store::rows::{self, Space};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A target: its name, what it does with bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("wire", wire),
    ("session", session),
    ("store", store),
    ("config", config),
    ("ignore", ignore),
    ("control", control),
];

/// The decoders of the wire: hello, messages, frames.
pub fn wire(data: &[u8]) {
    if let Ok(hello) = Hello::decode(data) {
        let again = Hello::decode(&codec::encode(&hello)).expect("what was decoded can be encoded");
        assert_eq!(again, hello);
    }
    if let Some(message) = round_trip::<Message>(data)
        && let Message::Index { actors, rows, .. } = message
    {
        let actor = |number| usize::try_from(number).ok().and_then(|n| actors.get(n)).map(|row| row.actor);
        for row in rows {
            let Ok(entry) = packed::unpack(row.entry, &actor) else { continue };
            let mut numbers: BTreeMap<Actor, u32> = BTreeMap::new();
            let packed = packed::pack(&entry, &mut |actor| {
                let next = u32::try_from(numbers.len()).expect("a frame holds few");
                *numbers.entry(actor).or_insert(next)
            });
            let actors: BTreeMap<u32, Actor> = numbers.into_iter().map(|(actor, number)| (number, actor)).collect();
            assert_eq!(packed::unpack(packed, &|number| actors.get(&number).copied()), Ok(entry));
        }
    }
    frames(data);
}

/// A stream of frames, whole and in pieces whose length the first byte says.
fn frames(data: &[u8]) {
    let read = |piece: usize| {
        let (mut reader, mut got) = (FrameReader::default(), Vec::new());
        for bytes in data.chunks(piece) {
            reader.push(bytes);
            loop {
                match reader.next_frame() {
                    Ok(Some(body)) => got.push(body),
                    Ok(None) => break,
                    Err(error) => return (got, Some(error)),
                }
            }
        }
        (got, None)
    };
    let whole = read(data.len().max(1));
    assert!(whole.0.iter().all(|body| body.len() <= FRAME_BYTES_MAX));
    assert!(whole.0.iter().map(|body| body.len() + 4).sum::<usize>() <= data.len());
    let piece = usize::from(data.first().copied().unwrap_or_default()) + 1;
    assert_eq!(read(piece), whole);
}

/// The session machine between a peer that says anything and a node that answers as it must.
pub fn session(data: &[u8]) {
    session::run(data);
}

/// The decoders of the store: rows and keys.
pub fn store(data: &[u8]) {
    unseal(data);
    // The checksum hides the decoders: the same bytes under one that holds.
    let mut sealed = vec![rows::STORE_VERSION];
    sealed.extend_from_slice(data);
    let sum = blake3::hash(&sealed);
    sealed.extend_from_slice(&sum.as_bytes()[..4]);
    unseal(&sealed);
    keys(data);
}

fn unseal(value: &[u8]) {
    fn row<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: &[u8]) {
        if let Ok(row) = rows::unseal::<T>(value) {
            let again: T = rows::unseal(&rows::seal(&row)).expect("what was read can be written");
            assert_eq!(again, row);
        }
    }
    row::<rows::CursorRow>(value);
    row::<rows::EntryRow>(value);
    row::<rows::HistoryRow>(value);
    row::<Vec<rows::Intent>>(value);
    row::<rows::MetaRow>(value);
    row::<rows::ProblemRow>(value);
    row::<rows::VaultRow>(value);
    row::<TreePath>(value);
    row::<String>(value);
    row::<u64>(value);
}

/// A key that is read is the key that would be written.
fn keys(data: &[u8]) {
    let same_but_space = |key: Vec<u8>| assert!(key.get(1..) == data.get(1..), "a key that is read is not written");
    if let Some(path) = rows::key_path(data) {
        same_but_space(rows::path_key(Space::Entry, &path));
    }
    if let Some((path, id)) = rows::key_vault(data) {
        same_but_space(rows::vault_key(&path, id));
    }
    if let Some(number) = rows::key_number(data) {
        same_but_space(rows::number_key(Space::Journal, number));
    }
    if let Ok(path) = TreePath::parse(data) {
        assert_eq!(rows::key_path(&rows::path_key(Space::Entry, &path)), Some(path.clone()));
        assert_eq!(rows::key_vault(&rows::vault_key(&path, 7)), Some((path.clone(), 7)));
        let parent = path.parent().unwrap_or_default();
        assert_eq!(parent.join(path.name()), Ok(path.clone()));
        let (key, (start, end)) = (rows::path_key(Space::Entry, &path), rows::children_range(Space::Entry, &parent));
        assert!(start <= key && key < end);
        let (start, end) = rows::subtree_range(Space::Entry, &parent);
        assert!(start <= key && key < end);
        assert!(!path.to_string().contains(char::is_control));
    }
}

/// The config parser.
pub fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let lines = text.matches('\n').count() + 1;
    match config::parse(Path::new("pleach.toml"), text) {
        Ok(config) => {
            let names = config.trees.iter().map(|t| &t.name).chain(config.peers.iter().map(|p| &p.name));
            assert!(names.chain([&config.name]).all(|name| config::check_name(name).is_ok()));
            assert!(config.state.is_absolute() && config.trees.iter().all(|tree| tree.path.is_absolute()));
            for tree in &config.trees {
                assert!(IgnoreRules::new(&tree.ignore).is_ok());
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty() && errors.iter().all(|e| (1..=lines).contains(&e.line)), "{errors:?}");
            assert!(errors.is_sorted_by_key(|e| e.line));
        }
    }
}

/// The ignore rules: blocks between NUL bytes are a line of the config, the root's file, the file of `d`, and paths.
pub fn ignore(data: &[u8]) {
    let mut blocks = data.split(|b| *b == 0);
    let mut next = || blocks.next().unwrap_or_default();
    let line = String::from_utf8_lossy(next()).into_owned();
    let mut rules = IgnoreRules::new(&[line]).unwrap_or_else(|_| IgnoreRules::new(&[]).expect("no rule is bad"));
    let dir = TreePath::parse(b"d").expect("a path");
    for place in [TreePath::ROOT, dir] {
        let content = next();
        rules.set_file(&place, Some(content));
        assert!(!rules.set_file(&place, Some(content)), "the same content changes nothing");
        assert!(rules.problems().all(|problem| problem.number >= 1));
    }
    for path in blocks.take(64).filter_map(|bytes| TreePath::parse(bytes).ok()) {
        for is_dir in [false, true] {
            let walked = path.parents().any(|p| rules.ignored_itself(&p, true)) || rules.ignored_itself(&path, is_dir);
            assert_eq!(rules.ignored(&path, is_dir), walked, "{path}");
        }
    }
    for place in [TreePath::ROOT, TreePath::parse(b"d").expect("a path")] {
        rules.set_file(&place, None);
        assert!(!rules.has_file(&place));
    }
}

/// A request on the control socket.
pub fn control(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<control::Request>(data) {
        let text = serde_json::to_vec(&request).expect("a request can be written");
        assert_eq!(serde_json::from_slice::<control::Request>(&text).expect("what was written can be read"), request);
    }
    if let Ok(path) = serde_json::from_slice::<control::RawPath>(data) {
        assert_eq!(control::RawPath::new(path.as_path()), Some(path));
    }
}

fn round_trip<T: Serialize + DeserializeOwned + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    let value: T = codec::decode(data).ok()?;
    let again: T = codec::decode(&codec::encode(&value)).expect("what was decoded can be encoded");
    assert_eq!(again, value);
    Some(value)
}
