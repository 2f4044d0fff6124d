//! What is said of directories that both sides hold alike, so that their rows need not travel ([`crate::alike`]).

use std::collections::BTreeMap;

use super::index::{Actors, fits, names_of};
use super::{BATCHES_MAX, Output, Session, SessionError};
use crate::alike::{ALIKE_DOTS_MAX, ALIKE_PATHS_MAX, Alike, DIGESTS_MAX, DirDigest};
use crate::version::{Actor, Dot};
use crate::wire::{ActorRow, AlikeDir, Message};

/// The most directories of one batch, and dots in them. What is sent stays below both, also where rows do not fit a frame and are read
/// again, an eighth at a time: reads of 48 KiB, 6 KiB and so on to one, each with a directory beyond it.
const BATCH_DIRS_MAX: usize = 1_024;
const BATCH_DOTS_MAX: usize = 8 * ALIKE_DOTS_MAX;

/// One tree's digests in a session.
#[derive(Debug, Default)]
pub(super) struct Digests {
    /// Ours are still to be told.
    telling: bool,
    /// The peer's are still to come: nothing is told before.
    awaited: bool,
    /// So many came.
    heard: usize,
    /// Directories that came since the last batch, and dots in them.
    alike: (usize, usize),
}

impl Digests {
    pub(super) fn new(telling: bool, awaited: bool) -> Self {
        Self { telling, awaited, ..Self::default() }
    }

    pub(super) const fn are_awaited(&self) -> bool {
        self.awaited
    }

    pub(super) const fn begin_batch(&mut self) {
        self.alike = (0, 0);
    }
}

impl Session {
    pub(super) fn read_digests(&mut self, tree: usize) {
        if self.streams.get(tree).is_some_and(|stream| stream.theirs.is_some() && stream.digests.telling) {
            self.outputs.push_back(Output::ReadDigests { tree });
        }
    }

    pub(super) fn send_digests(&mut self, tree: usize, digests: Vec<DirDigest>, last: bool) {
        let Some(stream) = self.streams.get_mut(tree).filter(|stream| stream.digests.telling) else { return };
        let Some(number) = stream.theirs else { return };
        stream.digests.telling = !last;
        if last || !digests.is_empty() {
            self.transmit(&Message::Digests { tree: number, digests, last });
        }
        self.read_digests(tree);
    }

    pub(super) fn handle_digests(
        &mut self,
        tree: u16,
        digests: Vec<DirDigest>,
        last: bool,
    ) -> Result<(), SessionError> {
        let (tree, stream) = self.stream(tree)?;
        let heard = stream.digests.heard.saturating_add(digests.len());
        if !stream.digests.awaited || heard > DIGESTS_MAX || (digests.is_empty() && !last) {
            return Err(SessionError::Protocol("digests that nobody waits for, or too many"));
        }
        (stream.digests.heard, stream.digests.awaited) = (heard, !last);
        self.outputs.push_back(Output::Digests { tree, digests, last });
        self.read_on(tree);
        Ok(())
    }

    /// Sends directories, in as many messages as they need.
    pub(super) fn send_alike(&mut self, number: u16, alike: &[Alike], names: &BTreeMap<Actor, String>) {
        if alike.is_empty() {
            return;
        }
        let message = alike_message(number, alike, names);
        match alike.split_at(alike.len() / 2) {
            (former, latter) if !former.is_empty() && !fits(&message) => {
                self.send_alike(number, former, names);
                self.send_alike(number, latter, names);
            }
            _ => self.transmit(&message),
        }
    }

    pub(super) fn handle_alike(
        &mut self,
        tree: u16,
        actors: &[ActorRow],
        dirs: Vec<AlikeDir>,
    ) -> Result<(), SessionError> {
        let (tree, stream) = self.stream(tree)?;
        let dots = dirs.iter().flat_map(|dir| &dir.dots).map(Vec::len).sum::<usize>();
        let (all_dirs, all_dots) = stream.digests.alike;
        let (all_dirs, all_dots) = (all_dirs.saturating_add(dirs.len()), all_dots.saturating_add(dots));
        stream.digests.alike = (all_dirs, all_dots);
        let granted = stream.unmerged_here() < usize::from(BATCHES_MAX);
        if !granted || all_dirs > BATCH_DIRS_MAX || all_dots > BATCH_DOTS_MAX || dirs.is_empty() {
            return Err(SessionError::Protocol("more directories than were granted, or none"));
        }
        let mut names = names_of(actors)?;
        let mut last: Vec<Dot> = actors.iter().map(|row| Dot { actor: row.actor, counter: 0 }).collect();
        let mut dot = |(number, above): (u32, i64)| {
            let last = last.get_mut(usize::try_from(number).ok()?)?;
            last.counter = last.counter.wrapping_add_signed(above);
            Some(*last).filter(|dot| dot.counter > 0)
        };
        for AlikeDir { dir, digest, dots } in dirs {
            if dots.len() > ALIKE_PATHS_MAX || dots.iter().map(Vec::len).sum::<usize>() > ALIKE_DOTS_MAX {
                return Err(SessionError::Protocol("a directory that is too large to be told so"));
            }
            let dots = dots.into_iter().map(|dots| dots.into_iter().map(&mut dot).collect());
            let dots = dots.collect::<Option<_>>().ok_or(SessionError::Protocol("a dot that there cannot be"))?;
            let alike = Alike { dir: dir.unwrap_or_default(), digest, dots };
            // Once is enough, and as many as there are directories would fill memory.
            let names = std::mem::take(&mut names);
            self.outputs.push_back(Output::MergeAlike { tree, alike, names });
        }
        Ok(())
    }
}

fn alike_message(tree: u16, alike: &[Alike], names: &BTreeMap<Actor, String>) -> Message {
    let mut actors = Actors::new(names);
    // The counter of each actor's last dot.
    let mut last: BTreeMap<Actor, u64> = BTreeMap::new();
    let mut pack = |dot: &Dot| {
        let before = last.insert(dot.actor, dot.counter).unwrap_or_default();
        (actors.number(dot.actor), dot.counter.wrapping_sub(before).cast_signed())
    };
    let dir = |Alike { dir, digest, dots }: &Alike| {
        let dots = dots.iter().map(|dots| dots.iter().map(&mut pack).collect()).collect();
        AlikeDir { dir: Some(dir.clone()).filter(|dir| !dir.is_root()), digest: *digest, dots }
    };
    let dirs = alike.iter().map(dir).collect();
    Message::Alike { tree, actors: actors.rows, dirs }
}
