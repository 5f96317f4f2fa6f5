//! What every layer owes to those above and below it, over services that hold permits: it calls what was ready, keeps no
//! permit, and wakes nobody for nothing.
//!
//! Each crate shows the first for its own states; here are all layers over all of tower's that hold something.

mod sources;

use std::{
    future::{Future, poll_fn},
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use buttress::{
    BoxError, Deadline,
    answer::AnswerLayer,
    breaker::BreakerLayer,
    clock,
    idempotency::{Global, IdempotencyKeyLayer, IdempotencyLayer, MemoryStore},
    rate_limit::{Quota, RateLimitLayer},
    retry::{Backoff, Budget, RetryLayer},
    telemetry::AttemptSpanLayer,
};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    time::{Sleep, advance, sleep, timeout},
};
use tokio_test::task;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt, limit::GlobalConcurrencyLimitLayer, service_fn,
    util::BoxCloneService,
};
use tower_test::mock;

const ONE: NonZeroU32 = NonZeroU32::new(1).unwrap();

const fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What stands right below a layer, over a limit of one call in flight.
#[derive(Clone, Copy, Debug)]
enum Below {
    ConcurrencyLimit,
    Buffer,
    LoadShed,
}

type Inner<B> = BoxCloneService<Request<B>, Response<Full<Bytes>>, BoxError>;

impl Below {
    const ALL: [Self; 3] = [Self::ConcurrencyLimit, Self::Buffer, Self::LoadShed];

    /// The service, which takes what a call needs of `permits`.
    fn service<B: Send + 'static>(self, permits: &Arc<Semaphore>) -> Inner<B> {
        let limit = GlobalConcurrencyLimitLayer::with_semaphore(permits.clone());
        let limited = limit.layer(backend());
        match self {
            Self::ConcurrencyLimit => BoxCloneService::new(limited),
            Self::Buffer => BoxCloneService::new(ServiceBuilder::new().buffer(1).service(limited)),
            Self::LoadShed => {
                BoxCloneService::new(ServiceBuilder::new().load_shed().service(limited))
            }
        }
    }
}

/// Answers after 3 ms, with 503 and with 200 in turn. It panics when it is called without having been polled ready.
fn backend<B: Send + 'static>() -> mock::Mock<Request<B>, Response<Full<Bytes>>> {
    let (service, mut handle) = mock::pair();
    tokio::spawn(async move {
        let mut fails = false;
        while let Some((_, answer)) = handle.next_request().await {
            fails = !fails;
            let mut response = Response::new(Full::from("words"));
            if fails {
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            tokio::spawn(async move {
                sleep(millis(3)).await;
                answer.send_response(response);
            });
        }
    });
    service
}

/// Another payment, with a key of its own.
fn pay() -> Request<Full<Bytes>> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let key = format!("\"{}\"", LAST.fetch_add(1, Ordering::Relaxed));
    let request = Request::post("http://a.example/").header("idempotency-key", key);
    request.body(Full::from("amount=3")).unwrap()
}

/// Counts how often a future is polled. On a clock that stands still, one that wakes itself would be polled for ever.
fn counted<F: Future>(waits: F, polls: Arc<AtomicU64>) -> impl Future<Output = F::Output> {
    let mut waits = Box::pin(waits);
    poll_fn(move |cx| {
        let polls = polls.fetch_add(1, Ordering::Relaxed);
        assert!(polls < 100_000, "it wakes itself");
        waits.as_mut().poll(cx)
    })
}

