//! A mapping of guest RAM, read and written by copying.
//!
//! The guest, its devices and other processes write this memory while we read it, and what they write races with us.
//! So it is touched only through relaxed atomics, a word at a time: a copy may be torn between two words (a page that
//! is being written is dirty and will be copied again), but it is never undefined behaviour.

use std::{
    ptr::{self, NonNull},
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

use gnomon_terms::{Bytes, PAGE_SIZE, PageCount, PageNumber};
use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};

use super::{GuestRam, RamError};

/// The content of a page.
pub type Page = [u8; PAGE_SIZE as usize];

/// Bytes that one atomic access moves.
const WORD: usize = size_of::<u64>();

/// Guest RAM, mapped to be read. May be used from several threads at once.
#[derive(Debug)]
pub struct RamView {
    base: NonNull<u8>,
    size: u64,
}

/// Guest RAM, mapped to be read and written. May be used from several threads at once; writes to one word at once
/// leave one of them.
#[derive(Debug)]
pub struct RamWriter {
    view: RamView,
}

// SAFETY: the mapping lasts as long as the view, and is touched by atomic accesses only.
unsafe impl Send for RamView {}
// SAFETY: as above.
unsafe impl Sync for RamView {}

impl RamView {
    /// Maps memfds that cannot shrink, one behind the other.
    pub(super) fn over(parts: &[GuestRam], writable: bool) -> Result<RamView, RamError> {
        parts.iter().try_for_each(GuestRam::refuse_if_it_can_shrink)?;
        let size = parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.size));
        let failed = |e: Errno| RamError::Map { size: Bytes(size), source: e.into() };
        let length = usize::try_from(size).map_err(|_| failed(Errno::NOMEM))?;
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::NORESERVE)
        };
        let base = NonNull::new(base.map_err(failed)?.cast::<u8>()).ok_or_else(|| failed(Errno::INVAL))?;
        // From here on it is unmapped when it is dropped.
        let view = RamView { base, size };
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        let mut at = 0;
        for part in parts {
            // SAFETY: the sum of all sizes fits in the mapping above, which is ours and is replaced piece by piece.
            let mapped = unsafe {
                let place = view.base.as_ptr().add(at).cast();
                mmap(place, part.size as usize, protection, MapFlags::SHARED | MapFlags::FIXED, &part.file, 0)
            };
            mapped.map_err(failed)?;
            at += part.size as usize;
        }
        Ok(view)
    }

    /// Its size.
    pub fn size(&self) -> Bytes {
        Bytes(self.size)
    }

    /// How many pages it has.
    pub fn pages(&self) -> PageCount {
        PageCount(self.size / PAGE_SIZE)
    }

    /// Copies a page out.
    pub fn read_page(&self, page: PageNumber, into: &mut Page) -> Result<(), RamError> {
        self.read_at(offset(page), into)
    }

    /// Copies `into.len()` bytes from `at` on.
    pub fn read_at(&self, at: u64, into: &mut [u8]) -> Result<(), RamError> {
        let from = self.pointer(at, into.len())?;
        // SAFETY: `pointer` has checked that the range is within the mapping.
        unsafe { copy_out(from, into) };
        Ok(())
    }

    /// Whether a page has this content. Ends at the first word that differs.
    pub fn page_is(&self, page: PageNumber, content: &Page) -> Result<bool, RamError> {
        let from = self.pointer(offset(page), size_of::<Page>())?.cast::<u64>();
        let (words, _) = content.as_chunks::<WORD>();
        let same = words.iter().enumerate().all(|(index, word)| {
            // SAFETY: `pointer` has checked that the page is within the mapping, and pages are aligned.
            let here = unsafe { AtomicU64::from_ptr(from.add(index)) }.load(Relaxed);
            here.to_ne_bytes() == *word
        });
        Ok(same)
    }

    /// The address of a range that is within the mapping.
    fn pointer(&self, at: u64, length: usize) -> Result<*mut u8, RamError> {
        let fits = at.checked_add(length as u64).is_some_and(|end| end <= self.size);
        if !fits {
            return Err(RamError::OutOfRange { at, length, size: Bytes(self.size) });
        }
        // SAFETY: the range is within the mappings that are one behind the other, whose size was a usize.
        Ok(unsafe { self.base.as_ptr().add(at as usize) })
    }
}

impl Drop for RamView {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, of this size, and no pointer into it has left this module. Unmapping what was
        // mapped cannot fail.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}

impl RamWriter {
    /// Over a mapping that was made writable.
    pub(super) fn over(view: RamView) -> RamWriter {
        RamWriter { view }
    }

    /// The same memory, to be read.
    pub fn view(&self) -> &RamView {
        &self.view
    }

    /// Copies a page in.
    pub fn write_page(&self, page: PageNumber, from: &Page) -> Result<(), RamError> {
        self.write_at(offset(page), from)
    }

