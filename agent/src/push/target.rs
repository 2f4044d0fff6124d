//! Where a legacy rsync daemon takes a tree: `rsync://[user@]host[:port]/module[/path]`.

use std::fmt;

/// The port of an address that names none.
const PORT: u16 = 873;

/// A place in a daemon's module.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    user: Option<String>,
    /// An IPv6 address stands in brackets.
    host: String,
    port: u16,
    module: String,
    /// Beneath the module, without slashes around it; may be empty.
    path: String,
}

impl Target {
    /// Host and port, as they are resolved.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The module.
    pub(crate) fn module(&self) -> &str {
        &self.module
    }

    /// Reads an address.
    ///
    /// # Errors
    /// What is wrong, and what to say instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("'{text}' is no address of an rsync daemon: {why}; say rsync://USER@HOST/MODULE");
        let rest = text.strip_prefix("rsync://").ok_or_else(|| wrong("it does not begin with rsync://"))?;
        let (place, path) = rest.split_once('/').ok_or_else(|| wrong("it names no module"))?;
        let (user, host) = match place.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, place),
        };
        if user.is_some_and(|user| user.is_empty() || user.contains([':', '/'])) {
            return Err(wrong("its user is empty or has a ':' (the password goes into password_file)"));
        }
        let (host, port) = host_and_port(host).map_err(&wrong)?;
        let path = path.trim_end_matches('/');
        let (module, beneath) = path.split_once('/').unwrap_or((path, ""));
        let beneath = beneath.trim_matches('/');
        if module.is_empty() {
            return Err(wrong("it names no module"));
        }
        if path.chars().any(char::is_control) || path.split('/').any(|part| part == "..") {
            return Err(wrong("its path has '..' or control characters"));
        }
        Ok(Self { user: user.map(str::to_owned), host, port, module: module.to_owned(), path: beneath.to_owned() })
    }
}

fn host_and_port(text: &str) -> Result<(String, u16), &'static str> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (format!("[{host}]"), port),
            _ => return Err("what stands in brackets is no IPv6 address"),
        },
        None => {
            let host = text.split(':').next().unwrap_or_default();
            if host.is_empty() || !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
                return Err("its host is none (IPv6 in brackets)");
            }
            (host.to_owned(), &text[host.len()..])
        }
    };
    match (port.is_empty(), port.strip_prefix(':').map(str::parse::<u16>)) {
        (true, _) => Ok((host, PORT)),
        (false, Some(Ok(port @ 1..))) => Ok((host, port)),
        _ => Err("its port is none"),
    }
}

impl fmt::Display for Target {
    /// As rsync takes it, with a slash at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("rsync://")?;
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        write!(f, "{}:{}/{}/", self.host, self.port, self.module)?;
        if !self.path.is_empty() {
            write!(f, "{}/", self.path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_rsync_takes_them() {
        for (text, want) in [
            ("rsync://u@h/m", "rsync://u@h:873/m/"),
            ("rsync://h:8730/m/", "rsync://h:8730/m/"),
            ("rsync://u@[2001:db8::7]:874/m/a/b c/", "rsync://u@[2001:db8::7]:874/m/a/b c/"),
            ("rsync://a@b@h/m/x", "rsync://a@b@h:873/m/x/"),
        ] {
            assert_eq!(Target::parse(text).map(|t| t.to_string()).as_deref(), Ok(want), "{text}");
        }
        for text in [
            "rsync://h",
            "rsync://h/",
            "rsync:///m",
            "rsync://@h/m",
            "rsync://u:p@h/m",
            "rsync://::1/m",
            "rsync://h:0/m",
            "rsync://h:x/m",
            "rsync://h/m/../n",
            "ssh://h/m",
            "u@h::m",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }
}
