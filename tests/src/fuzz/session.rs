//! A session and the node around it, driven by bytes: a peer's frames, well-formed or not, facts of
//! this node, answers to outputs in any order, time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pleach_protocol::alike::{ALIKE_DOTS_MAX, Alike, DIGESTS_MAX, DirDigest};
use pleach_protocol::codec;
use pleach_protocol::entry::{Content, ContentSibling, Entry, Hash, Rank, Value};
use pleach_protocol::path::TreePath;
use pleach_protocol::session::{
    Announcement, BATCHES_MAX, CONTENT_WINDOW, Input, Link, Moment, Output, Session, SessionConfig, TreeOffer, What,
};
use pleach_protocol::version::{Actor, Dot, NodeId};
use pleach_protocol::wire::hello::MAGIC;
use pleach_protocol::wire::{
    ActorRow, AlikeDir, Bytes, CONTENT_BYTES_MAX, Cursor, First, FrameReader, Hello, IndexRow, LinkRole, Message,
    Standing, TreeHello, WIRE_VERSION, packed,
};

/// The most outputs that one input may give rise to: requests of one side and reads, acks beside.
const OUTPUTS_MAX: usize = 512;
/// Reads of content under way at once; of the machine's own bounds the one that is not public.
const READS_MAX: usize = 128;
const STEPS_MAX: usize = 4096;
const TREES: u8 = 3;

/// Bytes as choices; zeros when they are used up.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    /// Mostly small, sometimes of any size.
    fn number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=239 => u64::from(small),
            240..=247 => u64::from(self.byte()) << 8 | u64::from(self.byte()),
            248..=253 => u64::from(self.byte()) << (self.byte() & 63),
            254 => u64::from(u32::MAX),
            255 => u64::MAX,
        }
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::try_from(self.number()).unwrap_or(usize::MAX).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }

    fn tree(&mut self) -> usize {
        usize::from(self.byte() % (TREES + 1))
    }
}

fn offer(tree: u8) -> TreeOffer {
    TreeOffer {
        name: format!("t{tree}"),
        incarnation: [tree; 16],
        start: 1,
        cursor: (tree == 1).then_some(Cursor { incarnation: [1; 16], start: 1, seq: 3 }),
        head: u64::from(tree) * 20,
        standing: if tree == 2 { Standing::Paused } else { Standing::Open },
    }
}

/// A hello as a peer with the same trees says it.
pub(super) fn hello(role: LinkRole, batches: u16, window: u64) -> Hello {
    let trees = (0..TREES).map(|tree| TreeHello {
        name: format!("t{tree}"),
        incarnation: [tree; 16],
        start: 1,
        cursor: Some(Cursor { incarnation: [tree; 16], start: 1, seq: 7 }),
        head: 1000,
        standing: Standing::Open,
    });
    Hello {
        magic: MAGIC,
        version_min: WIRE_VERSION,
        version_max: WIRE_VERSION,
        software: "fuzz".into(),
        name: "peer".into(),
        start: 1,
        role,
        token: [7; 16],
        batches,
        content_window: window,
        trees: trees.filter(|_| role == LinkRole::Control).collect(),
    }
}

fn entry(node: u8, seq: u64, size: u64) -> Entry {
    let dot = Dot { actor: Actor { node: NodeId([node; 32]), start: 1 }, counter: seq.max(1) };
    let content = Content::Present(Value::File { size, hash: Hash([1; 32]) });
    let sibling = ContentSibling { rank: Rank(5), paired: false, file: dot, content };
    Entry { context: [dot].into_iter().collect(), content: [(dot, sibling)].into(), ..Entry::default() }
}

fn path(seq: u64) -> TreePath {
    TreePath::parse(format!("d/{seq}").as_bytes()).expect("a path")
}

/// A batch of one row, as a peer sends it.
pub(super) fn index(tree: u16, upto: u64, size: u64, content: Option<Vec<u8>>) -> Message {
    let entry = entry(2, upto, size);
    let actors = entry.context.iter().map(|dot| ActorRow { actor: dot.actor, name: "peer".into() }).collect();
    let row = IndexRow { path: path(upto), entry: packed::pack(&entry, &mut |_| 0), content: content.map(Bytes) };
    Message::Index { tree, actors, rows: vec![row], upto }
}

