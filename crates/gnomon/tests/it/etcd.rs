//! An etcd of one member, which dies with the test.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

pub struct Etcd {
    process: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Etcd {
    /// Starts it; whoever uses it waits until it answers.
    pub fn start() -> Etcd {
        let free = || TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port").port();
        let (port, peer) = (free(), free());
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        // In memory where that can be: it syncs every write, and a disk that other tests keep busy would be measured.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--logger", "zap", "--data-dir"])
            .arg(dir.path())
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd runs: `cargo xtask setup` installs it");
        Etcd { process, port, _dir: dir }
    }

    /// Where clients find it, on this host.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
