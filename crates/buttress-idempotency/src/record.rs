//! What a store knows of a request, as plain data: no lock, no clock, no I/O. It is for those who write a
//! [`Store`](crate::Store).
//!
//! ```text
//! Running ─┬─> Done      the handler answered: every later request gets its answer
//!          ├─> (none)    the handler provably never ran, or died before it was armed
//!          └─> Unknown   its lease is over: something may have been done
//! Unknown ─┬─> Done      it answers after all, or somebody says what came of it
//!          ├─> (none)    somebody says that nothing was done
//!          └─> Running   it is heard of again, or it is run again
//! ```
//!
//! Every operation of a store is one [`step`]: from a record, or none, and an [`Op`], to an [`Answer`] and a [`Change`] of the
//! record. A store has to make that step atomic, and to supply the time.

use std::{
    borrow::Cow,
    fmt,
    hash::{Hash, Hasher},
    sync::LazyLock,
    time::Duration,
};

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What a store keeps a record under: a scope, and the hash of a key. The key itself is in no store.
///
/// They are in the order of their scopes, byte by byte, and then of their hashes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RecordKey {
    /// Whose key it is: a principal, a tenant. Empty if all share their keys.
    pub scope: String,
    /// The hash of scope and key.
    pub hash: [u8; 32],
}

impl RecordKey {
    /// The record of a key within a scope.
    #[must_use]
    pub fn new(scope: impl Into<String>, key: &str) -> Self {
        static CONTEXT: LazyLock<ContextKey> =
            LazyLock::new(|| hash_derive_key_context("buttress idempotency 1 key"));

        let scope = scope.into();
        let mut hasher = blake3::Hasher::new_from_context_key(&CONTEXT);
        // The length first, so that no two pairs are the same bytes.
        hasher.update(&(scope.len() as u64).to_le_bytes());
        hasher.update(scope.as_bytes());
        hasher.update(key.as_bytes());
        let hash = hasher.finalize().into();
        Self { scope, hash }
    }
}

impl Hash for RecordKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The scope is in it.
        state.write(&self.hash);
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = blake3::Hash::from(self.hash);
        write!(f, "{}/{}", self.scope, hash.to_hex().as_str())
    }
}

/// The holder of a claim. It is drawn at random for each claim, and each operation of the holder brings it along.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Token(pub u128);

impl Token {
    /// A random token, of 128 bits.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// The fingerprint of a request without its body: the hash of method, path, query and content type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeadPrint(pub [u8; 32]);

/// The fingerprint of a request's body, as far as the handler has read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BodyPrint {
    /// The hash of the bytes that were read, or of the canonical form of the JSON that they are.
    pub hash: [u8; 32],
    /// How many bytes were read.
    pub length: u64,
    /// Was that the whole body?
    pub whole: bool,
}

/// The answer of a handler, to be given again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StoredResponse {
    /// Its status.
    pub status: u16,
    /// Its headers that are replayed, in their order.
    pub headers: Vec<(String, Bytes)>,
    /// Its body; nothing if it was not kept, as when it was too large.
    pub body: Option<Bytes>,
}

/// What a handler did.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Completion {
    /// The body that it has read.
    pub body: BodyPrint,
    /// What it answered.
    pub response: StoredResponse,
}

/// Where a request stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum State {
    /// Somebody is at it.
    Running {
        /// Who.
        token: Token,
        /// The end of the lease, unless it is renewed.
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
    Done {
        /// By whom; nothing if somebody else has said that it was.
        token: Option<Token>,
        /// How.
        completion: Completion,
    },
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Record {
    /// The request that claimed the key.
    pub head: HeadPrint,
    /// Which claim of this key it is: a later one has a higher number, across expiry and restart.
    pub fence: u64,
    /// When the key was claimed first.
    pub first_seen: Moment,
    /// When it is forgotten, unless its lease lasts longer.
    pub expires_at: Moment,
    /// Where it stands.
    pub state: State,
}

/// What a request that comes claims a key with.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// The fingerprint of the request.
    pub head: HeadPrint,
    /// The token of the holder, if the claim wins.
    pub token: Token,
    /// How long the lease lasts, unless it is renewed.
    pub lease: Duration,
    /// How long the record is kept from now on, if nothing more is heard of it.
    pub ttl: Duration,
    /// Is it armed from the beginning?
    pub armed: bool,
    /// Does it win too where the outcome of an earlier run is unknown?
    pub rerun: bool,
}

