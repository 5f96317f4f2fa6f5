//! Where the buckets are: one for all, or one for each of so many keys, in words that are allocated at the start.
//!
//! A key is known by its hash, its tag. It has a place in one of two sets of eight, where it finds it whether or not
//! others come and go: it is never moved. A place whose bucket is full is free: nothing is lost with it.

use std::{array::from_fn, num::NonZeroUsize};

use buttress_core::sync::{Apart, AtomicU64, Ordering};

/// The places of a set, and those of a row. A row is a cache line.
const WAYS: usize = 8;
const ROW: usize = 4;

/// How many places there are for so many keys, in percent: with two sets to choose from, hardly a key finds none.
const ROOM: u128 = 150;

/// A set that has so many free places is roomy enough.
const SPARE: usize = 4;

#[derive(Debug)]
pub(crate) struct Table {
    sets: Box<[Apart<Set>]>,
    /// The bucket of all who have no place of their own.
    shared: Apart<AtomicU64>,
}

type Set = [Row; WAYS / ROW];

#[derive(Debug)]
struct Row {
    /// 0 where there has never been anybody.
    tags: [AtomicU64; ROW],
    words: [AtomicU64; ROW],
}

impl Table {
    /// Places for so many keys, whose words are all the same at first.
    pub(crate) fn new(keys: Option<NonZeroUsize>, word: u64) -> Self {
        let places = keys.map_or(0, |keys| keys.get() as u128 * ROOM / 100);
        let sets = usize::try_from(places.div_ceil(WAYS as u128)).unwrap_or(usize::MAX);
        let row = |_| Row {
            tags: from_fn(|_| AtomicU64::new(0)),
            words: from_fn(|_| AtomicU64::new(word)),
        };
        Self {
            sets: (0..sets).map(|_| Apart(from_fn(row))).collect(),
            shared: Apart(AtomicU64::new(word)),
        }
    }

    /// The place of all who have none of their own: the last one.
    pub(crate) fn shared(&self) -> usize {
        self.sets.len() * WAYS
    }

    #[inline]
    pub(crate) fn word(&self, place: usize) -> &AtomicU64 {
        match self.row(place) {
            Some(row) => &row.words[place % ROW],
            None => &self.shared.0,
        }
    }

    /// Does a place belong to this tag? The shared one belongs to nobody.
    #[inline]
    pub(crate) fn is_of(&self, place: usize, tag: u64) -> bool {
        let row = self.row(place);
        row.is_some_and(|row| row.tags[place % ROW].load(Ordering::Relaxed) == tag)
    }

    /// The place of a tag.
    #[inline]
    pub(crate) fn find(&self, tag: u64) -> Option<usize> {
        self.choices(tag).into_iter().find_map(|place| {
            let Apart(set) = self.sets.get(place)?;
            let mut hits = 0_u32;
            // All of them, whichever it is: which one it is cannot be predicted, and a wrong guess costs more.
            for (row, Row { tags, .. }) in set.iter().enumerate() {
                for (way, other) in tags.iter().enumerate() {
                    // Acquire, with the release in `claim`: whoever finds the tag finds the word as it was claimed, or later.
                    let hit = other.load(Ordering::Acquire) == tag;
                    hits |= u32::from(hit) << (row * ROW + way);
                }
            }
            (hits > 0).then(|| place * WAYS + hits.trailing_zeros() as usize)
        })
    }

    /// Claims a place for a tag that has none, under the limiter's lock: one that `is_free` and that is then to `seize`, or
    /// nothing. Returns too whether somebody else's was forgotten for it.
    pub(crate) fn claim(
        &self,
        tag: u64,
        is_free: impl Fn(usize) -> bool,
        seize: impl Fn(usize) -> bool,
    ) -> Option<(usize, bool)> {
        let free = |set: usize| (set * WAYS..(set + 1) * WAYS).filter(|place| is_free(*place));
        let [one, other] = self.choices(tag);
        // Most are in the one where they are looked for first.
        let ones = free(one).count();
        let sets = if ones < SPARE && ones < free(other).count() {
            [other, one]
        } else {
            [one, other]
        };
        let place = sets
            .into_iter()
            .find_map(|set| free(set).find(|place| seize(*place)))?;
        let own = &self.row(place)?.tags[place % ROW];
        let before = own.swap(tag, Ordering::Release);
        Some((place, before != 0))
    }

    #[inline]
    fn row(&self, place: usize) -> Option<&Row> {
        let set = self.sets.get(place / WAYS)?;
        set.0.get(place % WAYS / ROW)
    }

    /// The two sets of a tag.
    #[inline]
    fn choices(&self, tag: u64) -> [usize; 2] {
        let sets = self.sets.len() as u128;
        // Of 32 bits each, spread evenly over the sets.
        [tag & u64::from(u32::MAX), tag >> 32]
            .map(|bits| ((u128::from(bits) * sets) >> 32) as usize)
    }
}

#[cfg(all(test, not(buttress_loom)))]
mod tests {
    use std::{cell::Cell, hash::RandomState};

    use super::*;
    use crate::keys;

    // promise: RL-20
    #[test]
    fn however_many_keys_there_are_so_many_places_are_looked_at() {
        let table = Table::new(NonZeroUsize::new(1 << 16), 0);
        let hasher = RandomState::new();
        let looked_at = Cell::new(0);
        let is_free = |place: usize| {
            looked_at.set(looked_at.get() + 1);
            table.word(place).load(Ordering::Relaxed) == 0
        };
        let seize = |place: usize| {
            table.word(place).store(1, Ordering::Relaxed);
            true
        };
        let [mut without, mut too_early] = [0_u32; 2];
        for key in 0..300_000_u64 {
            let tag = keys::tag(&key, &hasher);
            looked_at.set(0);
            let claimed = table.claim(tag, is_free, seize);
            assert_eq!(table.find(tag), claimed.map(|(place, _)| place));
            assert!(looked_at.get() <= 4 * WAYS);
            let has_none = u32::from(claimed.is_none());
            without += has_none;
            too_early += if key < 1 << 16 { has_none } else { 0 };
        }
        // Of 400 tables in a simulation, 17 had such keys: one, or two.
        assert!(too_early < 8, "{too_early} of 65,536 keys find no place");
        assert_eq!(without as usize, 300_000 - table.shared());
    }

    // promise: RL-19
    #[test]
    fn a_key_costs_so_many_bytes() {
        for keys in [1_000_000, 10_000_000] {
            let table = |bytes: &mut usize| {
                let counted =
                    allocation_counter::measure(|| drop(Table::new(NonZeroUsize::new(keys), 0)));
                *bytes = usize::try_from(counted.bytes_max).unwrap();
            };
            let mut bytes = 0;
            table(&mut bytes);
            assert!(bytes <= keys * 24 + 256, "{bytes} bytes for {keys} keys");
        }
    }
}
