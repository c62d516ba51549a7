//! What a person is told who asks what is expected, and why. Asking changes nothing.

use std::time::Duration;

use crate::UnitIndex;

/// What the weights of an expert are shares of: experts of one clock stand against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// In which order all that lacks is pulled.
    Background,
    /// What is read next, by streams and by what followed last time.
    Reactive,
    /// What is read next, by experts that have to earn being heard.
    Sequence,
}

impl Clock {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Clock::Background => "background",
            Clock::Reactive => "reactive",
            Clock::Sequence => "sequence",
        }
    }
}

/// A forecast of one unit that no read has made true so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Expected {
    /// Which unit.
    pub unit: UnitIndex,
    /// Who named it first, and so is judged by it.
    pub expert: &'static str,
    /// The share of forecasts like this one that came true lately, 0 to 1.
    pub probability: f32,
    /// Whether a move would act on it while its link has room.
    pub is_heard: bool,
    /// How long ago it was made, to some 17 ms.
    pub made: Duration,
    /// How long it still has to come true; none when it has run out.
    pub left: Option<Duration>,
}

/// Why a unit stands where it does in the background order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reason {
    /// Which unit.
    pub unit: UnitIndex,
    /// Who speaks most for it; `sequential` when nobody does, so that it goes by its address.
    pub expert: &'static str,
    /// How likely it is to be read, 0 to 1, as all experts together have it; none before anything was counted.
    pub probability: Option<f32>,
    /// What the guest did with it; none if it was never touched.
    pub seen: Option<Seen>,
}

/// What a guest did with a unit. Times are counted back from the question, to some 17 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Reads, saturating.
    pub reads: u16,
    /// Writes and discards, saturating.
    pub writes: u16,
    /// How long ago the last read was, if there was one.
    pub last_read: Option<Duration>,
    /// How long ago the last write was, if there was one.
    pub last_write: Option<Duration>,
}
