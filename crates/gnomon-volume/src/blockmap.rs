//! One bit for each 4 KiB block, shared by many threads, that survives a killed daemon.
//!
//! A map file is mapped shared, so a bit is in the kernel's hands the moment it is set: `kill -9` of the daemon
//! loses nothing. A host that loses power may keep a bit and lose the data it speaks of, so the file has two
//! regions:
//!
//! ```text
//!   0        header: magic, version, blocks, boot id of the host that wrote `live`
//!   4096     live      believed while the host has not rebooted since
//!   4096+n   durable   believed after a reboot: stored only after the data was synced
//! ```
//!
//! [`BlockMap::checkpoint`] carries live bits over to the durable region, in the order: look at the bits, sync the
//! data they speak of, store the bits, sync the bits. Which region to believe after a reboot, or whether to believe
//! nothing, is the owner's choice ([`Lost`]).

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use gnomon_terms::{BlockCount, BlockIndex, ErrorKind, Extent};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags, mmap, mmap_anonymous, msync, munmap};

/// First bytes of a map file.
const MAGIC: u64 = u64::from_le_bytes(*b"gnomonbm");
/// Layout described in the module doc.
const VERSION: u64 = 1;
/// The header has a page of its own, so that the regions can be synced by pages.
const HEADER: usize = 4096;
/// Blocks in one word of the map.
const WORD: u64 = 64;

/// Names the running kernel: the same from boot to reboot. Read by the rim from the kernel's random boot id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// The boot id of this host.
    pub fn of_this_host() -> io::Result<BootId> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "the kernel's boot id is not 128 bits of hex");
        let value = u128::from_str_radix(&hex, 16).map_err(|_| bad())?;
        Ok(BootId(value.to_be_bytes()))
    }
}

/// What to believe of a map whose host has rebooted since it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The durable region: bits whose data was synced before they were stored.
    KeepDurable,
    /// Nothing: every bit is set. For maps that say "the peer lacks this": asking twice is safe.
    SetAll,
}

/// Why a map file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The file could not be opened, read, grown or mapped.
    #[error("the block map {path} cannot be used")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not a block map of this volume.
    #[error("{path} is not a block map for {blocks} blocks ({why}): move it away to start the copy afresh")]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Blocks it should have.
        blocks: u64,
        /// What was found.
        why: &'static str,
    },
}

impl MapError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            MapError::Io { .. } => ErrorKind::Unavailable,
            MapError::Foreign { .. } => ErrorKind::Corrupt,
        }
    }
}

/// A bit for each block. Setting, clearing and asking are atomic word by word; a call over many blocks is not.
pub struct BlockMap {
    base: NonNull<u8>,
    mapped: usize,
    /// Words in one region.
    words: usize,
    blocks: u64,
    file: Option<File>,
}

// SAFETY: the mapping lives as long as the value, and every access to it goes through `AtomicU64`.
unsafe impl Send for BlockMap {}
// SAFETY: as above; no method hands out a plain reference into the mapping.
unsafe impl Sync for BlockMap {}

impl BlockMap {
    /// A map in memory only, all bits clear.
    pub fn volatile(blocks: BlockCount) -> io::Result<BlockMap> {
        let words = words_for(blocks.0);
        let mapped = (words * 8).max(8);
        // SAFETY: a fresh anonymous mapping of `mapped` > 0 bytes, owned by the value and unmapped in `drop`.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(BlockMap { base, mapped, words, blocks: blocks.0, file: None })
    }