/// A call may be dropped at its n-th poll, a service used again, and nothing that is below it is kept.
async fn keeps_nothing<B, S>(layer: impl Fn(Inner<B>) -> S)
where
    B: Send + 'static,
    S: Service<Request<Full<Bytes>>, Error: Into<BoxError>> + Clone,
{
    for below in Below::ALL {
        for polls in 0..=20 {
            let permits = Arc::new(Semaphore::new(1));
            let mut service = layer(below.service(&permits));
            let call = service.clone().oneshot(pay());
            let answer = counted(call, Arc::default()).await;
            assert!(answer.map_err(Into::into).is_ok(), "over {below:?}");

            let mut call = task::spawn(service.clone().oneshot(pay()));
            for _ in 0..polls {
                if call.poll().is_ready() {
                    break;
                }
                advance(millis(1)).await;
            }
            drop(call);
            // What goes on without its caller has time to end.
            sleep(Duration::from_secs(1)).await;
            let left = permits.available_permits();
            assert_eq!(left, 1, "over {below:?}, dropped after {polls} polls");

            for _ in 0..2 {
                let call = async { service.ready().await?.call(pay()).await };
                let call = counted(call, Arc::default());
                let answer = timeout(Duration::from_mins(1), call).await;
                let answer = answer.expect("it hangs").map_err(Into::into);
                assert!(answer.is_ok(), "over {below:?}, after {polls} polls");
                let left = permits.available_permits();
                assert_eq!(left, 1, "over {below:?}: a service that is kept is idle");
            }
        }
    }
}

fn retry() -> RetryLayer {
    RetryLayer::http()
        .backoff(Backoff::constant(millis(5)))
        .budget(Budget::unlimited())
}

/// The second of two calls has to wait for 17 ms.
fn pace() -> Quota {
    Quota::per(ONE, millis(20)).unwrap().burst(ONE)
}

fn idempotency() -> IdempotencyLayer<MemoryStore, Global> {
    IdempotencyLayer::new(MemoryStore::new(), Global)
}

// promise: ST-3
#[tokio::test(start_paused = true)]
async fn a_client_s_layers_keep_no_permit_and_call_what_is_ready() {
    keeps_nothing(|inner| IdempotencyKeyLayer::new().layer(inner)).await;
    keeps_nothing(|inner| retry().layer(inner)).await;
    keeps_nothing(|inner| AttemptSpanLayer::new().layer(inner)).await;
    keeps_nothing(|inner| BreakerLayer::http().layer(inner)).await;
    keeps_nothing(|inner| BreakerLayer::http().track_bodies().layer(inner)).await;
    keeps_nothing(|inner| RateLimitLayer::http(pace()).layer(inner)).await;
    let stack = |inner| {
        ServiceBuilder::new()
            .layer(IdempotencyKeyLayer::new())
            .layer(retry())
            .layer(BreakerLayer::http())
            .layer(RateLimitLayer::http(pace()))
            .service(inner)
    };
    keeps_nothing(stack).await;
}

// promise: ST-3
#[tokio::test(start_paused = true)]
async fn layers_with_backpressure_keep_no_permit_and_call_what_is_ready() {
    keeps_nothing(|inner| BreakerLayer::http().backpressure().layer(inner)).await;
    keeps_nothing(|inner| RateLimitLayer::http(pace()).backpressure().layer(inner)).await;
    // It opens at each failure, and waits for a probe then.
    let opens = |inner| {
        BreakerLayer::http()
            .consecutive_only(ONE)
            .probes(ONE)
            .open_time(millis(5), millis(5))
            .backpressure()
            .layer(inner)
    };
    keeps_nothing(opens).await;
}

// promise: ST-3
#[tokio::test(start_paused = true)]
async fn a_server_s_layers_keep_no_permit_and_call_what_is_ready() {
    keeps_nothing(|inner| AnswerLayer::http().layer(inner)).await;
    keeps_nothing(|inner| idempotency().layer(inner)).await;
    // Without a key it goes by, and is dropped with its caller.
    let unkeyed = |inner| {
        ServiceBuilder::new()
            .map_request(|mut request: Request<_>| {
                request.headers_mut().clear();
                request
            })
            .layer(idempotency())
            .service(inner)
    };
    keeps_nothing(unkeyed).await;
    let quota = Quota::per_second(NonZeroU32::new(1_000).unwrap());
    let stack = |inner| {
        ServiceBuilder::new()
            .layer(AnswerLayer::http())
            .layer(idempotency())
            .layer(RateLimitLayer::http(quota).refuse())
            .service(inner)
    };
    keeps_nothing(stack).await;
}

