//! The client: one key for each call, however often it is sent.
//!
//! # Example
//!
//! A client that retries its payments, around any service that takes `http` requests:
//!
//! ```
//! use buttress_idempotency::IdempotencyKeyLayer;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let http_client = service_fn(async |request: Request<String>| {
//! #     assert!(request.headers().contains_key("idempotency-key"));
//! #     Ok::<_, std::io::Error>(Response::new(String::new()))
//! # });
//! let client = ServiceBuilder::new()
//!     .layer(IdempotencyKeyLayer::new())
//!     // Here stands `RetryLayer::http()`, from `buttress-retry`: all that it sends has the key of the call.
//!     .service(http_client);
//!
//! let payment = Request::post("http://pay.example/payments").body("amount=3".to_owned())?;
//! client.oneshot(payment).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What a key is for
//!
//! A call is what goes through this layer once. A program that makes it again, after a crash or because a user has pressed a
//! button twice, makes another call, with another key, unless it sets the `Idempotency-Key` itself: one that is there stays
//! as it is. For a call that outlives the process, write the key down first, and set it.
//!
//! The keys that this layer makes are marked as sensitive: `Debug` does not show them, and HTTP/2 keeps them out of its
//! tables.
//!
//! # What it asks of the server
//!
//! The server has to know keys. The retry layer takes a key for the server's word that two requests with it are done once,
//! and sends again what may have been done; a server that does not look at keys would do it twice. A client of several
//! servers gives keys to those that know them:
//!
//! ```
//! use buttress_idempotency::IdempotencyKeyLayer;
//! use http::{Method, Request};
//!
//! let payments = |request: &Request<String>| {
//!     request.uri().host() == Some("pay.example") && request.method() == Method::POST
//! };
//! let layer = IdempotencyKeyLayer::new().keyed(payments);
//! # tower::Layer::layer(&layer, ());
//! ```
//!
//! # Defaults
//!
//! | knob | default | from |
//! |---|---|---|
//! | [`methods`](IdempotencyKeyLayer::methods), [`keyed`](IdempotencyKeyLayer::keyed) | POST and PATCH | the draft |
//! | [`v7`](IdempotencyKeyLayer::v7) | off: keys are UUIDs of version 4, from the random numbers of the operating system | RFC 9562 |
//!
//! The field is that of [draft-ietf-httpapi-idempotency-key-header-07], and its value a string: `"8e03978e-…"`, quotes
//! included.
//!
//! # State
//!
//! There is none: all layers of a process draw their keys from one source.
//!
//! # Errors
//!
//! Errors of the service below pass as they are. A request with so many headers that there is no room for another goes
//! without a key.
//!
//! # Panics
//!
//! When the operating system has no random numbers to give.
//!
//! # Order in a stack
//!
//! Above the retry layer. Below it every attempt would have a key of its own, and the server could not know that they are one
//! call. `RetryLayer` would see no key then, and would not send again what may have been done.
//!
//! # Redirects
//!
//! A key that was made for one origin should not be shown to another. hyper-util's client follows no redirects. For clients
//! that do, it depends on the order:
//!
//! | who follows | then |
//! |---|---|
//! | tower-http's `FollowRedirect` above this layer | each request has a key of its own. That is right for the same origin too: a server knows a key by the path that it came to first |
//! | tower-http's `FollowRedirect` below it | the key goes to wherever the redirect leads: put it above |
//! | reqwest, by itself | the key goes to wherever the redirect leads: reqwest drops the credentials that it knows, and this is none |
//!
//! No layer above reqwest can see that, so reqwest has to be told. With this policy it hands a redirect to another origin back
//! to the caller, and follows the others:
//!
//! ```
//! use reqwest::{
//!     Url,
//!     redirect::{Action, Attempt, Policy},
//! };
//!
//! fn within_the_origin(attempt: Attempt<'_>) -> Action {
//!     let from = attempt.previous().last().map(Url::origin);
//!     if from == Some(attempt.url().origin()) {
//!         Policy::default().redirect(attempt)
//!     } else {
//!         attempt.stop()
//!     }
//! }
//!
//! let policy = Policy::custom(within_the_origin);
//! let client = reqwest::Client::builder().redirect(policy).build()?;
//! # Ok::<_, reqwest::Error>(())
//! ```
//!
//! [draft-ietf-httpapi-idempotency-key-header-07]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Method, Request};
use tower_layer::Layer;
use tower_service::Service;
use uuid::Uuid;

use crate::key;

/// Gives each POST and PATCH a key, unless it has one. See the [module](self) for an example.
#[derive(Clone)]
pub struct IdempotencyKeyLayer<K = PostAndPatch> {
    keyed: K,
    version: Version,
}

