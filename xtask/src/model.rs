//! `model`: makes the network that is shipped, from the recordings that are shipped.
//!
//! The recordings are of the project's own guests (`crates/gnomon-forecast/data/README.md`), and `vm_boot_2` is left out:
//! the tests judge the network by it. The same recordings and seed give the same weights on machines whose arithmetic
//! of floats is the same.

use std::process::ExitCode;

use crate::{Ended, sh};

/// What it is trained on, below `crates/gnomon-forecast/data`.
const RECORDINGS: [&str; 2] = ["vm_pg_web.csv.zst", "vm_boot_1.csv.zst"];
/// The network's state: of 16 and 32 numbers the smaller lost less on what was held out, at half the cost.
const HIDDEN: &str = "16";

/// `cargo xtask model`
pub fn run() -> Ended {
    let data = sh::root().join("crates/gnomon-forecast/data");
    let mut train = sh::cargo();
    train.args(["run", "--release", "--quiet", "--package", "gnomon", "--", "forecast", "train"]);
    train.args(RECORDINGS.map(|name| data.join(name)));
    train.args(["--hidden", HIDDEN, "--seed", "1", "--out"]).arg(data.join("default.safetensors"));
    sh::stage("training", || sh::run(&mut train))?;
    Ok(ExitCode::SUCCESS)
}
