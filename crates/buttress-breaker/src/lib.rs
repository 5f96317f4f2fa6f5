//! Stop calling what fails, and find out with a few calls when it is well again.

mod call;
mod circuit;
mod event;
pub mod future;
mod gate;
mod handle;
mod keys;
mod layer;
#[cfg(test)]
mod model;
mod queue;
mod service;
mod settings;
mod shared;
mod track;
mod verdict;
mod window;

pub use event::{Cause, Event, Outcome, ProbeResult, Reason, State};
pub use handle::{Handle, Handles, Snapshot};
pub use keys::{ByAuthority, ByKey, Keys, One};
pub use layer::BreakerLayer;
pub use service::Breaker;
pub use track::{Bodies, HeadOnly, Track, TrackedBody};
pub use verdict::Http;
