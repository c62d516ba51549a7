//! `bench vhost`: our vhost-user-blk beside that of qemu-storage-daemon, each with a guest of its own on one file that
//! is wholly in the page cache. Both guests are alive all the time and one works at a time.
//!
//! The guest drives the load itself, with direct I/O. Under TCG its one processor is most of each round trip, so what
//! shows is a difference of servers made small: the ratios of a guest under KVM are further from 1.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Better, Case, Row, interleave};
use crate::{
    demo,
    guest_image::{self, GuestImage},
    setup, sh,
};

const FILE_SIZE: u64 = 512 << 20;
const CONTENDERS: &[&str] = &["gnomon", "qemu-storage-daemon"];
/// Of one measurement.
const MILLIS: u64 = 2000;
/// How long a guest may take to boot under TCG on a busy machine, or to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A case's name, unit, the guest's load, and bytes of a request.
const CASES: &[(&str, &str, &str, u64)] = &[
    ("4k randread qd1", "IOPS", "randread 4096 1", 4096),
    ("4k randread qd16", "IOPS", "randread 4096 16", 4096),
    ("4k randwrite qd1", "IOPS", "randwrite 4096 1", 4096),
    ("4k randwrite qd16", "IOPS", "randwrite 4096 16", 4096),
    ("1M read qd4", "MiB/s", "read 1048576 4", 1 << 20),
    ("1M write qd4", "MiB/s", "write 1048576 4", 1 << 20),
];

/// Runs the benchmark.
pub(super) fn run(rounds: usize) -> Result<Vec<Row>> {
    setup::ensure()?;
    let image = sh::stage("guest", guest_image::build)?;
    sh::stage("build", demo::build)?;
    let folder = std::env::temp_dir().join(format!("gn-vhost-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let measured = measure(&image, &folder, rounds);
    let _ = fs::remove_dir_all(&folder);
    measured
}

fn measure(image: &GuestImage, folder: &Path, rounds: usize) -> Result<Vec<Row>> {
    let file = folder.join("disk.raw");
    let mut fill = Command::new("dd");
    fill.args(["if=/dev/urandom", "bs=1M", "status=none"]).arg(format!("of={}", file.display()));
    sh::run(fill.arg(format!("count={}", FILE_SIZE >> 20)))?;
    let mut guests: Vec<Guest> =
        CONTENDERS.iter().map(|who| Guest::boot(who, image, &file, folder)).collect::<Result<_>>()?;
    let cases =
        CASES.iter().map(|&(name, unit, ..)| Case { name: name.to_owned(), unit, better: Better::Higher }).collect();
    interleave(cases, CONTENDERS, rounds, |case, who| {
        let (_, unit, load, bytes) = CASES.iter().find(|(name, ..)| *name == case.name).context("no such case")?;
        let per_second = guests[who].work(load)?;
        Ok(if *unit == "IOPS" { per_second } else { per_second * *bytes as f64 / 1048576.0 })
    })
}

/// A process that ends with its handle.
struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Result<Process> {
        let log = fs::File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        Ok(Process(child.with_context(|| format!("cannot start {command:?}"))?))
    }

    /// Waits until it has made its socket.
    fn await_socket(&mut self, socket: &Path) -> Result<()> {
        let started = Instant::now();
        while !socket.exists() {
            if let Some(status) = self.0.try_wait()? {
                bail!("it ended before it made {}: {status}", socket.display());
            }
            anyhow::ensure!(started.elapsed() < PATIENCE, "no {}", socket.display());
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A guest and the server of its disk; the guest ends first.
struct Guest {
    port: BufReader<UnixStream>,
    _qemu: Process,
    _server: Process,
}

impl Guest {
    fn boot(who: &str, image: &GuestImage, file: &Path, folder: &Path) -> Result<Guest> {
        let at = |name: &str| folder.join(format!("{who}.{name}"));
        let (disk, port) = (at("disk"), at("port"));
        let mut server = Process::start(&mut server(who, file, &disk), &at("server.log"))?;
        server.await_socket(&disk).with_context(|| who.to_owned())?;
        let mut qemu = Process::start(&mut qemu(image, &disk, &port), &at("qemu.log"))?;
        qemu.await_socket(&port)?;
        let port = UnixStream::connect(&port)?;
        port.set_read_timeout(Some(PATIENCE))?;
        let mut guest = Guest { port: BufReader::new(port), _qemu: qemu, _server: server };
        guest.hear("ready").with_context(|| format!("the guest on {who}"))?;
        Ok(guest)
    }

    /// Operations a second.
    fn work(&mut self, load: &str) -> Result<f64> {
        writeln!(self.port.get_mut(), "{load} {MILLIS}")?;
        let told = self.hear("bench")?;
        let number = |key: &str| told[key].as_f64().with_context(|| format!("no {key} in {told}"));
        Ok(number("ops")? / number("micros")? * 1e6)
    }

    fn hear(&mut self, kind: &str) -> Result<Value> {
        let mut line = String::new();
        anyhow::ensure!(self.port.read_line(&mut line)? > 0, "the guest's port closed");
        let told: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        anyhow::ensure!(told["kind"] == kind, "{kind} was expected and {told} came");
        Ok(told)
    }
}

fn server(who: &str, file: &Path, socket: &Path) -> Command {
    if who == "gnomon" {
        let mut command = Command::new(sh::target().join("release/gnomon"));
        command.args(["volume", "serve-file", "--front", "vhost-user", "--file"]).arg(file);
        command.arg("--socket").arg(socket);
        return command;
    }
    let mut command = Command::new(who);
    command
        .arg("--blockdev")
        .arg(format!("driver=file,node-name=disk,locking=off,filename={}", file.display()))
        .arg("--export")
        .arg(format!(
            "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={}",
            socket.display()
        ));
    command
}

fn qemu(image: &GuestImage, disk: &Path, port: &Path) -> Command {
    let chardev = |id: &str, socket: &Path| format!("socket,id={id},path={}", socket.display());
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-m", "256M"])
        .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on", "-machine", "q35,memory-backend=ram"])
        .arg("-kernel")
        .arg(&image.kernel)
        .arg("-initrd")
        .arg(&image.initrd)
        .args(["-append", "console=ttyS0 quiet panic=-1 gn.bench=1", "-serial", "stdio"])
        .args(["-chardev", &chardev("disk", disk), "-device", "vhost-user-blk-pci,chardev=disk"])
        .args(["-chardev", &format!("{},server=on,wait=off", chardev("port", port))])
        .args(["-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=gnomon.report"]);
    command
}
