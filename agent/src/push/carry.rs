//! Carrying out a plan: what is in the way goes, what is to be there is sent, then what is gone is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use pleach_protocol::path::TreePath;
use pleach_store::ignore::FALLBACK_DIR;
use pleach_store::tree::{LIST_SUFFIX, PushGone, PushItem, PushPlan, PushResult, sent_record};
use tokio::sync::mpsc;

use super::PushSetup;
use super::child::{self, Ended, Job, PARTIAL_DIR, path_of};
use super::exit::{self, Meaning};
use super::item::Item;
use super::rules::dirs_above;
use super::work::PushError;
use crate::peer::PeerState;

/// Items under way from rsync's lines to whoever counts them.
const ITEMS_MAX: usize = 256;
/// What a receiver says that takes no names of what is missing (`rules`).
const MODE_OF_MISSING: &str = "invalid file mode 00";
/// What need not be read again is read with the rest, up to this many bytes: one connection less.
const READ_AGAIN_MAX: u64 = 64 << 20;

/// What a run said of the paths.
#[derive(Debug, Default)]
struct Told {
    /// Looked at, with whether it differed.
    paths: BTreeMap<TreePath, bool>,
    deleted: BTreeSet<TreePath>,
    not_empty: BTreeSet<TreePath>,
}

/// Runs rsync, and gathers what it says of the paths. Only codes that say something of each path come back.
async fn run(setup: &PushSetup, job: Job, source: &Path, names: &[TreePath]) -> Result<(Ended, Meaning, Told), Broken> {
    let mut told = Told::default();
    let broken = |error: PushError, told: Told| Broken { told, ..Broken::before(error) };
    if let Err(error) = check_password_file(setup) {
        return Err(broken(error, told));
    }
    let (items, mut found) = mpsc::channel(ITEMS_MAX);
    let gather = async {
        while let Some(item) = found.recv().await {
            match item {
                Item::Path { path, changed, .. } => drop(told.paths.insert(path, changed)),
                Item::Deleted(path) => drop(told.deleted.insert(path)),
                Item::NotEmpty(path) => drop(told.not_empty.insert(path)),
            }
        }
    };
    let (ended, ()) = tokio::join!(child::run(setup, job, source, names, items), gather);
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => return Err(broken(PushError::local(&error), told)),
    };
    let meaning = exit::meaning(ended.code, &ended.said.join("\n"));
    tracing::debug!(peer = setup.name, ?job, paths = names.len(), code = ended.code, "rsync ended");
    match meaning {
        Meaning::Again(state) => {
            let began = !matches!(ended.code, 1..=5 | 10 | 35);
            let full = ended.said.iter().any(|line| line.contains("No space left") || line.contains("(28)"));
            let refuses_missing = ended.code == 2 && ended.said.iter().any(|line| line.contains(MODE_OF_MISSING));
            Err(Broken { error: PushError::Rsync { state, why: ended.why(), full }, told, began, refuses_missing })
        }
        meaning => Ok((ended, meaning, told)),
    }
}

/// A run of which nothing is certain but what it named.
#[derive(Debug)]
struct Broken {
    error: PushError,
    told: Told,
    /// Something may have been sent.
    began: bool,
    /// The daemon takes no names of what is missing.
    refuses_missing: bool,
}

impl Broken {
    /// Nothing was done.
    fn before(error: PushError) -> Self {
        Self { error, told: Told::default(), began: false, refuses_missing: false }
    }
}

/// As rsync does: a file that others may read is none for a password.
fn check_password_file(setup: &PushSetup) -> Result<(), PushError> {
    use std::os::unix::fs::MetadataExt;
    let Some(file) = &setup.config.password_file else { return Ok(()) };
    let refused = |why: String| PushError::Rsync {
        state: PeerState::Refused,
        why: format!("password_file {}: {why}", file.display()),
        full: false,
    };
    let meta = std::fs::metadata(file).map_err(|error| refused(error.to_string()))?;
    if meta.mode() & 0o007 != 0 {
        return Err(refused(format!("others may read it: chmod 600 {}", file.display())));
    }
    if rustix::process::geteuid().is_root() && meta.uid() != 0 {
        return Err(refused(format!("it must be root's, as the agent is: chown root {}", file.display())));
    }
    Ok(())
}

