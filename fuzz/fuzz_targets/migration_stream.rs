//! The reader of migration streams takes any bytes. What it finds is within what it was given.

#![no_main]

use gnomon_qemu::read_stream;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(found) = read_stream(bytes) else { return };
    assert_eq!(found.length, bytes.len() as u64);
    let devices: u64 = found.devices.iter().map(|device| device.length).sum();
    assert!(devices < found.length);
    assert!(found.differences(&found).is_empty());
});
