//! A connection of the link takes any bytes: the first says in which pieces they arrive. What is decoded encodes to
//! the very bytes it came from, an error stays, and what is kept stays within a frame and a feed.

#![no_main]

use gnomon_proto::frame::{Decoder, HEADER_LEN, MAX_BODY};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, bytes)) = bytes.split_first() else { return };
    let piece = usize::from(*first) + 1;
    let (mut decoder, mut again) = (Decoder::new(), Vec::new());
    let error = bytes.chunks(piece).find_map(|piece| {
        decoder.feed(piece);
        loop {
            match decoder.next() {
                Ok(Some(message)) => message.encode(&mut again).expect("what decodes can be encoded"),
                Ok(None) => break,
                Err(error) => return Some(error),
            }
        }
        assert!(decoder.buffered() <= HEADER_LEN + MAX_BODY);
        None
    });
    assert!(bytes.starts_with(&again));
    match error {
        Some(error) => assert_eq!(decoder.next(), Err(error)),
        None => assert_eq!(decoder.finish().is_ok(), again.len() == bytes.len()),
    }
});
