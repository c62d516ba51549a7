//! Loading: another QEMU takes the devices over, on the same RAM or a copy of it.
//!
//! What can be done before the state is there is done by [`Standby::new`], while the source still runs: each question to
//! a monitor costs a tenth of a millisecond, and ten times that on a busy host.

use std::{
    iter,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::{StateBlob, StateError, await_end, channel::Channel, prepare, run};
use crate::{
    memory::backend_of,
    process::{ExitWatch, Qemu, QemuRecord, last_words},
    qmp::{EventError, EventStream, MigrationStatus, Qmp, QmpError},
    stream::Inventory,
};

/// How long a QEMU that has closed its monitor may take to be gone, so that what it said is whole.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// A QEMU that waits for a state.
#[derive(Debug)]
pub struct Standby {
    qmp: Qmp,
    events: EventStream,
    machine: String,
    /// Blocks of memory that are here already: their names and sizes.
    blocks: Vec<(String, u64)>,
    watch: ExitWatch,
    log: Option<PathBuf>,
}

/// A guest that stands ready in a QEMU that has loaded it.
#[derive(Debug)]
pub struct Loaded {
    qmp: Qmp,
    events: EventStream,
    took: Duration,
}

/// [`Standby::new`] and [`Standby::load`] in one, for who has no time to win.
pub fn load(qemu: &Qemu, blob: &StateBlob, timeout: Duration) -> Result<Loaded, StateError> {
    Standby::new(qemu)?.load(blob, timeout)
}

impl Standby {
    /// Prepares a QEMU that was started to wait ([`crate::Role::IncomingPaused`]) with the RAM that goes with the state.
    /// Blocks for three questions to its monitor.
    pub fn new(qemu: &Qemu) -> Result<Standby, StateError> {
        let qmp = qemu.qmp().clone();
        prepare(&qmp)?;
        Ok(Standby {
            events: qmp.events(),
            machine: qmp.current_machine()?,
            blocks: blocks_of(qemu.record()),
            watch: qemu.exit_watch(),
            log: qemu.record().log.clone(),
            qmp,
        })
    }

    /// Checks a state against this QEMU: the machine type, and the RAM that was left out. A QEMU that cannot load a
    /// state ends, so it is better asked before. What is in the devices only QEMU can judge. Asks nobody.
    pub fn fits(&self, inventory: &Inventory) -> Result<(), StateError> {
        if inventory.machine != self.machine {
            let (state, here) = (inventory.machine.clone(), self.machine.clone());
            return Err(StateError::OtherMachine { state, here });
        }
        for (id, here) in &self.blocks {
            let block = inventory.ram.iter().find(|block| block.left_out && block.id == *id);
            match block.map(|block| block.size) {
                Some(size) if size == *here => {}
                state => return Err(StateError::OtherRam { id: id.clone(), state, here: *here }),
            }
        }
        Ok(())
    }

    /// Checks a state and loads it. After an error of the check (kind Corrupt, other machine or RAM) the QEMU still
    /// waits; after any other it is of no use. Blocks for some 4 ms, `timeout` at most. The guest does not run until
    /// [`Loaded::run`].
    pub fn load(self, blob: &StateBlob, timeout: Duration) -> Result<Loaded, StateError> {
        self.fits(&blob.inspect()?)?;
        self.load_unchecked(blob, timeout)
    }

    /// Like [`Standby::load`], without the check, which takes half a millisecond: for the next state of a source whose
    /// last one was checked.
    pub fn load_unchecked(self, blob: &StateBlob, timeout: Duration) -> Result<Loaded, StateError> {
        let started = Instant::now();
        let channel = Channel::give(&self.qmp, blob.reopen(false)?)?;
        let end = match self.qmp.migrate_incoming(&channel.uri()) {
            Ok(()) => await_end(&self.events, timeout, |_| {}),
            // QEMU may end before it answers.
            Err(QmpError::Closed { reason, .. }) => Err(EventError::Closed(reason)),
            Err(other) => return Err(other.into()),
        };
        channel.leave();
        match end {
            Ok(MigrationStatus::Completed) => {
                Ok(Loaded { qmp: self.qmp, events: self.events, took: started.elapsed() })
            }
            Ok(_) => Err(self.not_taken("it gives no reason")),
            Err(EventError::Timeout) => Err(StateError::Timeout { what: "load the devices", after: timeout }),
            Err(EventError::Closed(reason)) => {
                self.watch.wait(EXIT_TIMEOUT);
                Err(self.not_taken(&reason.to_string()))
            }
        }
    }

    /// With what QEMU said on its standard error, or else in its last answer.
    fn not_taken(&self, otherwise: &str) -> StateError {
        let said = self.log.as_deref().map(last_words).filter(|said| !said.is_empty());
        let answer = || self.qmp.query_migrate().ok().and_then(|progress| progress.error);
        StateError::NotTaken { said: said.or_else(answer).unwrap_or_else(|| otherwise.to_string()) }
    }
}

/// What a QEMU was started with that is not in a state.
fn blocks_of(record: &QemuRecord) -> Vec<(String, u64)> {
    let Some(boot) = &record.ram else { return Vec::new() };
    let dimms = record.resolved.iter().flat_map(|resolved| &resolved.dimms);
    let dimms = dimms.map(|dimm| (backend_of(&dimm.id), dimm.size));
    iter::once((boot.id.clone(), boot.size)).chain(dimms).collect()
}

impl Loaded {
    /// How long loading took.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// Makes the guest run here, and waits until it does. From now on it must not run anywhere else.
    pub fn run(self, timeout: Duration) -> Result<(), StateError> {
        run(&self.qmp, &self.events, timeout).map(drop)
    }
}
