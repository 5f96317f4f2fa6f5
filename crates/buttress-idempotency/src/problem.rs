//! What is answered in place of a handler.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::{StoreErrorKind, settings::Settings};

/// Why a request is not run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Problem {
    KeyMissing,
    KeyInvalid,
    NoScope,
    InFlight(Duration),
    OutcomeUnknown,
    Mismatch,
    Store(StoreErrorKind),
}

#[derive(Serialize)]
struct Body {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
}

impl Problem {
    const fn facts(self) -> (StatusCode, &'static str, &'static str) {
        match self {
            Self::KeyMissing => (
                StatusCode::BAD_REQUEST,
                "idempotency-key-missing",
                "This request needs an Idempotency-Key",
            ),
            Self::KeyInvalid => (
                StatusCode::BAD_REQUEST,
                "idempotency-key-invalid",
                "The Idempotency-Key is not one of 1 to 255 visible ASCII characters",
            ),
            Self::NoScope => (
                StatusCode::FORBIDDEN,
                "idempotency-scope-missing",
                "It is not known whose Idempotency-Key this is",
            ),
            Self::InFlight(_) => (
                StatusCode::CONFLICT,
                "idempotency-in-flight",
                "A request with this Idempotency-Key is being processed",
            ),
            Self::OutcomeUnknown => (
                StatusCode::CONFLICT,
                "idempotency-outcome-unknown",
                "It is not known whether an earlier request with this Idempotency-Key was processed",
            ),
            Self::Mismatch => (
                StatusCode::UNPROCESSABLE_ENTITY,
                "idempotency-key-reused",
                "This Idempotency-Key belongs to another request",
            ),
            Self::Store(StoreErrorKind::ScopeFull) => (
                StatusCode::TOO_MANY_REQUESTS,
                "idempotency-too-many-keys",
                "Too many requests with an Idempotency-Key are remembered",
            ),
            Self::Store(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "idempotency-store-unavailable",
                "It cannot be told at present whether this request was processed before",
            ),
        }
    }

    /// When to come back.
    fn retry_after(self) -> Option<u64> {
        match self {
            // Whoever is at it is heard of again within the lease; most are done long before.
            Self::InFlight(lease_left) => Some(lease_left.as_secs().clamp(1, 5)),
            Self::Store(StoreErrorKind::ScopeFull) => Some(60),
            Self::Store(_) => Some(1),
            _ => None,
        }
    }

    pub(crate) fn response(self, settings: &Settings) -> Response<Bytes> {
        let (status, code, title) = self.facts();
        let body = Body {
            r#type: "about:blank",
            title,
            status: status.as_u16(),
            code,
        };
        let body = serde_json::to_vec(&body).expect("it is text and a number");
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        let problem = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, problem);
        if let Some(seconds) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(url) = &settings.policy_url
            && let Ok(link) = HeaderValue::try_from(format!("<{url}>; rel=\"describedby\""))
        {
            headers.insert(header::LINK, link);
        }
        response
    }
}
