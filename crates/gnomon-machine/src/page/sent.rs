//! What the shadow is known to have: the pages sent last, as many as fit, by number and by content.
//!
//! Both sides' views agree because the stream is in order: whatever is kept here for a page is what the shadow will
//! have for it when the next record arrives. When a session ends, the shadow forgets what it had staged, and
//! [`SentPages::clear`] forgets here.

use std::collections::HashMap;

use gnomon_terms::{Bytes, PAGE_SIZE, PageNumber};
use xxhash_rust::xxh3::xxh3_64;

use super::{Coding, Page, ZERO_PAGE, delta, is_zero};

/// What has to be said of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said<'a> {
    /// Nothing: the shadow has it.
    Nothing,
    /// This.
    Record(Coding<'a>),
}

/// A page as the shadow has it.
struct Slot {
    page: PageNumber,
    hash: u64,
    content: Box<Page>,
    /// Used since the hand came by last.
    used: bool,
}

/// The pages sent last. Bounded; the ones not sent for long make room (second chance).
///
/// Source: F. J. Corbató, "A Paging Experiment with the Multics System", 1968 (the clock).
pub struct SentPages {
    slots: Vec<Slot>,
    capacity: usize,
    hand: usize,
    by_page: HashMap<u64, u32>,
    by_hash: HashMap<u64, u32>,
    delta: Vec<u8>,
}

impl SentPages {
    /// Keeps up to `memory` bytes of pages (and some fifty bytes for each); at least one page.
    pub fn new(memory: Bytes) -> SentPages {
        SentPages {
            slots: Vec::new(),
            capacity: (memory.0 / PAGE_SIZE).clamp(1, u64::from(u32::MAX)) as usize,
            hand: 0,
            by_page: HashMap::new(),
            by_hash: HashMap::new(),
            delta: Vec::new(),
        }
    }

    /// What has to be said so that the shadow has `now` as `page`. Said it must be, and in this order: from here on it
    /// is taken to be there.
    pub fn say<'a>(&'a mut self, page: PageNumber, now: &'a Page) -> Said<'a> {
        if is_zero(now) {
            return self.say_zero(page);
        }
        let hash = xxh3_64(now);
        let known = self.by_page.get(&page.0).copied();
        if let Some(slot) = known
            && self.slots[slot as usize].content[..] == now[..]
        {
            self.slots[slot as usize].used = true;
            return Said::Nothing;
        }
        if let Some(other) = self.twin(page, hash, now) {
            self.keep(known, page, hash, now);
            return Said::Record(Coding::Same(other));
        }
        self.delta.clear();
        let old = known.map(|slot| &*self.slots[slot as usize].content);
        let changed = old.and_then(|old| delta::encode(old, now, &mut self.delta));
        self.keep(known, page, hash, now);
        match changed {
            Some(_) => Said::Record(Coding::Delta(&self.delta)),
            None => Said::Record(Coding::Raw(now)),
        }
    }

    /// Forgets everything: the shadow has only what it has applied.
    pub fn clear(&mut self) {
        *self = SentPages::new(Bytes(self.capacity as u64 * PAGE_SIZE));
    }

