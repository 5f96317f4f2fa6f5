//! Do a request once, however often it is sent.

pub mod record;
mod store;

pub use store::{Store, StoreError, StoreErrorKind};