/// A directory that stands for its rows, as a peer sends it.
pub(super) fn alike(tree: u16, counters: &[i64]) -> Message {
    let actors = vec![ActorRow { actor: Actor { node: NodeId([2; 32]), start: 1 }, name: "peer".into() }];
    let dots = counters.iter().map(|counter| vec![(0, *counter)]).collect();
    Message::Alike { tree, actors, dirs: vec![AlikeDir { dir: Some(path(1)), digest: [2; 16], dots }] }
}

/// What the node around the session has not answered yet, and what it holds.
#[derive(Default)]
struct Node {
    waiting: VecDeque<Output>,
    heads: BTreeMap<usize, u64>,
    unmerged: BTreeMap<usize, usize>,
    held: u64,
    reads: usize,
    reading: BTreeMap<usize, usize>,
    telling: BTreeSet<usize>,
    digests: usize,
}

impl Node {
    fn drain(&mut self, session: &mut Session) {
        let mut count = 0;
        while let Some(output) = session.poll_output() {
            count += 1;
            assert!(count <= OUTPUTS_MAX, "one input gave rise to more outputs than any may");
            self.take(output);
        }
    }

    /// Checks what every output promises, and keeps what asks for an answer.
    fn take(&mut self, output: Output) {
        match &output {
            Output::Transmit { link, frame } => return sent(*link, frame),
            Output::ReadRows { tree, after, .. } => {
                assert!(*after < self.head(*tree), "a read behind the journal's end");
                let reading = self.reading.entry(*tree).or_default();
                *reading += 1;
                assert_eq!(*reading, 1, "two reads of one journal at a time");
            }
            Output::Merge { tree, rows, .. } => {
                let unmerged = self.unmerged.entry(*tree).or_default();
                *unmerged += 1;
                assert!(*unmerged <= usize::from(BATCHES_MAX), "more batches than were granted");
                for row in rows {
                    assert!(row.entry.content.keys().all(|dot| row.entry.context.contains(*dot)));
                }
            }
            Output::ReadDigests { tree } => assert!(self.telling.insert(*tree), "two steps of telling at a time"),
            Output::MergeAlike { alike, .. } => {
                let dots: Vec<&Dot> = alike.dots.iter().flatten().collect();
                assert!(dots.len() <= ALIKE_DOTS_MAX && dots.iter().all(|dot| dot.counter > 0));
                return;
            }
            Output::Digests { digests, .. } => {
                self.digests += digests.len();
                assert!(self.digests <= DIGESTS_MAX * usize::from(TREES), "more digests than any peer may tell");
                return;
            }
            Output::ReadContent { bytes_max, .. } | Output::ReadManifest { bytes_max, .. } => {
                self.reads += 1;
                assert!(*bytes_max <= CONTENT_BYTES_MAX && self.reads <= READS_MAX, "too many reads, or too long ones");
            }
            Output::Received { bytes, .. } => {
                self.held += bytes.len() as u64;
                assert!(self.held <= CONTENT_WINDOW, "more content than the window");
            }
            Output::HeadAsked { .. } => {}
            Output::Notice { text } => return assert!(text.chars().count() <= 512 && !text.contains(char::is_control)),
            _ => return,
        }
        self.waiting.push_back(output);
    }

    fn head(&self, tree: usize) -> u64 {
        self.heads.get(&tree).copied().unwrap_or(u64::try_from(tree).expect("few trees") * 20)
    }

