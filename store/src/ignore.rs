//! Which paths are ignored: gitignore syntax, from the config and from `.pleachignore` files.
//!
//! Rules only; nothing here reads a file. Whoever sees a `.pleachignore` hands its content in.
//!
//! One path by itself is decided by the first of these that says anything: the config's rules, the
//! built-in rule, the `.pleachignore` of its directory, that of the directory above, and so on.
//! Within one set of rules the last that matches counts. A path in an ignored directory is ignored,
//! whatever else is said of it.
//!
//! Two things differ from git, by the matcher that is used: braces are alternatives (`*.{a,b}`), and
//! white space of any kind at the end of a line is dropped, not only blanks.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ::ignore::Match;
use ::ignore::gitignore::{Gitignore, GitignoreBuilder};
use pleach_protocol::path::TreePath;

/// The file that holds the rules for the directory it lies in and everything beneath.
pub const FILE_NAME: &[u8] = b".pleachignore";
/// Where pushes to a node whose agent is away keep what they displace: in the root, and never synced.
pub const FALLBACK_DIR: &[u8] = b".pleach-fallback";
/// How much of such a file is read as rules, in bytes; the rest is a problem.
pub const FILE_BYTES_MAX: usize = 256 * 1024;
/// The most opening braces of one rule: the matcher goes as deep as they nest, and ends the process
/// where its stack does. Escaped ones count, too: what is escaped is the matcher's business.
pub const BRACES_MAX: usize = 64;

/// A rule in the config that cannot be read.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("ignore rule {number}, {line:?}: {why}")]
#[non_exhaustive]
pub struct IgnoreError {
    /// Which rule, from 1.
    pub number: usize,
    /// The rule.
    pub line: String,
    /// What is wrong with it.
    pub why: String,
}

/// A line of a `.pleachignore` that cannot be read; the others of that file count.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct IgnoreProblem {
    /// The directory of the file.
    pub dir: TreePath,
    /// Which line, from 1.
    pub number: usize,
    /// What is wrong with it.
    pub why: String,
}

/// The rules of one tree.
#[derive(Clone, Debug)]
pub struct IgnoreRules {
    config: Gitignore,
    /// By the bytes of the directory's path.
    files: HashMap<Box<[u8]>, File>,
    /// Files that hold rules: most trees have none.
    with_rules: usize,
}

/// One `.pleachignore`.
#[derive(Clone, Debug)]
struct File {
    lines: Vec<String>,
    rules: Gitignore,
    problems: Vec<IgnoreProblem>,
}

impl IgnoreRules {
    /// Takes the rules of the config.
    ///
    /// # Errors
    /// The first rule that cannot be read.
    pub fn new(config_lines: &[String]) -> Result<Self, IgnoreError> {
        let mut builder = builder();
        for (index, line) in config_lines.iter().enumerate() {
            let error = |why| IgnoreError { number: index + 1, line: line.clone(), why };
            add(&mut builder, line).map_err(error)?;
        }
        let config = builder.build().map_err(|error| IgnoreError {
            number: config_lines.len(),
            line: config_lines.last().cloned().unwrap_or_default(),
            why: why(error),
        })?;
        Ok(Self { config, files: HashMap::new(), with_rules: 0 })
    }

    /// Takes the content of the `.pleachignore` in `dir`, none where there is none (any more).
    /// Returns whether rules changed, so that paths beneath may be ignored now, or not any more.
    pub fn set_file(&mut self, dir: &TreePath, content: Option<&[u8]>) -> bool {
        let file = content.map(|content| File::read(dir, content));
        let lines = file.as_ref().map_or(0, |file| file.lines.len());
        let old = match file {
            Some(file) if !file.lines.is_empty() || !file.problems.is_empty() => {
                let same = |old: &File| old.lines == file.lines;
                let unchanged = self.files.get(dir.as_bytes()).map_or(lines == 0, same);
                let old = self.files.insert(dir.as_bytes().into(), file);
                (old.map_or(0, |old| old.lines.len()), !unchanged)
            }
            _ => {
                let old = self.files.remove(dir.as_bytes()).map_or(0, |old| old.lines.len());
                (old, old > 0)
            }
        };
        self.with_rules = self.with_rules + usize::from(lines > 0) - usize::from(old.0 > 0);
        old.1
    }

