//! sersync's confxml.xml. What its parts do was read in the program: sersync 2.5.4.

use roxmltree::{Document, Node};
use toml::Value;

use super::draft::{Draft, Peer, Tree, strings};
use super::pattern;
use super::rsync::{self, Told};

/// Which `<inotify>` switches say no more than pleach knows by itself.
const SWITCHES: [(&str, &str); 4] = [
    ("createFolder", "new directories are always sent"),
    ("createFile", "a new file is sent once it is closed, an empty one too"),
    ("attrib", "changes of mode, owner and times are always sent"),
    ("modify", "a file is sent once it is closed, or after 'open_files' of quiet"),
];

pub(super) fn convert(text: &str) -> Result<Draft, String> {
    let document = Document::parse(text).map_err(|error| format!("this is no XML: {error}"))?;
    let head = document.root_element();
    let sersync = child(head, "sersync").ok_or("there is no <sersync> in it")?;
    let mut draft = Draft::default();
    if let Some(true) = child(head, "debug").map(started) {
        draft.notes.push("debug: see `pleach log --follow`, or set [node] log = \"debug\"".into());
    }
    for local in children(sersync, "localpath") {
        let mut tree = Tree::new(&draft, attribute(local, "watch"));
        filter(head, &mut tree);
        switches(head, &mut tree);
        let remotes = children(local, "remote").collect::<Vec<_>>();
        peers(sersync, &remotes, &mut tree);
        crontab(head, sersync, &mut tree);
        plugins(head, sersync, &mut tree);
        draft.add(tree);
    }
    if draft.trees.is_empty() {
        return Err("there is no <localpath> in it".into());
    }
    if child(sersync, "failLog").is_some() {
        draft.notes.push("failLog: what failed is kept and sent again by itself; see `pleach problems`".into());
    }
    draft.notes.push(
        "sersync left out files that begin with '.' or end with '~', and vim's 4913, but sent them with their \
         directory or a full check; here they are sent: add \".*\", \"!.*/\", \"*~\", \"4913\" to 'ignore' if they must not be"
            .into(),
    );
    Ok(draft)
}

fn child<'a, 'i>(node: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| child.has_tag_name(name))
}

fn attribute<'a>(node: Node<'a, '_>, name: &str) -> &'a str {
    node.attribute(name).unwrap_or_default().trim()
}

fn started(node: Node<'_, '_>) -> bool {
    attribute(node, "start") == "true"
}

fn filter(head: Node<'_, '_>, tree: &mut Tree) {
    let Some(filter) = child(head, "filter").filter(|filter| started(*filter)) else { return };
    for exclude in children(filter, "exclude") {
        let expression = attribute(exclude, "expression");
        match pattern::of_regex(expression) {
            Ok(rules) => tree.ignore.extend(rules),
            Err(why) => tree.refused.push(format!("the filter '{expression}': {why}")),
        }
    }
}

fn switches(head: Node<'_, '_>, tree: &mut Tree) {
    let Some(inotify) = child(head, "inotify") else { return };
    if !child(inotify, "delete").is_none_or(started) {
        tree.keys.push(("deletions", "none".into()));
    }
    for (name, why) in SWITCHES {
        if child(inotify, name).is_some_and(|switch| !started(switch)) && name != "modify" {
            tree.note(format!("<{name} start=\"false\"> has no counterpart: {why}"));
        }
    }
}

fn peers(sersync: Node<'_, '_>, remotes: &[Node<'_, '_>], tree: &mut Tree) {
    let of = |name| child(sersync, "rsync").and_then(|rsync| child(rsync, name));
    let params = of("commonParams").map(|node| attribute(node, "params")).unwrap_or_default();
    let mut told = Told::read(&rsync::words(params), tree);
    if told.delete {
        tree.note("--delete in commonParams: only what this node knows to be there is deleted, but for the full check of a mirror");
    }
    let on = |name| of(name).filter(|node| started(*node));
    let auth = on("auth");
    if let Some(auth) = auth
        && !told.password
        && !attribute(auth, "passwordfile").is_empty()
    {
        told.keys.push(("password_file", attribute(auth, "passwordfile").into()));
    }
    if let Some(port) = on("userDefinedPort") {
        match attribute(port, "port").parse() {
            Ok(port) => told.port = Some(port),
            Err(_) => tree.refused.push(format!("'{}' is no port", attribute(port, "port"))),
        }
    }
    if let Some(timeout) = on("timeout").and_then(|node| attribute(node, "time").parse::<u32>().ok()).filter(|t| *t > 0)
    {
        told.keys.retain(|(key, _)| *key != "timeout");
        told.keys.push(("timeout", format!("{timeout}s").into()));
    }
    for remote in remotes {
        let (host, name) = (attribute(*remote, "ip"), attribute(*remote, "name"));
        if host.is_empty() || name.is_empty() {
            tree.refused.push("a <remote> without ip or name".into());
            continue;
        }
        let peer = if on("ssh").is_some() {
            Peer::agent(host, name)
        } else {
            let mut peer = Peer::daemon(auth.map(|node| attribute(node, "users")), host, told.port, name);
            told.apply(&mut peer);
            peer
        };
        tree.peers.push(peer);
    }
    if remotes.is_empty() {
        tree.refused.push("it has no <remote>".into());
    }
}

