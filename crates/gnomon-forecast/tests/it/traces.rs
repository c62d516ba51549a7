//! Damaged trace files: good ones of every format with seeded damage. Never a panic, and what is accepted is bounded,
//! in order, and the same again when it is written in our own format and read.

use gnomon_forecast::trace::{Format, MAX_ADDRESS, MAX_REQUEST, Trace};
use gnomon_terms::{BLOCK_SIZE, Instant};

/// Requests in a good file.
const REQUESTS: u64 = 12;

/// Xorshift: a seed is all a failure needs to be repeated. Source: Marsaglia, "Xorshift RNGs" (2003).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// A number as files hold it: mostly small, sometimes at an end of what is believed.
    fn number(&mut self, unit: u64) -> u64 {
        let ends = [0, 1, MAX_REQUEST / unit, MAX_ADDRESS / unit, MAX_ADDRESS / unit - 1, u64::MAX / unit, u64::MAX];
        match self.below(12) {
            0 => ends[self.below(ends.len())].wrapping_add(self.next() % 3).wrapping_sub(1),
            _ => self.next() % 100_000,
        }
    }
}

fn file(format: Format, chance: &mut Chance) -> Vec<u8> {
    match format {
        Format::Csv => csv(chance),
        Format::Arc => arc(chance),
        Format::VscsiStats => vscsi(chance),
        other => panic!("no files of {other:?} are made here; see mutated.rs"),
    }
}

fn csv(chance: &mut Chance) -> Vec<u8> {
    let mut text = String::from("t_us,op,offset,length\n");
    for at in 0..REQUESTS {
        let op = ['R', 'W', 'Z', 'D', 'F'][chance.below(5)];
        text += &format!("{},{op},{},{}\n", at * 100, chance.number(1), chance.number(1));
    }
    text.into_bytes()
}

fn arc(chance: &mut Chance) -> Vec<u8> {
    let line = |at: u64| format!("{} {} 0 {at}\n", chance.number(512), chance.number(512));
    (0..REQUESTS).map(line).collect::<String>().into_bytes()
}

fn vscsi(chance: &mut Chance) -> Vec<u8> {
    let mut bytes = Vec::new();
    for at in 0..REQUESTS {
        let command = [0x28u16, 0x2a, 0x42, 0x00][chance.below(4)];
        bytes.extend((at as u32).to_le_bytes());
        bytes.extend((chance.number(1) as u32).to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(command.to_le_bytes());
        bytes.extend(1u16.to_le_bytes());
        bytes.extend(chance.number(512).to_le_bytes());
        bytes.extend((at * 100).to_le_bytes());
    }
    bytes
}

/// Does up to three small harms to a file.
fn damage(bytes: &mut Vec<u8>, chance: &mut Chance) {
    for _ in 0..chance.below(4) {
        let at = chance.below(bytes.len().max(1));
        match chance.below(6) {
            0 => bytes.truncate(at),
            1 => bytes.insert(at.min(bytes.len()), b"0918,-\n# \xff"[chance.below(10)]),
            2 if !bytes.is_empty() => drop(bytes.remove(at)),
            3 if !bytes.is_empty() => bytes[at] ^= 1 << chance.below(8),
            4 if !bytes.is_empty() => bytes[at] = chance.next() as u8,
            _ => {
                let end = at + chance.below(bytes.len() - at + 1);
                let again = bytes[at.min(bytes.len())..end].to_vec();
                bytes.extend(again);
            }
        }
    }
}

/// Requests are never of no block, never too long or far, never back in time, and never more than the file has.
fn check(trace: &Trace, file: usize) {
    assert!(trace.accesses.len() <= file);
    let mut last = Instant::ORIGIN;
    for (index, access) in trace.accesses.iter().enumerate() {
        assert!(!access.extent.is_empty() && access.extent.end().byte() <= MAX_ADDRESS);
        assert!(access.extent.bytes().0 <= MAX_REQUEST + BLOCK_SIZE);
        assert!(access.at >= last && (index > 0 || access.at == Instant::ORIGIN));
        last = access.at;
    }
}

/// `GNOMON_FUZZ_ITERATIONS` raises the count.
#[test]
fn damaged_files_are_refused_or_mean_what_they_say() {
    let rounds = std::env::var("GNOMON_FUZZ_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(5_000u64);
    let mut chance = Chance(0x2545_f491_4f6c_dd1d);
    for format in [Format::Csv, Format::Arc, Format::VscsiStats] {
        let (mut accepted, mut refused) = (0u64, 0u64);
        for _ in 0..rounds {
            let mut bytes = file(format, &mut chance);
            damage(&mut bytes, &mut chance);
            match Trace::decode(format, &bytes) {
                Ok(trace) => {
                    check(&trace, bytes.len());
                    let text = trace.encode();
                    let again = Trace::decode(Format::Csv, text.as_bytes()).expect("what we write we read");
                    assert_eq!(again.encode(), text, "{format:?}");
                    accepted += 1;
                }
                Err(_) => refused += 1,
            }
        }
        assert!(accepted > 0 && refused > 0, "{format:?}: {accepted} accepted, {refused} refused");
    }
}
