//! Guards over a real cluster: cables are cut, quorum is lost, primaries let go, and at most one node runs the guest.

use std::{
    net::Ipv4Addr,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use gnomon_proto::guard::Will;
use gnomon_store::{
    MemStore, Store, StoreError,
    guarding::{Guarding, GuardingError, Hands, Wish},
};
use gnomon_terms::Epoch;

use crate::{cluster::Cluster, wire::Wire};

/// The lease's time to live: an etcd on a busy machine answers well within a third of it.
const TTL: Duration = Duration::from_secs(3);

/// For what comes when it comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What hands were told, by which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Run(Epoch),
    Stand,
    Superseded(Epoch),
}

/// Hands that note what they are told, all in one list.
struct Notes {
    node: &'static str,
    list: mpsc::Sender<(&'static str, Word)>,
}

impl Hands for Notes {
    fn run(&self, epoch: Epoch) {
        let _ = self.list.send((self.node, Word::Run(epoch)));
    }

    fn stand(&self) {
        let _ = self.list.send((self.node, Word::Stand));
    }

    fn superseded(&self, by: Epoch) {
        let _ = self.list.send((self.node, Word::Superseded(by)));
    }
}

/// One VM, its guards, and what they said so far.
struct Vm {
    strict: bool,
    tell: mpsc::Sender<(&'static str, Word)>,
    told: mpsc::Receiver<(&'static str, Word)>,
    running: Vec<&'static str>,
}

impl Vm {
    fn new(strict: bool) -> Vm {
        let (tell, told) = mpsc::channel();
        Vm { strict, tell, told, running: Vec::new() }
    }

    fn guard(&self, store: impl Store + 'static, node: &'static str, will: Will) -> Guarding {
        let wish =
            Wish { node: node.to_string(), vm: "web".to_string(), ttl: TTL, strict: self.strict, will, held: None };
        let hands = Notes { node, list: self.tell.clone() };
        Guarding::begin(Arc::new(store), wish, Box::new(hands)).expect("a cluster grants leases")
    }

    /// What is told until all guards have ended.
    fn rest(self) -> Vec<(&'static str, Word)> {
        drop(self.tell);
        self.told.iter().collect()
    }

    /// Reads on until `wanted` is told. In strict mode no two may run on the way.
    fn until(&mut self, what: &str, wanted: impl Fn(&'static str, Word) -> bool) -> Epoch {
        loop {
            let (node, word) = self.told.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("never: {what}"));
            self.running.retain(|known| *known != node);
            if let Word::Run(_) = word {
                self.running.push(node);
            }
            assert!(!self.strict || self.running.len() < 2, "{:?} run at once", self.running);
            if wanted(node, word) {
                return match word {
                    Word::Run(epoch) | Word::Superseded(epoch) => epoch,
                    Word::Stand => Epoch(0),
                };
            }
        }
    }
}

fn runs(wanted: &'static str) -> impl Fn(&'static str, Word) -> bool {
    move |node, word| node == wanted && matches!(word, Word::Run(_))
}

/// Looks until there is something to be seen.
fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < until, "there is still nothing");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wires(cluster: &Cluster) -> (Vec<Wire>, Vec<u16>) {
    let wires: Vec<Wire> =
        (0..3).map(|number| Wire::to((Ipv4Addr::LOCALHOST, cluster.client_port(number)))).collect();
    let ports = wires.iter().map(Wire::port).collect();
    (wires, ports)
}

#[test]
fn a_primary_whose_cable_is_cut_stands_before_its_heir_runs() {
    let cluster = Cluster::start();
    let (wires, ports) = wires(&cluster);
    let mut vm = Vm::new(true);
    let primary = vm.guard(cluster.store_at(&ports, "n"), "a", Will::Found);
    vm.until("the primary runs", runs("a"));
    primary.set_heirs(&["b".to_string()]).expect("the holder names its heirs");
    let heir = vm.guard(cluster.store_in("n"), "b", Will::Inherit);
    let stranger = vm.guard(cluster.store_in("n"), "c", Will::Inherit);
    assert!(matches!(heir.set_heirs(&[]), Err(GuardingError::NotHeld { .. })));
    wires.iter().for_each(Wire::cut);
    vm.until("the primary stands", |node, word| node == "a" && word == Word::Stand);
    let epoch = vm.until("the heir runs", runs("b"));
    assert!(!primary.gate().is_open() && heir.gate().is_open());
    let trouble = wait_for(|| primary.standing().trouble);
    assert!(trouble.contains("did not answer") && trouble.contains("etcd://"), "{trouble}");
    wires.iter().for_each(Wire::mend);
    let by = vm.until("the primary learns of it", |node, word| node == "a" && matches!(word, Word::Superseded(_)));
    assert!(by >= epoch && !primary.standing().runs);
    let term = heir.standing().term.expect("it holds the term");
    assert!(term.holder == "b" && term.heirs.is_empty(), "what others have is of before: {term:?}");
    assert!(!stranger.standing().runs);
}

#[test]
fn without_a_quorum_a_strict_primary_stands_and_goes_on_when_it_is_back() {
    let mut cluster = Cluster::start();
    let mut vm = Vm::new(true);
    let primary = vm.guard(cluster.store_in("n"), "a", Will::Found);
    vm.until("the primary runs", runs("a"));
    primary.set_heirs(&["b".to_string()]).expect("heirs");
    cluster.kill(0);
    cluster.kill(1);
    vm.until("the primary stands", |node, word| node == "a" && word == Word::Stand);
    let before = primary.standing();
    assert!(before.sure_for < TTL / 5 && !before.runs, "{before:?}");
    cluster.run(0);
    vm.until("the primary goes on", runs("a"));
    assert!(primary.gate().is_open());
}

#[test]
fn a_relaxed_primary_runs_on_until_it_learns_that_it_was_superseded() {
    let cluster = Cluster::start();
    let (wires, ports) = wires(&cluster);
    let mut vm = Vm::new(false);
    let primary = vm.guard(cluster.store_at(&ports, "n"), "a", Will::Found);
    vm.until("the primary runs", runs("a"));
    primary.set_heirs(&["b".to_string()]).expect("heirs");
    wires.iter().for_each(Wire::cut);
    let _heir = vm.guard(cluster.store_in("n"), "b", Will::Inherit);
    vm.until("the heir runs", runs("b"));
    assert!(vm.running.contains(&"a") && primary.gate().is_open(), "two run: that is what relaxed means");
    wires.iter().for_each(Wire::mend);
    vm.until("the primary learns of it", |node, word| node == "a" && matches!(word, Word::Superseded(_)));
    assert!(!primary.standing().runs && !primary.gate().is_open());
}

#[test]
fn a_primary_lets_go_and_a_daemon_that_comes_back_goes_on_at_once() {
    let cluster = Cluster::start();
    let mut vm = Vm::new(true);
    drop(vm.guard(cluster.store_in("n"), "a", Will::Found));
    let primary = vm.guard(cluster.store_in("n"), "a", Will::Found);
    vm.until("the primary runs", runs("a"));
    primary.set_heirs(&["b".to_string()]).expect("heirs");
    let heir = vm.guard(cluster.store_in("n"), "b", Will::Watch);
    primary.let_go().expect("let go");
    vm.until("the primary stands", |node, word| node == "a" && word == Word::Stand);
    heir.set_will(Will::Inherit);
    vm.until("the heir runs", runs("b"));
    heir.end().expect("unprotected");
    drop(heir);
    drop(primary);
    let more = vm.rest();
    assert!(!more.contains(&("b", Word::Stand)), "the guest runs on, unguarded: {more:?}");
    assert!(cluster.store_in("n").scan("guard/web/term").expect("scan").is_empty(), "there is no term any more");
}

#[test]
fn a_store_of_one_host_guards_nothing() {
    let wish =
        Wish { node: "a".to_string(), vm: "web".to_string(), ttl: TTL, strict: true, will: Will::Found, held: None };
    let hands = Notes { node: "a", list: mpsc::channel().0 };
    let refused = Guarding::begin(Arc::new(MemStore::default()), wish, Box::new(hands)).map(|_| ());
    assert!(matches!(refused, Err(GuardingError::Store(StoreError::NoLeases { .. }))), "{refused:?}");
}
