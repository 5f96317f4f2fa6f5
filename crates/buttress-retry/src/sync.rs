//! The locks and atomics of this crate; loom's in a loom test (`--cfg buttress_loom`).

#[cfg(all(test, buttress_loom))]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};
#[cfg(not(all(test, buttress_loom)))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};

use std::sync::PoisonError;

/// Locks, whoever panicked before: no lock of this crate is held over code that leaves its data half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
