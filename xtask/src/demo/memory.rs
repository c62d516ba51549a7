//! The fourth act: a guest needs more memory than it has, at once. It is given more: staged ahead for its trust group, and
//! for comparison as a host gives it that has nothing ready.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{guest::connect, nodes::Node};
use crate::guest_image::GuestImage;

const VM: &str = "burst";
const GROUP: &str = "demo";
const REPORT: &str = "gnomon.report";
/// It has this much to begin with, and may have this much.
const MEMORY: &str = "256M";
const MOST: &str = "768M";
/// What its program takes at once: more than it has, by two blocks of a guest's memory.
const BURST_MIB: u64 = 320;
/// What it is given then.
const GROWS: &str = "256M";
/// What is kept staged: a burst's worth.
const STAGED: u64 = 256 << 20;
/// Bursts of each kind, in turns: the machine is as busy for the one as for the other.
const ROUNDS: usize = 3;
/// How long a guest may take to boot, and staging to be through, on a busy machine.
const WITHIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// What the fourth act told: medians of all rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Told {
    /// With memory that was staged.
    pub staged: Burst,
    /// With memory that was not.
    pub cold: Burst,
    /// Pages that were not as the guest wrote them.
    pub wrong: u64,
}

/// How a burst went.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Burst {
    /// From the request until the host said that the guest has it, milliseconds.
    pub given_ms: f64,
    /// How long the program waited for memory, milliseconds.
    pub waited_ms: f64,
    /// How long it took to have and fill all that it wanted, milliseconds.
    pub whole_ms: f64,
}

/// Plays it on a node.
pub fn play(node: &Node, image: &GuestImage) -> Result<Told> {
    node.ask(&["group", "create", GROUP, "--budget", "512M", "--reserve", GROWS, "--max-age", "1h"])?;
    let mut guest = Guest::boot(node, image)?;
    let (mut staged, mut cold) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        node.ask(&["group", "add", GROUP, VM])?;
        await_staged(node)?;
        staged.push(guest.burst(true)?);
        node.ask(&["group", "remove", GROUP, VM])?;
        cold.push(guest.burst(false)?);
    }
    let told = Told { staged: median(&staged), cold: median(&cold), wrong: guest.wrong };
    node.ask(&["vm", "stop", VM, "--force"])?;
    node.ask(&["group", "rm", GROUP])?;
    Ok(told)
}

fn await_staged(node: &Node) -> Result<()> {
    let began = Instant::now();
    loop {
        let accounts = &node.ask(&["group", "stats", GROUP])?["accounts"];
        if accounts["staged"].as_u64() >= Some(STAGED) {
            return Ok(());
        }
        ensure!(began.elapsed() < WITHIN, "nothing is staged: {accounts}");
        std::thread::sleep(LOOK);
    }
}

struct Guest<'a> {
    node: &'a Node,
    port: BufReader<UnixStream>,
    wrong: u64,
}

impl<'a> Guest<'a> {
    fn boot(node: &'a Node, image: &GuestImage) -> Result<Guest<'a>> {
        let path = |path: &std::path::Path| path.to_str().map(str::to_owned).context("a path that is not UTF-8");
        let (kernel, initrd) = (path(&image.kernel)?, path(&image.initrd)?);
        let run =
            ["vm", "run", VM, "--memory", MEMORY, "--max-memory", MOST, "--kernel", &kernel, "--initrd", &initrd];
        // New memory is used at once, and can be given back.
        let append = "console=ttyS0 quiet panic=-1 memhp_default_state=online_movable gn.memory=1";
        node.ask(&[&run[..], &["--append", append, "--port", REPORT]].concat())?;
        let port = connect(&node.run_dir.join("vm").join(VM).join(format!("{REPORT}.sock")), WITHIN)?;
        let mut guest = Guest { node, port, wrong: 0 };
        guest.hear("ready")?;
        Ok(guest)
    }

    /// The program begins, stands for want of memory, is given some, and ends; all of it is given back.
    fn burst(&mut self, staged: bool) -> Result<Burst> {
        self.say(&format!("touch {BURST_MIB}"))?;
        let change = self.node.ask(&["vm", "memory", VM, "--grow", GROWS])?;
        let burst = self.hear("touched")?;
        ensure!(burst["mib"] == BURST_MIB, "it did not get all that it wanted: {burst}");
        ensure!((change["staged"].as_u64() > Some(0)) == staged, "it was given other memory than meant: {change}");
        self.say("check")?;
        self.wrong += self.hear("checked")?["wrong"].as_u64().context("a check that says nothing")?;
        self.say("drop")?;
        self.hear("memory")?;
        self.give_back()?;
        let millis = |key: &str| burst[key].as_f64().map(|micros| micros / 1e3).context("a burst without times");
        let given_ms = change["took_ms"].as_f64().context("a change that took no time")?;
        Ok(Burst { given_ms, waited_ms: millis("waited_us")?, whole_ms: millis("micros")? })
    }

    /// A page that is in use for a moment keeps its DIMM: then it is asked again.
    fn give_back(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let asked = self.node.ask(&["vm", "memory", VM, "--shrink", GROWS]);
            let seen = self.node.ask(&["vm", "memory", VM])?;
            if seen["now"] == seen["boot"] {
                return Ok(());
            }
            ensure!(began.elapsed() < WITHIN, "the guest gives nothing back: {asked:?}");
        }
    }

    fn say(&mut self, command: &str) -> Result<()> {
        writeln!(self.port.get_mut(), "{command}").with_context(|| format!("cannot tell the guest to {command}"))
    }

    fn hear(&mut self, kind: &str) -> Result<Value> {
        let mut line = String::new();
        self.port.read_line(&mut line).with_context(|| format!("no '{kind}' of the guest"))?;
        let said: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        ensure!(said["kind"] == kind, "the guest said {said} instead of '{kind}'");
        Ok(said)
    }
}

/// Each time's own median.
fn median(bursts: &[Burst]) -> Burst {
    let of = |time: fn(&Burst) -> f64| {
        let mut times: Vec<f64> = bursts.iter().map(time).collect();
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(0.0)
    };
    Burst { given_ms: of(|b| b.given_ms), waited_ms: of(|b| b.waited_ms), whole_ms: of(|b| b.whole_ms) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_has_its_own_median() {
        let burst = |given_ms, waited_ms, whole_ms| Burst { given_ms, waited_ms, whole_ms };
        let three = [burst(1.0, 9.0, 5.0), burst(3.0, 7.0, 6.0), burst(2.0, 8.0, 4.0)];
        assert_eq!(median(&three), burst(2.0, 8.0, 5.0));
        assert_eq!(median(&[]), Burst::default());
    }
}
