//! One request with a key, from its claim to its end.

use std::{
    any::Any,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::{Arc, LazyLock, OnceLock},
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use buttress_core::{BoxError, Rejected, clock};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header, request};
use http_body::{Body, Frame};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tower_service::Service;

use crate::{
    Event, Refusal, Store, StoreErrorKind,
    body::{self, Piece, Reading, RequestBody, ResponseBody},
    future::Next,
    lease::{self, Lease},
    policy::REPLAYED,
    problem::Problem,
    record::{Answer, Claim, Completion, HeadPrint, Op, RecordKey, StoredResponse, Token},
    recover::Recovered,
    settings::Lapse,
    shared::{Claimed, Shared, TRUE, undo},
};

/// Says that the store could not be asked, and that the handler was run all the same.
const UNPROTECTED: HeaderName = HeaderName::from_static("idempotency-unprotected");

pub(crate) struct Run<T, S, B> {
    pub(crate) shared: Arc<Shared<T>>,
    pub(crate) service: S,
    /// Was the service polled ready?
    pub(crate) ready: bool,
    /// Until when it waits for another run of the same, if it does.
    pub(crate) until: Option<clock::Instant>,
    pub(crate) parts: request::Parts,
    /// Nothing once somebody reads it.
    pub(crate) body: Option<B>,
    pub(crate) key: RecordKey,
}

/// What comes of looking at a request.
enum Step<RB: Body, E> {
    Answer(Result<Response<ResponseBody<RB>>, E>),
    Wait(clock::Instant),
}

