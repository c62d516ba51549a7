//! The payload of RAM sections: the list of blocks, and pages, which are counted and passed over.
//!
//! ```text
//! payload  word*, each u64 = offset | flags, until the flag END
//!   004 list      offset = bytes of all blocks; then {name u64 size [u64 address, if shared RAM is left out]}*
//!   002 filled    block, u8 fill         008 page     block, 4096 bytes
//!   040 xbzrle    block, u8 1, u16 length, bytes      100 packed   block, u32 length, bytes
//!   200 flush     nothing                010 end      nothing
//! block    nothing with the flag 020 (the same as before, also across sections), else name
//! ```
//!
//! Source: QEMU `migration/ram.c`.

use std::io::Read;

use super::{RamBlock, StreamError, source::Source};

/// The most blocks. A guest has one for its RAM and one for each ROM, video memory and memory device.
const BLOCK_LIMIT: usize = 4096;

/// The most bytes of a page that was packed: zlib's worst case is 4096 and a few.
const PACKED_LIMIT: u64 = 8192;

const PAGE: u64 = 4096;
const FLAGS: u64 = PAGE - 1;

mod flag {
    pub(super) const FILLED: u64 = 0x02;
    pub(super) const LIST: u64 = 0x04;
    pub(super) const PAGE: u64 = 0x08;
    pub(super) const END: u64 = 0x10;
    pub(super) const SAME_BLOCK: u64 = 0x20;
    pub(super) const XBZRLE: u64 = 0x40;
    pub(super) const PACKED: u64 = 0x100;
    pub(super) const FLUSH: u64 = 0x200;
}

/// Which block the last page was of; it lasts from one section to the next.
#[derive(Debug, Default)]
pub(super) struct RamWalk {
    block: Option<usize>,
}

impl RamWalk {
    /// Walks through one section's payload.
    pub(super) fn section<R: Read>(
        &mut self,
        source: &mut Source<R>,
        blocks: &mut Vec<RamBlock>,
        with_address: bool,
    ) -> Result<(), StreamError> {
        loop {
            let word = source.u64("a page's place")?;
            let (offset, flags) = (word & !FLAGS, word & FLAGS);
            match flags & !flag::SAME_BLOCK {
                flag::END => return Ok(()),
                flag::FLUSH => {}
                flag::LIST => list(source, blocks, offset, with_address)?,
                kind @ (flag::FILLED | flag::PAGE | flag::XBZRLE | flag::PACKED) => {
                    self.find_block(source, blocks, flags & flag::SAME_BLOCK != 0)?;
                    self.note(source, blocks, offset)?;
                    skip_content(source, kind)?;
                }
                other => {
                    return Err(StreamError::Unknown {
                        at: source.at(),
                        what: format!("a page with flags {other:#x}"),
                    });
                }
            }
        }
    }

    fn find_block<R: Read>(
        &mut self,
        source: &mut Source<R>,
        blocks: &[RamBlock],
        same: bool,
    ) -> Result<(), StreamError> {
        if !same {
            let id = source.name("a RAM block's name")?;
            self.block = blocks.iter().position(|block| block.id == id);
            if self.block.is_none() {
                return Err(StreamError::BadRam { at: source.at(), block: id, what: "it is not in the list" });
            }
        }
        Ok(())
    }

    fn note<R: Read>(&self, source: &Source<R>, blocks: &mut [RamBlock], offset: u64) -> Result<(), StreamError> {
        let bad = |block: &str, what| Err(StreamError::BadRam { at: source.at(), block: block.to_string(), what });
        match self.block.and_then(|index| blocks.get_mut(index)) {
            None => bad("", "a page of the same block as before, and there was none before"),
            Some(block) if offset >= block.size => bad(&block.id, "a page beyond its end"),
            Some(block) => {
                block.pages = block.pages.saturating_add(1);
                Ok(())
            }
        }
    }
}

/// The list of blocks: their sizes add up to `total`.
fn list<R: Read>(
    source: &mut Source<R>,
    blocks: &mut Vec<RamBlock>,
    total: u64,
    with_address: bool,
) -> Result<(), StreamError> {
    let bad = |at, block: &str, what| Err(StreamError::BadRam { at, block: block.to_string(), what });
    if !blocks.is_empty() {
        return bad(source.at(), "", "a second list");
    }
    let mut left = total;
    while left > 0 {
        source.limit("the number of RAM blocks", blocks.len() as u64 + 1, BLOCK_LIMIT as u64)?;
        let id = source.name("a RAM block's name")?;
        let size = source.u64("a RAM block's size")?;
        let address = if with_address { Some(source.u64("a RAM block's address")?) } else { None };
        if size == 0 || size > left {
            return bad(source.at(), &id, "the sizes do not add up");
        }
        if blocks.iter().any(|block| block.id == id) {
            return bad(source.at(), &id, "it is listed twice");
        }
        left -= size;
        blocks.push(RamBlock { id, size, address, pages: 0, left_out: false });
    }
    Ok(())
}

fn skip_content<R: Read>(source: &mut Source<R>, kind: u64) -> Result<(), StreamError> {
    match kind {
        flag::FILLED => source.skip(1, "a page"),
        flag::XBZRLE => {
            source.skip(1, "a page")?;
            let length = u64::from(source.u16("a page's length")?);
            source.limit("a page's length", length, PAGE)?;
            source.skip(length, "a page")
        }
        flag::PACKED => {
            let length = u64::from(source.u32("a page's length")?);
            source.limit("a page's length", length, PACKED_LIMIT)?;
            source.skip(length, "a page")
        }
        _ => source.skip(PAGE, "a page"),
    }
}
