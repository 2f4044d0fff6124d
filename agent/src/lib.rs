//! What acts: the watcher, the node's loop, and what the `pleach` binary is made of.

pub mod agent;
pub mod bandwidth;
pub mod cli;
pub mod commands;
pub mod compress;
pub mod config;
pub mod control;
pub mod doctor;
pub mod exchange;
pub mod failure;
pub mod hook;
pub mod import;
pub mod keys;
pub mod machine;
mod orphan;
pub mod owner;
pub mod peer;
pub mod push;
pub mod ssh;
pub mod sync;
pub mod watch;
