//! The future of a call.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use buttress_core::{BoxError, LimitReport};
use http::Response;
use pin_project::pin_project;

use crate::{AnswerBody, answers::Answers, fields};

/// The response of an [`Answer`](crate::Answer) service.
///
/// It may be dropped at any time, and the call below is dropped with it.
#[pin_project]
#[must_use = "a call does nothing until its future is polled"]
pub struct ResponseFuture<F> {
    #[pin]
    state: State<F>,
    /// What the limiters below say, unless somebody above asks them.
    report: Option<LimitReport>,
    answers: Answers,
    head_only: bool,
}

#[pin_project(project = StateProj)]
enum State<F> {
    Called(#[pin] F),
    Failed(Option<BoxError>),
}

impl<F> ResponseFuture<F> {
    pub(crate) fn called(
        future: F,
        report: Option<LimitReport>,
        answers: Answers,
        head_only: bool,
    ) -> Self {
        Self {
            state: State::Called(future),
            report,
            answers,
            head_only,
        }
    }

    pub(crate) fn failed(error: BoxError, answers: Answers, head_only: bool) -> Self {
        Self {
            state: State::Failed(Some(error)),
            report: None,
            answers,
            head_only,
        }
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
{
    type Output = Result<Response<AnswerBody<B>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = match this.state.project() {
            StateProj::Called(future) => ready!(future.poll(cx)).map_err(Into::into),
            StateProj::Failed(error) => Err(error.take().expect("it was polled after its end")),
        };
        let mut response = match result {
            Ok(response) => response.map(AnswerBody::of_service),
            Err(error) => {
                let answer = this.answers.answer(error, *this.head_only);
                answer.map(AnswerBody::own)
            }
        };
        if let Some(report) = this.report {
            fields::add(response.headers_mut(), &report.take());
        }
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Called(_) => "Called",
            State::Failed(_) => "Failed",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
