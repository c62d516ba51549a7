//! Registers a process's guest RAM for write marks: three calls that only the process itself can make.
//!
//! A userfaultfd belongs to the memory of the process that made it, so it has to be made within QEMU. In its
//! asynchronous mode nobody has to read it: a write to a protected page marks the page and goes on. It stays in QEMU
//! for as long as QEMU lives, which is what a daemon that is restarted finds again
//! ([`super::sys::is_registered`]).
//!
//! Source: ioctl_userfaultfd(2); Linux documentation, "Userfaultfd".

use std::io;

use super::{TrackError, inject, inject::Session, maps::Window};

/// `O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY`. The last one spares us a privilege; it limits which faults are
/// *delivered*, and in the asynchronous mode none is.
pub(super) const UFFD_FLAGS: u64 = 0o2000000 | 0o4000 | 1;
/// The only version of the protocol.
pub(super) const UFFD_API: u64 = 0xaa;
/// Marks instead of messages, also for pages that are not there yet, also in shared memory:
/// `WP_ASYNC | WP_UNPOPULATED | WP_HUGETLBFS_SHMEM`.
pub(super) const FEATURES: u64 = 1 << 15 | 1 << 13 | 1 << 12;

const SYS_IOCTL: u64 = 16;
const SYS_CLOSE: u64 = 3;
const SYS_USERFAULTFD: u64 = 323;
/// `_IOWR(0xAA, 0x3F, struct uffdio_api)`, 24 bytes.
const UFFDIO_API: u64 = 0xc018_aa3f;
/// `_IOWR(0xAA, 0x00, struct uffdio_register)`, 32 bytes.
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const MODE_WRITE_PROTECT: u64 = 2;

/// A call within the process that was refused.
struct Refused {
    call: &'static str,
    errno: i32,
}

/// Makes process `pid`, one thread of which is stopped for a fraction of a millisecond, register the windows.
pub(super) fn register(pid: i32, maps: &str, windows: &[Window]) -> Result<(), TrackError> {
    let ranges: Vec<(u64, u64)> = windows.iter().map(|w| (w.at.start, w.at.end - w.at.start)).collect();
    match inject::inject(pid, maps, move |session| within(session, &ranges)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Refused { call, errno })) => {
            Err(TrackError::Register { pid, call, source: io::Error::from_raw_os_error(errno) })
        }
        Err(source) => Err(TrackError::Inject { pid, source }),
    }
}

/// What is done within the process. A failure leaves nothing behind: closing the userfaultfd undoes it.
fn within(session: &mut Session, ranges: &[(u64, u64)]) -> Result<Result<(), Refused>, inject::InjectError> {
    let fd = match session.call(SYS_USERFAULTFD, [UFFD_FLAGS, 0, 0])? {
        Ok(fd) => fd,
        Err(errno) => return Ok(Err(Refused { call: "userfaultfd", errno })),
    };
    let done = set_up(session, fd, ranges)?;
    if done.is_err() {
        let _ = session.call(SYS_CLOSE, [fd, 0, 0])?;
    }
    Ok(done)
}

fn set_up(session: &mut Session, fd: u64, ranges: &[(u64, u64)]) -> Result<Result<(), Refused>, inject::InjectError> {
    // struct uffdio_api { api, features, ioctls }
    let argument = session.put(&[UFFD_API, FEATURES, 0])?;
    if let Err(errno) = session.call(SYS_IOCTL, [fd, UFFDIO_API, argument])? {
        return Ok(Err(Refused { call: "UFFDIO_API", errno }));
    }
    for &(start, length) in ranges {
        // struct uffdio_register { range { start, len }, mode, ioctls }
        let argument = session.put(&[start, length, MODE_WRITE_PROTECT, 0])?;
        if let Err(errno) = session.call(SYS_IOCTL, [fd, UFFDIO_REGISTER, argument])? {
            return Ok(Err(Refused { call: "UFFDIO_REGISTER", errno }));
        }
    }
    Ok(Ok(()))
}
