//! Reading the key of a request.

use http::{HeaderMap, HeaderName};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

pub(crate) struct Key(String);

impl Key {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

pub(crate) struct Invalid;

pub(crate) fn read(headers: &HeaderMap) -> Result<Option<Key>, Invalid> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let text = value.to_str().map_err(|_| Invalid)?.trim_matches('"');
            Ok(Some(Key(text.to_owned())))
        }
        _ => Err(Invalid),
    }
}
