//! The daemon's side: finds a holder or starts one, and is certain of what it has.

use std::{
    os::fd::{AsFd, OwnedFd},
    process::Child,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt},
    process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{
    HolderCommand, HolderError,
    link::{readable, receive, send},
    message::{Answer, Request},
};
use crate::block::{Block, BlockId, blocks_of};

/// How long a killed process may take to end: its memory has to be given back first, a fifth of a second a GiB.
const END_PATIENCE: Duration = Duration::from_secs(120);

/// How often a daemon looks whether the one before it is gone: a process that was killed closes its sockets last. The holder tells nobody when its daemon has gone.
const BUSY_LOOK: Duration = Duration::from_millis(50);

/// The holder, as the daemon knows it.
#[derive(Debug)]
pub(crate) struct Holder {
    command: HolderCommand,
    link: Option<Link>,
    /// The process, when we have started it and not seen it end.
    child: Option<Child>,
}

/// A connection.
#[derive(Debug)]
struct Link {
    socket: OwnedFd,
    pidfd: OwnedFd,
    pid: i32,
}

impl Holder {
    /// Looks for a holder that an earlier daemon has left, and takes what it has. None is started: that is done when there
    /// is something to hold. One that does not answer, or is of another version, is ended after its blocks were taken.
    ///
    /// Refused with [`HolderError::Busy`] when another daemon uses it for longer than the command allows. Blocks for as
    /// long, and longer when a process has to be ended.
    pub(crate) fn find(command: HolderCommand) -> Result<(Holder, Vec<Block>), HolderError> {
        let mut holder = Holder { command, link: None, child: None };
        let Some(link) = holder.dial()? else { return Ok((holder, Vec::new())) };
        let pid = link.pid;
        let answers = holder.greet(link)?;
        let blocks = blocks_of(pid)?;
        if answers.is_none() {
            holder.end()?;
        }
        Ok((holder, blocks))
    }

    /// Whether there is one that lives. One system call.
    pub(crate) fn is_up(&self) -> bool {
        // A process that has ended makes its pidfd readable.
        self.link.as_ref().is_some_and(|link| readable(link.pidfd.as_fd(), Duration::ZERO) == Ok(false))
    }

