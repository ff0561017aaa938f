//! Entries in a fixed number of slots, found by key.
//!
//! An open-addressed index of (hash, slot) pairs with linear probing; removal shifts later entries back, so there are
//! no tombstones and lookups stay short. The hash is SipHash with a random key: a container cannot choose colliding
//! flows. Slots are touched in order, so an idle stack uses little memory.

use std::hash::{BuildHasher, Hash, RandomState};

#[derive(Debug)]
pub(crate) struct Slab<K, V> {
    slots: Vec<Option<(K, V)>>,
    free: Vec<u32>,
    /// High half: hash; low half: slot + 1; 0 is empty. A power of two, at most half full.
    index: Vec<u64>,
    hasher: RandomState,
    capacity: usize,
    len: usize,
}

impl<K: Hash + Eq, V> Slab<K, V> {
    pub fn new(capacity: u32) -> Self {
        let capacity = capacity.max(1) as usize;
        Slab {
            slots: Vec::with_capacity(capacity),
            free: Vec::with_capacity(capacity),
            index: vec![0; (capacity * 2).next_power_of_two()],
            hasher: RandomState::new(),
            capacity,
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// How many slots were ever in use: an upper bound for a walk.
    pub fn touched(&self) -> u32 {
        self.slots.len() as u32
    }

    pub fn find(&self, key: &K) -> Option<u32> {
        let hash = self.hash(key);
        let mut at = self.home(hash);
        while self.index[at] != 0 {
            let (found, slot) = (self.index[at] >> 32, (self.index[at] as u32) - 1);
            if found == u64::from(hash) && self.slots[slot as usize].as_ref().is_some_and(|(other, _)| other == key) {
                return Some(slot);
            }
            at = (at + 1) & (self.index.len() - 1);
        }
        None
    }

    pub fn get(&self, slot: u32) -> Option<&(K, V)> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut (K, V)> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Adds an entry whose key is not there yet; `None` when all slots are taken.
    pub fn insert(&mut self, key: K, value: V) -> Option<u32> {
        debug_assert!(self.find(&key).is_none());
        let hash = self.hash(&key);
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some((key, value));
                slot
            }
            None if self.slots.len() < self.capacity => {
                self.slots.push(Some((key, value)));
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        self.link(slot, hash);
        self.len += 1;
        Some(slot)
    }

    pub fn remove(&mut self, slot: u32) -> Option<(K, V)> {
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        self.unlink(slot, self.hash(&entry.0));
        self.free.push(slot);
        self.len -= 1;
        Some(entry)
    }

    /// Gives an entry another key, which is not there yet.
    pub fn rekey(&mut self, slot: u32, key: K) {
        debug_assert!(self.find(&key).is_none());
        let hash = self.hash(&key);
        let Some((own, _)) = self.get_mut(slot) else { return };
        let before = std::mem::replace(own, key);
        self.unlink(slot, self.hash(&before));
        self.link(slot, hash);
    }

    fn link(&mut self, slot: u32, hash: u32) {
        let mut at = self.home(hash);
        while self.index[at] != 0 {
            at = (at + 1) & (self.index.len() - 1);
        }
        self.index[at] = (u64::from(hash) << 32) | u64::from(slot + 1);
    }

    fn unlink(&mut self, slot: u32, hash: u32) {
        let mask = self.index.len() - 1;
        let mut hole = self.home(hash);
        while self.index[hole] as u32 != slot + 1 {
            hole = (hole + 1) & mask;
        }
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            if self.index[at] == 0 {
                break;
            }
            let home = self.home((self.index[at] >> 32) as u32);
            // The entry may fill the hole unless its home lies after it (cyclically).
            if (at.wrapping_sub(home) & mask) >= (at.wrapping_sub(hole) & mask) {
                self.index[hole] = self.index[at];
                hole = at;
            }
        }
        self.index[hole] = 0;
    }

    fn hash(&self, key: &K) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.index.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(operations in proptest::collection::vec((0_u8..3, 0_u8..40, 0_u8..40), 0..400)) {
            let mut slab = Slab::new(16);
            let mut model: HashMap<u8, (u32, u8)> = HashMap::new();
            for (operation, key, other) in operations {
                prop_assert_eq!(slab.find(&key), model.get(&key).map(|(slot, _)| *slot));
                match (operation, model.get(&key).copied()) {
                    (0, Some((slot, value))) => {
                        prop_assert_eq!(slab.remove(slot), Some((key, value)));
                        model.remove(&key);
                    }
                    (1, Some(entry)) if !model.contains_key(&other) => {
                        slab.rekey(entry.0, other);
                        model.remove(&key);
                        model.insert(other, entry);
                    }
                    (2, None) => {
                        let slot = slab.insert(key, key);
                        prop_assert_eq!(slot.is_some(), model.len() < 16);
                        model.extend(slot.map(|slot| (key, (slot, key))));
                    }
                    _ => {}
                }
                prop_assert_eq!(slab.len(), model.len());
            }
            for (key, entry) in model {
                prop_assert_eq!(slab.find(&key), Some(entry.0));
            }
        }
    }
}
