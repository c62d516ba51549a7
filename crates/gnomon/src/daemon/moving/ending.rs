//! How a move ends at its source: released, with a result that tells what it cost and what the guest felt; or undone,
//! as if it had not been.

use std::time::Duration;

use gnomon_terms::{Bytes, BytesPerSecond};
use gnomon_volume::mover::Mover;
use serde_json::json;

use super::{
    hub::Hub,
    rpc::Ask,
    source::{Leg, SourceMove},
    story::Told,
    transfer::GUEST_LOST,
};
use crate::{
    api::{ApiError, Kind, types::EventView},
    daemon::records::StandingRecord,
};

/// What the result tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// For a guest that waited.
    pub demand: u64,
    /// Expected within the horizon.
    pub prefetch: u64,
    /// In the background.
    pub background: u64,
    /// Written there and sent back.
    pub mirror: u64,
    /// The guest's memory.
    pub ram: u64,
    /// From the guest's standing still here to its running there, as this node saw it.
    pub gap: Option<Duration>,
}

impl Totals {
    /// Bytes of disk that were carried to the destination.
    pub fn carried(&self) -> u64 {
        self.demand + self.prefetch + self.background
    }

    /// Adds what the engine of one session has carried.
    pub fn count(&mut self, mover: &Mover) {
        let carried = mover.carried();
        self.demand += carried.demand.0;
        self.prefetch += carried.prefetch.0;
        self.background += carried.background.0;
        self.mirror += carried.mirror.0;
    }
}

/// The destination forgets its spare copies.
pub(super) async fn abandon(hub: &Hub, legs: &[Leg]) -> Result<(), ApiError> {
    for leg in legs {
        hub.rpc.ask::<()>(&Ask::Abandon { stream: leg.stream.0 }).await?;
    }
    Ok(())
}

/// A move is given up: no QEMU and no copy of it stays at the destination. What cannot be told there can be removed
/// there by hand.
pub(super) async fn leave_nothing(hub: &Hub, legs: &[Leg], vm: Option<&String>) {
    // The QEMU first: it has the copies open.
    let told = match hub.rpc.ask::<bool>(&Ask::Withdraw { vm: vm.cloned() }).await {
        Ok(_) => abandon(hub, legs).await,
        Err(error) => Err(error),
    };
    if let Err(error) = told {
        tracing::warn!(%error, "spare copies may be left at the destination: `gnomon volume rm` there frees them");
    }
}

impl SourceMove {
    /// The destination has let go: the copy here is of no more use.
    pub(super) fn finish(&self) -> Result<serde_json::Value, ApiError> {
        for handle in &self.volumes {
            self.daemon.keeper.update(handle, |record| {
                record.standing = StandingRecord::Released(self.record.to.clone());
                record.move_id = None;
                record.handover = None;
            })?;
        }
        self.daemon.records.remove_move(&self.record.id)?;
        let totals = &self.totals;
        let moved = totals.carried();
        let story = self.tell_story();
        let seconds = self.begun.elapsed().as_secs_f64();
        let what = match (&self.record.vm, self.record.guest_lost) {
            (Some(vm), true) => format!("the disk of {vm} ({GUEST_LOST})"),
            (Some(vm), false) => vm.clone(),
            (None, _) => self.record.volumes.join(", "),
        };
        let message = format!(
            "{what} is at {}: {} of disk moved in {seconds:.1} s; `gnomon volume rm` frees the copy here",
            self.record.to,
            Bytes(moved)
        );
        self.job.report(crate::api::types::Progress {
            phase: "done".to_string(),
            message,
            ..self.job.view().progress
        });
        Ok(json!({
            "to": self.record.to,
            "guest_lost": self.record.guest_lost,
            "seconds": seconds,
            "source_gap_ms": totals.gap.map(|gap| gap.as_secs_f64() * 1e3),
            "bytes_total": self.total(),
            "bytes_moved": moved,
            "bytes_demand": totals.demand,
            "bytes_prefetch": totals.prefetch,
            "bytes_background": totals.background,
            "bytes_mirrored": totals.mirror,
            "bytes_ram": totals.ram,
            "ram": self.ram,
            "reads_after_switch": story.reads,
            "reads_stalled": story.stalled,
            "reads_stalled_sequential": story.sequential,
            "reads_stalled_oracle": story.oracle,
        }))
    }

    /// What the guest felt, and would have felt in another order. The link's rate is what it was while draining, or
    /// what the move was held to.
    fn tell_story(&self) -> Told {
        let totals = &self.totals;
        let drained = self.drained.map_or(0.0, |took| took.as_secs_f64());
        let seen = if drained > 0.0 { (totals.carried() - self.carried_at_switch) as f64 / drained } else { 0.0 };
        let rate = self.record.bandwidth.map_or(BytesPerSecond(seen as u64), BytesPerSecond);
        let mut sum = Told::default();
        for handle in &self.volumes {
            if let Some(story) = handle.watcher.story().take() {
                let told = story.tell(rate);
                sum.reads += told.reads;
                sum.stalled += told.stalled;
                sum.sequential += told.sequential;
                sum.oracle += told.oracle;
                handle.watcher.keep_gap(told.over_time);
            }
        }
        sum
    }

    /// Tells what became of a VM, and where it is to be found.
    pub(super) fn note(&self, ended: &Result<serde_json::Value, ApiError>) {
        let Some(vm) = &self.record.vm else { return };
        let status = match ended {
            Ok(_) => "done",
            Err(error) if error.kind == Kind::Refused => "refused",
            Err(_) => "failed",
        };
        match ended {
            // It is nowhere until somebody starts it.
            Ok(_) if self.record.guest_lost => {}
            Ok(_) => self.daemon.balancing.arrive(vm, &self.record.to),
            Err(_) if self.daemon.vms.get(vm).is_ok_and(|vm| vm.qemu().is_some()) => {
                self.daemon.balancing.arrive(vm, &self.daemon.config.node);
            }
            Err(_) => {}
        }
        let gap_ms = self.totals.gap.map(|gap| gap.as_secs_f64() * 1e3);
        let why = ended.as_ref().err().map(|error| error.message.clone());
        let reasons = why.or(self.record.guest_lost.then(|| GUEST_LOST.to_string())).into_iter().collect();
        let event = EventView::now(vm, "move", status, format!("node {}", self.record.to));
        self.daemon.note(&EventView { gap_ms, reasons, ..event });
    }

    /// The move did not switch: everything is as before.
    pub(super) fn undo(&self) -> Result<serde_json::Value, ApiError> {
        for handle in &self.volumes {
            handle.volume.end_shadow()?;
            self.daemon.keeper.update(handle, |record| {
                record.standing = StandingRecord::Primary;
                record.move_id = None;
                record.handover = None;
            })?;
        }
        self.daemon.records.remove_move(&self.record.id)?;
        Ok(serde_json::Value::Null)
    }
}