    /// Opens the map in `path`, or makes it with all bits clear. `boot` is the running kernel.
    pub fn open(path: &Path, blocks: BlockCount, boot: BootId, lost: Lost) -> Result<BlockMap, MapError> {
        let io_error = |source| MapError::Io { path: path.to_path_buf(), source };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io_error)?;
        let words = words_for(blocks.0);
        let mapped = HEADER + 2 * region_bytes(words);
        let fresh = check_header(&file, path, blocks.0, mapped as u64)?;
        file.set_len(mapped as u64).map_err(io_error)?;
        // All of it is given storage now: setting a bit in a hole of a full file system would kill the daemon (SIGBUS).
        fallocate(&file, FallocateFlags::empty(), 0, mapped as u64).map_err(|e| io_error(e.into()))?;
        // SAFETY: the file is at least `mapped` bytes long; the mapping is owned by the value.
        let base = unsafe {
            mmap(std::ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &file, 0)
        }
        .map_err(|e| io_error(e.into()))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| io_error(io::Error::other("mmap returned null")))?;
        let map = BlockMap { base, mapped, words, blocks: blocks.0, file: Some(file) };
        map.adopt(fresh, boot, lost).map_err(io_error)?;
        Ok(map)
    }

    /// Brings the live region into line with what may be believed, then signs it with this boot.
    fn adopt(&self, fresh: bool, boot: BootId, lost: Lost) -> io::Result<()> {
        let same_boot = !fresh && self.header_boot() == boot;
        if !fresh && !same_boot {
            match lost {
                Lost::KeepDurable => {
                    for index in 0..self.words {
                        self.live(index).store(self.durable(index).load(Ordering::Relaxed), Ordering::Relaxed);
                    }
                }
                Lost::SetAll => self.set(self.whole()),
            }
        }
        let file = self.file.as_ref().expect("only a map with a file is adopted");
        let mut header = [0u8; 40];
        header[..8].copy_from_slice(&MAGIC.to_le_bytes());
        header[8..16].copy_from_slice(&VERSION.to_le_bytes());
        header[16..24].copy_from_slice(&self.blocks.to_le_bytes());
        header[24..].copy_from_slice(&boot.0);
        file.write_all_at(&header, 0)?;
        file.sync_data()
    }

    /// The boot id in the header.
    fn header_boot(&self) -> BootId {
        let mut id = [0u8; 16];
        let file = self.file.as_ref().expect("only a map with a file has a header");
        // A header that cannot be read is as good as one of another boot: less is believed.
        let _ = file.read_exact_at(&mut id, 24);
        BootId(id)
    }

    /// How many blocks it describes.
    pub fn blocks(&self) -> BlockCount {
        BlockCount(self.blocks)
    }

    /// All of it.
    pub fn whole(&self) -> Extent {
        Extent::new(0, self.blocks)
    }

    /// Sets the bits of `extent`.
    pub fn set(&self, extent: Extent) {
        self.for_words(extent, |word, mask| {
            // Most writes hit blocks already set: a load is cheaper than a locked operation.
            if word.load(Ordering::SeqCst) & mask != mask {
                word.fetch_or(mask, Ordering::SeqCst);
            }
        });
    }

    /// Clears the bits of `extent`.
    pub fn clear(&self, extent: Extent) {
        self.for_words(extent, |word, mask| {
            if word.load(Ordering::SeqCst) & mask != 0 {
                word.fetch_and(!mask, Ordering::SeqCst);
            }
        });
    }

    /// Whether the bit of `block` is set; a block past the end is not.
    pub fn get(&self, block: BlockIndex) -> bool {
        block.0 < self.blocks
            && self.live((block.0 / WORD) as usize).load(Ordering::SeqCst) & (1 << (block.0 % WORD)) != 0
    }

    /// Whether every bit of `extent` is set (true for an empty extent).
    pub fn all(&self, extent: Extent) -> bool {
        let mut all = true;
        self.for_words(extent, |word, mask| all &= word.load(Ordering::SeqCst) & mask == mask);
        all
    }

    /// Whether any bit of `extent` is set.
    pub fn any(&self, extent: Extent) -> bool {
        let mut any = false;
        self.for_words(extent, |word, mask| any |= word.load(Ordering::SeqCst) & mask != 0);
        any
    }

    /// How many bits are set.
    pub fn count(&self) -> BlockCount {
        BlockCount((0..self.words).map(|i| u64::from(self.live(i).load(Ordering::Relaxed).count_ones())).sum())
    }

    /// The first run of equal bits in `extent`: its value and how many blocks it has; `None` when empty.
    pub fn run(&self, extent: Extent) -> Option<(bool, BlockCount)> {
        if extent.is_empty() {
            return None;
        }
        let value = self.get(extent.start);
        let mut at = extent.start.0;
        let end = extent.end().0;
        while at < end {
            let word = self.live((at / WORD) as usize).load(Ordering::SeqCst);
            let differs = (if value { !word } else { word }) >> (at % WORD);
            let equal = u64::from(differs.trailing_zeros());
            let left_in_word = WORD - at % WORD;
            if equal < left_in_word {
                at += equal;
                break;
            }
            at += left_in_word;
        }
        Some((value, BlockCount(at.min(end) - extent.start.0)))
    }

    /// The runs of blocks in `within` whose bit is `value`, in address order.
    pub fn runs(&self, within: Extent, value: bool) -> Vec<Extent> {
        let mut runs = Vec::new();
        let mut rest = within.overlap(self.whole());
        while let Some((bit, len)) = self.run(rest) {
            if bit == value {
                runs.push(Extent { start: rest.start, len });
            }
            rest = Extent { start: rest.start.plus(len), len: BlockCount(rest.len.0 - len.0) };
        }
        runs
    }

    /// The bits as little-endian bytes, block 0 in the lowest bit of byte 0.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..self.words).flat_map(|i| self.live(i).load(Ordering::SeqCst).to_le_bytes()).collect();
        bytes.truncate(self.blocks.div_ceil(8) as usize);
        bytes
    }

    /// How many bytes [`BlockMap::to_bytes`] gives.
    pub fn byte_len(&self) -> usize {
        self.blocks.div_ceil(8) as usize
    }

    /// Makes the bits that are set now durable, after `sync_data` made the data they speak of durable.
    /// Blocks for two syncs; does nothing but sync the data for a map without a file.
    pub fn checkpoint<E>(&self, sync_data: impl FnOnce() -> Result<(), E>) -> Result<io::Result<()>, E> {
        if self.file.is_none() {
            sync_data()?;
            return Ok(Ok(()));
        }
        let seen: Vec<(usize, u64)> = (0..self.words)
            .map(|i| (i, self.live(i).load(Ordering::SeqCst)))
            .filter(|(i, word)| self.durable(*i).load(Ordering::Relaxed) != *word)
            .collect();
        sync_data()?;
        for (index, word) in &seen {
            self.durable(*index).store(*word, Ordering::Relaxed);
        }
        Ok(if seen.is_empty() { Ok(()) } else { self.sync() })
    }

    /// Clears bits in both regions and syncs them, before the data they speak of is given up or replaced.
    pub fn retract(&self, extents: &[Extent]) -> io::Result<()> {
        for extent in extents {
            self.clear(*extent);
            if self.file.is_some() {
                self.for_indexes(*extent, |map, index, mask| {
                    map.durable(index).fetch_and(!mask, Ordering::SeqCst);
                });
            }
        }
        self.sync()
    }

    /// Writes the mapping to the disk.
    fn sync(&self) -> io::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        // SAFETY: the range is exactly the mapping the value owns.
        unsafe { msync(self.base.as_ptr().cast(), self.mapped, MsyncFlags::SYNC) }.map_err(io::Error::from)
    }

    /// Word `index` of the live region.
    fn live(&self, index: usize) -> &AtomicU64 {
        let offset = if self.file.is_some() { HEADER } else { 0 };
        self.word(offset, index)
    }

    /// Word `index` of the durable region.
    fn durable(&self, index: usize) -> &AtomicU64 {
        self.word(HEADER + region_bytes(self.words), index)
    }

    fn word(&self, offset: usize, index: usize) -> &AtomicU64 {
        assert!(index < self.words, "block past the end of the map");
        // SAFETY: offset + 8 * words lies in the mapping (see `open`, `volatile`), both are multiples of 8, and the
        // memory is only ever accessed as atomics.
        unsafe { &*self.base.as_ptr().add(offset + index * 8).cast::<AtomicU64>() }
    }

    fn for_words(&self, extent: Extent, mut deed: impl FnMut(&AtomicU64, u64)) {
        self.for_indexes(extent, |map, index, mask| deed(map.live(index), mask));
    }

    /// Calls `deed` with each word of `extent` and the mask of its blocks there.
    fn for_indexes(&self, extent: Extent, mut deed: impl FnMut(&BlockMap, usize, u64)) {
        let extent = extent.overlap(self.whole());
        let (mut at, end) = (extent.start.0, extent.end().0);
        while at < end {
            let stop = ((at / WORD + 1) * WORD).min(end);
            let count = stop - at;
            let ones = if count == WORD { u64::MAX } else { (1 << count) - 1 };
            deed(self, (at / WORD) as usize, ones << (at % WORD));
            at = stop;
        }
    }
}

