//! Metrics, registered and described in one place.

use std::sync::Arc;

use metrics::{Counter, Label};

/// The labels that all metrics of a layer have.
#[derive(Clone, Debug)]
pub(crate) struct Labels(Vec<Label>);

impl Labels {
    pub(crate) fn named(name: &Arc<str>) -> Self {
        Self(vec![Label::new("name", name.clone())])
    }

    pub(crate) fn with(&self, key: &'static str, value: impl Into<metrics::SharedString>) -> Self {
        let mut labels = self.0.clone();
        labels.push(Label::new(key, value));
        Self(labels)
    }

    /// The labels for one of the macros of `metrics`, which want them as their own.
    pub(crate) fn get(&self) -> Vec<Label> {
        self.0.clone()
    }

    pub(crate) fn counter(&self, name: &'static str, about: &'static str) -> Counter {
        metrics::describe_counter!(name, about);
        metrics::counter!(name, self.get())
    }

    /// A counter for each of these values of a label.
    pub(crate) fn counters(
        &self,
        name: &'static str,
        label: &'static str,
        values: &[&'static str],
        about: &'static str,
    ) -> Counters {
        metrics::describe_counter!(name, about);
        let known = values.iter().map(|&value| {
            let labels = self.with(label, value).get();
            (value, metrics::counter!(name, labels))
        });
        Counters {
            known: known.collect(),
            name,
            label,
            labels: self.clone(),
        }
    }

    #[cfg(any(feature = "idempotency", feature = "rate-limit", feature = "retry"))]
    pub(crate) fn seconds(&self, name: &'static str, about: &'static str) -> metrics::Histogram {
        metrics::describe_histogram!(name, metrics::Unit::Seconds, about);
        metrics::histogram!(name, self.get())
    }
}

/// Counters that differ in the value of one label.
#[derive(Debug)]
pub(crate) struct Counters {
    known: Vec<(&'static str, Counter)>,
    name: &'static str,
    label: &'static str,
    labels: Labels,
}

impl Counters {
    pub(crate) fn count(&self, value: &'static str) {
        let known = self.known.iter().find(|(known, _)| *known == value);
        if let Some((_, counter)) = known {
            counter.increment(1);
        } else {
            // `other`, for what this crate does not know of: too rare for a counter that is always there.
            let labels = self.labels.with(self.label, value).get();
            metrics::counter!(self.name, labels).increment(1);
        }
    }
}
