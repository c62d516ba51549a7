//! The QEMU command line of a guest: a pure function, tested by tables.

use std::path::Path;

use serde_json::json;

use crate::{
    kvm::KVM_CPU,
    memory::{VIRTIO_MEM, VIRTIO_MEM_BACKEND, backend_of},
    ram::{RAM_ID, RamSharing},
};

use super::{Accelerator, DiskSource, DiskSpec, NetSpec, NicSpec, PortSpec, RamFd, Resolved, VmPaths, VmSpec};

/// How long QEMU may wait at its start for an NBD server that is not there yet, in seconds. Less than we wait for
/// QEMU's greeting, so that the error told is QEMU's own.
const OPEN_TIMEOUT: u32 = 10;

/// In which role QEMU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The guest boots.
    Boot,
    /// QEMU is ready and the guest does not run until `cont`.
    BootPaused,
    /// Waits for `migrate-incoming`; the guest runs as soon as it has been loaded.
    Incoming,
    /// Waits for `migrate-incoming`; once loaded the guest does not run until `cont`.
    IncomingPaused,
}

/// The arguments (without the program) that start `spec`. The same spec and the same [`Resolved`] give the same
/// devices in the same order at the same addresses, which is what makes two QEMUs able to exchange a guest.
pub fn command_line(spec: &VmSpec, resolved: &Resolved, paths: &VmPaths, role: Role) -> Vec<String> {
    let mut args = Args::default();
    basics(&mut args, spec);
    machine(&mut args, spec, resolved, paths);
    monitor_and_console(&mut args, spec, paths);
    for (index, disk) in spec.disks.iter().enumerate() {
        add_disk(&mut args, disk, index);
    }
    add_boot(&mut args, spec);
    add_ports(&mut args, &spec.ports);
    add_net(&mut args, &spec.net);
    add_nics(&mut args, &spec.nics);
    add_virtio_mem(&mut args, spec);
    add_dimms(&mut args, resolved, paths);
    args.flags(match role {
        Role::Boot => &[],
        Role::BootPaused => &["-S"],
        Role::Incoming => &["-incoming", "defer"],
        Role::IncomingPaused => &["-incoming", "defer", "-S"],
    });
    args.0.extend(spec.extra_args.iter().cloned());
    args.0
}

/// An argument list that grows.
#[derive(Default)]
struct Args(Vec<String>);

impl Args {
    fn option(&mut self, name: &str, value: impl Into<String>) {
        self.0.extend([name.to_string(), value.into()]);
    }

    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(|flag| flag.to_string()));
    }
}

/// Nothing that QEMU would add by itself, and nothing from files of the host: what runs is what is written here.
fn basics(args: &mut Args, spec: &VmSpec) {
    args.option("-name", format!("guest={}", escape(&spec.name)));
    args.flags(&["-nodefaults", "-no-user-config", "-display", "none"]);
    args.option("-msg", "timestamp=on");
}

fn machine(args: &mut Args, spec: &VmSpec, resolved: &Resolved, paths: &VmPaths) {
    let machine = escape(&resolved.machine);
    let backend = paths.ram.map(|ram| ram_backend(RAM_ID, resolved.memory, ram));
    match backend {
        Some(backend) => {
            args.option("-object", backend);
            args.option("-machine", format!("{machine},memory-backend={RAM_ID}"));
        }
        None => args.option("-machine", machine),
    }
    args.option("-accel", resolved.accelerator.to_string());
    args.option("-m", memory_size(spec, resolved));
    args.option("-smp", spec.cpus.to_string());
    if let Some(model) = cpu_model(spec.cpu_model.as_deref(), resolved.accelerator) {
        args.option("-cpu", model);
    }
}

/// What can be added is counted from what the guest begins with, which is a little more than `memory` where the
/// accelerator needs it so: the last DIMM would not fit otherwise.
fn memory_size(spec: &VmSpec, resolved: &Resolved) -> String {
    let size = resolved.memory;
    match spec.max_memory {
        None => format!("size={size}b"),
        Some(most) => {
            let most = size + most.saturating_sub(spec.memory);
            format!("size={size}b,slots={},maxmem={most}b", spec.memory_slots)
        }
    }
}

/// Where the guest has them already, by what it was told where it ran before.
fn add_dimms(args: &mut Args, resolved: &Resolved, paths: &VmPaths) {
    let Some(ram) = paths.ram else { return };
    for (dimm, fd) in resolved.dimms.iter().zip(&paths.dimms) {
        let backend = backend_of(&dimm.id);
        args.option("-object", ram_backend(&backend, dimm.size, RamFd { fd: *fd, ..ram }));
        let (id, slot, address) = (&dimm.id, dimm.slot, dimm.address);
        args.option("-device", format!("pc-dimm,id={id},memdev={backend},slot={slot},addr={address:#x}"));
    }
}

