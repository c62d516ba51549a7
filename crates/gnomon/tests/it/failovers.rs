//! A guest whose shadow takes over by itself: a shared store tells the dead from the living.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
};

use gnomon_store::{EtcdStore, Store};
use serde_json::Value;

use crate::{
    etcd::Etcd,
    house::{House, Pair, await_some, linked, tool},
    protects::{Sheltered, await_state, counts, refused, show},
    wire::Wire,
};

/// Seconds that a lease lives: a busy machine renews it well within a third of that.
const LEASE_S: u64 = 6;

/// Two nodes that share an etcd, and a guest with disks on the first one.
struct Guarded {
    sheltered: Sheltered,
    /// The cables: from each node to the store, and from `a` to `b`.
    store_a: Wire,
    store_b: Wire,
    link: Wire,
    etcd: Etcd,
}

impl Guarded {
    fn boot() -> Guarded {
        let etcd = Etcd::start();
        let pair = Pair::unlit(["a", "b"], "", true);
        let wire = || Wire::to((Ipv4Addr::LOCALHOST, etcd.port()));
        let (store_a, store_b, link) = (wire(), wire(), lay_between(&pair));
        let mut pair = pair;
        for (house, wire) in [(&mut pair.a, &store_a), (&mut pair.b, &store_b)] {
            house.configure(&format!(
                "[store]\nshared = 'etcd://127.0.0.1:{}/test'\nlease = {LEASE_S}\n",
                wire.port()
            ));
            house.start();
        }
        let sheltered = Sheltered::boot_at(pair);
        await_present(&sheltered.pair.a);
        Guarded { sheltered, store_a, store_b, link, etcd }
    }

    fn protect(&self, more: &[&str]) {
        let first = ["vm", "protect", "tiny", "--on", "b", "--interval", "50ms", "--auto-failover"];
        self.a().ask(&[&first[..], more].concat());
        self.await_armed();
    }

    fn await_armed(&self) {
        await_state(self.a(), "protected");
        for house in [self.a(), self.b()] {
            await_guard(house, "armed", |guard| guard["armed"] == true);
        }
    }

    fn a(&self) -> &House {
        &self.sheltered.pair.a
    }

    fn b(&self) -> &House {
        &self.sheltered.pair.b
    }

    fn await_running(&self, house: &House) {
        let told = || format!("{} {}", show(self.a()), show(self.b()));
        await_some("it runs", told, || (show(house)["status"] == "running").then_some(()));
    }

    /// Terms at the store.
    fn terms(&self) -> Vec<String> {
        let address = format!("etcd://127.0.0.1:{}/test", self.etcd.port()).parse().expect("an address");
        let store = EtcdStore::open(address, None).expect("a store");
        let found = store.scan("guard/").expect("it answers").into_iter().map(|(key, _)| key);
        // Leases of daemons that were killed end by themselves.
        found.filter(|key| key.ends_with("/term")).collect()
    }

    /// What `a` had is given up, and `b` runs the guest.
    fn await_given_up(&self) {
        let said = || show(self.a())["exit"].as_str().is_some_and(|said| said.contains("node b took over"));
        let lost = || said() && self.a().qemus().is_empty() && self.a().role("data") == "lost";
        await_some("it is given up", || show(self.a()).to_string(), || lost().then_some(()));
        self.await_running(self.b());
        assert_eq!((self.b().role("data").as_str(), self.b().role("boot").as_str()), ("primary", "primary"));
    }
}

/// A cable from `a` to `b`, in its configuration.
fn lay_between(pair: &Pair) -> Wire {
    let text = fs::read_to_string(pair.a.config()).expect("a configuration");
    let address = text.split("address = '").nth(1).and_then(|rest| rest.split('\'').next()).expect("an address");
    let link = Wire::to(address.parse::<SocketAddr>().expect("an address"));
    let through = text.replace(address, &format!("127.0.0.1:{}", link.port()));
    fs::write(pair.a.config(), through).expect("a configuration");
    link
}

/// Waits until the store answers this node.
fn await_present(house: &House) {
    let listed = || house.ask(&["node", "ls"]);
    let present = || listed().as_array().is_some_and(|nodes| nodes.iter().any(|node| node["present"] == true));
    await_some("the store to answer", || listed().to_string(), || present().then_some(()));
}

