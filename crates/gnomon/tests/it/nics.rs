//! Network cards: a Linux guest that answers on TCP, through a tap, to a client that does not let go.
//!
//! The guest counts lines and answers each with its number. The client asks for one after another over one connection, and
//! fails as soon as a number is not the next one: a guest that goes on elsewhere without what it has acknowledged, or a
//! connection that is cut, shows at once.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::{
    cache,
    house::{House, PATIENCE, Pair, await_some, linked, tool},
};

/// Where the guest answers.
const GUEST: &str = "10.77.0.2";
const PORT: &str = "7";
const CARD: &str = "tap:gtap0,bridge=gbr0";

/// A network of the test's own: a bridge on which the host is 10.77.0.1. It goes with everything in it.
struct Network {
    netns: String,
}

impl Network {
    fn new() -> Network {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        assert!(Path::new("/dev/net/tun").exists(), "these tests need /dev/net/tun: `modprobe tun`");
        assert!(rustix::process::geteuid().is_root(), "these tests make network name spaces: run them as root");
        let network =
            Network { netns: format!("gnomon-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)) };
        tool("ip", &["netns", "add", &network.netns]);
        network.ip("link set lo up");
        network.ip("link add gbr0 address 02:00:00:00:00:fe type bridge");
        network.ip("address add 10.77.0.1/24 dev gbr0");
        network.ip("link set gbr0 up");
        network
    }

    fn ip(&self, command: &str) {
        let words: Vec<&str> = ["-n", &self.netns].into_iter().chain(command.split(' ')).collect();
        tool("ip", &words);
    }

    /// Connects to the guest from within.
    fn connect(&self) -> TcpStream {
        let netns = format!("/run/netns/{}", self.netns);
        // A thread of its own, which ends in that name space.
        let connect = move || {
            let netns = fs::File::open(netns).expect("a name space");
            move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), Some(LinkNameSpaceType::Network))
                .expect("entered");
            let connect = || TcpStream::connect(format!("{GUEST}:{PORT}")).ok();
            await_some("a connection", String::new, connect)
        };
        let stream = thread::spawn(connect).join().expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("at once");
        stream
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Whoever failed before has told why.
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.netns]).status();
    }
}

/// Two nodes on one network, and a guest that answers.
struct Wired {
    pair: Pair,
    network: Network,
}

impl Wired {
    /// `disks` are new volumes.
    fn boot(disks: &[&str]) -> Wired {
        Wired::boot_in(Network::new(), Pair::unlit(["a", "b"], "", true), disks)
    }

    /// On nodes that do not run yet.
    fn boot_in(network: Network, mut pair: Pair, disks: &[&str]) -> Wired {
        for house in [&mut pair.a, &mut pair.b] {
            house.live_in(&network.netns);
            house.start();
        }
        for disk in disks {
            pair.a.ask(&["volume", "create", disk, "--size", "1M"]);
        }
        let disks: Vec<&str> = disks.iter().flat_map(|disk| ["--disk", *disk]).collect();
        let (kernel, initrd) = image();
        let append = format!("console=ttyS0 quiet panic=-1 gn.ip={GUEST}/24 gn.answer={PORT} gn.idle=1");
        let run = ["vm", "run", "tiny", "--memory", "128M", "--accel", "tcg", "--kernel", &kernel];
        let rest = ["--initrd", &initrd, "--append", &append, "--nic", CARD];
        assert_eq!(pair.a.ask(&[&run[..], &rest[..], &disks[..]].concat())["status"], "running");
        Wired { pair, network }
    }

    fn client(&self) -> Client {
        Client::begin(self.network.connect())
    }
}

/// The Linux guest that `cargo xtask` packs into the cache.
fn image() -> (String, String) {
    (cache::kernel(), cache::initrd("guest.cpio"))
}

/// Asks for one number after another, on a thread of its own.
struct Client {
    stream: TcpStream,
    newest: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Hung up by the thread when a number was not the next one.
    failed: mpsc::Receiver<()>,
}

