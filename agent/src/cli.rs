//! The commands that need neither an agent nor a tree: `init` and `key`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::config::{self, Config};
use crate::failure::Failure;
use crate::keys::HostKey;

/// What `pleach init` is told.
#[derive(Clone, Debug, Default)]
pub struct Init {
    /// The config file to write.
    pub file: Option<PathBuf>,
    /// The node's name.
    pub name: Option<String>,
    /// Trees, each `NAME=DIR`.
    pub trees: Vec<String>,
    /// Where to listen.
    pub listen: Option<String>,
}

/// Writes to standard output; a reader that is gone is no failure.
///
/// # Errors
/// What else keeps it from being written.
pub fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::done("writing to standard output", error.to_string()))
        }
        _ => Ok(()),
    }
}

/// Writes a commented config and the host key, and prints what the other side's config needs.
///
/// # Errors
/// What is wrong with the arguments, or could not be written. A config that is there stays.
pub fn init(args: &Init) -> Result<(), Failure> {
    let file = args.file.clone().unwrap_or_else(config::default_file);
    let text = config_text(args)?;
    let parsed = config::parse(&file, &text).map_err(|errors| config_failure(&errors))?;
    let what = format!("init: writing {}", file.display());
    let failed = |error: io::Error| Failure::done(&what, error.to_string());
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    let mut out = match OpenOptions::new().write(true).create_new(true).open(&file) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Failure::done(&what, "it is there already").help("edit it, or name another with --config FILE"));
        }
        other => other.map_err(failed)?,
    };
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(failed)?;
    let key = HostKey::load_or_create(&parsed.state, &parsed.name)
        .map_err(|error| Failure::done("init: the host key", error.to_string()))?;
    let port = parsed.listen.as_deref().and_then(|l| l.rsplit(':').next()).unwrap_or("8730").to_owned();
    let address = match parsed.listen {
        Some(_) => format!("address = \"pleach://{}:{port}\"\n", config::hostname()),
        None => String::new(),
    };
    let peer = format!("[[peer]]\nname = \"{}\"\n{address}key = \"{}\"\n", parsed.name, key.public_line(&parsed.name));
    print(&format!("# wrote {}; the other side's config needs:\n{peer}", file.display()))
}

fn config_text(args: &Init) -> Result<String, Failure> {
    let name = args.name.clone().unwrap_or_else(config::hostname);
    config::check_name(&name).map_err(|why| Failure::usage("init --name", why))?;
    let mut text = format!("[node]\nname = {name:?}\n");
    match &args.listen {
        Some(listen) => text.push_str(&format!("listen = {listen:?}\n")),
        None => text.push_str("# listen = \"0.0.0.0:8730\"      # the SSH endpoint; leave out to only dial\n"),
    }
    text.push_str(&format!("# state = {:?}\n", config::default_state().display().to_string()));
    text.push_str("# log = \"info\"                  # error | warn | info | debug | trace\n");
    for tree in &args.trees {
        let Some((name, dir)) = tree.split_once('=') else {
            return Err(Failure::usage("init --tree", format!("'{tree}' is not NAME=DIR")));
        };
        let dir = std::path::absolute(dir).map_err(|error| Failure::usage("init --tree", error.to_string()))?;
        let Some(dir) = dir.to_str() else {
            return Err(Failure::usage("init --tree", "the directory's name is not UTF-8"));
        };
        text.push_str(&format!("\n[[tree]]\nname = {name:?}\npath = {dir:?}\n"));
        text.push_str(
            "# ignore = [\"*.swp\", \"/cache/\"] # gitignore syntax\n# rescan = \"24h\"\n# history = \"7d\"\n",
        );
    }
    text.push_str("\n# [[peer]]\n# name = \"web2\"\n# address = \"pleach://web2:8730\"\n");
    text.push_str("# key = \"ssh-ed25519 AAAA...\"  # what `pleach key` prints there\n# trees = [\"www\"]\n");
    Ok(text)
}

fn config_failure(errors: &[config::ConfigError]) -> Failure {
    let mut lines = errors.iter().map(ToString::to_string);
    let failure = Failure::usage("config", lines.next().unwrap_or_default());
    lines.fold(failure, Failure::help)
}

/// Reads the config that a command runs with.
pub(crate) fn load(file: Option<&Path>) -> Result<Config, Failure> {
    let file = file.map_or_else(config::default_file, Path::to_path_buf);
    config::load(&file).map_err(|errors| match errors.first() {
        Some(error) if error.line == 0 => {
            Failure::usage("config", error.to_string()).help("make one with: pleach init")
        }
        _ => config_failure(&errors),
    })
}

/// Prints this node's public key, making it where there is none; `new` replaces it.
///
/// # Errors
/// Errors in the config, or a key that cannot be used.
pub fn key(file: Option<&Path>, new: bool) -> Result<(), Failure> {
    let config = load(file)?;
    let failed = |error: crate::keys::KeyError| Failure::done("key", error.to_string());
    let key = if new {
        let stamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        HostKey::replace(&config.state, &config.name, stamp).map_err(failed)?.0
    } else {
        HostKey::load_or_create(&config.state, &config.name).map_err(failed)?
    };
    print(&format!("{}\n", key.public_line(&config.name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_init_writes_reads_as_it_was_meant() {
        let args = Init {
            file: None,
            name: Some("web1".into()),
            trees: vec!["www=/srv/www".into(), "data=/data with space".into()],
            listen: Some("[::]:8730".into()),
        };
        let config = config::parse(Path::new("p.toml"), &config_text(&args).unwrap()).unwrap();
        assert_eq!((config.name.as_str(), config.listen.as_deref()), ("web1", Some("[::]:8730")));
        assert_eq!(config.trees[1].path, Path::new("/data with space"));
    }
}
