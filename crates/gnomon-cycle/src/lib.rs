//! The loop: observe → forecast → plan → move → serve → adjust.
//!
//! [`Cycle`] thinks, a [`Plane`] carries, and [`turn`] is the one place where they meet. A cycle says what should be
//! where and asks for the difference from what is there as moves; it never learns how a move is done, and a plane
//! never learns why. Whatever the forecast says, everything lacking is asked for in the end: forecasts change the
//! order and the timing, never the result.
//!
//! Invariant: no clock, thread, socket, file, random source or global (checked by `cargo xtask tidy`).

mod again;
mod config;
mod cycle;
mod felt;
mod flights;
mod plan;
pub mod replay;
mod score;
mod shadow;
mod spare;
pub mod staging;
mod stall;
mod view;

pub use config::{CycleConfig, CycleError, DEFAULT_WINDOW, Forecast, PREDICTORS};
pub use cycle::Cycle;
pub use felt::{Curve, Felt, GapPoint, MOST_POINTS, gap_over_time};
pub use score::Score;
pub use stall::StallForecast;
pub use view::{Outlook, ShadowState, UnitState};

use gnomon_terms::{Event, Instant, Plane};

/// One turn of the loop: volume, machine, mirror, memory and simulation all turn here. `events` is a buffer that is
/// empty before and after; it is handed in so that its memory is used again.
pub fn turn(cycle: &mut Cycle, plane: &mut impl Plane, now: Instant, events: &mut Vec<Event>) {
    cycle.advance(now);
    plane.drain(events);
    for event in events.drain(..) {
        cycle.handle(now, event);
    }
    while let Some(mv) = cycle.poll_move() {
        plane.begin(mv);
    }
    if let Some(routes) = cycle.poll_routes() {
        plane.adopt(routes);
    }
}
