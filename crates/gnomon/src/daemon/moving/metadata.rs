//! What is known of each extent of a volume on the move, kept in the store once a second: where its copy is, how much
//! of it, and how likely it is to be read. The Dynamic Metadata Store, for operators and for the next start.

use std::time::{Duration, Instant};

use gnomon_cycle::UnitState;
use gnomon_store::extents::{ExtentTable, UnitFacts};

use crate::{
    api::ApiError,
    daemon::{keeper::VolumeHandle, records::Records},
};

/// How often the store is brought up to date.
const EVERY: Duration = Duration::from_secs(1);
/// Units taken from the loop at once: walking them must not hold it up.
const AT_ONCE: usize = 8192;

/// The facts of one volume.
pub struct Metadata {
    table: ExtentTable,
    unit_blocks: u64,
    stored: Instant,
}

impl Metadata {
    /// Nothing is known yet.
    pub fn new(handle: &VolumeHandle) -> Metadata {
        let unit_blocks = gnomon_volume::disk::layered::UNIT_BLOCKS;
        let units = handle.volume.blocks().0.div_ceil(unit_blocks) as usize;
        Metadata { table: ExtentTable::new(handle.volume.name(), units), unit_blocks, stored: Instant::now() }
    }

    /// Takes what has changed from the loop, and stores it when it is time.
    pub async fn keep(&mut self, handle: &VolumeHandle, records: &Records) -> Result<(), ApiError> {
        for unit in handle.watcher.run(|cycle, _| cycle.changed_units(AT_ONCE)).await? {
            self.table.set((unit.extent.start.0 / self.unit_blocks) as usize, facts(&unit));
        }
        if self.stored.elapsed() >= EVERY {
            self.stored = Instant::now();
            self.table.store(records.store())?;
        }
        Ok(())
    }
}

fn facts(unit: &UnitState) -> UnitFacts {
    let covered = u8::try_from(unit.covered.0).unwrap_or(u8::MAX);
    UnitFacts { place: unit.place, covered, chance: unit.probability }
}
