//! Replays of recorded demand through the planner: of what guests asked for, how much would have been there?
//!
//! A request is the rise of a VM's demand from one step of five minutes to the next. Before the step so much is staged, by
//! what is known; what is asked for of that is hit, the rest of it is idle. Read off at 2, 5, 10 and 20 % of the mean demand.
//! Judged after the first third (month 1 of Bitbrains). `raw` is the trace; in `hwm1h` a guest keeps what it had for an hour.

use std::path::Path;

use anyhow::{Result, ensure};
use gnomon_cycle::staging::Privacy;
use gnomon_terms::Bytes;
use serde_json::{Value, json};

use crate::{
    demands::{self, Demands},
    knob::Curve,
    life::{AIM, Shown, live},
    parallel::in_parallel,
    round,
};

/// VMs of Bitbrains that are looked at, and pools of them. By itself each of so many is looked at.
const VMS: usize = 100;
const POOLS: [usize; 3] = [5, 20, 50];
const PRIVATE: usize = 20;
/// Idle bytes, in shares of the mean demand.
const IDLE: [f64; 4] = [0.02, 0.05, 0.1, 0.2];
/// Google's trace is in percent of a machine: of one with 100 GiB, in MiB.
const PERCENT: f64 = 1024.0;
/// The pool that aims are set for.
const USUAL: usize = 20;
/// How models are shown sums with noise, for what that costs: a member adds a gibibyte at most.
const NOISY: Privacy = Privacy { cap: Bytes(1 << 30), shown: 1.0, learned: Some(1.0) };

/// Rows of all traces that are there; the quick ones are pools of the usual size alone.
pub fn run(folder: &Path, quick: bool) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    let (bitbrains, google) =
        (folder.join("bitbrains_rnd_300vms.csv.zst"), folder.join("google2011_GCD_VMs_1600x24h_5min.tar.gz"));
    if bitbrains.exists() {
        let all = demands::bitbrains(&bitbrains)?.pick(VMS);
        ensure!(all.demand.len() >= USUAL, "only {} VMs can be used", all.demand.len());
        rows.extend(cases("bitbrains raw", &all, USUAL, Privacy::default()));
        rows.extend(cases("bitbrains hwm1h", &all.kept_for_an_hour(), USUAL, Privacy::default()));
        if !quick {
            for pool in POOLS.into_iter().filter(|pool| *pool != USUAL) {
                rows.extend(cases("bitbrains raw", &all, pool, Privacy::default()));
            }
            rows.extend(cases("bitbrains raw", &all.pick(PRIVATE), 1, Privacy::default()));
            rows.extend(cases("bitbrains raw, models shown noise", &all, USUAL, NOISY));
        }
    } else {
        eprintln!("memory: {} is not there", bitbrains.display());
    }
    if google.exists() {
        let all = demands::google(&google)?.times(PERCENT);
        for pool in [1, 5, 20, 50].into_iter().filter(|pool| !quick || *pool == USUAL) {
            let all = if pool == 1 { &all.pick(8 * PRIVATE) } else { &all };
            rows.extend(cases("google2011 raw", all, pool, Privacy::default()));
        }
    } else {
        eprintln!("memory: {} is not there", google.display());
    }
    Ok(rows)
}

/// The rows of one trace with pools of so many VMs.
fn cases(name: &str, all: &Demands, pool: usize, privacy: Privacy) -> Vec<Value> {
    let pools = all.pools(pool);
    let shown = in_parallel(&pools, |members| live(all, members, privacy));
    let shown = shown.iter().fold(Shown::default(), Shown::add);
    let name = if pool == 1 { format!("{name}, private") } else { format!("{name}, pool of {pool}") };
    eprintln!("{name}: {} pools are done", pools.len());
    let mut rows: Vec<Value> = IDLE.iter().map(|idle| row(&name, &shown, *idle)).collect();
    rows.push(own(&name, pools.len(), &shown));
    rows
}

fn row(name: &str, shown: &Shown, idle: f64) -> Value {
    let hit = |curve: &Curve| curve.hit_at(idle * shown.held).map(|hit| round(100.0 * hit / shown.asked));
    let (ours, fixed, deviations) = (hit(&shown.planner), hit(&shown.fixed), hit(&shown.deviations));
    let best = fixed.into_iter().chain(deviations).reduce(f64::max);
    json!({
        "case": format!("{name}, {:.0} % idle", idle * 100.0), "unit": "% hit", "better": "higher", "gnomon": ours,
        "ratio_vs_best": ours.zip(best).map(|(ours, best)| round(ours / best)),
        "peers": { "static": fixed, "mean + k sd": deviations, "oracle": 100.0 },
    })
}

/// What came of the planner's own knob, which it turned towards its aim while it went.
fn own(name: &str, pools: usize, shown: &Shown) -> Value {
    let told = |(hit, idle): (f64, f64)| (round(100.0 * hit / shown.asked), round(100.0 * idle / shown.held));
    let ((hit, idle), (blocks_hit, blocks_idle)) = (told(shown.own), told(shown.blocks));
    json!({
        "case": format!("{name}, aimed at {:.0} % idle", AIM * 100.0), "pools": pools, "steps": shown.steps,
        "hit": hit, "idle": idle, "hit_in_blocks": blocks_hit, "idle_in_blocks": blocks_idle,
        "silent": round(shown.silent as f64 / shown.steps.max(1) as f64),
    })
}
