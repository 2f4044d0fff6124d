#![allow(clippy::indexing_slicing, clippy::panic, clippy::expect_used, clippy::arithmetic_side_effects)]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::entry::{Content, ContentSibling, Entry, Loser, Rank, Value};
use crate::path::TreePath;
use crate::version::Actor;
use crate::version::Dot;
use crate::wire::packed::ActorRow;
use crate::wire::{Bytes, CONTENT_BYTES_MAX, Cursor, FRAME_BYTES_MAX, FrameReader, HelloError, Incarnation};

mod alike;

const SECOND: u64 = 1_000_000_000;

fn actor(node: u8) -> Actor {
    Actor { node: NodeId([node; 32]), start: 1 }
}

/// A file whose content is `size` times the byte `fill`, as [`End::answer`] serves it.
fn row(node: u8, seq: u64, size: u64, fill: u8) -> Announcement {
    let dot = Dot { actor: actor(node), counter: seq };
    let content = Content::Present(Value::File { size, hash: Hash([fill; 32]) });
    let sibling = ContentSibling { rank: Rank(5), paired: false, file: dot, content };
    let entry = Entry { context: [dot].into_iter().collect(), content: [(dot, sibling)].into(), ..Entry::default() };
    let path = TreePath::parse(format!("d/{node}-{seq}").as_bytes()).unwrap();
    Announcement { path, entry, content: None }
}

fn offer(name: &str, node: u8, head: u64) -> TreeOffer {
    TreeOffer {
        name: name.into(),
        incarnation: [node; 16],
        start: u64::from(node),
        cursor: None,
        head,
        standing: Standing::Open,
    }
}

fn config(node: u8, trees: Vec<TreeOffer>) -> SessionConfig {
    let peer = NodeId([3 - node; 32]);
    let (node, name) = (NodeId([node; 32]), format!("n{node}"));
    SessionConfig { node, peer, name, start: 1, token: [7; 16], trees }
}

/// One side: a session, and what a node around it does, as far as the test lets it.
struct End {
    node: u8,
    session: Session,
    /// The journal of tree 0; the seq of a row is its place and one.
    journal: Vec<Announcement>,
    merges: bool,
    consumes: bool,
    reads: bool,
    tells: bool,
    out: [VecDeque<Vec<u8>>; 2],
    /// All outputs but frames.
    seen: Vec<Output>,
    got: BTreeMap<u64, Vec<u8>>,
    finished: usize,
    unmerged: usize,
    /// Wants whose pieces do not begin where the one before ended.
    loose: BTreeSet<u64>,
}

impl End {
    fn new(node: u8, rows: u64, cursor: Option<(Incarnation, u64)>) -> Self {
        let cursor = cursor.map(|(incarnation, seq)| Cursor { incarnation, start: 5, seq });
        let offer = TreeOffer { cursor, ..offer("t", node, rows) };
        Self::with(node, rows, vec![offer])
    }

    fn with(node: u8, rows: u64, trees: Vec<TreeOffer>) -> Self {
        Self {
            node,
            session: Session::new(Moment(0), config(node, trees)),
            journal: (1..=rows).map(|seq| row(node, seq, 10, 1)).collect(),
            merges: true,
            consumes: true,
            reads: true,
            tells: true,
            out: Default::default(),
            seen: Vec::new(),
            got: BTreeMap::new(),
            finished: 0,
            unmerged: 0,
            loose: BTreeSet::new(),
        }
    }

    fn local(&mut self, input: Input) {
        let now = self.session.now;
        self.session.handle_local(now, input);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.session.poll_output() {
            if let Output::Transmit { link, frame } = output {
                self.out[usize::from(link == Link::Bulk)].push_back(frame);
                continue;
            }
            self.seen.push(output.clone());
            if let Some(input) = self.answer(output) {
                let now = self.session.now;
                self.session.handle_local(now, input);
            }
        }
    }

    fn rows(&self, tree: usize, after: u64, bytes_max: usize) -> Input {
        let after = usize::try_from(after).unwrap();
        let count = (bytes_max / 160).max(1);
        let rows: Vec<_> = self.journal[after..].iter().take(count).cloned().collect();
        let upto = (after + rows.len()) as u64;
        let names = vec![(actor(self.node), format!("n{}", self.node))];
        Input::Rows { tree, rows, alike: Vec::new(), names, upto }
    }

