//! Responses that are read to their end before a backoff, and can be given to the caller after all.

use std::{
    collections::VecDeque,
    error::Error,
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use buttress_core::BoxError;
use bytes::Buf;
use http::{Response, response::Parts};
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;

use crate::body::{Held, Memory};

/// The body of a response as the caller gets it: as it arrives, or what was kept of it before a backoff.
///
/// A response that is retried is read to its end first, so that its connection can be used again. It comes to the caller
/// after all when the later attempts come to nothing; if it was too large or too slow to be read whole, or there was no
/// memory left to keep it, its body ends with an error that says so.
#[derive(Debug)]
#[pin_project]
pub struct ResponseBody<B: Body>(#[pin] State<B>);

#[pin_project(project = StateProj)]
enum State<B: Body> {
    Arriving(#[pin] B),
    Kept(Kept<B::Data>),
}

/// The frames of a body that were read from it, and how it ended.
struct Kept<D> {
    frames: VecDeque<Frame<D>>,
    end: End,
    held: Held,
}

#[derive(Debug)]
enum End {
    Complete,
    Cut,
    Failed(BoxError),
}

impl<B: Body> ResponseBody<B> {
    pub(crate) fn arriving(body: B) -> Self {
        Self(State::Arriving(body))
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        match self.project().0.project() {
            StateProj::Arriving(body) => body.poll_frame(cx).map_err(Into::into),
            StateProj::Kept(kept) => Poll::Ready(kept.next()),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            State::Arriving(body) => body.is_end_stream(),
            State::Kept(kept) => kept.frames.is_empty() && matches!(kept.end, End::Complete),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            State::Arriving(body) => body.size_hint(),
            State::Kept(kept) => kept.size_hint(),
        }
    }
}

impl<D: Buf> Kept<D> {
    fn next(&mut self) -> Option<Result<Frame<D>, BoxError>> {
        if let Some(frame) = self.frames.pop_front() {
            return Some(Ok(frame));
        }
        match mem::replace(&mut self.end, End::Complete) {
            End::Complete => None,
            End::Cut => Some(Err(Cut.into())),
            End::Failed(error) => Some(Err(error)),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let bytes = self
            .frames
            .iter()
            .filter_map(Frame::data_ref)
            .map(|data| data.remaining() as u64)
            .sum();
        let mut hint = SizeHint::new();
        hint.set_lower(bytes);
        if let End::Complete = self.end {
            hint.set_upper(bytes);
        }
        hint
    }
}

impl<B: Body> fmt::Debug for State<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arriving(_) => f.write_str("Arriving"),
            Self::Kept(kept) => kept.fmt(f),
        }
    }
}

impl<D> fmt::Debug for Kept<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept")
            .field("frames", &self.frames.len())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// The error at the end of a response body that was not read to its end.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the rest of this response was not waited for before a retry")
    }
}

impl Error for Cut {}

/// A response that is being read to its end. Its body is gone as soon as that, or the limit, is reached.
pub struct Draining<B: Body> {
    parts: Parts,
    body: Option<Pin<Box<B>>>,
    kept: Kept<B::Data>,
    /// How much more may arrive.
    left: usize,
    /// Is what arrives kept, or is there no memory for it?
    keep: bool,
}

impl<B> Draining<B>
where
    B: Body<Error: Into<BoxError>>,
{
    pub(crate) fn new(response: Response<B>, limit: usize, memory: &Arc<Memory>) -> Self {
        let (parts, body) = response.into_parts();
        let body = (!body.is_end_stream()).then(|| Box::pin(body));
        let end = if body.is_some() {
            End::Cut
        } else {
            End::Complete
        };
        let kept = Kept {
            frames: VecDeque::new(),
            end,
            held: Held::none(memory),
        };
        Self {
            parts,
            body,
            kept,
            left: limit,
            keep: true,
        }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(body) = &mut self.body {
            let end = match ready!(body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // An empty frame counts too, or a body that has no end of them would never be left.
                    let size = frame.data_ref().map_or(0, |data| data.remaining().max(1));
                    if let Some(left) = self.left.checked_sub(size) {
                        self.left = left;
                        self.keep = self.keep && self.kept.held.grow(size + size_of_val(&frame));
                        if self.keep {
                            self.kept.frames.push_back(frame);
                        }
                        continue;
                    }
                    End::Cut
                }
                Some(Err(error)) => End::Failed(error.into()),
                None if self.keep => End::Complete,
                None => End::Cut,
            };
            self.kept.end = end;
            self.body = None;
        }
        Poll::Ready(())
    }

    /// The response with what has arrived of its body; the rest is dropped.
    pub(crate) fn into_response(self) -> Response<ResponseBody<B>> {
        Response::from_parts(self.parts, ResponseBody(State::Kept(self.kept)))
    }
}

impl<B: Body> fmt::Debug for Draining<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining")
            .field("parts", &self.parts)
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}
