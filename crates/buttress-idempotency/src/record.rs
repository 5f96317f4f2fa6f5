//! What is known of a request, as plain data: no lock, no clock, no I/O.
//!
//! ```text
//! Running ─┬─> Done      the handler answered: every later request has its answer
//!          ├─> (none)    the handler provably never ran, or died before it was armed
//!          └─> Unknown   its lease is over: something may have been done
//! Unknown ─┬─> Done      it answers after all, or somebody says what came of it
//!          └─> (none)    somebody says that nothing was done
//! ```
//!
//! Every operation of a store is one [`step`]: from a record, or none, and an [`Op`], to an [`Answer`] and what becomes of
//! the record. A store of records has to make that step atomic, and to bring the time.

use std::{fmt, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Which record it is: whose key, and its hash. The key itself is in no store.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordKey {
    /// Within what the key is one: a principal, a tenant. Empty if all share their keys.
    pub scope: String,
    /// The hash of scope and key.
    pub hash: [u8; 32],
}

impl RecordKey {
    /// The record of a key within a scope.
    #[must_use]
    pub fn new(scope: impl Into<String>, key: &str) -> Self {
        let scope = scope.into();
        let mut hasher = blake3::Hasher::new_derive_key("buttress idempotency 1 key");
        // The length first, so that no two pairs are the same bytes.
        hasher.update(&(scope.len() as u64).to_le_bytes());
        hasher.update(scope.as_bytes());
        hasher.update(key.as_bytes());
        let hash = hasher.finalize().into();
        Self { scope, hash }
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = blake3::Hash::from(self.hash);
        write!(f, "{}/{}", self.scope, hash.to_hex().as_str())
    }
}

/// Who has claimed a record. It is drawn at random for each claim, and shown by all that is done under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token(pub u128);

impl Token {
    /// A token that nobody else has.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().as_u128())
    }
}

/// What a request is, without its body: the hash of method, path, query and content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeadPrint(pub [u8; 32]);

/// What the body of a request is, as far as the handler has read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BodyPrint {
    /// The hash of so many bytes.
    pub hash: [u8; 32],
    /// The bytes that were read.
    pub length: u64,
    /// Was that all of it?
    pub whole: bool,
}

/// The answer of a handler, to be given again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredResponse {
    /// Its status.
    pub status: u16,
    /// Its headers that are replayed, in their order.
    pub headers: Vec<(String, Bytes)>,
    /// Its body; nothing if it was too large to be kept.
    pub body: Option<Bytes>,
}

/// What a handler did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The body that it has read.
    pub body: BodyPrint,
    /// What it answered.
    pub response: StoredResponse,
}

/// Where a request stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Somebody is at it.
    Running {
        /// Who.
        token: Token,
        /// Until when nobody else is.
        lease_until: Moment,
        /// May something have been done that others see?
        armed: bool,
    },
    /// The lease was over before there was an answer: something may have been done.
    Unknown {
        /// Who was at it.
        token: Token,
    },
    /// It is done.
    Done(Completion),
}

/// A moment on the clock of a store, in microseconds since 1970.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment so much later, or the last one there is.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// The time since then; zero if it is still to come.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The request that claimed the key.
    pub head: HeadPrint,
    /// Which claim of this key it is: a later one has a higher number, across expiry and restart.
    pub fence: u64,
    /// When the key was claimed first.
    pub first_seen: Moment,
    /// When it is forgotten, unless somebody is at it.
    pub expires_at: Moment,
    /// Where it stands.
    pub state: State,
}

/// A request that comes.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// What it is.
    pub head: HeadPrint,
    /// Whom it will be, if it is let through.
    pub token: Token,
    /// For how long nobody else is.
    pub lease: Duration,
    /// How long it is remembered.
    pub ttl: Duration,
    /// Is it armed from the beginning?
    pub armed: bool,
    /// Is it run again where the outcome of an earlier run is unknown?
    pub rerun: bool,
}

/// An operation on a record.
#[derive(Clone, Debug)]
pub enum Op {
    /// Begin, unless somebody has.
    Claim(Claim),
    /// I am still at it.
    Heartbeat {
        /// Who.
        token: Token,
        /// For how long from now on.
        lease: Duration,
    },
    /// From now on something may be done that others see.
    Arm {
        /// Who.
        token: Token,
    },
    /// It is done.
    Complete {
        /// Who.
        token: Token,
        /// How.
        completion: Completion,
        /// How long it is remembered from now on.
        ttl: Duration,
    },
    /// Nothing was done.
    Release {
        /// Who.
        token: Token,
    },
    /// I am not at it any more, and nobody will know what came of it: as if the lease were over now.
    Abandon {
        /// Who.
        token: Token,
    },
    /// An operator, or whoever asked the world outside, says what came of it.
    Settle {
        /// What it was; nothing if nothing was done.
        completion: Option<Completion>,
        /// How long it is remembered from now on.
        ttl: Duration,
    },
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// A claim: it is yours.
    Won {
        /// Its number.
        fence: u64,
    },
    /// A claim: somebody is at it.
    InFlight {
        /// For how long, if nothing is heard of him.
        lease_left: Duration,
    },
    /// A claim: the key belongs to another request.
    Mismatch,
    /// A claim: somebody was at it, and nobody knows what came of it.
    Unknown,
    /// A claim: it was done.
    Done(Completion),
    /// Another operation: so be it.
    Accepted,
    /// Another operation: the record is not, or not any more, the one that it is meant for.
    Refused,
}

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stays as it is.
    Keep,
    /// It is this from now on.
    Put(Record),
    /// There is none any more.
    Remove,
}

