//! How a node of the simulation learns of changes: the agent's watcher on the modelled kernel's events,
//! which are read late and in pieces, or whole scans alone.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pleach_agent::owner::facts::take_facts;
use pleach_agent::watch::kernel::{Event, Kernel, Wd};
use pleach_agent::watch::stepped::SteppedWatcher;
use pleach_agent::watch::{Fact, WatchError, Watcher};
use pleach_protocol::moved::Moved;
use pleach_store::root::RootError;
use pleach_store::tree::TreeError;
use pleach_store::vfs::model::{ModelDisk, ModelInotify, WatchedDir};

use super::Random;
use crate::model::ModelTree;

/// Events that a queue holds where queues overflow.
const SMALL_QUEUE: usize = 12;
/// Watches that a node may have where they do not suffice.
const FEW_WATCHES: usize = 3;

/// What a seed's nodes are told of changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Watch {
    /// Events, all of them.
    Events,
    /// Events, and now and then the queue is full.
    Overflows,
    /// Watches do not suffice: some directories are polled.
    Few,
    /// Nothing: they scan.
    Scans,
}

impl Watch {
    pub(super) fn draw(random: &mut Random) -> Self {
        match random.below(8) {
            0..=2 => Self::Events,
            3 | 4 => Self::Overflows,
            5 => Self::Few,
            _ => Self::Scans,
        }
    }

    /// How a round looks for changes: whether it scans, and how many events it reads first.
    pub(super) fn look(self, random: &mut Random) -> Look {
        let events = match random.below(4) {
            0 => 0,
            1 => random.index(6),
            _ => usize::MAX,
        };
        Look { scan: random.once_in(if self == Self::Scans { 3 } else { 80 }), events, mark: random.once_in(8) }
    }

    /// How a round of healing looks: events are to suffice where there are any.
    pub(super) fn look_healing(self, turn: usize) -> Look {
        Look { scan: self == Self::Scans && turn % 3 == 2, events: usize::MAX, mark: turn == 10 }
    }
}

/// How one round looks for changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub(super) scan: bool,
    pub(super) events: usize,
    /// Whether `.pleach/last` is written.
    pub(super) mark: bool,
}

impl Look {
    /// Reads all events.
    pub(super) const EVENTS: Self = Self { scan: false, events: usize::MAX, mark: false };
}

/// The modelled kernel, as far as a watcher sees it.
#[derive(Debug)]
pub(super) struct ModelKernel {
    inotify: ModelInotify,
    /// Events that it still hands out.
    allowed: Arc<AtomicUsize>,
}

impl Kernel for ModelKernel {
    type Root = (WatchedDir, u64);
    type Identity = (u64, u64);
    type Dir = WatchedDir;
    type Watch = i32;

    fn open_root(&self) -> io::Result<Self::Root> {
        self.inotify.open_root()
    }

    fn identify(root: &Self::Root) -> Self::Identity {
        (root.0.inode().unwrap_or(0), root.1)
    }

    fn open_dir(root: &Self::Root, path: &[u8]) -> io::Result<WatchedDir> {
        root.0.open(path)
    }

    fn list(dir: &WatchedDir, mut each: impl FnMut(&[u8], bool) -> ControlFlow<()>) -> io::Result<()> {
        for (name, is_dir) in dir.list()? {
            if each(&name, is_dir).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn watch(&self, dir: &WatchedDir, mask: u32) -> io::Result<i32> {
        self.inotify.watch(dir, mask)
    }

    fn wd(watch: &i32) -> Wd {
        *watch
    }

    fn unwatch(&self, watches: impl IntoIterator<Item = i32>) {
        for wd in watches {
            // Fails where the directory is gone.
            drop(self.inotify.unwatch(wd));
        }
    }

    fn read(&mut self, pending: &mut VecDeque<Event>) -> io::Result<()> {
        let events = self.inotify.read(self.allowed.load(Ordering::Relaxed))?;
        let left = self.allowed.load(Ordering::Relaxed) - events.len();
        self.allowed.store(left, Ordering::Relaxed);
        pending.extend(events.into_iter().map(|event| Event::new(event.wd, event.mask, &event.name)));
        Ok(())
    }
}

/// A node's watcher, where it has one.
#[derive(Debug)]
pub(super) struct Watching {
    watcher: SteppedWatcher<ModelKernel>,
    allowed: Arc<AtomicUsize>,
}

impl Watching {
    /// Begins to watch a disk.
    pub(super) fn start(disk: &ModelDisk, how: Watch) -> Result<Option<Self>, WatchError> {
        let inotify = ModelInotify::new(disk);
        match how {
            Watch::Scans => return Ok(None),
            Watch::Events => {}
            Watch::Overflows => inotify.limit(SMALL_QUEUE, usize::MAX).map_err(WatchError::Setup)?,
            Watch::Few => inotify.limit(usize::MAX, FEW_WATCHES).map_err(WatchError::Setup)?,
        }
        let allowed = Arc::new(AtomicUsize::new(usize::MAX));
        let kernel = ModelKernel { inotify, allowed: Arc::clone(&allowed) };
        let watcher = SteppedWatcher::start(kernel, Arc::new(|_, _| false))?;
        Ok(Some(Self { watcher, allowed }))
    }

    /// Hands the tree what the watcher finds in so many events.
    pub(super) fn follow(
        &mut self,
        tree: &mut ModelTree,
        events: usize,
        mut tell: impl FnMut(&Moved),
    ) -> Result<(), TreeError> {
        self.allowed.store(events, Ordering::Relaxed);
        let facts = match self.watcher.poll(Duration::ZERO) {
            Ok(facts) => facts,
            Err(error) => return Err(RootError::Missing(io::Error::other(error)).into()),
        };
        if facts.contains(&Fact::RootGone) {
            tree.check_root()?;
            return Err(RootError::Missing(io::ErrorKind::NotFound.into()).into());
        }
        take_facts(tree, &sorted(facts), &mut tell)?;
        // The owner reads them every five seconds.
        if events == usize::MAX {
            tree.poll_links(usize::MAX)?;
        }
        for dir in self.watcher.polled().clone() {
            if events == usize::MAX {
                take_facts(tree, &[Fact::Subtree { dir }], &mut tell)?;
                // Perhaps there is room for watches by now.
                self.watcher.refresh();
            }
        }
        if tree.take_rules_changed() {
            tree.scan_later();
            self.watcher.refresh();
        }
        Ok(())
    }
}

/// The dirty set hands out directories in no order.
fn sorted(mut facts: Vec<Fact>) -> Vec<Fact> {
    facts.sort();
    facts
}