// promise: ST-3
#[tokio::test(start_paused = true)]
async fn a_duplicate_that_waits_for_the_first_keeps_no_permit() {
    for below in Below::ALL {
        for polls in 0..=20 {
            let permits = Arc::new(Semaphore::new(1));
            let layer = idempotency().wait(Duration::from_secs(1));
            let service = layer.layer(below.service(&permits));
            let request = pay();
            let key = request.headers()["idempotency-key"].clone();
            let mut duplicate = pay();
            duplicate.headers_mut().insert("idempotency-key", key);

            let mut first = task::spawn(service.clone().oneshot(request));
            assert!(first.poll().is_pending());
            advance(millis(1)).await;
            let mut waits = task::spawn(service.clone().oneshot(duplicate));
            for _ in 0..polls {
                if waits.poll().is_ready() {
                    break;
                }
                advance(millis(1)).await;
            }
            drop(waits);
            assert!(first.await.is_ok());
            sleep(Duration::from_secs(1)).await;
            let left = permits.available_permits();
            assert_eq!(left, 1, "over {below:?}, dropped after {polls} polls");
        }
    }
}

/// The second call goes no further than the layer, which gives back what it was ready with though its service is kept.
async fn gives_back<B, S>(layer: impl Fn(Inner<B>) -> S, calls: [Request<Full<Bytes>>; 2])
where
    B: Send + 'static,
    S: Service<Request<Full<Bytes>>, Error: Into<BoxError>>,
{
    let permits = Arc::new(Semaphore::new(1));
    let mut service = layer(Below::ConcurrencyLimit.service(&permits));
    for (call, taken) in calls.into_iter().zip([1, 0]) {
        let ready = service.ready().await.map_err(Into::into).unwrap();
        assert_eq!(permits.available_permits(), 0);
        let answer = ready.call(call);
        assert_eq!(1 - permits.available_permits(), taken);
        let _ = answer.await;
        assert_eq!(permits.available_permits(), 1);
    }
}

// promise: ST-3
#[tokio::test(start_paused = true)]
async fn a_call_that_goes_no_further_keeps_no_permit() {
    let refuses = RateLimitLayer::http(pace()).refuse();
    gives_back(|inner| refuses.layer(inner), [pay(), pay()]).await;

    let mut late = pay();
    late.extensions_mut().insert(Deadline(clock::now()));
    gives_back(|inner| retry().layer(inner), [pay(), late]).await;

    let mut unkeyed = pay();
    unkeyed.headers_mut().clear();
    let requires = idempotency().required();
    gives_back(|inner| requires.layer(inner), [pay(), unkeyed]).await;
}

/// Takes its time to get ready, and to answer.
#[derive(Debug)]
struct Slow {
    to_ready: Duration,
    to_answer: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Slow {
    fn new(to_ready: Duration, to_answer: Duration) -> Self {
        Self {
            to_ready,
            to_answer,
            timer: None,
        }
    }
}

impl Clone for Slow {
    fn clone(&self) -> Self {
        Self::new(self.to_ready, self.to_answer)
    }
}

impl<B> Service<Request<B>> for Slow {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let to_ready = self.to_ready;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(to_ready)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        let timer = sleep(self.to_answer);
        Box::pin(async move {
            timer.await;
            Ok(Response::new(Full::from("words")))
        })
    }
}

/// Answers 503 at once.
fn down<B: Send + 'static>() -> Inner<B> {
    BoxCloneService::new(service_fn(async |_: Request<B>| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        Ok(response)
    }))
}

const NO_TIME: Duration = Duration::ZERO;
/// Longer than a waiter is looked at.
const LONG: Duration = Duration::from_secs(100);

/// How often the one thread of the test's runtime has gone to sleep. Under a paused clock that is each time that something
/// was due, whatever task has waited for it.
fn parks() -> u64 {
    Handle::current().metrics().worker_park_count(0)
}

/// How much there is to do in a minute that something waits: how often it is polled itself, and how often the runtime has
/// anything to do. In the end it has waited, in no time.
async fn a_minute_of<F>(waits: F) -> (u64, u64)
where
    F: Future<Output: Send> + Send + 'static,
{
    let polls = Arc::new(AtomicU64::new(0));
    let task = tokio::spawn(counted(waits, polls.clone()));
    // The first polls, and what they set going, are no waiting.
    sleep(millis(1)).await;
    let before = (polls.load(Ordering::Relaxed), parks());
    sleep(Duration::from_mins(1)).await;
    let after = (polls.load(Ordering::Relaxed), parks());
    assert!(!task.is_finished(), "it does not wait");
    let begun = clock::now();
    assert!(task.await.is_ok());
    let ended = clock::now().saturating_duration_since(begun);
    assert!(ended <= Duration::from_mins(10), "{ended:?}");
    (after.0 - before.0, after.1 - before.1)
}

