use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::config;

fn of(text: &str) -> Config {
    config::parse(Path::new("p.toml"), text).unwrap()
}

fn found(checks: &[Check], words: &str) -> Check {
    let all = checks.iter().find(|check| format!("{}: {}", check.subject, check.said).contains(words));
    all.unwrap_or_else(|| panic!("'{words}' is not in {checks:#?}")).clone()
}

#[test]
fn what_is_wrong_is_found_with_a_way_to_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let key = keys::HostKey::load_or_create(&state, "n").unwrap().public_line("n");
    // Nobody listens there: the port was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = of(&format!(
        "[node]\nname = \"n\"\nstate = {state:?}\n[[tree]]\nname = \"gone\"\npath = \"{0}/gone\"\n[[tree]]\nname = \"file\"\npath = \
         \"{0}/state/host_key\"\n[[peer]]\nname = \"web2\"\naddress = \"pleach://127.0.0.1:{port}\"\nkey = \"{key}\"\n",
        dir.path().display()
    ));
    std::fs::set_permissions(keys::path_in(&state), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o755)).unwrap();
    let checks = look(None, &config, &Err(Failure::done("status", "no agent runs")));
    for (words, mend) in [
        ("agent: no agent runs", "systemctl enable --now pleach"),
        ("can be read by others", "chmod 700"),
        ("key: ", "chmod 600"),
        ("tree gone: ", "mkdir -p"),
        ("tree file: ", "path"),
        ("peer web2: pleach://127.0.0.1", "on web2: systemctl start pleach"),
    ] {
        let check = found(&checks, words);
        assert!(check.mend.as_ref().is_some_and(|said| said.contains(mend)), "{check:?}");
    }
}

#[test]
fn what_the_agent_knows_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let key = keys::HostKey::load_or_create(&dir.path().join("other"), "o").unwrap().public_line("o");
    let own = keys::HostKey::load_or_create(&dir.path().join("state"), "n").unwrap().public_line("n");
    let config = of(&format!(
        "[node]\nname = \"n\"\nstate = {:?}\n[[tree]]\nname = \"t\"\npath = {:?}\n[[peer]]\nname = \"a\"\nkey = \"{key}\"\n[[peer]]\nname = \
         \"b\"\nkey = \"{own}\"\n",
        dir.path().join("state"),
        dir.path(),
    ));
    let status = json!({"version": "1", "config_error": "line 7", "trees": [{"name": "t", "watches": 5, "polled_dirs": 3,
        "overflows": 2, "conflicts": 1, "problems": 0, "error": null}], "peers": [{"name": "a", "state": "connected"},
        {"name": "b", "state": "refused", "error": "wrong key"}]});
    let checks = look(None, &config, &Ok(status));
    for words in [
        "line 7",
        "3 directories are polled",
        "was full 2 times",
        "1 conflicts wait",
        "its key is this node's own",
        "refused: wrong key",
    ] {
        assert!(found(&checks, words).mend.is_some(), "{words}");
    }
    assert_eq!(found(&checks, "peer a: it is connected").mend, None);
}
