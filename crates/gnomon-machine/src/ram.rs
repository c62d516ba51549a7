//! A guest's memory as the engines need it: pages that can be read and replaced.

use gnomon_qemu::RamWriter;
use gnomon_terms::{PageCount, PageNumber};

use crate::page::Page;

/// A guest's memory. Shared by threads; whoever else maps it may change it at any time, so a page that is read while
/// its guest runs may be of no single moment.
pub trait Ram: Send + Sync {
    /// How many pages there are; constant.
    fn pages(&self) -> PageCount;

    /// Copies a page out. The page exists.
    fn read(&self, page: PageNumber, into: &mut Page);

    /// Replaces a page. The page exists.
    fn write(&self, page: PageNumber, content: &Page);
}

/// The memory that a QEMU maps too. Beyond its end, where no caller looks, there is nothing to read or write.
impl Ram for RamWriter {
    fn pages(&self) -> PageCount {
        self.view().pages()
    }

    fn read(&self, page: PageNumber, into: &mut Page) {
        let read = self.view().read_page(page, into);
        debug_assert!(read.is_ok(), "{page:?} is beyond the memory");
    }

    fn write(&self, page: PageNumber, content: &Page) {
        let written = self.write_page(page, content);
        debug_assert!(written.is_ok(), "{page:?} is beyond the memory");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::page::ZERO_PAGE;

    /// Memory of no guest.
    pub(crate) struct PlainRam(pub Mutex<Vec<Page>>);

    impl PlainRam {
        pub(crate) fn new(pages: usize) -> PlainRam {
            PlainRam(Mutex::new(vec![ZERO_PAGE; pages]))
        }
    }

    impl Ram for PlainRam {
        fn pages(&self) -> PageCount {
            PageCount(self.0.lock().unwrap().len() as u64)
        }

        fn read(&self, page: PageNumber, into: &mut Page) {
            *into = self.0.lock().unwrap()[page.0 as usize];
        }

        fn write(&self, page: PageNumber, content: &Page) {
            self.0.lock().unwrap()[page.0 as usize] = *content;
        }
    }
}
