//! Whom a request is for.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use http::{
    HeaderMap, HeaderValue, Uri, header,
    uri::{self, Scheme},
};

/// The host and port that a request is for.
///
/// It hashes and is displayed (`host:port`) the same however it is spelled: in upper or lower case, with or without user
/// and password, with or without the dot of the root, and with or without the port of the scheme, which is 443 for
/// `https` and 80 for everything else.
#[derive(Clone, Debug)]
pub struct Authority {
    name: uri::Authority,
    port: u16,
}

impl Authority {
    /// The authority of a request's URI, or else the one that its `Host` header names; `None` if there is neither, or if
    /// the header cannot be read.
    #[must_use]
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        Self::named(uri, headers.get(header::HOST).map(HeaderValue::as_bytes))
    }

    /// As [`of`](Self::of), for a caller who has the value of the `Host` header, but not the headers.
    #[must_use]
    pub fn named(uri: &Uri, host: Option<&[u8]>) -> Option<Self> {
        let default = if uri.scheme() == Some(&Scheme::HTTPS) {
            443
        } else {
            80
        };
        let name = match uri.authority() {
            Some(authority) => authority.clone(),
            None => uri::Authority::try_from(host?).ok()?,
        };
        let port = name.port_u16().unwrap_or(default);
        Some(Self { name, port })
    }

    fn host(&self) -> &str {
        self.name.host().trim_end_matches('.')
    }
}

impl Hash for Authority {
    fn hash<H: Hasher>(&self, state: &mut H) {
        for byte in self.host().bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
        state.write_u16(self.port);
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host().to_ascii_lowercase(), self.port)
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

    use super::*;

    #[test]
    fn an_authority_is_the_same_however_it_is_spelled() {
        let of = |uri: &str, host: Option<&str>| {
            let authority =
                Authority::named(&uri.parse().unwrap(), host.map(str::as_bytes)).unwrap();
            let hasher = BuildHasherDefault::<DefaultHasher>::default();
            (authority.to_string(), hasher.hash_one(&authority))
        };
        let plain = of("http://pay.example/", None);
        assert_eq!(plain.0, "pay.example:80");
        for uri in ["http://PAY.example:80/a", "http://user@pay.example./b"] {
            assert_eq!(of(uri, None), plain);
        }
        assert_eq!(of("/c", Some("Pay.Example")), plain);
        assert_eq!(of("https://pay.example/", None).0, "pay.example:443");
        assert_ne!(of("http://pay.example:81/", None), plain);
        assert!(Authority::of(&"/d".parse().unwrap(), &HeaderMap::new()).is_none());
    }
}
