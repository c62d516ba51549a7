//! How a QEMU is given the memory that a state is written to or read from.

use std::{fs::File, os::fd::AsFd};

use crate::{
    qmp::{Qmp, QmpError},
    spec::QemuVersion,
};

/// The name under which the descriptor is given, where it is given by name.
const NAME: &str = "gnomon-state";

/// The set that the descriptor is in, where it is given in a set. One that another capture or load has left behind is
/// closed first, so there never is more than one.
const SET: u64 = 0x676e_6f6d;

/// The first QEMU that wants `file:` for files; it warns of `fd:`.
const FILES_ARE_FILES: QemuVersion = QemuVersion { major: 9, minor: 1, micro: 0 };

/// Memory that has been given to a QEMU, and is taken back in the end.
#[derive(Debug)]
pub(super) struct Channel {
    qmp: Qmp,
    given: Given,
    /// Our copy. QEMU's shares its position.
    file: File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Given {
    ByName,
    AsSet,
    /// Nothing is to be taken back.
    Left,
}

impl Channel {
    /// Gives QEMU an open file.
    pub(super) fn give(qmp: &Qmp, file: File) -> Result<Channel, QmpError> {
        let given = match truncates(qmp)? {
            false => qmp.getfd(NAME, file.as_fd()).map(|()| Given::ByName)?,
            true => {
                // There is none, but after a takeover that was undone.
                let _ = qmp.remove_fd(SET);
                qmp.add_fd(SET, file.as_fd()).map(|()| Given::AsSet)?
            }
        };
        Ok(Channel { qmp: qmp.clone(), given, file })
    }

    /// What to call it in `migrate` and `migrate-incoming`.
    pub(super) fn uri(&self) -> String {
        match self.given {
            Given::AsSet => format!("file:/dev/fdset/{SET}"),
            Given::ByName | Given::Left => format!("fd:{NAME}"),
        }
    }

    /// Leaves it with QEMU, whose time is dear now: a guest waits.
    pub(super) fn leave(mut self) {
        self.given = Given::Left;
    }

    /// How far QEMU has come in it.
    pub(super) fn position(&self) -> u64 {
        // A file of memory always tells its position.
        rustix::fs::tell(&self.file).unwrap_or(0)
    }
}

/// Whether this QEMU begins to write by truncating.
pub(super) fn truncates(qmp: &Qmp) -> Result<bool, QmpError> {
    Ok(qmp.version()? >= FILES_ARE_FILES)
}

impl Drop for Channel {
    fn drop(&mut self) {
        // QEMU may be gone, or may have used and closed it, which is as well.
        let _ = match self.given {
            Given::ByName => self.qmp.closefd(NAME),
            Given::AsSet => self.qmp.remove_fd(SET),
            Given::Left => Ok(()),
        };
    }
}
