//! Of a large content that changed only what is new comes over the wire.

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;
use pleach_protocol::session::What;
use pleach_store::chunks::Cutter;
use pleach_store::tree::Want;
use pleach_store::vfs::model::{CrashKind, Data, Keep};
use pleach_tests::model::{CUTS, ModelNode, ask, pair, rest, settle, staged};

const SIZE: usize = 300_000;

/// Bytes without repetition.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn with(content: &[u8]) -> (ModelNode, ModelNode) {
    let (mut a, mut b) = pair();
    a.disk.user().write("f", content).unwrap();
    rest(&mut a, &mut b);
    (a, b)
}

/// A's manifest of what B wants, as it is said.
fn manifest(a: &mut ModelNode, want: &Want) -> Vec<u8> {
    let What::Manifest(known) = want.what.clone() else { panic!("{:?}", want.what) };
    let (from, known) = (a.tree.as_mut().unwrap(), known.into());
    loop {
        if let Some((answer, last)) = from.read_manifest(&want.path, want.hash, &known, 0, usize::MAX).unwrap() {
            assert!(last);
            return answer;
        }
        assert!(from.goes_on(), "somebody cuts it");
        from.apply().unwrap();
    }
}

/// Tells B the manifest; what it asks for then.
fn tell(b: &mut ModelNode, want: &Want, answer: &[u8]) -> Vec<Want> {
    let to = b.tree.as_mut().unwrap();
    for (n, piece) in answer.chunks(1_000).enumerate() {
        let offset = 1_000 * n as u64;
        to.receive(want.id, offset, piece, offset + piece.len() as u64 == answer.len() as u64).unwrap();
    }
    to.apply().unwrap()
}

/// Sends what B asks for, as far as `bytes`; how much that was.
fn send(a: &ModelNode, b: &mut ModelNode, want: &Want, bytes: u64, lie: bool) -> u64 {
    let (from, to) = (a.tree.as_ref().unwrap(), b.tree.as_mut().unwrap());
    let ranges = match want.what.clone() {
        What::From(_) => vec![(to.received_of(want.id), want.size - to.received_of(want.id))],
        What::Ranges(ranges) => ranges,
        What::Manifest(_) => panic!("it asks for a manifest"),
    };
    let mut sent = 0;
    let last = ranges.iter().map(|(start, length)| start + length).max().unwrap();
    for (start, length) in ranges {
        for offset in (start..start + length).step_by(100) {
            if sent >= bytes {
                return sent;
            }
            let end = (offset + 100).min(start + length);
            let bytes_max = usize::try_from(end - offset).unwrap();
            let mut piece = from.read_content(&want.path, want.hash, offset, bytes_max).unwrap();
            piece[0] ^= u8::from(lie);
            to.receive(want.id, offset, &piece, end == last).unwrap();
            sent += piece.len() as u64;
        }
    }
    sent
}

fn one(wants: &[Want]) -> Want {
    assert_eq!(wants.len(), 1);
    wants[0].clone()
}

/// Applies what is here and gives the next wants.
fn go_on(b: &mut ModelNode) -> Vec<Want> {
    let wants = b.tree.as_mut().unwrap().apply().unwrap();
    b.tree.as_mut().unwrap().commit().unwrap();
    wants
}

fn changes(content: &[u8]) -> Vec<(&'static str, Vec<u8>, u64)> {
    let mut flipped = content.to_vec();
    flipped[SIZE / 2] ^= 1;
    let mut twice = flipped.clone();
    twice[10] ^= 1;
    vec![
        ("one byte", flipped, 3_000),
        ("two bytes", twice, 6_000),
        ("in front", [&noise(2, 5_000), content].concat(), 8_000),
        ("at the end", [content, &noise(3, 5_000)].concat(), 8_000),
        ("cut short", content[..200_000].to_vec(), 2_000),
        ("twice", [content, content].concat(), 3_000),
    ]
}

#[test]
fn only_what_is_new_is_sent() {
    let content = noise(1, SIZE);
    for (what, changed, most) in changes(&content) {
        let (mut a, mut b) = with(&content);
        a.disk.user().write("f", &changed).unwrap();
        let want = one(&ask(&mut a, &mut b));
        let answer = manifest(&mut a, &want);
        let mut wants = tell(&mut b, &want, &answer);
        let mut sent = 0;
        while let Some(want) = wants.pop() {
            assert!(matches!(want.what, What::Ranges(_)), "{what}");
            sent += send(&a, &mut b, &want, u64::MAX, false);
            wants = go_on(&mut b);
        }
        assert!(sent <= most, "{what}: {sent}");
        assert_eq!(b.disk.user().read("f").unwrap(), changed, "{what}");
        rest(&mut a, &mut b);
        assert_eq!(staged(&b), 0);
    }
}

