//! `pleach status`: the state of each tree and each peer, as the contract shapes it.

use std::fs;

use pleach_store::tree::{LongReads, ScanStats};
use serde_json::{Value, json};

use super::{Agent, PeerHandle, PushHandle};
use crate::exchange::StreamState;
use crate::machine::lock;
use crate::owner::{Phase, TreeStatus};
use crate::peer::PeerState;

/// Bytes as text: those that are not UTF-8 are replaced, for fields that have no `_b64` twin.
fn shown(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

const fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Scanning => "scanning",
        Phase::Watching => "watching",
        Phase::Paused => "paused",
        Phase::Error => "error",
    }
}

const fn peer_word(state: PeerState) -> &'static str {
    match state {
        PeerState::Connected => "connected",
        PeerState::Connecting => "connecting",
        PeerState::Unreachable => "unreachable",
        PeerState::Refused => "refused",
        PeerState::Paused => "paused",
    }
}

/// Whether a peer has all of a tree, and we all of the peer's.
fn in_sync_with(peer: &PeerHandle, tree: &TreeStatus) -> bool {
    let connected = lock(&peer.status).state == PeerState::Connected;
    let Some(progress) = tree.peers.get(&peer.setup.node) else { return false };
    let done = progress.to_send == 0 && progress.to_receive == 0 && progress.stuck == 0;
    connected && (progress.state == StreamState::Absent || progress.state == StreamState::Open && done)
}

/// Whether a daemon has all of a tree.
fn has_all(push: &PushHandle, tree: &TreeStatus) -> bool {
    let connected = lock(&push.status).state == PeerState::Connected;
    connected && tree.pushes.get(&push.setup.name).is_some_and(|p| p.seq >= tree.seq && p.owed == 0)
}

/// How a peer's fallback is: whether it serves the peer, and how that goes.
fn fallback_row(push: &PushHandle) -> Value {
    let status = lock(&push.status).clone();
    let serves = push.setup.fallback.as_ref().is_some_and(|fallback| fallback.gate.is_open(fallback.after));
    json!({
        "address": push.setup.config.target.to_string(), "serves": serves,
        "state": if serves { peer_word(status.state) } else { "waiting" }, "error": status.error,
    })
}

fn push_tree(push: &PushHandle, name: &str, tree: &TreeStatus) -> Value {
    let progress = tree.pushes.get(&push.setup.name).cloned().unwrap_or_default();
    let state = match tree.phase {
        Phase::Paused => "paused",
        Phase::Error => "error",
        Phase::Scanning | Phase::Watching => "ok",
    };
    json!({
        "name": name, "state": state, "to_send": progress.to_send + progress.owed as u64,
        "to_send_bytes": progress.to_send_bytes, "to_receive": 0, "to_receive_bytes": 0, "acked_seq": progress.seq,
    })
}

/// How far a first scan is.
fn scan_row(scan: ScanStats) -> Value {
    json!({ "entries": scan.entries, "read": scan.read, "read_bytes": scan.read_bytes, "changes": scan.minted })
}

/// How far long files are.
fn long_reads_row(long: LongReads) -> Value {
    json!({ "files": long.files, "bytes": long.bytes, "read_bytes": long.read_bytes })
}

impl Agent {
    /// The status, as `pleach status --json` prints it.
    #[must_use]
    pub fn status(&self) -> Value {
        let watch_limit = fs::read_to_string("/proc/sys/fs/inotify/max_user_watches").ok();
        let watch_limit: Option<u64> = watch_limit.and_then(|text| text.trim().parse().ok());
        let parts = lock(&self.parts);
        let statuses: Vec<TreeStatus> = parts.trees.iter().map(|o| lock(&o.status).clone()).collect();
        let trees: Vec<Value> = parts
            .trees
            .iter()
            .zip(&statuses)
            .map(|(owner, tree)| {
                let takers = parts.peers.iter().filter(|p| p.setup.trees.contains(&owner.name));
                let in_sync = tree.phase == Phase::Watching
                    && tree.quiet
                    && tree.problems == 0
                    && takers.into_iter().all(|peer| in_sync_with(peer, tree))
                    && parts.pushes.iter().filter(|p| p.setup.tree == owner.name).all(|p| has_all(p, tree));
                json!({
                    "name": owner.name, "path": shown(&owner.path), "state": phase_word(tree.phase), "in_sync": in_sync,
                    "entries": tree.entries, "bytes": tree.bytes, "seq": tree.seq, "conflicts": tree.conflicts,
                    "problems": tree.problems, "watches": tree.watch.watches, "watch_limit": watch_limit,
                    "polled_dirs": tree.watch.polled.len(), "overflows": tree.watch.overflows, "local_changes": tree.local_changes,
                    "mounts": tree.mounts, "error": tree.error, "scan": tree.scan.map(scan_row),
                    "long_reads": tree.long_reads.map(long_reads_row),
                })
            })
            .collect();
        let mut peers: Vec<Value> = parts
            .peers
            .iter()
            .map(|peer| {
                let status = lock(&peer.status).clone();
                let fallback = parts.fallbacks.iter().find(|push| push.setup.name == peer.setup.name);
                let rows: Vec<Value> = parts
                    .trees
                    .iter()
                    .zip(&statuses)
                    .filter(|(owner, _)| peer.setup.trees.contains(&owner.name))
                    .map(|(owner, tree)| peer_tree(peer, &owner.name, tree))
                    .collect();
                json!({
                    "name": peer.setup.name, "kind": "pleach", "state": peer_word(status.state), "error": status.error,
                    "rtt_ms": status.round_trip.map(|t| t.as_secs_f64() * 1_000.0),
                    "last_seen_s": status.seen.map(|at| at.elapsed().as_secs_f64()),
                    "trees": rows, "fallback": fallback.map(fallback_row),
                })
            })
            .collect();
        for push in &parts.pushes {
            let rows: Vec<Value> = parts
                .trees
                .iter()
                .zip(&statuses)
                .filter(|(owner, _)| push.setup.tree == owner.name)
                .map(|(owner, tree)| push_tree(push, &owner.name, tree))
                .collect();
            let status = lock(&push.status).clone();
            peers.push(json!({
                "name": push.setup.name, "kind": "rsync", "state": peer_word(status.state), "error": status.error,
                "rtt_ms": null, "last_seen_s": status.seen.map(|at| at.elapsed().as_secs_f64()), "trees": rows,
            }));
        }
        let hooks: Vec<Value> = parts.hooks.iter().map(|hook| hook.row(&parts.trees, &statuses)).collect();
        json!({
            "node": self.us.name, "id": self.us.key.fingerprint(), "version": env!("CARGO_PKG_VERSION"),
            "uptime_s": self.started.elapsed().as_secs_f64(), "config_error": *lock(&self.config_error),
            "trees": trees, "peers": peers, "hooks": hooks,
        })
    }
}

fn peer_tree(peer: &PeerHandle, name: &str, tree: &TreeStatus) -> Value {
    let progress = tree.peers.get(&peer.setup.node).cloned().unwrap_or_default();
    let state = match (tree.phase, progress.state) {
        (Phase::Paused, _) | (_, StreamState::Paused) => "paused",
        (Phase::Error, _) | (_, StreamState::Failed) => "error",
        (_, StreamState::Absent) => "absent",
        (_, StreamState::Open | StreamState::Unknown) => "ok",
    };
    json!({
        "name": name, "state": state, "to_send": progress.to_send, "to_send_bytes": progress.to_send_bytes,
        "to_receive": progress.to_receive, "to_receive_bytes": progress.to_receive_bytes,
        "acked_seq": progress.acked_seq,
    })
}
