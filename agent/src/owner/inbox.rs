//! What comes in for an owner, in the order in which it is taken.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use pleach_protocol::session::Output;

use super::Event;

/// An owner's end of its channel. A peer that reads our journal does not wait until all is merged that it told, or
/// somebody else did: two nodes that have much to tell each other would merge one after the other. It waits for all else: whoever
/// asks for contents and is told more rows first drops what comes with them. This holds what the channel held, and no more.
pub(super) struct Inbox {
    channel: Receiver<Event>,
    first: VecDeque<Event>,
    rest: VecDeque<Event>,
    /// How many of the rest are to be merged.
    merges: usize,
}

/// Whether something is to be merged; a batch may only say how far it reaches.
const fn is_merge(event: &Event) -> bool {
    match event {
        Event::Output { output: Output::Merge { rows, .. }, .. } => !rows.is_empty(),
        Event::Output { output: Output::MergeAlike { .. }, .. } => true,
        _ => false,
    }
}

/// Whether what a session wants may overtake merges: it reads, and changes nothing of the tree.
const fn may_go_first(event: &Event) -> bool {
    use Output::{Digests, ReadDigests, ReadRows};
    matches!(event, Event::Output { output: Digests { .. } | ReadDigests { .. } | ReadRows { .. }, .. })
}

impl Inbox {
    pub(super) const fn new(channel: Receiver<Event>) -> Self {
        Self { channel, first: VecDeque::new(), rest: VecDeque::new(), merges: 0 }
    }

    /// What is there and comes next.
    pub(super) fn try_next(&mut self) -> Option<Event> {
        while let Ok(event) = self.channel.try_recv() {
            if self.merges > 0 && may_go_first(&event) {
                self.first.push_back(event);
                continue;
            }
            self.merges += usize::from(is_merge(&event));
            self.rest.push_back(event);
        }
        let next = self.first.pop_front().or_else(|| self.rest.pop_front())?;
        self.merges -= usize::from(is_merge(&next));
        Some(next)
    }

    /// What is there, or comes within so long.
    pub(super) fn next_within(&mut self, pause: Duration) -> Result<Event, RecvTimeoutError> {
        self.try_next().map_or_else(|| self.channel.recv_timeout(pause), Ok)
    }

    /// What comes next, awaited for so long. What comes after enough stays here: what is received may not be dropped.
    pub(super) fn next(&mut self, enough: bool, awaited: Option<Duration>) -> Option<Event> {
        match (enough, awaited) {
            (true, _) => None,
            (false, Some(awaited)) => self.next_within(awaited).ok(),
            (false, None) => self.try_next(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use pleach_protocol::path::TreePath;
    use pleach_protocol::version::NodeId;

    use super::*;

    fn output(output: Output) -> Event {
        Event::Output { peer: NodeId([1; 32]), session: 1, output }
    }

    fn merge(upto: u64) -> Event {
        let entry = pleach_protocol::entry::Entry::default();
        let row = pleach_protocol::session::Announcement { path: TreePath::ROOT, entry, content: None };
        output(Output::Merge { tree: 0, rows: vec![row], names: Vec::new(), upto })
    }

    fn reads(after: u64) -> Event {
        output(Output::ReadRows { tree: 0, after, bytes_max: 1 })
    }

    fn upto(event: Option<Event>) -> Option<u64> {
        match event? {
            Event::Output { output: Output::Merge { upto, .. }, .. } => Some(upto),
            Event::Output { output: Output::ReadRows { after, .. }, .. } => Some(after),
            _ => None,
        }
    }

    #[test]
    fn whoever_reads_goes_ahead_of_what_is_to_be_merged() {
        let (sender, channel) = mpsc::channel();
        let mut inbox = Inbox::new(channel);
        [merge(1), merge(2), reads(3)].into_iter().for_each(|event| sender.send(event).unwrap());
        assert_eq!(upto(inbox.try_next()), Some(3));
        assert_eq!(upto(inbox.next(false, None)), Some(1));
        sender.send(reads(4)).unwrap();
        assert_eq!(upto(inbox.next_within(Duration::ZERO).ok()), Some(4));
        assert_eq!(upto(inbox.try_next()), Some(2));
        assert!(inbox.try_next().is_none());
    }

    #[test]
    fn whoever_reads_waits_for_what_others_asked_before() {
        let (sender, channel) = mpsc::channel();
        let mut inbox = Inbox::new(channel);
        [Event::Stop, reads(1)].into_iter().for_each(|event| sender.send(event).unwrap());
        assert!(matches!(inbox.try_next(), Some(Event::Stop)));
        assert_eq!(upto(inbox.try_next()), Some(1));
    }

    #[test]
    fn what_comes_after_enough_was_taken_stays() {
        let (sender, channel) = mpsc::channel();
        let mut inbox = Inbox::new(channel);
        sender.send(merge(1)).unwrap();
        assert!(inbox.next(true, Some(Duration::ZERO)).is_none());
        assert_eq!(upto(inbox.next(false, None)), Some(1));
        assert!(inbox.next(false, Some(Duration::ZERO)).is_none());
    }
}
