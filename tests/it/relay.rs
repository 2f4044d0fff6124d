//! A node between others: what it fetches for those who ask.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pleach_agent::exchange::{Exchange, Tell, ToSession};
use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;
use pleach_protocol::session::{Input, Moment, Output};
use pleach_protocol::version::NodeId;
use pleach_store::tree::{Digests, Rows};
use pleach_tests::model::ModelNode;

const SECOND: u64 = 1_000_000_000;

/// Longer than what travels with its announcement.
static CONTENT: [u8; 100_000] = [b'x'; 100_000];

/// A peer's session, and what all are told.
#[derive(Debug)]
struct Told(NodeId, Arc<Mutex<Vec<(NodeId, Input)>>>);

impl Tell for Told {
    fn tell(&self, what: ToSession) -> bool {
        if let ToSession::Input(input @ (Input::Want { .. } | Input::Gone { .. })) = what {
            self.1.lock().unwrap().push((self.0, input));
        }
        true
    }
}

/// A node of whose paths a peer told, and its three peers.
struct Between {
    node: ModelNode,
    exchange: Exchange<Told>,
    told: Arc<Mutex<Vec<(NodeId, Input)>>>,
    now: u64,
}

impl Between {
    /// The node ignores the path.
    fn new() -> Self {
        Self::of(ModelNode::new(2).ignoring(&["x"]), &[("x", &CONTENT)])
    }

    fn of(mut node: ModelNode, files: &[(&str, &[u8])]) -> Self {
        let mut teacher = ModelNode::new(1);
        for (path, content) in files {
            teacher.disk.user().write(path, content).unwrap();
        }
        for node in [&mut teacher, &mut node] {
            node.start().unwrap();
            node.tree.as_mut().unwrap().scan().unwrap();
            node.tree.as_mut().unwrap().commit().unwrap();
        }
        let (a, b) = (teacher.tree.as_mut().unwrap(), node.tree.as_mut().unwrap());
        let Rows { rows, names, upto, .. } =
            a.read_rows(0, 1 << 20, (node.id, b.life()), &mut Digests::default()).unwrap();
        b.merge((teacher.id, a.life()), rows, names, upto).unwrap();
        b.commit().unwrap();
        let peers: BTreeMap<NodeId, String> = [1, 3, 4].map(|n| (NodeId([n; 32]), format!("n{n}"))).into();
        let mut exchange = Exchange::new(Box::new(|| Ok([7; 16])));
        exchange.load(b, &peers).unwrap();
        let mut between = Self { node, exchange, told: Arc::default(), now: 1 };
        (1..=4).filter(|n| *n != 2).for_each(|n| between.open(n));
        between
    }

    /// A session with a peer begins.
    fn open(&mut self, n: u8) {
        let peer = NodeId([n; 32]);
        self.exchange.expect(peer, u64::from(n), 0, Told(peer, Arc::clone(&self.told)), false);
        let (name, incarnation) = (format!("n{n}"), [n; 16]);
        let (start, head, peer_cursor, told_under) = (1, 0, 0, 0);
        let opened =
            Output::Opened { tree: 0, name, incarnation, start, head, peer_cursor, told_under, went_back: false };
        self.hear(n, opened);
    }

    fn hear(&mut self, n: u8, output: Output) {
        let of = (NodeId([n; 32]), u64::from(n));
        self.exchange.carry_out(self.node.tree.as_mut().unwrap(), Moment(self.now), of, output).unwrap();
    }

    fn read(&mut self, n: u8) {
        let (path, hash) = (TreePath::parse(b"x").unwrap(), Hash(*blake3::hash(&CONTENT).as_bytes()));
        self.hear(n, Output::ReadContent { tree: 0, request: 0, path, hash, offset: 0, bytes_max: 1_000 });
    }

    /// Time passes, and held questions are looked at.
    fn pass(&mut self, nanos: u64) {
        self.now += nanos;
        self.exchange.serve_held(self.node.tree.as_mut().unwrap(), Moment(self.now)).unwrap();
    }

    /// Whom it asked since, with the numbers, and whom it refused.
    fn said(&self) -> (Vec<(u8, u64)>, Vec<u8>) {
        let (mut asked, mut refused) = (Vec::new(), Vec::new());
        for (peer, input) in self.told.lock().unwrap().drain(..) {
            match input {
                Input::Want { want, .. } => asked.push((peer.0[0], want)),
                _ => refused.push(peer.0[0]),
            }
        }
        (asked, refused)
    }

    /// A peer asks, and nobody else has it; whom it asked in turn.
    fn ask_in_vain(&mut self, n: u8) -> Vec<u8> {
        self.read(n);
        let mut all = Vec::new();
        loop {
            self.pass(SECOND);
            let (asked, refused) = self.said();
            let Some((peer, want)) = asked.first().copied() else {
                assert_eq!(refused, [n]);
                return all;
            };
            assert!(refused.is_empty() && asked.len() == 1);
            all.push(peer);
            self.hear(peer, Output::Missing { tree: 0, want, reason: "it is not here".to_owned() });
        }
    }
}

/// In a ring each question that came to nothing made others begin, for ever (seed 23118 of the simulation).
#[test]
fn what_nobody_had_is_not_fetched_for_others_again_at_once() {
    let mut between = Between::new();
    assert_eq!(between.ask_in_vain(3), [1, 4]);
    assert!(between.ask_in_vain(4).is_empty() && between.ask_in_vain(3).is_empty());
    between.pass(120 * SECOND);
    assert_eq!(between.ask_in_vain(4), [1, 3], "after a while it is");
    assert!(between.ask_in_vain(3).is_empty());
    between.open(1);
    assert_eq!(between.ask_in_vain(3), [1, 4], "a peer that comes may have it");
}

/// Found by seed 19: the last piece of an answer that came late ended the question that another peer was asked by then.
#[test]
fn what_another_peer_took_over_is_that_ones_to_answer() {
    let other = [b'y'; 100_000];
    let mut between = Between::of(ModelNode::new(2), &[("x", &CONTENT), ("y", &other)]);
    between.exchange.apply(between.node.tree.as_mut().unwrap()).unwrap();
    let (asked, _) = between.said();
    let [(1, first), (1, second)] = asked[..] else { panic!("{asked:?}") };
    let seq = between.node.tree.as_ref().unwrap().index().meta().head;
    between.hear(3, Output::PeerApplied { tree: 0, seq, stuck: 0 });
    assert_eq!(between.said().0, [(3, second)], "whoever has it for certain takes over");
    between.hear(4, Output::PeerApplied { tree: 0, seq, stuck: 0 });
    assert_eq!(between.said().0, [], "and keeps it");
    let piece = |bytes: &[u8], last| Output::Received { tree: 0, want: second, offset: 0, bytes: bytes.to_vec(), last };
    between.hear(1, piece(&other, true));
    between.hear(1, Output::Missing { tree: 0, want: second, reason: "it was dropped".to_owned() });
    assert!(between.node.tree.as_ref().unwrap().is_wanted(second));
    assert_eq!(between.said().0, []);
    between.hear(3, piece(&other, true));
    assert!(!between.node.tree.as_ref().unwrap().is_wanted(second));
    between.hear(1, Output::Received { tree: 0, want: first, offset: 0, bytes: CONTENT.to_vec(), last: true });
    between.exchange.apply(between.node.tree.as_mut().unwrap()).unwrap();
    assert_eq!(between.node.disk.user().read("y").unwrap(), other);
}
