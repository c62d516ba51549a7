//! Every tracker this host has, held to the frozen truth.
//!
//! A shadow is kept as a replica is: what a scan reports is read through the tracker and copied. Scans happen while the
//! guest runs and once more when it stands; then the shadow must be the guest's memory, byte for byte. More guests in
//! a run: `GNOMON_TRACK_MIB=1024 cargo test -p gnomon-qemu --test it trackers -- --nocapture` prints what scans cost.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::{fs::FileExt, net::UnixStream},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use gnomon_qemu::{
    Accel, Accelerator, DirtyTracker, DiskSpec, GuestRam, HostFacts, KvmNode, Launch, PageTables, PortSpec, Qemu,
    Resolved, Role, TrackTarget, TrackerFacts, TrackerTier, VmPaths, VmSpec, boot_sector, resolve, self_test,
};
use gnomon_terms::{Bytes, PAGE_SIZE, PageNumber, PageSet};
use rustix::fd::AsFd;

use crate::guests::{LONG, Stable, qemu};

/// How often the shadow is compared with the truth.
const ROUNDS: usize = 20;

/// The tiers this host says it has.
pub fn tiers() -> Vec<TrackerTier> {
    TrackerFacts::gather().verdicts().into_iter().filter(|verdict| verdict.available).map(|v| v.tier).collect()
}

/// RAM of the guests in the suite.
fn memory() -> u64 {
    let mib = std::env::var("GNOMON_TRACK_MIB").ok().and_then(|mib| mib.parse().ok()).unwrap_or(32);
    mib << 20
}

/// A guest that writes its memory and tells that it has.
struct Writer {
    vm: Qemu,
    ram: GuestRam,
    /// What it says: the more it has written, the more.
    voice: UnixStream,
}

impl Writer {
    fn start(stable: &Stable, name: &str, spec: &VmSpec, accelerator: Accelerator, voice: &str) -> Writer {
        let machines = qemu().machines().expect("it lists its machines");
        let kvm = if accelerator == Accelerator::Kvm { Ok(()) } else { Err("not asked for") };
        let resolved: Resolved = resolve(spec, qemu().version, &machines, kvm).expect("it can be settled");
        let ram = GuestRam::create(name, Bytes(resolved.memory)).expect("made");
        let dir = stable.home(name);
        let launch = Launch {
            qemu: &qemu().path,
            host_args: &[],
            spec,
            resolved: &resolved,
            dir: &dir,
            role: Role::Boot,
            ram: Some(ram.shared()),
        };
        let vm = Qemu::launch(&launch).expect("it starts");
        let voice = UnixStream::connect(dir.join(voice)).expect("it listens");
        voice.set_read_timeout(Some(LONG)).expect("a timeout");
        Writer { vm, ram, voice }
    }

    /// A guest of one boot sector.
    fn sector(stable: &Stable, accelerator: Accelerator) -> Writer {
        let disk = stable.path().join("sector.img");
        fs::write(&disk, boot_sector(Bytes(memory()))).expect("written");
        let disk = DiskSpec { read_only: true, ..DiskSpec::raw_file("boot", &disk) };
        let accel = if accelerator == Accelerator::Kvm { Accel::Kvm } else { Accel::Tcg };
        let cpu_model = Some("qemu64".to_string());
        let spec = VmSpec { accel, cpu_model, disks: vec![disk], ..VmSpec::new("sector", memory()) };
        Writer::start(stable, "sector", &spec, accelerator, "console.sock")
    }

    /// A Linux that dirties 16 pages of 64 MiB each millisecond, if `cargo xtask demo` has built one.
    fn linux(stable: &Stable) -> Option<Writer> {
        let (kernel, initrd, program) = linux_image()?;
        let disk = stable.path().join("linux.img");
        let mut fill = Command::new(program);
        let filled = fill.args(["fill", "--seed", "1", "--records", "4096", "--file"]).arg(&disk).status();
        assert!(filled.expect("run").success(), "the guest's disk could not be filled");
        let port = |name: &str| PortSpec { name: name.into(), socket: stable.path().join(format!("{name}.sock")) };
        let spec = VmSpec {
            accel: Accel::Tcg,
            kernel: Some(kernel),
            initrd: Some(initrd),
            cmdline: Some("console=ttyS0 panic=-1 gn.buf=64 gn.dirty=16".into()),
            disks: vec![DiskSpec::raw_file("data", &disk)],
            ports: vec![port("gnomon.heartbeat"), port("gnomon.report")],
            ..VmSpec::new("linux", 256 << 20)
        };
        Some(Writer::start(stable, "linux", &spec, Accelerator::Tcg, "../gnomon.heartbeat.sock"))
    }

