//! This node's VMs: stock QEMU processes that outlive the daemon and are found again.
//!
//! All verbs block (QEMU is asked, processes are waited for) and are called from blocking threads.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use gnomon_qemu::{
    Accel, Accelerator, DiskSource, DiskSpec, GuestRam, KVM_CPU, KvmProof, Launch, MachineInfo, NicSpec,
    PROOF_TIMEOUT, PortSpec, Qemu, QemuBinary, Resolved, Role, RunState, StopDeadlines, Uplink, VmPaths, VmSpec,
    find_qemu, prove_kvm, resolve,
};
use gnomon_terms::Bytes;
use parking_lot::{Mutex, RwLock};

mod beside;
mod cables;
mod found;
mod handle;
pub mod makeup;
mod waiting;

pub use beside::{Beside, Forks, Purpose};
pub use handle::VmHandle;

use super::{
    cards::{Cards, derived_address},
    keeper::{Keeper, lent},
    records::{Records, VmRecord},
};
use crate::{
    api::{
        ApiError,
        types::{Front, GrowBy, PortView, RunDisk, RunNic, RunVm, VmView},
    },
    names,
};

/// How long a guest's requests wait for the daemon to come back before they fail: an hour is longer than any restart
/// or upgrade of the daemon, and the guest stands meanwhile as with a disk array that fails over.
const RECONNECT_SECONDS: u32 = 3600;

/// How many times an hour the watch of a QEMU wakes up by itself; it is woken at once when the process ends.
const WATCH_PATIENCE: Duration = Duration::from_secs(3600);

/// All VMs of this node.
pub struct Vms {
    dir: PathBuf,
    keeper: Arc<Keeper>,
    records: Arc<Records>,
    cards: Cards,
    all: RwLock<BTreeMap<String, Arc<VmHandle>>>,
    host: OnceLock<Host>,
    /// VMs that have to be made to run again once their disks are served.
    interrupted: Mutex<Vec<String>>,
    /// Names of VMs of other nodes of which something is here.
    reserved: RwLock<BTreeMap<String, waiting::Reserved>>,
}

/// What was found out about this host, once.
struct Host {
    qemu: QemuBinary,
    machines: Vec<MachineInfo>,
    kvm: OnceLock<KvmProof>,
}

impl Vms {
    /// Offers the disks of every VM on record; [`Vms::find_again`] looks for the VMs themselves.
    pub fn open(run_dir: &Path, keeper: Arc<Keeper>, records: Arc<Records>) -> Result<Arc<Vms>, ApiError> {
        let vms = Arc::new(Vms {
            dir: run_dir.join("vm"),
            keeper,
            records,
            cards: Cards::default(),
            all: RwLock::default(),
            host: OnceLock::new(),
            interrupted: Mutex::default(),
            reserved: RwLock::default(),
        });
        vms.offer_again()?;
        Ok(vms)
    }

    /// The VM called `name`.
    pub fn get(&self, name: &str) -> Result<Arc<VmHandle>, ApiError> {
        self.refuse_if_reserved(name)?;
        self.all.read().get(name).cloned().ok_or_else(|| ApiError::not_found("vm", name))
    }

    /// All VMs, by name.
    pub fn list(&self) -> Vec<VmView> {
        self.all.read().values().map(|vm| self.view(vm)).collect()
    }

    /// Starts a VM on volumes of this node. `ram` may have memory for it, of just that size.
    pub fn run(
        self: &Arc<Vms>,
        request: &RunVm,
        ram: impl FnOnce(Bytes) -> Option<GuestRam>,
    ) -> Result<VmView, ApiError> {
        names::check(&request.name).map_err(|error| ApiError::usage(error.to_string()))?;
        for disk in &request.disks {
            self.refuse_if_in_use(&disk.volume)?;
        }
        let spec = self.spec_of(request)?;
        let host = self.host()?;
        let resolved =
            resolve(&spec, host.qemu.version, &host.machines, self.kvm(&spec).as_deref().map_or(Ok(()), Err))?;
        let ram = ram(Bytes(resolved.memory));
        self.start(spec, resolved, Role::Boot, ram.as_ref()).map(|vm| self.view(&vm))
    }

    /// Starts a QEMU that waits for a guest of another node. Its disks and ports are this node's.
    pub fn receive(self: &Arc<Vms>, spec: VmSpec, resolved: Resolved) -> Result<Arc<VmHandle>, ApiError> {
        self.start(spec, resolved, Role::Incoming, None)
    }

