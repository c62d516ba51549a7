//! `--dry-run` of a move: it tells what the move would be like, refuses what the move would, and changes nothing.

use serde_json::{Value, json};

use crate::{
    client::Nbd,
    house::{Pair, Ran},
};

fn dry_run(pair: &Pair, more: &[&str]) -> (i32, Value, Ran) {
    let ran = pair.a.run(&[&["--json", "volume", "move", "data", "--dry-run"], more].concat());
    (ran.code, serde_json::from_str(&ran.out).unwrap_or_default(), ran)
}

/// A volume of 64 MiB at `a` with 8 MiB in it, which are read once.
fn used() -> Pair {
    let pair = Pair::new();
    pair.a.ask(&["volume", "create", "data", "--size", "64M"]);
    let mut nbd = Nbd::open(&pair.a.path("run/nbd.sock"), "data").expect("the volume is served");
    let mut bytes = vec![0x11; 1 << 20];
    for place in 0..8u64 {
        nbd.write(&bytes, place << 20).expect("written");
    }
    for place in 0..8u64 {
        nbd.read(&mut bytes, place << 20).expect("read");
    }
    pair
}

#[test]
fn it_tells_what_the_move_would_be_like_and_changes_nothing() {
    let pair = used();
    let (code, told, ran) = dry_run(&pair, &["--to", "b", "--bandwidth", "1MB/s"]);
    assert_eq!(code, 0, "{}", ran.err);
    let volume = &told["volumes"][0];
    assert_eq!((&volume["size"], &volume["allocated"]), (&json!(64 << 20), &json!(8 << 20)), "{told}");
    assert_eq!((&told["rate"], &told["rate_is"]), (&json!(1_000_000), &json!("given")));
    assert_eq!(told["priming_s"], json!(f64::from(8 << 20) / 1e6));
    assert!(told["free"].as_u64() > Some(0) && told["round_trip_s"].as_f64() > Some(0.0), "{told}");
    assert!(volume["reads_stalling"].as_u64() > Some(0) && volume["stall_s"].as_f64() > Some(0.0), "{told}");
    let (_, told, _) = dry_run(&pair, &["--to", "b", "--mode", "post"]);
    assert_eq!((&told["rate_is"], &told["priming_s"]), (&json!("measured"), &json!(0.0)));
    assert!(told["rate"].as_u64() > Some(0), "{told}");
    assert_eq!((pair.a.role("data").as_str(), pair.b.role("data").as_str()), ("primary", ""));
}

#[test]
fn it_refuses_what_the_move_would_refuse() {
    let pair = used();
    let refused = |to: &str, why: &str| {
        let (code, told, ran) = dry_run(&pair, &["--to", to]);
        assert!(code == 3 && ran.err.contains("would be refused because"), "{code} {}", ran.err);
        assert!(told["refused"]["message"].as_str().unwrap_or_default().contains(why), "{told}");
        assert_eq!(pair.a.run(&["volume", "move", "data", "--to", to]).code, 3, "and so does the move");
    };
    refused("a", "this very node");
    assert_eq!(dry_run(&pair, &["--to", "nowhere"]).0, 1);
    pair.b.ask(&["volume", "create", "data", "--size", "1M"]);
    refused("b", "data");
}
