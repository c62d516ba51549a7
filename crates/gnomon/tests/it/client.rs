//! An NBD client that knows what it wrote: it works on a volume that moves, and can say at the end of every record
//! whether it reads as it must.
//!
//! The volume is divided into records of half a block, so that writes also change parts of blocks that are not there
//! yet. What a record holds follows from the seed, its number and its version, so a single wrong byte is seen. There is
//! one request at a time: a write that was answered is *acknowledged*, one whose connection died may have been carried
//! out or not, one that was refused must not have been.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::house::PATIENCE;

/// Bytes of a record: half a block.
pub const RECORD: usize = 2048;
/// Records that get half of all accesses: a guest returns to where it was.
const HOT: u64 = 128;

/// Why a request was not carried out.
#[derive(Debug)]
pub enum Failed {
    /// The server said no; the number is the protocol's.
    Refused(u32),
    /// The connection ended, so nobody knows. Shown when a test fails by it.
    Lost(#[allow(dead_code, reason = "read by Debug only")] io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Failed {
        Failed::Lost(error)
    }
}

/// A connection: fixed newstyle, simple replies, one request at a time.
/// Source: the NBD protocol, <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.
pub struct Nbd {
    socket: UnixStream,
    size: u64,
    cookie: u64,
}

const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;

impl Nbd {
    /// Opens an export.
    pub fn open(socket: &Path, export: &str) -> io::Result<Nbd> {
        let mut socket = UnixStream::connect(socket)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let greeting: [u8; 18] = read_array(&mut socket)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME.
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1u32.to_be_bytes());
        hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
        hello.extend_from_slice(export.as_bytes());
        socket.write_all(&hello)?;
        let answer: [u8; 10] = read_array(&mut socket)?;
        let size = u64::from_be_bytes(answer[..8].try_into().expect("8 bytes"));
        Ok(Nbd { socket, size, cookie: 0 })
    }

    /// Bytes of the export.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `into` with what is at `at`.
    pub fn read(&mut self, into: &mut [u8], at: u64) -> Result<(), Failed> {
        self.ask(READ, at, into.len() as u32, &[])?;
        Ok(self.socket.read_exact(into)?)
    }

    /// Writes.
    pub fn write(&mut self, data: &[u8], at: u64) -> Result<(), Failed> {
        self.ask(WRITE, at, data.len() as u32, data)
    }

    /// Makes what was written durable.
    pub fn flush(&mut self) -> Result<(), Failed> {
        self.ask(FLUSH, 0, 0, &[])
    }

    fn ask(&mut self, command: u16, at: u64, len: u32, data: &[u8]) -> Result<(), Failed> {
        self.cookie += 1;
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend_from_slice(&u32::from(command).to_be_bytes());
        request.extend_from_slice(&self.cookie.to_be_bytes());
        request.extend_from_slice(&at.to_be_bytes());
        request.extend_from_slice(&len.to_be_bytes());
        request.extend_from_slice(data);
        self.socket.write_all(&request)?;
        let reply: [u8; 16] = read_array(&mut self.socket)?;
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes(), "a simple reply");
        assert_eq!(reply[8..], self.cookie.to_be_bytes(), "of this request");
        match u32::from_be_bytes(reply[4..8].try_into().expect("4 bytes")) {
            0 => Ok(()),
            errno => Err(Failed::Refused(errno)),
        }
    }
}

fn read_array<const N: usize>(socket: &mut UnixStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// SplitMix64. Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014.
#[derive(Clone, Debug)]
pub struct Chance(pub u64);

impl Chance {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }
}

/// What a record of this version holds: number and version, then what follows from them.
pub fn content(seed: u64, record: u64, version: u64) -> Vec<u8> {
    let mut chance = Chance(seed ^ record.rotate_left(40) ^ version.rotate_left(20));
    let mut bytes = Vec::with_capacity(RECORD);
    bytes.extend_from_slice(&record.to_le_bytes());
    bytes.extend_from_slice(&version.to_le_bytes());
    while bytes.len() < RECORD {
        bytes.extend_from_slice(&chance.draw().to_le_bytes());
    }
    bytes
}

/// What may be read of a record.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The last version that was acknowledged, or seen.
    sure: u64,
    /// Later versions that may have been carried out.
    unsure: BTreeSet<u64>,
    /// The last version that was tried.
    tried: u64,
}

/// A client with a memory.
pub struct Client {
    nodes: [PathBuf; 2],
    export: String,
    seed: u64,
    chance: Chance,
    known: Vec<Known>,
    connection: Option<Nbd>,
    turn: usize,
    /// Whether a write has been accepted on this connection: only then its node is believed to be the writer.
    proven: bool,
    /// What it has done so far.
    pub tally: Tally,
}

/// What a client has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Writes that were acknowledged.
    pub writes: u64,
    /// Reads that were answered, and were right.
    pub reads: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests that were refused: the node is not the writer.
    pub refused: u64,
    /// Connections that died.
    pub lost: u64,
}

