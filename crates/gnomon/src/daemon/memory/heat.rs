//! Where VMs touch their memory, as the host sees it: what feeds the heat of each, and what is made of it.
//!
//! ```text
//!   protected, moved:  what was written (writes.rs) ────┐
//!   others, at times:  QEMU's page tables, what grew ───┴─► Heat of what it began with ─► the view, its group's picture
//!   asked for memory:  QEMU's page tables of each DIMM ───► how much of it was touched ─► which DIMM goes first
//! ```
//! A look reads page tables and changes nothing there. The clock looks at one VM at a time, and no more often than its cost
//! allows. What is known of a VM is of one QEMU: with another one it begins anew.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use gnomon_cycle::staging::{Bits, Heat, RANGES, coldest_first, picture};
use gnomon_memory::NAME_PREFIX;
use gnomon_qemu::{Dimm, DirtyTracker, GuestRam, Looked, Part, Qemu, Resolved, held_memory, present};
use gnomon_terms::{Bytes, PageCount};
use parking_lot::Mutex;

use super::{Memory, writes::Noted};
use crate::{
    api::{ApiError, types::HeatView},
    daemon::{Daemon, vms::makeup},
};

/// A VM is looked at no more often than this, or than groups plan if they do so more often.
const PAUSE: Duration = Duration::from_secs(60);
/// Looks at 100 VMs may take a hundredth of a core: so a VM rests ten thousand times as long as a look has taken.
const REST: u32 = 10_000;
/// Memory up to here is looked at page by page, which takes up to 50 ms; of more one page in 32 is.
const WHOLE: Bytes = Bytes(8 << 30);
/// ε of a group's picture: as of the other numbers of a group that are told.
const EPSILON: f64 = 1.0;
/// The ranges that are shown as hot have this share of all touches.
const MOST: f64 = 0.9;

/// What is known of all VMs, by name.
#[derive(Debug, Default)]
pub(super) struct Heats {
    vms: Mutex<BTreeMap<String, Known>>,
    /// Processor time of the clock's looks since the daemon started.
    spent: Mutex<Duration>,
}

/// What is known of one VM.
#[derive(Debug)]
struct Known {
    /// Its QEMU.
    pid: i32,
    /// Of the memory that it began with. Who carries it holds it too.
    boot: Arc<Mutex<Heat>>,
    /// What the last look has found there.
    seen: Option<Heat>,
    /// The share of each DIMM that was touched, at the last look.
    dimms: BTreeMap<String, f64>,
    looked: Looked,
    due: Instant,
}

/// What one look has found.
struct Sight {
    boot: Heat,
    dimms: BTreeMap<String, f64>,
    looked: Looked,
}

impl Known {
    fn new(pid: i32, pages: PageCount) -> Known {
        let boot = Arc::new(Mutex::new(Heat::new(pages)));
        let (seen, dimms, looked) = (None, BTreeMap::new(), Looked::default());
        Known { pid, boot, seen, dimms, looked, due: Instant::now() }
    }

    /// Somebody follows what it writes.
    fn is_carried(&self) -> bool {
        Arc::strong_count(&self.boot) > 1
    }

    /// Takes in a look; of a VM that is carried there is none.
    fn take(&mut self, sight: Option<Sight>, step: Duration) {
        let mut heat = self.boot.lock();
        heat.fade();
        if let Some(Sight { boot, dimms, looked }) = sight {
            match &self.seen {
                Some(before) => heat.note_growth(before, &boot),
                None if heat.mean() == 0.0 => *heat = boot.clone(),
                // It was carried: when that which is there was touched is known better.
                None => {}
            }
            (self.seen, self.dimms, self.looked) = (Some(boot), dimms, looked);
        }
        self.due = Instant::now() + pause(self.looked.took, step);
    }

    fn view(&self) -> HeatView {
        let heat = self.boot.lock();
        let Looked { memory, took } = self.looked;
        let micros = took.as_secs_f64() * 1e6;
        let gib = memory.0 as f64 / (1u64 << 30) as f64;
        HeatView {
            from: if self.is_carried() { "writes" } else { "page tables" }.to_string(),
            percent: heat.shares().map(|share| (share * 1000.0).round() / 10.0).to_vec(),
            hot: heat.hottest(MOST).len() as u32,
            looked_at: memory.0,
            took_us: micros,
            us_per_gib: (memory.0 > 0).then(|| micros / gib),
        }
    }
}

/// How long a VM rests that it took so long to look at, where groups plan in such steps.
fn pause(took: Duration, step: Duration) -> Duration {
    took.saturating_mul(REST).max(PAUSE.min(step))
}

