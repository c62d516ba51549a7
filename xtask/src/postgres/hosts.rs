//! Two hosts and a client on one network, without leaving anything on this machine: namespaces that go with the last
//! process in them.
//!
//! ```text
//!   here      pgbench ── net0 (bridge) ──┬── to-a ═ uplink ── br0 ── tap of the guest     host a
//!                                        └── to-b ═ uplink ── br0 ── tap of the guest     host b
//! ```
//! The process calls itself again within: what is started there, daemons and client, finds that network and no other.

use std::{
    net::Ipv4Addr,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result};

use crate::{demo::nodes::Place, setup, sh};

/// Set within.
const WITHIN: &str = "GNOMON_XTASK_HOSTS";

const NETWORK: &str = include_str!("hosts.sh");

/// The client's address.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The hosts: the namespaces are called as the nodes.
pub const HOSTS: [Place; 2] = [
    Place { namespace: Some("a"), address: Ipv4Addr::new(10, 77, 0, 2) },
    Place { namespace: Some("b"), address: Ipv4Addr::new(10, 77, 0, 3) },
];
/// The guest's address, wherever it runs.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 10);

/// Whether this process was called by [`enter`].
pub fn is_within() -> bool {
    std::env::var_os(WITHIN).is_some()
}

/// Calls this program with `words` within the network, and returns what it ended with. Needs root.
pub fn enter(words: &[String]) -> Result<ExitCode> {
    let status = within(words)?.stdin(Stdio::null()).status().context("cannot start unshare")?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The same, and returns what it wrote to its standard output. Fails when it does.
pub fn ask(words: &[String]) -> Result<String> {
    sh::capture(within(words)?.stderr(Stdio::inherit()))
}

fn within(words: &[String]) -> Result<Command> {
    setup::refuse_unless_root("to make network namespaces, bridges and taps")?;
    let mut within = Command::new("unshare");
    within.args(["--net", "--mount", "sh", "-c", NETWORK, "hosts"]).arg(std::env::current_exe()?).args(words);
    within.env(WITHIN, "1").env("CLIENT", CLIENT.to_string());
    for (name, place) in ["HOST_A", "HOST_B"].iter().zip(HOSTS) {
        within.env(name, place.address.to_string());
    }
    Ok(within)
}
