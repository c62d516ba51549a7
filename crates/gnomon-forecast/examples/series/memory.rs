//! Staged memory: of what guests will ask for in five minutes, how much would have been there, at how much kept idle?
//!
//! A request is the rise of a VM's demand from one step to the next. Before the step `S` is staged, by what is known;
//! `min(S, request)` is hit, the rest of `S` is idle. Staging decides by one knob (the level of the quantile, or the
//! size of a reserve), the same for all pools; a curve of hit bytes over idle bytes results, which is read off at 2, 5, 10
//! and 20 % of the mean demand. *Private*: a pool for each VM; *pooled*: one for 20. Judged after the first third (month 1
//! of Bitbrains), on which models warm up and reserves take their scale. `raw` is the trace; in `hwm1h` a guest keeps
//! what it had for an hour.

use std::path::Path;

use anyhow::{Result, ensure};
use gnomon_forecast::series::{ExpertView, GroupDemand};
use gnomon_terms::Instant;
use serde_json::{Value, json};

use crate::{
    demands::{self, Demands},
    parallel::in_parallel,
    round, row,
};

/// VMs that are looked at, and in one pool.
const VMS: usize = 100;
const POOL: usize = 20;
/// VMs of which each is looked at by itself.
const PRIVATE: usize = 40;
/// A day of 5-minute steps.
const DAY: usize = 288;
/// Idle bytes, in shares of the mean demand.
const IDLE: [f64; 4] = [0.02, 0.05, 0.1, 0.2];
/// The knob of what forecasts quantiles.
const LEVELS: [f64; 20] = [
    0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.965, 0.98, 0.99, 0.995,
];
/// The knob goes on beyond the highest level, in times what is said for it.
const BEYOND: [f64; 6] = [1.2, 1.5, 2.0, 3.0, 5.0, 9.0];
const SETTINGS: usize = LEVELS.len() + BEYOND.len();
/// The knob of a mean plus so many standard deviations, both following within fifty steps: the best simple rule published.
const DEVIATIONS: [f64; SETTINGS] = [
    -1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.3, 2.6, 3.0, 3.5, 4.0,
    5.0, 6.0, 8.0, 11.0, 15.0,
];
const FOLLOWS: f64 = 0.02;
/// The knob of a reserve of always the same size, in mean requests of the first third.
const RESERVES: [f64; 20] =
    [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0, 50.0];

/// Bytes hit and idle, for each setting of the knob.
type Curve = [(f64, f64); SETTINGS];

/// What one pool showed.
struct Shown {
    asked: f64,
    demand: f64,
    steps: usize,
    curves: Vec<(String, Curve)>,
    experts: Vec<ExpertView>,
}

/// Rows of all traces that are there.
pub fn run(folder: &Path) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    let bitbrains = folder.join("bitbrains_rnd_300vms.csv.zst");
    if bitbrains.exists() {
        let all = demands::bitbrains(&bitbrains)?.pick(VMS);
        ensure!(all.demand.len() >= POOL, "only {} VMs can be used", all.demand.len());
        rows.extend(cases("bitbrains raw", &all, POOL));
        rows.extend(cases("bitbrains hwm1h", &all.kept_for_an_hour(), POOL));
        rows.extend(cases("bitbrains raw", &all.pick(PRIVATE), 1));
    } else {
        eprintln!("memory: {} is not there", bitbrains.display());
    }
    let google = folder.join("google2011_GCD_VMs_1600x24h_5min.tar.gz");
    if google.exists() {
        let all = demands::google(&google)?;
        rows.extend(cases("google2011 raw", &all, POOL));
        rows.extend(cases("google2011 raw", &all.pick(4 * PRIVATE), 1));
    } else {
        eprintln!("memory: {} is not there", google.display());
    }
    Ok(rows)
}

/// The rows of one trace with pools of so many VMs.
fn cases(name: &str, all: &Demands, pool: usize) -> Vec<Value> {
    let pools: Vec<Vec<usize>> = all.pools(pool);
    let shown = in_parallel(&pools, |members| live(all, members));
    let (asked, held) = (sum(&shown, |s| s.asked), sum(&shown, |s| s.demand));
    let names: Vec<String> = shown[0].curves.iter().map(|(name, _)| name.clone()).collect();
    let kind = if pool == 1 { "private".to_owned() } else { format!("pool of {pool}") };
    let mut rows: Vec<Value> = IDLE
        .iter()
        .map(|idle| {
            let mut told: Vec<(String, Option<f64>)> = names
                .iter()
                .enumerate()
                .map(|(at, name)| {
                    (name.clone(), read_off(&total(&shown, at), idle * held).map(|hit| 100.0 * hit / asked))
                })
                .collect();
            told.push(("oracle".to_owned(), Some(100.0)));
            row(format!("{name}, {kind}, {:.0} % idle", idle * 100.0), "% hit", true, &told)
        })
        .collect();
    eprintln!("{name}, {kind}: {} pools are done", pools.len());
    let steps: usize = shown.iter().map(|s| s.steps).sum();
    rows.push(json!({ "case": format!("{name}, {kind}, experts"), "pools": pools.len(), "steps": steps,
        "experts": experts(&shown) }));
    rows
}

