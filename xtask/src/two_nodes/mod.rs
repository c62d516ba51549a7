//! Tests of staged memory in a machine that has what most have not: two NUMA nodes, and 2 MiB pages to reserve.
//!
//! ```text
//!   cargo test --no-run, static ──► initramfs ──► QEMU: two processors, two nodes ──► the console's words ──► verdict
//! ```
//! On an ordinary host these tests say that they did not test anything. Here that is a failure, and so is a kind of test
//! of which none ran.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Ended, guest_image::TARGET, initramfs::Archive, kernel, setup, sh};

/// Beginnings of the names of tests that run there; at least one of each has to.
const FILTERS: [&str; 2] = ["huge::", "numa::"];

/// What a test says that cannot be done where it runs.
const SKIPPED: &str = "not tested";

/// Seconds that the machine may take. It takes about twenty under TCG; a busy host takes many times as long.
const PATIENCE: &str = "900";

/// Memory of each node: the kernel, the tests (10 MiB), and room to stage.
const NODE: &str = "512M";

/// Where Debian has a BusyBox that needs no library.
const BUSYBOX: &str = "/bin/busybox";
const INIT: &str = include_str!("init.sh");

/// `cargo xtask numa`
pub fn run() -> Ended {
    sh::stage("setup", setup::ensure)?;
    sh::stage("a machine with two NUMA nodes", test)?;
    Ok(ExitCode::SUCCESS)
}

/// Builds the tests, boots the machine, and fails unless they ran and passed.
pub fn test() -> Result<()> {
    let programs = build()?;
    let kernel = kernel::ensure()?;
    let initrd = sh::cache().join("two-nodes.cpio");
    fs::write(&initrd, pack(&programs)?).with_context(|| format!("cannot write {}", initrd.display()))?;
    let passed = verdict(&boot(&kernel.image, &initrd)?)?;
    eprintln!("{passed} tests passed in a machine with two NUMA nodes");
    Ok(())
}

/// Static programs, without what only a debugger reads: the test itself, and those that it starts, by the paths where it
/// looks for them. In the folder of the guest's other programs, whose flags they share.
fn build() -> Result<Vec<PathBuf>> {
    let target = sh::cache().join("guest-target");
    let mut cargo = sh::cargo();
    cargo.args(["test", "--no-run", "--quiet", "--package", "gnomon-memory", "--test", "it"]);
    cargo.args(["--message-format", "json", "--target", TARGET, "--target-dir"]).arg(target);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").stderr(Stdio::inherit());
    for profile in ["DEV", "TEST"] {
        cargo.env(format!("CARGO_PROFILE_{profile}_DEBUG"), "false");
        cargo.env(format!("CARGO_PROFILE_{profile}_STRIP"), "symbols");
    }
    let programs = programs(&sh::capture(&mut cargo)?);
    ensure!(programs.len() > 1, "cargo built {programs:?}, and a test and its other process were expected");
    Ok(programs)
}

/// The programs that cargo says it has built; the test is the last one.
fn programs(messages: &str) -> Vec<PathBuf> {
    let built = |line: &str| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_test = message["profile"]["test"] == true;
        Some((is_test, PathBuf::from(message["executable"].as_str()?)))
    };
    let programs: BTreeSet<(bool, PathBuf)> = messages.lines().filter_map(built).collect();
    programs.into_iter().map(|(_, path)| path).collect()
}

/// The test is `/tests`; what it starts is where it was on this host.
fn pack(programs: &[PathBuf]) -> Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (test, others) = programs.split_last().context("there is no test")?;
    let mut archive = Archive::default();
    let mut folders = BTreeSet::from(["bin", "dev", "proc", "sys", "tmp"].map(PathBuf::from));
    let inside = |path: &Path| path.strip_prefix("/").map(Path::to_path_buf).context("cargo told a relative path");
    for program in others {
        let above = inside(program)?;
        folders.extend(above.ancestors().skip(1).filter(|folder| folder.parent().is_some()).map(Path::to_path_buf));
    }
    // A folder sorts before what is in it.
    folders.iter().for_each(|folder| archive.folder(&folder.to_string_lossy()));
    archive.file(BUSYBOX.trim_start_matches('/'), &read(Path::new(BUSYBOX))?);
    archive.file("tests", &read(test)?);
    for program in others {
        archive.file(&inside(program)?.to_string_lossy(), &read(program)?);
    }
    archive.file("init", INIT.as_bytes());
    Ok(archive.finish())
}

