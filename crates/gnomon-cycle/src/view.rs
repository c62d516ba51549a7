//! What a loop can be asked: how far the shadow is, what a switch would feel like, what each unit's copy is like.

use std::sync::Arc;
use std::time::Duration;

use gnomon_forecast::{Expected, Reason, Reliability, UnitIndex};
use gnomon_terms::{BlockCount, Bytes, BytesPerSecond, Extent, Instant, Place, Routes};

use crate::cycle::Cycle;
use crate::score::Score;
use crate::shadow::Shadow;
use crate::stall::StallForecast;

/// What one unit's copy is like, for the metadata store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UnitState {
    /// The blocks of the unit.
    pub extent: Extent,
    /// How many of its allocated blocks are valid at `place`.
    pub covered: BlockCount,
    /// How likely it is to be read, 0 to 1.
    pub probability: f32,
    /// Where the copy is.
    pub place: Place,
}

/// What a loop expects, and why: what it tells a person who asks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outlook {
    /// Accesses it has learned from.
    pub accesses: u64,
    /// The last reads, the latest first, and how long ago they were.
    pub reads: Vec<(Extent, Duration)>,
    /// Forecasts that no read has made true so far, the latest first.
    pub expected: Vec<Expected>,
    /// What goes first: of all that a shadow lacks, or of all that is allocated, as if a move began now.
    pub first: Vec<Reason>,
    /// How far the shadow is, if there is one.
    pub shadow: Option<ShadowState>,
}

/// How far a shadow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowState {
    /// The guest runs at its place.
    pub switched: bool,
    /// What it lacks.
    pub lacking: BlockCount,
    /// Bytes on their way to it.
    pub in_flight: Bytes,
}

impl Cycle {
    /// What is expected, and why, with at most `most` entries in each list. Changes nothing. Costs some milliseconds;
    /// O(allocated units) up to the first 2^20 where no move is on.
    pub fn outlook(&self, most: usize) -> Outlook {
        let first = match &self.shadow {
            Some(shadow) => shadow.plan.ahead(&shadow.lacking, &shadow.flights, most),
            None => self.predictor.first(self.now, &self.allocated, most),
        };
        Outlook {
            accesses: self.accesses,
            reads: self.recent.last(most).map(|(at, extent)| (extent, self.now.since(at))).collect(),
            expected: self.predictor.expected(self.now, most),
            first: self.predictor.reasons(self.now, &first),
            shadow: self.shadow.as_ref().map(|shadow| ShadowState {
                switched: shadow.switched,
                lacking: shadow.lacking.count(),
                in_flight: shadow.flights.copying(),
            }),
        }
    }

    /// A snapshot of where copies are, for planes whose data path chooses among several; none for a resource that is
    /// served by its own place alone, as volumes are.
    pub fn poll_routes(&mut self) -> Option<Arc<Routes>> {
        None
    }

    /// What the shadow lacks; nothing without a shadow. O(1).
    pub fn lacking(&self) -> BlockCount {
        self.shadow.as_ref().map_or(BlockCount(0), |shadow| shadow.lacking.count())
    }

    /// Bytes of copies on their way. O(1).
    pub fn in_flight(&self) -> Bytes {
        self.shadow.as_ref().map_or(Bytes(0), |shadow| shadow.flights.copying())
    }

    /// True when there is a shadow and it lacks nothing. O(1).
    pub fn is_whole(&self) -> bool {
        self.shadow.as_ref().is_some_and(|shadow| shadow.lacking.is_empty())
    }

    /// What the guest would feel within `horizon` if it switched now, with each wait lasting as long as one unit at
    /// `rate` and one `round_trip`. Cheap enough for each 100 ms. Without a shadow nothing is felt.
    pub fn expected_stall(
        &self,
        now: Instant,
        horizon: Duration,
        rate: BytesPerSecond,
        round_trip: Duration,
    ) -> StallForecast {
        let Some(shadow) = &self.shadow else { return StallForecast::default() };
        self.recent.forecast((now, horizon), (self.geometry, &shadow.lacking), (rate, round_trip))
    }

    /// The same for a guest that switched with nothing of what is allocated at the shadow, whether there is one or not.
    pub fn expected_stall_at_once(
        &self,
        now: Instant,
        horizon: Duration,
        rate: BytesPerSecond,
        round_trip: Duration,
    ) -> StallForecast {
        self.recent.forecast((now, horizon), (self.geometry, self.allocated()), (rate, round_trip))
    }

    /// Every unit that holds something, with its copy; empty without a shadow. O(units) to walk.
    pub fn units(&self) -> impl Iterator<Item = UnitState> {
        let units = (0..self.geometry.units()).map(UnitIndex);
        units.filter_map(|unit| self.state_of(unit))
    }

    /// Up to `most` units whose coverage changed since they were last handed out here, in address order; at the
    /// begin of a shadow all of them.
    pub fn changed_units(&mut self, most: usize) -> Vec<UnitState> {
        let mut states = Vec::new();
        while states.len() < most {
            let Some(unit) = self.shadow.as_mut().and_then(Shadow::take_changed) else { break };
            states.extend(self.state_of(unit));
        }
        states
    }

    fn state_of(&self, unit: UnitIndex) -> Option<UnitState> {
        let shadow = self.shadow.as_ref()?;
        let extent = self.geometry.extent_of(unit);
        let allocated = self.allocated.count_in(extent).0;
        if allocated == 0 {
            return None;
        }
        let covered = BlockCount(allocated - shadow.lacking.count_in(extent).0);
        let probability = self.predictor.probability(self.now, unit);
        Some(UnitState { extent, covered, probability, place: shadow.place })
    }

    /// How reactive forecasts ended since the loop began, acted on or not, by the chance that they were given.
    pub fn reliability(&self) -> Reliability {
        self.predictor.reliability()
    }

    /// What the forecasts were worth since the shadow was begun.
    pub fn score(&self) -> Score {
        let (threshold, horizon) = self.predictor.bar();
        let (weights, experts) = (self.predictor.weights(), self.predictor.scores());
        Score { weights, experts, threshold, horizon, ..self.score.clone() }
    }
}
