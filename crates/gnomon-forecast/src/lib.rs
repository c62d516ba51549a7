//! Accesses in, chances out: predictors, the ensemble that blends them, and trace files.
//!
//! A [`Predictor`] watches what a guest does and answers on two clocks: in which order lacking units are best pulled,
//! and what will be read next. [`Ensemble`] is the one to use; the others are its experts, its baselines
//! ([`SilentPredictor`], [`SequentialPredictor`]) and its bound ([`OraclePredictor`]).
//!
//! [`series`] forecasts how much will be asked for and when, [`location`] who reads from where next; each has models of
//! its own behind one trait and blends them by the same hedge.
//!
//! Forecasts speak of units and chances, never of bytes of data, and can never do harm.
//!
//! Invariant: no clock, thread, socket, file, random source or global (checked by `cargo xtask tidy`).
//!
//! What is learned from the order of reads, from recordings or while a guest runs, is in [`sequence`].

mod adjust;
mod background;
mod block_map;
mod calibration;
mod ensemble;
mod experts;
mod gate;
mod geometry;
mod hedge;
mod history;
pub mod location;
mod oracle;
mod predictor;
mod readahead;
mod reason;
mod regions;
mod reliability;
pub mod sequence;
pub mod series;
mod successor;
mod tally;
pub mod trace;

pub use background::{DecayPredictor, FrequencyPredictor, NextReadPredictor};
pub use block_map::BlockMap;
pub use ensemble::Ensemble;
pub use geometry::{DEFAULT_BLOCKS_PER_UNIT, Geometry, GeometryError, MAX_BLOCKS_PER_UNIT, UnitIndex};
pub use history::{History, Past, Tick};
pub use oracle::OraclePredictor;
pub use predictor::{
    Chance, DEFAULT_HORIZON, ExpertScore, Predictor, SequentialPredictor, SilentPredictor, Weight, lacking_units,
};
pub use readahead::ReadaheadPredictor;
pub use reason::{Clock, Expected, Reason, Seen};
pub use reliability::{BINS, Bin, Reliability};
pub use successor::SuccessorPredictor;
