//! The source of a move, until the guest runs at the destination: primes, sends the guest, hands its volumes over.

use std::{sync::Arc, time::Instant};

use gnomon_proto::handover::Giver;
use gnomon_terms::Instant as LoopInstant;
use gnomon_volume::{mover::Phase, plane::Carrier};

use super::{
    compare,
    decide::{self, Convergence},
    departure::Departure,
    ending::abandon,
    handover::{self, Gift},
    hub::{Hub, Inbox},
    progress::Meter,
    source::{End, Leg, SourceMove, THERE, TICK},
    transfer,
};
use crate::{
    api::{ApiError, types::MoveMode},
    daemon::keeper::VolumeHandle,
};

impl SourceMove {
    /// Until the guest runs at the destination; `Some` when the move ended before that.
    pub(super) async fn prime_and_switch(
        &mut self,
        hub: &Hub,
        inbox: &mut Inbox,
        legs: &[Leg],
    ) -> Result<Option<End>, ApiError> {
        let (mut meter, memory) = (Meter::new(), self.memory().await);
        let mut ticks = tokio::time::interval(TICK);
        let mut transfer: Option<Departure> = None;
        let mut givers = Vec::new();
        let mut convergence = Convergence::default();
        loop {
            if transfer.is_none() {
                ticks.tick().await;
            }
            if self.wants_cancel() {
                if let Some(transfer) = transfer.take() {
                    transfer.cancel(hub).await?;
                }
                abandon(hub, legs).await?;
                return Ok(Some(End::Cancelled));
            }
            let look = self.look(hub, legs, &mut meter).await?;
            transfer::refuse_if_ended(&self.daemon, &self.record)?;
            if let Err(error) = self.check_failures(hub, legs).await {
                if let Some(transfer) = transfer.take() {
                    transfer.cancel(hub).await?;
                }
                return Err(error);
            }
            let outlook = decide::Outlook { lacking: look.lacking, stall: look.stall, rate: meter.rate() };
            let ready = decide::is_ready(self.record.mode, &outlook);
            let is_stuck = self.record.mode == MoveMode::Pre && convergence.is_stuck(look.lacking);
            self.tell_priming(&look, &meter, memory, transfer.as_ref(), is_stuck);
            match (&mut transfer, &self.record.vm) {
                (Some(running), _) => {
                    let may = self.record.mode != MoveMode::Pre || ready;
                    if running.is_standing(hub, may).await?
                        && let Some(transfer) = transfer.take()
                    {
                        self.switch_vm(hub, inbox, legs, givers, transfer).await?;
                        return Ok(None);
                    }
                }
                (None, Some(vm)) if ready => {
                    self.daemon.balancing.leave(vm);
                    let vm = self.daemon.vms.get(vm)?;
                    transfer = Some(self.depart(hub, vm).await?);
                    // Asked while the guest runs, so that the question costs it nothing.
                    givers = self.prepare(hub, inbox, legs).await?;
                }
                (None, None) if ready => {
                    let givers = self.prepare(hub, inbox, legs).await?;
                    self.hand_over(hub, inbox, legs, givers, None).await?;
                    self.start_draining(legs).await?;
                    return Ok(None);
                }
                _ => {}
            }
        }
    }

    /// The guest stands: hands the volumes over, has the rest of it sent if there is any, and waits until it runs there.
    async fn switch_vm(
        &mut self,
        hub: &Hub,
        inbox: &mut Inbox,
        legs: &[Leg],
        givers: Vec<Giver>,
        mut transfer: Departure,
    ) -> Result<(), ApiError> {
        let stood = Instant::now();
        if let Err(error) = self.hand_over(hub, inbox, legs, givers, Some(&mut transfer)).await {
            if !self.record.switched {
                transfer.cancel(hub).await?;
            }
            return Err(error);
        }
        let name = transfer.name();
        // The guest does not wait for what only this node has to do.
        let (completed, draining) = tokio::join!(transfer.complete(hub), self.start_draining(legs));
        completed?;
        self.totals.gap = Some(stood.elapsed());
        draining?;
        self.daemon.balancing.arrive(&name, &self.record.to);
        self.daemon.records.put_move(&self.record)?;
        let vms = Arc::clone(&self.daemon.vms);
        tokio::task::spawn_blocking(move || vms.remove(&name)).await.map_err(ApiError::internal)?
    }

    /// Asks the destination whether it can take every volume over.
    async fn prepare(&self, hub: &Hub, inbox: &mut Inbox, legs: &[Leg]) -> Result<Vec<Giver>, ApiError> {
        let mut givers = Vec::new();
        for leg in legs {
            givers.push(handover::prepare(hub, inbox, &leg.handle, leg.stream).await?);
        }
        Ok(givers)
    }

    /// Hands every volume over, and `sent`, the guest that uses them. The volumes' records decide; the move's only says so
    /// sooner at the next start.
    async fn hand_over(
        &mut self,
        hub: &Hub,
        inbox: &mut Inbox,
        legs: &[Leg],
        givers: Vec<Giver>,
        sent: Option<&mut Departure>,
    ) -> Result<(), ApiError> {
        let begun = Instant::now();
        let mut gifts: Vec<Gift<'_>> = legs
            .iter()
            .zip(givers)
            .map(|(leg, giver)| Gift { handle: &leg.handle, mover: &leg.mover, giver })
            .collect();
        handover::give(&self.daemon, &mut gifts, &self.record.to)?;
        self.record.switched = true;
        if let Some(transfer) = sent {
            transfer.forbid_return();
        }
        let given = begun.elapsed();
        for leg in legs {
            let handle = Arc::clone(&leg.handle);
            // While it is told: what comes back from there is of after the switch.
            let noted = tokio::task::spawn_blocking(move || note_switch(&handle));
            handover::tell(&self.daemon, hub, inbox, &leg.handle, leg.stream).await?;
            noted.await.map_err(ApiError::internal)?;
            tracing::info!(volume = leg.handle.record().name, ?given, taken = ?begun.elapsed(), "handed over");
        }
        Ok(())
    }

    async fn start_draining(&self, legs: &[Leg]) -> Result<(), ApiError> {
        for leg in legs {
            let carrier = Carrier::Source { mover: Arc::clone(&leg.mover), place: THERE, phase: Phase::Draining };
            let switched = leg.handle.watcher.run(move |cycle, plane| {
                plane.set_carrier(carrier);
                cycle.switched(LoopInstant::ORIGIN);
            });
            switched.await?;
            handover::note_told(&self.daemon.keeper, &leg.handle)?;
        }
        Ok(())
    }
}

/// From here on, what is told of the guest is what it felt after the switch.
fn note_switch(handle: &VolumeHandle) {
    let volume = &handle.volume;
    if let (Some(outbox), Some(story)) = (volume.outbox(), &mut *handle.watcher.story()) {
        let lacking = compare::lacking(volume, &outbox);
        story.switch(compare::full(volume), lacking);
    }
}
