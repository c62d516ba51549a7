//! A guest as a whole: what keeps a second copy of it ready on another host, and what moves it there.
//!
//! A *checkpoint* is the state of a guest at one moment: the pages that changed since the checkpoint before, the state
//! of its devices, and how far its volumes had got. The primary's side ([`primary`]) codes pages so that little has to
//! be carried ([`page`], [`page::SentPages`]); the shadow's side ([`shadow`]) stages a checkpoint and applies it whole or
//! not at all ([`stage`]), and goes on from the last one when the primary is gone; how often there is one is decided
//! from what the last ones cost ([`interval`]). In strict mode what the guest sends leaves only when the shadow has the state
//! that it comes from ([`frames`]); with several shadows, when each that is waited for has ([`commits`]).
//!
//! On one host a guest changes its QEMU without a copy of its RAM ([`takeover`]), after the change was tried on a copy
//! of the guest ([`snapshot`]) and judged ([`verdict`]).
//!
//! An *epoch* says who may run and write, here as for volumes; checkpoints are numbered within it.

pub mod commits;
pub mod frames;
pub mod interval;
pub mod page;
pub mod primary;
pub mod ram;
pub mod shadow;
pub mod snapshot;
pub mod stage;
pub mod takeover;
pub mod verdict;
pub mod wire;
