//! Option haggling takes any bytes: the first chooses how the server stands to TLS, the others come from the client.

#![no_main]

use gnomon_volume::{
    front::nbd::{Haggle, Next, OptionFrame, TlsState},
    serve::Exports,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, mut rest)) = bytes.split_first() else { return };
    let states = [TlsState::Unavailable, TlsState::Offered, TlsState::Required, TlsState::Active];
    let mut haggle = Haggle::new(states[usize::from(*first) % states.len()]);
    let (exports, mut replies) = (Exports::new(), Vec::new());
    while let Ok(Some((frame, len))) = OptionFrame::decode(rest) {
        rest = &rest[len..];
        match haggle.handle(frame, &exports, &mut replies) {
            Next::Option => {}
            Next::StartTls => haggle.tls_started(),
            Next::Open { .. } | Next::HangUp => break,
        }
    }
    // A stranger must not be able to make the server say much more than it was told.
    assert!(replies.len() <= 64 * bytes.len() + 1024);
});
