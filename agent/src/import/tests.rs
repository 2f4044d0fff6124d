use std::path::Path;

use super::pattern::{of_regex, of_rsync};
use super::*;
use crate::config;

const SERSYNC: &str = r#"<?xml version="1.0" encoding="ISO-8859-1"?>
<head version="2.5">
  <host hostip="localhost" port="8008"></host><debug start="false"/><fileSystem xfs="false"/>
  <filter start="true"><exclude expression="(.*)\.svn"></exclude><exclude expression="^info/*"></exclude></filter>
  <inotify><delete start="true"/><createFolder start="true"/><attrib start="false"/></inotify>
  <sersync>
    <localpath watch="/home/www">
      <remote ip="192.168.4.100" name="www"/><remote ip="192.168.4.205" name="www/sub"/>
      <!--<remote ip="192.168.4.206" name="off"/>-->
    </localpath>
    <rsync>
      <commonParams params="-artuz --bwlimit=500"/>
      <auth start="true" users="www_user" passwordfile="/etc/passwd.txt"/>
      <userDefinedPort start="true" port="874"/><timeout start="true" time="100"/><ssh start="false"/>
    </rsync>
    <failLog path="/tmp/rsync_fail_log.sh" timeToExecute="60"/>
    <crontab start="true" schedule="600"><crontabfilter start="true"><exclude expression="*.svn"/></crontabfilter></crontab>
    <plugin start="true" name="command"/>
  </sersync>
  <plugin name="command">
    <param prefix="/bin/sh /opt/purge.sh" suffix="now" ignoreError="true"/>
    <filter start="true"><include expression="(.*)\.php"/></filter>
  </plugin>
</head>"#;

/// Everything that was written is known to the config; what is not built yet may be refused by name.
fn text_of(draft: &Draft) -> String {
    let text = draft.text();
    if let Err(errors) = config::parse(Path::new("imported.toml"), &text) {
        for error in errors {
            let known = ["in this version"];
            assert!(known.iter().any(|k| error.what.contains(k)), "{error}\n{text}");
        }
    }
    text
}

fn said(draft: &Draft, words: &str) {
    assert!(draft.notes().iter().any(|note| note.contains(words)), "'{words}' is not in {:#?}", draft.notes());
}

#[test]
fn sersync_with_all_of_its_parts() {
    let draft = convert(Kind::Sersync, SERSYNC).unwrap();
    let text = text_of(&draft);
    for line in [
        "path = \"/home/www\"",
        "ignore = [\"*.svn\", \"/info\"]",
        "address = \"rsync://www_user@192.168.4.100:874/www\"",
        "address = \"rsync://www_user@192.168.4.205:874/www/sub\"",
        "password_file = \"/etc/passwd.txt\"",
        "bwlimit = \"500KiB/s\"",
        "timeout = \"100s\"",
        "rsync_options = [\"--compress\"]",
        "full_check = \"0 */8 * * *\"",
        "mirror = true",
        "on = [\"sent\"]",
        "command = [\"xargs\", \"-0\", \"-r\", \"-I{}\", \"/bin/sh\", \"/opt/purge.sh\", \"/home/www/{}\", \"now\"]",
        "paths = [\"*.php\"]",
    ] {
        assert!(text.lines().any(|l| l == line), "no '{line}' in\n{text}");
    }
    assert!(!text.contains("4.206"), "{text}");
    let hooks = config::parse(Path::new("imported.toml"), &text).unwrap().hooks;
    assert_eq!((hooks.len(), hooks[0].paths.as_slice()), (1, &["*.php".to_owned()][..]));
    for words in ["attrib start", "--update is left out", "failLog", "begin with '.'"] {
        said(&draft, words);
    }
    assert!(!draft.is_empty());
}

#[test]
fn a_filter_that_cannot_be_translated_is_an_error_and_not_dropped() {
    let strange = SERSYNC.replace("^info/*", "([a-z]+)[0-9]");
    let draft = convert(Kind::Sersync, &strange).unwrap();
    assert!(draft.is_empty());
    said(&draft, "not converted: the filter '([a-z]+)[0-9]'");
    let text = text_of(&draft);
    assert!(text.lines().all(|l| l.is_empty() || l.starts_with('#') || l == "[node]"), "{text}");
}

