//! Batches packed by zstd, as one stream for each session: what was said before shortens what is said next. A guest writes
//! the same kinds of things again and again, so a stream says half of what packing each batch by itself does.
//!
//! Both sides have to pass every packed batch of a session through their end of it, in order. Each batch is flushed, so
//! it is readable when it has arrived.
//!
//! Source: RFC 8878 (Zstandard).

use zstd::{
    stream::raw::{CParameter, DParameter, Decoder, Encoder, Operation, OutBuffer},
    zstd_safe::compress_bound,
};

use super::batch::{BatchError, LONGEST};

/// How hard zstd tries: at 3 it packs pages at more than 200 MB/s on a core, and finds a quarter more than at 1.
const LEVEL: i32 = 3;

/// How far back it looks, as a power of two: 2 MiB, which the other side has to keep.
const WINDOW: u32 = 21;

/// What a stream says of itself at its beginning, and of a flush.
const OVERHEAD: usize = 64;

/// The primary's end.
#[derive(Default)]
pub struct Packer(State);

#[derive(Default)]
enum State {
    #[default]
    New,
    Packs(Encoder<'static>),
    /// It has failed once; what it would say next nobody could read.
    Broken,
}

impl Packer {
    /// A batch, packed; `None` if that cannot be done, now and from then on. May be a little longer than the batch.
    pub fn pack(&mut self, body: &[u8]) -> Option<Vec<u8>> {
        if matches!(self.0, State::New) {
            self.0 = encoder().map_or(State::Broken, State::Packs);
        }
        let State::Packs(encoder) = &mut self.0 else { return None };
        let packed = packed(encoder, body);
        if packed.is_none() {
            self.0 = State::Broken;
        }
        packed
    }
}

fn encoder() -> Option<Encoder<'static>> {
    let mut encoder = Encoder::new(LEVEL).ok()?;
    encoder.set_parameter(CParameter::WindowLog(WINDOW)).ok()?;
    Some(encoder)
}

fn packed(encoder: &mut Encoder<'static>, body: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; compress_bound(body.len()) + OVERHEAD];
    let (mut read, mut written) = (0, 0);
    while read < body.len() {
        let status = encoder.run_on_buffers(&body[read..], &mut out[written..]).ok()?;
        if status.bytes_read + status.bytes_written == 0 {
            return None;
        }
        (read, written) = (read + status.bytes_read, written + status.bytes_written);
    }
    let mut rest = OutBuffer::around(&mut out[written..]);
    let unsaid = encoder.flush(&mut rest).ok()?;
    written += rest.pos();
    out.truncate(written);
    (unsaid == 0).then_some(out)
}

/// The shadow's end.
#[derive(Default)]
pub struct Unpacker(Option<Decoder<'static>>);

impl Unpacker {
    /// What [`Packer::pack`] has packed; never more than [`LONGEST`] bytes, and with no more than the window in memory.
    /// After an error the stream cannot be read any more.
    pub fn unpack(&mut self, packed: &[u8]) -> Result<Vec<u8>, BatchError> {
        let decoder = match &mut self.0 {
            Some(decoder) => decoder,
            none => none.insert(decoder()?),
        };
        // One more than may come: so it shows when there is more.
        let mut out = vec![0; LONGEST + 1];
        let (mut read, mut written) = (0, 0);
        while read < packed.len() {
            let status = decoder.run_on_buffers(&packed[read..], &mut out[written..]);
            let status = status.map_err(|_| BatchError::BadPack)?;
            if status.bytes_read + status.bytes_written == 0 {
                return Err(BatchError::BadPack);
            }
            (read, written) = (read + status.bytes_read, written + status.bytes_written);
            if written > LONGEST {
                return Err(BatchError::BadPack);
            }
        }
        out.truncate(written);
        Ok(out)
    }
}

fn decoder() -> Result<Decoder<'static>, BatchError> {
    let mut decoder = Decoder::new().map_err(|_| BatchError::BadPack)?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW)).map_err(|_| BatchError::BadPack)?;
    Ok(decoder)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(seed: u8, length: usize) -> Vec<u8> {
        let mut state = u64::from(seed) + 1;
        let mut byte = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| byte()).collect()
    }

    #[test]
    fn what_was_said_before_shortens_what_is_said_next() {
        let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
        let body = noise(1, 50_000);
        let (first, second) = (packer.pack(&body).unwrap(), packer.pack(&body).unwrap());
        assert!(first.len() > 45_000 && second.len() < 200, "{} {}", first.len(), second.len());
        assert_eq!(unpacker.unpack(&first), Ok(body.clone()));
        assert_eq!(unpacker.unpack(&second), Ok(body));
    }

    #[test]
    fn the_longest_batch_of_noise_fits_a_frame() {
        let packed = Packer::default().pack(&noise(2, LONGEST)).unwrap();
        assert!(packed.len() <= gnomon_proto::frame::MAX_PAYLOAD, "{}", packed.len());
        assert_eq!(Unpacker::default().unpack(&packed).map(|body| body.len()), Ok(LONGEST));
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let bomb = zstd::bulk::compress(&vec![0; LONGEST + 1], 1).expect("zstd");
        assert_eq!(Unpacker::default().unpack(&bomb), Err(BatchError::BadPack));
    }

    #[test]
    fn a_stream_that_wants_more_memory_than_ours_is_refused() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).expect("zstd");
        encoder.set_parameter(CParameter::WindowLog(WINDOW + 3)).expect("a window");
        std::io::Write::write_all(&mut encoder, &noise(3, 1000)).expect("memory");
        let wide = encoder.finish().expect("memory");
        assert_eq!(Unpacker::default().unpack(&wide), Err(BatchError::BadPack));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn batches_come_out_as_they_went_in(batches in prop::collection::vec((0u8..4, 0usize..20_000), 1..12)) {
            let (mut packer, mut unpacker) = (Packer::default(), Unpacker::default());
            for (seed, length) in batches {
                let body = noise(seed, length);
                prop_assert_eq!(unpacker.unpack(&packer.pack(&body).unwrap()), Ok(body));
            }
        }

        #[test]
        fn any_bytes_are_unpacked_or_refused(packed in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut unpacker = Unpacker::default();
            let _ = unpacker.unpack(&packed);
            let _ = unpacker.unpack(&packed);
        }
    }
}
