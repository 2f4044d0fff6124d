//! What is said of directories that both sides hold alike, so that their rows need not travel ([`crate::alike`]).

use std::collections::BTreeMap;

use super::{BATCHES_MAX, Output, Session, SessionError};
use crate::alike::{ALIKE_DOTS_MAX, ALIKE_PATHS_MAX, Alike, DIGESTS_MAX, DirDigest};
use crate::path::TreePath;
use crate::version::{Actor, Dot};
use crate::wire::{ActorRow, Message, is_name};

/// The most directories of one batch, and dots in them; what is sent stays far below both.
const BATCH_ALIKE_MAX: usize = 1_024;
const BATCH_DOTS_MAX: usize = 16 * ALIKE_DOTS_MAX;

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

    pub(super) fn handle_alike(
        &mut self,
        tree: u16,
        (dir, digest): (TreePath, [u8; 16]),
        actors: &[ActorRow],
        dots: &[Vec<(u32, u64)>],
    ) -> Result<(), SessionError> {
        let (tree, stream) = self.stream(tree)?;
        let count = dots.iter().map(Vec::len).sum::<usize>();
        let (dirs, all) = stream.digests.alike;
        let (dirs, all) = (dirs.saturating_add(1), all.saturating_add(count));
        stream.digests.alike = (dirs, all);
        let granted = stream.unmerged_here() < usize::from(BATCHES_MAX);
        if !granted || dirs > BATCH_ALIKE_MAX || all > BATCH_DOTS_MAX {
            return Err(SessionError::Protocol("more directories than were granted"));
        }
        if dots.len() > ALIKE_PATHS_MAX || count > ALIKE_DOTS_MAX {
            return Err(SessionError::Protocol("a directory that is too large to be told so"));
        }
        if actors.iter().any(|row| !row.name.is_empty() && !is_name(&row.name)) {
            return Err(SessionError::Protocol("a name that cannot be shown"));
        }
        let dot = |(number, counter): (u32, u64)| {
            let row = usize::try_from(number).ok().and_then(|number| actors.get(number))?;
            (counter > 0).then_some(Dot { actor: row.actor, counter })
        };
        let dots = dots.iter().map(|dots| dots.iter().copied().map(dot).collect::<Option<Vec<Dot>>>());
        let dots = dots.collect::<Option<_>>().ok_or(SessionError::Protocol("a dot that there cannot be"))?;
        let named = actors.iter().filter(|row| !row.name.is_empty());
        let names = named.map(|row| (row.actor, row.name.clone())).collect();
        self.outputs.push_back(Output::MergeAlike { tree, alike: Alike { dir, digest, dots }, names });
        Ok(())
    }
}

pub(super) fn alike_message(tree: u16, alike: Alike, names: &BTreeMap<Actor, String>) -> Message {
    let mut actors: Vec<ActorRow> = Vec::new();
    let mut numbers: BTreeMap<Actor, u32> = BTreeMap::new();
    let mut number = |actor| {
        *numbers.entry(actor).or_insert_with(|| {
            actors.push(ActorRow { actor, name: names.get(&actor).cloned().unwrap_or_default() });
            u32::try_from(actors.len()).unwrap_or(u32::MAX).saturating_sub(1)
        })
    };
    let packed = |dots: &Vec<Dot>| dots.iter().map(|dot| (number(dot.actor), dot.counter)).collect();
    let dots = alike.dots.iter().map(packed).collect();
    let dir = Some(alike.dir).filter(|dir| !dir.is_root());
    Message::Alike { tree, dir, digest: alike.digest, actors, dots }
}
