//! `[[hook]]`: what runs for what happened in a tree.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use pleach_store::ignore::IgnoreRules;
use pleach_store::rows::HookOn;
use toml::de::DeTable;

use super::reader::{Reader, Value, nearest};
use super::{Config, duration};
use crate::hook::{HookConfig, HookRun, Url};

impl Reader<'_> {
    pub(super) fn hook(&mut self, at: &Range<usize>, table: &DeTable<'_>, config: &mut Config) {
        let keys = self.keys("hook", table);
        let errors = self.errors.len();
        let mut hook = HookConfig {
            tree: String::new(),
            on: BTreeSet::from([HookOn::Applied]),
            paths: Vec::new(),
            run: HookRun::Command(Vec::new()),
            debounce: Duration::ZERO,
            timeout: Duration::from_secs(60),
        };
        if !keys.contains_key("tree") {
            self.error(at, "tree is missing in [[hook]]".to_owned());
        }
        for (key, value) in &keys {
            match key.as_str() {
                "tree" => {
                    let named = |text: &str| match config.trees.iter().any(|tree| tree.name == text) {
                        true => Ok(text.to_owned()),
                        false => Err(format!("there is no [[tree]] named '{text}'")),
                    };
                    hook.tree = self.checked("tree", value, named).unwrap_or_default();
                }
                "on" => hook.on = self.hook_on(value),
                "paths" => hook.paths = self.hook_paths(value),
                "debounce" => hook.debounce = self.checked("debounce", value, duration).unwrap_or_default(),
                "timeout" => {
                    let some = |text: &str| match duration(text)? {
                        Duration::ZERO => Err(format!("'{text}' leaves no time")),
                        time => Ok(time),
                    };
                    hook.timeout = self.checked("timeout", value, some).unwrap_or(hook.timeout);
                }
                _ => {}
            }
        }
        self.hook_run(at, &keys, &mut hook);
        // One that is wrong is said to be so, not to be there twice.
        if self.errors.len() == errors && config.hooks.iter().any(|h| h.tree == hook.tree && h.id() == hook.id()) {
            self.error(at, "this [[hook]] is there twice".to_owned());
        }
        config.hooks.push(hook);
    }

    fn hook_on(&mut self, value: &Value<'_>) -> BTreeSet<HookOn> {
        let words = self.texts("on", value);
        let known = HookOn::ALL.map(HookOn::word);
        let all = known.join(", ");
        let mut on = BTreeSet::new();
        for word in &words {
            match HookOn::ALL.into_iter().find(|on| on.word() == word) {
                Some(found) => drop(on.insert(found)),
                None if word == "held" => {
                    self.error(&value.span(), "on: 'held' is not in this version of pleach".to_owned());
                }
                None => {
                    let near = nearest(word, &known);
                    self.error(&value.span(), format!("on: '{word}' is none of {all}{near}"));
                }
            }
        }
        if words.is_empty() {
            self.error(&value.span(), format!("on: say at least one of {all}"));
        }
        on
    }

    fn hook_paths(&mut self, value: &Value<'_>) -> Vec<String> {
        let paths = self.texts("paths", value);
        match IgnoreRules::new(&paths) {
            Err(error) => {
                self.error(&value.span(), format!("paths: pattern {}, {:?}: {}", error.number, error.line, error.why));
            }
            Ok(rules) if rules.has_none() => {
                self.error(&value.span(), "paths: there is no pattern; leave it out for all paths".to_owned());
            }
            Ok(_) => {}
        }
        paths
    }

    fn hook_run(&mut self, at: &Range<usize>, keys: &BTreeMap<String, &Value<'_>>, hook: &mut HookConfig) {
        match (keys.get("command"), keys.get("url")) {
            (Some(_), Some(url)) => {
                self.error(&url.span(), "command and url in one [[hook]]: make a [[hook]] for each".to_owned());
            }
            (None, None) => self.error(at, "command or url is missing in [[hook]]".to_owned()),
            (Some(command), None) => {
                let line = self.texts("command", command);
                if let Err(why) = check_command(&line) {
                    self.error(&command.span(), format!("command: {why}"));
                }
                hook.run = HookRun::Command(line);
            }
            (None, Some(url)) => {
                if let Some(url) = self.checked("url", url, Url::parse) {
                    hook.run = HookRun::Url(url);
                }
            }
        }
    }
}

/// A program is an absolute path, which may be on a disk that is mounted later, or a name on `PATH`: a relative path
/// would be looked for in the tree.
fn check_command(line: &[String]) -> Result<(), String> {
    if line.iter().any(|word| word.contains('\0')) {
        return Err("a word holds a NUL".to_owned());
    }
    match line.first().map_or("", String::as_str) {
        "" => Err("it is empty: say [\"/path/of/program\", \"argument\"]".to_owned()),
        program if program.starts_with('/') => Ok(()),
        program if program.contains('/') => {
            Err(format!("'{program}' is relative: say an absolute path, or a name on PATH"))
        }
        program => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let there = std::env::split_paths(&path).any(|dir| is_program(&dir.join(program)));
            if there { Ok(()) } else { Err(format!("there is no program '{program}' on PATH")) }
        }
    }
}

