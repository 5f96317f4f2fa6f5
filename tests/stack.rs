//! Several layers in one stack: each does its own part, and none undoes what another has done.

mod support;

use std::{
    future, io,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use allocation_counter::measure;
use buttress::{
    Applied, BoxError, Kind, Rejected, Verdict,
    breaker::{self, BreakerLayer, Event, ProbeResult, Reason, State},
    clock,
    rate_limit::{Quota, RateLimitLayer},
    retry::{self, Backoff, Budget, ReplayBody, RetryLayer},
};
use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use support::{Server, Told, pass, within};
use tokio::{net::TcpSocket, sync::mpsc};
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt,
    balance::p2c::Balance,
    discover::ServiceList,
    load::{CompleteOnResponse, PendingRequests},
    load_shed::error::Overloaded,
    service_fn,
    timeout::error::Elapsed,
};

type Result<T = (), E = BoxError> = std::result::Result<T, E>;

const ONE: NonZeroU32 = NonZeroU32::new(1).unwrap();
const THREE: NonZeroU32 = NonZeroU32::new(3).unwrap();
const FIVE: NonZeroU32 = NonZeroU32::new(5).unwrap();
const WAIT: Duration = Duration::from_millis(50);

/// A layer that always waits as long before it sends again.
fn retry() -> RetryLayer {
    RetryLayer::http()
        .backoff(Backoff::constant(WAIT))
        .budget(Budget::unlimited())
}

fn client<B>() -> Client<HttpConnector, B>
where
    B: hyper::body::Body<Data: Send> + Send,
{
    Client::builder(TokioExecutor::new()).build_http()
}

fn request(url: &str) -> Result<Request<Full<Bytes>>> {
    Ok(Request::get(url).body(Full::default())?)
}

/// A backend on this side of the wire, for a test whose clock stands still. A call takes 10 ms.
#[derive(Clone, Debug, Default)]
struct Backend {
    is_well: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    in_flight: Arc<AtomicUsize>,
    most_in_flight: Arc<AtomicUsize>,
}

