//! `check`: format, clippy, docs and tidy, each to its end, so that one run tells everything.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{Ended, sh, tidy};

/// Its name, and what it does.
type Stage = (&'static str, fn() -> Result<()>);

/// `cargo xtask check`
pub fn run() -> Ended {
    all()?;
    Ok(ExitCode::SUCCESS)
}

/// All stages; fails at the end when one of them did.
pub fn all() -> Result<()> {
    let stages: [Stage; 4] = [("tidy", tidy::all), ("fmt", fmt), ("clippy", clippy), ("doc", doc)];
    let mut failed = Vec::new();
    for (name, work) in stages {
        if let Err(err) = sh::stage(name, work) {
            eprintln!("{err:#}");
            failed.push(name);
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => bail!("these stages failed: {}", failed.join(", ")),
    }
}

fn fmt() -> Result<()> {
    sh::run(sh::cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let mut cargo = sh::cargo();
    cargo.args(["clippy", "--quiet", "--workspace", "--features", sh::FEATURES, "--all-targets"]);
    sh::run(cargo.args(["--", "-D", "warnings"]))
}

fn doc() -> Result<()> {
    let mut cargo = sh::cargo();
    sh::run(
        cargo
            .args(["doc", "--quiet", "--workspace", "--features", sh::FEATURES, "--no-deps"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}
