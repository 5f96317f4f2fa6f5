//! The bodies on both sides of a handler: what it reads is hashed as it reads it, what it answers is kept as it is sent.

use std::{
    fmt,
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project::pin_project;
use tokio::sync::mpsc;

use crate::{json, record::BodyPrint};

/// What a body is hashed with, by the handler that reads it and for a duplicate.
fn hasher() -> blake3::Hasher {
    static CONTEXT: LazyLock<ContextKey> =
        LazyLock::new(|| hash_derive_key_context("buttress idempotency 1 body"));
    blake3::Hasher::new_from_context_key(&CONTEXT)
}

/// A copy of a body that is compared as JSON, as long as it is not too large for that. Of all others there is none.
#[derive(Debug)]
struct Copied {
    bytes: Option<Vec<u8>>,
    most: usize,
}

impl Copied {
    fn new(most: Option<usize>) -> Self {
        Self {
            bytes: most.map(|_| Vec::new()),
            most: most.unwrap_or_default(),
        }
    }

    fn add(&mut self, data: &[u8]) {
        match &mut self.bytes {
            Some(bytes) if bytes.len() + data.len() <= self.most => bytes.extend_from_slice(data),
            bytes => *bytes = None,
        }
    }

    /// The hash of its one form, which is never that of the bytes of another body.
    fn hash(&self) -> Option<[u8; 32]> {
        let form = json::canonical(self.bytes.as_deref()?)?;
        let mut hasher = blake3::Hasher::new_derive_key("buttress idempotency 1 json");
        hasher.update(&form);
        Some(hasher.finalize().into())
    }
}

/// What has been read of a request's body so far.
#[derive(Clone, Debug)]
pub(crate) struct Reading(Arc<Mutex<Read>>);

#[derive(Debug)]
struct Read {
    hasher: blake3::Hasher,
    copied: Copied,
    length: u64,
    whole: bool,
    /// Has it broken off?
    failed: bool,
}

impl Reading {
    /// Up to so many bytes are compared as JSON, if it is one.
    pub(crate) fn new(json: Option<usize>) -> Self {
        Self(Arc::new(Mutex::new(Read {
            hasher: hasher(),
            copied: Copied::new(json),
            length: 0,
            whole: false,
            failed: false,
        })))
    }

    /// The print of what was read. A part of a body is no JSON, even if it looks like one.
    pub(crate) fn print(&self) -> BodyPrint {
        let read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let json = if read.whole { read.copied.hash() } else { None };
        BodyPrint {
            hash: json.unwrap_or_else(|| read.hasher.finalize().into()),
            length: read.length,
            whole: read.whole,
        }
    }

    /// Has the body broken off before its end?
    pub(crate) fn failed(&self) -> bool {
        let read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        read.failed
    }

    fn update(&self, change: impl FnOnce(&mut Read)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The body of a request to the service below an [`Idempotency`](crate::Idempotency) service: the client's body, which is
/// hashed as it is read if the request has a key.
#[pin_project]
pub struct RequestBody<B> {
    #[pin]
    body: B,
    /// Nothing if the request has no key.
    reading: Option<Reading>,
}

impl<B> RequestBody<B> {
    pub(crate) fn plain(body: B) -> Self {
        let reading = None;
        Self { body, reading }
    }
}

impl<B: Body> RequestBody<B> {
    pub(crate) fn hashed(body: B, reading: Reading) -> Self {
        if body.is_end_stream() {
            reading.update(|read| read.whole = true);
        }
        let reading = Some(reading);
        Self { body, reading }
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.body.as_mut().poll_frame(cx));
        if let Some(reading) = this.reading {
            let ended = frame.is_none() || this.body.is_end_stream();
            let data = match &frame {
                Some(Ok(frame)) => frame.data_ref(),
                Some(Err(_)) | None => None,
            };
            let failed = matches!(frame, Some(Err(_)));
            reading.update(|read| {
                if let Some(data) = data {
                    read.hasher.update(data);
                    read.copied.add(data);
                    read.length += data.len() as u64;
                }
                read.failed |= failed;
                read.whole = ended && !read.failed;
            });
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keyed = self.reading.is_some();
        f.debug_struct("RequestBody")
            .field("keyed", &keyed)
            .finish_non_exhaustive()
    }
}

/// Reads a body to its end, and says whether it has one.
pub(crate) async fn read<B: Body>(body: B) -> bool {
    let mut body = std::pin::pin!(body);
    loop {
        match std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(_)) => return false,
            None => return true,
        }
    }
}

/// Reads a body, of which nothing is kept, and says whether it is the one of this print. Up to so many bytes are compared as
/// JSON too.
pub(crate) async fn is_of<B: Body<Data = Bytes>>(
    body: B,
    print: BodyPrint,
    json: Option<usize>,
) -> Result<bool, B::Error> {
    let mut body = std::pin::pin!(body);
    // It is large, and the future of every call with a key would be as large.
    let mut hasher = Box::new(hasher());
    let mut copied = Copied::new(json.filter(|_| print.whole));
    let mut left = print.length;
    let mut longer = false;
    while left > 0 || print.whole {
        let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
        let Some(frame) = frame.transpose()? else {
            break;
        };
        if let Some(data) = frame.data_ref() {
            copied.add(data);
            let of_it = usize::try_from(left).unwrap_or(usize::MAX).min(data.len());
            longer |= print.whole && of_it < data.len();
            if longer && copied.bytes.is_none() {
                return Ok(false);
            }
            hasher.update(&data[..of_it]);
            left -= of_it as u64;
        }
    }
    let same_bytes = left == 0 && !longer && *hasher.finalize().as_bytes() == print.hash;
    Ok(same_bytes || copied.hash() == Some(print.hash))
}

/// The body of a response of an [`Idempotency`](crate::Idempotency) service: that of the service below, or what was kept of
/// it. It panics when it is polled after that of the service below has panicked.
#[pin_project]
pub struct ResponseBody<B: Body> {
    #[pin]
    source: Source<B>,
}

#[pin_project(project = SourceProj)]
enum Source<B: Body> {
    /// That of a request without a key, as it is.
    Service(#[pin] B),
    /// All of it is here. Empty once it is sent.
    Whole(Bytes),
    /// It comes from the task that keeps it.
    Kept(mpsc::UnboundedReceiver<Piece<B>>, SizeHint),
    /// It was too large to be kept, and comes by itself from then on.
    Rest(Pin<Box<B>>),
}

/// What the task that keeps a body passes on.
pub(crate) enum Piece<B: Body> {
    Frame(Result<Frame<Bytes>, B::Error>),
    Rest(Pin<Box<B>>),
    /// It has panicked.
    Broken,
}

impl<B: Body> ResponseBody<B> {
    pub(crate) fn of_service(body: B) -> Self {
        let source = Source::Service(body);
        Self { source }
    }

    pub(crate) fn whole(bytes: Bytes) -> Self {
        let source = Source::Whole(bytes);
        Self { source }
    }

    pub(crate) fn kept(pieces: mpsc::UnboundedReceiver<Piece<B>>, hint: SizeHint) -> Self {
        let source = Source::Kept(pieces, hint);
        Self { source }
    }
}

impl<B: Body> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::whole(Bytes::new())
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut source = self.project().source;
        let piece = match source.as_mut().project() {
            SourceProj::Service(body) => return body.poll_frame(cx),
            SourceProj::Rest(body) => return body.as_mut().poll_frame(cx),
            SourceProj::Whole(bytes) if bytes.is_empty() => return Poll::Ready(None),
            SourceProj::Whole(bytes) => {
                let frame = Frame::data(std::mem::take(bytes));
                return Poll::Ready(Some(Ok(frame)));
            }
            SourceProj::Kept(pieces, hint) => {
                let piece = ready!(pieces.poll_recv(cx));
                if let Some(Piece::Frame(Ok(frame))) = &piece
                    && let Some(data) = frame.data_ref()
                    && let Some(left) = hint.exact()
                {
                    *hint = SizeHint::with_exact(left.saturating_sub(data.len() as u64));
                }
                piece
            }
        };
        match piece {
            Some(Piece::Frame(frame)) => Poll::Ready(Some(frame)),
            Some(Piece::Rest(mut body)) => {
                let frame = body.as_mut().poll_frame(cx);
                source.set(Source::Rest(body));
                frame
            }
            // It is not at its end, which is what a client would take silence for. The panic has been reported where it was.
            Some(Piece::Broken) => resume_unwind(Box::new("the body of the response has panicked")),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Service(body) => body.is_end_stream(),
            Source::Whole(bytes) => bytes.is_empty(),
            Source::Kept(..) => false,
            Source::Rest(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Service(body) => body.size_hint(),
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Kept(_, hint) => *hint,
            Source::Rest(body) => body.size_hint(),
        }
    }
}

impl<B: Body> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Source::Service(_) => "Service",
            Source::Whole(_) => "Whole",
            Source::Kept(..) => "Kept",
            Source::Rest(_) => "Rest",
        };
        f.debug_tuple("ResponseBody").field(&source).finish()
    }
}
