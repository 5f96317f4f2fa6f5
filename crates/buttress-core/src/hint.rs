//! Read what a server asks of the next attempt, in each of the dialects that are spoken.
//!
//! | order | header | value | said by |
//! |---|---|---|---|
//! | 1 | `x-should-retry` | `false`: do not | `OpenAI`, Anthropic |
//! | 2 | `retry-after-ms` | milliseconds | Azure, `OpenAI` |
//! | 3 | `retry-after` | seconds, or an HTTP date in each of its three forms | RFC 9110, 10.2.3 |
//! | 4 | `ratelimit` | `"policy";r=0;t=30`: after `t` seconds, where nothing remains | draft-ietf-httpapi-ratelimit-headers-10 |
//! | 5 | `x-ratelimit-reset` | by its size: milliseconds or seconds since 1970, or seconds from now; passed over while `x-ratelimit-remaining` is above 0 | GitHub, Twitter, many more |
//!
//! The first of them that can be read counts ([`http()`]); a gRPC response has a header of its own ([`grpc`]). Of two
//! lines of one header the first counts. A date is compared with the response's own `Date`, so that a wrong clock on this
//! side changes nothing; a date in the past means now.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderMap;
use sfv::{BareItem, List, ListEntry, Parser};

use crate::Hint;

/// What an HTTP response asks for.
#[must_use]
pub fn http(headers: &HeaderMap) -> Hint {
    if text(headers, "x-should-retry").is_some_and(|value| value.eq_ignore_ascii_case("false")) {
        return Hint::Never;
    }
    let dialects = [
        retry_after_ms,
        retry_after_date,
        rate_limit,
        rate_limit_reset,
    ];
    dialects
        .iter()
        .find_map(|dialect| dialect(headers))
        .map_or(Hint::None, Hint::After)
}

/// What an HTTP response asks for with `retry-after-ms` or `Retry-After`, and nothing else: the other dialects speak of
/// this caller's quota, and not of the server's health.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Hint {
    retry_after_ms(headers)
        .or_else(|| retry_after_date(headers))
        .map_or(Hint::None, Hint::After)
}

/// What a gRPC response asks for with `grpc-retry-pushback-ms`: a whole number of milliseconds, or a negative one for
/// "do not" (gRPC proposal A6).
#[must_use]
pub fn grpc(headers: &HeaderMap) -> Hint {
    match text(headers, "grpc-retry-pushback-ms") {
        Some(value) => match (digits(value), value.strip_prefix('-').and_then(digits)) {
            (Some(millis), _) => Hint::Pushback(Duration::from_millis(millis)),
            (None, Some(_)) => Hint::Never,
            (None, None) => Hint::None,
        },
        None => Hint::None,
    }
}

fn retry_after_ms(headers: &HeaderMap) -> Option<Duration> {
    text(headers, "retry-after-ms")
        .and_then(digits)
        .map(Duration::from_millis)
}

fn retry_after_date(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, "retry-after")?;
    match digits(value) {
        Some(seconds) => Some(Duration::from_secs(seconds)),
        None => Some(until(httpdate::parse_http_date(value).ok()?, headers)),
    }
}

/// The longest wait for a quota of which nothing remains.
fn rate_limit(headers: &HeaderMap) -> Option<Duration> {
    let quotas: List = Parser::new(text(headers, "ratelimit")?).parse().ok()?;
    let waits = quotas.iter().filter_map(|quota| {
        let ListEntry::Item(quota) = quota else {
            return None;
        };
        let parameter = |name| match quota.params.get(name) {
            Some(&BareItem::Integer(value)) => u64::try_from(i64::from(value)).ok(),
            _ => None,
        };
        if parameter("r")? == 0 {
            parameter("t")
        } else {
            None
        }
    });
    waits.max().map(Duration::from_secs)
}

