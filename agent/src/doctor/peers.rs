//! The peers: whether they answer, and whether their keys can be theirs.

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use serde_json::Value;

use super::{Check, named};
use crate::agent::host_port;
use crate::config::{Config, PeerConfig};
use crate::keys::{self, HostKey};

/// How long an address may take to answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

pub(super) fn look(config: &Config, status: Option<&Value>) -> Vec<Check> {
    let mut checks = Vec::new();
    let own = HostKey::load(&config.state).ok().map(|key| key.node());
    let mut seen = BTreeMap::new();
    for peer in &config.peers {
        let subject = format!("peer {}", peer.name);
        if let Some(node) = keys::public_node(&peer.key) {
            if own == Some(node) {
                let mend = format!("run `pleach key` on {} and put what it prints into 'key'", peer.name);
                checks.push(Check::finding(&subject, "its key is this node's own", mend));
            } else if let Some(other) = seen.insert(node, &peer.name) {
                let mend = "run `pleach key --new` on one of them, and put the new key here";
                checks.push(Check::finding(&subject, format!("its key is that of {other}, too"), mend));
            }
        }
        checks.extend(match named(status, "peers", &peer.name) {
            Some(row) => Some(told(peer, row)),
            None => asked(peer),
        });
    }
    checks
}

/// What the running agent knows of a peer.
fn told(peer: &PeerConfig, row: &Value) -> Check {
    let subject = format!("peer {}", peer.name);
    let state = row["state"].as_str().unwrap_or("?");
    let error = row["error"].as_str().map(|error| format!(": {error}")).unwrap_or_default();
    let mend = match state {
        "connected" => return Check::good(subject, "it is connected"),
        "paused" => format!("pleach resume --peer {}", peer.name),
        "refused" => "compare the keys: `pleach key` there, 'key' here, and the other way round".to_owned(),
        _ => start_there(peer),
    };
    Check::finding(subject, format!("it is {state}{error}"), mend)
}

/// Whether anything answers where a peer should be.
fn asked(peer: &PeerConfig) -> Option<Check> {
    let subject = format!("peer {}", peer.name);
    let mut why = None;
    for address in &peer.addresses {
        let result = host_port(address).to_socket_addrs().and_then(|found| {
            let mut last = std::io::Error::other("the name has no address");
            for address in found {
                match TcpStream::connect_timeout(&address, PATIENCE) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        match result {
            Ok(()) => return Some(Check::good(subject, format!("{address} answers"))),
            Err(error) => why = Some(format!("{address}: {error}")),
        }
    }
    why.map(|why| Check::finding(subject, why, start_there(peer)))
}

fn start_there(peer: &PeerConfig) -> String {
    match peer.addresses.first() {
        Some(address) => {
            let place = host_port(address);
            let (host, port) = place.rsplit_once(':').unwrap_or((&place, "8730"));
            format!(
                "on {}: systemctl start pleach; from here: nc -vz {} {port}",
                peer.name,
                host.trim_matches(['[', ']'])
            )
        }
        None => format!("it has no address and must dial in: on {}: systemctl status pleach", peer.name),
    }
}
