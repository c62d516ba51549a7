//! More memory for the guest while it works: from what is staged for its trust group, or as a host gives it that has
//! nothing ready; and what takes it back.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    client::{Client, PATIENCE},
    run::{VM, now},
};
use crate::demo::nodes::Node;

const GROUP: &str = "db";
/// Between two looks at accounts, which tell nobody.
const LOOK: Duration = Duration::from_millis(50);

/// A trust group for which some memory is kept staged, on a node on which the guest runs.
pub struct Pool<'a> {
    node: &'a Node,
    bytes: u64,
}

/// Something that was done to the guest's memory.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// From the request, in microseconds since 1970.
    pub from: u64,
    /// Until the host said that it was done.
    pub to: u64,
    /// Bytes of staged memory.
    pub staged: u64,
    /// In how many pieces.
    pub dimms: u64,
}

impl<'a> Pool<'a> {
    /// A group with nobody in it; `bytes` are to be staged for it.
    pub fn open(node: &'a Node, bytes: u64) -> Result<Pool<'a>> {
        let (budget, reserve) = ((2 * bytes).to_string(), bytes.to_string());
        node.ask(&["group", "create", GROUP, "--budget", &budget, "--reserve", &reserve, "--max-age", "1h"])?;
        Ok(Pool { node, bytes })
    }

    /// Has the guest in the group, with all of its memory staged.
    pub fn join(&self) -> Result<()> {
        self.node.ask(&["group", "add", GROUP, VM])?;
        self.await_staged()
    }

    /// Has the guest in no group: what it is given is cold.
    pub fn leave(&self) -> Result<()> {
        self.node.ask(&["group", "remove", GROUP, VM]).map(drop)
    }

    /// Waits until all that is to be staged is, and nothing is on its way.
    pub fn await_staged(&self) -> Result<()> {
        self.await_accounts("hold what is to be staged", |accounts| {
            accounts["staged"].as_u64() >= Some(self.bytes) && accounts["populating"] == 0 && accounts["leaving"] == 0
        })
    }

    /// Gives the guest what the pool is for.
    pub fn grow(&self) -> Result<Change> {
        let from = now()?;
        let change = self.node.ask(&["vm", "memory", VM, "--grow", &self.bytes.to_string()])?;
        let number = |key: &str| change[key].as_u64().with_context(|| format!("a change without {key}: {change}"));
        ensure!(number("done")? == self.bytes, "the guest was not given all of it: {change}");
        Ok(Change { from, to: now()?, staged: number("staged")?, dimms: number("dimms")? })
    }

    /// Takes everything back that the guest was given. Under load it may take its time.
    pub fn shrink(&self) -> Result<Change> {
        let (from, began) = (now()?, Instant::now());
        loop {
            let seen = self.node.ask(&["vm", "memory", VM])?;
            let bytes = |key: &str| seen[key].as_u64().with_context(|| format!("a view without {key}: {seen}"));
            let more = bytes("now")? - bytes("boot")?;
            if more == 0 {
                return Ok(Change { from, to: now()?, staged: 0, dimms: 0 });
            }
            let asked = self.node.ask(&["vm", "memory", VM, "--shrink", &more.to_string()]);
            ensure!(began.elapsed() < PATIENCE, "the guest keeps {more} bytes: {asked:?}");
        }
    }

    /// Bytes that were asked for and staged.
    pub fn hit(&self) -> Result<u64> {
        let told = self.node.ask(&["group", "stats", GROUP])?;
        told["requests"]["hit_bytes"].as_u64().with_context(|| format!("a group without hit_bytes: {told}"))
    }

    /// Ends the group, once every block that was ever made is in one place and none at a guest.
    pub fn close(self) -> Result<()> {
        self.await_accounts("balance", |accounts| {
            let of = |key: &str| accounts[key].as_u64();
            let places = ["populating", "staged", "reserved", "leaving", "released"].map(of);
            let sum: Option<u64> = places.into_iter().sum();
            sum.is_some() && of("created") == sum && of("assigned") == Some(0)
        })?;
        self.node.ask(&["group", "rm", GROUP]).map(drop)
    }

    fn await_accounts(&self, wish: &str, fits: impl Fn(&Value) -> bool) -> Result<()> {
        let began = Instant::now();
        loop {
            let accounts = &self.node.ask(&["group", "stats", GROUP])?["accounts"];
            if fits(accounts) {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "the accounts do not {wish}: {accounts}");
            thread::sleep(LOOK);
        }
    }
}

/// Grows the guest by staged memory and takes it back, while it works. That no transaction fails is the client's to say.
pub fn breathe(node: &Node, client: &Client<'_>, bytes: u64, work: impl Fn() -> Result<()>) -> Result<()> {
    let pool = Pool::open(node, bytes)?;
    pool.join()?;
    let before = client.memory_total()?;
    let change = pool.grow()?;
    ensure!(change.staged == bytes && pool.hit()? == bytes, "it was given other memory than was staged: {change:?}");
    let grown = client.memory_total()?;
    ensure!(grown == before + bytes, "the guest had {before} bytes, was given {bytes} and has {grown}");
    work()?;
    pool.shrink()?;
    let after = client.memory_total()?;
    ensure!(after == before, "the guest had {before} bytes, has given back what it was given, and has {after}");
    work()?;
    pool.leave()?;
    pool.close()
}
