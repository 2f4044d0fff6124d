//! What `history` lets go: displaced versions and lines of the journal that are older.

use std::collections::BTreeSet;
use std::time::Duration;

use pleach_protocol::entry::Value;
use pleach_protocol::path::TreePath;

use super::displace::id_name;
use super::{Tree, TreeError};
use crate::kv::Kv;
use crate::rows::{self, HistoryRow, Space, VaultRow};
use crate::vfs::Vfs;

/// What was displaced stays at least so long: an NFS client may have it open and write (LINUX.md §5).
const RETENTION_MIN: Duration = Duration::from_secs(600);
/// Rows looked at in one go.
const ROWS: usize = 512;

impl<V: Vfs, K: Kv> Tree<V, K> {
    /// Lets go of what was displaced, or happened, longer ago than `history`. A version that is
    /// still listed as a conflict stays. Returns how many versions went.
    ///
    /// # Errors
    /// [`TreeError`]; a version that cannot be removed stays for the next time.
    pub fn expire(&mut self, history: Duration) -> Result<u64, TreeError> {
        let now = self.now().nanos_since_epoch();
        let age = history.max(RETENTION_MIN).as_nanos();
        let oldest = now.saturating_sub(i64::try_from(age).unwrap_or(i64::MAX));
        self.expire_history(oldest)?;
        let mut start = vec![Space::Vault as u8];
        let end = [Space::Vault as u8 + 1];
        let mut gone = 0;
        // Wherever they lost: of some versions the path is not known any more.
        let mut losers: Option<BTreeSet<Value>> = None;
        loop {
            let found: Vec<(Vec<u8>, VaultRow)> = self.index.others(&start, &end, ROWS)?;
            let Some((last, _)) = found.last() else { return Ok(gone) };
            start.clone_from(last);
            start.push(0);
            let old: Vec<_> = found.into_iter().filter(|(_, r)| r.time.nanos_since_epoch() < oldest).collect();
            if old.is_empty() {
                continue;
            }
            let place = self.enter()?;
            for (key, row) in old {
                let Some((path, id)) = rows::key_vault(&key) else { continue };
                let listed = match &losers {
                    Some(listed) => listed,
                    None => {
                        let all = self.conflicts(&TreePath::ROOT)?;
                        losers.insert(all.into_iter().map(|c| c.loser.value).collect())
                    }
                };
                if row.open || listed.contains(&row.state.value) {
                    continue;
                }
                match self.vfs.remove_file(&place.vault, &id_name(id)) {
                    Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                        tracing::warn!(path = %path, %error, "an expired version cannot be removed");
                    }
                    _ => {
                        self.forget_version(&path, id, (row.size, row.hash));
                        gone += 1;
                    }
                }
            }
            self.index.commit_if_large()?;
        }
    }

    fn expire_history(&mut self, oldest: i64) -> Result<(), TreeError> {
        let mut after = 0;
        loop {
            let found: Vec<(u64, HistoryRow)> = self.index.history(after, ROWS)?;
            for (seq, row) in &found {
                if row.time.nanos_since_epoch() >= oldest {
                    return Ok(());
                }
                self.index.delete(rows::number_key(Space::History, *seq));
                after = *seq;
            }
            if found.len() < ROWS {
                return Ok(());
            }
            self.index.commit_if_large()?;
        }
    }
}