/// Looks at the VM that is due for longest, of groups for which memory is made ready.
pub(super) fn look(daemon: &Daemon) {
    let members = daemon.memory.watched();
    daemon.memory.heats.vms.lock().retain(|vm, _| members.contains(vm));
    let running = members.into_iter().filter_map(|vm| Some((daemon.vms.get(&vm).ok()?.qemu()?, vm)));
    let due = |(qemu, vm): (Arc<Qemu>, String)| Some((daemon.memory.heats.due(&qemu, &vm)?, qemu, vm));
    let Some((_, qemu, vm)) = running.filter_map(due).min_by_key(|(since, ..)| *since) else { return };
    let sight = match daemon.memory.heats.is_carried(&vm) {
        true => None,
        false => sight(&qemu).inspect_err(|error| tracing::debug!(vm, %error, "where it uses memory")).ok(),
    };
    *daemon.memory.heats.spent.lock() += sight.as_ref().map_or(Duration::ZERO, |sight| sight.looked.took);
    daemon.memory.heats.with(&qemu, &vm, |known| known.take(sight, daemon.memory.config.step));
}

/// Looks at a QEMU's page tables, for what its guest began with and each DIMM.
fn sight(qemu: &Qemu) -> Result<Sight, ApiError> {
    let (made_of, memory) = makeup::whole(qemu)?;
    let mut parts = memory.parts().iter();
    let ram = parts.next().ok_or_else(|| ApiError::unavailable("it has no memory"))?;
    // Of a block that was staged, page tables may be filled beside the guest.
    let staged =
        held_memory(qemu)?.iter().any(|held| held.inode == ram.inode() && held.name.starts_with(NAME_PREFIX));
    let part = if staged || ram.size() > WHOLE { Part::LeftOut } else { Part::All };
    let mut boot = Heat::new(ram.pages());
    let looked = present(qemu.record().pid, ram, part, |run| boot.note(run, part.stands_for()))
        .map_err(|error| ApiError::of(error.kind(), &error))?;
    let (dimms, added) = touched(qemu, &made_of, parts);
    let looked = Looked { memory: Bytes(looked.memory.0 + added.memory.0), took: looked.took + added.took };
    Ok(Sight { boot, dimms, looked })
}

/// The share of each DIMM that its guest has touched. The same pages are looked at of all: those that nobody has filled.
fn touched<'a>(
    qemu: &Qemu,
    made_of: &Resolved,
    memory: impl Iterator<Item = &'a GuestRam>,
) -> (BTreeMap<String, f64>, Looked) {
    let (mut dimms, mut cost) = (BTreeMap::new(), Looked::default());
    for (dimm, memory) in made_of.dimms.iter().zip(memory) {
        let mut heat = Heat::new(memory.pages());
        let part = Part::LeftOut;
        // One that it is letting go of is mapped no more, and asked for by nobody.
        let Ok(looked) = present(qemu.record().pid, memory, part, |run| heat.note(run, part.stands_for())) else {
            continue;
        };
        dimms.insert(dimm.id.clone(), heat.mean());
        cost = Looked { memory: Bytes(cost.memory.0 + looked.memory.0), took: cost.took + looked.took };
    }
    (dimms, cost)
}

/// A guest's DIMMs in the order in which they are asked back: as they are touched now, or the newest first if that cannot be
/// seen.
pub(super) fn by_heat<'a>(qemu: &Qemu, vm: &str, dimms: &'a [Dimm]) -> Vec<&'a Dimm> {
    let whole = makeup::whole(qemu).inspect_err(|error| tracing::debug!(vm, %error, "where it uses its DIMMs"));
    let seen =
        whole.map(|(made_of, memory)| touched(qemu, &made_of, memory.parts().iter().skip(1)).0).unwrap_or_default();
    let shares: Vec<Option<f64>> = dimms.iter().map(|dimm| seen.get(&dimm.id).copied()).collect();
    coldest_first(&shares).into_iter().map(|place| &dimms[place]).collect()
}

impl Heats {
    /// Since when a VM is due; `None` when it is not.
    fn due(&self, qemu: &Qemu, vm: &str) -> Option<Instant> {
        Some(self.with(qemu, vm, |known| known.due)).filter(|due| *due <= Instant::now())
    }

    fn is_carried(&self, vm: &str) -> bool {
        self.vms.lock().get(vm).is_some_and(Known::is_carried)
    }