/// A memfd of QEMU's own: the device empties it at its start, so nothing could be put there before.
fn add_virtio_mem(args: &mut Args, spec: &VmSpec) {
    let Some(size) = spec.virtio_mem else { return };
    args.option("-object", format!("memory-backend-memfd,id={VIRTIO_MEM_BACKEND},size={size},share=on,reserve=off"));
    args.option("-device", format!("virtio-mem-pci,id={VIRTIO_MEM},memdev={VIRTIO_MEM_BACKEND},requested-size=0"));
}

/// The processor model that QEMU is given for one that was named or left open; `None`: it takes its own default.
pub(crate) fn cpu_model(named: Option<&str>, accelerator: Accelerator) -> Option<&str> {
    match (named, accelerator) {
        (Some(model), _) => Some(model),
        (None, Accelerator::Kvm) => Some(KVM_CPU),
        (None, Accelerator::Tcg) => None,
    }
}

/// A file backend counts as RAM with a name, which newer QEMU demands of what `x-ignore-shared` leaves out; a memfd
/// backend of QEMU's own does not.
fn ram_backend(id: &str, size: u64, ram: RamFd) -> String {
    let (fd, prealloc) = (ram.fd, if ram.populate { ",prealloc=on" } else { "" });
    let share = match ram.sharing {
        RamSharing::Shared => "on",
        RamSharing::Forked => "off",
    };
    format!("memory-backend-file,id={id},size={size},mem-path=/proc/self/fd/{fd},share={share}{prealloc}")
}

fn monitor_and_console(args: &mut Args, spec: &VmSpec, paths: &VmPaths) {
    let at = match paths.qmp_fd {
        Some(fd) => format!("fd={fd}"),
        None => format!("path={}", escape_path(&paths.qmp())),
    };
    args.option("-chardev", format!("socket,id=qmp,{at},server=on,wait=off"));
    args.option("-mon", "chardev=qmp,mode=control");
    let log = match spec.console_log {
        true => format!(",logfile={},logappend=on", escape_path(&paths.console_log())),
        false => String::new(),
    };
    let socket = escape_path(&paths.console());
    args.option("-chardev", format!("socket,id=console,path={socket},server=on,wait=off{log}"));
    args.option("-serial", "chardev:console");
}

fn add_disk(args: &mut Args, disk: &DiskSpec, index: usize) {
    let id = format!("disk-{}", disk.name);
    let boot = index + 1;
    if let DiskSource::VhostUser { socket } = &disk.source {
        args.option("-chardev", format!("socket,id={id},path={},reconnect=1", escape_path(socket)));
        args.option("-device", format!("vhost-user-blk-pci,chardev={id},id=dev-{id},bootindex={boot}"));
        return;
    }
    args.option("-blockdev", blockdev(disk, &id));
    // A failing disk makes the guest stand instead of seeing errors: its owner decides, and `cont` tries again.
    args.option(
        "-device",
        format!(
            "virtio-blk-pci,drive={id},id=dev-{id},serial={},bootindex={boot},rerror=stop,werror=stop",
            &disk.name[..disk.name.len().min(20)]
        ),
    );
}

/// JSON, so that no byte of a path or an export name needs escaping rules of QEMU's own.
fn blockdev(disk: &DiskSpec, id: &str) -> String {
    let read_only = disk.read_only;
    match &disk.source {
        DiskSource::Nbd { socket, export } => json!({
            "driver": "nbd", "node-name": id, "read-only": read_only, "discard": "unmap",
            "server": { "type": "unix", "path": socket }, "export": export,
            "reconnect-delay": disk.reconnect_seconds, "open-timeout": OPEN_TIMEOUT,
        }),
        DiskSource::File { path, format } => json!({
            "driver": format, "node-name": id, "read-only": read_only, "discard": "unmap",
            "file": { "driver": "file", "filename": path, "discard": "unmap" },
        }),
        DiskSource::VhostUser { .. } => unreachable!("vhost-user disks have no block node; add_disk returned"),
    }
    .to_string()
}