    /// The process.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.link.as_ref().map(|link| link.pid)
    }

    /// Makes sure that there is one. True when it is a new one, which holds nothing.
    pub(crate) fn ensure(&mut self) -> Result<bool, HolderError> {
        if self.is_up() {
            return Ok(false);
        }
        self.end()?;
        self.child = Some(self.command.start()?);
        let link = self.dial()?.ok_or_else(|| HolderError::Start {
            program: self.command.program.clone(),
            why: "it has ended again".to_owned(),
        })?;
        let pid = link.pid;
        let what = match self.greet(link)? {
            Some(0) => return Ok(true),
            Some(_) => "has blocks of another daemon from its start on",
            None => "does not answer from its start on",
        };
        self.end().and(Err(HolderError::Silent { pid, what }))
    }

    /// Has a block kept. After an error it is not kept, or the holder is ended.
    pub(crate) fn keep(&mut self, block: &Block) -> Result<(), HolderError> {
        let id = block.id();
        match self.ask(Request::Keep(id), Some(block)) {
            Ok(Answer::Done(_)) => Ok(()),
            Ok(Answer::Full) => Err(HolderError::NotKept { id, why: "it has no room for more" }),
            Ok(Answer::Strange) => Err(HolderError::NotKept { id, why: "it is not whole, or held already" }),
            Ok(Answer::Busy) => Err(HolderError::Busy { path: self.command.socket.clone() }),
            // It may yet answer, and that would be taken for the answer to what is asked next.
            Err(error) => self.end().and(Err(error)),
        }
    }

    /// Has a block forgotten. When this returns without an error it is certain that the holder does not have it, if need
    /// be because there is no holder any more. Blocks for the holder's answer, and for its end when it does not answer.
    pub(crate) fn forget(&mut self, id: BlockId) -> Result<(), HolderError> {
        if self.link.is_none() {
            return Ok(());
        }
        match self.ask(Request::Forget(id), None) {
            Ok(Answer::Done(_)) => Ok(()),
            Ok(_) | Err(_) => self.end(),
        }
    }

    /// Ends the holder, whatever it has, and waits until it is gone.
    fn end(&mut self) -> Result<(), HolderError> {
        if let Some(link) = &self.link {
            // A process that has ended already cannot be sent a signal, and need not be.
            let _ = pidfd_send_signal(&link.pidfd, Signal::KILL);
            if readable(link.pidfd.as_fd(), END_PATIENCE) != Ok(true) {
                return Err(HolderError::Undead { pid: link.pid, after: END_PATIENCE });
            }
        }
        self.link = None;
        if let Some(mut child) = self.child.take() {
            // It has ended, or it is one that was not needed and ends by itself: nothing depends on its status.
            let _ = child.try_wait();
        }
        Ok(())
    }

    /// Connects. `None` when nobody listens.
    fn dial(&self) -> Result<Option<Link>, HolderError> {
        let failed = |what| move |e: Errno| self.socket_error(what, e);
        // Without waiting: a holder that hangs has a queue that may be full.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(failed("make"))?;
        let address = SocketAddrUnix::new(&self.command.socket).map_err(failed("name"))?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
            Err(e) => return Err(self.socket_error("connect to", e)),
        }
        // Who listens, not who has accepted us: it is told even when nobody ever does.
        let peer = sockopt::socket_peercred(&socket).map_err(failed("look at"))?;
        let pidfd = match pidfd_open(peer.pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(None),
            opened => opened.map_err(failed("look behind"))?,
        };
        Ok(Some(Link { socket, pidfd, pid: peer.pid.as_raw_nonzero().get() }))
    }

    /// Says hello, and waits for another daemon to go. Returns how many blocks it has; `None` when it does not answer, or
    /// not as this version does.
    fn greet(&mut self, link: Link) -> Result<Option<u64>, HolderError> {
        self.link = Some(link);
        let end = Instant::now() + self.command.busy;
        loop {
            match self.ask(Request::Hello, None) {
                Ok(Answer::Done(held)) => return Ok(Some(held)),
                Ok(Answer::Busy) if Instant::now() < end => std::thread::sleep(BUSY_LOOK),
                Ok(Answer::Busy) => {
                    self.link = None;
                    return Err(HolderError::Busy { path: self.command.socket.clone() });
                }
                Ok(_) | Err(_) => return Ok(None),
            }
            match self.dial()? {
                Some(link) => self.link = Some(link),
                None => return Ok(None),
            }
        }
    }

    /// One request and its answer.
    fn ask(&self, request: Request, block: Option<&Block>) -> Result<Answer, HolderError> {
        let failed = |what| move |e: Errno| self.socket_error(what, e);
        let link = self.link.as_ref().ok_or_else(|| self.socket_error("use", Errno::NOTCONN))?;
        let silent = |what| HolderError::Silent { pid: link.pid, what };
        // A holder that is busy has answered before it was asked: what it said is read below.
        let sent = send(link.socket.as_fd(), &request.encode(), block.map(AsFd::as_fd));
        sent.or_else(|e| if e == Errno::PIPE { Ok(()) } else { Err(e) }).map_err(failed("write to"))?;
        if !readable(link.socket.as_fd(), self.command.patience).map_err(failed("wait at"))? {
            return Err(silent("does not answer"));
        }
        // A holder that hangs up before it has read what we say resets the connection, which is told once, before what it
        // has said.
        let received = match receive(link.socket.as_fd()) {
            Err(Errno::CONNRESET) => receive(link.socket.as_fd()),
            received => received,
        };
        let received = received.map_err(failed("read from"))?;
        match Answer::decode(&received.packet) {
            Some(answer) => Ok(answer),
            None if received.packet.is_empty() => Err(silent("has hung up")),
            None => Err(silent("answers what this version does not understand")),
        }
    }

    fn socket_error(&self, what: &'static str, e: Errno) -> HolderError {
        HolderError::Socket { what, path: self.command.socket.clone(), source: e.into() }
    }
}
