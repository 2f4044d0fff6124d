use super::reader::address;
use super::*;
use crate::keys;

fn errors(text: &str) -> Vec<String> {
    match parse(Path::new("p.toml"), text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn errors_name_key_line_and_the_nearest_key() {
    for (text, want) in [
        (
            "[node]\nname = \"a b\"\n",
            "p.toml, line 2: name: 'a b' is no name: 1 to 64 of the characters A-Z a-z 0-9 . _ -",
        ),
        ("[nodes]\n", "p.toml, line 1: unknown table or key 'nodes'; did you mean 'node'?"),
        (
            "[[tree]]\nname = \"t\"\npath = \"/t\"\ningore = []\n",
            "p.toml, line 4: unknown key 'ingore' in [[tree]]; did you mean 'ignore'?",
        ),
        (
            "[[tree]]\nname = \"t\"\npath = \"/t\"\nhold = \"off\"\n",
            "p.toml, line 4: hold in [[tree]] is not in this version of pleach",
        ),
        (
            "[[tree]]\nname = \"t\"\npath = \"/t\"\nconflict = \"copies\"\n",
            "p.toml, line 4: conflict: 'copies' is none of vault, copy",
        ),
        (
            "[[tree]]\nname = \"t\"\npath = \"/t\"\ndirection = \"sent\"\n",
            "p.toml, line 4: direction: 'sent' is none of both, send, receive",
        ),
        ("[[tree]]\nname = \"t\"\n", "p.toml, line 1: path is missing in [[tree]]"),
        ("[[tree]]\nname = \"t\"\npath = \"t\"\n", "p.toml, line 3: path: 't' is not an absolute path"),
        (
            "[[tree]]\nname=\"t\"\npath=\"/a\"\n[[tree]]\nname=\"u\"\npath=\"/a/b\"\n",
            "p.toml, line 6: path: it lies within, or holds, the tree 't' at /a",
        ),
        (
            "[[tree]]\nname=\"t\"\npath=\"/a\"\nrescan=\"24\"\n",
            "p.toml, line 4: rescan: '24' is no duration: say 500ms, 10s, 5m, 24h or 7d",
        ),
        ("[hook]\ntree=\"t\"\n", "p.toml, line 1: 'hook' must be a list of tables: write [[hook]]"),
        ("[node]\nlog = 3\n", "p.toml, line 2: log must be a text in quotes"),
    ] {
        assert_eq!(errors(text).first().map(String::as_str), Some(want), "{text}");
    }
}

#[test]
fn a_whole_config_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let key = keys::HostKey::load_or_create(dir.path(), "x").unwrap().public_line("x");
    let text = format!(
        "[node]\nname=\"web1\"\nlisten=\"[::]:8730\"\nstate=\"/var/lib/pleach\"\nlog=\"debug\"\n\
         [[tree]]\nname=\"www\"\npath=\"/srv/www/\"\nignore=[\"*.swp\"]\nhistory=\"3d\"\ndirection=\"receive\"\n\
         [[peer]]\nname=\"web2\"\naddress=[\"pleach://h\",\"pleach://[2001:db8::7]:8730\"]\nkey=\"{key}\"\ntrees=[\"www\"]\n"
    );
    let config = parse(Path::new("p.toml"), &text).unwrap();
    assert_eq!(config.trees[0].path, Path::new("/srv/www"));
    assert_eq!(config.trees[0].history, Duration::from_secs(3 * 86_400));
    assert_eq!(config.trees[0].direction, Direction::Receive);
    assert_eq!(config.peers[0].addresses.len(), 2);
    assert_eq!(config.peers[0].trees.as_deref(), Some(&["www".to_owned()][..]));
}

#[test]
fn a_legacy_daemon_is_a_peer_without_a_key() {
    let tree = "[[tree]]\nname=\"t\"\npath=\"/t\"\n";
    let text = format!(
        "{tree}[[peer]]\nname=\"web1\"\naddress=\"rsync://u@h/m/p\"\npassword_file=\"/etc/server.pass\"\n\
         full_check=\"03:30\"\nmirror=true\ntimeout=\"10s\"\nrsync_options=[\"-vzrtopg\"]\n"
    );
    let push = parse(Path::new("p.toml"), &text).unwrap().peers.remove(0).push.unwrap();
    assert_eq!((push.target.to_string().as_str(), push.mirror), ("rsync://u@h:873/m/p/", true));
    assert_eq!((push.timeout, push.options), (Duration::from_secs(10), vec!["-z".to_owned()]));
    let peer = |more: &str| format!("{tree}[[peer]]\nname=\"w\"\naddress=\"rsync://u@h/m\"\n{more}\n");
    for (text, want) in [
        (peer("key=\"x\""), "p.toml, line 7: key: an rsync daemon has none; its password goes into password_file"),
        (peer("fallback=\"rsync://h/m\""), "p.toml, line 7: fallback is only for a peer with an agent"),
        (peer("rsync_options=[\"--delete\"]"), "p.toml, line 7: rsync_options: '--delete' is refused"),
        (peer("full_check=\"25:00\""), "p.toml, line 7: full_check: '25:00' is no time"),
        (peer("mirror=\"yes\""), "p.toml, line 7: mirror must be true or false"),
        (peer("trees=[]"), "p.toml, line 7: trees: an rsync daemon takes exactly one tree, not 0"),
        (
            format!("{tree}[[peer]]\nname=\"w\"\naddress=[\"rsync://u@h/m\",\"rsync://u@i/m\"]\n"),
            "p.toml, line 6: address: an rsync daemon has one",
        ),
        (format!("{tree}[[peer]]\nname=\"w\"\nkey=\"x\"\nmirror=true\n"), "p.toml, line 6: key: "),
    ] {
        let found = errors(&text);
        assert!(found.first().is_some_and(|error| error.starts_with(want)), "{text}: {found:?}");
    }
    let found = errors(&format!("{tree}[[peer]]\nname=\"w\"\nmirror=true\n"));
    assert!(found.contains(&"p.toml, line 6: mirror is only for rsync:// addresses".to_owned()), "{found:?}");
}

#[test]
fn a_fallback_has_the_options_of_a_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let key = keys::HostKey::load_or_create(dir.path(), "x").unwrap().public_line("x");
    let tree = "[[tree]]\nname=\"t\"\npath=\"/t\"\n";
    let peer = |more: &str| format!("{tree}[[peer]]\nname=\"w\"\nkey=\"{key}\"\n{more}\n");
    let options = "password_file=\"/p\"\nrsync_options=[\"-z\"]\ntimeout=\"9s\"\nfull_check=\"03:30\"\nmirror=true";
    let text = peer(&format!("fallback=\"rsync://u@h/m\"\n{options}"));
    let fallback = parse(Path::new("p.toml"), &text).unwrap().peers.remove(0).fallback.unwrap();
    assert_eq!((fallback.after, fallback.push.timeout), (Duration::from_secs(15), Duration::from_secs(9)));
    assert_eq!(fallback.push.target.to_string(), "rsync://u@h:873/m/");
    assert!(fallback.push.mirror && fallback.push.full_check.is_some());
    let fallback = "fallback=\"rsync://h/m\"\n";
    let two = "[[tree]]\nname=\"u\"\npath=\"/u\"\n";
    for (text, want) in [
        (peer("fallback=\"pleach://h\""), "p.toml, line 7: fallback: 'pleach://h' is no address of an rsync daemon"),
        (peer(&format!("{fallback}mirror=1")), "p.toml, line 8: mirror must be true or false"),
        (peer(&format!("{fallback}full_check=\"25:00\"")), "p.toml, line 8: full_check: '25:00' is no time"),
        (peer(&format!("{fallback}fallback_after=\"x\"")), "p.toml, line 8: fallback_after: 'x' is no duration"),
        (peer("fallback_after=\"1s\""), "p.toml, line 7: fallback_after is only for a fallback"),
        (peer("timeout=\"1s\""), "p.toml, line 7: timeout is only for rsync:// addresses"),
        (format!("{two}{}", peer(fallback)), "p.toml, line 7: trees: an rsync daemon takes exactly one tree, not 2"),
    ] {
        let found = errors(&text);
        assert!(found.first().is_some_and(|error| error.starts_with(want)), "{text}: {found:?}");
    }
}

#[test]
fn addresses_that_are_none_are_refused() {
    for good in ["pleach://host", "pleach://10.0.0.1:1", "pleach://[::1]", "pleach://[::1]:8730"] {
        assert!(address(good).is_ok(), "{good}");
    }
    for bad in ["host", "pleach://", "pleach://::1", "pleach://h:0", "pleach://h:x", "ssh://h", "rsync://h/m"] {
        assert!(address(bad).is_err(), "{bad}");
    }
}
