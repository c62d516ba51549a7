//! What the demo tells at the end: one screen, or one JSON object.

use serde_json::{Value, json};

use super::{failover, memory, update};

/// All that was found out.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The longest silence of the guest around the switch, as the host saw it, in milliseconds.
    pub gap_ms: f64,
    /// Heartbeats that never arrived.
    pub heartbeats_lost: u64,
    /// Records, operations and RAM pages that the guest found wrong.
    pub corrupt_records: u64,
    /// Size of the volume.
    pub bytes_total: u64,
    /// What crossed the link for it.
    pub bytes_moved: u64,
    /// Reads of the guest on the destination until the volume was whole there.
    pub reads_after_switch: u64,
    /// Of these, those that waited for the link.
    pub reads_stalled: u64,
    /// How many would have waited had the rest been fetched in order.
    pub reads_stalled_sequential: u64,
    /// How many would have waited had the future been known.
    pub reads_stalled_oracle: u64,
    /// Whether every record of the moved disk is what the guest last wrote.
    pub verified: bool,
    /// What the second act told.
    pub updated: update::Told,
    /// What the third act told.
    pub failed_over: failover::Told,
    /// What the fourth act told.
    pub grown: memory::Told,
    /// How long everything took, booting and verifying included.
    pub seconds: f64,
}

impl Facts {
    /// Whether nothing was lost.
    pub fn well(&self) -> bool {
        let updated = self.updated.heartbeats_lost == 0 && self.updated.bad_refused;
        self.verified && self.corrupt_records + self.grown.wrong == 0 && self.heartbeats_lost == 0 && updated
    }

    /// The one JSON object.
    pub fn json(&self) -> Value {
        json!({
            "guest": {
                "gap_ms": tenths(self.gap_ms),
                "heartbeats_lost": self.heartbeats_lost,
                "corrupt_records": self.corrupt_records,
            },
            "volume": {
                "bytes_total": self.bytes_total,
                "bytes_moved": self.bytes_moved,
                "reads_after_switch": self.reads_after_switch,
                "reads_stalled": self.reads_stalled,
                "reads_stalled_sequential": self.reads_stalled_sequential,
                "reads_stalled_oracle": self.reads_stalled_oracle,
                "verified": self.verified,
            },
            "update": {
                "gap_ms": tenths(self.updated.gap_ms),
                "heartbeats_lost": self.updated.heartbeats_lost,
            },
            "bad_update": {
                "refused": self.updated.bad_refused,
                "primary_gap_ms": tenths(self.updated.bad_gap_ms),
            },
            "failover": {
                "gap_ms": tenths(self.failed_over.gap_ms),
                "lost_ms": tenths(self.failed_over.lost_ms),
                "corrupt_records": self.failed_over.corrupt_records,
            },
            "memory": {
                "staged": burst(&self.grown.staged),
                "cold": burst(&self.grown.cold),
                "corrupt_pages": self.grown.wrong,
            },
            "seconds": tenths(self.seconds),
        })
    }

    /// The screen.
    pub fn words(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let verdict = if self.verified { "every record is as the guest last wrote it" } else { "RECORDS ARE WRONG" };
        format!(
            "\nThe guest moved with its disk while it worked.\n\n\
             guest    silent for {:.1} ms · {} heartbeats lost · {} corrupt records\n\
             volume   {:.0} MiB · {:.0} MiB crossed the link · {verdict}\n\
             reads    {} after the switch, until all was there; of these waited for the link:\n\
             {:>12} fetched in order\n{:>12} gnomon\n{:>12} knowing the future\n\n\
             Then it got a newer QEMU while it worked, after that was tried on a copy of it.\n\n\
             update   silent for {:.1} ms · {} heartbeats lost\n\
             a bad one: {} · the guest's longest silence meanwhile {:.1} ms\n\n\
             At last it got a shadow on the other node, a checkpoint every {}, and its QEMU was killed.\n\n\
             failover silent for {:.1} ms · {:.0} ms of its work lost · {} corrupt records\n\n\
             Another guest needed 256 MiB more than it had, at once.\n\n\
             staged   given after {:.0} ms · its program waited {:.0} ms, and was through after {:.0} ms\n\
             cold     given after {:.0} ms · its program waited {:.0} ms, and was through after {:.0} ms\n\n\
             time     {:.1} s in all",
            self.gap_ms,
            self.heartbeats_lost,
            self.corrupt_records,
            mib(self.bytes_total),
            mib(self.bytes_moved),
            self.reads_after_switch,
            self.reads_stalled_sequential,
            self.reads_stalled,
            self.reads_stalled_oracle,
            self.updated.gap_ms,
            self.updated.heartbeats_lost,
            if self.updated.bad_refused { "refused, its copy crashed" } else { "NOT REFUSED" },
            self.updated.bad_gap_ms,
            failover::INTERVAL,
            self.failed_over.gap_ms,
            self.failed_over.lost_ms,
            self.failed_over.corrupt_records,
            self.grown.staged.given_ms,
            self.grown.staged.waited_ms,
            self.grown.staged.whole_ms,
            self.grown.cold.given_ms,
            self.grown.cold.waited_ms,
            self.grown.cold.whole_ms,
            self.seconds,
        )
    }
}

fn burst(burst: &memory::Burst) -> Value {
    json!({
        "given_ms": tenths(burst.given_ms),
        "waited_ms": tenths(burst.waited_ms),
        "whole_ms": tenths(burst.whole_ms),
    })
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            gap_ms: 23.456,
            heartbeats_lost: 0,
            corrupt_records: 0,
            bytes_total: 1 << 31,
            bytes_moved: 1 << 30,
            reads_after_switch: 100,
            reads_stalled: 7,
            reads_stalled_sequential: 20,
            reads_stalled_oracle: 3,
            verified: true,
            updated: update::Told { bad_refused: true, ..update::Told::default() },
            failed_over: failover::Told::default(),
            grown: memory::Told::default(),
            seconds: 61.04,
        }
    }

    #[test]
    fn the_json_has_exactly_its_keys() {
        let json = facts().json();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&json), ["bad_update", "failover", "guest", "memory", "seconds", "update", "volume"]);
        assert_eq!(keys(&json["guest"]), ["corrupt_records", "gap_ms", "heartbeats_lost"]);
        let volume = [
            "bytes_moved",
            "bytes_total",
            "reads_after_switch",
            "reads_stalled",
            "reads_stalled_oracle",
            "reads_stalled_sequential",
            "verified",
        ];
        assert_eq!(keys(&json["volume"]), volume);
        assert_eq!((&json["guest"]["gap_ms"], &json["seconds"]), (&json!(23.5), &json!(61.0)));
    }

    #[test]
    fn any_loss_is_not_well() {
        assert!(facts().well());
        for bad in [
            Facts { heartbeats_lost: 1, ..facts() },
            Facts { corrupt_records: 1, ..facts() },
            Facts { verified: false, ..facts() },
            Facts { grown: memory::Told { wrong: 1, ..memory::Told::default() }, ..facts() },
            Facts { updated: update::Told::default(), ..facts() },
        ] {
            assert!(!bad.well(), "{bad:?}");
        }
    }
}
