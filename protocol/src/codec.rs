//! The only module that names bincode (CRATES.md §3): explicit options, a limit, no trailing bytes.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest value that is decoded, in bytes.
pub const VALUE_BYTES_MAX: u64 = 1024 * 1024;

/// Says why bytes are not a value.
#[derive(Debug, thiserror::Error)]
#[error("bytes cannot be decoded: {0}")]
pub struct DecodeError(String);

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_limit(VALUE_BYTES_MAX).reject_trailing_bytes()
}

/// Encodes a value.
///
/// # Panics
/// Never for our types: they have no parts of unknown length.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::DefaultOptions::new().serialize(value).expect("our types have no unsized parts")
}

/// Decodes a value.
///
/// # Errors
/// Bytes that are cut, too long, or no such value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    options().deserialize(bytes).map_err(|e| DecodeError(e.to_string()))
}
