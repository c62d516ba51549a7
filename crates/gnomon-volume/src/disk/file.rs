//! A disk in a file or block device of this host.
//!
//! Reads and writes go through the page cache; [`Disk::flush`] is `fdatasync`. Holes are kept: zeroes are written
//! by deallocation where the file system can, and [`Disk::segments`] asks it where data is.

use std::{
    fs::{File, OpenOptions},
    io::{self, IoSliceMut, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use gnomon_terms::{Bytes, ErrorKind};
use rustix::{
    fs::{FallocateFlags, SeekFrom as Probe, fallocate, seek},
    io::{Errno, ReadWriteFlags, preadv2},
};

use super::{Disk, DiskError, Segment};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every write fails.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// Why a file could not become a disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be opened, created or measured.
    #[error("cannot {deed} {path}: check that it exists and that this user may")]
    Io {
        /// open, create, measure or size.
        deed: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Neither a regular file nor a block device.
    #[error("{path} is neither a regular file nor a block device")]
    NotADisk {
        /// Which file.
        path: PathBuf,
    },
    /// The file is not as large as it should be.
    #[error("{path} is {found} bytes and should be {expected}: it is another image, or was cut or grown")]
    WrongSize {
        /// Which file.
        path: PathBuf,
        /// What was told.
        expected: u64,
        /// What was found.
        found: u64,
    },
}

impl OpenError {
    /// What the caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            OpenError::Io { .. } => ErrorKind::Unavailable,
            OpenError::NotADisk { .. } => ErrorKind::Refused,
            OpenError::WrongSize { .. } => ErrorKind::Corrupt,
        }
    }
}

/// Bytes in a raw file or block device.
pub struct FileDisk {
    file: File,
    size: u64,
    /// Block devices do not tell where data is.
    sparse: bool,
    no_nowait: AtomicBool,
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
    no_reserve: AtomicBool,
}

impl FileDisk {
    /// Opens a raw image or block device. With `expected`, a file of another size is refused.
    pub fn open(path: &Path, expected: Option<Bytes>, mode: Mode) -> Result<FileDisk, OpenError> {
        let file =
            OpenOptions::new().read(true).write(mode == Mode::ReadWrite).open(path).map_err(failed("open", path))?;
        let (size, sparse) = measure(&file, path)?;
        match expected {
            Some(Bytes(expected)) if expected != size => {
                Err(OpenError::WrongSize { path: path.to_path_buf(), expected, found: size })
            }
            _ => Ok(FileDisk::over(file, size, sparse)),
        }
    }

    /// Makes a new sparse file of `size` and opens it. A file that is there and holds nothing (a crash left it before
    /// its first byte) is made anew; one that holds something is never replaced.
    pub fn create(path: &Path, size: Bytes) -> Result<FileDisk, OpenError> {
        let mut new = OpenOptions::new();
        new.read(true).write(true);
        let file = match new.clone().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && holds_nothing(path) => new.open(path),
            made => made,
        };
        let file = file.map_err(failed("create", path))?;
        file.set_len(size.0).map_err(failed("size", path))?;
        Ok(FileDisk::over(file, size.0, true))
    }

    fn over(file: File, size: u64, sparse: bool) -> FileDisk {
        let unknown = || AtomicBool::new(false);
        let (no_nowait, no_punch, no_zero_range, no_reserve) = (unknown(), unknown(), unknown(), unknown());
        FileDisk { file, size, sparse, no_nowait, no_punch, no_zero_range, no_reserve }
    }

    /// Tries `fallocate` with `flags`; false when the file system cannot, which is then remembered in `cannot`.
    fn allocate(&self, flags: FallocateFlags, cannot: &AtomicBool, at: u64, len: u64) -> io::Result<bool> {
        if cannot.load(Ordering::Relaxed) {
            return Ok(false);
        }
        loop {
            match fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, at, len) {
                Ok(()) => return Ok(true),
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                    cannot.store(true, Ordering::Relaxed);
                    return Ok(false);
                }
                // Block devices refuse ranges that are not whole sectors; the next way may take them.
                Err(Errno::INVAL) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes zeroes the slow way.
    fn fill_with_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        const STEP: u64 = 256 << 10;
        static ZEROES: [u8; STEP as usize] = [0; STEP as usize];
        let mut done = 0;
        while done < len {
            let step = STEP.min(len - done);
            self.file.write_all_at(&ZEROES[..step as usize], at + done)?;
            done += step;
        }
        Ok(())
    }

    /// Where the run that starts at `at` ends, and whether it is a hole.
    fn run(&self, at: u64) -> io::Result<(u64, bool)> {
        let data = match seek(&self.file, Probe::Data(at)) {
            Ok(data) => data,
            // No data from here to the end of the file.
            Err(Errno::NXIO) => return Ok((self.size, true)),
            Err(error) => return Err(error.into()),
        };
        if data > at {
            return Ok((data, true));
        }
        match seek(&self.file, Probe::Hole(at)) {
            // A hole at `at` after data at `at`: another thread has just punched it.
            Ok(hole) => Ok((hole.max(at + 1), false)),
            Err(Errno::NXIO) => Ok((self.size, false)),
            Err(error) => Err(error.into()),
        }
    }
}

