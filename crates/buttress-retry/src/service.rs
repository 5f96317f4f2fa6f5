//! The service: the first attempt of each call.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use buttress_core::{BoxError, Classify, clock};
use tower_service::Service;

use crate::{
    Outcome,
    future::ResponseFuture,
    layer::{Base, Shared},
    replay::{KeyMaker, Replay, Settle},
};

/// The service of a [`RetryLayer`](crate::RetryLayer). See the [crate docs](crate) for an example.
pub struct Retry<S, C = buttress_core::classify::Http, R = crate::replay::HttpReplay> {
    inner: S,
    base: Arc<Base<S, C, R>>,
}

impl<S, C, R> Retry<S, C, R> {
    pub(crate) fn new(inner: S, base: Base<S, C, R>) -> Self {
        let base = Arc::new(base);
        Self { inner, base }
    }
}

impl<Req, S, C, R> Service<Req> for Retry<S, C, R>
where
    R: Replay<Req> + Settle<S::Response>,
    C: Classify<S::Response>,
    S: Service<R::Request, Error: Into<BoxError>> + Clone,
{
    type Response = R::Response;
    type Error = BoxError;
    type Future = ResponseFuture<Req, S, C, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let Shared {
            policy,
            replay,
            pool,
            ..
        } = &self.base.shared;
        let plan = replay.plan(&request);
        if let Some(deadline) = plan.deadline
            && deadline.0 <= clock::now()
        {
            // What made the service below ready is not used, and is given back.
            self.inner = self.inner.clone();
            return ResponseFuture::late(self.base.clone(), plan);
        }
        // While every account is full nobody needs to know whose it is.
        let key = (!pool.is_full()).then(|| replay.key(&request, &KeyMaker(pool)));
        let keep = if policy.max_retries == 0 {
            Err(Outcome::Attempts)
        } else if key.is_some_and(|key| !pool.affords(key)) {
            Err(Outcome::Budget)
        } else if replay.can_keep(&request) {
            Ok(())
        } else {
            Err(Outcome::BodyNotReplayable)
        };

        // A request is large: it is handed over where it is made, and moved no more than it must.
        let (attempt, again) = match keep {
            Ok(()) => {
                let mut copy = None;
                let attempt = self.inner.call(replay.send(request, &mut copy));
                (attempt, copy.ok_or(Outcome::BodyNotReplayable))
            }
            Err(reason) => (self.inner.call(replay.send_once(request)), Err(reason)),
        };
        ResponseFuture::begun(attempt, self.base.clone(), plan, key, again)
    }
}

impl<S: Clone, C, R> Clone for Retry<S, C, R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            base: self.base.clone(),
        }
    }
}

impl<S: fmt::Debug, C, R: fmt::Debug> fmt::Debug for Retry<S, C, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retry")
            .field("inner", &self.inner)
            .field("shared", &self.base.shared)
            .finish()
    }
}
