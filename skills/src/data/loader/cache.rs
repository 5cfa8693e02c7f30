//! What was used last, within a bound in bytes. It does not know what it keeps.

use std::collections::{BTreeMap, HashMap};

/// Which chunk: episode, stream (0 for the steps, then the cameras), number in the stream.
pub(super) type Key = (u32, u32, u32);

/// A value that knows how much memory it takes.
pub(super) trait Weigh {
    /// Bytes.
    fn memory_bytes(&self) -> usize;
}

/// Values by key; those used longest ago make room.
#[derive(Debug)]
pub(super) struct Cache<V> {
    bytes_max: usize,
    bytes: usize,
    /// Counts uses.
    now: u64,
    values: HashMap<Key, Entry<V>>,
    by_use: BTreeMap<u64, Key>,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    bytes: usize,
    used: u64,
}

impl<V: Clone + Weigh> Cache<V> {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, now: 0, values: HashMap::new(), by_use: BTreeMap::new() }
    }

    /// Bytes of everything in it.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&mut self, key: Key) -> Option<V> {
        let entry = self.values.get_mut(&key)?;
        self.now += 1;
        self.by_use.remove(&entry.used);
        self.by_use.insert(self.now, key);
        entry.used = self.now;
        Some(entry.value.clone())
    }

    /// Keeps a value, unless it is larger than the whole bound.
    pub(super) fn put(&mut self, key: Key, value: V) {
        let bytes = value.memory_bytes();
        // Two threads that miss the same chunk both read it; the second finds it here.
        if bytes > self.bytes_max || self.values.contains_key(&key) {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            let (_, oldest) = self.by_use.pop_first().expect("what fills the cache has been used");
            self.bytes -= self.values.remove(&oldest).expect("both maps hold the same").bytes;
        }
        self.now += 1;
        self.bytes += bytes;
        self.by_use.insert(self.now, key);
        self.values.insert(key, Entry { value, bytes, used: self.now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Weigh for usize {
        fn memory_bytes(&self) -> usize {
            *self
        }
    }

    #[test]
    fn the_bound_holds_and_what_was_used_longest_ago_goes_first() {
        let mut cache = Cache::new(100);
        let put = |cache: &mut Cache<usize>, chunk, bytes| {
            cache.put((0, 0, chunk), bytes);
            assert!(cache.bytes() <= 100);
        };
        put(&mut cache, 0, 40);
        put(&mut cache, 1, 40);
        put(&mut cache, 1, 40);
        assert_eq!(cache.bytes(), 80);
        assert!(cache.get((0, 0, 0)).is_some());
        put(&mut cache, 2, 40);
        let held: Vec<bool> = (0..3).map(|chunk| cache.get((0, 0, chunk)).is_some()).collect();
        assert_eq!(held, [true, false, true]);
        put(&mut cache, 3, 101);
        assert_eq!((cache.bytes(), cache.get((0, 0, 3)).is_some()), (80, false));
        put(&mut cache, 4, 100);
        assert_eq!((cache.bytes(), cache.values.len(), cache.by_use.len()), (100, 1, 1));
    }
}