    fn answer(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::ReadRows { tree, after, bytes_max } if self.reads => Some(self.rows(tree, after, bytes_max)),
            Output::ReadDigests { tree } if self.tells => {
                Some(Input::Digests { tree, digests: Vec::new(), last: true })
            }
            Output::Merge { tree, upto, .. } => {
                self.unmerged += 1;
                self.merges.then(|| {
                    self.unmerged = 0;
                    Input::Merged { tree, upto }
                })
            }
            Output::ReadContent { tree, request, hash, offset, bytes_max, .. } if self.reads => {
                Some(Input::Content { tree, request, offset, bytes: vec![hash.0[0]; bytes_max], last: false })
            }
            Output::ReadManifest { tree, request, offset, bytes_max, known, .. } if self.reads => {
                assert_eq!(*known, [[7; 8]]);
                let length = bytes_max.min(150_000 - usize::try_from(offset).unwrap());
                let last = offset + length as u64 == 150_000;
                Some(Input::Content { tree, request, offset, bytes: vec![7; length], last })
            }
            Output::Received { want, offset, bytes, last, .. } => {
                let got = self.got.entry(want).or_default();
                assert!(got.len() as u64 == offset || self.loose.contains(&want));
                got.extend_from_slice(&bytes);
                self.finished += usize::from(last);
                self.consumes.then_some(Input::Consumed { bytes: bytes.len() as u64 })
            }
            _ => None,
        }
    }

    fn count(&self, what: impl Fn(&Output) -> bool) -> usize {
        self.seen.iter().filter(|output| what(output)).count()
    }
}

struct Pair {
    ends: [End; 2],
    seed: u64,
    now: Moment,
    /// The most content bytes that were ever under way towards each end, consumed or not.
    peak: [u64; 2],
}

impl Pair {
    fn new(a: End, b: End) -> Self {
        let mut pair = Self { ends: [a, b], seed: 1, now: Moment(0), peak: [0; 2] };
        pair.ends.iter_mut().for_each(End::drain);
        pair
    }

    /// Delivers one frame of a link that chance picks; bulk may overtake control and be overtaken.
    fn step(&mut self) -> bool {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let first = usize::try_from(self.seed >> 62).unwrap();
        for at in (0..4).map(|n| (n + first) % 4) {
            let (from, link) = (at / 2, at % 2);
            let Some(frame) = self.ends[from].out[link].pop_front() else { continue };
            let mut reader = FrameReader::default();
            reader.push(&frame);
            let body = reader.next_frame().unwrap().unwrap();
            let to = &mut self.ends[1 - from];
            to.session.handle_frame(self.now, [Link::Control, Link::Bulk][link], &body).unwrap();
            to.drain();
            let owed = self.ends[from].session.serving_owed();
            self.peak[1 - from] = self.peak[1 - from].max(owed);
            return true;
        }
        false
    }

    fn run(&mut self) {
        while self.step() {}
    }
}

impl Session {
    fn serving_owed(&self) -> u64 {
        self.serving.owed()
    }

    fn serving_is_empty(&self) -> bool {
        self.serving.is_empty()
    }
}

fn merged_rows(end: &End) -> Vec<Announcement> {
    let rows = end.seen.iter().filter_map(|o| if let Output::Merge { rows, .. } = o { Some(rows) } else { None });
    rows.flatten().cloned().collect()
}

#[test]
fn whole_indexes_go_both_ways() {
    let mut pair = Pair::new(End::new(1, 20_000, None), End::new(2, 5_000, None));
    pair.run();
    for (end, other) in [(0, 1), (1, 0)] {
        let other = &pair.ends[other];
        assert!(merged_rows(&pair.ends[end]) == other.journal);
        let head = other.journal.len() as u64;
        assert!(other.seen.contains(&Output::PeerMerged { tree: 0, seq: head }));
        assert!(other.seen.contains(&Output::Opened {
            tree: 0,
            name: format!("n{}", end + 1),
            incarnation: [u8::try_from(end).unwrap() + 1; 16],
            head: pair.ends[end].journal.len() as u64,
            start: u64::try_from(end).unwrap() + 1,
            peer_cursor: 0,
            told_under: 0,
            went_back: false
        }));
        let named = |o: &Output| matches!(o, Output::Merge { names, .. } if !names.is_empty());
        assert_eq!(pair.ends[end].count(named), pair.ends[end].count(|o| matches!(o, Output::Merge { .. })));
    }
    let more = row(1, 20_001, 10, 1);
    pair.ends[0].journal.push(more.clone());
    pair.ends[0].local(Input::Head { tree: 0, seq: 20_001 });
    pair.run();
    assert_eq!(merged_rows(&pair.ends[1]).last(), Some(&more));
    pair.ends[1].local(Input::Applied { tree: 0, upto: 20_001, stuck: 3 });
    pair.ends[1].local(Input::Applied { tree: 0, upto: 20_001, stuck: 3 });
    pair.run();
    let applied = Output::PeerApplied { tree: 0, seq: 20_001, stuck: 3 };
    assert_eq!(pair.ends[0].count(|o| *o == applied), 1);
}

