//! Streams made by hand, cut, changed at random. Real ones are in tests/it.

use proptest::prelude::*;

use super::*;

/// A stream under construction.
#[derive(Clone, Default)]
struct Made(Vec<u8>);

impl Made {
    fn bytes(mut self, bytes: &[u8]) -> Made {
        self.0.extend(bytes);
        self
    }

    fn u32(self, number: u32) -> Made {
        self.bytes(&number.to_be_bytes())
    }

    fn u64(self, number: u64) -> Made {
        self.bytes(&number.to_be_bytes())
    }

    fn name(self, name: &str) -> Made {
        self.bytes(&[name.len() as u8]).bytes(name.as_bytes())
    }

    fn head(self, tag: u8, id: u32, name: &str, version: u32) -> Made {
        self.bytes(&[tag]).u32(id).name(name).u32(0).u32(version)
    }

    fn footer(self, id: u32) -> Made {
        self.bytes(&[tag::FOOTER]).u32(id)
    }

    fn description(self, text: &str) -> Made {
        self.bytes(&[tag::END, 6]).u32(text.len() as u32).bytes(text.as_bytes())
    }
}

fn begun(ignore_shared: bool) -> Made {
    let made = Made::default().bytes(MAGIC).u32(3).bytes(&[tag::CONFIGURATION]).u32(10).bytes(b"pc-q35-7.2");
    match ignore_shared {
        true => {
            made.bytes(&[tag::SUBSECTION]).name("configuration/capabilities").u32(1).u32(1).name("x-ignore-shared")
        }
        false => made,
    }
}

/// Two blocks: shared RAM that is left out, and a ROM whose pages come in both forms.
fn with_ram(made: Made) -> Made {
    let made = made.head(tag::START, 2, "ram", 4).u64(0x6000 | 4);
    let made = made.name("ram0").u64(0x4000).u64(0).name("pc.bios").u64(0x2000).u64(0xffff_0000).u64(0x10).footer(2);
    let made = made.bytes(&[tag::PART]).u32(2).u64(8).name("pc.bios").bytes(&[1; 4096]).u64(0x10).footer(2);
    made.bytes(&[tag::LAST]).u32(2).u64(0x1000 | 0x22).bytes(&[0]).u64(0x10).footer(2)
}

const DEVICES: &str = r#"{"page_size":4096,"devices":[{"name":"timer","instance_id":0,"fields":[{"size":8}]},
    {"name":"cpu","instance_id":0,"fields":[{"size":2,"array_len":3}],"subsections":[{"vmsd_name":"cpu/x","fields":[]}]}]}"#;

fn whole() -> Vec<u8> {
    let made = with_ram(begun(true)).head(tag::FULL, 0, "timer", 2).u64(7).footer(0);
    let made = made.head(tag::FULL, 3, "cpu", 12).bytes(&[9; 6]).bytes(&[5]).name("cpu/x").u32(1).footer(3);
    made.description(DEVICES).0
}

#[test]
fn everything_in_a_stream_is_found() {
    let stream = whole();
    let inventory = read_stream(&stream[..]).expect("well formed");
    assert_eq!(inventory.machine, "pc-q35-7.2");
    assert_eq!(inventory.length, stream.len() as u64);
    let ram: Vec<_> = inventory.ram.iter().map(|b| (b.id.as_str(), b.size, b.pages, b.left_out)).collect();
    assert_eq!(ram, [("ram0", 0x4000, 0, true), ("pc.bios", 0x2000, 2, false)]);
    assert_eq!(inventory.ram[1].address, Some(0xffff_0000));
    let devices: Vec<_> = inventory.devices.iter().map(|d| (d.name.as_str(), d.version, d.length)).collect();
    assert_eq!(devices, [("timer", 2, 8), ("cpu", 12, 17)]);
}

