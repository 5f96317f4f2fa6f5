//! The body of a response: that of the service below, or an answer's own.

use std::{
    mem,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

/// The body of a response of an [`Answer`](crate::Answer) service: what the service below sends, as it comes, or the few
/// bytes of an answer in its place.
#[pin_project]
#[derive(Clone, Debug)]
pub struct AnswerBody<B> {
    #[pin]
    source: Source<B>,
}

#[pin_project(project = SourceProj)]
#[derive(Clone, Debug)]
enum Source<B> {
    Service(#[pin] B),
    /// Empty once they are sent.
    Own(Bytes),
}

impl<B> AnswerBody<B> {
    pub(crate) fn of_service(body: B) -> Self {
        let source = Source::Service(body);
        Self { source }
    }

    pub(crate) fn own(bytes: Bytes) -> Self {
        let source = Source::Own(bytes);
        Self { source }
    }
}

/// An empty body, which some layers above ask for.
impl<B> Default for AnswerBody<B> {
    fn default() -> Self {
        Self::own(Bytes::new())
    }
}

impl<B> Body for AnswerBody<B>
where
    B: Body<Data: From<Bytes>>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        match self.project().source.project() {
            SourceProj::Service(body) => body.poll_frame(cx),
            SourceProj::Own(bytes) if bytes.is_empty() => Poll::Ready(None),
            SourceProj::Own(bytes) => {
                let frame = Frame::data(mem::take(bytes).into());
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Service(body) => body.is_end_stream(),
            Source::Own(bytes) => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Service(body) => body.size_hint(),
            Source::Own(bytes) => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}
