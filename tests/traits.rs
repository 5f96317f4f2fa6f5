//! What the types are by themselves: where they may be sent to, whether they may be moved, and how large they are.

use std::{
    future::{self, Future},
    marker::{PhantomData, PhantomPinned},
    mem::size_of,
    pin::Pin,
    task::{Context, Poll},
};

use buttress::{
    BoxError, Deadline, LimitReport, Rejected, ServiceLimit, Verdict, answer, breaker, clock,
    idempotency::{self, Global, IdempotencyKey, IdempotencyKeyLayer, MemoryStore},
    rate_limit::{self, HttpDeadline, OneToken},
    retry::{self, ReplayBody},
    sqlite::SqliteStore,
    telemetry::{AttemptSpan, AttemptSpanLayer},
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::Service;

type Body = Full<Bytes>;
type Answer = Result<Response<Body>, BoxError>;

/// A service that is always ready, and whose answer is too, if its future is the default one.
struct Up<F = future::Ready<Answer>>(PhantomData<fn() -> F>);

impl<F> Clone for Up<F> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<B, F: Future<Output = Answer>> Service<Request<B>> for Up<F> {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = F;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> F {
        unreachable!("nobody calls it")
    }
}

/// A future that must not be moved.
struct Pinned(PhantomPinned);

impl Future for Pinned {
    type Output = Answer;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Answer> {
        Poll::Pending
    }
}

// The services, over one whose future is `F`.
type Key<S = Up> = IdempotencyKey<S>;
type Retry<S = Up> = retry::Retry<S>;
type Attempt<S = Up> = AttemptSpan<S>;
type Breaker<S = Up> = breaker::Breaker<S>;
type KeyedBreaker<S = Up> =
    breaker::Breaker<S, breaker::Http, breaker::ByAuthority, breaker::Bodies>;
type WaitingBreaker<S = Up> = breaker::Breaker<S, breaker::Http, breaker::One<true>>;
type Limit<S = Up> = rate_limit::RateLimit<S, rate_limit::One, OneToken, HttpDeadline>;
type KeyedLimit<S = Up> =
    rate_limit::RateLimit<S, rate_limit::ByKey<fn(&Request<Body>) -> u8>, OneToken, HttpDeadline>;
type WaitingLimit<S = Up> = rate_limit::RateLimit<S, rate_limit::One<true>, OneToken, HttpDeadline>;
type Answers<S = Up> = answer::Answer<S>;
type Once<S = Up> = idempotency::Idempotency<S, MemoryStore, Global>;

/// The four layers of a client.
type Client<S = Up> = Key<Retry<Breaker<Limit<S>>>>;
/// The layers of a server.
type Server<S = Up> = Answers<Once<Limit<S>>>;

/// The future of a service.
type Call<S, B = Body> = <S as Service<Request<B>>>::Future;

/// Whether a type is `Unpin`.
struct Moves<T>(PhantomData<T>);

impl<T: Unpin> Moves<T> {
    /// It is. For a type that is not, there is only the trait's constant of this name.
    const FREELY: bool = true;
}

trait NotFreely {
    const FREELY: bool = false;
}

impl<T> NotFreely for Moves<T> {}

fn is_sent<T: Send>() {}

fn is_shared<T: Send + Sync>() {}

fn is_shared_and_cloned<T: Send + Sync + Clone>() {}

// promise: ST-9
#[test]
fn layers_services_and_handles_may_be_sent_shared_and_cloned() {
    is_shared_and_cloned::<IdempotencyKeyLayer>();
    is_shared_and_cloned::<retry::RetryLayer>();
    is_shared_and_cloned::<AttemptSpanLayer>();
    is_shared_and_cloned::<breaker::BreakerLayer>();
    is_shared_and_cloned::<rate_limit::RateLimitLayer>();
    is_shared_and_cloned::<answer::AnswerLayer>();
    is_shared_and_cloned::<idempotency::IdempotencyLayer<MemoryStore, Global>>();
    is_shared_and_cloned::<idempotency::IdempotencyLayer<SqliteStore, Global>>();

    is_shared_and_cloned::<(Key, Retry, Attempt, Answers, Once)>();
    is_shared_and_cloned::<(Breaker, KeyedBreaker, WaitingBreaker)>();
    is_shared_and_cloned::<(Limit, KeyedLimit, WaitingLimit)>();
    is_shared_and_cloned::<(Client, Server)>();

    is_shared_and_cloned::<(breaker::Handle, breaker::Handles, breaker::Snapshot)>();
    is_shared_and_cloned::<(rate_limit::Handle, rate_limit::Quota)>();
    is_shared_and_cloned::<(idempotency::Handle<MemoryStore>, idempotency::Lease)>();
    is_shared_and_cloned::<(MemoryStore, SqliteStore)>();
    is_shared_and_cloned::<(retry::Budget, retry::Backoff)>();
    is_shared_and_cloned::<(Rejected, ServiceLimit, LimitReport, Verdict, Deadline)>();
    is_shared_and_cloned::<clock::Instant>();
}

// promise: ST-9
#[test]
fn futures_bodies_and_events_may_be_sent_and_shared() {
    is_shared::<(Call<Key>, Call<Retry>, Call<Attempt>, Call<Answers>)>();
    is_shared::<(Call<Breaker>, Call<KeyedBreaker>, Call<WaitingBreaker>)>();
    is_shared::<(Call<Limit>, Call<KeyedLimit>, Call<WaitingLimit>)>();
    is_shared::<Call<Client>>();
    // There is a box in each of them, as tower's `BoxFuture`, and they may be sent as that.
    is_sent::<(Call<Once>, Call<Server>, idempotency::OperatorFuture)>();

    is_shared::<(ReplayBody<Body>, retry::ResponseBody<Body>)>();
    is_shared::<breaker::TrackedBody<Body, breaker::Http>>();
    is_shared::<answer::AnswerBody<Body>>();
    is_shared::<(
        idempotency::RequestBody<Body>,
        idempotency::ResponseBody<Body>,
    )>();

    is_shared::<(retry::Event, breaker::Event)>();
    is_shared::<(rate_limit::Event, idempotency::Event)>();
}

// promise: ST-9
#[test]
fn a_future_moves_freely_where_the_one_below_it_does_unless_it_has_a_timer() {
    let without_a_timer = [
        Moves::<Call<Key>>::FREELY,
        Moves::<Call<Attempt>>::FREELY,
        Moves::<Call<Breaker>>::FREELY,
        Moves::<Call<KeyedBreaker>>::FREELY,
        Moves::<Call<WaitingBreaker>>::FREELY,
        Moves::<Call<Limit>>::FREELY,
        Moves::<Call<KeyedLimit>>::FREELY,
        Moves::<Call<WaitingLimit>>::FREELY,
        Moves::<Call<Answers>>::FREELY,
        Moves::<Call<Once>>::FREELY,
        Moves::<idempotency::OperatorFuture>::FREELY,
    ];
    assert_eq!(without_a_timer, [true; 11]);
    // A timer of tokio's stays where it is.
    let with_a_timer = [Moves::<Call<Retry>>::FREELY];
    assert_eq!(with_a_timer, [false]);
    let over_one_that_must_not = [
        Moves::<Call<Key<Up<Pinned>>>>::FREELY,
        Moves::<Call<Attempt<Up<Pinned>>>>::FREELY,
        Moves::<Call<Retry<Up<Pinned>>>>::FREELY,
        Moves::<Call<Breaker<Up<Pinned>>>>::FREELY,
        Moves::<Call<KeyedBreaker<Up<Pinned>>>>::FREELY,
        Moves::<Call<Limit<Up<Pinned>>>>::FREELY,
        Moves::<Call<Answers<Up<Pinned>>>>::FREELY,
        Moves::<Call<Once<Up<Pinned>>>>::FREELY,
    ];
    assert_eq!(over_one_that_must_not, [false; 8]);
}

// promise: ST-9
#[cfg(target_pointer_width = "64")]
#[test]
fn nothing_grows_without_somebody_knowing() {
    // The most bytes that each has, over a service of none, whose future is its response and nothing else. The compiler may lay
    // them out otherwise one day. Else, what is larger has to be worth it, and what is smaller is to be written down.
    let sizes = [
        ("IdempotencyKeyLayer", size_of::<IdempotencyKeyLayer>(), 1),
        ("RetryLayer", size_of::<retry::RetryLayer>(), 256),
        ("AttemptSpanLayer", size_of::<AttemptSpanLayer>(), 1),
        ("BreakerLayer", size_of::<breaker::BreakerLayer>(), 232),
        (
            "RateLimitLayer",
            size_of::<rate_limit::RateLimitLayer>(),
            112,
        ),
        ("AnswerLayer", size_of::<answer::AnswerLayer>(), 24),
        (
            "IdempotencyLayer",
            size_of::<idempotency::IdempotencyLayer<MemoryStore, Global>>(),
            256,
        ),
        ("IdempotencyKey", size_of::<Key>(), 1),
        ("Retry", size_of::<Retry>(), 8),
        ("AttemptSpan", size_of::<Attempt>(), 1),
        ("Breaker", size_of::<Breaker>(), 24),
        ("RateLimit", size_of::<Limit>(), 16),
        ("Answer", size_of::<Answers>(), 40),
        ("Idempotency", size_of::<Once>(), 8),
        ("the services of a client", size_of::<Client>(), 56),
        ("the services of a server", size_of::<Server>(), 64),
        ("Handle of a breaker", size_of::<breaker::Handle>(), 8),
        (
            "Handle of a rate limit",
            size_of::<rate_limit::Handle>(),
            16,
        ),
        (
            "Handle of an idempotency",
            size_of::<idempotency::Handle<MemoryStore>>(),
            24,
        ),
        ("a ready call", size_of::<Call<Up>>(), 144),
        ("a call of IdempotencyKey", size_of::<Call<Key>>(), 144),
        ("a call of Retry", size_of::<Call<Retry>>(), 504),
        ("a call of AttemptSpan", size_of::<Call<Attempt>>(), 232),
        ("a call of Breaker", size_of::<Call<Breaker>>(), 192),
        ("a call of RateLimit", size_of::<Call<Limit>>(), 144),
        ("a call of Answer", size_of::<Call<Answers>>(), 184),
        ("a call of Idempotency", size_of::<Call<Once>>(), 168),
        ("a call of a client", size_of::<Call<Client>>(), 552),
        ("a call of a server", size_of::<Call<Server>>(), 208),
        ("ReplayBody", size_of::<ReplayBody<Body>>(), 40),
        (
            "ResponseBody of a retry",
            size_of::<retry::ResponseBody<Body>>(),
            72,
        ),
        (
            "TrackedBody",
            size_of::<breaker::TrackedBody<Body, breaker::Http>>(),
            80,
        ),
        ("AnswerBody", size_of::<answer::AnswerBody<Body>>(), 40),
        (
            "RequestBody of an idempotency",
            size_of::<idempotency::RequestBody<Body>>(),
            40,
        ),
        (
            "ResponseBody of an idempotency",
            size_of::<idempotency::ResponseBody<Body>>(),
            40,
        ),
        ("Rejected", size_of::<Rejected>(), 128),
        ("Verdict", size_of::<Verdict>(), 32),
    ];
    let larger = sizes.iter().filter(|(_, size, most)| size > most);
    let larger: Vec<_> = larger.collect();
    assert!(larger.is_empty(), "{larger:#?}");
}