    /// Blocks until it has said `bytes` from now on.
    fn write(&mut self, bytes: usize) {
        let mut said = [0; 4096];
        self.voice.set_nonblocking(true).expect("set");
        while self.voice.read(&mut said).is_ok_and(|n| n > 0) {}
        self.voice.set_nonblocking(false).expect("set");
        if let Err(error) = self.voice.read_exact(&mut vec![0; bytes]) {
            let console = fs::read_to_string(self.vm.record().qmp.with_file_name("console.log")).unwrap_or_default();
            panic!("the guest does not run: {error}; it said: {console}");
        }
    }

    fn target(&self) -> TrackTarget {
        TrackTarget::new(self.vm.record().pid, &self.ram).expect("it maps its RAM")
    }

    fn truth(&self) -> Vec<u8> {
        let file = fs::File::from(self.ram.as_fd().try_clone_to_owned().expect("a descriptor"));
        let mut bytes = vec![0; self.ram.size().0 as usize];
        file.read_exact_at(&mut bytes, 0).expect("all of it");
        bytes
    }
}

/// A kernel, an initial RAM disk, and the program in it, which also fills disks.
pub fn linux_image() -> Option<(PathBuf, PathBuf, PathBuf)> {
    let cache = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/gnomon-cache");
    let mut kernels = fs::read_dir(cache.join("kernel/boot")).ok()?.flatten().map(|entry| entry.path());
    let kernel = kernels.find(|path| path.to_string_lossy().contains("vmlinuz"))?;
    let program = cache.join("guest-target/x86_64-unknown-linux-gnu/release/gnomon-guest");
    let initrd = cache.join("guest.cpio");
    (initrd.exists() && program.exists()).then_some((kernel, initrd, program))
}

/// A copy that follows the guest by what a tracker reports.
struct Shadow {
    bytes: Vec<u8>,
    scans: Vec<Duration>,
    reported: u64,
}

impl Shadow {
    fn new(tracker: &mut dyn DirtyTracker) -> Shadow {
        let bytes = vec![0xee; tracker.pages().bytes().0 as usize];
        let mut shadow = Shadow { bytes, scans: Vec::new(), reported: 0 };
        let all = shadow.follow(tracker);
        assert_eq!(all, tracker.pages().0, "the first scan reports every page");
        shadow
    }

    /// One scan, and what it reported is copied. Says how many pages that were.
    fn follow(&mut self, tracker: &mut dyn DirtyTracker) -> u64 {
        let mut dirty = PageSet::new();
        let cost = tracker.scan(&mut dirty).expect("scanned");
        for run in dirty.runs() {
            let range = run.start.byte() as usize..run.end().byte() as usize;
            tracker.read(run.start, &mut self.bytes[range]).expect("read");
        }
        assert!(cost.reported >= dirty.count());
        self.scans.push(cost.took);
        self.reported += dirty.count().0;
        dirty.count().0
    }

    /// Pages that are not what the guest has.
    fn wrong(&self, truth: &[u8]) -> Vec<PageNumber> {
        let pages = self.bytes.chunks(PAGE_SIZE as usize).zip(truth.chunks(PAGE_SIZE as usize));
        (0..).map(PageNumber).zip(pages).filter(|(_, (a, b))| a != b).map(|(page, _)| page).collect()
    }
}

/// The conformance suite: a guest that says `step` bytes while it writes a little.
fn hold_to_the_truth(writer: &mut Writer, tier: TrackerTier, step: usize) {
    let mut tracker = tier.start(&writer.target()).expect("this host has the tier");
    assert_eq!((tracker.tier(), tracker.pages()), (tier, writer.ram.pages()));
    writer.vm.qmp().stop().expect("stands");
    let mut shadow = Shadow::new(tracker.as_mut());
    let (mut before, mut written, mut reported) = (writer.truth(), 0, 0);
    assert_eq!(shadow.wrong(&before), []);
    for round in 0..ROUNDS {
        writer.vm.qmp().cont().expect("runs");
        writer.write(step);
        for _ in 0..if tier.needs_standing_guest() { 0 } else { round % 4 } {
            reported += shadow.follow(tracker.as_mut());
            writer.write(step);
        }
        writer.vm.qmp().stop().expect("stands");
        reported += shadow.follow(tracker.as_mut());
        let truth = writer.truth();
        assert_eq!(shadow.wrong(&truth), [], "{tier}, round {round}");
        written += Shadow { bytes: before, scans: Vec::new(), reported: 0 }.wrong(&truth).len() as u64;
        before = truth;
        // Nobody writes now: nothing may be reported, or scans would never come to an end.
        assert_eq!(shadow.follow(tracker.as_mut()), 0, "{tier}, round {round}: a guest that stands was reported");
    }
    assert!(written > 0, "the guest wrote nothing");
    let first = shadow.scans.remove(0);
    shadow.scans.sort_unstable();
    let (median, most) = (shadow.scans[shadow.scans.len() / 2], shadow.scans[shadow.scans.len() - 1]);
    println!(
        "{tier}: {} MiB, first scan {first:?}, then median {median:?}, longest {most:?}; {written} pages differed at a \
         stop, {reported} were reported",
        writer.ram.size().0 >> 20
    );
}

