//! What mutations begin with: real messages, rows, configs and rules of each kind.

use pleach_protocol::alike::DirDigest;
use pleach_protocol::codec;
use pleach_protocol::entry::{Entry, Hash, Rank, Value};
use pleach_protocol::mint::{Shown, mint};
use pleach_protocol::moved::Moved;
use pleach_protocol::path::TreePath;
use pleach_protocol::time::Time;
use pleach_protocol::version::{Actor, Dot, NodeId};
use pleach_protocol::view::{State, access_by_number};
use pleach_protocol::wire::{Bytes, First, LinkRole, Message, frame};
use pleach_store::rows::{self, Space, Stamp};

use super::session;

/// The seeds of a target, none for a name that no target has.
#[must_use]
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "wire" => wire(),
        "session" => scripts(),
        "store" => stored(),
        "config" => texts(&CONFIGS),
        "ignore" => texts(&RULES),
        "control" => texts(&REQUESTS),
        _ => Vec::new(),
    }
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// One of each message.
#[must_use]
pub fn messages() -> Vec<Message> {
    let (request, tree, reason) = (3, 0, "no such content".to_owned());
    vec![
        session::index(0, 300, 2, Some(b"hi".to_vec())),
        session::index(1, 7, 1 << 40, None),
        Message::Merged { tree, upto: 300 },
        Message::Applied { tree, upto: 300, stuck: 2 },
        Message::Request { tree, request, path: path("d/f"), hash: [4; 32], size: 70_000 },
        Message::RequestFrom {
            tree,
            request: request + 1,
            path: path("d/f"),
            hash: [4; 32],
            size: 70_000,
            offset: 300,
        },
        Message::RequestRanges {
            tree,
            request: request + 2,
            path: path("d/f"),
            hash: [4; 32],
            size: 70_000,
            ranges: vec![(0, 300), (61_440, 2)],
        },
        Message::RequestManifest {
            tree,
            request: request + 3,
            path: path("d/f"),
            hash: [4; 32],
            size: 70_000,
            known: vec![[6; 8]],
        },
        Message::Drop { request },
        Message::Credit { bytes: 131_072 },
        Message::Content { request, offset: 61_440, bytes: Bytes(vec![5; 300]), last: true },
        Message::Missing { request, reason: reason.clone() },
        Message::Ping,
        Message::Pong,
        Message::AskHead { tree, id: 9 },
        Message::Head { tree, id: 9, seq: 400 },
        Message::Waits { tree, first: First::Send },
        Message::Whole { tree, upto: 400 },
        Message::Moved { tree, moved: Box::new(moved()) },
        Message::Digests { tree, digests: vec![DirDigest { dir: [1; 16], digest: [2; 16] }; 2], last: true },
        session::alike(0, &[1, 300]),
        Message::Bye { reason: reason.clone() },
        Message::Notice { text: reason },
    ]
}

fn moved() -> Moved {
    let actor = Actor { node: NodeId([7; 32]), start: 3 };
    let (from, to, rank, digest) = (path("d"), path("e"), Rank(9), Hash([8; 32]));
    Moved { from, to, actor, first: 5, paths: 2, rank, digest }
}

fn wire() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = messages().iter().map(codec::encode).collect();
    for role in [LinkRole::Control, LinkRole::Bulk] {
        seeds.push(codec::encode(&session::hello(role, 32, 4 << 20)));
    }
    let frames = messages().iter().filter_map(|message| frame(message).ok()).collect::<Vec<_>>().concat();
    seeds.push(frames);
    seeds
}

