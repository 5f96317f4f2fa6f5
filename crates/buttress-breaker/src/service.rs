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
    /// The one of `breakers` that is for all keys, at hand: most layers have no other.
    one: Arc<Shared>,
    breakers: Arc<Breakers>,
    classifier: C,
    keys: K,
    track: T,
    /// Only with backpressure: elsewhere nobody waits.
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
        let inner = self.inner.poll_ready(cx);
        if let Some(gate) = &mut self.gate
            && !matches!(inner, Poll::Ready(Ok(())))
        {
            // The slot that it was woken for, if it was, is for somebody who can use it.
            gate.leave();
        }
        ready!(inner).map_err(Into::into)?;
        match &mut self.gate {
            Some(gate) => gate.poll(&self.one, cx).map(Ok),
            None => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        // The short way for most calls.
        if K::ONE
            && self.gate.is_none()
            && let Some(permit) = self.one.pass()
        {
            let (classifier, track) = (self.classifier.clone(), self.track.clone());
            let (future, call) = Call::make(&self.one, permit, || self.inner.call(request));
            return ResponseFuture::called(future, call, classifier, track);
        }
        self.call_otherwise(request)
    }
}

impl<S, C, K, T> Breaker<S, C, K, T> {
    #[inline(never)]
    fn call_otherwise<Req>(&mut self, request: Req) -> ResponseFuture<S::Future, C, T>
    where
        S: Service<Req>,
        C: Clone,
        K: Keys<Req>,
        T: Clone,
    {
        let (classifier, track) = (self.classifier.clone(), self.track.clone());
        // The short way of an open one.
        if K::ONE
            && self.gate.is_none()
            && !self.one.settings.shadow
            && let Some(refusal) = self.one.refuse()
            && let Some(refused) = self.one.refused(refusal)
        {
            return ResponseFuture::refused(refused, classifier, track);
        }
        let reserved = self.gate.as_mut().and_then(|gate| gate.take());
        let pick = match reserved {
            Some(_) => Pick::One,
            None => self.keys.pick(&request, &self.breakers),
        };
        let shared = match &pick {
            Pick::One | Pick::None => &self.one,
            Pick::Of(shared) => shared,
        };
        // Code of somebody else runs before this or in the call: a panic elsewhere would keep a probe's slot.
        let permit = match (reserved, &pick) {
            (Some(permit), _) => Ok(permit),
            (None, Pick::None) => {
                self.breakers.settings.events.emit(&Event::Untracked);
                Ok(Permit::UNCOUNTED)
            }
            (None, _) => shared.admit().or_else(|refusal| {
                let refused = shared.refused(refusal);
                refused.map_or(Ok(Permit::UNCOUNTED), Err)
            }),
        };
        match permit {
            Ok(permit) => {
                let (future, call) = Call::make(shared, permit, || self.inner.call(request));
                ResponseFuture::called(future, call, classifier, track)
            }
            Err(refused) => ResponseFuture::refused(refused, classifier, track),
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
