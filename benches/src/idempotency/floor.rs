//! The least that it takes, written by hand.

use std::collections::HashMap;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower_service::Service;

use super::handler::{Handler, Runs};
use crate::target::{Answer, Request as Post, Target};

const KEY: &str = "idempotency-key";

/// Looks whether there is a key.
#[derive(Clone, Debug)]
struct Passing<S>(S);

pub(crate) fn passing(target: Target) -> impl Service<Post, Response: Answer> {
    Passing(target)
}

impl<S: Service<Post>> Service<Post> for Passing<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Post) -> S::Future {
        let has_key = request.method() == Method::POST && request.headers().contains_key(KEY);
        assert!(!has_key, "nobody is there who would do it once");
        self.0.call(request)
    }
}

/// Keeps a response by its key as long as the process lives, looks at no body, and ends with its client.
#[derive(Clone)]
struct Keeping {
    inner: Handler,
    records: Arc<Mutex<HashMap<HeaderValue, Option<Kept>>>>,
}

#[derive(Clone)]
struct Kept {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Kept {
    fn response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

pub(crate) fn keeping(
    runs: Runs,
) -> impl Service<Request<Body>, Response = Response<Body>, Future: Send> {
    Keeping {
        inner: Handler::new(runs),
        records: Arc::default(),
    }
}

impl Keeping {
    fn records(&self) -> MutexGuard<'_, HashMap<HeaderValue, Option<Kept>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(mut self, request: Request<Body>) -> Option<Response<Body>> {
        let key = request.headers().get(KEY)?.clone();
        let known = self.records().get(&key).cloned();
        if let Some(kept) = known {
            // Nothing if somebody is at it.
            let mut response = kept?.response();
            let marker = HeaderValue::from_static("true");
            response
                .headers_mut()
                .insert("idempotency-replayed", marker);
            return Some(response);
        }
        self.records().insert(key.clone(), None);
        let response = self.inner.call(request).await.ok()?;
        let (head, body) = response.into_parts();
        let kept = Kept {
            status: head.status,
            headers: head.headers,
            body: body.collect().await.ok()?.to_bytes(),
        };
        self.records().insert(key, Some(kept.clone()));
        Some(kept.response())
    }
}

impl Service<Request<Body>> for Keeping {
    type Response = Response<Body>;
    type Error = &'static str;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, &'static str>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), &'static str>> {
        // A handler is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let clone = self.clone();
        let this = mem::replace(self, clone);
        Box::pin(async move { this.answer(request).await.ok_or("it was not done") })
    }
}
