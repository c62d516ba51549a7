//! Loading: another QEMU takes the devices over, on the same RAM or a copy of it.

use std::time::{Duration, Instant};

use super::{StateBlob, StateError, await_end, channel::Channel, prepare, run};
use crate::{
    process::Qemu,
    qmp::{EventError, EventStream, MigrationStatus, Qmp, QmpError},
    stream::Inventory,
};

/// How long a QEMU that has closed its monitor may take to be gone, so that what it said is whole.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A guest that stands ready in a QEMU that has loaded it.
#[derive(Debug)]
pub struct Loaded {
    qmp: Qmp,
    events: EventStream,
    /// From the first command until the devices were loaded.
    pub took: Duration,
}

/// Checks a state against the QEMU that is to load it: the machine type, and the RAM that was left out. A QEMU that
/// cannot load a state ends, so it is better asked before. What is in the devices only QEMU can judge.
pub fn fits(inventory: &Inventory, qemu: &Qemu) -> Result<(), StateError> {
    let here = qemu.qmp().current_machine()?;
    if inventory.machine != here {
        return Err(StateError::OtherMachine { state: inventory.machine.clone(), here });
    }
    let Some(ram) = &qemu.record().ram else { return Ok(()) };
    let block = inventory.ram.iter().find(|block| block.left_out && block.id == ram.id);
    match block.map(|block| block.size) {
        Some(size) if size == ram.size => Ok(()),
        state => Err(StateError::OtherRam { id: ram.id.clone(), state, here: ram.size }),
    }
}

/// Loads a state into a QEMU that waits for one ([`crate::Role::IncomingPaused`]) and has the RAM that goes with it.
/// The state is checked first; after an error of kind Corrupt, or one of [`fits`], the QEMU still waits. Blocks for some
/// 4 ms, `timeout` at most. The guest does not run until [`Loaded::run`].
pub fn load(qemu: &Qemu, blob: &StateBlob, timeout: Duration) -> Result<Loaded, StateError> {
    fits(&blob.inspect()?, qemu)?;
    load_unchecked(qemu, blob, timeout)
}

/// Like [`load`], without the check, which takes a millisecond: for the next state of a source whose last one was
/// checked.
pub fn load_unchecked(qemu: &Qemu, blob: &StateBlob, timeout: Duration) -> Result<Loaded, StateError> {
    let started = Instant::now();
    let qmp = qemu.qmp();
    prepare(qmp)?;
    let channel = Channel::give(qmp, blob.reopen(false)?)?;
    let events = qmp.events();
    let end = match qmp.migrate_incoming(&channel.uri()) {
        Ok(()) => await_end(&events, timeout, |_| {}),
        // QEMU may end before it answers.
        Err(QmpError::Closed { reason, .. }) => Err(EventError::Closed(reason)),
        Err(other) => return Err(other.into()),
    };
    match end {
        Ok(MigrationStatus::Completed) => Ok(Loaded { qmp: qmp.clone(), events, took: started.elapsed() }),
        Ok(_) => Err(StateError::NotTaken { said: words(qemu, "it gives no reason") }),
        Err(EventError::Timeout) => Err(StateError::Timeout { what: "load the devices", after: timeout }),
        Err(EventError::Closed(reason)) => {
            qemu.wait_exit(EXIT_TIMEOUT);
            Err(StateError::NotTaken { said: words(qemu, &reason.to_string()) })
        }
    }
}

impl Loaded {
    /// Makes the guest run here, and waits until it does. From now on it must not run anywhere else.
    pub fn run(self, timeout: Duration) -> Result<(), StateError> {
        run(&self.qmp, &self.events, timeout).map(drop)
    }
}

/// What QEMU said on its standard error, or else in its last answer.
fn words(qemu: &Qemu, otherwise: &str) -> String {
    let said = qemu.last_words();
    match said.is_empty() {
        false => said,
        true => qemu.qmp().query_migrate().ok().and_then(|p| p.error).unwrap_or_else(|| otherwise.to_string()),
    }
}
