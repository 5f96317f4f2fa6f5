//! What a server promises about keys, to be published: as JSON, as Markdown, and for `OpenAPI`.

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use http::{HeaderName, Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::Key;

/// The draft that the field is from.
const DRAFT: &str =
    "https://datatracker.ietf.org/doc/html/draft-ietf-httpapi-idempotency-key-header-07";

/// Says that a response is the one to an earlier request.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// What a server promises about the keys of its requests.
///
/// The draft of `Idempotency-Key` asks for it: a server that takes keys has to publish which, and when they expire. The three
/// forms say the same, and only what applies to these settings.
///
/// ```
/// use std::time::Duration;
///
/// use buttress_idempotency::Policy;
///
/// let mut policy = Policy::default();
/// policy.required = true;
/// policy.ttl = Duration::from_hours(72);
/// assert!(policy.to_markdown().contains("72 hours"));
/// assert!(policy.to_json().contains("\"expires_after_seconds\": 259200"));
/// assert!(policy.to_openapi().contains("\"required\": true"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each says whether something has been asked for"
)]
pub struct Policy {
    /// The methods whose requests take a key: by default POST and PATCH.
    pub methods: Vec<Method>,
    /// Must such a request have a key? By default it need not.
    pub required: bool,
    /// How long a key is remembered after its request was done: 24 hours by default.
    pub ttl: Duration,
    /// How many characters a key may have: [`Key::MAX_LENGTH`].
    pub max_key_length: usize,
    /// What has to be the same in all requests with one key: by default the method, the path, the query, the content type
    /// and the body.
    pub fingerprint: Vec<String>,
    /// Up to how many bytes two JSON bodies are compared by what they say; by default none are, and bodies are compared by
    /// their bytes.
    pub canonical_json_limit: Option<u64>,
    /// How long a duplicate of a request in flight waits for the answer; by default it does not wait.
    pub wait: Duration,
    /// Is a request run again if the outcome of its first run is unknown? By default it is refused.
    pub reruns: bool,
    /// Is a request run without protection while the store cannot be asked? By default it is refused. If its record is
    /// damaged, it is refused in any case.
    pub fails_open: bool,
    /// Is a request run again after an answer of 5xx? By default that answer is replayed, as any other.
    pub releases_5xx: bool,
    /// How many bytes of body a replayed answer may have: 1 MiB by default. A larger body is left out.
    pub response_limit: u64,
    /// The field that marks a replayed answer: `Idempotency-Replayed` by default. Its value is `true`.
    pub replay_header: HeaderName,
}

/// Why a request is refused because of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Refusal {
    /// 400: it has no key, and must have one.
    Missing,
    /// 400: what it has is not a valid key, or there are two.
    Invalid,
    /// 403: it is not known whose key it is.
    NoScope,
    /// 409: a request with this key is under way.
    InFlight,
    /// 409: it is not known what came of the request with this key.
    OutcomeUnknown,
    /// 422: the key belongs to another request.
    Mismatch,
    /// 429: this caller has as many keys as it may have.
    TooManyKeys,
    /// 503: the store cannot be asked or is full, or the record of this key is damaged.
    StoreDown,
}

impl Refusal {
    /// All of them, in the order of their statuses.
    pub const ALL: [Self; 8] = [
        Self::Missing,
        Self::Invalid,
        Self::NoScope,
        Self::InFlight,
        Self::OutcomeUnknown,
        Self::Mismatch,
        Self::TooManyKeys,
        Self::StoreDown,
    ];

