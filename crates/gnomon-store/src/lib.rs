//! Small authoritative facts: what must be known again after a crash.
//!
//! One trait ([`Store`]) with real implementations side by side, held to one conformance suite: [`RedbStore`], the
//! embedded default; [`MemStore`], for tests and for what may be lost; and, with the feature `etcd`, `EtcdStore`, which
//! several hosts see and which alone grants [`lease`]s. Bulk never goes here.
//!
//! [`guarding`] lets a lease decide whether a protected VM may run on this node, as `gnomon_proto::guard` says.
//! [`extents`] packs what is known of a volume's extents (location, coverage, access probability) into records.

mod address;
#[cfg(feature = "etcd")]
pub mod etcd;
pub mod extents;
pub mod guarding;
pub mod lease;
mod mem;
mod redb;
mod store;
mod tls;

pub use address::{AddressError, EtcdAddress};
#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
pub use lease::{Lease, LeaseId, Leases};
pub use mem::MemStore;
pub use redb::RedbStore;
pub use store::{Change, LARGEST_VALUE, LONGEST_KEY, Store, StoreError, Version, Versioned};
pub use tls::{EtcdTls, EtcdTlsError, EtcdTlsPem, OwnCertificate};
