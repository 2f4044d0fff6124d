//! Paths within a tree: bytes, validated once, ordered as a sorted walk meets them.
//!
//! A [`TreePath`] cannot hold `..`, an empty component or the tree's own `.pleach`, so whoever has
//! one may hand it to a directory handle. Nothing here touches a disk.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The longest name of one component, in bytes. Source: `NAME_MAX`, limits.h(0p).
pub const NAME_BYTES_MAX: usize = 255;
/// The longest path that is carried, in bytes. Deeper trees than `PATH_MAX` exist and are walked
/// step by step; the bound keeps a hostile peer's paths small.
pub const PATH_BYTES_MAX: usize = 16 * 1024;
/// The directory at a tree's root that belongs to pleach and never leaves the node.
pub const PRIVATE_NAME: &[u8] = b".pleach";

/// Says why bytes are not a path within a tree.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// No component at all, or one of no bytes (`a//b`, `/a`, `a/`).
    #[error("a path component is empty")]
    Empty,
    /// A component is `.` or `..`.
    #[error("a path component is '.' or '..'")]
    Dots,
    /// A byte is NUL.
    #[error("a path contains a NUL byte")]
    Nul,
    /// The first component is `.pleach`.
    #[error("the path lies in the tree's private .pleach directory")]
    Private,
    /// A component or the whole is too long.
    #[error("a path or one of its names is too long")]
    TooLong,
}

/// A path beneath a tree's root, or the root itself ([`TreePath::ROOT`], which no entry has).
///
/// Ordered by components, not by bytes: `a`, `a/b`, `a-b`.
#[derive(Clone, Default, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct TreePath(Vec<u8>);

/// Checks one file name.
///
/// # Errors
/// Names that Linux does not allow.
pub fn check_name(name: &[u8]) -> Result<(), PathError> {
    match name {
        b"" => Err(PathError::Empty),
        b"." | b".." => Err(PathError::Dots),
        _ if name.len() > NAME_BYTES_MAX => Err(PathError::TooLong),
        _ if name.contains(&0) => Err(PathError::Nul),
        _ if name.contains(&b'/') => Err(PathError::Empty),
        _ => Ok(()),
    }
}

impl TreePath {
    /// The tree's root.
    pub const ROOT: Self = Self(Vec::new());

    /// Parses `a/b/c`.
    ///
    /// # Errors
    /// Whatever [`PathError`] names; the empty path is one of them.
    pub fn parse(bytes: &[u8]) -> Result<Self, PathError> {
        if bytes.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        for name in bytes.split(|b| *b == b'/') {
            check_name(name)?;
        }
        if bytes.split(|b| *b == b'/').next() == Some(PRIVATE_NAME) {
            return Err(PathError::Private);
        }
        Ok(Self(bytes.to_vec()))
    }

    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// As [`TreePath::parse`].
    pub fn join(&self, name: &[u8]) -> Result<Self, PathError> {
        check_name(name)?;
        if self.is_root() && name == PRIVATE_NAME {
            return Err(PathError::Private);
        }
        if self.0.len() + 1 + name.len() > PATH_BYTES_MAX {
            return Err(PathError::TooLong);
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        if !self.is_root() {
            bytes.extend_from_slice(&self.0);
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Ok(Self(bytes))
    }

    /// Whether this is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, `/` between components.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        self.0.rsplit(|b| *b == b'/').next().unwrap_or_default()
    }

    /// The directory that holds it; none for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self(self.0[..cut].to_vec()))
    }

    /// Its parents from the nearest up, without the root.
    pub fn parents(&self) -> impl Iterator<Item = Self> + use<> {
        std::iter::successors(self.parent(), Self::parent).take_while(|p| !p.is_root())
    }

    /// The components from the top down; none for the root.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|c| !c.is_empty())
    }

    /// Whether this is a path or lies beneath it.
    #[must_use]
    pub fn is_within(&self, top: &Self) -> bool {
        self == top || self.is_beneath(top)
    }

    /// Whether it lies beneath `dir` (and is not `dir` itself).
    #[must_use]
    pub fn is_beneath(&self, dir: &Self) -> bool {
        if dir.is_root() {
            return !self.is_root();
        }
        self.0.len() > dir.0.len() && self.0.starts_with(&dir.0) && self.0[dir.0.len()] == b'/'
    }
}

impl Ord for TreePath {
    fn cmp(&self, other: &Self) -> Ordering {
        // '/' below every byte of a name: no name holds a NUL.
        let key = |b: &u8| if *b == b'/' { 0 } else { *b };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

impl PartialOrd for TreePath {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl TryFrom<Vec<u8>> for TreePath {
    type Error = PathError;
    fn try_from(bytes: Vec<u8>) -> Result<Self, PathError> {
        Self::parse(&bytes)
    }
}

impl From<TreePath> for Vec<u8> {
    fn from(path: TreePath) -> Self {
        path.0
    }
}

/// Escapes what a terminal or a log must not see raw.
impl fmt::Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_root() {
            return f.write_str(".");
        }
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() || c == '\\' {
                    write!(f, "{}", c.escape_default())?;
                } else {
                    write!(f, "{c}")?;
                }
            }
            for b in chunk.invalid() {
                write!(f, "\\x{b:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(s: &str) -> TreePath {
        TreePath::parse(s.as_bytes()).unwrap()
    }

    #[test]
    fn refuses_what_could_leave_the_tree() {
        for (bytes, why) in [
            (&b""[..], PathError::Empty),
            (b"/a", PathError::Empty),
            (b"a//b", PathError::Empty),
            (b"a/", PathError::Empty),
            (b"..", PathError::Dots),
            (b"a/../b", PathError::Dots),
            (b"./a", PathError::Dots),
            (b"a\0b", PathError::Nul),
            (b".pleach", PathError::Private),
            (b".pleach/vault/x", PathError::Private),
            (&[b'n'; 256], PathError::TooLong),
        ] {
            assert_eq!(TreePath::parse(bytes), Err(why), "{bytes:?}");
        }
        assert!(TreePath::parse(b"a/.pleach/mine").is_ok());
        assert!(TreePath::parse(b".pleach2").is_ok());
        assert_eq!(TreePath::ROOT.join(b".pleach"), Err(PathError::Private));
        assert_eq!(p("a").join(b"x/y"), Err(PathError::Empty));
    }

    #[test]
    fn orders_as_a_sorted_walk() {
        let mut paths = [p("a-b"), p("a/b"), p("b"), p("a"), p("a/b/c"), p("a\nb")];
        paths.sort();
        let names: Vec<_> = paths.iter().map(TreePath::as_bytes).collect();
        assert_eq!(names, [&b"a"[..], b"a/b", b"a/b/c", b"a\nb", b"a-b", b"b"]);
    }

    #[test]
    fn names_parents_and_prefixes() {
        assert_eq!(p("a/b/c").name(), b"c");
        assert_eq!(p("a/b/c").parents().collect::<Vec<_>>(), [p("a/b"), p("a")]);
        assert_eq!(p("a").parent(), Some(TreePath::ROOT));
        assert_eq!(TreePath::ROOT.parent(), None);
        assert!(p("a/b").is_beneath(&p("a")));
        assert!(!p("ab").is_beneath(&p("a")));
        assert!(!p("a").is_beneath(&p("a")));
        assert_eq!(TreePath::ROOT.components().count(), 0);
    }

    #[test]
    fn shows_bytes_escaped() {
        let path = TreePath::parse(b"caf\xc3\xa9\n\xff\x1b").unwrap();
        assert_eq!(path.to_string(), "caf\u{e9}\\n\\xff\\u{1b}");
    }
}
