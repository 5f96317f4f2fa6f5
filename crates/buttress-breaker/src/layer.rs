//! The layer: what the user sets, and the breakers that all its services share.

use std::{
    fmt,
    num::{NonZeroU32, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use buttress_core::classify;
use tower_layer::Layer;

use crate::{
    Breaker, Event, Handle, Handles, Http,
    keys::{Breakers, ByAuthority, ByKey, One, sealed::Sealed},
    settings::{Kind, Settings, Share},
    track::{Bodies, HeadOnly},
};

/// Stops calling what fails, for a while. See the [crate docs](crate) for an example.
///
/// Every service that it makes, and every clone of it or of them, shares its breaker. A setter makes a new breaker: set
/// first, then clone and take handles.
pub struct BreakerLayer<C = Http, K = One, T = HeadOnly> {
    classifier: C,
    keys: K,
    track: T,
    settings: Settings,
    breakers: Arc<Breakers>,
}

impl BreakerLayer {
    /// For HTTP: responses `http::Response<_>`. The statuses 500, 502, 503 and 504 and errors are failures; every other
    /// from 400 on is ignored.
    #[must_use]
    pub fn http() -> Self {
        Self::new(Http)
    }
}

impl BreakerLayer<classify::Grpc, One, Bodies> {
    /// For gRPC over HTTP/2, below the client that `tonic` generates. The statuses `UNAVAILABLE`, `DEADLINE_EXCEEDED`,
    /// `INTERNAL`, `UNKNOWN` and `DATA_LOSS` are failures, in the head or in the trailers, and so are errors; every other
    /// but `OK` is ignored.
    #[must_use]
    pub fn grpc() -> Self {
        BreakerLayer::new(classify::Grpc).track_bodies()
    }
}

impl<C> BreakerLayer<C> {
    /// For any service, with a [classifier](buttress_core::Classify) of your own. What it calls transient is a failure, what
    /// it calls throttled may be one ([`throttling_fails`](Self::throttling_fails)), and what else is no success is ignored.
    #[must_use]
    pub fn new(classifier: C) -> Self {
        let settings = Settings::default();
        Self {
            classifier,
            keys: One,
            track: HeadOnly,
            breakers: Arc::new(Breakers::new(settings.clone())),
            settings,
        }
    }
}

impl<C, K: Sealed, T> BreakerLayer<C, K, T> {
    fn change(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        let BreakerLayer {
            classifier,
            keys,
            track,
            settings,
            ..
        } = self;
        Self::with(classifier, keys, track, settings)
    }

    fn with(classifier: C, keys: K, track: T, settings: Settings) -> Self {
        let mut these = settings.clone();
        // Those who wait are not refused, so there is no share of them to let through.
        these.rules.ramp &= !K::WAITS;
        Self {
            classifier,
            keys,
            track,
            settings,
            breakers: Arc::new(Breakers::new(these)),
        }
    }

    /// Counts the calls that ended within the last `length`; by default 10 s. The window is kept in ten parts, so its edge
    /// is off by a tenth at most.
    ///
    /// # Panics
    ///
    /// When it is shorter than 10 ms.
    #[must_use]
    pub fn window(self, length: Duration) -> Self {
        assert!(
            length >= Duration::from_millis(10),
            "a window is at least 10 ms long"
        );
        self.change(|settings| settings.rules.window = Kind::Time(length))
    }

    /// Counts this many of the last calls, however long ago they ended; by default those of the last 10 s.
    #[must_use]
    pub fn count_window(self, calls: NonZeroU32) -> Self {
        self.change(|settings| settings.rules.window = Kind::Calls(calls))
    }

    /// Opens after this many failures in a row, and looks at nothing else; by default there is a window.
    ///
    /// It costs least, and opens by mistake most easily: at a thousand calls a second of which one in ten fails, five
    /// failures in a row come up every two minutes.
    #[must_use]
    pub fn consecutive_only(self, failures: NonZeroU32) -> Self {
        self.change(|settings| settings.rules.window = Kind::InARow(failures))
    }

    /// Opens when at least this share of the calls in the window failed; by default 0.5.
    ///
    /// # Panics
    ///
    /// When it is not above 0 and at most 1.
    #[must_use]
    pub fn failure_rate(self, share: f64) -> Self {
        let share = Share::new(share);
        self.change(|settings| settings.rules.failure_rate = share)
    }

    /// Goes by shares only when the window holds at least this many calls; by default 20, or the whole of a smaller count
    /// window.
    #[must_use]
    pub fn min_calls(self, calls: NonZeroU32) -> Self {
        self.change(|settings| settings.rules.min_calls = calls)
    }

    /// While the window holds fewer calls than [`min_calls`](Self::min_calls), opens after this many failures in a row; by
    /// default 5. With `None` it does not.
    #[must_use]
    pub fn consecutive(self, failures: Option<NonZeroU32>) -> Self {
        self.change(|settings| settings.rules.in_a_row = failures)
    }

    /// Opens too when at least this share of the calls in the window took longer than `threshold` to the head of their
    /// response; by default off, and a good value for the share is 0.8. With [`consecutive_only`](Self::consecutive_only)
    /// slow calls do not count.
    ///
    /// # Panics
    ///
    /// When the share is not above 0 and at most 1.
    #[must_use]
    pub fn slow_calls(self, threshold: Duration, share: f64) -> Self {
        let share = Share::new(share);
        self.change(|settings| settings.rules.slow = Some((threshold, share)))
    }

    /// Stays open for this time at first, twice as long for every opening that is not forgiven, and no longer than `max`;
    /// by default 5 s and 60 s. Up to half of it is taken off by chance. An opening is forgiven when, after closing, as much
    /// time has passed without another as its full open time was, the last one first.
    ///
    /// # Panics
    ///
    /// When the time is shorter than 1 ms, or longer than `max`.
    #[must_use]
    pub fn open_time(self, time: Duration, max: Duration) -> Self {
        assert!(
            time >= Duration::from_millis(1),
            "a breaker is open for at least 1 ms"
        );
        assert!(time <= max, "the longest open time is not below the first");
        self.change(|settings| {
            (settings.rules.open_time, settings.rules.max_open_time) = (time, max);
        })
    }

    /// Stays open for as long as a failing server asks for (`Retry-After`, a pushback), but no longer than this; by default
    /// 300 s.
    #[must_use]
    pub fn max_hint(self, max_hint: Duration) -> Self {
        self.change(|settings| settings.rules.max_hint = max_hint)
    }

    /// Closes after this many probes have succeeded; by default 3. One that fails opens again.
    #[must_use]
    pub fn probes(self, probes: NonZeroU32) -> Self {
        self.change(|settings| settings.rules.probes = probes)
    }

    /// Has at most `first` probes in flight until one has succeeded, and `then` from there on; by default 1 and 2.
    #[must_use]
    pub fn probes_in_flight(self, first: NonZeroU32, then: NonZeroU32) -> Self {
        self.change(|settings| settings.rules.in_flight = (first, then))
    }

    /// Gives a probe this much time, its lease: after that its slot is free for another, and its result counts for nothing;
    /// by default twice the open time, or twice the lease before if that has expired, and 10 s at most.
    ///
    /// Calls that take longer never close the breaker: set it to more than your calls take, to the end of the body where
    /// that is tracked.
    ///
    /// # Panics
    ///
    /// When it is zero.
    #[must_use]
    pub fn probe_lease(self, lease: Duration) -> Self {
        assert!(!lease.is_zero(), "a probe needs time");
        self.change(|settings| settings.rules.lease = Some(lease))
    }

    /// Lets 10, 25, 50 and at last 100 % of the calls through after closing, each for a quarter of the open time; by
    /// default on. A step that would open the breaker goes back by one the first time.
    #[must_use]
    pub fn ramp(self, ramp: bool) -> Self {
        self.change(|settings| settings.rules.ramp = ramp)
    }

    /// Counts throttling (429, `RESOURCE_EXHAUSTED`) as a failure; by default it is ignored: it speaks of this caller, and
    /// is the rate limiter's business.
    #[must_use]
    pub fn throttling_fails(self, fails: bool) -> Self {
        self.change(|settings| settings.throttling_fails = fails)
    }

    /// Counts a call that the caller drops as a failure if it has waited longer than this, so that a timeout above the
    /// breaker opens it too; by default the threshold for slow calls, or else 10 s. Set it below that timeout.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        self.change(|settings| settings.patience = Some(patience))
    }

    /// Refuses nothing, and tells with its events what it would have refused; by default off.
    ///
    /// A call that would have been refused is made and not counted, so that the breaker does what it would do.
    #[must_use]
    pub fn shadow(self) -> Self {
        self.change(|settings| settings.shadow = true)
    }

    /// Sets the name that its refusals have; by default it has none.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        self.change(|settings| settings.name = Some(name.into()))
    }

    /// Reports every [`Event`] to this sink too; by default nobody hears of them.
    #[must_use]
    pub fn on_event(self, sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.change(|settings| settings.events.add(sink))
    }
}

