//! `gnomon bench`: benchmarks live in the workshop, where their peers are installed; here is how to call them.

use std::process::Command as Process;

use anyhow::Context as _;
use clap::Subcommand;

use super::{Ended, Failure};

/// `gnomon bench`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Compare our NBD server with nbdkit and qemu-nbd, by fio; needs a checkout
    #[command(after_help = "Examples:\n  cd gnomon && gnomon bench nbd\n  cargo xtask bench nbd")]
    Nbd,
}

pub(super) fn run(command: Command) -> Ended {
    match command {
        Command::Nbd => workshop("nbd"),
    }
}

fn workshop(bench: &str) -> Ended {
    if !std::path::Path::new("xtask/Cargo.toml").exists() {
        return Err(Failure::usage(format!(
            "the benchmark runs in a checkout of gnomon, where its peers are installed: go there and run `cargo xtask bench {bench}`"
        )));
    }
    let status = Process::new("cargo").args(["xtask", "bench", bench]).status().context("cannot run cargo")?;
    match status.success() {
        true => Ok(()),
        false => Err(anyhow::anyhow!("`cargo xtask bench {bench}` failed: {status}").into()),
    }
}