    fn start(
        self: &Arc<Vms>,
        spec: VmSpec,
        resolved: Resolved,
        role: Role,
        ram: Option<&GuestRam>,
    ) -> Result<Arc<VmHandle>, ApiError> {
        let name = spec.name.clone();
        self.refuse_if_reserved(&name)?;
        let disks = spec.disks.iter().map(|disk| disk.name.clone()).collect();
        if self.all.read().get(&name).is_some_and(|vm| vm.qemu().is_some() || vm.is_unreachable()) {
            return Err(
                ApiError::refused(format!("VM '{name}' runs already")).then("stop it, or choose another name")
            );
        }
        self.end_leftover(&name)?;
        let token = self.records.next_token()?;
        let mut record = VmRecord::new(&name, disks, token);
        let launched = self.launch(spec, resolved, role, ram, &record).and_then(|qemu| {
            record.qemu = Some(qemu.record().clone());
            self.records.put_vm(&record)?;
            Ok(qemu)
        });
        match launched {
            Ok(qemu) => Ok(self.show(record, Some(Arc::new(qemu)))),
            Err(error) => {
                // It may have come up, and not got on record.
                self.end_leftover(&record.name)?;
                self.take_disks_back(&record);
                self.cards.forget(&record.name);
                Err(error)
            }
        }
    }

    /// Starts the QEMU of a record, on disks that are lent to it alone.
    fn launch(
        &self,
        spec: VmSpec,
        resolved: Resolved,
        role: Role,
        ram: Option<&GuestRam>,
        record: &VmRecord,
    ) -> Result<Qemu, ApiError> {
        let host = self.host()?;
        let dir = self.dir.join(&record.name);
        std::fs::create_dir_all(&dir)?;
        let spec = self.localized(spec, record.token);
        for disk in &spec.disks {
            self.lend(disk, record)?;
        }
        match role {
            Role::Boot | Role::BootPaused => self.cards.gate(&record.name).plug_in_now(&spec.nics)?,
            // Its guest still has its cables elsewhere.
            Role::Incoming | Role::IncomingPaused => Cards::check(&spec.nics)?,
        }
        let launch = Launch {
            qemu: &host.qemu.path,
            host_args: &[],
            spec: &spec,
            resolved: &resolved,
            dir: &dir,
            role,
            ram: ram.map(GuestRam::shared),
        };
        Ok(Qemu::launch(&launch)?)
    }

    /// Offers a disk to the QEMU of a record, and to it alone.
    fn lend(&self, disk: &DiskSpec, record: &VmRecord) -> Result<(), ApiError> {
        self.keeper.lend(&disk.name, record.token, &record.name)?;
        match &disk.source {
            DiskSource::VhostUser { socket } => self.keeper.lend_queues(&disk.name, record.token, socket),
            _ => Ok(()),
        }
    }

    fn take_disks_back(&self, record: &VmRecord) {
        for disk in &record.disks {
            self.keeper.take_back(disk, record.token);
        }
    }

    /// Looks after a QEMU that somebody else started.
    pub fn adopt(self: &Arc<Vms>, name: &str, qmp: &Path) -> Result<VmView, ApiError> {
        names::check(name).map_err(|error| ApiError::usage(error.to_string()))?;
        self.refuse_if_reserved(name)?;
        if self.all.read().contains_key(name) {
            return Err(ApiError::refused(format!("there is a VM '{name}' already")).then("choose another name"));
        }
        let qemu = Qemu::adopt_socket(name, qmp)?;
        let record = VmRecord { qemu: Some(qemu.record().clone()), ..VmRecord::new(name, Vec::new(), 0) };
        self.records.put_vm(&record)?;
        Ok(self.view(&self.show(record, Some(Arc::new(qemu)))))
    }

    /// Ends a VM: its guest is asked first unless `force`. A VM that has ended already is forgotten.
    pub fn stop(&self, name: &str, force: bool) -> Result<VmView, ApiError> {
        let vm = self.get(name)?;
        if let Some(qemu) = vm.qemu() {
            let patient = StopDeadlines::default();
            let deadlines = if force { StopDeadlines { powerdown: Duration::ZERO, ..patient } } else { patient };
            let exited = qemu.stop(deadlines)?;
            vm.ended(&exited.to_string(), String::new());
        } else if vm.is_unreachable() {
            if !force {
                return Err(ApiError::refused(format!("VM '{name}' runs, and its monitor does not answer"))
                    .then("end other connections to its monitor, or kill it with --force"));
            }
            vm.kill_unreachable()?;
        }
        let view = self.view(&vm);
        self.forget(name)?;
        Ok(view)
    }

