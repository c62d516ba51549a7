//! The guest of the measurement: a Linux that touches memory as it is told (`gn.memory=1`), in a folder of its own.

use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use gnomon_qemu::{Accel, Launch, PageTables, PortSpec, Qemu, QemuBinary, RamLoan, Role, VmSpec, find_qemu, resolve};
use serde_json::Value;
use tempfile::TempDir;

use super::{Fallible, PATIENCE, Way, memory};

/// What it boots.
pub(super) struct Parts {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

/// A running guest. Dropped, it is killed.
pub(super) struct Guest {
    pub(super) vm: Qemu,
    port: BufReader<UnixStream>,
    _folder: TempDir,
}

impl Guest {
    /// Boots it with `size` bytes and room for `more`; its RAM comes to be there in a `way`, cold when left open. Also
    /// says how long it took until its first program ran.
    pub(super) fn boot(parts: &Parts, size: u64, more: Option<u64>, way: Option<Way>) -> Fallible<(Guest, Duration)> {
        let qemu = QemuBinary::inspect(&find_qemu().ok_or("no QEMU is installed")?)?;
        let folder = TempDir::new()?;
        let socket = folder.path().join("report.sock");
        let spec = VmSpec {
            accel: Accel::Tcg,
            kernel: Some(parts.kernel.clone()),
            initrd: Some(parts.initrd.clone()),
            cmdline: Some("console=ttyS0 panic=-1 memhp_default_state=online_movable gn.memory=1".into()),
            ports: vec![PortSpec { name: "gnomon.report".into(), socket: socket.clone() }],
            max_memory: more.map(|more| size + more),
            ..VmSpec::new("burst", size)
        };
        let resolved = resolve(&spec, qemu.version, &qemu.machines()?, Err("the emulator is measured"))?;
        let way = way.unwrap_or(Way::Cold);
        let (ram, _) = memory(way, resolved.memory)?;
        let begun = Instant::now();
        let vm = Qemu::launch(&Launch {
            qemu: &qemu.path,
            host_args: &[],
            spec: &spec,
            resolved: &resolved,
            dir: &folder.path().join("vm"),
            role: Role::Boot,
            ram: Some(RamLoan { populate: way.populates(), ..ram.shared() }),
        })?;
        let maps = (way == Way::Staged).then(|| PageTables::of(&vm, ram.as_fd(), ram.size())).transpose()?;
        let maps = maps.map(|tables| thread::spawn(move || tables.fill()));
        let stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut guest = Guest { vm, port: BufReader::new(stream), _folder: folder };
        guest.hear("ready")?;
        let took = begun.elapsed();
        maps.map_or(Ok(Ok(())), JoinHandle::join).map_err(|_| "the filling of page tables ended")??;
        Ok((guest, took))
    }

    /// Has it do something, and hears how that went.
    pub(super) fn ask(&mut self, command: &str, kind: &str) -> Fallible<Value> {
        writeln!(self.port.get_mut(), "{command}")?;
        self.hear(kind)
    }

    fn hear(&mut self, kind: &str) -> Fallible<Value> {
        let mut line = String::new();
        self.port.read_line(&mut line)?;
        let said: Value = serde_json::from_str(&line).map_err(|e| format!("the guest said '{line}': {e}"))?;
        match said["kind"] == kind {
            true => Ok(said),
            false => Err(format!("the guest was to say '{kind}' and said {line}").into()),
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Err(error) = self.vm.kill() {
            eprintln!("a guest stays behind: {error}");
        }
    }
}
