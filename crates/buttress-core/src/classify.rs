//! Judge a call: one trait, and the two protocols.

use std::{error::Error, io};

use http::{HeaderMap, Response, StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use tower_service::Service;

use crate::{Applied, BoxError, Hint, Kind, Rejected, Verdict, chain, hint};

/// Says what became of a call. A function or closure of the same shape is one too.
///
/// Prefer a function: the compiler cannot see yet that an `async` block which holds such a closure may be spawned
/// ("implementation of `FnOnce` is not general enough").
pub trait Classify<Res> {
    /// Judges the response, or the error in its place.
    fn classify(&self, result: Result<&Res, &BoxError>) -> Verdict;

    /// Judges the trailers of a response whose head was judged before; by default they say nothing against it.
    fn classify_trailers(&self, _trailers: &HeaderMap) -> Verdict {
        Verdict::SUCCESS
    }
}

impl<Res, F> Classify<Res> for F
where
    F: Fn(Result<&Res, &BoxError>) -> Verdict,
{
    fn classify(&self, result: Result<&Res, &BoxError>) -> Verdict {
        self(result)
    }
}

/// Judges HTTP responses by their status (RFC 9110, RFC 6585) and errors by their cause.
///
/// | what came back | kind |
/// |---|---|
/// | 1xx, 2xx, 3xx | success |
/// | 408, 425, 500, 502, 503, 504 | transient |
/// | 429 | throttled |
/// | every other 4xx and 5xx, 501 and 505 among them | permanent |
/// | an error | see [`error`] |
///
/// A success was applied; any other status leaves it open ([`Applied::Maybe`]). The hint is that of [`hint::http`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Http;

impl<B> Classify<Response<B>> for Http {
    fn classify(&self, result: Result<&Response<B>, &BoxError>) -> Verdict {
        let response = match result {
            Ok(response) => response,
            Err(cause) => return error(&**cause),
        };
        let kind = match response.status() {
            status if status.as_u16() < 400 => return Verdict::SUCCESS,
            StatusCode::TOO_MANY_REQUESTS => Kind::Throttled,
            StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_EARLY
            | StatusCode::INTERNAL_SERVER_ERROR
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Kind::Transient,
            _ => Kind::Permanent,
        };
        Verdict::new(kind, Applied::Maybe).with_hint(hint::http(response.headers()))
    }
}

/// Judges gRPC responses by the status in their head, as a response without a message has it ("trailers-only"), or in
/// their trailers.
///
/// | status | kind | applied |
/// |---|---|---|
/// | none yet, `OK` | success | yes |
/// | `UNAVAILABLE` | transient | no: it is the server's word for "not done, come again" (gRPC proposal A6) |
/// | `RESOURCE_EXHAUSTED` | throttled | no, if the server says when to come back, else maybe |
/// | `DEADLINE_EXCEEDED`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS` | transient | maybe |
/// | `CANCELLED` | ignored | maybe |
/// | every other | permanent | maybe |
/// | a bare HTTP error of a proxy | as gRPC's [mapping of HTTP statuses] has it | maybe |
/// | an error | see [`error`] | |
///
/// The hint is that of [`hint::grpc`].
///
/// [mapping of HTTP statuses]: https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md
#[derive(Clone, Copy, Debug, Default)]
pub struct Grpc;

impl<B> Classify<Response<B>> for Grpc {
    fn classify(&self, result: Result<&Response<B>, &BoxError>) -> Verdict {
        let response = match result {
            Ok(response) => response,
            Err(cause) => return error(&**cause),
        };
        match (grpc_status(response.headers()), response.status()) {
            (Some(status), _) => grpc(status, hint::grpc(response.headers())),
            (None, StatusCode::OK) => Verdict::SUCCESS,
            (None, status) => {
                let kind = match status {
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                        Kind::Permanent
                    }
                    // `UNAVAILABLE`, `INTERNAL` or `UNKNOWN`.
                    _ => Kind::Transient,
                };
                Verdict::new(kind, Applied::Maybe).with_hint(hint::grpc(response.headers()))
            }
        }
    }

    fn classify_trailers(&self, trailers: &HeaderMap) -> Verdict {
        grpc_status(trailers).map_or(Verdict::SUCCESS, |status| {
            grpc(status, hint::grpc(trailers))
        })
    }
}

