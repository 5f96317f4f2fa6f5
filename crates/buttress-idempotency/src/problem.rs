//! What is answered in place of a handler.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::{Refusal, StoreErrorKind, settings::Settings};

/// Why a request is not run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Problem {
    Refused(Refusal),
    /// For how much longer, if nothing is heard of who is at it.
    InFlight(Duration),
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
    fn refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::InFlight(_) => Refusal::InFlight,
            Self::Store(StoreErrorKind::ScopeFull) => Refusal::TooManyKeys,
            Self::Store(_) => Refusal::StoreDown,
        }
    }

    /// When to come back.
    fn retry_after(self) -> Option<u64> {
        match self {
            // Whoever is at it is heard of again within the lease; most are done long before.
            Self::InFlight(lease_left) => Some(lease_left.as_secs().clamp(1, 5)),
            Self::Store(StoreErrorKind::ScopeFull) | Self::Refused(_) => None,
            Self::Store(_) => Some(1),
        }
    }

    pub(crate) fn response(self, settings: &Settings) -> Response<Bytes> {
        let refusal = self.refusal();
        let mut response = problem(refusal.status(), refusal.code(), refusal.title());
        let headers = response.headers_mut();
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

/// A response with a problem of RFC 9457.
pub(crate) fn problem(
    status: StatusCode,
    code: &'static str,
    title: &'static str,
) -> Response<Bytes> {
    let body = Body {
        r#type: "about:blank",
        title,
        status: status.as_u16(),
        code,
    };
    let body = serde_json::to_vec(&body).expect("it is text and a number");
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = status;
    let problem = HeaderValue::from_static("application/problem+json");
    response.headers_mut().insert(header::CONTENT_TYPE, problem);
    response
}
