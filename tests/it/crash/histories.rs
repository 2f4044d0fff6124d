//! The histories that are swept: what users do on both nodes, phase by phase. What both do in one phase is
//! concurrent.

use pleach_protocol::time::Time;
use pleach_store::vfs::model::ModelUser;

/// One step: whether on the second node, and what a user does there.
pub(super) type Step = (bool, fn(&ModelUser));

/// One history.
#[derive(Debug)]
pub(super) struct History {
    pub(super) name: &'static str,
    /// What is on the disks before their agents ever ran.
    pub(super) before: &'static [Step],
    pub(super) phases: &'static [&'static [Step]],
    /// Contents that lost or were displaced: they must be somewhere.
    pub(super) kept: &'static [&'static str],
    /// Whether the same nodes wrote what is there, however often anybody crashed. At a first pairing whoever
    /// looks first mints what is equal.
    pub(super) same_writers: bool,
}

/// All of them.
pub(super) const ALL: &[&History] = &[&MANY, &EDITS, &RENAMES, &TYPES, &CONFLICTS, &DELETES, &PAIRING];

/// Thirty changes of all kinds.
const MANY: History = History {
    name: "many",
    before: &[],
    phases: &[
        &[
            (false, |u| u.mkdir_all("d/e").unwrap()),
            (false, |u| u.write("d/e/f", "first f").unwrap()),
            (false, |u| u.write("d/g", vec![b'g'; 40_000]).unwrap()),
            (false, |u| u.symlink("d/g", "link").unwrap()),
            (true, |u| u.write("from-b", "first of b").unwrap()),
            (true, |u| u.mkdir_all("hollow").unwrap()),
            (true, |u| u.write("swap", "a file").unwrap()),
        ],
        &[
            (false, |u| u.write("d/e/f", "second f").unwrap()),
            (false, |u| u.replace("from-b", "a's edit of b").unwrap()),
            (false, |u| u.chmod("d/g", 0o600).unwrap()),
            (true, |u| u.touch("hollow", Time::new(77, 7)).unwrap()),
            (true, |u| u.remove("link").unwrap()),
            (true, |u| u.symlink("elsewhere", "link").unwrap()),
            (true, |u| u.write("both", "b's both").unwrap()),
        ],
        &[
            (false, |u| u.write("both", "left").unwrap()),
            (true, |u| u.write("both", "right, later").unwrap()),
            (false, |u| u.rename("d/e", "moved").unwrap()),
            (true, |u| u.write("d/new", "added by b").unwrap()),
            (false, |u| u.remove("swap").unwrap()),
            (false, |u| u.mkdir_all("swap/in").unwrap()),
            (false, |u| u.write("swap/in/x", "beneath").unwrap()),
        ],
        &[
            (true, |u| u.remove_all("moved").unwrap()),
            (false, |u| u.write("d/g", "g is short now").unwrap()),
            (true, |u| u.remove("from-b").unwrap()),
            (true, |u| u.remove_all("swap").unwrap()),
            (true, |u| u.write("swap", "a file again").unwrap()),
        ],
        &[
            (false, |u| u.append("d/g", " and longer").unwrap()),
            (true, |u| u.rename("d/new", "new").unwrap()),
            (false, |u| u.remove("hollow").unwrap()),
            (true, |u| u.chmod("d", 0o700).unwrap()),
        ],
    ],
    kept: &["left", "right, later", "first f", "second f", "a file", "a's edit of b", "beneath"],
    same_writers: true,
};

