//! Patterns of others as gitignore rules: rsync's exclude patterns and sersync's regular expressions.

use regex_syntax::hir::{Class, Hir, HirKind};

/// How many rules one regular expression may become.
const RULES_MAX: usize = 64;

/// Translates an exclude pattern of rsync or lsyncd.
///
/// # Errors
/// Why it cannot be said as a rule.
pub(super) fn of_rsync(text: &str) -> Result<String, String> {
    let text = text.strip_prefix("- ").unwrap_or(text);
    if text.starts_with("+ ") || text == "!" {
        return Err("it includes; write it as a gitignore rule ('!...') in 'ignore'".into());
    }
    // DIR/*** is the directory and all beneath it.
    let text = text.strip_suffix("***").unwrap_or(text);
    let body = text.strip_suffix('/').unwrap_or(text);
    if body.trim_start_matches('/').is_empty() {
        return Err("it would exclude everything".into());
    }
    if body.split('/').any(|part| part.contains("**") && part != "**") {
        return Err("'**' within a name has no counterpart in gitignore rules".into());
    }
    let wild = text.contains(['*', '?', '[']);
    let text = if wild { text.to_owned() } else { text.replace('\\', "\\\\") };
    // A pattern with a slash within matches the end of a path at every level; gitignore's would be anchored.
    let floating = body.contains('/') && !body.starts_with('/') && !body.starts_with("**/");
    Ok(if floating { format!("**/{text}") } else { guarded(&text) })
}

/// Guards what gitignore would read as a comment, a negation or a trailing space.
fn guarded(rule: &str) -> String {
    let rule = if rule.starts_with(['#', '!']) { format!("\\{rule}") } else { rule.to_owned() };
    match rule.strip_suffix(' ') {
        Some(head) => format!("{head}\\ "),
        None => rule,
    }
}

/// A part of what a regular expression matches.
#[derive(Clone, Debug, PartialEq)]
enum Part {
    /// A glob that matches within one name; literal slashes are in it as they are.
    Glob(String),
    /// Anything, also nothing, slashes too.
    Any,
}

/// Translates a regular expression of sersync's `<filter>` into rules that ignore what it excludes.
///
/// sersync matches the whole of `NAME` in the root, and of `/DIR/NAME` beneath it. Source:
/// `Inotify::FilterExclude` of sersync 2.5.4.
///
/// # Errors
/// Why it cannot be said as rules.
pub(super) fn of_regex(text: &str) -> Result<Vec<String>, String> {
    // As many configs have it, though boost refuses it: a shell pattern in place of an expression.
    if text.starts_with('*') {
        return Err("this is no regular expression: sersync said so at its start and did without it".into());
    }
    let hir = regex_syntax::ParserBuilder::new().build().parse(text).map_err(|error| {
        let last = error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        format!("this is no regular expression: {last}")
    })?;
    let mut rules = Vec::new();
    for parts in sequences(&hir)? {
        rules.extend(rules_of(&parts)?);
    }
    rules.dedup();
    Ok(rules)
}

fn sequences(hir: &Hir) -> Result<Vec<Vec<Part>>, String> {
    Ok(match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => vec![Vec::new()],
        HirKind::Literal(literal) => {
            let text = std::str::from_utf8(&literal.0).map_err(|error| error.to_string())?;
            vec![vec![Part::Glob(text.chars().map(escaped).collect())]]
        }
        HirKind::Class(class) => vec![vec![Part::Glob(class_of(class)?)]],
        HirKind::Capture(capture) => sequences(&capture.sub)?,
        HirKind::Alternation(subs) => {
            let mut all = Vec::new();
            for sub in subs {
                all.extend(sequences(sub)?);
            }
            bounded(all)?
        }
        HirKind::Concat(subs) => {
            let mut all = vec![Vec::new()];
            for sub in subs {
                all = joined(&all, &sequences(sub)?)?;
            }
            all
        }
        HirKind::Repetition(repetition) => {
            let sub = sequences(&repetition.sub)?;
            let times = (repetition.min, repetition.max);
            if any(&repetition.sub) {
                return match times {
                    (0, None) => Ok(vec![vec![Part::Any]]),
                    (1, None) => Ok(vec![vec![Part::Glob("?".into()), Part::Any]]),
                    _ => Err("'.' so many times has no counterpart in gitignore rules".into()),
                };
            }
            // "info/*" is "info" with any number of slashes.
            if matches!(times, (0 | 1, None)) && sub == [vec![Part::Glob("/".into())]] {
                return Ok(vec![vec![Part::Glob("/".into())]]);
            }
            let Some(max) = repetition.max.filter(|max| *max <= 4) else {
                return Err("a repetition of other things than '.' has no counterpart in gitignore rules".into());
            };
            let (mut all, mut grown) = (Vec::new(), vec![Vec::new()]);
            for n in 0..=max {
                if n >= repetition.min {
                    all.extend(grown.iter().cloned());
                }
                grown = joined(&grown, &sub)?;
            }
            bounded(all)?
        }
    })
}

