//! Requests are decoded or refused, and what is decoded says the same when it is encoded again.

#![no_main]

use gnomon_volume::front::nbd::wire::{REQUEST_LEN, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for chunk in bytes.as_chunks::<REQUEST_LEN>().0 {
        let Ok(request) = Request::decode(chunk) else { continue };
        assert_eq!(request.encode(), *chunk);
        for structured in [false, true] {
            // Either way; it must not panic.
            let _ = request.check(structured, structured);
        }
    }
});
