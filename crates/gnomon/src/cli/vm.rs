//! `gnomon vm`: virtual machines.

use std::path::PathBuf;

use clap::Subcommand;
use gnomon_terms::{Bytes, BytesPerSecond};

use super::{
    Context, Ended, Failure, forecast, job,
    memory::{self, MemoryArgs},
    outlook,
    output::{facts, table},
    protect::{self, FailoverArgs, ProtectArgs, SwitchoverArgs, UnprotectArgs},
    update::{self, UpdateArgs},
    volume::{MoveArgs, RollbackArgs, absolute, begin, roll_back},
};
use crate::{
    api::types::{
        AdoptVm, AgentView, Front, GrowBy, MoveMode, MoveRequest, NicView, PressureView, RamWay, RunDisk, RunNic,
        RunVm, StopVm, VmView,
    },
    daemon::console,
    names,
};

/// `gnomon vm`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a VM on volumes
    #[command(after_help = "Examples:\n  gnomon vm run web --memory 2G --disk root\n  \
                            gnomon vm run db --memory 4G --cpus 2 --disk root-db --disk data --port heartbeat\n  \
                            gnomon vm run fast --memory 2G --disk root,front=vhost-user\n  \
                            gnomon vm run shop --memory 2G --disk root --nic tap:shop0,bridge=br0\n  \
                            gnomon vm run tiny --memory 256M --kernel vmlinuz --initrd init.img --append console=ttyS0")]
    Run(RunArgs),
    /// List VMs
    #[command(after_help = "Examples:\n  gnomon vm ls")]
    Ls,
    /// Show one VM: QEMU's status, process, ports; how it ended, when it did
    #[command(after_help = "Examples:\n  gnomon vm show web\n  gnomon vm show web --json")]
    Show {
        /// Which VM
        name: String,
    },
    /// Stop a VM: ask its guest to power off, then end it
    #[command(after_help = "Examples:\n  gnomon vm stop web\n  gnomon vm stop web --force")]
    Stop {
        /// Which VM
        name: String,
        /// Do not ask the guest
        #[arg(long)]
        force: bool,
    },
    /// Look after a QEMU that is running already
    #[command(after_help = "Examples:\n  gnomon vm adopt old-web --qmp /run/qemu/web.qmp")]
    Adopt {
        /// The name it is to have here
        #[arg(value_parser = names::parse)]
        name: String,
        /// Its QMP socket
        #[arg(long)]
        qmp: PathBuf,
    },
    /// Talk to a VM's serial console; ctrl-] leaves
    #[command(after_help = "Examples:\n  gnomon vm console web")]
    Console {
        /// Which VM
        name: String,
    },
    /// Move a VM with its volumes to another node while it runs
    #[command(after_help = "Examples:\n  gnomon vm move web --to node-b\n  \
                            gnomon vm move web --to node-b --bandwidth 400mbit --detach\n  \
                            gnomon vm move web --to node-b --ram qemu\n  \
                            gnomon vm move web --to node-b --dry-run\n  \
                            gnomon vm move web --cancel")]
    Move(VmMoveArgs),
    /// Bring a VM back whose move has switched and whose disk still drains: it runs here again, with everything it was
    /// acknowledged. To be asked on the node where the move began
    #[command(
        after_help = "Examples:\n  gnomon vm rollback web\n  gnomon vm rollback web --i-have-fenced node-b\n\n\
                            When the destination is dead, the guest's memory died with it: start the VM with `gnomon vm \
                            run`\nafterwards. Make sure that the destination cannot write, then say so."
    )]
    Rollback {
        /// Which VM
        name: String,
        /// How it is brought back
        #[command(flatten)]
        how: RollbackArgs,
    },
    /// Change the QEMU under a running guest, what its machine is called, or something in it, after a trial on a copy of it
    #[command(after_help = "Examples:\n  gnomon vm update web --qemu /opt/qemu-10/usr/bin/qemu-system-x86_64\n  \
                            gnomon vm update web --qemu /opt/qemu-10 --probe ./is-web-well.sh --observe 60\n  \
                            gnomon vm update web --qemu /opt/qemu-10 --approve manual --detach\n  \
                            gnomon vm update web --qemu /opt/qemu-10 --dry-run         what earlier updates let expect\n  \
                            gnomon vm update web --machine pc-q35-7.2 --cpu qemu64-v1  names that stand for what it has\n  \
                            gnomon vm update web --guest-exec 'apt-get -y --no-download upgrade' --probe ./is-web-well.sh\n  \
                            gnomon vm rollback web                                     back to the QEMU before\n\n\
                            The guest is copied (RAM, devices, disks; it stands for some milliseconds), the copy runs in the\n\
                            new QEMU without a network, the probe looks at it, and it is watched. Only when all that goes\n\
                            well does the guest itself change its QEMU, within some tens of milliseconds and without a copy\n\
                            of its RAM. It is watched again, and goes back by itself when something is wrong.\n\n\
                            A running guest keeps its machine type and its processor. Before anything is touched, the versioned\n\
                            types and all that the guest sees of its processor are compared, also when only --qemu is given;\n\
                            what would differ is refused, and named. --machine and --cpu change names that stand for the same.\n\n\
                            --guest-exec runs a command in the guest's own shell (/bin/sh, with mktemp and tail), by the\n\
                            qemu-guest-agent there: on the copy first, which has no network, so fetch packages before. When it\n\
                            ends with 0 and the copy does well after it, it is run in the guest, which is watched. There it is\n\
                            not undone: a guest that was taken back would forget what it told others since.")]
    Update(UpdateArgs),
    /// Let a guest switch whose copy did well (update --approve manual)
    #[command(after_help = "Examples:\n  gnomon vm approve web")]
    Approve {
        /// Which VM
        name: String,
    },
    /// Keep a shadow of a running VM on another node: its memory, devices and disks, checkpoint by checkpoint
    #[command(after_help = "Examples:\n  gnomon vm protect web --on node-b\n  \
                            gnomon vm protect web --on node-b --interval 100ms --detach\n  \
                            gnomon vm protect db --on node-b --strict    nothing that was answered is ever lost\n  \
                            gnomon vm protect db --on node-b,node-c      two shadows: losing one leaves it protected\n  \
                            gnomon vm show web                           state, lag, pauses\n\n\
                            When this host dies, the guest goes on at node-b from the last checkpoint it has: what it did since\n\
                            then is lost, and `lag` says how much that is. See `gnomon vm failover`.")]
    Protect(ProtectArgs),
    /// Give a VM's shadows up, or one of them; nothing is left of it
    #[command(
        after_help = "Examples:\n  gnomon vm unprotect web\n  gnomon vm unprotect web --on node-c    the others stay\n\n\
                            On the shadow's node it throws a shadow away whose primary is gone for good."
    )]
    Unprotect(UnprotectArgs),
    /// Hand a protected VM over to the node of a shadow; nothing is lost
    #[command(after_help = "Examples:\n  gnomon vm switchover web\n  gnomon vm switchover web --to node-c\n\n\
                            To be asked on the node where it runs. Afterwards it has no shadow, whatever it had: `gnomon vm\n\
                            protect` on the other node begins one here, and elsewhere.")]
    Switchover(SwitchoverArgs),
    /// Go on with a VM whose primary is dead, from the last checkpoint of its shadow
    #[command(after_help = "Examples:\n  gnomon vm failover web --i-have-fenced node-a\n\n\
                            To be asked on the shadow's node. Make sure first that the other node cannot run or write any more\n\
                            (power it off): nobody here can tell a dead host from a cut cable, and two running guests destroy\n\
                            their disks. A node that answers and runs the guest is believed more than you. Nodes with other\n\
                            shadows of it are asked, too; name those that are dead as well: --i-have-fenced node-a,node-c")]
    Failover(FailoverArgs),
    /// Show a VM's memory, give it more while it runs, or ask for some back
    #[command(after_help = "Examples:\n  gnomon vm memory web                 what it has, and may have\n  \
                            gnomon vm memory web --grow 512M\n  \
                            gnomon vm memory web --shrink 512M\n  \
                            gnomon vm memory web --auto on       it follows what the guest needs (agent)\n\n\
                            The VM was started with --max-memory. In a trust group (`gnomon group`) it gets what was staged\n\
                            for the group; what is not staged is allocated while it waits. Linux uses new memory at once when it\n\
                            was booted with memhp_default_state=online_movable, and can give it back then.")]
    Memory(MemoryArgs),
    /// List what was done to a VM as a whole: updates, shadows, takeovers, with their phases
    #[command(after_help = "Examples:\n  gnomon vm events web\n  gnomon vm events web --json")]
    Events {
        /// Which VM
        name: String,
    },
}