/// Wakes so often in a second, for longer than it is looked at.
async fn restless(times: u32) {
    let pause = Duration::from_secs(1) / times;
    let begun = clock::now();
    while clock::now().saturating_duration_since(begun) < LONG {
        sleep(pause).await;
    }
}

/// How often the runtime wakes for somebody who wakes five times a second. A timer of tokio's has it wake more than once, so
/// this is counted and not reckoned.
async fn five_a_second() -> u64 {
    a_minute_of(restless(5)).await.1
}

/// Polled at most five times a second; and whatever else goes on for it, there is no more to do than for somebody who is.
async fn is_quiet<F>(most: u64, what: &str, waits: F)
where
    F: Future<Output: Send> + Send + 'static,
{
    let (polls, parks) = a_minute_of(waits).await;
    assert!(polls <= 5 * 60, "{what}: {polls} polls");
    assert!(parks <= most, "{what}: the runtime wakes {parks} times");
}

// promise: ST-4
#[tokio::test(start_paused = true)]
async fn one_who_does_not_sleep_is_seen() {
    let most = five_a_second().await;
    let (polls, parks) = a_minute_of(restless(6)).await;
    assert!((359..=361).contains(&polls), "{polls}");
    assert!(parks > most, "{parks} of {most}");
    // What is done by another task is seen too.
    let (polls, parks) = a_minute_of(tokio::spawn(restless(6))).await;
    assert_eq!(polls, 0);
    assert!(parks > most, "{parks} of {most}");
}

// promise: ST-4
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_service_to_get_ready_or_to_answer_is_left_in_peace() {
    let most = five_a_second().await;
    for slow in [Slow::new(LONG, NO_TIME), Slow::new(NO_TIME, LONG)] {
        macro_rules! is_quiet_below {
            ($($layer:expr),*) => {$(
                let service = $layer.layer(slow.clone());
                is_quiet(most, stringify!($layer), service.oneshot(pay())).await;
            )*};
        }
        is_quiet_below!(
            IdempotencyKeyLayer::new(),
            retry(),
            retry().deadline(LONG * 2).attempt_timeout(LONG * 2),
            AttemptSpanLayer::new(),
            BreakerLayer::http(),
            BreakerLayer::http().track_bodies().by_authority(),
            BreakerLayer::http().backpressure(),
            RateLimitLayer::http(pace()),
            RateLimitLayer::http(pace()).backpressure(),
            AnswerLayer::http(),
            idempotency()
        );
        let stack = ServiceBuilder::new()
            .layer(IdempotencyKeyLayer::new())
            .layer(retry())
            .layer(BreakerLayer::http())
            .layer(RateLimitLayer::http(pace()))
            .service(slow);
        is_quiet(most, "the stack", stack.oneshot(pay())).await;
    }
}

// promise: ST-4
#[tokio::test(start_paused = true)]
async fn who_waits_in_a_layer_is_left_in_peace() {
    let most = five_a_second().await;
    let retry = retry().backoff(Backoff::constant(LONG));
    is_quiet(most, "a backoff", retry.layer(down()).oneshot(pay())).await;

    let up = Slow::new(NO_TIME, NO_TIME);
    let quota = Quota::per(ONE, LONG).unwrap().burst(ONE);
    let turn = RateLimitLayer::http(quota).max_wait(LONG);
    let service = turn.layer(up.clone());
    service.clone().oneshot(pay()).await.unwrap();
    is_quiet(most, "a turn", service.oneshot(pay())).await;

    let turn = RateLimitLayer::http(quota).backpressure();
    let service = turn.layer(up.clone());
    service.clone().oneshot(pay()).await.unwrap();
    is_quiet(most, "a turn with backpressure", service.oneshot(pay())).await;

    let breaker = BreakerLayer::http()
        .consecutive_only(ONE)
        // Up to a half of it is taken off.
        .open_time(LONG * 2, LONG * 2)
        .backpressure();
    let broken = breaker.layer(down());
    broken.clone().oneshot(pay()).await.unwrap();
    is_quiet(most, "an open breaker", broken.oneshot(pay())).await;
    let breaker = BreakerLayer::http().backpressure();
    let handle = breaker.handle();
    handle.force_open();
    tokio::spawn(async move {
        sleep(LONG).await;
        handle.release();
    });
    is_quiet(most, "a forced breaker", breaker.layer(up).oneshot(pay())).await;
}

