//! The fields `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers-10.

use std::{
    fmt::Write,
    iter,
    sync::{Arc, OnceLock},
    time::Duration,
};

use buttress_core::{QuotaPolicy, ServiceLimit};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sfv::{Integer, ItemSerializer, KeyRef, ListSerializer, key_ref};

pub(crate) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(crate) const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

const QUOTA: &KeyRef = key_ref("q");
const WINDOW: &KeyRef = key_ref("w");

/// What is the same in all that is said of the same policies.
#[derive(Debug)]
pub(crate) struct Written {
    names: Vec<Name>,
    /// The field `RateLimit-Policy`: an empty list is no field (RFC 9651, 3.1).
    policies: Option<HeaderValue>,
}

/// The name of a policy, how a field has it, and the problem once it was violated.
#[derive(Debug)]
struct Name {
    plain: sfv::String,
    item: String,
    problem: OnceLock<Bytes>,
}

/// Says in the two fields how the caller stands with these limiters, unless the response has one of the fields already:
/// they refer to each other by name.
pub(crate) fn add(headers: &mut HeaderMap, limits: &[ServiceLimit]) {
    if limits.is_empty() || headers.contains_key(POLICY) || headers.contains_key(LIMIT) {
        return;
    }
    // A limiter that was asked twice counts with what it said last.
    let is_last = |(place, limit): &(usize, &ServiceLimit)| {
        let mut later = limits[place + 1..].iter();
        !later.any(|later| later.policies.same(&limit.policies))
    };
    let last = limits.iter().enumerate().filter(is_last);
    let last = last.map(|(_, limit)| limit);
    let written = if let [limit] = limits {
        limit.policies.written(Written::of_one)
    } else {
        let policies = last.clone().flat_map(|limit| limit.policies.iter());
        Arc::new(Written::of(policies))
    };
    // `Retry-After` must not be before `t` (section 6), and this one is somebody else's.
    let with_reset = !headers.contains_key(header::RETRY_AFTER);
    written.write(headers, last, with_reset);
}

/// Says it of the limiter that refused.
pub(crate) fn add_refusal(headers: &mut HeaderMap, limit: &ServiceLimit) -> Arc<Written> {
    let written = limit.policies.written(Written::of_one);
    written.write(headers, iter::once(limit), true);
    written
}

impl Written {
    fn of_one(policies: &[QuotaPolicy]) -> Self {
        Self::of(policies.iter())
    }

    /// Of all policies, one limiter's after the other's.
    fn of<'a>(policies: impl Iterator<Item = &'a QuotaPolicy> + Clone) -> Self {
        let names = names(policies.clone());
        let mut list = ListSerializer::new();
        for (policy, name) in policies.zip(&names) {
            let _ = list
                .bare_item(&*name.plain)
                .parameter(QUOTA, integer(policy.tokens))
                .parameter(WINDOW, seconds(policy.window).max(Integer::from(1)));
        }
        let policies = list.finish().map(value);
        Self { names, policies }
    }

    /// What is to be said if the policy at this place is violated, which is made of its name.
    pub(crate) fn problem(&self, place: usize, make: fn(Option<&str>) -> Bytes) -> Bytes {
        let Some(name) = self.names.get(place) else {
            return make(None);
        };
        let problem = name.problem.get_or_init(|| make(Some(name.plain.as_str())));
        problem.clone()
    }

    /// Writes both fields, for those limiters whose policies these are.
    fn write<'a>(
        &self,
        headers: &mut HeaderMap,
        limits: impl Iterator<Item = &'a ServiceLimit>,
        with_reset: bool,
    ) {
        let mut rest = &self.names[..];
        let mut bounds = String::with_capacity(64);
        for limit in limits {
            let (names, later) = rest.split_at(limit.policies.len());
            rest = later;
            if let Some(name) = names.get(limit.bound) {
                let comma = if bounds.is_empty() { "" } else { ", " };
                let remaining = integer(limit.remaining);
                let _ = write!(bounds, "{comma}{};r={remaining}", name.item);
                if with_reset {
                    let _ = write!(bounds, ";t={}", seconds(limit.reset));
                }
            }
        }
        if let Some(policies) = &self.policies {
            headers.insert(POLICY, policies.clone());
        }
        if !bounds.is_empty() {
            headers.insert(LIMIT, value(bounds));
        }
    }
}

fn value(field: String) -> HeaderValue {
    HeaderValue::try_from(field).expect("structured fields are ASCII")
}

/// The names of policies as a field can have them, and no two the same.
fn names<'a>(policies: impl Iterator<Item = &'a QuotaPolicy>) -> Vec<Name> {
    let mut names: Vec<Name> = Vec::new();
    for policy in policies {
        let first = printable(&policy.name);
        let mut plain = first.clone();
        let mut number = 1;
        while names.iter().any(|name| name.plain == plain) {
            number += 1;
            plain = printable(&format!("{first}-{number}"));
        }
        let item = ItemSerializer::new().bare_item(&*plain).finish();
        let problem = OnceLock::new();
        names.push(Name {
            plain,
            item,
            problem,
        });
    }
    names
}

/// A name in ASCII (RFC 9651, 3.3.3).
fn printable(name: &str) -> sfv::String {
    let printable = |letter| match letter {
        ' '..='~' => letter,
        _ => '_',
    };
    let name: String = name.chars().map(printable).collect();
    sfv::String::try_from(name).expect("every letter is printable")
}

/// A number as a structured field can hold it: of 15 digits (RFC 9651, 3.3.1).
fn integer(number: u64) -> Integer {
    Integer::try_from(number).unwrap_or(Integer::MAX)
}

/// The time in seconds, rounded up.
pub(crate) fn seconds(time: Duration) -> Integer {
    let begun = u64::from(time.subsec_nanos() > 0);
    integer(time.as_secs().saturating_add(begun))
}
