//! What the user sets.

use std::{sync::Arc, time::Duration};

use buttress_core::{Events, Rejected};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Response, StatusCode, header};

use crate::{Event, Policy, record::StoredResponse, recover::Recover};

/// What becomes of a request whose key's earlier run has an unknown outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lapse {
    /// It is answered with 409 until it is known what came of the earlier run, or the record expires.
    #[default]
    Refuse,
    /// It is run again, though it may then have its effects twice.
    Rerun,
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(crate) struct Settings {
    pub(crate) methods: Vec<Method>,
    pub(crate) required: bool,
    pub(crate) ttl: Duration,
    pub(crate) lease: Duration,
    pub(crate) ceiling: Duration,
    pub(crate) store_timeout: Duration,
    pub(crate) lapse: Lapse,
    pub(crate) recover: Option<Recover>,
    /// How long a duplicate waits for the answer to the first request; nothing if it is refused.
    pub(crate) wait: Option<Duration>,
    /// Does the handler say from when on its effects are seen?
    pub(crate) explicit_arm: bool,
    pub(crate) release_5xx: bool,
    /// Up to how many bytes a body of JSON is compared as such; nothing if its bytes are.
    pub(crate) canonical_json: Option<usize>,
    pub(crate) max_response: usize,
    pub(crate) replayed: Vec<HeaderName>,
    pub(crate) fail_open: bool,
    pub(crate) policy_url: Option<Arc<str>>,
    pub(crate) events: Events<Event>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            ttl: Duration::from_hours(24),
            lease: Duration::from_secs(30),
            ceiling: Duration::from_mins(10),
            store_timeout: Duration::from_secs(2),
            lapse: Lapse::Refuse,
            recover: None,
            wait: None,
            explicit_arm: false,
            release_5xx: false,
            canonical_json: None,
            max_response: 1 << 20,
            replayed: Vec::new(),
            fail_open: false,
            policy_url: None,
            events: Events::none(),
        }
    }
}

/// Headers that belong to one response or one connection, or to the one who asked: never kept.
static NEVER: [HeaderName; 14] = [
    header::SET_COOKIE,
    header::AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::WWW_AUTHENTICATE,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::DATE,
    header::CONTENT_LENGTH,
];

impl Settings {
    pub(crate) fn policy(&self) -> Policy {
        let mut policy = Policy::default();
        policy.methods.clone_from(&self.methods);
        policy.required = self.required;
        policy.ttl = self.ttl;
        policy.wait = self.wait.unwrap_or_default();
        policy.reruns = self.lapse == Lapse::Rerun;
        policy.fails_open = self.fail_open;
        policy.releases_5xx = self.release_5xx;
        policy.canonical_json_limit = self.canonical_json.map(|bytes| bytes as u64);
        policy.response_limit = self.max_response as u64;
        policy
    }

    /// Up to how many bytes the body of a request with these headers is compared as JSON, if it is at all.
    pub(crate) fn json_limit(&self, headers: &HeaderMap) -> Option<usize> {
        let limit = self.canonical_json?;
        let content_type = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let media_type = content_type.split(';').next()?.trim().to_ascii_lowercase();
        let is_json = media_type == "application/json" || media_type.ends_with("+json");
        is_json.then_some(limit)
    }

    /// How long a claim is remembered if nothing more is heard of it: an outcome that is unknown as long as one that is
    /// known, from when nobody is at it any more. Its lease is renewed until the ceiling, and a bit behind it.
    pub(crate) fn ttl_of_claim(&self) -> Duration {
        let held = self.ceiling.saturating_add(self.lease.saturating_mul(2));
        held.saturating_add(self.ttl)
    }

    /// Is a response kept? Not one that says that the handler did not run, or that it should be asked again. A handler that
    /// was armed has run: what was refused is something that it has asked for itself.
    pub(crate) fn is_kept<B>(&self, response: &Response<B>, armed: bool) -> bool {
        const AGAIN: &[StatusCode] = &[
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::TOO_EARLY,
            StatusCode::TOO_MANY_REQUESTS,
        ];
        let status = response.status();
        let refused = !armed && response.extensions().get::<Rejected>().is_some();
        let released = self.release_5xx && status.is_server_error();
        !(refused || released || AGAIN.contains(&status))
    }

    /// The pause before a store is asked again for a run of another process: 50 to 500 ms, and never the same for
    /// all who wait.
    pub(crate) fn poll_pause(&self) -> Duration {
        Duration::from_millis(rand::random_range(50..=500)).min(self.lease)
    }

    /// A response as it is kept: without the headers that are not replayed, and with this body.
    pub(crate) fn keep(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        body: Option<Bytes>,
    ) -> StoredResponse {
        let replayed = headers.iter().filter(|(name, _)| self.is_replayed(name));
        let headers = replayed.map(|(name, value)| {
            let value = Bytes::copy_from_slice(value.as_bytes());
            (name.as_str().to_owned(), value)
        });
        StoredResponse {
            status: status.as_u16(),
            headers: headers.collect(),
            body,
        }
    }

    /// Is a header of the first response in its replays too?
    fn is_replayed(&self, name: &HeaderName) -> bool {
        if NEVER.contains(name) {
            return false;
        }
        let known = [header::LOCATION, header::ETAG, header::LINK];
        name.as_str().starts_with("content-")
            || known.contains(name)
            || self.replayed.contains(name)
    }
}
