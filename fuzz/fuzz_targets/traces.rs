//! Trace files take any bytes: the first says which format they are said to be. What is read is bounded, in order of
//! time, and read again from our own format.

#![no_main]

use gnomon_forecast::trace::{Format, MAX_ADDRESS, Trace};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let (format, _) = Format::ALL[usize::from(*first) % Format::ALL.len()];
    let Ok(trace) = Trace::decode(format, bytes) else { return };
    assert!(trace.accesses.is_sorted_by_key(|access| access.at));
    assert!(trace.accesses.iter().all(|access| access.extent.end().byte() <= MAX_ADDRESS));
    assert_eq!(Trace::decode(Format::Csv, trace.encode().as_bytes()), Ok(trace));
});