fn bounded<T>(all: Vec<T>) -> Result<Vec<T>, String> {
    if all.len() > RULES_MAX { Err(format!("it would be more than {RULES_MAX} rules")) } else { Ok(all) }
}

fn joined(heads: &[Vec<Part>], tails: &[Vec<Part>]) -> Result<Vec<Vec<Part>>, String> {
    let mut all = Vec::new();
    for head in heads {
        all.extend(tails.iter().map(|tail| [head.as_slice(), tail.as_slice()].concat()));
    }
    bounded(all)
}

/// Whether it is `.`, with or without the line feed.
fn any(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Class(class) => is_dot(class),
        HirKind::Capture(capture) => any(&capture.sub),
        _ => false,
    }
}

fn is_dot(class: &Class) -> bool {
    match class {
        Class::Unicode(class) => {
            let ranges = class.ranges();
            ranges.first().is_some_and(|r| r.start() == '\0')
                && ranges.last().is_some_and(|r| r.end() == char::MAX)
                && ranges.windows(2).all(|pair| u32::from(pair[1].start()) - u32::from(pair[0].end()) == 2)
                && ranges.len() <= 2
        }
        Class::Bytes(_) => false,
    }
}

fn class_of(class: &Class) -> Result<String, String> {
    if is_dot(class) {
        return Ok("?".into());
    }
    let Class::Unicode(class) = class else {
        return Err("a class of bytes has no counterpart in gitignore rules".into());
    };
    let mut class = class.clone();
    let negated = class.ranges().last().is_some_and(|range| range.end() == char::MAX);
    if negated {
        class.negate();
    }
    let mut text = String::from(if negated { "[!" } else { "[" });
    for range in class.ranges() {
        let (start, end) = (range.start(), range.end());
        if [start, end].iter().any(|c| "]^-!\\/".contains(*c) || c.is_control()) {
            return Err("such a class of characters has no counterpart in gitignore rules".into());
        }
        text.push(start);
        if end != start {
            text.extend(['-', end]);
        }
    }
    text.push(']');
    Ok(text)
}

fn escaped(c: char) -> String {
    if "*?[\\".contains(c) { format!("\\{c}") } else { c.to_string() }
}

/// Says one sequence as rules.
fn rules_of(parts: &[Part]) -> Result<Vec<String>, String> {
    let anchored = parts.first() != Some(&Part::Any);
    // Literals between two "anything", glued together.
    let mut pieces = vec![String::new()];
    for part in parts {
        match part {
            Part::Glob(glob) => pieces.last_mut().unwrap_or(&mut String::new()).push_str(glob),
            Part::Any => pieces.push(String::new()),
        }
    }
    if pieces.iter().all(|piece| piece.trim_matches('/').is_empty()) {
        return Err("it would exclude everything".into());
    }
    // Each "anything" within stands in one name or spans directories.
    let mut rules = vec![pieces[0].clone()];
    for (at, piece) in pieces.iter().enumerate().skip(1) {
        let last = at + 1 == pieces.len();
        let mut next = Vec::new();
        for rule in &rules {
            if last && piece.is_empty() && rule.ends_with('/') {
                next.push(rule.clone());
                continue;
            }
            next.push(format!("{rule}*{piece}"));
            let floats = at == 1 && !anchored;
            let at_end = last && piece.is_empty();
            if !floats && !at_end {
                next.push(format!("{rule}*/**/*{piece}"));
            }
        }
        rules = bounded(next)?;
    }
    Ok(rules.into_iter().map(|rule| placed(&rule, anchored)).collect())
}

fn placed(rule: &str, anchored: bool) -> String {
    let rule = rule.trim_end_matches('/');
    if anchored {
        return format!("/{}", rule.trim_start_matches('/'));
    }
    match rule.strip_prefix("*/") {
        Some(rest) if rest.contains('/') => format!("**/{rest}"),
        Some(rest) => rest.to_owned(),
        None if rule.contains('/') => format!("**/{rule}"),
        None => rule.to_owned(),
    }
}