#[test]
fn a_valid_cursor_resumes_and_another_begins_anew() {
    for (cursor, rows) in [(([1; 16], 90), 10), (([1; 16], 100), 0), (([1; 16], 101), 100), (([9; 16], 90), 100)] {
        let mut pair = Pair::new(End::new(1, 100, None), End::new(2, 0, Some(cursor)));
        pair.run();
        assert_eq!(merged_rows(&pair.ends[1]).len(), rows, "{cursor:?}");
    }
}

#[test]
fn rows_that_are_all_withheld_still_move_the_cursor() {
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.ends[0].reads = false;
    pair.run();
    pair.ends[0].local(Input::Head { tree: 0, seq: 40 });
    pair.ends[0].local(Input::Rows { tree: 0, rows: Vec::new(), alike: Vec::new(), names: Vec::new(), upto: 40 });
    pair.run();
    assert!(pair.ends[0].seen.contains(&Output::PeerMerged { tree: 0, seq: 40 }));
}

#[test]
fn an_absent_tree_stops_no_other() {
    let a = End::with(1, 5, vec![offer("t", 1, 5), offer("mine", 1, 0)]);
    let b = End::with(2, 5, vec![offer("yours", 2, 0), offer("t", 2, 0)]);
    let mut pair = Pair::new(a, b);
    pair.run();
    assert!(pair.ends[0].seen.contains(&Output::Absent { tree: 1 }));
    assert!(pair.ends[1].seen.contains(&Output::Absent { tree: 0 }));
    assert!(pair.ends[1].count(|o| matches!(o, Output::Merge { tree: 1, upto: 5, .. })) == 1);
    assert!(pair.ends[0].seen.contains(&Output::PeerMerged { tree: 0, seq: 5 }));
    let path = TreePath::parse(b"f").unwrap();
    pair.ends[0].local(Input::Want { tree: 1, want: 1, path, hash: Hash([1; 32]), size: 1, what: What::From(0) });
    assert!(matches!(pair.ends[0].seen.last(), Some(Output::Missing { tree: 1, want: 1, .. })));
}

#[test]
fn a_peer_that_does_not_merge_is_not_overrun() {
    let mut pair = Pair::new(End::new(1, 80_000, None), End::new(2, 0, None));
    pair.ends[1].merges = false;
    pair.run();
    assert_eq!(pair.ends[1].unmerged, usize::from(BATCHES_MAX));
    let merge = |o: &Output| if let Output::Merge { upto, .. } = o { Some(*upto) } else { None };
    let ends: Vec<u64> = pair.ends[1].seen.iter().filter_map(merge).collect();
    pair.ends[1].local(Input::Merged { tree: 0, upto: ends[1] });
    pair.run();
    assert_eq!(pair.ends[1].unmerged, usize::from(BATCHES_MAX) + 2);
}

#[test]
fn an_ack_stands_behind_rows_that_were_read_before_it() {
    let mut pair = Pair::new(End::new(1, 1, None), End::new(2, 1, None));
    pair.ends[0].reads = false;
    pair.run();
    // End 0 has merged the other's row while a read of its own journal is under way.
    assert!(pair.ends[0].count(|o| matches!(o, Output::Merge { .. })) == 1);
    assert!(pair.ends[1].count(|o| matches!(o, Output::PeerMerged { .. })) == 0);
    let rows = pair.ends[0].rows(0, 0, 1000);
    pair.ends[0].local(rows);
    pair.run();
    let at = |what: fn(&Output) -> bool| pair.ends[1].seen.iter().position(what).unwrap();
    assert!(at(|o| matches!(o, Output::Merge { .. })) < at(|o| matches!(o, Output::PeerMerged { .. })));
}

