//! Coming and going: of clients, of exports, of the server.

use std::{io::Write, os::unix::net::UnixListener, sync::Arc, thread};

use gnomon_volume::{
    front::nbd::{NbdAddress, NbdLimits, NbdServer, wire::Command},
    serve::ServeError,
};

use crate::{
    raw::{ERR_UNKNOWN, GO, Raw, go, option, request},
    rig::{HeldDisk, NAME, Rig, export, noise, run_failing},
};

const HALF: u64 = 1 << 19;

fn held() -> (Rig, Arc<HeldDisk>) {
    let disk = HeldDisk::new(noise(6, 2 * HALF as usize));
    (Rig::over(tempfile::tempdir().unwrap(), disk.clone(), false, NbdLimits::default()), disk)
}

/// Waits until the server has noticed that all its clients are gone.
fn await_no_clients(rig: &Rig) {
    while rig.server.clients() > 0 {
        thread::yield_now();
    }
}

#[test]
fn removal_waits_for_requests_under_way_and_hangs_up() {
    let (rig, disk) = held();
    let (mut busy, mut idle) = (Raw::open(&rig), Raw::open(&rig));
    assert_eq!(rig.exports.clients(NAME), 2);
    busy.put(&request(Command::Read, 1, HALF, 512));
    disk.await_waiting(1);
    thread::scope(|scope| {
        let remover = scope.spawn(|| rig.exports.remove(NAME));
        assert!(idle.is_closed(), "hung up before the other's request is done");
        assert!(!remover.is_finished(), "a request still touches the disk");
        disk.let_go();
        remover.join().unwrap().expect("it was there");
    });
    await_no_clients(&rig);
    assert!(matches!(rig.exports.remove(NAME), Err(ServeError::Unknown { .. })));
    let complaint = run_failing("nbdinfo", &[&rig.uri()]);
    assert!(complaint.contains("No such file") || complaint.contains("not"), "{complaint}");
}

#[test]
fn an_export_comes_back_under_its_name() {
    let (rig, disk) = held();
    disk.let_go();
    rig.exports.remove(NAME).unwrap();
    rig.exports.add(export(NAME, disk.clone(), true)).unwrap();
    assert!(matches!(rig.exports.add(export(NAME, disk.clone(), true)), Err(ServeError::Taken { .. })));
    let long = "n".repeat(4097);
    assert!(matches!(rig.exports.add(export(&long, disk, true)), Err(ServeError::TooLong { .. })));
    rig.python("assert h.is_read_only()");
}

#[test]
fn the_empty_name_means_nothing_when_there_are_two() {
    let (rig, disk) = held();
    rig.exports.add(export("second", disk, false)).unwrap();
    let mut raw = Raw::new(&rig);
    raw.put(&option(GO, &go("")));
    assert_eq!(raw.reply().0, ERR_UNKNOWN);
    rig.python(
        "g = nbd.NBD(); g.set_opt_mode(True); g.connect_uri(uri)\nnames = []\n\
        g.opt_list(lambda name, description: names.append(name) and 0)\nassert names == ['disk', 'second'], names",
    );
}

#[test]
fn a_client_that_vanishes_in_the_middle_leaves_nothing_behind() {
    let rig = Rig::new(1 << 20);
    let write = [&request(Command::Write, 1, 0, 300_000)[..], &[9; 100_000]].concat();
    for cut in [1, 27, 28, 29, 50_000, write.len()] {
        let mut raw = Raw::open(&rig);
        raw.put(&write[..cut]);
    }
    for cut in [1, 15, 16, 20] {
        let mut raw = Raw::new(&rig);
        raw.put(&option(GO, &go(NAME))[..cut]);
    }
    drop(rig.connect());
    await_no_clients(&rig);
    assert_eq!(rig.exports.clients(NAME), 0);
    rig.python("h.pwrite(b'fine', 0)");
}

/// Asks for more than any socket holds and reads none of it.
fn stuffed(rig: &Rig) -> Raw {
    let mut raw = Raw::open(rig);
    raw.0.set_nonblocking(true).unwrap();
    let read = request(Command::Read, 1, 0, 256 << 10);
    // Ends when the server has stopped receiving because it cannot send.
    while raw.0.write(&read).is_ok_and(|sent| sent == read.len()) {}
    raw
}

#[test]
fn a_client_that_never_reads_hurts_nobody() {
    let (rig, disk) = held();
    disk.let_go();
    let _stuffed = (stuffed(&rig), stuffed(&rig));
    rig.python("assert len(h.pread(1 << 20, 0)) == 1 << 20; h.pwrite(b'fine', 0); h.flush()");
    rig.exports.remove(NAME).unwrap();
    await_no_clients(&rig);
}

#[test]
fn stopping_ends_idle_stuffed_and_haggling_clients() {
    let (rig, _disk) = held();
    let _clients = (Raw::open(&rig), stuffed(&rig), Raw::new(&rig), rig.connect());
    rig.server.stop();
    assert!(!rig.socket.exists(), "the socket file is tidied up");
    assert_eq!(rig.exports.clients(NAME), 0);
}

#[test]
fn what_was_received_before_the_stop_is_answered() {
    let (rig, disk) = held();
    let mut raw = Raw::open(&rig);
    raw.put(&request(Command::Read, 42, HALF, 512));
    disk.await_waiting(1);
    disk.let_go();
    rig.server.stop();
    assert_eq!(raw.simple_reply(), (0, 42));
}

#[test]
fn too_many_clients_are_turned_away() {
    let disk = HeldDisk::new(vec![0; 4096]);
    let rig = Rig::over(tempfile::tempdir().unwrap(), disk, false, NbdLimits { clients: 2 });
    let two = (Raw::open(&rig), Raw::new(&rig));
    assert!(Raw(rig.connect()).is_closed());
    drop(two);
    await_no_clients(&rig);
    Raw::open(&rig);
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let (rig, _disk) = held();
    let again = NbdServer::bind(NbdAddress::Unix(rig.socket.clone()), rig.exports.clone());
    assert_eq!(again.err().expect("someone listens").kind(), std::io::ErrorKind::AddrInUse);
    let stale = rig.dir.path().join("stale.sock");
    drop(UnixListener::bind(&stale).unwrap());
    let server = NbdServer::bind(NbdAddress::Unix(stale.clone()), rig.exports.clone()).expect("nobody listens");
    server.stop();
    assert!(!stale.exists());
}

#[test]
fn fua_and_flush_reach_the_disk() {
    let (rig, disk) = held();
    disk.let_go();
    rig.python("h.pwrite(b'x', 0)");
    let before = disk.flushes();
    rig.python("f = nbd.CMD_FLAG_FUA\nh.pwrite(b'x', 0, f); h.trim(1, 0, f); h.zero(1, 0, f); h.flush()");
    assert_eq!(disk.flushes() - before, 4);
}
