//! The state of devices as bytes.

use std::{
    fs::File,
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::PathBuf,
};

use gnomon_terms::Bytes;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use super::StateError;
use crate::stream::{DEVICES_LIMIT, Inventory, read_stream};

/// The most bytes of a state, ROMs included. That of a guest with ten disks has 1.2 MB.
pub const STATE_LIMIT: Bytes = Bytes(DEVICES_LIMIT);

/// The state of a guest's devices at one moment: a migration stream of QEMU without RAM. It is in memory, and gone with
/// the last handle.
#[derive(Debug)]
pub struct StateBlob {
    file: File,
    length: u64,
}

impl StateBlob {
    /// A blob that came from elsewhere. It is looked at when it is loaded, not before.
    pub fn of_bytes(bytes: &[u8]) -> Result<StateBlob, StateError> {
        let length = bytes.len() as u64;
        if length > STATE_LIMIT.0 {
            return Err(StateError::TooLarge { limit: STATE_LIMIT });
        }
        let file = memory()?;
        file.write_all_at(bytes, 0).map_err(|e| StateError::blob("write to", e))?;
        Ok(StateBlob { file, length })
    }

    /// Room for a state.
    pub(super) fn room() -> Result<StateBlob, StateError> {
        Ok(StateBlob { file: memory()?, length: 0 })
    }

    /// Has the kernel hold whoever writes into it to `limit` bytes. Only for a writer who does not truncate first.
    pub(super) fn confine(&self, limit: Bytes) -> Result<(), StateError> {
        let failed = |e: rustix::io::Errno| StateError::blob("make", e);
        ftruncate(&self.file, limit.0).map_err(failed)?;
        fcntl_add_seals(&self.file, SealFlags::GROW).map_err(failed)
    }

    /// Cuts the room to what has been written.
    pub(super) fn cut(&mut self, length: u64) -> Result<(), StateError> {
        ftruncate(&self.file, length).map_err(|e| StateError::blob("cut", e))?;
        self.length = length;
        Ok(())
    }

    /// Another open file of the same memory, positioned at its beginning, for one direction only.
    pub(super) fn reopen(&self, write: bool) -> Result<File, StateError> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        File::options().read(!write).write(write).open(path).map_err(|e| StateError::blob("open", e))
    }

    /// Its length.
    pub fn length(&self) -> Bytes {
        Bytes(self.length)
    }

    /// A copy of its bytes, to be sent or stored.
    pub fn bytes(&self) -> Result<Vec<u8>, StateError> {
        let mut bytes = vec![0; self.length as usize];
        self.file.read_exact_at(&mut bytes, 0).map_err(|e| StateError::blob("read", e))?;
        Ok(bytes)
    }

    /// What is in it. About a millisecond.
    pub fn inspect(&self) -> Result<Inventory, StateError> {
        Ok(read_stream(self.reopen(false)?)?)
    }
}

fn memory() -> Result<File, StateError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    memfd_create("gnomon-state", flags).map(File::from).map_err(|e| StateError::blob("make", e))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn bytes_come_back() {
        let blob = StateBlob::of_bytes(b"state").expect("made");
        assert_eq!((blob.length(), blob.bytes().expect("read")), (Bytes(5), b"state".to_vec()));
        assert!(matches!(blob.inspect(), Err(StateError::Stream(_))));
    }

    #[test]
    fn a_room_holds_what_it_was_made_for_and_no_more() {
        let mut blob = StateBlob::room().expect("made");
        blob.confine(Bytes(8)).expect("confined");
        let mut writer = blob.reopen(true).expect("opened");
        writer.write_all(b"12345").expect("there is room");
        assert!(writer.write_all(b"67890").is_err());
        blob.cut(5).expect("cut");
        assert_eq!(blob.bytes().expect("read"), b"12345");
    }
}
