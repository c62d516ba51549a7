//! A local shadow over a remote primary: the authoritative disk of a guest whose blocks have not all arrived.
//!
//! Each 4 KiB block is either *valid* here, or only at the peer. Validity only grows:
//!
//! ```text
//!            guest writes it ─┐
//!   at the peer ── demand ────┼──► valid
//!            pushed copy ─────┘
//! ```
//!
//! A read of valid blocks is a read of the local disk. A read of others first fetches the 64 KiB units around them
//! (a unit costs hardly more than a block on a link with a round trip, and neighbours are wanted next). A copy that
//! arrives late never replaces what the guest wrote meanwhile, because it is applied to blocks that are not valid
//! and to no others, under the lock of their stripe.

use std::sync::Arc;

use gnomon_proto::frame::Content;
use gnomon_terms::{BLOCK_SIZE, BlockCount, BlockIndex, Bytes, Extent, Settled};

use super::{Disk, DiskError, FileDisk, Segment};
use crate::{
    blockmap::BlockMap,
    outbox::Outbox,
    stripes::{Stripes, split, split_bytes},
};

/// Blocks in a fetch unit: 64 KiB. Measured: the unit size is as big a lever as the predictor; with 4 KiB units a
/// replayed web and database guest stalled 1.5 to 2.6 times as often.
pub const UNIT_BLOCKS: u64 = 16;

/// Bytes in a fetch unit.
const UNIT_BYTES: usize = (UNIT_BLOCKS * BLOCK_SIZE) as usize;

/// The most blocks asked for in one fetch (1 MiB): the largest payload of a frame.
pub const FETCH_BLOCKS: u64 = 256;

/// A promise that a flush will be answered; see [`Peer::ask_flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushTicket(pub u64);

/// The other host of a move, as a disk sees it.
pub trait Peer: Send + Sync {
    /// Its name, for messages.
    fn name(&self) -> String;

    /// The content of `extent` (at most [`FETCH_BLOCKS`]) there, cut at the end of the disk. Blocks until it is
    /// here, or until the peer has not answered for so long that waiting is given up.
    fn fetch(&self, extent: Extent) -> Result<Arc<Content>, DiskError>;

    /// A guest's read of `extent` has to wait for the peer. Never blocks.
    fn stalled(&self, extent: Extent);

    /// The guest wrote `extent` and the outbox owes it: send it soon. Never blocks.
    fn offer(&self, extent: Extent);

    /// Asks for everything owed now to be made durable at the peer. Never blocks.
    fn ask_flush(&self) -> FlushTicket;

    /// Blocks until what was asked for is durable there, or mirroring has been given up (which is told elsewhere).
    fn wait_flush(&self, ticket: FlushTicket) -> Result<(), DiskError>;
}

/// A disk whose blocks are partly here and partly at a peer. See the module doc.
pub struct LayeredDisk {
    /// Where valid blocks are.
    pub local: Arc<FileDisk>,
    /// Which blocks are valid here.
    pub valid: Arc<BlockMap>,
    /// The host that has the others.
    pub peer: Arc<dyn Peer>,
    /// What the peer lacks since the guest runs here; `None` when nothing is mirrored back.
    pub outbox: Option<Arc<Outbox>>,
    /// Shared with the senders and appliers.
    pub stripes: Arc<Stripes>,
}

impl LayeredDisk {
    /// Blocks that are not here yet.
    pub fn missing(&self) -> BlockCount {
        BlockCount(self.valid.blocks().0 - self.valid.count().0)
    }

    /// Applies a copy that came from the peer to the blocks of `extent` that are not valid yet.
    pub fn apply(&self, extent: Extent, content: &Content) -> Result<Settled, DiskError> {
        apply_copy(&self.local, &self.valid, &self.stripes, extent, content, Onto::Missing)
    }

    /// Fetches what is missing of `extent`, unit by unit.
    fn demand(&self, extent: Extent) -> Result<(), DiskError> {
        for wanted in units_around(&self.valid.runs(extent, false), self.valid.blocks()) {
            let content = self.peer.fetch(wanted)?;
            self.apply(wanted, &content)?;
        }
        Ok(())
    }

    /// Reads what is valid here, and the rest at the peer without keeping it. Validity only grows, so what is found valid
    /// stays readable.
    fn read_through(&self, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        let end = at + into.len() as u64;
        let mut here = at;
        while here < end {
            let rest = Extent::touching(here, end - here);
            let Some((valid, blocks)) = self.valid.run(rest) else { break };
            let run = Extent::new(rest.start.0, blocks.0.min(FETCH_BLOCKS));
            let stop = run.end().byte().min(end);
            let part = &mut into[(here - at) as usize..(stop - at) as usize];
            match valid {
                true => self.local.read_at(part, here)?,
                false => cut_out(&*self.peer.fetch(run)?, run, here, part),
            }
            here = stop;
        }
        Ok(())
    }

