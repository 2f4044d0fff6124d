//! Facts become looks: when a changed path is looked at, and files that a writer keeps.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pleach_protocol::path::TreePath;
use pleach_protocol::session::Output;
use pleach_store::ignore::IgnoreRules;
use pleach_store::root::RootError;
use pleach_store::tree::{ScanStats, TreeError};

use super::facts::{look_at_dir, take_facts};
use super::{BUSY, EVENTS_MAX, Event, READ_ON_MAX, READ_ON_SCANNING, Running, WatchNews};
use crate::config::{OpenFiles, TreeConfig};
use crate::exchange::may_go_before_scan;
use crate::machine::lock;
use crate::watch::Fact;

/// A file that only grows is taken this often. Source: CONTRACT.md, `open_files`.
const OPEN_FILES_MAX: Duration = Duration::from_secs(60);
/// Entries that the first scan looks at before peers are answered.
const ENTRIES_AT_ONCE: u64 = 400;
/// Entries of a further scan between two rounds of all else: some 50 ms where they are in memory.
const RESCANNED_AT_ONCE: u64 = 8_192;
/// The soonest that kept files are looked at again, where there are no more of them than that.
const AGAIN_MIN: Duration = Duration::from_millis(1);
const KEPT_AT_ONCE: usize = 64;
/// How often directories without watches are read, and files with names outside of the tree looked at.
const POLLED_EVERY: Duration = Duration::from_secs(5);
/// So many of these: some 10 ms of one processor.
const LINKS_AT_ONCE: usize = 1_024;

/// A file that a writer keeps.
#[derive(Clone, Copy, Debug)]
struct Kept {
    since: Instant,
    touched: Instant,
}

/// When paths are looked at. See the module.
#[derive(Debug)]
pub(super) struct Looks {
    open_files: OpenFiles,
    rescan: Duration,
    rules: Arc<Mutex<IgnoreRules>>,
    taken: Sender<()>,
    refresh: Sender<()>,
    /// Files that are open for writing or not settled; each was dirty, so there are no more than
    /// the tree lets be dirty.
    kept: BTreeMap<TreePath, Kept>,
    /// Somebody waits: kept files are taken as they are.
    take_all: bool,
    news: WatchNews,
    scanned: Instant,
    polled: Instant,
    gone: Option<String>,
}

impl Looks {
    pub(super) fn new(
        config: &TreeConfig,
        rules: Arc<Mutex<IgnoreRules>>,
        taken: Sender<()>,
        refresh: Sender<()>,
    ) -> Self {
        Self {
            open_files: config.open_files,
            rescan: config.rescan,
            rules,
            taken,
            refresh,
            kept: BTreeMap::new(),
            take_all: false,
            news: WatchNews::default(),
            scanned: Instant::now(),
            polled: Instant::now(),
            gone: None,
        }
    }

    pub(super) fn has_kept(&self) -> bool {
        !self.kept.is_empty()
    }

    /// When kept files are due again: soon after an event, and later with each look that finds them kept still. The event of a
    /// close can be here before the kernel counts one writer less, and is the last one.
    pub(super) fn again_after(&self, now: Instant) -> Option<Duration> {
        let quiet = self.kept.values().map(|kept| now.saturating_duration_since(kept.touched)).min()?;
        Some(if self.kept.len() > KEPT_AT_ONCE { BUSY } else { quiet.clamp(AGAIN_MIN, BUSY) })
    }

    pub(super) const fn news(&self) -> &WatchNews {
        &self.news
    }

    /// Tells the forwarder that it may bring more.
    pub(super) fn facts_taken(&self) {
        // The forwarder ends with the tree; it need not hear us then.
        self.taken.send(()).ok();
    }

    pub(super) fn watch_ended(&mut self, reason: &str) {
        self.gone = Some(reason.to_owned());
    }

    fn set_rules(&self, rules: IgnoreRules) {
        *lock(&self.rules) = rules;
        // What was ignored is not watched: the watcher walks again.
        self.refresh.send(()).ok();
    }
}

