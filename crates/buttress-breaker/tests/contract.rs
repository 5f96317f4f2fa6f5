//! The promises of the layer over `tower-test`'s mock.

use std::{io, time::Duration};

use buttress_breaker::{BreakerLayer, State};
use buttress_core::{Applied, BoxError, Kind, Rejected, Verdict};
use tower::{Layer, Service, ServiceExt, service_fn};

fn classify(result: Result<&u32, &BoxError>) -> Verdict {
    match result {
        Ok(0) => Verdict::SUCCESS,
        Ok(1) => Verdict::new(Kind::Permanent, Applied::Maybe),
        _ => Verdict::new(Kind::Transient, Applied::Maybe),
    }
}

#[tokio::test(start_paused = true)]
async fn smoke() {
    let layer = BreakerLayer::new(classify)
        .name("cards")
        .on_event(|event| println!("{event:?}"));
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |answer: u32| Ok::<_, io::Error>(answer)));
    for answer in [0, 2, 2, 2, 2, 2] {
        service.clone().oneshot(answer).await.unwrap();
    }
    assert_eq!(handle.state(), State::Open);
    let error = service.clone().oneshot(0).await.unwrap_err();
    println!("{error}");
    assert!(Rejected::find(&*error).is_some());
    tokio::time::advance(Duration::from_secs(5)).await;
    for _ in 0..3 {
        service.clone().oneshot(0).await.unwrap();
    }
    assert_eq!(handle.state(), State::Closed);
    let mut n = 0;
    for _ in 0..1000 {
        n += u32::from(service.clone().oneshot(0).await.is_ok());
    }
    println!("{n} {:?}", handle.snapshot());
    tokio::time::advance(Duration::from_secs(5)).await;
    service.clone().oneshot(0).await.unwrap();
    println!("{:?}", handle.snapshot());
}
