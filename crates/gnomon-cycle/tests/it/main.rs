//! The loop end to end, over a plane that only pretends.

mod hints;
mod honesty;
mod life;
mod outlook;
mod plane;
mod stories;
