//! The only module that names bincode (CRATES.md §3): explicit options, a limit, no trailing bytes.
//! Frames and stored rows use it.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest value that is decoded, in bytes.
pub const VALUE_BYTES_MAX: u64 = 1024 * 1024;

/// Room for most values.
const ENCODED_BYTES: usize = 512;

/// Says why bytes are not a value.
#[derive(Debug, thiserror::Error)]
#[error("bytes cannot be decoded: {0}")]
pub struct DecodeError(String);

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_limit(VALUE_BYTES_MAX).reject_trailing_bytes()
}

/// Encodes a value. Whoever may hold one beyond [`VALUE_BYTES_MAX`] looks at the length: it would
/// not be decoded.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    encode_behind(&[], value)
}

/// The same behind other bytes.
#[must_use]
#[expect(clippy::missing_panics_doc, reason = "bincode fails for sequences of unknown length only; we have none")]
pub fn encode_behind<T: Serialize>(head: &[u8], value: &T) -> Vec<u8> {
    // In one pass: bincode's own way to a vector first asks each byte how long it will be.
    let mut bytes = Vec::with_capacity(ENCODED_BYTES);
    bytes.extend_from_slice(head);
    let written = bincode::DefaultOptions::new().serialize_into(&mut bytes, value);
    written.expect("our types have no sequences of unknown length");
    bytes
}

/// Decodes a value.
///
/// # Errors
/// Bytes that are cut, too long, or no such value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    // The limit of bincode counts no varint: the length is what bounds them.
    if bytes.len() as u64 > VALUE_BYTES_MAX {
        return Err(DecodeError(format!("{} bytes are too many", bytes.len())));
    }
    options().deserialize(bytes).map_err(|e| DecodeError(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_padded_and_lying_bytes_are_refused() {
        let good = encode(&(7u64, "name".to_owned(), vec![1u32, 2, 300]));
        type Value = (u64, String, Vec<u32>);
        assert_eq!(decode::<Value>(&good).unwrap().1, "name");
        for cut in 0..good.len() {
            assert!(decode::<Value>(&good[..cut]).is_err(), "{cut}");
        }
        assert!(decode::<Value>(&[&good[..], &[0]].concat()).is_err());
        // A string of 2^63 bytes in 9 bytes: refused without believing the length.
        let lie = [&[7u8, 253][..], &(1u64 << 63).to_le_bytes()].concat();
        assert!(decode::<Value>(&lie).is_err());
        let large = encode(&vec![7u8; 1024 * 1024]);
        assert!(decode::<Vec<u8>>(&large).is_err(), "beyond the limit");
        let large = encode(&vec![7u64; 1024 * 1024]);
        assert!(decode::<Vec<u64>>(&large).is_err(), "beyond the limit");
    }
}
