//! Keys for limits by client: the client's address, with or without proxies in front of the server.
//!
//! # Example
//!
//! Behind one proxy that appends to `X-Forwarded-For`. The address of the peer is where the server puts it, here a
//! [`SocketAddr`](std::net::SocketAddr) among the request's extensions:
//!
//! ```
//! use std::net::SocketAddr;
//!
//! use buttress_rate_limit::client;
//! use http::Request;
//!
//! let key = client::x_forwarded_for(1, |peer: &SocketAddr| peer.ip());
//!
//! let request = Request::get("/rates")
//!     .extension(SocketAddr::from(([10, 0, 0, 1], 443)))
//!     // The client has made up the first, the proxy has added the second.
//!     .header("x-forwarded-for", "192.0.2.1, 203.0.113.7")
//!     .body(())?;
//! assert_eq!(key(&request).to_string(), "203.0.113.7");
//! # Ok::<_, http::Error>(())
//! ```
//!
//! With axum the peer is `|peer: &ConnectInfo<SocketAddr>| peer.0.ip()`, if the router is served with its
//! `into_make_service_with_connect_info::<SocketAddr>()`. With tonic it is
//! `|peer: &TcpConnectInfo| peer.remote_addr().map(|peer| peer.ip())`.
//!
//! # Which hop it is
//!
//! Every proxy appends the address of whoever called it. Behind n of them that can be trusted, the n-th address from the
//! right is the client's: it was written by the outermost of them. All lines of the header are one list, in their order.
//! What stands further left may be forged, and is not read: it changes no key, and costs nothing.
//!
//! A client that cannot be found there has the key of the peer, and never one that it could have written itself:
//!
//! - where there are fewer than n hops, since somebody has come around the proxies, or a proxy asks by itself;
//! - where the hop is no address: `unknown`, a name like `_hidden`, an empty place between commas. If a proxy does not
//!   know its clients, or will not tell, all of them are one client.
//!
//! Where there is no peer either, as behind a Unix socket, the key is `unknown`, and all such clients are one.
//!
//! # What a wrong number costs
//!
//! | the proxies are | then |
//! |---|---|
//! | more than was said | a proxy is taken for the client: all who come by it are one client |
//! | fewer than was said | the client chooses its key, and has as many limits as it likes; if it sends no hops, it has the key of the peer, which is a proxy's |
//!
//! Rather say too few than too many. Count the addresses that are appended, not the machines: some proxies append two, as
//! the load balancers of Google Cloud do, the client's and their own. The outermost proxy may overwrite the header instead of
//! appending to it; the others must append, at its end. Whoever can reach the server around the proxies can write n hops
//! himself: keep that way closed.
//!
//! A proxy writes `X-Forwarded-For` or `Forwarded`, and passes the other as the client sent it. So only one of them is read,
//! and it must be the one that all of the proxies write.
//!
//! # `Forwarded`
//!
//! By [RFC 7239](https://www.rfc-editor.org/rfc/rfc7239) a value may be quoted, with commas and semicolons inside the
//! quotes. A client could send an opening quote without a closing one: read from the left, the elements that the proxies
//! append would then be inside of the client's own. So the list is read from the right. A quote there ends a quoted string,
//! which begins at the nearest quote to the left that no backslash escapes. In a well-formed element that quote is part of
//! the element, so that what stands left of an element does not change how it is read.
//!
//! An element counts as a hop whether or not it has a `for`. One with several is a forgery that a proxy has let through, and
//! no address. Nor is there an address in a quoted string with a backslash: none needs one.

use std::{
    fmt, iter,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str,
};

use http::{HeaderMap, Request, header};

/// A client as a key: its IPv4 address, the /64 that its IPv6 address is in, or unknown.
///
/// Whoever has one IPv6 address has at least its whole /64, 2⁶⁴ addresses: a single one would be no key. Whoever has a /48
/// still has 65,536 keys. The IPv4-mapped `::ffff:192.0.2.1` is 192.0.2.1.
///
/// See the [module](self) for how to read it from a request. Where the address comes from elsewhere, make a key of it:
///
/// ```
/// use std::net::IpAddr;
///
/// use buttress_rate_limit::client::Client;
///
/// let address: IpAddr = "2001:db8:0:1:2:3:4:5".parse()?;
/// assert_eq!(Client::from(address).to_string(), "2001:db8:0:1::/64");
/// assert_eq!(Client::from(None).to_string(), "unknown");
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
// An IPv6 address in here is no mapped one, and its last 64 bits are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Client(Option<IpAddr>);

