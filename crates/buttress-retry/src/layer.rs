//! The layer: what the user sets, and what all its services share.

use std::{fmt, sync::Arc, time::Duration};

use buttress_core::{Events, classify, clock, sync::Mutex};
use http::HeaderName;
use rand::{SeedableRng, rngs::StdRng};
use tower_layer::Layer;

use crate::{
    Backoff, Budget, Event, Retry,
    body::Memory,
    budget::Pool,
    policy::Policy,
    replay::{Always, ByMethod, CloneReplay, HttpReplay, Never},
};

/// Retries what may safely be sent again. See the [crate docs](crate) for an example.
///
/// Every service that it makes, and every clone of it or of them, shares one budget and one allowance of memory; a layer
/// that is built anew has its own.
pub struct RetryLayer<C = classify::Http, R = HttpReplay> {
    shared: Shared<C, R>,
}

/// What the services of a layer share.
#[derive(Clone)]
pub(crate) struct Shared<C, R> {
    pub(crate) policy: Policy,
    pub(crate) classifier: C,
    pub(crate) replay: R,
    pub(crate) pool: Arc<Pool>,
    pub(crate) events: Events<Event>,
    /// A generator of the user's own; else each thread has one.
    pub(crate) seeded: Option<Arc<Mutex<StdRng>>>,
}

/// What the calls of a service share, with those of its clones.
pub(crate) struct Base<S, C, R> {
    pub(crate) shared: Shared<C, R>,
    /// Nobody calls it: each retry is made by a clone of it, so that a call that needs none clones no service. The lock is
    /// for services that are not `Sync`; their `clone` is the only code of somebody else that runs under it.
    pub(crate) service: Mutex<S>,
}

impl RetryLayer {
    /// For HTTP: requests `http::Request<B>`, responses `http::Response<_>`.
    ///
    /// Retried are the statuses 408, 425, 429, 500, 502, 503 and 504, and errors, for GET, HEAD, OPTIONS, TRACE, PUT and
    /// DELETE, and for POST and PATCH with an `Idempotency-Key`; every other request only when it was provably not sent.
    #[must_use]
    pub fn http() -> Self {
        Self::with(classify::Http, HttpReplay::new(ByMethod))
    }
}

impl RetryLayer<classify::Grpc, HttpReplay<Never>> {
    /// For gRPC over HTTP/2, below the client that `tonic` generates.
    ///
    /// Retried are `UNAVAILABLE` in the head of the response, `RESOURCE_EXHAUSTED` with a pushback, and what was
    /// provably not sent. Say with [`idempotent`](Self::idempotent) which methods may be applied twice: they are retried
    /// on `DEADLINE_EXCEEDED`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS` and lost connections too.
    #[must_use]
    pub fn grpc() -> Self {
        const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
        Self::with(classify::Grpc, HttpReplay::new(Never)).resend_header(PREVIOUS_ATTEMPTS)
    }
}

impl<C> RetryLayer<C, CloneReplay> {
    /// For any request that is `Clone`, with a [classifier](buttress_core::Classify) of your own.
    ///
    /// Every request counts as idempotent until [`idempotent`](Self::idempotent) says otherwise.
    #[must_use]
    pub fn new(classifier: C) -> Self {
        Self::with(classifier, CloneReplay { idempotent: Always })
    }
}

impl<C, R> RetryLayer<C, R> {
    fn with(classifier: C, replay: R) -> Self {
        Self {
            shared: Shared {
                policy: Policy::default(),
                classifier,
                replay,
                pool: Arc::new(Pool::new(Budget::default())),
                events: Events::none(),
                seeded: None,
            },
        }
    }

    /// Tries a call at most this many times again, on top of the first attempt; by default 2. With 0 nothing is retried.
    #[must_use]
    pub fn max_retries(mut self, max_retries: u32) -> Self {
        self.shared.policy.max_retries = max_retries;
        self
    }

    /// Sets the delays between attempts; by default full jitter from 50 ms, at most 20 s.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.shared.policy.backoff = backoff;
        self
    }

    /// Sets the delays after throttling (429, or a failure with a hint when to come back); by default full jitter from 1 s,
    /// at most 20 s.
    #[must_use]
    pub fn throttled_backoff(mut self, backoff: Backoff) -> Self {
        self.shared.policy.throttled_backoff = backoff;
        self
    }

    /// Bounds the retries by this budget; by default [`Budget::tokens`].
    #[must_use]
    pub fn budget(mut self, budget: Budget) -> Self {
        self.shared.pool = Arc::new(Pool::new(budget));
        self
    }

    /// Gives a call this much time, with all its attempts and delays; by default no limit but that of a
    /// [`Deadline`](buttress_core::Deadline) among the extensions of an HTTP request, which counts where it is earlier.
    ///
    /// When the time is over the caller gets the last real outcome, or [`TimedOut`](crate::TimedOut) if there was none.
    /// No delay is slept that ends after it, and nothing is sent after it.
    ///
    /// # Panics
    ///
    /// When it is zero.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        assert!(!deadline.is_zero(), "a call needs time");
        // The first reading of the clock may take a while, which no call should have to wait for.
        let _ = clock::now();
        self.shared.policy.deadline = Some(deadline);
        self
    }

    /// Gives each attempt this much time, from the moment that it is sent to the head of its response; by default no
    /// limit but the call's. The last attempt of a call with a deadline has all the time that is left.
    ///
    /// An attempt that takes longer is dropped. It counts as transient and may have been applied.
    ///
    /// # Panics
    ///
    /// When it is zero.
    #[must_use]
    pub fn attempt_timeout(mut self, attempt_timeout: Duration) -> Self {
        assert!(!attempt_timeout.is_zero(), "an attempt needs time");
        self.shared.policy.attempt_timeout = Some(attempt_timeout);
        self
    }

    /// Gives up when the server asks for a longer wait than this; by default 60 s.
    #[must_use]
    pub fn max_hint(mut self, max_hint: Duration) -> Self {
        self.shared.policy.max_hint = max_hint;
        self
    }

    /// Also retries what a layer on this side has refused ([`Rejected`](buttress_core::Rejected)); by default not.
    #[must_use]
    pub fn retry_refusals(mut self, retry_refusals: bool) -> Self {
        self.shared.policy.retry_refusals = retry_refusals;
        self
    }

    /// Draws all jitter from one generator with this seed, so that a run can be repeated; by default each thread has a
    /// generator of its own, with a seed from the system.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.shared.seeded = Some(Arc::new(Mutex::new(StdRng::seed_from_u64(seed))));
        self
    }

    /// Reports every [`Event`] to this sink too; by default nobody hears of them.
    #[must_use]
    pub fn on_event(mut self, sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.shared.events.add(sink);
        self
    }
}

