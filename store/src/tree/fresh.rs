//! Contents that were read a moment ago, so that telling peers of them costs no second read.

use std::collections::{BTreeMap, VecDeque};

use pleach_protocol::entry::Hash;
use pleach_protocol::path::TreePath;

/// All of them together, in bytes.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// Contents by the path that they were read at; the oldest give way.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    contents: BTreeMap<TreePath, (Hash, Vec<u8>)>,
    order: VecDeque<TreePath>,
    bytes: usize,
}

impl Fresh {
    pub(super) fn put(&mut self, path: &TreePath, hash: Hash, content: Vec<u8>) {
        self.bytes += content.len();
        match self.contents.insert(path.clone(), (hash, content)) {
            Some((_, old)) => self.bytes -= old.len(),
            None => self.order.push_back(path.clone()),
        }
        while self.bytes > BYTES_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.contents.remove(&oldest).map_or(0, |(_, old)| old.len());
        }
    }

    pub(super) fn get(&self, path: &TreePath, hash: Hash) -> Option<&[u8]> {
        self.contents.get(path).filter(|(of, _)| *of == hash).map(|(_, content)| &content[..])
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_give_way_and_another_content_is_none() {
        let mut fresh = Fresh::default();
        let path = |n: usize| TreePath::parse(format!("f{n}").as_bytes()).unwrap();
        let (one, two) = (Hash([1; 32]), Hash([2; 32]));
        for n in 0..20 {
            fresh.put(&path(n), one, vec![1; BYTES_MAX / 16]);
        }
        assert!(fresh.get(&path(3), one).is_none() && fresh.get(&path(4), one).is_some());
        fresh.put(&path(19), two, vec![2; 3]);
        assert_eq!(fresh.get(&path(19), two), Some(&[2; 3][..]));
        assert!(fresh.get(&path(19), one).is_none());
        assert_eq!(fresh.bytes, fresh.contents.values().map(|(_, content)| content.len()).sum::<usize>());
        fresh.clear();
        assert!(fresh.order.is_empty() && fresh.bytes == 0);
    }
}