/// What a node says of the guard.
fn guard(house: &House) -> Value {
    let shown = show(house);
    let of = if shown["protection"].is_null() { "shadow" } else { "protection" };
    shown[of]["guard"].clone()
}

fn await_guard(house: &House, what: &str, enough: impl Fn(&Value) -> bool) -> Value {
    await_some(what, || show(house).to_string(), || Some(guard(house)).filter(&enough))
}

/// A host dies: the shadow takes over, and its story is told. The host returns: it learns it.
#[test]
fn a_shadow_takes_over_by_itself_after_its_primary_died() {
    let mut guarded = Guarded::boot();
    guarded.protect(&[]);
    let told = guard(guarded.b());
    assert_eq!((&told["holder"], &told["heirs"][0]), (&Value::from("a"), &Value::from("b")), "{told}");
    assert!(guarded.a().run(&["vm", "show", "tiny"]).out.contains("armed"));
    let count = guarded.sheltered.await_sealed_count();
    guarded.sheltered.kill_primary();
    let last = counts(guarded.a()).last().copied().expect("it counted");
    guarded.await_running(guarded.b());
    guarded.sheltered.goes_on_from(count, last + 1);

    let told = guarded.b().ask(&["vm", "events", "tiny"]);
    let event = &told[0];
    assert_eq!((&event["what"], &event["status"]), (&Value::from("failover"), &Value::from("done")), "{told}");
    assert!(event["reasons"][0].as_str().is_some_and(|why| why.contains("lease of node a ended")), "{told}");
    let phases: Vec<_> = event["phases"].as_array().expect("phases").iter().map(|phase| &phase["name"]).collect();
    assert_eq!(phases, ["silence", "loading", "claiming", "starting"], "{told}");
    println!("{event}");

    guarded.sheltered.pair.a.start();
    guarded.await_given_up();
}

/// Both shadows are heirs: one of them takes over, and the other one drops what it has.
#[test]
fn of_two_heirs_one_takes_over_by_itself() {
    let etcd = Etcd::start();
    let ([mut a, mut b, mut c], pki) = linked(["a", "b", "c"]);
    for house in [&mut a, &mut b, &mut c] {
        let store = format!("[store]\nshared = 'etcd://127.0.0.1:{}/test'\nlease = {LEASE_S}\n", etcd.port());
        house.configure(&store);
        house.start();
    }
    let mut sheltered = Sheltered::boot_at(Pair::of(a, b, pki));
    [&sheltered.pair.a, &sheltered.pair.b, &c].into_iter().for_each(await_present);
    let protect = ["vm", "protect", "tiny", "--on", "b,c", "--interval", "50ms", "--auto-failover"];
    let ran = sheltered.pair.a.run(&protect);
    assert_eq!(ran.code, 0, "{}", ran.err);
    for house in [&sheltered.pair.b, &c] {
        await_guard(house, "armed", |guard| guard["armed"] == true && guard["heirs"] == Value::from(vec!["b", "c"]));
    }
    sheltered.await_sealed_count();
    sheltered.kill_primary();
    let b = &sheltered.pair.b;
    let runs = |house: &House| show(house)["status"] == "running";
    let has_none = |house: &House| house.look("/v1/vms") == Value::from(Vec::<Value>::new());
    let settled = || [(b, &c), (&c, b)].into_iter().find(|(one, other)| runs(one) && has_none(other));
    let (winner, _) = await_some("one that runs it", || format!("{} {}", show(b), show(&c)), settled);
    let count = await_some("a count", String::new, || counts(winner).last().copied());
    sheltered.await_count(winner, count + 5);
    let told = winner.ask(&["vm", "events", "tiny"]);
    assert!(told[0]["reasons"][0].as_str().is_some_and(|why| why.contains("lease of node a ended")), "{told}");
}

/// A primary that nobody hears in strict mode: its guest stands before the shadow runs, and never runs again.
#[test]
fn a_strict_primary_that_is_cut_off_stands_before_its_shadow_runs() {
    let guarded = Guarded::boot();
    guarded.protect(&["--strict"]);
    let count = guarded.sheltered.await_sealed_count();
    guarded.store_a.cut();
    guarded.link.cut();
    guarded.await_running(guarded.b());
    let last = counts(guarded.a()).last().copied().expect("it counted");
    assert_ne!(show(guarded.a())["status"], "running", "{}", show(guarded.a()));
    guarded.sheltered.goes_on_from(count, last + 1);
    assert_eq!(counts(guarded.a()).last(), Some(&last), "it stood before the other one ran");
    await_guard(guarded.a(), "what is wrong", |guard| guard["trouble"].is_string());
    guarded.store_a.mend();
    guarded.link.mend();
    guarded.await_given_up();
}

