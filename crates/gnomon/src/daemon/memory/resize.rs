//! A running guest gets memory, or gives some back: a VM's memory request.
//!
//! ```text
//!   request ──► round, cap ──► staging area of its group ──► DIMMs of staged blocks
//!                                      │ what is missing
//!                                      └──► the standard path: one DIMM of memory that the host gives as it is touched
//! ```
//! A block belongs to the guest from the moment QEMU is given it, whatever happens next: nothing that a QEMU has seen goes
//! back to the shelf. A DIMM is whole or not there: what a guest does not take is taken away again.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use gnomon_cycle::staging::STEP_PER_FREE;
use gnomon_qemu::{
    Dimm, MemoryDeviceError, Qemu, VirtioMem, dimms, guest_step, remove_dimm, sweep_backends, virtio_mem,
};
use gnomon_terms::Bytes;

use super::{Memory, dimm, elastic, group::Served, growth::Growth, heat};
use crate::{
    api::{
        ApiError,
        types::{DimmView, MemoryChange, MemoryView, ResizeMemory},
    },
    daemon::{Daemon, vms::VmHandle},
};

/// How long a guest may take for one DIMM. Linux takes tens of milliseconds to add one, and up to seconds to move its pages
/// off one on a busy host.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// How often it is looked, once a second, whether a guest that has not answered does so yet: ten minutes. Later its next change
/// finds it.
const LOOKS: u32 = 600;

/// A guest that can be given memory, and what it has.
pub(super) struct Guest {
    pub qemu: Arc<Qemu>,
    pub name: String,
    most: u64,
    boot: u64,
    slots: u32,
    /// What it takes at least, and in multiples of, in bytes.
    pub step: u64,
    dimms: Vec<Dimm>,
    /// Instead of DIMMs.
    device: Option<VirtioMem>,
}

impl Guest {
    fn of(vm: &VmHandle) -> Result<Guest, ApiError> {
        let name = vm.record().name;
        let qemu = vm.qemu().ok_or_else(|| {
            ApiError::refused(format!("VM '{name}' does not run"))
                .then("start it with --max-memory, and with --memory as it is to begin")
        })?;
        let (spec, resolved) = (qemu.record().spec.clone(), qemu.record().resolved.clone());
        let (Some(spec), Some(resolved)) = (spec, resolved) else {
            return Err(ApiError::refused(format!(
                "VM '{name}' was adopted: what its machine has room for is not known"
            ))
            .then("change its memory by the tool that started it"));
        };
        let grows_to = spec.max_memory.ok_or_else(|| {
            ApiError::refused(format!("VM '{name}' was started without room for more memory"))
                .then("stop it, and start it with --max-memory")
        })?;
        // QEMU may have been given a little more to begin with, and that much more at most.
        let most = resolved.memory + grows_to.saturating_sub(spec.memory);
        let dimms = dimms(&qemu)?;
        let device = spec.virtio_mem.map(|_| virtio_mem(&qemu)).transpose()?;
        let step = guest_step(&resolved);
        Ok(Guest { name, most, boot: resolved.memory, slots: spec.memory_slots, step, dimms, device, qemu })
    }

    fn added(&self) -> u64 {
        let device = self.device.as_ref().map_or(0, |device| device.actual.0);
        device + self.dimms.iter().map(|dimm| dimm.size.0).sum::<u64>()
    }

    /// DIMMs that can be added yet.
    pub fn free_slots(&self) -> u32 {
        self.slots.saturating_sub(u32::try_from(self.dimms.len()).unwrap_or(u32::MAX))
    }

    /// What it may still be given: whole steps.
    fn room(&self) -> u64 {
        let room = self.most.saturating_sub(self.boot).saturating_sub(self.added());
        room - room % self.step
    }

    /// A number that none of its DIMMs has.
    pub fn free_number(&self) -> u64 {
        let numbers = self.dimms.iter().filter_map(|dimm| dimm::number_of(&dimm.id));
        numbers.max().map_or(1, |newest| newest.saturating_add(1))
    }
}

