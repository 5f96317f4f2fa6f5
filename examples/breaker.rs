//! A breaker from all sides: what it reports, what its operator can do, and a dry run of it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use buttress::{
    BoxError,
    breaker::{BreakerLayer, Event, Handle},
};
use http::Response;
use tower::{Service, ServiceBuilder, ServiceExt};

const OPEN_TIME: Duration = Duration::from_millis(500);

static IS_WELL: AtomicBool = AtomicBool::new(true);

/// The service. A real one is in `examples/payments`.
async fn bill(_: u32) -> Result<Response<()>, BoxError> {
    let status = if IS_WELL.load(Relaxed) { 200 } else { 503 };
    Ok(Response::builder().status(status).body(())?)
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let layer = BreakerLayer::http()
        .name("billing")
        .open_time(OPEN_TIME, OPEN_TIME)
        .on_event(|event| match event {
            Event::Transition { from, to, .. } => println!("  event: {from} -> {to}"),
            Event::Refused { shadow: true, .. } => println!("  event: this would be refused"),
            _ => {}
        });
    // A setter makes another layer, with a breaker of its own: set first, then take the handle.
    let handle = layer.handle();
    let service = ServiceBuilder::new().layer(&layer).service_fn(bill);

    println!("The service fails, and after the fifth time it is left in peace:");
    IS_WELL.store(false, Relaxed);
    calls(&service, 7).await;
    look(&handle);

    println!("It is well again. Three probes find that out, and then a part of the calls passes:");
    IS_WELL.store(true, Relaxed);
    tokio::time::sleep(OPEN_TIME).await;
    calls(&service, 6).await;
    look(&handle);

    println!("An operator takes it out of service, and puts it back:");
    handle.force_open();
    calls(&service, 1).await;
    handle.release();
    look(&handle);

    println!("A breaker in shadow mode refuses nothing, and says what it would have refused:");
    IS_WELL.store(false, Relaxed);
    let service = ServiceBuilder::new().layer(layer.shadow()).service_fn(bill);
    calls(&service, 7).await;
    Ok(())
}

/// Makes some calls, one after the other. Clones of a service share its breaker.
async fn calls<S>(service: &S, calls: u32)
where
    S: Service<u32, Response = Response<()>, Error = BoxError> + Clone,
{
    for number in 1..=calls {
        match service.clone().oneshot(number).await {
            Ok(response) => println!("  call {number}: {}", response.status()),
            Err(error) => println!("  call {number}: {error}"),
        }
    }
}

fn look(breaker: &Handle) {
    let now = breaker.snapshot();
    let (state, cause, percent) = (now.state, now.cause, now.percent);
    println!("  snapshot: {state} ({cause}), lets {percent} % of the calls pass\n");
}