    /// The status of the answer.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Missing | Self::Invalid => StatusCode::BAD_REQUEST,
            Self::NoScope => StatusCode::FORBIDDEN,
            Self::InFlight | Self::OutcomeUnknown => StatusCode::CONFLICT,
            Self::Mismatch => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooManyKeys => StatusCode::TOO_MANY_REQUESTS,
            Self::StoreDown => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The member `code` of the answer's body, for programs.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "idempotency-key-missing",
            Self::Invalid => "idempotency-key-invalid",
            Self::NoScope => "idempotency-scope-missing",
            Self::InFlight => "idempotency-in-flight",
            Self::OutcomeUnknown => "idempotency-outcome-unknown",
            Self::Mismatch => "idempotency-key-reused",
            Self::TooManyKeys => "idempotency-too-many-keys",
            Self::StoreDown => "idempotency-store-unavailable",
        }
    }

    /// What has happened, in a sentence for people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Missing => "The request has no Idempotency-Key, and must have one.",
            Self::Invalid => "The Idempotency-Key is not a valid key.",
            Self::NoScope => "It is not known whose Idempotency-Key this is.",
            Self::InFlight => "A request with this Idempotency-Key is under way.",
            Self::OutcomeUnknown => {
                "It is not known what came of the request with this Idempotency-Key."
            }
            Self::Mismatch => "This Idempotency-Key belongs to another request.",
            Self::TooManyKeys => "There are too many keys of this caller.",
            Self::StoreDown => "Whether the request has been done before cannot be found out now.",
        }
    }

    /// What the client should do, in a sentence or two.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Missing => "Send it with a key.",
            Self::Invalid => "Send it with one valid key.",
            Self::NoScope => "Say who you are.",
            Self::InFlight | Self::StoreDown => {
                "Wait as long as Retry-After says, and send it again with the same key."
            }
            Self::OutcomeUnknown => {
                "Find out whether it was done before you send it with a new key: it may have been."
            }
            Self::Mismatch => {
                "Use a new key for each request, and the same one only to send it again."
            }
            Self::TooManyKeys => {
                "It was not done. Send it again later with the same key, after Retry-After if there is one."
            }
        }
    }

    /// Does the answer say in `Retry-After` when to come back?
    #[must_use]
    pub fn has_retry_after(self) -> bool {
        matches!(self, Self::InFlight | Self::StoreDown)
    }
}

impl Default for Policy {
    fn default() -> Self {
        let fingerprint = ["method", "path", "query", "content-type", "body"];
        Self {
            methods: vec![Method::POST, Method::PATCH],
            required: false,
            ttl: Duration::from_hours(24),
            max_key_length: Key::MAX_LENGTH,
            fingerprint: fingerprint.map(Into::into).into(),
            canonical_json_limit: None,
            wait: Duration::ZERO,
            reruns: false,
            fails_open: false,
            releases_5xx: false,
            response_limit: 1 << 20,
            replay_header: REPLAYED,
        }
    }
}

impl Policy {
    /// The refusals that there can be, in the order of their statuses.
    pub fn refusals(&self) -> impl Iterator<Item = Refusal> {
        // Two cannot be ruled out: a run that is cut off when its server ends is an unknown outcome even where it is to be
        // run again, and a damaged record is a 503 even where requests are run without protection.
        let all = Refusal::ALL.into_iter();
        all.filter(|refusal| self.required || *refusal != Refusal::Missing)
    }

    /// The policy as JSON, for programs. Durations are in whole seconds, rounded down.
    #[must_use]
    pub fn to_json(&self) -> String {
        let methods: Vec<&str> = self.methods.iter().map(Method::as_str).collect();
        let refusals: Vec<Value> = self.refusals().map(told).collect();
        pretty(&json!({
            "header": FIELD,
            "specification": DRAFT,
            "methods": methods,
            "required": self.required,
            "key": {
                "forms": ["\"key\"", "key"],
                "characters": "visible ASCII",
                "min_length": 1,
                "max_length": self.max_key_length,
                "pattern": self.pattern(),
                "recommended": "UUID version 4",
            },
            "expires_after_seconds": self.ttl.as_secs(),
            "fingerprint": self.fingerprint,
            "canonical_json_limit_bytes": self.canonical_json_limit,
            "wait_seconds": self.wait.as_secs(),
            "outcome_unknown": if self.reruns { "run again" } else { "refused" },
            "store_unavailable": if self.fails_open { "run without protection" } else { "refused" },
            "replay": {
                "header": shown(&self.replay_header),
                "value": "true",
                "body_limit_bytes": self.response_limit,
                "not_replayed": self.not_replayed(),
            },
            "refusals": refusals,
        }))
    }

