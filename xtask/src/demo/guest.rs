//! The demo's guest as the host sees it: its disk, its heartbeat, its reports, and its move.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    beats::{self, Chunk, Fall, Pulse},
    failover,
    nodes::{Node, Nodes},
    update::{self, Lanes},
};
use crate::{guest_image::GuestImage, sh};

const VM: &str = "demo";
const VOLUME: &str = "disk";
const HEARTBEAT: &str = "gnomon.heartbeat";
const REPORT: &str = "gnomon.report";

/// 256 MiB and 8 KiB: QEMU 7.2 under TCG loses dirty pages in a migration of its own when RAM is a multiple of
/// 256 KiB (fixed upstream in 9.0). gnomon does not use that path; a comparison with it may.
const MEMORY: &str = "262152KiB";

/// Between boot and move: the guest works, and the forecast sees how.
const WARM_UP: Duration = Duration::from_secs(10);

/// A busy guest: it reads 1,000 times a second by popularity and in bursts, which TCG on one core sustains beside the
/// daemons, and rewrites 50 records.
const WORKLOAD: &str = "gn.read_iops=1000 gn.write_iops=50";

/// How long the guest may take to boot under TCG on a busy machine, and to answer a command.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Looks at sockets that QEMU has not made yet.
pub const RETRY: Duration = Duration::from_millis(2);

/// Records are blocks of this many bytes.
const RECORD: u64 = 4096;

/// Stamped chunks of a stream, filled by a thread.
pub type Stream = Arc<Mutex<Vec<Chunk>>>;

/// A guest at work.
pub struct Guest<'a> {
    nodes: &'a Nodes,
    seed: u64,
    beats_a: Stream,
    beats_b: Stream,
    /// Of the QEMU that the guest has after its update.
    beats_c: Stream,
    began: Instant,
    /// Reports and commands; after the move those of node b.
    report: BufReader<UnixStream>,
}