/// How far a change has come.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// Bytes, in the direction that was asked for.
    pub done: u64,
    /// Of them, bytes that were staged.
    pub staged: u64,
    /// DIMMs that were added or taken away.
    pub dimms: u32,
    /// To find out what is staged.
    pub decided: Duration,
    /// Why it is not all.
    pub why: Option<String>,
}

/// What is asked for, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// So many more.
    More(u64),
    /// So many back.
    Less(u64),
}

impl Ask {
    /// Of the API's two ways.
    fn of(ask: &ResizeMemory) -> Result<Ask, ApiError> {
        match (ask.grow, ask.shrink) {
            (Some(0), None) | (None, Some(0)) => Err(ApiError::usage("0 bytes: write how many, in steps of 128 MiB")),
            (Some(bytes), None) => Ok(Ask::More(bytes)),
            (None, Some(bytes)) => Ok(Ask::Less(bytes)),
            _ => Err(ApiError::usage("write either grow or shrink, in bytes")),
        }
    }

    /// So many bytes in its direction: more are positive.
    fn signed(self, bytes: u64) -> i64 {
        match self {
            Ask::More(_) => signed(bytes),
            Ask::Less(_) => -signed(bytes),
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Ask::More(bytes) | Ask::Less(bytes) => bytes,
        }
    }
}

/// Does as the API asks.
pub fn resize(daemon: &Arc<Daemon>, name: &str, ask: &ResizeMemory) -> Result<MemoryChange, ApiError> {
    change(daemon, name, Ask::of(ask)?)
}

/// Has a VM's memory follow what its guest needs, or not any more.
pub fn follow(daemon: &Arc<Daemon>, name: &str, on: bool) -> Result<MemoryView, ApiError> {
    let vm = daemon.vms.get(name)?;
    Guest::of(&vm)?;
    vm.set_follows(&daemon.records, on)?;
    daemon.memory.set_auto(name, || vm.record().follows);
    look(daemon, name)
}

/// Gives a running guest more, or asks for some back. Blocks until that is done, or it is known why not. What was done of a
/// part stays done, and is told.
pub fn change(daemon: &Arc<Daemon>, name: &str, ask: Ask) -> Result<MemoryChange, ApiError> {
    let begun = Instant::now();
    let vm = daemon.vms.get(name)?;
    let _turn = daemon.memory.turns.take(name)?;
    refuse_if_bound(daemon, &vm)?;
    let guest = Guest::of(&vm)?;
    if let Ask::More(bytes) = ask {
        refuse_if_it_cannot_take(daemon, &guest, bytes)?;
    }
    let change = match (ask, &guest.device) {
        (_, Some(device)) => elastic::resize(&guest.qemu, name, device, ask)?,
        (Ask::More(bytes), None) => grow(&daemon.memory, &guest, bytes, begun)?,
        (Ask::Less(bytes), None) => shrink(&daemon.memory, &guest, bytes),
    };
    told(name, ask, change, begun, &vm)
}

/// Adds DIMMs.
fn grow(memory: &Memory, guest: &Guest, bytes: u64, begun: Instant) -> Result<Change, ApiError> {
    let name = &guest.name;
    let fits = |wanted: &u64| (1..=guest.room()).contains(wanted);
    let wanted = bytes.checked_next_multiple_of(guest.step).filter(fits).ok_or_else(|| {
        let room = Bytes(guest.room());
        let (step, bytes) = (Bytes(guest.step), Bytes(bytes));
        ApiError::refused(format!(
            "VM '{name}' can be given {room} more, in steps of {step}, and {bytes} was asked for"
        ))
        .then("ask for less, or start it with a larger --max-memory")
    })?;
    if guest.free_slots() == 0 {
        return Err(ApiError::refused(format!("all {} memory slots of VM '{name}' are taken", guest.slots))
            .then("shrink it first: smaller DIMMs make room for larger ones"));
    }
    let change = Growth::of(memory, guest, wanted).run();
    if let Some(group) = memory.group_of(name) {
        let (size, hit) = (Bytes(wanted), Bytes(change.staged));
        group.note(&Served { vm: name, size, whole: false, hit, took: begun.elapsed() });
    }
    Ok(change)
}

