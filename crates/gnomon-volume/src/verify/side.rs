//! One copy of a volume, as a comparison sees it: what it claims to be the same at the other side, and hashes of it.

use std::sync::{Arc, OnceLock};

use gnomon_proto::frame::Content;
use gnomon_terms::{BLOCK_SIZE, BlockCount, Bytes, Extent};

use crate::{
    blockmap::BlockMap,
    disk::{Disk, DiskError, layered::UNIT_BLOCKS},
    mover::read_content,
    outbox::Outbox,
    stripes::Stripes,
};

/// A BLAKE3 hash of a unit or a block, cut at the volume's end.
pub type Digest = [u8; 32];

/// In place of a hash: not all of it is claimed. Nobody knows content with this hash.
pub const UNCLAIMED: Digest = [0; 32];

/// The most blocks in one question: 64 units, 4 MiB. Hashed in a few milliseconds, so that copies of the same class
/// do not wait long behind it.
pub const QUESTION_BLOCKS: u64 = 64 * UNIT_BLOCKS;

/// How much of an extent is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Every block.
    All,
    /// Some blocks and not others.
    Some,
    /// No block.
    None,
}

/// A copy.
#[derive(Clone)]
pub struct Side {
    /// The bytes.
    pub local: Arc<dyn Disk>,
    /// Locks shared with whoever writes.
    pub stripes: Arc<Stripes>,
    /// Which blocks are here; `None`: all.
    pub valid: Option<Arc<BlockMap>>,
    /// What the other side lacks; `None`: the copies are not kept in step.
    pub outbox: Option<Arc<Outbox>>,
}

/// The parts of a question that get a hash each: blocks of a short one, units of one that is longer than a unit.
pub fn grains(extent: Extent) -> impl Iterator<Item = Extent> {
    let step = if extent.len.0 > UNIT_BLOCKS { UNIT_BLOCKS } else { 1 };
    let mut at = extent.start.0;
    std::iter::from_fn(move || {
        let end = (at - at % step + step).min(extent.end().0);
        let grain = (at < end).then(|| Extent::new(at, end - at));
        at = end;
        grain
    })
}

impl Side {
    /// The volume's size.
    pub fn size(&self) -> Bytes {
        self.local.size()
    }

    /// The volume's size in blocks.
    pub fn blocks(&self) -> u64 {
        self.size().blocks().0
    }

    /// How much of `extent` is said to be the same at the other side.
    pub fn claim(&self, extent: Extent) -> Claim {
        let is_whole = self.valid.as_ref().is_none_or(|valid| valid.all(extent));
        if is_whole && self.outbox.as_ref().is_none_or(|outbox| !outbox.owes(extent)) {
            return Claim::All;
        }
        let is_claimed = |block: Extent| {
            self.valid.as_ref().is_none_or(|valid| valid.all(block))
                && self.outbox.as_ref().is_none_or(|outbox| !outbox.owes(block))
        };
        match extent.blocks().any(|block| is_claimed(Extent { start: block, len: BlockCount(1) })) {
            true => Claim::Some,
            false => Claim::None,
        }
    }

    /// Hashes what another side asks for; nothing when it cannot.
    pub fn answer(&self, extent: Extent) -> Vec<Digest> {
        let end = extent.start.0.checked_add(extent.len.0);
        let is_fair = !extent.is_empty() && extent.len.0 <= QUESTION_BLOCKS;
        if !is_fair || end.is_none_or(|end| end > self.blocks()) {
            tracing::warn!(?extent, "a question about blocks that are not on the volume, or too many, was declined");
            return Vec::new();
        }
        grains(extent).map(|grain| self.hash(grain)).collect::<Result<_, _>>().unwrap_or_else(|error| {
            tracing::error!(%error, "a copy that is compared cannot be read");
            Vec::new()
        })
    }

    /// Hashes a grain and watches it from now on: see [`Side::is_unchanged`].
    pub(super) fn look(&self, grain: Extent) -> Result<Digest, DiskError> {
        let _guard = self.stripes.lock(grain);
        if let Some(outbox) = &self.outbox {
            outbox.watch(grain);
        }
        self.hash_locked(grain)
    }

    /// Whether a grain is claimed and has not changed since [`Side::look`] gave `digest`, not even back and forth.
    pub(super) fn is_unchanged(&self, grain: Extent, digest: &Digest) -> Result<bool, DiskError> {
        let _guard = self.stripes.lock(grain);
        let has_changed = self.outbox.as_ref().is_some_and(|outbox| outbox.has_changed(grain));
        Ok(!has_changed && self.hash_locked(grain)? == *digest)
    }

    fn hash(&self, grain: Extent) -> Result<Digest, DiskError> {
        let _guard = self.stripes.lock(grain);
        self.hash_locked(grain)
    }

    /// Hashes a grain whose stripe is locked: no guest's write is half done.
    fn hash_locked(&self, grain: Extent) -> Result<Digest, DiskError> {
        if self.claim(grain) != Claim::All {
            return Ok(UNCLAIMED);
        }
        let len = grain.bytes().0.min(self.size().0 - grain.start.byte());
        Ok(match read_content(&*self.local, grain)? {
            Content::Data(data) => *blake3::hash(&data).as_bytes(),
            Content::Zero => hash_of_zeroes(len as usize),
        })
    }
}

/// The hash of `len` zeroes, at most a unit's: most of a thin volume is holes, and its two usual lengths are kept.
fn hash_of_zeroes(len: usize) -> Digest {
    const BLOCK: usize = BLOCK_SIZE as usize;
    const UNIT: usize = BLOCK * UNIT_BLOCKS as usize;
    static BLOCK_HASH: OnceLock<Digest> = OnceLock::new();
    static UNIT_HASH: OnceLock<Digest> = OnceLock::new();
    let hash = || *blake3::hash(&[0; UNIT][..len.min(UNIT)]).as_bytes();
    match len {
        BLOCK => *BLOCK_HASH.get_or_init(hash),
        UNIT => *UNIT_HASH.get_or_init(hash),
        _ => hash(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_question_is_about_blocks_and_a_long_one_about_units() {
        let table: [(Extent, &[Extent]); 4] = [
            (Extent::new(5, 2), &[Extent::new(5, 1), Extent::new(6, 1)]),
            (Extent::new(16, 33), &[Extent::new(16, 16), Extent::new(32, 16), Extent::new(48, 1)]),
            (Extent::new(10, 17), &[Extent::new(10, 6), Extent::new(16, 11)]),
            (Extent::new(10, 0), &[]),
        ];
        for (extent, expected) in table {
            assert_eq!(grains(extent).collect::<Vec<_>>(), expected, "{extent:?}");
        }
        assert_eq!(grains(Extent::new(64, 16)).count(), 16);
    }

    #[test]
    fn zeroes_hash_as_zeroes() {
        for len in [1, 100, 4096, 65536] {
            assert_eq!(hash_of_zeroes(len), *blake3::hash(&vec![0; len]).as_bytes());
        }
    }
}