impl<'a> Guest<'a> {
    /// Fills a disk, imports it as a volume of node a, boots the guest on it through `front` (nbd or vhost-user) and
    /// waits until it is at work.
    pub fn boot(nodes: &'a Nodes, image: &GuestImage, size: u64, seed: u64, front: &str) -> Result<Guest<'a>> {
        import(nodes, image, size, seed)?;
        let append = format!("console=ttyS0 quiet panic=-1 gn.seed={seed} gn.disk=/dev/vda {WORKLOAD}");
        let (kernel, initrd) = (text(&image.kernel)?, text(&image.initrd)?);
        let disk = format!("{VOLUME},front={front}");
        let run = ["vm", "run", VM, "--memory", MEMORY, "--disk", &disk, "--kernel", kernel, "--initrd", initrd];
        let ports = ["--append", &append, "--port", HEARTBEAT, "--port", REPORT, "--agent"];
        nodes.a.ask(&[&run[..], &ports].concat())?;
        let started = Instant::now();
        let beats_a = listen(port(&nodes.a, HEARTBEAT), started);
        // Connected before the switch, so that no beat finds the port closed.
        let beats_b = listen(port(&nodes.b, HEARTBEAT), started);
        let report = connect(&port(&nodes.a, REPORT), ANSWER_WITHIN)?;
        let mut guest = Guest { nodes, seed, beats_a, beats_b, beats_c: Stream::default(), began: started, report };
        guest.await_line("ready")?;
        Ok(guest)
    }

    /// Waits until a node has heard the guest's agent say a number of at least `seq`; what it said.
    pub fn await_agent(&self, node: &Node, seq: u64) -> Result<Value> {
        let until = Instant::now() + ANSWER_WITHIN;
        loop {
            let agent = &node.ask(&["vm", "show", VM])?["agent"];
            if agent["seq"].as_u64().is_some_and(|said| said >= seq) {
                return Ok(agent.clone());
            }
            if Instant::now() > until {
                bail!("the guest's agent was not heard: {agent}");
            }
            thread::sleep(RETRY);
        }
    }

    /// Waits until the guest has told of its work once more.
    pub fn work_on(&mut self) -> Result<Value> {
        self.await_line("report")
    }

    /// Lets the guest work for a while, moves it, and returns the finished job.
    pub fn move_to_b(&mut self, mode: &str, ram: Option<&str>) -> Result<Value> {
        let until = Instant::now() + WARM_UP;
        while Instant::now() < until {
            self.await_line("report")?;
        }
        let ram = ram.map_or(vec![], |ram| vec!["--ram", ram]);
        let how = ["vm", "move", VM, "--to", self.nodes.b.name, "--mode", mode];
        let job = self.nodes.a.ask(&[&how[..], &ram].concat())?;
        self.report = connect(&port(&self.nodes.b, REPORT), ANSWER_WITHIN)?;
        Ok(job)
    }

    /// Gives the guest on node b another QEMU, then tries a bad one on it.
    pub fn update(&mut self, newer: &Path) -> Result<update::Told> {
        let (node, folder) = (&self.nodes.b, self.nodes.b.run_dir.join("vm").join(VM));
        let lanes = Lanes::watch(folder, HEARTBEAT, self.began);
        node.ask(&update::good(VM, text(newer)?))?;
        let shown = node.ask(&["vm", "show", VM])?;
        let socket = |name: &str| -> Result<PathBuf> {
            let ports = shown["ports"].as_array().context("the VM has no ports")?;
            let port = ports.iter().find(|port| port["name"] == name).context("the VM lost a port")?;
            Ok(PathBuf::from(port["socket"].as_str().context("a port without a socket")?))
        };
        self.beats_c = lanes.stream(&socket(HEARTBEAT)?).context("nobody listened to the new QEMU")?;
        self.report = connect(&socket(REPORT)?, ANSWER_WITHIN)?;
        self.await_line("report")?;
        let before = self.began.elapsed();
        let bad = update::bad_qemu(&self.nodes.folder, newer)?;
        let refused = update::exit_code(&node.run_dir, &update::bad(VM, text(&bad)?))? == 3;
        self.await_line("report")?;
        let switched = beats::judge(&lock(&self.beats_b), &lock(&self.beats_c));
        let silent = beats::longest(&lock(&self.beats_c), before, self.began.elapsed());
        Ok(update::Told {
            gap_ms: update::millis(switched.gap.context("no heartbeat in both QEMUs")?),
            heartbeats_lost: switched.lost,
            bad_refused: refused,
            bad_gap_ms: update::millis(silent),
        })
    }

    /// Gives the guest on node b a shadow on node a, and lets it work for a while.
    pub fn protect(&mut self) -> Result<()> {
        failover::protect(&self.nodes.b, &self.nodes.a, VM, VOLUME)
    }

    /// The guest's QEMU on node b dies, and its shadow goes on.
    pub fn fail_over(&mut self) -> Result<Fall> {
        let beats = listen(port(&self.nodes.a, HEARTBEAT), self.began);
        failover::fail_over(&self.nodes.b, &self.nodes.a, VM)?;
        self.report = connect(&port(&self.nodes.a, REPORT), ANSWER_WITHIN)?;
        self.await_line("report")?;
        beats::fall(&lock(&self.beats_c), &lock(&beats)).context("no heartbeat on both sides of the death")
    }

    /// Ends the workload, keeps the version table in a file, powers the guest off; returns its last report.
    pub fn stop(&mut self) -> Result<Value> {
        self.say("stop")?;
        let last = self.await_line("final")?;
        self.say("dump")?;
        let bytes = self.await_line("dump")?["bytes"].as_u64().context("the dump has no length")?;
        let mut dump = Vec::new();
        (&mut self.report).take(bytes).read_to_end(&mut dump)?;
        fs::write(self.versions(), dump)?;
        self.say("poweroff")?;
        self.await_end()?;
        Ok(last)
    }

    /// Judges every record of the volume on `node` by the version table.
    pub fn verify(&self, node: &Node, image: &GuestImage) -> Result<bool> {
        let volume = node.ask(&["volume", "show", VOLUME])?;
        let path = volume["path"].as_str().context("the volume has no path")?;
        let mut judge = Command::new(&image.program);
        judge.args(["verify", "--file", path, "--seed", &self.seed.to_string(), "--versions"]).arg(self.versions());
        let output = judge.output().context("cannot start the judge")?;
        eprint!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        Ok(output.status.success())
    }

    /// What the heartbeats say so far.
    pub fn pulse(&self) -> Pulse {
        beats::judge(&lock(&self.beats_a), &lock(&self.beats_b))
    }

    fn versions(&self) -> PathBuf {
        self.nodes.folder.join("versions")
    }

    fn say(&mut self, command: &str) -> Result<()> {
        writeln!(self.report.get_mut(), "{command}").with_context(|| format!("cannot tell the guest to {command}"))
    }

    /// Reads reports until one of `kind`. The first line after a move may be the tail of one: it is passed over.
    fn await_line(&mut self, kind: &str) -> Result<Value> {
        let started = Instant::now();
        while started.elapsed() < ANSWER_WITHIN {
            let mut line = Vec::new();
            let count =
                self.report.read_until(b'\n', &mut line).with_context(|| format!("no '{kind}' of the guest"))?;
            anyhow::ensure!(count > 0, "the guest's port closed before '{kind}': see its console");
            match serde_json::from_slice::<Value>(&line) {
                Ok(report) if report["kind"] == kind => return Ok(report),
                _ => {}
            }
        }
        bail!("no '{kind}' of the guest within {ANSWER_WITHIN:?}")
    }

    /// QEMU closes its sockets when it ends.
    fn await_end(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        self.report.read_to_end(&mut rest).context("the guest does not end")?;
        Ok(())
    }
}

fn import(nodes: &Nodes, image: &GuestImage, size: u64, seed: u64) -> Result<()> {
    let file = nodes.folder.join("disk.raw");
    let (seed, records) = (seed.to_string(), (size / RECORD).to_string());
    let mut fill = Command::new(&image.program);
    sh::run_aside(fill.args(["fill", "--seed", &seed, "--records", &records, "--file"]).arg(&file))?;
    nodes.a.ask(&["volume", "import", VOLUME, "--file", text(&file)?])?;
    fs::remove_file(&file)?;
    Ok(())
}

/// Where a daemon offers a port of the guest.
fn port(node: &Node, name: &str) -> PathBuf {
    node.run_dir.join("vm").join(VM).join(format!("{name}.sock"))
}

/// Collects a port's bytes with their arrivals, from the moment its socket appears.
pub fn listen(socket: PathBuf, started: Instant) -> Stream {
    let stream = Stream::default();
    let filled = Arc::clone(&stream);
    thread::spawn(move || {
        let mut port = loop {
            match UnixStream::connect(&socket) {
                Ok(port) => break port,
                Err(_) => thread::sleep(RETRY),
            }
        };
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = port.read(&mut buffer) {
            lock(&filled).push(Chunk { at: started.elapsed(), bytes: buffer[..count].to_vec() });
        }
    });
    stream
}

/// Connects to a port, once its socket is there.
pub fn connect(socket: &Path, within: Duration) -> Result<BufReader<UnixStream>> {
    let started = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(port) => {
                port.set_read_timeout(Some(within))?;
                return Ok(BufReader::new(port));
            }
            Err(err) if started.elapsed() > within => {
                return Err(err).with_context(|| format!("cannot connect to {}", socket.display()));
            }
            Err(_) => thread::sleep(RETRY),
        }
    }
}

/// What has been collected so far.
pub fn lock(stream: &Stream) -> MutexGuard<'_, Vec<Chunk>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
