//! One request with a key, from its claim to its end. It runs apart from its connection, whose end does not end it.

use std::{any::Any, future::poll_fn, sync::Arc, task::Poll, time::Duration};

use buttress_core::{BoxError, Rejected, clock};
use bytes::{Bytes, BytesMut};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode, header, request};
use http_body::{Body, Frame};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tower_service::Service;

use crate::{
    Event, Refusal, Store, StoreErrorKind,
    body::{self, Piece, Reading, RequestBody, ResponseBody},
    future::{Next, Running},
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

/// Where a response goes to. Nobody may be there any more.
pub(crate) type Reply<RB, E> = oneshot::Sender<Next<RB, E>>;

pub(crate) struct Run<T, S, B> {
    pub(crate) shared: Arc<Shared<T>>,
    pub(crate) service: S,
    /// Was the service polled ready?
    pub(crate) ready: bool,
    /// Until when it waits for another run of the same, if it does.
    pub(crate) until: Option<clock::Instant>,
    pub(crate) parts: request::Parts,
    pub(crate) body: B,
    pub(crate) key: RecordKey,
}

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
    pub(crate) fn spawn(self) -> Running<RB, S::Error> {
        let (reply, said) = oneshot::channel();
        let shared = self.shared.clone();
        let cut = shared.cut.clone();
        let task = shared.tasks.spawn(async move {
            tokio::select! {
                () = self.run(reply) => {}
                () = cut.cancelled() => {}
            }
        });
        Running { said, task }
    }

    /// Waits for another run of the same. That needs no task: if nobody is there any more, nothing has to be done.
    fn wait(self, until: clock::Instant) -> Next<RB, S::Error> {
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
            Next::Runs(self.spawn())
        }))
    }

    async fn run(mut self, reply: Reply<RB, S::Error>) {
        let head = print(&self.parts);
        let shared = self.shared.clone();
        let settings = &shared.settings;
        loop {
            let token = Token::random();
            let claim = Op::Claim(Claim {
                head,
                token,
                lease: settings.lease,
                // An outcome that is unknown is remembered at least as long as somebody may be at it.
                ttl: settings.ttl.max(settings.ceiling),
                armed: !settings.explicit_arm,
                rerun: settings.lapse == Lapse::Rerun,
            });
            let problem = match self.shared.step(&self.key, claim).await {
                Ok(Answer::Won { fence }) => {
                    self.shared.emit(&Event::Run { fence });
                    return self.run_it(head, token, fence, reply).await;
                }
                Ok(Answer::Done(completion)) => {
                    let response = self.replay(completion).await;
                    return drop(reply.send(Next::Answer(Ok(response))));
                }
                Ok(Answer::InFlight { lease_left }) => {
                    if let Some(until) = self.until
                        && clock::now() < until
                    {
                        if self.ready {
                            // Whoever waits does not hold what made the service ready.
                            self.service = self.service.clone();
                            self.ready = false;
                        }
                        return drop(reply.send(self.wait(until)));
                    }
                    self.shared.emit(&Event::InFlight);
                    Problem::InFlight(lease_left)
                }
                Ok(Answer::Mismatch) => {
                    self.shared.emit(&Event::Mismatch);
                    Problem::Refused(Refusal::Mismatch)
                }
                Ok(Answer::Unknown) => {
                    match recover(&self.shared, &self.key, self.parts.clone()).await {
                        Some(Recovered::Done(response)) => {
                            let response = self.settle(response).await;
                            return drop(reply.send(Next::Answer(Ok(response))));
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
                    // It may have been claimed all the same, and nobody would be at it.
                    undo(self.shared.clone(), self.key.clone(), Op::Release { token });
                    if settings.fail_open && error.kind() != StoreErrorKind::ScopeFull {
                        return self.run_unprotected(reply).await;
                    }
                    Problem::Store(error.kind())
                }
            };
            let response = problem.response(settings).map(ResponseBody::whole);
            return drop(reply.send(Next::Answer(Ok(response))));
        }
    }

    /// Settles that it was done, with this answer to it.
    async fn settle(self, response: Response<Bytes>) -> Response<ResponseBody<RB>> {
        let (head, bytes) = response.into_parts();
        let settings = &self.shared.settings;
        let reading = Reading::new(settings.json_limit(&self.parts.headers));
        let body = RequestBody::hashed(self.body, reading.clone());
        let read = body::read(body).await;
        let completion = Completion {
            body: reading.print(),
            response: StoredResponse {
                body: Some(bytes),
                ..settings.keep(head.status, &head.headers)
            },
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
        mut self,
        head: HeadPrint,
        token: Token,
        fence: u64,
        reply: Reply<RB, S::Error>,
    ) {
        let claimed = Claimed::new(self.shared.clone(), self.key.clone(), head, token);
        let heartbeat = claimed.heartbeat();
        let work = async move {
            if !self.ready
                && let Err(error) = poll_fn(|cx| self.service.poll_ready(cx)).await
            {
                let reply = || drop(reply.send(Next::Answer(Err(error))));
                return claimed.release(reply).await;
            }
            let json = self.shared.settings.json_limit(&self.parts.headers);
            let reading = Reading::new(json);
            let body = RequestBody::hashed(self.body, reading.clone());
            let mut request = Request::from_parts(self.parts, body);
            request.extensions_mut().insert(Lease::of(lease::Claim {
                shared: self.shared.clone(),
                key: self.key.clone(),
                token,
                fence,
                reading: reading.clone(),
            }));
            let start = clock::now();
            match self.service.call(request).await {
                Ok(response) if self.shared.settings.is_kept(&response) => {
                    let keep = Keep {
                        shared: self.shared,
                        claimed,
                        reading,
                        start,
                    };
                    keep.keep(response, reply).await;
                }
                Ok(response) => {
                    let response = response.map(ResponseBody::of_service);
                    let reply = || drop(reply.send(Next::Answer(Ok(response))));
                    claimed.release(reply).await;
                }
                Err(error) => {
                    let never_ran = never_ran(&error);
                    let reply = || drop(reply.send(Next::Answer(Err(error))));
                    if never_ran {
                        claimed.release(reply).await;
                    } else {
                        claimed.abandon(reply).await;
                    }
                }
            }
        };
        // The one has no end before the other has.
        tokio::select! {
            () = work => {}
            () = async { heartbeat.await; std::future::pending().await } => {}
        }
    }

    async fn run_unprotected(mut self, reply: Reply<RB, S::Error>) {
        if !self.ready
            && let Err(error) = poll_fn(|cx| self.service.poll_ready(cx)).await
        {
            return drop(reply.send(Next::Answer(Err(error))));
        }
        let request = Request::from_parts(self.parts, RequestBody::plain(self.body));
        let result = self.service.call(request).await;
        let result = result.map(|mut response| {
            response.headers_mut().insert(UNPROTECTED, TRUE);
            response.map(ResponseBody::of_service)
        });
        let _ = reply.send(Next::Answer(result));
    }

    /// The answer to a request that was done, if this is the same one.
    async fn replay(self, completion: Completion) -> Response<ResponseBody<RB>> {
        let json = self.shared.settings.json_limit(&self.parts.headers);
        if !matches!(
            body::is_of(self.body, completion.body, json).await,
            Ok(true)
        ) {
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
    let mut response = Response::new(ResponseBody::whole(body.unwrap_or_default()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(value)) {
            response.headers_mut().append(name, value);
        }
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
    let mut hasher = blake3::Hasher::new_derive_key("buttress idempotency 1 head");
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
    shared: Arc<Shared<T>>,
    claimed: Claimed<T>,
    reading: Reading,
    start: clock::Instant,
}

/// What was read of a body, unless it is too much to be kept.
struct Kept {
    bytes: BytesMut,
    most: usize,
    fits: bool,
}

impl Kept {
    fn add<E>(&mut self, frame: &Result<Frame<Bytes>, E>) {
        match frame.as_ref().map(Frame::data_ref) {
            Ok(Some(data)) if self.bytes.len() + data.len() <= self.most => {
                self.bytes.extend_from_slice(data);
            }
            // Too large; trailers; or the body has failed. It is not run again for that.
            _ => self.fits = false,
        }
    }
}

impl<T: Store> Keep<T> {
    async fn keep<RB, E>(self, response: Response<RB>, reply: Reply<RB, E>)
    where
        RB: Body<Data = Bytes>,
    {
        let (parts, body) = response.into_parts();
        let mut body = Box::pin(body);
        let hint = body.size_hint();
        let mut kept = Kept {
            bytes: BytesMut::new(),
            most: self.shared.settings.max_response,
            fits: true,
        };
        let (frames, receiver) = mpsc::unbounded_channel();
        // What is there at once: most bodies are, whole.
        let mut ended = false;
        while kept.fits && !ended {
            match poll_fn(|cx| Poll::Ready(body.as_mut().poll_frame(cx))).await {
                Poll::Pending => break,
                Poll::Ready(None) => ended = true,
                Poll::Ready(Some(frame)) => {
                    kept.add(&frame);
                    let _ = frames.send(Piece::Frame(frame));
                }
            }
        }
        let print = self.shared.settings.keep(parts.status, &parts.headers);
        if ended && kept.fits {
            let body = kept.bytes.freeze();
            let whole = Response::from_parts(parts, ResponseBody::whole(body.clone()));
            // Whoever has the answer and asks again gets it again.
            let reply = || drop(reply.send(Next::Answer(Ok(whole))));
            return self.complete(print, Some(body), reply).await;
        }
        let streamed = Response::from_parts(parts, ResponseBody::kept(receiver, hint));
        let _ = reply.send(Next::Answer(Ok(streamed)));
        while kept.fits && !ended {
            match poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
                None => ended = true,
                Some(frame) => {
                    kept.add(&frame);
                    ended = frame.is_err();
                    // Nobody may be there any more: then it is kept for when he comes again.
                    let _ = frames.send(Piece::Frame(frame));
                }
            }
        }
        if kept.fits {
            // The end comes when the record is complete.
            let end = || drop(frames);
            self.complete(print, Some(kept.bytes.freeze()), end).await;
        } else {
            if !ended {
                let _ = frames.send(Piece::Rest(body));
            }
            drop(frames);
            self.complete(print, None, || {}).await;
        }
    }

    async fn complete(
        self,
        response: StoredResponse,
        body: Option<Bytes>,
        meanwhile: impl FnOnce(),
    ) {
        let took = clock::now().saturating_duration_since(self.start);
        let completion = Completion {
            body: self.reading.print(),
            response: StoredResponse { body, ..response },
        };
        self.claimed.complete(completion, took, meanwhile).await;
    }
}