#[test]
fn batches_that_do_not_fit_are_read_in_smaller_parts() {
    let mut a = End::new(1, 400, None);
    for (row, seq) in a.journal.iter_mut().zip(1..) {
        let dot = Dot { actor: actor(1), counter: seq };
        let value = |n| Value::File { size: n, hash: Hash([9; 32]) };
        let loser = |n: u64| Loser { rank: Rank(1), dot, value: value(n) };
        row.entry.losers.insert(dot, (0..64).map(loser).collect());
    }
    // One entry beyond every frame: 1,024 links of 4,096 bytes.
    let huge = (0..1_000u64).map(|n| {
        let content = Content::Present(Value::Symlink { target: vec![b'x'; 4096] });
        let dot = Dot { actor: Actor { node: NodeId([8; 32]), start: n }, counter: 1 };
        (dot, ContentSibling { rank: Rank(1), paired: false, file: dot, content })
    });
    a.journal[200].entry.content = huge.collect();
    let seen = a.journal[200].entry.content.keys().copied().collect();
    a.journal[200].entry.context.join(&seen);
    let (mut want, path) = (a.journal.clone(), a.journal[200].path.clone());
    want.remove(200);
    let mut pair = Pair::new(a, End::new(2, 0, None));
    pair.run();
    assert!(merged_rows(&pair.ends[1]) == want);
    assert!(pair.ends[0].seen.contains(&Output::TooLarge { tree: 0, path }));
    assert!(pair.ends[0].seen.contains(&Output::PeerMerged { tree: 0, seq: 400 }));
}

#[test]
fn small_content_travels_with_its_row_if_it_fits() {
    let mut a = End::new(1, 3, None);
    a.journal[0].content = Some(vec![1; 10]);
    a.journal[1].content = Some(vec![1; 11]);
    a.journal[2] = row(1, 3, 16 * 1024 + 1, 1);
    a.journal[2].content = Some(vec![1; 16 * 1024 + 1]);
    let mut pair = Pair::new(a, End::new(2, 0, None));
    pair.run();
    let contents: Vec<_> = merged_rows(&pair.ends[1]).into_iter().map(|row| row.content).collect();
    assert_eq!(contents, [Some(vec![1; 10]), None, None]);
}

fn sizes() -> impl Iterator<Item = (u64, u64)> {
    let piece = CONTENT_BYTES_MAX as u64;
    let sizes = [0, 1, 100, piece - 1, piece, piece + 1, 2 * piece, 5 * piece];
    (0..1_000).map(move |want| (want, sizes[usize::try_from(want).unwrap() % sizes.len()]))
}

fn want(end: &mut End, want: u64, size: u64) {
    let path = TreePath::parse(format!("f{want}").as_bytes()).unwrap();
    let fill = u8::try_from(want % 251).unwrap();
    end.local(Input::Want { tree: 0, want, path, hash: Hash([fill; 32]), size, what: What::From(0) });
}

#[test]
fn a_thousand_contents_come_within_the_window() {
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.run();
    for (number, size) in sizes() {
        want(&mut pair.ends[0], number, size);
        want(&mut pair.ends[1], number, size);
    }
    pair.run();
    for end in &pair.ends {
        assert_eq!(end.finished, 1_000);
        for (number, size) in sizes() {
            let fill = u8::try_from(number % 251).unwrap();
            assert!(end.got[&number] == vec![fill; usize::try_from(size).unwrap()], "{number}");
        }
        assert!(end.count(|o| matches!(o, Output::Missing { .. })) == 0);
    }
    assert!(pair.peak.iter().all(|peak| (1..=CONTENT_WINDOW).contains(peak)), "{:?}", pair.peak);
}

#[test]
fn ranges_and_manifests_come_in_pieces_beside_contents() {
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.run();
    let path = TreePath::parse(b"f").unwrap();
    let ranges = vec![(10, 5), (100_000, 200_000), (499_999, 1)];
    for (want, what) in [(1, What::Ranges(ranges.clone())), (2, What::Manifest(vec![[7; 8]])), (3, What::From(0))] {
        let input = Input::Want { tree: 0, want, path: path.clone(), hash: Hash([5; 32]), size: 500_000, what };
        pair.ends[0].loose.insert(want);
        pair.ends[0].local(input);
    }
    pair.run();
    let pieces = |number| {
        pair.ends[0].seen.iter().filter_map(move |o| match o {
            Output::Received { want, offset, bytes, .. } if *want == number => Some((*offset, bytes.len() as u64)),
            _ => None,
        })
    };
    assert_eq!(pieces(1).map(|(_, length)| length).sum::<u64>(), 200_006);
    assert!(pieces(1).all(|(o, n)| ranges.iter().any(|(start, length)| o >= *start && o + n <= start + length)));
    assert_eq!(pieces(2).map(|(_, length)| length).sum::<u64>(), 150_000, "it ends where the answer says");
    assert_eq!(pieces(3).map(|(_, length)| length).sum::<u64>(), 500_000);
    assert_eq!(pair.ends[0].finished, 3);
    assert!(pair.ends[1].session.serving_is_empty());
}