impl<C, I> RetryLayer<C, CloneReplay<I>> {
    /// Says which requests are sent again though they may have been applied; by default every one.
    #[must_use]
    pub fn idempotent<J>(self, idempotent: J) -> RetryLayer<C, CloneReplay<J>> {
        RetryLayer {
            shared: self.shared.map_replay(|_| CloneReplay { idempotent }),
        }
    }
}

impl<C, I> RetryLayer<C, HttpReplay<I>> {
    /// Says which requests are sent again though they may have been applied; by default those of [`ByMethod`] for HTTP,
    /// none for gRPC ([`Never`]).
    ///
    /// ```
    /// # use buttress_retry::RetryLayer;
    /// # use tower::Layer;
    /// # let channel = tower::service_fn(
    /// #     async |_: http::Request<buttress_retry::ReplayBody<http_body_util::Full<bytes::Bytes>>>| {
    /// #         Ok::<_, std::io::Error>(http::Response::new(String::new()))
    /// #     },
    /// # );
    /// let client = RetryLayer::grpc()
    ///     .idempotent(|request: &http::Request<_>| request.uri().path().starts_with("/shop.v1.Catalogue/"))
    ///     .layer(channel);
    /// # tower::Service::call(&mut client.clone(), http::Request::new(http_body_util::Full::<bytes::Bytes>::default()));
    /// ```
    #[must_use]
    pub fn idempotent<J>(self, idempotent: J) -> RetryLayer<C, HttpReplay<J>> {
        RetryLayer {
            shared: self.shared.map_replay(|old| HttpReplay {
                idempotent,
                resend_header: old.resend_header,
                body_limit: old.body_limit,
                memory: old.memory,
                drain_limit: old.drain_limit,
                drain_time: old.drain_time,
            }),
        }
    }

    /// Tells the server in this header how many attempts went before, in every one but the first; by default none for
    /// HTTP, `grpc-previous-rpc-attempts` for gRPC.
    #[must_use]
    pub fn resend_header(mut self, name: HeaderName) -> Self {
        self.shared.replay.resend_header = Some(name);
        self
    }

    /// Keeps copies of request bodies of up to this many bytes; by default 64 KiB. A request with a larger one is sent once.
    #[must_use]
    pub fn replay_limit(mut self, bytes: usize) -> Self {
        self.shared.replay.body_limit = bytes;
        self
    }

    /// Keeps at most this many bytes for all calls together, in copies of request bodies and in responses that were read
    /// before a backoff; by default 16 MiB. Beyond that a request is sent once, but never held up.
    #[must_use]
    pub fn replay_memory(mut self, bytes: usize) -> Self {
        self.shared.replay.memory = Memory::new(bytes);
        self
    }

    /// Reads a response that is retried to its end, so that its connection can be used again, if that takes at most this
    /// many bytes and this much time; by default 64 KiB and 50 ms.
    #[must_use]
    pub fn drain_limit(mut self, bytes: usize, time: Duration) -> Self {
        (
            self.shared.replay.drain_limit,
            self.shared.replay.drain_time,
        ) = (bytes, time);
        self
    }
}

impl<C, R> Shared<C, R> {
    fn map_replay<T>(self, change: impl FnOnce(R) -> T) -> Shared<C, T> {
        Shared {
            policy: self.policy,
            classifier: self.classifier,
            replay: change(self.replay),
            pool: self.pool,
            events: self.events,
            seeded: self.seeded,
        }
    }
}

impl<S, C, R> Layer<S> for RetryLayer<C, R>
where
    S: Clone,
    C: Clone,
    R: Clone,
{
    type Service = Retry<S, C, R>;

    fn layer(&self, inner: S) -> Self::Service {
        let base = Base {
            shared: self.shared.clone(),
            service: Mutex::new(inner.clone()),
        };
        Retry::new(inner, base)
    }
}

impl<C: Clone, R: Clone> Clone for RetryLayer<C, R> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

impl<C, R: fmt::Debug> fmt::Debug for RetryLayer<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RetryLayer").field(&self.shared).finish()
    }
}

impl<C, R: fmt::Debug> fmt::Debug for Shared<C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shared = f.debug_struct("Shared");
        shared
            .field("policy", &self.policy)
            .field("replay", &self.replay)
            .field("events", &self.events);
        shared.finish_non_exhaustive()
    }
}
