//! Copies of pages, taken as fast as memory can be read, to be coded and sent when there is time.
//!
//! A page may be copied more than once before it is sent: while the guest runs, and again when it has been written
//! since. The newest copy counts.

use std::collections::BTreeMap;

use gnomon_qemu::{DirtyTracker, TrackError};
use gnomon_terms::{PageCount, PageNumber, PageSet};

use crate::page::{Page, ZERO_PAGE};

/// The newest copy of each page that was copied.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Only grows: clearing room is not on a standing guest's time.
    bytes: Vec<u8>,
    /// How many pages of it are used.
    used: usize,
    /// Where the newest copy of a page is, counted in pages.
    places: BTreeMap<u64, usize>,
}

impl Copies {
    /// Forgets all, and keeps the room.
    pub fn clear(&mut self) {
        self.used = 0;
        self.places.clear();
    }

    /// Makes room for so many more, so that none has to be made when they are copied.
    pub fn reserve(&mut self, pages: PageCount) {
        let length = (self.used + pages.0 as usize) * ZERO_PAGE.len();
        if self.bytes.len() < length {
            self.bytes.resize(length, 0);
        }
    }

    /// Copies pages as they are now.
    pub fn take(&mut self, tracker: &dyn DirtyTracker, pages: &PageSet) -> Result<(), TrackError> {
        self.reserve(pages.count());
        for run in pages.runs() {
            let (begin, length) = (self.used * ZERO_PAGE.len(), run.bytes().0 as usize);
            tracker.read(run.start, &mut self.bytes[begin..begin + length])?;
            for page in run.pages() {
                self.places.insert(page.0, self.used);
                self.used += 1;
            }
        }
        Ok(())
    }

    /// The newest copy of each of these pages, in their order. All of them were copied.
    pub fn of<'a>(&'a self, pages: &'a PageSet) -> impl Iterator<Item = (PageNumber, &'a Page)> {
        let (all, _) = self.bytes.as_chunks::<{ ZERO_PAGE.len() }>();
        debug_assert!(pages.pages().all(|page| self.places.contains_key(&page.0)), "all that is owed was copied");
        pages.pages().filter_map(move |page| Some((page, all.get(*self.places.get(&page.0)?)?)))
    }

    /// How many copies there are, older ones of the same page among them.
    pub fn count(&self) -> PageCount {
        PageCount(self.used as u64)
    }
}
