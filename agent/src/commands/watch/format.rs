//! How an event becomes a line.

use ::inotify::EventMask;
use chrono::Local;
use chrono::format::{Item, StrftimeItems};
use pleach_protocol::path::TreePath;
use serde_json::{Map, Value};

use crate::control::path_field;
use crate::watch::events::Seen;

/// The events of inotify(7) by the names of inotifywait(1), in its order.
const NAMES: [(&str, EventMask); 12] = [
    ("ACCESS", EventMask::ACCESS),
    ("MODIFY", EventMask::MODIFY),
    ("ATTRIB", EventMask::ATTRIB),
    ("CLOSE_WRITE", EventMask::CLOSE_WRITE),
    ("CLOSE_NOWRITE", EventMask::CLOSE_NOWRITE),
    ("OPEN", EventMask::OPEN),
    ("MOVED_FROM", EventMask::MOVED_FROM),
    ("MOVED_TO", EventMask::MOVED_TO),
    ("CREATE", EventMask::CREATE),
    ("DELETE", EventMask::DELETE),
    ("DELETE_SELF", EventMask::DELETE_SELF),
    ("MOVE_SELF", EventMask::MOVE_SELF),
];
/// Those that nobody asks for.
const SAID: [(&str, EventMask); 4] = [
    ("UNMOUNT", EventMask::UNMOUNT),
    ("Q_OVERFLOW", EventMask::Q_OVERFLOW),
    ("IGNORED", EventMask::IGNORED),
    ("ISDIR", EventMask::ISDIR),
];

/// Which events these names mean; none: all.
///
/// # Errors
/// The name that is none.
pub(super) fn mask(names: &[String]) -> Result<EventMask, String> {
    if names.is_empty() {
        return Ok(NAMES.iter().fold(EventMask::empty(), |all, (_, mask)| all | *mask));
    }
    let mut all = EventMask::empty();
    for name in names {
        all |= match name.to_ascii_uppercase().as_str() {
            "CLOSE" => EventMask::CLOSE_WRITE | EventMask::CLOSE_NOWRITE,
            "MOVE" => EventMask::MOVED_FROM | EventMask::MOVED_TO,
            "UNMOUNT" => EventMask::UNMOUNT,
            upper => match NAMES.iter().find(|(known, _)| *known == upper) {
                Some((_, mask)) => *mask,
                None => {
                    let known: Vec<String> = NAMES.iter().map(|(known, _)| known.to_ascii_lowercase()).collect();
                    return Err(format!("there is no event '{name}': {}, close, move, unmount", known.join(", ")));
                }
            },
        };
    }
    Ok(all)
}

/// The names of the events in a mask.
pub(super) fn names(mask: EventMask) -> Vec<&'static str> {
    NAMES.iter().chain(&SAID).filter(|(_, bit)| mask.contains(*bit)).map(|(name, _)| *name).collect()
}

/// How lines look.
#[derive(Clone, Debug)]
pub(super) enum Shape {
    /// As inotifywait's: directory, events, name.
    Plain,
    Json,
    Csv,
    Format {
        format: String,
        /// For `%T`.
        time: String,
    },
}

/// Checks a format of strftime(3): chrono would panic at a wrong one.
///
/// # Errors
/// What is wrong with it.
pub(super) fn check_time(format: &str) -> Result<(), String> {
    if StrftimeItems::new(format).any(|item| matches!(item, Item::Error)) {
        return Err(format!("'{format}' is no format of strftime(3)"));
    }
    Ok(())
}

/// `top/dir/name`, as it was given.
pub(super) fn joined(top: &[u8], dir: &TreePath, name: &[u8]) -> Vec<u8> {
    let mut path = directory(top, dir);
    path.extend_from_slice(name);
    path
}

/// `top/dir/`.
fn directory(top: &[u8], dir: &TreePath) -> Vec<u8> {
    let mut path = top.to_vec();
    if path.last() != Some(&b'/') {
        path.push(b'/');
    }
    if !dir.is_root() {
        path.extend_from_slice(dir.as_bytes());
        path.push(b'/');
    }
    path
}

/// One event with its place.
pub(super) struct Line<'a> {
    pub(super) dir: Vec<u8>,
    seen: &'a Seen,
}

impl<'a> Line<'a> {
    pub(super) fn new(top: &[u8], seen: &'a Seen) -> Self {
        Self { dir: directory(top, &seen.dir), seen }
    }

    pub(super) fn path(&self) -> Vec<u8> {
        [self.dir.as_slice(), &self.seen.name].concat()
    }

    pub(super) fn mask(&self) -> EventMask {
        self.seen.mask
    }

    pub(super) fn write(&self, shape: &Shape, out: &mut Vec<u8>) {
        match shape {
            Shape::Plain => {
                let events = names(self.seen.mask).join(",");
                out.extend([self.dir.as_slice(), b" ", events.as_bytes(), b" ", &self.seen.name].concat());
            }
            Shape::Csv => {
                let events = names(self.seen.mask).join(",");
                let events = if events.contains(',') { format!("\"{events}\"") } else { events };
                out.extend(
                    [quoted(&self.dir).as_slice(), b",", events.as_bytes(), b",", &quoted(&self.seen.name)].concat(),
                );
            }
            Shape::Json => out.extend(self.json().to_string().into_bytes()),
            Shape::Format { format, time } => return self.formatted(format, time, out),
        }
        out.push(b'\n');
    }

    fn json(&self) -> Value {
        let mut row = Map::new();
        row.insert("time".into(), Local::now().to_rfc3339_opts(chrono::SecondsFormat::Millis, false).into());
        row.extend([path_field("dir", &self.dir), path_field("name", &self.seen.name)]);
        row.insert("events".into(), names(self.seen.mask).into());
        if self.seen.cookie != 0 {
            row.insert("cookie".into(), self.seen.cookie.into());
        }
        Value::Object(row)
    }

    /// As inotifywait's `--format`: a line feed follows unless the format ends with `%n` or `%0`.
    fn formatted(&self, format: &str, time: &str, out: &mut Vec<u8>) {
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            match chars.next() {
                Some('w') => out.extend_from_slice(&self.dir),
                Some('f') => out.extend_from_slice(&self.seen.name),
                Some('e') => out.extend(names(self.seen.mask).join(",").into_bytes()),
                Some('T') => out.extend(Local::now().format(time).to_string().into_bytes()),
                Some('c') => out.extend(self.seen.cookie.to_string().into_bytes()),
                Some('n') => out.push(b'\n'),
                Some('0') => out.push(0),
                Some('%') => out.push(b'%'),
                Some(between) if chars.as_str().starts_with('e') => {
                    chars.next();
                    out.extend(names(self.seen.mask).join(between.encode_utf8(&mut [0; 4])).into_bytes());
                }
                Some(other) => out.extend(format!("%{other}").into_bytes()),
                None => out.push(b'%'),
            }
        }
        if !format.ends_with("%n") && !format.ends_with("%0") {
            out.push(b'\n');
        }
    }
}

/// A field of CSV. Source: RFC 4180.
fn quoted(field: &[u8]) -> Vec<u8> {
    if !field.iter().any(|b| b",\"\r\n".contains(b)) {
        return field.to_vec();
    }
    let mut quoted = vec![b'"'];
    for b in field {
        quoted.extend(if *b == b'"' { &b"\"\""[..] } else { std::slice::from_ref(b) });
    }
    quoted.push(b'"');
    quoted
}
