//! Staged memory as a daemon uses it: real memfds, real processes.

mod bad_days;
mod host;
mod huge;
mod lives;
mod numa;
mod restarts;
mod staging;
