//! Volumes: made, imported, served to clients of other projects, and found again.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt},
    process::Stdio,
};

use serde_json::Value;

use crate::house::{House, tool};

fn nbdinfo(uri: &str) -> Value {
    serde_json::from_slice(&tool("nbdinfo", &["--json", uri])).expect("JSON")
}

#[test]
fn a_volume_outlives_the_daemon() {
    let mut house = House::new();
    let made = house.ask(&["volume", "create", "data", "--size", "64M"]);
    assert_eq!((&made["size"], &made["role"]), (&Value::from(64 << 20), &Value::from("primary")));
    let uri = house.nbd("data");
    assert_eq!(nbdinfo(&uri)["exports"][0]["export-size"], 64 << 20);
    tool("qemu-io", &["-f", "raw", "-c", "write -P 0x5a 1M 64k", "-c", "flush", &uri]);
    house.stop();
    assert_eq!(house.run(&["volume", "ls"]).code, 1);
    house.start();
    tool("qemu-io", &["-f", "raw", "-c", "read -P 0x5a 1M 64k", "-c", "read -P 0 2M 64k", &uri]);
    house.crash();
    house.start();
    tool("qemu-io", &["-f", "raw", "-c", "read -P 0x5a 1M 64k", &uri]);
    let shown = house.ask(&["volume", "show", "data"]);
    assert_eq!(shown["created"], made["created"]);
    let file = fs::metadata(shown["path"].as_str().expect("a path")).expect("the file");
    assert!(file.blocks() * 512 < 8 << 20, "the volume is thin: {} blocks", file.blocks());
}

#[test]
fn the_api_is_for_its_owner_only() {
    let house = House::new();
    let mode = fs::metadata(house.path("run/gnomon.sock")).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_cannot_be_is_refused_in_time() {
    let house = House::new();
    assert_eq!(house.run(&["volume", "create", "data", "--size", "8M"]).code, 0);
    assert_eq!(house.run(&["volume", "create", "data", "--size", "8M"]).code, 3, "the name is taken");
    assert_eq!(house.run(&["volume", "create", "zero", "--size", "0"]).code, 2);
    assert_eq!(house.run(&["volume", "show", "none"]).code, 1);
    assert_eq!(house.run(&["volume", "rm", "data"]).code, 3, "its data would be lost without a word");
    assert_eq!(house.run(&["volume", "import", "new", "--file", &house.text("none.img")]).code, 1);
    let path = house.ask(&["volume", "show", "data"])["path"].as_str().expect("a path").to_string();
    assert_eq!(house.run(&["volume", "rm", "data", "--yes"]).code, 0);
    assert!(!fs::exists(path).expect("looked"));
    assert_eq!(house.run(&["volume", "show", "data"]).code, 1);
}

#[test]
fn an_image_is_imported_as_it_is() {
    let house = House::new();
    let (raw, image) = (house.text("image.raw"), house.text("image.qcow2"));
    let content: Vec<u8> = (0..3u32 << 20).map(|at| (at / 4096 % 251) as u8).collect();
    fs::write(&raw, &content).expect("written");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", &raw, &image]);
    let job = house.ask(&["volume", "import", "root", "--file", &image]);
    assert_eq!((&job["state"], &job["result"]["name"]), (&Value::from("done"), &Value::from("root")));
    assert!(tool("nbdcopy", &[&house.nbd("root"), "-"]) == content, "the copy differs");
    let lines = house.run(&["volume", "import", "again", "--file", &image]);
    assert!(lines.code == 0 && lines.out.contains("again"), "{}{}", lines.out, lines.err);
}

#[test]
fn what_a_guest_does_is_counted() {
    let house = House::new();
    house.ask(&["volume", "create", "data", "--size", "16M"]);
    tool("qemu-io", &["-f", "raw", "-c", "write 0 64k", "-c", "read 0 4k", &house.nbd("data")]);
    // The loop reads its tap in batches, and before it answers.
    house.http("/v1/volumes/data/forecast");
    let page = house.http("/metrics");
    for name in ["gnomon_volume_reads_total", "gnomon_volume_written_bytes_total", "gnomon_volume_epoch"] {
        assert!(page.contains(name), "{name} is not in {page}");
    }
    assert!(page.contains("gnomon_volume_written_bytes_total{volume=\"data\"} 65536"), "{page}");
    assert!(page.trim_end().ends_with("# EOF"), "{page}");
}

#[test]
fn one_file_is_served_without_a_daemon() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    fs::write(path("disk.img"), vec![7u8; 1 << 20]).expect("written");
    let args = ["volume", "serve-file", "--file", &path("disk.img"), "--socket", &path("d.sock"), "--read-only"];
    let mut server = std::process::Command::new(env!("CARGO_BIN_EXE_gnomon"))
        .args(args)
        .env("GNOMON_SOCKET", path("other.sock"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a server");
    let mut said = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut said).expect("it says where it listens");
    let uri = said.trim();
    assert!(uri.contains(&path("d.sock")), "{uri}");
    let info = nbdinfo(uri);
    assert_eq!(
        (&info["exports"][0]["export-size"], &info["exports"][0]["is_read_only"]),
        (&Value::from(1 << 20), &Value::from(true))
    );
    assert!(tool("nbdcopy", &[uri, "-"]) == vec![7u8; 1 << 20]);
    tool("kill", &["-TERM", &server.id().to_string()]);
    assert!(server.wait().expect("ended").success());
}