/// `gnomon vm run`
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Its name
    #[arg(value_parser = names::parse)]
    name: String,
    /// Its memory: 512M, 2G
    #[arg(long)]
    memory: Bytes,
    /// What it may be grown to while it runs (`gnomon vm memory`): more than --memory by a multiple of 128 MiB. What it was
    /// given goes with it when it is moved, protected or updated; its memory does not change meanwhile
    #[arg(long, value_name = "SIZE")]
    max_memory: Option<Bytes>,
    /// How it is grown: dimms (of 128 MiB and more, from what is staged), or virtio-mem (in steps of 2 MiB, and easier to give
    /// back; nothing of it is staged)
    #[arg(long, value_enum, default_value = "dimms", requires = "max_memory")]
    grow_by: GrowBy,
    /// The trust group that it joins: it is begun from the group's staged memory where there is a block of its size
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// How many processors
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// A volume as a disk; the first one is booted from. front=vhost-user (default: nbd) serves the guest's queues in its
    /// memory, with fewer steps for each request; such a VM cannot be moved
    #[arg(long = "disk", value_name = "VOLUME[,front=nbd|vhost-user]", value_parser = disk)]
    disks: Vec<RunDisk>,
    /// A kernel to boot instead of the first disk
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Its initial ram disk
    #[arg(long, requires = "kernel")]
    initrd: Option<PathBuf>,
    /// Its command line
    #[arg(long, requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,
    /// auto (KVM when a tiny guest proves it), kvm or tcg
    #[arg(long, default_value = "auto", value_parser = ["auto", "kvm", "tcg"])]
    accel: String,
    /// QEMU's machine type, versioned or an alias [default: q35]
    #[arg(long, value_name = "TYPE")]
    machine: Option<String>,
    /// QEMU's processor model [default: host under KVM, QEMU's own default under emulation]. What `host` and `max` show may
    /// differ between releases of QEMU: a guest that is to change its QEMU while it runs has a model with a name of its own
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// A virtio-serial port, offered as a unix socket
    #[arg(long = "port", value_name = "NAME", value_parser = names::parse)]
    ports: Vec<String>,
    /// A network card on a tap of the host, which is made when it is not there; and on a bridge, if one is named. It keeps
    /// its address wherever the VM goes, and the other nodes use a tap and a bridge of the same names
    #[arg(long = "nic", value_name = "tap:NAME[,bridge=NAME][,mac=ADDRESS]", value_parser = nic)]
    nics: Vec<RunNic>,
    /// Listen to gnomon-agent in the guest (a port called `agent`): `vm show` tells how the guest's memory does, and an
    /// update that silences it is taken back
    #[arg(long)]
    agent: bool,
    /// Have a port for qemu-guest-agent in the guest (org.qemu.guest_agent.0), which runs the commands of `vm update
    /// --guest-exec`
    #[arg(long)]
    guest_agent: bool,
}

