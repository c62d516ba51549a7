//! Staged memory: how much a trust group should have ready, in which blocks.
//!
//! ```text
//!   StepReport ──► Collector ──► sums ──► models ──► Ahead ──► Reserve ──► Sizes ──► Target
//!   who asked,     caps, sums,            blend      over the  level and   whole     blocks
//!   who has what   noise                             horizon   scale       blocks
//!                                                               ▲
//!                  hit, idle ───────────────────────────────────┘      Contest: are forecasts worth anything?
//! ```
//! A pool of blocks that a group shares serves whichever member asks, so what is planned for is the sum. A plan moves memory
//! earlier or later and decides nothing else: a request that finds nothing staged goes the standard path.
//!
//! Pure like the rest of the crate: time is steps, randomness is an argument.

mod ahead;
mod collector;
mod config;
mod demand;
mod heat;
mod noise;
mod planner;
mod pressure;
mod reserve;
mod rival;
mod sizes;
mod view;

pub use ahead::MOST_STEPS;
pub use collector::{KEPT_OF_A_MEMBER, LEAST_MEMBERS, Privacy, Request, Shown, StepReport};
pub use config::{DEFAULT_HORIZON, DEFAULT_STEP, LEAST_STEP, MOST_STEP, StagingConfig, StagingError};
pub use demand::{SHORT, Said, Seen, demand};
pub use gnomon_forecast::series::MemberId;
pub use heat::{Heat, RANGES, coldest_first, picture};
pub use noise::{Bits, noised};
pub use planner::GroupPlanner;
pub use pressure::{Limits, Pressure, STEP_PER_FREE, Verdict};
pub use reserve::{Aim, Reserve, StepOutcome};
pub use rival::{Contest, Mode};
pub use sizes::{BLOCK, CLASSES, Sizes, Target};
pub use view::GroupView;
