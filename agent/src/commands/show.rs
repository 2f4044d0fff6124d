//! How values are shown to people: names of any bytes, sizes, times, tables.

use std::fmt::Write as _;

use serde_json::Value;

use crate::control::field_path;

/// Whether there are colours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Style {
    colour: bool,
}

impl Style {
    /// Colours for a terminal, unless the user does not want any. Source: no-color.org.
    pub(super) fn of(terminal: bool) -> Self {
        Self { colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) }
    }

    /// Without colours.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self { colour: false }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.painted("32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.painted("31", text)
    }

    pub(super) fn head(self, text: &str) -> String {
        self.painted("1", text)
    }

    fn painted(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Bytes as one line of text that shows everything: control characters, invisible ones, bytes that are not UTF-8
/// and the backslash itself come as escapes.
pub(super) fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for c in part.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                '\t' => text.push_str("\\t"),
                c if c.is_ascii_control() => write!(text, "\\x{:02x}", u32::from(c)).expect("a string takes any text"),
                c if c.is_control() || invisible(c) => text.extend(c.escape_unicode()),
                c => text.push(c),
            }
        }
        for byte in part.invalid() {
            write!(text, "\\x{byte:02x}").expect("a string takes any text");
        }
    }
    text
}

/// Characters that show nothing or turn the text around.
fn invisible(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// A value as one line of text; `-` where there is none.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => escaped(text.as_bytes()),
        value => escaped(value.to_string().as_bytes()),
    }
}

/// A row's field as one line of text, also one whose bytes are not UTF-8; `-` where there is none.
pub(super) fn field(row: &Value, key: &str) -> String {
    match row.get(key).unwrap_or(&Value::Null) {
        Value::Null => field_path(row, key).map_or_else(|| "-".to_owned(), |bytes| escaped(&bytes)),
        value => shown(value),
    }
}

/// A number of bytes in the largest unit that leaves a digit before the point.
pub(super) fn size(bytes: u64) -> String {
    let mut unit = 1_000_u64;
    if bytes < unit {
        return format!("{bytes} B");
    }
    for name in ["kB", "MB", "GB", "TB"] {
        if bytes / 1_000 < unit {
            return format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit);
        }
        unit *= 1_000;
    }
    format!("{}.{} PB", bytes / unit, bytes % unit * 10 / unit)
}

/// A time span as people say it.
pub(super) fn span(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3_600.0 => format!("{:.0} min", (s / 60.0).floor()),
        s if s < 172_800.0 => format!("{:.0} h", (s / 3_600.0).floor()),
        s => format!("{:.0} days", (s / 86_400.0).floor()),
    }
}

/// One cell: the text that counts for the width, and its looks.
pub(super) struct Cell {
    text: String,
    painted: Option<String>,
}

impl Cell {
    /// A cell that looks otherwise than it measures.
    pub(super) fn painted(text: &str, paint: impl Fn(&str) -> String) -> Self {
        Self { text: text.to_owned(), painted: Some(paint(text)) }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), painted: None }
    }
}

/// Rows in aligned columns, two spaces apart; the last column is not filled up.
pub(super) fn table(rows: &[Vec<Cell>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|c| c.text.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| wide(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut filled = 0;
        for (cell, width) in row.iter().zip(&widths) {
            text.extend(std::iter::repeat_n(' ', filled));
            text.push_str(cell.painted.as_ref().unwrap_or(&cell.text));
            filled = width.saturating_sub(cell.text.chars().count()) + 2;
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_show_every_byte() {
        for (bytes, want) in [
            (&b"a b \xc3\xa4"[..], "a b \u{e4}"),
            (b"a\nb\tc\\\x1b[31m\x7f", "a\\nb\\tc\\\\\\x1b[31m\\x7f"),
            (b"\xff\xc3\xa4\xc3", "\\xff\u{e4}\\xc3"),
            ("\u{202e}x\u{200b}\u{85}".as_bytes(), "\\u{202e}x\\u{200b}\\u{85}"),
        ] {
            assert_eq!(escaped(bytes), want);
        }
    }

    #[test]
    fn sizes_and_spans() {
        for (bytes, want) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (5_678, "5.6 kB"),
            (999_999, "999.9 kB"),
            (1_000_000, "1.0 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(size(bytes), want);
        }
        for (seconds, want) in
            [(0.12, "0.1 s"), (59.0, "59.0 s"), (90.0, "1 min"), (7_300.0, "2 h"), (864_000.0, "10 days")]
        {
            assert_eq!(span(seconds), want);
        }
    }

    #[test]
    fn columns_are_aligned_whatever_their_looks() {
        let red = |text: &str| format!("<{text}>");
        let rows =
            vec![vec!["A".into(), "B".into()], vec![Cell::painted("xyz", red), "".into()], vec!["\u{e4}".into()]];
        assert_eq!(table(&rows), "A    B\n<xyz>\n\u{e4}\n");
    }
}
