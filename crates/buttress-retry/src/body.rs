//! Request bodies that can be sent again.

use std::{
    collections::VecDeque,
    error::Error,
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use buttress_core::{
    BoxError,
    sync::{AtomicUsize, Mutex, Ordering, lock, wake},
};
use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// The bytes that a layer may hold for all its calls together.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: usize,
    used: AtomicUsize,
}

/// A part of that memory; dropped, it is given back.
#[derive(Debug)]
pub(crate) struct Held {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Memory {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

impl Held {
    pub(crate) fn none(memory: &Arc<Memory>) -> Self {
        Self {
            memory: memory.clone(),
            bytes: 0,
        }
    }

    /// Takes more, if there is more.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let fits = |used: usize| {
            used.checked_add(bytes)
                .filter(|&sum| sum <= self.memory.limit)
        };
        // Relaxed: only the number counts, no other data is read on the strength of it. It pairs with the
        // subtraction in `give_back`.
        let grown = self
            .memory
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_ok();
        self.bytes += if grown { bytes } else { 0 };
        grown
    }

    /// Takes more, whether or not there is more.
    fn take(&mut self, bytes: usize) {
        // Relaxed: see `grow`.
        self.memory.used.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }

    fn give_back(&mut self, bytes: usize) {
        // Relaxed: it pairs with the additions in `grow` and `take`, see `grow`.
        self.memory.used.fetch_sub(bytes, Ordering::Relaxed);
        self.bytes -= bytes;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// The body of a request as the service below gets it: the caller's, of which a copy is kept while it is sent.
///
/// Nothing is read ahead, so a first attempt is neither delayed nor changed. A copy is of the chunks as they pass, which
/// share their bytes where they are [`Bytes`].
#[derive(Debug)]
pub struct ReplayBody<B>(Kind<B>);

#[derive(Debug)]
enum Kind<B> {
    Empty,
    /// Nobody keeps a copy.
    Passing(B),
    Replayed(Reader<B>),
}

/// The body of one attempt.
#[derive(Debug)]
struct Reader<B> {
    source: Arc<Mutex<Source<B>>>,
    attempt: u32,
}

/// The caller's body, and what has been read of it.
///
/// Invariants: only the reader of the latest attempt gets anything. While `keep` holds, `chunks` and `trailers` are all
/// that has come out of `body`; after that, they are what the reader has not read of it.
#[derive(Debug)]
struct Source<B> {
    body: Origin<B>,
    chunks: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    /// The bytes in the chunks, which may be as many as `limit`.
    size: usize,
    limit: usize,
    held: Held,
    keep: bool,
    /// The attempt that may read, and whether its reader is alive.
    attempt: u32,
    reading: bool,
    /// How many of the chunks it has read, and whether the trailers.
    read: usize,
    trailers_read: bool,
    /// The reader that waits: for the body, or to be told that it may not read any more.
    waiting: Option<Waker>,
}

/// The caller's body.
#[derive(Debug)]
enum Origin<B> {
    Here(B),
    /// A reader polls it. It does so without the lock, for the body may do as it likes.
    Away,
    Ended,
    /// It failed or panicked: nobody knows what else it would have given.
    Failed,
}

/// What a chunk takes beside its bytes.
const CHUNK: usize = size_of::<Bytes>();

/// What a body is replayed from. When it is dropped, no more copies are kept.
#[derive(Debug)]
pub(crate) struct Copy<B>(Option<Arc<Mutex<Source<B>>>>);

impl<B> ReplayBody<B>
where
    B: Body,
{
    /// Sends a body without a copy.
    pub(crate) fn passing(body: B) -> Self {
        Self(Kind::Passing(body))
    }

    /// Sends a body and keeps a copy of what is sent, of at most `limit` bytes.
    pub(crate) fn copied(body: B, limit: usize, memory: &Arc<Memory>) -> (Self, Copy<B>) {
        if body.is_end_stream() {
            return (Self(Kind::Empty), Copy(None));
        }
        let source = Arc::new(Mutex::new(Source {
            body: Origin::Here(body),
            chunks: VecDeque::new(),
            trailers: None,
            size: 0,
            limit,
            held: Held::none(memory),
            keep: true,
            attempt: 0,
            reading: true,
            read: 0,
            trailers_read: false,
            waiting: None,
        }));
        let reader = Reader {
            source: source.clone(),
            attempt: 0,
        };
        (Self(Kind::Replayed(reader)), Copy(Some(source)))
    }
}

impl<B> Copy<B> {
    /// Is all there that has been read?
    pub(crate) fn is_whole(&self) -> bool {
        self.0.as_ref().is_none_or(|source| lock(source).keep)
    }

    /// Takes the body away from the attempt that has it, unless it is not whole: then that one may go on.
    pub(crate) fn reclaim(&self) -> bool {
        let Some(source) = &self.0 else { return true };
        let waiting = {
            let mut source = lock(source);
            if !source.keep {
                return false;
            }
            source.attempt += 1;
            source.reading = false;
            source.waiting.take()
        };
        // The earlier attempt may still be at its upload, and must learn that it is over.
        waiting.into_iter().for_each(wake);
        true
    }

    /// The body for another attempt, after [`reclaim`](Self::reclaim).
    pub(crate) fn replay(&self) -> ReplayBody<B> {
        ReplayBody(match &self.0 {
            None => Kind::Empty,
            Some(source) => {
                let mut locked = lock(source);
                (locked.read, locked.trailers_read) = (0, false);
                locked.reading = true;
                Kind::Replayed(Reader {
                    source: source.clone(),
                    attempt: locked.attempt,
                })
            }
        })
    }
}

impl<B> Drop for Copy<B> {
    fn drop(&mut self) {
        if let Some(source) = &self.0 {
            lock(source).stop_keeping();
        }
    }
}

impl<B> Source<B> {
    /// From now on what has been read is forgotten.
    fn stop_keeping(&mut self) {
        if self.keep {
            self.keep = false;
            let read = if self.reading {
                self.read
            } else {
                self.chunks.len()
            };
            for chunk in self.chunks.drain(..read) {
                self.held.give_back(chunk.len() + CHUNK);
            }
            self.read = 0;
        }
    }

    /// The next frame of what was read from the body before.
    fn next_kept(&mut self) -> Option<Frame<Bytes>> {
        let chunk = if self.keep {
            let chunk = self.chunks.get(self.read).cloned();
            chunk.inspect(|_| self.read += 1)
        } else {
            let chunk = self.chunks.pop_front();
            chunk.inspect(|chunk| self.held.give_back(chunk.len() + CHUNK))
        };
        if let Some(chunk) = chunk {
            return Some(Frame::data(chunk));
        }
        let unread = self.trailers.as_ref().filter(|_| !self.trailers_read);
        let trailers = unread.cloned()?;
        self.trailers_read = true;
        Some(Frame::trailers(trailers))
    }

    /// Keeps a frame that was read, if there is room for it. What a reader has read that is no more the latest is kept in
    /// any case, for the latest has yet to read it.
    fn keep(&mut self, frame: &Frame<Bytes>, by_latest: bool) {
        if by_latest && !self.keep {
            return;
        }
        if let Some(chunk) = frame.data_ref().filter(|chunk| !chunk.is_empty()) {
            let cost = chunk.len() + CHUNK;
            self.size = self.size.saturating_add(chunk.len());
            if !(self.keep && self.size <= self.limit && self.held.grow(cost)) {
                self.stop_keeping();
                if by_latest {
                    return;
                }
                self.held.take(cost);
            }
            self.chunks.push_back(chunk.clone());
            self.read += usize::from(by_latest);
        } else if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
            self.trailers_read = by_latest;
        }
    }
}

fn in_bytes<D: Buf>(frame: Frame<D>) -> Frame<Bytes> {
    frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))
}

