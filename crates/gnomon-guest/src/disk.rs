//! The disk under the records: opened past the page cache, so that every read really reaches the volume.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use crate::record::RECORD_SIZE;

/// The largest single read: a scan's step, and one fetch unit of the volume plane.
pub const SCAN_STEP: usize = 64 * 1024;

/// Memory that `O_DIRECT` accepts: aligned to the largest logical block of any disk we serve.
#[repr(C, align(4096))]
pub struct Buffer(pub [u8; SCAN_STEP]);

impl Buffer {
    /// A zeroed buffer on the heap.
    pub fn new() -> Box<Buffer> {
        Box::new(Buffer([0; SCAN_STEP]))
    }
}

/// An open disk or file of records.
#[derive(Debug)]
pub struct Disk {
    file: File,
}

impl Disk {
    /// Opens `path` for direct reads and writes. A file system without direct I/O (tmpfs) is opened plainly: there
    /// the page cache is the disk.
    pub fn open(path: &Path) -> io::Result<Disk> {
        let direct = rustix::fs::OFlags::DIRECT.bits() as i32;
        let open = |flags| OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let file = open(direct).or_else(|err| match err.kind() {
            io::ErrorKind::InvalidInput => open(0),
            _ => Err(err),
        })?;
        Ok(Disk { file })
    }

    /// How many whole records fit.
    pub fn records(&self) -> io::Result<u64> {
        use std::io::{Seek, SeekFrom};
        let size = (&self.file).seek(SeekFrom::End(0))?;
        Ok(size / RECORD_SIZE as u64)
    }

    /// Reads `count` records from `first` on, at most a [`SCAN_STEP`] of them. Blocks until they are here.
    pub fn read<'a>(&self, first: u64, count: u64, buffer: &'a mut Buffer) -> io::Result<&'a [u8]> {
        let wanted = (count as usize).saturating_mul(RECORD_SIZE).min(SCAN_STEP);
        let bytes = &mut buffer.0[..wanted];
        self.file.read_exact_at(bytes, first * RECORD_SIZE as u64)?;
        Ok(bytes)
    }

    /// Writes the first [`RECORD_SIZE`] bytes of `buffer` as record `index`. Not durable before [`Disk::sync`].
    pub fn write(&self, index: u64, buffer: &Buffer) -> io::Result<()> {
        self.file.write_all_at(&buffer.0[..RECORD_SIZE], index * RECORD_SIZE as u64)
    }

    /// Returns when everything written before is durable.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
