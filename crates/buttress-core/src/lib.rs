//! Share what two or more layers need, and nothing else.
//!
//! The layers of buttress judge a call in the same words ([`Verdict`], [`Classify`]), refuse with the same type
//! ([`Rejected`]), report through the same hook ([`Events`]) and read the same [`clock`]. You meet this crate when you
//! write a classifier, or ask who refused a call; the facade `buttress` exports what you need for that.
//!
//! # Example
//!
//! ```
//! use buttress_core::{Applied, BoxError, Kind, Rejected, Verdict};
//!
//! // A classifier is a function. This one speaks of a service whose answers are numbers.
//! fn classify(result: Result<&u32, &BoxError>) -> Verdict {
//!     match result {
//!         Ok(0..=9) => Verdict::SUCCESS,
//!         Ok(_) => Verdict::new(Kind::Throttled, Applied::No),
//!         Err(error) if Rejected::find(&**error).is_some() => Verdict::REFUSED,
//!         Err(_) => Verdict::new(Kind::Transient, Applied::Maybe),
//!     }
//! }
//!
//! assert_eq!(classify(Ok(&3)), Verdict::SUCCESS);
//! assert_eq!(classify(Ok(&10)).kind, Kind::Throttled);
//!
//! let refusal: BoxError = Rejected::new("bulkhead", "10 of 10 slots are taken").into();
//! assert_eq!(classify(Err(&refusal)), Verdict::REFUSED);
//! ```
//!
//! # Features
//!
//! `test-util` makes [`clock::now`] tokio's clock, which a test can pause. For tests only: it costs more
//! to read.

#![doc(test(attr(deny(dead_code))))]

mod authority;
pub mod classify;
pub mod clock;
mod error;
mod events;
pub mod hint;
mod keyed;
mod limit;
#[doc(hidden)]
pub mod sync;
mod verdict;

pub use authority::Authority;
pub use classify::Classify;
pub use error::{BoxError, Rejected, chain};
pub use events::Events;
pub use keyed::Keyed;
pub use limit::{LimitReport, Policies, QuotaPolicy, ServiceLimit};
pub use verdict::{Applied, Hint, Kind, Verdict};

/// The moment by which a call must have ended. Put it into the extensions of an HTTP request, above the layers that are
/// to keep to it.
///
/// `RetryLayer::http` and `RetryLayer::grpc` send nothing after it, and give up an attempt that it ends.
/// `RateLimitLayer::http` refuses a call that would wait beyond it. No other layer looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(pub clock::Instant);