#[test]
fn a_content_comes_from_where_it_broke_off() {
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.run();
    let path = TreePath::parse(b"f").unwrap();
    let (size, offset) = (500_000, 400_000);
    pair.ends[0].got.insert(5, vec![5; 400_000]);
    pair.ends[0].local(Input::Want { tree: 0, want: 5, path, hash: Hash([5; 32]), size, what: What::From(offset) });
    pair.run();
    let offsets = pair.ends[0].seen.iter().filter_map(|o| match o {
        Output::Received { offset, bytes, .. } => Some((*offset, bytes.len() as u64)),
        _ => None,
    });
    let offsets: Vec<(u64, u64)> = offsets.collect();
    assert_eq!(offsets.first().map(|(offset, _)| *offset), Some(400_000));
    assert_eq!(offsets.iter().map(|(_, length)| length).sum::<u64>(), 100_000);
    assert!(pair.ends[1].session.serving_is_empty());
}

#[test]
fn a_consumer_that_takes_nothing_is_sent_no_more_than_the_window() {
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.run();
    pair.ends[0].consumes = false;
    // All requests are there before the first is answered: a quick disk would serve the first alone.
    pair.ends[1].reads = false;
    (0..10).for_each(|number| want(&mut pair.ends[0], number, 10 * 1024 * 1024));
    pair.run();
    pair.ends[1].reads = true;
    let reads = std::mem::take(&mut pair.ends[1].seen);
    assert_eq!(reads.iter().filter(|o| matches!(o, Output::ReadContent { .. })).count(), 10, "one each");
    for read in reads {
        let Some(answer) = pair.ends[1].answer(read) else { continue };
        pair.ends[1].local(answer);
    }
    pair.run();
    let held = |end: &End| end.got.values().map(|bytes| bytes.len() as u64).sum::<u64>();
    let stopped = held(&pair.ends[0]);
    assert!(stopped <= CONTENT_WINDOW && stopped > CONTENT_WINDOW - 2 * CONTENT_BYTES_MAX as u64, "{stopped}");
    assert!(pair.ends[0].got.len() == 10, "in turn");
    pair.ends[0].local(Input::Consumed { bytes: 200 * 1024 });
    pair.run();
    assert!(held(&pair.ends[0]) > stopped && held(&pair.ends[0]) <= stopped + 300 * 1024);
}

#[test]
fn dropped_and_missing_contents_let_others_through() {
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.run();
    for number in 0..600 {
        want(&mut pair.ends[0], number, 500_000);
    }
    for _ in 0..300 {
        pair.step();
    }
    for number in (0..600).filter(|number| number % 3 > 0) {
        pair.ends[0].local(Input::Drop { tree: 0, want: number });
    }
    let before = pair.ends[0].seen.len();
    pair.run();
    let after = |o: &Output| matches!(o, Output::Received { want, .. } if want % 3 > 0);
    assert!(!pair.ends[0].seen[before..].iter().any(after), "nothing of a dropped one");
    let done = (0..600u64).filter(|n| n % 3 == 0).all(|n| pair.ends[0].got[&n].len() == 500_000);
    assert!(done && pair.ends[1].session.serving_is_empty());
}

#[test]
fn one_want_too_many_is_answered_at_once() {
    let mut end = End::new(1, 0, None);
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.run();
    std::mem::swap(&mut end, &mut pair.ends[0]);
    for number in 0..256 + 4096 {
        want(&mut end, number, 1);
    }
    assert!(end.count(|o| matches!(o, Output::Missing { .. })) == 0);
    assert_eq!(end.out[0].len(), 256);
    want(&mut end, 9_999, 1);
    assert!(matches!(end.seen.last(), Some(Output::Missing { want: 9_999, .. })));
}

