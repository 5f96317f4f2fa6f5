//! The layer: what the user sets, and the limiter that all its services share.

use std::{
    fmt,
    num::NonZeroUsize,
    sync::{Arc, OnceLock},
    time::Duration,
};

use buttress_core::{Deadline, LimitReport, clock::Instant};
use http::Request;
use tower_layer::Layer;

use crate::{
    ByKey, Event, Handle, One, Quota, RateLimit, SameQuota,
    keys::sealed::Sealed,
    limiter::{Limiter, SHARED},
    settings::Settings,
};

/// How many keys have a limit of their own by default.
const MAX_KEYS: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// Keeps to a rate. See the [crate docs](crate) for an example.
///
/// Every service that it makes, and every clone of it or of them, shares its limiter. A setter makes a new limiter: set first,
/// then clone and take handles.
pub struct RateLimitLayer<K = One, C = OneToken, D = NoDeadline> {
    keys: K,
    cost: C,
    deadline: D,
    settings: Settings,
    /// Made when somebody asks for it.
    limiter: OnceLock<Arc<Limiter>>,
}

/// Says how many tokens a request costs. A function or closure of the same shape is one too.
pub trait Cost<Req> {
    /// The tokens. A request that costs 0 takes none, and is let through unless tokens are owed. One that costs more than a
    /// burst is always refused.
    fn cost(&self, request: &Req) -> u64;
}

/// Every request costs one token.
#[derive(Clone, Copy, Debug, Default)]
pub struct OneToken;

impl<Req> Cost<Req> for OneToken {
    fn cost(&self, _: &Req) -> u64 {
        1
    }
}

impl<Req, F: Fn(&Req) -> u64> Cost<Req> for F {
    fn cost(&self, request: &Req) -> u64 {
        self(request)
    }
}

/// Says by when a request must have ended. A function or closure of the same shape is one too.
pub trait Due<Req> {
    /// The moment, if there is one.
    fn due(&self, request: &Req) -> Option<Instant>;

    /// Where a layer that [refuses](RateLimitLayer::refuse) reports what is left of the caller's quota; by default nowhere.
    fn report<'a>(&self, request: &'a Req) -> Option<&'a LimitReport> {
        let _ = request;
        None
    }
}

/// No request has a deadline.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDeadline;

impl<Req> Due<Req> for NoDeadline {
    fn due(&self, _: &Req) -> Option<Instant> {
        None
    }
}

/// Finds the [`Deadline`] and the [`LimitReport`] of an HTTP request among its extensions.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpDeadline;

impl<B> Due<Request<B>> for HttpDeadline {
    fn due(&self, request: &Request<B>) -> Option<Instant> {
        request.extensions().get::<Deadline>().map(|due| due.0)
    }

    fn report<'a>(&self, request: &'a Request<B>) -> Option<&'a LimitReport> {
        request.extensions().get()
    }
}

impl<Req, F: Fn(&Req) -> Option<Instant>> Due<Req> for F {
    fn due(&self, request: &Req) -> Option<Instant> {
        self(request)
    }
}

impl RateLimitLayer {
    /// Paces a client: a call that comes too early waits for its turn, for 500 ms at most.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self::with(One, OneToken, NoDeadline, Settings::new(quota))
    }
}

impl RateLimitLayer<One, OneToken, HttpDeadline> {
    /// As [`new`](RateLimitLayer::new), for HTTP requests: none waits beyond its [`Deadline`], and a server that
    /// [refuses](RateLimitLayer::refuse) can tell in its responses what is left, by the [`LimitReport`] of the request.
    #[must_use]
    pub fn http(quota: Quota) -> Self {
        RateLimitLayer::new(quota).deadline(HttpDeadline)
    }
}

impl<C, D> RateLimitLayer<One, C, D> {
    /// Gives each key a limit of its own, where `key` makes a request's key; by default all calls share one limit.
    ///
    /// A key is anything with `Hash`, and with `Display` for the refusals, which show its first 256 bytes. It is known by its
    /// hash, which is seeded. See [`max_keys`](RateLimitLayer::max_keys) for how many there can be.
    #[must_use]
    pub fn by_key<F>(self, key: F) -> RateLimitLayer<ByKey<F>, C, D> {
        let quota = SameQuota;
        let mut settings = self.settings;
        settings.max_keys = Some(MAX_KEYS);
        RateLimitLayer::with(ByKey { key, quota }, self.cost, self.deadline, settings)
    }
}

impl<D> RateLimitLayer<One, OneToken, D> {
    /// Has callers wait in [`poll_ready`](tower_service::Service::poll_ready), for as long as it takes, so that whatever
    /// is above sees that there is no room; by default they wait in the call, for [`max_wait`](RateLimitLayer::max_wait) at
    /// most.
    ///
    /// A service that is ready holds its token until it is called or dropped: what polls a service ready and keeps it,
    /// such as a load balancer, keeps tokens from others. Every call costs one token, and none is refused: set neither a
    /// cost nor [`refuse`](RateLimitLayer::refuse) with it.
    #[must_use]
    pub fn backpressure(self) -> RateLimitLayer<One<true>, OneToken, D> {
        RateLimitLayer::with(One, self.cost, self.deadline, self.settings)
    }
}