impl From<Option<IpAddr>> for Client {
    fn from(address: Option<IpAddr>) -> Self {
        Self(address.map(|address| match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & !u128::from(u64::MAX);
                Ipv6Addr::from_bits(network).into()
            }
            address @ IpAddr::V4(_) => address,
        }))
    }
}

impl From<IpAddr> for Client {
    fn from(address: IpAddr) -> Self {
        Some(address).into()
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(IpAddr::V4(address)) => write!(f, "{address}"),
            Some(IpAddr::V6(network)) => write!(f, "{network}/64"),
            None => f.write_str("unknown"),
        }
    }
}

/// A key for a server without proxies in front of it: the peer's address, which `peer` takes from a `T` among the request's
/// extensions. No header is read. Without a `T` there, or an address in it, the client is unknown.
///
/// See the [module](self) for what `peer` is with axum and tonic.
pub fn peer<B, T, A>(peer: impl Fn(&T) -> A + Clone) -> impl Fn(&Request<B>) -> Client + Clone
where
    T: Send + Sync + 'static,
    A: Into<Option<IpAddr>>,
{
    move |request| client(None, request, &peer)
}

/// A key for a server behind this many proxies that append to `X-Forwarded-For`; behind 0 it is the [`peer`].
///
/// An address may have a port, which is dropped. See the [module](self) for an example, and for what a wrong number costs.
pub fn x_forwarded_for<B, T, A>(
    proxies: usize,
    peer: impl Fn(&T) -> A + Clone,
) -> impl Fn(&Request<B>) -> Client + Clone
where
    T: Send + Sync + 'static,
    A: Into<Option<IpAddr>>,
{
    move |request| {
        let hop = hop(request.headers(), "x-forwarded-for", proxies);
        client(hop.and_then(address), request, &peer)
    }
}

/// A key for a server behind this many proxies that append to `Forwarded`; behind 0 it is the [`peer`].
///
/// See the [module](self) for how it is read, and for what a wrong number costs.
///
/// ```
/// use std::net::SocketAddr;
///
/// use buttress_rate_limit::client;
/// use http::Request;
///
/// let key = client::forwarded(1, |peer: &SocketAddr| peer.ip());
///
/// let request = Request::get("/rates")
///     .header("forwarded", r#"for=192.0.2.1, For="[2001:db8::17]:4711";proto=https"#)
///     .body(())?;
/// assert_eq!(key(&request).to_string(), "2001:db8::/64");
/// # Ok::<_, http::Error>(())
/// ```
pub fn forwarded<B, T, A>(
    proxies: usize,
    peer: impl Fn(&T) -> A + Clone,
) -> impl Fn(&Request<B>) -> Client + Clone
where
    T: Send + Sync + 'static,
    A: Into<Option<IpAddr>>,
{
    move |request| {
        let hop = hop(request.headers(), header::FORWARDED.as_str(), proxies);
        client(hop.and_then(forwarded_for), request, &peer)
    }
}

/// The address that the proxies tell, or else the peer's: never one that the client could have chosen.
fn client<B, T, A>(told: Option<IpAddr>, request: &Request<B>, peer: impl Fn(&T) -> A) -> Client
where
    T: Send + Sync + 'static,
    A: Into<Option<IpAddr>>,
{
    let seen = || request.extensions().get().map(peer).and_then(Into::into);
    told.or_else(seen).into()
}

/// The member of a header's list that is so many places from its end, the last of which is the first; none if it has fewer.
fn hop<'a>(headers: &'a HeaderMap, name: &str, places: usize) -> Option<&'a [u8]> {
    let lines = headers.get_all(name).iter().rev();
    let mut hops = lines.flat_map(|line| from_the_right(line.as_bytes(), b','));
    hops.nth(places.checked_sub(1)?)
}