fn crontab(head: Node<'_, '_>, sersync: Node<'_, '_>, tree: &mut Tree) {
    let Some(crontab) = child(sersync, "crontab").filter(|node| started(*node)) else { return };
    let minutes = attribute(crontab, "schedule").parse::<u32>().ok().filter(|m| *m > 0).unwrap_or(600);
    let filters = child(crontab, "crontabfilter").filter(|node| started(*node));
    let filtered = child(head, "filter").is_some_and(started);
    if filtered && filters.is_none() {
        tree.note("its crontab never ran: sersync switches it off where there is a filter and no crontabfilter");
        return;
    }
    let mut unknown = Vec::new();
    for exclude in filters.iter().flat_map(|node| children(*node, "exclude")) {
        let expression = attribute(exclude, "expression");
        match pattern::of_rsync(expression) {
            Ok(rule) if tree.ignore.contains(&rule) || tree.ignore.contains(&format!("/{rule}")) => {}
            _ => unknown.push(expression.to_owned()),
        }
    }
    if !unknown.is_empty() {
        tree.note(format!(
            "no full check is set: its crontabfilter ({}) keeps out of the full check what is sent otherwise. Add it to \
             'ignore' if it must never be sent, then set full_check = \"{}\"",
            unknown.join(", "),
            every(minutes)
        ));
        return;
    }
    let mirror = child(head, "inotify").and_then(|node| child(node, "delete")).is_none_or(started);
    if mirror {
        tree.note("sersync's full check deletes what is not here: mirror = true; its first one waits for `pleach approve --peer`");
    }
    let daemons = tree.peers.iter_mut().filter(|peer| matches!(peer.address, super::draft::Address::Daemon(_)));
    for peer in daemons {
        peer.keys.push(("full_check", every(minutes).into()));
        if mirror {
            peer.keys.push(("mirror", Value::Boolean(true)));
        }
    }
}

/// A cron expression for every so many minutes, or for the next shorter time that cron can say.
fn every(minutes: u32) -> String {
    let hours = minutes / 60;
    match (minutes, hours) {
        (..60, _) => format!("*/{minutes} * * * *"),
        (_, 1..24) => {
            let hours = (1..=hours).rev().find(|h| 24 % h == 0).unwrap_or(1);
            format!("0 */{hours} * * *")
        }
        _ => "0 3 * * *".to_owned(),
    }
}

fn plugins(head: Node<'_, '_>, sersync: Node<'_, '_>, tree: &mut Tree) {
    for plugin in children(sersync, "plugin").filter(|node| started(*node)) {
        let name = attribute(plugin, "name");
        let Some(config) = children(head, "plugin").find(|node| attribute(*node, "name") == name) else {
            tree.note(format!("the plugin '{name}' is started, but there is none in the file"));
            continue;
        };
        match name {
            "command" => command(config, tree),
            _ => {
                let to = config.descendants().find_map(|node| match node.tag_name().name() {
                    "deshost" => Some(format!("{}:{}", attribute(node, "ip"), attribute(node, "port"))),
                    "cdninfo" => Some(format!("{}:{}", attribute(node, "domainname"), attribute(node, "port"))),
                    _ => None,
                });
                tree.note(format!(
                    "the plugin '{name}' (to {}) has no counterpart: write a [[hook]] with on = [\"sent\"] and a 'command' \
                     or a 'url'; it is given the paths that changed",
                    to.unwrap_or_default()
                ));
            }
        }
    }
}

fn command(plugin: Node<'_, '_>, tree: &mut Tree) {
    let param = child(plugin, "param");
    let words = |name| param.map(|node| rsync::words(attribute(node, name))).unwrap_or_default();
    let (prefix, suffix) = (words("prefix"), words("suffix"));
    let path = format!("{}/{{}}", tree.path.trim_end_matches('/'));
    let start = ["xargs", "-0", "-r", "-I{}"].map(str::to_owned).to_vec();
    let line = [start, prefix, vec![path], suffix].concat();
    let mut hook = vec![("on", strings(&["sent".to_owned()])), ("command", strings(&line))];
    if let Some(filter) = child(plugin, "filter").filter(|node| started(*node)) {
        let mut paths = Vec::new();
        for include in children(filter, "include") {
            let expression = attribute(include, "expression");
            match pattern::of_regex(expression) {
                Ok(rules) => paths.extend(rules),
                // With the others alone it would run for less, without any for all.
                Err(why) => {
                    tree.note(format!("error: the command plugin is not converted: its include '{expression}': {why}"));
                    return;
                }
            }
        }
        if paths.is_empty() {
            tree.note("the command plugin is not converted: its filter includes nothing, so it never ran");
            return;
        }
        hook.push(("paths", strings(&paths)));
    }
    tree.note("the command plugin is a hook now: it runs after changes were sent, as this agent's user, and again where it failed");
    tree.hooks.push(hook);
}
