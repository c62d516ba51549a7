//! Moving a guest that counts between two QEMUs, its bytes carried by us.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    thread::{self, JoinHandle},
    time::Duration,
};

use gnomon_qemu::{
    GuestRam, Incoming, IncomingFrom, MigrateError, MigrationStatus, Outgoing, OutgoingOptions, Qemu, Role, RunState,
    Stage,
};
use gnomon_terms::{Bytes, BytesPerSecond};

use crate::guests::{Console, LONG, Stable, ticks};

/// Carries the source's bytes to the destination and counts them.
struct Relay {
    source_end: OwnedFd,
    destination_end: OwnedFd,
    carried: JoinHandle<u64>,
}

fn relay() -> Relay {
    let (source_end, mut from) = UnixStream::pair().expect("a pair");
    let (mut to, destination_end) = UnixStream::pair().expect("a pair");
    let carried = thread::spawn(move || {
        let carried = std::io::copy(&mut from, &mut to).unwrap_or(0);
        let _ = to.shutdown(Shutdown::Write);
        carried
    });
    Relay { source_end: source_end.into(), destination_end: destination_end.into(), carried }
}

fn pair(stable: &Stable) -> (Qemu, Qemu) {
    let spec = stable.ticker();
    let source = stable.launch("source", &spec, Role::Boot);
    Console::open(&stable.home("source")).tick();
    (source, stable.launch("destination", &spec, Role::Incoming))
}

#[test]
fn a_guest_moves_without_losing_a_tick() {
    let stable = Stable::new();
    let (source, destination) = pair(&stable);
    let relay = relay();
    let from = IncomingFrom::Stream(relay.destination_end);
    let mut incoming = Incoming::start(destination.qmp(), from, false).expect("waits");
    let mut outgoing = Outgoing::start(source.qmp(), relay.source_end, &OutgoingOptions::default()).expect("starts");

    assert!(outgoing.await_standing(LONG).expect("no failure"), "it never stood");
    assert_eq!(outgoing.stage(), Stage::Standing);
    assert!(!source.qmp().query_status().expect("answers").running);
    assert!(!incoming.await_loaded(Duration::ZERO).expect("no failure"), "loaded before the switch");
    let switched = outgoing.switch(LONG).expect("switched");
    assert!(incoming.await_running(LONG).expect("no failure"), "it never ran");

    assert!(switched.sent > Bytes(0) && switched.passes > 0, "{switched:?}");
    // QEMU finalizes the migration a moment after it has said that it is complete.
    let state = source.qmp().query_status().expect("answers").state;
    assert!(matches!(state, RunState::FinishMigrate | RunState::Postmigrate), "{state:?}");
    let mut console = Console::open(&stable.home("destination"));
    let (one, two) = (console.tick(), console.tick());
    assert_eq!(two, one + 1);
    source.kill().expect("killed");
    assert!(relay.carried.join().expect("carried") > 0);
    let (before, after) = (ticks(&stable.console("source")), ticks(&stable.console("destination")));
    // The line that was being printed at the switch is half in either log: at most one tick is in neither. (Later
    // ticks may be missing from a log: a serial port drops what its client is too slow to read.)
    let (last, first) = (before[before.len() - 1], after[0]);
    assert!((last + 1..=last + 2).contains(&first), "source ended at {last}, destination began at {first}");
}

/// A stream nobody reads: the migration has begun and cannot end.
fn stuck(source: &Qemu) -> (Outgoing, UnixStream) {
    let (theirs, ours) = UnixStream::pair().expect("a pair");
    let options = OutgoingOptions { bandwidth: Some(BytesPerSecond(1 << 16)), ..OutgoingOptions::default() };
    let outgoing = Outgoing::start(source.qmp(), theirs.into(), &options).expect("starts");
    let mut first = [0u8; 4];
    (&ours).read_exact(&mut first).expect("it has begun");
    assert_eq!(&first, b"QEVM");
    (outgoing, ours)
}

#[test]
fn a_cancel_midway_leaves_the_guest_running() {
    let stable = Stable::new();
    let source = stable.launch("source", &stable.ticker(), Role::Boot);
    Console::open(&stable.home("source")).tick();
    let (mut outgoing, _unread) = stuck(&source);
    assert!(!outgoing.await_standing(Duration::ZERO).expect("no failure"));
    let status = outgoing.progress().expect("told").status;
    assert!(matches!(status, MigrationStatus::Setup | MigrationStatus::Active), "{status:?}");
    outgoing.cancel(LONG).expect("cancelled");
    assert!(source.qmp().query_status().expect("answers").running);
    let mut console = Console::open(&stable.home("source"));
    let tick = console.tick();
    assert_eq!(console.tick(), tick + 1);
}