/// An operation on a record. All but a claim and a settlement are for the holder of the claim alone.
#[derive(Clone, Debug)]
pub enum Op {
    /// Begin a run, unless there is one.
    Claim(Claim),
    /// The run goes on: renew its lease.
    Heartbeat {
        /// The holder.
        token: Token,
        /// How long the lease lasts from now on.
        lease: Duration,
    },
    /// From now on the run may have effects that others see.
    Arm {
        /// The holder.
        token: Token,
    },
    /// The run is done.
    Complete {
        /// The holder.
        token: Token,
        /// What it did.
        completion: Completion,
        /// How long the record is kept from now on.
        ttl: Duration,
    },
    /// Nothing was done: free the key.
    Release {
        /// The holder.
        token: Token,
    },
    /// The run has ended, and nobody will know what came of it: as if its lease were over now.
    Abandon {
        /// The holder.
        token: Token,
    },
    /// An operator, or a program that knows, says what came of an unknown outcome.
    Settle {
        /// What was done; nothing if nothing was done.
        completion: Option<Completion>,
        /// How long the record is kept from now on.
        ttl: Duration,
    },
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a claim: it has won, and the request is to be run.
    Won {
        /// The number of the claim.
        fence: u64,
    },
    /// To a claim: another run is under way.
    InFlight {
        /// What is left of its lease.
        lease_left: Duration,
    },
    /// To a claim: the key belongs to another request.
    Mismatch,
    /// To a claim: there was another run, and nobody knows what came of it.
    Unknown,
    /// To a claim: the request was done before. To a completion: this token has completed it before, in this way.
    Done(Completion),
    /// To any other operation: it is done.
    Accepted,
    /// To any other operation: nothing is done, since the token does not hold the record, or its state does not allow it.
    Refused,
}

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it lives for a moment, and a box would be an allocation for each step"
)]
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
        self.seen_at(now).map(Cow::into_owned)
    }

    /// The same without a copy, where it is as it was.
    fn seen_at(&self, now: Moment) -> Option<Cow<'_, Self>> {
        if now >= self.kept_until() {
            return None;
        }
        Some(match self.state {
            State::Running {
                token, lease_until, ..
            } if now >= lease_until => Cow::Owned(Self {
                state: State::Unknown { token },
                ..*self
            }),
            _ => Cow::Borrowed(self),
        })
    }

    /// When the record will have expired, if nothing else is heard of it: what a store sorts its records by, to find those
    /// that it may remove.
    #[must_use]
    pub fn kept_until(&self) -> Moment {
        match self.state {
            // It died before it did anything.
            State::Running {
                lease_until,
                armed: false,
                ..
            } => lease_until,
            State::Running { lease_until, .. } => lease_until.max(self.expires_at),
            State::Unknown { .. } | State::Done { .. } => self.expires_at,
        }
    }

    /// Who is at it, or was when its lease ended.
    fn holder(&self) -> Option<Token> {
        match self.state {
            State::Running { token, .. } | State::Unknown { token } => Some(token),
            State::Done { .. } => None,
        }
    }
}

