//! Memory that is ready: allocated and zeroed ahead of need, in a pool for each trust group.
//!
//! ```text
//!   target (from the planner) ─► worker ─► blocks: populated, zero, at the holder ─► pool
//!                                  ▲                                                  │ take
//!                    guard: host's memory, pressure, floor                            ▼
//!            host ◄── punched, closed ◄── a guest let it go ◄── QEMU's DIMM ◄── assigned
//! ```
//!
//! [`Staging`] is the whole of it. A [`Block`] is a memfd; which of them serve a request is arithmetic ([`choose`]); how
//! much may be staged is the guard's ([`judge`]); that none is lost is in the [`Accounts`]; and a process of its own
//! keeps them while the daemon is away ([`hold`]).
//!
//! Invariants: a block that was at a guest is never used again. What the holder has has never been seen by a guest. A
//! block of one group never goes to another. Staging never takes what must stay available to the host.

mod accounts;
mod block;
mod descriptors;
mod fit;
mod groups;
mod guard;
mod holder;
mod host;
mod numa;
mod placement;
mod pool;
mod staging;
mod stats;

pub use accounts::{Accounts, Imbalance, State, Tally};
pub use block::{Block, BlockError, BlockId, LARGEST_BLOCK, NAME_PREFIX, POPULATE_STEP, Populated, blocks_of};
pub use fit::{Choice, Request, Sided, Stock, choose, choose_near};
pub use groups::{BadGroupName, GroupLimits, GroupName, HostLimits, PageKind};
pub use guard::{NumaVerdict, Ruling, Staged, Verdict, judge};
pub use holder::{HolderCommand, HolderError, Patience, hold};
pub use host::{Gauge, GaugeError, HostMemory, Pressure, ProcGauge};
pub use numa::{NumaMemory, NumaNode, node_of_process, numa_nodes};
pub use pool::{MOST_SIZES, PoolError};
pub use staging::{AllAccounts, Opening, Reserved, Staging, StagingError, Taken};
pub use stats::{GroupStats, Why};
