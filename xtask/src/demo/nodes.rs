//! Two daemons on this machine, each with folders of its own, and the link between them.

use std::{
    cell::RefCell,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{sh, wire::Wire};

/// How long a daemon may take to answer. It needs milliseconds; a busy machine may need seconds.
const START_WITHIN: Duration = Duration::from_secs(20);

/// Both nodes and their link. Dropping it stops the guests that still run, which would outlive their daemons, and then
/// ends the daemons: a demo that failed midway leaves no process behind.
pub struct Nodes {
    /// Where the guest starts.
    pub a: Node,
    /// Where it goes.
    pub b: Node,
    /// Where all of it is.
    pub folder: PathBuf,
}

/// One daemon.
pub struct Node {
    /// Its name.
    pub name: &'static str,
    /// Its sockets.
    pub run_dir: PathBuf,
    home: PathBuf,
    place: Place,
    daemon: RefCell<Child>,
}

/// Where a node is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The network namespace of its daemon, if that is another than ours.
    pub namespace: Option<&'static str>,
    /// Its address there.
    pub address: Ipv4Addr,
}

/// Beside us, on loopback.
const HERE: Place = Place { namespace: None, address: Ipv4Addr::LOCALHOST };

/// The port of a daemon that has its network for itself.
const PORT: u16 = 7700;

impl Nodes {
    /// Makes certificates and configurations, starts the wires and both daemons, and waits until they answer.
    pub fn start(folder: &Path, rate: u64, delay: Duration) -> Result<Nodes> {
        let (here, there) = (free_port()?, free_port()?);
        // Each node reaches the other through a wire: no byte between them goes around it.
        let to_b = Wire::start(local(0), there, rate, delay)?;
        let to_a = Wire::start(local(0), here, rate, delay)?;
        Nodes::linked(folder, [here, there], [to_a.address, to_b.address], Some(rate))
    }

    /// The same with no link but this machine's own: as fast as it is.
    pub fn side_by_side(folder: &Path) -> Result<Nodes> {
        let addresses = [free_port()?, free_port()?];
        Nodes::linked(folder, addresses, addresses, None)
    }

    /// Nodes that listen here, and are reached by each other there.
    fn linked(
        folder: &Path,
        [a, b]: [SocketAddr; 2],
        [to_a, to_b]: [SocketAddr; 2],
        rate: Option<u64>,
    ) -> Result<Nodes> {
        certify(folder)?;
        Ok(Nodes {
            a: Node::start(folder, ("a", HERE, a), ("b", to_b), rate)?,
            b: Node::start(folder, ("b", HERE, b), ("a", to_a), rate)?,
            folder: folder.to_owned(),
        })
    }

    /// The same at places that reach each other without a wire; they are told that it takes `rate`.
    pub fn start_at(folder: &Path, places: [Place; 2], rate: u64) -> Result<Nodes> {
        let [here, there] = places.map(|place| SocketAddr::from((place.address, PORT)));
        let [a, b] = places;
        certify(folder)?;
        Ok(Nodes {
            a: Node::start(folder, ("a", a, here), ("b", there), Some(rate))?,
            b: Node::start(folder, ("b", b, there), ("a", here), Some(rate))?,
            folder: folder.to_owned(),
        })
    }
}

impl Drop for Nodes {
    /// Both nodes' guests go before either daemon does: in the middle of a move there is a QEMU on each. Shadows go
    /// first: neither they nor what they protect can be stopped.
    fn drop(&mut self) {
        for work in [Node::end_protections, Node::stop_guests, Node::end_groups] {
            work(&self.a);
            work(&self.b);
        }
    }
}

/// One certificate authority for both, and a certificate for each.
fn certify(folder: &Path) -> Result<()> {
    let pki = folder.join("pki");
    for node in ["a", "b"] {
        let mut init = Command::new(program());
        init.args(["node", "init", "--name", node, "--dir"]).arg(pki.join(node)).arg("--ca-dir").arg(pki.join("ca"));
        sh::run_aside(&mut init)?;
    }
    Ok(())
}