impl Client {
    /// A client of `export`, which one of two nodes serves. The volume must hold version 0 of every record.
    pub fn new(nodes: [PathBuf; 2], export: &str, records: u64, seed: u64) -> Client {
        Client {
            nodes,
            export: export.to_string(),
            seed,
            chance: Chance(seed),
            known: vec![Known::default(); records as usize],
            connection: None,
            turn: 0,
            proven: false,
            tally: Tally::default(),
        }
    }

    /// What the volume must hold before the client begins.
    pub fn image(records: u64, seed: u64) -> Vec<u8> {
        (0..records).flat_map(|record| content(seed, record, 0)).collect()
    }

    /// Makes one request of the writer, wherever it is: returns when it has been answered as it should.
    pub fn step(&mut self) {
        let (record, kind) = (self.choose(), self.chance.below(16));
        let begun = Instant::now();
        loop {
            let done = match (self.proven, kind) {
                (true, 0) => self.flush(),
                (true, 1..=6) => self.read(record),
                _ => self.write(record),
            };
            match done {
                Ok(()) => return,
                Err(failed) => self.turn_away(&failed),
            }
            assert!(begun.elapsed() < PATIENCE, "no node took the request: {:?}", self.tally);
        }
    }

    fn choose(&mut self) -> u64 {
        let all = self.known.len() as u64;
        match self.chance.below(2) {
            0 => self.chance.below(HOT.min(all)) * (all / HOT.min(all)),
            _ => self.chance.below(all),
        }
    }

    fn write(&mut self, record: u64) -> Result<(), Failed> {
        let known = &mut self.known[record as usize];
        known.tried += 1;
        let version = known.tried;
        let data = content(self.seed, record, version);
        let written = self.connected()?.write(&data, record * RECORD as u64);
        let known = &mut self.known[record as usize];
        match &written {
            Ok(()) => {
                (known.sure, self.proven) = (version, true);
                known.unsure.clear();
                self.tally.writes += 1;
            }
            Err(Failed::Lost(_)) => _ = known.unsure.insert(version),
            Err(Failed::Refused(_)) => {}
        }
        written
    }

    fn read(&mut self, record: u64) -> Result<(), Failed> {
        let mut bytes = [0; RECORD];
        self.connected()?.read(&mut bytes, record * RECORD as u64)?;
        self.check(record, &bytes);
        self.tally.reads += 1;
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failed> {
        self.connected()?.flush()?;
        self.tally.flushes += 1;
        Ok(())
    }

    /// Insists that a record reads as it may; what was seen once must stay.
    fn check(&mut self, record: u64, bytes: &[u8]) {
        let version = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
        let known = &mut self.known[record as usize];
        let may = version == known.sure || known.unsure.contains(&version);
        assert!(may, "record {record} reads as version {version:#x}, known is {known:?}; seed {}", self.seed);
        assert!(bytes == content(self.seed, record, version), "record {record} is torn; seed {}", self.seed);
        if version != known.sure {
            known.sure = version;
            known.unsure.clear();
        }
    }

    fn connected(&mut self) -> Result<&mut Nbd, Failed> {
        if self.connection.is_none() {
            let nbd = Nbd::open(&self.nodes[self.turn], &self.export)?;
            assert_eq!(nbd.size() / RECORD as u64, self.known.len() as u64);
            self.connection = Some(nbd);
        }
        self.connection.as_mut().ok_or_else(|| unreachable!("connected above"))
    }

    /// The other node may be the writer.
    fn turn_away(&mut self, failed: &Failed) {
        match failed {
            Failed::Refused(errno) => {
                // EPERM and ESHUTDOWN as the protocol numbers them: a writer's failures must not look like a refusal.
                assert!([1, 108].contains(errno), "error {errno} on node {}; seed {}", self.turn, self.seed);
                self.tally.refused += 1;
            }
            Failed::Lost(_) => self.tally.lost += u64::from(self.connection.is_some()),
        }
        (self.connection, self.proven) = (None, false);
        self.turn = 1 - self.turn;
        // Nobody may be the writer for a moment.
        std::thread::sleep(Duration::from_millis(1));
    }

    /// Reads the whole volume from `node` and insists that every record is as it must be.
    pub fn verify(&mut self, node: usize) {
        let mut nbd = Nbd::open(&self.nodes[node], &self.export).expect("the volume is served");
        let mut bytes = vec![0; 256 * RECORD];
        for first in (0..self.known.len() as u64).step_by(256) {
            let count = 256.min(self.known.len() as u64 - first);
            let part = &mut bytes[..count as usize * RECORD];
            nbd.read(part, first * RECORD as u64).expect("read");
            for (record, bytes) in (first..).zip(part.chunks(RECORD)) {
                self.check(record, bytes);
            }
        }
    }
}
