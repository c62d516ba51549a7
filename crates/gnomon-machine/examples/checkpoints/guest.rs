//! A guest that works, with its shadow in this process.

use std::{
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use gnomon_machine::{
    primary::{Acks, Pace, QemuHypervisor, Replicator, Setup},
    shadow::{Limits, Shadow},
    wire::{Wire, WireClosed},
};
use gnomon_proto::frame::{Message, Stream};
use gnomon_qemu::{CaptureOptions, DiskSpec, GuestRam, PortSpec, Qemu, Standby, TrackTarget, VmSpec, capture, track};
use gnomon_terms::{Bytes, Epoch};

use crate::measured::{Fallible, PATIENCE, boot};

const EPOCH: Epoch = Epoch(1);
/// Frames on their way: 16 of at most 1 MiB.
const QUEUE: usize = 16;
/// The share of a guest's memory that the daemon spends on remembering what the shadow has, and the least of it.
const REMEMBERED: u64 = 8;
const REMEMBERED_LEAST: u64 = 64 << 20;

/// A guest's own copy of the disk.
const DISK: &str = "disk.raw";

/// What guests are made of.
pub struct Parts {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
    /// As it was filled.
    pub disk: PathBuf,
}

/// A guest that works, with its shadow. Its QEMU ends with it.
pub struct Guest {
    qemu: Arc<Qemu>,
    pub primary: Replicator,
    beats: Arc<AtomicU64>,
    _home: tempfile::TempDir,
}

impl Guest {
    /// Boots it and makes its first copy. `words` are what its init is told.
    pub fn start(parts: &Parts, memory: u64, words: &str) -> Fallible<Guest> {
        let home = tempfile::tempdir()?;
        // The guest checks its disk against a fresh one's content.
        std::fs::copy(&parts.disk, home.path().join(DISK))?;
        let qemu = Arc::new(boot(home.path(), spec(parts, memory, words, home.path()))?);
        let started = Guest::protect(&qemu, home);
        if started.is_err() {
            qemu.kill()?;
        }
        started
    }

    fn protect(qemu: &Arc<Qemu>, home: tempfile::TempDir) -> Fallible<Guest> {
        let beats = listen(&home.path().join("gnomon.heartbeat.sock"))?;
        let ram = qemu.open_ram()?.ok_or("the guest's RAM is its own")?;
        let mut primary = replicator(qemu, &ram)?;
        primary.checkpoint()?;
        Ok(Guest { qemu: qemu.clone(), primary, beats, _home: home })
    }

    /// QEMU writes the guest's devices down and lets it go on: how long it stood.
    pub fn bare(&self) -> Fallible<Duration> {
        Ok(capture(&self.qemu, &CaptureOptions::default())?.resume(PATIENCE)?.pause)
    }

    /// How often it has beaten.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
    }
}

fn spec(parts: &Parts, memory: u64, words: &str, home: &Path) -> VmSpec {
    let port = |name: &str| PortSpec { name: name.into(), socket: home.join(format!("{name}.sock")) };
    VmSpec {
        kernel: Some(parts.kernel.clone()),
        initrd: Some(parts.initrd.clone()),
        cmdline: Some(format!("console=ttyS0 panic=-1 {words}")),
        disks: vec![DiskSpec::raw_file("data", &home.join(DISK))],
        ports: vec![port("gnomon.heartbeat"), port("gnomon.report")],
        ..VmSpec::new("measured", memory)
    }
}

/// Counts lines from the moment that the guest has begun to beat.
fn listen(socket: &Path) -> Fallible<Arc<AtomicU64>> {
    let mut voice = UnixStream::connect(socket)?;
    voice.set_read_timeout(Some(PATIENCE))?;
    voice.read_exact(&mut [0; 200])?;
    let beats = Arc::new(AtomicU64::new(0));
    let counter = beats.clone();
    thread::spawn(move || {
        let mut buffer = [0; 1 << 16];
        while let Ok(count @ 1..) = voice.read(&mut buffer) {
            let lines = buffer[..count].iter().filter(|&&byte| byte == b'\n').count();
            counter.fetch_add(lines as u64, Ordering::Relaxed);
        }
    });
    Ok(beats)
}

/// A replicator, and the shadow in a thread that ends with it.
fn replicator(qemu: &Arc<Qemu>, ram: &GuestRam) -> Fallible<Replicator> {
    let copy = GuestRam::create("shadow", ram.size())?.map_writable()?;
    let mut shadow = Shadow::<Standby>::new(Stream(1), Arc::new(copy), Limits::default(), None);
    shadow.begin(EPOCH)?;
    let setup = Setup {
        stream: Stream(1),
        epoch: EPOCH,
        memory: Bytes((ram.size().0 / REMEMBERED).max(REMEMBERED_LEAST)),
        pace: Pace::Every(Duration::ZERO),
        link: None,
        patience: PATIENCE,
    };
    let hypervisor = QemuHypervisor::new(qemu.clone(), CaptureOptions::default());
    let tracking = track(&TrackTarget::new(qemu.record().pid, ram)?)?;
    eprintln!("{} MiB, tracked by {}", ram.size().0 >> 20, tracking.tracker.tier());
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
