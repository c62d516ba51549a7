//! Bytes of the NBD transmission phase: requests in, replies out. Pure.
//!
//! Source: the NBD protocol, `doc/proto.md` of the NetworkBlockDevice project. All integers are big-endian.

/// Magic that opens the server's greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Magic of the new style and of each option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Magic of each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Magic of a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Magic of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Magic of one chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Bytes of a request without its payload.
pub const REQUEST_LEN: usize = 28;
/// Bytes of a simple reply without its payload.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// Bytes of a chunk without its payload.
pub const CHUNK_LEN: usize = 20;
/// Bytes before the data of a data chunk: header and offset.
pub const DATA_CHUNK_LEN: usize = CHUNK_LEN + 8;

/// Longest read or write: 32 MiB, what clients may assume when nothing else is agreed.
pub const PAYLOAD_LIMIT: u32 = 32 << 20;

/// Bits that say what an export can do.
pub mod export_flag {
    /// The field is valid.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes are refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// FLUSH is known.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The FUA flag is known.
    pub const SEND_FUA: u16 = 1 << 3;
    /// TRIM is known.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// WRITE_ZEROES is known.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The DF flag is known.
    pub const SEND_DF: u16 = 1 << 7;
    /// Several connections see one disk, and a flush on one covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// CACHE is known.
    pub const SEND_CACHE: u16 = 1 << 10;
}

/// Bits of a request.
pub mod request_flag {
    /// Durable before the reply.
    pub const FUA: u16 = 1 << 0;
    /// Zeroes must keep their storage.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The read must be answered in one chunk.
    pub const DF: u16 = 1 << 2;
    /// Only one extent is wanted.
    pub const REQ_ONE: u16 = 1 << 3;
}

/// Flags in block status.
pub mod status_flag {
    /// `base:allocation`: no storage is allocated.
    pub const HOLE: u32 = 1 << 0;
    /// `base:allocation`: reads as zeroes.
    pub const ZERO: u32 = 1 << 1;
    /// `gnomon:shadow`: a valid copy is on this host; clear when a read would be fetched from another.
    pub const LOCAL: u32 = 1 << 0;
}

/// Errors as the protocol numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted.
    Perm = 1,
    /// The storage failed.
    Io = 5,
    /// Malformed or out of range.
    Inval = 22,
    /// Full, or a write past the end.
    NoSpc = 28,
    /// The export is gone.
    Shutdown = 108,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes please.
    Read,
    /// Bytes follow.
    Write,
    /// The client goes away.
    Disconnect,
    /// Make everything durable.
    Flush,
    /// Give up.
    Trim,
    /// A hint that this will be read.
    Cache,
    /// Make it zeroes.
    WriteZeroes,
    /// Describe it.
    BlockStatus,
    /// Something this server does not know.
    Unknown(u16),
}

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// [`request_flag`] bits.
    pub flags: u16,
    /// Names the request in its reply.
    pub cookie: u64,
    /// Offset.
    pub at: u64,
    /// Length.
    pub len: u32,
}

/// The bytes are not a request: the stream is out of step, and the only way out is to hang up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a request (magic {REQUEST_MAGIC:#010x}), got {found:#010x}")]
pub struct NotARequest {
    /// What was there instead of the magic.
    pub found: u32,
}

impl Request {
    /// Reads a request from its [`REQUEST_LEN`] bytes. Whether flags and lengths make sense is for [`Request::check`].
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<Request, NotARequest> {
        let found = be32(&bytes[0..4]);
        if found != REQUEST_MAGIC {
            return Err(NotARequest { found });
        }
        Ok(Request {
            command: Command::of(be16(&bytes[6..8])),
            flags: be16(&bytes[4..6]),
            cookie: be64(&bytes[8..16]),
            at: be64(&bytes[16..24]),
            len: be32(&bytes[24..28]),
        })
    }

    /// The bytes of the request; the inverse of [`Request::decode`].
    pub fn encode(&self) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.number().to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.at.to_be_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    /// How many bytes follow the request.
    pub fn payload_len(&self) -> u64 {
        if self.command == Command::Write { u64::from(self.len) } else { 0 }
    }

