//! All the memory of one guest, in one numbering of pages.
//!
//! ```text
//!   pages   0 … n-1            n … m-1        m …
//!           what it began with  its DIMMs, by slot       each a memfd of its own, mapped one behind the other
//! ```
//!
//! Whoever carries a guest counts its pages like this on both sides, so that nothing but its makeup ([`Resolved`]) has to be
//! agreed on. The guest itself sees its pages elsewhere: below and above what is left out for devices.

use gnomon_terms::{Bytes, PageCount};

use super::{GuestRam, RamError, RamLoan, RamSharing, RamView, RamWriter};
use crate::spec::Resolved;

/// The memory of one guest. Dropping it closes our descriptors only.
#[derive(Debug)]
pub struct GuestMemory {
    /// Never empty.
    parts: Vec<GuestRam>,
}

impl GuestMemory {
    /// Makes all the memory of a guest, zero and not allocated. `name` is seen in `/proc/PID/maps` only.
    pub fn create(name: &str, made_of: &Resolved) -> Result<GuestMemory, RamError> {
        let mut memory = GuestMemory::of(GuestRam::create(name, Bytes(made_of.memory))?);
        for dimm in &made_of.dimms {
            memory.add(GuestRam::create(&format!("{name}-{}", dimm.id), Bytes(dimm.size))?);
        }
        Ok(memory)
    }

    /// Memory of the same makeup as this, zero and not allocated.
    pub fn create_like(&self, name: &str) -> Result<GuestMemory, RamError> {
        let parts = self.parts.iter().map(|part| GuestRam::create(name, part.size())).collect::<Result<_, _>>()?;
        Ok(GuestMemory { parts })
    }

    /// Of a guest without DIMMs.
    pub fn of(boot: GuestRam) -> GuestMemory {
        GuestMemory { parts: vec![boot] }
    }

    /// The memory of its next DIMM.
    pub(crate) fn add(&mut self, dimm: GuestRam) {
        self.parts.push(dimm);
    }

    /// What it begins with, then a piece for each of its DIMMs.
    pub fn parts(&self) -> &[GuestRam] {
        &self.parts
    }

    /// The size of all of it.
    pub fn size(&self) -> Bytes {
        Bytes(self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.size().0)))
    }

    /// How many pages it has.
    pub fn pages(&self) -> PageCount {
        PageCount(self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.pages().0)))
    }

    /// Maps all of it to be read. Refused when a part is not sealed against shrinking.
    pub fn map(&self) -> Result<RamView, RamError> {
        RamView::over(&self.parts, false)
    }

    /// Maps all of it to be read and written. Refused when a part is not sealed against shrinking.
    pub fn map_writable(&self) -> Result<RamWriter, RamError> {
        RamView::over(&self.parts, true).map(RamWriter::over)
    }

    /// Lends it to a QEMU as its guest's memory.
    pub fn shared(&self) -> RamLoan<'_> {
        self.lent(RamSharing::Shared)
    }

    /// Lends it to a QEMU as the origin of a private copy; see [`RamSharing::Forked`].
    pub fn forked(&self) -> RamLoan<'_> {
        self.lent(RamSharing::Forked)
    }

    fn lent(&self, sharing: RamSharing) -> RamLoan<'_> {
        RamLoan { parts: &self.parts, sharing, populate: false }
    }
}

#[cfg(test)]
mod tests {
    use gnomon_terms::PageNumber;

    use super::*;
    use crate::spec::{Accelerator, SettledDimm};

    const PAGE: u64 = 4096;

    fn resolved(memory: u64, dimms: &[u64]) -> Resolved {
        let dimm = |(slot, size): (usize, &u64)| SettledDimm {
            id: format!("dimm-{slot}"),
            size: *size,
            slot: slot as u64,
            address: 1 << 32,
        };
        let dimms = dimms.iter().enumerate().map(dimm).collect();
        Resolved { machine: "pc".into(), accelerator: Accelerator::Tcg, memory, dimms }
    }

    #[test]
    fn pages_of_all_parts_are_in_a_row() {
        let memory = GuestMemory::create("row", &resolved(3 * PAGE, &[2 * PAGE, 5 * PAGE])).expect("made");
        assert_eq!((memory.pages(), memory.size()), (PageCount(10), Bytes(10 * PAGE)));
        let all = memory.map_writable().expect("mapped");
        for page in 0..10 {
            all.write_page(PageNumber(page), &[page as u8 + 1; PAGE as usize]).expect("within");
        }
        // Across the border of two parts.
        all.write_at(3 * PAGE - 1, b"ab").expect("within");
        let mut bytes = [0; 2];
        memory.map().expect("mapped").read_at(3 * PAGE - 1, &mut bytes).expect("within");
        assert_eq!(&bytes, b"ab");
        let first_of = |part: usize| {
            let mut page = [0; PAGE as usize];
            memory.parts()[part].map().expect("mapped").read_page(PageNumber(0), &mut page).expect("there");
            (page[0], page[1])
        };
        assert_eq!([first_of(0), first_of(1), first_of(2)], [(1, 1), (b'b', 4), (6, 6)]);
        assert!(all.write_at(10 * PAGE, b"x").is_err());
    }

    #[test]
    fn memory_like_another_is_its_own() {
        let one = GuestMemory::create("one", &resolved(PAGE, &[PAGE])).expect("made");
        one.map_writable().expect("mapped").write_at(PAGE, b"here").expect("within");
        let other = one.create_like("other").expect("made");
        assert_eq!(other.pages(), one.pages());
        assert!(other.map().expect("mapped").page_is(PageNumber(1), &[0; PAGE as usize]).expect("within"));
    }
}
