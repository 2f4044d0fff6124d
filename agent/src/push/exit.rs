//! What each exit code of rsync means here. Source: rsync(1), EXIT VALUES, and what Debian's 3.5.0 does.

use crate::peer::PeerState;

/// What follows from an exit code.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Meaning {
    /// All of it was done.
    Done,
    /// Some of it was done: each path is looked at again.
    Partial,
    /// Nothing can be said: it is tried again, and the peer is shown so meanwhile.
    Again(PeerState),
}

/// Code, what it means, and in a few words why.
pub const CODES: &[(i32, Meaning, &str)] = &[
    (0, Meaning::Done, "done"),
    (1, Meaning::Again(PeerState::Refused), "an option or the request was refused (a read-only module, too)"),
    (2, Meaning::Again(PeerState::Refused), "the two rsyncs do not speak one protocol"),
    (3, Meaning::Again(PeerState::Refused), "a file or directory of the command cannot be used"),
    (4, Meaning::Again(PeerState::Refused), "the daemon does not support, or refuses, an option"),
    (5, Meaning::Again(PeerState::Refused), "the daemon refused: user, password, module or its limits"),
    (6, Meaning::Again(PeerState::Refused), "the daemon cannot write its log"),
    (10, Meaning::Again(PeerState::Unreachable), "the connection failed"),
    (11, Meaning::Again(PeerState::Refused), "reading or writing a file failed (a full disk there, too)"),
    (12, Meaning::Again(PeerState::Unreachable), "the connection ended in the middle"),
    (13, Meaning::Again(PeerState::Unreachable), "rsync failed within"),
    (14, Meaning::Again(PeerState::Unreachable), "rsync's own processes lost each other"),
    (15, Meaning::Again(PeerState::Unreachable), "rsync's own processes lost each other"),
    (16, Meaning::Again(PeerState::Unreachable), "rsync was ended by a signal"),
    (19, Meaning::Again(PeerState::Unreachable), "rsync was ended by a signal"),
    (20, Meaning::Again(PeerState::Unreachable), "rsync was ended by a signal"),
    (21, Meaning::Again(PeerState::Unreachable), "rsync could not wait for its own process"),
    (22, Meaning::Again(PeerState::Unreachable), "rsync lacks memory"),
    (23, Meaning::Partial, "some paths could not be sent or deleted"),
    (24, Meaning::Done, "some paths vanished while they were sent: their deletion follows"),
    (25, Meaning::Partial, "the limit of deletions was reached"),
    (30, Meaning::Again(PeerState::Unreachable), "no data came or went for as long as timeout says"),
    (35, Meaning::Again(PeerState::Unreachable), "the daemon did not answer in time"),
];

/// The daemon has no room for another connection: nobody's fault, and soon over.
const BUSY: &str = "max connections";

/// What a code means, with what rsync said.
#[must_use]
pub fn meaning(code: i32, said: &str) -> Meaning {
    if code == 5 && said.contains(BUSY) {
        return Meaning::Again(PeerState::Unreachable);
    }
    let row = CODES.iter().find(|(known, ..)| *known == code);
    row.map_or(Meaning::Again(PeerState::Unreachable), |(_, meaning, _)| *meaning)
}

/// A code in words.
#[must_use]
pub fn words(code: i32) -> &'static str {
    CODES
        .iter()
        .find(|(known, ..)| *known == code)
        .map_or("rsync ended with a code that it does not document", |row| row.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_manual_has_a_meaning() {
        // rsync(1), EXIT VALUES.
        let manual = [0, 1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 20, 21, 22, 23, 24, 25, 30, 35];
        for code in manual {
            assert!(CODES.iter().any(|(known, ..)| *known == code), "{code}");
        }
        assert_eq!(meaning(5, "@ERROR: max connections (1) reached"), Meaning::Again(PeerState::Unreachable));
        assert_eq!(meaning(5, "@ERROR: auth failed on module m"), Meaning::Again(PeerState::Refused));
        assert_eq!(meaning(99, ""), Meaning::Again(PeerState::Unreachable));
    }

    #[test]
    fn the_architecture_lists_every_code() {
        let doc = include_str!("../../../ARCHITECTURE.md");
        for (code, meaning, why) in CODES {
            let state = match meaning {
                Meaning::Done => "done",
                Meaning::Partial => "each path on its own",
                Meaning::Again(PeerState::Refused) => "refused, again",
                Meaning::Again(_) => "unreachable, again",
            };
            let line = format!("| {code} | {state} | {why} |");
            assert!(doc.contains(&line), "{line}");
        }
    }
}