#[test]
fn contents_that_are_gone_or_cut_are_missing() {
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.run();
    let reason = "\u{e9}".repeat(400);
    let answers = [
        Input::Gone { tree: 0, request: 0, reason },
        Input::Content { tree: 0, request: 1, offset: 0, bytes: vec![1; 5], last: true },
        Input::Content { tree: 0, request: 2, offset: 5, bytes: vec![1; 5], last: false },
        Input::Content { tree: 0, request: 3, offset: 0, bytes: Vec::new(), last: false },
        Input::Content { tree: 0, request: 4, offset: 0, bytes: vec![1; 11], last: true },
    ];
    for (number, answer) in (0..).zip(answers) {
        want(&mut pair.ends[0], number, 10);
        let frame = pair.ends[0].out[0].pop_back().unwrap();
        let (to, now) = (&mut pair.ends[1], pair.now);
        to.session.handle_frame(now, Link::Control, &frame[4..]).unwrap();
        assert!(matches!(to.session.poll_output(), Some(Output::ReadContent { bytes_max: 10, .. })));
        to.local(answer);
        pair.run();
        assert!(matches!(pair.ends[0].seen.last(), Some(Output::Missing { want, .. }) if *want == number));
    }
}

#[test]
fn a_silent_peer_is_asked_and_then_given_up() {
    let mut pair = Pair::new(End::new(1, 0, None), End::new(2, 0, None));
    pair.run();
    for _ in 0..10 {
        pair.now = pair.ends[0].session.next_timeout();
        for end in &mut pair.ends {
            end.session.handle_timeout(pair.now).unwrap();
            end.drain();
        }
        assert_eq!(pair.ends[0].out[0].len(), 1, "a ping");
        pair.run();
    }
    let heard = pair.now;
    assert_eq!(heard, Moment(50 * SECOND));
    let session = &mut pair.ends[0].session;
    let mut pings = 0;
    while session.next_timeout() < heard.after(DEAD_AFTER) {
        let now = session.next_timeout();
        session.handle_timeout(now).unwrap();
        pings += usize::from(matches!(session.poll_output(), Some(Output::Transmit { .. })));
    }
    assert_eq!((pings, session.next_timeout()), (3, Moment(70 * SECOND)));
    assert!(matches!(session.handle_timeout(Moment(70 * SECOND)), Err(SessionError::Dead)));
}

/// A session that has heard both hellos of a peer, and the hellos.
fn opened() -> (Session, [Vec<u8>; 2]) {
    let mut peer = Session::new(Moment(0), config(2, vec![offer("t", 2, 50)]));
    let mut session = Session::new(Moment(0), config(1, vec![offer("t", 1, 10), offer("u", 1, 0)]));
    let hellos = [(); 2].map(|()| match peer.poll_output() {
        Some(Output::Transmit { frame, .. }) => frame[4..].to_vec(),
        other => panic!("{other:?}"),
    });
    session.handle_frame(Moment(0), Link::Control, &hellos[0]).unwrap();
    session.handle_frame(Moment(0), Link::Bulk, &hellos[1]).unwrap();
    while session.poll_output().is_some() {}
    (session, hellos)
}

fn index(upto: u64) -> Message {
    Message::Index { tree: 0, actors: Vec::new(), rows: Vec::new(), upto }
}

fn content(request: u64, offset: u64, length: usize, last: bool) -> Message {
    Message::Content { request, offset, bytes: Bytes(vec![1; length]), last }
}