/// How carrying out went: what is certain, and what ended it early.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) result: PushResult,
    pub(super) error: Option<PushError>,
    /// Whether the daemon is known to take no names of what is missing.
    pub(super) by_rules: bool,
}

/// One plan under way.
pub(super) struct Carrier<'a> {
    setup: &'a PushSetup,
    by_rules: bool,
    result: PushResult,
}

impl<'a> Carrier<'a> {
    /// `by_rules`: the daemon is known to take no names of what is missing.
    pub(super) fn new(setup: &'a PushSetup, by_rules: bool) -> Self {
        Self { setup, by_rules, result: PushResult::default() }
    }

    /// Carries out a plan. `deletes_first`: there is no room there for anything else.
    pub(super) async fn carry(mut self, plan: PushPlan, deletes_first: bool) -> Carried {
        let PushPlan { clear, send, gone, touched, owed, settled, upto, .. } = plan;
        self.result.owed = owed;
        self.result.settled = settled;
        let error = self.all(&clear, send, &gone, &touched, deletes_first).await.err();
        self.result.upto = if error.is_none() { upto } else { None };
        Carried { result: self.result, error, by_rules: self.by_rules }
    }

    async fn all(
        &mut self,
        clear: &BTreeSet<PushGone>,
        send: Vec<PushItem>,
        gone: &BTreeSet<PushGone>,
        touched: &BTreeSet<TreePath>,
        deletes_first: bool,
    ) -> Result<(), PushError> {
        let setup = self.setup;
        // What is in the way lies beneath a path that is no directory here: only an empty tree lacks it.
        let empty = child::empty_dir(&setup.empty).map_err(|error| PushError::local(&error))?;
        self.delete(&empty, clear, &BTreeSet::new()).await?;
        if deletes_first {
            let mut gone = gone.clone();
            gone.extend(send.iter().filter(|item| item.unsure).flat_map(|item| partial_of(&item.path)));
            self.delete(&setup.root, &gone, touched).await?;
        }
        // The agent that returns there would take the parts for files.
        let keep = !deletes_first && setup.fallback.is_none();
        self.tell_sent(&send).await?;
        let rest: u64 = send.iter().filter(|item| !item.rewritten).map(|item| item.size).sum();
        if rest <= READ_AGAIN_MAX {
            let again = send.iter().any(|item| item.rewritten);
            self.send(send, again, keep).await?;
        } else {
            let (rewritten, rest) = send.into_iter().partition(|item| item.rewritten);
            self.send(rest, false, keep).await?;
            self.send(rewritten, true, keep).await?;
        }
        if !deletes_first {
            self.delete(&setup.root, gone, touched).await?;
        }
        Ok(())
    }

