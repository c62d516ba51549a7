//! Disks over TCP: TLS with the certificates that `gnomon node init` makes, asked of both sides.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use crate::house::{House, gnomon, tool};

/// A port that no other test asks for: below the system's own, by process.
fn port() -> u32 {
    20_000 + std::process::id() % 10_000
}

/// Certificates for a node called `localhost`, which is what the client dials; also under the names that libnbd
/// expects in a folder.
fn certificates(at: &Path, authority: &str) -> String {
    let folder = at.join(format!("localhost-{authority}"));
    let (dir, ca) = (folder.display().to_string(), at.join(authority).display().to_string());
    let made = gnomon(&["node", "init", "--dir", &dir, "--name", "localhost", "--ca-dir", &ca]);
    assert_eq!(made.code, 0, "{}", made.err);
    for (ours, theirs) in [("ca.pem", "ca-cert.pem"), ("node.pem", "client-cert.pem"), ("node.key", "client-key.pem")]
    {
        symlink(folder.join(ours), folder.join(theirs)).expect("linked");
    }
    dir
}

#[test]
fn volumes_are_read_and_written_over_tls_by_whoever_has_a_certificate() {
    let place = tempfile::tempdir().expect("a folder");
    let (good, bad) = (certificates(place.path(), "ca"), certificates(place.path(), "other"));
    let tcp = format!("[volume]\nnbd_tcp = '127.0.0.1:{}'\nnbd_pki = '{good}'\n", port());
    let mut house = House::unlit("localhost", &tcp);
    house.start();
    let content: Vec<u8> = (0..3u32 << 20).map(|at| (at / 4096 % 251) as u8).collect();
    fs::write(house.path("image.raw"), &content).expect("written");
    house.ask(&["volume", "create", "data", "--size", "3M"]);
    let uri = |folder: &str| format!("nbds://localhost:{}/data?tls-certificates={folder}", port());
    tool("nbdcopy", &[&house.text("image.raw"), &uri(&good)]);
    assert!(tool("nbdcopy", &[&uri(&good), "-"]) == content, "what was written is read");
    let info = String::from_utf8(tool("nbdinfo", &[&uri(&good)])).expect("text");
    assert!(info.contains("with TLS") && info.contains("export-size: 3145728"), "{info}");
    let plain = format!("nbd://localhost:{}/data", port());
    for stranger in [uri(&bad), plain] {
        let ran = Command::new("nbdinfo").arg(&stranger).output().expect("nbdinfo runs");
        assert!(!ran.status.success(), "{stranger}: {}", String::from_utf8_lossy(&ran.stdout));
    }
}
