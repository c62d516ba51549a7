//! Where a journal's bytes are.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use gnomon_terms::Bytes;
use rustix::{
    fs::{FallocateFlags, fallocate},
    io::Errno,
};

/// Bytes that can be written anywhere and made durable. One owner; all calls block.
pub trait Medium: Send {
    /// How many there are; constant for the life of the value.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `into` with the bytes from `at` on.
    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()>;

    /// Replaces the bytes from `at` on.
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()>;

    /// Makes everything written so far durable.
    fn sync(&mut self) -> io::Result<()>;

    /// 256 random bits, drawn anew.
    fn draw(&self) -> io::Result<[u8; 32]> {
        let mut bits = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bits)?;
        Ok(bits)
    }
}

/// A file of its own.
pub struct FileMedium {
    file: File,
    len: u64,
}

impl FileMedium {
    /// Opens the file in `path`, or makes one of `len`. All of it has storage, where the file system can tell: a journal
    /// never finds the disk full.
    pub fn open(path: &Path, len: Bytes) -> io::Result<FileMedium> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let found = file.metadata()?.len();
        let len = if found == 0 { len.0 } else { found };
        match fallocate(&file, FallocateFlags::empty(), 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => file.set_len(len)?,
            done => done?,
        }
        file.sync_all()?;
        Ok(FileMedium { file, len })
    }
}

impl Medium for FileMedium {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(into, at)
    }

    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        self.file.write_all_at(data, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_its_length_and_has_its_storage() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("journal");
        let mut medium = FileMedium::open(&path, Bytes(1 << 20)).expect("made");
        medium.write_at(b"gnomon", 4000).expect("written");
        medium.sync().expect("durable");
        let metadata = std::fs::metadata(&path).expect("there");
        assert!(metadata.len() == 1 << 20 && metadata.blocks() * 512 >= 1 << 20);
        let again = FileMedium::open(&path, Bytes(1 << 30)).expect("opened");
        let mut bytes = [0; 6];
        again.read_at(&mut bytes, 4000).expect("read");
        assert_eq!((again.len(), &bytes), (1 << 20, b"gnomon"));
        let full = File::options().read(true).write(true).open("/dev/full").expect("/dev/full");
        let error = FileMedium { file: full, len: 1 << 20 }.write_at(&[1; 512], 0).expect_err("nothing fits");
        assert!(matches!(super::super::JournalError::io("written")(error), super::super::JournalError::NoSpace));
        assert_ne!(again.draw().expect("bits"), again.draw().expect("bits"));
    }
}
