//! `pleach status` for people, and what `--check` finds wrong. Source of the shape: CONTRACT.md.

use serde_json::Value;

use super::show::{self, Cell, Style};

/// Each tree and each peer at a glance, then what needs words.
pub(super) fn text(status: &Value, style: Style) -> String {
    let mut text = format!(
        "{}  {}  pleach {}, up {}\n",
        style.head(&show::field(status, "node")),
        show::field(status, "id"),
        show::field(status, "version"),
        seconds(&status["uptime_s"]),
    );
    if let Some(error) = status["config_error"].as_str() {
        text += &style.bad("config: not taken over, the one before is in use:");
        text.push('\n');
        for line in error.lines() {
            text += &format!("  {}\n", show::escaped(line.as_bytes()));
        }
    }
    text.push('\n');
    text += &trees(status, style);
    if !list(status, "peers").is_empty() {
        text.push('\n');
        text += &peers(status, style);
    }
    if !list(status, "hooks").is_empty() {
        text.push('\n');
        text += &hooks(status, style);
    }
    let notes = notes(status);
    if !notes.is_empty() {
        text.push('\n');
        text.extend(notes.into_iter().map(|note| note + "\n"));
    }
    text
}

/// Why not all is in sync; empty where it is.
pub(super) fn wrong(status: &Value) -> Vec<String> {
    if !status.is_object() {
        return vec!["the agent sent no status".to_owned()];
    }
    let mut reasons = Vec::new();
    for peer in list(status, "peers") {
        if peer["state"] != "connected" {
            let state = format!("peer {} is {}", show::field(peer, "name"), show::field(peer, "state"));
            reasons.push(with_error(state, peer));
        }
    }
    for tree in list(status, "trees") {
        let name = show::field(tree, "name");
        let before = reasons.len();
        let stopped = tree["state"] == "error" || tree["state"] == "paused";
        if stopped {
            reasons.push(with_error(format!("tree {name}: {}", show::field(tree, "state")), tree));
        }
        for peer in list(status, "peers") {
            for at in list(peer, "trees").iter().filter(|at| at["name"] == tree["name"]) {
                reasons.extend(outstanding(&name, peer, at, tree["in_sync"] == true));
            }
        }
        if tree["in_sync"] != true && reasons.len() == before {
            reasons.push(format!("tree {name}: not in sync ({})", show::field(tree, "state")));
        }
    }
    reasons
}

/// What a peer and this node still owe each other of a tree. Where the agent calls the tree in sync, only a stop
/// counts: a peer may lack a tree, and late numbers are none.
fn outstanding(tree: &str, peer: &Value, at: &Value, in_sync: bool) -> Option<String> {
    let peer = show::field(peer, "name");
    let state = &at["state"];
    if state == "paused" || state == "error" || (state != "ok" && !in_sync) {
        return Some(with_error(format!("tree {tree}: {} at peer {peer}", show::shown(state)), at));
    }
    let parts = [("to send to", "to_send"), ("to receive from", "to_receive")].into_iter();
    let parts: Vec<String> = parts
        .filter(|(_, key)| !in_sync && count(at, key) > 0)
        .map(|(words, key)| format!("{} {words} {peer}", amount(at, key)))
        .collect();
    (!parts.is_empty()).then(|| format!("tree {tree}: {}", parts.join(", ")))
}

fn trees(status: &Value, style: Style) -> String {
    let trees = list(status, "trees");
    if trees.is_empty() {
        return "no trees: add a [[tree]] to the config\n".to_owned();
    }
    let mut rows =
        vec![heads(style, &["TREE", "STATE", "IN SYNC", "ENTRIES", "SIZE", "SEQ", "CONFLICTS", "PROBLEMS", "PATH"])];
    for tree in trees {
        let in_sync = tree["in_sync"] == true;
        rows.push(vec![
            show::field(tree, "name").into(),
            state(tree, "watching", style),
            judged(if in_sync { "yes" } else { "no" }, in_sync, style),
            show::field(tree, "entries").into(),
            tree["bytes"].as_u64().map_or_else(|| "-".to_owned(), show::size).into(),
            show::field(tree, "seq").into(),
            none_is_good(tree, "conflicts", style),
            none_is_good(tree, "problems", style),
            show::field(tree, "path").into(),
        ]);
    }
    show::table(&rows)
}