impl Drop for BlockMap {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what was mapped; no reference into it outlives the value.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// Words for this many blocks.
fn words_for(blocks: u64) -> usize {
    blocks.div_ceil(WORD) as usize
}

/// Bytes of one region, in whole pages so that regions never share one.
fn region_bytes(words: usize) -> usize {
    (words * 8).next_multiple_of(4096)
}

/// Whether the file is fresh (empty); an error when it is something else than a map for `blocks`.
fn check_header(file: &File, path: &Path, blocks: u64, expect: u64) -> Result<bool, MapError> {
    let io_error = |source| MapError::Io { path: path.to_path_buf(), source };
    let foreign = |why| MapError::Foreign { path: path.to_path_buf(), blocks, why };
    let len = file.metadata().map_err(io_error)?.len();
    if len == 0 {
        return Ok(true);
    }
    let mut head = [0u8; 24];
    if len < HEADER as u64 {
        return Err(foreign("it is cut short"));
    }
    file.read_exact_at(&mut head, 0).map_err(io_error)?;
    let word = |i: usize| u64::from_le_bytes(head[i * 8..i * 8 + 8].try_into().expect("8 bytes"));
    match (word(0), word(1), word(2)) {
        // A crash right after creation: sized, but the header was never written.
        (0, 0, 0) => Ok(true),
        (MAGIC, VERSION, found) if found == blocks && len == expect => Ok(false),
        (MAGIC, VERSION, _) => Err(foreign("it has another size")),
        (MAGIC, _, _) => Err(foreign("it has another version")),
        _ => Err(foreign("it has another content")),
    }
}

/// The runs of set bits in a map received as bytes (block 0 in the lowest bit of byte 0), cut at `blocks`.
pub fn runs_of_bytes(bytes: &[u8], blocks: BlockCount) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    let mut start = None;
    let total = blocks.0.min(bytes.len() as u64 * 8);
    for block in 0..total {
        let byte = bytes[(block / 8) as usize];
        // Whole bytes are the common case in maps of big disks: skip eight equal bits at once.
        let set = byte & (1 << (block % 8)) != 0;
        match (set, start) {
            (true, None) => start = Some(block),
            (false, Some(from)) => {
                runs.push(Extent::new(from, block - from));
                start = None;
            }
            _ => {}
        }
    }
    if let Some(from) = start {
        runs.push(Extent::new(from, total - from));
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: BootId = BootId([1; 16]);
    const NEXT_BOOT: BootId = BootId([2; 16]);

    fn open(path: &Path, boot: BootId, lost: Lost) -> BlockMap {
        BlockMap::open(path, BlockCount(1000), boot, lost).expect("map")
    }

    #[test]
    fn bits_are_set_cleared_and_found() {
        let map = BlockMap::volatile(BlockCount(200)).expect("map");
        map.set(Extent::new(60, 10));
        map.set(Extent::new(199, 5));
        assert_eq!(map.count(), BlockCount(11));
        assert!(map.all(Extent::new(60, 10)) && !map.all(Extent::new(59, 2)));
        assert!(map.any(Extent::new(0, 61)) && !map.any(Extent::new(70, 129)));
        assert_eq!(map.run(Extent::new(0, 200)), Some((false, BlockCount(60))));
        assert_eq!(map.runs(map.whole(), true), [Extent::new(60, 10), Extent::new(199, 1)]);
        assert_eq!(map.runs(Extent::new(65, 10), false), [Extent::new(70, 5)]);
        map.clear(Extent::new(61, 200));
        assert_eq!(map.runs(map.whole(), true), [Extent::new(60, 1)]);
    }

    #[test]
    fn bytes_round_trip() {
        let map = BlockMap::volatile(BlockCount(77)).expect("map");
        map.set(Extent::new(3, 9));
        map.set(Extent::new(64, 13));
        assert_eq!(runs_of_bytes(&map.to_bytes(), BlockCount(77)), map.runs(map.whole(), true));
        assert_eq!(map.to_bytes().len(), map.byte_len());
    }

    #[test]
    fn a_killed_daemon_loses_no_bit() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("map");
        open(&path, BOOT, Lost::KeepDurable).set(Extent::new(5, 7));
        let again = open(&path, BOOT, Lost::KeepDurable);
        assert_eq!(again.runs(again.whole(), true), [Extent::new(5, 7)]);
    }

