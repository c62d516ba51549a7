//! How long a guest stands for a checkpoint, beside what QEMU alone needs to write its devices down and go on.
//!
//! `checkpoints KERNEL INITRD DISK [COUNT]`: one Linux guest that writes 16 pages of 64 MiB each millisecond, with
//! checkpoints and bare captures in turn, so that a busy host falls on both alike. The shadow is in this process. Prints
//! JSON. `cargo xtask bench checkpoint` runs it.

use std::{
    error::Error,
    io::Read,
    os::unix::net::UnixStream,
    path::Path,
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use gnomon_machine::{
    primary::{Acks, Pace, QemuHypervisor, Replicator, Setup, Told},
    shadow::{Limits, Shadow},
    wire::{Wire, WireClosed},
};
use gnomon_proto::frame::{Message, Stream};
use gnomon_qemu::{
    Accel, CaptureOptions, DiskSpec, GuestRam, Launch, PortSpec, Qemu, QemuBinary, Role, Standby, TrackTarget,
    VmSpec, capture, find_qemu, resolve, track,
};
use gnomon_terms::{Bytes, Epoch};

type Fallible<T> = Result<T, Box<dyn Error>>;

const MEMORY: u64 = 256 << 20;
const EPOCH: Epoch = Epoch(1);
const PATIENCE: Duration = Duration::from_secs(60);
const INTERVALS: [u64; 3] = [50, 100, 500];

/// Frames on their way: 16 of at most 1 MiB.
const QUEUE: usize = 16;

fn main() -> Fallible<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, disk, rest @ ..] = &words[..] else {
        return Err("usage: checkpoints KERNEL INITRD DISK [COUNT]".into());
    };
    let count = rest.first().map_or(Ok(40), |count| count.parse::<usize>())?;
    let home = tempfile::tempdir()?;
    let qemu = Arc::new(boot(home.path(), Path::new(kernel), Path::new(initrd), Path::new(disk))?);
    let measured = measure(&qemu, home.path(), count);
    qemu.kill()?;
    println!("[{}]", measured?.join(",\n "));
    Ok(())
}

fn boot(home: &Path, kernel: &Path, initrd: &Path, disk: &Path) -> Fallible<Qemu> {
    let binary = QemuBinary::inspect(&find_qemu().ok_or("no qemu-system-x86_64 here")?)?;
    let port = |name: &str| PortSpec { name: name.into(), socket: home.join(format!("{name}.sock")) };
    let spec = VmSpec {
        accel: Accel::Tcg,
        kernel: Some(kernel.to_path_buf()),
        initrd: Some(initrd.to_path_buf()),
        cmdline: Some("console=ttyS0 panic=-1 gn.buf=64 gn.dirty=16".into()),
        disks: vec![DiskSpec::raw_file("data", disk)],
        ports: vec![port("gnomon.heartbeat"), port("gnomon.report")],
        ..VmSpec::new("measured", MEMORY)
    };
    let resolved = resolve(&spec, binary.version, &binary.machines()?, Err("measured under TCG"))?;
    let launch = Launch {
        qemu: &binary.path,
        host_args: &[],
        spec: &spec,
        resolved: &resolved,
        dir: &home.join("vm"),
        role: Role::Boot,
        ram: None,
    };
    Ok(Qemu::launch(&launch)?)
}

fn measure(qemu: &Arc<Qemu>, home: &Path, count: usize) -> Fallible<Vec<String>> {
    let mut voice = UnixStream::connect(home.join("gnomon.heartbeat.sock"))?;
    voice.set_read_timeout(Some(PATIENCE))?;
    voice.read_exact(&mut [0; 200])?;
    // It writes its heartbeats to nobody from here on.
    thread::spawn(move || std::io::copy(&mut voice, &mut std::io::sink()));
    let ram = qemu.open_ram()?.ok_or("the guest's RAM is its own")?;
    let mut primary = protect(qemu, &ram)?;
    primary.checkpoint()?;
    INTERVALS.iter().map(|millis| one_interval(qemu, &mut primary, *millis, count)).collect()
}

