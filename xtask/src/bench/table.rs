//! What a benchmark tells: one JSON form for machines, one table for people.

use serde_json::{Map, Value, json};

use super::{Better, Row};

/// The one JSON form of all benchmarks.
pub(super) fn json(bench: &str, machine: &Value, rows: &[Row]) -> Value {
    json!({ "bench": bench, "machine": machine, "rows": rows.iter().map(row).collect::<Vec<_>>() })
}

fn row(row: &Row) -> Value {
    let peers: Map<String, Value> = row
        .samples
        .iter()
        .skip(1)
        .map(|(name, samples)| ((*name).to_owned(), json!(round(median(samples)))))
        .collect();
    json!({
        "case": row.case.name,
        "unit": row.case.unit,
        "better": match row.case.better { Better::Higher => "higher", Better::Lower => "lower" },
        "gnomon": round(ours(row)),
        "peers": peers,
        "ratio_vs_best": (ratio(row) * 1000.0).round() / 1000.0,
        "p95": row.samples.iter().map(|(name, all)| ((*name).to_owned(), json!(round(p95(all))))).collect::<Map<_, _>>(),
        "n": row.samples.first().map_or(0, |(_, samples)| samples.len()),
        "spread": row.samples.iter().map(|(_, samples)| spread(samples)).fold(0.0, f64::max),
    })
}

/// A line for each case.
pub(super) fn words(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        text.push_str(&format!("{:<22}", row.case.name));
        for (name, samples) in &row.samples {
            text.push_str(&format!("{name:>10} {:>9.0} ±{:>3.0} %", median(samples), spread(samples) * 100.0));
        }
        text.push_str(&format!("   {:<6} gnomon is {:.2} of the best peer\n", row.case.unit, ratio(row)));
    }
    text
}

/// gnomon against its best peer; above 1 gnomon is the better, whichever direction is good. 0 when there is nothing to
/// compare.
fn ratio(row: &Row) -> f64 {
    let peers = row.samples.iter().skip(1).map(|(_, samples)| median(samples)).filter(|&peer| peer > 0.0);
    let (above, below) = match row.case.better {
        Better::Higher => (ours(row), peers.reduce(f64::max)),
        Better::Lower => (peers.reduce(f64::min).unwrap_or(0.0), Some(ours(row))),
    };
    below.filter(|&below| below > 0.0).map_or(0.0, |below| above / below)
}

fn ours(row: &Row) -> f64 {
    row.samples.first().map_or(0.0, |(_, samples)| median(samples))
}

/// The middle sample; the mean of the middle two when their number is even.
pub fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

/// The worst of the samples, but for the worst twentieth of them.
pub(super) fn p95(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * 95).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

/// Half the distance between the largest and the smallest sample, as a share of the median.
fn spread(samples: &[f64]) -> f64 {
    let (low, high) = samples.iter().fold((f64::MAX, f64::MIN), |(low, high), &x| (low.min(x), high.max(x)));
    let middle = median(samples);
    if middle > 0.0 { ((high - low) / 2.0 / middle * 1000.0).round() / 1000.0 } else { 0.0 }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Case;

    #[test]
    fn medians_and_spread() {
        for (samples, middle, around) in [
            (&[][..], 0.0, 0.0),
            (&[3.0], 3.0, 0.0),
            (&[9.0, 1.0, 5.0], 5.0, 0.8),
            (&[1.0, 2.0, 3.0, 100.0], 2.5, 19.8),
        ] {
            assert_eq!((median(samples), spread(samples)), (middle, around), "{samples:?}");
        }
    }

    #[test]
    fn above_one_gnomon_is_the_better_whichever_direction_is_good() {
        // (direction, gnomon, peers, ratio)
        let table: [(Better, f64, &[f64], f64); 8] = [
            (Better::Higher, 300.0, &[200.0, 100.0], 1.5),
            (Better::Higher, 100.0, &[200.0], 0.5),
            (Better::Lower, 100.0, &[200.0, 150.0], 1.5),
            (Better::Lower, 200.0, &[100.0, 400.0], 0.5),
            (Better::Lower, 0.0, &[100.0], 0.0),
            (Better::Lower, 100.0, &[0.0], 0.0),
            (Better::Higher, 100.0, &[0.0], 0.0),
            (Better::Lower, 100.0, &[], 0.0),
        ];
        for (better, gnomon, peers, expected) in table {
            let peers_of = peers.iter().map(|&peer| ("peer", vec![peer]));
            let samples = std::iter::once(("gnomon", vec![gnomon])).chain(peers_of).collect();
            let row = Row { case: Case { name: "c".to_owned(), unit: "us", better }, samples };
            assert_eq!(ratio(&row), expected, "{better:?} {gnomon} {peers:?}");
        }
    }

    #[test]
    fn a_row_in_json() {
        let samples = vec![("gnomon", vec![300.0]), ("nbdkit", vec![200.0]), ("qemu-nbd", vec![100.0])];
        let rows = [Row { case: Case { name: "c".to_owned(), unit: "IOPS", better: Better::Higher }, samples }];
        let told = json("nbd", &json!({"cores": 2}), &rows);
        assert_eq!(told["rows"][0]["ratio_vs_best"], 1.5);
        assert_eq!(told["rows"][0]["peers"], json!({"nbdkit": 200.0, "qemu-nbd": 100.0}));
        assert!(words(&rows).contains("1.50 of the best"));
    }
}