/// Says which requests get a key. A function or closure of the same shape is one too.
pub trait Keyed<Req> {
    /// Does it get one, if it has none?
    fn keyed(&self, request: &Req) -> bool;
}

/// POST and PATCH get a key.
#[derive(Clone, Copy, Debug, Default)]
pub struct PostAndPatch;

impl<B> Keyed<Request<B>> for PostAndPatch {
    fn keyed(&self, request: &Request<B>) -> bool {
        matches!(*request.method(), Method::POST | Method::PATCH)
    }
}

/// Requests with one of these methods get a key.
#[derive(Clone, Debug)]
pub struct Methods(Arc<[Method]>);

impl<B> Keyed<Request<B>> for Methods {
    fn keyed(&self, request: &Request<B>) -> bool {
        self.0.contains(request.method())
    }
}

impl<Req, F: Fn(&Req) -> bool> Keyed<Req> for F {
    fn keyed(&self, request: &Req) -> bool {
        self(request)
    }
}

/// The versions of UUIDs that are made.
#[derive(Clone, Copy, Debug)]
enum Version {
    V4,
    V7,
}

impl Version {
    /// A new key, as a string of structured fields.
    fn key(self) -> HeaderValue {
        let uuid = match self {
            Self::V4 => Uuid::new_v4(),
            Self::V7 => Uuid::now_v7(),
        };
        let mut text = [b'"'; 38];
        uuid.hyphenated().encode_lower(&mut text[1..37]);
        let mut value = HeaderValue::from_bytes(&text).expect("it is visible ASCII");
        value.set_sensitive(true);
        value
    }
}

impl IdempotencyKeyLayer {
    /// Gives each POST and PATCH a key.
    #[must_use]
    pub fn new() -> Self {
        Self {
            keyed: PostAndPatch,
            version: Version::V4,
        }
    }
}

impl Default for IdempotencyKeyLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> IdempotencyKeyLayer<K> {
    /// Gives a key to requests with one of these methods; by default to POST and PATCH.
    ///
    /// `RetryLayer::http()` looks for a key only at POST and PATCH. A request with another method that is not idempotent is
    /// sent again only if that layer's `idempotent` says so.
    #[must_use]
    pub fn methods(
        self,
        methods: impl IntoIterator<Item = Method>,
    ) -> IdempotencyKeyLayer<Methods> {
        self.keyed(Methods(methods.into_iter().collect()))
    }

    /// Gives a key to the requests for which this says so; by default to POST and PATCH. See the [module](self) for an example.
    #[must_use]
    pub fn keyed<F>(self, keyed: F) -> IdempotencyKeyLayer<F> {
        IdempotencyKeyLayer {
            keyed,
            version: self.version,
        }
    }

    /// Makes UUIDs of version 7, which sort by the time at which they were made; that is cheaper for a server that keeps keys
    /// in an index as they are. By default they are of version 4, and tell nothing.
    ///
    /// Whoever sees one knows the millisecond of the call. The rest is random, but the keys that this process makes within one
    /// millisecond are counted on from a random number.
    #[must_use]
    pub fn v7(mut self) -> Self {
        self.version = Version::V7;
        self
    }
}

impl<S, K: Clone> Layer<S> for IdempotencyKeyLayer<K> {
    type Service = IdempotencyKey<S, K>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyKey {
            inner,
            keyed: self.keyed.clone(),
            version: self.version,
        }
    }
}

impl<K> fmt::Debug for IdempotencyKeyLayer<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKeyLayer")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The service of an [`IdempotencyKeyLayer`]. See the [module](self) for an example.
#[derive(Clone)]
pub struct IdempotencyKey<S, K = PostAndPatch> {
    inner: S,
    keyed: K,
    version: Version,
}

impl<B, S, K> Service<Request<B>> for IdempotencyKey<S, K>
where
    S: Service<Request<B>>,
    K: Keyed<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if !request.headers().contains_key(&key::FIELD) && self.keyed.keyed(&request) {
            // A head that has no room for it goes without, and is not sent again.
            let _ = request
                .headers_mut()
                .try_insert(&key::FIELD, self.version.key());
        }
        self.inner.call(request)
    }
}