impl<F, C, D> RateLimitLayer<ByKey<F>, C, D> {
    /// Gives each key the quota that this says, in place of the layer's first one; by default all keys have that one.
    ///
    /// It is asked at each call, and its answer may change: what was taken stays taken then. A limiter whose keys have quotas
    /// of their own takes a lock at every call.
    #[must_use]
    pub fn quota<Q>(self, quota: Q) -> RateLimitLayer<ByKey<F, Q>, C, D> {
        let key = self.keys.key;
        let mut settings = self.settings;
        settings.own_quotas = true;
        RateLimitLayer::with(ByKey { key, quota }, self.cost, self.deadline, settings)
    }
}

impl<F, Q, C, D> RateLimitLayer<ByKey<F, Q>, C, D> {
    /// Has room for this many keys that lack tokens at the same time; by default 65,536.
    ///
    /// The room is allocated at the start, 24 bytes a key. With several quotas, or with one that [does not fit into 63
    /// bits](crate#state), each quota takes 24 bytes more; with quotas of the keys' own, it is 168 more.
    ///
    /// A key that has all its tokens needs no room: its place is given to others, which changes nothing for it. A key that
    /// finds no room shares one limit with all others that find none, so that nobody gets more than he should. Whoever makes
    /// up keys cannot have a key forgotten that has used up its tokens, but can fill the room, so that new keys are refused:
    /// have enough. A key that finds room later begins with as little as the shared limit has left.
    ///
    /// # Panics
    ///
    /// Panics when the first service or handle is made, if the memory cannot hold that many.
    #[must_use]
    pub fn max_keys(self, max_keys: NonZeroUsize) -> Self {
        self.change(|settings| settings.max_keys = Some(max_keys))
    }
}

impl<K, C, D> RateLimitLayer<K, C, D> {
    fn with(keys: K, cost: C, deadline: D, settings: Settings) -> Self {
        Self {
            keys,
            cost,
            deadline,
            settings,
            limiter: OnceLock::new(),
        }
    }

    fn change(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        Self::with(self.keys, self.cost, self.deadline, self.settings)
    }

    fn limiter(&self) -> &Arc<Limiter> {
        self.limiter
            .get_or_init(|| Arc::new(Limiter::new(self.settings.clone())))
    }

    /// Keeps to this quota too; by default there is one. A call takes tokens from all of them or from none.
    ///
    /// By default its [`burst`](Quota::burst) is all the tokens of its period.
    #[must_use]
    pub fn and(self, quota: Quota) -> Self {
        self.change(|settings| settings.quotas.push(quota))
    }

    /// Refuses a call that comes too early, as a server does; by default it waits. It sets [`max_wait`](Self::max_wait) to
    /// zero, and the default [`burst`](Quota::burst) to the tokens of a second.
    #[must_use]
    pub fn refuse(self) -> Self {
        self.change(|settings| {
            settings.refuses = true;
            settings.max_wait = Duration::ZERO;
        })
    }

    /// Has a call wait for this time at most; by default 500 ms. One that would wait longer is refused when it comes.
    #[must_use]
    pub fn max_wait(self, max_wait: Duration) -> Self {
        self.change(|settings| settings.max_wait = max_wait)
    }

    /// Has a request cost as many tokens as this says; by default one.
    #[must_use]
    pub fn cost<F>(self, cost: F) -> RateLimitLayer<K, F, D> {
        RateLimitLayer::with(self.keys, cost, self.deadline, self.settings)
    }

    /// Has a request wait no longer than until the moment that this says; by default [`http`](RateLimitLayer::http) knows
    /// one, and [`new`](RateLimitLayer::new) none.
    ///
    /// A function in place of that of [`http`](RateLimitLayer::http) says nothing of where to report what is left: implement
    /// [`Due`] to do both.
    #[must_use]
    pub fn deadline<F>(self, deadline: F) -> RateLimitLayer<K, C, F> {
        RateLimitLayer::with(self.keys, self.cost, deadline, self.settings)
    }

    /// Refuses nothing and has nobody wait, and tells with its events what it would have done; by default off.
    #[must_use]
    pub fn shadow(self) -> Self {
        self.change(|settings| settings.shadow = true)
    }

    /// Names the limiter in its refusals; by default it has no name.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        self.change(|settings| settings.name = Some(name.into()))
    }

    /// Reports every [`Event`] to this sink too; by default nobody hears of them.
    #[must_use]
    pub fn on_event(self, sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.change(|settings| settings.events.add(sink))
    }

    /// The limiter, for its operator. Set everything else first: a setter makes another limiter.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.limiter().clone(), SHARED)
    }
}

impl<S, K: Sealed + Clone, C: Clone, D: Clone> Layer<S> for RateLimitLayer<K, C, D> {
    type Service = RateLimit<S, K, C, D>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(
            inner,
            self.limiter().clone(),
            self.keys.clone(),
            self.cost.clone(),
            self.deadline.clone(),
            K::WAITS && !self.settings.shadow,
        )
    }
}

impl<K: Clone, C: Clone, D: Clone> Clone for RateLimitLayer<K, C, D> {
    fn clone(&self) -> Self {
        Self {
            keys: self.keys.clone(),
            cost: self.cost.clone(),
            deadline: self.deadline.clone(),
            settings: self.settings.clone(),
            limiter: OnceLock::from(self.limiter().clone()),
        }
    }
}

impl<K: fmt::Debug, C, D> fmt::Debug for RateLimitLayer<K, C, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("keys", &self.keys)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
