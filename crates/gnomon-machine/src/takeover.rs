//! A running guest changes its QEMU on one host. No RAM is copied: both QEMUs map the same memory.
//!
//! ```text
//!  old runs ──capture──► old stands ──load──► new is ready ──fence──► old has no disks ──run──► new runs
//!     ▲                      │                    │                       │
//!     └────── resume ◄───────┴────────────────────┴────── lend back ◄─────┘  anything failed: as if it had not been
//! ```
//!
//! Nothing irrevocable happens before the new one runs, and it runs only once the old one can no longer write: its
//! disks are taken from it by the fence, which returns when none of its requests is under way. If the new one does not
//! come to run, it is killed, and is known to be dead before the old one gets its disks back.

use std::time::{Duration, Instant};

use gnomon_qemu::{CaptureOptions, Frozen, Loaded, ProcessError, Qemu, Standby, StateError, capture};
use gnomon_terms::ErrorKind;

/// How long each step of a QEMU may take: some milliseconds is what it takes.
const STEP: Duration = Duration::from_secs(10);

/// The disks of a guest that changes its QEMU.
pub trait Disks {
    /// Takes them from the old QEMU. When this returns `Ok`, none of its requests touches them any more. On `Err` it
    /// has them as before.
    fn fence(&self) -> Result<(), String>;

    /// Gives them back to it.
    fn lend_back(&self) -> Result<(), String>;
}

/// What a takeover cost, step by step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Phases {
    /// From the request until the guest stood. It ran meanwhile.
    pub approach: Duration,
    /// Its devices were written down.
    pub saving: Duration,
    /// The new QEMU read them.
    pub loading: Duration,
    /// The disks were taken from the old one.
    pub fencing: Duration,
    /// The new one was made to run.
    pub starting: Duration,
}

impl Phases {
    /// How long the guest stood.
    pub fn gap(&self) -> Duration {
        self.saving + self.loading + self.fencing + self.starting
    }

    /// Each phase with its name, in order.
    pub fn named(&self) -> [(&'static str, Duration); 5] {
        [
            ("approach", self.approach),
            ("saving", self.saving),
            ("loading", self.loading),
            ("fencing", self.fencing),
            ("starting", self.starting),
        ]
    }
}

/// Why a guest did not change its QEMU.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// Its state could not be captured. It runs on as before.
    #[error("the guest's state could not be captured; it runs on as before")]
    Capture(#[source] StateError),
    /// The new QEMU did not take the state. The guest runs on in the old one.
    #[error("the new QEMU did not take the guest; it runs on in the old one")]
    Load(#[source] StateError),
    /// The disks could not be taken from the old QEMU. The guest runs on in it.
    #[error("the disks could not be taken from the old QEMU: {why}; the guest runs on in it")]
    Fence {
        /// Why.
        why: String,
    },
    /// The new QEMU did not run the guest, and was killed. The guest runs on in the old one.
    #[error("the new QEMU did not run the guest and was killed; the guest runs on in the old one")]
    Run(#[source] StateError),
    /// The guest stands, and its state is whole: in the old QEMU if that is there, or else nowhere.
    #[error(
        "the guest stands after a takeover that failed ({why}): see `gnomon vm show`, and try `cont` on its monitor"
    )]
    Stands {
        /// What went wrong on the way back.
        why: String,
    },
}

impl TakeoverError {
    /// What a caller can do about it.
    pub fn kind(&self) -> ErrorKind {
        match self {
            TakeoverError::Capture(error) | TakeoverError::Load(error) | TakeoverError::Run(error) => error.kind(),
            TakeoverError::Fence { .. } | TakeoverError::Stands { .. } => ErrorKind::Unavailable,
        }
    }
}

/// Makes the guest of `old` run in `new`, which waits for it with the same RAM. Blocks for some 15 ms of which the guest
/// stands most; for seconds if a QEMU hangs. After `Ok` the old one stands, without disks, and must never run again.
pub fn take_over(old: &Qemu, new: &Qemu, disks: &dyn Disks) -> Result<Phases, TakeoverError> {
    // Whatever can be asked of the new one is asked while the guest runs.
    let standby = Standby::new(new).map_err(TakeoverError::Load)?;
    let carried = new.record().resolved.as_ref().map(CaptureOptions::of).unwrap_or_default();
    let frozen = capture(old, &carried).map_err(TakeoverError::Capture)?;
    let mut phases =
        Phases { approach: frozen.phases().approach, saving: frozen.phases().saving, ..Phases::default() };
    let mut clock = Clock(Instant::now());
    let loaded = match standby.load(frozen.blob(), STEP) {
        Ok(loaded) => loaded,
        Err(error) => return Err(back(frozen, TakeoverError::Load(error))),
    };
    phases.loading = clock.lap();
    if let Err(why) = disks.fence() {
        return Err(back(frozen, TakeoverError::Fence { why }));
    }
    phases.fencing = clock.lap();
    run(loaded, new, disks, frozen)?;
    phases.starting = clock.lap();
    Ok(phases)
}

/// The last step: from here on the guest is the new QEMU's, or that is dead.
fn run(loaded: Loaded, new: &Qemu, disks: &dyn Disks, frozen: Frozen) -> Result<(), TakeoverError> {
    let Err(error) = loaded.run(STEP) else {
        frozen.hand_over();
        return Ok(());
    };
    if let Err(worse) = ended(new) {
        // It may run: then the old one must not, whatever it costs.
        frozen.hand_over();
        return Err(TakeoverError::Stands { why: format!("{error}; {worse}") });
    }
    match disks.lend_back() {
        Ok(()) => Err(back(frozen, TakeoverError::Run(error))),
        Err(why) => {
            frozen.hand_over();
            Err(TakeoverError::Stands { why: format!("{error}; its disks: {why}") })
        }
    }
}

fn ended(qemu: &Qemu) -> Result<(), ProcessError> {
    qemu.kill().map(drop)
}

/// The guest runs on where it was.
fn back(frozen: Frozen, error: TakeoverError) -> TakeoverError {
    match frozen.resume(STEP) {
        Ok(_) => error,
        Err(worse) => TakeoverError::Stands { why: format!("{error}; {worse}") },
    }
}

struct Clock(Instant);

impl Clock {
    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now - self.0;
        self.0 = now;
        lap
    }
}
