//! What is expected of a volume, and why: the loop's answer as the API shows it.
//!
//! The loop is asked between two turns, on its own thread, and answers from what it has: the guest waits for nothing.

use gnomon_cycle::{Cycle, GapPoint, Outlook, Score};
use gnomon_forecast::{Bin, Clock, Expected, ExpertScore, Geometry, Reason, Reliability, UnitIndex, Weight};
use gnomon_terms::{Bytes, Extent};

use super::{
    Daemon,
    keeper::VolumeHandle,
    moving::story::{Story, Told},
    records::StandingRecord,
};
use crate::api::{
    ApiError,
    types::{
        BinView, ExpectedView, ExpertView, FirstView, ForecastQuery, ForecastView, GapView, MovingView, ReadView,
        TOP, WorthView,
    },
};

/// What is expected of a volume.
pub async fn of_volume(daemon: &Daemon, name: &str, query: ForecastQuery) -> Result<ForecastView, ApiError> {
    show(&*daemon.keeper.get(name)?, query).await
}

/// What is expected of each volume of a VM.
pub async fn of_vm(daemon: &Daemon, name: &str, query: ForecastQuery) -> Result<Vec<ForecastView>, ApiError> {
    let disks = daemon.vms.get(name)?.record().disks;
    if disks.is_empty() {
        return Err(ApiError::refused(format!("VM '{name}' has no volume of this node, so nothing is seen of it"))
            .then("forecasts are made of gnomon's volumes: import its disk with `gnomon volume import`"));
    }
    let mut views = Vec::new();
    for disk in &disks {
        views.push(of_volume(daemon, disk, query).await?);
    }
    Ok(views)
}

async fn show(handle: &VolumeHandle, query: ForecastQuery) -> Result<ForecastView, ApiError> {
    let top = query.top.unwrap_or(TOP.0).min(TOP.1) as usize;
    let look = move |cycle: &mut Cycle| (cycle.geometry(), cycle.score(), cycle.outlook(top), cycle.reliability());
    let (geometry, score, outlook, reliability) = handle.watcher.run(move |cycle, _| look(cycle)).await?;
    let job = handle.job.lock().clone();
    let mut view = view(geometry, &score, &outlook, job);
    (view.calibration, view.calibration_error) = (bins(&reliability), reliability.error());
    let mut over_time = handle.watcher.gap();
    if let (Some(moving), Some(told)) = (&mut view.moving, so_far(handle, score.moved).await?) {
        (moving.stalls_sequential, moving.stalls_oracle) = (Some(told.sequential), Some(told.oracle));
        moving.gap_closed = told.gap_closed();
        over_time = told.over_time;
    }
    view.gap_over_time = over_time.iter().map(gap).collect();
    view.ask_node = match handle.record().standing {
        StandingRecord::Draining(source) => Some(source.node),
        _ => None,
    };
    Ok(ForecastView {
        volume: handle.record().name,
        role: handle.role().to_string(),
        before: handle.learned.before(),
        like: handle.record().like,
        ..view
    })
}

/// What a guest that has switched felt so far, and would have felt in another order.
async fn so_far(handle: &VolumeHandle, moved: Bytes) -> Result<Option<Told>, ApiError> {
    // The lock is the loop's too: it is let go before anything is told.
    let Some(story) = handle.watcher.story().as_ref().and_then(Story::so_far) else { return Ok(None) };
    let tell = move || story.tell(story.mean_rate(moved));
    tokio::task::spawn_blocking(tell).await.map(Some).map_err(ApiError::internal)
}

fn gap(point: &GapPoint) -> GapView {
    GapView {
        reads: point.reads,
        seconds: point.since.as_secs_f64(),
        stalls: point.stalled,
        stalls_sequential: point.sequential,
        stalls_oracle: point.oracle,
        gap_closed: point.closed(),
    }
}

/// The tenths in which there is anything.
fn bins(reliability: &Reliability) -> Vec<BinView> {
    let bin = |bin: &Bin| {
        let (stated, came_true) = bin.shares()?;
        Some(BinView { stated, came_true, ended: u64::from(bin.ended) })
    };
    reliability.bins.iter().filter_map(bin).collect()
}

/// The loop's answer in the words of the API.
fn view(geometry: Geometry, score: &Score, outlook: &Outlook, job: Option<String>) -> ForecastView {
    let read = |(extent, ago): &(Extent, std::time::Duration)| {
        let (offset, bytes) = place(*extent);
        ReadView { offset, bytes, ago_s: ago.as_secs_f64() }
    };
    let unit = |unit: UnitIndex| place(geometry.extent_of(unit));
    ForecastView {
        accesses: outlook.accesses,
        threshold: score.threshold,
        horizon_s: score.horizon.as_secs_f64(),
        experts: experts(&score.weights, &score.experts),
        reads: outlook.reads.iter().map(read).collect(),
        expected: outlook.expected.iter().map(|expected| expectation(unit(expected.unit), expected)).collect(),
        first: outlook.first.iter().map(|reason| first(unit(reason.unit), reason)).collect(),
        moving: moving(score, outlook, job),
        ..ForecastView::default()
    }
}