    /// Copies bytes in, from `at` on.
    pub fn write_at(&self, at: u64, from: &[u8]) -> Result<(), RamError> {
        let into = self.view.pointer(at, from.len())?;
        // SAFETY: `pointer` has checked that the range is within the mapping, which is writable.
        unsafe { copy_in(from, into) };
        Ok(())
    }
}

/// Where a page begins; a number beyond all memory stays beyond it.
fn offset(page: PageNumber) -> u64 {
    page.0.saturating_mul(PAGE_SIZE)
}

/// Copies out of memory that others write.
///
/// # Safety
/// `into.len()` bytes from `from` on are mapped readable for the whole call.
unsafe fn copy_out(from: *mut u8, into: &mut [u8]) {
    let head = from.align_offset(WORD).min(into.len());
    let (first, rest) = into.split_at_mut(head);
    let (words, last) = rest.as_chunks_mut::<WORD>();
    // SAFETY: all stay within the range, which is the caller's promise.
    let byte = |index: usize| unsafe { AtomicU8::from_ptr(from.add(index)) }.load(Relaxed);
    for (index, target) in first.iter_mut().enumerate() {
        *target = byte(index);
    }
    for (index, target) in words.iter_mut().enumerate() {
        // SAFETY: within the range, and aligned: `head` bytes after `from` there is a word boundary.
        let word = unsafe { AtomicU64::from_ptr(from.add(head + index * WORD).cast()) }.load(Relaxed);
        *target = word.to_ne_bytes();
    }
    let tail = head + words.len() * WORD;
    for (index, target) in last.iter_mut().enumerate() {
        *target = byte(tail + index);
    }
}

/// Copies into memory that others read and write.
///
/// # Safety
/// `from.len()` bytes from `into` on are mapped writable for the whole call.
unsafe fn copy_in(from: &[u8], into: *mut u8) {
    let head = into.align_offset(WORD).min(from.len());
    let (first, rest) = from.split_at(head);
    let (words, last) = rest.as_chunks::<WORD>();
    // SAFETY: all stay within the range, which is the caller's promise.
    let put = |index: usize, value: u8| unsafe { AtomicU8::from_ptr(into.add(index)) }.store(value, Relaxed);
    for (index, &value) in first.iter().enumerate() {
        put(index, value);
    }
    for (index, &word) in words.iter().enumerate() {
        // SAFETY: within the range, and aligned: `head` bytes after `into` there is a word boundary.
        let target = unsafe { AtomicU64::from_ptr(into.add(head + index * WORD).cast()) };
        target.store(u64::from_ne_bytes(word), Relaxed);
    }
    let tail = head + words.len() * WORD;
    for (index, &value) in last.iter().enumerate() {
        put(tail + index, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ram::GuestRam;

    const SIZE: u64 = 4 * PAGE_SIZE;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn what_is_written_anywhere_is_read_back_and_nothing_else_changes(
            at in 0..SIZE - 300, bytes in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let writer = GuestRam::create("copy", Bytes(SIZE)).expect("made").map_writable().expect("mapped");
            writer.write_at(at, &bytes).expect("within");
            let mut model = vec![0; SIZE as usize];
            model[at as usize..at as usize + bytes.len()].copy_from_slice(&bytes);
            let mut all = vec![1; SIZE as usize];
            writer.view().read_at(0, &mut all).expect("within");
            prop_assert_eq!(&all, &model);
            let mut part = vec![0; bytes.len()];
            writer.view().read_at(at, &mut part).expect("within");
            prop_assert_eq!(part, bytes);
        }
    }

    #[test]
    fn nothing_beyond_the_end_is_touched() {
        let writer = GuestRam::create("end", Bytes(SIZE)).expect("made").map_writable().expect("mapped");
        let table = [(SIZE, 1), (SIZE - 1, 2), (u64::MAX, 1), (u64::MAX - 4, 8), (0, SIZE as usize + 1)];
        for (at, length) in table {
            let error = writer.view().read_at(at, &mut vec![0; length]).expect_err("beyond");
            assert!(matches!(error, RamError::OutOfRange { .. }), "{error}");
            assert!(writer.write_at(at, &vec![0; length]).is_err());
        }
        assert!(writer.write_at(SIZE, &[]).is_ok());
        assert!(writer.write_page(PageNumber(u64::MAX), &[0; 4096]).is_err());
    }

    #[test]
    fn a_page_is_compared_in_place() {
        let writer = GuestRam::create("compare", Bytes(SIZE)).expect("made").map_writable().expect("mapped");
        let mut page = [7; size_of::<Page>()];
        writer.write_page(PageNumber(2), &page).expect("within");
        assert!(writer.view().page_is(PageNumber(2), &page).expect("within"));
        page[4095] = 8;
        assert!(!writer.view().page_is(PageNumber(2), &page).expect("within"));
        assert!(writer.view().page_is(PageNumber(1), &[0; 4096]).expect("within"));
    }

    #[test]
    fn two_mappings_show_one_memory() {
        let ram = GuestRam::create("two", Bytes(SIZE)).expect("made");
        let (writer, view) = (ram.map_writable().expect("mapped"), ram.map().expect("mapped"));
        writer.write_page(PageNumber(3), &[9; 4096]).expect("within");
        assert!(view.page_is(PageNumber(3), &[9; 4096]).expect("within"));
    }
}
