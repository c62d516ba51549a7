//! RAM that the guest keeps dirtying, and that tells when a page was lost: a move of the machine must carry it whole.

use std::sync::{Mutex, PoisonError};

use crate::chance::{Dice, scramble};

/// Words in a page of 4 KiB.
const PAGE_WORDS: usize = 512;

/// Pages that each hold how often they were touched, at both ends.
#[derive(Debug)]
pub struct Ram(Mutex<Pages>);

#[derive(Debug)]
struct Pages {
    words: Vec<u64>,
    touches: u64,
    dice: Dice,
}

impl Ram {
    /// `mib` MiB of pages, each touched once so that it really exists.
    pub fn new(mib: u64, seed: u64) -> Ram {
        let pages = mib as usize * 256;
        let mut ram = Pages { words: vec![0; pages * PAGE_WORDS], touches: 0, dice: Dice::new(seed) };
        (0..pages).for_each(|page| ram.touch(page));
        Ram(Mutex::new(ram))
    }

    /// Dirties `count` pages chosen by chance.
    pub fn dirty(&self, count: u64) {
        let mut pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all = (pages.words.len() / PAGE_WORDS) as u64;
        for _ in 0..if all == 0 { 0 } else { count } {
            let page = pages.dice.below(all) as usize;
            pages.touch(page);
        }
    }

    /// How many pages are wrong; a touch that left no trace at all counts as one more.
    pub fn wrong(&self) -> u64 {
        let pages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut wrong, mut touches) = (0, 0);
        for (page, words) in pages.words.chunks_exact(PAGE_WORDS).enumerate() {
            let (count, seal) = (words[0], words[PAGE_WORDS - 1]);
            wrong += u64::from(seal != sealed(page, count));
            touches += count;
        }
        wrong + u64::from(wrong == 0 && touches != pages.touches)
    }
}

impl Pages {
    fn touch(&mut self, page: usize) {
        let first = page * PAGE_WORDS;
        self.words[first] += 1;
        self.words[first + PAGE_WORDS - 1] = sealed(page, self.words[first]);
        self.touches += 1;
    }
}

fn sealed(page: usize, count: u64) -> u64 {
    scramble(count ^ scramble(page as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirtied_pages_are_right_and_lost_ones_are_seen() {
        let ram = Ram::new(1, 5);
        ram.dirty(1000);
        assert_eq!(ram.wrong(), 0);
        ram.0.lock().unwrap().words[PAGE_WORDS] += 1;
        assert_eq!(ram.wrong(), 1);
    }

    #[test]
    fn a_page_that_went_back_in_time_is_seen() {
        let ram = Ram::new(1, 5);
        let old = ram.0.lock().unwrap().words[..PAGE_WORDS].to_vec();
        while ram.0.lock().unwrap().words[0] == old[0] {
            ram.dirty(1);
        }
        ram.0.lock().unwrap().words[..PAGE_WORDS].copy_from_slice(&old);
        assert_eq!(ram.wrong(), 1);
    }

    #[test]
    fn no_ram_is_fine() {
        let ram = Ram::new(0, 5);
        ram.dirty(10);
        assert_eq!(ram.wrong(), 0);
    }
}
