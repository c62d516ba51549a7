//! One stop of another process, and the calls made in it.
//!
//! The order of steps is such that the process is whole at every moment at which we could die: what the stub needs is
//! written before the registers point to it, and the registers point back before anything is taken away. See the
//! parent module for the picture.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use libc::user_regs_struct as Registers;
use rustix::process::{Pid, Signal, kill_process};

use super::{
    InjectError,
    ptrace::{Stop, Tracee},
    stub,
};
use crate::dirty::maps::mappings;

/// The code segment of a 64-bit thread.
const CODE_SEGMENT_64: u64 = 0x33;

/// A process that is stopped and makes calls for us.
pub(in super::super) struct Session {
    pid: i32,
    tracee: Tracee,
    saved: Registers,
    mask: u64,
    /// Where the stub's block is.
    block: u64,
    /// What was in its memory where we have written, in the order of writing.
    before: Vec<(u64, u64)>,
    /// Signals that cannot be blocked and came meanwhile; sent again at the end.
    held: Vec<i32>,
}

impl Session {
    /// Stops the process, does the work, lets the process go. Nothing is done when `given_up` is set by the time it
    /// has stopped.
    pub(super) fn run<T>(
        pid: i32,
        maps: &str,
        given_up: &AtomicBool,
        work: impl FnOnce(&mut Session) -> Result<T, InjectError>,
    ) -> Result<T, InjectError> {
        let tracee = stop(pid)?;
        if given_up.load(SeqCst) {
            return Err(InjectError::Hangs);
        }
        let mut session = Session::open(pid, tracee, maps)?;
        let done = session.enter(maps).and_then(|()| work(&mut session));
        let closed = session.close();
        let done = done?;
        closed.map(|()| done)
    }

    fn open(pid: i32, tracee: Tracee, maps: &str) -> Result<Session, InjectError> {
        let saved = tracee.registers()?;
        if saved.cs != CODE_SEGMENT_64 || maps.is_empty() {
            return Err(InjectError::Architecture);
        }
        let mask = tracee.signal_mask()?;
        let block = stub::block_below(saved.rsp);
        Ok(Session { pid, tracee, saved, mask, block, before: Vec::new(), held: Vec::new() })
    }

    /// Prepares the stub and makes the thread run it from its next step on.
    fn enter(&mut self, maps: &str) -> Result<(), InjectError> {
        let code = self.find_room(maps)?;
        let back = stub::resumed(&self.saved);
        self.write(self.block, &stub::block(&back, self.mask))?;
        self.write(code, &stub::code(back.rip))?;
        self.tracee.set_registers(&stub::entry(&self.saved, code, self.block))?;
        // After the registers: the stub knows the mask and would restore it.
        self.tracee.set_signal_mask(u64::MAX)
    }

    /// Makes a call. The inner error is the call's own, as a number.
    pub(in super::super) fn call(
        &mut self,
        number: u64,
        arguments: [u64; 3],
    ) -> Result<Result<u64, i32>, InjectError> {
        for (index, argument) in arguments.into_iter().enumerate() {
            self.tracee.poke(self.block + stub::ARGUMENTS + 8 * index as u64, argument)?;
        }
        // Last: a call is there whole or not at all.
        self.tracee.poke(self.block, number)?;
        self.run_to_call()?;
        let found = self.tracee.registers()?.orig_rax;
        if found != number {
            return Err(InjectError::Strayed { wanted: number, found });
        }
        self.run_to_call()?;
        let result = self.tracee.registers()?.rax as i64;
        Ok(match result {
            -4095..0 => Err(-result as i32),
            _ => Ok(result as u64),
        })
    }

    /// Puts words where a call's argument may point, and tells their address. They last until the next `put`; there
    /// is room for nine.
    pub(in super::super) fn put(&mut self, words: &[u64]) -> Result<u64, InjectError> {
        let address = self.block + stub::ROOM;
        for (index, word) in words.iter().take(stub::ROOM_WORDS).enumerate() {
            self.tracee.poke(address + 8 * index as u64, *word)?;
        }
        Ok(address)
    }

    /// Takes the thread back to where it was, and lets it go.
    fn close(mut self) -> Result<(), InjectError> {
        // It may be at the exit of a call, where restored registers would not be looked at by whatever begins
        // interrupted calls again and delivers signals. So it is stopped there.
        self.tracee.interrupt()?;
        loop {
            self.tracee.resume(0)?;
            match self.tracee.wait()? {
                Stop::Event(_) => break,
                Stop::Signal(signal) => self.held.push(signal),
                Stop::Call => {}
            }
        }
        self.tracee.set_signal_mask(self.mask)?;
        self.tracee.set_registers(&self.saved)?;
        for (address, word) in self.before.drain(..).rev() {
            self.tracee.poke(address, word)?;
        }
        let (pid, held) = (self.pid, self.held);
        drop(self.tracee);
        for signal in held {
            resend(pid, signal);
        }
        Ok(())
    }

    /// Lets it run to the entry or exit of its next call.
    fn run_to_call(&mut self) -> Result<(), InjectError> {
        loop {
            self.tracee.resume(0)?;
            match self.tracee.wait()? {
                Stop::Call => return Ok(()),
                Stop::Signal(signal) => self.held.push(signal),
                Stop::Event(_) => {}
            }
        }
    }

    /// Writes words and remembers what was there.
    fn write(&mut self, address: u64, words: &[u64]) -> Result<(), InjectError> {
        for (index, word) in words.iter().enumerate() {
            let at = address + 8 * index as u64;
            self.before.push((at, self.tracee.peek(at)?));
            self.tracee.poke(at, *word)?;
        }
        Ok(())
    }

    /// Finds padding behind an executable segment of a file: the last bytes of a mapping, all zero for much longer
    /// than the stub is, so that they are no table of zeros that somebody reads.
    fn find_room(&self, maps: &str) -> Result<u64, InjectError> {
        const ZEROS: u64 = 4 * stub::CODE_SIZE;
        let segments = mappings(maps).filter(|m| m.access == "r-xp" && m.path.starts_with('/'));
        for end in segments.filter(|m| m.at.end - m.at.start > ZEROS).map(|m| m.at.end) {
            let mut words = (1..=ZEROS / 8).map(|word| self.tracee.peek(end - 8 * word));
            if words.all(|word| matches!(word, Ok(0))) {
                return Ok(end - stub::CODE_SIZE);
            }
        }
        Err(InjectError::NoRoom)
    }
}

/// Stops a process's first thread. Signals that come first are delivered.
fn stop(pid: i32) -> Result<Tracee, InjectError> {
    let tracee = Tracee::seize(pid)?;
    tracee.interrupt()?;
    loop {
        match tracee.wait()? {
            Stop::Event(libc::SIGTRAP) => return Ok(tracee),
            Stop::Event(_) => return Err(InjectError::Standing),
            Stop::Signal(signal) => tracee.resume(signal)?,
            Stop::Call => tracee.resume(0)?,
        }
    }
}

/// Sends a signal again that was held back. The process may have ended, which is as good.
fn resend(pid: i32, signal: i32) {
    if let (Some(pid), Some(signal)) = (Pid::from_raw(pid), Signal::from_named_raw(signal)) {
        let _ = kill_process(pid, signal);
    }
}
