//! The layer: what the user sets, and the limiter that all its services share.

use std::{fmt, sync::Arc, time::Duration};

use buttress_core::{Deadline, Events, clock::Instant};
use http::Request;
use tower_layer::Layer;

use crate::{
    Event, Handle, Quota, RateLimit,
    limiter::{Limiter, Settings},
};

/// Keeps to a rate. See the [crate docs](crate) for an example.
///
/// Every service that it makes, and every clone of it or of them, shares its limiter. A setter makes a new one: set first,
/// then clone and take handles.
pub struct RateLimitLayer<C = OneToken, D = NoDeadline> {
    cost: C,
    deadline: D,
    settings: Settings,
    limiter: Arc<Limiter>,
}

/// Says how many tokens a request costs. A function or closure of the same shape is one too.
pub trait Cost<Req> {
    /// The tokens. A request that costs none is let through as soon as there is one, and takes none.
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
}

/// No request has a deadline.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoDeadline;

impl<Req> Due<Req> for NoDeadline {
    fn due(&self, _: &Req) -> Option<Instant> {
        None
    }
}

/// An HTTP request has the [`Deadline`] among its extensions.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpDeadline;

impl<B> Due<Request<B>> for HttpDeadline {
    fn due(&self, request: &Request<B>) -> Option<Instant> {
        request.extensions().get::<Deadline>().map(|due| due.0)
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
        Self::with(
            OneToken,
            NoDeadline,
            Settings {
                quotas: vec![quota],
                max_wait: Duration::from_millis(500),
                refuses: false,
                shadow: false,
                name: None,
                events: Events::none(),
            },
        )
    }
}

impl RateLimitLayer<OneToken, HttpDeadline> {
    /// As [`new`](RateLimitLayer::new), for HTTP requests: none waits beyond its [`Deadline`].
    #[must_use]
    pub fn http(quota: Quota) -> Self {
        RateLimitLayer::new(quota).deadline(HttpDeadline)
    }
}

impl<C, D> RateLimitLayer<C, D> {
    fn with(cost: C, deadline: D, settings: Settings) -> Self {
        Self {
            cost,
            deadline,
            limiter: Arc::new(Limiter::new(settings.clone())),
            settings,
        }
    }

    fn change(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        Self::with(self.cost, self.deadline, self.settings)
    }

    /// Keeps to this quota too; by default there is one. A call takes from all of them or from none.
    #[must_use]
    pub fn and(self, quota: Quota) -> Self {
        self.change(|settings| settings.quotas.push(quota))
    }

    /// Refuses a call that comes too early, as a server does; by default it waits.
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
    pub fn cost<F>(self, cost: F) -> RateLimitLayer<F, D> {
        RateLimitLayer::with(cost, self.deadline, self.settings)
    }

    /// Has a request wait no longer than until this moment; by default only [`http`](RateLimitLayer::http) knows one.
    #[must_use]
    pub fn deadline<F>(self, deadline: F) -> RateLimitLayer<C, F> {
        RateLimitLayer::with(self.cost, deadline, self.settings)
    }

    /// Refuses nothing and has nobody wait, and tells with its events what it would have done; by default off.
    #[must_use]
    pub fn shadow(self) -> Self {
        self.change(|settings| settings.shadow = true)
    }

    /// Calls itself so in its refusals; by default it has no name.
    #[must_use]
    pub fn name(self, name: impl Into<Arc<str>>) -> Self {
        self.change(|settings| settings.name = Some(name.into()))
    }

    /// Reports every [`Event`] to this sink too; by default nobody hears of them.
    #[must_use]
    pub fn on_event(self, sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.change(|settings| settings.events.add(sink))
    }

    /// The limiter, for its operator. Set everything else first.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(self.limiter.clone())
    }
}

impl<S, C: Clone, D: Clone> Layer<S> for RateLimitLayer<C, D> {
    type Service = RateLimit<S, C, D>;

    fn layer(&self, inner: S) -> Self::Service {
        let (cost, deadline) = (self.cost.clone(), self.deadline.clone());
        RateLimit::new(inner, self.limiter.clone(), cost, deadline)
    }
}

impl<C: Clone, D: Clone> Clone for RateLimitLayer<C, D> {
    fn clone(&self) -> Self {
        Self {
            cost: self.cost.clone(),
            deadline: self.deadline.clone(),
            settings: self.settings.clone(),
            limiter: self.limiter.clone(),
        }
    }
}

impl<C, D> fmt::Debug for RateLimitLayer<C, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimitLayer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