/// Runs the machine until it is switched off; returns what it said, which is shown meanwhile.
fn boot(kernel: &Path, initrd: &Path) -> Result<String> {
    let mut qemu = Command::new("timeout");
    qemu.args([PATIENCE, "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.args(["-accel", "tcg", "-smp", "2", "-m", "1G", "-serial", "stdio"]);
    for node in 0..2 {
        qemu.args(["-object", &format!("memory-backend-ram,id=node{node},size={NODE}")]);
        qemu.args(["-numa", &format!("node,nodeid={node},memdev=node{node},cpus={node}")]);
    }
    let filters: Vec<String> = FILTERS.iter().map(|filter| format!("gn.test={filter}")).collect();
    let line = format!("console=ttyS0 quiet panic=-1 {}", filters.join(" "));
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd).args(["-append", &line]);
    let mut child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start the machine")?;
    let mut said = String::new();
    let mut console = BufReader::new(child.stdout.take().context("the machine has no console")?);
    let mut line = Vec::new();
    while console.read_until(b'\n', &mut line)? > 0 {
        let words = String::from_utf8_lossy(&line).trim_end().to_owned();
        eprintln!("  {words}");
        said.push_str(&words);
        said.push('\n');
        line.clear();
    }
    let status = child.wait()?;
    ensure!(status.success(), "the machine ended with {status}; its last words are above");
    Ok(said)
}

/// How many tests passed; an error unless all did, each kind was there, and none left anything out.
fn verdict(said: &str) -> Result<usize> {
    ensure!(!said.contains(SKIPPED), "a test had not what it takes, which this machine is made to have: see above");
    for filter in FILTERS {
        ensure!(said.contains(&format!("test {filter}")), "no test of {filter} has run");
    }
    let result = said.lines().find_map(|line| line.strip_prefix("test result: ok. "));
    let passed = result.and_then(|result| result.split(' ').next()?.parse().ok());
    ensure!(said.contains("gnomon: the tests ended with 0"), "the tests failed: see above");
    passed.filter(|passed| *passed > 0).context("the tests did not say how many passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    const WELL: &str = "running 2 tests\ntest huge::pages_are_staged ... ok\ntest numa::blocks_are_bound ... ok\n\n\
                        test result: ok. 2 passed; 0 failed; 0 ignored\n\ngnomon: the tests ended with 0\n";

    #[test]
    fn a_machine_that_tested_nothing_has_not_passed() {
        assert_eq!(verdict(WELL).expect("passed"), 2);
        let table = [
            WELL.replacen("... ok", "... not tested: this takes large pages\nok", 1),
            WELL.replace("test huge::", "test other::"),
            WELL.replace("result: ok. 2", "result: ok. 0"),
            WELL.replace("ended with 0", "ended with 101"),
            "Kernel panic".to_owned(),
        ];
        for said in table {
            assert!(verdict(&said).is_err(), "{said}");
        }
    }

    #[test]
    fn the_test_comes_after_what_it_starts() {
        let messages = "{\"executable\":\"/t/a-test\",\"profile\":{\"test\":true}}\n{\"reason\":\"build-finished\"}\n\
                        {\"executable\":\"/t/z-process\",\"profile\":{\"test\":false}}\n{\"executable\":null}\nnoise\n";
        assert_eq!(programs(messages), ["/t/z-process", "/t/a-test"].map(PathBuf::from));
    }
}
