//! Mutated conversations: the pure decoders, then a live server, must take any bytes without panic or harm.
//!
//! Bounded by count, not by time; `GNOMON_FUZZ_ITERATIONS` raises it. A failure prints its seed.

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use gnomon_volume::front::nbd::{
    Haggle, Next, OptionFrame, TlsState,
    wire::{Command, REQUEST_LEN, Request},
};

use crate::{
    raw::{
        GO, INFO, LIST, LIST_META_CONTEXT, SET_META_CONTEXT, STARTTLS, STRUCTURED_REPLY, contexts, go, option,
        request,
    },
    rig::{NAME, Random, Rig},
};

fn iterations(usual: u64) -> u64 {
    std::env::var("GNOMON_FUZZ_ITERATIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// A valid conversation: options, then requests.
fn corpus() -> Vec<Vec<u8>> {
    let options = [
        option(LIST, b""),
        option(STARTTLS, b""),
        option(STRUCTURED_REPLY, b""),
        option(LIST_META_CONTEXT, &contexts(NAME, &["base:"])),
        option(SET_META_CONTEXT, &contexts(NAME, &["base:allocation", "gnomon:shadow"])),
        option(INFO, &go(NAME)),
        option(GO, &go(NAME)),
    ];
    let requests = [
        request(Command::Read, 1, 0, 4096).to_vec(),
        [&request(Command::Write, 2, 512, 600)[..], &[7; 600]].concat(),
        request(Command::BlockStatus, 3, 0, 1 << 20).to_vec(),
        request(Command::WriteZeroes, 4, 4096, 70_000).to_vec(),
        request(Command::Trim, 5, 0, 4096).to_vec(),
        request(Command::Cache, 6, 0, 1 << 20).to_vec(),
        request(Command::Flush, 7, 0, 0).to_vec(),
        request(Command::Read, 8, 0, 1 << 20).to_vec(),
    ];
    options.into_iter().chain(requests).collect()
}

/// Flips, cuts, repeats and reorders.
fn mutate(random: &mut Random) -> Vec<u8> {
    let mut parts = corpus();
    for _ in 0..random.below(4) {
        let (one, other) = (random.below(parts.len()), random.below(parts.len()));
        match random.below(3) {
            0 => parts.swap(one, other),
            1 => parts.insert(one, parts[other].clone()),
            _ => drop(parts.remove(one)),
        }
    }
    let mut bytes = parts.concat();
    for _ in 0..random.below(6) {
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = [0, 0xff, 0x7f, 0x80][random.below(4)],
            2 => bytes.truncate(at + 1),
            _ => bytes.insert(at, random.next() as u8),
        }
    }
    bytes
}

#[test]
fn the_decoders_take_any_bytes() {
    let rig = Rig::new(1 << 20);
    for seed in 0..iterations(50_000) {
        let bytes = mutate(&mut Random(seed));
        let tls = [TlsState::Unavailable, TlsState::Offered, TlsState::Required, TlsState::Active];
        let mut haggle = Haggle::new(tls[seed as usize % 4]);
        let (mut rest, mut out) = (&bytes[..], Vec::new());
        while let Ok(Some((frame, len))) = OptionFrame::decode(rest) {
            assert!(len <= rest.len(), "seed {seed}");
            rest = &rest[len..];
            match haggle.handle(frame, &rig.exports, &mut out) {
                Next::Option => {}
                Next::StartTls => haggle.tls_started(),
                Next::Open { .. } | Next::HangUp => break,
            }
        }
        assert!(out.len() <= 64 * bytes.len() + 1024, "seed {seed}: {} bytes of replies", out.len());
        for window in bytes.windows(REQUEST_LEN).step_by(REQUEST_LEN) {
            if let Ok(request) = Request::decode(window.try_into().expect("a window of that length")) {
                // Either way; it must not panic.
                let _ = request.check(seed % 2 == 0, seed % 3 == 0);
            }
        }
    }
}

#[test]
fn a_live_server_takes_any_bytes() {
    let rig = Rig::new(1 << 20);
    for seed in 0..iterations(1000).min(100_000) {
        let mut stream = rig.connect();
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(mutate(&mut Random(seed)));
        // The server may hang up in the middle.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut heard = Vec::new();
        let _ = stream.read_to_end(&mut heard);
        assert!(heard.len() >= 18, "seed {seed}: at least the greeting");
    }
    rig.python("h.pwrite(b'alive', 0); assert h.pread(5, 0) == b'alive'");
}
