//! How the memory of a guest goes to another node: by checkpoints, if its writes can be followed while it runs; or else by
//! QEMU's own migration, which follows them itself.
//!
//! ```text
//!   asked for     pagemap-scan   compare only                            nothing
//!   (nothing)     engine         qemu: it would stand while all of its   qemu
//!   engine        engine         engine              memory is read      refused
//!   qemu          qemu           qemu                                    qemu
//! ```

use gnomon_qemu::{DirtyTracker, GuestMemory, Qemu, TrackError, TrackTarget, TrackerFacts, TrackerTier};

use crate::{
    api::{
        ApiError, chain,
        types::{RamChoice, RamWay},
    },
    daemon::vms::{VmHandle, makeup::whole},
};

/// The ways to follow a guest for a move, best first. Soft-dirty is none: the guest would stand for all of its memory.
const TIERS: [TrackerTier; 2] = [TrackerTier::PagemapScan, TrackerTier::Compare];

/// Which way, if the best that there is follows the guest like `found`, or not at all and why; what is `better` and could
/// not be had is told.
pub fn choose(
    asked: Option<RamWay>,
    found: Result<TrackerTier, String>,
    better: Option<String>,
) -> Result<RamChoice, ApiError> {
    let engine = |why: String| Ok(RamChoice { way: RamWay::Engine, why });
    let qemu = |why: String| Ok(RamChoice { way: RamWay::Qemu, why });
    let better = better.map(|why| format!(": {why}")).unwrap_or_default();
    match (asked, found) {
        (Some(RamWay::Qemu), _) => qemu("it was asked for".to_string()),
        (_, Ok(tier @ TrackerTier::PagemapScan)) => engine(format!("its writes are followed by {tier}")),
        (Some(RamWay::Engine), Ok(tier)) => {
            engine(format!("it was asked for; its writes are followed by {tier}{better}"))
        }
        (None, Ok(tier)) => qemu(format!(
            "its writes could be followed by {tier} only, for which it stands while all of its memory is read{better}"
        )),
        (Some(RamWay::Engine), Err(why)) => {
            Err(ApiError::refused(format!("its memory cannot go by checkpoints: {why}"))
                .then("leave --ram out, or write --ram qemu"))
        }
        (None, Err(why)) => qemu(format!("its memory cannot go by checkpoints: {why}")),
    }
}

/// What would be chosen for a running VM now. Nothing is done to it. Blocks for some milliseconds.
pub fn outlook(vm: &VmHandle) -> Option<RamChoice> {
    // One that was adopted does not go at all.
    let qemu = vm.qemu().filter(|qemu| qemu.record().spec.is_some());
    qemu.and_then(|qemu| foresee(None, &qemu).ok())
}

/// The same for a move that asks for one of them.
pub fn foresee(asked: Option<RamWay>, qemu: &Qemu) -> Result<RamChoice, ApiError> {
    let verdicts = TrackerFacts::gather().verdicts();
    let mut tiers = verdicts.iter().filter(|verdict| TIERS.contains(&verdict.tier));
    let better = tiers.clone().find(|verdict| !verdict.available).map(|verdict| verdict.why.clone());
    let found = match why_not_followed(qemu) {
        Some(why) => Err(why),
        None => tiers.find(|verdict| verdict.available).map(|verdict| verdict.tier).ok_or_else(String::new),
    };
    choose(asked, found, better)
}

/// Chooses, and begins to follow the guest if it is to go by checkpoints. Blocks for some milliseconds; for a QEMU that
/// hangs, two seconds.
pub fn begin(asked: Option<RamWay>, qemu: &Qemu) -> Result<(RamChoice, Option<Box<dyn DirtyTracker>>), ApiError> {
    if asked == Some(RamWay::Qemu) {
        return Ok((choose(asked, Err(String::new()), None)?, None));
    }
    let mut better = None;
    let followed = match why_not_followed(qemu) {
        Some(why) => Err(why),
        None => whole(qemu)
            .map_err(|error| error.to_string())
            .and_then(|(_, memory)| follow(qemu, &memory, &mut better).map_err(|error| chain(&error))),
    };
    let found = followed.as_ref().map(|tracker| tracker.tier()).map_err(String::clone);
    let choice = choose(asked, found, better)?;
    let tracker = followed.ok().filter(|_| choice.way == RamWay::Engine);
    Ok((choice, tracker))
}

fn follow(
    qemu: &Qemu,
    memory: &GuestMemory,
    better: &mut Option<String>,
) -> Result<Box<dyn DirtyTracker>, TrackError> {
    let target = TrackTarget::of_memory(qemu.record().pid, memory)?;
    let [best, last] = TIERS;
    match best.start(&target) {
        Err(error) if !error.ends_the_search() => *better = Some(chain(&error)),
        outcome => return outcome,
    }
    last.start(&target)
}

/// Why a guest could not be followed on any host.
fn why_not_followed(qemu: &Qemu) -> Option<String> {
    if qemu.record().ram.is_none() {
        return Some("its RAM is QEMU's own, and cannot be followed".to_string());
    }
    match qemu.qmp().query_status() {
        Ok(status) if status.running => None,
        Ok(_) => Some("it does not run".to_string()),
        Err(error) => Some(chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_taken_where_it_costs_the_guest_least() {
        use RamWay::{Engine, Qemu};
        use TrackerTier::{Compare, PagemapScan};
        let table = [
            (None, Ok(PagemapScan), Some(Engine), "pagemap-scan"),
            (None, Ok(Compare), Some(Qemu), "old kernel"),
            (None, Err("no memfd"), Some(Qemu), "no memfd"),
            (Some(Engine), Ok(PagemapScan), Some(Engine), "pagemap-scan"),
            (Some(Engine), Ok(Compare), Some(Engine), "compare: old kernel"),
            (Some(Engine), Err("no memfd"), None, "no memfd"),
            (Some(Qemu), Ok(PagemapScan), Some(Qemu), "asked for"),
            (Some(Qemu), Err("no memfd"), Some(Qemu), "asked for"),
        ];
        for (asked, found, way, words) in table {
            let better = (found == Ok(Compare)).then(|| "old kernel".to_string());
            let chosen = choose(asked, found.map_err(str::to_string), better);
            let told = chosen.as_ref().map_or_else(|error| error.to_string(), |choice| choice.why.clone());
            assert_eq!(chosen.ok().map(|choice| choice.way), way, "{asked:?} {found:?}");
            assert!(told.contains(words), "{asked:?} {found:?}: {told}");
        }
    }
}
