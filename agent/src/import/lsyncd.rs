//! lsyncd.conf.lua. It is a program, so it is run: loops and variables make the same `sync{}` calls as
//! in lsyncd. It gets no files, no processes, and bounded time and memory.

use std::cell::RefCell;
use std::rc::Rc;

use mlua::{HookTriggers, Lua, LuaOptions, StdLib, Table, Value as LuaValue, VmState};
use toml::Value;

use super::draft::{Address, Draft, Peer, Tree};
use super::pattern;
use super::rsync::{self, Told};

/// What a config may use: real ones need far less.
const MEMORY_BYTES_MAX: usize = 64 << 20;
const STEPS_MAX: u32 = 10_000_000;
const STEPS_A_HOOK: u32 = 10_000;

/// Keys of `sync{}` and `settings{}` that ask for what pleach does by itself or does not need.
const NOT_NEEDED: [&str; 14] = [
    "logfile",
    "pidfile",
    "nodaemon",
    "statusFile",
    "statusInterval",
    "logfacility",
    "logident",
    "insist",
    "inotifyMode",
    "maxProcesses",
    "maxDelays",
    "log",
    "tunnel",
    "init",
];
/// Keys of `sync{}` that are read below.
const READ: [&str; 14] = [
    "source",
    "target",
    "host",
    "targetdir",
    "delete",
    "exclude",
    "excludeFrom",
    "delay",
    "rsync",
    "ssh",
    "crontab",
    "filter",
    "filterFrom",
    "xargs",
];

/// One `sync{}`, as the program called it.
struct Sync {
    /// `rsync`, `rsyncssh`, `direct`, or nothing known.
    default: Option<String>,
    table: Table,
}

pub(super) fn convert(text: &str) -> Result<Draft, String> {
    let (lua, settings, syncs) = evaluate(text).map_err(|error| {
        let error = error.to_string();
        format!("running it failed: {}", error.lines().next().unwrap_or_default())
    })?;
    let mut draft = Draft::default();
    for (key, value) in settings {
        match key.as_str() {
            "delay" => delay(&value, &mut draft.notes),
            key if NOT_NEEDED.contains(&key) => {}
            _ => draft.notes.push(format!("settings.{key} has no counterpart")),
        }
    }
    for sync in &syncs {
        let mut notes = std::mem::take(&mut draft.notes);
        match tree_of(sync, &draft, &mut notes) {
            Ok(Some(tree)) => draft.add(tree),
            Ok(None) => {}
            Err(error) => notes.push(format!("error: a sync is not converted: {error}")),
        }
        draft.notes = notes;
    }
    if syncs.is_empty() {
        return Err("there is no sync{} in it".into());
    }
    drop(lua);
    Ok(draft)
}

type Settings = Vec<(String, LuaValue)>;

/// Runs the program, and gives what it called `settings` and `sync` with.
fn evaluate(text: &str) -> mlua::Result<(Lua, Settings, Vec<Sync>)> {
    let lua = Lua::new_with(StdLib::TABLE | StdLib::STRING | StdLib::MATH, LuaOptions::default())?;
    lua.set_memory_limit(MEMORY_BYTES_MAX)?;
    let steps = std::cell::Cell::new(0_u32);
    lua.set_hook(HookTriggers::new().every_nth_instruction(STEPS_A_HOOK), move |_, _| {
        steps.set(steps.get().saturating_add(STEPS_A_HOOK));
        if steps.get() > STEPS_MAX {
            return Err(mlua::Error::runtime("it does not come to an end"));
        }
        Ok(VmState::Continue)
    })?;
    let globals = lua.globals();
    for name in ["load", "loadfile", "dofile", "collectgarbage", "print"] {
        globals.raw_remove(name)?;
    }
    let defaults = lua.create_table()?;
    for name in ["rsync", "rsyncssh", "direct"] {
        let default = lua.create_table()?;
        default.raw_set("pleach-default", name)?;
        defaults.raw_set(name, default)?;
    }
    globals.raw_set("default", &defaults)?;
    // Layers 1 to 3 of lsyncd call these inside functions, which are never run here.
    let calls = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&calls);
    globals.raw_set(
        "sync",
        lua.create_function(move |_, table: Table| {
            let mut default = None;
            for value in table.sequence_values::<LuaValue>() {
                match value? {
                    LuaValue::Table(named) => default = named.raw_get::<Option<String>>("pleach-default")?,
                    _ => {
                        return Err(mlua::Error::runtime(
                            "a sync{} with something else than default.rsync, .rsyncssh or .direct",
                        ));
                    }
                }
            }
            seen.borrow_mut().push(Sync { default, table });
            Ok(())
        })?,
    )?;
    let given = Rc::new(RefCell::new(None));
    let set = Rc::clone(&given);
    globals.raw_set(
        "settings",
        lua.create_function(move |_, table: Table| {
            *set.borrow_mut() = Some(table);
            Ok(())
        })?,
    )?;
    lua.load(text).set_name("=config").exec()?;
    // lsyncd before 2.1: settings = {...}.
    let assigned = globals.raw_get::<LuaValue>("settings")?;
    let table = given.borrow_mut().take().or(match assigned {
        LuaValue::Table(table) => Some(table),
        _ => None,
    });
    let mut settings = Vec::new();
    if let Some(table) = table {
        for pair in table.pairs::<String, LuaValue>() {
            settings.push(pair?);
        }
    }
    settings.sort_by(|a, b| a.0.cmp(&b.0));
    let syncs = calls.borrow_mut().drain(..).collect();
    Ok((lua, settings, syncs))
}

