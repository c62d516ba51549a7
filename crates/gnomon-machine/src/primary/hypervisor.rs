//! What runs the guest, as the engine needs it: it can be made to stand with its devices written down, and to go on.

use std::{sync::Arc, time::Duration};

use gnomon_qemu::{CaptureOptions, Frozen, Qemu, StateBlob, StateError, capture};

/// How long a QEMU may take to let its guest run again: some milliseconds is what it takes.
const GO_ON: Duration = Duration::from_secs(30);

/// Runs one guest.
pub trait Hypervisor: Send {
    /// Makes the guest stand and writes down its devices. After an error it runs as before; if not, the error says so.
    fn stand(&mut self) -> Result<(), StateError>;

    /// Makes a guest that stands run again; how long it stood in all. Blocks until it runs.
    fn go_on(&mut self) -> Result<Duration, StateError>;

    /// The state of its devices when it stood last, whether or not it runs again.
    fn device(&self) -> Result<Vec<u8>, StateError>;

    /// Leaves a guest that stands standing here for good: it goes on elsewhere.
    fn hand_over(&mut self);
}

/// A guest in a QEMU of ours.
#[derive(Debug)]
pub struct QemuHypervisor {
    qemu: Arc<Qemu>,
    options: CaptureOptions,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It has not stood yet.
    New,
    Stands(Frozen),
    /// It stood, and runs again, or was handed over.
    Stood(StateBlob),
}

impl QemuHypervisor {
    /// The guest of `qemu`, which has its RAM from gnomon, shared.
    pub fn new(qemu: Arc<Qemu>, options: CaptureOptions) -> QemuHypervisor {
        QemuHypervisor { qemu, options, state: State::New }
    }
}

impl Hypervisor for QemuHypervisor {
    fn stand(&mut self) -> Result<(), StateError> {
        if !matches!(self.state, State::Stands(_)) {
            self.state = State::Stands(capture(&self.qemu, &self.options)?);
        }
        Ok(())
    }

    fn go_on(&mut self) -> Result<Duration, StateError> {
        match std::mem::replace(&mut self.state, State::New) {
            State::Stands(frozen) => {
                let checkpoint = frozen.resume(GO_ON)?;
                self.state = State::Stood(checkpoint.blob);
                Ok(checkpoint.pause)
            }
            other => {
                self.state = other;
                Ok(Duration::ZERO)
            }
        }
    }

    fn device(&self) -> Result<Vec<u8>, StateError> {
        match &self.state {
            State::New => Ok(Vec::new()),
            State::Stands(frozen) => frozen.blob().bytes(),
            State::Stood(blob) => blob.bytes(),
        }
    }

    fn hand_over(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::New) {
            State::Stands(frozen) => State::Stood(frozen.hand_over()),
            other => other,
        };
    }
}