    /// Says there what a fallback is about to bring: what of it is displaced later is nobody's edit.
    async fn tell_sent(&self, items: &[PushItem]) -> Result<(), PushError> {
        let Some(fallback) = &self.setup.fallback else { return Ok(()) };
        let records: Vec<u8> =
            items.iter().filter_map(|item| Some(sent_record(&item.path, &item.hash?))).flatten().collect();
        if records.is_empty() {
            return Ok(());
        }
        let mut name = child::run_name(&fallback.node).into_bytes();
        name.extend_from_slice(LIST_SUFFIX);
        let Ok(list) = TreePath::ROOT.join(FALLBACK_DIR).and_then(|dir| dir.join(&name)) else { return Ok(()) };
        let file = fallback.lists.join(path_of(&list));
        let written =
            file.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&file, records));
        written.map_err(|error| PushError::local(&error))?;
        let job = Job::Send { again: false, keep: false };
        let told = run(self.setup, job, &fallback.lists, &[list]).await;
        // One that stays is never read again.
        std::fs::remove_file(&file).ok();
        told.map(drop).map_err(|broken| broken.error)
    }

    /// Sends paths; each is there afterwards, or not here any more, or owed.
    async fn send(&mut self, items: Vec<PushItem>, again: bool, keep: bool) -> Result<(), PushError> {
        if items.is_empty() {
            return Ok(());
        }
        let setup = self.setup;
        let names: Vec<TreePath> = items.iter().map(|item| item.path.clone()).collect();
        let (ended, meaning, told) = match run(setup, Job::Send { again, keep }, &setup.root, &names).await {
            Ok(ended) => ended,
            Err(broken) => {
                // Nothing was sent: what was never there is not there.
                let not_there =
                    |item: &&PushItem| item.first && !broken.began && !broken.told.paths.contains_key(&item.path);
                self.result.gone.extend(items.iter().filter(not_there).map(|item| item.path.clone()));
                let broke = |item: &&PushItem| broken.began && !item.dir && !broken.told.paths.contains_key(&item.path);
                self.result.unsure.extend(items.iter().filter(broke).map(|item| item.path.clone()));
                return Err(broken.error);
            }
        };
        // After a failure rsync looks once more, and names what still differs.
        let differs = match meaning {
            Meaning::Partial => Some(self.verify(&names, again).await?),
            _ => None,
        };
        for item in items {
            let failed = differs.as_ref().is_some_and(|d| d.paths.get(&item.path).is_none_or(|changed| *changed));
            let named = told.paths.contains_key(&item.path);
            if failed && (named || differs.as_ref().is_some_and(|d| d.paths.contains_key(&item.path))) {
                let why = ended.why_of(&item.path);
                self.result.owed.push((item.path, why));
            } else if named {
                self.result.there.push(item);
            } else if failed && std::fs::symlink_metadata(setup.root.join(path_of(&item.path))).is_ok() {
                let why = ended.why_of(&item.path);
                self.result.owed.push((item.path, why));
            } else {
                if item.first {
                    self.result.gone.push(item.path.clone());
                }
                self.result.missing.push(item.path);
            }
        }
        Ok(())
    }

    async fn verify(&self, names: &[TreePath], read: bool) -> Result<Told, PushError> {
        let verified = run(self.setup, Job::Verify { read }, &self.setup.root, names).await;
        verified.map(|(_, _, told)| told).map_err(|broken| broken.error)
    }

    /// Deletes by name: files first, then directories from the deepest up, for rsync takes them in its own order.
    async fn delete(
        &mut self,
        source: &Path,
        gone: &BTreeSet<PushGone>,
        touched: &BTreeSet<TreePath>,
    ) -> Result<(), PushError> {
        let mut levels: BTreeMap<usize, Vec<TreePath>> = BTreeMap::new();
        let partials = gone.iter().filter(|gone| gone.unsure).flat_map(|gone| partial_of(&gone.path));
        let all: BTreeSet<PushGone> = gone.iter().cloned().chain(partials).collect();
        for PushGone { path, dir, .. } in all {
            let level = if dir { path.components().count() } else { usize::MAX };
            levels.entry(level).or_default().push(path);
        }
        let last = levels.keys().next().copied();
        for (level, paths) in levels.into_iter().rev() {
            let none = BTreeSet::new();
            let touched = if Some(level) == last { touched } else { &none };
            let (ended, meaning, told) = match self.run_deletion(source, &paths, touched).await {
                Ok(ended) => ended,
                Err(broken) => {
                    self.result.gone.extend(paths.into_iter().filter(|path| broken.told.deleted.contains(path)));
                    return Err(broken.error);
                }
            };
            for path in paths {
                if told.not_empty.contains(&path) {
                    // It holds what pleach did not push. A full check tries again.
                    tracing::info!(peer = self.setup.name, %path, "a directory stays there: it is not empty");
                    self.result.settled.push(path);
                } else if meaning == Meaning::Partial
                    && !told.deleted.contains(&path)
                    && (self.by_rules || ended_with(&ended, &path))
                {
                    let why = ended.why_of(&path);
                    self.result.owed.push((path, why));
                } else {
                    self.result.gone.push(path);
                }
            }
        }
        Ok(())
    }

    /// Deletes paths of one level, and sends the attributes of `touched`.
    async fn run_deletion(
        &mut self,
        source: &Path,
        paths: &[TreePath],
        touched: &BTreeSet<TreePath>,
    ) -> Result<(Ended, Meaning, Told), Broken> {
        let setup = self.setup;
        if !self.by_rules {
            let names: Vec<TreePath> = paths.iter().chain(touched).cloned().collect();
            match run(setup, Job::Delete, source, &names).await {
                Err(broken) if broken.refuses_missing => {
                    tracing::warn!(peer = setup.name, "its rsync takes no deletions by name: they go as rules");
                    self.by_rules = true;
                }
                ended => return ended,
            }
        }
        let local = |error: io::Error| Broken::before(PushError::local(&error));
        let above = setup.note.with_extension("dirs");
        dirs_above(&above, paths).map_err(local)?;
        let deleted = run(setup, Job::DeleteByRules { max: paths.len() }, &above, paths).await;
        // What stays is taken away by the next one.
        std::fs::remove_dir_all(&above).ok();
        let deleted = deleted?;
        if !touched.is_empty() {
            let touched: Vec<TreePath> = touched.iter().cloned().collect();
            run(setup, Job::Send { again: false, keep: false }, source, &touched).await?;
        }
        Ok(deleted)
    }

    /// Says of each path whether it differs there, without a change.
    pub(super) async fn compare(&self, items: &[PushItem]) -> Result<Vec<TreePath>, PushError> {
        let names: Vec<TreePath> = items.iter().map(|item| item.path.clone()).collect();
        let again = items.iter().any(|item| item.rewritten);
        let told = self.verify(&names, again).await?;
        Ok(told.paths.into_iter().filter(|(_, changed)| *changed).map(|(path, _)| path).collect())
    }
}