    /// Refuses what this protocol version does not allow, whatever the export.
    pub fn check(&self, structured: bool, contexts: bool) -> Result<(), Errno> {
        use request_flag::{DF, FUA, NO_HOLE, REQ_ONE};
        // FUA may come with any command; where nothing is written it means nothing.
        let allowed = match self.command {
            Command::Read if structured => FUA | DF,
            Command::WriteZeroes => FUA | NO_HOLE,
            Command::BlockStatus => FUA | REQ_ONE,
            _ => FUA,
        };
        let bounded = matches!(self.command, Command::Read | Command::Write) && self.len > PAYLOAD_LIMIT;
        let known = match self.command {
            Command::Unknown(_) => false,
            Command::BlockStatus => contexts && self.len > 0,
            _ => true,
        };
        if self.flags & !allowed != 0 || bounded || !known { Err(Errno::Inval) } else { Ok(()) }
    }

    /// Whether `flag` is set.
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

impl Command {
    fn of(number: u16) -> Command {
        match number {
            0 => Command::Read,
            1 => Command::Write,
            2 => Command::Disconnect,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            7 => Command::BlockStatus,
            number => Command::Unknown(number),
        }
    }

    fn number(self) -> u16 {
        match self {
            Command::Read => 0,
            Command::Write => 1,
            Command::Disconnect => 2,
            Command::Flush => 3,
            Command::Trim => 4,
            Command::Cache => 5,
            Command::WriteZeroes => 6,
            Command::BlockStatus => 7,
            Command::Unknown(number) => number,
        }
    }
}

/// What a chunk of a structured reply carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Chunk {
    /// Nothing; ends a reply.
    None = 0,
    /// Offset and data.
    Data = 1,
    /// Offset and length of zeroes.
    Hole = 2,
    /// Context and descriptors.
    Status = 5,
    /// Errno and message.
    Error = 0x8001,
}

