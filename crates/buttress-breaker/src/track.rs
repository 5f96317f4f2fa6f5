//! Where a call ends: with the head of its response, or with the body.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use buttress_core::{BoxError, Classify, Kind};
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use crate::{Outcome, Reason, call::Call};

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::HeadOnly {}
    impl Sealed for super::Bodies {}
}

/// Where a call ends. [`HeadOnly`] and [`Bodies`] implement it.
pub trait Track<Res, C>: sealed::Sealed {
    /// What the caller gets.
    type Response;

    /// Ends the call, unless its end is still to come.
    #[doc(hidden)]
    fn judge(&self, classifier: &C, response: &Res, call: Watched<'_>);

    /// Takes over the call if it is not over yet.
    // Apart from the judging, so that a large response need not be moved for it.
    #[doc(hidden)]
    fn pass(&self, classifier: &C, response: Res, call: Watched<'_>) -> Self::Response;
}

/// A call that has a response: where it is, for most end there.
#[doc(hidden)]
#[derive(Debug)]
pub struct Watched<'a>(pub(crate) &'a mut Option<Call>);

/// A call has succeeded or failed when its response, or the head of it, is there.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadOnly;

/// A call whose head is good has succeeded when the body has ended well, and failed when it breaks off or the trailers
/// say so.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bodies;

impl<Res, C: Classify<Res>> Track<Res, C> for HeadOnly {
    type Response = Res;

    fn judge(&self, classifier: &C, response: &Res, Watched(call): Watched<'_>) {
        if let Some(call) = call {
            let verdict = classifier.classify(Ok(response));
            call.judged(verdict, Reason::Response);
        }
    }

    fn pass(&self, _: &C, response: Res, _: Watched<'_>) -> Res {
        response
    }
}

impl<B, C> Track<Response<B>, C> for Bodies
where
    B: Body,
    C: Classify<Response<B>> + Clone,
{
    type Response = Response<TrackedBody<B, C>>;

    fn judge(&self, classifier: &C, response: &Response<B>, Watched(slot): Watched<'_>) {
        let Some(call) = slot else {
            return;
        };
        let verdict = classifier.classify(Ok(response));
        if verdict.kind == Kind::Success && !response.body().is_end_stream() {
            call.stream();
        } else {
            call.judged(verdict, Reason::Response);
            *slot = None;
        }
    }

    fn pass(
        &self,
        classifier: &C,
        response: Response<B>,
        Watched(call): Watched<'_>,
    ) -> Self::Response {
        let watch = call.take().map(|call| (call, classifier.clone()));
        response.map(|body| TrackedBody { body, watch })
    }
}

/// A response body whose end is the end of the call. Its data passes as it comes.
#[pin_project]
pub struct TrackedBody<B, C> {
    #[pin]
    body: B,
    watch: Option<(Call, C)>,
}

impl<B, C> Body for TrackedBody<B, C>
where
    B: Body<Error: Into<BoxError>>,
    C: Classify<Response<B>>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        let mut this = self.project();
        // After a panic it may be polled again: it has failed, and that once.
        let watch = this.watch.as_mut().filter(|(call, _)| !call.is_over());
        let Some((call, classifier)) = watch else {
            return this.body.poll_frame(cx).map_err(Into::into);
        };
        let body = this.body.as_mut();
        let frame = ready!(call.run(|| body.poll_frame(cx).map_err(Into::into)));
        let trailers = match &frame {
            Some(Ok(frame)) => frame.trailers_ref(),
            _ => None,
        };
        if let Some(trailers) = trailers {
            let verdict = classifier.classify_trailers(trailers);
            call.judged(verdict, Reason::Body);
        } else {
            match &frame {
                // It may be the caller's own upload that has failed.
                Some(Err(error)) => call.fail(classifier, error, Reason::Body),
                Some(Ok(_)) if !this.body.is_end_stream() => return Poll::Ready(frame),
                Some(Ok(_)) | None => call.end(Outcome::Success, Reason::Body, None),
            }
        }
        *this.watch = None;
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B: fmt::Debug, C> fmt::Debug for TrackedBody<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrackedBody")
            .field("body", &self.body)
            .field("is_tracked", &self.watch.is_some())
            .finish()
    }
}
