//! A JSON text in one form, whatever the order of its members and the white space between them.
//!
//! It is the form of RFC 8785 but for its numbers. Those are doubles there, so that 9007199254740993 is 9007199254740992;
//! here they are what is written, to the last digit.

use std::{borrow::Cow, ops::Range};

use serde::de::IgnoredAny;

/// How deep a text may be nested. It is what `serde_json` reads too.
const DEPTH: usize = 128;

/// The form of a text. Nothing if it is no JSON, nested too deep, or if two readers might not see the same in it: where a
/// member comes twice, or a string is half of a surrogate pair.
pub(crate) fn canonical(text: &[u8]) -> Option<Vec<u8>> {
    let text = str::from_utf8(text).ok()?;
    // The rest goes by the grammar. This checks it without a recursion, and keeps nothing.
    serde_json::from_str::<IgnoredAny>(text).ok()?;
    let mut walk = Walk {
        rest: text,
        form: Vec::with_capacity(text.len()),
    };
    walk.value(DEPTH)?;
    Some(walk.form)
}

/// A way through a text that keeps to the grammar.
struct Walk<'a> {
    rest: &'a str,
    form: Vec<u8>,
}

impl<'a> Walk<'a> {
    /// The next character that is no white space.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.rest.bytes().next()
    }

    /// Passes white space and this character, if it is there.
    fn eat(&mut self, byte: u8) -> bool {
        let is_it = self.peek() == Some(byte);
        if is_it {
            self.rest = &self.rest[1..];
        }
        is_it
    }

    /// Passes as many of these characters as there are.
    fn take(&mut self, which: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|letter| !which(letter));
        let (token, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        token
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        match self.peek()? {
            b'{' => self.object(depth.checked_sub(1)?),
            b'[' => self.array(depth.checked_sub(1)?),
            b'"' => {
                let string = self.string()?;
                self.write(&string)
            }
            b'-' | b'0'..=b'9' => self.number(),
            _ => {
                let name = self.take(|letter| letter.is_ascii_lowercase());
                self.form.extend_from_slice(name.as_bytes());
                Some(())
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<()> {
        self.eat(b'{');
        self.form.push(b'{');
        let start = self.form.len();
        let mut members: Vec<(Cow<'a, str>, Range<usize>)> = Vec::new();
        while !self.eat(b'}') {
            self.eat(b',');
            self.peek()?;
            let name = self.string()?;
            let from = self.form.len() - start;
            self.write(&name)?;
            self.eat(b':');
            self.form.push(b':');
            self.value(depth)?;
            self.form.push(b',');
            members.push((name, from..self.form.len() - start));
        }
        let is_less = |one: &str, other: &str| one.encode_utf16().lt(other.encode_utf16());
        if !members.is_sorted_by(|one, other| is_less(&one.0, &other.0)) {
            members.sort_unstable_by(|one, other| one.0.encode_utf16().cmp(other.0.encode_utf16()));
            if members.windows(2).any(|two| two[0].0 == two[1].0) {
                return None;
            }
            let unsorted = self.form.split_off(start);
            for (_, range) in members {
                self.form.extend_from_slice(&unsorted[range]);
            }
        }
        self.close(start, b'}');
        Some(())
    }

    fn array(&mut self, depth: usize) -> Option<()> {
        self.eat(b'[');
        self.form.push(b'[');
        let start = self.form.len();
        while !self.eat(b']') {
            self.eat(b',');
            self.value(depth)?;
            self.form.push(b',');
        }
        self.close(start, b']');
        Some(())
    }

    /// Ends what has begun here, each part of which has a comma behind it.
    fn close(&mut self, start: usize, with: u8) {
        if self.form.len() > start {
            self.form.pop();
        }
        self.form.push(with);
    }

    /// What a string says.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        let mut escaped = false;
        let mut has_any = false;
        let end = self.rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            has_any |= escaped;
            ends
        })?;
        let (token, rest) = self.rest.split_at(end + 2);
        self.rest = rest;
        if has_any {
            serde_json::from_str(token).ok().map(Cow::Owned)
        } else {
            Some(Cow::Borrowed(&token[1..=end]))
        }
    }

    fn write(&mut self, string: &str) -> Option<()> {
        serde_json::to_writer(&mut self.form, string).ok()
    }

    /// The digits from the first to the last that is not 0, and the power of ten that they count.
    fn number(&mut self) -> Option<()> {
        let token = self.take(|letter| matches!(letter, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'));
        let (token, exponent) = token.split_once(['e', 'E']).unwrap_or((token, "0"));
        let (sign, token) = token.strip_prefix('-').map_or(("", token), |it| ("-", it));
        let (whole, fraction) = token.split_once('.').unwrap_or((token, ""));
        let digits = [whole, fraction].concat();
        let digits = digits.trim_start_matches('0');
        let short = digits.trim_end_matches('0');
        if short.is_empty() {
            self.form.push(b'0');
            return Some(());
        }
        let zeros = i64::try_from(digits.len() - short.len()).ok()?;
        let places = i64::try_from(fraction.len()).ok()?;
        // An exponent of more than 18 digits is nobody's number.
        let exponent: i64 = exponent.parse().ok()?;
        let exponent = exponent.checked_add(zeros)?.checked_sub(places)?;
        self.form.extend_from_slice(sign.as_bytes());
        self.form.extend_from_slice(short.as_bytes());
        if exponent != 0 {
            self.form
                .extend_from_slice(format!("e{exponent}").as_bytes());
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use allocation_counter::measure;
    use proptest::prelude::*;
    use serde_json::Value;
    use serde_json_canonicalizer::to_vec;

    use super::*;

    fn form(text: &str) -> Option<String> {
        canonical(text.as_bytes()).map(|form| String::from_utf8(form).unwrap())
    }

    fn are_same(texts: &[&str]) {
        for text in texts {
            assert!(form(text).is_some(), "{text}");
            assert_eq!(form(text), form(texts[0]), "{text}");
        }
    }

    fn all_differ(texts: &[&str]) {
        for (place, text) in texts.iter().enumerate() {
            for other in &texts[..place] {
                assert_ne!(form(text), form(other), "{text} {other}");
            }
        }
    }

    // promise: ID-9
    #[test]
    fn order_and_white_space_and_spelling_do_not_matter() {
        are_same(&[
            r#"{"a":1,"b":[true,null,"x"]}"#,
            "\r\n{ \"b\" : [ true , null , \"x\" ] ,\t\"a\" : 1 } ",
            r#"{"\u0062":[true,null,"\u0078"],"a":1.0}"#,
        ]);
        are_same(&[r#""/\u20ac\n""#, r#""\/€\u000a""#]);
        are_same(&["{}", " { } "]);
        are_same(&["[]", "[\n]"]);
        all_differ(&[
            "{}",
            "[]",
            "[[]]",
            "[{}]",
            "null",
            "true",
            "false",
            "\"\"",
            "\"null\"",
            "0",
            "\"0\"",
            "[0]",
            "[0,0]",
            "[[0],0]",
            "[0,[0]]",
            r#"{"":0}"#,
            r#"{"a":0}"#,
            r#"{"a":{"a":0}}"#,
            r#"{"a":0,"b":1}"#,
            r#"{"a":1,"b":0}"#,
            r#"["a","b"]"#,
            r#"["b","a"]"#,
            r#"["a,b"]"#,
            r#"{"a":0,"b":{"c":0}}"#,
            r#"{"a":{"c":0},"b":0}"#,
            r#"{"a":0,"b":{},"c":0}"#,
        ]);
        // One letter, and a letter with an accent over it: RFC 8785 leaves that alone.
        all_differ(&["\"\u{e9}\"", "\"e\u{301}\""]);
    }

    // promise: ID-9
    #[test]
    fn members_are_in_the_order_of_rfc_8785() {
        let text = r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#;
        let sorted = "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}";
        assert_eq!(form(text).unwrap(), sorted);
    }

    // promise: ID-9
    #[test]
    fn numbers_are_the_same_where_they_are_equal_to_the_last_digit() {
        are_same(&["1", "1.0", "1e0", "1E+00", "10e-1", "0.1e1", "100.00e-2"]);
        are_same(&["0", "-0", "0.0", "-0e5", "0e99999999999999999999"]);
        are_same(&["-1.50", "-15e-1", "-0.015e2"]);
        are_same(&["100", "1e2", "100.0"]);
        all_differ(&[
            // All of these are one double.
            "9007199254740992",
            "9007199254740993",
            "9007199254740992.5",
            "9007199254740992.000000001",
        ]);
        all_differ(&[
            "0.1",
            "0.1000000000000000055511151231257827",
            "0.10000000000000001",
        ]);
        all_differ(&[
            "1e400", "1e401", "-1e400", "1e-400", "0", "1", "10", "-1", "0.1", "0.01",
        ]);
    }

    // promise: ID-9
    #[test]
    fn what_two_readers_might_not_see_the_same_in_has_no_form() {
        for text in [
            "",
            " ",
            "nul",
            "NaN",
            "Infinity",
            "-",
            "01",
            "1.",
            ".1",
            "+1",
            "1e",
            "'a'",
            "{a:1}",
            "[1,]",
            "[,]",
            "[1 2]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{\"a\":1}x",
            "1 1",
            "\"",
            "\"\\x\"",
            "\"\u{1}\"",
            "\u{feff}1",
            "// \n1",
            "[",
            "]",
            "{\"a\":",
            // A member that comes twice, however it is spelt.
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"\u0061":1}"#,
            r#"[{"b":{"x":1,"y":2,"x":1}}]"#,
            // Half a pair.
            r#""\ud800""#,
            r#"{"\udc00":1}"#,
            r#""\ud800\u0041""#,
            "1e9999999999999999999",
            "1e-9223372036854775808",
            "10e9223372036854775807",
            "0.1e-9223372036854775808",
        ] {
            let expected = (text == "1e-9223372036854775808").then(|| text.to_owned());
            assert_eq!(form(text), expected, "{text}");
        }
        for bytes in [
            &b"\"\xff\""[..],
            b"\"\xed\xa0\x80\"",
            b"\xff",
            b"\"\xc0\x80\"",
        ] {
            assert_eq!(canonical(bytes), None);
        }
    }

    // promise: ID-9
    #[test]
    fn what_is_nested_deep_has_no_form_and_does_no_harm() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let nested = |depth| [&open.repeat(depth), "0", &close.repeat(depth)].concat();
            assert!(form(&nested(128)).is_some());
            for depth in [129, 1_000_000] {
                assert_eq!(form(&nested(depth)), None);
                assert_eq!(form(&open.repeat(depth)), None);
            }
        }
    }

    // promise: ID-9
    #[test]
    fn what_is_made_to_take_memory_takes_twenty_times_its_size_at_most() {
        let members = |count: u32| {
            // Each sorts before those before it.
            let names = (0..count).rev();
            let members: Vec<_> = names.map(|name| format!("\"{name:x}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        for text in [
            members(100_000),
            members(131_073),
            format!("[{}0]", "0,".repeat(500_000)),
            format!("[{}0]", "{\"b\":0,\"a\":0},".repeat(70_000)),
            format!("[{}0]", "\"\\u0001\",".repeat(100_000)),
            "[".repeat(1_000_000),
        ] {
            let taken = measure(|| drop(canonical(text.as_bytes())));
            println!("{} bytes take {}", text.len(), taken.bytes_max);
            assert!(taken.bytes_max <= 20 * text.len() as u64, "{taken:?}");
        }
    }

    /// A value without numbers that a double would round, and without a member twice.
    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-1_000_000_000_000_i64..1_000_000_000_000).prop_map(Value::from),
            (any::<i32>(), -20..20).prop_map(|(digits, power)| {
                serde_json::from_str(&format!("{digits}e{power}")).unwrap()
            }),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            let members = prop::collection::vec((any::<String>(), inner.clone()), 0..6);
            prop_oneof![
                prop::collection::vec(inner, 0..6).prop_map(Value::from),
                members.prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    /// Writes a value with white space, escapes, an order and numbers as the bits say.
    fn spell(value: &Value, bits: &mut impl FnMut() -> u8, text: &mut String) {
        let space = |bits: u8| [" ", "\n\t", "", ""][usize::from(bits % 4)];
        text.push_str(space(bits()));
        match value {
            Value::Number(number) if bits().is_multiple_of(2) => {
                let (digits, exponent) = (number.to_string(), bits() % 9);
                // The point goes so far to the left, and comes back by the exponent.
                if digits.contains(['e', '.']) {
                    text.push_str(&digits);
                } else {
                    let zeros = "0".repeat(exponent.into());
                    let _ = write!(text, "{digits}{zeros}e-{exponent}");
                }
            }
            Value::String(string) => spell_string(string, bits, text),
            Value::Array(items) => {
                text.push('[');
                for (place, item) in items.iter().enumerate() {
                    text.push_str(if place > 0 { "," } else { "" });
                    spell(item, bits, text);
                }
                text.push(']');
            }
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_by_cached_key(|_| bits());
                text.push('{');
                for (place, (name, value)) in members.into_iter().enumerate() {
                    text.push_str(if place > 0 { "," } else { "" });
                    text.push_str(space(bits()));
                    spell_string(name, bits, text);
                    text.push_str(space(bits()));
                    text.push(':');
                    spell(value, bits, text);
                }
                text.push('}');
            }
            other => text.push_str(&other.to_string()),
        }
        text.push_str(space(bits()));
    }

    fn spell_string(string: &str, bits: &mut impl FnMut() -> u8, text: &mut String) {
        text.push('"');
        for letter in string.chars() {
            if bits().is_multiple_of(3) || letter < ' ' || matches!(letter, '"' | '\\') {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    let _ = write!(text, "\\u{unit:04X}");
                }
            } else {
                text.push(letter);
            }
        }
        text.push('"');
    }

    proptest! {
        // promise: ID-9
        #[test]
        fn a_value_has_one_form_however_it_is_written(value in values(), seed in any::<u64>()) {
            let mut state = seed;
            let mut bits = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0]
            };
            let mut texts = [String::new(), String::new()];
            for text in &mut texts {
                spell(&value, &mut bits, text);
            }
            prop_assert_eq!(form(&texts[0]), form(&texts[1]), "{:?}", texts);
            prop_assert_eq!(form(&texts[0]), form(&value.to_string()), "{:?}", texts);
        }

        // promise: ID-9
        #[test]
        fn two_have_one_form_exactly_when_rfc_8785_has_one(one in values(), other in values()) {
            let same = to_vec(&one).unwrap() == to_vec(&other).unwrap();
            prop_assert_eq!(form(&one.to_string()) == form(&other.to_string()), same);
            // And the forms themselves are those of the RFC, which a second pass leaves as they are.
            let first = form(&one.to_string()).unwrap();
            prop_assert_eq!(form(&first), Some(first.clone()));
            prop_assert_eq!(form(&String::from_utf8(to_vec(&one).unwrap()).unwrap()), Some(first));
        }

        // promise: ID-9
        #[test]
        fn a_byte_that_is_changed_is_not_the_same_where_it_is_seen(
            value in values(), place in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let mut text = value.to_string().into_bytes();
            let before = canonical(&text).unwrap();
            let place = place.index(text.len());
            text[place] = byte;
            if let Some(after) = canonical(&text) {
                // A number that is too large for a double has a form all the same.
                let now = serde_json::from_slice::<Value>(&text).ok();
                let same = now.is_some_and(|now| to_vec(&now).unwrap() == to_vec(&value).unwrap());
                prop_assert!(same || after != before);
            }
        }

        // promise: ID-9
        #[test]
        fn bytes_do_no_harm(bytes in prop::collection::vec(
            prop_oneof![
                prop::sample::select(&br#"{}[]",:\0123456789.eE+-tfnu "#[..]),
                any::<u8>(),
            ], 0..40,
        )) {
            if let Some(form) = canonical(&bytes) {
                prop_assert_eq!(canonical(&form), Some(form.clone()));
                prop_assert!(serde_json::from_slice::<IgnoredAny>(&form).is_ok());
            }
        }
    }
}
