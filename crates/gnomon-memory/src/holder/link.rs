//! Packets over the socket: with a descriptor beside them or without, and no waiting without end.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};

use super::message::LENGTH;

/// What was received.
#[derive(Debug)]
pub(super) struct Received {
    /// The packet; empty when the other side has hung up.
    pub(super) packet: Vec<u8>,
    /// The descriptor beside it.
    pub(super) fd: Option<OwnedFd>,
}

/// Sends a packet, with a descriptor beside it. Does not wait: a peer that does not read is told by `Errno::AGAIN`.
pub(super) fn send(socket: BorrowedFd<'_>, packet: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        let fits = beside.push(SendAncillaryMessage::ScmRights(&fds));
        debug_assert!(fits, "the space is sized for one descriptor");
    }
    // A packet is sent whole or not at all.
    sendmsg(socket, &[IoSlice::new(packet)], &mut beside, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(drop)
}

/// Receives a packet that is there. A packet that is too long, or has more than one descriptor beside it, comes out
/// empty of both and is not an end: it has a length that no packet has.
pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Received, Errno> {
    let mut packet = [0; LENGTH];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut packet)], &mut beside, flags)?;
    let fds: Vec<OwnedFd> = beside
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
            _ => Vec::new(),
        })
        .collect();
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) || fds.len() > 1 {
        return Ok(Received { packet: vec![0], fd: None });
    }
    Ok(Received { packet: packet[..got.bytes.min(LENGTH)].to_vec(), fd: fds.into_iter().next() })
}

/// Waits until there is something to read, or the other side has hung up. False when `timeout` has passed.
pub(super) fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> Result<bool, Errno> {
    let end = std::time::Instant::now().checked_add(timeout);
    loop {
        let left = end.map(|end| end.saturating_duration_since(std::time::Instant::now()));
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)], left.as_ref()) {
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
            Ok(ready) => return Ok(ready > 0),
        }
    }
}
