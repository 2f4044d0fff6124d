//! Bytes of the protocol: what is written is read again, and what is cut, padded or lies about a
//! length is refused, without a panic and without memory for what is not there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(unsafe_code, reason = "what is allocated is counted by an allocator of this test's own")]

mod values;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use pleach_protocol::alike::DirDigest;
use pleach_protocol::codec;
use pleach_protocol::entry::{Entry, Hash, Rank};
use pleach_protocol::moved::Moved;
use pleach_protocol::path::{NAME_BYTES_MAX, PATH_BYTES_MAX, PathError, TreePath, check_name};
use pleach_protocol::version::{Actor, NodeId, VersionVector};
use pleach_protocol::wire::hello::MAGIC;
use pleach_protocol::wire::packed::{self, ActorRow, PackedEntry};
use pleach_protocol::wire::{
    AlikeDir, Bytes, Cursor, FRAME_BYTES_MAX, First, FrameReader, Hello, IndexRow, LinkRole, Message, Standing,
    TreeHello, frame,
};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use values::{entries, vectors};

thread_local! {
    /// What this thread holds, and the most that it held since [`peak`] began.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

// SAFETY: hands everything to the system's allocator, and counts beside it without allocating.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _gone = HELD.try_with(|held| {
            let now = held.get().0 + layout.size();
            held.set((now, now.max(held.get().1)));
        });
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        let _gone = HELD.try_with(|held| held.set((held.get().0.saturating_sub(layout.size()), held.get().1)));
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that a piece of work held at once.
fn peak(work: impl FnOnce()) -> usize {
    let before = HELD.get().0;
    HELD.set((before, before));
    work();
    HELD.get().1 - before
}

/// For a sequence serde reserves at most a MiB before the first element is read; of our types three
/// lie in one another. Beside them memory is for what was really sent: an element of an empty frame
/// byte or two becomes a struct of some ten words.
fn allowed(bytes: usize) -> usize {
    3 * 1024 * 1024 + 100 * bytes
}

/// Paths of one to six names of any bytes that a name may have.
pub(crate) fn paths() -> impl Strategy<Value = TreePath> {
    let names = vec(prop_oneof![Just(b'.'), any::<u8>()], 1..20).prop_filter("a name", |name| check_name(name).is_ok());
    vec(names, 1..6)
        .prop_map(|names| names.join(&b'/'))
        .prop_filter("the private directory", |bytes| TreePath::parse(bytes).is_ok())
        .prop_map(|bytes| TreePath::parse(&bytes).unwrap())
}

fn names() -> impl Strategy<Value = String> {
    "[A-Za-z0-9._-]{1,64}"
}

prop_compose! {
    fn hellos()(
        software in "[ -~]{0,128}",
        name in names(),
        start: u64,
        token: [u8; 16],
        batches in 1..=u16::MAX,
        window in 192_512..=u64::MAX,
        trees in proptest::collection::btree_map(names(), tree_hellos(), 0..5),
        bulk in prop::bool::weighted(0.2),
    ) -> Hello {
        let role = if bulk { LinkRole::Bulk } else { LinkRole::Control };
        let trees = trees.into_iter().filter(|_| !bulk).map(|(name, tree)| TreeHello { name, ..tree }).collect();
        let (version_min, version_max) = (1, 300);
        Hello { magic: MAGIC, version_min, version_max, software, name, start, role, token, batches, content_window: window, trees }
    }
}

prop_compose! {
    fn tree_hellos()(
        incarnation: [u8; 16],
        start: u64,
        cursor: Option<([u8; 16], u64, u64)>,
        head: u64,
        standing in prop_oneof![Just(Standing::Open), Just(Standing::Paused), Just(Standing::Failed)],
    ) -> TreeHello {
        let cursor = cursor.map(|(incarnation, start, seq)| Cursor { incarnation, start, seq });
        TreeHello { name: String::new(), incarnation, start, cursor, head, standing }
    }
}

