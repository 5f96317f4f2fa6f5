//! The head of a request, kept for another attempt for less than a clone costs.
//!
//! Most requests succeed at once, so what counts is what it costs to keep a head, not to make another of it. A clone of a
//! [`HeaderMap`] costs an indirect call and a reference count for each value, and an index. Here everything is one run of
//! bytes, and the map is built again for the attempt that needs it.

use std::iter;

use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version,
    request::Parts,
    uri::{self, Authority, PathAndQuery, Scheme},
};

/// A copy of a request's head.
#[derive(Debug)]
pub(crate) struct Head {
    method: Method,
    version: Version,
    extensions: Extensions,
    scheme: Option<Scheme>,
    /// The authority, the path with its query, and the header lines: for each the length of its
    /// name, that of its value with [`SENSITIVE`], and both of them.
    text: Vec<u8>,
    /// Where the authority ends, and where the path ends.
    authority: usize,
    path: usize,
    lines: usize,
}

/// The bit of a value's length that marks the value as sensitive: no value is that long.
const SENSITIVE: u64 = 1 << 63;

/// Text that was taken from a valid head is valid.
const WAS_VALID: &str = "this text was a part of a head before";

impl Head {
    pub(crate) fn keep<B>(request: &Request<B>) -> Self {
        let (uri, headers) = (request.uri(), request.headers());
        // A guess; where it is too low there is another allocation.
        let mut text = Vec::with_capacity(64 + 64 * headers.len());
        if let Some(authority) = uri.authority() {
            text.extend_from_slice(authority.as_str().as_bytes());
        }
        let authority = text.len();
        if let Some(path) = uri.path_and_query() {
            text.extend_from_slice(path.as_str().as_bytes());
        }
        let path = text.len();
        for (name, value) in headers {
            let mark = if value.is_sensitive() { SENSITIVE } else { 0 };
            let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
            text.extend_from_slice(&(name.len() as u64).to_ne_bytes());
            text.extend_from_slice(&(value.len() as u64 | mark).to_ne_bytes());
            text.extend_from_slice(name);
            text.extend_from_slice(value);
        }
        Self {
            method: request.method().clone(),
            version: request.version(),
            extensions: request.extensions().clone(),
            scheme: uri.scheme().cloned(),
            text,
            authority,
            path,
            lines: headers.len(),
        }
    }

    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// The first value of a header.
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&[u8]> {
        let mut lines = lines(&self.text[self.path..]);
        lines.find_map(|(line, value, _)| (line == name.as_str().as_bytes()).then_some(value))
    }

    /// The head again, to the letter: the order of its lines and the repeated ones too.
    pub(crate) fn parts(&self) -> Parts {
        let (mut parts, ()) = Request::new(()).into_parts();
        // One allocation for all that is in it.
        let text = Bytes::copy_from_slice(&self.text);
        parts.method = self.method.clone();
        parts.uri = self.uri_in(&text);
        parts.version = self.version;
        parts.extensions = self.extensions.clone();
        parts.headers = self.headers_in(&text);
        parts
    }

    pub(crate) fn uri(&self) -> Uri {
        self.uri_in(&Bytes::copy_from_slice(&self.text[..self.path]))
    }

    fn uri_in(&self, text: &Bytes) -> Uri {
        let authority = text.slice(..self.authority);
        let path = text.slice(self.authority..self.path);
        let mut parts = uri::Parts::default();
        parts.scheme.clone_from(&self.scheme);
        if !authority.is_empty() {
            parts.authority = Some(Authority::from_maybe_shared(authority).expect(WAS_VALID));
        }
        if !path.is_empty() {
            parts.path_and_query = Some(PathAndQuery::from_maybe_shared(path).expect(WAS_VALID));
        }
        Uri::from_parts(parts).expect(WAS_VALID)
    }

    fn headers_in(&self, text: &Bytes) -> HeaderMap {
        // More lines than a map takes at once are a map with many repeated names.
        let mut headers = HeaderMap::try_with_capacity(self.lines).unwrap_or_default();
        for (name, value, sensitive) in lines(&text[self.path..]) {
            let value = text.slice_ref(value);
            let mut value = HeaderValue::from_maybe_shared(value).expect(WAS_VALID);
            value.set_sensitive(sensitive);
            headers.append(HeaderName::from_bytes(name).expect(WAS_VALID), value);
        }
        headers
    }
}

/// The name and value of each line, and whether the value is sensitive.
fn lines(mut rest: &[u8]) -> impl Iterator<Item = (&[u8], &[u8], bool)> {
    iter::from_fn(move || {
        let (&name, left) = rest.split_first_chunk()?;
        let (&value, left) = left.split_first_chunk()?;
        let (name, value) = (u64::from_ne_bytes(name), u64::from_ne_bytes(value));
        let (name, left) = left.split_at_checked(usize::try_from(name).ok()?)?;
        let (text, left) = left.split_at_checked(usize::try_from(value & !SENSITIVE).ok()?)?;
        rest = left;
        Some((name, text, value & SENSITIVE != 0))
    })
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
        let (before, ()) = request.into_parts();
        for _ in 0..2 {
            let parts = head.parts();
            assert_eq!(parts.method, before.method);
            assert_eq!(parts.uri, before.uri);
            assert_eq!(parts.version, before.version);
            assert_eq!(parts.extensions.get::<&str>(), Some(&"an outer layer's"));
            assert!(
                parts.headers.iter().eq(&before.headers),
                "{:?}",
                parts.headers
            );
            assert!(parts.headers["authorization"].is_sensitive());
            assert!(!parts.headers["x-custom"].is_sensitive());
        }
        assert_eq!(head.header(&http::header::ACCEPT), Some(&b"text/html"[..]));
        assert_eq!(head.header(&http::header::HOST), None);
    }

    // promise: RT-31
    #[test]
    fn every_form_of_a_uri_comes_back() {
        for uri in [
            "/",
            "*",
            "/a//b/?x=%20&y#z",
            "a.example",
            "a.example:443",
            "http://a.example",
            "http://a.example?q",
            "https://user:pw@[::1]:8443/p?q=1?2",
            "foo+bar.1://h/p",
            "//not/an/authority",
            "/caf\u{e9}",
            "/?",
            "localhost",
        ] {
            let uri: Uri = uri.parse().unwrap();
            let request = Request::builder().uri(uri.clone()).body(()).unwrap();
            let again = Head::keep(&request).parts().uri;
            assert_eq!(
                (again.to_string(), again.scheme(), again.authority()),
                (uri.to_string(), uri.scheme(), uri.authority())
            );
            assert_eq!(again, uri);
        }
    }

    proptest::proptest! {
        // promise: RT-31
        #[test]
        fn whatever_is_a_uri_comes_back(text in "([a-z]{1,5}://)?[ -~]{0,30}") {
            if let Ok(uri) = text.parse::<Uri>() {
                let request = Request::builder().uri(uri.clone()).body(()).unwrap();
                let again = Head::keep(&request).parts().uri;
                proptest::prop_assert_eq!(again.to_string(), uri.to_string());
                proptest::prop_assert_eq!(again, uri);
            }
        }
    }

    // promise: RT-31
    #[test]
    fn a_great_many_lines_come_back() {
        let mut request = Request::new(());
        for line in 0..20_000 {
            let name = HeaderName::from_bytes(format!("x-{}", line % 20_000).as_bytes()).unwrap();
            request.headers_mut().append(name, line.into());
            request.headers_mut().append("x-same", line.into());
        }
        let parts = Head::keep(&request).parts();
        assert!(parts.headers.iter().eq(request.headers()));
    }
}