/// Takes DIMMs away: whole ones, those first that the guest has touched least, never more than asked.
fn shrink(memory: &Memory, guest: &Guest, bytes: u64) -> Change {
    let mut change = Change::default();
    for dimm in
        heat::by_heat(&guest.qemu, &guest.name, &guest.dimms).into_iter().filter(|dimm| dimm::is_given(&dimm.id))
    {
        if dimm.size.0 > bytes.saturating_sub(change.done) {
            continue;
        }
        match remove_dimm(&guest.qemu, &dimm.id, PATIENCE) {
            Ok(()) => {
                memory.let_go(&guest.name, &dimm.id);
                change.done += dimm.size.0;
                change.dimms += 1;
            }
            // It keeps this one; another it may let go.
            Err(error) => {
                if matches!(error, MemoryDeviceError::NoAnswer { .. }) {
                    memory.owes(&guest.name);
                }
                change.why = Some(error.to_string());
            }
        }
    }
    if change.done == bytes {
        change.why = None;
    } else if change.why.is_none() {
        let sizes: Vec<String> = guest.dimms.iter().map(|dimm| dimm.size.to_string()).collect();
        let sizes = if sizes.is_empty() { "none".to_string() } else { sizes.join(", ") };
        change.why = Some(format!("only whole DIMMs can go, and it has {sizes}"));
    }
    change
}

/// What a VM has, and may have.
pub fn look(daemon: &Arc<Daemon>, name: &str) -> Result<MemoryView, ApiError> {
    let vm = daemon.vms.get(name)?;
    let guest = Guest::of(&vm);
    let (heat, touched) = daemon.memory.heats.view(name).unzip();
    let touched = touched.unwrap_or_default();
    let mut view = MemoryView {
        vm: name.to_string(),
        group: daemon.memory.group_of(name).map(|group| group.name.to_string()),
        auto: daemon.memory.is_auto(name),
        backed: super::demand::backed(&vm).map_or(0, |bytes| bytes.0),
        heat,
        ..Default::default()
    };
    match guest {
        Ok(guest) => {
            (view.boot, view.now, view.most) = (guest.boot, guest.boot + guest.added(), guest.most);
            view.free_slots = guest.free_slots();
            let percent = |id: &str| Some((touched.get(id)? * 100.0).round() as u32);
            let dimm =
                |dimm: &Dimm| DimmView { id: dimm.id.clone(), size: dimm.size.0, touched_percent: percent(&dimm.id) };
            view.dimms = guest.dimms.iter().map(dimm).collect();
        }
        Err(_) => {
            let qemu = vm.qemu();
            let resolved = qemu.as_ref().and_then(|qemu| qemu.record().resolved.as_ref());
            let boot = resolved.map_or(0, |resolved| resolved.memory);
            (view.boot, view.now, view.most) = (boot, boot, boot);
        }
    }
    Ok(view)
}

/// Refuses more than a guest has the memory to describe: a Linux that is given too much at once stands, perhaps for good. Only
/// the agent in it can tell.
fn refuse_if_it_cannot_take(daemon: &Daemon, guest: &Guest, wanted: u64) -> Result<(), ApiError> {
    let (name, wanted) = (&guest.name, wanted.checked_next_multiple_of(guest.step).unwrap_or(wanted));
    let heard = daemon.vitals.agent(name).filter(|_| daemon.vitals.beats(name));
    let Some(free) = heard.map(|view| view.memory_free) else { return Ok(()) };
    let takes = free.saturating_mul(STEP_PER_FREE);
    if wanted <= takes {
        return Ok(());
    }
    let (wanted, free, takes) = (Bytes(wanted), Bytes(free), Bytes(takes - takes % guest.step));
    let refused = ApiError::refused(format!("VM '{name}' has {free} free, too little to take {wanted} at once"));
    Err(match takes {
        Bytes(0) => refused.then("free some of its memory first, in it: its kernel needs some to take more"),
        _ => refused.then(format!("give it {takes} at most, and the rest when it has that")),
    })
}

