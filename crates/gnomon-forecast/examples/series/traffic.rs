//! Traffic between nodes: how much will each flow carry in the next interval, and with whom will a node speak most?
//!
//! NMAE is the sum of absolute errors over the sum of what came, of all flows, in the second half of the trace. The
//! forecast is the 0.5 quantile, of which the mean absolute error is least.

use std::path::Path;

use anyhow::{Result, ensure};
use gnomon_forecast::series::{SeriesBlend, SeriesForecaster, Step};
use serde_json::Value;

use crate::{data, parallel::in_parallel, row};

/// Intervals of 15 minutes.
const DAY: usize = 96;
/// The peers of a node that count.
const PEERS: usize = 3;

/// What is forecast for one flow by each model, step by step.
struct Flow {
    names: Vec<&'static str>,
    said: Vec<Vec<f64>>,
}

/// Rows of all traces that are there.
pub fn run(folder: &Path) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for name in ["geant_2week_0102", "geant_0215"] {
        let path = folder.join(format!("{name}.csv.xz"));
        if !path.exists() {
            eprintln!("traffic: {} is not there", path.display());
            continue;
        }
        let flows = data::geant(&path)?;
        ensure!(flows[0].len() > 2 * DAY, "{name} is shorter than two days");
        let told = in_parallel(&flows, |flow| forecast(flow));
        rows.push(row(format!("{name}, NMAE"), "of what came", false, &errors(&flows, &told)));
        rows.push(row(format!("{name}, top {PEERS} peers"), "% right", true, &peers(&flows, &told)));
    }
    Ok(rows)
}

fn forecast(flow: &[f64]) -> Flow {
    let mut blend = SeriesBlend::new(DAY, 0);
    let mut names: Vec<&'static str> = blend.experts().iter().map(|expert| expert.name).collect();
    names.extend(["blend", "last value", "same time yesterday"]);
    let mut said = Vec::new();
    for (at, value) in flow.iter().enumerate() {
        let last = at.checked_sub(1).map_or(0.0, |at| flow[at]);
        let middle = |told: Option<Vec<f64>>| told.map_or(last, |told| told[0].max(0.0));
        let mut now: Vec<f64> = blend.experts_said(&[0.5]).into_iter().map(middle).collect();
        now.push(middle(blend.quantiles(0, &[0.5])));
        now.extend([last, at.checked_sub(DAY).map_or(last, |at| flow[at])]);
        said.push(now);
        blend.observe(&Step::of(*value));
        blend.tend();
    }
    Flow { names, said }
}

fn errors(flows: &[Vec<f64>], told: &[Flow]) -> Vec<(String, Option<f64>)> {
    let half = flows[0].len() / 2;
    let came: f64 = flows.iter().flat_map(|flow| &flow[half..]).sum();
    let error = |model: usize| -> f64 {
        let of = |(flow, told): (&Vec<f64>, &Flow)| -> f64 {
            (half..flow.len()).map(|at| (flow[at] - told.said[at][model]).abs()).sum()
        };
        flows.iter().zip(told).map(of).sum()
    };
    let names = told[0].names.iter().enumerate();
    names.map(|(model, name)| ((*name).to_owned(), Some(error(model) / came))).collect()
}

/// Of the peers a node speaks most with in an interval, how many were those it was said to.
fn peers(flows: &[Vec<f64>], told: &[Flow]) -> Vec<(String, Option<f64>)> {
    let nodes = flows.len().isqrt();
    let half = flows[0].len() / 2;
    let top = |of: &dyn Fn(usize) -> f64, node: usize| -> Vec<usize> {
        let mut peers: Vec<usize> = (0..nodes).filter(|peer| *peer != node).collect();
        peers.sort_by(|a, b| of(node * nodes + b).total_cmp(&of(node * nodes + a)));
        peers.truncate(PEERS);
        peers
    };
    let intervals = half..flows[0].len();
    let right_at = |model: usize, at: usize, node: usize| -> usize {
        let came = top(&|flow| flows[flow][at], node);
        top(&|flow| told[flow].said[at][model], node).iter().filter(|peer| came.contains(peer)).count()
    };
    let right = |model: usize| -> f64 {
        let all = intervals.clone().flat_map(|at| (0..nodes).map(move |node| (at, node)));
        let right: usize = all.map(|(at, node)| right_at(model, at, node)).sum();
        100.0 * right as f64 / (intervals.len() * nodes * PEERS) as f64
    };
    let names = told[0].names.iter().enumerate();
    names.map(|(model, name)| ((*name).to_owned(), Some(right(model)))).collect()
}
