//! A node in a temporary folder: its daemon, and the commands that ask it. Or two of them, linked.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Longer than anything here takes on a loaded machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A node. Its daemon is killed when it is dropped, and so are QEMUs that a test which failed has left.
pub struct House {
    dir: TempDir,
    /// The network name space that its daemon and commands run in.
    netns: Option<String>,
    daemon: Option<Child>,
    log: Arc<Mutex<String>>,
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
    Ran::of(program(None).args(args).output().expect("the program runs"))
}

/// Runs another program and insists that it succeeds.
pub fn tool(name: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new(name).args(args).output().unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(output.status.success(), "{name} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn program(netns: Option<&str>) -> Command {
    let program = env!("CARGO_BIN_EXE_gnomon");
    let mut command = Command::new(if netns.is_some() { "ip" } else { program });
    // It becomes the program: the process is the same.
    command.args(netns.iter().flat_map(|netns| ["netns", "exec", netns, program]));
    let ours = ["GNOMON_SOCKET", "GNOMON_CONFIG", "GNOMON_LOG"];
    ours.iter().for_each(|name| _ = command.env_remove(name));
    command.stdin(Stdio::null());
    command
}

impl House {
    /// A node with its daemon running.
    pub fn new() -> House {
        let mut house = House::unlit("a", "");
        house.start();
        house
    }

    /// A node that is configured and does not run yet. `more` is appended to its configuration.
    pub fn unlit(name: &str, more: &str) -> House {
        let house =
            House { dir: tempfile::tempdir().expect("a folder"), netns: None, daemon: None, log: Arc::default() };
        let text = format!(
            "[node]\nname = '{name}'\nrun_dir = '{0}/run'\nstate_dir = '{0}/state'\n{more}",
            house.dir.path().display()
        );
        fs::write(house.config(), text).expect("a configuration");
        house
    }

    /// Its daemon and commands run in this network name space from now on.
    pub fn live_in(&mut self, netns: &str) {
        self.netns = Some(netns.to_string());
    }

    /// Sends a signal to its daemon.
    pub fn signal(&self, signal: &str) {
        let daemon = self.daemon.as_ref().expect("a running daemon").id();
        tool("kill", &[signal, &daemon.to_string()]);
    }

    /// Adds to its configuration; it is read when the daemon starts.
    pub fn configure(&self, more: &str) {
        let text = fs::read_to_string(self.config()).expect("a configuration") + more;
        fs::write(self.config(), text).expect("a configuration");
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

    /// What its daemons have said so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("a log").clone()
    }

    /// Starts the daemon; returns when it listens.
    pub fn start(&mut self) {
        let mut daemon = self.command(&["serve"]).stderr(Stdio::piped()).spawn().expect("a daemon");
        let mut lines = BufReader::new(daemon.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let keep = Arc::clone(&self.log);
        let note = move |line: &str| writeln!(keep.lock().expect("a log"), "{line}").expect("to memory");
        loop {
            let line =
                lines.next().unwrap_or_else(|| panic!("the daemon ended: {}", self.log.lock().expect("a log")));
            note(&line);
            if line.contains("link ") {
                break;
            }
        }
        // It must always be able to log on.
        thread::spawn(move || lines.for_each(|line| note(&line)));
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

    /// A command in this node's folder that asks this node, or is it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = program(self.netns.as_deref());
        command.env("GNOMON_SOCKET", self.path("run/gnomon.sock")).env("GNOMON_CONFIG", self.config());
        command.current_dir(self.dir.path()).args(args);
        command
    }

    /// How many threads the daemon has.
    pub fn threads(&self) -> usize {
        let daemon = self.daemon.as_ref().expect("a running daemon").id();
        fs::read_dir(format!("/proc/{daemon}/task")).expect("a process").count()
    }

    /// Opens an answer that goes on until it is dropped; returns when it has begun.
    pub fn listen(&self, path: &str) -> UnixStream {
        let mut socket = UnixStream::connect(self.path("run/gnomon.sock")).expect("the API listens");
        socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: gnomon\r\n\r\n").as_bytes()).expect("sent");
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).expect("an answer");
            head.extend_from_slice(&byte);
        }
        assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        socket
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

    /// What the API says at `path`; null while no daemon answers.
    pub fn look(&self, path: &str) -> Value {
        let Ok(mut socket) = UnixStream::connect(self.path("run/gnomon.sock")) else { return Value::Null };
        let ask = format!("GET {path} HTTP/1.1\r\nHost: gnomon\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        let said = socket.write_all(ask.as_bytes()).and_then(|()| socket.read_to_string(&mut answer));
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
        said.ok().and_then(|_| serde_json::from_str(body).ok()).unwrap_or_default()
    }

    /// What this node is for a volume; empty when it has none of that name, or does not answer.
    pub fn role(&self, volume: &str) -> String {
        self.look(&format!("/v1/volumes/{volume}"))["role"].as_str().unwrap_or_default().to_string()
    }

    /// The job that moves a volume away from here; null when there is none, or nobody answers.
    pub fn job_of(&self, volume: &str) -> Value {
        match self.look(&format!("/v1/volumes/{volume}"))["job"].as_str() {
            Some(id) => self.look(&format!("/v1/jobs/{id}")),
            None => Value::Null,
        }
    }

    /// Looks at the job of a volume until `enough` says so, and returns what it saw then.
    pub fn await_job(&self, volume: &str, enough: impl Fn(&Value) -> bool) -> Value {
        let job = || Some(self.job_of(volume)).filter(&enough);
        await_some(&format!("the job of {volume}"), || format!("{}", self.job_of(volume)), job)
    }

    /// Waits until the job of a volume is over.
    pub fn await_end(&self, volume: &str) -> Value {
        self.await_job(volume, |job| job["state"].is_string() && job["state"] != "running")
    }

    /// Where NBD clients find a volume.
    pub fn nbd(&self, volume: &str) -> String {
        self.run(&["volume", "export", volume]).out.trim().to_string()
    }
}

impl House {
    /// The folders of VMs, and of second QEMUs below them.
    fn vm_folders(&self) -> Vec<PathBuf> {
        let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let vms: Vec<PathBuf> = below(&self.path("run/vm")).collect();
        let second: Vec<PathBuf> = vms.iter().flat_map(|vm| below(vm).collect::<Vec<_>>()).collect();
        vms.into_iter().chain(second).collect()
    }

    /// The QEMUs of this node that run, as their records tell.
    pub fn qemus(&self) -> Vec<u64> {
        let records = self.vm_folders().into_iter().filter_map(|folder| fs::read(folder.join("qemu.json")).ok());
        let pids = records.filter_map(|record| serde_json::from_slice::<Value>(&record).ok()?["pid"].as_u64());
        pids.filter(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())).collect()
    }

    /// The processes that keep the node's staged memory.
    pub fn holders(&self) -> Vec<String> {
        let socket = self.text("run/memory.sock");
        let processes = fs::read_dir("/proc").expect("processes").flatten();
        let is_it = |pid: &String| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("hold-memory") && line.contains(&socket)
        };
        processes.filter_map(|process| process.file_name().into_string().ok()).filter(is_it).collect()
    }

    /// Ends what keeps the node's staged memory: it outlives a daemon.
    fn end_holder(&self) {
        for pid in self.holders() {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
    }

    /// Ends the QEMUs that are on record in the node's folder: they outlive a daemon, and must not outlive a test.
    fn end_qemus(&self) {
        for folder in self.vm_folders() {
            let record = fs::read(folder.join("qemu.json")).unwrap_or_default();
            let pid = serde_json::from_slice::<Value>(&record).ok().and_then(|record| record["pid"].as_u64());
            let is_ours = |pid: &u64| {
                let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                String::from_utf8_lossy(&line).contains(&self.dir.path().display().to_string())
            };
            if let Some(pid) = pid.filter(is_ours) {
                // It may end by itself at this very moment: then there is nothing to do.
                let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
            }
        }
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.crash();
        self.end_qemus();
        self.end_holder();
        if thread::panicking() {
            eprintln!("the daemon in {} said:\n{}", self.dir.path().display(), self.log.lock().expect("a log"));
        }
    }
}

/// Two nodes that know each other.
pub struct Pair {
    /// Where moves begin.
    pub a: House,
    /// Where they go.
    pub b: House,
    pki: TempDir,
}

impl Pair {
    /// Two linked nodes, `a` and `b`, with their daemons running.
    pub fn new() -> Pair {
        Pair::with("", true)
    }

    /// The same; `more` is added to the configuration of `b`, and without `kin` its certificate is of another
    /// authority than that of `a`.
    pub fn with(more: &str, kin: bool) -> Pair {
        let mut pair = Pair::unlit(["a", "b"], more, kin);
        pair.a.start();
        pair.b.start();
        pair
    }

    /// The same with other names, and without their daemons running.
    pub fn unlit(names: [&str; 2], more: &str, kin: bool) -> Pair {
        let pki = tempfile::tempdir().expect("a folder");
        let at = |name: &str| pki.path().join(name).display().to_string();
        let (here, there) = (address(), address());
        for (node, authority) in names.into_iter().zip(["ca", if kin { "ca" } else { "other-ca" }]) {
            let made = gnomon(&["node", "init", "--dir", &at(node), "--name", node, "--ca-dir", &at(authority)]);
            assert_eq!(made.code, 0, "{}", made.err);
        }
        let link = |node: &str, listen: &str, peer: &str, address: &str| {
            format!(
                "[link]\nlisten = '{listen}'\npki = '{}'\n[[peer]]\nname = '{peer}'\naddress = '{address}'\n",
                at(node)
            )
        };
        let [first, second] = names;
        let a = House::unlit(first, &link(first, &here, second, &there));
        let b = House::unlit(second, &(link(second, &there, first, &here) + more));
        Pair { a, b, pki }
    }

    /// Two of those that are linked.
    pub fn of(a: House, b: House, pki: TempDir) -> Pair {
        Pair { a, b, pki }
    }

    /// A path beside both nodes.
    pub fn path(&self, name: &str) -> PathBuf {
        self.pki.path().join(name)
    }
}

/// Nodes of one authority, each of which knows all others, without their daemons running; and what they share.
pub fn linked<const COUNT: usize>(names: [&str; COUNT]) -> ([House; COUNT], TempDir) {
    let pki = tempfile::tempdir().expect("a folder");
    let at = |name: &str| pki.path().join(name).display().to_string();
    let addresses = names.map(|name| (name, address()));
    let houses = addresses.each_ref().map(|(name, listen)| {
        let made = gnomon(&["node", "init", "--dir", &at(name), "--name", name, "--ca-dir", &at("ca")]);
        assert_eq!(made.code, 0, "{}", made.err);
        let mut link = format!("[link]\nlisten = '{listen}'\npki = '{}'\n", at(name));
        for (peer, address) in addresses.iter().filter(|(peer, _)| peer != name) {
            writeln!(link, "[[peer]]\nname = '{peer}'\naddress = '{address}'").expect("to memory");
        }
        House::unlit(name, &link)
    });
    (houses, pki)
}

/// An address that no other test uses: each pair of a process has its own in 127.0.0.0/8, by process and number.
/// Asking the system for a free port would leave a moment in which another test gets the same.
fn address() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let (process, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    format!("127.{}.{}.{}:7070", 1 + process % 250, process / 250 % 250, number % 250)
}

/// Asks until there is an answer. For what no event is told of from outside; `state` is shown when it never comes.
pub fn await_some<T>(what: &str, state: impl Fn() -> String, mut ask: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "{what} did not come: {}", state());
        thread::sleep(Duration::from_millis(2));
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
