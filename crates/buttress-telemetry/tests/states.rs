//! Which state of a breaker is shown: always exactly one.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, ScopedJoinHandle},
    time::Duration,
};

use allocation_counter::measure;
use buttress_breaker::{BreakerLayer, Event};
use buttress_core::BoxError;
use buttress_telemetry::{breaker, breaker_by_key};
use http::{Request, Response};
use metrics::{
    Counter, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tokio::{
    task::yield_now,
    time::{advance, sleep},
};
use tokio_test::task;
use tower::{Layer, Service, ServiceExt, service_fn};

/// The gauges of states as they are at each moment, by the key of the breaker and by state.
#[derive(Clone, Debug, Default)]
struct Board(Arc<Mutex<BTreeMap<(String, String), f64>>>);

impl Board {
    /// The states that are shown as those of a key.
    fn of(&self, key: &str) -> Vec<String> {
        let gauges = self.0.lock().unwrap();
        let ones = gauges.iter().filter(|(_, value)| **value > 0.0);
        let ones = ones.filter(|((of, _), _)| of == key);
        ones.map(|((_, state), _)| state.clone()).collect()
    }

    /// The states that are shown where there is one breaker.
    fn shown(&self) -> Vec<String> {
        self.of("")
    }
}

/// One gauge.
struct Lamp(Board, (String, String));

impl GaugeFn for Lamp {
    fn increment(&self, _: f64) {
        unreachable!("states are set")
    }

    fn decrement(&self, _: f64) {
        unreachable!("states are set")
    }

    fn set(&self, value: f64) {
        self.0.0.lock().unwrap().insert(self.1.clone(), value);
        let (key, _) = &self.1;
        assert!(self.0.of(key).len() <= 1, "two at once");
    }
}

impl Recorder for Board {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        if key.name() != "buttress_breaker_state" {
            return Gauge::noop();
        }
        let label = |name: &str| {
            let found = key.labels().find(|label| label.key() == name);
            found.map_or(String::new(), |label| label.value().to_owned())
        };
        let lamp = Lamp(self.clone(), (label("key"), label("state")));
        Gauge::from_arc(Arc::new(lamp))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// What this sink tells is kept, for another one to hear in another order.
fn keep(kept: &Arc<Mutex<Vec<Event>>>) -> impl Fn(&Event) + Send + Sync + 'static {
    let kept = kept.clone();
    move |event| kept.lock().unwrap().push(event.clone())
}

fn number(event: &Event) -> Option<(u64, &'static str)> {
    match event {
        Event::Transition { number, to, .. } => Some((*number, to.as_str())),
        _ => None,
    }
}

/// Does at random what can be done to a breaker, and looks after each step.
async fn live(layer: &BreakerLayer, steps: usize, rng: &mut StdRng, look: impl Fn(&str)) {
    let handle = layer.handle();
    for _ in 0..steps {
        match rng.random_range(0..20) {
            0 => handle.force_open(),
            1 => handle.force_closed(),
            2 | 3 => handle.release(),
            4..8 => advance(Duration::from_secs(rng.random_range(1..60))).await,
            step => {
                let status = if step < 15 { 503 } else { 200 };
                let service = layer.layer(service_fn(move |()| async move {
                    Ok::<_, BoxError>(Response::builder().status(status).body(())?)
                }));
                let _ = service.oneshot(()).await;
            }
        }
        look(handle.state().as_str());
    }
}

// promise: ST-10
#[tokio::test(start_paused = true)]
async fn exactly_one_state_is_shown_whatever_becomes_of_the_breaker() {
    let rng = &mut StdRng::seed_from_u64(7);
    for _ in 0..20 {
        let board = Board::default();
        let sink = metrics::with_local_recorder(&board, || breaker("payments"));
        assert_eq!(board.shown(), ["closed"]);
        let layer = BreakerLayer::http().on_event(sink);
        live(&layer, 200, rng, |state| assert_eq!(board.shown(), [state])).await;
    }
}

// promise: ST-10
#[test]
fn a_breaker_that_takes_the_name_of_another_never_shows_two_states() {
    let board = Board::default();
    let layer = || {
        let sink = metrics::with_local_recorder(&board, || breaker("payments"));
        BreakerLayer::http().on_event(sink)
    };
    layer().handle().force_open();
    assert_eq!(board.shown(), ["forced_open"]);
    let _layer = layer();
    assert_eq!(board.shown(), ["closed"]);
}

// promise: ST-10
#[tokio::test(start_paused = true)]
async fn exactly_one_state_is_shown_in_whatever_order_transitions_are_heard() {
    let rng = &mut StdRng::seed_from_u64(7);
    let mut seen = 0;
    for _ in 0..50 {
        let kept = Arc::default();
        let layer = BreakerLayer::http().on_event(keep(&kept));
        live(&layer, 60, rng, |_| {}).await;
        let mut events = kept.lock().unwrap().clone();
        // Some are a little late, or all come in any order.
        let late = *[1, 3, events.len().max(1)].get(seen % 3).unwrap();
        events.chunks_mut(late).for_each(|chunk| chunk.shuffle(rng));

        let board = Board::default();
        let sink = metrics::with_local_recorder(&board, || breaker("payments"));
        let mut newest = (0, "closed");
        for event in &events {
            sink(event);
            newest = newest.max(number(event).unwrap_or_default());
            assert_eq!(board.shown(), [newest.1]);
            seen += usize::from(number(event).is_some());
        }
        assert_eq!(board.shown(), [layer.handle().state().as_str()]);
    }
    assert!(seen > 300, "{seen}");
}

// promise: ST-10
#[test]
fn threads_that_tell_at_once_never_show_two() {
    let kept = Arc::default();
    let layer = BreakerLayer::http().on_event(keep(&kept));
    let handle = layer.handle();
    for _ in 0..1_000 {
        handle.force_open();
        handle.force_closed();
        handle.release();
    }
    let events = kept.lock().unwrap().clone();
    let events: Vec<_> = events.iter().filter(|it| number(it).is_some()).collect();
    assert_eq!(events.len(), 3_000);

    let board = Board::default();
    let sink = metrics::with_local_recorder(&board, || breaker("payments"));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let tellers: Vec<_> = (0..3)
            .map(|teller| {
                let (events, sink) = (&events, &sink);
                scope.spawn(move || {
                    let own = events.iter().skip(teller).step_by(3);
                    own.for_each(|event| sink(event));
                })
            })
            .collect();
        scope.spawn(|| {
            while !over.load(Relaxed) {
                assert!(board.shown().len() <= 1);
            }
        });
        let told: Vec<_> = tellers.into_iter().map(ScopedJoinHandle::join).collect();
        over.store(true, Relaxed);
        assert!(told.iter().all(Result::is_ok));
    });
    assert_eq!(board.shown(), [handle.state().as_str()]);
}