/// Refuses what would change a guest's memory under somebody who carries it elsewhere.
fn refuse_if_bound(daemon: &Arc<Daemon>, vm: &VmHandle) -> Result<(), ApiError> {
    let record = vm.record();
    daemon.protections.refuse_if_protected(&record.name)?;
    let moving = |disk: &String| daemon.keeper.get(disk).is_ok_and(|volume| volume.record().move_id.is_some());
    let updating = record.beside.is_some() || daemon.updates.is_under_way(&record.name);
    let why = match (updating, record.disks.iter().any(moving)) {
        (true, _) => "is being updated",
        (_, true) => "is being moved",
        _ => return Ok(()),
    };
    Err(ApiError::refused(format!("VM '{}' {why}: its memory cannot change now", record.name))
        .then("ask again when that is over"))
}

impl Memory {
    /// Takes back what a guest has let go of while nobody waited, and what its QEMU never got. Only while nobody else changes its
    /// memory. False when its monitor does not answer.
    pub(super) fn sweep(&self, vm: &str, qemu: &Qemu) -> bool {
        match sweep_backends(qemu) {
            Ok(swept) => swept.iter().for_each(|id| self.let_go(vm, id)),
            Err(error) => {
                tracing::debug!(vm, %error, "what it has let go of is not known");
                return false;
            }
        }
        self.take_back_what_it_never_got(vm, qemu);
        true
    }

    /// A VM's guest may let go of memory, or turn out to have none, while nobody waits.
    pub(super) fn owes(&self, vm: &str) {
        self.owing.lock().insert(vm.to_string(), LOOKS);
    }

    /// Looks at one VM of which an answer is owed. A monitor that does not answer is asked for as long as its QEMU lives.
    fn settle(&self, daemon: &Daemon, vm: &str) {
        // Nobody's turn, nor that of an earlier look at it that still waits.
        let Some(_turn) = self.turns.glance(vm) else { return };
        let qemu = daemon.vms.get(vm).ok().and_then(|vm| vm.qemu());
        let answered = qemu.as_ref().map(|qemu| self.sweep(vm, qemu));
        let mut owing = self.owing.lock();
        let Some(left) = owing.get_mut(vm) else { return };
        *left = left.saturating_sub(u32::from(answered == Some(true)));
        if answered.is_none() || *left == 0 {
            owing.remove(vm);
        }
    }
}

/// Looks whether guests of which an answer is owed have let go of memory since, each on a thread of its own: a monitor that
/// hangs holds up nobody.
pub(super) fn settle_owed(daemon: &Arc<Daemon>) {
    let owing: Vec<String> = daemon.memory.owing.lock().keys().cloned().collect();
    for vm in owing {
        let daemon = Arc::clone(daemon);
        thread::spawn(move || daemon.memory.settle(&daemon, &vm));
    }
}

/// As many bytes with a sign; what no host has is the most that there is.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn told(name: &str, ask: Ask, change: Change, begun: Instant, vm: &VmHandle) -> Result<MemoryChange, ApiError> {
    let now = Guest::of(vm).map_or(0, |guest| guest.boot + guest.added());
    if change.done == 0
        && let Some(why) = &change.why
    {
        return Err(ApiError::unavailable(format!("the memory of VM '{name}' has not changed: {why}"))
            .then("see `gnomon vm memory`, and the guest's log: it needs ACPI memory hotplug, and memhp_default_state=online_movable to give memory back"));
    }
    Ok(MemoryChange {
        vm: name.to_string(),
        asked: ask.signed(ask.bytes()),
        done: ask.signed(change.done),
        staged: change.staged,
        dimms: change.dimms,
        decided_us: change.decided.as_secs_f64() * 1e6,
        took_ms: begun.elapsed().as_secs_f64() * 1e3,
        now,
        why: change.why,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_nobody_has_can_be_asked_for_both_ways() {
        for (bytes, told) in [(0, 0), (1 << 40, 1 << 40), (1 << 63, i64::MAX), (u64::MAX, i64::MAX)] {
            assert_eq!((signed(bytes), -signed(bytes)), (told, -told));
        }
    }
}
