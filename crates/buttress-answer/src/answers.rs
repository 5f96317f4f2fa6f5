//! From an error to the answer that stands for it.

use std::{fmt, sync::Arc};

use buttress_core::BoxError;
use bytes::Bytes;
use http::{HeaderValue, Response, header};

use crate::{failure::Failure, grpc, problem};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

/// How errors are answered.
#[derive(Clone)]
pub(crate) struct Answers {
    pub(crate) protocol: Protocol,
    pub(crate) on_error: Option<Arc<OnError>>,
}

type OnError = dyn Fn(BoxError) -> Option<Response<Bytes>> + Send + Sync;

impl Answers {
    /// The answer to a request, which may have been one for the head alone.
    pub(crate) fn answer(&self, error: BoxError, head_only: bool) -> Response<Bytes> {
        let failure = Failure::of(&*error);
        let users = match (&failure, &self.on_error) {
            (Failure::Other, Some(on_error)) => on_error(error),
            _ => None,
        };
        let mut response = users.unwrap_or_else(|| match self.protocol {
            Protocol::Http => problem::answer(&failure),
            Protocol::Grpc => grpc::answer(&failure),
        });
        if let Failure::Refused(rejected) = failure {
            response.extensions_mut().insert(rejected);
        }
        if head_only {
            behead(&mut response);
        }
        response
    }
}

/// Takes the body away and leaves the head as it would have been with it (RFC 9110, 9.3.2).
fn behead(response: &mut Response<Bytes>) {
    let body = std::mem::take(response.body_mut());
    if !body.is_empty() {
        let length = HeaderValue::from(body.len());
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, length);
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("protocol", &self.protocol)
            .field("on_error", &self.on_error.is_some())
            .finish()
    }
}