/// Does one operation on a record, at a moment of the store's clock.
///
/// `last_fence` is the highest fence that this store has given out, for whichever key, as far as it knows. Without it a fence
/// would come twice when a record is removed and its key claimed again within a microsecond, or after the clock was set back.
#[must_use]
pub fn step(record: Option<&Record>, now: Moment, last_fence: u64, op: &Op) -> (Answer, Change) {
    let current = record.and_then(|record| record.seen_at(now));
    let current = current.as_deref();
    let held_by = |token| {
        let held = current.filter(|record| record.holder() == Some(token));
        held.cloned()
    };
    match op {
        Op::Claim(claim) => claim_step(record, current, now, last_fence, claim),
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
                State::Unknown { .. } | State::Done { .. } => REFUSED,
            },
            None => REFUSED,
        },
        Op::Complete {
            token,
            completion,
            ttl,
        } => match held_by(*token) {
            Some(record) => accept(record.done(Some(*token), completion, now.after(*ttl))),
            // He has completed it, and may not have heard so. It stays as he did it first.
            None => match current.map(|record| &record.state) {
                Some(State::Done {
                    token: Some(by),
                    completion,
                }) if by == token => (Answer::Done(completion.clone()), Change::Keep),
                _ => REFUSED,
            },
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
                Some(completion) => accept(record.clone().done(None, completion, now.after(*ttl))),
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
    last_fence: u64,
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
            state: State::Done { completion, .. },
            ..
        }) => Answer::Done(completion.clone()),
        Some(_) if !claim.rerun => Answer::Unknown,
        Some(_) | None => {
            let last = before.map_or(0, |before| before.fence).max(last_fence);
            // It rises with the clock too, so that it does where a store has forgotten everything.
            let fence = last.saturating_add(1).max(now.0);
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
    fn done(self, token: Option<Token>, completion: &Completion, expires_at: Moment) -> Self {
        let completion = completion.clone();
        Self {
            state: State::Done { token, completion },
            expires_at,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEASE: Duration = Duration::from_secs(30);
    const TTL: Duration = Duration::from_hours(24);
    const MS: Duration = Duration::from_millis(1);
    const ALICE: Token = Token(1);
    const BOB: Token = Token(2);

    /// One record, on a clock that moves when it is told to.
    #[derive(Default)]
    struct Desk {
        record: Option<Record>,
        now: Moment,
        last_fence: u64,
    }

    impl Desk {
        /// A key that Alice has claimed.
        fn claimed(armed: bool) -> Self {
            let mut desk = Self {
                now: Moment(1_790_000_000_000_000),
                ..Self::default()
            };
            let answer = desk.claim(Claim {
                armed,
                ..claim(ALICE)
            });
            assert!(matches!(answer, Answer::Won { .. }), "{answer:?}");
            desk
        }

        fn does(&mut self, op: &Op) -> Answer {
            let (answer, change) = step(self.record.as_ref(), self.now, self.last_fence, op);
            match change {
                Change::Keep => {}
                Change::Put(record) => self.record = Some(record),
                Change::Remove => self.record = None,
            }
            if let Answer::Won { fence } = answer {
                assert!(fence > self.last_fence);
                self.last_fence = fence;
            }
            answer
        }

        fn claim(&mut self, claim: Claim) -> Answer {
            self.does(&Op::Claim(claim))
        }

        fn accepts(&mut self, op: &Op) -> bool {
            match self.does(op) {
                Answer::Accepted => true,
                Answer::Refused => false,
                other => panic!("{other:?} to {op:?}"),
            }
        }

        /// Changes nothing.
        fn refuses(&mut self, op: &Op) -> bool {
            let before = self.record.clone();
            !self.accepts(op) && self.record == before
        }

        fn pass(&mut self, time: Duration) {
            self.now = self.now.after(time);
        }

        fn state(&self) -> Option<State> {
            let record = self.record.as_ref()?.at(self.now)?;
            Some(record.state)
        }

        fn is_unknown(&self) -> bool {
            matches!(self.state(), Some(State::Unknown { .. }))
        }
    }

    fn just_short_of(time: Duration) -> Duration {
        time.saturating_sub(MS)
    }

    fn claim(token: Token) -> Claim {
        Claim {
            head: HeadPrint([1; 32]),
            token,
            lease: LEASE,
            ttl: TTL,
            armed: true,
            rerun: false,
        }
    }

    fn completion(status: u16) -> Completion {
        Completion {
            body: BodyPrint {
                hash: [2; 32],
                length: 10,
                whole: true,
            },
            response: StoredResponse {
                status,
                headers: Vec::new(),
                body: Some(Bytes::from_static(b"done")),
            },
        }
    }

    fn complete(token: Token, status: u16) -> Op {
        Op::Complete {
            token,
            completion: completion(status),
            ttl: TTL,
        }
    }

    fn heartbeat(token: Token) -> Op {
        Op::Heartbeat {
            token,
            lease: LEASE,
        }
    }

    fn settle(status: Option<u16>) -> Op {
        Op::Settle {
            completion: status.map(completion),
            ttl: TTL,
        }
    }

    fn all_of(token: Token) -> [Op; 4] {
        [
            heartbeat(token),
            Op::Arm { token },
            complete(token, 200),
            Op::Release { token },
        ]
    }

    #[test]
    fn who_comes_first_wins_and_the_others_are_told_for_how_long_he_is_at_it() {
        let mut desk = Desk::claimed(true);
        desk.pass(just_short_of(LEASE));
        let lease_left = MS;
        assert_eq!(desk.claim(claim(BOB)), Answer::InFlight { lease_left });
    }

    #[test]
    fn what_is_done_is_answered_to_everybody() {
        let mut desk = Desk::claimed(true);
        assert!(desk.accepts(&complete(ALICE, 201)));
        for token in [ALICE, BOB] {
            assert_eq!(desk.claim(claim(token)), Answer::Done(completion(201)));
        }
        // Whoever was at it is not any more. He may say once more that he has done it, and how changes nothing.
        let before = desk.record.clone();
        let again = desk.does(&complete(ALICE, 500));
        assert_eq!(again, Answer::Done(completion(201)));
        assert_eq!(desk.record, before);
        assert!(desk.refuses(&complete(BOB, 201)));
        let [heartbeat, arm, _, release] = all_of(ALICE);
        assert!([heartbeat, arm, release].iter().all(|op| desk.refuses(op)));
        assert!(desk.refuses(&settle(Some(500))));
    }

    #[test]
    fn a_key_of_another_request_is_a_mismatch_wherever_it_stands() {
        let other = Claim {
            head: HeadPrint([9; 32]),
            rerun: true,
            ..claim(BOB)
        };
        let mut desk = Desk::claimed(true);
        assert_eq!(desk.claim(other), Answer::Mismatch, "running");
        desk.pass(LEASE);
        assert_eq!(desk.claim(other), Answer::Mismatch, "unknown");
        assert!(desk.accepts(&complete(ALICE, 200)));
        assert_eq!(desk.claim(other), Answer::Mismatch, "done");
        assert_eq!(desk.claim(claim(BOB)), Answer::Done(completion(200)));
    }

    // promise: ID-17
    #[test]
    fn another_token_is_refused_wherever_the_record_stands() {
        let mut nobody = Desk::default();
        assert!(all_of(BOB).iter().all(|op| nobody.refuses(op)));
        assert!(nobody.refuses(&settle(None)));

        let mut desk = Desk::claimed(false);
        assert!(all_of(BOB).iter().all(|op| desk.refuses(op)));
        let mut desk = Desk::claimed(true);
        assert!(all_of(BOB).iter().all(|op| desk.refuses(op)));
        desk.pass(LEASE);
        assert!(all_of(BOB).iter().all(|op| desk.refuses(op)));
        assert!(desk.is_unknown());
    }

    // promise: ID-10
    #[test]
    fn heartbeats_keep_the_lease() {
        let mut desk = Desk::claimed(true);
        for _ in 0..10 {
            desk.pass(just_short_of(LEASE));
            assert!(desk.accepts(&heartbeat(ALICE)));
            let lease_left = LEASE;
            assert_eq!(desk.claim(claim(BOB)), Answer::InFlight { lease_left });
        }
        desk.pass(LEASE);
        assert_eq!(desk.claim(claim(BOB)), Answer::Unknown);
    }

    // promise: ID-10
    #[test]
    fn a_lapse_is_an_unknown_outcome_and_a_late_completion_heals_it() {
        for seen in [false, true] {
            let mut desk = Desk::claimed(true);
            desk.pass(LEASE);
            if seen {
                assert_eq!(desk.claim(claim(BOB)), Answer::Unknown);
            }
            assert!(desk.is_unknown());
            assert!(desk.accepts(&complete(ALICE, 200)));
            assert_eq!(desk.claim(claim(BOB)), Answer::Done(completion(200)));
        }
    }

    #[test]
    fn who_was_thought_dead_and_is_heard_of_again_is_at_it_again() {
        let mut desk = Desk::claimed(true);
        desk.pass(LEASE * 2);
        assert_eq!(desk.claim(claim(BOB)), Answer::Unknown);
        // It has nothing left to announce, but it may go on, and it may say that it has done nothing.
        assert!(desk.refuses(&Op::Arm { token: ALICE }));
        assert!(desk.accepts(&heartbeat(ALICE)));
        let lease_left = LEASE;
        assert_eq!(desk.claim(claim(BOB)), Answer::InFlight { lease_left });
        desk.pass(LEASE);
        assert!(desk.is_unknown(), "it is armed still");
        assert!(desk.accepts(&Op::Release { token: ALICE }));
        assert!(matches!(desk.claim(claim(BOB)), Answer::Won { .. }));
    }

    #[test]
    fn what_was_once_seen_to_be_unknown_stays_so_when_the_clock_steps_back() {
        let mut desk = Desk::claimed(true);
        let start = desk.now;
        desk.pass(LEASE);
        assert_eq!(desk.claim(claim(BOB)), Answer::Unknown);
        desk.now = start;
        assert_eq!(desk.claim(claim(BOB)), Answer::Unknown);
    }

    // promise: ID-13
    #[test]
    fn a_lapse_before_it_was_armed_frees_the_key() {
        let mut desk = Desk::claimed(false);
        desk.pass(just_short_of(LEASE));
        assert!(desk.state().is_some());
        desk.pass(MS);
        assert_eq!(desk.state(), None);
        // It must not begin now: somebody else may.
        assert!(all_of(ALICE).iter().all(|op| desk.refuses(op)));
        let other = Claim {
            head: HeadPrint([9; 32]),
            ..claim(BOB)
        };
        assert!(matches!(desk.claim(other), Answer::Won { .. }));
        assert!(all_of(ALICE).iter().all(|op| desk.refuses(op)));
        assert!(desk.accepts(&complete(BOB, 200)));
    }

    // promise: ID-13
    #[test]
    fn a_lapse_after_it_was_armed_is_an_unknown_outcome() {
        let mut desk = Desk::claimed(false);
        assert!(desk.accepts(&Op::Arm { token: ALICE }));
        assert!(desk.accepts(&Op::Arm { token: ALICE }), "twice is once");
        desk.pass(LEASE);
        assert_eq!(desk.claim(claim(BOB)), Answer::Unknown);
    }

    #[test]
    fn a_heartbeat_does_not_arm_and_arming_does_not_renew_the_lease() {
        let mut desk = Desk::claimed(false);
        desk.pass(LEASE / 2);
        assert!(desk.accepts(&heartbeat(ALICE)));
        desk.pass(LEASE);
        assert_eq!(desk.state(), None);

        let mut desk = Desk::claimed(false);
        desk.pass(just_short_of(LEASE));
        assert!(desk.accepts(&Op::Arm { token: ALICE }));
        desk.pass(MS);
        assert!(desk.is_unknown());
    }

    // promise: ID-13
    #[test]
    fn who_has_asked_the_world_settles_what_is_unknown_and_nothing_else() {
        for status in [Some(200), None] {
            let mut desk = Desk::claimed(true);
            assert!(desk.refuses(&settle(status)), "somebody is at it");
            desk.pass(LEASE);
            assert!(desk.accepts(&settle(status)));
            assert!(desk.refuses(&settle(status)), "it is settled");
            assert!(
                desk.refuses(&complete(ALICE, 500)),
                "a late completion does not change what was said already"
            );
            match status {
                Some(status) => {
                    assert_eq!(desk.claim(claim(BOB)), Answer::Done(completion(status)));
                }
                None => assert!(matches!(desk.claim(claim(BOB)), Answer::Won { .. })),
            }
        }
    }

    // promise: ID-11
    #[test]
    fn a_rerun_has_a_higher_fence_and_the_first_run_is_refused() {
        let rerun = Claim {
            rerun: true,
            ..claim(BOB)
        };
        let mut desk = Desk::claimed(true);
        let first_seen = desk.now;
        let lease_left = LEASE;
        assert_eq!(desk.claim(rerun), Answer::InFlight { lease_left });
        desk.pass(LEASE);
        let first = desk.last_fence;
        let answer = desk.claim(rerun);
        assert!(matches!(answer, Answer::Won { fence } if fence > first));
        assert!(all_of(ALICE).iter().all(|op| desk.refuses(op)));
        assert!(desk.accepts(&complete(BOB, 201)));
        assert!(desk.refuses(&complete(ALICE, 500)));
        assert_eq!(desk.claim(rerun), Answer::Done(completion(201)));
        assert_eq!(desk.record.unwrap().first_seen, first_seen);
    }

    // promise: ID-6
    #[test]
    fn a_record_lives_to_the_last_millisecond_of_its_time_counted_from_when_it_was_done() {
        let mut desk = Desk::claimed(true);
        desk.pass(LEASE / 2);
        assert!(desk.accepts(&complete(ALICE, 200)));
        desk.pass(just_short_of(TTL));
        assert_eq!(desk.claim(claim(BOB)), Answer::Done(completion(200)));
        desk.pass(MS);
        assert!(matches!(desk.claim(claim(BOB)), Answer::Won { .. }));
    }

    #[test]
    fn an_unknown_outcome_is_known_to_be_so_until_the_record_expires() {
        let mut desk = Desk::claimed(true);
        desk.pass(just_short_of(TTL));
        assert!(desk.is_unknown());
        desk.pass(MS);
        assert_eq!(desk.state(), None);
        assert!(all_of(ALICE).iter().all(|op| desk.refuses(op)));
    }

    #[test]
    fn a_record_does_not_expire_while_somebody_is_at_it() {
        let mut desk = Desk::claimed(true);
        let long = Claim {
            lease: TTL * 2,
            ..claim(ALICE)
        };
        assert!(desk.accepts(&Op::Release { token: ALICE }));
        assert!(matches!(desk.claim(long), Answer::Won { .. }));
        desk.pass(just_short_of(TTL * 2));
        assert_eq!(desk.claim(claim(BOB)), Answer::InFlight { lease_left: MS });
        assert!(desk.accepts(&complete(ALICE, 200)));
        desk.pass(just_short_of(TTL));
        assert_eq!(desk.claim(claim(BOB)), Answer::Done(completion(200)));
    }

    // promise: ID-16
    #[test]
    fn fences_rise_across_release_and_expiry_and_when_the_clock_steps_back() {
        // `Desk::does` looks at every one.
        let mut desk = Desk::claimed(true);
        let hour = 3_600_000_000;
        for forgets in [false, true] {
            for _ in 0..10 {
                // Within the same microsecond.
                assert!(desk.accepts(&Op::Release { token: ALICE }));
                assert!(matches!(desk.claim(claim(ALICE)), Answer::Won { .. }));
                desk.pass(TTL);
                desk.record = desk.record.filter(|_| !forgets);
                assert!(matches!(desk.claim(claim(ALICE)), Answer::Won { .. }));
                assert!(desk.accepts(&Op::Release { token: ALICE }));
                desk.now = Moment(desk.now.0 - 30 * hour);
                assert!(matches!(desk.claim(claim(ALICE)), Answer::Won { .. }));
            }
        }
    }

    // promise: ID-16
    #[test]
    fn fences_rise_where_a_store_remembers_nothing_as_the_clock_does() {
        let mut desk = Desk::claimed(true);
        let first = desk.last_fence;
        (desk.record, desk.last_fence) = (None, 0);
        desk.pass(MS);
        let answer = desk.claim(claim(BOB));
        assert!(matches!(answer, Answer::Won { fence } if fence > first));
    }

    #[test]
    fn no_time_is_too_long_and_no_fence_too_high() {
        let mut desk = Desk {
            last_fence: u64::MAX - 1,
            ..Desk::default()
        };
        let forever = Claim {
            lease: Duration::MAX,
            ttl: Duration::MAX,
            ..claim(ALICE)
        };
        assert_eq!(desk.claim(forever), Answer::Won { fence: u64::MAX });
        desk.pass(TTL * 1_000_000);
        assert!(matches!(desk.claim(claim(BOB)), Answer::InFlight { .. }));
        let record = desk.record.as_ref();
        let _ = step(record, Moment(u64::MAX), u64::MAX, &Op::Claim(claim(BOB)));
    }

    /// The same record as a clerk would keep it who looks at it at every tick of the clock.
    #[derive(Clone, Debug, Default)]
    struct Clerk {
        now: u64,
        page: Option<Page>,
    }

    #[derive(Clone, Debug)]
    struct Page {
        head: u8,
        owner: u128,
        /// Until when the owner is at it; nothing if that is over.
        busy_until: Option<u64>,
        effects: bool,
        answer: Option<u16>,
        forget: u64,
    }

    /// What both are asked for: by a small number, so that they meet.
    #[derive(Clone, Copy, Debug)]
    enum Ask {
        Pass(u64),
        Claim {
            head: u8,
            who: u128,
            lease: u64,
            ttl: u64,
            armed: bool,
            rerun: bool,
        },
        Heartbeat(u128, u64),
        Arm(u128),
        Complete(u128, u16, u64),
        Release(u128),
        Settle(Option<u16>, u64),
    }

    impl Clerk {
        fn pass(&mut self, micros: u64) {
            for _ in 0..micros {
                self.now += 1;
                self.look();
            }
        }

        fn look(&mut self) {
            let Some(page) = &mut self.page else { return };
            if page.busy_until.is_some_and(|until| self.now >= until) {
                page.busy_until = None;
            }
            let idle = page.busy_until.is_none();
            let nothing_done = page.answer.is_none() && !page.effects;
            if idle && (nothing_done || self.now >= page.forget) {
                self.page = None;
            }
        }

        /// What he says, in a word.
        fn says(&mut self, ask: Ask) -> String {
            let said = self.hears(ask);
            // A lease or a time of nothing at all is over at once.
            self.look();
            said
        }

        fn hears(&mut self, ask: Ask) -> String {
            let now = self.now;
            let yes = || "yes".to_owned();
            let no = || "no".to_owned();
            if let Ask::Claim {
                head,
                who,
                lease,
                ttl,
                armed,
                rerun,
            } = ask
            {
                if let Some(page) = &self.page {
                    if page.head != head {
                        return "mismatch".to_owned();
                    }
                    if let Some(answer) = page.answer {
                        return format!("done {answer}");
                    }
                    if let Some(until) = page.busy_until {
                        return format!("busy {}", until - now);
                    }
                    if !rerun {
                        return "unknown".to_owned();
                    }
                }
                self.page = Some(Page {
                    head,
                    owner: who,
                    busy_until: Some(now + lease),
                    effects: armed,
                    answer: None,
                    forget: now + ttl,
                });
                return "won".to_owned();
            }
            let Some(page) = &mut self.page else {
                return no();
            };
            if let Some(answer) = page.answer {
                return match ask {
                    Ask::Complete(who, ..) if who == page.owner => format!("done {answer}"),
                    _ => no(),
                };
            }
            let busy = page.busy_until.is_some();
            match ask {
                Ask::Heartbeat(who, lease) if who == page.owner => {
                    page.busy_until = Some(now + lease);
                }
                Ask::Arm(who) if who == page.owner && busy => page.effects = true,
                Ask::Complete(who, answer, ttl) if who == page.owner => {
                    page.busy_until = None;
                    page.answer = Some(answer);
                    page.forget = now + ttl;
                }
                Ask::Settle(Some(answer), ttl) if !busy => {
                    page.owner = u128::MAX;
                    page.answer = Some(answer);
                    page.forget = now + ttl;
                }
                Ask::Release(who) if who == page.owner => self.page = None,
                Ask::Settle(None, _) if !busy => self.page = None,
                _ => return no(),
            }
            yes()
        }
    }

    fn as_op(ask: Ask) -> Option<Op> {
        let micros = Duration::from_micros;
        Some(match ask {
            Ask::Pass(_) => return None,
            Ask::Claim {
                head,
                who,
                lease,
                ttl,
                armed,
                rerun,
            } => Op::Claim(Claim {
                head: HeadPrint([head; 32]),
                token: Token(who),
                lease: micros(lease),
                ttl: micros(ttl),
                armed,
                rerun,
            }),
            Ask::Heartbeat(who, lease) => Op::Heartbeat {
                token: Token(who),
                lease: micros(lease),
            },
            Ask::Arm(who) => Op::Arm { token: Token(who) },
            Ask::Complete(who, status, ttl) => Op::Complete {
                token: Token(who),
                completion: completion(status),
                ttl: micros(ttl),
            },
            Ask::Release(who) => Op::Release { token: Token(who) },
            Ask::Settle(status, ttl) => Op::Settle {
                completion: status.map(completion),
                ttl: micros(ttl),
            },
        })
    }

    fn in_a_word(answer: &Answer) -> String {
        match answer {
            Answer::Won { .. } => "won".to_owned(),
            Answer::InFlight { lease_left } => format!("busy {}", lease_left.as_micros()),
            Answer::Mismatch => "mismatch".to_owned(),
            Answer::Unknown => "unknown".to_owned(),
            Answer::Done(completion) => format!("done {}", completion.response.status),
            Answer::Accepted => "yes".to_owned(),
            Answer::Refused => "no".to_owned(),
        }
    }

    fn asks() -> impl Strategy<Value = Ask> {
        let who = || 0..3_u128;
        let status = || 200..210_u16;
        let claim = (0..8_u8, who(), 0..8_u64, 0..25_u64, any::<[bool; 2]>()).prop_map(
            |(head, who, lease, ttl, [armed, rerun])| Ask::Claim {
                // Most are the same request.
                head: u8::from(head == 0),
                who,
                lease,
                ttl,
                armed,
                rerun,
            },
        );
        prop_oneof![
            2 => (0..12_u64).prop_map(Ask::Pass),
            3 => claim,
            1 => (who(), 0..8_u64).prop_map(|(who, lease)| Ask::Heartbeat(who, lease)),
            1 => who().prop_map(Ask::Arm),
            1 => (who(), status(), 0..25_u64).prop_map(|(who, status, ttl)| Ask::Complete(who, status, ttl)),
            1 => who().prop_map(Ask::Release),
            1 => (prop::option::of(status()), 0..25_u64).prop_map(|(status, ttl)| Ask::Settle(status, ttl)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_000))]

        // promise: ID-10
        // promise: ID-11
        // promise: ID-13
        #[test]
        fn it_says_what_a_clerk_says_who_looks_at_every_tick(asks in prop::collection::vec(asks(), 1..40)) {
            let mut desk = Desk::default();
            let mut clerk = Clerk::default();
            for ask in asks {
                match (ask, as_op(ask)) {
                    (_, Some(op)) => {
                        let said = in_a_word(&desk.does(&op));
                        prop_assert_eq!(said, clerk.says(ask), "to {:?}", ask);
                    }
                    (Ask::Pass(micros), None) => {
                        desk.pass(Duration::from_micros(micros));
                        clerk.pass(micros);
                    }
                    (_, None) => unreachable!("only time is no operation"),
                }
                prop_assert_eq!(desk.state().is_some(), clerk.page.is_some());
                if let Some(record) = desk.record.as_ref() {
                    prop_assert_eq!(desk.now < record.kept_until(), clerk.page.is_some());
                }
            }
        }
    }
}