    /// Whether a `.pleachignore` of this directory is in force.
    #[must_use]
    pub fn has_file(&self, dir: &TreePath) -> bool {
        self.files.contains_key(dir.as_bytes())
    }

    /// Whether the path, or a directory that it lies in, is ignored. The root never is.
    #[must_use]
    pub fn ignored(&self, path: &TreePath, is_dir: bool) -> bool {
        if is_in_fallback_dir(path) {
            return true;
        }
        if self.has_none() {
            return is_silly_rename(path.name(), is_dir);
        }
        let bytes = path.as_bytes();
        let slashes = bytes.iter().enumerate().filter(|(_, b)| **b == b'/');
        slashes.map(|(end, _)| &bytes[..end]).any(|dir| self.decide(dir, true)) || self.ignored_itself(path, is_dir)
    }

    /// The same for a path whose directory is known not to be ignored, as in a walk.
    #[must_use]
    pub fn ignored_itself(&self, path: &TreePath, is_dir: bool) -> bool {
        if is_in_fallback_dir(path) {
            return true;
        }
        if self.has_none() {
            return is_silly_rename(path.name(), is_dir);
        }
        !path.is_root() && self.decide(path.as_bytes(), is_dir)
    }

    /// Whether there are no rules but the built-in ones.
    #[must_use]
    pub fn has_none(&self) -> bool {
        self.with_rules == 0 && self.config.is_empty()
    }

    /// What could not be read in `.pleachignore` files, in no order.
    pub fn problems(&self) -> impl Iterator<Item = &IgnoreProblem> {
        self.files.values().flat_map(|file| &file.problems)
    }

    /// One path by itself.
    fn decide(&self, path: &[u8], is_dir: bool) -> bool {
        match matched(&self.config, path, is_dir) {
            Match::Ignore(_) => return true,
            Match::Whitelist(_) => return false,
            Match::None => {}
        }
        let cut = path.iter().rposition(|b| *b == b'/');
        let name = cut.map_or(path, |cut| &path[cut + 1..]);
        if is_silly_rename(name, is_dir) {
            return true;
        }
        if self.with_rules == 0 || (name == FILE_NAME && !is_dir) {
            return false;
        }
        let mut dir = cut;
        loop {
            let start = dir.map_or(0, |dir| dir + 1);
            if let Some(file) = self.files.get(&path[..dir.unwrap_or(0)]) {
                match matched(&file.rules, &path[start..], is_dir) {
                    Match::Ignore(_) => return true,
                    Match::Whitelist(_) => return false,
                    Match::None => {}
                }
            }
            let Some(end) = dir else { return false };
            dir = path[..end].iter().rposition(|b| *b == b'/');
        }
    }
}

/// No rule brings it back.
fn is_in_fallback_dir(path: &TreePath) -> bool {
    let rest = path.as_bytes().strip_prefix(FALLBACK_DIR);
    rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

impl File {
    fn read(dir: &TreePath, content: &[u8]) -> Self {
        let mut file = Self { lines: Vec::new(), rules: Gitignore::empty(), problems: Vec::new() };
        let mut problem = |number, why| file.problems.push(IgnoreProblem { dir: dir.clone(), number, why });
        let mut builder = builder();
        let content = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(content);
        let mut number = 0;
        let mut taken = 0;
        for line in content.split(|b| *b == b'\n') {
            number += 1;
            taken += line.len() + 1;
            if taken > FILE_BYTES_MAX + 1 {
                problem(number, format!("the rest is not read: only {FILE_BYTES_MAX} bytes are"));
                break;
            }
            let Ok(line) = str::from_utf8(line) else {
                problem(number, "not UTF-8".to_owned());
                continue;
            };
            match add(&mut builder, line) {
                Ok(true) => file.lines.push(line.to_owned()),
                Ok(false) => {}
                Err(why) => problem(number, why),
            }
        }
        match builder.build() {
            Ok(rules) => file.rules = rules,
            Err(error) => {
                file.lines.clear();
                problem(number, format!("none of the rules count: {}", why(error)));
            }
        }
        file
    }
}

fn builder() -> GitignoreBuilder {
    let mut builder = GitignoreBuilder::new("");
    // git takes such a rule for one that matches nothing: better said than guessed.
    builder.allow_unclosed_class(false);
    builder
}

/// Adds a line, and says whether it holds a rule.
fn add(builder: &mut GitignoreBuilder, line: &str) -> Result<bool, String> {
    if line.starts_with('#') || line.trim().is_empty() {
        return Ok(false);
    }
    if line.bytes().filter(|b| *b == b'{').count() > BRACES_MAX {
        return Err(format!("more than {BRACES_MAX} braces"));
    }
    builder.add_line(None, line).map(|_| true).map_err(why)
}

fn why(error: ::ignore::Error) -> String {
    match error {
        ::ignore::Error::Glob { err, .. } => err,
        other => other.to_string(),
    }
}

fn matched<'a>(rules: &'a Gitignore, path: &[u8], is_dir: bool) -> Match<&'a ::ignore::gitignore::Glob> {
    rules.matched(Path::new(OsStr::from_bytes(path)), is_dir)
}

