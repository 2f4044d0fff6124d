//! The transport: SSH connections between nodes, one channel each, carrying whole frames.
//!
//! What is said here stops at bytes, keys and addresses: who may do what is decided elsewhere. Four
//! faults of the SSH library shape it: its loop must not wait for the socket (`stream`), one
//! connection carries one channel, a reader never waits for its consumer but holds a bounded queue
//! (`link`), and the channel is written only through the writer that counts its window.
#![deny(clippy::indexing_slicing, clippy::panic, clippy::expect_used, clippy::arithmetic_side_effects)]

mod client;
mod failure;
mod link;
mod places;
mod queue;
mod server;
mod settings;
mod stream;

pub use russh::keys::ssh_key::PublicKey;

pub use self::client::{dial, dial_with};
pub use self::failure::LinkError;
pub use self::link::{LinkReader, LinkWriter, SshLink};
pub use self::server::Listener;
pub use self::settings::Settings;

/// The one thing that our endpoint offers.
const SUBSYSTEM: &str = "pleach";