/// A row for each tree of each peer; the peer's own columns are in its first.
fn peers(status: &Value, style: Style) -> String {
    let mut rows = vec![heads(style, &["PEER", "KIND", "STATE", "RTT", "SEEN", "TREE", "TO SEND", "TO RECEIVE"])];
    for peer in list(status, "peers") {
        let rtt = peer["rtt_ms"].as_f64().map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1} ms"));
        let seen = match peer["last_seen_s"].as_f64() {
            Some(_) => format!("{} ago", seconds(&peer["last_seen_s"])),
            None => "never".to_owned(),
        };
        let mut row: Vec<Cell> = vec![
            show::field(peer, "name").into(),
            show::field(peer, "kind").into(),
            state(peer, "connected", style),
            rtt.into(),
            seen.into(),
        ];
        for tree in list(peer, "trees") {
            let name = show::field(tree, "name");
            row.push(match &tree["state"] {
                ok if ok == "ok" => name.into(),
                other => judged(&format!("{name} ({})", show::shown(other)), false, style),
            });
            row.extend([amount(tree, "to_send").into(), amount(tree, "to_receive").into()]);
            rows.push(row);
            row = std::iter::repeat_with(|| "".into()).take(5).collect();
        }
        if list(peer, "trees").is_empty() {
            rows.push(row);
        }
    }
    show::table(&rows)
}

fn hooks(status: &Value, style: Style) -> String {
    let mut rows = vec![heads(style, &["HOOK", "ON", "STATE", "WAITING", "RUNS"])];
    for hook in list(status, "hooks") {
        let on: Vec<String> = list(hook, "on").iter().map(show::shown).collect();
        let state = show::field(hook, "state");
        let good = hook["error"].is_null();
        rows.push(vec![
            show::field(hook, "tree").into(),
            on.join(",").into(),
            judged(&state, good, style),
            show::field(hook, "pending").into(),
            show::field(hook, "runs").into(),
        ]);
    }
    show::table(&rows)
}

/// What the tables have no column for: errors, what is not watched, where to look further.
fn notes(status: &Value) -> Vec<String> {
    let mut notes = Vec::new();
    let (mut conflicts, mut problems) = (false, false);
    for tree in list(status, "trees") {
        let mut note = |words: String| notes.push(format!("{}: {words}", show::field(tree, "name")));
        if !tree["error"].is_null() {
            note(show::field(tree, "error"));
        }
        if count(tree, "polled_dirs") > 0 {
            let (watches, limit) = (show::field(tree, "watches"), show::field(tree, "watch_limit"));
            let polled = count(tree, "polled_dirs");
            note(format!("directories polled, not watched: {polled} (watches: {watches}, limit: {limit})"));
        }
        if count(tree, "overflows") > 0 {
            note(format!("overflows of the kernel's event queue: {}", count(tree, "overflows")));
        }
        if count(tree, "local_changes") > 0 {
            note(format!("local changes, which stay here: {}", count(tree, "local_changes")));
        }
        for mount in list(tree, "mounts") {
            note(format!("another file system, not entered: {}", show::shown(mount)));
        }
        conflicts |= count(tree, "conflicts") > 0;
        problems |= count(tree, "problems") > 0;
    }
    for peer in list(status, "peers").iter().filter(|peer| !peer["error"].is_null()) {
        notes.push(format!("peer {}: {}", show::field(peer, "name"), show::field(peer, "error")));
    }
    for hook in list(status, "hooks").iter().filter(|hook| !hook["error"].is_null()) {
        let (tree, runs) = (show::field(hook, "tree"), show::field(hook, "runs"));
        notes.push(format!("{tree}: the hook {runs} failed and is run again: {}", show::field(hook, "error")));
    }
    for tree in list(status, "trees").iter().filter(|tree| tree["scan"].is_object()) {
        let (scan, known) = (&tree["scan"], count(tree, "entries"));
        let looked_at = count(scan, "entries");
        let of = if known > looked_at { format!(" of about {known}") } else { String::new() };
        let read = amount(scan, "read");
        let what = if tree["state"] == "scanning" { "first scan" } else { "rescan" };
        notes.push(format!(
            "{}: {what}: {looked_at}{of} entries looked at, files read: {read}",
            show::field(tree, "name")
        ));
    }
    for tree in list(status, "trees").iter().filter(|tree| tree["long_reads"].is_object()) {
        let (long, name) = (&tree["long_reads"], show::field(tree, "name"));
        let (read, of) = (show::size(count(long, "read_bytes")), show::size(count(long, "bytes")));
        notes.push(format!("{name}: {read} of {of} hashed, long files: {}", count(long, "files")));
    }
    for peer in list(status, "peers").iter().filter(|peer| peer["fallback"]["serves"] == true) {
        let fallback = &peer["fallback"];
        let (address, state) = (show::field(fallback, "address"), show::field(fallback, "state"));
        let name = show::field(peer, "name");
        notes.push(with_error(format!("peer {name}: served by its fallback {address} ({state})"), fallback));
    }
    for (there, command) in [(conflicts, "conflicts"), (problems, "problems")] {
        if there {
            notes.push(format!("see: pleach {command}"));
        }
    }
    notes
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn count(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

/// A number of changes and their bytes.
fn amount(tree: &Value, key: &str) -> String {
    match (count(tree, key), count(tree, &format!("{key}_bytes"))) {
        (changes, 0) => changes.to_string(),
        (changes, bytes) => format!("{changes} ({})", show::size(bytes)),
    }
}

fn seconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), show::span)
}