    /// A page of zeroes takes no slot: saying it again is as short as a look. One that has a slot keeps it, because
    /// what follows zeroes is mostly a few bytes.
    fn say_zero(&mut self, page: PageNumber) -> Said<'static> {
        match self.by_page.get(&page.0).copied() {
            Some(slot) if is_zero(&self.slots[slot as usize].content) => Said::Nothing,
            Some(slot) => {
                self.keep(Some(slot), page, xxh3_64(&ZERO_PAGE), &ZERO_PAGE);
                Said::Record(Coding::Zero)
            }
            None => Said::Record(Coding::Zero),
        }
    }

    /// Another page with this very content; a hash only says where to look.
    fn twin(&self, page: PageNumber, hash: u64, now: &Page) -> Option<PageNumber> {
        let slot = &self.slots[*self.by_hash.get(&hash)? as usize];
        (slot.page != page && slot.content[..] == now[..]).then_some(slot.page)
    }

    /// Notes that the shadow has `now` as `page`, in the slot it has already or in another's.
    fn keep(&mut self, known: Option<u32>, page: PageNumber, hash: u64, now: &Page) {
        let at = match known {
            Some(slot) => slot,
            None if self.slots.len() < self.capacity => {
                self.slots.push(Slot { page, hash, content: Box::new(*now), used: false });
                (self.slots.len() - 1) as u32
            }
            None => self.make_room(),
        };
        let slot = &mut self.slots[at as usize];
        if self.by_hash.get(&slot.hash) == Some(&at) {
            self.by_hash.remove(&slot.hash);
        }
        if slot.page != page {
            self.by_page.remove(&slot.page.0);
        }
        (slot.page, slot.hash, slot.used) = (page, hash, true);
        slot.content.copy_from_slice(now);
        self.by_page.insert(page.0, at);
        self.by_hash.insert(hash, at);
    }

    /// A slot that was not used since the hand came by last.
    fn make_room(&mut self) -> u32 {
        loop {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            if !std::mem::replace(&mut self.slots[at].used, false) {
                return at as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(byte: u8) -> Page {
        std::array::from_fn(|at| byte ^ (at % 251) as u8)
    }

    #[test]
    fn each_way_of_saying_is_found() {
        let mut sent = SentPages::new(Bytes(16 * PAGE_SIZE));
        let (one, two) = (page(1), page(2));
        let mut near = one;
        near[100] ^= 1;
        let zero = ZERO_PAGE;
        let p = PageNumber;
        assert_eq!(sent.say(p(1), &one), Said::Record(Coding::Raw(&one)));
        assert_eq!(sent.say(p(1), &one), Said::Nothing);
        assert_eq!(sent.say(p(2), &one), Said::Record(Coding::Same(p(1))));
        assert_eq!(sent.say(p(2), &near), Said::Record(Coding::Delta(&[100, 1, near[100]])));
        assert_eq!(sent.say(p(3), &zero), Said::Record(Coding::Zero));
        assert_eq!(sent.say(p(2), &zero), Said::Record(Coding::Zero));
        assert_eq!(sent.say(p(2), &zero), Said::Nothing);
        assert_eq!(sent.say(p(1), &two), Said::Record(Coding::Raw(&two)), "nothing near, no twin");
        sent.clear();
        assert_eq!(sent.say(p(1), &two), Said::Record(Coding::Raw(&two)));
    }

    proptest! {
        /// The shadow's view, made from the records alone, is the primary's memory: whatever was forgotten for lack of
        /// room, and in whatever order pages change.
        #[test]
        fn records_make_the_same_memory(changes in prop::collection::vec((0u64..12, 0u8..4, 0u8..3), 1..200)) {
            let mut sent = SentPages::new(Bytes(5 * PAGE_SIZE));
            let mut primary = [ZERO_PAGE; 12];
            let mut shadow = [ZERO_PAGE; 12];
            for (number, content, way) in changes {
                let now = &mut primary[number as usize];
                match way {
                    0 => *now = page(content),
                    1 => now[usize::from(content) * 7] ^= 0x55,
                    _ => *now = ZERO_PAGE,
                }
                let now = *now;
                match sent.say(PageNumber(number), &now) {
                    Said::Nothing => {}
                    Said::Record(Coding::Zero) => shadow[number as usize] = ZERO_PAGE,
                    Said::Record(Coding::Same(other)) => shadow[number as usize] = shadow[other.0 as usize],
                    Said::Record(Coding::Delta(bytes)) => delta::apply(bytes, &mut shadow[number as usize]).unwrap(),
                    Said::Record(Coding::Raw(bytes)) => shadow[number as usize] = *bytes,
                }
                prop_assert!(shadow == primary);
            }
            prop_assert!(sent.slots.len() <= 5 && sent.by_page.len() == sent.slots.len());
        }
    }
}
