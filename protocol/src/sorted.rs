//! A map for the one or two things that a register nearly always holds.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A map in a sorted list: one allocation of the size that is needed, where a node of a tree has room
/// for eleven. Entries are copied and read all the time; hundreds of keys would be slow here.
#[derive(Clone, Eq, Hash, PartialEq)]
pub struct SortedMap<K, V>(Vec<(K, V)>);

/// Room that is made for what a peer or a store announces; more comes as it is read.
const ROOM: usize = 4;

impl<K: Ord, V> SortedMap<K, V> {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    fn find(&self, key: &K) -> Result<usize, usize> {
        self.0.binary_search_by(|(k, _)| k.cmp(key))
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.find(key).ok().map(|at| &self.0[at].1)
    }

    /// Whether the key has a value.
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.find(key).is_ok()
    }

    /// Gives a key a value; returns the old one.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        match self.find(&key) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (key, value));
                None
            }
        }
    }

    /// Takes a key out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        self.find(key).ok().map(|at| self.0.remove(at).1)
    }

    /// Keeps what `keep` says.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        self.0.retain_mut(|(key, value)| keep(key, value));
    }

    /// Keys and values, by key.
    pub fn iter(&self) -> Iter<'_, K, V> {
        self.into_iter()
    }

    /// Keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.iter().map(|(key, _)| key)
    }

    /// Values, by key.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// How many keys there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SortedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}

/// Keys and values of a [`SortedMap`], by key.
pub type Iter<'m, K, V> = std::iter::Map<std::slice::Iter<'m, (K, V)>, fn(&'m (K, V)) -> (&'m K, &'m V)>;

impl<'m, K, V> IntoIterator for &'m SortedMap<K, V> {
    type Item = (&'m K, &'m V);
    type IntoIter = Iter<'m, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(key, value)| (key, value))
    }
}

impl<K, V> IntoIterator for SortedMap<K, V> {
    type Item = (K, V);
    type IntoIter = std::vec::IntoIter<(K, V)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<K: Ord, V> Extend<(K, V)> for SortedMap<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, items: I) {
        for (key, value) in items {
            self.insert(key, value);
        }
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for SortedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Self {
        let mut map = Self::new();
        map.extend(items);
        map
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for SortedMap<K, V> {
    fn from(items: [(K, V); N]) -> Self {
        items.into_iter().collect()
    }
}

impl<K: Serialize, V: Serialize> Serialize for SortedMap<K, V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self)
    }
}

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Deserialize<'de> for SortedMap<K, V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// Reads keys in order and refuses others: nothing of ours writes them, and to sort them could be made slow.
struct InOrder<K, V>(PhantomData<(K, V)>);

impl<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>> Visitor<'de> for InOrder<K, V> {
    type Value = SortedMap<K, V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map with its keys in order")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
        let mut items: Vec<(K, V)> = Vec::with_capacity(access.size_hint().unwrap_or(0).min(ROOM));
        while let Some((key, value)) = access.next_entry()? {
            if items.last().is_some_and(|(last, _)| *last >= key) {
                return Err(A::Error::custom("keys out of order"));
            }
            items.push((key, value));
        }
        Ok(SortedMap(items))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use std::collections::BTreeMap;

    #[test]
    fn it_holds_and_encodes_what_a_tree_map_does() {
        let mut random = 1u32;
        for _ in 0..200 {
            let (mut map, mut twin) = (SortedMap::new(), BTreeMap::new());
            for _ in 0..20 {
                random = random.wrapping_mul(1_103_515_245).wrapping_add(12_345);
                let (key, value) = ((random >> 16) % 9, random >> 8);
                match random >> 28 {
                    0..=9 => assert_eq!(map.insert(key, value), twin.insert(key, value)),
                    10..=12 => assert_eq!(map.remove(&key), twin.remove(&key)),
                    _ => {
                        map.retain(|k, _| *k != key);
                        twin.retain(|k, _| *k != key);
                    }
                }
                assert!(map.iter().eq(twin.iter()) && map.len() == twin.len());
                assert_eq!((map.get(&key), map.contains_key(&key)), (twin.get(&key), twin.contains_key(&key)));
            }
            let bytes = codec::encode(&map);
            assert_eq!(bytes, codec::encode(&twin));
            assert_eq!(codec::decode::<SortedMap<u32, u32>>(&bytes).unwrap(), map);
        }
    }

    #[test]
    fn keys_out_of_order_are_refused() {
        for keys in [vec![(2u32, 1u32), (1, 1)], vec![(1, 1), (1, 2)]] {
            assert!(codec::decode::<SortedMap<u32, u32>>(&codec::encode(&keys)).is_err(), "{keys:?}");
        }
    }
}
