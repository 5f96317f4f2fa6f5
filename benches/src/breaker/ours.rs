//! Our layer, as its users write it.

use std::future::ready;
use std::io;
use std::num::NonZeroU32;
use std::time::Duration;

use buttress::breaker::BreakerLayer;
use buttress::{Applied, BoxError, Classify, Kind, Verdict};
use tower_layer::Layer;
use tower_service::Service;

use super::Window;
use crate::harness::call;
use crate::target::{Answer, Client, NUMBER, Request, Response, Target};

const FIVE: NonZeroU32 = NonZeroU32::new(5).expect("not zero");
const HUNDRED: NonZeroU32 = NonZeroU32::new(100).expect("not zero");
/// Longer than a run.
const HOUR: Duration = Duration::from_hours(1);

fn of<C>(layer: BreakerLayer<C>, window: Window) -> BreakerLayer<C> {
    match window {
        Window::InARow => layer.consecutive_only(FIVE),
        Window::Calls => layer.count_window(HUNDRED),
        Window::Time => layer,
    }
}

fn judged() -> BreakerLayer<impl Classify<u64> + Clone + Send> {
    BreakerLayer::new(judge)
}

fn judge(result: Result<&u64, &BoxError>) -> Verdict {
    match result {
        Ok(_) => Verdict::SUCCESS,
        Err(_) => Verdict::new(Kind::Transient, Applied::Maybe),
    }
}

pub(crate) fn numbers(
    window: Window,
    target: Target,
) -> impl Service<u64, Response: Answer> + Clone + Send {
    of(judged(), window).layer(target)
}

pub(crate) fn http(window: Window, target: Target) -> impl Service<Request, Response: Answer> {
    of(BreakerLayer::http(), window).layer(target)
}

/// It has seen five failures.
pub(crate) fn open(target: Target) -> impl Service<u64, Response: Answer> {
    let layer = judged().open_time(HOUR, HOUR);
    let failing = layer.layer(tower::service_fn(|_| ready(Err::<u64, _>(broken()))));
    fail(failing, || NUMBER);
    layer.layer(target)
}

/// As the other.
pub(crate) fn open_http(target: Target) -> impl Service<Request, Response: Answer> {
    let layer = BreakerLayer::http().open_time(HOUR, HOUR);
    let failing = layer.layer(tower::service_fn(|_| ready(Err::<Response, _>(broken()))));
    let client = Client::get();
    fail(failing, || client.request());
    layer.layer(target)
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

fn fail<S: Service<R>, R>(mut service: S, request: impl Fn() -> R) {
    for _ in 0..5 {
        // That the breaker is open now is seen by the calls that are measured.
        call(
            &mut service,
            request(),
            || panic!("it answers at once"),
            |_| (),
        );
    }
}
