//! Trees that were copied before pleach came, as `rsync -a` or a tape leaves them: all nodes begin with the same, times and
//! all.

use pleach_store::rows::Direction;
use pleach_store::vfs::Kind;
use pleach_store::vfs::model::ModelUser;

use super::World;
use super::minted::{Deeds, Tree};
use super::ways::Ways;

/// Whether the trees of a seed begin so: where nothing else says who has what.
pub(super) fn begins(seed: u64, ways: &Ways) -> bool {
    let plain = !ways.any(Direction::Send) && !ways.any(Direction::Receive) && !ways.any_first();
    seed % 5 == 3 && plain
}

impl World {
    /// Users of the first node have something there, and copy it to all others that begin.
    pub(super) fn copy_first(&mut self, nodes: usize) -> Result<(), String> {
        if !begins(self.plan.seed, &self.ways) {
            return Ok(());
        }
        for _ in 0..3 + self.random.below(10) {
            self.user_acts_too(0, None)?;
        }
        let copied = self.nodes[0].model.seen();
        for n in 1..nodes {
            copy(&copied, &self.nodes[n].model.disk.user()).map_err(|error| format!("a copy failed: {error}"))?;
            let mut deeds = Deeds::default();
            deeds.note(&Tree::default(), &self.nodes[n].model.seen());
            self.minted.hear_of(deeds);
            self.rest.begin(n);
            for path in copied.keys() {
                self.rest.touch(&String::from_utf8_lossy(path));
            }
        }
        self.say(format!("{} paths are copied to all of {nodes} nodes", copied.len()));
        Ok(())
    }
}

fn copy(tree: &Tree, user: &ModelUser) -> std::io::Result<()> {
    for (path, seen) in tree {
        match seen.kind {
            Kind::Dir => user.mkdir_all(path)?,
            Kind::File => user.write(path, &seen.content)?,
            Kind::Symlink => user.symlink(&seen.content, path)?,
            _ => continue,
        }
        if seen.kind != Kind::Symlink {
            user.chmod(path, seen.mode)?;
        }
        user.chown(path, seen.uid, seen.gid)?;
    }
    // What is put into a directory changes its time.
    for (path, seen) in
        tree.iter().rev().filter(|(_, seen)| matches!(seen.kind, Kind::Dir | Kind::File | Kind::Symlink))
    {
        user.touch(path, seen.mtime)?;
    }
    Ok(())
}