/// `gnomon vm move`
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("deed").required(true).args(["to", "cancel"])))]
pub struct VmMoveArgs {
    /// Which VM
    name: String,
    /// The node it goes to
    #[arg(long, value_name = "NODE")]
    to: Option<String>,
    /// When to switch: pre (when everything is there), hybrid (when the forecast stall is small), post (at once)
    #[arg(long, value_enum, default_value = "hybrid")]
    mode: MoveMode,
    /// How its memory goes: engine (checkpoints) or qemu (QEMU's own migration); left out, the engine where the guest's writes can
    /// be followed while it runs (`gnomon vm show` says)
    #[arg(long, value_enum, value_name = "WAY")]
    ram: Option<RamWay>,
    /// The most it may use: 400mbit, 50MB/s
    #[arg(long, value_name = "RATE")]
    bandwidth: Option<BytesPerSecond>,
    /// Do not send the destination's writes back while draining: cheaper, but its death then loses writes
    #[arg(long)]
    no_reverse: bool,
    /// Do not wait
    #[arg(long)]
    detach: bool,
    /// Cancel a move that has not switched yet
    #[arg(long)]
    cancel: bool,
    /// Move nothing: say what the move would be like, or why it would be refused
    #[arg(long, conflicts_with = "cancel")]
    dry_run: bool,
    /// For --dry-run: say instead what would have happened to the guest of this recording
    #[arg(long, value_name = "FILE", requires = "dry_run")]
    trace: Option<PathBuf>,
}

