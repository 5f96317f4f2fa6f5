//! What the user sets.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use buttress_core::{Events, Policies};

use crate::{Event, Quota, bucket::Terms, gcra::Rate};

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) quotas: Vec<Quota>,
    /// How long a call may wait; nothing where it is refused at once.
    pub(crate) max_wait: Duration,
    pub(crate) refuses: bool,
    pub(crate) shadow: bool,
    /// How many keys have a bucket of their own; nothing if all calls share one.
    pub(crate) max_keys: Option<NonZeroUsize>,
    /// Does each key say what its quota is?
    pub(crate) own_quotas: bool,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) events: Events<Event>,
}

impl Settings {
    pub(crate) fn new(quota: Quota) -> Self {
        Self {
            quotas: vec![quota],
            max_wait: Duration::from_millis(500),
            refuses: false,
            shadow: false,
            max_keys: None,
            own_quotas: false,
            name: None,
            events: Events::none(),
        }
    }

    /// The terms of the quota of this number, with its default burst if it has none of its own: the first quota is there to
    /// smooth what comes, and the others limit how much it is in the long run.
    pub(crate) fn terms(&self, number: usize, quota: Quota) -> Terms {
        let burst = match number {
            0 if self.refuses => Duration::from_secs(1),
            0 => Duration::from_millis(100),
            _ => quota.period,
        };
        let rate = Rate::new(quota, burst);
        Terms { quota, rate }
    }
}

pub(crate) fn policies<'a>(terms: impl Iterator<Item = &'a Terms>) -> Policies {
    terms.map(|terms| terms.quota.policy()).collect()
}
