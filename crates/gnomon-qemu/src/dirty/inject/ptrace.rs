//! The ptrace requests we use: all that is unsafe about stopping another process.
//!
//! Source: ptrace(2).

use std::{ffi::c_uint, io, ptr};

use libc::user_regs_struct as Registers;
use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, waitid},
};

use super::InjectError;

/// A thread that we trace. Dropping it lets it go, if it is stopped; if it is not, the end of our thread does.
#[derive(Debug)]
pub(super) struct Tracee {
    pid: Pid,
}

/// Why a traced thread has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// At the entry or the exit of a system call.
    Call,
    /// A signal is about to be delivered to it.
    Signal(i32),
    /// We have asked it to, or (with another signal than SIGTRAP) its whole process is stopped.
    Event(i32),
}

impl Tracee {
    /// Begins to trace a thread, which runs on.
    pub(super) fn seize(pid: i32) -> Result<Tracee, InjectError> {
        let pid = Some(pid).filter(|&pid| pid > 0).and_then(Pid::from_raw).ok_or(InjectError::Ended)?;
        let tracee = Tracee { pid };
        // SAFETY: the data of this request is a set of options and no address.
        let seized = unsafe { tracee.request(libc::PTRACE_SEIZE, 0, libc::PTRACE_O_TRACESYSGOOD as usize) };
        match seized {
            Ok(()) => Ok(tracee),
            Err(source) => {
                // It is not traced: there is nothing to let go.
                std::mem::forget(tracee);
                Err(if source.raw_os_error() == Some(libc::ESRCH) {
                    InjectError::Ended
                } else {
                    InjectError::Attach { source }
                })
            }
        }
    }

    /// Asks it to stop as soon as it can.
    pub(super) fn interrupt(&self) -> Result<(), InjectError> {
        // SAFETY: this request has neither address nor data.
        unsafe { self.request(libc::PTRACE_INTERRUPT, 0, 0) }.map_err(failed("interrupt it"))
    }

    /// Blocks until it stops. Its end is seen and left to whoever waits for it.
    pub(super) fn wait(&self) -> Result<Stop, InjectError> {
        let look = |options| loop {
            match waitid(WaitId::Pid(self.pid), options) {
                Err(Errno::INTR) => {}
                Err(Errno::CHILD) => return Err(InjectError::Ended),
                Err(e) => return Err(failed("wait for it")(e.into())),
                Ok(status) => return Ok(status),
            }
        };
        let ended_or_stopped = WaitIdOptions::EXITED | WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT;
        let status = look(ended_or_stopped)?.ok_or(InjectError::Ended)?;
        let code = status.trapping_signal().ok_or(InjectError::Ended)?;
        look(WaitIdOptions::STOPPED)?;
        Ok(stop_of(code))
    }

    /// Lets it run to the next entry or exit of a system call, with `signal` delivered (0: none).
    pub(super) fn resume(&self, signal: i32) -> Result<(), InjectError> {
        // SAFETY: the data of this request is a signal's number and no address.
        unsafe { self.request(libc::PTRACE_SYSCALL, 0, signal as usize) }.map_err(failed("let it run"))
    }

    /// Its registers.
    pub(super) fn registers(&self) -> Result<Registers, InjectError> {
        // SAFETY: all-zero is a value of this plain structure of numbers.
        let mut registers: Registers = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one such structure.
        unsafe { self.request(libc::PTRACE_GETREGS, 0, ptr::from_mut(&mut registers).addr()) }
            .map_err(failed("read its registers"))?;
        Ok(registers)
    }

    /// Sets its registers.
    pub(super) fn set_registers(&self, registers: &Registers) -> Result<(), InjectError> {
        // SAFETY: the kernel reads one such structure.
        unsafe { self.request(libc::PTRACE_SETREGS, 0, ptr::from_ref(registers).addr()) }
            .map_err(failed("set its registers"))
    }

    /// Its signal mask.
    pub(super) fn signal_mask(&self) -> Result<u64, InjectError> {
        let mut mask = 0u64;
        // SAFETY: the kernel writes as many bytes as the address argument says.
        unsafe { self.request(libc::PTRACE_GETSIGMASK, size_of::<u64>(), ptr::from_mut(&mut mask).addr()) }
            .map_err(failed("read its signal mask"))?;
        Ok(mask)
    }

    /// Sets its signal mask.
    pub(super) fn set_signal_mask(&self, mask: u64) -> Result<(), InjectError> {
        // SAFETY: the kernel reads as many bytes as the address argument says.
        unsafe { self.request(libc::PTRACE_SETSIGMASK, size_of::<u64>(), ptr::from_ref(&mask).addr()) }
            .map_err(failed("set its signal mask"))
    }

    /// A word of its memory.
    pub(super) fn peek(&self, address: u64) -> Result<u64, InjectError> {
        let mut word = 0u64;
        // SAFETY: the kernel itself (not the library, which returns it) writes one word.
        unsafe { self.request(libc::PTRACE_PEEKDATA, address as usize, ptr::from_mut(&mut word).addr()) }
            .map_err(failed("read its memory"))?;
        Ok(word)
    }

    /// Sets a word of its memory, also where it may not write itself: it gets a copy of that page of its own.
    pub(super) fn poke(&self, address: u64, word: u64) -> Result<(), InjectError> {
        // SAFETY: the data of this request is the word. What becomes of the other process is the caller's business.
        unsafe { self.request(libc::PTRACE_POKEDATA, address as usize, word as usize) }
            .map_err(failed("write its memory"))
    }

    /// Makes a ptrace request, without the library's translation.
    ///
    /// # Safety
    /// `data` is what the request takes: a number, or the address of something the kernel may read or write.
    unsafe fn request(&self, request: c_uint, address: usize, data: usize) -> io::Result<()> {
        let pid = self.pid.as_raw_nonzero().get();
        // SAFETY: the caller's promise. Addresses of the other process are checked by the kernel.
        match unsafe { libc::syscall(libc::SYS_ptrace, libc::c_long::from(request), pid, address, data) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl Drop for Tracee {
    fn drop(&mut self) {
        // SAFETY: the data of this request is a signal's number and no address. It fails for a thread that runs or
        // has ended: see the type.
        let _ = unsafe { self.request(libc::PTRACE_DETACH, 0, 0) };
    }
}

fn failed(deed: &'static str) -> impl Fn(io::Error) -> InjectError {
    move |source| match source.raw_os_error() {
        // Of a thread that was stopped a moment ago it means that it was killed.
        Some(libc::ESRCH) => InjectError::Ended,
        _ => InjectError::Trace { deed, source },
    }
}

/// What the number means with which a traced thread stops.
fn stop_of(code: i32) -> Stop {
    const IN_CALL: i32 = libc::SIGTRAP | 0x80;
    match (code >> 8, code & 0xff) {
        (0, IN_CALL) => Stop::Call,
        (0, signal) => Stop::Signal(signal),
        (_, signal) => Stop::Event(signal),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stops_are_told_apart() {
        const EVENT_STOP: i32 = 128;
        let table = [
            (libc::SIGTRAP | 0x80, Stop::Call),
            (libc::SIGTRAP, Stop::Signal(libc::SIGTRAP)),
            (libc::SIGUSR1, Stop::Signal(libc::SIGUSR1)),
            (EVENT_STOP << 8 | libc::SIGTRAP, Stop::Event(libc::SIGTRAP)),
            (EVENT_STOP << 8 | libc::SIGSTOP, Stop::Event(libc::SIGSTOP)),
        ];
        for (code, stop) in table {
            assert_eq!(stop_of(code), stop, "{code:#x}");
        }
    }
}
