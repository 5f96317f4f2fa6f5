//! The layer: what the user sets, and what its services share.

use std::{
    fmt,
    future::Future,
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{HeaderName, Method, request::Parts};
use tower_layer::Layer;

use crate::{
    Event, Handle, Idempotency, Lapse, Policy, Recovered, Store, recover::Recover,
    settings::Settings, shared::Shared,
};

/// Does a request with an `Idempotency-Key` once, and gives its answer to every duplicate. See the [crate docs](crate) for
/// an example.
///
/// Every service that it makes, and every clone of it or of them, shares its store and its runs. A layer that a setter
/// returns shares its runs with none before: set first, then clone and take handles.
pub struct IdempotencyLayer<T, C> {
    store: T,
    scope: C,
    settings: Settings,
    shared: OnceLock<Arc<Shared<T>>>,
}

/// Says whose the key of a request is: a principal, a tenant. A function or closure of the same shape is one too.
///
/// Without it, one user would be given another's response by guessing his key.
pub trait Scope {
    /// Whose it is; nothing if that is not known, and then the request is refused.
    fn scope(&self, parts: &Parts) -> Option<String>;
}

impl<F: Fn(&Parts) -> Option<String>> Scope for F {
    fn scope(&self, parts: &Parts) -> Option<String> {
        self(parts)
    }
}

/// All users share their keys. It is right only where there is one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Global;

impl Scope for Global {
    fn scope(&self, _: &Parts) -> Option<String> {
        Some(String::new())
    }
}

impl<T: Store + Clone, C> IdempotencyLayer<T, C> {
    /// Keeps records in this store. Each scope has its own keys: a key of one user is not that of another.
    #[must_use]
    pub fn new(store: T, scope: C) -> Self {
        Self {
            store,
            scope,
            settings: Settings::default(),
            shared: OnceLock::new(),
        }
    }

    fn change(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        Self {
            shared: OnceLock::new(),
            ..self
        }
    }

    fn shared(&self) -> &Arc<Shared<T>> {
        self.shared
            .get_or_init(|| Arc::new(Shared::new(self.store.clone(), self.settings.clone())))
    }

    /// Answers 400 to a request without a key; by default it is run as if this layer were not there.
    #[must_use]
    pub fn required(self) -> Self {
        self.change(|settings| settings.required = true)
    }

    /// Looks for keys in requests with these methods, and passes all others on; by default POST and PATCH.
    #[must_use]
    pub fn methods(self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.change(|settings| settings.methods = methods.into_iter().collect())
    }

    /// Remembers a request for this time after it was done, or after its outcome became unknown; by default 24 hours. For
    /// payments take 72: a bug that is found on a Friday is mended on a Monday.
    #[must_use]
    pub fn ttl(self, ttl: Duration) -> Self {
        self.change(|settings| settings.ttl = ttl)
    }

    /// Takes a run for dead when its lease was not renewed for this time; by default 30 s. The layer renews it every third of
    /// that.
    #[must_use]
    pub fn lease(self, lease: Duration) -> Self {
        self.change(|settings| settings.lease = lease)
    }

    /// Renews the lease of a run for this time at most; by default 10 minutes. The handler is not stopped then, but its outcome
    /// is unknown once the lease is over, until it answers after all.
    ///
    /// A run that has answered by then, and is still sending its body, is done: the rest of the body goes to its own client,
    /// and replays have no body.
    #[must_use]
    pub fn ceiling(self, ceiling: Duration) -> Self {
        self.change(|settings| settings.ceiling = ceiling)
    }

    /// Says what becomes of a request whose earlier run has an unknown outcome; by default it is refused.
    #[must_use]
    pub fn on_lapse(self, lapse: Lapse) -> Self {
        self.change(|settings| settings.lapse = lapse)
    }

    /// Asks the world outside what came of an earlier run whose outcome is unknown, before [`on_lapse`](Self::on_lapse)
    /// applies; by default there is nobody to ask.
    ///
    /// `ask` is given the head of the duplicate, with its key, and may take its time: the client waits. It may be asked for
    /// several duplicates at the same time. If it says that the request was done, the body of this duplicate is the one that
    /// later ones are compared with: that of the first request is not known.
    #[must_use]
    pub fn recover<F, A>(self, ask: F) -> Self
    where
        F: Fn(Parts) -> A + Send + Sync + 'static,
        A: Future<Output = Recovered> + Send + 'static,
    {
        self.change(|settings| settings.recover = Some(Recover::new(ask)))
    }

    /// Has a duplicate wait for the answer to the first request, for this time at most, and only then answers 409; by default
    /// it is answered with 409 at once.
    #[must_use]
    pub fn wait(self, wait: Duration) -> Self {
        self.change(|settings| settings.wait = Some(wait))
    }

    /// Has the handler say with [`Lease::arm`](crate::Lease::arm) from when on it may have effects; by default it may have
    /// some from the beginning. A run that dies before that leaves the key free.
    #[must_use]
    pub fn explicit_arm(self) -> Self {
        self.change(|settings| settings.explicit_arm = true)
    }

    /// Frees the key when the handler answers with 5xx, so that a duplicate is run; by default such an answer is kept like any
    /// other, since it does not say that nothing was done.
    #[must_use]
    pub fn release_5xx(self) -> Self {
        self.change(|settings| settings.release_5xx = true)
    }

    /// Takes two JSON bodies of up to this many bytes for the same if they say the same; by default bodies are compared by
    /// their bytes.
    ///
    /// It is for requests with the content type `application/json`, or one that ends in `+json`. What counts is the canonical
    /// form of RFC 8785: the order of members does not matter, nor do white space, the escapes in a string, and how a number
    /// is written. `1` and `1.0` are equal. Numbers are compared to their last digit and not as doubles: 9007199254740993
    /// is not 9007199254740992.
    ///
    /// A body is compared by its bytes if it has more than `max_bytes`, is not valid, has a member twice or half of a
    /// surrogate pair, is nested more than 128 deep, or if the handler has not read it to its end.
    ///
    /// The handler reads its body as it comes; the layer keeps a copy of up to `max_bytes` until it has answered, and parses
    /// it then. To parse hostile JSON may take some 20 times its size in memory. When this is switched off again, duplicates
    /// of requests that were done with it are refused as other requests, until their keys have expired.
    #[must_use]
    pub fn canonical_json(self, max_bytes: usize) -> Self {
        self.change(|settings| settings.canonical_json = Some(max_bytes))
    }

    /// Keeps the body of a response up to this many bytes; by default 1 MiB. The replay of a larger one has no body; nor has
    /// that of one with trailers, or whose body has failed.
    #[must_use]
    pub fn max_response(self, bytes: usize) -> Self {
        self.change(|settings| settings.max_response = bytes)
    }

    /// Replays this header too; by default `content-*` but `content-length`, `location`, `etag` and `link`. Never replayed,
    /// whatever is said here, are `set-cookie`, `date`, credentials, and the headers of a connection.
    #[must_use]
    pub fn replay_header(self, name: HeaderName) -> Self {
        self.change(|settings| settings.replayed.push(name))
    }

    /// Waits this long for each operation of the store; by default 2 s. Then the store counts as down for this request.
    #[must_use]
    pub fn store_timeout(self, timeout: Duration) -> Self {
        self.change(|settings| settings.store_timeout = timeout)
    }

    /// Runs requests without protection while the store is down or full, and says so in their responses, with
    /// `Idempotency-Unprotected: true`; by default they are answered with 503. It is 503 all the same where the record of the
    /// key is damaged, since the request may have been done.
    #[must_use]
    pub fn fail_open(self) -> Self {
        self.change(|settings| settings.fail_open = true)
    }

    /// Links to the published policy in each refusal, with a `Link` of the relation `describedby`; by default there is no
    /// link. A URL that cannot be in a header is left out.
    #[must_use]
    pub fn policy_url(self, url: impl Into<Arc<str>>) -> Self {
        self.change(|settings| settings.policy_url = Some(url.into()))
    }

    /// Reports every [`Event`] to this sink too; by default nobody hears of them.
    #[must_use]
    pub fn on_event(self, sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        self.change(|settings| settings.events.add(sink))
    }

    /// What this layer does with keys, as it is set so far, to be published.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.settings.policy()
    }

    /// The layer's records, for their operator. Set everything else first: a layer that a setter returns has other runs.
    #[must_use]
    pub fn handle(&self) -> Handle<T> {
        Handle::new(self.shared().clone())
    }
}

impl<S, T: Store + Clone, C: Clone> Layer<S> for IdempotencyLayer<T, C> {
    type Service = Idempotency<S, T, C>;

    fn layer(&self, inner: S) -> Self::Service {
        Idempotency::new(inner, self.shared().clone(), self.scope.clone())
    }
}

impl<T: Store + Clone, C: Clone> Clone for IdempotencyLayer<T, C> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            scope: self.scope.clone(),
            settings: self.settings.clone(),
            shared: OnceLock::from(self.shared().clone()),
        }
    }
}

impl<T, C> fmt::Debug for IdempotencyLayer<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotencyLayer")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