#[test]
fn what_breaks_the_conversation_ends_it() {
    let path = TreePath::parse(b"f").unwrap();
    let ask = |tree, request| Message::Request { tree, request, path: path.clone(), hash: [1; 32], size: 10 };
    let name = ActorRow { actor: actor(1), name: "\x1b".into() };
    let table: Vec<(&str, Vec<Message>)> = vec![
        ("an unknown tree", vec![Message::Index { tree: 2, actors: Vec::new(), rows: Vec::new(), upto: 1 }]),
        ("a tree that it lacks", vec![Message::Index { tree: 1, actors: Vec::new(), rows: Vec::new(), upto: 1 }]),
        ("a journal back", vec![index(5), index(4)]),
        ("a journal that stands", vec![index(5), index(5)]),
        ("too many batches", (1..=u64::from(BATCHES_MAX) + 1).map(index).collect()),
        ("a bad name", vec![Message::Index { tree: 0, actors: vec![name], rows: Vec::new(), upto: 1 }]),
        ("an ack of nothing", vec![Message::Merged { tree: 0, upto: 1 }]),
        ("an ack of nothing shown", vec![Message::Applied { tree: 0, upto: 1, stuck: 0 }]),
        ("a request twice", vec![ask(0, 1), ask(0, 1)]),
        ("a request in an unknown tree", vec![ask(7, 1)]),
        (
            "a request from beyond the end",
            vec![Message::RequestFrom { tree: 0, request: 1, path: path.clone(), hash: [1; 32], size: 10, offset: 11 }],
        ),
        (
            "ranges that touch",
            vec![Message::RequestRanges {
                tree: 0,
                request: 1,
                path: path.clone(),
                hash: [1; 32],
                size: 10,
                ranges: vec![(0, 5), (5, 1)],
            }],
        ),
        (
            "too many parts that are known",
            vec![Message::RequestManifest {
                tree: 0,
                request: 1,
                path: path.clone(),
                hash: [1; 32],
                size: 10,
                known: vec![[0; 8]; 4097],
            }],
        ),
        ("too many requests", (0..257).map(|n| ask(0, n)).collect()),
        ("a drop of nothing", vec![Message::Drop { request: 0 }]),
        ("a credit for nothing", vec![Message::Credit { bytes: 1 }]),
        ("content for nobody", vec![content(1, 0, 1, true)]),
        ("content elsewhere", vec![content(0, 1, 1, false)]),
        ("content too long", vec![content(0, 0, 500_001 % 61_440, true)]),
        ("content that overflows", vec![content(0, u64::MAX, 1, false)]),
        ("a piece too long", vec![content(0, 0, CONTENT_BYTES_MAX + 1, false)]),
        ("an empty piece", vec![content(0, 0, 0, false)]),
        ("a reason too long", vec![Message::Missing { request: 0, reason: "x".repeat(513) }]),
        ("missing for nobody", vec![Message::Missing { request: 1, reason: String::new() }]),
    ];
    for (what, messages) in table {
        let (mut session, _) = opened();
        let input = Input::Want {
            tree: 0,
            want: 70,
            path: path.clone(),
            hash: Hash([1; 32]),
            size: 500_000,
            what: What::From(0),
        };
        session.handle_local(Moment(0), input);
        let (last, before) = messages.split_last().unwrap();
        let mut say = |message: &Message| {
            let link = if message.is_bulk() { Link::Bulk } else { Link::Control };
            session.handle_frame(Moment(0), link, &codec::encode(message))
        };
        for message in before {
            say(message).unwrap();
        }
        assert!(matches!(say(last), Err(SessionError::Protocol(_))), "{what}");
    }
}

#[test]
fn the_window_holds_against_a_peer_and_dropped_content_gives_its_room_back() {
    for dropped in [false, true] {
        let (mut session, _) = opened();
        let path = TreePath::parse(b"f").unwrap();
        session.handle_local(
            Moment(0),
            Input::Want { tree: 0, want: 70, path, hash: Hash([1; 32]), size: 2 * CONTENT_WINDOW, what: What::From(0) },
        );
        if dropped {
            session.handle_local(Moment(0), Input::Drop { tree: 0, want: 70 });
        }
        while session.poll_output().is_some() {}
        let (piece, mut sent, mut credited) = (CONTENT_BYTES_MAX as u64, 0, 0);
        let mut say = |sent| {
            session.handle_frame(Moment(0), Link::Bulk, &codec::encode(&content(0, sent, CONTENT_BYTES_MAX, false)))?;
            credited += std::iter::from_fn(|| session.poll_output())
                .map(|output| match output {
                    Output::Transmit { frame, .. } => match codec::decode(&frame[4..]).unwrap() {
                        Message::Credit { bytes } => bytes,
                        other => panic!("{other:?}"),
                    },
                    Output::Received { .. } if !dropped => 0,
                    other => panic!("{other:?}"),
                })
                .sum::<u64>();
            Ok::<u64, SessionError>(credited)
        };
        while sent + piece <= CONTENT_WINDOW {
            let credited = say(sent).unwrap();
            sent += piece;
            assert!(if dropped { sent - credited < hello::CREDIT_BYTES } else { credited == 0 });
        }
        assert_eq!(say(sent).is_ok(), dropped);
    }
}

