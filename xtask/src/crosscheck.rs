//! `crosscheck`: the networks of gnomon-forecast beside candle's. A workspace of its own, because building candle takes
//! minutes that neither the project nor its CI should spend.

use std::process::ExitCode;

use crate::{Ended, sh};

/// `cargo xtask crosscheck`
pub fn run() -> Ended {
    let mut check = sh::cargo();
    check.args(["run", "--release", "--quiet", "--manifest-path", "crosscheck/Cargo.toml", "--target-dir"]);
    check.arg(sh::target().join("crosscheck"));
    // Ours has one thread, so candle gets no more.
    check.env("RAYON_NUM_THREADS", "1");
    sh::stage("build and compare", || sh::run(&mut check))?;
    Ok(ExitCode::SUCCESS)
}
