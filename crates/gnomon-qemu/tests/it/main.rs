//! The crate against real QEMU processes.

mod carried;
mod disk;
mod doctor;
mod guests;
mod hostile;
mod memory;
mod migrate;
mod process;
mod qmp;
mod state;
mod stream;
mod trackers;
mod upgrade;
