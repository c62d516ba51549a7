//! PID 1: mounts, modules, ports, one session, power off.
//!
//! Whatever goes wrong is printed to the console and the machine is powered off: a guest that hangs silently would
//! cost its reader an evening.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, finit_module, reboot},
};

use crate::{
    bench, heartbeat, memory, net,
    params::Params,
    ram::Ram,
    session::{self, Session},
    uevents::Uevents,
    workload::Workload,
};

/// How long devices may take to appear after their modules are loaded. TCG on a busy machine takes about one second.
const DEVICES_WITHIN: Duration = Duration::from_secs(30);

/// The modules to load, one path a line, each after those it needs.
const MODULE_LIST: &str = "/modules.list";

/// A program to run beside us, when it is there.
const AGENT: &str = "/agent";

/// Runs the guest and powers it off. Never returns.
pub fn run() -> ! {
    match guest() {
        Ok(()) => println!("gnomon-guest: done"),
        Err(err) => println!("gnomon-guest: {err}"),
    }
    rustix::fs::sync();
    if let Err(err) = reboot(RebootCommand::PowerOff) {
        println!("gnomon-guest: power off: {err}");
    }
    // Leaving PID 1 makes the kernel panic, which ends the machine as well (panic=-1).
    std::process::exit(1)
}

fn guest() -> io::Result<()> {
    mount_all()?;
    load_modules()?;
    let line = fs::read_to_string("/proc/cmdline").map_err(|err| about("/proc/cmdline", err))?;
    let params = Params::from_kernel(&line).map_err(|fault| io::Error::other(fault.to_string()))?;
    serve_network(&params)?;
    if params.idle {
        println!("gnomon-guest: nothing else to do");
        loop {
            thread::park();
        }
    }
    if params.memory {
        start_agent()?;
        let mut port = open_port(&params.report)?;
        let commands = session::listen(port.try_clone()?, memory::Command::parse)?;
        return memory::serve(&commands, |line| heartbeat::send(&mut port, line.as_bytes()));
    }
    await_device("disk", || Path::new(&params.disk).exists().then(|| PathBuf::from(&params.disk)))?;
    if params.bench {
        return bench::serve(Path::new(&params.disk), open_port(&params.report)?);
    }
    start_agent()?;
    let ram = Arc::new(Ram::new(params.buf_mib, params.seed));
    let ticks = heartbeat::start(open_port(&params.heartbeat)?, params.tick, params.dirty, Arc::clone(&ram))?;
    let port = open_port(&params.report)?;
    let commands = session::listen(port.try_clone()?, session::Command::parse)?;
    let workload = Workload::start(&params)?;
    println!("gnomon-guest: at work on {} with seed {}", params.disk, params.seed);
    Session::new(workload, params.seed, ram, ticks, port).run(&commands, None)
}

/// Gives the card its address, once it is there, and answers whoever connects.
fn serve_network(params: &Params) -> io::Result<()> {
    if let Some(address) = params.ip {
        await_device("network card", || net::has_card().then(|| PathBuf::from("/sys/class/net")))?;
        net::configure(address).map_err(|err| about("network card", err))?;
    }
    match params.answer {
        0 => Ok(()),
        port => net::answer(port).map_err(|err| about("TCP port", err)),
    }
}

/// Starts the agent that was packed with us, as an init system would.
fn start_agent() -> io::Result<()> {
    match Command::new(AGENT).spawn() {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(about(AGENT, err)),
        _ => Ok(()),
    }
}

fn mount_all() -> io::Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target).map_err(|err| about(target, err))?;
        match mount(kind, target, kind, MountFlags::empty(), None) {
            // A kernel with CONFIG_DEVTMPFS_MOUNT may have been there before us.
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(err) => return Err(about(target, err.into())),
        }
    }
    Ok(())
}

fn load_modules() -> io::Result<()> {
    let Ok(list) = fs::read_to_string(MODULE_LIST) else { return Ok(()) };
    for path in list.lines().filter(|line| !line.is_empty()) {
        let file = File::open(path).map_err(|err| about(path, err))?;
        match finit_module(&file, c"", 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(err) => return Err(about(path, err.into())),
        }
    }
    Ok(())
}

/// Opens the virtio-serial port called `name`, once it is there.
fn open_port(name: &str) -> io::Result<File> {
    let path = await_device(name, || find_port(Path::new("/sys/class/virtio-ports"), name))?;
    OpenOptions::new().read(true).write(true).open(&path).map_err(|err| about(name, err))
}

/// The device of the port whose `name` file says so. Without udev there is no `/dev/virtio-ports`.
fn find_port(class: &Path, name: &str) -> Option<PathBuf> {
    let ports = fs::read_dir(class).ok()?;
    ports.flatten().find_map(|port| {
        let said = fs::read_to_string(port.path().join("name")).ok()?;
        (said.trim() == name).then(|| Path::new("/dev").join(port.file_name()))
    })
}

/// Looks again whenever the kernel has told something of a device.
fn await_device(name: &str, look: impl Fn() -> Option<PathBuf>) -> io::Result<PathBuf> {
    // Opened before the first look, so that what comes after it is heard.
    let told = Uevents::open().map_err(|err| about("uevents", err))?;
    let started = Instant::now();
    loop {
        if let Some(path) = look().filter(|path| path.exists()) {
            return Ok(path);
        }
        if !told.wait(DEVICES_WITHIN.saturating_sub(started.elapsed())).map_err(|err| about("uevents", err))? {
            return Err(io::Error::other(format!("{name} did not appear within {DEVICES_WITHIN:?}")));
        }
    }
}

fn about(what: &str, err: io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{what}: {err}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "org.other"), ("vport1p2", "gnomon.report")] {
            fs::create_dir(class.path().join(port)).unwrap();
            fs::write(class.path().join(port).join("name"), format!("{name}\n")).unwrap();
        }
        assert_eq!(find_port(class.path(), "gnomon.report"), Some(PathBuf::from("/dev/vport1p2")));
        assert_eq!(find_port(class.path(), "gnomon"), None);
        assert_eq!(find_port(&class.path().join("absent"), "gnomon.report"), None);
    }
}