pub(super) async fn run(command: Command, context: &Context) -> Ended {
    let Context { client, output } = context;
    match command {
        Command::Run(args) => {
            let vm: VmView = client.post("/v1/vms", &request(args)?).await?;
            output.result(&vm, words);
        }
        Command::Ls => {
            let vms: Vec<VmView> = client.get("/v1/vms").await?;
            output.result(&vms, |vms| list(vms));
        }
        Command::Show { name } => output.result(&show(&name, context).await?, words),
        Command::Stop { name, force } => {
            let vm: VmView = client.post(&format!("/v1/vms/{name}/stop"), &StopVm { force }).await?;
            output.result(&vm, |vm| format!("{} stopped", vm.name));
        }
        Command::Adopt { name, qmp } => {
            let vm: VmView = client.post("/v1/vms/adopt", &AdoptVm { name, qmp: absolute(qmp)? }).await?;
            output.result(&vm, words);
        }
        Command::Console { name } => attach(&name, context).await?,
        Command::Move(args) => move_vm(args, context).await?,
        Command::Memory(args) => memory::run(args, context).await?,
        Command::Update(args) => update::update(args, context).await?,
        Command::Approve { name } => update::approve(&name, context).await?,
        Command::Events { name } => update::events(&name, context).await?,
        Command::Protect(args) => protect::protect(args, context).await?,
        Command::Unprotect(args) => protect::unprotect(args, context).await?,
        Command::Switchover(args) => protect::switchover(args, context).await?,
        Command::Failover(args) => protect::failover(args, context).await?,
        Command::Rollback { name, how } => roll_back(&format!("/v1/vms/{name}"), how, context).await?,
    }
    Ok(())
}

fn request(args: RunArgs) -> Result<RunVm, Failure> {
    if args.disks.is_empty() && args.kernel.is_none() {
        return Err(Failure::usage("a VM needs something to boot: give --disk VOLUME or --kernel FILE"));
    }
    Ok(RunVm {
        name: args.name,
        memory: args.memory.0,
        max_memory: args.max_memory.map(|most| most.0),
        grow_by: args.grow_by,
        group: args.group,
        cpus: args.cpus,
        disks: args.disks,
        kernel: args.kernel.map(absolute).transpose()?,
        initrd: args.initrd.map(absolute).transpose()?,
        append: args.append,
        accel: args.accel,
        machine: args.machine,
        cpu: args.cpu,
        nics: args.nics,
        ports: [args.ports, ports_of(args.agent, args.guest_agent)].concat(),
    })
}

/// The ports of the agents that are to be heard.
fn ports_of(agent: bool, guest_agent: bool) -> Vec<String> {
    let ports = [("agent", agent), (gnomon_qemu::GUEST_AGENT_PORT, guest_agent)];
    ports.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name.to_string()).collect()
}