fn grpc(status: &[u8], hint: Hint) -> Verdict {
    let told = matches!(hint, Hint::Pushback(_));
    let (kind, applied) = match status {
        b"0" => return Verdict::SUCCESS,
        b"1" => (Kind::Ignored, Applied::Maybe),
        b"14" => (Kind::Transient, Applied::No),
        b"8" if told => (Kind::Throttled, Applied::No),
        b"8" => (Kind::Throttled, Applied::Maybe),
        b"2" | b"4" | b"13" | b"15" => (Kind::Transient, Applied::Maybe),
        _ => (Kind::Permanent, Applied::Maybe),
    };
    Verdict::new(kind, applied).with_hint(hint)
}

fn grpc_status(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get("grpc-status").map(http::HeaderValue::as_bytes)
}

/// Judges the error of an HTTP client by what caused it, however deep.
///
/// | cause | kind | applied |
/// |---|---|---|
/// | a layer on this side refused ([`Rejected`]) | ignored | no |
/// | connecting failed, the name lookup included | transient | no |
/// | HTTP/2 `REFUSED_STREAM`, or a GOAWAY that leaves this stream out | transient | no |
/// | the caller's own body failed, or the request cannot be sent as it is | ignored | maybe |
/// | everything else, errors of unknown types included | transient | maybe |
///
/// It knows the errors of hyper 1, hyper-util 0.1, h2 0.4 and `std::io`, and of everything that has them as its
/// [source](Error::source), reqwest and tonic among them. Another major version's are of an unknown type.
#[must_use]
pub fn error(error: &(dyn Error + 'static)) -> Verdict {
    let verdict = |cause: &(dyn Error + 'static)| {
        if let Some(rejected) = cause.downcast_ref::<Rejected>() {
            return Some(rejected.verdict());
        }
        if never_sent(cause) {
            return Some(Verdict::new(Kind::Transient, Applied::No));
        }
        by_caller(cause).then_some(Verdict::new(Kind::Ignored, Applied::Maybe))
    };
    let known = chain(error).find_map(verdict);
    known.unwrap_or(Verdict::new(Kind::Transient, Applied::Maybe))
}

/// The error of hyper-util's connector when a name lookup or a connection fails. hyper-util does not export its name, but
/// a client that uses the connector without hyper-util's client, as tonic does, returns it bare.
type ConnectError = <HttpConnector as Service<Uri>>::Error;

fn never_sent(cause: &(dyn Error + 'static)) -> bool {
    if let Some(error) = cause.downcast_ref::<hyper_util::client::legacy::Error>() {
        error.is_connect()
    } else if cause.is::<ConnectError>() {
        true
    } else if let Some(error) = cause.downcast_ref::<h2::Error>() {
        // A GOAWAY ends only the streams above its last stream id with this error; the others go on, or end with an
        // `io::Error` when the connection does (RFC 9113, 6.8 and 8.7).
        error.is_remote()
            && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    } else if let Some(error) = cause.downcast_ref::<io::Error>() {
        error.kind() == io::ErrorKind::ConnectionRefused
    } else {
        false
    }
}

fn by_caller(cause: &(dyn Error + 'static)) -> bool {
    if let Some(error) = cause.downcast_ref::<hyper::Error>() {
        // This one means that the connection ended before a request in its queue could begin, or that its task was
        // dropped; hyper counts it among the caller's errors, and tells it apart by its text alone.
        error.is_user() && error.to_string() != "dispatch task is gone"
    } else if let Some(error) = cause.downcast_ref::<h2::Error>() {
        // A stream that this side has reset: its body has failed.
        error.is_reset() && !error.is_remote() && !error.is_library()
    } else {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::{HeaderName, HeaderValue};

    use super::*;

    fn http(status: u16) -> Verdict {
        Http.classify(Ok(&Response::builder().status(status).body(()).unwrap()))
    }

    fn grpc(headers: &[(&str, &str)]) -> Verdict {
        let mut response = Response::builder();
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        Grpc.classify(Ok(&response.body(()).unwrap()))
    }

    #[test]
    fn http_is_judged_by_its_status() {
        for status in 100..1_000 {
            let kind = match status {
                ..400 => Kind::Success,
                408 | 425 | 500 | 502 | 503 | 504 => Kind::Transient,
                429 => Kind::Throttled,
                _ => Kind::Permanent,
            };
            assert_eq!(http(status).kind, kind, "{status}");
            assert_ne!(http(status).applied, Applied::No, "{status} proves nothing");
        }
    }

    #[test]
    fn grpc_is_judged_by_the_status_in_the_head() {
        let status = |code: &str| {
            let verdict = grpc(&[("grpc-status", code)]);
            (verdict.kind, verdict.applied)
        };
        assert_eq!(grpc(&[]), Verdict::SUCCESS);
        assert_eq!(status("0"), (Kind::Success, Applied::Yes));
        assert_eq!(status("1"), (Kind::Ignored, Applied::Maybe));
        assert_eq!(status("8"), (Kind::Throttled, Applied::Maybe));
        assert_eq!(status("14"), (Kind::Transient, Applied::No));
        for code in ["2", "4", "13", "15"] {
            assert_eq!(status(code), (Kind::Transient, Applied::Maybe), "{code}");
        }
        for code in [
            "3", "5", "6", "7", "9", "10", "11", "12", "16", "99", "", "x",
        ] {
            assert_eq!(status(code), (Kind::Permanent, Applied::Maybe), "{code}");
        }
        let trailers =
            |headers: &HeaderMap| Classify::<Response<()>>::classify_trailers(&Grpc, headers);
        let ended = |code: &'static str| {
            let status = HeaderValue::from_static(code);
            trailers(&HeaderMap::from_iter([(
                HeaderName::from_static("grpc-status"),
                status,
            )]))
            .kind
        };
        assert_eq!(ended("0"), Kind::Success);
        assert_eq!(ended("13"), Kind::Transient);
        assert_eq!(ended("5"), Kind::Permanent);
        assert_eq!(trailers(&HeaderMap::new()), Verdict::SUCCESS);
        let told = grpc(&[("grpc-status", "8"), ("grpc-retry-pushback-ms", "20")]);
        assert_eq!((told.kind, told.applied), (Kind::Throttled, Applied::No));
        assert_eq!(told.hint, Hint::Pushback(Duration::from_millis(20)));
        for (status, kind) in [
            (302, Kind::Transient),
            (400, Kind::Transient),
            (401, Kind::Permanent),
            (403, Kind::Permanent),
            (429, Kind::Transient),
            (500, Kind::Transient),
            (503, Kind::Transient),
            (404, Kind::Permanent),
        ] {
            let answer = Response::builder().status(status).body(()).unwrap();
            assert_eq!(Grpc.classify(Ok(&answer)).kind, kind, "{status} of a proxy");
        }
    }

    #[test]
    fn a_refusal_is_ignored_and_says_when_to_come_back() {
        let wait = Duration::from_secs(9);
        let refusal: BoxError =
            io::Error::other(Rejected::new("breaker", "open").after(wait)).into();
        assert_eq!(
            error(&*refusal),
            Verdict::REFUSED.with_hint(Hint::After(wait))
        );
    }

    // promise: RT-22
    #[test]
    fn a_refused_connection_is_found_however_deep() {
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        let deep = io::Error::other(io::Error::other(refused));
        assert_eq!(error(&deep), Verdict::new(Kind::Transient, Applied::No));
        for kind in [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::TimedOut,
        ] {
            assert_eq!(
                error(&io::Error::from(kind)),
                Verdict::new(Kind::Transient, Applied::Maybe),
                "{kind}"
            );
        }
    }

    // promise: RT-22
    #[test]
    fn a_reason_that_did_not_come_from_the_peer_proves_nothing() {
        let made_here = h2::Error::from(h2::Reason::REFUSED_STREAM);
        assert_eq!(
            error(&made_here),
            Verdict::new(Kind::Transient, Applied::Maybe)
        );
    }

    // promise: RT-22
    #[test]
    fn another_major_version_s_error_may_have_been_applied() {
        let foreign = h2_03::Error::from(h2_03::Reason::REFUSED_STREAM);
        assert_eq!(
            error(&io::Error::other(foreign)),
            Verdict::new(Kind::Transient, Applied::Maybe)
        );
        let foreign = h2_03::Error::from(h2_03::Reason::REFUSED_STREAM);
        assert_eq!(
            error(&foreign),
            Verdict::new(Kind::Transient, Applied::Maybe)
        );
    }
}
