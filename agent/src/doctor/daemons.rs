//! Legacy rsync daemons: how old they are, and how little they protect, as far as a stranger is told.
//!
//! A daemon greets with the version of its protocol, and answers the name of a module with whether it wants a password.
//! Nothing else of its set-up can be seen from here: neither `use chroot` nor `read only`, `hosts allow` only where it
//! shuts this machine out.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};

use super::Check;
use super::peers::PATIENCE;
use crate::config::{Config, PeerConfig};
use crate::push::Target;

/// The protocol of rsync 3.4 and 3.5: the greeting tells these two apart from older ones, not from each other.
const PROTOCOL_RECENT: u32 = 32;
/// The longest greeting, and message of the day, that is read, in bytes.
const SAID_BYTES_MAX: u64 = 16 * 1024;

/// What a daemon says to somebody without a password.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Said {
    protocol: u32,
    /// Whether the module wants a password; none where the daemon says neither.
    asks: Result<bool, String>,
}

pub(super) fn look(config: &Config) -> Vec<Check> {
    let daemon = |peer: &PeerConfig| {
        let push = peer.push.as_ref().or_else(|| peer.fallback.as_ref().map(|fallback| &fallback.push));
        push.map(|push| (peer.name.clone(), push.target.clone()))
    };
    config
        .peers
        .iter()
        .filter_map(daemon)
        .flat_map(|(name, target)| checks(&format!("daemon of {name}"), &target))
        .collect()
}

fn checks(subject: &str, target: &Target) -> Vec<Check> {
    let said = match ask(target) {
        Ok(said) => said,
        Err(error) => {
            let place = target.place();
            let mend = format!("on its host: systemctl start rsync; from here: rsync rsync://{place}/");
            return vec![Check::finding(subject, format!("{place} does not answer as an rsync daemon: {error}"), mend)];
        }
    };
    let mut checks = vec![match said.protocol {
        PROTOCOL_RECENT.. => {
            let said =
                format!("its protocol is {}: rsync 3.4 or newer (which of them, it does not say)", said.protocol);
            Check::good(subject, said)
        }
        older => Check::finding(
            subject,
            format!(
                "its protocol is {older}: it is older than rsync 3.4, and so than 3.5.0, with faults that strangers can use"
            ),
            "on its host: apt-get update && apt-get install --only-upgrade rsync",
        ),
    }];
    let module = target.module();
    match said.asks {
        Ok(true) => checks.push(Check::good(subject, format!("module {module} asks for a password"))),
        Ok(false) => checks.push(Check::finding(
            subject,
            format!("module {module} asks nobody for a password: whoever reaches the daemon may use it"),
            format!("in its rsyncd.conf, [{module}]: auth users, secrets file and hosts allow; here: the user in the address, password_file"),
        )),
        Err(why) => checks.push(Check::finding(
            subject,
            format!("module {module}: {why}"),
            format!("in its rsyncd.conf: [{module}], and hosts allow for this machine"),
        )),
    }
    checks
}

/// Talks to a daemon up to the point where a password would be needed.
fn ask(target: &Target) -> io::Result<Said> {
    let mut last = io::Error::other("the name has no address");
    for address in target.place().to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                return converse(&stream, &stream, target.module());
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn converse(from: impl Read, mut to: impl Write, module: &str) -> io::Result<Said> {
    let mut lines = BufReader::new(from.take(SAID_BYTES_MAX)).split(b'\n');
    let mut next = || -> io::Result<String> {
        let line = lines.next().unwrap_or_else(|| Err(io::Error::other("it ends the conversation")))?;
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    };
    let greeting = next()?;
    let version = greeting.strip_prefix("@RSYNCD: ").unwrap_or_default();
    let digits = version.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    let protocol = digits.parse().map_err(|_| io::Error::other("it greets in no way that rsync does"))?;
    // In its own words: it answers in those.
    to.write_all(format!("{greeting}\n{module}\n").as_bytes())?;
    loop {
        // What does not begin so is its message of the day.
        let line = next()?;
        let asks = match (line.strip_prefix("@RSYNCD: "), line.strip_prefix("@ERROR: ")) {
            (Some("OK"), _) => Ok(false),
            (Some(answer), _) if answer.starts_with("AUTHREQD") => Ok(true),
            (_, Some(why)) => Err(why.to_owned()),
            _ => continue,
        };
        return Ok(Said { protocol, asks });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Result<Said, String> {
        let mut sent = Vec::new();
        let said = converse(text.as_bytes(), &mut sent, "www").map_err(|error| error.to_string());
        if said.is_ok() {
            assert!(sent.ends_with(b"\nwww\n"), "{}", String::from_utf8_lossy(&sent));
        }
        said
    }

    #[test]
    fn what_a_daemon_says_is_read() {
        for (text, want) in [
            ("@RSYNCD: 32.0 sha512 md5\n@RSYNCD: AUTHREQD abc\n", Ok(Said { protocol: 32, asks: Ok(true) })),
            ("@RSYNCD: 31.0\nWelcome\n\n@RSYNCD: OK\n", Ok(Said { protocol: 31, asks: Ok(false) })),
            (
                "@RSYNCD: 29\n@ERROR: Unknown module 'www'\n",
                Ok(Said { protocol: 29, asks: Err("Unknown module 'www'".into()) }),
            ),
            ("HTTP/1.1 400 Bad Request\n", Err("it greets in no way that rsync does".to_owned())),
            ("@RSYNCD: 31.0\nWelcome\n", Err("it ends the conversation".to_owned())),
            ("@RSYNCD: 99999999999\n", Err("it greets in no way that rsync does".to_owned())),
            ("", Err("it ends the conversation".to_owned())),
        ] {
            assert_eq!(said(text), want, "{text:?}");
        }
        let endless = format!("@RSYNCD: 31.0\n{}", "x\n".repeat(100_000));
        assert_eq!(said(&endless), Err("it ends the conversation".to_owned()), "no more is read than that");
    }

    #[test]
    fn an_old_daemon_without_a_password_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target::parse(&format!("rsync://{}/www", listener.local_addr().unwrap())).unwrap();
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"@RSYNCD: 31.0\n").unwrap();
            let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
            assert_eq!(asked.nth(1).unwrap().unwrap(), "www");
            stream.write_all(b"@RSYNCD: OK\n").unwrap();
        });
        let found = checks("daemon of w", &target);
        daemon.join().unwrap();
        assert!(found[0].said.contains("older than rsync 3.4") && found[0].mend.is_some(), "{found:?}");
        assert!(found[1].said.contains("asks nobody for a password") && found[1].mend.is_some(), "{found:?}");
    }
}