/// A replicator, and the shadow in a thread that ends with it.
fn protect(qemu: &Arc<Qemu>, ram: &GuestRam) -> Fallible<Replicator> {
    let copy = GuestRam::create("shadow", ram.size())?.map_writable()?;
    let mut shadow = Shadow::<Standby>::new(Stream(1), Arc::new(copy), Limits::default(), None);
    shadow.begin(EPOCH)?;
    let setup = Setup {
        stream: Stream(1),
        epoch: EPOCH,
        memory: Bytes(MEMORY),
        pace: Pace::Every(Duration::ZERO),
        link: None,
        patience: PATIENCE,
    };
    let hypervisor = QemuHypervisor::new(qemu.clone(), CaptureOptions::default());
    let tracking = track(&TrackTarget::new(qemu.record().pid, ram)?)?;
    eprintln!("tracked by {}", tracking.tracker.tier());
    let mut primary = Replicator::new(setup, Box::new(hypervisor), tracking.tracker, Box::new(|_| Ok(Vec::new())));
    let (tx, rx) = mpsc::sync_channel::<Message>(QUEUE);
    let acks = primary.connect(Arc::new(Queue(Mutex::new(tx))), None).0;
    thread::spawn(move || {
        let back = Back(acks.clone());
        while rx.recv().is_ok_and(|message| shadow.take(message, &back).is_ok()) {}
        acks.gone();
    });
    Ok(primary)
}

/// Checkpoints and bare captures in turn, `millis` apart.
fn one_interval(qemu: &Qemu, primary: &mut Replicator, millis: u64, count: usize) -> Fallible<String> {
    let (mut ours, mut bare, mut told) = (Vec::new(), Vec::new(), Vec::<Told>::new());
    let mut due = Instant::now();
    let mut wait = || {
        due = Instant::now().max(due + Duration::from_millis(millis));
        thread::sleep(due - Instant::now());
    };
    for _ in 0..count {
        wait();
        told.push(primary.checkpoint()?);
        ours.extend(told.last().map(|told| told.pause.as_secs_f64() * 1e3));
        wait();
        bare.push(capture(qemu, &CaptureOptions::default())?.resume(PATIENCE)?.pause.as_secs_f64() * 1e3);
    }
    let sum = |of: fn(&Told) -> u64| told.iter().map(of).sum::<u64>() / count.max(1) as u64;
    let (ours, bare) = (spread(ours), spread(bare));
    Ok(format!(
        r#"{{"case":"{millis} ms","unit":"ms","better":"lower","n":{count},"gnomon_p50":{:.2},"gnomon_p95":{:.2},"bare_p50":{:.2},"bare_p95":{:.2},"ratio_p50":{:.2},"pages_running":{},"pages_standing":{},"bytes":{},"device_bytes":{}}}"#,
        ours.0,
        ours.1,
        bare.0,
        bare.1,
        ours.0 / bare.0,
        sum(|told| told.running.0),
        sum(|told| told.standing.0),
        sum(|told| told.bytes.0),
        sum(|told| told.device.0),
    ))
}

/// The median and the 95th percentile.
fn spread(mut samples: Vec<f64>) -> (f64, f64) {
    samples.sort_by(f64::total_cmp);
    let at = |share: usize| samples.get(samples.len() * share / 100).copied().unwrap_or_default();
    (at(50), at(95))
}

/// A bounded queue to the shadow's thread.
struct Queue(Mutex<mpsc::SyncSender<Message>>);

impl Wire for Queue {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        let tx = self.0.lock().map_err(|_| WireClosed)?;
        tx.send(message).map_err(|_| WireClosed)
    }
}

/// The shadow's answers.
struct Back(Acks);

impl Wire for Back {
    fn send(&self, message: Message) -> Result<(), WireClosed> {
        if let Message::Sealed { checkpoint, ok, .. } = message {
            self.0.sealed(checkpoint, ok);
        }
        Ok(())
    }
}