/// Scripts of the session target: hellos of both links, then something of each kind.
fn scripts() -> Vec<Vec<u8>> {
    // Step 1 with 32 batches and a window of 4 << 20 bytes, on the control link and on the bulk link.
    let hellos = [1, 32, 4, 20, 0x81, 32, 4, 20];
    let mut scripts = vec![hellos.to_vec()];
    let steps: [&[u8]; 12] = [
        // Batches of the trees 0 and 1; the merges; acks.
        &[2, 0, 9, 0, 2, b'h', b'i', 2, 0, 12, 0, 0, 9, 0, 0, 9, 0, 0],
        &[2, 1, 20, 0, 0, 10, 0, 3, 6, 1, 15, 2],
        // Heads, reads of rows, acks of them.
        &[6, 0, 30, 0, 9, 0, 3, 9, 0, 4, 3, 0, 4, 2],
        &[6, 1, 200, 0, 9, 0, 12, 9, 0, 12, 9, 0, 12, 4, 1, 23, 3],
        // Requests of the peer, read and sent, credited, dropped.
        &[4, 0, 1, 4, 100, 5, 0, 2, 5, 244, 9, 9, 9, 0, 0, 9, 0, 0, 9, 0, 1, 3, 0, 100, 7, 0],
        &[4, 0, 5, 4, 50, 4, 0, 5, 6, 9, 0, 250],
        // Wants of this node, content, consumption, a drop.
        &[7, 0, 1, 4, 100, 7, 0, 2, 4, 0, 3, 0, 0, 8, 0, 100, 0, 9, 0, 0, 3, 0, 1, 8, 0, 0, 1],
        &[7, 0, 3, 5, 244, 1, 0, 6, 0, 3, 3, 5, 0, 0, 9, 4, b'g', b'o', b'n', b'e'],
        // Questions for heads, pings, notices, time.
        &[6, 0, 5, 1, 5, 0, 5, 10, 9, 0, 0, 5, 0, 5, 11, 9],
        &[15, 30, 2, 0, 0, 12, 1, 2, 0, 0, 12, 0, 14, 2, b'o', b'k', 2, 0, 0, 12, 3, b'a', 27, b'b', 2],
        &[15, 250, 15, 250],
        &[0, 3, 8, 8, 8],
    ];
    scripts.extend(steps.iter().map(|step| [&hellos, *step].concat()));
    scripts.push([&hellos[..], &steps.concat()].concat());
    for message in messages() {
        let body = codec::encode(&message);
        if let Ok(length @ 0..240) = u8::try_from(body.len()) {
            let step = if message.is_bulk() { 0x80 } else { 0 };
            scripts.push([&hellos[..], &[step, length], &body].concat());
        }
    }
    scripts
}

fn path(text: &str) -> TreePath {
    TreePath::parse(text.as_bytes()).expect("a path")
}

fn state(content: u8) -> State {
    State {
        value: Value::File { size: 300, hash: Hash([content; 32]) },
        mtime: Some(Time::new(1_700_000_000, 5)),
        access: Some(access_by_number(0o640, 1000, 1000)),
    }
}

/// An entry with a conflict, as two writers make it.
fn entry() -> Entry {
    let dot = |node| Dot { actor: Actor { node: NodeId([node; 32]), start: 1 }, counter: 4 };
    let rank = |n| Rank(n);
    let (a, shown) = mint(None, &Shown::default(), Some(&state(1)), dot(1), rank(10), false);
    let (b, _) = mint(None, &Shown::default(), Some(&state(2)), dot(2), rank(20), true);
    let (c, _) = mint(Some(&a.merge(&b)), &shown, None, dot(3), rank(30), false);
    c.merge(&b)
}

