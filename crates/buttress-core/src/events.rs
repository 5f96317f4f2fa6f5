//! Where a layer says what it does.

use std::{
    fmt, mem,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

type Sink<E> = Arc<dyn Fn(&E) + Send + Sync>;

/// The sinks that hear of a layer's events of type `E`. At first there are none, and an event costs nothing.
///
/// A sink runs on the task that the event happened on: keep it short. If it panics, the panic is caught, so that it does
/// not take down the call; the panic hook reports it, the other sinks still hear of the event, and this one of the next.
pub struct Events<E>(Vec<Sink<E>>);

impl<E> Events<E> {
    /// Nobody listens.
    #[must_use]
    pub const fn none() -> Self {
        Self(Vec::new())
    }

    /// Adds a sink behind those that are there.
    pub fn add(&mut self, sink: impl Fn(&E) + Send + Sync + 'static) {
        self.0.push(Arc::new(sink));
    }

    /// Does nobody listen? Then an event need not even be made.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Calls every sink, in the order in which they were added.
    pub fn emit(&self, event: &E) {
        for sink in &self.0 {
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| sink(event))) {
                // It may be of a type that panics when it is dropped.
                mem::forget(payload);
            }
        }
    }
}

impl<E> Default for Events<E> {
    fn default() -> Self {
        Self::none()
    }
}

impl<E> Clone for Events<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E> fmt::Debug for Events<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_sink_hears_an_event_though_one_of_them_panics() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let mut events = Events::none();
        for name in ["first", "second"] {
            let heard = heard.clone();
            events.add(move |event: &u8| {
                heard.lock().unwrap().push((name, *event));
                assert_ne!(name, "first", "this sink panics");
            });
        }
        events.emit(&7);
        drop(events);
        assert_eq!(
            *heard
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
            [("first", 7), ("second", 7)]
        );
    }
}
