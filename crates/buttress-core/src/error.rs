//! The error of a layer that refuses, and how to find it again.

use std::{borrow::Cow, error::Error, fmt, io, iter, sync::Arc, time::Duration};

use crate::{Hint, ServiceLimit, Verdict};

/// The error of a stack of layers.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// A layer on this side refused the call: the service below never saw it.
///
/// Every layer of buttress that can refuse does it with this type. [`find`](Self::find) gets it out of whatever an outer
/// layer wrapped around it.
#[derive(Clone, Debug)]
pub struct Rejected {
    by: &'static str,
    name: Option<Arc<str>>,
    key: Option<Arc<str>>,
    reason: Reason,
    retry_after: Option<Duration>,
    limit: Option<ServiceLimit>,
}

#[derive(Clone, Debug)]
enum Reason {
    Text(Cow<'static, str>),
    Figures(u64, Describe),
}

/// Writes the reason for a refusal from its figures.
type Describe = fn(u64, &mut fmt::Formatter<'_>) -> fmt::Result;

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Figures(figures, describe) => describe(*figures, f),
        }
    }
}

impl Rejected {
    /// A refusal by this kind of layer ("breaker"), with the reason in a few words ("open").
    #[must_use]
    #[inline]
    pub fn new(by: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::because(by, Reason::Text(reason.into()))
    }

    /// A refusal whose reason is only written when somebody reads it: `describe` writes it from the figures, which the
    /// layer may pack as it likes. For a layer that refuses so much that it has no time for text.
    #[must_use]
    pub fn with_figures(
        by: &'static str,
        figures: u64,
        describe: fn(u64, &mut fmt::Formatter<'_>) -> fmt::Result,
    ) -> Self {
        Self::because(by, Reason::Figures(figures, describe))
    }

    const fn because(by: &'static str, reason: Reason) -> Self {
        Self {
            by,
            name: None,
            key: None,
            reason,
            retry_after: None,
            limit: None,
        }
    }

    /// Adds the name that the user gave the layer.
    #[must_use]
    #[inline]
    pub fn named(mut self, name: impl Into<Arc<str>>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Adds the key whose calls are refused, where a layer tells them apart by key.
    #[must_use]
    #[inline]
    pub fn keyed(mut self, key: impl Into<Arc<str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Adds how long the caller is to wait, from now on, before another call may be let through.
    #[must_use]
    #[inline]
    pub fn after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// Adds the limit that the call would have exceeded.
    #[must_use]
    #[inline]
    pub fn over(mut self, limit: ServiceLimit) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The kind of layer that refused: of those of buttress, `"breaker"` or `"rate limit"`.
    #[must_use]
    pub fn by(&self) -> &'static str {
        self.by
    }

    /// The name that the user gave the layer, if any.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// The key whose calls are refused, where a layer tells them apart by key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Why it refused, in a few words.
    #[must_use]
    pub fn reason(&self) -> Cow<'_, str> {
        match &self.reason {
            Reason::Text(text) => Cow::Borrowed(text),
            figures @ Reason::Figures(..) => Cow::Owned(figures.to_string()),
        }
    }

    /// How long to wait before another call, counted from the refusal, if the layer knows.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The limit that the call would have exceeded, if a rate limiter refused it.
    #[must_use]
    pub fn limit(&self) -> Option<&ServiceLimit> {
        self.limit.as_ref()
    }

    /// What a refusal means for the call: it was not applied, and says nothing of the service below.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        Verdict::REFUSED.with_hint(self.retry_after.map_or(Hint::None, Hint::After))
    }

    /// Finds the refusal in an error, or in what caused it.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        chain(error).find_map(|cause| cause.downcast_ref())
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused by {}", self.by)?;
        if let Some(name) = &self.name {
            f.write_str(" ")?;
            write_line(name, f)?;
        }
        if let Some(key) = &self.key {
            f.write_str(" [")?;
            write_line(key, f)?;
            f.write_str("]")?;
        }
        write!(f, ": {}", self.reason)?;
        if let Some(policy) = self.limit.as_ref().and_then(ServiceLimit::policy) {
            write!(f, " ({policy})")?;
        }
        if let Some(retry_after) = self.retry_after {
            write!(f, "; try again after {retry_after:.1?}")?;
        }
        Ok(())
    }
}

impl Error for Rejected {}

/// Writes a text of somebody else, such as a key from a request, within one line: with its control characters escaped.
fn write_line(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for part in text.split_inclusive(char::is_control) {
        let end = part.chars().next_back().filter(|last| last.is_control());
        f.write_str(&part[..part.len() - end.map_or(0, char::len_utf8)])?;
        if let Some(control) = end {
            write!(f, "{}", control.escape_default())?;
        }
    }
    Ok(())
}