#[test]
fn boot_sector_under_tcg() {
    for tier in tiers() {
        hold_to_the_truth(&mut Writer::sector(&Stable::new(), Accelerator::Tcg), tier, 8);
    }
}

/// Where there is a `/dev/kvm`, be it one that emulates.
#[test]
fn boot_sector_under_kvm() {
    if HostFacts::gather().kvm_node != KvmNode::Present {
        println!("there is no /dev/kvm for us here: only TCG was tried");
        return;
    }
    for tier in tiers() {
        hold_to_the_truth(&mut Writer::sector(&Stable::new(), Accelerator::Kvm), tier, 2);
    }
}

/// A whole system, which writes everywhere: its kernel, its page tables, a disk's and a port's rings.
#[test]
fn linux_under_tcg() {
    for tier in tiers() {
        let stable = Stable::new();
        let Some(mut writer) = Writer::linux(&stable) else {
            println!("there is no Linux guest in target/gnomon-cache: `cargo xtask demo` builds it");
            return;
        };
        let report = UnixStream::connect(stable.path().join("gnomon.report.sock")).expect("it listens");
        let mut first = String::new();
        BufReader::new(writer.voice.try_clone().expect("a descriptor")).read_line(&mut first).expect("it has booted");
        hold_to_the_truth(&mut writer, tier, 200);
        drop(report);
    }
}

/// Page tables are filled beside a guest that boots, and somebody may begin to protect it meanwhile.
#[test]
fn pages_that_are_only_mapped_are_not_reported_and_those_that_are_written_are() {
    for tier in tiers() {
        let stable = Stable::new();
        let mut writer = Writer::sector(&stable, Accelerator::Tcg);
        writer.write(8);
        let mut tracker = tier.start(&writer.target()).expect("this host has the tier");
        writer.vm.qmp().stop().expect("stands");
        let mut shadow = Shadow::new(tracker.as_mut());
        let tables = PageTables::of(&writer.vm, writer.ram.as_fd(), writer.ram.size()).expect("it lives");
        let before = mapped(&writer.vm);
        tables.fill().expect("filled");
        let after = mapped(&writer.vm);
        assert!(after > before, "{tier}: {before} KiB were mapped, and {after} are");
        assert_eq!(shadow.follow(tracker.as_mut()), 0, "{tier}: nobody has written");
        drop(tracker);
        hold_to_the_truth(&mut writer, tier, 8);
    }
}

/// KiB that a QEMU has in its page tables of its guest's RAM.
fn mapped(vm: &Qemu) -> u64 {
    let smaps = fs::read_to_string(format!("/proc/{}/smaps", vm.record().pid)).expect("it lives");
    let of_it = smaps.lines().skip_while(|line| !line.contains("memfd:sector"));
    let rss = of_it.skip(1).find_map(|line| line.strip_prefix("Rss:")?.strip_suffix("kB"));
    rss.expect("it has the RAM").trim().parse().expect("a number")
}

/// What `gnomon doctor` runs: the same verdict, from the program itself.
#[test]
fn the_self_test_finds_what_the_suite_finds() {
    let test = self_test(&qemu().path, Accelerator::Tcg).expect("it runs");
    println!("{test:?}");
    assert_eq!(test.tiers.iter().map(|tier| tier.tier).collect::<Vec<_>>(), tiers());
    assert!(test.tiers.iter().all(|tier| tier.right()), "{test:?}");
    assert!(self_test(std::path::Path::new("/nowhere/qemu"), Accelerator::Tcg).is_err());
}

/// A daemon that is restarted finds the marks it left in QEMU, and the guest never notices.
#[test]
fn a_tracker_after_a_tracker_takes_over() {
    let stable = Stable::new();
    let mut writer = Writer::sector(&stable, Accelerator::Tcg);
    let pid = writer.vm.record().pid;
    let userfaultfds = || {
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten();
        fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().contains("userfaultfd"))).count()
    };
    for _ in 0..3 {
        hold_to_the_truth(&mut writer, tiers()[0], 8);
    }
    assert_eq!(userfaultfds(), usize::from(tiers()[0] == TrackerTier::PagemapScan));
    assert!(VmPaths::new(&stable.home("sector")).record().exists());
}