// Most of these futures borrow what they need: each that owned it would be as large, and be moved into the next.
impl<T, S, B, RB> Run<T, S, B>
where
    T: Store,
    S: Service<Request<RequestBody<B>>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    RB: Body<Data = Bytes> + Send + 'static,
    RB::Error: Send,
{
    /// Does it, or says what came of it before. If there is no more time, its outcome is unknown.
    pub(crate) fn start(self) -> Next<RB, S::Error> {
        let tasks = self.shared.tasks.clone();
        Next::Runs(Box::pin(tasks.track_future(self.run())))
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "as an async function it would hold itself twice"
    )]
    fn run(mut self) -> impl Future<Output = Next<RB, S::Error>> + Send {
        async move {
            let shared = self.shared.clone();
            let step = {
                let answer = pin!(self.answer());
                shared.in_time(answer).await
            };
            match step {
                Some(Step::Answer(answer)) => Next::Answer(answer),
                Some(Step::Wait(until)) => self.wait(until),
                None => {
                    let cut = Problem::Refused(Refusal::OutcomeUnknown);
                    Next::Answer(Ok(cut.response(&shared.settings).map(ResponseBody::whole)))
                }
            }
        }
    }

    /// Waits for another run of the same. If nobody is there any more, nothing has to be done.
    fn wait(mut self, until: clock::Instant) -> Next<RB, S::Error> {
        // Whoever waits does not hold what made the service ready.
        if mem::take(&mut self.ready) {
            self.service = self.service.clone();
        }
        // Many may wait: what is kept here is as little as can be.
        Next::Waits(Box::pin(async move {
            let left = until.saturating_duration_since(clock::now());
            if let Some(mut flight) = self.shared.flight(&self.key, print(&self.parts)) {
                let _ = timeout(left, flight.changed()).await;
                let completion = flight.borrow().clone();
                if let Some(completion) = completion {
                    return Next::Answer(Ok(Box::pin(self.replay(completion)).await));
                }
            } else {
                // Another process is at it.
                sleep(self.shared.settings.poll_pause().min(left)).await;
            }
            self.start()
        }))
    }

    async fn answer(&mut self) -> Step<RB, S::Error> {
        let head = print(&self.parts);
        let shared = self.shared.clone();
        let settings = &shared.settings;
        loop {
            let token = Token::random();
            let claim = Op::Claim(Claim {
                head,
                token,
                lease: settings.lease,
                ttl: settings.ttl_of_claim(),
                armed: !settings.explicit_arm,
                rerun: settings.lapse == Lapse::Rerun,
            });
            let problem = match self.shared.step(&self.key, claim).await {
                Ok(Answer::Won { fence }) => {
                    self.shared.emit(&Event::Run { fence });
                    return Step::Answer(self.run_it(head, token, fence).await);
                }
                Ok(Answer::Done(completion)) => {
                    return Step::Answer(Ok(self.replay(completion).await));
                }
                Ok(Answer::InFlight { lease_left }) => {
                    if let Some(until) = self.until.filter(|until| clock::now() < *until) {
                        return Step::Wait(until);
                    }
                    self.shared.emit(&Event::InFlight);
                    Problem::InFlight(lease_left)
                }
                Ok(Answer::Mismatch) => {
                    self.shared.emit(&Event::Mismatch);
                    Problem::Refused(Refusal::Mismatch)
                }
                Ok(Answer::Unknown) => {
                    // It is rare, and large.
                    let recover = Box::pin(recover(&self.shared, &self.key, self.parts.clone()));
                    match recover.await {
                        Some(Recovered::Done(response)) => {
                            let response = Box::pin(self.settle(response)).await;
                            return Step::Answer(Ok(response));
                        }
                        // Somebody else may have settled it meanwhile: the next claim shows it.
                        Some(_) => continue,
                        None => {
                            self.shared.emit(&Event::OutcomeUnknown);
                            Problem::Refused(Refusal::OutcomeUnknown)
                        }
                    }
                }
                Ok(Answer::Accepted | Answer::Refused) => Problem::Store(StoreErrorKind::Damaged),
                Err(error) => {
                    // A store that is down may have claimed it all the same, and nobody would be at it.
                    if let StoreErrorKind::Unavailable | StoreErrorKind::TimedOut = error.kind() {
                        undo(self.shared.clone(), self.key.clone(), Op::Release { token });
                    }
                    // A record that is damaged may be one of this request.
                    let is_known = matches!(
                        error.kind(),
                        StoreErrorKind::ScopeFull | StoreErrorKind::Damaged
                    );
                    if settings.fail_open && !is_known {
                        return Step::Answer(self.run_unprotected().await);
                    }
                    Problem::Store(error.kind())
                }
            };
            return Step::Answer(Ok(problem.response(settings).map(ResponseBody::whole)));
        }
    }

    /// The request, for whoever reads it.
    fn take(&mut self) -> (request::Parts, B) {
        let (nothing, ()) = Request::new(()).into_parts();
        let body = self.body.take().expect("it is read once");
        (mem::replace(&mut self.parts, nothing), body)
    }

    /// Settles that it was done, with this answer to it.
    async fn settle(&mut self, response: Response<Bytes>) -> Response<ResponseBody<RB>> {
        let (head, bytes) = response.into_parts();
        let (parts, body) = self.take();
        let settings = &self.shared.settings;
        let reading = Reading::new(settings.json_limit(&parts.headers));
        let body = RequestBody::hashed(body, reading.clone());
        let read = body::read(body).await;
        let completion = Completion {
            body: reading.print(),
            response: settings.keep(head.status, &head.headers, Some(bytes)),
        };
        let settle = Op::Settle {
            completion: Some(completion.clone()),
            ttl: settings.ttl,
        };
        match self.shared.step(&self.key, settle).await {
            Ok(Answer::Accepted) if read => {
                self.shared.emit(&Event::Replayed);
                replay(completion)
            }
            // Somebody else was faster. Or the client went away.
            Ok(_) => Problem::InFlight(Duration::ZERO)
                .response(settings)
                .map(ResponseBody::whole),
            Err(error) => Problem::Store(error.kind())
                .response(settings)
                .map(ResponseBody::whole),
        }
    }

    async fn run_it(
        &mut self,
        head: HeadPrint,
        token: Token,
        fence: u64,
    ) -> Result<Response<ResponseBody<RB>>, S::Error> {
        let (parts, body) = self.take();
        let (shared, key, service) = (&self.shared, &self.key, &mut self.service);
        let claimed = Claimed::new(shared.clone(), key.clone(), head, token);
        let reading = Reading::new(shared.settings.json_limit(&parts.headers));
        let body = RequestBody::hashed(body, reading.clone());
        let mut request = Request::from_parts(parts, body);
        let lease = Lease::of(lease::Claim {
            shared: shared.clone(),
            key: key.clone(),
            token,
            fence,
            reading: reading.clone(),
            said: OnceLock::new(),
        });
        request.extensions_mut().insert(lease.clone());
        let ready = self.ready;
        let work = pin!(async {
            if !ready && let Err(error) = poll_fn(|cx| service.poll_ready(cx)).await {
                claimed.release().await;
                return Err(error);
            }
            let start = clock::now();
            match service.call(request).await {
                Ok(response) if response.status().is_informational() => {
                    // The connection is not one for responses any more: nobody else can be given this one.
                    claimed.abandon().await;
                    Ok(response.map(ResponseBody::of_service))
                }
                Ok(response)
                    if shared.settings.is_kept(&response, lease.has_armed())
                        && !(reading.failed() && response.status().is_client_error()) =>
                {
                    let keep = Keep {
                        claimed,
                        reading,
                        start,
                    };
                    Ok(keep.keep(response).await)
                }
                Ok(response) => {
                    claimed.release().await;
                    Ok(response.map(ResponseBody::of_service))
                }
                Err(error) => {
                    if never_ran(&error) && !lease.has_armed() {
                        claimed.release().await;
                    } else {
                        claimed.abandon().await;
                    }
                    Err(error)
                }
            }
        });
        // It is made when it is first polled: a run that ends at once needs none.
        let heartbeat = async { Box::pin(shared.heartbeat(key, token)).await };
        beside(work, heartbeat).await
    }

    async fn run_unprotected(&mut self) -> Result<Response<ResponseBody<RB>>, S::Error> {
        if !self.ready {
            poll_fn(|cx| self.service.poll_ready(cx)).await?;
        }
        let (parts, body) = self.take();
        let request = Request::from_parts(parts, RequestBody::plain(body));
        let mut response = self.service.call(request).await?;
        response.headers_mut().insert(UNPROTECTED, TRUE);
        Ok(response.map(ResponseBody::of_service))
    }

    /// The answer to a request that was done, if this is the same one.
    async fn replay(&mut self, completion: Completion) -> Response<ResponseBody<RB>> {
        let (parts, body) = self.take();
        let json = self.shared.settings.json_limit(&parts.headers);
        if !matches!(body::is_of(body, completion.body, json).await, Ok(true)) {
            self.shared.emit(&Event::Mismatch);
            let response = Problem::Refused(Refusal::Mismatch).response(&self.shared.settings);
            return response.map(ResponseBody::whole);
        }
        self.shared.emit(&Event::Replayed);
        replay(completion)
    }
}

