//! One run of a hook's POST: HTTP/1.1 as far as a hook needs it, one connection a run. Source: RFC 9110, 9112.

use std::fmt;
use std::io;

use pleach_store::rows::HookOn;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::HookSetup;
use crate::control::path_field;
use crate::owner::HookBatch;

/// Bytes of an answer's head; what follows is not read.
const HEAD_BYTES_MAX: u64 = 64 * 1024;

/// An `http://` address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Url {
    /// The host as it is dialled, IPv6 without brackets.
    host: String,
    port: u16,
    /// Host and port as they were written.
    authority: String,
    /// Path and query.
    target: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.target)
    }
}

impl Url {
    /// Reads `http://HOST[:PORT][/PATH][?QUERY]`, IPv6 in brackets.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no address: say http://HOST[:PORT]/PATH, IPv6 in brackets");
        if text.starts_with("https://") {
            return Err("https:// is not in this version of pleach".to_owned());
        }
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        if !rest.bytes().all(|b| b.is_ascii_graphic()) || rest.contains('#') {
            return Err(wrong());
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err("a user and password in the address are not in this version of pleach".to_owned());
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6.split_once(']').ok_or_else(wrong)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
                (host, port)
            }
            None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
        };
        let named = |b: u8| b.is_ascii_alphanumeric() || b"._-:".contains(&b);
        let port = match port.strip_prefix(':').map(str::parse::<u16>) {
            None if port.is_empty() => 80,
            Some(Ok(port @ 1..)) => port,
            _ => return Err(wrong()),
        };
        if host.is_empty() || !host.bytes().all(named) {
            return Err(wrong());
        }
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { host: host.to_owned(), port, authority: authority.to_owned(), target })
    }
}

/// What is posted. A path that is not UTF-8 is `{"path_b64": ...}` in place of a text.
pub(super) fn body(setup: &HookSetup, on: HookOn, batch: &HookBatch) -> String {
    let path = |bytes: &[u8]| match path_field("path", bytes) {
        (key, text) if key == "path" => text,
        (key, text) => Value::Object([(key, text)].into_iter().collect()),
    };
    let paths: Vec<Value> = batch.paths.iter().map(|p| path(p.as_bytes())).collect();
    let tree = &setup.config.tree;
    json!({"node": setup.node, "tree": tree, "on": on.word(), "seq": [batch.first, batch.last], "paths": paths})
        .to_string()
}

/// Posts it.
///
/// # Errors
/// Why it did not go well: another status than 2xx, too.
pub(super) async fn post(url: &Url, body: &str) -> Result<(), String> {
    let status = ask(url, body).await.map_err(|error| format!("{}: {error}", url.authority))?;
    if status.code.starts_with('2') { Ok(()) } else { Err(format!("it answered {} {}", status.code, status.words)) }
}

struct Status {
    code: String,
    words: String,
}

async fn ask(url: &Url, body: &str) -> io::Result<Status> {
    let stream = TcpStream::connect((url.host.as_str(), url.port)).await?;
    let (read, mut write) = stream.into_split();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: pleach/{}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        url.target,
        url.authority,
        env!("CARGO_PKG_VERSION"),
        body.len()
    );
    let say = async {
        write.write_all(head.as_bytes()).await?;
        write.write_all(body.as_bytes()).await?;
        // Held until the answer is there: some take an end of our side for one of the request.
        Ok::<_, io::Error>(write)
    };
    let (said, answered) = tokio::join!(say, answer(BufReader::new(read)));
    // A server may answer, and close, before it has read all.
    match (answered, said) {
        (Ok(status), _) => Ok(status),
        (Err(_), Err(error)) | (Err(error), Ok(_)) => Err(error),
    }
}

async fn answer(reader: impl AsyncBufReadExt + Unpin) -> io::Result<Status> {
    let mut head = reader.take(HEAD_BYTES_MAX);
    let wrong = || io::Error::other("its answer is not HTTP");
    loop {
        let line = read_line(&mut head).await?.ok_or_else(|| io::Error::other("it closed without an answer"))?;
        let (version, rest) = line.split_once(' ').ok_or_else(wrong)?;
        let (code, words) = rest.split_once(' ').unwrap_or((rest, ""));
        if !version.starts_with("HTTP/1.") || code.len() != 3 || !code.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong());
        }
        let words = words.chars().filter(|c| !c.is_control()).take(100).collect();
        if !code.starts_with('1') {
            return Ok(Status { code: code.to_owned(), words });
        }
        // Only said meanwhile: the answer follows its fields.
        while !read_line(&mut head).await?.ok_or_else(wrong)?.is_empty() {}
    }
}

async fn read_line(reader: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line).await? == 0 || line.last() != Some(&b'\n') {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_or_refused() {
        for (text, host, port, target) in [
            ("http://h", "h", 80, "/"),
            ("http://127.0.0.1:9000/purge", "127.0.0.1", 9000, "/purge"),
            ("http://[::1]:1?x=/y", "::1", 1, "/?x=/y"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.host.as_str(), url.port, url.target.as_str()), (host, port, target), "{text}");
        }
        for wrong in
            ["h", "ftp://h/", "http://", "http://h:0/", "http://h:x", "http://a b/", "http://[::1", "http://h/\r\nX: y"]
        {
            assert!(Url::parse(wrong).unwrap_err().contains("no address"), "{wrong}");
        }
        assert!(Url::parse("https://h/").unwrap_err().contains("not in this version"));
        assert!(Url::parse("http://u:p@h/").unwrap_err().contains("not in this version"));
    }

    #[tokio::test]
    async fn answers_are_read_or_refused() {
        for (text, want) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Ok("204")),
            ("HTTP/1.0 500\r\n", Ok("500")),
            ("HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n", Ok("200")),
            ("SSH-2.0-x\r\n", Err("its answer is not HTTP")),
            ("HTTP/1.1 2\r\n", Err("its answer is not HTTP")),
            ("HTTP/1.1 100\r\nX: y\r\n", Err("its answer is not HTTP")),
            ("", Err("it closed without an answer")),
            ("HTTP/1.1 200", Err("it closed without an answer")),
        ] {
            let got = answer(text.as_bytes()).await;
            let got = got.map(|status| status.code).map_err(|error| error.to_string());
            assert_eq!(got, want.map(str::to_owned).map_err(str::to_owned), "{text:?}");
        }
    }
}
