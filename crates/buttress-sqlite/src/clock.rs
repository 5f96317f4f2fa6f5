//! The clock of a store: it never goes back.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use buttress_core::clock;
use buttress_idempotency::record::Moment;

pub(crate) type Source = Box<dyn Fn() -> Moment + Send>;

pub(crate) struct Clock {
    source: Source,
    /// What is added to the source, because it was behind what has been seen.
    ahead: Duration,
    last: Moment,
}

impl Clock {
    /// A clock that shows the machine's time now, and goes on steadily whatever becomes of that.
    pub(crate) fn of_the_machine() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "what is written down outlives the process, and so must its time"
        )]
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        let wall = Moment::default().after(wall.unwrap_or_default());
        let start = clock::now();
        Self {
            source: Box::new(move || wall.after(clock::now().saturating_duration_since(start))),
            ahead: Duration::ZERO,
            last: Moment::default(),
        }
    }

    pub(crate) fn set_source(&mut self, source: Source) {
        self.source = source;
        self.ahead = Duration::ZERO;
    }

    /// The moment it is now: not before any that it has shown, nor before this one, which somebody else has seen.
    pub(crate) fn now(&mut self, seen: Moment) -> Moment {
        let floor = self.last.max(seen);
        let read = |ahead| (self.source)().after(ahead);
        // One that was set back goes on from where it was; otherwise all leases would wait until it has caught up.
        self.ahead += floor.since(read(self.ahead));
        self.last = read(self.ahead).max(floor);
        self.last
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    };

    use super::*;

    fn clock_at(start: u64) -> (Clock, Arc<AtomicU64>) {
        let time = Arc::new(AtomicU64::new(start));
        let mut clock = Clock::of_the_machine();
        let source = time.clone();
        clock.set_source(Box::new(move || Moment(source.load(Ordering::Relaxed))));
        (clock, time)
    }

    const HOUR: u64 = 3_600_000_000;

    // promise: ID-16
    #[test]
    fn no_reading_is_before_another_or_before_what_was_seen() {
        let (mut clock, time) = clock_at(100);
        assert_eq!(clock.now(Moment(0)), Moment(100));
        assert_eq!(clock.now(Moment(500)), Moment(500));
        assert_eq!(clock.now(Moment(0)), Moment(500));
        time.fetch_add(1, Ordering::Relaxed);
        assert_eq!(clock.now(Moment(0)), Moment(501));
    }

    // promise: ID-16
    #[test]
    fn a_clock_that_is_set_back_goes_on_from_where_it_was() {
        let (mut clock, time) = clock_at(5 * HOUR);
        assert_eq!(clock.now(Moment(0)), Moment(5 * HOUR));
        time.store(4 * HOUR, Ordering::Relaxed);
        assert_eq!(clock.now(Moment(0)), Moment(5 * HOUR));
        time.fetch_add(1_000, Ordering::Relaxed);
        assert_eq!(clock.now(Moment(0)), Moment(5 * HOUR + 1_000));
    }

    // promise: ID-16
    #[test]
    fn a_clock_that_is_behind_another_process_goes_on_with_it() {
        let (mut clock, time) = clock_at(4 * HOUR);
        assert_eq!(clock.now(Moment(5 * HOUR)), Moment(5 * HOUR));
        time.fetch_add(1_000, Ordering::Relaxed);
        assert_eq!(clock.now(Moment(0)), Moment(5 * HOUR + 1_000));
    }
}
