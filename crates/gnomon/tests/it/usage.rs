//! Exit codes, help, and what a user is told who did something wrong.

use std::fs;

use crate::house::{House, gnomon};

#[test]
fn wrong_usage_ends_with_2() {
    let table: [&[&str]; 6] = [
        &["volume", "fly"],
        &["volume", "create", "../x", "--size", "1G"],
        &["volume", "create", "x", "--size", "many"],
        &["vm", "run", "x", "--memory", "64M"],
        &["vm", "move", "x"],
        &["trace", "info", "a.txt"],
    ];
    for args in table {
        let ran = gnomon(args);
        assert_eq!(ran.code, 2, "{args:?}: {}", ran.err);
    }
}

#[test]
fn without_a_daemon_the_user_is_told_how_to_start_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("none.sock").display().to_string();
    let ran = gnomon(&["--socket", &socket, "volume", "ls"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains(&socket) && ran.err.contains("gnomon serve"), "{}", ran.err);
}

#[test]
fn a_wrong_configuration_names_key_value_and_remedy() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("gnomon.toml");
    let table = [
        ("[link]\nlisten = 'here'\npki = '/p'", ["link.listen", "here", "address:port"]),
        ("[volume]\ndirectory = '/x'", ["directory", "unknown", "nbd_socket"]),
        ("[node", ["gnomon.toml", "not understood", "1"]),
    ];
    for (text, expected) in table {
        fs::write(&file, text).expect("written");
        let ran = gnomon(&["serve", "--config", &file.display().to_string()]);
        assert_eq!(ran.code, 2, "{text}: {}", ran.err);
        for word in expected {
            assert!(ran.err.contains(word), "{text}: {} lacks {word}", ran.err);
        }
    }
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = gnomon(&["completions", shell]);
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("serve-file") && ran.out.contains("rollback"), "{shell}");
    }
}

#[test]
fn a_second_daemon_on_the_same_state_is_refused() {
    let house = House::new();
    let ran = gnomon(&["serve", "--config", &house.config().display().to_string()]);
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("another daemon"), "{}", ran.err);
    assert_eq!(house.run(&["volume", "ls"]).code, 0, "the first one still answers");
}

#[test]
fn the_api_describes_itself() {
    let house = House::new();
    let document: serde_json::Value = serde_json::from_str(&house.http("/openapi.json")).expect("JSON");
    let paths = document["paths"].as_object().expect("paths");
    for path in ["/v1/volumes", "/v1/vms/{name}/move", "/v1/jobs/{id}"] {
        assert!(paths.contains_key(path), "{path}");
    }
    let ran: serde_json::Value = serde_json::from_str(&house.http("/v1/volumes/none")).expect("JSON");
    assert_eq!(ran["kind"], "not_found");
}

#[test]
fn doctor_looks_at_this_host() {
    let house = House::new();
    let report = gnomon(&["doctor", "--json", "--config", &house.config().display().to_string()]).json();
    assert_eq!(report["node"], "a");
    assert!(report["volume_space"].as_u64() > Some(0), "{report}");
    assert!(report["host"]["qemus"].as_array().is_some_and(|qemus| !qemus.is_empty()), "{report}");
}

#[test]
fn two_nodes_are_issued_by_one_authority() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name).display().to_string();
    for (name, new) in [("a", true), ("b", false)] {
        let args = ["--json", "node", "init", "--dir", &path(name), "--name", name, "--ca-dir", &path("ca")];
        assert_eq!(gnomon(&args).json()["new_authority"], new);
    }
    let authority = |node: &str| fs::read(dir.path().join(node).join("ca.pem")).expect("written");
    assert_eq!(authority("a"), authority("b"));
}
