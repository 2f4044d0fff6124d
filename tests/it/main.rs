//! The integration tests, one binary.

mod two_trees;
