//! What the guest felt, told with what it would have felt in another order on the very same accesses.

use gnomon_cycle::replay::{MoveStory, replay_move};
use gnomon_forecast::{BlockMap, DEFAULT_BLOCKS_PER_UNIT};
use gnomon_terms::{Access, BytesPerSecond, Event};

/// Accesses kept for the telling, before and after the switch together: 2 million × 48 B is 96 MB at most.
const KEPT: usize = 2_000_000;

/// Reads after the switch, and how many of them waited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Reads that the guest made after the switch, until everything was there.
    pub reads: u64,
    /// Of these, those that waited.
    pub stalled: u64,
    /// How many would have waited in address order.
    pub sequential: u64,
    /// How many would have waited had the future been known.
    pub oracle: u64,
}

/// What is recorded of a move, in passing.
#[derive(Debug, Default)]
pub struct Story {
    history: Vec<Access>,
    future: Vec<Access>,
    stalled: u64,
    /// What was allocated and what was lacking when the guest switched.
    at_switch: Option<(BlockMap, BlockMap)>,
}

impl Story {
    /// The guest did this.
    pub fn note(&mut self, event: &Event) {
        let room = self.history.len() + self.future.len() < KEPT;
        match (event, &self.at_switch) {
            (Event::Accessed(access), None) if room => self.history.push(*access),
            (Event::Accessed(access), Some(_)) if room => self.future.push(*access),
            (Event::Stalled(_), Some(_)) => self.stalled += 1,
            _ => {}
        }
    }

    /// The guest switches now.
    pub fn switch(&mut self, allocated: BlockMap, lacking: BlockMap) {
        self.at_switch = Some((allocated, lacking));
    }

    /// Whether it has switched.
    pub fn has_switched(&self) -> bool {
        self.at_switch.is_some()
    }

    /// Tells it, with the link's rate as it was. Takes as long as replaying the accesses twice.
    pub fn tell(&self, rate: BytesPerSecond) -> Told {
        let reads = self.future.iter().filter(|access| access.op == gnomon_terms::Op::Read).count() as u64;
        let would = |predictor| {
            let (allocated, lacking) = self.at_switch.as_ref()?;
            let story = MoveStory {
                history: &self.history,
                future: &self.future,
                allocated,
                lacking,
                rate,
                blocks_per_unit: DEFAULT_BLOCKS_PER_UNIT,
            };
            replay_move(&story, predictor).ok().map(|result| result.stalled)
        };
        Told {
            reads,
            stalled: self.stalled,
            sequential: would("sequential").unwrap_or(0),
            oracle: would("oracle").unwrap_or(0),
        }
    }
}
