//! What a running guest is to become, and whether it can without noticing.
//!
//! A guest keeps its machine and its processor for as long as it runs. The state of one machine type cannot be loaded
//! into another one; that of one processor model loads into another without a word, and the guest finds out when an
//! instruction is gone. So both are compared before anything is touched: the machine types by the versioned names that
//! the new QEMU knows them by, and all that a guest sees of its processor, asked of its own QEMU and of the new one
//! started without a guest. What is the same by another name is changed while the guest runs. Anything else needs a
//! guest that boots. A command in the guest changes neither: of that it is asked whether somebody there would run it.

use std::{fmt, path::Path};

use gnomon_qemu::{MachineInfo, Processor, QemuBinary, Resolved};

use super::{command::GuestCommand, processors};
use crate::{
    api::{
        ApiError,
        types::{UpdateKind, UpdateVm},
    },
    daemon::{
        Daemon,
        records::{NamesRecord, ProgramRecord, VmRecord},
        vms::VmHandle,
    },
};

/// What a guest is to become.
pub struct Target {
    /// The program that is to run it.
    pub program: QemuBinary,
    /// What its machine and its processor are to be called there.
    pub names: NamesRecord,
    /// The name of a machine type that was asked for.
    machine: Option<String>,
    /// Whether another name of its processor was asked for.
    asks_for_a_processor: bool,
    /// What is to be done in the guest itself.
    pub command: Option<GuestCommand>,
    /// What that changes.
    pub kind: UpdateKind,
    /// What it runs in now, in words.
    pub from: String,
}

impl Target {
    /// What is asked for.
    pub fn of(daemon: &Daemon, vm: &VmHandle, ask: &UpdateVm) -> Result<Target, ApiError> {
        let record = vm.record();
        let (own, names) = own(daemon, vm)?;
        let next = NamesRecord {
            machine: ask.machine.clone().unwrap_or_else(|| names.machine.clone()),
            cpu: ask.cpu.clone().or_else(|| names.cpu.clone()),
        };
        let command = GuestCommand::of(ask)?;
        let kind = match (&ask.qemu, &ask.machine, &ask.cpu) {
            (None, None, None) if command.is_some() => UpdateKind::GuestExec,
            (None, None, None) => {
                return Err(ApiError::usage("say what is to change: --qemu, --machine, --cpu or --guest-exec"));
            }
            _ if command.is_some() => {
                return Err(ApiError::usage(
                    "a command in the guest is an update of its own: give --guest-exec alone",
                ));
            }
            (Some(_), _, _) => UpdateKind::Qemu,
            _ if next == names => {
                return Err(ApiError::refused(format!("VM '{}' has these names already", record.name))
                    .then("see `gnomon vm show`"));
            }
            (None, Some(_), _) => UpdateKind::Machine,
            (None, None, Some(_)) => UpdateKind::Cpu,
        };
        let program = match &ask.qemu {
            Some(path) => program_at(path)?,
            None => recorded(&own)?,
        };
        let shown = ask.machine.as_ref().map(|_| names.machine.as_str());
        let from = words(&version(&record), shown, names.cpu.as_deref());
        let (machine, asks_for_a_processor) = (ask.machine.clone(), ask.cpu.is_some());
        Ok(Target { program, names: next, machine, asks_for_a_processor, command, kind, from })
    }

    /// What it was before its last update.
    pub fn before(daemon: &Daemon, vm: &VmHandle) -> Result<Target, ApiError> {
        let record = vm.record();
        let before = record.before.clone().ok_or_else(|| {
            ApiError::refused(format!("VM '{}' has not been updated: there is no QEMU to go back to", record.name))
                .then("see `gnomon vm events`; the rollback of a move is for a move that is draining")
        })?;
        let (_, names) = own(daemon, vm)?;
        let from = words(&version(&record), None, names.cpu.as_deref());
        let names = before.names.clone().unwrap_or(names);
        Ok(Target {
            program: recorded(&before)?,
            names,
            machine: None,
            asks_for_a_processor: false,
            command: None,
            kind: UpdateKind::Qemu,
            from,
        })
    }

    /// Refuses what can be known to fail, or to be seen by the guest, without a trial. Starts the new QEMU without a
    /// guest, and asks the guest's own: some 0.5 s.
    pub fn check(&self, vm: &VmHandle) -> Result<(), ApiError> {
        vm.refuse_unless_updatable()?;
        vm.refuse_if_its_device_has_memory()?;
        let record = vm.record();
        if record.beside.is_some() {
            return Err(ApiError::refused(format!("VM '{}' is being updated already", record.name))
                .then("see `gnomon job ls`"));
        }
        let (Some(qemu), Some((resolved, cpus))) = (vm.qemu(), resolved(vm)) else {
            return Err(not_ours(&record.name));
        };
        if let Some(command) = &self.command {
            return command.check(&qemu);
        }
        self.check_machine(&resolved, &self.program.machines()?)
            .map_err(|why| anew(&record.name, &format!("machine type cannot be changed while it runs: {why}")))?;
        let own = Processor::of(qemu.qmp())?;
        let next = self.program.processor(&resolved, cpus, self.names.cpu.as_deref()).map_err(|error| {
            ApiError::refused(format!("QEMU {} does not make this processor: {error}", self.program.version))
                .then("see what it has: qemu-system-x86_64 -cpu help")
        })?;
        match own.differences(&next).as_slice() {
            [] => Ok(()),
            seen => {
                let why = format!("VM '{}': its guest would see its processor change: ", record.name);
                let remedy = processors::remedy(
                    &record.name,
                    qemu.record().spec.as_ref().and_then(|spec| spec.cpu_model.as_deref()),
                    resolved.accelerator,
                    self.asks_for_a_processor,
                );
                Err(ApiError::refused(why + &processors::differences(seen)).then(remedy))
            }
        }
    }

