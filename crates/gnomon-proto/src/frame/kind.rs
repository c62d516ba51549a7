//! The kinds of frame: their numbers, names and longest bodies.

use std::fmt;

use gnomon_terms::BLOCK_SIZE;

/// The longest payload of blocks, memory or bitmap: 1 MiB is 256 blocks, 16 fetch units, and at 1 GB/s one
/// millisecond: long enough to be carried well, short enough that whatever is behind it does not wait.
pub const MAX_PAYLOAD: usize = 1 << 20;
/// The longest request or reply: bulk does not travel as JSON.
pub const MAX_RPC: usize = 256 << 10;
/// The most accesses in one frame: at 100 000 a second a frame every 41 ms would do.
pub const MAX_ACCESSES: usize = 4096;
/// Bytes of one access on the wire.
pub const TOUCH_LEN: usize = 24;
/// The most hashes in one frame: 256 KiB of them, 512 MiB of volume at 64 KiB a unit.
pub const MAX_HASHES: usize = 8192;
/// The most volumes of a guest whose marks stand in a seal.
pub const MAX_MARKS: usize = 64;
/// Bytes of one mark on the wire.
pub(super) const MARK_LEN: usize = 12;
/// The longest node name: that of a DNS name.
pub const MAX_NAME: usize = 253;
/// The longest reason in a goodbye.
pub const MAX_REASON: usize = 1024;
/// The longest body of any kind.
pub const MAX_BODY: usize = MAX_PAYLOAD;

/// Session and boot id before the name in a hello.
pub(super) const HELLO_FIXED: usize = 32;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, max $max:expr;)*) => {
        /// The kind of a frame. The number is what stands on the wire; numbers are never used twice.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $code,)*
        }

        impl Kind {
            /// Every kind, by number.
            pub const ALL: &[Kind] = &[$(Kind::$name),*];

            /// The kind that `code` stands for; `None` if there is none.
            pub fn from_code(code: u8) -> Option<Kind> {
                match code {
                    $($code => Some(Kind::$name),)*
                    _ => None,
                }
            }

            /// Its name, as the protocol document spells it.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$name => stringify!($name),)* }
            }

            /// The longest body it may have, in bytes.
            pub fn max_body(self) -> usize {
                match self { $(Kind::$name => $max,)* }
            }
        }
    };
}

kinds! {
    /// First frame of each connection, from both sides.
    Hello = 1, max HELLO_FIXED + MAX_NAME;
    /// A question of one roof to the other.
    Request = 2, max MAX_RPC;
    /// The answer to a request.
    Reply = 3, max MAX_RPC;
    /// Heartbeat.
    Ping = 4, max 0;
    /// Answer to a heartbeat.
    Pong = 5, max 0;
    /// The last frame of a session.
    Goodbye = 6, max MAX_REASON;
    /// Blocks for a shadow.
    Push = 16, max MAX_PAYLOAD;
    /// What became of a push.
    PushAck = 17, max 0;
    /// A guest waits for blocks.
    Fetch = 18, max 0;
    /// The blocks a guest waits for.
    Fetched = 19, max MAX_PAYLOAD;
    /// A copy that is no longer wanted.
    Drop = 20, max 0;
    /// What a guest touched.
    Accesses = 21, max MAX_ACCESSES * TOUCH_LEN;
    /// A guest's write, for the second copy.
    Mirror = 24, max MAX_PAYLOAD;
    /// What became of a mirrored write or flush.
    MirrorAck = 25, max 0;
    /// Make the mirrored writes durable.
    MirrorFlush = 26, max 0;
    /// A piece of a bitmap.
    Bitmap = 27, max MAX_PAYLOAD;
    /// The end of a turn of mirrored writes.
    Turn = 28, max 0;
    /// What became of a turn.
    Turned = 29, max 0;
    /// A piece of a guest's memory stream.
    Ram = 32, max MAX_PAYLOAD;
    /// The end of a memory stream.
    RamEnd = 33, max 0;
    /// Pages of a checkpoint.
    Pages = 34, max MAX_PAYLOAD;
    /// A piece of a checkpoint's device state.
    Device = 35, max MAX_PAYLOAD;
    /// A checkpoint is complete.
    Seal = 36, max MAX_MARKS * MARK_LEN;
    /// What became of a checkpoint.
    Sealed = 37, max 0;
    /// How much of a memory stream has been taken.
    RamAck = 38, max 0;
    /// Handover: can you take over?
    Prepare = 40, max 0;
    /// Handover: yes, and I have written it down.
    Prepared = 41, max 0;
    /// Handover: you are the writer.
    Commit = 42, max 0;
    /// Handover: I am the writer, and I have written it down.
    Committed = 43, max 0;
    /// Handover: it is off.
    Abort = 44, max 0;
    /// Handover: I will not take over at this epoch.
    Aborted = 45, max 0;
    /// Hash these blocks.
    HashRange = 48, max 0;
    /// The hashes.
    Hashes = 49, max MAX_HASHES * 32;
}

impl Kind {
    /// The number that stands for it on the wire.
    pub fn code(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

const _: () = assert!((MAX_PAYLOAD as u64).is_multiple_of(BLOCK_SIZE), "a full payload is whole blocks");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_kinds_agree() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_code(kind.code()), Some(*kind));
            assert!(kind.max_body() <= MAX_BODY, "{kind}");
        }
        let known = (0..=255u8).filter(|code| Kind::from_code(*code).is_some()).count();
        assert_eq!(known, Kind::ALL.len());
    }
}
