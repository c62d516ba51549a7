//! What a run has found out, for machines and for people.

use serde_json::{Value, json};

use super::{
    Way,
    verdict::{Row, Verdict},
};
use crate::bench;

/// What is told apart.
pub const WAYS: [(Way, &str); 3] =
    [(Way::Switchover, "switchover"), (Way::QemuDies, "QEMU dies"), (Way::HostDies, "host dies")];

/// What was found out.
pub struct Facts {
    /// What the clients were told, held against the database.
    pub verdict: Verdict,
    /// Connections that broke.
    pub broken: usize,
    /// Whether the balances are what the history says.
    pub balanced: bool,
    /// Answers a second: before there was a shadow, and afterwards, all that was done to the guest included.
    pub tps: [f64; 2],
    /// The clients' longest silence around each event, by [`WAYS`]; milliseconds.
    pub silences: [Vec<f64>; 3],
}

impl Facts {
    /// Whether nothing was lost: no transaction, no connection, and no balance.
    pub fn is_good(&self) -> bool {
        self.verdict.is_good() && self.broken == 0 && self.balanced
    }

    /// For machines.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = WAYS.iter().zip(&self.silences).map(|((_, name), of)| row(name, of)).collect();
        json!({
            "rows": rows,
            "acknowledged": self.verdict.acknowledged,
            "lost": self.verdict.lost.len(),
            "twice": self.verdict.twice.len(),
            "unheard": self.verdict.unheard.len(),
            "repeated": self.verdict.repeated.len(),
            "connections_broken": self.broken,
            "balanced": self.balanced,
            "tps_without_shadow": tenths(self.tps[0]),
            "tps_strict": tenths(self.tps[1]),
        })
    }

    /// For people.
    pub fn words(&self) -> String {
        let lines: String = WAYS.iter().zip(&self.silences).map(|((_, name), of)| line(name, of)).collect();
        let Verdict { lost, twice, acknowledged, .. } = &self.verdict;
        format!(
            "\nPostgreSQL under pgbench, in strict mode.\n\n{lines}\
             transactions  {acknowledged} acknowledged · {} lost · {} done twice · balances {}\n\
             clients       {} connections broken · {:.1} transactions/s in all, {:.1}/s without a shadow\n{}",
            lost.len(),
            twice.len(),
            if self.balanced { "agree" } else { "DISAGREE" },
            self.broken,
            self.tps[1],
            self.tps[0],
            self.complaints(),
        )
    }

    /// The first of whatever is wrong.
    fn complaints(&self) -> String {
        let Verdict { lost, twice, unheard, repeated, .. } = &self.verdict;
        let lists = [("LOST", lost), ("TWICE", twice), ("UNHEARD", unheard), ("TOLD TWICE", repeated)];
        let first = |list: &[Row]| format!("{:?}", &list[..list.len().min(5)]);
        let wrong = lists.into_iter().filter(|(_, list)| !list.is_empty());
        wrong.map(|(what, list)| format!("{what}: {} of (client, number), {} …\n", list.len(), first(list))).collect()
    }
}

fn row(case: &str, silences: &[f64]) -> Value {
    json!({
        "case": format!("silence, {case}"),
        "unit": "ms",
        "better": "lower",
        "gnomon": tenths(bench::median(silences)),
        "most": tenths(most(silences)),
        "n": silences.len(),
    })
}

fn line(case: &str, silences: &[f64]) -> String {
    let (times, median, most) = (silences.len(), bench::median(silences), most(silences));
    format!("{case:<14}{times} · clients heard nothing for {median:.0} ms (median), {most:.0} ms (most)\n")
}

fn most(silences: &[f64]) -> f64 {
    silences.iter().copied().fold(0.0, f64::max)
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(lost: Vec<Row>, broken: usize, balanced: bool) -> Facts {
        let verdict = Verdict { lost, acknowledged: 7, ..Verdict::default() };
        Facts { verdict, broken, balanced, tps: [2.0, 1.0], silences: [vec![], vec![1.04], vec![1.0, 3.0]] }
    }

    #[test]
    fn whatever_is_wrong_is_told() {
        let table = [
            (facts(vec![], 0, true), true, "balances agree"),
            (facts(vec![(1, 5)], 0, true), false, "LOST: 1 of (client, number), [(1, 5)]"),
            (facts(vec![], 1, true), false, "1 connections broken"),
            (facts(vec![], 0, false), false, "balances DISAGREE"),
        ];
        for (facts, good, words) in table {
            assert_eq!(facts.is_good(), good, "{words}");
            assert!(facts.words().contains(words), "{}", facts.words());
        }
        let told = facts(vec![(1, 5)], 0, true).json();
        assert_eq!(
            (&told["lost"], &told["rows"][1]["gnomon"], &told["rows"][2]["most"]),
            (&json!(1), &json!(1.0), &json!(3.0))
        );
    }
}
