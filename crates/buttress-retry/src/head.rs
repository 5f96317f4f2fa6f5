//! The head of a request, kept for another attempt in less time than a clone takes.
//!
//! Most requests succeed at once, so what counts is what it costs to keep a head, not to make another of it. A
//! [`HeaderMap`] is cloned value by value, each with a reference count of its own, and with its index. Kept here are the
//! names and one run of bytes with all values behind each other; the map is built again for the attempt that needs it.

use bytes::{Bytes, BytesMut};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request::Parts,
};

/// A copy of a request's head.
#[derive(Debug)]
pub(crate) struct Head {
    method: Method,
    uri: Uri,
    version: Version,
    extensions: Extensions,
    lines: Vec<Line>,
    values: Bytes,
}

/// A header line, whose value ends at this place in the run of values and begins where the line before ended.
#[derive(Debug)]
struct Line {
    name: HeaderName,
    end: usize,
    sensitive: bool,
}

impl Head {
    pub(crate) fn keep<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        let mut values = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            values.extend_from_slice(value.as_bytes());
            Line {
                name: name.clone(),
                end: values.len(),
                sensitive: value.is_sensitive(),
            }
        };
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            extensions: request.extensions().clone(),
            lines: headers.iter().map(line).collect(),
            values: values.freeze(),
        }
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The first value of a header.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        let mut start = 0;
        self.lines.iter().find_map(|line| {
            let value = start..line.end;
            start = line.end;
            (line.name == name).then(|| &self.values[value])
        })
    }

    /// The head again, to the letter: the order of its lines and the repeated ones too.
    pub(crate) fn parts(&self) -> Parts {
        let (mut parts, ()) = Request::new(()).into_parts();
        parts.method = self.method.clone();
        parts.uri = self.uri.clone();
        parts.version = self.version;
        parts.extensions = self.extensions.clone();
        parts.headers = self.headers();
        parts
    }

    fn headers(&self) -> HeaderMap {
        // More lines than a map takes at once are a map with many repeated names.
        let mut headers = HeaderMap::try_with_capacity(self.lines.len()).unwrap_or_default();
        let mut start = 0;
        for line in &self.lines {
            let value = HeaderValue::from_maybe_shared(self.values.slice(start..line.end));
            let mut value = value.expect("these bytes were a header value before");
            value.set_sensitive(line.sensitive);
            headers.append(line.name.clone(), value);
            start = line.end;
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // promise: RT-31
    #[test]
    fn a_head_comes_back_to_the_letter() {
        let mut request = Request::builder()
            .method("PROPFIND")
            .uri("http://user@example.com:8080/a/b?c=d&e")
            .version(Version::HTTP_10)
            .extension("an outer layer's")
            .header("x-last", "1")
            .header("accept", "text/html")
            .header("x-empty", "")
            .header("accept", "*/*")
            .header("x-Custom", "two  spaces")
            .header("accept", "last")
            .header(
                "x-raw",
                HeaderValue::from_bytes(b"\xff\xfe caf\xe9").unwrap(),
            )
            .body(())
            .unwrap();
        let mut secret = HeaderValue::from_static("Bearer secret");
        secret.set_sensitive(true);
        request.headers_mut().insert("authorization", secret);
        // A removed line moves the last one into its place.
        request.headers_mut().remove("x-last");

        let head = Head::keep(&request);
        for _ in 0..2 {
            let parts = head.parts();
            assert_eq!(parts.method, request.method());
            assert_eq!(parts.uri, *request.uri());
            assert_eq!(parts.version, request.version());
            assert_eq!(parts.extensions.get::<&str>(), Some(&"an outer layer's"));
            assert!(
                parts.headers.iter().eq(request.headers()),
                "{:?}",
                parts.headers
            );
            assert!(parts.headers["authorization"].is_sensitive());
            assert!(!parts.headers["x-custom"].is_sensitive());
        }
        assert_eq!(head.header(&http::header::ACCEPT), Some(&b"text/html"[..]));
        assert_eq!(head.header(&http::header::HOST), None);
    }
}
