//! Frames: every kind there and back, in any pieces, and damaged in every way a seed can think of.

use gnomon_proto::{Class, frame::*};
use gnomon_terms::{BlockIndex, Epoch, Extent, Instant, Op};

/// At least one message of every kind.
fn messages() -> Vec<Message> {
    let (stream, epoch, extent) = (Stream(3), Epoch(7), Extent::new(5, 2));
    let hello = Hello { node: "a-1".into(), boot: 1 << 90, class: Class::Ram, session: 2 << 90 };
    let touch = Touch { at: Instant::from_nanos(9), extent, op: Op::Write, stalled: true };
    let data = || vec![0xab; 8192];
    let steps = [
        Step::Prepare,
        Step::Prepared,
        Step::Commit { lacking: 4, check: 5 },
        Step::Committed,
        Step::Abort,
        Step::Aborted,
    ];
    let mut all = vec![
        Message::Hello(hello),
        Message::Request { id: 1, body: b"{}".to_vec() },
        Message::Reply { id: 1, ok: true, body: Vec::new() },
        Message::Ping { seq: 1 },
        Message::Pong { seq: 1 },
        Message::Goodbye { reason: "enough".into() },
        Message::Push { stream, epoch, seq: 1, extent, class: Class::Prefetch, content: Content::Data(data()) },
        Message::Push { stream, epoch, seq: 1, extent, class: Class::Background, content: Content::Zero },
        Message::PushAck { stream, seq: 1, settled: Settlement::Stale },
        Message::Fetch { stream, epoch, id: 1, extent },
        Message::Fetched { stream, id: 1, extent, answer: Answer::Blocks(Content::Data(data())) },
        Message::Fetched { stream, id: 1, extent, answer: Answer::Refused },
        Message::Drop { stream, epoch, seq: 1, extent },
        Message::Accesses { stream, touches: vec![touch; 3] },
        Message::Mirror { stream, epoch, seq: 1, at: 9, len: 8192, change: Change::Data(data()) },
        Message::Mirror { stream, epoch, seq: 1, at: 9, len: 5, change: Change::Discard },
        Message::MirrorAck { stream, seq: 1, durable: true, ok: false },
        Message::MirrorFlush { stream, seq: 1 },
        Message::Turn { stream, epoch, turn: 5, last: 9, whole: true },
        Message::Turned { stream, turn: 5, ok: false },
        Message::Bitmap { stream, epoch, which: 1, extent, bits: vec![0, 3] },
        Message::Ram { stream, bytes: data() },
        Message::RamEnd { stream, ok: true },
        Message::RamAck { stream, taken: 1 << 40 },
        Message::Pages { stream, epoch, checkpoint: 4, records: 2, packed: true, body: vec![1, 2, 3] },
        Message::Pages { stream, epoch, checkpoint: 4, records: 2, packed: false, body: vec![0, 0] },
        Message::Device { stream, epoch, checkpoint: 4, at: 1 << 20, bytes: vec![5; 100] },
        Message::Seal {
            stream,
            epoch,
            checkpoint: 4,
            records: 4,
            device: 9,
            marks: vec![Mark { stream, seq: 8 }; 2],
        },
        Message::Seal { stream, epoch, checkpoint: 5, records: 0, device: 9, marks: Vec::new() },
        Message::Sealed { stream, checkpoint: 4, ok: true },
        Message::HashRange { stream, id: 1, extent },
        Message::Hashes { stream, id: 1, start: BlockIndex(5), hashes: vec![[9; 32]; 2] },
    ];
    all.extend(steps.map(|step| Message::Handover { stream, epoch, step }));
    all
}

fn encoded(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    messages.iter().for_each(|message| message.encode(&mut bytes).expect("a good message"));
    bytes
}

#[test]
fn every_kind_comes_back_in_pieces_of_any_size() {
    let sent = messages();
    assert!(Kind::ALL.iter().all(|kind| sent.iter().any(|message| message.kind() == *kind)), "a kind is not tested");
    let bytes = encoded(&sent);
    for piece in [1, 7, 48, 4096, bytes.len()] {
        let (mut decoder, mut arrived) = (Decoder::new(), Vec::new());
        for piece in bytes.chunks(piece) {
            decoder.feed(piece);
            while let Some(message) = decoder.next().expect("good bytes") {
                arrived.push(message);
            }
        }
        assert_eq!(arrived, sent);
        assert_eq!((decoder.finish(), decoder.buffered()), (Ok(()), 0));
    }
}

#[test]
fn a_stream_that_ends_within_a_frame_is_told() {
    let bytes = encoded(&messages()[6..7]);
    for cut in [1, 47, 48, 49, bytes.len() - 1] {
        let mut decoder = Decoder::new();
        decoder.feed(&bytes[..cut]);
        assert_eq!(decoder.next(), Ok(None));
        assert!(matches!(decoder.finish(), Err(FrameError::Truncated { have, .. }) if have == cut), "{cut}");
    }
}

/// Xorshift: a seed is all a failure needs to be repeated. Source: Marsaglia, "Xorshift RNGs" (2003).
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Headers with a right check and wrong fields, and bodies with flipped bytes: never a panic, and whatever is
/// accepted encodes to the very bytes it came from. `GNOMON_FUZZ_ITERATIONS` raises the count.
#[test]
fn damaged_frames_are_refused_or_mean_what_they_say() {
    let rounds = std::env::var("GNOMON_FUZZ_ITERATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(20_000u64);
    let sent = messages();
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let (mut accepted, mut refused) = (0u64, 0u64);
    for _ in 0..rounds {
        let message = &sent[(next(&mut seed) % sent.len() as u64) as usize];
        let (mut header, body) = message.frame().expect("a good message");
        let mut body = body.into_owned();
        match next(&mut seed) % 8 {
            0 => header.flags ^= 1 << (next(&mut seed) % 16),
            1 => header.at ^= 1 << (next(&mut seed) % 64),
            2 => header.count ^= 1 << (next(&mut seed) % 32),
            3 => header.kind = Kind::ALL[(next(&mut seed) % Kind::ALL.len() as u64) as usize],
            4 => header.seq = next(&mut seed),
            5 => header.epoch = next(&mut seed),
            6 => body.truncate((next(&mut seed) % (body.len() as u64 + 1)) as usize),
            _ if !body.is_empty() => {
                let at = (next(&mut seed) % body.len() as u64) as usize;
                body[at] ^= next(&mut seed) as u8;
            }
            _ => {}
        }
        header.body = body.len() as u32;
        let bytes = [&header.to_bytes()[..], &body].concat();
        let mut decoder = Decoder::new();
        decoder.feed(&bytes);
        match decoder.next() {
            Ok(Some(message)) => {
                assert_eq!(encoded(&[message]), bytes);
                accepted += 1;
            }
            Ok(None) => panic!("a whole frame was fed"),
            Err(error) => {
                assert_eq!(decoder.next(), Err(error), "an error stays");
                refused += 1;
            }
        }
    }
    assert!(accepted > 0 && refused > 0);
}
