//! QEMU's XBZRLE: a page as runs of bytes to keep and bytes to replace.
//!
//! `(ULEB128 bytes to keep, ULEB128 bytes to replace, those bytes)*`. A run to replace ends at the first byte that is as it
//! was; what follows the last run is kept.
//! Source: QEMU, docs/xbzrle.txt ("XBZRLE update compression"), and migration's stream format for the page's header.

/// A page.
pub type Page = [u8; 4096];

/// What makes `old` into `new`: empty when they are alike; `None` when it is longer than a page, which is sent instead.
pub fn encode(old: &Page, new: &Page) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = 0;
    loop {
        let keep = (at..new.len()).take_while(|&byte| old[byte] == new[byte]).count();
        if at + keep == new.len() {
            return Some(out);
        }
        let from = at + keep;
        let replace = (from..new.len()).take_while(|&byte| old[byte] != new[byte]).count();
        put_number(keep, &mut out);
        put_number(replace, &mut out);
        out.extend_from_slice(&new[from..from + replace]);
        if out.len() > new.len() {
            return None;
        }
        at = from + replace;
    }
}

/// At most 14 bits.
fn put_number(number: usize, out: &mut Vec<u8>) {
    match number {
        0..0x80 => out.push(number as u8),
        _ => out.extend([number as u8 | 0x80, (number >> 7) as u8]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(mut delta: &[u8], page: &mut Page) {
        let mut at = 0;
        let number = |delta: &mut &[u8]| {
            let (low, rest) = delta.split_first().expect("a number");
            *delta = rest;
            if *low < 0x80 {
                return usize::from(*low);
            }
            let (high, rest) = delta.split_first().expect("its second half");
            *delta = rest;
            usize::from(low & 0x7f) | usize::from(*high) << 7
        };
        while !delta.is_empty() {
            at += number(&mut delta);
            let replace = number(&mut delta);
            page[at..at + replace].copy_from_slice(&delta[..replace]);
            (delta, at) = (&delta[replace..], at + replace);
        }
    }

    #[test]
    fn runs_are_written_as_qemu_writes_them() {
        let old = [7; 4096];
        let mut new = old;
        assert_eq!(encode(&old, &new), Some(vec![]));
        new[5] = 1;
        new[6] = 2;
        new[300] = 3;
        assert_eq!(encode(&old, &new), Some(vec![5, 2, 1, 2, 0xa5, 2, 1, 3]), "293 bytes are kept between");
        new[4095] = 9;
        let mut copy = old;
        decode(&encode(&old, &new).expect("short"), &mut copy);
        assert_eq!(copy, new);
    }

    #[test]
    fn what_is_new_all_over_is_sent_whole() {
        assert_eq!(encode(&[1; 4096], &[2; 4096]), None);
        let every_fourth: Page = std::array::from_fn(|at| if at % 4 == 0 { 2 } else { 1 });
        let delta = encode(&[1; 4096], &every_fourth).expect("three bytes for each fourth");
        let mut copy = [1; 4096];
        decode(&delta, &mut copy);
        assert_eq!(copy, every_fourth);
    }
}
