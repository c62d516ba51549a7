//! Memory that real guests get and give back: a Linux that says what it has, and a boot sector that hears of nothing.

use std::{
    io::{BufRead, BufReader, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    thread,
    time::{Duration, Instant},
};

use gnomon_qemu::{
    Accel, CaptureOptions, DimmAnswer, Filling, GuestRam, Launch, MemoryDeviceError, NewDimm, OfferedDimm,
    PageTables, Part, PortSpec, Qemu, QemuBinary, RamLoan, Role, Standby, StateError, VmSpec, add_dimm, capture,
    dimms, guest_step, held_memory, present, remove_dimm, resize_virtio_mem, resolve, resolved_now, sweep_backends,
    virtio_mem,
};
use gnomon_terms::{Bytes, ErrorKind};
use serde_json::{Value, json};

use crate::{
    guests::{Console, LONG, Stable, newer_qemu, qemu, settled},
    trackers::linux_image,
};

const MIB: u64 = 1 << 20;
const BLOCK: Bytes = Bytes(128 * MIB);
/// For guests that never do what is awaited, however long.
const SHORT: Duration = Duration::from_secs(2);

/// For a guest that may have to try again: virtio-mem in Linux rests for 50 s after a page that could not be moved.
const TRIES: Duration = Duration::from_secs(300);

pub fn qemus() -> [&'static QemuBinary; 2] {
    [qemu(), newer_qemu()]
}

fn launch(stable: &Stable, qemu: &QemuBinary, spec: &VmSpec) -> Qemu {
    launch_as(stable, qemu, spec, &spec.name, Role::Boot, None)
}

fn launch_as(
    stable: &Stable,
    qemu: &QemuBinary,
    spec: &VmSpec,
    name: &str,
    role: Role,
    ram: Option<RamLoan<'_>>,
) -> Qemu {
    let machines = qemu.machines().expect("it lists its machines");
    let resolved = resolve(spec, qemu.version, &machines, Err("tests do not need it")).expect("settled");
    let (dir, host_args) = (stable.home(name), qemu.host_args());
    let launch = Launch { qemu: &qemu.path, host_args: &host_args, spec, resolved: &resolved, dir: &dir, role, ram };
    Qemu::launch(&launch).expect("QEMU starts")
}

/// A guest that knows of nothing but its count, with room for so many blocks.
fn sector(stable: &Stable, blocks: u64, slots: u32) -> VmSpec {
    let spec = stable.ticker();
    VmSpec { max_memory: Some(spec.memory + blocks * BLOCK.0), memory_slots: slots, ..spec }
}

pub fn block(name: &str) -> GuestRam {
    GuestRam::create(name, BLOCK).expect("memory")
}

pub fn dimm<'a>(id: &'a str, memory: &'a GuestRam) -> NewDimm<'a> {
    NewDimm { id, memory: memory.as_fd(), size: memory.size(), filling: Filling::Allocated }
}

pub fn ids(vm: &Qemu) -> Vec<String> {
    dimms(vm).expect("told").into_iter().map(|dimm| dimm.id).collect()
}

fn holds(vm: &Qemu, memory: &GuestRam) -> bool {
    held_memory(vm).expect("looked").iter().any(|held| held.inode == memory.inode())
}

/// QEMU unmaps memory a moment after it has let go of it, and tells nobody.
fn closes(vm: &Qemu, memory: &GuestRam) {
    let begun = Instant::now();
    while holds(vm, memory) {
        assert!(begun.elapsed() < LONG, "QEMU keeps the memory of a DIMM that is none");
        vm.qmp().query_status().expect("answers");
    }
    assert_eq!(sweep_backends(vm).expect("swept"), Vec::<String>::new());
}

/// A Linux that takes and gives back memory as it is told, with 256 MiB from the start and 512 MiB to come.
pub struct Linux {
    pub vm: Qemu,
    pub port: BufReader<UnixStream>,
    /// KiB, from the start.
    pub began_with: u64,
}

impl Linux {
    pub fn spec(stable: &Stable, online: &str) -> VmSpec {
        let (kernel, initrd, _) = linux_image().expect("a Linux guest in the cache: `cargo xtask guest` makes it");
        VmSpec {
            accel: Accel::Tcg,
            kernel: Some(kernel),
            initrd: Some(initrd),
            cmdline: Some(format!("console=ttyS0 panic=-1 memhp_default_state={online} gn.memory=1")),
            ports: vec![PortSpec { name: "gnomon.report".into(), socket: stable.path().join("report.sock") }],
            max_memory: Some(768 * MIB),
            ..VmSpec::new("linux", 256 * MIB)
        }
    }

    pub fn boot(stable: &Stable, qemu: &QemuBinary, spec: &VmSpec) -> Linux {
        let vm = launch(stable, qemu, spec);
        let stream = UnixStream::connect(&spec.ports[0].socket).expect("it listens");
        stream.set_read_timeout(Some(2 * LONG)).expect("set");
        let mut linux = Linux { vm, port: BufReader::new(stream), began_with: 0 };
        linux.began_with = linux.hear("ready")["total_kib"].as_u64().expect("a number");
        linux
    }

    fn hear(&mut self, kind: &str) -> Value {
        let mut line = String::new();
        if let Err(error) = self.port.read_line(&mut line) {
            let console = self.vm.record().qmp.with_file_name("console.log");
            panic!("no '{kind}': {error}; it said: {}", std::fs::read_to_string(console).unwrap_or_default());
        }
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: '{line}'"));
        assert_eq!(said["kind"], kind, "{line}");
        said
    }

    pub fn ask(&mut self, command: &str, kind: &str) -> Value {
        writeln!(self.port.get_mut(), "{command}").expect("written");
        self.hear(kind)
    }

    /// MiB that it has in all, more than from the start.
    pub fn more(&mut self) -> u64 {
        let total = self.ask("look", "memory")["total_kib"].as_u64().expect("a number");
        total.checked_sub(self.began_with).expect("not less than from the start") >> 10
    }

    /// Takes `mib` more and proves that it is memory.
    pub fn use_up(&mut self, mib: u64) {
        let burst = self.ask(&format!("touch {mib}"), "touched");
        assert_eq!(burst["mib"], mib, "{burst}");
        assert_eq!(self.ask("check", "checked")["wrong"], 0);
    }

    fn available(&mut self) -> u64 {
        self.ask("look", "memory")["available_kib"].as_u64().expect("a number") >> 10
    }
}

/// A Linux of 64 GiB calls 2 GiB a memory block: what is no whole block it takes, as it says, and uses nothing of it. It needs
/// a QEMU that begins with memory of whole blocks under TCG.
#[test]
fn a_large_guest_uses_whole_steps_only() {
    let stable = Stable::new();
    let spec = VmSpec { memory: 64 << 30, max_memory: Some(72 << 30), ..Linux::spec(&stable, "online_movable") };
    let mut linux = Linux::boot(&stable, newer_qemu(), &spec);
    let step = guest_step(&resolved_now(&linux.vm).expect("told").expect("ours"));
    for (id, size, used) in [("block", BLOCK.0, 0), ("half", step / 2, 0), ("step", step, step)] {
        let memory = GuestRam::create(id, Bytes(size)).expect("memory");
        add_dimm(&linux.vm, &NewDimm { filling: Filling::Untouched, ..dimm(id, &memory) }, LONG).expect("taken");
        assert_eq!(linux.more(), used / MIB, "{id}");
        remove_dimm(&linux.vm, id, LONG).expect("given back");
    }
}

/// Twice over, by one name, with memory that is there already and with memory that comes as it is touched.
#[test]
fn linux_takes_a_dimm_uses_it_and_gives_it_back() {
    for qemu in qemus() {
        let stable = Stable::new();
        let mut linux = Linux::boot(&stable, qemu, &Linux::spec(&stable, "online_movable"));
        for filling in [Filling::Allocated, Filling::Untouched] {
            let memory = block("gnomon-block:red:1");
            add_dimm(&linux.vm, &NewDimm { filling, ..dimm("block-1", &memory) }, LONG).expect("taken");
            assert_eq!(linux.more(), 128, "{}", qemu.version);
            assert_eq!(memory.allocated().expect("told") == BLOCK, filling == Filling::Allocated);
            let told = dimms(&linux.vm).expect("told");
            assert_eq!((told.len(), told[0].size, told[0].hotplugged), (1, BLOCK, true));
            // Linux fills what it may give back first.
            linux.use_up(160);
            assert!(memory.allocated().expect("told") > Bytes(64 * MIB), "it used what it was given");
            linux.ask("drop", "memory");
            remove_dimm(&linux.vm, "block-1", LONG).expect("given back");
            assert_eq!((linux.more(), ids(&linux.vm)), (0, Vec::new()));
            closes(&linux.vm, &memory);
        }
        let error = remove_dimm(&linux.vm, "block-1", LONG).expect_err("it is gone");
        assert!(matches!(error, MemoryDeviceError::NotThere { .. }), "{error}");
    }
}

/// Where a guest has touched what it was given is seen in QEMU's page tables: of memory that nobody had mapped, and of memory
/// that was mapped ahead of it, but for a sample.
#[test]
fn which_dimm_a_guest_has_touched_is_seen_from_outside() {
    for qemu in qemus() {
        let stable = Stable::new();
        let mut linux = Linux::boot(&stable, qemu, &Linux::spec(&stable, "online_movable"));
        let memories = [block("gnomon-block:red:1"), block("gnomon-block:red:2"), block("gnomon-block:red:3")];
        // The last one is staged: all there, and mapped before the guest hears of it.
        memories[2].map_writable().expect("mapped").write_at(0, &vec![0; BLOCK.0 as usize]).expect("populated");
        let fillings = [Filling::Untouched, Filling::Untouched, Filling::Mapped];
        for ((memory, id), filling) in memories.iter().zip(["block-1", "block-2", "block-3"]).zip(fillings) {
            add_dimm(&linux.vm, &NewDimm { filling, ..dimm(id, memory) }, LONG).expect("taken");
        }
        let pid = linux.vm.record().pid;
        let shares = |part: Part| {
            memories.each_ref().map(|memory| {
                let mut pages = 0;
                let looked = present(pid, memory, part, |run| pages += run.len.0).expect("looked");
                assert_eq!(looked.memory, BLOCK);
                (pages * u64::from(part.stands_for()) * 100 / memory.pages().0) as u32
            })
        };
        assert_eq!(shares(Part::LeftOut), [0; 3], "nobody has touched any of it");
        let all = shares(Part::All);
        assert!(all[..2] == [0, 0] && all[2] > 90, "{all:?}");
        // Linux uses what it has got first.
        linux.use_up(100);
        for part in [Part::All, Part::LeftOut] {
            let [first, second, _] = shares(part);
            assert!(first > 50 && second < 10, "{part:?}: {first} {second}");
        }
        linux.use_up(100);
        let [first, second, third] = shares(Part::LeftOut);
        assert!(first > 90 && second > 20 && third < 10, "{first} {second} {third}");
    }
}

/// Its pages have nowhere to go. It moves what it can, for as long as it takes: it does so once they have.
#[test]
fn a_guest_that_uses_all_its_memory_gives_back_nothing_until_it_can() {
    let stable = Stable::new();
    let mut linux = Linux::boot(&stable, qemu(), &Linux::spec(&stable, "online_movable"));
    let memory = block("gnomon-block:red:1");
    add_dimm(&linux.vm, &dimm("block-1", &memory), LONG).expect("taken");
    let most = linux.available() - 36;
    linux.use_up(most);
    let error = remove_dimm(&linux.vm, "block-1", SHORT).expect_err("it needs it");
    let kept = matches!(error, MemoryDeviceError::NoAnswer { .. } | MemoryDeviceError::Kept { .. });
    assert!(kept && error.stays() && error.kind() == ErrorKind::Unavailable, "{error}");
    assert_eq!(ids(&linux.vm), ["block-1"]);
    assert!(holds(&linux.vm, &memory));
    assert_eq!(linux.ask("check", "checked")["wrong"], 0, "whatever it moved is what it was");
    linux.ask("drop", "memory");
    let begun = Instant::now();
    while let Err(error) = remove_dimm(&linux.vm, "block-1", LONG) {
        assert!(begun.elapsed() < 2 * LONG, "{error}");
    }
    assert_eq!((linux.more(), ids(&linux.vm)), (0, Vec::new()));
    closes(&linux.vm, &memory);
}

/// Memory that its kernel uses for itself cannot be moved.
#[test]
fn a_guest_whose_kernel_lives_in_a_dimm_says_no() {
    let stable = Stable::new();
    let mut linux = Linux::boot(&stable, qemu(), &Linux::spec(&stable, "online_kernel"));
    let memory = block("gnomon-block:red:1");
    add_dimm(&linux.vm, &dimm("block-1", &memory), LONG).expect("taken");
    linux.use_up(100);
    let error = remove_dimm(&linux.vm, "block-1", LONG).expect_err("its kernel is there");
    assert!(matches!(error, MemoryDeviceError::Kept { answer: DimmAnswer::Kept(_), .. }), "{error}");
    assert_eq!((linux.more(), ids(&linux.vm)), (128, vec!["block-1".to_string()]));
    assert_eq!(linux.ask("check", "checked")["wrong"], 0);
}

/// Its system has taken it and leaves it alone: that a DIMM is taken does not say that it is used.
#[test]
fn a_guest_that_is_not_set_to_use_dimms_takes_them_all_the_same() {
    let stable = Stable::new();
    let mut linux = Linux::boot(&stable, qemu(), &Linux::spec(&stable, "offline"));
    let memory = block("gnomon-block:red:1");
    add_dimm(&linux.vm, &dimm("block-1", &memory), LONG).expect("taken");
    assert_eq!(linux.more(), 0);
    remove_dimm(&linux.vm, "block-1", LONG).expect("given back");
    closes(&linux.vm, &memory);
}

#[test]
fn a_daemon_that_was_restarted_finds_the_memory_again() {
    let stable = Stable::new();
    let Linux { vm, port, began_with } = Linux::boot(&stable, qemu(), &Linux::spec(&stable, "online_movable"));
    let memory = block("gnomon-block:red:7");
    add_dimm(&vm, &dimm("block-7", &memory), LONG).expect("taken");
    // The daemon ends between two steps of the next one.
    let begun = json!({ "qom-type": "memory-backend-ram", "id": "block-8-dimm", "size": BLOCK.0 });
    vm.qmp().execute("object-add", begun, LONG).expect("added");
    let inode = memory.inode();
    drop((vm, memory));

    let vm = Qemu::adopt_dir(&stable.home("linux")).expect("it still runs");
    let mut linux = Linux { vm, port, began_with };
    assert_eq!(ids(&linux.vm), ["block-7"]);
    assert_eq!(sweep_backends(&linux.vm).expect("swept"), ["block-8"]);
    let held = held_memory(&linux.vm).expect("looked");
    let block = held.iter().find(|held| held.name == "gnomon-block:red:7").expect("QEMU has it open");
    assert_eq!((block.inode, block.size), (inode, BLOCK));
    let memory = block.open().expect("opened");
    assert_eq!((memory.inode(), memory.allocated().expect("told")), (inode, BLOCK));
    remove_dimm(&linux.vm, "block-7", LONG).expect("given back");
    assert_eq!(linux.more(), 0);
    closes(&linux.vm, &memory);
}

#[test]
fn virtio_mem_grows_and_shrinks() {
    for qemu in qemus() {
        let stable = Stable::new();
        let spec = VmSpec { virtio_mem: Some(256 * MIB), ..Linux::spec(&stable, "online_movable") };
        let mut linux = Linux::boot(&stable, qemu, &spec);
        for (mib, grown) in [(160, true), (256, true), (64, false), (0, false)] {
            let now = resize_virtio_mem(&linux.vm, Bytes(mib * MIB), TRIES).expect("done");
            assert_eq!((now.actual, now.requested, now.most), (Bytes(mib * MIB), now.actual, Bytes(256 * MIB)));
            // The device counts a block before the guest does, and after.
            let kib = linux.began_with + (mib << 10);
            let told = if grown { linux.ask(&format!("grown {kib}"), "memory") } else { Value::Null };
            assert!(!grown || told["total_kib"].as_u64().is_some_and(|total| total >= kib), "{told}");
        }
        // A DIMM beside it.
        let memory = block("gnomon-block:red:1");
        add_dimm(&linux.vm, &dimm("block-1", &memory), LONG).expect("taken");
        linux.use_up(200);
        let error = resize_virtio_mem(&linux.vm, Bytes(5), LONG).expect_err("no whole block");
        assert_eq!(error.kind(), ErrorKind::Refused, "{error}");
    }
}

#[test]
fn a_guest_begins_with_memory_that_is_all_there() {
    let stable = Stable::new();
    let spec = stable.ticker();
    for (name, populate) in [("cold", false), ("warm", true)] {
        let ram = GuestRam::create(name, Bytes(settled(&spec).memory)).expect("memory");
        let loan = if populate { ram.shared().populated() } else { ram.shared() };
        let vm = launch_as(&stable, qemu(), &spec, name, Role::BootPaused, Some(loan));
        assert_eq!(ram.allocated().expect("told") == ram.size(), populate);
        vm.qmp().cont().expect("runs");
        Console::open(&stable.home(name)).tick();
    }
}

#[test]
fn a_guest_without_virtio_mem_is_told_so() {
    let stable = Stable::new();
    let vm = launch(&stable, qemu(), &stable.ticker());
    let error = virtio_mem(&vm).expect_err("there is none");
    assert!(matches!(error, MemoryDeviceError::NotThere { .. }), "{error}");
    let error = resize_virtio_mem(&vm, BLOCK, LONG).expect_err("there is none");
    assert!(matches!(error, MemoryDeviceError::NotThere { .. }), "{error}");
}

/// Linux never does: when it fails to add memory it says so in its log, and to ACPI that all is well.
#[test]
fn a_guest_that_declines_a_dimm_gives_it_back() {
    for qemu in qemus() {
        let stable = Stable::new();
        let spec = stable.decliner();
        let spec = VmSpec { max_memory: Some(spec.memory + BLOCK.0), memory_slots: 1, ..spec };
        let vm = launch(&stable, qemu, &spec);
        let memory = block("gnomon-block:red:1");
        // Once more in the same slot: nothing of the first one is in its way.
        for _ in 0..2 {
            let error = add_dimm(&vm, &dimm("block-1", &memory), LONG).expect_err("it says no");
            let said = matches!(&error, MemoryDeviceError::Declined { answer: DimmAnswer::Declined(1), .. });
            assert!(said && error.stays() && error.kind() == ErrorKind::Refused, "{error}");
            assert_eq!(ids(&vm), ["block-1"], "it is QEMU's until the guest lets go of it");
            remove_dimm(&vm, "block-1", LONG).expect("it has no use for it");
            assert_eq!(ids(&vm), Vec::<String>::new());
            closes(&vm, &memory);
        }
    }
}

/// A boot sector never hears of a DIMM. It is QEMU's all the same, and takes a slot.
#[test]
fn a_guest_that_knows_no_dimms_never_answers() {
    for qemu in qemus() {
        let stable = Stable::new();
        let vm = launch(&stable, qemu, &sector(&stable, 2, 1));
        let (one, two) = (block("one"), block("two"));
        let error = add_dimm(&vm, &dimm("one", &one), SHORT).expect_err("who should answer?");
        assert!(matches!(error, MemoryDeviceError::NoAnswer { .. }) && error.stays(), "{error}");
        let error = remove_dimm(&vm, "one", SHORT).expect_err("who should let go?");
        assert!(matches!(error, MemoryDeviceError::NoAnswer { .. }), "{error}");
        let error = add_dimm(&vm, &dimm("two", &two), LONG).expect_err("no slot");
        assert!(matches!(error, MemoryDeviceError::NoSlot { .. }) && !error.stays(), "{error}");
        closes(&vm, &two);
        let error = add_dimm(&vm, &dimm("one", &two), LONG).expect_err("the name is taken");
        assert!(matches!(error, MemoryDeviceError::Exists { .. }), "{error}");
        closes(&vm, &two);
        assert_eq!(ids(&vm), ["one"]);
        assert!(holds(&vm, &one));
        assert!(vm.qmp().query_status().expect("answers").running);
    }
}

/// QEMU's own RAM is a little larger under an old emulator; all that was promised fits nevertheless.
#[test]
fn a_guest_gets_all_that_its_description_allows_and_no_more() {
    for qemu in qemus() {
        let stable = Stable::new();
        let vm = launch(&stable, qemu, &sector(&stable, 3, 8));
        let blocks = [block("a"), block("b"), block("c"), block("d")];
        for (id, memory) in ["a", "b", "c"].into_iter().zip(&blocks) {
            drop(OfferedDimm::new(&vm, &dimm(id, memory)).expect("offered").plug().expect("plugged"));
        }
        let error = add_dimm(&vm, &dimm("d", &blocks[3]), LONG).expect_err("too much");
        assert!(matches!(error, MemoryDeviceError::NoSpace { .. }), "{error}");
        closes(&vm, &blocks[3]);
        assert_eq!(ids(&vm), ["a", "b", "c"]);
    }
}

/// It was given while QEMU did not answer: nobody has heard in which set it is.
#[test]
fn memory_that_never_became_a_dimms_is_closed() {
    for qemu in qemus() {
        let stable = Stable::new();
        let vm = launch(&stable, qemu, &sector(&stable, 1, 1));
        let memory = block("gnomon-block:red:1");
        let give = |opaque: &str| {
            let given = vm.qmp().execute_with_fd("add-fd", json!({ "opaque": opaque }), memory.as_fd(), LONG);
            given.expect("given")["fdset-id"].as_u64().expect("a number")
        };
        let other = give("somebody's");
        assert_eq!(sweep_backends(&vm).expect("swept"), Vec::<String>::new());
        assert!(holds(&vm, &memory), "it was given for something else");
        vm.qmp().remove_fd(other).expect("taken back");
        give("gnomon-dimm");
        assert!(holds(&vm, &memory));
        assert_eq!(sweep_backends(&vm).expect("swept"), Vec::<String>::new());
        closes(&vm, &memory);
    }
}

/// What carries a guest says what it carries. A device that could have memory and has none is no hindrance.
#[test]
fn a_guest_with_memory_that_nobody_carries_is_not_captured() {
    for qemu in qemus() {
        let stable = Stable::new();
        let spec = VmSpec { virtio_mem: Some(BLOCK.0), ..sector(&stable, 2, 1) };
        let vm = launch(&stable, qemu, &spec);
        Console::open(&stable.home(&spec.name)).tick();
        let ram = vm.open_ram().expect("opened").expect("ours");
        let blob = capture(&vm, &CaptureOptions::default()).expect("captured").hand_over();
        let next = launch_as(&stable, qemu, &spec, "next", Role::IncomingPaused, Some(ram.shared()));
        Standby::new(&next).expect("ready").load(&blob, LONG).expect("loaded").run(LONG).expect("runs");
        vm.kill().expect("killed");
        let vm = next;
        drop(OfferedDimm::new(&vm, &dimm("a", &block("a"))).expect("offered").plug().expect("plugged"));
        let error = capture(&vm, &CaptureOptions::default()).expect_err("whose memory is that?");
        assert!(matches!(&error, StateError::RamAdded { id } if id == "a"), "{error}");
        let options = CaptureOptions { dimms: vec!["b".into(), "a".into()], ..CaptureOptions::default() };
        let error = capture(&vm, &options).expect_err("it has no such memory");
        assert!(matches!(&error, StateError::RamGivenBack { id } if id == "b"), "{error}");
        assert!(vm.qmp().query_status().expect("answers").running);
    }
}

#[test]
fn what_is_no_memory_for_a_guest_is_refused_and_leaves_nothing() {
    for qemu in qemus() {
        let stable = Stable::new();
        let vm = launch(&stable, qemu, &sector(&stable, 1, 1));
        let small = GuestRam::create("small", Bytes(64 * MIB)).expect("memory");
        let pipe = std::io::pipe().expect("a pipe").0;
        for memory in [small.as_fd(), pipe.as_fd()] {
            let wrong = NewDimm { id: "wrong", memory, size: BLOCK, filling: Filling::Allocated };
            let error = add_dimm(&vm, &wrong, LONG).expect_err("no such memory");
            assert!(matches!(error, MemoryDeviceError::Backend { .. }), "{error}");
        }
        closes(&vm, &small);
        drop(OfferedDimm::new(&vm, &dimm("offered", &block("x"))).expect("offered"));
        assert_eq!(sweep_backends(&vm).expect("swept"), Vec::<String>::new(), "what is dropped is taken back");
        let other = Stable::new();
        let vm = launch(&other, qemu, &other.ticker());
        let error = add_dimm(&vm, &dimm("a", &block("a")), LONG).expect_err("no room at all");
        assert!(matches!(error, MemoryDeviceError::NotPrepared { .. }), "{error}");
    }
}

#[test]
fn a_qemu_that_dies_in_between_is_told_at_once() {
    let stable = Stable::new();
    let spec = sector(&stable, 1, 1);
    let vm = launch(&stable, qemu(), &spec);
    let memory = block("a");
    let offered = OfferedDimm::new(&vm, &dimm("a", &memory)).expect("offered");
    vm.kill().expect("killed");
    let error = offered.plug().expect_err("nobody is there");
    assert!(matches!(error, MemoryDeviceError::Qmp(_)) && error.kind() == ErrorKind::Unavailable, "{error}");

    let vm = launch(&stable, qemu(), &spec);
    let plugged = OfferedDimm::new(&vm, &dimm("a", &memory)).expect("offered").plug().expect("plugged");
    let killer = thread::spawn(move || vm.kill().map(drop));
    let error = plugged.taken(2 * LONG).expect_err("it dies");
    assert!(matches!(error, MemoryDeviceError::Ended { .. }), "{error}");
    killer.join().expect("joined").expect("killed");
}

/// It may end at any time, and nobody holds it: what fills its page tables neither waits nor fills another's.
#[test]
fn page_tables_of_a_qemu_that_has_ended_are_not_filled() {
    let stable = Stable::new();
    let spec = stable.ticker();
    let ram = GuestRam::create("ends", Bytes(settled(&spec).memory)).expect("memory");
    let vm = launch_as(&stable, qemu(), &spec, "ends", Role::Boot, Some(ram.shared()));
    let tables = PageTables::of(&vm, ram.as_fd(), ram.size()).expect("it lives");
    tables.fill().expect("filled");
    vm.kill().expect("killed");
    assert!(tables.fill().is_err(), "whose page tables are these?");
}
