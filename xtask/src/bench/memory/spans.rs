//! What transactions were like while something was done, beside what they are like otherwise. Pure.
//!
//! A transaction belongs to a span when it was under way in it. So a short span meets long ones more often than short
//! ones; undisturbed time is therefore cut into spans of the same length and looked at in the same way.

use serde_json::{Value, json};

use crate::{
    bench::median,
    postgres::verdict::{self, Ack},
};

/// Something that was done, and the undisturbed time before it; microseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub struct Deed {
    /// What: [`row`] tells deeds of one kind.
    pub kind: &'static str,
    /// The undisturbed time begins. It ends with `from`.
    pub quiet: u64,
    /// It was asked for.
    pub from: u64,
    /// It was done.
    pub to: u64,
    /// As so many DIMMs; 0 where that is not known.
    pub dimms: u64,
}

/// What is seen after it counts as well: the guest begins to use, or to miss, the memory.
const TAIL_US: u64 = 1_000_000;

/// Transactions of some spans of the same kind.
#[derive(Default)]
struct Seen {
    /// All that were under way, milliseconds.
    all: Vec<f64>,
    /// The longest of each span.
    longest: Vec<f64>,
    /// In which no client was told of anything, of each span.
    silences: Vec<f64>,
}

impl Seen {
    fn add(&mut self, acks: &[Ack], from: u64, to: u64) {
        let under_way = acks.iter().filter(|ack| ack.at_us >= from && ack.at_us.saturating_sub(ack.took_us) <= to);
        let took: Vec<f64> = under_way.map(|ack| ack.took_us as f64 / 1e3).collect();
        self.longest.push(most(&took));
        self.silences.push(verdict::silence(acks, from, to) as f64 / 1e3);
        self.all.extend(took);
    }

    fn json(&self) -> Value {
        json!({
            "transactions": self.all.len(),
            "spans": self.longest.len(),
            "p50": tenths(percentile(&self.all, 50)),
            "p99": tenths(percentile(&self.all, 99)),
            "max": tenths(most(&self.all)),
            "longest": tenths(median(&self.longest)),
            "silence": tenths(median(&self.silences)),
            "longest_silence": tenths(most(&self.silences)),
        })
    }
}

/// All deeds of a kind as a row.
pub fn row(kind: &str, deeds: &[Deed], acks: &[Ack]) -> Value {
    let deeds: Vec<&Deed> = deeds.iter().filter(|deed| deed.kind == kind).collect();
    let (mut during, mut quiet) = (Seen::default(), Seen::default());
    for deed in &deeds {
        let to = deed.to + TAIL_US;
        during.add(acks, deed.from, to);
        for (from, to) in cut(deed.quiet, deed.from, to - deed.from) {
            quiet.add(acks, from, to);
        }
    }
    let took: Vec<f64> = deeds.iter().map(|deed| (deed.to - deed.from) as f64 / 1e3).collect();
    let dimms: Vec<f64> = deeds.iter().map(|deed| deed.dimms as f64).collect();
    let (during, quiet) = (during.json(), quiet.json());
    let ratio = |key: &str| {
        let (of, to) = (during[key].as_f64().unwrap_or_default(), quiet[key].as_f64().unwrap_or_default());
        if to > 0.0 { (of / to * 100.0).round() / 100.0 } else { 0.0 }
    };
    let ratios = json!({
        "p50": ratio("p50"), "p99": ratio("p99"), "max": ratio("max"),
        "longest": ratio("longest"), "silence": ratio("silence"),
    });
    json!({
        "case": kind, "unit": "ms", "better": "lower", "n": deeds.len(),
        "took": tenths(median(&took)), "took_most": tenths(most(&took)), "dimms": median(&dimms),
        "during": during, "undisturbed": quiet, "ratios": ratios,
    })
}

/// Spans of a length, one behind the other, that fit; all of the time when none does.
fn cut(from: u64, to: u64, length: u64) -> Vec<(u64, u64)> {
    let number = (to.saturating_sub(from) / length.max(1)).max(1);
    (0..number).map(|at| (from + at * length, (from + (at + 1) * length).min(to))).collect()
}

