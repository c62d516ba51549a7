//! Messages: what a frame means.

use std::fmt;

use gnomon_terms::{BlockIndex, Epoch, Extent, Instant, Op};

use super::Kind;
use crate::Class;

/// Which volume (or guest memory) of a session a frame belongs to; agreed by a request before the first frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream(pub u32);

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// The first frame of each connection, from both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The speaker's name; the receiver compares it with the name in the speaker's certificate.
    pub node: String,
    /// Drawn at random when the speaker's process started: tells a restart from a reconnection.
    pub boot: u128,
    /// What this connection carries.
    pub class: Class,
    /// Joins the connections of one session; drawn at random by the side that connects.
    pub session: u128,
}

/// The content of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// The bytes. Whole blocks, except that the last block of a volume may be cut at its end.
    Data(Vec<u8>),
    /// All zero: nothing has to be carried, and the receiver keeps a hole.
    Zero,
}

/// What a guest did to a run of bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Wrote these bytes.
    Data(Vec<u8>),
    /// Wrote zeroes.
    Zero,
    /// Gave the bytes up: what they read as from now on does not matter.
    Discard,
}

/// What became of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Settlement {
    /// The blocks are in the shadow.
    Done,
    /// They were there already, or newer ones.
    Needless,
    /// They could not be written. Push them again later.
    Failed,
    /// The push was of an epoch that is over. The sender is not the writer it believes to be.
    Stale,
}

/// The answer to a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The blocks.
    Blocks(Content),
    /// Not served: the epoch is over, or the copy has been given up. Asking again will not help.
    Refused,
    /// The source could not read them. Asking again may help.
    Failed,
}

/// One access, as the node where the guest runs reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// When, on the clock of the reporting node.
    pub at: Instant,
    /// Which blocks; at least one.
    pub extent: Extent,
    /// What was done.
    pub op: Op,
    /// True if the guest had to wait because the blocks were not there.
    pub stalled: bool,
}

/// How far a volume of a guest had got at a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Which volume.
    pub stream: Stream,
    /// The turn of its mirrored writes that belongs to the checkpoint ([`Message::Turn`]).
    pub seq: u64,
}

/// One step of the two-phase handover of a stream's epoch (see [`crate::handover`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Step {
    /// Writer to successor: can you take over at this epoch?
    Prepare,
    /// Successor to writer: yes, and it is written down. Said again, it asks what came of it.
    Prepared,
    /// Writer to successor: you are the writer. The bitmap that belongs to it has `lacking` bits set and the
    /// check `check`; the successor must have exactly that one.
    Commit {
        /// Bits set in the bitmap.
        lacking: u64,
        /// [`crate::bitmap::Bitmap::check`] of it.
        check: u64,
    },
    /// Successor to writer: I am the writer, and it is written down.
    Committed,
    /// Writer to successor: this epoch will never be yours.
    Abort,
    /// Successor to writer: I will not take over at this epoch.
    Aborted,
}

