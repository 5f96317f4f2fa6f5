//! The keys of requests, in an order that is fixed and has no pattern.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tower_service::Service;

use crate::harness::call;
use crate::target::Key;

/// Takes one of so many keys after the other. A clone takes them in another order, so that threads do not go side by side.
#[derive(Debug)]
pub(crate) struct Keys {
    number: u32,
    place: u64,
    clones: Arc<AtomicU64>,
}

impl Keys {
    pub(crate) fn new(number: u32) -> Self {
        Self {
            number,
            place: 0,
            clones: Arc::default(),
        }
    }

    pub(crate) fn next(&mut self) -> Key {
        self.place = self.place.wrapping_add(1);
        let scaled = u128::from(mixed(self.place)) * u128::from(self.number);
        key((scaled >> 64) as u64)
    }

    /// Uses each key once.
    pub(crate) fn all<S: Service<Key>>(number: u32, service: &mut S) {
        for place in 0..number {
            call(
                service,
                key(place.into()),
                || panic!("it does not wait"),
                |_| (),
            );
        }
    }
}

impl Clone for Keys {
    fn clone(&self) -> Self {
        let before = self.clones.fetch_add(1, Ordering::Relaxed);
        Self {
            number: self.number,
            place: (before + 1) << 40,
            clones: self.clones.clone(),
        }
    }
}

/// Two places never have the same key.
fn key(place: u64) -> Key {
    Key(mixed(!place))
}

/// The last steps of `SplitMix64`, which lose nothing.
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}
