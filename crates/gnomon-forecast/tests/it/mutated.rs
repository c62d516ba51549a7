//! Trace files with damage: flipped, cut, repeated, and of another format than was said. The decoders refuse or read;
//! what they have read keeps their bounds, and is read again from our own format.
//!
//! Bounded by count; `GNOMON_FUZZ_ITERATIONS` raises it. A failure prints its seed.

use gnomon_forecast::trace::{Format, MAX_ADDRESS, Trace};
use gnomon_terms::BlockCount;

/// Xorshift. Source: Marsaglia, "Xorshift RNGs" (2003).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

/// A good file of each format.
fn corpus() -> Vec<Vec<u8>> {
    let texts = [
        "128166372003061629,hm,0,Read,383496192,32768,413\n128166372016382155,hm,0,Write,4096,512,1\n",
        "8,0 3 2 0.000002000 697 Q R 8 + 16 [cat]\n8,0 1 3 0.001000999 697 Q WS 32 + 8 [a b c]\n",
        "fio version 3 iolog\n2 /dev/vda add\n10 /dev/vda read 4096 8192\n30 /dev/vda trim 0 4096\n",
        "fio version 2 iolog\nf wait 500 0\nf read 0 4096\nf write 0 4096\n",
        "2020-08-06 02:07:23.080907 connection=1 Read id=1 offset=0x0 count=0x200 ...\n",
    ];
    let mut files: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    let mut traced = Vec::new();
    for (action, sector) in [(0x11_0001u32, 8u64), (0x12_0001, 16), (0x400_0000, 0)] {
        traced.extend([0x6561_7407u32.to_le_bytes(), 1u32.to_le_bytes()].concat());
        traced.extend([5000u64.to_le_bytes(), sector.to_le_bytes()].concat());
        traced.extend([4096u32.to_le_bytes(), action.to_le_bytes()].concat());
        traced.extend([0; 14]);
        traced.extend([3, 0, b'a', b'b', b'c']);
    }
    files.push(traced);
    files.extend(same_requests());
    files
}

/// A good file of each of the first three formats, of the same requests.
fn same_requests() -> [Vec<u8>; 3] {
    let (mut csv, mut arc, mut vscsi) = (String::from("t_us,op,offset,length\n"), String::new(), Vec::new());
    for n in 0..8u64 {
        let (block, op, command) =
            (n * 977 % 4096, ["R", "W", "D", "F"][n as usize % 4], [0x28u16, 0x2a, 0x42, 0][n as usize % 4]);
        csv.push_str(&format!("{},{op},{},{}\n", n * 1000, block * 512, 4096 * (n + 1)));
        arc.push_str(&format!("{block} {} 0 {n}\n", n + 1));
        vscsi.extend([1u8, 0, 0, 0]);
        vscsi.extend((4096 * (n as u32 + 1)).to_le_bytes());
        vscsi.extend(1u32.to_le_bytes());
        vscsi.extend([command.to_le_bytes(), 1u16.to_le_bytes()].concat());
        vscsi.extend([block.to_le_bytes(), (n * 1000).to_le_bytes()].concat());
    }
    [csv.into_bytes(), arc.into_bytes(), vscsi]
}

/// Flips, cuts, repeats, and numbers that are too large.
fn mutate(bytes: &mut Vec<u8>, chance: &mut Chance) {
    for _ in 0..chance.below(5) {
        if bytes.is_empty() {
            return;
        }
        let at = chance.below(bytes.len());
        match chance.below(7) {
            0 => bytes[at] ^= 1 << chance.below(8),
            1 => bytes[at] = [0, 0xff, b'9', b',', b'\n', b'-'][chance.below(6)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, b'0' + chance.below(10) as u8),
            4 => bytes.splice(at..at, *b"18446744073709551615").for_each(drop),
            5 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
            _ => bytes.extend_from_within(at..),
        }
    }
}

#[test]
fn damaged_files_are_refused_or_mean_what_they_say() {
    let rounds = std::env::var("GNOMON_FUZZ_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(30_000u64);
    let (files, mut read, mut refused) = (corpus(), 0u64, 0u64);
    for seed in 1..=rounds {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = files[chance.below(files.len())].clone();
        mutate(&mut bytes, &mut chance);
        for (format, _) in Format::ALL {
            let Ok(trace) = Trace::decode(format, &bytes) else {
                refused += 1;
                continue;
            };
            read += 1;
            assert!(trace.accesses.is_sorted_by_key(|access| access.at), "seed {seed}: time runs backwards");
            let sane =
                |extent: gnomon_terms::Extent| extent.len > BlockCount(0) && extent.end().byte() <= MAX_ADDRESS;
            assert!(trace.accesses.iter().all(|access| sane(access.extent)), "seed {seed}: out of bounds");
            assert_eq!(
                Trace::decode(Format::Csv, trace.encode().as_bytes()),
                Ok(trace),
                "seed {seed}: not read again"
            );
        }
    }
    assert!(read > 0 && refused > 0);
}