impl Record {
    /// The record as it is at this moment, where time alone has changed it: it has expired, its lease is over.
    #[must_use]
    pub fn at(&self, now: Moment) -> Option<Self> {
        match self.state {
            State::Running { lease_until, .. } if now < lease_until => return Some(self.clone()),
            // It died before it did anything.
            State::Running { armed: false, .. } => return None,
            _ if now >= self.expires_at => return None,
            State::Running { token, .. } => {
                let state = State::Unknown { token };
                return Some(Self {
                    state,
                    ..self.clone()
                });
            }
            State::Unknown { .. } | State::Done(_) => {}
        }
        Some(self.clone())
    }

    /// Who is at it, or was when its lease ended.
    fn holder(&self) -> Option<Token> {
        match self.state {
            State::Running { token, .. } | State::Unknown { token } => Some(token),
            State::Done(_) => None,
        }
    }
}

/// Does one operation on a record, at a moment of the store's clock.
#[must_use]
pub fn step(record: Option<&Record>, now: Moment, op: &Op) -> (Answer, Change) {
    let current = record.and_then(|record| record.at(now));
    let held_by = |token| {
        let current = current.clone();
        current.filter(|record| record.holder() == Some(token))
    };
    match op {
        Op::Claim(claim) => claim_step(record, current.as_ref(), now, claim),
        Op::Heartbeat { token, lease } => match held_by(*token) {
            Some(record) => {
                let armed = !matches!(record.state, State::Running { armed: false, .. });
                let state = State::Running {
                    token: *token,
                    lease_until: now.after(*lease),
                    armed,
                };
                accept(Record { state, ..record })
            }
            None => REFUSED,
        },
        Op::Arm { token } => match held_by(*token) {
            Some(record) => match record.state {
                State::Running { lease_until, .. } => {
                    let state = State::Running {
                        token: *token,
                        lease_until,
                        armed: true,
                    };
                    accept(Record { state, ..record })
                }
                State::Unknown { .. } | State::Done(_) => REFUSED,
            },
            None => REFUSED,
        },
        Op::Complete {
            token,
            completion,
            ttl,
        } => match held_by(*token) {
            Some(record) => accept(record.done(completion, now.after(*ttl))),
            None => REFUSED,
        },
        Op::Release { token } => match held_by(*token) {
            Some(_) => (Answer::Accepted, Change::Remove),
            None => REFUSED,
        },
        Op::Abandon { token } => match held_by(*token) {
            Some(record) if matches!(record.state, State::Running { armed: false, .. }) => {
                (Answer::Accepted, Change::Remove)
            }
            Some(record) => {
                let state = State::Unknown { token: *token };
                accept(Record { state, ..record })
            }
            None => REFUSED,
        },
        Op::Settle { completion, ttl } => match current {
            Some(record) if matches!(record.state, State::Unknown { .. }) => match completion {
                Some(completion) => accept(record.done(completion, now.after(*ttl))),
                None => (Answer::Accepted, Change::Remove),
            },
            _ => REFUSED,
        },
    }
}

const REFUSED: (Answer, Change) = (Answer::Refused, Change::Keep);

fn accept(record: Record) -> (Answer, Change) {
    (Answer::Accepted, Change::Put(record))
}

fn claim_step(
    before: Option<&Record>,
    current: Option<&Record>,
    now: Moment,
    claim: &Claim,
) -> (Answer, Change) {
    let answer = match current {
        Some(record) if record.head != claim.head => Answer::Mismatch,
        Some(Record {
            state: State::Running { lease_until, .. },
            ..
        }) => Answer::InFlight {
            lease_left: lease_until.since(now),
        },
        Some(Record {
            state: State::Done(completion),
            ..
        }) => Answer::Done(completion.clone()),
        Some(_) if !claim.rerun => Answer::Unknown,
        Some(_) | None => {
            // It rises with the clock too, so that it does where the record before is forgotten.
            let fence = before.map_or(0, |before| before.fence + 1).max(now.0);
            let state = State::Running {
                token: claim.token,
                lease_until: now.after(claim.lease),
                armed: claim.armed,
            };
            let record = Record {
                head: claim.head,
                fence,
                first_seen: current.map_or(now, |current| current.first_seen),
                expires_at: now.after(claim.ttl),
                state,
            };
            return (Answer::Won { fence }, Change::Put(record));
        }
    };
    // What time has changed is written down.
    match (before, current) {
        (Some(before), Some(current)) if before != current => {
            (answer, Change::Put(current.clone()))
        }
        _ => (answer, Change::Keep),
    }
}

impl Record {
    fn done(self, completion: &Completion, expires_at: Moment) -> Self {
        Self {
            state: State::Done(completion.clone()),
            expires_at,
            ..self
        }
    }
}