/// Everything two nodes say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First frame of each connection.
    Hello(Hello),
    /// A question of one roof to the other; JSON, up to [`super::MAX_RPC`] bytes.
    Request {
        /// Names the reply.
        id: u64,
        /// The question.
        body: Vec<u8>,
    },
    /// The answer to a request.
    Reply {
        /// The request's id.
        id: u64,
        /// False if `body` is an error.
        ok: bool,
        /// The answer.
        body: Vec<u8>,
    },
    /// Heartbeat.
    Ping {
        /// Comes back in the pong.
        seq: u64,
    },
    /// Answer to a heartbeat.
    Pong {
        /// The ping's number.
        seq: u64,
    },
    /// The last frame of a session.
    Goodbye {
        /// For the log of the other side; up to [`super::MAX_REASON`] bytes.
        reason: String,
    },
    /// Blocks for a shadow.
    Push {
        /// Which volume.
        stream: Stream,
        /// The epoch the sender believes in.
        epoch: Epoch,
        /// Names the acknowledgement.
        seq: u64,
        /// Which blocks.
        extent: Extent,
        /// [`Class::Prefetch`] or [`Class::Background`] (any class but pulse is allowed).
        class: Class,
        /// What is in them.
        content: Content,
    },
    /// What became of a push or a drop.
    PushAck {
        /// Which volume.
        stream: Stream,
        /// The push's (or drop's) number.
        seq: u64,
        /// How it ended.
        settled: Settlement,
    },
    /// A guest waits for blocks.
    Fetch {
        /// Which volume.
        stream: Stream,
        /// The asker's epoch.
        epoch: Epoch,
        /// Names the answer.
        id: u64,
        /// Which blocks; up to 1 MiB of them come back as data.
        extent: Extent,
    },
    /// The answer to a fetch.
    Fetched {
        /// Which volume.
        stream: Stream,
        /// The fetch's id.
        id: u64,
        /// The fetch's extent.
        extent: Extent,
        /// The blocks, or why not.
        answer: Answer,
    },
    /// Give a spare copy up. Carries an epoch so that a late one cannot take blocks from a new writer; overtakes
    /// pushes, so the sender waits for the acknowledgement of those it touches first.
    Drop {
        /// Which volume.
        stream: Stream,
        /// The epoch the sender believes in.
        epoch: Epoch,
        /// Names the acknowledgement.
        seq: u64,
        /// Which blocks.
        extent: Extent,
    },
    /// What the guest touched, oldest first; up to [`super::MAX_ACCESSES`].
    Accesses {
        /// Which volume.
        stream: Stream,
        /// The accesses.
        touches: Vec<Touch>,
    },
    /// A guest's write, for the second copy.
    Mirror {
        /// Which volume.
        stream: Stream,
        /// The writer's epoch.
        epoch: Epoch,
        /// Names the acknowledgement; writes are applied in this order.
        seq: u64,
        /// First byte.
        at: u64,
        /// How many bytes; as many as the data has.
        len: u32,
        /// What was done to them.
        change: Change,
    },
    /// What became of a mirrored write or flush.
    MirrorAck {
        /// Which volume.
        stream: Stream,
        /// Everything up to this number is meant.
        seq: u64,
        /// True if it is on stable storage.
        durable: bool,
        /// False if it could not be written: the second copy is no longer whole.
        ok: bool,
    },
    /// Make every mirrored write up to `seq` durable, then acknowledge.
    MirrorFlush {
        /// Which volume.
        stream: Stream,
        /// The last write that is meant.
        seq: u64,
    },
    /// The mirrored writes since the turn before are those of this turn: with them the second copy is as the disk was at
    /// one moment.
    Turn {
        /// Which volume.
        stream: Stream,
        /// The writer's epoch.
        epoch: Epoch,
        /// The turn's number; they rise.
        turn: u64,
        /// The last mirrored write of the session so far; zero if there was none.
        last: u64,
        /// False if something of it was left out: its writes belong to the next turn, and it is never sealed.
        whole: bool,
    },
    /// What became of a turn.
    Turned {
        /// Which volume.
        stream: Stream,
        /// The turn's number.
        turn: u64,
        /// True if the second copy is durably as the turn says. False if it will not be, and the session is given up.
        ok: bool,
    },
    /// A piece of a bitmap over blocks.
    Bitmap {
        /// Which volume.
        stream: Stream,
        /// The epoch it belongs to.
        epoch: Epoch,
        /// Which bitmap; the meaning is between the two roofs (0 is "lacking" in a handover).
        which: u8,
        /// The blocks the piece is about.
        extent: Extent,
        /// The piece as [`crate::bitmap::encode`] writes it.
        bits: Vec<u8>,
    },
    /// A piece of a guest's memory stream.
    Ram {
        /// Which guest.
        stream: Stream,
        /// The bytes, in order.
        bytes: Vec<u8>,
    },
    /// The end of a memory stream.
    RamEnd {
        /// Which guest.
        stream: Stream,
        /// False if the stream was cut off at the sender.
        ok: bool,
    },
    /// How much of a memory stream has been taken.
    RamAck {
        /// Which guest.
        stream: Stream,
        /// Bytes since the stream began.
        taken: u64,
    },
    /// Pages of a checkpoint that is being made.
    Pages {
        /// Which guest.
        stream: Stream,
        /// The epoch of the guest's host.
        epoch: Epoch,
        /// The checkpoint's number; they rise by one.
        checkpoint: u64,
        /// How many records `body` has.
        records: u32,
        /// Whether `body` is packed: the next piece of the session's one zstd stream.
        packed: bool,
        /// The records, as the machine plane codes them.
        body: Vec<u8>,
    },
    /// A piece of the device state of a checkpoint that is not as in the checkpoint before of the session.
    Device {
        /// Which guest.
        stream: Stream,
        /// The epoch of the guest's host.
        epoch: Epoch,
        /// The checkpoint's number.
        checkpoint: u64,
        /// Where in the device state the piece begins.
        at: u64,
        /// The piece.
        bytes: Vec<u8>,
    },
    /// A checkpoint is complete: apply it, whole.
    Seal {
        /// Which guest.
        stream: Stream,
        /// The epoch of the guest's host.
        epoch: Epoch,
        /// The checkpoint's number.
        checkpoint: u64,
        /// How many records its pages were.
        records: u64,
        /// How many bytes its device state is.
        device: u32,
        /// How far its volumes had got; up to [`super::MAX_MARKS`].
        marks: Vec<Mark>,
    },
    /// What became of a checkpoint.
    Sealed {
        /// Which guest.
        stream: Stream,
        /// The checkpoint's number.
        checkpoint: u64,
        /// False if it could not be applied: the shadow has the one before.
        ok: bool,
    },
    /// One step of a handover.
    Handover {
        /// Which volume.
        stream: Stream,
        /// The epoch that is handed over: that of the writer to come.
        epoch: Epoch,
        /// The step.
        step: Step,
    },
    /// Hash these blocks: each by itself up to 16 of them, otherwise each unit of 16.
    HashRange {
        /// Which volume.
        stream: Stream,
        /// Names the answer.
        id: u64,
        /// Which blocks.
        extent: Extent,
    },
    /// The hashes, one per block or unit; up to [`super::MAX_HASHES`]. None: they cannot be had.
    Hashes {
        /// Which volume.
        stream: Stream,
        /// The question's id.
        id: u64,
        /// First block of the first unit.
        start: BlockIndex,
        /// A 32-byte hash each; all zero where the sender does not claim all of it.
        hashes: Vec<[u8; 32]>,
    },
}