#[test]
fn without_the_capability_no_address_comes_and_nothing_is_left_out() {
    let made = begun(false).head(tag::START, 2, "ram", 4).u64(0x4000 | 4).name("pc.ram").u64(0x4000).u64(0x10);
    let made = made.footer(2).bytes(&[tag::COMMAND, 0, 1, 0, 2, 9, 9]).bytes(&[tag::LAST]).u32(2).u64(0x10).footer(2);
    let inventory = read_stream(&made.description(r#"{"devices":[]}"#).0[..]).expect("well formed");
    assert!(!inventory.ram[0].left_out && inventory.ram[0].address.is_none(), "{inventory:?}");
}

#[test]
fn a_stream_that_ends_early_is_told_wherever_it_ends() {
    let stream = whole();
    for length in 0..stream.len() {
        let error = read_stream(&stream[..length]).expect_err("cut");
        assert!(matches!(error, StreamError::CutShort { at, .. } if at <= length as u64), "{length}: {error}");
    }
}

#[test]
fn what_cannot_be_is_told() {
    let ram = |made: Made| made.head(tag::START, 2, "ram", 4);
    let table: [(Made, &str); 12] = [
        (Made::default().bytes(b"QCOW").u32(3), "no migration stream"),
        (Made::default().bytes(MAGIC).u32(2), "no migration stream"),
        (Made::default().bytes(MAGIC).u32(3).bytes(&[tag::CONFIGURATION]).u32(1 << 30), "at most 256"),
        (begun(true).bytes(&[tag::SUBSECTION]).name("configuration/spells").u32(1), "'configuration/spells'"),
        (begun(true).bytes(&[99]), "kind 99"),
        (begun(true).head(tag::START, 1, "vfio", 1), "live section 'vfio'"),
        (begun(true).bytes(&[tag::PART]).u32(7), "a part of section 7"),
        (ram(begun(false)).u64(0x4000 | 4).name("a").u64(0x5000), "do not add up"),
        (ram(begun(false)).u64(0x4000 | 4).name("a").u64(0x1000).name("a").u64(0x1000), "listed twice"),
        (ram(begun(false)).u64(8).name("b"), "not in the list"),
        (ram(begun(false)).u64(0x28), "none before"),
        (
            with_ram(begun(true)).head(tag::FULL, 0, "disk", 2).u64(7).footer(0).description(DEVICES),
            "'disk' instance 0",
        ),
    ];
    for (made, words) in table {
        let error = read_stream(&made.0[..]).expect_err(words).to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn a_description_must_fit_its_devices() {
    let device = || with_ram(begun(true)).head(tag::FULL, 0, "timer", 2).u64(7).footer(0);
    let one =
        |size: u32| format!(r#"{{"devices":[{{"name":"timer","instance_id":0,"fields":[{{"size":{size}}}]}}]}}"#);
    assert!(read_stream(&device().description(&one(8)).0[..]).is_ok());
    let table = [(one(7), "does not end here"), (one(1 << 30), "cut short"), (DEVICES.into(), "'cpu' instance 0")];
    for (text, words) in table {
        let error = read_stream(&device().description(&text).0[..]).expect_err(words).to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}

/// A reader that never ends, and gives one byte at a time at first.
struct Endless(Vec<u8>, usize);

impl Read for Endless {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let next = self.0.get(self.1).copied();
        self.1 += 1;
        into[0] = next.unwrap_or(0);
        Ok(if next.is_some() { 1 } else { into.len() })
    }
}

#[test]
fn a_stream_without_end_is_given_up() {
    let made = with_ram(begun(true)).head(tag::FULL, 0, "timer", 2).0;
    let error = read_stream(Endless(made, 0)).expect_err("endless");
    assert!(matches!(error, StreamError::TooMuch { most: DEVICES_LIMIT, .. }), "{error}");
    let made = begun(true).bytes(&[tag::END]).0;
    assert!(matches!(read_stream(Endless(made, 0)), Err(StreamError::TooMuch { .. })));
}

/// Changes bytes of a good stream: the seed says which. What comes out may be anything but a panic.
fn mutated(mut stream: Vec<u8>, changes: &[(usize, u8)]) -> Vec<u8> {
    for &(at, value) in changes {
        let at = at % stream.len();
        stream[at] = value;
    }
    stream
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = read_stream(&bytes[..]);
        let _ = read_stream(&begun(true).bytes(&bytes).0[..]);
        let _ = read_stream(&with_ram(begun(true)).bytes(&bytes).description(DEVICES).0[..]);
    }

    #[test]
    fn a_changed_stream_is_read_or_refused(
        changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..20)
    ) {
        let stream = mutated(whole(), &changes);
        if let Ok(inventory) = read_stream(&stream[..]) {
            prop_assert_eq!(inventory.length, stream.len() as u64);
            let devices: u64 = inventory.devices.iter().map(|d| d.length).sum();
            prop_assert!(devices < inventory.length);
        }
    }
}