impl Client {
    fn begin(stream: TcpStream) -> Client {
        let (newest, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (alive, failed) = mpsc::channel();
        let (mut asking, told, over) =
            (stream.try_clone().expect("a socket"), Arc::clone(&newest), Arc::clone(&done));
        let thread = thread::spawn(move || {
            let _alive: mpsc::Sender<()> = alive;
            let mut answers = BufReader::new(asking.try_clone().expect("a socket"));
            let mut last = None;
            while !over.load(Ordering::Relaxed) {
                asking.write_all(b"next\n").expect("the connection lives");
                let mut answer = String::new();
                answers.read_line(&mut answer).expect("an answer");
                let number: u64 =
                    answer.strip_suffix(" next\n").and_then(|number| number.parse().ok()).expect("a number");
                assert!(last.is_none_or(|last| number == last + 1), "{number} after {last:?}");
                last = Some(number);
                told.store(number, Ordering::Relaxed);
            }
        });
        Client { stream, newest, done, thread: Some(thread), failed }
    }

    fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    /// Waits for so many more answers.
    fn goes_on(&self, more: u64) {
        let from = self.newest();
        let enough = || {
            assert!(
                !matches!(self.failed.try_recv(), Err(mpsc::TryRecvError::Disconnected)),
                "the client has failed"
            );
            (self.newest() >= from + more).then_some(())
        };
        await_some("answers", || format!("{} of {}", self.newest(), from + more), enough);
    }

    /// Ends it after the answer that it waits for.
    fn end(mut self) -> u64 {
        self.done.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("each number was the next one");
        self.newest()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // One that waits for an answer is told that none will come.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

fn show(house: &House) -> Value {
    house.look("/v1/vms/tiny")
}

fn card(house: &House) -> Value {
    show(house)["nics"][0].clone()
}

fn state(house: &House) -> String {
    show(house)["protection"]["state"].as_str().unwrap_or_default().to_string()
}

fn await_show(house: &House, what: &str, is_so: impl Fn(&Value) -> bool) {
    await_some(what, || show(house).to_string(), || is_so(&show(house)).then_some(()));
}

fn await_protected(house: &House) {
    await_show(house, "protected", |_| state(house) == "protected");
}

#[test]
fn a_connection_outlives_daemons_and_hosts() {
    let mut wired = Wired::boot(&["data"]);
    let client = wired.client();
    client.goes_on(20);
    let before = card(&wired.pair.a);
    assert!(before["sent_frames"].as_u64() > Some(20) && before["received_bytes"].as_u64() > Some(400), "{before}");
    assert_eq!((&before["uplink"], &before["why"]), (&Value::from(CARD), &Value::Null), "{before}");

    wired.pair.a.crash();
    wired.pair.a.start();
    client.goes_on(20);
    wired.pair.a.stop();
    wired.pair.a.start();
    client.goes_on(20);
    assert_eq!(card(&wired.pair.a)["mac"], before["mac"]);

    let (a, b) = (&wired.pair.a, &wired.pair.b);
    // The copy that this is tried on has the same card, and no cable.
    let qemu = String::from_utf8(tool("sh", &["-c", "command -v qemu-system-x86_64"])).expect("a path");
    a.ask(&["vm", "update", "tiny", "--qemu", qemu.trim(), "--observe", "1"]);
    client.goes_on(20);

    a.ask(&["vm", "protect", "tiny", "--on", "b", "--interval", "100ms"]);
    await_protected(a);
    assert_eq!(show(b)["nics"], Value::Array(Vec::new()), "a shadow has no cable");
    a.ask(&["vm", "switchover", "tiny"]);
    client.goes_on(20);
    let after = card(b);
    assert_eq!((&after["mac"], &after["why"]), (&before["mac"], &Value::Null), "{after}");
    assert!(after["is_holding"] == false && after["sent_frames"].as_u64() > Some(20), "{after}");

    // QEMU's own migration takes it back.
    a.ask(&["volume", "rm", "data", "--yes"]);
    b.ask(&["vm", "move", "tiny", "--to", "a"]);
    client.goes_on(20);
    assert_eq!(card(a)["mac"], before["mac"]);
    client.end();
}

#[test]
fn in_strict_mode_nothing_that_was_answered_is_lost() {
    let mut wired = Wired::boot(&[]);
    let client = wired.client();
    wired.pair.a.ask(&["vm", "protect", "tiny", "--on", "b", "--interval", "50ms", "--strict"]);
    await_protected(&wired.pair.a);
    await_show(&wired.pair.a, "frames that wait", |vm| vm["nics"][0]["is_holding"] == true);
    assert_eq!(show(&wired.pair.a)["protection"]["exposed"], false);
    client.goes_on(10);

    // A switchover that comes to nothing, for the QEMU there does not take the guest: the frames of a guest that runs on leave with later checkpoints.
    let waiting = wired.pair.b.qemus();
    tool("kill", &["-STOP", &waiting[0].to_string()]);
    let called_off = wired.pair.a.run(&["vm", "switchover", "tiny"]);
    assert_ne!(called_off.code, 0, "{}", called_off.out);
    client.goes_on(10);
    await_protected(&wired.pair.a);

    // A daemon that is back holds from its first frame on.
    wired.pair.a.crash();
    wired.pair.a.start();
    await_protected(&wired.pair.a);
    client.goes_on(10);

    nothing_leaves_while_the_shadow_is_silent(&wired);
    client.goes_on(10);

    // Its host dies at any moment, and the number that comes after the last answer is the next one.
    let pid = show(&wired.pair.a)["pid"].as_u64().expect("a process").to_string();
    wired.pair.a.crash();
    tool("kill", &["-KILL", &pid]);
    wired.pair.b.ask(&["vm", "failover", "tiny", "--i-have-fenced", "a"]);
    client.goes_on(20);
    assert_eq!(card(&wired.pair.b)["is_holding"], false, "it has no shadow");

    // The other way round, until the shadow is lost.
    wired.pair.a.start();
    wired.pair.a.ask(&["vm", "stop", "tiny"]);
    wired.pair.b.ask(&["vm", "protect", "tiny", "--on", "a", "--interval", "50ms", "--strict"]);
    await_show(&wired.pair.b, "frames that wait", |vm| vm["nics"][0]["is_holding"] == true);
    client.goes_on(10);
    wired.pair.a.crash();
    await_show(&wired.pair.b, "the loss on record", |vm| vm["protection"]["exposed"] == true);
    client.goes_on(20);
    assert_eq!(state(&wired.pair.b), "lost");
    wired.pair.a.start();
    await_show(&wired.pair.b, "frames that wait again", |vm| vm["nics"][0]["is_holding"] == true);
    await_protected(&wired.pair.b);
    assert_eq!(show(&wired.pair.b)["protection"]["exposed"], false);
    client.goes_on(10);
    wired.pair.b.ask(&["vm", "unprotect", "tiny"]);
    assert_eq!(card(&wired.pair.b)["is_holding"], false);
    client.goes_on(20);
    client.end();
}

/// One of two shadows is silent, or dies: what the guest answers waits for the other one, and is not exposed.
#[test]
fn in_strict_mode_one_shadow_is_enough() {
    let ([a, b, mut c], pki) = linked(["a", "b", "c"]);
    let network = Network::new();
    c.live_in(&network.netns);
    c.start();
    let mut wired = Wired::boot_in(network, Pair::of(a, b, pki), &[]);
    let client = wired.client();
    let protect = ["vm", "protect", "tiny", "--on", "b,c", "--interval", "50ms", "--strict"];
    let ran = wired.pair.a.run(&protect);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let exposed = |vm: &Value, node: &str| {
        let all = vm["protections"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["to"] == node).and_then(|one| one["exposed"].as_bool())
    };
    let await_exposed = |house: &House, of_b: bool, of_c: bool| {
        let what = format!("b {of_b}, c {of_c}");
        await_show(house, &what, |vm| exposed(vm, "b") == Some(of_b) && exposed(vm, "c") == Some(of_c));
    };
    await_exposed(&wired.pair.a, false, false);
    client.goes_on(10);

    c.signal("-STOP");
    await_exposed(&wired.pair.a, false, true);
    client.goes_on(20);
    assert_eq!(
        (card(&wired.pair.a)["is_holding"].as_bool(), exposed(&show(&wired.pair.a), "b")),
        (Some(true), Some(false))
    );
    c.signal("-CONT");
    await_exposed(&wired.pair.a, false, false);
    client.goes_on(10);

    c.crash();
    await_exposed(&wired.pair.a, false, true);
    client.goes_on(20);
    let pid = show(&wired.pair.a)["pid"].as_u64().expect("a process").to_string();
    wired.pair.a.crash();
    tool("kill", &["-KILL", &pid]);
    wired.pair.b.ask(&["vm", "failover", "tiny", "--i-have-fenced", "a,c"]);
    client.goes_on(20);
    client.end();
}

/// The shadow's daemon is stopped: what the guest answers from then on is held, until the loss is recorded.
fn nothing_leaves_while_the_shadow_is_silent(wired: &Wired) {
    wired.pair.b.signal("-STOP");
    // Looks at the card whenever more frames wait than before, for the guest repeats what is not acknowledged. A frame
    // that was free to leave before the first look has left by the third: the card's thread has come round.
    let mut looks: Vec<Value> = Vec::new();
    while looks.len() < 5 {
        let waited = looks.last().and_then(|vm| vm["nics"][0]["held_frames"].as_u64()).unwrap_or(0);
        let more = |vm: &Value| vm["nics"][0]["held_frames"].as_u64() > Some(waited);
        let look = || Some(show(&wired.pair.a)).filter(|vm| more(vm) || vm["protection"]["exposed"] == true);
        looks.push(await_some("another frame", || show(&wired.pair.a).to_string(), look));
    }
    // What the shadow had said before it was stopped may have come late, and on a very slow host the loss is on record.
    let (first, settled, last) = (&looks[0]["protection"], &looks[2]["nics"][0], &looks[4]);
    if last["protection"]["exposed"] == false && last["protection"]["checkpoint"] == first["checkpoint"] {
        let sent = |card: &Value| card["sent_frames"].as_u64();
        assert_eq!(sent(settled), sent(&last["nics"][0]), "a frame has left before its checkpoint was committed");
    }
    wired.pair.b.signal("-CONT");
    await_show(&wired.pair.a, "a shadow again", |vm| {
        vm["protection"]["state"] == "protected" && vm["protection"]["exposed"] == false
    });
}

#[test]
fn cards_that_cannot_be_had_are_refused_and_leave_nothing() {
    let network = Network::new();
    let mut house = House::unlit("a", "");
    house.live_in(&network.netns);
    house.start();
    network.ip("link add name other type bridge");
    network.ip("tuntap add dev taken mode tap");
    network.ip("link set taken master other");
    let run = |nic: &str| house.run(&["vm", "run", "x", "--memory", "16M", "--kernel", "/dev/null", "--nic", nic]);
    let table = [
        ("tap:gtap0,bridge=nowhere", "no bridge nowhere"),
        ("tap:gtap0,bridge=lo", "no bridge lo"),
        ("tap:taken,bridge=gbr0", "belongs to other"),
        ("tap:lo", "is no tap"),
        ("tap:a-name-that-is-too-long", "the kernel allows 15"),
        ("tap:a%d", "is no name"),
    ];
    for (nic, why) in table {
        let ran = run(nic);
        assert!(ran.code != 0 && ran.err.contains(why), "{nic}: {}", ran.err);
    }
    let double = ["--nic", "tap:one", "--nic", "tap:one"];
    let ran = house.run(&[&["vm", "run", "x", "--memory", "16M", "--kernel", "/dev/null"][..], &double[..]].concat());
    assert!(ran.code != 0 && ran.err.contains("the tap one"), "{}", ran.err);
    assert_eq!(house.look("/v1/vms"), Value::Array(Vec::new()));
    let links = String::from_utf8(tool("ip", &["-n", &network.netns, "-o", "link"])).expect("text");
    assert!(!links.contains("gtap0") && !links.contains("one@"), "{links}");
}
