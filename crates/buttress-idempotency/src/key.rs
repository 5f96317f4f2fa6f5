//! The key of a request, as the field `Idempotency-Key` brings it.

use std::{error::Error, fmt};

use http::{HeaderMap, HeaderName};
use sfv::{BareItem, Item, Parser};

/// The field that a key comes in.
pub(crate) static FIELD: HeaderName = HeaderName::from_static("idempotency-key");

/// The key of a request: 1 to 255 visible characters of ASCII, by which the same request is known when it comes again.
///
/// A key comes as a string of structured fields, `"k"`, as [draft-ietf-httpapi-idempotency-key-header-07] has it, or bare,
/// `k`, as many clients send it. Both are the same key. Its length is that of its own text, without quotes and escaping
/// backslashes.
///
/// | value | key |
/// |---|---|
/// | `"8e03978e"`, `8e03978e` | `8e03978e` |
/// | `"a\"b"` | `a"b`: a backslash stands before `"` and `\`, and before nothing else |
/// | `order:123`, `a/b`, `a\|b`, `a;b`, `a\b` | the same: a bare key is what it is, to the letter |
/// | spaces around a key | not a part of it (RFC 9651, 4.2) |
/// | `"a";x=1` | none: the draft knows no parameters, and one that is not understood may make another key of it |
/// | `a,b` | none: a proxy that joins two lines into one writes a comma. In quotes it is a character like others |
/// | `a"b`, `"abc`, `"a" x`, `a b`, `""`, no character at all | none |
/// | a tab or another control, 0x7F, or anything beyond ASCII | none |
///
/// Nothing shows it, `Debug` neither, except [`as_str`](Key::as_str): whoever knows a key can ask for the answer to its
/// request.
///
/// ```
/// use buttress_idempotency::{Key, KeyError};
///
/// let key = Key::parse(b"\"order:123\"")?;
/// assert_eq!(key, Key::parse(b"order:123")?);
/// assert_eq!(key.as_str(), "order:123");
/// assert_eq!(format!("{key:?}"), "Key(..)");
/// assert_eq!(Key::parse(b"\"order:123"), Err(KeyError::Malformed));
/// # Ok::<_, KeyError>(())
/// ```
///
/// [draft-ietf-httpapi-idempotency-key-header-07]: https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key(String);

/// Why a field is not a valid key. It shows nothing of the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KeyError {
    /// There are two fields, or more.
    Repeated,
    /// It is empty.
    Empty,
    /// It has more than [`Key::MAX_LENGTH`] characters.
    TooLong,
    /// It is neither a string of structured fields nor a bare key, or has a character that is not visible ASCII.
    Malformed,
}

impl Key {
    /// How many characters a key may have: 255.
    pub const MAX_LENGTH: usize = 255;

    /// The key of a request with these headers; `None` if there is no `Idempotency-Key`.
    pub fn of(headers: &HeaderMap) -> Result<Option<Self>, KeyError> {
        let mut lines = headers.get_all(&FIELD).iter();
        let Some(line) = lines.next() else {
            return Ok(None);
        };
        if lines.next().is_some() {
            return Err(KeyError::Repeated);
        }
        Self::parse(line.as_bytes()).map(Some)
    }

    /// Reads a key from the value of the field.
    pub fn parse(value: &[u8]) -> Result<Self, KeyError> {
        // A tab may not stand around an item, though it may around a field: no client sends one.
        let mut value = value;
        while let [b' ', rest @ ..] | [rest @ .., b' '] = value {
            value = rest;
        }
        if value.is_empty() {
            return Err(KeyError::Empty);
        }
        // Every character may be escaped; what is longer than that is not read.
        if value.len() > 2 * Self::MAX_LENGTH + 2 {
            return Err(KeyError::TooLong);
        }
        let key = match value {
            [b'"', ..] => quoted(value)?,
            bare => str::from_utf8(bare)
                .map_err(|_| KeyError::Malformed)?
                .to_owned(),
        };
        let is_bare = value[0] != b'"';
        let fits = |byte: u8| byte.is_ascii_graphic() && !(is_bare && matches!(byte, b'"' | b','));
        if !key.bytes().all(fits) {
            return Err(KeyError::Malformed);
        }
        match key.len() {
            0 => Err(KeyError::Empty),
            1..=Self::MAX_LENGTH => Ok(Self(key)),
            _ => Err(KeyError::TooLong),
        }
    }

