//! Paths of any bytes, as JSON.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::base64;

/// An absolute path of any bytes; as JSON `{"text":"..."}`, or `{"b64":"..."}` where it is not UTF-8.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct RawPath(PathBuf);

impl RawPath {
    /// Takes an absolute path without a NUL byte.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Option<Self> {
        let path = path.into();
        (path.is_absolute() && !path.as_os_str().as_bytes().contains(&0)).then_some(Self(path))
    }

    /// The path.
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Written {
    Text(String),
    B64(String),
}

impl From<RawPath> for Written {
    fn from(path: RawPath) -> Self {
        match path.0.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::B64(base64::encode(path.0.as_os_str().as_bytes())),
        }
    }
}

impl TryFrom<Written> for RawPath {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let bytes = match written {
            Written::Text(text) => text.into_bytes(),
            Written::B64(text) => base64::decode(&text).ok_or("b64 is not base64")?,
        };
        Self::new(OsString::from_vec(bytes)).ok_or("a path must be absolute and hold no NUL")
    }
}

/// A row's field for a path of any bytes: `(key, text)`, or `(key_b64, base64)` where it is not UTF-8.
#[must_use]
pub fn path_field(key: &str, path: &[u8]) -> (String, Value) {
    match std::str::from_utf8(path) {
        Ok(text) => (key.to_owned(), text.into()),
        Err(_) => (format!("{key}_b64"), base64::encode(path).into()),
    }
}

/// The bytes that [`path_field`] wrote into a row.
pub(crate) fn field_path(row: &Value, key: &str) -> Option<Vec<u8>> {
    match row.get(key).and_then(Value::as_str) {
        Some(text) => Some(text.as_bytes().to_vec()),
        None => base64::decode(row.get(format!("{key}_b64"))?.as_str()?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_go_there_and_back() {
        for (bytes, json) in [
            (&b"/a b/\xc3\xa4"[..], "{\"text\":\"/a b/\u{e4}\"}".to_owned()),
            (&b"/a/\xff\n"[..], r#"{"b64":"L2Ev/wo="}"#.to_owned()),
        ] {
            let path = RawPath::new(OsString::from_vec(bytes.to_vec())).unwrap();
            assert_eq!(serde_json::to_string(&path).unwrap(), json);
            assert_eq!(serde_json::from_str::<RawPath>(&json).unwrap(), path);
            let (key, value) = path_field("path", bytes);
            assert_eq!(field_path(&serde_json::json!({ key: value }), "path").unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_no_absolute_path_is_refused() {
        for json in
            [r#"{"text":"a"}"#, r#"{"text":""}"#, r#"{"text":"/a\u0000"}"#, r#"{"b64":"/"}"#, r#"{"b64":"YQ=="}"#]
        {
            assert!(serde_json::from_str::<RawPath>(json).is_err(), "{json}");
        }
    }
}