impl Running<'_> {
    /// Walks the whole tree. Peers hear what is found meanwhile; all else that comes in waits.
    pub(super) fn first_scan(&mut self) -> Result<(), TreeError> {
        let mut scan = self.tree.begin_scan();
        let mut began = Instant::now();
        while !self.tree.scan_on(&mut scan, ENTRIES_AT_ONCE)? {
            self.keeper.exchange.tell(&self.tree);
            self.show_scan(scan.stats());
            self.answer_while_scanning(READ_ON_MAX.max(began.elapsed() * 2))?;
            if self.keeper.stop {
                return Ok(());
            }
            began = Instant::now();
        }
        self.take_rules();
        self.advance()
    }

    /// Answers what comes in, for so long: peers take in what was found while more is found.
    fn answer_while_scanning(&mut self, at_most: Duration) -> Result<(), TreeError> {
        let (began, mut taken, mut awaited) = (Instant::now(), 0, None);
        while taken < EVENTS_MAX && began.elapsed() < at_most {
            let Some(event) = self.keeper.events.next(false, awaited) else { return Ok(()) };
            let reads = matches!(event, Event::Output { output: Output::ReadRows { .. }, .. });
            (taken, awaited) = (taken + 1, reads.then_some(READ_ON_SCANNING));
            match event {
                Event::Output { ref output, .. } if !may_go_before_scan(output) => self.keeper.later.push(event),
                Event::Stop | Event::Offer { .. } | Event::Output { .. } | Event::Detach { .. } => self.take(event)?,
                _ => self.keeper.later.push(event),
            }
        }
        Ok(())
    }

    /// How far the first scan is, for whoever looks.
    fn show_scan(&self, scan: &ScanStats) {
        let meta = self.tree.index().meta();
        let mut status = lock(&self.keeper.status);
        (status.entries, status.bytes, status.seq) = (meta.entries, meta.bytes, self.tree.head());
        status.scan = Some(*scan);
    }

    fn take_rules(&mut self) -> bool {
        let changed = self.tree.take_rules_changed();
        if changed {
            self.looks.set_rules(self.tree.ignore().clone());
        }
        changed
    }

    /// Turns facts into looks.
    pub(super) fn take_facts(&mut self, facts: &[Fact], news: WatchNews) -> Result<(), TreeError> {
        self.looks.news = news;
        for fact in facts {
            match fact {
                Fact::RootGone => self.looks.gone = Some("the root was moved, deleted or unmounted".to_owned()),
                Fact::Barrier { name } => self.barrier_passed(name),
                Fact::Path { path, .. } => {
                    if let Some(kept) = self.looks.kept.get_mut(path) {
                        kept.touched = Instant::now();
                    }
                }
                _ => {}
            }
        }
        let exchange = &self.keeper.exchange;
        take_facts(&mut self.tree, facts, |moved| exchange.tell_moved(moved, None))?;
        if self.take_rules() {
            self.tree.scan_later();
            self.push_all_again()?;
        }
        Ok(())
    }

    /// Looks at what is dirty; files that a writer keeps are looked at when it is done.
    pub(super) fn look(&mut self) -> Result<(), TreeError> {
        if let Some(reason) = self.looks.gone.take() {
            self.tree.check_root()?;
            return Err(RootError::Missing(std::io::Error::other(reason)).into());
        }
        let now = Instant::now();
        if !self.looks.rescan.is_zero() && now.duration_since(self.looks.scanned) >= self.looks.rescan {
            self.looks.scanned = now;
            self.tree.scan_later();
        }
        if now.duration_since(self.looks.polled) >= POLLED_EVERY {
            self.read_polled()?;
            self.tree.poll_links(LINKS_AT_ONCE)?;
        }
        let take_all = std::mem::take(&mut self.looks.take_all);
        for (path, kept) in &self.looks.kept {
            let due = match self.looks.open_files {
                OpenFiles::Never => false,
                OpenFiles::After(quiet) => {
                    now.duration_since(kept.touched) >= quiet || now.duration_since(kept.since) >= OPEN_FILES_MAX
                }
            };
            self.tree.look_again(path, true, due || take_all);
        }
        let busy = if take_all { self.tree.catch_up()? } else { self.tree.catch_up_by(RESCANNED_AT_ONCE)? };
        let mut kept = std::mem::take(&mut self.looks.kept);
        for path in busy {
            let at = kept.remove(&path).unwrap_or(Kept { since: now, touched: now });
            self.looks.kept.insert(path, at);
        }
        // What is read again and again, for it changes meanwhile, is taken as it is in the end, too.
        self.looks.kept.extend(kept.into_iter().filter(|(path, _)| self.tree.is_reading(path)));
        self.tree.check_late_writers()?;
        self.tree.sync_minted(false)
    }

    /// Reads directories that have no watch.
    fn read_polled(&mut self) -> Result<(), TreeError> {
        self.looks.polled = Instant::now();
        if self.looks.news.polled.is_empty() {
            return Ok(());
        }
        for dir in self.looks.news.polled.clone() {
            look_at_dir(&mut self.tree, &dir);
            self.tree.scan_below(&dir)?;
        }
        // Perhaps there is room for watches by now.
        self.looks.refresh.send(()).ok();
        Ok(())
    }

    /// Takes everything that changed on disk so far, also what is kept or not watched: the caller
    /// has seen every event of before.
    pub(super) fn take_all(&mut self) -> Result<(), TreeError> {
        self.read_polled()?;
        self.tree.look_for_links();
        self.tree.poll_links(usize::MAX)?;
        self.tree.catch_up().map(|busy| {
            for path in busy {
                let now = Instant::now();
                self.looks.kept.entry(path).or_insert(Kept { since: now, touched: now });
            }
        })?;
        self.looks.take_all = true;
        self.look()?;
        self.tree.sync_minted(true)?;
        self.advance()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn kept_files_are_due_soon_after_an_event_and_later_with_each_look() {
        let rules = Arc::new(Mutex::new(IgnoreRules::new(&[]).unwrap()));
        let mut looks = Looks::new(&TreeConfig::new("www", "/srv/www"), rules, channel().0, channel().0);
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        assert_eq!(looks.again_after(at(0)), None);
        let keep = |looks: &mut Looks, name: &str, touched| {
            looks.kept.insert(TreePath::parse(name.as_bytes()).unwrap(), Kept { since: begin, touched });
        };
        keep(&mut looks, "f", begin);
        for (after, pause) in [(0, 1), (1, 1), (2, 2), (30, 30), (99, 99), (100, 100), (9_000, 100)] {
            assert_eq!(looks.again_after(at(after)), Some(Duration::from_millis(pause)));
        }
        keep(&mut looks, "g", at(9_000));
        assert_eq!(looks.again_after(at(9_003)), Some(Duration::from_millis(3)));
        // So many are not looked at a thousand times a second.
        for n in 0..KEPT_AT_ONCE {
            keep(&mut looks, &n.to_string(), at(9_000));
        }
        assert_eq!(looks.again_after(at(9_003)), Some(BUSY));
    }
}
