//! Staged memory as a daemon uses it: real memfds, real processes.

mod bad_days;
mod host;
mod huge;
mod lives;
mod nodes;
mod restarts;
mod staging;
