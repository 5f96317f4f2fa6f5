//! What an error is to those who asked.

use std::error::Error;

use buttress_core::{Rejected, chain};
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

/// What an error is to those who asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A layer refused: nothing was done.
    Refused(Rejected),
    /// It took too long: something may have been done.
    TimedOut,
    /// Nobody's business but the server's.
    Other,
}

impl Failure {
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        let known = |cause: &(dyn Error + 'static)| {
            if let Some(rejected) = cause.downcast_ref::<Rejected>() {
                Some(Self::Refused(rejected.clone()))
            } else if cause.is::<Overloaded>() {
                let rejected = Rejected::new("load shed", "the service is not ready");
                Some(Self::Refused(rejected))
            } else {
                cause.is::<Elapsed>().then_some(Self::TimedOut)
            }
        };
        chain(error).find_map(known).unwrap_or(Self::Other)
    }
}