/// A row and the actors that it names, as a sender makes both.
fn index_row(path: TreePath, entry: &Entry, content: Option<Vec<u8>>, actors: &mut Vec<ActorRow>) -> IndexRow {
    let entry = packed::pack(entry, &mut |actor| {
        let at = actors.iter().position(|row| row.actor == actor).unwrap_or_else(|| {
            actors.push(ActorRow { actor, name: "n".into() });
            actors.len() - 1
        });
        u32::try_from(at).unwrap()
    });
    IndexRow { path, entry, content: content.map(Bytes) }
}

fn indexes() -> impl Strategy<Value = Message> {
    let content = proptest::option::weighted(0.3, vec(any::<u8>(), 0..40));
    let rows = vec((paths(), entries(), content), 0..4);
    (any::<u16>(), rows, any::<u64>()).prop_map(|(tree, sent, upto)| {
        let mut actors = Vec::new();
        let rows = sent.into_iter().map(|(path, entry, content)| index_row(path, &entry, content, &mut actors));
        Message::Index { tree, rows: rows.collect(), actors, upto }
    })
}

fn alike_dirs() -> impl Strategy<Value = AlikeDir> {
    let dots = vec(vec(any::<(u32, i64)>(), 0..3), 0..5);
    (prop::option::of(paths()), any::<[u8; 16]>(), dots).prop_map(|(dir, digest, dots)| AlikeDir { dir, digest, dots })
}

fn messages() -> impl Strategy<Value = Message> {
    let (tree, number) = (any::<u16>, any::<u64>);
    let text = || ".{0,40}";
    prop_oneof![
        5 => indexes(),
        1 => (tree(), number()).prop_map(|(tree, upto)| Message::Merged { tree, upto }),
        1 => (tree(), number(), any::<u32>()).prop_map(|(tree, upto, stuck)| Message::Applied { tree, upto, stuck }),
        2 => (tree(), number(), paths(), any::<[u8; 32]>(), number())
            .prop_map(|(tree, request, path, hash, size)| Message::Request { tree, request, path, hash, size }),
        1 => (tree(), number(), paths(), any::<[u8; 32]>(), number(), number()).prop_map(
            |(tree, request, path, hash, size, offset)| Message::RequestFrom { tree, request, path, hash, size, offset }
        ),
        1 => (tree(), number(), paths(), any::<[u8; 32]>(), number(), vec(any::<(u64, u64)>(), 0..5)).prop_map(
            |(tree, request, path, hash, size, ranges)| {
                Message::RequestRanges { tree, request, path, hash, size, ranges }
            }
        ),
        1 => (tree(), number(), paths(), any::<[u8; 32]>(), number(), vec(any::<[u8; 8]>(), 0..5)).prop_map(
            |(tree, request, path, hash, size, known)| {
                Message::RequestManifest { tree, request, path, hash, size, known }
            }
        ),
        1 => number().prop_map(|request| Message::Drop { request }),
        1 => number().prop_map(|bytes| Message::Credit { bytes }),
        2 => (number(), number(), vec(any::<u8>(), 0..300), any::<bool>()).prop_map(
            |(request, offset, bytes, last)| Message::Content { request, offset, bytes: Bytes(bytes), last }
        ),
        1 => (number(), text()).prop_map(|(request, reason)| Message::Missing { request, reason }),
        1 => prop_oneof![Just(Message::Ping), Just(Message::Pong)],
        1 => (tree(), number()).prop_map(|(tree, id)| Message::AskHead { tree, id }),
        1 => (tree(), number(), number()).prop_map(|(tree, id, seq)| Message::Head { tree, id, seq }),
        1 => tree().prop_map(|tree| Message::Waits { tree, first: First::Receive }),
        1 => (tree(), number()).prop_map(|(tree, upto)| Message::Whole { tree, upto }),
        1 => (tree(), paths(), paths(), number(), number()).prop_map(|(tree, from, to, first, paths)| {
            let actor = Actor { node: NodeId([7; 32]), start: first };
            let (rank, digest) = (Rank(9), Hash([8; 32]));
            Message::Moved { tree, moved: Box::new(Moved { from, to, actor, first, paths, rank, digest }) }
        }),
        1 => (tree(), vec(any::<([u8; 16], [u8; 16])>(), 0..5), any::<bool>()).prop_map(|(tree, digests, last)| {
            let digests = digests.into_iter().map(|(dir, digest)| DirDigest { dir, digest }).collect();
            Message::Digests { tree, digests, last }
        }),
        1 => (tree(), vec(alike_dirs(), 0..3)).prop_map(|(tree, dirs)| {
            let actors = vec![ActorRow { actor: Actor { node: NodeId([7; 32]), start: 1 }, name: "n".into() }];
            Message::Alike { tree, actors, dirs }
        }),
        1 => text().prop_map(|reason| Message::Bye { reason }),
        1 => text().prop_map(|text| Message::Notice { text }),
    ]
}

