//! A node in a temporary folder: its daemon, and the commands that ask it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a loaded machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A node. Its daemon is killed when it is dropped; its VMs are stopped by the tests that start them.
pub struct House {
    dir: TempDir,
    daemon: Option<Child>,
}

/// How a command ended.
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub out: String,
    /// What it complained about.
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Ran {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its output as JSON, when it did what it should.
    pub fn json(self) -> Value {
        assert_eq!(self.code, 0, "{}", self.err);
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

/// Runs the program by itself.
pub fn gnomon(args: &[&str]) -> Ran {
    Ran::of(program().args(args).output().expect("the program runs"))
}

/// Runs another program and insists that it succeeds.
pub fn tool(name: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(name).args(args).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gnomon"));
    command.env_remove("GNOMON_SOCKET").env_remove("GNOMON_LOG").stdin(Stdio::null());
    command
}

impl House {
    /// A node with its daemon running.
    pub fn new() -> House {
        let mut house = House { dir: tempfile::tempdir().expect("a folder"), daemon: None };
        let text =
            format!("[node]\nname = 'a'\nrun_dir = '{0}/run'\nstate_dir = '{0}/state'\n", house.dir.path().display());
        fs::write(house.config(), text).expect("a configuration");
        house.start();
        house
    }

    /// A path below the node's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.path("gnomon.toml")
    }

    /// Starts the daemon; returns when it listens.
    pub fn start(&mut self) {
        let mut serve = program();
        let mut daemon =
            serve.arg("serve").arg("--config").arg(self.config()).stderr(Stdio::piped()).spawn().expect("a daemon");
        let mut log = BufReader::new(daemon.stderr.take().expect("piped"));
        let (mut said, mut line) = (String::new(), String::new());
        while !line.contains("link ") {
            line.clear();
            assert!(log.read_line(&mut line).expect("its log") > 0, "the daemon ended: {said}");
            said.push_str(&line);
        }
        // It must always be able to log on.
        thread::spawn(move || log.read_to_end(&mut Vec::new()));
        self.daemon = Some(daemon);
    }

    /// Kills the daemon as a crash would.
    pub fn crash(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().expect("killed");
            daemon.wait().expect("gone");
        }
    }

    /// Asks the daemon to end, and waits until it has.
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("a running daemon");
        tool("kill", &["-TERM", &daemon.id().to_string()]);
        assert!(daemon.wait().expect("gone").success());
    }

    /// Runs a command that asks this node.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().expect("the program runs"))
    }

    /// Runs a command with `--json` and insists that it succeeds.
    pub fn ask(&self, args: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(args);
        self.run(&all).json()
    }

    /// A command that asks this node.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program();
        command.env("GNOMON_SOCKET", self.path("run/gnomon.sock")).args(args);
        command
    }

    /// What the daemon answers to a plain HTTP request.
    pub fn http(&self, path: &str) -> String {
        let mut socket = UnixStream::connect(self.path("run/gnomon.sock")).expect("the API listens");
        let ask = format!("GET {path} HTTP/1.1\r\nHost: gnomon\r\nConnection: close\r\n\r\n");
        socket.write_all(ask.as_bytes()).expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).expect("answered");
        answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).expect("a body")
    }

    /// Where NBD clients find a volume.
    pub fn nbd(&self, volume: &str) -> String {
        self.run(&["volume", "export", volume]).out.trim().to_string()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.crash();
    }
}

/// Reads from a socket until `enough` says so; a silent socket is a failure.
pub fn read_until(socket: &Path, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("the socket listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let (mut seen, mut bytes) = (Vec::new(), [0; 512]);
    while !enough(&seen) {
        let len = stream.read(&mut bytes).expect("it says something");
        assert!(len > 0, "it hung up after {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&bytes[..len]);
    }
    seen
}
