//! The rows of an answer as text for people: the journal a line at once, lists in aligned columns.

use std::collections::BTreeSet;

use serde_json::Value;

use super::show::{self, Cell};
use crate::control::Request;

/// How many rows are aligned with each other. A longer list is printed in parts, so that none has to be held whole.
const BLOCK_ROWS_MAX: usize = 1_000;
/// How much of a hash tells contents apart for people; `--json` has all of it.
const HASH_CHARS: usize = 16;
/// The columns of the journal. Source: CONTRACT.md, `pleach log`.
const LOG: [&str; 10] = ["seq", "time", "tree", "path", "from", "op", "node", "size", "hash", "was"];
/// The fields that are shown without their names, before the others.
const LEAD: [&str; 4] = ["tree", "peer", "path", "version"];

/// A list's columns: the head, and what is beneath it.
type Column = (&'static str, fn(&Value) -> String);

const PROBLEMS: &[Column] = &[
    ("TREE", whose),
    ("PATH", |row| show::field(row, "path")),
    ("TIME", |row| show::field(row, "time")),
    ("REASON", |row| show::field(row, "reason")),
];
const PUSH: &[Column] = &[
    ("DOES", |row| show::field(row, "does")),
    ("TREE", |row| show::field(row, "tree")),
    ("PATH", |row| show::field(row, "path")),
];
const CONFLICTS: &[Column] = &[
    ("TREE", whose),
    ("PATH", |row| show::field(row, "path")),
    ("VERSION", |row| show::field(row, "version")),
    ("NODE", |row| show::field(row, "node")),
    ("TIME", |row| show::field(row, "time")),
    ("SIZE", size),
    ("HASH", hash),
];
const VERSIONS: &[Column] = &[
    ("TREE", whose),
    ("PATH", |row| show::field(row, "path")),
    ("VERSION", |row| show::field(row, "version")),
    ("REASON", |row| show::field(row, "reason")),
    ("TIME", |row| show::field(row, "time")),
    ("SIZE", size),
    ("HASH", hash),
];

/// How a request's rows look.
#[derive(Clone, Copy)]
enum Form {
    /// A line at once, a tab between the columns: no field can hold one.
    Log,
    /// Columns under heads, and a word for a terminal where there is no row.
    List(&'static [Column], &'static str),
    /// Whatever the row holds.
    Other,
}

/// Turns the rows of one answer into text.
pub(super) struct Printer {
    form: Form,
    waiting: Vec<Vec<Cell>>,
    /// Whether rows of a list were given out already.
    begun: bool,
}

impl Printer {
    /// A printer of this request's rows.
    pub(super) fn new(request: &Request) -> Self {
        let form = match request {
            Request::Log { .. } => Form::Log,
            Request::Problems { .. } => Form::List(PROBLEMS, "no problems"),
            Request::Push { dry_run: true, .. } => Form::List(PUSH, "nothing to do"),
            Request::Conflicts { .. } | Request::Forget { .. } => Form::List(CONFLICTS, "no conflicts"),
            Request::Versions { .. } => Form::List(VERSIONS, "no versions"),
            _ => Form::Other,
        };
        Self { form, waiting: Vec::new(), begun: false }
    }

    /// Takes a row; returns what can be printed already.
    pub(super) fn row(&mut self, row: &Value) -> String {
        match self.form {
            Form::Log => LOG.map(|key| show::field(row, key)).join("\t") + "\n",
            Form::Other => compact(row),
            Form::List(columns, _) => {
                self.waiting.push(columns.iter().map(|(_, cell)| cell(row).into()).collect());
                if self.waiting.len() < BLOCK_ROWS_MAX { String::new() } else { self.block() }
            }
        }
    }

    /// Returns the rest. Heads and the word for an empty list are for terminals: what reads a pipe counts lines.
    pub(super) fn finish(mut self, to_terminal: bool) -> String {
        let Form::List(columns, none) = self.form else { return String::new() };
        if to_terminal && !self.begun {
            if self.waiting.is_empty() {
                return format!("{none}\n");
            }
            self.waiting.insert(0, columns.iter().map(|(head, _)| (*head).into()).collect());
        }
        self.block()
    }

    fn block(&mut self) -> String {
        self.begun = true;
        show::table(&std::mem::take(&mut self.waiting))
    }
}

/// What a row is about: a tree, or a peer where there is no tree.
fn whose(row: &Value) -> String {
    match row.get("peer") {
        Some(peer) if row.get("tree").is_none_or(Value::is_null) => format!("peer {}", show::shown(peer)),
        Some(peer) => format!("{} on {}", show::field(row, "tree"), show::shown(peer)),
        None => show::field(row, "tree"),
    }
}

fn size(row: &Value) -> String {
    row.get("size").and_then(Value::as_u64).map_or_else(|| show::field(row, "size"), show::size)
}

fn hash(row: &Value) -> String {
    show::field(row, "hash").chars().take(HASH_CHARS).collect()
}

/// A row of any fields as one line: what it is about, then the rest by name.
fn compact(row: &Value) -> String {
    let Value::Object(fields) = row else { return show::shown(row) + "\n" };
    let names: BTreeSet<&str> = fields.keys().map(|key| key.strip_suffix("_b64").unwrap_or(key)).collect();
    let lead = LEAD.iter().filter(|name| names.contains(*name)).map(|name| show::field(row, name));
    let rest = names.iter().filter(|name| !LEAD.contains(name));
    let rest = rest.map(|name| format!("{}={}", show::escaped(name.as_bytes()), show::field(row, name)));
    lead.chain(rest).collect::<Vec<_>>().join("  ") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const HASH: &str = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";

    #[test]
    fn a_change_is_one_line_at_once() {
        let mut printer = Printer::new(&Request::Log { tree: None, follow: false, since: None });
        let row = json!({"seq": 7, "time": "2026-01-02T03:04:05Z", "tree": "www", "path": "a b\n", "from_b64": "/w==",
            "op": "rename", "node": "web1", "size": 1_234_567, "hash": HASH, "was": null});
        let line = printer.row(&row);
        let want = format!("7\t2026-01-02T03:04:05Z\twww\ta b\\n\t\\xff\trename\tweb1\t1234567\t{HASH}\t-\n");
        assert_eq!(line, want);
        assert_eq!(printer.row(&json!({"seq": 8, "op": "delete"})), "8\t-\t-\t-\t-\tdelete\t-\t-\t-\t-\n");
        assert_eq!(printer.finish(true), "");
    }

    #[test]
    fn lists_are_aligned_and_have_heads_on_a_terminal() {
        let rows = [
            json!({"tree": "www", "path_b64": "Yf8=", "reason": "no room\tleft", "time": "T1"}),
            json!({"peer": "web22", "reason": "refused"}),
        ];
        let with_heads = "\
TREE        PATH   TIME  REASON
www         a\\xff  T1    no room\\tleft
peer web22  -      -     refused
";
        let without = "www         a\\xff  T1  no room\\tleft\npeer web22  -      -   refused\n";
        for (terminal, want) in [(true, with_heads), (false, without)] {
            let mut printer = Printer::new(&Request::Problems { tree: None });
            for row in &rows {
                assert_eq!(printer.row(row), "");
            }
            assert_eq!(printer.finish(terminal), want);
        }
        let mut printer = Printer::new(&Request::Conflicts { tree: None });
        let row =
            json!({"tree": "t", "path": "p", "version": "v", "node": "n", "time": "T", "size": 5_678, "hash": HASH});
        assert_eq!(printer.row(&row), "");
        assert_eq!(printer.finish(false), "t  p  v  n  T  5.6 kB  af1349b9f5f9a1a6\n");
    }

    #[test]
    fn an_empty_list_says_so_to_people_alone() {
        for (terminal, want) in [(true, "no conflicts\n"), (false, "")] {
            assert_eq!(Printer::new(&Request::Conflicts { tree: None }).finish(terminal), want);
        }
    }

    #[test]
    fn a_long_list_comes_in_parts_and_whole() {
        let mut printer = Printer::new(&Request::Problems { tree: None });
        let rows = BLOCK_ROWS_MAX * 2 + 1;
        let mut text = String::new();
        for at in 0..rows {
            text += &printer.row(&json!({"tree": "t", "path": at, "reason": "r"}));
            assert!(printer.waiting.len() < BLOCK_ROWS_MAX);
        }
        text += &printer.finish(true);
        assert_eq!(text.lines().count(), rows);
        assert!(text.ends_with("t  2000  -  r\n"), "{text}");
    }

    #[test]
    fn other_rows_show_all_their_fields() {
        let mut printer = Printer::new(&Request::Rescan { tree: None });
        let row = json!({"tree": "t", "to_b64": "/w==", "path": "a\nb", "bytes": 7, "done": true});
        assert_eq!(printer.row(&row), "t  a\\nb  bytes=7  done=true  to=\\xff\n");
        assert_eq!(printer.row(&json!("a\tb")), "a\\tb\n");
        assert_eq!(printer.row(&json!([1, "x"])), "[1,\"x\"]\n");
        assert_eq!(printer.finish(true), "");
    }
}
