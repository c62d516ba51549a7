//! What the kernel tells of devices: that one has come, or has got what it lacked.
//!
//! Source: netlink(7), `NETLINK_KOBJECT_UEVENT`; what is told is not read, only that it was.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketType, bind,
        netlink::{KOBJECT_UEVENT, SocketAddrNetlink},
        recv, socket,
    },
};

/// The group to which the kernel itself speaks; others hear what udev makes of it.
const KERNEL: u32 = 1;

/// All that is told since it was opened.
pub struct Uevents(OwnedFd);

impl Uevents {
    /// From here on nothing is missed.
    pub fn open() -> io::Result<Uevents> {
        let kernel = socket(AddressFamily::NETLINK, SocketType::DGRAM, Some(KOBJECT_UEVENT))?;
        bind(&kernel, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Uevents(kernel))
    }

    /// Waits until something was told that was not waited for yet; false when that took longer than `patience`.
    pub fn wait(&self, patience: Duration) -> io::Result<bool> {
        let patience = Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() };
        let mut told = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut told, Some(&patience)) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        match recv(&self.0, &mut [0; 1], RecvFlags::DONTWAIT) {
            // More was told than there was room for: something was told.
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_when_nothing_is_told() {
        let told = Uevents::open().expect("anybody may listen");
        while told.wait(Duration::ZERO).expect("asked") {}
    }

    /// Asked to, the kernel tells of a device once more; that takes root.
    #[test]
    fn what_the_kernel_tells_is_heard() {
        let told = Uevents::open().expect("anybody may listen");
        if std::fs::write("/sys/class/mem/null/uevent", "change").is_ok() {
            assert!(told.wait(Duration::from_secs(60)).expect("heard"));
        }
    }
}