impl<S: fmt::Debug, K> fmt::Debug for IdempotencyKey<S, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyKey")
            .field("inner", &self.inner)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future, iter};

    use http::{HeaderName, header::HeaderMap};
    use tower::service_fn;

    use super::*;
    use crate::Key;

    /// The headers that a request arrives with.
    fn sent<K>(layer: &IdempotencyKeyLayer<K>, request: Request<()>) -> HeaderMap
    where
        K: Keyed<Request<()>> + Clone,
    {
        let echo =
            |request: Request<()>| future::ready(Ok::<_, Infallible>(request.headers().clone()));
        let answer = layer.layer(service_fn(echo)).call(request);
        let Ok(headers) = answer.into_inner();
        headers
    }

    fn request(method: &str) -> Request<()> {
        Request::builder().method(method).body(()).unwrap()
    }

    fn uuid(headers: &HeaderMap) -> Uuid {
        let key = Key::of(headers).unwrap().expect("it has a key");
        key.as_str().parse().unwrap()
    }

    // promise: ID-24
    #[test]
    fn a_post_and_a_patch_get_a_key_and_nothing_else_does() {
        let layer = IdempotencyKeyLayer::new();
        for method in ["POST", "PATCH"] {
            let headers = sent(&layer, request(method));
            assert_eq!(uuid(&headers).get_version_num(), 4);
            let value = headers["idempotency-key"].to_str().unwrap();
            assert_eq!(value, format!("\"{}\"", uuid(&headers)));
            assert_eq!(headers.len(), 1);
        }
        for method in [
            "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", "post",
        ] {
            assert!(sent(&layer, request(method)).is_empty(), "{method}");
        }
    }

    // promise: ID-24
    #[test]
    fn the_methods_may_be_others_or_a_predicate() {
        let layer = IdempotencyKeyLayer::new().methods([Method::PUT]);
        assert_eq!(sent(&layer, request("PUT")).len(), 1);
        assert!(sent(&layer, request("POST")).is_empty());
        let payments = |request: &Request<()>| request.uri().path() == "/payments";
        let layer = IdempotencyKeyLayer::new().keyed(payments);
        assert!(sent(&layer, request("POST")).is_empty());
        let get = Request::get("/payments").body(()).unwrap();
        assert_eq!(sent(&layer, get).len(), 1);
    }

    // promise: ID-24
    #[test]
    fn a_key_that_the_caller_has_set_stays() {
        let layer = IdempotencyKeyLayer::new();
        for value in ["\"mine\"", "mine", "", "\"not one", "a, b"] {
            let mut request = request("POST");
            let value = HeaderValue::from_static(value);
            request
                .headers_mut()
                .append("Idempotency-KEY", value.clone());
            let headers = sent(&layer, request);
            assert_eq!(headers.get_all("idempotency-key").iter().count(), 1);
            assert_eq!(headers["idempotency-key"], value);
        }
    }

    // promise: ID-24
    #[test]
    fn keys_of_version_7_sort_by_their_time() {
        let layer = IdempotencyKeyLayer::new().v7();
        let keys: Vec<Uuid> = iter::repeat_with(|| uuid(&sent(&layer, request("POST"))))
            .take(1_000)
            .collect();
        assert!(keys.is_sorted());
        assert!(keys.iter().all(|key| key.get_version_num() == 7));
        let layer = layer.methods([Method::PUT]);
        assert_eq!(uuid(&sent(&layer, request("PUT"))).get_version_num(), 7);
    }

    // promise: ID-24
    #[test]
    fn no_two_keys_are_the_same() {
        let full = std::env::var_os("BUTTRESS_FULL").is_some();
        let number = if full { 10_000_000 } else { 100_000 };
        for version in [Version::V4, Version::V7] {
            let key = || {
                let value = version.key();
                let text = value.to_str().unwrap().trim_matches('"');
                text.parse::<Uuid>().unwrap().as_u128()
            };
            let mut keys: Vec<u128> = iter::repeat_with(key).take(number).collect();
            keys.sort_unstable();
            keys.dedup();
            assert_eq!(keys.len(), number, "{version:?}");
        }
    }

    // promise: ID-22
    #[test]
    fn a_key_is_not_shown_with_the_request_that_has_it() {
        let headers = sent(&IdempotencyKeyLayer::new(), request("POST"));
        let key = uuid(&headers).to_string();
        assert!(headers["idempotency-key"].is_sensitive());
        assert_eq!(format!("{headers:?}").find(&key), None);
    }

    // promise: ID-24
    #[test]
    fn a_head_without_room_for_a_key_goes_without() {
        let mut request = request("POST");
        let mut added = 0;
        let next = |added| HeaderName::try_from(format!("x-{added}")).unwrap();
        let value = HeaderValue::from_static("");
        while let Ok(false) = request.headers_mut().try_append(next(added), value.clone()) {
            added += 1;
        }
        assert_eq!(sent(&IdempotencyKeyLayer::new(), request).len(), added);
    }
}
