//! Finds the running agent: by `[node] state`, whatever else is wrong with the config.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::config;
use crate::failure::Failure;

/// The agent's state directory.
///
/// # Errors
/// A file that was named cannot be read, or its `state` can be nobody's: asking another agent then would be worse.
pub(super) fn state(file: Option<&Path>) -> Result<PathBuf, Failure> {
    let Some(text) = text(file)? else { return Ok(config::default_state()) };
    let Some(state) = node_value(&text, "state") else { return Ok(config::default_state()) };
    let path = PathBuf::from(&state);
    if path.is_absolute() {
        return Ok(path);
    }
    Err(Failure::usage("config", format!("state: '{}' is not an absolute path", state.escape_debug())))
}

/// The level that an agent logs with: the config's, as far as it can be read.
#[must_use]
pub fn log_level(file: Option<&Path>) -> &'static str {
    let text = text(file).ok().flatten().unwrap_or_default();
    let named = node_value(&text, "log");
    let known = ["error", "warn", "info", "debug", "trace"].into_iter();
    known.into_iter().find(|level| named.as_deref() == Some(level)).unwrap_or("info")
}

/// The config's text; `None` where there is none and none was named.
fn text(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let path = file.map_or_else(config::default_file, Path::to_path_buf);
    match fs::read(&path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if file.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::usage("config", format!("{}: {error}", path.display()))),
    }
}

/// A text in `[node]`, from whatever the parser makes of the file.
fn node_value(text: &str, key: &str) -> Option<String> {
    let (document, _errors) = DeTable::parse_recoverable(text);
    let DeValue::Table(node) = document.get_ref().get("node")?.get_ref() else { return None };
    match node.get(key)?.get_ref() {
        DeValue::String(value) => Some(value.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_found_whatever_else_is_wrong() {
        for text in [
            "[node]\nname = \"a\"\nstate = \"/s\"\n",
            "[node]\nnonsense = 1\nstate = \"/s\"\n[[tree]]\npath = 7\n",
            "[node]\nstate = \"/s\"\n[[tree]\nname = \"x\"\n",
            "[node]\nname = \nstate = \"/s\"\n",
            "[node]\nname = \"open\nstate = \"/s\"\nlisten = [\n",
            "[node]\nstate = \"/s\"\n\n[[tree]]\nname = \"a\" \"b\"\n= = =\n",
        ] {
            assert_eq!(node_value(text, "state").as_deref(), Some("/s"), "{text}");
        }
        assert_eq!(node_value("[node]\nname = \"n\"\n[[tree]]\nstate = \"/t\"\n", "state"), None);
        assert_eq!(node_value("[nodes]\nstate = \"/s\"\n", "state"), None);
    }

    #[test]
    fn a_state_that_can_be_nobodys_is_not_replaced_by_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        let failure = state(Some(&file)).unwrap_err();
        assert!(failure.code == 2 && failure.to_string().contains("p.toml: No such file"), "{failure}");
        fs::write(&file, "[node]\nstate = \"s\"\n").unwrap();
        assert_eq!(state(Some(&file)).unwrap_err().to_string(), "pleach: config: state: 's' is not an absolute path");
        fs::write(&file, "[node]\nname = \"n\"\n").unwrap();
        assert_eq!(state(Some(&file)).unwrap(), config::default_state());
        assert_eq!(log_level(Some(&file)), "info");
        fs::write(&file, "[node]\nlog = \"debug\"\nnonsense = 1\n").unwrap();
        assert_eq!(log_level(Some(&file)), "debug");
    }
}