/// The caller's body is polled as long as this lives. If that panics the body has failed.
struct Polling<'a, B>(&'a Mutex<Source<B>>);

impl<B> Drop for Polling<'_, B> {
    fn drop(&mut self) {
        let mut source = lock(self.0);
        source.body = Origin::Failed;
        source.stop_keeping();
        let waiting = source.waiting.take();
        drop(source);
        waiting.into_iter().for_each(wake);
    }
}

impl<B> Reader<B>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut source = lock(&self.source);
        if source.attempt != self.attempt {
            return Poll::Ready(Some(Err(Lost::ToAnother.into())));
        }
        if let Some(frame) = source.next_kept() {
            return Poll::Ready(Some(Ok(frame)));
        }
        let mut body = match mem::replace(&mut source.body, Origin::Away) {
            Origin::Here(body) => body,
            Origin::Away => {
                source.waiting = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Origin::Ended => {
                source.body = Origin::Ended;
                return Poll::Ready(None);
            }
            Origin::Failed => {
                source.body = Origin::Failed;
                return Poll::Ready(Some(Err(Lost::Failed.into())));
            }
        };
        source.waiting = Some(cx.waker().clone());
        drop(source);

        let polling = Polling(&self.source);
        let polled = Pin::new(&mut body).poll_frame(cx);
        let polled = polled.map(|frame| frame.map(|frame| frame.map(in_bytes).map_err(Into::into)));
        mem::forget(polling);

        let mut source = lock(&self.source);
        let latest = source.attempt == self.attempt;
        source.body = match &polled {
            Poll::Pending | Poll::Ready(Some(Ok(_))) => Origin::Here(body),
            Poll::Ready(None) => Origin::Ended,
            // What the caller could not send once cannot be sent twice.
            Poll::Ready(Some(Err(_))) => {
                source.stop_keeping();
                Origin::Failed
            }
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            source.keep(frame, latest);
        }
        if latest {
            return polled;
        }
        // It was taken over meanwhile, and the later reader may wait for the body to come back.
        let waiting = source.waiting.take();
        drop(source);
        waiting.into_iter().for_each(wake);
        Poll::Ready(Some(Err(Lost::ToAnother.into())))
    }

    fn is_end_stream(&self) -> bool {
        let source = lock(&self.source);
        source.attempt == self.attempt
            && source.chunks.len() == source.read
            && (source.trailers_read || source.trailers.is_none())
            && match &source.body {
                Origin::Here(body) => body.is_end_stream(),
                Origin::Ended => true,
                Origin::Away | Origin::Failed => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let source = lock(&self.source);
        let unread = source.chunks.range(source.read..);
        let unread = unread.map(|chunk| chunk.len() as u64).sum::<u64>();
        let rest = match &source.body {
            Origin::Here(body) => body.size_hint(),
            Origin::Ended => SizeHint::with_exact(0),
            Origin::Away | Origin::Failed => SizeHint::default(),
        };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(unread));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(unread)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl<B> Drop for Reader<B> {
    fn drop(&mut self) {
        let mut source = lock(&self.source);
        if source.attempt == self.attempt {
            source.reading = false;
            if !source.keep {
                // Nobody will read what is left.
                source.chunks.clear();
                let bytes = source.held.bytes;
                source.held.give_back(bytes);
            }
        }
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body<Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Empty => Poll::Ready(None),
            Kind::Passing(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                Poll::Ready(frame.map(|frame| frame.map(in_bytes).map_err(Into::into)))
            }
            Kind::Replayed(reader) => reader.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Empty => true,
            Kind::Passing(body) => body.is_end_stream(),
            Kind::Replayed(reader) => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Empty => SizeHint::with_exact(0),
            Kind::Passing(body) => body.size_hint(),
            Kind::Replayed(reader) => reader.size_hint(),
        }
    }
}

