//! What a checkpoint has cost, as users are told.

use std::{
    ops::AddAssign,
    time::{Duration, Instant},
};

use gnomon_terms::{Bytes, PageCount};

use crate::page::{Coding, Said};

/// One checkpoint, told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Its number.
    pub checkpoint: u64,
    /// How long the guest stood, by QEMU's clock.
    pub pause: Duration,
    /// For the last one, after which the guest stands: since when, by this host's clock. It ran for a moment still.
    pub stood_at: Option<Instant>,
    /// Since the checkpoint before; zero for the first.
    pub after: Duration,
    /// From its beginning until all of it was sent.
    pub took: Duration,
    /// Passes over dirty pages beside the running guest.
    pub rounds: u32,
    /// Pages looked at beside the running guest.
    pub running: PageCount,
    /// Pages copied while it stood.
    pub standing: PageCount,
    /// How the pages were said.
    pub codings: Codings,
    /// Bodies of frames, pages and devices.
    pub bytes: Bytes,
    /// Of these, the devices.
    pub device: Bytes,
    /// Checkpoints on their way to the shadow, this one included.
    pub unsealed: usize,
}

/// How many pages were said in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Codings {
    /// The shadow had them.
    pub nothing: u64,
    /// All zero.
    pub zero: u64,
    /// As another page.
    pub same: u64,
    /// As changes.
    pub delta: u64,
    /// Whole.
    pub raw: u64,
}

impl Codings {
    /// Counts one.
    pub(super) fn note(&mut self, said: &Said<'_>) {
        let count = match said {
            Said::Nothing => &mut self.nothing,
            Said::Record(Coding::Zero) => &mut self.zero,
            Said::Record(Coding::Same(_)) => &mut self.same,
            Said::Record(Coding::Delta(_)) => &mut self.delta,
            Said::Record(Coding::Raw(_)) => &mut self.raw,
        };
        *count += 1;
    }

    /// Pages in all.
    pub fn pages(&self) -> PageCount {
        PageCount(self.nothing + self.zero + self.same + self.delta + self.raw)
    }
}

impl AddAssign for Codings {
    fn add_assign(&mut self, other: Codings) {
        self.nothing += other.nothing;
        self.zero += other.zero;
        self.same += other.same;
        self.delta += other.delta;
        self.raw += other.raw;
    }
}
