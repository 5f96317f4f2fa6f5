//! The locks, atomics and wake-ups of the layers; loom's in a loom test (`--cfg buttress_loom`). Not for users.

use std::{
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::PoisonError,
    task::Waker,
};

#[cfg(buttress_loom)]
pub use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(buttress_loom))]
pub use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering, fence},
};

/// Keeps what is written often apart from what is read often: by two cache lines, as processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub struct Apart<T>(pub T);

/// Locks, even if a holder has panicked: no lock of a layer is held over code that could leave its data half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Wakes one who waits. A waker that panics must not take down the others, who are told once only, nor the call at hand.
pub fn wake(waker: Waker) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        // It may be of a type that panics when it is dropped.
        mem::forget(payload);
    }
}
