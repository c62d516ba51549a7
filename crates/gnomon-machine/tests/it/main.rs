//! The engines of a shadow, end to end: with simulated guests by the hundred, and with real QEMUs.

#[allow(dead_code)]
#[path = "../../../gnomon-qemu/tests/it/guests.rs"]
mod guests;

mod bad_days;
mod fanout;
mod link;
mod protect;
mod sim;
mod sim_guest;