/// The sample that so many of a hundred do not exceed.
fn percentile(samples: &[f64], of_100: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * of_100).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

fn most(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(0.0, f64::max)
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Three lines for each row.
pub fn words(rows: &Value) -> String {
    rows.as_array().into_iter().flatten().map(lines).collect()
}

fn lines(row: &Value) -> String {
    let line = |name: &str, seen: &Value| {
        format!(
            "  {name:<12} p50 {:>7} p99 {:>7} max {:>7} longest {:>7} silence {:>7} (most {}) ms, {} transactions\n",
            seen["p50"],
            seen["p99"],
            seen["max"],
            seen["longest"],
            seen["silence"],
            seen["longest_silence"],
            seen["transactions"],
        )
    };
    let ratios = &row["ratios"];
    format!(
        "{} (n {}): took {} ms, {} at most{}\n{}{}  ratio        p50 {:>7} p99 {:>7} max {:>7} longest {:>7} silence {:>7}\n",
        row["case"].as_str().unwrap_or_default(),
        row["n"],
        row["took"],
        row["took_most"],
        match row["dimms"].as_f64() {
            Some(dimms) if dimms > 0.0 => format!(", as {dimms} DIMMs"),
            _ => String::new(),
        },
        line("undisturbed", &row["undisturbed"]),
        line("meanwhile", &row["during"]),
        ratios["p50"],
        ratios["p99"],
        ratios["max"],
        ratios["longest"],
        ratios["silence"],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(from_ms: u64, to_ms: u64) -> Ack {
        Ack { client: 0, number: 1, at_us: to_ms * 1000, took_us: (to_ms - from_ms) * 1000 }
    }

    #[test]
    fn what_was_under_way_counts_and_spans_are_as_long() {
        // Each 100 ms a transaction of 100 ms, for 4 s; then one of 500 ms, while something is done for 400 ms.
        let mut acks: Vec<Ack> = (0..40).map(|at| ack(at * 100, at * 100 + 100)).collect();
        acks.push(ack(4000, 4500));
        let deed = Deed { kind: "grown", quiet: 0, from: 4_050_000, to: 4_450_000, dimms: 2 };
        let other = Deed { kind: "other", ..deed };
        let row = row("grown", &[deed, other], &acks);
        assert_eq!((&row["n"], &row["took"], &row["dimms"]), (&json!(1), &json!(400.0), &json!(2.0)));
        assert_eq!(row["during"]["transactions"], 1);
        assert_eq!((&row["during"]["max"], &row["undisturbed"]["max"]), (&json!(500.0), &json!(100.0)));
        assert_eq!((&row["undisturbed"]["spans"], &row["undisturbed"]["silence"]), (&json!(2), &json!(100.0)));
        assert_eq!((&row["ratios"]["longest"], &row["ratios"]["silence"]), (&json!(5.0), &json!(5.0)));
        let text = words(&json!([row]));
        assert!(text.contains("grown (n 1): took 400.0 ms, 400.0 at most, as 2 DIMMs"), "{text}");
    }

    #[test]
    fn undisturbed_time_is_cut_into_what_fits() {
        // (from, to, length, spans)
        type Spans = &'static [(u64, u64)];
        let table: [(u64, u64, u64, Spans); 4] = [
            (10, 40, 10, &[(10, 20), (20, 30), (30, 40)]),
            (10, 39, 10, &[(10, 20), (20, 30)]),
            (10, 15, 10, &[(10, 15)]),
            (10, 10, 0, &[(10, 10)]),
        ];
        for (from, to, length, spans) in table {
            assert_eq!(cut(from, to, length), spans, "{from} {to} {length}");
        }
    }

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!((percentile(&samples, 50), percentile(&samples, 99), percentile(&[], 99)), (100.0, 198.0, 0.0));
    }
}
