//! What the layer does, for those who watch it.

use std::time::Duration;

use buttress_core::Verdict;

/// Something that happened to a call. See the [crate docs](crate) for an example.
///
/// Each call has one [`Finished`](Self::Finished) event, and the requests that the service below got are the `sends` of
/// these added up: one for each call, but for a call whose time was over before it began, and one for each
/// [`Retry`](Self::Retry) event, but for a retry whose call ended before it was sent.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A retry is due after a delay.
    #[non_exhaustive]
    Retry {
        /// Which retry of its call it is: 1, 2, and so on.
        number: u32,
        /// The time from now until it is due. It is sent then, or as soon as the service below is ready.
        delay: Duration,
        /// Where the delay comes from.
        source: DelaySource,
        /// What the attempt before it came to.
        cause: Cause,
        /// How that was judged.
        verdict: Verdict,
    },
    /// A call has ended.
    #[non_exhaustive]
    Finished {
        /// How.
        outcome: Outcome,
        /// How many requests the service below was given, those that a layer below refused among them.
        sends: u32,
    },
}

/// Where a delay comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DelaySource {
    /// From the [`Backoff`](crate::Backoff).
    Backoff,
    /// The server named a time, and up to half of it was added by chance.
    Hint,
    /// A gRPC server named the exact time.
    Pushback,
}

/// What an attempt came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// A response, with its HTTP status if it has one.
    Response(Option<http::StatusCode>),
    /// An error of the service below.
    Error,
    /// It took longer than an attempt may.
    TimedOut,
    /// A layer on this side refused it.
    Refused,
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// The first attempt succeeded.
    Ok,
    /// A later attempt succeeded.
    OkAfterRetry,
    /// It made all the attempts that it may make, and the last one failed too.
    Attempts,
    /// It failed, and the budget does not pay for another attempt.
    Budget,
    /// The time that the call may take was over, or did not suffice for another attempt.
    Deadline,
    /// It failed in a way that another attempt would not mend.
    NotRetryable,
    /// It failed after it may have been applied, and cannot be applied twice.
    NotIdempotent,
    /// It failed, and there is no whole copy of its body to send again: the body is too large, the memory for copies was
    /// used up, or the body itself failed.
    BodyNotReplayable,
    /// A layer on this side refused it, or the service below failed while it got ready for a retry.
    Refused,
    /// The server said not to try again, or asked for a longer wait than [`max_hint`](crate::RetryLayer::max_hint).
    Vetoed,
    /// The caller dropped it.
    Cancelled,
}
