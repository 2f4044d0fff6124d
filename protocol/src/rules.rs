//! The reconcile table: what one look at a path leads to, whatever the disk holds and whatever is known.
//!
//! Nothing here decides: [`crate::mint`] and [`crate::view`] do. `tests/reconcile.rs` carries out every row
//! against them and generates `RULES.md` from this table.

/// What the disk showed at the last look.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Before {
    /// The base version.
    Base,
    /// Nothing.
    Nothing,
    /// Nobody knows: the root is being paired.
    Unknown,
}

/// One version of a path.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Version {
    /// None.
    Nothing,
    /// What everybody had.
    Base,
    /// What a peer wrote over it.
    Theirs,
    /// What a user wrote here.
    Own,
}

/// What the entry says, after the merge of what peers told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Known {
    /// There is none.
    Nothing,
    /// The base version.
    Base,
    /// A peer's version, written before what the disk holds.
    Theirs,
    /// A peer's version, written after what the disk holds.
    TheirsLater,
    /// A peer took the base version away.
    Deleted,
}

/// What the look means.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Means {
    /// Nothing.
    Nothing,
    /// No change of a user's: Shown follows, peers hear nothing.
    Takes,
    /// A user's change: it is minted and announced.
    Mints,
}

/// What is done to the disk then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Does {
    /// Nothing.
    Nothing,
    /// What the view shows gets the name; what was there goes to the vault.
    Puts,
    /// What is there goes to the vault.
    Removes,
}

/// One row.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// What the disk showed.
    pub before: Before,
    /// What it holds now.
    pub disk: Version,
    /// What the entry says.
    pub known: Known,
    /// What that means.
    pub means: Means,
    /// What every tree shows once all know.
    pub shows: Version,
    /// What is listed as a conflict.
    pub lists: Version,
    /// What is done here.
    pub does: Does,
}

const fn rule(situation: (Before, Version, Known), means: Means, ends: (Version, Version), does: Does) -> Rule {
    let (before, disk, known) = situation;
    let (shows, lists) = ends;
    Rule { before, disk, known, means, shows, lists, does }
}

