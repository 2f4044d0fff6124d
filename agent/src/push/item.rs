//! What rsync says of each path, a line each (`--out-format=%i %n`).

use pleach_protocol::path::TreePath;

/// How wide `%i` is. Source: rsync(1), itemize-changes.
const ITEMIZED: usize = 11;
/// The word that takes its place for a deletion.
const DELETING: &[u8] = b"*deleting  ";
/// What is said of a directory that holds what pleach did not push.
const NOT_EMPTY: &[u8] = b"cannot delete non-empty directory: ";

/// A line of rsync's.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Item {
    /// A path was looked at.
    Path {
        /// Which.
        path: TreePath,
        /// Whether it is a directory.
        dir: bool,
        /// Whether something of it differed.
        changed: bool,
    },
    /// A path was deleted there.
    Deleted(TreePath),
    /// A directory stays, for it is not empty.
    NotEmpty(TreePath),
}

/// Reads a line; none where it is about something else.
#[must_use]
pub(super) fn parse(line: &[u8]) -> Option<Item> {
    if let Some(name) = line.strip_prefix(NOT_EMPTY) {
        return path(name).map(|(path, _)| Item::NotEmpty(path));
    }
    let (itemized, name) = line.split_at_checked(ITEMIZED)?;
    let name = name.strip_prefix(b" ")?;
    if itemized == DELETING {
        return path(name).map(|(path, _)| Item::Deleted(path));
    }
    let known = b"<>ch.".contains(&itemized[0]) && b"fdLDS".contains(&itemized[1]);
    let (path, dir) = path(name).filter(|_| known)?;
    let changed = itemized[0] != b'.' || itemized[2..].iter().any(|b| !b". ".contains(b));
    Some(Item::Path { path, dir, changed })
}

fn path(name: &[u8]) -> Option<(TreePath, bool)> {
    let name = unescaped(name);
    let (name, dir) = name.strip_suffix(b"/").map_or((&name[..], false), |name| (name, true));
    TreePath::parse(name).ok().map(|path| (path, dir))
}

/// Bytes that rsync does not print come as `\#ooo`; a `\#ooo` of the name itself as `\#134#ooo`.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        match tail {
            [b'#', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if *first == b'\\' => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(path: &[u8]) -> TreePath {
        TreePath::parse(path).unwrap()
    }

    #[test]
    fn lines_of_rsync_are_read() {
        let path = |path: &[u8], dir, changed| Some(Item::Path { path: p(path), dir, changed });
        assert_eq!(parse(b"<f+++++++++ a\\#012b"), path(b"a\nb", false, true));
        assert_eq!(parse(b"<f+++++++++ c\\#134#012d"), path(b"c\\#012d", false, true));
        assert_eq!(parse(b".d          d/"), path(b"d", true, false));
        assert_eq!(parse(b".f..t...... \\#377\\#344"), path(b"\xff\xe4", false, true));
        assert_eq!(parse(b"cL+++++++++ l"), path(b"l", false, true));
        assert_eq!(parse(b"*deleting   d/e/"), Some(Item::Deleted(p(b"d/e"))));
        assert_eq!(parse(b"cannot delete non-empty directory: d/e"), Some(Item::NotEmpty(p(b"d/e"))));
        for line in [&b"created directory no"[..], b"", b"xf+++++++++ a", b"<f+++++++++ ", b"rsync: [sender] x"] {
            assert_eq!(parse(line), None, "{line:?}");
        }
    }
}