/// Where an extent begins and how long it is, in bytes.
fn place(extent: Extent) -> (u64, u64) {
    (Extent::new(0, extent.start.0).bytes().0, extent.bytes().0)
}

/// Everybody's weight, and the worth of those who foretell. Silence among the sequence experts has what they have not.
fn experts(weights: &[Weight], scores: &[ExpertScore]) -> Vec<ExpertView> {
    let worth = |expert: &str| scores.iter().find(|score| score.expert == expert).map(worth);
    let row = |clock: Clock, expert: &str, weight: f32| ExpertView {
        clock: clock.name().to_string(),
        expert: expert.to_string(),
        weight,
        worth: worth(expert),
    };
    let (sequence, plain): (Vec<&Weight>, Vec<&Weight>) =
        weights.iter().partition(|weight| weight.clock == Clock::Sequence);
    let earned: f32 = sequence.iter().map(|weight| weight.weight).sum();
    let silence = (!sequence.is_empty()).then(|| row(Clock::Sequence, "silence", (1.0 - earned).max(0.0)));
    let rows = |weights: Vec<&Weight>| -> Vec<ExpertView> {
        weights.iter().map(|weight| row(weight.clock, weight.expert, weight.weight)).collect()
    };
    rows(plain).into_iter().chain(silence).chain(rows(sequence)).collect()
}

fn worth(score: &ExpertScore) -> WorthView {
    WorthView {
        ended: score.ended,
        precision: score.precision,
        coverage: score.coverage,
        lead_s: score.lead.as_secs_f64(),
        wasted: score.wasted.0,
        state: score.state.0,
    }
}

fn expectation((offset, bytes): (u64, u64), expected: &Expected) -> ExpectedView {
    ExpectedView {
        offset,
        bytes,
        expert: expected.expert.to_string(),
        chance: expected.probability,
        is_heard: expected.is_heard,
        made_s: expected.made.as_secs_f64(),
        left_s: expected.left.map(|left| left.as_secs_f64()),
    }
}

fn first((offset, bytes): (u64, u64), reason: &Reason) -> FirstView {
    let (expert, chance, seen) = (reason.expert.to_string(), reason.probability, reason.seen);
    FirstView {
        offset,
        bytes,
        expert,
        chance,
        reads: seen.map_or(0, |seen| u64::from(seen.reads)),
        writes: seen.map_or(0, |seen| u64::from(seen.writes)),
        last_read_s: seen.and_then(|seen| seen.last_read).map(|ago| ago.as_secs_f64()),
        last_write_s: seen.and_then(|seen| seen.last_write).map(|ago| ago.as_secs_f64()),
    }
}

fn moving(score: &Score, outlook: &Outlook, job: Option<String>) -> Option<MovingView> {
    let shadow = outlook.shadow?;
    Some(MovingView {
        job,
        switched: shadow.switched,
        lacking: shadow.lacking.bytes().0,
        in_flight: shadow.in_flight.0,
        hits: score.hits,
        stalls: score.misses,
        late: score.late,
        stalled_share: score.stalled_share(),
        moved: score.moved.0,
        wasted: score.wasted.0,
        dropped: score.dropped,
        failed: score.failed,
        ..MovingView::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_sequence_experts_have_not_earned_is_silences() {
        let weight = |clock, expert, weight| Weight { clock, expert, weight };
        let weights = [
            weight(Clock::Reactive, "silence", 0.25),
            weight(Clock::Reactive, "readahead", 0.75),
            weight(Clock::Sequence, "gru", 0.125),
        ];
        let scores = [ExpertScore { expert: "gru", ended: 7, ..ExpertScore::default() }];
        let rows = experts(&weights, &scores);
        let told: Vec<(&str, &str, f32, Option<u64>)> = rows
            .iter()
            .map(|row| {
                (row.clock.as_str(), row.expert.as_str(), row.weight, row.worth.as_ref().map(|worth| worth.ended))
            })
            .collect();
        let expected = [
            ("reactive", "silence", 0.25, None),
            ("reactive", "readahead", 0.75, None),
            ("sequence", "silence", 0.875, None),
            ("sequence", "gru", 0.125, Some(7)),
        ];
        assert_eq!(told, expected);
        assert!(experts(&weights[..2], &[]).iter().all(|row| row.clock == "reactive"), "no jury, no silence in it");
    }

    #[test]
    fn offsets_are_in_bytes() {
        assert_eq!(place(Extent::new(16, 2)), (65_536, 8_192));
    }
}