// promise: ST-10
#[tokio::test(start_paused = true)]
async fn breakers_with_keys_are_shown_only_by_choice_and_each_by_itself() {
    let board = Board::default();
    let _recorder = metrics::set_default_local_recorder(&board);
    let mut layers = [
        (
            BreakerLayer::http().on_event(breaker("payments")),
            &[][..],
            &[][..],
        ),
        (
            BreakerLayer::http().on_event(breaker_by_key("payments")),
            &["open"],
            &["closed"],
        ),
    ];
    for (layer, bad, good) in &mut layers {
        let layer = layer
            .clone()
            .by_key(|request: &Request<u16>| match request.body() {
                200 => "good",
                _ => "bad",
            });
        let mut service = layer.layer(service_fn(async |request: Request<u16>| {
            Ok::<_, BoxError>(Response::builder().status(*request.body()).body(())?)
        }));
        for status in [503, 503, 200, 503, 503, 503, 503] {
            let request = Request::new(status);
            let _ = service.ready().await.unwrap().call(request).await;
        }
        assert_eq!(
            (board.of("bad"), board.of("good")),
            (strings(bad), strings(good))
        );
        assert_eq!(board.shown(), [""; 0], "there is no one state");
    }
}

// promise: ST-10
#[tokio::test(start_paused = true)]
async fn of_a_key_that_is_forgotten_a_new_breaker_is_shown() {
    let board = Board::default();
    let _recorder = metrics::set_default_local_recorder(&board);
    let layer = BreakerLayer::http()
        .by_key(|request: &Request<&'static str>| *request.body())
        .on_event(breaker_by_key("payments"));
    let mut service = layer.layer(service_fn(async |_| {
        Ok::<_, BoxError>(Response::builder().status(503).body(())?)
    }));
    let mut call = async |key| {
        let _ = service.ready().await.unwrap().call(Request::new(key)).await;
    };
    for _ in 0..5 {
        call("a").await;
    }
    assert_eq!(board.of("a"), ["open"]);
    advance(Duration::from_hours(1)).await;
    call("b").await;
    assert_eq!(layer.handles().all().len(), 1);
    assert_eq!(
        (board.of("a"), board.of("b")),
        (strings(&["closed"]), strings(&["closed"]))
    );
    // It comes again, and its transitions count from one again.
    for _ in 0..5 {
        call("a").await;
    }
    assert_eq!(board.of("a"), ["open"]);
}

// promise: ST-10
#[tokio::test(start_paused = true)]
async fn what_becomes_of_a_breaker_that_is_forgotten_is_not_shown_as_that_of_its_key() {
    let board = Board::default();
    let _recorder = metrics::set_default_local_recorder(&board);
    let layer = BreakerLayer::http()
        .by_key(|request: &Request<&'static str>| *request.body())
        .max_keys(1.try_into().unwrap())
        .on_event(breaker_by_key("payments"));
    let mut service = layer.layer(service_fn(async |request: Request<&'static str>| {
        if *request.body() == "a" {
            sleep(Duration::from_secs(1)).await;
        }
        Ok::<_, BoxError>(Response::builder().status(503).body(())?)
    }));
    let mut call = |key| service.call(Request::new(key));
    // They fail when their key has made room for another.
    let late: Vec<_> = (0..5).map(|_| tokio::spawn(call("a"))).collect();
    yield_now().await;
    call("b").await.unwrap();
    for call in late {
        call.await.unwrap().unwrap();
    }
    assert_eq!(board.of("a"), ["closed"]);
}

// promise: ST-10
#[test]
fn of_keys_that_are_forgotten_nothing_is_kept() {
    let layer = BreakerLayer::http()
        .by_key(|request: &Request<u32>| *request.body())
        .max_keys(1.try_into().unwrap())
        .on_event(breaker_by_key("payments"));
    let mut service = layer.layer(service_fn(|_: Request<u32>| {
        ready(Ok::<_, BoxError>(Response::new(())))
    }));
    let mut call = |key| {
        let mut call = task::spawn(service.call(Request::new(key)));
        assert!(call.poll().is_ready());
    };
    call(0);
    let grown = measure(|| (1..1_000).for_each(&mut call));
    assert!(grown.bytes_current < 10_000, "{grown:?}");
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}