impl Disk for FileDisk {
    fn size(&self) -> Bytes {
        Bytes(self.size)
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> Result<(), DiskError> {
        let len = into.len() as u64;
        self.file.read_exact_at(into, at).map_err(DiskError::io("read", at, len))
    }

    fn write_at(&self, data: &[u8], at: u64) -> Result<(), DiskError> {
        self.file.write_all_at(data, at).map_err(DiskError::io("write", at, data.len() as u64))
    }

    fn write_zeroes(&self, at: u64, len: u64, punch: bool) -> Result<(), DiskError> {
        let done = || -> io::Result<()> {
            let kept = punch && self.allocate(FallocateFlags::PUNCH_HOLE, &self.no_punch, at, len)?;
            if !kept && !self.allocate(FallocateFlags::ZERO_RANGE, &self.no_zero_range, at, len)? {
                self.fill_with_zeroes(at, len)?;
            }
            Ok(())
        };
        if len == 0 { Ok(()) } else { done().map_err(DiskError::io("zero", at, len)) }
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), DiskError> {
        self.write_zeroes(at, len, true)
    }

    fn reserve(&self, at: u64, len: u64) -> Result<(), DiskError> {
        let reserved = self.allocate(FallocateFlags::empty(), &self.no_reserve, at, len);
        reserved.map(drop).map_err(DiskError::io("reserve", at, len))
    }

    fn flush(&self) -> Result<(), DiskError> {
        self.file.sync_data().map_err(DiskError::io("flush", 0, self.size))
    }

    /// From the page cache or not at all; on file systems that cannot tell, as [`Disk::read_at`].
    fn try_read_at(&self, into: &mut [u8], at: u64) -> Result<bool, DiskError> {
        let len = into.len();
        if !self.no_nowait.load(Ordering::Relaxed) {
            match preadv2(&self.file, &mut [IoSliceMut::new(into)], at, ReadWriteFlags::NOWAIT) {
                // Short: only the first pages are in memory.
                Ok(got) => return Ok(got == len),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => self.no_nowait.store(true, Ordering::Relaxed),
                Err(error) => return Err(DiskError::io("read", at, len as u64)(error.into())),
            }
        }
        self.read_at(into, at)?;
        Ok(true)
    }

    fn segments(&self, at: u64, len: u64) -> Result<Vec<Segment>, DiskError> {
        if !self.sparse {
            let whole = Segment { len, hole: false, zero: false, local: true };
            return Ok(Vec::from_iter((len > 0).then_some(whole)));
        }
        let end = at + len;
        let mut segments = Vec::new();
        let mut from = at;
        while from < end {
            let (to, hole) = self.run(from).map_err(DiskError::io("map", at, len))?;
            let to = to.min(end);
            segments.push(Segment { len: to - from, hole, zero: hole, local: true });
            from = to;
        }
        Ok(segments)
    }
}

/// Size of a regular file or block device, and whether it can tell holes from data.
fn measure(file: &File, path: &Path) -> Result<(u64, bool), OpenError> {
    let kind = file.metadata().map_err(failed("measure", path))?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(OpenError::NotADisk { path: path.to_path_buf() });
    }
    let mut cursor = file;
    let size = cursor.seek(SeekFrom::End(0)).map_err(failed("measure", path))?;
    let sparse = kind.is_file() && !matches!(seek(file, Probe::Hole(0)), Err(Errno::INVAL | Errno::OPNOTSUPP));
    Ok((size, sparse))
}

/// Whether a regular file has no storage at all: all it reads as is zeroes.
fn holds_nothing(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.blocks() == 0)
}