fn with_error(words: String, of: &Value) -> String {
    match of.get("error") {
        None | Some(Value::Null) => words,
        Some(error) => format!("{words}: {}", show::shown(error)),
    }
}

fn heads(style: Style, names: &[&str]) -> Vec<Cell> {
    names.iter().map(|name| Cell::painted(name, |text| style.head(text))).collect()
}

fn state(of: &Value, good: &str, style: Style) -> Cell {
    judged(&show::field(of, "state"), of["state"] == good, style)
}

fn none_is_good(of: &Value, key: &str, style: Style) -> Cell {
    match count(of, key) {
        0 => "0".into(),
        some => judged(&some.to_string(), false, style),
    }
}

fn judged(text: &str, good: bool, style: Style) -> Cell {
    Cell::painted(text, |text| if good { style.good(text) } else { style.bad(text) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The contract's own example, in sync.
    fn example() -> Value {
        json!({"node": "web1", "id": "SHA256:abc", "version": "0.1.0", "uptime_s": 12.3, "config_error": null,
            "trees": [{"name": "www", "path": "/srv/www", "state": "watching", "in_sync": true, "entries": 1234,
                "bytes": 5678, "seq": 4321, "conflicts": 0, "problems": 0, "watches": 12, "watch_limit": 192_536,
                "polled_dirs": 0, "overflows": 0, "local_changes": 0, "mounts": [], "error": null}],
            "peers": [{"name": "web2", "kind": "pleach", "state": "connected", "error": null, "rtt_ms": 0.2,
                "last_seen_s": 0.1, "trees": [{"name": "www", "state": "ok", "to_send": 0, "to_send_bytes": 0,
                    "to_receive": 0, "to_receive_bytes": 0, "acked_seq": 4321}]}]})
    }

    #[test]
    fn a_node_in_sync_at_a_glance() {
        let want = "\
web1  SHA256:abc  pleach 0.1.0, up 12.3 s

TREE  STATE     IN SYNC  ENTRIES  SIZE    SEQ   CONFLICTS  PROBLEMS  PATH
www   watching  yes      1234     5.6 kB  4321  0          0         /srv/www

PEER  KIND    STATE      RTT     SEEN       TREE  TO SEND  TO RECEIVE
web2  pleach  connected  0.2 ms  0.1 s ago  www   0        0
";
        assert_eq!(text(&example(), Style::plain()), want);
        assert_eq!(wrong(&example()), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut status = example();
        status["config_error"] = json!("line 3: unknown key 'nam'\nline 4: x");
        let mut two = status["trees"][0].clone();
        status["trees"][0]["polled_dirs"] = json!(1);
        status["trees"][0]["mounts"] = json!(["a\nb"]);
        status["trees"][0]["conflicts"] = json!(2);
        status["trees"][0]["problems"] = json!(1);
        two["name"] = json!("t2");
        two["state"] = json!("error");
        two["error"] = json!("the root is not there");
        two["in_sync"] = json!(false);
        status["trees"].as_array_mut().unwrap().push(two);
        let peer = &mut status["peers"][0];
        peer["state"] = json!("unreachable");
        peer["error"] = json!("timed out");
        peer["rtt_ms"] = Value::Null;
        peer["last_seen_s"] = Value::Null;
        let absent = json!({"name": "t2", "state": "absent", "to_send": 3, "to_send_bytes": 5678});
        peer["trees"].as_array_mut().unwrap().push(absent);
        let want = "\
web1  SHA256:abc  pleach 0.1.0, up 12.3 s
config: not taken over, the one before is in use:
  line 3: unknown key 'nam'
  line 4: x

TREE  STATE     IN SYNC  ENTRIES  SIZE    SEQ   CONFLICTS  PROBLEMS  PATH
www   watching  yes      1234     5.6 kB  4321  2          1         /srv/www
t2    error     no       1234     5.6 kB  4321  0          0         /srv/www

PEER  KIND    STATE        RTT  SEEN   TREE         TO SEND     TO RECEIVE
web2  pleach  unreachable  -    never  www          0           0
                                       t2 (absent)  3 (5.6 kB)  0

www: directories polled, not watched: 1 (watches: 12, limit: 192536)
www: another file system, not entered: a\\nb
t2: the root is not there
peer web2: timed out
see: pleach conflicts
see: pleach problems
";
        assert_eq!(text(&status, Style::plain()), want);
        assert_eq!(
            wrong(&status),
            [
                "peer web2 is unreachable: timed out",
                "tree t2: error: the root is not there",
                "tree t2: absent at peer web2"
            ]
        );
    }

    #[test]
    fn hooks_have_a_table_and_failures_a_line() {
        let mut status = example();
        status["hooks"] = json!([
            {"tree": "www", "on": ["applied", "sent"], "runs": "purge-cdn", "state": "ok", "error": null, "pending": 0},
            {"tree": "www", "on": ["error"], "runs": "http://h/x", "state": "retrying", "error": "it answered 500 No",
                "pending": 3}]);
        let want = "
HOOK  ON            STATE     WAITING  RUNS
www   applied,sent  ok        0        purge-cdn
www   error         retrying  3        http://h/x

www: the hook http://h/x failed and is run again: it answered 500 No
";
        assert_eq!(text(&status, Style::plain()), text(&example(), Style::plain()) + want);
        assert_eq!(wrong(&status), Vec::<String>::new());
    }

    #[test]
    fn a_scan_says_how_far_it_is() {
        let mut status = example();
        status["trees"][0]["state"] = json!("scanning");
        status["trees"][0]["scan"] = json!({"entries": 1000, "read": 20, "read_bytes": 5678, "changes": 20});
        let said = |status: &Value| text(status, Style::plain()).lines().last().unwrap().to_owned();
        assert_eq!(said(&status), "www: first scan: 1000 of about 1234 entries looked at, files read: 20 (5.6 kB)");
        status["trees"][0]["entries"] = json!(900);
        assert_eq!(said(&status), "www: first scan: 1000 entries looked at, files read: 20 (5.6 kB)");
        status["trees"][0]["state"] = json!("watching");
        assert_eq!(said(&status), "www: rescan: 1000 entries looked at, files read: 20 (5.6 kB)");
    }

    #[test]
    fn long_files_say_how_far_they_are() {
        let mut status = example();
        status["trees"][0]["long_reads"] = json!({"files": 2, "bytes": 3_000_000_000_u64, "read_bytes": 1_000_000_000});
        let said = text(&status, Style::plain());
        assert_eq!(said.lines().last().unwrap(), "www: 1.0 GB of 3.0 GB hashed, long files: 2");
    }

    #[test]
    fn only_what_is_in_sync_passes_the_check() {
        let tree = |key: &str, value: Value| {
            let mut status = example();
            status["trees"][0][key] = value;
            wrong(&status)
        };
        assert_eq!(tree("in_sync", json!(false)), ["tree www: not in sync (watching)"]);
        assert_eq!(tree("in_sync", Value::Null), ["tree www: not in sync (watching)"]);
        assert_eq!(tree("state", json!("paused")), ["tree www: paused"]);
        assert_eq!(tree("state", json!("scanning")), Vec::<String>::new());
        let mut status = example();
        status["trees"][0]["in_sync"] = json!(false);
        status["peers"][0]["trees"][0]["to_send"] = json!(3);
        status["peers"][0]["trees"][0]["to_receive"] = json!(2);
        status["peers"][0]["trees"][0]["to_receive_bytes"] = json!(1000);
        assert_eq!(wrong(&status), ["tree www: 3 to send to web2, 2 (1.0 kB) to receive from web2"]);
        let mut status = example();
        status["peers"][0]["trees"][0]["state"] = json!("absent");
        assert_eq!(wrong(&status), Vec::<String>::new());
        status["peers"][0]["trees"][0]["state"] = json!("paused");
        assert_eq!(wrong(&status), ["tree www: paused at peer web2"]);
        assert_eq!(wrong(&Value::Null), ["the agent sent no status"]);
    }

    #[test]
    fn a_shape_that_is_not_known_is_no_crash() {
        for odd in [Value::Null, json!([]), json!({}), json!({"trees": [1, null], "peers": [{"trees": {}}]})] {
            assert!(!text(&odd, Style::plain()).is_empty());
            wrong(&odd);
        }
    }
}