/// Where rsync keeps what it has of a file, and the directory that it makes for it.
fn partial_of(path: &TreePath) -> Vec<PushGone> {
    let dir = path.parent().unwrap_or_default().join(PARTIAL_DIR.as_bytes());
    let Ok(dir) = dir else { return Vec::new() };
    // A path that would be too long was never made there.
    let file = dir.join(path.name()).ok().map(|path| PushGone { path, dir: false, unsure: false });
    file.into_iter().chain([PushGone { path: dir, dir: true, unsure: false }]).collect()
}

/// Whether rsync named the path among what failed, or named none.
fn ended_with(ended: &Ended, path: &TreePath) -> bool {
    let name = String::from_utf8_lossy(path.name()).into_owned();
    let named = ended.said.iter().any(|line| line.contains("failed") && line.contains(&name));
    named || !ended.said.iter().any(|line| line.contains("failed"))
}

/// Whether the daemon answers and takes changes: a push of nothing.
pub(super) async fn probe(setup: &PushSetup) -> Result<(), PushError> {
    run(setup, Job::Send { again: false, keep: false }, &setup.root, &[]).await.map(drop).map_err(|broken| broken.error)
}

/// Hands out all that is there, some paths at a time.
pub(super) async fn list(setup: &PushSetup, found: mpsc::Sender<(TreePath, bool)>) -> Result<(), PushError> {
    check_password_file(setup)?;
    let empty = child::empty_dir(&setup.empty).map_err(|error| PushError::local(&error))?;
    let (items, mut told) = mpsc::channel(ITEMS_MAX);
    let pass_on = async {
        while let Some(item) = told.recv().await {
            if let Item::Path { path, dir, .. } = item {
                // Whoever does not listen any more ends this anyway.
                found.send((path, dir)).await.ok();
            }
        }
        drop(found);
    };
    let (ended, ()) = tokio::join!(child::run(setup, Job::List, &empty, &[], items), pass_on);
    let ended = ended.map_err(|error| PushError::local(&error))?;
    match exit::meaning(ended.code, &ended.said.join("\n")) {
        Meaning::Done => Ok(()),
        // What it could not list is not known: nothing is deleted.
        Meaning::Partial => Err(PushError::Rsync { state: PeerState::Connected, why: ended.why(), full: false }),
        Meaning::Again(state) => Err(PushError::Rsync { state, why: ended.why(), full: false }),
    }
}