fn add_boot(args: &mut Args, spec: &VmSpec) {
    let path = |p: &Path| p.to_string_lossy().into_owned();
    if let Some(kernel) = &spec.kernel {
        args.option("-kernel", path(kernel));
    }
    if let Some(initrd) = &spec.initrd {
        args.option("-initrd", path(initrd));
    }
    if let Some(cmdline) = &spec.cmdline {
        args.option("-append", cmdline.clone());
    }
}

fn add_ports(args: &mut Args, ports: &[PortSpec]) {
    if ports.is_empty() {
        return;
    }
    args.option("-device", "virtio-serial-pci,id=vserial");
    for (index, port) in ports.iter().enumerate() {
        let socket = escape_path(&port.socket);
        args.option("-chardev", format!("socket,id=port{index},path={socket},server=on,wait=off"));
        args.option("-device", format!("virtserialport,bus=vserial.0,chardev=port{index},name={}", port.name));
    }
}

fn add_net(args: &mut Args, net: &NetSpec) {
    let NetSpec::User { mac, forward } = net else { return };
    let mut user = "user,id=net0".to_string();
    for (host, guest) in forward {
        user.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
    }
    args.option("-netdev", user);
    let mac = mac.as_ref().map(|mac| format!(",mac={}", escape(mac))).unwrap_or_default();
    args.option("-device", format!("virtio-net-pci,netdev=net0{mac}"));
}

/// Without the ROM that boots from a network: its size differs between releases of QEMU, and a guest could not change
/// from one to another.
fn add_nics(args: &mut Args, nics: &[NicSpec]) {
    for (index, nic) in nics.iter().enumerate() {
        let (socket, peer) = (escape_path(&nic.socket), escape_path(&nic.peer));
        args.option(
            "-netdev",
            format!("dgram,id=n{index},local.type=unix,local.path={socket},remote.type=unix,remote.path={peer}"),
        );
        args.option("-device", format!("virtio-net-pci,netdev=n{index},id=nic{index},mac={},romfile=", nic.mac));
    }
}

/// A comma within a value is written twice.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

