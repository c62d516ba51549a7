//! Whatever a guest writes to its agent's port: a line at most is held, each line's end tells something, and what is
//! taken for a report is plausible.

#![no_main]

use gnomon_proto::report::{Lines, Report};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = Lines::default();
    let told: Vec<_> = bytes.chunks(7).flat_map(|part| lines.take_in(part)).collect();
    assert_eq!(told.len(), bytes.iter().filter(|byte| **byte == b'\n').count());
    for report in told.into_iter().flatten() {
        assert!(report.available <= report.total && report.free <= report.total);
        assert_eq!(Report::parse(report.to_string().as_bytes()), Ok(report));
    }
});
