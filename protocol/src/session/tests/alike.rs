//! Directories that both sides hold alike.

use super::*;
use crate::alike::{ALIKE_DOTS_MAX, ALIKE_PATHS_MAX, Alike, DIGESTS_MAX, DirDigest};
use crate::wire::AlikeDir;

#[test]
fn whoever_hears_all_from_the_beginning_says_first_what_it_has() {
    let mut b = End::new(2, 5, Some(([1; 16], 90)));
    b.tells = false;
    let mut pair = Pair::new(End::new(1, 100, None), b);
    pair.run();
    // End 1 goes on where it was, end 0 begins: it says what it has, and is told after that.
    assert_eq!(merged_rows(&pair.ends[1]).len(), 10);
    assert_eq!((pair.ends[1].count(reads_digests), merged_rows(&pair.ends[0]).len()), (0, 5));

    let mut b = End::new(2, 5, None);
    b.tells = false;
    let mut pair = Pair::new(End::new(1, 100, None), b);
    pair.run();
    assert_eq!((pair.ends[1].count(reads_digests), merged_rows(&pair.ends[1]).len()), (1, 0));
    let some = vec![DirDigest { dir: [3; 16], digest: [4; 16] }];
    pair.ends[1].local(Input::Digests { tree: 0, digests: some.clone(), last: false });
    pair.run();
    assert_eq!((pair.ends[1].count(reads_digests), merged_rows(&pair.ends[1]).len()), (2, 0));
    pair.ends[1].local(Input::Digests { tree: 0, digests: Vec::new(), last: true });
    pair.run();
    assert_eq!((pair.ends[1].count(reads_digests), merged_rows(&pair.ends[1]).len()), (2, 100));
    assert!(pair.ends[0].seen.contains(&Output::Digests { tree: 0, digests: some, last: false }));
    // Nobody asked for more.
    let mut session = opened().0;
    let digests = |count, last| {
        let digests = vec![DirDigest { dir: [3; 16], digest: [4; 16] }; count];
        codec::encode(&Message::Digests { tree: 0, digests, last })
    };
    let refused = |session: &mut Session, body: &[u8]| {
        assert!(matches!(session.handle_frame(Moment(0), Link::Control, body), Err(SessionError::Protocol(_))));
    };
    refused(&mut session, &digests(0, false));
    for _ in 0..64 {
        session.handle_frame(Moment(0), Link::Control, &digests(DIGESTS_MAX / 64, false)).unwrap();
    }
    refused(&mut session, &digests(1, false));
    session.handle_frame(Moment(0), Link::Control, &digests(0, true)).unwrap();
    refused(&mut session, &digests(0, true));
}

fn reads_digests(output: &Output) -> bool {
    matches!(output, Output::ReadDigests { .. })
}

#[test]
fn an_older_peer_is_told_at_once_and_nothing_of_digests() {
    let (_, [control, _]) = opened();
    let mut hello = Hello::decode(&control).unwrap();
    (hello.version_min, hello.version_max) = (3, 5);
    let mut session = Session::new(Moment(0), config(1, vec![offer("t", 1, 10)]));
    session.handle_frame(Moment(0), Link::Control, &codec::encode(&hello)).unwrap();
    let outputs: Vec<Output> = std::iter::from_fn(|| session.poll_output()).collect();
    assert!(outputs.iter().any(|o| matches!(o, Output::ReadRows { after: 0, .. })));
    assert!(!outputs.iter().any(reads_digests));
}