/// The members of a list, the last one first. What stands left of a member is not looked at to find it.
fn from_the_right(list: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(list);
    iter::from_fn(move || {
        let list = rest.take()?;
        let Some(place) = last_unquoted(list, separator) else {
            return Some(list);
        };
        rest = Some(&list[..place]);
        Some(&list[place + 1..])
    })
}

/// Where the last of these bytes is that is in no quoted string.
fn last_unquoted(text: &[u8], wanted: u8) -> Option<usize> {
    let mut quoted = false;
    for (place, &byte) in text.iter().enumerate().rev() {
        if byte == b'"' {
            // From the right the first quote ends a string. It goes to the quote that is not escaped, as those inside of it
            // are: before its start there is no backslash but a `=`.
            quoted = !quoted || text[..place].ends_with(br"\");
        } else if byte == wanted && !quoted {
            return Some(place);
        }
    }
    None
}

/// The address in an element of `Forwarded`, if it has just one `for`, and that is an address.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut nodes = from_the_right(element, b';').filter_map(|pair| {
        let (name, node) = pair.trim_ascii().split_at_checked(4)?;
        name.eq_ignore_ascii_case(b"for=").then_some(node)
    });
    let node = nodes.next()?;
    if nodes.next().is_some() {
        return None;
    }
    address(node)
}

