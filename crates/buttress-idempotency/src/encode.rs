//! How a store that outlives the process writes a record down. It is for those who write a [`Store`](crate::Store).
//!
//! ```text
//! version: 1 byte    record: postcard    checksum: 16 bytes of BLAKE3 over key, version and record
//! ```
//!
//! The key is not in these bytes, but in their checksum: a record that has come under another key is damaged too.

use std::sync::LazyLock;

use blake3::hazmat::{ContextKey, HasherExt, hash_derive_key_context};

use crate::{
    record::{Record, RecordKey},
    store::{StoreError, StoreErrorKind},
};

/// The version of the encoding. Another order of the fields, or another field, is another version.
const VERSION: u8 = 1;

const CHECKSUM: usize = 16;

/// The bytes of a record that is kept under this key.
#[must_use]
#[expect(
    clippy::missing_panics_doc,
    reason = "a record has nothing that postcard cannot write"
)]
pub fn encode(key: &RecordKey, record: &Record) -> Vec<u8> {
    let bytes = postcard::to_extend(record, vec![VERSION]);
    let mut bytes = bytes.expect("its sequences have lengths, and a vector has room");
    let sum = checksum(key, &bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

/// The record that these bytes are, if they were written by [`encode`] for this key.
///
/// # Errors
///
/// Everything else is [`Damaged`](StoreErrorKind::Damaged): one bit that is not as it was, a byte too few or too many, an
/// unknown version, or a record of another key. No bytes read as if there were no record.
pub fn decode(key: &RecordKey, bytes: &[u8]) -> Result<Record, StoreError> {
    let damaged = |why: &str| StoreError::new(StoreErrorKind::Damaged).because(why);
    match bytes.first() {
        Some(&VERSION) => {}
        Some(other) => {
            return Err(damaged(&format!(
                "version {other} of a record is not known"
            )));
        }
        None => return Err(damaged("a record has no bytes")),
    }
    let Some((written, sum)) = bytes.split_last_chunk::<CHECKSUM>() else {
        return Err(damaged("a record has too few bytes"));
    };
    if *sum != checksum(key, written) {
        return Err(damaged("a record does not have its checksum"));
    }
    match postcard::take_from_bytes(written.get(1..).unwrap_or_default()) {
        Ok((record, [])) => Ok(record),
        Ok(_) => Err(damaged("a record has bytes that belong to nothing")),
        Err(error) => Err(StoreError::new(StoreErrorKind::Damaged).because(error)),
    }
}

fn checksum(key: &RecordKey, written: &[u8]) -> [u8; CHECKSUM] {
    static CONTEXT: LazyLock<ContextKey> =
        LazyLock::new(|| hash_derive_key_context("buttress idempotency 1 record"));
    let mut hasher = blake3::Hasher::new_from_context_key(&CONTEXT);
    // The length first, so that no two keys are the same bytes.
    hasher.update(&(key.scope.len() as u64).to_le_bytes());
    hasher.update(key.scope.as_bytes());
    hasher.update(&key.hash);
    hasher.update(written);
    let mut sum = [0; CHECKSUM];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::record::{BodyPrint, Completion, HeadPrint, Moment, State, StoredResponse, Token};

    fn key() -> RecordKey {
        RecordKey::new("alice", "order:123")
    }

    fn done() -> Record {
        let body = BodyPrint {
            hash: [7; 32],
            length: 300,
            whole: true,
        };
        let response = StoredResponse {
            status: 201,
            headers: vec![("location".into(), Bytes::from_static(b"/orders/5"))],
            body: Some(Bytes::from_static(b"made")),
        };
        Record {
            head: HeadPrint([3; 32]),
            fence: 1 << 50,
            first_seen: Moment(1_790_000_000_000_000),
            expires_at: Moment(1_790_000_086_400_000),
            state: State::Done {
                token: Some(Token(5)),
                completion: Completion { body, response },
            },
        }
    }

    fn records() -> impl Strategy<Value = Record> {
        let running =
            (any::<u128>(), any::<u64>(), any::<bool>()).prop_map(|(token, until, armed)| {
                State::Running {
                    token: Token(token),
                    lease_until: Moment(until),
                    armed,
                }
            });
        let unknown = any::<u128>().prop_map(|token| State::Unknown {
            token: Token(token),
        });
        let bytes = || prop::collection::vec(any::<u8>(), 0..50).prop_map(Bytes::from);
        let body =
            (any::<[u8; 32]>(), any::<u64>(), any::<bool>()).prop_map(|(hash, length, whole)| {
                BodyPrint {
                    hash,
                    length,
                    whole,
                }
            });
        let response = (
            any::<u16>(),
            prop::collection::vec((any::<String>(), bytes()), 0..4),
            prop::option::of(bytes()),
        )
            .prop_map(|(status, headers, body)| StoredResponse {
                status,
                headers,
                body,
            });
        let done = (any::<Option<u128>>(), body, response).prop_map(|(token, body, response)| {
            State::Done {
                token: token.map(Token),
                completion: Completion { body, response },
            }
        });
        (
            any::<[u8; 32]>(),
            any::<[u64; 3]>(),
            prop_oneof![running, unknown, done],
        )
            .prop_map(|(head, [fence, first_seen, expires_at], state)| Record {
                head: HeadPrint(head),
                fence,
                first_seen: Moment(first_seen),
                expires_at: Moment(expires_at),
                state,
            })
    }

    fn is_damaged(key: &RecordKey, bytes: &[u8]) -> bool {
        decode(key, bytes).is_err_and(|error| error.kind() == StoreErrorKind::Damaged)
    }

    // promise: ID-19
    #[test]
    fn every_bit_that_is_not_as_it_was_is_noticed() {
        let bytes = encode(&key(), &done());
        assert_eq!(decode(&key(), &bytes).unwrap(), done());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(is_damaged(&key(), &flipped), "bit {bit}");
        }
    }

    // promise: ID-19
    #[test]
    fn a_record_that_was_cut_or_has_grown_is_damaged() {
        let bytes = encode(&key(), &done());
        for length in 0..bytes.len() {
            assert!(is_damaged(&key(), &bytes[..length]), "{length} bytes");
            assert!(
                is_damaged(&key(), &bytes[length + 1..]),
                "without {length} bytes"
            );
        }
        for more in [0, 1, 255] {
            let grown = [&bytes[..], &[more]].concat();
            assert!(is_damaged(&key(), &grown));
        }
        assert!(is_damaged(&key(), &bytes.repeat(2)));
        assert!(is_damaged(&key(), &vec![0; bytes.len()]));
    }

    // promise: ID-19
    #[test]
    fn a_version_that_is_not_known_is_damaged_though_its_checksum_is_right() {
        for version in (0..=u8::MAX).filter(|&version| version != VERSION) {
            let mut bytes = encode(&key(), &done());
            bytes.truncate(bytes.len() - CHECKSUM);
            bytes[0] = version;
            let sum = checksum(&key(), &bytes);
            bytes.extend_from_slice(&sum);
            assert!(is_damaged(&key(), &bytes), "version {version}");
        }
    }

    // promise: ID-19
    #[test]
    fn what_is_not_a_record_is_damaged_though_its_checksum_is_right() {
        let whole = encode(&key(), &done());
        let whole = &whole[..whole.len() - CHECKSUM];
        for written in [&whole[..1], &whole[..40], &[whole, &[0]].concat()] {
            let bytes = [written, &checksum(&key(), written)].concat();
            assert!(is_damaged(&key(), &bytes), "{} bytes", written.len());
        }
    }

    // promise: ID-19
    #[test]
    fn a_record_under_another_key_is_damaged() {
        let bytes = encode(&key(), &done());
        let other_key = RecordKey::new("alice", "order:124");
        let other_scope = RecordKey {
            scope: "mallory".into(),
            ..key()
        };
        assert!(is_damaged(&other_key, &bytes));
        assert!(is_damaged(&other_scope, &bytes));
    }

    // What an earlier build has written must stay readable: who has to change this hash raises the version.
    #[test]
    fn version_one_stays_as_it_is() {
        let bytes = encode(&key(), &done());
        let hash = blake3::hash(&bytes);
        assert_eq!(
            hash.to_hex().as_str(),
            "2db5dd9705ed833e953ab894247debc9ce3580018a7e8ce1389a363fa87ad71c"
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in records()) {
            prop_assert_eq!(decode(&key(), &encode(&key(), &record)).unwrap(), record);
        }

        // promise: ID-19
        #[test]
        fn a_flipped_bit_of_any_record_is_noticed(record in records(), place in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let mut bytes = encode(&key(), &record);
            *place.get_mut(&mut bytes) ^= 1_u8 << bit;
            prop_assert!(is_damaged(&key(), &bytes));
        }

        // promise: ID-19
        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), sealed in any::<bool>()) {
            if sealed {
                // Past the version and the checksum, what postcard reads is arbitrary too.
                bytes.insert(0, VERSION);
                let sum = checksum(&key(), &bytes);
                bytes.extend_from_slice(&sum);
                let _ = decode(&key(), &bytes);
            } else {
                prop_assert!(is_damaged(&key(), &bytes));
            }
        }
    }
}
