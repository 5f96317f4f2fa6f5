//! Put resilience layers around any tower client or server.
//!
//! Each layer is a crate of its own; this one has them all, each behind the feature of its name, and `full` turns on
//! every one.
//!
//! | feature | layer |
//! |---|---|
//! | `answer` | [`answer::AnswerLayer`]: on a server, makes responses of the refusals of the layers below |
//! | `breaker` | [`breaker::BreakerLayer`]: stops calling what fails, and finds out with a few calls when it is well again |
//! | `idempotency` | [`idempotency::IdempotencyLayer`]: on a server, does a request once, however often it is sent; [`idempotency::IdempotencyKeyLayer`]: on a client, gives it its key |
//! | `rate-limit` | [`rate_limit::RateLimitLayer`]: keeps to a rate, by waiting in order or by refusing |
//! | `retry` | [`retry::RetryLayer`]: sends again what may safely be sent again |
//! | `sqlite` | [`sqlite::SqliteStore`]: keeps what was done in a file, for `idempotency` |
//! | `telemetry` | [`telemetry`]: metrics and traces of what the layers do |
//!
//! What the layers share is here in any case: how a call is judged ([`Verdict`], [`Classify`]), who refused it
//! ([`Rejected`]), and the [`clock`].
//!
//! The module `guides`, which is there with `full`, has a page with a program for each thing that most people come for, and one
//! on the order of layers and what every other order costs. What a stack of them promises, with a number for each, is in
//! [`promises`]; what a layer promises by itself is in its own crate.

#![doc(test(attr(deny(dead_code))))]

pub use buttress_core::{
    Applied, BoxError, Classify, Deadline, Hint, Kind, LimitReport, Policies, QuotaPolicy,
    Rejected, ServiceLimit, Verdict, classify, clock,
};

#[cfg(feature = "answer")]
pub use buttress_answer as answer;
#[cfg(feature = "breaker")]
pub use buttress_breaker as breaker;
#[cfg(feature = "idempotency")]
pub use buttress_idempotency as idempotency;
#[cfg(feature = "rate-limit")]
pub use buttress_rate_limit as rate_limit;
#[cfg(feature = "retry")]
pub use buttress_retry as retry;
#[cfg(feature = "sqlite")]
pub use buttress_sqlite as sqlite;
#[cfg(feature = "telemetry")]
pub use buttress_telemetry as telemetry;

#[doc = include_str!("../PROMISES.md")]
pub mod promises {}

#[cfg(feature = "full")]
pub mod guides;