/// An address as proxies write it, with or without quotes, brackets and a port.
fn address(node: &[u8]) -> Option<IpAddr> {
    let node = str::from_utf8(node.trim_ascii()).ok()?;
    let quoted = node
        .strip_prefix('"')
        .and_then(|node| node.strip_suffix('"'));
    let node = quoted.unwrap_or(node);
    if let Some(node) = node.strip_prefix('[') {
        let (address, port) = node.split_once(']')?;
        let address = address.parse::<Ipv6Addr>().ok()?;
        return (port.is_empty() || port.starts_with(':')).then_some(address.into());
    }
    node.parse().ok().or_else(|| {
        let (address, _port) = node.split_once(':')?;
        address.parse::<Ipv4Addr>().ok().map(IpAddr::from)
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::SocketAddr, ops::RangeInclusive};

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "10.0.0.1";

    /// A request that has come by a proxy, with these lines in this header.
    fn request(name: &'static str, lines: &[impl AsRef<[u8]>]) -> Request<()> {
        let mut request = Request::new(());
        let peer = SocketAddr::from(([10, 0, 0, 1], 443));
        request.extensions_mut().insert(peer);
        for line in lines {
            let line = HeaderValue::from_bytes(line.as_ref()).unwrap();
            request.headers_mut().append(name, line);
        }
        request
    }

    /// The key by `X-Forwarded-For` behind so many proxies.
    fn listed(proxies: usize, lines: &[impl AsRef<[u8]>]) -> String {
        let key = x_forwarded_for(proxies, |peer: &SocketAddr| peer.ip());
        key(&request("x-forwarded-for", lines)).to_string()
    }

    /// The key by `Forwarded` behind so many proxies.
    fn told(proxies: usize, lines: &[impl AsRef<[u8]>]) -> String {
        let key = forwarded(proxies, |peer: &SocketAddr| peer.ip());
        key(&request("forwarded", lines)).to_string()
    }

    // promise: RL-18
    #[test]
    fn the_client_is_as_many_hops_from_the_peer_as_there_are_proxies() {
        let lines = ["192.0.2.1, 192.0.2.2", "192.0.2.3", "192.0.2.4,192.0.2.5"];
        assert_eq!(listed(0, &lines), PEER);
        assert_eq!(listed(1, &lines), "192.0.2.5");
        assert_eq!(listed(2, &lines), "192.0.2.4");
        assert_eq!(listed(3, &lines), "192.0.2.3");
        assert_eq!(listed(4, &lines), "192.0.2.2");
        assert_eq!(listed(5, &lines), "192.0.2.1");

        let lines = lines.map(|line| line.replace("192", "for=192"));
        assert_eq!(told(0, &lines), PEER);
        assert_eq!(told(1, &lines), "192.0.2.5");
        assert_eq!(told(3, &lines), "192.0.2.3");
        assert_eq!(told(5, &lines), "192.0.2.1");
    }

    // promise: RL-18
    #[test]
    fn ten_thousand_forged_values_are_one_key() {
        let appended = ["203.0.113.7", "198.51.100.1", "198.51.100.2"];
        for proxies in 1..=3 {
            let appended = appended[..proxies].join(", ");
            let mut keys = HashSet::new();
            for forged in 0..10_000_u32 {
                let forged = Ipv4Addr::from_bits(0x0800_0000 + forged);
                keys.insert(listed(proxies, &[format!("{forged}, {appended}")]));
                keys.insert(listed(proxies, &[&forged.to_string(), &appended]));
                let appended = format!("for={}", appended.replace(", ", ", for="));
                keys.insert(told(proxies, &[format!("for={forged}, {appended}")]));
            }
            // And all of them at once.
            let forged = "8.8.8.8, ".repeat(10_000);
            keys.insert(listed(proxies, &[format!("{forged}{appended}")]));
            let mut lines = vec!["8.8.8.8"; 10_000];
            lines.push(&appended);
            keys.insert(listed(proxies, &lines));
            assert_eq!(keys, HashSet::from(["203.0.113.7".to_owned()]));
        }
    }

    // promise: RL-18
    #[test]
    fn who_came_around_the_proxies_has_the_key_of_the_peer() {
        assert_eq!(listed(1, &[""; 0]), PEER);
        assert_eq!(listed(2, &["8.8.8.8"]), PEER);
        assert_eq!(listed(3, &["8.8.8.8", "8.8.4.4"]), PEER);
        assert_eq!(listed(usize::MAX, &["8.8.8.8"]), PEER);
        assert_eq!(told(1, &[""; 0]), PEER);
        assert_eq!(told(2, &["for=8.8.8.8;by=8.8.4.4"]), PEER);
    }

    // promise: RL-18
    #[test]
    fn a_hop_that_is_no_address_is_the_peer_and_not_the_hop_beside_it() {
        let none = [
            "unknown",
            "_hidden",
            "",
            " ",
            "\t",
            "\"",
            "\"\"",
            "[",
            "[]",
            "[]:1",
            "]",
            ":",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.04",
            "1.2.3.256",
            "1.2.3.4 5",
            "[1.2.3.4]",
            "[::1",
            "[::1]1",
            "::1]",
            "::g",
            "1:2:3:4:5:6:7:8:9",
            "\"1.2.3.4",
            "for=1.2.3.4",
            "a:1.2.3.4",
        ];
        for none in none {
            assert_eq!(listed(1, &[format!("8.8.8.8,{none}")]), PEER, "{none}");
            assert_eq!(listed(1, &["8.8.8.8", none]), PEER, "{none}");
            let hops = format!("8.8.8.8,{none},198.51.100.1");
            assert_eq!(listed(2, &[hops]), PEER, "{none}");
        }
        assert_eq!(listed(1, &[b"8.8.8.8, \xff\xfe1.2.3.4"]), PEER);
    }

    // promise: RL-18
    #[test]
    fn an_address_is_known_however_a_proxy_writes_it() {
        let same = [
            "192.0.2.1",
            " 192.0.2.1\t",
            "192.0.2.1:5678",
            "192.0.2.1:_port",
            "\"192.0.2.1\"",
            "\"192.0.2.1:80\"",
            "::ffff:192.0.2.1",
            "[::ffff:c000:201]:443",
        ];
        for hop in same {
            assert_eq!(listed(1, &[format!("8.8.8.8,{hop}")]), "192.0.2.1", "{hop}");
        }
        let same = [
            "2001:db8::1",
            "2001:DB8::2",
            "[2001:db8::3]",
            "[2001:db8::4]:443",
            "\"[2001:db8::5]:443\"",
            "2001:db8::192.0.2.1",
        ];
        for hop in same {
            assert_eq!(
                listed(1, &[format!("8.8.8.8,{hop}")]),
                "2001:db8::/64",
                "{hop}"
            );
        }
    }

    // promise: RL-18
    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let client = |address: &str| Client::from(address.parse::<IpAddr>().unwrap());
        let one = client("2001:db8:0:1::");
        assert_eq!(one, client("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(one, client("2001:db8:0:2::"));
        assert_ne!(one, client("2001:db8:0:0:ffff:ffff:ffff:ffff"));
        assert_eq!(one.to_string(), "2001:db8:0:1::/64");
        assert_ne!(client("192.0.2.1"), client("192.0.2.2"));
        assert_eq!(client("192.0.2.1"), client("::ffff:192.0.2.1"));
        assert_eq!(client("::1").to_string(), "::/64");

        let mut request = Request::new(());
        request
            .extensions_mut()
            .insert(SocketAddr::from(([0x2001, 0xdb8, 0, 1, 2, 3, 4, 5], 443)));
        assert_eq!(peer(|peer: &SocketAddr| peer.ip())(&request), one);
    }

    // promise: RL-18
    #[test]
    fn only_the_header_that_was_asked_for_is_read() {
        let both = || {
            let mut both = request("x-forwarded-for", &["192.0.2.1"]);
            let forwarded = HeaderValue::from_static("for=192.0.2.2");
            both.headers_mut().insert("forwarded", forwarded);
            both
        };
        let address = |peer: &SocketAddr| peer.ip();
        assert_eq!(peer(address)(&both()).to_string(), PEER);
        assert_eq!(
            x_forwarded_for(1, address)(&both()).to_string(),
            "192.0.2.1"
        );
        assert_eq!(forwarded(1, address)(&both()).to_string(), "192.0.2.2");
        assert_eq!(x_forwarded_for(2, address)(&both()).to_string(), PEER);
        assert_eq!(forwarded(2, address)(&both()).to_string(), PEER);
        let other = request("x-forwarded-for", &["for=192.0.2.1"]);
        assert_eq!(forwarded(1, address)(&other).to_string(), PEER);
        let other = request("forwarded", &["192.0.2.1"]);
        assert_eq!(x_forwarded_for(1, address)(&other).to_string(), PEER);
    }

    // promise: RL-18
    #[test]
    fn where_there_is_no_peer_the_hop_is_read_and_else_the_client_is_unknown() {
        struct Unix;
        let mut request = request("x-forwarded-for", &["192.0.2.1"]);
        request.extensions_mut().remove::<SocketAddr>();
        let key = |proxies| x_forwarded_for(proxies, |peer: &SocketAddr| peer.ip());
        assert_eq!(key(1)(&request).to_string(), "192.0.2.1");
        assert_eq!(key(0)(&request).to_string(), "unknown");
        let key = peer(|_: &Unix| None);
        assert_eq!(key(&request), Client::from(None));
    }

    // promise: RL-18
    #[test]
    fn an_element_of_forwarded_is_read_as_rfc_7239_has_it() {
        let known = [
            "for=192.0.2.1",
            "FOR=192.0.2.1;proto=http;by=203.0.113.43",
            "proto=http;By=203.0.113.43;For=192.0.2.1",
            " ; for=192.0.2.1 ; ;proto=http; ",
            r#"for="192.0.2.1:47011""#,
            r#"for="[::ffff:192.0.2.1]:47011""#,
            r#"host="a,b;for=8.8.8.8";for=192.0.2.1"#,
            r#"for=192.0.2.1;host="a\"b,c;for=8.8.8.8""#,
            r#"for=192.0.2.1;host="\\";by="\",\\\"""#,
            r#"for=192.0.2.1;secret="";by="\\""#,
        ];
        for element in known {
            assert_eq!(told(1, &[element]), "192.0.2.1", "{element}");
            let lines = [format!("for=8.8.8.8, {element}, for=198.51.100.1")];
            assert_eq!(told(2, &lines), "192.0.2.1", "{element}");
        }
        let unknown = [
            "",
            "for",
            "for=",
            "for=unknown",
            "for=_hidden",
            "for=\"_SEVKISEK\"",
            "by=8.8.8.8",
            "xfor=8.8.8.8",
            "for =8.8.8.8",
            "for=8.8.8.8;for=8.8.4.4",
            "for=;for=8.8.8.8",
            r#"for="8.8.8\.8""#,
            r#"for="8.8.8.8"#,
            r#"for=8.8.8.8;host=a""#,
            "8.8.8.8",
        ];
        for element in unknown {
            assert_eq!(told(1, &["for=8.8.8.8", element]), PEER, "{element}");
        }
    }

    // promise: RL-18
    #[test]
    fn a_quote_that_the_client_leaves_open_hides_no_element_of_a_proxy() {
        let elements = [
            "for=192.0.2.1",
            r#"for="192.0.2.1""#,
            r#"for="192.0.2.1:1";by="[2001:db8::1]""#,
            r#"for=192.0.2.1;by="a\"b\\""#,
        ];
        for element in elements {
            for forged in [
                r#"for=""#,
                r#"for="8.8.8.8"#,
                r#"for="\"#,
                r#"for="\""#,
                r#"""#,
                r"\",
                r#"a=",""#,
            ] {
                let lines = [format!("{forged},{element}")];
                assert_eq!(told(1, &lines), "192.0.2.1", "{lines:?}");
                let lines = [format!("{forged}, {element}, for=\"198.51.100.1\"")];
                assert_eq!(told(2, &lines), "192.0.2.1", "{lines:?}");
            }
        }
    }

    // promise: RL-18
    #[test]
    fn the_work_grows_no_faster_than_the_header() {
        for part in ["\"", "\\", "\\\"", "\"\\\\", ",", ";", "a", "for=", "1"] {
            // By the square of this it would take minutes.
            let line = [part.repeat(1 << 18)];
            assert_eq!(listed(3, &line), PEER);
            assert_eq!(told(3, &line), PEER);
            assert_eq!(told(1, &line), PEER);
        }
    }

    /// What may stand in a line of a header, and a good deal of it what has a meaning here.
    fn bytes(length: RangeInclusive<usize>) -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![
            4 => prop::sample::select(br#"",;\=[]: .1f"#.to_vec()),
            1 => (b' '..=u8::MAX).prop_filter("no header", |&byte| byte != 0x7f),
        ];
        prop::collection::vec(byte, length)
    }

    proptest! {
        // promise: RL-18
        #[test]
        fn nothing_left_of_what_the_proxies_append_changes_the_key(
            forged in bytes(0..=40),
            more in prop::collection::vec(bytes(0..=8), 0..4),
            elements in prop::collection::vec(
                (any::<IpAddr>(), any::<bool>(), any::<[u8; 2]>(), r#"([a,;=.]|\\["\\,a]){0,6}"#), 1..5
            ),
        ) {
            let (mut list, mut told_list) = (more.clone(), more);
            list.push(forged.clone());
            told_list.push(forged);
            // A proxy appends to the last line, or a line.
            let append = |list: &mut Vec<Vec<u8>>, line: bool, hop: &str| match list.last_mut() {
                Some(last) if !line => {
                    last.push(b',');
                    last.extend_from_slice(hop.as_bytes());
                }
                _ => list.push(hop.into()),
            };
            for (address, line, [how, port], text) in &elements {
                let node = match (address, how % 2) {
                    (IpAddr::V4(address), 0) => format!("{address}:{port}"),
                    (IpAddr::V6(address), 0) => format!("[{address}]:{port}"),
                    (IpAddr::V6(address), _) if *how > 99 => format!("[{address}]"),
                    _ => address.to_string(),
                };
                append(&mut list, *line, &node);
                let element = match how % 3 {
                    0 => format!("for=\"{node}\""),
                    1 => format!("for=\"{node}\";host=\"{text}\""),
                    _ => format!("by=\"{text}\" ;For=\"{node}\";proto=http"),
                };
                append(&mut told_list, *line, &element);
            }
            let client = Client::from(elements[0].0).to_string();
            prop_assert_eq!(&listed(elements.len(), &list), &client);
            prop_assert_eq!(&told(elements.len(), &told_list), &client);
        }

        // promise: RL-18
        #[test]
        fn no_header_panics_and_one_without_quotes_is_cut_at_its_commas(
            lines in prop::collection::vec(bytes(0..=30), 0..5), proxies in 1..6_usize,
        ) {
            let (by_list, by_told) = (listed(proxies, &lines), told(proxies, &lines));
            let all = lines.join(&b',');
            if !all.contains(&b'"') {
                let hop = all.rsplit(|&byte| byte == b',').nth(proxies - 1);
                let client = |address: Option<IpAddr>| address.map_or(PEER.into(), |it| Client::from(it).to_string());
                prop_assert_eq!(by_list, client(hop.and_then(address)));
                prop_assert_eq!(by_told, client(hop.and_then(forwarded_for)));
            }
        }
    }
}