/// Some servers send it with every response: as long as something remains it is no reason to wait.
fn rate_limit_reset(headers: &HeaderMap) -> Option<Duration> {
    const MILLIS_FROM: u64 = 1_000_000_000_000;
    const SECONDS_FROM: u64 = 1_000_000_000;

    if text(headers, "x-ratelimit-remaining")
        .and_then(digits)
        .is_some_and(|remaining| remaining > 0)
    {
        return None;
    }
    let value = text(headers, "x-ratelimit-reset").and_then(digits)?;
    let since_1970 = match value {
        MILLIS_FROM.. => Duration::from_millis(value),
        SECONDS_FROM.. => Duration::from_secs(value),
        _ => return Some(Duration::from_secs(value)),
    };
    Some(until(UNIX_EPOCH.checked_add(since_1970)?, headers))
}

#[expect(
    clippy::disallowed_methods,
    reason = "a date is the one thing that the wall clock is for"
)]
fn until(date: SystemTime, headers: &HeaderMap) -> Duration {
    let now = text(headers, "date").and_then(|value| httpdate::parse_http_date(value).ok());
    date.duration_since(now.unwrap_or_else(SystemTime::now))
        .unwrap_or_default()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// `u64::from_str` would take a sign.
fn digits(value: &str) -> Option<u64> {
    if value.bytes().all(|byte| byte.is_ascii_digit()) {
        value.parse().ok()
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const DATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn headers<const N: usize>(lines: [(&'static str, &str); N]) -> HeaderMap {
        let line = |(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_str(value).unwrap(),
            )
        };
        let mut headers = HeaderMap::new();
        for (name, value) in lines.map(line) {
            headers.append(name, value);
        }
        headers
    }

    fn seconds(seconds: u64) -> Hint {
        Hint::After(Duration::from_secs(seconds))
    }

    // promise: RT-10
    #[test]
    fn every_dialect_is_read() {
        let millis = |millis| Hint::After(Duration::from_millis(millis));
        for (name, value, hint) in [
            ("retry-after-ms", "1500", millis(1_500)),
            ("retry-after", "2", seconds(2)),
            ("retry-after", "0", seconds(0)),
            ("retry-after", "Sun, 06 Nov 1994 08:51:37 GMT", seconds(120)),
            (
                "retry-after",
                "Sunday, 06-Nov-94 08:51:37 GMT",
                seconds(120),
            ),
            ("retry-after", "Sun Nov  6 08:51:37 1994", seconds(120)),
            ("ratelimit", r#""x";r=0;t=30"#, seconds(30)),
            (
                "ratelimit",
                r#""x";r=0;t=30, "day";r=0;t=900, "month";r=7;t=9999"#,
                seconds(900),
            ),
            ("ratelimit", r#""x";r=1;t=30"#, Hint::None),
            ("ratelimit", r#""x";t=30"#, Hint::None),
            ("x-ratelimit-reset", "90", seconds(90)),
            ("x-ratelimit-reset", "784111897", seconds(784_111_897)),
        ] {
            assert_eq!(
                http(&headers([("date", DATE), (name, value)])),
                hint,
                "{name}: {value}"
            );
        }
        for (value, hint) in [
            ("0", Hint::Pushback(Duration::ZERO)),
            ("1200", Hint::Pushback(Duration::from_millis(1_200))),
            ("-1", Hint::Never),
            ("soon", Hint::None),
            ("-", Hint::None),
            ("", Hint::None),
        ] {
            assert_eq!(
                grpc(&headers([("grpc-retry-pushback-ms", value)])),
                hint,
                "pushback {value}"
            );
        }
    }

    // promise: RT-10
    #[test]
    fn a_reset_is_read_by_its_size() {
        let date = "Wed, 18 May 2033 03:33:20 GMT"; // 2,000,000,000 s
        for (value, hint) in [
            ("2000000045", 45),
            ("2000000045000", 45),
            ("999999999", 999_999_999),
            ("1999999999", 0),
            ("45", 45),
        ] {
            assert_eq!(
                http(&headers([("date", date), ("x-ratelimit-reset", value)])),
                seconds(hint),
                "{value}"
            );
        }
        let remaining = |value| {
            headers([
                ("x-ratelimit-reset", "45"),
                ("x-ratelimit-remaining", value),
            ])
        };
        assert_eq!(http(&remaining("12")), Hint::None, "nothing is used up");
        assert_eq!(http(&remaining("0")), seconds(45));
    }

    // promise: RT-10
    #[test]
    fn the_dialects_have_an_order_and_the_first_line_counts() {
        let all = [
            ("x-ratelimit-reset", "5"),
            ("ratelimit", r#""x";r=0;t=4"#),
            ("retry-after", "3"),
            ("retry-after-ms", "2000"),
        ];
        assert_eq!(http(&headers(all)), seconds(2));
        assert_eq!(http(&headers([all[0], all[1], all[2]])), seconds(3));
        assert_eq!(http(&headers([all[0], all[1]])), seconds(4));
        assert_eq!(
            http(&headers([("retry-after", "3"), ("retry-after", "9")])),
            seconds(3)
        );
        assert_eq!(
            http(&headers([
                ("retry-after", "x"),
                ("retry-after", "9"),
                all[1]
            ])),
            seconds(4)
        );
    }

    // promise: RT-10
    #[test]
    fn garbage_is_ignored_and_a_past_date_means_now() {
        let million = "1".repeat(1_000_000);
        let huge = format!("1{}", "0".repeat(30));
        for garbage in [
            "-1",
            "1.5",
            "",
            "+1",
            "1 2",
            "0x10",
            "soon",
            "NaN",
            &huge,
            &million,
            "\"",
            "Sun, 99 Nov 1994",
        ] {
            for name in [
                "retry-after-ms",
                "retry-after",
                "ratelimit",
                "x-ratelimit-reset",
            ] {
                assert_eq!(
                    http(&headers([(name, garbage)])),
                    Hint::None,
                    "{name}: {garbage:.40}"
                );
            }
        }
        let mut foreign = HeaderMap::new();
        foreign.insert(
            "retry-after",
            HeaderValue::from_bytes("２".as_bytes()).unwrap(),
        );
        assert_eq!(http(&foreign), Hint::None);
        assert_eq!(http(&headers([("retry-after", DATE)])), seconds(0));
        assert_eq!(
            http(&headers([("retry-after", "18446744073709551615")])),
            seconds(u64::MAX)
        );
    }

    // promise: RT-11
    #[test]
    fn a_date_is_measured_against_the_response_s_own() {
        // This test's clock and the server's are decades apart.
        let hour = [
            ("date", DATE),
            ("retry-after", "Sun, 06 Nov 1994 09:49:37 GMT"),
        ];
        assert_eq!(http(&headers(hour)), seconds(3_600));

        // Without one there is only the clock of this side.
        let Hint::After(wait) = http(&headers([("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT")]))
        else {
            panic!("the date is in the future");
        };
        assert!(wait > Duration::from_hours(7_000 * 365 * 24));
    }

    // promise: RT-12
    #[test]
    fn a_veto_is_read_and_its_opposite_says_nothing() {
        assert_eq!(
            http(&headers([
                ("x-should-retry", "false"),
                ("retry-after", "1")
            ])),
            Hint::Never
        );
        assert_eq!(http(&headers([("x-should-retry", "False")])), Hint::Never);
        assert_eq!(
            http(&headers([("x-should-retry", "true"), ("retry-after", "1")])),
            seconds(1)
        );
        assert_eq!(http(&headers([("x-should-retry", "true")])), Hint::None);
    }

    proptest! {
        // promise: RT-10
        #[test]
        fn no_value_makes_it_panic(
            name in prop::sample::select(vec![
                "retry-after-ms", "retry-after", "ratelimit", "x-ratelimit-reset", "x-should-retry",
                "grpc-retry-pushback-ms", "date",
            ]),
            value in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut headers = headers([("retry-after", DATE)]);
                headers.insert(name, value);
                let _ = (http(&headers), grpc(&headers));
            }
        }
    }
}