/// The life of one pool.
fn live(all: &Demands, members: &[usize]) -> Shown {
    let steps = all.demand[members[0]].len();
    let begun = std::time::Instant::now();
    let mut clock = || Instant::from_nanos(begun.elapsed().as_nanos() as u64);
    let mut group = GroupDemand::new(DAY, 0);
    for vm in members {
        group.join(*vm as u64, all.most[*vm]).expect("a pool is smaller than a group may be");
    }
    let names = group.blend().experts().into_iter().map(|expert| expert.name.to_owned());
    let names = names.chain(["blend", "mean + k sd", "static"].map(str::to_owned));
    let mut shown = Shown {
        asked: 0.0,
        demand: 0.0,
        steps: 0,
        curves: names.map(|name| (name, Curve::default())).collect(),
        experts: Vec::new(),
    };
    let (mut mean, mut demand, mut follows) = (0.0, 0.0, (0.0, 0.0));
    for step in 0..steps {
        let judged = step > steps / 3;
        let staged = judged.then(|| stage(&group, mean / (steps / 3) as f64, follows));
        for vm in members {
            group.demand(*vm as u64, all.demand[*vm][step]).expect("the trace keeps within its capacity");
        }
        let asked = group.end_step_timed(&mut clock).value.unwrap_or(0.0);
        let off = asked - follows.0;
        follows = (follows.0 + FOLLOWS * off, (1.0 - FOLLOWS) * (follows.1 + FOLLOWS * off * off));
        match staged {
            None => mean += asked,
            Some(staged) => {
                shown.judge(&staged, asked);
                demand += members.iter().map(|vm| all.demand[*vm][step]).sum::<f64>();
            }
        }
    }
    (shown.demand, shown.experts) = (demand, group.blend().experts());
    shown
}

/// What each would stage for each setting of its knob; `follows` is a mean and a variance.
fn stage(group: &GroupDemand, mean: f64, follows: (f64, f64)) -> Vec<Vec<f64>> {
    let blend = group.blend();
    let experts = blend.experts_said(&LEVELS).into_iter().chain(std::iter::once(group.will_ask(0, &LEVELS)));
    let settings = |mut said: Vec<f64>| -> Vec<f64> {
        let highest = said.last().copied().unwrap_or(0.0);
        said.extend(BEYOND.map(|times| times * highest));
        said
    };
    let experts = experts.map(|said| settings(said.unwrap_or_else(|| vec![0.0; LEVELS.len()])));
    let deviations = DEVIATIONS.map(|times| (follows.0 + times * follows.1.sqrt()).max(0.0)).to_vec();
    experts
        .chain(std::iter::once(deviations))
        .chain(std::iter::once(RESERVES.map(|reserve| reserve * mean).to_vec()))
        .collect()
}

impl Shown {
    fn judge(&mut self, staged: &[Vec<f64>], asked: f64) {
        self.asked += asked;
        self.steps += 1;
        for ((_, curve), staged) in self.curves.iter_mut().zip(staged) {
            for (point, staged) in curve.iter_mut().zip(staged) {
                let hit = staged.max(0.0).min(asked);
                *point = (point.0 + hit, point.1 + staged.max(0.0) - hit);
            }
        }
    }
}

fn sum(shown: &[Shown], of: impl Fn(&Shown) -> f64) -> f64 {
    shown.iter().map(of).sum()
}

fn total(shown: &[Shown], curve: usize) -> Curve {
    let mut total = Curve::default();
    for shown in shown {
        for (sum, point) in total.iter_mut().zip(&shown.curves[curve].1) {
            *sum = (sum.0 + point.0, sum.1 + point.1);
        }
    }
    total
}

/// The bytes hit where so many are idle, on straight lines from nothing through all settings; `None` beyond the last.
fn read_off(curve: &Curve, idle: f64) -> Option<f64> {
    let mut before = (0.0, 0.0);
    for point in curve {
        if point.1 >= idle {
            let share = (idle - before.1) / (point.1 - before.1).max(f64::MIN_POSITIVE);
            return Some(before.0 + share * (point.0 - before.0));
        }
        before = *point;
    }
    None
}

/// Means over pools.
fn experts(shown: &[Shown]) -> Vec<Value> {
    let number = shown.len() as f64;
    let mean = |at: usize, of: &dyn Fn(&ExpertView) -> f64| round(sum(shown, |s| of(&s.experts[at])) / number);
    (0..shown[0].experts.len())
        .map(|at| {
            json!({
                "name": shown[0].experts[at].name,
                "weight": mean(at, &|expert| f64::from(expert.weight)),
                "loss": mean(at, &|expert| expert.score.loss),
                "covered": mean(at, &|expert| expert.score.covered),
                "micros": mean(at, &|expert| expert.micros),
                "bytes": mean(at, &|expert| expert.bytes as f64),
            })
        })
        .collect()
}
