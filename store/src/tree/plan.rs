//! What a path needs: the disk is looked at, and compared with what the index says (DESIGN.md §7).

use std::sync::Arc;

use pleach_protocol::entry::Value;
use pleach_protocol::mint::agrees;
use pleach_protocol::path::TreePath;
use pleach_protocol::view::State;

use super::apply::Want;
use super::perform::OpKind;
use super::{Observed, Tree, TreeError, content_of};
use crate::kv::Kv;
use crate::root::Place;
use crate::rows::{EntryRow, Pairing};
use crate::vfs::{Kind, Vfs};

/// What has to be done at a path.
pub(super) enum Plan {
    /// Nothing (any more).
    Done,
    /// Another path first, or content is on its way.
    Wait,
    /// This, now.
    Do(OpKind),
    /// It cannot be done for this reason.
    Fail(String),
}

/// Whether a directory can be removed.
enum Removable {
    Now,
    /// Only what users made is left in it, and the tree only receives.
    HoldsLocals,
    /// Not now.
    Not(Plan),
}

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Says what a path needs. Looks at the disk first: a local change is minted before anything else.
    pub(super) fn plan(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        mut row: Arc<EntryRow>,
        wants: &mut Vec<Want>,
    ) -> Result<(Plan, Arc<EntryRow>), TreeError> {
        if self.sends_only() {
            self.pass_over(path, EntryRow::clone(&row));
            return Ok((Plan::Done, row));
        }
        let mut view = self.index.view(path, &row)?;
        let is_dir = view.as_ref().is_some_and(|v| v.value == Value::Dir);
        if self.options.ignore.ignored(path, is_dir) {
            if row.shown.is_some() {
                // The rules may be others again before a scan comes by: it would take what is here for what is to be.
                row = Arc::new(self.forget_shown(path, Arc::unwrap_or_clone(row))?);
            }
            return Ok((Plan::Done, row));
        }
        // What lost to what is shown here did not lose to a deletion that nobody looked at yet.
        let loses = row.entry.content.len() > 1 && !shows_all_known(&row);
        if !loses && is_settled(&row, view.as_ref()) {
            return Ok((Plan::Done, self.take_context(path, row, view.as_ref())));
        }
        let observed = match self.is_as_shown(place, path, &row, false) {
            true => Observed::Same,
            false => self.observe_in(place, path, false, false)?,
        };
        match observed {
            Observed::Busy | Observed::Unread => {
                self.mark(path, false, false);
                return Ok((Plan::Fail("a program is writing it".into()), row));
            }
            Observed::Problem => return Ok((Plan::Fail(self.problems.get(path).cloned().unwrap_or_default()), row)),
            Observed::Skipped => return Ok((Plan::Fail("a mount point or a special file is in the way".into()), row)),
            Observed::Minted | Observed::Same => {
                row = self.index.shared_row(path)?;
                view = self.index.view(path, &row)?;
            }
            Observed::Local => {
                // What users made of it gives way to what a peer says next.
                row = self.index.shared_row(path)?;
                view = self.index.view(path, &row)?;
                let mut there = self.local(path)?.unwrap_or_default();
                there.shown.context = Self::shown(&row).context;
                Arc::make_mut(&mut row).shown = Some(there);
            }
        }
        if is_settled(&row, view.as_ref()) {
            return Ok((Plan::Done, self.take_context(path, row, view.as_ref())));
        }
        let plan = self.plan_change(place, path, &row, view.as_ref(), wants)?;
        Ok((plan, row))
    }

    /// The disk shows the view already: Shown takes the entry's context.
    fn take_context(&mut self, path: &TreePath, mut row: Arc<EntryRow>, view: Option<&State>) -> Arc<EntryRow> {
        let mut changed = !shows_all_known(&row) && show_context(Arc::make_mut(&mut row));
        if self.is_to_tell_access(&row, view)
            && let Some(shown) = &mut Arc::make_mut(&mut row).shown
        {
            // Its stamp alone would say that there is nothing to tell.
            shown.provisional = true;
            changed = true;
            self.mark(path, false, false);
        }
        if changed {
            self.index.put_row_later(path, &row);
        }
        row
    }

    /// Whether no entry says any more whose the file is that this node wrote, and its disk does: where a store that was put back
    /// wrote it while others had forgotten its deletion and put something of another kind there, their context covers what told it.
    /// Only the writer tells it again, so that all take the same.
    pub(super) fn is_to_tell_access(&self, row: &EntryRow, view: Option<&State>) -> bool {
        let shown = row.shown.as_ref().and_then(|shown| shown.shown.state.as_ref());
        let (Some(view), Some(shown)) = (view, shown) else { return false };
        let wrote = || {
            let mut siblings = row.entry.content.iter().filter(|(_, s)| s.content.value() == Some(&view.value));
            siblings.any(|(dot, _)| dot.actor.node == self.options.node)
        };
        view.access.is_none() && shown.access.is_some() && view.value != Value::Dir && !self.receives_only() && wrote()
    }

    /// The same for a row that is about to be written, where the applier would come to nothing else.
    pub(super) fn settle(&self, path: &TreePath, row: &mut EntryRow) -> Result<(), TreeError> {
        if self.sends_only() || !self.index.meta().paired {
            return Ok(());
        }
        let view = self.index.view(path, row)?;
        let is_dir = view.as_ref().is_some_and(|v| v.value == Value::Dir);
        let tells = self.is_to_tell_access(row, view.as_ref());
        if !self.options.ignore.ignored(path, is_dir) && !tells && is_settled(row, view.as_ref()) {
            show_context(row);
        }
        Ok(())
    }

    /// Whether there is nothing left to do about a path whose row this is.
    pub(super) fn is_shown_as_due(&self, path: &TreePath, row: &EntryRow) -> Result<bool, TreeError> {
        let resumed = self.partials.contains_key(path);
        Ok(shows_all_known(row) && !resumed && is_settled(row, self.index.view(path, row)?.as_ref()))
    }

    /// A tree that only sends applies nothing.
    fn pass_over(&mut self, path: &TreePath, mut row: EntryRow) {
        let before = row.shown.clone();
        self.count_as_shown(path, &mut row);
        if row.shown != before {
            self.index.put_row_later(path, &row);
        }
    }

    fn plan_change(
        &mut self,
        place: &Place<V>,
        path: &TreePath,
        row: &EntryRow,
        view: Option<&State>,
        wants: &mut Vec<Want>,
    ) -> Result<Plan, TreeError> {
        let shown = row.shown.as_ref().and_then(|s| s.shown.state.as_ref()).map(|s| &s.value);
        let Some(view) = view else {
            return match shown {
                None => Ok(Plan::Done),
                // What is in it may be on its way elsewhere, and is looked through once.
                Some(Value::Dir) if self.apply.defer(path) => Ok(Plan::Wait),
                Some(Value::Dir) => match self.plan_removal(place, path)? {
                    // It stays until they are gone, and is told of by nobody.
                    Removable::HoldsLocals => {
                        self.leave_to_users(path)?;
                        Ok(Plan::Done)
                    }
                    Removable::Not(plan) => Ok(plan),
                    Removable::Now => Ok(Plan::Do(OpKind::RemoveDir)),
                },
                Some(value) => {
                    if let (_, Some(hash)) = content_of(value)
                        && self.apply.defer(path)
                    {
                        self.motion.leave(hash, path);
                        return Ok(Plan::Wait);
                    }
                    Ok(Plan::Do(OpKind::Displace))
                }
            };
        };
        if shown == Some(&view.value) {
            return Ok(Plan::Do(OpKind::Attributes));
        }
        if let Some(dir) = path.parent().filter(|p| !p.is_root())
            && !self.has_directory(&dir)?
        {
            if let Some(top) = self.releases.above(path) {
                self.hold_beneath(place, &top, path, row)?;
                return Ok(Plan::Done);
            }
            if self.apply.is_stuck(&dir) {
                return Ok(Plan::Fail("its directory could not be made".into()));
            }
            self.take_up(&dir, self.apply.window.get(path).map_or(1, |w| w.seq));
            return Ok(Plan::Wait);
        }
        match (&view.value, shown) {
            (Value::Dir, None) if self.is_release(path) => {
                self.hold_release(path);
                Ok(Plan::Wait)
            }
            (Value::Dir, None) => Ok(Plan::Do(OpKind::MakeDir)),
            (Value::Dir, Some(_)) => Ok(Plan::Do(OpKind::Displace)),
            (Value::Special { .. }, _) => Ok(Plan::Fail("special files are not in this version".into())),
            (_, Some(Value::Dir)) => match self.plan_removal(place, path)? {
                Removable::HoldsLocals => {
                    Ok(Plan::Fail("a directory stands there with files that were made here".into()))
                }
                Removable::Not(plan) => Ok(plan),
                Removable::Now => Ok(Plan::Do(OpKind::RemoveDir)),
            },
            // A switch to what is not shown yet is made after it.
            (Value::Symlink { target }, _) if self.leads_into_release(path, target)? => Ok(Plan::Wait),
            (Value::Symlink { .. }, _) => Ok(Plan::Do(OpKind::Put)),
            (Value::File { .. }, _) => self.plan_content(place, path, row, view, wants),
        }
    }

    /// A directory goes when nothing is left in it: what is unknown there is a creation, what is
    /// known goes first, what is ignored keeps it.
    fn plan_removal(&mut self, place: &Place<V>, path: &TreePath) -> Result<Removable, TreeError> {
        let names = match self.vfs.open_path(&place.root, path).and_then(|dir| self.vfs.list(&dir)) {
            Ok(names) => names,
            Err(error) => return Ok(Removable::Not(Plan::Fail(format!("cannot be listed: {error}")))),
        };
        let (mut waits, mut locals, mut scanned) = (false, false, false);
        for name in names {
            let Ok(child) = path.join(&name.name) else { continue };
            if self.options.ignore.ignored(&child, name.kind == Some(Kind::Dir)) {
                continue;
            }
            let row = self.index.row(&child)?;
            if row.shown.as_ref().is_some_and(|s| s.shown.state.is_some()) {
                let stuck = self.apply.is_stuck(&child);
                if !stuck {
                    // One that failed is taken up when its pause is over, or every round would try it again.
                    self.take_up(&child, row.seq);
                }
                match self.holds_locals(&child)? {
                    true => locals = true,
                    false => waits |= !stuck,
                }
                continue;
            }
            if self.receives_only() && !scanned && self.local(&child)?.is_none() {
                self.scan_below(path)?;
                scanned = true;
            }
            if self.local(&child)?.is_none() {
                if !scanned {
                    self.scan_below(path)?;
                }
                return Ok(Removable::Not(Plan::Wait));
            }
            locals = true;
        }
        Ok(match (waits, locals) {
            (true, _) => Removable::Not(Plan::Wait),
            (false, true) => Removable::HoldsLocals,
            (false, false) => {
                // Nothing is left in it: what users had put there is gone, too.
                self.observe_vanished_locals(path)?;
                Removable::Now
            }
        })
    }
}

/// Whether the disk shows what a path is to show.
fn is_settled(row: &EntryRow, view: Option<&State>) -> bool {
    agrees(row.shown.as_ref().and_then(|s| s.shown.state.as_ref()), view)
}

/// Whether what is shown is all that is known of a path.
fn shows_all_known(row: &EntryRow) -> bool {
    row.shown.as_ref().is_some_and(|shown| shown.shown.context == row.entry.context)
}

/// What is shown is all that is known of a path; says whether that is new.
fn show_context(row: &mut EntryRow) -> bool {
    let context = &row.entry.context;
    let shown = row.shown.get_or_insert_default();
    let new = shown.shown.context != *context;
    if new {
        shown.shown.context.clone_from(context);
        row.pairing = Pairing::No;
    }
    new
}
