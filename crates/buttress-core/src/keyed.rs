//! State for each key, for a limited number of keys.

use std::{collections::HashMap, num::NonZeroUsize};

/// How many entries are looked at to find one to drop: enough to find a cheap one, few enough to be done at once.
const LOOKED_AT: usize = 8;

/// A map with a limited number of keys: when it is full, a new key takes the place of the one that is worth least among
/// a few.
///
/// Keys are hashes that the caller has made with a seeded hasher, so that nobody can aim at another's entry, and a long
/// key takes no more room than a short one. Two keys share an entry with a chance of one in 2^64.
#[derive(Debug)]
pub struct Keyed<V> {
    places: HashMap<u64, usize>,
    entries: Vec<(u64, V)>,
    hand: usize,
    max: NonZeroUsize,
}

impl<V> Keyed<V> {
    /// An empty map for at most `max` keys; it allocates as they come.
    #[must_use]
    pub fn new(max: NonZeroUsize) -> Self {
        Self {
            places: HashMap::new(),
            entries: Vec::new(),
            hand: 0,
            max,
        }
    }

    /// The number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is it empty?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The value of a key.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        self.places
            .get(&key)
            .map(|&place| &mut self.entries[place].1)
    }

    /// The value of a key, which is `new()` if there was none. If the map is full, the entry of the least `worth` among
    /// eight is dropped first.
    pub fn entry(
        &mut self,
        key: u64,
        new: impl FnOnce() -> V,
        worth: impl Fn(&V) -> u64,
    ) -> &mut V {
        if self.needs_room(key) {
            self.remove_one(|value| Some(worth(value)));
        }
        let place = *self.places.entry(key).or_insert_with(|| {
            self.entries.push((key, new()));
            self.entries.len() - 1
        });
        &mut self.entries[place].1
    }

    /// As [`entry`](Self::entry), but an entry whose `worth` is `None` is never dropped. Where the first eight are of that
    /// kind it looks on; if all are, the new key gets no entry, and the result is `None`. An entry that made room is returned.
    pub fn try_entry(
        &mut self,
        key: u64,
        new: impl FnOnce() -> V,
        worth: impl Fn(&V) -> Option<u64>,
    ) -> Option<(&mut V, Option<V>)> {
        let mut removed = None;
        if self.needs_room(key) {
            removed = Some(self.remove_one(worth)?);
        }
        Some((self.entry(key, new, |_| 0), removed))
    }

    /// Looks at the next eight entries, and removes and returns those that are `done`. Called now and then, it comes by every
    /// entry.
    pub fn sweep(&mut self, done: impl Fn(&V) -> bool) -> Vec<V> {
        let mut removed = Vec::new();
        for _ in 0..LOOKED_AT.min(self.len()) {
            self.hand = if self.hand < self.len() { self.hand } else { 0 };
            match self.entries.get(self.hand) {
                Some((key, value)) if done(value) => removed.extend(self.remove(*key)),
                _ => self.hand += 1,
            }
        }
        removed
    }

    /// Every key and its value, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.entries.iter().map(|(key, value)| (*key, value))
    }

    /// Drops the entry of a key, and returns its value.
    pub fn remove(&mut self, key: u64) -> Option<V> {
        let place = self.places.remove(&key)?;
        let (_, value) = self.entries.swap_remove(place);
        if let Some((moved, _)) = self.entries.get(place) {
            self.places.insert(*moved, place);
        }
        Some(value)
    }

    /// Is it a new key, and the map full?
    fn needs_room(&self, key: u64) -> bool {
        !self.places.contains_key(&key) && self.len() == self.max.get()
    }

    /// Removes the entry of the least worth among the first eight, from the hand on, that have one. The hand goes round,
    /// so that each entry is looked at in its turn.
    fn remove_one(&mut self, worth: impl Fn(&V) -> Option<u64>) -> Option<V> {
        let len = self.len();
        let mut cheapest = None;
        for step in 0..len {
            if step >= LOOKED_AT && cheapest.is_some() {
                break;
            }
            let place = (self.hand + step) % len;
            if let Some(worth) = worth(&self.entries[place].1) {
                cheapest = cheapest.min(Some((worth, place))).or(Some((worth, place)));
            }
        }
        self.hand = (self.hand + LOOKED_AT) % len;
        let (_, place) = cheapest?;
        self.remove(self.entries[place].0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_new_key_takes_the_place_of_one_that_is_worth_less() {
        let mut map = Keyed::new(NonZeroUsize::new(4).unwrap());
        for (key, worth) in [(1, 30), (2, 10), (3, 20), (4, 40), (5, 50)] {
            map.entry(key, || worth, |&worth| worth);
        }
        assert_eq!(map.len(), 4);
        assert_eq!(map.get_mut(2), None, "the cheapest is gone");
        assert_eq!(
            [1, 3, 4, 5].map(|key| *map.get_mut(key).unwrap()),
            [30, 20, 40, 50]
        );
    }

    #[test]
    fn each_entry_is_looked_at_in_its_turn() {
        let mut map = Keyed::new(NonZeroUsize::new(24).unwrap());
        let worth = |key: &u64| u64::from(!(8..16).contains(key));
        for key in 0..26 {
            map.entry(key, || key, worth);
        }
        let gone: Vec<_> = (0..24).filter(|&key| map.get_mut(key).is_none()).collect();
        // The first eight have no cheap one among them, the second have nothing else.
        assert!(matches!(gone[..], [0..8, 8..16]), "{gone:?}");
    }

    #[test]
    fn what_has_no_worth_is_never_dropped() {
        let mut map = Keyed::new(NonZeroUsize::new(100).unwrap());
        let worth = |&value: &u64| (value == 57).then_some(value);
        for key in 0..100 {
            assert!(map.try_entry(key, || key, worth).is_some());
        }
        assert_eq!(map.try_entry(57, || 0, worth), Some((&mut 57, None)));
        assert_eq!(
            map.try_entry(100, || 100, worth),
            Some((&mut 100, Some(57)))
        );
        assert_eq!(map.get_mut(57), None, "it was the only one to make room");
        assert_eq!(map.try_entry(101, || 101, worth), None);
        assert_eq!(map.len(), 100);
    }

    #[test]
    fn a_sweep_comes_by_every_entry() {
        let mut map = Keyed::new(NonZeroUsize::new(100).unwrap());
        for key in 0..100 {
            map.entry(key, || key, |_| 0);
        }
        let mut removed = Vec::new();
        for _ in 0..15 {
            removed.extend(map.sweep(|key| key % 3 == 0));
        }
        removed.sort_unstable();
        assert!(removed.into_iter().eq((0..100).step_by(3)));
        let left: Vec<_> = map.iter().map(|(key, _)| key).collect();
        assert_eq!(left.len(), 66);
        assert!(left.iter().all(|key| key % 3 != 0));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_map_until_it_is_full(
            steps in prop::collection::vec((0..20_u64, any::<bool>(), any::<u8>()), 0..200)
        ) {
            let mut map = Keyed::new(NonZeroUsize::new(20).unwrap());
            let mut plain = HashMap::new();
            for (key, keep, value) in steps {
                if keep {
                    *map.entry(key, || 0, |_| 0) = value;
                    plain.insert(key, value);
                } else {
                    prop_assert_eq!(map.remove(key), plain.remove(&key));
                }
                prop_assert_eq!(map.len(), plain.len());
                for (key, value) in &plain {
                    prop_assert_eq!(map.get_mut(*key).copied(), Some(*value));
                }
            }
        }

        #[test]
        fn it_never_holds_more_than_it_may(max in 1..20_usize, keys in prop::collection::vec(any::<u64>(), 0..200)) {
            let mut map = Keyed::new(NonZeroUsize::new(max).unwrap());
            for key in keys {
                map.entry(key, || key, |&key| key);
                prop_assert!(map.len() <= max);
                prop_assert_eq!(map.get_mut(key).copied(), Some(key));
            }
        }
    }
}
