//! A volume as it was at one moment, to be written apart from it: the disk of a copy of the guest that an update is
//! tried on while the guest itself goes on.
//!
//! Nothing is copied when the fork is made. A block leaves the original for the overlay when either side is about to
//! change it, whichever comes first:
//!
//! ```text
//!               the guest writes it: copied first, then written ─┐
//!   in original ─────────────────────────────────────────────────┼──► in overlay
//!               the fork writes it: its rest copied, then written ┘
//! ```
//!
//! A fork serves the original, never the other way round: if a block cannot be preserved (the overlay's file system
//! is full), the fork is spoiled and every later request of it fails; the guest's write goes on.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use gnomon_terms::{BLOCK_SIZE, BlockCount, Bytes, Extent};
use parking_lot::Mutex;

use super::{Disk, DiskError, FileDisk, Segment};
use crate::stripes::{Stripes, split_bytes};

/// A writable view of a volume as it was when the view was made. Lives as long as this process: forks are tried and
/// thrown away, so nothing of them is recorded.
pub struct ForkDisk {
    original: Arc<FileDisk>,
    overlay: FileDisk,
    /// Blocks whose content is in the overlay, one bit each.
    taken: Mutex<Vec<u64>>,
    /// Held while a block's content and its bit are looked at or changed.
    stripes: Stripes,
    spoiled: AtomicBool,
}

impl ForkDisk {
    /// A fork of `original`, with `overlay` (of the same size, all holes) for what differs. The caller sees to it
    /// that no write of the original is under way, and that every later one is preserved first.
    pub(super) fn new(original: Arc<FileDisk>, overlay: FileDisk) -> ForkDisk {
        let blocks = original.size().blocks().0;
        ForkDisk {
            original,
            overlay,
            taken: Mutex::new(vec![0; blocks.div_ceil(64) as usize]),
            stripes: Stripes::default(),
            spoiled: AtomicBool::new(false),
        }
    }

    /// The original is about to change these bytes: what the fork still needs of them is copied. Blocks while the
    /// overlay is written. Never fails: a fork that cannot keep its content is spoiled instead.
    pub(super) fn preserve(&self, at: u64, len: u64) {
        if self.is_spoiled() {
            return;
        }
        for (at, len) in split_bytes(at, len) {
            let extent = Extent::touching(at, len);
            let _guard = self.stripes.lock(extent);
            if let Err(error) = self.take(extent) {
                self.spoiled.store(true, Ordering::Release);
                tracing::warn!(%error, "a fork could not keep its content and is spoiled; the guest is not concerned");
                return;
            }
        }
    }

    /// Whether it has lost content and only fails from now on.
    pub fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Acquire)
    }

    /// Bytes that are in the overlay: what the fork costs.
    pub fn overlaid(&self) -> Bytes {
        let blocks = self.taken.lock().iter().map(|word| u64::from(word.count_ones())).sum();
        BlockCount(blocks).bytes()
    }

    /// Copies the blocks of `extent`, which is within a stripe that is locked, unless they are there.
    fn take(&self, extent: Extent) -> Result<(), DiskError> {
        for run in self.runs(extent).into_iter().filter(|run| !run.taken) {
            let (at, len) = self.bytes(run.extent);
            let mut content = vec![0; len as usize];
            self.original.read_at(&mut content, at)?;
            if content.iter().any(|byte| *byte != 0) {
                self.overlay.write_at(&content, at)?;
            }
            self.mark(run.extent);
        }
        Ok(())
    }

    /// Changes `at .. at + len` of the fork stripe by stripe; `deed` gets the offset and length of each piece.
    fn change(
        &self,
        at: u64,
        len: u64,
        mut deed: impl FnMut(u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        self.refuse_if_spoiled()?;
        for (at, len) in split_bytes(at, len) {
            let extent = Extent::touching(at, len);
            let _guard = self.stripes.lock(extent);
            for edge in torn(at, len, self.size().0) {
                self.take(edge)?;
            }
            deed(at, len)?;
            self.mark(extent);
        }
        Ok(())
    }

    fn refuse_if_spoiled(&self) -> Result<(), DiskError> {
        match self.is_spoiled() {
            true => {
                Err(DiskError::Fenced { why: "the fork lost content of its original: make a new one".to_string() })
            }
            false => Ok(()),
        }
    }

    fn runs(&self, extent: Extent) -> Vec<Run> {
        let taken = self.taken.lock();
        let mut runs: Vec<Run> = Vec::new();
        for block in extent.start.0..extent.end().0 {
            let is_taken = taken[(block / 64) as usize] >> (block % 64) & 1 == 1;
            match runs.last_mut() {
                Some(run) if run.taken == is_taken => run.extent.len.0 += 1,
                _ => runs.push(Run { extent: Extent::new(block, 1), taken: is_taken }),
            }
        }
        runs
    }

    fn mark(&self, extent: Extent) {
        let mut taken = self.taken.lock();
        for block in extent.start.0..extent.end().0 {
            taken[(block / 64) as usize] |= 1 << (block % 64);
        }
    }

    /// Offset and length of whole blocks, cut at the end of the disk.
    fn bytes(&self, extent: Extent) -> (u64, u64) {
        let at = extent.start.byte();
        (at, extent.end().byte().min(self.size().0) - at)
    }

    fn disk_of(&self, run: Run) -> &FileDisk {
        if run.taken { &self.overlay } else { &self.original }
    }
}

