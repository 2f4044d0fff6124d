//! The integration tests, one binary.

mod crash;
mod rules;
mod two_trees;
