//! Events counted by path, as inotifywatch(1) does.

use std::collections::HashMap;

use ::inotify::EventMask;
use serde_json::{Map, Value};

use super::format::{self, Line, Shape};
use crate::commands::show;
use crate::control::path_field;
use crate::failure::Failure;

/// How many paths are counted apart; what comes beyond is counted together.
const PATHS_MAX: usize = 100_000;

type Counts = HashMap<&'static str, u64>;

/// Counts by directory and event.
pub(super) struct Stats {
    names: Vec<&'static str>,
    sort: Option<&'static str>,
    by_path: bool,
    paths: HashMap<Vec<u8>, Counts>,
    others: Counts,
}

impl Stats {
    /// Counts these events; `sort` is an event's name or `path`.
    ///
    /// # Errors
    /// `sort` is neither.
    pub(super) fn new(wanted: EventMask, sort: Option<&str>) -> Result<Self, Failure> {
        let names = format::names(wanted);
        let by_path = sort == Some("path");
        let sort = match sort.filter(|_| !by_path) {
            None => None,
            Some(word) => Some(*names.iter().find(|name| name.eq_ignore_ascii_case(word)).ok_or_else(|| {
                Failure::usage(
                    "watch --sort",
                    format!("'{word}' is neither 'path' nor one of the events that are counted"),
                )
            })?),
        };
        Ok(Self { names, sort, by_path, paths: HashMap::new(), others: HashMap::new() })
    }

    pub(super) fn count(&mut self, line: &Line<'_>) {
        let known = self.paths.contains_key(&line.dir) || self.paths.len() < PATHS_MAX;
        let counts = if known { self.paths.entry(line.dir.clone()).or_default() } else { &mut self.others };
        for name in format::names(line.mask()).into_iter().filter(|name| self.names.contains(name)) {
            *counts.entry(name).or_default() += 1;
        }
    }

    /// The table: one line a directory, the most first.
    pub(super) fn table(&self, shape: Shape) -> Vec<u8> {
        let sum = |counts: &Counts| counts.values().sum::<u64>();
        let others = (b"(others)".to_vec(), self.others.clone());
        let mut rows: Vec<(Vec<u8>, Counts)> = self.paths.clone().into_iter().collect();
        rows.sort_by(|(a, x), (b, y)| {
            let key =
                |counts: &Counts| self.sort.map_or_else(|| sum(counts), |name| counts.get(name).copied().unwrap_or(0));
            let most = if self.by_path { std::cmp::Ordering::Equal } else { key(y).cmp(&key(x)) };
            most.then_with(|| a.cmp(b))
        });
        rows.extend((!self.others.is_empty()).then_some(others));
        if matches!(shape, Shape::Json) {
            return rows.iter().flat_map(|(path, counts)| Self::json(path, counts, sum(counts))).collect();
        }
        let shown: Vec<&str> = self
            .names
            .iter()
            .copied()
            .filter(|name| rows.iter().any(|(_, counts)| counts.contains_key(name)))
            .collect();
        let mut cells = vec![
            ["total"].iter().chain(&shown).map(|n| n.to_ascii_lowercase()).chain(["path".into()]).collect::<Vec<_>>(),
        ];
        for (path, counts) in &rows {
            let numbers = shown.iter().map(|name| counts.get(name).copied().unwrap_or(0).to_string());
            cells.push([sum(counts).to_string()].into_iter().chain(numbers).chain([show::escaped(path)]).collect());
        }
        let widths: Vec<usize> =
            (0..=shown.len()).map(|at| cells.iter().map(|row| row[at].len()).max().unwrap_or(0)).collect();
        let mut text = String::new();
        for row in cells {
            let (path, numbers) = row.split_last().expect("each row was built with a path");
            for (number, width) in numbers.iter().zip(&widths) {
                text.push_str(&format!("{number:>width$}  "));
            }
            text.push_str(path);
            text.push('\n');
        }
        text.into_bytes()
    }

    fn json(path: &[u8], counts: &Counts, sum: u64) -> Vec<u8> {
        let mut row = Map::new();
        row.extend([path_field("path", path), ("total".to_owned(), sum.into())]);
        let mut events: Vec<(&str, u64)> = counts.iter().map(|(name, n)| (*name, *n)).collect();
        events.sort_unstable();
        row.insert("events".into(), events.into_iter().map(|(name, n)| (name.to_owned(), Value::from(n))).collect());
        format!("{}\n", Value::Object(row)).into_bytes()
    }
}