#[test]
fn another_thread_can_cancel_and_the_waiter_is_told() {
    let stable = Stable::new();
    let source = stable.launch("source", &stable.ticker(), Role::Boot);
    let (mut outgoing, _unread) = stuck(&source);
    let canceller = outgoing.canceller();
    let waiter = thread::spawn(move || outgoing.await_standing(LONG));
    canceller.cancel().expect("asked");
    assert!(matches!(waiter.join().expect("waited"), Err(MigrateError::Cancelled)));
}

#[test]
fn a_standing_guest_runs_again_after_a_cancel_and_after_a_drop() {
    let stable = Stable::new();
    let (source, _destination) = pair(&stable);
    for dropped in [false, true] {
        let (theirs, mut ours) = UnixStream::pair().expect("a pair");
        let reader = thread::spawn(move || std::io::copy(&mut ours, &mut std::io::sink()));
        let mut outgoing = Outgoing::start(source.qmp(), theirs.into(), &OutgoingOptions::default()).expect("starts");
        assert!(outgoing.await_standing(LONG).expect("no failure"));
        let events = source.qmp().events();
        match dropped {
            false => outgoing.cancel(LONG).expect("cancelled"),
            true => drop(outgoing),
        }
        events.wait_for(LONG, |e| (e.name == "RESUME").then_some(())).expect("it runs");
        assert!(source.qmp().query_status().expect("answers").running);
        let _ = reader.join().expect("read");
    }
}

#[test]
fn a_guest_can_be_reclaimed_from_a_destination_that_died() {
    let stable = Stable::new();
    let (source, destination) = pair(&stable);
    let relay = relay();
    let from = IncomingFrom::Stream(relay.destination_end);
    let mut incoming = Incoming::start(destination.qmp(), from, false).expect("waits");
    let mut outgoing = Outgoing::start(source.qmp(), relay.source_end, &OutgoingOptions::default()).expect("starts");
    assert!(outgoing.await_standing(LONG).expect("no failure"));
    destination.kill().expect("killed");
    assert!(matches!(incoming.await_loaded(LONG), Err(MigrateError::Ended { .. })));
    // Whether the source notices depends on how much the relay's sockets hold; either way it can be reclaimed.
    let _ = outgoing.switch(LONG);
    outgoing.reclaim(LONG).expect("it runs again");
    let mut console = Console::open(&stable.home("source"));
    let tick = console.tick();
    assert_eq!(console.tick(), tick + 1);
}

#[test]
fn a_bad_stream_is_told() {
    let stable = Stable::new();
    let destination = stable.launch("destination", &stable.ticker(), Role::Incoming);
    let (theirs, mut ours) = UnixStream::pair().expect("a pair");
    let mut incoming = Incoming::start(destination.qmp(), IncomingFrom::Stream(theirs.into()), false).expect("waits");
    ours.write_all(b"this is no guest at all").expect("sent");
    let error = incoming.await_loaded(LONG).expect_err("no guest");
    assert!(matches!(error, MigrateError::Ended { .. } | MigrateError::Failed { .. }), "{error}");
}

#[test]
fn only_devices_are_sent_when_both_map_the_same_ram() {
    let stable = Stable::new();
    let spec = stable.ticker();
    let resolved = crate::guests::settled(&spec);
    let ram = GuestRam::create("ticker", Bytes(resolved.memory)).expect("made");
    let launch = |name: &str, role| {
        let qemu = &crate::guests::qemu().path;
        let dir = stable.home(name);
        let ram = Some(ram.shared());
        Qemu::launch(&gnomon_qemu::Launch {
            qemu,
            host_args: &[],
            spec: &spec,
            resolved: &resolved,
            dir: &dir,
            role,
            ram,
        })
        .expect("started")
    };
    let source = launch("source", Role::Boot);
    Console::open(&stable.home("source")).tick();
    let destination = launch("destination", Role::Incoming);
    let relay = relay();
    let from = IncomingFrom::Stream(relay.destination_end);
    let mut incoming = Incoming::start(destination.qmp(), from, true).expect("waits");
    let options = OutgoingOptions { ignore_shared: true, ..OutgoingOptions::default() };
    let mut outgoing = Outgoing::start(source.qmp(), relay.source_end, &options).expect("starts");
    assert!(outgoing.await_standing(LONG).expect("no failure"));
    outgoing.switch(LONG).expect("switched");
    assert!(incoming.await_running(LONG).expect("no failure"));
    let mut console = Console::open(&stable.home("destination"));
    let tick = console.tick();
    assert_eq!(console.tick(), tick + 1);
    let carried = relay.carried.join().expect("carried");
    assert!(carried < resolved.memory / 8, "{carried} bytes were carried");
}