#[test]
fn the_second_change_needs_a_small_part_of_the_manifest_and_no_cut() {
    let mut content = noise(1, SIZE);
    let (mut a, mut b) = with(&content);
    let mut answers = Vec::new();
    for at in [10, SIZE / 2, SIZE - 10] {
        content[at] ^= 1;
        a.disk.user().write("f", &content).unwrap();
        let want = one(&ask(&mut a, &mut b));
        if !answers.is_empty() {
            let What::Manifest(known) = want.what.clone() else { panic!("{:?}", want.what) };
            let read =
                a.tree.as_mut().unwrap().read_manifest(&want.path, want.hash, &known.into(), 0, usize::MAX).unwrap();
            assert!(read.is_some(), "it was cut when it was looked at");
        }
        let answer = manifest(&mut a, &want);
        answers.push(answer.len());
        for want in tell(&mut b, &want, &answer) {
            send(&a, &mut b, &want, u64::MAX, false);
        }
        go_on(&mut b);
        assert_eq!(b.disk.user().read("f").unwrap(), content);
    }
    // About 900 chunks of 36 bytes, of which a part of about 64 is sent.
    assert!(answers.iter().all(|bytes| *bytes < 14_000), "{answers:?}");
}

/// Peers cut what they have as soon as they hear of a change, and then ask for the new content's chunks.
#[test]
fn a_change_of_what_peers_have_is_cut_before_they_ask() {
    let mut content = noise(1, SIZE);
    for heard in [true, false] {
        let (mut a, mut b) = with(&content);
        let tree = a.tree.as_mut().unwrap();
        if heard {
            tree.peer_merged(b.id, tree.index().meta().head).unwrap();
        }
        content[SIZE / 2] ^= 1;
        a.disk.user().write("f", &content).unwrap();
        let want = one(&ask(&mut a, &mut b));
        let What::Manifest(known) = want.what.clone() else { panic!("{:?}", want.what) };
        let (tree, known) = (a.tree.as_mut().unwrap(), known.into());
        while tree.goes_on() {
            tree.apply().unwrap();
        }
        let read = tree.read_manifest(&want.path, want.hash, &known, 0, usize::MAX).unwrap();
        assert_eq!(read.is_some(), heard, "nothing is cut that nobody can ask for");
    }
}

#[test]
fn what_a_peer_waits_for_is_cut_before_what_nobody_asked_for() {
    // More than is cut in one step.
    let mut contents = [("f", noise(1, 40 << 20)), ("g", noise(2, 40 << 20))];
    for asked in [0, 1] {
        let (mut a, b) = pair();
        let tree = a.tree.as_mut().unwrap();
        for change in [0, 1] {
            for (name, content) in &mut contents {
                content[1] = change;
                a.disk.user().write(name, &*content).unwrap();
            }
            tree.scan().unwrap();
            tree.peer_merged(b.id, tree.index().meta().head).unwrap();
        }
        let known = Vec::new().into();
        let mut read = |(name, content): &(&str, Vec<u8>)| {
            let (path, hash) = (TreePath::parse(name.as_bytes()).unwrap(), Hash(*blake3::hash(content).as_bytes()));
            tree.apply().unwrap();
            tree.read_manifest(&path, hash, &known, 0, usize::MAX).unwrap().is_some()
        };
        assert!(!read(&contents[asked]), "either is cut");
        read(&contents[asked]);
        assert!(read(&contents[asked]));
        assert!(!read(&contents[1 - asked]), "it waited");
    }
}

#[test]
fn a_file_that_changes_before_it_is_cut_is_cut_when_a_peer_asks() {
    let mut content = noise(1, SIZE);
    let (mut a, mut b) = with(&content);
    let tree = a.tree.as_mut().unwrap();
    tree.peer_merged(b.id, tree.index().meta().head).unwrap();
    for change in 0..3 {
        content[1] = change;
        a.disk.user().write("f", &content).unwrap();
        tree.scan().unwrap();
        tree.peer_merged(b.id, tree.index().meta().head).unwrap();
        assert_eq!(tree.goes_on(), change == 0, "{change}");
    }
    let want = one(&ask(&mut a, &mut b));
    let answer = manifest(&mut a, &want);
    assert!(matches!(one(&tell(&mut b, &want, &answer)).what, What::Ranges(_)));
}