    /// Ends a QEMU that was started for a VM and is not on record: the daemon died between the two, and told nobody that
    /// it runs. Does nothing when the VM has one that is.
    pub fn end_leftover(&self, name: &str) -> Result<(), ApiError> {
        if self.all.read().get(name).is_some_and(|vm| vm.qemu().is_some() || vm.is_unreachable()) {
            return Ok(());
        }
        if let Some(pid) = gnomon_qemu::end_leftover(&self.dir.join(name))? {
            tracing::warn!(vm = name, pid, "a QEMU that nobody knew of was ended");
        }
        Ok(())
    }

    /// Ends the QEMU of a guest that lives elsewhere now, or will not come, and forgets it.
    pub fn remove(&self, name: &str) -> Result<(), ApiError> {
        let vm = self.get(name)?;
        if let Some(qemu) = vm.qemu() {
            let at_once = StopDeadlines { powerdown: Duration::ZERO, ..StopDeadlines::default() };
            qemu.stop(at_once)?;
        }
        vm.kill_unreachable()?;
        self.forget(name)
    }

    fn forget(&self, name: &str) -> Result<(), ApiError> {
        let mut all = self.all.write();
        self.records.remove_vm(name)?;
        let vm = all.remove(name);
        drop(all);
        self.cards.forget(name);
        if let Some(vm) = vm {
            self.take_disks_back(&vm.record());
        }
        Ok(())
    }

    /// Shows a VM, and watches for its end.
    fn show(self: &Arc<Vms>, record: VmRecord, qemu: Option<Arc<Qemu>>) -> Arc<VmHandle> {
        let name = record.name.clone();
        let vm = Arc::new(VmHandle { record: Mutex::new(record), qemu: Mutex::new(qemu.clone()) });
        self.all.write().insert(name.clone(), Arc::clone(&vm));
        if let Some(qemu) = qemu {
            self.watch(&vm, &qemu);
        }
        vm
    }

    /// Watches for the end of a VM's QEMU, on a thread of its own.
    fn watch(self: &Arc<Vms>, vm: &Arc<VmHandle>, qemu: &Arc<Qemu>) {
        let (watched, vms, weak) = (Arc::downgrade(vm), Arc::downgrade(self), Arc::downgrade(qemu));
        let (watch, pid, name) = (qemu.exit_watch(), qemu.record().pid, vm.record().name);
        thread::spawn(move || {
            let exited = loop {
                if let Some(exited) = watch.wait(WATCH_PATIENCE) {
                    break exited;
                }
            };
            let (Some(vm), Some(vms)) = (watched.upgrade(), vms.upgrade()) else { return };
            if vm.qemu().is_some_and(|now| now.record().pid != pid) {
                // Another one runs the guest by now.
                return;
            }
            let words = weak.upgrade().map(|qemu| qemu.last_words()).unwrap_or_default();
            tracing::warn!(vm = name, exit = %exited, said = words, "QEMU has ended");
            vm.ended(&exited.to_string(), words);
            let record = vm.record();
            vms.take_disks_back(&record);
            // A VM that was stopped or moved has been forgotten, or is about to be: nothing may be written for it after.
            let all = vms.all.read();
            let known = all.get(&name).is_some_and(|known| Arc::ptr_eq(known, &vm));
            if known {
                vms.gate(&name).unplug();
            }
            if known && let Err(error) = vm.change(&vms.records, |_| {}) {
                tracing::error!(vm = name, %error, "its end could not be recorded");
            }
        });
    }

    /// Whether no QEMU of this name is known to run here, nor could be: what one had may be given to others.
    pub fn is_free(&self, name: &str) -> bool {
        let none = |vm: &Arc<VmHandle>| vm.qemu().is_none() && !vm.is_unreachable() && vm.record().beside.is_none();
        self.all.read().get(name).is_none_or(none)
    }

