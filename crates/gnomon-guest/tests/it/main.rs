//! The program as a user runs it: fill a disk, run the workload on it, verify every record.

use std::{
    fs::OpenOptions,
    os::unix::fs::FileExt,
    path::Path,
    process::{Command, Output},
};

const RECORDS: &str = "2000";

fn guest(deed: &str, disk: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gnomon-guest"));
    command.arg(deed).arg("--file").arg(disk).args(["--seed", "42"]).args(more).output().expect("the program starts")
}

fn worked(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn what_was_run_verifies_and_damage_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, dump) = (folder.path().join("disk"), folder.path().join("versions"));
    let versions = ["--versions", dump.to_str().unwrap()];
    worked(&guest("fill", &disk, &["--records", RECORDS]));
    worked(&guest("verify", &disk, &["--records", RECORDS]));

    let rates = ["--seconds", "1", "--read-iops", "2000", "--write-iops", "2000", "--buf", "1"];
    let told = worked(&guest("run", &disk, &[&rates[..], &versions[..]].concat()));
    let last = told.lines().last().unwrap();
    assert!(last.starts_with("{\"kind\":\"final\"") && last.contains("\"corrupt\":0,\"errors\":0"), "{told}");
    assert!(!last.contains("\"writes\":0,"), "nothing was written: {told}");
    worked(&guest("verify", &disk, &versions));

    // Against version 0 the rewritten records must show, or the workload wrote nothing.
    assert!(!guest("verify", &disk, &["--records", RECORDS]).status.success());
    let file = OpenOptions::new().write(true).open(&disk).unwrap();
    file.write_all_at(&[0xff; 512], 1999 * 4096 + 512).unwrap();
    let verdict = guest("verify", &disk, &versions);
    let text = String::from_utf8_lossy(&verdict.stdout).into_owned();
    assert!(!verdict.status.success() && text.contains("\"corrupt\":1,") && text.contains("record 1999"), "{text}");
}

#[test]
fn a_disk_that_was_never_filled_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let output = guest("run", &disk, &["--seconds", "1"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("is the disk filled?"));
}

#[test]
fn wrong_usage_is_told() {
    let output = guest("run", Path::new("/nowhere"), &["--sed", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sed=1"));
}