/// One file after another is replaced, edited in place, cut and dated.
const EDITS: History = History {
    name: "edits",
    before: &[],
    phases: &[
        &[
            (false, |u| u.write("x", "x one").unwrap()),
            (false, |u| u.write("large", vec![b'l'; 70_000]).unwrap()),
            (true, |u| u.mkdir_all("d").unwrap()),
            (true, |u| u.write("d/y", "y one").unwrap()),
            (true, |u| u.write("d/z", "z one").unwrap()),
        ],
        &[
            (true, |u| u.replace("x", "x two").unwrap()),
            (false, |u| u.write("d/y", "y two").unwrap()),
            (false, |u| u.append("d/z", ", z two").unwrap()),
            (true, |u| u.write("large", vec![b'm'; 70_000]).unwrap()),
        ],
        &[
            (false, |u| u.write("x", "x 3rd").unwrap()),
            (true, |u| u.chmod("d/y", 0o640).unwrap()),
            (true, |u| u.touch("d/z", Time::new(99, 9)).unwrap()),
            (false, |u| u.write("large", "small").unwrap()),
        ],
        &[
            (true, |u| u.write("x", "").unwrap()),
            (false, |u| u.replace("d/y", "y three").unwrap()),
            (false, |u| u.chmod("d", 0o750).unwrap()),
        ],
    ],
    kept: &["x one", "x two", "x 3rd", "y one", "y two", "z one"],
    same_writers: true,
};

/// Directories are renamed, swapped and moved into each other.
const RENAMES: History = History {
    name: "renames",
    before: &[],
    phases: &[
        &[
            (false, |u| u.mkdir_all("p/q/r").unwrap()),
            (false, |u| u.write("p/f", "f").unwrap()),
            (false, |u| u.write("p/q/g", "g").unwrap()),
            (false, |u| u.symlink("../g", "p/q/r/link").unwrap()),
            (true, |u| u.mkdir_all("s").unwrap()),
            (true, |u| u.write("s/h", "h").unwrap()),
        ],
        &[(true, |u| u.rename("p", "moved").unwrap()), (false, |u| u.rename("s", "t").unwrap())],
        &[
            (false, |u| u.rename("t", "moved/q/t").unwrap()),
            (true, |u| u.write("moved/new", "made in what moved").unwrap()),
        ],
        &[
            (true, |u| u.rename("moved/q", "swap").unwrap()),
            (true, |u| u.rename("moved/f", "moved/q").unwrap()),
            (true, |u| u.rename("swap", "moved/f").unwrap()),
        ],
        &[(false, |u| u.rename("moved", "p").unwrap())],
    ],
    kept: &["f", "g", "h", "made in what moved"],
    same_writers: true,
};

/// A path is a file, a directory, a link in turn.
const TYPES: History = History {
    name: "types",
    before: &[],
    phases: &[
        &[
            (false, |u| u.write("a", "a file").unwrap()),
            (false, |u| u.mkdir_all("b/c").unwrap()),
            (false, |u| u.write("b/c/f", "beneath b").unwrap()),
            (true, |u| u.symlink("a", "l").unwrap()),
            (true, |u| u.mkdir_all("empty").unwrap()),
        ],
        &[
            (true, |u| u.remove("a").unwrap()),
            (true, |u| u.mkdir_all("a/in").unwrap()),
            (true, |u| u.write("a/in/f", "beneath a").unwrap()),
            (false, |u| u.remove_all("b").unwrap()),
            (false, |u| u.write("b", "b is a file").unwrap()),
            (false, |u| u.remove("l").unwrap()),
            (false, |u| u.write("l", "l is a file").unwrap()),
        ],
        &[
            (false, |u| u.remove_all("a").unwrap()),
            (false, |u| u.symlink("b", "a").unwrap()),
            (true, |u| u.remove("b").unwrap()),
            (true, |u| u.symlink("nowhere", "b").unwrap()),
            (true, |u| u.remove("empty").unwrap()),
            (true, |u| u.write("empty", "no more").unwrap()),
        ],
        &[
            (true, |u| u.remove("a").unwrap()),
            (true, |u| u.write("a", "a file again").unwrap()),
            (false, |u| u.remove("b").unwrap()),
            (false, |u| u.mkdir_all("b").unwrap()),
        ],
    ],
    kept: &["a file", "beneath b", "beneath a", "b is a file"],
    same_writers: true,
};

