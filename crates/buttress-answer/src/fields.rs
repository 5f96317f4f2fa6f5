//! The fields `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers-10.

use std::{slice, sync::Arc, time::Duration};

use buttress_core::ServiceLimit;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use sfv::{Integer, KeyRef, ListSerializer, key_ref};

pub(crate) const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(crate) const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

const QUOTA: &KeyRef = key_ref("q");
const WINDOW: &KeyRef = key_ref("w");
const REMAINING: &KeyRef = key_ref("r");
const RESET: &KeyRef = key_ref("t");

/// Says in the two fields how the caller stands with these limiters, unless one of them is there: they speak of each
/// other by name.
pub(crate) fn add(headers: &mut HeaderMap, limits: &[ServiceLimit]) {
    if headers.contains_key(POLICY) || headers.contains_key(LIMIT) {
        return;
    }
    // A limiter that was asked twice counts with what it said last.
    let is_last = |(place, limit): &(usize, &ServiceLimit)| {
        let mut later = limits[place + 1..].iter();
        !later.any(|later| Arc::ptr_eq(&later.policies, &limit.policies))
    };
    let limits = limits.iter().enumerate().filter(is_last);
    let limits: Vec<&ServiceLimit> = limits.map(|(_, limit)| limit).collect();
    // `Retry-After` must not be before `t` (section 6), and this one is somebody else's.
    let with_reset = !headers.contains_key(header::RETRY_AFTER);
    write(headers, &limits, with_reset);
}

/// Says it of the limiter that refused, and returns the name of the policy that was violated.
pub(crate) fn add_refusal(headers: &mut HeaderMap, limit: &ServiceLimit) -> Option<String> {
    let names = write(headers, slice::from_ref(&limit), true);
    names.into_iter().nth(limit.bound).map(Into::into)
}

/// Writes both fields, and returns the names that all the policies have there.
fn write(headers: &mut HeaderMap, limits: &[&ServiceLimit], with_reset: bool) -> Vec<sfv::String> {
    let names = names(limits);
    let mut rest = &names[..];
    let (mut policies, mut bounds) = (ListSerializer::new(), ListSerializer::new());
    for limit in limits {
        let (names, later) = rest.split_at(limit.policies.len());
        rest = later;
        for (policy, name) in limit.policies.iter().zip(names) {
            let _ = policies
                .bare_item(&**name)
                .parameter(QUOTA, integer(policy.tokens))
                .parameter(WINDOW, seconds(policy.window).max(Integer::from(1)));
        }
        if let Some(name) = names.get(limit.bound) {
            let bound = bounds
                .bare_item(&**name)
                .parameter(REMAINING, integer(limit.remaining));
            if with_reset {
                let _ = bound.parameter(RESET, seconds(limit.reset));
            }
        }
    }
    for (field, list) in [(POLICY, policies), (LIMIT, bounds)] {
        // An empty list is no field (RFC 9651, 3.1).
        if let Some(list) = list.finish() {
            let value = HeaderValue::try_from(list);
            headers.insert(field, value.expect("structured fields are ASCII"));
        }
    }
    names
}

/// The names of all policies, one limiter's after the other's: as a field can have them, and no two the same.
fn names(limits: &[&ServiceLimit]) -> Vec<sfv::String> {
    let mut names: Vec<sfv::String> = Vec::new();
    for policy in limits.iter().flat_map(|limit| &*limit.policies) {
        let plain = printable(&policy.name);
        let mut name = plain.clone();
        let mut number = 1;
        while names.contains(&name) {
            number += 1;
            name = printable(&format!("{plain}-{number}"));
        }
        names.push(name);
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
