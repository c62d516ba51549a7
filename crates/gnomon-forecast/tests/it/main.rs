//! Forecasts from the outside: trace files nobody vouches for.

mod formats;
mod mutated;
mod traces;
