//! A real etcd of three members on loopback, whose members can be killed and started again.

use std::{
    fs::File,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use gnomon_store::{EtcdAddress, EtcdStore};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// A cluster to come up, or a leader to be there; a hundred times what it takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a call needs of a cluster that is well. Shorter than the default, because some tests wait for the end of it.
pub const STORE_PATIENCE: Duration = Duration::from_secs(3);

pub struct Cluster {
    members: Vec<Member>,
    runtime: Runtime,
    namespaces: AtomicU32,
    dir: TempDir,
}

struct Member {
    client: u16,
    peer: u16,
    process: Option<Child>,
}

impl Cluster {
    /// Starts three members, and waits until they have a leader.
    pub fn start() -> Cluster {
        let ports = free_ports(6);
        let members = ports.chunks(2).map(|pair| Member { client: pair[0], peer: pair[1], process: None }).collect();
        let runtime = Runtime::new().expect("runtime");
        let dir = folder();
        let mut cluster = Cluster { members, runtime, namespaces: AtomicU32::new(0), dir };
        (0..3).for_each(|number| cluster.run(number));
        cluster.leader();
        cluster
    }

    /// Starts a member that does not run, with what it has on its disk.
    pub fn run(&mut self, number: usize) {
        let (name, all) = (format!("m{number}"), self.initial_cluster());
        let member = &mut self.members[number];
        assert!(member.process.is_none(), "{name} runs");
        let (client, peer) = (url(member.client), url(member.peer));
        let log = File::options().append(true).create(true).open(self.dir.path().join(format!("{name}.log")));
        let log = log.expect("log");
        // The members die with the thread of the test, also when that is killed.
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcd", "--name", &name, "--data-dir"])
            .arg(self.dir.path().join(&name))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &all, "--initial-cluster-state", "new", "--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("etcd runs: `cargo xtask setup` installs it");
        member.process = Some(process);
    }

    /// `kill -9`.
    pub fn kill(&mut self, number: usize) {
        let mut process = self.members[number].process.take().expect("it runs");
        process.kill().expect("kill");
        process.wait().expect("wait");
    }

    /// Waits for a leader that most members follow, and says which it is.
    pub fn leader(&self) -> usize {
        let until = Instant::now() + PATIENCE;
        loop {
            let seen: Vec<(u64, u64)> = (0..3).filter_map(|number| self.status(number)).collect();
            let led = |leader: u64| leader != 0 && seen.iter().filter(|(_, follows)| *follows == leader).count() >= 2;
            let leader = (0..3).find(|number| self.status(*number).is_some_and(|(id, _)| led(id)));
            if let Some(leader) = leader {
                return leader;
            }
            assert!(Instant::now() < until, "no leader; what they said:\n{}", self.logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Forgets all revisions before the newest.
    pub fn compact(&self) {
        let newest = self.store_in("compaction").revision().expect("revision");
        let client = self.connect((0..3).find(|number| self.members[*number].process.is_some()).expect("a member"));
        let compacted = self.runtime.block_on(async { client.await.kv_client().compact(newest as i64, None).await });
        compacted.expect("compacted");
    }

    /// Writes what is no record of ours.
    pub fn put_raw(&self, key: &str, value: &[u8]) {
        let client = self.connect(0);
        let put = self.runtime.block_on(async { client.await.kv_client().put(key, value, None).await });
        put.expect("put");
    }

    /// A store in a namespace of its own.
    pub fn store(&self) -> EtcdStore {
        let namespace = self.namespaces.fetch_add(1, Ordering::Relaxed);
        self.store_in(&format!("n{namespace}"))
    }

    /// A store in `namespace`.
    pub fn store_in(&self, namespace: &str) -> EtcdStore {
        self.store_at(&self.client_ports(), namespace)
    }

    /// A store in `namespace` that waits as long as an election may take: mostly 1 to 2 s, and as often again as votes
    /// are split, which has no bound.
    pub fn patient_store_in(&self, namespace: &str) -> EtcdStore {
        EtcdStore::open_with(address(&self.client_ports(), namespace), None, PATIENCE).expect("store")
    }

    /// A store that reaches the members by other ports.
    pub fn store_at(&self, ports: &[u16], namespace: &str) -> EtcdStore {
        EtcdStore::open_with(address(ports, namespace), None, STORE_PATIENCE).expect("store")
    }

    fn client_ports(&self) -> Vec<u16> {
        self.members.iter().map(|member| member.client).collect()
    }

    /// Where a member listens for clients.
    pub fn client_port(&self, number: usize) -> u16 {
        self.members[number].client
    }

    /// A member's own id, and whom it takes for the leader (0: nobody).
    fn status(&self, number: usize) -> Option<(u64, u64)> {
        self.members[number].process.as_ref()?;
        let client = self.connect(number);
        self.runtime.block_on(async {
            let status = tokio::time::timeout(Duration::from_secs(1), async { client.await.status().await });
            let status = status.await.ok()?.ok()?;
            Some((status.header()?.member_id(), status.leader()))
        })
    }

    fn connect(&self, number: usize) -> impl Future<Output = etcd_client::Client> + use<> {
        let address = format!("127.0.0.1:{}", self.members[number].client);
        async move { etcd_client::Client::connect([address], None).await.expect("client") }
    }

    fn initial_cluster(&self) -> String {
        let all = self.members.iter().enumerate().map(|(number, member)| format!("m{number}={}", url(member.peer)));
        all.collect::<Vec<_>>().join(",")
    }

    fn logs(&self) -> String {
        let tail = |path: PathBuf| {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().rev().take(5).collect();
            format!("{}: {}", path.display(), lines.join("\n"))
        };
        (0..3).map(|number| tail(self.dir.path().join(format!("m{number}.log")))).collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn address(ports: &[u16], namespace: &str) -> EtcdAddress {
    let members: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("etcd://{}/{namespace}", members.join(",")).parse().expect("address")
}

/// In memory where that can be: an etcd syncs every write, members are killed and not the machine, and a disk that other
/// tests keep busy would only make elections.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("dir")
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// Ports nobody listens on, below those that the kernel gives to connections: a member that comes back must find its
/// own again. No two calls of a process give the same.
fn free_ports(count: usize) -> Vec<u16> {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Processes begin at different places.
    let begin = std::process::id().wrapping_mul(97);
    let next = || FIRST + (begin.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed))) % COUNT;
    let free = std::iter::repeat_with(next).filter_map(|port| u16::try_from(port).ok());
    free.filter(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).take(count).collect()
}