#[test]
fn directories_that_are_alike_stand_ahead_of_their_batch() {
    let mut a = End::new(1, 3, None);
    a.reads = false;
    let mut pair = Pair::new(a, End::new(2, 0, None));
    pair.run();
    let dot = |node, counter| Dot { actor: actor(node), counter };
    let alike = |dir| Alike { dir, digest: [4; 16], dots: vec![vec![dot(1, u64::MAX)], vec![dot(1, 2), dot(3, 7)]] };
    let sent = vec![alike(TreePath::ROOT), alike(TreePath::parse(b"d").unwrap())];
    let names = vec![(actor(1), "n1".to_owned())];
    let rows = vec![row(1, 3, 10, 1)];
    let given = Input::Rows { tree: 0, rows, alike: sent.clone(), names: names.clone(), upto: 3 };
    pair.ends[0].local(given);
    pair.run();
    let ahead = |output: &&Output| matches!(output, Output::MergeAlike { .. } | Output::Merge { .. });
    let outputs: Vec<&Output> = pair.ends[1].seen.iter().filter(ahead).collect();
    let [root, d] = sent.try_into().unwrap();
    assert_eq!(*outputs[0], Output::MergeAlike { tree: 0, alike: root, names });
    assert_eq!(*outputs[1], Output::MergeAlike { tree: 0, alike: d, names: Vec::new() });
    assert!(matches!(outputs[2..], [Output::Merge { upto: 3, .. }]));
}

#[test]
fn directories_that_many_wrote_need_more_than_one_frame() {
    let mut a = End::new(1, 3, None);
    a.reads = false;
    let mut pair = Pair::new(a, End::new(2, 0, None));
    pair.run();
    let written = |n: u64| {
        let dot = |start| Dot { actor: Actor { node: NodeId([1; 32]), start }, counter: start << 40 };
        let dots = (64 * n + 1..=64 * n + 64).map(|start| vec![dot(start)]).collect();
        Alike { dir: TreePath::parse(format!("d{n}").as_bytes()).unwrap(), digest: [4; 16], dots }
    };
    let alike: Vec<Alike> = (0..300).map(written).collect();
    let (rows, names) = (Vec::new(), Vec::new());
    pair.ends[0].local(Input::Rows { tree: 0, rows, alike: alike.clone(), names, upto: 3 });
    pair.run();
    let heard =
        |output: &Output| if let Output::MergeAlike { alike, .. } = output { Some(alike.clone()) } else { None };
    assert!(pair.ends[1].seen.iter().filter_map(heard).eq(alike));
}

#[test]
fn directories_that_there_cannot_be_end_the_session() {
    let actors = vec![ActorRow { actor: actor(2), name: "n2".into() }];
    let alike = |dirs: usize, dots: Vec<Vec<(u32, i64)>>| {
        let dirs = vec![AlikeDir { dir: None, digest: [4; 16], dots }; dirs];
        codec::encode(&Message::Alike { tree: 0, actors: actors.clone(), dirs })
    };
    let taken = |body: &[u8]| opened().0.handle_frame(Moment(0), Link::Control, body).is_ok();
    assert!(taken(&alike(1, vec![vec![(0, 1)]; ALIKE_PATHS_MAX])));
    assert!(!taken(&alike(1, vec![vec![]; ALIKE_PATHS_MAX + 1])));
    assert!(!taken(&alike(1, vec![vec![(0, 1); ALIKE_DOTS_MAX + 1]])));
    assert!(!taken(&alike(1, vec![vec![(1, 1)]])));
    assert!(!taken(&alike(1, vec![vec![(0, 0)]])));
    assert!(
        taken(&alike(1, vec![vec![(0, 2)], vec![(0, -1)]])) && !taken(&alike(1, vec![vec![(0, 2)], vec![(0, -2)]]))
    );
    assert!(!taken(&alike(0, vec![])));
    // A batch has no more of them than its rows could be.
    let count = |body: &[u8]| {
        let mut session = opened().0;
        (0..2_000).take_while(|_| session.handle_frame(Moment(0), Link::Control, body).is_ok()).count()
    };
    assert_eq!(count(&alike(64, vec![])), 16);
    assert_eq!(count(&alike(1, vec![vec![(0, 1)]; ALIKE_PATHS_MAX])), 8);
}
