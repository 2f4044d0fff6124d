//! The integration tests, one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod alike;
mod crash;
mod delta;
mod direction;
mod first;
mod fuzz;
mod histories;
mod hooks;
mod ignore;
mod moves;
mod reading;
mod relay;
mod release;
mod renames;
mod rescan;
mod restart;
mod resume;
mod rules;
mod sim;
mod tombstones;
mod troubles;
mod two_trees;
mod vault;
mod window;
