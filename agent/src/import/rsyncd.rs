//! rsyncd.conf: each module becomes the tree of a node that takes the daemon's place.

use std::collections::BTreeMap;

use super::draft::{Draft, Tree};
use super::pattern;

/// What pleach has in another way, or does not need, and what is said of it.
const SAID: [(&str, &str); 9] = [
    ("auth users", "each machine that may come is a [[peer]] with its public key"),
    ("secrets file", "keys take the place of passwords"),
    ("hosts allow", "who may come is who has a key; keep others out with the firewall"),
    ("hosts deny", "who may come is who has a key; keep others out with the firewall"),
    ("uid", "the agent writes as the user that it runs as; as root it keeps owners"),
    ("gid", "the agent writes as the user that it runs as; as root it keeps owners"),
    ("pre-xfer exec", "a [[hook]] runs after changes were applied"),
    ("post-xfer exec", "a [[hook]] with on = [\"applied\"] takes its place"),
    ("incoming chmod", "modes are kept as they are sent"),
];

type Section = BTreeMap<String, String>;

pub(super) fn convert(text: &str) -> Result<Draft, String> {
    let mut draft = Draft { listen: true, ..Draft::default() };
    let (globals, modules) = sections(text, &mut draft.notes)?;
    for (name, module) in &modules {
        let get = |key: &str| module.get(key).or_else(|| globals.get(key)).map(String::as_str);
        let mut tree = Tree::new(&draft, get("path").unwrap_or_default());
        tree.name.clone_from(name);
        if crate::config::check_name(name).is_err() {
            tree.refused.push(format!("[{name}]: a tree's name has only A-Z a-z 0-9 . _ -"));
        }
        if get("path").is_none() {
            tree.refused.push(format!("[{name}] has no path"));
        }
        let receives = get("read only").is_some_and(|value| !truth(value));
        // A daemon's module never changes those who push to it or fetch from it.
        tree.keys.push(("direction", if receives { "receive" } else { "send" }.into()));
        if let Some(comment) = get("comment") {
            tree.note(format!("[{name}] {comment}"));
        }
        for pattern in get("exclude").iter().flat_map(|text| text.split_whitespace()) {
            match pattern::of_rsync(pattern) {
                Ok(rule) => tree.ignore.push(rule),
                Err(why) => tree.refused.push(format!("exclude '{pattern}': {why}")),
            }
        }
        if let Some(file) = get("exclude from") {
            super::rsync::excludes_of(file, &mut tree);
        }
        for key in ["include", "include from", "filter"] {
            if get(key).is_some() {
                tree.refused.push(format!("'{key}': write its rules as gitignore rules in 'ignore'"));
            }
        }
        for (key, said) in SAID {
            if let Some(value) = get(key) {
                tree.note(format!("{key} = {value}: {said}"));
            }
        }
        draft.add(tree);
    }
    if modules.is_empty() {
        return Err("there is no [module] in it".into());
    }
    draft.notes.push("those who push here today go on with their own [[peer]] of this node's address and key".into());
    Ok(draft)
}

fn truth(value: &str) -> bool {
    ["yes", "true", "1", "on"].contains(&value.to_ascii_lowercase().as_str())
}

/// Splits the file as the daemon does: names without regard to case and spaces, `\` joins lines.
fn sections(text: &str, notes: &mut Vec<String>) -> Result<(Section, Vec<(String, Section)>), String> {
    let (mut globals, mut modules) = (Section::new(), Vec::<(String, Section)>::new());
    let mut whole = String::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(head) = line.strip_suffix('\\') {
            whole.push_str(head);
            continue;
        }
        whole.push_str(line);
        let line = std::mem::take(&mut whole);
        let line = line.trim();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let name = name.trim().to_owned();
            if !name.eq_ignore_ascii_case("global") {
                modules.push((name, Section::new()));
            }
        } else if line.starts_with('&') {
            return Err(format!("line {}: {line}: put what it includes into one file first", at + 1));
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
            let section = modules.last_mut().map_or(&mut globals, |(_, section)| section);
            section.insert(key, value.trim().to_owned());
        } else {
            // As the daemon does; many configs have "ignore errors" so.
            notes.push(format!("line {}: '{line}' has no value: the daemon passes over it, too", at + 1));
        }
    }
    Ok((globals, modules))
}
