//! The devices of a checkpoint on their way in. Only what changed is said, so what no piece covers stays as it was in
//! the checkpoint before of this session.

use gnomon_terms::Bytes;

use super::ShadowError;

/// Devices as they have been said so far in a session.
#[derive(Debug)]
pub(super) struct Arriving {
    bytes: Vec<u8>,
    limit: Bytes,
}

impl Arriving {
    /// Nothing yet; up to `limit`.
    pub fn new(limit: Bytes) -> Arriving {
        Arriving { bytes: Vec::new(), limit }
    }

    /// A piece that begins within, or at the end, of what is there.
    pub fn take(&mut self, at: u64, piece: &[u8]) -> Result<(), ShadowError> {
        let have = self.bytes.len() as u64;
        let end = at.checked_add(piece.len() as u64).filter(|end| *end <= self.limit.0);
        let end = end.ok_or(ShadowError::DeviceTooLarge { limit: self.limit })?;
        if at > have {
            return Err(ShadowError::DeviceGap { at, have });
        }
        if end > have {
            self.bytes.resize(end as usize, 0);
        }
        self.bytes[at as usize..end as usize].copy_from_slice(piece);
        Ok(())
    }

    /// The devices are complete, and so long.
    pub fn close(&mut self, said: u32) -> Result<&[u8], ShadowError> {
        let have = self.bytes.len();
        if have < said as usize {
            return Err(ShadowError::DeviceCut { said, have: have as u64 });
        }
        self.bytes.truncate(said as usize);
        Ok(&self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_change_what_was_there() {
        let mut devices = Arriving::new(Bytes(8));
        devices.take(0, b"abcd").expect("the first");
        assert_eq!(devices.close(4).expect("whole"), b"abcd");
        devices.take(1, b"X").expect("within");
        devices.take(4, b"ef").expect("at the end");
        assert_eq!(devices.close(6).expect("whole"), b"aXcdef");
        assert_eq!(devices.close(3).expect("shorter"), b"aXc");
    }

    #[test]
    fn pieces_that_fit_nowhere_are_refused() {
        let mut devices = Arriving::new(Bytes(8));
        devices.take(0, b"abcd").expect("the first");
        assert!(matches!(devices.take(5, b"x"), Err(ShadowError::DeviceGap { at: 5, have: 4 })));
        for at in [4, u64::MAX] {
            assert!(matches!(devices.take(at, b"12345"), Err(ShadowError::DeviceTooLarge { limit: Bytes(8) })));
        }
        assert!(matches!(devices.close(5), Err(ShadowError::DeviceCut { said: 5, have: 4 })));
        assert_eq!(devices.close(4).expect("as before"), b"abcd");
    }
}
