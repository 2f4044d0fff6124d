//! What acts: the watcher, the node's loop, and what the `pleach` binary is made of.

pub mod cli;
pub mod config;
pub mod failure;
pub mod keys;
pub mod node;
pub mod sync;
pub mod watch;
