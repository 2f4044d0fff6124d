//! The `pleach` binary.
fn main() {}
