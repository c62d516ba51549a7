//! Small authoritative facts: what must be known again after a crash.
//!
//! One trait ([`Store`]) with real implementations side by side, held to one conformance suite: [`RedbStore`], the
//! embedded default, and [`MemStore`], for tests and for what may be lost. Bulk never goes here.
//!
//! [`extents`] packs what is known of a volume's extents (location, coverage, access probability) into records.

pub mod extents;
mod mem;
mod redb;
mod store;

pub use mem::MemStore;
pub use redb::RedbStore;
pub use store::{Change, Store, StoreError, Version, Versioned};
