//! A Linux guest whose disk is served over vhost-user-blk by a daemon that dies again and again.
//!
//! The guest reads, rewrites and checks records all the time, so each death finds requests in its queues. It must see
//! a pause and nothing else: no error, no wrong record, and at the end the volume holds what was last written. Its agent
//! is heard by each daemon anew.

use std::{fs, path::Path, process::ExitCode, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{build, guest::Guest, nodes::Nodes};
use crate::{
    Ended,
    guest_image::{self, GuestImage},
    setup, sh,
};

/// Small: it is the requests in flight that matter.
const SIZE: u64 = 64 << 20;
/// Each finds other requests in the queue.
const DEATHS: usize = 5;
/// Of the nodes' link, over which nothing goes here.
const RATE: u64 = 400_000_000;

/// `cargo xtask crash`
pub fn run() -> Ended {
    sh::stage("setup", setup::ensure)?;
    let image = sh::stage("guest", guest_image::build)?;
    sh::stage("build", build)?;
    let folder = std::env::temp_dir().join(format!("gn-crash-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    perform(&image, &folder).with_context(|| format!("logs and disks are kept in {}", folder.display()))?;
    fs::remove_dir_all(&folder)?;
    Ok(ExitCode::SUCCESS)
}

fn perform(image: &GuestImage, folder: &Path) -> Result<()> {
    let nodes = Nodes::start(folder, RATE, Duration::ZERO)?;
    let mut guest = Guest::boot(&nodes, image, SIZE, 7, "vhost-user")?;
    let (mut written, mut beats) = (0, guest.await_agent(&nodes.a, 0)?["seq"].as_u64().unwrap_or(0));
    for death in 1..=DEATHS {
        nodes.a.crash()?;
        // One report may have been on its way; the work that a later one tells of was done by the new daemon.
        guest.work_on()?;
        guest.work_on()?;
        let report = guest.work_on()?;
        let writes = report["writes"].as_u64().context("the report lacks writes")?;
        eprintln!("death {death}: {report}");
        ensure!(writes > written, "after death {death} the guest writes no more: {report}");
        written = writes;
        let agent = guest.await_agent(&nodes.a, beats + 1)?;
        beats = agent["seq"].as_u64().context("the agent has no number")?;
        ensure!(agent["faults"] == 0 && agent["memory_available"].as_u64() > Some(0), "the agent said {agent}");
    }
    let last = guest.stop()?;
    for key in ["corrupt", "errors", "ram_wrong"] {
        ensure!(last[key] == 0, "the guest saw {key}: {last}");
    }
    ensure!(guest.verify(&nodes.a, image)?, "the volume does not hold what the guest wrote");
    Ok(())
}