#[test]
fn an_old_content_is_judged_as_memory_has_it() {
    for durable in [true, false] {
        let (mut a, mut b) = with(&noise(1, SIZE));
        let mut content = noise(2, SIZE);
        b.disk.user().write("f", &content).unwrap();
        rest(&mut a, &mut b);
        if durable {
            b.disk.sync();
        }
        b.disk.fail_write_back();
        content[SIZE / 2] ^= 1;
        a.disk.user().write("f", &content).unwrap();
        rest(&mut a, &mut b);
        assert!(a.disk.user().read("f").unwrap() == content, "{durable}");
        assert!(b.disk.user().read("f").unwrap() == content, "{durable}");
    }
}

#[test]
fn a_content_that_changes_while_it_is_cut_leaves_no_manifest() {
    // More than is cut in one step.
    let mut content = vec![0; 33 << 20];
    let (mut a, b) = with(&content);
    let tree = a.tree.as_mut().unwrap();
    tree.peer_merged(b.id, tree.index().meta().head).unwrap();
    content[1] = 1;
    let user = a.disk.user();
    user.write("f", &content).unwrap();
    user.write("g", &content).unwrap();
    tree.scan().unwrap();
    tree.apply().unwrap();
    assert!(tree.goes_on(), "half of it is cut");
    user.write("f", [&content[1..], &[2]].concat()).unwrap();
    while tree.goes_on() {
        tree.apply().unwrap();
    }
    let known = Vec::new().into();
    let hash = Hash(*blake3::hash(&content).as_bytes());
    let answer = loop {
        if let Some((answer, _)) =
            tree.read_manifest(&TreePath::parse(b"g").unwrap(), hash, &known, 0, usize::MAX).unwrap()
        {
            break answer;
        }
        tree.apply().unwrap();
    };
    let mut cutter = Cutter::new(CUTS.sizes);
    cutter.feed(&content);
    assert!(answer == cutter.finish().answer(&known), "it is that of another content");
}

#[test]
fn a_content_that_is_put_together_goes_on_where_it_broke_off() {
    let content = noise(1, SIZE);
    for crash in [None, Some(CrashKind::Process), Some(CrashKind::Machine { log: Keep::All, data: Data::Torn(7) })] {
        let (mut a, mut b) = with(&content);
        a.disk.sync();
        b.disk.sync();
        let changed = [&content[..100_000], &noise(2, 50_000), &content[100_000..]].concat();
        a.disk.user().write("f", &changed).unwrap();
        a.disk.sync();
        let want = one(&ask(&mut a, &mut b));
        let answer = manifest(&mut a, &want);
        let want = one(&tell(&mut b, &want, &answer));
        assert!(send(&a, &mut b, &want, 30_000, false) >= 30_000);
        if let Some(crash) = crash {
            b.tree = None;
            b.disk.restart(crash);
            b.kv.crash(0);
            b.start().unwrap();
        } else {
            b.tree.as_mut().unwrap().forget_want(want.id);
        }
        let mut sent = 0;
        let mut wants = ask(&mut a, &mut b);
        while let Some(want) = wants.pop() {
            if matches!(want.what, What::Manifest(_)) {
                let answer = manifest(&mut a, &want);
                wants = tell(&mut b, &want, &answer);
                continue;
            }
            sent += send(&a, &mut b, &want, u64::MAX, false);
            wants = go_on(&mut b);
        }
        assert_eq!(b.disk.user().read("f").unwrap(), changed, "{crash:?}");
        if !matches!(crash, Some(CrashKind::Machine { .. })) {
            assert!(sent < 25_000, "{crash:?}: {sent}");
        }
        rest(&mut a, &mut b);
        assert_eq!(staged(&b), 0);
    }
}