impl Backend {
    async fn call<B>(self, _: Request<B>) -> io::Result<Response<Full<Bytes>>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let in_flight = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(in_flight, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        let mut response = Response::new(Full::from("words"));
        if !self.is_well.load(Ordering::SeqCst) {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(response)
    }

    /// It is as a server should be from now on, or is not.
    fn is_well(&self, is_well: bool) {
        self.is_well.store(is_well, Ordering::SeqCst);
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_not_sent_again() -> Result {
    let (told, backend) = (Told::default(), Backend::default());
    let served = backend.clone();
    let service = ServiceBuilder::new()
        .layer(retry().on_event(told.sink()))
        .layer(BreakerLayer::http().consecutive_only(THREE))
        .service(service_fn(move |request| served.clone().call(request)));

    let answer = service.clone().oneshot(request("/")?).await?;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(told.finished(), Some((retry::Outcome::Attempts, 3)));
    let begun = clock::now();
    for _ in 0..10 {
        let error = service.clone().oneshot(request("/")?).await;
        let error = error.expect_err("it is open");
        assert!(Rejected::find(&*error).is_some(), "{error}");
        assert_eq!(told.finished(), Some((retry::Outcome::Refused, 1)));
    }
    assert_eq!(backend.calls(), 3);
    assert_eq!(clock::now(), begun, "there is nothing to wait for");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_during_a_backoff_does_not_hide_the_answer() -> Result {
    // This call's own failure opens it, or somebody else does.
    for own in [true, false] {
        let (told, refused, backend) = (Told::default(), Told::default(), Backend::default());
        let breaker = BreakerLayer::http()
            .consecutive_only(if own { ONE } else { THREE })
            .on_event(refused.sink());
        let handle = breaker.handle();
        let open = move |event: &retry::Event| {
            if !own && matches!(event, retry::Event::Retry { .. }) {
                handle.force_open();
            }
        };
        let served = backend.clone();
        let service = ServiceBuilder::new()
            .layer(retry().on_event(told.sink()).on_event(open))
            .layer(breaker)
            .service(service_fn(move |request| served.clone().call(request)));

        let answer = service.oneshot(request("/")?).await?;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.into_body().collect().await?.to_bytes(), "words");
        assert_eq!((backend.calls(), refused.refused()), (1, 1), "{own}");
        assert_eq!(told.finished(), Some((retry::Outcome::Refused, 2)), "{own}");
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_during_a_backoff_does_not_hide_the_error() -> Result {
    let service = ServiceBuilder::new()
        .layer(retry())
        .layer(BreakerLayer::http().consecutive_only(ONE))
        .service(service_fn(|_: Request<ReplayBody<Full<Bytes>>>| {
            let error = io::Error::from(io::ErrorKind::ConnectionReset);
            future::ready(Err::<Response<String>, _>(error))
        }));
    let error = service.oneshot(request("/")?).await;
    let error = error.expect_err("it is reset");
    assert!(Rejected::find(&*error).is_none(), "{error}");
    let reset = error.downcast_ref::<io::Error>().map(io::Error::kind);
    assert_eq!(reset, Some(io::ErrorKind::ConnectionReset));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_waits_makes_the_retry_wait_for_it() -> Result {
    /// One call, which fails at first.
    async fn succeeds<S>(service: S, backend: &Backend, opened: &Told<Event>) -> Result
    where
        S: Service<Request<Full<Bytes>>, Response: Send, Error = BoxError, Future: Send>
            + Send
            + 'static,
    {
        let begun = clock::now();
        let call = tokio::spawn(service.oneshot(request("/")?));
        tokio::time::sleep(Duration::from_millis(20)).await;
        backend.is_well(true);
        let answer = within(call).await?;
        assert!(answer.is_ok(), "{:?}", answer.err());
        assert_eq!(backend.calls(), 2);
        let open_for = opened.open_for().ok_or("it has not opened")?;
        assert!(clock::now().saturating_duration_since(begun) >= open_for);
        assert_eq!(opened.refused(), 0);
        Ok(())
    }

    let layers = || {
        let (told, opened, backend) = (Told::default(), Told::default(), Backend::default());
        let retry = retry().on_event(told.sink());
        let breaker = BreakerLayer::http()
            .consecutive_only(ONE)
            .on_event(opened.sink())
            .backpressure();
        (told, opened, backend, retry, breaker)
    };

    let (told, opened, backend, retry, breaker) = layers();
    let served = backend.clone();
    let service = ServiceBuilder::new()
        .layer(retry)
        .layer(breaker)
        .service(service_fn(move |request| served.clone().call(request)));
    succeeds(service, &backend, &opened).await?;
    assert_eq!(told.finished(), Some((retry::Outcome::OkAfterRetry, 2)));

    let (told, opened, backend, retry, breaker) = layers();
    let served = backend.clone();
    let service = ServiceBuilder::new()
        .layer(retry)
        .buffer(4)
        .layer(breaker)
        .service(service_fn(move |request| served.clone().call(request)));
    succeeds(service, &backend, &opened).await?;
    assert_eq!(told.finished(), Some((retry::Outcome::OkAfterRetry, 2)));
    Ok(())
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn callers_in_a_buffer_wait_for_the_breaker_and_get_their_answers() -> Result {
    let (told, backend) = (Told::default(), Backend::default());
    let breaker = BreakerLayer::http()
        .consecutive_only(THREE)
        .open_time(Duration::from_secs(3), Duration::from_secs(3))
        .on_event(told.sink())
        .backpressure();
    let handle = breaker.handle();
    let served = backend.clone();
    let service = ServiceBuilder::new()
        .load_shed()
        .buffer(64)
        .layer(breaker)
        .concurrency_limit(2)
        .service(service_fn(move |request| served.clone().call(request)));
    let calls = |number| {
        let call = |_| service.clone().oneshot(request("/").unwrap());
        within(join_all((0..number).map(call)))
    };

    calls(3).await;
    assert_eq!(handle.state(), State::Open);
    let open_for = told.open_for().ok_or("it has not opened")?;
    backend.is_well(true);
    let begun = clock::now();
    for answer in calls(50).await {
        assert_eq!(answer?.status(), StatusCode::OK);
    }
    // Three probes and the others, two at a time, need no longer than that.
    let passed = clock::now().saturating_duration_since(begun);
    assert!((open_for..open_for + Duration::from_millis(300)).contains(&passed));
    assert_eq!((backend.calls(), told.refused()), (53, 0));
    assert_eq!(backend.most_in_flight.load(Ordering::SeqCst), 2);
    assert_eq!(handle.state(), State::Closed);

    // More than the buffer holds are shed at once; none of the others comes to harm.
    backend.is_well(false);
    calls(3).await;
    assert_eq!(handle.state(), State::Open);
    backend.is_well(true);
    let (mut answered, mut shed) = (0, 0);
    for answer in calls(100).await {
        match answer {
            Ok(answer) if answer.status() == StatusCode::OK => answered += 1,
            Ok(answer) => return Err(answer.status().as_str().into()),
            Err(error) => {
                assert!(error.is::<Overloaded>(), "{error}");
                shed += 1;
            }
        }
    }
    // The buffer's own task may have taken one out of it.
    assert!((64..=65).contains(&answered), "{answered}");
    assert_eq!(answered + shed, 100);
    assert_eq!((backend.calls(), told.refused()), (56 + answered, 0));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn what_would_wait_for_a_breaker_can_be_shed() -> Result {
    let (told, backend) = (Told::default(), Backend::default());
    let breaker = BreakerLayer::http()
        .consecutive_only(THREE)
        .on_event(told.sink())
        .backpressure();
    let handle = breaker.handle();
    let served = backend.clone();
    let mut service = ServiceBuilder::new()
        .load_shed()
        .layer(breaker)
        .concurrency_limit(1)
        .service(service_fn(move |request| served.clone().call(request)));

    for _ in 0..3 {
        service.ready().await?.call(request("/")?).await?;
    }
    let opened = clock::now();
    for _ in 0..10 {
        let error = service.ready().await?.call(request("/")?).await;
        let error = error.expect_err("it is open");
        assert!(error.is::<Overloaded>(), "{error}");
    }
    assert_eq!(clock::now(), opened, "nobody waits");
    assert_eq!(backend.calls(), 3);

    // Neither a place in the queue nor a permit has stayed behind.
    backend.is_well(true);
    tokio::time::advance(Duration::from_secs(5)).await;
    for _ in 0..3 {
        let answer = service.ready().await?.call(request("/")?).await?;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_eq!((handle.state(), backend.calls()), (State::Closed, 6));
    Ok(())
}

// promise: BR-12
#[tokio::test(start_paused = true)]
async fn who_keeps_a_place_and_does_not_come_is_in_the_way_no_longer_than_a_lease() -> Result {
    let backend = Backend::default();
    let breaker = BreakerLayer::http().consecutive_only(ONE).backpressure();
    let served = backend.clone();
    let mut service = breaker.layer(service_fn(move |request| served.clone().call(request)));
    service.ready().await?.call(request("/")?).await?;
    backend.is_well(true);
    tokio::time::advance(Duration::from_secs(5)).await;
    let probe = tokio::spawn(service.ready().await?.call(request("/")?));

    // These two are kept for a later call, but wait no longer.
    let mut kept = [service.clone(), service.clone()];
    for service in &mut kept {
        let ready = tokio::time::timeout(Duration::from_millis(1), service.ready());
        assert!(ready.await.is_err(), "the one probe is under way");
    }
    let begun = clock::now();
    let call = tokio::spawn(service.oneshot(request("/")?));
    probe.await??;
    call.await??;
    let passed = clock::now().saturating_duration_since(begun);
    assert!(passed <= Duration::from_millis(10_020), "{passed:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_refusal_holds_no_permit_of_a_limit_above() -> Result {
    let backend = Backend::default();
    let served = backend.clone();
    let service = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(1)
        .layer(BreakerLayer::http().consecutive_only(THREE))
        .concurrency_limit(1)
        .service(service_fn(move |request| served.clone().call(request)));
    for _ in 0..3 {
        service.clone().oneshot(request("/")?).await?;
    }
    for _ in 0..10 {
        let error = service.clone().oneshot(request("/")?).await;
        let error = error.expect_err("it is open");
        assert!(Rejected::find(&*error).is_some(), "{error}");
    }
    assert_eq!(backend.calls(), 3);
    Ok(())
}

// promise: BR-20
#[tokio::test(start_paused = true)]
async fn a_balancer_goes_by_breakers_that_wait() -> Result {
    let endpoint = || {
        let (told, backend) = (Told::default(), Backend::default());
        let breaker = BreakerLayer::http()
            .consecutive_only(THREE)
            .on_event(told.sink())
            .backpressure();
        let served = backend.clone();
        let service = ServiceBuilder::new()
            .layer(breaker)
            .service(service_fn(move |request| served.clone().call(request)));
        let service = PendingRequests::new(service, CompleteOnResponse::default());
        (told, backend, service)
    };
    let (bad_told, bad, first) = endpoint();
    let (good_told, good, second) = endpoint();
    good.is_well(true);
    let mut service = Balance::new(ServiceList::new([first, second]));

    let mut failed = 0;
    for _ in 0..100 {
        let answer = service.ready().await?.call(request("/")?).await?;
        failed += usize::from(answer.status() == StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!((failed, bad.calls(), good.calls()), (3, 3, 97));
    assert_eq!((bad_told.refused(), good_told.refused()), (0, 0));

    bad.is_well(true);
    tokio::time::advance(Duration::from_secs(5)).await;
    for _ in 0..100 {
        let answer = service.ready().await?.call(request("/")?).await?;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert!(bad.calls() > 3 + 20, "{} of 100", bad.calls() - 3);
    Ok(())
}

// promise: BR-7
#[tokio::test]
async fn a_timeout_above_a_breaker_opens_it() -> Result {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let (asked, mut requests) = mpsc::unbounded_channel();
    let server = Server::start(move |mut connection| {
        let asked = asked.clone();
        async move {
            connection.read().await?;
            let _ = asked.send(());
            connection.closes().await.map(drop)
        }
    })
    .await?;

    let told = Told::default();
    let breaker = BreakerLayer::http()
        .consecutive_only(FIVE)
        .patience(Duration::from_secs(5))
        .on_event(told.sink());
    let handle = breaker.handle();
    let service = ServiceBuilder::new()
        .timeout(TIMEOUT)
        .layer(breaker)
        .service(client());

    for turn in 0..8 {
        let call = tokio::spawn(service.clone().oneshot(request(&server.url())?));
        within(requests.recv()).await.ok_or("nothing has come")?;
        if turn < 3 {
            // These callers leave early.
            pass(Duration::from_millis(1)).await;
            call.abort();
            assert!(within(call).await.is_err());
            continue;
        }
        pass(TIMEOUT).await;
        let error = within(call).await?.expect_err("it takes too long");
        assert!(error.is::<Elapsed>(), "{error}");
    }
    let mut ends = vec![(breaker::Outcome::Cancelled, Reason::Dropped); 3];
    ends.extend([(breaker::Outcome::Failure, Reason::Patience); 5]);
    assert_eq!(told.calls(), ends);
    assert_eq!(handle.state(), State::Open);

    let error = within(service.oneshot(request(&server.url())?)).await;
    let error = error.expect_err("it is open");
    assert!(Rejected::find(&*error).is_some(), "{error}");
    assert_eq!(server.seen().len(), 8);
    Ok(())
}

#[tokio::test]
async fn a_timeout_above_a_breaker_gives_the_slot_of_a_probe_back() -> Result {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let (asked, mut requests) = mpsc::unbounded_channel();
    let server = Server::start(move |mut connection| {
        let asked = asked.clone();
        async move {
            connection.read().await?;
            let turn = connection.turn();
            let _ = asked.send(());
            match turn {
                0 => connection.answer(503, b"").await,
                // A probe that hangs, and is given up before it is a failure.
                1 => connection.closes().await.map(drop),
                _ => connection.answer(200, b"").await,
            }
        }
    })
    .await?;

    let told = Told::default();
    let breaker = BreakerLayer::http()
        .consecutive_only(ONE)
        .on_event(told.sink());
    let handle = breaker.handle();
    let service = ServiceBuilder::new()
        .timeout(TIMEOUT)
        .layer(breaker)
        .service(client());
    within(service.clone().oneshot(request(&server.url())?)).await?;
    assert_eq!(handle.state(), State::Open);

    within(requests.recv()).await.ok_or("nothing has come")?;

    pass(Duration::from_secs(5)).await;
    let call = tokio::spawn(service.clone().oneshot(request(&server.url())?));
    within(requests.recv()).await.ok_or("nothing has come")?;
    let refused = within(service.clone().oneshot(request(&server.url())?)).await;
    let refused = refused.expect_err("the one probe is under way");
    let rejected = Rejected::find(&*refused).ok_or("it is not refused")?;
    assert_eq!(rejected.reason(), "half-open: its probes are under way");
    pass(TIMEOUT).await;
    let error = within(call).await?.expect_err("it takes too long");
    assert!(error.is::<Elapsed>(), "{error}");
    assert_eq!(told.probes(), [ProbeResult::Cancelled]);
    for _ in 0..3 {
        let answer = within(service.clone().oneshot(request(&server.url())?)).await?;
        assert_eq!(answer.status(), StatusCode::OK);
    }
    assert_eq!(handle.state(), State::Closed);
    Ok(())
}

#[tokio::test]
async fn a_dead_host_does_not_hurt_a_healthy_one() -> Result {
    // Nobody else gets a port that is bound, and nobody is let in before it listens.
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.1:0".parse()?)?;
    let dead = socket.local_addr()?;
    let server = Server::start(|mut connection| async move {
        while connection.arrives().await? {
            connection.read().await?;
            connection.answer(200, b"words").await?;
        }
        Ok(())
    })
    .await?;

    let (told, sent) = (Told::default(), Told::default());
    let breaker = BreakerLayer::http()
        .consecutive_only(FIVE)
        .on_event(sent.sink())
        .by_authority();
    let handles = breaker.handles();
    let service = ServiceBuilder::new()
        .layer(
            retry()
                .backoff(Backoff::constant(Duration::ZERO))
                .on_event(told.sink()),
        )
        .layer(breaker)
        .service(client::<ReplayBody<_>>());
    let state = |authority: String| handles.get(&authority).map(|handle| handle.state());

    for _ in 0..10 {
        let error = within(
            service
                .clone()
                .oneshot(request(&format!("http://{dead}/"))?),
        )
        .await;
        assert!(error.is_err());
        let answer = within(service.clone().oneshot(request(&server.url())?)).await?;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(told.finished(), Some((retry::Outcome::Ok, 1)));
        within(answer.into_body().collect()).await?;
    }
    assert_eq!(state(dead.to_string()), Some(State::Open));
    assert_eq!(state(server.address.to_string()), Some(State::Closed));
    assert_eq!(server.seen().len(), 10);
    let failed = |(outcome, _): &&_| *outcome == breaker::Outcome::Failure;
    assert_eq!(sent.calls().iter().filter(failed).count(), 5);
    // One of the second call's retries, and each call after that.
    assert_eq!(sent.refused(), 9);
    Ok(())
}

/// How much is allocated by each of ten calls that do not wait, after one that warms up. Making a request is not counted.
fn allocations<S, R>(mut service: S, request: impl Fn() -> R) -> Vec<u64>
where
    S: Service<R, Error = BoxError>,
{
    let mut call = || {
        let request = request();
        let measured = measure(|| {
            let ready = service.ready().now_or_never().expect("it is ready");
            let call = ready.expect("it is well").call(request);
            let answer = call.now_or_never().expect("it does not wait");
            assert!(answer.is_ok());
        });
        measured.count_total
    };
    call();
    std::iter::repeat_with(call).take(10).collect()
}

// promises: BR-27, RL-25, RT-32
#[tokio::test(start_paused = true)]
async fn a_call_that_succeeds_at_first_allocates_no_more_than_the_copy_of_its_request() {
    const PLENTY: Quota = Quota::per_second(NonZeroU32::new(1_000).unwrap());
    const SECOND: Duration = Duration::from_secs(1);

    let judge = |result: Result<&u64, &BoxError>| match result {
        Ok(_) => Verdict::SUCCESS,
        Err(_) => Verdict::new(Kind::Transient, Applied::Maybe),
    };
    let numbers = ServiceBuilder::new()
        .layer(
            RetryLayer::new(judge)
                .deadline(SECOND)
                .attempt_timeout(WAIT),
        )
        .layer(BreakerLayer::new(judge).patience(WAIT))
        .layer(RateLimitLayer::new(PLENTY))
        .service(service_fn(|number: u64| {
            future::ready(Ok::<_, io::Error>(number))
        }));
    assert_eq!(allocations(numbers, || 7), [0; 10]);

    let http = ServiceBuilder::new()
        .layer(RetryLayer::http().deadline(SECOND).attempt_timeout(WAIT))
        .layer(BreakerLayer::http().patience(WAIT))
        .layer(RateLimitLayer::http(PLENTY))
        .service(service_fn(|request: Request<ReplayBody<Full<Bytes>>>| {
            drop(request);
            future::ready(Ok::<_, io::Error>(Response::new(Full::<Bytes>::default())))
        }));
    let get = || request("http://a.example/").expect("a request");
    assert_eq!(allocations(http, get), [1; 10]);
}
