//! Cold start: a VM's disk of which nothing was learned begins with what a disk of its trust group has learned.
//!
//! ```text
//!   a VM starts in a group ──► each disk that knows nothing ──► the disks of the other members ──best──► its experience
//!                                                                                                          │
//!     on disk and on record, once the guest runs ◄── the loop begins with it, before the guest's first read ◄┘
//!     the loop knows nothing again, where the start failed
//! ```
//! A VM that joins a group while it runs has the first half only where a disk of it was not read yet. Nothing that was
//! learned is ever written over, and nothing crosses from one group to another by itself: what a VM has begun with stays
//! with its disks when it leaves, and it takes nothing more.

use std::{cmp::Reverse, sync::Arc};

use tokio::runtime::Handle;

use super::{
    Daemon,
    keeper::{Keeper, VolumeHandle},
    learned::{self, Beginning},
};
use crate::api::ApiError;

/// A disk of a VM, as far as it matters for who may learn from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Disk {
    volume: String,
    /// Its place among the disks of its VM: the first is the boot disk.
    place: usize,
    /// Bytes.
    size: u64,
    /// Blocks in the units that its loop thinks in.
    blocks_per_unit: u32,
    /// Of how many accesses its loop has learned; 0 where it has learned nothing.
    learned_of: u64,
}

/// The disk that `own` begins like: of the same size and units; rather one at the same place of its VM than another, and
/// of these the one that has learned of most accesses. None for one that has learned something itself.
fn best<'a>(own: &Disk, others: &'a [Disk]) -> Option<&'a Disk> {
    let fits = |other: &&Disk| {
        let alike = (other.size, other.blocks_per_unit) == (own.size, own.blocks_per_unit);
        alike && other.learned_of > 0 && other.volume != own.volume
    };
    let rank = |other: &&Disk| (other.place == own.place, other.learned_of, Reverse(other.volume.clone()));
    others.iter().filter(fits).filter(|_| own.learned_of == 0).max_by_key(rank)
}

/// Disks whose loops have begun like others, and of which nothing is on disk yet.
#[derive(Default)]
pub(super) struct Begun(Vec<(Arc<VolumeHandle>, Beginning)>);

/// Lets the loops of a VM's disks begin like those of the other `members` of its group. What goes wrong is told in the log:
/// guests run as well without. Blocks, on a thread that may.
pub(super) fn begin(daemon: &Daemon, members: &[String], vm: &str, disks: &[String]) -> Begun {
    let others: Vec<_> = members.iter().filter(|member| *member != vm).collect();
    let others = others.iter().filter_map(|member| Some(daemon.vms.get(member).ok()?.record().disks));
    Handle::current().block_on(begin_like(&daemon.keeper, disks, others.collect()))
}

async fn begin_like(keeper: &Keeper, own: &[String], others: Vec<Vec<String>>) -> Begun {
    let mut begun = Begun::default();
    let own = look_at(keeper, own).await;
    if own.iter().all(|disk| disk.learned_of > 0) {
        return begun;
    }
    let mut known = Vec::new();
    for disks in &others {
        known.extend(look_at(keeper, disks).await);
    }
    for disk in &own {
        let Some(like) = best(disk, &known) else { continue };
        match begin_one(keeper, &disk.volume, &like.volume).await {
            Ok(one) => begun.0.extend(one),
            Err(error) => {
                tracing::warn!(volume = disk.volume, like = like.volume, %error, "it begins with nothing learned");
            }
        }
    }
    begun
}

/// A VM's disks; those that are gone or closing are passed over.
async fn look_at(keeper: &Keeper, disks: &[String]) -> Vec<Disk> {
    let mut seen = Vec::new();
    for (place, volume) in disks.iter().enumerate() {
        let Ok(handle) = keeper.get(volume) else { continue };
        let look = |knows: bool, blocks_per_unit| {
            // A file that does not say of how much it was learned counts as little, and not as nothing.
            let accesses = learned::accesses_of(&handle).max(u64::from(handle.learned.before()));
            let learned_of = if knows { accesses } else { 0 };
            Disk { volume: volume.clone(), place, size: handle.record().size, blocks_per_unit, learned_of }
        };
        let told =
            handle.watcher.run(|cycle, _| (!cycle.experience().is_empty(), cycle.geometry().blocks_per_unit()));
        seen.extend(told.await.ok().map(|(knows, unit)| look(knows, unit)));
    }
    seen
}

