//! `test`: everything CI runs, by the same names as on a desk.
//!
//! One profile for all tests, `test` with `opt-level = 1`: on two cores it compiles nearly as fast as none at all, and
//! checksums, hashes and the replay of traces run several times faster, so the whole is shorter than either extreme.
//! They run with [`sh::FEATURES`]; the crash test after them builds the program without any, so that both are built.
//! The tests come last: their lines are what a reader of the log looks for.

use std::process::ExitCode;

use crate::{Ended, agent_image, check, demo, guest_image, newer_qemu, postgres, setup, sh, two_nodes};

/// `cargo xtask test`
pub fn run() -> Ended {
    sh::stage("setup", setup::ensure)?;
    let newer_qemu = sh::stage("newer QEMU", newer_qemu::ensure)?;
    // Tests that need a Linux guest find it in the cache.
    sh::stage("guest", guest_image::build)?;
    sh::stage("guest with QEMU's agent", agent_image::build)?;
    let checked = check::all();
    // Colours would hide the words from whoever searches the log.
    let mut cargo = sh::cargo();
    cargo.args(["test", "--workspace", "--features", sh::FEATURES, "--no-fail-fast", "--color", "never"]);
    cargo.env(newer_qemu::VARIABLE, newer_qemu);
    sh::stage("tests", || sh::run(&mut cargo))?;
    sh::stage("staged memory in a machine with two NUMA nodes", two_nodes::test)?;
    sh::stage("a Linux guest whose disk's server dies", demo::crash::run)?;
    sh::stage("PostgreSQL in a Debian guest whose hosts die", postgres::test)?;
    checked?;
    Ok(ExitCode::SUCCESS)
}
