//! Real clients doing what people do with them.

use std::{fs, thread};

use crate::rig::{Rig, noise, run, text};

const MIB: usize = 1 << 20;

#[test]
fn nbdinfo_sees_the_export() {
    let rig = Rig::new(64 << 20);
    let list = run("nbdinfo", &["--list", "--json", &rig.uri()]);
    for fact in ["\"export-name\": \"disk\"", "\"description\": \"a test\"", "\"export-size\": 67108864"] {
        assert!(list.contains(fact), "{fact} in {list}");
    }
    for fact in ["gnomon:shadow", "base:allocation", "\"can_multi_conn\": true", "\"can_cache\": true"] {
        assert!(list.contains(fact), "{fact} in {list}");
    }
    // With one export the empty name means it.
    let size = run("nbdinfo", &["--size", &format!("nbd+unix:///?socket={}", rig.socket.display())]);
    assert_eq!(size.trim(), "67108864");
}

#[test]
fn the_map_tells_holes() {
    let rig = Rig::new(16 << 20);
    rig.python("h.pwrite(b'x' * 65536, 1 << 20); h.flush()");
    let map = run("nbdinfo", &["--map", &rig.uri()]);
    let lines: Vec<String> = map.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["0 1048576 3 hole,zero", "1048576 65536 0 data", "1114112 15663104 3 hole,zero"]);
}

#[test]
fn nbdcopy_carries_a_disk_there_and_back() {
    let rig = Rig::new(48 << 20);
    let (from, back) = (rig.dir.path().join("from"), rig.dir.path().join("back"));
    let mut content = noise(1, 48 * MIB);
    content[10 * MIB..30 * MIB].fill(0);
    fs::write(&from, &content).unwrap();
    run("nbdcopy", &["--connections=4", "--flush", text(&from), &rig.uri()]);
    assert!(fs::read(rig.file()).unwrap() == content, "written");
    run("nbdcopy", &["--connections=4", &rig.uri(), text(&back)]);
    assert!(fs::read(&back).unwrap() == content, "read");
}

#[test]
fn qemu_img_converts_compares_and_benches() {
    let rig = Rig::new(32 << 20);
    let (from, qcow2) = (rig.dir.path().join("from"), rig.dir.path().join("back.qcow2"));
    fs::write(&from, noise(2, 32 * MIB)).unwrap();
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&from), &rig.uri()]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&from), &rig.uri()]);
    run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &rig.uri(), text(&qcow2)]);
    run("qemu-img", &["compare", "-F", "raw", text(&qcow2), &rig.uri()]);
    for extra in [&["-s", "4096"][..], &["-w", "-s", "65536", "--flush-interval=32"]] {
        let mut args = vec!["bench", "-f", "raw", "-c", "2000", "-d", "32"];
        args.extend(extra);
        let uri = rig.uri();
        args.push(&uri);
        run("qemu-img", &args);
    }
}

#[test]
fn qemu_io_finds_its_patterns() {
    let rig = Rig::new(16 << 20);
    let steps = [
        "write -P 0x5a 0 1M",
        "write -f -P 0xa5 1M 3M",
        "read -P 0x5a 0 1M",
        "aio_write -P 0x11 8M 2M",
        "aio_flush",
        "read -P 0x11 8M 2M",
        "write -z 1M 1M",
        "read -P 0 1M 1M",
        "write -z -u 2M 64k",
        "read -P 0 2M 64k",
        "read -P 0xa5 2112k 1M",
        "discard 9M 1M",
        "read -P 0 9M 1M",
        "flush",
        "map",
    ];
    let mut args = vec!["-f", "raw"];
    steps.iter().for_each(|step| args.extend(["-c", step]));
    let uri = rig.uri();
    args.push(&uri);
    let said = run("qemu-io", &args);
    assert!(!said.contains("failed"), "{said}");
}

#[test]
fn fio_verifies_what_it_wrote() {
    let rig = Rig::new(32 << 20);
    let uri = format!("--uri={}", rig.uri());
    for (size, depth) in [("4k", "16"), ("1k-256k", "8")] {
        let (sizes, depth) = (format!("--bsrange={size}"), format!("--iodepth={depth}"));
        let block = if size == "4k" { "--bs=4k" } else { &sizes };
        let args =
            ["--name=v", "--ioengine=nbd", &uri, "--rw=randrw", block, &depth, "--size=32m", "--verify=crc32c"];
        run("fio", &[&args[..], &["--verify_fatal=1", "--fsync=100", "--randseed=7"]].concat());
    }
}

#[test]
fn many_clients_at_once_see_one_disk() {
    let rig = Rig::new(32 << 20);
    thread::scope(|scope| {
        for number in 0..24 {
            let rig = &rig;
            scope.spawn(move || {
                rig.python(&format!(
                    "import os\nat = {number} << 20\ndata = os.urandom(1 << 20)\n\
                     for n in range(0, 1 << 20, 16384): h.pwrite(data[n:n + 16384], at + n)\n\
                     assert h.pread(1 << 20, at) == data\nh.flush()\n\
                     g = nbd.NBD(); g.connect_uri(uri)\nassert g.pread(1 << 20, at) == data"
                ));
            });
        }
    });
}
