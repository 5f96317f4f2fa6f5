//! The service: one call at a time through the breaker.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
};

use buttress_core::{BoxError, Classify};
use tower_service::Service;

use crate::{
    Event, HeadOnly, Http, One,
    call::Call,
    circuit::Permit,
    future::ResponseFuture,
    gate::Gate,
    keys::{Breakers, Keys, Pick},
    shared::Shared,
    track::Track,
};

/// The service of a [`BreakerLayer`](crate::BreakerLayer). See the [crate docs](crate) for an example.
pub struct Breaker<S, C = Http, K = One, T = HeadOnly> {
    inner: S,
    /// The one of the breakers that most layers have.
    one: Arc<Shared>,
    breakers: Arc<Breakers>,
    classifier: C,
    keys: K,
    track: T,
    /// There is none where calls are refused.
    gate: Option<Box<Gate>>,
}

impl<S, C, K, T> Breaker<S, C, K, T> {
    pub(crate) fn new(
        inner: S,
        breakers: Arc<Breakers>,
        classifier: C,
        keys: K,
        track: T,
        waits: bool,
    ) -> Self {
        Self {
            inner,
            one: breakers.one.clone(),
            breakers,
            classifier,
            keys,
            track,
            gate: waits.then(Box::default),
        }
    }
}

impl<Req, S, C, K, T> Service<Req> for Breaker<S, C, K, T>
where
    S: Service<Req, Error: Into<BoxError>>,
    C: Classify<S::Response> + Clone,
    K: Keys<Req>,
    T: Track<S::Response, C> + Clone,
{
    type Response = T::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future, C, T>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        ready!(self.inner.poll_ready(cx)).map_err(Into::into)?;
        match &mut self.gate {
            Some(gate) => gate.poll(&self.one, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let reserved = self.gate.as_mut().and_then(|gate| gate.take());
        let begun = match reserved {
            Some(call) => Ok(call),
            None => match self.keys.pick(&request, &self.breakers) {
                Pick::One => Call::begin(&self.one),
                Pick::Of(shared) => Call::begin(&shared),
                Pick::None => {
                    self.breakers.settings.events.emit(&Event::Untracked);
                    Ok(Call::with(self.one.clone(), Permit::UNCOUNTED))
                }
            },
        };
        let (classifier, track) = (self.classifier.clone(), self.track.clone());
        match begun {
            Ok(mut call) => {
                call.start();
                let future = call.run(|| self.inner.call(request));
                ResponseFuture::called(future, call, classifier, track)
            }
            Err(rejected) => ResponseFuture::refused(rejected.into(), classifier, track),
        }
    }
}

impl<S: Clone, C: Clone, K: Clone, T: Clone> Clone for Breaker<S, C, K, T> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            one: self.one.clone(),
            breakers: self.breakers.clone(),
            classifier: self.classifier.clone(),
            keys: self.keys.clone(),
            track: self.track.clone(),
            gate: self.gate.as_ref().map(|_| Box::default()),
        }
    }
}

impl<S: fmt::Debug, C, K: fmt::Debug, T> fmt::Debug for Breaker<S, C, K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("inner", &self.inner)
            .field("keys", &self.keys)
            .field("breakers", &self.breakers)
            .finish_non_exhaustive()
    }
}
