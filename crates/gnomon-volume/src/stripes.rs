//! Locks over ranges of a volume, so that a block's content and the bits that speak of it change together.
//!
//! The address space is cut into stripes of 1 MiB; a few locks serve all of them by turns. Whoever changes a block
//! and its bits holds the lock of its stripe; longer extents are worked through stripe by stripe ([`split`]).

use gnomon_terms::{BLOCK_SIZE, BlockCount, Extent};
use parking_lot::{Mutex, MutexGuard};

/// Blocks in a stripe: 1 MiB. Long enough that most requests need one lock, short enough that a guest's write
/// seldom waits for a copy being applied beside it.
pub const STRIPE_BLOCKS: u64 = (1 << 20) / BLOCK_SIZE;

/// How many locks serve the stripes. Far more than there are threads that write at once.
const LOCKS: usize = 64;

/// The locks. Holding one never waits for the network.
pub struct Stripes {
    locks: Vec<Mutex<()>>,
}

impl Default for Stripes {
    fn default() -> Stripes {
        Stripes { locks: (0..LOCKS).map(|_| Mutex::new(())).collect() }
    }
}

impl Stripes {
    /// Locks the stripe of `extent`, which must not reach into the next one (see [`split`]).
    pub fn lock(&self, extent: Extent) -> MutexGuard<'_, ()> {
        let stripe = extent.start.0 / STRIPE_BLOCKS;
        debug_assert!(extent.is_empty() || (extent.end().0 - 1) / STRIPE_BLOCKS == stripe, "split it first");
        self.locks[stripe as usize % LOCKS].lock()
    }
}

/// Cuts an extent at stripe borders.
pub fn split(extent: Extent) -> impl Iterator<Item = Extent> {
    let mut rest = extent;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let to_border = STRIPE_BLOCKS - rest.start.0 % STRIPE_BLOCKS;
        let len = BlockCount(rest.len.0.min(to_border));
        let piece = Extent { start: rest.start, len };
        rest = Extent { start: rest.start.plus(len), len: BlockCount(rest.len.0 - len.0) };
        Some(piece)
    })
}

/// Cuts the bytes `at .. at + len` at stripe borders: `(offset, length)` pairs.
pub fn split_bytes(at: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
    const STRIPE: u64 = STRIPE_BLOCKS * BLOCK_SIZE;
    let mut rest = (at, len);
    std::iter::from_fn(move || {
        if rest.1 == 0 {
            return None;
        }
        let step = rest.1.min(STRIPE - rest.0 % STRIPE);
        let piece = (rest.0, step);
        rest = (rest.0 + step, rest.1 - step);
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_stripe_borders() {
        let pieces: Vec<Extent> = split(Extent::new(250, 300)).collect();
        assert_eq!(pieces, [Extent::new(250, 6), Extent::new(256, 256), Extent::new(512, 38)]);
        assert_eq!(split(Extent::new(3, 0)).count(), 0);
        let bytes: Vec<(u64, u64)> = split_bytes((1 << 20) - 10, 30).collect();
        assert_eq!(bytes, [((1 << 20) - 10, 10), (1 << 20, 20)]);
    }
}
