//! Sequence models: what is touched next, learned from the order in which units were read.
//!
//! ```text
//!   accesses ──path──► tables: DeltaExpert, AssociationExpert, RecordedExpert ─┐
//!                └───► tokens ──► RecurrentExpert (a trained Network) ─────────┴──► Jury ──► chances, scores
//!
//!   recordings ──Corpus──► Trainer ──► Model (safetensors)      offline, resumable
//!   expert ──Lesson──► Student ──► Model                        while the guest runs, on another thread
//!   experts ──Experience──► bytes ──► experts                    from one process of ours to the next
//! ```
//! Tables cost some ten nanoseconds to look into; the network microseconds, and is held to an allowance. None of them is
//! believed before it has foretold what the plain experts did not: see `jury.rs`.

mod adam;
mod association;
mod checkpoint;
mod corpus;
mod deltas;
mod dice;
mod experience;
mod expert;
mod gradient;
pub(crate) mod jury;
mod math;
mod model;
mod network;
mod recorded;
mod recurrent;
mod shipped;
mod study;
mod tensors;
mod trainer;
mod vocabulary;

pub(crate) use adam::Adam;
pub use association::AssociationExpert;
pub use corpus::Corpus;
pub use deltas::{DeltaExpert, Order};
pub use dice::Dice;
pub use experience::{Experience, ExperienceError, Tables};
pub use expert::{Foreseen, SequenceExpert, SequencePredictor};
pub use gradient::Tape;
pub use model::{About, Model, ModelError, Source};
pub use network::{Cell, MAX_HIDDEN, Network, Shape, State, Work};
pub use recorded::{RecordedExpert, Recording};
pub use recurrent::RecurrentExpert;
pub use shipped::shipped;
pub use study::{Lesson, Student};
pub use tensors::{LARGEST_FILE, TensorsError};
pub use trainer::{Epoch, Plan, Progress, Trainer, judge};
pub use vocabulary::{ESCAPE, MAX_TOKENS, Vocabulary, VocabularyError, path_of};

/// What a blend may know from elsewhere when it begins.
#[derive(Clone, Debug, Default)]
pub struct Knowledge {
    /// A trained network.
    pub model: Option<Model>,
    /// Boots that were recorded, the latest last.
    pub recordings: Vec<Recording>,
    /// Rows that the tables begin with.
    pub tables: Tables,
    /// Whether its network goes on learning: it hands out lessons, and begins one of its own without a model.
    pub learns: bool,
}
