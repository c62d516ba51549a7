//! A volume's standby: a second copy of a protected guest's disk that is, at every moment, the disk as it was at one of
//! the guest's checkpoints.
//!
//! ```text
//!   primary                                                   shadow
//!   guest's writes ──► Turns ──► StandbySender ──Push─────►   StandbyReceiver ──► volume     (first copy)
//!                        ▲           │         ──Mirror───►      │
//!                      mark(n)       │         ──Turn n───►      └──► journal ──seal(n)──► volume
//!                                    ◄─────────Turned n───      apply(n)
//! ```
//! *A turn* is what was written between two marks; a mark is made while the guest stands for a checkpoint. The owner
//! numbers turns, the same for all volumes of a guest, and joins a turn to a checkpoint in the checkpoint's Seal.
//!
//! **What a turn has to carry.** The disk at mark *n*, though by the time a block is sent the guest may have written it
//! again. Three ways were weighed:
//!
//! - *A log of every write, in order, in memory.* Right, but it grows with what is written, not with what differs, and a
//!   guest that writes faster than the link has to be stopped or the log given up.
//! - *No copies: if a block of turn n was written again before it was sent, n cannot be sealed and is merged into n+1.*
//!   Simple, but databases and file systems write the same block (a log's end, a superblock) many times a second: there
//!   would hardly be a turn without one, and the guest's memory of that checkpoint would have to be dropped with it.
//! - *Copy before write*, which is what is done: a write to a block that a turn on its way still needs first has the old
//!   content copied into memory ([`Turns`], `ledger`). A block is sent within milliseconds of its mark on a link that
//!   keeps up, so few are copied; and the mark itself only moves a pointer, however large the disk.
//!
//! A disk may have several standbys: each has a [`Turns`], an outbox and a sender of its own, and its own pace. A write is
//! noted for all of them. The copies are each standby's own, so a slow one costs memory, up to its bound, and no other one.
//!
//! The copies are bounded ([`COPIES`]). When they run out, the link is slower than the guest writes: the turns on their
//! way are then void (merged into the next, as in the second way), and the guest is never held up.
//!
//! **What may be lost.** Nothing that was sealed. The outbox owes a block until the standby has sealed a turn with the
//! content the block has now; so when a session ends, the next one carries what is owed and no more. Only a standby that
//! has forgotten (its journal is gone, or its host lost power during the first copy) gets everything anew.

mod blockset;
mod error;
mod journal;
mod ledger;
mod receiver;
mod sender;
mod stage;
mod turns;

use std::{
    io,
    path::{Path, PathBuf},
};

use gnomon_terms::Bytes;
use serde::{Deserialize, Serialize};

pub use error::{SenderError, StandbyError};
pub use journal::{FileMedium, JournalError, Lineage, Medium};
pub use receiver::{ReceiverParts, StandbyReceiver};
pub use sender::{COPIES, SenderParts, SenderPhase, SenderState, StandbySender};
pub use turns::Turns;

/// How large a journal is: twice what a guest writes in a second at 128 MiB/s, for a checkpoint that is sealed and one
/// that arrives.
pub const JOURNAL: Bytes = Bytes(256 << 20);

/// What a standby has when a session begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Has {
    /// The turn it can be taken over at. The primary numbers turns above it.
    pub sealed: Option<u64>,
    /// Whether what the primary does not owe is there. If not, everything is owed.
    pub kept: bool,
}

/// Removes the journal of the volume in `path`: nothing is known of its copy any more.
pub fn forget(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(journal_path(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The journal beside a volume's file.
fn journal_path(path: &Path) -> PathBuf {
    crate::volume::beside(path, "standby")
}
