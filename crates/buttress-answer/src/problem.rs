//! Answers in HTTP: a status, `Retry-After`, and a body in problem+json (RFC 9457).

use buttress_core::Rejected;
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use sfv::Integer;

use crate::{failure::Failure, fields};

/// Defined in section 5.1 of draft-ietf-httpapi-ratelimit-headers-10, with its title.
const QUOTA_EXCEEDED: &str = "https://iana.org/assignments/http-problem-types#quota-exceeded";
const QUOTA_EXCEEDED_TITLE: &str =
    "Request cannot be satisfied as assigned quota has been exceeded";

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Problem<'a> {
    r#type: &'static str,
    title: Option<&'static str>,
    status: u16,
    /// There are some or none in an answer to a quota, and in no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    violated_policies: Option<&'a [&'a str]>,
}

pub(crate) fn answer(failure: &Failure) -> Response<Bytes> {
    match failure {
        Failure::Refused(rejected) => refusal(rejected),
        Failure::TimedOut => blank(StatusCode::GATEWAY_TIMEOUT),
        Failure::Other => blank(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

fn refusal(rejected: &Rejected) -> Response<Bytes> {
    let wait = rejected.retry_after().map(fields::seconds);
    // RFC 9110, 10.2.3, has 0 mean now, which is what was just refused.
    let wait = wait.map(|wait| wait.max(Integer::from(1)));
    let Some(limit) = rejected.limit() else {
        let mut response = blank(StatusCode::SERVICE_UNAVAILABLE);
        retry_after(&mut response, wait);
        return response;
    };
    let mut response = Response::default();
    let written = fields::add_refusal(response.headers_mut(), limit);
    let problem = written.problem(limit.bound, quota_exceeded);
    fill(&mut response, StatusCode::TOO_MANY_REQUESTS, problem);
    // It must not be before `t` (section 6 of the draft).
    let reset = fields::seconds(limit.reset);
    retry_after(&mut response, wait.map(|wait| wait.max(reset)));
    response
}

fn quota_exceeded(violated: Option<&str>) -> Bytes {
    json(&Problem {
        r#type: QUOTA_EXCEEDED,
        title: Some(QUOTA_EXCEEDED_TITLE),
        status: StatusCode::TOO_MANY_REQUESTS.as_u16(),
        violated_policies: Some(violated.as_slice()),
    })
}

/// A problem that its status says all of.
fn blank(status: StatusCode) -> Response<Bytes> {
    let problem = json(&Problem {
        r#type: "about:blank",
        title: status.canonical_reason(),
        status: status.as_u16(),
        violated_policies: None,
    });
    let mut response = Response::default();
    fill(&mut response, status, problem);
    response
}

fn json(problem: &Problem<'_>) -> Bytes {
    let json = serde_json::to_vec(problem);
    json.expect("texts and numbers have a form in JSON").into()
}

fn fill(response: &mut Response<Bytes>, status: StatusCode, problem: Bytes) {
    *response.status_mut() = status;
    *response.body_mut() = problem;
    let problem_json = HeaderValue::from_static("application/problem+json");
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, problem_json);
}

fn retry_after(response: &mut Response<Bytes>, wait: Option<Integer>) {
    if let Some(wait) = wait {
        let wait = HeaderValue::from(i64::from(wait));
        response.headers_mut().insert(header::RETRY_AFTER, wait);
    }
}