impl Message {
    /// The kind of frame it becomes.
    pub fn kind(&self) -> Kind {
        match self {
            Message::Hello(_) => Kind::Hello,
            Message::Request { .. } => Kind::Request,
            Message::Reply { .. } => Kind::Reply,
            Message::Ping { .. } => Kind::Ping,
            Message::Pong { .. } => Kind::Pong,
            Message::Goodbye { .. } => Kind::Goodbye,
            Message::Push { .. } => Kind::Push,
            Message::PushAck { .. } => Kind::PushAck,
            Message::Fetch { .. } => Kind::Fetch,
            Message::Fetched { .. } => Kind::Fetched,
            Message::Drop { .. } => Kind::Drop,
            Message::Accesses { .. } => Kind::Accesses,
            Message::Mirror { .. } => Kind::Mirror,
            Message::MirrorAck { .. } => Kind::MirrorAck,
            Message::MirrorFlush { .. } => Kind::MirrorFlush,
            Message::Turn { .. } => Kind::Turn,
            Message::Turned { .. } => Kind::Turned,
            Message::Bitmap { .. } => Kind::Bitmap,
            Message::Ram { .. } => Kind::Ram,
            Message::RamEnd { .. } => Kind::RamEnd,
            Message::RamAck { .. } => Kind::RamAck,
            Message::Pages { .. } => Kind::Pages,
            Message::Device { .. } => Kind::Device,
            Message::Seal { .. } => Kind::Seal,
            Message::Sealed { .. } => Kind::Sealed,
            Message::Handover { step, .. } => step.kind(),
            Message::HashRange { .. } => Kind::HashRange,
            Message::Hashes { .. } => Kind::Hashes,
        }
    }

    /// The class it travels in.
    ///
    /// Acknowledgements travel as control, apart from what they acknowledge: if both ends were full of bulk on
    /// one connection, each would wait for the other to read before it could acknowledge.
    pub fn class(&self) -> Class {
        match self {
            Message::Hello(hello) => hello.class,
            Message::Push { class, .. } => *class,
            Message::Ping { .. } | Message::Pong { .. } | Message::Goodbye { .. } => Class::Pulse,
            Message::Request { .. } | Message::Reply { .. } | Message::Handover { .. } => Class::Control,
            Message::PushAck { .. } | Message::MirrorAck { .. } | Message::Drop { .. } => Class::Control,
            Message::Turned { .. } => Class::Control,
            Message::Accesses { .. } | Message::Bitmap { .. } => Class::Control,
            Message::Sealed { .. } | Message::RamAck { .. } => Class::Control,
            Message::Fetch { .. } | Message::Fetched { .. } => Class::Demand,
            Message::Mirror { .. } | Message::MirrorFlush { .. } | Message::Turn { .. } => Class::Mirror,
            Message::Ram { .. } | Message::RamEnd { .. } => Class::Ram,
            Message::Pages { .. } | Message::Device { .. } | Message::Seal { .. } => Class::Ram,
            Message::HashRange { .. } | Message::Hashes { .. } => Class::Background,
        }
    }
}

impl Step {
    /// The kind of frame it becomes.
    pub fn kind(self) -> Kind {
        match self {
            Step::Prepare => Kind::Prepare,
            Step::Prepared => Kind::Prepared,
            Step::Commit { .. } => Kind::Commit,
            Step::Committed => Kind::Committed,
            Step::Abort => Kind::Abort,
            Step::Aborted => Kind::Aborted,
        }
    }
}