fn escape_path(path: &Path) -> String {
    escape(&path.to_string_lossy())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::spec::Uplink;

    fn resolved(accelerator: Accelerator) -> Resolved {
        Resolved { machine: "pc-q35-7.2".into(), accelerator, memory: 64 << 20, dimms: Vec::new() }
    }

    fn line(spec: &VmSpec, role: Role) -> String {
        command_line(spec, &resolved(Accelerator::Tcg), &VmPaths::new(Path::new("/run/web")), role).join(" ")
    }

    fn nic(socket: &str) -> NicSpec {
        NicSpec {
            mac: "02:00:00:00:00:01".parse().expect("an address"),
            uplink: Uplink::Tap { name: "tap0".into(), bridge: None },
            socket: socket.into(),
            peer: "/r/peer".into(),
        }
    }

    #[test]
    fn the_plainest_guest() {
        let expected = "-name guest=web -nodefaults -no-user-config -display none -msg timestamp=on \
             -machine pc-q35-7.2 -accel tcg -m size=67108864b -smp 1 \
             -chardev socket,id=qmp,path=/run/web/qmp.sock,server=on,wait=off -mon chardev=qmp,mode=control \
             -chardev socket,id=console,path=/run/web/console.sock,server=on,wait=off,logfile=/run/web/console.log,logappend=on \
             -serial chardev:console";
        assert_eq!(line(&VmSpec::new("web", 64 << 20), Role::Boot), expected);
    }

    #[test]
    fn each_role_differs_only_in_its_flags() {
        let spec = VmSpec::new("web", 64 << 20);
        let boot = line(&spec, Role::Boot);
        let table = [
            (Role::BootPaused, " -S"),
            (Role::Incoming, " -incoming defer"),
            (Role::IncomingPaused, " -incoming defer -S"),
        ];
        for (role, flags) in table {
            assert_eq!(line(&spec, role), format!("{boot}{flags}"));
        }
    }

    #[test]
    fn what_can_be_added_is_counted_from_what_qemu_is_given() {
        let spec = VmSpec { max_memory: Some(64 << 20 | 1 << 30), ..VmSpec::new("web", 64 << 20) };
        let settled = Resolved { memory: (64 << 20) + 8192, ..resolved(Accelerator::Tcg) };
        let line = command_line(&spec, &settled, &VmPaths::new(Path::new("/r")), Role::Boot).join(" ");
        assert!(line.contains(" -m size=67117056b,slots=32,maxmem=1140858880b "), "{line}");
    }

    #[test]
    fn each_part_of_a_spec_appears() {
        type Change = fn(&mut VmSpec);
        let table: [(Change, &str); 10] = [
            (
                |s| (s.max_memory, s.virtio_mem) = (Some(320 << 20), Some(256 << 20)),
                "-object memory-backend-memfd,id=vmem0-ram,size=268435456,share=on,reserve=off \
                 -device virtio-mem-pci,id=vmem0,memdev=vmem0-ram,requested-size=0",
            ),
            (|s| s.console_log = false, "console.sock,server=on,wait=off -serial"),
            (|s| s.cpus = 4, "-smp 4"),
            (|s| s.cpu_model = Some("qemu64".into()), "-cpu qemu64"),
            (
                |s| {
                    (s.kernel, s.initrd, s.cmdline) = (Some("/k".into()), Some("/i".into()), Some("quiet a,b".into()))
                },
                "-kernel /k -initrd /i -append quiet a,b",
            ),
            (
                |s| s.ports = vec![PortSpec { name: "agent".into(), socket: "/run/a,b".into() }],
                "-device virtio-serial-pci,id=vserial -chardev socket,id=port0,path=/run/a,,b,server=on,wait=off \
                 -device virtserialport,bus=vserial.0,chardev=port0,name=agent",
            ),
            (
                |s| s.net = NetSpec::User { mac: Some("52:54:00:00:00:01".into()), forward: vec![(2222, 22)] },
                "-netdev user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22 -device virtio-net-pci,netdev=net0,mac=52:54:00:00:00:01",
            ),
            (
                |s| s.nics = vec![nic("/r/a,b.sock")],
                "-netdev dgram,id=n0,local.type=unix,local.path=/r/a,,b.sock,remote.type=unix,remote.path=/r/peer \
                 -device virtio-net-pci,netdev=n0,id=nic0,mac=02:00:00:00:00:01,romfile=",
            ),
            (|s| s.extra_args = vec!["-no-reboot".into()], "-no-reboot"),
            (
                |s| {
                    let source = DiskSource::VhostUser { socket: "/v".into() };
                    s.disks = vec![DiskSpec { source, ..DiskSpec::raw_file("fast", Path::new("/x")) }];
                },
                "-chardev socket,id=disk-fast,path=/v,reconnect=1 -device vhost-user-blk-pci,chardev=disk-fast,id=dev-disk-fast,bootindex=1",
            ),
        ];
        for (change, words) in table {
            let mut spec = VmSpec::new("web", 64 << 20);
            change(&mut spec);
            let line = line(&spec, Role::Boot);
            assert!(line.contains(words), "{words}\nis not in\n{line}");
        }
    }

    #[test]
    fn an_nbd_disk_is_patient_and_its_guest_stands_on_errors() {
        let mut spec = VmSpec::new("web", 64 << 20);
        spec.disks = vec![DiskSpec::nbd("root", Path::new("/run/n,1"), "a\"b,c")];
        let args = command_line(&spec, &resolved(Accelerator::Tcg), &VmPaths::new(Path::new("/r")), Role::Boot);
        let at = args.iter().position(|a| a == "-blockdev").expect("has a disk");
        let node: Value = serde_json::from_str(&args[at + 1]).expect("JSON");
        assert_eq!(node["server"], json!({ "type": "unix", "path": "/run/n,1" }));
        assert_eq!((&node["export"], &node["reconnect-delay"]), (&json!("a\"b,c"), &json!(300)));
        assert!(args[at + 3].ends_with("rerror=stop,werror=stop"), "{}", args[at + 3]);
    }

    #[test]
    fn ram_of_ours_is_a_file_to_qemu() {
        let table = [
            (RamSharing::Shared, false, "on"),
            (RamSharing::Forked, false, "off"),
            (RamSharing::Shared, true, "on,prealloc=on"),
        ];
        for (sharing, populate, share) in table {
            let ram = Some(RamFd { fd: 7, sharing, populate });
            let paths = VmPaths { ram, qmp_fd: Some(5), ..VmPaths::new(Path::new("/r")) };
            let spec = VmSpec::new("web", 64 << 20);
            let line = command_line(&spec, &resolved(Accelerator::Kvm), &paths, Role::Boot).join(" ");
            let words = format!(
                "-object memory-backend-file,id=ram0,size=67108864,mem-path=/proc/self/fd/7,share={share} \
                 -machine pc-q35-7.2,memory-backend=ram0 "
            );
            assert!(line.contains(&words), "{line}");
            assert!(line.contains("socket,id=qmp,fd=5,") && line.contains("-cpu host"), "{line}");
        }
    }
}