    fn with<T>(&self, qemu: &Qemu, vm: &str, deed: impl FnOnce(&mut Known) -> T) -> T {
        let (pid, resolved) = (qemu.record().pid, qemu.record().resolved.as_ref());
        let pages = PageCount(resolved.map_or(0, |resolved| resolved.memory) / gnomon_terms::PAGE_SIZE);
        let mut all = self.vms.lock();
        let known = all.entry(vm.to_string()).or_insert_with(|| Known::new(pid, pages));
        if known.pid != pid {
            *known = Known::new(pid, pages);
        }
        deed(known)
    }

    /// What is known of a VM, and the share of each of its DIMMs that was touched.
    pub(super) fn view(&self, vm: &str) -> Option<(HeatView, BTreeMap<String, f64>)> {
        self.vms.lock().get(vm).map(|known| (known.view(), known.dimms.clone()))
    }

    /// Where these VMs together use their memory, with noise; of few, nothing.
    pub(super) fn picture(&self, vms: &[String], bits: &mut Bits) -> Option<[f64; RANGES]> {
        let all = self.vms.lock();
        let heats: Vec<Heat> = vms.iter().filter_map(|vm| Some(all.get(vm)?.boot.lock().clone())).collect();
        picture(heats.iter().filter(|heat| heat.mean() > 0.0), EPSILON, bits)
    }
}

impl Memory {
    /// VMs of groups for which memory is made ready.
    fn watched(&self) -> Vec<String> {
        let groups = self.groups.read();
        let records = groups.values().map(|group| group.record()).filter(|record| record.shadowing);
        records.flat_map(|record| record.members).collect()
    }

    /// Processor time that it took to see where guests use memory, since the daemon started.
    pub fn spent_looking(&self) -> Duration {
        *self.heats.spent.lock()
    }

    /// A tracker that notes what a VM writes, for as long as somebody has it; the same one if nobody wants to know.
    pub(in crate::daemon) fn noting(
        &self,
        qemu: &Qemu,
        vm: &str,
        tracker: Box<dyn DirtyTracker>,
    ) -> Box<dyn DirtyTracker> {
        match self.watched().iter().any(|watched| watched == vm) {
            true => Box::new(Noted::new(tracker, self.heats.with(qemu, vm, |known| Arc::clone(&known.boot)))),
            false => tracker,
        }
    }
}

#[cfg(test)]
mod tests {
    use gnomon_terms::PageRun;

    use super::*;

    const PAGES: PageCount = PageCount(1 << 16);
    const STEP: Duration = Duration::from_secs(300);

    fn sight(runs: &[(u64, u64)], took: Duration) -> Option<Sight> {
        let mut boot = Heat::new(PAGES);
        runs.iter().for_each(|(start, len)| boot.note(PageRun::new(*start, *len), 1));
        Some(Sight { boot, dimms: BTreeMap::new(), looked: Looked { memory: PAGES.bytes(), took } })
    }

    #[test]
    fn a_look_rests_for_as_long_as_its_cost_allows() {
        for (micros, step, seconds) in
            [(0, 300, 60), (500, 300, 60), (6_000, 300, 60), (20_000, 300, 200), (1_000_000, 1, 10_000), (0, 1, 1)]
        {
            let (took, step) = (Duration::from_micros(micros), Duration::from_secs(step));
            assert_eq!(pause(took, step), Duration::from_secs(seconds), "{took:?} {step:?}");
        }
    }

    #[test]
    fn what_was_there_at_the_first_look_counts_and_then_what_grew() {
        let mut known = Known::new(1, PAGES);
        known.take(sight(&[(0, 1024)], Duration::ZERO), STEP);
        assert_eq!((known.view().percent[0], known.view().hot), (100.0, 1));
        for _ in 0..20 {
            known.take(sight(&[(0, 1024)], Duration::ZERO), STEP);
        }
        known.take(sight(&[(0, 1024), (4096, 1024)], Duration::from_millis(1)), STEP);
        let view = known.view();
        assert!(view.percent[4] > 85.0 && view.percent[0] < 15.0, "{view:?}");
        assert_eq!((view.us_per_gib, view.from.as_str()), (Some(4000.0), "page tables"));
    }

    #[test]
    fn a_vm_that_is_carried_is_known_by_its_writes() {
        let mut known = Known::new(1, PAGES);
        let carrier = Arc::clone(&known.boot);
        assert!(known.is_carried());
        carrier.lock().note(PageRun::new(0, 1024), 3);
        known.take(None, STEP);
        assert_eq!((known.view().from.as_str(), known.view().percent[0]), ("writes", 100.0));
        drop(carrier);
        assert!(!known.is_carried());
    }
}