    /// Blocks that `at .. at + len` touches only in part and that are not valid: they must be fetched before they
    /// can be partly replaced.
    fn torn(&self, at: u64, len: u64) -> Option<Extent> {
        let end = at + len;
        let head = (!at.is_multiple_of(BLOCK_SIZE)).then(|| BlockIndex::of_byte(at));
        let tail = (!end.is_multiple_of(BLOCK_SIZE) && end < self.size().0).then(|| BlockIndex::of_byte(end));
        [head, tail].into_iter().flatten().find(|b| !self.valid.get(*b)).map(|b| Extent::new(b.0, 1))
    }

    /// Changes `at .. at + len` stripe by stripe, keeping content, validity and debt in step.
    fn change(
        &self,
        at: u64,
        len: u64,
        mut deed: impl FnMut(u64, u64) -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        while let Some(torn) = self.torn(at, len) {
            self.demand(torn)?;
        }
        for (at, len) in split_bytes(at, len) {
            let extent = Extent::touching(at, len);
            let guard = self.stripes.lock(extent);
            if let Some(outbox) = &self.outbox {
                outbox.note_write(extent);
            }
            deed(at, len)?;
            self.valid.set(extent);
            drop(guard);
            if self.outbox.is_some() {
                self.peer.offer(extent);
            }
        }
        Ok(())
    }
}

impl Disk for LayeredDisk {
    fn size(&self) -> Bytes {
        self.local.size()
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        let extent = Extent::touching(at, into.len() as u64);
        if self.valid.all(extent) {
            return self.local.read_at(into, at);
        }
        self.peer.stalled(extent);
        match self.demand(extent) {
            Ok(()) => self.local.read_at(into, at),
            // What cannot be kept can be read all the same: the guest need not stand for want of space here.
            Err(DiskError::Full { .. }) => self.read_through(into, at),
            Err(error) => Err(error),
        }
    }

    fn write_at(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        self.change(at, data.len() as u64, |piece, len| {
            let from = (piece - at) as usize;
            self.local.write_at(&data[from..from + len as usize], piece)
        })
    }

    fn write_zeroes(&self, at: u64, len: u64, punch: bool) -> Result<(), DiskError> {
        self.change(at, len, |at, len| self.local.write_zeroes(at, len, punch))
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.change(at, len, |at, len| self.local.discard(at, len))
    }

    /// Returns when everything acknowledged is durable here and, while mirroring, at the peer.
    fn flush(&self) -> Result<(), DiskError> {
        let ticket = self.outbox.as_ref().map(|_| self.peer.ask_flush());
        let stored = self.valid.checkpoint(|| self.local.flush())?;
        stored.map_err(DiskError::io("flush the block map of", 0, self.size().0))?;
        match ticket {
            Some(ticket) => self.peer.wait_flush(ticket),
            None => Ok(()),
        }
    }

    fn is_local(&self, at: u64, len: u64) -> bool {
        self.valid.all(Extent::touching(at, len))
    }

    /// Validity only grows, so a block that is valid here may be read at any time later.
    fn try_read_at(&self, into: &mut [u8], at: u64) -> Result<bool, DiskError> {
        match self.is_local(at, into.len() as u64) {
            true => self.local.try_read_at(into, at),
            false => Ok(false),
        }
    }

    fn segments(&self, at: u64, len: u64) -> Result<Vec<Segment>, DiskError> {
        let mut segments = Vec::new();
        let end = at + len;
        let mut here = at;
        while here < end {
            let rest = Extent::touching(here, end - here);
            let Some((valid, blocks)) = self.valid.run(rest) else { break };
            let stop = rest.start.plus(blocks).byte().min(end);
            if valid {
                segments.extend(self.local.segments(here, stop - here)?);
            } else {
                segments.push(Segment { len: stop - here, hole: false, zero: false, local: false });
            }
            here = stop;
        }
        Ok(segments)
    }
}

/// The bytes from `at` on of a copy of `extent`, which [`fits`].
fn cut_out(content: &Content, extent: Extent, at: u64, into: &mut [u8]) {
    match content {
        Content::Zero => into.fill(0),
        Content::Data(data) => {
            let from = (at - extent.start.byte()) as usize;
            into.copy_from_slice(&data[from..from + into.len()]);
        }
    }
}

/// Which blocks a copy may replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onto {
    /// Only blocks that are not valid: a guest runs here and its writes are newer than any copy.
    Missing,
    /// All of them: no guest runs here, and the copy is newer than what is there.
    Any,
}

/// Stores a copy of `extent` and marks it valid, stripe by stripe.
///
/// The caller has checked with [`fits`] that `content` is one of `extent`.
pub fn apply_copy(
    local: &FileDisk,
    valid: &BlockMap,
    stripes: &Stripes,
    extent: Extent,
    content: &Content,
    onto: Onto,
) -> Result<Settled, DiskError> {
    let mut settled = Settled::Needless;
    for piece in split(extent) {
        let _guard = stripes.lock(piece);
        let targets = match onto {
            Onto::Missing => valid.runs(piece, false),
            Onto::Any => vec![piece],
        };
        for run in targets {
            store(local, extent, run, content)?;
            valid.set(run);
            settled = Settled::Done;
        }
    }
    Ok(settled)
}

