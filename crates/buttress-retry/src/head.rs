//! The head of a request, kept for another attempt in much less time than a clone takes.
//!
//! Most requests succeed at once, so what counts is what it costs to keep a head, not to make another of it. A clone of a
//! [`HeaderMap`] costs an indirect call and a reference count for each value, and an index. Here everything is one run of
//! bytes, and the map is built again for the attempt that needs it.

use std::iter;

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
    /// For each line: the length of its name, and that of its value with [`SENSITIVE`]; then both of them.
    lines: Vec<u8>,
    count: usize,
}

/// A length in the run of bytes.
type Length = [u8; size_of::<u64>()];

/// The bit that marks a value as sensitive: no value is as long as that.
const SENSITIVE: u64 = 1 << 63;

impl Head {
    pub(crate) fn keep<B>(request: &Request<B>) -> Self {
        let headers = request.headers();
        // A guess; one that is too low costs another allocation.
        let mut lines = Vec::with_capacity(64 * headers.len());
        for (name, value) in headers {
            let (name, bytes) = (name.as_str().as_bytes(), value.as_bytes());
            let mark = if value.is_sensitive() { SENSITIVE } else { 0 };
            lines.extend_from_slice(&(name.len() as u64).to_ne_bytes());
            lines.extend_from_slice(&(bytes.len() as u64 | mark).to_ne_bytes());
            lines.extend_from_slice(name);
            lines.extend_from_slice(bytes);
        }
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            extensions: request.extensions().clone(),
            lines,
            count: headers.len(),
        }
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The first value of a header.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        let mut lines = self.lines();
        lines.find_map(|(line, value, _)| (line == name.as_str().as_bytes()).then_some(value))
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
        const WAS_VALID: &str = "these bytes came from a header";

        // More lines than a map takes at once are a map with many repeated names.
        let mut headers = HeaderMap::try_with_capacity(self.count).unwrap_or_default();
        for (name, value, sensitive) in self.lines() {
            let mut value = HeaderValue::from_bytes(value).expect(WAS_VALID);
            value.set_sensitive(sensitive);
            headers.append(HeaderName::from_bytes(name).expect(WAS_VALID), value);
        }
        headers
    }

    /// The name and value of each line, and whether the value is sensitive.
    fn lines(&self) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
        let mut rest = &self.lines[..];
        iter::from_fn(move || {
            let (name, value) = (length(&mut rest)?, length(&mut rest)?);
            let sensitive = value & SENSITIVE != 0;
            Some((
                run(&mut rest, name)?,
                run(&mut rest, value & !SENSITIVE)?,
                sensitive,
            ))
        })
    }
}

fn length(rest: &mut &[u8]) -> Option<u64> {
    let (length, left): (&Length, _) = rest.split_first_chunk()?;
    *rest = left;
    Some(u64::from_ne_bytes(*length))
}

fn run<'a>(rest: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (run, left) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = left;
    Some(run)
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