#[test]
fn a_peer_that_lies_about_the_manifest_costs_time_only() {
    let content = noise(1, SIZE);
    let changed = [&noise(2, 5_000), &content[..]].concat();
    let elsewhere = noise(9, changed.len());
    for lie in 0..5 {
        let (mut a, mut b) = with(&content);
        a.disk.user().write("f", &changed).unwrap();
        let mut want = one(&ask(&mut a, &mut b));
        let good = manifest(&mut a, &want);
        let answer = match lie {
            // It is no manifest.
            0 => vec![255; 5_000],
            // It is longer than it can be.
            1 => vec![0; 1_000_000],
            2 => good[..good.len() - 1].to_vec(),
            // The manifest of another content, as long as this.
            3 => {
                let (mut c, _) = with(&elsewhere);
                want.hash = Hash(*blake3::hash(&elsewhere).as_bytes());
                manifest(&mut c, &want)
            }
            _ => good,
        };
        let mut wants = tell(&mut b, &want, &answer);
        let (mut sent, mut whole) = (0, 0);
        while let Some(want) = wants.pop() {
            if matches!(want.what, What::From(0)) {
                whole += 1;
            }
            // The bytes of the last liar are others than its manifest says.
            sent += send(&a, &mut b, &want, u64::MAX, lie == 4 && whole == 0);
            wants = go_on(&mut b);
        }
        assert!(sent >= if lie == 4 { 310_000 } else { 305_000 }, "{lie}: {sent}");
        assert_eq!(b.disk.user().read("f").unwrap(), changed, "{lie}");
        rest(&mut a, &mut b);
        assert_eq!(staged(&b), 0);
    }
}

#[test]
fn without_a_manifest_the_content_comes_whole() {
    let content = noise(1, SIZE);
    let (mut a, mut b) = with(&content);
    a.disk.user().write("f", [&noise(2, 5_000), &content[..]].concat()).unwrap();
    let want = one(&ask(&mut a, &mut b));
    b.tree.as_mut().unwrap().missing(want.id, "it is not cut").unwrap();
    let want = one(&go_on(&mut b));
    assert_eq!(want.what, What::From(0));
    assert_eq!(send(&a, &mut b, &want, u64::MAX, false), 305_000);
    rest(&mut a, &mut b);
}

#[test]
fn an_old_content_that_changes_meanwhile_spoils_nothing() {
    let content = noise(1, SIZE);
    for before in [false, true] {
        let (mut a, mut b) = with(&content);
        let mut changed = content.clone();
        changed[SIZE / 2] ^= 1;
        a.disk.user().write("f", &changed).unwrap();
        let want = one(&ask(&mut a, &mut b));
        let answer = manifest(&mut a, &want);
        let time = b.disk.user().stat("f").unwrap().mtime;
        let mut spoiled = content.clone();
        spoiled[5] ^= 1;
        spoiled[SIZE - 5] ^= 1;
        let spoil = |b: &ModelNode| {
            b.disk.user().write("f", &spoiled).unwrap();
            b.disk.user().touch("f", time).unwrap();
        };
        if before {
            spoil(&b);
        }
        let mut wants = tell(&mut b, &want, &answer);
        if !before {
            spoil(&b);
        }
        let (mut asked, mut sent) = (0, 0);
        while let Some(want) = wants.pop() {
            asked += 1;
            sent += send(&a, &mut b, &want, u64::MAX, false);
            wants = go_on(&mut b);
        }
        // Each chunk that is copied is verified: the last, which is spoiled, is asked for once it is reached. The first was
        // copied before the second spoiling.
        assert_eq!(asked, 2, "{before}");
        assert!(sent <= 1_000, "{before}: {sent}");
        rest(&mut a, &mut b);
        // Both wrote: either wins, and the other is kept.
        let won = b.disk.user().read("f").unwrap();
        assert!(won == changed || won == spoiled, "{before}");
    }
}

/// LINUX measurements, section 11: a handle that is opened after a failed write-back does not tell of it.
#[test]
fn a_write_back_that_fails_under_an_earlier_batch_is_heard_of() {
    let (mut a, mut b) = with(b"first");
    let content = noise(1, SIZE);
    a.disk.user().write("large", &content).unwrap();
    let want = one(&ask(&mut a, &mut b));
    assert_eq!(send(&a, &mut b, &want, 150_000, false), 150_000);
    // A batch ends meanwhile.
    a.disk.user().write("small", "s").unwrap();
    ask(&mut a, &mut b);
    assert!(b.disk.user().read("small").is_ok());
    b.disk.fail_write_back();
    let rest = a.tree.as_ref().unwrap().read_content(&want.path, want.hash, 150_000, SIZE).unwrap();
    b.tree.as_mut().unwrap().receive(want.id, 150_000, &rest, true).unwrap();
    // So many at once are made durable by one syncfs.
    for n in 0..40 {
        a.disk.user().write(format!("f{n}"), format!("content {n}")).unwrap();
    }
    assert!(settle(&mut a, &mut b).is_err());
    assert!(b.disk.user().read("large").is_err(), "it is shown without its first half");
}
