//! What a loop is told at its start.

use gnomon_forecast::sequence::{
    AssociationExpert, DeltaExpert, Knowledge, Order, SequenceExpert, SequencePredictor,
};
use gnomon_forecast::{
    BlockMap, DEFAULT_BLOCKS_PER_UNIT, DecayPredictor, Ensemble, FrequencyPredictor, Geometry, GeometryError,
    NextReadPredictor, Predictor, ReadaheadPredictor, SequentialPredictor, SilentPredictor, SuccessorPredictor,
};
use gnomon_terms::{BlockCount, Bytes, ErrorKind, ResourceId};

/// Which predictor a loop uses.
pub enum Forecast {
    /// All experts, blended by evidence: the default.
    Blend,
    /// The blend with a trained network, or recorded boots.
    Knowing(Box<Knowledge>),
    /// One predictor by its name ([`PREDICTORS`]), for comparison.
    Named(&'static str),
    /// Any other: an oracle, a hostile one, a new one on trial.
    Given(Box<dyn Predictor>),
}

/// The names [`Forecast::Named`] knows.
pub const PREDICTORS: [&str; 11] = [
    "silence",
    "sequential",
    "frequency",
    "decay",
    "next-read",
    "readahead",
    "successor",
    "delta-bigram",
    "delta-markov",
    "association",
    "blend",
];

/// What a [`crate::Cycle`] is told at its start.
pub struct CycleConfig {
    /// The resource it serves.
    pub resource: ResourceId,
    /// Its size in blocks.
    pub size: BlockCount,
    /// Blocks carried at once, 1 to 256; 16 (64 KiB) unless there is a reason.
    pub blocks_per_unit: u32,
    /// The blocks that hold something. Of the same size as the resource; whatever is written later is added.
    pub allocated: BlockMap,
    /// Which predictor.
    pub forecast: Forecast,
}

/// Why a loop cannot be made or a shadow not begun.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CycleError {
    /// The resource cannot be cut as asked.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// A block map of another size.
    #[error("a block map of {given} blocks for a resource of {expected}: make it of the resource's size")]
    MapSize {
        /// Blocks of the map.
        given: u64,
        /// Blocks of the resource.
        expected: u64,
    },
    /// No predictor has this name.
    #[error("no predictor is called '{0}': choose one of {PREDICTORS:?}")]
    UnknownPredictor(&'static str),
    /// A shadow is there already.
    #[error("a shadow is already at {0}: end it first")]
    ShadowExists(gnomon_terms::Place),
}

impl CycleError {
    /// All of them: asked for something that cannot be done as asked.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

impl CycleConfig {
    /// A loop for `resource` with units of 64 KiB and the blend; `allocated` says how large the resource is.
    pub fn new(resource: ResourceId, allocated: BlockMap) -> CycleConfig {
        let (size, blocks_per_unit) = (allocated.size(), DEFAULT_BLOCKS_PER_UNIT);
        CycleConfig { resource, size, blocks_per_unit, allocated, forecast: Forecast::Blend }
    }
}

/// Bytes in flight unless told otherwise: 4 MiB, the bandwidth-delay product of 1 Gbit/s over 32 ms.
pub const DEFAULT_WINDOW: Bytes = Bytes(4 << 20);

/// Checks that `map` is of the resource's size.
pub(crate) fn check_size(map: &BlockMap, expected: BlockCount) -> Result<(), CycleError> {
    match map.size() == expected {
        true => Ok(()),
        false => Err(CycleError::MapSize { given: map.size().0, expected: expected.0 }),
    }
}

/// Makes the predictor that `forecast` names.
pub(crate) fn predictor(
    forecast: Forecast,
    geometry: Geometry,
    allocated: &BlockMap,
) -> Result<Box<dyn Predictor>, CycleError> {
    let alone = |expert: Box<dyn SequenceExpert>| Box::new(SequencePredictor::new(geometry, expert));
    Ok(match forecast {
        Forecast::Given(predictor) => predictor,
        Forecast::Knowing(knowledge) => Box::new(Ensemble::knowing(geometry, allocated, *knowledge)),
        Forecast::Blend | Forecast::Named("blend") => Box::new(Ensemble::new(geometry, allocated)),
        Forecast::Named("silence") => Box::new(SilentPredictor),
        Forecast::Named("sequential") => Box::new(SequentialPredictor::new(geometry)),
        Forecast::Named("frequency") => Box::new(FrequencyPredictor::new(geometry)),
        Forecast::Named("decay") => Box::new(DecayPredictor::new(geometry)),
        Forecast::Named("next-read") => Box::new(NextReadPredictor::new(geometry)),
        Forecast::Named("readahead") => Box::new(ReadaheadPredictor::new(geometry)),
        Forecast::Named("successor") => Box::new(SuccessorPredictor::new(geometry)),
        Forecast::Named("delta-bigram") => alone(Box::new(DeltaExpert::new(Order::One))),
        Forecast::Named("delta-markov") => alone(Box::new(DeltaExpert::new(Order::Two))),
        Forecast::Named("association") => alone(Box::<AssociationExpert>::default()),
        Forecast::Named(name) => return Err(CycleError::UnknownPredictor(name)),
    })
}