    #[test]
    fn after_a_reboot_only_what_was_synced_is_believed() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("map");
        let map = open(&path, BOOT, Lost::KeepDurable);
        map.set(Extent::new(0, 10));
        map.checkpoint(|| Ok::<_, ()>(())).expect("sync").expect("store");
        map.set(Extent::new(100, 10));
        drop(map);
        let after = open(&path, NEXT_BOOT, Lost::KeepDurable);
        assert_eq!(after.runs(after.whole(), true), [Extent::new(0, 10)]);
        drop(after);
        let distrustful = open(&path, BOOT, Lost::SetAll);
        assert_eq!(distrustful.count(), BlockCount(1000));
    }

    #[test]
    fn a_bit_set_while_data_is_synced_waits_for_the_next_checkpoint() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("map");
        let map = open(&path, BOOT, Lost::KeepDurable);
        map.checkpoint(|| {
            map.set(Extent::new(1, 1));
            Ok::<_, ()>(())
        })
        .expect("sync")
        .expect("store");
        drop(map);
        assert_eq!(open(&path, NEXT_BOOT, Lost::KeepDurable).count(), BlockCount(0));
    }

    #[test]
    fn retracted_bits_are_gone_after_a_reboot() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("map");
        let map = open(&path, BOOT, Lost::KeepDurable);
        map.set(Extent::new(0, 10));
        map.checkpoint(|| Ok::<_, ()>(())).expect("sync").expect("store");
        map.retract(&[Extent::new(2, 3)]).expect("retract");
        drop(map);
        let after = open(&path, NEXT_BOOT, Lost::KeepDurable);
        assert_eq!(after.runs(after.whole(), true), [Extent::new(0, 2), Extent::new(5, 5)]);
    }

    #[test]
    fn foreign_files_are_refused() {
        let dir = tempfile::tempdir().expect("dir");
        for (name, content) in [("short", vec![7u8; 100]), ("noise", vec![7u8; 9000])] {
            let path = dir.path().join(name);
            std::fs::write(&path, content).expect("write");
            let error = BlockMap::open(&path, BlockCount(1000), BOOT, Lost::KeepDurable).err().expect("refused");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        let path = dir.path().join("other-size");
        drop(open(&path, BOOT, Lost::KeepDurable));
        assert!(BlockMap::open(&path, BlockCount(2000), BOOT, Lost::KeepDurable).is_err());
    }
}
