//! Retry.

mod backoff;
mod body;
mod budget;
mod drain;
mod event;
pub mod future;
mod head;
mod layer;
mod policy;
pub mod replay;
mod service;
mod sync;

pub use backoff::Backoff;
pub use body::ReplayBody;
pub use budget::Budget;
pub use drain::ResponseBody;
pub use event::{Cause, DelaySource, Event, Outcome};
pub use future::TimedOut;
pub use layer::RetryLayer;
pub use replay::{Attempt, Idempotent};
pub use service::Retry;
