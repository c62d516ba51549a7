//! etcd's own leases. Times are read before a request is sent, so that they are never later than etcd's.

use std::time::Duration;

use etcd_client::Error;

use super::{
    EtcdStore,
    members::{Failed, NOT_FOUND},
    txn::Write,
};
use crate::{
    lease::{Lease, LeaseId, Leases, SHORTEST_TTL, local_now},
    store::{StoreError, Version, check_record},
};

/// What came of a keep-alive that was answered.
enum Renewed {
    /// For so many seconds more.
    For(i64),
    /// There is no such lease.
    Ended,
}

impl Leases for EtcdStore {
    fn grant(&self, ttl: Duration) -> Result<Lease, StoreError> {
        let seconds = whole_seconds(ttl.max(SHORTEST_TTL));
        self.run(|core| async move {
            // Asked again after a lost answer, etcd may grant two; the one that nobody keeps alive ends by itself.
            let granted = core.members.ask("grant a lease", |client| async move {
                let asked = local_now();
                let granted = client.lease_client().grant(seconds, None).await?;
                Ok((granted.id(), granted.ttl(), asked))
            });
            let (id, ttl, asked) = granted.await?;
            Ok(Lease::new(LeaseId(id), of_seconds(ttl), asked))
        })
    }

    fn keep_alive(&self, lease: &mut Lease) -> Result<(), StoreError> {
        let id = lease.id();
        let (renewed, asked) = self.run(|core| async move {
            let deed = format!("keep the lease {id} alive");
            let answer = core.members.ask(&deed, |client| async move {
                let asked = local_now();
                Ok((renew(client, id).await?, asked))
            });
            answer.await
        })?;
        match renewed {
            Renewed::For(seconds) => {
                lease.renewed(of_seconds(seconds), asked);
                Ok(())
            }
            Renewed::Ended => Err(self.ended(id)),
        }
    }

    fn revoke(&self, lease: &Lease) -> Result<(), StoreError> {
        let id = lease.id();
        self.run(|core| async move {
            let deed = format!("end the lease {id}");
            let revoked = core.members.ask(&deed, |client| async move {
                match client.lease_client().revoke(id.0).await {
                    Err(Error::GRpcStatus(status)) if i32::from(status.code()) == NOT_FOUND => Ok(()),
                    other => other.map(|_| ()),
                }
            });
            revoked.await
        })
    }

    fn caution(&self) -> Result<Option<String>, StoreError> {
        self.run(|core| async move {
            let status = core.members.ask("say its version", |client| async move {
                let mut client = client.maintenance_client();
                client.status().await
            });
            let status = status.await?;
            Ok(may_end_early(status.version()).then(|| {
                format!(
                    "the store is etcd {}, which may end a lease early when its leader's disk stands still: update to \
                     3.4.31, 3.5.13 or later",
                    status.version()
                )
            }))
        })
    }

    fn bind(&self, lease: &Lease, key: &str, expected: Option<Version>, value: &[u8]) -> Result<Version, StoreError> {
        check_record(key, value)?;
        let write = Write::bound(key, expected, value, lease.id());
        let bound = self.run(|core| async move { core.compare_and_set(write).await });
        bound.map_err(|error| if is_not_found(&error) { self.ended(lease.id()) } else { error })
    }
}

impl EtcdStore {
    fn ended(&self, id: LeaseId) -> StoreError {
        StoreError::LeaseEnded { store: self.address().to_string(), lease: id.to_string() }
    }
}

/// One message there and one back. A stream would save little: a lease is renewed a few times in its life.
async fn renew(client: etcd_client::Client, id: LeaseId) -> Result<Renewed, Error> {
    let mut client = client.lease_client();
    // The first answer is read by the client itself, which says only whether the lease is there.
    let (mut keeper, mut answers) = match client.keep_alive(id.0).await {
        Ok(kept) => kept,
        Err(Error::LeaseKeepAliveError(_)) => return Ok(Renewed::Ended),
        Err(error) => return Err(error),
    };
    keeper.keep_alive().await?;
    match answers.message().await? {
        Some(answer) if answer.ttl() > 0 => Ok(Renewed::For(answer.ttl())),
        Some(_) => Ok(Renewed::Ended),
        None => Err(Error::LeaseKeepAliveError("the member closed the stream".to_string())),
    }
}

/// Whether that version lets a former leader end leases.
///
/// Source: etcd's changelogs, 3.4.31 and 3.5.13 ("Fix leases wrongly revoked by the leader"), for its issue 15247.
fn may_end_early(version: &str) -> bool {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten(), numbers.next().flatten()) {
        (Some(3), Some(4), Some(patch)) => patch < 31,
        (Some(3), Some(5), Some(patch)) => patch < 13,
        (Some(major), Some(minor), _) => (major, minor) < (3, 4),
        _ => false,
    }
}

fn is_not_found(error: &StoreError) -> bool {
    match error {
        StoreError::Declined { source, .. } | StoreError::Unsettled { source, .. } => {
            source.downcast_ref::<Failed>().is_some_and(|failed| failed.code == Some(NOT_FOUND))
        }
        _ => false,
    }
}

fn whole_seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0)).unwrap_or(i64::MAX)
}

fn of_seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_whose_leases_may_end_early() {
        for version in ["3.4.23", "3.4.30", "3.5.0-rc.1", "3.5.12", "3.3.99", "2.3.8"] {
            assert!(may_end_early(version), "{version}");
        }
        for version in ["3.4.31", "3.5.13", "3.6.0", "4.0.0", "10.1.2", "", "new"] {
            assert!(!may_end_early(version), "{version}");
        }
    }

    #[test]
    fn seconds_are_rounded_up() {
        for (millis, seconds) in [(0, 0), (1, 1), (2000, 2), (2001, 3)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
        assert_eq!(of_seconds(-1), Duration::ZERO);
    }
}
