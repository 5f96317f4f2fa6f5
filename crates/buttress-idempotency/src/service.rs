//! The service: a request with a key once, all others as they come.

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll},
};

use buttress_core::clock;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    Event, Key, Refusal, RequestBody, Scope, Store, future::ResponseFuture, key::FIELD,
    problem::Problem, record::RecordKey, run::Run, shared::Shared,
};

/// The service of an [`IdempotencyLayer`](crate::IdempotencyLayer). See the [crate docs](crate) for an example.
///
/// The service inside has to be `Clone`, `Send` and `'static`: a run goes on in a task when its client goes away.
pub struct Idempotency<S, T, C> {
    inner: S,
    shared: Arc<Shared<T>>,
    scope: C,
}

impl<S, T, C> Idempotency<S, T, C> {
    pub(crate) fn new(inner: S, shared: Arc<Shared<T>>, scope: C) -> Self {
        Self {
            inner,
            shared,
            scope,
        }
    }
}

impl<S, T, C, B, RB> Service<Request<B>> for Idempotency<S, T, C>
where
    S: Service<Request<RequestBody<B>>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    T: Store,
    C: Scope,
    B: Body<Data = Bytes> + Send + 'static,
    RB: Body<Data = Bytes> + Send + 'static,
    RB::Error: Send,
{
    type Response = Response<crate::ResponseBody<RB>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, RB, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = &self.shared.settings;
        if !settings.methods.contains(request.method()) {
            let request = request.map(RequestBody::plain);
            return ResponseFuture::passed(self.inner.call(request));
        }
        let (mut parts, body) = request.into_parts();
        let problem = match Key::of(&parts.headers) {
            Ok(Some(key)) => match self.scope.scope(&parts) {
                Some(scope) => Ok(RecordKey::new(scope, key.as_str())),
                None => Err(Problem::Refused(Refusal::NoScope)),
            },
            Ok(None) if settings.required => Err(Problem::Refused(Refusal::Missing)),
            Ok(None) => {
                let request = Request::from_parts(parts, RequestBody::plain(body));
                return ResponseFuture::passed(self.inner.call(request));
            }
            Err(_) => Err(Problem::Refused(Refusal::Invalid)),
        };
        let key = match problem {
            Ok(key) => key,
            Err(problem) => {
                self.shared.emit(&Event::Rejected);
                // What made the service below ready is not used, and is given back.
                self.inner = self.inner.clone();
                return ResponseFuture::answered(problem.response(settings));
            }
        };
        if let Some(value) = parts.headers.get_mut(&FIELD) {
            // Whoever prints the request below does not print the key.
            value.set_sensitive(true);
        }
        // The service that was polled ready is the one that is called.
        let clone = self.inner.clone();
        let run = Run {
            shared: self.shared.clone(),
            service: mem::replace(&mut self.inner, clone),
            ready: true,
            until: settings.wait.map(|wait| clock::now() + wait),
            parts,
            body: Some(body),
            key,
        };
        ResponseFuture::keyed(run.start())
    }
}

impl<S: Clone, T, C: Clone> Clone for Idempotency<S, T, C> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.shared.clone(), self.scope.clone())
    }
}

impl<S: fmt::Debug, T, C> fmt::Debug for Idempotency<S, T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Idempotency")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}
