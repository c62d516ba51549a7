//! Ours: two daemons, a guest with its disk, and what a user types.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result};

use super::{Deed, Load, Stage, beat_on, gap};
use crate::demo::{
    failover::await_stride,
    guest::{Stream, listen},
    nodes::{Node, Nodes},
    update::Lanes,
};

const VM: &str = "switched";
const VOLUME: &str = "disk";
const HEARTBEAT: &str = "gnomon.heartbeat";
const REPORT: &str = "gnomon.report";

/// Checkpoints before a guest is handed over: a shadow in its stride.
const STRIDE: u64 = 5;

/// Two nodes.
pub(super) struct Ours<'a> {
    stage: &'a Stage<'a>,
    nodes: Nodes,
}

impl<'a> Ours<'a> {
    /// Starts both daemons.
    pub fn start(stage: &'a Stage<'a>) -> Result<Ours<'a>> {
        Ok(Ours { stage, nodes: Nodes::side_by_side(stage.folder)? })
    }

    /// Boots a guest, does the deed so often, and ends it.
    pub fn gaps(&mut self, load: Load, deed: Deed, count: usize, gaps: &mut Vec<f64>) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let mut beats = self.boot(load)?;
        let (mut here, mut there) = (&self.nodes.a, &self.nodes.b);
        let mut newer = false;
        for _ in 0..count {
            let after = match deed {
                Deed::Switchover => {
                    let after = switch_over(here, there, self.stage.began)?;
                    (here, there) = (there, here);
                    after
                }
                Deed::Upgrade => {
                    newer = !newer;
                    self.upgrade(here, newer)?
                }
            };
            beat_on(&after)?;
            gaps.push(gap(&beats, &after)?);
            beats = after;
        }
        here.ask(&["vm", "stop", VM, "--force"])?;
        // A node keeps the copy of a guest that has gone.
        for node in [here, there] {
            if node.ask(&["volume", "show", VOLUME]).is_ok() {
                node.ask(&["volume", "rm", VOLUME, "--yes"])?;
            }
        }
        Ok(())
    }

    fn boot(&self, load: Load) -> Result<Stream> {
        let a = &self.nodes.a;
        a.ask(&["volume", "import", VOLUME, "--file", text(self.stage.disk)?])?;
        let (memory, line) = (format!("{}KiB", load.memory_kib()), load.kernel_line());
        let (kernel, initrd) = (text(&self.stage.image.kernel)?, text(&self.stage.image.initrd)?);
        let run = ["vm", "run", VM, "--memory", &memory, "--disk", VOLUME, "--kernel", kernel, "--initrd", initrd];
        let rest = ["--append", &line, "--port", HEARTBEAT, "--port", REPORT, "--accel", "tcg"];
        a.ask(&[&run[..], &rest].concat())?;
        let beats = listen(heartbeat(a), self.stage.began);
        beat_on(&beats)?;
        Ok(beats)
    }

    /// Changes the guest's QEMU: to the newer one, or back to the installed one.
    fn upgrade(&self, node: &Node, newer: bool) -> Result<Stream> {
        let installed = PathBuf::from("/usr/bin/qemu-system-x86_64");
        let qemu = if newer { self.stage.newer } else { &installed };
        let lanes = Lanes::watch(node.run_dir.join("vm").join(VM), HEARTBEAT, self.stage.began);
        node.ask(&["vm", "update", VM, "--qemu", text(qemu)?, "--untried", "--observe", "0.5"])?;
        let shown = node.ask(&["vm", "show", VM])?;
        let ports = shown["ports"].as_array().context("the VM has no ports")?;
        let port = ports.iter().find(|port| port["name"] == HEARTBEAT).context("the VM lost a port")?;
        let socket = Path::new(port["socket"].as_str().context("a port without a socket")?);
        lanes.stream(socket).context("nobody listened to the new QEMU")
    }
}

/// Hands the guest over; what is heard of it at the other node, from before it ran there.
fn switch_over(here: &Node, there: &Node, began: Instant) -> Result<Stream> {
    here.ask(&["vm", "protect", VM, "--on", there.name])?;
    await_stride(here, VM, STRIDE)?;
    let after = listen(heartbeat(there), began);
    here.ask(&["vm", "switchover", VM])?;
    Ok(after)
}

/// Where a daemon offers the guest's heartbeat.
fn heartbeat(node: &Node) -> PathBuf {
    node.run_dir.join("vm").join(VM).join(format!("{HEARTBEAT}.sock"))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