#[test]
fn a_plugin_whose_filter_cannot_be_said_becomes_no_hook() {
    for (include, words) in [
        (r#"<include expression="([a-z]+)[0-9]"/>"#, "not converted: its include '([a-z]+)[0-9]'"),
        ("", "its filter includes nothing"),
    ] {
        let draft = convert(Kind::Sersync, &SERSYNC.replace(r#"<include expression="(.*)\.php"/>"#, include)).unwrap();
        said(&draft, words);
        assert!(!text_of(&draft).contains("[[hook]]"), "{include}");
    }
}

#[test]
fn a_sersync_that_deletes_nothing_does_not_begin_to() {
    let draft =
        convert(Kind::Sersync, &SERSYNC.replace("<delete start=\"true\"/>", "<delete start=\"false\"/>")).unwrap();
    let text = text_of(&draft);
    assert!(text.contains("deletions = \"none\"") && !text.contains("mirror"), "{text}");
}

#[test]
fn lsyncd_is_run_with_its_loops_and_variables() {
    let text = r#"
settings { logfile = "/var/log/lsyncd.log", statusFile = "/run/lsyncd.status", insist = true, delay = 5 }
local source = "/data"
for _, host in ipairs({ "10.0.0.1", "10.0.0.2" }) do
  sync { default.rsync, source = source, target = "rsync_backup@" .. host .. "::backup", delete = true,
    exclude = { "*.tmp", "cache/old" }, rsync = { archive = true, compress = true, password_file = "/etc/rsync.password", _extra = { "--bwlimit=1000" } } }
end
sync { default.rsyncssh, source = "/www", host = "web@web1", targetdir = "/srv/www", delete = "running" }
sync { default.direct, source = "/a", target = "/b" }
sync { default.rsync, source = "/mail", target = "rsync://u@[2001:db8::7]:8730/mail/all", delete = false }
"#;
    let draft = convert(Kind::Lsyncd, text).unwrap();
    let text = text_of(&draft);
    for line in [
        "path = \"/data\"",
        "ignore = [\"*.tmp\", \"**/cache/old\"]",
        "address = \"rsync://rsync_backup@10.0.0.1/backup\"",
        "address = \"rsync://rsync_backup@10.0.0.2/backup\"",
        "bwlimit = \"1000KiB/s\"",
        "rsync_options = [\"--compress\"]",
        "mirror = true",
        "path = \"/www\"",
        "# address = \"pleach://web1:8730\"",
        "deletions = \"none\"",
        "address = \"rsync://u@[2001:db8::7]:8730/mail/all\"",
    ] {
        assert!(text.lines().any(|l| l == line), "no '{line}' in\n{text}");
    }
    assert_eq!(text.matches("\n[[tree]]").count(), 3, "{text}");
    for words in ["delay = 5", "pleach sync /a /b"] {
        said(&draft, words);
    }
}

#[test]
fn lsyncd_functions_are_named_and_what_does_not_end_is_ended() {
    let own = "sync { source = '/a', target = 'h::m', onCreate = function(e) spawn(e, '/bin/x') end }";
    let draft = convert(Kind::Lsyncd, own).unwrap();
    assert!(draft.is_empty());
    said(&draft, "onCreate");
    for wrong in
        ["while true do end", "x = ('x'):rep(1e9)", "os.execute('true')", "io.open('/etc/passwd')", "sync(", ""]
    {
        assert!(convert(Kind::Lsyncd, wrong).is_err(), "{wrong}");
    }
}

#[test]
fn rsyncd_modules_become_trees() {
    let text = "uid = nobody\nuse chroot = no\n[web1]\npath = /web1/wwwroot/\ncomment = web1 file\n read  ONLY = no\nignore errors\n\
                auth users = web1user\nexclude = *.bak /tmp/\n[pub]\npath = /srv/pub\n";
    let draft = convert(Kind::Rsyncd, text).unwrap();
    let text = text_of(&draft);
    for line in [
        "listen = \"0.0.0.0:8730\"",
        "name = \"web1\"",
        "path = \"/web1/wwwroot\"",
        "direction = \"receive\"",
        "ignore = [\"*.bak\", \"/tmp/\"]",
        "name = \"pub\"",
        "direction = \"send\"",
    ] {
        assert!(text.lines().any(|l| l == line), "no '{line}' in\n{text}");
    }
    said(&draft, "auth users = web1user");
    said(&draft, "line 7: 'ignore errors' has no value");
    assert!(convert(Kind::Rsyncd, "&include /etc/rsyncd.d\n").is_err());
}

#[test]
fn expressions_become_rules() {
    for (expression, rules) in [
        (r"(.*)\.svn", &["*.svn"] as &[&str]),
        (r".*\.(jpg|gif)$", &["*.jpg", "*.gif"]),
        ("^info/*", &["/info"]),
        ("^static/.*", &["/static"]),
        ("/a/b/(.*)", &["/a/b"]),
        ("(.*)/tmp/(.*)", &["tmp"]),
        ("(.*)cache(.*)", &["*cache*"]),
        ("/logs.*x", &["/logs*x", "/logs*/**/*x"]),
        (r"(.*)\.[ab]", &["*.[a-b]"]),
        (r"(.*)\.html?", &["*.htm", "*.html"]),
        (r"(.*).+\*", &["*?*\\*", "**/*?*/**/*\\*"]),
    ] {
        let got = of_regex(expression).unwrap_or_else(|why| panic!("{expression}: {why}"));
        assert_eq!(got, rules, "{expression}");
    }
    for wrong in ["*.php", ".*", "(", "a+b", "(ab)*", "/*", r"\d{1,9}x"] {
        assert!(of_regex(wrong).is_err(), "{wrong}: {:?}", of_regex(wrong));
    }
}

#[test]
fn exclude_patterns_become_rules() {
    for (pattern, rule) in [
        ("*.tmp", "*.tmp"),
        ("/cache/", "/cache/"),
        ("a/b", "**/a/b"),
        ("dir/***", "dir/"),
        ("- x", "x"),
        ("#x#", "\\#x#"),
        ("a\\b", "a\\\\b"),
        ("**/x", "**/x"),
    ] {
        assert_eq!(of_rsync(pattern).as_deref(), Ok(rule), "{pattern}");
    }
    for wrong in ["+ x", "!", "/", "***", "a**b"] {
        assert!(of_rsync(wrong).is_err(), "{wrong}: {:?}", of_rsync(wrong));
    }
}
