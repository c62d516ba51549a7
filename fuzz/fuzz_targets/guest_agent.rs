//! Whatever a guest writes to the port of its agent: a line at most is held, each line's end tells something, and what is
//! taken for the end of a command is of bounded length.

#![no_main]

use gnomon_qemu::{Answer, Answers, GuestExit, OUTPUT};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut answers = Answers::default();
    let told: Vec<_> = bytes.chunks(7).flat_map(|part| answers.take_in(part)).collect();
    assert_eq!(told.len(), bytes.iter().filter(|byte| **byte == b'\n').count());
    for answer in told.into_iter().flatten() {
        let Answer::Return(status) = answer else { continue };
        if let Ok(Some(exit)) = GuestExit::read(&status) {
            assert!(exit.said.chars().count() <= OUTPUT);
        }
    }
});