    /// Every VM that has a QEMU, by name.
    pub fn running(&self) -> Vec<(String, Arc<Qemu>)> {
        let all = self.all.read();
        all.iter().filter_map(|(name, vm)| Some((name.clone(), vm.qemu()?))).collect()
    }

    fn refuse_if_in_use(&self, disk: &str) -> Result<(), ApiError> {
        self.keeper.get(disk)?;
        let user = self.all.read().values().find(|vm| vm.uses(disk)).map(|vm| vm.record().name);
        match user {
            Some(vm) => Err(ApiError::refused(format!("volume '{disk}' is a disk of VM '{vm}'"))
                .then("two writers on one disk destroy it: stop that VM first")),
            None => Ok(()),
        }
    }

    fn spec_of(&self, request: &RunVm) -> Result<VmSpec, ApiError> {
        let accel = match request.accel.as_str() {
            "kvm" => Accel::Kvm,
            "tcg" => Accel::Tcg,
            "auto" | "" => Accel::Auto,
            other => return Err(ApiError::usage(format!("accel '{other}' is not known: write auto, kvm or tcg"))),
        };
        let nics = request.nics.iter().enumerate().map(|(index, nic)| self.nic(&request.name, index, nic));
        let nics = nics.collect::<Result<_, _>>()?;
        Ok(VmSpec {
            max_memory: request.max_memory,
            virtio_mem: (request.grow_by == GrowBy::VirtioMem)
                .then(|| request.max_memory.map(|most| most.saturating_sub(request.memory)))
                .flatten(),
            cpus: request.cpus,
            machine: request.machine.clone().unwrap_or_else(|| "q35".to_string()),
            accel,
            cpu_model: request.cpu.clone(),
            disks: request.disks.iter().map(|disk| self.disk(&request.name, disk)).collect(),
            kernel: request.kernel.clone(),
            initrd: request.initrd.clone(),
            cmdline: request.append.clone(),
            ports: request.ports.iter().map(|port| self.port(&request.name, port)).collect(),
            nics,
            ..VmSpec::new(&request.name, request.memory)
        })
    }

    /// A disk of a VM that is not lent to any QEMU yet.
    fn disk(&self, vm: &str, disk: &RunDisk) -> DiskSpec {
        let source = match disk.front {
            Front::Nbd => self.nbd(&disk.volume),
            Front::VhostUser => self.queues(vm, &disk.volume),
        };
        DiskSpec { name: disk.volume.clone(), source, read_only: false, reconnect_seconds: RECONNECT_SECONDS }
    }

    fn nbd(&self, export: &str) -> DiskSource {
        DiskSource::Nbd { socket: self.keeper.nbd_socket().to_path_buf(), export: export.to_string() }
    }

    fn queues(&self, vm: &str, volume: &str) -> DiskSource {
        DiskSource::VhostUser { socket: self.dir.join(vm).join(format!("{volume}.disk.sock")) }
    }

    fn nic(&self, vm: &str, index: usize, nic: &RunNic) -> Result<NicSpec, ApiError> {
        let given = nic.mac.as_deref().map(|mac| mac.parse()).transpose();
        let mac = given.map_err(|error| ApiError::usage(format!("{error}")))?;
        let uplink = Uplink::Tap { name: nic.tap.clone(), bridge: nic.bridge.clone() };
        let (socket, peer) = nic_sockets(&self.dir.join(vm), index);
        Ok(NicSpec { mac: mac.unwrap_or_else(|| derived_address(vm, index)), uplink, socket, peer })
    }

    fn port(&self, vm: &str, port: &str) -> PortSpec {
        PortSpec { name: port.to_string(), socket: self.dir.join(vm).join(format!("{port}.sock")) }
    }

    /// The same guest with this node's sockets, and its disks as they are lent to the QEMU with `token`.
    fn localized(&self, spec: VmSpec, token: u64) -> VmSpec {
        let dir = self.dir.join(&spec.name);
        self.localized_in(&dir, spec, token)
    }

    /// The same, with the sockets of its ports in `dir`.
    fn localized_in(&self, dir: &Path, mut spec: VmSpec, token: u64) -> VmSpec {
        for disk in &mut spec.disks {
            disk.source = match disk.source {
                DiskSource::VhostUser { .. } => self.queues(&spec.name, &disk.name),
                _ => self.nbd(&lent(&disk.name, token)),
            };
            disk.reconnect_seconds = RECONNECT_SECONDS;
        }
        for port in &mut spec.ports {
            port.socket = dir.join(format!("{}.sock", port.name));
        }
        for (index, nic) in spec.nics.iter_mut().enumerate() {
            (nic.socket, nic.peer) = nic_sockets(dir, index);
        }
        spec
    }

