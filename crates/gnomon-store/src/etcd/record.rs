//! A value as etcd holds it: who wrote it, and the value.
//!
//! ```text
//!   0        1                 17
//!   kind=1   request (16)      value …
//! ```
//! The request's number lets a writer that lost the answer see, when it asks again, that what is there is its own.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::store::{StoreError, Versioned};

/// The only kind of record there is.
const KIND: u8 = 1;

/// Bytes before the value.
const HEADER: usize = 17;

/// Names a request. No two of all hosts and times are equal, as far as it matters: see [`Requests`].
pub(super) type Request = [u8; 16];

/// Gives requests their names: a number of this store, drawn once, and a count.
pub(super) struct Requests {
    store: u64,
    next: AtomicU64,
}

impl Requests {
    /// Draws the store's number. It has to differ from those of the few others who write the same key at the same time,
    /// so the nanosecond, the process and a random address of this process are enough.
    pub(super) fn new() -> Requests {
        use std::hash::{BuildHasher, Hasher};
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u128(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos()));
        hasher.write_u32(std::process::id());
        Requests { store: hasher.finish(), next: AtomicU64::new(1) }
    }

    /// A name that was never given before.
    pub(super) fn next(&self) -> Request {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        let mut request = [0; 16];
        request[..8].copy_from_slice(&self.store.to_le_bytes());
        request[8..].copy_from_slice(&count.to_le_bytes());
        request
    }
}

/// What etcd is given to hold.
pub(super) fn encode(request: Request, value: &[u8]) -> Vec<u8> {
    [&[KIND][..], &request, value].concat()
}

/// Who wrote it.
pub(super) fn writer(bytes: &[u8]) -> Option<Request> {
    bytes.get(1..HEADER)?.try_into().ok()
}

/// The value of `key`, at etcd's `revision`.
pub(super) fn decode(key: &str, revision: i64, bytes: &[u8]) -> Result<Versioned, StoreError> {
    let corrupt = |what: &str| StoreError::Corrupt { key: key.to_string(), what: what.to_string() };
    let version = u64::try_from(revision).map_err(|_| corrupt("its revision is below zero"))?;
    match (bytes.first(), bytes.get(HEADER..)) {
        (Some(&KIND), Some(value)) => Ok(Versioned { version, value: value.to_vec() }),
        (Some(&KIND) | None, _) => Err(corrupt("it is shorter than its header")),
        (Some(_), _) => Err(corrupt("it was not written by gnomon, or by a newer one: choose another namespace")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_knows_its_writer() {
        let requests = Requests::new();
        let (first, second) = (requests.next(), requests.next());
        assert_ne!(first, second);
        let bytes = encode(second, b"value");
        assert_eq!(writer(&bytes), Some(second));
        assert_eq!(decode("k", 7, &bytes).expect("record"), Versioned { version: 7, value: b"value".to_vec() });
    }

    #[test]
    fn what_others_wrote_is_told() {
        let sound = encode([0; 16], b"");
        assert!(decode("k", 1, &sound).is_ok());
        for (revision, bytes) in [(1, &sound[..16]), (1, &[]), (1, b"{\"json\":\"of somebody else\"}"), (-1, &sound)]
        {
            let error = decode("k", revision, bytes).expect_err("no record");
            assert_eq!(error.kind(), gnomon_terms::ErrorKind::Corrupt, "{bytes:?}");
        }
    }
}
