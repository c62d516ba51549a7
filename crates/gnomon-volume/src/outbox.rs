//! What the peer lacks: the one bitmap that decides what has to be sent.
//!
//! Both directions of a move use it. While priming, the source owes the destination every allocated block it has
//! not acknowledged, and every block the guest wrote since. While draining, the destination owes the source what
//! its guest wrote. A block is owed until the peer acknowledged *the content it has now*:
//!
//! ```text
//!   guest write ──► fresh + owed ──take()──► owed, in flight ──acknowledge()──► clear
//!                        ▲                        │
//!                        └────── guest write ─────┘   (fresh again: the acknowledgement clears nothing)
//! ```
//!
//! `owed` lives in a map file and survives a killed daemon; `fresh` is volatile, because after a restart nothing is
//! in flight and everything owed is sent anew.
//!
//! Writers, the sender and the hearer of acknowledgements hold the [`crate::stripes::Stripes`] lock of an extent
//! while they call in here (and writers while they write), so a block is never half written when it is taken and a
//! write never slips between an acknowledgement's look and its clearing.

use std::io;

use gnomon_terms::{BlockCount, Extent};

use crate::blockmap::BlockMap;

/// The blocks a peer lacks. Shared by the guest's writers, the sender and whoever hears the acknowledgements.
///
/// Invariant: a block whose content at the peer may differ from ours is owed.
pub struct Outbox {
    owed: BlockMap,
    fresh: BlockMap,
    /// Changed here since somebody began to watch, for whatever reason.
    changed: BlockMap,
}

impl Outbox {
    /// Takes over a map whose set bits are owed.
    pub fn new(owed: BlockMap) -> io::Result<Outbox> {
        let (fresh, changed) = (BlockMap::volatile(owed.blocks())?, BlockMap::volatile(owed.blocks())?);
        Ok(Outbox { owed, fresh, changed })
    }

    /// The guest is about to write `extent`. Called before the write, so that a crash in between is safe.
    pub fn note_write(&self, extent: Extent) {
        self.changed.set(extent);
        self.fresh.set(extent);
        self.owed.set(extent);
    }

    /// `extent` is owed, though nothing was written: the peer never had it.
    pub fn owe(&self, extent: Extent) {
        self.changed.set(extent);
        self.owed.set(extent);
    }

    /// The content of `extent` is about to be read and sent. Only one sender may have an extent in flight.
    pub fn take(&self, extent: Extent) {
        self.fresh.clear(extent);
    }

    /// The peer has the content of `extent` that was read after [`Outbox::take`].
    pub fn acknowledge(&self, extent: Extent) {
        for run in self.fresh.runs(extent, false) {
            self.owed.clear(run);
        }
    }

    /// The peer has the only content of `extent`: it lacks nothing of it, whatever the map said.
    pub fn forgive(&self, extent: Extent) {
        self.owed.clear(extent);
    }

    /// The peer changed `extent` here. Called after the change and before it is acknowledged.
    pub fn note_change(&self, extent: Extent) {
        self.changed.set(extent);
    }

    /// From now on it is remembered whether `extent` changes. Only one may watch.
    pub fn watch(&self, extent: Extent) {
        self.changed.clear(extent);
    }

    /// Whether a block of `extent` has changed since [`Outbox::watch`].
    pub fn has_changed(&self, extent: Extent) -> bool {
        self.changed.any(extent)
    }

    /// Whether any block of `extent` is owed.
    pub fn owes(&self, extent: Extent) -> bool {
        self.owed.any(extent)
    }

    /// The owed runs in `within`, in address order.
    pub fn owed_runs(&self, within: Extent) -> Vec<Extent> {
        self.owed.runs(within, true)
    }

    /// How many blocks are owed.
    pub fn owed(&self) -> BlockCount {
        self.owed.count()
    }

    /// The map itself, for a handover.
    pub fn map(&self) -> &BlockMap {
        &self.owed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stripes::Stripes;

    fn outbox() -> Outbox {
        Outbox::new(BlockMap::volatile(BlockCount(100)).expect("map")).expect("outbox")
    }

    #[test]
    fn what_was_acknowledged_is_no_longer_owed() {
        let outbox = outbox();
        outbox.owe(Extent::new(0, 10));
        outbox.take(Extent::new(0, 4));
        outbox.acknowledge(Extent::new(0, 4));
        assert_eq!(outbox.owed_runs(Extent::new(0, 100)), [Extent::new(4, 6)]);
    }

    #[test]
    fn a_block_written_while_in_flight_stays_owed() {
        let outbox = outbox();
        outbox.owe(Extent::new(0, 4));
        outbox.take(Extent::new(0, 4));
        outbox.note_write(Extent::new(2, 1));
        outbox.acknowledge(Extent::new(0, 4));
        assert_eq!(outbox.owed_runs(Extent::new(0, 100)), [Extent::new(2, 1)]);
        outbox.take(Extent::new(2, 1));
        outbox.acknowledge(Extent::new(2, 1));
        assert_eq!(outbox.owed(), BlockCount(0));
    }

    #[test]
    fn a_change_is_remembered_after_it_was_carried() {
        let outbox = outbox();
        let all = Extent::new(0, 10);
        outbox.note_write(Extent::new(1, 1));
        outbox.watch(all);
        assert!(!outbox.has_changed(all));
        outbox.note_write(Extent::new(2, 1));
        outbox.take(all);
        outbox.acknowledge(all);
        outbox.owe(Extent::new(5, 1));
        outbox.note_change(Extent::new(7, 1));
        let changed: Vec<u64> = (0..10).filter(|block| outbox.has_changed(Extent::new(*block, 1))).collect();
        assert_eq!(changed, [2, 5, 7]);
    }

    /// Many writers, one sender: when all is quiet, the peer's content equals ours.
    #[test]
    fn a_race_of_writers_and_acknowledgements_loses_nothing() {
        use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
        let outbox = outbox();
        let stripes = Stripes::default();
        let ours: Vec<AtomicU64> = (0..100).map(|_| AtomicU64::new(0)).collect();
        let peer: Vec<AtomicU64> = (0..100).map(|_| AtomicU64::new(0)).collect();
        let writing = AtomicBool::new(true);
        std::thread::scope(|scope| {
            let writers: Vec<_> = (0..2u64)
                .map(|seed| {
                    let (outbox, ours, stripes) = (&outbox, &ours, &stripes);
                    scope.spawn(move || {
                        for step in 0..20_000u64 {
                            let block = (step * 31 + seed * 17) % 100;
                            let _guard = stripes.lock(Extent::new(block, 1));
                            outbox.note_write(Extent::new(block, 1));
                            ours[block as usize].fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            let sender = scope.spawn(|| {
                while writing.load(Ordering::SeqCst) || outbox.owed().0 > 0 {
                    for run in outbox.owed_runs(Extent::new(0, 100)) {
                        {
                            let _guard = stripes.lock(run);
                            outbox.take(run);
                        }
                        for block in run.blocks() {
                            let value = ours[block.0 as usize].load(Ordering::SeqCst);
                            peer[block.0 as usize].store(value, Ordering::SeqCst);
                        }
                        let _guard = stripes.lock(run);
                        outbox.acknowledge(run);
                    }
                }
            });
            for writer in writers {
                writer.join().expect("writer");
            }
            writing.store(false, Ordering::SeqCst);
            sender.join().expect("sender");
        });
        for block in 0..100 {
            assert_eq!(ours[block].load(Ordering::SeqCst), peer[block].load(Ordering::SeqCst), "block {block}");
        }
    }
}