// promise: ST-4
#[tokio::test(start_paused = true)]
async fn who_waits_behind_others_is_left_in_peace_however_often_their_turn_comes() {
    // Each of those before is a probe that fails, 50 to 100 of them a second.
    let breaker = BreakerLayer::http()
        .consecutive_only(ONE)
        .open_time(millis(20), millis(20))
        .backpressure();
    let service = breaker.layer(down());
    service.clone().oneshot(pay()).await.unwrap();
    for _ in 0..2_000 {
        tokio::spawn(service.clone().oneshot(pay()));
    }
    let polls = Arc::new(AtomicU64::new(0));
    let last = tokio::spawn(counted(service.oneshot(pay()), polls.clone()));
    sleep(Duration::from_secs(10)).await;
    assert!(!last.is_finished(), "it does not wait");
    let polls = polls.load(Ordering::Relaxed);
    assert!(polls <= 5 * 10, "{polls} polls");
    assert!(last.await.is_ok());
}

// promise: ST-4
#[tokio::test(start_paused = true)]
async fn who_waits_for_the_first_of_two_requests_is_left_in_peace() {
    let most = five_a_second().await;
    let slow = Slow::new(NO_TIME, LONG);
    let store = MemoryStore::new();
    let layer = || IdempotencyLayer::new(store.clone(), Global).wait(LONG);
    let (this, other) = (layer(), layer());
    // In this process the end of the run is told; of one in another the store is asked.
    for (place, service) in [("here", &this), ("elsewhere", &other)] {
        let request = pay();
        let key = request.headers()["idempotency-key"].clone();
        let mut duplicate = pay();
        duplicate.headers_mut().insert("idempotency-key", key);
        let first = tokio::spawn(this.layer(slow.clone()).oneshot(request));
        sleep(millis(1)).await;
        is_quiet(most, place, service.layer(slow.clone()).oneshot(duplicate)).await;
        first.await.unwrap().unwrap();
    }
}

// promise: ST-4
#[tokio::test(start_paused = true)]
async fn idle_layers_have_nothing_done() {
    let most = five_a_second().await;
    let up = Slow::new(NO_TIME, NO_TIME);
    let client = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .layer(retry())
        .layer(BreakerLayer::http().by_authority())
        .layer(RateLimitLayer::http(pace()))
        .service(up.clone());
    let server = ServiceBuilder::new()
        .layer(AnswerLayer::http())
        .layer(idempotency())
        .layer(RateLimitLayer::http(pace()).refuse())
        .service(up);
    assert!(client.clone().oneshot(pay()).await.is_ok());
    assert!(server.clone().oneshot(pay()).await.is_ok());
    is_quiet(most, "nobody", sleep(LONG)).await;
    drop((client, server));
}

/// The layers of a source, by their names.
fn layers(source: &str) -> impl Iterator<Item = &str> {
    let structs = source
        .lines()
        .filter_map(|line| line.strip_prefix("pub struct "));
    let names = structs.filter_map(|line| line.split(|c: char| !c.is_alphanumeric()).next());
    names.filter(|name| name.ends_with("Layer"))
}

// promises: ST-3, ST-4, ST-9
#[test]
fn no_layer_is_forgotten() {
    let sources = sources::read("crates", &[".rs"]);
    let layers: Vec<_> = sources.iter().flat_map(|(_, text)| layers(text)).collect();
    assert!(layers.len() >= 7, "{layers:?}");
    for layer in layers {
        // With what ends its name: one may be the end of another's.
        let has = |text: &str| {
            text.contains(&format!(" {layer}")) || text.contains(&format!("::{layer}"))
        };
        assert!(
            has(include_str!("contract.rs")),
            "{layer} is not in contract.rs"
        );
        assert!(
            has(include_str!("traits.rs")),
            "{layer} is not in traits.rs"
        );
    }
}