/// Blocks whose content is in one place.
#[derive(Clone, Copy)]
struct Run {
    extent: Extent,
    taken: bool,
}

/// The blocks that `at .. at + len` touches only in part, of a disk of `size` bytes.
fn torn(at: u64, len: u64, size: u64) -> impl Iterator<Item = Extent> {
    let end = at + len;
    let head = (!at.is_multiple_of(BLOCK_SIZE)).then_some(at);
    let tail = (!end.is_multiple_of(BLOCK_SIZE) && end < size).then_some(end);
    [head, tail].into_iter().flatten().map(|byte| Extent::touching(byte, 1))
}

impl Disk for ForkDisk {
    fn size(&self) -> Bytes {
        self.original.size()
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        self.refuse_if_spoiled()?;
        let end = at + into.len() as u64;
        for (piece, len) in split_bytes(at, into.len() as u64) {
            let extent = Extent::touching(piece, len);
            // Held while the original is read: whoever changes it preserves the block first, under this lock.
            let _guard = self.stripes.lock(extent);
            for run in self.runs(extent) {
                let from = run.extent.start.byte().max(at);
                let to = run.extent.end().byte().min(end);
                self.disk_of(run).read_at(&mut into[(from - at) as usize..(to - at) as usize], from)?;
            }
        }
        // Spoiled meanwhile: what was read may be of another moment.
        self.refuse_if_spoiled()
    }

    fn write_at(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        self.change(at, data.len() as u64, |piece, len| {
            let from = (piece - at) as usize;
            self.overlay.write_at(&data[from..from + len as usize], piece)
        })
    }

    fn write_zeroes(&self, at: u64, len: u64, punch: bool) -> Result<(), DiskError> {
        self.change(at, len, |at, len| self.overlay.write_zeroes(at, len, punch))
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.change(at, len, |at, len| self.overlay.discard(at, len))
    }

    /// Nothing of a fork outlives this process, so there is nothing to make durable.
    fn flush(&self) -> Result<(), DiskError> {
        self.refuse_if_spoiled()
    }

