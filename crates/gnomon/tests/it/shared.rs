//! Nodes that share a store: who is present there, and what is said when it is not there.

#[cfg(feature = "etcd")]
use serde_json::Value;

use crate::house::House;

/// Says how the node called `name` is listed: its presence at the store.
#[cfg(feature = "etcd")]
fn presence(listed: &Value, name: &str) -> Value {
    let nodes = listed.as_array().expect("a list");
    nodes.iter().find(|node| node["name"] == name).map_or(Value::Null, |node| node["present"].clone())
}

#[cfg(feature = "etcd")]
mod with_etcd {
    use serde_json::Value;

    use super::presence;
    use crate::{
        etcd::Etcd,
        house::{House, await_some},
    };

    fn house(name: &str, etcd: &Etcd) -> House {
        let mut house = House::unlit(name, &format!("[store]\nshared = 'etcd://127.0.0.1:{}/test'\n", etcd.port()));
        house.start();
        house
    }

    /// Asks `house` for its nodes until `name` is listed as `wanted`.
    fn await_presence(house: &House, name: &str, wanted: &Value) {
        let listed = || house.ask(&["node", "ls"]);
        let is_so = || (presence(&listed(), name) == *wanted).then_some(());
        await_some(&format!("{name} as {wanted}"), || listed().to_string(), is_so);
    }

    #[test]
    fn nodes_see_who_is_present_and_who_left() {
        let etcd = Etcd::start();
        let (mut a, mut b) = (house("a", &etcd), house("b", &etcd));
        await_presence(&a, "a", &Value::Bool(true));
        await_presence(&a, "b", &Value::Bool(true));
        // A daemon that was killed and comes back replaces what it has said before.
        b.crash();
        b.start();
        await_presence(&b, "b", &Value::Bool(true));
        b.stop();
        await_presence(&a, "b", &Value::Null);
        assert!(a.run(&["node", "ls"]).out.contains("AT THE STORE"));
        drop(etcd);
        await_presence(&a, "a", &Value::Null);
        assert_eq!(a.ask(&["volume", "ls"]).as_array().map(Vec::len), Some(0), "it serves without its etcd");
        a.stop();
    }
}

#[cfg(feature = "etcd")]
#[test]
fn a_node_whose_etcd_is_down_serves_all_the_same() {
    let mut house = House::unlit("a", "[store]\nshared = 'etcd://127.0.0.1:1'\n");
    house.start();
    assert_eq!(presence(&house.ask(&["node", "ls"]), "a"), Value::Null);
    house.ask(&["volume", "create", "v", "--size", "1MiB"]);
    house.stop();
}

#[cfg(not(feature = "etcd"))]
#[test]
fn without_the_feature_it_is_said_how_to_get_it() {
    let house = House::unlit("a", "");
    let ran = house.run(&["serve", "--store", "etcd://127.0.0.1:1"]);
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(ran.err.contains("--features etcd") && ran.err.contains("etcd://127.0.0.1:1"), "{}", ran.err);
}

#[test]
fn an_address_that_is_none_is_told_before_anything_starts() {
    let house = House::unlit("a", "");
    let ran = house.run(&["serve", "--store", "10.0.0.2:2379"]);
    assert_eq!(ran.code, 2, "{}", ran.err);
    assert!(ran.err.contains("etcd://HOST:PORT"), "{}", ran.err);
}