/// Both sides change the same in one phase.
const CONFLICTS: History = History {
    name: "conflicts",
    before: &[],
    phases: &[
        &[
            (false, |u| u.write("edit", "edit base").unwrap()),
            (false, |u| u.write("gone", "gone base").unwrap()),
            (false, |u| u.mkdir_all("dir/deep").unwrap()),
            (false, |u| u.write("dir/deep/f", "deep base").unwrap()),
            (true, |u| u.write("kind", "kind base").unwrap()),
        ],
        &[
            (false, |u| u.write("edit", "edit of a").unwrap()),
            (true, |u| u.write("edit", "edit of b").unwrap()),
            (false, |u| u.remove("gone").unwrap()),
            (true, |u| u.write("gone", "not gone").unwrap()),
            (true, |u| u.remove_all("dir").unwrap()),
            (false, |u| u.write("dir/deep/new", "kept beneath").unwrap()),
        ],
        &[
            (false, |u| u.write("kind", "kind of a").unwrap()),
            (true, |u| u.remove("kind").unwrap()),
            (true, |u| u.mkdir_all("kind").unwrap()),
            (false, |u| u.write("both", "made by a").unwrap()),
            (true, |u| u.symlink("made by b", "both").unwrap()),
            (false, |u| u.chmod("edit", 0o600).unwrap()),
            (true, |u| u.append("edit", ", longer").unwrap()),
        ],
        &[(false, |u| u.write("edit", "settled by a").unwrap()), (true, |u| u.remove_all("kind").unwrap())],
    ],
    kept: &["edit of a", "edit of b", "kind of a", "made by a"],
    same_writers: true,
};

/// Whole trees come and go.
const DELETES: History = History {
    name: "deletes",
    before: &[],
    phases: &[
        &[
            (false, |u| u.mkdir_all("t/a/b/c").unwrap()),
            (false, |u| u.write("t/a/one", "one").unwrap()),
            (false, |u| u.write("t/a/b/two", "two").unwrap()),
            (false, |u| u.write("t/a/b/c/three", "three").unwrap()),
            (true, |u| u.mkdir_all("hollow/x/y").unwrap()),
            (true, |u| u.write("alone", "alone").unwrap()),
        ],
        &[(true, |u| u.remove_all("t").unwrap()), (false, |u| u.remove_all("hollow").unwrap())],
        &[
            (false, |u| u.mkdir_all("t/a").unwrap()),
            (false, |u| u.write("t/a/one", "one again").unwrap()),
            (true, |u| u.remove("alone").unwrap()),
        ],
        &[(true, |u| u.remove_all("t/a").unwrap()), (false, |u| u.write("alone", "alone again").unwrap())],
        &[(false, |u| u.remove_all("t").unwrap()), (true, |u| u.remove("alone").unwrap())],
    ],
    kept: &["one", "two", "three", "one again", "alone"],
    same_writers: true,
};

/// Two trees that were there before their agents.
const PAIRING: History = History {
    name: "pairing",
    before: &[
        (false, |u| u.mkdir_all("d/e").unwrap()),
        (true, |u| u.mkdir_all("d/e").unwrap()),
        (false, |u| u.write("d/same", "the same").unwrap()),
        (true, |u| u.write("d/same", "the same").unwrap()),
        (false, |u| u.write("d/differs", "differs on a").unwrap()),
        (true, |u| u.write("d/differs", "differs on b").unwrap()),
        (false, |u| u.write("d/e/left", "only on a").unwrap()),
        (true, |u| u.write("right", "only on b").unwrap()),
        (false, |u| u.write("kind", "a file on a").unwrap()),
        (true, |u| u.mkdir_all("kind/in").unwrap()),
        (true, |u| u.write("kind/in/f", "beneath on b").unwrap()),
    ],
    phases: &[&[], &[(false, |u| u.write("d/same", "no longer").unwrap()), (true, |u| u.remove("d/e/left").unwrap())]],
    kept: &["the same", "differs on a", "differs on b", "only on a", "a file on a"],
    same_writers: false,
};
