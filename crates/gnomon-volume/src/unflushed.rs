//! What the peer has acknowledged and may still lose: mirrored writes that it has in memory only.
//!
//! ```text
//!   write ──► owed ──acknowledged──► unflushed ──flushed──► durable at the peer
//!               ▲                        │
//!               └── the peer's host rebooted, or could not flush ──┘
//! ```
//! Without it, a power cut at the peer would take writes that nobody owes it any more, and the next flush would call
//! them durable there. It lives in a map file beside that of owed blocks: whoever writes here may be killed between
//! the peer's reboot and its next word.

use gnomon_terms::{BlockCount, Extent};
use parking_lot::Mutex;

use crate::{blockmap::BlockMap, outbox::Outbox};

/// Extents that are remembered one by one since the last flush; past it the whole map is cleared at the next one.
/// 4096 × 16 B = 64 KiB, and clearing a map of 1 TiB (32 MiB) once in so many writes costs little beside them.
const REMEMBERED: usize = 4096;

/// The blocks that a peer may still lose. Called by whoever hears the acknowledgements, in their order.
///
/// Invariant: a block whose content at the peer is acknowledged and not durable is in it.
pub struct Unflushed {
    map: BlockMap,
    since: Mutex<Since>,
}

/// What has been acknowledged since the last flush.
enum Since {
    /// These.
    Extents(Vec<Extent>),
    /// Whatever the map says: there are many, or they were noted by a process before this one.
    Unknown,
}

impl Unflushed {
    /// Takes over a map whose set bits may be lost at the peer.
    pub fn new(map: BlockMap) -> Unflushed {
        Unflushed { map, since: Mutex::new(Since::Unknown) }
    }

    /// The peer has the content of `extent`, in memory at least. Called before it is owed no longer.
    pub fn acknowledged(&self, extent: Extent) {
        self.map.set(extent);
        let mut since = self.since.lock();
        match &mut *since {
            Since::Extents(extents) if extents.len() < REMEMBERED => extents.push(extent),
            since => *since = Since::Unknown,
        }
    }

    /// Everything that was acknowledged so far is durable at the peer.
    pub fn flushed(&self) {
        let mut since = self.since.lock();
        match std::mem::replace(&mut *since, Since::Extents(Vec::new())) {
            Since::Extents(extents) => extents.into_iter().for_each(|extent| self.map.clear(extent)),
            Since::Unknown => self.map.clear(self.map.whole()),
        }
    }

    /// The peer may have lost all of it: it is owed again. It stays noted until the next flush, so that a crash at any
    /// moment loses none of it.
    pub fn owe_again(&self, outbox: &Outbox) {
        self.map.runs(self.map.whole(), true).into_iter().for_each(|run| outbox.owe(run));
    }

    /// How many blocks the peer may still lose.
    pub fn count(&self) -> BlockCount {
        self.map.count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed_after(deed: impl Fn(&Unflushed)) -> Vec<Extent> {
        let map = || BlockMap::volatile(BlockCount(20_000)).expect("map");
        let (unflushed, outbox) = (Unflushed::new(map()), Outbox::new(map()).expect("outbox"));
        unflushed.flushed();
        deed(&unflushed);
        unflushed.owe_again(&outbox);
        let owed = outbox.owed_runs(Extent::new(0, 20_000));
        assert_eq!(outbox.owed(), unflushed.count(), "what is owed again stays noted");
        owed
    }

    #[test]
    fn only_what_no_flush_covered_is_owed_again() {
        let (early, late) = (Extent::new(3, 4), Extent::new(10, 1));
        assert_eq!(owed_after(|unflushed| unflushed.acknowledged(early)), [early]);
        let flushed = owed_after(|unflushed| {
            unflushed.acknowledged(early);
            unflushed.flushed();
            unflushed.acknowledged(late);
        });
        assert_eq!(flushed, [late]);
    }

    #[test]
    fn more_than_is_remembered_is_covered_by_a_flush_too() {
        let many = REMEMBERED as u64 + 10;
        let each = |unflushed: &Unflushed| (0..many).for_each(|at| unflushed.acknowledged(Extent::new(at * 2, 1)));
        assert_eq!(owed_after(each).len() as u64, many);
        let flushed = |unflushed: &Unflushed| {
            each(unflushed);
            unflushed.flushed();
        };
        assert_eq!(owed_after(flushed), []);
    }

    #[test]
    fn what_a_process_before_noted_is_owed_again_until_a_flush() {
        let noted = || {
            let map = BlockMap::volatile(BlockCount(100)).expect("map");
            map.set(Extent::new(7, 2));
            Unflushed::new(map)
        };
        let owed = |unflushed: Unflushed| {
            let outbox = Outbox::new(BlockMap::volatile(BlockCount(100)).expect("map")).expect("outbox");
            unflushed.owe_again(&outbox);
            outbox.owed()
        };
        assert_eq!(owed(noted()), BlockCount(2));
        let flushed = noted();
        flushed.flushed();
        assert_eq!(owed(flushed), BlockCount(0));
    }
}
