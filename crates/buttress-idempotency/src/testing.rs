//! The suite that every store has to pass.
//!
//! Say what your store is, and how time passes for it:
//!
//! ```
//! use std::time::Duration;
//!
//! use buttress_idempotency::{MemoryStore, testing};
//!
//! struct Mine(MemoryStore);
//!
//! impl testing::Subject for Mine {
//!     type Store = MemoryStore;
//!
//!     fn store(&self) -> &MemoryStore {
//!         &self.0
//!     }
//!
//!     // Its clock is the one of this computer.
//!     async fn pass(&self, time: Duration) {
//!         tokio::time::sleep(time).await;
//!     }
//!
//!     // A few operations never take longer than this.
//!     fn tick(&self) -> Duration {
//!         Duration::from_millis(30)
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! // In a test with `#[tokio::test(flavor = "multi_thread")]`, so that races are races.
//! testing::conformance(Mine(MemoryStore::new())).await;
//! # }
//! ```
//!
//! The suite makes scopes of its own, so that a store may have other records, and a database other users.

#![expect(
    clippy::missing_panics_doc,
    reason = "a check panics when it fails, and does nothing else"
)]

mod histories;

use std::{any::type_name, future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::Barrier;

pub use self::histories::histories;
use crate::{
    record::{
        Answer, BodyPrint, Claim, Completion, HeadPrint, Op, Record, RecordKey, State,
        StoredResponse, Token,
    },
    store::Store,
};

/// The store that is tested, and its time.
pub trait Subject: Send + Sync + 'static {
    /// Its type.
    type Store: Store;

    /// The store.
    fn store(&self) -> &Self::Store;

    /// Lets this time pass on the store's clock, and less than a tick more; by sleeping, if there is no other way.
    fn pass(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// The shortest time that the suite can tell apart; a few operations must take less. It is a millisecond on a clock that
    /// moves when it is told to, and perhaps 50 ms on a real one. The suite takes some hundred ticks.
    fn tick(&self) -> Duration;
}

/// Runs every check, one after the other, and panics with the names of those that failed.
///
/// Each check is a function of this module, to be run alone while it fails.
///
/// # Panics
///
/// When a check fails; what was wrong has been printed before.
pub async fn conformance<S: Subject>(subject: S) {
    let on = Arc::new(subject);
    let mut failed = Vec::new();
    run(&on, &mut failed, a_key_is_claimed_once).await;
    run(&on, &mut failed, what_is_done_is_answered_again).await;
    run(&on, &mut failed, another_request_is_a_mismatch).await;
    run(&on, &mut failed, scopes_do_not_meet).await;
    run(&on, &mut failed, keys_of_any_kind_are_kept_apart).await;
    run(&on, &mut failed, in_flight_says_for_how_long).await;
    run(&on, &mut failed, heartbeats_keep_the_lease).await;
    run(&on, &mut failed, a_lapse_is_an_unknown_outcome).await;
    run(&on, &mut failed, a_late_completion_heals).await;
    run(&on, &mut failed, a_late_heartbeat_revives).await;
    run(&on, &mut failed, a_late_release_frees).await;
    run(&on, &mut failed, a_rerun_has_a_higher_fence).await;
    run(&on, &mut failed, a_lapse_before_arming_frees).await;
    run(&on, &mut failed, a_lapse_after_arming_does_not).await;
    run(&on, &mut failed, a_release_frees).await;
    run(&on, &mut failed, a_settlement_is_final).await;
    run(&on, &mut failed, other_tokens_are_refused).await;
    run(&on, &mut failed, nothing_is_known_of_an_unclaimed_key).await;
    run(&on, &mut failed, a_record_is_kept_to_its_last_tick).await;
    run(&on, &mut failed, a_lease_outlives_the_time_to_live).await;
    run(&on, &mut failed, fences_rise_across_release_and_expiry).await;
    run(&on, &mut failed, open_records_are_listed_in_order).await;
    run(&on, &mut failed, a_purge_forgets_what_has_expired_alone).await;
    run(&on, &mut failed, one_of_64_racers_wins).await;
    run(&on, &mut failed, one_of_100_racers_wins_an_expired_key).await;
    run(&on, &mut failed, one_of_64_racers_reruns).await;
    run(&on, &mut failed, histories_are_linearizable).await;
    assert!(failed.is_empty(), "the store fails: {}", failed.join(", "));
}

async fn run<S, C, F>(on: &Arc<S>, failed: &mut Vec<&'static str>, check: C)
where
    S: Subject,
    C: FnOnce(Arc<S>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    // A task of its own, so that the others run when it panics.
    if tokio::spawn(check(Arc::clone(on))).await.is_err() {
        let name = type_name::<C>().split('<').next().unwrap_or_default();
        failed.push(name.rsplit("::").next().unwrap_or_default());
    }
}

/// Longer than any test: nothing lapses or expires meanwhile.
const LONG: Duration = Duration::from_hours(1);

/// The short leases and times to live, in ticks.
const TICKS: u32 = 4;

/// One key of a subject.
struct On<S> {
    subject: Arc<S>,
    key: RecordKey,
}

impl<S> Clone for On<S> {
    fn clone(&self) -> Self {
        Self {
            subject: Arc::clone(&self.subject),
            key: self.key.clone(),
        }
    }
}

impl<S: Subject> On<S> {
    /// A key that nobody has claimed.
    fn fresh(subject: &Arc<S>) -> Self {
        Self {
            subject: Arc::clone(subject),
            key: RecordKey::new(fresh_scope(), "key"),
        }
    }

    /// A key that a token has claimed.
    async fn claimed(subject: &Arc<S>, claim: Claim) -> Self {
        let on = Self::fresh(subject);
        on.wins(claim).await;
        on
    }

    /// A key whose lease is over.
    async fn unknown(subject: &Arc<S>, token: Token) -> Self {
        let lease = subject.tick();
        let on = Self::claimed(
            subject,
            Claim {
                lease,
                ..claim(token)
            },
        )
        .await;
        subject.pass(lease).await;
        on
    }

    async fn does(&self, op: Op) -> Answer {
        let answer = self.subject.store().step(&self.key, op.clone()).await;
        answer.unwrap_or_else(|error| panic!("{op:?}: {error:?}"))
    }

    async fn claim(&self, claim: Claim) -> Answer {
        self.does(Op::Claim(claim)).await
    }

    /// Claims the key, and returns the fence.
    async fn wins(&self, claim: Claim) -> u64 {
        match self.claim(claim).await {
            Answer::Won { fence } => fence,
            other => panic!("{claim:?}: {other:?}"),
        }
    }

    async fn is(&self, expected: &Answer) {
        let answer = self.claim(claim(Token::random())).await;
        assert_eq!(answer, *expected);
    }

    async fn is_in_flight(&self) {
        let answer = self.claim(claim(Token::random())).await;
        assert!(matches!(answer, Answer::InFlight { .. }), "{answer:?}");
    }

    async fn accepts(&self, op: Op) {
        assert_eq!(self.does(op.clone()).await, Answer::Accepted, "{op:?}");
    }

    async fn refuses(&self, op: Op) {
        let before = self.get().await;
        assert_eq!(self.does(op.clone()).await, Answer::Refused, "{op:?}");
        assert_eq!(self.get().await, before, "{op:?} was refused");
    }

    async fn get(&self) -> Option<Record> {
        let record = self.subject.store().get(&self.key).await;
        record.unwrap_or_else(|error| panic!("get: {error:?}"))
    }

    async fn state(&self) -> Option<State> {
        self.get().await.map(|record| record.state)
    }
}

fn fresh_scope() -> String {
    format!("conformance/{:032x}", Token::random().0)
}

fn claim(token: Token) -> Claim {
    Claim {
        head: HeadPrint([1; 32]),
        token,
        lease: LONG,
        ttl: LONG,
        armed: true,
        rerun: false,
    }
}

/// A completion with everything that may be in one.
fn completion(status: u16) -> Completion {
    let header = |name: &str, value: &'static [u8]| (name.to_owned(), Bytes::from_static(value));
    Completion {
        body: BodyPrint {
            hash: [status.to_le_bytes()[0]; 32],
            length: u64::from(u32::MAX) + 1,
            whole: true,
        },
        response: StoredResponse {
            status,
            headers: vec![
                header("link", b"</b>; rel=next"),
                header("link", b"</a>; rel=prev"),
                header("location", b"/caf\xe9"),
                header("x-empty", b""),
            ],
            body: Some((0..=u8::MAX).collect()),
        },
    }
}

fn complete(token: Token, status: u16) -> Op {
    Op::Complete {
        token,
        completion: completion(status),
        ttl: LONG,
    }
}

fn settle(status: Option<u16>) -> Op {
    Op::Settle {
        completion: status.map(completion),
        ttl: LONG,
    }
}

fn all_of(token: Token) -> [Op; 4] {
    [
        Op::Heartbeat { token, lease: LONG },
        Op::Arm { token },
        complete(token, 500),
        Op::Release { token },
    ]
}

/// Who comes first wins; everybody else is told that somebody is at it.
pub async fn a_key_is_claimed_once<S: Subject>(subject: Arc<S>) {
    let token = Token::random();
    let on = On::claimed(&subject, claim(token)).await;
    on.is_in_flight().await;
    let again = on.claim(claim(token)).await;
    assert!(matches!(again, Answer::InFlight { .. }), "{again:?}");
    let record = on.get().await.expect("there is a record");
    assert_eq!(record.head, claim(token).head);
    let State::Running {
        token: holder,
        armed,
        ..
    } = record.state
    else {
        panic!("{record:?}");
    };
    assert!(holder == token && armed, "{record:?}");
}

/// What was answered is answered again, to the byte, with or without a body.
pub async fn what_is_done_is_answered_again<S: Subject>(subject: Arc<S>) {
    let without_body = StoredResponse {
        body: None,
        headers: Vec::new(),
        ..completion(204).response
    };
    let bare = Completion {
        response: without_body,
        ..completion(204)
    };
    let mut large = completion(200);
    large.response.body = Some(Bytes::from(vec![7; 1 << 20]));
    for completion in [completion(201), bare, large] {
        let token = Token::random();
        let on = On::claimed(&subject, claim(token)).await;
        on.accepts(Op::Complete {
            token,
            completion: completion.clone(),
            ttl: LONG,
        })
        .await;
        on.is(&Answer::Done(completion.clone())).await;
        on.is(&Answer::Done(completion.clone())).await;
        let done = Some(State::Done {
            token: Some(token),
            completion: completion.clone(),
        });
        assert_eq!(on.state().await, done);
        // Who has done it may say so again, if he has not heard that he is believed; how it was done stays as it is.
        let again = on.does(complete(token, 500)).await;
        assert_eq!(again, Answer::Done(completion));
        assert_eq!(on.state().await, done);
        let [heartbeat, arm, _, release] = all_of(token);
        for op in [heartbeat, arm, release, complete(Token::random(), 500)] {
            on.refuses(op).await;
        }
    }
}

/// A key belongs to the request that claimed it first, wherever that stands.
pub async fn another_request_is_a_mismatch<S: Subject>(subject: Arc<S>) {
    let token = Token::random();
    let other = Claim {
        head: HeadPrint([2; 32]),
        rerun: true,
        ..claim(Token::random())
    };
    let running = On::claimed(&subject, claim(token)).await;
    assert_eq!(running.claim(other).await, Answer::Mismatch, "running");
    let unknown = On::unknown(&subject, token).await;
    assert_eq!(unknown.claim(other).await, Answer::Mismatch, "unknown");
    unknown.accepts(complete(token, 200)).await;
    assert_eq!(unknown.claim(other).await, Answer::Mismatch, "done");
    unknown.is(&Answer::Done(completion(200))).await;
}

/// The same key in another scope is another record, the same hash too.
pub async fn scopes_do_not_meet<S: Subject>(subject: Arc<S>) {
    let token = Token::random();
    let on = On::claimed(&subject, claim(token)).await;
    for scope in [
        format!("{}/", on.key.scope),
        format!("{} ", on.key.scope),
        on.key.scope.to_uppercase(),
    ] {
        let key = RecordKey {
            scope,
            ..on.key.clone()
        };
        let other = On { key, ..on.clone() };
        assert_eq!(other.get().await, None, "{:?}", other.key);
        for op in all_of(token) {
            other.refuses(op).await;
        }
        let theirs = Token::random();
        other.wins(claim(theirs)).await;
        other.accepts(complete(theirs, 201)).await;
    }
    on.is_in_flight().await;
    on.accepts(complete(token, 200)).await;
    on.is(&Answer::Done(completion(200))).await;
}

/// Hashes are bytes, and scopes are text of any kind and length.
pub async fn keys_of_any_kind_are_kept_apart<S: Subject>(subject: Arc<S>) {
    let scope = fresh_scope();
    let hashes = [
        [0; 32],
        [0xff; 32],
        *b"'; DROP TABLE records; --\0\r\n{}\xfe\xff",
    ];
    let scopes = [
        scope.clone(),
        format!("{scope}:a"),
        format!("{scope}'\"\\%_\u{1f511}"),
        format!("{scope}{}", "long".repeat(100)),
    ];
    let mut kept = Vec::new();
    for scope in scopes {
        for hash in hashes {
            let key = RecordKey {
                scope: scope.clone(),
                hash,
            };
            let subject = Arc::clone(&subject);
            let (on, token) = (On { subject, key }, Token::random());
            on.wins(claim(token)).await;
            kept.push((on, token));
        }
    }
    for (on, token) in kept {
        on.accepts(complete(token, 200)).await;
    }
}

/// In flight says for how long at most, and after that time the lease is over.
pub async fn in_flight_says_for_how_long<S: Subject>(subject: Arc<S>) {
    let tick = subject.tick();
    let lease = tick * TICKS;
    let on = On::claimed(
        &subject,
        Claim {
            lease,
            ..claim(Token::random())
        },
    )
    .await;
    subject.pass(tick).await;
    let Answer::InFlight { lease_left } = on.claim(claim(Token::random())).await else {
        panic!("the lease is not over");
    };
    assert!(
        !lease_left.is_zero() && lease_left + tick <= lease,
        "{lease_left:?} of {lease:?}"
    );
    subject.pass(lease_left).await;
    on.is(&Answer::Unknown).await;
}

/// Whoever says in time that he is still at it, is.
pub async fn heartbeats_keep_the_lease<S: Subject>(subject: Arc<S>) {
    let (tick, token) = (subject.tick(), Token::random());
    let lease = tick * TICKS;
    let on = On::claimed(
        &subject,
        Claim {
            lease,
            ..claim(token)
        },
    )
    .await;
    for _ in 0..3 {
        subject.pass(tick * (TICKS - 2)).await;
        on.accepts(Op::Heartbeat { token, lease }).await;
    }
    on.is_in_flight().await;
    subject.pass(lease).await;
    on.is(&Answer::Unknown).await;
}

/// A lease that is over is an unknown outcome, for everybody and for good.
pub async fn a_lapse_is_an_unknown_outcome<S: Subject>(subject: Arc<S>) {
    let token = Token::random();
    let on = On::unknown(&subject, token).await;
    assert_eq!(on.state().await, Some(State::Unknown { token }));
    on.is(&Answer::Unknown).await;
    subject.pass(subject.tick() * TICKS).await;
    on.is(&Answer::Unknown).await;
    assert_eq!(on.state().await, Some(State::Unknown { token }));
}

/// Whoever was thought dead and completes after all, has; whether or not it was seen that his lease was over.
pub async fn a_late_completion_heals<S: Subject>(subject: Arc<S>) {
    for seen in [false, true] {
        let token = Token::random();
        let on = On::unknown(&subject, token).await;
        if seen {
            on.is(&Answer::Unknown).await;
        }
        on.accepts(complete(token, 200)).await;
        on.is(&Answer::Done(completion(200))).await;
    }
}

/// Whoever was thought dead and is heard of, is at it again, and armed still.
pub async fn a_late_heartbeat_revives<S: Subject>(subject: Arc<S>) {
    let (tick, token) = (subject.tick(), Token::random());
    let on = On::unknown(&subject, token).await;
    on.is(&Answer::Unknown).await;
    on.refuses(Op::Arm { token }).await;
    let lease = tick * TICKS;
    on.accepts(Op::Heartbeat { token, lease }).await;
    on.is_in_flight().await;
    subject.pass(lease).await;
    on.is(&Answer::Unknown).await;
}

/// Whoever was thought dead may still say that nothing was done.
pub async fn a_late_release_frees<S: Subject>(subject: Arc<S>) {
    let token = Token::random();
    let on = On::unknown(&subject, token).await;
    on.accepts(Op::Release { token }).await;
    assert_eq!(on.get().await, None);
    on.wins(claim(Token::random())).await;
}

/// A rerun has a higher fence, and nothing of the first run is accepted any more.
pub async fn a_rerun_has_a_higher_fence<S: Subject>(subject: Arc<S>) {
    let (first, second) = (Token::random(), Token::random());
    let on = On::unknown(&subject, first).await;
    let before = on.get().await.expect("its outcome is unknown");
    let rerun = Claim {
        rerun: true,
        ..claim(second)
    };
    let fence = on.wins(rerun).await;
    assert!(fence > before.fence, "{fence} after {}", before.fence);
    let record = on.get().await.expect("somebody is at it");
    assert_eq!(
        (record.fence, record.first_seen),
        (fence, before.first_seen)
    );
    for op in all_of(first) {
        on.refuses(op).await;
    }
    let third = on
        .claim(Claim {
            token: Token::random(),
            ..rerun
        })
        .await;
    assert!(matches!(third, Answer::InFlight { .. }), "{third:?}");
    on.accepts(complete(second, 201)).await;
    on.refuses(complete(first, 500)).await;
    on.is(&Answer::Done(completion(201))).await;
}

/// A lease that is over before it was armed frees the key, for any request, and whoever had it is too late.
pub async fn a_lapse_before_arming_frees<S: Subject>(subject: Arc<S>) {
    let (lease, token) = (subject.tick(), Token::random());
    let unarmed = Claim {
        lease,
        armed: false,
        ..claim(token)
    };
    let on = On::claimed(&subject, unarmed).await;
    // A heartbeat does not arm it.
    on.accepts(Op::Heartbeat { token, lease }).await;
    subject.pass(lease).await;
    assert_eq!(on.get().await, None);
    for op in all_of(token) {
        on.refuses(op).await;
    }
    let other = Claim {
        head: HeadPrint([2; 32]),
        ..claim(Token::random())
    };
    on.wins(other).await;
    for op in all_of(token) {
        on.refuses(op).await;
    }
}

/// A lease that is over after it was armed does not free the key. To arm it twice is to arm it once.
pub async fn a_lapse_after_arming_does_not<S: Subject>(subject: Arc<S>) {
    let (tick, token) = (subject.tick(), Token::random());
    let lease = tick * TICKS;
    let unarmed = Claim {
        lease,
        armed: false,
        ..claim(token)
    };
    let on = On::claimed(&subject, unarmed).await;
    on.accepts(Op::Arm { token }).await;
    on.accepts(Op::Arm { token }).await;
    let state = on.state().await;
    assert!(
        matches!(state, Some(State::Running { armed: true, .. })),
        "{state:?}"
    );
    // It does not renew the lease either.
    subject.pass(lease).await;
    on.is(&Answer::Unknown).await;
}

/// What was released is as if it had never been, for another request too.
pub async fn a_release_frees<S: Subject>(subject: Arc<S>) {
    for armed in [false, true] {
        let token = Token::random();
        let on = On::claimed(
            &subject,
            Claim {
                armed,
                ..claim(token)
            },
        )
        .await;
        on.accepts(Op::Release { token }).await;
        assert_eq!(on.get().await, None);
        on.refuses(Op::Release { token }).await;
        let other = Claim {
            head: HeadPrint([2; 32]),
            ..claim(Token::random())
        };
        on.wins(other).await;
        on.refuses(complete(token, 500)).await;
    }
}

/// Somebody says what came of it where that is unknown, and nowhere else.
pub async fn a_settlement_is_final<S: Subject>(subject: Arc<S>) {
    for status in [None, Some(200)] {
        let token = Token::random();
        let running = On::claimed(&subject, claim(token)).await;
        running.refuses(settle(status)).await;
        running.accepts(complete(token, 201)).await;
        running.refuses(settle(status)).await;

        let on = On::unknown(&subject, token).await;
        on.accepts(settle(status)).await;
        on.refuses(settle(status)).await;
        on.refuses(complete(token, 500)).await;
        match status {
            Some(status) => on.is(&Answer::Done(completion(status))).await,
            None => drop(on.wins(claim(Token::random())).await),
        }
    }
}

/// Nobody but the one who has claimed a record changes it.
pub async fn other_tokens_are_refused<S: Subject>(subject: Arc<S>) {
    let (token, other) = (Token::random(), Token::random());
    let armed = On::claimed(&subject, claim(token)).await;
    let unarmed = Claim {
        armed: false,
        ..claim(token)
    };
    let unarmed = On::claimed(&subject, unarmed).await;
    let unknown = On::unknown(&subject, token).await;
    for on in [armed, unarmed, unknown] {
        // One bit, at either end, is enough to be another.
        for other in [other, Token(token.0 ^ 1), Token(token.0 ^ (1 << 127))] {
            for op in all_of(other) {
                on.refuses(op).await;
            }
        }
        on.accepts(complete(token, 200)).await;
    }
}

/// There is nothing to change where nothing was claimed, and no trace of who tried.
pub async fn nothing_is_known_of_an_unclaimed_key<S: Subject>(subject: Arc<S>) {
    let on = On::fresh(&subject);
    assert_eq!(on.get().await, None);
    for op in all_of(Token::random())
        .into_iter()
        .chain([settle(None), settle(Some(200))])
    {
        on.refuses(op).await;
    }
    on.wins(claim(Token::random())).await;
}

/// One tick before the end of its time a record is there, and then it is not, whatever it says. The time is counted from
/// the completion.
pub async fn a_record_is_kept_to_its_last_tick<S: Subject>(subject: Arc<S>) {
    let tick = subject.tick();
    let ttl = tick * TICKS;
    let (done, unknown) = (Token::random(), Token::random());
    let on_done = On::claimed(&subject, claim(done)).await;
    let completion = completion(200);
    subject.pass(tick).await;
    let short = Claim {
        lease: tick,
        ttl,
        ..claim(unknown)
    };
    let on_unknown = On::claimed(&subject, short).await;
    on_done
        .accepts(Op::Complete {
            token: done,
            completion: completion.clone(),
            ttl,
        })
        .await;
    subject.pass(tick * (TICKS - 1)).await;
    on_done.is(&Answer::Done(completion)).await;
    on_unknown.is(&Answer::Unknown).await;
    subject.pass(tick).await;
    for (on, token) in [(on_done, done), (on_unknown, unknown)] {
        assert_eq!(on.get().await, None);
        for op in all_of(token) {
            on.refuses(op).await;
        }
        let other = Claim {
            head: HeadPrint([2; 32]),
            ..claim(Token::random())
        };
        on.wins(other).await;
    }
}

/// A record is not forgotten while somebody is at it.
pub async fn a_lease_outlives_the_time_to_live<S: Subject>(subject: Arc<S>) {
    let (ttl, token) = (subject.tick(), Token::random());
    let on = On::claimed(
        &subject,
        Claim {
            ttl,
            ..claim(token)
        },
    )
    .await;
    subject.pass(ttl * 2).await;
    purge_all(&subject).await;
    on.is_in_flight().await;
    on.accepts(complete(token, 200)).await;
    on.is(&Answer::Done(completion(200))).await;
}

/// Each claim of a key has a higher fence than the one before, whatever came between them.
pub async fn fences_rise_across_release_and_expiry<S: Subject>(subject: Arc<S>) {
    let tick = subject.tick();
    let on = On::fresh(&subject);
    let mut last = 0;
    for round in 0..6 {
        let token = Token::random();
        let short = Claim {
            lease: tick,
            ttl: tick,
            ..claim(token)
        };
        let fence = on.wins(short).await;
        assert!(fence > last, "{fence} after {last} in round {round}");
        last = fence;
        match round % 3 {
            0 => on.accepts(Op::Release { token }).await,
            1 => subject.pass(tick).await,
            _ => {
                subject.pass(tick).await;
                purge_all(&subject).await;
            }
        }
    }
}

/// What is running or unknown is listed, page by page, in the order of keys: of scopes by their bytes, then of hashes.
pub async fn open_records_are_listed_in_order<S: Subject>(subject: Arc<S>) {
    let scope = fresh_scope();
    let mut open = Vec::new();
    for name in ["a", "B", "\u{e9}", "z", "\u{10ffff}", ""] {
        for key in ["1", "2", "3"] {
            let token = Token::random();
            let lease = if key == "1" { subject.tick() } else { LONG };
            let key = RecordKey::new(format!("{scope}/{name}"), key);
            let subject = Arc::clone(&subject);
            let on = On { subject, key };
            on.wins(Claim {
                lease,
                ..claim(token)
            })
            .await;
            if name == "z" {
                on.accepts(complete(token, 200)).await;
            } else {
                open.push(on.key);
            }
        }
    }
    open.sort();
    subject.pass(subject.tick()).await;
    for limit in [1, 4, 1000] {
        let mut listed: Vec<(RecordKey, Record)> = Vec::new();
        // From a key that need not be there, as other scopes may have any number of records.
        let mut after = RecordKey {
            scope: scope.clone(),
            hash: [0xff; 32],
        };
        loop {
            let page = subject.store().list_open(Some(&after), limit).await;
            let page = page.expect("open records are listed");
            assert!(page.len() <= limit, "{} of {limit}", page.len());
            let Some((last, _)) = page.last() else { break };
            after = last.clone();
            let beyond = !after.scope.starts_with(&scope);
            listed.extend(page);
            if beyond {
                break;
            }
        }
        listed.retain(|(key, _)| key.scope.starts_with(&scope));
        let keys: Vec<_> = listed.iter().map(|(key, _)| key.clone()).collect();
        assert_eq!(keys, open, "in pages of {limit}");
        let unknown = listed
            .iter()
            .filter(|(_, record)| matches!(record.state, State::Unknown { .. }));
        assert_eq!(unknown.count(), 5, "one of each scope has lapsed");
    }
    let first = subject.store().list_open(None, 1).await;
    assert_eq!(first.expect("open records are listed").len(), 1);
}

/// A purge forgets no more than it may, and nothing that has not expired.
pub async fn a_purge_forgets_what_has_expired_alone<S: Subject>(subject: Arc<S>) {
    let (tick, token) = (subject.tick(), Token::random());
    let running = On::claimed(&subject, claim(token)).await;
    let unknown = On::unknown(&subject, token).await;
    let done = On::claimed(&subject, claim(token)).await;
    done.accepts(complete(token, 200)).await;
    let mut expired = Vec::new();
    for _ in 0..5 {
        let ttl = tick;
        let on = On::claimed(
            &subject,
            Claim {
                ttl,
                ..claim(token)
            },
        )
        .await;
        let completion = completion(200);
        on.accepts(Op::Complete {
            token,
            completion,
            ttl,
        })
        .await;
        expired.push(on);
    }
    subject.pass(tick).await;
    assert_eq!(purge(&subject, 0).await, 0);
    assert!(purge(&subject, 2).await <= 2);
    purge_all(&subject).await;
    assert_eq!(purge(&subject, 10).await, 0, "all are purged");
    for on in expired {
        assert_eq!(on.get().await, None);
    }
    running.is_in_flight().await;
    unknown.is(&Answer::Unknown).await;
    done.is(&Answer::Done(completion(200))).await;
}

async fn purge<S: Subject>(subject: &Arc<S>, limit: usize) -> usize {
    let purged = subject.store().purge_expired(limit).await;
    purged.unwrap_or_else(|error| panic!("purge: {error:?}"))
}

async fn purge_all<S: Subject>(subject: &Arc<S>) {
    while purge(subject, 1000).await > 0 {}
}

/// Of so many who claim at once one wins, and the others are told that he is at it. He can go on.
async fn race<S: Subject>(on: &On<S>, racers: usize, claim: Claim) {
    let start = Arc::new(Barrier::new(racers));
    let race = |_| {
        let (on, start) = (on.clone(), Arc::clone(&start));
        tokio::spawn(async move {
            let token = Token::random();
            start.wait().await;
            (token, on.claim(Claim { token, ..claim }).await)
        })
    };
    let racing: Vec<_> = (0..racers).map(race).collect();
    let mut winners = Vec::new();
    for racer in racing {
        match racer.await.expect("a racer comes back") {
            (token, Answer::Won { .. }) => winners.push(token),
            (_, Answer::InFlight { .. }) => {}
            (_, other) => panic!("{other:?}"),
        }
    }
    assert_eq!(winners.len(), 1, "of {racers}");
    on.accepts(complete(winners[0], 200)).await;
}

/// Of 64 who claim a new key at once, one wins.
pub async fn one_of_64_racers_wins<S: Subject>(subject: Arc<S>) {
    for _ in 0..5 {
        race(&On::fresh(&subject), 64, claim(Token(0))).await;
    }
}

/// Of 100 who claim a key at once that has just expired, one wins.
pub async fn one_of_100_racers_wins_an_expired_key<S: Subject>(subject: Arc<S>) {
    let (ttl, token) = (subject.tick(), Token::random());
    for _ in 0..5 {
        let on = On::claimed(&subject, claim(token)).await;
        let completion = completion(200);
        on.accepts(Op::Complete {
            token,
            completion,
            ttl,
        })
        .await;
        subject.pass(ttl).await;
        race(&on, 100, claim(Token(0))).await;
    }
}

/// Of 64 who would run again at once what has lapsed, one does.
pub async fn one_of_64_racers_reruns<S: Subject>(subject: Arc<S>) {
    let on = On::unknown(&subject, Token::random()).await;
    let rerun = Claim {
        rerun: true,
        ..claim(Token(0))
    };
    race(&on, 64, rerun).await;
}

/// A hundred random histories are as if their operations had come one after the other. For more of them, and for what was
/// wrong, see [`histories`].
pub async fn histories_are_linearizable<S: Subject>(subject: Arc<S>) {
    if let Err(history) = histories(&subject, 100).await {
        panic!("not linearizable:\n{history}");
    }
}