impl Node {
    /// The daemon is told a little less than the link's rate: then what waits, waits in gnomon, where what a guest
    /// needs goes first, and not in the link.
    fn start(
        folder: &Path,
        (name, place, listen): (&'static str, Place, SocketAddr),
        peer: (&str, SocketAddr),
        link_rate: Option<u64>,
    ) -> Result<Node> {
        let home = folder.join(name);
        let (run_dir, state_dir, volume_dir) = (home.join("run"), home.join("state"), home.join("volumes"));
        for dir in [&run_dir, &state_dir, &volume_dir] {
            fs::create_dir_all(dir)?;
        }
        let config = home.join("gnomon.toml");
        let pki = folder.join("pki").join(name);
        let rate = link_rate.map(|rate| format!("rate = \"{}\"\n", rate / 100 * 96)).unwrap_or_default();
        fs::write(
            &config,
            format!(
                "[node]\nname = \"{name}\"\nrun_dir = {run_dir:?}\nstate_dir = {state_dir:?}\n\n\
                 [link]\nlisten = \"{listen}\"\npki = {pki:?}\n{rate}\n\
                 [[peer]]\nname = \"{}\"\naddress = \"{}\"\n\n[volume]\ndir = {volume_dir:?}\n",
                peer.0, peer.1
            ),
        )?;
        let daemon = RefCell::new(spawn(&home, place)?);
        let node = Node { name, run_dir, home, place, daemon };
        node.await_answer()?;
        Ok(node)
    }

    /// Kills the daemon as a crash would, and starts it again.
    pub fn crash(&self) -> Result<()> {
        self.die()?;
        self.revive()
    }

    /// Kills the daemon as a crash would.
    pub fn die(&self) -> Result<()> {
        let mut daemon = self.daemon.borrow_mut();
        daemon.kill()?;
        daemon.wait()?;
        Ok(())
    }

    /// Starts the daemon of a node that has died.
    pub fn revive(&self) -> Result<()> {
        *self.daemon.borrow_mut() = spawn(&self.home, self.place)?;
        self.await_answer()
    }

    fn await_answer(&self) -> Result<()> {
        let started = Instant::now();
        while self.ask(&["node", "ls"]).is_err() {
            if let Some(status) = self.daemon.borrow_mut().try_wait()? {
                bail!("the daemon of node {} ended: {status}; see its daemon.log", self.name);
            }
            anyhow::ensure!(started.elapsed() < START_WITHIN, "node {} does not answer", self.name);
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn end_protections(&self) {
        let Ok(told) = self.ask(&["vm", "ls"]) else { return };
        for vm in told.as_array().into_iter().flatten().filter(|vm| vm["protection"].is_object()) {
            let name = vm["name"].as_str().unwrap_or_default();
            if let Err(err) = self.ask(&["vm", "unprotect", name]) {
                eprintln!("demo: {name} on node {} keeps its shadow: {err:#}", self.name);
            }
        }
    }

    /// What is staged for groups that are no more goes back to the host.
    fn end_groups(&self) {
        let Ok(told) = self.ask(&["group", "ls"]) else { return };
        for group in told.as_array().into_iter().flatten().filter_map(|group| group["name"].as_str()) {
            if let Err(err) = self.ask(&["group", "rm", group]) {
                eprintln!("demo: memory stays staged for group {group} on node {}: {err:#}", self.name);
            }
        }
    }

    /// Ends what still runs here. What cannot be stopped is told, for a person to end.
    fn stop_guests(&self) {
        let running = match self.ask(&["vm", "ls"]) {
            Ok(told) => running(&told),
            Err(err) => return eprintln!("demo: node {} cannot say which guests still run: {err:#}", self.name),
        };
        for (vm, pid) in running {
            eprintln!("demo: stopping {vm}, still running on node {}", self.name);
            if let Err(err) = self.ask(&["vm", "stop", &vm, "--force"]) {
                eprintln!("demo: {vm} on node {} is not stopped, end process {pid}: {err:#}", self.name);
            }
        }
    }

    /// `gnomon WORDS --json` at this node; blocks until it is done.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let mut command = Command::new(program());
        command.arg("--socket").arg(self.run_dir.join("gnomon.sock")).arg("--json").args(words);
        let told = sh::capture(&mut command)?;
        // A command that follows a job may print a line for each change: the last one is the outcome.
        let whole = serde_json::from_str(&told);
        let last = || told.lines().rev().find(|line| !line.trim().is_empty()).map(serde_json::from_str);
        whole.or_else(|err| last().unwrap_or(Err(err))).with_context(|| format!("not JSON: {told}"))
    }
}

impl Drop for Node {
    /// Asks politely first: the daemon closes its volumes on SIGTERM.
    fn drop(&mut self) {
        let daemon = self.daemon.get_mut();
        let _ = Command::new("kill").arg(daemon.id().to_string()).status();
        let started = Instant::now();
        while matches!(daemon.try_wait(), Ok(None)) && started.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = daemon.kill();
        let _ = daemon.wait();
    }
}

/// Names and processes of the guests in the answer of `vm ls` that have not ended.
fn running(told: &Value) -> Vec<(String, u64)> {
    let vms = told.as_array().map_or(&[][..], Vec::as_slice);
    let alive = vms.iter().filter(|vm| vm["status"] != "exited");
    alive.filter_map(|vm| Some((vm["name"].as_str()?.to_owned(), vm["pid"].as_u64()?))).collect()
}

/// Starts the daemon of a node that has been configured.
fn spawn(home: &Path, place: Place) -> Result<Child> {
    let log = File::options().create(true).append(true).open(home.join("daemon.log"))?;
    let mut serve = match place.namespace {
        // It becomes the daemon: no process stands between.
        Some(namespace) => {
            let mut ip = Command::new("ip");
            ip.args(["netns", "exec", namespace]).arg(program());
            ip
        }
        None => Command::new(program()),
    };
    serve.arg("serve").arg("--config").arg(home.join("gnomon.toml"));
    serve.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    serve.spawn().context("cannot start the daemon")
}

fn program() -> PathBuf {
    sh::target().join("release/gnomon")
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A port that was free a moment ago; nobody else on this machine asks for one so fast.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind(local(0))?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_guests_that_live_are_stopped() {
        let vm = |name: &str, status: &str, pid: Option<u64>| json!({"name": name, "status": status, "pid": pid});
        // (the answer, who is stopped)
        let table: [(Value, &[(&str, u64)]); 6] = [
            (json!([]), &[]),
            (json!([vm("demo", "running", Some(7))]), &[("demo", 7)]),
            // the two ends of a move
            (
                json!([vm("demo", "postmigrate", Some(7)), vm("new", "inmigrate", Some(8))]),
                &[("demo", 7), ("new", 8)],
            ),
            // one that does not answer may live all the same
            (json!([vm("demo", "unreachable", Some(7))]), &[("demo", 7)]),
            (json!([vm("demo", "exited", Some(7)), vm("gone", "unreachable", None)]), &[]),
            (json!({"error": "no list"}), &[]),
        ];
        for (told, expected) in table {
            let expected: Vec<(String, u64)> = expected.iter().map(|&(name, pid)| (name.to_owned(), pid)).collect();
            assert_eq!(running(&told), expected, "{told}");
        }
    }
}