/// What an NFS client makes of a file that was removed while open: `.nfs`, inode and counter in hex.
/// Source: fs/nfs/unlink.c, `nfs_sillyrename`.
fn is_silly_rename(name: &[u8], is_dir: bool) -> bool {
    name.len() == 28 && !is_dir && name.starts_with(b".nfs") && name[4..].iter().all(u8::is_ascii_hexdigit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_fallback_displaced_is_ignored_whatever_the_rules_say() {
        let mut rules = IgnoreRules::new(&["!.pleach-fallback".to_owned()]).unwrap();
        rules.set_file(&TreePath::ROOT, Some(b"!/.pleach-fallback/\n!*\n"));
        for rules in [rules, IgnoreRules::new(&[]).unwrap()] {
            for (path, ignored) in [
                (&b".pleach-fallback"[..], true),
                (b".pleach-fallback/7/d/f", true),
                (b".pleach-fallback2", false),
                (b"d/.pleach-fallback", false),
            ] {
                let path = TreePath::parse(path).unwrap();
                assert_eq!(
                    (rules.ignored(&path, true), rules.ignored_itself(&path, true)),
                    (ignored, ignored),
                    "{path}"
                );
            }
        }
    }

    fn p(path: impl AsRef<[u8]>) -> TreePath {
        TreePath::parse(path.as_ref()).unwrap()
    }

    fn rules(config: &[&str]) -> IgnoreRules {
        IgnoreRules::new(&config.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    /// A path that ends in a slash is a directory.
    #[track_caller]
    fn check(rules: &IgnoreRules, ignored: &[&str], kept: &[&str]) {
        for (paths, expected) in [(ignored, true), (kept, false)] {
            for path in paths {
                let name = path.strip_suffix('/').unwrap_or(path);
                assert_eq!(rules.ignored(&p(name), name != *path), expected, "{path}");
            }
        }
    }

    const SILLY: &str = ".nfs0000000002a1b2c300000007";

    #[test]
    fn rules_of_the_config() {
        for (rule, ignored, kept) in [
            ("*.swp", &["a.swp", "d/.b.swp", "x.swp/"][..], &["a.swpx", "swp"][..]),
            ("/cache/", &["cache/", "cache/a/b"], &["cache", "d/cache/", "d/cache/a"]),
            ("build/", &["build/", "d/build/", "d/build/x"], &["build", "d/build", "builds/"]),
            ("a/b", &["a/b", "a/b/", "a/b/c"], &["x/a/b", "a"]),
            ("logs/*.log", &["logs/a.log"], &["logs/x/a.log", "x/logs/a.log", "a.log"]),
            ("**/tmp", &["tmp", "a/b/tmp", "a/tmp/x"], &["tmp2"]),
            ("a/**", &["a/x", "a/x/y"], &["a/", "a", "b/a/x"]),
            ("a/**/z", &["a/z", "a/b/z", "a/b/c/z"], &["a/zz", "z"]),
            ("f[0-9]?", &["f1x"], &["f1", "fxx", "f1/x"]),
            ("trailing   ", &["trailing"], &["trailing   "]),
            ("kept\\ ", &["kept "], &["kept"]),
            ("# no rule", &[], &["# no rule", "no rule"]),
            ("\\#rule", &["#rule"], &["rule"]),
            ("\\!rule", &["!rule"], &["rule"]),
            ("", &[], &["a"]),
            ("UPPER", &["UPPER"], &["upper"]),
            ("sp\u{e9}cial", &["sp\u{e9}cial"], &["special"]),
        ] {
            println!("{rule:?}");
            check(&rules(&[rule]), ignored, kept);
        }
    }

    #[test]
    fn the_last_rule_that_matches_counts() {
        check(&rules(&["*.log", "!keep.log"]), &["a.log"], &["keep.log", "d/keep.log"]);
        check(&rules(&["!keep.log", "*.log"]), &["keep.log"], &[]);
        // git: what lies in an ignored directory cannot be had back,
        check(&rules(&["build/", "!build/keep"]), &["build/keep", "build/"], &[]);
        // but for what is ignored piece by piece.
        check(&rules(&["build/*", "!build/keep"]), &["build/x"], &["build/keep", "build/keep/x", "build/"]);
    }

    #[test]
    fn names_the_rule_that_is_wrong() {
        for (bad, why) in
            [("[z-a]", "invalid range"), ("a[b", "unclosed character class"), ("{a", "unclosed alternate")]
        {
            let error = IgnoreRules::new(&["*.ok".to_owned(), bad.to_owned()]).unwrap_err();
            assert_eq!((error.number, error.line.as_str()), (2, bad));
            assert!(error.why.contains(why), "{}", error.why);
            assert!(error.to_string().starts_with(&format!("ignore rule 2, {bad:?}: ")), "{error}");
        }
    }

    #[test]
    fn files_count_beneath_their_directory() {
        let mut rules = rules(&[]);
        assert!(rules.set_file(&TreePath::ROOT, Some(b"*.o\n/top\nsub/\n")));
        assert!(rules.set_file(&p("a/b"), Some(b"!keep.o\r\n/here\r\nx/y\n*.c")));
        check(
            &rules,
            &["m.o", "a/m.o", "a/b/m.o", "top", "sub/", "a/sub/x", "a/b/here", "a/b/x/y/z", "a/b/d/m.c"],
            &["a/top", "a/b/keep.o", "a/b/d/keep.o", "a/here", "here", "x/y", "a/b/d/x/y", "m.c", "a/sub"],
        );
        assert!(rules.ignored(&p("keep.o"), false));
        // The deeper file cannot have back what lies in a directory that the upper one ignores.
        assert!(rules.set_file(&p("sub"), Some(b"!*\n")));
        check(&rules, &["sub/x"], &[]);
        // A directory whose name only begins alike has no part in it.
        check(&rules, &[], &["a/bb/here", "a/b2/m.c"]);
    }

    #[test]
    fn the_config_wins_over_files() {
        let mut rules = rules(&["*.tmp", "!*.keep"]);
        rules.set_file(&TreePath::ROOT, Some(b"!*.tmp\n*.keep\n*.other\n"));
        rules.set_file(&p("d"), Some(b"!*.tmp\n*.keep\n!*.other\n"));
        check(&rules, &["a.tmp", "d/a.tmp", "a.other"], &["a.keep", "d/a.keep", "d/a.other"]);
    }

    #[test]
    fn rule_files_are_ignored_by_the_config_only() {
        let mut all = rules(&[]);
        all.set_file(&TreePath::ROOT, Some(b"*\n"));
        check(&all, &["x", "d/", "d/.pleachignore", ".pleachignore/"], &[".pleachignore"]);
        check(&rules(&[".pleachignore"]), &[".pleachignore", "d/.pleachignore"], &[]);
    }

    #[test]
    fn silly_renames_are_ignored() {
        let mut none = rules(&[]);
        let beneath = format!("a/{SILLY}");
        let longer = format!("{SILLY}0");
        let directory = format!("{SILLY}/");
        let other = format!("{}g", &SILLY[..27]);
        let kept = [".nfs0001", ".nfs", &longer, &directory, &other, &SILLY[..27]];
        check(&none, &[SILLY, &beneath], &kept);
        none.set_file(&TreePath::ROOT, Some(b"!.nfs*\nx\n"));
        check(&none, &[SILLY, &beneath], &kept);
        check(&rules(&["x"]), &[SILLY, &beneath], &kept);
        check(&rules(&["!.nfs*"]), &[], &[SILLY, &beneath]);
    }

    #[test]
    fn names_need_not_be_utf8() {
        let mut rules = rules(&["*.swp", "/raw/?"]);
        rules.set_file(&p(b"d\xff"), Some(b"inner\n"));
        for (path, ignored) in [
            (&b"\xff\xfe.swp"[..], true),
            (b"\xff/\xfe.swp", true),
            (b"raw/\xff", true),
            (b"raw/\xff\xff", false),
            (b"d\xff/inner", true),
            (b"d\xfe/inner", false),
            (b"new\nline.swp", true),
        ] {
            assert_eq!(rules.ignored(&p(path), false), ignored, "{:?}", p(path));
        }
    }

    #[test]
    fn tells_whether_rules_changed() {
        let mut rules = rules(&[]);
        let dir = p("d");
        for (content, changed) in [
            (None, false),
            (Some(&b"# only a comment\n\n"[..]), false),
            (Some(b"a\n"), true),
            (Some(b"# why\na\n"), false),
            (Some(b"a\nb\n"), true),
            (Some(b"b\na\n"), true),
            (Some(b"[z-a]\n"), true),
            (Some(b"\xff\n"), false),
            (None, false),
            (Some(b"a"), true),
            (None, true),
        ] {
            assert_eq!(rules.set_file(&dir, content), changed, "{content:?}");
            let expected = content.is_some_and(|c| c.split(|b| *b == b'\n').any(|line| line == b"a"));
            assert_eq!(rules.ignored(&p("d/a"), false), expected, "{content:?}");
        }
        assert!(rules.has_none() && rules.files.is_empty());
    }

    #[test]
    fn bad_lines_are_problems_and_the_others_count() {
        let mut rules = rules(&[]);
        assert!(rules.set_file(&p("d"), Some(b"\xef\xbb\xbfgood\n[z-a]\n\xff\xfe\nalso\n")));
        check(&rules, &["d/good", "d/also"], &["d/z"]);
        let problems: Vec<_> = rules.problems().map(|problem| (problem.number, problem.why.as_str())).collect();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].0 == 2 && problems[0].1.contains("invalid range"), "{problems:?}");
        assert_eq!(problems[1], (3, "not UTF-8"));
        assert!(rules.problems().all(|problem| problem.dir == p("d")));
        assert!(!rules.set_file(&p("d"), Some(b"good\nalso")));
        assert_eq!(rules.problems().count(), 0);
    }

    #[test]
    fn braces_that_nest_too_deep_for_the_stack_are_a_problem() {
        for depth in [BRACES_MAX + 1, 100_000] {
            let deep = [b"{".repeat(depth), b"a".to_vec(), b"}".repeat(depth)].concat();
            let mut rules = rules(&[]);
            rules.set_file(&TreePath::ROOT, Some(&[b"good\n", &deep[..], b"\nalso\n"].concat()));
            check(&rules, &["good", "also"], &["a"]);
            let problems: Vec<_> = rules.problems().map(|problem| (problem.number, problem.why.as_str())).collect();
            assert_eq!(problems, [(2, "more than 64 braces")]);
            assert!(IgnoreRules::new(&[String::from_utf8(deep).unwrap()]).is_err());
        }
        let deep = ["{".repeat(BRACES_MAX), "a".to_owned(), "}".repeat(BRACES_MAX)].concat();
        check(&rules(&[&deep]), &["a"], &["b"]);
    }

    #[test]
    fn a_huge_file_is_cut_at_a_line() {
        let mut rules = rules(&[]);
        let mut content = b"first\n".to_vec();
        content.resize(FILE_BYTES_MAX - 5, b'#');
        content.extend_from_slice(b"\nlast\nbeyond\n");
        assert!(rules.set_file(&TreePath::ROOT, Some(&content)));
        check(&rules, &["first", "last"], &["beyond"]);
        assert_eq!(rules.problems().count(), 1);
    }
}
