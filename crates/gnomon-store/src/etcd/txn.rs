//! Writes as transactions: all of them if every key still has the version it was seen with, and else none.
//!
//! A try whose answer is lost may have been carried out, or may yet be. Asked again, the transaction finds its own
//! writing there, or it is carried out now and the late one finds other versions; it never happens twice.

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};

use super::{Core, record, record::Request};
use crate::{
    lease::LeaseId,
    store::{StoreError, Version},
};

/// What is to become of a key that has a certain version.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) key: String,
    /// The version it was seen with; `None`: there was none.
    pub(super) expected: Option<Version>,
    /// `None`: the key goes.
    value: Option<Vec<u8>>,
    lease: Option<LeaseId>,
}

/// What came of a transaction.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Carried out, at this version.
    Done(Version),
    /// Not carried out: the keys have these versions.
    Conflict(Vec<Option<Version>>),
}

/// A key as it was found: its version, and who wrote it.
type Found = Option<(Version, Option<Request>)>;

impl Write {
    pub(super) fn put(key: &str, expected: Option<Version>, value: &[u8]) -> Write {
        Write { key: key.to_string(), expected, value: Some(value.to_vec()), lease: None }
    }

    pub(super) fn bound(key: &str, expected: Option<Version>, value: &[u8], lease: LeaseId) -> Write {
        Write { lease: Some(lease), ..Write::put(key, expected, value) }
    }

    pub(super) fn delete(key: &str, expected: Version) -> Write {
        Write { key: key.to_string(), expected: Some(expected), value: None, lease: None }
    }
}

impl Core {
    /// Carries out `writes`, all or none.
    pub(super) async fn commit(&self, deed: &str, writes: Vec<Write>) -> Result<Outcome, StoreError> {
        let request = self.requests.next();
        let txn = self.transaction(&writes, request);
        let answer = self.members.tell(deed, |client| {
            let txn = txn.clone();
            async move { client.kv_client().txn(txn).await }
        });
        let answer = answer.await?;
        if answer.value.succeeded() {
            let revision = answer.value.header().map_or(0, etcd_client::ResponseHeader::revision);
            return Ok(Outcome::Done(u64::try_from(revision).unwrap_or(0)));
        }
        let found = found(&answer.value);
        judge(&writes, &found, request, answer.doubtful).ok_or_else(|| StoreError::Unsettled {
            store: self.members.address().to_string(),
            deed: deed.to_string(),
            source: "an answer was lost, and by now somebody else has written there".into(),
        })
    }

    /// The versions that `keys` have, all at one moment.
    pub(super) async fn versions(
        &self,
        keys: impl Iterator<Item = &str>,
    ) -> Result<Vec<Option<Version>>, StoreError> {
        let gets: Vec<TxnOp> = keys.map(|key| look(self.path(key))).collect();
        let answer = self.members.ask("read versions", |client| {
            let txn = Txn::new().and_then(gets.clone());
            async move { client.kv_client().txn(txn).await }
        });
        Ok(found(&answer.await?).into_iter().map(|found| found.map(|(version, _)| version)).collect())
    }

    fn transaction(&self, writes: &[Write], request: Request) -> Txn {
        let as_seen: Vec<Compare> = writes
            .iter()
            .map(|write| Compare::mod_revision(self.path(&write.key), CompareOp::Equal, revision(write.expected)))
            .collect();
        let deeds: Vec<TxnOp> = writes
            .iter()
            .map(|write| match &write.value {
                Some(value) => {
                    let bound = write.lease.map(|lease| PutOptions::new().with_lease(lease.0));
                    TxnOp::put(self.path(&write.key), record::encode(request, value), bound)
                }
                None => TxnOp::delete(self.path(&write.key), None),
            })
            .collect();
        // Whose writing it is, the first of them tells for all; more values might be too many for one message.
        let (first, others) = writes.split_at(writes.len().min(1));
        let first = first.iter().map(|write| TxnOp::get(self.path(&write.key), None));
        let looks: Vec<TxnOp> = first.chain(others.iter().map(|write| look(self.path(&write.key)))).collect();
        Txn::new().when(as_seen).and_then(deeds).or_else(looks)
    }
}

/// Asks for a key's version, not for its value.
fn look(path: String) -> TxnOp {
    TxnOp::get(path, Some(GetOptions::new().with_keys_only()))
}

/// The revision at which a key with that version was changed. For etcd a key that is not there has 0.
fn revision(version: Option<Version>) -> i64 {
    match version {
        None => 0,
        // Nothing has the version 0, so it must not pass for nothing.
        Some(0) => i64::MAX,
        Some(version) => i64::try_from(version).unwrap_or(i64::MAX),
    }
}

/// What the looks of a transaction saw.
fn found(answer: &TxnResponse) -> Vec<Found> {
    let one = |answer: TxnOpResponse| match answer {
        TxnOpResponse::Get(get) => get.kvs().first().and_then(|kv| {
            let version = u64::try_from(kv.mod_revision()).ok()?;
            Some((version, record::writer(kv.value())))
        }),
        _ => None,
    };
    answer.op_responses().into_iter().map(one).collect()
}

/// What a refused transaction means. `None`: nobody can say, because an earlier try may have been carried out.
fn judge(writes: &[Write], found: &[Found], request: Request, doubtful: bool) -> Option<Outcome> {
    if !doubtful {
        return Some(Outcome::Conflict(found.iter().map(|found| found.map(|(version, _)| version)).collect()));
    }
    // All of them or none were carried out, so one that is surely ours speaks for all.
    writes.iter().zip(found).find_map(|(write, found)| match (&write.value, found) {
        (Some(_), Some((version, Some(writer)))) if *writer == request => Some(Outcome::Done(*version)),
        // Gone, as was wished: by us, or by somebody else just before.
        (None, None) => Some(Outcome::Done(write.expected.unwrap_or(0))),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_transaction_is_ours_others_or_unsettled() {
        let (ours, others) = ([1; 16], [2; 16]);
        let put = |found, doubtful| judge(&[Write::put("a", Some(3), b"x")], &[found], ours, doubtful);
        let conflict = |found| Some(Outcome::Conflict(vec![found]));
        assert_eq!(put(Some((5, Some(others))), false), conflict(Some(5)));
        assert_eq!(put(None, false), conflict(None));
        assert_eq!(put(Some((5, Some(ours))), true), Some(Outcome::Done(5)), "the answer was lost, not the write");
        assert_eq!(put(Some((5, Some(others))), true), None, "ours may have been there in between");
        assert_eq!(put(None, true), None);
        let delete = |found, doubtful| judge(&[Write::delete("a", 3)], &[found], ours, doubtful);
        assert_eq!(delete(None, true), Some(Outcome::Done(3)));
        assert_eq!(delete(Some((5, Some(others))), true), None);
        assert_eq!(delete(Some((5, None)), false), conflict(Some(5)));
    }

    #[test]
    fn versions_as_revisions() {
        for (version, expected) in [(None, 0), (Some(0), i64::MAX), (Some(7), 7), (Some(u64::MAX), i64::MAX)] {
            assert_eq!(revision(version), expected, "{version:?}");
        }
    }
}