/// The error of a request body that there is no more of.
#[derive(Debug)]
enum Lost {
    ToAnother,
    Failed,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ToAnother => "a later attempt has taken over the request body",
            Self::Failed => "the request body has failed before",
        })
    }
}

impl Error for Lost {}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        panic::{AssertUnwindSafe, catch_unwind},
        task::Wake,
    };

    use futures_util::FutureExt;
    use http_body_util::{BodyExt, Full, StreamBody};
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    type Frames = Vec<Result<Frame<Bytes>, BoxError>>;

    /// A body that gives these frames, and says nothing of its size.
    fn stream(frames: Frames) -> impl Body<Data = Bytes, Error = BoxError> + Unpin {
        StreamBody::new(futures_util::stream::iter(frames))
    }

    #[expect(clippy::unnecessary_wraps, reason = "it stands among frames that fail")]
    fn data(bytes: &str) -> Result<Frame<Bytes>, BoxError> {
        Ok(Frame::data(Bytes::copy_from_slice(bytes.as_bytes())))
    }

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("x-checksum"),
            "17".parse().unwrap(),
        )])
    }

    /// Takes the next frame of a body that has one.
    fn next<B: Body<Data = Bytes, Error = BoxError> + Unpin>(
        body: &mut B,
    ) -> Option<Result<Frame<Bytes>, BoxError>> {
        body.frame().now_or_never().expect("there is a frame")
    }

    fn read(
        body: ReplayBody<impl Body<Data = Bytes, Error = BoxError> + Unpin>,
    ) -> (Bytes, Option<HeaderMap>) {
        let collected = body
            .collect()
            .now_or_never()
            .expect("it is all there")
            .unwrap();
        let trailers = collected.trailers().cloned();
        (collected.to_bytes(), trailers)
    }

    // promise: RT-24
    #[test]
    fn exactly_the_cap_can_be_replayed_and_one_byte_more_not() {
        for (frames, complete) in [(vec!["1234", "5678"], true), (vec!["1234", "56789"], false)] {
            let memory = Memory::new(1_000);
            let size = frames.iter().map(|frame| frame.len()).sum::<usize>();
            let (mut body, copy) =
                ReplayBody::copied(stream(frames.into_iter().map(data).collect()), 8, &memory);
            next(&mut body);
            assert_eq!(memory.used(), 4 + CHUNK, "the chunks are kept as they pass");
            next(&mut body);
            assert_eq!(
                memory.used(),
                if complete { size + 2 * CHUNK } else { 0 },
                "too many are freed at once"
            );
            assert!(next(&mut body).is_none(), "the attempt in flight completes");
            assert_eq!(copy.reclaim(), complete);
            if complete {
                assert_eq!(read(copy.replay()).0, "12345678");
            }
            drop((body, copy));
            assert_eq!(memory.used(), 0);
        }
    }

    // promise: RT-25
    #[test]
    fn a_replay_is_the_same_with_its_trailers_and_its_size_hint() {
        let memory = Memory::new(1_000);
        let frames = vec![
            data("one"),
            data(""),
            data("two"),
            Ok(Frame::trailers(trailers())),
        ];
        let (body, copy) = ReplayBody::copied(stream(frames), 100, &memory);
        let mut bodies = vec![body];
        for _ in 0..4 {
            let body = bodies.pop().unwrap();
            assert_eq!(read(body), (Bytes::from("onetwo"), Some(trailers())));
            assert!(copy.reclaim());
            bodies.push(copy.replay());
            assert!(!bodies[0].is_end_stream());
            assert_eq!(
                bodies[0].size_hint().exact(),
                Some(6),
                "now all of it is known"
            );
        }

        let (body, copy) = ReplayBody::copied(Full::new(Bytes::from("whole")), 100, &memory);
        assert_eq!(body.size_hint().exact(), Some(5));
        drop(body);
        assert!(copy.reclaim());
        assert_eq!(copy.replay().size_hint().exact(), Some(5));
    }

    // promise: RT-25
    #[test]
    fn an_empty_body_is_empty_again() {
        let (body, copy) = ReplayBody::copied(Full::new(Bytes::new()), 0, &Memory::new(0));
        assert!(body.is_end_stream() && body.size_hint().exact() == Some(0));
        assert!(copy.reclaim());
        assert!(copy.replay().is_end_stream());
    }

    proptest! {
        // promise: RT-25
        #[test]
        fn a_replay_after_any_number_of_frames_is_byte_identical(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..10),
            with_trailers in any::<bool>(),
            stops in prop::collection::vec(0..12_usize, 0..5),
        ) {
            let memory = Memory::new(1_000);
            let mut frames: Frames = chunks.iter().map(|chunk| Ok(Frame::data(chunk.clone().into()))).collect();
            if with_trailers {
                frames.push(Ok(Frame::trailers(trailers())));
            }
            let (mut body, copy) = ReplayBody::copied(stream(frames), 1_000, &memory);
            // Each attempt fails after some frames.
            for stop in stops {
                for _ in 0..stop {
                    next(&mut body);
                }
                prop_assert!(copy.reclaim());
                body = copy.replay();
            }
            // What the caller gets may depend on whether another attempt is still possible, what the server gets may not.
            if chunks.len() % 2 == 0 {
                let first = next(&mut body).and_then(|frame| frame.unwrap().into_data().ok());
                drop(copy);
                let rest = read(body).0;
                prop_assert_eq!([first.unwrap_or_default(), rest].concat(), chunks.concat());
            } else {
                let expected = (Bytes::from(chunks.concat()), with_trailers.then(trailers));
                prop_assert_eq!(read(body), expected);
                drop(copy);
            }
            prop_assert_eq!(memory.used(), 0);
        }
    }

    // promise: RT-25
    #[test]
    fn a_body_that_failed_cannot_be_replayed() {
        let memory = Memory::new(1_000);
        let failing = stream(vec![data("one"), Err("the file is gone".into())]);
        let (mut body, copy) = ReplayBody::copied(failing, 100, &memory);
        next(&mut body);
        assert!(next(&mut body).unwrap().is_err());
        assert!(!copy.reclaim());
        assert_eq!(memory.used(), 0);
    }

    // promise: RT-26
    #[test]
    fn when_the_memory_is_used_up_a_body_passes_without_a_copy() {
        let memory = Memory::new(10 + 2 * CHUNK);
        let (mut first, first_copy) =
            ReplayBody::copied(stream(vec![data("12345678")]), 100, &memory);
        next(&mut first);
        let (second, second_copy) =
            ReplayBody::copied(stream(vec![data("123"), data("456")]), 100, &memory);
        assert_eq!(read(second).0, "123456", "it is never held up");
        assert!(first_copy.reclaim() && !second_copy.reclaim());
        assert_eq!(memory.used(), 8 + CHUNK);
        drop(first_copy);
        assert_eq!(
            memory.used(),
            0,
            "what was sent of it needs no copy any more"
        );
    }

    // promise: RT-26
    #[tokio::test]
    async fn an_upload_that_a_retry_takes_over_ends_and_has_no_second_reader() {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Frame<Bytes>>();
        let stream = futures_util::stream::poll_fn(move |cx| {
            receiver.poll_recv(cx).map(|frame| frame.map(Ok))
        });
        let body: StreamBody<_> = StreamBody::new(stream);
        let body =
            body.map_err(|never: std::convert::Infallible| BoxError::from(never.to_string()));
        let (mut first, copy) = ReplayBody::copied(body, 100, &Memory::new(100));
        sender.send(Frame::data("one".into())).unwrap();
        assert_eq!(
            first.frame().await.unwrap().unwrap().into_data().unwrap(),
            "one"
        );

        // The first attempt waits for more when the answer is there already.
        let uploading = tokio::spawn(async move { first.frame().await });
        tokio::task::yield_now().await;
        assert!(copy.reclaim());
        let mut second = copy.replay();
        let ended = uploading.await.unwrap().unwrap();
        assert_eq!(
            ended.unwrap_err().to_string(),
            "a later attempt has taken over the request body"
        );

        sender.send(Frame::data("two".into())).unwrap();
        drop(sender);
        let mut bytes = vec![];
        while let Some(frame) = poll_fn(|cx| Pin::new(&mut second).poll_frame(cx)).await {
            bytes.extend(frame.unwrap().into_data().unwrap());
        }
        assert_eq!(bytes, b"onetwo");
    }

    // promise: RT-24
    #[test]
    fn a_copy_that_nobody_needs_frees_what_was_sent_and_nothing_more() {
        let memory = Memory::new(1_000);
        let (mut body, copy) = ReplayBody::copied(
            stream(vec![data("one"), data("two"), data("three")]),
            100,
            &memory,
        );
        next(&mut body);
        next(&mut body);
        assert!(copy.reclaim());
        let mut body = copy.replay();
        next(&mut body);
        // The response is there, and the upload goes on.
        drop(copy);
        assert_eq!(
            memory.used(),
            3 + CHUNK,
            "of what was kept, the second chunk has not been sent again"
        );
        assert_eq!(body.size_hint().lower(), 3);
        assert_eq!(read(body).0, "twothree");
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn a_waiting_reader_costs_no_poll() {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Frame<Bytes>>();
        let stream = futures_util::stream::poll_fn(move |cx| {
            receiver.poll_recv(cx).map(|frame| frame.map(Ok))
        });
        let body =
            StreamBody::new(stream).map_err(|never: std::convert::Infallible| match never {});
        let body = body.map_err(|error: BoxError| error);
        let (body, _copy) = ReplayBody::copied(body, 100, &Memory::new(100));
        let mut reader = tokio_test::task::spawn(body);
        assert!(matches!(
            reader.enter(|cx, body| body.poll_frame(cx)),
            Poll::Pending
        ));
        assert!(!reader.is_woken());
        sender.send(Frame::data("one".into())).unwrap();
        assert!(reader.is_woken());
    }

    /// Gives a frame, panics, and then claims to have ended.
    struct PanicsOnce(u8);

    impl Body for PanicsOnce {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0 += 1;
            match self.0 {
                1 => Poll::Ready(Some(data("half"))),
                2 => panic!("this body panics"),
                _ => Poll::Ready(None),
            }
        }
    }

    // promise: RT-25
    #[test]
    fn a_body_that_panicked_is_not_replayed_and_does_not_end() {
        let memory = Memory::new(1_000);
        let (mut body, copy) = ReplayBody::copied(PanicsOnce(0), 100, &memory);
        next(&mut body);
        let panicked = catch_unwind(AssertUnwindSafe(|| next(&mut body)));
        assert!(panicked.is_err());
        assert!(!copy.is_whole() && !copy.reclaim());
        assert!(!body.is_end_stream());
        let error = next(&mut body).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the request body has failed before");
        assert_eq!(memory.used(), 0);
    }

    // promise: RT-26
    #[test]
    fn a_waker_that_panics_takes_nobody_down() {
        struct Panics;

        impl Wake for Panics {
            fn wake(self: Arc<Self>) {
                panic!("this waker panics");
            }
        }

        let waker = Waker::from(Arc::new(Panics));
        let mut cx = Context::from_waker(&waker);
        let endless = StreamBody::new(futures_util::stream::pending::<
            Result<Frame<Bytes>, BoxError>,
        >());
        let (mut first, copy) = ReplayBody::copied(endless, 100, &Memory::new(1_000));
        assert!(Pin::new(&mut first).poll_frame(&mut cx).is_pending());
        assert!(copy.reclaim(), "the call goes on");

        // A second panic while the first unwinds would end the process.
        let (mut body, _copy) = ReplayBody::copied(PanicsOnce(1), 100, &Memory::new(1_000));
        let poll = AssertUnwindSafe(|| Pin::new(&mut body).poll_frame(&mut cx).is_ready());
        assert!(catch_unwind(poll).is_err());
    }

    /// Drops what it was given when it is polled.
    struct Drops(Option<Copy<Drops>>);

    impl Body for Drops {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0 = None;
            Poll::Ready(Some(data("one")))
        }
    }

    // promise: RT-26
    #[test]
    fn a_body_may_do_as_it_likes_with_its_call() {
        let (mut body, copy) = ReplayBody::copied(Drops(None), 100, &Memory::new(1_000));
        let Kind::Replayed(reader) = &body.0 else {
            panic!("it has a reader")
        };
        lock(&reader.source).body = Origin::Here(Drops(Some(copy)));
        // With the lock held over the poll this would wait for ever.
        assert!(next(&mut body).unwrap().is_ok());
    }

    // promise: RT-26
    #[test]
    fn a_reader_that_outlives_its_call_holds_no_memory() {
        let memory = Memory::new(1_000);
        let (mut first, copy) =
            ReplayBody::copied(stream(vec![data("one"), data("two")]), 100, &memory);
        (0..3).for_each(|_| drop(next(&mut first)));
        assert_eq!(memory.used(), 6 + 2 * CHUNK);
        assert!(copy.reclaim());
        let second = copy.replay();
        drop(copy);
        assert_eq!(
            memory.used(),
            6 + 2 * CHUNK,
            "the second attempt has not read them"
        );
        drop(second);
        assert_eq!(memory.used(), 0, "nobody will");
        assert!(next(&mut first).unwrap().is_err());

        let (mut first, copy) =
            ReplayBody::copied(stream(vec![data("one"), data("two")]), 100, &memory);
        next(&mut first);
        assert!(copy.reclaim());
        drop(copy);
        assert_eq!(memory.used(), 0, "there was no second attempt");
    }

    // promise: RT-26
    #[test]
    fn a_chunk_costs_what_it_takes_and_an_empty_one_nothing() {
        let memory = Memory::new(1_000);
        let frames = (0..100)
            .map(|n| data(if n % 2 == 0 { "" } else { "x" }))
            .collect();
        let (body, copy) = ReplayBody::copied(stream(frames), 100, &memory);
        assert_eq!(read(body).0.len(), 50);
        assert!(!copy.is_whole(), "50 chunks take more than 1,000 bytes");
        assert_eq!(memory.used(), 0);
    }
}