    /// A legal answer to one of the outputs that wait for one.
    fn answer(&mut self, source: &mut Source<'_>) -> Option<Input> {
        let at = usize::from(source.byte()).checked_rem(self.waiting.len())?;
        let how = source.byte();
        Some(match self.waiting.remove(at)? {
            Output::ReadRows { tree, after, .. } => {
                self.reading.remove(&tree);
                let upto = after.saturating_add(u64::from(how % 5)).min(self.head(tree));
                let rows = (after..upto).map(|seq| {
                    let content = (how & 8 != 0).then(|| vec![1; 10]);
                    Announcement { path: path(seq + 1), entry: entry(1, seq + 1, 10), content }
                });
                let dots = vec![
                    vec![Dot { actor: Actor { node: NodeId([1; 32]), start: 1 }, counter: 9 }];
                    usize::from(how % 3)
                ];
                let alike = vec![Alike { dir: path(1), digest: [2; 16], dots }; usize::from(how & 1)];
                Input::Rows { tree, rows: rows.collect(), alike, names: Vec::new(), upto }
            }
            Output::ReadDigests { tree } => {
                self.telling.remove(&tree);
                let digests = vec![DirDigest { dir: [how; 16], digest: [3; 16] }; usize::from(how % 4)];
                Input::Digests { tree, digests, last: how & 4 != 0 }
            }
            Output::Merge { tree, upto, .. } => {
                // Those before it are merged with it.
                let before =
                    |o: &Output| matches!(o, Output::Merge { tree: t, upto: u, .. } if *t == tree && *u <= upto);
                let more = self.waiting.iter().filter(|o| before(o)).count();
                self.waiting.retain(|o| !before(o));
                *self.unmerged.entry(tree).or_default() -= more + 1;
                Input::Merged { tree, upto }
            }
            Output::ReadContent { tree, request, offset, bytes_max, .. }
            | Output::ReadManifest { tree, request, offset, bytes_max, .. } => {
                self.reads -= 1;
                let length = if how & 1 == 0 { bytes_max } else { bytes_max.min(usize::from(how)) };
                match how {
                    0..=239 => Input::Content { tree, request, offset, bytes: vec![1; length], last: how & 2 != 0 },
                    _ => Input::Gone { tree, request, reason: "gone \u{e9}".repeat(usize::from(how)) },
                }
            }
            Output::Received { bytes, .. } => {
                self.held -= bytes.len() as u64;
                Input::Consumed { bytes: bytes.len() as u64 }
            }
            Output::HeadAsked { tree, id } => Input::HeadIs { tree, id, seq: self.head(tree) },
            _ => return None,
        })
    }
}

/// What is sent is one whole frame with a message of its link.
fn sent(link: Link, frame: &[u8]) {
    let mut reader = FrameReader::default();
    reader.push(frame);
    let body = reader.next_frame().expect("our frames keep the limit").expect("a frame is sent whole");
    assert_eq!(body.len() + 4, frame.len());
    if let Ok(hello) = Hello::decode(&body) {
        return assert_eq!(hello.role, link);
    }
    let message: Message = codec::decode(&body).expect("what is sent can be decoded");
    assert_eq!(message.is_bulk(), link == Link::Bulk);
}

