//! What planning costs: processor time of a step with 100 and with 1,000 simulated VMs, training told apart.

use gnomon_cycle::staging::{GroupPlanner, Request, StagingConfig, StepReport};
use gnomon_terms::Bytes;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use crate::{life::bits, round};

/// Steps that are measured, after as many that are not: five days, in which trees are trained several times.
const STEPS: usize = 1440;
/// Collection and planning may take so much of one processor for 100 VMs.
const ALLOWED: f64 = 0.01;
const GIB: u64 = 1 << 30;

/// A row for each number of VMs, in groups of 20.
pub fn run() -> Vec<Value> {
    [100, 1000].map(|vms| row(vms, 20)).to_vec()
}

fn row(vms: u64, group: u64) -> Value {
    let mut planners: Vec<GroupPlanner> = (0..vms / group).map(|_| planner(group)).collect();
    let mut bits = bits(vms);
    let (mut planning, mut training) = (Vec::new(), Vec::new());
    for step in 0..2 * STEPS {
        let reports: Vec<StepReport> = planners.iter().map(|_| report(group, &mut bits)).collect();
        let begun = used();
        for (planner, report) in planners.iter_mut().zip(&reports) {
            planner.end_step(report, &mut bits);
        }
        let planned = used() - begun;
        for planner in &mut planners {
            planner.tend();
        }
        if step >= STEPS {
            planning.push(planned * 1e6);
            training.push((used() - begun - planned) * 1e6);
        }
    }
    planning.sort_by(f64::total_cmp);
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    let step = StagingConfig::default().step.as_secs_f64();
    let share = (mean(&planning) + mean(&training)) / 1e6 / step;
    json!({
        "case": format!("planning for {vms} VMs in groups of {group}"),
        "us_per_step_p50": round(planning[STEPS / 2]), "us_per_step_p99": round(planning[STEPS * 99 / 100]),
        "training_us_per_step": round(mean(&training)),
        "core_percent": (share * 1e6).round() / 1e4, "allowed_percent": 100.0 * ALLOWED * vms as f64 / 100.0,
    })
}

/// Processor time of this thread in seconds: what else the machine does does not count.
fn used() -> f64 {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

fn planner(members: u64) -> GroupPlanner {
    let config = StagingConfig { budget: Bytes(64 * GIB), ..StagingConfig::default() };
    let mut planner = GroupPlanner::new(config).expect("the default can be planned in");
    (0..members).for_each(|id| planner.join(id, Bytes(8 * GIB)).expect("there is room"));
    planner
}

/// Each member says what it needs, and one of ten asks for more.
fn report(members: u64, bits: &mut impl FnMut() -> u64) -> StepReport {
    let demands = (0..members).map(|id| (id, Bytes(GIB + bits() % (4 * GIB)))).collect();
    let asking = (0..members).filter(|_| bits().is_multiple_of(10)).collect::<Vec<_>>();
    let request = |member| Request { member, size: Bytes((1 + bits() % 16) << 27), whole: false, hit: Bytes(0) };
    StepReport { demands, requests: asking.into_iter().map(request).collect(), ..StepReport::default() }
}
