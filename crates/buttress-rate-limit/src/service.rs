//! The service: one call at a time past the limiter.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use buttress_core::BoxError;
use tower_service::Service;

use crate::{
    Cost, Due, NoDeadline, OneToken,
    future::ResponseFuture,
    limiter::{Asked, Limiter},
};

/// The service of a [`RateLimitLayer`](crate::RateLimitLayer). See the [crate docs](crate) for an example.
pub struct RateLimit<S, C = OneToken, D = NoDeadline> {
    inner: S,
    limiter: Arc<Limiter>,
    cost: C,
    deadline: D,
}

impl<S, C, D> RateLimit<S, C, D> {
    pub(crate) fn new(inner: S, limiter: Arc<Limiter>, cost: C, deadline: D) -> Self {
        Self {
            inner,
            limiter,
            cost,
            deadline,
        }
    }
}

impl<Req, S, C, D> Service<Req> for RateLimit<S, C, D>
where
    S: Service<Req, Error: Into<BoxError>> + Clone,
    C: Cost<Req>,
    D: Due<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let cost = self.cost.cost(&request);
        match self.limiter.ask(cost, self.deadline.due(&request)) {
            Asked::Granted(grant) => {
                grant.spend();
                ResponseFuture::called(self.inner.call(request))
            }
            Asked::Waits(grant) => {
                // Whoever waits does not hold what made the service ready: others may use it meanwhile.
                let later = self.inner.clone();
                self.inner = later.clone();
                ResponseFuture::waiting(later, request, grant)
            }
            Asked::Refused(rejected) => ResponseFuture::refused(rejected.into()),
        }
    }
}

impl<S: Clone, C: Clone, D: Clone> Clone for RateLimit<S, C, D> {
    fn clone(&self) -> Self {
        let (cost, deadline) = (self.cost.clone(), self.deadline.clone());
        Self::new(self.inner.clone(), self.limiter.clone(), cost, deadline)
    }
}

impl<S: fmt::Debug, C, D> fmt::Debug for RateLimit<S, C, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("limiter", &self.limiter)
            .finish_non_exhaustive()
    }
}
