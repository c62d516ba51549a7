//! The third act: the guest gets a shadow on the other node, its host's QEMU is killed, and the shadow goes on.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::{guest::RETRY, nodes::Node, update::millis};
use crate::sh;

/// How long a daemon may take to see that a QEMU of its own has ended, on a busy machine.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

/// From one checkpoint to the next: what the guest may lose in this act.
pub const INTERVAL: &str = "100ms";

/// Checkpoints before the death: two seconds of them. The first one takes in all that was written while all of the memory
/// was on its way; a death just after it costs more than one in the shadow's stride.
const STRIDE: u64 = 20;

/// How long a shadow may take to get into it, and how often it is looked at.
const STRIDE_WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// What the third act told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    /// From the last heartbeat before the death to the first one after it, milliseconds.
    pub gap_ms: f64,
    /// How much of the guest's own time is gone: what it had done since the last checkpoint that the shadow had,
    /// milliseconds.
    pub lost_ms: f64,
    /// Records, operations and RAM pages that the guest found wrong since it began.
    pub corrupt_records: u64,
}

impl Told {
    /// What the heartbeats on both sides of the death say.
    pub fn of(fall: &super::beats::Fall, corrupt_records: u64) -> Told {
        Told { gap_ms: millis(fall.gap), lost_ms: millis(fall.lost), corrupt_records }
    }
}

/// Gives the guest of `primary` a shadow on `shadow`, where the copy that it left behind when it moved goes first.
pub fn protect(primary: &Node, shadow: &Node, vm: &str, volume: &str) -> Result<()> {
    shadow.ask(&["volume", "rm", volume, "--yes"])?;
    primary.ask(&["vm", "protect", vm, "--on", shadow.name, "--interval", INTERVAL])?;
    await_stride(primary, vm, STRIDE)
}

/// Waits until a shadow that keeps up has sealed so many more checkpoints.
pub fn await_stride(primary: &Node, vm: &str, more: u64) -> Result<()> {
    let (began, mut until) = (Instant::now(), None);
    loop {
        let told = &primary.ask(&["vm", "show", vm])?["protection"];
        if let (Some("protected"), Some(sealed)) = (told["state"].as_str(), told["checkpoint"].as_u64())
            && sealed >= *until.get_or_insert(sealed + more)
        {
            return Ok(());
        }
        ensure!(began.elapsed() < STRIDE_WITHIN, "the shadow does not keep up: {told}");
        thread::sleep(LOOK);
    }
}

/// Kills the guest's QEMU on `primary` as a crash would, and has `shadow` go on: at once when the daemon there has seen
/// it, which would say until then that the guest runs.
pub fn fail_over(primary: &Node, shadow: &Node, vm: &str) -> Result<()> {
    kill(process(primary, vm)?)?;
    let killed = Instant::now();
    while primary.ask(&["vm", "show", vm])?["status"] != "exited" {
        ensure!(killed.elapsed() < SEEN_WITHIN, "node {} does not see that its guest has ended", primary.name);
        thread::sleep(RETRY);
    }
    shadow.ask(&["vm", "failover", vm, "--i-have-fenced", primary.name]).map(drop)
}

/// Kills the daemon of `primary` and the guest's QEMU as the death of their host would, and has `shadow` go on. Returns
/// when the host is back.
pub fn outlive(primary: &Node, shadow: &Node, vm: &str) -> Result<()> {
    let pid = process(primary, vm)?;
    primary.die()?;
    kill(pid)?;
    shadow.ask(&["vm", "failover", vm, "--i-have-fenced", primary.name])?;
    primary.revive()
}

fn process(node: &Node, vm: &str) -> Result<u64> {
    node.ask(&["vm", "show", vm])?["pid"].as_u64().context("the guest has no process")
}

fn kill(pid: u64) -> Result<()> {
    sh::run_aside(Command::new("kill").args(["-KILL", &pid.to_string()]))
}