    fn host(&self) -> Result<&Host, ApiError> {
        if let Some(host) = self.host.get() {
            return Ok(host);
        }
        let path = find_qemu().ok_or_else(|| {
            ApiError::unavailable("there is no qemu-system-x86_64 in PATH")
                .then("install it (Debian: apt-get install qemu-system-x86) and see `gnomon doctor`")
        })?;
        let qemu = QemuBinary::inspect(&path)?;
        let machines = qemu.machines()?;
        Ok(self.host.get_or_init(|| Host { qemu, machines, kvm: OnceLock::new() }))
    }

    /// Why KVM cannot be used; `None` when it can. Tried once, and only for guests that want it.
    fn kvm(&self, spec: &VmSpec) -> Option<String> {
        if spec.accel == Accel::Tcg {
            return Some("emulation was asked for".to_string());
        }
        let host = self.host().ok()?;
        let proof = host.kvm.get_or_init(|| prove_kvm(&host.qemu.path, KVM_CPU, PROOF_TIMEOUT));
        (!proof.usable).then(|| proof.why.clone())
    }

    /// The VM as the API shows it.
    pub fn view(&self, vm: &VmHandle) -> VmView {
        let record = vm.record();
        let qemu = vm.qemu();
        let status = match &qemu {
            None if vm.is_unreachable() => "unreachable".to_string(),
            None => "exited".to_string(),
            Some(qemu) => qemu
                .qmp()
                .query_status()
                .map_or_else(|_| "unreachable".to_string(), |status| state_word(&status.state).to_string()),
        };
        let known = record.qemu.as_ref();
        let spec = known.and_then(|qemu| qemu.spec.as_ref());
        let resolved = known.and_then(|qemu| qemu.resolved.as_ref());
        let paths = VmPaths::new(known.and_then(|qemu| qemu.qmp.parent()).unwrap_or(&self.dir));
        VmView {
            status,
            pid: qemu.as_ref().map(|qemu| qemu.record().pid.unsigned_abs()),
            memory: resolved.map_or(0, |resolved| resolved.memory),
            accel: resolved.map(accel_word).unwrap_or_default(),
            machine: resolved.map(|resolved| resolved.machine.clone()).unwrap_or_default(),
            cpu: spec.and_then(|spec| spec.cpu_model.clone()),
            ports: spec.map(|spec| spec.ports.iter().map(port_view).collect()).unwrap_or_default(),
            version: known.map(|qemu| qemu.version.to_string()).unwrap_or_default(),
            console: spec.map(|_| paths.console().display().to_string()),
            qmp: known.map(|qemu| qemu.qmp.display().to_string()).unwrap_or_default(),
            disks: record.disks,
            nics: self.cards.gate(&record.name).view(),
            exit: record.exit,
            stderr: record.stderr,
            agent: None,
            name: record.name,
            protection: None,
            protections: Vec::new(),
            shadow: None,
            ram: None,
        }
    }
}

/// QEMU's own word for a state.
fn state_word(state: &RunState) -> &str {
    match state {
        RunState::Prelaunch => "prelaunch",
        RunState::Inmigrate => "inmigrate",
        RunState::Running => "running",
        RunState::Paused => "paused",
        RunState::IoError => "io-error",
        RunState::FinishMigrate => "finish-migrate",
        RunState::Postmigrate => "postmigrate",
        RunState::Shutdown => "shutdown",
        RunState::Other(word) => word,
    }
}

fn accel_word(resolved: &Resolved) -> String {
    match resolved.accelerator {
        Accelerator::Kvm => "kvm".to_string(),
        Accelerator::Tcg => "tcg".to_string(),
    }
}

/// QEMU's socket of a card, and the daemon's.
fn nic_sockets(dir: &Path, index: usize) -> (PathBuf, PathBuf) {
    (dir.join(format!("nic{index}.qemu")), dir.join(format!("nic{index}.sock")))
}

fn port_view(port: &PortSpec) -> PortView {
    PortView { name: port.name.clone(), socket: port.socket.display().to_string() }
}
