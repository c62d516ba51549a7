//! What updates did to VMs: kept for each, and what it lets expect of the next one.
//!
//! ```text
//!   before: what the VM's history lets expect ─┐
//!   the switch: how long the guest stood       ├─► an impact on record ──► the next update of this kind
//!   after: what was measured in the watch     ─┘
//! ```
//!
//! A change is a number after an update less what was expected of it before. Of n earlier changes the next one is
//! within the least and the greatest with probability (n − 1) / (n + 1), if updates of a kind are alike; so that is
//! what is said, and how sure it is, instead of a bound that a handful of updates cannot give.
//!
//! Source: G. Shafer, V. Vovk, "A Tutorial on Conformal Prediction", 2008 (the rank of the next of exchangeable values).

use gnomon_forecast::series::Interval;

use super::watch::unlike;
use crate::{
    api::{
        ApiError,
        types::{
            ChangeView, EarlierUpdates, ImpactView, IntervalView, SeriesView, UpdateKind, UpdateOutlook,
            UpdateVerdict, UpdateVm,
        },
    },
    daemon::{
        Daemon,
        updating::target::Target,
        vitals::{Expected, Rates},
    },
};

/// The numbers that are followed: their names, and where they are.
type Followed = (&'static str, fn(&Expected) -> Interval, fn(&Rates) -> f64);
const FOLLOWED: [Followed; 3] = [
    ("cpu", |expected| expected.cpu, |rates| rates.cpu),
    ("io", |expected| expected.requests, |rates| rates.requests),
    ("memory", |expected| expected.memory, |rates| rates.memory),
];

/// What an update would be like, without touching anything.
pub fn outlook(daemon: &Daemon, name: &str, ask: &UpdateVm) -> Result<UpdateOutlook, ApiError> {
    let vm = daemon.vms.get(name)?;
    let target = Target::of(daemon, &vm, ask)?;
    Ok(UpdateOutlook {
        kind: target.kind,
        from: target.from.clone(),
        to: target.to_string(),
        refused: target.check(&vm).err(),
        earlier: earlier(daemon, name, target.kind)?,
        history: daemon.records.impacts(Some(name))?,
    })
}

/// What earlier updates of a kind let expect: the VM's own, and when it has none, those of all VMs of this node.
pub fn earlier(daemon: &Daemon, name: &str, kind: UpdateKind) -> Result<EarlierUpdates, ApiError> {
    let of_kind = |vm| -> Result<Vec<ImpactView>, ApiError> {
        Ok(daemon.records.impacts(vm)?.into_iter().filter(|impact| impact.kind == kind).collect())
    };
    let own = of_kind(Some(name))?;
    Ok(match own.is_empty() {
        true => EarlierUpdates { own: false, ..summed_up(&of_kind(None)?) },
        false => summed_up(&own),
    })
}

/// What a VM's numbers were before an update, and after it.
pub fn series(expected: Option<Expected>, after: Option<Rates>) -> Vec<SeriesView> {
    let (Some(expected), Some(after)) = (expected, after) else { return Vec::new() };
    let one = |(name, before, now): Followed| {
        let (before, after) = (before(&expected), now(&after));
        let Interval { low, middle, high } = before;
        let is_against = unlike(name, after, before).is_against();
        SeriesView { name: name.to_string(), expected: IntervalView { low, middle, high }, after, is_against }
    };
    FOLLOWED.into_iter().map(one).collect()
}

/// What these updates let expect of one that is like them.
fn summed_up(impacts: &[ImpactView]) -> EarlierUpdates {
    let mut earlier = EarlierUpdates { updates: impacts.len() as u64, own: true, ..EarlierUpdates::default() };
    for impact in impacts {
        *earlier.verdicts.entry(impact.verdict).or_default() += 1;
    }
    earlier.gap_ms_median = median(impacts.iter().filter_map(|impact| impact.gap_ms).collect());
    // What was refused changed nothing, and would say that nothing changes.
    let made = || impacts.iter().filter(|impact| impact.verdict != UpdateVerdict::Refused);
    for (name, ..) in FOLLOWED {
        let of_this = made().flat_map(|impact| &impact.series).filter(|series| series.name == name);
        earlier.changes.extend(change(name, of_this.map(|series| series.after - series.expected.middle).collect()));
    }
    earlier
}

/// Where the next change of a number is, by those before.
fn change(name: &str, mut before: Vec<f64>) -> Option<ChangeView> {
    before.retain(|change| change.is_finite());
    before.sort_unstable_by(f64::total_cmp);
    let (low, high) = (*before.first()?, *before.last()?);
    let from = before.len() as u64;
    let coverage = (from - 1) as f64 / (from + 1) as f64;
    let change = IntervalView { low, middle: median(before)?, high };
    Some(ChangeView { name: name.to_string(), from, change, coverage })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[half]),
        _ => Some(f64::midpoint(values[half - 1], values[half])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(middle: f64) -> Expected {
        let around = |middle: f64| Interval { low: middle * 0.9, middle, high: middle * 1.1 };
        Expected { cpu: around(middle), requests: around(100.0 * middle), memory: around(1e6 * middle) }
    }

    fn impact(verdict: UpdateVerdict, gap_ms: Option<f64>, cpu: f64) -> ImpactView {
        let after = Rates { cpu, requests: 100.0, memory: 1e6 };
        ImpactView {
            at: 1.0,
            vm: "web".into(),
            kind: UpdateKind::Qemu,
            from: "QEMU 7.2.22".into(),
            to: "QEMU 10.0.2".into(),
            verdict,
            gap_ms,
            series: series(Some(expected(1.0)), Some(after)),
            command: None,
        }
    }

    #[test]
    fn a_number_far_above_what_was_expected_speaks_against() {
        let judged = |cpu| impact(UpdateVerdict::Done, None, cpu).series[0].is_against;
        // The interval is 0.9 to 1.1; three widths beyond it is too far.
        assert!(!judged(0.1) && !judged(1.6) && judged(1.8));
        assert_eq!(series(None, Some(Rates { cpu: 1.0, requests: 1.0, memory: 1.0 })), []);
        assert_eq!(series(Some(expected(1.0)), None), []);
    }

    #[test]
    fn earlier_updates_are_summed_up() {
        let none = summed_up(&[]);
        assert!(none.updates == 0 && none.changes.is_empty() && none.gap_ms_median.is_none());
        let one = summed_up(&[impact(UpdateVerdict::Done, Some(20.0), 1.5)]);
        assert_eq!(
            (one.gap_ms_median, one.changes[0].coverage, one.changes[0].change.middle),
            (Some(20.0), 0.0, 0.5)
        );
        let some = summed_up(&[
            impact(UpdateVerdict::Done, Some(20.0), 1.25),
            impact(UpdateVerdict::Refused, None, 9.0),
            impact(UpdateVerdict::TakenBack, Some(40.0), 2.0),
            impact(UpdateVerdict::Done, Some(21.0), 0.75),
        ]);
        assert_eq!((some.updates, some.gap_ms_median), (4, Some(21.0)));
        let verdicts: Vec<_> = some.verdicts.into_iter().collect();
        let told = [(UpdateVerdict::Done, 2), (UpdateVerdict::Refused, 1), (UpdateVerdict::TakenBack, 1)];
        assert_eq!(verdicts, told);
        let cpu = &some.changes[0];
        let IntervalView { low, middle, high } = cpu.change;
        assert_eq!((cpu.name.as_str(), cpu.from, low, middle, high, cpu.coverage), ("cpu", 3, -0.25, 0.25, 1.0, 0.5));
    }

    #[test]
    fn a_change_is_within_those_before() {
        let table = [
            (vec![], None),
            (vec![f64::NAN, f64::INFINITY], None),
            (vec![3.0], Some((3.0, 3.0, 3.0, 0.0))),
            (vec![3.0, f64::NAN, -1.0], Some((-1.0, 1.0, 3.0, 1.0 / 3.0))),
            (vec![f64::MAX, f64::MIN], Some((f64::MIN, 0.0, f64::MAX, 1.0 / 3.0))),
        ];
        for (before, told) in table {
            let got = change("cpu", before).map(|got| {
                let IntervalView { low, middle, high } = got.change;
                (low, middle, high, got.coverage)
            });
            assert_eq!(got, told);
        }
    }
}
