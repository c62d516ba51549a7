//! As much of QEMU's monitor protocol as a peer needs that is driven by hand: a command, its answer.
//!
//! Source: QEMU, docs/interop/qmp-spec.rst.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// How long a QEMU may take to answer on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Looks at a migration that is under way; seldom enough to cost it nothing.
const LOOK: Duration = Duration::from_millis(20);

/// A monitor.
pub(super) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects to a monitor that is there, and ends its greeting.
    pub fn connect(socket: &Path) -> Result<Qmp> {
        let stream = UnixStream::connect(socket).with_context(|| format!("no monitor at {}", socket.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Qmp(BufReader::new(stream));
        qmp.line()?;
        qmp.ask("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// What a command returns.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let asked = json!({ "execute": command, "arguments": arguments });
        writeln!(self.0.get_mut(), "{asked}").with_context(|| command.to_owned())?;
        loop {
            let mut said = self.line()?;
            if let Some(answer) = said.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = said.get("error") {
                bail!("{command}: {error}");
            }
            // Anything else is an event, which nobody here waits for.
        }
    }

    /// Waits until a migration that was begun has ended well.
    pub fn await_migrated(&mut self) -> Result<()> {
        let began = Instant::now();
        loop {
            let told = self.ask("query-migrate", json!({}))?;
            match told["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => bail!("the migration ended: {told}"),
                _ if began.elapsed() > PATIENCE => bail!("the migration does not end: {told}"),
                _ => thread::sleep(LOOK),
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        anyhow::ensure!(self.0.read_line(&mut line)? > 0, "QEMU closed its monitor");
        serde_json::from_str(&line).with_context(|| line.clone())
    }
}
