//! The integration tests, one binary.

mod crash;
mod two_trees;