/// What a length or a number can be made to say: the edges of each width of a varint.
const LIES: [&[u8]; 9] = [
    &[250],
    &[251, 0xff, 0xff],
    &[252, 0, 0, 4, 0],
    &[252, 0xff, 0xff, 0xff, 0xff],
    &[253, 0, 0, 0, 0, 1, 0, 0, 0],
    &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
    &[253, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[254, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    &[255],
];

/// Whole, and nothing else: every cut and every further byte is refused; what lies at whatever place
/// neither panics nor takes memory that the bytes do not account for.
fn check_bytes<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(value: &T) -> Result<(), TestCaseError> {
    let bytes = codec::encode(value);
    let again = codec::decode::<T>(&bytes);
    prop_assert_eq!(again.as_ref().ok(), Some(value));
    for cut in 0..bytes.len() {
        prop_assert!(codec::decode::<T>(&bytes[..cut]).is_err(), "cut at {}", cut);
    }
    for byte in [0, 1, 250, 255] {
        prop_assert!(codec::decode::<T>(&[&bytes[..], &[byte]].concat()).is_err(), "padded with {}", byte);
    }
    // A place in a hundred bytes or so is enough of a long value; the cases are many.
    for at in (0..bytes.len()).step_by(1 + bytes.len() / 100) {
        for lie in LIES {
            let lying = [&bytes[..at], lie, &bytes[at + 1..]].concat();
            let held = peak(|| drop(codec::decode::<T>(&lying)));
            prop_assert!(held <= allowed(lying.len()), "{} bytes held for {}, {:?} at {}", held, lying.len(), lie, at);
        }
    }
    Ok(())
}

/// `before` and `behind` a length of `length`, and what the length may say instead: all that is more
/// than there is must be refused, and less is never the same value.
fn check_length<T>(value: &T, before: usize) -> Result<(), TestCaseError>
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = codec::encode(value);
    let length = bytes[before];
    prop_assert!(length < 251, "one byte holds the length");
    let rest = &bytes[before + 1..];
    let lying = |lie: &[u8]| codec::decode::<T>(&[&bytes[..before], lie, rest].concat());
    for less in 0..length {
        let read = lying(&[less]);
        prop_assert_ne!(read.as_ref().ok(), Some(value), "{} for {}", less, length);
    }
    for more in length + 1..=250 {
        let read = lying(&[more]);
        prop_assert_ne!(read.as_ref().ok(), Some(value), "{} for {}", more, length);
        prop_assert!(usize::from(more) <= rest.len() || read.is_err(), "{} for {}", more, length);
    }
    for lie in &LIES[1..] {
        prop_assert!(lying(lie).is_err(), "{:?} for {}", lie, length);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_come_back_and_nothing_else_is_read(message in messages()) {
        check_bytes(&message)?;
    }

    #[test]
    fn hellos_come_back_and_nothing_else_is_read(hello in hellos()) {
        let body = codec::encode(&hello);
        let again = Hello::decode(&body);
        prop_assert_eq!(again.as_ref().ok(), Some(&hello));
        for cut in 0..body.len() {
            prop_assert!(Hello::decode(&body[..cut]).is_err());
        }
        check_bytes(&hello)?;
        let software = codec::encode(&(MAGIC, hello.version_min, hello.version_max)).len();
        let name = software + codec::encode(&hello.software).len();
        check_length(&hello, software)?;
        check_length(&hello, name)?;
        let trees = body.len() - codec::encode(&hello.trees).len();
        check_length(&hello, trees)?;
    }

    #[test]
    fn lengths_in_messages_cannot_lie(
        path in paths(), entry in entries(), bytes in vec(any::<u8>(), 0..200), request: u64, reason in "[a-z]{0,250}"
    ) {
        let number = codec::encode(&request).len();
        check_length(&Message::Missing { request, reason: reason.clone() }, 1 + number)?;
        check_length(&Message::Bye { reason }, 1)?;
        check_length(&Message::Request { tree: 3, request, path: path.clone(), hash: [1; 32], size: 5 }, 2 + number)?;
        let content = Message::Content { request, offset: 7, bytes: Bytes(bytes.clone()), last: true };
        check_length(&content, 2 + number)?;
        let mut actors = Vec::new();
        let row = index_row(path.clone(), &entry, Some(bytes.clone()), &mut actors);
        let (path, entry) = (codec::encode(&path).len(), codec::encode(&row.entry).len());
        let index = Message::Index { tree: 3, actors: actors.clone(), rows: vec![row], upto: 1 };
        let rows = 2 + codec::encode(&actors).len();
        // The actors, the rows, the path, the entry's context, the content.
        for at in [2, rows, rows + 1, rows + 1 + path, rows + 2 + path + entry] {
            check_length(&index, at)?;
        }
    }

    #[test]
    fn entries_and_vectors_come_back_and_nothing_else_is_read(entry in entries(), vector in vectors()) {
        check_bytes(&entry)?;
        check_bytes(&vector)?;
        let again: VersionVector = codec::decode(&codec::encode(&vector)).unwrap();
        prop_assert!(again.includes(&vector) && vector.includes(&again));
    }

    #[test]
    fn a_packed_entry_is_checked_whole_or_not_at_all(entry in entries()) {
        let mut actors: Vec<ActorRow> = Vec::new();
        let path = TreePath::parse(b"f").unwrap();
        let row = index_row(path, &entry, None, &mut actors);
        let known: Vec<Actor> = actors.iter().map(|row| row.actor).collect();
        let unpack = |packed: PackedEntry, known: &[Actor]| {
            packed::unpack(packed, &|number| known.get(usize::try_from(number).unwrap()).copied())
        };
        if entry.context.is_empty() {
            prop_assert!(unpack(row.entry, &known).is_err());
        } else {
            prop_assert_eq!(unpack(row.entry.clone(), &known), Ok(entry));
            prop_assert!(unpack(row.entry, &known[1..]).is_err(), "an actor that nobody named");
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in(messages in vec(messages(), 1..6), cuts in vec(1usize..200, 1..20)) {
        let stream: Vec<u8> = messages.iter().flat_map(|message| frame(message).unwrap()).collect();
        let (mut reader, mut got, mut rest) = (FrameReader::default(), Vec::new(), &stream[..]);
        for cut in cuts.iter().cycle() {
            let (piece, later) = rest.split_at((*cut).min(rest.len()));
            rest = later;
            reader.push(piece);
            while let Some(body) = reader.next_frame().unwrap() {
                got.push(codec::decode::<Message>(&body).unwrap());
            }
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(&got, &messages);
        // The last frame, cut, never comes out.
        let mut reader = FrameReader::default();
        reader.push(&stream[..stream.len() - 1]);
        let mut whole = 0;
        while reader.next_frame().unwrap().is_some() {
            whole += 1;
        }
        prop_assert_eq!(whole, messages.len() - 1);
    }

    #[test]
    fn a_frame_that_lies_holds_no_memory(
        // Without the highest bit, which says that the body is compressed.
        length in prop_oneof![0u32..200, 0u32..1 << 31],
        sent in vec(any::<u8>(), 0..100),
    ) {
        let held = peak(|| {
            let mut reader = FrameReader::default();
            reader.push(&length.to_le_bytes());
            reader.push(&sent);
            let got = reader.next_frame();
            let length = usize::try_from(length).unwrap();
            assert_eq!(got.is_err(), length > FRAME_BYTES_MAX);
            assert_eq!(got.is_ok_and(|body| body.is_some()), length <= sent.len());
        });
        prop_assert!(held < 1024, "{}", held);
    }

    #[test]
    fn paths_come_back(path in paths()) {
        check_bytes(&path)?;
        prop_assert_eq!(TreePath::parse(path.as_bytes()), Ok(path.clone()));
        let mut again = TreePath::ROOT;
        for name in path.components() {
            again = again.join(name).unwrap();
            prop_assert!(again == path || path.is_beneath(&again));
        }
        prop_assert_eq!(&again, &path);
        prop_assert_eq!(path.parent().unwrap().join(path.name()), Ok(path.clone()));
        prop_assert!(path.parents().all(|parent| parent < path));
    }

    #[test]
    fn bytes_are_a_path_or_are_refused_for_their_reason(
        bytes in vec(prop_oneof![Just(b'/'), Just(b'.'), Just(0), Just(b'a'), any::<u8>()], 0..12)
    ) {
        let names: Vec<&[u8]> = bytes.split(|b| *b == b'/').collect();
        let expected = names.iter().find_map(|name| check_name(name).err());
        let private = names[0] == b".pleach";
        match TreePath::parse(&bytes) {
            Ok(path) => prop_assert!(expected.is_none() && !private && path.as_bytes() == &bytes[..]),
            Err(why) => prop_assert_eq!(Some(why), expected.or(private.then_some(PathError::Private))),
        }
        // The same through the codec, where a peer's paths come in.
        let decoded = codec::decode::<TreePath>(&codec::encode(&bytes));
        prop_assert_eq!(decoded.ok(), TreePath::parse(&bytes).ok());
    }

    #[test]
    fn paths_are_ordered_as_their_names_are(a in paths(), b in paths()) {
        let names = |path: &TreePath| path.components().map(<[u8]>::to_vec).collect::<Vec<_>>();
        prop_assert_eq!(a.cmp(&b), names(&a).cmp(&names(&b)));
        prop_assert_eq!(a == b, a.cmp(&b).is_eq());
    }
}

#[test]
fn a_path_may_be_as_long_as_its_limit_and_no_longer() {
    // Names and slashes fill the limit exactly.
    let lengths = [NAME_BYTES_MAX; 63].into_iter().chain([127, 128]);
    let mut bytes = lengths.map(|length| vec![b'n'; length]).collect::<Vec<_>>().join(&b'/');
    assert_eq!(bytes.len(), PATH_BYTES_MAX);
    let path = TreePath::parse(&bytes).unwrap();
    assert_eq!(path.join(b"n"), Err(PathError::TooLong));
    bytes.push(b'n');
    assert_eq!(TreePath::parse(&bytes), Err(PathError::TooLong));
    assert!(codec::decode::<TreePath>(&codec::encode(&bytes)).is_err());
}

/// A whole frame of the smallest rows, and one of rows whose lists lie in one another: the worst that
/// a peer's frame costs once it is decoded.
#[test]
fn a_whole_frame_of_the_smallest_things_stays_small() {
    let empty: PackedEntry = codec::decode(&[0; 5]).unwrap();
    let row = IndexRow { path: TreePath::parse(b"f").unwrap(), entry: empty, content: None };
    let rows = vec![row; FRAME_BYTES_MAX / 8 - 2];
    let rows = codec::encode(&Message::Index { tree: 0, actors: Vec::new(), rows, upto: 1 });
    // An entry with one list of losers: a dot, so many losers of four bytes (dot, rank, a directory).
    let losers = (FRAME_BYTES_MAX - 100) / 4;
    let count = u32::try_from(losers).unwrap().to_le_bytes();
    let nested = [&[0, 0, 0, 1, 1, b'f', 0, 0, 0, 0, 1, 0, 1, 252][..], &count, &[1, 1, 1, 1].repeat(losers)];
    let nested = [&nested.concat()[..], &[0, 1]].concat();
    for body in [rows, nested] {
        assert!(body.len() <= FRAME_BYTES_MAX && body.len() > FRAME_BYTES_MAX - 200, "{}", body.len());
        let held = peak(|| assert!(codec::decode::<Message>(&body).is_ok()));
        assert!(held <= allowed(body.len()), "{held} bytes");
        println!("{} bytes hold {held} bytes while they are decoded", body.len());
    }
}