fn delay(value: &LuaValue, notes: &mut Vec<String>) {
    let note = format!("delay = {}: pleach sends at once; 'settle' would wait for quiet", shown(value));
    if !notes.contains(&note) {
        notes.push(note);
    }
}

fn shown(value: &LuaValue) -> String {
    match value {
        LuaValue::Boolean(b) => b.to_string(),
        LuaValue::Integer(n) => n.to_string(),
        LuaValue::Number(n) => n.to_string(),
        LuaValue::String(text) => text.to_string_lossy(),
        other => format!("a {}", other.type_name()),
    }
}

fn list(value: LuaValue) -> mlua::Result<Vec<String>> {
    match value {
        LuaValue::Nil => Ok(Vec::new()),
        LuaValue::Table(table) => table.sequence_values::<String>().collect(),
        other => Ok(vec![shown(&other)]),
    }
}

fn tree_of(sync: &Sync, draft: &Draft, notes: &mut Vec<String>) -> mlua::Result<Option<Tree>> {
    let table = &sync.table;
    let source: Option<String> = table.get("source")?;
    let Some(source) = source else {
        return Err(mlua::Error::runtime("it has no source"));
    };
    let mut tree = Tree::new(draft, &source);
    if let Some(there) = draft.trees.iter().find(|there| there.path == tree.path) {
        // A second target of the same directory is one more peer of the same tree.
        tree.name.clone_from(&there.name);
        tree.refused.clear();
    }
    let mut words = rsync_words(table, &mut tree)?;
    for pattern in list(table.get("exclude")?)? {
        match pattern::of_rsync(&pattern) {
            Ok(rule) => tree.ignore.push(rule),
            Err(why) => tree.refused.push(format!("exclude '{pattern}': {why}")),
        }
    }
    if let Some(file) = table.get::<Option<String>>("excludeFrom")? {
        rsync::excludes_of(&file, &mut tree);
    }
    for key in ["filter", "filterFrom"] {
        if !matches!(table.get(key)?, LuaValue::Nil) {
            tree.refused.push(format!("'{key}': write its rules as gitignore rules in 'ignore'"));
        }
    }
    delay_and_rest(table, &mut tree, notes)?;
    let mirror = deletions(&table.get("delete")?, &mut tree);
    let default = sync.default.as_deref();
    let target: Option<String> = table.get("target")?;
    let place = match (default, target) {
        (Some("direct"), Some(target)) => Place::Local(target),
        (Some("rsync"), Some(target)) => Place::read(&target),
        (Some("rsyncssh"), _) => {
            let host: Option<String> = table.get("host")?;
            let dir: Option<String> = table.get("targetdir")?;
            let (Some(host), Some(dir)) = (host, dir) else {
                return Err(mlua::Error::runtime(format!("the sync of {source} has no host or no targetdir")));
            };
            Place::Host { host: without_user(&host), dir }
        }
        (Some(_), None) => return Err(mlua::Error::runtime(format!("the sync of {source} has no target"))),
        (_, target) => {
            tree.refused.push(format!(
                "its actions are functions of its own (to {}): what they run after a change can be a [[hook]]",
                target.unwrap_or_default()
            ));
            return Ok(Some(tree));
        }
    };
    if let Place::Local(target) = &place {
        notes.push(format!(
            "{source} to {target}: both are on this machine, and a node holds a tree once: run `pleach sync {source} {target}` \
             as a service"
        ));
        return Ok(None);
    }
    if let LuaValue::Table(ssh) = table.get("ssh")?
        && !ssh.is_empty()
    {
        tree.note("ssh = {...} is left out: an agent there makes the connection");
    }
    words.retain(|word| !word.starts_with("--rsh"));
    let told = Told::read(&words, &mut tree);
    let mut peer = place.peer(told.port);
    if matches!(peer.address, Address::Daemon(_)) {
        told.apply(&mut peer);
        if mirror {
            peer.keys.push(("mirror", Value::Boolean(true)));
            tree.note("lsyncd deletes at its start what is not here: mirror = true; the first deleting check waits for `pleach approve --peer`");
        }
        for expression in list(table.get("crontab")?)? {
            peer.keys.push(("full_check", expression.into()));
        }
    }
    tree.peers.push(peer);
    Ok(Some(tree))
}