/// A message whose fields the bytes choose.
fn message(source: &mut Source<'_>) -> Message {
    let tree = u16::from(source.byte() % (TREES + 1));
    let number = source.number();
    match source.byte() % 20 {
        0 | 1 => {
            let content = source.bytes();
            index(tree, number, content.len() as u64, (!content.is_empty()).then(|| content.to_vec()))
        }
        2 => Message::Merged { tree, upto: number },
        3 => Message::Applied { tree, upto: number, stuck: 1 },
        5 => {
            let (size, offset) = (source.number(), source.number());
            Message::RequestFrom { tree, request: number, path: path(1), hash: [1; 32], size, offset }
        }
        4 => Message::Request { tree, request: number, path: path(1), hash: [1; 32], size: source.number() },
        6 => Message::Drop { request: number },
        7 => Message::Credit { bytes: number << (source.byte() & 31) },
        8 => {
            let (offset, kind) = (source.number(), source.byte());
            let bytes = Bytes(vec![1; usize::from(kind) << (source.byte() % 9)]);
            Message::Content { request: number, offset, bytes, last: kind & 1 == 1 }
        }
        9 => Message::Missing { request: number, reason: String::from_utf8_lossy(source.bytes()).into_owned() },
        10 => Message::AskHead { tree, id: number },
        11 => {
            let (size, count) = (source.number(), source.byte() % 4);
            let ranges = (0..count).map(|_| (source.number(), source.number())).collect();
            Message::RequestRanges { tree, request: number, path: path(1), hash: [1; 32], size, ranges }
        }
        12 => {
            let (size, known) = (source.number(), vec![[source.byte(); 8]; usize::from(source.byte()) << 5]);
            Message::RequestManifest { tree, request: number, path: path(1), hash: [1; 32], size, known }
        }
        13 => Message::Head { tree, id: number, seq: source.number() },
        14 => Message::Waits { tree, first: First::Send },
        15 => Message::Whole { tree, upto: number },
        16 => {
            let digests = vec![DirDigest { dir: [1; 16], digest: [2; 16] }; usize::from(source.byte()) << 6];
            Message::Digests { tree, digests, last: source.byte() & 1 == 1 }
        }
        17 => alike(tree, &vec![number.cast_signed(); usize::from(source.byte()) << (source.byte() % 6)]),
        _ => [Message::Ping, Message::Pong, Message::Notice { text: String::from_utf8_lossy(source.bytes()).into() }]
            .into_iter()
            .nth(usize::from(source.byte() % 3))
            .expect("one of three"),
    }
}

/// A fact of this node.
fn fact(node: &mut Node, source: &mut Source<'_>) -> Input {
    let tree = source.tree();
    let number = source.number();
    match source.byte() % 7 {
        0 => {
            let seq = node.head(tree).saturating_add(number & 0xff);
            node.heads.insert(tree, seq);
            Input::Head { tree, seq }
        }
        1 => Input::AskHead { tree, id: number },
        2 => Input::Applied { tree, upto: number, stuck: 0 },
        3 => Input::Drop { tree, want: number },
        _ => Input::Want {
            tree,
            want: number,
            path: path(2),
            hash: Hash([2; 32]),
            size: source.number(),
            what: What::From(0),
        },
    }
}

/// Runs a session over the script that the bytes are; it ends with the first error.
pub(super) fn run(data: &[u8]) {
    let mut source = Source(data);
    let mut now = Moment(0);
    let config = SessionConfig {
        node: NodeId([1; 32]),
        peer: NodeId([2; 32]),
        name: "fuzzed".into(),
        start: 1,
        token: [9; 16],
        trees: (0..TREES).map(offer).collect(),
    };
    let (mut session, mut node) = (Session::new(now, config), Node::default());
    node.drain(&mut session);
    for _ in 0..STEPS_MAX {
        if source.0.is_empty() {
            return;
        }
        let step = source.byte();
        let link = if step & 0x80 == 0 { Link::Control } else { Link::Bulk };
        let done = match step & 0x0f {
            0 => session.handle_frame(now, link, source.bytes()),
            1 => {
                let (batches, window) = (u16::from(source.byte()), source.number() << (source.byte() & 31));
                session.handle_frame(now, link, &codec::encode(&hello(link, batches, window)))
            }
            2..=5 => {
                let message = message(&mut source);
                let link = if message.is_bulk() { Link::Bulk } else { Link::Control };
                session.handle_frame(now, link, &codec::encode(&message))
            }
            6..=8 => {
                session.handle_local(now, fact(&mut node, &mut source));
                Ok(())
            }
            9..=13 => {
                if let Some(input) = node.answer(&mut source) {
                    session.handle_local(now, input);
                }
                Ok(())
            }
            14 => {
                session.notify(&String::from_utf8_lossy(source.bytes()));
                Ok(())
            }
            _ => {
                now = Moment(now.0.saturating_add(u64::from(source.byte()) << 28));
                assert!(session.next_timeout() > Moment(0));
                session.handle_timeout(now)
            }
        };
        node.drain(&mut session);
        if let Err(error) = done {
            // Its text is shown to people.
            assert!(error.to_string().len() < 4096);
            return;
        }
    }
}
