//! The real program, driven as its users drive it: a daemon in a folder of its own, the command line, NBD clients of
//! other projects, and a guest.

mod balancing;
mod beating;
mod cache;
mod client;
mod confirms;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod failovers;
mod feeds;
mod forecasts;
mod grown;
mod guest;
mod guest_exec;
mod house;
mod imports;
mod kills;
mod memory;
mod memory_days;
mod moves;
mod nbd_tls;
mod nics;
mod outlook;
mod protects;
mod rollbacks;
mod several;
mod shared;
mod strays;
mod tour;
mod traces;
mod updates;
mod upgrades;
mod usage;
mod verify;
mod vm_kills;
mod vm_moves;
mod vms;
mod volumes;
#[cfg(feature = "etcd")]
#[path = "../../../gnomon-store/tests/it/wire.rs"]
mod wire;