    /// The key itself. Keep it out of logs.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn quoted(value: &[u8]) -> Result<String, KeyError> {
    match Parser::new(value).parse::<Item>() {
        Ok(Item {
            bare_item: BareItem::String(text),
            params,
        }) if params.is_empty() => Ok(text.into()),
        _ => Err(KeyError::Malformed),
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Repeated => "there is more than one Idempotency-Key",
            Self::Empty => "the Idempotency-Key is empty",
            Self::TooLong => "the Idempotency-Key has more than 255 characters",
            Self::Malformed => "the Idempotency-Key is neither a quoted nor a bare key",
        })
    }
}

impl Error for KeyError {}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use rand::{RngExt, SeedableRng, rngs::SmallRng};

    use super::*;

    fn text(value: impl AsRef<[u8]>) -> Result<String, KeyError> {
        Key::parse(value.as_ref()).map(|key| key.as_str().to_owned())
    }

    // promise: ID-7
    #[test]
    fn a_quoted_key_and_a_bare_one_are_the_same() {
        for key in [
            "abc",
            "order:123",
            "a/b",
            "a|b",
            "a;x=1",
            "8e03978e-40d5-43dd-bc93-6894a57f9324",
            "=",
            "!#$%&'()*+-./:;<=>?@[]^_`{|}~",
            "0",
            "?1",
            ":YQ==:",
        ] {
            assert_eq!(text(key), Ok(key.into()));
            assert_eq!(text(format!("\"{key}\"")), Ok(key.into()));
            assert_eq!(Key::parse(key.as_bytes()).unwrap().as_str(), key);
        }
        assert_ne!(Key::parse(b"a/b"), Key::parse(b"a|b"));
        assert_ne!(Key::parse(b"abc"), Key::parse(b"Abc"));
    }

    // promise: ID-7
    #[test]
    fn a_backslash_in_quotes_stands_before_a_quote_or_a_backslash() {
        assert_eq!(text(r#""a\"b""#), Ok(r#"a"b"#.into()));
        assert_eq!(text(r#""a\\b""#), Ok(r"a\b".into()));
        assert_eq!(text(r"a\b"), Ok(r"a\b".into()), "a bare one is a character");
        for value in [r#""a\b""#, r#""a\""#, r#""a\"#, r#""\"#] {
            assert_eq!(text(value), Err(KeyError::Malformed), "{value}");
        }
    }

    // promise: ID-7
    #[test]
    fn what_is_no_key_is_refused() {
        use KeyError::{Empty, Malformed};
        for (value, error) in [
            (r#""abc"#, Malformed),
            (r#"abc""#, Malformed),
            (r#"a"b"#, Malformed),
            (r#"""#, Malformed),
            (r#""a" x"#, Malformed),
            (r#""a""b""#, Malformed),
            (r#""a", "b""#, Malformed),
            (r#""a";x=1"#, Malformed),
            (r#""a" ;x"#, Malformed),
            (r#""a";"#, Malformed),
            ("a,b", Malformed),
            ("a, b", Malformed),
            ("a b", Malformed),
            (r#""a b""#, Malformed),
            (r#"" ""#, Malformed),
            (r#"("a")"#, Malformed),
            ("", Empty),
            (" ", Empty),
            (r#""""#, Empty),
        ] {
            assert_eq!(text(value), Err(error), "{value}");
        }
        assert_eq!(text(r#""a,b""#), Ok("a,b".into()));
        for byte in (0..=b' ').chain(0x7f..=0xff) {
            for value in [vec![b'a', byte, b'b'], vec![b'"', byte, b'"']] {
                assert_eq!(text(&value), Err(Malformed), "{value:?}");
            }
            if byte != b' ' {
                for value in [vec![byte], vec![byte, b'a'], vec![b'a', byte]] {
                    assert_eq!(text(&value), Err(Malformed), "{value:?}");
                }
            }
        }
    }

    // promise: ID-7
    #[test]
    fn spaces_around_a_key_are_no_part_of_it() {
        for value in [" abc", "abc ", "  abc  ", " \"abc\"", "\"abc\"  "] {
            assert_eq!(text(value), Ok("abc".into()), "{value:?}");
        }
        let wide = [" ".repeat(1_000), " ".repeat(1_000)].join("abc");
        assert_eq!(text(wide), Ok("abc".into()));
    }

    // promise: ID-7
    #[test]
    fn a_key_has_255_characters_at_most_without_what_is_around_them() {
        for letter in ["k", "\\\\", "\\\""] {
            let quoted = |length| format!("\"{}\"", letter.repeat(length));
            assert!(Key::parse(quoted(255).as_bytes()).is_ok(), "{letter}");
            for length in [256, 257, 1_000, 100_000] {
                assert_eq!(text(quoted(length)), Err(KeyError::TooLong), "{letter}");
            }
        }
        assert!(text("k".repeat(255)).is_ok());
        for length in [256, 511, 512, 513, 100_000] {
            assert_eq!(text("k".repeat(length)), Err(KeyError::TooLong));
        }
    }

    // promise: ID-7
    #[test]
    fn no_field_is_no_key_and_two_are_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(Key::of(&headers), Ok(None));
        headers.append("Idempotency-Key", HeaderValue::from_static("a"));
        assert_eq!(Key::of(&headers), Key::parse(b"a").map(Some));
        headers.append("idempotency-key", HeaderValue::from_static("a"));
        assert_eq!(Key::of(&headers), Err(KeyError::Repeated));
        headers.insert("idempotency-key", HeaderValue::from_static(""));
        assert_eq!(Key::of(&headers), Err(KeyError::Empty));
    }

    /// The key in a value, found another way: by matching its ends and walking over what is between them.
    fn reference(value: &[u8]) -> Option<Vec<u8>> {
        let start = value.iter().position(|&byte| byte != 0x20)?;
        let end = value.iter().rposition(|&byte| byte != 0x20)?;
        let mut key = Vec::new();
        match &value[start..=end] {
            [0x22, inner @ .., 0x22] => {
                let mut inner = inner.iter();
                while let Some(&byte) = inner.next() {
                    key.push(match byte {
                        0x5c => *inner.next().filter(|&&next| next == 0x5c || next == 0x22)?,
                        0x21 | 0x23..=0x5b | 0x5d..=0x7e => byte,
                        _ => return None,
                    });
                }
            }
            bare => {
                for &byte in bare {
                    if byte <= 0x20 || byte >= 0x7f || byte == 0x22 || byte == 0x2c {
                        return None;
                    }
                    key.push(byte);
                }
            }
        }
        (!key.is_empty() && key.len() < 256).then_some(key)
    }

    // promise: ID-7
    #[test]
    fn random_bytes_are_a_key_exactly_when_they_should_be() {
        let mut rng = SmallRng::seed_from_u64(7);
        let mut accepted = [0, 0];
        for _ in 0..1_000_000 {
            let length = match rng.random_range(0..100) {
                0 => rng.random_range(250..260),
                1 => rng.random_range(505..515),
                _ => rng.random_range(0..10),
            };
            let quoted = rng.random();
            let alphabet: &[u8] = match rng.random_range(0..4) {
                0 => b"ab:/|\\",
                1 => b"\"\\a,; ",
                2 => b"\\\"",
                _ => &[],
            };
            let mut value: Vec<u8> = (0..length)
                .map(|_| match (alphabet, rng.random_range(0..20)) {
                    ([], 0) => rng.random(),
                    ([], _) => rng.random_range(b'!'..=b'~'),
                    (some, _) => some[rng.random_range(0..some.len())],
                })
                .collect();
            if quoted {
                value.insert(0, b'"');
                value.push(b'"');
            }
            let expected = reference(&value);
            let key = Key::parse(&value).ok();
            accepted[usize::from(quoted)] += u32::from(key.is_some());
            let key = key.map(|key| key.as_str().as_bytes().to_vec());
            assert_eq!(key, expected, "{}", value.escape_ascii());
        }
        let enough = accepted.iter().all(|&number| number > 100_000);
        assert!(enough, "of each form some are keys: {accepted:?}");
    }

    // promise: ID-22
    #[test]
    fn a_key_is_shown_neither_by_itself_nor_by_an_error() {
        let key = Key::parse(b"secret").unwrap();
        assert_eq!(format!("{key:?}, {:#?}", Some(&key)).find("secret"), None);
        let long = "secret".repeat(100);
        for value in ["\"secret", "secret,secret", &long] {
            let error = Key::parse(value.as_bytes()).unwrap_err();
            assert_eq!(format!("{error} {error:?}").find("secret"), None);
        }
    }
}
