//! Do a request once, however often it is sent.

mod arm;
mod body;
pub mod client;
pub mod encode;
mod event;
pub mod future;
mod handle;
mod key;
mod layer;
mod problem;
#[doc = include_str!("../PROMISES.md")]
pub mod promises {}
pub mod record;
mod recover;
mod run;
mod service;
mod settings;
mod shared;
mod store;

pub use arm::{Arm, ArmError};
pub use body::{RequestBody, ResponseBody};
pub use client::{IdempotencyKey, IdempotencyKeyLayer};
pub use event::Event;
pub use handle::Handle;
pub use key::{Key, KeyError};
pub use layer::{Global, IdempotencyLayer, Scope};
pub use recover::Recovered;
pub use service::Idempotency;
pub use settings::Lapse;
pub use store::{Store, StoreError, StoreErrorKind};