fn failed(deed: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_path_buf();
    move |source| OpenError::Io { deed, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const K64: u64 = 64 << 10;

    fn disk(size: u64) -> (tempfile::TempDir, FileDisk) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let disk = FileDisk::create(&dir.path().join("disk"), Bytes(size)).expect("a new file");
        (dir, disk)
    }

    fn bytes(disk: &FileDisk, at: u64, len: usize) -> Vec<u8> {
        let mut into = vec![0xEE; len];
        disk.read_at(&mut into, at).expect("a read within the disk");
        into
    }

    #[test]
    fn what_is_written_is_read() {
        let (_dir, disk) = disk(1 << 20);
        disk.write_at(b"gnomon", 4093).unwrap();
        assert_eq!(bytes(&disk, 4090, 12), b"\0\0\0gnomon\0\0\0");
        let mut now = [0; 6];
        assert!(disk.try_read_at(&mut now, 4093).unwrap(), "just written, so in memory");
        assert_eq!(&now, b"gnomon");
        disk.flush().unwrap();
    }

    #[test]
    fn zeroes_are_zeroes_whichever_way() {
        for punch in [false, true] {
            for (at, len) in [(K64, K64), (K64 + 100, 5000), (0, 1), (7, 0), (4 * K64 - 1, 1)] {
                let (_dir, disk) = disk(4 * K64);
                let mut want = vec![0xAB; 4 * K64 as usize];
                disk.write_at(&want, 0).unwrap();
                disk.write_zeroes(at, len, punch).unwrap();
                want[at as usize..(at + len) as usize].fill(0);
                assert!(bytes(&disk, 0, want.len()) == want, "{at}+{len} punch {punch}");
            }
        }
    }

    #[test]
    fn zeroes_do_not_need_a_helpful_file_system() {
        let (_dir, disk) = disk(4 * K64);
        disk.no_punch.store(true, Ordering::Relaxed);
        disk.no_zero_range.store(true, Ordering::Relaxed);
        disk.no_nowait.store(true, Ordering::Relaxed);
        disk.write_at(&vec![1; 4 * K64 as usize], 0).unwrap();
        disk.discard(5, 3 * K64).unwrap();
        let mut now = vec![9; 3 * K64 as usize];
        assert!(disk.try_read_at(&mut now, 5).unwrap());
        assert!(now.iter().all(|&byte| byte == 0));
        assert_eq!(bytes(&disk, 5 + 3 * K64, 1), [1]);
    }

    #[test]
    fn segments_tell_holes_from_data() {
        let (_dir, disk) = disk(16 * K64);
        let hole = |len| Segment { len, hole: true, zero: true, local: true };
        assert_eq!(disk.segments(0, 16 * K64).unwrap(), [hole(16 * K64)]);
        disk.write_at(&vec![1; K64 as usize], 4 * K64).unwrap();
        disk.flush().unwrap();
        let data = Segment { len: K64, hole: false, zero: false, local: true };
        assert_eq!(disk.segments(0, 16 * K64).unwrap(), [hole(4 * K64), data, hole(11 * K64)]);
        assert_eq!(disk.segments(4 * K64, 100).unwrap(), [Segment { len: 100, ..data }]);
        assert_eq!(disk.segments(3, 0).unwrap(), []);
        disk.discard(4 * K64, K64).unwrap();
        assert_eq!(disk.segments(0, 16 * K64).unwrap(), [hole(16 * K64)]);
    }

    #[test]
    fn a_wrong_file_is_refused() {
        let (dir, _disk) = disk(8192);
        let path = dir.path().join("disk");
        assert!(FileDisk::open(&path, Some(Bytes(8192)), Mode::ReadOnly).is_ok());
        for expected in [4096, 16384] {
            let error = FileDisk::open(&path, Some(Bytes(expected)), Mode::ReadWrite).err().expect("a wrong size");
            assert!(matches!(error, OpenError::WrongSize { found: 8192, .. }), "{error}");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
        assert!(matches!(FileDisk::open(dir.path(), None, Mode::ReadOnly), Err(OpenError::NotADisk { .. })));
        assert!(matches!(FileDisk::open(&dir.path().join("no"), None, Mode::ReadOnly), Err(OpenError::Io { .. })));
    }

    #[test]
    fn only_a_file_that_holds_nothing_is_made_anew() {
        let (dir, first) = disk(8192);
        let path = dir.path().join("disk");
        let again = FileDisk::create(&path, Bytes(16384)).expect("a crash left it");
        assert_eq!(again.size(), Bytes(16384));
        first.write_at(&[1], 0).unwrap();
        first.flush().unwrap();
        assert!(matches!(FileDisk::create(&path, Bytes(8192)), Err(OpenError::Io { deed: "create", .. })));
        assert_eq!(bytes(&again, 0, 1), [1]);
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).expect("a link");
        assert!(FileDisk::create(&dir.path().join("link"), Bytes(1)).is_err(), "not somebody else's file");
    }

    #[test]
    fn a_read_only_disk_does_not_write() {
        let (dir, _disk) = disk(8192);
        let disk = FileDisk::open(&dir.path().join("disk"), None, Mode::ReadOnly).unwrap();
        assert!(matches!(disk.write_at(&[1], 0), Err(DiskError::Io { deed: "write", .. })));
    }

    #[test]
    fn a_full_disk_says_so() {
        let full = OpenOptions::new().read(true).write(true).open("/dev/full").expect("/dev/full");
        let disk = FileDisk::over(full, 4096, false);
        let error = disk.write_at(&[1; 512], 1024).expect_err("nothing fits");
        assert!(matches!(error, DiskError::Full { at: 1024, len: 512 }), "{error}");
    }
}