/// The answer to an earlier request, once more.
fn replay<RB: Body>(completion: Completion) -> Response<ResponseBody<RB>> {
    let StoredResponse {
        status,
        headers,
        body,
    } = completion.response;
    let omitted = body.is_none();
    let mut response = Response::new(ResponseBody::whole(body.unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) {
            response.headers_mut().append(name, value);
        }
    }
    if omitted {
        // Nothing is no end of a compressed body, and a client would take it for one that was cut.
        response.headers_mut().remove(header::CONTENT_ENCODING);
    }
    response.headers_mut().insert(REPLAYED, TRUE);
    response
}

/// Asks the world outside what came of an earlier run, if there is somebody to ask, and settles that nothing was done.
async fn recover<T: Store>(
    shared: &Shared<T>,
    key: &RecordKey,
    parts: request::Parts,
) -> Option<Recovered> {
    let settings = &shared.settings;
    let recovered = settings.recover.as_ref()?.ask(parts).await;
    match recovered {
        Recovered::Unknown => return None,
        Recovered::Done(_) => {}
        Recovered::NotDone => {
            let settle = Op::Settle {
                completion: None,
                ttl: settings.ttl,
            };
            shared.step(key, settle).await.ok()?;
        }
    }
    Some(recovered)
}

/// What a request is, without its body.
fn print(parts: &request::Parts) -> HeadPrint {
    static CONTEXT: LazyLock<ContextKey> =
        LazyLock::new(|| hash_derive_key_context("buttress idempotency 1 head"));
    let mut hasher = blake3::Hasher::new_from_context_key(&CONTEXT);
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    let content_type = content_type.map_or(&b""[..], HeaderValue::as_bytes);
    for part in [
        parts.method.as_str().as_bytes(),
        parts.uri.path().as_bytes(),
        parts.uri.query().unwrap_or_default().as_bytes(),
        content_type,
    ] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    HeadPrint(hasher.finalize().into())
}

/// Did a layer below refuse, so that the handler never ran? An error is seen that is a refusal or a box.
fn never_ran<E: 'static>(error: &E) -> bool {
    let error: &dyn Any = error;
    match error.downcast_ref::<BoxError>() {
        Some(boxed) => Rejected::find(&**boxed).is_some(),
        None => error.is::<Rejected>(),
    }
}

/// Keeps a response while it is sent.
struct Keep<T: Store> {
    claimed: Claimed<T>,
    reading: Reading,
    start: clock::Instant,
}

/// What was read of a body, unless it is too much to be kept.
struct Kept {
    /// The first part, as long as there is no other: it needs no copy then.
    first: Option<Bytes>,
    bytes: BytesMut,
    most: usize,
    fits: bool,
}

impl Kept {
    fn new(most: usize) -> Self {
        Self {
            first: None,
            bytes: BytesMut::new(),
            most,
            fits: true,
        }
    }

    fn add<E>(&mut self, frame: &Result<Frame<Bytes>, E>) {
        let length = self.bytes.len() + self.first.as_ref().map_or(0, Bytes::len);
        match frame.as_ref().map(Frame::data_ref) {
            Ok(Some(data)) if length + data.len() > self.most => self.fits = false,
            Ok(Some(data)) if length == 0 => self.first = Some(data.clone()),
            Ok(Some(data)) => {
                self.bytes.extend(self.first.take());
                self.bytes.extend_from_slice(data);
            }
            // Trailers; or the body has failed. It is not run again for that.
            _ => self.fits = false,
        }
    }

    fn whole(self) -> Bytes {
        self.first.unwrap_or_else(|| self.bytes.freeze())
    }
}

