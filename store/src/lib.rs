//! What is on disk: the sled journal and index of a tree, and the tree itself.
//!
//! Blocking calls, through two traits that each have a real and a modelled twin: [`kv::Kv`] and
//! [`vfs::Vfs`]. No network, no watcher, no async, no agent.

pub mod chunks;
pub mod ignore;
pub mod index;
pub mod kv;
pub mod look;
pub mod root;
pub mod rows;
pub mod tree;
pub mod vfs;
