//! Images that are not what was told, imports that are given up, and files that changed behind the daemon's back.

use std::fs::{self, OpenOptions};

use serde_json::Value;

use crate::house::{House, await_some, tool};

const MIB: u64 = 1 << 20;

/// What is in the folder of the volumes.
fn files(house: &House) -> Vec<String> {
    let entries = fs::read_dir(house.path("state/volumes")).expect("the folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_cancelled_import_leaves_nothing_behind() {
    let house = House::new();
    // Enough that qemu-img is at work for longer than two requests take.
    fs::write(house.path("large.raw"), vec![0x5a; 512 << 20]).expect("written");
    let job = house.ask(&["volume", "import", "data", "--file", &house.text("large.raw"), "--detach"]);
    let id = job["id"].as_str().expect("an id");
    house.ask(&["job", "cancel", id]);
    let over = || Some(house.look(&format!("/v1/jobs/{id}"))).filter(|job| job["state"] != "running");
    let ended = await_some("the end of the import", String::new, over);
    assert_eq!(ended["state"], "cancelled", "{ended}");
    assert_eq!(files(&house), Vec::<String>::new());
    assert_eq!(house.ask(&["volume", "ls"]), Value::Array(Vec::new()));
    fs::write(house.path("small.raw"), vec![1; MIB as usize]).expect("written");
    house.ask(&["volume", "import", "data", "--file", &house.text("small.raw")]);
    assert!(tool("nbdcopy", &[&house.nbd("data"), "-"]) == vec![1; MIB as usize], "the name can be used again");
}

#[test]
fn a_volume_may_be_larger_than_its_image_and_not_smaller() {
    let house = House::new();
    let image = house.text("image.raw");
    fs::write(&image, vec![7; 3 * MIB as usize]).expect("written");
    let small = house.run(&["volume", "import", "small", "--file", &image, "--size", "2M"]);
    assert!(small.code == 3 && small.err.contains("does not fit"), "{} {}", small.code, small.err);
    assert_eq!(files(&house), Vec::<String>::new());
    house.ask(&["volume", "import", "large", "--file", &image, "--size", "5M"]);
    assert_eq!(house.ask(&["volume", "show", "large"])["size"], 5 * MIB);
    let read = tool("nbdcopy", &[&house.nbd("large"), "-"]);
    assert_eq!(read.len() as u64, 5 * MIB);
    assert!(read[..3 << 20].iter().all(|byte| *byte == 7) && read[3 << 20..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_file_that_was_cut_or_grown_is_not_served() {
    let mut house = House::new();
    house.ask(&["volume", "create", "data", "--size", "8M"]);
    house.ask(&["volume", "create", "other", "--size", "8M"]);
    let path = house.ask(&["volume", "show", "data"])["path"].as_str().expect("a path").to_string();
    for size in [5 * MIB, 9 * MIB] {
        house.stop();
        OpenOptions::new().write(true).open(&path).expect("the file").set_len(size).expect("sized");
        house.start();
        let shown = house.run(&["volume", "show", "data"]);
        assert!(shown.code == 1 && shown.err.contains(&format!("{size} bytes")), "{} {}", shown.code, shown.err);
        let again = house.run(&["volume", "create", "data", "--size", "8M"]);
        assert_eq!(again.code, 3, "its record is not written over: {}", again.err);
        assert_eq!(house.role("other"), "primary", "others are served");
        assert_eq!(house.ask(&["volume", "ls"])[0]["role"], "unusable");
    }
    house.stop();
    OpenOptions::new().write(true).open(&path).expect("the file").set_len(8 * MIB).expect("sized");
    house.start();
    assert_eq!(house.role("data"), "primary", "mended");
    house.stop();
    fs::remove_file(&path).expect("removed");
    house.start();
    assert_eq!(house.run(&["volume", "show", "data"]).code, 1);
    assert_eq!(house.run(&["volume", "rm", "data", "--yes"]).code, 0, "it can be forgotten");
    house.ask(&["volume", "create", "data", "--size", "1M"]);
}

#[test]
fn a_file_that_is_cut_while_it_is_served_is_an_error_and_no_zeroes() {
    let house = House::new();
    house.ask(&["volume", "create", "data", "--size", "8M"]);
    let (uri, path) = (house.nbd("data"), house.ask(&["volume", "show", "data"])["path"].clone());
    tool("qemu-io", &["-f", "raw", "-c", "write -P 9 0 8M", &uri]);
    let file = OpenOptions::new().write(true).open(path.as_str().expect("a path")).expect("the file");
    file.set_len(4 * MIB).expect("cut");
    tool("qemu-io", &["-f", "raw", "-c", "read -P 9 0 4M", &uri]);
    let beyond = std::process::Command::new("qemu-io").args(["-f", "raw", "-c", "read 6M 64k", &uri]).output();
    let beyond = beyond.expect("qemu-io runs");
    let said = String::from_utf8_lossy(&beyond.stdout).into_owned() + &String::from_utf8_lossy(&beyond.stderr);
    assert!(said.contains("error"), "{said}");
}
