//! Programs we call, and where things are.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, bail};

/// What is tested and checked beyond the defaults: the store of a cluster. One flag for all of it, so that no crate is
/// compiled twice.
pub const FEATURES: &str = "gnomon/etcd";

/// The checkout's root.
pub fn root() -> PathBuf {
    // The manifest's folder is xtask itself; its parent is the workspace.
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}

/// Where cargo puts what it builds, as this process was told.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Things fetched once and kept: target/gnomon-cache.
pub fn cache() -> PathBuf {
    target().join("gnomon-cache")
}

/// Cargo, the one that runs us, in the checkout's root.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Runs a command with its output shown; fails with the command's words when it does.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {command:?}"))?;
    match status.success() {
        true => Ok(()),
        false => bail!("{command:?}: {status}"),
    }
}

/// Runs a command whose output is not ours to print on standard output, which may carry JSON.
pub fn run_aside(command: &mut Command) -> Result<()> {
    run(command.stdout(std::io::stderr()))
}

/// Runs a command and returns its standard output; fails with its error output.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Does a stage of the work and says how long it took.
pub fn stage<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    eprintln!("── {name}");
    let result = work().with_context(|| format!("stage '{name}'"));
    let verdict = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!("── {name}: {verdict} in {:.1} s", started.elapsed().as_secs_f64());
    result
}