    /// The policy as Markdown, for people: a section of a page, with a heading of the second level.
    #[must_use]
    pub fn to_markdown(&self) -> String {
        let mut text = format!("## {FIELD}\n\n");
        let need = if self.required { "must" } else { "may" };
        let methods = list(self.methods.iter().map(Method::as_str), "or");
        let replay = shown(&self.replay_header);
        let forgotten = list(self.not_replayed().into_iter(), "or");
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line(format!(
            "A {methods} request {need} have a key in the field [`{FIELD}`]({DRAFT}). Sent again with the same key, it is not \
             done again: the answer is that of the first time.\n"
        ));
        line(format!(
            "- **Key**: 1 to {} visible characters of ASCII, in quotes, `{FIELD}: \"8e03978e-40d5-43dd-bc93-6894a57f9324\"`, or \
             without. A UUID of version 4 is recommended. Use a new one for each request.",
            self.max_key_length
        ));
        line(format!(
            "- **Expiry**: a key is remembered for {}. After that it is a new one, and the request is done.",
            spoken(self.ttl)
        ));
        line(format!(
            "- **The same request** has the same {}.",
            list(self.fingerprint.iter().map(String::as_str), "and")
        ));
        if let Some(limit) = self.canonical_json_limit {
            line(format!(
                "- **A JSON body** of up to {limit} bytes is the same in its canonical form (RFC 8785): neither the order of \
                 members nor white space matters."
            ));
        }
        line(format!(
            "- **An answer that is given again** has the field `{replay}: true`. A body of more than {} bytes is left out of \
             it. An answer of {forgotten} is not kept: the request is done again.",
            self.response_limit
        ));
        if !self.wait.is_zero() {
            line(format!(
                "- **While the first one is under way**, the same request waits for its answer, up to {}.",
                spoken(self.wait)
            ));
        }
        if self.reruns {
            line("- **If it is not known what came of a request**, it is done again when it is sent again.".into());
        }
        if self.fails_open {
            line("- **While keys cannot be looked up**, requests are done all the same, without this protection.".into());
        }
        line(String::new());
        line("| status | code | what has happened | what to do |".into());
        line("|---|---|---|---|".into());
        for refusal in self.refusals() {
            line(format!(
                "| {} | `{}` | {} | {} |",
                refusal.status().as_u16(),
                refusal.code(),
                refusal.title(),
                refusal.advice()
            ));
        }
        text
    }

    /// The policy for `OpenAPI` 3.1, in JSON: a document of components only, to be merged into another or referred to.
    ///
    /// It has the parameter `IdempotencyKey`, the responses `Idempotency400` and so on, one for each status, the schema of
    /// their bodies, and the path item `Idempotent`, which shows how an operation of each method uses them. Methods that
    /// `OpenAPI` does not know are left out of that.
    #[must_use]
    pub fn to_openapi(&self) -> String {
        let mut by_status = BTreeMap::<u16, Vec<Refusal>>::new();
        for refusal in self.refusals() {
            let status = refusal.status().as_u16();
            by_status.entry(status).or_default().push(refusal);
        }
        let (mut responses, mut references) = (Map::new(), Map::new());
        for (status, refusals) in by_status {
            let name = format!("Idempotency{status}");
            let reference = format!("#/components/responses/{name}");
            references.insert(status.to_string(), json!({ "$ref": reference }));
            responses.insert(name, response(&refusals));
        }
        let replayed = json!({ "$ref": "#/components/headers/IdempotencyReplayed" });
        references.insert(
            "default".into(),
            json!({
                "description": "The answer of the operation, as it was given the first time.",
                "headers": { shown(&self.replay_header): replayed },
            }),
        );
        let operation = json!({
            "parameters": [{ "$ref": "#/components/parameters/IdempotencyKey" }],
            "responses": references,
        });
        // A path item has these operations and no others (OpenAPI 3.1.1, 4.8.9).
        let known = |method: &&Method| {
            let all = [
                "GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE",
            ];
            all.contains(&method.as_str())
        };
        let methods = self.methods.iter().filter(known);
        let item: Map<String, Value> = methods
            .map(|method| (method.as_str().to_ascii_lowercase(), operation.clone()))
            .collect();
        pretty(&json!({
            "openapi": "3.1.1",
            "info": { "title": FIELD, "version": env!("CARGO_PKG_VERSION") },
            "components": {
                "parameters": { "IdempotencyKey": self.parameter() },
                "headers": { "IdempotencyReplayed": {
                    "description": "The answer was given before, to a request with the same key.",
                    "schema": { "type": "string", "const": "true" },
                } },
                "schemas": { "IdempotencyProblem": self.schema() },
                "responses": responses,
                "pathItems": { "Idempotent": item },
            },
        }))
    }

