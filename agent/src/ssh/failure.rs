//! Why a link cannot be had, or is gone.

use std::io;

use pleach_protocol::wire::FrameError;

/// Says why a link cannot be had, or is gone. Addresses are as people gave them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The link was closed on this side.
    #[error("the link with {address} is closed")]
    Closed {
        /// The other side.
        address: String,
    },
    /// The other side sent what is no frame.
    #[error("{address} sent no frames of ours: {source}")]
    Frame {
        /// The other side.
        address: String,
        /// What was wrong.
        source: FrameError,
    },
    /// More waits to be sent than is allowed.
    #[error("the link with {address} is {bytes} bytes behind; it takes no more")]
    Full {
        /// The other side.
        address: String,
        /// What waits.
        bytes: usize,
    },
    /// The SSH handshake failed.
    #[error("SSH handshake with {address}: {source}")]
    Handshake {
        /// The other side.
        address: String,
        /// What the SSH library said.
        source: russh::Error,
    },
    /// No listening socket can be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("lost the link with {address}: {reason}")]
    Lost {
        /// The other side.
        address: String,
        /// What was seen.
        reason: String,
    },
    /// The other side is an SSH server without our subsystem.
    #[error("{address} took the key but offers no pleach: is an agent listening there, and not sshd?")]
    NoSubsystem {
        /// The other side.
        address: String,
    },
    /// The other side does not know our key.
    #[error("{address} does not accept this node's key {ours}: make it the key of a [[peer]] there")]
    Rejected {
        /// The other side.
        address: String,
        /// Our key's fingerprint.
        ours: String,
    },
    /// A name has no addresses.
    #[error("cannot resolve {address}: {source}")]
    Resolve {
        /// As configured.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// The handshake took too long.
    #[error("{address} answered, but there was no link after {seconds} s")]
    Slow {
        /// The other side.
        address: String,
        /// The limit.
        seconds: u64,
    },
    /// No address takes connections.
    #[error("cannot connect to {address}: {tried}")]
    Unreachable {
        /// As configured.
        address: String,
        /// Each address with what the kernel said.
        tried: String,
    },
    /// Somebody else answers, or the other side has a new key.
    #[error(
        "{address} has the key {found}, expected {}: if that node was given a new key, change it in its [[peer]]; \
         otherwise somebody else answers there",
        expected.join(" or ")
    )]
    WrongKey {
        /// The other side.
        address: String,
        /// Fingerprints of the configured keys.
        expected: Vec<String>,
        /// Fingerprint of the key it has.
        found: String,
    },
}
