//! Answers in gRPC: a response that is nothing but its trailers, sent as its head.

use std::time::Duration;

use buttress_core::Rejected;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, header};

use crate::failure::Failure;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

/// A status code of gRPC, and a text that says no more than it. The texts have nothing that would have to be
/// percent-encoded.
type Status = (u16, &'static str);

const UNKNOWN: Status = (2, "the call failed");
const DEADLINE_EXCEEDED: Status = (4, "the call took too long");
const RESOURCE_EXHAUSTED: Status = (8, "the quota is used up");
const UNAVAILABLE: Status = (14, "the service is not available at present");

pub(crate) fn answer(failure: &Failure) -> Response<Bytes> {
    let (status, pushback) = match failure {
        Failure::Refused(rejected) if rejected.limit().is_some() => {
            // It will never be let through as it is.
            let pushback = pushback(rejected).unwrap_or(-1);
            (RESOURCE_EXHAUSTED, Some(pushback))
        }
        Failure::Refused(rejected) => (UNAVAILABLE, pushback(rejected)),
        Failure::TimedOut => (DEADLINE_EXCEEDED, None),
        Failure::Other => (UNKNOWN, None),
    };
    let (code, text) = status;
    let mut response = Response::default();
    let headers = response.headers_mut();
    let grpc = HeaderValue::from_static("application/grpc");
    headers.insert(header::CONTENT_TYPE, grpc);
    headers.insert(STATUS, code.into());
    headers.insert(MESSAGE, HeaderValue::from_static(text));
    if let Some(pushback) = pushback {
        headers.insert(PUSHBACK, pushback.into());
    }
    response
}

/// When to come back, in milliseconds, rounded up: a signed number of 32 bits (gRPC proposal A6).
fn pushback(rejected: &Rejected) -> Option<i32> {
    let wait = rejected.retry_after()?.max(Duration::from_millis(1));
    let millis = wait.as_nanos().div_ceil(1_000_000);
    Some(i32::try_from(millis).unwrap_or(i32::MAX))
}
