//! Forecasts from the outside: trace files nobody vouches for.

mod mutated;
mod traces;