    fn parameter(&self) -> Value {
        let description = format!(
            "The key of the request, in quotes or bare. It is remembered for {}. Use a new one for each request, and the same \
             one to send it again.",
            spoken(self.ttl)
        );
        json!({
            "name": FIELD,
            "in": "header",
            "required": self.required,
            "description": description,
            "schema": { "type": "string", "pattern": self.pattern() },
            "example": "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"",
        })
    }

    /// A problem of RFC 9457, with a code.
    fn schema(&self) -> Value {
        let codes: Vec<&str> = self.refusals().map(Refusal::code).collect();
        json!({
            "type": "object",
            "required": ["status", "code"],
            "properties": {
                "type": { "type": "string", "format": "uri-reference" },
                "title": { "type": "string" },
                "status": { "type": "integer" },
                "detail": { "type": "string" },
                "code": { "type": "string", "enum": codes },
            },
        })
    }

    /// The regular expression of the field's value, in the dialect of ECMA-262: what [`Key::parse`] takes.
    fn pattern(&self) -> String {
        let max = self.max_key_length;
        format!(
            r#"^ *(?:"(?:[\x21\x23-\x5B\x5D-\x7E]|\\["\\]){{1,{max}}}"|[\x21\x23-\x2B\x2D-\x7E]{{1,{max}}}) *$"#
        )
    }

    /// The statuses of answers that are not kept.
    fn not_replayed(&self) -> Vec<&'static str> {
        let mut statuses = vec!["408", "425", "429"];
        if self.releases_5xx {
            statuses.push("5xx");
        }
        statuses
    }
}

/// The field, as it is written.
const FIELD: &str = "Idempotency-Key";

fn told(refusal: Refusal) -> Value {
    json!({
        "status": refusal.status().as_u16(),
        "code": refusal.code(),
        "title": refusal.title(),
        "advice": refusal.advice(),
        "retry_after": refusal.has_retry_after(),
    })
}

/// One response for all refusals of a status.
fn response(refusals: &[Refusal]) -> Value {
    let mut description = String::new();
    for refusal in refusals {
        let (code, title, advice) = (refusal.code(), refusal.title(), refusal.advice());
        let _ = writeln!(description, "- `{code}`: {title} {advice}");
    }
    let codes: Vec<&str> = refusals.iter().map(|refusal| refusal.code()).collect();
    let mut response = json!({
        "description": description,
        "content": { "application/problem+json": { "schema": { "allOf": [
            { "$ref": "#/components/schemas/IdempotencyProblem" },
            { "properties": { "code": { "enum": codes } } },
        ] } } },
    });
    if refusals.iter().any(|refusal| refusal.has_retry_after()) {
        response["headers"] = json!({ "Retry-After": {
            "description": "In how many seconds to come back.",
            "schema": { "type": "integer", "minimum": 1 },
        } });
    }
    response
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

/// A header with its words in capitals, as people write it.
fn shown(name: &HeaderName) -> String {
    let words = name.as_str().split('-').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_ascii_uppercase() + rest
    });
    words.collect::<Vec<_>>().join("-")
}

/// "a, b or c".
fn list<'a>(items: impl Iterator<Item = &'a str>, last: &str) -> String {
    let items: Vec<&str> = items.collect();
    match &items[..] {
        [first @ .., end] if !first.is_empty() => format!("{} {last} {end}", first.join(", ")),
        _ => items.concat(),
    }
}