    /// What the original allocates counts as data: a fork is not worth a closer look.
    fn segments(&self, at: u64, len: u64) -> Result<Vec<Segment>, DiskError> {
        self.refuse_if_spoiled()?;
        let none = self.overlaid() == Bytes(0);
        match none {
            true => self.original.segments(at, len),
            false => Ok(vec![Segment { len, hole: false, zero: false, local: true }]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::{Role, VolumeDisk};
    use gnomon_terms::Epoch;

    /// Two whole stripes and a bit, with an end within a block.
    const SIZE: u64 = (2 << 20) + 5000;

    struct Rig {
        _dir: tempfile::TempDir,
        volume: VolumeDisk,
        fork: Arc<ForkDisk>,
    }

    fn rig(content: &[u8]) -> Rig {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let local = FileDisk::create(&dir.path().join("disk"), Bytes(content.len() as u64)).expect("a new file");
        local.write_at(content, 0).expect("room for it");
        let volume = VolumeDisk::new(Arc::new(local), Epoch(1), Role::Primary);
        let overlay = FileDisk::create(&dir.path().join("overlay"), volume.size()).expect("a new file");
        let fork = volume.fork(overlay).expect("a primary can be forked");
        Rig { _dir: dir, volume, fork }
    }

    fn all(disk: &dyn Disk) -> Vec<u8> {
        let mut into = vec![0xEE; disk.size().0 as usize];
        disk.read_at(&mut into, 0).expect("a read within the disk");
        into
    }

    #[derive(Clone, Debug)]
    enum Deed {
        Write(u8),
        Zero,
        Discard,
    }

    fn deeds() -> impl Strategy<Value = Vec<(bool, u64, u64, Deed)>> {
        let deed = prop_oneof![(1u8..).prop_map(Deed::Write), Just(Deed::Zero), Just(Deed::Discard)];
        prop::collection::vec((any::<bool>(), 0..SIZE, 1u64..20_000, deed), 1..20)
    }

    fn apply(disk: &dyn Disk, model: &mut [u8], at: u64, len: u64, deed: &Deed) {
        let span = at as usize..(at + len) as usize;
        match deed {
            Deed::Write(byte) => {
                disk.write_at(&vec![*byte; len as usize], at).expect("a write");
                model[span].fill(*byte);
            }
            Deed::Zero => {
                disk.write_zeroes(at, len, true).expect("zeroes");
                model[span].fill(0);
            }
            Deed::Discard => {
                disk.discard(at, len).expect("a discard");
                model[span].fill(0);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn original_and_fork_go_their_own_ways(deeds in deeds()) {
            let mut original: Vec<u8> = (0..SIZE).map(|at| (at / 1000) as u8 | 1).collect();
            let mut forked = original.clone();
            let rig = rig(&original);
            for (to_fork, at, len, deed) in deeds {
                let len = len.min(SIZE - at);
                match to_fork {
                    true => apply(&*rig.fork, &mut forked, at, len, &deed),
                    false => apply(&rig.volume, &mut original, at, len, &deed),
                }
            }
            prop_assert!(all(&rig.volume) == original, "the original");
            prop_assert!(all(&*rig.fork) == forked, "the fork");
        }
    }

    #[test]
    fn a_fork_costs_what_was_changed() {
        let rig = rig(&vec![7; SIZE as usize]);
        assert_eq!(rig.fork.overlaid(), Bytes(0));
        rig.volume.write_at(&[1], 4095).expect("a write");
        rig.fork.write_at(&[2], 8192).expect("a write");
        assert_eq!(rig.fork.overlaid(), Bytes(2 * BLOCK_SIZE));
        let mut into = [0; 2];
        rig.fork.read_at(&mut into, 4095).expect("a read");
        assert_eq!(into, [7, 7], "as it was");
    }

    #[test]
    fn a_fork_stands_still_while_the_guest_writes() {
        let content: Vec<u8> = (0..SIZE).map(|at| (at / 4096) as u8).collect();
        let rig = rig(&content);
        std::thread::scope(|scope| {
            for seed in 1..3u64 {
                let volume = &rig.volume;
                scope.spawn(move || {
                    for turn in 1..2000u64 {
                        let at = (seed * turn).wrapping_mul(0x9E37_79B9_7F4A_7C15) % (SIZE - 10_000);
                        volume.write_at(&vec![turn as u8; 10_000], at).expect("a write");
                    }
                });
            }
            for _ in 0..20 {
                assert!(all(&*rig.fork) == content);
            }
        });
        assert!(all(&*rig.fork) == content);
    }

    #[test]
    fn a_fork_that_is_dropped_costs_nothing_more() {
        let rig = rig(&vec![7; SIZE as usize]);
        let (volume, fork) = (rig.volume, rig.fork);
        let seen = Arc::downgrade(&fork);
        drop(fork);
        volume.write_at(&[1], 0).expect("a write");
        assert!(seen.upgrade().is_none());
    }

    #[test]
    fn a_fork_without_room_is_spoiled_and_the_guest_goes_on() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let local = Arc::new(FileDisk::create(&dir.path().join("disk"), Bytes(SIZE)).expect("a new file"));
        local.write_at(&vec![7; SIZE as usize], 0).expect("room for it");
        let volume = VolumeDisk::new(local, Epoch(1), Role::Primary);
        let path = dir.path().join("overlay");
        drop(FileDisk::create(&path, Bytes(SIZE)).expect("a new file"));
        // Read-only stands for full: what matters is that the overlay refuses.
        let overlay = FileDisk::open(&path, None, super::super::Mode::ReadOnly).expect("it is there");
        let fork = volume.fork(overlay).expect("a primary can be forked");
        volume.write_at(&[9; 100], 4000).expect("the guest's write goes on");
        assert_eq!(all(&volume)[4000..4100], [9; 100]);
        assert!(fork.is_spoiled());
        assert!(matches!(fork.read_at(&mut [0; 10], 0), Err(DiskError::Fenced { .. })));
        assert!(fork.write_at(&[1], 0).is_err() && fork.flush().is_err());
    }

    #[test]
    fn only_a_writer_with_all_its_blocks_is_forked() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let local = Arc::new(FileDisk::create(&dir.path().join("disk"), Bytes(SIZE)).expect("a new file"));
        let volume = VolumeDisk::new(local, Epoch(1), Role::Fenced { to: "b".to_string() });
        let overlay = FileDisk::create(&dir.path().join("overlay"), Bytes(SIZE)).expect("a new file");
        assert!(matches!(volume.fork(overlay), Err(DiskError::Fenced { .. })));
    }
}
