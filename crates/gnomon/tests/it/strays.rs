//! Spare copies that a move has left behind can be removed, and no others.

use std::fs;

use crate::{
    client::{Client, RECORD},
    house::{Pair, await_some},
};

/// Priming takes 16 seconds: none of these lives to see its end.
const SIZE: u64 = 16 << 20;

/// Two nodes, and a move from a to b that primes.
fn priming() -> Pair {
    let pair = Pair::new();
    fs::write(pair.path("image"), Client::image(SIZE / RECORD as u64, 7)).expect("an image");
    pair.a.ask(&["volume", "import", "data", "--file", &pair.path("image").display().to_string()]);
    pair.a.ask(&["volume", "move", "data", "--to", "b", "--mode", "pre", "--bandwidth", "8mbit", "--detach"]);
    pair.a.await_job("data", |job| job["progress"]["done_bytes"].as_u64() > Some(0));
    pair
}

/// The copy at b cannot be removed, and these words say why.
fn is_kept(pair: &Pair, more: &[&str], words: &str) {
    let ran = pair.b.run(&[&["volume", "rm", "data", "--yes"], more].concat());
    assert!(ran.code == 3 && ran.err.contains(words), "{more:?}: {} {}", ran.code, ran.err);
    assert_eq!(pair.b.role("data"), "shadow");
}

#[test]
fn a_copy_of_a_move_that_was_cancelled_without_its_destination_can_be_removed_there() {
    let mut pair = priming();
    is_kept(&pair, &[], "takes part in a move from node a");
    is_kept(&pair, &["--force"], "takes part in a move from node a");
    pair.b.crash();
    pair.a.run(&["volume", "cancel", "data"]);
    assert_eq!(pair.a.await_end("data")["state"], "cancelled");
    pair.b.start();
    assert_eq!(pair.b.role("data"), "shadow", "nobody has told it");
    let again = pair.a.run(&["volume", "move", "data", "--to", "b"]);
    assert!(again.code == 3 && again.err.contains("another volume"), "{}", again.err);
    assert_eq!(pair.b.run(&["volume", "rm", "data", "--yes"]).code, 0);
    assert_eq!(pair.a.ask(&["volume", "move", "data", "--to", "b"])["state"], "done");
}

#[test]
fn a_copy_whose_source_cannot_be_asked_is_removed_by_force_only() {
    let mut pair = priming();
    pair.a.crash();
    is_kept(&pair, &[], "--force");
    // Its session ends a moment after its source.
    let rm = || pair.b.run(&["volume", "rm", "data", "--yes", "--force"]);
    await_some("its removal", || rm().err, || (rm().code == 0).then_some(()));
    pair.a.start();
    pair.a.run(&["volume", "bandwidth", "data", "none"]);
    assert_eq!(pair.a.await_end("data")["state"], "done", "the move was on, and makes another copy");
    assert_eq!((pair.a.role("data").as_str(), pair.b.role("data").as_str()), ("released", "primary"));
    let whole = pair.a.run(&["volume", "rm", "data", "--yes", "--force"]);
    assert_eq!(whole.code, 0, "{}", whole.err);
}