/// A time in the largest unit that it is a whole number of.
fn spoken(time: Duration) -> String {
    let seconds = time.as_secs();
    let (number, unit) = match seconds {
        0 => return format!("{} ms", time.as_millis()),
        _ if seconds.is_multiple_of(3_600) => (seconds / 3_600, "hour"),
        _ if seconds.is_multiple_of(60) => (seconds / 60, "minute"),
        _ => (seconds, "second"),
    };
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy in which everything is as it is not by default.
    fn other() -> Policy {
        Policy {
            methods: vec![Method::PUT, Method::from_bytes(b"CHARGE").unwrap()],
            required: true,
            ttl: Duration::from_secs(90),
            max_key_length: 64,
            fingerprint: vec!["path".into()],
            canonical_json_limit: Some(65_536),
            wait: Duration::from_secs(5),
            reruns: true,
            fails_open: true,
            releases_5xx: true,
            response_limit: 1_000,
            replay_header: HeaderName::from_static("x-again"),
        }
    }

    fn parsed(text: &str) -> Value {
        serde_json::from_str(text).expect("it is JSON")
    }

    fn statuses(policy: &Policy) -> Vec<u16> {
        let statuses = policy.refusals().map(|refusal| refusal.status().as_u16());
        statuses.collect()
    }

    // promise: ID-26
    #[test]
    fn only_what_is_set_can_be_refused() {
        let policy = Policy::default();
        assert_eq!(statuses(&policy), [400, 403, 409, 409, 422, 429, 503]);
        assert_eq!(statuses(&other()), [400, 400, 403, 409, 409, 422, 429, 503]);
    }

    // promise: ID-26
    #[test]
    fn the_json_has_what_is_set() {
        let policy = parsed(&Policy::default().to_json());
        assert_eq!(policy["header"], "Idempotency-Key");
        assert_eq!(policy["methods"], json!(["POST", "PATCH"]));
        assert_eq!(policy["required"], false);
        assert_eq!(policy["key"]["min_length"], 1);
        assert_eq!(policy["key"]["max_length"], 255);
        assert_eq!(policy["expires_after_seconds"], 86_400);
        assert_eq!(policy["wait_seconds"], 0);
        assert_eq!(policy["outcome_unknown"], "refused");
        assert_eq!(policy["store_unavailable"], "refused");
        assert_eq!(policy["replay"]["header"], "Idempotency-Replayed");
        assert_eq!(policy["replay"]["body_limit_bytes"], 1_048_576);
        let not_replayed = json!(["408", "425", "429"]);
        assert_eq!(policy["replay"]["not_replayed"], not_replayed);
        let fingerprint = json!(["method", "path", "query", "content-type", "body"]);
        assert_eq!(policy["fingerprint"], fingerprint);
        assert_eq!(policy["canonical_json_limit_bytes"], Value::Null);
        let refusals = policy["refusals"].as_array().unwrap();
        assert_eq!(refusals.len(), 7);
        assert_eq!(refusals[2]["status"], 409);
        assert_eq!(refusals[2]["code"], "idempotency-in-flight");
        assert_eq!(refusals[2]["retry_after"], true);
        assert_eq!(refusals[3]["retry_after"], false);

        let policy = parsed(&other().to_json());
        assert_eq!(policy["methods"], json!(["PUT", "CHARGE"]));
        assert_eq!(policy["required"], true);
        assert_eq!(policy["key"]["max_length"], 64);
        assert_eq!(policy["expires_after_seconds"], 90);
        assert_eq!(policy["wait_seconds"], 5);
        assert_eq!(policy["outcome_unknown"], "run again");
        assert_eq!(policy["store_unavailable"], "run without protection");
        assert_eq!(policy["replay"]["header"], "X-Again");
        assert_eq!(policy["replay"]["body_limit_bytes"], 1_000);
        assert_eq!(policy["replay"]["not_replayed"][3], "5xx");
        assert_eq!(policy["fingerprint"], json!(["path"]));
        assert_eq!(policy["canonical_json_limit_bytes"], 65_536);
        assert_eq!(policy["refusals"].as_array().unwrap().len(), 8);
    }

    // promise: ID-26
    #[test]
    fn the_markdown_has_what_is_set_and_every_refusal() {
        for policy in [Policy::default(), other()] {
            let text = policy.to_markdown();
            for refusal in Refusal::ALL {
                let row = format!("| {} | `{}` |", refusal.status().as_u16(), refusal.code());
                let can_be = policy.refusals().any(|other| other == refusal);
                assert_eq!(text.contains(&row), can_be, "{refusal:?}\n{text}");
            }
        }
        let says = |policy: &Policy, words: &[&str]| {
            let text = policy.to_markdown();
            for words in words {
                assert!(text.contains(words), "{words}\n{text}");
            }
        };
        says(
            &Policy::default(),
            &[
                "A POST or PATCH request may have a key",
                "1 to 255 visible",
                "for 24 hours",
                "method, path, query, content-type and body",
                "`Idempotency-Replayed: true`",
                "1048576 bytes",
                "408, 425 or 429",
            ],
        );
        says(
            &other(),
            &[
                "A PUT or CHARGE request must have a key",
                "1 to 64 visible",
                "for 90 seconds",
                "has the same path.",
                "of up to 65536 bytes",
                "up to 5 seconds",
                "`X-Again: true`",
                "408, 425, 429 or 5xx",
                "it is done again when it is sent again",
                "without this protection",
            ],
        );
    }

    // promise: ID-26
    #[test]
    fn the_fragment_of_openapi_has_the_parameter_and_the_responses() {
        let document = parsed(&Policy::default().to_openapi());
        assert_eq!(document["openapi"], "3.1.1");
        let parts = &document["components"];
        let parameter = &parts["parameters"]["IdempotencyKey"];
        assert_eq!(parameter["name"], "Idempotency-Key");
        assert_eq!(parameter["in"], "header");
        assert_eq!(parameter["required"], false);
        let expected = [
            (400, vec!["idempotency-key-invalid"]),
            (403, vec!["idempotency-scope-missing"]),
            (
                409,
                vec!["idempotency-in-flight", "idempotency-outcome-unknown"],
            ),
            (422, vec!["idempotency-key-reused"]),
            (429, vec!["idempotency-too-many-keys"]),
            (503, vec!["idempotency-store-unavailable"]),
        ];
        let responses = parts["responses"].as_object().unwrap();
        assert_eq!(responses.len(), expected.len());
        for (status, codes) in expected {
            let response = &responses[&format!("Idempotency{status}")];
            let schema = &response["content"]["application/problem+json"]["schema"];
            assert_eq!(
                schema["allOf"][1]["properties"]["code"]["enum"],
                json!(codes)
            );
            let description = response["description"].as_str().unwrap();
            assert!(codes.iter().all(|code| description.contains(code)));
            let waits = response["headers"]["Retry-After"].is_object();
            assert_eq!(waits, matches!(status, 409 | 503), "{status}");
        }
        let item = parts["pathItems"]["Idempotent"].as_object().unwrap();
        assert_eq!(item.keys().collect::<Vec<_>>(), ["patch", "post"]);

        let document = parsed(&other().to_openapi());
        let parts = &document["components"];
        assert_eq!(parts["parameters"]["IdempotencyKey"]["required"], true);
        let item = parts["pathItems"]["Idempotent"].as_object().unwrap();
        assert_eq!(item.keys().collect::<Vec<_>>(), ["put"]);
        let headers = &item["put"]["responses"]["default"]["headers"];
        assert!(headers["X-Again"].is_object());
    }

    // promise: ID-26
    #[test]
    fn the_pattern_takes_what_is_a_key_and_nothing_else() {
        let pattern = regex::Regex::new(&Policy::default().pattern()).unwrap();
        let agree = |value: &str| {
            let is_key = Key::parse(value.as_bytes()).is_ok();
            assert_eq!(pattern.is_match(value), is_key, "{value:?}");
        };
        for length in [0, 1, 254, 255, 256, 600] {
            for letter in ["k", r"\\", "\\\""] {
                let text = letter.repeat(length);
                agree(&text);
                agree(&format!("\"{text}\""));
                agree(&format!(" {text} "));
            }
        }
        // All values of up to four of these.
        let letters = [
            "", "a", " ", "\"", "\\", ",", ";", "\t", "~", "\u{7f}", "\u{e9}",
        ];
        for number in 0..letters.len().pow(4) {
            let places = (0..4).map(|place| number / letters.len().pow(place) % letters.len());
            let value: String = places.map(|letter| letters[letter]).collect();
            agree(&value);
            agree(&format!("\"{value}\""));
        }
    }

    // promise: ID-26
    #[test]
    fn every_reference_in_the_fragment_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| references(value, found)),
                _ => {}
            }
        }
        for policy in [Policy::default(), other()] {
            let document = parsed(&policy.to_openapi());
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(found.len() >= 10, "{found:?}");
            for reference in found {
                let target = document.pointer(reference.strip_prefix('#').unwrap());
                assert!(target.is_some(), "{reference}");
            }
        }
    }
}