/// `VOLUME[,front=nbd|vhost-user]`
fn disk(text: &str) -> Result<RunDisk, String> {
    let (volume, front) = match text.split_once(',') {
        None => (text, Front::default()),
        Some((volume, "front=nbd")) => (volume, Front::Nbd),
        Some((volume, "front=vhost-user")) => (volume, Front::VhostUser),
        Some((_, other)) => return Err(format!("'{other}' is not known: write front=nbd or front=vhost-user")),
    };
    Ok(RunDisk { volume: volume.to_string(), front })
}

/// `tap:NAME[,bridge=NAME][,mac=ADDRESS]`
fn nic(text: &str) -> Result<RunNic, String> {
    let mut parts = text.split(',');
    let tap = parts.next().and_then(|uplink| uplink.strip_prefix("tap:")).filter(|name| !name.is_empty());
    let tap = tap.ok_or_else(|| format!("'{text}' names no uplink: write tap:NAME"))?;
    let mut nic = RunNic { tap: tap.to_string(), bridge: None, mac: None };
    for part in parts {
        let slot = match part.split_once('=') {
            Some(("bridge", _)) => &mut nic.bridge,
            Some(("mac", _)) => &mut nic.mac,
            _ => return Err(format!("'{part}' is not known: write bridge=NAME or mac=ADDRESS")),
        };
        let value = part.split_once('=').map(|(_, value)| value.to_string()).filter(|value| !value.is_empty());
        if slot.is_some() || value.is_none() {
            return Err(format!("'{part}' says nothing, or is there twice"));
        }
        *slot = value;
    }
    if let Some(mac) = &nic.mac {
        mac.parse::<gnomon_qemu::MacAddress>().map_err(|error| error.to_string())?;
    }
    Ok(nic)
}

async fn show(name: &str, context: &Context) -> Result<VmView, Failure> {
    Ok(context.client.get(&format!("/v1/vms/{name}")).await?)
}

async fn attach(name: &str, context: &Context) -> Ended {
    let vm = show(name, context).await?;
    match vm.console {
        Some(socket) => Ok(console::attach(&socket).await?),
        None => {
            Err(crate::api::ApiError::refused(format!("VM '{name}' has no console of ours: it was adopted")).into())
        }
    }
}

async fn move_vm(args: VmMoveArgs, context: &Context) -> Ended {
    let path = format!("/v1/vms/{}", args.name);
    match (args.to, args.trace) {
        (Some(_), Some(trace)) => forecast::dry_run(&trace, args.bandwidth, context),
        (Some(to), None) => {
            let VmMoveArgs { mode, ram, bandwidth, no_reverse, detach, dry_run, .. } = args;
            let how = MoveArgs { to, mode, bandwidth, no_reverse, detach };
            let request = MoveRequest { ram, ..how.request() };
            match dry_run {
                true => outlook::run(&format!("{path}/outlook"), &request, context).await,
                false => begin(&format!("{path}/move"), &request, detach, context).await,
            }
        }
        (None, _) => job::cancel(&format!("{path}/cancel"), context).await,
    }
}

fn list(vms: &[VmView]) -> String {
    let rows: Vec<[String; 7]> = vms
        .iter()
        .map(|vm| {
            let pid = vm.pid.map(|pid| pid.to_string()).unwrap_or_default();
            let memory = Bytes(vm.memory).to_string();
            [
                vm.name.clone(),
                vm.status.clone(),
                pid,
                memory,
                vm.accel.clone(),
                vm.disks.join(","),
                protect::word_of(vm),
            ]
        })
        .collect();
    table(["NAME", "STATUS", "PID", "MEMORY", "ACCEL", "DISKS", "SHADOW"], &rows)
}

