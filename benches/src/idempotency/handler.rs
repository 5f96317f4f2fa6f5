//! What is done once: a handler, as a server has it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower_service::Service;

/// How often a handler was run.
pub(crate) type Runs = Arc<AtomicU32>;

/// What it answers.
pub(crate) const ANSWER: &[u8] =
    br#"{"id":"8c1f3d5e","status":"booked","amount":{"currency":"EUR","cents":4200},"to":"bob"}"#;

/// Reads the request, and answers with a few headers and a short body.
#[derive(Clone, Debug)]
pub(crate) struct Handler(Runs);

impl Handler {
    pub(crate) fn new(runs: Runs) -> Self {
        Self(runs)
    }
}

impl<B> Service<Request<B>> for Handler
where
    B: http_body::Body<Data = Bytes, Error: Send> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            let body = request.into_body().collect().await;
            let is_whole = body.is_ok_and(|body| body.to_bytes().len() == 1024);
            let mut response = Response::new(Body::from(Bytes::copy_from_slice(ANSWER)));
            *response.status_mut() = if is_whole {
                StatusCode::CREATED
            } else {
                StatusCode::BAD_REQUEST
            };
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            let place = HeaderValue::from_static("/v1/payments/8c1f3d5e");
            headers.insert(LOCATION, place);
            Ok(response)
        })
    }
}

/// Answers at once, without a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done;

impl<B> Service<Request<B>> for Done {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        drop(request);
        let mut response = Response::default();
        *response.status_mut() = StatusCode::CREATED;
        ready(Ok(response))
    }
}