/// An error, what caused it, what caused that, and so on.
///
/// It looks into an [`io::Error`] that wraps another error, and into an `Arc<dyn Error + Send + Sync>`, which
/// [`Error::source`] steps over; so it does with an [`io::Error`] or a [`Rejected`] that is in a `Box` or an `Arc` of its own.
/// It ends after 128 errors, as a chain may be a circle.
pub fn chain<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| {
        wrapped(error).or_else(|| error.source())
    })
    .take(128)
}

/// The error that another one is nothing but a wrapper of: its source is that of the wrapped one.
fn wrapped<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    if let Some(io) = error.downcast_ref::<io::Error>() {
        return io.get_ref().map(|wrapped| wrapped as _);
    }
    match error.downcast_ref::<Arc<dyn Error + Send + Sync>>() {
        Some(shared) => Some(&**shared),
        None => pointed_at::<Rejected>(error).or_else(|| pointed_at::<io::Error>(error)),
    }
}

/// The error of this type that another one is a pointer to.
fn pointed_at<'a, E: Error + 'static>(
    error: &'a (dyn Error + 'static),
) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<Box<E>>() {
        Some(boxed) => Some(&**boxed),
        None => error.downcast_ref::<Arc<E>>().map(|shared| &**shared as _),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_found_bare_boxed_and_inside_others() {
        let refusal = || {
            Rejected::new("breaker", "open")
                .named("cards")
                .after(Duration::from_secs(3))
        };
        let seconds =
            |error: &(dyn Error + 'static)| Rejected::find(error).and_then(Rejected::retry_after);

        let boxed: BoxError = refusal().into();
        let wrapped = io::Error::other(io::Error::other(refusal()));
        assert_eq!(seconds(&refusal()), Some(Duration::from_secs(3)));
        assert_eq!(seconds(&*boxed), Some(Duration::from_secs(3)));
        assert_eq!(seconds(&wrapped), Some(Duration::from_secs(3)));
        assert_eq!(seconds(&io::Error::other("something else")), None);
        assert_eq!(
            boxed.to_string(),
            "refused by breaker cards: open; try again after 3.0s"
        );
    }

    // promise: ST-8
    #[test]
    fn a_refusal_is_found_by_whatever_pointer_it_is_shared() {
        let refusal = || Rejected::new("breaker", "open");
        let shared: Arc<dyn Error + Send + Sync> = Arc::new(refusal());
        let wrapped = || io::Error::other(refusal());
        let errors: [BoxError; 8] = [
            shared.clone().into(),
            Arc::<dyn Error + Send + Sync>::from(BoxError::from(shared.clone())).into(),
            io::Error::other(shared.clone()).into(),
            Arc::new(refusal()).into(),
            Box::new(Box::new(refusal())),
            Arc::new(wrapped()).into(),
            Box::new(Box::new(wrapped())),
            Arc::new(io::Error::other(Arc::new(wrapped()))).into(),
        ];
        assert!(Rejected::find(&shared).is_some());
        for error in errors {
            assert!(Rejected::find(&*error).is_some(), "{error:?}");
        }
        let other: Arc<dyn Error + Send + Sync> = Arc::new(io::Error::other("something else"));
        assert!(Rejected::find(&other).is_none());
    }

    #[test]
    fn a_reason_is_written_when_it_is_read() {
        let refusal = Rejected::with_figures("breaker", 12, |failed, f| {
            write!(f, "{failed} calls failed")
        })
        .named("cards")
        .keyed("pay.example");
        assert_eq!(refusal.reason(), "12 calls failed");
        assert_eq!(refusal.key(), Some("pay.example"));
        assert_eq!(
            refusal.to_string(),
            "refused by breaker cards [pay.example]: 12 calls failed"
        );
    }

    // promise: BR-19
    #[test]
    fn a_refusal_is_one_line_whatever_its_key_is() {
        let refusal = Rejected::new("breaker", "open")
            .named("cards\n")
            .keyed("/a\r\nlevel=info \u{85}ü\u{1b}[2J");
        assert_eq!(
            refusal.to_string(),
            "refused by breaker cards\\n [/a\\r\\nlevel=info \\u{85}ü\\u{1b}[2J]: open"
        );
        assert_eq!(refusal.name(), Some("cards\n"));
    }

    /// An error that is its own cause.
    #[derive(Debug)]
    struct Circle;

    impl fmt::Display for Circle {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("round and round")
        }
    }

    impl Error for Circle {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(self)
        }
    }

    #[test]
    fn a_chain_ends_even_where_it_is_a_circle() {
        assert!(Rejected::find(&Circle).is_none());
        assert_eq!(chain(&Circle).count(), 128);
    }
}
