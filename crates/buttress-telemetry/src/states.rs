//! Which of a breaker's transitions is the newest, though they may be heard in any order. Plain data.

use std::collections::BTreeSet;

/// The numbers of the transitions that were heard. Each is heard once.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    newest: u64,
    /// Those before the newest that are still to be heard: at most as many as threads are telling of one.
    missing: BTreeSet<u64>,
}

impl Heard {
    /// Is the transition of this number the newest?
    ///
    /// A number that was heard before is that of another breaker: one of a key that was forgotten, and has come again.
    pub(crate) fn is_newest(&mut self, number: u64) -> bool {
        if number > self.newest {
            self.missing.extend(self.newest + 1..number);
        } else if self.missing.remove(&number) {
            return false;
        } else {
            self.missing = (1..number).collect();
        }
        self.newest = number;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        // promise: ST-10
        #[test]
        fn the_newest_is_the_one_of_the_highest_number_in_whatever_order_they_come(
            order in (1..30_u64).prop_flat_map(|last| {
                Just((1..=last).collect::<Vec<_>>()).prop_shuffle()
            })
        ) {
            let mut heard = Heard::default();
            let mut highest = 0;
            for &number in &order {
                prop_assert_eq!(heard.is_newest(number), number > highest);
                highest = highest.max(number);
            }
            prop_assert!(heard.missing.is_empty());
        }
    }

    #[test]
    fn a_breaker_that_begins_anew_is_told_from_one_that_is_heard_late() {
        let mut heard = Heard::default();
        let mut is_newest = |number| heard.is_newest(number);
        assert_eq!([1, 3, 2, 4].map(&mut is_newest), [true, true, false, true]);
        assert_eq!([1, 2].map(&mut is_newest), [true, true], "another breaker");
        // It begins with its second transition, and the first is late.
        assert_eq!([3, 4].map(&mut is_newest), [true, true]);
        assert_eq!([2, 1].map(&mut is_newest), [true, false]);
    }
}
