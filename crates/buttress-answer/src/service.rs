//! The service: a response to every request.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    sync::Arc,
    task::{Context, Poll, ready},
};

use buttress_core::{BoxError, LimitReport};
use http::{Method, Request, Response};
use tower_service::Service;

use crate::{
    AnswerBody,
    answers::{Answers, Protocol},
    future::ResponseFuture,
};

/// The service of an [`AnswerLayer`](crate::AnswerLayer). See the [crate docs](crate) for an example.
#[derive(Debug)]
pub struct Answer<S> {
    inner: S,
    answers: Answers,
    /// What came of polling the inner service ready, once that has failed. It is dead then, and no more polled: some
    /// services panic.
    dead: Option<Dead>,
}

impl<S> Answer<S> {
    pub(crate) fn new(inner: S, answers: Answers) -> Self {
        Self {
            inner,
            answers,
            dead: None,
        }
    }
}

impl<S, Req, Res> Service<Request<Req>> for Answer<S>
where
    S: Service<Request<Req>, Response = Response<Res>, Error: Into<BoxError>>,
{
    type Response = Response<AnswerBody<Res>>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.dead.is_none()
            && let Err(error) = ready!(self.inner.poll_ready(cx))
        {
            self.dead = Some(Dead(Arc::from(error.into())));
        }
        // The error is an answer to every call from now on.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Req>) -> Self::Future {
        let head_only = request.method() == Method::HEAD;
        let answers = self.answers.clone();
        if let Some(dead) = &self.dead {
            return ResponseFuture::failed(dead.clone().into(), answers, head_only);
        }
        let extensions = request.extensions_mut();
        // If there is a layer like this one above, it tells of the limiters below both.
        let report =
            if answers.protocol == Protocol::Http && extensions.get::<LimitReport>().is_none() {
                let report = LimitReport::default();
                extensions.insert(report.clone());
                Some(report)
            } else {
                None
            };
        ResponseFuture::called(self.inner.call(request), report, answers, head_only)
    }
}

impl<S: Clone> Clone for Answer<S> {
    fn clone(&self) -> Self {
        // Whether a clone of the inner service is dead too, it says itself.
        Self::new(self.inner.clone(), self.answers.clone())
    }
}

/// The error of a service that cannot be called any more.
#[derive(Clone, Debug)]
struct Dead(Arc<dyn Error + Send + Sync>);

impl fmt::Display for Dead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the service cannot be called any more")
    }
}

impl Error for Dead {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}