/// While the store answers nobody, a strict primary stands and nobody takes over.
#[test]
fn a_strict_primary_goes_on_when_the_store_is_back() {
    let guarded = Guarded::boot();
    guarded.protect(&["--strict"]);
    guarded.store_a.cut();
    guarded.store_b.cut();
    let stands = || (show(guarded.a())["status"] != "running").then_some(());
    await_some("the guest stands", || show(guarded.a()).to_string(), stands);
    refused_for_now(guarded.a(), &["vm", "unprotect", "tiny"]);
    let count = counts(guarded.a()).last().copied().expect("it counted");
    // Whoever is back first holds it, for its lease may have ended meanwhile.
    guarded.store_a.mend();
    guarded.sheltered.await_count(guarded.a(), count + 3);
    guarded.store_b.mend();
    guarded.await_armed();
    let said = counts(guarded.a());
    assert!(said.is_sorted_by(|one, next| next - one == 1), "{said:?}");
}

/// Ended without having done anything, for a reason that may pass.
fn refused_for_now(house: &House, args: &[&str]) {
    let ran = house.run(args);
    assert!(ran.code != 0, "{args:?} was done: {}", ran.out);
}

/// A daemon that comes back within its lease goes on; a switchover and an end of the protection leave no term.
#[test]
fn a_term_outlives_a_daemon_and_ends_with_the_protection() {
    let mut guarded = Guarded::boot();
    for strict in [&["--strict"][..], &[]] {
        guarded.protect(strict);
        let before = guard(guarded.a())["term"].as_u64().expect("a term");
        guarded.sheltered.pair.a.crash();
        let count = counts(guarded.a()).last().copied().expect("it counts");
        guarded.sheltered.pair.a.start();
        guarded.sheltered.await_count(guarded.a(), count + 3);
        await_guard(guarded.a(), "the next term", |guard| guard["term"].as_u64() > Some(before));
        guarded.await_armed();
        // One that is told to stop does not mean its shadow to take over.
        guarded.sheltered.pair.a.stop();
        await_guard(guarded.b(), "struck off", |guard| guard["holder"] == "a" && guard["heirs"][0].is_null());
        guarded.sheltered.pair.a.start();
        guarded.await_armed();
        guarded.a().ask(&["vm", "unprotect", "tiny"]);
        assert_eq!(guarded.terms(), Vec::<String>::new());
    }
    guarded.protect(&[]);
    guarded.a().ask(&["vm", "switchover", "tiny"]);
    guarded.await_running(guarded.b());
    assert_eq!((guarded.terms(), guarded.a().qemus().len()), (Vec::new(), 0));
}

/// A shadow that is lost is no heir: then an operator decides, once the lease has ended.
#[test]
fn a_shadow_that_is_struck_off_takes_over_by_hand_only() {
    let mut guarded = Guarded::boot();
    guarded.protect(&[]);
    let by_hand = ["vm", "failover", "tiny", "--i-have-fenced", "a"];
    refused(guarded.b(), &by_hand, "not fenced");
    guarded.link.cut();
    await_guard(guarded.a(), "struck off", |guard| guard["armed"] == false && guard["heirs"][0].is_null());
    await_guard(guarded.b(), "struck off", |guard| guard["armed"] == false);
    // The node lives, and its daemon does not: its lease ends by and by.
    let pid = show(guarded.a())["pid"].as_u64().expect("a process").to_string();
    guarded.sheltered.pair.a.crash();
    refused(guarded.b(), &by_hand, "its lease lives");
    tool("kill", &["-KILL", &pid]);
    let told = || guarded.b().run(&by_hand);
    await_some("the lease to end", || show(guarded.b()).to_string(), || (told().code == 0).then_some(()));
    guarded.await_running(guarded.b());
    guarded.link.mend();
    guarded.sheltered.pair.a.start();
    guarded.await_given_up();
}
