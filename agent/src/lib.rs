//! What acts: the watcher, the configuration, and what the `pleach` binary is made of.

pub mod watch;