fn is_program(file: &Path) -> bool {
    std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const TREE: &str = "[[tree]]\nname=\"t\"\npath=\"/t\"\n";

    #[test]
    fn a_hook_is_read_with_its_defaults() {
        let text = format!(
            "{TREE}[[hook]]\ntree=\"t\"\ncommand=[\"sh\",\"-c\",\"cat\"]\n\
             [[hook]]\ntree=\"t\"\non=[\"error\",\"sent\"]\npaths=[\"*.html\",\"!draft*\"]\nurl=\"http://h:9/x\"\ndebounce=\"2s\"\ntimeout=\"5s\"\n"
        );
        let hooks = parse(Path::new("p.toml"), &text).unwrap().hooks;
        assert_eq!((&hooks[0].on, hooks[0].timeout), (&BTreeSet::from([HookOn::Applied]), Duration::from_secs(60)));
        assert_eq!((hooks[0].run.to_string().as_str(), hooks[0].debounce), ("sh -c cat", Duration::ZERO));
        assert_eq!((hooks[1].run.to_string().as_str(), hooks[1].debounce), ("http://h:9/x", Duration::from_secs(2)));
        assert_eq!(hooks[1].on, BTreeSet::from([HookOn::Sent, HookOn::Error]));
        let other = HookConfig { timeout: Duration::ZERO, debounce: Duration::ZERO, ..hooks[1].clone() };
        assert!(hooks[0].id() != hooks[1].id() && other.id() == hooks[1].id());
    }

    #[test]
    fn errors_in_hooks_are_precise() {
        let good = "command=[\"sh\"]";
        for (lines, want) in [
            ("command=[\"sh\"]", "line 4: tree is missing in [[hook]]"),
            ("tree=\"u\"\ncommand=[\"sh\"]", "line 5: tree: there is no [[tree]] named 'u'"),
            ("tree=\"t\"", "line 4: command or url is missing in [[hook]]"),
            (
                "tree=\"t\"\ncommand=[\"sh\"]\nurl=\"http://h\"",
                "line 7: command and url in one [[hook]]: make a [[hook]] for each",
            ),
            ("tree=\"t\"\ncommand=[]", "line 6: command: it is empty: say [\"/path/of/program\", \"argument\"]"),
            ("tree=\"t\"\ncommand=\"sh\"", "line 6: command must be a list of texts: [\"...\"]"),
            (
                "tree=\"t\"\ncommand=[\"bin/x\"]",
                "line 6: command: 'bin/x' is relative: say an absolute path, or a name on PATH",
            ),
            (
                "tree=\"t\"\ncommand=[\"no-such-program\"]",
                "line 6: command: there is no program 'no-such-program' on PATH",
            ),
            ("tree=\"t\"\nurl=\"https://h/\"", "line 6: url: https:// is not in this version of pleach"),
            ("tree=\"t\"\nurl=\"h\"", "line 6: url: 'h' is no address: say http://HOST[:PORT]/PATH, IPv6 in brackets"),
            ("tree=\"t\"\non=[\"held\"]\nGOOD", "line 6: on: 'held' is not in this version of pleach"),
            (
                "tree=\"t\"\non=[\"aplied\"]\nGOOD",
                "line 6: on: 'aplied' is none of applied, sent, conflict, error; did you mean 'applied'?",
            ),
            ("tree=\"t\"\non=[]\nGOOD", "line 6: on: say at least one of applied, sent, conflict, error"),
            ("tree=\"t\"\npaths=[\"# x\"]\nGOOD", "line 6: paths: there is no pattern; leave it out for all paths"),
            ("tree=\"t\"\ntimeout=\"0s\"\nGOOD", "line 6: timeout: '0s' leaves no time"),
            ("tree=\"t\"\ncomand=[]\nGOOD", "line 6: unknown key 'comand' in [[hook]]; did you mean 'command'?"),
            ("tree=\"t\"\nGOOD\n[[hook]]\ntree=\"t\"\nGOOD", "line 7: this [[hook]] is there twice"),
        ] {
            let text = format!("{TREE}[[hook]]\n{}\n", lines.replace("GOOD", good));
            let found = parse(Path::new("p.toml"), &text).unwrap_err();
            assert_eq!(found[0].to_string(), format!("p.toml, {want}"), "{text}");
        }
        let bad = format!("{TREE}[[hook]]\ntree=\"t\"\npaths=[\"a\",\"[z-a]\"]\ncommand=[\"sh\"]\n");
        let found = parse(Path::new("p.toml"), &bad).unwrap_err()[0].to_string();
        assert!(found.starts_with("p.toml, line 6: paths: pattern 2, \"[z-a]\": "), "{found}");
    }
}