/// Lets one loop begin like another, unless it has learned something by now.
async fn begin_one(
    keeper: &Keeper,
    volume: &str,
    like: &str,
) -> Result<Option<(Arc<VolumeHandle>, Beginning)>, ApiError> {
    let begins = Beginning::like(&*keeper.get(like)?).await?;
    let (handle, accesses) = (keeper.get(volume)?, begins.experience.accesses);
    let knowledge = keeper.learning().knowledge(begins.experience.clone());
    let before = handle.learned.before();
    let took = handle.watcher.run(move |cycle, _| {
        // A network that was configured is there from the start and learned of nothing.
        let empty = cycle.experience().is_empty() || !before && cycle.accesses() == 0;
        empty.then(|| cycle.know(knowledge)).is_some()
    });
    if !took.await? {
        return Ok(None);
    }
    handle.learned.begins_with(&begins.experience);
    tracing::info!(volume, like, accesses, "of the same trust group: it begins with what that has learned");
    Ok(Some((handle, begins)))
}

impl Begun {
    /// The guest runs: whoever comes after this daemon is to know it too.
    pub(super) fn keep(self, keeper: &Keeper) {
        for (handle, Beginning { like, experience }) in self.0 {
            let accesses = handle.watcher.counts().total();
            let kept = handle.learned.write(&experience, accesses).map_err(ApiError::from);
            if let Err(error) = kept.and_then(|()| keeper.update(&handle, |record| record.like = like)) {
                let volume = handle.record().name;
                tracing::warn!(volume, %error, "what it begins with is not kept for the next daemon");
            }
        }
    }

    /// The guest does not run, and is in no group: its disks know nothing again.
    pub(super) fn undo(self, keeper: &Keeper) {
        for (handle, _) in self.0 {
            handle.learned.begins_with(&Default::default());
            let nothing = keeper.learning().knowledge(Default::default());
            // A loop that has ended knows nothing either.
            let _ = Handle::current().block_on(handle.watcher.run(|cycle, _| cycle.know(nothing)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(volume: &str, place: usize, size: u64, learned_of: u64) -> Disk {
        Disk { volume: volume.to_string(), place, size, blocks_per_unit: 16, learned_of }
    }

    #[test]
    fn the_best_to_begin_like_is_the_one_that_has_learned_most_of_a_disk_like_this() {
        let own = disk("own", 0, 8, 0);
        let table: [(&str, Vec<Disk>, Option<&str>); 8] = [
            ("there is none", vec![], None),
            ("none has learned anything", vec![disk("a", 0, 8, 0)], None),
            ("most accesses", vec![disk("a", 0, 8, 5), disk("b", 0, 8, 7), disk("c", 0, 8, 6)], Some("b")),
            ("another size", vec![disk("a", 0, 9, 7), disk("b", 0, 8, 1)], Some("b")),
            ("other units", vec![Disk { blocks_per_unit: 8, ..disk("a", 0, 8, 7) }], None),
            ("rather the same place", vec![disk("a", 1, 8, 9), disk("b", 0, 8, 1)], Some("b")),
            ("another place where there is no other", vec![disk("a", 1, 8, 9)], Some("a")),
            ("the first by name where nothing else decides", vec![disk("b", 0, 8, 5), disk("a", 0, 8, 5)], Some("a")),
        ];
        for (what, others, expected) in table {
            assert_eq!(best(&own, &others).map(|best| best.volume.as_str()), expected, "{what}");
        }
    }

    #[test]
    fn what_has_learned_something_takes_nothing_and_nobody_learns_from_itself() {
        let others = [disk("a", 0, 8, 100)];
        assert_eq!(best(&disk("own", 0, 8, 1), &others), None);
        assert_eq!(best(&disk("a", 0, 8, 0), &others), None);
    }
}