/// Whether `extent` lies on a disk of `size` and `content` has its length (the last block may be cut at the end).
pub fn fits(content: &Content, extent: Extent, size: Bytes) -> bool {
    let on_disk = extent.start.0.checked_add(extent.len.0).is_some_and(|end| end <= size.blocks().0);
    let cut = || extent.bytes().0.min(size.0 - extent.start.byte());
    on_disk
        && !extent.is_empty()
        && extent.len.0 <= FETCH_BLOCKS
        && match content {
            Content::Zero => true,
            Content::Data(data) => data.len() as u64 == cut(),
        }
}

/// Writes the part `run` of a copy of `extent`, unit by unit: units of zeroes become holes, so a thin volume stays
/// thin.
pub(crate) fn store(local: &dyn Disk, extent: Extent, run: Extent, content: &Content) -> Result<(), DiskError> {
    let at = run.start.byte();
    // The last block of a disk whose size is no multiple of 4 KiB is partly outside.
    let len = run.bytes().0.min(local.size().0 - at);
    let Content::Data(data) = content else { return local.write_zeroes(at, len, true) };
    let from = (at - extent.start.byte()) as usize;
    let mut written = at;
    for unit in data[from..from + len as usize].chunks(UNIT_BYTES) {
        if is_zero(unit) {
            local.write_zeroes(written, unit.len() as u64, true)?;
        } else {
            local.write_at(unit, written)?;
        }
        written += unit.len() as u64;
    }
    Ok(())
}

/// Whether all bytes are zero. The compiler makes wide compares of it; the first word decides for most data.
pub fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<64>();
    words.iter().all(|word| *word == [0; 64]) && rest.iter().all(|byte| *byte == 0)
}

/// The fetch units around some runs of blocks, adjacent ones joined, none longer than [`FETCH_BLOCKS`].
pub fn units_around(runs: &[Extent], blocks: BlockCount) -> Vec<Extent> {
    let mut wanted: Vec<Extent> = Vec::new();
    for run in runs {
        let mut start = run.start.0 / UNIT_BLOCKS * UNIT_BLOCKS;
        let end = run.end().0.next_multiple_of(UNIT_BLOCKS).min(blocks.0);
        if let Some(last) = wanted.last_mut() {
            start = start.max(last.end().0);
            let grown = end.saturating_sub(last.start.0);
            if start == last.end().0 && grown <= FETCH_BLOCKS {
                last.len = BlockCount(grown.max(last.len.0));
                continue;
            }
        }
        while start < end {
            let len = (end - start).min(FETCH_BLOCKS);
            wanted.push(Extent::new(start, len));
            start += len;
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_content_of_the_right_length_and_place_fits() {
        let size = Bytes(10 * BLOCK_SIZE + 100);
        let table = [
            (Extent::new(0, 2), 8192, true),
            (Extent::new(0, 2), 8191, false),
            (Extent::new(10, 1), 100, true),
            (Extent::new(10, 1), 4096, false),
            (Extent::new(10, 2), 100, false),
            (Extent::new(u64::MAX, 2), 100, false),
            (Extent::new(3, 0), 0, false),
        ];
        for (extent, len, expect) in table {
            assert_eq!(fits(&Content::Data(vec![1; len]), extent, size), expect, "{extent:?} {len}");
        }
        assert!(fits(&Content::Zero, Extent::new(0, 11), size));
        assert!(!fits(&Content::Zero, Extent::new(0, 12), size));
    }

    #[test]
    fn zeroes_are_found_wherever_the_other_byte_is() {
        let mut data = vec![0; 4096 + 7];
        assert!(is_zero(&data));
        for place in [0, 63, 64, 4095, 4102] {
            data[place] = 1;
            assert!(!is_zero(&data), "{place}");
            data[place] = 0;
        }
    }

    #[test]
    fn units_are_whole_joined_and_bounded() {
        let table: [(&[Extent], &[Extent]); 5] = [
            (&[Extent::new(3, 1)], &[Extent::new(0, 16)]),
            (&[Extent::new(3, 1), Extent::new(9, 2)], &[Extent::new(0, 16)]),
            (&[Extent::new(15, 2)], &[Extent::new(0, 32)]),
            (&[Extent::new(0, 16), Extent::new(40, 1)], &[Extent::new(0, 16), Extent::new(32, 16)]),
            (&[Extent::new(990, 10)], &[Extent::new(976, 24)]),
        ];
        for (runs, expect) in table {
            assert_eq!(units_around(runs, BlockCount(1000)), expect, "{runs:?}");
        }
        let long = units_around(&[Extent::new(0, 1000)], BlockCount(1000));
        assert!(long.iter().all(|e| e.len.0 <= FETCH_BLOCKS));
        assert_eq!(long.iter().map(|e| e.len.0).sum::<u64>(), 1000);
    }
}