    /// The machine type has to be the very one that the guest has, by whatever name.
    fn check_machine(&self, has: &Resolved, known: &[MachineInfo]) -> Result<(), String> {
        // What it was called when it was started was settled then; an alias may stand for a newer type by now.
        let named = self.machine.as_ref().unwrap_or(&has.machine);
        let version = self.program.version;
        match known.iter().find(|machine| machine.name == *named || machine.alias.as_ref() == Some(named)) {
            None => Err(format!("QEMU {version} does not know '{named}'")),
            Some(meant) if meant.name == has.machine => Ok(()),
            Some(meant) => Err(format!("'{named}' is {} in QEMU {version}, and it has {}", meant.name, has.machine)),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&words(&self.program.version.to_string(), self.machine.as_deref(), self.names.cpu.as_deref()))?;
        self.command.as_ref().map_or(Ok(()), |command| write!(f, ", after {command} in the guest"))
    }
}

fn words(version: &str, machine: Option<&str>, cpu: Option<&str>) -> String {
    let named = |what: &str, name: Option<&str>| name.map(|name| format!(", {what} {name}")).unwrap_or_default();
    format!("QEMU {version}{}{}", named("machine", machine), named("processor", cpu))
}

fn version(record: &VmRecord) -> String {
    record.qemu.as_ref().map(|qemu| qemu.version.to_string()).unwrap_or_default()
}

/// What a VM runs by now, and its names there.
fn own(daemon: &Daemon, vm: &VmHandle) -> Result<(ProgramRecord, NamesRecord), ApiError> {
    let record = vm.record();
    let names = record.names().ok_or_else(|| not_ours(&record.name))?;
    let program = daemon.vms.program_of(&record).ok_or_else(|| ApiError::unavailable("no QEMU is found here"))?;
    Ok((program, names))
}

fn resolved(vm: &VmHandle) -> Option<(Resolved, u32)> {
    let qemu = vm.record().qemu?;
    Some((qemu.resolved?, qemu.spec?.cpus))
}

fn recorded(program: &ProgramRecord) -> Result<QemuBinary, ApiError> {
    Ok(QemuBinary { data_dirs: program.data_dirs.clone(), ..QemuBinary::inspect(&program.path)? })
}

/// The QEMU at a path: a program, or a folder into which packages were unpacked.
fn program_at(path: &Path) -> Result<QemuBinary, ApiError> {
    let unpacked = |root: &Path| root.join("usr/share/qemu").is_dir() && root.parent().is_some();
    let root = if path.is_dir() { Some(path) } else { path.ancestors().nth(3) };
    let program = match root.filter(|root| unpacked(root)) {
        Some(root) => QemuBinary::unpacked(root),
        None => QemuBinary::inspect(path),
    };
    program.map_err(|error| {
        ApiError::refused(format!("{} is no QEMU that could be used: {error}", path.display()))
            .then("name qemu-system-x86_64, or the folder into which its packages were unpacked")
    })
}

/// What a running guest cannot be given, and how it gets it.
fn anew(vm: &str, why: &str) -> ApiError {
    ApiError::refused(format!("VM '{vm}': its {why}"))
        .then(format!("nothing was touched; to change it, `gnomon vm stop {vm}` and `gnomon vm run {vm} …` anew"))
}

fn not_ours(vm: &str) -> ApiError {
    ApiError::refused(format!("VM '{vm}' does not run, or was adopted"))
        .then("only guests that gnomon started are updated while they run")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use gnomon_qemu::{Accelerator, QemuVersion};

    use super::*;

    fn target(machine: &str) -> Target {
        let version = QemuVersion { major: 10, minor: 0, micro: 2 };
        Target {
            program: QemuBinary { path: PathBuf::new(), version, data_dirs: Vec::new() },
            names: NamesRecord { machine: machine.to_string(), cpu: None },
            machine: Some(machine.to_string()),
            asks_for_a_processor: false,
            command: None,
            kind: UpdateKind::Machine,
            from: String::new(),
        }
    }

    #[test]
    fn a_machine_is_kept_by_any_of_its_names() {
        let machine = |name: &str, alias: Option<&str>| MachineInfo {
            name: name.into(),
            alias: alias.map(str::to_string),
            cpu_max: 255,
            deprecated: false,
        };
        let newer =
            [machine("pc-q35-10.0", Some("q35")), machine("pc-q35-7.2", None), machine("pc-i440fx-7.2", None)];
        let older = [machine("pc-q35-7.2", Some("q35"))];
        let table = [
            ("pc-q35-7.2", &newer[..], None),
            ("pc-q35-7.2", &older[..], None),
            ("q35", &older[..], None),
            ("q35", &newer[..], Some("'q35' is pc-q35-10.0 in QEMU 10.0.2, and it has pc-q35-7.2")),
            (
                "pc-i440fx-7.2",
                &newer[..],
                Some("'pc-i440fx-7.2' is pc-i440fx-7.2 in QEMU 10.0.2, and it has pc-q35-7.2"),
            ),
            ("pdp11", &newer[..], Some("QEMU 10.0.2 does not know 'pdp11'")),
        ];
        let has = Resolved {
            machine: "pc-q35-7.2".into(),
            accelerator: Accelerator::Tcg,
            memory: 1 << 24,
            dimms: Vec::new(),
        };
        for (named, known, refused) in table {
            let told = target(named).check_machine(&has, known);
            assert_eq!(told.err().as_deref(), refused, "{named}");
        }
        // Not asked for: the alias by which it was once started does not matter.
        assert_eq!(Target { machine: None, ..target("q35") }.check_machine(&has, &newer), Ok(()));
    }
}
