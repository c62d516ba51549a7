//! What the tests share: a server over a fresh disk, disks that can be held, and running other people's programs.

use std::{
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::Arc,
};

use gnomon_terms::{Bytes, ResourceId};
use gnomon_volume::{
    disk::{Disk, DiskError, FileDisk, Mode, Segment},
    front::nbd::{NbdAddress, NbdLimits, NbdServer},
    serve::{Export, Exports},
};
use parking_lot::{Condvar, Mutex};
use tempfile::TempDir;

/// The export of every rig.
pub const NAME: &str = "disk";

/// A running server over one disk in a temporary folder.
pub struct Rig {
    pub dir: TempDir,
    pub exports: Arc<Exports>,
    pub server: NbdServer,
    pub socket: PathBuf,
}

impl Rig {
    /// A sparse file of `size` bytes.
    pub fn new(size: u64) -> Rig {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let disk = FileDisk::create(&dir.path().join("disk.raw"), Bytes(size)).expect("a new disk");
        Rig::over(dir, Arc::new(disk), false, NbdLimits::default())
    }

    /// As [`Rig::new`], filled with `fill` and read-only.
    pub fn read_only(fill: &[u8]) -> Rig {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("disk.raw");
        std::fs::write(&path, fill).expect("a full disk");
        let disk = FileDisk::open(&path, None, Mode::ReadOnly).expect("the disk");
        Rig::over(dir, Arc::new(disk), true, NbdLimits::default())
    }

    /// Any disk.
    pub fn over(dir: TempDir, disk: Arc<dyn Disk>, read_only: bool, limits: NbdLimits) -> Rig {
        let exports = Exports::new();
        exports.add(export(NAME, disk, read_only)).expect("the first export");
        let socket = dir.path().join("nbd.sock");
        let server =
            NbdServer::bind_with(NbdAddress::Unix(socket.clone()), exports.clone(), limits).expect("a server");
        Rig { dir, exports, server, socket }
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///{NAME}?socket={}", self.socket.display())
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).expect("the server listens")
    }

    /// The disk's file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("disk.raw")
    }

    /// Runs a python script that finds `h`, a libnbd handle connected to this rig with all contexts asked for.
    pub fn python(&self, script: &str) {
        let prologue = format!(
            "import nbd, errno\nh = nbd.NBD()\nh.add_meta_context('base:allocation')\n\
             h.add_meta_context('gnomon:shadow')\nh.set_strict_mode(0)\nuri = '{}'\nh.connect_uri(uri)\n\
             def fails(code, do):\n    try:\n        do()\n    except nbd.Error as e:\n        \
             assert e.errnum == code, (e.errnum, code, e)\n    else:\n        assert False, 'should have failed'\n",
            self.uri()
        );
        run("/usr/bin/python3", &["-c", &format!("{prologue}{script}")]);
    }
}

pub fn export(name: &str, disk: Arc<dyn Disk>, read_only: bool) -> Export {
    let description = "a test".to_string();
    Export { name: name.to_string(), description, disk, read_only, resource: ResourceId(1), tap: None }
}

/// Runs a program that must succeed; what it printed is in the panic otherwise.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = start(program, args);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}\n{}", output.status, stderr(&output));
    text
}

/// Runs a program that must fail; returns what it complained about.
pub fn run_failing(program: &str, args: &[&str]) -> String {
    let output = start(program, args);
    assert!(!output.status.success(), "{program} {args:?} succeeded");
    stderr(&output)
}

fn start(program: &str, args: &[&str]) -> Output {
    // A client that waits for ever would hide which test it was.
    Command::new("timeout")
        .args(["--kill-after=5", "120", program])
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}: `cargo xtask test` installs it"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

/// Bytes that look like nothing and differ for each seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A small seeded generator (splitmix64; Source: Steele, Lea, Flood, OOPSLA 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// A disk in memory whose upper half is "on another host": touching it waits until it is let go.
pub struct HeldDisk {
    bytes: Mutex<Vec<u8>>,
    held: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    open: bool,
    waiting: usize,
    flushes: usize,
}

impl HeldDisk {
    pub fn new(fill: Vec<u8>) -> Arc<HeldDisk> {
        Arc::new(HeldDisk { bytes: Mutex::new(fill), held: Mutex::default(), changed: Condvar::new() })
    }

    /// Lets everything that waits, and everything that comes, go on.
    pub fn let_go(&self) {
        self.held.lock().open = true;
        self.changed.notify_all();
    }

    /// Waits until `count` requests wait for the other host.
    pub fn await_waiting(&self, count: usize) {
        let mut held = self.held.lock();
        self.changed.wait_while(&mut held, |held| held.waiting < count);
    }

    /// Waits until it has been flushed so often.
    pub fn await_flush(&self, count: usize) {
        let mut held = self.held.lock();
        self.changed.wait_while(&mut held, |held| held.flushes < count);
    }

    pub fn flushes(&self) -> usize {
        self.held.lock().flushes
    }

    fn pass(&self, at: u64, len: u64) {
        if self.is_local(at, len) {
            return;
        }
        let mut held = self.held.lock();
        held.waiting += 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut held, |held| !held.open);
        held.waiting -= 1;
    }
}

impl Disk for HeldDisk {
    fn size(&self) -> Bytes {
        Bytes(self.bytes.lock().len() as u64)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        self.pass(at, into.len() as u64);
        into.copy_from_slice(&self.bytes.lock()[at as usize..at as usize + into.len()]);
        Ok(())
    }

    fn write_at(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        self.pass(at, data.len() as u64);
        self.bytes.lock()[at as usize..at as usize + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn write_zeroes(&self, at: u64, len: u64, _punch: bool) -> Result<(), DiskError> {
        self.write_at(&vec![0; len as usize], at)
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.write_zeroes(at, len, true)
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.held.lock().flushes += 1;
        self.changed.notify_all();
        Ok(())
    }

    fn is_local(&self, at: u64, len: u64) -> bool {
        at + len <= self.size().0 / 2
    }

    fn segments(&self, at: u64, len: u64) -> Result<Vec<Segment>, DiskError> {
        let half = (self.size().0 / 2).clamp(at, at + len);
        let parts = [(half - at, true), (at + len - half, false)];
        let segment = |(len, local)| Segment { len, hole: false, zero: false, local };
        Ok(parts.into_iter().filter(|(len, _)| *len > 0).map(segment).collect())
    }
}

/// A disk that always fails, in the way it is told.
pub struct BrokenDisk(pub fn() -> DiskError);

impl Disk for BrokenDisk {
    fn size(&self) -> Bytes {
        Bytes(1 << 20)
    }

    fn read_at(&self, _into: &mut [u8], _at: u64) -> Result<(), DiskError> {
        Err(self.0())
    }

    fn write_at(&self, _data: &[u8], _at: u64) -> Result<(), DiskError> {
        Err(self.0())
    }

    fn write_zeroes(&self, _at: u64, _len: u64, _punch: bool) -> Result<(), DiskError> {
        Err(self.0())
    }

    fn discard(&self, _at: u64, _len: u64) -> Result<(), DiskError> {
        Err(self.0())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Err(self.0())
    }

    fn segments(&self, _at: u64, _len: u64) -> Result<Vec<Segment>, DiskError> {
        Err(self.0())
    }
}

/// The failure of a worn-out device.
pub fn worn_out() -> DiskError {
    DiskError::Io { deed: "read", at: 0, len: 1, source: io::Error::other("worn out") }
}
