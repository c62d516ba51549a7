//! The peer: one QEMU migrates its guest to the next, by its own pre-copy.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{super::qmp::Qmp, Deed, Load, Stage, beat_on, gap};
use crate::demo::guest::{RETRY, Stream, listen};

/// How long a QEMU may take to make its sockets.
const START: Duration = Duration::from_secs(60);

/// The same on every QEMU here, or they could not exchange a guest.
const MACHINE: &str = "pc-q35-7.2";

/// Parameters of a migration.
pub(super) type Tuning = fn() -> Value;

/// As QEMU comes: 128 MiB/s at most, and a pause of 300 ms is thought well of.
pub(super) const DEFAULT: Tuning = || json!({ "max-bandwidth": 128u64 << 20, "downtime-limit": 300 });

/// As somebody would have it who wants a short pause on a fast link: as fast as it goes, and no pause is begun that is
/// expected to last more than 10 ms.
pub(super) const TUNED: Tuning = || json!({ "max-bandwidth": 16u64 << 30, "downtime-limit": 10 });

/// A guest that goes from QEMU to QEMU.
pub(super) struct Native<'a> {
    stage: &'a Stage<'a>,
    load: Load,
    here: Host,
    /// How many QEMUs it has had.
    count: usize,
}

/// A QEMU, killed with its handle, and what it says.
struct Host {
    child: Child,
    qmp: Qmp,
    beats: Stream,
    newer: bool,
}

impl<'a> Native<'a> {
    /// Boots the guest, and waits until it has beaten for a while.
    pub fn boot(stage: &'a Stage<'a>, load: Load) -> Result<Native<'a>> {
        let disk = stage.folder.join("native.raw");
        std::fs::copy(stage.disk, &disk)?;
        let here = Host::start(stage, load, 0, false, &[])?;
        beat_on(&here.beats)?;
        Ok(Native { stage, load, here, count: 1 })
    }

    /// One migration; the guest's silence, milliseconds.
    pub fn migrate(&mut self, deed: Deed, tuning: Tuning) -> Result<f64> {
        let newer = deed == Deed::Upgrade && !self.here.newer;
        let mut there = Host::start(self.stage, self.load, self.count, newer, &["-incoming", "defer"])?;
        self.count += 1;
        let uri = format!("unix:{}", self.stage.folder.join("migration.sock").display());
        there.qmp.ask("migrate-incoming", json!({ "uri": uri }))?;
        self.here.qmp.ask("migrate-set-parameters", tuning())?;
        self.here.qmp.ask("migrate", json!({ "uri": uri }))?;
        self.here.qmp.await_migrated()?;
        beat_on(&there.beats)?;
        let before = std::mem::replace(&mut self.here, there);
        gap(&before.beats, &self.here.beats)
    }
}

impl Host {
    fn start(stage: &Stage, load: Load, number: usize, newer: bool, role: &[&str]) -> Result<Host> {
        let at = |name: &str| stage.folder.join(format!("native-{number}.{name}"));
        let (monitor, port, log) = (at("qmp"), at("beats"), at("log"));
        for socket in [&monitor, &port] {
            let _ = std::fs::remove_file(socket);
        }
        let mut command = program(newer.then_some(stage.newer));
        machine(&mut command, stage, load, &monitor, &port);
        let log_file = File::create(&log)?;
        command.args(role).stdin(Stdio::null()).stdout(log_file.try_clone()?).stderr(log_file);
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let qmp = await_sockets(&mut child, [&monitor, &port], &log).and_then(|()| Qmp::connect(&monitor));
        let qmp = qmp.inspect_err(|_| end(&mut child))?;
        Ok(Host { child, qmp, beats: listen(port, stage.began), newer })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn await_sockets(child: &mut Child, sockets: [&PathBuf; 2], log: &Path) -> Result<()> {
    let began = Instant::now();
    while !sockets.iter().all(|socket| socket.exists()) {
        if let Some(status) = child.try_wait()? {
            bail!("QEMU ended: {status}: {}", std::fs::read_to_string(log).unwrap_or_default());
        }
        anyhow::ensure!(began.elapsed() < START, "QEMU makes no sockets");
        thread::sleep(RETRY);
    }
    Ok(())
}

/// The installed QEMU, or one that was unpacked somewhere.
fn program(unpacked: Option<&Path>) -> Command {
    let Some(root) = unpacked else { return Command::new("qemu-system-x86_64") };
    let mut command = Command::new(root.join("usr/bin/qemu-system-x86_64"));
    for firmware in ["qemu", "seabios"] {
        command.arg("-L").arg(root.join("usr/share").join(firmware));
    }
    command
}

/// The devices of our guest, in its order. Both QEMUs open the disk, as on storage that hosts share.
fn machine(command: &mut Command, stage: &Stage, load: Load, monitor: &Path, port: &Path) {
    let chardev = |id: &str, socket: &Path| format!("socket,id={id},path={},server=on,wait=off", socket.display());
    let disk = json!({
        "driver": "raw", "node-name": "disk",
        "file": { "driver": "file", "locking": "off", "filename": stage.folder.join("native.raw") },
    });
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-machine", MACHINE])
        .args(["-m", &format!("size={}k", load.memory_kib())])
        .args(["-chardev", &chardev("qmp", monitor), "-mon", "chardev=qmp,mode=control"])
        .args(["-chardev", "null,id=console", "-serial", "chardev:console"])
        .args(["-blockdev", &disk.to_string(), "-device", "virtio-blk-pci,drive=disk"])
        .args(["-device", "virtio-serial-pci,id=vserial", "-chardev", &chardev("beats", port)])
        .args(["-device", "virtserialport,bus=vserial.0,chardev=beats,name=gnomon.heartbeat"])
        .args(["-chardev", "null,id=report"])
        .args(["-device", "virtserialport,bus=vserial.0,chardev=report,name=gnomon.report"])
        .arg("-kernel")
        .arg(&stage.image.kernel)
        .arg("-initrd")
        .arg(&stage.image.initrd)
        .args(["-append", &load.kernel_line()]);
}