#[test]
fn frames_out_of_place_end_the_session() {
    let (session, [control, bulk]) = opened();
    let refused = |mut session: Session, link, body: &[u8]| {
        let error = session.handle_frame(Moment(0), link, body).unwrap_err();
        assert!(matches!(error, SessionError::Protocol(_)), "{error}");
    };
    drop(session);
    refused(opened().0, Link::Control, &control);
    refused(opened().0, Link::Bulk, &bulk);
    refused(opened().0, Link::Bulk, &codec::encode(&Message::Ping));
    refused(opened().0, Link::Control, &codec::encode(&content(0, 0, 1, true)));
    refused(opened().0, Link::Control, &vec![0; FRAME_BYTES_MAX + 1]);
    let fresh = || Session::new(Moment(0), config(1, vec![offer("t", 1, 10)]));
    refused(fresh(), Link::Control, &bulk);
    refused(fresh(), Link::Bulk, &control);
    let mut session = fresh();
    session.handle_frame(Moment(0), Link::Bulk, &bulk).unwrap();
    refused(session, Link::Bulk, &codec::encode(&content(0, 0, 1, true)));
    let change = |change: fn(&mut Hello)| {
        let mut hello = Hello::decode(&control).unwrap();
        change(&mut hello);
        fresh().handle_frame(Moment(0), Link::Control, &codec::encode(&hello)).unwrap_err()
    };
    let later = change(|h| (h.version_min, h.version_max) = (7, 9));
    assert_eq!(later.to_string(), "no common version: this node speaks 3 to 6, the peer 7 to 9");
    for (peer, compresses) in [(3, false), (4, true), (9, true)] {
        let mut hello = Hello::decode(&control).unwrap();
        (hello.version_min, hello.version_max) = (1, peer);
        let mut session = fresh();
        session.handle_frame(Moment(0), Link::Control, &codec::encode(&hello)).unwrap();
        assert_eq!(session.compresses(), compresses, "a peer that speaks up to {peer}");
    }
    assert!(matches!(change(|h| h.magic[0] = 0), SessionError::Hello(HelloError::Magic)));
    let error = fresh().handle_frame(Moment(0), Link::Control, &codec::encode(&Message::Ping)).unwrap_err();
    assert!(matches!(error, SessionError::Hello(HelloError::Magic)));
    let mut session = fresh();
    session.handle_frame(Moment(0), Link::Control, &control).unwrap();
    let mut other = Hello::decode(&bulk).unwrap();
    other.token = [8; 16];
    refused(session, Link::Bulk, &codec::encode(&other));
}

#[test]
#[should_panic(expected = "time went back")]
fn time_never_goes_back() {
    let mut session = opened().0;
    session.handle_timeout(Moment(5)).unwrap();
    session.handle_local(Moment(4), Input::Consumed { bytes: 0 });
}

proptest! {
    #[test]
    fn arbitrary_frames_never_panic(
        frames in proptest::collection::vec((any::<bool>(), 0u8..11, proptest::collection::vec(any::<u8>(), 0..40)), 1..30),
    ) {
        let (mut session, hellos) = opened();
        for (bulk, kind, mut body) in frames {
            let link = if bulk { Link::Bulk } else { Link::Control };
            // Half begin as a message does, with small numbers.
            if kind < 10 {
                body.iter_mut().skip(4).for_each(|b| *b %= 16);
                body.insert(0, kind);
                if kind != 6 && kind != 7 && body.len() > 1 {
                    body[1] %= 3;
                }
            }
            // A real driver ends here at the first error; this one goes on, to see more.
            let taken = session.handle_frame(Moment(1), link, &body).is_ok();
            let outputs = std::iter::from_fn(|| session.poll_output()).count();
            prop_assert!(outputs <= if taken { 66 } else { 0 }, "{} outputs", outputs);
        }
        let mut fresh = Session::new(Moment(0), config(1, vec![offer("t", 1, 10)]));
        let mut hello = hellos[0].clone();
        let at = hello.len() / 2;
        hello[at] ^= 0x55;
        prop_assert!(fresh.handle_frame(Moment(0), Link::Bulk, &hello).is_err());
    }
}

#[test]
fn no_byte_of_a_hello_can_make_it_panic() {
    let (_, [control, _]) = opened();
    for (at, byte) in (0..control.len()).flat_map(|at| (0..=u8::MAX).map(move |byte| (at, byte))) {
        let mut changed = control.clone();
        changed[at] = byte;
        let mut session = Session::new(Moment(0), config(1, vec![offer("t", 1, 10)]));
        let opened = session.handle_frame(Moment(0), Link::Control, &changed).is_ok();
        let outputs = std::iter::from_fn(|| session.poll_output());
        let says = |o: &Output| matches!(o, Output::Opened { .. } | Output::Absent { .. } | Output::Halted { .. });
        assert_eq!(outputs.filter(says).count(), usize::from(opened), "byte {at} is {byte}");
    }
}