fn words(vm: &VmView) -> String {
    let mut pairs = vec![
        ("name", vm.name.clone()),
        ("status", vm.status.clone()),
        ("pid", vm.pid.map(|pid| pid.to_string()).unwrap_or_default()),
        ("memory", Bytes(vm.memory).to_string()),
        ("accel", vm.accel.clone()),
        ("machine", vm.machine.clone()),
        ("processor", vm.cpu.clone().unwrap_or_default()),
        ("disks", vm.disks.join(", ")),
        ("console", vm.console.clone().unwrap_or_default()),
        ("qmp", vm.qmp.clone()),
    ];
    pairs.extend(vm.ports.iter().map(|port| ("port", format!("{} at {}", port.name, port.socket))));
    pairs.extend(vm.nics.iter().flat_map(card));
    pairs.extend(vm.agent.iter().flat_map(agent));
    pairs.extend(protect::facts_of(vm));
    pairs.extend(vm.ram.as_ref().map(|ram| ("moves", ram.to_string())));
    pairs.push(("exit", vm.exit.clone().unwrap_or_default()));
    pairs.push(("stderr", vm.stderr.clone().unwrap_or_default()));
    facts(&pairs)
}

fn card(nic: &NicView) -> Vec<(&'static str, String)> {
    let flow = |frames: u64, bytes: u64| format!("{frames} frames, {}", Bytes(bytes));
    let traffic = format!(
        "{} out; {} in; {} dropped",
        flow(nic.sent_frames, nic.sent_bytes),
        flow(nic.received_frames, nic.received_bytes),
        nic.dropped_frames
    );
    let held = if nic.is_holding { flow(nic.held_frames, nic.held_bytes) } else { String::new() };
    vec![
        ("nic", format!("{} at {}", nic.mac, nic.uplink)),
        ("no uplink", nic.why.clone().unwrap_or_default()),
        ("frames", traffic),
        ("held", held),
    ]
}

fn agent(agent: &AgentView) -> Vec<(&'static str, String)> {
    let AgentView { heard_s, memory_available, memory_total, .. } = agent;
    let memory = format!("{} of {} available", Bytes(*memory_available), Bytes(*memory_total));
    let waits = agent.pressure.map(|waits| {
        let PressureView { cpu, memory, stalled, io } = waits;
        format!(
            "{cpu:.2} % for a processor, {memory:.2} % for memory (all of it {stalled:.2} %), {io:.2} % for disks"
        )
    });
    let heard = ("agent", format!("heard {heard_s:.1} s ago, up {:.0} s", agent.up_s));
    [heard, ("guest memory", memory), ("guest waits", waits.unwrap_or_default())].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_is_a_tap_and_perhaps_a_bridge_and_an_address() {
        let of = |tap: &str, bridge: Option<&str>, mac: Option<&str>| {
            let own = |text: Option<&str>| text.map(str::to_string);
            Some(RunNic { tap: tap.to_string(), bridge: own(bridge), mac: own(mac) })
        };
        let mac = "02:00:00:00:00:01";
        let table = [
            ("tap:t0".to_string(), of("t0", None, None)),
            ("tap:t0,bridge=br0".to_string(), of("t0", Some("br0"), None)),
            (format!("tap:t0,mac={mac},bridge=br0"), of("t0", Some("br0"), Some(mac))),
            ("t0".to_string(), None),
            ("tap:".to_string(), None),
            ("tap:t0,bridge=".to_string(), None),
            ("tap:t0,bridge=a,bridge=b".to_string(), None),
            ("tap:t0,mac=1".to_string(), None),
            ("tap:t0,speed=1".to_string(), None),
        ];
        for (text, wanted) in table {
            assert_eq!(nic(&text).ok(), wanted, "{text}");
        }
    }

    #[test]
    fn a_disk_is_a_volume_and_perhaps_a_front() {
        let table = [
            ("root", Some(("root", Front::Nbd))),
            ("root,front=nbd", Some(("root", Front::Nbd))),
            ("root,front=vhost-user", Some(("root", Front::VhostUser))),
            ("root,front=", None),
            ("root,", None),
            ("root,front=nbd,front=nbd", None),
        ];
        for (text, wanted) in table {
            let wanted = wanted.map(|(volume, front)| RunDisk { volume: volume.to_string(), front });
            assert_eq!(disk(text).ok(), wanted, "{text}");
        }
    }
}
