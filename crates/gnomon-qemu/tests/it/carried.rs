//! A guest goes on elsewhere with what it was given: on its own memory, on a copy of it, and by QEMU's own migration.

use std::{io::BufReader, os::unix::net::UnixStream};

use gnomon_qemu::{
    CaptureOptions, DirtyTracker, GuestMemory, GuestRam, Incoming, IncomingFrom, Launch, Outgoing, OutgoingOptions,
    Qemu, Resolved, Role, Standby, TrackTarget, add_dimm, capture, memory_of, remove_dimm, resolved_now, track,
};
use gnomon_terms::{PageNumber, PageSet};

use crate::{
    guests::{LONG, Stable, newer_qemu},
    memory::{Linux, block, dimm, ids, qemus},
};

/// On the same memory, and on a copy of it. One that was given back before leaves a slot free and a gap in addresses.
#[test]
fn a_guest_goes_on_in_another_qemu_with_what_it_was_given() {
    for (qemu, is_copied) in qemus().into_iter().zip([false, true]) {
        let stable = Stable::new();
        let mut linux = Linux::boot(&stable, qemu, &Linux::spec(&stable, "online_movable"));
        let blocks = ["gone", "first", "second"].map(block);
        for (id, memory) in ["gone", "first", "second"].into_iter().zip(&blocks) {
            add_dimm(&linux.vm, &dimm(id, memory), LONG).expect("taken");
        }
        remove_dimm(&linux.vm, "gone", LONG).expect("given back");
        linux.use_up(320);

        let made_of = resolved_now(&linux.vm).expect("told").expect("ours");
        assert_eq!(
            made_of.dimms.iter().map(|dimm| (dimm.id.as_str(), dimm.slot)).collect::<Vec<_>>(),
            [("first", 1), ("second", 2)]
        );
        let memory = memory_of(&linux.vm, &made_of).expect("found").expect("ours");
        let inodes = |parts: &[GuestRam]| parts.iter().map(GuestRam::inode).collect::<Vec<_>>();
        assert_eq!(inodes(&memory.parts()[1..]), inodes(&blocks[1..]));
        let target = TrackTarget::of_memory(linux.vm.record().pid, &memory).expect("mapped");
        let tracker = is_copied.then(|| track(&target).expect("followed").tracker);
        let frozen = capture(&linux.vm, &CaptureOptions::of(&made_of)).expect("captured");
        let memory = tracker.map_or(memory, |mut tracker| copied(&mut *tracker, &made_of));

        let mut spec = linux.vm.record().spec.clone().expect("ours");
        spec.ports[0].socket = stable.path().join("next.sock");
        let launch = Launch {
            qemu: &qemu.path,
            host_args: &qemu.host_args(),
            spec: &spec,
            resolved: &made_of,
            dir: &stable.home("next"),
            role: Role::IncomingPaused,
            ram: Some(memory.shared()),
        };
        let next = Qemu::launch(&launch).expect("QEMU starts");
        let port = UnixStream::connect(&spec.ports[0].socket).expect("it listens");
        let blob = frozen.hand_over();
        Standby::new(&next).expect("ready").load(&blob, LONG).expect("loaded").run(LONG).expect("runs");
        linux.vm.kill().expect("killed");
        port.set_read_timeout(Some(2 * LONG)).expect("set");
        let mut linux = Linux { vm: next, port: BufReader::new(port), ..linux };
        assert_eq!(linux.ask("check", "checked")["wrong"], 0, "{}", qemu.version);
        assert_eq!(resolved_now(&linux.vm).expect("told"), Some(made_of));

        // It gives back what it brought along, and gets more.
        linux.ask("drop", "memory");
        remove_dimm(&linux.vm, "second", LONG).expect("given back");
        assert_eq!((linux.more(), ids(&linux.vm)), (128, vec!["first".to_string()]));
        add_dimm(&linux.vm, &dimm("third", &blocks[0]), LONG).expect("taken");
        linux.use_up(320);
    }
}

/// By QEMU's own migration, of a release that loses no pages of it under TCG.
#[test]
fn a_guest_is_migrated_with_what_it_was_given() {
    let (stable, qemu) = (Stable::new(), newer_qemu());
    let mut linux = Linux::boot(&stable, qemu, &Linux::spec(&stable, "online_movable"));
    let blocks = ["gone", "first", "second"].map(block);
    for (id, memory) in ["gone", "first", "second"].into_iter().zip(&blocks) {
        add_dimm(&linux.vm, &dimm(id, memory), LONG).expect("taken");
    }
    remove_dimm(&linux.vm, "gone", LONG).expect("given back");
    linux.use_up(320);
    let made_of = resolved_now(&linux.vm).expect("told").expect("ours");
    let mut spec = linux.vm.record().spec.clone().expect("ours");
    spec.ports[0].socket = stable.path().join("next.sock");
    let (dir, host_args) = (stable.home("next"), qemu.host_args());
    let launch = Launch {
        qemu: &qemu.path,
        host_args: &host_args,
        spec: &spec,
        resolved: &made_of,
        dir: &dir,
        role: Role::Incoming,
        ram: None,
    };
    let next = Qemu::launch(&launch).expect("QEMU starts");
    let port = UnixStream::connect(&spec.ports[0].socket).expect("it listens");
    port.set_read_timeout(Some(2 * LONG)).expect("set");
    let (out, into) = UnixStream::pair().expect("a pair");
    let mut incoming = Incoming::start(next.qmp(), IncomingFrom::Stream(into.into()), false).expect("waits");
    let mut outgoing = Outgoing::start(linux.vm.qmp(), out.into(), &OutgoingOptions::default()).expect("starts");
    assert!(outgoing.await_standing(LONG).expect("no failure"), "it never stood");
    outgoing.switch(LONG).expect("switched");
    assert!(incoming.await_running(LONG).expect("no failure"), "it never ran");
    linux.vm.kill().expect("killed");
    let mut linux = Linux { vm: next, port: BufReader::new(port), ..linux };
    assert_eq!(linux.ask("check", "checked")["wrong"], 0);
    linux.ask("drop", "memory");
    remove_dimm(&linux.vm, "first", LONG).expect("given back");
    assert_eq!((linux.more(), ids(&linux.vm)), (128, vec!["second".to_string()]));
}

/// The memory of a guest that stands, in memory of its own.
fn copied(tracker: &mut dyn DirtyTracker, made_of: &Resolved) -> GuestMemory {
    let copy = GuestMemory::create("copy", made_of).expect("memory");
    let (writer, mut dirty) = (copy.map_writable().expect("mapped"), PageSet::new());
    tracker.scan(&mut dirty).expect("scanned");
    assert_eq!(dirty.count(), copy.pages(), "the first scan tells of all");
    // Runs that cross the borders of its parts.
    let mut bytes = vec![0; 24 << 20];
    for start in (0..copy.pages().0).step_by(bytes.len() / 4096) {
        let count = (copy.pages().0 - start).min(bytes.len() as u64 / 4096);
        let bytes = &mut bytes[..count as usize * 4096];
        tracker.read(PageNumber(start), bytes).expect("read");
        writer.write_at(start * 4096, bytes).expect("within");
    }
    copy
}