/// A body on its way to the client, which goes on by itself when it is cut off.
struct Sent<RB: Body> {
    /// Nothing at its end.
    body: Option<Pin<Box<RB>>>,
    pieces: mpsc::UnboundedSender<Piece<RB>>,
}

impl<RB: Body<Data = Bytes>> Sent<RB> {
    /// Passes the next frame on and keeps it, and says whether there will be no more.
    fn poll_next(&mut self, cx: &mut Context<'_>, kept: &mut Kept) -> Poll<bool> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(true);
        };
        let frame = ready!(body.as_mut().poll_frame(cx));
        let ended = !matches!(frame, Some(Ok(_)));
        if ended {
            self.body = None;
        }
        if let Some(frame) = frame {
            kept.add(&frame);
            // Nobody may be there any more: then it is kept for when he comes again.
            let _ = self.pieces.send(Piece::Frame(frame));
        }
        Poll::Ready(ended)
    }
}

impl<RB: Body> Drop for Sent<RB> {
    fn drop(&mut self) {
        if let Some(body) = self.body.take() {
            // Nobody may be there any more.
            let _ = self.pieces.send(if thread::panicking() {
                Piece::Broken
            } else {
                Piece::Rest(body)
            });
        }
    }
}

impl<T: Store> Keep<T> {
    /// The response, and what is kept of it: at once if its body is there, and otherwise while it is sent.
    async fn keep<RB>(self, response: Response<RB>) -> Response<ResponseBody<RB>>
    where
        RB: Body<Data = Bytes> + Send + 'static,
        RB::Error: Send,
    {
        let (parts, body) = response.into_parts();
        let mut body = Box::pin(body);
        let hint = body.size_hint();
        let settings = &self.claimed.shared.settings;
        let mut kept = Kept::new(settings.max_response);
        // Its body is not known yet.
        let head = settings.keep(parts.status, &parts.headers, None);
        let (mut first, mut ended) = (Vec::new(), false);
        // What is there at once: most bodies are, whole.
        while kept.fits && !ended {
            match poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await {
                Poll::Pending => break,
                Poll::Ready(None) => ended = true,
                Poll::Ready(Some(frame)) => {
                    kept.add(&frame);
                    first.push(frame);
                    ended = body.is_end_stream();
                }
            }
        }
        if ended && kept.fits {
            let body = kept.whole();
            // Whoever has the answer and asks again gets it again.
            self.complete(head, Some(body.clone())).await;
            return Response::from_parts(parts, ResponseBody::whole(body));
        }
        let (pieces, receiver) = mpsc::unbounded_channel();
        for frame in first {
            let _ = pieces.send(Piece::Frame(frame));
        }
        let body = (!ended).then_some(body);
        let sent = Sent { body, pieces };
        let Claimed {
            shared, key, token, ..
        } = &self.claimed;
        let (shared, key, token) = (shared.clone(), key.clone(), *token);
        // Whoever reads it slowly, or not at all, does not hold it up.
        shared.clone().tasks.spawn(async move {
            let rest = pin!(self.keep_rest(sent, kept, head));
            let heartbeat = pin!(shared.heartbeat(&key, token));
            shared.in_time(pin!(beside(rest, heartbeat))).await;
        });
        Response::from_parts(parts, ResponseBody::kept(receiver, hint))
    }

    async fn keep_rest<RB>(self, mut sent: Sent<RB>, mut kept: Kept, head: StoredResponse)
    where
        RB: Body<Data = Bytes>,
    {
        let rest =
            async { while kept.fits && !poll_fn(|cx| sent.poll_next(cx, &mut kept)).await {} };
        // One that never ends is not kept: its key would be in use for ever.
        let took = clock::now().saturating_duration_since(self.start);
        let left = self.claimed.shared.settings.ceiling.saturating_sub(took);
        let in_time = timeout(left, rest).await.is_ok();
        if kept.fits && in_time {
            self.complete(head, Some(kept.whole())).await;
            // The end comes when the record is complete.
            drop(sent);
        } else {
            drop(sent);
            self.complete(head, None).await;
        }
    }

    fn complete(
        self,
        head: StoredResponse,
        body: Option<Bytes>,
    ) -> impl Future<Output = ()> + Send {
        let took = clock::now().saturating_duration_since(self.start);
        let completion = Completion {
            body: self.reading.print(),
            response: StoredResponse { body, ..head },
        };
        self.claimed.complete(completion, took)
    }
}

/// Does one thing, and another beside it, which has no end before the first has.
async fn beside<O>(work: impl Future<Output = O>, other: impl Future<Output = ()>) -> O {
    tokio::select! {
        // Most work is done at once, and the other needs no timer then.
        biased;
        done = work => done,
        never = async { other.await; std::future::pending().await } => never,
    }
}