/// Rows without version and checksum (the target puts both around), and keys.
fn stored() -> Vec<Vec<u8>> {
    let (entry, time, hash) = (entry(), Time::new(-5, 7), Some(Hash([9; 32])));
    let stamp = Stamp { inode: 5, btime: time, size: 300, mtime: time, ctime: time, mode: 0o640, uid: 1, gid: 2 };
    let shown = Shown { context: entry.context.clone(), state: Some(state(1)) };
    let context = entry.context.clone();
    let intent = rows::Intent {
        path: path("d/f"),
        op: rows::IntentOp::Replace,
        id: 300,
        context,
        state: Some(state(2)),
        inode: Some((5, time)),
        from: Some((path("d/e"), 7)),
    };
    let row = rows::EntryRow {
        entry,
        seq: 300,
        taught_by: Some((NodeId([2; 32]), [3; 16])),
        shown: Some(rows::ShownRow { shown: shown.clone(), stamp: Some(stamp), provisional: true }),
        pairing: rows::Pairing::ByTime,
        live_children: 2,
    };
    let vault = rows::VaultRow {
        hash,
        size: 300,
        state: state(1),
        time,
        reason: "conflict".into(),
        open: true,
        stamp: Some(stamp),
        shown,
    };
    let history = rows::HistoryRow {
        time,
        path: path("d/f"),
        from: Some(path("e")),
        op: "rename".into(),
        node: "n".into(),
        size: Some(300),
        hash,
        was: None,
    };
    let problem = rows::ProblemRow { time, reason: "no room".into() };
    let meta = rows::MetaRow { head: 300, boot: vec![1; 16], root: vec![2; 16], ..rows::MetaRow::default() };
    let cursor =
        rows::CursorRow { incarnation: [1; 16], merged: 300, peer_merged: 70_000, ..rows::CursorRow::default() };
    vec![
        codec::encode(&row),
        codec::encode(&vec![intent]),
        codec::encode(&vault),
        codec::encode(&history),
        codec::encode(&problem),
        codec::encode(&meta),
        codec::encode(&cursor),
        codec::encode(&path("d/e/f")),
        rows::seal(&7u64),
        rows::path_key(Space::Entry, &path("d/e/f")),
        rows::vault_key(&path("d/e/f"), 77),
        rows::number_key(Space::Journal, 300),
        b"d/e/f".to_vec(),
    ]
}

const CONFIGS: [&str; 4] = [
    "[node]\nname = \"n\"\nlisten = \"127.0.0.1:8730\"\nstate = \"/var/lib/p\"\nlog = \"warn\"\n",
    "[[tree]]\nname = \"www\"\npath = \"/srv/www\"\nignore = [\"*.tmp\", \"!keep.tmp\", \"/cache/\"]\nsettle = \"500ms\"\n\
     open_files = \"never\"\nrescan = \"24h\"\nhistory = \"7d\"\nconflict = \"copy\"\ndirection = \"both\"\n",
    "[[tree]]\nname = \"t\"\npath = \"/t\"\n\n[[peer]]\nname = \"b\"\naddress = [\"pleach://[::1]:8730\", \"pleach://h:1\"]\n\
     key = \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ2oO0Zq1mS0r1x5m2G8Qd4Q3l6m0h4m7p3r8s2t1u0v w\"\ntrees = [\"t\"]\n",
    "[[hook]]\ntree = \"t\"\n[node]\nnmae = 1\ntree = {a = [1, 2.5, 1979-05-27T07:32:00Z, '''x''', \"\\u00e9\"]}\n",
];

const RULES: [&str; 6] = [
    "*.tmp\0/build/\n!keep\n**/x\0*.o\nd[a-c]?\n\0a.tmp\0build/x\0d/f.o\0d/keep\0d/e/x",
    "!*.a\0*.{a,b}\n\\#x\n \n#c\n\\ \n\0\u{feff}ok\n[z-a]\n\0x.a\0d/x.b\0d/ok\0d/z",
    "/a/**/b\0a/**\n**/b/\n\0[!x]*\n[]a]\n[[:alpha:]]\n\0a/b\0a/c/b\0d/y\0d/a/b/c",
    "\0\0\0.nfs0000000002a1b2c300000007\0d/.nfs0000000002a1b2c300000007",
    "{a,{b,c}d}\0{}\n{,}\n\\\n*\\\n\0**a**\n***\n/\n//\n!\n!/\n\0a\0bd\0cd\0d/e",
    "{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{a}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}}\0\0\0a\0d/a",
];

const REQUESTS: [&str; 7] = [
    "{\"do\":\"status\"}",
    "{\"do\":\"wait\",\"tree\":\"t\",\"timeout_ms\":500}",
    "{\"do\":\"log\",\"follow\":true,\"since\":18446744073709551615,\"later\":[{\"a\":null}]}",
    "{\"do\":\"resolve\",\"path\":{\"text\":\"/srv/\\u00e4\"},\"keep\":\"vaulted\",\"version\":\"v\"}",
    "{\"do\":\"restore\",\"path\":{\"b64\":\"L2Ev/wo=\"},\"version\":null,\"to\":{\"text\":\"/b\"}}",
    "{\"b64\":\"L2Ev/wo=\"}",
    "{\"text\":\"/a\"}",
];
