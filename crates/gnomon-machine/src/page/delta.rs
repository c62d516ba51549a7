//! What changed in a page: runs of bytes to leave and bytes to replace.
//!
//! `(LEB128 bytes to leave, LEB128 bytes to replace, those bytes)*`; what follows the last run stays. The new bytes are
//! said, not their difference: applying a delta twice is harmless.
//! Source: P. Svärd et al., "Evaluation of Delta Compression Techniques for Efficient Live Migration of Large Virtual
//! Machines", VEE 2011 (XOR binary run-length encoding).

use super::Page;

/// Unchanged bytes between two changes that are said again rather than left: a new run costs two bytes or three.
const WORTH_A_RUN: usize = 4;

/// The longest delta that is worth its name: beyond three quarters of a page, the page is sent.
pub const LONGEST: usize = 3072;

/// Why a delta cannot be applied. The page may be partly changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeltaError {
    /// It ends within a run.
    #[error("a delta ends within a run")]
    Cut,
    /// It reaches past the end of the page.
    #[error("a delta reaches past the end of its page")]
    TooFar,
    /// A number is longer than it needs to be, or a run is empty: there is one way to write each delta.
    #[error("a delta is not written the one way there is")]
    NotCanonical,
}

/// Appends what makes `old` into `new`, and says how long that is; `None`, and nothing appended, if it would be
/// longer than [`LONGEST`].
pub fn encode(old: &Page, new: &Page, out: &mut Vec<u8>) -> Option<usize> {
    let start = out.len();
    let mut said = 0;
    while let Some(from) = next_difference(old, new, said) {
        let to = end_of_change(old, new, from);
        put_number(from - said, out);
        put_number(to - from, out);
        out.extend_from_slice(&new[from..to]);
        if out.len() - start > LONGEST {
            out.truncate(start);
            return None;
        }
        said = to;
    }
    Some(out.len() - start)
}

/// Applies a delta.
pub fn apply(mut delta: &[u8], page: &mut Page) -> Result<(), DeltaError> {
    let mut at = 0usize;
    while !delta.is_empty() {
        let leave = take_number(&mut delta)?;
        let replace = take_number(&mut delta)?;
        if replace == 0 {
            return Err(DeltaError::NotCanonical);
        }
        let from = at + leave;
        let target = page.get_mut(from..from + replace).ok_or(DeltaError::TooFar)?;
        let (bytes, rest) = delta.split_at_checked(replace).ok_or(DeltaError::Cut)?;
        target.copy_from_slice(bytes);
        delta = rest;
        at = from + replace;
    }
    Ok(())
}

/// The first byte from `from` on that differs. Words first: most of a page is as it was.
fn next_difference(old: &Page, new: &Page, from: usize) -> Option<usize> {
    const WORD: usize = 32;
    let mut at = from;
    while at < new.len() {
        if at.is_multiple_of(WORD) && old[at..at + WORD] == new[at..at + WORD] {
            at += WORD;
        } else if old[at] == new[at] {
            at += 1;
        } else {
            return Some(at);
        }
    }
    None
}

/// Where the change that begins at `from` ends: before the next stretch of unchanged bytes that is worth a run.
fn end_of_change(old: &Page, new: &Page, from: usize) -> usize {
    let mut end = from + 1;
    let mut same = 0;
    for at in from + 1..new.len() {
        if old[at] != new[at] {
            end = at + 1;
            same = 0;
        } else {
            same += 1;
            if same == WORTH_A_RUN {
                break;
            }
        }
    }
    end
}

/// Appends a number below 2^14 as LEB128.
fn put_number(number: usize, out: &mut Vec<u8>) {
    if number < 0x80 {
        out.push(number as u8);
    } else {
        out.extend_from_slice(&[number as u8 | 0x80, (number >> 7) as u8]);
    }
}

fn take_number(delta: &mut &[u8]) -> Result<usize, DeltaError> {
    match **delta {
        [low, ref rest @ ..] if low < 0x80 => {
            *delta = rest;
            Ok(usize::from(low))
        }
        [_, 0, ..] => Err(DeltaError::NotCanonical),
        [low, high, ref rest @ ..] if high < 0x80 => {
            *delta = rest;
            Ok(usize::from(low & 0x7f) | usize::from(high) << 7)
        }
        [_, _, ..] => Err(DeltaError::NotCanonical),
        _ => Err(DeltaError::Cut),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn page(seed: u8) -> Page {
        std::array::from_fn(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
    }

    #[test]
    fn few_changes_are_few_bytes() {
        let old = page(1);
        let mut new = old;
        let mut out = Vec::new();
        assert_eq!(encode(&old, &new, &mut out), Some(0));
        new[5] ^= 1;
        assert_eq!(encode(&old, &new, &mut out), Some(3), "leave 5, replace 1, the byte");
        assert_eq!(out, [5, 1, new[5]]);
        out.clear();
        new[8] ^= 1;
        assert_eq!(encode(&old, &new, &mut out), Some(6), "two bytes between are said again");
        out.clear();
        new[4095] ^= 1;
        assert_eq!(encode(&old, &new, &mut out), Some(10));
    }

    #[test]
    fn a_page_that_is_new_all_over_is_no_delta() {
        let mut out = vec![7];
        assert_eq!(encode(&page(1), &page(2), &mut out), None);
        assert_eq!(out, [7]);
    }

    #[test]
    fn what_is_not_a_delta_is_refused() {
        let table: [(&[u8], DeltaError); 8] = [
            (&[5], DeltaError::Cut),
            (&[5, 2, 1], DeltaError::Cut),
            (&[0x80], DeltaError::Cut),
            (&[5, 0], DeltaError::NotCanonical),
            (&[0x85, 0, 1, 1], DeltaError::NotCanonical),
            (&[0xff, 0xff, 1], DeltaError::NotCanonical),
            (&[0xff, 0x1f, 2, 1, 1], DeltaError::TooFar),
            (&[0xff, 0x7f, 1, 1], DeltaError::TooFar),
        ];
        for (bytes, error) in table {
            assert_eq!(apply(bytes, &mut page(1)), Err(error), "{bytes:x?}");
        }
    }

    proptest! {
        #[test]
        fn a_delta_makes_old_into_new(changes in prop::collection::vec((0usize..4096, 1usize..300, any::<u8>()), 0..12)) {
            let old = page(3);
            let mut new = old;
            for (at, len, byte) in changes {
                let end = (at + len).min(new.len());
                new[at..end].fill(byte);
            }
            let mut out = Vec::new();
            if let Some(len) = encode(&old, &new, &mut out) {
                prop_assert_eq!(len, out.len());
                prop_assert!(len <= LONGEST);
                let mut copy = old;
                apply(&out, &mut copy).unwrap();
                prop_assert!(copy == new);
                apply(&out, &mut copy).unwrap();
                prop_assert!(copy == new, "twice is as once");
            }
        }

        #[test]
        fn any_bytes_are_applied_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = apply(&bytes, &mut page(4));
        }
    }
}