/// The `rsync = {...}` table as rsync's own options.
fn rsync_words(table: &Table, tree: &mut Tree) -> mlua::Result<Vec<String>> {
    let LuaValue::Table(rsync) = table.get("rsync")? else { return Ok(Vec::new()) };
    let mut words = Vec::new();
    for pair in rsync.pairs::<LuaValue, LuaValue>() {
        let (key, value) = pair?;
        let key = shown(&key);
        match (key.as_str(), value) {
            ("_extra", value) => words.extend(list(value)?),
            ("binary", value) => tree.note(format!("rsync.binary = {}: the system's rsync is used", shown(&value))),
            ("rsh", value) => {
                tree.note(format!("rsync.rsh = {} is left out: an agent there makes the connection", shown(&value)));
            }
            (_, LuaValue::Boolean(false)) => {}
            (key, LuaValue::Boolean(true)) => words.push(format!("--{}", key.replace('_', "-"))),
            (key, value) => words.push(format!("--{}={}", key.replace('_', "-"), shown(&value))),
        }
    }
    words.sort();
    Ok(words)
}

fn delay_and_rest(table: &Table, tree: &mut Tree, notes: &mut Vec<String>) -> mlua::Result<()> {
    match table.get("delay")? {
        LuaValue::Nil => {}
        value => delay(&value, notes),
    }
    let mut rest = Vec::new();
    for pair in table.pairs::<LuaValue, LuaValue>() {
        if let (LuaValue::String(key), value) = pair? {
            let key = key.to_string_lossy();
            if matches!(value, LuaValue::Function(_)) && key != "init" {
                tree.refused
                    .push(format!("{key} is a function of its own: what it runs after a change can be a [[hook]]"));
            } else if !READ.contains(&key.as_str()) && !NOT_NEEDED.contains(&key.as_str()) {
                rest.push(key);
            }
        }
    }
    rest.sort();
    rest.into_iter().for_each(|key| tree.note(format!("'{key}' has no counterpart")));
    Ok(())
}

/// Reads `delete`; true where the first check deletes.
fn deletions(value: &LuaValue, tree: &mut Tree) -> bool {
    let word = match value {
        LuaValue::Boolean(false) => "false".to_owned(),
        LuaValue::String(word) => word.to_string_lossy(),
        _ => "true".to_owned(),
    };
    match word.as_str() {
        "running" => false,
        "startup" => {
            tree.keys.push(("deletions", "none".into()));
            tree.note("delete = 'startup': only the full check of a mirror deletes");
            true
        }
        "false" => {
            tree.keys.push(("deletions", "none".into()));
            false
        }
        _ => true,
    }
}

/// Where a sync goes.
enum Place {
    Daemon { user: Option<String>, host: String, port: Option<u16>, path: String },
    Host { host: String, dir: String },
    Local(String),
}

fn without_user(host: &str) -> String {
    host.rsplit('@').next().unwrap_or(host).to_owned()
}

impl Place {
    /// Reads a target as rsync does: `[user@]host::module/path`, `rsync://...`, `[user@]host:dir`, or a directory.
    fn read(target: &str) -> Self {
        let split = |text: &str| match text.rsplit_once('@') {
            Some((user, host)) => (Some(user.to_owned()), host.to_owned()),
            None => (None, text.to_owned()),
        };
        if let Some(rest) = target.strip_prefix("rsync://") {
            let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
            let (user, host) = split(place);
            let port = host.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
            let host = match port {
                Some(_) => host.rsplit_once(':').map(|(host, _)| host.to_owned()).unwrap_or_default(),
                None => host,
            };
            return Self::Daemon { user, host, port, path: path.to_owned() };
        }
        if let Some((place, path)) = target.split_once("::") {
            let (user, host) = split(place);
            return Self::Daemon { user, host, port: None, path: path.to_owned() };
        }
        match target.split_once(':') {
            Some((host, dir)) if !host.contains('/') => Self::Host { host: without_user(host), dir: dir.to_owned() },
            _ => Self::Local(target.to_owned()),
        }
    }

    fn peer(&self, told: Option<u16>) -> Peer {
        match self {
            Self::Daemon { user, host, port, path } => Peer::daemon(user.as_deref(), host, port.or(told), path),
            Self::Host { host, dir } => Peer::agent(host, dir),
            Self::Local(dir) => Peer::agent("localhost", dir),
        }
    }
}