/// Every row: each that is possible of what was shown, what is there and what is known.
pub const RULES: &[Rule] = &[
    rule((Before::Base, Version::Base, Known::Base), Means::Nothing, (Version::Base, Version::Nothing), Does::Nothing),
    rule((Before::Base, Version::Base, Known::Theirs), Means::Nothing, (Version::Theirs, Version::Nothing), Does::Puts),
    rule(
        (Before::Base, Version::Base, Known::TheirsLater),
        Means::Nothing,
        (Version::Theirs, Version::Nothing),
        Does::Puts,
    ),
    rule(
        (Before::Base, Version::Base, Known::Deleted),
        Means::Nothing,
        (Version::Nothing, Version::Nothing),
        Does::Removes,
    ),
    rule((Before::Base, Version::Own, Known::Base), Means::Mints, (Version::Own, Version::Nothing), Does::Nothing),
    rule((Before::Base, Version::Own, Known::Theirs), Means::Mints, (Version::Own, Version::Theirs), Does::Nothing),
    rule((Before::Base, Version::Own, Known::TheirsLater), Means::Mints, (Version::Theirs, Version::Own), Does::Puts),
    rule((Before::Base, Version::Own, Known::Deleted), Means::Mints, (Version::Own, Version::Nothing), Does::Nothing),
    rule(
        (Before::Base, Version::Theirs, Known::Base),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Base, Version::Theirs, Known::Theirs),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Base, Version::Theirs, Known::TheirsLater),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Base, Version::Theirs, Known::Deleted),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Base, Version::Nothing, Known::Base),
        Means::Mints,
        (Version::Nothing, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Base, Version::Nothing, Known::Theirs),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Puts,
    ),
    rule(
        (Before::Base, Version::Nothing, Known::TheirsLater),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Puts,
    ),
    rule(
        (Before::Base, Version::Nothing, Known::Deleted),
        Means::Takes,
        (Version::Nothing, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Base, Known::Nothing),
        Means::Mints,
        (Version::Base, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Base, Known::Theirs),
        Means::Mints,
        (Version::Base, Version::Theirs),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Base, Known::TheirsLater),
        Means::Mints,
        (Version::Theirs, Version::Base),
        Does::Puts,
    ),
    rule(
        (Before::Nothing, Version::Base, Known::Deleted),
        Means::Mints,
        (Version::Base, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Own, Known::Nothing),
        Means::Mints,
        (Version::Own, Version::Nothing),
        Does::Nothing,
    ),
    rule((Before::Nothing, Version::Own, Known::Theirs), Means::Mints, (Version::Own, Version::Theirs), Does::Nothing),
    rule(
        (Before::Nothing, Version::Own, Known::TheirsLater),
        Means::Mints,
        (Version::Theirs, Version::Own),
        Does::Puts,
    ),
    rule(
        (Before::Nothing, Version::Own, Known::Deleted),
        Means::Mints,
        (Version::Own, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Theirs, Known::Nothing),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Theirs, Known::Theirs),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Theirs, Known::TheirsLater),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Theirs, Known::Deleted),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Nothing, Known::Nothing),
        Means::Nothing,
        (Version::Nothing, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Nothing, Version::Nothing, Known::Theirs),
        Means::Nothing,
        (Version::Theirs, Version::Nothing),
        Does::Puts,
    ),
    rule(
        (Before::Nothing, Version::Nothing, Known::TheirsLater),
        Means::Nothing,
        (Version::Theirs, Version::Nothing),
        Does::Puts,
    ),
    rule(
        (Before::Nothing, Version::Nothing, Known::Deleted),
        Means::Takes,
        (Version::Nothing, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Base, Known::Nothing),
        Means::Mints,
        (Version::Base, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Base, Known::Theirs),
        Means::Mints,
        (Version::Base, Version::Theirs),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Base, Known::TheirsLater),
        Means::Mints,
        (Version::Theirs, Version::Base),
        Does::Puts,
    ),
    rule(
        (Before::Unknown, Version::Base, Known::Deleted),
        Means::Mints,
        (Version::Nothing, Version::Nothing),
        Does::Removes,
    ),
    rule(
        (Before::Unknown, Version::Own, Known::Nothing),
        Means::Mints,
        (Version::Own, Version::Nothing),
        Does::Nothing,
    ),
    rule((Before::Unknown, Version::Own, Known::Theirs), Means::Mints, (Version::Own, Version::Theirs), Does::Nothing),
    rule(
        (Before::Unknown, Version::Own, Known::TheirsLater),
        Means::Mints,
        (Version::Theirs, Version::Own),
        Does::Puts,
    ),
    rule(
        (Before::Unknown, Version::Own, Known::Deleted),
        Means::Mints,
        (Version::Own, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Theirs, Known::Nothing),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Theirs, Known::Theirs),
        Means::Takes,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Theirs, Known::TheirsLater),
        Means::Takes,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Theirs, Known::Deleted),
        Means::Mints,
        (Version::Theirs, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Nothing, Known::Nothing),
        Means::Nothing,
        (Version::Nothing, Version::Nothing),
        Does::Nothing,
    ),
    rule(
        (Before::Unknown, Version::Nothing, Known::Theirs),
        Means::Nothing,
        (Version::Theirs, Version::Nothing),
        Does::Puts,
    ),
    rule(
        (Before::Unknown, Version::Nothing, Known::TheirsLater),
        Means::Nothing,
        (Version::Theirs, Version::Nothing),
        Does::Puts,
    ),
    rule(
        (Before::Unknown, Version::Nothing, Known::Deleted),
        Means::Takes,
        (Version::Nothing, Version::Nothing),
        Does::Nothing,
    ),
];