impl<C, K: Sealed> BreakerLayer<C, K> {
    /// Waits for the end of a response's body, and for its trailers, before a call has succeeded; by default the head
    /// decides, except for gRPC. The body passes as it comes, in another type. A body that is dropped before its end says
    /// nothing, and so does one that nobody reads, as a server's in its answer to HEAD; one that ends without trailers
    /// has ended well.
    #[must_use]
    pub fn track_bodies(self) -> BreakerLayer<C, K, Bodies> {
        BreakerLayer::with(self.classifier, self.keys, Bodies, self.settings)
    }
}

impl<C, T> BreakerLayer<C, One, T> {
    /// Waits in `poll_ready` while calls would be refused, for a [`Buffer`] or a balancer above; by default a call is
    /// refused at once. There is no ramp then.
    ///
    /// The service below has to be ready first, and stays so while it is waited for: have limits above the breaker. A
    /// service that was ready before the breaker opened may still be refused when it is called. A clone that has waited
    /// and is kept, but not polled again, keeps its place in the queue; at worst until a probe's lease expires. Drop it.
    /// The same layer twice in one stack would wait for itself: the outer service holds the only probe.
    ///
    /// [`Buffer`]: https://docs.rs/tower/latest/tower/buffer/index.html
    #[must_use]
    pub fn backpressure(self) -> BreakerLayer<C, One<true>, T> {
        BreakerLayer::with(self.classifier, One, self.track, self.settings)
    }

