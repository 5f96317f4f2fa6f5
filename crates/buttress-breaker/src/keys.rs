//! One breaker for all calls, or one for each key.

use std::{
    fmt::{self, Display},
    hash::{BuildHasher, Hash, RandomState},
    sync::Arc,
    time::Duration,
};

use buttress_core::{
    Authority, Keyed,
    clock::{self, Instant},
    sync::{Mutex, lock},
};
use http::Request;

use crate::{settings::Settings, shared::Shared};

/// The bytes of a key that are shown.
const LONGEST_TEXT: usize = 256;

pub(crate) mod sealed {
    pub trait Sealed {
        /// Is there one breaker for all?
        const ONE: bool = false;

        /// Do callers wait where they would be refused?
        const WAITS: bool = false;
    }

    impl<const WAITS: bool> Sealed for super::One<WAITS> {
        const ONE: bool = true;
        const WAITS: bool = WAITS;
    }

    impl Sealed for super::ByAuthority {}
    impl<F> Sealed for super::ByKey<F> {}
}

/// Whose breaker a request goes through. [`One`], [`ByAuthority`] and [`ByKey`] implement it.
pub trait Keys<Req>: sealed::Sealed {
    #[doc(hidden)]
    fn pick(&self, request: &Req, breakers: &Breakers) -> Pick;
}

/// All calls go through one breaker, and are refused while it is open or, if so asked, wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct One<const WAITS: bool = false>;

/// HTTP requests go through the breaker of their authority: the host and port of the URI, or else the `Host`. Requests
/// that have neither share one.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByAuthority;

/// Requests go through the breaker of the key that a function makes of them.
#[derive(Clone, Copy)]
pub struct ByKey<F>(pub(crate) F);

/// The breaker that was found for a request.
#[doc(hidden)]
#[derive(Debug)]
pub enum Pick {
    /// The one for all.
    #[doc(hidden)]
    One,
    #[doc(hidden)]
    #[allow(private_interfaces, reason = "it is hidden, and its trait is sealed")]
    Of(Arc<Shared>),
    /// Every key that is kept has an open breaker.
    #[doc(hidden)]
    None,
}

impl<Req, const WAITS: bool> Keys<Req> for One<WAITS> {
    fn pick(&self, _: &Req, _: &Breakers) -> Pick {
        Pick::One
    }
}

impl<B> Keys<Request<B>> for ByAuthority {
    fn pick(&self, request: &Request<B>, breakers: &Breakers) -> Pick {
        match Authority::of(request.uri(), request.headers()) {
            Some(authority) => breakers.find(&authority),
            None => breakers.find(&""),
        }
    }
}

impl<Req, F, K> Keys<Req> for ByKey<F>
where
    F: Fn(&Req) -> K,
    K: Hash + Display,
{
    fn pick(&self, request: &Req, breakers: &Breakers) -> Pick {
        breakers.find(&self.0(request))
    }
}

impl<F> fmt::Debug for ByKey<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByKey")
    }
}

/// The breakers of a layer.
#[doc(hidden)]
#[derive(Debug)]
pub struct Breakers {
    pub(crate) settings: Arc<Settings>,
    /// The one for all; where there are keys, the one that lets calls through without a breaker.
    pub(crate) one: Arc<Shared>,
    hasher: RandomState,
    keyed: Mutex<Keyed<Entry>>,
}

#[derive(Debug)]
struct Entry {
    shared: Arc<Shared>,
    used: Instant,
}

impl Breakers {
    pub(crate) fn new(settings: Settings) -> Self {
        let settings = Arc::new(settings);
        Self {
            one: Arc::new(Shared::new(settings.clone(), None)),
            hasher: RandomState::new(),
            keyed: Mutex::new(Keyed::new(settings.max_keys)),
            settings,
        }
    }

    fn find<K: Hash + Display>(&self, key: &K) -> Pick {
        let hash = self.hasher.hash_one(key);
        let now = clock::now();
        let mut keyed = lock(&self.keyed);
        if let Some(entry) = keyed.get_mut(hash) {
            entry.used = now;
            return Pick::Of(entry.shared.clone());
        }
        drop(keyed);

        // It may be the user's code that writes the key out, and it takes its time: it has no lock.
        let mut text = key.to_string();
        // Whoever makes up keys makes them as long as he likes.
        text.truncate(text.floor_char_boundary(LONGEST_TEXT));
        let shared = Arc::new(Shared::new(self.settings.clone(), Some(text.into())));
        let idle = self.settings.idle;
        let entry = Entry { shared, used: now };
        let mut keyed = lock(&self.keyed);
        let mut forgotten = keyed.sweep(|entry| entry.is_forgotten(now, idle));
        let pick = match keyed.try_entry(hash, || entry, |entry| entry.worth(now, idle)) {
            Some((entry, removed)) => {
                forgotten.extend(removed);
                entry.used = now;
                Pick::Of(entry.shared.clone())
            }
            None => Pick::None,
        };
        drop(keyed);
        for entry in forgotten {
            entry.shared.forget();
        }
        pick
    }

    /// The breaker of a key, as it is written.
    pub(crate) fn named(&self, key: &str) -> Option<Arc<Shared>> {
        let keyed = lock(&self.keyed);
        let mut entries = keyed.iter().map(|(_, entry)| &entry.shared);
        entries
            .find(|shared| shared.key.as_deref() == Some(key))
            .cloned()
    }

    /// The breakers of all keys.
    pub(crate) fn all(&self) -> Vec<Arc<Shared>> {
        let keyed = lock(&self.keyed);
        keyed
            .iter()
            .map(|(_, entry)| entry.shared.clone())
            .collect()
    }
}

impl Entry {
    /// What would be lost with it, or `None` if it must stay. A breaker that refuses, or may, stays while it is used.
    fn worth(&self, now: Instant, idle: Duration) -> Option<u64> {
        if self.shared.is_closed() {
            Some(self.used.to_bits())
        } else {
            self.is_forgotten(now, idle).then_some(0)
        }
    }

    fn is_forgotten(&self, now: Instant, idle: Duration) -> bool {
        now.saturating_duration_since(self.used) > idle && !self.shared.must_stay(now)
    }
}
