//! What a fact of the watcher makes due in a tree.

use pleach_protocol::moved::Moved;
use pleach_protocol::path::TreePath;
use pleach_store::ignore;
use pleach_store::kv::Kv;
use pleach_store::tree::{Tree, TreeError};
use pleach_store::vfs::Vfs;

use crate::watch::Fact;

/// Makes due what facts ask for, single paths first. A directory that only moved is told as such before its rows are
/// written.
///
/// # Errors
/// [`TreeError`].
pub fn take_facts<V: Vfs, K: Kv>(
    tree: &mut Tree<V, K>,
    facts: &[Fact],
    mut tell: impl FnMut(&Moved),
) -> Result<(), TreeError> {
    let (paths, others): (Vec<&Fact>, Vec<&Fact>) = facts.iter().partition(|fact| matches!(fact, Fact::Path { .. }));
    for fact in paths {
        take_fact(tree, fact)?;
    }
    for fact in &others {
        if let Fact::Subtree { dir } = fact
            && let Some(moved) = tree.begin_move(dir)?
        {
            tell(&moved);
            tree.finish_move()?;
        }
    }
    if others.iter().any(|fact| matches!(fact, Fact::Subtree { .. } | Fact::Dir { .. })) {
        // A directory that was moved here left another place.
        tree.catch_up_with_gone()?;
    }
    for fact in others {
        take_fact(tree, fact)?;
    }
    Ok(())
}

/// Makes due what a fact asks for. A directory's own time changes with its children, without a fact.
/// Barriers and the end of the root are the caller's.
fn take_fact<V: Vfs, K: Kv>(tree: &mut Tree<V, K>, fact: &Fact) -> Result<(), TreeError> {
    match fact {
        Fact::Lost => tree.scan_later(),
        Fact::Subtree { dir } => {
            look_at_dir(tree, dir);
            tree.scan_below(dir)?;
        }
        Fact::Dir { dir } => {
            look_at_dir(tree, dir);
            tree.scan_children(dir)?;
        }
        // The root is no entry: a touch or a chmod of it is nobody's change.
        Fact::Path { path, .. } if path.is_root() => {}
        Fact::Path { path, content, .. } => {
            let dir = path.parent().unwrap_or_default();
            if path.name() == ignore::FILE_NAME {
                tree.scan_children(&dir)?;
            }
            look_at_dir(tree, &dir);
            tree.look_again(path, *content, false);
        }
        Fact::RootGone | Fact::Barrier { .. } => {}
    }
    Ok(())
}

/// Makes a directory's own look due.
pub(super) fn look_at_dir<V: Vfs, K: Kv>(tree: &mut Tree<V, K>, dir: &TreePath) {
    if !dir.is_root() {
        tree.look_again(dir, false, false);
    }
}
