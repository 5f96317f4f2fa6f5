//! What says something of the server's health, and what does not.

use buttress_core::{BoxError, Classify, Hint, Kind, Verdict, classify, hint};
use http::{HeaderName, Response};

static REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Judges HTTP responses for a breaker: 500, 502, 503, 504 and errors of the transport are failures.
///
/// A 4xx says that the server is well enough to refuse, and is ignored; 429 is throttling, which is ignored too unless
/// [`throttling_fails`](crate::BreakerLayer::throttling_fails) says otherwise. 501 and 505 are ignored, and so is a
/// response that the handler did not make, but that comes from the memory of an idempotency layer
/// (`Idempotency-Replayed`).
///
/// The hint is that of [`hint::retry_after`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

impl<B> Classify<Response<B>> for Http {
    fn classify(&self, result: Result<&Response<B>, &BoxError>) -> Verdict {
        let verdict = classify::Http.classify(result);
        let Ok(response) = result else {
            return verdict;
        };
        // A quota that is used up, or is not, says nothing of how long a failing server will take.
        let verdict = match verdict.hint {
            Hint::None => verdict,
            _ => verdict.with_hint(hint::retry_after(response.headers())),
        };
        let client = response.status().is_client_error() && verdict.kind == Kind::Transient;
        // Cheaper than a lookup, as a response has few headers.
        let replayed = || response.headers().keys().any(|name| name == REPLAYED);
        if client || replayed() {
            Verdict {
                kind: Kind::Ignored,
                ..verdict
            }
        } else {
            verdict
        }
    }
}
