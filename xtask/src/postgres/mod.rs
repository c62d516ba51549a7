//! PostgreSQL under pgbench in a Debian guest, handed over and failed over in strict mode: no transaction that a client
//! was told of may be missing afterwards, and no connection may break.
//!
//! Two daemons, each on a host of its own ([`hosts`]); the guest ([`image`]) goes from one to the other and back, by
//! switchover or because its QEMU is killed, while [`client`] works; [`verdict`] holds what the client was told against
//! what the database has.

pub mod client;
mod facts;
pub mod hosts;
pub mod image;
pub mod memory;
pub mod run;
pub mod verdict;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{Ended, args::Args, bench, demo, setup, sh};
use facts::Facts;

/// The run of the test stage: each way once.
const SHORT: Plan = Plan { switchovers: 1, failovers: 2, clients: 4 };

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    switchovers: usize,
    failovers: usize,
    clients: u32,
}

/// How the guest gets to the other host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Switchover,
    /// A failover from a host whose daemon lives.
    QemuDies,
    /// A failover from a host that is gone, daemon and all.
    HostDies,
}

impl Plan {
    fn of(args: &Args) -> Result<Plan> {
        let plan = Plan {
            switchovers: args.number("switchovers", 20)?,
            failovers: args.number("failovers", 20)?,
            clients: args.number("clients", SHORT.clients)?.max(1),
        };
        Ok(plan)
    }

    /// The ways in turn, as long as there are both; of the failovers every second one with the host.
    fn ways(&self) -> Vec<Way> {
        let death = |at: usize| if at.is_multiple_of(2) { Way::QemuDies } else { Way::HostDies };
        let either = |at: usize| {
            let ways = [(Way::Switchover, self.switchovers), (death(at), self.failovers)];
            ways.into_iter().filter_map(move |(way, times)| (at < times).then_some(way))
        };
        (0..self.switchovers.max(self.failovers)).flat_map(either).collect()
    }

    /// The command line that asks for it.
    fn words(&self, json: bool) -> Vec<String> {
        let numbers = [
            ("--switchovers", self.switchovers.to_string()),
            ("--failovers", self.failovers.to_string()),
            ("--clients", self.clients.to_string()),
        ];
        let mut words: Vec<String> = ["bench", "postgres"].map(str::to_owned).into();
        words.extend(numbers.into_iter().flat_map(|(name, number)| [name.to_owned(), number]));
        words.extend(json.then(|| "--json".to_owned()));
        words
    }
}

/// `cargo xtask bench postgres`
pub fn bench(args: &Args) -> Ended {
    let plan = Plan::of(args)?;
    if !hosts::is_within() {
        return prepare().and_then(|()| hosts::enter(&plan.words(args.has("json"))));
    }
    let facts = run::run(&plan, &image::build()?)?;
    match args.has("json") {
        true => println!("{}", told(&facts)?),
        false => print!("{}", facts.words()),
    }
    Ok(if facts.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The stage of `cargo xtask test`.
pub fn test() -> Result<()> {
    prepare()?;
    let code = hosts::enter(&SHORT.words(false))?;
    ensure!(code == ExitCode::SUCCESS, "see above");
    Ok(())
}

/// Everything that a run needs, before the network is entered.
pub fn prepare() -> Result<()> {
    sh::stage("setup", setup::ensure)?;
    sh::stage("a Debian guest with PostgreSQL", image::build)?;
    sh::stage("build", demo::build)
}

fn told(facts: &Facts) -> Result<Value> {
    let machine = bench::machine("tcg").context("what this machine is")?;
    let mut told = json!({ "bench": "postgres", "machine": machine });
    if let (Some(whole), Value::Object(facts)) = (told.as_object_mut(), facts.json()) {
        whole.extend(facts);
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_take_turns() {
        use Way::{HostDies, QemuDies, Switchover};
        let ways = |switchovers, failovers| Plan { switchovers, failovers, clients: 1 }.ways();
        assert_eq!(SHORT.ways(), [Switchover, QemuDies, HostDies]);
        assert_eq!(ways(2, 1), [Switchover, QemuDies, Switchover]);
        assert_eq!(ways(2, 3), [Switchover, QemuDies, Switchover, HostDies, QemuDies]);
        assert_eq!(ways(0, 0), []);
    }

    #[test]
    fn the_plan_survives_the_call_within() {
        let words = SHORT.words(true);
        let args = Args::parse(&words[1..], &["json"], &["switchovers", "failovers", "clients"]).unwrap();
        assert_eq!((Plan::of(&args).unwrap(), args.has("json")), (SHORT, true));
    }
}
