//! What is true and what is said: the pure rules of reconciliation, versions, messages and codec.
//!
//! No I/O, no clock, no randomness, no threads: time and entropy are handed in.

pub mod alike;
pub mod codec;
pub mod entry;
pub mod mint;
pub mod moved;
pub mod path;
pub mod resolve;
pub mod rules;
pub mod session;
pub mod sorted;
pub mod time;
pub mod version;
pub mod view;
pub mod wire;
