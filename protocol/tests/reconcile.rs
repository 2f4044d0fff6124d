//! Every row of the reconcile table is what the code decides, every situation has one row, and `RULES.md` is
//! generated from it: `PLEACH_BLESS=1 cargo test -p pleach-protocol --test reconcile` writes it anew.

use pleach_protocol::entry::{Entry, Hash, Rank, Value};
use pleach_protocol::mint::{self, Circumstances, Observation, Shown};
use pleach_protocol::rules::{Before, Does, Known, Means, RULES, Rule, Version};
use pleach_protocol::time::Time;
use pleach_protocol::version::{Actor, Dot, NodeId};
use pleach_protocol::view::{self, State, Surroundings, access_by_number};

const EARLIER: Rank = Rank(20);
const OURS: Rank = Rank(30);
const LATER: Rank = Rank(40);

fn dot(node: u8, counter: u64) -> Dot {
    Dot { actor: Actor { node: NodeId([node; 32]), start: 1 }, counter }
}

/// A version as a disk holds it.
fn state(version: Version) -> Option<State> {
    let content = match version {
        Version::Nothing => return None,
        Version::Base => 1,
        Version::Theirs => 2,
        Version::Own => 3,
    };
    let value = Value::File { size: 1, hash: Hash([content; 32]) };
    Some(State { value, mtime: Some(Time::new(content.into(), 0)), access: Some(access_by_number(0o644, 0, 0)) })
}

fn version(value: Option<&Value>) -> Version {
    let all = [Version::Base, Version::Theirs, Version::Own];
    all.into_iter().find(|v| state(*v).map(|s| s.value).as_ref() == value).unwrap_or(Version::Nothing)
}

/// The peer's base version, and what it made of it.
fn known(known: Known) -> (Shown, Option<Entry>) {
    let (base, shown) = mint::mint(None, &Shown::default(), state(Version::Base).as_ref(), dot(9, 1), Rank(10), false);
    let over = |disk: Option<State>, rank| mint::mint(Some(&base), &shown, disk.as_ref(), dot(9, 2), rank, false).0;
    let entry = match known {
        Known::Nothing => None,
        Known::Base => Some(base.clone()),
        Known::Theirs => Some(over(state(Version::Theirs), EARLIER)),
        Known::TheirsLater => Some(over(state(Version::Theirs), LATER)),
        Known::Deleted => Some(over(None, EARLIER)),
    };
    (shown, entry)
}

/// What the code makes of the situation of a row.
fn decide(rule: &Rule) -> (Means, Version, Version, Does) {
    let around = Surroundings::default();
    let (base_shown, entry) = known(rule.known);
    let shown = if rule.before == Before::Base { base_shown } else { Shown::default() };
    let disk = state(rule.disk);
    let how = Circumstances { pairing: rule.before == Before::Unknown, late: false, receives: false };
    let (means, entry, shown) = match mint::observe(entry.as_ref(), &around, &shown, disk.as_ref(), how) {
        Observation::Unchanged => (Means::Nothing, entry, shown),
        Observation::Shows(shown) => (Means::Takes, entry, shown),
        Observation::Changed | Observation::Local => {
            let (entry, shown) = mint::mint(entry.as_ref(), &shown, disk.as_ref(), dot(1, 1), OURS, how.pairing);
            (Means::Mints, Some(entry), shown)
        }
    };
    let view = view::view(entry.as_ref(), &around);
    let listed = entry.as_ref().map(|e| view::conflicts(e, &around)).unwrap_or_default();
    assert!(listed.len() < 2, "{rule:?}: {listed:?}");
    let does = match &view {
        view if mint::agrees(shown.state.as_ref(), view.as_ref()) => Does::Nothing,
        Some(_) => Does::Puts,
        None => Does::Removes,
    };
    (means, version(view.as_ref().map(|s| &s.value)), version(listed.first().map(|l| &l.value)), does)
}

#[test]
fn every_row_is_what_the_code_decides() {
    for rule in RULES {
        assert_eq!(decide(rule), (rule.means, rule.shows, rule.lists, rule.does), "{rule:?}");
    }
}

#[test]
fn every_situation_has_one_row() {
    let mut rows = 0;
    for before in [Before::Base, Before::Nothing, Before::Unknown] {
        for disk in [Version::Nothing, Version::Base, Version::Theirs, Version::Own] {
            // Where the base was shown, it is known.
            let least = if before == Before::Base { Known::Base } else { Known::Nothing };
            for known in [least, Known::Theirs, Known::TheirsLater, Known::Deleted] {
                let of = |r: &&Rule| (r.before, r.disk, r.known) == (before, disk, known);
                assert_eq!(RULES.iter().filter(of).count(), 1, "{before:?} {disk:?} {known:?}");
                rows += 1;
            }
        }
    }
    assert_eq!(rows, RULES.len());
}

/// The rules that no table row may ever break.
#[test]
fn no_row_loses_a_version() {
    for rule in RULES {
        let unseen = matches!(rule.known, Known::Theirs | Known::TheirsLater);
        for version in [Version::Theirs, Version::Own] {
            let there = (version == Version::Theirs && unseen) || (version == rule.disk);
            assert!(!there || rule.shows == version || rule.lists == version, "{rule:?} loses {version:?}");
        }
        assert!(rule.does != Does::Removes || rule.known == Known::Deleted, "{rule:?}: nobody deleted");
    }
}

fn document() -> String {
    let mut text = "# What one look at a path leads to\n\n\
        Generated from `protocol/src/rules.rs` by `PLEACH_BLESS=1 cargo test -p pleach-protocol --test reconcile`, \
        whose tests\ncarry every row out. *Base* is what everybody had, *theirs* what a peer wrote over it, *own* what \
        a user wrote here.\nA file that differs from a link, or a link from another, goes the same way; a directory \
        wins over what is none,\nand lives as long as anything lives beneath it.\n\n\
        | the disk showed | it holds | known | that means | all show | listed | the disk |\n\
        | --- | --- | --- | --- | --- | --- | --- |\n"
        .to_owned();
    let version = |version| match version {
        Version::Nothing => "-",
        Version::Base => "base",
        Version::Theirs => "theirs",
        Version::Own => "own",
    };
    for rule in RULES {
        let before = match rule.before {
            Before::Base => "base",
            Before::Nothing => "-",
            Before::Unknown => "(pairing)",
        };
        let known = match rule.known {
            Known::Nothing => "-",
            Known::Base => "base",
            Known::Theirs => "theirs",
            Known::TheirsLater => "theirs, later",
            Known::Deleted => "deleted",
        };
        let means = match rule.means {
            Means::Nothing => "-",
            Means::Takes => "Shown follows",
            Means::Mints => "a change, announced",
        };
        let does = match rule.does {
            Does::Nothing => "stays",
            Does::Puts => "gets it",
            Does::Removes => "loses it to the vault",
        };
        let (disk, shows, lists) = (version(rule.disk), version(rule.shows), version(rule.lists));
        text.push_str(&format!("| {before} | {disk} | {known} | {means} | {shows} | {lists} | {does} |\n"));
    }
    text
}

#[test]
fn the_document_is_generated_from_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/RULES.md");
    if std::env::var_os("PLEACH_BLESS").is_some() {
        std::fs::write(path, document()).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == document(),
        "RULES.md is not what protocol/src/rules.rs says; run PLEACH_BLESS=1 cargo test -p pleach-protocol --test reconcile"
    );
}