    /// Has a breaker for each authority of HTTP requests; by default there is one for all. At most
    /// [`max_keys`](Self::max_keys) are kept.
    #[must_use]
    pub fn by_authority(self) -> BreakerLayer<C, ByAuthority, T> {
        BreakerLayer::with(self.classifier, ByAuthority, self.track, self.settings)
    }

    /// Has a breaker for each key that this function makes of a request; by default there is one for all. At most
    /// [`max_keys`](Self::max_keys) are kept.
    ///
    /// A key has to be `Hash` and `Display`. Keys are told apart by their hash; refusals, events and handles show the first
    /// 256 bytes of what `Display` writes.
    ///
    /// ```
    /// use buttress_breaker::BreakerLayer;
    /// use http::Request;
    ///
    /// let layer = BreakerLayer::http().by_key(|request: &Request<String>| {
    ///     // Of "/payments/4711" the first part: a route.
    ///     let route = request.uri().path().split('/').nth(1).unwrap_or_default();
    ///     route.to_owned()
    /// });
    /// # tower::Layer::layer(&layer, ());
    /// ```
    #[must_use]
    pub fn by_key<Req, F, Q>(self, key: F) -> BreakerLayer<C, ByKey<F>, T>
    where
        F: Fn(&Req) -> Q,
    {
        BreakerLayer::with(self.classifier, ByKey(key), self.track, self.settings)
    }
}

impl<C, T, const WAITS: bool> BreakerLayer<C, One<WAITS>, T> {
    /// The breaker, for its operator. Set everything else first.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.breakers.one.clone())
    }
}

/// For layers that have a breaker for each key.
impl<C, K: Sealed, T> BreakerLayer<C, K, T> {
    /// Keeps the breakers of at most this many keys; by default 1,000. A new key takes the place of one whose breaker is
    /// closed and has not been used for a while, or that is [`idle`](Self::idle). When there is none, the calls of the new
    /// key go through without a breaker, and an [event](Event::Untracked) says so.
    #[must_use]
    pub fn max_keys(self, max_keys: NonZeroUsize) -> Self {
        self.change(|settings| settings.max_keys = max_keys)
    }

    /// Forgets the breaker of a key that had no call for this time; by default 5 min. One that is open is kept until its
    /// open time is over, and one that is forced until it is released.
    #[must_use]
    pub fn idle(self, idle: Duration) -> Self {
        self.change(|settings| settings.idle = idle)
    }

    /// The breakers of all keys, for their operator. Set everything else first.
    #[must_use]
    pub fn handles(&self) -> Handles {
        Handles::new(self.breakers.clone())
    }
}

impl<S, C, K, T> Layer<S> for BreakerLayer<C, K, T>
where
    C: Clone,
    K: Sealed + Clone,
    T: Clone,
{
    type Service = Breaker<S, C, K, T>;

    fn layer(&self, inner: S) -> Self::Service {
        Breaker::new(
            inner,
            self.breakers.clone(),
            self.classifier.clone(),
            self.keys.clone(),
            self.track.clone(),
            K::WAITS && !self.settings.shadow,
        )
    }
}

impl<C: Clone, K: Clone, T: Clone> Clone for BreakerLayer<C, K, T> {
    fn clone(&self) -> Self {
        Self {
            classifier: self.classifier.clone(),
            keys: self.keys.clone(),
            track: self.track.clone(),
            settings: self.settings.clone(),
            breakers: self.breakers.clone(),
        }
    }
}

impl<C, K: fmt::Debug, T> fmt::Debug for BreakerLayer<C, K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BreakerLayer")
            .field("keys", &self.keys)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