/// A simple reply's header; `error` is `None` for success.
pub fn simple_reply(cookie: u64, error: Option<Errno>) -> [u8; SIMPLE_REPLY_LEN] {
    let mut bytes = [0; SIMPLE_REPLY_LEN];
    bytes[0..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.map_or(0, |errno| errno as u32).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// A chunk's header; `last` ends the reply.
pub fn chunk(kind: Chunk, cookie: u64, len: u32, last: bool) -> [u8; CHUNK_LEN] {
    let mut bytes = [0; CHUNK_LEN];
    bytes[0..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&u16::from(last).to_be_bytes());
    bytes[6..8].copy_from_slice(&(kind as u16).to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..20].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// What comes before `len` bytes of data from `at`.
pub fn data_chunk(cookie: u64, at: u64, len: u32, last: bool) -> [u8; DATA_CHUNK_LEN] {
    let mut bytes = [0; DATA_CHUNK_LEN];
    bytes[..CHUNK_LEN].copy_from_slice(&chunk(Chunk::Data, cookie, 8 + len, last));
    bytes[CHUNK_LEN..].copy_from_slice(&at.to_be_bytes());
    bytes
}

/// The chunk that says `len` bytes from `at` are zeroes.
pub fn hole_chunk(cookie: u64, at: u64, len: u32, last: bool) -> [u8; CHUNK_LEN + 12] {
    let mut bytes = [0; CHUNK_LEN + 12];
    bytes[..CHUNK_LEN].copy_from_slice(&chunk(Chunk::Hole, cookie, 12, last));
    bytes[CHUNK_LEN..CHUNK_LEN + 8].copy_from_slice(&at.to_be_bytes());
    bytes[CHUNK_LEN + 8..].copy_from_slice(&len.to_be_bytes());
    bytes
}

/// The chunk that ends a reply with an error and, for people, why. A long message is cut.
pub fn error_chunk(cookie: u64, errno: Errno, why: &str) -> Vec<u8> {
    const LONGEST: usize = 1024;
    let why = &why[..why.floor_char_boundary(LONGEST)];
    let mut bytes = chunk(Chunk::Error, cookie, 6 + why.len() as u32, true).to_vec();
    bytes.extend_from_slice(&(errno as u32).to_be_bytes());
    bytes.extend_from_slice(&(why.len() as u16).to_be_bytes());
    bytes.extend_from_slice(why.as_bytes());
    bytes
}

/// The chunk that describes the blocks for one context as (length, flags).
pub fn status_chunk(cookie: u64, context: u32, extents: &[(u32, u32)], last: bool) -> Vec<u8> {
    let mut bytes = chunk(Chunk::Status, cookie, 4 + 8 * extents.len() as u32, last).to_vec();
    bytes.extend_from_slice(&context.to_be_bytes());
    for (len, flags) in extents {
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(&flags.to_be_bytes());
    }
    bytes
}

/// The big-endian number in two bytes.
pub(super) fn be16(bytes: &[u8]) -> u16 {
    u16::from_be_bytes(bytes.try_into().expect("the caller slices two bytes"))
}

/// The big-endian number in four bytes.
pub(super) fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().expect("the caller slices four bytes"))
}

/// The big-endian number in eight bytes.
pub(super) fn be64(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("the caller slices eight bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(command: Command, flags: u16, len: u32) -> Request {
        Request { command, flags, cookie: 1, at: 0, len }
    }

    proptest! {
        #[test]
        fn a_request_survives_the_wire(number: u16, flags: u16, cookie: u64, at: u64, len: u32) {
            let request = Request { command: Command::of(number), flags, cookie, at, len };
            prop_assert_eq!(Request::decode(&request.encode()), Ok(request));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: [u8; REQUEST_LEN]) {
            match Request::decode(&bytes) {
                Ok(request) => prop_assert_eq!(request.encode(), bytes),
                Err(error) => prop_assert_ne!(error.found, REQUEST_MAGIC),
            }
        }
    }

    #[test]
    fn flags_and_lengths_are_checked() {
        use request_flag::{DF, FUA, NO_HOLE, REQ_ONE};
        let table = [
            (request(Command::Read, 0, 4096), true, Ok(())),
            (request(Command::Read, FUA, 0), true, Ok(())),
            (request(Command::Read, DF, 4096), true, Ok(())),
            (request(Command::Read, DF, 4096), false, Err(Errno::Inval)),
            (request(Command::Read, NO_HOLE, 4096), true, Err(Errno::Inval)),
            (request(Command::Read, 0, PAYLOAD_LIMIT + 1), true, Err(Errno::Inval)),
            (request(Command::Write, FUA, PAYLOAD_LIMIT), true, Ok(())),
            (request(Command::Write, 0x8000, 1), true, Err(Errno::Inval)),
            (request(Command::Trim, FUA, u32::MAX), true, Ok(())),
            (request(Command::WriteZeroes, NO_HOLE | FUA, u32::MAX), false, Ok(())),
            (request(Command::WriteZeroes, 1 << 4, 1), true, Err(Errno::Inval)),
            (request(Command::BlockStatus, REQ_ONE, 1), true, Ok(())),
            (request(Command::BlockStatus, 0, 0), true, Err(Errno::Inval)),
            (request(Command::BlockStatus, 0, 1), false, Err(Errno::Inval)),
            (request(Command::Unknown(9), 0, 0), true, Err(Errno::Inval)),
        ];
        for (request, structured, want) in table {
            assert_eq!(request.check(structured, structured), want, "{request:?} structured {structured}");
        }
    }

    #[test]
    fn replies_have_the_bytes_of_the_protocol() {
        assert_eq!(simple_reply(0x0102, Some(Errno::Io)), *b"\x67\x44\x66\x98\0\0\0\x05\0\0\0\0\0\0\x01\x02");
        assert_eq!(
            hole_chunk(1, 4096, 512, true),
            *b"\x66\x8e\x33\xef\0\x01\0\x02\0\0\0\0\0\0\0\x01\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\x02\0"
        );
        assert_eq!(data_chunk(1, 4096, 512, false)[16..], *b"\0\0\x02\x08\0\0\0\0\0\0\x10\0");
        assert_eq!(
            error_chunk(1, Errno::Perm, "no")[4..],
            *b"\0\x01\x80\x01\0\0\0\0\0\0\0\x01\0\0\0\x08\0\0\0\x01\0\x02no"
        );
        assert_eq!(error_chunk(1, Errno::Perm, &"ü".repeat(4000)).len(), CHUNK_LEN + 6 + 1024);
        assert_eq!(status_chunk(1, 7, &[(1, 2)], true)[16..], *b"\0\0\0\x0c\0\0\0\x07\0\0\0\x01\0\0\0\x02");
    }
}
