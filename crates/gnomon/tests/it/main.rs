//! The real program, driven as its users drive it: a daemon in a folder of its own, the command line, NBD clients of
//! other projects, and a guest.

mod client;
mod house;
mod kills;
mod moves;
mod outlook;
mod traces;
mod usage;
mod verify;
mod vms;
mod volumes;
