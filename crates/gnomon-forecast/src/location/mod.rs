//! Who reads from where next: chances over a small set of places (regions, edges, nodes).
//!
//! A [`Visit`] is one access: who, when, from which place, and what was known outside at that time. Before it comes each
//! model gives a chance to every place; afterwards it is judged and learns. Most accesses come from where the last came
//! from, so what counts is how models do when somebody *moves*, and whether what they call 0.7 happens seven times in ten.
//!
//! ```text
//!   visits ──► LocationBlend ──► Chances ──► top k, or abstains
//!                 last · popular · recent · markov · bayes · both · recurrent
//!   feeds  ──► Feed (late: aged, then unknown; wrong: unknown) ──► Moment
//! ```

mod bayes;
mod blend;
mod both;
mod chances;
mod feed;
mod last;
mod markov;
mod mirroring;
mod past;
mod popular;
mod recent;
mod recurrent;
mod score;
mod sharpness;
mod who;

pub use bayes::BayesForecaster;
pub use blend::{LocationBlend, LocationExpert, models};
pub use both::BothForecaster;
pub use chances::Chances;
pub use feed::{Feed, FeedError, Known, MAX_FEED_BYTES, MAX_FEED_ROWS, MAX_SYMBOLS};
pub use last::LastPlaceForecaster;
pub use markov::MarkovForecaster;
pub use mirroring::{MirrorCase, MirrorCost, mirroring_score};
pub use popular::PopularForecaster;
pub use recent::RecentForecaster;
pub use recurrent::RecurrentForecaster;
pub use score::LocationScore;

use gnomon_terms::ErrorKind;

/// Places a model can tell apart. Regions and nodes, not cells: nobody can be followed further than that anyway.
pub const MAX_PLACES: usize = 128;
/// Feeds that a moment can carry.
pub const MAX_FEEDS: usize = 4;

/// A user or VM, numbered by the caller.
pub type Who = u64;

/// A place, numbered by the caller from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region(u8);

/// A place that there is no room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("place {0}: {MAX_PLACES} places can be told apart; use larger regions")]
pub struct UnknownRegion(pub usize);

impl UnknownRegion {
    /// Asked for something that cannot be done as asked.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::Refused
    }
}

impl Region {
    /// The place of this number, below [`MAX_PLACES`].
    pub fn new(number: usize) -> Result<Region, UnknownRegion> {
        u8::try_from(number).ok().filter(|_| number < MAX_PLACES).map(Region).ok_or(UnknownRegion(number))
    }

    /// Its number.
    pub fn number(self) -> usize {
        usize::from(self.0)
    }
}

/// What is known about the time that a forecast is made for, before anybody moves in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The hour of the day, 0 to 23; larger numbers are taken modulo 24.
    pub hour: u8,
    /// The day of the week, 0 to 6; larger numbers are taken modulo 7.
    pub weekday: u8,
    /// Where most of the neighbours (members of the same group) were lately.
    pub neighbours: Option<Region>,
    /// What each feed says, as symbols from 0 on; `None` is not known.
    pub feeds: [Option<u8>; MAX_FEEDS],
}

/// One access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visit {
    /// Who.
    pub who: Who,
    /// What kind of user or VM, numbered by the caller; one unknown is 0.
    pub profile: u8,
    /// From where.
    pub at: Region,
    /// When, and what was known then.
    pub when: Moment,
}

/// Forecasts from where somebody will read next. State is bounded whatever is observed.
pub trait LocationForecaster {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// An access came.
    fn observe(&mut self, visit: &Visit);

    /// The chance of each of the first `places` places to be where `who` reads from next, at `when`.
    fn forecast(&self, who: Who, profile: u8, when: &Moment, places: usize) -> Chances;

    /// Bytes of state, without the allocator's share.
    fn bytes(&self) -> usize;
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn region(number: usize) -> Region {
        Region::new(number).expect("a small number")
    }

    pub(crate) fn visit(who: Who, at: usize, hour: u8) -> Visit {
        Visit { who, profile: 0, at: region(at), when: Moment { hour, ..Moment::default() } }
    }

    /// A number below `below` that a seed repeats.
    pub(crate) fn dice(seed: &mut u64, below: usize) -> usize {
        let share = (crate::series::tests::noise(seed) + 1.0) / 2.0;
        ((share * below as f64) as usize).min(below - 1)
    }

    fn all() -> Vec<Box<dyn LocationForecaster>> {
        let blend: Box<dyn LocationForecaster> = Box::new(LocationBlend::default());
        blend::models().into_iter().map(|model| -> Box<dyn LocationForecaster> { model }).chain([blend]).collect()
    }

    #[test]
    fn every_model_gives_every_place_a_chance_and_stays_bounded() {
        for mut model in all() {
            let mut seed = 3;
            for round in 0..15_000u64 {
                // Ever new users, and moments that no clock shows.
                let mut visit = visit(round / 3, dice(&mut seed, MAX_PLACES), (round % 256) as u8);
                visit.when.weekday = 255;
                visit.when.feeds = [Some(255), None, Some(3), None];
                visit.when.neighbours = Some(region(5));
                model.observe(&visit);
                if round % 1000 == 0 {
                    for places in [1, 2, 40, MAX_PLACES, 9999] {
                        let chances = model.forecast(round / 3, 200, &visit.when, places);
                        let all = chances.all();
                        assert_eq!(all.len(), places.min(MAX_PLACES));
                        assert!((all.iter().sum::<f32>() - 1.0).abs() < 1e-3, "{}", model.name());
                        assert!(all.iter().all(|chance| *chance > 0.0), "{}: a place without a chance", model.name());
                    }
                }
            }
            assert!(model.bytes() < 8 << 20, "{} has {} bytes", model.name(), model.bytes());
        }
    }

    #[test]
    fn places_beyond_the_last_are_refused() {
        assert_eq!(Region::new(MAX_PLACES), Err(UnknownRegion(MAX_PLACES)));
        assert_eq!(Region::new(usize::MAX).map_err(|error| error.kind()), Err(ErrorKind::Refused));
        assert_eq!(region(7).number(), 7);
    }
}
