//! The service: one call at a time past the limiter.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use buttress_core::{
    BoxError,
    clock::{self, Instant},
};
use tower_service::Service;

use crate::{
    Cost, Due, Keys, NoDeadline, One, OneToken,
    future::ResponseFuture,
    gate::Gate,
    limiter::{Ask, Asked, Limiter},
};

/// The service of a [`RateLimitLayer`](crate::RateLimitLayer). See the [crate docs](crate) for an example.
///
/// The service inside has to be `Clone`: a call that waits leaves it free for others, and takes a clone along.
pub struct RateLimit<S, K = One, C = OneToken, D = NoDeadline> {
    inner: S,
    limiter: Arc<Limiter>,
    keys: K,
    cost: C,
    deadline: D,
    /// There is none where callers wait in the call.
    gate: Option<Box<Gate>>,
}

impl<S, K, C, D> RateLimit<S, K, C, D> {
    pub(crate) fn new(
        inner: S,
        limiter: Arc<Limiter>,
        keys: K,
        cost: C,
        deadline: D,
        waits: bool,
    ) -> Self {
        Self {
            inner,
            limiter,
            keys,
            cost,
            deadline,
            gate: waits.then(Box::default),
        }
    }
}

impl<Req, S, K, C, D> Service<Req> for RateLimit<S, K, C, D>
where
    S: Service<Req, Error: Into<BoxError>> + Clone,
    K: Keys<Req>,
    C: Cost<Req>,
    D: Due<Req> + Clone,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req, D>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Some(gate) = &mut self.gate else {
            return self.inner.poll_ready(cx).map_err(Into::into);
        };
        // First the token: whoever waits for it does not hold what makes the service below ready.
        ready!(gate.poll(&self.limiter, cx));
        let inner = self.inner.poll_ready(cx);
        if matches!(inner, Poll::Ready(Err(_))) {
            gate.leave();
        }
        inner.map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        if let Some(grant) = self.gate.as_mut().and_then(|gate| gate.take()) {
            grant.spend(|| self.deadline.report(&request));
            return ResponseFuture::called(self.inner.call(request));
        }
        let key = self.keys.key(&request);
        let tag = K::tag(&key, &self.limiter.hasher);
        let cost = self.cost.cost(&request);
        let since = clock::now();
        let Some(full) = self.limiter.pass(tag, cost, since) else {
            return self.call_otherwise(request, &key, tag, cost, since);
        };
        if self.limiter.settings.refuses
            && let Some(report) = self.deadline.report(&request)
        {
            self.limiter.report_of_word(report, full, since);
        }
        self.limiter.admitted(cost, || Duration::ZERO);
        ResponseFuture::called(self.inner.call(request))
    }
}

impl<S, K, C, D> RateLimit<S, K, C, D> {
    /// A call that has to wait, or is refused, or takes another way for some reason.
    #[inline(never)]
    fn call_otherwise<Req>(
        &mut self,
        request: Req,
        key: &K::Key,
        tag: u64,
        cost: u64,
        since: Instant,
    ) -> ResponseFuture<S, Req, D>
    where
        S: Service<Req> + Clone,
        K: Keys<Req>,
        D: Due<Req> + Clone,
    {
        let ask = Ask {
            tag,
            cost,
            quota: self.keys.quota(key),
            key: &|| K::text(key),
            due: &|| self.deadline.due(&request),
            report: &|| self.deadline.report(&request),
        };
        match self.limiter.ask(&ask, since) {
            Asked::Granted => ResponseFuture::called(self.inner.call(request)),
            Asked::Waits(grant) => {
                let later = self.inner.clone();
                self.let_go();
                ResponseFuture::waiting(later, request, grant, self.deadline.clone())
            }
            Asked::Refused(rejected) => {
                self.let_go();
                ResponseFuture::refused(rejected)
            }
        }
    }

    /// Gives back what made the service below ready: whoever waits or is refused does not use it, and others may.
    fn let_go(&mut self)
    where
        S: Clone,
    {
        self.inner = self.inner.clone();
    }
}

impl<S: Clone, K: Clone, C: Clone, D: Clone> Clone for RateLimit<S, K, C, D> {
    /// A clone has no token: it waits for its own.
    fn clone(&self) -> Self {
        Self::new(
            self.inner.clone(),
            self.limiter.clone(),
            self.keys.clone(),
            self.cost.clone(),
            self.deadline.clone(),
            self.gate.is_some(),
        )
    }
}

impl<S: fmt::Debug, K: fmt::Debug, C, D> fmt::Debug for RateLimit<S, K, C, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("limiter", &self.limiter)
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}
